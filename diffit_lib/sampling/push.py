"""Weights as a repository on the Hugging Face hub: their file, a model card, samples, curves and a Gradio app."""

import re
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from diffit_lib.checkpoints.hub import pretrained, talking_to_hub
from diffit_lib.checkpoints.weights import save_weights
from diffit_lib.models.latent_space import LatentSpace
from diffit_lib.sampling.grids import draw_grid
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.utils.errors import check, printable
from diffit_lib.utils.files import WEIGHTS, read_rows, write_text
from diffit_lib.utils.logging import say
from diffit_lib.utils.plots import loss_curve, write_figure, write_png

LICENCES = ("mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")  # the hub's


def push(pipe: Pipeline, repository: str, *, private: bool = False, dry_run: str | Path | None = None) -> str:
    """Upload a pipeline's weights to `repository`, USER/NAME, with all that `write_folder` writes; return its address.

    The repository is made if it is not there, `private` or not. With `dry_run`, an empty folder or one to make, the
    files are written there, the same bytes each time, and nothing is uploaded.
    """
    form = re.fullmatch(r"[\w.-]+/[\w.-]+", repository)
    check(form is not None, f"repository is {repository!r}; give USER/NAME, as on the Hugging Face hub")
    if dry_run is not None:
        folder = Path(dry_run)
        check(not folder.exists() or not any(folder.iterdir()), f"{folder} is not empty; give another folder")
        write_folder(pipe, repository, folder)
        return str(folder)
    remedy = "log in by `hf auth login`, or write a folder by --dry-run FOLDER"
    with talking_to_hub(repository, remedy, "is not uploaded"), TemporaryDirectory() as temporary:
        from huggingface_hub import HfApi

        address = HfApi().create_repo(repository, private=private, exist_ok=True)
        write_folder(pipe, repository, Path(temporary))
        HfApi().upload_folder(repo_id=repository, folder_path=temporary, commit_message=f"Upload {repository}")
        return str(address)


def write_folder(pipe: Pipeline, repository: str, folder: Path) -> None:
    """Write weights.safetensors (float16 if that loses nothing), README.md, samples.png, app.py, and a run's curves."""
    say(f"{repository}: drawing 100 images for its card")
    write_png(folder / "samples.png", draw_grid(pipe))
    modules = [pipe.denoiser, *([pipe.space.network] if isinstance(pipe.space, LatentSpace) else [])]
    tensors = (tensor for module in modules for tensor in module.state_dict().values())
    dtype = torch.float16 if all(torch.equal(t, t.half().float()) for t in tensors) else torch.float32
    save_weights(folder / WEIGHTS, pipe.card, pipe.denoiser, space=pipe.space, dtype=dtype)
    path = pretrained().get(pipe.source, Path(pipe.source))
    places = [path / "metrics.csv", path.with_suffix(".csv"), path.with_name("metrics.csv")] if pipe.source else []
    rows = next((rows for place in places if "loss" in {*next(iter(rows := read_rows(place)), ())}), [])
    if rows:
        write_figure(folder / "loss.png", loss_curve(rows))
    write_text(folder / "README.md", model_card(pipe, repository, curves=bool(rows)))
    write_text(folder / "app.py", template("app", repository=repository))


def template(file: str, **values: Any) -> str:
    """One of the text files beside this one, filled in. In app.txt that is code: give it nothing of a card."""
    return Template(Path(__file__).with_name(f"{file}.txt").read_text(encoding="utf-8")).substitute(values)


def model_card(pipe: Pipeline, repository: str, *, curves: bool) -> str:
    """README.md: the head that the hub reads, a picture, how to load, training, numbers, citation."""
    card = pipe.card
    licence, dataset = (card.licence.split() or ["unknown"])[0].lower(), card.experiment.data.removeprefix("hf:")
    head: dict[str, Any] = {"library_name": "diffit", "license": licence if licence in LICENCES else "other"}
    head |= {} if licence in LICENCES else {"license_name": printable(card.licence)}
    head |= {"pipeline_tag": "unconditional-image-generation", "tags": ["diffit", "diffusion", "image-generation"]}
    head |= {"datasets": [dataset.partition(":")[0]]} if dataset != card.experiment.data else {}
    if card.numbers:
        metrics = [{"type": k, "value": round(v, 6)} for k, v in card.numbers.items() if isinstance(v, float)]
        trained = (card.trained_on or "unknown").partition("/")[0]
        result = {"task": {"type": head["pipeline_tag"]}, "dataset": {"type": trained, "name": trained}}
        head["model-index"] = [{"name": repository.rpartition("/")[2], "results": [result | {"metrics": metrics}]}]
    kind = "dit" if getattr(card.experiment.network, "block", "") == "dit" else "diffit"
    papers = Path(__file__).with_name("papers.txt").read_text(encoding="utf-8").strip().split("\n\n")
    text = template(
        "model_card",
        repository=repository,
        name=printable(card.experiment.name),
        summary=pipe.summary,
        images=f"{card.images_seen:,}",
        minutes=f"{card.minutes:.1f}",
        device=printable(card.device or "an unknown device"),
        licence=printable(card.licence),
        curves="\n![The training run's curves](loss.png)\n" if curves else "",
        numbers=numbers_table(card.numbers) or f"None. `diffit evaluate {repository}` measures, if you have the data.",
        bibtex=next(paper for paper in papers if paper.startswith(f"@article{{{kind}2")),
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n{text}"


def numbers_table(numbers: dict[str, Any]) -> str:
    """Measured numbers as Markdown, a row each, with what they depend on; "" for none."""
    rows = [f"| {key.replace('_', ' ')} | {value:.3f} |" for key, value in numbers.items() if isinstance(value, float)]
    stamp = numbers.get("stamp") or {}
    words = [f"{key}={value}" for key, value in stamp.items() if value is not None and value is not False]
    notes = [f"Note: {warning}." for warning in numbers.get("warnings", ())]
    lines = ["| number | value |", "|---|---|", *rows, *(["", f"Stamp: {' '.join(words)}."] if words else []), *notes]
    return "\n".join(map(printable, lines)) if rows else ""
