"""The training loss, and what a learned variance adds: the variational bound on one reverse step, in bits.

That network also outputs v, about -1 to 1, for each pixel and channel. It interpolates the log-variance of the reverse
step from sigma to sigma' < sigma (Nichol and Dhariwal 2021): "small" at v = -1 (the step given the clean image),
"large" at v = 1 (the forward step).
"""

import math

import torch
from torch import Tensor

from diffit_lib.diffusion.denoiser import Preconditioned
from diffit_lib.diffusion.schedules import ReverseSteps
from diffit_lib.utils.tensors import expand_like

HALF_WIDTH = 1 / 255  # half of one of the 256 grey levels in [-1, 1]


def denoising_loss(
    denoiser: Preconditioned,
    images: Tensor,
    sigma: Tensor,
    noise: Tensor,
    class_label: Tensor | None = None,
    augment_label: Tensor | None = None,
) -> Tensor:
    """lambda(sigma) || D(x0 + sigma noise; sigma) - x0 ||^2 of each image, mean over pixels and channels: (B,).

    A learned variance adds its bound in bits; the bound's gradient reaches only the variance (Nichol and Dhariwal
    2021, section 3.1).
    """
    noisy = images + expand_like(sigma, images) * noise
    denoised, v = denoiser.with_variance(noisy, sigma, class_label, augment_label)
    error = denoised - images
    loss = denoiser.weight(sigma) * error.square().flatten(1).mean(1)
    if v is None:
        return loss
    t = denoiser.noise_label(sigma).round().long()
    return loss + variational_bound(images, error.detach(), v, t, denoiser.steps)


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
