"""`make bench`: what a step and an image cost here and with other libraries, in one interleaved run.

Freed memory is kept, as `diffit train` does; the other libraries' networks profit too.
"""

import argparse
import json
import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from contenders import gflop, latent_networks, passes, pixel_networks
from loops import data, drawing, growth, optimizers, samplers, shortcuts, start
from matplotlib.figure import Figure
from timing import Rows, ceilings, interleaved, summary

from diffit_lib.utils.files import write_text
from diffit_lib.utils.plots import new_figure, write_figure
from diffit_lib.utils.tensors import reuse_freed_memory

PACKAGES = ("torch", "diffusers", "denoising-diffusion-pytorch")
CHOICES = [f"{kind}-{precision}" for kind in ("pixels", "latents") for precision in ("32-true", "bf16-mixed")]


def networks(kind: str, precision: str, rounds: int, small: bool) -> dict[str, Rows]:
    """Training step and forward pass on "pixels" (32x32x3, batch 16) or "latents" (32x32x4, batch 8)."""
    torch.manual_seed(0)
    found = pixel_networks(small) if kind == "pixels" else latent_networks(small)
    x = torch.randn((1 if small else 16 if kind == "pixels" else 8), 3 if kind == "pixels" else 4, 32, 32)
    (limits, work_of_limits), per_image, results = ceilings(precision, small), gflop(found, x), {}
    for what, functions in passes(found, x, precision).items():
        work = {name: each * len(x) * (3 if what == "step" else 1) for name, each in per_image.items()}
        results[f"{what}, {kind}, {precision}"] = summary(
            interleaved(functions | limits, rounds), work | work_of_limits
        )
    return results


def machine() -> dict[str, Any]:
    """Processor, threads, versions and commit."""
    cpu = Path("/proc/cpuinfo").read_text().partition("model name")[2].partition("\n")[0].strip("\t: ")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    threads = torch.get_num_threads()
    return {"cpu": cpu, "system": platform.platform(), "threads": threads, "commit": commit, "versions": versions}


def parts(rounds: int, small: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    """All that can be measured, by name."""
    found = {name: lambda name=name: networks(*name.split("-", 1), rounds, small) for name in CHOICES}
    others = (samplers, drawing, data, growth, shortcuts, optimizers, start)
    return found | {part.__name__: lambda part=part: part(rounds, small) for part in others}


def growth_figure(results: dict[str, Any]) -> Figure:
    """The time of a training step against its GFLOP, both as multiples of the smallest; proportional is grey."""
    figure = new_figure(5, 4)
    axes = figure.subplots()
    for title, rows in results.items():
        if title.startswith("growth, "):
            first = next(iter(rows.values()))
            work, times = ([row[key] / first[key] for row in rows.values()] for key in ("gflop", "median_ms"))
            axes.loglog(work, times, marker="o", label=title.removeprefix("growth, "))
    axes.axline((1, 1), (2, 2), color="0.7", zorder=0)
    axes.set(xlabel="GFLOP of a step, smallest = 1", ylabel="time of a step, smallest = 1")
    axes.legend()
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the file after every part; parts that an earlier run wrote there stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that it runs")
    parser.add_argument("--only", nargs="*", choices=parts(1, True), help="parts to measure; all by default")
    parser.add_argument("--figure", type=Path, help="PNG of how a training step grows")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    reuse_freed_memory()
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() and options.only else {}
    if results.get("machine", machine()) != machine():
        parser.error(f"{options.out} is of another machine, version or commit; give another --out")
    results["machine"] = machine()
    for name, part in parts(options.rounds, options.small).items():
        if options.only and name not in options.only:
            continue
        for title, rows in part().items():
            results[title] = rows
            print("\n".join(["", *table(title, rows)]), flush=True)
        write_text(options.out, json.dumps(results, indent=2) + "\n")
    if options.figure:
        write_figure(options.figure, growth_figure(results))


def table(title: str, rows: dict[str, Any]) -> list[str]:
    """The lines of a Markdown table."""
    if not all(isinstance(row, dict) for row in rows.values()):
        return [f"| {title} | |", "|---|---|", *(f"| {name} | {value:,.0f} |" for name, value in rows.items())]
    lines = [
        f"| {title} | ms (min to max) | GFLOP/s | time: first / this | per GFLOP: first / this |",
        "|" + "---|" * 5,
    ]
    for name, row in rows.items():
        span = f"{row['median_ms']:.0f} ({row['min_ms']:.0f} to {row['max_ms']:.0f})"
        limit = name.startswith("a ")  # a ceiling does other work: only its rate compares
        ratio = "" if limit else f"{row['ratio']:.2f}"
        lines.append(f"| {name} | {span} | {row['gflop_per_s']:.0f} | {ratio} | {row['ratio_per_gflop']:.2f} |")
    return lines


if __name__ == "__main__":
    main()
