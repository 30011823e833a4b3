"""Inception: where its weights come from, and the numbers taken with it against torch-fidelity's own."""

import json
import os
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from diffit_lib.data.datasets import load_data
from diffit_lib.evaluation import features as extractors
from diffit_lib.evaluation.evaluator import NetworkEvaluator
from diffit_lib.evaluation.features import (
    INCEPTION_SHA256,
    INCEPTION_URL,
    Inception,
    Seen,
    cached,
    load_inception,
)
from diffit_lib.evaluation.metrics import Reference, frechet_distance, reference_statistics
from diffit_lib.evaluation.provenance import Provenance
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import sha256

torch_fidelity = pytest.importorskip("torch_fidelity")
network_module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

STAMP = Provenance(reference="toy/train", reference_hash="abc", sampler="heun", steps=18)


def measure_inception(batches, reference, inception, stamp):
    """The numbers of these batches against a reference."""
    return NetworkEvaluator(reference, inception, stamp.reference, stamp.reference_hash)(batches, None, stamp)


def pictures(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def tinted_digits(first, count, *, noise, seed):
    """Digits 8x8 in random colours, with noise of that deviation: uint8 (count, 3, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    tint = 0.3 + 0.7 * torch.rand(count, 3, 1, 1, generator=generator)
    images = load_data("digits").train.images[first : first + count] * tint
    return (images + noise * torch.randn(count, 3, 8, 8, generator=generator)).clamp(0, 255).to(torch.uint8)


def random_inception():
    """torch-fidelity's own network with random weights; it resizes to 75x75 instead of 299x299, to be quick."""
    graph = network_module.FeatureExtractorInceptionV3
    with (
        patch.object(network_module, "load_state_dict_from_url", lambda *_, **__: None),
        patch.object(graph, "load_state_dict", lambda *_: None),
    ):
        network = graph("inception-v3-compat", ["2048", "logits_unbiased"])
    network.INPUT_IMAGE_SIZE = 75
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # the statistics of one batch: else all images look alike by the last layer
    network.train()(tinted_digits(0, 64, noise=10, seed=0))
    return network.eval()


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """A file of random Inception weights, and the network they are from."""
    network = random_inception()
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(network.state_dict(), path)
    return path, network


@pytest.fixture(scope="module")
def inception_reports(random_weights):
    """Our numbers and torch-fidelity's for the same 500 generated and 300 real images, seen at 75x75 to be quick."""
    path, network = random_weights
    generated, real = tinted_digits(0, 500, noise=60, seed=1), tinted_digits(500, 300, noise=0, seed=2)

    inception = Inception(network, checksum="random")
    before = torch.get_rng_state()
    ours = measure_inception(generated.split(130), reference_statistics(real, inception), inception, STAMP)
    assert torch.equal(torch.get_rng_state(), before)
    with patch.object(type(network), "INPUT_IMAGE_SIZE", 75):
        theirs = torch_fidelity.calculate_metrics(
            input1=Subset(generated, range(500)),
            input2=Subset(real, range(300)),
            fid=True,
            isc=True,
            isc_splits=1,  # as ADM: 5,000 images each
            kid=True,
            prc=True,
            kid_subset_size=300,
            feature_layer_prc="2048",
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(path),
            save_cpu_ram=True,
            cuda=False,
            cache=False,
            verbose=False,
        )
    return ours, theirs


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("fid", "frechet_inception_distance"),
        ("inception_score", "inception_score_mean"),
        ("inception_score_std", "inception_score_std"),
        ("kid", "kernel_inception_distance_mean"),
        ("kid_std", "kernel_inception_distance_std"),
        ("precision", "precision"),
        ("recall", "recall"),
    ],
)
def test_inception_metrics_equal_torch_fidelity(ours, theirs, inception_reports):
    report, expected = inception_reports
    assert report[ours] == pytest.approx(expected[theirs], rel=1e-3)


class PixelInception:
    """Stands in for Inception where the numbers do not matter: pixels for features and logits. Counts its batches."""

    name, checksum, num_features, num_spatial = "pixels", "none", 9, 1

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen.append(images)
        features = images.flatten(1).float() / 255
        return Seen(features, features, features[:, 1:2])

    def features(self, images):
        return self(images)[0]


REAL = reference_statistics(pictures(40, 1, 3, 3, seed=8), PixelInception())


def test_batches_of_any_size_give_the_same_numbers():
    images = pictures(30, 1, 3, 3, seed=9)
    whole = measure_inception([images], REAL, PixelInception(), STAMP)
    assert measure_inception(iter(images.split(7)), REAL, PixelInception(), STAMP) == whole
    assert json.loads(json.dumps(whole)) == whole
    assert (whole["stamp"]["n"], whole["stamp"]["extractor"], whole["stamp"]["rounding"]) == (30, "pixels", "round")
    assert "n = 30 is small" in whole["warnings"][0]


def test_inception_score_does_not_depend_on_the_global_random_state():
    images = pictures(30, 1, 3, 3, seed=9)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the state under test)
    first = measure_inception([images], REAL, PixelInception(), STAMP)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert measure_inception([images], REAL, PixelInception(), STAMP) == first


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "no images"), ([pictures(1, 1, 3, 3)], "at least 10 images on each side and got 1")],
)
def test_what_cannot_be_measured_is_refused_in_one_line(batches, message):
    with pytest.raises(DiffitError, match=message) as error:
        measure_inception(batches, REAL, PixelInception(), STAMP)
    assert "\n" not in str(error.value)


def test_reference_keeps_all_moments_and_an_even_share_of_the_features():
    images = torch.arange(25_000).view(-1, 1, 1, 1).remainder(256).to(torch.uint8)
    reference = reference_statistics(images, PixelInception())
    assert reference.mean.item() == pytest.approx((images.double() / 255).mean().item())
    assert reference.covariance.item() == pytest.approx((images.double() / 255).var().item())
    assert reference.features.shape == (10_000, 1)
    assert torch.equal(reference.features[::2, 0], images.flatten()[::5].float() / 255)


def test_reference_survives_the_cache_bit_for_bit(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path))
    first = Reference(**cached("references/toy", REAL.tensors))
    again = Reference(**cached("references/toy", lambda: pytest.fail("computed again")))
    for one, other in zip(first, again, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    images = pictures(30, 1, 3, 3, seed=9)
    reports = [measure_inception([images], r, PixelInception(), STAMP) for r in (REAL, first, again)]
    assert reports[0] == reports[1] == reports[2]


def test_spatial_features_are_those_of_the_seventh_mixed_blocks_first_branch(random_weights):
    network = random_weights[1]
    images, inception = tinted_digits(0, 66, noise=20, seed=4), Inception(network, checksum="random")
    blocks = {}
    hooks = [
        getattr(network, name).register_forward_hook(lambda *call, name=name: blocks.update({name: call[2]}))
        for name in ("Mixed_6c", "Mixed_6d")
    ]
    seen = inception(images)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():  # of the last two images, which came in a chunk of their own
        expected = network.Mixed_6d.branch1x1.bn(network.Mixed_6d.branch1x1.conv(blocks["Mixed_6c"])).relu()
    assert torch.equal(expected, blocks["Mixed_6d"][:, :192])  # the branch comes first in what the block returns
    assert torch.equal(seen.spatial[64:], expected[:, :7].permute(0, 2, 3, 1).reshape(2, -1))  # channels last
    assert seen.spatial.shape == (66, 7 * 3 * 3)  # of images seen at 75x75
    assert Inception.num_spatial == 2023  # ADM's, at 299x299
    assert torch.equal(inception(images[64:]).spatial, seen.spatial[64:])  # nothing is left of the pass before


def test_sfid_is_the_frechet_distance_of_spatial_features():
    images, real = pictures(30, 1, 3, 4, seed=9), pictures(40, 1, 3, 4, seed=8)
    inception = PixelInception()
    report = measure_inception(images.split(16), reference_statistics(real, inception), inception, STAMP)
    assert report["fid"] == pytest.approx(frechet_distance(images.flatten(1) / 255, real.flatten(1) / 255))
    assert report["sfid"] == pytest.approx(frechet_distance(images[:, :, 0, 1] / 255, real[:, :, 0, 1] / 255))


@pytest.fixture
def published(random_weights, monkeypatch, tmp_path):
    """Pretend that the random weights are the published ones; the cache is empty."""
    path, _ = random_weights
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", sha256(path))
    monkeypatch.setattr(extractors, "INCEPTION_URL", path.as_uri())
    return path


def test_inception_is_read_from_the_path_given(published, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded"))
    inception = load_inception(published)
    assert inception.checksum == sha256(published)[:16]
    assert not inception.training


def test_inception_is_downloaded_once_into_the_cache(published, tmp_path, monkeypatch):
    load_inception()
    (path,) = (tmp_path / "cache").iterdir()
    assert path.read_bytes() == published.read_bytes()
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloaded"))
    load_inception()


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_offline_without_weights_both_remedies_are_named(published, monkeypatch, tmp_path):
    monkeypatch.setattr(extractors, "INCEPTION_URL", "http://localhost:9/inception.pth")
    with pytest.raises(DiffitError, match=r"Could not download .+ \(.+refused\)") as error:
        load_inception()
    assert f"at {tmp_path / 'cache' / 'inception.pth'}" in one_line(error)
    assert "or, for data with classes, use the classifier extractor" in one_line(error)
    assert "or or" not in one_line(error)


def test_damaged_download_leaves_nothing_behind(published, monkeypatch, tmp_path):
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", "0" * 64)
    with pytest.raises(DiffitError, match="Could not download") as error:
        load_inception()
    one_line(error)
    assert list((tmp_path / "cache").iterdir()) == []


class Bomb:
    """Pickles into a call of os.mkdir."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_file_that_is_not_the_published_inception_is_never_opened(tmp_path):
    path, trace = tmp_path / "weights.pth", tmp_path / "opened"
    torch.save(Bomb(trace), path)
    with pytest.raises(DiffitError, match="is not the published Inception") as error:
        load_inception(path)
    assert str(path) in one_line(error)
    assert not trace.exists()


def test_missing_inception_file_is_named(tmp_path):
    with pytest.raises(DiffitError, match="no Inception weights at") as error:
        load_inception(tmp_path / "absent.pth")
    assert "absent.pth" in one_line(error)


def test_inception_takes_grey_images_as_rgb_and_any_number_of_them(random_weights):
    inception = Inception(random_weights[1], checksum="random")
    grey = tinted_digits(0, 66, noise=5, seed=3)[:, :1]
    features, logits, _ = inception(grey)
    assert (features.shape, logits.shape) == ((66, Inception.num_features), (66, 1008))
    coloured = inception(grey[60:].repeat(1, 3, 1, 1))
    # A batch of another size may be summed by another kernel, in another order. A sum of n float32 products then moves
    # by about sqrt(n) eps of its size, with n up to about 2,000 here, and at most 48 layers follow one another.
    bound = 48 * 2000**0.5 * torch.finfo(torch.float32).eps
    for one, other in zip((features, logits), coloured[:2], strict=True):
        torch.testing.assert_close(one[60:], other, rtol=0, atol=bound * one.abs().max().item())
    assert (features[60:] - features[:6]).abs().max() > 100 * bound * features.abs().max()  # other images are far away


def test_published_inception_is_pinned():
    name = INCEPTION_URL.rpartition("/")[2]
    assert name == f"weights-inception-2015-12-05-{INCEPTION_SHA256[:8]}.pth"
    assert len(INCEPTION_SHA256) == 64
    assert network_module.URL_INCEPTION_V3 == INCEPTION_URL
