"""`look`: sizes and modes of images, and which are unreadable, found by opening some of them."""

import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median

import torch

from diffit_lib.data.preprocess import flatten, none_readable, to_picture
from diffit_lib.data.sources import ImageList
from diffit_lib.utils.errors import printable


@dataclass
class Inspection:
    """What the opened images are."""

    looked: int = 0  # how many were opened
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height), upright -> how many
    modes: Counter[str] = field(default_factory=Counter)  # Pillow's names -> how many
    unreadable: list[str] = field(default_factory=list)  # their keys
    grey: bool = True  # whether none has colour

    @property
    def side(self) -> float:
        """The median of the shorter sides, in pixels."""
        return median(min(size) for size in self.sizes.elements())


def look(*parts: ImageList, most: int | None = None, seconds: float = float("inf")) -> Inspection:
    """Decode at most `most` images of each part for about so many seconds, shared out by the parts' sizes.

    The order is random, and the same every time. Raises a DiffitError where no image of a part can be read.
    """
    found, total = Inspection(), sum(map(len, parts))
    for part in parts:
        start, before = time.monotonic(), found.sizes.total()
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
        for index in order[:most].tolist():
            found.looked += 1
            try:
                picture = to_picture(part.read(part.keys[index]))
                mode, flat = picture.mode, flatten(picture)  # decodes the whole file, which may be damaged at its end
            except Exception:  # a broken file may raise nearly anything
                found.unreadable.append(printable(part.keys[index]))
            else:
                found.sizes[flat.size] += 1
                found.modes[mode] += 1
                found.grey &= flat.mode == "L"
            if time.monotonic() - start > seconds * len(part) / total:
                break
        if found.sizes.total() == before:
            raise none_readable(part)
    return found
