"""dataset.json of every form but the right one."""

import json
from functools import partial
from random import Random

from runner import Case

from images import beside, encoded, even

GOOD = [["a.png", 0], ["sound1.png", 1], ["sound2.png", 1]]


def labelled(folder, right=None):
    """Load; `right` are the labels and class names, None if it has to be refused."""
    from diffit_lib.data.datasets import load_data

    train = load_data(folder / "data", (8, 8), 3).train
    assert right is not None, f"taken as {train.labels.tolist()}, {train.class_names}"
    assert (train.labels.tolist(), list(train.class_names)) == right, f"{train.labels.tolist()}, {train.class_names}"
    return "right"


def with_table(folder, content):
    """Three images and the table."""
    beside(folder, "a.png", encoded(even("RGB"), "png"))
    (folder / "data" / "dataset.json").write_bytes(content)


def meant(content):
    """What changed text says, if it is a table of the three images still."""
    try:
        table = json.loads(content)
        return ([0, 1, 1], table.get("class_names", ["0", "1"])) if table["labels"] == GOOD else None
    except (ValueError, KeyError):
        return None


def cases():
    """All hostile tables."""

    def one(name, content, right=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        return Case(name, partial(with_table, content=content), partial(labelled, right=right))

    numbers = [0, 1, 1], ["0", "1"]
    yield one("sound", {"labels": GOOD}, numbers)
    yield one("dots", {"labels": [[f"./{name}", label] for name, label in GOOD]}, numbers)
    yield one("more labels than images", {"labels": [*GOOD, ["gone.png", 7]]}, numbers)
    yield one("the same twice", {"labels": GOOD * 2}, numbers)
    yield one("no labels", {"labels": None}, ([0, 0, 0], []))
    yield one("no labels, an empty list", {"labels": []}, ([0, 0, 0], []))
    yield one("other keys", {"labels": GOOD, "x": [1]}, numbers)
    yield one("names", {"labels": GOOD, "class_names": ["cat", "dog"]}, ([0, 1, 1], ["cat", "dog"]))
    for name in ("class_names", "labels"):
        for value in ({"cat": 0, "dog": 1}, "ab", 7, True, [["a"], ["b"]], [None, None], [{}, {}], [1.5, 2.5]):
            yield one(f"{name} {value!r}", {"labels": GOOD, name: value})
    for names in (["cat"], ["a", "b", "c"], [""] * 10**5):
        yield one(f"{len(names)} names", {"labels": GOOD, "class_names": names})
    for label in (-1, 2, 10**8, 10**30, -(2**63), 0.5, "0", "cat", None, [1], {}, float("nan"), float("inf"), 1e400):
        yield one(f"label {label!r}", {"labels": [["a.png", label], *GOOD[1:]]})
    for name in ("/a.png", "../a.png", "b/a.png", "A.png", "a", "", "a.png\0", "\ud800", 7, None, [], {}):
        yield one(f"path {name!r}", {"labels": [[name, 0], *GOOD[1:]]})
    for entry in ([], ["a.png"], ["a.png", 0, 0], "ab", {"a.png": 0, "b": 1}, None, 7):
        yield one(f"entry {entry!r}", {"labels": [entry, *GOOD[1:]]})
    yield one("contradiction", {"labels": [*GOOD, ["a.png", 1]]})
    yield one("contradiction by dots", {"labels": [*GOOD, ["./a.png", 1]]})
    for k, value in enumerate(([], None, 7, "x", GOOD, True)):
        yield one(f"top {k}", value)
    texts = {
        "nothing": b"", "no text": b"\xff\xfe\x00", "half": b'{"labels": [["a', "deep lists": b"[" * 10**6,
        "deep objects": b'{"labels":' * 10**5, "python": b"__import__('os').system('touch x')", "nul": b"\0" * 1000,
        "long number": b'{"labels": [["a.png", ' + b"9" * 5000 + b"]]}", "lists": b"[" + b"[]," * 13_000_000 + b"[]]",
        "numbers": b"[" + b"1," * 19_000_000 + b"1]", "90 MB of spaces": b" " * 90_000_000, "yaml": b"labels: []",
    }  # fmt: skip
    for name, content in texts.items():
        yield one(name, content)
    yield one("with a mark of UTF-8", b"\xef\xbb\xbf" + json.dumps({"labels": GOOD}).encode(), numbers)
    whole, rng = json.dumps({"labels": GOOD, "class_names": ["cat", "dog"]}).encode(), Random(0)
    for k in range(20):
        yield one(f"cut {k}", whole[: len(whole) * k // 20])
    for k in range(20):
        place = rng.randrange(len(whole))
        changed = whole[:place] + rng.choice([b"[", b"]", b"{", b"}", b'"', b",", b":"]) + whole[place:]
        yield one(f"structure {k}", changed, meant(changed))
