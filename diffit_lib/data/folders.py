"""Image files below a folder or in a zip: their paths, to which part and class each belongs, and their bytes."""

import json
import os
import posixpath
import zipfile
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from diffit_lib.utils.errors import DiffitError

SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
PASSED_OVER = (".", "__MACOSX", "CelebAMask-HQ-mask")  # how such folders begin: hidden, added by macOS, masks of faces
PARTS = {"train", "test", "val", "valid"}  # folders of these names are parts, not classes, if "train" is among them


class ImageFiles(NamedTuple):
    """What is known of image files without opening them."""

    paths: list[str]  # below the folder or in the zip, sorted
    parts: list[str]  # the PARTS folder each lies in; "" for all where there are none
    labels: list[int]  # all 0 where there are no classes
    class_names: list[str]  # empty where there are no classes, or no names for them


def find_images(source: Path) -> ImageFiles:
    """All images below a folder or in a zip, but for those in folders of `PASSED_OVER`.

    Labels are those of a `dataset.json` above all images, {"labels": [["a/b.png", 0], ...], "class_names": [...]}, if
    there is one. Else the outermost folders that differ are the classes, in order of their names.
    """
    if not source.is_dir() and not _is_whole_zip(source):
        raise DiffitError(f"{source} is neither a folder nor a whole zip; give a folder or zip of images")
    _archive.cache_clear()
    files = _list(source)
    visible = (path for path in files if not any(p.startswith(PASSED_OVER) for p in path.split("/")))
    paths = sorted(path for path in visible if path.lower().endswith(SUFFIXES))
    if not paths:
        raise DiffitError(f"{source} holds no images ({', '.join(SUFFIXES)}); give a folder or zip that does")
    common = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    folders = [posixpath.relpath(path, common or ".").split("/")[:-1] for path in paths]
    outermost = {path[0] if path else "" for path in folders}
    parts = [""] * len(paths)
    if "train" in outermost and outermost <= PARTS:
        parts, folders = [path[0] for path in folders], [path[1:] for path in folders]
    labels = _labels_by_json(source, set(files), paths, common)
    if labels is None:
        labels = _labels_by_folder(source, paths, [path[0] if path else "" for path in folders], common)
    return ImageFiles(paths, parts, *labels)


@cache
def imagenet_names() -> dict[str, str]:
    """ImageNet's 1000 classes in their usual order: WordNet id ("n01440764") -> name ("tench").

    The classes of ILSVRC 2012, with torchvision's names.
    """
    text = resources.files("diffit_lib.data").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())


def replace_wordnet_ids(names: Sequence[str]) -> tuple[str, ...]:
    """Class names, with ImageNet's names in place of WordNet ids."""
    return tuple(imagenet_names().get(name, name) for name in names)


def read(source: Path, path: str) -> bytes:
    """The bytes of one file below a folder or in a zip."""
    return (source / path).read_bytes() if source.is_dir() else _archive(source, os.getpid()).read(path)


def _is_whole_zip(source: Path) -> bool:
    """Whether its table of contents, which stands at the end, can be read."""
    try:
        zipfile.ZipFile(source).close()
    except zipfile.BadZipFile:
        return False
    return True


@lru_cache(maxsize=2)
def _archive(source: Path, process: int) -> zipfile.ZipFile:
    """A zip, opened once by every process: forked ones would share one position in the file."""
    return zipfile.ZipFile(source)


def _list(source: Path) -> list[str]:
    """Paths of all files."""
    if not source.is_dir():
        return _archive(source, os.getpid()).namelist()
    walk = os.walk(source, followlinks=True)
    return [(Path(folder).relative_to(source) / name).as_posix() for folder, _, names in walk for name in names]


def _labels_by_json(source: Path, files: set[str], paths: list[str], common: str) -> tuple[list[int], list[str]] | None:
    """Labels and class names by the innermost dataset.json above all images; None if there is none."""
    for folder in (PurePosixPath(common), *PurePosixPath(common).parents):
        name = str(folder / "dataset.json")
        if name not in files:
            continue
        try:
            content = json.loads(read(source, name))
            labels = {str(folder / path): label for path, label in content["labels"] or ()}
            class_names = [str(class_name) for class_name in content.get("class_names") or ()]
        except Exception as error:  # of another form, no text, or damaged in its zip
            form = '{"labels": [["a.png", 0], ...], "class_names": [...]}'
            raise DiffitError(f"{source}: {name} cannot be read ({error!r}); write it as {form}") from error
        bare = [path for path in paths if path not in labels]
        if labels and bare:
            raise DiffitError(f"{source}: {name} lacks labels for {len(bare)} images, as {bare[0]}; add or delete them")
        return ([labels[path] for path in paths], class_names) if labels else ([0] * len(paths), [])
    return None


def _labels_by_folder(source: Path, paths: list[str], classes: list[str], common: str) -> tuple[list[int], list[str]]:
    """Labels and class names by the name of each path's class folder; "" for none."""
    if not any(classes):
        classes = [posixpath.basename(common)] * len(paths)
    if "" in classes:
        stray = paths[classes.index("")]
        if any(classes):
            raise DiffitError(f"{source}: {stray} lies beside the class folders; move it into one, or elsewhere")
        return [0] * len(paths), []
    names = set(classes)
    ordered = sorted(names, key=int) if all(map(str.isdecimal, names)) else sorted(names)
    numbers = {name: number for number, name in enumerate(ordered)}
    return [numbers[name] for name in classes], ordered
