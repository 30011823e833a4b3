"""The small classifier: good enough to measure with, the same for the same seed; and what is kept on disk."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from diffit_lib.data.datasets import load_data
from diffit_lib.evaluation import features as extractors
from diffit_lib.evaluation.features import Classifier, cached, train_classifier
from diffit_lib.utils.errors import DiffitError


@pytest.fixture(scope="module")
def parts():
    return load_data("digits")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def classifier(parts, cache):
    return train_classifier(parts.train.images, parts.train.labels, seed=0)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Forty grey 6x5 images of two classes, a cache folder of their own, and a short training."""
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path))
    monkeypatch.setattr(extractors, "TRAINING_IMAGES", 500)
    images = torch.randint(256, (40, 1, 6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return images, torch.arange(40) % 2


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_classifier_reads_unseen_digits(classifier, parts):
    right = classifier.predict(parts.test.images) == parts.test.labels
    assert right.double().mean() >= 0.98


@pytest.mark.parametrize("seed", [1, 2])
def test_classifier_reads_unseen_digits_whatever_the_seed(seed, parts, cache):
    right = train_classifier(parts.train.images, parts.train.labels, seed).predict(parts.test.images)
    assert (right == parts.test.labels).double().mean() >= 0.98


def test_features_do_not_depend_on_the_batch_they_come_in(classifier, parts):
    features = classifier.features(parts.train.images)
    assert features.shape == (1437, Classifier.num_features)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(
        classifier.features(parts.train.images[700:710]), features[700:710], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 32, 32), (3, 32, 32), (3, 5, 17), (1, 28, 28), (1, 4, 4), (3, 1, 1)])
def test_classifier_fits_any_size_and_channels(shape):
    classifier = Classifier(shape, num_classes=3).eval()
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    assert classifier.features(images).shape == (2, Classifier.num_features)
    assert classifier.predict(images).shape == (2,)


def test_same_seed_gives_the_same_weights_and_another_seed_others(tiny, tmp_path, monkeypatch):
    first = train_classifier(*tiny, seed=0)
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "elsewhere"))
    torch.rand(3)  # the global random state is of no account
    assert same_weights(train_classifier(*tiny, seed=0), first)
    assert train_classifier(*tiny, seed=1).checksum != first.checksum


def test_training_leaves_the_global_random_state_alone(tiny):
    before = torch.get_rng_state()
    train_classifier(*tiny)
    assert torch.equal(torch.get_rng_state(), before)


def test_second_call_reads_the_cache(tiny, monkeypatch):
    first = train_classifier(*tiny)
    monkeypatch.setattr(extractors, "_train", lambda *_: pytest.fail("trained again"))
    assert same_weights(train_classifier(*tiny), first)


def test_other_data_is_not_served_from_the_cache(tiny):
    images, labels = tiny
    first = train_classifier(images, labels)
    assert train_classifier(images, 1 - labels).checksum != first.checksum
    assert train_classifier(255 - images, labels).checksum != first.checksum


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit of a weight"])
def test_damaged_cache_file_is_trained_anew(damage, tiny, tmp_path):
    first = train_classifier(*tiny)
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes({"empty": b"", "cut": whole[:-4], "one bit of a weight": flipped}[damage])
    assert same_weights(train_classifier(*tiny), first)
    assert path.read_bytes() == whole


def test_checksum_names_the_weights(tiny):
    classifier = train_classifier(*tiny)
    before = classifier.checksum
    assert len(before) == 16
    with torch.no_grad():
        classifier.head[-1].bias[0] += 1
    assert classifier.checksum != before


def test_data_without_classes_is_refused_in_one_line(tiny):
    with pytest.raises(DiffitError, match="no classes") as error:
        train_classifier(tiny[0], torch.zeros(40, dtype=torch.int64))
    assert "\n" not in str(error.value)


def test_damaged_cache_is_made_anew_and_a_whole_one_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path))
    tensors = {"a": torch.tensor([1.5]), "b": torch.tensor([1, 2])}
    made = []
    for _ in range(2):
        assert torch.equal(cached("folder/name", lambda: made.append(1) or tensors)["b"], tensors["b"])
    assert len(made) == 1
    (path,) = tmp_path.rglob("*.safetensors")
    safetensors.torch.save_file(tensors, path)  # whole, but without its digest
    cached("folder/name", lambda: made.append(1) or tensors)
    assert len(made) == 2


def test_cache_does_not_serve_what_other_code_made(monkeypatch, tmp_path):
    """Any file of the package that measures, the conversion of images, or a library may have changed."""
    folder, hashed = Path(extractors.__file__).parent, []
    monkeypatch.setattr(extractors, "sha256", lambda path: hashed.append(Path(path).name) or "0")
    before = extractors.code_digest.__wrapped__()
    assert {path.name for path in folder.glob("*.py")} | {"tensors.py"} == set(hashed)
    for name, changed in (("sha256", lambda path: str(Path(path).name == "metrics.py")), ("version", lambda _: "9.9")):
        with monkeypatch.context() as patch:
            patch.setattr(extractors, name, changed)
            assert extractors.code_digest.__wrapped__() != before
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path))
    cached("numbers", lambda: {"a": torch.ones(1)})
    monkeypatch.setattr(extractors, "code_digest", lambda: "other")
    assert torch.equal(cached("numbers", lambda: {"a": torch.zeros(1)})["a"], torch.zeros(1))


@pytest.mark.parametrize("error", [OSError("disk full"), SafetensorError("Read-only file system")])
def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path, error):
    def fail(*_):
        raise error

    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path))
    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    assert torch.equal(cached("numbers", lambda: {"a": torch.ones(2)})["a"], torch.ones(2))
    assert list(tmp_path.rglob("*.safetensors")) == []
