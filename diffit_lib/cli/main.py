"""`diffit VERB ...`: the command line. torch is imported only once a verb runs."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from diffit_lib.cli.commands import (
    run_demo,
    run_encode,
    run_evaluate,
    run_info,
    run_pack,
    run_reconstruct,
    run_sample,
    run_train,
    run_train_vae,
)
from diffit_lib.cli.launch import count, is_distributed, join_group, launch, number, number_or_auto
from diffit_lib.cli.options import add_fields, add_recipe_fields
from diffit_lib.config.diffusion import SamplingConfig
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.utils.errors import DiffitError

# jsonargparse imports whatever takes `**settings` by that name, to ask for its options: hence the `**dict(settings)` in
# the commands, and their names, other than the package's own `train`: it looks a function's name up there too.
VERBS: dict[str, Callable[..., None]] = {
    "demo": run_demo,
    "info": run_info,
    "train": run_train,
    "train-vae": run_train_vae,
    "sample": run_sample,
    "evaluate": run_evaluate,
    "encode": run_encode,
    "pack": run_pack,
    "reconstruct": run_reconstruct,
}
SPREAD = (run_train, run_train_vae, run_encode, run_sample, run_evaluate)  # over several devices
RECIPES: dict[Callable[..., None], type[BaseExperimentConfig]] = {
    run_train: ExperimentConfig,
    run_train_vae: VAEExperimentConfig,
}
BY_HAND: set[str | int] = {"preset"}  # a positional that may be missing

DEVICES = "GPUs on this machine, or processes where there is none; auto: all GPUs; batch_size is that of all together"


class Parser(ArgumentParser):
    """Mistakes become the user's one line, and a switch needs no value."""

    def add_argument(self, *names: Any, **settings: Any) -> Any:
        """As the library's, but for switches."""
        switch: dict[str, Any] = {"nargs": "?", "const": True} if settings.get("type") is bool else {}
        return super().add_argument(*names, **(switch | settings))

    def format_help(self, *args: Any, **settings: Any) -> str:
        """The words for a type of ours, "number or auto", in place of Python's."""
        words = super().format_help(*args, **settings)
        return re.sub(r"<function\s+(\w+)\s+at\s+0x\w+>", lambda found: found[1].replace("_", " "), words)

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
        sub.add_argument("--config", action="config", help="YAML file of these options; the command line wins")
        sub.add_function_arguments(verb, as_positional=True, skip=BY_HAND if verb in RECIPES else set())
        if verb in SPREAD:
            group = sub.add_argument_group("devices")
            group.add_argument("--devices", type=number_or_auto, default=1, help=DEVICES)
            group.add_argument("--num_nodes", type=number, default=1, help="machines, as many devices on each")
        if verb in RECIPES:
            add_recipe_fields(sub, RECIPES[verb])
        if verb in (run_sample, run_evaluate):
            taken = {"guidance"} if verb is run_sample else set()  # of which it takes several
            several = verb is run_evaluate
            more = "; several values, e.g. 5,10,20, are measured one by one" if several else ""
            add_fields(sub, f"sampling (the weights' own unless given{more})", [SamplingConfig], taken, several=several)
        verbs.add_subcommand(name, sub, help=summary)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0, 2 for a mistake of the user's, or 130 after Ctrl-C."""
    words = config_first([with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)])
    try:
        config = parser().parse_args(words)
        options = config[config.verb].as_dict()
        del options["config"]
        given, num_nodes = options.pop("devices", 1), options.pop("num_nodes", 1)
        if not is_distributed() and count(given) * num_nodes > 1:
            return launch(words, count(given), num_nodes)
        with join_group(given, num_nodes):
            VERBS[config.verb](**options)
    except DiffitError as error:
        print(f"diffit: {error}", file=sys.stderr)
        return 2
    except UnicodeDecodeError as error:
        print(f"diffit: a file of options is no text ({error.reason}); give a YAML file in UTF-8", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # Ctrl-C needs no words
        return 130
    except BrokenPipeError:  # `diffit info cifar10 | head -1`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a file where a folder should be, no permission, a full disk
        print(f"diffit: {error.filename or 'the disk'}: {error.strerror}; give another path", file=sys.stderr)
        return 2
    return 0


def config_first(words: list[str]) -> list[str]:
    """--config right behind the verb, for what comes later wins, and that are the words."""
    for place, word in enumerate(words):
        if word == "--config" or word.startswith("--config="):
            size = 2 if word == "--config" else 1
            moved, rest = words[place : place + size], words[:place] + words[place + size :]
            return [*rest[:1], *moved, *rest[1:]]
    return words


def with_underscores(word: str) -> str:
    """--batch-size=8 -> --batch_size=8, as the fields are called."""
    option, equals, value = word.partition("=")
    return option.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word
