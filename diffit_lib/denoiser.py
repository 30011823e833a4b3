"""The denoiser contract: a noisy image and its sigma in, the clean image out, whatever the network was trained on.

`denoiser(x, sigma, class_label) -> x0` with x = x0 + sigma * noise. Guidance wraps a denoiser and is one.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from diffit_lib.config import EDM
from diffit_lib.tensors import expand_like


class Denoiser(Protocol):
    """What a sampler needs."""

    sigma_min: float
    sigma_max: float

    def __call__(self, x: Tensor, sigma: Tensor, class_label: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in any float dtype, (B,), (B,) int64 -> clean image, (B, C, H, W) in x's dtype."""
        ...

    def initial(self, noise: Tensor) -> Tensor:
        """Standard normal noise -> the state at sigma_max."""
        ...


class EDMDenoiser(nn.Module):
    """EDM's preconditioning around a raw network F (Karras et al. 2022, equation 7 and table 1)."""

    def __init__(self, network: nn.Module, config: EDM):
        super().__init__()
        self.network, self.config = network, config
        assert config.sigma_data is not None, "sigma_data is measured before a denoiser is built"
        self.sigma_data = config.sigma_data
        self.sigma_min, self.sigma_max = config.sigma_min, config.sigma_max

    def forward(
        self, x: Tensor, sigma: Tensor, class_label: Tensor | None = None, augment_label: Tensor | None = None
    ) -> Tensor:
        sigma, data = expand_like(sigma.to(x.dtype), x), self.sigma_data
        c_skip = data**2 / (sigma**2 + data**2)
        c_out = sigma * data / (sigma**2 + data**2).sqrt()
        c_in = 1 / (sigma**2 + data**2).sqrt()
        c_noise = sigma.flatten().log() / 4
        raw = self.network((c_in * x).float(), c_noise.float(), class_label, augment_label)
        return c_skip * x + c_out * raw.to(x.dtype)

    def initial(self, noise: Tensor) -> Tensor:
        """Standard normal noise -> the state at sigma_max."""
        return self.sigma_max * noise

    def draw_sigma(self, uniform: Tensor) -> Tensor:
        """(B,) float64 in [0, 1) -> log-normal noise levels, float32, by the inverse distribution function."""
        normal = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
        return (self.config.p_mean + self.config.p_std * normal).exp().float()

    def weight(self, sigma: Tensor) -> Tensor:
        """lambda(sigma), which gives every noise level the same loss at the start of training."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


def denoising_loss(
    denoiser: EDMDenoiser,
    images: Tensor,
    sigma: Tensor,
    noise: Tensor,
    class_label: Tensor | None = None,
    augment_label: Tensor | None = None,
) -> Tensor:
    """lambda(sigma) || D(x0 + sigma noise; sigma) - x0 ||^2 for each image, mean over its pixels: (B,)."""
    noisy = images + expand_like(sigma, images) * noise
    error = denoiser(noisy, sigma, class_label, augment_label) - images
    return denoiser.weight(sigma) * error.square().flatten(1).mean(1)


class Guided(nn.Module):
    """Classifier-free guidance (Ho and Salimans 2022): D(no class) + scale (D(class) - D(no class)), on all channels.

    Both halves are run as one doubled batch. Within `tolerance` of scale 1 the second half would change nothing and is
    not run.
    """

    def __init__(self, denoiser: EDMDenoiser, scale: float, no_class: int, tolerance: float = 0.01):
        super().__init__()
        self.denoiser, self.scale, self.no_class, self.tolerance = denoiser, scale, no_class, tolerance
        self.sigma_min, self.sigma_max, self.initial = denoiser.sigma_min, denoiser.sigma_max, denoiser.initial

    def forward(self, x: Tensor, sigma: Tensor, class_label: Tensor) -> Tensor:
        if abs(self.scale - 1) <= self.tolerance:
            return self.denoiser(x, sigma, class_label)
        labels = torch.cat([class_label, torch.full_like(class_label, self.no_class)])
        conditional, unconditional = self.denoiser(x.repeat(2, 1, 1, 1), sigma.repeat(2), labels).chunk(2)
        return unconditional + self.scale * (conditional - unconditional)
