"""The folder of a run: its number, the weights it keeps, and what it writes about itself.

That is `log.txt` for people, `metrics.csv` for programs, TensorBoard or wandb for curves.
"""

import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from diffit_lib.config.experiment import BaseExperimentConfig
from diffit_lib.utils.distributed import locked
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import WEIGHTS, csv_text, link_or_copy, read_rows, write_text
from diffit_lib.utils.logging import LOG

RUNS = Path("runs")
CHECKPOINT, METRICS = "last.ckpt", "metrics.csv"
PREVIOUS = "previous.ckpt"  # the checkpoint before
BY_LEVEL = "test_loss_"  # begins the names of columns that share one chart


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
            try:
                return claim.rename(runs / f"{claim.name}-{name}")
            except OSError as error:
                claim.rmdir()
                raise DiffitError(f"name is {name[:20]}... ({error.strerror}); give a shorter --name") from error
        claim.rmdir()
    raise AssertionError("numbers have no end")


def numbers(runs: Path) -> list[int]:
    """The numbers in use, each as often as there are folders of it."""
    matches = (re.match(r"(\d{5,})(-|$)", path.name) for path in runs.iterdir())
    return [int(match[1]) for match in matches if match]


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

    Returns that folder, None if there was nothing to move. Numbers without weights are deleted: a run that stopped
    before its first checkpoint was saved takes the same steps again.
    """
    old = [run / name for name in (WEIGHTS, "best.safetensors", PREVIOUS) if (run / name).is_file()]
    table = run / METRICS
    if not (old := [*old, *numbered(run)]):
        table.unlink(missing_ok=True)
        return None
    if table.is_file():
        old.append(table)
    aside = next(folder for number in count(1) if not (folder := run / f"earlier-{number}").exists())
    aside.mkdir()
    for path in old:
        path.rename(aside / path.name)
    return aside


@contextmanager
def run_log(begun: str | Path | None = None) -> Iterator[Callable[[Path], None]]:
    """Hold what is logged in the block until it calls the yielded function with the run's folder, then log there.

    The folder is locked from then on, the folder of a run that has `begun` from the start.
    """
    held, lock = MemoryHandler(1, flushLevel=logging.INFO), ExitStack()

    def open_log(run: Path) -> None:
        if begun is None:
            lock.enter_context(locked(run))
        file = logging.FileHandler(run / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        held.setTarget(file)
        held.flush()

    LOG.addHandler(held)
    try:
        if begun is not None:
            lock.enter_context(locked(begun))
        yield open_log
    except BaseException as error:
        LOG.info("stopped by %s %s", type(error).__name__, error)
        raise
    finally:
        LOG.removeHandler(held)
        if held.target:
            held.target.close()
        held.close()
        lock.close()


class MetricsLog:
    """A run's rows of numbers in `metrics.csv`, each once however often the run is resumed, and their curves.

    The CSV file is our own: Lightning's CSVLogger deletes the one of an earlier start. So is the use of TensorBoard's
    writer: Lightning's cannot replay the rows of earlier starts at their own times, which count training alone.
    Weights & Biases resumes its run by id, and gets new rows only.
    """

    def __init__(self, run: Path, experiment: BaseExperimentConfig):
        self.path, self.kind = run / "metrics.csv", experiment.training.logger
        options = {name: value for name, value in experiment.to_options().items() if value is not None}
        rows = read_metrics(self.path)
        if self.kind == "tensorboard":
            from tensorboardX import SummaryWriter
            from tensorboardX.summary import hparams

            self.begun = time.time() - float((rows or [{}])[-1].get("seconds") or 0)  # older rows have none
            shutil.rmtree(run / "tensorboard", ignore_errors=True)
            self.board = SummaryWriter(str(run / "tensorboard"))
            plain = {name: v if isinstance(v, bool | int | float) else str(v) for name, v in options.items()}
            for summary in hparams(plain, {"loss": 0.0}):
                self.board.file_writer.add_summary(summary)
        elif self.kind == "wandb":
            from pytorch_lightning.loggers import WandbLogger

            earlier = [path.name.rpartition("-")[2] for path in sorted(run.glob("wandb/*run-*-*"))]
            self.wandb = WandbLogger(run.name, run, id=earlier[-1] if earlier else None, project="diffit")
            self.wandb.log_hyperparams(options)
            rows = [] if earlier else rows
        for row in rows:
            self._draw(row)

    def close(self) -> None:
        """Finish the curves."""
        if self.kind == "tensorboard":
            self.board.close()
        elif self.kind == "wandb":
            self.wandb.experiment.finish()

    def add(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Add a row, unless the last one counts as many images, and return all rows of the run."""
        rows = append_row(self.path, row)
        if rows[-1] is row:  # it is new
            self._draw(row)
            shown = {name: value for name, value in row.items() if value != "" and not name.startswith(BY_LEVEL)}
            words = [f"{name} {value:.4g}" for name, value in shown.items() if name != "images"]
            LOG.info(", ".join([f"{row['images']:,} images", *words]))
        return rows

    def _draw(self, row: dict[str, Any]) -> None:
        """Add a row to the curves, over images."""
        step = int(row["images"])
        numbers = {name: float(value) for name, value in row.items() if name != "images" and value != ""}
        numbers = {name.replace(BY_LEVEL, "test_loss_by_level/"): value for name, value in numbers.items()}
        if self.kind == "tensorboard":
            for name, value in numbers.items():
                if not math.isfinite(value):
                    continue  # TensorBoard would warn of each
                self.board.add_scalar(name, value, step, self.begun + numbers.get("seconds", 0.0))
            self.board.flush()
        elif self.kind == "wandb":
            self.wandb.log_metrics(numbers, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.csv`; a DiffitError where one is no row of numbers, one of them of images."""
    rows = read_rows(path)
    for number, row in enumerate(rows, 2):
        try:
            int(row["images"])
            [float(value) for value in row.values() if value != ""]
        except (KeyError, TypeError, ValueError) as error:
            why = f"no column {error}" if isinstance(error, KeyError) else error
            raise DiffitError(f"{path}: line {number} is no row of numbers ({why}); mend or delete the file") from error
    return rows


def append_row(path: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Add a row to a CSV file, unless its last one counts as many images; rewrite the file and return all rows.

    Rows that count more images go: they are of steps that a run which went back to an earlier checkpoint takes again.
    """
    rows = [earlier for earlier in read_rows(path) if int(earlier["images"]) <= row["images"]]
    if not rows or int(rows[-1]["images"]) != row["images"]:
        rows.append(row)
    write_text(path, csv_text(rows))  # older rows may lack some columns
    return rows
