"""`reconstruct`: pictures, their latents and what comes back of them, in the same places."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffit_lib.checkpoints.autoencoders import load_vae
from diffit_lib.data.datasets import Split
from diffit_lib.evaluation.reconstruction import comparison, measure_vae, reconstruct, reconstructions
from diffit_lib.training.encode import encode
from diffit_lib.utils.errors import DiffitError


def pixels(path):
    return np.asarray(Image.open(path))


def places(sheet, columns, rows, height, width, scale):
    """The pictures of a grid, (N, h, w), without their enlargement."""
    return np.stack(
        [
            sheet[top : top + height * scale : scale, left : left + width * scale : scale]
            for top in (scale + row * (height + 1) * scale for row in range(rows))
            for left in (scale + column * (width + 1) * scale for column in range(columns))
        ]
    )


@pytest.fixture(scope="module")
def held(data):
    """What is shown of the digits: 16 of the test part."""
    return data.test.images[torch.arange(16) * len(data.test) // 16]


def test_grids_are_of_pictures_latents_and_reconstructions(data, held, tmp_path):
    numbers = reconstruct("vae-digits", data, tmp_path / "out", images=16)
    space, _ = load_vae("vae-digits")
    again, out = reconstructions(space, held), tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "input.png", "encoded.png", "reconstructed.png", "comparison.png",
    }  # fmt: skip
    assert np.array_equal(places(pixels(out / "input.png"), 8, 2, 8, 8, 8), held[:, 0])
    assert np.array_equal(places(pixels(out / "reconstructed.png"), 8, 2, 8, 8, 8), again[:, 0])
    rows = torch.cat([held[:8], again[:8], held[8:], again[8:]])
    assert np.array_equal(places(pixels(out / "comparison.png"), 8, 4, 8, 8, 8), rows[:, 0])
    latents = space.encode(held)
    encoded = places(pixels(out / "encoded.png"), 8, 2, 4, 8, 16).reshape(16, 4, 2, 4).swapaxes(1, 2)
    assert np.abs(encoded / 127.5 - 1 - latents.numpy().clip(-3, 3) / 3).max() < 0.005
    assert numbers == pytest.approx(measure_vae(space, held, rfid=False))
    assert numbers["psnr"] > 25


def test_a_last_row_that_is_not_full_keeps_originals_over_reconstructions(held):
    again = 255 - held
    rows = places(comparison(held[:11], again[:11]), 8, 4, 8, 8, 8)[..., 0]
    assert np.array_equal(rows[16:19], held[8:11, 0])
    assert np.array_equal(rows[24:27], again[8:11, 0])
    assert (rows[19:24] == 255).all()
    assert (rows[27:] == 255).all()


def test_a_latent_model_brings_its_autoencoder(data, tmp_path):
    numbers = [reconstruct(name, data, tmp_path / name, images=8) for name in ("latent-digits", "vae-digits")]
    assert numbers[0]["psnr"] == pytest.approx(numbers[1]["psnr"], abs=2)
    latents = [pixels(tmp_path / name / "encoded.png").shape for name in ("latent-digits", "vae-digits")]
    assert latents[0] == latents[1]


def test_of_cached_latents_there_is_no_input(data, held, tmp_path):
    few = Split(data.train.take(torch.arange(50), "few"), data.test)
    encode("vae-digits", few, tmp_path / "latents")
    assert reconstruct("vae-digits", tmp_path / "latents", tmp_path / "out", images=16) == {}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"encoded.png", "reconstructed.png"}
    again = places(pixels(tmp_path / "out" / "reconstructed.png"), 8, 2, 8, 8, 8)
    expected = reconstructions(load_vae("vae-digits")[0], held)[:, 0].numpy()
    assert np.abs(again.astype(int) - expected).max() <= 2  # latents are kept in half precision


def test_what_has_no_autoencoder_or_no_data_is_refused(weights, tmp_path):
    with pytest.raises(DiffitError, match="draws pixels, without an autoencoder; give weights that have one"):
        reconstruct(weights, out=tmp_path / "out")
    with pytest.raises(DiffitError, match="no weights file 'nothing'"):
        reconstruct("nothing", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_users_own_is_refused(data, tmp_path):
    (tmp_path / "input.png").write_bytes(b"precious")
    with pytest.raises(DiffitError, match="is not empty; give another folder"):
        reconstruct("vae-digits", data, tmp_path, images=1)
    assert (tmp_path / "input.png").read_bytes() == b"precious"
