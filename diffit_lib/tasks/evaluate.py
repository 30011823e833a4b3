"""`evaluate`: draw images from weights and measure them, every number with its stamp."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffit_lib.data import Images, Split, recipe_data
from diffit_lib.errors import check
from diffit_lib.extractors import cached, load_inception, train_classifier
from diffit_lib.latents import is_latents
from diffit_lib.metrics import Extractor, Reference, measure_inception, measure_small, reference_statistics
from diffit_lib.pipeline import Labels, Pipeline, load
from diffit_lib.stamp import Stamp
from diffit_lib.tasks.drawn import Drawn
from diffit_lib.tensors import digest, to_uint8
from diffit_lib.weights import Card, check_fits

FIRST_SEED = 10_000  # no setting was ever chosen by looking at these seeds or later ones
HELD = 20_000  # images fetched to train the classifier and to look for copies where the data are not in memory


def evaluate(
    weights: str | Path,
    data: Split | str | Path | None = None,
    *,
    images: int = 500,
    extractor: Literal["classifier", "inception"] | None = None,
    inception: str | Path | None = None,
    protocol: Literal["round", "adm"] = "round",
    drawn: Drawn | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Draw `images` images, as many of each class, and measure them against `data`, the weights' own unless given.

    Seeds are 10000, 10001, ...; `settings` are those of `Pipeline.__call__`; none is rejected. `extractor` is
    "classifier" (trained three times on the train part, numbers are means over it: class accuracy, Frechet distance
    beside its floor, copy check) or "inception" (FID, Inception Score, KID, precision, recall; its weights from the
    path `inception`, else the cache, else downloaded); None takes the classifier where the data have classes. With
    `protocol` "adm" floats are truncated to uint8, as the published evaluators do, which only Inception's numbers know.
    `drawn` keeps the images, rounded, while they are being drawn, so that a broken-off measurement goes on.
    """
    check(images >= 2, f"images is {images}; give 2 or more")
    check(
        extractor == "inception" or inception is None,
        f"inception is {str(inception)!r}, but the extractor is not; give --extractor inception too",
    )
    pipe = load(weights)
    card = pipe.card
    check(
        data is not None or not is_latents(Path(card.recipe.data) / "train"),
        f"{weights} was trained on latents alone, {card.recipe.data}; give the images they are of as --data",
    )
    if not isinstance(data, tuple):
        data = recipe_data(card.recipe, data, card.image_shape)
    check_fits(card, data.train, str(weights))
    kind = extractor or ("classifier" if len(data.train.class_names) > 1 else "inception")
    check(
        kind == "inception" or len(data.train.class_names) > 1,
        f"{data.train.name} has no classes, which the classifier needs; give --extractor inception",
    )
    check(
        kind == "inception" or data.train is not data.test,
        f"{data.train.name} has no test images to compare with; give 50 images or more, or --extractor inception",
    )
    labels = in_turn(card, images)
    if labels is not None:
        labels.sort()
    stamp = make_stamp(pipe, data.train, kind, images, settings)
    seeds = range(FIRST_SEED, FIRST_SEED + images)
    batches = draw(pipe, seeds, labels, protocol, drawn, **settings)
    if kind == "inception":
        network = load_inception(inception).to(pipe.device)
        return measure_inception(batches, cached_reference(data.train, network), network, stamp, protocol)
    check(protocol == "round", f"protocol is {protocol!r}, which is Inception's; give --extractor inception too")
    train, test = data.train.held(HELD), data.test.held(HELD)
    return measure_small(
        torch.cat(list(batches)),
        None if labels is None else torch.tensor(labels),
        train=train.images,
        test=test.images,
        test_labels=test.labels,
        classifiers=[train_classifier(train.images, train.labels, seed, pipe.device) for seed in range(3)],
        stamp=stamp,
    )


def draw(
    pipe: Pipeline, seeds: Sequence[int], labels: Labels, protocol: str, drawn: Drawn | None, **settings: Any
) -> Iterator[Tensor]:
    """Images in batches of 100, (B, C, H, W): uint8 on the CPU, float for a protocol that rounds in its own way."""
    if protocol == "adm":
        return pipe.batches(seeds, labels, batch_size=100, **settings)
    if drawn:
        return drawn.batches(pipe, seeds, labels, batch_size=100, **settings)
    return (to_uint8(x).cpu() for x in pipe.batches(seeds, labels, batch_size=100, **settings))


def make_stamp(pipe: Pipeline, reference: Images, kind: str, images: int, settings: dict[str, Any]) -> Stamp:
    """All that the numbers depend on but the extractor."""
    sampling = pipe.sampling(**settings)
    return Stamp(
        reference=reference.name,
        reference_hash=reference.fingerprint(),
        sampler=f"{sampling.method} sigma={pipe.denoiser.sigma_max:g}..{pipe.denoiser.sigma_min:g}",
        steps=sampling.steps,
        guidance=sampling.guided if pipe.card.recipe.network.num_classes else None,
        seeds=f"{FIRST_SEED}-{FIRST_SEED + images - 1}",
        precision=pipe.precision,
        decoder=f"{pipe.card.vae.recipe.name} {pipe.codec.checksum}" if pipe.card.vae else None,
        weights_hash=digest(pipe.denoiser.state_dict()),
        best_by_this_metric=pipe.card.chosen_by == kind,
    )


def cached_reference(train: Images, extractor: Extractor) -> Reference:
    """Statistics of real images, from the cache where they were taken before."""
    name = f"references/{train.fingerprint()}-{extractor.name}-{extractor.checksum}"
    return Reference(**cached(name, lambda: reference_statistics(train.images, extractor)._asdict()))


def in_turn(card: Card, count: int) -> list[int | str] | None:
    """Labels 0, 1, 2, ... over and over, one for each of `count` images; None for unconditional weights."""
    classes = card.recipe.network.num_classes
    return [k % classes for k in range(count)] if classes else None


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) as the pipeline gives them -> uint8 (N, C, H, W)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
