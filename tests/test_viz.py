"""Views of a trained network: attention against a direct computation, the frozen time token, Figures."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from diffit_lib.sampling.pipeline import load
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import SeededNoise, to_float
from diffit_lib.viz import figures
from diffit_lib.viz.attention import attention_at, attention_blocks, frozen_time, noisy_states

SIGMAS = (0.1, 1.0, 5.0)


@pytest.fixture(scope="module", params=["digits", "latent-digits"])
def pipe(request):
    return load(request.param)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def hooks(pipe):
    """All hooks on the network's modules."""
    modules = list(pipe.denoiser.modules())
    return [
        hook for module in modules for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


@pytest.fixture(scope="module")
def states(pipe):
    clean = SeededNoise([0], pipe.card.experiment.network.shape)() / 2
    return noisy_states(clean, SIGMAS)


class TestAttention:
    def test_is_that_of_a_direct_float64_computation(self, pipe, states):
        for name in attention_blocks(pipe.denoiser.network):
            seen = attention_at(pipe, name, states, SIGMAS, 3)
            layer = attention_blocks(pipe.denoiser.network)[name]
            heads, (wh, ww) = layer.num_heads, layer.window
            qkv = seen.space.double() + seen.time.double()[:, None, None]
            for level in range(len(SIGMAS)):
                for down in range(seen.weights.shape[1]):
                    for right in range(seen.weights.shape[2]):
                        tokens = qkv[level, down * wh : (down + 1) * wh, right * ww : (right + 1) * ww].flatten(0, 1)
                        q, k, _ = tokens.unbind(1)  # (N, C)
                        for head, (one, other) in enumerate(zip(q.chunk(heads, 1), k.chunk(heads, 1), strict=True)):
                            logits = one @ other.T / one.shape[1] ** 0.5 + seen.bias[head].double()
                            found = seen.weights[level, down, right, head].double()
                            assert torch.allclose(found, logits.softmax(-1), atol=1e-5)

    def test_rows_sum_to_1(self, pipe, states):
        for name in attention_blocks(pipe.denoiser.network):
            assert torch.allclose(
                attention_at(pipe, name, states, SIGMAS, 3).weights.sum(-1), torch.ones(()), atol=1e-5
            )

    def test_a_query_looks_within_its_window_alone(self, digits):
        x = noisy_states(SeededNoise([0], (1, 8, 8))() / 2, SIGMAS)
        looks = attention_at(digits, "decoder.0.0", x, SIGMAS, 3).of_query(5, 2, head=1)
        assert looks.shape == (3, 8, 8)
        assert torch.allclose(looks[:, 4:, :4].sum((1, 2)), torch.ones(3), atol=1e-5)
        assert looks.sum() == pytest.approx(3, abs=1e-4)

    def test_changes_with_the_noise_level(self, pipe, states):
        weights = attention_at(pipe, next(iter(attention_blocks(pipe.denoiser.network))), states, SIGMAS, 3).weights
        assert (weights[0] - weights[-1]).abs().max() > 0.05

    def test_the_keys_part_of_the_time_token_is_inert(self, pipe, states):
        seen = attention_at(pipe, next(iter(attention_blocks(pipe.denoiser.network))), states, SIGMAS, 3)
        assert torch.allclose(seen.without_key_time(), seen.weights, atol=1e-5)
        assert seen.time[:, 1].abs().max() > 0.1  # although there is one

    def test_shares_and_distances_are_within_their_bounds(self, pipe, states):
        seen = attention_at(pipe, next(iter(attention_blocks(pipe.denoiser.network))), states, SIGMAS, 3)
        assert ((seen.time_share() > 0) & (seen.time_share() < 1)).all()
        height, width = seen.window
        assert ((seen.mean_distance() > 0) & (seen.mean_distance() < (height**2 + width**2) ** 0.5)).all()

    def test_an_unknown_block_and_a_network_without_are_told_in_one_line(self, digits):
        with pytest.raises(DiffitError, match=r"block is 'x'; give one of encoder\.0\.0"):
            attention_at(digits, "x", torch.zeros(1, 1, 8, 8), [1.0])
        with pytest.raises(DiffitError, match="no time-dependent attention"):
            attention_blocks(torch.nn.Linear(1, 1))


class TestFrozenTime:
    def test_changes_the_sample_and_leaves_nothing_behind(self, pipe):
        before = pipe([0, 1], 3)
        with frozen_time(pipe.denoiser, 0.1):
            frozen = pipe([0, 1], 3)
        assert (frozen != before).mean() > 0.1
        assert np.array_equal(pipe([0, 1], 3), before)

    def test_at_the_true_noise_level_changes_nothing(self, digits):
        x, sigma = SeededNoise([0], (1, 8, 8))(), torch.tensor([0.7])
        label = torch.tensor([3])
        with torch.no_grad(), frozen_time(digits.denoiser, 0.7):
            frozen = digits.denoiser(x, sigma, label)
        with torch.no_grad():
            assert torch.allclose(frozen, digits.denoiser(x, sigma, label), atol=1e-6)

    def test_at_several_levels_each_image_is_told_its_own(self, digits):
        x, sigma, label = SeededNoise([0, 0], (1, 8, 8))(), torch.tensor([0.7, 0.7]), torch.tensor([3, 3])
        with torch.no_grad(), frozen_time(digits.denoiser, [0.7, 0.1]):
            told = digits.denoiser(x, sigma, label)
        with torch.no_grad():
            true = digits.denoiser(x, sigma, label)
        assert torch.allclose(told[0], true[0], atol=1e-6)
        assert (told[1] - true[1]).abs().max() > 0.1

    def test_the_true_level_gives_the_estimate_that_is_nearest_to_the_clean_image(self, digits):
        *_, drawn = digits.stream([3], 3)
        told = [0.7 * factor for factor in (16, 4, 1, 1 / 4, 1 / 16)]
        x, block = noisy_states(drawn.x, [0.7] * 5), next(iter(attention_blocks(digits.denoiser.network)))
        with frozen_time(digits.denoiser, told):
            clean = attention_at(digits, block, x, [0.7] * 5, 3).clean
        assert (clean - drawn.x).square().mean((1, 2, 3)).argmin() == 2

    def test_no_view_leaves_a_hook(self, pipe, states):
        attention_at(pipe, next(iter(attention_blocks(pipe.denoiser.network))), states, SIGMAS, 3)
        with frozen_time(pipe.denoiser, 1.0):
            assert hooks(pipe)
        pipe.interpolate((0, 0), (1, 2), count=3, steps=4)
        assert not hooks(pipe)


def test_every_view_is_a_figure(digits, tmp_path):
    states = list(digits.stream([3], 5, steps=6))[:-1]
    x, sigmas = torch.cat([state.x for state in states]), [state.sigma for state in states]
    blocks = {name: attention_at(digits, name, x, sigmas, 5) for name in attention_blocks(digits.denoiser.network)}
    seen = blocks["decoder.0.0"]
    clean = to_float(torch.from_numpy(digits([3], 5)).movedim(-1, 1))
    made = [
        figures.denoising_figure(digits, 3, 5, columns=4),
        figures.schedules_figure(clean, SeededNoise([0], clean.shape[1:])(), columns=4),
        figures.preconditioning_figure(digits.denoiser),
        figures.time_token_figure(digits, 3, 5, query=(3, 4)),
        figures.position_bias_figure(seen),
        figures.time_share_figure(blocks),
        figures.distance_figure(blocks),
        figures.inert_key_figure(seen, (3, 4)),
        figures.frozen_time_figure(digits, range(2), [1.0], 3),
    ]
    for number, figure in enumerate(made):
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f"{number}.png")
