"""The planted faults of `faults.txt`: each can still be planted, and a test notices it."""

import subprocess
import sys
from pathlib import Path

import faults
import pytest

FAULTS = list(faults.faults())


def test_every_fault_can_be_planted_and_has_a_name_of_its_own():
    for fault in FAULTS:
        text = (faults.ROOT / "diffit_lib" / fault.file).read_text(encoding="utf-8")
        assert text.count(fault.old) == 1, f"{fault.name}: its lines in {fault.file} have changed"
        compile(text.replace(fault.old, fault.new), fault.file, "exec")
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_table_lists_every_fault():
    table = (faults.ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    missing = [fault.name for fault in FAULTS if f"| {fault.name} | `{fault.file}` |" not in table]
    assert not missing


def plant(*words):
    done = subprocess.run([sys.executable, Path(faults.__file__), *words], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_every_fault_is_noticed():
    status, said = plant()
    assert status == 0, said
