"""gunicorn's own log: written without waiting, and crashes without their words."""

import io
import logging
import os
import sys

from core import records


class Stream(io.TextIOBase):
    """Standard output or error for all of this process; what nobody takes is dropped."""

    encoding = "utf-8"

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._output = records.Output(fd)

    def write(self, text: str) -> int:
        self._output.write(text)
        return len(text)

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)


class _Wordless(logging.Filter):
    """An exception's own words may hold a prompt, so only its type and place are written."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not (record.exc_info and record.exc_info[1]):
            return True
        if record.levelno >= logging.ERROR:
            records.log_crash("", record.exc_info[1])
            return False
        # A mishap that gunicorn goes on from, such as a StatsD that nobody has started.
        record.msg = f"{record.msg} ({type(record.exc_info[1]).__name__})"
        record.exc_info = None
        return True


_wordless = _Wordless()


def prepare() -> None:
    """Have all that gunicorn logs, whichever of its loggers it uses, be written that way."""
    sys.stdout, sys.stderr = Stream(1), Stream(2)
    # A handler that fails, for want of a syslog say, would show a stack for each line it is given.
    logging.raiseExceptions = False
    logging.getLogger("gunicorn.error").addFilter(_wordless)
