"""Weights by the names that others use: diffusers' folders, SiT and REPA, each against its own reference."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from published_formulas import published_network
from safetensors.torch import load_file, save_file
from test_hub import published_shapes, published_tensors

from diffit_lib.checkpoints.hub import HUB_MODELS, find_weights
from diffit_lib.checkpoints.published import dit_or_sit
from diffit_lib.checkpoints.weights import load_weights
from diffit_lib.config.models import TransformerConfig
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.diffusion.schedules import sigma_table
from diffit_lib.models import build_network
from diffit_lib.utils.errors import DiffitError

FILE = "diffusion_pytorch_model.safetensors"


def equal(answer, expected):
    """Whether they agree to 1e-5 of the expected values' size."""
    return (answer - expected).norm() < 1e-5 * expected.norm()


def inputs(side=8):
    """Two noisy latents, times and labels."""
    x = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([207, 1000])


@pytest.fixture(scope="module")
def theirs():
    """diffusers' DiT with two blocks and random weights, none of them zero."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = {"num_attention_heads": 2, "attention_head_dim": 16, "sample_size": 8, "num_layers": 2}
        network = diffusers.DiTTransformer2DModel(**size, out_channels=8).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        first = network.transformer_blocks[0].norm1.emb.state_dict()
        network.transformer_blocks[1].norm1.emb.load_state_dict(first)
    return network


@pytest.fixture
def folder(theirs, tmp_path):
    """diffusers' folder."""
    theirs.save_pretrained(tmp_path / "stranger" / "transformer")
    return tmp_path / "stranger"


def change(folder, edit):
    """Change the tensors in diffusers' folder."""
    file = folder / "transformer" / FILE
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


class TestDiffusers:
    @pytest.mark.parametrize("what", ["", "transformer", f"transformer/{FILE}"])
    def test_a_folder_of_any_name_answers_as_diffusers(self, theirs, folder, what):
        denoiser, card = load_weights(folder / what)
        x, label = inputs()
        for t in (0, 1, 37, 500, 999):
            time = torch.tensor([t, t])
            with torch.no_grad():
                expected = theirs(x, timestep=time, class_labels=label).sample
                assert equal(denoiser.network.eval()(x, time.float(), label), expected), t
        assert card.experiment.network.as_diffusers
        assert (card.experiment.denoiser.kind, len(card.class_names)) == ("vp", 1000)

    def test_either_eps_or_frequency_of_dit_itself_would_be_seen(self, folder):
        denoiser, _ = load_weights(folder)
        x, label = inputs()
        network = denoiser.network.eval()
        with torch.no_grad():
            right = network(x, torch.tensor([500.0, 500.0]), label)
            network.time_token.endpoint = False
            assert not equal(network(x, torch.tensor([500.0, 500.0]), label), right)
            network.time_token.endpoint = True
            for block in network.blocks:
                block.norm2.eps = 1e-2
            assert not equal(network(x, torch.tensor([500.0, 500.0]), label), right)

    def test_a_torch_file_of_the_same_tensors(self, theirs, folder):
        tensors = load_file(folder / "transformer" / FILE)
        (folder / "transformer" / FILE).unlink()
        torch.save(tensors, folder / "transformer" / "diffusion_pytorch_model.bin")
        assert find_weights(folder).suffix == ".bin"
        assert load_weights(folder)[1].experiment.network.num_heads == 2

    @pytest.mark.parametrize(
        ("edit", "says"),
        [
            (lambda t: t.pop("transformer_blocks.1.attn1.to_k.weight"), r"lacks tensor .*\.1\.attn1\.to_k\.weight"),
            (lambda t: t.pop("transformer_blocks.1.ff.net.2.bias"), r"lacks tensor 'blocks\.1\.mlp\.fc2\.bias'"),
            (
                lambda t: t.pop("transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"),
                r"lacks tensor .*1\.norm1\.emb\.class_embedder",
            ),
            (lambda t: t["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"].add_(1), "differs from"),
            (lambda t: t.update({"proj_out_2.bias": torch.zeros(3)}), "of shape"),
            (lambda t: t.update({"transformer_blocks.0.attn1.to_v.weight": torch.zeros(3)}), "of shape"),
            (lambda t: t.update({"pos_embed.proj.weight": torch.zeros(0)}), "of shape"),
            (lambda t: t.update(extra=torch.zeros(3)), "spare tensor 'extra'"),
            (lambda t: t["proj_out_1.bias"].fill_(torch.nan), "NaN"),
            (lambda t: t.clear(), "looks like 0 tensors"),
        ],
    )
    def test_a_wrong_file_is_one_line(self, folder, edit, says):
        change(folder, edit)
        with pytest.raises(DiffitError, match=says) as error:
            load_weights(folder)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "text", ["", "[]", "{", "[" * 10**5, '{"sample_size": 1e9}', '{"sample_size": -8, "num_attention_heads": 2}']
    )
    def test_a_wrong_config_is_one_line(self, folder, text):
        (folder / "transformer" / "config.json").write_text(text)
        with pytest.raises(DiffitError, match=r"config\.json is not that of a DiT"):
            load_weights(folder)

    def test_another_eps_is_refused(self, folder):
        file = folder / "transformer" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"norm_eps": 1e-3}))
        with pytest.raises(DiffitError, match=r"norm_eps is 0\.001"):
            load_weights(folder)

    def test_tensors_without_their_config_ask_for_it(self, folder):
        (folder / "transformer" / "config.json").unlink()
        with pytest.raises(DiffitError, match=r"needs diffusers' config\.json beside it"):
            load_weights(folder)

    def test_full_names_and_shapes_are_diffusers(self, monkeypatch):
        diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
        with torch.device("meta"):
            network = diffusers.DiTTransformer2DModel(out_channels=8)
        expected = HUB_MODELS["facebook/DiT-XL-2-256"].experiment.network
        monkeypatch.setattr(torch, "equal", lambda one, other: True)  # of tensors without content
        from diffit_lib.checkpoints.published import network_of, to_ours

        hints = {"num_attention_heads": 16, "sample_size": 32}
        tensors = to_ours(dict(network.state_dict()), "diffusers", "file", hints)
        assert network_of(tensors, "diffusers", "file", hints) == expected
        with torch.device("meta"):
            ours = build_network(expected).state_dict()
        assert {n: t.shape for n, t in tensors.items()} == {n: t.shape for n, t in ours.items()}


def train_small(kind):
    """A narrow network taught for a moment as DiT (noise) or SiT (velocity), on N(0, 0.5) latents."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = TransformerConfig(block="dit", image_size=(8, 8), width=64, depth=1, num_heads=2, num_classes=4)
        network = build_network(replace(config, learned_variance=True))
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        table = sigma_table("linear", 1000).float()
        for _ in range(300):
            image, noise, u = 0.5 * torch.randn(32, 4, 8, 8), torch.randn(32, 4, 8, 8), torch.rand(32)
            if kind == "dit":
                sigma = table[(1000 * u).long()].view(-1, 1, 1, 1)
                x, label, target = (image + sigma * noise) / (1 + sigma**2).sqrt(), (1000 * u).floor(), noise
            else:
                share = u.view(-1, 1, 1, 1)
                x, label, target = share * image + (1 - share) * noise, u, image - noise
            loss = (network(x, label, torch.randint(5, (32,)))[:, :4] - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


@pytest.mark.parametrize("kind", ["dit", "sit"])
def test_what_the_network_answers_tells_dit_from_sit(kind, tmp_path):
    network = train_small(kind)
    assert dit_or_sit(network.state_dict(), network.config, tmp_path) == kind


class TestFlow:
    """Files of SiT and REPA of width 384, with one block."""

    SIZE = {"tokens": 16, "width": 384, "depth": 1}

    def tensors(self, rows=32):
        return published_tensors(published_shapes("dit", rows=rows, **self.SIZE))

    def save(self, tensors, path):
        torch.save({"ema": tensors, "opt": {"state": {}}}, path)
        return path

    def test_a_file_that_is_neither_for_sure_asks_which(self, tmp_path):
        path = self.save(self.tensors(), tmp_path / "file.pt")
        says = r"is DiT or SiT, .*load\('meta/dit-xl-2-256', file='.*file\.pt'\) or load\('nyu/sit-xl-2-256'"
        with pytest.raises(DiffitError, match=says):
            load_weights(path)

    @pytest.mark.parametrize(("kind", "denoiser"), [("dit", "vp"), ("sit", "flow")])
    def test_a_file_that_is_sure_opens_by_its_path_alone(self, tmp_path, monkeypatch, kind, denoiser):
        monkeypatch.setattr("diffit_lib.checkpoints.published.dit_or_sit", lambda *args: kind)
        _, card = load_weights(self.save(self.tensors(), tmp_path / "mine.pt"))
        assert (card.experiment.denoiser.kind, card.experiment.name) == (denoiser, "mine")
        wrong, right = ("nyu/sit-xl-2-256", "meta/dit-xl-2-256")[:: 1 if kind == "dit" else -1]
        with pytest.raises(DiffitError, match=rf"looks like {kind}, {wrong} is \w+; to take it for that"):
            load_weights(wrong, file=tmp_path / "mine.pt")
        assert right in HUB_MODELS

    @pytest.mark.parametrize("rows", [16, 32])
    def test_sits_velocity_gives_the_clean_image(self, tmp_path, monkeypatch, rows):
        monkeypatch.setattr("diffit_lib.checkpoints.published.dit_or_sit", lambda *args: "sit")
        tensors = self.tensors(rows)
        denoiser, card = load_weights(self.save(tensors, tmp_path / "sit.pt"))
        x, label = inputs()
        clean = torch.tensor([0.2, 0.7])
        velocity = published_network(tensors, x, clean, label, 6)[:, :4]
        expected = x + (1 - clean.view(-1, 1, 1, 1)) * velocity  # x_t + t (x0 - n)
        sigma = (1 - clean) / clean
        with torch.no_grad():
            answer = denoiser.eval()(x.double() * (1 + sigma).view(-1, 1, 1, 1), sigma.double(), label)
        assert equal(answer, expected)
        assert not card.experiment.network.learned_variance

    @pytest.mark.parametrize("early", [False, True])
    def test_repas_other_time_and_direction(self, tmp_path, early):
        tensors = published_tensors(published_shapes("dit", rows=16, **self.SIZE | {"depth": 2}))
        saved = tensors | {"projectors.0.0.weight": torch.zeros(8, 384), "projectors.0.0.bias": torch.zeros(8)}
        for name in [name for name in saved if early and name.startswith("blocks.1.")]:
            saved[name.replace("blocks.1.", "decoder_blocks.0.")] = saved.pop(name)
        denoiser, card = load_weights(self.save(saved, tmp_path / "last.pt"))
        x, label = inputs()
        t = torch.tensor([0.2, 0.7])  # 1: noise
        velocity = published_network(tensors, x, t, label, 6)  # noise - image
        expected = x - t.view(-1, 1, 1, 1) * velocity
        sigma = (t / (1 - t)).double()
        with torch.no_grad():
            answer = denoiser.eval()(x.double() * (1 + sigma).view(-1, 1, 1, 1), sigma, label)
        assert equal(answer, expected)
        assert card.experiment.denoiser.kind == "flow"


class TestFolders:
    @pytest.mark.parametrize("name", STABLE_DIFFUSION)
    def test_a_published_autoencoder_by_its_name_is_no_model(self, name):
        with pytest.raises(DiffitError, match=rf"{name} is an autoencoder; give it as vae=, or .*load_vae\('{name}'\)"):
            load_weights(name)

    def test_one_file_of_tensors_in_a_folder_is_taken_and_two_are_not(self, folder, tmp_path):
        home = tmp_path / "home"
        home.mkdir()
        shutil.copy(folder / "transformer" / FILE, home / "a.safetensors")
        assert find_weights(home) == home / "a.safetensors"
        shutil.copy(folder / "transformer" / FILE, home / "b.safetensors")
        with pytest.raises(DiffitError, match="no weights file in folder"):
            find_weights(home)

    @pytest.mark.parametrize(
        ("tensors", "looks"),
        [
            ({"decoder.conv_in.weight": torch.zeros(1)}, "an autoencoder: give it as vae="),
            ({"down_blocks.0.weight": torch.zeros(1)}, "a U-Net"),
            ({"model.diffusion_model.out.weight": torch.zeros(1)}, "Stable Diffusion"),
            ({"b": torch.zeros(1), "a": torch.zeros(1)}, "2 tensors like 'a', which no layout here has"),
        ],
    )
    def test_other_files_are_told_what_they_look_like(self, tmp_path, tensors, looks):
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(DiffitError, match=f"x.safetensors holds no diffit model, .*: it looks like {looks}"):
            load_weights(tmp_path / "x.safetensors")
