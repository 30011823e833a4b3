"""How data without a test part of their own are divided."""

from hashlib import sha256

import torch
from PIL import Image

from diffit_lib.data import listing
from diffit_lib.data.datasets import load_data
from diffit_lib.data.preprocess import to_pixels


def drawn(count):
    """Which of the numbers below this belong to the test part."""
    return [k for k in range(count) if int(sha256(str(k).encode()).hexdigest(), 16) % 10 == 0]


def hash_of(path):
    return int(sha256(path.as_posix().encode()).hexdigest(), 16)


def dataset(labels):
    return [(torch.full((1, 1, 1), k % 256, dtype=torch.uint8), label) for k, label in enumerate(labels)]


def numbers(part):
    return part.images.flatten().tolist()


def test_test_part_is_what_the_hash_of_the_path_says(faces):
    chosen = {path for path in faces.glob("*/*") if hash_of(path.relative_to(faces)) % 10 == 0}
    assert 2 <= len(chosen) <= 12
    test = load_data(faces).test
    assert len(test) == len(chosen)
    for path, image in zip(sorted(chosen), test.images, strict=True):
        assert torch.equal(image, to_pixels(Image.open(path)))


def test_every_image_is_in_one_part_alone():
    split = load_data(dataset([0, 1] * 100))
    assert numbers(split.test) == drawn(200)
    assert sorted(numbers(split.train) + numbers(split.test)) == list(range(200))
    assert torch.equal(split.train.labels, split.train.images.flatten().long() % 2)


def test_a_limit_keeps_the_shares_of_the_classes(monkeypatch):
    monkeypatch.setattr(listing, "LARGEST_TEST_PART", 8)
    split = load_data(dataset([0, 1, 1, 1] * 60))
    assert len(split.train) + len(split.test) == 240
    assert len(split.test) == 8
    assert set(numbers(split.test)) <= set(drawn(240))
    labels = torch.tensor([0, 1, 1, 1] * 60)[drawn(240)].bincount()
    assert (split.test.labels.bincount() - 8 * labels / labels.sum()).abs().max() < 1


def test_a_class_never_loses_all_its_images():
    lonely, *others = drawn(200)
    split = load_data(dataset([int(k == lonely) for k in range(200)]))
    assert split.train.labels.sum() == 1
    assert numbers(split.test) == others


def test_fewer_than_50_images_have_no_test_part_and_that_is_said(capsys):
    split = load_data(dataset([0, 1] * 24 + [0]))
    assert split.test is split.train
    assert len(split.train) == 49
    assert "too few images for a test part (49)" in capsys.readouterr().err
    assert len(load_data(dataset([0, 1] * 25)).test) == len(drawn(50))
    assert "too few" not in capsys.readouterr().err
