"""How much the length of the fixed point differs from draw to draw."""

from __future__ import annotations

from deq_init.theory.activations import ACTIVATIONS, Activation, Function, resolve
from deq_init.theory.arguments import by_family, require_size
from deq_init.theory.linear import SMALLEST, linear_relative_variance
from deq_init.theory.nonlinear import existing_law, mean_field

_ISOMETRY = {"random": 0.0, "orthogonal": -2.0}


def length_relative_variance(
    family: str,
    gain: float,
    n: int,
    activation: str | Activation | Function = "linear",
    *,
    input_variance: float = 1.0,
) -> float:
    r"""Return Var(q) / E(q)² over draws of W of the fixed point z = φ(Wz) + x, to order 1/n.

    For the linear DEQ, with :math:`\tau` the mean of the eigenvalues and
    :math:`M = ((I-W)(I-W)^T)^{-1}`,

    .. math:: \frac{\mathrm{Var}\,q}{E[q]^2} =
        \frac{2}{n+2}\left(\frac{\tau(M^2)}{\tau(M)^2} - 1\right) + O(n^{-2}).

    As the squared radius is :math:`1-\epsilon` and :math:`\epsilon \to 0`, n times it grows as
    :math:`2\epsilon^{-2}` (random), :math:`\frac12\epsilon^{-3/2}` (GOE) and
    :math:`4\epsilon^{-1}` (orthogonal).

    For another φ, with g standard normal, :math:`\phi = \phi(\sqrt{Vq}\,g)` and
    :math:`F' = E[(g^2-1)\phi^2]/(2q)`,

    .. math:: \frac{\mathrm{Var}\,q}{q^2} \simeq \frac{v}{n q^2 (1-F')^2}, \qquad
        v = \mathrm{Var}(\phi^2) + 4\sigma^2\,\mathrm{Var}\,\phi \;
        [\,-\,2 q^2 F'^2 \text{ for orthogonal}\,].

    Parameters
    ----------
    family : {"random", "orthogonal", "goe", "antisymmetric"}
        The law of W. The last two for the linear DEQ only.
    gain : float
        Below the edge.
    n : int
        Size of W, at least 8. Below some 50 the terms left out are not small: for the linear DEQ
        and orthogonal W of gain 0.95, :func:`orthogonal_length_variance` is exact.
    activation : str, Activation or callable, default "linear"
        As in :func:`mean_field`.
    input_variance : float
        Mean square of the entries of x, which is fixed and has mean 0. Without effect on the linear
        DEQ.

    Raises
    ------
    FamilyError
        For GOE and antisymmetric with another φ: not known.
    ScaleError, ActivationError
        As :func:`length_mean` and :func:`mean_field`.

    Notes
    -----
    Valid while n·ε² (random), n·ε^1.5 (GOE) or n·ε (orthogonal) is large. Sections A.1, A.2, A.5
    and B.3.

    Examples
    --------
    >>> round(200 * length_relative_variance("random", 0.7, 200), 2)
    5.63
    >>> round(300 * length_relative_variance("orthogonal", 0.6, 300, "tanh"), 3)
    0.861
    """
    phi = resolve(activation)
    if phi is ACTIVATIONS["linear"]:
        return linear_relative_variance(family, gain, n)
    n = require_size(n, SMALLEST)
    correction = by_family(_ISOMETRY, family, "variance for activations other than 'linear'")
    found = mean_field(family, gain, phi, input_variance=input_variance)
    law = existing_law(found)
    q, square = found.length, law.value**2
    variance = law.mean(square**2) - law.mean(square) ** 2
    variance += 4 * input_variance * (law.mean(square) - law.mean(law.value) ** 2)
    derivative = 0.0
    if found.preactivation_variance > 0:
        g2 = law.h**2 / found.preactivation_variance
        derivative = law.mean((g2 - 1) * square) / (2 * q)
    variance += correction * (q * derivative) ** 2
    return variance / (n * (q * (1 - derivative)) ** 2)
