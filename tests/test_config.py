"""Settings: the presets' values, what is refused and how, and the ways there and back."""

import json
import math
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace

import pytest

from diffit_lib.config.diffusion import EDM, VP, Sampling
from diffit_lib.config.experiment import Recipe
from diffit_lib.config.models import ImageNetwork, Transformer
from diffit_lib.config.presets import PRESETS, preset
from diffit_lib.config.training import Training
from diffit_lib.utils.errors import DiffitError


def settings(recipe):
    """(part, field, value) of all that a recipe sets."""
    for part in fields(recipe):
        value = getattr(recipe, part.name)
        if is_dataclass(value):
            yield from ((part.name, inner.name, getattr(value, inner.name)) for inner in fields(value))
        else:
            yield None, part.name, value


class TestPresets:
    def test_cifar10_is_the_papers(self):
        recipe = preset("cifar10")
        network, training = recipe.network, recipe.training
        assert network.shape == (3, 32, 32)
        assert (network.channels, network.num_blocks, network.time_dim) == ((128, 256, 256), 4, 512)
        assert (network.map_sizes, network.windows) == (((32, 32), (16, 16), (8, 8)), ((4, 4),) * 3)
        assert (network.num_classes, network.dropout, network.augment_dim) == (0, 0.13, 9)
        assert (training.images, training.batch_size, training.lr) == (200_000_000, 512, 1e-3)
        assert (recipe.sampling.sampler, recipe.sampling.steps, recipe.denoiser) == ("heun", 18, EDM(sigma_data=0.5))

    def test_ffhq64_is_the_papers(self):
        recipe = preset("ffhq64")
        network, training = recipe.network, recipe.training
        assert network.shape == (3, 64, 64)
        assert (network.channels, network.num_blocks, network.time_dim) == ((128, 256, 256, 256), 4, 512)
        assert (network.map_sizes[-1], network.windows) == ((8, 8), ((8, 8),) * 4)
        assert (network.num_classes, network.dropout, network.augment_dim) == (0, 0.05, 9)
        assert (training.images, training.batch_size, training.lr) == (200_000_000, 256, 2e-4)
        assert (recipe.sampling.sampler, recipe.sampling.steps, recipe.denoiser) == ("heun", 40, EDM(sigma_data=0.5))

    @pytest.mark.parametrize("name", ["cifar10", "ffhq64"])
    def test_papers_training_is_edms(self, name):
        training = preset(name).training
        assert (training.ema_halflife, training.ema_rampup, training.warmup_images) == (500_000, 0.05, 10_000_000)
        assert (training.loss_reduction, training.grad_clip, training.flip) == ("sum", 0, False)

    @pytest.mark.parametrize(
        ("name", "shape"), [("digits", (1, 8, 8)), ("mnist", (1, 32, 32)), ("cifar10-t4", (3, 32, 32))]
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
            recipe = preset(f"{block}-{size}-2")
            network, training, sampling = recipe.network, recipe.training, recipe.sampling
            assert (network.block, network.depth, network.width, network.num_heads) == (block, depth, width, heads)
            assert (network.shape, network.patch_size, network.num_classes) == ((4, 32, 32), 2, 1000)
            assert (training.lr, training.batch_size) == (3e-4 if block == "diffit" else 1e-4, 256)
            assert 0.5 ** (256 / training.ema_halflife) == pytest.approx(0.9999, abs=1e-8)
            assert (training.ema_rampup, training.label_dropout, training.flip) == (None, 0.1, True)
            assert recipe.denoiser == VP()
            assert (sampling.method, sampling.steps) == ("ddpm eta=1.0 variance=learned", 250)
            assert sampling.guided == "4.4 power-cosine power=4.0 channels=3"

    def test_a_latent_preset_takes_the_other_block_and_another_size(self):
        recipe = preset("diffit-s-2").override(
            block="dit", image_size=(64, 64), patch_size=4, learned_variance=False, variance="small"
        )
        assert (recipe.network.block, recipe.network.grid) == ("dit", (16, 16))
        assert recipe.training == preset("diffit-s-2").training

    def test_unknown_preset_is_refused_with_the_known_names(self):
        with pytest.raises(DiffitError, match=r"unknown preset 'cifar'.*digits, mnist, .*cifar10, cifar10-t4, ffhq64"):
            preset("cifar")


class TestDerived:
    @pytest.mark.parametrize(
        ("image_size", "windows"),
        [((16, 16), ((4, 4), (4, 4), (4, 4))), ((8, 4), ((4, 4), (4, 2), (2, 1))), ((4, 32), ((4, 4), (2, 4), (1, 4)))],
    )
    def test_windows_clamp_to_the_map_on_each_side(self, image_size, windows):
        assert ImageNetwork(image_size=image_size, window_size=4).windows == windows

    @pytest.mark.parametrize(
        ("sigma_data", "p_mean"), [(0.5, -1.2), (0.75, -1.2 + math.log(1.5)), (1.0, -1.2 + math.log(2))]
    )
    def test_mean_log_noise_follows_the_datas_deviation(self, sigma_data, p_mean):
        assert EDM(sigma_data=sigma_data).p_mean == pytest.approx(p_mean)

    def test_a_plan_in_images_ends_with_a_whole_step(self):
        training = Training(images=1000, batch_size=128)
        assert (training.total_steps, training.total_images) == (8, 1024)

    def test_a_plan_in_steps_replaces_the_images(self):
        training = Training(images=1000, batch_size=128, max_steps=3)
        assert (training.total_steps, training.total_images) == (3, 384)

    @pytest.mark.parametrize(("images", "warmup"), [(100, 5), (200_000_000, 10_000_000), (900_000_000, 10_000_000)])
    def test_warm_up_is_a_twentieth_and_at_most_ten_million_images(self, images, warmup):
        assert Training(images=images, batch_size=1).warmup_images == warmup


REFUSED = [
    (ImageNetwork, {"in_channels": 2}),
    (ImageNetwork, {"width": 0}),
    (ImageNetwork, {"width": 18, "num_heads": 2}),
    (ImageNetwork, {"width": 20, "num_heads": 8}),
    (ImageNetwork, {"width": 48.5}),
    (ImageNetwork, {"num_blocks": True}),
    (ImageNetwork, {"num_heads": -4}),
    (ImageNetwork, {"num_blocks": 0}),
    (ImageNetwork, {"num_blocks": 1.5}),
    (ImageNetwork, {"time_dim": 0}),
    (ImageNetwork, {"mlp_ratio": 0.0}),
    (ImageNetwork, {"dropout": 1.0}),
    (ImageNetwork, {"dropout": -0.1}),
    (ImageNetwork, {"num_classes": -1}),
    (ImageNetwork, {"num_classes": "10"}),
    (ImageNetwork, {"augment_dim": 3}),
    (ImageNetwork, {"channel_mult": ()}),
    (ImageNetwork, {"channel_mult": (1, 0)}),
    (ImageNetwork, {"channel_mult": 2}),
    (ImageNetwork, {"image_size": 32}),
    (ImageNetwork, {"image_size": (32,)}),
    (ImageNetwork, {"image_size": (32, 30)}),
    (ImageNetwork, {"image_size": (0, 32)}),
    (ImageNetwork, {"window_size": 0}),
    (ImageNetwork, {"window_size": 3}),
    (Transformer, {"image_size": (32, 31)}),
    (Transformer, {"in_channels": 0}),
    (Transformer, {"block": "vit"}),
    (Transformer, {"patch_size": 3}),
    (Transformer, {"width": 18, "num_heads": 2}),
    (Transformer, {"width": 20, "num_heads": 8}),
    (Transformer, {"depth": 0}),
    (Transformer, {"mlp_ratio": 0.0}),
    (Transformer, {"dropout": 1.0}),
    (Transformer, {"num_classes": -1}),
    (Transformer, {"augment_dim": 3}),
    (Transformer, {"learned_variance": 1}),
    (EDM, {"sigma_data": 0.0}),
    (EDM, {"p_std": -1.0}),
    (EDM, {"sigma_min": 0.0}),
    (EDM, {"sigma_max": 0.001}),
    (VP, {"prediction": "noise"}),
    (VP, {"noise_schedule": "sigmoid"}),
    (VP, {"timesteps": 20}),
    (VP, {"loss": "mse"}),
    (VP, {"sigma_data": -1.0}),
    (Training, {"images": 0}),
    (Training, {"max_steps": 0}),
    (Training, {"minutes": 0.0}),
    (Training, {"batch_size": 0}),
    (Training, {"batch_size": 10, "accumulate": 3}),
    (Training, {"accumulate": 0}),
    (Training, {"lr": 0.0}),
    (Training, {"lr": math.nan}),
    (Training, {"lr": "1e-3"}),
    (Training, {"ema_halflife": 0.0}),
    (Training, {"ema_rampup": 0.0}),
    (Training, {"loss_reduction": "max"}),
    (Training, {"grad_clip": -1.0}),
    (Training, {"lr_decay": 1.5}),
    (Training, {"augment": 1.5}),
    (VP, {"sigma_min": 0.0}),
    (VP, {"sigma_max": -1.0}),
    (Training, {"threads": 0}),
    (Training, {"keep": -1}),
    (Training, {"memory_gb": 0.0}),
    (Training, {"label_dropout": 1.1}),
    (Training, {"flip": 1}),
    (Training, {"precision": "fp16"}),
    (Training, {"workers": -1}),
    (Training, {"report_minutes": 0.0}),
    (Training, {"seed": "a"}),
    (Sampling, {"sampler": "hen"}),
    (Sampling, {"steps": 1}),
    (Sampling, {"steps": 18.0}),
    (Sampling, {"guidance": "x"}),
    (Sampling, {"churn": -1.0}),
    (Sampling, {"eta": 1.5}),
    (Sampling, {"variance": "huge"}),
    (Sampling, {"guidance_schedule": "late"}),
    (Sampling, {"guidance_power": 0.0}),
    (Sampling, {"guidance_channels": 0}),
    (Sampling, {"guidance_tolerance": -0.1}),
    (Sampling, {"guidance_low": -1.0}),
    (Sampling, {"guidance_low": 2.0, "guidance_high": 1.0}),
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


@pytest.mark.parametrize("part", [part for kinds in Recipe.PARTS.values() for part in kinds])
def test_every_field_but_a_switch_has_a_case_above(part):
    refused = {name for kind, values in REFUSED if kind is part for name in values}
    assert {f.name for f in fields(part) if f.type is not bool} - refused == set()


class TestRecipe:
    @pytest.mark.parametrize("name", PRESETS)
    def test_every_field_can_be_overridden_and_nothing_else_changes(self, name):
        recipe = preset(name)
        alike = {
            ("image", "edm"): ("ffhq64", "mnist"),
            ("transformer", "edm"): ("latent-digits", "mnist-dit"),
            ("transformer", "vp"): ("dit-xl-2", "diffit-s-2"),
        }[recipe.network.kind, recipe.denoiser.kind]
        other = preset(alike[name == alike[0]])
        for part, field, value in settings(other):
            changed = recipe.override(**{field: value})
            before, after = (asdict(r) if part is None else asdict(getattr(r, part)) for r in (recipe, changed))
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
        assert preset("digits").override(denoiser="vp", timesteps=250).denoiser == VP(timesteps=250)
        with pytest.raises(DiffitError, match=r"timesteps is a field of denoiser '?vp'?; give denoiser=vp"):
            preset("digits").override(timesteps=250)

    @pytest.mark.parametrize("values", [{"crop": "round"}, {"skip_bad": "yes"}, {"data": 3}])
    def test_bad_values_outside_the_parts_are_refused_too(self, values):
        ((name, value),) = values.items()
        with pytest.raises(DiffitError, match=f"{name} is {value!r}; give "):
            preset("digits").override(**values)

    def test_field_names_are_unique_across_the_parts(self):
        for recipe in PRESETS.values():
            names = [field for _, field, _ in settings(recipe)]
            assert len(names) == len(set(names))

    @pytest.mark.parametrize("name", PRESETS)
    @pytest.mark.parametrize("denoiser", ["edm", "vp"])
    def test_survives_json(self, name, denoiser):
        recipe = preset(name)
        if recipe.network.learned_variance and denoiser == "edm":
            recipe = recipe.override(learned_variance=False, sampler="heun")
        recipe = recipe.override(denoiser=denoiser, sigma_data=0.6, ema_rampup=None, minutes=0.5, seed=3)
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe

    def test_a_list_means_a_tuple(self):
        assert preset("digits").override(image_size=[16, 16]) == preset("digits").override(image_size=(16, 16))

    def test_is_a_value(self):
        assert hash(preset("digits")) == hash(replace(preset("digits")))
        with pytest.raises(FrozenInstanceError):
            preset("digits").network.width = 3
