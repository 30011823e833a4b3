"""From files to a network: `encode` with images prepared in other ways, and class names all the way to the weights."""

import weakref
from functools import partial
from shutil import rmtree

import pytest
import torch
from image_files import fill, noise
from kills import finishes_killed_at_any_moment
from safetensors.torch import load_file
from test_latent_training import write_vae

from diffit_lib.cli.main import main
from diffit_lib.data.datasets import load_data
from diffit_lib.data.pack import pack
from diffit_lib.data.preprocess import to_pixels
from diffit_lib.sampling.pipeline import load
from diffit_lib.training.encode import encode
from diffit_lib.training.train import train


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def vae(tmp_path):
    return write_vae(tmp_path / "vae.safetensors")


@pytest.fixture
def birds(tmp_path):
    """60 grey pictures of two of ImageNet's classes."""
    classes = ("n01440764", "n03000684")
    return fill(tmp_path / "some", {f"{classes[k % 2]}/{k}.png": noise(k, 12, 16).convert("L") for k in range(60)})


def contents(folder):
    """Every tensor below a folder of latents."""
    return {
        (path.relative_to(folder), name): tensor
        for path in folder.rglob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_images_come_in_the_size_and_by_the_crop_asked_for(vae, birds, tmp_path):
    fill(birds, {"n01440764/broken.png": b"x"})
    options = ["--resolution=16x8", "--crop=long-edge", "--skip_bad=true", f"--data={birds}"]
    assert main(["encode", vae, *options, "--out=one"]) == 0
    expected = load_data(birds, (8, 16), 1, crop="long-edge", skip_bad=True)
    assert same(contents(tmp_path / "one"), contents(encode(vae, expected, tmp_path / "two")))
    assert load_file("one/train/00000.safetensors")["moments"].shape[1:] == (4, 4, 8)
    assert main(["encode", vae, f"--data={birds}", "--out=three"]) == 2


def test_images_that_exceed_the_memory_give_the_same_latents_and_are_never_held(vae, tmp_path, capsys, monkeypatch):
    birds = fill(tmp_path / "birds", {f"{k}.png": noise(k).convert("L") for k in range(400)})
    held = encode(vae, birds, tmp_path / "held")
    alive, counts = set(), []

    def counted(picture, **form):
        pixels = to_pixels(picture, **form)
        alive.add(id(pixels))
        counts.append(len(alive))
        weakref.finalize(pixels, alive.discard, id(pixels))
        return pixels

    monkeypatch.setattr("diffit_lib.data.datasets.to_pixels", counted)
    left = encode(vae, birds, tmp_path / "left", memory_gb=1e-9)
    assert "decoded when used" in capsys.readouterr().err
    assert same(contents(held), contents(left))
    assert 64 <= max(counts) <= 257  # of 360


def test_killed_at_any_moment_it_ends_with_the_files_of_an_unbroken_run(vae, tmp_path, snapshot):
    few = load_data([(noise(k).convert("L"), 0) for k in range(3)])
    work = partial(encode, vae, few, tmp_path / "latents")
    assert finishes_killed_at_any_moment(work, partial(rmtree, tmp_path / "latents"), snapshot) > 6


def test_class_names_travel_from_folders_to_the_weights(vae, birds, tiny, tmp_path):
    experiment = tiny.override(num_classes=2, max_steps=1, steps=2)
    packed = str(pack(birds, "some.zip", (8, 8)))
    latent = experiment.override(
        data=str(encode(vae, packed, tmp_path / "latents")), vae=vae, network="transformer", image_size=(4, 4),
        in_channels=2, patch_size=2, width=32, depth=2, num_heads=2, num_classes=2,
    )  # fmt: skip
    for name, each in {"zip": experiment.override(data=packed), "latents": latent}.items():
        pipe = load(train(each, tmp_path / name, progress=False), device="cpu")
        assert pipe.card.class_names == ("tench", "chain saw")
        assert [pipe.card.class_number(label) for label in ("Chain Saw", "tench", "1", 0, "none")] == [1, 0, 1, 0, 2]
