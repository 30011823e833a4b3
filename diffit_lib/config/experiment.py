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
from diffit_lib.config.training import TrainingConfig, VAELossConfig
from diffit_lib.utils.errors import DiffitError, check, check_types, did_you_mean


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
        learned = self.network.learned_variance
        check(
            not learned or isinstance(self.denoiser, VPConfig),
            "learned_variance is that of a VP denoiser's reverse step; give denoiser=vp too, or learned_variance=False",
        )
        check(
            learned or self.sampling.variance != "learned",
            "variance is 'learned', which this network has not learned; give small or large",
        )
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
            check(
                value == getattr(TrainingConfig, name),
                f"{name} is {value}, which an autoencoder's training does not know; leave it out",
            )


def field_help(kind: type) -> dict[str, str]:
    """What each field of a dataclass means: the comment on its line."""
    bases = [base for base in reversed(kind.__mro__) if is_dataclass(base)]
    return dict(line for base in bases for line in re.findall(r"^    (\w+): .*  # (.+)$", getsource(base), re.M))
