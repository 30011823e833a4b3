"""Safetensors files with a card: tensors by name, and JSON in the metadata that describes them.

Of torch's own files tensors are read, and nothing in them is run.
"""

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from warnings import catch_warnings
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffit_lib.config.experiment import BaseExperimentConfig
from diffit_lib.utils.errors import DiffitError, check, check_types, reason_of
from diffit_lib.utils.files import replacing


@dataclass(frozen=True)
class Card:
    """What a file says about its tensors. In the file, `experiment` is called "recipe"."""

    experiment: BaseExperimentConfig
    _: KW_ONLY
    trained_on: str = ""  # name and fingerprint of the training images
    images_seen: int = 0
    minutes: float = 0.0  # of training
    device: str = ""
    licence: str = "MIT"
    numbers: dict[str, Any] = field(default_factory=dict)  # metrics on held-out images, if they were measured

    FORMAT: ClassVar[str]  # of the file
    WRITER: ClassVar[str]  # which command writes such files
    EXPERIMENT: ClassVar[type[BaseExperimentConfig]]

    def __post_init__(self) -> None:
        check_types(self)
        check_numbers(self.numbers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values: dict[str, Any] = {
            key: value.to_dict() if isinstance(value, Card) else value for key, value in vars(self).items()
        }
        return {"recipe": values.pop("experiment").to_dict()} | values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        others = {key: value for key, value in values.items() if key != "recipe"}
        return cls(experiment=cls.EXPERIMENT.from_dict(values["recipe"]), **others)


def check_numbers(numbers: Mapping[str, Any]) -> None:
    """Refuse measured numbers of which one is no number, the stamp no object, or the warnings no list."""
    words = {"stamp": (dict, "an object"), "warnings": (list, "a list"), "measured": (str, "words")}
    for name, value in numbers.items():
        kind, wanted = words.get(name, (float, "a number"))
        short = type(value) is int and abs(value) < 2**63
        check(isinstance(value, kind) or (kind is float and short), f"{name} is {value!r}; give {wanted}")


AnyCard = TypeVar("AnyCard", bound=Card)


def write_checkpoint(
    path: str | Path, card: Card, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """Write tensors, from any device, as `dtype`, with their card; the same ones are the same file, to the byte."""
    plain = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    with replacing(path) as beside:
        save_file(plain, beside, metadata={"format": card.FORMAT, "card": json.dumps(card.to_dict())})
        with open(beside, "r+b") as file:  # the library writes the metadata in any order
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            file.seek(8)
            file.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size))


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A safetensors file, open; a DiffitError says what is wrong with any other file."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        pickled = "it is a pickle: give the run's weights.safetensors"
        remedy = pickled if is_pickle(path) else "copy or download it again"
        raise DiffitError(f"{path} is not a complete safetensors file ({reason_of(error)}); {remedy}") from error


def is_pickle(path: str | Path) -> bool:
    """Whether a file is a pickle or torch's zip of pickles; a safetensors file begins with its header's length."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[:2] == b"PK" or (start[:1] == b"\x80" and start[8:] != b"{")


def unpickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, at the top or under "ema", float32. Anything but tensors is refused, and not run."""
    try:
        with torch.serialization.safe_globals([Namespace]), catch_warnings(action="ignore"):  # options of training
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        tensors = {str(name): tensor.detach() for name, tensor in content.get("ema", content).items()}
        for name, tensor in tensors.items():  # one number may stand for a billion
            check(tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes(), f"{name} is not whole")
        return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    except Exception as error:  # torch, pickle and zipfile have none in common
        problem = type(error).__name__
        raise DiffitError(f"{path} holds more or less than tensors ({problem}); give the file as published") from error


def format_of(path: str | Path) -> str:
    """The format that a safetensors file says it has, a card's `FORMAT` if it is ours; "" for a pickle."""
    if is_pickle(path):
        return ""
    with opened(path) as file:
        return str((file.metadata() or {}).get("format", ""))


def read_card(path: str | Path, kind: type[AnyCard]) -> AnyCard:
    """The card of a file, which must be of this kind."""
    with opened(path) as file:
        metadata = file.metadata() or {}
    if (found := metadata.get("format")) != kind.FORMAT:
        raise DiffitError(f"{path} holds no diffit model (format {found!r}, not {kind.FORMAT!r}); give {kind.WRITER}")
    try:
        return kind.from_dict(json.loads(metadata["card"]))
    except Exception as error:  # a stranger's card may raise nearly anything
        reason = reason_of(error, 300)
        raise DiffitError(f"{path} has a card this version cannot read ({reason}); update diffit") from error


def read_tensors(path: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, by the rest of their names, in float32 on the CPU."""
    with opened(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118, not a dict
        return {name.removeprefix(prefix): file.get_tensor(name).to(torch.float32, copy=True) for name in names}


def load_tensors(module: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Make these tensors the module's own, by name. The module may have been built on the meta device.

    Raises a DiffitError that names the first tensor that is missing, unknown, of another shape or not finite, before
    anything is loaded.
    """
    expected = module.state_dict()
    missing, spare = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    for problem, wrong in (("lacks", missing), ("has a spare", spare)):
        if wrong:
            raise DiffitError(f"{source} {problem} tensor {min(wrong)!r} ({len(wrong)} in all); it fits another model")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            raise DiffitError(f"{source} has tensor {name!r} of shape {shapes}; it fits another model")
        if not tensor.isfinite().all():
            raise DiffitError(f"{source} has tensor {name!r} of NaN or infinite numbers; give other weights")
    module.load_state_dict(tensors, assign=True)
