r"""The Jacobian of a DEQ at its mean-field fixed point, and the gains that give it a size.

J is the derivative of the right-hand side of :math:`z = \phi(Wz) + x` or :math:`\phi(Wz + x)` by z:
diag(φ'(h)) W. Limits of large n. Sections are those of ``docs/theory.md``.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq

from deq_init import families
from deq_init.errors import ScaleError
from deq_init.theory import activations
from deq_init.theory.activations import Activation, Function
from deq_init.theory.arguments import by_family, require_positive, require_size
from deq_init.theory.linear import SMALLEST
from deq_init.theory.nonlinear import (
    REACTION,
    Form,
    MeanField,
    existing_law,
    last_gain,
    mean_field,
)
from deq_init.theory.preactivation import norm_factor_at

_LARGEST_GAIN = 1e4  # times the sup of |φ'|
# By how much the norm of W lies below its edge at size n, times n^(2/3), from Tracy-Widom means;
# None for orthogonal W, whose norm is its gain.
_BIAS = {"random": 0.38, "orthogonal": None, "goe": 0.30, "antisymmetric": 0.89}


def jacobian_norm(
    family: str,
    gain: float,
    activation: str | Activation | Function = "tanh",
    *,
    form: Form = "out",
    input_variance: float = 1.0,
    n: int | None = None,
) -> float:
    r"""Return the spectral norm of the Jacobian at the fixed point.

    Orthogonal: :math:`\sqrt V \sup|\phi'|`. The others, with :math:`T = \phi'(h)^2`:

    .. math:: \|J\|^2 = V \min_{\alpha > \sup T} \alpha \left(1 + E\frac{T}{\alpha - T}\right).

    Parameters
    ----------
    family, gain, activation, form, input_variance
        As in :func:`mean_field`.
    n : int, optional
        Size of W, at least 8. With it, the mean of the norm over W and x is returned, for that many
        preactivations: within a relative :math:`n^{-2/3}`, or :math:`2 n^{-2/3}` for GOE.
        Without it, the limit of large n. **Where the steepest slope lies in the tail** of h (gelu,
        silu, mish, softplus and selu at small input variances) the limit is out of reach: n must be
        large against :math:`\exp(h_0^2 / (2 \mathrm{Var}\,h))`, with the slope extreme at
        :math:`h_0`. Pass n there: at input variance 0.01 the limit for gelu exceeds what n = 500
        has by 20 to 40 %.

    Returns
    -------
    float

    Raises
    ------
    ScaleError
        If no fixed point exists at that gain, or for an n that does not apply.
    FamilyError, ActivationError
        As :func:`mean_field`.

    Notes
    -----
    Section B.2.

    Examples
    --------
    >>> round(jacobian_norm("random", 0.5887, "tanh"), 3)
    1.0
    """
    n = None if n is None else require_size(n, SMALLEST)
    found = mean_field(family, gain, activation, form=form, input_variance=input_variance)
    return _norm_at(found, n)


def jacobian_spectral_radius(
    family: str,
    gain: float,
    activation: str | Activation | Function = "tanh",
    *,
    form: Form = "out",
    input_variance: float = 1.0,
) -> float:
    r"""Return the spectral radius of the Jacobian at the fixed point.

    Random and orthogonal: :math:`\sqrt{V\,E\phi'^2}`. GOE and antisymmetric, with
    :math:`D = \phi'(h)`:

    .. math:: \rho^2 = V \min_{\alpha > \sup D} \alpha^2 E\frac{D}{\alpha - D}.

    Parameters and errors are those of :func:`jacobian_norm`.

    Notes
    -----
    At finite n the radius of random and orthogonal Jacobians exceeds the limit, by some 2 to 5 % at
    n = 500. Section B.2.

    Examples
    --------
    >>> round(jacobian_spectral_radius("goe", 0.5, "relu"), 4)
    0.7071
    """
    found = mean_field(family, gain, activation, form=form, input_variance=input_variance)
    existing_law(found)
    return found.jacobian_spectral_radius


def adjoint_amplification(
    family: str,
    gain: float,
    activation: str | Activation | Function = "tanh",
    *,
    form: Form = "out",
    input_variance: float = 1.0,
) -> float:
    r"""Return the mean of :math:`|(I-J)^{-T} v|^2 / |v|^2` for a v drawn independently of W.

    This is how much implicit differentiation enlarges squared gradients:

    .. math:: \frac{E(1 - c\phi')^{-2}}{1 - V E[\phi'^2 (1 - c\phi')^{-2}]},

    c that of :func:`mean_field`. For random and orthogonal W it is :math:`1/(1 - V E\phi'^2)`; for
    the linear DEQ, the mean length.

    Parameters and errors are those of :func:`jacobian_norm`; infinite where random and orthogonal
    fixed points are not stable.

    Notes
    -----
    Section B.2.

    Examples
    --------
    >>> round(adjoint_amplification("orthogonal", 0.5, "linear"), 4)
    1.3333
    """
    found = mean_field(family, gain, activation, form=form, input_variance=input_variance)
    existing_law(found)
    return found.adjoint_amplification


def critical_gain(
    family: str,
    activation: str | Activation | Function = "tanh",
    *,
    form: Form = "out",
    input_variance: float = 1.0,
) -> float:
    """Return the least gain at which the fixed point is not stable, or does not exist.

    Below it, plain iteration z ← f(z) converges to the mean-field fixed point from nearby, in the
    limit of large n. At finite n some draws lose theirs before: stay 20 % below it
    (``docs/theory.md``, section B.2, has shares).

    Parameters
    ----------
    family, activation, form, input_variance
        As in :func:`mean_field`.

    Returns
    -------
    float
        Relative error near 1e-6; infinite if it is stable up to gain 1e4 / sup \\|φ'\\|.

    Notes
    -----
    Random, orthogonal and antisymmetric: where the spectral radius reaches 1, found by steps of
    10 % and bisection. GOE: where the branch of solutions that starts at gain 0 turns back or
    ``V E[φ'²/(1-cφ')²]`` reaches 1, as the radius then does. Up to half a second. Section B.2.

    Examples
    --------
    >>> round(critical_gain("random", "relu"), 4), round(critical_gain("goe", "relu"), 4)
    (1.4142, 0.7071)
    """
    phi = activations.resolve(activation)
    mean_field(family, 0.0, phi, form=form, input_variance=input_variance)
    if phi.steepest == 0:
        return math.inf
    largest = _LARGEST_GAIN / phi.steepest
    if by_family(REACTION, family) == 1:
        end = last_gain(family, phi, form, input_variance, largest)
        return end if end < largest else math.inf

    def excess(gain: float) -> float:
        found = mean_field(family, gain, phi, form=form, input_variance=input_variance)
        return found.jacobian_spectral_radius - 1 if found.exists else 1.0

    low = (1 - 1e-9) / (phi.steepest * families.get(family).radius_edge)
    high = 1.1 * low
    while excess(high) < 0:
        low, high = high, 1.1 * high
        if high > largest:
            return math.inf
    return float(brentq(excess, low, high, rtol=1e-9))


def gain_for(
    family: str,
    activation: str | Activation | Function = "tanh",
    *,
    jacobian_norm: float | None = None,
    spectral_radius: float | None = None,
    form: Form = "out",
    input_variance: float = 1.0,
    n: int | None = None,
) -> float:
    """Return the gain at which the Jacobian at the fixed point has this norm or radius.

    Parameters
    ----------
    family, activation, form, input_variance
        As in :func:`mean_field`.
    jacobian_norm, spectral_radius : float
        One of them, positive: the target for J.
    n : int, optional
        Size of W, at least 8. With it, the norm is that of :func:`jacobian_norm` at this size: give
        it where you can, and always for gelu, silu, mish, softplus and selu, whose limit may not be
        reached at any size in use. The radius is the limit's always.

    Returns
    -------
    float
        Relative error near 1e-9.

    Raises
    ------
    ScaleError
        If not one positive target is given, it is not reached below :func:`critical_gain`, or for
        an n that does not apply.

    Notes
    -----
    Section B.2.

    Examples
    --------
    >>> round(gain_for("random", "tanh", jacobian_norm=0.9), 5)
    0.51793
    >>> round(gain_for("goe", "gelu", spectral_radius=0.5, form="in"), 4)
    0.3598
    """
    name, target = _target(jacobian_norm, spectral_radius)
    phi = activations.resolve(activation)
    mean_field(family, 0.0, phi, form=form, input_variance=input_variance)
    if phi.steepest == 0:
        raise ScaleError(
            f"expected an activation that is not constant, received {phi.name}: its Jacobian is 0. "
            "Choose another activation."
        )
    n = None if n is None else require_size(n, SMALLEST)

    def excess(gain: float) -> float:
        found = mean_field(family, gain, phi, form=form, input_variance=input_variance)
        if not found.stable:
            return math.nan
        if name == "jacobian_norm":
            return _norm_at(found, n) - target
        return found.jacobian_spectral_radius - target

    # The norm, and so the radius, is at most 2 V^1/2 sup |φ'|.
    low = high = target / (2 * phi.steepest)
    at_high = excess(high)
    while at_high < 0 and high < _LARGEST_GAIN / phi.steepest:
        low, high = high, 1.25 * high
        at_high = excess(high)
    if math.isnan(at_high):
        edge = critical_gain(family, phi, form=form, input_variance=input_variance)
        high = edge * (1 - 1e-6)
        at_high = excess(high)
    if not at_high >= 0:
        raise ScaleError(
            f"expected a {name} that is reached while the fixed point is stable, received "
            f"{target:g} for the {family} family and {phi.name}: it is {target + at_high:.4g} at "
            f"gain {high:.4g}, near the largest. Choose a smaller one."
        )
    return float(brentq(excess, low, high, rtol=1e-12)) if at_high > 0 else high


def _norm_at(found: MeanField, n: int | None) -> float:
    """Return the mean norm of J at size n, or its limit."""
    law = existing_law(found)
    if n is None:
        return found.jacobian_norm
    bias = by_family(_BIAS, found.family)
    factor = norm_factor_at(law, n, isometric=bias is None)
    return found.gain * factor * (1 - (bias or 0.0) * n ** (-2 / 3))


def _target(jacobian_norm: float | None, spectral_radius: float | None) -> tuple[str, float]:
    """Return the attribute of MeanField that is given, and its value."""
    given = {"jacobian_norm": jacobian_norm, "jacobian_spectral_radius": spectral_radius}
    chosen = [(name, value) for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise ScaleError(
            "expected one of jacobian_norm and spectral_radius, received "
            f"jacobian_norm={jacobian_norm!r}, spectral_radius={spectral_radius!r}. Pass the one "
            "that J should have, e.g. jacobian_norm=0.9."
        )
    name, value = chosen[0]
    return name, require_positive(name, value)
