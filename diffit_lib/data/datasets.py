"""How images get in: data sets as uint8 tensors, and the endless stream that training reads.

The stream is a pure function of (seed, global image number): which image, mirrored or not, its noise level, its noise,
whether its label is dropped. So a resumed run, another number of workers or of processes sees the same numbers.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffit_lib.config.experiment import BaseExperimentConfig
from diffit_lib.data.preprocess import Decoder, check_crop, first_shape, to_pixels
from diffit_lib.data.sources import Pictures, find_pictures
from diffit_lib.utils.distributed import local_world_size
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.logging import say
from diffit_lib.utils.tensors import to_float

WORTH_SAYING = 1_000_000  # bytes, below which a part's size is not told


@dataclass(frozen=True)
class Images:
    """Images of one size."""

    name: str
    images: Any  # uint8 (N, C, H, W): a Tensor, or a Decoder, which has `shape`, length and `[indices]` like one
    labels: Tensor  # (N,) int64; all 0 where there are no classes
    class_names: tuple[str, ...]  # empty where there are no classes

    run = 1  # neighbours that are read together, for a disk's sake

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices: list[int], mirrored: list[bool]) -> Tensor:
        """The images at these indices as they lie, (B, C, H, W), some of them mirrored left to right."""
        images = self.images[indices]
        return torch.where(torch.tensor(mirrored).view(-1, 1, 1, 1), images.flip(-1), images)

    def take(self, indices: Tensor, name: str) -> "Images":
        """The images at these indices, in memory, under another name."""
        return replace(self, name=name, images=self.images[indices], labels=self.labels[indices])

    def held(self, most: int) -> "Images":
        """These, if they are in memory; else at most so many, evenly spread, fetched into it."""
        if isinstance(self.images, Tensor):
            return self
        count = min(most, len(self))
        return self.take(torch.arange(count) * len(self) // count, self.name)

    def fingerprint(self) -> str:
        """What tells these images from any others: 16 hexadecimal digits over shape, pixels and labels.

        Of images not in memory 1,000 are looked at.
        """
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for images in self._sample(1_000):
            digest.update(images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def standard_deviation(self) -> float:
        """sigma_data: root mean square deviation from the mean over all values, in units of [-1, 1].

        Of images not in memory 10,000 are looked at; where all values are the same, that is an error.
        """
        counts = torch.stack([images.flatten().bincount(minlength=256) for images in self._sample(10_000)]).sum(0)
        if (counts > 0).sum() < 2:
            raise DiffitError(f"{self.name} is of one brightness all over; give sigma_data, or other images")
        share, values = counts.double() / counts.sum(), to_float(torch.arange(256)).double()
        return float((share * (values - (share * values).sum()).square()).sum().sqrt())

    def _sample(self, most: int) -> Iterator[Tensor]:
        """In chunks: all images in memory, or at most so many, evenly spread, of those that are not."""
        step = 1 if isinstance(self.images, Tensor) else math.ceil(len(self) / most)
        for indices in torch.arange(0, len(self), step).split(256):
            yield self.images[indices]


class Split(NamedTuple):
    """The two parts of a data set."""

    train: Images
    test: Images


def load_data(
    source: str | Path | Dataset,
    image_size: tuple[int, int] | None = None,
    in_channels: int | None = None,
    *,
    crop: str = "center",
    skip_bad: bool = False,
    memory_gb: float | None = None,
) -> Split:
    """A data set by name, a folder or zip by path, or a map-style Dataset of (image, label), in train and test part.

    All images are made `image_size` (height, width) and `in_channels` (1 or 3); None keeps their own, which must then
    be one for all. `crop` is "center" (the largest box of that shape), "long-edge" (all of the image, on black) or
    "adm" (the usual one for ImageNet). An image that cannot be read is an error, or left out and counted by `skip_bad`.
    A part larger than `memory_gb`, half of the machine's memory unless given (each process's share of it, where there
    are several), is not held in memory: whoever reads an image, as training's workers do, decodes it.
    """
    if source == "":
        raise DiffitError("no data are named; give a data set by name, or the path of a folder or zip")
    check_crop(crop)
    if in_channels not in (None, 1, 3):
        raise DiffitError(f"in_channels is {in_channels!r}; give 1 (grey) or 3 (RGB)")
    parts = find_pictures(source, image_size, skip_bad=skip_bad)
    check_classes(parts.train)
    form = partial(to_pixels, image_size=image_size, in_channels=in_channels, crop=crop)
    shape = first_shape(parts.train, form, skip_bad=skip_bad)
    most = half_of_memory() / local_world_size() if memory_gb is None else memory_gb * 1e9
    train = read_part(Decoder(parts.train, form, shape), "train", skip_bad, most)
    check_classes(train)
    test = train if parts.test is parts.train else read_part(Decoder(parts.test, form, shape), "test", skip_bad, most)
    return Split(train, test)


def experiment_data(
    experiment: BaseExperimentConfig,
    source: str | Path | Dataset | None = None,
    image_shape: tuple[int, ...] | None = None,
) -> Split:
    """The data a recipe trains on, or another source of images prepared in the same way.

    `image_shape` is their (C, H, W), that of what the network sees unless given.
    """
    channels, *size = image_shape or experiment.network.shape
    return load_data(
        experiment.data if source is None else source,
        (size[0], size[1]),
        channels,
        crop=experiment.crop,
        skip_bad=experiment.skip_bad,
        memory_gb=experiment.training.memory_gb,
    )


def read_part(decoder: Decoder, part: str, skip_bad: bool, most_bytes: float) -> Images:
    """A decoder's images, in memory unless they take more bytes than these."""
    pictures, fits = decoder.pictures, math.prod(decoder.shape) <= most_bytes
    images: Tensor | Decoder = decoder
    if pictures.pixels is not None and pictures.pixels.shape == decoder.shape:
        images = pictures.pixels
    elif fits or skip_bad:
        out = torch.empty(decoder.shape, dtype=torch.uint8) if fits else None
        pictures = pictures.take(decoder.decode_all(out, skip_bad=skip_bad))
        images = replace(decoder, pictures=pictures) if out is None else out[: len(pictures)]
    held, size = "in memory", math.prod(images.shape)
    if not isinstance(images, Tensor):
        held = f"exceed memory_gb={most_bytes / 1e9:.3g}, decoded when used"
    if size >= WORTH_SAYING or not isinstance(images, Tensor):
        say(f"{pictures.name}/{part}: {len(pictures):,} images, {size / 1e6:,.1f} MB {held}")
    return Images(f"{pictures.name}/{part}", images, pictures.labels, pictures.class_names)


def check_classes(data: Pictures | Images) -> None:
    """Refuse data without an image of some class, which a network could not learn."""
    images_of = data.labels.bincount(minlength=len(data.class_names)).tolist()
    if 0 in images_of:
        hole = images_of.index(0)
        name = data.class_names[hole]
        raise DiffitError(f"{data.name} has no image of class {hole}, {name!r}; number the classes without holes")


def half_of_memory() -> float:
    """Half of the machine's memory in bytes."""
    if not hasattr(os, "sysconf"):  # Windows
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def digits() -> Split:
    """The data set that needs no download, as it is: 8x8, grey."""
    return load_data("digits")
