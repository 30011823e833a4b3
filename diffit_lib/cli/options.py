"""Options of the command line: one for every field of an experiment, and the words that stand for numbers."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin

from jsonargparse import SUPPRESS, ArgumentParser

from diffit_lib.config.experiment import BaseExperimentConfig, field_help
from diffit_lib.config.presets import NETWORKS, OPTIONS, Presets, change, load_options, read_options
from diffit_lib.utils.errors import DiffitError, reason_of
from diffit_lib.utils.files import MOST_IMAGES

R = TypeVar("R", bound=BaseExperimentConfig)


def experiment_for(presets: Presets[R], name: str | None, run: str | None, options: dict[str, Any]) -> R:
    """The preset, or without one the experiment that the run folder was begun with, some of its fields changed."""
    if name is not None:
        return change(presets.find(name), options)
    if run is not None and is_begun(run):
        return change(read_options(presets.kind, Path(run)), options)
    here = f", and {run} holds no {OPTIONS} to go on from" if run else ""
    raise DiffitError(f"no preset is named{here}; give one, or --run FOLDER of an earlier run, or --data PICTURES")


def summary(verb: Callable[..., None]) -> str:
    """The first line of a verb's docstring."""
    return (verb.__doc__ or "").splitlines()[0]


def is_begun(run: str | None) -> bool:
    """Whether this is the folder of an earlier run."""
    return run is not None and (Path(run) / OPTIONS).is_file()


def previewed(experiment: Any, dry_run: bool, print_config: bool, images: dict[str, Any] | None = None) -> bool:
    """Print the options or the cost of a training, if asked to; without an experiment, of what suits the images."""
    if not (dry_run or print_config):
        return False
    choice = None
    if experiment is None:
        from diffit_lib.reports.auto import choose_experiment

        choice = choose_experiment(download=False, **(images or {}))
        experiment = choice.experiment
    if print_config:
        print(experiment.to_yaml(), end="")
    else:
        from diffit_lib.cli import estimate

        print(estimate.describe_data(experiment.data, choice) if choice else estimate.dry_run(experiment))
    return True


def report_of(run: Path) -> Path | None:
    """Write the report of a finished run; if that fails, say so in one line."""
    from diffit_lib.reports.html_report import write_report
    from diffit_lib.utils.distributed import rank_info

    if rank_info().rank:
        return None
    try:
        return write_report(run)
    except Exception as error:  # whatever it is, the weights are there
        print(f"diffit: no report ({reason_of(error)}); `diffit train --run {run}` writes it again", file=sys.stderr)
        return None


def add_experiment_fields(sub: ArgumentParser, kind: type[BaseExperimentConfig]) -> None:
    """One option for each field of an experiment, absent unless given, in a group for each part."""
    taken = {"name", *kind.PARTS, *kind.NOT_KNOWN}
    for part, kinds in {"data": (kind,), **kind.PARTS}.items():
        group = add_fields(sub, f"{part} options (default: the preset's, else the one shown)", kinds, taken)
        if len(kinds) > 1:
            words = tuple(NETWORKS) if part == "network" else ()
            words = tuple(dict.fromkeys([*words, *(each.kind for each in kinds)]))
            group.add_argument(f"--{part}", type=Literal[words], default=SUPPRESS, help=field_help(kind)[part])


def add_fields(
    sub: ArgumentParser,
    title: str,
    kinds: Sequence[Any],
    taken: set[str],
    *,
    several: bool = False,
    defaults: bool = True,
) -> Any:
    """A group of options, one for each field of these dataclasses that is not taken yet, absent unless given.

    With `several`, each takes several values. `defaults` are the fields' own, shown where nothing else gives them.
    """
    group, meanings = sub.add_argument_group(title), {kind: field_help(kind) for kind in kinds}
    for name in dict.fromkeys(f.name for kind in kinds for f in fields(kind) if f.name not in taken):
        taken.add(name)
        owners = [kind for kind in kinds if name in kind.__dataclass_fields__]  # two kinds may share a field
        shown = [default_words(getattr(kind, name, None)) if defaults else "" for kind in owners]
        helps = [meanings[kind][name] + words for kind, words in zip(owners, shown, strict=True)]
        if len(set(helps)) > 1:
            helps = [f"{kind.kind}: {words}" for kind, words in zip(owners, helps, strict=True)]
        value, text = owners[0].__dataclass_fields__[name].type, " ".join(dict.fromkeys(helps))
        value = parse_list if several or get_origin(value) is tuple else value
        group.add_argument(f"--{name}", type=value, default=SUPPRESS, help=text)
    return group


def default_words(value: Any) -> str:
    """A default as the help shows it, in brackets."""
    if value in (SUPPRESS, None, ""):
        return ""
    words = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f" [{words.lower() if words in ('True', 'False') or isinstance(value, tuple) else words}]"


def parse_list(given: Any) -> tuple[Any, ...]:
    """The values in "1,2,2", "[1,2,2]", "true,false" or "heun,ddim"; the dataclass checks them."""
    if not isinstance(given, str):  # from YAML; jsonargparse shows its results to the type again, too
        return tuple(given) if isinstance(given, list | tuple) else (given,)
    return tuple(load_options(word) for word in given.strip("[]() ").split(",") if word.strip())


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
    size = parse_pair("resolution", text, "width and height, e.g. 64x48, or one number for both")
    return size and size[::-1]


def parse_pair(name: str, text: str | None, remedy: str) -> tuple[int, int] | None:
    """The numbers in "8x4" or "8"."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text.strip().lower())
    if not match:
        raise DiffitError(f"{name} is {text!r}; give {remedy}")
    return int(match[1]), int(match[2] or match[1])


def parse_guidance(text: str) -> list[float]:
    """The numbers in "1,2,4"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise DiffitError(f"guidance is {text!r}; give a number, or several, e.g. 1,2,4") from None
