"""How images are drawn for a number: our own way, or that of a paper's number (docs/coming-from.md has the table)."""

from dataclasses import dataclass
from typing import Any

from diffit_lib.config.models import ImageNetworkConfig, TransformerConfig

SD_VAE = "stabilityai/sd-vae-ft-ema"


@dataclass(frozen=True)
class Protocol:
    """What `evaluate --protocol` sets; a setting of the command line counts more than that of the protocol."""

    rounding: str = "round"  # of floats to uint8, a key of `utils.tensors.PROTOCOLS`
    images: int = 500
    random_labels: bool = False  # each image's class is drawn from its seed; otherwise as many of each class
    vae: str = ""  # the decoder, for weights of Stable Diffusion's latents


PROTOCOLS = {
    "round": Protocol(),
    "adm": Protocol("adm"),
    "dit": Protocol("round", 50_000, True, SD_VAE),
    "diffit": Protocol("adm", 50_000, True, SD_VAE),
    "edm": Protocol("round", 50_000, True),
}


def paper_settings(protocol: str, network: ImageNetworkConfig | TransformerConfig) -> dict[str, Any]:
    """The sampling settings of a paper's number, for a network of this size.

    DiT (section 5, table 2): 250 DDPM steps, guidance 1.5 on three channels. DiffiT in latents (appendix I.2): the same
    with 4.4 power-cosine at 256x256 pixels, as the published weights were measured, and 1.49 at 512x512. EDM (table 7;
    DiffiT's image space, appendix I.1): Heun without churn, 18 steps at 32x32 and 40 at 64x64, no guidance.
    """
    large = max(network.image_size) > 32
    ancestral: dict[str, Any] = {"sampler": "ddpm", "steps": 250, "guidance_channels": 3}
    if getattr(network, "learned_variance", False):
        ancestral["variance"] = "learned"
    cosine = {"guidance": 4.4, "guidance_schedule": "power-cosine", "guidance_power": 4.0}
    settings = {
        "dit": ancestral | {"guidance": 1.5, "guidance_schedule": "constant"},
        "diffit": ancestral | ({"guidance": 1.49, "guidance_schedule": "constant"} if large else cosine),
        "edm": {"sampler": "heun", "steps": 40 if large else 18, "churn": 0.0, "guidance": 1.0}
        | {"guidance_schedule": "constant", "guidance_channels": None},
    }.get(protocol, {})
    return {name: value for name, value in settings.items() if network.num_classes or "guidance" not in name}
