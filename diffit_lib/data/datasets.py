"""Data sets of uint8 images, in memory or decoded when they are used."""

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from diffit_lib.config.experiment import BaseExperimentConfig
from diffit_lib.data.preprocess import (
    ToPixels,
    check_form,
    decode,
    decode_each,
    none_readable,
    report_skipped,
    to_pixels,
)
from diffit_lib.data.sources import ImageList, Split, list_images
from diffit_lib.utils.distributed import local_world_size
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import cache_folder, write_text
from diffit_lib.utils.logging import progress, say
from diffit_lib.utils.tensors import to_float, total_memory

WORTH_SAYING = 1_000_000  # bytes; smaller parts load without a message


@dataclass(frozen=True)
class LazyImages:
    """Stands in for a tensor (N, C, H, W): `lazy[indices]` decodes these images, uint8 (B, C, H, W)."""

    source: ImageList
    to_pixels: ToPixels
    image_shape: tuple[int, ...]  # (C, H, W), one for all

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return len(self), *self.image_shape

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, indices: Any) -> Tensor:
        source = self.source.take(torch.arange(len(self))[indices].tolist())
        threads = 1 if get_worker_info() else None  # a worker is one of several processes that read
        return torch.stack([pixels for _, pixels in decode_each(source, self.decode, threads=threads)])

    def identity(self) -> str:
        """A hash of the files' names, sizes and versions, of their labels, and of how they are prepared."""
        source = self.source
        assert source.state is not None
        digest = hashlib.sha256(f"{self.shape} {getattr(self.to_pixels, 'keywords', None)}".encode())
        for key, label in zip(source.keys, source.labels.tolist(), strict=True):
            digest.update(f"{key!r} {label} {source.state(key)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:32]

    def decode(self, key: str) -> Tensor:
        """One image's pixels, uint8 `image_shape`; a DiffitError where it has another shape."""
        pixels = decode(self.source, key, self.to_pixels)
        if pixels.shape != self.image_shape:
            raise DiffitError(
                f"{self.source.name}: {key} has (channels, height, width) {tuple(pixels.shape)}, the first image "
                f"{self.image_shape}; give image_size and in_channels, to make all alike"
            )
        return pixels


@dataclass(frozen=True)
class Images:
    """Images of one size."""

    name: str
    images: Any  # uint8 (N, C, H, W): a Tensor, or LazyImages
    labels: Tensor  # (N,) int64; all 0 where there are no classes
    class_names: tuple[str, ...]  # empty where there are no classes

    run = 1  # neighbours that are read together, which is faster on a disk

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices: list[int], mirrored: list[bool]) -> Tensor:
        """The images at these indices, uint8 (B, C, H, W), some of them mirrored left to right."""
        rows, flips = torch.tensor(indices), torch.tensor(mirrored).nonzero().flatten()
        images = self.images.index_select(0, rows) if isinstance(self.images, Tensor) else self.images[rows]
        return images.index_copy_(0, flips, images.index_select(0, flips).flip(-1))

    def take(self, indices: Tensor, name: str) -> "Images":
        """The images at these indices, in memory, under another name."""
        return replace(self, name=name, images=self.images[indices], labels=self.labels[indices])

    def held(self, most: int) -> "Images":
        """These images if they are in memory; otherwise at most `most` of them, evenly spread, loaded into memory."""
        if isinstance(self.images, Tensor):
            return self
        return self.take(self.spread(most), self.name)

    def spread(self, most: int) -> Tensor:
        """The indices of at most `most` of these images, evenly spread."""
        count = min(most, len(self))
        return torch.arange(count) * len(self) // count

    def fingerprint(self) -> str:
        """A hash of shape, pixels and labels, 16 hexadecimal digits: the same in memory and decoded when used."""
        return self._known[0]

    def standard_deviation(self) -> float:
        """sigma_data: standard deviation of all values, in units of [-1, 1]; a DiffitError if it is 0."""
        counts = self._known[1]
        if (counts > 0).sum() < 2:
            raise DiffitError(f"{self.name} is of one brightness all over; give sigma_data, or other images")
        share, values = counts.double() / counts.sum(), to_float(torch.arange(256)).double()
        return float((share * (values - (share * values).sum()).square()).sum().sqrt())

    @cached_property
    def _known(self) -> tuple[str, Tensor]:
        """The fingerprint, and how often each value occurs, (256,); kept on disk for images decoded when used."""
        if not isinstance(self.images, LazyImages) or self.images.source.state is None:
            return self._look()
        path = cache_folder() / "fingerprints" / f"{self.images.identity()}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(path.read_text())
            return str(known["fingerprint"]), torch.tensor(known["counts"], dtype=torch.int64)
        fingerprint, counts = self._look()
        with suppress(OSError):
            write_text(path, json.dumps({"fingerprint": fingerprint, "counts": counts.tolist()}))
        return fingerprint, counts

    def _look(self) -> tuple[str, Tensor]:
        """One pass over all images."""
        digest, counts = hashlib.sha256(str(tuple(self.images.shape)).encode()), torch.zeros(256, dtype=torch.int64)
        chunks = torch.arange(len(self)).split(256)
        for rows in progress(chunks, f"looking at {self.name}", delay=3):
            images = self.images[rows].contiguous()
            digest.update(images.numpy().data)
            counts += images.flatten().bincount(minlength=256)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()[:16], counts


def load_data(
    source: str | Path | Dataset,
    image_size: tuple[int, int] | None = None,
    in_channels: int | None = None,
    *,
    crop: str = "center",
    skip_bad: bool = False,
    memory_gb: float | None = None,
) -> Split[Images]:
    """Load the train and test part of a data set by name, a folder or zip, or a map-style Dataset of (image, label).

    All images become `image_size` (height, width) and `in_channels` (1 or 3); with None they keep their own, which must
    be the same for all. `crop` is "center" (the largest box of that shape), "long-edge" (the whole image, on black) or
    "adm" (the usual one for ImageNet). An unreadable image is an error, or with `skip_bad` left out and counted.
    A part of more than `memory_gb` is not held in memory: its images are decoded when they are used, as by training's
    workers. The default is half of the machine's or container's memory, divided by the number of processes.
    """
    check_form(crop, image_size)
    check(in_channels in (None, 1, 3), f"in_channels is {in_channels!r}; give 1 (grey) or 3 (RGB)")
    listed = list_images(source, image_size, skip_bad=skip_bad)
    check_classes(listed.train)
    make = partial(to_pixels, image_size=image_size, in_channels=in_channels, crop=crop)
    shape = first_shape(listed.train, make, skip_bad=skip_bad)
    memory = total_memory() / 2 / local_world_size() if memory_gb is None else memory_gb * 1e9
    train, *test = (
        load_part(LazyImages(part, make, shape), name, skip_bad=skip_bad, memory=memory)
        for part, name in zip(listed.distinct, ("train", "test"), strict=False)
    )
    check_classes(train)
    return Split(train, *test or [train])


def experiment_data(
    experiment: BaseExperimentConfig,
    source: str | Path | Dataset | None = None,
    image_shape: tuple[int, ...] | None = None,
) -> Split[Images]:
    """Load the data an experiment trains on, or another `source` prepared in the same way.

    `image_shape` is (C, H, W) of the images, by default what the network takes.
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


def first_shape(source: ImageList, make: ToPixels, *, skip_bad: bool = False) -> tuple[int, ...]:
    """(C, H, W) of the first image, or with `skip_bad` of the first that can be read."""
    for _, pixels in decode_each(source, partial(decode, source, to_pixels=make), skip_bad=skip_bad, threads=1):
        return tuple(pixels.shape)
    raise none_readable(source)


def load_part(lazy: LazyImages, part: str, *, skip_bad: bool, memory: float) -> Images:
    """Decode the images into memory; where they take more than `memory` bytes, they are decoded when they are used."""
    source, fits = lazy.source, math.prod(lazy.shape) <= memory
    images: Tensor | LazyImages = lazy
    if source.pixels is not None and source.pixels.shape == lazy.shape:
        images = source.pixels
    elif fits or skip_bad:
        held = torch.empty(lazy.shape, dtype=torch.uint8) if fits else None
        kept: list[int] = []
        each = decode_each(source, lazy.decode, skip_bad=skip_bad)
        for index, pixels in progress(each, source.name, len(source), unit=" images", delay=3):
            if held is not None:
                held[len(kept)] = pixels
            kept.append(index)
        report_skipped(source, kept)
        source = source.take(kept)
        images = replace(lazy, source=source) if held is None else held[: len(kept)]
    size, in_memory = math.prod(images.shape), isinstance(images, Tensor)
    if size >= WORTH_SAYING or not in_memory:
        where = "in memory" if in_memory else f"exceed memory_gb={memory / 1e9:.3g}, decoded when used"
        say(f"{source.name}/{part}: {len(source):,} images, {size / 1e6:,.1f} MB {where}")
    return Images(f"{source.name}/{part}", images, source.labels, source.class_names)


def check_classes(data: ImageList | Images) -> None:
    """Refuse data that lack images of some class: a network could not learn it."""
    counts = data.labels.bincount(minlength=len(data.class_names)).tolist()
    if 0 in counts:
        hole = counts.index(0)
        name = data.class_names[hole]
        raise DiffitError(f"{data.name} has no image of class {hole}, {name!r}; number the classes without holes")
