"""Noise levels: formulas, order, ends, and the way from one coordinate to another."""

import math

import pytest
import torch

from diffit_lib.diffusion.schedules import (
    cosine_betas,
    karras,
    linear_betas,
    respaced,
    sigma_table,
    sigma_to_t,
    t_to_sigma,
)
from diffit_lib.utils.errors import DiffitError

SCHEDULES = ["linear", "cosine"]


def test_karras_levels_follow_the_formula():
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    torch.testing.assert_close(karras(18).tolist(), [*expected, 0.0], rtol=1e-12, atol=0)


def test_karras_levels_with_rho_one_are_evenly_spaced():
    torch.testing.assert_close(karras(5, 1.0, 5.0, rho=1.0).tolist(), [5.0, 4.0, 3.0, 2.0, 1.0, 0.0])


def test_karras_levels_fall_to_zero_in_float64():
    levels = karras(40, 0.01, 157.0)
    assert levels.dtype == torch.float64
    assert (levels.diff() < 0).all()
    assert levels[-1] == 0
    torch.testing.assert_close(levels[[0, -2]].tolist(), [157.0, 0.01])


def test_linear_betas_run_from_one_ten_thousandth_to_two_hundredths():
    betas = linear_betas(1000)
    torch.testing.assert_close(betas[[0, 1, -1]].tolist(), [1e-4, 1e-4 + 0.0199 / 999, 0.02], rtol=1e-12, atol=0)


@pytest.mark.parametrize("timesteps", [21, 100, 4000])
def test_linear_betas_destroy_about_as_much_in_any_number_of_steps(timesteps):
    assert linear_betas(timesteps).sum().item() == pytest.approx(linear_betas(1000).sum().item())


def test_linear_sigmas_reach_from_a_hundredth_to_157():
    table = sigma_table("linear", 1000)
    assert table[0].item() == pytest.approx(0.0100, abs=5e-6)
    assert table[-1].item() == pytest.approx(157.4, abs=0.05)


def test_cosine_alpha_bar_is_a_squared_cosine_until_its_last_beta_is_cut():
    alpha_bar = (1 - cosine_betas(1000)).cumprod(0)
    for t in (0, 499, 998):
        expected = (
            math.cos(((t + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        )
        assert alpha_bar[t].item() == pytest.approx(expected, rel=1e-9)
    assert cosine_betas(1000).max().item() == cosine_betas(1000)[-1].item() == 0.999


@pytest.mark.parametrize("timesteps", [21, 1000])
@pytest.mark.parametrize("noise_schedule", SCHEDULES)
def test_tables_rise_in_float64(noise_schedule, timesteps):
    table = sigma_table(noise_schedule, timesteps)
    assert table.shape == (timesteps,)
    assert table.dtype == torch.float64
    assert (table.diff() > 0).all()
    assert table.isfinite().all()


@pytest.mark.parametrize("noise_schedule", SCHEDULES)
def test_table_is_that_of_the_betas(noise_schedule):
    betas = {"linear": linear_betas, "cosine": cosine_betas}[noise_schedule](50).tolist()
    alpha_bar = 1.0
    for beta, sigma in zip(betas, sigma_table(noise_schedule, 50).tolist(), strict=True):
        alpha_bar *= 1 - beta
        assert sigma == pytest.approx(math.sqrt((1 - alpha_bar) / alpha_bar), rel=1e-9)


@pytest.mark.parametrize("noise_schedule", SCHEDULES)
def test_t_to_sigma_and_back(noise_schedule):
    table = sigma_table(noise_schedule, 1000)
    t = torch.linspace(0, 999, 4001, dtype=torch.float64)
    torch.testing.assert_close(sigma_to_t(t_to_sigma(t, table), table), t, rtol=0, atol=1e-9)


@pytest.mark.parametrize("noise_schedule", SCHEDULES)
def test_levels_of_the_table_have_whole_times_exactly(noise_schedule):
    table = sigma_table(noise_schedule, 1000)
    assert sigma_to_t(table, table).tolist() == list(range(1000))


def test_between_two_times_log_sigma_is_linear():
    table = sigma_table("linear", 1000)
    halfway = torch.tensor([7.25], dtype=torch.float64)
    expected = table[7] ** 0.75 * table[8] ** 0.25
    torch.testing.assert_close(t_to_sigma(halfway, table), expected[None], rtol=1e-12, atol=0)


def test_noise_levels_beyond_the_table_have_the_time_of_its_ends():
    table = sigma_table("linear", 1000)
    assert sigma_to_t(torch.tensor([0.002, 500.0]), table).tolist() == [0, 999]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_and_noise_levels_keep_their_dtype(dtype):
    table, values = sigma_table("linear", 1000), torch.tensor([1.0, 2.5], dtype=dtype)
    assert sigma_to_t(values, table).dtype == t_to_sigma(values, table).dtype == dtype


@pytest.mark.parametrize("steps", [2, 3, 249, 250, 1000])
def test_respaced_levels_are_those_of_evenly_spaced_times(steps):
    table = sigma_table("linear", 1000)
    times = [round(i * 999 / (steps - 1)) for i in range(steps)]
    assert respaced(table, steps).tolist() == [*table[times[::-1]].tolist(), 0.0]


def test_250_respaced_times_are_the_published_ones():
    times = sigma_to_t(respaced(sigma_table("linear", 1000), 250)[:-1], sigma_table("linear", 1000)).long().tolist()
    assert times[-4:] == [12, 8, 4, 0]
    assert times[:3] == [999, 995, 991]
    assert len(set(times)) == 250


@pytest.mark.parametrize("steps", [1, 1001])
def test_more_levels_than_the_table_has_are_the_users_mistake(steps):
    with pytest.raises(DiffitError, match=f"steps is {steps}; give 2 to 1000"):
        respaced(sigma_table("linear", 1000), steps)
