"""Weights that others published, by name: NVIDIA's latent DiffiT and Meta's DiT, with what is needed to use them.

Their files hold tensors and nothing else: network, sampling settings, class names and licence are kept here.
"""

from argparse import Namespace
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from zipfile import is_zipfile

import torch
from torch import Tensor

from diffit_lib.checkpoints.safetensors_io import read_tensors
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.config.presets import preset
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import cache_folder, replacing, sha256
from diffit_lib.utils.logging import say

# Name: Google Drive id and SHA-256 of the safetensors file; an empty id says that it is not uploaded yet.
PUBLISHED: dict[str, tuple[str, str]] = {
    "cifar10": ("", ""),
    "cifar10-t4": ("", ""),
    "ffhq64": ("", ""),
}


def published_weights(name: str) -> Path:
    """The local file of the weights `name` of `PUBLISHED`, downloaded where the cache folder does not hold it whole."""
    drive_id, checksum = PUBLISHED[name]
    path = cache_folder() / "weights" / f"{name}.safetensors"
    if path.is_file() and sha256(path) == checksum:
        return path
    if not drive_id:
        raise DiffitError(
            f"the weights {name!r} are not uploaded yet; train them with `diffit train {name}`, or give a path"
        )
    return from_drive(drive_id, path, checksum)


def from_drive(drive_id: str, target: str | Path, checksum: str | None = None) -> Path:
    """Download the file of this id from Google Drive to `target`, which is there whole or not at all, and return it.

    A file whose SHA-256 is not `checksum`, if that is given, is refused. Without the network, or where Google refuses
    the file (its daily quota, a file not shared with everyone, a wrong id), there is one line with the remedy.
    """
    import gdown
    from requests import RequestException

    target, page = Path(target), f"https://drive.google.com/file/d/{drive_id}"
    messages = {"start": "", "output": f"To: {target}\n"}
    broken_off = getattr(gdown.exceptions, "DownloadError", RequestException)  # gdown 5 has none of its own
    try:
        with replacing(target) as beside:
            with open(beside, "wb") as file:  # to a path, gdown would leave a file of its own beside it when killed
                gdown.download(id=drive_id, output=file, use_cookies=False, log_messages=messages)
            if checksum is not None and (found := sha256(beside)) != checksum:
                raise DiffitError(
                    f"{page} has the SHA-256 {found}, not {checksum}; try again, or give the path of a good file"
                )
    except gdown.exceptions.FileURLRetrievalError as error:
        reason = shorten(str(error).removeprefix("Failed to retrieve file url:"), 200)
        remedy = "make a copy in your Drive and give its path, in a notebook as PATH_WEIGHTS"
        raise DiffitError(f"{page} is refused ({reason}); {remedy}") from error
    except (RequestException, broken_off) as error:
        reason = shorten(str(error), 200)
        raise DiffitError(
            f"{page} cannot be downloaded ({reason}); try again with the network up, or give a path"
        ) from error
    return target


def from_hub(repository: str, file: str, remedy: str) -> Path:
    """A file of a repository on the Hugging Face hub: from its cache here, else downloaded, which is said first."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise DiffitError(f"{repository} needs huggingface_hub; pip install it, or {remedy}") from None
    reason: Exception
    for local in (True, False):
        if not local:
            say(f"downloading {file} of {repository} from the Hugging Face hub")
        try:
            return Path(hf_hub_download(repository, file, local_files_only=local))
        except Exception as error:  # of many kinds: offline, refused, timed out, not in the cache
            reason = error
    first_line = (str(reason).splitlines() or [type(reason).__name__])[0]
    raise DiffitError(f"{repository} cannot be downloaded ({shorten(first_line, 200)}); {remedy}")


def in_hub_cache(repository: str, file: str) -> bool:
    """Whether a file of a repository lies in the hub's cache here."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    return isinstance(try_to_load_from_cache(repository, file), str)


NAMES = {  # ours: theirs
    "patch_embed.": "x_embedder.proj.",
    "time_token.mlp.": "t_embedder.mlp.",
    "time_token.classes.": "y_embedder.embedding_table.",
    ".modulation.": ".adaLN_modulation.1.",
}
INDEX = ".attn.relative_position_index"  # follows from the size of the grid: in the files, not in our networks


@dataclass(frozen=True)
class HubModel:
    """Published weights: what they are, where they lie, what they may be used for."""

    experiment: ExperimentConfig
    file: str  # its name where it was published
    source: str  # a repository on the Hugging Face hub, or the address of the file
    licence: str
    by: str


def xl_2(block: str, side: int, file: str, *, by: str, source: str, licence: str, **guidance: float | str) -> HubModel:
    """The largest network for ImageNet at this many pixels; `guidance` is what its published pictures were drawn with.

    DiT's FID was measured at 1.5 on both sizes, DiffiT's at the scales below.
    """
    experiment = preset(f"{block}-xl-2").override(
        name=f"{by.lower()}/{'diffit' if block == 'diffit' else 'dit-xl-2'}-{side}",
        image_size=(side // 8, side // 8),
        guidance_tolerance=0.0,
        **guidance,
    )
    return HubModel(experiment, file, source, licence, by)


_NVIDIA = {"by": "NVIDIA", "source": "nvidia/DiffiT", "licence": "CC-BY-NC-SA-4.0 (no commercial use)"}
_META = {
    "by": "Meta",
    "source": "https://dl.fbaipublicfiles.com/DiT/models/",
    "licence": "CC-BY-NC-4.0 (no commercial use)",
}
HUB_MODELS = {
    weights.experiment.name: weights
    for weights in (
        xl_2("diffit", 256, "diffit_256.safetensors", **_NVIDIA, guidance=4.4),
        xl_2("diffit", 512, "diffit_512.safetensors", **_NVIDIA, guidance=1.49, guidance_schedule="constant"),
        xl_2("dit", 256, "DiT-XL-2-256x256.pt", **_META, guidance=4.0, guidance_schedule="constant"),
        xl_2("dit", 512, "DiT-XL-2-512x512.pt", **_META, guidance=1.5, guidance_schedule="constant"),
    )
}


def published_name(name: str) -> str:
    """What the published files call a tensor of ours."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def hub_tensors(name: str, file: str | Path | None = None) -> tuple[dict[str, Tensor], Path]:
    """The tensors of the weights `name` of `HUB_MODELS` by their published names, float32 on the CPU, and their file.

    From `file`; else from the cache folder or the hub's, else downloaded. Says the licence, once.
    """
    weights = HUB_MODELS[name]
    path = find_hub_file(weights) if file is None else Path(file)
    check(path.is_file(), f"there is no file {str(path)!r}; give that of {name}, {weights.file}")
    tell_licence(name)
    tensors = unpickle(path) if weights.file.endswith(".pt") and is_pickle(path) else read_tensors(path, None, "")[1]
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(INDEX)}, path


def find_hub_file(weights: HubModel) -> Path:
    """The local file of published weights; from the hub where it is not here yet."""
    name, path = weights.experiment.name, cache_folder() / "weights" / weights.file
    address = weights.source if "://" in weights.source else f"https://huggingface.co/{weights.source}"
    remedy = f"get {weights.file} from {address} and give it as file=, or put it at {path}"
    if path.is_file():
        return path
    check("://" not in weights.source, f"{name} is not here, nor on a hub in its published form; {remedy}")
    return from_hub(weights.source, weights.file, remedy)


def is_here(name: str) -> bool:
    """Whether the weights `name` of `HUB_MODELS` lie on this machine, so that nothing need be downloaded."""
    weights = HUB_MODELS[name]
    if (cache_folder() / "weights" / weights.file).is_file():
        return True
    if "://" in weights.source or find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(weights.source, weights.file), str)


@cache
def tell_licence(name: str) -> None:
    """Say under which licence these weights were published; a second time nothing is said."""
    say(f"{name}: weights by {HUB_MODELS[name].by}, licence {HUB_MODELS[name].licence}")


def is_pickle(path: Path) -> bool:
    """Whether torch wrote the file, today (a zip) or long ago."""
    with open(path, "rb") as file:
        return is_zipfile(path) or file.read(1) == b"\x80"


def unpickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, flat or under "ema", float32; whatever is no tensor is refused, and not run.

    A training checkpoint also holds its options, which are left alone: argparse's plain container of values.
    """
    try:
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        tensors = content.get("ema", content)
        return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    except Exception as error:  # torch, pickle and zipfile have none in common
        problem = type(error).__name__
        raise DiffitError(f"{path} holds more or less than tensors ({problem}); give the file as published") from error
