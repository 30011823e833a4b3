"""`reconstruct`: what an autoencoder makes of pictures, as grids."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffit_lib.autoencoders import STABLE_DIFFUSION, load_vae
from diffit_lib.codec import Latents
from diffit_lib.data import Split, recipe_data
from diffit_lib.errors import DiffitError, check
from diffit_lib.files import READY_MADE
from diffit_lib.latents import CachedLatents, is_latents
from diffit_lib.plots import enlargement, tile, write_png
from diffit_lib.processes import own_device
from diffit_lib.recipe import AnyRecipe
from diffit_lib.tasks.encode import open_split
from diffit_lib.tasks.measure_vae import comparison, measure_vae
from diffit_lib.tensor_files import format_of, read_card, read_tensors
from diffit_lib.tensors import to_uint8
from diffit_lib.weights import FORMAT, Card, load_own_codec

COLUMNS = 8  # of the grids
REACH = 3.0  # normalised latents from -3 to 3 are drawn from black to white


def reconstruct(
    vae: str | Path,
    data: str | Path | Dataset | Split | None = None,
    out: str | Path = "reconstructions",
    *,
    images: int = 32,
) -> dict[str, float]:
    """Write grids of held-out pictures, of their latents and of what comes back of them; return how near that is.

    `vae` is an autoencoder's weights, or a latent model's, which bring theirs along. At most `images` are spread evenly
    over the test part of `data`, which is the autoencoder's own unless given: `input.png`, `encoded.png` (the channels
    of a latent side by side, each latent in its picture's place), `reconstructed.png`, and `comparison.png` with rows
    of pictures over rows of what came back; numbers are those of `measure_vae` without rFID. Of latents that `encode`
    wrote there are no pictures to compare with, and no numbers.
    """
    check(images > 0, f"images is {images}; give 1 or more")
    codec, recipe, shape = load_any(vae)
    source = recipe.data if data is None else data
    check(source != "", f"{vae} does not say which images it was trained on; give some as --data")
    codec.to(own_device())
    if isinstance(source, str | Path) and is_latents(Path(source) / "train"):
        source = open_split(source, codec)
    test = source.test if isinstance(source, Split) else recipe_data(recipe, source, shape).test
    count = min(images, len(test))
    shown = test.images[torch.arange(count) * len(test) // count]
    latents = codec.clean(shown)
    out, back = Path(out), to_uint8(codec.decode(latents)).cpu()
    scale = enlargement(pictures(back))
    write_png(
        out / "encoded.png", tile(maps(latents), COLUMNS, scale=max(1, scale * back.shape[2] // latents.shape[2]))
    )
    write_png(out / "reconstructed.png", tile(pictures(back), COLUMNS, scale=scale))
    if isinstance(test, CachedLatents):
        return {}
    write_png(out / "input.png", tile(pictures(shown), COLUMNS, scale=scale))
    write_png(out / "comparison.png", comparison(shown, back, COLUMNS))
    return measure_vae(codec, shown, rfid=False)


def load_any(vae: str | Path) -> tuple[Latents, AnyRecipe, tuple[int, int, int]]:
    """The autoencoder of a weights file of either kind, the recipe that names its data, and its pictures' (C, H, W)."""
    path = Path(vae) if Path(vae).is_file() else READY_MADE / f"{vae}.safetensors"
    if str(vae) in STABLE_DIFFUSION or not path.is_file() or format_of(path) != FORMAT:
        codec, own = load_vae(vae)
        return codec, own.recipe, own.recipe.network.shape
    text, _ = read_tensors(path, FORMAT, "", prefix="none of the tensors")
    card = read_card(Card.from_json, text, path)
    model_codec = load_own_codec(path, card)
    if not isinstance(model_codec, Latents):
        raise DiffitError(
            f"{vae} draws pixels, without an autoencoder; give an autoencoder's weights, or a latent model's"
        )
    return model_codec, card.recipe, card.image_shape


def pictures(images: Tensor) -> np.ndarray:
    """uint8 (N, C, H, W) -> (N, H, W, C)."""
    return images.permute(0, 2, 3, 1).numpy()


def maps(latents: Tensor) -> np.ndarray:
    """Normalised latents (N, z, h, w) -> their channels side by side in grey, uint8 (N, h, z w, 1)."""
    return to_uint8(latents / REACH).cpu().transpose(1, 2).flatten(2).numpy()[..., None]
