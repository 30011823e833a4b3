"""The networks: architecture only."""

from diffit_lib.config.models import ImageNetworkConfig, TransformerConfig
from diffit_lib.models.image_diffit import ImageDiffiT
from diffit_lib.models.transformer import DiffusionTransformer


def build_network(config: ImageNetworkConfig | TransformerConfig) -> ImageDiffiT | DiffusionTransformer:
    """The network a configuration describes, freshly initialised."""
    return ImageDiffiT(config) if isinstance(config, ImageNetworkConfig) else DiffusionTransformer(config)
