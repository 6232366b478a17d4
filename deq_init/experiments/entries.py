"""What the entries of an experiment's rows must be, so that a table can be made of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from deq_init.experiments.rows import Row

_LARGEST = 1e300
_SHOWN = 60


class Kind(NamedTuple):
    """A kind of entry: its name, and whether a value is of it."""

    name: str
    fits: Callable[[Any], bool]


NUMBER = Kind("a finite number", lambda v: type(v) in (int, float) and abs(v) < _LARGEST)
INTEGER = Kind("an integer", lambda v: type(v) is int and abs(v) < _LARGEST)
BOOLEAN = Kind("true or false", lambda v: isinstance(v, bool))
TEXT = Kind("a string", lambda v: isinstance(v, str))


def maybe(kind: Kind) -> Kind:
    """Return the kind of what is of a kind, or null."""
    return Kind(f"{kind.name} or null", lambda v: v is None or kind.fits(v))


def several(kind: Kind) -> Kind:
    """Return the kind of lists of a kind."""
    return Kind(f"a list of {kind.name}", lambda v: isinstance(v, list) and all(map(kind.fits, v)))


def one_of(names: Collection[str]) -> Kind:
    """Return the kind of some strings."""
    return Kind(f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names)


def mapping(kinds: Mapping[str, Kind]) -> Kind:
    """Return the kind of dictionaries with entries of these kinds."""
    return Kind(
        f"a dictionary with {', '.join(kinds)}",
        lambda v: isinstance(v, dict) and complaint(v, kinds) is None,
    )


def complaint(row: Row, kinds: Mapping[str, Kind]) -> str | None:
    """Return what is wrong with a row in words, or None if each entry is of its kind.

    Examples
    --------
    >>> complaint({"gain": "1"}, {"gain": NUMBER})
    "'gain' must be a finite number and is '1'"
    """
    for name, kind in kinds.items():
        if name not in row:
            return f"{name!r} is missing"
        if not kind.fits(row[name]):
            shown = repr(row[name])
            shown = f"{shown[:_SHOWN]}..." if len(shown) > _SHOWN else shown
            return f"{name!r} must be {kind.name} and is {shown}"
    return None
