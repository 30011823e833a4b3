"""Files from before the modules moved into packages still load, and weights of then draw the same pictures."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffit_lib.checkpoints.autoencoders import load_vae
from diffit_lib.checkpoints.weights import load_weights
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.config.presets import read_options
from diffit_lib.data.datasets import Split, load_data
from diffit_lib.data.latent_cache import open_split
from diffit_lib.sampling.pipeline import load
from diffit_lib.training.train import train
from diffit_lib.utils.tensors import to_uint8

ROOT = Path(__file__).resolve().parent.parent
OLD = Path(__file__).parent / "data" / "before_the_move"
COMMIT = "f89be93"  # the last one before the move
SHIPPED = ("digits", "mnist", "latent-digits")  # then
HASHES = f"""
import hashlib, torch
from diffit_lib.{{module}} import load
torch.set_num_threads(1)
for name in {SHIPPED}:
    pipe = load(f"{{folder}}/weights/{{{{name}}}}.safetensors", device="cpu", precision="32-true")
    print(name, hashlib.sha256(pipe(seeds=range(8)).tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def expected():
    """What the old code drew from these files, uint8."""
    return np.load(OLD / "pictures.npz")


@pytest.fixture(scope="module")
def some():
    """The images of the old run and of the old latent cache."""
    counted = zip(load_data("digits"), (24, 8), strict=True)
    return Split(*(part.take(torch.arange(count), f"some/{count}") for part, count in counted))


def assert_same_pictures(pairs):
    """Processors and versions of torch round differently: 1 of 255 is allowed in 0.1 % of all values, or in one."""
    differences = np.concatenate([np.abs(a.astype(int) - b.astype(int)).ravel() for a, b in pairs])
    assert differences.max() <= 1
    assert np.count_nonzero(differences) <= max(1, 0.001 * differences.size)


def test_weights_of_then_draw_the_same_to_the_bit_as_the_old_code_here(tmp_path):
    old = subprocess.run(["git", "archive", COMMIT, "diffit_lib", "weights"], cwd=ROOT, capture_output=True)
    if old.returncode:
        pytest.skip(f"the old code is not here: {old.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(old.stdout)) as archive:
        archive.extractall(tmp_path, filter="data")
    answers = [
        subprocess.run(
            [sys.executable, "-c", HASHES.format(module=module, folder=tmp_path)],
            env=os.environ | {"PYTHONPATH": str(code)},
            cwd=code,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for code, module in ((tmp_path, "pipeline"), (ROOT, "sampling.pipeline"))
    ]
    assert answers[0].count("\n") == len(SHIPPED)
    assert answers[0] == answers[1]


def test_weights_load_and_draw_what_they_drew(expected):
    names = ("weights", "latent")
    assert_same_pictures([(load(OLD / f"{name}.safetensors")(seeds=range(8)), expected[name]) for name in names])
    _, card = load_weights(OLD / "latent.safetensors")
    assert (card.class_names, card.images_seen, card.vae.experiment.name) == (tuple("0123456789"), 64, "tiny-vae")
    _, card = load_weights(OLD / "weights.safetensors", ema=False)
    assert card.experiment.name == "tiny"


def test_autoencoder_loads_and_reconstructs_as_it_did(expected, some):
    space, card = load_vae(OLD / "vae.safetensors")
    assert (card.mean, card.trained_on) == ((0.1, 0.1), "digits/train 0")
    again = to_uint8(space.decode(space.encode(some.test.images))).numpy()
    assert_same_pictures([(again, expected["reconstructed"])])


def test_latent_cache_opens_and_is_of_the_same_images_and_autoencoder(some):
    space, _ = load_vae(OLD / "vae.safetensors")
    for cached, images in zip(open_split(OLD / "latents", space), some, strict=True):
        assert cached.source == f"{images.fingerprint()}-{space.checksum}"
        everything = list(range(len(images)))
        assert torch.equal(cached.labels, images.labels)
        moments = cached.fetch(everything, [False] * len(images)).float()
        assert torch.allclose(moments, space.moments(images.images), atol=1e-2)


def test_run_goes_on_where_it_was_stopped(expected, some, tmp_path):
    run = shutil.copytree(OLD / "run", tmp_path / "run")
    before = load_file(run / "weights.safetensors")
    options = read_options(ExperimentConfig, run)
    weights = train(options.override(report_minutes=60.0), run, some, progress=False)
    assert load_weights(weights)[1].images_seen == 16
    rows = (run / "metrics.csv").read_text().splitlines()[1:]
    assert [row.partition(",")[0] for row in rows] == ["0", "4", "8", "16"]
    assert not torch.equal(load_file(weights)["ema.network.head.bias"], before["ema.network.head.bias"])
    assert_same_pictures([(load(weights)(seeds=range(8)), expected["whole"])])
