"""Variables that are scaled or drawn anew: which, how long, and put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from deq_init.errors import DTypeError, SelectionError
from deq_init.plan import compute_dtype


def variables_of(weights: Any) -> list[keras.Variable]:
    """Return the variables to scale, each once."""
    listed = [weights] if isinstance(weights, keras.Variable) else weights
    if not isinstance(listed, Iterable) or keras.ops.is_tensor(listed):
        listed = [listed]
    listed = list(listed)
    for variable in listed:
        if not isinstance(variable, keras.Variable):
            raise DTypeError(
                f"expected a keras.Variable, received {type(variable).__name__}. Pass the variable "
                "itself, e.g. layer.kernel; a tensor computed from variables cannot be written to."
            )
        compute_dtype(variable.dtype)
    if not listed:
        raise SelectionError(
            "expected at least one variable to scale, received none. Pass e.g. layer.kernel."
        )
    return list({id(variable): variable for variable in listed}.values())


@contextmanager
def restored(variables: Sequence[keras.Variable]) -> Iterator[None]:
    """Put the variables back at the end, whatever happens."""
    originals = [keras.ops.copy(variable.value) for variable in variables]
    try:
        yield
    finally:
        for variable, original in zip(variables, originals, strict=True):
            variable.assign(original)


def times(value: Any, factor: float) -> Any:
    """Return a variable's value times a factor, rounded once."""
    dtype = keras.backend.standardize_dtype(value.dtype)
    return keras.ops.cast(keras.ops.cast(value, compute_dtype(dtype)) * factor, dtype)


def frobenius(variable: keras.Variable) -> float:
    """Return the Frobenius norm of a variable's value."""
    wide = keras.ops.cast(variable.value, compute_dtype(variable.dtype))
    return float(np.linalg.norm(keras.ops.convert_to_numpy(wide).astype(np.float64)))
