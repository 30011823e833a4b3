"""Write this folder's files with the code of commit f89be93, before its files moved into packages (see README.md)."""

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffit_lib.autoencoders import VAECard, load_vae, save_vae
from diffit_lib.pipeline import load
from diffit_lib.presets import preset
from diffit_lib.presets_vae import vae_preset
from diffit_lib.tasks.encode import encode
from diffit_lib.tasks.train import train
from diffit_lib.tensors import to_uint8
from diffit_lib.weights import Card, build_denoiser, save_weights

from diffit_lib.data import Split, digits
from diffit_lib.models.vae import KLAutoencoder

OUT = Path()
TINY = preset("digits").override(
    name="tiny",
    width=4,
    channel_mult=(1, 2),
    num_blocks=1,
    num_heads=2,
    time_dim=8,
    max_steps=4,
    minutes=None,
    batch_size=4,
    lr=1e-3,
    lr_decay=0.0,
    threads=1,
    report_minutes=60.0,
    steps=4,
    churn=0.0,
    precision="32-true",
)
TINY_VAE = vae_preset("vae-digits").override(name="tiny-vae", channels=(4, 4), down=(True,), attn=(False, False))
TINY_LATENT = preset("latent-digits").override(
    name="tiny-latent", vae="tiny-vae.safetensors", width=8, depth=2, num_heads=2, steps=4, churn=0.0
)


def noisy(network):
    """Random tensors everywhere, also where networks begin at 0."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


class Stopped(Exception):
    """Half-way."""


def stop_half_way():
    """Called after each report: stop after the first one at or past half of the steps."""
    if int((OUT / "run" / "metrics.csv").read_text().splitlines()[-1].split(",")[0]) >= 8:
        raise Stopped


torch.manual_seed(0)
torch.set_num_threads(1)

recipe = TINY.override(sigma_data=0.75)
names = tuple("0123456789")
card = Card(recipe=recipe, class_names=names, trained_on="digits/train 0", images_seen=64, minutes=0.5, device="cpu")
save_weights(OUT / "weights.safetensors", card, noisy(build_denoiser(recipe)), noisy(build_denoiser(recipe)))

z = TINY_VAE.network.z_channels
vae = VAECard(TINY_VAE, mean=(0.1,) * z, std=(0.9,) * z, trained_on="digits/train 0", images_seen=64, device="cpu")
save_vae(OUT / "vae.safetensors", vae, noisy(KLAutoencoder(TINY_VAE.network)))

codec, _ = load_vae(OUT / "vae.safetensors")
recipe = TINY_LATENT.override(sigma_data=1.0, precision="32-true")
latent = replace(card, recipe=recipe, vae=vae)
save_weights(OUT / "latent.safetensors", latent, noisy(build_denoiser(recipe)), codec=codec)

some = Split(*(part.take(torch.arange(count), f"some/{count}") for part, count in zip(digits(), (24, 8), strict=True)))
encode(OUT / "vae.safetensors", some, OUT / "latents")

train(TINY, OUT / "whole", some, progress=False)
with suppress(Stopped):
    train(TINY.override(report_minutes=1e-9), OUT / "run", some, progress=False, after_report=stop_half_way)

pictures = {name: load(name)(seeds=range(8)) for name in ("digits", "mnist", "latent-digits")}
pictures |= {name: load(OUT / f"{name}.safetensors")(seeds=range(8)) for name in ("weights", "latent")}
pictures["whole"] = load(OUT / "whole" / "weights.safetensors")(seeds=range(8))
pictures["reconstructed"] = to_uint8(codec.decode(codec.clean(some.test.images)))
np.savez_compressed(OUT / "pictures.npz", **{name: np.asarray(images) for name, images in pictures.items()})
shutil.rmtree(OUT / "whole")
for path in (OUT / "run").iterdir():  # what resuming does not read
    if path.name not in ("last.ckpt", "metrics.csv", "options.yaml", "weights.safetensors"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
