"""The service's own gunicorn settings, with a sampler in the worker.

BENCH_SAMPLES=FILE gunicorn -c python:bench.sampled
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

from bench.sampler import PROJECT, Sampler

_spec = importlib.util.spec_from_file_location("service_settings", PROJECT / "gunicorn.conf.py")
assert _spec
assert _spec.loader
_settings = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_settings)
globals().update(vars(_settings))


def post_worker_init(worker: Any) -> None:
    if hasattr(_settings, "post_worker_init"):
        _settings.post_worker_init(worker)
    Sampler(Path(os.environ["BENCH_SAMPLES"])).start()
