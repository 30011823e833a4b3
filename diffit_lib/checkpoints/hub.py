"""Find weights by path or name: local files, our pretrained ones, a Google Drive id, and those that others published.

NVIDIA's latent DiffiT and Meta's DiT were published as tensors alone: their network, sampling settings and licence are
here.
"""

from argparse import Namespace
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from textwrap import shorten
from zipfile import is_zipfile

import torch
from torch import Tensor

from diffit_lib.checkpoints.safetensors_io import read_tensors
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.config.presets import STABLE_DIFFUSION, preset
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import PRETRAINED, cache_folder, replacing
from diffit_lib.utils.logging import say

WEIGHTS = "weights.safetensors"  # in a run folder


def find_weights(path_or_name: str | Path) -> Path:
    """The weights file that a path, a run folder, or a name means: one of our own, or one of `HUB_MODELS`.

    Raises a DiffitError that says what was looked for, and where.
    """
    name, path = str(path_or_name), Path(path_or_name).expanduser()
    own = PRETRAINED / f"{name}.safetensors"
    if path.is_file():
        return path
    if own.is_file():
        return own
    if name in HUB_MODELS:
        return find_hub_file(HUB_MODELS[name])
    if path.is_dir():
        check(
            (path / WEIGHTS).is_file(),
            f"no weights file in folder {path}: it has no {WEIGHTS}; give a run folder that has one",
        )
        return path / WEIGHTS
    names = [*sorted(file.stem for file in PRETRAINED.glob("*.safetensors")), *HUB_MODELS, *STABLE_DIFFUSION]
    near = get_close_matches(name, names, n=2)
    hint = f"did you mean {' or '.join(near)}? give" if near else "give"
    raise DiffitError(
        f"no weights file {name!r}: {path.absolute()} is no file or run folder, nor a name of pretrained weights; "
        f"{hint} a path or one of {', '.join(names)}"
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
        reason = shorten(str(error), 200)
        raise DiffitError(
            f"{page} cannot be downloaded ({reason}); try again with the network up, or give a path"
        ) from error
    return target


def from_hub(repository: str, file: str, remedy: str) -> Path:
    """A file of a repository on the Hugging Face hub: from the hub's cache here, else downloaded, which is said."""
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
    """Whether a file of a repository is in the hub's cache on this machine."""
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
INDEX = ".attn.relative_position_index"  # in the files, not in our networks: it follows from the grid


@dataclass(frozen=True)
class HubModel:
    """Weights that others published: network and settings, where the file is, its licence."""

    experiment: ExperimentConfig
    file: str  # its name where it was published
    source: str  # a repository on the Hugging Face hub, or the address of the file
    licence: str
    by: str


def xl_2(block: str, side: int, file: str, *, by: str, source: str, licence: str, **guidance: float | str) -> HubModel:
    """The largest network for ImageNet at `side` pixels, with the guidance of its published pictures.

    DiT's FID was measured at guidance 1.5 on both sizes, DiffiT's at the scales below.
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
    model.experiment.name: model
    for model in (
        xl_2("diffit", 256, "diffit_256.safetensors", **_NVIDIA, guidance=4.4),
        xl_2("diffit", 512, "diffit_512.safetensors", **_NVIDIA, guidance=1.49, guidance_schedule="constant"),
        xl_2("dit", 256, "DiT-XL-2-256x256.pt", **_META, guidance=4.0, guidance_schedule="constant"),
        xl_2("dit", 512, "DiT-XL-2-512x512.pt", **_META, guidance=1.5, guidance_schedule="constant"),
    )
}


def published_name(name: str) -> str:
    """The name of a tensor of ours in the published files."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def hub_tensors(name: str, file: str | Path | None = None) -> tuple[dict[str, Tensor], Path]:
    """The tensors of one of `HUB_MODELS` by their published names, float32 on the CPU, and the file they are from.

    The file is `file` if given, else from the cache folder or the hub's cache, else downloaded. Says the licence, once.
    """
    model = HUB_MODELS[name]
    path = find_hub_file(model) if file is None else Path(file)
    check(path.is_file(), f"there is no file {str(path)!r}; give that of {name}, {model.file}")
    tell_licence(f"{name}: weights by {model.by}, licence {model.licence}")
    tensors = unpickle(path) if model.file.endswith(".pt") and is_pickle(path) else read_tensors(path)
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(INDEX)}, path


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
    return here or ("://" not in model.source and in_hub_cache(model.source, model.file))


@cache
def tell_licence(text: str) -> None:
    """Say who published weights and under which licence; a second time nothing is said."""
    say(text)


def is_pickle(path: Path) -> bool:
    """Whether torch wrote the file, today (a zip) or long ago."""
    with open(path, "rb") as file:
        return is_zipfile(path) or file.read(1) == b"\x80"


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
