"""Folders and zips of images: classes, parts, dataset.json."""

import json
import os
import re
import zipfile
from pathlib import Path

import pytest
import torch
from image_files import COLOURS, fill, noise, plain, png, refused, zipped
from torchvision.datasets import Imagenette
from torchvision.models import ResNet50_Weights

from diffit_lib.cli.main import main
from diffit_lib.data.datasets import load_data
from diffit_lib.data.folders import find_images, imagenet_names
from diffit_lib.data.preprocess import to_pixels


def test_class_folders_are_classes_in_order_of_their_names(faces):
    split = load_data(faces)
    assert split.train.class_names == split.test.class_names == ("a", "b", "c")
    assert (split.train.name, split.test.name) == ("faces/train", "faces/test")
    for part in split:
        for image, label in zip(part.images, part.labels, strict=True):
            assert any(torch.equal(image, to_pixels(noise(k))) for k in range(int(label), 60, 3))


def test_numbered_class_folders_are_in_order_of_their_numbers(tmp_path):
    folder = fill(tmp_path / "numbered", {f"{k}/a.png": plain((k, 0, 0)) for k in range(12)})
    train = load_data(folder).train
    assert train.class_names == tuple(map(str, range(12)))
    assert torch.equal(train.images[:, 0, 0, 0].long(), train.labels)


def test_a_folder_of_images_has_no_classes(tmp_path):
    train = load_data(fill(tmp_path / "flat", {f"{k}.png": plain() for k in range(3)})).train
    assert train.class_names == ()
    assert train.labels.tolist() == [0, 0, 0]


def test_folders_around_and_inside_class_folders_make_no_difference(tmp_path):
    files = {f"outer/inner/{name}/x/{k}.png": plain(name) for name in COLOURS for k in range(2)}
    assert load_data(fill(tmp_path / "deep", files)).train.class_names == ("blue", "green", "red")


def test_hidden_files_and_other_files_are_passed_over(tmp_path):
    stray = {"notes.txt": b"hello", ".cache/a.png": b"x", "__MACOSX/._a.png": b"x", "a/.DS_Store": b"x"}
    folder = fill(tmp_path / "tidy", {"a/1.PNG": plain(), "b/2.jpeg": plain(), **stray})
    assert load_data(folder).train.class_names == ("a", "b")


def test_a_zip_is_as_good_as_the_folder_in_it(faces):
    for one, other in zip(load_data(faces), load_data(zipped(faces)), strict=True):
        assert (one.name, one.class_names) == (other.name, other.class_names)
        assert one.fingerprint() == other.fingerprint()


def test_dataset_json_goes_before_folders(faces):
    labels = [[f"{'abc'[k % 3]}/{k}.png", k % 2] for k in range(60)]
    fill(faces, {"dataset.json": json.dumps({"labels": labels, "class_names": ["even", "odd"]}).encode()})
    for source in (faces, zipped(faces)):
        train = load_data(source).train
        assert train.class_names == ("even", "odd")
        for image, label in zip(train.images, train.labels, strict=True):
            assert any(torch.equal(image, to_pixels(noise(k))) for k in range(int(label), 60, 2))


def test_dataset_json_may_lie_in_a_folder_with_its_images(tmp_path):
    table = {"labels": [["00/1.png", 1], ["00/2.png", 0]]}
    files = {"mine/00/1.png": plain("red"), "mine/00/2.png": plain("blue")}
    folder = fill(tmp_path / "wrapped", {**files, "mine/dataset.json": json.dumps(table).encode()})
    train = load_data(folder).train
    assert train.class_names == ("0", "1")
    assert train.labels.tolist() == [1, 0]


def test_dataset_json_without_labels_means_no_classes(tmp_path):
    files = {"00/1.png": plain(), "01/2.png": plain(), "dataset.json": b'{"labels": null}'}
    assert load_data(fill(tmp_path / "unlabelled", files)).train.class_names == ()


def test_dataset_json_that_lacks_an_image_is_refused(faces):
    fill(faces, {"dataset.json": json.dumps({"labels": [["a/0.png", 0]]}).encode()})
    refused(faces, r"dataset\.json lacks labels for 59 images, as a/12\.png")


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"names": []}', b'{"labels": [1, 2]}', b'{"labels": "ab"}'])
def test_dataset_json_of_another_form_is_refused(faces, text):
    fill(faces, {"dataset.json": text})
    refused(faces, r"dataset\.json cannot be read .*write it as")


@pytest.mark.parametrize("test", ["test", "val"])
def test_folders_train_and_test_are_the_parts(tmp_path, test):
    files = {f"{part}/{name}/{k}.png": plain(name) for part in ("train", test) for name in COLOURS for k in range(2)}
    split = load_data(fill(tmp_path / "divided", {**files, f"{test}/red/9.png": plain("red")}))
    assert (len(split.train), len(split.test)) == (6, 7)
    assert split.train.class_names == ("blue", "green", "red")
    assert split.test.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_folders_called_by_imagenets_numbers_get_its_names(tmp_path):
    files = {f"{wnid}/{k}.JPEG": plain() for wnid in ("n01440764", "n02979186", "n99999999") for k in range(2)}
    for source in (fill(tmp_path / "some", files), zipped(tmp_path / "some")):
        train = load_data(source).train
        assert train.class_names == ("tench", "cassette player", "n99999999")
        assert find_images(Path(source)).class_names == [*train.class_names]
        assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_imagenets_names_are_torchvisions_in_order_of_their_wordnet_ids():
    names = imagenet_names()
    assert list(names) == sorted(names)
    assert tuple(names.values()) == tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    known = {wnid: names[0] for wnid, names in Imagenette._WNID_TO_CLASS.items()}
    known |= {"n02012849": "crane bird", "n03126707": "crane", "n07753592": "banana", "n10148035": "groom"}
    known |= {"n02114367": "timber wolf", "n06359193": "web site", "n15075141": "toilet tissue"}
    assert {wnid: names[wnid] for wnid in known} == known


def test_celebamask_hqs_masks_are_no_images(tmp_path):
    tree = "CelebAMask-HQ/CelebA-HQ-img/{}.jpg", "CelebAMask-HQ/CelebAMask-HQ-mask-anno/{}/0000{}_hair.png"
    files = {path.format(k, k): plain(colour) for k in range(3) for path, colour in zip(tree, COLOURS, strict=False)}
    files["CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt"] = b"idx orig_idx orig_file"
    folder = fill(tmp_path / "faces", files)
    for source in (folder, folder / "CelebAMask-HQ", zipped(folder)):
        train = load_data(source).train
        assert train.class_names == ()
        assert [image.float().mean((1, 2)).argmax().item() for image in train.images] == [2, 2, 2]  # blue all over


def test_photographs_that_cannot_be_opened_here_are_named_not_passed_over(tmp_path):
    folder = fill(tmp_path / "phone", {"a.jpg": plain(), "b.HEIC": b"\0\0\0\x18ftypheic"})
    refused(folder, r"b\.HEIC cannot be read \(of no known image format\)")


def test_a_link_is_followed_once_and_not_in_circles(tmp_path, capsys):
    folder = fill(tmp_path / "pets", {f"{name}/{k}.png": noise(k) for name in ("cats", "dogs") for k in range(3)})
    (folder / "cats" / "up").symlink_to("..")
    (folder / "cats" / "all").symlink_to("/")
    (folder / "dogs" / "itself").symlink_to(".")
    (folder / "dogs" / "5.png").symlink_to("../cats/1.png")
    fill(tmp_path / "elsewhere", {"4.png": noise(4)})
    (folder / "dogs" / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "dogs" / "once_more.png").symlink_to(tmp_path / "elsewhere" / "4.png")
    train = load_data(folder).train
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert re.search(r"pets: left out 5 paths \(there twice, .*\), as .*pets/(cats|dogs)/", capsys.readouterr().err)


@pytest.mark.parametrize("link", ["test", "test/x"])
def test_no_picture_gets_into_both_parts_by_a_link(tmp_path, link):
    folder = fill(tmp_path / "pets", {f"train/x/{k}.png": noise(k) for k in range(60)})
    (folder / link).parent.mkdir(exist_ok=True)
    (folder / link).symlink_to(folder / "train" / ("" if link == "test" else "x"))
    split = load_data(fill(folder, {"val/x/a.png": noise(60)}))
    assert (len(split.train), len(split.test)) == (60, 1)


def test_a_whole_machine_is_no_folder_of_images():
    refused("/", "is all of this machine; give a folder of images")
    refused("", "no data are named")


def test_names_in_zips_are_paths_inside_them(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        for name, k in {"/a/1.png": 1, "./a/2.png": 2, "a/../b/3.png": 3, "../b/4.png": 4, "b//5.png": 5}.items():
            archive.writestr(name, png(noise(k)))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("b//5.png", png(noise(6)))
    train = load_data(tmp_path / "odd.zip").train
    assert train.class_names == ("a", "b")
    assert [any(torch.equal(image, to_pixels(noise(k))) for image in train.images) for k in range(7)] == [
        *[False, True, True, True, True],
        *[False, True],  # of two of one name the last counts
    ]
    assert "left out 1 paths (there twice" in capsys.readouterr().err


def test_names_in_zips_that_lie_about_their_code_are_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "lies.zip", "w") as archive:
        archive.writestr("caf\u00e9.png", png(noise(0)))
    content = (tmp_path / "lies.zip").read_bytes()
    (tmp_path / "lies.zip").write_bytes(content.replace("caf\u00e9".encode(), b"caf\xff\xff"))
    refused(tmp_path / "lies.zip", r"lies\.zip holds names that are no UTF-8")


def test_numbers_too_long_for_python_are_names_of_classes(tmp_path):
    with zipfile.ZipFile(tmp_path / "long.zip", "w") as archive:
        for name in ("9" * 5000, "10"):
            archive.writestr(f"{name}/a.png", png(noise(0)))
    assert load_data(tmp_path / "long.zip").train.class_names == ("10", "9" * 5000)


def test_names_that_are_no_utf8_or_move_the_cursor_are_shown_as_escapes(tmp_path, capsys):
    folder = fill(tmp_path / "odd\n", {f"{name}/a.png": noise(0) for name in ("caf\udce9", "red\x1b[31m")})
    train = load_data(folder).train
    assert train.class_names == ("caf\\udce9", "red\\x1b[31m")
    assert main(["info", str(folder)]) == 0
    fill(folder, {"red\x1b[31m/b\r\n.png": b"x"})
    refused(folder, r"^odd\\n: red\\x1b\[31m/b \.png cannot be read")
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err


@pytest.mark.parametrize(
    ("table", "pattern"),
    [
        ({"labels": [["a/0.png", 0], ["./a/0.png", 1]]}, r"gives a/0\.png the labels 0 and 1; keep one"),
        ({"labels": [["a/0.png", 0]], "class_names": {"cat": 0}}, "class_names is no list of words.*write it as"),
        ({"labels": [["a/0.png", 0]], "class_names": "cat"}, "class_names is no list of words.*write it as"),
    ],
)
def test_dataset_json_that_contradicts_itself_is_refused(faces, table, pattern):
    refused(fill(faces, {"dataset.json": json.dumps(table).encode()}), pattern)


def test_dataset_json_far_larger_than_its_images_is_not_read(faces):
    with open(faces / "dataset.json", "wb") as file:
        file.truncate(41_000_000)
    refused(faces, r"dataset\.json cannot be read .*41 MB are more than 40")


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    folder = fill(tmp_path / "pipes", {"a.png": noise(0)})
    os.mkfifo(folder / "b.png")
    os.mkfifo(folder / "dataset.json")
    assert len(load_data(folder).train) == 1


def test_a_broken_link_is_named(tmp_path):
    folder = fill(tmp_path / "links", {"a.png": noise(0)})
    (folder / "b.png").symlink_to("gone.png")
    refused(folder, r"b\.png cannot be read")


def test_numbers_written_in_two_ways_are_classes_in_a_fixed_order(tmp_path):
    folder = fill(tmp_path / "numbered", {f"{name}/a.png": plain() for name in ("1", "01", "001", "2")})
    assert load_data(folder).train.class_names == ("001", "01", "1", "2")


def test_a_file_of_another_kind_that_is_called_png_starts_no_program(tmp_path, monkeypatch):
    files = {
        "gs": b"#!/bin/sh\ntouch started\n",
        "photos/cat.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    fill(tmp_path, files)
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    monkeypatch.chdir(tmp_path)
    refused(tmp_path / "photos", r"cat\.png cannot be read \(of no known image format\)")
    assert not (tmp_path / "started").exists()


def test_a_run_in_the_folder_of_its_own_data_is_no_data(tmp_path, capsys):
    pictures = {f"{c}/{k}.png": noise(k) for k in range(3) for c in "ab"}
    folder = fill(tmp_path / "photos", pictures)
    before = find_images(folder)
    run = {name: noise(9) for name in ("samples/0.png", "samples/1.png")}
    fill(folder / "runs" / "00000-photos", run | {"options.yaml": b"data: .\n...\n"})
    assert find_images(folder) == before
    said = capsys.readouterr().err
    assert re.search(r"left out 1 paths \(.* or the folder of a run\), as .*runs/00000-photos$", said.strip())
    assert len(find_images(folder / "runs" / "00000-photos").paths) == 2  # asked for
