"""A test for copies: is a sample far nearer to one training image than to all the others, also cropped or mirrored?"""

from itertools import product

import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

SMALL, ROUGH = 32, 8  # pixels a side: images are compared at most so large, candidates are found in rough ones
CANDIDATES, OTHERS = 8, 4  # training images aligned with each sample; the next nearest ones, which the best is held to
ROUNDS = 5  # of alignment, each with half the step of the one before
RATIO = 0.5  # a copy is nearer than half the distance of the next nearest; of real test images about 1 in 1,000 is
CHANCE = 0.02  # of an alarm where samples are as likely to resemble a training image as real test images are

Placed = tuple[float, float, float, float]  # zoom; down and right, from -1 to 1 at the image's borders; 1 or -1: flip
PLACES: list[Placed] = [(1.0, 0.0, 0.0, flip) for flip in (1.0, -1.0)] + [
    (zoom, float(down), float(right), flip)
    for zoom, down, right, flip in product((0.9, 0.8), (-1, 0, 1), (-1, 0, 1), (1.0, -1.0))
]


def shrink(images: Tensor, side: int = SMALL) -> Tensor:
    """(N, C, H, W) -> float32, at most `side` pixels a side; each pixel is the mean of those it covers."""
    scale = min(1.0, side / max(images.shape[2:]))
    size = [max(1, round(pixels * scale)) for pixels in images.shape[2:]]
    return torch.cat([F.interpolate(part.float(), size, mode="area") for part in images.split(500)])


def cropped(images: Tensor, places: Tensor) -> Tensor:
    """(N, C, H, W) and places (N, 4), as `Placed` -> the crops, at the images' size, mirrored where asked for."""
    zoom, down, right, flip = places.T
    matrix = images.new_zeros(len(images), 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = zoom * flip, zoom
    matrix[:, 0, 2], matrix[:, 1, 2] = right * (1 - zoom), down * (1 - zoom)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def find_copies(samples: Tensor, train: Tensor) -> Tensor:
    """Which samples are copies of training images, in pixels alone: (N, C, H, W), (M, C, H, W) uint8 -> (N,) bool.

    There are at least five training images. Crops of each training image down to 0.8 of its sides, mirrored too, are
    compared at 8 pixels a side; the eight nearest images are aligned with the sample in steps down to a sixteenth of
    that, at 32 pixels a side. As in Carlini et al. 2023 (Extracting training data from diffusion models, section 4.2)
    the distance is held to those of the next nearest images: blurred samples, and samples of a few modes alone, are
    near to many.
    """
    return torch.cat([_find(part, shrink(train), shrink(train, ROUGH)) for part in samples.split(250)])


def _find(samples: Tensor, train: Tensor, rough: Tensor) -> Tensor:
    """`find_copies` of one chunk; `train` is at both sizes."""
    count, places = min(CANDIDATES, len(train)), torch.tensor(PLACES)
    flat, best = shrink(samples, ROUGH).flatten(1), torch.full((len(samples), len(train)), torch.inf)
    which = torch.zeros(best.shape, dtype=torch.uint8)
    for number, place in enumerate(places):
        distance = torch.cdist(flat, cropped(rough, place.expand(len(rough), 4)).flatten(1))
        which[distance < best] = number
        best = torch.minimum(best, distance)
    candidates = best.topk(count, largest=False).indices
    at = places[which.gather(1, candidates).long().flatten()]
    targets, images = shrink(samples).repeat_interleave(count, 0), train[candidates.flatten()]
    smallest, steps = torch.full((len(at),), torch.inf), torch.tensor([0.05, 0.5, 0.5, 0.0]).diag()[:3]
    moves = [torch.zeros(4), *(sign * step / 2**k for k in range(ROUNDS) for step in steps for sign in (1, -1))]
    for move in moves:  # along one axis at a time
        moved = at + move
        moved[:, 0].clamp_(0.7, 1), moved[:, 1:3].clamp_(-1, 1)
        distance = (cropped(images, moved) - targets).flatten(1).norm(dim=1)
        at = torch.where((distance < smallest)[:, None], moved, at)
        smallest = torch.minimum(smallest, distance)
    distance = smallest.view(-1, count).sort(1).values
    held_to = distance[:, 1 : 1 + OTHERS].mean(1).clamp(min=1e-6)
    return distance[:, 0] / held_to < RATIO


def copy_alarm(samples: Tensor, test: Tensor) -> bool:
    """Whether so many of the samples are copies, (N,) bool, that chance does not explain it; `test`: real test images.

    The binomial test at 0.02, at the rate of the test images (Jeffreys' estimate).
    """
    rate = (test.sum().item() + 0.5) / (len(test) + 1)
    return bool(scipy.stats.binom.sf(samples.sum().item() - 1, len(samples), rate) < CHANCE)
