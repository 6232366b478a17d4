"""What the reference models share in Keras: parameters of laws and seeds, and a solver."""

from __future__ import annotations

import random as python_random
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from deq_init import draws
from deq_init import equilibrium as core
from deq_init import fixed_point as solver
from deq_init.equilibrium import Gradient
from deq_init.fixed_point import Method, Solution
from deq_init.keras import implicit
from deq_init.keras.initializers import CLASSES
from deq_init.keras.jacobian import fixed_point
from deq_init.scale import KINDS, Scale
from deq_init.transformer import Law


class Equilibrium(keras.Model):
    """A model whose output is read from a fixed point.

    A subclass has ``cell(z, injected)``, and calls :meth:`_create` at the end of its own
    ``__init__``.
    """

    def __init__(
        self,
        activation: Any,
        *,
        method: Method,
        rtol: float,
        max_steps: int,
        gradient: Gradient,
        seed: int | None,
        **kwargs: Any,
    ) -> None:
        core.require_gradient(gradient, method)
        solver.require_options(method, rtol, max_steps)
        draws.key_from_seed(seed)
        super().__init__(**kwargs)
        self.given_activation = activation
        self.method, self.rtol, self.max_steps = method, rtol, max_steps
        self.gradient, self.seed = gradient, seed

    def _create(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        laws: Mapping[str, Law],
        streams: Mapping[str, int],
        constant: Callable[[str], float],
    ) -> None:
        """Make the parameters, each random one from its own stream of the seed."""
        # As Keras's own initializers: keras.utils.set_random_seed makes it reproducible.
        seed = python_random.randint(1, 10**9) if self.seed is None else self.seed
        key = draws.key_from_seed(seed)
        kernels = {}
        for name, shape in shapes.items():
            initializer: Any = keras.initializers.Constant(constant(name))
            if name in laws:
                law = laws[name]
                high, low = draws.fold_in(key, streams[name])
                initializer = CLASSES[law.family](
                    **{law.scale.kind: law.scale.value}, blocks=law.blocks, seed=high << 32 | low
                )
            kernels[name] = self.add_weight(name=name, shape=shape, initializer=initializer)
        self.kernels = kernels
        # All variables are there: Keras needs no call to make them.
        self.built = True

    def _settle(self, inject: Callable[[Any], Any], z0: Any) -> Solution:
        """Return the fixed point of the cell from z0, with its gradient.

        ``inject(None)`` returns what is injected; ``inject(lost)``, of shape (batch,), the same
        without the input of samples that are lost: 0 times NaN is NaN, in their gradients too.
        """
        options: Any = {"method": self.method, "rtol": self.rtol, "max_steps": self.max_steps}
        fixed = ops.stop_gradient(inject(None))
        found = fixed_point(lambda z: self.cell(z, fixed), z0, **options)
        injected = inject(core.lost_samples(ops, found))

        def f(z: Any) -> Any:
            return self.cell(z, injected)

        if self.gradient == "unrolled":
            return implicit.unrolled(f, z0, found, max_steps=self.max_steps)
        return implicit.with_gradient(f, found, gradient=self.gradient, **options)

    def _value(self, name: str) -> Any:
        """Return a parameter in the dtype that is computed in."""
        return ops.cast(self.kernels[name], self.compute_dtype)

    def _start(self, z0: Any, x: Any, *sizes: int) -> Any:
        """Return where the solver starts: a state of these sizes for each sample of x."""
        if z0 is None:
            return ops.zeros((ops.shape(x)[0], *sizes), self.compute_dtype)
        z0 = ops.convert_to_tensor(z0, self.compute_dtype)
        core.require_start_shape(tuple(z0.shape), (x.shape[0], *sizes))
        return z0

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the parameters as NumPy arrays: a checkpoint that the other backends read, too.

        They are kernels (in, out). bfloat16 comes as float32, which holds it exactly. Parameters
        of an activation are left out.
        """
        arrays = {}
        for name, variable in self.kernels.items():
            half = variable.dtype == "bfloat16"
            value = ops.cast(variable.value, "float32") if half else variable.value
            arrays[name] = np.array(ops.convert_to_numpy(value))
        return arrays

    def from_arrays(self, arrays: Mapping[str, Any]) -> Equilibrium:
        """Set the parameters to those of a checkpoint, any backend's, and return the model.

        Raises
        ------
        ModelError
            If it has other names or shapes than this model, or holds what are not finite real
            floating-point numbers in the model's dtype; nothing is changed then.
        """
        shapes = {name: tuple(variable.shape) for name, variable in self.kernels.items()}
        dtypes = {name: variable.dtype for name, variable in self.kernels.items()}
        values = core.checkpoint_arrays(arrays, shapes, dtypes)
        for name, variable in self.kernels.items():
            variable.assign(values[name])
        return self

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, JSON-serialisable."""
        activation = self.given_activation
        if not isinstance(activation, str):
            activation = keras.saving.serialize_keras_object(activation)
        return {
            **super().get_config(),
            "activation": activation,
            "method": self.method,
            "rtol": self.rtol,
            "max_steps": self.max_steps,
            "gradient": self.gradient,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Equilibrium:
        """Return the model of these arguments."""
        config = dict(config)
        if not isinstance(config["activation"], str):
            config["activation"] = keras.saving.deserialize_keras_object(
                config["activation"], custom_objects=custom_objects
            )
        return cls(**config)


def scale_config(target: Scale) -> dict[str, float | None]:
    """Return a scale as the three arguments that ask for it."""
    return {kind: target.value if kind == target.kind else None for kind in KINDS}
