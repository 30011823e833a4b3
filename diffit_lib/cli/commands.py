"""The verbs of the command line; each imports what it needs when it runs, so that `--help` is quick.

Those that use trained weights are in `using.py`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from diffit_lib.cli import options
from diffit_lib.cli.using import run_edit, run_evaluate, run_export, run_push, run_reconstruct, run_sample
from diffit_lib.config.presets import PRESETS, VAE_PRESETS


def run_demo(run: str = "runs/demo") -> None:
    """Train DiffiT on real handwritten digits, one or two minutes on a CPU, and show and measure its samples.

    Args:
        run: Folder for weights, images and report.json.
    """
    from diffit_lib.cli.demo import demo, report_text

    print(report_text(demo(run)))
    print(f"  images: {run}/samples.png, {run}/denoising.png, {run}/loss.png; weights: {run}/weights.safetensors")


def run_explore(weights: str = "digits", port: int = 8866, no_browser: bool = False, export: str | None = None) -> None:
    """Explore weights in a browser: change settings, watch the sampler, see attention, freeze the time token.

    Args:
        weights: Weights file, run folder, or the name of pretrained weights, by default digits.
        port: Port on 127.0.0.1, which only this machine can reach.
        no_browser: Print the address and open no browser.
        export: Write one HTML file that needs no server and no Python instead, e.g. page.html.
    """
    from diffit_lib.viz.export import export_page, serve

    if export:
        print(f"page: {export_page(export, weights)}")
    else:
        serve(weights, port, browser=not no_browser)


def run_info(name: str | None = None) -> None:
    """Describe a preset, weights or images, and the cost of training. Without a name, list everything.

    Args:
        name: Preset, weights file, run folder, pretrained weights, or images: a folder, a zip, the name of a data set.
    """
    from diffit_lib.cli.info import are_images, info, list_all

    if name is None:
        print(list_all({verb: options.summary(function) for verb, function in VERBS.items()}))
        return
    if not are_images(name):
        print(info(name))
    if are_images(name) or name == "digits":  # a preset and a data set that needs no download
        from diffit_lib.cli.estimate import describe_data

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
    if options.previewed(experiment, dry_run, print_config, overrides):
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
        from diffit_lib.training.train import train

        print(f"weights: {train(experiment, run, name=name)}")


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
    name = Path(os.path.realpath(source)).name.removesuffix(".zip") + (f"-{size[1]}x{size[0]}" if size else "")
    from diffit_lib.data.pack import pack

    packed = pack(source, out or f"{name}.zip", size, crop=crop, max_images=max_images, skip_bad=skip_bad)
    print(f"packed: {packed}, {packed.stat().st_size / 1e6:,.1f} MB")


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
