"""Training as glue over Lightning, whatever is trained: the module, the callbacks that stop, show and keep a run."""

import csv
import io
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffit_lib.config import Training
from diffit_lib.data import Batch, Images, TrainingStream
from diffit_lib.errors import DiffitError
from diffit_lib.files import write_text
from diffit_lib.processes import anywhere, mean_everywhere, wait_for_all
from diffit_lib.tensors import derive_seed

KEPT = ("fingerprint", "seconds", "skipped", "skipped_in_a_row")  # in a checkpoint, besides Lightning's own
MAX_SKIPPED = 100  # steps in a row without a finite gradient, after which a run has failed


class HalfLife:
    """EMA whose half-life is counted in images and grows with the run (EDM, appendix F.2)."""

    def __init__(self, training: Training):
        self.training = training

    def decay(self, step: int) -> float:
        """The average's weight at this optimizer step."""
        images, halflife = step * self.training.batch_size, self.training.ema_halflife
        if self.training.ema_rampup is not None:
            halflife = min(halflife, images * self.training.ema_rampup)
        return 0.5 ** (self.training.batch_size / max(halflife, 1e-8))

    @torch.no_grad()
    def __call__(self, average: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        torch._foreach_lerp_(list(average), list(current), 1 - self.decay(int(num_averaged)))


class RunModule(pl.LightningModule):
    """A model, its average and its optimizer; the data are a function of the step a run stands at.

    What a step minimises is a subclass's `training_step`; `state_shape` is that of the noise each image brings along.
    """

    latent = False  # whether an image also brings noise for its posterior
    some_idle = False  # whether a step may leave parameters without a gradient

    def __init__(self, model: nn.Module, training: Training, data: Images, state_shape: tuple[int, ...]):
        super().__init__()
        self.model, self.options, self.data, self.state_shape = model, training, data, state_shape
        self.ema = AveragedModel(model, multi_avg_fn=HalfLife(training), use_buffers=False).requires_grad_(False)
        self.fingerprint = data.fingerprint()
        self.seconds = 0.0  # of training, before this start and since
        self.skipped = self.skipped_in_a_row = 0  # steps whose gradient was not finite
        self.sums: dict[str, Tensor] = {}  # of the terms of the loss, since the last report
        self.count, self.grad_norm = 0, torch.zeros(())

    @property
    def average(self) -> nn.Module:
        """The averaged model."""
        return self.ema.module

    @property
    def images_seen(self) -> int:
        """Training images so far, over all devices and resumes."""
        return self.global_step * self.options.batch_size

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """What is trained, in groups whose gradients are clipped each on its own."""
        return [list(self.model.parameters())]

    def train_dataloader(self) -> DataLoader:
        """Micro-batches from the step this run stands at."""
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
        return DataLoader(stream, batch_size=None, num_workers=workers, pin_memory=pin, worker_init_fn=stay)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout's random numbers are a function of (seed, step, micro-batch, rank)."""
        micro = batch_idx % self.options.accumulate
        torch.manual_seed(derive_seed(self.options.seed, "dropout", self.global_step, micro, self.global_rank))

    def count_terms(self, **terms: Tensor) -> None:
        """Add a micro-batch's terms of the loss to the sums that the next report tells."""
        for name, term in terms.items():
            self.sums[name] = self.sums[name] + term.detach() if name in self.sums else term.detach()
        self.count += 1

    def gather_terms(self) -> None:
        """Make the terms those of all processes, for the first one to tell."""
        self.sums = {name: mean_everywhere(total) for name, total in self.sums.items()}
        if self.global_rank:
            self.mean_terms()

    def mean_terms(self) -> dict[str, float]:
        """The terms' means since the last call, "loss" among them, not a number where there were none."""
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return {"loss": float("nan")} | means

    def configure_optimizers(self) -> Any:
        """Adam, its learning rate warmed up linearly in images."""
        fused = self.trainer.precision != "16-mixed"  # fused Adam unscales gradients itself, behind clipping's back
        trained = [parameter for group in self.parameter_groups() for parameter in group]
        optimizer = torch.optim.Adam(trained, lr=self.options.lr, fused=fused)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.options.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clip; where the gradient is not finite, drop it, so that this step changes nothing."""
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
        """One step, then the average follows, unless the step was skipped."""
        super().optimizer_step(*args, **kwargs)
        if self.skipped_in_a_row == 0:
            self.ema.update_parameters(self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What the tensors do not hold."""
        checkpoint["diffit"] = {name: getattr(self, name) for name in KEPT}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The inverse of `on_save_checkpoint`."""
        kept = checkpoint["diffit"]
        for name in KEPT:
            setattr(self, name, kept[name])


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
        if planned or (minutes is not None and anywhere(module.seconds >= 60 * minutes)):
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
            signal.signal(signal.SIGTERM, self.hear)

    def hear(self, *_: Any) -> None:
        """A scheduler's SIGTERM: this step is finished, then the run saved, by all processes at once."""
        self.terminated = True

    def on_train_batch_start(self, trainer: pl.Trainer, module: RunModule, batch: Batch, batch_idx: int) -> None:
        """Between two steps, where Lightning's own counters agree with the tensors."""
        if batch_idx % module.options.accumulate:
            return
        start = time.monotonic()
        if anywhere(self.terminated or start >= self.next):
            self.obey(trainer)
            self.report(trainer, module)
            interval = 60 * module.options.report_minutes  # a slow report leaves half of it to training
            self.next = max(start + interval, time.monotonic() + interval / 2)

    def on_train_end(self, trainer: pl.Trainer, module: RunModule) -> None:
        """The last report closes the run; a SIGTERM in the last step or in the report is obeyed too."""
        self.obey(trainer)
        self.report(trainer, module)
        self.obey(trainer)

    def obey(self, trainer: pl.Trainer) -> None:
        """If SIGTERM came to any process, save and end."""
        if anywhere(self.terminated):
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
        wait_for_all()  # or the first to leave would have the others ended


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


def stay(worker: int) -> None:
    """A SIGTERM that goes to a run's whole family is for the run to obey, not for the workers that feed it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
