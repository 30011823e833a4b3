"""`diffit VERB ...`: the command line. torch is imported only once a verb runs."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Literal, NoReturn, get_args, get_origin

from jsonargparse import SUPPRESS, ArgumentParser

from diffit_lib.config import Sampling
from diffit_lib.errors import DiffitError
from diffit_lib.presets import preset
from diffit_lib.presets_vae import vae_preset
from diffit_lib.recipe import AnyRecipe, Recipe, VAERecipe


def run_demo(run: str = "runs/demo") -> None:
    """Train DiffiT on real handwritten digits, in minutes on a CPU, and show what it draws.

    Args:
        run: folder for weights, pictures and report.json
    """
    from diffit_lib.tasks.demo import demo, table

    print(table(demo(run)))
    print(f"  pictures: {run}/samples.png, {run}/denoising.png, {run}/loss.png; weights: {run}/weights.safetensors")


def run_train(name: str, run: str | None = None, **overrides: Any) -> None:
    """Train a preset; started again on the same folder, go on where it stopped.

    Args:
        name: preset
        run: run folder, runs/NAME unless given
    """
    recipe = preset(name).override(**overrides)
    from diffit_lib.tasks.train import train

    print(f"weights: {train(recipe, run or f'runs/{name}')}")


def run_train_vae(name: str, run: str | None = None, **overrides: Any) -> None:
    """Train an autoencoder's preset; started again on the same folder, go on where it stopped.

    Args:
        name: preset
        run: run folder, runs/NAME unless given
    """
    recipe = vae_preset(name).override(**overrides)
    from diffit_lib.tasks.train_vae import train_vae

    print(f"weights: {train_vae(recipe, run or f'runs/{name}')}")


def run_sample(
    weights: str,
    out: str = "samples",
    seeds: str = "0-63",
    labels: str | None = None,
    **settings: Any,
) -> None:
    """Draw images from weights.

    Args:
        weights: weights file, or the name of ready-made weights
        out: folder for the PNG files and their grid
        seeds: one image each, e.g. 0-63,100
        labels: classes by number or name: 3 for all images, or one per seed, e.g. 0,1,2
    """
    numbers = parse_seeds(seeds)
    chosen = labels.split(",") if labels and "," in labels else labels
    from diffit_lib.tasks.sample import sample

    sample(weights, out, numbers, chosen, **dict(settings))
    print(f"{len(numbers)} images and grid.png: {out}/")


def run_evaluate(
    weights: str,
    data: str | None = None,
    images: int = 500,
    extractor: Literal["classifier", "inception"] | None = None,
    inception: str | None = None,
    protocol: Literal["round", "adm"] = "round",
    **settings: Any,
) -> None:
    """Draw images from weights and measure them against the data they were trained on, or against others.

    Args:
        weights: weights file, or the name of ready-made weights
        data: data set by name, or the path of a folder or zip; the weights' own unless given
        images: how many to draw, as many of each class
        extractor: what sees the images; the classifier where the data have classes, unless given
        inception: file of Inception's weights; downloaded unless given
        protocol: adm truncates to whole numbers, as the published evaluators do
    """
    import json

    from diffit_lib.tasks.evaluate import evaluate

    numbers = evaluate(
        weights, data, images=images, extractor=extractor, inception=inception, protocol=protocol, **dict(settings)
    )
    print(json.dumps(numbers, indent=2))


def run_encode(vae: str, data: str | None = None, out: str | None = None) -> None:
    """Write the latents of a data set once, for training: `train --vae VAE --data FOLDER` reads them.

    Args:
        vae: autoencoder's weights file, or the name of a ready-made one
        data: data set by name, or the path of a folder or zip; the autoencoder's own unless given
        out: folder for the latents; in the cache folder unless given
    """
    from diffit_lib.tasks.encode import encode

    folder = encode(vae, data, out)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    print(f"latents: {folder}, {size / 1e6:,.1f} MB")


def run_info(name: str) -> None:
    """Say what a preset or a weights file is.

    Args:
        name: preset, weights file, or the name of ready-made weights
    """
    from diffit_lib.tasks.info import info

    print(info(name))


# jsonargparse imports whatever takes `**settings` by that name, to ask for its options: hence `**dict(settings)` above.
# Called otherwise than the package's own `train`: it looks a function's name up there, which would import it too.
VERBS: dict[str, Callable[..., None]] = {
    "demo": run_demo,
    "info": run_info,
    "train": run_train,
    "train-vae": run_train_vae,
    "sample": run_sample,
    "evaluate": run_evaluate,
    "encode": run_encode,
}
RECIPES: dict[Callable[..., None], type[AnyRecipe]] = {run_train: Recipe, run_train_vae: VAERecipe}


class Parser(ArgumentParser):
    """Mistakes become the user's one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line, whatever the library says."""
        raise DiffitError(f"{' '.join(message.split())}; `{self.prog.replace(' [options]', '')} --help` tells more")


def parser() -> Parser:
    """The whole command line; who trains also takes every field of a recipe, and who draws those of the sampling."""
    top = Parser(prog="diffit", description="DiffiT: Diffusion Vision Transformers for image generation.")
    verbs = top.add_subcommands(dest="verb", metavar="VERB")
    for name, verb in VERBS.items():
        summary = (verb.__doc__ or "").splitlines()[0]
        sub = Parser(description=summary)
        sub.add_function_arguments(verb, as_positional=True)
        if verb in RECIPES:
            add_recipe_fields(sub, RECIPES[verb])
        if verb in (run_sample, run_evaluate):
            add_fields(sub, "sampling (the weights' own unless given)", [Sampling], set())
        verbs.add_subcommand(name, sub, help=summary)
    return top


def add_recipe_fields(sub: Parser, recipe: type[AnyRecipe]) -> None:
    """One option for each field of the recipe, absent unless given."""
    sub.add_argument("--data", type=str, default=SUPPRESS, help="data set by name, or the path of a folder or zip")
    taken = {"name", "data", *recipe.PARTS}
    for title, kinds in {"images": (recipe,), **recipe.PARTS}.items():
        group = add_fields(sub, f"{title} (the preset's own unless given)", kinds, taken)
        if len(kinds) > 1:
            names = tuple(kind.kind for kind in kinds)
            group.add_argument(f"--{title}", type=Literal[names], default=SUPPRESS, help="kind")


def add_fields(sub: Parser, title: str, kinds: Sequence[Any], taken: set[str]) -> Any:
    """A group of options, one for each field of these dataclasses that is not taken yet, absent unless given."""
    group = sub.add_argument_group(title)
    for field in (field for kind in kinds for field in fields(kind) if field.name not in taken):
        taken.add(field.name)  # kinds of one part share some fields
        switch: dict[str, Any] = {"nargs": "?", "const": True} if field.type is bool else {}
        value = field.type
        if get_origin(field.type) is tuple:
            value = booleans if get_args(field.type)[0] is bool else integers
        group.add_argument(f"--{field.name}", type=value, default=SUPPRESS, **switch)
    return group


def integers(text: str | tuple[int, ...]) -> tuple[int, ...]:
    """The numbers in "1,2,2" or "[1,2,2]"."""
    if isinstance(text, tuple):  # jsonargparse shows its own results to the type again
        return text
    return tuple(int(part) for part in text.strip("[]() ").split(",") if part)


def booleans(text: str | tuple[bool, ...]) -> tuple[bool, ...]:
    """The choices in "true,true,false"."""
    if isinstance(text, tuple):
        return text
    words = [part.strip().lower() for part in text.strip("[]() ").split(",") if part]
    if wrong := set(words) - {"true", "false"}:
        raise ValueError(f"{min(wrong)!r} is neither true nor false")
    return tuple(word == "true" for word in words)


def parse_seeds(text: str) -> list[int]:
    """The numbers 0, 1, 2, 3, 100 from "0-3,100"."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise DiffitError(f"seeds are {text!r}; give numbers and rising ranges, e.g. 0-63,100")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return seeds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0, or 2 for a mistake of the user's."""
    words = [with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        config = parser().parse_args(words)
        VERBS[config.verb](**config[config.verb].as_dict())
    except DiffitError as error:
        print(f"diffit: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `diffit info cifar10 | head -1`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a file where a folder should be, no permission, a full disk
        print(f"diffit: {error.filename or 'the disk'}: {error.strerror}; give another path", file=sys.stderr)
        return 2
    return 0


def with_underscores(word: str) -> str:
    """--batch-size=8 -> --batch_size=8, as the fields are called."""
    option, equals, value = word.partition("=")
    return option.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word
