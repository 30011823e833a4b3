"""`encode`: write a data set's latents once; training reads them instead of encoding its images at every step."""

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from diffit_lib.checkpoints.autoencoders import VAECard, load_vae
from diffit_lib.checkpoints.weights import image_shape
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig
from diffit_lib.data.datasets import Images, experiment_data
from diffit_lib.data.latent_cache import (
    INDEX,
    CachedLatents,
    is_latents,
    open_latents,
    open_split,
    source_of,
    write_latents,
)
from diffit_lib.data.sources import Split
from diffit_lib.models.latent_space import LatentSpace, Space
from diffit_lib.utils.distributed import barrier, local_device, locked, rank_info, wait_for
from diffit_lib.utils.files import cache_folder, sweep


def encode(
    vae: str | Path, data: str | Path | Dataset | Split | None = None, out: str | Path | None = None, **changes: Any
) -> Path:
    """Write the moments of both parts of a data set, by default the autoencoder's own; return the folder `out`.

    The images are prepared as for the autoencoder's training, except for `changes`: `image_size`, `crop`, `skip_bad`
    and `memory_gb`. Started again, it continues where it stopped. One of several processes (torchrun) writes its share
    of the files.
    """
    space, card = load_vae(vae)
    space.to(local_device())
    if not isinstance(data, tuple):
        data = experiment_data(card.experiment.override(**changes), data)
    out = Path(out) if out is not None else latents_folder(space, data.train)
    with locked(out):
        for part, images in (("train", data.train), ("test", data.test)):
            write(space, images, out / part, mirrored=part == "train")
        if rank_info().rank == 0:
            sweep(out)
    return out


def load_states(experiment: BaseExperimentConfig, space: Space, vae: VAECard | None) -> Split:
    """The images that an experiment names, or the latents, if `encode` wrote its data."""
    if isinstance(space, LatentSpace) and is_latents(Path(experiment.data) / "train"):
        return open_split(experiment.data, space)
    return experiment_data(experiment, image_shape=image_shape(experiment, vae))


def to_states(experiment: ExperimentConfig, space: Space, data: Split) -> Split:
    """What training reads at every step: images, or their latents in the cache, encoded if they are not there yet."""
    if not isinstance(space, LatentSpace) or not experiment.cache_latents or isinstance(data.train, CachedLatents):
        return data
    parts: list[Images] = []
    for images, mirrored in ((data.train, experiment.training.flip), (data.test, False)):
        folder = latents_folder(space, images)
        write(space, images, folder, mirrored=mirrored)
        parts.append(open_latents(folder, space))
    return Split(*parts)


def latents_folder(space: LatentSpace, images: Images) -> Path:
    """Where the cache keeps the latents of these images."""
    return cache_folder() / "latents" / source_of(space, images)


def write(space: LatentSpace, images: Images, folder: Path, *, mirrored: bool) -> None:
    """`write_latents`, then wait for the last process to finish; latents that are there already are left alone."""
    if not isinstance(images, CachedLatents):
        write_latents(space, images, folder, mirrored=mirrored)
        barrier()
        wait_for([folder / INDEX])
