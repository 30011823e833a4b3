"""Any map-style Dataset of (image, label)."""

import numpy as np
import pytest
import torch
from image_files import fill, noise, plain, refused
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset
from torchvision.datasets import ImageFolder

from diffit_lib.data.datasets import load_data
from diffit_lib.data.preprocess import to_pixels
from diffit_lib.data.sources import list_images
from diffit_lib.utils.errors import DiffitError


def test_tensors_of_bytes_and_floats_and_pictures_and_arrays_mean_the_same():
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


def test_floats_are_rounded():
    assert load_data([(torch.tensor([[0.4, 0.6, 254.6]]) / 255, 0)]).train.images.tolist() == [[[[0, 1, 255]]]]


def test_a_grey_image_may_have_a_channel_or_none():
    grey = torch.arange(4, dtype=torch.uint8).view(2, 2)
    for image in (grey, grey[None], grey.numpy(), grey[:, :, None].numpy()):
        assert torch.equal(load_data([(image, 0)]).train.images, grey[None, None])


def test_class_names_are_the_datasets_own():
    class Pets(TensorDataset):
        classes = ["cat", "dog"]

    train = load_data(Pets(torch.zeros(4, 1, 2, 2), torch.tensor([1, 0, 1, 0]))).train
    assert train.class_names == ("cat", "dog")
    assert train.name == "Pets/train"


class Broken(TensorDataset):
    """Sixty items, one of which raises."""

    def __init__(self):
        super().__init__(torch.arange(60).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).to(torch.uint8), torch.arange(60) % 2)

    def __getitem__(self, index):
        if index == 7:
            raise OSError("image file is truncated")
        return super().__getitem__(index)


def test_an_item_that_raises_is_named_or_left_out_and_counted(capsys):
    with pytest.raises(DiffitError, match=r"item 7 of Broken cannot be read \(image file is truncated\); fix it, or"):
        load_data(Broken())
    parts = load_data(Broken(), skip_bad=True)
    assert sorted(value for part in parts for value in part.images[:, 0, 0, 0].tolist()) == [*range(7), *range(8, 60)]
    assert all(
        int(image[0, 0, 0]) % 2 == label
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    )
    assert "Broken: skipped 1 of 60 items that cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "pattern"),
    [
        ([0, 2], "no image of class 1, '1'"),
        ([0, -1], "has the label -1"),
        ([0, 0.5], "a label is no whole number"),
        ([0, None], "a label is no whole number"),
    ],
)
def test_labels_that_number_no_classes_are_refused(labels, pattern):
    refused([(plain(), label) for label in labels], pattern)


def test_a_label_without_a_class_name_is_refused():
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
def test_images_of_unknown_range_are_refused(image, pattern):
    refused([(image, 0)], pattern)


class Endless(IterableDataset):
    def __iter__(self):
        yield from ()


def test_what_is_no_dataset_of_pairs_is_refused():
    refused(TensorDataset(torch.zeros(3, 1, 2, 2)), r"item 0 of TensorDataset is no \(image, label\)")
    refused(Endless(), "Endless has no items that can be counted; give a map-style Dataset")
    refused([], "give a map-style Dataset")


def test_labels_of_torchvisions_data_sets_are_read_without_decoding(tmp_path):
    folder = fill(tmp_path / "pets", {f"{name}/{k}.png": noise(k) for name in ("cat", "dog") for k in range(30)})
    decoded = []
    images = ImageFolder(folder, loader=lambda path: decoded.append(path) or Image.open(path))
    listed = list_images(images)
    assert decoded == []
    assert listed.train.class_names == ("cat", "dog")
    parts = load_data(images)
    assert torch.equal(parts.train.labels, listed.train.labels)
    for part in parts:
        for image, label in zip(part.images, part.labels, strict=True):
            assert any(torch.equal(image, to_pixels(Image.open(path))) for path, k in images.samples if k == label)


def test_labels_that_a_dataset_makes_on_the_way_are_those_of_its_items(tmp_path):
    folder = fill(tmp_path / "pets", {f"{name}/{k}.png": noise(k) for name in ("cat", "dog") for k in range(3)})

    class Swapped(ImageFolder):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, 1 - label

    for images in (Swapped(folder), ImageFolder(folder, target_transform=lambda label: 1 - label)):
        assert load_data(images).train.labels.tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("form", "hashes"),
    [
        ({}, ("8956a92d97e1c2f3", "38453adaa0f8e18b")),
        ({"image_size": (32, 32), "in_channels": 3}, ("494ac9eb8e52f35b", "f6817b6ec4122134")),
        ({"image_size": (12, 20), "crop": "center"}, ("17c8a1c334604b74", "ed5c1f6a5a341547")),
        ({"image_size": (12, 20), "crop": "long-edge"}, ("9f740feb1b555861", "c9a7c59cb9fdedcd")),
        ({"image_size": (12, 20), "crop": "adm"}, ("8fbc85a402dc1fa3", "f59e39118eab7f10")),
    ],
)
def test_fingerprints_stay_since_runs_are_resumed_by_them(form, hashes):
    assert tuple(part.fingerprint() for part in load_data("digits", **form)) == hashes
