"""What `export` writes opens in diffusers, draws the same picture there, and comes back to the bit."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffit_lib.checkpoints.autoencoders import VAECard, build_latent_space
from diffit_lib.checkpoints.export import export, pipeline_file
from diffit_lib.checkpoints.weights import (
    ModelCard,
    build_denoiser,
    load_own_space,
    load_weights,
    save_weights,
)
from diffit_lib.config.diffusion import FlowConfig, VPConfig
from diffit_lib.config.experiment import ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.models import AutoencoderConfig, TransformerConfig
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.sampling.pipeline import load
from diffit_lib.utils.errors import DiffitError

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
SMALL = TransformerConfig(image_size=(8, 8), width=32, depth=2, num_heads=2, num_classes=10, block="dit")
VP = VPConfig()
VAE = AutoencoderConfig(
    image_size=(16, 16), channels=(32, 32), down=(True,), attn=(False, False), num_layers=1, mid_attn=False
)


@pytest.fixture
def write(tmp_path):
    """A function: weights of this network and denoiser, random and none of them zero, in a file with an autoencoder."""

    def write(network=SMALL, denoiser=VP, **changes):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vae = VAECard(VAEExperimentConfig("v", "digits", network=VAE), (0.5, -0.2, 0.0, 1.0), (2.0, 1.0, 0.5, 3.0))
            tensors = KLAutoencoder(VAE).state_dict()
            space = build_latent_space(vae, {name: tensor + 0.01 for name, tensor in tensors.items()}, "v")
            experiment = ExperimentConfig("mine", "digits", vae="v", network=network, denoiser=denoiser)
            names = tuple("abcdefghij")[: network.num_classes]
            card = ModelCard(experiment.override(**changes), class_names=names, vae=vae)
            model = build_denoiser(card.experiment)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.15)
            save_weights(tmp_path / "w.safetensors", card, model, space=space)
        return tmp_path / "w.safetensors"

    return write


def ours(weights, labels, steps, guidance, latents):
    """Our picture on the noise levels of diffusers' DDIM."""
    pipe = load(weights, device="cpu")
    total = len(pipe.denoiser.table)
    times = torch.arange(0, total, total // steps)[:steps].flip(0)
    levels = torch.cat([pipe.denoiser.table[times], torch.zeros(1, dtype=torch.float64)])
    pipe.denoiser.levels = lambda count: levels
    pipe.denoiser.sigma_max = float(levels[0])
    *_, state = pipe.stream(
        range(len(labels)), labels, noise=lambda: latents, sampler="ddim", steps=steps, guidance=guidance
    )
    return pipe.decode(state.x)


def theirs(pipe, labels, steps, guidance):
    """diffusers' picture."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    out = pipe(labels, num_inference_steps=steps, guidance_scale=guidance, generator=generator, output_type="np").images
    return np.round(out * 255).astype(int)


def same_picture(weights, pipe, steps, guidance=2.0, classes=10):
    """Whether both draw the same picture, within one level of 255."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    labels = [3, 7] if classes else None
    mine = ours(weights, labels or ["none", "none"], steps, guidance, latents).astype(int)
    assert mine.std() > 5
    return np.abs(mine - theirs(pipe, [3, 7], steps, guidance)).max() <= 1


@pytest.mark.parametrize(
    ("network", "denoiser", "steps"),
    [
        (SMALL, VPConfig(), 50),
        (SMALL, VPConfig(), 30),
        (SMALL, VPConfig(), 64),
        (SMALL, VPConfig(timesteps=500), 25),
        (replace(SMALL, learned_variance=True, as_diffusers=True), VPConfig(), 12),
        (replace(SMALL, as_diffusers=True), VPConfig(prediction="v", noise_schedule="cosine"), 10),
    ],
)
def test_dit_draws_in_the_stock_pipeline_and_comes_back(write, tmp_path, network, denoiser, steps):
    weights = write(network, denoiser)
    folder = export(weights, tmp_path / "out", steps=steps)
    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    assert same_picture(weights, pipe, steps)
    assert pipe.get_label_ids(["d"]) == [3]
    check_round_trip(weights, folder)


def test_dit_without_classes(write, tmp_path):
    weights = write(replace(SMALL, num_classes=0))
    folder = export(weights, tmp_path / "out")
    assert same_picture(weights, diffusers.DiTPipeline.from_pretrained(folder), 10, guidance=1.0, classes=0)
    check_round_trip(weights, folder)


def test_diffit_draws_with_the_one_file_that_comes_with_it(write, tmp_path):
    weights = write(replace(SMALL, block="diffit"))
    folder = export(weights, tmp_path / "out")
    file = folder / "transformer" / "diffit.py"
    assert "diffit_lib" not in file.read_text()
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(file), trust_remote_code=True)
    assert type(pipe).__name__ == "DiffiTPipeline"
    assert same_picture(weights, pipe, 12)
    check_round_trip(weights, folder)


def test_that_file_defines_every_name_it_uses(tmp_path):
    file = tmp_path / "diffit.py"
    file.write_text(pipeline_file())
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", str(file)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def check_round_trip(weights, folder):
    """Denoiser, autoencoder and card are the same to the bit."""
    (before, card), (after, again) = load_weights(weights), load_weights(folder)
    assert again == card
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert load_own_space(folder, again).checksum == load_own_space(weights, card).checksum


@pytest.mark.parametrize(
    ("network", "denoiser", "says"),
    [
        (SMALL, FlowConfig(), "takes latents and denoiser vp"),
        (replace(SMALL, mlp_ratio=2.0), VPConfig(), "has mlp_ratio"),
        (replace(SMALL, image_size=(8, 4)), VPConfig(), "not squares"),
    ],
)
def test_what_the_pipeline_cannot_draw_is_one_line_and_leaves_nothing(write, tmp_path, network, denoiser, says):
    weights = write(network, denoiser)
    with pytest.raises(DiffitError, match=says):
        export(weights, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_steps_whose_times_diffusers_cannot_hold_are_refused(write, tmp_path):
    with pytest.raises(DiffitError, match="steps is 65; give 2 to 64"):
        export(write(), tmp_path / "out", steps=65)
    with pytest.raises(DiffitError, match=r"steps is 50, but .* has 30 timesteps; give as many or fewer"):
        export(write(denoiser=VPConfig(timesteps=30)), tmp_path / "out")


def test_a_folder_that_holds_something_is_left_alone(write, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(DiffitError, match="out is not empty; give another folder"):
        export(write(), tmp_path / "out")


def test_what_a_kill_left_is_swept_and_a_place_without_a_name_is_refused(write, tmp_path, monkeypatch):
    (tmp_path / ".out.diffit-export" / "vae").mkdir(parents=True)
    (tmp_path / ".out.diffit-export" / "vae" / "old.json").write_text("{}")
    export(write(), tmp_path / "out")
    assert not (tmp_path / "out" / "vae" / "old.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "w.safetensors"}
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(DiffitError, match=r"^\. has no name; give the name of a new folder$"):
        export(tmp_path / "w.safetensors", ".")
