"""Deep equilibrium networks as PyTorch modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deq_init import equilibrium as core
from deq_init import fixed_point as solver
from deq_init import scale
from deq_init.equilibrium import Gradient
from deq_init.fixed_point import Method, Solution
from deq_init.jacobian import Form
from deq_init.torch import implicit
from deq_init.torch.activations import ACTIVATIONS, Activation
from deq_init.torch.parameters import Kernels
from deq_init.torch.transformer import DEQTransformer
from deq_init.transformer import Law

__all__ = ["ACTIVATIONS", "DEQFCN", "Activation", "DEQTransformer"]


class DEQFCN(Kernels):
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
        φ: a name out of :data:`ACTIVATIONS`, e.g. "tanh", "relu", "gelu" (with the error function),
        "silu", or any function of tensors, entry by entry.
    form : {"out", "in"}
        φ(W z) + U x + c, or φ(W z + U x + c).
    bias : bool
        Whether there is a c.
    method, rtol, max_steps
        Of the solver, forward and adjoint alike, as for
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
        called = core.require_model(inputs, width, classes, form, activation, ACTIVATIONS)
        core.require_gradient(gradient, method)
        solver.require_options(method, rtol, max_steps)
        laws = {
            "W": Law(family, scale.resolve(gain, spectral_norm, spectral_radius)),
            "U": Law("random", scale.resolve(input_gain, None, None)),
            "R": Law("random", scale.resolve(scale.UNIT_GAIN, None, None)),
        }
        shapes = core.kernel_shapes(inputs, width, classes, bias)
        super().__init__(shapes, laws, core.STREAMS, device, dtype)
        if not bias:
            self.register_parameter("c", None)
        self.activation: Activation = called
        self.inputs, self.width, self.classes = inputs, width, classes
        self.form, self.gradient = form, gradient
        self.method, self.rtol, self.max_steps = method, rtol, max_steps
        self.reset_parameters(seed, generator)

    def forward(self, x: Tensor, z0: Tensor | None = None) -> tuple[Tensor, Solution]:
        """Return logits (batch, classes) and fixed point (batch, width) of x (batch, inputs).

        The solver starts from z0 (batch, width), by default from zeros.

        A solve that does not converge says so in the solution and raises nothing. A sample that is
        lost (residual inf) keeps the last finite state, and has no part in the gradients of W, U
        and c.

        Raises
        ------
        ShapeError
            If x or z0 has another shape.
        """
        core.require_samples(tuple(x.shape), self.inputs)

        def inject(lost: Tensor | None) -> Tensor:
            # 0 times NaN is NaN: the input of a lost sample has to be left out of the gradients.
            return self.inject(x if lost is None else torch.where(lost[:, None], 0.0, x))

        solution = implicit.solve(
            self.cell,
            inject,
            z0,
            (len(x), self.width),
            gradient=self.gradient,
            method=self.method,
            rtol=self.rtol,
            max_steps=self.max_steps,
        )
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

    def extra_repr(self) -> str:
        """Say what the module is made of."""
        law = self._laws["W"]
        return (
            f"{self.inputs}, {self.width}, {self.classes}, family={law.family!r}, "
            f"{law.scale.kind}={law.scale.value:g}, form={self.form!r}, gradient={self.gradient!r}"
        )
