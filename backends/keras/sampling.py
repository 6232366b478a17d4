"""Where and by whom a plan is met, on each of Keras's backends.

=========== ============================ ======================================================
TensorFlow  eagerly, on a CPU            NumPy, in place: no operation is dispatched
TensorFlow  traced, or on an accelerator ``keras.ops``
PyTorch     eagerly, on a CPU            NumPy, in place; the tensor shares its memory
PyTorch     on any other device          :mod:`deq_init.torch`'s primitives, in place, there
PyTorch     on the meta device           nothing is computed
JAX         eagerly, on a CPU            NumPy, in place: nothing is compiled
JAX         traced, or on an accelerator ``keras.ops``, compiled once for each plan
=========== ============================ ======================================================
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from deq_init import draws
from deq_init import plan as plans
from deq_init.keras import primitives
from deq_init.numpy import primitives as numpy_primitives


def sample(plan: plans.Plan, seed: Any, dtype: str) -> Any:
    """Return the array of a plan, in the dtype that it is sampled in.

    Parameters
    ----------
    plan : deq_init.plan.Plan
        The request.
    seed : int or keras.random.SeedGenerator
        An integer means the same normals in every backend, see :mod:`deq_init.draws`; a seed
        generator is advanced and gives the normals of ``keras.random.normal``.
    dtype : {"float32", "float64"}
        Dtype.
    """
    # Keras's scopes and the framework's own decide where a new tensor is, and whether it is one.
    return _sample(plan, seed, dtype, ops.zeros(()))


def _in_numpy(plan: plans.Plan, seed: Any, dtype: str) -> NDArray[Any]:
    def normals(index: plans.Index) -> Any:
        shape = (plan.rows, plan.columns)
        if isinstance(seed, keras.random.SeedGenerator):
            return np.array(ops.convert_to_numpy(_generated(seed, shape, dtype)))
        return numpy_primitives.normals(seed, shape, dtype, index)

    with np.errstate(over="ignore", invalid="ignore"):  # it is an error
        return np.ascontiguousarray(plan.sample(numpy_primitives.xp, normals))


def _generated(seed: keras.random.SeedGenerator, shape: tuple[int, int], dtype: str) -> Any:
    return keras.random.normal(shape, dtype=dtype, seed=seed)


if keras.backend.backend() == "jax":
    import jax

    def _sample(plan: plans.Plan, seed: Any, dtype: str, probe: Any) -> Any:
        if not isinstance(probe, jax.core.Tracer) and probe.devices() <= set(jax.devices("cpu")):
            return ops.convert_to_tensor(_in_numpy(plan, seed, dtype))
        return _in_ops(plan, seed, dtype)

    def _in_ops(plan: plans.Plan, seed: Any, dtype: str) -> Any:
        size = (plan.rows, plan.columns)
        fields = {index: _normals(seed, size, dtype, index) for index in plan.indices}
        return _realize(plan.with_value(1.0), fields, plan.scale.value)

    def _normals(seed: Any, shape: tuple[int, int], dtype: str, index: plans.Index) -> Any:
        if isinstance(seed, keras.random.SeedGenerator):
            return _generated(seed, shape, dtype)
        # Raw key data, so that all 64 bits count whether or not jax_enable_x64 is set.
        data = jax.numpy.array(draws.block_key(draws.key_from_seed(seed), index), jax.numpy.uint32)
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        with jax.threefry_partitionable(True):
            return jax.random.normal(key, shape, dtype)

    # Operation by operation, JAX would compile each one anew for every shape.
    @jax.jit(static_argnums=0)
    def _realize(plan: plans.Plan, fields: dict[plans.Index, Any], value: Any) -> Any:
        """Return the array of these normals, with the scale's value given apart."""
        with jax.default_matmul_precision("highest"):
            return plan.with_value(value).sample(primitives.xp, fields.__getitem__)

elif keras.backend.backend() == "torch":
    import torch

    from deq_init.torch import primitives as torch_primitives

    def _sample(plan: plans.Plan, seed: Any, dtype: str, probe: Any) -> Any:
        device = probe.device
        if device.type == "meta":
            return torch.empty(plan.shape, dtype=getattr(torch, dtype), device=device)
        if device.type == "cpu" and not torch.compiler.is_compiling():
            return torch.from_numpy(_in_numpy(plan, seed, dtype))
        return _on_device(plan, seed, dtype, device)

    @torch.no_grad()
    def _on_device(plan: plans.Plan, seed: Any, dtype: str, device: torch.device) -> Any:
        def normals(index: plans.Index) -> Any:
            shape = (plan.rows, plan.columns)
            if isinstance(seed, keras.random.SeedGenerator):
                return _generated(seed, shape, dtype)
            key = draws.key_from_seed(seed)
            return torch_primitives.normals(key, None, shape, dtype, device, index)

        with torch.autocast(device.type, enabled=False):
            return plan.sample(torch_primitives.Primitives(device), normals).contiguous()

else:
    import tensorflow as tf

    def _sample(plan: plans.Plan, seed: Any, dtype: str, probe: Any) -> Any:
        if tf.is_symbolic_tensor(probe) or "CPU" not in probe.device:
            return _in_ops(plan, seed, dtype)
        return ops.convert_to_tensor(_in_numpy(plan, seed, dtype))

    def _in_ops(plan: plans.Plan, seed: Any, dtype: str) -> Any:
        def normals(index: plans.Index) -> Any:
            shape = (plan.rows, plan.columns)
            if isinstance(seed, keras.random.SeedGenerator):
                return _generated(seed, shape, dtype)
            return ops.convert_to_tensor(numpy_primitives.normals(seed, shape, dtype, index)[:, :])

        return plan.sample(primitives.xp, normals)
