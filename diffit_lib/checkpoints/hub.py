"""Find weights by path or name: local files and folders, our pretrained ones, a Google Drive id, published ones."""

from functools import cache
from pathlib import Path
from textwrap import shorten

from diffit_lib.checkpoints.published import ALIASES, HUB_MODELS, TRANSFORMER, HubModel
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.utils.errors import DiffitError, check, closest
from diffit_lib.utils.files import PRETRAINED, WEIGHTS, cache_folder, replacing
from diffit_lib.utils.logging import say


def pretrained() -> dict[str, Path]:
    """Our own weights by name."""
    return {path.stem: path for path in sorted(PRETRAINED.glob("*.safetensors"))}


def find_weights(path_or_name: str | Path) -> Path:
    """The weights file that a path, a folder of a run or of diffusers, or the name of pretrained weights means."""
    check(
        isinstance(path_or_name, str | Path) and str(path_or_name).strip("\0 ") != "",
        f"weights is {path_or_name!r}; give a path, or the name of pretrained weights",
    )
    name, path, own = str(path_or_name), Path(path_or_name).expanduser(), pretrained()
    name = ALIASES.get(name, name)
    if path.is_file():
        return path
    if name in own:
        return own[name]
    if name in HUB_MODELS:
        return find_hub_file(HUB_MODELS[name])
    if path.is_dir():
        if file := weights_in(path):
            return file
        raise DiffitError(f"no weights file in folder {path}: it has no {WEIGHTS}; give a run folder that has one")
    names = [*own, *HUB_MODELS, *STABLE_DIFFUSION]
    near = f"{closest(name, names)} give" if closest(name, names) else "give"
    raise DiffitError(
        f"no weights file {name!r}: {path.absolute()} is no file or run folder, nor a name of pretrained weights; "
        f"{near} a path or one of {', '.join(names)}"
    )


def weights_in(folder: Path) -> Path | None:
    """The weights in a folder: of a run, of diffusers, or the only file of tensors that is there."""
    for name in (WEIGHTS, TRANSFORMER, TRANSFORMER.replace(".safetensors", ".bin")):
        if (folder / name).is_file():
            return folder / name
    only = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".pt", ".pth", ".bin")]
    return only[0] if len(only) == 1 and only[0].is_file() else None


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


def cached(model: HubModel) -> Path:
    """Where a file of published weights may be put."""
    folder = model.source if "/" in model.file else ""  # diffusers' files are all called alike
    return cache_folder() / "weights" / folder / model.file


def find_hub_file(model: HubModel) -> Path:
    """The local file of published weights; downloaded from the hub if it is not here."""
    name, path = model.experiment.name, cached(model)
    address = model.source if "://" in model.source else f"https://huggingface.co/{model.source}"
    remedy = f"get {model.file} from {address} and give it as file=, or put it at {path}"
    if path.is_file():
        return path
    check("://" not in model.source, f"{name} is not here, nor on a hub in its published form; {remedy}")
    return from_hub(model.source, model.file, remedy)


def is_here(name: str) -> bool:
    """Whether the file of one of `HUB_MODELS` is on this machine, so that nothing is downloaded."""
    model = HUB_MODELS[name]
    return cached(model).is_file() or ("://" not in model.source and in_hub_cache(model.source, model.file) is not None)


@cache
def tell_licence(text: str) -> None:
    """Say who published weights and under which licence; a second time nothing is said."""
    say(text)
