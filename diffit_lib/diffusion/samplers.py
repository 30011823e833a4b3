"""Samplers: generators that yield their state after every step, in the symbols of EDM (Karras et al. 2022).

x (B, C, H, W) is the state at sigmas[0], and its dtype is that of the arithmetic. sigmas is 1-D, falls and ends in 0.
`noise()` returns fresh standard normal noise of x's shape. A first-order step is linear in sigma between x and the
clean image at 0, so that it is one `lerp`.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffit_lib.diffusion.denoiser import Denoiser
from diffit_lib.diffusion.schedules import reverse_variances

Noise = Callable[[], Tensor]


class State(NamedTuple):
    """The state of a sampler after one step."""

    step: int  # 1 after the first
    sigma: float  # noise level of x; 0 after the last step
    x: Tensor  # (B, C, H, W)
    denoised: Tensor  # the latest estimate of the clean image, (B, C, H, W)


@torch.no_grad()
def euler(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    class_label: Tensor | None = None,
    noise: Noise | None = None,
    churn: float = 0.0,
) -> Iterator[State]:
    """Euler's method on the probability-flow ODE, which is DDIM: first order, one evaluation a step."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist()), start=1):
        x_hat, sigma_hat = _churned(x, sigma, churn / (len(sigmas) - 1), noise)
        denoised = denoiser(x_hat, sigma_hat, class_label)
        x = denoised.lerp(x_hat, sigma_next / sigma_hat)
        yield State(step, sigma_next, x, denoised)


@torch.no_grad()
def heun(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    class_label: Tensor | None = None,
    noise: Noise | None = None,
    churn: float = 0.0,
) -> Iterator[State]:
    """Heun's method: second order, two evaluations a step; the last step is Euler's."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist()), start=1):
        x_hat, sigma_hat = _churned(x, sigma, churn / (len(sigmas) - 1), noise)
        denoised = denoiser(x_hat, sigma_hat, class_label)
        x = denoised.lerp(x_hat, sigma_next / sigma_hat)
        if sigma_next > 0:  # the mean of both slopes in place of the first: (x - denoised) / sigma_next is the same one
            first, denoised = denoised, denoiser(x, sigma_next, class_label)
            x = (first - denoised).mul_((sigma_next - sigma_hat) / (2 * sigma_next)).add_(x)
        yield State(step, sigma_next, x, denoised)


@torch.no_grad()
def dpm_solver_pp_2m(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, class_label: Tensor | None = None, noise: Noise | None = None
) -> Iterator[State]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, one evaluation a step, no noise.

    It extrapolates the clean image from the last two estimates, linearly in log sigma. The first and the last step
    are first order.
    """
    previous, h_previous = x, math.inf
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist()), start=1):
        denoised = denoiser(x, sigma, class_label)
        h = math.log(sigma / sigma_next) if sigma_next > 0 else math.inf
        ahead = h / h_previous / 2 if sigma_next > 0 else 0.0
        x = denoised.lerp(previous, -ahead).lerp(x, sigma_next / sigma)
        previous, h_previous = denoised, h
        yield State(step, sigma_next, x, denoised)


@torch.no_grad()
def uni_pc(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, class_label: Tensor | None = None, noise: Noise | None = None
) -> Iterator[State]:
    """UniPC-2 (Zhao et al. 2023) with B(h) = e^h - 1: third order, one evaluation a step, no noise.

    It predicts as DPM-Solver++(2M) does. The estimate at the predicted state then corrects the step that led there,
    and the next step starts from the corrected state.
    """
    start, before, now, h_previous, h = x, x, x, math.inf, math.inf
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist()), start=1):
        denoised = denoiser(x, sigma, class_label)
        if step > 1:
            x = _corrected(start, before, now, denoised, h, -h_previous / h)
        start, before, now = x, now, denoised
        h_previous, h = h, math.log(sigma / sigma_next) if sigma_next > 0 else math.inf
        ahead = h / h_previous / 2 if sigma_next > 0 else 0.0
        x = now.lerp(before, -ahead).lerp(x, sigma_next / sigma)
        yield State(step, sigma_next, x, denoised)


def _corrected(x: Tensor, before: Tensor, now: Tensor, after: Tensor, h: float, place: float) -> Tensor:
    """UniC: x one step h of log sigma later, by the estimates there (`after`), here and at `place` h (`before`).

    The two weights solve equation 9 of the paper. The first step has no estimate before it: its `place` is -inf.
    """
    mean = -math.expm1(-h) / h  # of e^-s for s from 0 to h
    first, second = (1 - mean) / (mean * h), (1 - 2 * (1 - mean) / h) / (mean * h)
    share = (first - second) / (1 - place)
    weight = 0.5 if math.isinf(place) else first - share
    return (now + share / place * (before - now) + weight * (after - now)).lerp(x, math.exp(-h))


@torch.no_grad()
def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    class_label: Tensor | None = None,
    noise: Noise | None = None,
    eta: float = 1.0,
    variance: Literal["small", "large", "learned"] = "small",
) -> Iterator[State]:
    """Ancestral sampling (Song et al. 2021, equation 16): DDPM at eta = 1 (Ho et al. 2020), DDIM at eta = 0.

    `variance` is that of the fresh noise: "small" (beta~), "large" (beta) or "learned" (between the two, see
    `loss.py`). The last step adds none.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist()), start=1):
        denoised, v = denoiser.with_variance(x, sigma, class_label)
        small, large = reverse_variances(sigma, sigma_next)
        x = denoised.lerp(x, math.sqrt(sigma_next**2 - eta**2 * small) / sigma)
        if sigma_next > 0 and eta > 0:
            assert noise is not None, "ancestral sampling needs a source of noise"
            share: float | Tensor = float(variance == "large")  # 0 is small, 1 large; log-linear in between
            if variance == "learned":
                assert v is not None, "this network has not learned its variance"
                share = (v + 1) / 2
            x = x + eta * math.sqrt(small) * (large / small) ** (share / 2) * noise().to(x)
        yield State(step, sigma_next, x, denoised)


SAMPLERS: dict[str, Callable[..., Iterator[State]]] = {
    "heun": heun,
    "euler": euler,
    "dpm++": dpm_solver_pp_2m,
    "unipc": uni_pc,
    "ddim": euler,
    "ddpm": ancestral,
}


def _churned(x: Tensor, sigma: float, churn_per_step: float, noise: Noise | None) -> tuple[Tensor, float]:
    """x and sigma after EDM's churn: noise added by the factor gamma (S_min = 0, S_max = inf, S_noise = 1)."""
    gamma = min(churn_per_step, math.sqrt(2) - 1)
    if gamma == 0:
        return x, sigma
    assert noise is not None, "churn needs a source of noise"
    sigma_hat = sigma * (1 + gamma)
    return x + math.sqrt(sigma_hat**2 - sigma**2) * noise().to(x), sigma_hat
