"""Denoisers, the loss and guidance, against closed forms."""

import math

import pytest
import torch
from analytic import Gaussian
from torch import nn

from diffit_lib.config import EDM
from diffit_lib.denoiser import EDMDenoiser, Guided, denoising_loss

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
    config = EDM(sigma_data=0.5)

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

    @pytest.mark.parametrize(("sigma_data", "p_mean"), [(0.5, -1.2), (1.0, -1.2 + math.log(2))])
    def test_drawn_noise_levels_have_the_quantiles_of_their_distribution(self, sigma_data, p_mean):
        deviations = torch.tensor([-3.0, -1.0, 0.0, 2.0], dtype=torch.float64)
        drawn = EDMDenoiser(Constant(), EDM(sigma_data=sigma_data)).draw_sigma(torch.special.ndtr(deviations))
        torch.testing.assert_close(drawn, (p_mean + 1.2 * deviations).exp().float())

    def test_the_ends_of_the_uniform_interval_give_finite_noise_levels(self):
        drawn = EDMDenoiser(Constant(), self.config).draw_sigma(torch.tensor([0.0, 1.0], dtype=torch.float64))
        assert drawn.isfinite().all()
        assert (drawn > 0).all()

    def test_initial_state_has_the_largest_noise_level(self, images):
        torch.testing.assert_close(EDMDenoiser(Constant(), self.config).initial(images), 80 * images)


class Perfect(EDMDenoiser):
    """Knows the answer, and can be told to miss it by some amount."""

    def __init__(self, images, miss):
        super().__init__(Constant(), EDM(sigma_data=0.5))
        self.images, self.miss = images, miss

    def forward(self, x, sigma, class_label=None, augment_label=None):
        self.noisy = x
        return self.images + self.miss


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


class Labelled(Gaussian):
    """Shifts its answer by the class label, and notes the size of every batch."""

    def __call__(self, x, sigma, class_label=None, augment_label=None):
        self.batch = len(x)
        shift = torch.arange(1.0, 1 + x.shape[1]).view(1, -1, 1, 1)
        return super().__call__(x, sigma) + class_label.view(-1, 1, 1, 1) * shift


class TestGuidance:
    classes, no_class = torch.tensor([0, 1, 2]), 5

    def halves(self, images):
        denoiser = Labelled()
        return denoiser(images, SIGMAS, self.classes), denoiser(images, SIGMAS, torch.full((3,), self.no_class))

    @pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
    def test_extrapolates_from_no_class_to_class_on_all_channels(self, images, scale):
        conditional, unconditional = self.halves(images)
        guided = Guided(Labelled(), scale, self.no_class, tolerance=0.0)(images, SIGMAS, self.classes)
        torch.testing.assert_close(guided, (1 - scale) * unconditional + scale * conditional)

    def test_scale_one_is_the_conditional_denoiser_bit_for_bit(self, images):
        guided = Guided(Labelled(), 1.0, self.no_class)(images, SIGMAS, self.classes)
        assert torch.equal(guided, self.halves(images)[0])

    @pytest.mark.parametrize(("scale", "batch"), [(0.995, 3), (1.0, 3), (1.005, 3), (1.02, 6), (0.98, 6)])
    def test_runs_one_half_only_within_tolerance_of_one(self, images, scale, batch):
        denoiser = Labelled()
        Guided(denoiser, scale, self.no_class, tolerance=0.01)(images, SIGMAS, self.classes)
        assert denoiser.batch == batch
