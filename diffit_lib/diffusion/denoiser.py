"""The denoiser contract: a noisy image and its sigma in, the clean image out, whatever the network was trained on.

`denoiser(x, sigma, class_label) -> x0` with x = x0 + sigma * noise.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from diffit_lib.config.diffusion import EDMConfig, VPConfig
from diffit_lib.diffusion.learned_variance import ReverseSteps, variational_bound
from diffit_lib.diffusion.schedules import karras, respaced, sigma_table, sigma_to_alpha_bar, sigma_to_t, t_to_sigma
from diffit_lib.utils.errors import check
from diffit_lib.utils.tensors import expand_like

LINEAR = sigma_table("linear", 1000)  # tells the time where a denoiser has no table of its own
MIN_SNR_GAMMA = 5.0


class Denoiser(Protocol):
    """What sampling needs. A sampler's sigma lies on the CPU, so that no decision about it waits for the device."""

    sigma_min: float
    sigma_max: float

    def __call__(self, x: Tensor, sigma: Tensor, class_label: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in any float dtype, (B,), (B,) int64 -> clean image, (B, C, H, W) in x's dtype."""
        ...

    def with_variance(
        self, x: Tensor, sigma: Tensor, class_label: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The clean image, and where the network has learned it the reverse step's variance as v (`bound.py`)."""
        ...

    def initial(self, noise: Tensor) -> Tensor:
        """Standard normal noise -> the state at sigma_max."""
        ...

    def levels(self, num_steps: int) -> Tensor:
        """The noise levels to sample on unless told otherwise: `num_steps` of them, then 0."""
        ...

    def t(self, sigma: Tensor) -> Tensor:
        """(B,) -> the time of guidance schedules, in thousandths of the diffusion process: 0 is clean."""
        ...


class Preconditioned(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; noise label) around a raw network F (Karras et al. 2022, equation 7).

    What the network was trained to predict is a choice of these functions of sigma and nothing else.
    """

    clip: bool  # keep clean images in [-1, 1] while sampling
    sigma_min: float
    sigma_max: float
    initial: Callable[[Tensor], Tensor]
    levels: Callable[[int], Tensor]
    t: Callable[[Tensor], Tensor]
    draw_sigma: Callable[[Tensor], Tensor]
    bound: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # where a variance can be learned

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(
        self, x: Tensor, sigma: Tensor, class_label: Tensor | None = None, augment_label: Tensor | None = None
    ) -> Tensor:
        """(B, C, H, W), sigma (B,) -> the clean image, (B, C, H, W) in x's dtype."""
        return self.with_variance(x, sigma, class_label, augment_label)[0]

    def with_variance(
        self, x: Tensor, sigma: Tensor, class_label: Tensor | None = None, augment_label: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The clean image, and the second half of what a network with a learned variance answers: v, of x's shape."""
        noise_label = self.noise_label(sigma).to(x.device, torch.float32, non_blocking=True)
        sigma = expand_like(sigma.to(x.device, x.dtype, non_blocking=True), x)
        c_skip, c_out, c_in = self.coefficients(sigma)
        raw = self.network((c_in * x).float(), noise_label, class_label, augment_label).to(x.dtype)
        raw, v = raw.chunk(2, dim=1) if raw.shape[1] == 2 * x.shape[1] else (raw, None)
        return c_skip * x + c_out * raw, v

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in, each of sigma's shape."""
        raise NotImplementedError

    def noise_label(self, sigma: Tensor) -> Tensor:
        """What the network is told of the noise level: (B,) -> (B,)."""
        raise NotImplementedError

    def weight(self, sigma: Tensor) -> Tensor:
        """lambda(sigma), (B,) -> (B,): 1 / c_out^2 weighs the raw network's own error the same at every level."""
        return 1 / self.coefficients(sigma)[1] ** 2


class EDMDenoiser(Preconditioned):
    """EDM's preconditioning, noise distribution and loss (Karras et al. 2022, table 1)."""

    clip = False

    def __init__(self, network: nn.Module, config: EDMConfig):
        super().__init__(network)
        self.config = config
        assert config.sigma_data is not None, "sigma_data is measured before a denoiser is built"
        self.sigma_data = config.sigma_data
        self.sigma_min, self.sigma_max = config.sigma_min, config.sigma_max

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input and target of the network have unit variance, and its error is amplified as little as can be."""
        total = (sigma**2 + self.sigma_data**2).sqrt()
        return (self.sigma_data / total) ** 2, sigma * self.sigma_data / total, 1 / total

    def noise_label(self, sigma: Tensor) -> Tensor:
        """ln(sigma) / 4."""
        return sigma.log() / 4

    def initial(self, noise: Tensor) -> Tensor:
        """Standard normal noise -> the state at sigma_max."""
        return self.sigma_max * noise

    def levels(self, num_steps: int) -> Tensor:
        """EDM's levels, `num_steps` of them, then 0."""
        return karras(num_steps, self.sigma_min, self.sigma_max)

    def t(self, sigma: Tensor) -> Tensor:
        """(B,) -> the time at which the linear betas reach this noise level, 0 to 999."""
        return sigma_to_t(sigma, LINEAR)

    def draw_sigma(self, uniform: Tensor) -> Tensor:
        """(B,) in [0, 1) -> log-normal noise levels, float32, by the inverse distribution function."""
        normal = torch.special.ndtri(uniform.clamp(2**-25, 1 - 2**-24))  # what float32 can hold next to 0 and 1
        return (self.config.p_mean + self.config.p_std * normal).exp().float()


class VPDenoiser(Preconditioned):
    """A network trained on the table of a variance-preserving process, predicting eps, v or x0.

    Ho et al. 2020 (eps), Salimans and Ho 2022 (v). That process's own state is x / sqrt(1 + sigma^2): it lives in here
    and nowhere else. The noise label is the original t, fractional between two levels of the table.
    """

    def __init__(self, network: nn.Module, config: VPConfig):
        super().__init__(network)
        self.config, self.clip = config, config.clip
        self.table = sigma_table(config.noise_schedule, config.timesteps)  # (T,) float64, stays on the CPU
        self.steps = ReverseSteps.of(self.table)
        first, last = self.table[[0, -1]].tolist()
        self.sigma_min, self.sigma_max = config.sigma_min or first, config.sigma_max or last
        check(
            first <= self.sigma_min < self.sigma_max <= last,
            f"sigma_min {self.sigma_min:g} and sigma_max {self.sigma_max:g} do not rise within the table's "
            f"{first:.3g} to {last:.4g}; give levels inside",
        )

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x = x0 + sigma eps, and v = (eps - sigma x0) / sqrt(1 + sigma^2), solved for x0."""
        c_in = sigma_to_alpha_bar(sigma).sqrt()
        if self.config.prediction == "eps":
            return torch.ones_like(sigma), -sigma, c_in
        if self.config.prediction == "v":
            return c_in**2, -sigma * c_in, c_in
        return torch.zeros_like(sigma), torch.ones_like(sigma), c_in

    def noise_label(self, sigma: Tensor) -> Tensor:
        """t, 0 to T - 1."""
        return sigma_to_t(sigma, self.table)

    def initial(self, noise: Tensor) -> Tensor:
        """Standard normal noise -> the state at sigma_max: unit variance in the process's own state."""
        return math.sqrt(1 + self.sigma_max**2) * noise

    def levels(self, num_steps: int) -> Tensor:
        """The table respaced to `num_steps` levels, or EDM's where a range was given; then 0."""
        if self.config.sigma_min or self.config.sigma_max:
            return karras(num_steps, self.sigma_min, self.sigma_max)
        return respaced(self.table, num_steps)

    def t(self, sigma: Tensor) -> Tensor:
        """(B,) -> the noise label in thousandths of T."""
        return self.noise_label(sigma) * (1000 / self.config.timesteps)

    def draw_sigma(self, uniform: Tensor) -> Tensor:
        """(B,) in [0, 1) -> noise levels of the table, each equally likely, float32."""
        t = (uniform * self.config.timesteps).floor()
        return t_to_sigma(t, self.table).float()

    def bound(self, images: Tensor, error: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        """What a learned variance v costs at noise levels of the table: bits per number of an image, (B,)."""
        return variational_bound(images, error, v, self.noise_label(sigma).round().long(), self.steps)

    def weight(self, sigma: Tensor) -> Tensor:
        """The configured loss as a weight on the clean image's error; min-SNR is that of Hang et al. 2023."""
        if self.config.loss == "min-snr":
            return (1 / sigma**2).clamp(max=MIN_SNR_GAMMA)
        if self.config.loss == "edm":
            assert self.config.sigma_data is not None, "sigma_data is measured before a denoiser is built"
            return 1 / sigma**2 + 1 / self.config.sigma_data**2
        return super().weight(sigma)


DENOISERS = {EDMConfig.kind: EDMDenoiser, VPConfig.kind: VPDenoiser}
