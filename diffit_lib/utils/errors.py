"""The exception for a user's mistake, and the checks of settings that raise it."""

import math
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from textwrap import shorten
from types import UnionType
from typing import Any, Literal, get_args, get_origin


class DiffitError(Exception):
    """A mistake that the user can correct: one line with the thing, its value and the remedy.

    The command line prints this line and exits with status 2; a notebook shows it without a traceback, in red.
    """

    def __init__(self, message: str = ""):
        if message.startswith("Caught "):  # torch raises a worker's error anew, with its traceback for a message
            message = message.rpartition(f".{type(self).__name__}: ")[2]
        super().__init__(printable(" ".join(message.split())))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"\033[31m{self}\033[0m"]


def printable(text: str) -> str:
    """This text with characters that a terminal would obey, or that are no UTF-8, as escapes: "\\x1b[31m"."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason_of(error: BaseException, most: int = 200) -> str:
    """What another library's exception says, else its name, in one line of so many characters."""
    return shorten(str(error) or type(error).__name__, most)


def check(ok: bool, message: str) -> None:
    """Raise `DiffitError(message)` unless `ok`."""
    if not ok:
        raise DiffitError(message)


def closest(wrong: str, names: Iterable[str]) -> str:
    """ "did you mean a or b?", of the names that resemble a wrong one; "" if none does."""
    near = get_close_matches(wrong, list(names), n=3)
    return f"did you mean {' or '.join(near)}?" if near else ""


def did_you_mean(wrong: str, names: Iterable[str], what: str = "names") -> str:
    """The end of a message on an unknown name: the names that resemble it, else all of them."""
    return closest(wrong, names) or f"the {what} are {', '.join(names)}"


def check_types(part: Any) -> None:
    """Refuse a field that has not its declared type, or an int beyond 64 bits; lists, as from JSON, become tuples."""
    for f in fields(part):
        value = getattr(part, f.name)
        if isinstance(value, list):
            object.__setattr__(part, f.name, value := tuple(value))
        wanted = " or ".join(map(repr, get_args(f.type))) if get_origin(f.type) is Literal else _name(f.type)
        check(_fits(value, f.type), f"{f.name} is {value!r}; give {wanted}")
        for number in value if isinstance(value, tuple) else (value,):
            huge = isinstance(number, int) and abs(number) >= 2**63
            check(not huge, f"{f.name} is {number}; give a number of at most 18 digits")


def check_positive(part: Any, *names: str) -> None:
    """Refuse a dataclass unless every named field is above 0 or None."""
    for name in names:
        value = getattr(part, name)
        check(value is None or value > 0, f"{name} is {value!r}; give a number above 0")


def check_not_negative(part: Any, *names: str) -> None:
    """Refuse a dataclass unless every named field is 0 or more."""
    for name in names:
        value = getattr(part, name)
        check(value >= 0, f"{name} is {value}; give 0 or more")


def check_rising(part: Any, low: str, high: str) -> None:
    """Refuse a dataclass unless the field `low` is below the field `high`; None is 0 below, and no bound above."""
    least, most = getattr(part, low), getattr(part, high)
    rising = (least or 0) < (math.inf if most is None else most)
    check(rising, f"{low} {least} is not below {high} {most}; give rising bounds")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has an annotated type; an int is a float too, a bool is neither."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in args
    if origin is UnionType:
        return any(_fits(value, option) for option in args)
    if origin is tuple:
        hints = args[:1] * len(value) if args[-1] is ... and isinstance(value, tuple) else args
        return isinstance(value, tuple) and len(value) == len(hints) and all(map(_fits, value, hints))
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool) and abs(value) < math.inf
    return isinstance(value, origin or hint)


def _name(hint: Any) -> str:
    """A type in words for an error message."""
    if get_origin(hint) is tuple:
        if bool in get_args(hint):
            return "true or false for each, e.g. true,false"
        return "integers, e.g. 1,2,2" if ... in get_args(hint) else f"{len(get_args(hint))} integers, e.g. 32,32"
    words = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    return words.replace("float", "a finite number").replace("int", "an integer")
