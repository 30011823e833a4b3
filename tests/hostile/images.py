"""Images of every mode of Pillow's, and of every broken kind."""

import os
import pickle
import struct
import zlib
from functools import partial
from io import BytesIO
from random import Random

import numpy as np
from PIL import Image, features
from runner import Bomb, Case

MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "I;16L",
    "I;16B",
]
FORMATS = {"png": "PNG", "tif": "TIFF", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "ppm": "PPM"}
FORMATS |= {"avif": "AVIF"} if features.check("avif") else {}
SHALLOW = ("jpg", "webp", "avif", "gif")  # of 8 bits: Pillow clips what is deeper
GREY = 102  # of the even pictures


def load(folder, expected=None, sound=2):
    """Load the folder, or the zip or tar in it: `sound` pictures beside the hostile one are there in any case."""
    from diffit_lib.data.datasets import load_data

    source = next(path for name in ("data.zip", "data.tar", "data") if (path := folder / name).exists())
    train = load_data(source, (8, 8), 3, skip_bad=True).train
    assert len(train) >= sound, f"only {len(train)} images"
    if len(train) == sound:
        return "skipped"
    if expected is not None:
        worst = np.abs(train.images[0].numpy().astype(int) - np.reshape(expected, (-1, 1, 1))).max()
        assert worst <= 6, f"off by {worst} of 255"
    return "right"


def beside(folder, name, content):
    """Write the hostile picture in front of two sound ones."""
    (folder / "data").mkdir()
    for number in (1, 2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "data" / f"sound{number}.png")
    (folder / "data" / name).write_bytes(content)


def encoded(picture, suffix, **options):
    """The bytes of a picture's file."""
    file = BytesIO()
    picture.save(file, FORMATS[suffix], **options)
    return file.getvalue()


def even(mode):
    """A picture of one grey in a mode."""
    if mode.startswith("I"):
        return Image.fromarray(np.full((16, 16), GREY * 257, np.int32 if mode == "I" else np.uint16))
    if mode == "F":
        return Image.new("F", (16, 16), 0.4)
    grey = Image.new("RGB" if mode not in ("La", "PA", "RGBa", "LA") else "RGBA", (16, 16), (GREY,) * 3)
    grey = grey.convert("LA") if mode in ("La", "PA") else grey
    return grey.convert("L").convert(mode) if mode in ("1", "L") else grey.convert(mode)


def chunk(name, content):
    """One part of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, depth=8, kind=0, data=b"", before=b"", after=b""):
    """A PNG of any header."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def zeros(size):
    """A zlib stream of so many zeros, rounded up to MiB, in a thousandth of the bytes, made in no time."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 15)
    head = pack.compress(bytes(2**20)) + pack.flush(zlib.Z_FULL_FLUSH)
    again = pack.compress(bytes(2**20)) + pack.flush(zlib.Z_FULL_FLUSH)
    return head + again * max(0, -(-size // 2**20) - 1) + b"\x03\x00" + struct.pack(">I", 1)


def tiff(tags, data, order="<"):
    """A TIFF of any tags, {number: (type, values)}, data at byte 8."""
    codes = {1: "B", 3: "H", 4: "I", 12: "d", 16: "Q"}
    content, rows = bytearray(data), b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{codes[kind]}", *values)
        if len(packed) > 4:
            place = 8 + len(content)
            content += packed
            packed = struct.pack(f"{order}I", place)
        rows += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    start = b"II*\0" if order == "<" else b"MM\0*"
    table = struct.pack(f"{order}H", len(tags)) + rows + bytes(4)
    return start + struct.pack(f"{order}I", 8 + len(content)) + bytes(content) + table


def grey_tiff(bits, values, photometric=1, sample=1, side=16, order="<", **more):
    """A grey TIFF of one level."""
    tags = {256: (3, [side]), 257: (3, [side]), 258: (3, [bits]), 259: (3, [1]), 262: (3, [photometric])}
    tags |= {273: (4, [8]), 277: (3, [1]), 278: (3, [side]), 279: (4, [len(values)]), 339: (3, [sample])}
    return tiff(tags | {int(k[1:]): v for k, v in more.items()}, values, order)


def deep():
    """TIFF of more than eight bits, with the grey that it shows; None: no known range."""
    level = round(GREY / 255 * 4095)
    packed = bytes([level >> 4, (level & 15) << 4 | level >> 8, level & 255]) * 128
    yield "12 bits", grey_tiff(12, packed), GREY
    for order, name in (("<", "little"), (">", "big")):
        sixteen = struct.pack(f"{order}H", GREY * 257) * 256
        yield f"16 bits, {name}", grey_tiff(16, sixteen, order=order), GREY
        yield f"16 bits signed, {name}", grey_tiff(16, sixteen, sample=2, order=order), None
    yield "16 bits, white is zero", grey_tiff(16, struct.pack("<H", 65535 - GREY * 257) * 256, photometric=0), GREY
    yield "8 bits, white is zero", grey_tiff(8, bytes([255 - GREY]) * 256, photometric=0), GREY
    yield "32 bits", grey_tiff(32, struct.pack("<I", GREY) * 256), None
    yield "32 bits, large", grey_tiff(32, struct.pack("<I", GREY << 24) * 256), None
    yield "64 bits", grey_tiff(64, struct.pack("<Q", GREY) * 256), None
    yield "float", grey_tiff(32, struct.pack("<f", 0.4) * 256, sample=3), None


def odd_tiffs():
    """TIFF that say what is not so."""
    plain = partial(grey_tiff, 8, bytes([GREY]) * 256)
    for name, tag in {
        "huge count": {"t700": (1, [0] * 70000)}, "unknown tags": {f"t{n}": (3, [1]) for n in range(65000, 65100)},
        "offset beyond the end": {"t273": (4, [2**31])}, "offsets without end": {"t273": (4, [8] * 5000)},
        "huge strip": {"t279": (4, [2**32 - 1])}, "many samples": {"t277": (3, [4000])}, "no rows": {"t278": (3, [0])},
        "odd compression": {"t259": (3, [34712])}, "lzw of junk": {"t259": (3, [5])}, "fax of junk": {"t259": (3, [4])},
        "deflate of junk": {"t259": (3, [8])}, "jpeg of junk": {"t259": (3, [7])},
        "zstd of junk": {"t259": (3, [50000])},
        "huge side": {"t256": (4, [2**31 - 1])}, "huge sides": {"t256": (4, [2**20]), "t257": (4, [2**20])},
        "orientation 9": {"t274": (3, [9])}, "tiles of nothing": {"t322": (3, [0]), "t323": (3, [0])},
    }.items():  # fmt: skip
        yield name, plain(**tag)
    looped = bytearray(plain())
    looped[-4:] = looped[4:8]  # the table of tags that comes next is itself
    yield "circle of tables", bytes(looped)


def bombs():
    """Pictures that are larger than their files, by much."""
    yield "13,300 x 13,300", png(13300, 13300, data=zeros(13301 * 13300))
    yield "13,300 x 13,300 in colour", png(13300, 13300, kind=2, data=zeros(13300 * 39901))
    yield "as large as allowed, with alpha", png(7900, 8000, kind=6, data=zeros(8000 * 31601))
    yield "as large as allowed, 16 bits", png(7900, 8000, 16, data=zeros(8000 * 15801))
    yield "60,000 x 60,000", png(60000, 60000, data=zeros(2**20))
    yield "2**31 wide", png(2**31 - 1, 1, data=zeros(2**20))
    yield "no side", png(0, 8)
    yield "4 GB behind a small picture", png(8, 8, data=zeros(2**32))
    yield "4 GB of text", png(8, 8, data=zlib.compress(bytes(72)), before=chunk(b"zTXt", b"a\0\0" + zeros(2**32)))
    yield "4 GB of profile", png(8, 8, data=zlib.compress(bytes(72)), before=chunk(b"iCCP", b"a\0\0" + zeros(2**32)))
    yield "a million parts", png(8, 8, data=zlib.compress(bytes(72)), before=chunk(b"prVt", b"") * 1_000_000)
    yield "a comment of 50 MB in a PPM", b"P6\n#" + b"x" * 50_000_000 + b"\n8 8 255\n" + bytes(192)
    yield "plain PPM of spaces", b"P3 8 8 255 " + b" " * 50_000_000
    yield "GIF of comments", encoded(even("P"), "gif")[:-1] + b"\x21\xfe" + (b"\xff" + b"x" * 255) * 100_000 + b"\0;"
    yield "BMP of 2**31 rows", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 8, 2**31 - 1, 1, 24, *[0] * 6)
    yield "JPEG of 65,500 x 65,500", encoded(even("L"), "jpg").replace(b"\0\x10\0\x10", b"\xff\xdc\xff\xdc", 1)


def strangers():
    """What is no picture, called so; some would start a program."""
    yield "EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    yield (
        "EPS for Windows",
        b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIII", 30, 99, 0, 0, 0, 0) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    )
    yield "PDF", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"
    yield "pickle", pickle.dumps(Bomb())
    yield "script", b"#!/bin/sh\ntouch started\n"
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "nothing", b""
    yield "XBM", b"#define a_width 8\n#define a_height 8\nstatic char a_bits[] = {0};\n"
    yield "FITS", b"SIMPLE  =                    T".ljust(2880)
    yield "zip", b"PK\x03\x04" + bytes(100)
    for kind in ("PSD", "ICO", "ICNS", "PCX", "TGA", "SGI", "DDS", "WMF", "FLI", "PALM", "SPIDER", "MPO", "DCX", "IM"):
        yield (
            kind,
            {"PSD": b"8BPS\0\1", "ICO": b"\0\0\1\0", "ICNS": b"icns", "WMF": b"\xd7\xcd\xc6\x9a"}.get(
                kind, kind.encode()
            )
            + bytes(200),
        )


def cases():
    """All hostile pictures."""
    for mode in MODES:
        for suffix in FORMATS:
            try:
                content = encoded(even(mode), suffix)
            except (OSError, ValueError, KeyError, struct.error):
                continue  # the format has no such mode
            clipped = mode.startswith("I;16") and suffix in SHALLOW
            expected = None if mode in ("1", "F", "I", "LAB") or clipped else [GREY]
            yield Case(f"mode {mode}, {suffix}", partial(beside, name=f"a.{suffix}", content=content),
                       partial(load, expected=expected))  # fmt: skip
    rng = Random(0)
    noise = Image.fromarray(np.frombuffer(rng.randbytes(48 * 48 * 3), np.uint8).reshape(48, 48, 3))
    for suffix in FORMATS:
        content = encoded(noise, suffix)
        for place in range(10):
            cut = content[: len(content) * place // 10 + place]
            yield Case(f"cut {suffix} {place}", partial(beside, name=f"a.{suffix}", content=cut), load)
        for number in range(16):
            flipped = bytearray(content)
            for _ in range(rng.choice([1, 3, 30])):
                flipped[rng.randrange(rng.choice([64, len(flipped)]))] = rng.randrange(256)
            yield Case(f"flipped {suffix} {number}", partial(beside, name=f"a.{suffix}", content=bytes(flipped)), load)
    for name, content, grey in deep():
        yield Case(f"TIFF of {name}", partial(beside, name="a.tif", content=content),
                   partial(load, expected=None if grey is None else [grey]) if grey else refused_alone)  # fmt: skip
    for name, content in odd_tiffs():
        yield Case(f"TIFF, {name}", partial(beside, name="a.tif", content=content), load)
    for name, content in strangers():
        for suffix in ("png", "tif"):
            yield Case(f"{name} as {suffix}", partial(beside, name=f"a.{suffix}", content=content), refused_alone)
    for name, content in bombs():
        suffix = "ppm" if "PPM" in name else name[:3].lower() if name[:3] in ("GIF", "BMP") else "png"
        yield Case(f"bomb: {name}", partial(beside, name=f"a.{suffix}", content=content), load)
    yield Case("PNG header before 8 GB of zeros", sparse, load)
    yield Case("four pictures of 59 million pixels", many_large, partial(load, sound=5))


def refused_alone(folder):
    """As `load`; the hostile picture must be left out."""
    outcome = load(folder)
    assert outcome == "skipped", "opened, though nobody knows what it shows"
    return outcome


def sparse(folder):
    """A file of 8 GB that takes no disk."""
    beside(folder, "a.png", png(16, 16)[:45])
    os.truncate(folder / "data" / "a.png", 2**33)


def many_large(folder):
    """Large pictures, which threads must not decode all at once."""
    beside(folder, "a.png", png(7700, 7700, kind=0, data=zeros(7701 * 7700)))
    for number in range(3):
        os.link(folder / "data" / "a.png", folder / "data" / f"b{number}.png")
