"""The networks: architecture only."""

from diffit_lib.models.image import ImageDiffiT
from diffit_lib.networks import ImageNetwork


def build_network(config: ImageNetwork) -> ImageDiffiT:
    """The network a configuration describes, freshly initialised."""
    return ImageDiffiT(config)
