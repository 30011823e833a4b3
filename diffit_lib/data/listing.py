"""Images that are listed and not decoded yet, their classes, and their division into a train and a test part."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.logging import say

FEWEST_TO_SPLIT, LARGEST_TEST_PART = 50, 10_000
T = TypeVar("T")


@dataclass(frozen=True)
class ImageList:
    """References to images that are not decoded yet, and their labels."""

    name: str
    keys: Sequence[str]  # one for each image: its path below a folder or in a zip, or its number in a Dataset
    read: Callable[[str], Any]  # key -> what `preprocess.to_picture` takes
    labels: Tensor  # (N,) int64; all 0 where there are no classes
    class_names: tuple[str, ...]  # empty where there are no classes
    pixels: Tensor | None = None  # uint8 (N, C, H, W), where they are in memory already
    threads: int = 1  # how many may read at once
    state: Callable[[str], tuple[int, str]] | None = None  # `file_state` of a key, where `read` reads a file

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, indices: Sequence[int]) -> "ImageList":
        """The images at these indices."""
        rows = torch.tensor(indices, dtype=torch.int64)
        pixels = None if self.pixels is None else self.pixels[rows]
        return replace(self, keys=[self.keys[i] for i in indices], labels=self.labels[rows], pixels=pixels)


class Split(NamedTuple, Generic[T]):
    """The two parts of a data set; one and the same object where there are too few images for a test part."""

    train: T
    test: T

    @property
    def distinct(self) -> tuple[T, ...]:
        """Both parts, or the only one."""
        return (self.train,) if self.test is self.train else (self.train, self.test)


def split(images: ImageList) -> Split[ImageList]:
    """Draw a test part: every image whose key has a SHA-256 divisible by ten, whatever other images there are.

    At most 10,000 are taken, in the shares of their classes, and never all of a class. Fewer than 50 images are not
    divided: the train part is the test part too.
    """
    everything, labels = range(len(images)), images.labels.tolist()
    digests = (sha256(key.encode(errors="surrogateescape")).hexdigest() for key in images.keys)
    drawn = sorted((i for i, digest in enumerate(digests) if int(digest, 16) % 10 == 0), key=labels.__getitem__)
    size = min(len(drawn), LARGEST_TEST_PART)
    test = {drawn[k * len(drawn) // size] for k in range(size)}
    trained = {labels[i] for i in everything if i not in test}
    test -= {labels.index(label) for label in set(labels) - trained}
    if len(images) < FEWEST_TO_SPLIT or not test:
        say(f"{images.name}: too few images for a test part ({len(images)}); the train part is the test part too")
        return Split(images, images)
    return Split(images.take([i for i in everything if i not in test]), images.take(sorted(test)))


def name_classes(name: str, labels: Sequence[Any], class_names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (N,) int64 and class names, numbers where none are given; a single class counts as no classes."""
    try:
        numbers = [operator.index(label) for label in labels]
    except TypeError as error:
        raise DiffitError(f"{name}: a label is no whole number ({error}); give class numbers 0, 1, 2, ...") from error
    if not class_names and max(numbers) >= len(numbers):  # then some class below has no image
        hole = min(set(range(len(numbers))) - set(numbers))
        raise DiffitError(f"{name} has no image of class {hole}, '{hole}'; number the classes without holes")
    names = tuple(class_names) or tuple(map(str, range(max(numbers) + 1)))
    for label in (min(numbers), max(numbers)):
        check(0 <= label < len(names), f"{name} has the label {label}, but {len(names)} classes; number them from 0 on")
    if len(names) > 1:
        return torch.tensor(numbers), names
    if class_names:
        say(f"{name}: one class only, {names[0]!r}, which counts as no classes")
    return torch.tensor(numbers), ()


def by_part(images: ImageList, parts: Sequence[str]) -> Split[ImageList]:
    """The images of `train`, and those of `test` or else of the first other part; `split` draws one if none is told."""
    if len({*parts}) == 1:
        return split(images)
    test = "test" if "test" in parts else next(part for part in parts if part != "train")
    return Split(*[images.take([i for i, p in enumerate(parts) if p == part]) for part in ("train", test)])
