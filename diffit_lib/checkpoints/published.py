"""Weights that others published: DiffiT, DiT, SiT, REPA and diffusers' DiT, by name and by their tensors.

Their files hold tensors only, by names of their own; `published.yaml` has their sampling settings and licences.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from diffit_lib.checkpoints.safetensors_io import is_pickle, load_tensors, read_tensors, unpickle
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.config.models import TransformerConfig
from diffit_lib.config.presets import preset
from diffit_lib.models import build_network
from diffit_lib.models.blocks import sinusoid
from diffit_lib.models.transformer import FREQUENCIES, positions
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.tensors import on_meta

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"  # in diffusers' folder
Tensors = dict[str, Tensor]

NAMES = {  # NVIDIA's, Meta's and SiT's: ours
    "x_embedder.proj.": "patch_embed.",
    "t_embedder.mlp.": "time_token.mlp.",
    "y_embedder.embedding_table.": "time_token.classes.",
    ".adaLN_modulation.1.": ".modulation.",
}
INDEX = ".attn.relative_position_index"  # in the files, not in our networks: it follows from the grid
TABLES = {  # diffusers': ours; these are repeated in every block
    ".norm1.emb.timestep_embedder.linear_1.": "time_token.mlp.0.",
    ".norm1.emb.timestep_embedder.linear_2.": "time_token.mlp.2.",
    ".norm1.emb.class_embedder.embedding_table.": "time_token.classes.",
}
DIFFUSERS = {
    "pos_embed.proj.": "patch_embed.",
    "transformer_blocks.": "blocks.",
    ".norm1.linear.": ".modulation.",
    ".attn1.to_out.0.": ".attn.proj.",
    ".attn1.to_q.": ".attn.qkv.",  # with to_k and to_v
    ".ff.net.0.proj.": ".mlp.fc1.",
    ".ff.net.2.": ".mlp.fc2.",
    "proj_out_1.": "final_layer.modulation.",
    "proj_out_2.": "final_layer.linear.",
}
MARKS = {  # a tensor by which each layout is known
    "diffusers": "transformer_blocks.0.norm1.linear.weight",
    "diffit": "blocks.0.attn.qkv_temb.weight",
    "repa": "projectors.0.0.weight",
    "dit": "blocks.0.adaLN_modulation.1.weight",  # SiT's too
}
LOOKS = {  # what else people have
    "decoder.conv_in.": "an autoencoder: give it as vae=",
    "down_blocks.": "a U-Net of diffusers",
    "model.diffusion_model.": "Stable Diffusion's original file",
    "network.": "a denoiser without its card: give the weights.safetensors of its run",
}
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of DiT and SiT S, B, L and XL, by width


def layout_of(found: Tensors, path: Path) -> str:
    """Which of the layouts the names are of; a DiffitError says what else they look like."""
    for layout, mark in MARKS.items():
        if mark in found:
            return layout
    looks = next((what for start, what in LOOKS.items() if any(name.startswith(start) for name in found)), "")
    looks = looks or f"{len(found)} tensors like {min(found, default='none')!r}, which no layout here has"
    raise DiffitError(f"{path} holds no diffit model, nor published weights: it looks like {looks}")


def to_ours(found: Tensors, layout: str, path: Path, hints: dict[str, Any]) -> Tensors:
    """The tensors by our networks' names; `hints` are the fields of diffusers' config that shapes do not tell."""
    if layout == "diffusers":
        tensors = from_diffusers(found, path)
        check("sample_size" in hints, f"{path} needs diffusers' config.json beside it; put it there")
        width, _, patch, _ = shape(tensors, "patch_embed.weight", 4, path)
        side = min(hints["sample_size"], 8192) // patch
        return tensors | {"pos_embed": positions((side, side), width)[None]}
    tensors = {our_name(name): tensor for name, tensor in found.items() if not name.endswith(INDEX)}
    return from_repa(tensors) if layout == "repa" else tensors


def our_name(name: str, names: dict[str, str] = NAMES) -> str:
    """The name in our networks of a tensor in the published files."""
    for theirs, ours in names.items():
        name = name.replace(theirs, ours)
    return name


def shape(tensors: Tensors, name: str, rank: int, path: Path) -> tuple[int, ...]:
    """The shape of a tensor that must be there, with this many dimensions, none of them empty."""
    check(name in tensors, f"{path} lacks tensor {name!r}; get the file again")
    found = tuple(tensors[name].shape)
    check(len(found) == rank and min(found) > 0, f"{path} has tensor {name!r} of shape {found}; get the file again")
    return found


def network_of(tensors: Tensors, layout: str, path: Path, hints: dict[str, Any]) -> TransformerConfig:
    """The network that tensors by our names are of, by their shapes."""
    width, channels, patch, _ = shape(tensors, "patch_embed.weight", 4, path)
    side = math.isqrt(shape(tensors, "pos_embed", 3, path)[1]) * patch
    heads = hints.get("num_attention_heads") or HEADS.get(width, 0)
    if layout == "diffit":
        heads = shape(tensors, "blocks.0.attn.relative_position_bias_table", 2, path)[1]
    check(heads > 0, f"{path} is {width} wide, as no published DiT is, so its heads are unknown; give its config.json")
    classes = "time_token.classes.weight"
    return TransformerConfig(
        image_size=(side, side),
        in_channels=channels,
        block="diffit" if layout == "diffit" else "dit",
        patch_size=patch,
        width=width,
        depth=len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        num_heads=heads,
        mlp_ratio=shape(tensors, "blocks.0.mlp.fc1.weight", 2, path)[0] / width,
        num_classes=shape(tensors, classes, 2, path)[0] - 1 if classes in tensors else 0,
        learned_variance=shape(tensors, "final_layer.linear.weight", 2, path)[0] == 2 * channels * patch**2,
        as_diffusers=layout == "diffusers",
    )


def from_diffusers(found: Tensors, path: Path) -> Tensors:
    """diffusers' tensors by our names; the tables that every block repeats must be equal."""
    tensors: Tensors = {}
    blocks = sorted({name.split(".")[1] for name in found if name.startswith("transformer_blocks.")})
    for name, tensor in found.items():
        _, emb, table = name.partition(".norm1.emb.")
        needed = [name]
        if emb:
            needed = [f"transformer_blocks.{block}.norm1.emb.{table}" for block in blocks]
        elif ".attn1.to_" in name and ".to_out." not in name:
            start, _, kind = name.rpartition(".to_")
            needed = [f"{start}.to_{part}{kind[1:]}" for part in "qkv"]
        for other in needed:
            shape(found, other, tensor.ndim, path)
            check(not emb or torch.equal(found[other], tensor), f"{path}: {other} differs from {name}; get it again")
        if emb:
            tensors[our_name(f"{emb}{table}", TABLES)] = tensor
        elif ".attn1.to_q." in name:
            tensors[our_name(name, DIFFUSERS)] = torch.cat([found[other] for other in needed])
        elif len(needed) == 1 and name != "pos_embed.pos_embed":
            tensors[our_name(name, DIFFUSERS)] = tensor
    return tensors


def from_repa(found: Tensors) -> Tensors:
    """REPA's tensors with SiT's time and direction, without its projectors.

    REPA's time is 1 for noise, and its velocity points to the noise. With u = 1 - t, cos(f u) and sin(f u) are linear
    in cos(f t) and sin(f t), so the first layer of the time's MLP takes the difference, the last layer the sign.
    """
    early = len({name.split(".")[1] for name in found if name.startswith("blocks.")})
    tensors: Tensors = {}
    for name, tensor in found.items():
        if late := re.fullmatch(r"decoder_blocks\.(\d{1,4})\.(.+)", name):  # of an early version
            name = f"blocks.{int(late[1]) + early}.{late[2]}"
        if name == "time_token.mlp.0.weight" and tensor.shape[1:] == (FREQUENCIES,):
            cos, sin = sinusoid(torch.ones(1), FREQUENCIES, endpoint=False, cos_first=True).double().chunk(2, dim=1)
            of_cos, of_sin = tensor.double().chunk(2, dim=1)
            tensor = torch.cat([of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos], dim=1).float()
        if not name.startswith("projectors."):
            tensors[name] = -tensor if name.startswith("final_layer.linear.") else tensor
    return tensors


def to_flow(tensors: Tensors, network: TransformerConfig) -> Tensors:
    """Without the second half of the answer's channels, which SiT has from DiT and does not use."""
    last = ("final_layer.linear.weight", "final_layer.linear.bias") if network.learned_variance else ()
    pixels = {name: tensors[name].unflatten(0, (-1, 2 * network.in_channels)) for name in last}
    return tensors | {name: each[:, : network.in_channels].flatten(0, 1) for name, each in pixels.items()}


def read_config(path: Path) -> dict[str, Any]:
    """What diffusers' config.json beside the tensors says that shapes do not; {} if there is none."""
    file = path.with_name("config.json")
    if not file.is_file():
        return {}
    try:
        check(file.stat().st_size < 1e6, "it is too long")
        config = json.loads(file.read_text(encoding="utf-8"))
        hints = {name: config[name] for name in ("num_attention_heads", "sample_size")}
        check(all(type(value) is int and value > 0 for value in hints.values()), f"it says {hints}")
        check(config.get("norm_eps", 1e-5) == 1e-5, f"norm_eps is {config.get('norm_eps')}")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, DiffitError) as error:
        raise DiffitError(f"{file} is not that of a DiT ({error}); get it again") from error
    return hints


@dataclass(frozen=True)
class HubModel:
    """Weights that others published."""

    experiment: ExperimentConfig
    file: str  # its name where it was published
    source: str  # a repository on the Hugging Face hub, or the address of the file
    licence: str
    by: str


def listed() -> Iterator[HubModel]:
    """The weights in `published.yaml`."""
    for group in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")):
        for name, own in group["weights"].items():
            given = {"source": group.get("source"), **group.get("usual", {}), **own}
            file, source, base = (given.pop(key) for key in ("file", "source", "preset"))
            experiment = preset(base).override(name=name, guidance_tolerance=0.0, **given)
            yield HubModel(experiment, file, source, group["licence"], group["by"])


HUB_MODELS = {model.experiment.name: model for model in listed()}
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
    found_as = f"{path} looks like {layout}, {name} is {means}"
    check(means in ("", layout), f"{found_as}; to take it for that, give its path alone: load({str(path)!r})")
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
    with on_meta():
        module = build_network(network)
    load_tensors(module, tensors, path)
    x = torch.randn(1, *network.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = [module.eval()(x, torch.tensor([t]))[:, : network.in_channels] for t in (999.0, 0.0)]
    dit, sit = (torch.cosine_similarity(answer.flatten(), x.flatten(), 0).item() for answer in answers)
    return "sit" if sit < -0.9 else "dit" if dit > 0.9 else ""
