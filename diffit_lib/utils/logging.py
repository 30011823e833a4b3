"""The log of a run, and lines for the terminal."""

import logging
import sys

LOG = logging.getLogger("diffit")  # what a run's log.txt is made of
LOG.setLevel(logging.INFO)
LOG.propagate = False
LOG.addHandler(logging.NullHandler())


def say(line: str) -> None:
    """Tell the user something on standard error, for what tasks print on standard output may go to a program."""
    print(line, file=sys.stderr)
    LOG.info(line)
