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
from scipy.special import expit, ndtr

from deq_init.errors import ActivationError

Vector = NDArray[np.float64]
Function = Callable[[Vector], Any]

_STEP = 1e-5  # truncation and rounding of a central difference are both near 1e-10 here
_JUMPS_UP_TO = 20.0
_HALVINGS = 36


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


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_LEAK = 0.01


def _gelu_derivative(h: Vector) -> Any:
    return ndtr(h) + h * np.exp(-h * h / 2) / np.sqrt(2 * np.pi)


def _silu_derivative(h: Vector) -> Any:
    return expit(h) + h * expit(h) * expit(-h)


def _softplus(h: Vector) -> Any:
    return np.logaddexp(0, h)


def _mish_derivative(h: Vector) -> Any:
    inner = np.tanh(_softplus(h))
    return inner + h * expit(h) * (1 - inner) * (1 + inner)


def _elu(h: Vector) -> Any:
    return np.where(h > 0, h, np.expm1(np.minimum(h, 0)))


def _elu_derivative(h: Vector) -> Any:
    return np.where(h > 0, 1.0, np.exp(np.minimum(h, 0)))


def _selu(h: Vector) -> Any:
    return _SELU_SCALE * np.where(h > 0, h, _SELU_ALPHA * np.expm1(np.minimum(h, 0)))


def _selu_derivative(h: Vector) -> Any:
    return _SELU_SCALE * np.where(h > 0, 1.0, _SELU_ALPHA * np.exp(np.minimum(h, 0)))


def _with_extremes(name: str, function: Function, derivative: Function) -> Activation:
    """Return an activation whose slope has one minimum in [-4, 0] and one maximum in [0, 4]."""
    ends = [
        minimize_scalar(
            lambda h, sign=sign: sign * float(derivative(np.array(h))),
            bounds=bounds,
            method="bounded",
            options={"xatol": 1e-12},
        )
        for sign, bounds in ((1, (-4, 0)), (-1, (0, 4)))
    ]
    slopes = (float(ends[0].fun), -float(ends[1].fun))
    return Activation(name, function, derivative, slopes, (float(ends[0].x), 0.0, float(ends[1].x)))


_NAMED = (
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
    _with_extremes("gelu", lambda h: h * ndtr(h), _gelu_derivative),
    _with_extremes("silu", lambda h: h * expit(h), _silu_derivative),
    _with_extremes("mish", lambda h: h * np.tanh(_softplus(h)), _mish_derivative),
    Activation("softplus", _softplus, expit, (0.0, 1.0), (0.0,)),
    Activation("sigmoid", expit, lambda h: expit(h) * expit(-h), (0.0, 0.25), (0.0,)),
    Activation("elu", _elu, _elu_derivative, (0.0, 1.0), (0.0,)),
    Activation("selu", _selu, _selu_derivative, (0.0, _SELU_SCALE * _SELU_ALPHA), (0.0,)),
    Activation(
        "leaky_relu",
        lambda h: np.where(h > 0, h, _LEAK * h),
        lambda h: np.where(h > 0, 1.0, _LEAK),
        (_LEAK, 1.0),
        (0.0,),
    ),
    Activation(
        "softsign",
        lambda h: h / (1 + np.abs(h)),
        lambda h: (1 + np.abs(h)) ** -2.0,
        (0.0, 1.0),
        (0.0,),
    ),
    Activation("sin", np.sin, np.cos, (-1.0, 1.0), (-np.pi, 0.0, np.pi)),
)

ACTIVATIONS = {activation.name: activation for activation in _NAMED}
"""The named activations, with the constants that frameworks use by default.

``gelu`` is the exact one, with the error function; ``leaky_relu`` has the slope 0.01 below 0,
``elu`` the scale 1; ``swish`` is ``silu``.
"""
ACTIVATIONS["swish"] = ACTIVATIONS["silu"]


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
        If an array of another shape or values that are not finite come back; if the slope is not
        bounded: supremum over \|h\| <= 1000 above that over \|h\| <= 300; if the function jumps,
        e.g. numpy.floor, or rises by more than its derivative allows.

    Notes
    -----
    Jumps of φ' by more than 2 % of its range are looked for up to \|h\| = 20, on a grid of spacing
    0.008 near 0, and located where the tangents on both sides meet, to 1e-9, so that integration
    can stop there: lengths, norms and gains then have a relative error near 1e-9. Two within one
    spacing may be missed, which costs a relative 1e-3.

    Examples
    --------
    >>> leaky = custom_activation(lambda h: np.maximum(h, 0.1 * h))
    >>> [round(slope, 6) for slope in leaky.slopes]
    [0.1, 1.0]
    """
    name = getattr(function, "__name__", "activation")
    grid = np.sinh(np.linspace(0, np.arcsinh(1000), 2001)[1:])
    grid = np.concatenate([-grid[::-1], grid])
    heights = _evaluate(name, function, grid)
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
    _require_continuous(name, function, grid, heights, max(abs(low), abs(high)))
    jumps = _jumps(function, slope, grid, values)
    if derivative is None and jumps:
        slope = _beside(slope, jumps)
    special = [0.0, low_at, high_at]
    special = jumps + [point for point in special if _apart(point, jumps)]
    return Activation(name, function, slope, (low, high), tuple(sorted(set(special))))


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


def _require_continuous(
    name: str, function: Function, grid: Vector, heights: Vector, steepest: float
) -> None:
    """Raise ActivationError if a function jumps, or rises by more than its slope allows."""
    steps = np.diff(heights)
    if not steps.any():
        return
    low, high, rise = grid[:-1], grid[1:], steps
    for _ in range(_HALVINGS):
        half = (low + high) / 2
        left = _evaluate(name, function, half) - _evaluate(name, function, low)
        first = np.abs(left) >= np.abs(rise - left)
        low, high = np.where(first, low, half), np.where(first, half, high)
        rise = np.where(first, left, rise - left)
    i = int(np.argmax(np.abs(rise)))
    if abs(rise[i]) > 1e-9 * np.ptp(heights):
        raise ActivationError(
            f"expected a continuous activation, received {name}, which jumps by {rise[i]:.3g} near "
            f"h = {low[i]:.6g}. A jump has no Jacobian: replace it by a smooth function."
        )
    secants = np.abs(steps / np.diff(grid))
    i = int(np.argmax(secants))
    if secants[i] > 1.05 * steepest + 1e-9 * np.abs(heights).max():
        raise ActivationError(
            f"expected an activation with its derivative, received {name}, which rises by "
            f"{steps[i]:.3g} from h = {grid[i]:.4g} to {grid[i + 1]:.4g}, where the derivative "
            f"stays within {steepest:.3g}. Correct the derivative, or leave it out."
        )


def _beside(slope: Function, kinks: list[float]) -> Function:
    """Return a slope by differences that does not take them across kinks."""
    at = np.array(kinks)
    room = 2 * _STEP * np.maximum(1, np.abs(at))

    def one_sided(h: Vector) -> Any:
        nearest = np.abs(h[..., None] - at).argmin(-1)
        kink, away = at[nearest], room[nearest]
        near = np.abs(h - kink) < away
        return slope(np.where(near, np.where(h < kink, kink - away, kink + away), h))

    return one_sided


def _apart(point: float, others: list[float]) -> bool:
    """Whether a point is at none of the others: what lies closer is one kink, found twice."""
    return all(abs(point - other) > 10 * _STEP * max(1.0, abs(other)) for other in others)


def _jumps(function: Function, slope: Function, grid: Vector, values: Vector) -> list[float]:
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
        ends = (low - reach, low + reach)
        before, after = (_value(slope, end) for end in ends)
        if abs(after - before) > least / 2:
            # Where the tangents meet: differences see a kink only up to their step.
            gap = _value(function, ends[1]) - _value(function, ends[0]) - (after + before) * reach
            jumps.append(low + gap / (before - after))
    return jumps


def _value(function: Function, h: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.asarray(function(np.array([h])))[0])
