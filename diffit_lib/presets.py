"""The presets: recipes as values, the paper's and ours for small machines."""

from dataclasses import replace
from typing import Literal

from diffit_lib.config import EDM, VP, Sampling, Training
from diffit_lib.errors import DiffitError
from diffit_lib.networks import ImageNetwork, Transformer
from diffit_lib.recipe import Recipe

_EDM_TRAINING = Training(images=200_000_000, loss_reduction="sum", grad_clip=0.0, workers=4)
_T4 = Training(images=2_000_000, minutes=30, batch_size=128, ema_halflife=50_000, flip=True, workers=2)

PRESETS: dict[str, Recipe] = {
    # Under three minutes on one CPU core: scikit-learn's 8x8 scans, class-conditional. A narrow network that sees many
    # images does better here than a wide one that sees few, and some fresh noise while sampling mends small errors.
    "digits": Recipe(
        name="digits",
        data="digits",
        network=ImageNetwork(
            image_size=(8, 8), in_channels=1, width=32, channel_mult=(1, 3), num_blocks=1, time_dim=128, num_classes=10
        ),
        denoiser=EDM(sigma_min=0.03, sigma_max=10.0),  # 64 pixels drown in less noise than 3072 do
        training=Training(
            images=96_000,
            minutes=2.8,
            batch_size=32,
            lr=3e-3,
            lr_decay=0.5,
            ema_halflife=20_000,
            threads=1,
            report_minutes=0.5,
        ),
        sampling=Sampling(churn=7.0),
    ),
    # An hour and a half on one CPU core (precision=bf16-mixed where it has it), class-conditional: 28x28 digits padded
    # to 32x32. Guidance makes up for what so short a training leaves undecided.
    "mnist": Recipe(
        name="mnist",
        data="mnist",
        network=ImageNetwork(
            in_channels=1, width=32, channel_mult=(1, 2, 4), num_blocks=1, time_dim=128, num_classes=10
        ),
        denoiser=EDM(sigma_min=0.02, sigma_max=20.0),
        training=Training(images=220_000, batch_size=32, lr=2e-3, lr_decay=0.5, ema_halflife=50_000),
        sampling=Sampling(churn=4.0, guidance=2.0),
    ),
    # DiT on the same pixels, at about the same cost per image: what the U-shape is to be compared with.
    "mnist-dit": Recipe(
        name="mnist-dit",
        data="mnist",
        network=Transformer(block="dit", in_channels=1, patch_size=4, width=192, depth=8, num_heads=6, num_classes=10),
        denoiser=EDM(sigma_min=0.02, sigma_max=20.0),
        training=Training(images=128_000, batch_size=32, lr=5e-4, lr_decay=0.5, ema_halflife=20_000),
        sampling=Sampling(churn=4.0, guidance=2.0),
    ),
    # At most four minutes on one CPU core, class-conditional: the latents, 4x4 places of two numbers, of `vae-digits`.
    "latent-digits": Recipe(
        name="latent-digits",
        data="digits",
        vae="vae-digits",
        network=Transformer(
            image_size=(4, 4), in_channels=2, patch_size=1, width=96, depth=4, num_heads=4, num_classes=10
        ),
        denoiser=EDM(sigma_min=0.03, sigma_max=20.0),
        training=Training(
            images=64_000,
            minutes=4.0,
            batch_size=32,
            lr=2e-3,
            lr_decay=0.5,
            ema_halflife=10_000,
            threads=1,
            report_minutes=0.5,
        ),
        sampling=Sampling(churn=7.0, guidance=1.5),
    ),
    # Half an hour on a T4 each, once their autoencoders are trained, class-conditional: 16x16 places of four numbers.
    "latent-cifar10": Recipe(
        name="latent-cifar10",
        data="cifar10",
        vae="vae-cifar10",
        network=Transformer(image_size=(16, 16), width=256, depth=8, num_heads=4, num_classes=10),
        training=replace(_T4, images=4_000_000, lr=5e-4),
        sampling=Sampling(guidance=2.0),
    ),
    "latent-imagenette128": Recipe(
        name="latent-imagenette128",
        data="imagenette",
        vae="vae-imagenette128",
        network=Transformer(image_size=(16, 16), width=384, depth=12, num_heads=6, num_classes=10),
        training=replace(_T4, lr=3e-4),
        sampling=Sampling(guidance=2.0),
    ),
    # The paper's CIFAR-10 model (appendix H.1 and I.1; EDM's recipe): days on eight data-centre GPUs.
    "cifar10": Recipe(
        name="cifar10",
        data="cifar10",
        network=ImageNetwork(dropout=0.13, augment_dim=9),
        denoiser=EDM(sigma_data=0.5),
        training=replace(_EDM_TRAINING, batch_size=512, lr=1e-3, augment=0.12),
    ),
    # Half an hour on a T4, class-conditional.
    "cifar10-t4": Recipe(
        name="cifar10-t4",
        data="cifar10",
        network=ImageNetwork(width=64, channel_mult=(1, 2, 2), num_blocks=2, time_dim=256, num_classes=10),
        training=_T4,
    ),
    # The paper's FFHQ-64 model: the third level of windows covers a quarter of its map, the last one all of it.
    "ffhq64": Recipe(
        name="ffhq64",
        data="ffhq64",
        network=ImageNetwork(
            image_size=(64, 64), channel_mult=(1, 2, 2, 2), window_size=8, dropout=0.05, augment_dim=9
        ),
        denoiser=EDM(sigma_data=0.5),
        training=replace(_EDM_TRAINING, batch_size=256, lr=2e-4, augment=0.15),
        sampling=Sampling(steps=40),
    ),
}


_SIZES = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}  # depth, width, heads


def latent(block: Literal["diffit", "dit"], size: str) -> Recipe:
    """Class-conditional ImageNet at 256x256 in the latents of Stable Diffusion's autoencoder (appendix H.2 and I.2).

    DiT-XL/2 and its smaller sisters have DiT's own learning rate, and DiffiT's schedule of guidance too; to compare
    the two blocks at equal settings, train one of these presets with either block.
    """
    depth, width, heads = _SIZES[size]
    return Recipe(
        name=f"{block}-{size}-2",
        data="imagenet",  # no data set by this name: give the path of a folder
        crop="adm",
        vae="stabilityai/sd-vae-ft-ema",
        network=Transformer(
            block=block, depth=depth, width=width, num_heads=heads, num_classes=1000, learned_variance=True
        ),
        denoiser=VP(),
        training=Training(
            images=256_000_000,  # the paper's one mention of a length: a million steps
            batch_size=256,
            lr=3e-4 if block == "diffit" else 1e-4,
            ema_halflife=1_774_357,  # decay 0.9999 a step
            ema_rampup=None,
            grad_clip=0.0,
            flip=True,
            workers=4,
        ),
        sampling=Sampling(
            sampler="ddpm",
            steps=250,
            variance="learned",
            guidance=4.4,
            guidance_schedule="power-cosine",
            guidance_channels=3,
        ),
    )


PRESETS |= {recipe.name: recipe for block in ("diffit", "dit") for recipe in (latent(block, size) for size in _SIZES)}


def preset(name: str) -> Recipe:
    """A preset by name."""
    if name not in PRESETS:
        raise DiffitError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
    return PRESETS[name]
