"""`evaluate`: measure images, drawn from weights or in files; every number comes with its provenance."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from diffit_lib.checkpoints.autoencoders import stable_diffusion_card
from diffit_lib.checkpoints.weights import ModelCard, check_fits, few, load_own_space
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.data.datasets import Images, Split, experiment_data, load_data
from diffit_lib.data.folders import find_images
from diffit_lib.data.latent_cache import is_latents
from diffit_lib.data.shards import find_shards
from diffit_lib.data.sources import NAMED
from diffit_lib.evaluation.evaluator import ClassifierEvaluator, NetworkEvaluator, kind_of, make_evaluator
from diffit_lib.evaluation.image_files import is_image_files, is_npz, read_images, write_statistics
from diffit_lib.evaluation.provenance import PROTOCOLS, Provenance, paper_settings
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.sampling.writer import SampleWriter, Selection
from diffit_lib.utils.distributed import local_device, locked, rank_info
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import MOST_IMAGES, cache_folder, expanded
from diffit_lib.utils.logging import say
from diffit_lib.utils.tensors import derive_seed, digest

FIRST_SEED = 10_000  # no setting was chosen by looking at images of these seeds
EXTRACTOR = Literal["classifier", "inception", "dinov2", "dinov2-b", "clip"]


def evaluate(what: str | Path, data: Split | str | Path | None = None, **options: Any) -> dict[str, Any]:
    """`evaluate_each` of a single setting: a dict of numbers."""
    return next(iter(evaluate_each(what, data, **options)), {})


def evaluate_each(
    what: str | Path,
    data: Split | str | Path | None = None,
    *,
    images: int | None = None,
    extractor: EXTRACTOR | None = None,
    extractor_file: str | Path | None = None,
    protocol: Literal["round", "adm", "dit", "diffit", "edm"] = "round",
    save_statistics: str | Path | None = None,
    batch_size: int = 100,
    drawn: str | Path | None = None,
    after_batch: Callable[[], object] = lambda: None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Measure weights by the images they draw, or the images of a folder, zip or `.npz`, against a reference.

    `data`, the reference, is a data set by name, a folder or zip, an `.npz` of images, or an `.npz` of statistics as
    others publish them; by default the weights' own data. `extractor` is "classifier" (trained three times on the train
    part: class accuracy, Frechet distance and its floor, copies) or the network that `NetworkEvaluator` describes:
    "inception", "dinov2" (ViT-L/14), "dinov2-b" or "clip"; the default is the classifier for a data set with classes.
    `extractor_file` has the network's weights; by default they come from the cache, or are downloaded.
    `save_statistics` is an `.npz` to write the reference's statistics to.

    Weights draw `images` (500), as many of each class, from seeds 10000, 10001, ..., `batch_size` at once. `settings`
    are those of `Pipeline.__call__`; a tuple of values measures each combination, in the order of `combinations`, and
    nothing is drawn if one of them is wrong. `protocol` "adm" truncates floats to uint8; "dit", "diffit" and "edm" draw
    50,000 images as for those papers' numbers (`PROTOCOLS`). Drawn images stay in the cache folder until they are
    measured, so that a stopped measurement continues; in the folder `drawn` they stay for good. `after_batch` is called
    after each batch. Of images in files, `images` (all) are measured, evenly spread.

    Each of several processes draws its share; the first one measures, the others return an empty list.
    """
    check(images is None or images >= 2, f"images is {images}; give 2 or more")
    check((images or 0) <= MOST_IMAGES, f"images is {images}, and {MOST_IMAGES:,} is the most; give fewer")
    check(batch_size > 0, f"batch_size is {batch_size}; give 1 or more")
    check(protocol in PROTOCOLS, f"protocol is {protocol!r}; give one of {', '.join(PROTOCOLS)}")
    folder = save_statistics is not None and Path(save_statistics).is_dir()
    check(not folder, f"save_statistics is {save_statistics}, a folder; give the name of a file")
    npz, paper = Path(str(data)) if is_npz(data) else None, PROTOCOLS[protocol]
    extractor = extractor or ("inception" if paper.random_labels else None)
    check(npz is None or npz.is_file(), f"there is no file {data}; give statistics or images as .npz")
    device, first = local_device(), rank_info().rank == 0

    def evaluator(reference: Split | Images | Path) -> ClassifierEvaluator | NetworkEvaluator:
        kind = kind_of(reference, extractor)
        only = {"extractor_file": extractor_file, "save_statistics": save_statistics}
        only["protocol"] = None if protocol == "round" else protocol
        for name, value in only.items():
            check(
                kind != "classifier" or value is None,
                f"{name} is {str(value)!r}, which the classifier does not take; give --extractor inception too",
            )
        found = make_evaluator(reference, kind, device, extractor_file)
        if save_statistics is not None and isinstance(found, NetworkEvaluator):
            write_statistics(save_statistics, found.reference)
        return found

    if is_image_files(what):
        check(protocol == "round", f"protocol is {protocol!r}, but {what} holds whole numbers already; leave it out")
        check(not settings, f"{', '.join(settings)} is for drawing, but {what} holds images; leave it out")
        pictures = read_images(what)
        reference = npz or images_reference(pictures, data, extractor)
        return [measure_images(evaluator(reference), pictures, images)] if first else []

    pipe, count = with_decoder(load(what, device=device), what, paper.vae), images or paper.images
    batch_size = min(batch_size, count)
    reference = npz or weights_reference(pipe.card, str(what), data)
    each = combinations(paper_settings(protocol, pipe.card.experiment.network) | settings)
    stamps = [make_provenance(pipe, kind_of(reference, extractor), count, one, protocol) for one in each]
    writers = sample_writers(pipe, count, each, batch_size, protocol, drawn, after_batch)
    numbers = []
    with ExitStack() as locks:
        for writer in writers:
            locks.enter_context(locked(writer.folder))
        measure = evaluator(reference) if first else None
        for writer, stamp in zip(writers, stamps, strict=True):
            writer.draw()
            if measure:
                labels = [image.label for image in writer.images]
                found = measure(writer.read(), None if None in labels else torch.tensor(labels), stamp)
                numbers.append(found | {"warnings": found["warnings"] + beside_card(found, pipe.card.numbers)})
        if measure and drawn is None:
            for writer in writers:
                shutil.rmtree(writer.folder, ignore_errors=True)
    return numbers


def beside_card(numbers: dict[str, Any], card: dict[str, Any]) -> list[str]:
    """A line on the numbers in the weights' own card, where they were taken in the same way and are others."""
    names = [name for name in ("class_accuracy", "frechet_ratio") if f"{name}_spread" in numbers and name in card]
    stamp, theirs = dict(numbers["stamp"]), dict(card.get("stamp", {}))
    here, there = (one.pop("extractor_checksum", "") for one in (stamp, theirs))
    theirs.pop("reference_hash", "")  # other versions hashed in another way
    same = all(stamp.get(key) in (value, str(value).removesuffix(".0")) for key, value in theirs.items())
    if not same or all(numbers[name] == card[name] for name in names):
        return []
    inside = all(abs(numbers[name] - card[name]) <= 2 * numbers[f"{name}_spread"] for name in names)
    values = ", ".join(f"{name} {card[name]:.3f} (here {numbers[name]:.3f})" for name in names)
    why = "classifiers trained on another machine or by another version" if here != there else "the same classifiers"
    return [f"the weights' card says {values}, by {why}: {'within' if inside else 'OUTSIDE'} two standard deviations"]


def with_decoder(pipe: Pipeline, what: str | Path, vae: str) -> Pipeline:
    """The pipeline with this one of Stable Diffusion's decoders, if it has another one of them."""
    experiment = pipe.card.experiment
    if not vae or experiment.vae not in STABLE_DIFFUSION or experiment.vae == vae:
        return pipe
    card = replace(pipe.card, experiment=replace(experiment, vae=vae), vae=stable_diffusion_card(vae))
    return Pipeline(pipe.denoiser, card, load_own_space(what, card), device=pipe.device, precision=pipe.precision)


def sample_writers(
    pipe: Pipeline,
    count: int,
    each: Sequence[dict[str, Any]],
    batch_size: int,
    protocol: str,
    drawn: str | Path | None,
    after_batch: Callable[[], object],
) -> list[SampleWriter]:
    """A writer of `count` images for each setting, each with a folder of its own in `drawn` or in the cache.

    Folders of other weights in `drawn` are deleted.
    """
    parent = cache_folder() / "drawn" if drawn is None else Path(drawn)
    weights, digits = digest(pipe.denoiser.state_dict()), 16 * "[0-9a-f]"
    if drawn is not None:
        for stale in set(parent.glob(f"{digits}-{digits}")) - set(parent.glob(f"{weights}-*")):
            shutil.rmtree(stale, ignore_errors=True)
    paper, seeds = PROTOCOLS[protocol], range(FIRST_SEED, FIRST_SEED + count)
    random = pipe.class_label(seeds, None) if paper.random_labels else None
    labels: list[Any] = sorted(pipe.card.classes_in_turn(count) or []) or [None] * count
    labels = labels if random is None else random.tolist()
    images = [Selection(seed, label, f"{seed}.png") for seed, label in zip(seeds, labels, strict=True)]

    def writer(settings: dict[str, Any]) -> SampleWriter:
        key = derive_seed(json.dumps(vars(pipe.sampling(**settings))), pipe.precision, protocol, batch_size, count)
        folder = parent / f"{weights}-{key:016x}"
        return SampleWriter(pipe, folder, images, batch_size, settings, paper.rounding, after_batch=after_batch)

    return list(map(writer, each))


def combinations(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the values that settings hold in tuples, each once; the last setting changes fastest."""
    given = [value if isinstance(value, tuple) else (value,) for value in settings.values()]
    values = [[value for k, value in enumerate(several) if value not in several[:k]] for several in given]
    return [dict(zip(settings, each, strict=True)) for each in product(*values)]


def weights_reference(card: ModelCard, weights: str, data: Split | str | Path | None) -> Split:
    """The reference for weights: `data`, by default the data they were trained on."""
    check(
        data is not None or not is_latents(Path(card.experiment.data) / "train"),
        f"{weights} was trained on latents alone, {card.experiment.data}; give their images as --data",
    )
    if not isinstance(data, tuple):
        data = experiment_data(card.experiment, data, card.image_shape)
    check_fits(card, data.train, weights)
    return data


def images_reference(given: Images, data: Split | str | Path | None, extractor: str | None) -> Split | Images:
    """The reference for images in files: both parts of a data set, or all images of a folder or zip.

    A published network takes all images of a folder or zip, as other evaluators do; a classifier needs both parts.
    Images are cropped and resized like training images, to the size of `given`.
    """
    if data is None:
        raise DiffitError(f"{given.name} holds images; give what to measure them against as --data")
    channels, height, width = given.images.shape[1:]
    if isinstance(data, str | Path):
        path = expanded(data)
        files = path.exists() and str(data) not in NAMED and not find_shards(path)
        if files and (
            extractor not in (None, "classifier") or (extractor is None and len(find_images(path).class_names) < 2)
        ):
            return read_images(path, (channels, height, width))
        data = load_data(data, (height, width), channels)
    shape = tuple(data.train.images.shape[1:])
    check(
        shape == (channels, height, width),
        f"{given.name} has images of {(channels, height, width)}, {data.train.name} of {shape}; give equal ones",
    )
    return data


def measure_images(
    evaluator: ClassifierEvaluator | NetworkEvaluator, given: Images, count: int | None
) -> dict[str, Any]:
    """Numbers of images in files, or of `count` of them; with class accuracy if the classes are the evaluator's."""
    total = len(given)
    check(count is None or count <= total, f"images is {count}, but {given.name} holds {total}; give {total} or fewer")
    chosen = given.spread(count or total)
    theirs, ours = given.class_names, tuple(evaluator.class_names)
    known = bool(ours) and theirs in (ours, tuple(map(str, range(len(ours)))))
    if theirs and ours and not known:
        say(f"{given.name} has {few(theirs)}, not {few(ours)}: class accuracy is left out")
    # one memory layout, since convolutions round differently in another
    batches = (given.images[part].clone(memory_format=torch.contiguous_format) for part in chosen.split(100))
    stamp = Provenance(images=given.name, images_hash=given.fingerprint(), rounding=None)
    return evaluator(batches, given.labels[chosen] if known else None, stamp)


def make_provenance(
    pipe: Pipeline, kind: str, images: int, settings: dict[str, Any], protocol: str = "round"
) -> Provenance:
    """What the numbers of drawn images depend on, apart from reference and extractor."""
    sampling = pipe.sampling(**settings)
    labels = "random" if PROTOCOLS[protocol].random_labels else "as many of each class"
    return Provenance(
        sampler=f"{sampling.method} sigma={pipe.denoiser.sigma_max:g}..{pipe.denoiser.sigma_min:g}",
        steps=sampling.steps,
        guidance=sampling.guided if pipe.card.num_classes else None,
        seeds=f"{FIRST_SEED}-{FIRST_SEED + images - 1}",
        precision=pipe.precision,
        rounding=PROTOCOLS[protocol].rounding,
        labels=labels if pipe.card.num_classes else None,
        decoder=f"{pipe.card.vae.experiment.name} {pipe.space.checksum}" if pipe.card.vae else None,
        weights_hash=digest(pipe.denoiser.state_dict()),
        best_by_this_metric=pipe.card.chosen_by == kind,
    )
