"""The log of a run, lines for the terminal, and progress bars."""

import logging
import sys
from collections.abc import Iterable
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


def progress(iterable: Iterable[Any] | None = None, desc: str = "", total: float | None = None, **options: Any) -> tqdm:
    """A tqdm bar on standard error. In a log file it writes a whole line every 30 seconds, none before the first 30.

    `options` are tqdm's own. Bars vanish when they are done unless `leave=True`.
    """
    options = {"leave": False, "dynamic_ncols": True} | options
    if not sys.stderr.isatty() and not _in_notebook():
        options |= {"file": _Lines(), "delay": LINE_EVERY, "mininterval": LINE_EVERY, "miniters": 1, "ncols": 100}
    return tqdm(iterable, desc, total, **options)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class _Lines:
    """Standard error for tqdm: the text after a carriage return becomes a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip():
            sys.stderr.write(f"{text}\n")

    def flush(self) -> None:
        sys.stderr.flush()
