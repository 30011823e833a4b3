"""Every file in configs/ is a command that works, as far as can be seen without its data; so is --dry-run."""

import re
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from diffit_lib.cli.main import main, parser
from diffit_lib.cli.options import asked_for
from diffit_lib.config import presets
from diffit_lib.config.experiment import ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.models import AutoencoderConfig, TransformerConfig
from diffit_lib.config.presets import preset, vae_preset
from diffit_lib.models import build_network
from diffit_lib.models.cost import parameters
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.reports.cost import training_cost
from diffit_lib.utils.errors import DiffitError

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


@cache
def options_of(path):
    """What the command line makes of a config."""
    verb = "train-vae" if path.stem.endswith("-vae") else "train"
    return parser().parse_args([verb, "--config", str(path)])[verb].as_dict()


def recipe_of(path, leaving_out=None):
    """The recipe that a config's verb would train, all of its options but one taken."""
    kind, named = (VAEExperimentConfig, vae_preset) if path.stem.endswith("-vae") else (ExperimentConfig, preset)
    options, fields = options_of(path), {*kind.field_names(), *kind.PARTS} - {"name", leaving_out}
    assert (options["run"], options["name"], options["dry_run"]) == (None, None, False)
    taken = {name: value for name, value in options.items() if name in fields}
    return asked_for(kind, named, options["preset"], None, taken)


def test_there_is_one_for_the_paper_and_for_the_seeds():
    names = {path.stem for path in CONFIGS}
    assert names >= {"paper-cifar10", "paper-ffhq64", "paper-imagenet256", "paper-imagenet512"}
    assert names >= {"celebhq-vae", "celebhq", "mnist-dit"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_makes_a_network(path):
    network = recipe_of(path).network
    if isinstance(network, TransformerConfig):
        network = replace(network, depth=1)  # all blocks are alike
    with torch.device("meta"):
        assert (
            parameters(KLAutoencoder(network) if isinstance(network, AutoencoderConfig) else build_network(network)) > 0
        )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_says_what_differs_from_its_preset_and_no_more(path):
    for name in yaml.safe_load(path.read_text()).keys() - {"preset"}:
        with suppress(DiffitError):  # it cannot be done without
            assert recipe_of(path, name) != recipe_of(path), f"{name} could go"
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.with_stem(f"{path.stem}-vae") in CONFIGS])
def test_config_fits_the_autoencoder_beside_it(path):
    experiment, vae = recipe_of(path), recipe_of(path.with_stem(f"{path.stem}-vae"))
    assert experiment.network.shape == vae.network.latent_shape
    assert experiment.vae == f"runs/{path.stem}-vae/weights.safetensors"
    assert experiment.data == vae.data


@pytest.mark.parametrize(
    ("name", "millions"), [("paper-cifar10", 28.7), ("paper-ffhq64", 44.8), ("paper-imagenet256", 561.0)]
)
def test_paper_networks_have_their_size(name, millions):
    (path,) = (path for path in CONFIGS if path.stem == name)
    with torch.device("meta"):
        assert parameters(build_network(recipe_of(path).network)) / 1e6 == pytest.approx(millions, abs=0.05)


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("widht: 8\n", "does not accept option 'widht'"),
            ("preset: digit\n", "unknown preset 'digit'"),
            ("preset: digits\nwidth: wide\n", '"width".*wide'),
            ("preset: digits\nflip: maybe\n", '"flip".*maybe'),
            ("preset: digits\nchannel_mult: [1, x]\n", "channel_mult is .*x.*; give integers"),
            ("preset: digits\nwidth: 0\n", "width is 0; give a number above 0"),
            ("preset: digits\n  width: [1\n", "parsing"),
            ("just words\n", "Unexpected config: just words"),
            ("", "Unexpected config"),
            ("- 1\n- 2\n", "Unexpected config"),
            (b"\xff\xfe\x00", "a file of options is no text"),
        ],
    )
    def test_in_a_file_are_told_in_one_line(self, tmp_path, monkeypatch, capsys, text, says):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        assert main(["train", "--config", "c.yaml"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"diffit: [^\n]+\n", err)
        assert re.search(says, err), err
        assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]

    def test_in_its_path_are_told_in_one_line(self, tmp_path, capsys):
        for path in (tmp_path / "missing.yaml", tmp_path):
            assert main(["train", "--config", str(path)]) == 2
            assert re.fullmatch(rf"diffit: [^\n]*{path}[^\n]*\n", capsys.readouterr().err)


class TestOrder:
    def test_the_command_line_wins_wherever_it_stands(self, tmp_path, monkeypatch):
        (tmp_path / "c.yaml").write_text("preset: digits\nwidth: 64\nlr: 1e-4\nname: config\n")
        asked = []
        monkeypatch.setattr("diffit_lib.cli.commands.asked_for", lambda *args: asked.append(args[2:]) or 1 / 0)
        file = ["--config", str(tmp_path / "c.yaml")]
        words = ["mnist", "--width", "32"]
        for order in ([*file, *words], [*words, *file], [*words[:1], *file, *words[1:]]):
            with pytest.raises(ZeroDivisionError):
                main(["train", *order])
        assert asked == [("mnist", None, {"width": 32, "lr": 1e-4})] * 3

    def test_print_config_prints_what_config_reads(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            main(["train", "digits", "--network", "dit", "--width=32", "--image_size=8,8", "--print_config"])
        (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
        again = parser().parse_args(["train", "--config", str(tmp_path / "c.yaml")]).train
        assert (again.preset, again.network, again.width, again.image_size) == ("digits", "dit", 32, (8, 8))


class TestDryRun:
    def test_says_what_it_takes_and_writes_nothing(self, tiny, tmp_path, monkeypatch, capsys, snapshot):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(presets.PRESETS, "digits", tiny)
        before = snapshot()
        assert main(["train", "digits", "--dry-run", "--batch-size=32", "--accumulate=2"]) == 0
        out = capsys.readouterr().out
        count = parameters(build_network(tiny.network))
        assert out.startswith(f"tiny: {count:,} parameters, ")
        assert "128 images in 4 steps of 32, 32-true on cpu" in out
        assert f"{4 * 5 * count / 1e6:.1f} MB for weights" in out
        assert "that 16 images at once keep" in out
        assert "data: digits/train, 1,437 of 1x8x8, 10 classes" in out
        assert snapshot() == before

    def test_refuses_what_training_refuses(self, capsys):
        assert main(["train", "digits", "--dry-run", "--num_classes=3"]) == 2
        assert "num_classes=3, but digits/train has 10 classes" in capsys.readouterr().err

    def test_counts_what_real_tensors_keep(self, tiny):
        """The same count on tensors that hold something, by the size of every storage that autograd holds."""
        experiment = tiny.override(precision="32-true")
        network, kept = build_network(experiment.network), {}
        own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            answer = network(torch.randn(16, 1, 8, 8), torch.zeros(16))
        real = sum(storage.nbytes() for name, storage in kept.items() if name not in own)
        assert training_cost(experiment).activations == pytest.approx(real, rel=0.02)
        assert answer.shape == (16, 1, 8, 8)

    def test_recomputed_activations_are_not_counted(self, tiny):
        costs = [training_cost(tiny.override(checkpointing=choice)) for choice in (False, True)]
        assert costs[1].activations < 0.5 * costs[0].activations
        assert costs[0].states == costs[1].states

    def test_of_an_autoencoder_counts_its_discriminator(self):
        experiment = vae_preset("vae-digits").override(batch_size=8, image_size=(16, 16))
        alone, judged = (training_cost(experiment.override(disc_weight=weight)) for weight in (0.0, 0.5))
        assert judged.trained > alone.trained == alone.parameters == judged.parameters
        assert judged.activations > alone.activations
