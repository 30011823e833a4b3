"""Measured numbers: the protocol that images are drawn by, the provenance stamped on each number, and what saves them.

`docs/coming-from.md` has a table of the protocols.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffit_lib.checkpoints.safetensors_io import check_numbers
from diffit_lib.config.models import ImageNetworkConfig, TransformerConfig
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import csv_text, write_text
from diffit_lib.utils.plots import sweep_curves, write_figure

Numbers = dict[str, Any]
Setting = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a number depends on; None: does not apply. The evaluator fills in the reference, n and the extractor."""

    n: int = 0  # generated images compared by a Frechet distance or its like
    drawn: int = 0  # generated images in all: class accuracy and copy ratio are over all of them
    reference: str = ""  # the real images compared with: a train part, a folder, or published statistics
    reference_hash: str = ""
    extractor: str = ""
    extractor_checksum: str = ""
    sampler: str | None = None
    steps: int | None = None
    guidance: str | None = None
    seeds: str | None = None  # e.g. "0-359"
    labels: str | None = None  # the classes asked for: "as many of each class", or "random", drawn from the seeds
    images: str | None = None  # images given as files: their name
    images_hash: str | None = None
    precision: str | None = None
    rounding: str | None = "round"  # of float to uint8; "adm": truncated, as the published evaluators do
    decoder: str | None = None  # the VAE's, for latent models
    weights_hash: str | None = None
    best_by_this_metric: bool = False  # the checkpoint was chosen by the very number it goes with

    def warnings(self) -> list[str]:
        """What a reader of the number must know."""
        said = []
        if self.n < 10_000:
            said.append(f"n = {self.n} is small: compare only with numbers taken at the same n")
        if self.best_by_this_metric:
            said.append("the best checkpoint was chosen by this very metric: the number flatters")
        return said


def in_words(stamp: Mapping[str, Any]) -> str:
    """The fields of a stamp in one line, `n=360 reference=digits/train ...`, without those that do not apply."""
    return " ".join(f"{key}={value}" for key, value in stamp.items() if value is not None and value is not False)


def read_results(path: str | Path) -> list[Numbers]:
    """The entries of a JSON list of measurements; none if there is no file. Raises a DiffitError for other files."""
    path = Path(path)
    check(path.is_file() or not path.exists(), f"{path} is no file; give a JSON file, e.g. results.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        whole = isinstance(found, list) and all(isinstance(entry, dict) and "stamp" in entry for entry in found)
        for entry in found if whole else ():
            check_numbers(entry)
    except (DiffitError, RecursionError, ValueError):
        whole = False
    check(whole, f"{path} is not a JSON list of measurements that more can be appended to; give another file")
    return found


def record(path: str | Path, what: str, each: Sequence[Setting], numbers: Sequence[Numbers]) -> None:
    """Append measurements of `what` to a JSON list; write several also as a CSV table and a PNG plot beside it."""
    entries = [{"measured": what, **entry} for entry in numbers]
    write_text(path, json.dumps(read_results(path) + entries, indent=2) + "\n")
    if len(each) > 1:
        names, rows = sweep_rows(each, numbers)
        stamps = [{f"stamp_{key}": value for key, value in entry["stamp"].items()} for entry in numbers]
        text = csv_text([row | stamp for row, stamp in zip(rows, stamps, strict=True)])
        write_text(Path(path).with_suffix(".csv"), text)
        write_figure(Path(path).with_suffix(".png"), sweep_curves(rows, names))


def sweep_rows(each: Sequence[Setting], numbers: Sequence[Numbers]) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of the settings that differ, and a row for each measurement: these settings, then its numbers."""
    names = [name for name in each[0] if any(setting[name] != each[0][name] for setting in each)]
    pairs = zip(each, numbers, strict=True)
    return names, [
        {name: setting[name] for name in names} | {key: value for key, value in n.items() if isinstance(value, float)}
        for setting, n in pairs
    ]


def results_table(each: Sequence[Setting], numbers: Sequence[Numbers]) -> str:
    """One measurement as JSON; several as rows for a terminal, then what they have in common."""
    if len(numbers) == 1:
        return json.dumps(numbers[0], indent=2)
    chosen, rows = sweep_rows(each, numbers)
    columns = [[name, *(f"{row[name]}" if name in chosen else f"{row[name]:.4g}" for row in rows)] for name in rows[0]]
    widths = [max(map(len, column)) for column in columns]
    lines = ["  ".join(map(str.rjust, line, widths)) for line in zip(*columns, strict=True)]
    first, *others = (entry["stamp"] for entry in numbers)
    common = {key: value for key, value in first.items() if all(stamp[key] == value for stamp in others)}
    lines.append(f"stamp: {in_words(common)}")
    return "\n".join(lines + [f"note: {warning}" for warning in numbers[0]["warnings"]])


@dataclass(frozen=True)
class Protocol:
    """What `evaluate --protocol` sets; a setting of the command line counts more than that of the protocol."""

    rounding: str = "round"  # of floats to uint8, a key of `utils.tensors.PROTOCOLS`
    images: int = 500
    random_labels: bool = False  # each image's class is drawn from its seed; otherwise as many of each class
    vae: str = ""  # the decoder, for weights of Stable Diffusion's latents


PROTOCOLS = {
    "round": Protocol(),
    "adm": Protocol("adm"),
    "dit": Protocol("round", 50_000, True, STABLE_DIFFUSION[0]),
    "diffit": Protocol("adm", 50_000, True, STABLE_DIFFUSION[0]),
    "edm": Protocol("round", 50_000, True),
}


def paper_settings(protocol: str, network: ImageNetworkConfig | TransformerConfig) -> dict[str, Any]:
    """The sampling settings of a paper's number, for a network of this size.

    DiT (section 5, table 2): 250 DDPM steps, guidance 1.5 on three channels. DiffiT in latents (appendix I.2): the same
    with 4.4 power-cosine at 256x256 pixels, as the published weights were measured, and 1.49 at 512x512. EDM (table 7;
    DiffiT's image space, appendix I.1): Heun without churn, 18 steps at 32x32 and 40 at 64x64, no guidance.
    """
    large = max(network.image_size) > 32
    ancestral: dict[str, Any] = {"sampler": "ddpm", "steps": 250, "guidance_channels": 3}
    if getattr(network, "learned_variance", False):
        ancestral["variance"] = "learned"
    cosine = {"guidance": 4.4, "guidance_schedule": "power-cosine", "guidance_power": 4.0}
    settings = {
        "dit": ancestral | {"guidance": 1.5, "guidance_schedule": "constant"},
        "diffit": ancestral | ({"guidance": 1.49, "guidance_schedule": "constant"} if large else cosine),
        "edm": {"sampler": "heun", "steps": 40 if large else 18, "churn": 0.0, "guidance": 1.0}
        | {"guidance_schedule": "constant", "guidance_channels": None},
    }.get(protocol, {})
    return {name: value for name, value in settings.items() if network.num_classes or "guidance" not in name}
