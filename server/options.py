"""gunicorn's options that would do nothing here, or harm: the start stops for them, in one line."""

from typing import Any

from server.worker import Worker


def refuse_unfit(cfg: Any, threads: int) -> None:
    """Raise SystemExit for the first of them in `cfg`; `threads` is what THREADS says."""
    if cfg.is_ssl:
        raise SystemExit("certfile and keyfile do not work here: TLS ends at the router in front")
    if cfg.protocol != "http" or cfg.http2_cleartext != "off":
        raise SystemExit("protocol and http2_cleartext do not work here: it speaks HTTP/1.1")
    if cfg.http_parser == "fast":
        raise SystemExit("http_parser=fast does not work here: gunicorn_h1c is not installed")
    if not issubclass(cfg.worker_class, Worker):
        raise SystemExit("worker_class does not work here: limits and stop are the own worker's")
    if cfg.threads != threads:
        raise SystemExit("threads does not work here: set THREADS, which bounds the calls as well")
