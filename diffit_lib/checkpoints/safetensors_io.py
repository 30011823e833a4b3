"""Safetensors files: named tensors, and in the metadata a format and a card that says what they are."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import replacing

ModelCard = TypeVar("ModelCard")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], form: str, card: str) -> None:
    """Write tensors, wherever they lie, with the name of their format and their card's JSON."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as beside:
        save_file(plain, beside, metadata={"format": form, "card": card})


def read_tensors(path: Path, form: str | None, remedy: str, prefix: str = "") -> tuple[str, dict[str, Tensor]]:
    """A file's card as JSON, and its tensors whose names start with `prefix`, without it, in float32 on the CPU.

    A file of another format than `form` is refused, and `remedy` told; None takes any.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if form is not None and metadata.get("format") != form:
                raise DiffitError(
                    f"{path} holds no diffit model (format {metadata.get('format')!r}, not {form!r}); {remedy}"
                )
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118, not a dict
            tensors = {name.removeprefix(prefix): file.get_tensor(name).to(torch.float32) for name in names}
    except SafetensorError as error:
        raise DiffitError(f"{path} is no whole safetensors file ({error}); {_remedy(path)}") from error
    return metadata.get("card", ""), tensors


def format_of(path: Path) -> str:
    """The format a file names, "" where it names none or is no whole safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format", "")
    except SafetensorError:
        return ""


def read_card(from_json: Callable[[str], ModelCard], text: str, path: Path) -> ModelCard:
    """A file's card; one that makes no sense is the file's fault, and is told so."""
    try:
        return from_json(text)
    except (AttributeError, KeyError, TypeError, ValueError, DiffitError) as error:
        raise DiffitError(f"{path} has a card this version cannot read ({error}); update diffit") from error


def load_tensors(
    module: nn.Module,
    tensors: dict[str, Tensor],
    source: str,
    *,
    known_as: Callable[[str], str] = str,
    assign: bool = False,
) -> None:
    """Load tensors by name; the first missing, spare or misshapen one is named.

    `known_as` turns a name in the module into the one in the file. `assign` makes the tensors the module's own instead
    of copying them: it may then have been built on the meta device.
    """
    names = {known_as(name): name for name in module.state_dict()}
    expected = {known_as(name): tensor.shape for name, tensor in module.state_dict().items()}
    for problem, wrong in (
        ("lacks", expected.keys() - tensors.keys()),
        ("has a spare", tensors.keys() - expected.keys()),
    ):
        if wrong:
            raise DiffitError(f"{source} {problem} tensor {min(wrong)!r} ({len(wrong)} in all); it fits another model")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name]:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[name])}"
            raise DiffitError(f"{source} has tensor {name!r} of shape {shapes}; it fits another model")
    module.load_state_dict({names[theirs]: tensor for theirs, tensor in tensors.items()}, assign=assign)


def _remedy(path: Path) -> str:
    """What to do about a file that does not open."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[:2] == b"PK" or (start[:1] == b"\x80" and start[8:] != b"{"):  # eight bytes of length, then text, are ours
        return "it is a pickle, which could run code and is never opened: give the run's weights.safetensors"
    return "copy or download it again"
