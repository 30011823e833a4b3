"""A Frechet distance of few samples while training: is it improving, and which weights were the best so far?"""

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffit_lib.data.datasets import Images
from diffit_lib.data.latent_cache import CachedLatents
from diffit_lib.evaluation.evaluator import HELD, cached_reference
from diffit_lib.evaluation.features import INCEPTION_URL, Extractor, load_inception, train_classifier
from diffit_lib.evaluation.metrics import Reference, frechet_from_moments, moments
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.utils.distributed import any_rank, rank_zero_first, share_out
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import in_cache
from diffit_lib.utils.logging import say
from diffit_lib.utils.tensors import to_uint8

ONLINE_SAMPLES = 128  # images drawn, always of the same seeds: more than the classifier has features
SMALL = 64  # pixels a side; on larger images a CPU would train the classifier for longer than the network
SHARE = 0.05  # of the training time, at most, for drawing and measuring


class OnlineMetric:
    """Frechet distance of the averaged weights' samples to the train part, in the features of one extractor.

    The extractor is the classifier if the data have classes and small images, else Inception if its weights are in the
    cache; else nothing is measured. The classifier and the reference's statistics are made once per data set, cached,
    and not counted in `SHARE`.
    """

    def __init__(self, train: Images, device: torch.device):
        self.train, self.device = train, device
        if isinstance(train, CachedLatents):
            say(f"{train.name} holds latents without their images: no Frechet distance in training")
            self.kind = self.column = ""
            return
        small = max(train.images.shape[2:]) <= SMALL
        self.kind = "classifier" if len(train.class_names) > 1 and small else "inception"
        self.column = "fid" if self.kind == "inception" else "frechet"
        if self.kind == "inception":
            try:
                path = in_cache(INCEPTION_URL)  # nothing is downloaded
                check(path.is_file(), f"there are no Inception weights at {path}")
                check(len(train) > 1, "there is one image only")
                self.extractor = load_inception(path).to(device)
            except DiffitError as error:
                why = "has no classes" if small else "is of large images"
                say(f"{train.name} {why}; no Frechet distance is taken in training. {error}")
                self.kind = ""

    @cached_property
    def extractor(self) -> Extractor:
        """The classifier, unless it was set to Inception."""
        held = self.train.held(HELD)
        return train_classifier(held.images, held.labels, device=self.device)

    @cached_property
    def reference(self) -> Reference:
        """Statistics of the whole train part."""
        return cached_reference(self.train, self.extractor)

    def __call__(self, pipe: Pipeline, rows: Sequence[dict[str, Any]], seconds: float, each: float) -> dict[str, Any]:
        """Columns for `metrics.csv`: the distance and the seconds it took, empty if they would exceed `SHARE`.

        `rows` are those of `metrics.csv` so far, `seconds` the training time, `each` the seconds to draw an image.
        Processes share the images; none draws if one lacks the time or Inception.
        """
        if not self.column:
            return {}
        row: dict[str, Any] = {self.column: "", "metric_seconds": ""}
        spent = sum(float(earlier.get("metric_seconds") or 0) for earlier in rows)
        if any_rank(not self.kind or spent + ONLINE_SAMPLES * each > SHARE * seconds):
            return row
        with rank_zero_first():
            reference = self.reference
        labels, start = pipe.card.classes_in_turn(ONLINE_SAMPLES), time.monotonic()

        def features(seeds: range) -> Tensor:
            images = torch.cat(list(pipe.batches(seeds, labels and labels[seeds.start : seeds.stop])))
            return self.extractor.features(to_uint8(images))

        found = moments(torch.cat(share_out(features, range(ONLINE_SAMPLES))))
        row[self.column] = frechet_from_moments(*found, reference.mean, reference.covariance)
        return row | {"metric_seconds": round(time.monotonic() - start, 2)}

    def is_best(self, row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bool:
        """Whether a new row has the smallest distance of the run."""
        earlier = [float(old[self.column]) for old in rows if old.get(self.column)]
        return row.get(self.column, "") != "" and row[self.column] < min(earlier, default=float("inf"))
