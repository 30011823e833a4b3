"""Evaluators: made once for a reference, then called for each set of images to measure."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from diffit_lib.data.datasets import Images, Split
from diffit_lib.evaluation import metrics
from diffit_lib.evaluation.copies import copy_alarm, find_copies
from diffit_lib.evaluation.features import Classifier, cached, load_inception, train_classifier
from diffit_lib.evaluation.image_files import NAMES, array_names, read_npz, read_statistics
from diffit_lib.evaluation.provenance import Provenance
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.tensors import digest

HELD = 20_000  # images loaded into memory, where data are not, to train the classifier and to find copies


def kind_of(data: Split | Images | Path, extractor: str | None) -> str:
    """The extractor: as asked for, else "classifier" for a data set with classes, else "inception"."""
    classes = isinstance(data, tuple) and len(data.train.class_names) > 1
    return extractor or ("classifier" if classes else "inception")


def make_evaluator(
    data: Split | Images | Path, kind: str, device: torch.device, file: str | Path | None = None
) -> "ClassifierEvaluator | NetworkEvaluator":
    """The evaluator of this kind; `file` has the network's weights, else the cache, else they are downloaded."""
    if kind != "classifier":
        if kind == "inception":
            network: Any = load_inception(file).to(device)
        else:
            from diffit_lib.evaluation.vision import load_vision  # torchvision takes a second to import

            network = load_vision(kind, file).to(device)
        if isinstance(data, Path):
            statistics = npz_reference(data, network)
            return NetworkEvaluator(statistics, network, data.name, digest(statistics.tensors()))
        images = data.train if isinstance(data, tuple) else data
        return NetworkEvaluator(cached_reference(images, network), network, images.name, images.fingerprint())
    if not isinstance(data, tuple):
        raise DiffitError(f"no classifier can be trained on {data.name}; give a data set, or --extractor inception")
    name, classes, other = data.train.name, len(data.train.class_names), "give --extractor inception"
    check(classes > 1, f"{name} has no classes, which the classifier needs; {other}")
    check(data.train is not data.test, f"{name} has no test images to compare with; {other}, or 50 images or more")
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
        pairs = [metrics.moments(classifier.features(self.train.images)) for classifier in self.classifiers]
        predicted = [classifier.predict(self.test.images) for classifier in self.classifiers]
        n = min(len(self.test), 500)
        accuracies = [metrics.class_accuracy(classes, self.test.labels) for classes in predicted]
        return {
            "means": torch.stack([mean for mean, _ in pairs]),
            "covariances": torch.stack([covariance for _, covariance in pairs]),
            "accuracies": torch.tensor(accuracies, dtype=torch.float64),
            "copies": find_copies(self.test.images[metrics.evenly(self.test.labels, n)], self.train.images),
            "distance": torch.tensor(metrics.real_distance(self.train.images, self.test.images), dtype=torch.float64),
        }

    def __call__(self, batches: Iterable[Tensor], labels: Tensor | None, stamp: Provenance) -> dict[str, Any]:
        """Numbers, ready for JSON, of uint8 images (B, C, H, W); of classes asked for, (N,) int64, if any."""
        samples, test = torch.cat(list(batches)), self.test
        n = min(len(samples), len(test))
        classes = torch.zeros(len(samples), dtype=torch.int64) if labels is None else labels
        ours, theirs = metrics.evenly(classes, n), metrics.evenly(test.labels, n)
        drawn, held_out = samples[ours], test.images[theirs]
        real = list(zip(self.real["means"], self.real["covariances"], strict=True))
        features = [(classifier.features(drawn), classifier.features(held_out)) for classifier in self.classifiers]

        def distances(part: Tensor, other: Tensor) -> list[tuple[float, float, float]]:
            """Of each classifier: the distance of these samples, that of these test images, the first by the second."""
            each = []
            for (a, b), known in zip(features, real, strict=True):
                pair = (metrics.moments(seen) for seen in (a[part], b[other]))
                value, floor = (metrics.frechet_from_moments(*found, *known) for found in pair)
                each.append((value, floor, value / floor))
            return each

        found = distances(torch.arange(n), torch.arange(n))
        drawings = (metrics.resamples(n, 100, labels) for labels in (classes[ours], test.labels[theirs]))
        again = [distances(*pair) for pair in zip(*drawings, strict=True)]
        numbers: dict[str, Any] = {}
        if labels is not None:
            each = [metrics.class_accuracy(classifier.predict(samples), labels) for classifier in self.classifiers]
            numbers = {"class_accuracy": fmean(each), "class_accuracy_spread": spread(each)}
        numbers["classifier_test_accuracy"] = fmean(self.real["accuracies"].tolist())
        for k, name in enumerate(("frechet", "frechet_floor", "frechet_ratio")):
            numbers[name] = fmean(each[k] for each in found)
            numbers[f"{name}_plus_minus"] = metrics.plus_minus(fmean(one[k] for one in each) for each in again)
        numbers["frechet_ratio_spread"] = spread(each[2] for each in found)
        stamp = replace(
            stamp,
            reference=self.reference.name,
            reference_hash=self.reference.fingerprint(),
            n=n,
            drawn=len(samples),
            extractor=f"{len(self.classifiers)} x {self.classifiers[0].name}",
            extractor_checksum="+".join(self.checksums),
        )
        distance = metrics.nearest(samples, self.train.images)[0].median() / self.real["distance"]
        copies, floor, warnings = find_copies(samples, self.train.images), self.real["copies"], stamp.warnings()
        if copy_alarm(copies, floor):
            warnings.append(
                f"{int(copies.sum())} of {len(copies)} images are copies of training images (of real test images "
                f"{int(floor.sum())} of {len(floor)}): the first is number {int(copies.nonzero()[0])}"
            )
        return numbers | {
            "copy_ratio": distance.item(),
            "copies": copies.double().mean().item(),
            "copies_floor": floor.double().mean().item(),
            "stamp": asdict(stamp),
            "warnings": warnings,
        }


def spread(values: Iterable[float]) -> float:
    """The standard deviation of a number between classifiers; 0 of one."""
    each = list(values)
    return stdev(each) if len(each) > 1 else 0.0


DISTANCES = {"dinov2": "fd_dinov2", "dinov2-b": "fd_dinov2_b", "clip": "cmmd"}  # in Inception's features: "fid"


class NetworkEvaluator:
    """Numbers in the features of a published network, against those of real images or their statistics.

    Inception: FID, sFID, Inception Score, KID. DINOv2: FD-DINOv2 (Stein et al. 2023). Both: precision, recall, density,
    coverage and Vendi score. CLIP: CMMD. What the reference does not hold is left out, and the warnings say so:
    statistics alone have no features for the others. Settings are torch-fidelity's, but for the splits of the Inception
    Score: 100 subsets of 1000 images (of all if there are fewer), 3 neighbours, random seed 2020. `name` and `checksum`
    are the reference's, for provenance.
    """

    class_names = ()  # it ignores the classes asked for

    def __init__(self, reference: metrics.Reference, network: Any, name: str = "", checksum: str = ""):
        self.reference, self.network, self.name, self.checksum = reference, network, name, checksum

    def __call__(self, batches: Iterable[Tensor], labels: Tensor | None, stamp: Provenance) -> dict[str, Any]:
        """Numbers, ready for JSON, of uint8 images (B, C, H, W); their features are kept, the images are not."""
        reference, found, left_out = self.reference, list(map(self.network, batches)), []
        check(bool(found), "there are no images to measure")
        features, *more = (torch.cat(part) for part in zip(*found, strict=True))
        n = len(features) if reference.features is None else min(len(features), len(reference.features))
        check(n >= 10, f"these metrics need at least 10 images on each side and got {n}; give more")
        distance = DISTANCES.get(self.network.name, "fid")
        if distance == "cmmd":
            if reference.features is None:
                raise DiffitError(f"CMMD needs images, and {self.name} holds statistics alone; give images as --data")
            numbers = metrics.cmmd(features, reference.features)
        else:
            numbers = metrics.frechet_numbers(distance, features, reference.mean, reference.covariance)
        if more:
            logits, spatial = more
            if reference.spatial_mean is not None and reference.spatial_covariance is not None:
                numbers |= metrics.frechet_numbers(
                    "sfid", spatial, reference.spatial_mean, reference.spatial_covariance
                )
            else:
                left_out.append("sFID is left out: the reference has no mu_s and sigma_s")
            numbers |= metrics.inception_score(logits)
        if distance != "cmmd":
            numbers["vendi_score"] = metrics.vendi_score(features)
            if reference.features is None:
                missing = "KID, precision, recall, density and coverage" if more else "precision and its like"
                left_out.append(f"{missing} are left out: the reference is statistics alone, without images")
            else:
                numbers |= metrics.neighbourhoods(features, reference.features, kid=bool(more))
        stamp = replace(
            stamp,
            reference=self.name,
            reference_hash=self.checksum,
            n=len(features),
            drawn=len(features),
            extractor=self.network.name,
            extractor_checksum=self.network.checksum,
        )
        return numbers | {"stamp": asdict(stamp), "warnings": stamp.warnings() + left_out}


def npz_reference(path: Path, inception: Any) -> metrics.Reference:
    """The statistics in an `.npz`, with the features of the images in it; else those of its images."""
    found = array_names(path)
    if not found & set(NAMES.values()):
        return cached_reference(read_npz(path), inception)
    reference = read_statistics(path, inception)
    if "arr_0" not in found:
        return reference
    return reference._replace(features=cached_reference(read_npz(path), inception).features)


def cached_reference(images: Images, extractor: Any) -> metrics.Reference:
    """Statistics of real images, from the cache if they were taken before."""
    name = f"statistics/{images.fingerprint()}-{extractor.name}-{extractor.checksum}"
    return metrics.Reference(**cached(name, lambda: metrics.reference_statistics(images.images, extractor).tensors()))
