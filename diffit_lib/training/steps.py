"""The steps of training: what a denoiser and an autoencoder minimise; the test loss, the statistics of latents."""

from itertools import chain
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from diffit_lib.config.experiment import TrainingConfig, VAEExperimentConfig
from diffit_lib.data.augment import augment
from diffit_lib.data.datasets import Images
from diffit_lib.data.latent_cache import source_of
from diffit_lib.data.stream import Batch
from diffit_lib.diffusion.denoiser import Preconditioned
from diffit_lib.diffusion.loss import denoising_loss
from diffit_lib.models.latent_space import PIXEL_SPACE, Space
from diffit_lib.models.vae import KLAutoencoder, PatchDiscriminator, Perceptual, hinge
from diffit_lib.training.module import RunModule
from diffit_lib.utils.distributed import mean_over_ranks, share_out
from diffit_lib.utils.tensors import SeededNoise, autocast, to_float

LARGEST_WEIGHT = 1e4  # of the adversarial term, relative to the rest
RAISED = 1024.0  # gradients are compared at this scale, where half precision does not underflow
LEVELS, IMAGES = 8, 256  # of the test loss


class DiffusionModule(RunModule):
    """A denoiser in training, on pixels or on the latents of an autoencoder."""

    model: Preconditioned

    def __init__(self, denoiser: Preconditioned, training: TrainingConfig, data: Images, space: Space = PIXEL_SPACE):
        network = cast(Any, denoiser.network)
        super().__init__(denoiser, training, data, network.config.shape)
        self.space, self.latent = space, space.latent
        self.some_idle = network.config.augment_dim > 0 and not training.augment
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
    """Denoising loss by noise level sigma, at 8 fixed quantiles of the training distribution, on up to 256 test images.

    They are spread evenly over the test part, because those of a folder are in order of class. Images and noise are the
    same at every call, so only the denoiser makes a difference. Processes share the levels.
    """
    device = next(denoiser.parameters()).device
    part = test.take(test.spread(IMAGES), test.name)
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


class AutoencoderModule(RunModule):
    """An autoencoder and its discriminator, trained by one optimizer.

    One backward pass serves both: the autoencoder's loss detaches the discriminator's parameters, the discriminator's
    loss detaches the reconstruction.
    """

    some_idle = True  # the discriminator before `disc_start`, or always

    def __init__(
        self,
        network: KLAutoencoder,
        experiment: VAEExperimentConfig,
        data: Images,
        perceptual: Perceptual | None = None,
    ):
        super().__init__(network, experiment.training, data, experiment.network.latent_shape)
        self.loss, self.perceptual = experiment.loss, perceptual
        self.discriminator = PatchDiscriminator(experiment.network.shape, self.loss.disc_width)
        self.discriminator.to(memory_format=torch.channels_last)

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """The autoencoder, the discriminator."""
        return [list(self.model.parameters()), list(self.discriminator.parameters())]

    @property
    def joined(self) -> bool:
        """Whether the discriminator takes part yet; before, it costs nothing."""
        return self.loss.disc_weight > 0 and self.images_seen >= self.loss.disc_start

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch: the sum of the autoencoder's and the discriminator's."""
        images = to_float(batch.images)
        reconstruction, moments = (tensor.float() for tensor in self.model(images, batch.noise))
        difference = F.l1_loss if self.loss.reconstruction == "l1" else F.mse_loss
        terms = {"reconstruction": difference(reconstruction, images), "kl": divergence(moments)}
        likeness = terms["reconstruction"]
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual.to(self.device)(images, reconstruction).mean()
            likeness = likeness + self.loss.perceptual_weight * terms["perceptual"]
        loss = likeness + self.loss.kl_weight * terms["kl"]
        if self.joined:
            frozen = {name: tensor.detach() for name, tensor in self.discriminator.named_parameters()}
            deceit = -functional_call(self.discriminator, frozen, reconstruction).float().mean()
            loss = loss + self.loss.disc_weight * self.adaptive_weight(likeness, deceit) * deceit
            real, fake = (self.discriminator(seen).float() for seen in (images, reconstruction.detach()))
            terms |= {"adversarial": deceit, "discriminator": hinge(real, fake)}
        elif self.loss.disc_weight:  # means are over all micro-batches
            terms |= {"adversarial": torch.zeros_like(loss), "discriminator": torch.zeros_like(loss)}
        self.count_terms(loss=loss, **terms)
        return loss + terms["discriminator"] if self.joined else loss

    def adaptive_weight(self, likeness: Tensor, deceit: Tensor) -> Tensor:
        """The weight that makes both gradients at the last layer equally long (Esser et al. 2021, equation 7)."""
        last = self.model.decoder.conv_out.weight
        lengths = [
            mean_over_ranks(torch.autograd.grad(RAISED * term, last, retain_graph=True)[0].float()).norm() / RAISED
            for term in (likeness, deceit)
        ]
        return (lengths[0] / (lengths[1] + 1e-6)).nan_to_num(0.0).clamp(0, LARGEST_WEIGHT).detach()


def divergence(moments: Tensor) -> Tensor:
    """KL divergence from the standard normal distribution in nats, a mean over all values of the latents."""
    mean, log_variance = moments.chunk(2, dim=1)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


@torch.no_grad()
def latent_statistics(
    network: KLAutoencoder, images: Images, most: int, device: torch.device, precision: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each latent channel over at most `most` images, which processes share."""

    def sums(indices: Tensor) -> Tensor:
        """Of values and of squares, and how many values there are: (3, z), float64."""
        found = torch.zeros(3, network.config.z_channels, dtype=torch.float64)
        for batch in indices.split(64):
            with autocast(device, precision):
                moments = network.encode(to_float(images.images[batch].to(device))).float()
            mean, log_variance = moments.chunk(2, dim=1)
            values = torch.stack([mean, mean.square() + log_variance.exp(), torch.ones_like(mean)])  # (3, B, z, h, w)
            found += values.sum(dim=(1, 3, 4)).double().cpu()
        return found

    total, squares, places = torch.stack(share_out(sums, images.spread(most))).sum(0)
    mean, square = total / places, squares / places
    return tuple(mean.tolist()), tuple((square - mean.square()).sqrt().tolist())
