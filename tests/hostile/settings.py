"""Hostile options and checkpoints: files that `--config`, `--run` and a resumed training read."""

import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import mkdtemp

import torch
from runner import Bomb, Case

TINY = "digits --width=8 --channel-mult=1,2 --num-heads=2 --max-steps=2 --no-report".split()  # noqa: SIM905
NESTED = "a: &a [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1 if n else ''}, *a{n - 1 if n else ''}]\n" for n in range(40)
)
NUMBERS = (
    "-1",
    "0",
    "1e400",
    "1e22",
    "9" * 5000,
    ".nan",
    ".inf",
    "null",
    "[1]",
    "{a: 1}",
    "yes",
    "''",
    "10000000000000",
)
TEXTS = {
    "empty": "", "list": "[1, 2]", "number": "5", "null": "null", "text": "abc",
    "two documents": "a: 1\n---\nb: 2\n...\n", "anchors": NESTED, "deep": "[" * 10**5, "deep map": "{a: " * 10**5,
    "deep block": "\n".join(" " * n + "a:" for n in range(2000)),
    "python": "!!python/object/apply:os.system ['touch mark']\n", "python name": "width: !!python/name:os.system\n",
    "binary": "width: !!binary aGVsbG8=\n", "set": "width: !!set {a}\n", "tabs": "\twidth: 3", "nul": "width: \0",
    "bom": "\ufeffwidth: 0", "same key": "width: 16\nwidth: 0\n", "null key": "? \n: 3\n",
    "list key": "? [a]\n: 3\n", "timestamp": "width: 2001-01-01\n", "preset list": "preset: [digits]\n",
    "preset none": "preset: null\n", "preset unknown": "preset: ../../x\n", "preset itself": "preset: o.yaml\n",
    "unknown": "widht: 3\n", "escape": "\"\\e[31m\": 3\n", "long": "width: " + "x" * 10**6,
    "many": "\n".join(f"a{n}: 1" for n in range(30_000)), "kind": "network: x\n", "kinds": "network: [image]\n",
    "sampler": "sampler: {}\n",
}  # fmt: skip


@cache
def run():
    """A run of two steps, trained once in a process of its own."""
    folder = Path(mkdtemp()) / "run"
    command = [sys.executable, "-m", "diffit_lib", "train", *TINY, "--run", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return folder


def read_config(folder):
    """As `train o.yaml` and `--config` do. What is taken has to be small enough to be counted without memory."""
    from diffit_lib.config.presets import preset

    experiment = preset(str(folder / "o.yaml"))
    assert 0 < experiment.network.width < 10**9, experiment.network.width
    return "right"


def read_run(folder):
    """As `train --run` does before it trains."""
    from diffit_lib.config.experiment import ExperimentConfig
    from diffit_lib.config.presets import read_options

    read_options(ExperimentConfig, folder)
    return "right"


def resume(folder):
    """Resume a copy of the run with this checkpoint; nothing else may be written."""
    from diffit_lib.config.experiment import ExperimentConfig
    from diffit_lib.config.presets import read_options
    from diffit_lib.training.train import train

    try:
        train(
            read_options(ExperimentConfig, folder / "run").override(max_steps=3, images=24),
            folder / "run",
            progress=False,
        )
    finally:
        shutil.rmtree(folder / "run")
    return "right"


def write_checkpoint(change, folder):
    """A copy of the run, its checkpoint changed: by a function of the content, or of the bytes."""
    shutil.copytree(run(), folder / "run")
    path = folder / "run" / "last.ckpt"
    if isinstance(change, bytes):
        path.write_bytes(change)
    elif change.__name__ == "damaged":
        path.write_bytes(change(path.read_bytes()))
    else:
        content = torch.load(path, weights_only=True)
        torch.save(change(content), path)


def put(*path, value):
    """A function that puts a value at a place in the checkpoint; None deletes it."""

    def change(content):
        inside = content
        for key in path[:-1]:
            inside = inside[key]
        key = next(iter(inside)) if path[-1] == "FIRST" else path[-1]
        if value is None:
            del inside[key]
        else:
            inside[key] = value
        return content

    return change


def damage(way, seed):
    """A function that cuts or changes bytes."""

    def damaged(data):
        place = Random(f"{way} {seed}").randrange(len(data))
        return data[:place] if way == "cut" else data[:place] + bytes(40) + data[place + 40 :]

    return damaged


CHECKPOINTS = {
    "nothing": b"", "zeros": bytes(10**6), "text": b"checkpoint", "pickle": b"\x80\x04\x95",
    "zip": b"PK\x05\x06" + bytes(18), "bomb": lambda c: c | {"x": Bomb()}, "bomb alone": lambda c: Bomb(),
    "list": lambda c: [c], "number": lambda c: 5, "no version": put("pytorch-lightning_version", value=None),
    "version": put("pytorch-lightning_version", value="x"), "no diffit": put("diffit", value=None),
    "diffit list": put("diffit", value=[1]), "no weights": put("state_dict", value=None),
    "weights list": put("state_dict", value=[1]), "one less": put("state_dict", "FIRST", value=None),
    "one of other shape": put("state_dict", "FIRST", value=torch.zeros(3)),
    "one text": put("state_dict", "FIRST", value="x"), "no optimizer": put("optimizer_states", value=None),
    "optimizers": put("optimizer_states", value=[]), "no loops": put("loops", value=None),
    "no step": put("global_step", value=None), "step text": put("global_step", value="x"),
    "callbacks": put("callbacks", value={"x": 1}),
    "wide": put("state_dict", "FIRST", value=torch.zeros(1).expand(10**11)),
}  # fmt: skip


def cases():
    """Every case, the same each time."""

    def put_text(name, text, folder):
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))

    for name, text in TEXTS.items():
        yield Case(f"config {name}", partial(put_text, "o.yaml", text), read_config)
        yield Case(f"options {name}", partial(put_text, "options.yaml", text + "...\n"), read_run)
    for field in ("width", "image_size", "timesteps", "lr", "images"):
        for number in NUMBERS[Random(field).randrange(3) :: 3]:
            text = f"preset: digits\ndenoiser: vp\n{field}: {number}\n"
            yield Case(f"config {field} {number[:12]}", partial(put_text, "o.yaml", text), read_config)
    yield Case("config latin-1", partial(put_text, "o.yaml", b"preset: digits\nname: \xe9\n"), read_config)
    for name, change in CHECKPOINTS.items():
        yield Case(f"checkpoint {name}", partial(write_checkpoint, change), resume)
    for way in ("cut", "zeroed"):
        for seed in range(6):
            yield Case(f"checkpoint {way} {seed}", partial(write_checkpoint, damage(way, seed)), resume)
