"""The networks: architecture only."""

from diffit_lib.models.image import ImageDiffiT
from diffit_lib.models.transformer import DiffusionTransformer
from diffit_lib.networks import ImageNetwork, Transformer


def build_network(config: ImageNetwork | Transformer) -> ImageDiffiT | DiffusionTransformer:
    """The network a configuration describes, freshly initialised."""
    return ImageDiffiT(config) if isinstance(config, ImageNetwork) else DiffusionTransformer(config)
