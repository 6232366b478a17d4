r"""Solve :math:`z = f(z)`, sample by sample, without ever raising on divergence.

Anderson acceleration keeps the last differences of the iterates and of the residuals
:math:`r = f(z) - z`, and steps to :math:`z + \beta r - \sum_j \gamma_j (\Delta z_j + \beta\,
\Delta r_j)`, with the :math:`\gamma` that make :math:`r - \sum_j \gamma_j \Delta r_j` shortest.
The differences :math:`\Delta r_j` are brought to length 1, and the normal equations regularised by
what rounding leaves of them.

An accelerated step may leave the domain of f where plain steps do not: f(z) = log(1 + z), say.
Where f is not finite, or blew up, the sample goes back to its last iterate, forgets the
differences, and takes the plain step from there; if f fails again, from its best iterate, whose
residual is smallest.

References
----------
Walker & Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49 (2011).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from deq_init._protocol import Array, LoopPrimitives
from deq_init.errors import SolverError
from deq_init.spectra import epsilon_of

Method = Literal["anderson", "plain"]

_METHODS = ("anderson", "plain")
_TINY = 1e-30
# What a sample went back to, for a plain step from there.
_LAST, _BEST = 1, 2


@dataclass(frozen=True)
class Solution:
    """A fixed point as found.

    Attributes
    ----------
    value : array, or the tree of arrays that the start was
        For each sample the iterate that converged; else its best one, whose residual is smallest.
    residual : array, shape (batch,)
        |f(z) - z| / |f(z)| at that value, in the Euclidean norm over a sample; inf for a sample
        that was lost: f was not finite, or grew beyond 1 / epsilon of what it was at the start,
        and that after plain steps too.
    steps : array of int, shape (batch,)
        Evaluations of f that the sample took part in.
    converged : array of bool, shape (batch,)
        Whether the residual is at most the tolerance, and not just because the iterates grew: then
        |f(z) - z| has fallen to half of what it was at the start, too.
    index : array of int, shape (batch,), or None
        Which of its iterates the value is, z0 being number 0: for plain iteration, how often f was
        applied to get it. None if the solver does not say; then it is number ``steps - 1``.
    """

    value: Any
    residual: Any
    steps: Any
    converged: Any
    index: Any = None


def solve(
    xp: LoopPrimitives,
    f: Callable[[Array], Array],
    z0: Array,
    *,
    method: Method = "anderson",
    rtol: float,
    max_steps: int,
    memory: int = 5,
    damping: float = 1.0,
    rounding: float = 0.0,
    floor: float = 0.0,
    linear: bool = False,
) -> Solution:
    """Return the fixed points of f near z0, for each sample of a batch.

    Parameters
    ----------
    xp : LoopPrimitives
        The backend's arrays and loops.
    f : callable
        Maps arrays of shape (batch, n) to such, each row for itself.
    z0 : array, shape (batch, n)
        Where to start, float32 or float64.
    method : {"anderson", "plain"}
        Anderson acceleration, or z <- z + damping (f(z) - z).
    rtol : float
        Residual to stop at.
    max_steps : int
        Evaluations of f at most.
    memory : int
        Differences that Anderson acceleration keeps.
    damping : float
        The share of the residual that is added, in (0, 1].
    rounding : float
        Relative error of f's values, in [0, 1); z0's epsilon, if that is more.
    floor : float
        Share of |z0| that the residual is relative to where |f(z)| is less, as in a contraction to
        zero; z0's epsilon, if that is more.
    linear : bool
        Whether f is z -> A z + z0, whose iterates may grow without an end: then the residual is
        |f(z) - z| / |z0|, and no value has a larger one than z0. Convergence is as for any f.

    Returns
    -------
    Solution
        A sample that converged or was lost stops, and does not touch the others.

    Raises
    ------
    SolverError
        For options out of their ranges.
    """
    require_options(method, rtol, max_steps, memory, damping, rounding)
    epsilon = epsilon_of(z0)
    # Below this, a fixed point of zero counts as met.
    start = xp.lengths(z0)
    lowest, least = xp.maximum(max(floor, epsilon) * start, _TINY), start / epsilon + _TINY
    ridge = 30 * max(rounding, epsilon)

    def proceed(state: tuple[Array, ...]) -> Any:
        count, running = state[0], state[4]
        return (count < max_steps) & xp.any(running)

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        # Samples do not meet: what is not finite in one that is lost needs no mask. One that
        # stopped has z = value.
        count, z, value, residual, running, converged, steps, index, limit, began, *past = state
        y = f(z)
        r = y - z
        size, distance = xp.lengths(y), xp.lengths(r)
        started = limit > 0
        began = xp.where(started, began, distance)
        limit = xp.where(started, limit, xp.maximum(size / epsilon, least))
        error = distance / xp.maximum(size, lowest)
        # Iterates that run away at a constant pace have a small relative residual, too.
        settled = (distance <= began / 2) | (size <= 2 * epsilon * limit)
        kept = running & (error < np.inf) & (size <= limit)
        arrived = kept & settled & (error <= rtol)
        if linear:
            error = distance / xp.maximum(start, _TINY)
        best = (kept & (error <= residual)) if linear else arrived | (kept & (error <= residual))
        value = xp.select(best | ~running, z, value)
        residual = xp.where(best, error, residual)
        steps = steps + xp.integers(running)
        index = xp.where(best, count, index)
        converged = converged | arrived
        # Not z + r: undamped plain iteration is f over and over, to the bit.
        target = y if damping == 1 else z + damping * r
        going = kept
        if method == "anderson":
            tries, *history = past
            failed = running & ~kept
            going = kept | (failed & (tries < _BEST) & (residual < np.inf))
            plain = failed | (tries == _BEST)
            target, history = _accelerated(xp, count, target, r, failed, plain, history, ridge)
            target = xp.select(~(failed & (tries == _LAST)), target, value)
            # From the best iterate the next is a plain step, and the last try.
            tries = xp.where(kept, (_BEST + 1) * xp.integers(tries == _BEST), tries + 1)
            past = [tries, *history]
        if not linear:
            residual = xp.where(running & ~going, np.inf, residual)
        running = going & ~converged
        z = xp.select(running, target, value)
        state = (count + 1, z, value, residual, running, converged, steps, index, limit, began)
        return *state, *past

    batch, n = z0.shape
    unknown = xp.zeros((batch,), z0)
    no = unknown > 0
    zero = xp.integers(no)
    state = (xp.integer(0), z0, z0, unknown + np.inf, ~no, no, zero, zero, unknown, unknown)
    if method == "anderson":
        empty = ((n,), (memory, n), (memory, n), (memory,), (memory, memory))
        state += (zero, z0, *(xp.zeros((batch, *shape), z0) for shape in empty))
    _, _, value, residual, _, converged, steps, index, *_ = xp.while_loop(proceed, step, state)
    return Solution(value, residual, steps, converged, index)


def require_options(
    method: Any,
    rtol: Any,
    max_steps: Any,
    memory: Any = 5,
    damping: Any = 1.0,
    rounding: Any = 0.0,
) -> None:
    """Raise SolverError for options of a solver that are out of their ranges."""
    if method not in _METHODS:
        raise SolverError(
            f"expected method 'anderson' or 'plain', received {method!r}. Pass another solver "
            "as the function that takes f and z0, where there is an argument for one."
        )
    require_rtol(rtol)
    require_count("max_steps", max_steps)
    require_count("memory", memory)
    if not (_is_real(damping) and 0 < damping <= 1):
        raise SolverError(
            f"expected damping in (0, 1], received {damping!r}. Pass 1.0 for full steps."
        )
    if not (_is_real(rounding) and 0 <= rounding < 1):
        raise SolverError(
            f"expected rounding in [0, 1), received {rounding!r}. Pass an epsilon, e.g. 2**-7 for "
            "bfloat16."
        )


def require_rtol(rtol: Any) -> None:
    """Raise SolverError if this is no relative tolerance."""
    if not (_is_real(rtol) and 0 < rtol < 1):
        raise SolverError(
            f"expected rtol as a number between 0 and 1, received {rtol!r}. Pass e.g. rtol=1e-3."
        )


def require_count(name: str, value: Any) -> None:
    """Raise SolverError if this is no positive integer."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise SolverError(
            f"expected {name} as a positive integer, received {value!r}. Pass e.g. {name}=100."
        )


def _is_real(x: Any) -> bool:
    return isinstance(x, (int, float, np.floating)) and math.isfinite(x)


def _accelerated(
    xp: LoopPrimitives,
    count: Any,
    target: Array,
    r: Array,
    failed: Array,
    plain: Array,
    history: list[Array],
    ridge: float,
) -> tuple[Array, list[Array]]:
    """Return the next iterate, a plain step to ``target`` less its correction, and the history.

    That is the last target and residual; their differences; and one over the lengths of the
    residuals' differences, which at such lengths have the Gram matrix ``gram``. Samples that failed
    have their last target and residual again. Where the step is to be plain, the differences get
    the scale 0, and so no weight.
    """
    last_target, last_r, moves, changes, scales, gram = history
    target, r = xp.select(~failed, target, last_target), xp.select(~failed, r, last_r)
    scales = xp.where(plain[:, None], 0.0, scales)
    # At the first step there is nothing to take a difference of.
    slot = (count - xp.minimum(count, xp.integer(1))) % changes.shape[1]
    change = r - last_r
    changes = xp.put(changes, slot, change)
    moves = xp.put(moves, slot, target - last_target)
    row, components = ((x[:, None] @ xp.transpose(changes))[:, 0] for x in (change, r))
    length = xp.sqrt(xp.take(row, slot))
    scale = xp.where((length > 0) & (count > 0) & ~plain, 1.0 / xp.maximum(length, _TINY), 0.0)
    scales = xp.put(scales, slot, scale)
    row = row * scale[:, None] * scales
    gram = xp.put(xp.transpose(xp.put(gram, slot, row)), slot, row)
    regularised = gram + ridge * xp.eye(gram.shape[1], gram)
    # No eigenvalue is below the ridge but for rounding, for which half of it is left.
    weights = xp.solve_positive(regularised, components * scales, ridge / 2) * scales
    correction = (weights[:, None] @ moves)[:, 0]
    return target - correction, [target, r, moves, changes, scales, gram]


def eliminate(xp: LoopPrimitives, a: Array, b: Array, least: float) -> Array:
    """Return a⁻¹ b of small symmetric matrices whose eigenvalues are above ``least``.

    Gauss and Jordan's elimination. No pivot is below the smallest eigenvalue but for rounding, and
    those that are below ``least`` are raised to it. For backends in which batches of LAPACK's small
    problems take longer.

    Parameters
    ----------
    a : array, shape (batch, k, k)
        The matrices.
    b : array, shape (batch, k)
        A right side for each.
    least : float
        The smallest pivot.

    Returns
    -------
    array, shape (batch, k)
    """
    size = a.shape[1]
    unit = xp.eye(size, a)
    # By columns: a is symmetric, and b a row whose entries lie side by side.
    system = xp.concatenate([a, b[:, None]], 1)
    for k in range(size):
        pivot = xp.maximum(system[:, k, k], least)
        factors = (system[:, k] - unit[k]) / pivot[:, None]
        system = system - system[:, :, k, None] * factors[:, None]
    return system[:, size]
