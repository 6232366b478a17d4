"""Arguments of the theory: families that a formula is known for, sizes, positive numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from deq_init import families
from deq_init.errors import FamilyError, ScaleError

T = TypeVar("T")


def by_family(table: Mapping[str, T], family: str, what: str = "theory") -> T:
    """Return a table's entry for a family.

    Every formula that depends on the family is in such a table: a family that is added to
    :mod:`deq_init.families` has no theory until it is in them.

    Raises
    ------
    FamilyError
        For an unknown family, or one that is not in the table.
    """
    families.get(family)
    if family not in table:
        raise FamilyError(
            f"expected one of the families {', '.join(map(repr, table))}, received {family!r}. "
            f"For it, the {what} is not known here."
        )
    return table[family]


def require_size(n: Any, least: int = 1) -> int:
    """Return the size of W as an int, or raise ScaleError."""
    try:
        size = operator.index(n)
    except TypeError:
        size = least - 1
    if isinstance(n, (bool, np.bool_)) or size < least:
        raise ScaleError(
            f"expected an integer n >= {least}, received {n!r}. n is the number of rows of W."
        )
    return size


def require_positive(name: str, value: Any) -> float:
    """Return a finite number > 0 as a float, or raise ScaleError."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, (bool, np.bool_, str)) or not (math.isfinite(number) and number > 0):
        raise ScaleError(
            f"expected {name} to be a finite number > 0, received {value!r}. Pass e.g. 1.0."
        )
    return number
