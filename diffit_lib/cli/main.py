"""`diffit VERB ...`: the command line. torch is imported only once a verb runs."""

import errno
import re
import sys
from argparse import SUPPRESS, Action
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import docstring_parser
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, set_loader

from diffit_lib import __version__
from diffit_lib.cli.commands import VERBS, run_encode, run_explore, run_info, run_train, run_train_vae
from diffit_lib.cli.launch import count, is_distributed, join_group, launch, number, number_or_auto
from diffit_lib.cli.options import add_experiment_fields, add_fields, default_words, summary
from diffit_lib.cli.using import run_edit, run_evaluate, run_sample
from diffit_lib.config.diffusion import SamplingConfig
from diffit_lib.config.presets import PRESETS, VAE_PRESETS, Presets, load_options
from diffit_lib.utils.errors import DiffitError, closest, printable
from diffit_lib.utils.files import siblings
from diffit_lib.utils.logging import streams

DISTRIBUTED = (run_train, run_train_vae, run_encode, run_sample, run_evaluate)  # run on several devices
TRAINING: dict[Callable[..., None], Presets[Any]] = {run_train: PRESETS, run_train_vae: VAE_PRESETS}
OPTIONAL = {run_train: "preset", run_train_vae: "preset", run_info: "name", run_explore: "weights"}  # positionals

DEVICES = "GPUs of this machine, or CPU processes if it has none; auto: all GPUs. batch_size is the total over all."

set_loader("options", load_options, exceptions=(ValueError,))


class Formatter(DefaultHelpFormatter):
    """One sentence on each option and its default in brackets, without Python's types."""

    def _get_help_string(self, action: Action) -> str:
        return (action.help or "") + default_words(action.default)

    def _format_action_invocation(self, action: Action) -> str:
        words = super()._format_action_invocation(action)
        return re.sub(r"--\w+", lambda option: option[0].replace("_", "-"), words)


class ConfigFile(ActionConfigFile):
    """`--config` takes the name of a preset too."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read the file, or take the preset."""
        path, names = Path(values), parser.presets or {}
        if values in names and not path.is_file():
            values = f"preset: {values}"
        elif not path.exists():
            near = closest(values, [*siblings(path), *names]) or "give the path of a YAML file, or a preset"
            raise DiffitError(f"no file {values!r} of options; {near}")
        try:
            super().__call__(parser, cfg, values, option_string)
        except UnicodeDecodeError as error:
            raise DiffitError(f"{values} is no text ({error.reason}); give a YAML file in UTF-8") from error


class Parser(ArgumentParser):
    """Mistakes become one line for the user, and a switch needs no value."""

    presets: Presets[Any] | None = None  # what a training verb trains
    # argcomplete reads these of every parser, but sets them only where argparse itself calls the verb's.
    _action_conflicts: dict[Action, list[Action]] = {}
    active_actions: Sequence[Action] = ()
    seen_non_default_actions: Sequence[Action] = ()

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, parser_mode="options", formatter_class=Formatter, **settings)

    def add_argument(self, *names: Any, **settings: Any) -> Any:
        """As the library's, but for switches."""
        switch: dict[str, Any] = {"nargs": "?", "const": True} if settings.get("type") is bool else {}
        return super().add_argument(*names, **(switch | settings))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line, whatever the library says, and the names that are close to a wrong one."""
        verb = re.search(r"'([\w-]+)' does not accept", message)
        known = verb_parser(verb[1], VERBS[verb[1]]) if verb and verb[1] in VERBS else self
        names = VERBS if "argument VERB" in message else [word.lstrip("-") for word in known._option_string_actions]
        wrong = re.search(r"(?:invalid choice: '|unrecognized arguments: --|does not accept option ')([\w-]+)", message)
        near = closest(wrong[1], names) if wrong else ""
        words, prog = " ".join(message.split()), self.prog.replace(" [options]", "")
        raise DiffitError(f"{words}; {near + ' ' if near else ''}`{prog} --help` tells more")


def parser() -> Parser:
    """The whole command line; training verbs take every field of an experiment, drawing verbs those of the sampling."""
    top = Parser(prog="diffit", description="DiffiT: Diffusion Vision Transformers for image generation.")
    top.add_argument("--version", action="version", version=f"diffit {__version__}", help="Print the version and exit.")
    verbs = top.add_subcommands(dest="verb", metavar="VERB")
    for name, verb in VERBS.items():
        verbs.add_subcommand(name, verb_parser(name, verb), help=summary(verb))
    return top


def verb_parser(name: str, verb: Callable[..., None]) -> Parser:
    """The options of one verb."""
    sub = Parser(description=summary(verb), print_config=None if verb in TRAINING else "--print_config")
    sub.add_argument("--config", action=ConfigFile, help="YAML file of these options; the command line wins.")
    optional = OPTIONAL.get(verb, "")
    if optional:
        helps = {param.arg_name: param.description for param in docstring_parser.parse(verb.__doc__ or "").params}
        sub.add_argument(optional, nargs="?", type=str, default=SUPPRESS, help=helps.get(optional))
    sub.add_function_arguments(verb, as_positional=True, skip={optional})
    sub._action_groups[-1].title = "arguments"
    if "--print_config" in sub._option_string_actions:
        sub._option_string_actions["--print_config"].help = "Print these options as a file for --config, and exit."
    if verb in DISTRIBUTED:
        group = sub.add_argument_group("devices")
        group.add_argument("--devices", type=number_or_auto, default=1, help=DEVICES)
        group.add_argument("--num_nodes", type=number, default=1, help="Number of machines, each with --devices.")
    if presets := TRAINING.get(verb):
        sub.presets = presets
        add_experiment_fields(sub, presets.kind)
    if verb in (run_sample, run_edit, run_evaluate):
        several = verb is run_evaluate
        more = "; several values, e.g. 5,10,20, are measured one by one" if several else ""
        title = f"sampling options (default: the weights' own{more})"
        taken = {"guidance"} if verb is run_sample else set()  # it has one of its own
        add_fields(sub, title, [SamplingConfig], taken, several=several, defaults=False)
    words = [f"[{action.dest}]" if action.nargs == "?" else action.dest for action in sub._get_positional_actions()]
    sub.usage = " ".join(["diffit", name, *words, "[options]"])
    return sub


@streams()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0, 2 for a mistake of the user's, or 130 after Ctrl-C."""
    words = config_first([with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)])
    try:
        config = parse(words)
        options = config[config.verb].as_dict()
        del options["config"]
        given, num_nodes = options.pop("devices", 1), options.pop("num_nodes", 1)
        if not is_distributed() and count(given) * num_nodes > 1:
            return launch(words, count(given), num_nodes)
        with join_group(given, num_nodes):
            VERBS[config.verb](**options)
        sys.stdout.flush()
        return 0
    except DiffitError as error:
        line = str(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # torch's words on a CPU
            raise
        line = f"the memory is too small ({error}); give a smaller batch_size, image_size or width"
    except KeyboardInterrupt:  # Ctrl-C needs no words
        return 130
    except OSError as error:  # a file where a folder should be, no permission, a full disk
        remedy = "make room there, or " if error.errno == errno.ENOSPC else ""
        line = f"{error.filename or 'the disk'}: {error.strerror or error}; {remedy}give another path"
    print(f"diffit: {printable(line)}", file=sys.stderr)
    return 2


def parse(words: list[str]) -> Any:
    """The verb and its options; jsonargparse makes floats of integers, and of those above 10^308 cannot."""
    try:
        return parser().parse_args(words)
    except OverflowError as error:
        where = max(words, key=len)[:100]
        raise DiffitError(f"{where} has too long a number ({error}); give one of at most 18 digits") from error


def config_first(words: list[str]) -> list[str]:
    """Put --config right behind the verb: later options win, and these are the command line's."""
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
