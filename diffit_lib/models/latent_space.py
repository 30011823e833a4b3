"""The way from pictures to the space diffusion works in, and back: pixels as they are, or latents of an autoencoder.

Moments are what an autoencoder's encoder answers, (B, 2z, h, w): mean and log-variance of a normal distribution.
Latents are drawn from it and normalised by the mean and standard deviation of each channel over the training set
(a published autoencoder keeps the scale it was published with), so that diffusion sees unit variance.
"""

from collections.abc import Callable
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.logging import say
from diffit_lib.utils.tensors import digest, to_float


class Space(Protocol):
    """Between uint8 pictures and the clean state of diffusion."""

    latent: bool  # whether a picture is a distribution of states, from which noise draws one

    @property
    def checksum(self) -> str:
        """Names these very weights; "" for pixels."""
        ...

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """uint8 (B, C, H, W), or cached moments -> the state diffusion learns, float32; its mean without `noise`."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """A clean state -> images, float (B, C, H, W), about [-1, 1]."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same, on this device."""
        ...


class PixelSpace:
    """Diffusion on the pixels themselves."""

    latent, checksum = False, ""

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """uint8 -> float32 in [-1, 1]."""
        return to_float(images)

    def decode(self, x: Tensor) -> Tensor:
        """Nothing to do."""
        return x

    def to(self, device: torch.device) -> Self:
        """Nothing to do."""
        return self


PIXEL_SPACE = PixelSpace()


class LatentSpace:
    """Diffusion on the latents of a frozen autoencoder; no module, so that no optimizer or average sees it."""

    latent = True

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor):
        self.network: Any = network.eval().requires_grad_(False)
        self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
        self.fits = 64  # images that go through the network at once; fewer once that exceeded the device's memory
        self.checksum = digest({**network.state_dict(), "mean": mean, "std": std})

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> float32 (B, 2z, h, w): mean and log-variance of their latents."""
        images = images.to(self.mean.device)
        with torch.autocast(images.device.type, enabled=False):
            return self.in_slices(lambda part: self.network.encode(to_float(part)), images, on_cpu=8)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """uint8 images, or their moments -> normalised latents (B, z, h, w), float32."""
        moments = images if images.is_floating_point() else self.moments(images)
        mean, log_variance = moments.to(self.mean.device).float().chunk(2, dim=1)
        if noise is not None:
            mean = mean + (0.5 * log_variance).exp() * noise
        return (mean - self.mean) / self.std

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Normalised latents (B, z, h, w), any float dtype -> images, float32 (B, C, H, W).

        On a CPU one by one, so that an image does not depend on its neighbours; else as many at once as fit.
        """
        latents = x.to(self.mean.device).float() * self.std + self.mean
        with torch.autocast(latents.device.type, enabled=False):
            return self.in_slices(self.network.decode, latents, on_cpu=1)

    def in_slices(self, function: Callable[[Tensor], Tensor], batch: Tensor, on_cpu: int) -> Tensor:
        """`function` of a batch, slice by slice; where one exceeds the device's memory, ever smaller ones."""
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
        """The same, on this device."""
        self.network.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self


class LazyLatentSpace(LatentSpace):
    """A latent space whose autoencoder is fetched when it is first used."""

    def __init__(self, fetch: Callable[[], LatentSpace]):
        self.fetch, self.device = fetch, torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        if name not in ("network", "mean", "std", "fits", "checksum"):
            raise AttributeError(name)
        vars(self).update(vars(self.fetch().to(self.device)))
        return vars(self)[name]

    def to(self, device: torch.device) -> Self:
        """The same, on this device."""
        self.device = device
        return super().to(device) if "network" in vars(self) else self
