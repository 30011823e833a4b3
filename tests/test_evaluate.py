"""`evaluate`: which numbers are taken of which weights, and what their stamp says."""

from dataclasses import replace

import pytest
import torch

from diffit_lib.data import Images, Split
from diffit_lib.errors import DiffitError
from diffit_lib.metrics import measure_inception, reference_statistics
from diffit_lib.pipeline import load
from diffit_lib.tasks import evaluate as task
from diffit_lib.tasks.evaluate import FIRST_SEED, cached_reference, evaluate
from diffit_lib.tensors import digest
from diffit_lib.weights import load_weights, save_weights


class PixelInception(torch.nn.Module):
    """Stands in for Inception: a few pixels for features and logits."""

    name, checksum = "pixels", "none"

    def forward(self, images):
        features = images[..., :4].flatten(1).float() / 255
        return features, features

    def features(self, images):
        return self(images)[0]


@pytest.fixture
def inception(monkeypatch, tmp_path):
    """Measure by a stand-in, with an empty cache; what `load_inception` was asked for."""
    asked = []
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(task, "load_inception", lambda path: (asked.append(path), PixelInception())[1])
    return asked


@pytest.fixture(scope="module")
def coloured():
    """Forty images of 8 x 16 in colour, as the unconditional weights draw; half of them test images."""
    pixels = torch.randint(256, (40, 3, 8, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.arange(40) % 2
    return Split(*(Images(f"toy/{name}", pixels[k::2], labels[k // 2 :: 2][:20], ()) for k, name in enumerate("ab")))


def with_classes(split, *names):
    return Split(*(replace(part, labels=torch.arange(len(part)) % len(names), class_names=names) for part in split))


def test_numbers_by_the_classifier_carry_all_they_depend_on(weights, data):
    report = evaluate(weights, data, images=40)
    stamp = report["stamp"]
    assert (stamp["n"], stamp["drawn"], stamp["reference"]) == (40, 40, "digits/train")
    assert stamp["reference_hash"] == data.train.fingerprint()
    assert (stamp["steps"], stamp["guidance"], stamp["precision"]) == (8, "1", "32-true")
    assert stamp["sampler"] == "heun churn=0.0 sigma=10..0.03"
    assert stamp["weights_hash"] == digest(load_weights(weights)[0].state_dict())
    assert stamp["seeds"] == "10000-10039"
    assert not stamp["best_by_this_metric"]
    assert evaluate(weights, data, images=40) == report


def test_settings_change_how_the_images_are_drawn_and_the_stamp_says_so(weights, data):
    settings = {"sampler": "euler", "steps": 4, "guidance": 2.0, "guidance_schedule": "power-cosine"}
    report = evaluate(weights, data, images=20, **settings)
    assert report["stamp"]["guidance"] == "2 power-cosine power=4.0"
    assert (report["stamp"]["steps"], report["stamp"]["sampler"].split()[0]) == (4, "euler")
    assert report["frechet"] != evaluate(weights, data, images=20)["frechet"]


def test_numbers_by_inception_are_those_of_the_weights_images(weights, data, inception):
    report = evaluate(weights, data, images=30, extractor="inception", inception="local.pth")
    assert inception == ["local.pth"]
    pipe, network = load(weights), PixelInception()
    labels = [k // 3 for k in range(30)]
    pictures = torch.from_numpy(pipe(range(FIRST_SEED, FIRST_SEED + 30), labels, batch_size=100)).permute(0, 3, 1, 2)
    expected = measure_inception(
        [pictures], reference_statistics(data.train.images, network), network, task.Stamp(**report["stamp"])
    )
    assert report == expected
    assert [report["stamp"][key] for key in ("extractor", "rounding", "n", "drawn")] == ["pixels", "round", 30, 30]


def test_protocol_adm_truncates_what_the_weights_draw(weights, data, inception):
    rounded, truncated = (
        evaluate(weights, data, images=30, extractor="inception", protocol=protocol) for protocol in ("round", "adm")
    )
    assert truncated["stamp"]["rounding"] == "adm"
    assert truncated["fid"] != rounded["fid"]


def test_reference_is_taken_once_and_kept(weights, data, inception, monkeypatch):
    first = cached_reference(data.train, PixelInception())
    monkeypatch.setattr(task, "reference_statistics", lambda *_: pytest.fail("taken again"))
    again = cached_reference(data.train, PixelInception())
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("other", ["images", "weights"])
def test_reference_of_other_images_or_another_extractor_is_another(data, inception, monkeypatch, other):
    first = cached_reference(data.train, PixelInception())
    network = PixelInception()
    if other == "weights":
        network.checksum = "other"
        monkeypatch.setattr(network, "features", lambda images: 2 * images[..., :4].flatten(1).float())
    again = cached_reference(data.test if other == "images" else data.train, network)
    assert not torch.equal(first.mean, again.mean)


def test_guidance_of_unconditional_weights_is_refused_and_not_stamped(unconditional, coloured, inception):
    assert evaluate(unconditional, coloured, images=20)["stamp"]["guidance"] is None
    with pytest.raises(DiffitError, match=r"guidance is 3\.0, but these weights are unconditional; leave guidance out"):
        evaluate(unconditional, coloured, images=20, guidance=3.0)


def test_what_an_extractor_cannot_measure_is_refused_before_anything_is_drawn(weights, unconditional, coloured, data):
    with pytest.raises(DiffitError, match=r"toy/a has no classes, which the classifier needs; give --extractor inc"):
        evaluate(unconditional, coloured, extractor="classifier")
    with pytest.raises(DiffitError, match="digits/train has no test images to compare with; give 50 images or more"):
        evaluate(weights, Split(data.train, data.train))
    with pytest.raises(
        DiffitError, match=r"inception is 'a\.pth', but the extractor is not; give --extractor inception"
    ):
        evaluate(weights, data, inception="a.pth")


def test_data_without_classes_are_measured_by_inception(unconditional, coloured, inception):
    report = evaluate(unconditional, coloured, images=20)
    assert report["fid"] > 0
    assert report["stamp"]["reference"] == "toy/a"


def test_unconditional_weights_have_no_class_accuracy(unconditional, coloured):
    report = evaluate(unconditional, with_classes(coloured, "cat", "dog"), images=20)
    assert "class_accuracy" not in report
    assert {"classifier_test_accuracy", "frechet_ratio", "copy_ratio"} < report.keys()


@pytest.mark.parametrize(("kind", "flatters"), [("classifier", True), ("inception", False), ("", False)])
def test_best_weights_own_up_to_what_they_were_chosen_by(weights, data, tmp_path, kind, flatters):
    denoiser, card = load_weights(weights)
    save_weights(tmp_path / "best.safetensors", replace(card, chosen_by=kind), denoiser)
    report = evaluate(tmp_path / "best.safetensors", data, images=20)
    assert report["stamp"]["best_by_this_metric"] == flatters
    assert any("chosen by this very metric" in warning for warning in report["warnings"]) == flatters


@pytest.mark.parametrize("names", [("a", "b"), tuple("abcdefghij"), ()])
def test_data_with_other_classes_are_refused(weights, data, names):
    other = with_classes(data, *names) if names else Split(*(replace(part, class_names=()) for part in data))
    with pytest.raises(DiffitError, match=r"draws 10 classes \(0, 1, 2, ...\), digits/train has .*classes"):
        evaluate(weights, other)


def test_data_of_another_shape_are_refused(unconditional, data):
    expected = r"draws images of \(channels, height, width\) \(3, 8, 16\), digits/train has \(1, 8, 8\); give data"
    with pytest.raises(DiffitError, match=expected):
        evaluate(unconditional, data)


@pytest.mark.parametrize("images", [1, 0, -3])
def test_too_few_images_are_refused(weights, data, images):
    with pytest.raises(DiffitError, match=f"images is {images}; give 2 or more"):
        evaluate(weights, data, images=images)
