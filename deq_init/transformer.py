r"""The DEQ-transformer, for every backend: one weight-tied block whose input enters q, k and v.

*The block.* Tokens of a sequence become :math:`e = \sqrt d\,E[t] + P` with sinusoidal positions P,
and are injected as :math:`u = e\,Q_x + c`. The state z has one row of width d for each token, and

.. math::

    h = \alpha z + \beta A(z, u), \qquad f(z) = h + \beta F(h), \\
    A(z, u) = \mathrm{attention}(z Q + u)\,O + o, \qquad F(h) = \phi(h\,U + a)\,D + b,

where z Q + u holds queries, keys and values, each of several heads, and a causal mask lets a token
see those before it and itself. Where layer normalization goes is ``norm``:

====== =====================================================================================
post   both lines normalized: h = N₁(α z + β A(z, u)), f(z) = N₂(h + β F(h)), as in Bai et al.
pre    what enters normalized: A(N₁(z), u), F(N₂(h))
none   nowhere
====== =====================================================================================

α is ``skip``, by default 1 in a post-norm block and 0 in the others: with α = 1 and nothing that
normalizes z, a fixed point asks that the updates cancel, β A = -β F, and iteration does not find
it. That is the block of a looped transformer, which is applied so many times and no more: there
α = 1, and β is :func:`deq_init.looped.residual_scale`. Logits are :math:`z E^T + r`.

*Parameters*, as kernels in the orientation of JAX (PyTorch holds the transposes, other than of the
embedding), with v tokens in the vocabulary, width d, and an expansion of k:

=============================== ========= ==========================================================
name                            shape     what
=============================== ========= ==========================================================
embedding                       (v, d)    E, normal, variance 1 / d
qkv                             (d, 3d)   Q, three blocks of the family
inject                          (d, 3d)   Qₓ, of the random family, variance input_gain² / d
out                             (d, d)    O, of the family
up                              (d, k d)  U, k blocks of the family
down                            (k d, d)  D, k blocks of the family at 1 / √k of the scale, so that
                                          a gain means a variance of gain² / fan_in here, too
qkv_bias, out_bias, up_bias,              c, o, a, b and r, zeros
down_bias, readout_bias
norm1_scale, norm1_bias,        (d,)      of N₁ and N₂, ones and zeros, if there are any
norm2_scale, norm2_bias
=============================== ========= ==========================================================

The matrices have the seed's streams 0, ..., 5 in this order (:func:`deq_init.draws.fold_in`).

References
----------
Bai, Kolter & Koltun, "Deep equilibrium models" (2019), arXiv 1909.01377, section 4.
Agarwala & Schoenholz, "Deep equilibrium networks are sensitive to initialization statistics"
(2022), arXiv 2207.09432.
Vaswani et al., "Attention is all you need" (2017), arXiv 1706.03762: positions, √d, tied readout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deq_init import families, scale
from deq_init.equilibrium import require_number, require_sizes
from deq_init.errors import DTypeError, ModelError, SelectionError, ShapeError
from deq_init.scale import Scale

Norm = Literal["post", "pre", "none"]

_NORMS = ("post", "pre", "none")
EPSILON = 1e-5
"""What layer normalization adds to the variance."""
MATRICES = ("qkv", "out", "up", "down")
"""The state-to-state matrices."""
STREAMS = {"embedding": 0, "qkv": 1, "inject": 2, "out": 3, "up": 4, "down": 5}
"""Which stream of the seed each random parameter is drawn from."""


@dataclass(frozen=True)
class Law:
    """What a random parameter is drawn from.

    Attributes
    ----------
    family : str
        Name of the family.
    scale : deq_init.scale.Scale
        Of each block.
    blocks : (int, int) or None
        How many blocks the kernel (in, out) is made of, along which axis.
    """

    family: str
    scale: Scale
    blocks: tuple[int, int] | None = None


@dataclass(frozen=True)
class Sizes:
    """Sizes of a DEQ-transformer, and where it normalizes: what its parameters' shapes follow from.

    Attributes
    ----------
    vocabulary, width, heads, expansion : int
        Tokens; d; heads, which divide d; and the feed-forward layer's width in units of d.
    norm : {"post", "pre", "none"}
        Where layer normalization is.

    Raises
    ------
    ShapeError, ModelError
        For sizes or a norm that are not as above.
    """

    vocabulary: int
    width: int
    heads: int
    expansion: int
    norm: Norm

    def __post_init__(self) -> None:
        require_sizes(
            vocabulary=self.vocabulary,
            width=self.width,
            heads=self.heads,
            expansion=self.expansion,
        )
        if self.width % self.heads:
            raise ShapeError(
                f"expected heads that divide the width, received {self.heads} heads of a width of "
                f"{self.width}. Pass e.g. heads=1."
            )
        if self.norm not in _NORMS:
            raise ModelError(
                f"expected norm 'post', 'pre' or 'none', received {self.norm!r}. Pass norm='post'."
            )

    def kernel_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters as kernels (in, out), by their names."""
        d, inner = self.width, self.width * self.expansion
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocabulary, d),
            "qkv": (d, 3 * d),
            "inject": (d, 3 * d),
            "out": (d, d),
            "up": (d, inner),
            "down": (inner, d),
            "qkv_bias": (3 * d,),
            "out_bias": (d,),
            "up_bias": (inner,),
            "down_bias": (d,),
            "readout_bias": (self.vocabulary,),
        }
        if self.norm != "none":
            names = ("norm1_scale", "norm1_bias", "norm2_scale", "norm2_bias")
            shapes |= dict.fromkeys(names, (d,))
        return shapes

    def laws(
        self, family: str, target: Scale, input_gain: float, where: Mapping[str, Any] | None
    ) -> dict[str, Law]:
        """Return the laws of the random parameters; all others are :func:`constant`.

        Parameters
        ----------
        family, target : str, Scale
            Of the state-to-state matrices.
        input_gain : float
            Of ``inject``.
        where : mapping of str to mapping, optional
            What differs for some of :data:`MATRICES`: ``{"down": {"family": "goe", "gain": 0.3}}``,
            with family, and gain, spectral_norm or spectral_radius, as keys.

        Raises
        ------
        FamilyError, ScaleError, SelectionError
            For what is no such family, scale or mapping.
        """
        where = dict(where or {})
        unknown = [name for name in where if name not in MATRICES]
        if unknown:
            raise SelectionError(
                f"expected matrices out of {', '.join(MATRICES)} in where, received "
                f"{', '.join(map(repr, unknown))}."
            )
        blocks = {"qkv": (3, 1), "up": (self.expansion, 1), "down": (self.expansion, 0)}
        laws = {
            # As a kernel (in, out) it has a fan-in of v, and is to have a variance of 1 / d.
            "embedding": Law("random", Scale("gain", math.sqrt(self.vocabulary / self.width))),
            "inject": Law("random", scale.require_scale("gain", input_gain)),
        }
        for name, given in where.items():
            if not isinstance(given, Mapping):
                raise SelectionError(
                    f"expected a mapping for {name!r} in where, received {given!r}. Pass e.g. "
                    f'{{"{name}": {{"family": "goe", "gain": 0.3}}}}.'
                )
        for name in MATRICES:
            own_family, own = _own(name, dict(where.get(name, {})), family, target)
            if name == "down":
                own = Scale(own.kind, own.value / math.sqrt(self.expansion))
            laws[name] = Law(families.get(own_family).name, own, blocks.get(name))
        return laws


def _own(name: str, given: dict[str, Any], family: str, target: Scale) -> tuple[str, Scale]:
    """Return family and scale of one matrix, given what differs from the others'."""
    family = given.pop("family", family)
    if not given:
        return family, target
    if not set(given) <= set(scale.KINDS):
        raise SelectionError(
            f"expected family, {', '.join(scale.KINDS)} for {name!r} in where, received "
            f"{', '.join(map(repr, given))}."
        )
    return family, scale.resolve(*(given.get(kind) for kind in scale.KINDS))


def constant(name: str) -> float:
    """Return what a parameter that is not random is filled with."""
    return 1.0 if name.endswith("_scale") else 0.0


def resolve_skip(skip: float | None, norm: Norm) -> float:
    """Return the state's weight in the residual: by default 1 where z is normalized after it."""
    if skip is None:
        return 1.0 if norm == "post" else 0.0
    return require_number("skip", skip)


def positions(length: int, width: int) -> NDArray[np.float64]:
    """Return the sinusoidal positions P, shape (length, width).

    Entry (p, 2 i) is sin(p / 10000^(2 i / width)), entry (p, 2 i + 1) the cosine.
    """
    even = np.arange(0, width, 2)
    angles = np.arange(length)[:, None] / 10000.0 ** (even / width)
    pairs = np.stack([np.sin(angles), np.cos(angles)], axis=2)
    result: NDArray[np.float64] = pairs.reshape(length, -1)[:, :width]
    return result


def require_tokens(shape: tuple[int, ...], integer: bool, dtype: Any) -> None:
    """Raise ShapeError or DTypeError if an array of this shape and dtype holds no sequences."""
    if not integer:
        raise DTypeError(
            f"expected tokens as integers, received {dtype}. Pass indices into the vocabulary."
        )
    if len(shape) != 2 or shape[1] == 0:
        raise ShapeError(
            f"expected tokens of shape (batch, length), received shape {tuple(shape)}. "
            "Add a batch axis of length 1 to a single sequence."
        )


def require_in_vocabulary(lowest: int, highest: int, vocabulary: int) -> None:
    """Raise ShapeError if these tokens are not all in the vocabulary."""
    if lowest < 0 or highest >= vocabulary:
        raise ShapeError(
            f"expected tokens in [0, {vocabulary}), received some between {lowest} and {highest}. "
            "Map unknown words to a token of the vocabulary."
        )
