"""Which images `sample` draws, each with its seed, class and file, and which of them its grid shows."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.utils.errors import check
from diffit_lib.utils.files import MOST_IMAGES

SHOWN = 64  # images in a grid at most, unless one of another size is asked for
Classes = None | int | str | Sequence[int | str]


class Selection(NamedTuple):
    """One image to be drawn."""

    seed: int
    label: int | None  # the number of classes is "no class"; None: of an unconditional network
    file: str


def select(pipe: Pipeline, seeds: Sequence[int] | None, classes: Classes, per_class: int | None) -> list[Selection]:
    """One image for each seed; or `per_class` images of each class given, of all where none is, class by class.

    The seeds, 0 to 63 unless given, get the classes in turn, or each the class drawn from it where none is given. With
    `per_class` the k-th image of a class has the k-th of the seeds; without seeds, image k of class c has the seed
    k C + c, C being the number of classes the weights know: no two images share their noise, and neither another
    `per_class` nor other classes beside it change an image.
    """
    known, numbers = pipe.card.experiment.network.num_classes, class_numbers(pipe, classes)
    count = (per_class or 0) * known if seeds is None else len(seeds)
    check(count <= MOST_IMAGES, f"{count:,} images are asked for, and {MOST_IMAGES:,} is the most; give fewer")
    check_once("seed", seeds or [])
    if per_class is None:
        seeds = range(SHOWN) if seeds is None else seeds
        if numbers is None:
            drawn = pipe.class_label(seeds, None)
            numbers = [None] * len(seeds) if drawn is None else drawn.tolist()
        check(
            len(numbers) <= len(seeds),
            f"{len(numbers)} classes for {len(seeds)} seeds, which get them in turn; give more seeds, or fewer classes",
        )
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


def class_numbers(pipe: Pipeline, classes: Classes) -> list[Any] | None:
    """The numbers of classes given by name or number: one, several, or several joined by commas."""
    if classes is None:
        return None
    names = pipe.card.class_names
    check(
        pipe.card.experiment.network.num_classes > 0,
        f"classes is {classes!r}, but these weights are unconditional; leave classes out",
    )
    if isinstance(classes, str):
        classes = [classes] if classes in names else [part.strip() for part in classes.split(",")]
    return [pipe.class_number(each) for each in ([classes] if isinstance(classes, int) else classes)]


def class_folder(number: int, names: Sequence[str], count: int) -> str:
    """Where images of one of `count` classes lie, "207-golden-retriever": sorted by name they are in order of class."""
    digits = f"{number:0{len(str(count - 1))}d}"
    name = re.sub(r"\W+", "-", names[number]).strip("-") if names else ""  # a stranger's file may say "../.."
    return digits if name in ("", str(number)) else f"{digits}-{name}"


def check_once(what: str, values: Sequence[Any]) -> None:
    """Refuse a value that is given twice."""
    twice = [value for value, times in Counter(values).items() if times > 1]
    check(not twice, f"{what} {twice and twice[0]} is given more than once, and names one file; give each {what} once")


def grid_cells(count: int, per_class: int | None, grid: tuple[int, int] | None) -> tuple[int, list[int]]:
    """Columns of a grid, and which of `count` images it shows, row by row.

    With `per_class` each row is a class. `grid` is (columns, rows); None shows at most 64 images in about a square, or
    8 of each of at most 16 classes.
    """
    if per_class is not None:
        classes = count // per_class
        columns, rows = grid or (min(per_class, 8), min(classes, 16))
        check(
            columns <= per_class and rows <= classes,
            f"a grid of {columns}x{rows} has a class in each row, but {classes} classes have {per_class} images each; "
            f"give {per_class}x{classes} at most",
        )
        return columns, [row * per_class + column for row in range(rows) for column in range(columns)]
    if grid is None:
        return max(1, round(min(count, SHOWN) ** 0.5)), list(range(min(count, SHOWN)))
    columns, rows = grid
    check(
        columns * rows <= count,
        f"a grid of {columns}x{rows} shows {columns * rows} images, but {count} are drawn; give more seeds",
    )
    return columns, list(range(columns * rows))


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in short, rising runs joined: "0-63,100"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
