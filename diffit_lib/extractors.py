"""What metrics see: networks that turn uint8 images into a few numbers each."""

import hashlib
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffit_lib.errors import DiffitError
from diffit_lib.files import cache_folder, replacing, sha256
from diffit_lib.tensors import seeded_generator, to_float

TRAINING_IMAGES = 30_000  # the classifier is shown at least so many


class Classifier(nn.Module):
    """A small convolutional network for small or grey images, of which Inception knows little.

    3x3 convolutions, halved by pooling until the shorter side is at most 4; the features are the last layer but one.
    """

    name = "classifier"
    num_features = 32  # few, so that a covariance from some hundred images is not singular

    def __init__(self, image_shape: tuple[int, ...], num_classes: int):
        super().__init__()
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        out_channels = 32
        while True:
            layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
            channels, out_channels = out_channels, min(2 * out_channels, 128)
            if min(height, width) <= 4:
                break
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            height, width = (height + 1) // 2, (width + 1) // 2
        layers += [nn.Flatten(), nn.Linear(channels * height * width, self.num_features)]
        self.body = nn.Sequential(*layers, nn.BatchNorm1d(self.num_features))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(self.num_features, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> class logits (B, num_classes)."""
        return self.head(self.body(x))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, num_features) float32, before the last non-linearity."""
        return torch.cat([self.body(to_float(chunk)) for chunk in images.split(500)])

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> the likeliest class of each, (N,) int64."""
        return self.head(self.features(images)).argmax(1)

    @property
    def checksum(self) -> str:
        """Names these very weights: 16 hexadecimal digits."""
        return _digest(self.state_dict())


def train_classifier(images: Tensor, labels: Tensor, seed: int = 0) -> Classifier:
    """Train on (N, C, H, W) uint8 images and their (N,) int64 labels, or take the result from the cache.

    Seconds on a CPU for 8x8 images. The same data and seed give the same weights, and the global random state is left
    as it was. Raises a DiffitError where all labels are the same.
    """
    num_classes = int(labels.max()) + 1
    if num_classes < 2:
        raise DiffitError("the data has no classes to tell apart, which the classifier needs; measure with inception")
    data = _digest({"images": images, "labels": labels})
    path = cache_folder() / "classifiers" / f"{data}-{sha256(__file__)[:16]}-{seed}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        classifier = Classifier(tuple(images.shape[1:]), num_classes)
    if not _restore(classifier, path):
        _train(classifier, images, labels, seed)
        with replacing(path) as beside:
            metadata = {"checksum": classifier.checksum}
            safetensors.torch.save_file(classifier.state_dict(), beside, metadata)
    return classifier.eval()


def _train(classifier: Classifier, images: Tensor, labels: Tensor, seed: int) -> None:
    """AdamW under a one-cycle learning rate, over shifted images, each of them at least once."""
    batch_size = 64
    generator = seeded_generator("classifier", seed)
    steps = max(TRAINING_IMAGES, len(images)) // batch_size
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.2)
    epochs = steps * batch_size // len(images) + 1
    order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(epochs)])
    for indices in order[: steps * batch_size].split(batch_size):
        logits = classifier(_shifted(to_float(images[indices]), generator))
        optimizer.zero_grad()
        F.cross_entropy(logits, labels[indices], label_smoothing=0.1).backward()
        optimizer.step()
        schedule.step()


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to a sixteenth of its side, at least one pixel; the border is repeated."""
    height, width = x.shape[2:]
    reach = max(1, min(height, width) // 16)
    corners = torch.randint(2 * reach + 1, (len(x), 2), generator=generator).tolist()
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    windows = zip(padded, corners, strict=True)
    return torch.stack([image[:, top : top + height, left : left + width] for image, (top, left) in windows])


def _restore(classifier: Classifier, path: Path) -> bool:
    """Fill in the cached weights; False where the file is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            expected = file.metadata()
    except (OSError, SafetensorError):
        return False
    if expected != {"checksum": _digest(state)}:
        return False
    classifier.load_state_dict(state)
    return True


def _digest(tensors: dict[str, Tensor]) -> str:
    """The SHA-256 of named tensors, its first 16 hexadecimal digits."""
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()[:16]
