"""The copy test: planted copies are found, new images and poor generators raise no alarm."""

import pytest
import torch
from copy_rates import PLANTS, blurred, gaussian

from diffit_lib.data.datasets import load_data
from diffit_lib.evaluation.copies import copy_alarm, cropped, find_copies, shrink


@pytest.fixture(scope="module")
def parts():
    return load_data("digits")


@pytest.fixture(scope="module")
def floor(parts):
    return find_copies(parts.test.images, parts.train.images)


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("kind", "least"), [("exact", 50), ("cropped", 45), ("flipped", 50), ("noisy", 47)])
def test_planted_copies_are_found(parts, floor, kind, least):
    planted = PLANTS[kind](parts.train.images[::29][:50], generator())
    copies = find_copies(planted, parts.train.images)
    assert copies.sum() >= least
    five = copies[copies][:5]  # how often a crop is missed stands in docs/results.md
    one_percent = torch.cat([five, torch.zeros(495, dtype=torch.bool)])
    assert copy_alarm(one_percent, floor)


def test_new_images_are_no_copies(floor):
    assert floor.double().mean() <= 0.01
    assert not copy_alarm(floor, floor)


@pytest.mark.parametrize("make", ["blurred", "gaussian", "three images", "one class"])
def test_generators_that_learned_too_little_or_lost_modes_raise_no_alarm(parts, floor, make):
    test = parts.test
    samples = {
        "blurred": lambda: blurred(test.images, generator()),
        "gaussian": lambda: gaussian(parts.train.images, generator()),
        "three images": lambda: PLANTS["noisy"](test.images[:3].repeat(100, 1, 1, 1), generator()),
        "one class": lambda: test.images[test.labels == 1],
    }[make]()
    found = find_copies(samples, parts.train.images)
    assert found.double().mean() <= 0.01
    assert not copy_alarm(found, floor)


def test_images_of_any_size_are_compared(parts):
    photos = torch.randint(256, (12, 3, 48, 40), generator=generator(), dtype=torch.uint8)
    assert find_copies(photos[3:5].flip(-1), photos).tolist() == [True, True]
    assert shrink(photos).shape == (12, 3, 32, 27)


def test_whole_place_leaves_an_image_as_it_is_and_flip_mirrors_it(parts):
    images = parts.train.images[:4].float()
    for flip, expected in ((1.0, images), (-1.0, images.flip(-1))):
        place = torch.tensor([[1.0, 0.0, 0.0, flip]]).expand(4, 4)
        torch.testing.assert_close(cropped(images, place), expected, atol=1e-3, rtol=0)
