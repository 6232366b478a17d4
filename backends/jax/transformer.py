"""The DEQ-transformer in JAX: pure functions over a dictionary of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deq_init import equilibrium, scale
from deq_init import fixed_point as solver
from deq_init import transformer as core
from deq_init.equilibrium import Gradient
from deq_init.fixed_point import Method, Solution
from deq_init.jax import implicit, initializers
from deq_init.jax.activations import ACTIVATIONS, Activation, Params, arrays_of, params_of
from deq_init.transformer import Norm


@dataclass(frozen=True)
class DEQTransformer:
    """The DEQ-transformer: one weight-tied block, its input in q, k and v; a language model.

    Parameters
    ----------
    vocabulary, width, heads, expansion : int
        Tokens; d; heads, which divide d; and the feed-forward layer's width in units of d.
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
        φ of the feed-forward layer: a name out of :data:`~deq_init.jax.models.ACTIVATIONS`, e.g.
        "relu", "gelu", "silu", or any function of arrays, entry by entry.
    input_gain : float
        Entries of ``inject`` are normal with variance input_gain² / d.
    method, rtol, max_steps
        Of the solver, forward and adjoint alike, as for :func:`deq_init.jax.fixed_point`. A looped
        transformer of N loops has ``method="plain", max_steps=N + 1, gradient="unrolled"``: the
        value is the last state that the block was applied to.
    gradient : {"implicit", "unrolled", "one_step"}
        Of the adjoint equation, of the iteration itself (not of "anderson", and memory grows with
        max_steps), or of one application of the block to the fixed point.

    Raises
    ------
    ShapeError, ModelError, ActivationError, SolverError
        For sizes, a norm, an activation or options that are not as above.

    See Also
    --------
    deq_init.transformer : the equations, the parameters and their seeds.

    References
    ----------
    Bai, Kolter & Koltun (2019), arXiv 1909.01377, section 4.

    Examples
    --------
    >>> model = DEQTransformer(vocabulary=20, width=16, heads=2)
    >>> params = model.init(jax.random.key(0), "orthogonal", gain=0.5)
    >>> logits, solution = model.apply(params, jnp.zeros((2, 8), int))
    >>> logits.shape, bool(solution.converged.all())
    ((2, 8, 20), True)
    """

    vocabulary: int
    width: int
    heads: int
    expansion: int = 2
    norm: Norm = "post"
    skip: float | None = None
    branch_scale: float = 1.0
    causal: bool = True
    activation: str | Activation = "relu"
    input_gain: float = 1.0
    method: Method = "anderson"
    rtol: float = 1e-3
    max_steps: int = 40
    gradient: Gradient = "implicit"

    def __post_init__(self) -> None:
        core.resolve_skip(self.skip, self._sizes.norm)
        equilibrium.require_number("branch_scale", self.branch_scale)
        scale.require_scale("gain", self.input_gain)
        equilibrium.require_activation(self.activation, ACTIVATIONS)
        equilibrium.require_gradient(self.gradient, self.method)
        solver.require_options(self.method, self.rtol, self.max_steps)

    @property
    def _sizes(self) -> core.Sizes:
        return core.Sizes(self.vocabulary, self.width, self.heads, self.expansion, self.norm)

    def init(
        self,
        key: jax.Array,
        family: str = "orthogonal",
        gain: float = scale.UNIT_GAIN,
        *,
        spectral_norm: float | None = None,
        spectral_radius: float | None = None,
        where: Mapping[str, Mapping[str, Any]] | None = None,
        dtype: Any = None,
    ) -> Params:
        """Return the parameters that :mod:`deq_init.transformer` lists, as a dictionary.

        ``jax.random.key(seed)`` gives the parameters that ``seed`` gives in PyTorch and Keras.
        The embedding and the injection do not depend on the family.

        Parameters
        ----------
        key : Array
            A key.
        family : {"orthogonal", "random", "goe", "antisymmetric"}
            Of the square blocks of qkv, out, up and down.
        gain, spectral_norm, spectral_radius : float, optional
            Their scale, at most one of them, as for :func:`deq_init.jax.random`.
        where : mapping, optional
            What differs for one of the four matrices: ``{"down": {"family": "goe", "gain": 0.3}}``.
        dtype : dtype, optional
            Of all parameters; JAX's default float by default.

        Raises
        ------
        FamilyError, ScaleError, SelectionError, DTypeError
            For what is no such family, scale, matrix or dtype.
        """
        target = scale.resolve(gain, spectral_norm, spectral_radius)
        laws = self._sizes.laws(family, target, self.input_gain, where)
        resolved = jnp.result_type(float) if dtype is None else dtype

        def value(name: str, shape: tuple[int, ...]) -> jax.Array:
            if name not in laws:
                return jnp.full(shape, core.constant(name), resolved)
            law = laws[name]
            init = initializers.initializer(law.family, law.scale, law.blocks)
            return init(jax.random.fold_in(key, core.STREAMS[name]), shape, resolved)

        return {name: value(name, shape) for name, shape in self._sizes.kernel_shapes().items()}

    def apply(
        self, params: Params, tokens: jax.Array, z0: jax.Array | None = None
    ) -> tuple[jax.Array, Solution]:
        """Return logits (batch, length, vocabulary) and fixed point (batch, length, width).

        A solve that does not converge says so in the solution, sequence by sequence, and raises
        nothing. A sequence that is lost (residual inf) keeps the last finite state, and has no part
        in the gradients of the block.

        Parameters
        ----------
        params : dict of Array
            By :meth:`init` or :meth:`from_arrays`.
        tokens : Array, shape (batch, length), integer
            In [0, vocabulary). Under ``jit``, where values are not known, a sequence with another
            token is lost.
        z0 : Array, shape (batch, length, width), optional
            Where the solver starts, see :func:`deq_init.jax.initial_state`; zeros by default.

        Raises
        ------
        ShapeError, DTypeError
            If tokens or z0 are not as above.
        ModelError
            If the parameters have other names or shapes.
        """
        equilibrium.require_arrays(params, self._sizes.kernel_shapes())
        e = self.embed(params, tokens)
        start = jnp.zeros_like(e) if z0 is None else jnp.asarray(z0, e.dtype)
        equilibrium.require_start_shape(start.shape, e.shape)

        def weights(lost: jax.Array | None) -> tuple[Params, jax.Array]:
            # 0 times NaN is NaN: the input of a lost sequence has to be left out of the gradients.
            kept = e if lost is None else jnp.where(lost[:, None, None], 0, e)
            return params, self._inject(params, kept)

        solution = implicit.solve(
            lambda weights, z: self.cell(weights[0], z, weights[1]),
            weights,
            start,
            gradient=self.gradient,
            method=self.method,
            rtol=self.rtol,
            max_steps=self.max_steps,
        )
        logits = solution.value @ params["embedding"].T + params["readout_bias"]
        return logits, solution

    def embed(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Return e = √d E[tokens] + P, shape (batch, length, width)."""
        tokens = jnp.asarray(tokens)
        integer = jnp.issubdtype(tokens.dtype, jnp.integer)
        core.require_tokens(tokens.shape, integer, tokens.dtype)
        if tokens.size and not isinstance(tokens, jax.core.Tracer):
            values = np.asarray(tokens)
            core.require_in_vocabulary(values.min(), values.max(), self.vocabulary)
        known = (tokens >= 0) & (tokens < self.vocabulary)
        table = params["embedding"]
        found = jnp.take(table, jnp.where(known, tokens, 0), axis=0)
        positions = jnp.asarray(core.positions(tokens.shape[1], self.width), table.dtype)
        return jnp.where(known[:, :, None], found * self.width**0.5 + positions, jnp.nan)

    def inject(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Return u = e Qₓ + c, shape (batch, length, 3 width)."""
        return self._inject(params, self.embed(params, tokens))

    def cell(self, params: Params, z: jax.Array, injected: jax.Array) -> jax.Array:
        """Return f(z), shape (batch, length, width), given u by :meth:`inject`."""
        skip, branch = core.resolve_skip(self.skip, self.norm), self.branch_scale
        activation = equilibrium.require_activation(self.activation, ACTIVATIONS)
        first, second = (partial(_normalize, params, name) for name in ("norm1", "norm2"))
        after = self.norm == "post"
        before = self.norm == "pre"
        y = first(z) if before else z
        attended = self._attend(y @ params["qkv"] + injected)
        h = skip * z + branch * (attended @ params["out"] + params["out_bias"])
        h = first(h) if after else h
        y = second(h) if before else h
        inner = activation(y @ params["up"] + params["up_bias"])
        z = h + branch * (inner @ params["down"] + params["down_bias"])
        return second(z) if after else z

    def _inject(self, params: Params, e: jax.Array) -> jax.Array:
        return e @ params["inject"] + params["qkv_bias"]

    def _attend(self, qkv: jax.Array) -> jax.Array:
        """Return attention's output, shape (batch, length, width), of fused (..., 3 width)."""
        batch, length, _ = qkv.shape
        size = self.width // self.heads
        q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, self.heads, size), 2, 0)
        scores = jnp.einsum("bqhc,bkhc->bhqk", q, k) / size**0.5
        if self.causal:
            seen = jnp.tril(jnp.ones((length, length), bool))
            scores = jnp.where(seen, scores, -jnp.inf)
        found = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores), v)
        return found.reshape(batch, length, self.width)

    def to_arrays(self, params: Params) -> dict[str, np.ndarray]:
        """Return the parameters as NumPy arrays: a checkpoint for the other backends, too."""
        return arrays_of(params)

    def from_arrays(self, arrays: Mapping[str, Any]) -> Params:
        """Return the parameters of a checkpoint, any backend's ``to_arrays``.

        Raises
        ------
        ModelError
            If it has other names or shapes than this model's parameters, or holds what are not
            finite real floating-point numbers in JAX's widest dtype, float32 without x64.
        """
        shapes = self._sizes.kernel_shapes()
        return params_of(arrays, shapes)


def _normalize(params: Params, name: str, x: jax.Array) -> jax.Array:
    """Return N(x): each token's entries brought to mean 0 and variance 1, scaled and shifted."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(variance + core.EPSILON)
    return unit * params[f"{name}_scale"] + params[f"{name}_bias"]
