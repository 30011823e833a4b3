"""Data whose best denoiser is known in closed form, so that losses and samplers have known answers."""

import math
from dataclasses import dataclass

import torch

from diffit_lib.diffusion.schedules import karras, sigma_table, sigma_to_t


@dataclass
class Gaussian:
    """Independent pixels N(mean, std^2), and the denoiser that no other can beat on them."""

    mean: float = 0.3
    std: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __call__(self, x, sigma, class_label=None, augment_label=None):
        """E[x0 | x]."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype).view(-1, 1, 1, 1)
        return (self.std**2 * x + sigma**2 * self.mean) / (self.std**2 + sigma**2)

    def with_variance(self, x, sigma, class_label=None):
        """The same, and no learned variance."""
        return self(x, sigma, class_label), None

    def initial(self, noise):
        return self.sigma_max * noise

    def levels(self, num_steps):
        return karras(num_steps, self.sigma_min, self.sigma_max)

    def t(self, sigma):
        return sigma_to_t(sigma, sigma_table("linear", 1000))

    def flow(self, x, sigma, sigma_next):
        """Where the probability-flow ODE carries x from sigma to sigma_next."""
        shrink = math.sqrt((self.std**2 + sigma_next**2) / (self.std**2 + sigma**2))
        return self.mean + (x - self.mean) * shrink


def final(states):
    """The last state of a sampler."""
    return list(states)[-1].x


def moments(sampler, denoiser, sigmas, **options):
    """Mean and variance of a sampler's output over all noise, exactly.

    Denoiser and sampler are affine in their draws: row 0 of the batch draws nothing, row k is 1 in draw k alone.
    """
    rows = torch.eye(len(sigmas) + 1, dtype=torch.float64).tolist()
    draws = iter([torch.tensor([0.0, *row], dtype=torch.float64).view(-1, 1, 1, 1) for row in rows])
    x = final(sampler(denoiser, denoiser.initial(next(draws)), sigmas, noise=lambda: next(draws), **options)).flatten()
    return float(x[0]), float((x[1:] - x[0]).square().sum())
