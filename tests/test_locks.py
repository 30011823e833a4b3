"""One command at a time in a folder, nothing of the user's deleted, and a full disk told in one line."""

import errno
import fcntl
import json
import os
import signal
import time
import zipfile
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from safetensors import SafetensorError
from together import FORKSERVER

from diffit_lib.checkpoints import safetensors_io
from diffit_lib.cli.main import main
from diffit_lib.data.pack import pack
from diffit_lib.evaluation import evaluate as evaluation
from diffit_lib.sampling.sample import sample
from diffit_lib.training import module
from diffit_lib.training.encode import encode
from diffit_lib.training.run_dir import keep_newest
from diffit_lib.training.train import train
from diffit_lib.utils import distributed
from diffit_lib.utils.distributed import locked
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import replacing, sweep


def hold(folder, word):
    """Lock a folder, fork a worker, say so, and never let go."""
    with locked(folder):
        if worker := os.fork():
            word.with_name("half").write_text(str(worker))
            word.with_name("half").replace(word)
        time.sleep(600)


@pytest.fixture
def another(tmp_path):
    """A function: another process that holds the lock of a folder."""
    with ExitStack() as ends:

        def another(folder):
            word = tmp_path / "word"
            process = FORKSERVER.Process(target=hold, args=(folder, word))
            process.start()
            ends.callback(process.kill)
            while not word.exists():
                assert process.is_alive()
                time.sleep(0.01)
            ends.callback(os.kill, int(word.read_text()), signal.SIGKILL)
            word.unlink()
            return process

        yield another


class TestLock:
    def test_keeps_others_out_until_its_holder_is_killed_whatever_it_forked(self, tmp_path, another):
        process = another(tmp_path / "run")
        with (
            pytest.raises(DiffitError, match=f"another diffit is at work in {tmp_path}/run; wait"),
            locked(tmp_path / "run"),
        ):
            pytest.fail("let in")
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with locked(tmp_path / "run"):
            pass

    def test_leaves_nothing_behind(self, tmp_path):
        with locked(tmp_path / "new"):
            assert (tmp_path / "new").is_dir()
        with locked(tmp_path / "used"):
            (tmp_path / "used" / "file").touch()
        (tmp_path / "mine").mkdir()
        with locked(tmp_path / "mine"):
            pass
        assert {path.name for path in tmp_path.iterdir()} == {"used", "mine"}

    def test_a_place_without_locks_is_told(self, tmp_path, monkeypatch, capsys):
        def missing(handle, how):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(distributed.fcntl, "flock", missing)
        with locked(tmp_path):
            pass
        assert f"{tmp_path} cannot be locked (No locks available): run no other" in capsys.readouterr().err

    def test_is_of_the_folder_there_not_of_one_that_was_deleted(self, tmp_path, monkeypatch):
        flock, folder = distributed.fcntl.flock, tmp_path / "run"

        def deleted_meanwhile(handle, how):
            monkeypatch.setattr(distributed.fcntl, "flock", flock)
            folder.rmdir()
            folder.mkdir()
            return flock(handle, how)

        monkeypatch.setattr(distributed.fcntl, "flock", deleted_meanwhile)
        with locked(folder), pytest.raises(DiffitError), locked(folder):
            pass

    def test_is_taken_once_its_holder_has_deleted_the_folder(self, tmp_path, monkeypatch):
        real, calls = fcntl.flock, []

        def busy_once(handle, operation):
            calls.append(operation)
            if len(calls) == 1:
                (tmp_path / "out").rmdir()
                raise BlockingIOError
            return real(handle, operation)

        monkeypatch.setattr(fcntl, "flock", busy_once)
        with locked(tmp_path / "out"):
            assert (tmp_path / "out").is_dir()

    def test_keeps_a_second_command_from_every_folder(self, tmp_path, another, tiny, data, weights, faces):
        out = tmp_path / "out"
        another(out)
        for work in (
            lambda: train(tiny, out, data, progress=False),
            lambda: sample(weights, out, [0]),
            lambda: encode("vae-digits", "digits", out),
        ):
            with pytest.raises(DiffitError, match=f"another diffit is at work in {out}; "):
                work()
        assert list(out.iterdir()) == []
        another(tmp_path / "faces.zip.pieces")
        with pytest.raises(DiffitError, match=r"another diffit is at work in .*faces\.zip\.pieces; "):
            pack(faces, tmp_path / "faces.zip")

    def test_keeps_a_second_measurement_from_images_that_the_first_will_delete(
        self, tmp_path, another, weights, data, monkeypatch
    ):
        monkeypatch.setattr(evaluation, "make_evaluator", lambda *_: None)
        measure = partial(evaluation.evaluate, weights, data, images=2, steps=2, drawn=tmp_path / "drawn")
        measure()
        another(next((tmp_path / "drawn").iterdir()))
        with pytest.raises(DiffitError, match=r"another diffit is at work in .*/drawn/"):
            measure()


class TestUsersFiles:
    def test_that_look_like_parts_are_left_alone(self, tmp_path):
        (tmp_path / ".git" / "objects").mkdir(parents=True)
        (tmp_path / ".dir.part1").mkdir()
        mine = [".a.part", ".b.part1", ".c.0123abcd.part.png", ".git/objects/.d.part.safetensors"]
        for name in mine:
            (tmp_path / name).write_text("mine")
        with replacing(tmp_path / "ours.png") as beside:
            beside.write_text("half")
            os.link(beside, left := beside.with_name(beside.name.replace(".ours.", ".left.")))
        assert left.exists()
        sweep(tmp_path)
        assert not left.exists()
        assert {name for name in mine if (tmp_path / name).read_text() == "mine"} == set(mine)

    def test_that_look_like_weights_are_left_alone(self, tmp_path):
        names = [
            "weights.safetensors",
            "weights-mine.safetensors",
            "weights-000000016.safetensors",
            "weights-.safetensors",
        ]
        for name in names:
            (tmp_path / name).touch()
        keep_newest(tmp_path, 32, 1)
        names[2] = "weights-000000032.safetensors"
        assert {path.name for path in tmp_path.iterdir()} == set(names)


class TestFullDisk:
    def full(self, *_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def test_is_one_line_with_the_folder(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(safetensors_io, "save_file", self.full)
        run = tmp_path / "run"
        words = f"train digits --width 8 --channel-mult 1,2 --num-heads 2 --max-steps 2 --run {run} --no-report"
        assert main(words.split()) == 2
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"diffit: {run}: No space left on device; make room there, or give another path"
        )

    def test_while_a_checkpoint_is_written_leaves_the_one_before(self, tmp_path, monkeypatch):
        path, file = tmp_path / "last.ckpt", module.CheckpointFile()
        file.save_checkpoint({"step": 1}, path)

        def save(checkpoint, out):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError:
                raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904, as torch does it

        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as error:
            patch.setattr(torch, "save", save)
            file.save_checkpoint({"step": 2}, path)
        assert error.value.filename == str(tmp_path)
        assert torch.load(path) == {"step": 1}
        assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]

    def test_a_checkpoint_touches_no_other_folder(self, tmp_path, monkeypatch):
        """Lightning writes it in the system's temporary folder, and a kill leaves it there."""
        monkeypatch.setattr(os, "replace", lambda *_: pytest.fail(str([*os.listdir(tmp_path)])))
        opened = []
        monkeypatch.setattr("builtins.open", lambda path, mode, real=open: opened.append(path) or real(path, mode))
        with pytest.raises(pytest.fail.Exception, match="diffit-"):
            module.CheckpointFile().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
        assert {path.parent for path in opened} == {tmp_path}


class TestPack:
    def test_a_damaged_zip_is_not_taken_as_done(self, tmp_path, faces):
        out = pack(faces, tmp_path / "faces.zip")
        whole = out.read_bytes()
        with zipfile.ZipFile(out) as archive:
            start = archive.infolist()[5].header_offset + 200
        out.write_bytes(whole[:start] + b"\0\0\0\0" + whole[start + 4 :])
        with pytest.raises(DiffitError, match=r"faces.zip is there, damaged or something else; delete it"):
            pack(faces, out)
        out.unlink()
        assert pack(faces, out).read_bytes() == whole
        assert json.loads(zipfile.ZipFile(out).read("dataset.json"))["class_names"] == ["a", "b", "c"]
