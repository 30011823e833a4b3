"""Training, sampling and measuring in latent space: the same verbs, with an autoencoder between."""

import json

import pytest
import torch
from publish import legibility
from safetensors import safe_open

from diffit_lib import load
from diffit_lib.checkpoints.autoencoders import VAECard, load_vae
from diffit_lib.checkpoints.safetensors_io import write_checkpoint
from diffit_lib.checkpoints.weights import load_weights
from diffit_lib.config.experiment import ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.models import AutoencoderConfig
from diffit_lib.data.datasets import load_data
from diffit_lib.evaluation.evaluate import evaluate
from diffit_lib.models.latent_space import LazyLatentSpace
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.training.encode import encode
from diffit_lib.training.train import train
from diffit_lib.utils.errors import DiffitError

NETWORK = AutoencoderConfig(
    image_size=(8, 8), in_channels=1, z_channels=2, channels=(8, 16), down=(True,), attn=(False, False), num_layers=1
)


def write_vae(path, seed=0):
    torch.manual_seed(seed)
    card = VAECard(VAEExperimentConfig("small", "digits", network=NETWORK), mean=(0.1, -0.1), std=(0.5, 2.0))
    write_checkpoint(path, card, KLAutoencoder(NETWORK).state_dict())
    return str(path)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return write_vae(tmp_path_factory.mktemp("vae") / "vae.safetensors")


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def experiment(vae):
    return ExperimentConfig("latent", "digits", vae=vae).override(
        network="transformer", image_size=(4, 4), in_channels=2, patch_size=2, width=32, depth=2, num_heads=2,
        num_classes=10, batch_size=8, max_steps=4, steps=3, precision="32-true",
    )  # fmt: skip


@pytest.fixture
def trained(experiment, digits, tmp_path):
    return train(experiment, tmp_path / "run", digits, progress=False)


def test_weights_draw_pictures_and_bring_their_autoencoder(trained, vae, tmp_path):
    pipe = load(trained)
    pictures = pipe([0, 1, 2], batch_size=2)
    assert pictures.shape == (3, 8, 8, 1)
    states = list(pipe.stream([0, 1], [3, 4]))
    assert states[-1].x.shape == (2, 2, 4, 4)
    assert (pipe.decode(states[-1].x) == pipe([0, 1], [3, 4])).all()
    one, other = pipe.space.network.state_dict(), load_vae(vae)[0].network.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert pipe.card.image_shape == (1, 8, 8)
    assert (tmp_path / "run" / "samples" / "000000032.png").is_file()


def test_an_image_does_not_depend_on_its_batch(trained):
    pipe = load(trained)
    among = pipe(range(8), [1] * 8, batch_size=4)
    assert (pipe([9, 5], [2, 1], batch_size=4)[1] == among[5]).all()


def test_sigma_data_of_normalised_latents_is_one(trained):
    assert load_weights(trained)[1].experiment.denoiser.sigma_data == 1.0


def test_straight_from_images_the_run_is_the_same_up_to_float16(experiment, trained, digits, tmp_path):
    straight = train(experiment.override(cache_latents=False), tmp_path / "straight", digits, progress=False)
    one, other = (load_weights(path)[0].state_dict() for path in (trained, straight))
    assert all(torch.allclose(one[name], other[name], atol=1e-3) for name in one)
    assert load_weights(trained)[1].trained_on == load_weights(straight)[1].trained_on


def test_a_resumed_run_is_bit_equal(experiment, trained, digits, tmp_path):
    train(experiment.override(max_steps=2), tmp_path / "broken", digits, progress=False)
    resumed = train(experiment.override(lr_decay=0.0), tmp_path / "broken", digits, progress=False)
    one, other = (load_weights(path, ema=False)[0].state_dict() for path in (trained, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_straight_from_images_resumes(experiment, digits, tmp_path):
    straight = experiment.override(cache_latents=False)
    for steps in (1, 2):
        weights = train(straight.override(max_steps=steps), tmp_path / "run", digits, progress=False)
    assert load_weights(weights)[1].images_seen == 2 * straight.training.batch_size


def test_latents_alone_are_enough_to_train_on(experiment, vae, digits, tmp_path):
    folder = encode(vae, out=tmp_path / "latents")
    alone = train(experiment.override(data=str(folder)), tmp_path / "alone", progress=False)
    with pytest.raises(DiffitError, match="trained on latents alone"):
        evaluate(alone, images=20)
    assert evaluate(alone, digits, images=20)["stamp"]["drawn"] == 20
    straight = train(experiment, tmp_path / "straight", digits, progress=False)
    one, other = (load_weights(path, ema=False)[0].state_dict() for path in (straight, alone))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_latents_of_another_autoencoder_are_refused(experiment, vae, tmp_path):
    folder = encode(vae, out=tmp_path / "latents")
    other = write_vae(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(DiffitError, match="latents of the autoencoder"):
        train(experiment.override(data=str(folder), vae=other), tmp_path / "run2", progress=False)
    with pytest.raises(DiffitError, match="give another folder"):
        encode(other, out=folder)


def test_a_run_does_not_go_on_with_another_autoencoder(experiment, trained, digits, tmp_path):
    other = write_vae(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(DiffitError, match="another folder"):
        train(experiment.override(vae=other, max_steps=6), tmp_path / "run", digits, progress=False)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"in_channels": 4}, "set in_channels to 2"), ({"image_size": (2, 2)}, r"\(1, 4, 4\)")],
)
def test_a_network_that_does_not_fit_the_latents_is_refused(experiment, digits, tmp_path, change, word):
    with pytest.raises(DiffitError, match=word):
        train(experiment.override(**change), tmp_path / "run2", digits, progress=False)


def test_a_label_outside_the_classes_is_refused(trained):
    with pytest.raises(DiffitError, match="no class 10; give a number from 0 to 9"):
        load(trained)([0], [10])


def test_numbers_are_of_pictures(trained, digits):
    numbers = evaluate(trained, digits, images=20)
    assert 0 <= numbers["class_accuracy"] <= 1
    assert numbers["stamp"]["decoder"] == f"small {load(trained).space.checksum}"


def test_an_autoencoder_that_cannot_be_had_is_told_before_anything_is_drawn(trained):
    def absent():
        raise DiffitError("no autoencoder here")

    pipe = load(trained)
    pipe = Pipeline(pipe.denoiser, pipe.card, LazyLatentSpace(absent))
    pipe.denoiser.network.forward = lambda *_: pytest.fail("drawn")
    with pytest.raises(DiffitError, match="no autoencoder here"):
        pipe([0])


def test_too_many_images_at_once_are_told_with_a_number_that_may_fit(trained, monkeypatch):
    def greedy(*_, **__):
        raise torch.OutOfMemoryError

    pipe = load(trained)
    monkeypatch.setattr(pipe.denoiser.network, "forward", greedy)
    with pytest.raises(DiffitError, match="8 images at once exceed the memory of cpu; give batch_size=4"):
        pipe(range(20), batch_size=8)


def test_the_ready_made_autoencoder_keeps_digits_legible(digits):
    before, after = legibility(load_vae("vae-digits")[0], digits)
    assert before >= 0.98
    assert after >= 0.95


def test_the_file_holds_one_card(trained):
    with safe_open(trained, "pt") as file:
        card = json.loads(file.metadata()["card"])
    assert card["vae"]["mean"] == [0.1, -0.1]
