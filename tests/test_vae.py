"""The KL autoencoder: Stable Diffusion's to the letter, any other layout, and files that hold one."""

import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffit_lib.checkpoints.autoencoders import VAECard, load_vae
from diffit_lib.checkpoints.safetensors_io import write_checkpoint
from diffit_lib.config.experiment import VAEExperimentConfig
from diffit_lib.config.models import AutoencoderConfig
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.utils.errors import DiffitError

SMALL = AutoencoderConfig(image_size=(16, 16), channels=(8, 16), down=(True,), attn=(False, True), num_layers=1)


def off(found, wanted):
    """The largest difference, relative to the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def images(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def theirs():
    """diffusers' autoencoder in Stable Diffusion's layout, with small random weights."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
        )
        for tensor in network.state_dict().values():
            tensor.normal_(std=0.03)
    return network.eval()


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    """Its tensors as they are published."""
    path = tmp_path_factory.mktemp("sd") / "diffusion_pytorch_model.safetensors"
    save_file(theirs.state_dict(), path, {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def ours(file):
    """The same as a codec of ours."""
    return load_vae("stabilityai/sd-vae-ft-ema", file=file)[0]


class TestStableDiffusion:
    def test_it_has_the_published_tensors(self, theirs):
        with torch.device("meta"):
            ours = KLAutoencoder(AutoencoderConfig()).state_dict()
        assert {name: tensor.shape for name, tensor in ours.items()} == {
            name: tensor.shape for name, tensor in theirs.state_dict().items()
        }
        assert len(ours) == 248
        assert sum(tensor.numel() for tensor in ours.values()) == 83_653_863

    @torch.no_grad()
    def test_its_moments_are_those_of_diffusers(self, theirs, ours):
        x = images(2, 3, 40, 24)
        posterior = theirs.encode(x / 127.5 - 1).latent_dist
        mean, log_variance = ours.moments(x).chunk(2, dim=1)
        assert off(mean, posterior.mean) < 1e-5
        assert off(log_variance, posterior.logvar) < 1e-5

    @torch.no_grad()
    def test_it_decodes_as_diffusers_does_at_the_published_scale(self, theirs, ours):
        z = torch.randn(1, 4, 5, 3, generator=torch.Generator().manual_seed(1))
        assert off(ours.decode(z), theirs.decode(z / 0.18215).sample) < 1e-5

    @torch.no_grad()
    def test_latents_have_the_published_scale(self, theirs, ours):
        x = images(1, 3, 16, 16)
        mean = theirs.encode(x / 127.5 - 1).latent_dist.mean
        assert off(ours.encode(x), 0.18215 * mean) < 1e-5

    def test_attention_may_bear_its_older_names(self, file, tmp_path, ours):
        tensors = load_file(file)
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            tensors = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in tensors.items()}
        assert "encoder.mid_block.attentions.0.query.weight" in tensors
        save_file(tensors, tmp_path / "old.safetensors")
        again, card = load_vae("stabilityai/sd-vae-ft-mse", file=tmp_path / "old.safetensors")
        assert again.checksum == ours.checksum
        assert card.experiment.name == "stabilityai/sd-vae-ft-mse"

    def test_the_hubs_cache_is_asked_before_its_server(self, monkeypatch, file, ours):
        asked, name = [], "diffusion_pytorch_model.safetensors"

        def download(repo, name):
            asked.append((repo, name))
            return str(file)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        assert load_vae("stabilityai/sd-vae-ft-ema")[0].checksum == ours.checksum
        assert asked == [("stabilityai/sd-vae-ft-ema", name)]
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(file))
        assert load_vae("stabilityai/sd-vae-ft-ema")[0].checksum == ours.checksum
        assert len(asked) == 1

    def test_what_cannot_be_downloaded_is_one_line_with_the_remedy(self, monkeypatch):
        def fail(*_, **__):
            raise OSError("no network\nat all")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
        with pytest.raises(
            DiffitError, match=r"^stabilityai/sd-vae-ft-ema .*\(no network at all\); download .* load_vae"
        ):
            load_vae("stabilityai/sd-vae-ft-ema")

    def test_without_the_hubs_package_the_remedy_is_told(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(DiffitError, match=r"needs huggingface_hub; pip install it, or download .* load_vae"):
            load_vae("stabilityai/sd-vae-ft-ema")

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(DiffitError, match=r"there is no file .*nowhere"):
            load_vae(STABLE_DIFFUSION[0], file=tmp_path / "nowhere")


class TestLayouts:
    @pytest.mark.parametrize("in_channels", [1, 3])
    @pytest.mark.parametrize(
        ("layout", "factor"),
        [
            (SMALL, 2),
            (replace(SMALL, patch=2), 4),
            (replace(SMALL, channels=(8, 8, 16), down=(False, True), attn=(True, False, False), mid_attn=False), 2),
            (replace(SMALL, channels=(8,), down=(), attn=(False,)), 1),
        ],
    )
    def test_any_size_the_factor_divides_goes_in_and_comes_out(self, layout, factor, in_channels):
        network = KLAutoencoder(replace(layout, in_channels=in_channels))
        moments = network.encode(torch.zeros(2, in_channels, 8, 12))
        assert moments.shape == (2, 8, 8 // factor, 12 // factor)
        assert network.decode(moments[:, :4]).shape == (2, in_channels, 8, 12)
        assert layout.factor == factor
        assert layout.latent_shape == (4, 16 // factor, 16 // factor)

    def test_attention_stands_where_it_is_asked_for(self):
        names = {name.split(".attentions")[0] for name, _ in KLAutoencoder(SMALL).named_parameters() if "to_q" in name}
        assert names == {"encoder.down_blocks.1", "encoder.mid_block", "decoder.mid_block", "decoder.up_blocks.0"}
        without = KLAutoencoder(replace(SMALL, attn=(False, False), mid_attn=False))
        assert not [name for name, _ in without.named_parameters() if "attentions" in name]

    def test_log_variance_stays_from_minus_30_to_20(self):
        network = KLAutoencoder(SMALL)
        network.quant_conv.bias.data[4:] = torch.tensor([-100.0, 100.0, -30.0, 20.0])
        network.quant_conv.weight.data.zero_()
        bounds = network.encode(torch.zeros(1, 3, 8, 8))[0, 4:, 0, 0]
        assert bounds.tolist() == [-30, 20, -30, 20]

    def test_a_size_the_factor_does_not_divide_is_one_line(self):
        network = KLAutoencoder(replace(SMALL, patch=2))
        with pytest.raises(DiffitError, match=r"^an image of 8x10 .* factor 4; give a height and a width that 4 divid"):
            network.encode(torch.zeros(1, 3, 8, 10))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"image_size": (16, 17)}, "image of 16x17"),
            ({"image_size": (0, 16)}, "image of 0x16"),
            ({"in_channels": 2}, "in_channels is 2"),
            ({"channels": ()}, "channels is ()"),
            ({"channels": (8, 6)}, "multiple of 4"),
            ({"down": (True, True)}, "down has 2 entries.*give 1"),
            ({"attn": (True,)}, "attn has 1 entries.*give 2"),
            ({"down": (1,)}, "down is"),
            ({"z_channels": 0}, "z_channels is 0"),
            ({"patch": 0}, "patch is 0"),
            ({"num_layers": 0}, "num_layers is 0"),
        ],
    )
    def test_a_bad_value_is_refused_by_name(self, values, message):
        with pytest.raises(DiffitError, match=message):
            replace(SMALL, **values)


class TestFiles:
    CARD = VAECard(
        VAEExperimentConfig("small", "nothing", network=SMALL),
        (0.5, -1.0, 0.0, 2.0),
        (1.0, 2.0, 0.5, 4.0),
        trained_on="x/train 1f",
        images_seen=32,
    )

    @pytest.fixture
    def network(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return KLAutoencoder(SMALL).to(memory_format=torch.channels_last)

    def test_file_rebuilds_the_codec_and_the_card(self, network, tmp_path):
        write_checkpoint(tmp_path / "vae.safetensors", self.CARD, network.state_dict())
        space, card = load_vae(tmp_path / "vae.safetensors")
        assert card == self.CARD
        x = images(3, 3, 16, 16)
        with torch.no_grad():
            mean = network.encode(x / 127.5 - 1)[:, :4]
        latents = (mean - torch.tensor(card.mean).view(4, 1, 1)) / torch.tensor(card.std).view(4, 1, 1)
        assert off(space.encode(x), latents) < 1e-5
        with torch.no_grad():
            assert off(space.decode(latents), network.decode(mean)) < 1e-5

    def test_half_precision_takes_half_the_room(self, network, tmp_path):
        for name, dtype in (("half", torch.float16), ("full", torch.float32)):
            write_checkpoint(tmp_path / name, self.CARD, network.state_dict(), dtype)
        assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "full").stat().st_size
        assert {tensor.dtype for tensor in load_vae(tmp_path / "half")[0].network.state_dict().values()} == {
            torch.float32
        }

    def test_another_kind_of_weights_is_refused(self, weights, network, tmp_path):
        with pytest.raises(DiffitError, match=r"not 'diffit-vae-1'\); give an autoencoder that `diffit train-vae`"):
            load_vae(weights)

    def test_a_name_no_file_has_is_refused(self):
        with pytest.raises(
            DiffitError,
            match=r"no weights file 'nowhere': .*; give a path, hf://USER/REPOSITORY, or one of .*sd-vae-ft-ema",
        ):
            load_vae("nowhere")

    @pytest.mark.parametrize("values", [{"mean": (0.0,)}, {"std": (1.0, 1.0, 1.0, 0.0)}])
    def test_a_card_has_one_mean_and_one_positive_std_per_channel(self, values):
        with pytest.raises(DiffitError, match=r"mean has 1 entries, but the latents 4|std is .* above 0"):
            replace(self.CARD, **values)

    def test_recipe_survives_json_and_takes_overrides(self):
        experiment = self.CARD.experiment.override(down=(False,), kl_weight=1e-3, lr=1e-4)
        assert VAEExperimentConfig.from_dict(experiment.to_dict()) == experiment
        assert (experiment.network.down, experiment.loss.kl_weight, experiment.training.lr) == ((False,), 1e-3, 1e-4)
