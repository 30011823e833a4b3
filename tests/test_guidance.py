"""Guidance and clipping around a denoiser with a known answer."""

import pytest
import torch
from analytic import Gaussian

from diffit_lib.config.diffusion import SamplingConfig, VPConfig
from diffit_lib.diffusion.denoiser import VPDenoiser
from diffit_lib.diffusion.guidance import Clipped, Guided, guidance_scale
from diffit_lib.diffusion.schedules import respaced, sigma_table

SIGMA = 0.5


def strength(guidance, **options):
    """Sampling settings with this guidance: `schedule`, `tolerance`, `channels`, `low`, `high`."""
    return SamplingConfig(guidance=guidance, **{f"guidance_{name}": value for name, value in options.items()})


@pytest.fixture
def images():
    return torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


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
        return denoiser(images, SIGMA, self.classes), denoiser(images, SIGMA, torch.full((3,), self.no_class))

    @pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
    def test_extrapolates_from_no_class_to_class_on_all_channels(self, images, scale):
        conditional, unconditional = self.halves(images)
        guided = Guided(Labelled(), strength(scale, tolerance=0.0), self.no_class)(images, SIGMA, self.classes)
        torch.testing.assert_close(guided, (1 - scale) * unconditional + scale * conditional)

    def test_scale_one_is_the_conditional_denoiser_bit_for_bit(self, images):
        guided = Guided(Labelled(), strength(1.0), self.no_class)(images, SIGMA, self.classes)
        assert torch.equal(guided, self.halves(images)[0])

    def test_only_the_first_channels_are_guided_where_asked(self, images):
        conditional, unconditional = self.halves(images)
        guided = Guided(Labelled(), strength(3.0, channels=1), self.no_class)(images, SIGMA, self.classes)
        torch.testing.assert_close(guided[:, :1], (3 * conditional - 2 * unconditional)[:, :1])
        assert torch.equal(guided[:, 1:], conditional[:, 1:])

    def test_a_learned_variance_is_the_conditional_halfs(self, images):
        class Learned(Labelled):
            def with_variance(self, x, sigma, class_label=None):
                return self(x, sigma, class_label), class_label.view(-1, 1, 1, 1).expand_as(x)

        _, v = Guided(Learned(), strength(3.0), self.no_class).with_variance(images, SIGMA, self.classes)
        assert torch.equal(v, self.classes.view(-1, 1, 1, 1).expand_as(images))

    @pytest.mark.parametrize(("high", "batch"), [(0.6, 6), (0.4, 3)])
    def test_schedule_decides_at_each_level_whether_both_halves_run(self, images, high, batch):
        denoiser, sampling = Labelled(), strength(3.0, schedule="interval", high=high)
        Guided(denoiser, sampling, self.no_class)(images, SIGMA, self.classes)
        assert denoiser.batch == batch

    @pytest.mark.parametrize(
        ("t", "scale"),
        [
            (999, 1.000),
            (500, 1.033),
            (400, 1.14),
            (300, 1.46),
            (250, 1.77),
            (200, 2.22),
            (100, 3.50),
            (50, 4.12),
            (0, 4.4),
        ],
    )
    def test_power_cosine_is_the_published_schedule(self, t, scale):
        class At(Gaussian):
            def t(self, sigma):
                return torch.tensor([float(t)])

        sampling = strength(4.4, schedule="power-cosine")
        assert guidance_scale(sampling, 1.0, At()) == pytest.approx(scale, abs=0.006)

    def test_power_cosine_runs_one_half_only_in_108_of_250_steps(self):
        sizes = []

        class Counting(Labelled):
            def __call__(self, x, sigma, class_label=None, augment_label=None):
                sizes.append(len(x))
                return x

        guided = Guided(Counting(), strength(4.4, schedule="power-cosine", tolerance=0.01), self.no_class)
        for sigma in respaced(sigma_table("linear", 1000), 250)[:-1].tolist():
            guided(torch.zeros(1, 1, 2, 2), sigma, torch.zeros(1, dtype=torch.int64))
        assert sizes == [1] * 108 + [2] * 142

    def test_interval_guides_inside_alone(self):
        sampling = strength(4.0, schedule="interval", low=0.1, high=1.6)
        assert [guidance_scale(sampling, sigma, Gaussian()) for sigma in (0.1, 0.2, 1.0, 1.6, 1.7)] == [1, 4, 4, 4, 1]

    def test_guided_denoiser_has_the_noise_levels_of_the_one_inside(self):
        inside = VPDenoiser(torch.nn.Identity(), VPConfig())
        guided = Clipped(Guided(inside, strength(2.0), self.no_class))
        assert (guided.sigma_min, guided.sigma_max) == (inside.sigma_min, inside.sigma_max)
        assert (guided.initial, guided.levels, guided.t) == (inside.initial, inside.levels, inside.t)

    @pytest.mark.parametrize(("scale", "batch"), [(0.995, 3), (1.0, 3), (1.005, 3), (1.02, 6), (0.98, 6)])
    def test_runs_one_half_only_within_tolerance_of_one(self, images, scale, batch):
        denoiser = Labelled()
        Guided(denoiser, strength(scale, tolerance=0.01), self.no_class)(images, SIGMA, self.classes)
        assert denoiser.batch == batch


class TestClipping:
    def test_keeps_the_guided_image_in_range_and_leaves_the_rest_alone(self, images):
        guided = Guided(Labelled(), strength(3.0), 5)
        classes = torch.tensor([0, 1, 2])
        clipped = Clipped(guided)(images, SIGMA, classes)
        assert guided(images, SIGMA, classes).abs().max() > 1
        assert torch.equal(clipped, guided(images, SIGMA, classes).clamp(-1, 1))


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "stamp"),
        [
            ({}, "1"),
            ({"guidance": 1.5, "guidance_channels": 3}, "1.5 channels=3"),
            (
                {"guidance": 4.4, "guidance_schedule": "power-cosine", "guidance_tolerance": 0.0},
                "4.4 power-cosine power=4.0 tolerance=0.0",
            ),
        ],
    )
    def test_a_stamp_tells_all_that_differs(self, settings, stamp):
        assert SamplingConfig(**settings).guided == stamp
