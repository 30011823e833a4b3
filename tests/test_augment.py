"""EDM's augmentation: what each number does, how often, and that nothing means nothing."""

import math

import pytest
import torch

from diffit_lib.checkpoints.weights import build_denoiser
from diffit_lib.data.augment import augment, draw_augmentation
from diffit_lib.utils.tensors import seeded_generator


def numbers(**changes):
    """a0 to a7 of one image, (1, 8)."""
    row = torch.zeros(1, 8)
    for name, value in changes.items():
        row[0, int(name[1])] = value
    return row


@pytest.fixture
def images():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def spot(height, width, *, x, y, wide, high, angle=0.0):
    """A Gaussian spot, (1, 1, H, W), at (x, y) pixels from the centre, turned from the x axis towards the y axis."""
    down, right = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2 - y, torch.arange(width) - (width - 1) / 2 - x, indexing="ij"
    )
    along = right * math.cos(angle) + down * math.sin(angle)
    across = down * math.cos(angle) - right * math.sin(angle)
    return torch.exp(-(along**2) / (2 * wide**2) - across**2 / (2 * high**2))[None, None]


def test_numbers_of_zero_return_the_image_bit_for_bit_and_a_label_of_zeros(images):
    same, label = augment(images, numbers())
    assert torch.equal(same, images)
    assert torch.equal(label, torch.zeros(1, 9))


def test_mirrors_are_exact(images):
    assert torch.equal(augment(images, numbers(a0=1))[0], images.flip(3))
    assert torch.equal(augment(images, numbers(a1=1))[0], images.flip(2))


def test_a_quarter_turn_is_exact_up_to_rounding(images):
    turned, _ = augment(images, numbers(a3=math.pi / 2))
    torch.testing.assert_close(turned, images.rot90(-1, (2, 3)), rtol=0, atol=1e-5)  # x axis towards y axis


def test_shifts_count_eighths_of_width_and_height(images):
    shifted, _ = augment(images, numbers(a6=1.0, a7=-0.5))  # of 16 pixels: 2 right, 1 up
    torch.testing.assert_close(shifted[..., :-1, 2:], images[..., 1:, :-2], rtol=0, atol=1e-5)


def test_beyond_its_edges_the_image_is_mirrored(images):
    shifted, _ = augment(images, numbers(a6=1.0))
    torch.testing.assert_close(shifted[..., :2], images[..., :2].flip(3), rtol=0, atol=1e-5)


GROWTH = 2**0.2
COS, SIN = math.cos(0.3), math.sin(0.3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"a2": 1.0}, {"x": 4 * GROWTH, "y": -2 * GROWTH, "wide": 3 * GROWTH, "high": 2 * GROWTH}),
        ({"a5": 1.0}, {"x": 4 * GROWTH, "y": -2 / GROWTH, "wide": 3 * GROWTH, "high": 2 / GROWTH}),
        ({"a4": math.pi / 2, "a5": 1.0}, {"x": 4 / GROWTH, "y": -2 * GROWTH, "wide": 3 / GROWTH, "high": 2 * GROWTH}),
        ({"a6": 0.3, "a7": 0.7}, {"x": 4 + 0.3 * 40 / 8, "y": -2 + 0.7 * 32 / 8, "wide": 3.0, "high": 2.0}),
        ({"a3": 0.3}, {"x": 4 * COS + 2 * SIN, "y": 4 * SIN - 2 * COS, "wide": 3.0, "high": 2.0, "angle": 0.3}),
        # Scaled and rotated first, then stretched along its own direction, then shifted.
        (
            {"a2": 1.0, "a3": math.pi / 2, "a5": 1.0, "a6": 0.5},
            {"x": 2 * GROWTH**2 + 2.5, "y": 4.0, "wide": 2 * GROWTH**2, "high": 3.0},
        ),
    ],
)
def test_each_number_moves_a_spot_as_its_name_says(change, expected):
    changed, _ = augment(spot(32, 40, x=4.0, y=-2.0, wide=3.0, high=2.0), numbers(**change))
    torch.testing.assert_close(changed, spot(32, 40, **expected), rtol=0, atol=0.02)


def test_label_tells_every_number():
    _, label = augment(torch.zeros(1, 1, 8, 8), torch.tensor([[1.0, 0.0, 0.5, 0.7, -0.4, 2.0, 0.1, -0.3]]))
    expected = [1.0, 0.0, 0.5, math.cos(0.7) - 1, math.sin(0.7), 2 * math.cos(0.4), -2 * math.sin(0.4), 0.1, -0.3]
    torch.testing.assert_close(label[0].tolist(), expected)


def test_each_image_of_a_batch_has_its_own_change(images):
    rows = torch.cat([numbers(), numbers(a3=1.0), numbers(a0=1, a2=0.5)])
    together, labels = augment(images.repeat(3, 1, 1, 1), rows)
    for i, row in enumerate(rows):
        alone, label = augment(images, row[None])
        torch.testing.assert_close(together[i], alone[0])
        torch.testing.assert_close(labels[i], label[0])


def test_images_stay_in_range():
    edges = torch.randint(2, (4, 1, 16, 16), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    changed, _ = augment(edges, numbers(a3=0.4).repeat(4, 1))
    assert changed.abs().max() <= 1


def test_a_generator_names_its_numbers():
    first, again = (draw_augmentation(seeded_generator("image", 3), 0.5) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, draw_augmentation(seeded_generator("image", 4), 0.5))


def test_at_probability_zero_nothing_is_drawn():
    assert not any(draw_augmentation(seeded_generator(i), 0.0).any() for i in range(200))


def test_kinds_happen_with_their_probability_and_half_of_all_images_are_mirrored_in_x():
    drawn = torch.stack([draw_augmentation(seeded_generator("draw", i), 0.12) for i in range(10_000)])
    shares = (drawn != 0).double().mean(0)
    expected = torch.tensor([0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.12, 0.12], dtype=torch.float64)
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / 10_000).sqrt()).all()
    together = (drawn[:, 4:] != 0).long()
    assert torch.equal(together[:, 0], together[:, 1])  # direction and stretch
    assert torch.equal(together[:, 2], together[:, 3])  # both shifts


def test_numbers_have_the_papers_distributions():
    drawn = torch.stack([draw_augmentation(seeded_generator("size", i), 1.0) for i in range(10_000)])
    mirrors, angles, normal = drawn[:, :2], drawn[:, 3:5], drawn[:, [2, 5, 6, 7]]
    assert set(mirrors.flatten().tolist()) == {0.0, 1.0}
    assert angles.abs().max() <= math.pi
    torch.testing.assert_close(angles.std(0), torch.full((2,), math.pi / math.sqrt(3)), rtol=0.03, atol=0)
    torch.testing.assert_close(normal.std(0), torch.ones(4), rtol=0.03, atol=0)
    assert drawn[:, 2:].mean(0).abs().max() < 0.08
    assert (torch.corrcoef(normal.T) - torch.eye(4)).abs().max() < 0.05


def test_a_network_that_is_told_of_no_augmentation_draws_as_if_told_of_no_change(tiny):
    denoiser = build_denoiser(tiny.override(augment_dim=9, augment=0.5, sigma_data=0.75))
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        x, sigma, label = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 5.0]), torch.tensor([3, 10])
        none, zeros, ones = (denoiser(x, sigma, label, told) for told in (None, torch.zeros(2, 9), torch.ones(2, 9)))
    assert torch.equal(none, zeros)
    assert not torch.allclose(none, ones)
