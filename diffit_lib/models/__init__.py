"""The networks: architecture only."""

from diffit_lib.config import ImageNetwork
from diffit_lib.models.image import ImageDiffiT


def build_network(config: ImageNetwork) -> ImageDiffiT:
    """The network a configuration describes, freshly initialised."""
    return ImageDiffiT(config)
