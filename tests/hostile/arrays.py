"""`.npz` files of other programs' arrays that lie about their shapes, hold objects, or grow."""

import io
import os
import pickle
import struct
import zipfile
from functools import partial
from random import Random

import numpy as np
from archives import archive, member, raw
from runner import Bomb, Case

PIXELS = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)


def measured(folder, labels=None):
    """Read as `evaluate` does; `labels` are the right ones, None if it has to be refused."""
    from diffit_lib.evaluation.image_files import read_npz

    images = read_npz(folder / "data.npz")
    assert labels is not None, f"taken as {tuple(images.images.shape)}, {images.labels.tolist()[:9]}"
    assert images.images.permute(0, 2, 3, 1).numpy().tobytes() == PIXELS.tobytes(), "other pixels"
    if labels[1:] != [0, 0, 0] and not images.class_names:
        return "skipped"  # the labels have another name now
    assert images.labels.tolist() == labels, f"{images.labels.tolist()}"
    return "right"


def npy(shape="(4, 2, 2, 3)", descr="'|u1'", data=None, fortran="False", version=(1, 0), length=None):
    """An array file of any header; its data are the pixels."""
    data = PIXELS.tobytes() if data is None else data
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + text + data


def write(folder, members):
    """Write data.npz of these."""
    archive(folder, members)
    (folder / "data.zip").rename(folder / "data.npz")


def plain(folder, content):
    """Write these bytes as data.npz."""
    (folder / "data.npz").write_bytes(content)


def cases():
    """All hostile arrays."""

    def one(name, *members, labels=None, method=0):
        files = [member(f"arr_{k}.npy", content, method=method) for k, content in enumerate(members)]
        return Case(f"{name}, method {method}", partial(write, members=files), partial(measured, labels=labels))

    for method in (0, 8):
        pixels = npy()
        yield one("sound", pixels, labels=[0] * 4, method=method)
        for version in ((2, 0), (3, 0)):
            yield one(f"version {version}", npy(version=version), labels=[0] * 4, method=method)
        for version in ((4, 0), (0, 0), (255, 255)):
            yield one(f"version {version}", npy(version=version), method=method)
        for shape in (
            "(5, 2, 2, 3)",
            "(3, 2, 2, 3)",
            "(-4, 2, 2, 3)",
            "(-1, 2, 2, 3)",
            "(True, 16, 1, 3)",
            "(4.0, 2, 2, 3)",
            "(10**9, 2, 2, 3)",
            "(1000000000, 2, 2, 3)",
            f"({10**30}, 1, 1, 1)",
            f"(0, {10**30}, 2, 3)",
            "()",
            "48",
            "None",
            "(48,)",
            "(4, 2, 2, 3" + ", 1" * 40 + ")",
            "(0, 2, 2, 3)",
            "'x'",
            "[4, 2, 2, 3]",
            "(" * 500 + "4" + ")" * 500,
            "(4, 2, 2, 3, *[1])",
            "__import__('os').system('echo x > x')",
        ):
            yield one(f"shape {shape[:24]}", npy(shape), method=method)
        for descr in (
            "'O'",
            "'|O'",
            "'<f4'",
            "'|b1'",
            "'|S1'",
            "'<U1'",
            "'|V0'",
            "'<M8[s]'",
            "[('a', 'O')]",
            "'x'",
            "7",
            "[('a', '|u1')]",
            "'<c8'",
            "'>u1'",
            "('|u1', (2,))",
        ):
            yield one(f"type {descr}", npy(descr=descr), method=method,
                      labels=[0] * 4 if descr == "'>u1'" else None)  # fmt: skip
        for number in (1, 7, 8):
            yield one(f"{number} short", npy(data=PIXELS.tobytes()[:-number]), method=method)
            yield one(f"{number} long", npy(data=PIXELS.tobytes() + bytes(number)), method=method)
        for length in (0, 1, 60000, 65535):
            yield one(f"header of {length}", npy(length=length), method=method)
        yield one("header of 4 GB", npy(version=(2, 0), length=2**32 - 1), method=method)
        yield one("pickle", npy("(1,)", "'|O'", pickle.dumps(Bomb())), method=method)
        yield one("bare pickle", pickle.dumps(Bomb()), method=method)
        yield one("nothing", b"", method=method)
        for kind, values, right in (
            ("<u8", [2**64 - 1, 0, 1, 2], None), ("<u8", [3, 0, 1, 2], [3, 0, 1, 2]), ("<i8", [-1, 0, 1, 2], None),
            ("<i8", [10**8, 0, 1, 2], None), ("<i8", [2**62, 0, 1, 2], None), ("<f4", [0, 1, 2, 3], None),
            ("|b1", [0, 1, 0, 1], None), ("<i8", [0, 1, 2], None), ("|u1", [255, 0, 1, 2], [255, 0, 1, 2]),
        ):  # fmt: skip
            data = np.array(values, kind).tobytes()
            yield one(
                f"labels {kind} {values}",
                pixels,
                npy(f"({len(values)},)", f"'{kind}'", data),
                labels=right,
                method=method,
            )
        yield one("labels that claim 10**8", pixels, npy("(100000000,)", "'<i8'", bytes(32)), method=method)
        yield one("labels that claim 10**12", pixels, npy("(1000000000000,)", "'<i8'", bytes(32)), method=method)
    for size in (2**28, 2**32 - 2**21):
        head = npy(f"({size // 3}, 1, 1, 3)", data=b"")
        stream = struct.pack("<BHH", 0, len(head), 65535 - len(head)) + head + raw(size // 3 * 3)
        bomb = member("arr_0.npy", stream, held=True, size=len(head) + size // 3 * 3, crc=0)
        yield Case(f"bomb of {size:,}", partial(write, members=[bomb]), measured)
        labels = member("arr_1.npy", stream, held=True, size=len(head) + size // 3 * 3, crc=0)
        yield Case(
            f"bomb of {size:,} as labels", partial(write, members=[member("arr_0.npy", npy()), labels]), measured
        )
    whole, rng = sound(), Random(0)
    for k in range(20):
        yield Case(f"cut {k}", partial(plain, content=whole[: len(whole) * k // 20]), measured)
    for k in range(60):
        changed = bytearray(whole)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        yield Case(f"flipped {k}", partial(plain, content=bytes(changed)), partial(measured, labels=[0, 1, 2, 3]))
    for name, content in {"text": b"hello", "zip of text": None, "png": b"\x89PNG\r\n\x1a\n"}.items():
        yield Case(name, partial(plain, content=content or zip_of_text()), measured)
    yield Case("fifo", lambda folder: os.mkfifo(folder / "data.npz"), measured)
    yield Case("folder", lambda folder: (folder / "data.npz").mkdir(), measured)
    for target in ("/dev/zero", "/proc/self/mem", "gone", "data.npz"):
        yield Case(
            f"link to {target}", partial(lambda folder, t: (folder / "data.npz").symlink_to(t), t=target), measured
        )


def sound():
    """Pixels and labels as numpy writes them."""
    file = io.BytesIO()
    np.savez_compressed(file, arr_0=PIXELS, arr_1=np.arange(4))
    return file.getvalue()


def zip_of_text():
    """A zip without arrays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as inner:
        inner.writestr("arr_0.npy", "hello")
        inner.writestr("readme.txt", "hello")
    return file.getvalue()
