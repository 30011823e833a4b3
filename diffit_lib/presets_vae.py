"""The presets of autoencoders: Stable Diffusion's layouts, and ours for small machines."""

from diffit_lib.config import Training, VAELoss
from diffit_lib.errors import DiffitError
from diffit_lib.networks import Autoencoder
from diffit_lib.recipe import VAERecipe

VAE_PRESETS: dict[str, VAERecipe] = {
    # A minute on one CPU core: the 8x8 digits become 4x4 places of two numbers.
    "vae-digits": VAERecipe(
        name="vae-digits",
        data="digits",
        network=Autoencoder(
            image_size=(8, 8),
            in_channels=1,
            z_channels=2,
            channels=(32, 48),
            down=(True,),
            attn=(False, False),
            mid_attn=False,
            num_layers=1,
        ),
        loss=VAELoss(kl_weight=3e-3, perceptual_weight=0.0, disc_weight=0.0),
        training=Training(
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
    "vae-cifar10": VAERecipe(
        name="vae-cifar10",
        data="cifar10",
        network=Autoencoder(
            image_size=(32, 32),
            channels=(64, 128, 128),
            down=(True, False),
            attn=(False, False, False),
            num_layers=1,
        ),
        loss=VAELoss(disc_start=1_500_000),
        training=Training(
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
    "vae-imagenette128": VAERecipe(
        name="vae-imagenette128",
        data="imagenette",
        network=Autoencoder(
            image_size=(128, 128),
            patch=2,
            channels=(48, 96, 192),
            down=(True, True),
            attn=(False, False, False),
            num_layers=1,
        ),
        loss=VAELoss(disc_start=200_000, disc_width=32),
        training=Training(
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
    "kl-f4": VAERecipe(
        name="kl-f4",
        data="celeba",
        network=Autoencoder(
            image_size=(128, 128),
            channels=(128, 256, 512),
            down=(True, True),
            attn=(False, False, False),
        ),
        loss=VAELoss(disc_start=1_000_000),
        training=Training(images=10_000_000, batch_size=32, lr=1e-4, ema_halflife=50_000, flip=True, workers=4),
    ),
    # Stable Diffusion's: 256x256 -> 32x32x4.
    "kl-f8": VAERecipe(
        name="kl-f8",
        data="imagenette",
        loss=VAELoss(disc_start=1_000_000),
        training=Training(images=10_000_000, batch_size=16, lr=7e-5, ema_halflife=50_000, flip=True, workers=4),
    ),
}


def vae_preset(name: str) -> VAERecipe:
    """An autoencoder's preset by name."""
    if name not in VAE_PRESETS:
        raise DiffitError(f"unknown autoencoder preset {name!r}; the presets are {', '.join(VAE_PRESETS)}")
    return VAE_PRESETS[name]
