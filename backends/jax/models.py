"""Deep equilibrium networks in JAX: pure functions over a dictionary of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from deq_init import equilibrium as core
from deq_init import fixed_point as solver
from deq_init import scale
from deq_init.equilibrium import Gradient
from deq_init.fixed_point import Solution
from deq_init.jacobian import Form
from deq_init.jax import implicit, initializers
from deq_init.jax.activations import ACTIVATIONS, Activation, Params, arrays_of, params_of
from deq_init.jax.iteration import xp
from deq_init.jax.transformer import DEQTransformer

__all__ = ["ACTIVATIONS", "DEQFCN", "Activation", "DEQTransformer", "Params", "iterate"]


def iterate(
    f: Callable[[jax.Array], jax.Array], z0: jax.Array, *, rtol: float, max_steps: int
) -> Solution:
    """Iterate z <- f(z) until the relative change is at most rtol, or max_steps are done.

    Parameters
    ----------
    f : callable
        Maps an array to one of the same shape and dtype.
    z0 : Array
        Where to start.
    rtol : float
        Bound on |f(z) - z| / |f(z)|, in the Euclidean norm over all entries.
    max_steps : int
        Most evaluations of f; the last iterate is kept whether or not it converged.

    Returns
    -------
    Solution
        Its residual, steps and converged are scalars, for all entries together.
    """

    def proceed(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, residual, steps = state
        return (steps < max_steps) & ~(residual <= rtol)

    def step(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        z, _, steps = state
        new = f(z)
        change = jnp.linalg.norm((new - z).ravel())
        scale = jnp.linalg.norm(new.ravel())
        return new, change / jnp.maximum(scale, jnp.finfo(new.dtype).tiny), steps + 1

    start = (z0, jnp.asarray(jnp.inf, z0.dtype), jnp.asarray(0))
    z, residual, steps = jax.lax.while_loop(proceed, step, start)
    return Solution(z, residual, steps, residual <= rtol)


@dataclass(frozen=True)
class DEQFCN:
    """The fully-connected DEQ: z* = φ(z* W) + x U + c, logits z* R + b.

    Parameters
    ----------
    inputs, width, classes : int
        Sizes of x, z and the logits.
    rtol, max_steps : float, int
        Tolerance and step cap of the solver, forward and adjoint alike; the last iterate
        is kept.
    input_gain : float
        Entries of U are normal with variance input_gain² / inputs.
    activation : str or callable
        φ: a name out of :data:`ACTIVATIONS`, e.g. "tanh", "relu", "gelu" (with the error function),
        "silu", or any function of arrays, entry by entry.
    form : {"out", "in"}
        φ(z W) + x U + c, or φ(z W + x U + c).
    bias : bool
        Whether there is a c.
    method : {"batch", "plain", "anderson"}
        Plain iteration of the batch as a whole, by :func:`iterate`, as in the published
        experiments; or of each sample for itself, plain or accelerated, by
        :func:`deq_init.jax.fixed_point`. With "batch", a sample that is not finite spoils the
        status of all.
    gradient : {"implicit", "unrolled", "one_step"}
        Of the adjoint equation, of the iteration itself (not of "anderson", and memory grows with
        max_steps), or of one application of f to the fixed point.

    Raises
    ------
    ShapeError, ModelError, ActivationError, SolverError
        For sizes, a form, an activation or options that are not as above.

    See Also
    --------
    deq_init.equilibrium : the equations, the parameters and their seeds.
    deq_init.torch.models.DEQFCN : the same model in PyTorch.

    References
    ----------
    The model of Agarwala & Schoenholz (2022), arXiv 2207.09432, section 4; implicit gradients as in
    Bai, Kolter & Koltun (2019), arXiv 1909.01377, theorem 1.

    Examples
    --------
    >>> model = DEQFCN(4, 16, 3)
    >>> params = model.init(jax.random.key(0), initializers.orthogonal(0.5))
    >>> logits, solution = model.apply(params, jnp.ones((2, 4)))
    >>> logits.shape, bool(solution.converged.all())
    ((2, 3), True)
    """

    inputs: int
    width: int
    classes: int
    rtol: float = 1e-5
    max_steps: int = 200
    input_gain: float = 0.3
    activation: str | Activation = "tanh"
    form: Form = "out"
    bias: bool = False
    method: Literal["batch", "plain", "anderson"] = "anderson"
    gradient: Gradient = "implicit"

    def __post_init__(self) -> None:
        core.require_model(
            self.inputs, self.width, self.classes, self.form, self.activation, ACTIVATIONS
        )
        scale.require_scale("gain", self.input_gain)
        core.require_gradient(self.gradient, self.method)
        method = "plain" if self.method == "batch" else self.method
        solver.require_options(method, self.rtol, self.max_steps)

    def init(
        self, key: jax.Array, state_to_state: initializers.Initializer, dtype: Any = None
    ) -> Params:
        """Return parameters W (width, width), U (inputs, width), R (width, classes), b (classes,).

        With a bias, c (width,), too. The two biases are zeros.

        U and R depend on the key and not on the initializer of W, so that models which differ in
        ``state_to_state`` alone share them. ``jax.random.key(seed)`` gives the maps that
        ``seed`` gives in PyTorch: the parameters there are the transposes of these.

        Parameters
        ----------
        key : Array
            A key.
        state_to_state : Initializer
            Of W: a family and a scale, e.g. ``deq_init.jax.goe(0.4)``.
        dtype : dtype, optional
            Of all parameters; by default W's initializer's own, and JAX's default for the others.
        """
        given = () if dtype is None else (dtype,)
        initialize = {
            "W": state_to_state,
            "U": initializers.random(self.input_gain),
            "R": initializers.random(1.0),
        }
        shapes = core.kernel_shapes(self.inputs, self.width, self.classes, self.bias)
        return {
            name: initialize[name](jax.random.fold_in(key, core.STREAMS[name]), shape, *given)
            if name in initialize
            else jnp.zeros(shape, *given)
            for name, shape in shapes.items()
        }

    def apply(
        self, params: Params, x: jax.Array, z0: jax.Array | None = None
    ) -> tuple[jax.Array, Solution]:
        """Return logits (batch, classes) and fixed point (batch, width) of x (batch, inputs).

        The solver starts from z0 (batch, width), see :func:`deq_init.jax.initial_state`, and by
        default from zeros.

        Gradients are those that ``gradient`` names; with implicit ones, the adjoint equation is
        solved by the same method, with the same tolerance and step cap. Memory then does not
        grow with the steps. A solve that does not converge says so in the solution and raises
        nothing. A sample that is lost (residual inf) keeps the last finite state, and has no part
        in the gradients of W, U and c.

        Raises
        ------
        ShapeError
            If x or z0 has another shape.
        ModelError
            If the parameters have other names or shapes.
        """
        core.require_samples(jnp.shape(x), self.inputs)
        core.require_arrays(
            params,
            core.kernel_shapes(self.inputs, self.width, self.classes, self.bias),
        )
        solution = self._solve(params, jnp.asarray(x), z0)
        return solution.value @ params["R"] + params["b"], solution

    def to_arrays(self, params: Params) -> dict[str, np.ndarray]:
        """Return the parameters as NumPy arrays: a checkpoint that PyTorch's model reads, too."""
        return arrays_of(params)

    def from_arrays(self, arrays: Mapping[str, Any]) -> Params:
        """Return the parameters of a checkpoint, PyTorch's ``to_arrays`` or this one's.

        Raises
        ------
        ModelError
            If it has other names or shapes than this model's parameters, or holds what are not
            finite real floating-point numbers in JAX's widest dtype, float32 without x64.
        """
        shapes = core.kernel_shapes(self.inputs, self.width, self.classes, self.bias)
        return params_of(arrays, shapes)

    def _solve(self, params: Params, x: jax.Array, z0: jax.Array | None) -> Solution:
        injected = self._injected(params, x)
        z0 = jnp.zeros_like(injected) if z0 is None else jnp.asarray(z0, injected.dtype)
        core.require_start_shape(z0.shape, injected.shape)
        if self.method == "batch" and self.gradient != "unrolled":
            weights = (params["W"], injected)
            fixed = jax.lax.stop_gradient(weights)
            found = iterate(
                partial(_cell, self, fixed), z0, rtol=self.rtol, max_steps=self.max_steps
            )
            attached = implicit.one_step if self.gradient == "one_step" else implicit.implicit
            linear = _Linear(self.rtol, self.max_steps)
            value = attached(partial(_cell, self), linear, weights, found.value, None)
            return Solution(value, found.residual, found.steps, found.converged)
        options: Any = {"rtol": self.rtol, "max_steps": self.max_steps}
        if self.method == "batch":
            fixed = jax.lax.stop_gradient((params["W"], injected))
            found = iterate(partial(_cell, self, fixed), z0, **options)
            weights = (params["W"], injected)
            # Here the value is f of the last state, not that state itself.
            value = core.replay(
                xp, partial(_cell, self, weights), z0, found.steps[None], self.max_steps
            )
            return Solution(value, found.residual, found.steps, found.converged)

        def weights_without(lost: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            # 0 times NaN is NaN: the input of a lost sample has to be left out of the gradients.
            kept = x if lost is None else jnp.where(lost[:, None], 0, x)
            return params["W"], self._injected(params, kept)

        return implicit.solve(
            partial(_cell, self),
            weights_without,
            z0,
            gradient=self.gradient,
            method=self.method,
            **options,
        )

    def _injected(self, params: Params, x: jax.Array) -> jax.Array:
        injected = x @ params["U"]
        return injected + params["c"] if self.bias else injected


def _cell(model: DEQFCN, weights: tuple[jax.Array, jax.Array], z: jax.Array) -> jax.Array:
    w, injected = weights
    named = model.activation
    activation = ACTIVATIONS[named] if isinstance(named, str) else named
    if model.form == "out":
        return activation(z @ w) + injected
    return activation(z @ w + injected)


@dataclass(frozen=True)
class _Linear:
    """x = product(x) + b, iterated from zero for the batch as a whole."""

    rtol: float
    max_steps: int

    def __call__(self, product: Any, b: jax.Array, lost: None, backward: bool) -> jax.Array:
        return iterate(
            lambda x: product(x) + b,
            jnp.zeros_like(b),
            rtol=self.rtol,
            max_steps=self.max_steps,
        ).value
