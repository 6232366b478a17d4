r"""Spectral norm and radius from products with vectors, each with an error estimate.

**Norm.** Lanczos with full reorthogonalisation on the symmetric operator itself, or on
:math:`x \mapsto W^T W x`, which for the largest singular value is Golub-Kahan-Lanczos
bidiagonalisation. **Radius.** Arnoldi with full reorthogonalisation and without restarts: right
for complex pairs and non-normal operators, which real power iteration is not.

Operators act on batches: vectors have the shape (batch, n), and each row has an operator of its
own, such as the Jacobian of one sample. A Ritz value exceeds the norm that it estimates by no more
than rounding.

References
----------
Golub & Van Loan, Matrix Computations, 4th ed., chapter 10; Saad, Numerical Methods for Large
Eigenvalue Problems, 2nd ed., sections 3.2 (Kato-Temple) and 6.2. Hochstenbach, "Probabilistic
upper bounds for the matrix two-norm", J. Sci. Comput. 57 (2013), for the risk of a start;
Kuczyński & Woźniakowski, "Estimating the largest eigenvalue by the power and Lanczos algorithms
with a random start", SIAM J. Matrix Anal. Appl. 13 (1992), for that risk with any spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from deq_init._protocol import Array, IterationPrimitives

_STEPS = 256  # of Lanczos on a matrix: enough beyond n = 10**4
_RISK = 1e-3  # of a start that hides the norm of a matrix
_CHECK = 8  # steps between two looks at the Ritz values
WORTHWHILE = 256
"""Shorter side of a matrix from which on its norm is found faster than by decomposing it."""

RADIUS_WORTHWHILE = 512
"""Size of a matrix from which on its spectral radius is found faster than by decomposing it."""
RADIUS_WORTHWHILE_COMPILED = 2048
"""The same where the method has to be compiled first, which takes seconds."""
_RADIUS_LOOKS = (2.0, 5.5, 7.0, 8.5, 11.0)  # products between looks, in units of √n

_TINY = 1e-30


@dataclass(frozen=True)
class Estimate:
    """A measured norm or radius.

    Attributes
    ----------
    value : float or array, shape (batch,)
        The estimate.
    error : float or array, shape (batch,)
        Estimate of its absolute error.
    matvecs : int
        Products with the operators or their transposes, one of a whole batch counted as one.
    converged : bool or array, shape (batch,)
        Whether the error is at most the tolerance times the value.
    """

    value: Any
    error: Any
    matvecs: Any
    converged: Any


def symmetric_norm(
    xp: IterationPrimitives,
    apply: Callable[[Array], Array],
    start: Array,
    *,
    rtol: float,
    max_steps: int,
    squared: bool = False,
    risk: float | None = None,
) -> Estimate:
    """Return the largest modulus of an eigenvalue of symmetric operators, by Lanczos.

    Parameters
    ----------
    xp : IterationPrimitives
        The backend's arrays and loops.
    apply : callable
        The operators' products with vectors, both of shape (batch, n).
    start : array, shape (batch, n)
        Vectors that are not orthogonal to the eigenvectors in question, such as normal ones.
    rtol : float
        Relative error to stop at.
    max_steps : int
        Products at most; n are enough.
    squared : bool
        Whether the operators are WᵀW and the spectral norm of W is wanted, the square root; each
        step is then two products.
    risk : float, optional
        Probability, over normal starts, that the norm exceeds value + error. By default the error
        is that of the eigenvalue which was found, and a larger one may have been overlooked.

    Returns
    -------
    Estimate
        Arrays of shape (batch,). Entries that are not finite give a value of NaN.

    Notes
    -----
    Be θ the largest Ritz value, s₁ the first entry of its vector of length 1, r its residual, and c
    the component of the start of length 1 along the eigenvector of an eigenvalue λ > θ. The Ritz
    vector is a polynomial of the operator, times the start; the polynomial is 1 / s₁ at θ and
    rises from there on. So the Ritz vector's component along that eigenvector is at least
    c / |s₁|, and λ - θ, which is r over that component at most, at most r |s₁| / c. Normal starts
    have a c below risk √(π / 2n) with the probability ``risk``.
    Where many eigenvalues crowd at the edge, that says little, and another bound takes its place:
    for operators WᵀW, λ - θ > ε λ after k steps has a probability below 1.648 √n exp(-√ε (2k - 1))
    over the starts, whatever the spectrum. The smaller of the two bounds counts.
    """
    batch, n = start.shape
    size = min(max_steps, n)
    epsilon = epsilon_of(start)
    overlooked = None
    if risk is not None:
        overlooked = (risk * math.sqrt(math.pi / 2 / n), math.log(1.648 * math.sqrt(n) / risk))
    length = xp.sqrt(xp.sum(start * start, 1))
    basis = xp.put(xp.zeros((batch, size + 1, n), start), 0, start / length[:, None])

    def unfinished(state: tuple[Array, ...]) -> Any:
        count, _, _, _, value, error = state
        return (count < size) & xp.any((error > rtol * value) & xp.isfinite(error))

    def some_steps(state: tuple[Array, ...]) -> tuple[Array, ...]:
        count, basis, alpha, beta, _, _ = state

        def step(index: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
            basis, alpha, beta = state
            known, last = xp.leading(basis, index + 1), xp.take(basis, index)
            x = apply(last)
            scale = xp.sqrt(xp.sum(x * x, 1))
            alpha = xp.put(alpha, index, xp.sum(x * last, 1))
            for _ in range(2):
                x = x - _combine(known, _components(known, x))
            beside = xp.sqrt(xp.sum(x * x, 1))
            # What rounding leaves of an invariant subspace is no new direction.
            goes_on = beside > 10 * epsilon * scale
            unit = x / xp.maximum(beside, _TINY)[:, None]
            basis = xp.put(basis, index + 1, xp.where(goes_on[:, None], unit, 0.0))
            return basis, alpha, xp.put(beta, index, xp.where(goes_on, beside, 0.0))

        stop = xp.minimum(count + _CHECK, size)
        basis, alpha, beta = xp.fori_loop(count, stop, step, (basis, alpha, beta))
        value, error = xp.at_length(
            stop, size, lambda k: _ritz(xp, alpha[:, :k], beta[:, :k], stop, squared, overlooked)
        )
        return stop, basis, alpha, beta, value, error

    alpha, beta = xp.zeros((batch, size), start), xp.zeros((batch, size), start)
    unknown = xp.zeros((batch,), start)
    state = xp.while_loop(
        unfinished, some_steps, (xp.integer(0), basis, alpha, beta, unknown, unknown + 1.0)
    )
    count, value, error = state[0], state[4], state[5]
    return Estimate(value, error, count * (1 + squared), error <= rtol * value)


def spectral_radius(
    xp: IterationPrimitives,
    apply: Callable[[Array], Array],
    start: Array,
    *,
    rtol: float,
    max_steps: int,
    margin: float = 1e-5,
    looks: Sequence[int] | None = None,
) -> Estimate:
    """Return the largest modulus of an eigenvalue of any operators, by Arnoldi.

    Parameters
    ----------
    xp : IterationPrimitives
        The backend's arrays and loops.
    apply : callable
        The operators' products with vectors, both of shape (batch, n).
    start : array, shape (batch, n)
        Normal vectors, say.
    rtol : float
        Relative error to stop at.
    max_steps : int
        Products at most; with n of them the eigenvalues are those of the operator.
    margin : float
        Ritz values whose moduli are within this of the largest, relative to it, have to converge
        too: one of them may be about to overtake it.
    looks : sequence of int, optional
        Rising numbers of products after which to look at the Ritz values, at least two of them.
        Where loops are compiled, each look is compiled on its own, at its own size; by default
        one is, at the largest size.

    Returns
    -------
    Estimate
        Arrays of shape (batch,). Entries that are not finite give a value of NaN.

    Notes
    -----
    The error is the residual of the dominant Ritz value times its condition number, or how much
    the value moved since it was last looked at, if that is more; and what rounding makes of the
    condition number. Where many eigenvalues share the largest modulus, as an orthogonal matrix's
    do, it is several times the true error.
    """
    batch, n = start.shape
    size = min(max_steps, n)
    epsilon = epsilon_of(start)
    length = xp.sqrt(xp.sum(start * start, 1))
    basis = xp.put(xp.zeros((batch, size + 1, n), start), 0, start / length[:, None])

    def step(index: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        basis, rows, beta = state
        known = xp.leading(basis, index + 1)
        x = apply(xp.take(basis, index))
        scale = xp.sqrt(xp.sum(x * x, 1))
        first = _components(known, x)
        x = x - _combine(known, first)
        second = _components(known, x)
        x = x - _combine(known, second)
        beside = xp.sqrt(xp.sum(x * x, 1))
        # What rounding leaves of an invariant subspace is no new direction.
        goes_on = (beside > 10 * epsilon * scale) & (index + 1 < n)
        unit = x / xp.maximum(beside, _TINY)[:, None]
        basis = xp.put(basis, index + 1, xp.where(goes_on[:, None], unit, 0.0))
        row = (first + second)[:, :size]
        row = xp.concatenate([row, xp.zeros((batch, size - row.shape[1]), row)], 1)
        rows = xp.put(rows, index, row)
        return basis, rows, xp.put(beta, index, xp.where(goes_on, beside, 0.0))

    rows, beta = xp.zeros((batch, size, size), start), xp.zeros((batch, size), start)
    unknown = xp.zeros((batch,), start)

    def unfinished(state: tuple[Array, ...], stop: int = size) -> Any:
        count, _, _, _, value, error = state
        return (count < stop) & xp.any((error > rtol * value) & xp.isfinite(value))

    def stage(state: tuple[Array, ...], done: Any, stop: Any) -> tuple[Array, ...]:
        _, basis, rows, beta, before, _ = state
        part, rows, beta = xp.fori_loop(done, stop, step, (xp.leading(basis, stop + 1), rows, beta))
        value, error = xp.at_length(
            stop,
            size,
            lambda k: _dominant(xp, rows[:, :k, :k], beta[:, :k], stop, epsilon, margin),
        )
        moved = xp.where(xp.take(beta, stop - 1) > 0, abs(value - before), 0.0)
        error = xp.where(moved > error, moved, error)
        return stop, xp.put_leading(basis, part), rows, beta, value, error

    def next_stage(state: tuple[Array, ...]) -> tuple[Array, ...]:
        # Decompositions cost more and more: a constant number of them for each doubling.
        count = state[0]
        stop = xp.minimum(count + xp.maximum(count // 2, xp.integer(_CHECK)), xp.integer(size))
        return stage(state, count, stop)

    state = (xp.integer(0), basis, rows, beta, unknown, unknown + np.inf)
    if looks is None:
        state = xp.while_loop(unfinished, next_stage, state)
    else:
        done = 0
        # Loops that run once or not at all: compiled ones, too, know their matrices' sizes then.
        for stop in [*(count for count in looks if count < size), size]:
            state = xp.while_loop(
                partial(unfinished, stop=stop), partial(_counted, xp, stage, done, stop), state
            )
            done = stop
    count, value, error = state[0], state[4], state[5]
    return Estimate(value, error, count, error <= rtol * value)


def _counted(
    xp: IterationPrimitives,
    stage: Callable[[tuple[Array, ...], int, int], tuple[Array, ...]],
    done: int,
    stop: int,
    state: tuple[Array, ...],
) -> tuple[Array, ...]:
    """Run a stage of known length, and count it as the backend counts."""
    return (xp.integer(stop), *stage(state, done, stop)[1:])


def matrix_norm(xp: IterationPrimitives, w: Array, start: Array, *, symmetric: bool) -> Estimate:
    """Return the spectral norm of a matrix to a few units in the last place.

    Parameters
    ----------
    xp : IterationPrimitives
        The backend's arrays and loops.
    w : array, shape (m, n)
        The matrix.
    start : array, shape (1, n)
        Normals.
    symmetric : bool
        Whether w is its own transpose.

    Returns
    -------
    Estimate
        Arrays of shape (1,). Random, GOE and orthogonal matrices of every size converge; others
        may not, if many singular values lie next to the largest.
    """
    # Squares of large entries would overflow.
    scale = xp.maximum(xp.largest(w), _TINY)

    def apply(x: Array) -> Array:
        y = _times(xp, w, x) / scale
        return y if symmetric else y @ w / scale

    found = symmetric_norm(
        xp,
        apply,
        start,
        rtol=8 * epsilon_of(w),
        max_steps=_STEPS,
        squared=not symmetric,
        risk=_RISK,
    )
    return replace(found, value=found.value * scale, error=found.error * scale)


def matrix_radius(
    xp: IterationPrimitives, w: Array, start: Array, *, compiled: bool = False
) -> Estimate:
    """Return the spectral radius of a square matrix, to better than 1e-5 in float32.

    Parameters
    ----------
    xp : IterationPrimitives
        The backend's arrays and loops.
    w : array, shape (n, n)
        The matrix.
    start : array, shape (1, n)
        Normals.
    compiled : bool
        Whether each look at the Ritz values has to be compiled, so that few are better.

    Returns
    -------
    Estimate
        Arrays of shape (1,). Random matrices converge. Those do not, and say so, that have many
        eigenvalues of nearly the largest modulus, or ill-conditioned ones.

    Notes
    -----
    The eigenvalues of a random matrix crowd at the edge of a disc, about √n of them in the
    outermost ring, and 6 to 8 times √n products tell them apart. Restarts forget what they
    learned and can settle on the wrong one, hence none; and everything within a hundredth of the
    largest modulus has to have converged, so that none is overlooked.
    """
    n = w.shape[0]
    scale = xp.maximum(xp.largest(w), _TINY)
    factors = _RADIUS_LOOKS[1:4] if compiled else _RADIUS_LOOKS
    looks = [math.ceil(factor * math.sqrt(n)) for factor in factors]
    found = spectral_radius(
        xp,
        lambda x: _times(xp, w, x) / scale,
        start,
        rtol=max(64 * epsilon_of(w), 1e-12),
        max_steps=looks[-1],
        margin=0.01,
        looks=looks,
    )
    return replace(found, value=found.value * scale, error=found.error * scale)


def _times(xp: IterationPrimitives, w: Array, x: Array) -> Array:
    """Return W x for one row x: as a product with a column, which XLA is fastest at by far."""
    return xp.transpose(w @ xp.transpose(x))


def epsilon_of(x: Array) -> float:
    """Return the machine epsilon of an array's dtype."""
    name = getattr(x.dtype, "name", None) or str(x.dtype).rpartition(".")[2]
    return float(np.finfo(name).eps)


def _components(basis: Array, x: Array) -> Array:
    """Return the components of x along the basis, (batch, k, n) and (batch, n) -> (batch, k)."""
    return (basis @ x[:, :, None])[:, :, 0]


def _combine(basis: Array, components: Array) -> Array:
    """Return the vectors of these components, (batch, k, n) and (batch, k) -> (batch, n)."""
    return (components[:, None, :] @ basis)[:, 0, :]


def _above_diagonal(xp: IterationPrimitives, beta: Array, count: Any) -> Array:
    """Return matrices with the first ``count - 1`` entries of beta to the right of the diagonal."""
    eye = xp.eye(beta.shape[1], beta)
    last = xp.take(beta, count - 1) * 0.0
    inner = beta * xp.put(beta * 0.0 + 1.0, count - 1, last)
    return inner[:, :, None] * xp.concatenate([eye[1:], eye[:1] * 0.0], 0)


def _ritz(
    xp: IterationPrimitives,
    alpha: Array,
    beta: Array,
    count: Any,
    squared: bool,
    overlooked: tuple[float, float] | None,
) -> tuple[Array, Array]:
    """Return the largest modulus of the Ritz values and an estimate of its error.

    alpha and beta, of shape (batch, k), are the diagonal of the tridiagonal matrices and the
    entries beside it, of which the last couples to the vector that would come next; what stands
    after ``count`` is zero. At either end of the spectrum the error is at most the residual r, and
    r² over the gap to the other eigenvalues (Kato-Temple), for which the gap to the next Ritz
    value stands in. Eigenvalues farther out are bounded by the ``least`` component of the start.
    """
    size = alpha.shape[1]
    finite = xp.isfinite(xp.sum(alpha + beta, 1))
    alpha, beta = (xp.where(finite[:, None], x, 0.0) for x in (alpha, beta))
    coupling = xp.take(beta, count - 1)
    above = _above_diagonal(xp, beta, count)
    diagonal = alpha[:, :, None] * xp.eye(size, alpha)
    theta, vectors = xp.eigh(diagonal + above + xp.transpose(above))
    residual = coupling[:, None] * abs(xp.take(vectors, count - 1))
    first = abs(xp.take(vectors, 0))
    ends = []
    for value, far, r, s in (
        (theta[:, -1], theta[:, -1:] - theta[:, -2:-1], residual[:, -1], first[:, -1]),
        (-theta[:, 0], theta[:, 1:2] - theta[:, :1], residual[:, 0], first[:, 0]),
    )[: 1 if squared else 2]:
        bound = xp.minimum(r, r * r / (far[:, 0] + _TINY)) if size > 1 else r
        if overlooked is not None:
            least, logarithm = overlooked
            hidden = r * s / least
            if squared:
                share = (logarithm / (2.0 * count - 1.0 + value * 0.0)) ** 2
                beyond = value * share / xp.maximum(1.0 - share, _TINY)
                hidden = xp.minimum(hidden, beyond)
            bound = xp.maximum(bound, hidden)
        ends.append(value + bound)
    value = xp.maximum(theta[:, -1], -theta[:, 0])
    error = xp.maximum(ends[0], ends[-1]) - value
    if squared:
        root = xp.sqrt(value)
        error = error / (root + xp.sqrt(value + error) + _TINY)
        value = root
    return xp.where(finite, value, np.nan), xp.where(finite, error, np.inf)


def _dominant(
    xp: IterationPrimitives, rows: Array, beta: Array, count: Any, epsilon: float, margin: float
) -> tuple[Array, Array]:
    """Return the largest modulus of the Ritz values and an estimate of its error.

    Row j of rows has the entries up to the diagonal of column j of the Hessenberg matrix H, and
    beta those below the diagonal. A left eigenvector of Hᵀ is a right one of H: its last entry
    times the last beta is the residual, and scaled as :meth:`IterationPrimitives.eig` does, the
    residual times the condition number. Rounding changes the columns of H in directions of their
    own, so that the matrix of these errors is about as large as the largest of them.
    """
    finite = xp.isfinite(xp.sum(xp.sum(rows, 2) + beta, 1))
    rows = xp.where(finite[:, None, None], rows, 0.0)
    beta = xp.where(finite[:, None], beta, 0.0)
    coupling = xp.take(beta, count - 1)[:, None]
    moduli, dual = xp.eig(rows + _above_diagonal(xp, beta, count))
    value = xp.max(moduli, 1)
    rounding = epsilon * xp.sqrt(xp.max(xp.sum(rows * rows, 2) + beta * beta, 1))
    errors = xp.where(coupling > 0, coupling * xp.take(dual, count - 1), 0.0)
    errors = errors + rounding[:, None] * xp.sqrt(xp.sum(dual * dual, 1))
    error = xp.max(xp.where(moduli >= (1 - margin) * value[:, None], errors, 0.0), 1)
    known = xp.isfinite(error)
    return xp.where(finite, value, np.nan), xp.where(finite & known, error, np.inf)
