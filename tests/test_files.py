"""Files are whole or absent."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import diffit_lib
from diffit_lib.cli.main import main
from diffit_lib.evaluation.image_files import write_statistics
from diffit_lib.evaluation.metrics import Reference
from diffit_lib.training.run_dir import read_metrics
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import PRETRAINED, cache_folder, replacing, sha256, siblings, write_text


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "card.json"
    path.write_text("old")
    return path


def test_replacing_keeps_the_old_file_until_the_new_one_is_whole(path):
    with replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
        assert beside.parent == path.parent  # a rename within one file system takes a single step
        assert beside.suffix == path.suffix
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["card.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_replacing_leaves_the_old_file_whole_on_failure_and_nothing_beside_it(path, error):
    def write_half():
        with replacing(path) as beside:
            beside.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["card.json"]


def test_replacing_leaves_nothing_where_there_was_nothing(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "run" / "new.txt"):
        raise RuntimeError
    assert list((tmp_path / "run").iterdir()) == []


def test_a_written_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain.txt").write_text("")
    write_text(tmp_path / "ours.txt", "")
    assert (tmp_path / "ours.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode


def test_what_a_library_wrote_for_its_owner_alone_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "weights.safetensors") as beside:
        beside.touch(0o600)  # as safetensors does
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_write_text_makes_folders_and_writes_utf8(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "σ")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "σ".encode()


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"\x00\r\n" * 100_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"\x00\r\n" * 100_000).hexdigest()


def test_cache_folder_follows_the_environment_and_else_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DIFFIT_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "diffit"


def test_without_a_home_folder_the_remedy_is_told(monkeypatch):
    monkeypatch.delenv("DIFFIT_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(DiffitError, match="set DIFFIT_CACHE to a folder"):
        cache_folder()


def test_ready_made_weights_lie_beside_the_package():
    assert Path(diffit_lib.__file__).parent / "pretrained" == PRETRAINED


@pytest.mark.parametrize("place", [".", "/", ".."])
def test_a_folder_is_no_place_for_a_file(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DiffitError, match=f"^{re.escape(place)} is a folder; give the path of a file$"):
        write_text(place, "new")


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(OSError, match=r"No such file.*: '.*/card\.json'$"), replacing(tmp_path / "card.json") as beside:
        beside.read_bytes()


def test_the_home_of_nobody_is_one_line(capsys):
    for words in (["info"], ["sample"], ["pack"], ["train", "--data"], ["evaluate"]):
        assert main([*words, "~nobodyhere/photos"]) == 2
        said = capsys.readouterr().err
        assert "~nobodyhere/photos" in said.splitlines()[-1]
        assert "without ~" in said.splitlines()[-1]


def test_a_dangling_loop_is_not_meant_instead_of_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "loops").touch()
    assert siblings("loop") == ["loops"]


@pytest.mark.parametrize("content", [b"images,loss\n\xff\xfe", b"loss\n1\n", b"images,loss\n1\n", b"images\n1,2\n"])
def test_numbers_of_a_run_that_are_none_are_one_line(content, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(DiffitError, match=r"metrics\.csv.* delete"):
        read_metrics(tmp_path / "metrics.csv")


def test_statistics_lie_where_they_were_asked_for(tmp_path):
    write_statistics(tmp_path / "stats", Reference(torch.zeros(3).double(), torch.eye(3).double()))
    assert os.listdir(tmp_path) == ["stats"]
    assert np.load(tmp_path / "stats")["sigma"].shape == (3, 3)
