"""`sample`: the images asked for and no others, in every form, and the same files however it was broken off."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from diffit_lib.sampling import writer as album
from diffit_lib.sampling.pipeline import load
from diffit_lib.sampling.sample import class_folder, ranges, sample
from diffit_lib.sampling.writer import write_npz
from diffit_lib.utils import files
from diffit_lib.utils.distributed import RankInfo
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import digest

FORMS = ("png", "zip", "npz", "grid")
QUICK = {"steps": 2, "sampler": "euler"}


def pixels(path):
    """A picture, (H, W, C)."""
    return np.atleast_3d(np.asarray(Image.open(path)))


def tree(folder):
    """All files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def index(folder):
    """The lines of a folder's index."""
    return list(csv.DictReader(io.StringIO((folder / "index.csv").read_text())))


def cells(grid, rows, columns, size=8, scale=8):
    """The pictures in a grid of enlarged ones, (N, H, W, C)."""
    step = (size + 1) * scale
    starts = [(scale + row * step, scale + column * step) for row in range(rows) for column in range(columns)]
    side = size * scale
    return np.stack([grid[top : top + side : scale, left : left + side : scale] for top, left in starts])


class TestImages:
    def test_are_those_of_the_pipeline(self, weights, tmp_path):
        (out,) = sample(weights, tmp_path / "new" / "samples", [3, 1000000, 5], 7, batch_size=2, guidance=2.0)
        expected = load(weights)([3, 1000000, 5], 7, batch_size=2, guidance=2.0)
        names = ["000003.png", "1000000.png", "000005.png"]
        assert set(tree(out)) == {"grid.png", "index.csv", "settings.json", *[f"images/{name}" for name in names]}
        for name, image in zip(names, expected, strict=True):
            assert np.array_equal(pixels(out / "images" / name), image)

    def test_that_overflow_are_refused_and_not_black(self, weights, tmp_path):
        with pytest.raises(DiffitError, match=r"the images at guidance 1e\+308 are NaN or infinite; give a lower"):
            sample(weights, tmp_path / "out", [0], 7, guidance=1e308)
        with pytest.raises(DiffitError, match="NaN or infinite"):
            load(weights)([0], 7, guidance=1e308)
        with pytest.raises(DiffitError, match="NaN or infinite"):
            load(weights).decode(torch.full((1, 1, 8, 8), torch.nan))

    def test_index_and_settings_say_what_they_are(self, weights, tmp_path):
        sample(weights, tmp_path, [4, 2], ["3", "none"], guidance=1.5)
        assert index(tmp_path) == [
            {"seed": "4", "class": "3", "name": "3", "file": "images/000004.png"},
            {"seed": "2", "class": "10", "name": "", "file": "images/000002.png"},
        ]
        settings = json.loads((tmp_path / "settings.json").read_text())
        assert settings["weights_hash"] == digest(load(weights).denoiser.state_dict())
        some = {"weights": "tiny", "seeds": "4,2", "classes": [3, 10], "guidance": 1.5, "steps": 8, "sampler": "heun"}
        assert settings | some == settings

    def test_get_several_classes_in_turn_and_without_classes_each_the_one_of_its_seed(self, weights, tmp_path):
        sample(weights, tmp_path / "turns", range(5), "8,1", **QUICK)
        assert [line["class"] for line in index(tmp_path / "turns")] == ["8", "1", "8", "1", "8"]
        sample(weights, tmp_path / "free", range(5), **QUICK)
        assert [int(line["class"]) for line in index(tmp_path / "free")] == load(weights).class_label(
            range(5), None
        ).tolist()

    def test_adm_truncates(self, weights, tmp_path):
        sample(weights, tmp_path, [0, 1], protocol="adm", **QUICK)
        (batch,) = load(weights).batches([0, 1], **QUICK)
        truncated = ((batch + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        assert np.array_equal(pixels(tmp_path / "images" / "000001.png"), truncated[1])


class TestPerClass:
    def test_an_image_depends_on_neither_how_many_nor_which_others_there_are(self, weights, tmp_path):
        sample(weights, tmp_path / "all", per_class=2, batch_size=4, **QUICK)
        sample(weights, tmp_path / "some", per_class=3, classes=[9, 2], batch_size=4, **QUICK)
        every, some = index(tmp_path / "all"), index(tmp_path / "some")
        assert [(int(line["class"]), int(line["seed"])) for line in every] == [
            (label, 10 * k + label) for label in range(10) for k in range(2)
        ]
        assert [line["file"] for line in some[:4]] == [
            "images/9/000009.png", "images/9/000019.png", "images/9/000029.png", "images/2/000002.png",
        ]  # fmt: skip
        ours, theirs = tree(tmp_path / "some"), tree(tmp_path / "all")
        shared = [name for name in ours if name.startswith("images/") and name in theirs]
        assert len(shared) == 4
        assert all(ours[name] == theirs[name] for name in shared)

    def test_seeds_are_used_anew_for_each_class(self, weights, tmp_path):
        sample(weights, tmp_path, [5, 3], [1, 0], per_class=2, **QUICK)
        assert [(line["seed"], line["class"]) for line in index(tmp_path)] == [
            ("5", "1"), ("3", "1"), ("5", "0"), ("3", "0"),
        ]  # fmt: skip

    def test_folders_are_in_order_of_class_and_safe(self):
        names = ("../../etc", "golden retriever", *"23456789", "", "é/ü")
        found = [class_folder(number, names, 12) for number in range(12)]
        assert (found[:3], found[10:]) == (["00-etc", "01-golden-retriever", "02"], ["10", "11-é-ü"])
        assert found == sorted(found)
        assert class_folder(7, (), 1000) == "007"


class TestGrid:
    def test_shows_the_first_images_row_by_row(self, weights, tmp_path):
        sample(weights, tmp_path, range(8), grid=(3, 2), **QUICK)
        images = load(weights)(range(8), **QUICK)
        assert np.array_equal(cells(pixels(tmp_path / "grid.png"), 2, 3), images[:6])

    def test_of_its_own_size_decides_how_many_are_drawn(self, weights, tmp_path):
        sample(weights, tmp_path, grid=(3, 1), **QUICK)
        assert [line["seed"] for line in index(tmp_path)] == ["0", "1", "2"]

    def test_has_a_row_for_each_class(self, weights, tmp_path):
        sample(weights, tmp_path, classes="4,6", per_class=3, grid=(2, 2), **QUICK)
        images = load(weights)([4, 14, 6, 16], [4, 4, 6, 6], **QUICK)
        assert np.array_equal(cells(pixels(tmp_path / "grid.png"), 2, 2), images)

    def test_shows_64_of_many(self, weights, tmp_path):
        sample(weights, tmp_path, range(70), **QUICK)
        assert pixels(tmp_path / "grid.png").shape == (8 * 72 + 8, 8 * 72 + 8, 1)

    def test_alone_keeps_nothing_else_and_draws_no_other_image(self, weights, tmp_path):
        sample(weights, tmp_path, range(9), grid=(2, 2), format="grid", **QUICK)
        assert set(tree(tmp_path)) == {"grid.png", "index.csv", "settings.json"}
        assert [(line["seed"], line["file"]) for line in index(tmp_path)] == [(str(k), "grid.png") for k in range(4)]


class TestForms:
    def test_zip_holds_the_files_of_the_folder(self, weights, tmp_path):
        for form in ("png", "zip"):
            sample(weights, tmp_path / form, per_class=1, classes="0,2", format=form, **QUICK)
        assert set(tree(tmp_path / "zip")) == {"grid.png", "images.zip", "index.csv", "settings.json"}
        with zipfile.ZipFile(tmp_path / "zip" / "images.zip") as archive:
            assert archive.namelist() == ["0/000000.png", "2/000002.png", "index.csv"]
            assert archive.read("2/000002.png") == (tmp_path / "png" / "images" / "2" / "000002.png").read_bytes()
            assert archive.read("index.csv") == (tmp_path / "zip" / "index.csv").read_bytes()

    def test_npz_is_that_of_adm_in_a_shuffled_order_that_the_index_follows(self, weights, unconditional, tmp_path):
        sample(weights, tmp_path / "a", per_class=3, classes="3,4", format="npz", **QUICK)
        sample(unconditional, tmp_path / "b", range(5), format="npz", **QUICK)
        rows = index(tmp_path / "a")
        seeds, classes = ([int(row[column]) for row in rows] for column in ("seed", "class"))
        with np.load(tmp_path / "a" / "images.npz", allow_pickle=False) as arrays:
            assert arrays["arr_0"].dtype == np.uint8
            assert np.array_equal(arrays["arr_0"], load(weights)(seeds, classes, **QUICK))
            assert arrays["arr_1"].tolist() == classes
        assert classes != sorted(classes)
        assert sorted(classes) == [3, 3, 3, 4, 4, 4]
        with np.load(tmp_path / "b" / "images.npz", allow_pickle=False) as arrays:
            assert arrays.files == ["arr_0"]
            seeds = [int(row["seed"]) for row in index(tmp_path / "b")]
            assert np.array_equal(arrays["arr_0"], load(unconditional)(seeds, **QUICK))

    def test_npz_is_written_image_by_image(self, tmp_path):
        paths = [tmp_path / f"{k}.png" for k in range(40)]
        for k, path in enumerate(paths):
            Image.new("RGB", (128, 128), (k, k, k)).save(path)
        tracemalloc.start()
        write_npz(tmp_path / "images.npz", paths, None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        size = 40 * 128 * 128 * 3
        assert (tmp_path / "images.npz").stat().st_size > size
        assert peak < size / 4

    @pytest.mark.parametrize(("seeds", "classes", "what"), [([], None, "seeds"), ([0], [], "classes")])
    def test_of_nothing_is_refused(self, weights, tmp_path, seeds, classes, what):
        with pytest.raises(DiffitError, match=f"{what} is empty; give one or more, or leave {what} out"):
            sample(weights, tmp_path / "out", seeds, classes, **QUICK)

    def test_each_strength_of_guidance_has_a_folder(self, weights, tmp_path):
        out = sample(weights, tmp_path / "both", [0, 1], 3, guidance=[1, 2.5], **QUICK)
        assert [path.name for path in out] == ["guidance-1", "guidance-2.5"]
        (alone,) = sample(weights, tmp_path / "one", [0, 1], 3, guidance=2.5, **QUICK)
        assert tree(out[1]) == tree(alone)
        assert tree(out[0])["grid.png"] != tree(alone)["grid.png"]

    def test_strengths_of_guidance_whose_folders_are_one_are_refused(self, weights, tmp_path):
        with pytest.raises(DiffitError, match="guidance 1 is given more than once"):
            sample(weights, tmp_path / "out", [0], 3, guidance=[1, 1.0000001], **QUICK)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("asked", [{"per_class": 10**7}, {"grid": (10**5, 10**5)}])
    def test_numbers_beyond_all_measure_are_refused_at_once(self, weights, tmp_path, asked):
        with pytest.raises(DiffitError, match="0,000 images are asked for, and 10,000,000 is the most; give fewer"):
            sample(weights, tmp_path / "out", **asked, **QUICK)


class TestTrajectory:
    def test_ends_with_the_images(self, weights, tmp_path):
        sample(weights, tmp_path, range(4), 3, trajectory=True, steps=12, sampler="euler")
        folder = tmp_path / "trajectory"
        steps = [f"step-{step:04d}.png" for step in range(1, 13)]
        assert sorted(tree(folder)) == ["denoising.gif", *steps, "strip.png"]
        images = load(weights)(range(4), 3, steps=12, sampler="euler")
        assert np.array_equal(cells(pixels(folder / steps[-1]), 2, 2, scale=16), images)
        strip = cells(pixels(folder / "strip.png")[24:, -(12 * 72 + 8) :], 4, 12)  # below the noise levels
        assert np.array_equal(strip[11::12], images)
        with Image.open(folder / "denoising.gif") as gif:
            assert gif.n_frames == 12
            assert min(gif.size) >= 256
            gif.seek(11)
            assert np.array_equal(np.asarray(gif.convert("L")), pixels(folder / steps[-1])[..., 0])

    def test_follows_the_first_image_of_each_class(self, weights, tmp_path):
        sample(weights, tmp_path, classes="1,7", per_class=3, trajectory=True, **QUICK)
        strip = pixels(tmp_path / "trajectory" / "strip.png")[24:]
        last = cells(strip[:, -(2 * 72 + 8) :], 2, 2)[1::2]
        assert np.array_equal(last, load(weights)([1, 7], [1, 7], **QUICK))


class Killed(BaseException):
    """What no one catches."""


@pytest.fixture
def kill_at(monkeypatch):
    """A function: die at the n-th file from now on that would be put in place, half of it beside; count them all."""
    replace, counts = os.replace, []

    def put(beside, path):
        counts[-1] += 1
        if counts[-1] == counts[0]:
            beside.with_name(f".{path.stem}.diffit-01234567.part{path.suffix}").write_bytes(b"half")
            raise Killed
        replace(beside, path)

    def kill_at(number):
        counts[:] = [number, 0]
        return counts

    monkeypatch.setattr(files.os, "replace", put)
    return kill_at


@pytest.fixture
def fast(weights, monkeypatch):
    """The weights are read once, and images are plain grey, a shade for each seed and class."""
    pipe = load(weights)
    monkeypatch.setattr("diffit_lib.sampling.sample.load", lambda *_, **__: pipe)

    def shades(self, batch):
        return np.stack([np.full((8, 8), 9 * image.seed + image.label, np.uint8) for image in batch])

    monkeypatch.setattr(album.SampleWriter, "pictures", shades)


class TestBrokenOff:
    def draw(self, weights, out, **changes):
        return sample(weights, out, **{"classes": "1,2", "per_class": 3, "batch_size": 4, **QUICK} | changes)

    @pytest.mark.parametrize("form", [*FORMS, "trajectory"])
    def test_at_any_file_it_ends_with_those_of_an_unbroken_run(self, weights, tmp_path, fast, kill_at, form):
        options = {"trajectory": True, "per_class": 1} if form == "trajectory" else {"format": form}
        counts = kill_at(-1)
        self.draw(weights, tmp_path / "whole", **options)
        whole, number = tree(tmp_path / "whole"), counts[-1]
        assert number >= 8  # settings, images, grid, the file they go into or a trajectory, index
        for file in range(1, number + 1):
            out = tmp_path / str(file)
            kill_at(file)
            with pytest.raises(Killed):
                self.draw(weights, out, **options)
            kill_at(-1)
            self.draw(weights, out, **options)
            assert tree(out) == whole

    @pytest.mark.parametrize("form", ["zip", "npz"])
    def test_while_the_joined_files_go_it_joins_nothing_again(self, weights, tmp_path, fast, monkeypatch, form):
        self.draw(weights, tmp_path / "whole", format=form)

        def half(folder, **_):
            next(folder.rglob("*.png")).unlink()
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(album.shutil, "rmtree", half)
            with pytest.raises(Killed):
                self.draw(weights, tmp_path / "killed", format=form)
        monkeypatch.setattr(album.SampleWriter, "pictures", None)
        self.draw(weights, tmp_path / "killed", format=form)
        assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
        assert not (tmp_path / "killed" / "images").exists()

    def test_draws_no_batch_again_that_is_there(self, weights, tmp_path, fast, monkeypatch):
        self.draw(weights, tmp_path)
        before = tree(tmp_path)
        (tmp_path / "images" / "2" / "000002.png").unlink()
        drawn, pictures = [], album.SampleWriter.pictures
        monkeypatch.setattr(
            album.SampleWriter, "pictures", lambda self, batch: drawn.extend(batch) or pictures(self, batch)
        )
        self.draw(weights, tmp_path)
        assert [image.seed for image in drawn] == [1, 11, 21, 2]
        assert tree(tmp_path) == before

    def test_by_kill_9_it_goes_on(self, weights, tmp_path):
        """In the middle of its second batch."""
        script = """
import os, signal, sys
from diffit_lib.utils import files
from diffit_lib.sampling.sample import sample
replace = os.replace
def put(beside, path):
    if path.name == "000012.png":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(beside, path)
files.os.replace = put
sample(*sys.argv[1:], classes="1,2", per_class=3, batch_size=4, format="npz", steps=2, sampler="euler")
"""
        words = [sys.executable, "-c", script, str(weights), str(tmp_path / "killed")]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        assert subprocess.run(words, env=os.environ | threads, check=False).returncode == -signal.SIGKILL
        left = {path.name[:8] for path in (tmp_path / "killed").rglob("*.png")}
        assert left == {"000001.p", "000011.p", "000021.p", "000002.p", ".000012."}
        for name in ("killed", "whole"):
            self.draw(weights, tmp_path / name, format="npz")
        assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


class TestProcesses:
    @pytest.mark.parametrize("form", ["png", "npz"])
    def test_several_write_what_one_writes(self, weights, tmp_path, monkeypatch, form):
        options = {"seeds": range(7), "batch_size": 2, "guidance": [1.0, 2.0], "format": form, **QUICK}
        sample(weights, tmp_path / "one", **options)
        drawn, pictures = {"0": [], "1": []}, album.SampleWriter.pictures

        def counted(self, batch):
            drawn[threading.current_thread().name] += [image.seed for image in batch]
            return pictures(self, batch)

        monkeypatch.setattr(album.SampleWriter, "pictures", counted)
        monkeypatch.setattr(album, "barrier", threading.Barrier(2).wait)
        for module in ("sampling.writer", "sampling.sample", "utils.distributed"):
            monkeypatch.setattr(
                f"diffit_lib.{module}.rank_info", lambda: RankInfo(int(threading.current_thread().name), 2)
            )
        share = [
            threading.Thread(target=sample, args=(weights, tmp_path / "two"), kwargs=options, name=name, daemon=True)
            for name in "10"
        ]
        for thread in share:
            thread.start()
        for thread in share:
            thread.join(timeout=60)
        assert tree(tmp_path / "two") == tree(tmp_path / "one")
        assert drawn == {"0": 2 * [0, 1, 4, 5], "1": 2 * [2, 3, 6]}


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"seeds": range(3)}, "seeds is '0-1' there, '0-2' here"),
            ({"classes": 4}, r"classes is \[3\] there, \[4\] here"),
            ({"steps": 3}, "steps is 2 there, 3 here"),
            ({"guidance": 2.0}, r"guidance is 1\.0 there, 2\.0 here"),
            ({"format": "zip"}, "format is 'png' there, 'zip' here"),
            ({"protocol": "adm"}, "protocol is 'round' there, 'adm' here"),
            ({"batch_size": 1}, "batch_size is 2 there, 1 here"),
        ],
    )
    def test_other_settings_in_the_same_folder(self, weights, tmp_path, snapshot, changes, says):
        options = {"seeds": range(2), "classes": 3, **QUICK}
        sample(weights, tmp_path / "out", **options)
        before = snapshot()
        with pytest.raises(DiffitError, match=f"out holds other images \\({says}\\); give another folder"):
            sample(weights, tmp_path / "out", **options | changes)
        assert snapshot() == before

    def test_other_weights_in_the_same_folder(self, weights, unconditional, tmp_path):
        sample(weights, tmp_path / "out", [0], **QUICK)
        with pytest.raises(DiffitError, match=r"holds other images \(weights_hash is '"):
            sample(unconditional, tmp_path / "out", [0], **QUICK)

    def test_a_folder_of_other_things(self, weights, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "holiday.jpg").touch()
        with pytest.raises(DiffitError, match="out is not empty, and `sample` did not begin it; give another folder"):
            sample(weights, tmp_path / "out", [0], **QUICK)

    def test_a_broken_settings_file(self, weights, tmp_path):
        (tmp_path / "settings.json").write_text("{")
        with pytest.raises(DiffitError, match=r"settings\.json cannot be read .*; give another folder"):
            sample(weights, tmp_path, [0], **QUICK)

    def test_a_mistake_in_the_last_guidance_before_the_first_image(self, weights, tmp_path):
        with pytest.raises(DiffitError, match="guidance"):
            sample(weights, tmp_path / "out", [0], guidance=[1.0, float("nan")], **QUICK)
        assert not (tmp_path / "out").exists()


def test_seeds_in_short():
    assert ranges([0, 1, 2, 100, 7, 8]) == "0-2,100,7-8"
