"""The DEQ-transformer as a Keras model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from deq_init import equilibrium, scale
from deq_init import transformer as core
from deq_init.equilibrium import Gradient
from deq_init.fixed_point import Method, Solution
from deq_init.keras.activations import ACTIVATIONS, Activation
from deq_init.keras.base import Equilibrium, scale_config
from deq_init.transformer import Norm


@keras.saving.register_keras_serializable(package="deq_init", name="DEQTransformer")
class DEQTransformer(Equilibrium):
    """The DEQ-transformer: one weight-tied block, its input in q, k and v; a language model.

    The model maps tokens to logits, so that ``compile`` and ``fit`` take it as it is;
    :meth:`solve` returns the fixed point beside them.

    Parameters
    ----------
    vocabulary, width, heads, expansion : int
        Tokens; d; heads, which divide d; and the feed-forward layer's width in units of d.
    family : {"orthogonal", "random", "goe", "antisymmetric"}
        Of the square blocks of qkv, out, up and down.
    gain, spectral_norm, spectral_radius : float, optional
        Their scale, at most one of them, as for :class:`deq_init.keras.Random`.
    where : mapping, optional
        What differs for one of the four matrices: ``{"down": {"family": "goe", "gain": 0.3}}``.
    norm : {"post", "pre", "none"}
        Where layer normalization is.
    skip : float, optional
        α, the state's weight in the residual: by default 1 for post-norm, else 0.
    branch_scale : float
        β, what the attention and the feed-forward layer are multiplied by, such as
        :func:`deq_init.looped.residual_scale`.
    causal : bool
        Whether a token sees only itself and those before it.
    activation : str or callable
        φ of the feed-forward layer: a name out of :data:`~deq_init.keras.models.ACTIVATIONS`, e.g.
        "relu", "gelu", "silu", or any function of tensors, entry by entry; a layer is trained with
        the rest. To be saved, it has to be serialisable by Keras.
    input_gain : float
        Entries of ``inject`` are normal with variance input_gain² / d.
    method, rtol, max_steps
        Of the solver, forward and adjoint alike, as for :func:`deq_init.keras.fixed_point`. A
        looped transformer of N loops has ``method="plain", max_steps=N + 1, gradient="unrolled"``:
        the value is the last state that the block was applied to.
    gradient : {"implicit", "unrolled", "one_step"}
        Of the adjoint equation, of the iteration itself (not of "anderson", and memory grows with
        its steps), or of one application of the block to the fixed point.
    seed : int, optional
        An integer in [0, 2**64): the same parameters as in JAX's model with
        ``jax.random.key(seed)``. None draws one, which ``keras.utils.set_random_seed`` makes
        reproducible.
    **kwargs
        ``name``, ``dtype`` and ``trainable``, as for ``keras.Model``.

    Attributes
    ----------
    kernels : dict of str to keras.Variable
        The parameters that :mod:`deq_init.transformer` lists, as kernels (in, out), by their names.

    Raises
    ------
    ShapeError, ModelError, ActivationError, SolverError, FamilyError, ScaleError, SelectionError,
    SeedError, DTypeError
        For arguments that are not as above.

    See Also
    --------
    deq_init.transformer : the equations, the parameters and their seeds.

    References
    ----------
    Bai, Kolter & Koltun (2019), arXiv 1909.01377, section 4.

    Examples
    --------
    >>> model = DEQTransformer(vocabulary=20, width=16, heads=2, gain=0.5, seed=0)
    >>> logits, solution = model.solve(ops.zeros((2, 8), "int32"))
    >>> tuple(logits.shape), bool(ops.all(solution.converged))
    ((2, 8, 20), True)
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        heads: int,
        *,
        expansion: int = 2,
        family: str = "orthogonal",
        gain: float | None = scale.UNIT_GAIN,
        spectral_norm: float | None = None,
        spectral_radius: float | None = None,
        where: Mapping[str, Mapping[str, Any]] | None = None,
        norm: Norm = "post",
        skip: float | None = None,
        branch_scale: float = 1.0,
        causal: bool = True,
        activation: str | Activation = "relu",
        input_gain: float = 1.0,
        method: Method = "anderson",
        rtol: float = 1e-3,
        max_steps: int = 40,
        gradient: Gradient = "implicit",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        sizes = core.Sizes(vocabulary, width, heads, expansion, norm)
        target = scale.resolve(gain, spectral_norm, spectral_radius)
        laws = sizes.laws(family, target, input_gain, where)
        weight = core.resolve_skip(skip, norm)
        resolved = equilibrium.require_activation(activation, ACTIVATIONS)
        super().__init__(
            activation,
            method=method,
            rtol=rtol,
            max_steps=max_steps,
            gradient=gradient,
            seed=seed,
            **kwargs,
        )
        self.activation = resolved
        self.sizes = sizes
        self.family, self.target, self.where = family, target, where
        self.input_gain, self.skip, self.causal = input_gain, weight, causal
        self.branch_scale = equilibrium.require_number("branch_scale", branch_scale)
        self._create(sizes.kernel_shapes(), laws, core.STREAMS, core.constant)

    def call(self, tokens: Any) -> Any:
        """Return logits (batch, length, vocabulary) of tokens (batch, length)."""
        return self.solve(tokens)[0]

    def solve(self, tokens: Any, z0: Any = None) -> tuple[Any, Solution]:
        """Return logits (batch, length, vocabulary) and fixed point (batch, length, width).

        A solve that does not converge says so in the solution, sequence by sequence, and raises
        nothing. A sequence that is lost (residual inf) keeps the last finite state, and has no part
        in the gradients of the block.

        Parameters
        ----------
        tokens : tensor of shape (batch, length), integer
            In [0, vocabulary). Where they are traced, and their values not known, a sequence with
            another token is lost.
        z0 : tensor of shape (batch, length, width), optional
            Where the solver starts; zeros by default.

        Raises
        ------
        ShapeError, DTypeError
            If tokens or z0 are not as above.
        """
        e = self.embed(tokens)

        def inject(lost: Any) -> Any:
            return self._inject(e if lost is None else ops.where(lost[:, None, None], 0.0, e))

        solution = self._settle(inject, self._start(z0, e, *e.shape[1:]))
        readout = ops.transpose(self._value("embedding"))
        return solution.value @ readout + self._value("readout_bias"), solution

    def embed(self, tokens: Any) -> Any:
        """Return e = √d E[tokens] + P, shape (batch, length, width)."""
        tokens = ops.convert_to_tensor(tokens)
        dtype = keras.backend.standardize_dtype(tokens.dtype)
        shape, vocabulary, width = tuple(tokens.shape), self.sizes.vocabulary, self.sizes.width
        core.require_tokens(shape, "int" in dtype, dtype)
        if 0 not in shape and not is_traced(tokens):
            values = ops.convert_to_numpy(tokens)
            core.require_in_vocabulary(values.min(), values.max(), vocabulary)
        tokens = ops.cast(tokens, "int32")
        known = ops.logical_and(tokens >= 0, tokens < vocabulary)
        found = ops.take(self._value("embedding"), ops.where(known, tokens, 0), axis=0)
        positions = ops.cast(core.positions(shape[1], width), self.compute_dtype)
        return ops.where(known[:, :, None], found * width**0.5 + positions, float("nan"))

    def inject(self, tokens: Any) -> Any:
        """Return u = e Qₓ + c, shape (batch, length, 3 width)."""
        return self._inject(self.embed(tokens))

    def cell(self, z: Any, injected: Any) -> Any:
        """Return f(z), shape (batch, length, width), given u by :meth:`inject`."""
        first, second = (partial(self._normalize, name) for name in ("norm1", "norm2"))
        after = self.sizes.norm == "post"
        before = self.sizes.norm == "pre"
        y = first(z) if before else z
        attended = self._attend(y @ self._value("qkv") + injected)
        h = self.skip * z + self.branch_scale * self._affine("out", attended)
        h = first(h) if after else h
        y = second(h) if before else h
        inner = self.activation(self._affine("up", y))
        z = h + self.branch_scale * self._affine("down", inner)
        return second(z) if after else z

    def _affine(self, name: str, x: Any) -> Any:
        return x @ self._value(name) + self._value(f"{name}_bias")

    def _inject(self, e: Any) -> Any:
        return e @ self._value("inject") + self._value("qkv_bias")

    def _attend(self, qkv: Any) -> Any:
        """Return attention's output, shape (batch, length, width), of fused (..., 3 width)."""
        length, width, heads = qkv.shape[1], self.sizes.width, self.sizes.heads
        size = width // heads
        q, k, v = ops.unstack(ops.reshape(qkv, (-1, length, 3, heads, size)), 3, axis=2)
        scores = ops.einsum("bqhc,bkhc->bhqk", q, k) / size**0.5
        if self.causal:
            seen = np.tril(np.ones((length, length), bool))
            scores = ops.where(seen, scores, float("-inf"))
        found = ops.einsum("bhqk,bkhc->bqhc", ops.softmax(scores), v)
        return ops.reshape(found, (-1, length, width))

    def _normalize(self, name: str, x: Any) -> Any:
        """Return N(x): each token's entries brought to mean 0 and variance 1, then scaled."""
        centred = x - _mean(x)
        variance = _mean(centred * centred)
        unit = centred * ops.rsqrt(variance + core.EPSILON)
        return unit * self._value(f"{name}_scale") + self._value(f"{name}_bias")

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Return (batch, length, vocabulary)."""
        return *input_shape, self.sizes.vocabulary

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, JSON-serialisable."""
        return {
            **super().get_config(),
            **dataclasses.asdict(self.sizes),
            "family": self.family,
            **scale_config(self.target),
            "where": self.where,
            "skip": self.skip,
            "branch_scale": self.branch_scale,
            "causal": self.causal,
            "input_gain": self.input_gain,
        }


def _mean(x: Any) -> Any:
    """Return the mean over the last axis: ``ops.mean`` rounds float64 to float32 on some."""
    return ops.sum(x, -1, keepdims=True) / x.shape[-1]


if keras.backend.backend() == "torch":

    def is_traced(x: Any) -> bool:
        """Return whether the values of a tensor are not known yet."""
        return x.device.type == "meta"

else:
    from deq_init.keras.loops import is_traced  # type: ignore[no-redef]
