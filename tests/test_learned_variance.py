"""A learned variance: its bound, its loss and its sampling, against ADM's formulas written out in their own terms."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from diffit_lib.config.diffusion import SamplingConfig, VPConfig
from diffit_lib.config.models import TransformerConfig
from diffit_lib.diffusion.denoiser import VPDenoiser
from diffit_lib.diffusion.guidance import Clipped, Guided
from diffit_lib.diffusion.loss import denoising_loss
from diffit_lib.diffusion.samplers import ancestral
from diffit_lib.diffusion.schedules import linear_betas, sigma_table
from diffit_lib.models import build_network
from diffit_lib.sampling.pipeline import load
from diffit_lib.training.train import train
from diffit_lib.utils.errors import DiffitError

TABLE = sigma_table("linear", 1000)
TINY = TransformerConfig(image_size=(4, 4), width=16, depth=2, num_heads=2, num_classes=3, learned_variance=True)


class ADM:
    """Gaussian diffusion with learned-range variance on some times of the linear betas, in float64."""

    def __init__(self, times):
        whole = (1 - linear_betas(1000)).cumprod(0)[times]
        self.times, self.betas = times, 1 - whole / torch.cat([torch.ones(1), whole[:-1]])
        self.bar = (1 - self.betas).cumprod(0)
        self.bar_before = torch.cat([torch.ones(1), self.bar[:-1]])
        posterior = self.betas * (1 - self.bar_before) / (1 - self.bar)
        self.posterior_log_variance_clipped = torch.cat([posterior[1:2], posterior[1:]]).log()

    def log_variance(self, v, i):
        """Between the logarithms of the posterior's variance and of beta."""
        share = (v + 1) / 2
        return share * self.betas[i].log() + (1 - share) * self.posterior_log_variance_clipped[i]

    def clean(self, x, eps, i):
        """The image that this noise was added to."""
        return (1 / self.bar[i]).sqrt() * x - (1 / self.bar[i] - 1).sqrt() * eps

    def mean(self, clean, x, i):
        """Of the posterior q(x_{t-1} | x_t, x_0)."""
        before, bar, beta = self.bar_before[i], self.bar[i], self.betas[i]
        return beta * before.sqrt() / (1 - bar) * clean + (1 - before) * (1 - beta).sqrt() / (1 - bar) * x

    def bits(self, image, x, eps, v, i):
        """One term of the variational bound in bits, mean over the image's numbers."""
        clean = self.clean(x, eps, i)
        true_mean, true_log_variance = self.mean(image, x, i), self.posterior_log_variance_clipped[i]
        mean, log_variance = self.mean(clean, x, i), self.log_variance(v, i)
        divergence = 0.5 * (
            -1
            + log_variance
            - true_log_variance
            + (true_log_variance - log_variance).exp()
            + (true_mean - mean) ** 2 * (-log_variance).exp()
        )
        likelihood = self.log_likelihood(image, mean, 0.5 * log_variance)
        return (-likelihood if i == 0 else divergence).mean() / math.log(2)

    @staticmethod
    def log_likelihood(image, mean, log_scale):
        def cdf(x):
            return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

        plus = cdf((image - mean + 1 / 255) * (-log_scale).exp())
        minus = cdf((image - mean - 1 / 255) * (-log_scale).exp())
        inside = (plus - minus).clamp(min=1e-12).log()
        top = (1 - minus).clamp(min=1e-12).log()
        return torch.where(image < -0.999, plus.clamp(min=1e-12).log(), torch.where(image > 0.999, top, inside))

    def sample(self, x, network, noise):
        """Ancestral sampling from x, standard normal; yields every state. `network` takes x and an original time."""
        for i in reversed(range(len(self.times))):
            eps, v = network(x, self.times[i]).chunk(2, dim=1)
            mean, log_variance = self.mean(self.clean(x, eps, i), x, i), self.log_variance(v, i)
            x = mean if i == 0 else mean + (0.5 * log_variance).exp() * noise()
            yield x


class Answers(nn.Module):
    """A network that answers with what it is given."""

    def __init__(self, answer):
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, x, noise_label, class_label=None, augment_label=None):
        return self.answer


TIMES = [0, 0, 1, 2, 20, 300, 999]


@pytest.fixture
def given():
    """Images that reach both ends of the grey levels, noise, and what a network might answer."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, 7, 3, 4, 4, generator=generator, dtype=torch.float64)
    images = (0.8 * draw()).clamp(-1, 1)
    noise = draw()
    return images, noise, torch.cat([noise + 0.1 * draw(), 0.7 * draw()], dim=1)


class TestLoss:
    def expected(self, images, noise, answer):
        """Mean square error of eps plus the bound in bits, image by image."""
        adm, rows = ADM(list(range(1000))), []
        for image, n, raw, t in zip(images, noise, answer, TIMES, strict=True):
            x = adm.bar[t].sqrt() * image + (1 - adm.bar[t]).sqrt() * n
            eps, v = raw.chunk(2)
            rows.append(((eps - n) ** 2).mean() + adm.bits(image, x, eps, v, t))
        return torch.stack(rows)

    @torch.no_grad()
    def test_is_adms_mean_square_error_plus_the_bound_in_bits(self, given):
        images, noise, answer = given
        loss = denoising_loss(VPDenoiser(Answers(answer), VPConfig()), images, TABLE[TIMES], noise)
        torch.testing.assert_close(loss, self.expected(*given), rtol=1e-9, atol=1e-12)

    @torch.no_grad()
    def test_in_float32_stays_near_it(self, given):
        images, noise, answer = (tensor.float() for tensor in given)
        loss = denoising_loss(VPDenoiser(Answers(answer), VPConfig()), images, TABLE[TIMES].float(), noise)
        torch.testing.assert_close(loss.double(), self.expected(*given), rtol=1e-3, atol=1e-4)

    def test_bound_teaches_the_variance_alone(self, given):
        images, noise, answer = given
        gradients = []
        for raw in (answer, answer[:, :3]):
            network = Answers(raw)
            denoising_loss(VPDenoiser(network, VPConfig()), images, TABLE[TIMES], noise).sum().backward()
            gradients.append(network.answer.grad)
        assert torch.equal(gradients[0][:, :3], gradients[1])
        assert gradients[0][:, 3:].abs().amax((1, 2, 3)).all()

    def test_perfect_mean_and_the_posteriors_variance_cost_nothing(self, given):
        images, noise, _ = given
        answer = torch.cat([noise, -torch.ones_like(noise)], dim=1)
        loss = denoising_loss(VPDenoiser(Answers(answer), VPConfig()), images, TABLE[TIMES], noise)
        assert loss[2:].abs().max() < 1e-9
        assert (loss[:2] > 0.1).all()  # t = 0 pays for the grey levels


@pytest.fixture(scope="module")
def network():
    """A network whose every parameter matters."""
    torch.manual_seed(0)
    network = build_network(TINY)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.15)
    return network.eval()


def draws(seed, shape):
    """Standard normal noise, one draw after the other."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


class TestSampling:
    def adm_network(self, network, label, scale):
        """eps and variance at an original time, guided on three channels by the published schedule."""

        def answer(x, t):
            time = torch.full((len(x),), float(t))
            conditional = network(x.float(), time, label).double()
            unconditional = network(x.float(), time, torch.full_like(label, 3)).double()
            s = 1 + (scale - 1) * 0.5 * (1 - math.cos(math.pi * (1 - t / 1000) ** 4))
            eps = unconditional[:, :3] + s * (conditional[:, :3] - unconditional[:, :3])
            return torch.cat([eps, conditional[:, 3:]], dim=1)

        return answer

    @pytest.mark.parametrize("scale", [1.0, 4.4])
    @torch.no_grad()
    def test_250_respaced_steps_are_adms(self, network, scale):
        times, label, shape = [round(i * 999 / 249) for i in range(250)], torch.tensor([0, 2]), (2, 4, 4, 4)
        noise = draws(1, shape)
        expected = list(ADM(times).sample(noise(), self.adm_network(network, label, scale), noise))
        sampling = SamplingConfig(
            sampler="ddpm",
            steps=250,
            variance="learned",
            guidance=scale,
            guidance_schedule="power-cosine",
            guidance_channels=3,
            guidance_tolerance=0.0,
        )
        denoiser = Guided(VPDenoiser(network, VPConfig()), sampling, no_class=3)
        noise = draws(1, shape)
        levels, start = denoiser.levels(250), denoiser.initial(noise())
        states = ancestral(denoiser, start, levels, label, noise, **sampling.options)
        for state, x in zip(states, expected, strict=True):
            difference = state.x / math.sqrt(1 + state.sigma**2) - x
            assert difference.norm() < 1e-5 * x.norm(), state.step

    @torch.no_grad()
    def test_learned_variance_matters_and_lies_between_the_two_others(self):
        spread = {}
        for variance, v in (("small", 0.0), ("large", 0.0), *(("learned", v) for v in (-1.0, 0.0, 1.0))):
            answer = torch.cat([torch.zeros(1, 4, 1, 1), torch.full((1, 4, 1, 1), v)], dim=1)
            denoiser, x = VPDenoiser(Answers(answer), VPConfig()), torch.zeros(1, 4, 1, 1, dtype=torch.float64)
            levels = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)
            states = ancestral(denoiser, x, levels, noise=lambda x=x: torch.ones_like(x), variance=variance)
            spread[variance, v] = next(states).x.mean().item()
        assert spread["learned", -1.0] == pytest.approx(spread["small", 0.0])
        assert spread["learned", 1.0] == pytest.approx(spread["large", 0.0])
        geometric = math.sqrt(spread["small", 0.0] * spread["large", 0.0])
        assert spread["learned", 0.0] == pytest.approx(geometric)

    @torch.no_grad()
    def test_clipping_leaves_the_variance_alone(self, network):
        denoiser, label = VPDenoiser(network, VPConfig()), torch.tensor([0, 1])
        x, sigma = draws(0, (2, 4, 4, 4))(), torch.full((2,), 3.0, dtype=torch.float64)
        clean, v = denoiser.with_variance(x, sigma, label)
        clipped, same = Clipped(denoiser).with_variance(x, sigma, label)
        assert torch.equal(v, same)
        assert torch.equal(clipped, clean.clamp(-1, 1))


class TestRecipes:
    def test_trains_and_draws(self, tiny, data, tmp_path):
        experiment = tiny.override(
            network="transformer",
            denoiser="vp",
            in_channels=1,
            image_size=(8, 8),
            width=16,
            depth=2,
            num_heads=2,
            num_classes=10,
            learned_variance=True,
            sampler="ddpm",
            variance="learned",
            guidance=2.0,
        )
        pipe = load(train(experiment, tmp_path, data, progress=False), device="cpu")
        assert pipe(seeds=range(2), steps=8).shape == (2, 8, 8, 1)
        learned, small = (next(pipe.batches(range(2), steps=8, variance=v)) for v in ("learned", "small"))
        assert (learned - small).abs().max() > 1e-3

    def test_an_edm_denoiser_cannot_learn_it(self, tiny):
        with pytest.raises(DiffitError, match=r"^learned_variance is .*; give denoiser=vp too, or [^\n]*$"):
            tiny.override(network="transformer", learned_variance=True)

    def test_a_network_without_it_cannot_be_asked_for_it(self, tiny, weights):
        for ask in (tiny.override, load(weights, device="cpu").sampling):
            with pytest.raises(DiffitError, match=r"^variance is 'learned', [^\n]*; give small or large$"):
                ask(sampler="ddpm", variance="learned")
