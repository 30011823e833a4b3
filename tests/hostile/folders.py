"""Folders that are no trees of regular files."""

import os
import socket
from functools import partial
from pathlib import Path

from PIL import Image
from runner import Case

from images import beside, encoded, even, load

SPECIAL = {
    "fifo": lambda path: os.mkfifo(path),
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "link to /dev/stdin": lambda path: path.symlink_to("/dev/stdin"),
    "link to /proc/self/mem": lambda path: path.symlink_to("/proc/self/mem"),
    "link to /proc/kcore": lambda path: path.symlink_to("/proc/kcore"),
    "broken link": lambda path: path.symlink_to("gone.png"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link of 300 letters": lambda path: path.symlink_to("x" * 255 + "/" + "y" * 45),
    "folder": lambda path: path.mkdir(),
    "socket": lambda path: bind(path),
    "link to /": lambda path: path.symlink_to("/"),
    "link to the folder above": lambda path: path.symlink_to(".."),
    "link to the folder": lambda path: path.symlink_to("."),
    "link to a program": lambda path: path.symlink_to("/bin/sh"),
}
NAMES = [
    "caf\udce9",
    "red\x1b[31m",
    "two\nlines",
    "tab\t",
    " ",
    "-rf",
    "$(touch x)",
    "x" * 240,
    "\u202e\u200b",
    "~",
    "%s",
    "*",
]


def bind(path):
    """A socket, which is bound by its short name."""
    os.chdir(path.parent)
    socket.socket(socket.AF_UNIX).bind(path.name)


def special(folder, name, make, classes):
    """Class folders and this beside or in them."""
    beside(folder, "a.png", encoded(even("RGB"), "png"))
    if classes:
        for part in ("cats", "dogs"):
            (folder / "data" / part).mkdir()
        for number, path in enumerate(sorted((folder / "data").glob("*.png"))):
            path.rename(path.parent / ("cats", "dogs")[number % 2] / path.name)
    make(folder / "data" / ("cats" if classes else ".") / name)


def same(folder, sound=3):
    """No picture is lost or taken twice: all three are sound."""
    from diffit_lib.data.datasets import load_data

    count = len(load_data(folder / "data", (8, 8), 3, skip_bad=True).train)
    assert count == sound, f"{count} images in place of {sound}"
    return "right"


def odd_names(folder, name):
    """A class, an image and a data set of an odd name."""
    (folder / "data" / name).mkdir(parents=True)
    (folder / "data" / "plain").mkdir()
    for path in (f"{name}/{name[:200]}.png", "plain/a.png"):
        Image.new("RGB", (8, 8)).save(open(folder / "data" / path, "wb"), "PNG")  # noqa: SIM115


def told(folder):
    """Load, and print what `info` would."""
    from diffit_lib.cli.estimate import describe_images
    from diffit_lib.data.datasets import load_data
    from diffit_lib.data.preprocess import look
    from diffit_lib.data.sources import list_images

    load_data(folder / "data", (8, 8), 3)
    parts = list_images(folder / "data")
    print("\n".join(describe_images(look(*parts.distinct), parts, [0, 1])))
    return "right"


def nested(folder):
    """An image 400 folders deep; more, and the runner itself could not delete them."""
    beside(folder, "a.png", encoded(even("RGB"), "png"))
    path = folder / "data" / Path(*["d"] * 400)
    path.mkdir(parents=True)
    (folder / "data" / "sound1.png").rename(path / "sound1.png")


def twice(folder):
    """The test part is a link to the train part."""
    beside(folder, "a.png", encoded(even("RGB"), "png"))
    for part in ("train", "val"):
        (folder / "data" / part).mkdir()
        (folder / "data" / {"train": "a.png", "val": "sound1.png"}[part]).rename(folder / "data" / part / "a.png")
    (folder / "data" / "sound2.png").rename(folder / "data" / "train" / "b.png")
    (folder / "data" / "test").symlink_to("train")


def two_parts(folder):
    """Two and one."""
    from diffit_lib.data.datasets import load_data

    split = load_data(folder / "data", (8, 8), 3)
    assert (len(split.train), len(split.test)) == (2, 1), f"{len(split.train)} and {len(split.test)} images"
    return "right"


def cases():
    """All hostile folders."""
    for what, make in SPECIAL.items():
        for name in ("x.png", "dataset.json", "x"):
            for classes in (False, True):
                broken = name == "x.png" and (what.startswith("broken") or "letters" in what or "itself" in what)
                check = load if broken or "program" in what or "mem" in what or "kcore" in what else same
                yield Case(
                    f"{what} as {name}, {classes}", partial(special, name=name, make=make, classes=classes), check
                )
    for number, name in enumerate(NAMES):
        yield Case(f"name {number}", partial(odd_names, name=name), told)
    yield Case("400 folders deep", nested, same)
    yield Case("test is a link to train", twice, two_parts)
