"""A part of `make attack`, and fuzz: hostile files are refused in one line, skipped and counted, or read right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).parent / "hostile" / "runner.py"
EVERY = 25  # cases that one stands for
MINUTES = os.environ.get("DIFFIT_FUZZ_MINUTES", "10")  # for each reader


def run(*words, script=RUNNER):
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_some_hostile_files_of_every_kind_do_no_harm():
    status, said = run("--every", str(EVERY))
    assert status == 0, said


def test_the_runner_finds_harm():
    status, said = run("harmful")
    assert status == 1, said
    for name, outcome in {
        "executes": "executed", "writes": "written", "waits": "hung", "takes": "memory", "raises": "traceback",
        "loses": "lost", "floods": "said too much", "lines": "not one good line", "errs": "wrong", "dies": "died",
    }.items():  # fmt: skip
        assert f"harmful: {name}: {outcome}" in said, said
    assert "harmful      right                    1" in said, said


@pytest.mark.slow
def test_no_change_of_a_sound_file_does_harm():
    pytest.importorskip("hypothesis", reason="hypothesis is not installed; pip install -e '.[dev]'")
    status, said = run("--minutes", MINUTES, script=RUNNER.with_name("fuzz.py"))
    assert status == 0, said
