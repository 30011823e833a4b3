"""The presets: recipes as values, the paper's and ours for small machines."""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

from diffit_lib.config.diffusion import EDMConfig, SamplingConfig, VPConfig
from diffit_lib.config.experiment import ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.models import AutoencoderConfig, ImageNetworkConfig, TransformerConfig
from diffit_lib.config.training import TrainingConfig, VAELossConfig
from diffit_lib.utils.errors import DiffitError, check

_EDM_TRAINING = TrainingConfig(images=200_000_000, loss_reduction="sum", grad_clip=0.0, workers=4)
_T4 = TrainingConfig(images=2_000_000, minutes=30, batch_size=128, ema_halflife=50_000, flip=True, workers=2)

PRESETS: dict[str, ExperimentConfig] = {
    # Under three minutes on one CPU core: scikit-learn's 8x8 scans, class-conditional. A narrow network that sees many
    # images does better here than a wide one that sees few, and some fresh noise while sampling mends small errors.
    "digits": ExperimentConfig(
        name="digits",
        data="digits",
        network=ImageNetworkConfig(
            image_size=(8, 8), in_channels=1, width=32, channel_mult=(1, 3), num_blocks=1, time_dim=128, num_classes=10
        ),
        denoiser=EDMConfig(sigma_min=0.03, sigma_max=10.0),  # 64 pixels drown in less noise than 3072 do
        training=TrainingConfig(
            images=96_000,
            minutes=2.8,
            batch_size=32,
            lr=3e-3,
            lr_decay=0.5,
            ema_halflife=20_000,
            threads=1,
            report_minutes=0.5,
        ),
        sampling=SamplingConfig(churn=7.0),
    ),
    # An hour and a half on one CPU core (precision=bf16-mixed where it has it), class-conditional: 28x28 digits padded
    # to 32x32. Guidance makes up for what so short a training leaves undecided.
    "mnist": ExperimentConfig(
        name="mnist",
        data="mnist",
        network=ImageNetworkConfig(
            in_channels=1, width=32, channel_mult=(1, 2, 4), num_blocks=1, time_dim=128, num_classes=10
        ),
        denoiser=EDMConfig(sigma_min=0.02, sigma_max=20.0),
        training=TrainingConfig(images=220_000, batch_size=32, lr=2e-3, lr_decay=0.5, ema_halflife=50_000),
        sampling=SamplingConfig(churn=4.0, guidance=2.0),
    ),
    # DiT on the same pixels, at about the same cost per image: what the U-shape is to be compared with.
    "mnist-dit": ExperimentConfig(
        name="mnist-dit",
        data="mnist",
        network=TransformerConfig(
            block="dit", in_channels=1, patch_size=4, width=192, depth=8, num_heads=6, num_classes=10
        ),
        denoiser=EDMConfig(sigma_min=0.02, sigma_max=20.0),
        training=TrainingConfig(images=128_000, batch_size=32, lr=5e-4, lr_decay=0.5, ema_halflife=20_000),
        sampling=SamplingConfig(churn=4.0, guidance=2.0),
    ),
    # At most four minutes on one CPU core, class-conditional: the latents, 4x4 places of two numbers, of `vae-digits`.
    "latent-digits": ExperimentConfig(
        name="latent-digits",
        data="digits",
        vae="vae-digits",
        network=TransformerConfig(
            image_size=(4, 4), in_channels=2, patch_size=1, width=96, depth=4, num_heads=4, num_classes=10
        ),
        denoiser=EDMConfig(sigma_min=0.03, sigma_max=20.0),
        training=TrainingConfig(
            images=64_000,
            minutes=4.0,
            batch_size=32,
            lr=2e-3,
            lr_decay=0.5,
            ema_halflife=10_000,
            threads=1,
            report_minutes=0.5,
        ),
        sampling=SamplingConfig(churn=7.0, guidance=1.5),
    ),
    # Half an hour on a T4 each, once their autoencoders are trained, class-conditional: 16x16 places of four numbers.
    "latent-cifar10": ExperimentConfig(
        name="latent-cifar10",
        data="cifar10",
        vae="vae-cifar10",
        network=TransformerConfig(image_size=(16, 16), width=256, depth=8, num_heads=4, num_classes=10),
        training=replace(_T4, images=4_000_000, lr=5e-4),
        sampling=SamplingConfig(guidance=2.0),
    ),
    "latent-imagenette128": ExperimentConfig(
        name="latent-imagenette128",
        data="imagenette",
        vae="vae-imagenette128",
        network=TransformerConfig(image_size=(16, 16), width=384, depth=12, num_heads=6, num_classes=10),
        training=replace(_T4, lr=3e-4),
        sampling=SamplingConfig(guidance=2.0),
    ),
    # The paper's CIFAR-10 model (appendix H.1 and I.1; EDM's recipe): days on eight data-centre GPUs.
    "cifar10": ExperimentConfig(
        name="cifar10",
        data="cifar10",
        network=ImageNetworkConfig(dropout=0.13, augment_dim=9),
        denoiser=EDMConfig(sigma_data=0.5),
        training=replace(_EDM_TRAINING, batch_size=512, lr=1e-3, augment=0.12),
    ),
    # Half an hour on a T4, class-conditional.
    "cifar10-t4": ExperimentConfig(
        name="cifar10-t4",
        data="cifar10",
        network=ImageNetworkConfig(width=64, channel_mult=(1, 2, 2), num_blocks=2, time_dim=256, num_classes=10),
        training=_T4,
    ),
    # The paper's FFHQ-64 model: the third level of windows covers a quarter of its map, the last one all of it.
    "ffhq64": ExperimentConfig(
        name="ffhq64",
        data="ffhq64",
        network=ImageNetworkConfig(
            image_size=(64, 64), channel_mult=(1, 2, 2, 2), window_size=8, dropout=0.05, augment_dim=9
        ),
        denoiser=EDMConfig(sigma_data=0.5),
        training=replace(_EDM_TRAINING, batch_size=256, lr=2e-4, augment=0.15),
        sampling=SamplingConfig(steps=40),
    ),
}


_SIZES = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}  # depth, width, heads


def latent(block: Literal["diffit", "dit"], size: str) -> ExperimentConfig:
    """Class-conditional ImageNet at 256x256 in the latents of Stable Diffusion's autoencoder (appendix H.2 and I.2).

    DiT-XL/2 and its smaller sisters have DiT's own learning rate, and DiffiT's schedule of guidance too; to compare
    the two blocks at equal settings, train one of these presets with either block.
    """
    depth, width, heads = _SIZES[size]
    return ExperimentConfig(
        name=f"{block}-{size}-2",
        data="imagenet",  # no data set by this name: give the path of a folder
        crop="adm",
        vae="stabilityai/sd-vae-ft-ema",
        network=TransformerConfig(
            block=block, depth=depth, width=width, num_heads=heads, num_classes=1000, learned_variance=True
        ),
        denoiser=VPConfig(),
        training=TrainingConfig(
            images=256_000_000,  # the paper's one mention of a length: a million steps
            batch_size=256,
            lr=3e-4 if block == "diffit" else 1e-4,
            ema_halflife=1_774_357,  # decay 0.9999 a step
            ema_rampup=None,
            grad_clip=0.0,
            flip=True,
            workers=4,
        ),
        sampling=SamplingConfig(
            sampler="ddpm",
            steps=250,
            variance="learned",
            guidance=4.4,
            guidance_schedule="power-cosine",
            guidance_channels=3,
        ),
    )


PRESETS |= {
    experiment.name: experiment
    for block in ("diffit", "dit")
    for experiment in (latent(block, size) for size in _SIZES)
}


def preset(name: str) -> ExperimentConfig:
    """A preset by name."""
    if name not in PRESETS:
        raise DiffitError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]


VAE_PRESETS: dict[str, VAEExperimentConfig] = {
    # A minute on one CPU core: the 8x8 digits become 4x4 places of two numbers.
    "vae-digits": VAEExperimentConfig(
        name="vae-digits",
        data="digits",
        network=AutoencoderConfig(
            image_size=(8, 8),
            in_channels=1,
            z_channels=2,
            channels=(32, 48),
            down=(True,),
            attn=(False, False),
            mid_attn=False,
            num_layers=1,
        ),
        loss=VAELossConfig(kl_weight=3e-3, perceptual_weight=0.0, disc_weight=0.0),
        training=TrainingConfig(
            images=20_000,
            minutes=3.0,
            batch_size=32,
            lr=2e-3,
            lr_decay=0.5,
            ema_halflife=5_000,
            threads=1,
            report_minutes=0.5,
        ),
    ),
    # Half an hour on a T4: 32x32 -> 16x16x4.
    "vae-cifar10": VAEExperimentConfig(
        name="vae-cifar10",
        data="cifar10",
        network=AutoencoderConfig(
            image_size=(32, 32),
            channels=(64, 128, 128),
            down=(True, False),
            attn=(False, False, False),
            num_layers=1,
        ),
        loss=VAELossConfig(disc_start=1_500_000),
        training=TrainingConfig(
            images=3_000_000,
            minutes=30,
            batch_size=128,
            lr=4e-4,
            lr_decay=0.3,
            ema_halflife=50_000,
            flip=True,
            workers=2,
        ),
    ),
    # Half an hour on a T4, hours on a CPU: 128x128 -> 16x16x4. Two by two pixels enter as one place, for most of the
    # time would go into the full resolution otherwise.
    "vae-imagenette128": VAEExperimentConfig(
        name="vae-imagenette128",
        data="imagenette",
        network=AutoencoderConfig(
            image_size=(128, 128),
            patch=2,
            channels=(48, 96, 192),
            down=(True, True),
            attn=(False, False, False),
            num_layers=1,
        ),
        loss=VAELossConfig(disc_start=200_000, disc_width=32),
        training=TrainingConfig(
            images=400_000,
            minutes=30,
            batch_size=16,
            lr=4e-4,
            lr_decay=0.3,
            ema_halflife=10_000,
            flip=True,
            workers=2,
        ),
    ),
    # 128x128 -> 32x32x4, as for CelebA-HQ: half a day on a data-centre GPU.
    "kl-f4": VAEExperimentConfig(
        name="kl-f4",
        data="celeba",
        network=AutoencoderConfig(
            image_size=(128, 128),
            channels=(128, 256, 512),
            down=(True, True),
            attn=(False, False, False),
        ),
        loss=VAELossConfig(disc_start=1_000_000),
        training=TrainingConfig(images=10_000_000, batch_size=32, lr=1e-4, ema_halflife=50_000, flip=True, workers=4),
    ),
    # Stable Diffusion's: 256x256 -> 32x32x4.
    "kl-f8": VAEExperimentConfig(
        name="kl-f8",
        data="imagenette",
        loss=VAELossConfig(disc_start=1_000_000),
        training=TrainingConfig(images=10_000_000, batch_size=16, lr=7e-5, ema_halflife=50_000, flip=True, workers=4),
    ),
}


def vae_preset(name: str) -> VAEExperimentConfig:
    """An autoencoder's preset by name."""
    if name not in VAE_PRESETS:
        raise DiffitError(f"unknown autoencoder preset {name!r}; the presets are {', '.join(VAE_PRESETS)}")
    return VAE_PRESETS[name]


STABLE_DIFFUSION = ("stabilityai/sd-vae-ft-ema", "stabilityai/sd-vae-ft-mse")  # on the Hugging Face hub, MIT

LONGEST = 30.0  # minutes of training, where neither the settings nor the preset name a number


class Choice(NamedTuple):
    """What "auto" means in one space: the data on a GPU, the preset for some data, that for all other data."""

    on_gpu: str
    presets: dict[str, str]
    otherwise: str  # of a path: the one for photographs


IMAGE_SPACE = Choice("cifar10", {name: name for name in ("digits", "mnist", "ffhq64")}, "cifar10-t4")
LATENT_SPACE = Choice("imagenette", {"digits": "latent-digits", "cifar10": "latent-cifar10"}, "latent-imagenette128")


def beside(experiment: ExperimentConfig, vae: str) -> VAEExperimentConfig:
    """The recipe of a latent recipe's autoencoder: of its own preset, or of Stable Diffusion's for the same images."""
    images: dict[str, Any] = {"data": experiment.data, "crop": experiment.crop, "skip_bad": experiment.skip_bad}
    published = VAEExperimentConfig(name=STABLE_DIFFUSION[0], **images)
    if experiment.vae in STABLE_DIFFUSION:
        return published
    own = vae_preset(experiment.vae).override(**images)
    if vae != "sd":
        return own
    check(
        own.network.in_channels == 3, f"VAE is sd, which knows photographs, not {experiment.data}; give train or ready"
    )
    return replace(published, network=AutoencoderConfig(image_size=own.network.image_size))
