"""Samplers on data whose answer is known."""

import math

import pytest
import torch
from analytic import Gaussian, final, moments

from diffit_lib.noise import karras
from diffit_lib.samplers import euler, heun


def error(sampler, num_steps):
    """Distance from the exact flow at the last level above 0."""
    data = Gaussian()
    sigmas = karras(num_steps)[:-1]
    x = data.initial(torch.linspace(-2, 2, 5, dtype=torch.float64).view(-1, 1, 1, 1))
    return (final(sampler(data, x, sigmas)) - data.flow(x, sigmas[0], sigmas[-1])).abs().max().item()


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_error_falls_with_the_order_of_the_method(sampler, order):
    assert error(sampler, 128) / error(sampler, 256) == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize("churn", [0.0, 20.0, 40.0])
@pytest.mark.parametrize(("sampler", "tolerance"), [(euler, 0.03), (heun, 0.001)])
def test_churn_keeps_mean_and_variance(sampler, tolerance, churn):
    mean, variance = moments(sampler, Gaussian(mean=0.3, std=0.5), karras(1000), churn=churn)
    assert mean == pytest.approx(0.3, rel=0.01)
    assert variance == pytest.approx(0.25, rel=tolerance)


@pytest.mark.parametrize("sampler", [euler, heun])
def test_every_step_is_yielded_in_float64_and_the_last_is_clean(sampler):
    sigmas = karras(6)
    states = list(sampler(Gaussian(), 80 * torch.ones(2, 1, 3, 3, dtype=torch.float64), sigmas))
    assert [state.step for state in states] == [1, 2, 3, 4, 5, 6]
    assert [state.sigma for state in states] == sigmas[1:].tolist()
    assert {state.x.dtype for state in states} == {state.denoised.dtype for state in states} == {torch.float64}
    assert torch.equal(states[-1].x, states[-1].denoised)


@pytest.mark.parametrize("sampler", [euler, heun])
def test_without_churn_no_noise_is_drawn(sampler):
    final(sampler(Gaussian(), torch.ones(1, 1, 2, 2, dtype=torch.float64), karras(4), noise=None))


@pytest.mark.parametrize(("churn", "gamma"), [(0.4, 0.2), (3.0, math.sqrt(2) - 1)])
def test_a_churned_step_raises_the_noise_level_first_and_by_no_more_than_the_limit(churn, gamma):
    data, x = Gaussian(), torch.full((1, 1, 1, 1), 4.0, dtype=torch.float64)
    x_hat = 4 + math.sqrt((3 * (1 + gamma)) ** 2 - 3**2)  # the draw is 1
    expected = x_hat + (1 - 3 * (1 + gamma)) * (x_hat - data(x_hat * x / 4, 3 * (1 + gamma) * x / 4)) / (
        3 * (1 + gamma)
    )
    states = euler(data, x, torch.tensor([3.0, 1.0, 0.0]), noise=lambda: torch.ones_like(x), churn=churn)
    torch.testing.assert_close(next(states).x, expected)


@pytest.mark.parametrize("sampler", [euler, heun])
def test_labels_and_noise_levels_reach_the_denoiser(sampler):
    seen = []

    class Recording(Gaussian):
        def __call__(self, x, sigma, class_label=None, augment_label=None):
            assert sigma.shape == (2,)
            assert sigma.dtype == torch.float64
            seen.append((sigma[0].item(), class_label))
            return super().__call__(x, sigma)

    labels, sigmas = torch.tensor([3, 4]), karras(3)
    final(sampler(Recording(), torch.ones(2, 1, 2, 2, dtype=torch.float64), sigmas, labels))
    assert {sigma for sigma, _ in seen} == set(sigmas[:-1].tolist())
    assert all(label is labels for _, label in seen)
