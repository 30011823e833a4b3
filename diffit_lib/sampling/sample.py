"""`sample`: seeds in, pictures out: as PNG files, one zip, the .npz that public evaluators read, or a grid alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from diffit_lib.sampling.pipeline import load
from diffit_lib.sampling.selection import Classes, check_once, class_numbers, grid_cells, ranges, select
from diffit_lib.sampling.writer import PLACES, SampleWriter
from diffit_lib.utils.distributed import local_device, rank_info
from diffit_lib.utils.errors import check
from diffit_lib.utils.tensors import PROTOCOLS, digest


def sample(
    weights: str | Path,
    out: str | Path,
    seeds: Sequence[int] | None = None,
    classes: Classes = None,
    *,
    per_class: int | None = None,
    guidance: float | Sequence[float] | None = None,
    grid: tuple[int, int] | None = None,
    format: Literal["png", "zip", "npz", "grid"] = "png",
    trajectory: bool = False,
    batch_size: int = 64,
    protocol: Literal["round", "adm"] = "round",
    **settings: Any,
) -> list[Path]:
    """Draw images into the folder `out`; return it, or the folders below it, one for each of several `guidance`.

    `choose` says which images: `seeds`, `classes` by name or number, `per_class`. A folder ends up with `images/` (PNG
    files; or instead `images.zip`, `images.npz` with `arr_0`, uint8 (N, H, W, C), and `arr_1`, the labels, or neither),
    `grid.png` (`grid` is columns and rows), `index.csv` with seed, class and file of each image in that order, and
    `settings.json`; with `trajectory` also the way the first 16 images, or the first of each class, came out of noise.

    Images are drawn `batch_size` at once, the last batch padded, and written one by one: started again after a kill,
    or as one of several processes, of which each draws every world-th batch, it ends with the same files to the byte.
    A folder that holds anything else is refused with a DiffitError. With `protocol` "adm" floats are truncated to
    uint8, as the published evaluators do. `settings` are fields of `SamplingConfig`.
    """
    check(batch_size > 0, f"batch_size is {batch_size}; give 1 or more")
    check(grid is None or min(grid) > 0, f"grid is {grid}; give a column and a row or more")
    for name, value, known in (("format", format, PLACES), ("protocol", protocol, PROTOCOLS)):
        check(value in known, f"{name} is {value!r}; give one of {', '.join(known)}")
    pipe = load(weights, device=local_device())
    if seeds is None and per_class is None and grid is not None:
        seeds = range(grid[0] * grid[1])
    images = select(pipe, seeds, classes, per_class)
    columns, cells = grid_cells(len(images), per_class, grid)
    if format == "grid":
        images, cells = [images[cell] for cell in cells], list(range(len(cells)))
    size = min(batch_size, len(images))
    facts = {
        "weights": pipe.card.experiment.name,
        "weights_hash": digest(pipe.denoiser.state_dict()),
        "autoencoder": pipe.space.checksum or None,
        "seeds": seeds and ranges(seeds),
        "classes": class_numbers(pipe, classes),
        "per_class": per_class,
        "format": format,
        "grid": f"{columns}x{-(-len(cells) // columns)}",
        "trajectory": trajectory,
        "batch_size": size,
        "precision": pipe.precision,
        "protocol": protocol,
    }
    albums = []
    for folder, scale in folders(Path(out), guidance):
        each = settings | {"guidance": scale}
        known = facts | vars(pipe.sampling(**each))
        albums.append(SampleWriter(pipe, folder, images, columns, cells, size, each, known))
    for album in albums:
        album.check()
    for album in albums:
        album.begin()
        album.draw()
        if rank_info().rank == 0:
            album.finish()
    return [album.folder for album in albums]


def folders(out: Path, guidance: float | Sequence[float] | None) -> list[tuple[Path, float | None]]:
    """A folder for each strength of guidance; a single one takes `out` itself."""
    if guidance is None or isinstance(guidance, int | float):
        return [(out, guidance)]
    check(len(guidance) > 0, "guidance is given without a number; give one or more")
    names = [f"{scale:g}" for scale in guidance]
    check_once("guidance", names)
    return [(out / f"guidance-{name}", scale) for name, scale in zip(names, guidance, strict=True)]
