"""Time to quality: train entries for equal seconds on one core, judge their samples, append one line each to a table.

    python tools/speedrun.py tools/speedrun/*.yaml --seconds 60 --seeds 0,1,2 --out speedrun.jsonl

Entries take turns, seed by seed, so that a busy hour harms all alike. A line that is there already is not made again.
The clock counts the CPU time of the process in training steps, data included; judging is not counted. An entry is a
YAML file of a preset's options; its key `trick` holds what only this loop knows (`TRICKS`).
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from speedrun_networks import alter
from torch import Tensor, nn

from diffit_lib.checkpoints.weights import ModelCard, build_denoiser, save_weights
from diffit_lib.config.presets import load_options, preset
from diffit_lib.data.datasets import Images, Split, experiment_data
from diffit_lib.data.stream import TrainingStream
from diffit_lib.diffusion.loss import denoising_loss
from diffit_lib.evaluation.evaluate import FIRST_SEED, combinations, make_provenance
from diffit_lib.evaluation.evaluator import make_evaluator
from diffit_lib.models.cost import parameters
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.training.optimizer import Muon
from diffit_lib.utils.tensors import autocast, best_precision, reuse_freed_memory, to_float

TRICKS = {
    "beta2": 0.999,  # Adam's
    "warm": 0.05,  # share of the run over which the learning rate rises
    "gain": 1e-5,  # of Xavier's bounds for the last layers of attention and MLP
    "class_std": 0.0,  # of the class embedding at the start; 0: as in the library
    "immiscible": False,  # noise assigned to images within the batch so that the distances are least (Li et al. 2024)
    "soft_min_snr": 0.0,  # weight of the clean image's error 1 / (sigma^2 + 1 / gamma) (Crowson et al. 2024)
    "qk_norm": False,  # RMS norm of queries and keys
    "time": "tmsa",  # where the time token enters: tmsa, mlp, bias, none
    "ema": [0.1],  # half-lives, as shares of the images seen; each is judged
    "auto": 0.0,  # autoguidance by the weights at this share of the run
    "rival": "",  # a network of another library in place of ours
    "images": 0,  # stop at these images, not at the seconds
}
NUMBERS = ("accuracy", "frechet", "copy", "draw")
IMAGES = 500  # judged
CPU = torch.device("cpu")


def main() -> None:
    """Run every entry with every seed, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("entries", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("speedrun.jsonl"))
    parser.add_argument("--keep", type=Path, help="folder for the weights")
    parser.add_argument("--table", type=Path, help="print this table as Markdown")
    args = parser.parse_args()
    torch.set_num_threads(1)
    reuse_freed_memory()
    for seed in map(int, args.seeds.split(",")):
        for path in args.entries:
            key = {"entry": path.stem, "seconds": args.seconds, "seed": seed}
            if key in [{name: row[name] for name in key} for row in rows(args.out)]:
                continue
            row = key | run(path, args.seconds, seed, args.keep) | {"gflops": round(gflops())}
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    if args.table:
        print(table(args.table))


def gflops() -> float:
    """This core's float32 matrix product now, in 10^9 multiplications and additions a second."""
    a, start, count = torch.rand(1024, 1024), time.process_time(), 0
    while time.process_time() - start < 0.5:
        a @ a
        count += 1
    return count * 2 * 1024**3 / (time.process_time() - start) / 1e9


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a table."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(path: Path) -> str:
    """Means over the seeds as Markdown, the smallest and largest in brackets."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows(path):
        for judged in row["judged"]:
            settings = " ".join(f"{key} {judged[key]}" for key in judged if key not in NUMBERS)
            groups.setdefault((row["entry"], row["seconds"], settings), []).append(row | judged)
    lines = [
        "| entry | seconds | average | seeds | images | class accuracy | Frechet ratio | copy ratio | GFLOP |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (entry, seconds, settings), each in groups.items():
        cells = [spread([row[name] for row in each]) for name in ("accuracy", "frechet", "copy")]
        images = round(sum(row["images"] for row in each) / len(each), -2)
        work = sum(row["used"] * row.get("gflops", 0) for row in each) / len(each)
        head = f"| `{entry}` | {seconds:g} | {settings} | {len(each)} | {images:,.0f} |"
        lines.append(f"{head} {' | '.join(cells)} | {work:,.0f} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean (smallest to largest)."""
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def run(path: Path, seconds: float, seed: int, keep: Path | None = None) -> dict[str, Any]:
    """Train one entry and judge it with each of its settings of sampling, at each of its averages."""
    options = load_options(path.read_text())
    trick = TRICKS | (options.pop("trick", None) or {})
    sampling = {name: tuple(values) for name, values in options.pop("judge", {}).items()}
    experiment = preset(options.pop("preset")).override(**options, seed=seed, flip=False)
    data = experiment_data(experiment)
    if getattr(experiment.denoiser, "sigma_data", 1.0) is None:
        experiment = experiment.override(sigma_data=round(data.train.standard_deviation(), 4))
    averages, row = train(experiment, trick, data.train, seconds)
    print(path.stem, row, flush=True)
    row["judged"] = []
    for (name, average), settings in ((a, s) for a in averages.items() for s in combinations(sampling)):
        card = ModelCard(experiment=experiment, class_names=data.train.class_names, images_seen=row["images"])
        if keep:
            save_weights(keep / f"{path.stem}-{seconds:g}-{seed}-{name}.safetensors", card, average)
        row["judged"].append({"ema": name, **settings, **judge(average, card, data, settings)})
    return row


def train(experiment: Any, trick: dict[str, Any], images: Images, seconds: float) -> tuple[dict[str, Any], dict]:
    """The loop: averages by their half-life, and what the run saw."""
    training = experiment.training
    torch.manual_seed(training.seed)
    denoiser = build_denoiser(experiment).to(memory_format=torch.channels_last)
    alter(denoiser, trick)
    for name, weight in denoiser.named_parameters():
        if trick["gain"] != 1e-5 and name.endswith(("attn.proj.weight", "fc2.weight")):
            nn.init.xavier_uniform_(weight, gain=trick["gain"])
        if trick["class_std"] and name.endswith("classes.weight"):
            nn.init.normal_(weight, std=trick["class_std"])
    averages = {str(share): flat(denoiser) for share in trick["ema"]}
    optimizer, stream = make_optimizer(denoiser, training, trick), TrainingStream(images, training)
    first, step, losses, decay = time.process_time(), 0, [], max(training.lr_decay, 1e-9)
    early: dict[str, Tensor] | None = None
    while (done := max((time.process_time() - first) / seconds, 0)) < 1:
        if trick["images"]:
            done = step * training.batch_size / trick["images"]
            if done >= 1:
                break
        factor = max(min(1.0, done / trick["warm"], (1 - done) / decay), 1e-4)
        for group, rate in zip(optimizer.param_groups, (training.lr, training.muon), strict=False):
            group["lr"] = rate * factor
        batch = stream.batch(step)
        clean, noise = to_float(batch.images), batch.noise
        if trick["immiscible"]:
            noise = assigned(clean, noise)
        sigma = denoiser.draw_sigma(batch.uniform)
        with autocast(CPU, best_precision(CPU, training.precision)):
            loss = denoising_loss(denoiser, clean, sigma, noise, batch.labels)
        if gamma := trick["soft_min_snr"]:
            loss = loss / denoiser.weight(sigma) / (sigma**2 + 1 / gamma)
        loss = loss.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(denoiser.parameters(), training.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        if trick["auto"] and done >= trick["auto"] and early is None:
            early = {share: average.clone() for share, average in averages.items()}
        step += 1
        losses.append(loss.detach())
        if step % 4 == 0:
            now = flat(denoiser)
            for share, average in averages.items():
                average.lerp_(now, 1 - 0.5 ** (4 / max(float(share) * step, 1e-8)))
    used = time.process_time() - first
    row = {
        "images": step * training.batch_size,
        "used": round(used, 1),
        "parameters": parameters(denoiser.network),
        "loss": float(torch.stack(losses[-len(losses) // 10 :]).mean()),
    }
    found = {share: filled(experiment, trick, average) for share, average in averages.items()}
    for share, average in (early or {}).items():
        for weight in (1.5, 2.0):
            good, bad = found[share], filled(experiment, trick, average)
            found[f"{share} auto {weight}"] = autoguided(filled(experiment, trick, averages[share]), good, bad, weight)
    return found, row


def filled(experiment: Any, trick: dict[str, Any], parameters: Tensor) -> Any:
    """A denoiser of these parameters, (P,)."""
    denoiser = build_denoiser(experiment)
    alter(denoiser, trick)
    sizes = [parameter.numel() for parameter in denoiser.parameters()]
    for parameter, values in zip(denoiser.parameters(), parameters.split(sizes), strict=True):
        parameter.data.copy_(values.view(parameter.shape))
    return denoiser.eval().requires_grad_(False)


def autoguided(denoiser: Any, good: Any, bad: Any, weight: float) -> Any:
    """Guidance by a worse version of the same network (Karras et al. 2024): bad + weight (good - bad)."""

    def with_variance(*inputs: Any) -> tuple[Tensor, None]:
        worse = bad(*inputs)
        return worse + weight * (good(*inputs) - worse), None

    denoiser.with_variance = with_variance
    return denoiser


def flat(module: nn.Module) -> Tensor:
    """All parameters, one after the other: (P,)."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def make_optimizer(denoiser: nn.Module, training: Any, trick: dict[str, Any]) -> torch.optim.Optimizer:
    """Adam for all, or Muon for the matrices and Adam for the rest, as in training."""
    if training.muon:
        optimizer = Muon(denoiser, training.lr, training.muon, fused=True)
        for group in optimizer.parts[0].param_groups:
            group["betas"] = (0.9, trick["beta2"])
        return optimizer
    return torch.optim.Adam(denoiser.parameters(), lr=training.lr, betas=(0.9, trick["beta2"]), fused=True)


def assigned(clean: Tensor, noise: Tensor) -> Tensor:
    """The batch's noise in the order with the least sum of squared distances to its images."""
    from scipy.optimize import linear_sum_assignment

    return noise[linear_sum_assignment(-(clean.flatten(1) @ noise.flatten(1).T).numpy())[1]]


def judge(denoiser: Any, card: ModelCard, data: Split, settings: dict[str, Any]) -> dict[str, float]:
    """Class accuracy, Frechet ratio and copy ratio of 500 samples, and the seconds of drawing."""
    pipe = Pipeline(denoiser, card, device=CPU)
    start, seeds = time.process_time(), range(FIRST_SEED, FIRST_SEED + IMAGES)
    labels = sorted(card.classes_in_turn(IMAGES) or [])
    pictures = torch.from_numpy(pipe(seeds, labels, batch_size=100, **settings)).permute(0, 3, 1, 2)
    seconds = time.process_time() - start
    stamp = make_provenance(pipe, "classifier", IMAGES, settings)
    numbers = make_evaluator(data, "classifier", CPU)([pictures], torch.tensor(labels), replace(stamp))
    names = {"class_accuracy": "accuracy", "frechet_ratio": "frechet", "copy_ratio": "copy"}
    return {short: round(numbers[name], 4) for name, short in names.items()} | {"draw": round(seconds, 1)}


if __name__ == "__main__":
    sys.exit(main())
