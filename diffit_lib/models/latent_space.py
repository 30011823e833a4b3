"""The space in which diffusion works: pixels, or the latents of an autoencoder.

An encoder outputs moments (B, 2z, h, w): mean and log-variance of a normal distribution of latents. Latents are
normalised per channel by the training set's mean and standard deviation, or by the scale of a published autoencoder.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.logging import say
from diffit_lib.utils.tensors import digest, to_float


class PixelSpace:
    """Diffusion on pixels."""

    latent, checksum = False, ""

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """uint8 (B, C, H, W) -> float32 in [-1, 1]."""
        return to_float(images)

    def decode(self, x: Tensor) -> Tensor:
        """x itself, about [-1, 1]."""
        return x

    def to(self, device: torch.device) -> Self:
        """The space itself: it has no tensors."""
        return self


PIXEL_SPACE = PixelSpace()


class LatentSpace:
    """Diffusion on latents of a frozen autoencoder; not a module, so optimizers and checkpoints do not include it.

    `mean` and `std` (z,) normalise the latents. `checksum` identifies the weights and these two.
    """

    latent = True

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor):
        self.network: Any = network.eval().requires_grad_(False)
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        self.fits = 64  # images per forward pass; lowered when the device runs out of memory
        self.checksum = digest({**network.state_dict(), "mean": mean, "std": std})

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> mean and log-variance of the latents, float32 (B, 2z, h, w)."""
        images = images.to(self.mean.device)
        with torch.autocast(images.device.type, enabled=False):
            return self.in_slices(lambda part: self.network.encode(to_float(part)), images, on_cpu=8)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """uint8 images or moments -> normalised latents, float32 (B, z, h, w): the mean, or a sample given `noise`."""
        moments = images if images.is_floating_point() else self.moments(images)
        mean, log_variance = moments.to(self.mean.device).float().chunk(2, dim=1)
        if noise is not None:
            mean = mean + (0.5 * log_variance).exp() * noise
        return (mean - self.mean) / self.std

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Normalised latents (B, z, h, w), any float dtype -> images, float32 (B, C, H, W), about [-1, 1].

        A CPU decodes them one by one, so that an image does not depend on the others in its batch.
        """
        latents = x.to(self.mean.device).float() * self.std + self.mean
        with torch.autocast(latents.device.type, enabled=False):
            return self.in_slices(self.network.decode, latents, on_cpu=1)

    def in_slices(self, function: Callable[[Tensor], Tensor], batch: Tensor, on_cpu: int) -> Tensor:
        """Apply `function` slice by slice; halve the slices when the device runs out of memory."""
        done: list[Tensor] = []
        while (first := sum(map(len, done))) < len(batch):
            size = min(self.fits, on_cpu if batch.device.type == "cpu" else len(batch))
            try:
                done.append(function(batch[first : first + size]))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise DiffitError("one image alone exceeds the device's memory; take smaller ones") from None
                self.fits = size // 2
                torch.cuda.empty_cache()
                say(f"the autoencoder runs on {self.fits} images at once, which is what fits the device's memory")
        return torch.cat(done)

    def to(self, device: torch.device) -> Self:
        """Move the autoencoder to this device and return the space."""
        self.network.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self


class LazyLatentSpace(LatentSpace):
    """A latent space that `fetch` loads when an attribute of it is first read."""

    def __init__(self, fetch: Callable[[], LatentSpace]):
        self.fetch, self.device = fetch, torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        if name not in ("network", "mean", "std", "fits", "checksum"):
            raise AttributeError(name)
        vars(self).update(vars(self.fetch().to(self.device)))
        return vars(self)[name]

    def to(self, device: torch.device) -> Self:
        """Move the autoencoder to this device, now or once it is loaded, and return the space."""
        self.device = device
        return super().to(device) if "network" in vars(self) else self


Space = PixelSpace | LatentSpace
