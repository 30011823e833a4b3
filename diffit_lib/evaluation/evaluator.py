"""What images are measured against, and by what: made once, for any number of measurements."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffit_lib.data.datasets import Images, Split
from diffit_lib.evaluation.features import cached, train_classifier
from diffit_lib.evaluation.image_files import read_npz
from diffit_lib.evaluation.metrics import measure_inception, measure_small, real_side
from diffit_lib.evaluation.provenance import Provenance
from diffit_lib.evaluation.reference import (
    NAMES,
    Extractor,
    InceptionLike,
    Reference,
    read_statistics,
    reference_statistics,
)
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.npz import names
from diffit_lib.utils.tensors import digest

HELD = 20_000  # images fetched to train the classifier and to look for copies where the data are not in memory


def kind_of(data: Split | Images | Path, extractor: str | None) -> str:
    """What sees the images: the classifier where a data set has classes, unless said otherwise, else Inception."""
    classes = isinstance(data, tuple) and len(data.train.class_names) > 1
    return extractor or ("classifier" if classes else "inception")


class ClassifierEvaluator:
    """Numbers by a small classifier, trained three times on the train part of a data set."""

    def __init__(self, data: Split | Images | Path, device: torch.device):
        if not isinstance(data, tuple):
            raise DiffitError(f"no classifier can be trained on {data.name}; give a data set, or --extractor inception")
        self.reference, self.class_names = data.train, data.train.class_names
        check(
            len(self.class_names) > 1,
            f"{data.train.name} has no classes, which the classifier needs; give --extractor inception",
        )
        check(
            data.train is not data.test,
            f"{data.train.name} has no test images to compare with; give 50 images or more, or --extractor inception",
        )
        self.train, self.test = data.train.held(HELD), data.test.held(HELD)
        self.classifiers = [train_classifier(self.train.images, self.train.labels, seed, device) for seed in range(3)]
        parts = self.train.images, self.test.images, self.test.labels
        seen_by = "-".join(classifier.checksum for classifier in self.classifiers)
        name = f"statistics/{self.train.fingerprint()}-{self.test.fingerprint()}-{seen_by}"
        self.real = cached(name, lambda: real_side(*parts, self.classifiers))

    def __call__(self, batches: Iterable[Tensor], labels: Tensor | None, stamp: Provenance) -> dict[str, Any]:
        """Of uint8 images (B, C, H, W) and the classes asked for (N,), the numbers of `measure_small`."""
        return measure_small(
            torch.cat(list(batches)),
            labels,
            train=self.train.images,
            test=self.test.images,
            test_labels=self.test.labels,
            classifiers=self.classifiers,
            real=self.real,
            stamp=stamp.against(self.reference.name, self.reference.fingerprint()),
        )


class InceptionEvaluator:
    """FID and its like, over the train part of a data set, over images, or over what an `.npz` holds."""

    class_names = ()  # the class asked for is of no account

    def __init__(self, data: Split | Images | Path, inception: InceptionLike):
        self.inception = inception
        if isinstance(data, Path):
            self.reference = npz_reference(data, inception)
            self.names = data.name, digest(self.reference.tensors())
        else:
            images = data.train if isinstance(data, tuple) else data
            self.reference = cached_reference(images, inception)
            self.names = images.name, images.fingerprint()

    def __call__(self, batches: Iterable[Tensor], labels: Tensor | None, stamp: Provenance) -> dict[str, Any]:
        """Of uint8 images (B, C, H, W), the numbers of `measure_inception`."""
        return measure_inception(batches, self.reference, self.inception, stamp.against(*self.names))


def npz_reference(path: Path, inception: InceptionLike) -> Reference:
    """Published statistics, with the features of the images beside them if there are any; or images alone."""
    found = names(path)
    if not found & set(NAMES.values()):
        return cached_reference(read_npz(path), inception)
    reference = read_statistics(path, inception)
    if "arr_0" not in found:
        return reference
    return reference._replace(features=cached_reference(read_npz(path), inception).features)


def cached_reference(images: Images, extractor: Extractor) -> Reference:
    """Statistics of real images, from the cache where they were taken before."""
    name = f"statistics/{images.fingerprint()}-{extractor.name}-{extractor.checksum}"
    return Reference(**cached(name, lambda: reference_statistics(images.images, extractor).tensors()))
