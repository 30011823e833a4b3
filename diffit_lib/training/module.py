"""Training as glue over Lightning, whatever is trained: the module, the callbacks that stop, show and keep a run."""

import signal
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from diffit_lib.config.training import TrainingConfig
from diffit_lib.data.datasets import Images
from diffit_lib.data.stream import Batch, TrainingStream
from diffit_lib.utils.distributed import mean_over_ranks
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import derive_seed

KEPT = ("fingerprint", "seconds", "skipped", "skipped_in_a_row")  # in a checkpoint, besides Lightning's own
MAX_SKIPPED = 100  # steps in a row without a finite gradient, after which a run has failed


class HalfLife:
    """EMA whose half-life is counted in images and grows with the run (EDM, appendix F.2)."""

    def __init__(self, training: TrainingConfig):
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

    def __init__(self, model: nn.Module, training: TrainingConfig, data: Images, state_shape: tuple[int, ...]):
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
        return DataLoader(stream, batch_size=None, num_workers=workers, pin_memory=pin, worker_init_fn=ignore_sigterm)

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
        self.sums = {name: mean_over_ranks(total) for name, total in self.sums.items()}
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


def ignore_sigterm(worker: int) -> None:
    """A SIGTERM that goes to a run's whole family is for the run to obey, not for the workers that feed it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
