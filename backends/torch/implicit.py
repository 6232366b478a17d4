"""Gradients of a fixed point, in PyTorch's idiom: whatever f closes over gets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from deq_init import equilibrium as core
from deq_init import fixed_point as solver
from deq_init.equilibrium import Gradient, Report
from deq_init.fixed_point import Method, Solution
from deq_init.torch import differentiable
from deq_init.torch.iteration import xp
from deq_init.torch.jacobian import Function, fixed_point
from deq_init.torch.states import Flat, State

_Called = TypeVar("_Called", bound=Callable[..., Any])


def eager(function: _Called) -> _Called:
    """Return a function that torch.compile leaves alone, with a break of the graph."""
    return cast(_Called, cast(Any, torch.compiler).disable(function))


@eager
def with_gradient(
    f: Function,
    solution: Solution,
    *,
    gradient: Gradient = "implicit",
    method: Method = "anderson",
    rtol: float = 1e-5,
    max_steps: int = 200,
    report: Report | None = None,
) -> Solution:
    """Return the solution with the gradient that a fixed point of f has in what f depends on.

    Parameters
    ----------
    f : callable
        Maps a state to one like it, each sample for itself. It is called once. Parameters of
        modules, the input and whatever else it uses that requires a gradient get theirs.
    solution : Solution
        A fixed point of f, by :func:`deq_init.torch.fixed_point` or any other solver.
    gradient : {"implicit", "one_step"}
        Solve the adjoint equation u = Jᵀu + g, or take u = g, which costs one product with the
        transposed Jacobian and is exact for J = 0.
    method, rtol, max_steps
        For the adjoint equation, as for :func:`deq_init.torch.fixed_point`. Where it does not
        converge, the iterate with the smallest |Jᵀu + g - u| is taken; the first one is u = g.
    report : callable, optional
        Is called with the Solution of the adjoint equation by every backward pass: u, of shape
        (batch, n), and for each sample residual, steps and converged.
        See :func:`deq_init.equilibrium.adjoint`.

    Returns
    -------
    Solution
        Of the same numbers; ``value`` has the gradient. Lost samples (residual inf) have none, as
        long as f's derivatives are finite there.

    Raises
    ------
    SolverError, ShapeError, DTypeError, FunctionError
        For options, a state or an f that are not as above.

    Notes
    -----
    Reverse mode, of any order: ``create_graph=True`` gives Hessians, products with them and
    gradient penalties. f is called again for those, with the tensors that it used the first time;
    what it uses must be an argument of some operation of PyTorch in f. One-step gradients have no
    second derivative: asking for one is a SolverError. Memory is that of one evaluation of f,
    whatever the solvers' steps. ``torch.compile`` leaves this function, and the solvers, to eager
    PyTorch: what is around them is compiled, and ``fullgraph=True`` is its error. Nor does
    ``torch.func`` trace it.

    See Also
    --------
    deq_init.equilibrium : the equations, and their sources.

    Examples
    --------
    >>> from deq_init.torch import fixed_point
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> f = lambda z: a * z + 1
    >>> solution = with_gradient(f, fixed_point(f, torch.zeros(1, 1)))
    >>> solution.value.sum().backward()
    >>> round(a.grad.item(), 3)  # 1 / (1 - a)²
    4.0
    """
    core.require_attachable(gradient)
    solver.require_options(method, rtol, max_steps)
    if not torch.is_grad_enabled():
        return solution
    flat = Flat(solution.value)
    options = core.AdjointOptions(gradient, method, rtol, max_steps, report)
    z = flat.flatten(solution.value)
    value = differentiable.attach(flat.map(f), z, core.lost_samples(xp, solution), options)
    return replace(solution, value=flat.unflatten(value))


@eager
def unrolled(f: Function, z0: State, solution: Solution) -> Solution:
    """Return the solution with the gradient of the plain iteration from z0 that led to it.

    Parameters
    ----------
    f : callable
        As for :func:`with_gradient`.
    z0 : Tensor of shape (batch, ...), or tuple, list or dict of such
        Where the iteration started.
    solution : Solution
        What plain iteration with ``damping=1`` found: as many evaluations of f are done again, and
        kept in memory.

    Returns
    -------
    Solution
        With a value that depends on what f does, and on z0.
    """
    if not torch.is_grad_enabled():
        return solution
    flat = Flat(z0)
    lost = core.lost_samples(xp, solution)
    counts = core.applications(xp, solution, lost)
    # One at least, so that all parameters have a gradient.
    most = max(1, int(counts.max())) if counts.numel() else 1
    x = core.replay(xp, flat.map(f), flat.flatten(z0), counts, most)
    value = flat.unflatten(torch.where(lost[:, None], flat.flatten(solution.value), x))
    return replace(solution, value=value)


def solve(
    f: Callable[[Tensor, Tensor], Tensor],
    inject: Callable[[Tensor | None], Tensor],
    z0: Tensor | None,
    shape: tuple[int, ...],
    *,
    gradient: Gradient,
    method: Method,
    rtol: float,
    max_steps: int,
) -> Solution:
    """Find a fixed point of f(z, injected) from z0, with its gradient in what f depends on.

    Parameters
    ----------
    f : callable
        As for :func:`with_gradient`, with the injected input beside the state.
    inject : callable
        ``inject(None)`` returns that input; ``inject(lost)``, with a tensor of shape (batch,), the
        same without the input of samples that are lost.
    z0 : Tensor, optional
        Where to start; zeros by default.
    shape : tuple of int
        The state's shape, (batch, ...).
    gradient : {"implicit", "unrolled", "one_step"}
        Of :func:`with_gradient`, or of :func:`unrolled`.
    method, rtol, max_steps
        As for :func:`deq_init.torch.fixed_point`, forward and adjoint alike.

    Raises
    ------
    ShapeError
        If z0 has another shape.
    """
    options: Any = {"method": method, "rtol": rtol, "max_steps": max_steps}
    with torch.no_grad():
        injected = inject(None)
    start = injected.new_zeros(shape) if z0 is None else z0.to(injected)
    core.require_start_shape(tuple(start.shape), shape)
    found = _fixed_point(lambda z: f(z, injected), start, **options)
    if not torch.is_grad_enabled():
        return found
    again = inject(core.lost_samples(xp, found))
    if gradient == "unrolled":
        return unrolled(lambda z: f(z, again), start, found)
    return with_gradient(lambda z: f(z, again), found, gradient=gradient, **options)


_fixed_point = eager(fixed_point)
