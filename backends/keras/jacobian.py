"""Fixed points, the Jacobian there, and variables scaled to its norm, in Keras's idiom.

=========== ======= ===================================================================
TensorFlow  eagerly NumPy's loops around f and its derivatives, see :mod:`deq_init.keras.loops`
TensorFlow  traced  fixed points as ``tf.while_loop``; the Jacobian is an error
JAX         eagerly NumPy's loops: only f and its derivatives are compiled
JAX         traced  :mod:`deq_init.jax`'s
PyTorch             :mod:`deq_init.torch`'s
=========== ======= ===================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import keras

from deq_init import jacobian, scale
from deq_init.fixed_point import Method, Solution
from deq_init.jacobian import Rescaling
from deq_init.keras.states import Flat, Function, State, Vectors
from deq_init.keras.variables import times, variables_of
from deq_init.spectra import Estimate


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
        Maps a state to one like it, each sample for itself: a layer or model, or a function of
        ``keras.ops`` or of the backend's own operations. Layers must not draw dropout masks or
        normalize over the batch, so leave ``training`` out or False.
    z0 : tensor of shape (batch, ...), or tuple, list or dict of such
        Where to start; float16, bfloat16, float32 or float64. NumPy arrays are converted.
    method : {"anderson", "plain"}
        Anderson acceleration, or z <- z + damping (f(z) - z).
    rtol : float
        Bound on |f(z) - z| / |f(z)| of a sample, in (0, 1).
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
        Its value is a state like z0, without gradient; residual, steps and converged are tensors
        of shape (batch,). All are tensors of Keras's backend. A sample that does not converge
        keeps its best iterate, and has the residual inf if it diverges.

    Raises
    ------
    ShapeError, DTypeError, SolverError, FunctionError
        For a state, an option or an f that are not as above. Divergence raises nothing.

    Notes
    -----
    Half precision is computed in float32 between the evaluations of f. PyTorch calls f eagerly, and
    so does TensorFlow outside of ``tf.function``. Inside of it, with ``jit_compile`` or without,
    f is called once, so that its layers are built, and once more as the body of a loop; AutoGraph
    leaves it as it is. JAX calls f once, too, and then compiles it, without its updates of
    variables; this works under ``jax.jit`` as well. :mod:`deq_init.keras.implicit` gives the value
    a gradient.

    Examples
    --------
    >>> solution = fixed_point(lambda z: 0.5 * z + 1, keras.ops.zeros((2, 3)))
    >>> bool(keras.ops.all(solution.converged)), round(float(solution.value[0, 0]), 4)
    (True, 2.0)
    """
    flat = Flat(z0)
    start = flat.flatten(z0)
    engine, vectors = _engine(flat.map(f), start)
    found = engine.fixed_point(
        vectors,
        start,
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
        Maps a state to one like it, each sample for itself, and is differentiable; see
        :func:`fixed_point`.
    z : tensor of shape (batch, ...), or tuple, list or dict of such
        Where, usually a fixed point; float16, bfloat16, float32 or float64.
    rtol : float
        Relative error of each sample's norm to stop at, in (0, 1).
    max_steps : int
        Pairs of products with the Jacobian at most; memory for so many states is taken.

    Returns
    -------
    Estimate
        value, error and converged are tensors of shape (batch,). Where the Jacobian is not
        finite, value is NaN.

    Raises
    ------
    ShapeError, DTypeError, SolverError, FunctionError
        For a state, an option or an f that are not as above.

    Notes
    -----
    Lanczos on JᵀJ, see :mod:`deq_init.spectra`; the Jacobian is never formed. TensorFlow and
    PyTorch differentiate f twice in reverse mode, JAX linearizes it. The norm is that of what f
    computes: under a policy such as "mixed_float16", with its rounding.

    Examples
    --------
    >>> w = keras.ops.diag(keras.ops.convert_to_tensor([0.5, -0.9]))
    >>> norm = jacobian_norm(lambda z: keras.ops.matmul(z, w), keras.ops.zeros((1, 2)))
    >>> round(float(norm.value[0]), 4)
    0.9
    """
    flat = Flat(z)
    at = flat.flatten(z)
    engine, vectors = _engine(flat.map(f), at)
    return engine.jacobian_norm(vectors, at, rtol=rtol, max_steps=max_steps)


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
    >>> w = keras.ops.convert_to_tensor([[0.0, -0.9], [0.9, 0.0]])  # eigenvalues 0.9 i and -0.9 i
    >>> radius = jacobian_spectral_radius(lambda z: keras.ops.matmul(z, w), keras.ops.zeros((1, 2)))
    >>> round(float(radius.value[0]), 4)
    0.9
    """
    flat = Flat(z)
    at = flat.flatten(z)
    engine, vectors = _engine(flat.map(f), at)
    return engine.jacobian_spectral_radius(vectors, at, rtol=rtol, max_steps=max_steps)


def rescale_jacobian(
    weights: keras.Variable | Iterable[keras.Variable],
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
    """Multiply variables by one factor that gives the fixed point's Jacobian this norm or radius.

    Parameters
    ----------
    weights : keras.Variable or iterable of keras.Variable
        Those that f uses and that are to be scaled, in place, such as ``layer.kernel``; tied ones
        count once.
    f : callable
        Maps a state to one like it, each sample for itself, and is differentiable; see
        :func:`fixed_point`. It reads the variables at each call, which a function under
        ``jax.jit`` that was compiled with them does not.
    z0 : tensor of shape (batch, ...), or tuple, list or dict of such
        Where the first fixed point is looked for; a few samples are enough.
    jacobian_norm, spectral_radius : float
        The target for the mean over the batch, one of the two, finite and > 0.
    rtol : float
        Relative error of the mean that is good enough, in (0, 1).
    solver : callable, optional
        ``solver(f, z0) -> z`` finds the fixed point instead of :func:`fixed_point`. What it
        returns counts as one if its residual is at most rtol / 4.
    family, activation : str, optional
        The law of the one square variable, and f's activation, as in
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
        for lack of a fixed point or because no factor gives it, the variables are as they were,
        to the bit, and ``reason`` says why.

    Raises
    ------
    ScaleError, SolverError, ShapeError, DTypeError, SelectionError, FunctionError,
    FamilyError, ActivationError
        The variables are then as they were, as after any exception from f or the solver.

    Examples
    --------
    >>> layer = keras.layers.Dense(2, use_bias=False, kernel_initializer="identity")
    >>> layer.build((None, 2))
    >>> result = rescale_jacobian(layer.kernel, layer, keras.ops.zeros((1, 2)), jacobian_norm=0.5)
    >>> result.reached, float(layer.get_weights()[0][0, 0])
    (True, 0.5)
    """
    jacobian.target(jacobian_norm, spectral_radius, rtol)
    variables, flat = variables_of(weights), Flat(z0)
    start = flat.flatten(z0)
    flat_solver = None
    if solver is not None:

        def flat_solver(f: Vectors, z: Any) -> Any:
            return flat.flatten(solver(flat.unmap(f), flat.unflatten(z)), "solver")

    return _rescale(
        variables,
        flat.map(f),
        start,
        jacobian_norm=jacobian_norm,
        spectral_radius=spectral_radius,
        rtol=rtol,
        solver=flat_solver,
        family=family,
        activation=activation,
        form=form,
        input_variance=input_variance,
    )


def multiply(weights: keras.Variable | Iterable[keras.Variable], factor: float) -> None:
    """Multiply variables by a factor, in place.

    Parameters
    ----------
    weights : keras.Variable or iterable of keras.Variable
        What to multiply, such as ``layer.kernel``; tied ones count once. Half precision is
        multiplied in float32 and rounded once.
    factor : float
        The factor, such as :func:`check` suggests.

    Raises
    ------
    ScaleError, DTypeError, SelectionError
        For a factor that is not a finite number, or for what is no variable. None has been changed
        then.

    Examples
    --------
    >>> layer = keras.layers.Dense(2, use_bias=False, kernel_initializer="identity")
    >>> layer.build((None, 2))
    >>> multiply(layer.kernel, 0.5)
    >>> float(layer.get_weights()[0][0, 0])
    0.5
    """
    number = scale.require_factor(factor)
    variables = variables_of(weights)
    products = [times(variable.value, number) for variable in variables]
    for variable, product in zip(variables, products, strict=True):
        scale.require_finite_product(
            number, variable.dtype, keras.ops.all(keras.ops.isfinite(product))
        )
    for variable, product in zip(variables, products, strict=True):
        variable.assign(product)


if keras.backend.backend() == "torch":
    from deq_init.torch import jacobian as _torch

    def _engine(f: Vectors, x: Any) -> tuple[Any, Vectors]:
        """Return what computes on vectors, and f as it takes it."""
        return _torch, f

    def _rescale(
        variables: Sequence[keras.Variable], f: Vectors, z0: Any, **options: Any
    ) -> Rescaling:
        """Scale the parameters behind the variables."""
        return _torch.rescale_jacobian_([v.value for v in variables], f, z0, **options)

elif keras.backend.backend() == "jax":
    from deq_init.jax import jacobian as _jax
    from deq_init.keras import loops

    def _engine(f: Vectors, x: Any) -> tuple[Any, Vectors]:
        """Return what computes on vectors, and f as it takes it."""
        f = loops.without_updates(f)
        # Layers are built by a call, and cannot be within a trace.
        y = f(x)
        if loops.is_traced(x) or loops.is_traced(y):
            return _jax, loops.without_gradient(f, x)
        return loops, f

    def _rescale(
        variables: Sequence[keras.Variable], f: Vectors, z0: Any, **options: Any
    ) -> Rescaling:
        """Scale the variables, after a call of f that builds its layers."""
        loops.build(f, z0)
        return loops.rescale_jacobian(variables, f, z0, **options)

else:
    from deq_init.keras import loops, traced

    def _engine(f: Vectors, x: Any) -> tuple[Any, Vectors]:
        """Return what computes on vectors, and f as it takes it."""
        return (traced if loops.is_traced(x) else loops), f

    _rescale = loops.rescale_jacobian
