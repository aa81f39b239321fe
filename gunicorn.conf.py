"""The server's settings, as gunicorn reads them; its worker is in server/."""

import contextlib
import gc
import os
import resource
import threading
import time
from typing import Any

from core import watchdog
from core.settings import load
from server import log, options, signals
from server.worker import Worker

log.prepare()
# Python's own limits on nesting are made for stacks of this size; small systems give 1 MiB or
# less, and JSON of 5,000 levels then ended the worker. Only what is used takes memory.
threading.stack_size(8 * 2**20)
settings = load()

wsgi_app = "app:create_app()"
worker_class = Worker
bind = f"0.0.0.0:{settings.port}"
workers = settings.web_concurrency
# gthread, by bench/ on 2 cores: its threads start as they are needed, so 1000 a worker cost nothing
# idle, and 1000 streams at once stay below 200 MiB in all. The sync worker carries no streams.
# gevent took a fifth to a third less CPU for a bare prototype (40 streams: 3.8 against 5.1 s per
# 1000), but it monkey-patches, and the watchdog's shutdown() does not wake its readers. More than
# 2 workers on 2 cores only add memory.
threads = settings.threads
backlog = 512
# Loaded once and shared by the workers: a third less memory idle, and a killed worker is replaced
# at once. Nothing is connected or started before the fork.
preload_app = True
# A call holds two descriptors; the usual soft limit of 1024 would end at 500 streams.
_files, _most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
_files = max(_files, min(_most_files, 65_536))
resource.setrlimit(resource.RLIMIT_NOFILE, (_files, _most_files))
# Connections that wait for a request, idle or are being closed hold no thread, so there may be many
# more of them than threads. Beside each, a call has one to a provider, and another may be pooled;
# some thirty descriptors are a worker's own.
worker_connections = max(2, min(4 * settings.threads + 1000, (_files - 30) // 3))
# A heartbeat of the worker's main loop, not a limit on calls.
timeout = 30
graceful_timeout = settings.grace_timeout_s
# Above the 90 s after which Heroku's router closes an idle connection, so that it is never we
# who close one that the router is about to use.
keepalive = 100
limit_request_line = 4094
limit_request_fields = 64
# Above the 8 KB of Heroku's router, so that a giant token is a 401; server/ bounds all of them.
limit_request_field_size = 32_768
# The scheme is only shown, and read in server/connections.py. Nobody in front may say more.
forwarded_allow_ips = "*"  # or gunicorn would parse each address
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""
# The usage record is the access log. Where one is asked for (Heroku's buildpack does, with
# GUNICORN_CMD_ARGS), it holds no path and no query, which may carry anything.
accesslog = None
access_log_format = "%(h)s %(m)s %(s)s %(B)s bytes %(M)s ms %({x-request-id}o)s"
control_socket_disable = True
# It would wait without limit for a caller who takes nothing.
sendfile = False


def on_starting(server: Any) -> None:
    options.refuse_unfit(server.cfg, settings.threads)


def pre_fork(server: Any, worker: Worker) -> None:
    """Give a worker a CPU, nothing to clean up and no signal to lose."""
    # One of a worker's threads runs at a time, and moving it about costs 5 % of a full answer and
    # a fifth of a paced stream. So where there is a CPU for each worker, it gets the least taken.
    with contextlib.suppress(AttributeError, OSError):  # not every system has it, or allows it
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) == server.num_workers:
            taken = [other.cpu for other in server.WORKERS.values()]
            worker.cpu = min(cpus, key=taken.count)
    gc.freeze()  # as its documentation advises before a fork: what is loaded by now will stay
    signals.block_stop_signals()


def post_fork(_server: Any, worker: Worker) -> None:
    """Keep the worker to its CPU."""
    if worker.cpu is not None:
        with contextlib.suppress(OSError):  # a cpuset may have shrunk: then any CPU will do
            os.sched_setaffinity(0, {worker.cpu})


def post_worker_init(_worker: Worker) -> None:
    """Take signals: by now, the worker handles them."""
    signals.let_stop_signals_through()


def worker_int(_worker: Worker) -> None:
    """End every call at once: SIGINT or SIGQUIT came."""
    watchdog.stop_at(time.monotonic())


def when_ready(server: Any) -> None:
    """Say who may call, and what is missing, once calls are taken."""
    for line in settings.warnings():
        server.log.warning(line)
    server.log.info(settings.callers())
