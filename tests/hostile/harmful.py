"""Checks that do what the runner has to find; no part of `make attack`."""

import os
import pickle
import time
from pathlib import Path

import runner
from runner import Bomb, Case

from diffit_lib.utils.errors import DiffitError


def say(words, outcome):
    """Print this, and return the outcome."""
    print(words)
    return outcome


def refuse(error):
    """Raise it."""
    raise error


def cases():
    """One of each kind of harm, and none."""
    runner.MOST_WAIT = 5
    checks = {
        "executes": lambda folder: (pickle.loads(pickle.dumps(Bomb())) and "") or "right",
        "writes": lambda folder: Path("new").write_text("x") and "right",
        "waits": lambda folder: time.sleep(60),
        "takes": lambda folder: say(len(b"x" * 1_200_000_000), "right"),
        "raises": lambda folder: 1 // 0,
        "loses": lambda folder: "skipped",
        "floods": lambda folder: say("x\n" * 50, "right"),
        "lines": lambda folder: refuse(DiffitError("x" * 3000)),
        "errs": lambda folder: refuse(AssertionError("wrong")),
        "dies": lambda folder: os.abort(),
        "does nothing": lambda folder: "right",
    }
    for name, check in checks.items():
        yield Case(name, lambda folder: None, check)
