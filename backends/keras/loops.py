"""Fixed points and the Jacobian there on TensorFlow and JAX: NumPy's loops around eager functions.

The iterations' own arithmetic is on many small arrays, which eager TensorFlow dispatches slower
than NumPy computes, and which JAX compiles for seconds. Only f and its derivatives run in the
framework, on whichever device: eagerly in TensorFlow, compiled once for each call in JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from deq_init import fixed_point as core
from deq_init import jacobian
from deq_init.errors import DTypeError, FunctionError
from deq_init.examination import Model, Setting
from deq_init.fixed_point import Solution
from deq_init.jacobian import Measurement, Rescaling
from deq_init.keras.states import Flat, Function, Vectors
from deq_init.keras.variables import frobenius, times
from deq_init.numpy.iteration import xp
from deq_init.products import checked
from deq_init.spectra import Estimate

Solver = Callable[[Vectors, Any], Any]
Product = Callable[[Any], Any]


def fixed_point(f: Vectors, z0: Any, **options: Any) -> Solution:
    """Solve z = f(z) for tensors of shape (batch, n); see :func:`deq_init.keras.fixed_point`."""
    found = _solve(Map(f), _array(z0), **options)
    parts = (found.value, found.residual, found.steps, found.converged, found.index)
    return Solution(*map(ops.convert_to_tensor, parts))


def jacobian_norm(f: Vectors, z: Any, *, rtol: float, max_steps: int) -> Estimate:
    """Return the Jacobian's norm at a tensor of shape (batch, n)."""
    return _estimate("jacobian_norm", f, z, rtol, max_steps)


def jacobian_spectral_radius(f: Vectors, z: Any, *, rtol: float, max_steps: int) -> Estimate:
    """Return the Jacobian's radius at a tensor of shape (batch, n)."""
    return _estimate("spectral_radius", f, z, rtol, max_steps)


# What overflows is an answer here, and in what follows.
@np.errstate(all="ignore")
def rescale_jacobian(
    variables: Sequence[keras.Variable],
    f: Vectors,
    z0: Any,
    *,
    jacobian_norm: float | None,
    spectral_radius: float | None,
    rtol: float,
    solver: Solver | None,
    **law: Any,
) -> Rescaling:
    """Scale variables, in place; see :func:`deq_init.keras.rescale_jacobian`."""
    wanted = jacobian.target(jacobian_norm, spectral_radius, rtol)
    sizes = [(tuple(v.shape), frobenius(v)) for v in variables if law["family"] is not None]
    start = jacobian.mean_field_factor(wanted, sizes, **law)
    function, z = Map(f, variables), _array(z0)
    probe = jacobian.Probe(
        wanted,
        xp,
        function,
        function.products,
        z,
        _normals(z),
        solver=None if solver is None else lambda z: _array(solver(f, ops.convert_to_tensor(z))),
    )
    originals = [ops.copy(variable.value) for variable in variables]

    def multiply(factor: float) -> None:
        for variable, original in zip(variables, originals, strict=True):
            variable.assign(times(original, factor))

    def evaluate(factor: float) -> Measurement:
        multiply(factor)
        return probe.measure()

    kept = False
    try:
        first = probe.near() if start is None else 1.0
        result = jacobian.search(wanted, first, evaluate, start=start, rounding=probe.rounding)
        if result.reached:
            multiply(result.factor)
            kept = True
    finally:
        if not kept:
            for variable, original in zip(variables, originals, strict=True):
                variable.assign(original)
    return result


def model(
    f: Vectors,
    variables: Sequence[keras.Variable],
    z0: Any,
    how: Setting,
) -> Model:
    """Return what is to be examined, from a tensor of shape (batch, n)."""
    built, z = Map(f, variables), _array(z0)
    build(f, z0)
    return Model(xp, built, built.products, z, _normals(z), how)


def own(flat: Flat, f: Function) -> Callable[[Any], Callable[[Any], Any]]:
    """Return what makes a solver of the user's one of arrays of shape (batch, n)."""

    def flattened(solver: Any) -> Callable[[Any], Any]:
        return lambda z: _array(
            flat.flatten(solver(f, flat.unflatten(ops.convert_to_tensor(z))), "solver")
        )

    return flattened


@np.errstate(all="ignore")
def _solve(f: Map, z0: Any, **options: Any) -> Solution:
    return core.solve(xp, f, z0, **options)


def _estimate(kind: jacobian.Kind, f: Vectors, z: Any, rtol: float, steps: int) -> Estimate:
    core.require_rtol(rtol)
    core.require_count("max_steps", steps)
    found = _measure(kind, Map(f), _array(z), rtol, steps)
    parts = (found.value, found.error, found.converged)
    value, error, converged = map(ops.convert_to_tensor, parts)
    return Estimate(value, error, found.matvecs, converged)


@np.errstate(all="ignore")
def _measure(kind: jacobian.Kind, f: Map, z: Any, rtol: float, steps: int) -> Estimate:
    if len(z) == 0:
        empty = np.zeros(0, z.dtype)
        return Estimate(empty, empty, 0, empty > 0)
    jvp, vjp = f.products(z)
    return jacobian.measure(kind, xp, jvp, vjp, _normals(z), rtol=rtol, max_steps=steps)


def _normals(z: Any) -> Any:
    """Return the vectors that measurements start from: normals, the same each time."""
    return np.random.default_rng(0).standard_normal(z.shape, z.dtype)


def _array(z: Any) -> Any:
    """Return an eager tensor as a NumPy array."""
    if is_traced(z):
        raise DTypeError(
            "expected a state of eager tensors, received a traced one, whose values are not known "
            "yet. Call this outside of tf.function, jax.jit and the like; a Keras model's "
            "train_step runs eagerly after compile(run_eagerly=True)."
        )
    return ops.convert_to_numpy(z)


if keras.backend.backend() == "jax":
    import jax
    from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

    from deq_init.jax.eager import Compiled

    class Map:
        """f between NumPy arrays, compiled with the values of some variables given apart."""

        def __init__(self, f: Vectors, variables: Sequence[keras.Variable] = ()) -> None:
            def evaluate(values: Sequence[Any], z: Any) -> Any:
                return without_updates(f, tuple(zip(variables, values, strict=True)))(z)

            self.function, self._variables = f, variables
            self._compiled = Compiled(evaluate)

        def __call__(self, x: Any) -> Any:
            """Return f(x)."""
            return self._compiled(self._values(), x)

        def products(self, z: Any) -> tuple[Product, Product]:
            """Return products with the Jacobian of f at z and with its transpose."""
            return self._compiled.products(self._values(), z)

        def _values(self) -> list[Any]:
            return [variable.value for variable in self._variables]

    def without_updates(f: Vectors, values: Sequence[tuple[Any, Any]] = ()) -> Vectors:
        """Return f with these values of variables, and without its updates of variables.

        An update would leave the trace's placeholders in the variables for good.
        """

        def apart(z: Any) -> Any:
            with keras.StatelessScope(values) as scope:
                if scope.original_scope is not None:
                    outer = scope.original_scope.state_mapping
                    scope.state_mapping = {**outer, **scope.state_mapping}
                return f(z)

        return apart

    def closed(f: Vectors, z: Any) -> tuple[Callable[[list[Any], Any], Any], list[Any]]:
        """Return f(values, z) and the values: all that f uses besides z, traced or not.

        JAX differentiates in arguments, and the values of Keras's variables are none.
        """
        jaxpr = jax.make_jaxpr(f)(z)

        def function(values: list[Any], z: Any) -> Any:
            return jaxpr_as_fun(ClosedJaxpr(jaxpr.jaxpr, values))(z)[0]

        return function, list(jaxpr.consts)

    def without_gradient(f: Vectors, z: Any) -> Vectors:
        """Return f with all that it uses besides z as a constant of differentiation."""
        function, values = closed(f, z)
        fixed = jax.lax.stop_gradient(values)
        return lambda z: function(fixed, z)

    def build(f: Vectors, z0: Any) -> None:
        """Call f, which builds its layers: that cannot be done within a trace."""
        without_updates(f)(z0)

    def is_traced(x: Any) -> bool:
        """Return whether the values of a tensor are not known yet."""
        return isinstance(x, jax.core.Tracer)

else:
    import tensorflow as tf

    class Map:  # type: ignore[no-redef]
        """f between NumPy arrays, called eagerly, and so with the variables as they are."""

        def __init__(self, f: Vectors, variables: Sequence[keras.Variable] = ()) -> None:
            self.function = f

        def __call__(self, x: Any) -> Any:
            """Return f(x), of which no tape keeps anything."""
            with tf.init_scope():
                return self.function(tf.constant(x)).numpy()

        def products(self, z: Any) -> tuple[Product, Product]:
            """Return products with the Jacobian of f at z and with its transpose.

            f is called once. u -> Jᵀu is linear, so J is the transpose of its derivative: that
            asks of f no forward-mode formula.
            """
            z = tf.constant(z)
            # Not the derivatives in the variables, nor the memory that these would take.
            inner, outer = (
                tf.GradientTape(persistent=True, watch_accessed_variables=False) for _ in range(2)
            )
            with outer:
                with inner:
                    inner.watch(z)
                    y = self.function(z)
                u = tf.zeros_like(y)
                outer.watch(u)
                pulled = inner.gradient(y, z, u)
            if pulled is None:
                raise FunctionError(
                    "expected f to be differentiable in its argument, received one whose result "
                    "does not depend on it for tf.GradientTape. Leave out stop_gradient and NumPy "
                    "inside f."
                )

            def vjp(x: Any) -> Any:
                return inner.gradient(y, z, tf.constant(x)).numpy()

            def jvp(x: Any) -> Any:
                pushed = outer.gradient(pulled, u, tf.constant(x))
                return np.zeros_like(x) if pushed is None else pushed.numpy()

            at = z.numpy()
            return checked(xp, self, at, jvp, vjp, _normals(at)), vjp

    def build(f: Vectors, z0: Any) -> None:
        """Nothing: the first call builds layers."""

    def is_traced(x: Any) -> bool:
        """Return whether the values of a tensor, or what f makes of it, are not known yet."""
        return tf.is_symbolic_tensor(x) or not tf.executing_eagerly()
