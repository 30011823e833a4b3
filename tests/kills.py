"""Killing a piece of work, without a word, at any moment in which it changes something on the disk."""

import multiprocessing
import os
import signal
import sys

import torch

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def finishes_killed_at_any_moment(work, undo, snapshot):
    """Whether `work`, killed before each of its changes in turn and then done again, ends as if it had not been killed.

    `undo` takes back what it has done; returns how many moments there were, at any one of which all was well.
    """
    work()
    whole = snapshot()
    moment = 0
    while True:
        undo()
        moment += 1
        child = multiprocessing.get_context("fork").Process(target=work_until, args=(moment, work))
        child.start()
        child.join(timeout=60)
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode == 0:
            return moment - 1
        work()
        assert snapshot() == whole, moment


def work_until(moment, work):
    """Do it, and be killed before the `moment`-th change: a folder, a renamed or deleted file, a zip opened."""
    seen = 0

    def follow(event, arguments):
        nonlocal seen
        if event in CHANGES or (event == "open" and str(arguments[0]).endswith(".zip")):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)  # threads do not survive a fork
    sys.addaudithook(follow)
    work()
