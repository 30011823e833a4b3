"""Noise levels: formulas, order, ends."""

import torch

from diffit_lib.noise import karras


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
