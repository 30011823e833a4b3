"""A latent model as a folder that diffusers opens: DiT in the stock `DiTPipeline`, DiffiT with a file for it.

A round trip is exact to the bit: what diffusers' layout cannot hold as it is lies in a file of its own beside it.
"""

import json
import math
import re
import shutil
from contextlib import ExitStack
from inspect import getsource
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffit_lib.checkpoints.published import DIFFUSERS, TABLES, TRANSFORMER, Tensors, to_ours
from diffit_lib.checkpoints.safetensors_io import write_checkpoint
from diffit_lib.checkpoints.weights import SIDE, load_own_space, load_weights
from diffit_lib.config.diffusion import VPConfig
from diffit_lib.config.models import TransformerConfig
from diffit_lib.models import blocks, layers, transformer
from diffit_lib.models.blocks import sinusoid
from diffit_lib.models.latent_space import LatentSpace
from diffit_lib.utils.distributed import locked
from diffit_lib.utils.errors import check
from diffit_lib.utils.files import replacing, write_text
from diffit_lib.utils.tensors import bf16_by_onednn, unpatchify

ROWS = 1001  # of the label table that DiTPipeline asks for: its "no class" is 1000
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
EXACT_STEPS = 64  # at most: of diffusers' 257 functions of time, 103 are independent in float32
PIPELINE = Path(__file__).with_name("pipeline.txt")


def export(weights: str | Path, folder: str | Path, vae: str | Path | None = None, steps: int = 50) -> Path:
    """Write `folder` for diffusers and return it. `vae` is the file of a published autoencoder, by default the hub's.

    A DiT answers in diffusers as here at the times of so many steps, 64 at most (`refit`); a DiffiT at all.

    Raises a DiffitError for weights that diffusers' pipeline cannot draw with, and for a folder that is not empty.
    """
    folder = Path(folder)
    check(folder.name not in ("", ".."), f"{folder} has no name; give the name of a new folder")
    check(not folder.exists() or not any(folder.iterdir()), f"{folder} is not empty; give another folder")
    check(2 <= steps <= EXACT_STEPS, f"steps is {steps}; give 2 to {EXACT_STEPS}, for which diffusers' times are exact")
    denoiser, card = load_weights(weights)
    network, config = card.experiment.network, card.experiment.denoiser
    space = load_own_space(weights, card, vae)
    latent = isinstance(space, LatentSpace) and isinstance(network, TransformerConfig) and network.augment_dim == 0
    check(latent and isinstance(config, VPConfig), f"{weights}: diffusers' DiTPipeline takes latents and denoiser vp")
    assert isinstance(config, VPConfig)
    assert isinstance(network, TransformerConfig)
    assert isinstance(space, LatentSpace)
    check(network.image_size[0] == network.image_size[1], f"{weights} draws {network.image_size}, not squares")
    check(network.num_classes < ROWS, f"{weights} has {network.num_classes} classes; DiTPipeline takes 1000 at most")
    tensors = denoiser.network.state_dict()
    decoder, vae_config = for_diffusers(space, str(weights))
    if network.block == "dit":
        check(network.mlp_ratio == 4, f"{weights} has mlp_ratio {network.mlp_ratio}; diffusers' DiT has 4")
        short = f"steps is {steps}, but {weights} has {config.timesteps} timesteps; give as many or fewer"
        check(steps <= config.timesteps, short)
        theirs = to_diffusers(tensors, network, config.timesteps, steps)
        hints = {"sample_size": network.image_size[0], "num_attention_heads": network.num_heads}
        back = to_ours(theirs, "diffusers", folder, hints)
        kept = {name: tensor for name, tensor in tensors.items() if not torch.equal(tensor, back[name])}
        module, kind = "diffusers", "DiTTransformer2DModel"
    else:
        theirs, kept = {f"network.{name}": tensor for name, tensor in tensors.items()}, {}
        module, kind = "diffit", "DiffiTModel"
    beside = folder.with_name(f".{folder.name}.diffit-export")
    with locked(beside), ExitStack() as last:
        last.callback(shutil.rmtree, beside, ignore_errors=True)
        for left in beside.iterdir():  # by a kill
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        index = {
            "_class_name": "DiTPipeline",
            "_diffusers_version": "0.35.0",
            "transformer": [module, kind],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "id2label": dict(enumerate(card.class_names)),
        }
        configs = {
            "transformer/config.json": transformer_config(network, kind),
            "vae/config.json": vae_config,
            "scheduler/scheduler_config.json": scheduler_config(config),
            "model_index.json": index,
        }
        for name, values in configs.items():
            write_text(beside / name, json.dumps(values, indent=2) + "\n")
        for file, content in ((TRANSFORMER, theirs), (f"vae/{Path(TRANSFORMER).name}", decoder)):
            with replacing(beside / file) as part:
                save_file({name: tensor.contiguous() for name, tensor in content.items()}, part, {"format": "pt"})
        own = {f"vae.{name}": t for name, t in space.network.state_dict().items() if not torch.equal(t, decoder[name])}
        side = {f"ema.network.{name}": tensor for name, tensor in kept.items()} | own
        write_checkpoint(beside / "transformer" / SIDE, card, side)
        if module == "diffit":
            write_text(beside / "transformer" / "diffit.py", pipeline_file())
        if folder.exists():
            folder.rmdir()
        beside.rename(folder)
    return folder


def to_diffusers(tensors: Tensors, network: TransformerConfig, timesteps: int, steps: int) -> Tensors:
    """Our tensors by diffusers' names, with the label table of 1000 classes and, unless as_diffusers, its time."""
    table = tensors.get("time_token.classes.weight", torch.zeros(1, network.width))
    tensors = tensors | {"time_token.classes.weight": torch.cat([table, table[-1:].expand(ROWS - len(table), -1)])}
    if not network.as_diffusers:
        tensors |= refit(tensors["time_token.mlp.0.weight"], tensors["time_token.mlp.0.bias"], timesteps, steps)
    names = {ours: theirs for theirs, ours in DIFFUSERS.items()}
    found: Tensors = {}
    for name, tensor in tensors.items():
        repeated = next(((ours, theirs) for theirs, ours in TABLES.items() if name.startswith(ours)), None)
        theirs = name
        for ours, part in names.items():
            theirs = re.sub(rf"(^|(?<=\d)){re.escape(ours)}", part, theirs)
        if repeated:
            for number in range(network.depth):
                copy = f"transformer_blocks.{number}{repeated[1]}{name.removeprefix(repeated[0])}"
                found[copy] = tensor.clone()
        elif ".attn.qkv." in name:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                found[theirs.replace(".to_q.", f".to_{part}.")] = third
        elif name != "pos_embed":
            found[theirs] = tensor
    return found


def refit(weight: Tensor, bias: Tensor, timesteps: int, steps: int) -> Tensors:
    """The first layer of the time's MLP for diffusers' frequencies, f^(-i/127) in place of DiT's f^(-i/128).

    Least squares over all times; at those of `steps` steps, and of any that are among them, it is exact to 1e-5. At all
    it cannot be: the two sets of sinusoids span different spaces.
    """
    times = torch.arange(timesteps)
    width = weight.shape[1]
    ours, theirs = (sinusoid(times, width, endpoint=end, cos_first=True).double() for end in (False, True))
    theirs = torch.cat([theirs, torch.ones(len(times), 1)], dim=1)
    importance = torch.where(times % (timesteps // steps) == 0, 3000.0, 1.0)[:, None]
    rows = torch.cat([importance * theirs, torch.eye(theirs.shape[1])])
    answers = torch.cat([importance * ours, torch.zeros(theirs.shape[1], ours.shape[1])])
    change = torch.linalg.lstsq(rows, answers, driver="gelsd").solution @ weight.double().T
    moved = bias.double() + change[-1]
    return {"time_token.mlp.0.weight": change[:-1].T.float().contiguous(), "time_token.mlp.0.bias": moved.float()}


def for_diffusers(space: LatentSpace, source: str) -> tuple[Tensors, dict[str, Any]]:
    """An autoencoder's tensors and config for diffusers' AutoencoderKL.

    Means and deviations by channel go into the convolution before the decoder, since DiTPipeline knows one scale.
    """
    config = space.network.config
    groups = {math.gcd(channels, min(32, channels // 4)) for channels in config.channels}
    fits = len(groups) == 1 and config.patch == 1 and all(config.down) and not any(config.attn)
    check(fits, f"{source} has an autoencoder that diffusers' AutoencoderKL cannot hold; take one like SD's")
    tensors = {name: t.clone(memory_format=torch.contiguous_format) for name, t in space.network.state_dict().items()}
    mean, std, scale = space.mean.flatten(), space.std.flatten(), 1 / float(space.std.flatten()[0])
    if mean.any() or (std != std[0]).any():
        weight, scale = tensors["post_quant_conv.weight"], 1.0
        tensors["post_quant_conv.bias"] += weight[:, :, 0, 0] @ mean
        tensors["post_quant_conv.weight"] = weight * std[None, :, None, None]
    fields = {
        "_class_name": "AutoencoderKL",
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "block_out_channels": config.channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(config.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(config.channels),
        "layers_per_block": config.num_layers,
        "latent_channels": config.z_channels,
        "norm_num_groups": min(groups),
        "mid_block_add_attention": config.mid_attn,
        "sample_size": config.image_size[0],
        "scaling_factor": scale,
    }
    return tensors, fields


def transformer_config(network: TransformerConfig, kind: str) -> dict[str, Any]:
    """The config.json of the transformer."""
    fields = {"_class_name": kind, "in_channels": network.in_channels, "out_channels": network.out_channels}
    fields |= {"sample_size": network.image_size[0], "patch_size": network.patch_size}
    if kind == "DiffiTModel":
        names = ("image_size", "block", "width", "depth", "num_heads", "mlp_ratio", "num_classes", "learned_variance")
        return fields | {name: getattr(network, name) for name in names}
    size = {"num_layers": network.depth, "num_attention_heads": network.num_heads}
    size |= {"attention_head_dim": network.width // network.num_heads, "num_embeds_ada_norm": ROWS - 1}
    return fields | size | {"norm_eps": 1e-5 if network.as_diffusers else 1e-6}


def scheduler_config(config: VPConfig) -> dict[str, Any]:
    """DDIM on the noise levels that the network was trained on."""
    scale = 1000 / config.timesteps
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": config.timesteps,
        "beta_start": 1e-4 * scale,
        "beta_end": 0.02 * scale,
        "beta_schedule": BETAS[config.noise_schedule],
        "prediction_type": PREDICTIONS[config.prediction],
        "clip_sample": config.clip,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "leading",
    }


def pipeline_file() -> str:
    """One file with the network's blocks, for `DiffusionPipeline.from_pretrained(custom_pipeline=...)`."""
    sources = [getsource(part) for part in (unpatchify, bf16_by_onednn, layers, blocks, transformer)]
    code = re.sub(r"^from diffit_lib.*\n", "", "\n\n".join(sources), flags=re.M)
    return PIPELINE.read_text(encoding="utf-8").replace("# the network\n", code)
