"""Products with a Jacobian that a framework differentiates wrongly: found out, and replaced.

Where J v is the derivative of u -> Jᵀu, f is differentiated twice. A backward pass that the
framework cannot differentiate, as those of fused kernels, then counts as a constant, and its part
of J as 0, without an error. What shows it is ⟨u, J v⟩ = ⟨Jᵀu, v⟩. In its place come central
differences of f,

.. math:: J v \\approx (f(z + h v) - f(z - h v)) / 2h,

with the error that shows when h is doubled.
"""

from __future__ import annotations

from collections.abc import Callable

from deq_init._protocol import Array, IterationPrimitives
from deq_init.errors import FunctionError
from deq_init.spectra import epsilon_of

Product = Callable[[Array], Array]

_TINY = 1e-30
_DISAGREES = 0.05  # of differences with Jᵀ, beyond which neither can be told to be right


class Differences:
    """Products J v as central differences of f.

    Parameters
    ----------
    xp : IterationPrimitives
        The backend's arrays.
    f : callable
        Maps arrays of shape (batch, n) to such.
    z : array, shape (batch, n)
        Where.
    vjp : callable
        Products with Jᵀ.
    probe : array, shape (batch, n)
        Vectors that the error is estimated with.

    Attributes
    ----------
    error : array, shape (batch,)
        Estimate of the products' relative error: by how much they change if the step is doubled.
    transpose : callable
        Products with Jᵀ, which has the same eigenvalues as J.
    """

    def __init__(
        self, xp: IterationPrimitives, f: Product, z: Array, vjp: Product, probe: Array
    ) -> None:
        self._xp, self._f, self._z, self.transpose = xp, f, z, vjp
        size = xp.lengths(z) + xp.lengths(f(z))
        # Half of the step at which truncation and rounding are alike: kinks are near, too.
        self._step = 0.5 * epsilon_of(z) ** (1 / 3) * xp.where(size > 0, size, z.shape[1] ** 0.5)
        once, twice = self(probe), self._at(probe, 2.0)
        self.error = xp.lengths(twice - once) / xp.maximum(xp.lengths(once), _TINY)

    def __call__(self, v: Array) -> Array:
        """Return J v."""
        return self._at(v, 1.0)

    def _at(self, v: Array, factor: float) -> Array:
        xp = self._xp
        length = xp.lengths(v)
        step = (factor * self._step / xp.where(length > 0, length, 1.0))[:, None]
        forward, backward = self._f(self._z + step * v), self._f(self._z - step * v)
        return (forward - backward) / (2 * step)


def checked(
    xp: IterationPrimitives, f: Product, z: Array, jvp: Product, vjp: Product, normals: Array
) -> Product:
    """Return products with J that agree with those with Jᵀ: jvp, or differences of f.

    Parameters
    ----------
    xp : IterationPrimitives
        The backend's arrays.
    f : callable
        Maps arrays of shape (batch, n) to such.
    z : array, shape (batch, n)
        Where.
    jvp, vjp : callable
        Products with J, which may be wrong, and with Jᵀ, which count as right.
    normals : array, shape (batch, n)
        Random vectors.

    Raises
    ------
    FunctionError
        If differences of f do not agree with Jᵀ either.

    Notes
    -----
    Costs one product with each. All samples count together: where one of them changes another, the
    Jacobian of the batch has its transpose, too.
    """
    u, w = _unit(xp, normals), _unit(xp, xp.concatenate([normals[:, 1:], normals[:, :1]], 1))
    pulled = vjp(u)
    # Along Jᵀu a missing part of J cannot cancel.
    v = _unit(xp, pulled) + w
    scale, gap = _gap(xp, u, jvp(v), pulled, v)
    epsilon = 100 * epsilon_of(z)
    if not xp.any(gap > epsilon * scale):
        return jvp
    # Products may round by more than their dtype does: Jᵀ is linear but for that.
    other, both = vjp(w), vjp(u + w)
    rounding = xp.lengths(both - pulled - other) / (xp.lengths(pulled) + xp.lengths(other) + _TINY)
    rounding = xp.max(xp.where(xp.isfinite(rounding), rounding, 0.0)[None], 1)
    if not xp.any(gap > (10 * rounding + epsilon) * scale):
        return jvp
    differences = Differences(xp, f, z, vjp, v)
    scale, gap = _gap(xp, u, differences(v), pulled, v)
    if xp.any(~(gap <= _DISAGREES * scale)):
        raise FunctionError(
            "expected the derivative of f's backward pass, from which products with the Jacobian "
            "come, to agree with that pass, received one that does not (⟨u, Jv⟩ is not ⟨Jᵀu, v⟩); "
            "nor do finite differences of f. Write the backward pass of custom functions in "
            "operations that can be differentiated, and leave out dropout and low precision."
        )
    return differences


def _gap(
    xp: IterationPrimitives, u: Array, pushed: Array, pulled: Array, v: Array
) -> tuple[Array, Array]:
    """Return a scale, and how far ⟨u, J v⟩ is from ⟨Jᵀu, v⟩, as arrays of one number."""
    difference = xp.sum(u * pushed, 1) - xp.sum(pulled * v, 1)
    scale = xp.lengths(u) * xp.lengths(pushed) + xp.lengths(pulled) * xp.lengths(v)
    finite = xp.isfinite(difference) & xp.isfinite(scale)
    total, scale = (xp.sum(xp.where(finite, x, 0.0)[None], 1) for x in (difference, scale))
    return scale, abs(total)


def _unit(xp: IterationPrimitives, x: Array) -> Array:
    return x / xp.maximum(xp.lengths(x), _TINY)[:, None]
