"""Hostile copies of a run in Drive: of another run, damaged, encrypted, with members that lead out."""

import struct
import zipfile
from contextlib import redirect_stdout
from functools import partial
from io import BytesIO, StringIO
from random import Random

from runner import Case

FILES = {"options.yaml": b"preset: x\n", "log.txt": b"1\n", "last.ckpt": bytes(1000), "copy.txt": b"3"}


def restore(folder, expected=None):
    """Restore the run; what it says is one red line, and what it takes is `expected`."""
    from diffit_lib.notebook.drive import Backup
    from diffit_lib.utils.errors import DiffitError

    run, said = folder / "run", StringIO()
    with redirect_stdout(said):
        restored = Backup(run, folder / "drive").restore()
    taken = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for path in sorted(run.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    lines = [line.removeprefix("\033[31m").removesuffix("\033[0m") for line in said.getvalue().splitlines()]
    if restored:
        assert taken == (FILES if expected is None else expected), sorted(taken)
        return "right"
    assert set(taken) <= {"copy.txt", "last.ckpt"}, f"half of it: {sorted(taken)}"
    if expected is None and not lines:
        return "skipped"  # without a word: the runner finds that
    raise DiffitError("\n".join(lines) or "kept")


def archive(files, comment=b"3 run", **options):
    """A zip in memory."""
    data = BytesIO()
    with zipfile.ZipFile(data, "w", **options) as file:
        for name, content in files.items():
            file.writestr(name, content)
        file.comment = comment
    return data.getvalue()


def put(a, folder, b=None, own=None):
    """The run folder, with these files of its own, and its copies."""
    for name in ("run", "drive"):
        (folder / name).mkdir()
    for name, content in (own or {}).items():
        (folder / "run" / name).write_bytes(content)
    for turn, data in (("a", a), ("b", b)):
        if data is not None:
            (folder / "drive" / f"run-{turn}.zip").write_bytes(data)


def flagged(data, offset, value):
    """The archive with two bytes of its first member's headers changed, in both places."""
    data = bytearray(data)
    centre = data.index(b"PK\x01\x02")
    for place in (offset, centre + offset + 2):
        data[place : place + 2] = struct.pack("<H", value)
    return bytes(data)


def cases():
    """Every case, the same each time."""
    whole = archive(FILES)
    yield Case("sound", partial(put, whole), restore)
    yield Case("sound beside damaged", partial(put, whole, b=whole[:300]), restore)
    yield Case("older beside newer", partial(put, archive({"x": b"old"}, b"2 run"), b=whole), restore)
    for name in ("../../escaped.txt", "/abs.txt", "a/../../../b", "..", "../run-evil/x", "x" * 5000):
        yield Case(f"member {name[:12]!r}", partial(put, archive({name: b"x"} | FILES)), partial(restore, expected={}))
    for name in ("\\..\\..\\x", "a\0b", "C:\\x"):  # names of the run folder's own
        taken = FILES | {name.partition("\0")[0]: b"x"}
        yield Case(f"member {name!r}", partial(put, archive(FILES | {name: b"x"})), partial(restore, expected=taken))
    yield Case("of another run", partial(put, archive(FILES, b"9 other")), restore)
    for text in (
        b"",
        b"junk",
        b"-5 run",
        b"9" * 5000 + b" run",
        b"3",
        b"\xff\xfe",
        b"1e9 run",
        b"3 run\nx",
        b"\x1b[31m",
    ):
        sound = FILES if text == b"3" else None
        yield Case(f"comment {text[:12]!r}", partial(put, archive(FILES, text)), partial(restore, expected=sound))
    for text in (b"junk", b"-1", b"", b"\xff", b"9" * 5000, b"1e3", bytes(10**6)):
        yield Case(f"copy.txt {text[:12]!r}", partial(put, whole, own={"copy.txt": text}), restore)
    yield Case("deflated", partial(put, archive({"x": bytes(10**9)}, compression=zipfile.ZIP_DEFLATED)), restore)
    yield Case("lzma", partial(put, archive(FILES, compression=zipfile.ZIP_LZMA)), restore)
    yield Case("encrypted", partial(put, flagged(whole, 6, 1)), restore)
    yield Case("unknown method", partial(put, flagged(whole, 8, 99)), restore)
    yield Case("own checkpoint", partial(put, whole, own={"last.ckpt": b"x"}), restore)
    for name, data in {"empty": b"", "zeros": bytes(5000), "text": b"copy", "no members": archive({})}.items():
        yield Case(f"bytes {name}", partial(put, data), partial(restore, expected=None))
    for seed in range(10):
        place = Random(seed).randrange(len(whole))
        yield Case(f"cut {seed}", partial(put, whole[:place]), restore)
        changed = whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]
        yield Case(f"changed {seed}", partial(put, changed), restore)
