"""What a command says: lines, progress bars, the log of a run; and standard streams whose reader may be gone."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

from tqdm.auto import tqdm

from diffit_lib.utils.errors import printable

LOG = logging.getLogger("diffit")  # a run's log.txt holds what is logged here
LOG.setLevel(logging.INFO)
LOG.propagate = False
LOG.addHandler(logging.NullHandler())

LINE_EVERY = 30.0  # seconds between two lines of a bar whose output is not a terminal


def say(line: str) -> None:
    """Print a line on standard error and log it. Standard output is for results, which a program may read."""
    line = printable(line)
    print(line, file=sys.stderr)
    LOG.info(line)


def duration(seconds: float) -> str:
    """Seconds as words: 40 seconds, 12 minutes, 3.4 hours."""
    for most, unit, name in ((90, 1, "seconds"), (5400, 60, "minutes")):
        if seconds < most:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} hours" if seconds < 360_000 else f"{seconds / 86400:,.0f} days"


def progress(iterable: Iterable[Any] | None = None, desc: str = "", total: float | None = None, **options: Any) -> tqdm:
    """A tqdm bar on standard error. In a log file it writes a whole line every 30 seconds, none before the first 30.

    `options` are tqdm's own. Bars vanish when they are done unless `leave=True`.
    """
    options = {"leave": False, "dynamic_ncols": True} | options
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if not sys.stderr.isatty() and not hasattr(shell, "kernel"):  # a kernel: in a notebook
        options |= {"file": _Lines(), "delay": LINE_EVERY, "mininterval": LINE_EVERY, "miniters": 1, "ncols": 100}
    return tqdm(iterable, desc, total, **options)


class _Lines:
    """Standard error for tqdm: the text after a carriage return becomes a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip():
            sys.stderr.write(f"{text}\n")

    def flush(self) -> None:
        sys.stderr.flush()


class Stream:
    """A text stream. What nobody reads any more is dropped, so that the work goes on; all characters can be written."""

    def __init__(self, stream: Any):
        self.stream = stream = (
            os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") if stream is None else stream
        )  # None: the caller closed it
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # for characters that its encoding lacks

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write; to nowhere once the reader is gone."""
        with self.to_nowhere():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what is written."""
        with self.to_nowhere():
            self.stream.flush()

    @contextmanager
    def to_nowhere(self) -> Iterator[None]:
        """After an error, e.g. of a full disk, what is left and what comes goes nowhere; a closed pipe is no error."""
        try:
            yield
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise


@contextmanager
def streams() -> Iterator[None]:
    """Make standard output and error `Stream`s, for `diffit info | head -1`; at the end nothing is left unwritten."""
    out: Any = Stream(sys.stdout)
    err: Any = Stream(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            with suppress(OSError):
                out.flush()
