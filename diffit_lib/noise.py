"""Noise levels: 1-D float64 tensors on the CPU that fall from the largest sigma and end in 0."""

import torch
from torch import Tensor


def karras(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """EDM's levels (Karras et al. 2022, equation 5): `num_steps` of them, then 0; shape (num_steps + 1,)."""
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])
