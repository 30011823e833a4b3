"""Hostile weights: damaged files, cards that lie, tensors that do not fit, torch files that would run something."""

import json
import pickle
import struct
from functools import partial
from pathlib import Path
from random import Random

import torch
from runner import Bomb, Case
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PRETRAINED = Path(__file__).parents[2] / "diffit_lib" / "pretrained"
NUMBERS = (0, -1, 10**6, 10**9, 1 << 31, 1 << 63, 1 << 4000, -(1 << 70), 0.5, 1e22, 1e308, -1e-300, True, None)
OTHERS = ("", "x", "\u0000", [], {}, [[]], [1], [1 << 40, 1 << 40], {"a": 1}, "9" * 5000, float("nan"), float("inf"))
DEEP = "[" * 200_000 + "]" * 200_000


def check(name, folder):
    """Open as `load` does; finite answers are right."""
    from diffit_lib.checkpoints.weights import load_weights

    denoiser, card = load_weights(folder / name)
    network = card.experiment.network
    with torch.no_grad():
        answer = denoiser.eval()(torch.zeros(1, *network.shape), torch.ones(1))
    assert answer.isfinite().all(), "answers that are not finite"
    assert len(card.class_names) in (0, network.num_classes), "other names than classes"
    return "right"


def parts(name="digits"):
    """Tensors and card of pretrained weights."""
    path = PRETRAINED / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return load_file(path), json.loads(metadata["card"]), metadata["format"]


def write_card(change, folder, name="digits"):
    """Weights whose card was changed: a function of the card, or the card as text."""
    tensors, card, form = parts(name)
    text = change if isinstance(change, str) else json.dumps(change(card))
    save_file(tensors, folder / "w.safetensors", {"format": form, "card": text})


def put(path, value, card):
    """The card with one value replaced; "DELETE" removes it."""
    inside = card
    for key in path[:-1]:
        inside = inside[key]
    if value == "DELETE":
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return card


def fields(card):
    """The path of every field of the card that is not a list or a dictionary."""
    for key, value in card.items():
        if isinstance(value, dict) and key != "numbers":
            for path in fields(value):
                yield (key, *path)
        else:
            yield (key,)


def write_tensors(change, folder):
    """Weights whose tensors were changed."""
    tensors, card, form = parts()
    change(tensors, Random(str(change)))
    save_file(tensors, folder / "w.safetensors", {"format": form, "card": json.dumps(card)})


def one(value, tensors, random):
    name = random.choice(sorted(tensors))
    tensors[name] = value(tensors[name])


TENSORS = {
    "nan": partial(one, lambda t: torch.full_like(t, torch.nan)),
    "infinite": partial(one, lambda t: torch.full_like(t, torch.inf)),
    "one-infinite": partial(one, lambda t: t.clone().index_fill_(0, torch.tensor(0), -torch.inf)),
    "flat": partial(one, lambda t: t.flatten()[:-1].clone() if t.numel() > 1 else torch.zeros(3)),
    "scalar": partial(one, lambda t: torch.tensor(1.0)),
    "empty": partial(one, lambda t: torch.zeros(0)),
    "integers": partial(one, lambda t: t.to(torch.int64)[..., None]),
    "complex": partial(one, lambda t: t.to(torch.complex64)[..., None]),
    "none": lambda tensors, random: tensors.clear(),
    "raw": lambda tensors, random: tensors.update({n.replace("ema.", "raw."): tensors.pop(n) for n in sorted(tensors)}),
    "spare": lambda tensors, random: tensors.update({"ema.network.\u202e": torch.zeros(1)}),
    "strange-name": lambda tensors, random: tensors.update({"ema.\x1b[31m\n": torch.zeros(1)}),
    "many": lambda tensors, random: tensors.update({f"ema.x{i}": torch.zeros(1) for i in range(20_000)}),
}


def damage(way, seed, folder):
    """A file cut short, with bytes changed, or with bytes inserted."""
    random, data = Random(f"{way} {seed}"), bytearray((PRETRAINED / "digits.safetensors").read_bytes())
    place = random.randrange(2000) if seed % 2 else random.randrange(len(data))
    if way == "cut":
        del data[place:]
    elif way == "changed":
        data[place : place + 4] = random.randbytes(4)
    else:
        data[place:place] = random.randbytes(9)
    (folder / "w.safetensors").write_bytes(data)


HEADERS = {
    "length": struct.pack("<Q", 1 << 63),
    "long": struct.pack("<Q", 90_000_000) + b"{" + b" " * 100,
    "claims": struct.pack("<Q", 74)
    + b'{"a":{"dtype":"F32","shape":[99999999999,9],"data_offsets":[0,3599999999]}}'[:74],
    "deep": struct.pack("<Q", len(DEEP)) + DEEP.encode(),
    "none": b"",
    "zeros": bytes(1 << 20),
    "text": b"weights\n" * 100,
    "zip": b"PK\x03\x04" + bytes(100),
    "half-pickle": b"\x80\x02}q\x00",
    "memo": b"\x80\x04" + b"\x8e" + struct.pack("<Q", 1 << 50) + b"x",
    "pickle": pickle.dumps({"ema": [1.0]}),
    "recursive": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
}
TORCH = {
    "bomb": lambda: {"ema": {"a": Bomb()}},
    "bomb-beside": lambda: {"pos_embed": torch.zeros(3), "args": Bomb()},
    "list": lambda: [torch.zeros(3)],
    "number": lambda: 5,
    "nothing": dict,
    "numbers": lambda: {"a": 1},
    "ema-list": lambda: {"ema": [torch.zeros(3)]},
    "keys": lambda: {5: torch.zeros(3), None: torch.zeros(2)},
    "expanded": lambda: {"pos_embed": torch.zeros(1, dtype=torch.float16).expand(10**11)},
    "sparse": lambda: {"a": torch.zeros(3).to_sparse()},
    "lightning": lambda: {"state_dict": {"a": torch.zeros(1)}, "pytorch-lightning_version": "2"},
    "dit-scalar": lambda: {"blocks.0.adaLN_modulation.1.weight": torch.tensor(1.0)},
    "dit-empty": lambda: {
        "blocks.0.adaLN_modulation.1.weight": torch.zeros(0),
        "x_embedder.proj.weight": torch.zeros(0),
    },
    "dit-deep": lambda: {f"blocks.{i}.adaLN_modulation.1.weight": torch.zeros(1) for i in range(5000)},
    "repa": lambda: {"projectors.0.0.weight": torch.zeros(1), "decoder_blocks.x.y": torch.zeros(1)},
    "repa-number": lambda: {"projectors.0.0.weight": torch.zeros(1), "decoder_blocks.-5.y": torch.zeros(1)},
    "diffit": lambda: {
        "blocks.0.attn.qkv_temb.weight": torch.zeros(1),
        "x_embedder.proj.weight": torch.ones(8, 4, 2, 2),
    },
    "diffusers": lambda: {"transformer_blocks.0.norm1.linear.weight": torch.zeros(1)},
}


def cases():
    """Every case, the same each time."""
    opened = partial(check, "w.safetensors")
    _, card, _ = parts()
    for path in sorted(fields(card)):
        random = Random(str(path))
        for value in ("DELETE", *random.sample([*NUMBERS, *OTHERS], 4)):
            change = partial(put, path, value)
            yield Case(f"card-{'.'.join(path)}-{str(value)[:12]!r}", partial(write_card, change), opened)
    for part in ("network", "denoiser", "training", "sampling"):
        for value in ("DELETE", None, 3, [], {}, {"kind": "x"}):
            yield Case(f"card-{part}-{value}", partial(write_card, partial(put, ("recipe", part), value)), opened)
    for name, text in {
        "deep": DEEP,
        "text": "x",
        "null": "null",
        "list": "[]",
        "long": '{"a": ' + "9" * 10**6 + "}",
    }.items():
        yield Case(f"card-is-{name}", partial(write_card, text), opened)
    for name, change in TENSORS.items():
        yield Case(f"tensors-{name}", partial(write_tensors, change), opened)
    for way in ("cut", "changed", "inserted"):
        for seed in range(8):
            yield Case(f"file-{way}-{seed}", partial(damage, way, seed), opened)
    for name, data in HEADERS.items():
        yield Case(f"bytes-{name}", lambda folder, data=data: (folder / "w.safetensors").write_bytes(data), opened)
    for name, content in TORCH.items():
        make = lambda folder, content=content: torch.save(content(), folder / "w.pt")  # noqa: E731
        yield Case(f"torch-{name}", make, partial(check, "w.pt"))
