"""What a network is: frozen dataclasses that check themselves, from which the networks are built."""

from dataclasses import dataclass, fields
from typing import Literal

from diffit_lib.utils.errors import check, check_positive, check_types

MOST = 100_000  # channels, classes, pixels of a side: more is a typing error, and the product of such exceeds 64 bits
MOST_BLOCKS = 1000  # of a kind


class Shaped:
    """A network for images, or latents, of one size."""

    image_size: tuple[int, int]
    in_channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what goes in."""
        return self.in_channels, *self.image_size


@dataclass(frozen=True)
class ImageNetworkConfig(Shaped):
    """Image-space DiffiT, a U-shape of levels (paper, section 3.2 and appendix H.1)."""

    image_size: tuple[int, int] = (32, 32)  # Height and width in pixels.
    in_channels: int = 3  # 1 (grey) or 3 (RGB).
    patch: int = 1  # Side of the pixel square folded into one token; 2 costs about a quarter, the paper has 1.
    width: int = 128  # Channels of the first level.
    channel_mult: tuple[int, ...] = (1, 2, 2)  # Channels of each level, in units of width.
    num_blocks: int = 4  # L: ResBlocks per level on each path.
    num_heads: int = 4  # Attention heads.
    window_size: int = 4  # Side of an attention window in tokens; at most the whole map.
    mlp_ratio: float = 4.0  # Width of the MLP, in units of the block's width.
    time_dim: int = 512  # Width of the time token.
    dropout: float = 0.0  # Dropout in the MLP.
    num_classes: int = 0  # Classes; 0: unconditional.
    augment_dim: int = 0  # 9: conditioned on the label of EDM's augmentation; 0: not.

    kind = "image"
    learned_variance = False  # it answers with what goes in, nothing more

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self, "num_blocks")
        check_positive(self, "patch", "width", "num_blocks", "num_heads", "window_size", "mlp_ratio", "time_dim")
        check(self.in_channels in (1, 3), f"in_channels is {self.in_channels}; give 1 (grey) or 3 (RGB)")
        check_conditioning(self)
        check(
            len(self.channel_mult) > 0 and min(self.channel_mult) > 0,
            f"channel_mult is {self.channel_mult}; give one factor above 0 per level, e.g. 1,2,2",
        )
        for channels in self.channels:
            check(
                channels % self.num_heads == 0 and channels % 4 == 0,
                f"width {self.width} makes a level of {channels} channels, which 4 and num_heads {self.num_heads} "
                "do not divide; give another width",
            )
        factor = self.patch * 2 ** (len(self.channel_mult) - 1)
        for side in self.image_size:
            check(
                side > 0 and side % factor == 0,
                f"image_size {self.image_size} with patch {self.patch} cannot be halved {len(self.channel_mult) - 1} "
                f"times; give multiples of {factor}, a smaller patch or fewer levels in channel_mult",
            )
        for level, ((height, width), window) in enumerate(zip(self.map_sizes, self.windows, strict=True)):
            for side, tokens in ((height, window[0]), (width, window[1])):
                check(
                    side % tokens == 0,
                    f"window_size {self.window_size} does not divide the {height}x{width} map of level {level}; "
                    f"give a divisor of {side}",
                )

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.width * factor for factor in self.channel_mult)

    @property
    def map_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each level's map, in tokens."""
        height, width = (side // self.patch for side in self.image_size)
        return tuple((height >> level, width >> level) for level in range(len(self.channel_mult)))

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Window height and width at each level, clamped to the map."""
        return tuple((min(self.window_size, h), min(self.window_size, w)) for h, w in self.map_sizes)


@dataclass(frozen=True)
class TransformerConfig(Shaped):
    """A plain transformer over patches, of latents or of small images: latent DiffiT (appendix H.2) or DiT.

    DiffiT takes the time token into its attention, DiT (Peebles and Xie 2023) into its norms.
    """

    image_size: tuple[int, int] = (32, 32)  # Height and width of the input: pixels, or positions of a latent.
    in_channels: int = 4  # 4 for latents of Stable Diffusion's VAE, 1 or 3 for pixels.
    block: Literal["diffit", "dit"] = "diffit"  # diffit: the time token enters attention; dit: the norms.
    patch_size: int = 2  # Side of the square that makes one token.
    width: int = 384  # Channels of a token.
    depth: int = 12  # Blocks.
    num_heads: int = 6  # Attention heads.
    mlp_ratio: float = 4.0  # Width of the MLP, in units of the block's width.
    dropout: float = 0.0  # Dropout in the MLP.
    num_classes: int = 0  # Classes; 0: unconditional.
    augment_dim: int = 0  # 9: conditioned on the label of EDM's augmentation; 0: not.
    learned_variance: bool = False  # Predict the variance of the reverse step in a second half of the channels.
    as_diffusers: bool = False  # dit: last frequency of the time and eps of the second norm as in diffusers' DiT.

    kind = "transformer"

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self, "depth")
        check_positive(self, "in_channels", "patch_size", "width", "depth", "num_heads", "mlp_ratio")
        check_conditioning(self)
        check(self.block == "dit" or not self.as_diffusers, "as_diffusers is an option of block dit; leave it out")
        check(
            self.width % self.num_heads == 0 and self.width % 4 == 0,
            f"width is {self.width}, which 4 and num_heads {self.num_heads} do not divide; give another width",
        )
        for side in self.image_size:
            check(
                side > 0 and side % self.patch_size == 0,
                f"image_size {self.image_size} is not made of whole patches of patch_size {self.patch_size}; "
                f"give multiples of {self.patch_size}",
            )

    @property
    def out_channels(self) -> int:
        """Channels of the answer."""
        return self.in_channels * (2 if self.learned_variance else 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size


def check_bounds(network: Shaped, blocks: str) -> None:
    """Refuse numbers that no network has; `blocks` is the field that counts blocks."""
    for name in (field.name for field in fields(network)):  # type: ignore[arg-type]
        value, most = getattr(network, name), MOST_BLOCKS if name == blocks else MOST
        for number in value if isinstance(value, tuple) else (value,):
            check(isinstance(number, str) or number <= most, f"{name} is {value}; give {most:,} at most")


def check_conditioning(network: ImageNetworkConfig | TransformerConfig) -> None:
    """Check the labels and the dropout, which both kinds of network have."""
    check(0 <= network.dropout < 1, f"dropout is {network.dropout}; give a share from 0 up to, not including, 1")
    check(network.num_classes >= 0, f"num_classes is {network.num_classes}; give 0 (unconditional) or more")
    check(network.augment_dim in (0, 9), f"augment_dim is {network.augment_dim}; give 0 (off) or 9 (EDM's label)")


@dataclass(frozen=True)
class AutoencoderConfig(Shaped):
    """The KL autoencoder of latent diffusion (Rombach et al. 2022, appendix G); the defaults are Stable Diffusion's.

    It works on any size that its factor divides; `image_size` is the one it is trained on.
    """

    image_size: tuple[int, int] = (256, 256)  # Height and width in pixels.
    in_channels: int = 3  # 1 (grey) or 3 (RGB).
    z_channels: int = 4  # Channels of a latent.
    patch: int = 1  # Side of the pixel square folded into channels at the input; 2 is much faster.
    channels: tuple[int, ...] = (128, 256, 512, 512)  # Channels of each level, full resolution first.
    down: tuple[bool, ...] = (True, True, True)  # For each level but the last: halve the resolution after it?
    attn: tuple[bool, ...] = (False, False, False, False)  # Whether each level attends after its ResBlocks.
    mid_attn: bool = True  # Whether the middle attends.
    num_layers: int = 2  # ResBlocks per level of the encoder; the decoder has one more.

    kind = "vae"

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self, "num_layers")
        check_positive(self, "z_channels", "patch", "num_layers")
        check(self.in_channels in (1, 3), f"in_channels is {self.in_channels}; give 1 (grey) or 3 (RGB)")
        levels = len(self.channels)
        check(
            levels > 0 and min(self.channels) > 0 and all(channels % 4 == 0 for channels in self.channels),
            f"channels is {self.channels}; give one multiple of 4 per level, e.g. 64,128,128",
        )
        for name, given, count in (("down", self.down, levels - 1), ("attn", self.attn, levels)):
            check(
                len(given) == count,
                f"{name} has {len(given)} entries, but channels {self.channels} make {levels} levels; give {count} "
                f"of True or False",
            )
        self.check_size(*self.image_size)

    def check_size(self, height: int, width: int) -> None:
        """Refuse a size that the factor does not divide."""
        check(
            height > 0 and width > 0 and height % self.factor == 0 and width % self.factor == 0,
            f"an image of {height}x{width} does not go into an autoencoder of factor {self.factor}; "
            f"give a height and a width that {self.factor} divides",
        )

    @property
    def factor(self) -> int:
        """Pixels per side of one place of a latent."""
        return self.patch * 2 ** sum(self.down)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(z, h, w) of their latents."""
        height, width = self.image_size
        return self.z_channels, height // self.factor, width // self.factor
