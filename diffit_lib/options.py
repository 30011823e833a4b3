"""Options of the command line: one for every field of a recipe, and the words that stand for numbers."""

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from jsonargparse import SUPPRESS, ArgumentParser

from diffit_lib.errors import DiffitError
from diffit_lib.recipe import AnyRecipe


def add_recipe_fields(sub: ArgumentParser, recipe: type[AnyRecipe]) -> None:
    """One option for each field of the recipe, absent unless given."""
    sub.add_argument("--data", type=str, default=SUPPRESS, help="data set by name, or the path of a folder or zip")
    taken = {"name", "data", *recipe.PARTS}
    for title, kinds in {"images": (recipe,), **recipe.PARTS}.items():
        group = add_fields(sub, f"{title} (the preset's own unless given)", kinds, taken)
        if len(kinds) > 1:
            names = tuple(kind.kind for kind in kinds)
            group.add_argument(f"--{title}", type=Literal[names], default=SUPPRESS, help="kind")


def add_fields(sub: ArgumentParser, title: str, kinds: Sequence[Any], taken: set[str]) -> Any:
    """A group of options, one for each field of these dataclasses that is not taken yet, absent unless given."""
    group = sub.add_argument_group(title)
    for field in (field for kind in kinds for field in fields(kind) if field.name not in taken):
        taken.add(field.name)  # kinds of one part share some fields
        switch: dict[str, Any] = {"nargs": "?", "const": True} if field.type is bool else {}
        value = field.type
        if get_origin(field.type) is tuple:
            value = booleans if get_args(field.type)[0] is bool else integers
        group.add_argument(f"--{field.name}", type=value, default=SUPPRESS, **switch)
    return group


def integers(text: str | tuple[int, ...]) -> tuple[int, ...]:
    """The numbers in "1,2,2" or "[1,2,2]"."""
    if isinstance(text, tuple):  # jsonargparse shows its own results to the type again
        return text
    return tuple(int(part) for part in text.strip("[]() ").split(",") if part)


def booleans(text: str | tuple[bool, ...]) -> tuple[bool, ...]:
    """The choices in "true,true,false"."""
    if isinstance(text, tuple):
        return text
    words = [part.strip().lower() for part in text.strip("[]() ").split(",") if part]
    if wrong := set(words) - {"true", "false"}:
        raise ValueError(f"{min(wrong)!r} is neither true nor false")
    return tuple(word == "true" for word in words)


def parse_seeds(text: str) -> list[int]:
    """The numbers 0, 1, 2, 3, 100 from "0-3,100"."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise DiffitError(f"seeds are {text!r}; give numbers and rising ranges, e.g. 0-63,100")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return seeds
