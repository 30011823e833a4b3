"""Callbacks of a training run: the clock, the report every few minutes, the progress bar."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import SIGTERMException
from tqdm.auto import tqdm

from diffit_lib.data.stream import Batch
from diffit_lib.training.module import RunModule
from diffit_lib.utils.distributed import any_rank, barrier


class Clock(pl.Callback):
    """Counts the run's seconds and stops it at the planned images or minutes, whichever comes first."""

    def on_train_start(self, trainer: pl.Trainer, module: RunModule) -> None:
        """Go on from what an earlier start has counted; a finished run takes no further step."""
        self.start = time.monotonic() - module.seconds
        self.look(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: RunModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Look at the end of every optimizer step, never within one."""
        if (batch_idx + 1) % module.options.accumulate == 0:
            self.look(trainer, module)

    def look(self, trainer: pl.Trainer, module: RunModule) -> None:
        """Count, and decide for all processes."""
        module.seconds = time.monotonic() - self.start
        minutes = module.options.minutes
        planned = module.global_step >= module.options.total_steps
        if planned or (minutes is not None and any_rank(module.seconds >= 60 * minutes)):
            trainer.should_stop = True


class Report(pl.Callback):
    """Every few minutes: a checkpoint, and whatever `show` does with the averaged denoiser, at the end of a step."""

    def __init__(self, checkpoint: Path, show: Callable[[Any], None]):
        self.checkpoint, self.show = checkpoint, show

    def on_train_start(self, trainer: pl.Trainer, module: RunModule) -> None:
        """The first report comes early, a quarter of an interval after the start."""
        self.next = time.monotonic() + 60 * module.options.report_minutes / 4
        self.terminated = False
        if threading.current_thread() is threading.main_thread():  # Lightning, which put its own there, takes it away
            signal.signal(signal.SIGTERM, self.on_sigterm)

    def on_sigterm(self, *_: Any) -> None:
        """A scheduler's SIGTERM: this step is finished, then the run saved, by all processes at once."""
        self.terminated = True

    def on_train_batch_start(self, trainer: pl.Trainer, module: RunModule, batch: Batch, batch_idx: int) -> None:
        """Between two steps, where Lightning's own counters agree with the tensors."""
        if batch_idx % module.options.accumulate:
            return
        start = time.monotonic()
        if any_rank(self.terminated or start >= self.next):
            self.exit_if_terminated(trainer)
            self.report(trainer, module)
            interval = 60 * module.options.report_minutes  # a slow report leaves half of it to training
            self.next = max(start + interval, time.monotonic() + interval / 2)

    def on_train_end(self, trainer: pl.Trainer, module: RunModule) -> None:
        """The last report closes the run; a SIGTERM in the last step or in the report is obeyed too."""
        self.exit_if_terminated(trainer)
        self.report(trainer, module)
        self.exit_if_terminated(trainer)

    def exit_if_terminated(self, trainer: pl.Trainer) -> None:
        """If SIGTERM came to any process, save and end."""
        if any_rank(self.terminated):
            self.save(trainer)
            raise SIGTERMException(128 + signal.SIGTERM)  # the exit status: go on with the same command

    def report(self, trainer: pl.Trainer, module: RunModule) -> None:
        """Checkpoint first, so that a fault in showing loses nothing."""
        self.save(trainer)
        module.gather_terms()
        if trainer.is_global_zero:
            self.show(module)

    def save(self, trainer: pl.Trainer) -> None:
        """Write beside, then rename: a kill at any moment leaves a whole checkpoint."""
        beside = self.checkpoint.with_suffix(".part")
        trainer.save_checkpoint(beside, weights_only=False)
        if trainer.is_global_zero:
            beside.replace(self.checkpoint)
        barrier()  # or the first to leave would have the others ended


class Progress(pl.Callback):
    """One bar: how far, images per second, time left."""

    def on_train_start(self, trainer: pl.Trainer, module: RunModule) -> None:
        """Open the bar where the run stands."""
        total = module.options.total_images
        bar_format = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images {postfix}"
        self.bar = tqdm(
            total=total, initial=module.images_seen, desc="training", bar_format=bar_format, unit_scale=True
        )
        self.start, self.first_image = time.monotonic(), module.images_seen

    def on_train_batch_end(self, trainer: pl.Trainer, module: RunModule, *_: Any) -> None:
        """Advance; the rate is that of this start."""
        rate = (module.images_seen - self.first_image) / (time.monotonic() - self.start)
        if rate == 0:  # within the first step
            return
        left = (module.options.total_images - module.images_seen) / rate
        if module.options.minutes is not None:
            left = max(min(left, 60 * module.options.minutes - module.seconds), 0)
        self.bar.set_postfix_str(f"{rate:.0f} images/s, {tqdm.format_interval(left)} left", refresh=False)
        self.bar.update(module.images_seen - self.bar.n)

    def on_train_end(self, trainer: pl.Trainer, module: RunModule) -> None:
        """Leave the finished bar standing."""
        self.bar.close()
