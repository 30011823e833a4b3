"""The presets are files that work, as far as can be seen without their data; so do --config and --dry-run."""

import re
from dataclasses import replace

import pytest
import torch
import yaml

from diffit_lib.cli.main import main, parser
from diffit_lib.config import presets
from diffit_lib.config.experiment import ExperimentConfig, VAEExperimentConfig, field_help
from diffit_lib.config.models import AutoencoderConfig, TransformerConfig
from diffit_lib.config.presets import PRESETS, VAE_PRESETS, Presets, preset, vae_preset
from diffit_lib.models import build_network
from diffit_lib.models.cost import parameters
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.training.cost import training_cost
from diffit_lib.utils.errors import DiffitError

ALL = [(PRESETS, name) for name in PRESETS] + [(VAE_PRESETS, name) for name in VAE_PRESETS]
IDS = [name for _, name in ALL]


def test_there_is_one_for_the_paper_and_for_other_projects():
    assert PRESETS.keys() >= {"cifar10", "ffhq64", "diffit-xl-2", "diffit-xl-2-512", "celebhq", "mnist-dit-s-8"}
    assert VAE_PRESETS.keys() >= {"celebhq-vae", "kl-f4", "kl-f8"}


@pytest.mark.parametrize(("known", "name"), ALL, ids=IDS)
class TestFile:
    def test_makes_a_network(self, known, name):
        network = known[name].network
        if isinstance(network, TransformerConfig):
            network = replace(network, depth=1)  # all blocks are alike
        with torch.device("meta"):
            built = KLAutoencoder(network) if isinstance(network, AutoencoderConfig) else build_network(network)
        assert parameters(built) > 0

    def test_says_what_it_is_and_only_what_differs(self, known, name):
        text = known.files[name].read_text()
        assert re.match(r"# [^\n]+[.]\n", text)
        options = yaml.safe_load(text)
        base = options.pop("preset")
        start = known[base] if base != name else known.kind("", "")
        unsaid = {"network", "denoiser", "block", "data"}  # may be said in any case
        if options.get("network", "image") != start.network.kind:
            unsaid |= {"image_size", "in_channels", "num_classes", "num_heads"}  # another network has its own
        keys = options.keys() - unsaid
        for key, value in start.to_options().items():
            assert key not in keys or known[name].to_options()[key] != value, f"{key} could go"

    def test_is_the_same_by_path_and_as_it_is_printed(self, known, name, tmp_path):
        assert known.find(str(known.files[name])) == known[name]
        (tmp_path / "mine.yaml").write_text(known[name].to_yaml())
        assert known.find(str(tmp_path / "mine.yaml")) == replace(known[name], name="mine")


@pytest.mark.parametrize(
    ("name", "vae"),
    [
        ("latent-digits", "vae-digits"),
        ("latent-cifar10", "vae-cifar10"),
        ("latent-imagenette128", "vae-imagenette128"),
        ("celebhq", "celebhq-vae"),
    ],
)
def test_a_latent_preset_fits_its_autoencoder(name, vae):
    experiment, autoencoder = preset(name), vae_preset(vae)
    assert experiment.network.shape == autoencoder.network.latent_shape
    assert experiment.vae in (vae, f"runs/{vae}/weights.safetensors")
    assert experiment.data == autoencoder.data


@pytest.mark.parametrize(("name", "millions"), [("cifar10", 28.7), ("ffhq64", 44.8), ("diffit-xl-2", 561.0)])
def test_paper_networks_have_their_size(name, millions):
    with torch.device("meta"):
        assert parameters(build_network(preset(name).network)) / 1e6 == pytest.approx(millions, abs=0.05)


class TestOwnFile:
    @pytest.fixture
    def write(self, tmp_path):
        def write(text):
            (tmp_path / "mine.yaml").write_text(text)
            return str(tmp_path / "mine.yaml")

        return write

    def test_starts_from_a_preset_and_takes_dashes_and_exponents(self, write):
        path = write("preset: digits\nbatch-size: 8\nlr: 1e-3\nnetwork: dit\n")
        experiment = preset(path)
        assert (experiment.name, experiment.training.batch_size, experiment.training.lr) == ("mine", 8, 1e-3)
        assert (experiment.network.block, experiment.network.image_size) == ("dit", (8, 8))

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("preset: digits\nwidht: 8\n", "unknown field 'widht'; did you mean width?"),
            ("preset: digts\n", "unknown preset 'digts'; did you mean digits"),
            ("width: 8\n", "the option 'data' is missing; give it, or a preset to start from"),
            ("just words\n", "it holds no options"),
            ("preset: [\n", "mine.yaml: "),
        ],
    )
    def test_that_is_wrong_is_refused_in_one_line(self, write, text, says):
        with pytest.raises(DiffitError, match=re.escape(says)) as refusal:
            preset(write(text))
        assert "\n" not in str(refusal.value)

    def test_that_starts_from_itself_by_way_of_another_is_refused_in_one_line(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.yaml").write_text("preset: b.yaml\n")
        (tmp_path / "b.yaml").write_text("preset: a.yaml\n")
        with pytest.raises(DiffitError, match=r"^a\.yaml: b\.yaml: preset 'a\.yaml' starts from this file itself; "):
            preset("a.yaml")

    def test_is_read_when_it_is_asked_for(self, tmp_path):
        (tmp_path / "good.yaml").write_text("data: digits\n")
        (tmp_path / "bad.yaml").write_text("data: 3\n")
        lazy = Presets(ExperimentConfig, tmp_path, "preset")
        assert list(lazy) == ["bad", "good"]
        assert lazy["good"] == ExperimentConfig("good", "digits")
        with pytest.raises(DiffitError, match="data is 3"):
            lazy["bad"]


@pytest.mark.parametrize("kind", [ExperimentConfig, VAEExperimentConfig])
def test_every_field_has_its_help(kind):
    for part in [kind, *(part for kinds in kind.PARTS.values() for part in kinds)]:
        assert part.__dataclass_fields__.keys() - field_help(part).keys() <= {"loss", "training", "sampling"}


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("widht: 8\n", "does not accept option 'widht'; did you mean width"),
            ("preset: digit\n", "unknown preset 'digit'; did you mean digits"),
            ("preset: digits\nwidth: wide\n", '"width".*wide'),
            ("preset: digits\nflip: maybe\n", '"flip".*maybe'),
            ("preset: digits\nchannel_mult: [1, x]\n", "channel_mult is .*x.*; give integers"),
            ("preset: digits\nwidth: 0\n", "width is 0; give a number above 0"),
            ("preset: digits\n  width: [1\n", "parsing"),
            ("just words\n", "Unexpected config: just words"),
            ("", "Unexpected config"),
            ("- 1\n- 2\n", "Unexpected config"),
            (b"\xff\xfe\x00", "is no text"),
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
        monkeypatch.setattr("diffit_lib.cli.options.experiment_for", lambda *args: asked.append(args[1:]) or 1 / 0)
        file = ["--config", str(tmp_path / "c.yaml")]
        words = ["mnist", "--width", "32"]
        for order in ([*file, *words], [*words, *file], [*words[:1], *file, *words[1:]]):
            with pytest.raises(ZeroDivisionError):
                main(["train", *order])
        assert asked == [("mnist", None, {"width": 32, "lr": 1e-4})] * 3

    def test_a_preset_is_a_config_too(self):
        assert parser().parse_args(["train", "--config", "celebhq", "--lr=1"]).train.preset == "celebhq"
        with pytest.raises(DiffitError, match="no file 'celebhg' of options; did you mean celebhq"):
            parser().parse_args(["train", "--config", "celebhg"])

    def test_print_config_prints_what_config_reads(self, tmp_path, capsys):
        asked = ["train", "digits", "--network", "dit", "--width=48", "--image_size=8,8", "--lr=1e-5"]
        assert main([*asked, "--print-config"]) == 0
        printed = capsys.readouterr().out
        assert re.search(r"^lr: 1.0e-05 +# Learning rate", printed, re.M)
        assert len(printed.splitlines()) == len(preset("mnist-dit").to_options())
        (tmp_path / "c.yaml").write_text(printed)
        assert main(["train", "--config", str(tmp_path / "c.yaml"), "--print-config"]) == 0
        assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed)


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
