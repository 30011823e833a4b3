"""Noise levels: 1-D float64 tensors on the CPU that fall from the largest sigma and end in 0.

A variance-preserving process is given by its betas, and here by its table of sigmas: (T,), one for each time t from 0
to T - 1, rising. sigma^2 = (1 - alpha_bar) / alpha_bar is its noise level once its state is divided by sqrt(alpha_bar).
"""

import math

import torch
from torch import Tensor

from diffit_lib.utils.errors import DiffitError


def karras(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """EDM's levels (Karras et al. 2022, equation 5): `num_steps` of them, then 0; shape (num_steps + 1,)."""
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def respaced(table: Tensor, num_steps: int) -> Tensor:
    """`num_steps` levels of a table at evenly spaced times, both ends among them, then 0; shape (num_steps + 1,)."""
    if not 2 <= num_steps <= len(table):
        raise DiffitError(f"steps is {num_steps}; give 2 to {len(table)}, the noise levels this denoiser knows")
    times = [round(i * (len(table) - 1) / (num_steps - 1)) for i in range(num_steps)]
    return torch.cat([table[times].flip(0), torch.zeros(1, dtype=torch.float64)])


def linear_betas(timesteps: int) -> Tensor:
    """Betas of Ho et al. 2020, 1e-4 to 0.02 at T = 1000, scaled so that any T destroys as much: (T,)."""
    return torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64) * (1000 / timesteps)


def cosine_betas(timesteps: int) -> Tensor:
    """Betas that make alpha_bar a squared cosine of time (Nichol and Dhariwal 2021, equation 17): (T,)."""
    time = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    alpha_bar = torch.cos((time + 0.008) / 1.008 * (math.pi / 2)) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


BETAS = {"linear": linear_betas, "cosine": cosine_betas}


def sigma_table(noise_schedule: str, timesteps: int) -> Tensor:
    """The sigma of every time t of a variance-preserving process: (T,), rising."""
    return alpha_bar_to_sigma((1 - BETAS[noise_schedule](timesteps)).cumprod(0))


def alpha_bar_to_sigma(alpha_bar: Tensor) -> Tensor:
    """Share of the signal's variance, in (0, 1], any shape -> noise level."""
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def sigma_to_alpha_bar(sigma: Tensor) -> Tensor:
    """Noise level, any shape -> share of the signal's variance."""
    return 1 / (1 + sigma**2)


def t_to_sigma(t: Tensor, table: Tensor) -> Tensor:
    """Times, (B,) from 0 to T - 1 -> noise levels; between two times of the table log sigma is linear."""
    table = _beside(table, t)
    low = t.long().clamp(0, len(table) - 2)
    return (table[low].log().lerp(table[low + 1].log(), t - low)).exp()


def sigma_to_t(sigma: Tensor, table: Tensor) -> Tensor:
    """The inverse of `t_to_sigma`; noise levels beyond the table become its ends."""
    table = _beside(table, sigma)
    low = (torch.searchsorted(table, sigma.contiguous()) - 1).clamp(0, len(table) - 2)
    left, right = table[low].log(), table[low + 1].log()
    return low + ((sigma.log() - left) / (right - left)).clamp(0, 1)


def _beside(table: Tensor, values: Tensor) -> Tensor:
    """The table in the dtype and on the device of values, without waiting for that device."""
    return table.to(values.device, values.dtype, non_blocking=True)
