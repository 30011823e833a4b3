"""The diagnosis of a run: one word and a sentence, by rules with numbers in them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

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
        reasons.append(
            f"class accuracy {accuracy:.2f} (chance {chance:.2f}, real images {real:.2f}, poor below {wanted:.2f})"
        )
    if distance is not None:
        reasons.append(f"Frechet distance {distance:.1f} times that of real images (poor from {FAR:g} on)")

    poor = (accuracy is not None and accuracy < wanted) or (distance is not None and distance >= FAR)
    short = curves is None or seen < training_images
    rules = (
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


COPYING = "The samples are nearly training images. Give more images, or train for less long."
POOR_AUTOENCODER = (
    "Images come back damaged from the autoencoder, and samples cannot be better than that. Train it for longer."
)
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
