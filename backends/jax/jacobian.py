"""Fixed points, the Jacobian there, and weights scaled to its norm, in JAX's idiom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deq_init import fixed_point as core
from deq_init import jacobian, scale, selection, states
from deq_init.fixed_point import Method, Solution
from deq_init.jacobian import Measurement, Rescaling
from deq_init.jax.eager import Compiled, apply_transpose, linearized
from deq_init.jax.iteration import xp
from deq_init.jax.selection import is_array, weights_of
from deq_init.numpy.iteration import xp as numpy_xp
from deq_init.spectra import Estimate

State = Any
"""A pytree of arrays of shape (batch, ...)."""

Function = Callable[[State], State]
Product = Callable[[jax.Array], jax.Array]

jax.tree_util.register_dataclass(
    Estimate, data_fields=["value", "error", "matvecs", "converged"], meta_fields=[]
)
jax.tree_util.register_dataclass(
    Solution,
    data_fields=["value", "residual", "steps", "converged", "index"],
    meta_fields=[],
)


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
        Maps a state to one like it, each sample for itself.
    z0 : pytree of Array, shape (batch, ...)
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
        A pytree. Its value is a state like z0; residual, steps and converged have shape (batch,).
        A sample that does not converge keeps its best iterate, and has the residual inf if it
        diverges.

    Raises
    ------
    ShapeError, DTypeError, SolverError, FunctionError
        For a state, an option or an f that are not as above. Divergence raises nothing.

    Notes
    -----
    Works under ``jax.jit``, and compiles at every call outside of it.

    Examples
    --------
    >>> solution = fixed_point(lambda z: 0.5 * z + 1, jnp.zeros((2, 3)))
    >>> bool(solution.converged.all()), round(float(solution.value[0, 0]), 4)
    (True, 2.0)
    """
    flat = Flat(z0)
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
        Maps a state to one like it, each sample for itself, and is differentiable.
    z : pytree of Array, shape (batch, ...)
        Where, usually a fixed point; float16, bfloat16, float32 or float64.
    rtol : float
        Relative error of each sample's norm to stop at.
    max_steps : int
        Pairs of products with the Jacobian at most; memory for so many states is taken.

    Returns
    -------
    Estimate
        A pytree; value, error and converged have shape (batch,).

    Raises
    ------
    ShapeError, DTypeError, SolverError, FunctionError
        For a state, an option or an f that are not as above.

    Notes
    -----
    Lanczos on JᵀJ, from ``jax.linearize`` and its transpose, or from ``jax.vjp`` and its transpose
    where f has a ``jax.custom_vjp``. The Jacobian is never formed. Works under ``jax.jit``, and
    compiles at every call outside of it.

    Examples
    --------
    >>> w = jnp.diag(jnp.array([0.5, -0.9]))
    >>> jax.jit(lambda z: jacobian_norm(lambda z: z @ w, z))(jnp.zeros((1, 2))).value.round(4)
    Array([0.9], dtype=float32)
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
    >>> w = jnp.array([[0.0, -0.9], [0.9, 0.0]])  # eigenvalues 0.9 i and -0.9 i
    >>> jacobian_spectral_radius(lambda z: z @ w, jnp.zeros((1, 2))).value.round(4)
    Array([0.9], dtype=float32)
    """
    return _estimate("spectral_radius", f, z, rtol, max_steps)


def rescale_jacobian(
    f: Callable[[Any, State], State],
    params: Any,
    z0: State,
    *,
    jacobian_norm: float | None = None,
    spectral_radius: float | None = None,
    where: str | Sequence[str] | Callable[[str, Any], bool] | None = None,
    rtol: float = 0.01,
    solver: Callable[[Function, State], State] | None = None,
    family: str | None = None,
    activation: Any = None,
    form: jacobian.Form = "out",
    input_variance: float = 1.0,
) -> tuple[Any, Rescaling]:
    """Return parameters, scaled by one factor that gives the Jacobian this norm or radius.

    Parameters
    ----------
    f : callable
        ``f(params, z)`` maps a state to one like it, each sample for itself, and can be traced and
        differentiated.
    params : pytree
        Parameters of f; leaves that are not arrays are left alone.
    z0 : pytree of Array, shape (batch, ...)
        Where the first fixed point is looked for; a few samples are enough.
    jacobian_norm, spectral_radius : float
        The target for the mean over the batch, one of the two.
    where : str, sequence of str or callable, optional
        Which weights to scale, as in :func:`initialize`: shell patterns of their names, or
        ``where(name, leaf) -> bool``. None takes all with two axes or more, other than
        embeddings, biases and normalizations.
    rtol : float
        Relative error of the mean that is good enough.
    solver : callable, optional
        ``solver(f, z0) -> z`` finds the fixed point instead of :func:`fixed_point`; it is traced,
        and its f takes z alone. What it returns counts as one if its residual is at most rtol / 4.
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
    params : pytree
        New ones if the target was reached; else those that were given.
    result : Rescaling
        Whether the target was reached, the value that was, the factor, and why not.

    Raises
    ------
    ScaleError, SolverError, ShapeError, DTypeError, SelectionError, FunctionError, FamilyError,
    ActivationError

    Notes
    -----
    f and its derivatives are compiled once for each call; the iterations around them run in NumPy.
    Not for use under ``jax.jit``: how often it solves depends on the values.

    Examples
    --------
    >>> params = {"w": jnp.eye(2)}
    >>> f = lambda params, z: z @ params["w"]
    >>> params, result = rescale_jacobian(f, params, jnp.zeros((1, 2)), jacobian_norm=0.5)
    >>> result.reached, float(params["w"][0, 0])
    (True, 0.5)
    """
    wanted = jacobian.target(jacobian_norm, spectral_radius, rtol)
    flat = Flat(z0)
    leaves, structure = jax.tree_util.tree_flatten(params)
    chosen = chosen_weights(params, where)
    arrays = [index for index, leaf in enumerate(leaves) if is_array(leaf)]
    guess = jacobian.mean_field_factor(
        wanted,
        [] if family is None else [_size(leaves[index]) for index in sorted(chosen)],
        family=family,
        activation=activation,
        form=form,
        input_variance=input_variance,
    )

    def with_factor(values: Sequence[jax.Array], factor: Any) -> Any:
        new = list(leaves)
        for index, value in zip(arrays, values, strict=True):
            new[index] = times(value, factor) if index in chosen else value
        return jax.tree_util.tree_unflatten(structure, new)

    def function(scaled: tuple[Sequence[jax.Array], Any], z: jax.Array) -> jax.Array:
        new = with_factor(*scaled)
        return flat.map(lambda z: f(new, z))(z)

    @jax.jit
    def solved(scaled: tuple[Sequence[jax.Array], Any], z: jax.Array) -> jax.Array:
        new = with_factor(*scaled)
        return flat.flatten(solver(lambda z: f(new, z), flat.unflatten(z)), "solver")  # type: ignore[misc]

    values, factor = [leaves[index] for index in arrays], 1.0
    compiled, start = Compiled(function), flat.flatten(z0)
    probe = jacobian.Probe(
        wanted,
        numpy_xp,
        lambda z: compiled((values, factor), z),
        lambda z: compiled.products((values, factor), z),
        np.asarray(start),
        np.asarray(normals(start)),
        solver=None if solver is None else lambda z: np.asarray(solved((values, factor), z)),
    )

    def evaluate(trial: float) -> Measurement:
        nonlocal factor
        factor = trial
        return probe.measure()

    with np.errstate(all="ignore"):  # what overflows is an answer here
        first = probe.near() if guess is None else 1.0
        result = jacobian.search(wanted, first, evaluate, start=guess, rounding=probe.rounding)
    return (with_factor(values, result.factor) if result.reached else params), result


def multiply(
    params: Any,
    factor: float,
    *,
    where: str | Sequence[str] | Callable[[str, Any], bool] | None = None,
) -> Any:
    """Return parameters with weights multiplied by a factor.

    Parameters
    ----------
    params : pytree
        Parameters; leaves that are not arrays are left alone.
    factor : float
        The factor, such as :func:`check` suggests.
    where : str, sequence of str or callable, optional
        Which weights, as in :func:`rescale_jacobian`.

    Returns
    -------
    pytree
        New parameters, of the same dtypes: half precision is multiplied in float32 and rounded
        once.

    Raises
    ------
    ScaleError, SelectionError, DTypeError
        For a factor that is not a finite number or gives entries that are not finite (not under
        ``jit``), or weights that there are not.

    Examples
    --------
    >>> multiply({"w": jnp.eye(2), "b": jnp.ones(2)}, 0.5)["w"][0, 0]
    Array(0.5, dtype=float32)
    """
    number = scale.require_factor(factor)
    leaves, structure = jax.tree_util.tree_flatten(params)
    for index in chosen_weights(params, where):
        product = leaves[index] = times(leaves[index], number)
        if not isinstance(product, jax.core.Tracer):
            scale.require_finite_product(number, product.dtype.name, jnp.isfinite(product).all())
    return jax.tree_util.tree_unflatten(structure, leaves)


def chosen_weights(params: Any, where: Any) -> set[int]:
    """Return the indices of the leaves that are to be scaled."""
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    arrays = [index for index, (_, leaf) in enumerate(paths) if is_array(leaf)]
    weights = weights_of([paths[index] for index in arrays])
    requests = selection.requests(weights, "in_out", where, {"family": "random"})
    return {i for i, request in zip(arrays, requests, strict=True) if request.plan is not None}


def _size(value: jax.Array) -> tuple[tuple[int, ...], float]:
    """Return a weight's shape and Frobenius norm."""
    wide = jnp.promote_types(value.dtype, jnp.float32)
    return value.shape, float(jnp.linalg.norm(jnp.ravel(value).astype(wide)))


def times(value: jax.Array, factor: Any) -> jax.Array:
    """Return a weight times a factor, rounded once."""
    wide = jnp.promote_types(value.dtype, jnp.float32)
    return (value.astype(wide) * jnp.asarray(factor, wide)).astype(value.dtype)


def _estimate(kind: jacobian.Kind, f: Function, z: State, rtol: float, steps: int) -> Estimate:
    core.require_rtol(rtol)
    core.require_count("max_steps", steps)
    flat = Flat(z)
    return _measure(kind, flat.map(f), flat.flatten(z), rtol, steps)


def _measure(kind: jacobian.Kind, f: Product, z: jax.Array, rtol: float, steps: int) -> Estimate:
    if z.shape[0] == 0:
        empty = jnp.zeros(0, z.dtype)
        return Estimate(empty, empty, jnp.asarray(0), empty > 0)
    with jax.default_matmul_precision("highest"):
        jvp, vjp = products(f, z)
        return jacobian.measure(kind, xp, jvp, vjp, normals(z), rtol=rtol, max_steps=steps)


def normals(z: jax.Array) -> jax.Array:
    """Return the vectors that measurements start from: normals, the same each time."""
    return jax.random.normal(jax.random.key(0), z.shape, z.dtype)


def products(f: Product, z: jax.Array) -> tuple[Product, Product]:
    """Return products with the Jacobian of f at z and with its transpose."""
    jvp = linearized(f, z)
    if jvp is None:
        _, pull = jax.vjp(f, z)
        return partial(apply_transpose, pull), lambda x: pull(x)[0]
    transposed = jax.linear_transpose(jvp, z)
    return jvp, lambda x: transposed(x)[0]


class Flat:
    """A state's layout, and its maps in terms of arrays of shape (batch, n)."""

    def __init__(self, z: State) -> None:
        leaves, structure = jax.tree_util.tree_flatten(z)
        self._tree = z
        self._structure: Any = structure
        self._dtypes = [jnp.result_type(leaf) for leaf in leaves]
        self.layout = states.layout(map(jnp.shape, leaves), [d.name for d in self._dtypes])

    def flatten(self, z: State, source: str = "f") -> jax.Array:
        """Return a state of this layout as one array."""
        leaves, structure = jax.tree_util.tree_flatten(z)
        shapes = [np.shape(leaf) for leaf in leaves] if self._structure == structure else None
        states.require_like(self.layout, self._tree, z, shapes, source)
        batch = self.layout.batch
        flat = [
            jnp.reshape(leaf, (batch, end - begin)).astype(self.layout.dtype)
            for leaf, (begin, end) in zip(leaves, self.layout.bounds, strict=True)
        ]
        return jnp.concatenate(flat, 1)

    def unflatten(self, x: jax.Array) -> State:
        """Return the state of an array."""
        parts = zip(self.layout.bounds, self.layout.shapes, self._dtypes, strict=True)
        leaves = [
            jnp.reshape(x[:, begin:end], shape).astype(dtype)
            for (begin, end), shape, dtype in parts
        ]
        return jax.tree_util.tree_unflatten(self._structure, leaves)

    def map(self, f: Function) -> Product:
        """Return f as a map between arrays of shape (batch, n)."""
        return lambda x: self.flatten(f(self.unflatten(x)))
