"""How well the copy test works: `python tools/copy_rates.py digits photos.zip` prints its rates over 20 seeds."""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit_lib.data.datasets import load_data
from diffit_lib.evaluation.copies import copy_alarm, cropped, find_copies
from diffit_lib.utils.tensors import seeded_generator

SAMPLES, PLANTED, TRAIN = 500, 5, 2_000  # 1 % are planted


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    """With noise of 0.05 of the whole range, uint8."""
    return (images + 0.05 * 255 * torch.randn(images.shape, generator=generator)).round().clamp(0, 255).byte()


def crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of 0.8 to 1 of each side, uint8."""
    draws = torch.rand(len(images), 3, generator=generator)
    places = torch.cat([0.8 + 0.2 * draws[:, :1], 2 * draws[:, 1:] - 1, torch.ones(len(images), 1)], dim=1)
    return cropped(images.float(), places).round().byte()


def blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """Without detail, as a network draws that saw too little: each pixel the mean of a quarter of the image, uint8."""
    size = max(3, min(images.shape[2:]) // 4 | 1)
    return F.avg_pool2d(F.pad(images.float(), (size // 2,) * 4, mode="replicate"), size, 1).round().byte()


PLANTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "exact": lambda images, _: images,
    "cropped": crops,
    "flipped": lambda images, _: images.flip(-1),
    "noisy": noisy,
    "cropped, flipped and noisy": lambda images, generator: noisy(crops(images, generator).flip(-1), generator),
}


def gaussian(train: Tensor, generator: torch.Generator) -> Tensor:
    """A generator that knows no more than means and covariances of the pixels (at 8 a side), uint8."""
    small = F.interpolate(train.float(), (8, 8), mode="area").flatten(1)
    root = torch.linalg.cholesky(small.T.cov() + torch.eye(small.shape[1]))
    drawn = small.mean(0) + torch.randn(SAMPLES, small.shape[1], generator=generator) @ root.T
    drawn = F.interpolate(drawn.view(SAMPLES, -1, 8, 8), train.shape[2:], mode="bilinear")
    return drawn.round().clamp(0, 255).byte()


def main(name: str) -> None:
    """Print the rows of a Markdown table."""
    data = load_data(name)
    everything = [part.held(10_000) for part in (data.train, data.test)]
    images, labels = (torch.cat([getattr(part, key) for part in everything]) for key in ("images", "labels"))
    planted = {kind: [0, 0, 0, 0, 0] for kind in PLANTS}  # found, planted, false, others, alarms
    other: dict[str, list[int]] = {}
    for seed in range(20):
        generator = seeded_generator("copies", name, seed)
        order = torch.randperm(len(images), generator=generator)
        half = min(SAMPLES, len(images) // 5)
        test, real, train = order[:half], order[half : 2 * half], order[2 * half :][:TRAIN]
        floor = find_copies(images[test], images[train])
        clean = find_copies(images[real], images[train])
        mode = labels[real].bincount().argmax()
        repeats = real[labels[real] == mode][:3].repeat(SAMPLES)[:SAMPLES]
        draws: dict[str, Tensor] = {
            "real images (a perfect generator)": clean,
            "blurred": find_copies(blurred(images[real], generator), images[train]),
            "Gaussian": find_copies(gaussian(images[train], generator), images[train]),
            "one class alone": clean[labels[real] == mode],
            "three images over and over": find_copies(noisy(images[repeats], generator), images[train]),
        }
        for kind, found in draws.items():
            counts = other.setdefault(kind, [0, 0, 0])
            counts[0] += int(found.sum())
            counts[1] += len(found)
            counts[2] += copy_alarm(found, floor)
        for kind, make in PLANTS.items():
            chosen = torch.randperm(len(train), generator=generator)[:PLANTED]
            copies = find_copies(make(images[train[chosen]], generator), images[train])
            both = torch.cat([copies, clean[PLANTED:]])
            counts = planted[kind]
            changes = (copies.sum(), PLANTED, clean[PLANTED:].sum(), half - PLANTED, copy_alarm(both, floor))
            planted[kind] = [a + int(b) for a, b in zip(counts, changes, strict=True)]
    for kind, (found, count, false, others, alarms) in planted.items():
        print(f"| {name} | 1 % {kind} | {found / count:.0%} | {false / others:.2%} | {alarms} of 20 |")
    for kind, (false, others, alarms) in other.items():
        print(f"| {name} | {kind} | - | {false / others:.2%} | {alarms} of 20 |")


if __name__ == "__main__":
    print("| data | samples | planted copies found | others called copies | alarms |\n|---|---|---|---|---|")
    for source in sys.argv[1:]:
        main(source)
