"""What a learned variance costs: the variational bound on one reverse step, in bits (Nichol and Dhariwal 2021).

A network that learns the variance of the step from sigma to sigma' < sigma answers with v, about -1 to 1, for every
number of the image: the logarithm of the variance lies (v + 1) / 2 of the way from that of "small", the variance of
the step given the clean image, to that of "large", of the forward step. All is in the coordinate x0 + sigma * noise.
"""

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from diffit_lib.utils.tensors import expand_like

Level = TypeVar("Level", float, Tensor)

HALF_WIDTH = 1 / 255  # of a grey level in [-1, 1]


def reverse_variances(sigma: Level, sigma_next: Level) -> tuple[Level, Level]:
    """ "small" (beta~ of Ho et al. 2020) and "large" (beta), both divided by alpha_bar at sigma_next."""
    step = sigma**2 - sigma_next**2
    return sigma_next**2 / sigma**2 * step, (1 + sigma_next**2) / (1 + sigma**2) * step


class ReverseSteps(NamedTuple):
    """The steps down a table of noise levels, from each t to t - 1 and from 0 to the clean image: float64, (T,)."""

    pull: Tensor  # how much of the clean image enters the mean: 1 - sigma'^2 / sigma^2
    log_small: Tensor
    log_ratio: Tensor  # log large - log small

    @classmethod
    def of(cls, table: Tensor) -> "ReverseSteps":
        """The steps of a rising table, (T,). "small" is 0 at t = 0; the variance of t = 1 stands in for it there."""
        below = torch.cat([table.new_zeros(1), table[:-1]])
        small, large = reverse_variances(table, below)
        small[0] = small[1] / (1 + table[0] ** 2)  # in the process's own state, in which sigma' = 0 is x0 itself
        return cls(1 - (below / table) ** 2, small.log(), large.log() - small.log())


def variational_bound(images: Tensor, error: Tensor, v: Tensor, t: Tensor, steps: ReverseSteps) -> Tensor:
    """Bits per number of an image: (B, C, H, W), error of the clean image, v, t (B,) int64 -> (B,).

    The Kullback-Leibler divergence of the learned step from the one that knows the clean image; at t = 0 how unlikely
    the learned step finds the image itself, rounded to one of 256 grey levels.
    """
    pull, log_small, log_ratio = (expand_like(part.to(v.device, v.dtype)[t], v) for part in steps)
    relative = (v + 1) / 2 * log_ratio  # log of the learned variance over "small"
    divergence = (relative + (-relative).exp() + (pull * error) ** 2 * (-log_small - relative).exp() - 1) / 2
    surprise = -log_likelihood(images, images + error, (log_small + relative) / 2)
    bits = torch.where(expand_like(t, v) == 0, surprise, divergence) / math.log(2)
    return bits.flatten(1).mean(1)


def log_likelihood(images: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Natural logarithm of what a normal distribution gives the grey level of each number; the end ones are open."""
    below = normal_cdf((images - mean - HALF_WIDTH) / log_std.exp())
    above = normal_cdf((images - mean + HALF_WIDTH) / log_std.exp())
    inside = torch.where(images < -0.999, above, torch.where(images > 0.999, 1 - below, above - below))
    return inside.clamp(min=1e-12).log()


def normal_cdf(x: Tensor) -> Tensor:
    """The normal distribution function as ADM approximates it."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
