"""`report.html`: what a finished run has become, on one page that loads nothing from elsewhere."""

import base64
import io
import math
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import torch
from torch import Tensor

from diffit_lib.checkpoints.weights import ModelCard
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.config.presets import read_options
from diffit_lib.data.datasets import Split
from diffit_lib.data.latent_cache import CachedLatents
from diffit_lib.evaluation.provenance import in_words
from diffit_lib.models.cost import parameters
from diffit_lib.reports.diagnosis import FINISHED, ROW, Diagnosis, QuickEvaluation, diagnose, evaluate_quickly
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.training.encode import load_states
from diffit_lib.training.train import expected_rows
from diffit_lib.utils.files import WEIGHTS, read_rows, write_text
from diffit_lib.utils.logging import say
from diffit_lib.utils.plots import loss_curve, png, tile, to_image

PHOTOGRAPH = 48  # pixels a side; images at least so large are stored as JPEG

NUMBERS = (  # name, key of the samples' number, key of the real images' number, what it is
    ("Frechet distance, small classifier", "frechet", "frechet_floor", "to the training images; lower is better"),
    ("Frechet distance, Inception", "inception_frechet", "inception_floor", "to the training images; lower is better"),
    ("Class accuracy", "class_accuracy", "classifier_test_accuracy", "share seen as the class that was asked for"),
    ("Copy ratio", "copy_ratio", None, "distance to the nearest training image over that of real ones; copies near 0"),
)


def write_report(run: str | Path) -> Path | None:
    """Write `report.html` into the folder of a finished run, and return its path.

    Draws samples and measures them, which takes a minute or a few on a CPU. A run on cached latents has no images to
    compare with: it gets no page, but None.
    """
    run, start = Path(run), time.monotonic()
    pipe = load(run / WEIGHTS, precision=read_options(ExperimentConfig, run).training.precision)
    card = pipe.card
    data = load_states(card.experiment, pipe.space, card.vae)
    if isinstance(data.train, CachedLatents):
        say(f"{run}: no report.html, since {data.train.name} holds latents alone, without the images")
        return None
    quick, rows = evaluate_quickly(pipe, data), read_rows(run / "metrics.csv")
    diagnosis = diagnose(
        rows,
        quick.numbers,
        held_out=data.train is not data.test,
        training_images=len(data.train),
        planned_images=card.experiment.training.total_images,
        classes=len(card.class_names),
        psnr=card.vae.numbers.get("psnr") if card.vae else None,
    )
    write_text(run / "report.html", render(run, pipe, data, rows, quick, diagnosis))
    say(f"report: {diagnosis.word}: {diagnosis.meaning} ({time.monotonic() - start:.0f} seconds)")
    return run / "report.html"


def render(
    run: Path, pipe: Pipeline, data: Split, rows: Sequence[dict[str, Any]], quick: QuickEvaluation, diagnosis: Diagnosis
) -> str:
    """The page as HTML."""
    card, classes = pipe.card, len(pipe.card.class_names)
    millions = parameters(pipe.denoiser.network) / 1e6
    real = "held-out real images" if data.train is not data.test else "training images"
    drawn = f"Drawn, none rejected{', classes in turn' * bool(classes)}"
    copies = (
        f"Above: the {len(quick.pairs[0])} samples nearest to any training image, at 32 pixels a side. "
        "Below each: that training image. Where the two are the same picture, it is a copy."
    )
    texts = {
        "name": run.resolve().name,
        "word": diagnosis.word,
        "kind": diagnosis.word.split()[0],
        "headline": diagnosis.word.capitalize(),
        "meaning": diagnosis.meaning,
        "facts": f"{card.experiment.name}, {millions:.1f} million parameters, trained on {len(data.train):,} images of "
        f"{card.experiment.data}: {card.images_seen:,} seen in {card.minutes:.1f} minutes on {card.device}.",
    }
    return Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8")).substitute(
        {key: escape(text) for key, text in texts.items()},
        reasons=bullets(diagnosis.reasons),
        samples=figure(grid(quick.samples), drawn, "Samples"),
        reals=figure(grid(quick.reals), f"As many {real}" + ", of all classes" * bool(classes), "Real"),
        copies=figure(grid(torch.cat(quick.pairs)), copies, "Copy check"),
        numbers=numbers_table(quick.numbers) + bullets(quick.missing) + provenance_note(quick.numbers),
        curves=curves(card.experiment, rows),
        autoencoder=autoencoder(run, card),
        commands=bullets(next_commands(run, card, diagnosis), "<li><code>{}</code></li>", "<ul>"),
    )


def numbers_table(numbers: Mapping[str, Any]) -> str:
    """The numbers that were measured, each beside that of real test images."""
    lines = []
    for name, key, floor, meaning in NUMBERS:
        if key in numbers:
            cells = f"{numbers[key]:.3g}", f"{numbers[floor]:.3g}" if floor else "1"
            lines.append(f"<tr><th>{name}</th>" + "".join(f'<td class="number">{cell}</td>' for cell in cells))
            lines.append(f'<td class="soft">{meaning}</td></tr>')
    head = "<tr><th></th><th>samples</th><th>new real images</th><th></th></tr>"
    return f'<div class="scroll"><table>{head}{"".join(lines)}</table></div>' if lines else ""


def provenance_note(numbers: Mapping[str, Any]) -> str:
    """What the numbers depend on."""
    if "stamp" not in numbers:
        return ""
    values = in_words(numbers["stamp"])
    notes = "; ".join(["Images shrunk to 32 pixels a side at most", *numbers["warnings"]])
    return f'<p class="soft">{escape(notes)}.<br><code>{escape(values)}</code></p>'


def curves(experiment: ExperimentConfig, rows: Sequence[dict[str, Any]]) -> str:
    """The run's curves, over those of a good run where there are any for these data and this network."""
    expected = expected_rows(experiment)
    note = "In grey: a run known to be good."
    if not expected:
        note = "There is no curve to compare with: how low a loss can get depends on the images. Look at the slope."
    return f'{picture(png(loss_curve(rows, expected)), "image/png", "chart")}<p class="soft">{note}</p>'


def autoencoder(run: Path, card: ModelCard) -> str:
    """A section on the autoencoder, if the run trained its own."""
    pictures, vae = sorted((run / "vae" / "samples").glob("*.png")), card.vae
    if vae is None or not pictures:
        return ""
    psnr = f", PSNR {vae.numbers['psnr']:.1f} dB" if "psnr" in vae.numbers else ""
    caption = f"{vae.experiment.name}, {vae.images_seen:,} images in {vae.minutes:.1f} minutes{psnr}. "
    caption += "Rows of held-out images, each over what comes back: samples cannot be sharper than these."
    return f"<section>{figure((pictures[-1].read_bytes(), 'image/png'), caption, 'Autoencoder')}</section>"


def next_commands(run: Path, card: ModelCard, diagnosis: Diagnosis) -> list[str]:
    """Commands to go on with: more training where the diagnosis asks for it, more samples, all numbers."""
    weights, training = shlex.quote(str(run / WEIGHTS)), card.experiment.training
    planned = training.total_images
    lines = [f"diffit sample {weights} --seeds 0-63 --out pictures", f"diffit evaluate {weights}"]
    if diagnosis.word in ("cannot say yet", "still falling", "poor samples"):
        images = planned if card.images_seen < FINISHED * planned else 2 * planned
        minutes = max(1, math.ceil(card.minutes * images / max(1, card.images_seen)))
        amount = f"--max-steps {images // training.batch_size}" if training.max_steps else f"--images {images}"
        lines.insert(0, f"diffit train --run {shlex.quote(str(run))} {amount} --minutes {minutes}")
    own = run / "vae"
    if diagnosis.word == "poor autoencoder" and card.vae and (own / WEIGHTS).is_file():
        images, minutes = 2 * card.vae.experiment.training.total_images, max(1, math.ceil(2 * card.vae.minutes))
        lines[:0] = [
            f"diffit train-vae --run {shlex.quote(str(own))} --images {images} --minutes {minutes}",
            f"diffit train --data {shlex.quote(card.experiment.data)} --vae {shlex.quote(str(own / WEIGHTS))}",
        ]
    return lines


def bullets(lines: Iterable[str], item: str = "<li>{}</li>", opening: str = '<ul class="soft">') -> str:
    """Lines of text as a list; nothing if there are none."""
    items = "".join(item.format(escape(line)) for line in lines)
    return f"{opening}{items}</ul>" if items else ""


def figure(image: tuple[bytes, str], caption: str, title: str) -> str:
    """A picture under its title and over its caption."""
    content, mime = image
    return (
        f"<figure><h2>{escape(title)}</h2>{picture(content, mime, 'small' if mime == 'image/png' else '')}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def picture(content: bytes, mime: str, kind: str) -> str:
    """A picture that is part of the page."""
    return f'<img class="{kind}" alt="" src="data:{mime};base64,{base64.b64encode(content).decode()}">'


def grid(images: Tensor) -> tuple[bytes, str]:
    """uint8 (N, C, H, W) in rows of eight, as the bytes of an image file and its MIME type."""
    sheet, out = tile(images.permute(0, 2, 3, 1).numpy(), columns=ROW), io.BytesIO()
    if max(images.shape[2:]) < PHOTOGRAPH:
        return png(sheet), "image/png"
    to_image(sheet).save(out, "JPEG", quality=90)
    return out.getvalue(), "image/jpeg"
