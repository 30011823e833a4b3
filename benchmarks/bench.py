"""`make bench`: what a step and an image cost here and with other libraries, in one interleaved run.

Times are of the process's CPU seconds divided by its threads, because other programs may hold the cores.
"""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from contenders import gflop, latent_networks, passes, pixel_networks
from torch import Tensor, nn

from diffit_lib.config.diffusion import EDMConfig
from diffit_lib.config.training import TrainingConfig
from diffit_lib.data.datasets import Images
from diffit_lib.data.stream import TrainingStream
from diffit_lib.diffusion.denoiser import EDMDenoiser
from diffit_lib.diffusion.samplers import SAMPLERS
from diffit_lib.utils.tensors import SeededNoise

PACKAGES = ("torch", "diffusers", "denoising-diffusion-pytorch")
Times = dict[str, list[float]]


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int) -> Times:
    """Seconds of each function in each round; the first of a round rotates, and a round before them is not counted."""
    names, times = list(functions), {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            functions[name]()
            if turn:
                times[name].append((time.process_time() - start) / torch.get_num_threads())
    return times


def summary(times: Times) -> dict[str, dict[str, float]]:
    """Milliseconds of each (median, min, max), and the median over the rounds of the first one's time over its own."""
    first = next(iter(times.values()))
    return {
        name: {
            "median_ms": 1e3 * median(each),
            "min_ms": 1e3 * min(each),
            "max_ms": 1e3 * max(each),
            "ours_over_this": median(a / b for a, b in zip(first, each, strict=True)),
        }
        for name, each in times.items()
    }


def networks(kind: str, precision: str, rounds: int, small: bool) -> dict[str, Any]:
    """Training step and forward pass on "pixels" (32x32x3, batch 16) or "latents" (32x32x4, batch 8)."""
    torch.manual_seed(0)
    found = pixel_networks(small) if kind == "pixels" else latent_networks(small)
    x = torch.randn((1 if small else 16 if kind == "pixels" else 8), 3 if kind == "pixels" else 4, 32, 32)
    work, results = gflop(found, x), {}
    for what, functions in passes(found, x, precision).items():
        rows = summary(interleaved(functions, rounds))
        for name, row in rows.items():
            total = work[name] * len(x) * (3 if what == "step" else 1)
            row |= {"gflop": total, "gflop_per_s": 1e3 * total / row["median_ms"]}
        results[f"{what}, {kind}, {precision}"] = rows
    return results


def ceilings(rounds: int, small: bool) -> dict[str, Any]:
    """GFLOP/s of the machine's matrix product and convolution."""
    size, rates = 64 if small else 1024, {}
    for dtype in (torch.float32, torch.bfloat16):
        a, x, w = (torch.randn(shape, dtype=dtype) for shape in ((size, size), (16, 128, 32, 32), (128, 128, 3, 3)))
        x = x.to(memory_format=torch.channels_last)
        times = interleaved({"product": lambda: a @ a, "convolution": lambda: F.conv2d(x, w, padding=1)}, rounds)  # noqa: B023
        work = {"product": 2 * size**3, "convolution": 2 * 16 * 1024 * 128 * 128 * 9}
        rates |= {f"{name}, {dtype}": work[name] / median(each) / 1e9 for name, each in times.items()}
    return {"ceilings, GFLOP/s": rates}


class Nothing(nn.Module):
    """A network that answers at once."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """x itself."""
        return x


def samplers(rounds: int, small: bool) -> dict[str, Any]:
    """Microseconds a step outside the network: batch 16, 32x32x3, state in float64."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    steps, denoiser = 5 if small else 50, EDMDenoiser(Nothing(), EDMConfig(sigma_data=0.5))
    noise, start = SeededNoise(range(16), (3, 32, 32)), torch.randn(16, 3, 32, 32, dtype=torch.float64)

    def ours(sampler: str) -> Callable[[], None]:
        def draw() -> None:
            for _ in SAMPLERS[sampler](denoiser, denoiser.initial(start), denoiser.levels(steps), None, noise):
                pass

        return draw

    def theirs(scheduler: Any) -> Callable[[], None]:
        def draw() -> None:
            scheduler.set_timesteps(steps)
            x = start * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                x = scheduler.step(scheduler.scale_model_input(x, t), t, x).prev_sample

        return draw

    functions = {f"ours, {name}": ours(name) for name in ("euler", "dpm++", "heun", "ddpm")}
    functions |= {f"diffusers {kind.__name__}": theirs(kind()) for kind in (DDIMScheduler, EulerDiscreteScheduler)}
    times = interleaved(functions, rounds)
    return {"samplers, us a step": {name: 1e6 * median(each) / steps for name, each in times.items()}}


def data(rounds: int, small: bool) -> dict[str, Any]:
    """32x32x3 images a second from memory, with all that a training batch needs, in one process."""
    images = torch.randint(256, (1_000, 3, 32, 32), dtype=torch.uint8)
    held = Images("random", images, torch.zeros(1_000, dtype=torch.int64), ())
    size = 16 if small else 256
    stream = TrainingStream(held, TrainingConfig(batch_size=size))
    times = interleaved(
        {"batch": lambda: stream.batch(0), "images": lambda: held.fetch(list(range(size)), [True] * size)}, rounds
    )
    return {"data, images/s": {name: size / median(each) for name, each in times.items()}}


def growth(rounds: int, small: bool) -> dict[str, Any]:
    """Milliseconds of our transformer's forward pass by batch, by depth and by side of the latent."""
    from diffit_lib.config.models import TransformerConfig
    from diffit_lib.models import build_network

    functions = {}
    for batch, depth, side in (
        (1, 2, 32),
        (2, 2, 32),
        (4, 2, 32),
        (8, 2, 32),
        (4, 1, 32),
        (4, 4, 32),
        (4, 2, 16),
        (4, 2, 64),
    ):
        config = TransformerConfig(width=96 if small else 384, depth=depth, image_size=(side, side))
        network, x = build_network(config).eval(), torch.randn(batch, 4, side, side)
        functions[f"batch {batch}, depth {depth}, side {side}"] = torch.no_grad()(
            lambda network=network, x=x: network(x, torch.zeros(len(x)))
        )
    return {"growth, ms": {name: 1e3 * median(each) for name, each in interleaved(functions, rounds).items()}}


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
    kinds = [(kind, precision) for kind in ("pixels", "latents") for precision in ("32-true", "bf16-mixed")]
    found = {f"{k}-{p}": lambda k=k, p=p: networks(k, p, rounds, small) for k, p in kinds}
    rest = (ceilings, samplers, data, growth)
    return found | {part.__name__: lambda part=part: part(rounds, small) for part in rest}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the file after every part, so that a stopped run keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that it runs")
    parser.add_argument("--only", nargs="*", help=f"some of {', '.join(parts(1, True))}")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = {"machine": machine()}
    for name, part in parts(options.rounds, options.small).items():
        if options.only and name not in options.only:
            continue
        for title, rows in part().items():
            results[title] = rows
            print(f"\n{title}")
            for row, value in rows.items():
                print(f"  {row}: " + (f"{value:.1f}" if isinstance(value, float) else words(value)), flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n")


def words(row: dict[str, float]) -> str:
    """A row of a table of networks in one line."""
    return (
        f"{row['median_ms']:.0f} ms ({row['min_ms']:.0f} to {row['max_ms']:.0f}), {row['gflop_per_s']:.0f} GFLOP/s, "
        f"ours takes {row['ours_over_this']:.2f} of its time"
    )


if __name__ == "__main__":
    main()
