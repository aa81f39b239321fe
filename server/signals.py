"""Signals that stop a worker, held back until it can take them."""

import os
import signal

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}


def block_stop_signals() -> None:
    """Called before a fork: until the worker handles them, they would be lost (gunicorn #1910)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def let_stop_signals_through() -> None:
    """Called when the worker handles them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


os.register_at_fork(after_in_parent=let_stop_signals_through)
