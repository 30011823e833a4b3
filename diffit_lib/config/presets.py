"""Experiments as YAML files: the presets by name, in `presets/` and `presets/vae/`, and the options of a run."""

from collections import UserDict
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.utils.errors import DiffitError, check, did_you_mean
from diffit_lib.utils.files import write_text

FOLDER = Path(__file__).parent / "presets"
OPTIONS = "options.yaml"  # in the folder of a run
END = "...\n"  # closes a YAML document: a file without it was cut off

R = TypeVar("R", bound=BaseExperimentConfig)


class Presets(UserDict[str, R], Generic[R]):
    """Experiments by name; each file is read when its experiment is first asked for."""

    def __init__(self, kind: type[R], folder: Path, title: str) -> None:
        self.kind, self.title = kind, title
        self.files = {path.stem: path for path in folder.glob("*.yaml")}
        self.data: dict[str, Any] = dict.fromkeys(sorted(self.files))

    def __getitem__(self, name: str) -> R:
        if self.data[name] is None:
            self.data[name] = self.read(self.files[name])
        return self.data[name]

    def about(self, name: str) -> str:
        """What the preset is, in one line: the first one of its file."""
        return self.files[name].read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")

    def find(self, name: str, *above: Path) -> R:
        """The preset of this name, or the experiment in a YAML file of options, which `above` start from."""
        if name in self:
            return self[name]
        if Path(name).suffix not in (".yaml", ".yml"):
            raise DiffitError(f"unknown {self.title} {name!r}; {did_you_mean(name, self, 'presets')}")
        check(Path(name) not in above, f"preset {name!r} starts from this file itself; name another")
        return self.read(Path(name), *above)

    def read(self, path: Path, *above: Path) -> R:
        """The experiment in a file of options: `preset: NAME` and what differs from that preset.

        In NAME.yaml itself the line only gives the name; all that is not in the file has its default.
        """
        try:
            options = load_options(path.read_text(encoding="utf-8"))
            check(isinstance(options, dict), "it holds no options")
            base = options.pop("preset", path.stem)
            check(isinstance(base, str), f"preset is {base!r}; give the name of one")
            if base == path.stem:
                return self.kind.from_options({"preset": base, **options})
            return replace(change(self.find(base, *above, path), options), name=path.stem)
        except KeyError as error:
            raise DiffitError(f"{path}: the option {error} is missing; give it, or a preset to start from") from error
        except (OSError, ValueError, DiffitError) as error:
            raise DiffitError(f"{path}: {' '.join(str(error).split())}") from error


def load_options(text: str) -> Any:
    """The content of a YAML file, where "1e-3" is a number and batch-size is batch_size.

    Anchors are refused: nine of them, each a list of the one before, are a text of a kilobyte and 10^9 values. So are
    long and nested texts, which take the parser minutes.
    """
    from jsonargparse import get_loader

    try:
        if len(text) > 1_000_000 or text.count("[") + text.count("{") > 1000:
            raise ValueError("options are at most 1 MB with 1,000 lists; give a file of options")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError("anchors (& and *) are not read; write the values themselves")
        value = get_loader("yaml")(text)
    except (RecursionError, yaml.YAMLError) as error:
        raise ValueError(str(error)) from error
    return {str(key).replace("-", "_"): item for key, item in value.items()} if isinstance(value, dict) else value


NETWORKS = {  # shorthands for the option `network`
    "image": {"network": "image"},
    "latent": {"network": "transformer", "block": "diffit"},
    "dit": {"network": "transformer", "block": "dit"},
}


def change(experiment: R, options: dict[str, Any]) -> R:
    """A copy with some fields changed; another kind of network is one for the same images and classes."""
    options = options | NETWORKS.get(options.get("network", ""), {})
    if options.get("network") == experiment.network.kind:  # it stays as wide and deep as it is
        del options["network"]
    elif "network" in options:
        kept = ("image_size", "in_channels", "num_classes")
        options = {name: getattr(experiment.network, name) for name in kept} | options
    return experiment.override(**options)


PRESETS = Presets(ExperimentConfig, FOLDER, "preset")
VAE_PRESETS = Presets(VAEExperimentConfig, FOLDER / "vae", "autoencoder preset")
preset, vae_preset = PRESETS.find, VAE_PRESETS.find
STABLE_DIFFUSION = ("stabilityai/sd-vae-ft-ema", "stabilityai/sd-vae-ft-mse")  # on the Hugging Face hub, MIT


def write_options(experiment: BaseExperimentConfig, run: Path) -> None:
    """Write every field of the experiment, in a file that `--config` reads too."""
    options = experiment.to_options()
    note = f"# The options of this run; `diffit {verb(experiment)} --run {run}` resumes it.\n"
    text = yaml.safe_dump(options, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    write_text(run / OPTIONS, note + text + END)


def read_options(kind: type[R], run: Path) -> R:
    """The experiment that a run was started with."""
    try:
        text = (run / OPTIONS).read_text(encoding="utf-8")
        check(text.endswith(END), "it is not whole")
        return kind.from_options(load_options(text))
    except (OSError, KeyError, TypeError, ValueError, DiffitError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise DiffitError(f"{run / OPTIONS} cannot be read ({problem}); train into another folder") from error


def verb(experiment: BaseExperimentConfig) -> str:
    """The command that trains such an experiment."""
    return "train-vae" if isinstance(experiment, VAEExperimentConfig) else "train"
