"""Shards of WebDataset, tar files, that are damaged, that lie about what they hold, or that point elsewhere."""

import gzip
import io
import tarfile
from functools import partial
from random import Random

from PIL import Image
from runner import Case

from images import encoded, even, load, png, zeros

KINDS = {"hard link": b"1", "link": b"2", "character device": b"3", "block device": b"4", "folder": b"5", "fifo": b"6"}


def header(name, size=0, kind=b"0", link="", **fields):
    """One header, whose fields may lie; `size` may be negative."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")


def blocks(content):
    """Content filled up to whole blocks of 512 bytes."""
    return content + bytes(-len(content) % 512)


def member(name, content, **fields):
    """A header and what it announces."""
    return header(name, len(content), **fields) + blocks(content)


def changed(block, place, content, checksum=True):
    """A header with other bytes at a place, and the checksum that makes them right."""
    block = bytearray(block)
    block[place : place + len(content)] = content
    if checksum:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def pax(records, size=None, kind=b"x"):
    """A header of pax records, bytes or {name: value}."""
    if isinstance(records, dict):
        records = b"".join(record(*pair) for pair in records.items())
    return header("pax", len(records) if size is None else size, kind) + blocks(records)


def record(name, value):
    """One pax record, which begins with its own length."""
    rest = f" {name}={value}\n".encode(errors="surrogateescape")
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def sound(number, label=None):
    """A picture and its label."""
    picture = member(f"sound{number}.png", encoded(Image.new("RGB", (8, 8), (number, 0, 0)), "png"))
    return picture + (b"" if label is None else member(f"sound{number}.cls", b"%d" % label))


def write(folder, content, name="data.tar"):
    """Write the shard."""
    (folder / name).write_bytes(content)


def labelled(folder, right=None):
    """Load; `right` are the labels, None if it has to be refused."""
    from diffit_lib.data.datasets import load_data

    labels = load_data(folder / "data.tar", (8, 8), 3).train.labels.tolist()
    assert labels == right, f"taken as {labels}"
    return "right"


def several(folder, parts):
    """Write a folder of shards."""
    (folder / "data").mkdir()
    for name, content in parts.items():
        write(folder / "data", content, name)


def cases():
    """All hostile shards; each holds two sound pictures at its end."""
    grey, end = encoded(even("RGB"), "png"), bytes(1024)
    good = member("a.png", grey)

    def one(name, *parts, tail=end, check=load):
        return Case(name, partial(write, content=b"".join([*parts, sound(1), sound(2), tail])), check)

    # names
    for name in ("/abs/a.png", "../a.png", "../../../../tmp/a.png", "a/../../b.png", "//a.png", "./a.png", "C:\\a.png",
                 "x" * 5000 + ".png", "1" * 5000 + "/a.png", "\x1b[31m.png", "two\nlines.png", " .png", ".png",
                 "a..png", "caf\udce9.png", "\u202e\u200b.png", "a.PNG", "a.b.png", "sound1", "/"):  # fmt: skip
        check = partial(load, sound=1) if name == "sound1" else load  # no loss: a file of that sample
        yield one(f"name {name[:20]!r}", member(name, grey), check=check)
    for name in ("sound1.png", "/sound1.png", "//sound1.png", "sound1.PNG", "sound1.jpg"):
        yield one(f"again {name!r}", member(name, grey), check=partial(load, sound=2))
    # what is no regular file
    for what, kind in KINDS.items():
        for link in ("/etc/passwd", "sound1.png", "../../secret.png", "a.png"):
            check = partial(load, sound=1) if what == "folder" else load  # no loss either
            yield one(f"{what} to {link}", header("a.png", 0, kind, link), check=check)
    for kind in (b"7", b"S", b"D", b"M", b"V", b"N", b"Z", b"\0", b"\xff"):
        yield one(f"kind {kind!r}", header("a.png", len(grey), kind) + blocks(grey))
    # sizes
    for size in (1, len(grey) - 1, len(grey) + 1, 10**6, 2**33, 2**63 - 1, 2**64, -1, -512, -(2**62)):
        yield one(f"says {size} bytes", header("a.png", size) + blocks(grey))
        yield one(f"pax says {size} bytes", pax({"size": size}), good)
    yield one("pax says 2**900 bytes", pax({"size": 2**900}), good)
    for text in (b"99999999999\0", b"7" * 12, b"abc", b"-1\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b" " * 12):
        yield one(f"size {text!r}", changed(good, 124, text))
    # pax and long names
    for name, records in {
        "nothing": b"", "no length": b"path=a.png\n", "length 0": b"0 path=a.png\n", "length 1": b"1 path=a.png\n",
        "length beyond": b"999999 path=a.png\n", "length of 5,000 digits": b"9" * 5000 + b" path=a.png\n",
        "digits alone": b"1" * 900_000, "no sign": b"12 pathapng\n", "no UTF-8": record("path", "caf\udce9.png"),
        "100,000 records": record("a", "b") * 100_000, "a path of 900,000 letters": record("path", "x" * 900_000),
        "an empty path": record("path", ""), "spaces": b" " * 900_000, "a NUL": record("path", "a\0b.png"),
        "sparse of no numbers": record("GNU.sparse.size", "x"), "sparse map": record("GNU.sparse.map", "0,9" * 10**5),
        "sparse 1.0": record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0"),
        "another charset": record("hdrcharset", "EBCDIC") + record("path", "b.png"),
        "an endless time": record("mtime", "1e999"), "a time of no number": record("mtime", "x" * 10**5),
    }.items():  # fmt: skip
        for kind in (b"x", b"g"):
            check = load if kind == b"x" else partial(load, sound=0)  # it may name all that follow alike
            yield one(f"pax {name}, {kind!r}", pax(records, kind=kind), good, check=check)
    for kind in (b"x", b"g", b"L", b"K"):
        yield one(f"{kind!r} of 2**40 bytes", header("a", 2**40, kind), good)
        yield one(f"{kind!r} of -512 bytes", header("a", -512, kind), good)
        yield one(f"{kind!r} and nothing after", good, tail=header("a", 512, kind) + bytes(512))
        yield one(f"{kind!r} 20,000 times", (header("a", 2, kind) + blocks(b"a\0")) * 20_000, good)
    table = changed(header("a.png", 512, b"S"), 482, b"\1")
    yield one("sparse without an end", table, tail=table)
    yield one("sparse of 10,000 blocks", table, (b"\1" * 512) * 10_000)
    # broken
    for place, content in ((148, b"000000\0 "), (257, b"xxxxx"), (0, b"\0"), (156, b"9")):
        yield one(f"header broken at {place}", good, changed(member("b.png", grey), place, content, checksum=False))
    for number, tail in enumerate((b"", bytes(512), bytes(511), end + good, b"x" * 512, end + b"x", good[:600])):
        yield one(f"tail {number}", good, tail=tail, check=partial(load, sound=2))
    yield one("two tars in one", good, end, check=partial(load, sound=1))
    # labels that lie
    for text in (
        b"",
        b"cat",
        b"-1",
        b"2",
        b"1" * 5000,
        b"0x1",
        b"1.0",
        b"\xff",
        b"0" * 10**6,
        b" " * 1_100_000,
        b"1e400",
    ):
        content = member("a.png", grey) + member("a.cls", text) + sound(1, 0) + sound(2, 1) + end
        right = {b"0" * 10**6: [0, 0, 1], b"2": [2, 0, 1]}.get(text)
        yield Case(f"cls {text[:9]!r}, {len(text)}", partial(write, content=content), partial(labelled, right=right))
    for text in (b"", b"{", b"[]", b"7", b"[" * 10**5, b'{"label": ' * 10**5, b'{"label": []}', b'{"label": 1e400}',
                 b'{"label": NaN}', b'{"label": "0"}', b'{"label": -1}', b'{"label": 99}', b"\xff\xfe", b"null",
                 b'{"label": ' + b"9" * 5000 + b"}", b'{"cls": 0.5}', b'{"label": null}'):  # fmt: skip
        content = member("a.png", grey) + member("a.json", text) + sound(1, 0) + sound(2, 1) + end
        yield Case(f"json {text[:15]!r}, {len(text)}", partial(write, content=content), labelled)
    for cls, text, right in ((b"1", b'{"label": 0}', None), (b"0", b'{"label": 0}', [0, 0, 1])):
        content = good + member("a.cls", cls) + member("a.json", text) + sound(1, 0) + sound(2, 1) + end
        yield Case(f"cls {cls!r}, json {text!r}", partial(write, content=content), partial(labelled, right=right))
    content = good + member("a.cls", b"1") + member("a.cls", b"0") + sound(1, 0) + sound(2, 1) + end
    yield Case("cls twice, the first is taken", partial(write, content=content), partial(labelled, right=[1, 0, 1]))
    yield Case("cls that is a link", partial(write, content=good + header("a.cls", 0, b"2", "sound1.cls") + sound(1, 0)
                                             + sound(2, 1) + end), labelled)  # fmt: skip
    # bombs
    picture = png(13300, 13300, data=zeros(13301 * 13300))
    yield one("16 pictures of 13,300 x 13,300", *(member(f"b{k}.png", picture) for k in range(16)))
    yield one("a picture of 260 MB", member("a.png", bytes(260_000_000)))
    yield one("20,000 empty members", b"".join(header(f"{k}.png") for k in range(20_000)), check=partial(load, sound=2))
    bomb = gzip.compress(bytes(10**6)) * 4000
    for name in ("data.tar", "data.tar.gz", "data.tgz"):
        yield Case(f"4 GB of gzip as {name}", partial(write, content=bomb, name=name), partial(opened, name=name))
    yield Case("a tar in gzip as data.tar", partial(write, content=gzip.compress(good + end)), load)
    # several
    parts = {"train-0.tar": sound(1) + end, "train-1.tar": sound(2) + end}
    yield Case("the same picture in two shards", partial(several, parts={k: good + v for k, v in parts.items()}), load)
    yield Case("one of two shards is broken", partial(several, parts=parts | {"train-1.tar": b"x" * 2048}), load)
    yield Case("one of two shards is empty", partial(several, parts=parts | {"train-2.tar": b""}), load)
    # at random
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for k in range(3):
            info = tarfile.TarInfo(f"{k}{'é' * k}.png")
            info.size = len(grey)
            archive.addfile(info, io.BytesIO(grey))
    whole, rng = file.getvalue(), Random(0)
    for k in range(20):
        yield Case(f"cut {k}", partial(write, content=whole[: 4096 * k // 20 // 512 * 512]), partial(load, sound=3))
    for k in range(60):
        broken = bytearray(whole)
        for _ in range(rng.choice([1, 2, 20])):
            broken[rng.randrange(4096)] = rng.randrange(256)
        yield Case(f"flipped {k}", partial(write, content=bytes(broken)), partial(load, sound=0))


def opened(folder, name):
    """Load a file that is none."""
    from diffit_lib.data.datasets import load_data

    load_data(folder / name, (8, 8), 3)
    raise AssertionError("taken as data")
