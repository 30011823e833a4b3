"""`encode`: a data set's latents, written once; training reads them instead of encoding its images at every step."""

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from tqdm.auto import tqdm

from diffit_lib.checkpoints.autoencoders import VAECard, load_vae
from diffit_lib.checkpoints.weights import image_shape
from diffit_lib.config.experiment import Recipe
from diffit_lib.data.datasets import Images, Split, recipe_data
from diffit_lib.data.latent_cache import (
    INDEX,
    CachedLatents,
    is_latents,
    open_latents,
    open_split,
    source_of,
    write_latents,
)
from diffit_lib.models.latent_space import Codec, Latents
from diffit_lib.utils.distributed import own_device, place, wait_for, wait_for_all
from diffit_lib.utils.files import cache_folder, sweep


def encode(
    vae: str | Path, data: str | Path | Dataset | Split | None = None, out: str | Path | None = None, **changes: Any
) -> Path:
    """Write the moments of both parts of a data set, the autoencoder's own unless given; return the folder `out`.

    The images are prepared as the autoencoder's recipe says, but for `changes`: its `image_size`, `crop`, `skip_bad`
    and `memory_gb`.
    Started again, it goes on where it stopped. As one of several processes (torchrun) it writes its share of the files.
    """
    codec, card = load_vae(vae)
    codec.to(own_device())
    if not isinstance(data, tuple):
        data = recipe_data(card.recipe.override(**changes), data)
    out = Path(out) if out is not None else latents_folder(codec, data.train)
    for part, images in (("train", data.train), ("test", data.test)):
        write(codec, images, out / part, mirrored=part == "train")
    if place().world == 1:  # else another may be writing still
        sweep(out)
    return out


def cached_latents(codec: Latents, data: Split, *, mirrored: bool) -> Split:
    """Both parts as latents in the cache folder, encoded first where they are not there yet."""
    parts: list[Images] = []
    for images, flips in ((data.train, mirrored), (data.test, False)):
        folder = latents_folder(codec, images)
        write(codec, images, folder, mirrored=flips)
        wait_for_all()
        parts.append(open_latents(folder, codec))
    return Split(*parts)


def load_states(recipe: Recipe, codec: Codec, vae: VAECard | None) -> Split:
    """The images that a recipe names, or the latents, where `encode` wrote its data."""
    if isinstance(codec, Latents) and is_latents(Path(recipe.data) / "train"):
        return open_split(recipe.data, codec)
    return recipe_data(recipe, image_shape=image_shape(recipe, vae))


def to_states(recipe: Recipe, codec: Codec, data: Split) -> Split:
    """What training reads at every step: images, or their cached latents."""
    if isinstance(codec, Latents) and recipe.cache_latents and not isinstance(data.train, CachedLatents):
        return cached_latents(codec, data, mirrored=recipe.training.flip)
    return data


def fingerprint_of_states(recipe: Recipe, codec: Codec, images: Images) -> str:
    """The fingerprint of what `to_states` will make of these images, known before they are encoded."""
    return source_of(codec, images) if isinstance(codec, Latents) and recipe.cache_latents else images.fingerprint()


def latents_folder(codec: Latents, images: Images) -> Path:
    """Where the cache keeps the latents of these images."""
    return cache_folder() / "latents" / source_of(codec, images)


def write(codec: Latents, images: Images, folder: Path, *, mirrored: bool) -> None:
    """`write_latents` under a bar; a part that is latents already stays what it is."""
    if isinstance(images, CachedLatents):
        return
    rank, world, _ = place()
    with tqdm(total=len(images), desc=f"encoding {images.name}", unit=" images", leave=False) as bar:

        def follow(done: int) -> None:
            bar.update(done - bar.n)

        write_latents(codec, images, folder, mirrored=mirrored, rank=rank, world=world, progress=follow)
    wait_for([folder / INDEX])  # the last process to finish writes it
