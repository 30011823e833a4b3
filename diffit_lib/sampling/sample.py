"""`sample`: which images to draw, and drawing them into a folder as PNG files, a zip, an .npz or a grid."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from diffit_lib.sampling.grids import FOLLOWED, SHOWN, grid_cells, write_trajectory
from diffit_lib.sampling.pipeline import Labels, Pipeline, load
from diffit_lib.sampling.writer import PLACES, SampleWriter, Selection
from diffit_lib.utils.distributed import local_device, locked, rank_info
from diffit_lib.utils.errors import check
from diffit_lib.utils.files import MOST_IMAGES
from diffit_lib.utils.tensors import PROTOCOLS, digest


def sample(
    weights: str | Path,
    out: str | Path,
    seeds: Sequence[int] | None = None,
    classes: Labels = None,
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
    """Draw images into the folder `out`; return it, or its subfolders, one for each of several `guidance`.

    `select` says which images `seeds`, `classes` (names or numbers) and `per_class` ask for. A folder ends up with
    `images/` (PNG files; or instead `images.zip`, `images.npz` with `arr_0`, uint8 (N, H, W, C), and `arr_1`, the
    labels, or nothing), `grid.png` (`grid` is columns and rows), `index.csv` with seed, class and file of each image,
    and `settings.json`. `trajectory` adds every sampling step of the first 16 images, or of the first of each class.

    The last batch is padded to `batch_size`. Started again after a kill, or as one of several processes, it ends with
    the same files to the byte. A folder that holds anything else is refused with a DiffitError. `protocol` "adm"
    truncates floats to uint8, as the published evaluators do. `settings` are fields of `SamplingConfig`.
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
    writers = []
    for folder, scale in folders(Path(out), guidance):
        each = settings | {"guidance": scale}
        writer = SampleWriter(pipe, folder, images, size, each, protocol, format)
        writers.append((writer, facts | vars(pipe.sampling(**each))))
    with ExitStack() as locks:
        for writer, known in writers:
            locks.enter_context(locked(writer.folder))
            writer.check(known)
        for writer, known in writers:
            writer.begin(known)
            writer.draw()
            if rank_info().rank > 0:
                continue
            if trajectory:
                followed = images[:: per_class or 1][:FOLLOWED]
                seeds, labels = [image.seed for image in followed], writer.labels(followed)
                write_trajectory(writer.folder / "trajectory", pipe, seeds, labels, **writer.settings)
            writer.finish(columns, cells)
    return [writer.folder for writer, _ in writers]


def folders(out: Path, guidance: float | Sequence[float] | None) -> list[tuple[Path, float | None]]:
    """A folder for each strength of guidance; a single one takes `out` itself."""
    if guidance is None or isinstance(guidance, int | float):
        return [(out, guidance)]
    check(len(guidance) > 0, "guidance is given without a number; give one or more")
    names = [f"{scale:g}" for scale in guidance]
    check_once("guidance", names)
    return [(out / f"guidance-{name}", scale) for name, scale in zip(names, guidance, strict=True)]


def select(pipe: Pipeline, seeds: Sequence[int] | None, classes: Labels, per_class: int | None) -> list[Selection]:
    """One image for each seed; or `per_class` images of each of `classes` (all), class by class.

    The seeds (0 to 63) get the classes in turn; without classes each gets the class drawn from it. With `per_class` the
    k-th image of every class has the k-th of the seeds. Without seeds, image k of class c has the seed k C + c, C being
    the number of classes of the weights: no two images share their noise, and an image is the same whatever
    `per_class` and `classes` are.
    """
    known, numbers = pipe.card.num_classes, class_numbers(pipe, classes)
    count = (per_class or 0) * known if seeds is None else len(seeds)
    check(count <= MOST_IMAGES, f"{count:,} images are asked for, and {MOST_IMAGES:,} is the most; give fewer")
    check(seeds is None or len(seeds) > 0, "seeds is empty; give one or more, or leave seeds out")
    check(numbers is None or len(numbers) > 0, "classes is empty; give one or more, or leave classes out")
    check_once("seed", seeds or [])
    if per_class is None:
        seeds = range(SHOWN) if seeds is None else seeds
        if numbers is None:
            drawn = pipe.class_label(seeds, None)
            numbers = [None] * len(seeds) if drawn is None else drawn.tolist()
        both = f"{len(numbers)} classes for {len(seeds)} seeds, which get them in turn"
        check(len(numbers) <= len(seeds), f"{both}; give more seeds, or fewer classes")
        return [Selection(seed, numbers[k % len(numbers)], f"{seed:06d}.png") for k, seed in enumerate(seeds)]
    check(known > 0, f"per_class is {per_class}, but these weights are unconditional; give seeds instead")
    check(per_class > 0, f"per_class is {per_class}; give 1 or more")
    check(
        seeds is None or len(seeds) == per_class,
        f"per_class is {per_class}, but {len(seeds or [])} seeds are given, which each class uses anew; "
        f"give {per_class} seeds, or leave one of the two out",
    )
    numbers = list(range(known)) if numbers is None else numbers
    check(known not in numbers, f"per_class is {per_class}, but 'none' is no class; give seeds instead")
    check_once("class", numbers)
    return [
        Selection(seed, number, f"{class_folder(number, pipe.card.class_names, known)}/{seed:06d}.png")
        for number in numbers
        for seed in (range(number, per_class * known, known) if seeds is None else seeds)
    ]


def class_numbers(pipe: Pipeline, classes: Labels) -> list[Any] | None:
    """The numbers of classes given by name or number: one, several, or several joined by commas."""
    if classes is None:
        return None
    check(pipe.card.num_classes > 0, f"classes is {classes!r}, but these weights are unconditional; leave classes out")
    if isinstance(classes, str):
        classes = [classes] if classes in pipe.card.class_names else [part.strip() for part in classes.split(",")]
    return [pipe.card.class_number(each) for each in ([classes] if isinstance(classes, int) else classes)]


def class_folder(number: int, names: Sequence[str], count: int) -> str:
    """The folder of one of `count` classes, "207-golden-retriever"; sorted by name they are in order of class."""
    digits = f"{number:0{len(str(count - 1))}d}"
    name = re.sub(r"\W+", "-", names[number]).strip("-") if names else ""  # a stranger's file may say "../.."
    return digits if name in ("", str(number)) else f"{digits}-{name}"


def check_once(what: str, values: Sequence[Any]) -> None:
    """Refuse a value that is given twice."""
    twice = [value for value, times in Counter(values).items() if times > 1]
    check(not twice, f"{what} {twice and twice[0]} is given more than once, and names one file; give each {what} once")


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in short, rising runs joined: "0-63,100"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
