"""The verbs that use trained weights: to draw, to edit, to measure, and for other programs."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from diffit_lib.cli import options
from diffit_lib.utils.errors import DiffitError, check


def run_sample(
    weights: str,
    out: str = "samples",
    seeds: str | int | None = None,
    classes: str | int | list[str | int] | None = None,
    per_class: int | None = None,
    guidance: float | list[float] | str | None = None,
    grid: str | None = None,
    format: Literal["png", "zip", "npz", "grid"] = "png",
    trajectory: bool = False,
    batch_size: int = 64,
    protocol: Literal["round", "adm"] = "round",
    **settings: Any,
) -> None:
    """Draw images from weights. Run it again on the same folder to continue.

    Args:
        weights: Weights file, run folder, or the name of pretrained weights.
        out: Folder for the images, their grid, index.csv and settings.json.
        seeds: One image for each seed, e.g. 0-63,100; by default 0-63.
        classes: Classes by name or number, e.g. 3 or cat,dog, in turn for the seeds; by default random.
        per_class: Images of each class. With --seeds, every class uses these seeds; otherwise each class has its own.
        guidance: Strength of classifier-free guidance, or several, e.g. 1,2,4, each in its own folder.
        grid: Columns and rows of grid.png, e.g. 8x8; with --per-class each row is a class.
        format: PNG files, one zip, the npz that public evaluators read, or the grid only.
        trajectory: Save the first images at every step, as PNG files, a strip and a GIF.
        batch_size: Images drawn at once; small batches divide better among several processes.
        protocol: How values become 8-bit; adm truncates as the published evaluators do.
    """
    from diffit_lib.sampling.sample import sample
    from diffit_lib.sampling.writer import PLACES

    for folder in sample(
        weights,
        out,
        None if seeds is None else options.parse_seeds(str(seeds)),
        classes,
        per_class=per_class,
        guidance=options.parse_guidance(guidance) if isinstance(guidance, str) else guidance,
        grid=options.parse_pair("grid", grid, "columns and rows, e.g. 8x8"),
        format=format,
        trajectory=trajectory,
        batch_size=batch_size,
        protocol=protocol,
        **dict(settings),
    ):
        print(f"images: {folder / PLACES[format]}; seed, class and file of each: {folder}/index.csv")


def run_edit(
    weights: str,
    image: str,
    mask: str | None = None,
    strength: float | None = None,
    seeds: str | int = "0-7",
    classes: str | int | list[str | int] | None = None,
    out: str = "edits",
    **settings: Any,
) -> None:
    """Redraw an image: variations of all of it, or only the white part of a mask.

    Args:
        weights: Weights file, run folder, or the name of pretrained weights.
        image: Image file; cropped and resized as the training data were.
        mask: Image file of the same size; only where it is white is the image drawn.
        strength: Share of the sampling steps that run, from 0 (the image) to 1; by default 0.5, or 1 with a mask.
        seeds: One image for each seed, e.g. 0-63,100.
        classes: Classes by name or number, e.g. 3 or cat,dog, in turn for the seeds; by default none.
        out: New folder for the images, and grid.png, in which the given image comes first.
    """
    import numpy as np

    from diffit_lib.data.preprocess import to_pixels
    from diffit_lib.sampling.pipeline import load
    from diffit_lib.sampling.sample import select
    from diffit_lib.utils.plots import tile, write_png

    folder, numbers = Path(out), options.parse_seeds(str(seeds))
    check(not folder.exists() or not any(folder.iterdir()), f"{folder} is not empty; give another folder")
    pipe, picture = load(weights), read_picture(image)
    (channels, height, width), crop = pipe.card.image_shape, pipe.card.experiment.crop
    known, hole = to_pixels(picture, (height, width), channels, crop).movedim(0, -1).numpy(), None
    if mask is not None:
        white = read_picture(mask)
        sizes = f"{white.width}x{white.height} pixels, {image} has {picture.width}x{picture.height}"
        check(white.size == picture.size, f"{mask} has {sizes}; give a mask of the image's size")
        hole = to_pixels(white, (height, width), 1, crop)[0].numpy()
    chosen = select(pipe, numbers, "none" if classes is None and pipe.card.num_classes else classes, None)
    labels = ["none" if image.label in (None, pipe.card.num_classes) else image.label for image in chosen]
    images = pipe(numbers, labels, image=known, mask=hole, strength=strength, **dict(settings))
    for seed, drawn in zip(numbers, images, strict=True):
        write_png(folder / f"{seed:06d}.png", drawn)
    shown = np.concatenate([known[None], images])
    write_png(folder / "grid.png", tile(shown, min(len(shown), 9)))
    print(f"images: {folder}; the image and all edits: {folder}/grid.png")


def read_picture(path: str) -> Any:
    """The picture in a file, a PIL image."""
    from diffit_lib.data.folders import read
    from diffit_lib.data.preprocess import flatten, to_picture

    try:
        return flatten(to_picture(read(Path(path).parent, Path(path).name)))
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken file may raise nearly anything
        raise DiffitError(f"{path} cannot be read ({error}); give an image, e.g. a PNG or JPEG file") from error


def run_evaluate(
    what: str,
    data: str | None = None,
    images: int | None = None,
    extractor: Literal["classifier", "inception", "dinov2", "dinov2-b", "clip"] | None = None,
    extractor_file: str | None = None,
    protocol: Literal["round", "adm", "dit", "diffit", "edm"] = "round",
    batch_size: int = 100,
    out: str | None = None,
    save_statistics: str | None = None,
    **settings: Any,
) -> None:
    """Measure samples of weights, or given images, against a data set, other images, or published statistics.

    Args:
        what: Weights file, run folder, or name of pretrained weights; or images: a folder, a zip, an npz of arr_0.
        data: Data set by name, folder, zip, or npz of images or statistics (mu, sigma); by default the training data.
        images: How many images to draw, equally many of each class (500), or to take of the given ones (all).
        extractor: Network that computes the features; by default the classifier if the data have classes.
        extractor_file: File of this network's published weights; by default downloaded.
        protocol: adm truncates to 8 bits as ADM does; dit, diffit and edm set all that those papers' numbers need.
        batch_size: Images drawn at once.
        out: JSON file to append the numbers to; several settings also give a table and a plot beside it.
        save_statistics: npz file for the network's statistics of the data, as other evaluators read them.
    """
    from diffit_lib.evaluation.evaluate import combinations, evaluate_each
    from diffit_lib.evaluation.provenance import read_results, record, results_table

    if out is not None:  # refuse a file that cannot be appended to before drawing
        check(Path(out).suffix == ".json", f"out is {out!r}; give a JSON file, e.g. results.json")
        read_results(out)
    numbers = evaluate_each(
        what,
        data,
        images=images,
        extractor=extractor,
        extractor_file=extractor_file,
        protocol=protocol,
        batch_size=batch_size,
        save_statistics=save_statistics,
        **dict(settings),
    )
    try:
        if numbers and out is not None:
            record(out, what, combinations(settings), numbers)
    finally:
        if numbers:
            print(results_table(combinations(settings), numbers))


def run_reconstruct(vae: str, data: str | None = None, out: str = "reconstructions", images: int = 32) -> None:
    """Show how an autoencoder reconstructs images: grids of input, latents and reconstruction.

    Args:
        vae: Weights file or run folder of an autoencoder or a latent model, or the name of pretrained ones.
        data: Data set by name, folder, zip, or folder of latents; by default the autoencoder's training data.
        out: Folder for the grids.
        images: How many images to show.
    """
    from diffit_lib.evaluation.reconstruction import reconstruct

    numbers = reconstruct(vae, data, out, images=images)
    print(f"grids: {out}/", *(f"{name}={value:.4g}" for name, value in numbers.items()))


def run_export(
    weights: str, folder: str, to: Literal["diffusers"] = "diffusers", vae: str | None = None, steps: int = 50
) -> None:
    """Write weights as a folder for another program: DiT for diffusers' DiTPipeline, DiffiT with its own pipeline.

    Args:
        weights: Weights file, run folder, or the name of pretrained weights; of a latent model with denoiser vp.
        folder: Folder to write; it must be empty or not be there.
        to: The other program.
        vae: File of a published autoencoder, by default downloaded.
        steps: Sampling steps, 64 at most, at which a DiT draws the same picture there; a DiffiT does at any number.
    """
    from diffit_lib.checkpoints.export import export

    print(f"{to}: {export(weights, folder, vae, steps)}")


def run_push(
    weights: str, repo: str, dry_run: str | None = None, private: bool = False, numbers: str | None = None
) -> None:
    """Upload weights to the Hugging Face hub, with a model card, samples, curves and a small Gradio app.

    Args:
        weights: Weights file, run folder, or the name of pretrained weights.
        repo: Repository, USER/NAME; made if it is not there.
        dry_run: Write the files into this new folder, and upload nothing.
        private: Make a repository that only you see.
        numbers: JSON file of `diffit evaluate --out`, for the card; by default the numbers in the weights file.
    """
    from diffit_lib.evaluation.provenance import read_results
    from diffit_lib.sampling.pipeline import load
    from diffit_lib.utils.tensors import digest

    pipe = load(weights)
    if numbers is not None:
        checksum = digest(pipe.denoiser.state_dict())
        found = [entry for entry in read_results(numbers) if entry["stamp"].get("weights_hash") == checksum]
        check(found != [], f"{numbers} has no numbers of {weights} ({checksum}); measure by --out {numbers}")
        pipe.card = replace(pipe.card, numbers=found[-1])
    print(f"{repo}: {pipe.push_to_hub(repo, private=private, dry_run=dry_run)}")
