"""gunicorn's own options: each works as gunicorn documents it, or stops the start in one line."""

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.conftest import Service, ask

REFUSED = {
    "--certfile=cert.pem --keyfile=key.pem": "TLS",
    "--keyfile=key.pem": "TLS",
    "--protocol=uwsgi": "HTTP/1.1",
    "--http2-cleartext=upgrade": "HTTP/1.1",
    "--worker-class=sync": "worker_class",
    "--http-parser=fast": "gunicorn_h1c",
    "--threads=8": "THREADS",
}


@pytest.mark.parametrize(("options", "word"), REFUSED.items(), ids=REFUSED)
def test_an_option_that_would_do_nothing_or_harm_stops_the_start_in_one_line(
    options: str, word: str, start: Callable[..., Service], tmp_path: Path
) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("none")
        options = options.replace(name, str(tmp_path / name))
    service = start(OFFLINE=1, GUNICORN_CMD_ARGS=options)
    assert service.process.wait(10) == 1
    (line,) = [line for line in service.log.splitlines() if "[INFO]" not in line]
    assert word in line


def test_the_proxy_protocol_names_a_connection_s_caller_once(start: Callable[..., Service]) -> None:
    service = start(OFFLINE=1, GUNICORN_CMD_ARGS="--proxy-protocol=auto --access-logfile=-")
    request = "PROXY TCP4 9.9.9.%d 1.2.3.4 1 2\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), 10) as sock:
        sock.sendall((request % 1 + request % 2).encode())
        answers = sock.makefile("rb").read().decode()
    assert re.findall(r"HTTP/1.1 (\d+)", answers) == ["200", "400"]
    assert "9.9.9.1" in service.log
    assert "9.9.9.2" not in service.log


@pytest.fixture
def collector() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(10)
        yield sock


def receive(collector: socket.socket, wanted: str) -> None:
    while wanted not in collector.recv(65536).decode():
        pass


def test_syslog_and_statsd_get_what_is_theirs(
    start: Callable[..., Service], collector: socket.socket
) -> None:
    where = f"127.0.0.1:{collector.getsockname()[1]}"
    options = f"--log-syslog --log-syslog-to=udp://{where} --statsd-host={where}"
    service = start(OFFLINE=1, GUNICORN_CMD_ARGS=options)
    receive(collector, "Booting worker")
    assert service.post(ask()).status_code == 200
    receive(collector, "gunicorn.requests:1")


LOG_CONFIG = """
[loggers]
keys=root
[handlers]
keys=syslog
[formatters]
keys=
[logger_root]
handlers=syslog
[handler_syslog]
class=handlers.SysLogHandler
args=(("127.0.0.1", {port}),)
"""


def test_a_log_configuration_is_followed(
    start: Callable[..., Service], collector: socket.socket, tmp_path: Path
) -> None:
    config = tmp_path / "log.ini"
    config.write_text(LOG_CONFIG.format(port=collector.getsockname()[1]))
    collector.settimeout(0.1)
    service = start(OFFLINE=1, GUNICORN_CMD_ARGS=f"--log-config={config}")
    assert service.post(ask()).status_code == 200
    assert "Traceback" not in service.log


@pytest.mark.parametrize(
    "options",
    ["--log-syslog --log-syslog-to=unix://{}/none", "--statsd-host=127.0.0.1:{}"],
    ids=["syslog", "StatsD"],
)
def test_where_nobody_takes_what_is_sent_it_serves_without_a_stack(
    options: str, start: Callable[..., Service], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    where = tmp_path if "syslog" in options else port
    service = start(OFFLINE=1, GUNICORN_CMD_ARGS=options.format(where))
    for _ in range(2):
        assert service.post(ask()).status_code == 200
    service.records(2)
    assert "Traceback" not in service.log
    assert '"crash"' not in service.log


def test_an_error_log_goes_to_its_file_and_crashes_in_it_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    command = ("gunicorn", "tests.breaking_app:app", f"--error-logfile={file}")
    with Service(tmp_path / "log", *command, OFFLINE="1") as service:
        with pytest.raises(requests.RequestException):
            requests.get(service.url, timeout=10)
        service.until(lambda: '"event": "crash"' in service.log)
        assert "Booting worker" in file.read_text()
        assert "nobody should log" not in service.log + file.read_text()


def test_an_access_log_holds_no_path_and_no_query(start: Callable[..., Service]) -> None:
    service = start(OFFLINE=1, GUNICORN_CMD_ARGS="--access-logfile=-")
    requests.get(f"{service.url}/private-path?secret=query", headers={"Referer": "x"}, timeout=10)
    service.until(lambda: re.search(r"^127\.0\.0\.1 GET 401 \d+ bytes", service.log, re.MULTILINE))
    assert "private-path" not in service.log
    assert "secret" not in service.log
