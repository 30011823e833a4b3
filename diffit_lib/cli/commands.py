"""The verbs of the command line; each imports what it needs when it runs, so that `--help` is quick."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from diffit_lib.cli import options
from diffit_lib.cli.edit import run_edit
from diffit_lib.cli.export import run_export, run_push
from diffit_lib.config.presets import PRESETS, VAE_PRESETS


def run_demo(run: str = "runs/demo") -> None:
    """Train DiffiT on real handwritten digits, in minutes on a CPU, and show and measure what it draws.

    Args:
        run: Folder for weights, images and report.json.
    """
    from diffit_lib.cli.demo import demo, table

    print(table(demo(run)))
    print(f"  images: {run}/samples.png, {run}/denoising.png, {run}/loss.png; weights: {run}/weights.safetensors")


def run_explore(weights: str = "digits", port: int = 8866, no_browser: bool = False, export: str | None = None) -> None:
    """Explore weights in a browser: turn knobs, watch the sampler, look at attention, freeze the time token.

    Args:
        weights: Weights file, run folder, or the name of pretrained weights.
        port: Port on 127.0.0.1, which only this machine can reach.
        no_browser: Print the address and open no browser.
        export: Write one HTML file that needs no server and no Python instead, e.g. page.html.
    """
    if export:
        from diffit_lib.viz.export import export_page

        print(f"page: {export_page(export, weights)}")
        return
    from diffit_lib.viz.serve import serve

    serve(weights, port, browser=not no_browser)


def run_info(name: str | None = None) -> None:
    """Describe a preset, weights or images, and the cost of training. Without a name, list everything.

    Args:
        name: Preset, weights file, run folder, pretrained weights, or images: a folder, a zip, the name of a data set.
    """
    from diffit_lib.cli.info import are_images, describe_data, info, list_all

    if name is None:
        print(list_all({verb: options.summary(function) for verb, function in VERBS.items()}))
        return
    if not are_images(name):
        print(info(name))
    if are_images(name) or name == "digits":  # a preset and a data set that needs no download
        print(describe_data(name))


def run_train(
    preset: str | None = None,
    run: str | None = None,
    name: str | None = None,
    dry_run: bool = False,
    print_config: bool = False,
    no_report: bool = False,
    **overrides: Any,
) -> None:
    """Train a preset, or a model chosen for the images of --data, in a new folder. --run FOLDER continues a run.

    Args:
        preset: Name of a preset, or a YAML file of options; without it, give --run or --data.
        run: Folder of the run. If it holds a run, that run continues. By default a new one, runs/00003-NAME.
        name: Name of a new run; by default that of the preset or of the images.
        dry_run: Say what the training takes (parameters, memory, time), without training.
        print_config: Print every option with its value and meaning, as a file for --config, without training.
        no_report: Write no report.html at the end.
    """
    by_images = preset is None and "data" in overrides and not options.is_begun(run)
    experiment = None if by_images else options.experiment_for(PRESETS, preset, run, overrides)
    if experiment and options.previewed(experiment, dry_run, print_config):
        return
    if experiment is None and (dry_run or print_config):
        options.preview_images(dry_run, **dict(overrides))
        return
    from diffit_lib.reports.auto import train_photos
    from diffit_lib.training.train import train

    weights = train(experiment, run, name=name) if experiment else train_photos(run=run, name=name, **dict(overrides))
    report = None if no_report else options.report_of(weights.parent)
    print(f"weights: {weights}" + (f"; report: {report}" if report else ""))


def run_train_vae(
    preset: str | None = None,
    run: str | None = None,
    name: str | None = None,
    dry_run: bool = False,
    print_config: bool = False,
    **overrides: Any,
) -> None:
    """Train the autoencoder of a preset in a new folder, or continue with --run FOLDER.

    Args:
        preset: Name of an autoencoder's preset, or a YAML file of options; --run of an earlier run needs none.
        run: Folder of the run. If it holds a run, that run continues. By default a new one, runs/00003-NAME.
        name: Name of a new run; by default that of the preset.
        dry_run: Say what the training takes (parameters, memory), without training.
        print_config: Print every option with its value and meaning, as a file for --config, without training.
    """
    experiment = options.experiment_for(VAE_PRESETS, preset, run, overrides)
    if not options.previewed(experiment, dry_run, print_config):
        from diffit_lib.training.train_vae import train_vae

        print(f"weights: {train_vae(experiment, run, name=name)}")


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
        grid=options.parse_grid(grid),
        format=format,
        trajectory=trajectory,
        batch_size=batch_size,
        protocol=protocol,
        **dict(settings),
    ):
        print(f"images: {folder / PLACES[format]}; seed, class and file of each: {folder}/index.csv")


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
    from diffit_lib.evaluation.provenance import read_results, record, table

    if out is not None:
        read_results(out)  # refuse a file that cannot be appended to before drawing
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
    if numbers:
        print(table(combinations(settings), numbers))
    if numbers and out is not None:
        record(out, what, combinations(settings), numbers)


def run_encode(
    vae: str,
    data: str | None = None,
    out: str | None = None,
    resolution: str | None = None,
    crop: Literal["center", "long-edge", "adm"] | None = None,
    skip_bad: bool | None = None,
    memory_gb: float | None = None,
) -> None:
    """Encode a data set into latents once; then `train --vae VAE --data FOLDER`.

    Args:
        vae: Autoencoder's weights file, run folder, or the name of a pretrained one.
        data: Data set by name, folder or zip; by default the autoencoder's training data.
        out: Folder for the latents; by default one in the cache.
        resolution: Width and height of the images, e.g. 64x48, or 64 for both; by default the autoencoder's.
        crop: Largest box, whole image on black, or ImageNet's usual crop; by default the autoencoder's.
        skip_bad: Leave out and count images that cannot be read, instead of stopping at the first.
        memory_gb: Larger data are decoded when used, not held in memory; by default half of the memory.
    """
    size = options.parse_resolution(resolution)
    changes = {"image_size": size, "crop": crop, "skip_bad": skip_bad, "memory_gb": memory_gb}
    from diffit_lib.training.encode import encode

    folder = encode(vae, data, out, **{name: value for name, value in changes.items() if value is not None})
    total = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    print(f"latents: {folder}, {total / 1e6:,.1f} MB")


def run_pack(
    source: str,
    out: str | None = None,
    resolution: str | None = None,
    crop: Literal["center", "long-edge", "adm"] = "center",
    max_images: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Write a data set as one zip of PNG files with dataset.json; stopped and started again, it continues.

    Args:
        source: Data set by name, folder or zip.
        out: The zip to write; by default SOURCE-WxH.zip in the current folder.
        resolution: Width and height, e.g. 64x48, or 64 for both; by default each image keeps its own.
        crop: Largest box, whole image on black, or ImageNet's usual crop.
        max_images: Most images to take, evenly spread over all.
        skip_bad: Leave out and count images that cannot be read, instead of stopping at the first.
    """
    size = options.parse_resolution(resolution)
    name = Path(source).resolve().name.removesuffix(".zip") + (f"-{size[1]}x{size[0]}" if size else "")
    from diffit_lib.data.pack import pack

    packed = pack(source, out or f"{name}.zip", size, crop=crop, max_images=max_images, skip_bad=skip_bad)
    print(f"packed: {packed}, {packed.stat().st_size / 1e6:,.1f} MB")


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


# Named other than the functions that they call: jsonargparse looks up by name what takes `**settings`; dict() hides it.
VERBS: dict[str, Callable[..., None]] = {
    "demo": run_demo,
    "explore": run_explore,
    "info": run_info,
    "train": run_train,
    "train-vae": run_train_vae,
    "sample": run_sample,
    "edit": run_edit,
    "evaluate": run_evaluate,
    "encode": run_encode,
    "pack": run_pack,
    "reconstruct": run_reconstruct,
    "export": run_export,
    "push": run_push,
}
