"""Data sets by name, as their files lie on disk after a download; no network."""

import pickle
import socket

import numpy as np
import pytest
import torch
from image_files import fill, plain, refused

from diffit_lib.data import sources
from diffit_lib.data.datasets import load_data
from diffit_lib.data.preprocess import to_picture


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


@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagenette", "celeba"])
def test_a_failed_download_ends_in_one_line_with_the_remedies(cache, name):
    timeout = socket.getdefaulttimeout()
    refused(name, rf"^Could not download {name} \(.*\)\. Use a folder, a zip or --data digits\.$")
    assert socket.getdefaulttimeout() == timeout


def test_a_silent_server_is_not_waited_for_for_ever(monkeypatch):
    seen = []
    monkeypatch.setitem(sources.NAMED, "silent", lambda *_: seen.append(socket.getdefaulttimeout()))
    sources.from_name("silent", None)
    assert 0 < seen[0] < 60


@pytest.fixture
def mnist(cache):
    generator = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 30), ("t10k", 20)):
        scans = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        files[f"{part}-images-idx3-ubyte"] = idx(scans)
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    fill(cache / "MNIST" / "raw", files)
    return np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)


def test_mnist_gets_a_black_frame_and_is_not_resized(mnist):
    split = load_data("mnist", (32, 32), 1)
    assert [part.images.shape for part in split] == [(30, 1, 32, 32), (20, 1, 32, 32)]
    assert torch.equal(split.train.images[:, 0, 2:-2, 2:-2], torch.tensor(mnist))
    assert split.train.images.long().sum() == mnist.astype(int).sum()
    assert split.train.labels.tolist() == [k % 10 for k in range(30)]
    assert split.train.class_names == tuple("0123456789")


def test_mnist_has_28x28_pixels_of_its_own(mnist):
    assert torch.equal(load_data("mnist").train.images[:, 0], torch.tensor(mnist))
    assert torch.equal(load_data("mnist", (28, 28), 3).test.images[:, 2], load_data("mnist").test.images[:, 0])


def test_cifar10_at_32_is_its_raw_pixels(cache, monkeypatch):
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
def imagenette(cache):
    classes = ["n01440764", "n02102040"]
    for version, folder in (("160", "imagenette2-160"), ("320", "imagenette2-320")):
        names = [f"{part}/{name}/{k}.JPEG" for part in ("train", "val") for name in classes for k in range(3)]
        fill(cache / folder, {name: plain(size=(int(version), int(version) + 40)) for name in names})
    return cache


def test_imagenette_has_words_for_classes_and_its_own_test_part(imagenette, monkeypatch):
    monkeypatch.setattr(sources, "IMAGENETTE_IMAGES", 12)
    split = load_data("imagenette", (64, 64), 3)
    assert [part.images.shape for part in split] == [(6, 3, 64, 64)] * 2
    assert [part.name for part in split] == ["imagenette/train", "imagenette/test"]
    assert split.train.class_names == ("tench", "English springer")


@pytest.mark.parametrize(("size", "short_edge"), [((160, 160), 160), ((128, 161), 320)])
def test_imagenette_comes_in_the_smallest_version_that_is_large_enough(imagenette, monkeypatch, size, short_edge):
    monkeypatch.setattr(sources, "IMAGENETTE_IMAGES", 12)
    picture = sources.list_images("imagenette", size).train
    assert min(to_picture(picture.read(picture.keys[0])).size) == short_edge


def test_half_an_imagenette_is_no_imagenette(imagenette):
    refused("imagenette", "Could not download imagenette .*is not whole, delete it")


def test_more_of_torchvisions_data_sets_come_by_their_names(cache, monkeypatch):
    scans = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        files = {"images-idx3": idx(scans), "labels-idx1": idx(np.arange(20, dtype=np.uint8) % 10)}
        fill(cache / "FashionMNIST" / "raw", {f"{part}-{name}-ubyte": content for name, content in files.items()})
    for name in ("FashionMNIST", "fashionmnist"):
        split = load_data(name)
        assert torch.equal(split.train.images[:, 0], torch.tensor(scans))
        assert split.test.labels.tolist() == [k % 10 for k in range(20)]
        assert split.train.class_names[9] == "Ankle boot"
    told = []
    monkeypatch.setattr("torchvision.datasets.SVHN", lambda *_, **part: told.append(part) or [(plain(), 0)])
    assert len(load_data("SVHN").test) == 1
    assert told == [{"split": part, "download": True} for part in ("train", "test")]


def test_celeba_has_no_classes(cache, monkeypatch):
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


def test_digits_stand_in_for_data_of_any_shape():
    split = load_data("digits", (32, 32), 3)
    assert [part.images.shape for part in split] == [(1437, 3, 32, 32), (360, 3, 32, 32)]
    assert torch.equal(split.train.labels, load_data("digits").train.labels)
