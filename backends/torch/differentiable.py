"""Nodes of autograd that have derivatives of every order, for functions that close over tensors.

The first derivative of a fixed point takes what its one evaluation of f has kept. A higher one
(``create_graph=True``) needs f as a function of the fixed point itself and of what f closes over:
these tensors are found in the graph of that evaluation, and are inputs of the nodes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode

from deq_init import equilibrium as core
from deq_init.errors import FunctionError, SolverError
from deq_init.torch.iteration import xp

Edge = tuple[Any, int]


def attach(
    f: Callable[..., Tensor],
    z: Tensor,
    lost: Tensor,
    options: core.AdjointOptions,
    given: Sequence[Tensor] = (),
    inputs: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return z, of shape (batch, n), with the gradient of the fixed point z = f(z, *given).

    Parameters
    ----------
    f : callable
        Maps z and what is given to a tensor like z, each row for itself.
    z : Tensor, shape (batch, n)
        The fixed point.
    lost : Tensor of bool, shape (batch,)
        Samples that have no gradient.
    options : AdjointOptions
        Of the adjoint equation.
    given : sequence of Tensor
        Further arguments of f.
    inputs : sequence of Tensor, optional
        What f closes over. By default it is found by a call of f, whose graph is kept for the
        first derivative.
    """
    y, known = None, True
    leaf = z.detach().requires_grad_()
    if inputs is None:
        y, inputs, known = _call(f, leaf)
    equation = _Equation(f, leaf, y, lost, options, len(given), known)
    return cast(Tensor, cast(Any, _FixedPoint).apply(equation, y, leaf.detach(), *given, *inputs))


@dataclass(frozen=True)
class _Equation:
    """z = f(z, *given), with y = f(leaf) at a leaf that is z, or None."""

    f: Callable[..., Tensor]
    leaf: Tensor
    y: Tensor | None
    lost: Tensor
    options: core.AdjointOptions
    count: int
    known: bool

    def adjoint(self, y: Tensor, z: Tensor, g: Tensor) -> Tensor:
        """Return the numbers of the adjoint of g, with y = f(z) at a leaf z."""
        with torch.no_grad():
            options = self.options
            vjp = partial(_product, y, z)
            return core.adjoint(xp, vjp, g, self.lost, options, options.report)


class _FixedPoint(torch.autograd.Function):
    """The value z, whose gradient g goes to what f depends on by the adjoint u of g."""

    @staticmethod
    def forward(
        ctx: Any, equation: _Equation, y: Tensor | None, z: Tensor, *rest: Tensor
    ) -> Tensor:
        value = z.clone()
        ctx.equation = equation
        ctx.save_for_backward(value, *rest)
        ctx.set_materialize_grads(False)
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        equation: _Equation = ctx.equation
        none = (None,) * (len(ctx.needs_input_grad) - 3)
        if g is None:
            return None, None, None, *none
        if equation.y is not None and not torch.is_grad_enabled():
            return None, equation.adjoint(equation.y, equation.leaf, g), None, *none
        if equation.options.gradient == "one_step":
            raise SolverError(
                "expected gradient='implicit' or 'unrolled' for a second derivative, received "
                "'one_step'. It is not the gradient of a function, and PyTorch's graph does not "
                "tell the derivative of the fixed point from that of its one-step gradient."
            )
        if not equation.known:
            raise FunctionError(
                "expected an f whose tensors can be found for a second derivative, received one "
                "that uses a tensor with a gradient which no operation of PyTorch in f takes as "
                "its argument. Use that tensor by PyTorch's operations, or detach it and leave "
                "out create_graph=True."
            )
        value, *rest = ctx.saved_tensors
        given, inputs = rest[: equation.count], rest[equation.count :]
        f, lost = equation.f, equation.lost
        g = torch.where(lost[:, None], 0.0, g)

        def transposed(u: Tensor, z: Tensor, g: Tensor, *given: Tensor) -> Tensor:
            create = torch.is_grad_enabled()
            with torch.enable_grad():
                z = _leaf(z)
                product = _product(f(z, *given), z, u, create_graph=create)
            return product + g

        with torch.enable_grad():
            z = value.detach().requires_grad_()
            y = f(z, *(x.detach() for x in given))
        u = equation.adjoint(y, z, g)
        if torch.is_grad_enabled():
            # u is the fixed point of its own equation, and has the gradient of one.
            u = attach(transposed, u, lost, equation.options, (value, g, *given), inputs)

        def pull(z: Tensor, u: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            return _pull(lambda *given: (f(z, *given),), given, inputs, (u,))

        found = _apply(pull, (value, u, *given), inputs)
        return None, None, None, *found


class _Closure(torch.autograd.Function):
    """Tensors function(*given), which depend on ``inputs`` that the function closes over, too."""

    @staticmethod
    def forward(ctx: Any, function: Any, count: int, *rest: Tensor) -> tuple[Tensor, ...]:
        ctx.function, ctx.count = function, count
        ctx.save_for_backward(*rest)
        ctx.set_materialize_grads(False)
        return tuple(x.detach() for x in function(*(x.detach() for x in rest[:count])))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        count, function = ctx.count, ctx.function
        given, inputs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        which = [i for i, v in enumerate(cotangents) if v is not None]

        def pull(*args: Tensor) -> tuple[Tensor, ...]:
            given, v = args[:count], args[count:]

            def chosen(*given: Tensor) -> tuple[Tensor, ...]:
                found = function(*given)
                return tuple(found[i] for i in which)

            return _pull(chosen, given, inputs, v)

        v = tuple(v for v in cotangents if v is not None)
        return None, None, *_apply(pull, (*given, *v), inputs)


def _apply(
    function: Callable[..., tuple[Tensor, ...]], given: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return function(*given), which is differentiable if gradients are enabled."""
    found = cast(Any, _Closure).apply(function, len(given), *given, *inputs)
    return cast("tuple[Tensor, ...]", found)


def _pull(
    function: Callable[..., tuple[Tensor, ...]],
    given: Sequence[Tensor],
    inputs: Sequence[Tensor],
    v: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Return the products of v with the derivatives of a function in ``given`` and ``inputs``.

    What is given must be leaves, so that no path leads from there to the inputs. An input may be
    made of another one: the derivative in this is that at fixed values of all the others.
    """
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [_leaf(x) for x in given]
        found = function(*leaves)
    wanted = [*leaves, *inputs]
    pairs = [(y, x) for y, x in zip(found, v, strict=True) if y.requires_grad]
    products: list[Tensor | None] = [None] * len(wanted)
    if pairs and wanted:
        y, v = zip(*pairs, strict=True)
        products = list(
            torch.autograd.grad(y, wanted, v, True, create_graph=create, allow_unused=True)
        )
        parts = _apart(inputs, products[len(leaves) :], create)
        products[len(leaves) :] = parts
    return tuple(
        torch.zeros_like(x) if product is None else product
        for x, product in zip(wanted, products, strict=True)
    )


def _apart(
    inputs: Sequence[Tensor], totals: Sequence[Tensor | None], create: bool
) -> list[Tensor | None]:
    """Return derivatives without the parts that came to an input through another one."""
    edges = [_edge(x) for x in inputs]
    reached = [_reached(x) if x.grad_fn is not None else set() for x in inputs]
    above = [[j for j, below in enumerate(reached) if edge in below] for edge in edges]
    parts = list(totals)
    for i in sorted(range(len(inputs)), key=lambda i: len(above[i])):
        through = [j for j in above[i] if parts[j] is not None]
        if parts[i] is None or not through:
            continue
        (indirect,) = torch.autograd.grad(
            [inputs[j] for j in through], inputs[i], [parts[j] for j in through],
            retain_graph=True, create_graph=create, allow_unused=True,
        )  # fmt: skip
        if indirect is not None:
            parts[i] = cast(Tensor, parts[i]) - indirect
    return parts


def _product(y: Tensor, z: Tensor, u: Tensor, create_graph: bool = False) -> Tensor:
    """Return uᵀ dy/dz."""
    if not y.requires_grad:
        return torch.zeros_like(z)
    (product,) = torch.autograd.grad(
        y, z, u, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return torch.zeros_like(z) if product is None else product


def _leaf(x: Tensor) -> Tensor:
    return x if x.requires_grad else x.detach().requires_grad_()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the tensors, made before node number ``first``, that operations take."""

    supports_higher_order_operators = True

    def __init__(self, first: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.first = first
        self.found: dict[Edge, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for x in (*args, *kwargs.values()):
            self._look(x if isinstance(x, (list, tuple)) else (x,))
        return func(*args, **kwargs)

    def _look(self, group: Iterable[Any]) -> None:
        for x in group:
            node: Any = x.grad_fn if isinstance(x, Tensor) else None
            if node is not None and node._sequence_nr() < self.first:
                self.found[_edge(x)] = x


def _call(f: Callable[[Tensor], Tensor], leaf: Tensor) -> tuple[Tensor, list[Tensor], bool]:
    """Return y = f(leaf), the tensors f closes over, and whether these are all."""
    mark: Any = leaf.view_as(leaf).grad_fn
    first = mark._sequence_nr()
    with _Recorder(first) as recorder:
        y = f(leaf)
    inputs, known = [], True
    stack, seen = [_edge(y)] if y.requires_grad else [], set()
    while stack:
        edge = stack.pop()
        if edge in seen:
            continue
        seen.add(edge)
        node = edge[0]
        variable = getattr(node, "variable", None)
        if variable is not None:
            if variable is not leaf:
                inputs.append(variable)
        elif node._sequence_nr() < first:
            known = known and edge in recorder.found
            if edge in recorder.found:
                inputs.append(recorder.found[edge])
        else:
            stack.extend(_next(node))
    return y, inputs, known


def _reached(x: Tensor) -> set[Edge]:
    """Return the edges that lead on from a tensor's node."""
    stack, seen = _next(x.grad_fn), set()
    while stack:
        edge = stack.pop()
        if edge not in seen:
            seen.add(edge)
            stack.extend(_next(edge[0]))
    return seen


def _edge(x: Tensor) -> Edge:
    edge = get_gradient_edge(x)
    return edge.node, edge.output_nr


def _next(node: Any) -> list[Edge]:
    return [edge for edge in node.next_functions if edge[0] is not None]
