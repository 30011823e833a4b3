"""A recipe: everything one training run needs, as one value: data, network, denoiser, training, sampling.

Field names are unique across its parts, so `recipe.override(width=96, lr=1e-4)` needs no section names.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

from diffit_lib.config import EDM, VP, ImageNetwork, Sampling, Training
from diffit_lib.errors import DiffitError, check, check_types


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    name: str
    data: str  # a data set's name or a path
    crop: Literal["center", "long-edge", "adm"] = "center"  # largest box; whole image on black; ImageNet's usual one
    skip_bad: bool = False  # leave out and count images that cannot be read, instead of stopping at the first
    network: ImageNetwork = field(default_factory=ImageNetwork)
    denoiser: EDM | VP = field(default_factory=EDM)
    training: Training = field(default_factory=Training)
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_types(self)

    def override(self, **changes: Any) -> "Recipe":
        """A copy with some fields changed, whichever part they belong to; `denoiser="vp"` takes that kind of part."""
        own: dict[str, Any] = {key: changes.pop(key) for key in OWN if key in changes}
        for part_name in PARTS:
            part = getattr(self, part_name)
            if part_name in changes:
                part = part_from_dict(part_name, {"kind": changes.pop(part_name)})
            inside = {f.name: changes.pop(f.name) for f in fields(part) if f.name in changes}
            own[part_name] = part.change(**inside) if isinstance(part, Sampling) else replace(part, **inside)
        for wrong in changes:
            for name, kind in ((name, kind) for name, kinds in PARTS.items() for kind in kinds):
                if any(f.name == wrong for f in fields(kind)):
                    raise DiffitError(f"{wrong} is a field of {name} {kind.kind!r}; give {name}={kind.kind} too")
            near = get_close_matches(wrong, self.field_names(), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the fields are {', '.join(self.field_names())}"
            raise DiffitError(f"unknown field {wrong!r}; {hint}")
        return replace(self, **own)

    @classmethod
    def field_names(cls) -> list[str]:
        """Every name that `override` takes."""
        inside = (f.name for kinds in PARTS.values() for part in kinds for f in fields(part))
        return list(dict.fromkeys([*OWN, *inside]))

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for JSON."""
        parts = {name: part_to_dict(getattr(self, name)) for name in PARTS}
        return {name: getattr(self, name) for name in OWN} | parts

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """The inverse of `to_dict`, also after a round trip through JSON."""
        own = {name: values[name] for name in OWN if name in values}
        return cls(**own, **{name: part_from_dict(name, values[name]) for name in PARTS})


PARTS: dict[str, tuple[Any, ...]] = {  # the kinds each part of a recipe comes in
    "network": (ImageNetwork,),
    "denoiser": (EDM, VP),
    "training": (Training,),
    "sampling": (Sampling,),
}

OWN = tuple(f.name for f in fields(Recipe) if f.name not in PARTS)  # fields in no part


def part_to_dict(part: Any) -> dict[str, Any]:
    """Plain values, and the kind where a part has several."""
    kind = {"kind": part.kind} if hasattr(part, "kind") else {}
    return kind | asdict(part)


def part_from_dict(name: str, values: dict[str, Any]) -> Any:
    """The inverse of `part_to_dict`; without a kind, the first one."""
    values = dict(values)
    kinds = {getattr(part, "kind", None): part for part in PARTS[name]}
    kind = values.pop("kind", next(iter(kinds)))
    check(kind in kinds, f"unknown kind {kind!r} of {name}; the kinds are {', '.join(map(str, kinds))}")
    return kinds[kind](**values)
