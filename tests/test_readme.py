"""The README stays true: its commands parse, its pictures exist, its numbers are those of the weights beside it."""

import re
import shlex
from pathlib import Path

import pytest

from diffit_lib.checkpoints.weights import load_weights
from diffit_lib.cli.main import parser, with_underscores
from diffit_lib.config.presets import preset
from diffit_lib.models import build_network
from diffit_lib.models.cost import parameters
from diffit_lib.utils.files import PRETRAINED

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
FEATURES = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
SHELL = [
    line.split("#")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()
]


@pytest.mark.parametrize("command", [line for line in SHELL if "/diffit " in line])
def test_command_parses(command):
    parser().parse_args([with_underscores(word) for word in shlex.split(command)[1:]])


@pytest.mark.parametrize("command", [line for line in SHELL if line.startswith("make ")])
def test_make_knows_the_target(command):
    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()


def test_ci_calls_the_readmes_test_command():
    assert "make test" in SHELL
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("picture", re.findall(r"!\[.*?\]\((.*?)\)", README))
def test_picture_is_there(picture):
    assert (ROOT / picture).is_file()


@pytest.mark.parametrize("name", [path.stem for path in PRETRAINED.glob("[!v]*.safetensors")])
def test_numbers_are_those_of_the_weights(name):
    denoiser, card = load_weights(name)
    row = next(line for line in RESULTS.splitlines() if line.startswith(f"| `{name}` "))
    shown = [cell.strip() for cell in row.split("|")[2:-1]]
    keys = ("class_accuracy", "classifier_test_accuracy", "frechet_ratio", "copy_ratio")
    facts = [f"{parameters(denoiser):,}", f"{card.images_seen:,}", f"{card.minutes:.1f}"]
    assert shown == [*facts, *[f"{card.numbers[key]:.3f}" for key in keys]]
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` "))
    assert [cell.strip() for cell in row.split("|")[3:-1]] == [shown[3], shown[5], shown[6]]


def test_is_read_in_three_minutes():
    assert len(README.split()) <= 900


@pytest.mark.parametrize(("name", "millions"), re.findall(r"`(\w+)` \(([\d.]+) M", FEATURES))
def test_parameter_counts_are_those_of_the_presets(name, millions):
    assert f"{parameters(build_network(preset(name).network)) / 1e6:.1f}" == millions
