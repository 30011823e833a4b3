"""Find weights by path or name: local files, our pretrained ones, a Google Drive id, and NVIDIA's and Meta's.

The published files hold tensors only: their networks, sampling settings and licences are here.
"""

from argparse import Namespace
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor

from diffit_lib.checkpoints.safetensors_io import is_pickle, read_tensors
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.config.presets import STABLE_DIFFUSION, preset
from diffit_lib.utils.errors import DiffitError, check, closest
from diffit_lib.utils.files import PRETRAINED, WEIGHTS, cache_folder, replacing
from diffit_lib.utils.logging import say


def pretrained() -> dict[str, Path]:
    """Our own weights by name."""
    return {path.stem: path for path in sorted(PRETRAINED.glob("*.safetensors"))}


def find_weights(path_or_name: str | Path) -> Path:
    """The weights file that a path, a run folder, or the name of pretrained weights means."""
    name, path, own = str(path_or_name), Path(path_or_name).expanduser(), pretrained()
    if path.is_file():
        return path
    if name in own:
        return own[name]
    if name in HUB_MODELS:
        return find_hub_file(HUB_MODELS[name])
    if path.is_dir():
        check(
            (path / WEIGHTS).is_file(),
            f"no weights file in folder {path}: it has no {WEIGHTS}; give a run folder that has one",
        )
        return path / WEIGHTS
    names = [*own, *HUB_MODELS, *STABLE_DIFFUSION]
    near = f"{closest(name, names)} give" if closest(name, names) else "give"
    raise DiffitError(
        f"no weights file {name!r}: {path.absolute()} is no file or run folder, nor a name of pretrained weights; "
        f"{near} a path or one of {', '.join(names)}"
    )


def from_drive(drive_id: str, target: str | Path) -> Path:
    """Download the file with this Google Drive id to `target`, and return that path; no half of a file is left.

    Raises a DiffitError without a network, or if Google refuses the file (daily quota, not shared, wrong id).
    """
    import gdown
    from requests import RequestException

    target, page = Path(target), f"https://drive.google.com/file/d/{drive_id}"
    messages = {"start": "", "output": f"To: {target}\n"}
    broken_off = getattr(gdown.exceptions, "DownloadError", RequestException)  # gdown 5 has none of its own
    try:
        with replacing(target) as beside, open(beside, "wb") as file:  # given a path, gdown leaves its own part file
            gdown.download(id=drive_id, output=file, use_cookies=False, log_messages=messages)
    except gdown.exceptions.FileURLRetrievalError as error:
        reason = shorten(str(error).removeprefix("Failed to retrieve file url:"), 200)
        remedy = "make a copy in your Drive and give its path, in a notebook as PATH_WEIGHTS"
        raise DiffitError(f"{page} is refused ({reason}); {remedy}") from error
    except (RequestException, broken_off) as error:
        remedy = "try again with the network up, or give a path"
        raise DiffitError(f"{page} cannot be downloaded ({shorten(str(error), 200)}); {remedy}") from error
    return target


def from_hub(repository: str, file: str, remedy: str) -> Path:
    """A file of a repository on the Hugging Face hub: from the hub's cache, else downloaded."""
    if path := in_hub_cache(repository, file):
        return Path(path)
    try:
        from huggingface_hub import hf_hub_download

        say(f"downloading {file} of {repository} from the Hugging Face hub")
        return Path(hf_hub_download(repository, file))
    except ImportError:
        raise DiffitError(f"{repository} needs huggingface_hub; pip install it, or {remedy}") from None
    except Exception as error:  # of many kinds: offline, refused, timed out
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DiffitError(f"{repository} cannot be downloaded ({shorten(first_line, 200)}); {remedy}") from error


def in_hub_cache(repository: str, file: str) -> str | None:
    """The path of a repository's file in the hub's cache on this machine, if it is there."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    path = try_to_load_from_cache(repository, file)
    return path if isinstance(path, str) else None


NAMES = {  # published: ours
    "x_embedder.proj.": "patch_embed.",
    "t_embedder.mlp.": "time_token.mlp.",
    "y_embedder.embedding_table.": "time_token.classes.",
    ".adaLN_modulation.1.": ".modulation.",
}
INDEX = ".attn.relative_position_index"  # in the files, not in our networks: it follows from the grid


@dataclass(frozen=True)
class HubModel:
    """Weights that others published."""

    experiment: ExperimentConfig
    file: str  # its name where it was published
    source: str  # a repository on the Hugging Face hub, or the address of the file
    licence: str
    by: str


def published(name: str, file: str, base: str, **options: Any) -> HubModel:
    """The preset `base` under the name of published weights, with the guidance of their published pictures.

    DiT's FID was measured at guidance 1.5 on both sizes, DiffiT's at its presets' scales.
    """
    by, source, licence = {
        "nvidia": ("NVIDIA", "nvidia/DiffiT", "CC-BY-NC-SA-4.0 (no commercial use)"),
        "meta": ("Meta", "https://dl.fbaipublicfiles.com/DiT/models/", "CC-BY-NC-4.0 (no commercial use)"),
    }[name.partition("/")[0]]
    experiment = preset(base).override(name=name, guidance_tolerance=0.0, **options)
    return HubModel(experiment, file, source, licence, by)


DIT = {"base": "dit-xl-2", "guidance_schedule": "constant"}
HUB_MODELS = {
    model.experiment.name: model
    for model in (
        published("nvidia/diffit-256", "diffit_256.safetensors", "diffit-xl-2"),
        published("nvidia/diffit-512", "diffit_512.safetensors", "diffit-xl-2-512"),
        published("meta/dit-xl-2-256", "DiT-XL-2-256x256.pt", **DIT, guidance=4.0),
        published("meta/dit-xl-2-512", "DiT-XL-2-512x512.pt", **DIT, guidance=1.5, image_size=(64, 64)),
    )
}


def our_name(name: str) -> str:
    """The name in our networks of a tensor in the published files."""
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def hub_tensors(name: str, file: str | Path | None = None) -> tuple[dict[str, Tensor], Path]:
    """The tensors of one of `HUB_MODELS` by our networks' names, float32 on the CPU, and the file they are from.

    The file is `file` if given, else from the cache folder or the hub's cache, else downloaded. Says the licence, once.
    """
    model = HUB_MODELS[name]
    path = find_hub_file(model) if file is None else Path(file)
    check(path.is_file(), f"there is no file {str(path)!r}; give that of {name}, {model.file}")
    tell_licence(f"{name}: weights by {model.by}, licence {model.licence}")
    tensors = unpickle(path) if model.file.endswith(".pt") and is_pickle(path) else read_tensors(path)
    return {our_name(name): tensor for name, tensor in tensors.items() if not name.endswith(INDEX)}, path


def find_hub_file(model: HubModel) -> Path:
    """The local file of published weights; downloaded from the hub if it is not here."""
    name, path = model.experiment.name, cache_folder() / "weights" / model.file
    address = model.source if "://" in model.source else f"https://huggingface.co/{model.source}"
    remedy = f"get {model.file} from {address} and give it as file=, or put it at {path}"
    if path.is_file():
        return path
    check("://" not in model.source, f"{name} is not here, nor on a hub in its published form; {remedy}")
    return from_hub(model.source, model.file, remedy)


def is_here(name: str) -> bool:
    """Whether the file of one of `HUB_MODELS` is on this machine, so that nothing is downloaded."""
    model = HUB_MODELS[name]
    here = (cache_folder() / "weights" / model.file).is_file()
    return here or ("://" not in model.source and in_hub_cache(model.source, model.file) is not None)


@cache
def tell_licence(text: str) -> None:
    """Say who published weights and under which licence; a second time nothing is said."""
    say(text)


def unpickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, at the top or under "ema", float32. Anything but tensors is refused, and not run."""
    try:
        with torch.serialization.safe_globals([Namespace]):  # a training checkpoint holds its options as one
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        tensors = content.get("ema", content)
        return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    except Exception as error:  # torch, pickle and zipfile have none in common
        problem = type(error).__name__
        raise DiffitError(f"{path} holds more or less than tensors ({problem}); give the file as published") from error
