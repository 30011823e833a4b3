"""`look`: what pictures are, found by opening some of them, evenly spread."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

import torch

from diffit_lib.data.preprocess import GREY_MODES, flatten, none_readable
from diffit_lib.data.sources import Parts, Pictures


@dataclass
class Inspection:
    """What the pictures are that were opened."""

    looked: int = 0  # how many of all
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height), upright -> how many
    modes: Counter[str] = field(default_factory=Counter)  # Pillow's names -> how many
    unreadable: list[str] = field(default_factory=list)  # their keys

    @property
    def side(self) -> float:
        """The median of the shorter sides, in pixels."""
        return median(min(size) for size in self.sizes.elements())

    @property
    def grey(self) -> bool:
        """Whether none has colour."""
        return set(self.modes) <= set(GREY_MODES)


def look(pictures: Pictures, most: int, seconds: float = float("inf")) -> Inspection:
    """Open at most so many pictures, for about so many seconds, each wholly: a file may be damaged at its end.

    Whenever it ends, those opened are about evenly spread. Raises a DiffitError where none of them can be read.
    """
    survey, start = Inspection(), time.monotonic()
    for key in scattered(pictures, most):
        survey.looked += 1
        try:
            picture = pictures.open(key)
            flatten(picture)
        except Exception:  # a broken file may raise nearly anything
            survey.unreadable.append(key)
        else:
            survey.sizes[picture.size] += 1
            survey.modes[picture.mode] += 1
        if time.monotonic() - start > seconds:
            break
    if not survey.sizes:
        raise none_readable(pictures)
    return survey


def inspect_all(parts: Parts, seconds: float) -> Inspection:
    """`look` at both parts, all of them as far as about so many seconds suffice; each gets its share of the time."""
    both = list(parts) if parts.test is not parts.train else [parts.train]
    total, survey = sum(map(len, both)), Inspection()
    for part in both:
        found = look(part, len(part), seconds * len(part) / total)
        survey.looked += found.looked
        survey.sizes += found.sizes
        survey.modes += found.modes
        survey.unreadable += found.unreadable
    return survey


def scattered(pictures: Pictures, most: int) -> Iterator[str]:
    """At most so many keys, in an order that is random, and the same every time."""
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    return (pictures.keys[index] for index in order[:most].tolist())
