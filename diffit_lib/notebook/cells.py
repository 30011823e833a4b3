"""What the notebooks' cells call to train, measure and show things."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure
from torch import Tensor

from diffit_lib.checkpoints.hub import ALIASES, HUB_MODELS, is_here
from diffit_lib.checkpoints.weights import build_denoiser, check_fits, few
from diffit_lib.config.experiment import ExperimentConfig, VAEExperimentConfig
from diffit_lib.data.datasets import Images, Split
from diffit_lib.evaluation.evaluate import evaluate
from diffit_lib.evaluation.evaluator import HELD
from diffit_lib.evaluation.features import train_classifier
from diffit_lib.evaluation.metrics import class_accuracy
from diffit_lib.evaluation.provenance import in_words
from diffit_lib.evaluation.reconstruction import reconstructions
from diffit_lib.models.latent_space import Space
from diffit_lib.notebook.drive import Backup, offer_download, warn
from diffit_lib.reports.auto import IMAGE_SPACE, LATENT_SPACE
from diffit_lib.sampling.grids import draw_grid
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.training.train import train
from diffit_lib.utils import plots
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import best_device, to_float, to_uint8

DPI = 144  # of a figure: two pixels to a point, for screens of high resolution
FIGURES = Path(__file__).parent / "figures"  # of the paper's blocks
PAPER = {"CIFAR-10": 1.95, "FFHQ-64": 2.22}  # FID of the image-space network, table 2
PAPER_LATENT = {"ImageNet-256": 1.73, "ImageNet-512": 2.67}  # of the latent one


def png(thing: Figure | np.ndarray | Path) -> bytes:
    """A figure, a uint8 picture (H, W, C) or a PNG file as a PNG, two pixels to a point."""
    if isinstance(thing, Figure):
        thing.set_facecolor("white")  # reads on a dark page too
        return plots.png(thing, DPI)
    return thing.read_bytes() if isinstance(thing, Path) else plots.png(thing.repeat(2, 0).repeat(2, 1))


def image_html(thing: Figure | np.ndarray | Path, style: str = "") -> str:
    """The same as an HTML element that contains its data."""
    return f'<img style="{style}" src="data:image/png;base64,{base64.b64encode(png(thing)).decode()}"/>'


def show_figures(*things: Figure | np.ndarray | Path | str) -> None:
    """Show figures, uint8 pictures (H, W, C), and drawings of the paper's blocks by name, one below the other."""
    for thing in things:
        display(Image(png(FIGURES / f"{thing}.png" if isinstance(thing, str) else thing), retina=True))


def tile_columns(columns: Sequence[Tensor]) -> np.ndarray:
    """Columns of images, floats in [-1, 1], (B, C, H, W) each -> one picture with B rows, uint8 (H, W, C)."""
    pictures = torch.stack([to_uint8(column) for column in columns], dim=1).movedim(2, -1).numpy()
    flat = pictures.reshape(-1, *pictures.shape[2:])
    return plots.tile(flat, len(columns))


def count_images(data: Split) -> str:
    """How many images and classes there are, in words."""
    classes = few(data.train.class_names)
    return f"{len(data.train):,} images to train on, {len(data.test):,} to test on; {classes}"


def class_examples(images: Images) -> np.ndarray:
    """The first images of each of the first ten classes, a row per class, all rows equally long; uint8 (H, W, C)."""
    classes = range(min(10, len(images.class_names))) or [0]
    each = min([8, *(int((images.labels == label).sum()) for label in classes)])
    chosen = torch.cat([(images.labels == label).nonzero()[:each, 0] for label in classes])
    return tile_columns(to_float(images.images[chosen]).unflatten(0, (len(classes), -1)).unbind(1))


def train_live(experiment: ExperimentConfig | VAEExperimentConfig, data: Split, run: Backup) -> Path:
    """Train, or go on, and keep a curve and a grid of pictures up to date; return the path of the weights."""
    screen = display(HTML("<i>The curve and the first pictures come with the first report.</i>"), display_id=True)

    def update() -> None:
        newest = max((run.run / "samples").glob("*.png"))
        screen.update(HTML(f"{image_html(run.run / 'loss.png', 'max-width:100%')}<br>{image_html(newest)}"))
        run()

    weights = train(experiment, run.run, data, after_save=run, after_report=update)
    run.save()
    run.hand_over(weights)
    return weights


def open_weights(weights: Path, data: Split) -> Pipeline:
    """Open weights, say how they were trained, and check that they fit the data."""
    pipe = load(weights)
    check_fits(pipe.card, data.train, str(weights))
    print(f"{weights}: {pipe.card.images_seen:,} images in {pipe.card.minutes:.1f} minutes on {pipe.card.device}")
    return pipe


def untrained(pipe: Pipeline) -> Pipeline:
    """The same network before its first step of training."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(pipe.card.experiment.training.seed)
        fresh = build_denoiser(pipe.card.experiment)
    return Pipeline(fresh, pipe.card, pipe.space, device=pipe.device, precision=pipe.precision)


def sampling_settings(pipe: Pipeline, sampler: str, steps: int, guidance: float) -> dict[str, Any]:
    """The form's sampling settings for these weights; "auto" and 0 mean the weights' own.

    If the weights have no classes, guidance is left out, and one red line says so.
    """
    if guidance not in (0, 1) and pipe.card.num_classes == 0:
        warn(f"GUIDANCE is {guidance:g}, but these weights know no classes to guide to: this goes on without")
        guidance = 0
    return {"sampler": sampler if sampler != "auto" else None, "steps": steps or None, "guidance": guidance or None}


def load_published(name: str, file: str = "") -> Pipeline | None:
    """Open weights that others published, if they are on this machine; else one line says how to get them."""
    known = ALIASES.get(name, name)
    if not file and known in HUB_MODELS and not is_here(known):
        foreign = HUB_MODELS[known]
        print(f"{name} is not on this machine: set FILE to {foreign.file} from {foreign.source} ({foreign.licence})")
        return None
    try:
        pipe = load(name, file=file or None)
        return pipe if pipe.space.checksum else None  # the autoencoder is fetched here
    except DiffitError as error:
        warn(str(error))
        return None


def legibility(space: Space, data: Split) -> tuple[float, float]:
    """Accuracy of a small classifier on test images, and on their reconstructions."""
    train, test = data.train.held(HELD), data.test.held(HELD)
    classifier = train_classifier(train.images, train.labels, device=best_device())
    pair = (classifier.predict(images) for images in (test.images, reconstructions(space, test.images)))
    before, after = (class_accuracy(predicted, test.labels) for predicted in pair)
    return before, after


def measure_samples(weights: Path, data: Split, run: Backup, images: int = 0, **settings: Any) -> dict[str, Any] | None:
    """Measure samples with `evaluate`; None if that is not possible, and red lines say why.

    0 images are 500 on a CPU and 2,000 on a GPU. Colour images are measured in Inception's features, as published
    numbers are, if its weights can be loaded; all others in those of a small classifier, if there are classes and a
    test part. What was drawn is kept in the run, so that a measurement that was cut off goes on.
    """
    if images == 1 or images < 0:
        warn(f"not measured: METRIC_SAMPLES is {images}; give 2 or more, or 0 to leave the choice to the machine")
        return None
    images = images or (500 if best_device().type == "cpu" else 2000)
    kept: Any = {"drawn": run.run / "drawn", "after_batch": run}
    classes = len(data.train.class_names) > 1 and data.train is not data.test
    extractors: list[Any] = ["inception"] * (data.train.images.shape[1] == 3 or not classes) + ["classifier"] * classes
    try:
        for extractor in extractors:
            try:
                return evaluate(weights, data, images=images, extractor=extractor, **kept, **settings)
            except DiffitError as error:
                warn(f"no numbers by the {extractor} network: {error}")
        return None
    finally:
        run.save()


def results_table(numbers: dict[str, Any]) -> HTML:
    """A table of the measured numbers, and below it what they depend on and what the paper reports."""
    rows = [(key.replace("_", " "), value) for key, value in numbers.items() if isinstance(value, float)]
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{value:.3f}</td></tr>" for name, value in rows)
    paper = PAPER_LATENT if numbers["stamp"]["decoder"] else PAPER
    others = [f"FID of the paper on {name}, n = 50,000: {value}" for name, value in paper.items()]
    notes = "".join(f"<li>{escape(note)}</li>" for note in [*numbers["warnings"], *others])
    return HTML(f"<table>{cells}</table><small>{escape(in_words(numbers['stamp']))}</small><ul>{notes}</ul>")


def closing_card(pipe: Pipeline, weights: Path, run: Backup, numbers: dict[str, Any] | None, **settings: Any) -> None:
    """Show what the run led to: before and after, the numbers, the path of the weights, a download, the next step."""
    card, own = pipe.card, weights.parent == run.run
    where = run.hand_over(weights) if own else weights
    unmeasured = "<p>Not measured: IS_METRIC is off, or a red line says why.</p>"
    measured = results_table(numbers).data if numbers else unmeasured
    style = "image-rendering:pixelated;width:20em"
    pictures = "".join(
        f"<figure style='margin:0 1em 0 0'>{image_html(draw_grid(each, **settings), style)}"
        f"<figcaption>{name}</figcaption></figure>"
        for name, each in (("before: an untrained network", untrained(pipe)), ("after", pipe))
    )
    step = "more images in OVERRIDES (and more TRAIN_MINUTES): the run goes on from where it stands"
    if pipe.device.type == "cpu":
        step = "a GPU: it trains many times faster"
        if card.experiment.data == "digits":
            space = LATENT_SPACE if card.vae else IMAGE_SPACE
            step += f", and {space.on_gpu} takes the digits' place where DATASET is auto"
    if not own:
        step = "IS_TRAIN: weights of your own"
    facts = f"{card.images_seen:,} images in {card.minutes:.1f} minutes on {escape(card.device)}"
    display(
        HTML(
            "<div style='border:1px solid #999;border-radius:8px;padding:1em;max-width:46em'>"
            f"<h3 style='margin-top:0'>{escape(card.experiment.name)}, trained on {facts}</h3>"
            f"<div style='display:flex;flex-wrap:wrap'>{pictures}</div>{measured}"
            f"<p><b>Weights:</b> <code>{escape(str(where))}</code></p><p><b>Next:</b> {step}.</p></div>"
        )
    )
    offer_download(weights)
