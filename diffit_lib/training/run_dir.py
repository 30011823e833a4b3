"""The folder of a run: its number, its options, the weights it keeps."""

import re
from itertools import count
from pathlib import Path
from typing import TypeVar

import yaml

from diffit_lib.config.experiment import BaseExperimentConfig, VAEExperimentConfig
from diffit_lib.config.presets import load_options
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import WEIGHTS, link_or_copy, write_text

RUNS = Path("runs")
OPTIONS, CHECKPOINT, METRICS = "options.yaml", "last.ckpt", "metrics.csv"
PREVIOUS = "previous.ckpt"  # the checkpoint before
END = "...\n"  # closes a YAML document: a file without it was cut off

R = TypeVar("R", bound=BaseExperimentConfig)


def new_folder(name: str, runs: Path = RUNS) -> Path:
    """Make `runs/00003-NAME`, numbered one above the highest; runs that start at once get different numbers.

    Making the folder `runs/00003` claims the number, unless another run took it and renamed its folder meanwhile.
    """
    name = name.rpartition("/")[2]
    check(re.fullmatch(r"[\w.+-]+", name) is not None, f"name is {name!r}; give letters, digits, dots and dashes")
    runs.mkdir(parents=True, exist_ok=True)
    for number in count(max(numbers(runs), default=-1) + 1):
        claim = runs / f"{number:05d}"
        try:
            claim.mkdir()
        except FileExistsError:
            continue
        if numbers(runs).count(number) == 1:
            return claim.rename(runs / f"{claim.name}-{name}")
        claim.rmdir()
    raise AssertionError("numbers have no end")


def numbers(runs: Path) -> list[int]:
    """The numbers in use, each as often as there are folders of it."""
    matches = (re.match(r"(\d{5,})(-|$)", path.name) for path in runs.iterdir())
    return [int(match[1]) for match in matches if match]


def write_options(experiment: BaseExperimentConfig, run: Path) -> None:
    """Write every field of the experiment, in a file that `--config` reads too."""
    options = experiment.to_options()
    note = f"# The options of this run; `diffit {verb(experiment)} --run {run}` resumes it.\n"
    text = yaml.safe_dump(options, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    write_text(run / OPTIONS, note + text + END)


def read_options(kind: type[R], run: Path) -> R:
    """The experiment that a run was started with."""
    try:
        text = (run / OPTIONS).read_text(encoding="utf-8")
        check(text.endswith(END), "it is not whole")
        return kind.from_options(load_options(text))
    except (OSError, KeyError, TypeError, ValueError, DiffitError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise DiffitError(f"{run / OPTIONS} cannot be read ({problem}); train into another folder") from error


def verb(experiment: BaseExperimentConfig) -> str:
    """The command that trains such an experiment."""
    return "train-vae" if isinstance(experiment, VAEExperimentConfig) else "train"


def keep_newest(run: Path, images_seen: int, keep: int) -> None:
    """Keep the current weights as weights-000012345.safetensors too, and delete all but the newest `keep` of these."""
    if keep and (run / WEIGHTS).is_file():
        link_or_copy(run / WEIGHTS, run / f"weights-{images_seen:09d}.safetensors")
    for old in numbered(run)[: -keep or None]:
        old.unlink()


def numbered(run: Path) -> list[Path]:
    """The kept weights, oldest first."""
    found = [path for path in run.glob("weights-*.safetensors") if path.stem.removeprefix("weights-").isdecimal()]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("weights-")))


def set_aside(run: Path) -> Path | None:
    """Move the weights and numbers of a run whose checkpoint was deleted into `run`/earlier-1, -2, ...

    Returns that folder, None if there was nothing to move.
    """
    old = [run / name for name in (WEIGHTS, "best.safetensors", METRICS, PREVIOUS) if (run / name).is_file()]
    if not (old := [*old, *numbered(run)]):
        return None
    aside = next(folder for number in count(1) if not (folder := run / f"earlier-{number}").exists())
    aside.mkdir()
    for path in old:
        path.rename(aside / path.name)
    return aside
