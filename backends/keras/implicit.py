"""Gradients of a fixed point, in Keras's idiom: variables and whatever else f uses get them.

=========== =========================================================================
TensorFlow  eagerly and under ``tf.function``, for ``tf.GradientTape``
JAX         for ``jax.grad`` of a function in which the variables have the values that
            are differentiated in, as in ``stateless_call`` and ``fit``
PyTorch     :mod:`deq_init.torch.implicit`'s
=========== =========================================================================
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import keras
from keras import ops

from deq_init import equilibrium as core
from deq_init import fixed_point as solver
from deq_init.equilibrium import Gradient, Report
from deq_init.errors import SolverError
from deq_init.fixed_point import Method, Solution
from deq_init.keras.states import Flat, Function, State, Vectors


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
        Maps a state to one like it, each sample for itself, as for
        :func:`deq_init.keras.fixed_point`. Variables of layers, the input and whatever else it
        uses get a gradient where the backend would give them one of a single call of f.
    solution : Solution
        A fixed point of f, by :func:`deq_init.keras.fixed_point` or any other solver.
    gradient : {"implicit", "one_step"}
        Solve the adjoint equation u = Jᵀu + g, or take u = g, which costs one product with the
        transposed Jacobian and is exact for J = 0.
    method, rtol, max_steps
        For the adjoint equation, as for :func:`deq_init.keras.fixed_point`. Where it does not
        converge, the iterate with the smallest |Jᵀu + g - u| is taken; the first one is u = g.
    report : callable, optional
        Is called with the Solution of the adjoint equation by every backward pass: u, of shape
        (batch, n), and for each sample residual, steps and converged. In a TensorFlow graph it is
        called through ``tf.py_function``, which ``jit_compile`` does not take.
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
    Second and higher derivatives are right on JAX and PyTorch, as
    :func:`deq_init.jax.implicit.with_gradient` and :func:`deq_init.torch.implicit.with_gradient`
    say; on TensorFlow they are a SolverError: pass ``gradient="unrolled"`` to the models there, or
    use :func:`unrolled`. Memory is that of one evaluation of f, whatever the solvers' steps.
    Works within ``fit``, ``tf.function``, with ``jit_compile`` or without, and ``jax.jit``.
    JAX compiles at every call outside of ``jax.jit``.

    See Also
    --------
    deq_init.equilibrium : the equations, and their sources.

    Examples
    --------
    A layer whose output is a fixed point, trained by ``fit`` on every backend:

    >>> from deq_init.keras import fixed_point
    >>> class Settle(keras.layers.Layer):  # z = a z + x
    ...     def build(self, shape):
    ...         self.a = self.add_weight(shape=(), initializer="zeros")
    ...     def call(self, x):
    ...         f = lambda z: self.a * z + x
    ...         return with_gradient(f, fixed_point(f, ops.zeros_like(x))).value
    >>> model = keras.Sequential([keras.Input((1,)), Settle()])
    >>> model.compile(keras.optimizers.SGD(0.03), "mse")
    >>> _ = model.fit(ops.ones((1, 1)), ops.full((1, 1), 2.0), epochs=30, verbose=0)
    >>> round(float(model.layers[0].a.value), 2)  # 1 / (1 - a) = 2
    0.5
    """
    core.require_attachable(gradient)
    solver.require_options(method, rtol, max_steps)
    flat = Flat(solution.value)
    z = flat.flatten(solution.value)
    options: dict[str, Any] = {
        "gradient": gradient,
        "method": method,
        "rtol": rtol,
        "max_steps": max_steps,
        "report": report,
    }
    value = _attached(flat.map(f), z, solution, options)
    return _valued(flat.unflatten(value), solution)


def unrolled(f: Function, z0: State, solution: Solution, *, max_steps: int) -> Solution:
    """Return the solution with the gradient of the plain iteration from z0 that led to it.

    Parameters
    ----------
    f : callable
        As for :func:`with_gradient`.
    z0 : tensor of shape (batch, ...), or tuple, list or dict of such
        Where the iteration started.
    solution : Solution
        What plain iteration with ``damping=1`` found: as many evaluations of f are done again, and
        kept in memory.
    max_steps : int
        The cap of that iteration. TensorFlow under ``tf.function``, and JAX, do and keep as many
        evaluations.

    Returns
    -------
    Solution
        With a value that depends on what f does, and on z0.
    """
    solver.require_count("max_steps", max_steps)
    flat = Flat(z0)
    lost = core.lost_samples(ops, solution)
    replayed = _replayed(flat.map(f), flat.flatten(z0), solution, lost, max_steps)
    found = ops.stop_gradient(flat.flatten(solution.value))
    return _valued(flat.unflatten(ops.where(lost[:, None], found, replayed)), solution)


def _valued(value: State, solution: Solution) -> Solution:
    return replace(solution, value=value)


if keras.backend.backend() == "torch":
    from deq_init.torch import implicit as _torch

    def _attached(f: Vectors, z: Any, solution: Solution, options: dict[str, Any]) -> Any:
        """Return z with its gradient."""
        return _torch.with_gradient(f, _valued(z, solution), **options).value

    def _replayed(f: Vectors, z0: Any, solution: Solution, lost: Any, max_steps: int) -> Any:
        """Return the iterates of the samples that are not lost."""
        return _torch.unrolled(f, z0, _valued(z0, solution)).value

elif keras.backend.backend() == "jax":
    from deq_init.jax import implicit as _jax
    from deq_init.keras import loops

    def _attached(f: Vectors, z: Any, solution: Solution, options: dict[str, Any]) -> Any:
        """Return z with its gradient."""
        function, values = _closed(f, z)
        return _jax.with_gradient(function, values, _valued(z, solution), **options).value

    def _replayed(f: Vectors, z0: Any, solution: Solution, lost: Any, max_steps: int) -> Any:
        """Return the iterates of the samples that are not lost."""
        function, values = _closed(f, z0)
        found = _valued(z0, solution)
        return _jax.unrolled(function, values, z0, found, max_steps=max_steps).value

    def _closed(f: Vectors, z: Any) -> Any:
        f = loops.without_updates(f)
        # Layers are built by a call, and cannot be within a trace.
        f(z)
        return loops.closed(f, z)

else:
    import tensorflow as tf

    from deq_init.keras.iteration import xp
    from deq_init.numpy.iteration import xp as numpy_xp

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def _attached(f: Vectors, z: Any, solution: Solution, options: dict[str, Any]) -> Any:
        """Return z with its gradient."""
        z = tf.stop_gradient(z)
        # The derivative in z alone is this tape's: what is around it has that in the variables.
        tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        with tape:
            tape.watch(z)
            y = f(z)

        def vjp(u: Any) -> Any:
            return tape.gradient(y, z, u, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def adjoint(g: Any, y: Any) -> Any:
            found = _adjoint(vjp, g, solution, core.AdjointOptions(**options))
            # y, which depends on what the first derivative depends on, is there for this error.
            return found, _no_second_derivative

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def attached(y: Any) -> Any:
            return tf.identity(z), lambda g: adjoint(g, y)

        return attached(y)

    def _no_second_derivative(*_: Any) -> Any:
        raise SolverError(
            "expected first derivatives of a fixed point on TensorFlow, received a request for a "
            "second one. Pass gradient='unrolled', or use Keras on JAX or PyTorch."
        )

    def _adjoint(vjp: Vectors, g: Any, solution: Solution, options: core.AdjointOptions) -> Any:
        """Return the adjoint of g: by NumPy's loops where that can be, as fixed points are."""
        report = options.report
        if not tf.executing_eagerly():
            traced = None if report is None else partial(_report, report)
            lost = core.lost_samples(xp, solution)
            return core.adjoint(xp, vjp, g, lost, options, traced)

        def product(u: Any) -> Any:
            return vjp(tf.constant(u)).numpy()

        lost = ops.convert_to_numpy(core.lost_samples(xp, solution))
        return tf.constant(core.adjoint(numpy_xp, product, g.numpy(), lost, options, report))

    def _report(report: Report, found: Solution) -> None:
        """Call a function from a graph."""
        parts = (found.value, found.residual, found.steps, found.converged, found.index)
        tf.py_function(lambda *parts: report(Solution(*parts)), parts, [])

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def _replayed(f: Vectors, z0: Any, solution: Solution, lost: Any, max_steps: int) -> Any:
        """Return the iterates of the samples that are not lost."""
        counts = tf.cast(core.applications(xp, solution, lost), tf.int32)
        if tf.executing_eagerly():
            most = int(counts.numpy().max(initial=1))
        else:
            most = max(1, max_steps - 1)
            # Layers are built by a call, and cannot be within a loop.
            f(z0)
        return core.replay(xp, f, z0, counts, most)
