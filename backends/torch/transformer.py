"""The DEQ-transformer as a PyTorch module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deq_init import equilibrium, scale
from deq_init import fixed_point as solver
from deq_init import transformer as core
from deq_init.equilibrium import Gradient
from deq_init.fixed_point import Method, Solution
from deq_init.torch import implicit
from deq_init.torch.activations import ACTIVATIONS, Activation
from deq_init.torch.parameters import Kernels
from deq_init.transformer import Norm


class DEQTransformer(Kernels):
    """The DEQ-transformer: one weight-tied block, its input in q, k and v; a language model.

    Parameters
    ----------
    vocabulary, width, heads, expansion : int
        Tokens; d; heads, which divide d; and the feed-forward layer's width in units of d.
    family : {"orthogonal", "random", "goe", "antisymmetric"}
        Of the square blocks of qkv, out, up and down.
    gain, spectral_norm, spectral_radius : float, optional
        Their scale, at most one of them, as for :func:`deq_init.torch.random_`.
    where : mapping, optional
        What differs for one of the four matrices: ``{"down": {"family": "goe", "gain": 0.3}}``.
    input_gain : float
        Entries of ``injection`` are normal with variance input_gain² / d.
    norm : {"post", "pre", "none"}
        Where layer normalization is.
    skip : float, optional
        α, the state's weight in the residual: by default 1 for post-norm, else 0.
    branch_scale : float
        β, what the attention and the feed-forward layer are multiplied by, such as
        :func:`deq_init.looped.residual_scale`.
    causal : bool
        Whether a token sees only itself and those before it.
    activation : str or callable
        φ of the feed-forward layer: a name out of :data:`~deq_init.torch.models.ACTIVATIONS`, e.g.
        "relu", "gelu", "silu", or any function of tensors, entry by entry.
    method, rtol, max_steps
        Of the solver, forward and adjoint alike, as for :func:`deq_init.torch.fixed_point`. A
        looped transformer of N loops has ``method="plain", max_steps=N + 1,
        gradient="unrolled"``: the value is the last state that the block was applied to.
    gradient : {"implicit", "unrolled", "one_step"}
        Of the adjoint equation, of the iteration itself (not of "anderson", and memory grows with
        its steps), or of one application of the block to the fixed point.
    seed : int, optional
        An integer in [0, 2**64): the same maps as in JAX's model with ``jax.random.key(seed)``.
    generator : torch.Generator, optional
        Without a seed, PyTorch's own random numbers: this generator's, or the global one's.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    qkv, injection, out, up, down : Parameter
        Weights, as in ``torch.nn.Linear``: the transposes of the kernels.
    embedding : Parameter, shape (vocabulary, width)
        As in ``torch.nn.Embedding``; the readout, too.
    qkv_bias, out_bias, up_bias, down_bias, readout_bias : Parameter
        Biases, zeros at first.
    norm1_scale, norm1_bias, norm2_scale, norm2_bias : Parameter, shape (width,)
        Of the layer normalizations, if there are any.

    Raises
    ------
    ShapeError, ModelError, ActivationError, SolverError, FamilyError, ScaleError, SelectionError,
    SeedError, DTypeError
        For arguments that are not as above.

    See Also
    --------
    deq_init.transformer : the equations, the parameters and their seeds.

    Notes
    -----
    The solvers run eagerly: ``torch.compile`` breaks the graph there.

    References
    ----------
    Bai, Kolter & Koltun (2019), arXiv 1909.01377, section 4.

    Examples
    --------
    >>> model = DEQTransformer(20, 16, heads=2, gain=0.5, seed=0)
    >>> logits, solution = model(torch.zeros(2, 8, dtype=torch.int64))
    >>> tuple(logits.shape), bool(solution.converged.all())
    ((2, 8, 20), True)
    """

    embedding: nn.Parameter
    qkv: nn.Parameter
    injection: nn.Parameter
    out: nn.Parameter
    up: nn.Parameter
    down: nn.Parameter
    qkv_bias: nn.Parameter
    out_bias: nn.Parameter
    up_bias: nn.Parameter
    down_bias: nn.Parameter
    readout_bias: nn.Parameter

    def __init__(
        self,
        vocabulary: int,
        width: int,
        heads: int,
        expansion: int = 2,
        *,
        family: str = "orthogonal",
        gain: float = scale.UNIT_GAIN,
        spectral_norm: float | None = None,
        spectral_radius: float | None = None,
        where: Mapping[str, Mapping[str, Any]] | None = None,
        input_gain: float = 1.0,
        norm: Norm = "post",
        skip: float | None = None,
        branch_scale: float = 1.0,
        causal: bool = True,
        activation: str | Activation = "relu",
        method: Method = "anderson",
        rtol: float = 1e-3,
        max_steps: int = 40,
        gradient: Gradient = "implicit",
        seed: int | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = core.Sizes(vocabulary, width, heads, expansion, norm)
        skip = core.resolve_skip(skip, norm)
        branch_scale = equilibrium.require_number("branch_scale", branch_scale)
        called = equilibrium.require_activation(activation, ACTIVATIONS)
        equilibrium.require_gradient(gradient, method)
        solver.require_options(method, rtol, max_steps)
        target = scale.resolve(gain, spectral_norm, spectral_radius)
        laws = sizes.laws(family, target, input_gain, where)
        super().__init__(sizes.kernel_shapes(), laws, core.STREAMS, device, dtype)
        self.activation: Activation = called
        self.vocabulary, self.width, self.heads = vocabulary, width, heads
        self.norm, self.skip, self.branch_scale, self.causal = norm, skip, branch_scale, causal
        self.method, self.rtol, self.max_steps = method, rtol, max_steps
        self.gradient = gradient
        self.reset_parameters(seed, generator)

    def forward(self, tokens: Tensor, z0: Tensor | None = None) -> tuple[Tensor, Solution]:
        """Return logits (batch, length, vocabulary) and fixed point (batch, length, width).

        A solve that does not converge says so in the solution, sequence by sequence, and raises
        nothing. A sequence that is lost (residual inf) keeps the last finite state, and has no part
        in the gradients of the block.

        Parameters
        ----------
        tokens : Tensor, shape (batch, length), integer
            In [0, vocabulary).
        z0 : Tensor, shape (batch, length, width), optional
            Where the solver starts; zeros by default.

        Raises
        ------
        ShapeError, DTypeError
            If tokens or z0 are not as above.
        """
        e = self.embed(tokens)

        def inject(lost: Tensor | None) -> Tensor:
            # 0 times NaN is NaN: the input of a lost sequence has to be left out of the gradients.
            return self._inject(e if lost is None else torch.where(lost[:, None, None], 0.0, e))

        solution = implicit.solve(
            self.cell,
            inject,
            z0,
            tuple(e.shape),
            gradient=self.gradient,
            method=self.method,
            rtol=self.rtol,
            max_steps=self.max_steps,
        )
        return functional.linear(solution.value, self.embedding, self.readout_bias), solution

    def embed(self, tokens: Tensor) -> Tensor:
        """Return e = √d E[tokens] + P, shape (batch, length, width)."""
        positions = _eager_positions(tokens, self.vocabulary, self.width).to(self.embedding)
        return functional.embedding(tokens.long(), self.embedding) * self.width**0.5 + positions

    def inject(self, tokens: Tensor) -> Tensor:
        """Return u = e Qₓ + c, shape (batch, length, 3 width)."""
        return self._inject(self.embed(tokens))

    def cell(self, z: Tensor, injected: Tensor) -> Tensor:
        """Return f(z), shape (batch, length, width), given u by :meth:`inject`."""
        y = self._normalize("norm1", z) if self.norm == "pre" else z
        attended = self._attend(functional.linear(y, self.qkv) + injected)
        h = self._add(z, functional.linear(attended, self.out, self.out_bias), self.skip)
        h = self._normalize("norm1", h) if self.norm == "post" else h
        y = self._normalize("norm2", h) if self.norm == "pre" else h
        inner = self.activation(functional.linear(y, self.up, self.up_bias))
        z = self._add(h, functional.linear(inner, self.down, self.down_bias), 1.0)
        return self._normalize("norm2", z) if self.norm == "post" else z

    def _inject(self, e: Tensor) -> Tensor:
        return functional.linear(e, self.injection, self.qkv_bias)

    def _add(self, z: Tensor, branch: Tensor, skip: float) -> Tensor:
        """Return skip z + β branch."""
        branch = branch if self.branch_scale == 1 else self.branch_scale * branch
        return branch if skip == 0 else torch.add(branch, z, alpha=skip)

    def _normalize(self, name: str, x: Tensor) -> Tensor:
        weight, bias = getattr(self, f"{name}_scale"), getattr(self, f"{name}_bias")
        return functional.layer_norm(x, (self.width,), weight, bias, core.EPSILON)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Return attention's output, shape (batch, length, width), of fused (..., 3 width)."""
        batch, length, _ = qkv.shape
        parts = qkv.view(batch, length, 3, self.heads, self.width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return found.transpose(1, 2).reshape(batch, length, self.width)

    def extra_repr(self) -> str:
        """Say what the module is made of."""
        law = self._laws["qkv"]
        return (
            f"{self.vocabulary}, {self.width}, heads={self.heads}, family={law.family!r}, "
            f"{law.scale.kind}={law.scale.value:g}, norm={self.norm!r}, gradient={self.gradient!r}"
        )


def _positions(tokens: Tensor, vocabulary: int, width: int) -> Tensor:
    """Return positions of tokens that are in order, float64."""
    integer = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype is torch.bool)
    core.require_tokens(tuple(tokens.shape), integer, tokens.dtype)
    if tokens.numel() and not tokens.is_meta:
        lowest, highest = (int(bound) for bound in tokens.aminmax())
        core.require_in_vocabulary(lowest, highest, vocabulary)
    return torch.from_numpy(core.positions(tokens.shape[1], width))


_eager_positions = implicit.eager(_positions)
