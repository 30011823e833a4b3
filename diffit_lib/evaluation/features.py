"""Networks that turn uint8 images into features, for metrics, and a cache for what is computed from them."""

import hashlib
import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import cache_folder, published_file, replacing, sha256
from diffit_lib.utils.logging import progress
from diffit_lib.utils.tensors import seeded_generator, to_float

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
TRAINING_IMAGES = 30_000  # the classifier is trained on at least so many, repeated if there are fewer


class Seen(NamedTuple):
    """What Inception makes of N images, float32."""

    features: Tensor  # (N, 2048): FID, KID, precision and recall
    logits: Tensor  # (N, 1008): Inception Score
    spatial: Tensor  # (N, 2023): sFID


def cached(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from the cache, bit-equal to what `make` returned; made again if they are missing or damaged.

    `name` identifies all that they depend on, except the code.
    """
    path = cache_folder() / f"{name}-{code_digest()}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            intact = file.metadata() == {"digest": _digest(tensors)}
    except (OSError, SafetensorError):
        intact = False
    if not intact:
        tensors = make()
        # a cache that cannot be written is skipped; safetensors raises an error of its own for that
        with suppress(OSError, SafetensorError), replacing(path) as beside:
            safetensors.torch.save_file(tensors, beside, {"digest": _digest(tensors)})
    return tensors


@cache
def code_digest() -> str:
    """What cached tensors are computed by: this package, the conversion of images, torch and torch-fidelity."""
    paths = [*sorted(map(str, Path(__file__).parent.glob("*.py"))), inspect.getfile(to_float)]
    parts = [*map(sha256, paths), *map(version, ("torch", "torchvision", "torch_fidelity"))]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def _digest(tensors: dict[str, Tensor]) -> str:
    """The SHA-256 of named tensors, its first 16 hexadecimal digits."""
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()[:16]


class Classifier(nn.Module):
    """A small convolutional network for small or grey images, which Inception was not trained on.

    3x3 convolutions, pooled until the shorter side is at most 4; the features are the last hidden layer.
    """

    name = "classifier"
    num_features = 32  # few, so that a covariance from some hundred images is not singular
    num_spatial = 0  # none for sFID

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
        device = next(self.parameters()).device
        return torch.cat([self.body(to_float(chunk.to(device))).cpu() for chunk in chunks(images, 500)])

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> the most likely class of each, (N,) int64."""
        features = self.features(images).to(next(self.parameters()).device)
        return self.head(features).argmax(1).cpu()

    @property
    def checksum(self) -> str:
        """Identifies these weights: 16 hexadecimal digits."""
        return _digest(self.state_dict())


def train_classifier(images: Tensor, labels: Tensor, seed: int = 0, device: torch.device | str = "cpu") -> Classifier:
    """Train on (N, C, H, W) uint8 images and their (N,) int64 labels, or take the result from the cache.

    Takes seconds on a CPU for 8x8 images, a minute or two for 60,000 of 32x32. The same data and seed give the same
    weights on the same device. Leaves the global random state alone. Raises a DiffitError if all labels are equal.
    """
    num_classes = int(labels.max()) + 1
    if num_classes < 2:
        raise DiffitError("the data has no classes to tell apart, which the classifier needs; measure with inception")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        classifier = Classifier(tuple(images.shape[1:]), num_classes).to(device)
    data = _digest({"images": images.contiguous(), "labels": labels.contiguous()})
    weights = cached(f"classifiers/{data}-{seed}", lambda: _train(classifier, images, labels, seed))
    classifier.load_state_dict(weights)
    return classifier.eval()


def _train(classifier: Classifier, images: Tensor, labels: Tensor, seed: int) -> dict[str, Tensor]:
    """AdamW under a one-cycle learning rate, over shifted images, each of them at least once."""
    batch_size, device = 64, next(classifier.parameters()).device
    generator = seeded_generator("classifier", seed)
    steps = max(TRAINING_IMAGES, len(images)) // batch_size
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.2)
    epochs = steps * batch_size // len(images) + 1
    order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(epochs)])
    for indices in progress(order[: steps * batch_size].split(batch_size), "training the classifier", delay=3):
        logits = classifier(_shifted(to_float(images[indices]), generator).to(device))
        optimizer.zero_grad()
        F.cross_entropy(logits, labels[indices].to(device), label_smoothing=0.1).backward()
        optimizer.step()
        schedule.step()
    return {name: tensor.cpu() for name, tensor in classifier.state_dict().items()}


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to a sixteenth of its side, at least one pixel; the border is repeated."""
    height, width = x.shape[2:]
    reach = max(1, min(height, width) // 16)
    corners = torch.randint(2 * reach + 1, (len(x), 2), generator=generator).tolist()
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    windows = zip(padded, corners, strict=True)
    return torch.stack([image[:, top : top + height, left : left + width] for image, (top, left) in windows])


class Inception(nn.Module):
    """The Inception-v3 of 2015 that published FIDs are measured with, as torch-fidelity ported it.

    `network` maps uint8 (B, 3, H, W) to 2048 features and 1008 logits without bias; `checksum` identifies its weights.

    sFID (Nash et al. 2021) also needs spatial features. ADM takes the tensor "mixed_6/conv:0" of the TensorFlow graph
    and keeps its first 7 channels, 17 x 17 each, channels last: 2023 numbers. The graph numbers its mixed blocks in
    order, "mixed" to "mixed_2" being Mixed_5b, 5c, 5d, so "mixed_6" is Mixed_6d; "conv" is the branch of a single 1x1
    convolution, after batch norm and ReLU. So the layer is the output of `Mixed_6d.branch1x1`. Our sFID has not been
    compared with published ones.
    """

    name = "inception"
    num_features = 2048
    CHANNELS = 7
    num_spatial = CHANNELS * 17 * 17

    def __init__(self, network: nn.Module, checksum: str):
        super().__init__()
        self.network, self.checksum = network, checksum
        self._maps: list[Tensor] = []
        layer: Any = network.Mixed_6d
        layer.branch1x1.register_forward_hook(self._keep)
        self.eval()

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self._maps.append(output[:, : self.CHANNELS].permute(0, 2, 3, 1).flatten(1).cpu())

    @torch.no_grad()
    def forward(self, images: Tensor) -> Seen:
        """uint8 (N, C, H, W), grey or RGB -> features, logits and spatial features, float32 on the CPU."""
        self._maps.clear()
        device = next(self.network.parameters()).device
        found = []
        for chunk in chunks(images, 64):
            outputs = self.network(chunk.expand(-1, 3, -1, -1).to(device))
            found.append([output.cpu() for output in outputs])
        features, logits = (torch.cat(part) for part in zip(*found, strict=True))
        return Seen(features, logits, torch.cat(self._maps))

    def features(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W), grey or RGB -> features (N, 2048), float32 on the CPU."""
        return self(images).features


Extractor = Classifier | Inception  # and `vision.VisionExtractor`, which `evaluate` imports when it is asked for


def chunks(images: Tensor, size: int) -> Iterable[Tensor]:
    """Parts of so many images, under a bar."""
    return progress(images.split(size), "extracting features", unit=" batches", delay=3)


def load_inception(path: str | Path | None = None) -> Inception:
    """Inception from its published file: at `path`, else in the cache, else downloaded into the cache (96 MB).

    The file holds a pickle, so any other file is refused by its SHA-256. Raises a DiffitError if there is no file, or
    no network.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    otherwise = "or, for data with classes, use the classifier extractor"
    path = published_file(path, INCEPTION_URL, INCEPTION_SHA256, "Inception", otherwise)
    kinds = ["2048", "logits_unbiased"]
    network = FeatureExtractorInceptionV3("inception-v3-compat", kinds, feature_extractor_weights_path=str(path))
    return Inception(network, INCEPTION_SHA256[:16])
