"""Planted faults that make pictures or numbers wrong without a word, and the test that notices each of them.

    python tests/faults.py [WORD ...]    those whose name has one of these words; without words all

Each fault of `faults.txt` is planted in a copy of the package, and the tests named beside it run there up to the first
that fails; before, all these tests run once without a fault. Prints a table in Markdown. The exit status is 1 if a
fault goes unnoticed.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("diffit_lib", "tests", "tools", "pyproject.toml", "requirements.txt")
WARM = ("pytest", "pytorch_lightning", "scipy.linalg", "sklearn.datasets", "torch.nn.parallel", "torchvision")
FORK = multiprocessing.get_context("fork")


class Fault(NamedTuple):
    """One change of one file."""

    name: str
    file: str  # below diffit_lib
    tests: str  # "blocks::TestTMSA": of tests/test_blocks.py
    old: str  # in the file once
    new: str

    @property
    def selection(self):
        """The tests as pytest takes them."""
        module, *rest = self.tests.split("::")
        return "::".join([f"tests/test_{module}.py", *rest])


def faults():
    """All that `faults.txt` lists."""
    for entry in (ROOT / "tests" / "faults.txt").read_text().strip().split("\n\n")[1:]:
        head, *lines = entry.split("\n")
        old, new = ("\n".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
        yield Fault(*head.split(" | "), old, new)


class First:
    """A plugin of pytest that remembers the first test that failed."""

    failed = ""

    def pytest_runtest_logreport(self, report):
        """Called after each part of a test."""
        if report.failed and not self.failed:
            self.failed = report.nodeid


def run(folder, tests, answer):
    """In a fork of the warm process: run tests of the copy, silently, and send pytest's status and who failed."""
    import pytest

    os.chdir(folder)
    os.environ["PYTHONPATH"] = sys.path[0] = str(folder)
    sys.dont_write_bytecode = True  # a fault and its undoing may be of one size and second
    with open("said.txt", "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    first = First()
    status = pytest.main(["-x", "-p", "no:cacheprovider", "--tb=short", *tests], plugins=[first])
    answer.send((int(status), first.failed))


def outcome(folder, tests):
    """Pytest's status, and the name of the first test that failed."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=run, args=(folder, tests, there))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return process.exitcode, ""
    finally:
        process.join()


def main(words):
    """Plant the faults that the words name; the exit status."""
    chosen = [fault for fault in faults() if not words or any(word in fault.name for word in words)]
    for module in WARM:
        import_module(module)
    unnoticed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in COPIED:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, folder)
        status, failed = outcome(folder, sorted({fault.selection for fault in chosen}))
        if status:
            print((folder / "said.txt").read_text())
            sys.exit(f"without a fault the tests fail, status {status}: {failed}")
        print("| fault | in | caught by |\n|---|---|---|")
        for fault in chosen:
            start, file = time.monotonic(), folder / "diffit_lib" / fault.file
            whole = file.read_text()
            assert whole.count(fault.old) == 1, fault
            file.write_text(whole.replace(fault.old, fault.new))
            status, failed = outcome(folder, [fault.selection])
            file.write_text(whole)
            unnoticed += not failed
            test = failed.removeprefix("tests/").partition("[")[0] or f"**nothing**, status {status}"
            print(f"| {fault.name} | `{fault.file}` | `{test}` |", flush=True)
            print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    print(f"\n{len(chosen)} faults, {unnoticed} unnoticed")
    return bool(unnoticed)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main(sys.argv[1:]))
