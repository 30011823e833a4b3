"""Guidance and clipping: denoisers that wrap another denoiser."""

import math

import torch
from torch import Tensor

from diffit_lib.config.diffusion import SamplingConfig
from diffit_lib.diffusion.denoiser import Denoiser


def guidance_scale(sampling: SamplingConfig, sigma: float, denoiser: Denoiser) -> float:
    """The strength of guidance at a noise level, whose time t, 0 to 1000, the denoiser knows.

    constant: the same everywhere. power-cosine: rises from 1 at t = 1000 to the full strength at 0 (Gao et al. 2023;
    DiffiT on ImageNet-256). interval: the full strength in (low, high], 1 outside (Kynkäänniemi et al. 2024).
    """
    scale = sampling.guidance
    if sampling.guidance_schedule == "power-cosine":
        t = denoiser.t(torch.tensor([sigma], dtype=torch.float64)).item()
        return 1 + (scale - 1) * (1 - math.cos(math.pi * (1 - t / 1000) ** sampling.guidance_power)) / 2
    if sampling.guidance_schedule == "interval":
        high = math.inf if sampling.guidance_high is None else sampling.guidance_high
        return scale if sampling.guidance_low < sigma <= high else 1.0
    return scale


class Wrapper(Denoiser):
    """A denoiser with the noise levels of the one it wraps."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max
        self.initial, self.levels, self.t = denoiser.initial, denoiser.levels, denoiser.t

    def __call__(self, x: Tensor, sigma: float, class_label: Tensor | None = None) -> Tensor:
        """The clean image, (B, C, H, W)."""
        return self.with_variance(x, sigma, class_label)[0]


class Guided(Wrapper):
    """Classifier-free guidance (Ho and Salimans 2022): D(no class) + scale (D(class) - D(no class)).

    `no_class` is the label of "no class". One doubled batch computes both halves. If the scale is within
    `guidance_tolerance` of 1, only the conditional half runs. `guidance_channels` guides only the first channels, as
    the published latent weights do (3); None guides all.
    """

    def __init__(self, denoiser: Denoiser, sampling: SamplingConfig, no_class: int):
        super().__init__(denoiser)
        self.sampling, self.no_class = sampling, no_class

    def with_variance(self, x: Tensor, sigma: float, class_label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The guided clean image, (B, C, H, W), and the variance of the conditional half; labels (B,) int64."""
        assert class_label is not None, "guidance needs class labels"
        scale = guidance_scale(self.sampling, sigma, self.denoiser)
        if abs(scale - 1) <= self.sampling.guidance_tolerance:
            return self.denoiser.with_variance(x, sigma, class_label)
        labels = torch.cat([class_label, torch.full_like(class_label, self.no_class)])
        both, v = self.denoiser.with_variance(x.repeat(2, 1, 1, 1), sigma, labels)
        conditional, unconditional = both.chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        if (channels := self.sampling.guidance_channels) is not None:
            guided = torch.cat([guided[:, :channels], conditional[:, channels:]], dim=1)
        return guided, None if v is None else v[: len(x)]


class Clipped(Wrapper):
    """Clamps the clean image to [-1, 1] while sampling pixels; the training loss is not clipped."""

    def with_variance(self, x: Tensor, sigma: float, class_label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The clamped clean image, and the variance unchanged."""
        denoised, v = self.denoiser.with_variance(x, sigma, class_label)
        return denoised.clamp(-1, 1), v
