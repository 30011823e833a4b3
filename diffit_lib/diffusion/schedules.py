"""Noise levels for sampling (1-D, falling, last one 0) and tables of variance-preserving processes, float64 on the CPU.

A table holds the sigma of each time t from 0 to T - 1, rising: (T,), with sigma^2 = (1 - alpha_bar) / alpha_bar.
"""

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from diffit_lib.utils.errors import DiffitError

Level = TypeVar("Level", float, Tensor)


def karras(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """EDM's noise levels (Karras et al. 2022, equation 5), then 0: (num_steps + 1,)."""
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def respaced(table: Tensor, num_steps: int) -> Tensor:
    """The table's levels at evenly spaced times, including both ends, then 0: (num_steps + 1,)."""
    if not 2 <= num_steps <= len(table):
        raise DiffitError(f"steps is {num_steps}; give 2 to {len(table)}, the noise levels this denoiser knows")
    times = [round(i * (len(table) - 1) / (num_steps - 1)) for i in range(num_steps)]
    return torch.cat([table[times].flip(0), torch.zeros(1, dtype=torch.float64)])


def linear_betas(timesteps: int) -> Tensor:
    """Betas of Ho et al. 2020, 1e-4 to 0.02 at T = 1000, scaled by 1000 / T for other T: (T,)."""
    return torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64) * (1000 / timesteps)


def cosine_betas(timesteps: int) -> Tensor:
    """Betas for which alpha_bar is a squared cosine of t (Nichol and Dhariwal 2021, equation 17): (T,)."""
    time = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((time + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


BETAS = {"linear": linear_betas, "cosine": cosine_betas}


def sigma_table(noise_schedule: str, timesteps: int) -> Tensor:
    """The table of the "linear" or "cosine" schedule: (T,), rising."""
    alpha_bar = (1 - BETAS[noise_schedule](timesteps)).cumprod(0)
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def t_to_sigma(t: Tensor, table: Tensor) -> Tensor:
    """Times (B,), 0 to T - 1 -> sigmas (B,); log sigma is interpolated linearly between two times."""
    table = table.to(t, non_blocking=True)
    low = t.long().clamp(0, len(table) - 2)
    return (table[low].log().lerp(table[low + 1].log(), t - low)).exp()


def sigma_to_t(sigma: Tensor, table: Tensor) -> Tensor:
    """The inverse of `t_to_sigma`; sigmas outside the table are clamped to its ends."""
    table = table.to(sigma, non_blocking=True)
    low = (torch.searchsorted(table, sigma.contiguous()) - 1).clamp(0, len(table) - 2)
    left, right = table[low].log(), table[low + 1].log()
    return low + ((sigma.log() - left) / (right - left)).clamp(0, 1)


def reverse_variances(sigma: Level, sigma_next: Level) -> tuple[Level, Level]:
    """The variances "small" (beta~ of Ho et al. 2020) and "large" (beta), divided by alpha_bar at sigma_next."""
    step = sigma**2 - sigma_next**2
    return sigma_next**2 / sigma**2 * step, (1 + sigma_next**2) / (1 + sigma**2) * step


class ReverseSteps(NamedTuple):
    """The reverse step from each t of a table to t - 1, and from 0 to the clean image: float64, (T,)."""

    pull: Tensor  # weight of the clean image in the mean: 1 - sigma'^2 / sigma^2
    log_small: Tensor
    log_ratio: Tensor  # log large - log small

    @classmethod
    def of(cls, table: Tensor) -> "ReverseSteps":
        """The steps of a rising table, (T,). At t = 0 "small" is 0, so the variance of t = 1 replaces it."""
        below = torch.cat([table.new_zeros(1), table[:-1]])
        small, large = reverse_variances(table, below)
        small[0] = small[1] / (1 + table[0] ** 2)  # beta~ itself: reverse_variances divides it by alpha_bar
        return cls(1 - (below / table) ** 2, small.log(), large.log() - small.log())
