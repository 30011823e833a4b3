"""How images get in: data sets held as uint8 tensors, and the endless stream that training reads.

The stream is a pure function of (seed, global image number): which image, mirrored or not, its noise level, its noise,
whether its label is dropped. So a resumed run, another number of workers or of processes sees the same numbers.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from diffit_lib.config import Training
from diffit_lib.errors import DiffitError
from diffit_lib.tensors import seeded_generator, to_float


@dataclass(frozen=True)
class Images:
    """Images of one size in memory."""

    name: str
    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64; all 0 where there are no classes
    class_names: tuple[str, ...]  # empty where there are no classes

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor, name: str) -> "Images":
        """The images at these indices, under another name."""
        return replace(self, name=name, images=self.images[indices], labels=self.labels[indices])

    def fingerprint(self) -> str:
        """What tells these images from any others: 16 hexadecimal digits over shape, pixels and labels."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def standard_deviation(self) -> float:
        """sigma_data: root mean square deviation from the mean over all values, in units of [-1, 1]."""
        return float(to_float(self.images).double().std(correction=0))


class Split(NamedTuple):
    """The two parts of a data set."""

    train: Images
    test: Images


def digits() -> Split:
    """scikit-learn's 1797 real handwritten digits, 8x8 grey scans: 1437 train and 360 test, stratified by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)  # pixels 0..16
    images = torch.from_numpy(np.round(pixels * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    everything = Images("digits", images, torch.from_numpy(labels).long(), tuple("0123456789"))
    train, test = train_test_split(np.arange(len(images)), test_size=360, stratify=labels, random_state=0)
    return Split(
        everything.take(torch.from_numpy(train).sort().values, "digits/train"),
        everything.take(torch.from_numpy(test).sort().values, "digits/test"),
    )


DATASETS = {"digits": digits}


def load_data(name: str) -> Split:
    """A data set by name, split into train and test part."""
    if name not in DATASETS:
        raise DiffitError(f"unknown data {name!r}; the data sets are {', '.join(DATASETS)}")
    return DATASETS[name]()


class Batch(NamedTuple):
    """One micro-batch of one process, drawn on the CPU."""

    images: Tensor  # (B, C, H, W) uint8
    labels: Tensor  # (B,) int64; dropped ones are "no class"
    uniform: Tensor  # (B,) float32 in [0, 1): becomes the noise level
    noise: Tensor  # (B, C, H, W) float32


class TrainingStream(IterableDataset[Batch]):
    """Endless micro-batches from optimizer step `start` on, for process `rank` of `world`."""

    def __init__(self, data: Images, training: Training, *, start: int = 0, rank: int = 0, world: int = 1):
        self.data, self.training = data, training
        self.rank, self.world = rank, world
        self.first = start * training.accumulate
        self.micro_batch = training.batch_size // training.accumulate
        if self.micro_batch % world:
            raise DiffitError(
                f"batch_size {training.batch_size} in {training.accumulate} parts does not split over {world} "
                f"processes; give a multiple of {training.accumulate * world}"
            )

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in count(self.first + offset, stride):
            yield self.batch(number)

    def batch(self, number: int) -> Batch:
        """This process's share of micro-batch `number`."""
        share = self.micro_batch // self.world
        first = number * self.micro_batch + self.rank * share
        rows = [self._draw(n) for n in range(first, first + share)]
        index, flip, drop, uniform, noise = zip(*rows, strict=True)
        images = self.data.images[list(index)]
        images = torch.where(torch.tensor(flip).view(-1, 1, 1, 1), images.flip(-1), images)
        labels = self.data.labels[list(index)].masked_fill(torch.tensor(drop), len(self.data.class_names))
        return Batch(images, labels, torch.tensor(uniform), torch.stack(noise))

    def _draw(self, number: int) -> tuple[int, bool, bool, float, Tensor]:
        """Everything random about global image `number`."""
        epoch, position = divmod(number, len(self.data))
        generator = seeded_generator(self.training.seed, "training", number)
        uniform, flip, drop = torch.rand(3, generator=generator).tolist()
        noise = torch.randn(self.data.images.shape[1:], generator=generator)
        index = _permutation(self.training.seed, epoch, len(self.data))[position]
        return index, self.training.flip and flip < 0.5, drop < self.training.label_dropout, uniform, noise


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, length: int) -> list[int]:
    """The order of one pass over the data."""
    return torch.randperm(length, generator=seeded_generator(seed, "order", epoch)).tolist()
