"""What the notebooks' cells call to show things and to keep a run: faces of the tasks, no mathematics."""

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from os.path import expanduser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffit_lib.checkpoints.autoencoders import load_space
from diffit_lib.checkpoints.hub import HUB_MODELS, find_weights, from_drive, is_here
from diffit_lib.checkpoints.weights import build_denoiser
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.presets import IMAGE_SPACE, LATENT_SPACE, STABLE_DIFFUSION
from diffit_lib.data.datasets import Images, Split
from diffit_lib.evaluation.evaluate import evaluate
from diffit_lib.evaluation.provenance import Provenance
from diffit_lib.models.blocks import TMSA
from diffit_lib.notebook.drive import Backup, offer_download, warn
from diffit_lib.notebook.form import pretrained
from diffit_lib.sampling.grids import draw_grid
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.training.fit import shaping
from diffit_lib.training.train import train
from diffit_lib.training.train_vae import train_vae
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import PRETRAINED, cache_folder
from diffit_lib.utils.plots import enlargement, tile, to_image
from diffit_lib.utils.tensors import SeededNoise, best_device, derive_seed, to_float, to_uint8

FIGURES = Path(__file__).parent / "figures"  # of the paper's blocks
ID = r"(?:1|0B)[\w-]{24,}"  # of a file in Google Drive; other long words are names
LINK = r"https://(?:drive|docs|drive\.usercontent)\.google\.com/\S*?(?:/d/|[?&]id=)"
PAPER = {"CIFAR-10": 1.95, "FFHQ-64": 2.22}  # FID of the image-space network, table 2
PAPER_LATENT = {"ImageNet-256": 1.73, "ImageNet-512": 2.67}  # of the latent one


def png(thing: Figure | np.ndarray | Path) -> bytes:
    """A figure, a uint8 picture (H, W, C) or a PNG file as the bytes of a PNG."""
    if isinstance(thing, Path):
        return thing.read_bytes()
    data = io.BytesIO()
    if isinstance(thing, Figure):
        thing.savefig(data, format="png", dpi=110)
    else:
        to_image(thing).save(data, "PNG")
    return data.getvalue()


def img(thing: Figure | np.ndarray | Path, style: str = "") -> str:
    """The same as an HTML element that holds all of it."""
    return f'<img style="{style}" src="data:image/png;base64,{base64.b64encode(png(thing)).decode()}"/>'


def show(*things: Figure | np.ndarray | Path | str) -> None:
    """Show figures, uint8 pictures (H, W, C) and figures of the paper's blocks by name, one below the other."""
    for thing in things:
        display(Image(png(FIGURES / f"{thing}.png" if isinstance(thing, str) else thing)))


def rows(columns: Sequence[Tensor]) -> np.ndarray:
    """Columns of floats about [-1, 1], (B, C, H, W) each -> one picture with B rows."""
    pictures = torch.stack([to_uint8(column) for column in columns], dim=1).movedim(2, -1).numpy()
    flat = pictures.reshape(-1, *pictures.shape[2:])
    return tile(flat, len(columns), scale=enlargement(flat))


def examples(images: Images, each: int = 8) -> np.ndarray:
    """The first images of each of the first ten classes, a row for a class, all rows equally long; one picture."""
    classes = range(min(10, len(images.class_names))) or [0]
    each = min([each, *(int((images.labels == label).sum()) for label in classes)])
    chosen = torch.cat([(images.labels == label).nonzero()[:each, 0] for label in classes])
    return rows(to_float(images.images[chosen]).unflatten(0, (len(classes), -1)).unbind(1))


def attention_maps(pipe: Pipeline, sigma: float) -> Tensor:
    """Attention of the first block in one window of a drawn image with noise of this level on it: (h, N, N)."""
    maps: list[Tensor] = []
    layer = next(module for module in pipe.denoiser.modules() if isinstance(module, TMSA))
    hook = layer.register_forward_pre_hook(lambda layer, inputs: maps.append(layer.attention_map(*inputs[:2])))
    with torch.no_grad():
        clean = to_float(torch.from_numpy(pipe([0], batch_size=1)).movedim(-1, 1)).to(pipe.device)
        maps.clear()
        noise = SeededNoise([0], clean.shape[1:])().to(pipe.device)
        label = pipe.class_label([0], None)
        label = None if label is None else label.to(pipe.device)
        pipe.denoiser(clean + sigma * noise, torch.tensor([sigma]), label)
    hook.remove()
    return maps[0][len(maps[0]) // 2].cpu()


def open_run(
    experiment: BaseExperimentConfig, data: Split, copies: Path | None, *, runs: str | Path = "runs"
) -> Backup:
    """The run folder of a recipe and its data, brought back from its copies where these are newer.

    Its name holds what shapes the run: other settings, images or latents are another run, and the same ones find it
    again.
    """
    shape = [data.train.fingerprint(), str(shaping(experiment))]
    if vae := getattr(experiment, "vae", ""):
        shape.append(load_space(vae)[0].checksum)
    backup = Backup(Path(runs) / f"{experiment.name.rpartition('/')[2]}-{derive_seed(*shape) % 16**6:06x}", copies)
    brought = backup.restore()
    came = f", brought back from {copies}" if brought else ""
    print(f"run: {backup.run}{came}; copies: {backup.folder or 'none'}")
    return backup


def train_live(experiment: ExperimentConfig | VAEExperimentConfig, data: Split, backup: Backup) -> Path:
    """Train, or go on, under a curve and a grid of pictures that follow; the weights, copied beside its copies."""
    screen = display(HTML("<i>The curve and the first pictures come with the first report.</i>"), display_id=True)

    def look() -> None:
        newest = max((backup.run / "samples").glob("*.png"))
        screen.update(HTML(f"{img(backup.run / 'loss.png', 'width:100%')}<br>{img(newest)}"))
        backup()

    if isinstance(experiment, VAEExperimentConfig):
        weights = train_vae(experiment, backup.run, data, after_save=backup, after_report=look)
    else:
        weights = train(experiment, backup.run, data, after_save=backup, after_report=look)
    backup.save()
    backup.hand_over(weights)
    return weights


def choose_vae(experiment: VAEExperimentConfig, run: Path, vae: str = "train") -> str:
    """The autoencoder to go on with where none was trained, by path or name.

    Stable Diffusion's, where the recipe is of it; the run's own, from another day, unless `vae` is "ready"; else the
    ready-made one of the recipe's name.
    """
    own, ours = run / "weights.safetensors", PRETRAINED / f"{experiment.name}.safetensors"
    if experiment.name in STABLE_DIFFUSION:
        return experiment.name
    if own.is_file() and vae != "ready":
        return str(own)
    check(ours.is_file(), f"there is no ready-made autoencoder for {experiment.data}; set VAE to train, and IS_TRAIN")
    return experiment.name


def choose_weights(experiment: ExperimentConfig, run: Path, given: str = "") -> Path:
    """The weights to go on with where nothing was trained.

    Those given, by path, name, or the id or link of a file in Google Drive; else the run's own, from another day; else
    pretrained ones of the same data.
    """
    if given:
        try:
            return from_drive_link(given) or find_weights(expanduser(given))
        except DiffitError as error:
            raise DiffitError(f"PATH_WEIGHTS: {error}") from error
    own, ours = (
        run / "weights.safetensors",
        pretrained(experiment.data, LATENT_SPACE if experiment.vae else IMAGE_SPACE),
    )
    if own.is_file():
        return own
    if ours is None:
        raise DiffitError(
            f"there are no weights for {experiment.data}; set IS_TRAIN, or PATH_WEIGHTS to a file of weights"
        )
    return ours


def has_weights(experiment: ExperimentConfig, run: Path) -> bool:
    """Whether `choose_weights` finds any; else one red line says that the digits take the data's place."""
    try:
        choose_weights(experiment, run)
    except DiffitError as error:
        warn(f"{error}: this goes on with the digits")
        return False
    return True


def from_drive_link(given: str) -> Path | None:
    """The file of a Google Drive id or link, downloaded once; None where this is neither, but a path or a name."""
    match = re.fullmatch(rf"(?:{LINK})([\w-]{{25,}})(?:[/?&#]\S*)?|({ID})", given)
    if Path(given).exists() or not match:
        return None
    drive_id = match[1] or match[2]
    path = cache_folder() / "weights" / f"{drive_id}.safetensors"
    try:
        with safe_open(path if path.is_file() else from_drive(drive_id, path), "pt"):
            return path
    except SafetensorError as error:
        path.unlink()
        raise DiffitError(
            f"https://drive.google.com/file/d/{drive_id} is no whole safetensors file ({error}); "
            "give the link of a weights file that diffit wrote"
        ) from error


def untrained(pipe: Pipeline) -> Pipeline:
    """The same network before its first step of training."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(pipe.card.experiment.training.seed)
        fresh = build_denoiser(pipe.card.experiment)
    return Pipeline(fresh, pipe.card, pipe.space, device=pipe.device, precision=pipe.precision)


def how_to_draw(pipe: Pipeline, sampler: str, steps: int, guidance: float) -> dict[str, Any]:
    """The form's sampling settings for these weights, which "auto" and 0 leave the choice to.

    Guidance that weights without classes cannot have is told and left out.
    """
    if guidance not in (0, 1) and pipe.card.experiment.network.num_classes == 0:
        warn(f"GUIDANCE is {guidance:g}, but these weights know no classes to guide to: this goes on without")
        guidance = 0
    return {"sampler": sampler if sampler != "auto" else None, "steps": steps or None, "guidance": guidance or None}


def published(name: str, file: str = "") -> Pipeline | None:
    """Weights that others published, where they are on this machine; else one line says how to get them."""
    if not file and not is_here(name):
        foreign = HUB_MODELS[name]
        print(f"{name} is not on this machine: set FILE to {foreign.file} from {foreign.source} ({foreign.licence})")
        return None
    try:
        pipe = load(name, file=file or None)
        return pipe if pipe.space.checksum else None  # the autoencoder is fetched here
    except DiffitError as error:
        warn(str(error))
        return None


def measure(weights: Path, data: Split, backup: Backup, images: int = 0, **settings: Any) -> dict[str, Any] | None:
    """The numbers of `evaluate`, or a red line and None; what is drawn is kept, so that a broken-off one goes on.

    Photographs are seen by Inception, which the field compares by, where its weights can be had; so are images among
    which a classifier has nothing to tell apart or to be tested on. 0 images: 500 on a CPU, 2,000 on a GPU.
    """
    if images == 1 or images < 0:
        warn(f"not measured: METRIC_SAMPLES is {images}; give 2 or more, or 0 to leave the choice to the machine")
        return None
    images = images or (500 if best_device().type == "cpu" else 2000)
    kept: Any = {"drawn": backup.run / "drawn", "after_batch": backup}
    classes = len(data.train.class_names) > 1 and data.train is not data.test
    seers: list[Any] = ["inception"] * (data.train.images.shape[1] == 3 or not classes) + ["classifier"] * classes
    try:
        for extractor in seers:
            try:
                return evaluate(weights, data, images=images, extractor=extractor, **kept, **settings)
            except DiffitError as error:
                warn(f"no numbers by the {extractor} network: {error}")
        return None
    finally:
        backup.save()


def table(numbers: dict[str, Any]) -> HTML:
    """Measured numbers beside the paper's, and the stamp without which they mean nothing."""
    rows = [(key.replace("_", " "), value) for key, value in numbers.items() if isinstance(value, float)]
    paper = PAPER_LATENT if numbers["stamp"]["decoder"] else PAPER
    rows += [(f"FID of the paper on {name}, n = 50,000", value) for name, value in paper.items()]
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{value:.3f}</td></tr>" for name, value in rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in numbers["warnings"])
    return HTML(f"<table>{cells}</table><small>{escape(str(Provenance(**numbers['stamp'])))}</small><ul>{notes}</ul>")


def closing_card(
    pipe: Pipeline, weights: Path, backup: Backup, numbers: dict[str, Any] | None, **settings: Any
) -> None:
    """What there is in the end: before and after, the numbers, where the weights lie, a download, the next step."""
    card, own = pipe.card, weights.parent == backup.run
    where = backup.hand_over(weights) if own else weights
    measured = table(numbers).data if numbers else "<p>Not measured: IS_METRIC is off, or a red line says why.</p>"
    pictures = "".join(
        f"<figure style='margin:0 1em 0 0'>{img(draw_grid(each, **settings), 'image-rendering:pixelated;width:20em')}"
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
