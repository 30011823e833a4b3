"""What is said of data that nothing can be trained on: one line each, or a counted skip where asked for.

Folders and zips alike, by `load_data` and by `diffit train`.
"""

import json
import re
import zipfile
from pathlib import Path

import pytest
from image_files import fill, noise, plain, refused, zipped

from diffit_lib.checkpoints.weights import load_weights
from diffit_lib.cli.main import main
from diffit_lib.config import presets
from diffit_lib.data.datasets import load_data


@pytest.fixture
def train(tmp_path, monkeypatch, tiny, capsys):
    """A function: `diffit train` on these data, with a tiny preset; the exit status and what is said on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(presets.PRESETS, "digits", tiny.override(name="digits", max_steps=1))
    monkeypatch.setattr(
        "diffit_lib.reports.html_report.write_report", lambda run: run / "report.html"
    )  # reads the data again

    def train(source, *options):
        capsys.readouterr()
        status = main(["train", "digits", f"--data={source}", "--run=run", *options])
        return status, capsys.readouterr().err

    return train


@pytest.fixture
def refuse(train, snapshot):
    """A function: these data, and a zip of them if they are a folder, are refused in one line, nothing is written."""

    def refuse(source, pattern, *options):
        for data in (source, Path(zipped(source))) if source.is_dir() else (source,):
            refused(data, pattern, skip_bad="--skip_bad" in options)
            refuse_to_train(data, pattern, *options)

    def refuse_to_train(source, pattern, *options):
        before = snapshot()
        status, said = train(source, *options)
        assert status == 2
        assert said.count("diffit: ") == 1
        assert re.search(pattern, said.splitlines()[-1].removeprefix("diffit: ")), said
        assert "Traceback" not in said
        assert snapshot() == before

    refuse.to_train = refuse_to_train
    return refuse


@pytest.fixture(params=["folder", "zip"])
def form(request):
    """A function: a folder as it is, or a zip of it."""
    return zipped if request.param == "zip" else lambda folder: folder


def label(folder, labels, **more):
    """Give a folder's images, in order of their paths, labels in a dataset.json."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    table = [[name, label] for name, label in zip(names, labels, strict=True)]
    return fill(folder, {"dataset.json": json.dumps({"labels": table, **more}).encode()})


class TestUnreadable:
    def test_an_unreadable_image_stops_with_its_name(self, refuse, faces):
        fill(faces, {"b/broken.png": b"nonsense"})
        refuse(faces, r"^faces: b/broken\.png cannot be read \(of no known image format\); .*delete.*skip_bad")

    @pytest.mark.parametrize("suffix", ["png", "jpg", "gif"])
    def test_a_truncated_image_is_unreadable(self, faces, suffix):
        path = faces / f"b/whole.{suffix}"
        noise(0, 64, 64).save(path)
        path.write_bytes(path.read_bytes()[:700])
        refused(faces, r"b/whole\.\w+ cannot be read", image_size=(8, 8))

    def test_an_image_damaged_in_its_zip_is_unreadable(self, refuse, faces):
        damage(Path(zipped(faces)), "b/1.png")
        refuse(faces.with_suffix(".zip"), r"^faces: b/1\.png cannot be read .*skip_bad")

    @pytest.mark.parametrize("classes", [3, 4], ids=["class folders", "dataset.json"])
    def test_they_are_left_out_and_counted_where_asked(self, faces, form, train, capsys, classes):
        bad = {"a/000.png": b"nonsense", "b/empty.png": b"", "c/zzz.png": b"nonsense"}
        if classes == 4:
            label(faces, [k % 4 for k in range(60)])
        whole = load_data(faces)
        fill(faces, bad)
        if classes == 4:
            table = json.loads((faces / "dataset.json").read_text())["labels"]
            fill(faces, {"dataset.json": json.dumps({"labels": [*table, *([name, 0] for name in bad)]}).encode()})
        capsys.readouterr()
        split = load_data(form(faces), skip_bad=True)
        said_first = capsys.readouterr().err
        assert [part.fingerprint() for part in split] == [part.fingerprint() for part in whole]
        status, said_in_training = train(form(faces), "--skip_bad", f"--num_classes={classes}")
        assert status == 0
        for said in (said_first, said_in_training):
            assert sum(map(int, re.findall(r"skipped (\d+) of \d+ images that cannot be read", said))) == 3
            assert "a/000.png" in said

    def test_all_unreadable_are_refused(self, refuse, tmp_path):
        folder = fill(tmp_path / "junk", {"a.png": b"x", "b.png": b"y"})
        refuse(folder, r"^junk: none of 2 images can be read, the first is a\.png; ", "--skip_bad")

    def test_a_test_part_left_without_images_is_refused(self, refuse, tmp_path):
        folder = fill(tmp_path / "half", {"train/a.png": noise(0), "train/b.png": noise(1), "test/c.png": b"x"})
        refuse(folder, r"^half: none of 1 images can be read, the first is test/c\.png; ", "--skip_bad")

    def test_a_class_left_without_images_is_refused(self, refuse, faces):
        fill(faces, {"d/broken.png": b"nonsense"})
        refuse(faces, "no image of class 3, 'd'", "--skip_bad")


def damage(path, name):
    """Change a byte in the middle of one file in a zip."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    content[info.header_offset + 30 + len(name) + info.compress_size // 2] ^= 255
    path.write_bytes(content)


class TestNoImages:
    @pytest.mark.parametrize("files", [{}, {"notes.txt": b"hello"}, {"dataset.json": b'{"labels": [["a.png", 0]]}'}])
    def test_an_empty_folder_is_refused(self, refuse, tmp_path, files):
        (tmp_path / "empty").mkdir()
        refuse(fill(tmp_path / "empty", files), r"empty(\.zip)? holds no images .*; give a folder or zip that does")

    @pytest.mark.parametrize("name", ["notes.txt", "half.zip", "picture.png"])
    def test_a_file_is_no_folder(self, refuse, tmp_path, name):
        content = plain() if name.endswith(".png") else b"PK\x03\x04 hello"
        fill(tmp_path, {name: content})
        refuse(tmp_path / name, f"{name} is neither a folder nor a whole zip; give a folder or zip of images")

    def test_a_zip_whose_table_of_contents_is_damaged_is_no_zip(self, refuse, faces):
        path = Path(zipped(faces))
        content = path.read_bytes()
        assert zipfile.is_zipfile(path)
        path.write_bytes(content.replace(b"PK\x01\x02", b"????"))
        assert zipfile.is_zipfile(path)
        refuse(path, r"faces\.zip is neither a folder nor a whole zip")

    def test_for_a_path_that_is_not_there_it_says_what_was_looked_for_and_where(self, refuse, tmp_path):
        names = "digits, mnist, cifar10, imagenette, celeba, "
        refuse(tmp_path / "gone", f"no data set or path '.*gone': looked for .*{names}.* and for /.*gone; give one")

    def test_a_name_nearby_is_proposed(self, faces, monkeypatch):
        monkeypatch.chdir(faces.parent)
        refused("digts", r"no data set or path 'digts': .* and for \./digts; did you mean digits")
        refused("fases", r"did you mean faces\?")


class TestLittle:
    @pytest.fixture(params=["folder", "dataset.json"])
    def pets(self, request, tmp_path):
        """Three images of one class, which has a name."""
        folder = fill(tmp_path / "pets", {f"cats/{k}.png": noise(k) for k in range(3)})
        return folder if request.param == "folder" else label(folder, [0, 0, 0], class_names=["cats"])

    def test_one_class_only_counts_as_none_and_that_is_said(self, pets, form, capsys):
        split = load_data(form(pets))
        assert split.train.class_names == ()
        assert split.train.labels.tolist() == [0, 0, 0]
        assert "pets: one class only, 'cats'" in capsys.readouterr().err

    @pytest.mark.parametrize("classes", [10, 1])
    def test_one_class_only_is_nothing_for_a_network_with_classes(self, pets, form, refuse, classes):
        says = (
            f"num_classes={classes}, but pets/train has 0 classes; set num_classes to 0 for an unconditional network$"
        )
        refuse.to_train(form(pets), says, f"--num_classes={classes}")

    def test_one_class_only_trains_an_unconditional_network(self, pets, form, train):
        status, said = train(form(pets), "--num_classes=0")
        assert status == 0
        assert "pets: one class only, 'cats'" in said
        assert load_weights("run/weights.safetensors")[1].class_names == ()

    def test_one_image_only_loads_and_trains_and_that_is_said(self, tmp_path, form, capsys, train):
        source = form(fill(tmp_path / "lone", {"a.png": noise(0)}))
        split = load_data(source)
        assert len(split.train) == len(split.test) == 1
        assert "too few images for a test part (1)" in capsys.readouterr().err
        status, said = train(source, "--num_classes=0")
        assert status == 0
        assert "too few images for a test part (1)" in said

    def test_images_of_one_brightness_have_no_sigma_data(self, tmp_path, form, refuse):
        source = form(fill(tmp_path / "white", {"a.png": plain("white")}))
        refuse.to_train(source, "white/train is of one brightness all over; give sigma_data", "--num_classes=0")


class TestLabels:
    def test_an_image_beside_class_folders_is_refused(self, refuse, faces):
        fill(faces, {"stray.png": plain()})
        refuse(faces, r"stray\.png lies beside the class folders")

    @pytest.mark.parametrize("far", [2, 100, 10**30])
    def test_labels_with_holes_are_refused(self, refuse, faces, far):
        label(faces, [far * (k % 2) for k in range(60)])
        refuse(faces, "^faces has no image of class 1, '1'; number the classes without holes")

    @pytest.mark.parametrize("wrong", ["cat", 0.5, None, [1]])
    def test_labels_that_are_no_numbers_are_refused(self, refuse, faces, wrong):
        refuse(label(faces, [0, wrong] * 30), "^faces: a label is no whole number .*; give class numbers 0, 1, 2")

    @pytest.mark.parametrize("wrong", [-1, 2])
    def test_labels_without_a_name_are_refused(self, refuse, faces, wrong):
        label(faces, [0, 1, wrong] * 20, class_names=["cat", "dog"])
        refuse(faces, f"^faces has the label {wrong}, but 2 classes; number them from 0 on")

    def test_a_named_class_without_images_is_refused(self, refuse, faces):
        label(faces, [0, 1] * 30, class_names=["cat", "dog", "mouse"])
        refuse(faces, "^faces has no image of class 2, 'mouse'; ")

    def test_a_table_damaged_in_its_zip_is_refused(self, refuse, faces):
        path = Path(zipped(label(faces, [0, 1] * 30)))
        damage(path, "dataset.json")
        refuse(path, r"faces\.zip: dataset\.json cannot be read")

    def test_a_class_of_the_test_part_alone_is_refused(self, refuse, tmp_path):
        files = {"train/a/1.png": plain(), "train/b/1.png": plain(), "test/c/1.png": plain()}
        refuse(fill(tmp_path / "divided", files), "no image of class 2, 'c'")


class TestForm:
    def test_images_of_mixed_sizes_need_a_size(self, tmp_path):
        folder = fill(tmp_path / "mixed", {"a.png": plain(), "b.png": plain(size=(9, 8))})
        refused(folder, r"b\.png has .*\(3, 8, 9\), the first image \(3, 8, 8\); give image_size", skip_bad=True)
        fill(folder, {"b.png": plain().convert("L")})
        refused(folder, r"b\.png has .*\(1, 8, 8\), the first image \(3, 8, 8\); give image_size and in_channels")

    def test_channels_are_one_or_three(self, faces):
        refused(faces, "in_channels is 4; give 1 .* or 3", in_channels=4)
