"""Denoisers and the loss, against closed forms."""

import math

import pytest
import torch
from torch import nn

from diffit_lib.config.diffusion import EDMConfig, FlowConfig, VPConfig
from diffit_lib.diffusion.denoiser import DENOISERS, EDMDenoiser, FlowDenoiser, VPDenoiser
from diffit_lib.diffusion.loss import denoising_loss
from diffit_lib.diffusion.samplers import euler, heun
from diffit_lib.diffusion.schedules import karras, respaced, sigma_table
from diffit_lib.utils.errors import DiffitError

SIGMAS = torch.tensor([0.002, 0.5, 80.0])


class Constant(nn.Module):
    """A network that answers with one number and remembers what it was asked."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = value

    def forward(self, x, noise_label, class_label=None, augment_label=None):
        self.x, self.noise_label, self.labels = x, noise_label, (class_label, augment_label)
        return torch.full_like(x, self.value)


@pytest.fixture
def images():
    return torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


class TestEDM:
    config = EDMConfig(sigma_data=0.5)

    def test_network_of_zero_leaves_c_skip_times_x(self, images):
        c_skip = 0.25 / (SIGMAS**2 + 0.25)
        expected = c_skip.view(-1, 1, 1, 1) * images
        torch.testing.assert_close(EDMDenoiser(Constant(0.0), self.config)(images, SIGMAS), expected)

    def test_output_tends_to_x_as_sigma_tends_to_zero(self, images):
        denoised = EDMDenoiser(Constant(3.0), self.config)(images, torch.full((3,), 1e-7))
        torch.testing.assert_close(denoised, images, rtol=0, atol=1e-6)

    def test_network_sees_unit_variance_and_a_quarter_of_log_sigma(self, images):
        network = Constant()
        EDMDenoiser(network, self.config)(images, SIGMAS)
        torch.testing.assert_close(network.x, images / (SIGMAS**2 + 0.25).sqrt().view(-1, 1, 1, 1))
        torch.testing.assert_close(network.noise_label, SIGMAS.log() / 4)

    def test_labels_reach_the_network(self, images):
        network, classes, augment = Constant(), torch.tensor([1, 2, 3]), torch.ones(3, 9)
        EDMDenoiser(network, self.config)(images, SIGMAS, classes, augment)
        assert network.labels == (classes, augment)

    def test_state_keeps_its_dtype_while_the_network_runs_in_float32(self, images):
        network = Constant()
        denoised = EDMDenoiser(network, self.config)(images.double(), SIGMAS.double())
        assert denoised.dtype == torch.float64
        assert network.x.dtype == network.noise_label.dtype == torch.float32

    @pytest.mark.parametrize(("sigma", "weight"), [(0.002, 250_004.0), (0.5, 8.0), (80.0, 4.00015625)])
    def test_weight_is_the_papers(self, sigma, weight):
        denoiser = EDMDenoiser(Constant(), self.config)
        torch.testing.assert_close(denoiser.weight(torch.tensor(sigma)).item(), weight, rtol=1e-6, atol=0)

    def test_weight_cancels_c_out_squared(self):
        zero = torch.zeros(3, 1, 1, 1)
        c_out = EDMDenoiser(Constant(1.0), self.config)(zero, SIGMAS).flatten()
        weight = EDMDenoiser(Constant(), self.config).weight(SIGMAS)
        torch.testing.assert_close(weight * c_out**2, torch.ones(3))

    @pytest.mark.parametrize(("sigma_data", "mean"), [(0.5, -1.2), (1.0, -1.2 + math.log(2))])
    def test_drawn_noise_levels_have_the_quantiles_of_their_distribution(self, sigma_data, mean):
        deviations = torch.tensor([-3.0, -1.0, 0.0, 2.0], dtype=torch.float64)
        drawn = EDMDenoiser(Constant(), EDMConfig(sigma_data=sigma_data)).draw_sigma(torch.special.ndtr(deviations))
        torch.testing.assert_close(drawn, (mean + 1.2 * deviations).exp().float())

    def test_the_ends_of_the_uniform_interval_give_finite_noise_levels(self):
        drawn = EDMDenoiser(Constant(), self.config).draw_sigma(torch.tensor([0.0, 1.0], dtype=torch.float64))
        assert drawn.isfinite().all()
        assert (drawn > 0).all()

    def test_initial_state_has_the_largest_noise_level(self, images):
        torch.testing.assert_close(EDMDenoiser(Constant(), self.config).initial(images), 80 * images)

    def test_levels_are_edms(self):
        assert torch.equal(EDMDenoiser(Constant(), self.config).levels(18), karras(18))

    def test_time_is_that_of_the_linear_betas(self):
        table = sigma_table("linear", 1000)
        t = EDMDenoiser(Constant(), self.config).t(torch.stack([table[0] / 2, table[300], table[-1] * 2]))
        assert t.tolist() == [0, 300, 999]


class Answers(nn.Module):
    """A network that answers with what it is given."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, noise_label, class_label=None, augment_label=None):
        return self.answer


class TestVP:
    table = sigma_table("linear", 1000)
    sigmas = torch.tensor([0.0101, 0.8, 150.0], dtype=torch.float64)

    def answers(self, images, eps):
        """What a perfect network would say: alpha_bar's definitions of eps, v and x0."""
        alpha_bar = (1 / (1 + self.sigmas**2)).view(-1, 1, 1, 1)
        return {"eps": eps, "v": alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * images, "x0": images}

    @pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
    def test_perfect_prediction_gives_the_clean_image(self, images, prediction):
        images, eps = images.double(), torch.randn(images.shape, dtype=torch.float64)
        denoiser = VPDenoiser(Answers(self.answers(images, eps)[prediction]), VPConfig(prediction=prediction))
        noisy = images + self.sigmas.view(-1, 1, 1, 1) * eps
        torch.testing.assert_close(denoiser(noisy, self.sigmas), images, rtol=0, atol=1e-12)

    def test_network_sees_the_variance_preserving_state_and_t(self, images):
        network, t = Constant(), [0, 400, 999]
        VPDenoiser(network, VPConfig())(images.double(), self.table[t])
        signal = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).sqrt()[t]
        torch.testing.assert_close(network.x, (signal.view(-1, 1, 1, 1) * images).float())
        assert network.noise_label.tolist() == t
        assert network.x.dtype == network.noise_label.dtype == torch.float32

    def test_state_keeps_its_dtype(self, images):
        assert VPDenoiser(Constant(), VPConfig())(images.double(), self.sigmas).dtype == torch.float64

    def test_bounds_are_the_ends_of_the_table(self, images):
        denoiser = VPDenoiser(Constant(), VPConfig(noise_schedule="cosine"))
        assert (denoiser.sigma_min, denoiser.sigma_max) == tuple(sigma_table("cosine", 1000)[[0, -1]].tolist())

    def test_initial_state_has_unit_variance_in_the_networks_coordinates(self, images):
        network = Constant()
        denoiser = VPDenoiser(network, VPConfig())
        denoiser(denoiser.initial(images.double()), self.table[-1].expand(3))
        torch.testing.assert_close(network.x, images)

    def test_levels_are_the_respaced_table(self):
        assert torch.equal(VPDenoiser(Constant(), VPConfig()).levels(250), respaced(self.table, 250))

    @pytest.mark.parametrize(
        ("given", "low", "high"),
        [
            ({"sigma_min": 0.03, "sigma_max": 10.0}, 0.03, 10.0),
            ({"sigma_max": 10.0}, 0.01, 10.0),
            ({"sigma_min": 1.0}, 1.0, 157.4),
        ],
    )
    def test_levels_are_edms_where_their_range_is_given(self, given, low, high):
        denoiser = VPDenoiser(Constant(), VPConfig(**given))
        assert (denoiser.sigma_min, denoiser.sigma_max) == pytest.approx((low, high), rel=1e-3)
        assert torch.equal(denoiser.levels(18), karras(18, denoiser.sigma_min, denoiser.sigma_max))
        assert float(denoiser.initial(torch.ones(()))) == pytest.approx((1 + high**2) ** 0.5, rel=1e-3)

    @pytest.mark.parametrize(
        "given", [{"sigma_min": 0.001}, {"sigma_max": 200.0}, {"sigma_min": 2.0, "sigma_max": 1.0}]
    )
    def test_a_range_outside_the_table_is_refused(self, given):
        with pytest.raises(DiffitError, match=r"do not rise within the table's 0\.01 to 157\.4; give levels inside"):
            VPDenoiser(Constant(), VPConfig(**given))

    def test_time_counts_thousandths_whatever_the_length_of_the_table(self):
        denoiser = VPDenoiser(Constant(), VPConfig(timesteps=250))
        assert denoiser.t(sigma_table("linear", 250)[[0, 100, 249]]).tolist() == [0, 400, 996]

    def test_drawn_noise_levels_are_those_of_the_table_each_as_often(self):
        denoiser = VPDenoiser(Constant(), VPConfig(timesteps=50))
        drawn = denoiser.draw_sigma((torch.arange(200, dtype=torch.float64) + 0.5) / 200)
        assert drawn.dtype == torch.float32
        torch.testing.assert_close(drawn, sigma_table("linear", 50).float().repeat_interleave(4))

    @pytest.mark.parametrize(
        ("options", "weight"),
        [
            ({"prediction": "eps"}, lambda sigma: 1 / sigma**2),
            ({"prediction": "v"}, lambda sigma: 1 + 1 / sigma**2),
            ({"prediction": "x0"}, lambda sigma: 1.0),
            ({"prediction": "eps", "loss": "min-snr"}, lambda sigma: min(1 / sigma**2, 5.0)),
            ({"prediction": "v", "loss": "min-snr"}, lambda sigma: min(1 / sigma**2, 5.0)),
            ({"loss": "edm", "sigma_data": 0.5}, lambda sigma: (sigma**2 + 0.25) / (sigma * 0.5) ** 2),
        ],
    )
    def test_losses_are_weights_on_the_clean_images_error(self, options, weight):
        expected = [weight(sigma) for sigma in self.sigmas.tolist()]
        weights = VPDenoiser(Constant(), VPConfig(**options)).weight(self.sigmas)
        torch.testing.assert_close(weights.tolist(), expected, rtol=1e-9, atol=0)

    @pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
    def test_simple_loss_is_the_mean_square_error_of_the_prediction(self, images, prediction):
        images, eps = images.double(), torch.randn(images.shape, dtype=torch.float64)
        answer = torch.randn(images.shape, dtype=torch.float64)
        denoiser = VPDenoiser(Answers(answer), VPConfig(prediction=prediction))
        expected = (answer - self.answers(images, eps)[prediction]).square().flatten(1).mean(1)
        torch.testing.assert_close(denoising_loss(denoiser, images, self.sigmas, eps), expected)

    def test_training_in_float32_loses_nothing_at_either_end_of_the_table(self, images):
        eps, answer = torch.randn_like(images), torch.randn_like(images)
        sigmas = sigma_table("cosine", 1000)[[0, 500, 999]].float()
        loss = denoising_loss(VPDenoiser(Answers(answer), VPConfig(noise_schedule="cosine")), images, sigmas, eps)
        torch.testing.assert_close(loss, (answer - eps).square().flatten(1).mean(1), rtol=1e-4, atol=0)


class TestFlow:
    """The state is x_t = (1 - t) x0 + t n. In the library's coordinate x = x_t / (1 - t), so sigma is t / (1 - t)."""

    times = torch.tensor([0.001, 0.3, 0.99], dtype=torch.float64)

    def states(self, images):
        """x0, n and x_t in float64."""
        images, n = images.double(), torch.randn(images.shape, dtype=torch.float64)
        t = self.times.view(-1, 1, 1, 1)
        return images, n, (1 - t) * images + t * n

    @pytest.mark.parametrize("prediction", ["v", "x0"])
    def test_perfect_prediction_gives_the_clean_image(self, images, prediction):
        images, n, state = self.states(images)
        answer = images - n if prediction == "v" else images
        denoiser = FlowDenoiser(Answers(answer), FlowConfig(prediction=prediction))
        x = state / (1 - self.times).view(-1, 1, 1, 1)
        torch.testing.assert_close(denoiser(x, self.times / (1 - self.times)), images, rtol=0, atol=1e-12)

    def test_network_sees_the_straight_lines_state_and_the_share_of_the_image(self, images):
        images, n, state = self.states(images)
        network, sigma = Constant(), self.times / (1 - self.times)
        FlowDenoiser(network, FlowConfig())(images + sigma.view(-1, 1, 1, 1) * n, sigma)
        torch.testing.assert_close(network.x, state.float())
        torch.testing.assert_close(network.noise_label, (1 - self.times).float())

    @pytest.mark.parametrize("prediction", ["v", "x0"])
    def test_loss_is_the_mean_square_error_of_the_velocity(self, images, prediction):
        """For x0, the error of the velocity it implies, (x_t - x0) / t, with t of at least 0.05."""
        images, n, _ = self.states(images)
        answer, t = torch.randn(images.shape, dtype=torch.float64), self.times.view(-1, 1, 1, 1)
        error = answer - (images - n) if prediction == "v" else (answer - images) / t.clamp(min=0.05)
        denoiser = FlowDenoiser(Answers(answer), FlowConfig(prediction=prediction))
        loss = denoising_loss(denoiser, images, self.times / (1 - self.times), n)
        torch.testing.assert_close(loss, error.square().flatten(1).mean(1))

    def test_training_in_float32_loses_little_at_either_end(self, images):
        n, answer = torch.randn_like(images), torch.randn_like(images)
        denoiser = FlowDenoiser(Answers(answer), FlowConfig())
        loss = denoising_loss(denoiser, images, denoiser.draw_sigma(torch.tensor([0.0, 0.5, 1.0])), n)
        torch.testing.assert_close(loss, (answer - (images - n)).square().flatten(1).mean(1), rtol=3e-3, atol=0)

    def test_an_euler_step_is_one_along_the_straight_line(self, images):
        """x_t' = x_t + (t' - t) dx_t/dt, where dx_t/dt = n - x0 is minus what the network predicts."""
        images, answer = images.double(), torch.randn(images.shape, dtype=torch.float64)
        denoiser, t, later = FlowDenoiser(Answers(answer), FlowConfig()), 0.7, 0.4
        start = images / (1 - t)
        end = next(euler(denoiser, start, torch.tensor([t / (1 - t), later / (1 - later), 0.0]))).x
        torch.testing.assert_close(end * (1 - later), images + (later - t) * -answer)

    def test_heun_carries_gaussian_noise_to_gaussian_data(self):
        """For data N(m, s^2), the velocity E[x0 - n | x_t] is linear in x_t and the flow's end known."""
        m, s = 0.3, 0.5

        class Best(nn.Module):
            def forward(self, x, share, class_label=None, augment_label=None):
                a = share.double().view(-1, 1, 1, 1)
                t, x = 1 - a, x.double()
                return m + (a * s**2 - t) / (a**2 * s**2 + t**2) * (x - a * m)

        denoiser = FlowDenoiser(Best(), FlowConfig())
        noise = torch.linspace(-2, 2, 5, dtype=torch.float64).view(5, 1, 1, 1)
        *_, last = heun(denoiser, denoiser.initial(noise), denoiser.levels(100))
        torch.testing.assert_close(last.x, m + s * noise, rtol=0, atol=2e-3)

    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_levels_are_even_steps_in_t_before_the_shift(self, shift):
        sigmas = FlowDenoiser(Constant(), FlowConfig(shift=shift)).levels(50)
        t = torch.linspace(1, 0, 51, dtype=torch.float64)
        expected = shift * t / (1 + (shift - 1) * t)  # Esser et al. 2024, equation 23
        torch.testing.assert_close(sigmas / (1 + sigmas), expected, rtol=0, atol=shift / 900)
        assert (sigmas[0], sigmas[-1]) == (pytest.approx(1000), 0)

    def test_levels_are_edms_if_a_lowest_one_is_given(self):
        denoiser = FlowDenoiser(Constant(), FlowConfig(sigma_min=0.03, sigma_max=10.0))
        assert torch.equal(denoiser.levels(18), karras(18, 0.03, 10.0))

    def test_drawn_times_have_the_quantiles_of_their_distribution(self):
        deviations = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64)
        quantiles = torch.special.ndtr(deviations)
        uniform = FlowDenoiser(Constant(), FlowConfig(shift=2.0)).draw_sigma(quantiles)
        torch.testing.assert_close(uniform, (2 * quantiles / (1 - quantiles)).float())
        normal = FlowDenoiser(Constant(), FlowConfig(times="logit-normal")).draw_sigma(quantiles)
        torch.testing.assert_close(normal, deviations.exp().float())  # sigma = t / (1 - t) = exp(logit t)

    def test_guidance_sees_a_thousand_t(self):
        assert FlowDenoiser(Constant(), FlowConfig()).t(torch.tensor([0.0, 1.0, 3.0])).tolist() == [0, 500, 750]


@pytest.mark.parametrize(
    ("config", "denoiser"),
    [(EDMConfig(sigma_data=0.5), EDMDenoiser), (VPConfig(), VPDenoiser), (FlowConfig(), FlowDenoiser)],
)
def test_each_kind_of_config_builds_its_denoiser(config, denoiser):
    assert type(DENOISERS[config.kind](Constant(), config)) is denoiser


@pytest.mark.parametrize("config", [EDMConfig(sigma_data=0.5), VPConfig(), FlowConfig()])
def test_one_level_for_all_is_that_level_for_each(config, images):
    class Sees(Constant):
        def forward(self, x, noise_label, *_):
            return x + noise_label.view(-1, 1, 1, 1)

    denoiser, x = DENOISERS[config.kind](Sees(), config), images.double()
    for sigma in (0.1, 3.0, 0.1):
        each = denoiser(x, torch.full((len(x),), sigma, dtype=torch.float64))
        torch.testing.assert_close(denoiser(x, sigma), each, rtol=1e-6, atol=1e-6)


def test_the_levels_that_a_denoiser_keeps_are_bounded(images, monkeypatch):
    monkeypatch.setattr("diffit_lib.diffusion.denoiser.MOST_LEVELS", 3)
    denoiser = EDMDenoiser(Constant(), EDMConfig(sigma_data=0.5))
    for sigma in range(1, 9):
        denoiser(images, float(sigma))
    assert len(denoiser.seen) <= 3


class Perfect(EDMDenoiser):
    """Knows the answer, and can be told to miss it by some amount."""

    def __init__(self, images, miss):
        super().__init__(Constant(), EDMConfig(sigma_data=0.5))
        self.images, self.miss = images, miss

    def with_variance(self, x, sigma, class_label=None, augment_label=None):
        self.noisy = x
        return self.images + self.miss, None


class TestLoss:
    def test_perfect_denoiser_has_none(self, images):
        loss = denoising_loss(Perfect(images, 0.0), images, SIGMAS, torch.randn_like(images))
        assert loss.tolist() == [0, 0, 0]

    def test_is_the_weighted_mean_square_error_of_each_image(self, images):
        denoiser = Perfect(images, torch.tensor([1.0, 2.0, 3.0]).view(-1, 1, 1, 1))
        loss = denoising_loss(denoiser, images, SIGMAS, torch.randn_like(images))
        torch.testing.assert_close(loss, torch.tensor([1.0, 4.0, 9.0]) * denoiser.weight(SIGMAS))

    def test_denoiser_sees_the_image_plus_sigma_times_noise(self, images):
        denoiser, noise = Perfect(images, 0.0), torch.randn_like(images)
        denoising_loss(denoiser, images, SIGMAS, noise)
        torch.testing.assert_close(denoiser.noisy, images + SIGMAS.view(-1, 1, 1, 1) * noise)

    def test_knows_nothing_of_clipping(self, images):
        answer = torch.full_like(images, 9.0)
        losses = [
            denoising_loss(VPDenoiser(Answers(answer), VPConfig(prediction="x0", clip=clip)), images, SIGMAS, images)
            for clip in (False, True)
        ]
        assert torch.equal(*losses)
