"""Weights that others published: DiffiT, DiT, SiT and REPA, by name and by their tensors.

Their files hold tensors only: sampling settings and licences are here.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diffit_lib.checkpoints.layouts import Tensors, layout_of, network_of, read_config, to_flow, to_ours
from diffit_lib.checkpoints.safetensors_io import is_pickle, load_tensors, read_tensors, unpickle
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.config.models import TransformerConfig
from diffit_lib.config.presets import preset
from diffit_lib.models import build_network
from diffit_lib.utils.errors import check


@dataclass(frozen=True)
class HubModel:
    """Weights that others published."""

    experiment: ExperimentConfig
    file: str  # its name where it was published
    source: str  # a repository on the Hugging Face hub, or the address of the file
    licence: str
    by: str


PUBLISHERS = {
    "nvidia": ("NVIDIA", "nvidia/DiffiT", "CC-BY-NC-SA-4.0 (no commercial use)"),
    "meta": ("Meta", "https://dl.fbaipublicfiles.com/DiT/models/", "CC-BY-NC-4.0 (no commercial use)"),
    "nyu": ("the authors of SiT", "nyu-visionx/SiT-collections", "MIT"),
    "repa": ("the authors of REPA", "https://github.com/sihyun-yu/REPA", "MIT"),
}


def published(name: str, file: str, base: str, source: str = "", **options: Any) -> HubModel:
    """The preset `base` under the name of published weights, with the guidance of their published pictures.

    DiT's FID was measured at guidance 1.5 on both sizes, DiffiT's at its presets' scales.
    """
    publisher = name.partition("/")[0].replace("facebook", "meta")
    by, usual, licence = PUBLISHERS[publisher]
    experiment = preset(base).override(name=name, guidance_tolerance=0.0, **options)
    return HubModel(experiment, file, source or usual, licence, by)


DIT: dict[str, Any] = {"base": "dit-xl-2", "guidance_schedule": "constant"}
FLOW: dict[str, Any] = {"learned_variance": False, "denoiser": "flow", "variance": "small", "sampler": "heun"}
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
FACEBOOK: dict[str, Any] = {"file": TRANSFORMER, "as_diffusers": True}
SIZE_512: dict[str, Any] = {"guidance": 1.5, "image_size": (64, 64)}
REPA = {"guidance": 1.8, "guidance_channels": None, "guidance_schedule": "interval", "guidance_high": 0.7 / 0.3}
HUB_MODELS = {
    model.experiment.name: model
    for model in (
        published("nvidia/diffit-256", "diffit_256.safetensors", "diffit-xl-2"),
        published("nvidia/diffit-512", "diffit_512.safetensors", "diffit-xl-2-512"),
        published("meta/dit-xl-2-256", "DiT-XL-2-256x256.pt", **DIT, guidance=4.0),
        published("meta/dit-xl-2-512", "DiT-XL-2-512x512.pt", **DIT, **SIZE_512),
        published("facebook/DiT-XL-2-256", source="facebook/DiT-XL-2-256", **FACEBOOK, **DIT, guidance=4.0),
        published("facebook/DiT-XL-2-512", source="facebook/DiT-XL-2-512", **FACEBOOK, **DIT, **SIZE_512),
        published("nyu/sit-xl-2-256", "SiT-XL-2-256.pt", **DIT | FLOW, steps=50, guidance=4.0),
        published("nyu/sit-xl-2-512", "SiT-XL-2-512.pt", **DIT | FLOW, **SIZE_512, steps=50),
        published("repa/sit-xl-2-256", "last.pt", **DIT | FLOW | REPA, steps=50),
    )
}
ALIASES = {"nvidia/DiffiT": "nvidia/diffit-256", "SiT-XL-2-256x256.pt": "nyu/sit-xl-2-256"}
ALIASES |= {model.file: name for name, model in HUB_MODELS.items() if "/" not in model.file and name[:4] != "repa"}


def kind_of(experiment: ExperimentConfig) -> str:
    """Which of the layouts this experiment's weights were published in."""
    if experiment.denoiser.kind == "flow":
        return "repa" if experiment.name.startswith("repa") else "sit"
    network: Any = experiment.network
    return "diffusers" if network.as_diffusers else network.block


def open_published(path: Path, name: str = "") -> tuple[HubModel, Tensors]:
    """What a file of published weights is, and its tensors by our networks' names, float32 on the CPU.

    `name` is one of `HUB_MODELS`, or "" for a file that is recognised by its tensors alone. Raises a DiffitError for
    any other file that says what it looks like, and for a DiT that may be a SiT, unless `name` says which.
    """
    found = unpickle(path) if is_pickle(path) else read_tensors(path)
    layout, means, hints = layout_of(found, path), "", read_config(path)
    if name:
        said: Any = HUB_MODELS[name].experiment
        network, means = said.network, kind_of(said)
        hints = {"num_attention_heads": network.num_heads, "sample_size": network.image_size[0]}
        layout = "repa" if (layout, means) == ("dit", "repa") else layout  # without its projectors
    tensors = to_ours(found, layout, path, hints)
    network = network_of(tensors, layout, path, hints)
    if layout == "dit":
        layout = dit_or_sit(tensors, network, path) or means
        choice = " or ".join(f"load({of!r}, file={str(path)!r})" for of in ("meta/dit-xl-2-256", "nyu/sit-xl-2-256"))
        check(layout != "", f"{path} is DiT or SiT, and its answers do not tell which; say it: {choice}")
    if layout in ("sit", "repa"):
        tensors, network = to_flow(tensors, network), replace(network, learned_variance=False)
    check(
        means in ("", layout),
        f"{path} looks like {layout}, {name} is {means}; to take it for that, give its path alone: load({str(path)!r})",
    )
    return HUB_MODELS[name] if name else recognised(network, layout, path), tensors


def recognised(network: TransformerConfig, layout: str, path: Path) -> HubModel:
    """The published weights of this layout and these shapes, else weights of unknown origin with DiT's settings."""
    alike = [model for model in HUB_MODELS.values() if kind_of(model.experiment) == layout]
    for model in alike:
        if model.experiment.network == network:
            return model
    base = alike[0].experiment
    changes: dict[str, Any] = {} if network.num_classes else {"guidance": 1.0, "guidance_schedule": "constant"}
    if base.network.learned_variance and not network.learned_variance:
        changes["variance"] = "small"
    experiment = replace(base, name=path.stem, network=network, sampling=base.sampling.change(**changes))
    return HubModel(experiment, path.name, "", "unknown", "others")


def dit_or_sit(tensors: Tensors, network: TransformerConfig, path: Path) -> str:
    """Whether these tensors, which share every name and shape, are DiT's or SiT's; "" if the answers do not tell.

    DiT at its noisiest level, t = 999, answers with the noise, which is what it sees. SiT at its own, t = 0, answers
    with the image minus the noise, which is about the opposite of what it sees.
    """
    with torch.device("meta"):
        module = build_network(network)
    load_tensors(module, tensors, path)
    x = torch.randn(1, *network.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = [module.eval()(x, torch.tensor([t]))[:, : network.in_channels] for t in (999.0, 0.0)]
    dit, sit = (torch.cosine_similarity(answer.flatten(), x.flatten(), 0).item() for answer in answers)
    return "sit" if sit < -0.9 else "dit" if dit > 0.9 else ""
