"""An experiment: everything one training run needs, as one value: data, network, denoiser, training, sampling.

Field names are unique across its parts, so `experiment.override(width=96, lr=1e-4)` needs no section names.
"""

import math
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from inspect import getsource
from typing import Any, ClassVar, Literal, Self

from diffit_lib.config.diffusion import EDMConfig, FlowConfig, SamplingConfig, VPConfig
from diffit_lib.config.models import AutoencoderConfig, ImageNetworkConfig, TransformerConfig
from diffit_lib.utils.errors import DiffitError, check, check_not_negative, check_positive, check_types, did_you_mean


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
        for name, most in (("workers", 1024), ("threads", 1024), ("batch_size", 1_000_000)):
            value = getattr(self, name)
            check(value is None or value <= most, f"{name} is {value}; give {most:,} at most")
        for name in ("augment", "lr_decay", "label_dropout"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"{name} is {value}; give a share from 0 to 1")
        check(
            self.batch_size % self.accumulate == 0,
            f"batch_size {self.batch_size} does not split into accumulate {self.accumulate} parts; give a divisor",
        )

    @property
    def micro_batch(self) -> int:
        """Images that all devices hold at once."""
        return self.batch_size // self.accumulate

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


@dataclass(frozen=True)
class BaseExperimentConfig:
    """What all experiments have: the images, and parts that each are of one of several kinds."""

    name: str  # Name of the preset or of the run.
    data: str  # Data set by name, path of a folder, a zip or shards (tar), or hf:NAME of the Hugging Face hub.
    crop: Literal["center", "long-edge", "adm"] = "center"  # center: largest box; long-edge: all of it; adm: ImageNet.
    skip_bad: bool = False  # Leave out and count images that cannot be read, instead of stopping at the first.

    network: Any = None  # image: DiffiT's U-shape; latent: DiffiT's transformer; dit: DiT.
    training: Any = None

    PARTS: ClassVar[dict[str, tuple[Any, ...]]] = {}  # the kinds each part comes in
    NOT_KNOWN: ClassVar[tuple[str, ...]] = ()  # fields of a part that this kind of experiment does not use

    def __post_init__(self) -> None:
        check_types(self)

    def override(self, **changes: Any) -> Self:
        """A copy with some fields changed, whichever part they belong to; `denoiser="vp"` takes that kind of part."""
        own: dict[str, Any] = {key: changes.pop(key) for key in self.own_names() if key in changes}
        for part_name in self.PARTS:
            part = getattr(self, part_name)
            if part_name in changes:
                part = self.part_from_dict(part_name, changes.pop(part_name))
            inside = {f.name: changes.pop(f.name) for f in fields(part) if f.name in changes}
            own[part_name] = part.change(**inside) if isinstance(part, SamplingConfig) else replace(part, **inside)
        kinds = [(name, kind) for name, kinds in self.PARTS.items() for kind in kinds]
        for wrong in changes:
            for name, kind in kinds:
                if wrong in kind.__dataclass_fields__:
                    raise DiffitError(f"{wrong} is a field of {name} {kind.kind!r}; give {name}={kind.kind} too")
            names = dict.fromkeys([*self.own_names(), *(f.name for _, kind in kinds for f in fields(kind))])
            raise DiffitError(f"unknown field {wrong!r}; {did_you_mean(wrong, names, 'fields')}")
        return replace(self, **own)

    @classmethod
    def own_names(cls) -> list[str]:
        """The fields in no part."""
        return [f.name for f in fields(cls) if f.name not in cls.PARTS]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        values = {name: getattr(self, name) for name in self.own_names()}
        for name in self.PARTS:
            part = getattr(self, name)
            values[name] = ({"kind": part.kind} if hasattr(part, "kind") else {}) | asdict(part)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        own = {name: values[name] for name in cls.own_names() if name in values}
        return cls(**own, **{name: cls.part_from_dict(name, **values[name]) for name in cls.PARTS})

    def to_options(self) -> dict[str, Any]:
        """Every field on one level, plain types only, as a YAML file of options has them; `preset` is the name."""
        options = {"preset" if name == "name" else name: getattr(self, name) for name in self.own_names()}
        for name, kinds in self.PARTS.items():
            part = getattr(self, name)
            options |= ({name: part.kind} if len(kinds) > 1 else {}) | asdict(part)
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
        return {key: value for key, value in plain.items() if key not in self.NOT_KNOWN}

    def to_yaml(self) -> str:
        """Every option with its value and meaning, one a line: a file that `--config` takes."""
        import yaml

        helps = field_help(type(self))
        for part in self.PARTS:
            helps |= field_help(type(getattr(self, part)))
        options = self.to_options()
        text = yaml.safe_dump(options, sort_keys=False, default_flow_style=None, allow_unicode=True, width=math.inf)
        rows = zip(text.splitlines(), options, strict=True)
        return "".join(f"{row:<31} # {helps['name' if name == 'preset' else name]}\n" for row, name in rows)

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """The inverse of `to_options`; a field that is not among them has its own default."""
        options = dict(options)
        return cls(name=options.pop("preset"), data=options.pop("data")).override(**options)

    @classmethod
    def part_from_dict(cls, name: str, kind: str = "", **values: Any) -> Any:
        """A part from its kind, by default the first one, and its fields."""
        kinds = {getattr(part, "kind", ""): part for part in cls.PARTS[name]}
        kind = kind or next(iter(kinds))
        check(kind in kinds, f"unknown kind {kind!r} of {name}; the kinds are {', '.join(kinds)}")
        return kinds[kind](**values)


@dataclass(frozen=True)
class ExperimentConfig(BaseExperimentConfig):
    """One training run of a diffusion network, on pixels or on latents."""

    vae: str = ""  # Train on latents of this autoencoder: weights file, run folder or name. Empty: train on pixels.
    cache_latents: bool = True  # Encode all images once, instead of at every step.
    init_weights: str = ""  # Weights to start from, by path or name; if the classes differ, the label embedding is new.
    lora_rank: int = 0  # Train only low-rank changes of linear layers (LoRA) and the label embedding; 0: everything.
    network: ImageNetworkConfig | TransformerConfig = field(default_factory=ImageNetworkConfig)
    denoiser: EDMConfig | VPConfig | FlowConfig = field(default_factory=EDMConfig)  # edm, vp (DDPM) or rectified flow.
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    PARTS = {
        "network": (ImageNetworkConfig, TransformerConfig),
        "denoiser": (EDMConfig, VPConfig, FlowConfig),
        "training": (TrainingConfig,),
        "sampling": (SamplingConfig,),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        learned, drawn = self.network.learned_variance, self.sampling.variance == "learned"
        check(
            not learned or isinstance(self.denoiser, VPConfig),
            "learned_variance is that of a VP denoiser's reverse step; give denoiser=vp too, or learned_variance=False",
        )
        check(learned or not drawn, "variance is 'learned', which this network has not learned; give small or large")
        check(
            self.lora_rank == 0 or (self.lora_rank > 0 and bool(self.init_weights)),
            f"lora_rank is {self.lora_rank}; give 1 or more with init_weights, or 0 to train everything",
        )
        check(
            not (self.lora_rank and self.training.muon),
            f"muon is {self.training.muon} with lora_rank {self.lora_rank}, which Adam alone trains; give muon 0",
        )


@dataclass(frozen=True)
class VAEExperimentConfig(BaseExperimentConfig):
    """One training run of an autoencoder."""

    network: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    loss: VAELossConfig = field(default_factory=VAELossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    PARTS = {"network": (AutoencoderConfig,), "loss": (VAELossConfig,), "training": (TrainingConfig,)}
    NOT_KNOWN = ("muon", "loss_reduction", "label_dropout", "augment", "checkpointing")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.NOT_KNOWN:
            value = getattr(self.training, name)
            usual = value == getattr(TrainingConfig, name)
            check(usual, f"{name} is {value}, which an autoencoder's training does not know; leave it out")


def field_help(kind: type) -> dict[str, str]:
    """What each field of a dataclass means: the comment on its line."""
    bases = [base for base in reversed(kind.__mro__) if is_dataclass(base)]
    return dict(line for base in bases for line in re.findall(r"^    (\w+): .*  # (.+)$", getsource(base), re.M))
