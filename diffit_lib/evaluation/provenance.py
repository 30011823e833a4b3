"""The stamp: what a measured number depends on, saved and printed with it."""

from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a number depends on; saved and printed with it.

    Whoever draws the images fills in all but the reference, n and the extractor, which the measurement knows. None:
    does not apply.
    """

    n: int = 0  # generated images compared by a Frechet distance or its like
    drawn: int = 0  # generated images in all: class accuracy and copy ratio are over all of them
    reference: str = ""  # the real images compared with: a train part, a folder, or published statistics
    reference_hash: str = ""
    extractor: str = ""
    extractor_checksum: str = ""
    sampler: str | None = None
    steps: int | None = None
    guidance: str | None = None
    seeds: str | None = None  # e.g. "0..359"
    images: str | None = None  # images given as files: their name
    images_hash: str | None = None
    precision: str | None = None
    rounding: str | None = "round"  # of float to uint8; "adm": truncated, as the published evaluators do
    decoder: str | None = None  # the VAE's, for latent models
    weights_hash: str | None = None
    best_by_this_metric: bool = False  # the checkpoint was chosen by the very number it goes with

    def against(self, reference: str, reference_hash: str) -> "Provenance":
        """The same of a number that compares with these images."""
        return replace(self, reference=reference, reference_hash=reference_hash)

    def warnings(self) -> list[str]:
        """What has to be said aloud beside the number."""
        said = []
        if self.n < 10_000:
            said.append(f"n = {self.n} is small: compare only with numbers taken at the same n")
        if self.best_by_this_metric:
            said.append("the best checkpoint was chosen by this very metric: the number flatters")
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """One line, `n=360 reference=digits/train ...`, without what does not apply."""
        values = asdict(self).items()
        return " ".join(f"{key}={value}" for key, value in values if value is not None and value is not False)
