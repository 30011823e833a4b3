"""The loss of a learned variance: the variational bound on one reverse step, in bits (Nichol and Dhariwal 2021).

The network outputs v, about -1 to 1, for each pixel and channel. It interpolates the log-variance of the reverse step
from sigma to sigma' < sigma: "small" at v = -1 (the step given the clean image), "large" at v = 1 (the forward step).
Everything is in the coordinate x = x0 + sigma * noise.
"""

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from diffit_lib.utils.tensors import expand_like

Level = TypeVar("Level", float, Tensor)

HALF_WIDTH = 1 / 255  # half of one of the 256 grey levels in [-1, 1]


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


def variational_bound(images: Tensor, error: Tensor, v: Tensor, t: Tensor, steps: ReverseSteps) -> Tensor:
    """Bits per pixel and channel: images, errors of the clean image and v (B, C, H, W), t (B,) int64 -> (B,).

    The Kullback-Leibler divergence of the learned step from the true one; at t = 0 the negative log-likelihood of the
    image in 256 grey levels.
    """
    pull, log_small, log_ratio = (expand_like(part.to(v.device, v.dtype)[t], v) for part in steps)
    relative = (v + 1) / 2 * log_ratio  # log of the learned variance over "small"
    divergence = (relative + (-relative).exp() + (pull * error) ** 2 * (-log_small - relative).exp() - 1) / 2
    likelihood = log_likelihood(images, images + error, (log_small + relative) / 2)
    bits = torch.where(expand_like(t, v) == 0, -likelihood, divergence) / math.log(2)
    return bits.flatten(1).mean(1)


def log_likelihood(images: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-probability (nats) of each grey level under a normal distribution; the darkest and brightest are open."""
    below = normal_cdf((images - mean - HALF_WIDTH) / log_std.exp())
    above = normal_cdf((images - mean + HALF_WIDTH) / log_std.exp())
    inside = torch.where(images < -0.999, above, torch.where(images > 0.999, 1 - below, above - below))
    return inside.clamp(min=1e-12).log()


def normal_cdf(x: Tensor) -> Tensor:
    """The normal distribution function in ADM's tanh approximation."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
