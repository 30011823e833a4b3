"""Hostile words on the command line: a refusal is one line and status 2; nothing is trained or drawn."""

from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO

from runner import Case

NUMBERS = ("0", "-1", "1e22", "10000000000000", "9" * 1500, "nan", "", "x", "[1", "\x1b[31m", "null")
FIELDS = ("width", "image_size", "num_blocks", "num_classes", "mlp_ratio", "batch_size", "images", "lr", "steps")
WORDS = (
    [], [""], ["\0"], ["trian"], ["info", ""], ["info", "/"], ["info", "\0"], ["info", "x" * 300], ["info", "\udcff"],
    ["train", ""], ["train", "--data", ""], ["train", "--data", "", "--dry_run"], ["train", "--data", "/"],
    ["train", "--run", ""], ["train", "digits", "--data", "", "--dry_run"], ["train", "--config", ""],
    ["train", "--config", "/"], ["train-vae", "x.yaml"], ["sample", ""], ["sample", "/"],
    ["sample", "digits", "--seeds", "0-99999999999"], ["sample", "digits", "--seeds", "5-1"],
    ["sample", "digits", "--guidance", "1,,2"], ["sample", "digits", "--classes", "99"],
    ["sample", "digits", "--grid", "0x9"],
    ["evaluate", "", "--images", "5"], ["encode", ""], ["pack", ""], ["pack", "/"], ["reconstruct", ""], ["export", ""],
    *([*words, "~nobody-here/x"] for words in (["info"], ["sample"], ["pack"], ["train", "--data"], ["evaluate"])),
    ["edit", "digits", "/dev/zero"], ["edit", "digits", "/"], ["export", "digits", "."],
    ["pack", "digits", "--out", "."], ["pack", "digits", "--resolution", "100000x100000"],
)  # fmt: skip


def run(words, folder):
    """The command; the line it was refused with."""
    from diffit_lib.cli.main import main
    from diffit_lib.utils.errors import DiffitError

    said = StringIO()
    with redirect_stderr(said), redirect_stdout(StringIO()):
        status = main(list(words))
    if status:
        lines = said.getvalue().splitlines()
        assert status == 2, status
        assert len(lines) == 1, lines
        assert lines[0].isprintable(), lines
        raise DiffitError(lines[0])
    return "right"


def cases():
    """Every case, the same each time."""
    for words in WORDS:
        yield Case(" ".join(words)[:60] or "nothing", lambda folder: None, partial(run, words))
    for field in FIELDS:
        for number in NUMBERS:
            words = ["train", "digits", "--dry_run", f"--{field}={number}"]
            yield Case(" ".join(words)[:60], lambda folder: None, partial(run, words))
