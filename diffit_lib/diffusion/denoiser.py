"""Denoisers estimate the clean image: `denoiser(x, sigma, class_label) -> x0` for x = x0 + sigma * noise.

The contract is the same whatever the network was trained to predict.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffit_lib.config.diffusion import EDMConfig, FlowConfig, VPConfig
from diffit_lib.diffusion.schedules import (
    ReverseSteps,
    karras,
    respaced,
    sigma_table,
    sigma_to_t,
    t_to_sigma,
)
from diffit_lib.utils.errors import check
from diffit_lib.utils.tensors import expand_like

LINEAR = sigma_table("linear", 1000)  # gives EDM's noise levels a time
MIN_SNR_GAMMA = 5.0
MOST_LEVELS = 4096  # whose numbers a denoiser keeps


class Denoiser(Protocol):
    """What samplers and guidance call, with one noise level for the whole batch."""

    sigma_min: float
    sigma_max: float
    initial: Callable[[Tensor], Tensor]  # standard normal noise -> the state at sigma_max
    levels: Callable[[int], Tensor]  # so many falling noise levels to sample on, then 0: (num_steps + 1,)
    t: Callable[[Tensor], Tensor]  # (B,) -> time in the process for guidance schedules: 0 (clean) to 1000 (noise)

    def __call__(self, x: Tensor, sigma: float, class_label: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), class (B,) int64 -> the clean image, (B, C, H, W) in x's dtype."""
        ...

    def with_variance(self, x: Tensor, sigma: float, class_label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The clean image, and v of the same shape if the network learned its variance (`loss.py`)."""
        ...


class Preconditioned(nn.Module, Denoiser):
    """D(x; sigma) = c_skip x + c_out F(c_in x; noise label) around a raw network F (Karras et al. 2022, equation 7).

    The functions of sigma below determine what the network predicts.
    """

    clip = False  # whether to clamp clean images to [-1, 1] while sampling
    coefficients: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # c_skip, c_out, c_in, each of sigma's shape
    noise_label: Callable[[Tensor], Tensor]  # (B,) sigma -> the (B,) number that the network is conditioned on
    draw_sigma: Callable[[Tensor], Tensor]  # (B,) uniform in [0, 1) -> (B,) noise levels for training
    steps: ReverseSteps  # for the loss of a learned variance

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.seen: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}  # what `scalars` found, as drawings repeat levels

    def forward(
        self, x: Tensor, sigma: Tensor | float, class_label: Tensor | None = None, augment_label: Tensor | None = None
    ) -> Tensor:
        """x (B, C, H, W), sigma (B,) or one level for all -> the clean image, (B, C, H, W) in x's dtype."""
        return self.with_variance(x, sigma, class_label, augment_label)[0]

    def with_variance(
        self, x: Tensor, sigma: Tensor | float, class_label: Tensor | None = None, augment_label: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The clean image, and v of the same shape if the network outputs 2C channels, else None."""
        if isinstance(sigma, Tensor):
            noise_label = self.noise_label(sigma).to(x.device, torch.float32, non_blocking=True)
            c_skip, c_out, c_in = self.coefficients(expand_like(sigma.to(x.device, x.dtype, non_blocking=True), x))
        else:
            c_skip, c_out, c_in, label = self.scalars(sigma, x)
            noise_label = label.expand(len(x))
        raw = self.network((c_in * x).float(), noise_label, class_label, augment_label).to(x.dtype)
        raw, v = raw.chunk(2, dim=1) if raw.shape[1] == 2 * x.shape[1] else (raw, None)
        return (c_skip * x).addcmul_(c_out, raw), v

    def scalars(self, sigma: float, x: Tensor) -> tuple[Tensor, ...]:
        """c_skip, c_out and c_in of one level in x's dtype, and its noise label in float32: each () on x's device."""
        key = sigma, x.dtype, x.device
        if key not in self.seen:
            if len(self.seen) >= MOST_LEVELS:
                self.seen.clear()
            level = torch.tensor([sigma], dtype=torch.float64)
            found = *(each.to(x.dtype) for each in self.coefficients(level)), self.noise_label(level).float()
            self.seen[key] = tuple(each[0].to(x.device, non_blocking=True) for each in found)
        return self.seen[key]

    def weight(self, sigma: Tensor) -> Tensor:
        """Loss weight lambda(sigma), (B,) -> (B,): 1 / c_out^2, which weights the error of F equally at every sigma."""
        return 1 / self.coefficients(sigma)[1] ** 2


class EDMDenoiser(Preconditioned):
    """EDM's preconditioning, noise distribution and loss (Karras et al. 2022, table 1)."""

    def __init__(self, network: nn.Module, config: EDMConfig):
        super().__init__(network)
        self.config = config
        assert config.sigma_data is not None, "sigma_data is measured before a denoiser is built"
        self.sigma_data = config.sigma_data
        self.sigma_min, self.sigma_max = config.sigma_min, config.sigma_max

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in that give the network's input and target unit variance."""
        total = (sigma**2 + self.sigma_data**2).sqrt()
        return (self.sigma_data / total) ** 2, sigma * self.sigma_data / total, 1 / total

    def noise_label(self, sigma: Tensor) -> Tensor:
        """ln(sigma) / 4."""
        return sigma.log() / 4

    def initial(self, noise: Tensor) -> Tensor:
        """Standard normal noise -> the state at sigma_max."""
        return self.sigma_max * noise

    def levels(self, num_steps: int) -> Tensor:
        """EDM's noise levels: (num_steps + 1,), the last one 0."""
        return karras(num_steps, self.sigma_min, self.sigma_max)

    def t(self, sigma: Tensor) -> Tensor:
        """(B,) -> the time, 0 to 999, at which Ho et al.'s linear betas reach this noise level."""
        return sigma_to_t(sigma, LINEAR)

    def draw_sigma(self, uniform: Tensor) -> Tensor:
        """(B,) uniform in [0, 1) -> log-normal noise levels, float32 (inverse transform sampling)."""
        normal = torch.special.ndtri(uniform.clamp(2**-25, 1 - 2**-24))  # 0 and 1 would be infinite
        return (self.config.mean_log_sigma + self.config.p_std * normal).exp().float()


class VPDenoiser(Preconditioned):
    """A variance-preserving process: predicts eps (Ho et al. 2020), v (Salimans and Ho 2022) or x0.

    The network sees that process's state, x / sqrt(1 + sigma^2). Its noise label is t, a fraction between two levels.
    """

    def __init__(self, network: nn.Module, config: VPConfig):
        super().__init__(network)
        self.config, self.clip = config, config.clip
        self.table = sigma_table(config.noise_schedule, config.timesteps)  # (T,) float64 on the CPU
        self.steps = ReverseSteps.of(self.table)
        first, last = self.table[[0, -1]].tolist()
        self.sigma_min, self.sigma_max = config.sigma_min or first, config.sigma_max or last
        check(
            first <= self.sigma_min < self.sigma_max <= last,
            f"sigma_min {self.sigma_min:g} and sigma_max {self.sigma_max:g} do not rise within the table's "
            f"{first:.3g} to {last:.4g}; give levels inside",
        )

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in: x = x0 + sigma eps and v = (eps - sigma x0) / sqrt(1 + sigma^2), solved for x0."""
        c_in = (1 / (1 + sigma**2)).sqrt()
        if self.config.prediction == "eps":
            return torch.ones_like(sigma), -sigma, c_in
        if self.config.prediction == "v":
            return c_in**2, -sigma * c_in, c_in
        return torch.zeros_like(sigma), torch.ones_like(sigma), c_in

    def noise_label(self, sigma: Tensor) -> Tensor:
        """t, 0 to T - 1."""
        return sigma_to_t(sigma, self.table)

    def initial(self, noise: Tensor) -> Tensor:
        """Standard normal noise -> the state at sigma_max, of unit variance in the process's own state."""
        return math.sqrt(1 + self.sigma_max**2) * noise

    def levels(self, num_steps: int) -> Tensor:
        """`num_steps` levels of the table, or EDM's if sigma_min or sigma_max is set, then 0: (num_steps + 1,)."""
        if self.config.sigma_min or self.config.sigma_max:
            return karras(num_steps, self.sigma_min, self.sigma_max)
        return respaced(self.table, num_steps)

    def t(self, sigma: Tensor) -> Tensor:
        """(B,) -> t, scaled from T to 1000."""
        return self.noise_label(sigma) * (1000 / self.config.timesteps)

    def draw_sigma(self, uniform: Tensor) -> Tensor:
        """(B,) uniform in [0, 1) -> noise levels of the table, each equally likely, float32."""
        return t_to_sigma((uniform * self.config.timesteps).floor(), self.table).float()

    def weight(self, sigma: Tensor) -> Tensor:
        """The weight of the configured loss, (B,) -> (B,); min-snr is from Hang et al. 2023."""
        if self.config.loss == "min-snr":
            return (1 / sigma**2).clamp(max=MIN_SNR_GAMMA)
        if self.config.loss == "edm":
            assert self.config.sigma_data is not None, "sigma_data is measured before a denoiser is built"
            return 1 / sigma**2 + 1 / self.config.sigma_data**2
        return super().weight(sigma)


class FlowDenoiser(Preconditioned):
    """Rectified flow: the network sees x_t = (1 - t) x0 + t n and predicts x0 - n or x0.

    Its noise label is 1 - t, and its velocity points to the image, both as in SiT (Ma et al. 2024).
    """

    def __init__(self, network: nn.Module, config: FlowConfig):
        super().__init__(network)
        self.config = config
        self.sigma_min, self.sigma_max = config.sigma_min or config.shift / 1000, config.sigma_max

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in: x = x_t / (1 - t), and x0 = x_t + t (x0 - n)."""
        share = 1 / (1 + sigma)
        if self.config.prediction == "v":
            return share, sigma * share, share
        return torch.zeros_like(sigma), torch.ones_like(sigma), share

    def noise_label(self, sigma: Tensor) -> Tensor:
        """1 - t, from 0 (noise) to 1 (clean)."""
        return 1 / (1 + sigma)

    def initial(self, noise: Tensor) -> Tensor:
        """Standard normal noise as x_t at sigma_max."""
        return (1 + self.sigma_max) * noise

    def levels(self, num_steps: int) -> Tensor:
        """Even steps in t before the shift, or EDM's levels if sigma_min is set, then 0: (num_steps + 1,)."""
        if self.config.sigma_min:
            return karras(num_steps, self.sigma_min, self.sigma_max)
        highest = 1 / (1 + self.config.shift / self.sigma_max)
        t = highest * torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        return self.config.shift * t / (1 - t)

    def t(self, sigma: Tensor) -> Tensor:
        """(B,) -> 1000 t."""
        return 1000 * sigma / (1 + sigma)

    def draw_sigma(self, uniform: Tensor) -> Tensor:
        """(B,) uniform in [0, 1) -> noise levels, float32; "logit-normal" is Esser et al.'s, location 0, scale 1."""
        t = uniform.clamp(1e-4, 1 - 1e-4)  # neither end has a finite weight
        if self.config.times == "logit-normal":
            t = torch.special.ndtri(t).sigmoid()
        return (self.config.shift * t / (1 - t)).float()

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / t^2, (B,) -> (B,): the squared error of the velocity; for x0 with t of 0.05 or more (Li and He 2025)."""
        return (1 / sigma + 1).clamp(max=20.0 if self.config.prediction == "x0" else math.inf) ** 2


DENOISERS = {EDMConfig.kind: EDMDenoiser, VPConfig.kind: VPDenoiser, FlowConfig.kind: FlowDenoiser}
