"""Training a denoiser: the loss of one step, and the test loss by noise level."""

from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor

from diffit_lib.config.training import TrainingConfig
from diffit_lib.data.augment import augment
from diffit_lib.data.datasets import Images
from diffit_lib.data.latent_cache import source_of
from diffit_lib.data.stream import Batch
from diffit_lib.diffusion.denoiser import Preconditioned
from diffit_lib.diffusion.loss import denoising_loss
from diffit_lib.models.latent_space import PIXEL_SPACE, Space
from diffit_lib.training.module import RunModule
from diffit_lib.utils.distributed import share_out
from diffit_lib.utils.tensors import SeededNoise, autocast

LEVELS, IMAGES = 8, 256  # of the test loss


class DiffusionModule(RunModule):
    """A denoiser in training, on pixels or on the latents of an autoencoder."""

    model: Preconditioned

    def __init__(self, denoiser: Preconditioned, training: TrainingConfig, data: Images, space: Space = PIXEL_SPACE):
        network = cast(Any, denoiser.network)
        super().__init__(denoiser, training, data, network.config.shape)
        self.space, self.latent = space, space.latent
        self.some_idle = network.config.augment_dim > 0 and not training.augment
        if space.latent:
            self.fingerprint = source_of(space, data)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Draw the noise levels on the CPU, beside the noise: not every device has the functions that it takes."""
        return batch._replace(sigma=self.model.draw_sigma(batch.uniform))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch."""
        clean, augment_label = self.space.encode(batch.images, batch.posterior), None
        if self.options.augment:
            with torch.autocast(self.device.type, enabled=False):  # half a pixel matters
                clean, augment_label = augment(clean, batch.augmentation)
        loss = denoising_loss(self.model, clean, batch.sigma, batch.noise, batch.labels, augment_label).mean()
        self.count_terms(loss=loss)
        return loss * clean[0].numel() if self.options.loss_reduction == "sum" else loss


@torch.no_grad()
def loss_by_level(
    denoiser: Preconditioned, test: Images, precision: str, space: Space = PIXEL_SPACE
) -> dict[float, float]:
    """Denoising loss on up to 256 test images by noise level sigma, at 8 fixed quantiles of the training distribution.

    Images and noise are the same at every call, so only the denoiser makes a difference. Processes share the levels.
    """
    device = next(denoiser.parameters()).device
    part = test.take(torch.arange(min(IMAGES, len(test))), test.name)
    clean = space.encode(part.images.to(device))
    noise = SeededNoise(range(len(part)), clean.shape[1:])().to(device)
    label = part.labels.to(device)

    def losses(quantiles: Tensor) -> list[tuple[float, float]]:
        """Noise level and loss at each quantile."""
        found = []
        for quantile in quantiles:
            sigma = denoiser.draw_sigma(quantile.expand(len(part))).to(device)
            with autocast(device, precision):
                loss = denoising_loss(denoiser, clean, sigma, noise, label).mean()
            found.append((float(sigma[0]), float(loss)))
        return found

    return dict(chain(*share_out(losses, (torch.arange(LEVELS) + 0.5) / LEVELS)))
