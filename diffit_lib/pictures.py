"""Pictures that are not opened yet: what names each, its class, and whether it is there to train or to test."""

import logging
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from diffit_lib.errors import DiffitError

FEWEST_TO_SPLIT, LARGEST_TEST_PART = 50, 10_000


LOG = logging.getLogger("diffit")  # what a run's log.txt is made of
LOG.setLevel(logging.INFO)
LOG.propagate = False
LOG.addHandler(logging.NullHandler())


def say(line: str) -> None:
    """Tell the user something on standard error, for what tasks print on standard output may go to a program."""
    print(line, file=sys.stderr)
    LOG.info(line)


@dataclass(frozen=True)
class Pictures:
    """Pictures and their classes; `open` gives them as they are, upright, of any mode and size."""

    name: str
    keys: Sequence[str]  # what names each: its path below a folder or in a zip, its number in a Dataset
    open: Callable[[str], Image.Image]  # by key
    labels: Tensor  # (N,) int64; all 0 where there are no classes
    class_names: tuple[str, ...]  # empty where there are no classes
    pixels: Tensor | None = None  # uint8 (N, C, H, W), where they are in memory already
    threads: int = 1  # how many may open pictures at once

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, indices: Sequence[int]) -> "Pictures":
        """The pictures at these indices."""
        rows = torch.tensor(indices, dtype=torch.int64)
        pixels = None if self.pixels is None else self.pixels[rows]
        return replace(self, keys=[self.keys[i] for i in indices], labels=self.labels[rows], pixels=pixels)


class Parts(NamedTuple):
    """The two parts of a data set."""

    train: Pictures
    test: Pictures


def split(pictures: Pictures) -> Parts:
    """Draw a test part: every picture whose key has a SHA-256 divisible by ten, whatever other pictures there are.

    At most 10,000 are taken, in the shares of their classes, and never all of a class. Fewer than 50 pictures are not
    divided: the train part is the test part too.
    """
    everything, labels = range(len(pictures)), pictures.labels.tolist()
    drawn = [i for i in everything if int.from_bytes(sha256(pictures.keys[i].encode()).digest(), "big") % 10 == 0]
    drawn.sort(key=lambda i: labels[i])
    size = min(len(drawn), LARGEST_TEST_PART)
    test = {drawn[k * len(drawn) // size] for k in range(size)}
    trained = {labels[i] for i in everything if i not in test}
    test -= {labels.index(label) for label in set(labels) - trained}
    if len(pictures) < FEWEST_TO_SPLIT or not test:
        say(f"{pictures.name}: too few images for a test part ({len(pictures)}); the train part is the test part too")
        return Parts(pictures, pictures)
    return Parts(pictures.take([i for i in everything if i not in test]), pictures.take(sorted(test)))


def name_classes(name: str, labels: Sequence[Any], class_names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (N,) int64 and class names, which are numbers where none are given; one class alone counts as none."""
    try:
        numbers = [operator.index(label) for label in labels]
    except TypeError as error:
        raise DiffitError(f"{name}: a label is no whole number ({error}); give class numbers 0, 1, 2, ...") from error
    if not class_names and max(numbers) >= len(numbers):  # then some class below has no image
        hole = min(set(range(len(numbers))) - set(numbers))
        raise DiffitError(f"{name} has no image of class {hole}, '{hole}'; number the classes without holes")
    names = tuple(class_names) or tuple(map(str, range(max(numbers) + 1)))
    for label in (min(numbers), max(numbers)):
        if not 0 <= label < len(names):
            raise DiffitError(f"{name} has the label {label}, but {len(names)} classes; number them from 0 on")
    if len(names) > 1:
        return torch.tensor(numbers), names
    if class_names:
        say(f"{name}: one class only, {names[0]!r}, which counts as no classes")
    return torch.tensor(numbers), ()
