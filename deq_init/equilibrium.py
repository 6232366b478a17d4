r"""Gradients of a fixed point, and the fully-connected reference model, for every backend.

*Gradients.* With :math:`z^* = f(\theta, z^*)` and a loss whose gradient in :math:`z^*` is
:math:`g`, the gradient in :math:`\theta` is :math:`(\partial f/\partial\theta)^T u`, where

.. math:: u = J^T u + g, \qquad J = \partial f/\partial z \text{ at } z^*,

which is a fixed-point equation itself. One step of it, :math:`u = g`, is the one-step gradient.

*Parameters of DEQFCN.* As kernels, in the orientation of JAX (PyTorch holds the transposes), with
width n, d inputs and k classes:

==== ====== ==========================================
name shape  what
==== ====== ==========================================
W    (n, n) state to state, of any family and scale
U    (d, n) input to state, of the random family
R    (n, k) state to logits, of the random family
b    (k,)   bias of the logits, zeros
c    (n,)   bias of the state, zeros, if there is one
==== ====== ==========================================

W, U and R have the seed's streams 0, 1, 2 (:func:`deq_init.draws.fold_in`).

References
----------
Bai, Kolter & Koltun, "Deep equilibrium models" (2019), arXiv 1909.01377, theorem 1.
Agarwala & Schoenholz, "Deep equilibrium networks are sensitive to initialization statistics"
(2022), arXiv 2207.09432, section 4.
Bolte, Pauwels & Vaiter, "One-step differentiation of iterative algorithms" (2023),
arXiv 2305.13768.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from deq_init import fixed_point
from deq_init._protocol import Array, LoopPrimitives
from deq_init.errors import ActivationError, ModelError, ShapeError, SolverError
from deq_init.fixed_point import Method, Solution

Gradient = Literal["implicit", "unrolled", "one_step"]

_GRADIENTS = ("implicit", "unrolled", "one_step")
_FORMS = ("out", "in")
STREAMS = {"W": 0, "U": 1, "R": 2}
"""Which stream of the seed each random parameter is drawn from."""


Report = Callable[[Solution], Any]
"""Is called with the solution of an adjoint equation."""


@dataclass(frozen=True)
class AdjointOptions:
    """How the adjoint equation is solved: see :func:`adjoint`."""

    gradient: Gradient
    method: Method
    rtol: float
    max_steps: int
    report: Report | None = None


def adjoint(
    xp: LoopPrimitives,
    vjp: Callable[[Array], Array],
    g: Array,
    lost: Array,
    options: AdjointOptions,
    report: Report | None = None,
) -> Array:
    """Return the u = Jᵀu + g that the gradient of a fixed point is made of.

    Parameters
    ----------
    xp : LoopPrimitives
        The backend's arrays and loops.
    vjp : callable
        u -> Jᵀu, each row for itself.
    g : array, shape (batch, n)
        Gradient of the loss in the fixed point, float32 or float64.
    lost : array of bool, shape (batch,)
        Samples without a fixed point: their u is zero.
    options : AdjointOptions
        With ``gradient="implicit"`` the equation is solved, with ``"one_step"`` u is g. Method,
        rtol and max_steps are those of :func:`deq_init.fixed_point.solve`.
    report : callable, optional
        Is called with the Solution: u; its residual |Jᵀu + g - u| / |g|, which is that of u = g or
        smaller; the evaluations of Jᵀu + g; whether u converged; and as ``index`` which of its
        iterates u is, 0 for u = g, the one-step gradient.
    """
    g = xp.where(lost[:, None], 0.0, g)
    if options.gradient == "one_step":
        return g
    # Lengths are squared in there: gradients of 1e-20 must not underflow.
    size = xp.max(xp.maximum(g, -g), 1)
    size = xp.where(xp.isfinite(size) & (size > 0), size, 1.0)[:, None]
    unit = g / size
    found = fixed_point.solve(
        xp,
        lambda u: vjp(u) + unit,
        unit,
        method=options.method,
        rtol=options.rtol,
        max_steps=options.max_steps,
        linear=True,
    )
    u = found.value * size
    if report is not None:
        report(replace(found, value=u))
    return u


def replay(
    xp: LoopPrimitives, f: Callable[[Array], Array], z0: Array, counts: Array, most: int
) -> Array:
    """Apply f to each sample so many times, ``most`` at most, in a loop that autodiff unrolls."""

    def body(i: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        (z,) = state
        return (xp.where((counts > i)[:, None], f(z), z),)

    return xp.fori_loop(0, most, body, (z0,))[0]


def applications(xp: LoopPrimitives, solution: Solution, lost: Array) -> Array:
    """Return how often plain iteration applied f to get the value of each sample, 0 if lost."""
    counts = solution.steps - 1 if solution.index is None else solution.index
    return xp.where(lost, 0, counts)


def lost_samples(xp: LoopPrimitives, solution: Solution) -> Array:
    """Return which samples have no residual: f was not finite there, or blew up."""
    return ~xp.isfinite(solution.residual)


def require_gradient(gradient: Any, method: Any) -> None:
    """Raise SolverError for a gradient that is unknown, or that the method does not have."""
    if gradient not in _GRADIENTS:
        raise SolverError(
            "expected gradient 'implicit', 'unrolled' or 'one_step', received "
            f"{gradient!r}. Pass gradient='implicit'."
        )
    if gradient == "unrolled" and method == "anderson":
        raise SolverError(
            "expected plain iteration where it is unrolled, received method='anderson'. Pass "
            "method='plain', or gradient='implicit' for the exact gradient of either."
        )


def require_attachable(gradient: Any) -> None:
    """Raise SolverError for a gradient that a fixed point alone does not determine."""
    if gradient not in ("implicit", "one_step"):
        raise SolverError(
            f"expected gradient 'implicit' or 'one_step', received {gradient!r}. Pass the start "
            "to unrolled(), too, for the gradient of the iteration."
        )


def require_model(
    inputs: Any, width: Any, classes: Any, form: Any, activation: Any, named: Mapping[str, Any]
) -> Any:
    """Return the activation of a model's request that is in order.

    Raises
    ------
    ShapeError
        For a size that is no positive integer.
    ModelError
        For an unknown form.
    ActivationError
        For an activation that is neither named nor callable.
    """
    require_sizes(inputs=inputs, width=width, classes=classes)
    if form not in _FORMS:
        raise ModelError(
            f"expected form 'out', φ(W z) + U x, or 'in', φ(W z + U x), received {form!r}. "
            "Pass form='out'."
        )
    return require_activation(activation, named)


def require_sizes(**sizes: Any) -> None:
    """Raise ShapeError for a size, by its name, that is no positive integer."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ShapeError(
                f"expected {name} as a positive integer, received {size!r}. Pass e.g. {name}=64."
            )


def require_number(name: str, value: Any) -> float:
    """Return the argument of this name as a float, or raise ModelError if it is not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, (bool, str)) or not math.isfinite(number):
        raise ModelError(
            f"expected {name} as a finite number, received {value!r}. Pass e.g. {name}=1.0."
        )
    return number


def require_activation(activation: Any, named: Mapping[str, Any]) -> Any:
    """Return the activation of this name, or the function itself; else raise ActivationError."""
    if callable(activation):
        return activation
    if isinstance(activation, str) and activation in named:
        return named[activation]
    raise ActivationError(
        f"expected an activation out of {', '.join(map(repr, named))} or a function of this "
        f"framework's arrays, received {activation!r}. Pass e.g. activation='tanh'."
    )


def kernel_shapes(inputs: int, width: int, classes: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of DEQFCN's parameters as kernels (in, out), by their names."""
    shapes: dict[str, tuple[int, ...]] = {
        "W": (width, width),
        "U": (inputs, width),
        "R": (width, classes),
        "b": (classes,),
    }
    return shapes | ({"c": (width,)} if bias else {})


def require_samples(shape: tuple[int, ...], inputs: int) -> None:
    """Raise ShapeError if an array of this shape is no batch of samples."""
    if len(shape) != 2 or shape[1] != inputs:
        raise ShapeError(
            f"expected samples of shape (batch, {inputs}), received shape {tuple(shape)}. "
            "Add a batch axis of length 1 to a single sample."
        )


def require_start_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise ShapeError if the state that a solver is to start from has another shape."""
    if tuple(shape) != tuple(expected):
        raise ShapeError(
            f"expected a start z0 of shape {tuple(expected)}, received {tuple(shape)}. Pass a "
            "state for each sample, or leave z0 out for zeros."
        )


def require_arrays(arrays: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelError if a checkpoint's kernels do not have these names and shapes."""
    received = {name: tuple(np.shape(value)) for name, value in arrays.items()}
    if received != dict(shapes):
        raise ModelError(
            f"expected a checkpoint of kernels {dict(shapes)}, received {received}. Build the "
            "model with the sizes and the bias of the one that it was saved from."
        )


_LARGEST = {
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float32": float(np.finfo(np.float32).max),
    "float64": float(np.finfo(np.float64).max),
}


def checkpoint_arrays(
    arrays: Any, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint, if a model can be set to them.

    Parameters
    ----------
    arrays : mapping of str to array
        What the user passes.
    shapes : mapping of str to tuple
        Of the model's kernels, by their names.
    dtypes : mapping of str to str
        The names of the widest dtypes that the model holds each of them in.

    Raises
    ------
    ModelError
        If they are no mapping, have other names or shapes, are not real floating-point arrays, or
        have entries that are not finite, or not in the model's dtype.
    """
    if not isinstance(arrays, Mapping):
        raise ModelError(
            f"expected a checkpoint as a mapping of names to arrays, received "
            f"{type(arrays).__name__}. Pass what to_arrays() or checkpoint.load() returns."
        )
    found = {name: _floating(name, value) for name, value in arrays.items()}
    require_arrays(found, shapes)
    for name, value in found.items():
        size = np.abs(value.astype(np.float64))
        wrong = ~(size <= _LARGEST[dtypes[name]])
        if wrong.any():
            raise ModelError(
                f"expected finite numbers of at most {_LARGEST[dtypes[name]]:g}, the largest in "
                f"{dtypes[name]}, as {name}, received {value[wrong][0]} ({wrong.sum()} such "
                "entries). Load a checkpoint from before training diverged, or in a wider dtype."
            )
    return found


def _floating(name: Any, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except Exception as error:  # frameworks raise their own, for a tensor with a gradient say
        raise ModelError(
            f"expected an array as {name!r}, and converting {type(value).__name__} to NumPy "
            f"failed: {error}. Pass NumPy arrays."
        ) from error
    if array.dtype.name not in _LARGEST:
        raise ModelError(
            f"expected a floating-point array as {name!r}, one of {', '.join(_LARGEST)}, received "
            f"{array.dtype} of shape {array.shape}. Pass what to_arrays() returns."
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)
