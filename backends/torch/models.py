"""Deep equilibrium networks as PyTorch modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deq_init import draws, scale
from deq_init import equilibrium as core
from deq_init import fixed_point as solver
from deq_init import plan as plans
from deq_init.equilibrium import Gradient
from deq_init.fixed_point import Method, Solution
from deq_init.jacobian import Form
from deq_init.torch import filling, implicit
from deq_init.torch.iteration import xp
from deq_init.torch.jacobian import fixed_point

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "linear": nn.Identity(),
    "tanh": torch.tanh,
    "relu": torch.relu,
    "hard_tanh": functional.hardtanh,
    "gelu": functional.gelu,
}
"""The named activations; ``gelu`` is the exact one, with the error function."""


class DEQFCN(nn.Module):
    """The fully-connected DEQ: z* = φ(W z*) + U x + c, logits R z* + b.

    Parameters
    ----------
    inputs, width, classes : int
        Sizes of x, z and the logits.
    family : {"orthogonal", "random", "goe", "antisymmetric"}
        Of W.
    gain, spectral_norm, spectral_radius : float, optional
        Scale of W, at most one of them, as for :func:`deq_init.torch.random_`.
    input_gain : float
        Entries of U are normal with variance input_gain² / inputs.
    activation : str or callable
        φ: "linear", "tanh", "relu", "hard_tanh", "gelu" (with the error function), or any function
        of tensors, entry by entry.
    form : {"out", "in"}
        φ(W z) + U x + c, or φ(W z + U x + c).
    bias : bool
        Whether there is a c.
    method, rtol, max_steps
        Of the solver from z = 0, forward and adjoint alike, as for
        :func:`deq_init.torch.fixed_point`.
    gradient : {"implicit", "unrolled", "one_step"}
        Of the adjoint equation, of the iteration itself (of ``method="plain"``; memory grows with
        its steps), or of one application of f to the fixed point.
    seed : int, optional
        An integer in [0, 2**64): the same maps as in JAX's model with ``jax.random.key(seed)``,
        whose kernels are the transposes of these weights.
    generator : torch.Generator, optional
        Without a seed, PyTorch's own random numbers: this generator's, or the global one's.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    W, U, R : Parameter, shapes (width, width), (width, inputs), (classes, width)
        Weights, as in ``torch.nn.Linear``.
    b, c : Parameter, shapes (classes,), (width,)
        Biases, zeros at first. c is None without ``bias``.

    Raises
    ------
    ShapeError, ModelError, ActivationError, SolverError, FamilyError, ScaleError, SeedError,
    DTypeError
        For arguments that are not as above.

    See Also
    --------
    deq_init.equilibrium : the equations, the parameters and their seeds.
    deq_init.torch.implicit.with_gradient : the gradient, for any other model.

    Notes
    -----
    The solvers run eagerly: ``torch.compile`` breaks the graph there.

    References
    ----------
    The model of Agarwala & Schoenholz (2022), arXiv 2207.09432, section 4; implicit gradients as in
    Bai, Kolter & Koltun (2019), arXiv 1909.01377, theorem 1.

    Examples
    --------
    >>> model = DEQFCN(4, 16, 3, gain=0.5, seed=0)
    >>> logits, solution = model(torch.ones(2, 4))
    >>> tuple(logits.shape), bool(solution.converged.all())
    ((2, 3), True)
    >>> logits.sum().backward()
    >>> tuple(model.W.grad.shape)
    (16, 16)
    """

    W: nn.Parameter
    U: nn.Parameter
    R: nn.Parameter
    b: nn.Parameter
    c: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        width: int,
        classes: int,
        *,
        family: str = "orthogonal",
        gain: float = scale.UNIT_GAIN,
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
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.activation: Activation = core.require_model(
            inputs, width, classes, form, activation, ACTIVATIONS
        )
        core.require_gradient(gradient, method)
        solver.require_options(method, rtol, max_steps)
        self.inputs, self.width, self.classes = inputs, width, classes
        self.form, self.gradient = form, gradient
        self.method, self.rtol, self.max_steps = method, rtol, max_steps
        self._laws = {
            "W": (family, scale.resolve(gain, spectral_norm, spectral_radius)),
            "U": ("random", scale.resolve(input_gain, None, None)),
            "R": ("random", scale.resolve(scale.UNIT_GAIN, None, None)),
        }
        self._kernel_shapes = core.kernel_shapes(inputs, width, classes, bias)
        for name, shape in self._kernel_shapes.items():
            value = torch.empty(shape[::-1], device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(value))
        if not bias:
            self.register_parameter("c", None)
        self.reset_parameters(seed, generator)

    @torch.no_grad()
    def reset_parameters(
        self, seed: int | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Draw the parameters again, from their families at their scales.

        Raises
        ------
        SeedError, ShapeError, ScaleError, FamilyError, DTypeError
            The parameters are then as they were.
        """
        key = filling.require_key(seed, generator)
        parameters = self._own()
        # The kernels (in, out), as JAX draws them, so that a seed means one map.
        asked = {
            name: plans.plan(family, self._kernel_shapes[name], "in_out", target, None, None)
            for name, (family, target) in self._laws.items()
        }
        for parameter in parameters.values():
            plans.compute_dtype(filling.dtype_name(parameter))
        for name, parameter in parameters.items():
            if name in asked:
                own = None if key is None else draws.fold_in(key, core.STREAMS[name])
                kernel = torch.empty_like(parameter.T, memory_format=torch.contiguous_format)
                filling.write(asked[name], kernel, own, generator)
                parameter.copy_(kernel.T)
            else:
                parameter.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Solution]:
        """Return logits (batch, classes) and fixed point (batch, width) of x (batch, inputs).

        A solve that does not converge says so in the solution and raises nothing. A sample that is
        lost (residual inf) keeps the last finite state, and has no part in the gradients of W, U
        and c.

        Raises
        ------
        ShapeError
            If x has another shape.
        """
        core.require_samples(tuple(x.shape), self.inputs)
        solution = self._solve(x)
        return functional.linear(solution.value, self.R, self.b), solution

    def cell(self, z: Tensor, injected: Tensor) -> Tensor:
        """Return f(z), (batch, width), given U x + c, by :meth:`inject`."""
        h = functional.linear(z, self.W)
        if self.form == "out":
            return self.activation(h) + injected
        return self.activation(h + injected)

    def inject(self, x: Tensor) -> Tensor:
        """Return U x + c, (batch, width)."""
        return functional.linear(x, self.U, self.c)

    def _solve(self, x: Tensor) -> Solution:
        options: Any = {"method": self.method, "rtol": self.rtol, "max_steps": self.max_steps}
        with torch.no_grad():
            injected = self.inject(x)
        z0 = torch.zeros_like(injected)
        found = _fixed_point(lambda z: self.cell(z, injected), z0, **options)
        if not torch.is_grad_enabled():
            return found
        # 0 times NaN is NaN: the input of a lost sample has to be left out of the gradients.
        lost = core.lost_samples(xp, found)[:, None]
        again = self.inject(torch.where(lost, 0.0, x))
        if self.gradient == "unrolled":
            return implicit.unrolled(lambda z: self.cell(z, again), z0, found)
        return implicit.with_gradient(
            lambda z: self.cell(z, again), found, gradient=self.gradient, **options
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the parameters as NumPy arrays: a checkpoint that JAX's model reads, too.

        They are kernels (in, out), the transposes of this module's weights. bfloat16 comes as
        float32, which holds it exactly. Parameters of an activation are left out.
        """
        arrays = {}
        for name, parameter in self._own().items():
            value = parameter.detach().cpu()
            value = value.float() if value.dtype == torch.bfloat16 else value
            arrays[name] = value.numpy().T.copy()
        return arrays

    @torch.no_grad()
    def from_arrays(self, arrays: Mapping[str, Any]) -> DEQFCN:
        """Set the parameters to those of a checkpoint, JAX's or this one's, and return the module.

        Raises
        ------
        ModelError
            If it has other names or shapes than this model; nothing is changed then.
        """
        core.require_arrays(arrays, self._kernel_shapes)
        for name, parameter in self._own().items():
            value = np.array(arrays[name]).T
            value = value if value.dtype == np.float64 else value.astype(np.float32)
            parameter.copy_(torch.from_numpy(value))
        return self

    def _own(self) -> dict[str, nn.Parameter]:
        """Return the parameters, other than those that an activation may have."""
        return {name: getattr(self, name) for name in self._kernel_shapes}

    def extra_repr(self) -> str:
        """Say what the module is made of."""
        family, target = self._laws["W"]
        return (
            f"{self.inputs}, {self.width}, {self.classes}, family={family!r}, "
            f"{target.kind}={target.value:g}, form={self.form!r}, gradient={self.gradient!r}"
        )


_fixed_point = implicit.eager(fixed_point)
