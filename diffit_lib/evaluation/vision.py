"""DINOv2 and CLIP, in whose features today's distances are taken: the networks of torchvision and torch-fidelity."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import normalize, resize

from diffit_lib.checkpoints.published import our_name
from diffit_lib.checkpoints.safetensors_io import load_tensors, unpickle
from diffit_lib.evaluation.features import chunks
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import published_file, sha256
from diffit_lib.utils.tensors import on_meta

DINOV2 = {"dinov2": ("vitl14", 1024, 24), "dinov2-b": ("vitb14", 768, 12)}  # published name, width, depth
CLIP = "clip-vit-l-14-336px"  # as torch-fidelity calls it
SIDE = 224  # pixels of DINOv2's images
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # mean and standard deviation of the channels
LAION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
NAMES = {  # DINOv2's: torchvision's
    "patch_embed.proj.": "conv_proj.",
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "blocks.": "encoder.layers.encoder_layer_",
    ".norm1.": ".ln_1.",
    ".norm2.": ".ln_2.",
    ".attn.qkv.": ".self_attention.in_proj_",
    ".attn.proj.": ".self_attention.out_proj.",
    ".mlp.fc1.": ".mlp.0.",
    ".mlp.fc2.": ".mlp.3.",
    "norm.": "encoder.ln.",
}


class VisionExtractor(nn.Module):
    """A network that maps RGB images (B, 3, side, side), as its authors prepare them, to features (B, D).

    `name` is a key of `PREPARE`, `num_features` is D, `checksum` identifies the weights.
    """

    num_spatial = 0  # none for sFID

    def __init__(self, network: nn.Module, name: str, num_features: int, checksum: str):
        super().__init__()
        self.network, self.name, self.num_features, self.checksum = network.eval(), name, num_features, checksum

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor]:
        """uint8 (N, C, H, W), grey or RGB -> features (N, D), float32 on the CPU."""
        device, prepare = next(self.network.parameters()).device, PREPARE[self.name]
        found = [self.network(prepare(part.to(device).expand(-1, 3, -1, -1))).cpu() for part in chunks(images, 64)]
        return (F.normalize(torch.cat(found)) if self.name == "clip" else torch.cat(found),)

    def features(self, images: Tensor) -> Tensor:
        """As `forward`, without the tuple."""
        return self(images)[0]


def for_dinov2(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> as Stein et al. 2023 prepare them: Pillow's bicubic resize in uint8, ImageNet's scale."""
    small = resize(images, [SIDE, SIDE], InterpolationMode.BICUBIC, antialias=True)
    return normalize(small / 255, *IMAGENET)


def for_clip(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> as CMMD (Jayasumana et al. 2024) prepares them: bicubic without filter, CLIP's scale."""
    return normalize(F.interpolate(images.float(), (336, 336), mode="bicubic") / 255, *LAION)


PREPARE: dict[str, Callable[[Tensor], Tensor]] = {"dinov2": for_dinov2, "dinov2-b": for_dinov2, "clip": for_clip}


def dinov2_network(tensors: dict[str, Tensor], source: str | Path) -> VisionTransformer:
    """DINOv2 (Oquab et al. 2023) from its published tensors, which gives the class token after the last norm.

    Its layer scale multiplies what a block adds, so it goes into the weights of the two output layers. The positions,
    learned for 37 x 37 patches, are resized as DINOv2 resizes them: bicubic, at a scale of (patches + 0.1) / 37.
    """
    width, patch = tensors["cls_token"].shape[-1], tensors["patch_embed.proj.weight"].shape[-1]
    depth, table = sum(name.endswith("ls1.gamma") for name in tensors), tensors["pos_embed"]
    grid, learned = SIDE // patch, round((table.shape[1] - 1) ** 0.5)
    places = table[:, 1:].view(1, learned, learned, width).permute(0, 3, 1, 2)
    places = F.interpolate(places, scale_factor=((grid + 0.1) / learned,) * 2, mode="bicubic")
    ours = {name: tensor for name, tensor in tensors.items() if name != "mask_token" and ".ls" not in name}
    ours["pos_embed"] = torch.cat([table[:, :1], places.flatten(2).transpose(1, 2)], dim=1)
    for block in range(depth):
        for layer, scale in (("attn.proj", "ls1"), ("mlp.fc2", "ls2")):
            gamma = tensors[f"blocks.{block}.{scale}.gamma"]
            ours[f"blocks.{block}.{layer}.weight"] = tensors[f"blocks.{block}.{layer}.weight"] * gamma[:, None]
            ours[f"blocks.{block}.{layer}.bias"] = tensors[f"blocks.{block}.{layer}.bias"] * gamma
    with on_meta():
        network = VisionTransformer(SIDE, patch, depth, width // 64, width, 4 * width)
    network.heads = nn.Identity()
    load_tensors(network, {our_name(name, NAMES): tensor for name, tensor in ours.items()}, source)
    return network


def load_vision(name: str, path: str | Path | None = None) -> VisionExtractor:
    """DINOv2 or CLIP from the published file: at `path`, else in the cache, else downloaded.

    CLIP's file is a TorchScript archive, so any other is refused by its SHA-256. DINOv2's authors publish no checksum:
    of their file nothing but tensors is read, each by its name and shape, and the SHA-256 is the stamp's checksum.
    """
    if name == "clip":
        return load_clip(path)
    published, width, depth = DINOV2[name]
    url = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_{published}/dinov2_{published}_pretrain.pth"
    path = published_file(path, url, "", "DINOv2", "or give --extractor-file")
    tensors = unpickle(path)
    try:
        found = sum(key.endswith("ls1.gamma") for key in tensors), tensors["cls_token"].shape[-1]
        check(found == (depth, width), f"{path} has (blocks, width) {found}, {name} {(depth, width)}; download {url}")
        return VisionExtractor(dinov2_network(tensors, path), name, width, sha256(path)[:16])
    except KeyError as error:
        raise DiffitError(f"{path} lacks tensor {error}; download {url}") from None
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise DiffitError(f"{path} has tensors of other shapes than {name}; download {url}") from error


def load_clip(path: str | Path | None = None) -> VisionExtractor:
    """CLIP's ViT-L/14 for images of 336 pixels (Radford et al. 2021), which CMMD is taken with."""
    from torch_fidelity import feature_extractor_clip as clip

    pin, url = clip.MODEL_METADATA[CLIP]["hash"], clip.MODEL_URLS[CLIP]
    path = published_file(path, url, pin, "CLIP", "or give --extractor-file")
    network = clip_network(torch.jit.load(path, map_location="cpu").state_dict())
    return VisionExtractor(network, "clip", network.output_dim, pin[:16])


def clip_network(tensors: dict[str, Tensor]) -> Any:
    """The image half of CLIP from its published tensors, float32: RGB images -> embeddings, not yet of length 1."""
    from torch_fidelity.feature_extractor_clip import VisionTransformer as Clip

    own = {name.removeprefix("visual."): value.float() for name, value in tensors.items() if name.startswith("visual.")}
    width, _, _, patch = own["conv1.weight"].shape
    depth = sum(name.endswith("ln_1.weight") for name in own)
    side = round((len(own["positional_embedding"]) - 1) ** 0.5)
    network: Any = Clip(side * patch, patch, width, depth, width // 64, own["proj"].shape[1])
    network.load_state_dict(own)
    return network
