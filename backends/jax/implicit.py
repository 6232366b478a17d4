"""Gradients of a fixed point, in JAX's idiom: a function of parameters and state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from deq_init import equilibrium as core
from deq_init import fixed_point as solver
from deq_init.equilibrium import Gradient, Report
from deq_init.fixed_point import Method, Solution
from deq_init.jax.iteration import xp
from deq_init.jax.jacobian import Flat, Product, fixed_point

Function = Callable[[Any, Any], Any]
"""f(params, z), which returns a state like z."""


def with_gradient(
    f: Function,
    params: Any,
    solution: Solution,
    *,
    gradient: Gradient = "implicit",
    method: Method = "anderson",
    rtol: float = 1e-5,
    max_steps: int = 200,
    report: Report | None = None,
) -> Solution:
    """Return the solution with the gradient that a fixed point of f has in the parameters.

    Parameters
    ----------
    f : callable
        Maps parameters and a state to a state like it, each sample for itself. It closes over
        nothing that is differentiated: all of that is in ``params``.
    params : pytree of Array
        What the fixed point depends on: weights, input.
    solution : Solution
        A fixed point of z -> f(params, z), by :func:`deq_init.jax.fixed_point` or any other solver.
    gradient : {"implicit", "one_step"}
        Solve the adjoint equation u = Jᵀu + g, or take u = g, which costs one product with the
        transposed Jacobian and is exact for J = 0.
    method, rtol, max_steps
        For the adjoint equation, as for :func:`deq_init.jax.fixed_point`. Where it does not
        converge, the iterate with the smallest |Jᵀu + g - u| is taken; the first one is u = g.
    report : callable, optional
        Is called with the Solution of the adjoint equation by every backward pass, compiled or
        not, through ``jax.debug.callback``: u, of shape (batch, n), and for each sample residual,
        steps and converged. See :func:`deq_init.equilibrium.adjoint`.

    Returns
    -------
    Solution
        Of the same numbers. The gradient goes from ``value`` to ``params``. Lost samples (residual
        inf) have none, as long as f's derivatives are finite there.

    Raises
    ------
    SolverError
        For options out of their ranges.

    Notes
    -----
    Implicit gradients have derivatives of every order, forward and reverse: ``jax.hessian``,
    ``jax.jvp`` of ``jax.grad``, gradients of gradients. One-step gradients are reverse mode at
    first; the derivative of one is that of the gradient itself, with a fixed point that moves.
    Memory is that of one evaluation of f, whatever the solvers' steps.

    See Also
    --------
    deq_init.equilibrium : the equations, and their sources.

    Examples
    --------
    >>> from deq_init.jax import fixed_point
    >>> def length(a):  # z = a z + 1
    ...     f = lambda a, z: a * z + 1.0
    ...     solution = fixed_point(lambda z: f(jax.lax.stop_gradient(a), z), jnp.zeros((1, 1)))
    ...     return with_gradient(f, a, solution).value.sum()
    >>> round(float(jax.grad(length)(0.5)), 3)  # 1 / (1 - a)²
    4.0
    """
    core.require_attachable(gradient)
    solver.require_options(method, rtol, max_steps)
    lost = core.lost_samples(xp, solution)
    options = core.AdjointOptions("implicit", method, rtol, max_steps, report)
    attached = one_step if gradient == "one_step" else implicit
    value = attached(f, Linear(options), params, jax.lax.stop_gradient(solution.value), lost)
    return replace(solution, value=value)


@dataclass(frozen=True)
class Linear:
    """Solves x = product(x) + b for arrays of shape (batch, n)."""

    options: core.AdjointOptions

    def __call__(self, product: Product, b: jax.Array, lost: Any, backward: bool) -> jax.Array:
        """Return x, which is zero for samples that are lost."""
        report = partial(_report, self.options.report) if backward and self.options.report else None
        return core.adjoint(xp, product, b, lost, self.options, report)


def _report(report: Report, solution: Solution) -> None:
    jax.debug.callback(report, solution)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def implicit(f: Function, linear: Any, params: Any, z: Any, lost: Any) -> Any:
    """Return the fixed point z with its derivatives, of any order, forward and reverse."""
    return z


@implicit.defjvp
def _tangent(f: Function, linear: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Solve t = J t + b, with b what f's own tangent is at a fixed z."""
    params, z, lost = primals
    # Its derivatives are those of this rule, again.
    z = implicit(f, linear, params, z, lost)
    flat = Flat(z)
    x = flat.flatten(z)
    _, b = jax.jvp(lambda params: flat.map(partial(f, params))(x), (params,), tangents[:1])
    _, product = jax.linearize(flat.map(partial(f, params)), x)

    def solve(_: Product, b: jax.Array) -> jax.Array:
        return linear(product, b, lost, False)

    def solve_transposed(matvec: Product, g: jax.Array) -> jax.Array:
        return linear(lambda u: u - matvec(u), g, lost, True)

    t = jax.lax.custom_linear_solve(lambda t: t - product(t), b, solve, solve_transposed)
    return z, flat.unflatten(t)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def one_step(f: Function, linear: Any, params: Any, z: Any, lost: Any) -> Any:
    """Return the fixed point z with its one-step gradient."""
    return z


def _forward(f: Function, linear: Any, params: Any, z: Any, lost: Any) -> tuple[Any, Any]:
    # Derivatives of the gradient: in them the fixed point moves as it does.
    z = implicit(f, linear, params, z, lost)
    return z, (params, z, lost)


def _backward(f: Function, linear: Any, residuals: Any, cotangent: Any) -> tuple[Any, Any, None]:
    params, z, lost = residuals
    flat = Flat(z)
    x = flat.flatten(z)
    _, vjp = jax.vjp(lambda params: flat.map(partial(f, params))(x), params)
    u = flat.flatten(cotangent)
    if lost is not None:
        u = jnp.where(lost[:, None], 0.0, u)
    return vjp(u)[0], jax.tree.map(jnp.zeros_like, z), None


one_step.defvjp(_forward, _backward)


def solve(
    f: Function,
    weights: Callable[[jax.Array | None], Any],
    z0: jax.Array,
    *,
    gradient: Gradient,
    method: Method,
    rtol: float,
    max_steps: int,
) -> Solution:
    """Find a fixed point of f(weights, z) from z0, with its gradient in the weights.

    Parameters
    ----------
    f : callable
        As for :func:`with_gradient`.
    weights : callable
        ``weights(None)`` returns what f depends on; ``weights(lost)``, with an array of shape
        (batch,), the same without the input of samples that are lost.
    z0 : Array, shape (batch, ...)
        Where to start.
    gradient : {"implicit", "unrolled", "one_step"}
        Of :func:`with_gradient`, or of :func:`unrolled`.
    method, rtol, max_steps
        As for :func:`deq_init.jax.fixed_point`, forward and adjoint alike.
    """
    options: Any = {"method": method, "rtol": rtol, "max_steps": max_steps}
    found = fixed_point(partial(f, jax.lax.stop_gradient(weights(None))), z0, **options)
    known = weights(core.lost_samples(xp, found))
    if gradient == "unrolled":
        return unrolled(f, known, z0, found, max_steps=max_steps)
    return with_gradient(f, known, found, gradient=gradient, **options)


def unrolled(f: Function, params: Any, z0: Any, solution: Solution, *, max_steps: int) -> Solution:
    """Return the solution with the gradient of the plain iteration from z0 that led to it.

    Parameters
    ----------
    f, params : callable, pytree of Array
        As for :func:`with_gradient`.
    z0 : pytree of Array
        Where the iteration started.
    solution : Solution
        What plain iteration with ``damping=1`` found.
    max_steps : int
        The cap of that iteration: so many evaluations of f are done again, and kept in memory.

    Returns
    -------
    Solution
        With a value that depends on ``params``, and on z0.
    """
    flat = Flat(z0)
    lost = core.lost_samples(xp, solution)
    counts = core.applications(xp, solution, lost)
    x = core.replay(xp, flat.map(partial(f, params)), flat.flatten(z0), counts, max_steps - 1)
    found = jax.lax.stop_gradient(flat.flatten(solution.value))
    value = flat.unflatten(jnp.where(lost[:, None], found, x))
    return replace(solution, value=value)
