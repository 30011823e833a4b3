"""Fuzz: hypothesis changes sound files at random, the runner judges what comes of opening each, and failures shrink.

    python tests/hostile/fuzz.py [--minutes M] [READER ...]     (10 minutes for each reader, one after another)

What has to hold is what holds for every hostile file; the content of a changed file may be anything.
"""

import io
import json
import sys
import tarfile
import time
import zipfile
from contextlib import suppress
from functools import partial
from itertools import count

import archives
import arrays
import copies
import runner
import settings as options
import shards
import tables
import weights
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import images

HEAD = 2000  # bytes of a file's beginning, in which every second change lies
WORDS = (
    b"\xff" * 8,
    bytes(8),
    b"\x7f\xff\xff\xff",
    b"-1",
    b"9" * 30,
    b"1e999",
    b"NaN",
    b"null",
    b"[",
    b"{",
    b'"',
    b"../",
)


def picture(suffix):
    """A grey picture's bytes."""
    return images.encoded(images.even("RGB"), suffix)


def archive():
    """A zip of two pictures."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as inner:
        for name in ("a/1.png", "b/2.png"):
            inner.writestr(name, picture("png"))
    return file.getvalue()


def shard():
    """A tar of two samples with labels, of pax headers."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as inner:
        files = {"é.png": picture("png"), "é.cls": b"0", "b.png": picture("png"), "b.json": b'{"label": 1}'}
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            inner.addfile(info, io.BytesIO(content))
    return file.getvalue()


def opened(read):
    """A check: whatever is read is right."""

    def check(folder):
        read(folder)
        return "right"

    return check


def load_table(folder):
    """Load the images with their dataset.json."""
    from diffit_lib.data.datasets import load_data

    load_data(folder / "data", (8, 8), 3)


def read_npz(folder):
    """As `evaluate` does."""
    from diffit_lib.evaluation.image_files import read_npz

    read_npz(folder / "data.npz")


def load_weights(folder):
    """As `load` does."""
    from diffit_lib.checkpoints.weights import load_weights

    load_weights(folder / "w.safetensors")


def restore(folder):
    """As a notebook does; what it takes may be of any content."""
    with suppress(AssertionError):
        copies.restore(folder)


TABLE = json.dumps({"labels": tables.GOOD, "class_names": ["cat", "dog"]}).encode()
READERS = {  # name -> (a sound file, how it is written to a folder, how it is opened)
    **{
        s: (partial(picture, s), lambda folder, content, s=s: images.beside(folder, f"a.{s}", content), images.load)
        for s in images.FORMATS
    },
    "zip": (archive, archives.write, partial(images.load, sound=0)),
    "tar": (shard, shards.write, partial(images.load, sound=0)),
    "table": (lambda: TABLE, tables.with_table, opened(load_table)),
    "npz": (arrays.sound, arrays.plain, opened(read_npz)),
    "weights": (
        (weights.PRETRAINED / "digits.safetensors").read_bytes,
        lambda folder, content: (folder / "w.safetensors").write_bytes(content),
        opened(load_weights),
    ),
    "options": (
        lambda: (options.run() / "options.yaml").read_bytes(),
        lambda folder, content: (folder / "o.yaml").write_bytes(content),
        opened(options.read_config),
    ),
    "copy": (
        lambda: copies.archive(copies.FILES),
        lambda folder, content: copies.put(content, folder),
        opened(restore),
    ),
}


def changes(size):
    """Some changes: (place, bytes that go, bytes that come)."""
    place = st.one_of(st.integers(0, min(size, HEAD)), st.integers(0, size))
    come = st.one_of(st.binary(max_size=8), st.sampled_from(WORDS))
    return st.lists(st.tuples(place, st.integers(0, 16), come), min_size=1, max_size=6)


def changed(content, edits):
    """The file after these changes."""
    for place, gone, come in edits:
        content = content[:place] + come + content[place + gone :]
    return content


def fuzz(name, seconds, root):
    """Change and open for so long; how many were opened. An AssertionError names the least changes that fail."""
    make, write, check = READERS[name]
    content, opened, end = make(), 0, time.monotonic() + seconds

    def judge(edits):
        nonlocal opened
        if time.monotonic() < end:
            opened += 1
            case = runner.Case(name, partial(write, content=changed(content, edits)), check)
            outcome, text = runner.judge(case, root)
            assert outcome in ("refused", "skipped", "right"), f"{name}: {edits}: {outcome}: {text}"

    for number in count():
        look = given(changes(len(content)))(judge)
        look = settings(
            max_examples=200,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(look)
        seed(number)(look)()
        if time.monotonic() >= end:
            break
    return opened


def main(words):
    """Fuzz what the command line names; the exit status."""
    minutes = float(words.pop(words.index("--minutes") + 1)) if "--minutes" in words else 10.0
    failures = 0
    with runner.prepared() as root:
        for name in [word for word in words if not word.startswith("--")] or READERS:
            try:
                print(f"{name:<8} {fuzz(name, 60 * minutes, root):>7} changed files opened", flush=True)
            except AssertionError as error:
                failures += 1
                print(error, flush=True)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
