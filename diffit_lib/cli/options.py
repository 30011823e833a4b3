"""Options of the command line: one for every field of a recipe, and the words that stand for numbers."""

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from jsonargparse import SUPPRESS, ArgumentParser

from diffit_lib.config.experiment import BaseExperimentConfig
from diffit_lib.training.run_dir import OPTIONS, read_options
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import MOST_IMAGES

NETWORKS = {  # words for --network: its kind, and its block where that has two
    "image": {"network": "image"},
    "latent": {"network": "transformer", "block": "diffit"},
    "dit": {"network": "transformer", "block": "dit"},
}
OF_THE_IMAGES = ("image_size", "in_channels", "num_classes")  # what another network in a preset's place sees too

R = TypeVar("R", bound=BaseExperimentConfig)


def asked_for(
    kind: type[R], preset: Callable[[str], R], name: str | None, run: str | None, options: dict[str, Any]
) -> R:
    """The preset, or without one the recipe that the run folder was begun with, some of its fields changed."""
    if name is None and run is not None and (Path(run) / OPTIONS).is_file():
        experiment = read_options(kind, Path(run))
    elif name is None:
        here = f", and {run} holds no {OPTIONS} to go on from" if run else ""
        raise DiffitError(f"no preset is named{here}; give one, or --run FOLDER of an earlier run, or --data PICTURES")
    else:
        experiment = preset(name)
    return experiment.override(**spelled_out(experiment, options))


def spelled_out(experiment: BaseExperimentConfig, options: dict[str, Any]) -> dict[str, Any]:
    """Options as the recipe's fields: another network than the preset's is one for the same images."""
    wanted = NETWORKS.get(options.get("network", ""), {})
    options = {**options, **wanted}
    if options.get("network") == experiment.network.kind:  # it stays as wide and deep as it is
        del options["network"]
    elif "network" in options:
        options = {name: getattr(experiment.network, name) for name in OF_THE_IMAGES} | options
    return options


def add_recipe_fields(sub: ArgumentParser, experiment: type[BaseExperimentConfig]) -> None:
    """The preset, and one option for each field of the recipe, absent unless given."""
    sub.add_argument("preset", nargs="?", type=str, default=SUPPRESS, help="name; --run of an earlier run needs none")
    sub.add_argument("--data", type=str, default=SUPPRESS, help="data set by name, or the path of a folder or zip")
    taken = {"name", "data", *experiment.PARTS, *experiment.NOT_KNOWN}
    for title, kinds in {"images": (experiment,), **experiment.PARTS}.items():
        group = add_fields(sub, f"{title} (the preset's own unless given)", kinds, taken)
        if len(kinds) > 1:
            names = tuple(kind.kind for kind in kinds)
            names = (*NETWORKS, *names[1:]) if title == "network" else names
            group.add_argument(f"--{title}", type=Literal[names], default=SUPPRESS, help="kind")


def add_fields(sub: ArgumentParser, title: str, kinds: Sequence[Any], taken: set[str], *, several: bool = False) -> Any:
    """A group of options, one for each field of these dataclasses that is not taken yet, absent unless given.

    `several`: each takes several values, of which the dataclass says later whether they are right.
    """
    group = sub.add_argument_group(title)
    for field in (field for kind in kinds for field in fields(kind) if field.name not in taken):
        taken.add(field.name)  # kinds of one part share some fields
        value = field.type
        if get_origin(field.type) is tuple:
            value = booleans if get_args(field.type)[0] is bool else integers
        if several:
            value = some
        group.add_argument(f"--{field.name}", type=value, default=SUPPRESS)
    return group


def integers(text: str | int | Sequence[int]) -> tuple[int, ...]:
    """The numbers in "1,2,2" or "[1,2,2]"."""
    if not isinstance(text, str):  # a number or a list in YAML; jsonargparse shows its results to the type again, too
        return (text,) if isinstance(text, int) else tuple(text)
    return tuple(int(part) for part in text.strip("[]() ").split(",") if part)


def booleans(text: str | bool | Sequence[bool]) -> tuple[bool, ...]:
    """The choices in "true,true,false"."""
    if not isinstance(text, str):
        return (text,) if isinstance(text, bool) else tuple(text)
    words = [part.strip().lower() for part in text.strip("[]() ").split(",") if part]
    if wrong := set(words) - {"true", "false"}:
        raise ValueError(f"{min(wrong)!r} is neither true nor false")
    return tuple(word == "true" for word in words)


def some(given: Any) -> tuple[int | float | str, ...]:
    """The words, numbers where they are such, in "heun,ddim", "5,10,20" or "1.5"; of a YAML list as they are."""
    if isinstance(given, list | tuple):
        return tuple(given)
    return tuple(_number(word.strip()) for word in str(given).strip("[]() ").split(",") if word.strip())


def _number(word: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def parse_seeds(text: str) -> list[int]:
    """The numbers 0, 1, 2, 3, 100 from "0-3,100"."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise DiffitError(f"seeds are {text!r}; give numbers and rising ranges, e.g. 0-63,100")
        first, last = int(match[1]), int(match[2] or match[1])
        if len(seeds) + last - first >= MOST_IMAGES:
            raise DiffitError(f"seeds are {text!r}, more than {MOST_IMAGES:,}; give fewer")
        seeds += range(first, last + 1)
    return seeds


def parse_resolution(text: str | None) -> tuple[int, int] | None:
    """(height, width) from "WxH" or "W", which is a square."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text.strip().lower())
    if not match:
        raise DiffitError(f"resolution is {text!r}; give width and height, e.g. 64x48, or one number for both")
    return int(match[2] or match[1]), int(match[1])


def parse_numbers(name: str, text: str) -> list[float]:
    """The numbers in "1,2,4"; `name` is what they are for."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise DiffitError(f"{name} is {text!r}; give a number, or several, e.g. 1,2,4") from None


def parse_grid(text: str) -> tuple[int, int]:
    """Columns and rows in "8x4"."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.strip().lower())
    if not match:
        raise DiffitError(f"grid is {text!r}; give columns and rows, e.g. 8x8")
    return int(match[1]), int(match[2])
