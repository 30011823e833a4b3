"""What has become of a finished run: some samples, numbers that take a minute or two on a CPU, and a diagnosis.

The diagnosis is a word and a sentence, by rules with numbers in them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffit_lib.data.datasets import Images, Split
from diffit_lib.evaluation.copies import shrink
from diffit_lib.evaluation.evaluate import FIRST_SEED, make_provenance
from diffit_lib.evaluation.evaluator import HELD, ClassifierEvaluator
from diffit_lib.evaluation.features import INCEPTION_URL, load_inception, train_classifier
from diffit_lib.evaluation.metrics import evenly, frechet_distance, nearest, real_distance
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import in_cache
from diffit_lib.utils.logging import say
from diffit_lib.utils.tensors import to_uint8

SHOWN, ROW = 32, 8  # samples in the grid, and pairs in the copy check
MOST, SECONDS = 256, 90.0  # samples drawn: so many, or as many rows as that time suffices for,
SHARE, LEAST = 0.1, 10.0  # or this share of the time that the run was trained, so many seconds at least
LONG = 30.0  # seconds for drawing, from which there is time to train a classifier of more than tiny images
TINY = 16  # pixels a side, whose classifier trains in seconds
ROUGH = 128  # samples, below which a Frechet distance says little
INCEPTION_REALS = 1_000  # training images that Inception looks at

COPIES = 0.5  # copy ratio (1: as far from the training images as new real ones) below which samples are copies
RISE = 0.02  # rise of the test loss above its lowest value, from which the run overfits
GAP = 0.25  # excess of the test loss over the training loss, from which the run overfits
FALL = 0.03  # fall of the test loss over the second half of the images, from which more training helps
FEWEST = 3  # reports; fewer show no curve
FINISHED = 0.9  # share of the planned images; a run that stopped earlier has not done what it was asked
POOR_PSNR = 20.0  # dB; samples of an autoencoder below this are blurred, however well its latents are learned
SEEN = 0.5  # class accuracy that is asked for, as a share of the way from chance to the accuracy on real images
TELLS = 0.1  # accuracy above chance on real images, below which a classifier's view of samples means nothing
FAR = 30.0  # Frechet distance over that of real images, from which samples are poor (digits: fog 36, untrained 211)


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
    labels = card.classes_in_turn(len(samples))
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
    if not in_cache(INCEPTION_URL).is_file():
        quick.missing.append(
            f"No Inception: its weights are not at {in_cache(INCEPTION_URL)}. "
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
    start, labels, drawn, first, size = time.monotonic(), pipe.card.classes_in_turn(MOST), [], 0, ROW
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


class Diagnosis(NamedTuple):
    """What to make of a run."""

    word: str  # e.g. "overfitting" or "done"
    meaning: str  # what it means and what to do, a sentence or two
    reasons: tuple[str, ...]  # every number that was looked at, beside its threshold


def diagnose(
    rows: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, Any] | None = None,
    *,
    held_out: bool = True,
    training_images: int = 0,
    planned_images: int = 0,
    classes: int = 0,
    psnr: float | None = None,
) -> Diagnosis:
    """Diagnose a run from the rows of its `metrics.csv` and the `numbers` of `QuickEvaluation`. The first rule wins.

    diverged: the last loss is NaN or infinite.
    poor autoencoder: its `psnr` is below 20 dB. copying: the copy ratio is below 0.5 after every training image was
    seen; before, it is fog that lies near them. cannot say yet: there are fewer than three reports or none in the first
    half, or not every training image was seen. overfitting: the test loss ends 2 % above its lowest value, or 25 %
    above the training loss. still falling: over the second half of the images the test loss fell by 3 %. cannot say
    yet, once more: the run stopped before 90 % of `planned_images`. poor samples: the class accuracy is nearer to
    chance than to that of real images, or the Frechet distance is 30 times theirs. done: none of these.

    Without a test part (`held_out` is false) copying and overfitting cannot be seen, and their rules are left out.
    """
    numbers = numbers or {}
    curves, seen = summarize_curves(rows), float(rows[-1]["images"]) if rows else 0.0
    copies = numbers.get("copy_ratio") if held_out else None
    chance, real = 1 / max(1, classes), numbers.get("classifier_test_accuracy", 0.0)
    accuracy = numbers.get("class_accuracy") if classes > 1 and real - chance > TELLS else None
    wanted = chance + SEEN * (real - chance)
    distance = numbers["frechet"] / numbers["frechet_floor"] if numbers.get("frechet_floor") else None

    rise, gap, fall = curves or (0.0, 0.0, 0.0)
    reasons = []
    if copies is not None:
        reasons.append(f"copy ratio {copies:.2f} (copies below {COPIES})")
    if psnr is not None:
        reasons.append(f"autoencoder's PSNR {psnr:.1f} dB (poor below {POOR_PSNR:g} dB)")
    if planned_images:
        reasons.append(f"{seen / planned_images:.0%} of the planned images were seen (finished from {FINISHED:.0%} on)")
    if seen < training_images:
        reasons.append(f"{seen / training_images:.0%} of the training images were seen (all, to tell)")
    elif curves:
        reasons += [
            f"test loss {rise:.1%} above its lowest (overfitting from {RISE:.0%} on)",
            f"test loss {gap:+.0%} from the training loss (overfitting from {GAP:+.0%} on)",
        ] * held_out
        reasons.append(f"test loss fell by {fall:.1%} over the second half (still falling from {FALL:.0%} on)")
    if accuracy is not None:
        known = f"chance {chance:.2f}, real images {real:.2f}"
        reasons.append(f"class accuracy {accuracy:.2f} ({known}, poor below {wanted:.2f})")
    if distance is not None:
        reasons.append(f"Frechet distance {distance:.1f} times that of real images (poor from {FAR:g} on)")

    poor = (accuracy is not None and accuracy < wanted) or (distance is not None and distance >= FAR)
    ends = [float(rows[-1][name]) for name in ("loss", "test_loss") if rows and rows[-1].get(name) not in ("", None)]
    short = curves is None or seen < training_images
    rules = (
        (not np.isfinite(ends).all(), "diverged", DIVERGED),
        (psnr is not None and psnr < POOR_PSNR, "poor autoencoder", POOR_AUTOENCODER),
        (copies is not None and copies < COPIES and seen >= training_images, "copying", COPYING),
        (short, "cannot say yet", "It has only begun. Train for longer."),
        (held_out and (rise >= RISE or gap >= GAP), "overfitting", OVERFITTING),
        (fall >= FALL, "still falling", "It is still learning: longer training makes better pictures."),
        (seen < FINISHED * planned_images, "cannot say yet", UNFINISHED),
        (poor, "poor samples", POOR_SAMPLES),
        (True, "done", DONE),
    )
    word, meaning = next((word, meaning) for holds, word, meaning in rules if holds)
    if not held_out:
        meaning += " There are too few images for a test part, so copying and overfitting cannot be seen."
    return Diagnosis(word, meaning, tuple(reasons))


DIVERGED = "The loss is NaN or infinite. Train into another folder with a lower lr."
COPYING = "The samples are nearly training images. Give more images, or train for less long."
POOR_AUTOENCODER = "Images come back damaged from the autoencoder; samples cannot be better. Train it for longer."
OVERFITTING = "It learns the training images by heart. Give more images or a smaller network, or train for less long."
UNFINISHED = "The loss is level, but the run stopped before the end of its plan. Train for longer."
POOR_SAMPLES = "The loss is level, but the samples are far from real images. Train for longer, or use a larger network."
DONE = "It has learned what it can: a larger network or more images would help, not more time."


def summarize_curves(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float, float] | None:
    """The test loss at the end: its rise above its lowest, its gap to the training loss, its fall since half-time.

    All are shares; None where there are too few reports. The training loss at the end is the mean over the last three
    reports. It is measured with the raw weights and with a tenth of the labels missing, so in a sound run it lies a
    little above the test loss.
    """
    points = [(float(row["images"]), float(row["loss"]), float(row["test_loss"])) for row in rows if row["test_loss"]]
    points = [point for point in points if np.isfinite(point).all()]
    if len(points) < FEWEST or points[0][0] > points[-1][0] / 2:
        return None
    images, loss, test = np.array(points).T
    half = np.interp(images[-1] / 2, images, test)
    return test[-1] / test.min() - 1, test[-1] / loss[-3:].mean() - 1, 1 - test[-1] / half
