r"""The mean-field fixed point of a nonlinear DEQ, in the limit of large n.

"out" form: :math:`z = \phi(Wz) + x`; "in" form: :math:`z = \phi(Wz + x)`. The entries of x are
independent normal with mean 0. Sections are those of ``docs/theory.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.optimize import brentq

from deq_init import scale as scales
from deq_init.errors import ScaleError
from deq_init.theory import activations
from deq_init.theory.activations import Activation, Function, Vector
from deq_init.theory.arguments import by_family, require_positive
from deq_init.theory.preactivation import Law, law_of, norm_factor, symmetric_radius_factor

Form = Literal["out", "in"]

REACTION = {"random": 0, "orthogonal": 0, "goe": 1, "antisymmetric": -1}
"""What W contains of its transpose: t of section B.1, by family."""

_LONGEST = 1e13  # times the input's length: a longer fixed point counts as none
_SHORTEST_STEP = 1e-9  # relative to the gain
_NEWTON_STEPS = 12
_TOLERANCE = 1e-12
_DIFFERENCES = 1e-7


_Factor = Callable[[Law, Activation], float]


def _free_norm(law: Law, phi: Activation) -> float:
    return norm_factor(law, phi.steepest)


def _circular_radius(law: Law, phi: Activation) -> float:
    return law.squared_response**0.5


def _semicircular_radius(law: Law, phi: Activation) -> float:
    return symmetric_radius_factor(law, phi.slopes)


# Norm and radius of J at gain 1.
_NORMS: dict[str, _Factor] = {
    "random": _free_norm,
    "orthogonal": lambda law, phi: phi.steepest,
    "goe": _free_norm,
    "antisymmetric": _free_norm,
}
_RADII: dict[str, _Factor] = {
    "random": _circular_radius,
    "orthogonal": _circular_radius,
    "goe": _semicircular_radius,
    "antisymmetric": _semicircular_radius,
}


@dataclass(frozen=True)
class MeanField:
    r"""The fixed point of a nonlinear DEQ in the limit of large n.

    Attributes
    ----------
    family : str
        The law of W.
    gain : float
        Square root of V.
    activation : Activation
        φ.
    form : {"out", "in"}
        Where the input enters.
    input_variance : float
        Variance of the entries of x.
    exists : bool
        Whether the equations have a solution; for GOE and antisymmetric, one that is connected to
        that at gain 0 and, for GOE, describes the DEQ. If not, the numbers below are infinite or
        nan.
    length : float
        :math:`q = |z|^2/n`.
    preactivation_variance : float
        Variance of the entries of h = Wz (+ x).
    response : float
        :math:`\chi`, the mean response of φ(h) to a field added to h.
    law : Law or None
        Of h, as quadrature.
    """

    family: str
    gain: float
    activation: Activation
    form: Form
    input_variance: float
    exists: bool
    length: float
    preactivation_variance: float
    response: float
    law: Law | None = field(repr=False, compare=False)

    @property
    def adjoint_amplification(self) -> float:
        """Mean of |(I - J)⁻ᵀ v|² / |v|² for a random v; infinite at and past its pole."""
        if self.law is None:
            return math.inf
        pole = self.gain**2 * self.law.squared_response
        return self.law.squared_resolvent / (1 - pole) if pole < 1 else math.inf

    @property
    def jacobian_norm(self) -> float:
        """Spectral norm of J, in the limit of large n: see :func:`jacobian_norm`."""
        if self.law is None:
            return math.nan
        return self.gain * by_family(_NORMS, self.family)(self.law, self.activation)

    @property
    def jacobian_spectral_radius(self) -> float:
        """Spectral radius of J."""
        if self.law is None:
            return math.nan
        return self.gain * by_family(_RADII, self.family)(self.law, self.activation)

    @property
    def stable(self) -> bool:
        """Whether deviations from the fixed point die out under plain iteration z ← f(z)."""
        return self.exists and self.jacobian_spectral_radius < 1


def mean_field(
    family: str,
    gain: float,
    activation: str | Activation | Function = "tanh",
    *,
    form: Form = "out",
    input_variance: float = 1.0,
) -> MeanField:
    r"""Return the mean-field fixed point of :math:`z = \phi(Wz) + x` or :math:`\phi(Wz + x)`.

    The preactivation is :math:`h = G + c\,\phi(h)`, G normal, with :math:`c = V\chi` for GOE,
    :math:`-V\chi` for antisymmetric and 0 for random and orthogonal W, and
    :math:`\chi = E[\phi'/(1 - c\phi')]`:

    .. math::

        \text{out:}\quad \mathrm{Var}\,G = Vq + c^2\sigma^2,\quad
            q = E\phi(h)^2 + (1 + 2c\chi)\sigma^2; \qquad
        \text{in:}\quad \mathrm{Var}\,G = Vq + \sigma^2,\quad q = E\phi(h)^2.

    Parameters
    ----------
    family : {"random", "orthogonal", "goe", "antisymmetric"}
        The law of W.
    gain : float
        Square root of V, not negative.
    activation : str, Activation or callable
        φ: a name out of :data:`~deq_init.theory.activations.ACTIVATIONS`, e.g. "tanh", "relu",
        "gelu", "silu". A callable maps a float64 NumPy array entry by entry; see
        :func:`~deq_init.theory.activations.custom_activation` for one with a known derivative or
        jumps of slope.
    form : {"out", "in"}
        Where the input enters.
    input_variance : float
        :math:`\sigma^2`, positive: the variance of the entries of x, which are normal.

    Returns
    -------
    MeanField
        With ``exists`` False where no fixed point of finite length exists.

    Raises
    ------
    FamilyError, ScaleError, ActivationError
        For arguments that are not of these kinds.

    Notes
    -----
    Relative accuracy near 1e-10 for the named activations, away from the edge of existence; there,
    :math:`10^{-12}` is amplified by the derivative of the length by the gain. At finite n, lengths
    differ by a relative O(1/n), more near the edge. A few milliseconds; up to half a second to find
    that GOE has no solution. Section B.1.

    Examples
    --------
    >>> round(mean_field("goe", 0.45, "tanh").length, 4)
    1.5628
    >>> mean_field("random", 1.5, "relu").exists
    False
    """
    equations = _equations(family, activation, form, input_variance)
    phi, sigma2 = equations.phi, equations.sigma2
    value = scales.require_scale("gain", gain).value
    point = equations.solve(value)
    if point is None:
        return MeanField(
            family, value, phi, form, sigma2, False, math.inf, math.inf, math.nan, None
        )
    v = value**2
    law = equations.law(v, *point)
    length = law.mean(law.value**2)
    if form == "out":
        length += (1 + 2 * law.reaction * law.response) * sigma2
    variance = law.mean(law.h**2) - law.mean(law.h) ** 2
    return MeanField(family, value, phi, form, sigma2, True, length, variance, law.response, law)


def existing_law(found: MeanField) -> Law:
    """Return the law of h, or raise ScaleError if there is no fixed point."""
    if found.law is None:
        raise ScaleError(
            f"expected a gain at which the mean-field fixed point exists, received {found.gain:g} "
            f"for the {found.family} family and {found.activation.name}. critical_gain gives the "
            "least one at which it is lost."
        )
    return found.law


def last_gain(
    family: str,
    activation: str | Activation | Function,
    form: Form,
    input_variance: float,
    largest: float,
) -> float:
    """Return the largest gain, up to a given one, at which the branch from gain 0 exists.

    For families with a reaction; the other arguments are those of :func:`mean_field`.
    """
    return _equations(family, activation, form, input_variance).follow(largest)[0]


def _equations(
    family: str, activation: str | Activation | Function, form: Form, input_variance: float
) -> _Equations:
    """Return the equations of checked arguments."""
    symmetry = by_family(REACTION, family, "nonlinear DEQ")
    if form not in ("out", "in"):
        raise ScaleError(
            f"expected form 'out' or 'in', received {form!r}. 'out' is z = φ(Wz) + x, 'in' is "
            "z = φ(Wz + x)."
        )
    sigma2 = require_positive("input_variance", input_variance)
    return _Equations(activations.resolve(activation), symmetry, form, sigma2)


@dataclass(frozen=True)
class _Equations:
    """The mean-field equations, in y = log of (Var G divided by V in "out" form) and χ."""

    phi: Activation
    symmetry: int
    form: Form
    sigma2: float

    def law(self, v: float, y: float, chi: float) -> Law:
        variance = math.exp(y) * (v if self.form == "out" else 1.0)
        return law_of(self.phi, variance**0.5, self.symmetry * v * chi)

    def variance(self, v: float, law: Law) -> float:
        """Return what Var G, divided by V in "out" form, must be."""
        square = law.mean(law.value**2)
        if self.form == "in":
            return v * square + self.sigma2
        c, chi = law.reaction, law.response
        return square + (1 + 2 * c * chi + v * (self.symmetry * chi) ** 2) * self.sigma2

    def solve(self, gain: float) -> tuple[float, float] | None:
        """Return y and χ, None if there is no solution."""
        if gain == 0 or self.symmetry == 0 or self.phi.steepest == 0:
            return self.without_reaction(gain)
        return self.with_reaction(gain)

    def without_reaction(self, gain: float) -> tuple[float, float] | None:
        """Return the shortest solution, bracketed."""
        v = gain**2

        def excess(y: float) -> float:
            return math.log(self.variance(v, self.law(v, y, 0.0))) - y

        low = math.log(self.sigma2)
        if excess(low) <= 0:
            return low, 0.0
        step, high = 0.5, low + 0.5
        while excess(high) > 0:
            if high - low > math.log(_LONGEST):
                return None
            step *= 1.5
            high += step
        return float(brentq(excess, low, high, xtol=1e-14, rtol=1e-14)), 0.0

    def with_reaction(self, gain: float) -> tuple[float, float] | None:
        """Return the solution on the branch that starts at gain 0, if it gets that far."""
        reached, point = self.follow(gain)
        return point if reached == gain else None

    def follow(self, gain: float) -> tuple[float, tuple[float, float]]:
        """Follow the branch that starts at gain 0 to a gain, or to its end; return where it is.

        Newton's method at each step; a step that fails is halved.
        """
        start = self.law(1e-12, math.log(self.sigma2), 0.0)
        point = np.array([math.log(self.variance(0.0, start)), start.response])
        reached, step, failed = 0.0, min(gain, 0.5 / self.phi.steepest), False
        while reached < gain and step > _SHORTEST_STEP * max(reached, step):
            trial = min(reached + step, gain)
            found = self._newton(trial**2, point)
            if found is None:
                step, failed = step / 2, True
            else:
                reached, point = trial, found
                step, failed = (step if failed else 2 * step), False
        return reached, (float(point[0]), float(point[1]))

    def _newton(self, v: float, point: Vector) -> Vector | None:
        """Return the solution near a point, if it is on the branch that starts at gain 0."""
        previous = math.inf
        for _ in range(_NEWTON_STEPS):
            residual = self._residual(v, point)
            if residual is None:
                return None
            size = float(np.abs(residual).max())
            columns = [self._residual(v, point + step) for step in _DIFFERENCES * np.eye(2)]
            if columns[0] is None or columns[1] is None:
                return None
            jacobian = (np.array(columns).T - residual[:, None]) / _DIFFERENCES
            determinant = jacobian[0, 0] * jacobian[1, 1] - jacobian[0, 1] * jacobian[1, 0]
            # It is 1 at gain 0 and vanishes where the branch turns back.
            if determinant <= 0 or size > 4 * previous:
                return None
            if size < _TOLERANCE or (size < 1e-9 and size > previous / 4):
                return point if self._describes(v, point) else None
            point, previous = point - np.linalg.solve(jacobian, residual), size
        return None

    def _describes(self, v: float, point: Vector) -> bool:
        """Whether the solution describes a DEQ: for GOE, only while I - J stays invertible."""
        return self.symmetry != 1 or v * self.law(v, *map(float, point)).squared_response < 1

    def _residual(self, v: float, point: Vector) -> Vector | None:
        """Return by how much the equations fail, None outside of their domain."""
        y, chi = map(float, point)
        c = self.symmetry * v * chi
        if max(c * slope for slope in self.phi.slopes) > 1 - 1e-9 or abs(y) > 100:
            return None
        law = self.law(v, y, chi)
        variance = self.variance(v, law)
        if not 0 < variance < _LONGEST * self.sigma2:
            return None
        return np.array([math.log(variance) - y, law.response - chi])
