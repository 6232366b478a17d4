"""Deep equilibrium networks as Keras models."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from deq_init import equilibrium as core
from deq_init import families, scale
from deq_init.equilibrium import Gradient
from deq_init.fixed_point import Method, Solution
from deq_init.jacobian import Form
from deq_init.keras.activations import ACTIVATIONS, Activation
from deq_init.keras.base import Equilibrium, scale_config
from deq_init.keras.transformer import DEQTransformer
from deq_init.transformer import Law

__all__ = ["ACTIVATIONS", "DEQFCN", "DEQTransformer"]


@keras.saving.register_keras_serializable(package="deq_init", name="DEQFCN")
class DEQFCN(Equilibrium):
    """The fully-connected DEQ: z* = φ(z* W) + x U + c, logits z* R + b.

    The model maps x to logits, so that ``compile`` and ``fit`` take it as it is; :meth:`solve`
    returns the fixed point beside them.

    Parameters
    ----------
    inputs, width, classes : int
        Sizes of x, z and the logits.
    family : {"orthogonal", "random", "goe", "antisymmetric"}
        Of W.
    gain, spectral_norm, spectral_radius : float, optional
        Scale of W, at most one of them, as for :class:`deq_init.keras.Random`.
    input_gain : float
        Entries of U are normal with variance input_gain² / inputs.
    activation : str or callable
        φ: a name out of :data:`ACTIVATIONS`, e.g. "tanh", "relu", "gelu" (with the error function),
        "silu", or any function of tensors, entry by entry; a layer is trained with the rest. To be
        saved, it has to be serialisable by Keras.
    form : {"out", "in"}
        φ(z W) + x U + c, or φ(z W + x U + c).
    bias : bool
        Whether there is a c.
    method, rtol, max_steps
        Of the solver, forward and adjoint alike, as for :func:`deq_init.keras.fixed_point`.
    gradient : {"implicit", "unrolled", "one_step"}
        Of the adjoint equation, of the iteration itself (of ``method="plain"``; memory grows with
        its steps), or of one application of f to the fixed point.
    seed : int, optional
        An integer in [0, 2**64): the same parameters as in JAX's model with
        ``jax.random.key(seed)`` and in PyTorch's with ``seed=``, whose weights are the transposes
        of these kernels. None draws one, which ``keras.utils.set_random_seed`` makes reproducible.
    **kwargs
        ``name``, ``dtype`` and ``trainable``, as for ``keras.Model``.

    Attributes
    ----------
    W, U, R : keras.Variable, shapes (width, width), (inputs, width), (width, classes)
        Kernels (in, out).
    b, c : keras.Variable, shapes (classes,), (width,)
        Biases, zeros at first. c is None without ``bias``.
    kernels : dict of str to keras.Variable
        All of them, by their names.

    Raises
    ------
    ShapeError, ModelError, ActivationError, SolverError, FamilyError, ScaleError, SeedError,
    DTypeError
        For arguments that are not as above.

    See Also
    --------
    deq_init.equilibrium : the equations, the parameters and their seeds.
    deq_init.keras.implicit.with_gradient : the gradient, for any other model.

    Notes
    -----
    On TensorFlow the solvers work within ``fit``, under XLA too. On PyTorch they run eagerly.

    References
    ----------
    The model of Agarwala & Schoenholz (2022), arXiv 2207.09432, section 4; implicit gradients as in
    Bai, Kolter & Koltun (2019), arXiv 1909.01377, theorem 1.

    Examples
    --------
    >>> model = DEQFCN(4, 16, 3, gain=0.5, seed=0)
    >>> logits, solution = model.solve(ops.ones((2, 4)))
    >>> tuple(logits.shape), bool(ops.all(solution.converged))
    ((2, 3), True)
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile("adam", loss)
    >>> history = model.fit(ops.eye(4), ops.arange(4) % 3, epochs=3, verbose=0).history["loss"]
    >>> history[-1] < history[0]
    True
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        classes: int,
        *,
        family: str = "orthogonal",
        gain: float | None = scale.UNIT_GAIN,
        spectral_norm: float | None = None,
        spectral_radius: float | None = None,
        input_gain: float = 0.3,
        activation: str | Activation = "tanh",
        form: Form = "out",
        bias: bool = False,
        method: Method = "anderson",
        rtol: float = 1e-5,
        max_steps: int = 200,
        gradient: Gradient = "implicit",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        resolved = core.require_model(inputs, width, classes, form, activation, ACTIVATIONS)
        target = scale.resolve(gain, spectral_norm, spectral_radius)
        laws = {
            "W": Law(families.get(family).name, target),
            "U": Law("random", scale.resolve(input_gain, None, None)),
            "R": Law("random", scale.resolve(scale.UNIT_GAIN, None, None)),
        }
        super().__init__(
            activation,
            method=method,
            rtol=rtol,
            max_steps=max_steps,
            gradient=gradient,
            seed=seed,
            **kwargs,
        )
        self.activation = resolved
        self.sizes = (inputs, width, classes)
        self.family, self.target, self.input_gain = family, target, input_gain
        self.form, self.bias = form, bias
        shapes = core.kernel_shapes(inputs, width, classes, bias)
        self._create(shapes, laws, core.STREAMS, lambda name: 0.0)
        self.W, self.U, self.R, self.b = (self.kernels[name] for name in "WURb")
        self.c = self.kernels.get("c")

    def call(self, x: Any) -> Any:
        """Return logits (batch, classes) of x (batch, inputs)."""
        return self.solve(x)[0]

    def solve(self, x: Any, z0: Any = None) -> tuple[Any, Solution]:
        """Return logits (batch, classes) and fixed point (batch, width) of x (batch, inputs).

        The solver starts from z0 (batch, width), by default from zeros. A solve that does not
        converge says so in the solution and raises nothing. A sample that is lost (residual inf)
        keeps the last finite state, and has no part in the gradients of W, U and c.

        Raises
        ------
        ShapeError
            If x or z0 has another shape.
        """
        x = ops.convert_to_tensor(x, self.compute_dtype)
        core.require_samples(tuple(x.shape), self.sizes[0])

        def inject(lost: Any) -> Any:
            return self.inject(x if lost is None else ops.where(lost[:, None], 0.0, x))

        solution = self._settle(inject, self._start(z0, x, self.sizes[1]))
        logits = solution.value @ self._value("R") + self._value("b")
        return logits, solution

    def cell(self, z: Any, injected: Any) -> Any:
        """Return f(z), (batch, width), given x U + c, by :meth:`inject`."""
        h = z @ self._value("W")
        if self.form == "out":
            return self.activation(h) + injected
        return self.activation(h + injected)

    def inject(self, x: Any) -> Any:
        """Return x U + c, (batch, width)."""
        injected = x @ self._value("U")
        return injected + self._value("c") if self.bias else injected

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Return (batch, classes)."""
        core.require_samples(tuple(input_shape), self.sizes[0])
        return input_shape[0], self.sizes[2]

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, JSON-serialisable."""
        inputs, width, classes = self.sizes
        return {
            **super().get_config(),
            "inputs": inputs,
            "width": width,
            "classes": classes,
            "family": self.family,
            **scale_config(self.target),
            "input_gain": self.input_gain,
            "form": self.form,
            "bias": self.bias,
        }
