"""Samplers on data whose answer is known, against the textbook's formulas, and against another library."""

import math
from functools import partial

import pytest
import torch
from analytic import Gaussian, final, moments

from diffit_lib.config.diffusion import SAMPLER_OPTIONS, SamplingConfig, VPConfig
from diffit_lib.diffusion.denoiser import VPDenoiser
from diffit_lib.diffusion.guidance import Guided
from diffit_lib.diffusion.samplers import SAMPLERS, ancestral, dpm_solver_pp_2m, euler, heun, uni_pc
from diffit_lib.diffusion.schedules import karras, linear_betas, respaced, sigma_table, sigma_to_t

EVERY = [euler, heun, dpm_solver_pp_2m, uni_pc, ancestral]
TABLE = sigma_table("linear", 1000)


def error(sampler, num_steps):
    """Distance from the exact flow at the last level above 0."""
    data = Gaussian()
    sigmas = karras(num_steps)[:-1]
    x = data.initial(torch.linspace(-2, 2, 5, dtype=torch.float64).view(-1, 1, 1, 1))
    return (final(sampler(data, x, sigmas)) - data.flow(x, sigmas[0], sigmas[-1])).abs().max().item()


@pytest.mark.parametrize(
    ("sampler", "order"), [(euler, 1), (partial(ancestral, eta=0.0), 1), (heun, 2), (dpm_solver_pp_2m, 2), (uni_pc, 3)]
)
def test_error_falls_with_the_order_of_the_method(sampler, order):
    assert error(sampler, 128) / error(sampler, 256) == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize("churn", [0.0, 20.0, 40.0])
@pytest.mark.parametrize(("sampler", "tolerance"), [(euler, 0.03), (heun, 0.001)])
def test_churn_keeps_mean_and_variance(sampler, tolerance, churn):
    mean, variance = moments(sampler, Gaussian(mean=0.3, std=0.5), karras(1000), churn=churn)
    assert mean == pytest.approx(0.3, rel=0.01)
    assert variance == pytest.approx(0.25, rel=tolerance)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_fresh_noise_keeps_mean_and_variance(eta, variance):
    mean, reached = moments(ancestral, Gaussian(mean=0.3, std=0.5), karras(1000), eta=eta, variance=variance)
    assert mean == pytest.approx(0.3, rel=0.01)
    assert reached == pytest.approx(0.25, rel=0.03)


@pytest.mark.parametrize("sampler", EVERY)
def test_every_step_is_yielded_in_float64_and_the_last_is_clean(sampler):
    sigmas, x = karras(6), 80 * torch.ones(2, 1, 3, 3, dtype=torch.float64)
    states = list(sampler(Gaussian(), x, sigmas, noise=lambda: torch.randn(2, 1, 3, 3)))
    assert [state.step for state in states] == [1, 2, 3, 4, 5, 6]
    assert [state.sigma for state in states] == sigmas[1:].tolist()
    assert {state.x.dtype for state in states} == {state.denoised.dtype for state in states} == {torch.float64}
    assert torch.equal(states[-1].x, states[-1].denoised)


@pytest.mark.parametrize("sampler", [euler, heun, dpm_solver_pp_2m, partial(ancestral, eta=0.0)])
def test_deterministic_samplers_draw_no_noise(sampler):
    final(sampler(Gaussian(), torch.ones(1, 1, 2, 2, dtype=torch.float64), karras(4), noise=None))


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_sampling_draws_noise_in_every_step_but_the_last(variance):
    draws = []

    def noise():
        draws.append(None)
        return torch.ones(1, 1, 2, 2)

    final(ancestral(Gaussian(), torch.ones(1, 1, 2, 2, dtype=torch.float64), karras(7), noise=noise, variance=variance))
    assert len(draws) == 6


@pytest.mark.parametrize(("churn", "gamma"), [(0.4, 0.2), (3.0, math.sqrt(2) - 1)])
def test_a_churned_step_raises_the_noise_level_first_and_by_no_more_than_the_limit(churn, gamma):
    data, x, sigma_hat = Gaussian(), torch.full((1, 1, 1, 1), 4.0, dtype=torch.float64), torch.tensor(3 * (1 + gamma))
    x_hat = x + (sigma_hat**2 - 9).sqrt()  # the draw is 1
    expected = x_hat + (1 - sigma_hat) * (x_hat - data(x_hat, sigma_hat)) / sigma_hat
    states = euler(data, x, torch.tensor([3.0, 1.0, 0.0]), noise=lambda: torch.ones_like(x), churn=churn)
    torch.testing.assert_close(next(states).x, expected)


@pytest.mark.parametrize("sampler", EVERY)
def test_labels_and_noise_levels_reach_the_denoiser(sampler):
    seen = []

    class Recording(Gaussian):
        def __call__(self, x, sigma, class_label=None, augment_label=None):
            assert isinstance(sigma, float)
            seen.append((sigma, class_label))
            return super().__call__(x, sigma)

    labels, sigmas, x = torch.tensor([3, 4]), karras(3), torch.ones(2, 1, 2, 2, dtype=torch.float64)
    final(sampler(Recording(), x, sigmas, labels, lambda: torch.ones_like(x)))
    assert {sigma for sigma, _ in seen} == set(sigmas[:-1].tolist())
    assert all(label is labels for _, label in seen)


@pytest.mark.parametrize("name", SAMPLERS)
def test_settings_hold_the_options_of_every_sampler_by_name(name):
    x, sampling = torch.ones(1, 1, 2, 2, dtype=torch.float64), SamplingConfig(sampler=name)
    final(SAMPLERS[name](Gaussian(), x, karras(4), None, lambda: torch.ones_like(x), **sampling.options))
    assert SAMPLERS.keys() == SAMPLER_OPTIONS.keys()


def raw_eps(x, t, class_label):
    """A smooth stand-in for a trained network: the state itself where all is noise, less simple near the image."""
    near, label = (1 - t.view(-1, 1, 1, 1) / 1000) ** 4, class_label.to(x).view(-1, 1, 1, 1) / 10
    return x + near * (torch.sin(2 * x + label) - 0.5 * torch.tanh(x.flip(1) - 3 * label) - x)


class ToyDenoiser(Gaussian):
    """`raw_eps` as a denoiser in float64 throughout."""

    def __call__(self, x, sigma, class_label=None, augment_label=None):
        t = sigma_to_t(torch.tensor([sigma], dtype=torch.float64), TABLE)
        return x - sigma * raw_eps(x / math.sqrt(1 + sigma**2), t, class_label)


def textbook(x, times, alpha_bar, eps, noise, *, eta=1.0, large=False):
    """DDPM (Ho et al. 2020) or, with eta, DDIM (Song et al. 2021, equations 12 and 16), step by step in their terms."""
    for t, t_next in zip(times, [*times[1:], None], strict=True):
        a, a_next = alpha_bar[t], 1.0 if t_next is None else alpha_bar[t_next]
        e = eps(x, t)
        x0 = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
        beta = 1 - a / a_next
        std = eta * math.sqrt((1 - a_next) / (1 - a) * beta)
        if eta == 1:  # Ho et al., equation 7
            mean = math.sqrt(a_next) * beta / (1 - a) * x0 + math.sqrt(1 - beta) * (1 - a_next) / (1 - a) * x
        else:
            mean = math.sqrt(a_next) * x0 + math.sqrt(1 - a_next - std**2) * e
        x = mean if t_next is None or eta == 0 else mean + (math.sqrt(beta) if large else std) * noise()
        yield x


def textbook_guided_eps(scale):
    """eps_u + s(t) (eps_c - eps_u) on three of four channels, as the published sampler has it; class 1 against 10."""

    def eps(x, t):
        time = torch.full((len(x),), float(t), dtype=torch.float64)
        conditional = raw_eps(x, time, torch.ones_like(time))
        unconditional = raw_eps(x, time, torch.full_like(time, 10))
        s = 1 + (scale - 1) * 0.5 * (1 - math.cos(math.pi * (1 - t / 1000) ** 4))
        guided = unconditional + s * (conditional - unconditional)
        return torch.cat([guided[:, :3], conditional[:, 3:]], dim=1)

    return eps


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, {}),
        ({"variance": "large"}, {"large": True}),
        ({"eta": 0.0}, {"eta": 0.0}),
        ({"eta": 0.6}, {"eta": 0.6}),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 4.4])
def test_ancestral_sampling_is_the_textbooks_over_250_steps(options, words, scale):
    start = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha_bar = (1 - linear_betas(1000)).cumprod(0).tolist()
    times = [round(i * 999 / 249) for i in range(250)][::-1]

    def noise(generator):
        return torch.randn(start.shape, generator=generator, dtype=torch.float64)

    draws = partial(noise, torch.Generator().manual_seed(1))
    expected = list(textbook(start, times, alpha_bar, textbook_guided_eps(scale), draws, **words))
    draws = partial(noise, torch.Generator().manual_seed(1))
    sampling = SamplingConfig(
        guidance=scale, guidance_schedule="power-cosine", guidance_channels=3, guidance_tolerance=0.0
    )
    denoiser = Guided(ToyDenoiser(), sampling, no_class=10)
    x = start * math.sqrt(1 + TABLE[-1].item() ** 2)
    labels = torch.ones(2, dtype=torch.int64)
    states = list(ancestral(denoiser, x, respaced(TABLE, 250), labels, draws, **options))
    for state, reference in zip(states, expected, strict=True):
        torch.testing.assert_close(state.x / math.sqrt(1 + state.sigma**2), reference, rtol=0, atol=1e-12)


def test_ddim_is_eulers_method():
    x = 100 * torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([1, 2])
    ddim = final(ancestral(ToyDenoiser(), x, respaced(TABLE, 50), labels, eta=0.0))
    torch.testing.assert_close(final(euler(ToyDenoiser(), x, respaced(TABLE, 50), labels)), ddim, rtol=0, atol=1e-12)


class ToyNetwork(torch.nn.Module):
    """`raw_eps` as a network."""

    def forward(self, x, noise_label, class_label=None, augment_label=None):
        return raw_eps(x, noise_label, class_label)


SCHEDULE = {"beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}
DDIM = {"set_alpha_to_one": True, "clip_sample": False}
DDPM = {"variance_type": "fixed_small", "clip_sample": False}
DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
UNIPC = {"solver_type": "bh2", "solver_order": 2, "final_sigmas_type": "zero"}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(
    ("theirs", "settings", "ours", "step_options"),
    [
        ("DDIMScheduler", DDIM, SAMPLERS["ddim"], {}),
        ("DDIMScheduler", DDIM, partial(SAMPLERS["ddpm"], eta=0.5), {"eta": 0.5}),
        ("DDPMScheduler", DDPM, SAMPLERS["ddpm"], {}),
        ("DPMSolverMultistepScheduler", DPM, SAMPLERS["dpm++"], None),
        ("UniPCMultistepScheduler", UNIPC, SAMPLERS["unipc"], None),
    ],
)
def test_samplers_agree_with_diffusers(theirs, settings, ours, step_options, spacing, prediction):
    diffusers = pytest.importorskip("diffusers", reason="reference schedulers: pip install diffusers")
    names = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    schedule = SCHEDULE | {"prediction_type": names[prediction], "timestep_spacing": spacing}
    scheduler = getattr(diffusers, theirs)(**schedule, **settings)
    scheduler.alphas_cumprod = (1 - linear_betas(1000)).cumprod(0)  # its own is float32: 6e-4 off in 1 - alpha_bar at 0
    scheduler.set_timesteps(20)
    start = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([1, 2])
    step_options = {} if step_options is None else step_options | {"generator": torch.Generator().manual_seed(1)}

    x = start
    for t in scheduler.timesteps:
        answer = raw_eps(x.float(), t.float().expand(2), labels).double()
        x = scheduler.step(answer, t, x, **step_options).prev_sample

    sigmas = torch.cat([TABLE[scheduler.timesteps], torch.zeros(1, dtype=torch.float64)])
    generator = torch.Generator().manual_seed(1)
    noise = partial(torch.randn, start.shape, generator=generator, dtype=torch.float64)
    denoiser = VPDenoiser(ToyNetwork(), VPConfig(prediction=prediction))
    ours_x = final(ours(denoiser, start * (1 + sigmas[0] ** 2).sqrt(), sigmas, labels, noise))
    torch.testing.assert_close(ours_x, x, rtol=0, atol=1e-5)
