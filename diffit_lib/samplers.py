"""Samplers: generators over (denoiser, x, sigmas) that yield their state after every step.

x is the state at sigmas[0], in the dtype the arithmetic shall have; sigmas is 1-D and ends in 0; `noise` gives fresh
standard normal noise of x's shape. Symbols are EDM's (Karras et al. 2022, algorithms 1 and 2).
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffit_lib.denoiser import Denoiser


class State(NamedTuple):
    """Where a sampler stands after one step."""

    step: int  # 1 after the first
    sigma: float  # noise level of x now; 0 after the last step
    x: Tensor  # (B, C, H, W)
    denoised: Tensor  # the denoiser's latest clean image, (B, C, H, W)


@torch.no_grad()
def euler(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    class_label: Tensor | None = None,
    noise: Callable[[], Tensor] | None = None,
    churn: float = 0.0,
) -> Iterator[State]:
    """Euler's method on the probability-flow ODE: first order, one evaluation a step. Equals DDIM."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist()), start=1):
        x_hat, sigma_hat = _churned(x, sigma, churn / (len(sigmas) - 1), noise)
        denoised = denoiser(x_hat, _batch(sigma_hat, x), class_label)
        x = x_hat + (sigma_next - sigma_hat) * (x_hat - denoised) / sigma_hat
        yield State(step, sigma_next, x, denoised)


@torch.no_grad()
def heun(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    class_label: Tensor | None = None,
    noise: Callable[[], Tensor] | None = None,
    churn: float = 0.0,
) -> Iterator[State]:
    """Heun's method: second order, two evaluations a step but for the last, which is Euler's."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist()), start=1):
        x_hat, sigma_hat = _churned(x, sigma, churn / (len(sigmas) - 1), noise)
        denoised = denoiser(x_hat, _batch(sigma_hat, x), class_label)
        slope = (x_hat - denoised) / sigma_hat
        x = x_hat + (sigma_next - sigma_hat) * slope
        if sigma_next > 0:
            denoised = denoiser(x, _batch(sigma_next, x), class_label)
            slope = (slope + (x - denoised) / sigma_next) / 2
            x = x_hat + (sigma_next - sigma_hat) * slope
        yield State(step, sigma_next, x, denoised)


SAMPLERS = {"heun": heun, "euler": euler}


def _churned(
    x: Tensor, sigma: float, churn_per_step: float, noise: Callable[[], Tensor] | None
) -> tuple[Tensor, float]:
    """Raise the noise level before a step by EDM's gamma (S_min = 0, S_max = inf, S_noise = 1)."""
    gamma = min(churn_per_step, math.sqrt(2) - 1)
    if gamma == 0:
        return x, sigma
    assert noise is not None, "churn needs a source of noise"
    sigma_hat = sigma * (1 + gamma)
    return x + math.sqrt(sigma_hat**2 - sigma**2) * noise().to(x), sigma_hat


def _batch(sigma: float, x: Tensor) -> Tensor:
    """One noise level for the whole batch, (B,), made on x's device."""
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
