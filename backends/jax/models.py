"""Deep equilibrium networks in JAX: pure functions over a dictionary of parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deq_init.jax import initializers

Params = dict[str, jax.Array]


class Solution(NamedTuple):
    """A fixed point as found.

    Attributes
    ----------
    value : Array
        The last iterate.
    residual : Array, scalar
        Its relative change in the last step, |f(z) - z| / |f(z)|.
    steps : Array, scalar integer
        Evaluations of f.
    converged : Array, scalar boolean
        Whether the residual is at most the tolerance.
    """

    value: jax.Array
    residual: jax.Array
    steps: jax.Array
    converged: jax.Array


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
    """The fully-connected DEQ: z* = tanh(z* W) + x U, logits z* R + b.

    Parameters
    ----------
    inputs, width, classes : int
        Sizes of x, z and the logits.
    rtol, max_steps : float, int
        Tolerance and step cap of plain iteration from z = 0, forward and adjoint alike; the last
        iterate is kept.
    input_gain : float
        Entries of U are normal with variance input_gain² / inputs.

    References
    ----------
    The model of Agarwala & Schoenholz (2022), section 4.
    """

    inputs: int
    width: int
    classes: int
    rtol: float = 1e-3
    max_steps: int = 40
    input_gain: float = 0.3

    def init(self, key: jax.Array, state_to_state: initializers.Initializer) -> Params:
        """Return parameters W (width, width), U (inputs, width), R (width, classes), b (classes,).

        U and R depend on the key and not on the initializer of W, so that models which differ in
        ``state_to_state`` alone share them.
        """
        w, u, r = jax.random.split(key, 3)
        return {
            "W": state_to_state(w, (self.width, self.width)),
            "U": initializers.random(self.input_gain)(u, (self.inputs, self.width)),
            "R": initializers.random(1.0)(r, (self.width, self.classes)),
            "b": jnp.zeros(self.classes),
        }

    def apply(self, params: Params, x: jax.Array) -> tuple[jax.Array, Solution]:
        """Return logits (batch, classes) and fixed point (batch, width) of x (batch, inputs).

        Gradients are those of implicit differentiation: the adjoint fixed point is iterated with
        the same tolerance and step cap.
        """
        solution = _equilibrium(self, params["W"], x @ params["U"])
        return solution.value @ params["R"] + params["b"], solution


def _cell(w: jax.Array, injected: jax.Array, z: jax.Array) -> jax.Array:
    return jnp.tanh(z @ w) + injected


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _equilibrium(model: DEQFCN, w: jax.Array, injected: jax.Array) -> Solution:
    step = partial(_cell, w, injected)
    return iterate(step, jnp.zeros_like(injected), rtol=model.rtol, max_steps=model.max_steps)


def _forward(model: DEQFCN, w: jax.Array, injected: jax.Array) -> tuple[Solution, Any]:
    solution = _equilibrium(model, w, injected)
    return solution, (w, injected, solution.value)


def _backward(model: DEQFCN, residuals: Any, cotangent: Solution) -> tuple[jax.Array, jax.Array]:
    w, injected, z = residuals
    _, state_vjp = jax.vjp(partial(_cell, w, injected), z)
    _, parameter_vjp = jax.vjp(lambda w, injected: _cell(w, injected, z), w, injected)
    adjoint = iterate(
        lambda u: state_vjp(u)[0] + cotangent.value,
        jnp.zeros_like(z),
        rtol=model.rtol,
        max_steps=model.max_steps,
    )
    gradients: tuple[jax.Array, jax.Array] = parameter_vjp(adjoint.value)
    return gradients


_equilibrium.defvjp(_forward, _backward)
