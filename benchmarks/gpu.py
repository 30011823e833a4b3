"""`make gpu`: all that needs a GPU, measured in one resumable run of half an hour; each result is kept at once.

On a machine without CUDA the same parts run on the CPU; `--small` makes them tiny, to see that they run.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from diffit_lib.config.diffusion import SamplingConfig
from diffit_lib.config.presets import preset
from diffit_lib.diffusion.denoiser import DENOISERS
from diffit_lib.diffusion.guidance import Guided
from diffit_lib.diffusion.loss import denoising_loss
from diffit_lib.diffusion.samplers import SAMPLERS
from diffit_lib.models import build_network
from diffit_lib.models.cost import denoiser_cost
from diffit_lib.models.layers import attention
from diffit_lib.training.train import train
from diffit_lib.utils.tensors import SeededNoise, autocast, best_device, best_precision, device_name, state_dtype

DEVICE = best_device()
PRECISION = best_precision(DEVICE) if DEVICE.type == "cuda" else "bf16-mixed"
TINY = {"image": {"width": 8, "num_blocks": 1, "time_dim": 16}, "transformer": {"width": 64, "depth": 1}}


def wait() -> None:
    """Wait for the GPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any], rounds: int) -> float:
    """Median time of a call, after three that do not count."""
    times = []
    for _ in range(rounds + 3):
        wait()
        start = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - start)
    return median(times[3:])


def build(name: str, small: bool) -> Any:
    """The denoiser of a preset on the device and the configuration of its network, tiny if `small`."""
    experiment = preset(name)
    kind = experiment.network.kind
    network = replace(experiment.network, **TINY[kind]) if small else experiment.network
    config = experiment.denoiser if experiment.denoiser.sigma_data else replace(experiment.denoiser, sigma_data=1.0)
    torch.manual_seed(0)
    denoiser = DENOISERS[config.kind](build_network(network), config)
    return denoiser.to(DEVICE).to(memory_format=torch.channels_last), network


def batch_of(network: Any, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Random images, uniform numbers for the noise level, noise, classes."""
    generator = torch.Generator().manual_seed(1)
    images, noise = (torch.randn(size, *network.shape, generator=generator).to(DEVICE) for _ in range(2))
    classes = torch.randint(network.num_classes, (size,), generator=generator) if network.num_classes else None
    uniform = torch.rand(size, generator=generator).to(DEVICE)
    return images, uniform, noise, None if classes is None else classes.to(DEVICE)


def attention_error(small: bool) -> dict[str, float]:
    """Largest error of the device's attention, forward and backward, over the largest value of float64 on a CPU."""
    errors = {}
    for dtype in (torch.float32, torch.bfloat16):
        for windows, tokens in ((8, 16), (8, 256), (70_000 if not small else 70, 16)):
            generator = torch.Generator().manual_seed(0)
            sizes = [(windows, 2, tokens, 32)] * 3 + [(2, tokens, tokens)]
            inputs = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
            outs = []
            for place, kind in (("cpu", torch.float64), (DEVICE, dtype)):
                leaves = [each.to(place, kind).requires_grad_() for each in inputs]
                out = attention(*leaves)
                grads = torch.autograd.grad(out.square().sum(), leaves)
                outs.append([each.detach().double().cpu() for each in (out, *grads)])
            error = max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(*outs, strict=True))
            errors[f"{dtype}, {windows} windows of {tokens}"] = error
    return errors


def no_waiting(small: bool) -> dict[str, str]:
    """Whether a sampling loop runs without waiting for the device; CUDA raises where it would."""
    denoiser, network = build("digits", small)
    noise = SeededNoise(range(4), network.shape)
    guided = Guided(denoiser.eval(), SamplingConfig(guidance=2.0), network.num_classes)
    x = denoiser.initial(noise().to(DEVICE, state_dtype(DEVICE)))
    classes, answers = torch.zeros(4, dtype=torch.int64, device=DEVICE), {}
    for name in ("euler", "heun", "dpm++"):
        states = SAMPLERS[name](guided, x, denoiser.levels(8), classes, noise)
        next(states)
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            list(states)
            answers[name] = "never waits" if DEVICE.type == "cuda" else "runs; only CUDA can tell whether it waits"
        except RuntimeError as error:
            answers[name] = str(error).splitlines()[0]
        finally:
            if DEVICE.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    return answers


def training_run(small: bool) -> dict[str, str]:
    """`cifar10-t4` for 12 minutes; the folder has its grid and metrics. A stopped run goes on."""
    experiment, run = preset("digits" if small else "cifar10-t4"), f"runs/gpu-{'small' if small else 'cifar10-t4'}"
    if small:
        experiment = experiment.override(images=64, width=8, time_dim=16, minutes=1.0)
    else:
        experiment = experiment.override(minutes=12.0)
    return {"weights": str(train(experiment, run, progress=False))}


def peak(small: bool) -> float:
    """FLOP/s of a bf16 matrix product."""
    size = 256 if small else 8192
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: a @ a, 5)


def throughput(name: str, size: int, small: bool, compiled: bool) -> dict[str, float]:
    """Training images a second, share of the measured bf16 peak and memory of a preset; a step is 3 forward passes."""
    denoiser, network = build(name, small)
    size = 2 if small else size
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-4, fused=True)
    images, uniform, noise, classes = batch_of(network, size)
    loss_of = torch.compile(denoising_loss) if compiled else denoising_loss

    def step() -> None:
        with autocast(DEVICE, PRECISION):
            loss = loss_of(denoiser, images, denoiser.draw_sigma(uniform), noise, classes).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rate = size / seconds(step, 1 if small else 10)
    share = rate * 6 * denoiser_cost(network).macs / peak(small)
    memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0
    return {"batch": size, "images/s": rate, "share of bf16 peak": share, "GiB": memory}


def guided_sampling(small: bool) -> dict[str, float]:
    """Seconds an image of `diffit-xl-2` in 250 guided steps, 8 at once."""
    denoiser, network = build("diffit-xl-2", small)
    size, steps = (1, 2) if small else (8, 250)
    noise, classes = SeededNoise(range(size), network.shape), torch.zeros(size, dtype=torch.int64, device=DEVICE)
    guided = Guided(denoiser.eval(), SamplingConfig(guidance=4.0), network.num_classes)
    x = denoiser.initial(noise().to(DEVICE, state_dtype(DEVICE)))
    wait()
    start = time.perf_counter()
    with autocast(DEVICE, PRECISION):
        for _ in SAMPLERS["ddpm"](guided, x, denoiser.levels(steps), classes, noise):
            pass
    wait()
    return {"steps": steps, "seconds an image": (time.perf_counter() - start) / size}


def precisions(small: bool) -> dict[str, list[float]]:
    """The losses of 20 steps of `cifar10` on one batch, in float32 and in half precision."""
    losses = {}
    for precision in ("32-true", PRECISION):
        denoiser, network = build("cifar10", small)
        for module in denoiser.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3, fused=True)
        images, uniform, noise, classes = batch_of(network, 2 if small else 64)
        losses[precision] = []
        for _ in range(2 if small else 20):
            with autocast(DEVICE, precision):
                loss = denoising_loss(denoiser, images, denoiser.draw_sigma(uniform), noise, classes).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[precision].append(loss.item())
    return losses


def parts(small: bool) -> dict[str, Callable[[], Any]]:
    """All measurements, in the order of their worth."""
    found: dict[str, Callable[[], Any]] = {
        "attention, error against float64": lambda: attention_error(small),
        "sampling loop": lambda: no_waiting(small),
        "cifar10-t4, 12 minutes": lambda: training_run(small),
    }
    for compiled in (False, True) if DEVICE.type == "cuda" else (False,):
        for name, size in (("cifar10", 256), ("diffit-xl-2", 64)):
            found[f"{name}, training, {'compiled' if compiled else 'eager'}"] = (
                lambda name=name, size=size, compiled=compiled: throughput(name, size, small, compiled)
            )
    found["diffit-xl-2, 250 guided steps"] = lambda: guided_sampling(small)
    found["losses by precision"] = lambda: precisions(small)
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure what the file does not hold yet; write beside, then rename, after each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", nargs="*", help="names of parts")
    options = parser.parse_args(arguments)
    results = json.loads(options.out.read_text()) if options.out.is_file() else {"device": device_name(DEVICE)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name, part in parts(options.small).items():
        if "error" not in results.get(name, {"error": ""}) or (options.only and name not in options.only):
            continue
        try:
            results[name] = part()
        except Exception as error:  # the other parts still have their turn; this one is tried again next time
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        print(name, json.dumps(results[name]), flush=True)
        beside = options.out.with_suffix(".part")
        beside.write_text(json.dumps(results, indent=2) + "\n")
        beside.replace(options.out)
    return results


if __name__ == "__main__":
    main()
