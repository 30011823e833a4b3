"""Classes by name or number."""

from collections.abc import Sequence
from difflib import get_close_matches
from operator import index

from diffit_lib.checkpoints.weights import ModelCard
from diffit_lib.utils.errors import DiffitError, check

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Labels = None | int | str | Sequence[int | str]


def in_turn(card: ModelCard, count: int) -> list[int | str] | None:
    """Labels 0, 1, 2, ... over and over, one for each of `count` images; None for unconditional weights."""
    classes = card.experiment.network.num_classes
    return [k % classes for k in range(count)] if classes else None


def class_number(card: ModelCard, label: int | str) -> int:
    """The number of a class by its name or number; "none" is the last row of the label table, "no class".

    Words are names first, also in another case, then digits ("two" is the class called 2), then numbers. A name
    that several classes have is an error, and so is an unknown one.
    """
    num_classes, names = card.experiment.network.num_classes, card.class_names
    word = label.strip().casefold() if isinstance(label, str) else ""
    known = [*names, *[""] * (num_classes - len(names)), "none"]
    folded = [name.casefold() for name in known]
    digit = str(WORDS.index(word)) if word in WORDS else ""
    for wanted, spellings in ((label, known), (word, folded), (digit, known)):
        numbers = [number for number, name in enumerate(spellings) if name and name == wanted]
        check(len(numbers) < 2, f"class {label!r} is {' or '.join(map(str, numbers))}; give the number")
        if numbers:
            return numbers[0]
    try:
        number = int(label) if isinstance(label, str) else index(label)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < num_classes:
        near = [known[folded.index(name)] for name in get_close_matches(word, folded)]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        named = [name for name in names if not name.isdecimal()]
        known_names = f", {', '.join(named[:12])}{', ...' if len(named) > 12 else ''}" if named else ""
        raise DiffitError(
            f"no class {label!r}; {hint}give a number from 0 to {num_classes - 1}{known_names}, or 'none'"
        )
    return number
