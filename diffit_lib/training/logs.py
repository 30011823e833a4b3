"""What a run tells of itself as it goes: `log.txt` for people, `metrics.csv` for programs, TensorBoard for the eye."""

import csv
import io
import logging
import shutil
import time
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from diffit_lib.config.experiment import BaseExperimentConfig
from diffit_lib.utils.distributed import rank_info
from diffit_lib.utils.files import write_text
from diffit_lib.utils.logging import LOG

LINE = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
BY_LEVEL = "test_loss_"  # begins the columns that stand together in one chart


class RunLog:
    """Adds what is said meanwhile to a run's `log.txt`, also what was said before the run had a folder."""

    def __init__(self) -> None:
        self.held = MemoryHandler(1, flushLevel=logging.INFO)

    def open(self, run: Path) -> None:
        """From here on every line is in the file at once."""
        file = logging.FileHandler(run / "log.txt", encoding="utf-8")
        file.setFormatter(LINE)
        self.held.setTarget(file)
        self.held.flush()

    def __enter__(self) -> Self:
        LOG.addHandler(self.held)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            LOG.info("stopped by %s %s", type(error).__name__, error)
        LOG.removeHandler(self.held)
        if self.held.target:
            self.held.target.close()
        self.held.close()


class MetricsLog:
    """A run's rows of numbers, each kept once, however often the run is stopped and started again.

    TensorBoard's events are `metrics.csv` once more, with the options as hyper-parameters: at every start they are
    written anew, so that nothing stands in them twice or is missing. Their clock is the run's training time.
    """

    def __init__(self, run: Path, experiment: BaseExperimentConfig):
        self.path, self.experiment = run / "metrics.csv", experiment

    def __enter__(self) -> Self:
        if rank_info().rank == 0:  # who alone has anything to add
            self.open()
        return self

    def __exit__(self, *_: object) -> None:
        if rank_info().rank == 0:
            self.board.close()

    def open(self) -> None:
        """Begin TensorBoard's events with all there is."""
        rows = read_rows(self.path)
        self.begun = time.time() - (seconds(rows[-1]) if rows else 0.0)
        folder = self.path.with_name("tensorboard")
        shutil.rmtree(folder, ignore_errors=True)
        self.board = SummaryWriter(str(folder))
        options = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in self.experiment.to_options().items()
            if value is not None
        }
        for summary in hparams(options, {"loss": 0.0}):
            self.board.file_writer.add_summary(summary)
        for row in rows:
            self.draw(row)

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Add a row, unless the last one is of as many images; all rows of the run."""
        earlier = read_rows(self.path)
        rows = append_row(self.path, row)
        if len(rows) > len(earlier):
            self.draw(row)
            LOG.info(line(row))
        return rows

    def draw(self, row: dict[str, Any]) -> None:
        """A row as points of TensorBoard's curves, over images."""
        for name, value in row.items():
            if name != "images" and value != "":
                tag = name.replace(BY_LEVEL, "test_loss_by_level/")
                self.board.add_scalar(tag, float(value), int(row["images"]), self.begun + seconds(row))
        self.board.flush()


def line(row: dict[str, Any]) -> str:
    """A row in one line: "12,800 images, loss 0.31, test_loss 0.35"."""
    told = {name: value for name, value in row.items() if value != "" and not name.startswith(BY_LEVEL)}
    images = told.pop("images")
    return ", ".join([f"{images:,} images", *(f"{name} {value:.4g}" for name, value in told.items())])


def seconds(row: dict[str, Any]) -> float:
    """Of training until a row; one of an older run may not say."""
    return float(row.get("seconds") or 0.0)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, oldest first; none where there is no file."""
    return list(csv.DictReader(io.StringIO(path.read_text()))) if path.is_file() else []


def append_row(path: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Add a row to a CSV file, unless its last one is of as many images; write it whole and return all its rows."""
    rows = read_rows(path)
    if not rows or int(rows[-1]["images"]) != row["images"]:
        rows.append(row)
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in (rows[-1], *rows) for name in row))  # an older run may lack some
    writer = csv.DictWriter(text, fieldnames=columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
    return rows
