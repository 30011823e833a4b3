"""A quick look at a finished run: some samples, and numbers that take a minute or two on a CPU."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diffit_lib.data.datasets import Images, Split
from diffit_lib.evaluation.copies import shrink
from diffit_lib.evaluation.evaluate import FIRST_SEED, make_provenance
from diffit_lib.evaluation.evaluator import HELD, ClassifierEvaluator
from diffit_lib.evaluation.features import inception_path, load_inception, train_classifier
from diffit_lib.evaluation.metrics import evenly, frechet_distance, nearest, real_distance
from diffit_lib.sampling.classes import in_turn
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.logging import say
from diffit_lib.utils.tensors import to_uint8

SHOWN, ROW = 32, 8  # samples in the grid, and pairs in the copy check
MOST, SECONDS = 256, 90.0  # samples drawn: so many, or as many rows as that time suffices for,
SHARE, LEAST = 0.1, 10.0  # or this share of the time that the run was trained, so many seconds at least
LONG = 30.0  # seconds for drawing, from which there is time to train a classifier of more than tiny images
TINY = 16  # pixels a side, whose classifier trains in seconds
ROUGH = 128  # samples, below which a Frechet distance says little
INCEPTION_REALS = 1_000  # training images that Inception looks at


@dataclass
class QuickEvaluation:
    """What a report shows; images are uint8 (N, C, H, W)."""

    samples: Tensor  # the first ones drawn, classes in turn
    reals: Tensor  # as many real ones, held out where there is a test part
    pairs: tuple[Tensor, Tensor]  # the samples most like a training image, and those training images
    numbers: dict[str, Any] = field(default_factory=dict)  # as `ClassifierEvaluator` calls them; stamped
    missing: list[str] = field(default_factory=list)  # what could not be measured, and why


def evaluate_quickly(pipe: Pipeline, data: Split) -> QuickEvaluation:
    """Draw up to 256 images and measure them against the data of the run.

    Drawing takes about a tenth of the time that the run was trained, but 10 to 90 seconds if it takes that long.

    Copies are searched for in images shrunk to 32 pixels, where fine detail does not hide them, and a small classifier
    measures the same small images: it trains in about a minute. Real test images give the floor of each distance;
    without a test part nothing is measured. Inception measures too, if its weights are in the cache.
    """
    train, test, card = data.train.held(HELD), data.test.held(HELD), pipe.card
    trained = 60 * (card.minutes + (card.vae.minutes if card.vae else 0.0))
    seconds = min(SECONDS, max(LEAST, SHARE * trained))
    say(f"report: drawing up to {MOST} images, for {seconds:.0f} seconds or so")
    samples = draw(pipe, seconds)
    labels = in_turn(card, len(samples))
    small, small_train, small_test = (shrink(images).round().byte() for images in (samples, train.images, test.images))
    distance, index = nearest(small, small_train)
    first = distance.argsort()[:ROW]
    shown = evenly(test.labels, min(SHOWN, len(test)))
    quick = QuickEvaluation(samples[:SHOWN], test.images[shown], (samples[first], train.images[index[first]]))
    if data.train is data.test:
        quick.missing.append("There are too few images for a test part, so no number has a floor to stand beside.")
        return quick
    try:
        quick.numbers = {"copy_ratio": distance.median().item() / real_distance(small_train, small_test)}
    except DiffitError as error:
        quick.missing.append(f"No copy ratio: {error}.")
    if len(samples) < SHOWN or (seconds < LONG and max(small.shape[2:]) > TINY):
        quick.missing.append("No class accuracy and no Frechet distance: they would take longer than so short a run.")
    elif len(train.class_names) > 1 and quick.numbers:
        say("report: a small classifier looks at them; about a minute on a CPU, where it is not trained yet")
        classifier = train_classifier(small_train, train.labels, device=pipe.device)
        parts = replace(train, images=small_train), replace(test, images=small_test)
        evaluator = ClassifierEvaluator(*parts, [classifier], reference=data.train)
        asked_for = None if labels is None else torch.tensor(labels)
        quick.numbers |= evaluator([small], asked_for, make_provenance(pipe, "classifier", len(samples), {}))
    elif not train.class_names:
        quick.missing.append("The images have no classes, so no classifier can be trained to look at them.")
    if len(samples) < ROUGH:
        quick.missing.append(f"Only {len(samples)} images could be drawn in time: the Frechet distance says little.")
    add_inception(quick, samples, train, test, pipe.device)
    return quick


def add_inception(quick: QuickEvaluation, samples: Tensor, train: Images, test: Images, device: torch.device) -> None:
    """Add the Frechet distances in Inception's features, or say that its weights are missing; nothing is downloaded."""
    if not inception_path().is_file():
        quick.missing.append(
            f"No Inception: its weights are not at {inception_path()}. "
            "`diffit evaluate WEIGHTS --extractor inception` fetches them, and takes FID, KID, precision and recall."
        )
        return
    say("report: Inception looks at them; minutes on a CPU")
    n = min(len(samples), len(test))
    inception = load_inception().to(device)
    reference = inception.features(train.images[train.spread(INCEPTION_REALS)])
    for name, images in (("inception_frechet", samples[:n]), ("inception_floor", test.images[test.spread(n)])):
        quick.numbers[name] = frechet_distance(inception.features(images), reference)


def draw(pipe: Pipeline, seconds: float) -> Tensor:
    """As many rows as there is time for, seeds from 10000 on, classes in turn; uint8 (N, C, H, W) on the CPU."""
    start, labels, drawn, first, size = time.monotonic(), in_turn(pipe.card, MOST), [], 0, ROW
    while first < MOST:
        seeds = range(FIRST_SEED + first, FIRST_SEED + first + size)
        drawn += [to_uint8(images).cpu() for images in pipe.batches(seeds, labels and labels[first : first + size])]
        first += size
        left = seconds - (time.monotonic() - start)
        fits = int(left / (seconds - left) * first) if left > 0 else 0  # at the speed up to now
        if fits < ROW:
            break
        size = min(fits // ROW * ROW, SHOWN, MOST - first)
    return torch.cat(drawn)
