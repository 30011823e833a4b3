"""What a run's curves say at its end, in one word and a sentence, each by a rule with a number in it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

COPIES = 0.5  # copy ratio (1: as far from the training images as new real ones) below which samples are copies
RISE = 0.02  # of the test loss above its lowest, from which on the training images are being learned by heart
GAP = 0.25  # of the test loss above the training loss, likewise
FALL = 0.03  # of the test loss over the second half of the images, from which on more training helps
FEWEST = 3  # rows of metrics.csv, below which nothing is concluded from curves


class Verdict(NamedTuple):
    """What to make of a run."""

    word: str  # "copying", "overfitting", "still falling", "done" or "too short to tell"
    says: str  # what it means and what to do, a sentence or two
    reasons: tuple[str, ...]  # every number that was looked at, beside its threshold


class Curves(NamedTuple):
    """What the rules look at, all as shares."""

    rise: float  # of the test loss at the end above its lowest
    gap: float  # of the test loss at the end above the training loss there
    fall: float  # of the test loss from half of the images to the end


def judge(
    rows: Sequence[dict[str, Any]],
    copy_ratio: float | None = None,
    *,
    held_out: bool = True,
    training_images: int = 0,
) -> Verdict:
    """The verdict on a run whose `metrics.csv` has these rows; the first rule that holds wins.

    copying: the copy ratio is below 0.5. overfitting: the test loss ends 2 % or more above its lowest, or 25 % or more
    above the training loss. still falling: over the second half of the images the test loss fell by 3 % or more. done:
    none of these. With fewer than three reports, or none in the first half, or before each of the `training_images` was
    seen once, it is too short to tell. Unless the test images are `held_out`, neither copying nor overfitting can be
    seen, and both are left out.
    """
    copying = held_out and copy_ratio is not None and copy_ratio < COPIES
    reasons = [f"copy ratio {copy_ratio:.2f} (copies below {COPIES})"] if held_out and copy_ratio is not None else []
    curves, seen = measure(rows), float(rows[-1]["images"]) if rows else 0.0
    if seen < training_images:
        reasons.append(f"{seen / training_images:.0%} of the training images were seen (all, to tell)")
    elif curves:
        reasons += [
            f"test loss {curves.rise:.1%} above its lowest (overfitting from {RISE:.0%} on)",
            f"test loss {curves.gap:+.0%} from the training loss (overfitting from {GAP:+.0%} on)",
        ] * held_out
        reasons.append(f"test loss fell by {curves.fall:.1%} over the second half (still falling from {FALL:.0%} on)")
    if copying:
        word, says = "copying", "The samples are nearly training images. Give more images, or train for less long."
    elif curves is None or seen < training_images:
        word, says = "too short to tell", "It has only begun. Train for longer."
    elif held_out and (curves.rise >= RISE or curves.gap >= GAP):
        word = "overfitting"
        says = "It learns the training images by heart. Give more images or a smaller network, or train for less long."
    elif curves.fall >= FALL:
        word, says = "still falling", "It is still learning: longer training makes better pictures."
    else:
        word, says = "done", "It has learned what it can: a larger network or more images would help, not more time."
    if not held_out:
        says += " There are too few images for a test part, so copying and overfitting cannot be seen."
    return Verdict(word, says, tuple(reasons))


def measure(rows: Sequence[dict[str, Any]]) -> Curves | None:
    """The shares that the rules look at; None where there are too few reports.

    The training loss at the end is the mean of the last three reports', each the mean since the one before: it has the
    raw weights' noise, and a tenth of the labels missing, so it lies a little above the test loss of a sound run.
    """
    points = [(float(row["images"]), float(row["loss"]), float(row["test_loss"])) for row in rows if row["test_loss"]]
    points = [point for point in points if np.isfinite(point).all()]
    if len(points) < FEWEST or points[0][0] > points[-1][0] / 2:
        return None
    images, loss, test = np.array(points).T
    half = np.interp(images[-1] / 2, images, test)
    return Curves(test[-1] / test.min() - 1, test[-1] / loss[-3:].mean() - 1, 1 - test[-1] / half)
