"""The networks: architecture only."""

from diffit_lib.config.models import ImageNetwork, Transformer
from diffit_lib.models.image_diffit import ImageDiffiT
from diffit_lib.models.transformer import DiffusionTransformer


def build_network(config: ImageNetwork | Transformer) -> ImageDiffiT | DiffusionTransformer:
    """The network a configuration describes, freshly initialised."""
    return ImageDiffiT(config) if isinstance(config, ImageNetwork) else DiffusionTransformer(config)
