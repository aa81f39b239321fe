"""The server's settings, as gunicorn reads them; its worker is in worker.py."""

import gc
import os
import resource
from typing import Any

from core.settings import load
from server.worker import Logger, Worker, block_stop_signals

settings = load()

wsgi_app = "app:create_app()"
worker_class = Worker
logger_class = Logger
bind = f"0.0.0.0:{settings.port}"
workers = settings.web_concurrency
# gthread, by bench/ on 2 cores: its threads start as they are needed, so 1000 a worker cost nothing
# idle, and 1000 streams at once stay below 200 MiB in all. The sync worker carries no streams.
# gevent took a fifth to a third less CPU for a bare prototype (40 streams: 3.8 against 5.1 s per
# 1000), but it monkey-patches, and the watchdog's shutdown() does not wake its readers. More than
# 2 workers on 2 cores only add memory.
threads = settings.threads
# Connections that wait for their first bytes, idle or are being closed hold no thread, so there
# may be many more of them; at or below `threads`, gunicorn would switch keep-alive off.
worker_connections = 4 * settings.threads + 1000
backlog = 512
# Loaded once and shared by the workers: a third less memory idle, and a killed worker is replaced
# at once. Nothing is connected or started before the fork.
preload_app = True
# A call holds two descriptors; the usual soft limit of 1024 would end at 500 streams.
_files, _most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (max(_files, min(_most_files, 65_536)), _most_files))
# A heartbeat of the worker's main loop, not a limit on calls.
timeout = 30
graceful_timeout = settings.grace_timeout_s
# Above the 90 s after which Heroku's router closes an idle connection, so that it is never we
# who close one that the router is about to use.
keepalive = 100
limit_request_line = 4094
limit_request_fields = 64
# Above the 8 KB of Heroku's router, so that a giant token is a 401; worker.py bounds it all.
limit_request_field_size = 32_768
# Whoever is in front may say that it speaks https: the scheme is only shown, in the reference
# page's examples. Nobody may say more.
forwarded_allow_ips = "*"
# Of the three headers for that, the one proxies send: contradictions would be 400.
secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}
forwarder_headers = ""
# Where there is a CPU for each worker, it keeps to its own: only one of its threads runs at a time,
# and moving it from CPU to CPU costs a sixth of a request.
_cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
# The usage record is the access log.
accesslog = None
control_socket_disable = True
# An answer's head goes out with its body (Reply), which sendfile() would overtake.
sendfile = False


def pre_fork(server: Any, worker: Worker) -> None:
    """Give a worker the CPU that the fewest have, nothing to clean up and no signal to lose."""
    if workers == len(_cpus):
        taken = [other.cpu for other in server.WORKERS.values()]
        worker.cpu = min(_cpus, key=taken.count)
    gc.freeze()  # as its documentation advises before a fork: what is loaded by now will stay
    block_stop_signals()


def when_ready(server: Any) -> None:
    """Say who may call, and what is missing, once calls are taken."""
    for line in settings.warnings():
        server.log.warning(line)
    server.log.info(settings.callers())
