"""What is timed around the networks: samplers, whole drawings, data, and how a training step grows."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from contenders import gflop, latent_networks, passes, pixel_networks, transformer
from safetensors.torch import save_file
from timing import Rows, interleaved, summary
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from diffit_lib.checkpoints.weights import ModelCard
from diffit_lib.config.diffusion import EDMConfig, SamplingConfig, VPConfig
from diffit_lib.config.experiment import ExperimentConfig, TrainingConfig
from diffit_lib.config.models import ImageNetworkConfig, TransformerConfig
from diffit_lib.config.presets import preset
from diffit_lib.data.datasets import Images, load_data
from diffit_lib.data.latent_cache import SHARD, CachedLatents, Shards, shard_path
from diffit_lib.data.pack import pack
from diffit_lib.data.stream import TrainingStream
from diffit_lib.diffusion.denoiser import DENOISERS, EDMDenoiser
from diffit_lib.diffusion.samplers import SAMPLERS
from diffit_lib.models import build_network
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.training.optimizer import Muon
from diffit_lib.utils.tensors import SeededNoise

GUIDANCE = 4.0


class Nothing(nn.Module):
    """A network that answers at once."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """x itself."""
        return x


def samplers(rounds: int, small: bool) -> dict[str, Any]:
    """Microseconds a step outside the network: batch 16, 32x32x3, our state in float64, diffusers' in float32."""
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

    steps, denoiser = 5 if small else 50, EDMDenoiser(Nothing(), EDMConfig(sigma_data=0.5))
    noise, start = SeededNoise(range(16), (3, 32, 32)), torch.randn(16, 3, 32, 32)

    def ours(sampler: str) -> None:
        for _ in SAMPLERS[sampler](denoiser, denoiser.initial(start.double()), denoiser.levels(steps), None, noise):
            pass

    def theirs(scheduler: Any) -> None:
        scheduler.set_timesteps(steps)
        x = start * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t), t, x).prev_sample

    functions = {f"ours, {name}": partial(ours, name) for name in ("euler", "dpm++", "heun", "ddpm")}
    for kind in (EulerDiscreteScheduler, DDIMScheduler, DPMSolverMultistepScheduler, DDPMScheduler):
        functions[f"diffusers {kind.__name__}"] = partial(theirs, kind())
    times = interleaved(functions, rounds)
    return {"samplers, us a step": {name: 1e6 * median(each) / steps for name, each in times.items()}}


def drawing(rounds: int, small: bool) -> dict[str, Rows]:
    """Whole pipelines, 50 steps, 2 images, float32: guided on latents, where the sizes are the same; plain on pixels.

    At most 3 rounds, as one takes a minute.
    """
    from diffusers import DDIMPipeline, DDIMScheduler, DiTPipeline

    rounds = min(rounds, 3)
    steps, count, results = 2 if small else 50, 1 if small else 2, {}
    networks = latent_networks(small, num_classes=1000)
    per_image, autoencoder = gflop(networks, torch.randn(1, 4, 32, 32)), Untouched()
    functions, work = {}, {name: 2 * count * steps * each for name, each in per_image.items()}
    for name, (module, _) in networks.items():
        if name.startswith("ours"):
            config, sampling = VPConfig(), SamplingConfig("ddim", steps, GUIDANCE)
            functions[name] = partial(pipeline(module, config, sampling), range(count), 7)
        else:
            pipe = quiet(DiTPipeline(module, autoencoder, DDIMScheduler()))
            functions[name] = partial(pipe, [7] * count, GUIDANCE, None, steps, "np")
    results[f"{steps} guided steps, latents"] = summary(interleaved(functions, rounds), work)
    networks = dict(list(pixel_networks(small).items())[:2])
    work = {name: count * steps * each for name, each in gflop(networks, torch.randn(1, 3, 32, 32)).items()}
    (ours, (module, _)), (theirs, (unet, _)) = networks.items()
    pipe = pipeline(module, EDMConfig(sigma_data=0.5), SamplingConfig("euler", steps))
    other = quiet(DDIMPipeline(unet, DDIMScheduler()))
    functions = {ours: partial(pipe, range(count))}
    functions[theirs] = partial(other, count, num_inference_steps=steps, output_type="np")
    return results | {f"{steps} steps, pixels": summary(interleaved(functions, rounds), work)}


class Untouched(nn.Module):
    """Stands for an autoencoder: its images are the latents."""

    config, device, dtype = SimpleNamespace(scaling_factor=1.0), torch.device("cpu"), torch.float32

    def decode(self, latents: Tensor) -> SimpleNamespace:
        """The latents themselves."""
        return SimpleNamespace(sample=latents)


def pipeline(network: nn.Module, config: EDMConfig | VPConfig, sampling: SamplingConfig) -> Pipeline:
    """Our pipeline around a network, in float32."""
    experiment = ExperimentConfig("bench", "", network=network.config, denoiser=config, sampling=sampling)
    denoiser = DENOISERS[config.kind](network, config)
    return Pipeline(denoiser, ModelCard(experiment), device=torch.device("cpu"), precision="32-true")


def quiet(pipe: Any) -> Any:
    """A pipeline of diffusers without its bar of progress."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def data(rounds: int, small: bool) -> dict[str, Any]:
    """Images, or latents of 32x32x4, a second: whole training batches, noise included, made by one process."""
    size, results = 16 if small else 256, {}
    network, x = transformer("diffit", small), torch.randn(1 if small else 8, 4, 32, 32)
    step = passes({"": (network, network)}, x, "bf16-mixed")["step"][""]
    results["DiffiT-S/2 trains, bf16"] = len(x) / median(interleaved({"": step}, rounds)[""])
    with streams(size) as found:
        functions = {name: partial(next, iter(stream)) for name, stream in found.items()}
        half, numbers = [number % 2 == 0 for number in range(size)], list(range(size))
        functions["memory, pixels without noise"] = partial(found["memory"].data.fetch, numbers, half)
        times = interleaved(functions, rounds)
    rates = {name: size / median(each) for name, each in times.items()}
    return {"data, images/s": rates | results}


@contextmanager
def streams(size: int) -> Iterator[dict[str, TrainingStream]]:
    """Batches from memory, from PNG files in a zip that are decoded when used, and from cached latents in a file."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(SHARD, 3, 8, 8, generator=generator)  # neighbours are alike, as in photographs
    pixels = (255 * F.interpolate(coarse, size=32, mode="bilinear")).to(torch.uint8)
    labels, training = torch.zeros(SHARD, dtype=torch.int64), TrainingConfig(batch_size=size, flip=True)
    with TemporaryDirectory() as folder:
        archive = pack(TensorDataset(pixels, labels), Path(folder) / "images.zip")
        lazy = load_data(archive, memory_gb=1e-9).train
        moments = torch.randn(SHARD, 8, 32, 32, generator=generator).half()
        save_file({"moments": moments, "mirrored": moments.flip(-1)}, shard_path(Path(folder), 0))
        shards = [Shards(Path(folder), tuple(moments.shape), name) for name in ("moments", "mirrored")]
        latents = CachedLatents("latents", shards[0], labels, (), shards[1])
        yield {
            "memory": TrainingStream(Images("memory", pixels, labels, ()), training),
            "zip": TrainingStream(lazy, training),
            "latents": TrainingStream(latents, training, (4, 32, 32), latent=True),
        }


def shortcuts(rounds: int, small: bool) -> dict[str, Rows]:
    """A training step in float32 of pixel networks, beside the same with PyTorch's upsampling and GELU."""
    results = {}
    for name, batch in (("digits", 64), ("mnist", 64), ("cifar10", 16))[: 1 if small else None]:
        fast, work = step_of(preset(name).network, 1 if small else batch)

        def plain(step: Callable[[], None] = fast) -> None:
            never = {"LEAST_PIXELS": math.inf, "LEAST_ELEMENTS": math.inf}
            with patch.multiple("diffit_lib.models.layers", **never):
                step()

        times = interleaved({"ours": fast, "plain": plain}, rounds)
        results[f"shortcuts, step of {name}"] = summary(times, dict.fromkeys(times, work))
    return results


def optimizers(rounds: int, small: bool) -> dict[str, Any]:
    """Milliseconds of an optimizer's step for the networks of `digits` and `mnist`, with random gradients."""
    functions = {}
    for name in ("digits",) if small else ("digits", "mnist"):
        experiment = preset(name)
        kinds = {
            "Muon": lambda network, training=experiment.training: Muon(network, training.lr, training.muon, fused=True),
            "Adam": lambda network: torch.optim.Adam(network.parameters(), fused=True),
        }
        for kind, make in kinds.items():
            network = build_network(experiment.network).to(memory_format=torch.channels_last)
            for parameter in network.parameters():
                parameter.grad = torch.randn_like(parameter)
            functions[f"{name}, {kind}"] = make(network).step
    times = interleaved(functions, rounds)
    return {"optimizers, ms a step": {name: 1e3 * median(each) for name, each in times.items()}}


def start(rounds: int, small: bool) -> dict[str, Any]:
    """CPU time of a new process after `import torch`, in milliseconds."""
    code = "import time, torch\nstart = time.process_time()\nimport diffit_lib\n{}\nprint(time.process_time() - start)"
    times = {
        what or "import diffit_lib": [
            float(subprocess.check_output([sys.executable, "-c", code.format(what and f"diffit_lib.{what}")]))
            for _ in range(1 if small else rounds)
        ]
        for what in ("", "load('digits')")
    }
    return {"start, ms after import torch": {what: 1e3 * median(each) for what, each in times.items()}}


def growth(rounds: int, small: bool) -> dict[str, Rows]:
    """Training steps in float32 of both kinds of network as batch, side or depth grow, beside the smallest."""
    image = ImageNetworkConfig(width=16 if small else 64, num_blocks=1)
    latent = TransformerConfig(width=96 if small else 384, depth=1)
    results = {}
    for kind, config, depth in (("pixels", image, "num_blocks"), ("latents", latent, "depth")):
        for what, values in (("batch", (1, 4, 16)), ("side", (16, 32, 64)), (depth, (1, 2, 4))):
            steps, work = {}, {}
            for value in values[: 2 if small else None]:
                batch = value if what == "batch" else 4
                changes = {"side": {"image_size": (value, value)}, depth: {depth: value}}.get(what, {})
                steps[f"{what} {value}"], work[f"{what} {value}"] = step_of(replace(config, **changes), batch)
            results[f"growth, {kind}, {what.replace('num_blocks', 'depth')}"] = summary(
                interleaved(steps, rounds), work
            )
    return results


def step_of(config: Any, batch: int) -> tuple[Callable[[], None], float]:
    """A training step of a fresh network, and its GFLOP."""
    torch.manual_seed(0)
    network, x = build_network(config), torch.randn(batch, *config.shape)
    named = {"": (network, network)}
    return passes(named, x, "32-true")["step"][""], 3 * batch * gflop(named, x)[""]
