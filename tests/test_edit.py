"""Editing: variations of an image, inpainting, inversion, interpolation; in pixels and latents, for all denoisers."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_weights
from PIL import Image

from diffit_lib.cli.main import main
from diffit_lib.config.diffusion import FlowConfig, VPConfig
from diffit_lib.data.datasets import load_data
from diffit_lib.diffusion.denoiser import FlowDenoiser, VPDenoiser
from diffit_lib.diffusion.schedules import t_to_sigma
from diffit_lib.sampling.edit import slerp
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import SeededNoise

KINDS = {
    "edm": {},
    "vp": {"denoiser": "vp", "prediction": "v", "sampler": "ddpm"},
    "eps": {"denoiser": "vp", "sampler": "ddim"},
    "flow": {"denoiser": "flow"},
}


@pytest.fixture(scope="module", params=["digits", "latent-digits", *KINDS])
def pipe(request, tmp_path_factory):
    if request.param not in KINDS:
        return load(request.param, device="cpu")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    return load(write_weights(path, **KINDS[request.param]), device="cpu")


@pytest.fixture(scope="module")
def digits():
    return load("digits", device="cpu")


@pytest.fixture(scope="module")
def held():
    """Six test images, uint8 (6, 8, 8, 1)."""
    return load_data("digits").test.images[:6].movedim(1, -1).numpy()


@pytest.fixture(scope="module")
def mask():
    """The lower right, of odd size and place."""
    mask = np.zeros((8, 8), bool)
    mask[3:, 5:] = True
    return mask


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def test_outside_the_mask_nothing_changes_by_a_bit(pipe, held, mask):
    for strength in (None, 0.3):
        drawn = pipe(range(6), 3, image=held, mask=mask, strength=strength, batch_size=4)
        assert np.array_equal(drawn[:, ~mask], held[:, ~mask])
        assert (drawn[:, mask] != held[:, mask]).mean() > 0.2


def test_strength_0_gives_the_image_back_and_1_draws_from_noise_alone(pipe, held):
    assert np.array_equal(pipe(range(6), 3, image=held, strength=0), held)
    assert np.array_equal(pipe(range(6), 3, image=held, strength=1), pipe(range(6), 3))


def test_a_whole_mask_draws_from_noise_alone(pipe, held):
    assert np.array_equal(pipe(range(3), 3, image=held[0], mask=np.full((8, 8), 255, np.uint8)), pipe(range(3), 3))


def test_the_weaker_the_nearer_to_the_image(digits, held):
    for labels in ("none", 3):
        distances = [
            np.abs(digits(range(6), labels, image=held, strength=strength).astype(float) - held).mean()
            for strength in (0.1, 0.3, 0.5, 0.8)
        ]
        assert distances == sorted(distances)
        assert distances[0] < 10 < 30 < distances[-1]


def test_what_is_drawn_fits_what_is_known(digits, mask):
    """It is nearer to what the mask hides than other digits of the same class are."""
    test = load_data("digits").test
    hidden, labels = test.images[:64].movedim(1, -1).numpy(), test.labels[:64].tolist()
    drawn, other = digits(range(64), labels, image=hidden, mask=mask, steps=8), digits(range(64), labels, steps=8)
    errors = [np.abs(images.astype(float) - hidden)[:, mask].mean() for images in (drawn, other)]
    assert errors[0] < 0.8 * errors[1]


def test_one_image_serves_all_seeds_and_a_batch_changes_nothing(digits, held, mask):
    three = digits(range(3), 3, image=held[0], mask=mask)
    assert np.array_equal(three, digits(range(3), 3, image=held[[0, 0, 0]], mask=np.stack([mask] * 3)))
    apart = digits(range(3), 3, image=held[0, ..., 0], mask=mask.astype(np.uint8), batch_size=2)
    assert np.abs(three.astype(int) - apart).max() <= 1


class Translated(torch.nn.Module):
    """The network of another kind of denoiser that answers as a trained one does."""

    def __init__(self, trained, kind):
        super().__init__()
        self.trained, self.kind = trained, [kind]  # in a list, as it holds this network

    def forward(self, x, noise_label, class_label=None, augment_label=None):
        (kind,), label = self.kind, noise_label.double()
        sigma = 1 / label - 1 if isinstance(kind, FlowDenoiser) else t_to_sigma(label, kind.table)
        c_skip, c_out, c_in = (c.view(-1, 1, 1, 1) for c in kind.coefficients(sigma))
        state = x / c_in
        return (self.trained(state, sigma, class_label) - c_skip * state) / c_out


def translated(pipe, kind, config):
    """The pipeline with its denoiser as another kind."""
    denoiser = kind(torch.nn.Identity(), config)
    denoiser.network = Translated(pipe.denoiser, denoiser)
    return Pipeline(denoiser, pipe.card, pipe.space, device=pipe.device)


@pytest.mark.parametrize("name", ["digits", "latent-digits"])
@pytest.mark.parametrize("kind", ["edm", "eps", "flow"])
def test_inversion_finds_the_noise_of_an_image(name, kind, held):
    """There and back; what a latent model's autoencoder loses is not the inversion's loss."""
    pipe = load(name, device="cpu")
    if kind != "edm":
        pipe = translated(pipe, *{"eps": (VPDenoiser, VPConfig()), "flow": (FlowDenoiser, FlowConfig())}[kind])
    near = pipe.decode(pipe.space.encode(torch.from_numpy(held).movedim(-1, 1)))
    labels, settings = [1, 2, 3, 4, 5, 6], {"sampler": "dpm++", "steps": 50}
    noise = pipe.invert(held, labels, **settings)
    assert noise.shape == (6, *pipe.card.experiment.network.shape)
    assert psnr(pipe(range(6), labels, noise=noise, batch_size=4, **settings), near) > 40


@pytest.mark.parametrize("sampler", ["heun", "euler", "dpm++", "ddim", "ddpm"])
def test_inversion_of_trained_weights(digits, held, sampler):
    noise = digits.invert(held, sampler=sampler, steps=50)
    assert 0.6 < noise.std() < 1.1
    assert psnr(digits(range(6), "none", noise=noise, sampler=sampler, steps=50), held) > (
        45 if sampler in ("heun", "dpm++") else 35
    )


def test_interpolation_begins_and_ends_at_the_seeds_own_images(pipe):
    for labels in (None, 3, (3, 8)):
        way, ends = pipe.interpolate((3, 8), labels, 4), pipe((3, 8), labels)
        assert np.abs(way[[0, -1]].astype(int) - ends).max() <= 1
        assert len(np.unique(way.reshape(4, -1), axis=0)) == 4


def test_interpolation_without_classes(unconditional):
    pipe = load(unconditional, device="cpu")
    for seeds in ((0, 1), torch.arange(2)):
        assert np.abs(pipe.interpolate(seeds, count=2).astype(int) - pipe((0, 1))).max() <= 1


def test_interpolation_of_two_given_images(digits, held):
    way = digits.interpolate((0, 0), "none", 5, noise=digits.invert(held[:2]))
    assert min(psnr(way[0], held[0]), psnr(way[-1], held[1])) > 40
    assert psnr(way[2], held[0]) < 30


def test_slerp_keeps_the_variance_and_its_ends():
    ends = SeededNoise([0, 1], (4, 64, 64))()
    way = slerp(ends, torch.linspace(0, 1, 5))
    assert torch.allclose(way.flatten(1).std(1), torch.ones(5), atol=0.03)
    assert torch.equal(way[[0, -1]], ends)
    assert torch.allclose(slerp(ends[[0, 0]], torch.linspace(0, 1, 3)), ends[[0, 0, 0]], atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": np.zeros((8, 9, 1), np.uint8)}, r"image is uint8 \(8, 9, 1\); .* \(8, 8, 1\)"),
        ({"image": np.zeros((8, 8, 1))}, r"image is float64 \(8, 8, 1\)"),
        ({"image": np.zeros((3, 8, 8, 1), np.uint8)}, "3 images for 2 seeds; give one, or one per seed"),
        ({"mask": np.zeros((8, 8), bool)}, "mask and strength need an image"),
        ({"strength": 0.5}, "mask and strength need an image"),
        ({"mask": np.ones((8, 7), bool), "image": 0}, r"mask is bool \(8, 7\); .* \(8, 8\)"),
        ({"mask": np.ones((8, 8), float), "image": 0}, "mask is float64"),
        ({"mask": np.ones((3, 8, 8), bool), "image": 0}, "3 masks for 2 seeds"),
        ({"mask": np.zeros((8, 8), bool), "image": 0}, "mask has no white pixel"),
        ({"strength": 1.5, "image": 0}, "strength is 1.5; give a number from 0"),
        ({"strength": float("nan"), "image": 0}, "strength is nan"),
        ({"noise": torch.zeros(2, 1, 8, 9)}, r"noise is \(2, 1, 8, 9\); give \(2, 1, 8, 8\)"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_drawn(digits, held, given, words, monkeypatch):
    monkeypatch.setattr(digits.denoiser, "with_variance", None)
    given = {name: held[0] if name == "image" and isinstance(value, int) else value for name, value in given.items()}
    with pytest.raises(DiffitError, match=words) as caught:
        digits([0, 1], 3, **given)
    assert "\n" not in str(caught.value)


def test_interpolation_takes_two_seeds(digits):
    for seeds, count in (((0, 1, 2), 9), ((0, 1), 1)):
        with pytest.raises(DiffitError, match=f"{len(seeds)} seeds, count={count}; give 2 seeds"):
            digits.interpolate(seeds, 3, count)
    with pytest.raises(DiffitError, match=r"noise is \(1, 1, 8, 8\); give \(2, 1, 8, 8\), as `invert` returns it"):
        digits.interpolate((0, 1), 3, noise=torch.zeros(1, 1, 8, 8))


@pytest.fixture
def files(tmp_path, monkeypatch, held, mask):
    """image.png and mask.png in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, picture in (("image", held[0, ..., 0]), ("mask", np.uint8(mask) * 255)):
        Image.fromarray(picture).save(f"{name}.png")


def test_the_verb_writes_a_png_for_each_seed_and_a_grid(files, held, mask, digits, capsys):
    assert main(["edit", "digits", "image.png", "--mask=mask.png", "--seeds=0-2", "--classes=3,none", "--steps=8"]) == 0
    drawn = [np.asarray(Image.open(f"edits/{seed:06d}.png"))[..., None] for seed in range(3)]
    assert np.array_equal(np.stack(drawn)[:, ~mask], held[[0, 0, 0]][:, ~mask])
    assert np.array_equal(drawn, digits(range(3), [3, "none", 3], image=held[0], mask=mask, steps=8))
    assert Image.open("edits/grid.png").size == (4 * 72 + 8, 72 + 8)
    assert "edits/grid.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing.png"], "nothing.png: No such file"),
        (["notes.txt"], "notes.txt cannot be read (of no known image format)"),
        (
            ["image.png", "--mask=small.png"],
            "small.png has 5x7 pixels, image.png has 8x8; give a mask of the image's",
        ),
        (["image.png", "--strength=2"], "strength is 2"),
        (["image.png", "--out=full"], "full is not empty; give another folder"),
        (["image.png", "--seeds=1,1"], "seed 1 is given more than once"),
        (["image.png", "--seeds=1", "--classes=1,2"], "2 classes for 1 seeds, which get them in turn; give more"),
    ],
)
def test_the_verb_tells_mistakes_in_one_line(files, words, told, capsys):
    Path("notes.txt").write_text("no image")
    Path("full").mkdir()
    Path("full/kept").touch()
    Image.new("L", (5, 7)).save("small.png")
    assert main(["edit", "digits", *words]) == 2
    assert told in capsys.readouterr().err
    assert not Path("edits").exists()


@pytest.mark.parametrize("option", [[], ["--mask"]])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is no regular file"),
        (lambda path: path.touch() or os.truncate(path, 20_000_000_000), "20,000 MB are more than 256"),
        (lambda path: path.write_bytes(image_bytes()[:-40]), "truncated"),
    ],
)
def test_a_file_that_is_no_picture_is_neither_waited_for_nor_held(make, says, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.png").write_bytes(image_bytes())
    make(tmp_path / "odd.png")
    words = ["image.png", "--mask=odd.png"] if option else ["odd.png"]
    assert main(["edit", "digits", *words]) == 2
    assert f"odd.png cannot be read ({says}" in capsys.readouterr().err.replace("image file is ", "")


def image_bytes():
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    return file.getvalue()
