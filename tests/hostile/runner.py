"""Hostile files, each opened in a process of its own: refused in one line, skipped and counted, or right.

    python tests/hostile/runner.py [--every N] [READER ...]      (all of it: make attack)

A READER is a module beside this one, named in `READERS`. To add one, write `tests/hostile/NAME.py` with a function
`cases()` that yields `Case(name, make, check)`, and add NAME to the list:

- `make(folder)` writes the hostile file below an empty folder; it draws from `Random(name)`, so that a case is the
  same every time.
- `check(folder)` opens it as the program would. It returns "right" if the result is what it should be, "skipped" if the
  file was left out and that was counted, or raises a DiffitError, which counts as refused. Anything else it raises is
  a failure; an AssertionError is for "opened, but wrong".

Every check runs in a fork of one warm process, in an empty folder, and fails if it takes more than `MOST_MEMORY` above
what the process had, `MOST_SECONDS` of processor time or `MOST_WAIT` of any other time but for a busy processor; if
it says more than `MOST_LINES` lines, a traceback or an escape code; if it writes a file; or if it runs a program (those
of `PROGRAMS` are planted on PATH) or unpickles a `Bomb`.
"""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import glob
from importlib import import_module
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

READERS = ["images", "folders", "archives", "shards", "tables", "arrays", "weights", "settings", "copies", "words"]
MOST_MEMORY, MOST_ADDRESSES = 1.1e9, 8e9  # bytes above those of the warm process: resident, and addressed
MOST_SECONDS, MOST_WAIT, MOST_LINES = 20, 90, 8
PROGRAMS = ("gs", "gswin32c", "dwebp", "djpeg", "convert", "magick", "unzip", "7z", "xdg-open")
MARK = "DIFFIT_HOSTILE_MARK"  # variable: the file that whatever is executed writes


@dataclass(frozen=True)
class Case:
    """One hostile file."""

    name: str
    make: Callable[[Path], object]
    check: Callable[[Path], str]


class Bomb:
    """Once unpickled it writes the mark."""

    def __reduce__(self):
        return os.system, (f'echo unpickled > "${MARK}"',)


def attempt(case, folder, report):
    """In the child: open the file and write down what came of it."""
    from diffit_lib.utils.errors import DiffitError

    said = os.open(report.with_suffix(".said"), os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    pages = Path("/proc/self/statm").read_text().split()
    addressed, resident = (int(count) * os.sysconf("SC_PAGE_SIZE") for count in pages[:2])
    resource.setrlimit(resource.RLIMIT_AS, (int(addressed + MOST_ADDRESSES),) * 2)  # spares the machine
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        outcome, text = case.check(folder), ""
    except DiffitError as error:
        outcome, text = "refused", str(error)
        if "\n" in text or not text.isprintable() or len(text) > 2000 or "MemoryError" in text:
            outcome = "not one good line"
    except AssertionError as error:
        outcome, text = "wrong", str(error)
    except BaseException as error:
        outcome, text = "traceback", f"{type(error).__name__}: {error}"
    report.write_text(json.dumps([outcome, text, resident]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def judge(case, root):
    """What came of one case, and words on it."""
    folder, here, report, mark = root / "case", root / "here", root / "report", root / "mark"
    for path in (folder, here):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    for path in (report, report.with_suffix(".said"), mark):
        path.unlink(missing_ok=True)
    case.make(folder)
    before = listing(root)
    start, threads = time.monotonic(), {}
    child = os.fork()
    if not child:
        os.chdir(here)
        attempt(case, folder, report)
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        time.sleep(0.002)
        ran, queued = spent(child, threads)
        if ran > 2 * MOST_SECONDS or time.monotonic() - start - ran - queued > MOST_WAIT:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return "hung", f"{ran:.0f} s of processor time"
    used = ended[2]
    said = report.with_suffix(".said").read_text(errors="replace")
    if mark.exists():
        return "executed", mark.read_text()
    if new := listing(root) - before - {str(report), str(report.with_suffix(".said"))}:
        return "written", ", ".join(new)
    if not report.exists():
        return "died", f"status {ended[1]}: {said[-500:]}"
    outcome, text, base = json.loads(report.read_text())
    if (grown := used.ru_maxrss * 1024 - base) > MOST_MEMORY:
        return "memory", f"{grown / 1e6:,.0f} MB; {outcome}: {text}"
    if used.ru_utime + used.ru_stime > MOST_SECONDS:
        return "slow", f"{used.ru_utime + used.ru_stime:.0f} s; {outcome}: {text}"
    lines = [line for line in said.splitlines() if line]
    if len(lines) > MOST_LINES or "Traceback" in said or not all(map(str.isprintable, lines)):
        return "said too much", said[:500]
    if outcome == "skipped" and "skipped" not in said and "left out" not in said:
        return "lost", "left out without a word"
    return outcome, text


def spent(child, threads):
    """Seconds that the threads of a process ran, and that they waited for a busy processor; `threads` keeps each's."""
    for file in glob(f"/proc/{child}/task/*/schedstat"):
        with suppress(OSError):  # it has ended meanwhile
            threads[file] = Path(file).read_text().split()
    return tuple(sum(int(line[part]) for line in threads.values()) / 1e9 for part in (0, 1))


def listing(root):
    """All paths below a folder."""
    return {os.path.join(folder, name) for folder, dirs, files in os.walk(root) for name in dirs + files}


@contextmanager
def prepared():
    """A folder for `judge`, with planted programs on PATH and modules imported."""
    for module in ("diffit_lib.cli.estimate", "diffit_lib.evaluation.image_files", "matplotlib.font_manager"):
        import_module(module)  # warms the process; the last writes a cache where HOME is
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "bin").mkdir()
        for program in PROGRAMS:
            (root / "bin" / program).write_text(f'#!/bin/sh\necho {program} "$@" > "${MARK}"\n')
            (root / "bin" / program).chmod(0o755)
        os.environ |= {"PATH": f"{root}/bin:{os.environ['PATH']}", MARK: str(root / "mark"), "HOME": str(root)}
        yield root


def run(readers, every=1, first=0):
    """Run every `every`-th case of these readers; the outcomes and the lines on failures."""
    outcomes, failures = Counter(), []
    with prepared() as root:
        for module in map(import_module, readers):
            for number, case in enumerate(module.cases()):
                if (number - first) % every:
                    continue
                outcome, text = judge(case, root)
                outcomes[module.__name__, outcome] += 1
                if outcome not in ("refused", "skipped", "right"):
                    failures.append(f"{module.__name__}: {case.name}: {outcome}: {text}")
                    print(failures[-1], flush=True)
    return outcomes, failures


def main(words):
    """Run what the command line names; the exit status."""
    every = int(words.pop(words.index("--every") + 1)) if "--every" in words else 1
    readers = [word for word in words if not word.startswith("--")] or READERS
    start = time.monotonic()
    outcomes, failures = run(readers, every)
    for (reader, outcome), count in sorted(outcomes.items()):
        print(f"{reader:<12} {outcome:<20} {count:>5}")
    print(f"{sum(outcomes.values())} hostile inputs, {len(failures)} failures, {time.monotonic() - start:.0f} s")
    return bool(failures)


if __name__ == "__main__":
    sys.modules["runner"] = sys.modules["__main__"]  # one Case for all
    sys.exit(main(sys.argv[1:]))
