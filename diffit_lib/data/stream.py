"""An endless stream of training batches.

Everything about an image is a function of the seed and its number in the run: which image, mirrored or not, its noise
level, its noise, whether its label is dropped. So resuming, or other numbers of workers and processes, change nothing.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from diffit_lib.config.experiment import TrainingConfig
from diffit_lib.data.augment import draw_augmentation
from diffit_lib.data.datasets import Images
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import seeded_generator

WINDOW = 65_536  # images shuffled at once where neighbours are read together: as many as memory has to hold


class Batch(NamedTuple):
    """One micro-batch of one process, on the CPU."""

    images: Tensor  # (B, C, H, W) uint8, or cached moments of latents
    labels: Tensor  # (B,) int64; a dropped one is the number of classes
    uniform: Tensor  # (B,) float32 in [0, 1): becomes the noise level
    noise: Tensor  # (B, C, H, W) float32, in the shape of the diffusion state
    augmentation: Tensor  # (B, 8) float32 for `augment`; zeros change nothing
    posterior: Tensor  # like noise: draws a latent from its distribution; (B, 0) for pixels
    sigma: Tensor = torch.zeros(0)  # (B,) noise levels, which the module sets before the batch goes to its device


class TrainingStream(IterableDataset[Batch]):
    """Endless micro-batches from optimizer step `start` on, for process `rank` of `world`.

    `state_shape` is (C, H, W) of one image's noise, by default the image's own.
    """

    def __init__(
        self,
        data: Images,
        training: TrainingConfig,
        state_shape: tuple[int, ...] | None = None,
        *,
        latent: bool = False,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        self.data, self.training, self.latent = data, training, latent
        self.state_shape = state_shape or tuple(data.images.shape[1:])
        self.rank, self.world = rank, world
        self.first = start * training.accumulate
        self.micro_batch = training.micro_batch
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
        """This process's part of micro-batch `number`."""
        share, length = self.micro_batch // self.world, len(self.data)
        first = number * self.micro_batch + self.rank * share
        numbers = range(first, first + share)
        epochs = {n // length for n in numbers}
        orders = {epoch: _permutation(self.training.seed, epoch, length, self.data.run) for epoch in epochs}
        index = [orders[n // length][n % length] for n in numbers]
        noise, augmentation = torch.empty(share, *self.state_shape), torch.zeros(share, 8)
        posterior = torch.empty(share, *(self.state_shape if self.latent else [0]))
        rows = map(self._draw, numbers, noise, augmentation, posterior)
        mirrored, dropped, uniform = map(list, zip(*rows, strict=True))
        images = self.data.fetch(index, mirrored)
        labels = self.data.labels[index].masked_fill(torch.tensor(dropped), len(self.data.class_names))
        return Batch(images, labels, torch.tensor(uniform), noise, augmentation, posterior)

    def _draw(self, number: int, noise: Tensor, augmentation: Tensor, posterior: Tensor) -> tuple[bool, bool, float]:
        """All that is random about image `number` but its place: three tensors are filled."""
        generator = seeded_generator(self.training.seed, "training", number)
        uniform, flip, drop = torch.rand(3, generator=generator).tolist()
        noise.normal_(generator=generator)
        if self.training.augment:
            augmentation.copy_(draw_augmentation(generator, self.training.augment))
        if self.latent:
            posterior.normal_(generator=generator)
        return self.training.flip and flip < 0.5, drop < self.training.label_dropout, uniform


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, length: int, run: int = 1) -> list[int]:
    """The order of one pass over the data; large data are shuffled by runs of neighbours, then within windows."""
    generator = seeded_generator(seed, "order", epoch)
    if run == 1 or length <= WINDOW:
        return torch.randperm(length, generator=generator).tolist()
    runs = torch.arange(length).split(run)
    order = torch.cat([runs[number] for number in torch.randperm(len(runs), generator=generator)])
    return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in order.split(WINDOW)]).tolist()
