"""Guidance and clipping: they wrap a denoiser and are one."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffit_lib.config.diffusion import SamplingConfig
from diffit_lib.diffusion.denoiser import Denoiser
from diffit_lib.utils.tensors import expand_like


@dataclass(frozen=True)
class PowerCosine:
    """Guidance that is 1 far from the image and rises to `scale` near it (Gao et al. 2023; DiffiT's ImageNet-256)."""

    scale: float
    power: float = 4.0

    def __call__(self, sigma: Tensor, t: Tensor) -> Tensor:
        """1 + (scale - 1) (1 - cos(pi (1 - t / 1000)^power)) / 2."""
        return 1 + (self.scale - 1) * (1 - torch.cos(math.pi * (1 - t / 1000) ** self.power)) / 2


@dataclass(frozen=True)
class Interval:
    """Guidance at noise levels in (low, high] only (Kynkäänniemi et al. 2024)."""

    scale: float
    low: float = 0.0
    high: float = math.inf

    def __call__(self, sigma: Tensor, t: Tensor) -> Tensor:
        """`scale` inside the interval, 1 outside."""
        return torch.where((self.low < sigma) & (sigma <= self.high), self.scale, 1.0)


def guided(denoiser: Denoiser, sampling: SamplingConfig, no_class: int) -> "Guided":
    """A denoiser guided as the settings say; `no_class` is the last row of its label table."""
    scale, tolerance = guidance_scale(sampling), sampling.guidance_tolerance
    return Guided(denoiser, scale, no_class, tolerance=tolerance, channels=sampling.guidance_channels)


def guidance_scale(sampling: SamplingConfig) -> float | Callable[[Tensor, Tensor], Tensor]:
    """What `Guided` takes for a scale: a number, or the schedule that the settings name."""
    if sampling.guidance_schedule == "power-cosine":
        return PowerCosine(sampling.guidance, sampling.guidance_power)
    if sampling.guidance_schedule == "interval":
        high = math.inf if sampling.guidance_high is None else sampling.guidance_high
        return Interval(sampling.guidance, sampling.guidance_low, high)
    return sampling.guidance


class Wrapper:
    """A denoiser around a denoiser: the same noise levels, another answer."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max
        self.initial, self.levels, self.t = denoiser.initial, denoiser.levels, denoiser.t

    def __call__(self, x: Tensor, sigma: Tensor, class_label: Tensor | None = None) -> Tensor:
        """The clean image, (B, C, H, W)."""
        return self.with_variance(x, sigma, class_label)[0]

    def with_variance(
        self, x: Tensor, sigma: Tensor, class_label: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The clean image and, where the network has learned one, the variance inside, which no wrapper changes."""
        raise NotImplementedError


class Guided(Wrapper):
    """Classifier-free guidance (Ho and Salimans 2022): D(no class) + scale (D(class) - D(no class)).

    `scale` is a number or a schedule, (sigma, t) -> scale, each (B,). Both halves are run as one doubled batch. Where
    the scale is within `tolerance` of 1 for every image the second half would change next to nothing and is not run.
    `channels` guides the first of them alone, as the published latent weights want it (3); None guides all. A learned
    variance is the conditional half's.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float | Callable[[Tensor, Tensor], Tensor],
        no_class: int,
        tolerance: float = 0.01,
        channels: int | None = None,
    ):
        super().__init__(denoiser)
        self.scale, self.no_class, self.tolerance, self.channels = scale, no_class, tolerance, channels

    def with_variance(
        self, x: Tensor, sigma: Tensor, class_label: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Guided clean image, (B, C, H, W), and the conditional variance; labels (B,) int64."""
        assert class_label is not None, "guidance needs class labels"
        scale = self.scale(sigma, self.t(sigma)) if callable(self.scale) else torch.full_like(sigma, self.scale)
        if ((scale - 1).abs() <= self.tolerance).all():
            return self.denoiser.with_variance(x, sigma, class_label)
        labels = torch.cat([class_label, torch.full_like(class_label, self.no_class)])
        both, v = self.denoiser.with_variance(x.repeat(2, 1, 1, 1), sigma.repeat(2), labels)
        conditional, unconditional = both.chunk(2)
        scale = expand_like(scale.to(x.device, x.dtype, non_blocking=True), x)
        guided = unconditional + scale * (conditional - unconditional)
        if self.channels is not None:
            guided = torch.cat([guided[:, : self.channels], conditional[:, self.channels :]], dim=1)
        return guided, None if v is None else v[: len(x)]


class Clipped(Wrapper):
    """The clean image kept within [-1, 1]: for pixels, around guidance, while sampling (never in the loss)."""

    def with_variance(
        self, x: Tensor, sigma: Tensor, class_label: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The wrapped answer, its image clamped."""
        denoised, v = self.denoiser.with_variance(x, sigma, class_label)
        return denoised.clamp(-1, 1), v
