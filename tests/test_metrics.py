"""Numbers over features against known answers, and the stamp they travel with."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch

from diffit_lib.data.datasets import Images
from diffit_lib.evaluation.evaluator import ClassifierEvaluator
from diffit_lib.evaluation.metrics import (
    class_accuracy,
    evenly,
    frechet_distance,
    frechet_from_moments,
    nearest,
    real_distance,
    resamples,
)
from diffit_lib.evaluation.provenance import Provenance, in_words
from diffit_lib.utils.errors import DiffitError


def covariance(dim, rank, seed):
    factor = np.random.default_rng(seed).normal(size=(dim, rank))
    return factor @ factor.T


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def frechet(*statistics):
    """The Frechet distance of two Gaussians' moments, given as arrays."""
    return frechet_from_moments(*map(torch.from_numpy, statistics))


def test_frechet_distance_of_diagonal_gaussians_is_the_textbook_sum():
    mu1, mu2 = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, -1.0])
    deviation1, deviation2 = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
    expected = np.square(mu1 - mu2).sum() + np.square(deviation1 - deviation2).sum()
    actual = frechet(mu1, np.diag(deviation1**2), mu2, np.diag(deviation2**2))
    assert actual == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_equals_the_matrix_square_root_where_covariances_do_not_commute():
    import scipy.linalg

    sigma1, sigma2, mu = covariance(6, 9, seed=0), covariance(6, 9, seed=1), np.zeros(6)
    expected = np.trace(sigma1 + sigma2 - 2 * scipy.linalg.sqrtm(sigma1 @ sigma2).real)
    assert frechet(mu, sigma1, mu, sigma2) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_give_a_finite_real_distance():
    sigma1, sigma2, mu = covariance(20, 3, seed=0), covariance(20, 2, seed=1), np.zeros(20)
    mixed = frechet(mu, sigma1, mu, sigma2)
    assert isinstance(mixed, float)
    assert np.isfinite(mixed)
    assert mixed == pytest.approx(frechet(mu, sigma2, mu, sigma1), rel=1e-9)
    assert frechet(mu, sigma1, mu, 0 * sigma1) == pytest.approx(np.trace(sigma1), rel=1e-12)


def test_distance_of_features_to_themselves_is_zero_even_with_fewer_images_than_features():
    features = noise(10, 32)
    assert 0 <= frechet_distance(features, features) < 1e-9


def test_features_from_two_gaussians_give_the_formula():
    a, b = noise(50_000, 3, seed=1), 2 * noise(50_000, 3, seed=2) + 1
    assert frechet_distance(a, b) == pytest.approx(3 * 1 + 3 * 1, rel=0.02)


def test_covariance_is_the_unbiased_one():
    a, b = torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.0], [0.0]])
    assert frechet_distance(a, b) == pytest.approx(2.0)


def test_one_image_is_refused_in_one_line():
    with pytest.raises(DiffitError, match="at least 2 images on each side and got 1"):
        frechet_distance(noise(1, 4), noise(5, 4))


def test_class_accuracy_is_the_share_of_matching_labels():
    assert class_accuracy(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 3, 0])) == 0.75


def test_nearest_finds_exact_copies_at_distance_zero_and_others_at_their_pixel_distance():
    train = pictures(1200, 3, 8, 8)
    images = train[[700, 3, 1100]].clone()
    images[1, 0, 0, 0] ^= 1
    images = torch.cat([images] * 300)  # more than one chunk
    distances, indices = nearest(images, train)
    assert distances.tolist() == [0, 1, 0] * 300
    assert indices.tolist() == [700, 3, 1100] * 300


def test_of_equally_near_training_images_the_first_is_named():
    images, train = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(10_002, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([8, 12, 0])
    train[[3, 7000, 10_001], 0, 0, 0] = torch.tensor([9, 9, 8], dtype=torch.uint8)  # in the first, second, third part
    distances, indices = nearest(images, train)
    assert (distances.tolist(), indices.tolist()) == ([0, 3, 0], [10_001, 3, 0])


NEAREST = """
import resource, torch
from diffit_lib.evaluation.metrics import nearest
from diffit_lib.utils.tensors import reuse_freed_memory
reuse_freed_memory()
images = torch.randint(256, ({count}, {pixels}), dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest(images[:{samples}], images)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(("count", "pixels", "samples"), [(40_000, 16, 3000), (2000, 3 * 128 * 128, 600)])
def test_nearest_takes_little_memory(count, pixels, samples):
    script = NEAREST.format(count=count, pixels=pixels, samples=samples)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250  # MB; all distances at once, or all images as float64, are 800 to 960


def test_new_images_are_as_far_from_training_images_as_test_images_are():
    train, test = pictures(200, 1, 8, 8, seed=0), pictures(100, 1, 8, 8, seed=1)
    assert nearest(train[:50], train)[0].median() == 0
    new = nearest(pictures(100, 1, 8, 8, seed=2), train)[0].median().item()
    assert new == pytest.approx(real_distance(train, test), rel=0.05)


def test_a_test_part_made_of_training_images_is_refused():
    train = pictures(20, 1, 4, 4)
    with pytest.raises(DiffitError, match="copies of training images"):
        real_distance(train, train)


def test_even_subset_keeps_the_shares_of_classes_that_come_in_order():
    labels = torch.arange(10).repeat_interleave(100)
    chosen = evenly(labels, 360)
    assert labels[chosen].bincount().tolist() == [36] * 10
    assert len(chosen.unique()) == 360
    gaps = chosen.sort().values.diff()
    assert gaps.max() <= 4  # spread over each class, not its first images


def test_even_subset_of_everything_is_everything():
    labels = torch.tensor([2, 0, 1, 0])
    assert evenly(labels, 4).sort().values.tolist() == [0, 1, 2, 3]


class Projection:
    """Features are random projections of the pixels; the predicted class is read from the first pixel."""

    name = "projection"

    def __init__(self, seed):
        self.checksum = f"seed{seed}"
        self.weight = noise(16, 4, seed=seed) / 100

    def features(self, images):
        return images.flatten(1).float() @ self.weight

    def predict(self, images):
        return images.flatten(1)[:, 0].long() % 2


@pytest.fixture
def parts(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
    train, test = pictures(300, 1, 4, 4, seed=0), pictures(60, 1, 4, 4, seed=1)
    named = (("train", train), ("test", test))
    return {
        name: Images(f"toy/{name}", images, images.flatten(1)[:, 0].long() % 2, ("even", "odd"))
        for name, images in named
    }


STAMP = Provenance(reference="toy/train", reference_hash="abc", sampler="heun", steps=18, guidance=0.0, seeds="0..99")


def measure(samples, parts, seeds=(0, 1)):
    labels = samples.flatten(1)[:, 0].long() % 2
    evaluator = ClassifierEvaluator(**parts, classifiers=[Projection(seed) for seed in seeds])
    return evaluator(samples.split(50), labels, STAMP)


def test_real_test_images_measure_as_the_floor(parts):
    report = measure(parts["test"].images, parts)
    assert report["frechet_ratio"] == 1
    assert report["frechet"] == report["frechet_floor"] > 0
    assert report["copy_ratio"] == report["class_accuracy"] == report["classifier_test_accuracy"] == 1


def test_frechet_numbers_are_means_over_classifiers(parts):
    samples = pictures(60, 1, 4, 4, seed=2) // 2
    both, one, other = (measure(samples, parts, seeds) for seeds in ((0, 1), (0,), (1,)))
    for key in ("frechet", "frechet_floor", "frechet_ratio"):
        assert both[key] == pytest.approx((one[key] + other[key]) / 2)
    assert both["frechet_ratio"] > 2


@pytest.mark.parametrize("count", [40, 500])
def test_generated_and_floor_are_taken_at_equal_n(count, parts):
    samples = pictures(count, 1, 4, 4, seed=2)
    report = measure(samples, parts)
    n = min(count, 60)
    assert report["stamp"]["n"] == n
    labels = samples.flatten(1)[:, 0].long() % 2
    for key, images, classes in (
        ("frechet", samples, labels),
        ("frechet_floor", parts["test"].images, parts["test"].labels),
    ):
        subset = images[evenly(classes, n)]
        by_hand = [
            frechet_distance(p.features(subset), p.features(parts["train"].images)) for p in map(Projection, (0, 1))
        ]
        assert report[key] == pytest.approx(np.mean(by_hand))


def test_resamples_keep_the_numbers_of_classes_that_were_fixed():
    classes = torch.tensor([1, 0, 1, 2, 1, 0])
    parts = resamples(6, 50, classes)
    assert all(torch.equal(classes[part], classes) for part in parts)
    assert torch.stack(parts)[:, 0].unique().tolist() == [0, 2, 4]
    assert torch.stack(resamples(6, 50)).unique().tolist() == [0, 1, 2, 3, 4, 5]


def test_report_is_plain_json_and_carries_its_stamp(parts):
    report = measure(parts["test"].images, parts)
    assert json.loads(json.dumps(report)) == report
    stamp = report["stamp"]
    assert stamp["extractor"] == "2 x projection"
    assert stamp["extractor_checksum"] == "seed0+seed1"
    assert (stamp["reference"], stamp["sampler"], stamp["steps"], stamp["rounding"]) == (
        "toy/train",
        "heun",
        18,
        "round",
    )
    assert report["warnings"] == Provenance(**stamp).warnings()


def test_stamp_prints_one_line_without_what_does_not_apply():
    line = in_words(asdict(STAMP))
    assert "reference=toy/train" in line
    assert "guidance=0.0" in line
    assert "decoder" not in line
    assert "best_by_this_metric" not in line
    assert "\n" not in line


def test_small_n_and_a_checkpoint_chosen_by_the_metric_are_said_aloud():
    assert Provenance(reference="r", reference_hash="h", n=10_000).warnings() == []
    assert "n = 9999 is small" in Provenance(reference="r", reference_hash="h", n=9999).warnings()[0]
    (warning,) = Provenance(reference="r", reference_hash="h", n=50_000, best_by_this_metric=True).warnings()
    assert "chosen by this very metric" in warning


def test_frechet_distance_equals_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    extractor = torch.nn.Flatten()
    extractor.num_features = 9
    metric = fid.FrechetInceptionDistance(extractor, input_img_size=(1, 3, 3)).set_dtype(torch.float64)
    real, generated = noise(50, 1, 3, 3, seed=1), 2 * noise(60, 1, 3, 3, seed=2) + 1
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    ours = frechet_distance(generated.flatten(1), real.flatten(1))
    assert ours == pytest.approx(metric.compute().item(), rel=1e-6)
