"""Measured numbers as files: a JSON list that grows, and for several settings a table and a plot."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import write_text
from diffit_lib.utils.plots import sweep_curves, write_figure

Numbers = dict[str, Any]
Setting = dict[str, Any]


def read_results(path: str | Path) -> list[Numbers]:
    """The entries of a JSON list of measurements, none where there is no file yet; anything else is refused."""
    path = Path(path)
    if path.is_dir():
        raise DiffitError(f"{path} is a folder; give a JSON file, e.g. results.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        whole = isinstance(found, list) and all(isinstance(entry, dict) and "stamp" in entry for entry in found)
    except ValueError:
        whole = False
    check(whole, f"{path} is no JSON list of measurements, to which more could be appended; give another file")
    return found


def record(path: str | Path, what: str, each: Sequence[Setting], numbers: Sequence[Numbers]) -> None:
    """Append measurements of `what` to a JSON list; of several settings write a CSV table and a PNG plot beside it."""
    entries = [{"measured": what, **entry} for entry in numbers]
    write_text(path, json.dumps(read_results(path) + entries, indent=2) + "\n")
    if len(each) > 1:
        rows = [chosen | values(entry) for chosen, entry in zip(varied(each), numbers, strict=True)]
        stamps = [{f"stamp_{key}": value for key, value in entry["stamp"].items()} for entry in numbers]
        write_text(Path(path).with_suffix(".csv"), to_csv([r | s for r, s in zip(rows, stamps, strict=True)]))
        write_figure(Path(path).with_suffix(".png"), sweep_curves(rows, list(varied(each)[0])))


def varied(each: Sequence[Setting]) -> list[Setting]:
    """Of each setting that which differs between them."""
    names = [name for name in each[0] if any(setting[name] != each[0][name] for setting in each)]
    return [{name: setting[name] for name in names} for setting in each]


def values(entry: Numbers) -> dict[str, float]:
    """The measured numbers alone."""
    return {name: value for name, value in entry.items() if isinstance(value, float)}


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of the same columns; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table(each: Sequence[Setting], numbers: Sequence[Numbers]) -> str:
    """One measurement as JSON; several as rows for a terminal, then what they have in common."""
    if len(numbers) == 1:
        return json.dumps(numbers[0], indent=2)
    rows = [
        {**chosen, **{name: f"{value:.4g}" for name, value in values(entry).items()}}
        for chosen, entry in zip(varied(each), numbers, strict=True)
    ]
    names = list(rows[0])
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in names}
    lines = ["  ".join(f"{name:>{widths[name]}}" for name in names)]
    lines += ["  ".join(f"{row[name]!s:>{widths[name]}}" for name in names) for row in rows]
    common = {
        key: value for key, value in numbers[0]["stamp"].items() if all(n["stamp"][key] == value for n in numbers)
    }
    lines.append("stamp: " + " ".join(f"{key}={value}" for key, value in common.items() if value not in (None, False)))
    return "\n".join(lines + [f"note: {warning}" for warning in numbers[0]["warnings"]])
