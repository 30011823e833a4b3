"""`pack`: a zip that trains as its source does, the same bytes however often the packing was broken off."""

import json
import os
import re
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from image_files import COLOURS, fill, noise, one_line, plain, zipped
from kills import finishes_killed_at_any_moment
from PIL import Image

from diffit_lib.cli.main import main
from diffit_lib.data import pack as task
from diffit_lib.data.datasets import load_data
from diffit_lib.data.pack import pack
from diffit_lib.data.preprocess import CROPS
from diffit_lib.data.sources import NAMED, Split, digits
from diffit_lib.utils.errors import DiffitError

SIZE = (6, 10)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty folder, in small pieces."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(task, "PIECE", 16)


@pytest.fixture
def photos(tmp_path):
    """60 pictures of several sizes, modes and formats, in three class folders."""
    files = {f"{COLOURS[k % 3]}/{k}.{('png', 'bmp', 'gif')[k % 3]}": noise(k, 8 + k % 5, 12 + k % 7) for k in range(58)}
    files["blue/grey.png"] = noise(58, 20, 9).convert("L")
    files["green/clear.png"] = noise(59, 9, 20).convert("LA")
    return fill(tmp_path / "photos", files)


def same(one, other):
    """Whether two splits hold the same images, labels and class names in the same order."""
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert a.class_names == b.class_names
    return True


@pytest.mark.parametrize("crop", CROPS)
def test_a_zip_trains_as_its_source_does(photos, crop):
    packed = pack(photos, "out.zip", SIZE, crop=crop)
    expected = load_data(photos, SIZE, 3, crop=crop)
    assert len(expected.test) > 0
    assert expected.train.class_names == COLOURS
    assert same(load_data(packed, in_channels=3), expected)
    assert same(load_data(packed, SIZE, 3, crop=crop), expected)


def sources(tmp_path, faces):
    """Data sets of every form, by what they are called."""
    divided = {f"{part}/{name}/{k}.png": noise(k) for part in ("train", "val") for name in "ab" for k in range(3)}
    masks = {f"CelebAMask-HQ/CelebAMask-HQ-mask-anno/{k}/0000{k}_hair.png": plain() for k in range(3)}
    celeba = {f"CelebAMask-HQ/CelebA-HQ-img/{k}.jpg": noise(k) for k in range(60)}
    table = {"labels": [[f"{k}.png", k % 2] for k in range(60)], "class_names": ["even", "odd"]}
    own = {f"{k}.png": noise(k) for k in range(60)} | {"dataset.json": json.dumps(table).encode()}
    yield "class folders", faces
    yield "a zip", zipped(faces)
    yield "flat", fill(tmp_path / "flat", {f"{k}.png": noise(k) for k in range(60)})
    yield "few", fill(tmp_path / "few", {f"{k}.png": noise(k) for k in range(3)})
    yield "train and val", fill(tmp_path / "divided", divided)
    yield (
        "wnids",
        fill(tmp_path / "some", {f"{n}/{k}.JPEG": noise(k) for n in ("n01440764", "n03000684") for k in range(2)}),
    )
    yield "dataset.json", fill(tmp_path / "own", own)
    yield "CelebAMask-HQ", fill(tmp_path / "celeba", celeba | masks)
    yield "a name", "few digits"
    yield "a Dataset", [(noise(k), k % 2) for k in range(60)]


def test_every_form_of_data_goes_in_and_comes_out_the_same(tmp_path, faces, monkeypatch):
    monkeypatch.setattr(task, "PIECE", 1024)
    monkeypatch.setitem(NAMED, "few digits", lambda *place: Split(*(part.take(range(40)) for part in digits(*place))))
    for name, source in sources(tmp_path, faces):
        assert same(load_data(pack(source, f"{name}.zip")), load_data(source)), name
    assert same(load_data(pack("flat.zip", "again.zip")), load_data("flat.zip"))


def test_a_zip_holds_numbered_pngs_as_they_are_and_a_table(photos):
    with zipfile.ZipFile(pack(photos, "out.zip", SIZE)) as archive:
        *names, last = archive.infolist()
        table = json.loads(archive.read(last))
        pictures = [Image.open(archive.open(name)) for name in names]
    assert last.filename == "dataset.json"
    assert [name.filename for name in names] == [name for name, _ in table["labels"]]
    assert {re.sub(r"\d", "0", name.filename) for name in names} == {
        f"{p}/00000/00000000.png" for p in ("train", "test")
    }
    assert table["class_names"] == list(COLOURS)
    assert all(info.compress_type == zipfile.ZIP_STORED and info.date_time[0] == 1980 for info in names)
    assert {(picture.format, picture.size) for picture in pictures} == {("PNG", SIZE[::-1])}
    assert {picture.mode for picture in pictures} == {"L", "RGB"}


def test_of_many_images_some_are_taken_evenly(faces):
    split = load_data(pack(faces, "out.zip", max_images=30))
    whole = load_data(faces)
    assert len(split.train) + len(split.test) == 30
    assert split.train.labels.bincount().tolist() == pytest.approx((whole.train.labels.bincount() / 2).tolist(), abs=1)
    assert same(load_data(pack(faces, "all.zip", max_images=60)), whole)
    for most, says in ((0, "max_images is 0; give 1 or more"), (2, "no image of class 2, 'c'")):
        with pytest.raises(DiffitError, match=says):
            pack(faces, "none.zip", max_images=most)
    assert not Path("none.zip").exists()


class TestBad:
    def test_an_unreadable_image_stops_with_its_name_and_what_is_done_is_kept(self, faces):
        fill(faces, {"b/broken.png": b"nonsense"})
        with pytest.raises(DiffitError, match=r"^faces: b/broken\.png cannot be read .*skip_bad") as caught:
            pack(faces, "out.zip")
        assert one_line(caught)
        assert [path.name for path in Path().glob("out.zip*")] == ["out.zip.pieces"]
        noise(7).save(faces / "b/broken.png")
        assert same(load_data(pack(faces, "out.zip")), load_data(faces))

    def test_unreadable_ones_are_left_out_and_counted_where_asked(self, faces, capsys):
        whole = load_data(faces)
        fill(faces, {"a/000.png": b"nonsense", "b/empty.png": b"", "c/zzz.png": b"nonsense"})
        assert same(load_data(pack(faces, "out.zip", skip_bad=True)), whole)
        said = capsys.readouterr().err
        assert sum(map(int, re.findall(r"skipped (\d+) of \d+ images that cannot be read", said))) == 3
        assert "a/000.png" in said

    def test_a_class_or_a_part_left_without_images_is_refused(self, tmp_path, faces):
        fill(faces, {"d/broken.png": b"nonsense"})
        half = fill(tmp_path / "half", {"train/a.png": noise(0), "test/c.png": b"x"})
        for source, says in ((faces, "no image of class 3, 'd'"), (half, "none of 1 images can be read")):
            with pytest.raises(DiffitError, match=says):
                pack(source, "out.zip", skip_bad=True)
            assert not Path("out.zip").exists()


class TestAgain:
    def test_the_same_images_make_the_same_bytes(self, faces):
        assert pack(faces, "one.zip").read_bytes() == pack(zipped(faces), "two.zip").read_bytes()

    def test_a_finished_zip_is_left_as_it_is(self, faces, capsys):
        before = pack(faces, "out.zip").stat().st_mtime_ns
        assert pack(faces, "out.zip").stat().st_mtime_ns == before
        assert "packed before" in capsys.readouterr().err

    @pytest.mark.parametrize("change", [{"image_size": (4, 4)}, {"crop": "adm"}, {"max_images": 10}])
    def test_another_file_is_never_overwritten(self, faces, change):
        before = pack(faces, "out.zip").read_bytes()
        with pytest.raises(DiffitError, match=r"out\.zip is there, damaged or something else; delete it"):
            pack(faces, "out.zip", **change)
        with pytest.raises(DiffitError, match="is there, damaged or something else"):
            pack(faces, "faces/a/0.png")
        assert Path("out.zip").read_bytes() == before

    def test_pieces_of_other_images_are_not_taken(self, faces):
        with pytest.raises(DiffitError, match="cannot be read"):
            pack(fill(faces, {"c/zzz.png": b""}), "out.zip")
        (faces / "c/zzz.png").unlink()
        assert same(load_data(pack(faces, "out.zip", SIZE)), load_data(faces, SIZE))

    def test_killed_at_any_moment_it_ends_with_the_files_of_an_unbroken_run(self, tmp_path, snapshot, monkeypatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        monkeypatch.setattr(task, "PIECE", 2)
        source = fill(tmp_path / "few", {f"{k}.png": noise(k) for k in range(3)})
        work = partial(pack, source, "out.zip", SIZE)
        assert finishes_killed_at_any_moment(work, Path("out.zip").unlink, snapshot) > 9


class TestCommand:
    def test_width_comes_before_height(self, photos, capsys):
        assert main(["pack", str(photos), "--resolution", "10x6", "--max-images=40", "--skip_bad=true"]) == 0
        assert capsys.readouterr().out.startswith("packed: photos-10x6.zip, 0.0 MB")
        assert load_data("photos-10x6.zip", in_channels=3).train.images.shape[2:] == (6, 10)
        assert main(["pack", "photos-10x6.zip", "--resolution=4", "--crop=long-edge", "--out=small.zip"]) == 0
        assert load_data("small.zip", in_channels=3).train.images.shape[2:] == (4, 4)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["nowhere"], "no data set or path 'nowhere'"),
            (["photos", "--resolution=6x"], "resolution is '6x'; give width and height, e.g. 64x48"),
            (["photos", "--resolution=0"], "resolution is '0'"),
            (["photos", "--crop=square"], "square"),
            ([], "required: pack.source"),
        ],
    )
    def test_mistakes_are_one_line(self, photos, capsys, snapshot, options, says):
        before = snapshot()
        assert main(["pack", *options]) == 2
        assert says in capsys.readouterr().err
        assert snapshot() == before

    @pytest.mark.parametrize("name", ["mine.txt", "00000.zip"])
    def test_a_folder_of_the_users_own_is_left_alone(self, faces, name):
        mine = Path("out.zip.pieces", name)
        mine.parent.mkdir()
        with zipfile.ZipFile(mine, "w") as archive:
            archive.writestr("a", "precious")
        with pytest.raises(
            DiffitError, match=rf"^out\.zip\.pieces holds {re.escape(name)}, which `pack` did not write"
        ):
            pack(faces, "out.zip")
        assert zipfile.ZipFile(mine).read("a") == b"precious"

    def test_pieces_that_a_kill_or_a_bad_disk_left_are_written_anew(self, faces):
        whole = pack(faces, "whole.zip").read_bytes()
        fill(Path("out.zip.pieces"), {"00000.zip": b"damaged", ".00001.diffit-0123abcd.part.zip": b""})
        assert pack(faces, "out.zip").read_bytes() == whole
        assert not Path("out.zip.pieces").exists()

    def test_a_place_that_is_none_is_refused_in_one_line(self, faces, capsys):
        Path("loop").symlink_to("loop")
        for words, says in {
            (str(faces), "--out=."): ". is a folder; give the path of a zip",
            (str(faces), f"--out={faces}"): "faces is a folder; give the path of a zip",
            (str(faces), "--resolution=100000x100000"): "100,000x100,000 pixels an image are too many; give 64,000,000",
            ("loop",): "no data set or path 'loop': looked for a data set by that name",
        }.items():
            assert main(["pack", *words]) == 2
            said = capsys.readouterr().err.splitlines()
            assert says in said[-1]
            assert len(said) == 1
            assert "did you mean loop" not in said[-1]
