"""Settings: the presets' values, what is refused and how, and the ways there and back."""

import json
import math
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace

import pytest

from diffit_lib.config.diffusion import EDMConfig, FlowConfig, SamplingConfig, VPConfig
from diffit_lib.config.experiment import ExperimentConfig, TrainingConfig
from diffit_lib.config.models import ImageNetworkConfig, TransformerConfig
from diffit_lib.config.presets import PRESETS, preset
from diffit_lib.utils.errors import DiffitError


def settings(experiment):
    """(part, field, value) of all that a recipe sets."""
    for part in fields(experiment):
        value = getattr(experiment, part.name)
        if is_dataclass(value):
            yield from ((part.name, inner.name, getattr(value, inner.name)) for inner in fields(value))
        else:
            yield None, part.name, value


class TestPresets:
    def test_cifar10_is_the_papers(self):
        experiment = preset("cifar10")
        network, training = experiment.network, experiment.training
        assert network.shape == (3, 32, 32)
        assert (network.channels, network.num_blocks, network.time_dim) == ((128, 256, 256), 4, 512)
        assert (network.map_sizes, network.windows) == (((32, 32), (16, 16), (8, 8)), ((4, 4),) * 3)
        assert (network.num_classes, network.dropout, network.augment_dim) == (0, 0.13, 9)
        assert (training.images, training.batch_size, training.lr) == (200_000_000, 512, 1e-3)
        assert (experiment.sampling.sampler, experiment.sampling.steps, experiment.denoiser) == (
            "heun",
            18,
            EDMConfig(sigma_data=0.5),
        )

    def test_ffhq64_is_the_papers(self):
        experiment = preset("ffhq64")
        network, training = experiment.network, experiment.training
        assert network.shape == (3, 64, 64)
        assert (network.channels, network.num_blocks, network.time_dim) == ((128, 256, 256, 256), 4, 512)
        assert (network.map_sizes[-1], network.windows) == ((8, 8), ((8, 8),) * 4)
        assert (network.num_classes, network.dropout, network.augment_dim) == (0, 0.05, 9)
        assert (training.images, training.batch_size, training.lr) == (200_000_000, 256, 2e-4)
        assert (experiment.sampling.sampler, experiment.sampling.steps, experiment.denoiser) == (
            "heun",
            40,
            EDMConfig(sigma_data=0.5),
        )

    @pytest.mark.parametrize("name", ["cifar10", "ffhq64"])
    def test_papers_training_is_edms(self, name):
        training = preset(name).training
        assert (training.ema_halflife, training.ema_rampup, training.warmup_images) == (500_000, 0.05, 10_000_000)
        assert (training.loss_reduction, training.grad_clip, training.flip) == ("sum", 0, False)

    @pytest.mark.parametrize(
        ("name", "shape"), [("digits", (1, 8, 8)), ("mnist", (1, 28, 28)), ("cifar10-t4", (3, 32, 32))]
    )
    def test_small_presets_draw_ten_classes(self, name, shape):
        assert (preset(name).network.shape, preset(name).network.num_classes) == (shape, 10)

    @pytest.mark.parametrize("name", PRESETS)
    def test_a_preset_knows_its_name(self, name):
        assert preset(name).name == name

    @pytest.mark.parametrize("block", ["diffit", "dit"])
    def test_latent_presets_are_of_dits_sizes_and_the_papers_settings(self, block):
        sizes = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}
        for size, (depth, width, heads) in sizes.items():
            experiment = preset(f"{block}-{size}-2")
            network, training, sampling = experiment.network, experiment.training, experiment.sampling
            assert (network.block, network.depth, network.width, network.num_heads) == (block, depth, width, heads)
            assert (network.shape, network.patch_size, network.num_classes) == ((4, 32, 32), 2, 1000)
            assert (training.lr, training.batch_size) == (3e-4 if block == "diffit" else 1e-4, 256)
            assert 0.5 ** (256 / training.ema_halflife) == pytest.approx(0.9999, abs=1e-8)
            assert (training.ema_rampup, training.label_dropout, training.flip) == (None, 0.1, True)
            assert experiment.denoiser == VPConfig()
            assert (sampling.method, sampling.steps) == ("ddpm eta=1.0 variance=learned", 250)
            assert sampling.guided == "4.4 power-cosine power=4.0 channels=3"

    def test_a_latent_preset_takes_the_other_block_and_another_size(self):
        experiment = preset("diffit-s-2").override(
            block="dit", image_size=(64, 64), patch_size=4, learned_variance=False, variance="small"
        )
        assert (experiment.network.block, experiment.network.grid) == ("dit", (16, 16))
        assert experiment.training == preset("diffit-s-2").training

    def test_unknown_preset_is_refused_with_the_known_names(self):
        with pytest.raises(DiffitError, match=r"unknown preset 'cifar'; did you mean cifar10"):
            preset("cifar")
        with pytest.raises(DiffitError, match=r"unknown preset 'zzz'; the presets are celebhq, cifar10, "):
            preset("zzz")


class TestDerived:
    @pytest.mark.parametrize(
        ("image_size", "windows"),
        [((16, 16), ((4, 4), (4, 4), (4, 4))), ((8, 4), ((4, 4), (4, 2), (2, 1))), ((4, 32), ((4, 4), (2, 4), (1, 4)))],
    )
    def test_windows_clamp_to_the_map_on_each_side(self, image_size, windows):
        assert ImageNetworkConfig(image_size=image_size, window_size=4).windows == windows

    @pytest.mark.parametrize(
        ("sigma_data", "mean"), [(0.5, -1.2), (0.75, -1.2 + math.log(1.5)), (1.0, -1.2 + math.log(2))]
    )
    def test_mean_log_noise_follows_the_datas_deviation(self, sigma_data, mean):
        assert EDMConfig(sigma_data=sigma_data).mean_log_sigma == pytest.approx(mean)
        assert EDMConfig(sigma_data=sigma_data, p_mean=0.5).mean_log_sigma == pytest.approx(mean + 1.7)

    def test_a_plan_in_images_ends_with_a_whole_step(self):
        training = TrainingConfig(images=1000, batch_size=128)
        assert (training.total_steps, training.total_images) == (8, 1024)

    def test_a_plan_in_steps_replaces_the_images(self):
        training = TrainingConfig(images=1000, batch_size=128, max_steps=3)
        assert (training.total_steps, training.total_images) == (3, 384)

    @pytest.mark.parametrize(("images", "warmup"), [(100, 5), (200_000_000, 10_000_000), (900_000_000, 10_000_000)])
    def test_warm_up_is_a_twentieth_and_at_most_ten_million_images(self, images, warmup):
        assert TrainingConfig(images=images, batch_size=1).warmup_images == warmup


REFUSED = [
    (ImageNetworkConfig, {"in_channels": 2}),
    (ImageNetworkConfig, {"patch": 0}),
    (ImageNetworkConfig, {"patch": 3}),
    (ImageNetworkConfig, {"patch": 16}),
    (ImageNetworkConfig, {"width": 0}),
    (ImageNetworkConfig, {"width": 18, "num_heads": 2}),
    (ImageNetworkConfig, {"width": 20, "num_heads": 8}),
    (ImageNetworkConfig, {"width": 48.5}),
    (ImageNetworkConfig, {"num_blocks": True}),
    (ImageNetworkConfig, {"num_heads": -4}),
    (ImageNetworkConfig, {"num_blocks": 0}),
    (ImageNetworkConfig, {"num_blocks": 1.5}),
    (ImageNetworkConfig, {"time_dim": 0}),
    (ImageNetworkConfig, {"mlp_ratio": 0.0}),
    (ImageNetworkConfig, {"dropout": 1.0}),
    (ImageNetworkConfig, {"dropout": -0.1}),
    (ImageNetworkConfig, {"num_classes": -1}),
    (ImageNetworkConfig, {"num_classes": "10"}),
    (ImageNetworkConfig, {"augment_dim": 3}),
    (ImageNetworkConfig, {"channel_mult": ()}),
    (ImageNetworkConfig, {"channel_mult": (1, 0)}),
    (ImageNetworkConfig, {"channel_mult": 2}),
    (ImageNetworkConfig, {"image_size": 32}),
    (ImageNetworkConfig, {"image_size": (32,)}),
    (ImageNetworkConfig, {"image_size": (32, 30)}),
    (ImageNetworkConfig, {"image_size": (0, 32)}),
    (ImageNetworkConfig, {"window_size": 0}),
    (ImageNetworkConfig, {"window_size": 3}),
    (TransformerConfig, {"image_size": (32, 31)}),
    (TransformerConfig, {"in_channels": 0}),
    (TransformerConfig, {"block": "vit"}),
    (TransformerConfig, {"patch_size": 3}),
    (TransformerConfig, {"width": 18, "num_heads": 2}),
    (TransformerConfig, {"width": 20, "num_heads": 8}),
    (TransformerConfig, {"depth": 0}),
    (TransformerConfig, {"mlp_ratio": 0.0}),
    (TransformerConfig, {"dropout": 1.0}),
    (TransformerConfig, {"num_classes": -1}),
    (TransformerConfig, {"augment_dim": 3}),
    (TransformerConfig, {"learned_variance": 1}),
    (EDMConfig, {"sigma_data": 0.0}),
    (EDMConfig, {"p_mean": 80.0}),
    (EDMConfig, {"p_std": -1.0}),
    (EDMConfig, {"sigma_min": 0.0}),
    (EDMConfig, {"sigma_max": 0.001}),
    (VPConfig, {"prediction": "noise"}),
    (VPConfig, {"noise_schedule": "sigmoid"}),
    (VPConfig, {"timesteps": 20}),
    (VPConfig, {"loss": "mse"}),
    (VPConfig, {"sigma_data": -1.0}),
    (TrainingConfig, {"images": 0}),
    (TrainingConfig, {"max_steps": 0}),
    (TrainingConfig, {"minutes": 0.0}),
    (TrainingConfig, {"batch_size": 0}),
    (TrainingConfig, {"batch_size": 10, "accumulate": 3}),
    (TrainingConfig, {"accumulate": 0}),
    (TrainingConfig, {"lr": 0.0}),
    (TrainingConfig, {"lr": math.nan}),
    (TrainingConfig, {"lr": "1e-3"}),
    (TrainingConfig, {"ema_halflife": 0.0}),
    (TrainingConfig, {"ema_rampup": 0.0}),
    (TrainingConfig, {"loss_reduction": "max"}),
    (TrainingConfig, {"grad_clip": -1.0}),
    (TrainingConfig, {"lr_decay": 1.5}),
    (TrainingConfig, {"muon": -1.0}),
    (TrainingConfig, {"augment": 1.5}),
    (VPConfig, {"sigma_min": 0.0}),
    (VPConfig, {"sigma_max": -1.0}),
    (FlowConfig, {"prediction": "eps"}),
    (FlowConfig, {"times": "cosine"}),
    (FlowConfig, {"shift": 0.0}),
    (FlowConfig, {"sigma_min": 2.0, "sigma_max": 1.0}),
    (TrainingConfig, {"threads": 0}),
    (TrainingConfig, {"keep": -1}),
    (TrainingConfig, {"memory_gb": 0.0}),
    (TrainingConfig, {"label_dropout": 1.1}),
    (TrainingConfig, {"flip": 1}),
    (TrainingConfig, {"precision": "fp16"}),
    (TrainingConfig, {"logger": "mlflow"}),
    (TrainingConfig, {"workers": -1}),
    (TrainingConfig, {"workers": 1_000_000}),
    (TrainingConfig, {"threads": 100_000}),
    (TrainingConfig, {"batch_size": 1_000_000_000}),
    (TrainingConfig, {"report_minutes": 0.0}),
    (TrainingConfig, {"seed": "a"}),
    (TrainingConfig, {"seed": -(2**63)}),
    (TrainingConfig, {"batch_size": 10**30}),
    (SamplingConfig, {"steps": 10**30}),
    (SamplingConfig, {"sampler": "hen"}),
    (SamplingConfig, {"steps": 1}),
    (SamplingConfig, {"steps": 18.0}),
    (SamplingConfig, {"guidance": "x"}),
    (SamplingConfig, {"churn": -1.0}),
    (SamplingConfig, {"eta": 1.5}),
    (SamplingConfig, {"variance": "huge"}),
    (SamplingConfig, {"guidance_schedule": "late"}),
    (SamplingConfig, {"guidance_power": 0.0}),
    (SamplingConfig, {"guidance_channels": 0}),
    (SamplingConfig, {"guidance_tolerance": -0.1}),
    (SamplingConfig, {"guidance_low": -1.0}),
    (SamplingConfig, {"guidance_low": 2.0, "guidance_high": 1.0}),
]


@pytest.mark.parametrize(
    ("part", "values"), REFUSED, ids=lambda case: str(case) if isinstance(case, dict) else case.__name__
)
def test_a_bad_value_is_refused_by_its_field_its_value_and_the_remedy(part, values):
    with pytest.raises(DiffitError) as refusal:
        part(**values)
    message, remedy = str(refusal.value).split("; ")
    assert remedy.startswith("give ")
    for field, value in values.items():
        assert field in message
        assert repr(value) in message


@pytest.mark.parametrize("part", [part for kinds in ExperimentConfig.PARTS.values() for part in kinds])
def test_every_field_but_a_switch_has_a_case_above(part):
    refused = {name for kind, values in REFUSED if kind is part for name in values}
    assert {f.name for f in fields(part) if f.type is not bool} - refused == set()


class TestRecipe:
    @pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"celebhq", "digits-dit", "mnist", "mnist-dit-s-8"}))
    def test_every_field_can_be_overridden_and_nothing_else_changes(self, name):
        experiment = preset(name)
        alike = {
            ("image", "edm"): ("ffhq64", "cifar10"),
            ("transformer", "edm"): ("latent-digits", "mnist-dit"),
            ("transformer", "vp"): ("dit-xl-2", "diffit-s-2"),
        }[experiment.network.kind, experiment.denoiser.kind]
        other = preset(alike[name == alike[0]])
        for part, field, value in settings(other):
            changed = experiment.override(**{field: value})
            before, after = (asdict(r) if part is None else asdict(getattr(r, part)) for r in (experiment, changed))
            assert after == {**before, field: value}

    def test_an_override_reaches_several_parts_at_once_and_leaves_the_preset_alone(self):
        changed = preset("digits").override(name="wide", width=96, lr=1e-4, sigma_max=40.0, steps=9)
        assert (changed.name, changed.network.width, changed.training.lr) == ("wide", 96, 1e-4)
        assert (changed.denoiser.sigma_max, changed.sampling.steps) == (40.0, 9)
        assert preset("digits").network.width == 32

    def test_an_override_is_checked(self):
        with pytest.raises(DiffitError, match="window_size 3"):
            preset("digits").override(window_size=3)

    @pytest.mark.parametrize(
        ("field", "hint"),
        [("widht", "did you mean width"), ("zzz", "the fields are name, data, crop, skip_bad, vae")],
    )
    def test_an_unknown_field_is_refused_with_a_hint(self, field, hint):
        with pytest.raises(DiffitError, match=f"unknown field '{field}'; {hint}"):
            preset("digits").override(**{field: 1})

    def test_a_part_can_be_of_another_kind_and_says_so_where_its_field_is_asked_for(self):
        assert preset("digits").override(denoiser="vp", timesteps=250).denoiser == VPConfig(timesteps=250)
        with pytest.raises(DiffitError, match=r"timesteps is a field of denoiser '?vp'?; give denoiser=vp"):
            preset("digits").override(timesteps=250)

    @pytest.mark.parametrize("values", [{"crop": "round"}, {"skip_bad": "yes"}, {"data": 3}])
    def test_bad_values_outside_the_parts_are_refused_too(self, values):
        ((name, value),) = values.items()
        with pytest.raises(DiffitError, match=f"{name} is {value!r}; give "):
            preset("digits").override(**values)

    def test_field_names_are_unique_across_the_parts(self):
        for experiment in PRESETS.values():
            names = [field for _, field, _ in settings(experiment)]
            assert len(names) == len(set(names))

    @pytest.mark.parametrize("name", PRESETS)
    @pytest.mark.parametrize("denoiser", ["edm", "vp", "flow"])
    def test_survives_json(self, name, denoiser):
        experiment = preset(name)
        if experiment.network.learned_variance and denoiser != "vp":
            experiment = experiment.override(learned_variance=False, sampler="heun")
        experiment = experiment.override(denoiser=denoiser, sigma_max=9.0, ema_rampup=None, minutes=0.5, seed=3)
        assert ExperimentConfig.from_dict(json.loads(json.dumps(experiment.to_dict()))) == experiment

    def test_a_list_means_a_tuple(self):
        assert preset("digits").override(image_size=[16, 16]) == preset("digits").override(image_size=(16, 16))

    def test_is_a_value(self):
        assert hash(preset("digits")) == hash(replace(preset("digits")))
        with pytest.raises(FrozenInstanceError):
            preset("digits").network.width = 3
