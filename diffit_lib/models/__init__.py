"""The networks and their cost."""

from diffit_lib.config.models import ImageNetworkConfig, TransformerConfig
from diffit_lib.models.image_diffit import ImageDiffiT
from diffit_lib.models.transformer import DiffusionTransformer


def build_network(config: ImageNetworkConfig | TransformerConfig) -> ImageDiffiT | DiffusionTransformer:
    """A newly initialised network with this configuration."""
    return ImageDiffiT(config) if isinstance(config, ImageNetworkConfig) else DiffusionTransformer(config)
