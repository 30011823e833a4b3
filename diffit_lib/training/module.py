"""Glue over Lightning for every kind of training: the module, and the callbacks that stop, report and save a run."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from diffit_lib.checkpoints.safetensors_io import Card
from diffit_lib.config.experiment import TrainingConfig
from diffit_lib.data.datasets import Images
from diffit_lib.data.stream import Batch, TrainingStream
from diffit_lib.training.optimizer import Muon
from diffit_lib.training.run_dir import PREVIOUS
from diffit_lib.utils.distributed import any_rank, mean_over_ranks, rank_info
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import link_or_copy, replacing
from diffit_lib.utils.logging import progress
from diffit_lib.utils.tensors import derive_seed, device_name

KEPT = ("fingerprint", "seconds", "skipped", "skipped_in_a_row", "licence")  # in a checkpoint, besides Lightning's own
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # which stop a run between two steps, saved
MAX_SKIPPED = 100  # steps in a row without a finite gradient, after which a run has failed


def ema_decay(training: TrainingConfig, step: int) -> float:
    """The average's weight at an optimizer step; its half-life counts images and grows with the run (EDM, app. F.2)."""
    halflife = training.ema_halflife
    if training.ema_rampup is not None:
        halflife = min(halflife, step * training.batch_size * training.ema_rampup)
    return 0.5 ** (training.batch_size / max(halflife, 1e-8))


class RunModule(pl.LightningModule):
    """A model, its EMA and its optimizer. The data are a function of the optimizer step.

    A subclass defines the loss in `training_step`. `state_shape` is the shape of the noise drawn for each image.
    """

    model: Any
    latent = False  # whether each image also needs noise for its posterior
    some_idle = False  # whether a step may leave parameters without a gradient

    def __init__(self, model: nn.Module, training: TrainingConfig, data: Images, state_shape: tuple[int, ...]):
        super().__init__()
        self.model, self.options, self.data, self.state_shape = model, training, data, state_shape
        self.ema = AveragedModel(model).requires_grad_(False)
        self.fingerprint = data.fingerprint()
        self.licence = Card.licence  # that of the weights it starts from, which binds what is made of them
        self.seconds = 0.0  # of training, over all starts
        self.skipped = self.skipped_in_a_row = 0  # steps whose gradient was not finite
        self.sums: dict[str, Tensor] = {}  # terms of the loss, summed since the last report
        self.count, self.grad_norm = 0, torch.zeros(())
        self.averaged = 0  # steps in the average

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average towards the weights; the first time it becomes them.

        AveragedModel's own way reads its counter from the device, twice a step, and waits for it.
        """
        decay = ema_decay(self.options, self.averaged) if self.averaged else 0.0
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.averaged += 1
        self.ema.n_averaged += 1

    @property
    def average(self) -> Any:
        """The averaged model."""
        return self.ema.module

    @property
    def images_seen(self) -> int:
        """Training images so far, over all devices and starts."""
        return self.global_step * self.options.batch_size

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """The trained parameters. Each group's gradient is clipped by its own norm."""
        return [list(self.model.parameters())]

    def train_dataloader(self) -> DataLoader:
        """Micro-batches from the current optimizer step on."""
        stream = TrainingStream(
            self.data,
            self.options,
            self.state_shape,
            latent=self.latent,
            start=self.global_step,
            rank=self.global_rank,
            world=self.trainer.world_size,
        )
        pin = self.device.type == "cuda"
        workers = self.options.workers
        return DataLoader(stream, batch_size=None, num_workers=workers, pin_memory=pin, worker_init_fn=ignore_signals)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by (seed, step, micro-batch, rank)."""
        micro = batch_idx % self.options.accumulate
        torch.manual_seed(derive_seed(self.options.seed, "dropout", self.global_step, micro, self.global_rank))

    def count_terms(self, **terms: Tensor) -> None:
        """Add a micro-batch's terms of the loss to the sums for the next report."""
        for name, term in terms.items():
            self.sums[name] = self.sums[name] + term.detach() if name in self.sums else term.detach()
        self.count += 1

    def mean_terms(self) -> dict[str, float]:
        """Means of the terms since the last call, over all processes, which must all call; "loss" may be NaN."""
        means = {name: float(mean_over_ranks(total)) / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return {"loss": float("nan")} | means

    def configure_optimizers(self) -> Any:
        """Adam, or Muon and Adam, with the learning rates' schedule counted in images."""
        fused = self.trainer.precision != "16-mixed"  # fused Adam unscales gradients itself, after clipping
        trained = [parameter for group in self.parameter_groups() for parameter in group]
        optimizer: torch.optim.Optimizer
        if self.options.muon:
            optimizer = Muon(self.model, self.options.lr, self.options.muon, fused)
        else:
            optimizer = torch.optim.Adam(trained, lr=self.options.lr, fused=fused)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.options.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clip the gradient, or drop it where it is not finite, so that the step changes nothing."""
        most = self.options.grad_clip or float("inf")
        norms = [torch.nn.utils.clip_grad_norm_(group, most) for group in self.parameter_groups()]
        self.grad_norm = norms[0]
        if torch.stack([norm.to(self.device) for norm in norms]).isfinite().all():
            self.skipped_in_a_row = 0
            return
        optimizer.zero_grad(set_to_none=True)
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise DiffitError(
                f"{MAX_SKIPPED} steps in a row had no finite gradient, at image {self.images_seen}; "
                f"train into another folder with a lower lr than {self.options.lr} or with precision='32-true'"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, then update the average unless the step was skipped."""
        super().optimizer_step(*args, **kwargs)
        if self.skipped_in_a_row == 0:
            self.update_average()

    def facts(self) -> dict[str, Any]:
        """What the card of a report's weights says of the training."""
        return {
            "trained_on": f"{self.data.name} {self.fingerprint}",
            "images_seen": self.images_seen,
            "minutes": round(self.seconds / 60, 2),
            "device": device_name(self.device),
            "licence": self.licence,
        }

    def row(self, terms: dict[str, float], numbers: dict[str, Any]) -> dict[str, Any]:
        """A row of `metrics.csv`: these terms of the loss and numbers, among those that every run has."""
        last = {"grad_norm": float(self.grad_norm), "skipped": self.skipped}
        return {"images": self.images_seen, "seconds": round(self.seconds, 1), **terms, **numbers, **last}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the tensors do not hold."""
        checkpoint["diffit"] = {name: getattr(self, name) for name in KEPT}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read what `on_save_checkpoint` added, without the licence in older versions, and the average's counter."""
        self.averaged = int(checkpoint["state_dict"]["ema.n_averaged"])
        for name in KEPT:
            setattr(self, name, checkpoint["diffit"].get(name, getattr(self, name)))


def ignore_signals(worker: int) -> None:
    """Let data workers live on when a signal reaches the whole process group: the run still finishes its step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class CheckpointFile(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then renames it, and keeps the one before as `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Called in the first process alone."""
        with replacing(path) as beside, open(beside, "wb") as file:
            torch.save(checkpoint, file)
            if Path(path).is_file():
                link_or_copy(path, Path(path).with_name(PREVIOUS))


class Clock(pl.Callback):
    """Counts the seconds of training, shows them in a bar, and stops at the planned images or minutes.

    Lightning's Timer may stop inside an optimizer step, and its progress bar counts batches: neither fits.
    """

    def __init__(self, bar: bool):
        self.disable = not bar

    def on_train_start(self, trainer: pl.Trainer, module: RunModule) -> None:
        """Go on from the seconds of earlier starts; a finished run takes no further step."""
        self.start = time.monotonic() - module.seconds
        self.first_image, self.first_second = module.images_seen, module.seconds
        bar_format = "training {percentage:3.0f}%|{bar}| {desc}"
        self.bar = progress(total=100, leave=True, bar_format=bar_format, disable=self.disable)
        self.tick(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: RunModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Look at the clock at the end of every optimizer step."""
        if (batch_idx + 1) % module.options.accumulate == 0:
            self.tick(trainer, module)

    def tick(self, trainer: pl.Trainer, module: RunModule) -> None:
        """Count, stop all processes at the same step, and advance the bar, which shows the rate of this start."""
        module.seconds, minutes = time.monotonic() - self.start, module.options.minutes
        done = module.global_step / module.options.total_steps
        if minutes is not None:
            done = max(done, module.seconds / (60 * minutes))
        if any_rank(done >= 1):
            trainer.should_stop = True
        if module.images_seen > self.first_image:
            rate = (module.images_seen - self.first_image) / (module.seconds - self.first_second)
            left = (module.options.total_images - module.images_seen) / rate
            if minutes is not None:
                left = max(min(left, 60 * minutes - module.seconds), 0)
            words = f"{module.images_seen:,} images, {rate:.0f} images/s, {self.bar.format_interval(left)} left"
            self.bar.set_description_str(words, refresh=False)
        self.bar.update(100 * min(done, 1.0) - self.bar.n)

    def on_train_end(self, trainer: pl.Trainer, module: RunModule) -> None:
        """Close the bar, and leave it visible."""
        self.bar.close()


class Report(pl.Callback):
    """Every few minutes, between two steps: a checkpoint, then `snapshot(module, terms=...)` in all processes."""

    def __init__(self, checkpoint: Path, snapshot: Callable[..., None]):
        self.checkpoint, self.snapshot = checkpoint, snapshot

    def on_train_start(self, trainer: pl.Trainer, module: RunModule) -> None:
        """Plan the first report early, after a quarter of the interval."""
        self.next = time.monotonic() + 60 * module.options.report_minutes / 4
        self.stopped_by = 0
        if threading.current_thread() is threading.main_thread():  # Lightning restores the old handlers afterwards
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` does
                    signal.signal(number, self.on_signal)

    def on_signal(self, number: int, _: Any) -> None:
        """Note a signal: all processes finish this step, then the run is saved. A second Ctrl-C leaves at once."""
        self.stopped_by = self.stopped_by or number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if rank_info().rank == 0:  # not by print, which must not interrupt itself
                os.write(2, b"\nfinishes this step and saves; Ctrl-C again leaves at once\n")

    def on_train_batch_start(self, trainer: pl.Trainer, module: RunModule, batch: Batch, batch_idx: int) -> None:
        """Report between two optimizer steps, where Lightning's own counters agree with the tensors."""
        if batch_idx % module.options.accumulate:
            return
        start = time.monotonic()
        if any_rank(self.stopped_by > 0 or start >= self.next):
            self.exit_if_stopped(trainer)
            self.report(trainer, module)
            interval = 60 * module.options.report_minutes  # a slow report leaves half of it to training
            self.next = max(start + interval, time.monotonic() + interval / 2)

    def on_train_end(self, trainer: pl.Trainer, module: RunModule) -> None:
        """Write the last report; a signal during the last step or this report counts too."""
        self.exit_if_stopped(trainer)
        self.report(trainer, module)
        self.exit_if_stopped(trainer)

    def exit_if_stopped(self, trainer: pl.Trainer) -> None:
        """Save and exit, with 143 for SIGTERM, if a signal reached any process; the same command resumes the run."""
        if any_rank(self.stopped_by > 0):
            trainer.save_checkpoint(self.checkpoint)
            raise SIGTERMException(128 + (self.stopped_by or signal.SIGTERM))

    def report(self, trainer: pl.Trainer, module: RunModule) -> None:
        """Save first, so that an error in the snapshot loses nothing."""
        trainer.save_checkpoint(self.checkpoint)
        self.snapshot(module, terms=module.mean_terms())
