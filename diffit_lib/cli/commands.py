"""`diffit train`."""

from pathlib import Path
from typing import Any, Literal

from diffit_lib.cli.options import asked_for, parse_grid, parse_numbers, parse_resolution, parse_seeds
from diffit_lib.config.experiment import ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.presets import preset as named
from diffit_lib.config.presets import vae_preset
from diffit_lib.training.run_dir import OPTIONS
from diffit_lib.utils.errors import check


def run_train(
    preset: str | None = None, run: str | None = None, name: str | None = None, dry_run: bool = False, **overrides: Any
) -> None:
    """Train a preset, or what suits the pictures of --data, in a new folder, runs/00003-NAME; --run FOLDER goes on.

    Args:
        preset: its name; without one, and with --data, the pictures decide
        run: the very folder
        name: of a new run, that of the preset or of the pictures unless given
        dry_run: say what it takes
    """
    begun = run is not None and (Path(run) / OPTIONS).is_file()
    pictures = preset is None and "data" in overrides and not begun
    experiment = None if pictures else asked_for(ExperimentConfig, named, preset, run, overrides)
    if dry_run:
        from diffit_lib.cli.info import describe_data
        from diffit_lib.reports.cost import dry_run as describe_cost

        if experiment is None:
            others = ", ".join(sorted(overrides.keys() - {"data"}))
            check(not others, f"--dry-run tells what the pictures alone decide, not {others}; name a preset too")
        print(describe_cost(experiment) if experiment else describe_data(overrides["data"]))
        return
    from diffit_lib.reports.auto import train_photos
    from diffit_lib.reports.html_report import write_report
    from diffit_lib.training.train import train
    from diffit_lib.utils.distributed import rank_info

    weights = train(experiment, run, name=name) if experiment else train_photos(run=run, name=name, **dict(overrides))
    page = write_report(weights.parent) if rank_info().rank == 0 else None
    print(f"weights: {weights}" + (f"; report: {page}" if page else ""))


def run_demo(run: str = "runs/demo") -> None:
    """Train DiffiT on real handwritten digits, in minutes on a CPU, and show what it draws.

    Args:
        run: folder for weights, pictures and report.json
    """
    from diffit_lib.cli.demo import demo, table

    print(table(demo(run)))
    print(f"  pictures: {run}/samples.png, {run}/denoising.png, {run}/loss.png; weights: {run}/weights.safetensors")


def run_encode(
    vae: str,
    data: str | None = None,
    out: str | None = None,
    resolution: str | None = None,
    crop: Literal["center", "long-edge", "adm"] | None = None,
    skip_bad: bool | None = None,
    memory_gb: float | None = None,
) -> None:
    """Write the latents of a data set once, for training: `train --vae VAE --data FOLDER` reads them.

    Args:
        vae: autoencoder's weights file, or the name of a ready-made one
        data: data set by name, or the path of a folder or zip; the autoencoder's own unless given
        out: folder for the latents; in the cache folder unless given
        resolution: width and height of the images, e.g. 64x48, or 64 for both; the autoencoder's own unless given
        crop: largest box; whole image on black; ImageNet's usual one; the autoencoder's own unless given
        skip_bad: leave out and count images that cannot be read, instead of stopping at the first
        memory_gb: larger data are decoded when used, not held in memory; half of the memory unless given
    """
    changes = {
        "image_size": parse_resolution(resolution),
        "crop": crop,
        "skip_bad": skip_bad,
        "memory_gb": memory_gb,
    }
    from diffit_lib.training.encode import encode

    folder = encode(vae, data, out, **{name: value for name, value in changes.items() if value is not None})
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    print(f"latents: {folder}, {size / 1e6:,.1f} MB")


def run_evaluate(
    what: str,
    data: str | None = None,
    images: int | None = None,
    extractor: Literal["classifier", "inception"] | None = None,
    inception: str | None = None,
    protocol: Literal["round", "adm"] = "round",
    batch_size: int = 100,
    out: str | None = None,
    save_statistics: str | None = None,
    **settings: Any,
) -> None:
    """Measure what weights draw, or given images, against their data, others, or published statistics.

    Args:
        what: weights file, or the name of ready-made weights; or images: a folder, a zip, an npz of arr_0
        data: data set by name, path of a folder or zip, or npz of images or of statistics (mu, sigma); the weights' own
            unless given
        images: how many to draw, as many of each class (500), or how many of the given ones to take (all)
        extractor: what sees the images; the classifier where the data have classes, unless given
        inception: file of Inception's weights; downloaded unless given
        protocol: adm truncates to whole numbers, as the published evaluators do
        batch_size: images drawn at once
        out: JSON file to which the numbers are appended; of several settings also a table and a plot beside it
        save_statistics: npz file for Inception's statistics of the data, as others read them
    """
    from diffit_lib.evaluation.evaluate import combinations, evaluate_each
    from diffit_lib.evaluation.provenance import read_results, record, table

    if out is not None:
        read_results(out)  # what cannot be appended to is told before anything is drawn
    numbers = evaluate_each(
        what,
        data,
        images=images,
        extractor=extractor,
        inception=inception,
        protocol=protocol,
        batch_size=batch_size,
        save_statistics=save_statistics,
        **dict(settings),
    )
    each = combinations(settings)
    if numbers:
        print(table(each, numbers))
    if numbers and out is not None:
        record(out, what, each, numbers)


def run_info(name: str) -> None:
    """Say what a preset or a weights file is, or what pictures are and what training on them takes.

    Args:
        name: preset, weights file, the name of ready-made weights, or pictures: a folder, a zip, a data set's name
    """
    from diffit_lib.cli.info import are_pictures, describe_data, info

    told = [] if are_pictures(name) else [info(name)]
    if not told or name == "digits":  # a preset and data that need no download
        told.append(describe_data(name))
    print("\n".join(told))


def run_pack(
    source: str,
    out: str | None = None,
    resolution: str | None = None,
    crop: Literal["center", "long-edge", "adm"] = "center",
    max_images: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Write a data set as one zip of PNG files with dataset.json; stopped and started again, go on.

    Args:
        source: data set by name, or the path of a folder or zip
        out: the zip; SOURCE-WxH.zip here unless given
        resolution: width and height, e.g. 64x48, or 64 for both; every image's own unless given
        crop: largest box; whole image on black; ImageNet's usual one
        max_images: most images to take, evenly spread over all
        skip_bad: leave out and count images that cannot be read, instead of stopping at the first
    """
    size = parse_resolution(resolution)
    suffix = f"-{size[1]}x{size[0]}" if size else ""
    target = out or f"{Path(source).resolve().name.removesuffix('.zip')}{suffix}.zip"
    from diffit_lib.data.pack import pack

    path = pack(source, target, size, crop=crop, max_images=max_images, skip_bad=skip_bad)
    print(f"packed: {path}, {path.stat().st_size / 1e6:,.1f} MB")


def run_reconstruct(vae: str, data: str | None = None, out: str = "reconstructions", images: int = 32) -> None:
    """Show what an autoencoder makes of pictures: grids of input, latents and reconstructions.

    Args:
        vae: autoencoder's weights file or a latent model's, or the name of ready-made ones
        data: data set by name, the path of a folder or zip, or of latents; the autoencoder's own unless given
        out: folder for the grids
        images: how many to show
    """
    from diffit_lib.evaluation.reconstruction import reconstruct

    numbers = reconstruct(vae, data, out, images=images)
    print(f"grids: {out}/", *(f"{name}={value:.4g}" for name, value in numbers.items()))


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
    """Draw images from weights; started again on the same folder, go on where it stopped.

    Args:
        weights: weights file, or the name of ready-made weights
        out: folder for the images, their grid, index.csv and settings.json
        seeds: one image each, e.g. 0-63,100; 0-63 unless given
        classes: by name or number, e.g. 3 or cat,dog; the seeds get several in turn; drawn from the seed unless given
        per_class: images of each class, the seeds used anew for each; without --seeds all have noise of their own
        guidance: strength of classifier-free guidance, or several, e.g. 1,2,4, each in a folder of its own
        grid: columns and rows of grid.png, e.g. 8x8; with --per-class each row is a class
        format: PNG files, one zip, the npz that public evaluators read, or the grid alone
        trajectory: show how the first images come out of noise, as a PNG for each step, a strip and a GIF
        batch_size: images drawn at once; small ones divide better among several processes
        protocol: adm truncates to whole numbers, as the published evaluators do
    """
    numbers = None if seeds is None else parse_seeds(str(seeds))
    scales = parse_numbers("guidance", guidance) if isinstance(guidance, str) else guidance
    shape = None if grid is None else parse_grid(grid)
    from diffit_lib.sampling.sample import sample
    from diffit_lib.sampling.writer import PLACES

    folders = sample(
        weights,
        out,
        numbers,
        classes,
        per_class=per_class,
        guidance=scales,
        grid=shape,
        format=format,
        trajectory=trajectory,
        batch_size=batch_size,
        protocol=protocol,
        **dict(settings),
    )
    for folder in folders:
        print(f"images: {folder / PLACES[format]}; which is which: {folder}/index.csv")


def run_train_vae(
    preset: str | None = None, run: str | None = None, name: str | None = None, dry_run: bool = False, **overrides: Any
) -> None:
    """Train an autoencoder's preset in a new folder, runs/00003-NAME; --run FOLDER goes on where that one stopped.

    Args:
        preset: its name
        run: the very folder
        name: of a new run, the preset's unless given
        dry_run: say what it takes
    """
    experiment = asked_for(VAEExperimentConfig, vae_preset, preset, run, overrides)
    if dry_run:
        from diffit_lib.reports.cost import dry_run as describe_cost

        print(describe_cost(experiment))
        return
    from diffit_lib.training.train_vae import train_vae

    print(f"weights: {train_vae(experiment, run, name=name)}")
