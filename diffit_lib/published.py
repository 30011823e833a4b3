"""What is too large to come with the package: from Google Drive, checked, into the cache folder, or from the hub."""

from pathlib import Path
from textwrap import shorten

from diffit_lib.errors import DiffitError
from diffit_lib.files import cache_folder, replacing, sha256
from diffit_lib.pictures import say

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
