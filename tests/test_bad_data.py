"""What is said of data that nothing can be trained on: one line each, or a counted skip where asked for."""

import json
import re

import pytest
from image_files import fill, noise, plain, refused

from diffit_lib.data import load_data


def test_an_unreadable_image_stops_with_its_name(faces):
    fill(faces, {"b/broken.png": b"nonsense"})
    refused(faces, r"faces: b/broken\.png cannot be read \(of no known image format\); .*delete.*skip_bad")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif"])
def test_a_truncated_image_is_unreadable(faces, suffix):
    path = faces / f"b/whole.{suffix}"
    noise(0, 64, 64).save(path)
    path.write_bytes(path.read_bytes()[:700])
    refused(faces, r"b/whole\.\w+ cannot be read", image_size=(8, 8))


def test_unreadable_images_are_left_out_and_counted_where_asked(faces, capsys):
    whole = load_data(faces)
    fill(faces, {"a/000.png": b"nonsense", "b/empty.jpg": b"", "c/zzz.png": b"nonsense"})
    capsys.readouterr()
    split = load_data(faces, skip_bad=True)
    said = capsys.readouterr().err
    assert [part.fingerprint() for part in split] == [part.fingerprint() for part in whole]
    assert sum(map(int, re.findall(r"skipped (\d+) of \d+ images that cannot be read", said))) == 3
    assert "a/000.png" in said


def test_all_images_unreadable_are_refused(tmp_path):
    folder = fill(tmp_path / "junk", {"a.png": b"x", "b.png": b"y"})
    refused(folder, "junk: none of 2 images can be read", skip_bad=True)


def test_a_class_left_without_images_is_refused(faces):
    fill(faces, {"d/broken.png": b"nonsense"})
    refused(faces, "no image of class 3, 'd'", skip_bad=True)


def test_an_empty_folder_is_refused(tmp_path):
    refused(tmp_path, "holds no images")


def test_a_file_is_no_folder(tmp_path):
    for name in ("notes.txt", "half.zip"):
        path = tmp_path / name
        path.write_bytes(b"PK\x03\x04 hello")
        refused(path, f"{name} is neither a folder nor a whole zip")


def test_a_path_that_is_not_there_is_unknown_data(tmp_path):
    refused(tmp_path / "gone", "unknown data '.*gone'.*digits, mnist, cifar10, imagenette, celeba, or the path")


def test_one_class_only_counts_as_none_and_that_is_said(tmp_path, capsys):
    split = load_data(fill(tmp_path / "pets", {f"cats/{k}.png": plain() for k in range(3)}))
    assert split.train.class_names == ()
    assert split.train.labels.tolist() == [0, 0, 0]
    assert "pets: one class only, 'cats'" in capsys.readouterr().err


def test_one_image_only_loads_and_that_is_said(tmp_path, capsys):
    split = load_data(fill(tmp_path / "lone", {"a.png": noise(0)}))
    assert len(split.train) == len(split.test) == 1
    assert "too few images for a test part (1)" in capsys.readouterr().err


def test_an_image_beside_class_folders_is_refused(faces):
    fill(faces, {"stray.png": plain()})
    refused(faces, r"stray\.png lies beside the class folders")


def test_labels_with_holes_are_refused(faces):
    names = sorted(path.relative_to(faces).as_posix() for path in faces.glob("*/*"))
    fill(faces, {"dataset.json": json.dumps({"labels": [[n, 2 * (k % 2)] for k, n in enumerate(names)]}).encode()})
    refused(faces, "faces has no image of class 1, '1'; number the classes without holes")


def test_a_class_of_the_test_part_alone_is_refused(tmp_path):
    files = {"train/a/1.png": plain(), "train/b/1.png": plain(), "test/c/1.png": plain()}
    refused(fill(tmp_path / "divided", files), "no image of class 2, 'c'")


def test_images_of_mixed_sizes_need_a_size(tmp_path):
    folder = fill(tmp_path / "mixed", {"a.png": plain(), "b.png": plain(size=(9, 8))})
    refused(folder, r"b\.png has .*\(3, 8, 9\), the first image \(3, 8, 8\); give image_size", skip_bad=True)
    fill(folder, {"b.png": plain().convert("L")})
    refused(folder, r"b\.png has .*\(1, 8, 8\), the first image \(3, 8, 8\); give image_size and in_channels")


def test_channels_are_one_or_three(faces):
    refused(faces, "in_channels is 4; give 1 .* or 3", in_channels=4)
