"""Image files below a folder or in a zip: their paths, the part and the class of each, and their bytes."""

import json
import os
import posixpath
import zipfile
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from diffit_lib.utils.errors import DiffitError, check

SUFFIXES: tuple[str, ...] = (".avif", ".bmp", ".gif", ".heic", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm")
SUFFIXES += (".tif", ".tiff", ".webp")
IGNORED = (".", "__MACOSX", "CelebAMask-HQ-mask")  # prefixes of folders: hidden, added by macOS, masks of faces
PARTS = {"train", "test", "val", "valid"}  # folders of these names are parts, not classes, if "train" is among them


class ImageFiles(NamedTuple):
    """What is known about image files without opening them."""

    paths: list[str]  # below the folder or in the zip, sorted
    parts: list[str]  # the PARTS folder of each; "" for all where there are none
    labels: list[int]  # all 0 where there are no classes
    class_names: list[str]  # empty where there are no classes, or no names for them


def find_images(source: Path) -> ImageFiles:
    """List all images below a folder or in a zip, except in folders that `IGNORED` names.

    Labels come from a `dataset.json` above all images, {"labels": [["a/b.png", 0], ...], "class_names": [...]}, if
    there is one. Otherwise the outermost folders that differ are the classes, in order of their names.
    """
    _archive.cache_clear()
    if source.is_dir():
        files = {Path(path).relative_to(source).as_posix() for path in _walk(source)}
    else:
        files = set(_archive(source, os.getpid()).namelist())
    visible = (path for path in files if not any(part.startswith(IGNORED) for part in path.split("/")))
    paths = sorted(path for path in visible if path.lower().endswith(SUFFIXES))
    check(bool(paths), f"{source} holds no images ({', '.join(SUFFIXES)}); give a folder or zip that does")
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    folders = [posixpath.relpath(path, common or ".").split("/")[:-1] for path in paths]
    outermost = {path[0] if path else "" for path in folders}
    parts = [""] * len(paths)
    if "train" in outermost and outermost <= PARTS:
        parts, folders = [path[0] for path in folders], [path[1:] for path in folders]
    labels = _labels_by_json(source, files, paths, common)
    if labels is None:
        labels = _labels_by_folder(source, paths, [path[0] if path else "" for path in folders], common)
    return ImageFiles(paths, parts, *labels)


@cache
def imagenet_names() -> dict[str, str]:
    """ImageNet's 1000 classes (ILSVRC 2012) in their usual order: WordNet id ("n01440764") -> name ("tench").

    The names are torchvision's.
    """
    text = resources.files("diffit_lib.data").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())


def read(source: Path, path: str) -> bytes:
    """The bytes of one file below a folder or in a zip."""
    return (source / path).read_bytes() if source.is_dir() else _archive(source, os.getpid()).read(path)


@lru_cache(maxsize=2)
def _archive(source: Path, process: int) -> zipfile.ZipFile:
    """A zip, opened once by every process: forked ones would share one position in the file."""
    try:
        return zipfile.ZipFile(source)
    except zipfile.BadZipFile:
        message = f"{source} is neither a folder nor a whole zip; give a folder or zip of images"
        raise DiffitError(message) from None


def _walk(folder: str | Path, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths of regular files; links are followed, but not in circles. Folders without read permission are left out."""
    real = os.path.realpath(folder)
    if real in above or not os.access(folder, os.R_OK | os.X_OK):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, (*above, real))
            elif entry.is_file() or not os.path.exists(entry.path):  # a broken link cannot be read, and that is said
                yield entry.path


def _labels_by_json(source: Path, files: set[str], paths: list[str], common: str) -> tuple[list[int], list[str]] | None:
    """Labels and class names from the innermost dataset.json above all images; None if there is none."""
    for folder in (PurePosixPath(common), *PurePosixPath(common).parents):
        name = str(folder / "dataset.json")
        if name not in files:
            continue
        try:
            content = json.loads(read(source, name))
            labels = {str(folder / path): label for path, label in content["labels"] or ()}
            class_names = [str(class_name) for class_name in content.get("class_names") or ()]
        except Exception as error:  # of another form, not text, or damaged in its zip
            form = '{"labels": [["a.png", 0], ...], "class_names": [...]}'
            raise DiffitError(f"{source}: {name} cannot be read ({error!r}); write it as {form}") from error
        missing = [path for path in paths if path not in labels]
        if labels and missing:
            raise DiffitError(
                f"{source}: {name} lacks labels for {len(missing)} images, as {missing[0]}; add or delete them"
            )
        return ([labels[path] for path in paths], class_names) if labels else ([0] * len(paths), [])
    return None


def _labels_by_folder(source: Path, paths: list[str], classes: list[str], common: str) -> tuple[list[int], list[str]]:
    """Labels and class names from the name of each path's class folder; "" for none."""
    if not any(classes):
        classes = [posixpath.basename(common)] * len(paths)
    if "" in classes:
        stray = paths[classes.index("")]
        check(not any(classes), f"{source}: {stray} lies beside the class folders; move it into one, or elsewhere")
        return [0] * len(paths), []
    names = sorted(set(classes))
    if all(map(str.isdecimal, names)):
        names.sort(key=int)  # stable: "01" comes before "1"
    numbers = {name: number for number, name in enumerate(names)}
    return [numbers[name] for name in classes], names
