"""Progress bars: a bar on a terminal, whole lines in a log file."""

import time

import pytest

from diffit_lib.utils import logging
from diffit_lib.utils.logging import progress


def test_bar_in_a_log_file_is_whole_lines_from_time_to_time(capsys, monkeypatch):
    monkeypatch.setattr(logging, "LINE_EVERY", 0.2)
    assert [number for number in progress(range(10), "decoding", unit=" images") if not time.sleep(0.05)] == [
        *range(10)
    ]
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    lines = err.splitlines()
    assert 1 <= len(lines) <= 4
    assert all(line.startswith("decoding: ") and "/10 [" in line for line in lines)


@pytest.mark.parametrize("leave", [False, True])
def test_short_bar_writes_nothing_into_a_log_file(capsys, leave):
    with progress(desc="encoding", total=3, leave=leave) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal_is_drawn_in_place(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert list(progress(range(3), "decoding")) == [0, 1, 2]
    err = capsys.readouterr().err
    assert "\rdecoding:   0%|" in err
    assert "\n" not in err
