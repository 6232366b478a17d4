"""Activations as the mean-field formulas need them: value, slope, and where the slope is special.

An activation is named, or any function that maps a float64 array entry by entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

from deq_init.errors import ActivationError

Vector = NDArray[np.float64]
Function = Callable[[Vector], Any]

_STEP = 1e-5  # truncation and rounding of a central difference are both near 1e-10 here
_JUMPS_UP_TO = 20.0


@dataclass(frozen=True)
class Activation:
    """An activation φ.

    Attributes
    ----------
    name : str
        For messages.
    function, derivative : callable
        φ and φ', from a float64 array to one of the same shape.
    slopes : tuple of float
        Infimum and supremum of φ'.
    special : tuple of float
        Where φ' jumps or is extreme: integration is refined there.

    Notes
    -----
    The named ones, and any other made by :func:`custom_activation`, serve wherever an
    ``activation`` is expected.
    """

    name: str
    function: Function
    derivative: Function
    slopes: tuple[float, float]
    special: tuple[float, ...]

    @property
    def steepest(self) -> float:
        """Supremum of |φ'|."""
        return max(map(abs, self.slopes))


def _gelu_derivative(h: Vector) -> Any:
    return ndtr(h) + h * np.exp(-h * h / 2) / np.sqrt(2 * np.pi)


_GELU_EXTREME = float(_gelu_derivative(np.array(2**0.5)))

ACTIVATIONS = {
    activation.name: activation
    for activation in (
        Activation("linear", lambda h: h, np.ones_like, (1.0, 1.0), (0.0,)),
        Activation("tanh", np.tanh, lambda h: 1 - np.tanh(h) ** 2, (0.0, 1.0), (0.0,)),
        Activation("relu", lambda h: np.maximum(h, 0), lambda h: 1.0 * (h > 0), (0.0, 1.0), (0.0,)),
        Activation(
            "hard_tanh",
            lambda h: np.clip(h, -1, 1),
            lambda h: 1.0 * (np.abs(h) < 1),
            (0.0, 1.0),
            (-1.0, 1.0),
        ),
        Activation(
            "gelu",
            lambda h: h * ndtr(h),
            _gelu_derivative,
            (1 - _GELU_EXTREME, _GELU_EXTREME),
            (-(2**0.5), 0.0, 2**0.5),
        ),
    )
}
"""The named activations; ``gelu`` is the exact one, with the error function."""


def custom_activation(function: Function, derivative: Function | None = None) -> Activation:
    r"""Return an activation made of any function of bounded slope.

    Parameters
    ----------
    function : callable
        φ, from a float64 NumPy array to an array of the same shape.
    derivative : callable, optional
        φ' likewise. Without it, central differences of step 1e-5 max(1, \|h\|) are used: absolute
        error near 1e-10 where φ is smooth and of order 1.

    Returns
    -------
    Activation

    Raises
    ------
    ActivationError
        If an array of another shape or values that are not finite come back, or if the slope is
        not bounded: supremum over \|h\| <= 1000 above that over \|h\| <= 300.

    Notes
    -----
    Jumps of φ' by more than 2 % of its range are looked for up to \|h\| = 20, on a grid of spacing
    0.008 near 0, and located to 1e-9 (without a derivative, 1e-6), so that integration can stop
    there. Two within one spacing may be missed, which costs lengths and norms a relative 1e-3.

    Examples
    --------
    >>> leaky = custom_activation(lambda h: np.maximum(h, 0.1 * h))
    >>> [round(slope, 6) for slope in leaky.slopes]
    [0.1, 1.0]
    """
    name = getattr(function, "__name__", "activation")
    grid = np.sinh(np.linspace(0, np.arcsinh(1000), 2001)[1:])
    grid = np.concatenate([-grid[::-1], grid])
    _evaluate(name, function, grid)
    slope = _differences(function) if derivative is None else derivative
    values = _evaluate(f"the derivative of {name}", slope, grid)
    inner = np.abs(values[np.abs(grid) <= 300]).max()
    if np.abs(values).max() > 1.01 * inner + 1e-6:
        raise ActivationError(
            f"expected an activation of bounded slope, received {name}, whose slope reaches "
            f"{inner:.3g} on [-300, 300] and {np.abs(values).max():.3g} on [-1000, 1000]. The "
            "Jacobian's norm has no limit then: clip the activation."
        )
    low, low_at = _extreme(slope, grid, values, 1)
    high, high_at = _extreme(slope, grid, values, -1)
    special = sorted({0.0, low_at, high_at, *_jumps(slope, grid, values)})
    return Activation(name, function, slope, (low, high), tuple(special))


def resolve(activation: str | Activation | Function) -> Activation:
    """Return the activation of that name, or made of that function.

    Raises
    ------
    ActivationError
        For an unknown name, or a function that :func:`custom_activation` refuses.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str) and activation in ACTIVATIONS:
        return ACTIVATIONS[activation]
    if callable(activation):
        return custom_activation(activation)
    raise ActivationError(
        f"expected an activation out of {', '.join(map(repr, ACTIVATIONS))} or a function of "
        f"NumPy arrays, received {activation!r}. Pass e.g. activation=numpy.arctan."
    )


def _differences(function: Function) -> Function:
    """Return the central differences of a function."""

    def slope(h: Vector) -> Any:
        step = _STEP * np.maximum(1, np.abs(h))
        return (np.asarray(function(h + step)) - np.asarray(function(h - step))) / (2 * step)

    return slope


def _evaluate(name: str, function: Function, grid: Vector) -> Vector:
    """Return the function's values, which must be finite and as many as the grid's."""
    try:
        # A formula may overflow in a branch that it does not take.
        with np.errstate(all="ignore"):
            values = np.asarray(function(grid), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ActivationError(
            f"expected {name} to map a float64 NumPy array to real numbers, received the error "
            f"{error}. Write it with NumPy, entry by entry."
        ) from error
    if values.shape != grid.shape or not np.isfinite(values).all():
        raise ActivationError(
            f"expected {name} to map {grid.size} finite numbers between -1000 and 1000 to as many, "
            f"received shape {values.shape}, {np.isfinite(values).sum()} of them finite. Write it "
            "with NumPy, entry by entry, without overflow."
        )
    return values


def _extreme(slope: Function, grid: Vector, values: Vector, sign: int) -> tuple[float, float]:
    """Return the least value (sign 1) or the greatest (sign -1) of a slope, and where it is."""
    padded = np.pad(sign * values, 1, constant_values=np.inf)
    local = (padded[1:-1] <= padded[:-2]) & (padded[1:-1] <= padded[2:])
    # The nearest of those that are equal to rounding: differences are worse far out.
    local &= padded[1:-1] <= padded.min() + 1e-4 * np.abs(values).max()
    best = int(np.argmin(np.where(local, np.abs(grid), np.inf)))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)])
    found = minimize_scalar(
        lambda h: sign * _value(slope, h), bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    if found.fun < sign * values[best]:
        return sign * float(found.fun), float(found.x)
    return float(values[best]), float(grid[best])


def _jumps(slope: Function, grid: Vector, values: Vector) -> list[float]:
    """Return where a slope jumps by more than 2 % of its range."""
    least = 0.02 * (values.max() - values.min())
    if least < 1e-9:
        return []
    jumps = []
    for i in np.flatnonzero((np.abs(np.diff(values)) > least) & (np.abs(grid[:-1]) < _JUMPS_UP_TO)):
        low, high = float(grid[i]), float(grid[i + 1])
        middle, rising = (values[i] + values[i + 1]) / 2, values[i + 1] > values[i]
        for _ in range(40):
            half = (low + high) / 2
            low, high = (low, half) if (_value(slope, half) > middle) == rising else (half, high)
        reach = 3 * _STEP * max(1.0, abs(low))
        if abs(_value(slope, low + reach) - _value(slope, low - reach)) > least / 2:
            jumps.append(low)
    return jumps


def _value(function: Function, h: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.asarray(function(np.array([h])))[0])
