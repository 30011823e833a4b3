"""`report.html`: what a run has become, on one page that needs nothing but itself."""

import base64
import io
import math
import shlex
import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from diffit_lib.checkpoints.weights import ModelCard
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.data.datasets import Split
from diffit_lib.data.latent_cache import CachedLatents
from diffit_lib.models.cost import parameters
from diffit_lib.reports.diagnosis import ROW, Diagnosis, QuickEvaluation, diagnose, evaluate_quickly
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.training.encode import load_states
from diffit_lib.training.logs import read_rows
from diffit_lib.training.run_dir import WEIGHTS, read_options
from diffit_lib.training.snapshot import expected_rows
from diffit_lib.utils.files import write_text
from diffit_lib.utils.logging import say
from diffit_lib.utils.plots import enlargement, loss_curve, tile, to_image

PHOTOGRAPH = 48  # pixels, from which on a picture is stored as JPEG

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6475; --paper: #fbfbf9; --card: #fff; --line: #dfe2e8;
  --mark: #2f6fb2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #9aa3b2; --paper: #15181e; --card: #1e222a;
  --line: #333a46; --mark: #7fb2e8; } img.chart { filter: invert(.88) hue-rotate(180deg); } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.15rem; margin: 0 0 .6rem } p { margin: .4rem 0 }
.soft, figcaption { color: var(--soft); font-size: .9rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.3rem;
  margin-top: 1.2rem; }
.verdict { border-left: 6px solid var(--mark) } .verdict h2 { font-size: 1.4rem; color: var(--mark) }
.copying, .overfitting { --mark: #d05a4e } .still { --mark: #c98a1b } .done { --mark: #3f9a63 }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.2rem }
figure { margin: 0 } figcaption { margin-top: .4rem }
img { width: 100%; height: auto; display: block; border-radius: 4px }
img.small { image-rendering: pixelated }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .35rem .8rem .35rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; } th { font-weight: 600; white-space: nowrap }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap } .scroll { overflow-x: auto }
code { font: .85rem/1.4 ui-monospace, monospace; overflow-wrap: anywhere } ul { margin: .4rem 0; padding-left: 1.2rem }
"""

NUMBERS = (  # name, key of the samples', key of the real images', what it is
    ("Frechet distance, small classifier", "frechet", "frechet_floor", "to the training images; lower is better"),
    ("Frechet distance, Inception", "inception_frechet", "inception_floor", "to the training images; lower is better"),
    ("Class accuracy", "class_accuracy", "classifier_test_accuracy", "share seen as the class that was asked for"),
    ("Copy ratio", "copy_ratio", None, "distance to the nearest training image over that of real ones; copies near 0"),
)


def write_page(run: str | Path, data: Split | None = None) -> Path | None:
    """Write `report.html` into a finished run's folder, from what lies there and some samples, and return its path.

    Takes a minute or a few on a CPU, and says what it does. `data` is what the run was trained on, loaded anew unless
    given; of a run on latents alone there are no images to compare with, which is said, and there is no page.
    """
    run, begun = Path(run), time.monotonic()
    pipe = load(run / WEIGHTS, precision=read_options(ExperimentConfig, run).training.precision)
    data = data or load_states(pipe.card.experiment, pipe.space, pipe.card.vae)
    if isinstance(data.train, CachedLatents):
        say(f"{run}: no report.html, since {data.train.name} is latents alone, without the images")
        return None
    found, rows = evaluate_quickly(pipe, data), read_rows(run / "metrics.csv")
    held_out = data.train is not data.test
    copies = found.numbers.get("copy_ratio")
    verdict = diagnose(rows, copies, held_out=held_out, training_images=len(data.train))
    write_text(run / "report.html", page(run, pipe, data, rows, found, verdict))
    say(f"report: {verdict.word}: {verdict.says} ({time.monotonic() - begun:.0f} seconds)")
    return run / "report.html"


def page(
    run: Path, pipe: Pipeline, data: Split, rows: Sequence[dict[str, Any]], found: QuickEvaluation, verdict: Diagnosis
) -> str:
    """The whole page."""
    name, card = escape(run.resolve().name), pipe.card
    count = parameters(pipe.denoiser.network)
    facts = (
        f"{card.experiment.name}, {count / 1e6:.1f} million parameters, trained on {len(data.train):,} images of "
        f"{card.experiment.data}: {card.images_seen:,} seen in {card.minutes:.1f} minutes on {card.device}."
    )
    real = "held-out real images" if data.train is not data.test else "training images"
    classes = len(card.class_names)
    sections = [
        section(
            f"<h2>{escape(verdict.word.capitalize())}</h2><p>{escape(verdict.says)}</p>{bullets(verdict.reasons)}",
            f"verdict {verdict.word.split()[0]}",
        ),
        section(
            '<div class="two">'
            + figure(grid(found.samples), f"Drawn, none rejected{', classes in turn' * bool(classes)}", "Samples")
            + figure(grid(found.reals), f"As many {real}, of all classes" if classes else f"As many {real}", "Real")
            + "</div>"
        ),
        section(
            figure(
                grid(torch.cat(found.pairs)),
                f"Above: the {len(found.pairs[0])} samples nearest to any training image, at 32 pixels a side. "
                "Below each: that training image. Where the two are the same picture, it is a copy.",
                "Copy check",
            )
        ),
        section("<h2>Numbers</h2>" + table(found) + bullets(found.missing) + stamp(found)),
        section("<h2>Curves</h2>" + curves(pipe, rows)),
        *autoencoder(run, pipe),
        section("<h2>Go on</h2>" + commands(run, card)),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: {escape(verdict.word)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f'<h1>{name}</h1><p class="soft">{escape(facts)}</p>{"".join(sections)}</body></html>\n'
    )


def table(found: QuickEvaluation) -> str:
    """The numbers that there are, each beside what real test images get."""
    lines = []
    for name, key, floor, meaning in NUMBERS:
        if key in found.numbers:
            real = f"{found.numbers[floor]:.3g}" if floor else "1"
            lines.append(
                f'<tr><th>{name}</th><td class="number">{found.numbers[key]:.3g}</td><td class="number">{real}</td>'
                f'<td class="soft">{meaning}</td></tr>'
            )
    head = "<tr><th></th><th>samples</th><th>new real images</th><th></th></tr>"
    return f'<div class="scroll"><table>{head}{"".join(lines)}</table></div>' if lines else ""


def stamp(found: QuickEvaluation) -> str:
    """What the numbers depend on."""
    if "stamp" not in found.numbers:
        return ""
    values = " ".join(f"{key}={value}" for key, value in found.numbers["stamp"].items() if value not in (None, False))
    said = escape("; ".join(["Images shrunk to 32 pixels a side at most", *found.numbers["warnings"]]))
    return f'<p class="soft">{said}.<br><code>{escape(values)}</code></p>'


def curves(pipe: Pipeline, rows: Sequence[dict[str, Any]]) -> str:
    """The run's curves over the expected ones, if there are any for these data and this network."""
    expected = expected_rows(pipe.card.experiment)
    told = "In grey: a run known to be good."
    if not expected:
        told = "No expected curves lie behind, for how low a loss can get depends on the images: look at the slope."
    return f"{picture(chart(loss_curve(rows, expected)), 'image/png', 'chart')}<p class='soft'>{told}</p>"


def autoencoder(run: Path, pipe: Pipeline) -> list[str]:
    """A section on the autoencoder, where the run trained its own."""
    pictures, vae = sorted((run / "vae" / "samples").glob("*.png")), pipe.card.vae
    if vae is None or not pictures:
        return []
    psnr = f", PSNR {vae.numbers['psnr']:.1f} dB" if "psnr" in vae.numbers else ""
    told = f"{vae.experiment.name}, {vae.images_seen:,} images in {vae.minutes:.1f} minutes{psnr}. Rows of held-out "
    told += "images, each over what comes back: samples cannot be sharper than these."
    return [section(figure((pictures[-1].read_bytes(), "image/png"), told, "Autoencoder"))]


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="soft">{items}</ul>' if items else ""


def commands(run: Path, card: ModelCard) -> str:
    """What goes on from here: twice as much training, more samples, all numbers."""
    folder, weights = shlex.quote(str(run)), shlex.quote(str(run / WEIGHTS))
    minutes, images = math.ceil(2 * card.minutes), 2 * card.experiment.training.total_images
    lines = (
        f"diffit train --run {folder} --images {images} --minutes {minutes}",
        f"diffit sample {weights} --seeds 0-63 --out pictures",
        f"diffit evaluate {weights}",
    )
    return "<ul>" + "".join(f"<li><code>{escape(line)}</code></li>" for line in lines) + "</ul>"


def section(body: str, kind: str = "") -> str:
    """A card of the page."""
    return f'<section class="{kind}">{body}</section>'


def figure(image: tuple[bytes, str], caption: str, title: str) -> str:
    """A picture under its title, over its caption."""
    kind = "small" if image[1] == "image/png" else ""
    return (
        f"<figure><h2>{escape(title)}</h2>{picture(image[0], image[1], kind)}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def picture(content: bytes, mime: str, kind: str) -> str:
    """A picture within the page."""
    return f'<img class="{kind}" alt="" src="data:{mime};base64,{base64.b64encode(content).decode()}">'


def grid(images: Tensor) -> tuple[bytes, str]:
    """uint8 (N, C, H, W) in rows of eight, as a file's bytes and their kind."""
    pixels = images.permute(0, 2, 3, 1).numpy()
    photographs = max(pixels.shape[1:3]) >= PHOTOGRAPH
    sheet, out = to_image(tile(pixels, columns=ROW, scale=enlargement(pixels))), io.BytesIO()
    if photographs:
        sheet.save(out, "JPEG", quality=90)
    else:
        sheet.save(out, "PNG", optimize=True)
    return out.getvalue(), "image/jpeg" if photographs else "image/png"


def chart(figure: Figure) -> bytes:
    """A figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
