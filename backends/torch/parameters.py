"""Parameters that the core lists as kernels, held in PyTorch's orientation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from deq_init import draws, equilibrium
from deq_init import plan as plans
from deq_init.torch import filling
from deq_init.transformer import Law, constant

_ATTRIBUTES = {"inject": "injection"}  # a model has a method of that name
_UNTURNED = ("embedding",)


class Kernels(nn.Module):
    """A module whose parameters are the transposes of kernels (in, out), all but an embedding.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        The kernels' shapes.
    laws : mapping of str to Law
        What those are drawn from that are random; the others are constant.
    streams : mapping of str to int
        Which stream of a seed each random one is drawn from.
    device, dtype
        Of the parameters.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        laws: Mapping[str, Law],
        streams: Mapping[str, int],
        device: Any,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if dtype is not None:
            plans.compute_dtype(str(dtype).removeprefix("torch."))
        self._kernel_shapes, self._laws, self._streams = dict(shapes), dict(laws), dict(streams)
        for name, shape in shapes.items():
            turned = shape if name in _UNTURNED else shape[::-1]
            value = torch.empty(turned, device=device, dtype=dtype)
            self.register_parameter(_ATTRIBUTES.get(name, name), nn.Parameter(value))

    @torch.no_grad()
    def reset_parameters(
        self, seed: int | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Draw the parameters again, from their families at their scales.

        Raises
        ------
        SeedError, ShapeError, ScaleError, FamilyError, DTypeError, WeightError
            The parameters are then as they were.
        """
        key = filling.require_key(seed, generator)
        parameters = self._own()
        # The kernels (in, out), as JAX draws them, so that a seed means one map.
        asked = {
            name: plans.plan(
                law.family, self._kernel_shapes[name], "in_out", law.scale, law.blocks, None
            )
            for name, law in self._laws.items()
        }
        for parameter in parameters.values():
            filling.require_writable(parameter)
            plans.compute_dtype(filling.dtype_name(parameter))
        kernels = {}
        for name, parameter in parameters.items():
            if name in asked:
                own = None if key is None else draws.fold_in(key, self._streams[name])
                turned = _turned(name, parameter)
                kernels[name] = torch.empty_like(turned, memory_format=torch.contiguous_format)
                filling.write(asked[name], kernels[name], own, generator)
        for name, parameter in parameters.items():
            if name in kernels:
                _turned(name, parameter).copy_(kernels[name])
            else:
                parameter.fill_(constant(name))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the parameters as NumPy arrays: a checkpoint that JAX's model reads, too.

        They are kernels (in, out), the transposes of this module's weights. bfloat16 comes as
        float32, which holds it exactly. Parameters of an activation are left out.
        """
        arrays = {}
        for name, parameter in self._own().items():
            value = _turned(name, parameter.detach()).cpu()
            value = value.float() if value.dtype == torch.bfloat16 else value
            arrays[name] = value.numpy().copy()
        return arrays

    @torch.no_grad()
    def from_arrays(self, arrays: Mapping[str, Any]) -> Self:
        """Set the parameters to those of a checkpoint, JAX's or this one's, and return the module.

        Raises
        ------
        ModelError
            If it has other names or shapes than this model, or holds what are not finite real
            floating-point numbers in the model's dtype; nothing is changed then.
        """
        dtypes = {name: str(own.dtype).split(".")[1] for name, own in self._own().items()}
        values = equilibrium.checkpoint_arrays(arrays, self._kernel_shapes, dtypes)
        for name, parameter in self._own().items():
            value = np.array(values[name])
            value = value if value.dtype == np.float64 else value.astype(np.float32)
            _turned(name, parameter).copy_(torch.from_numpy(value))
        return self

    def _own(self) -> dict[str, nn.Parameter]:
        """Return the parameters, other than those that an activation may have."""
        return {name: getattr(self, _ATTRIBUTES.get(name, name)) for name in self._kernel_shapes}


def _turned(name: str, x: Tensor) -> Tensor:
    """Return a parameter as the kernel of this name, or the reverse."""
    return x if name in _UNTURNED or x.ndim < 2 else x.T
