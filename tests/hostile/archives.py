"""Zips that are damaged, that lie about what they hold, or that hold far more than they weigh."""

import struct
import zipfile
import zlib
from functools import partial
from io import BytesIO
from random import Random

from PIL import Image
from runner import Case

from images import encoded, even, load, png, zeros


def member(name, content, *, method=8, flags=0, size=None, held=None, crc=None, extra=b""):
    """(local part, central part without its offset) of one file; every field may lie."""
    name = name.encode() if isinstance(name, str) else name
    data = zlib.compress(content)[2:-4] if method == 8 else content
    data = content if held is not None else data
    crc, size = zlib.crc32(content) if crc is None else crc, len(content) if size is None else size
    fields = struct.pack("<HHHHHIIIHH", 20, flags, method, 0, 33, crc, len(data), size, len(name), len(extra))
    local = b"PK\x03\x04" + fields + name + extra + data
    return local, (b"PK\x01\x02\x14\x03" + fields + struct.pack("<HHHI", 0, 0, 0, 0o644 << 16), name + extra)


def archive(folder, members, *, places=None, comment=b""):
    """Write data.zip of these members."""
    body, table = b"", b""
    for number, (local, (before, after)) in enumerate(members):
        place = len(body) if places is None else places[number]
        body, table = body + local, table + before + struct.pack("<I", place) + after
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(table), len(body), len(comment))
    (folder / "data.zip").write_bytes(body + table + b"PK\x05\x06" + end + comment)


def raw(size):
    """A deflate stream of so many zeros without zlib's frame."""
    return zeros(size)[2:-4]


def cases():
    """All hostile zips; each holds two sound pictures."""
    grey = encoded(even("RGB"), "png")
    sound = [member(f"sound{k}.png", encoded(Image.new("RGB", (8, 8), (k, 0, 0)), "png")) for k in (1, 2)]

    def one(name, *members, check=load, **options):
        return Case(name, partial(archive, members=[*members, *sound], **options), check)

    for name in (
        "/abs/a.png",
        "./a.png",
        "../a.png",
        "../../../../tmp/a.png",
        "a/../../b.png",
        "//a.png",
        "C:\\a.png",
        "a\\b.png",
        "a/./b.png",
        "x" * 5000 + ".png",
        "1" * 5000 + "/a.png",
        "\x1b[31m.png",
        " .png",
        "a.png/",
    ):
        check = partial(load, sound=1) if name.endswith("/") else load  # a folder of two sound pictures and no more
        yield one(f"name {name[:20]!r}", member(name, grey), check=check)
    for name in (b"caf\xe9.png", b"\xff\xfe.png", b"a\0b.png"):
        for flags in (0, 0x800):
            check = partial(load, sound=1) if b"\0" in name else load  # its name ends there: no picture
            yield one(f"name {name!r}, flags {flags}", member(name, grey, flags=flags), check=check)
    for method in (1, 6, 9, 12, 14, 93, 95, 97, 98, 99, 65535):
        yield one(f"method {method}", member("a.png", grey, method=method))
    for flags in (1, 8, 0x20, 0x40, 0x2041):
        yield one(f"flags {flags:#x}", member("a.png", grey, flags=flags))
    for size in (0, 1, len(grey) - 1, len(grey) + 1, 10**6, 2**31, 2**32 - 2):
        yield one(f"says {size} bytes", member("a.png", grey, size=size))
        yield one(f"stored, says {size} bytes", member("a.png", grey, size=size, method=0))
    yield one("wrong checksum", member("a.png", grey, crc=1))
    yield one("twice", member("a.png", b"x"), member("a.png", grey))
    yield one("twice by dots", member("a.png", b"x"), member("./a.png", grey))
    yield one("a link", member("a.png", b"/etc/passwd"))
    for name, size in (("250 MB", 250 * 2**20), ("4 GB", 2**32 - 2**20)):
        for file in ("a.png", "dataset.json"):
            bomb = member(file, raw(size), held=True, size=size, crc=0)
            yield one(f"bomb of {name} as {file}", bomb)
            yield one(f"bomb of {name} as {file} that says 100 bytes", member(file, raw(size), held=True, size=100))
    picture = png(13300, 13300, data=zeros(13301 * 13300))
    yield one("many pictures of 13,300 x 13,300", *(member(f"b{k}.png", picture, method=0) for k in range(16)))
    yield one("all of one place", member("a.png", grey), places=[0, 0, 0], check=partial(load, sound=0))
    yield one("places beyond the end", member("a.png", grey), places=[2**31, 2**31, 2**31])
    yield one("extra field of zip64", member("a.png", grey, size=2**32 - 1, extra=struct.pack("<HHQ", 1, 8, 2**60)))
    yield one("broken extra field", member("a.png", grey, extra=struct.pack("<HH", 1, 60000)))
    yield one("comment", member("a.png", grey), comment=b"PK\x05\x06" * 100)
    yield Case("nothing inside", partial(archive, members=[]), load)
    yield Case("100,000 empty names", partial(archive, members=[member(f"{k}", b"") for k in range(10_000)]), load)
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as inner:
        for k in range(3):
            inner.writestr(f"{'ab'[k % 2]}/{k}.png", grey)
    whole, rng = file.getvalue(), Random(0)
    for k in range(20):
        yield Case(f"cut {k}", partial(write, content=whole[: len(whole) * k // 20]), load)
    for k in range(60):
        changed = bytearray(whole)
        for _ in range(rng.choice([1, 2, 20])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        yield Case(f"flipped {k}", partial(write, content=bytes(changed)), partial(load, sound=0))


def write(folder, content):
    """Write data.zip."""
    (folder / "data.zip").write_bytes(content)
