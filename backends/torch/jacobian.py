"""Fixed points, the Jacobian there, and weights scaled to its norm, in PyTorch's idiom."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_pre_hook

from deq_init import fixed_point as core
from deq_init import jacobian, scale
from deq_init.errors import FunctionError, SelectionError
from deq_init.fixed_point import Method, Solution
from deq_init.jacobian import Measurement, Rescaling
from deq_init.plan import compute_dtype
from deq_init.products import checked
from deq_init.spectra import Estimate
from deq_init.torch import filling
from deq_init.torch.iteration import xp
from deq_init.torch.states import Flat, State

Function = Callable[[State], State]
Product = Callable[[Tensor], Tensor]


def fixed_point(
    f: Function,
    z0: State,
    *,
    method: Method = "anderson",
    rtol: float = 1e-5,
    max_steps: int = 1000,
    memory: int = 5,
    damping: float = 1.0,
    rounding: float | None = None,
) -> Solution:
    """Solve z = f(z) for each sample, from z0.

    Parameters
    ----------
    f : callable
        Maps a state to one like it, each sample for itself. A module is called in the mode that
        it is in: put one with dropout or batch normalization into ``eval()`` mode.
    z0 : Tensor of shape (batch, ...), or tuple, list or dict of such
        Where to start; float16, bfloat16, float32 or float64.
    method : {"anderson", "plain"}
        Anderson acceleration, or z <- z + damping (f(z) - z).
    rtol : float
        Bound on |f(z) - z| / |f(z)| of a sample.
    max_steps : int
        Evaluations of f at most.
    memory : int
        Differences that Anderson acceleration keeps.
    damping : float
        In (0, 1].
    rounding : float, optional
        Relative error of f's values, by which Anderson acceleration is regularised: say 2**-7 for
        an f that computes in bfloat16. By default the epsilon of z0's coarsest dtype.

    Returns
    -------
    Solution
        Its value is a state like z0, without gradient; residual, steps and converged have shape
        (batch,). A sample that does not converge keeps its best iterate, and has the residual inf
        if it diverges.

    Raises
    ------
    ShapeError, DTypeError, SolverError, FunctionError
        For a state, an option or an f that are not as above. Divergence raises nothing.

    Examples
    --------
    >>> solution = fixed_point(lambda z: 0.5 * z + 1, torch.zeros(2, 3))
    >>> bool(solution.converged.all()), round(solution.value[0, 0].item(), 4)
    (True, 2.0)
    """
    flat = Flat(z0)
    with torch.no_grad():
        found = core.solve(
            xp,
            flat.map(f),
            flat.flatten(z0),
            method=method,
            rtol=rtol,
            max_steps=max_steps,
            memory=memory,
            damping=damping,
            rounding=flat.layout.rounding if rounding is None else rounding,
        )
        value = flat.unflatten(found.value)
    return replace(found, value=value)


def jacobian_norm(
    f: Function,
    z: State,
    *,
    rtol: float = 1e-3,
    max_steps: int = jacobian.MAX_STEPS["jacobian_norm"],
) -> Estimate:
    """Return the spectral norm of the Jacobian of f at z, for each sample.

    Parameters
    ----------
    f : callable
        Maps a state to one like it, each sample for itself, and is differentiable. It is called
        once; its parameters' ``.grad`` is left alone.
    z : Tensor of shape (batch, ...), or tuple, list or dict of such
        Where, usually a fixed point; float16, bfloat16, float32 or float64.
    rtol : float
        Relative error of each sample's norm to stop at.
    max_steps : int
        Pairs of products with the Jacobian at most; memory for so many states is taken.

    Returns
    -------
    Estimate
        value, error and converged have shape (batch,).

    Raises
    ------
    ShapeError, DTypeError, SolverError, FunctionError
        For a state, an option or an f that are not as above.

    Notes
    -----
    Lanczos on JᵀJ, from reverse-mode products and the derivatives of these in their argument. The
    Jacobian is never formed. Scaled dot-product attention uses its mathematical form, and
    compiled modules run uncompiled: the fast ones cannot be differentiated twice. Where f has a
    custom ``autograd.Function`` whose backward cannot be either, ⟨u, Jv⟩ is not ⟨Jᵀu, v⟩ for
    random vectors. Products with J are then central differences of f, which is called twice for
    each, and their error is a part of the estimate's; the radius is that of Jᵀ.

    Examples
    --------
    >>> w = torch.diag(torch.tensor([0.5, -0.9]))
    >>> jacobian_norm(lambda z: z @ w.T, torch.zeros(1, 2)).value
    tensor([0.9000])
    """
    return _estimate("jacobian_norm", f, z, rtol, max_steps)


def jacobian_spectral_radius(
    f: Function,
    z: State,
    *,
    rtol: float = 1e-3,
    max_steps: int = jacobian.MAX_STEPS["spectral_radius"],
) -> Estimate:
    """Return the largest modulus of an eigenvalue of the Jacobian of f at z, for each sample.

    Parameters, returns and errors are those of :func:`jacobian_norm`; a step is one product.

    Notes
    -----
    Arnoldi, right for complex eigenvalues and non-normal Jacobians, and exact to rounding for
    states of up to ``max_steps`` numbers. For larger ones whose eigenvalues crowd at the edge, as
    an orthogonal matrix's do, the estimate may not converge, and says so.

    Examples
    --------
    >>> w = torch.tensor([[0.0, -0.9], [0.9, 0.0]])  # eigenvalues 0.9 i and -0.9 i
    >>> jacobian_spectral_radius(lambda z: z @ w.T, torch.zeros(1, 2)).value
    tensor([0.9000])
    """
    return _estimate("spectral_radius", f, z, rtol, max_steps)


def rescale_jacobian_(
    weights: Tensor | Iterable[Tensor],
    f: Function,
    z0: State,
    *,
    jacobian_norm: float | None = None,
    spectral_radius: float | None = None,
    rtol: float = 0.01,
    solver: Callable[[Function, State], State] | None = None,
    family: str | None = None,
    activation: Any = None,
    form: jacobian.Form = "out",
    input_variance: float = 1.0,
) -> Rescaling:
    """Multiply weights by one factor that gives the fixed point's Jacobian this norm or radius.

    Parameters
    ----------
    weights : Tensor or iterable of Tensor
        Those that f uses and that are to be scaled, in place; tied ones count once.
    f : callable
        Maps a state to one like it, each sample for itself, and is differentiable.
    z0 : Tensor of shape (batch, ...), or tuple, list or dict of such
        Where the first fixed point is looked for; a few samples are enough.
    jacobian_norm, spectral_radius : float
        The target for the mean over the batch, one of the two.
    rtol : float
        Relative error of the mean that is good enough.
    solver : callable, optional
        ``solver(f, z0) -> z`` finds the fixed point instead of :func:`fixed_point`. What it
        returns counts as one if its residual is at most rtol / 4.
    family, activation : str, optional
        The law of the one square weight, and f's activation, as in
        :func:`deq_init.theory.gain_for`, if known: the search then starts from the mean-field
        scale. Both or neither.
    form : {"out", "in"}
        Where the input enters: φ(Wz) + x or φ(Wz + x).
    input_variance : float
        Variance of the entries of x.

    Returns
    -------
    Rescaling
        Whether the target was reached, the value that was, and the factor. If it was not reached,
        for lack of a fixed point or because no factor gives it, the weights are as they were, to
        the bit, and ``reason`` says why.

    Raises
    ------
    ScaleError, SolverError, ShapeError, DTypeError, WeightError, SelectionError, FunctionError,
    FamilyError, ActivationError
        The weights are then as they were, as after any exception from f or the solver.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.eye_(layer.weight)
    >>> result = rescale_jacobian_(layer.weight, layer, torch.zeros(1, 2), jacobian_norm=0.5)
    >>> result.reached, layer.weight[0, 0].item()
    (True, 0.5)
    """
    wanted = jacobian.target(jacobian_norm, spectral_radius, rtol)
    flat, scaled = Flat(z0), Scaled(weights)
    start = jacobian.mean_field_factor(
        wanted,
        [] if family is None else scaled.sizes(),
        family=family,
        activation=activation,
        form=form,
        input_variance=input_variance,
    )
    function, z = flat.map(f), flat.flatten(z0).detach()
    probe = jacobian.Probe(
        wanted,
        xp,
        function,
        lambda z: products(function, z),
        z,
        normals(z),
        solver=None
        if solver is None
        else lambda z: flat.flatten(solver(f, flat.unflatten(z.clone())), "solver").detach(),
        numbers=Tensor.tolist,
    )
    with scaled.restored_unless_kept(), torch.no_grad():
        first = probe.near() if start is None else 1.0

        def evaluate(factor: float) -> Measurement:
            scaled.multiply(factor)
            return probe.measure()

        result = jacobian.search(wanted, first, evaluate, start=start, rounding=probe.rounding)
        if result.reached:
            scaled.keep(result.factor)
    return result


def multiply_(weights: Tensor | Iterable[Tensor], factor: float) -> None:
    """Multiply weights by a factor, in place.

    Parameters
    ----------
    weights : Tensor or iterable of Tensor
        What to multiply; tied ones count once. Half precision is multiplied in float32 and rounded
        once.
    factor : float
        The factor, such as :func:`check` suggests.

    Raises
    ------
    ScaleError, DTypeError, WeightError, SelectionError
        For a factor that is not a finite number or gives entries that are not finite, or for
        weights that cannot be written to. None has been changed then.

    Examples
    --------
    >>> w = torch.eye(2)
    >>> multiply_(w, 0.5)
    >>> w[0, 0].item()
    0.5
    """
    number = scale.require_factor(factor)
    scaled = Scaled(weights)
    for product in scaled.products(number):
        finite = product.isfinite().all()
        scale.require_finite_product(number, filling.dtype_name(product), finite)
    scaled.keep(number)


def _estimate(kind: jacobian.Kind, f: Function, z: State, rtol: float, steps: int) -> Estimate:
    core.require_rtol(rtol)
    core.require_count("max_steps", steps)
    flat = Flat(z)
    return _measure(kind, flat.map(f), flat.flatten(z).detach(), rtol, steps)


def _measure(kind: jacobian.Kind, f: Product, z: Tensor, rtol: float, steps: int) -> Estimate:
    if z.shape[0] == 0:
        empty = z.new_zeros(0)
        return Estimate(empty, empty, 0, empty > 0)
    jvp, vjp = products(f, z)
    return jacobian.measure(kind, xp, jvp, vjp, normals(z), rtol=rtol, max_steps=steps)


def normals(z: Tensor) -> Tensor:
    """Return the vectors that measurements start from: normals, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)


def products(f: Product, z: Tensor) -> tuple[Product, Product]:
    """Return products with the Jacobian of f at z and with its transpose, f being called once.

    u -> Jᵀu is linear, so J is the transpose of its derivative. That asks of f no forward-mode
    formula, and nothing of its buffers.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        torch.compiler.set_stance("force_eager"),
    ):
        z = z.clone().requires_grad_()
        with _without_fsdp():
            y = f(z)
        u = torch.zeros_like(y, requires_grad=True)
        pulled = None
        if y.requires_grad:
            (pulled,) = torch.autograd.grad(y, z, u, create_graph=True, allow_unused=True)
    if pulled is None:
        raise FunctionError(
            "expected f to be differentiable in its argument, received one whose result does not "
            "depend on it for autograd. Leave out detach() and no_grad() inside f."
        )

    def vjp(x: Tensor) -> Tensor:
        return torch.autograd.grad(y, z, x, retain_graph=True)[0]

    def jvp(x: Tensor) -> Tensor:
        if not pulled.requires_grad:
            return torch.zeros_like(x)
        (pushed,) = torch.autograd.grad(pulled, u, x, retain_graph=True, allow_unused=True)
        return torch.zeros_like(x) if pushed is None else pushed

    if not _has_custom_functions(y):
        return jvp, vjp

    def evaluate(x: Tensor) -> Tensor:
        with torch.no_grad():
            return f(x)

    return checked(xp, evaluate, z.detach(), jvp, vjp, normals(z)), vjp


def _has_custom_functions(y: Tensor) -> bool:
    """Return whether autograd reached y through a function whose backward is not PyTorch's own.

    PyTorch's own backwards are differentiable, or raise.
    """
    seen, nodes = set(), [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # Those of extensions in C++ have no class of their own in Python.
        if isinstance(node, BackwardCFunction) or type(node).__name__ == "CppFunction":
            return True
        nodes.extend(following for following, _ in node.next_functions)
    return False


@contextmanager
def _without_fsdp() -> Iterator[None]:
    """Raise FunctionError where f calls an FSDP2 module, which frees its parameters too early."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        yield
        return

    def refuse(module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, fsdp.FSDPModule):
            raise FunctionError(
                f"expected f without sharded modules, received one that calls the FSDP2 module "
                f"{type(module).__name__}: its parameters are freed after one product with the "
                "Jacobian. Build the module again without fully_shard, load "
                "{name: p.full_tensor() for name, p in module.named_parameters()} into it, and "
                "pass that one."
            )

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def weights_of(weights: Any) -> list[Tensor]:
    """Return the tensors to write to, each once."""
    single = isinstance(weights, Tensor) or not isinstance(weights, Iterable)
    listed = [weights] if single else list(weights)
    for weight in listed:
        filling.require_writable(weight)
        compute_dtype(filling.dtype_name(weight))
    return list({id(weight): weight for weight in listed}.values())


class Scaled:
    """Weights that are multiplied in place, and put back."""

    def __init__(self, weights: Tensor | Iterable[Tensor]) -> None:
        self._weights = weights_of(weights)
        if not self._weights:
            raise SelectionError(
                "expected at least one weight to scale, received none. Pass e.g. layer.weight."
            )
        self._originals = [weight.detach().clone() for weight in self._weights]
        self._kept = False
        self.written = False

    @contextmanager
    def restored_unless_kept(self) -> Iterator[Scaled]:
        """Put the weights back at the end, whatever happens, unless they are kept.

        Those that were not written to are left alone: autograd counts writes.
        """
        try:
            yield self
        finally:
            if self.written and not self._kept:
                self._set(self._originals)

    def sizes(self) -> list[tuple[tuple[int, ...], float]]:
        """Return the shape and Frobenius norm of each weight."""
        result = []
        for original in self._originals:
            norm = torch.linalg.vector_norm(original, dtype=torch.float64)
            whole: Any = norm.full_tensor() if filling.is_sharded(norm) else norm
            result.append((tuple(original.shape), float(whole)))
        return result

    def multiply(self, factor: float) -> None:
        """Set the weights to their originals times a factor, rounded once."""
        self._set(self.products(factor))

    def products(self, factor: float) -> list[Tensor]:
        """Return the originals times a factor, rounded once."""
        return [
            (original.to(getattr(torch, _compute(original))) * factor).to(original.dtype)
            for original in self._originals
        ]

    def keep(self, factor: float) -> None:
        """Leave the weights multiplied by this factor."""
        self.multiply(factor)
        self._kept = True

    def _set(self, values: list[Tensor]) -> None:
        self.written = True
        with torch.no_grad():
            for weight, value in zip(self._weights, values, strict=True):
                weight.copy_(value)


def _compute(x: Any) -> str:
    return compute_dtype(filling.dtype_name(x))
