"""Find weights by path or name: local files and folders, our pretrained ones, a Google Drive id, published ones."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from diffit_lib.checkpoints.published import ALIASES, HUB_MODELS, TRANSFORMER, HubModel
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.utils.errors import DiffitError, check, closest, reason_of
from diffit_lib.utils.files import PRETRAINED, WEIGHTS, cache_folder, expanded, replacing
from diffit_lib.utils.logging import say

TENSORS = (".safetensors", ".pt", ".pth", ".bin")  # files that hold them
PUBLISHERS = {name.partition("/")[0] for name in HUB_MODELS}
LARGEST = 20e9  # bytes that are downloaded of a repository
FOLDER = [TRANSFORMER, "transformer/config.json", "transformer/diffit.safetensors"]
FOLDER += [TRANSFORMER.replace("transformer", "vae")]


def pretrained() -> dict[str, Path]:
    """Our own weights by name."""
    return {path.stem: path for path in sorted(PRETRAINED.glob("*.safetensors"))}


def find_weights(path_or_name: str | Path) -> Path:
    """The weights file that a path, a folder of a run or of diffusers, or the name of pretrained weights means."""
    check(
        isinstance(path_or_name, str | Path) and str(path_or_name).strip("\0 ") != "",
        f"weights is {path_or_name!r}; give a path, or the name of pretrained weights",
    )
    name, path, own = str(path_or_name), expanded(path_or_name), pretrained()
    name = ALIASES.get(name, name)
    if path.is_file():
        return path
    if name in own:
        return own[name]
    if name in HUB_MODELS:
        return find_hub_file(HUB_MODELS[name])
    if path.is_dir():
        places = [path / name for name in (WEIGHTS, TRANSFORMER, TRANSFORMER.replace(".safetensors", ".bin"))]
        only = [each for each in path.iterdir() if each.suffix in TENSORS]  # else the only file of tensors
        if file := next(filter(Path.is_file, [*places, *only[: len(only) == 1]]), None):
            return file
        raise DiffitError(f"no weights file in folder {path}: it has no {WEIGHTS}; give a run folder that has one")
    if place := hub_place(name):
        return from_repository(place)
    names = [*own, *HUB_MODELS, *STABLE_DIFFUSION]
    near = f"{closest(name, names)} give" if closest(name, names) else "give"
    raise DiffitError(
        f"no weights file {name!r}: {path.absolute()} is no file or run folder, nor a name of pretrained weights; "
        f"{near} a path, hf://USER/REPOSITORY, or one of {', '.join(names)}"
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
        reason = reason_of(error).removeprefix("Failed to retrieve file url: ")
        remedy = "make a copy in your Drive and give its path, in a notebook as PATH_WEIGHTS"
        raise DiffitError(f"{page} is refused ({reason}); {remedy}") from error
    except (RequestException, broken_off) as error:
        remedy = "try again with the network up, or give a path"
        raise DiffitError(f"{page} cannot be downloaded ({reason_of(error)}); {remedy}") from error
    return target


class HubPlace(NamedTuple):
    """A repository on the Hugging Face hub, a revision, by default the newest, and a file, by default its weights."""

    repository: str
    revision: str | None
    file: str | None


def hub_place(name: str) -> HubPlace | None:
    """What `user/repo`, `user/repo@revision` or `hf://user/repo@revision/file` names; None for other words.

    Without `hf://` it is None where it may be a path: if it ends like a file, or if there is a folder `user` here; and
    for the publishers of `HUB_MODELS`, whose other repositories are of other layouts.
    """
    match = re.fullmatch(r"(hf://)?([\w.-]+/[\w.-]+)(?:@(refs/pr/\d+|[\w.+-]+))?(?:/(.+))?", name)
    if match is None:
        return None
    user = match[2].partition("/")[0]
    other = match[4] or Path(user).exists() or Path(name).suffix in TENSORS or user in PUBLISHERS
    return HubPlace(*match.groups()[1:]) if match[1] or not other else None


def from_repository(place: HubPlace) -> Path:
    """The weights in a repository: the file that is named, else `weights.safetensors`, else diffusers' folder.

    Only safetensors files (and diffusers' config.json) are taken, of at most `LARGEST` bytes. Where the hub cannot be
    asked, files in its cache are taken, and that is said.
    """
    (name, revision, file), remedy = place, "check the name and the network, or give the file's path"
    check(file is None or file.endswith(".safetensors"), f"{file} of {name} is no safetensors file; give one that is")
    with talking_to_hub(name, remedy):
        from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

        try:
            found = HfApi().model_info(name, revision=revision, files_metadata=True)
        except Exception as error:  # of many kinds
            here = [try_to_load_from_cache(name, each, revision=revision) for each in [file or WEIGHTS, TRANSFORMER]]
            if not (paths := [path for path in here[: 1 if file else 2] if isinstance(path, str)]):
                raise
            say(f"{name}: the hub does not answer ({type(error).__name__}); taking what was downloaded before")
            return Path(paths[0])
        sizes = {each.rfilename: math.inf if each.size is None else each.size for each in found.siblings or ()}
        wanted = [file or WEIGHTS] if file or WEIGHTS in sizes else [each for each in FOLDER if each in sizes]
        has = ", ".join(each for each in sizes if each.endswith(".safetensors")) or "no safetensors file"
        check(wanted != [] and wanted[0] in sizes, f"{name} has no {file or WEIGHTS}, but {has}; give hf://{name}/FILE")
        size = sum(sizes[each] for each in wanted)
        check(size <= LARGEST, f"{wanted[0]} of {name} has {size / 1e9:.3g} GB, more than {LARGEST / 1e9:g}; {remedy}")
        say(f"{name}: {wanted[0]}, {size / 1e6:,.1f} MB, from the Hugging Face hub")
        weights, *_ = [hf_hub_download(name, each, revision=revision) for each in wanted]
        return Path(weights)


@contextmanager
def talking_to_hub(name: str, remedy: str, failed: str = "cannot be downloaded") -> Iterator[None]:
    """Make one line of whatever goes wrong with the Hugging Face hub in this block."""
    try:
        yield
    except ImportError:
        raise DiffitError(f"{name} needs huggingface_hub; pip install it, or {remedy}") from None
    except DiffitError:
        raise
    except Exception as error:  # of many kinds: offline, refused, timed out
        raise DiffitError(f"{name} {failed} ({reason_of(error)}); {remedy}") from error


def from_hub(repository: str, file: str, remedy: str) -> Path:
    """A file of a repository on the Hugging Face hub: from the hub's cache, else downloaded."""
    if path := in_hub_cache(repository, file):
        return Path(path)
    with talking_to_hub(repository, remedy):
        from huggingface_hub import hf_hub_download

        say(f"downloading {file} of {repository} from the Hugging Face hub")
        return Path(hf_hub_download(repository, file))


def in_hub_cache(repository: str, file: str) -> str | None:
    """The path of a repository's file in the hub's cache on this machine, if it is there."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    path = try_to_load_from_cache(repository, file)
    return path if isinstance(path, str) else None


def local_path(model: HubModel) -> Path:
    """Where a file of published weights may be put."""
    folder = model.source if "/" in model.file else ""  # diffusers' files are all called alike
    return cache_folder() / "weights" / folder / model.file


def find_hub_file(model: HubModel) -> Path:
    """The local file of published weights; downloaded from the hub if it is not here."""
    name, path = model.experiment.name, local_path(model)
    address = model.source if "://" in model.source else f"https://huggingface.co/{model.source}"
    remedy = f"get {model.file} from {address} and give it as file=, or put it at {path}"
    if path.is_file():
        return path
    check("://" not in model.source, f"{name} is not here, nor on a hub in its published form; {remedy}")
    return from_hub(model.source, model.file, remedy)


def is_here(name: str) -> bool:
    """Whether the file of one of `HUB_MODELS` is on this machine, so that nothing is downloaded."""
    model = HUB_MODELS[name]
    from_hub = "://" not in model.source and in_hub_cache(model.source, model.file) is not None
    return local_path(model).is_file() or from_hub


@cache
def tell_licence(text: str) -> None:
    """Say who published weights and under which licence; a second time nothing is said."""
    say(text)
