"""What a network is: frozen dataclasses that check themselves, from which the networks are built."""

from dataclasses import dataclass

from diffit_lib.errors import check, check_positive, check_types


@dataclass(frozen=True)
class ImageNetwork:
    """Image-space DiffiT, a U-shape of levels (paper, section 3.2 and appendix H.1)."""

    image_size: tuple[int, int] = (32, 32)  # height, width in pixels
    in_channels: int = 3  # 1 (grey) or 3 (RGB)
    width: int = 128  # channels of the first level
    channel_mult: tuple[int, ...] = (1, 2, 2)  # channels of each level, in units of width
    num_blocks: int = 4  # L: ResBlocks per level on each path
    num_heads: int = 4
    window_size: int = 4  # tokens per side; clamped to the map at small levels
    mlp_ratio: float = 4.0
    time_dim: int = 512  # width of the time token
    dropout: float = 0.0  # in the MLP branch
    num_classes: int = 0  # 0: unconditional
    augment_dim: int = 0  # 9: conditioned on EDM's augmentation label

    kind = "image"

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "width", "num_blocks", "num_heads", "window_size", "mlp_ratio", "time_dim")
        check(self.in_channels in (1, 3), f"in_channels is {self.in_channels}; give 1 (grey) or 3 (RGB)")
        check(0 <= self.dropout < 1, f"dropout is {self.dropout}; give a share from 0 up to, not including, 1")
        check(self.num_classes >= 0, f"num_classes is {self.num_classes}; give 0 (unconditional) or more")
        check(self.augment_dim in (0, 9), f"augment_dim is {self.augment_dim}; give 0 (off) or 9 (EDM's label)")
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
        factor = 2 ** (len(self.channel_mult) - 1)
        for side in self.image_size:
            check(
                side > 0 and side % factor == 0,
                f"image_size {self.image_size} cannot be halved {len(self.channel_mult) - 1} times; "
                f"give multiples of {factor} or fewer levels in channel_mult",
            )
        for level, (map_size, window) in enumerate(zip(self.map_sizes, self.windows, strict=True)):
            for side, tokens in zip(map_size, window, strict=True):
                check(
                    side % tokens == 0,
                    f"window_size {self.window_size} does not divide the {map_size[0]}x{map_size[1]} map of level "
                    f"{level}; give a divisor of {side}",
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what goes in and comes out."""
        return self.in_channels, *self.image_size

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.width * factor for factor in self.channel_mult)

    @property
    def map_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each level's map."""
        height, width = self.image_size
        return tuple((height >> level, width >> level) for level in range(len(self.channel_mult)))

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Window height and width at each level, clamped to the map."""
        return tuple((min(self.window_size, h), min(self.window_size, w)) for h, w in self.map_sizes)
