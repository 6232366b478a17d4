r"""Looped and implicit models: where the state starts, and how residual branches are scaled.

*Starts.* ``initial_state`` of each backend returns a state of one of four kinds:

====== ==========================================================================================
zeros  0
input  the embedded or injected input itself
normal normal entries, of a standard deviation that is given
mixed  each sample either zeros or normal, with probability ½: trained so, a model comes to the
       same fixed point from wherever it starts (Anil et al.)
====== ==========================================================================================

*Residual branches.* A block z + ε g(z) that is applied N times with the same weights adds N updates
that point the same way, and ε has to fall as 1/N for the state to stay of its size. Updates with
weights of their own add like a random walk, and 1/√N would do. For L layers of their own, looped
N times, :math:`\varepsilon = \lambda/(N\sqrt L)` (Wang et al.).

References
----------
Wang et al., "On the residual scaling of looped transformers" (2026), arXiv 2606.18524.
Anil et al., "Path independent equilibrium models can better exploit test-time computation" (2022),
arXiv 2211.09961.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from deq_init.equilibrium import require_number, require_sizes
from deq_init.errors import ModelError, SeedError

Start = Literal["zeros", "input", "normal", "mixed"]

_STARTS = ("zeros", "input", "normal", "mixed")
NORMALS, CHOICE = 0, 1
"""Streams of a start's seed: of its normal entries, and of the float32 normals, one for a sample,
whose sign says which samples of a mixed start are zeros (those <= 0)."""


def residual_scale(loops: int, layers: int = 1, strength: float = 1.0) -> float:
    """Return the factor of the residual branches of a looped model, λ / (N √L).

    Parameters
    ----------
    loops : int
        N, how many times the same weights are applied.
    layers : int
        L, layers with weights of their own within a loop.
    strength : float
        λ, finite.

    Raises
    ------
    ShapeError
        For loops or layers that are no positive integers.
    ModelError
        For a strength that is no finite number.

    References
    ----------
    Wang et al. (2026), arXiv 2606.18524.

    Examples
    --------
    >>> residual_scale(16)
    0.0625
    >>> residual_scale(8, layers=4)
    0.0625
    """
    require_sizes(loops=loops, layers=layers)
    return require_number("strength", strength) / (loops * math.sqrt(layers))


def require_start(kind: Any, deviation: Any, seeded: bool) -> Start:
    """Return the kind of a start that is in order.

    Parameters
    ----------
    kind : {"zeros", "input", "normal", "mixed"}
        The kind.
    deviation : float
        Standard deviation of the normal entries, finite.
    seeded : bool
        Whether there is something to draw from.

    Raises
    ------
    ModelError, SeedError
        For an unknown kind, a deviation that is not finite, or nothing to draw from.
    """
    if kind not in _STARTS:
        raise ModelError(
            f"expected a start out of {', '.join(map(repr, _STARTS))}, received {kind!r}. "
            "Pass kind='zeros'."
        )
    require_number("deviation", deviation)
    if kind in ("normal", "mixed") and not seeded:
        raise SeedError(f"expected a key for a start that is {kind}, received none. Pass key=.")
    return kind
