"""Every way an image gets in: modes, crops, folders, zips, Datasets, downloads, and what is said when one cannot."""

import json
import os
import pickle
import re
import shutil
import socket
import zipfile
from hashlib import sha256
from io import BytesIO
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from diffit_lib import pictures, sources
from diffit_lib.config import Training
from diffit_lib.crops import CROPS, to_pixels
from diffit_lib.data import TrainingStream, digits, load_data
from diffit_lib.errors import DiffitError

COLOURS = ("blue", "green", "red")


def plain(colour="red", size=(8, 8)):
    return Image.new("RGB", size, colour)


def noise(seed, height=8, width=8):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def fill(folder, files):
    """Write pictures, or the bytes of other files, below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image.Image):
            content.save(path)
        else:
            path.write_bytes(content)
    return folder


def zipped(folder):
    return shutil.make_archive(str(folder), "zip", folder)


@pytest.fixture
def faces(tmp_path):
    """60 noise images in three class folders."""
    return fill(tmp_path / "faces", {f"{'abc'[k % 3]}/{k}.png": noise(k) for k in range(60)})


def only_image(folder, **options):
    images = load_data(folder, **options).train.images
    assert len(images) == 1
    return images[0]


def one_line(caught):
    """The message, which has to be one line."""
    message = str(caught.value)
    assert "\n" not in message
    return message


def refused(source, pattern, **options):
    with pytest.raises(DiffitError) as caught:
        load_data(source, **options)
    assert re.search(pattern, one_line(caught))


class TestModes:
    def load(self, tmp_path, picture, suffix="png", **options):
        file = BytesIO()
        picture.save(file, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix), **options)
        return only_image(fill(tmp_path / "pictures", {f"one.{suffix}": file.getvalue()}))

    def test_colour_is_three_channels_in_order_and_grey_is_one(self, tmp_path):
        picture = noise(0, 2, 3)
        assert torch.equal(self.load(tmp_path, picture), torch.tensor(np.array(picture)).permute(2, 0, 1))
        assert torch.equal(
            self.load(tmp_path, picture.convert("L")), torch.tensor(np.array(picture.convert("L")))[None]
        )

    @pytest.mark.parametrize("mode", ["1", "L", "LA"])
    def test_grey_modes_are_grey(self, tmp_path, mode):
        image = self.load(tmp_path, plain("white").convert(mode))
        assert image.tolist() == torch.full((1, 8, 8), 255).tolist()

    def test_sixteen_bits_are_scaled_to_eight(self, tmp_path):
        levels = np.array([[0, 128 * 257, 200 * 257 + 100, 65535]], dtype=np.uint16)
        assert self.load(tmp_path, Image.fromarray(levels)).tolist() == [[[0, 128, 200, 255]]]

    def test_palette_colours_are_looked_up(self, tmp_path):
        picture = plain("red")
        picture.paste("blue", (0, 0, 4, 8))
        image = self.load(tmp_path, picture.quantize(2))
        assert image[:, 0, 0].tolist() == [0, 0, 255]
        assert image[:, 0, 7].tolist() == [255, 0, 0]

    def test_cmyk_is_ink_not_light(self, tmp_path):
        image = self.load(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "tif")
        assert image[:, 0, 0].tolist() == [255, 0, 0]

    def test_transparency_is_laid_over_white(self, tmp_path):
        picture = plain("red").convert("RGBA")
        picture.putpixel((0, 0), (0, 0, 0, 0))
        picture.putpixel((1, 0), (0, 0, 0, 128))
        image = self.load(tmp_path, picture)
        assert image[:, 0, :3].T.tolist() == [[255, 255, 255], [127, 127, 127], [255, 0, 0]]

    def test_grey_and_palette_transparency_is_laid_over_white_too(self, tmp_path):
        assert self.load(tmp_path, Image.new("LA", (1, 1), (0, 0))).tolist() == [[[255]]]
        assert self.load(tmp_path, plain("red").quantize(2), transparency=0).flatten().unique().tolist() == [255]

    def test_a_photograph_taken_on_its_side_is_turned_upright(self, tmp_path):
        picture, exif = plain("red", (6, 4)), Image.Exif()
        picture.paste("blue", (0, 0, 6, 2))  # the upper half, which lies right once upright
        exif[0x0112] = 6  # turn by 90 degrees clockwise to show
        image = self.load(tmp_path, picture, exif=exif)
        assert image.shape == (3, 6, 4)
        assert image[:, 0, 3].tolist() == [0, 0, 255]
        assert image[:, 0, 0].tolist() == [255, 0, 0]

    @pytest.mark.parametrize("suffix", ["gif", "webp", "tif"])
    def test_of_an_animation_the_first_frame_is_taken(self, tmp_path, suffix):
        image = self.load(tmp_path, plain("red"), suffix, save_all=True, append_images=[plain("blue")])
        torch.testing.assert_close(image[:, 4, 4].int(), torch.tensor([255, 0, 0], dtype=torch.int32), atol=4, rtol=0)

    def test_floats_have_no_known_range(self, tmp_path):
        folder = fill(tmp_path / "pictures", {"one.tif": Image.new("F", (2, 2), 0.5)})
        refused(folder, r"one\.tif cannot be read .*float")

    def test_grey_becomes_rgb_and_rgb_grey_where_asked(self, tmp_path):
        folder = fill(tmp_path / "mixed", {"a.png": plain("white").convert("L"), "b.png": plain("lime")})
        colour = load_data(folder, in_channels=3).train.images
        assert colour[:, :, 0, 0].tolist() == [[255, 255, 255], [0, 255, 0]]
        grey = load_data(folder, in_channels=1).train.images
        assert grey[:, :, 0, 0].tolist() == [[255], [150]]  # ITU-R 601: 0.587 of 255


class TestCrops:
    def ramp(self, width, height, slope=2):
        """A picture as bright as its columns' number, counted from the left in steps of `slope`."""
        return Image.fromarray(np.tile(np.arange(width, dtype=np.uint8) * slope, (height, 1)))

    def columns(self, picture, crop, size=(32, 32)):
        image = to_pixels(picture, size, crop=crop)
        assert image.shape == (1, *size)
        assert (image == image[:, :1]).all()
        return image[0, 0].double()

    @pytest.mark.parametrize("crop", CROPS)
    def test_a_picture_of_the_right_size_keeps_its_very_pixels(self, crop):
        picture = noise(1, 24, 32)
        assert torch.equal(to_pixels(picture, (24, 32), 3, crop), to_pixels(picture))

    def test_center_takes_the_largest_box(self):
        expected = (12 + (torch.arange(32) + 0.5) * 72 / 32 - 0.5) * 2  # where each column's centre lay
        columns = self.columns(self.ramp(96, 72), "center")
        torch.testing.assert_close(columns[3:-3], expected.double()[3:-3], atol=0.75, rtol=0)

    def test_adm_crops_after_resizing(self):
        expected = ((5 + torch.arange(32) + 0.5) * 96 / 43 - 0.5) * 2  # 96x72, halved to 48x36, then 43x32
        columns = self.columns(self.ramp(96, 72), "adm")
        torch.testing.assert_close(columns, expected.double(), atol=0.75, rtol=0)

    def test_adm_halves_by_averaging_while_twice_too_large(self):
        pixels = torch.tensor(np.array(noise(2, 64, 64)), dtype=torch.float32).permute(2, 0, 1)
        for pair in ((1, 2), (2, 1), (1, 2), (2, 1)):
            pixels = torch.nn.functional.avg_pool2d(pixels, pair).add(0.5).floor()  # to whole numbers, halves upwards
        assert torch.equal(to_pixels(noise(2, 64, 64), (16, 16), crop="adm"), pixels.byte())

    def test_long_edge_shows_the_whole_picture_on_black(self):
        image = to_pixels(plain("white", (64, 32)), (32, 32), crop="long-edge")
        assert image[:, 8:24].unique().tolist() == [255]
        assert image[:, [*range(8), *range(24, 32)]].unique().tolist() == [0]
        image = to_pixels(self.ramp(96, 32), (32, 32), crop="long-edge")
        torch.testing.assert_close(
            image[0, 16, 2:-2].double(), (torch.arange(32).double() * 3 + 1)[2:-2] * 2, atol=1, rtol=0
        )

    @pytest.mark.parametrize("crop", CROPS)
    @pytest.mark.parametrize("size", [(1, 50), (50, 1), (3, 4), (200, 90)])
    def test_any_picture_gets_any_size(self, crop, size):
        assert to_pixels(plain(size=size), (16, 24), crop=crop).shape == (3, 16, 24)

    def test_mixed_sizes_become_one(self, tmp_path):
        folder = fill(tmp_path / "mixed", {"a.png": plain("red", (20, 10)), "b.png": plain("blue", (9, 30))})
        images = load_data(folder, (8, 12)).train.images
        assert images.shape == (2, 3, 8, 12)
        assert images[:, :, 4, 4].tolist() == [[255, 0, 0], [0, 0, 255]]

    def test_load_data_crops_as_told(self, tmp_path):
        folder = fill(tmp_path / "wide", {"a.png": plain("white", (32, 16))})
        assert only_image(folder, image_size=(8, 8)).min() == 255
        assert only_image(folder, image_size=(8, 8), crop="long-edge").min() == 0

    def test_an_unknown_crop_is_refused_with_the_known_ones(self, faces):
        refused(faces, "crop 'square'.*center, long-edge, adm", crop="square")


class TestFolders:
    def test_class_folders_are_classes_in_order_of_their_names(self, faces):
        split = load_data(faces)
        assert split.train.class_names == split.test.class_names == ("a", "b", "c")
        assert (split.train.name, split.test.name) == ("faces/train", "faces/test")
        for part in split:
            for image, label in zip(part.images, part.labels, strict=True):
                assert any(torch.equal(image, to_pixels(noise(k))) for k in range(int(label), 60, 3))

    def test_numbered_class_folders_are_in_order_of_their_numbers(self, tmp_path):
        folder = fill(tmp_path / "numbered", {f"{k}/a.png": plain((k, 0, 0)) for k in range(12)})
        train = load_data(folder).train
        assert train.class_names == tuple(map(str, range(12)))
        assert torch.equal(train.images[:, 0, 0, 0].long(), train.labels)

    def test_a_folder_of_images_has_no_classes(self, tmp_path):
        train = load_data(fill(tmp_path / "flat", {f"{k}.png": plain() for k in range(3)})).train
        assert train.class_names == ()
        assert train.labels.tolist() == [0, 0, 0]

    def test_folders_around_and_inside_class_folders_make_no_difference(self, tmp_path):
        files = {f"outer/inner/{name}/x/{k}.png": plain(name) for name in COLOURS for k in range(2)}
        assert load_data(fill(tmp_path / "deep", files)).train.class_names == ("blue", "green", "red")

    def test_hidden_files_and_other_files_are_passed_over(self, tmp_path):
        stray = {"notes.txt": b"hello", ".cache/a.png": b"x", "__MACOSX/._a.png": b"x", "a/.DS_Store": b"x"}
        folder = fill(tmp_path / "tidy", {"a/1.PNG": plain(), "b/2.jpeg": plain(), **stray})
        assert load_data(folder).train.class_names == ("a", "b")

    def test_a_zip_is_as_good_as_the_folder_in_it(self, faces):
        for one, other in zip(load_data(faces), load_data(zipped(faces)), strict=True):
            assert (one.name, one.class_names) == (other.name, other.class_names)
            assert one.fingerprint() == other.fingerprint()

    def test_dataset_json_goes_before_folders(self, faces):
        labels = [[f"{'abc'[k % 3]}/{k}.png", k % 2] for k in range(60)]
        fill(faces, {"dataset.json": json.dumps({"labels": labels, "class_names": ["even", "odd"]}).encode()})
        for source in (faces, zipped(faces)):
            train = load_data(source).train
            assert train.class_names == ("even", "odd")
            for image, label in zip(train.images, train.labels, strict=True):
                assert any(torch.equal(image, to_pixels(noise(k))) for k in range(int(label), 60, 2))

    def test_dataset_json_may_lie_in_a_folder_with_its_images(self, tmp_path):
        table = {"labels": [["00/1.png", 1], ["00/2.png", 0]]}
        files = {"mine/00/1.png": plain("red"), "mine/00/2.png": plain("blue")}
        folder = fill(tmp_path / "wrapped", {**files, "mine/dataset.json": json.dumps(table).encode()})
        train = load_data(folder).train
        assert train.class_names == ("0", "1")
        assert train.labels.tolist() == [1, 0]

    def test_dataset_json_without_labels_means_no_classes(self, tmp_path):
        files = {"00/1.png": plain(), "01/2.png": plain(), "dataset.json": b'{"labels": null}'}
        assert load_data(fill(tmp_path / "unlabelled", files)).train.class_names == ()

    def test_dataset_json_that_lacks_an_image_is_refused(self, faces):
        fill(faces, {"dataset.json": json.dumps({"labels": [["a/0.png", 0]]}).encode()})
        refused(faces, r"dataset\.json lacks labels for 59 images, as a/12\.png")

    @pytest.mark.parametrize("text", [b"{", b"[]", b'{"names": []}', b'{"labels": [1, 2]}', b'{"labels": "ab"}'])
    def test_dataset_json_of_another_form_is_refused(self, faces, text):
        fill(faces, {"dataset.json": text})
        refused(faces, r"dataset\.json cannot be read .*write it as")

    @pytest.mark.parametrize("test", ["test", "val"])
    def test_folders_train_and_test_are_the_parts(self, tmp_path, test):
        files = {
            f"{part}/{name}/{k}.png": plain(name) for part in ("train", test) for name in COLOURS for k in range(2)
        }
        split = load_data(fill(tmp_path / "divided", {**files, f"{test}/red/9.png": plain("red")}))
        assert (len(split.train), len(split.test)) == (6, 7)
        assert split.train.class_names == ("blue", "green", "red")
        assert split.test.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]


class TestParts:
    def drawn(self, count):
        """Which of the numbers below this belong to the test part."""
        return [k for k in range(count) if int(sha256(str(k).encode()).hexdigest(), 16) % 10 == 0]

    def dataset(self, labels):
        return [(torch.full((1, 1, 1), k % 256, dtype=torch.uint8), label) for k, label in enumerate(labels)]

    def numbers(self, part):
        return part.images.flatten().tolist()

    def test_test_part_is_what_the_hash_of_the_path_says(self, faces):
        chosen = {path for path in faces.glob("*/*") if self.hash(path.relative_to(faces)) % 10 == 0}
        assert 2 <= len(chosen) <= 12
        test = load_data(faces).test
        assert len(test) == len(chosen)
        for path, image in zip(sorted(chosen), test.images, strict=True):
            assert torch.equal(image, to_pixels(Image.open(path)))

    def hash(self, path):
        return int(sha256(path.as_posix().encode()).hexdigest(), 16)

    def test_every_image_is_in_one_part_alone(self):
        split = load_data(self.dataset([0, 1] * 100))
        assert self.numbers(split.test) == self.drawn(200)
        assert sorted(self.numbers(split.train) + self.numbers(split.test)) == list(range(200))
        assert torch.equal(split.train.labels, split.train.images.flatten().long() % 2)

    def test_a_limit_keeps_the_shares_of_the_classes(self, monkeypatch):
        monkeypatch.setattr(pictures, "LARGEST_TEST_PART", 8)
        split = load_data(self.dataset([0, 1, 1, 1] * 60))
        assert len(split.train) + len(split.test) == 240
        assert len(split.test) == 8
        assert set(self.numbers(split.test)) <= set(self.drawn(240))
        drawn = torch.tensor([0, 1, 1, 1] * 60)[self.drawn(240)].bincount()
        assert (split.test.labels.bincount() - 8 * drawn / drawn.sum()).abs().max() < 1

    def test_a_class_never_loses_all_its_images(self):
        lonely, *others = self.drawn(200)
        split = load_data(self.dataset([int(k == lonely) for k in range(200)]))
        assert split.train.labels.sum() == 1
        assert self.numbers(split.test) == others

    def test_fewer_than_50_images_have_no_test_part_and_that_is_said(self, capsys):
        split = load_data(self.dataset([0, 1] * 24 + [0]))
        assert split.test is split.train
        assert len(split.train) == 49
        assert "too few images for a test part (49)" in capsys.readouterr().err
        assert len(load_data(self.dataset([0, 1] * 25)).test) == len(self.drawn(50))
        assert "too few" not in capsys.readouterr().err


class TestMistakes:
    def test_an_unreadable_image_stops_with_its_name(self, faces):
        fill(faces, {"b/broken.png": b"nonsense"})
        refused(faces, r"faces: b/broken\.png cannot be read \(of no known image format\); .*delete.*skip_bad")

    @pytest.mark.parametrize("suffix", ["png", "jpg", "gif"])
    def test_a_truncated_image_is_unreadable(self, faces, suffix):
        path = faces / f"b/whole.{suffix}"
        noise(0, 64, 64).save(path)
        path.write_bytes(path.read_bytes()[:700])
        refused(faces, r"b/whole\.\w+ cannot be read", image_size=(8, 8))

    def test_unreadable_images_are_left_out_and_counted_where_asked(self, faces, capsys):
        whole = load_data(faces)
        fill(faces, {"a/000.png": b"nonsense", "b/empty.jpg": b"", "c/zzz.png": b"nonsense"})
        capsys.readouterr()
        split = load_data(faces, skip_bad=True)
        said = capsys.readouterr().err
        assert [part.fingerprint() for part in split] == [part.fingerprint() for part in whole]
        assert sum(map(int, re.findall(r"skipped (\d+) of \d+ images that cannot be read", said))) == 3
        assert "a/000.png" in said

    def test_all_images_unreadable_are_refused(self, tmp_path):
        folder = fill(tmp_path / "junk", {"a.png": b"x", "b.png": b"y"})
        refused(folder, "junk: none of 2 images can be read", skip_bad=True)

    def test_a_class_left_without_images_is_refused(self, faces):
        fill(faces, {"d/broken.png": b"nonsense"})
        refused(faces, "no image of class 3, 'd'", skip_bad=True)

    def test_an_empty_folder_is_refused(self, tmp_path):
        refused(tmp_path, "holds no images")

    def test_a_file_is_no_folder(self, tmp_path):
        for name in ("notes.txt", "half.zip"):
            path = tmp_path / name
            path.write_bytes(b"PK\x03\x04 hello")
            refused(path, f"{name} is neither a folder nor a whole zip")

    def test_a_path_that_is_not_there_is_unknown_data(self, tmp_path):
        refused(tmp_path / "gone", "unknown data '.*gone'.*digits, mnist, cifar10, imagenette, celeba, or the path")

    def test_one_class_only_counts_as_none_and_that_is_said(self, tmp_path, capsys):
        split = load_data(fill(tmp_path / "pets", {f"cats/{k}.png": plain() for k in range(3)}))
        assert split.train.class_names == ()
        assert split.train.labels.tolist() == [0, 0, 0]
        assert "pets: one class only, 'cats'" in capsys.readouterr().err

    def test_one_image_only_loads_and_that_is_said(self, tmp_path, capsys):
        split = load_data(fill(tmp_path / "lone", {"a.png": noise(0)}))
        assert len(split.train) == len(split.test) == 1
        assert "too few images for a test part (1)" in capsys.readouterr().err

    def test_an_image_beside_class_folders_is_refused(self, faces):
        fill(faces, {"stray.png": plain()})
        refused(faces, r"stray\.png lies beside the class folders")

    def test_labels_with_holes_are_refused(self, faces):
        names = sorted(path.relative_to(faces).as_posix() for path in faces.glob("*/*"))
        fill(faces, {"dataset.json": json.dumps({"labels": [[n, 2 * (k % 2)] for k, n in enumerate(names)]}).encode()})
        refused(faces, "faces has no image of class 1, '1'; number the classes without holes")

    def test_a_class_of_the_test_part_alone_is_refused(self, tmp_path):
        files = {"train/a/1.png": plain(), "train/b/1.png": plain(), "test/c/1.png": plain()}
        refused(fill(tmp_path / "divided", files), "no image of class 2, 'c'")

    def test_images_of_mixed_sizes_need_a_size(self, tmp_path):
        folder = fill(tmp_path / "mixed", {"a.png": plain(), "b.png": plain(size=(9, 8))})
        refused(folder, r"b\.png has .*\(3, 8, 9\), the first image \(3, 8, 8\); give image_size", skip_bad=True)
        fill(folder, {"b.png": plain().convert("L")})
        refused(folder, r"b\.png has .*\(1, 8, 8\), the first image \(3, 8, 8\); give image_size and in_channels")

    def test_channels_are_one_or_three(self, faces):
        refused(faces, "in_channels is 4; give 1 .* or 3", in_channels=4)


class TestDatasets:
    def test_tensors_of_bytes_and_floats_and_pictures_and_arrays_mean_the_same(self):
        pixels = torch.tensor(np.array([noise(k) for k in range(3)])).permute(0, 3, 1, 2)
        labels = [0, 1, 2]
        forms = [
            TensorDataset(pixels, torch.tensor(labels)),
            TensorDataset(pixels / 255, torch.tensor(labels)),
            [(noise(k), np.int64(k)) for k in labels],
            [(np.array(noise(k)), k) for k in labels],
        ]
        for form in forms:
            train = load_data(form).train
            assert torch.equal(train.images, pixels)
            assert train.labels.tolist() == labels
            assert train.class_names == ("0", "1", "2")

    def test_floats_are_rounded(self):
        assert load_data([(torch.tensor([[0.4, 0.6, 254.6]]) / 255, 0)]).train.images.tolist() == [[[[0, 1, 255]]]]

    def test_a_grey_image_may_have_a_channel_or_none(self):
        grey = torch.arange(4, dtype=torch.uint8).view(2, 2)
        for image in (grey, grey[None], grey.numpy(), grey[:, :, None].numpy()):
            assert torch.equal(load_data([(image, 0)]).train.images, grey[None, None])

    def test_class_names_are_the_datasets_own(self):
        class Pets(TensorDataset):
            classes = ["cat", "dog"]

        train = load_data(Pets(torch.zeros(4, 1, 2, 2), torch.tensor([1, 0, 1, 0]))).train
        assert train.class_names == ("cat", "dog")
        assert train.name == "Pets/train"

    @pytest.mark.parametrize(
        ("labels", "pattern"),
        [
            ([0, 2], "no image of class 1, '1'"),
            ([0, -1], "has the label -1"),
            ([0, 0.5], "a label is no whole number"),
            ([0, None], "a label is no whole number"),
        ],
    )
    def test_labels_that_number_no_classes_are_refused(self, labels, pattern):
        refused([(plain(), label) for label in labels], pattern)

    def test_a_label_without_a_class_name_is_refused(self):
        dataset = TensorDataset(torch.zeros(3, 1, 2, 2), torch.arange(3))
        dataset.classes = ["cat", "dog"]
        refused(dataset, "TensorDataset has the label 2, but 2 classes")

    @pytest.mark.parametrize(
        ("image", "pattern"),
        [
            (torch.tensor([[[-1.0, 1.0]]]), "list: 0 cannot be read .*from -1 to 1, not from 0 to 1"),
            (torch.zeros(1, 2, 2, dtype=torch.int64), "int64, not uint8 or float"),
            (torch.zeros(5, 4, 4, dtype=torch.uint8), "cannot be read"),
        ],
    )
    def test_images_of_unknown_range_are_refused(self, image, pattern):
        refused([(image, 0)], pattern)

    class Endless(IterableDataset):
        def __iter__(self):
            yield from ()

    def test_what_is_no_dataset_of_pairs_is_refused(self):
        refused(TensorDataset(torch.zeros(3, 1, 2, 2)), r"item 0 of TensorDataset is no \(image, label\)")
        refused(self.Endless(), "Endless has no items that can be counted; give a map-style Dataset")
        refused([], "give a map-style Dataset")


def idx(array):
    """MNIST's file format: big-endian sizes, then bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no network."""

    def unreachable(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


class TestNamed:
    @pytest.mark.parametrize("name", ["mnist", "cifar10", "imagenette", "celeba"])
    def test_a_failed_download_ends_in_one_line_with_the_remedies(self, cache, name):
        timeout = socket.getdefaulttimeout()
        refused(name, f"^{name} cannot be had .*; give --data PATH, or go on with digits$")
        assert socket.getdefaulttimeout() == timeout

    def test_a_silent_server_is_not_waited_for_for_ever(self, monkeypatch):
        seen = []
        monkeypatch.setitem(sources.NAMED, "silent", lambda *_: seen.append(socket.getdefaulttimeout()))
        sources.from_name("silent", None)
        assert 0 < seen[0] < 60

    @pytest.fixture
    def mnist(self, cache):
        generator = np.random.default_rng(0)
        files = {}
        for part, count in (("train", 30), ("t10k", 20)):
            scans = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            files[f"{part}-images-idx3-ubyte"] = idx(scans)
            files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
        fill(cache / "MNIST" / "raw", files)
        return np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)

    def test_mnist_gets_a_black_frame_and_is_not_resized(self, mnist):
        split = load_data("mnist", (32, 32), 1)
        assert [part.images.shape for part in split] == [(30, 1, 32, 32), (20, 1, 32, 32)]
        assert torch.equal(split.train.images[:, 0, 2:-2, 2:-2], torch.tensor(mnist))
        assert split.train.images.long().sum() == mnist.astype(int).sum()
        assert split.train.labels.tolist() == [k % 10 for k in range(30)]
        assert split.train.class_names == tuple("0123456789")

    def test_mnist_has_28x28_pixels_of_its_own(self, mnist):
        assert torch.equal(load_data("mnist").train.images[:, 0], torch.tensor(mnist))
        assert torch.equal(load_data("mnist", (28, 28), 3).test.images[:, 2], load_data("mnist").test.images[:, 0])

    def test_cifar10_at_32_is_its_raw_pixels(self, cache, monkeypatch):
        monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
        rows = np.random.default_rng(0).integers(0, 256, (60, 3072), dtype=np.uint8)
        files = {
            name: pickle.dumps({"data": rows[10 * k : 10 * k + 10], "labels": list(range(10))})
            for k, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"])
        }
        files["batches.meta"] = pickle.dumps({"label_names": list("abcdefghij")})
        fill(cache / "cifar-10-batches-py", files)
        raw = torch.tensor(rows).view(60, 3, 32, 32)
        split = load_data("cifar10", (32, 32), 3)
        assert torch.equal(split.train.images, raw[:50])
        assert torch.equal(split.test.images, raw[50:])
        assert split.train.class_names == tuple("abcdefghij")
        assert load_data("cifar10", (16, 16), 1).train.images.shape == (50, 1, 16, 16)

    @pytest.fixture
    def imagenette(self, cache):
        classes = ["n01440764", "n02102040"]
        for version, folder in (("160", "imagenette2-160"), ("320", "imagenette2-320")):
            names = [f"{part}/{name}/{k}.JPEG" for part in ("train", "val") for name in classes for k in range(3)]
            fill(cache / folder, {name: plain(size=(int(version), int(version) + 40)) for name in names})
        return cache

    def test_imagenette_has_words_for_classes_and_its_own_test_part(self, imagenette, monkeypatch):
        monkeypatch.setattr(sources, "IMAGENETTE_IMAGES", 12)
        split = load_data("imagenette", (64, 64), 3)
        assert [part.images.shape for part in split] == [(6, 3, 64, 64)] * 2
        assert [part.name for part in split] == ["imagenette/train", "imagenette/test"]
        assert split.train.class_names[:2] == ("tench", "English springer")

    @pytest.mark.parametrize(("size", "short_edge"), [((160, 160), 160), ((128, 161), 320)])
    def test_imagenette_comes_in_the_smallest_version_that_is_large_enough(
        self, imagenette, monkeypatch, size, short_edge
    ):
        monkeypatch.setattr(sources, "IMAGENETTE_IMAGES", 12)
        picture = sources.find_pictures("imagenette", size).train
        assert min(picture.open(picture.keys[0]).size) == short_edge

    def test_half_an_imagenette_is_no_imagenette(self, imagenette):
        refused("imagenette", "imagenette cannot be had .*is not whole, delete it")

    def test_celeba_has_no_classes(self, cache, monkeypatch):
        monkeypatch.setattr("torchvision.datasets.celeba.check_integrity", lambda *_: True)
        faces = [f"{k:06d}.jpg" for k in range(1, 7)]
        tables = {
            "list_eval_partition": "".join(f"{face} {(0, 0, 0, 1, 2, 2)[k]}\n" for k, face in enumerate(faces)),
            "identity_CelebA": "".join(f"{face} 1\n" for face in faces),
        }
        for table in ("list_bbox_celeba", "list_landmarks_align_celeba", "list_attr_celeba"):
            tables[table] = "6\none two\n" + "".join(f"{face} 1 -1\n" for face in faces)
        fill(cache / "celeba", {f"{name}.txt": text.encode() for name, text in tables.items()})
        fill(
            cache / "celeba" / "img_align_celeba",
            {face: plain((40 * k, 0, 0), (178, 218)) for k, face in enumerate(faces)},
        )
        split = load_data("celeba", (64, 64), 3)
        assert [part.images.shape for part in split] == [(3, 3, 64, 64), (2, 3, 64, 64)]
        assert split.train.class_names == ()
        assert split.train.images[:, 0, 9, 9].tolist() == pytest.approx([0, 40, 80], abs=3)

    def test_digits_stand_in_for_data_of_any_shape(self):
        split = load_data("digits", (32, 32), 3)
        assert [part.images.shape for part in split] == [(1437, 3, 32, 32), (360, 3, 32, 32)]
        assert torch.equal(split.train.labels, digits().train.labels)


class TestMemory:
    def test_what_images_take_is_said(self, capsys):
        load_data("digits", (64, 64), 3)
        assert capsys.readouterr().err.splitlines() == [
            "digits/train: 1,437 images, 17.7 MB in memory",
            "digits/test: 360 images, 4.4 MB in memory",
        ]

    def test_nothing_is_said_of_a_megabyte(self, capsys):
        load_data("digits")
        assert capsys.readouterr().err == ""

    @pytest.fixture(params=["folder", "zip", "dataset"])
    def source(self, request, faces):
        if request.param == "dataset":
            return [(noise(k), k % 3) for k in range(60)]
        return faces if request.param == "folder" else zipped(faces)

    def test_images_too_many_for_memory_are_the_same_images(self, source, capsys):
        held, left = load_data(source), load_data(source, memory_gb=0)
        assert "exceed memory_gb=0, decoded when used" in capsys.readouterr().err
        for one, other in zip(held, left, strict=True):
            assert isinstance(one.images, torch.Tensor)
            assert not isinstance(other.images, torch.Tensor)
            assert (len(other), other.images.shape) == (len(one), tuple(one.images.shape))
            assert torch.equal(other.images[:], one.images)
            assert torch.equal(other.images[[-1, 0]], one.images[[-1, 0]])
            assert torch.equal(other.labels, one.labels)
            assert other.fingerprint() == one.fingerprint()
            assert other.standard_deviation() == one.standard_deviation()
            some = other.take(torch.tensor([0, 0]), "some")
            assert torch.equal(some.images, one.images[[0, 0]])

    @pytest.mark.parametrize("workers", [0, 2])
    def test_training_streams_them_with_any_number_of_workers(self, source, workers):
        training = Training(batch_size=8, flip=True)
        held, left = (load_data(source, memory_gb=limit).train for limit in (1, 0))
        loader = DataLoader(TrainingStream(left, training), batch_size=None, num_workers=workers)
        for number, batch in enumerate(islice(loader, 6)):
            for one, other in zip(batch, TrainingStream(held, training).batch(number), strict=True):
                assert torch.equal(one, other)

    def test_every_process_opens_a_zip_for_itself(self, faces, monkeypatch):
        images = load_data(zipped(faces), memory_gb=0).train.images
        opened, real = [], zipfile.ZipFile
        monkeypatch.setattr(zipfile, "ZipFile", lambda *args: opened.append(args) or real(*args))
        images[[0, 1]]
        assert not opened
        monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a worker: forked ones would share one file position
        images[[0, 1]]
        assert len(opened) == 1

    def test_they_can_be_sent_to_another_process(self, source):
        images = load_data(source, memory_gb=0).train.images
        assert torch.equal(pickle.loads(pickle.dumps(images))[[0, 5]], images[[0, 5]])

    def test_an_unreadable_one_stops_with_its_name_when_it_is_met(self, faces):
        fill(faces, {"b/zzz.png": b"nonsense"})
        parts = load_data(faces, memory_gb=0)
        with pytest.raises(DiffitError, match=r"b/zzz\.png cannot be read"):
            [part.images[:] for part in parts]

    def test_unreadable_ones_are_left_out_beforehand_where_asked(self, faces, capsys):
        whole = load_data(faces)
        fill(faces, {"b/zzz.png": b"nonsense"})
        left = load_data(faces, memory_gb=0, skip_bad=True)
        assert not any(isinstance(part.images, torch.Tensor) for part in left)
        assert [part.fingerprint() for part in left] == [part.fingerprint() for part in whole]
        assert "skipped 1 of" in capsys.readouterr().err

    def test_only_a_share_of_very_many_is_looked_at_to_know_them(self):
        class Counted(TensorDataset):
            taken = 0

            def __getitem__(self, index):
                self.taken += 1
                return super().__getitem__(index)

        dataset = Counted(torch.arange(2500).remainder(256).byte().view(-1, 1, 1, 1), torch.zeros(2500, dtype=int))
        train = load_data(dataset, memory_gb=0).train
        dataset.taken = 0
        one, taken = train.fingerprint(), dataset.taken
        assert 500 < taken <= 1000
        assert train.fingerprint() == one
        dataset.tensors[0].add_(1)
        assert train.fingerprint() != one

    def test_fingerprints_tell_pixels_labels_and_shapes_apart(self):
        def mark(values, labels, shape):
            pixels = torch.tensor(values, dtype=torch.uint8).view(2, *shape)
            return load_data(TensorDataset(pixels, torch.tensor(labels))).train.fingerprint()

        marks = [
            mark([1, 2, 3, 4], [0, 1], (1, 1, 2)),
            mark([1, 2, 3, 5], [0, 1], (1, 1, 2)),
            mark([1, 2, 3, 4], [1, 0], (1, 1, 2)),
            mark([1, 2, 3, 4], [0, 1], (1, 2, 1)),
        ]
        assert len(set(marks)) == 4
