"""Standard output and error: nobody reads them, they cannot hold a character, or they are full."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from diffit_lib.cli.main import main
from diffit_lib.config import presets


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, tiny):
    """Work in an empty folder, with `digits` a tiny preset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(presets.PRESETS, "digits", tiny.override(name="digits"))


@pytest.fixture
def unread(monkeypatch):
    """A function: nobody reads this stream, of a name in `sys`, and every line is written at once."""
    with ExitStack() as opened:

        def unread(name):
            read, write = os.pipe()
            os.close(read)
            monkeypatch.setattr(sys, name, opened.enter_context(open(write, "w", buffering=1)))

        yield unread


def test_training_goes_on_when_nobody_reads_what_it_says(unread, tmp_path):
    unread("stderr")
    unread("stdout")
    assert main(["train", "digits", "--run=run", "--no-report"]) == 0
    assert (tmp_path / "run" / "weights.safetensors").is_file()


def test_a_mistake_that_nobody_reads_is_a_mistake(unread):
    unread("stderr")
    assert main(["info", "nothing"]) == 2


def test_a_pipe_of_another_kind_that_breaks_is_no_success(monkeypatch, capsys):
    def broken(name: str):
        """Draw."""
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("diffit_lib.cli.info.info", broken)
    assert main(["info", "celebhq"]) == 2
    assert "Broken pipe" in capsys.readouterr().err


def test_numbers_are_in_the_file_though_nobody_reads_the_table(unread, tmp_path, monkeypatch):
    found = {"fid": 1.5, "stamp": {"n": 20}, "warnings": []}
    monkeypatch.setattr("diffit_lib.evaluation.evaluate.evaluate_each", lambda *_, **__: [found])
    unread("stdout")
    assert main(["evaluate", "digits", "--out=d.json"]) == 0
    assert json.loads((tmp_path / "d.json").read_text()) == [{"measured": "digits", **found}]


def test_numbers_are_printed_though_the_file_cannot_be_written(monkeypatch, capsys, tmp_path):
    found = {"fid": 1.5, "stamp": {"n": 20}, "warnings": []}
    monkeypatch.setattr("diffit_lib.evaluation.evaluate.evaluate_each", lambda *_, **__: [found])
    (tmp_path / "file").touch()
    assert main(["evaluate", "digits", "--out=file/d.json"]) == 2
    assert json.loads(capsys.readouterr().out) == found


def test_characters_that_an_encoding_lacks_are_escaped(monkeypatch, tmp_path):
    with open(tmp_path / "said", "w", encoding="ascii") as said:
        monkeypatch.setattr(sys, "stdout", said)
        monkeypatch.setattr("diffit_lib.cli.info.info", lambda name: "\xe9 and \udcff")
        assert main(["info", "celebhq"]) == 0
    assert (tmp_path / "said").read_text() == "\\xe9 and \\udcff\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_behind_standard_output_is_told(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["info", "celebhq"]) == 2
    assert "No space left on device; make room there, or give another path\n" in capsys.readouterr().err


def test_paths_in_words_of_the_system_hold_nothing_that_a_terminal_obeys(monkeypatch, capsys):
    def refused(name: str):
        """Draw."""
        raise PermissionError(13, "Permission denied", "a\x1b[31m\nb")

    monkeypatch.setattr("diffit_lib.cli.info.info", refused)
    assert main(["info", "celebhq"]) == 2
    assert capsys.readouterr().err == "diffit: a\\x1b[31m\\nb: Permission denied; give another path\n"


def test_closed_output_and_error_are_written_to_nowhere():
    for closed, said in ((">&-", "diffit: "), (">&- 2>&-", "")):
        command = f"exec {sys.executable} -m diffit_lib info no-such-name {closed}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        assert (done.returncode, done.stderr[:8], "Traceback" in done.stderr) == (2, said, False)


def test_an_error_of_the_disk_without_a_reason_of_the_system_has_its_own_words(monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError("cannot identify image file")

    monkeypatch.setattr("diffit_lib.cli.info.list_all", fail)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == "diffit: the disk: cannot identify image file; give another path\n"
