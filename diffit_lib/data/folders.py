"""Image files below a folder or in a zip: their paths, the part and the class of each, and their bytes.

Nothing here takes more memory than a file says it holds, and no file may say that it holds more than `MOST_BYTES`.
"""

import json
import os
import posixpath
import stat
import zipfile
from collections import deque
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath
from textwrap import shorten
from typing import NamedTuple

from diffit_lib.config.presets import OPTIONS
from diffit_lib.utils.errors import DiffitError, check, printable
from diffit_lib.utils.logging import say

SUFFIXES: tuple[str, ...] = (".avif", ".bmp", ".gif", ".heic", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm")
SUFFIXES += (".tif", ".tiff", ".webp")
IGNORED = (".", "__MACOSX", "CelebAMask-HQ-mask")  # prefixes of names: hidden, added by macOS, masks of faces
PARTS = {"train", "test", "val", "valid"}  # folders of these names are parts, not classes, if "train" is among them
MOST_BYTES = 256_000_000  # of one image: four for each of `preprocess.MOST_PIXELS`
MOST_JSON = 40_000_000, 200  # bytes of a dataset.json, and more for each image: parsed, it may take 20 times that


class ImageFiles(NamedTuple):
    """What is known about image files without opening them."""

    paths: list[str]  # below the folder or in the zip, sorted
    parts: list[str]  # the PARTS folder of each; "" for all where there are none
    labels: list[int]  # all 0 where there are no classes
    class_names: list[str]  # empty where there are no classes, or no names for them


def find_images(source: Path) -> ImageFiles:
    """List all images below a folder or in a zip, except in folders that `IGNORED` names.

    Labels come from a `dataset.json` above all images, {"labels": [["a/b.png", 0], ...], "class_names": [...]}, if
    there is one. Otherwise the outermost folders that differ are the classes, in order of their names. A file that
    links or a zip name twice is taken once; what is no regular file is left out; both are said.
    """
    _archive.cache_clear()
    if source.is_dir():
        found, left = _walk(source)
        files = {Path(path).relative_to(source).as_posix() for path in found}
    else:
        archive, members = _archive(source, os.getpid())
        files, taken = set(members), set(map(id, members.values()))
        left = [info.filename for info in archive.infolist() if not info.is_dir() and id(info) not in taken]
    if left:
        why = "there twice, no regular file, not allowed, or the folder of a run"
        say(f"{source}: left out {len(left)} paths ({why}), as {left[0]}")
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
    numbers, names = labels
    return ImageFiles(paths, parts, numbers, [imagenet_names().get(name, printable(name)) for name in names])


@cache
def imagenet_names() -> dict[str, str]:
    """ImageNet's 1000 classes in their usual order: WordNet id ("n01440764") -> torchvision's name ("tench")."""
    text = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())


def file_state(source: Path, path: str) -> tuple[int, str]:
    """The bytes of one file below a folder or in a zip, and what tells it from any other; its content is not read."""
    if source.is_dir():
        return version_of(source / path)
    member = _archive(source, os.getpid())[1][path]
    return member.file_size, f"{member.CRC} {version_of(source)[1]}"


def version_of(path: Path) -> tuple[int, str]:
    """The bytes of a file, and what tells it from any other and from an earlier state; a time alone can be set."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a FIFO would be waited for, a device has no end
        raise ValueError("it is no regular file")
    times = f"{found.st_mtime_ns} {found.st_ctime_ns}"
    return found.st_size, f"{os.path.abspath(path)!r} {found.st_dev} {found.st_ino} {times}"


def read(source: Path, path: str, most: float = MOST_BYTES) -> bytes:
    """The bytes of one file below a folder or in a zip; a ValueError where there are more than `most`."""
    size, _ = file_state(source, path)
    check_bytes(size, most)
    if source.is_dir():
        with open(source / path, "rb") as file:
            return file.read(size)
    archive, members = _archive(source, os.getpid())
    if members[path].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("its compression in the zip is none of the usual")
    with archive.open(members[path]) as file:
        return file.read(size)  # `archive.read` decompresses what exceeds the size too


def check_bytes(size: int, most: float = MOST_BYTES) -> None:
    """Raise a ValueError for more bytes than `most`."""
    if size > most:
        raise ValueError(f"{size / 1e6:,.0f} MB are more than {most / 1e6:,.0f}")


@lru_cache(maxsize=2)
def _archive(source: Path, process: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """A zip, opened once by every process (forked ones would share one position in it), and its files by their paths.

    Of several files of one path the last counts; "./" and a leading "/" are dropped.
    """
    try:
        archive = zipfile.ZipFile(source) if source.is_file() else None  # a FIFO would be waited for
    except UnicodeDecodeError:
        raise DiffitError(f"{source} holds names that are no UTF-8; give a zip that was written anew") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        archive = None
    if archive is None:
        raise DiffitError(f"{source} is neither a folder nor a whole zip; give a folder or zip of images")
    files = [info for info in archive.infolist() if not info.is_dir()]
    return archive, {posixpath.normpath(f"/{info.filename}").lstrip("/"): info for info in files}


def _walk(top: Path) -> tuple[list[str], list[str]]:
    """Paths of the regular files below a folder, and paths that are left out.

    Links are followed last and once, and not to the folder itself or one above it. A broken link counts as a file,
    which cannot be read, and that is said.
    """
    root = os.path.realpath(top)
    check(root != os.path.sep, f"{top} is all of this machine; give a folder of images")
    files, left, seen = list[str](), list[str](), set[str]()
    waiting: list[tuple[Path | os.DirEntry[str], str]] = [(top, root)]
    links = deque[tuple[Path, str]]()
    while waiting or links:
        entry, real = waiting.pop() if waiting else links.popleft()
        fresh = real not in seen and (entry is top or os.path.commonpath([root, real]) != real)
        seen.add(real)
        if fresh and entry.is_dir():
            try:
                inside = sorted(os.scandir(entry), key=lambda e: e.name)
            except OSError:  # no permission, or nested too deep
                left.append(os.fspath(entry))
                continue
            if entry is not top and any(e.name == OPTIONS for e in inside):  # its pictures are no data
                left.append(os.fspath(entry))
                continue
            for e in (e for e in inside if not e.name.startswith(IGNORED)):
                if e.is_symlink():
                    links.append((Path(e.path), os.path.realpath(e.path)))
                else:
                    waiting.append((e, f"{real}/{e.name}"))
        elif fresh and (entry.is_file() or not os.path.exists(entry)):
            files.append(os.fspath(entry))
        else:
            left.append(os.fspath(entry))
    return files, left


def _labels_by_json(source: Path, files: set[str], paths: list[str], common: str) -> tuple[list[int], list[str]] | None:
    """Labels and class names from the innermost dataset.json above all images; None if there is none."""
    above = (PurePosixPath(common), *PurePosixPath(common).parents)
    name = next((name for name in (str(folder / "dataset.json") for folder in above) if name in files), None)
    if name is None:
        return None
    try:
        content = json.loads(read(source, name, MOST_JSON[0] + MOST_JSON[1] * len(paths)))
        table = [(str(PurePosixPath(name).parent / path), label) for path, label in content["labels"] or ()]
        class_names = content.get("class_names") or []
        if not isinstance(class_names, list) or not all(isinstance(name, str | int) for name in class_names):
            raise TypeError("class_names is no list of words")
    except Exception as error:  # of another form, not text, or damaged in its zip
        form, why = '{"labels": [["a.png", 0], ...], "class_names": [...]}', shorten(repr(error), 200)
        raise DiffitError(f"{source}: {name} cannot be read ({why}); write it as {form}") from error
    labels = dict(table)
    if not labels:
        return [0] * len(paths), []
    for path, label in table:
        check(labels[path] == label, f"{source}: {name} gives {path} the labels {label} and {labels[path]}; keep one")
    if missing := [path for path in paths if path not in labels]:
        few = f"{len(missing)} images, as {missing[0]}"
        raise DiffitError(f"{source}: {name} lacks labels for {few}; add or delete them")
    return [labels[path] for path in paths], list(map(str, class_names))


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
        names.sort(key=lambda name: (len(name.lstrip("0")), name.lstrip("0")))  # stable: "01" comes before "1"
    numbers = {name: number for number, name in enumerate(names)}
    return [numbers[name] for name in classes], names
