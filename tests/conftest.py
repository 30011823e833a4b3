"""What several tests share: a recipe that trains in a moment, the digits, and weights that draw something."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as cores share the tests; set before torch comes

import pytest
import torch
from image_files import fill, noise

from diffit_lib.checkpoints.weights import ModelCard, build_denoiser, save_weights
from diffit_lib.config.presets import PRESETS
from diffit_lib.data.datasets import Split, load_data
from diffit_lib.training.train import train

TINY = PRESETS["digits"].override(
    name="tiny",
    width=8,
    channel_mult=(1, 2),
    num_blocks=1,
    num_heads=2,
    time_dim=16,
    max_steps=4,
    minutes=None,
    batch_size=16,
    lr=1e-3,
    muon=0.0,
    lr_decay=0.0,
    ema_rampup=0.05,
    threads=1,
    report_minutes=60.0,
    steps=8,
    churn=0.0,
)


@pytest.fixture(scope="session")
def tiny():
    """A recipe for the digits; four steps of training."""
    return TINY


@pytest.fixture(scope="session")
def data():
    """The digits, train and test part."""
    return load_data("digits")


@pytest.fixture
def fit(monkeypatch, tmp_path, data):
    """A function: train in the folder `run` without drawing anything; the module as it stands at the end."""
    finished = []
    monkeypatch.setattr("diffit_lib.training.train.write_snapshot", lambda module, **_: finished.append(module))

    def fit(experiment, images=None, run="run"):
        train(experiment, tmp_path / run, Split(images, images) if images else data, progress=False)
        return finished[-1]

    return fit


def write_weights(path, **changes):
    """A file of random weights, averaged and raw ones apart, large enough that labels and noise levels matter."""
    sigma_data = {} if changes.get("denoiser") == "flow" else {"sigma_data": 0.75}
    experiment = TINY.override(precision="32-true", **sigma_data, **changes)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        ema, raw = build_denoiser(experiment), build_denoiser(experiment)
        for parameter in (*ema.parameters(), *raw.parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    names = tuple("0123456789") if experiment.network.num_classes else ()
    card = ModelCard(
        experiment=experiment, class_names=names, trained_on="digits/train 0", images_seen=64, minutes=0.5, device="cpu"
    )
    save_weights(path, card, ema, raw)
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weights with ten classes."""
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="session")
def unconditional(tmp_path_factory):
    """Weights without classes, for images of 8 x 16 in colour."""
    path = tmp_path_factory.mktemp("weights") / "unconditional.safetensors"
    return write_weights(path, num_classes=0, in_channels=3, image_size=(8, 16))


@pytest.fixture
def snapshot(tmp_path):
    """A function: every path below tmp_path with its bytes, None for folders."""
    return lambda: {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}


@pytest.fixture
def faces(tmp_path):
    """60 noise images in three class folders."""
    return fill(tmp_path / "faces", {f"{'abc'[k % 3]}/{k}.png": noise(k) for k in range(60)})


@pytest.fixture(scope="module")
def environment():
    """What running kernels changes in the environment is undone."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where the classifiers of the notebooks are kept from one run to the next."""
    return tmp_path_factory.mktemp("cache")
