"""Evaluators: made once for a reference, then called for each set of images to measure."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from diffit_lib.data.datasets import Images, Split
from diffit_lib.evaluation.features import (
    Classifier,
    Extractor,
    Inception,
    cached,
    load_inception,
    train_classifier,
)
from diffit_lib.evaluation.image_files import read_npz
from diffit_lib.evaluation.metrics import (
    NAMES,
    Reference,
    class_accuracy,
    evenly,
    frechet_from_moments,
    inception_score,
    moments,
    nearest,
    neighbourhoods,
    read_statistics,
    real_distance,
    reference_statistics,
)
from diffit_lib.evaluation.provenance import Provenance
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.npz import names
from diffit_lib.utils.tensors import digest

HELD = 20_000  # images loaded into memory, where data are not, to train the classifier and to find copies


def kind_of(data: Split | Images | Path, extractor: str | None) -> str:
    """The extractor: as asked for, else "classifier" for a data set with classes, else "inception"."""
    classes = isinstance(data, tuple) and len(data.train.class_names) > 1
    return extractor or ("classifier" if classes else "inception")


def make_evaluator(
    data: Split | Images | Path, kind: str, device: torch.device, inception: str | Path | None = None
) -> "ClassifierEvaluator | InceptionEvaluator":
    """The evaluator of this kind; `inception` is the file of its weights, else that in the cache, else downloaded."""
    if kind == "inception":
        network = load_inception(inception).to(device)
        if isinstance(data, Path):
            statistics = npz_reference(data, network)
            return InceptionEvaluator(statistics, network, data.name, digest(statistics.tensors()))
        images = data.train if isinstance(data, tuple) else data
        return InceptionEvaluator(cached_reference(images, network), network, images.name, images.fingerprint())
    if not isinstance(data, tuple):
        raise DiffitError(f"no classifier can be trained on {data.name}; give a data set, or --extractor inception")
    name = data.train.name
    check(
        len(data.train.class_names) > 1,
        f"{name} has no classes, which the classifier needs; give --extractor inception",
    )
    check(
        data.train is not data.test,
        f"{name} has no test images to compare with; give 50 images or more, or --extractor inception",
    )
    train, test = data.train.held(HELD), data.test.held(HELD)
    classifiers = [train_classifier(train.images, train.labels, seed, device) for seed in range(3)]
    return ClassifierEvaluator(train, test, classifiers, reference=data.train)


class ClassifierEvaluator:
    """Numbers for small or grey images, in the features of classifiers trained on the data; images are in memory.

    The Frechet distances to the train part are taken at equal n of generated images and of real test images (the
    floor); their ratio is 1 for images as good as new real ones. Every number but the copy ratio is the mean over the
    classifiers. `reference` is what `train` was taken from, where that is larger.
    """

    def __init__(self, train: Images, test: Images, classifiers: Sequence[Classifier], reference: Images | None = None):
        self.train, self.test, self.classifiers = train, test, classifiers
        self.reference, self.class_names = reference or train, train.class_names
        self.checksums = [classifier.checksum for classifier in classifiers]
        name = f"statistics/{train.fingerprint()}-{test.fingerprint()}-{'-'.join(self.checksums)}"
        self.real = cached(name, self.measure_real)

    def measure_real(self) -> dict[str, Tensor]:
        """What depends on the real images alone, float64, in the order of the classifiers."""
        pairs = [moments(classifier.features(self.train.images)) for classifier in self.classifiers]
        predicted = [classifier.predict(self.test.images) for classifier in self.classifiers]
        accuracies = [class_accuracy(classes, self.test.labels) for classes in predicted]
        return {
            "means": torch.stack([mean for mean, _ in pairs]),
            "covariances": torch.stack([covariance for _, covariance in pairs]),
            "accuracies": torch.tensor(accuracies, dtype=torch.float64),
            "distance": torch.tensor(real_distance(self.train.images, self.test.images), dtype=torch.float64),
        }

    def __call__(self, batches: Iterable[Tensor], labels: Tensor | None, stamp: Provenance) -> dict[str, Any]:
        """Numbers, ready for JSON, of uint8 images (B, C, H, W) and the classes asked for, (N,) int64, if any.

        Without `labels` there is no class accuracy.
        """
        samples, test = torch.cat(list(batches)), self.test
        n = min(len(samples), len(test))
        drawn = samples[evenly(torch.zeros(len(samples)) if labels is None else labels, n)]
        held_out = test.images[evenly(test.labels, n)]
        real = list(zip(self.classifiers, self.real["means"], self.real["covariances"], strict=True))
        generated, floor = (
            [
                frechet_from_moments(*moments(classifier.features(images)), *statistics)
                for classifier, *statistics in real
            ]
            for images in (drawn, held_out)
        )
        stamp = replace(
            stamp,
            reference=self.reference.name,
            reference_hash=self.reference.fingerprint(),
            n=n,
            drawn=len(samples),
            extractor=f"{len(self.classifiers)} x {self.classifiers[0].name}",
            extractor_checksum="+".join(self.checksums),
        )
        accuracy = {}
        if labels is not None:
            predicted = [classifier.predict(samples) for classifier in self.classifiers]
            accuracy = {"class_accuracy": fmean(class_accuracy(classes, labels) for classes in predicted)}
        return accuracy | {
            "classifier_test_accuracy": fmean(self.real["accuracies"].tolist()),
            "frechet": fmean(generated),
            "frechet_floor": fmean(floor),
            "frechet_ratio": fmean(g / f for g, f in zip(generated, floor, strict=True)),
            "copy_ratio": nearest(samples, self.train.images)[0].median().item() / self.real["distance"].item(),
            "stamp": asdict(stamp),
            "warnings": stamp.warnings(),
        }


class InceptionEvaluator:
    """FID, sFID, Inception Score, KID, precision and recall, against statistics of real images.

    What the reference does not hold is left out, and the warnings say so: statistics alone have no features for KID,
    precision and recall. Settings are torch-fidelity's, but for the splits of the Inception Score: 100 subsets of 1000
    images (of all if there are fewer), 3 neighbours, random seed 2020. `name` and `checksum` are the reference's, for
    provenance.
    """

    class_names = ()  # it ignores the classes asked for

    def __init__(self, reference: Reference, inception: Inception, name: str = "", checksum: str = ""):
        self.reference, self.inception, self.name, self.checksum = reference, inception, name, checksum

    def __call__(self, batches: Iterable[Tensor], labels: Tensor | None, stamp: Provenance) -> dict[str, Any]:
        """Numbers, ready for JSON, of uint8 images (B, C, H, W); their features are kept, the images are not."""
        reference, found = self.reference, list(map(self.inception, batches))
        check(bool(found), "there are no images to measure")
        features, logits, spatial = (torch.cat(part) for part in zip(*found, strict=True))
        n = len(features) if reference.features is None else min(len(features), len(reference.features))
        check(n >= 10, f"Inception metrics need at least 10 images on each side and got {n}; give more")
        numbers = {"fid": frechet_from_moments(*moments(features), reference.mean, reference.covariance)}
        left_out = []
        if reference.spatial_mean is not None and reference.spatial_covariance is not None:
            real = reference.spatial_mean, reference.spatial_covariance
            numbers["sfid"] = frechet_from_moments(*moments(spatial), *real)
        else:
            left_out.append("sFID is left out: the reference has no mu_s and sigma_s")
        numbers |= inception_score(logits)
        if reference.features is not None:
            numbers |= neighbourhoods(features, reference.features)
        else:
            left_out.append("KID, precision and recall are left out: the reference is statistics alone, without images")
        stamp = replace(
            stamp,
            reference=self.name,
            reference_hash=self.checksum,
            n=len(features),
            drawn=len(features),
            extractor=self.inception.name,
            extractor_checksum=self.inception.checksum,
        )
        return numbers | {"stamp": asdict(stamp), "warnings": stamp.warnings() + left_out}


def npz_reference(path: Path, inception: Inception) -> Reference:
    """The statistics in an `.npz`, with the features of the images in it; else those of its images."""
    found = names(path)
    if not found & set(NAMES.values()):
        return cached_reference(read_npz(path), inception)
    reference = read_statistics(path, inception)
    if "arr_0" not in found:
        return reference
    return reference._replace(features=cached_reference(read_npz(path), inception).features)


def cached_reference(images: Images, extractor: Extractor) -> Reference:
    """Statistics of real images, from the cache if they were taken before."""
    name = f"statistics/{images.fingerprint()}-{extractor.name}-{extractor.checksum}"
    return Reference(**cached(name, lambda: reference_statistics(images.images, extractor).tensors()))
