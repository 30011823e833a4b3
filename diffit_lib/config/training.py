"""How a network is trained: frozen dataclasses that check themselves, parts of an experiment."""

import math
from dataclasses import dataclass
from typing import Literal

from diffit_lib.utils.errors import check, check_not_negative, check_positive, check_types


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. Everything is counted in images, so that another batch size changes no other meaning."""

    images: int = 1_000_000  # Images to train on in all; the warm-up is a share of them.
    max_steps: int | None = None  # Optimizer steps, in place of `images`.
    minutes: float | None = None  # Stop after this time, resumed runs counted together; null: no limit.
    batch_size: int = 128  # Images per optimizer step, over all devices.
    accumulate: int = 1  # Micro-batches that a step is split into, to save memory.
    lr: float = 1e-3  # Learning rate of Adam.
    muon: float = 0.0  # Learning rate of Muon for the matrices of the blocks, about 3 times lr; 0: Adam for all.
    lr_decay: float = 0.0  # Last share of the images over which lr falls linearly to 0; 0: constant, as EDM.
    ema_halflife: float = 500_000  # Images after which the moving average has forgotten half.
    ema_rampup: float | None = 0.05  # The half-life is at most this share of the images seen so far; null: no limit.
    loss_reduction: Literal["mean", "sum"] = "mean"  # How the loss combines the pixels of an image.
    grad_clip: float = 1.0  # Largest gradient norm; 0: no clipping.
    label_dropout: float = 0.1  # Share of labels replaced by "no class", for guidance.
    flip: bool = False  # Mirror each image with probability 1/2.
    augment: float = 0.0  # Probability of each of EDM's augmentations; set augment_dim=9 so that the network is told.
    checkpointing: bool = False  # Recompute activations in the backward pass: slower, far less memory.
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"  # auto: what the device does best.
    workers: int = 0  # Processes that prepare batches.
    memory_gb: float | None = None  # Data larger than this are decoded when used; null: half of the memory.
    threads: int | None = None  # CPU threads; null: one or all, whichever a second of steps shows to be faster.
    report_minutes: float = 5.0  # Minutes between checkpoints, sample grids and rows of metrics.csv.
    keep: int = 3  # How many of the newest reports keep their weights; 0: only the last weights.
    logger: Literal["tensorboard", "csv", "wandb"] = "tensorboard"  # Where curves go besides metrics.csv.
    seed: int = 0  # Random seed of the whole run.

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "images", "max_steps", "minutes", "batch_size", "accumulate", "lr")
        check_positive(self, "ema_halflife", "ema_rampup", "report_minutes", "threads", "memory_gb")
        check_not_negative(self, "muon", "grad_clip", "workers", "keep")
        for name in ("augment", "lr_decay", "label_dropout"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"{name} is {value}; give a share from 0 to 1")
        check(
            self.batch_size % self.accumulate == 0,
            f"batch_size {self.batch_size} does not split into accumulate {self.accumulate} parts; give a divisor",
        )

    @property
    def total_images(self) -> int:
        """Images the run is planned for: the end of the last whole step."""
        return self.total_steps * self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps the run is planned for."""
        return self.max_steps or math.ceil(self.images / self.batch_size)

    def lr_factor(self, step: int) -> float:
        """What lr is multiplied by at an optimizer step: warm-up, constant, decay; counted in images."""
        rise = (step + 1) * self.batch_size / self.warmup_images
        fall = (self.total_steps - step) / (self.lr_decay * self.total_steps) if self.lr_decay else 1.0
        return max(min(1.0, rise, fall), 0.0)

    @property
    def warmup_images(self) -> float:
        """The learning rate rises linearly over EDM's 10 M images, or over 5 % of a shorter run."""
        return min(10e6, 0.05 * self.total_images)


@dataclass(frozen=True)
class VAELossConfig:
    """What a KL autoencoder minimises: the sum of these terms (Rombach et al. 2022, appendix G).

    The reconstruction's difference is a mean over an image's values, and the KL divergence from the standard normal
    distribution a mean over its latent's values; where others sum over a latent, multiply by its number of values.
    """

    reconstruction: Literal["l1", "l2"] = "l1"  # Mean absolute or squared difference of pixels in [-1, 1].
    kl_weight: float = 1e-4  # Weight of the KL divergence.
    perceptual_weight: float = 1.0  # Weight of LPIPS; 0: without.
    vgg: str | None = None  # File of VGG-16's weights for LPIPS; null: downloaded into the cache.
    disc_weight: float = 0.5  # Weight of the discriminator, times an adaptive weight; 0: no discriminator.
    disc_start: int = 50_000  # Images after which the discriminator's loss starts.
    disc_width: int = 64  # Channels of the discriminator's first layer.

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "disc_width")
        check_not_negative(self, "kl_weight", "perceptual_weight", "disc_weight", "disc_start")
