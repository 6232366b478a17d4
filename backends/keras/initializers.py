"""Keras's idiom: serialisable classes, registered names and plain strings."""

from __future__ import annotations

import random as python_random
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from deq_init import draws, scale
from deq_init import plan as plans
from deq_init.keras import sampling


class _Sampled(keras.Initializer):
    """A family and a scale, as a Keras initializer."""

    _family: str

    def __init__(
        self,
        gain: float | None = scale.UNIT_GAIN,
        spectral_norm: float | None = None,
        spectral_radius: float | None = None,
        blocks: int | tuple[int, int] | None = None,
        seed: Any = None,
        batch_axes: int | Sequence[int] | None = None,
        in_axes: int | Sequence[int] | None = None,
        out_axes: int | Sequence[int] | None = None,
    ) -> None:
        self._target = scale.resolve(gain, spectral_norm, spectral_radius)
        self.gain = self._target.value if self._target.kind == "gain" else None
        self.spectral_norm = spectral_norm
        self.spectral_radius = spectral_radius
        self.blocks = blocks
        self.batch_axes, self.in_axes, self.out_axes = batch_axes, in_axes, out_axes
        self.determinant: int | None = None
        if isinstance(seed, dict):
            seed = keras.saving.deserialize_keras_object(seed)
        self._given_seed = seed
        if seed is None:
            # As Keras's own initializers: keras.utils.set_random_seed makes it reproducible.
            seed = python_random.randint(1, 10**9)
        elif not isinstance(seed, keras.random.SeedGenerator):
            draws.key_from_seed(seed)
        self.seed = seed

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Return a tensor of this shape (..., in, out) and dtype."""
        try:
            resolved = keras.backend.standardize_dtype(dtype or keras.config.floatx())
        except ValueError:
            resolved = dtype
        compute = plans.compute_dtype(resolved)
        plan = plans.plan(
            self._family,
            shape,
            "in_out",
            self._target,
            self.blocks,
            self.determinant,
            self.batch_axes,
            self.in_axes,
            self.out_axes,
        )
        plan = plan.for_dtype(resolved)
        return ops.cast(sampling.sample(plan, self.seed, compute), resolved)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, JSON-serialisable."""
        return {
            "gain": self.gain,
            "spectral_norm": self.spectral_norm,
            "spectral_radius": self.spectral_radius,
            "blocks": self.blocks,
            "batch_axes": self.batch_axes,
            "in_axes": self.in_axes,
            "out_axes": self.out_axes,
            "seed": keras.saving.serialize_keras_object(self._given_seed),
        }


@keras.saving.register_keras_serializable(package="deq_init", name="Random")
class Random(_Sampled):
    """I.i.d. normal entries with variance gain²/fan_in.

    Also the string ``"deq_random"``, with the defaults below.

    Parameters
    ----------
    gain : float, default 1.0
        Square root of the paper's V.
    spectral_norm, spectral_radius : float, optional
        Instead of gain: largest singular value, or largest modulus of an eigenvalue, that the
        sampled matrix shall have (relative error 1e-5 in float32).
    blocks : int or (int, int), optional
        Make the kernel of so many independent blocks along its last axis (an LSTM's four gates:
        ``blocks=4``), or (how many, along which axis). Each block has the scale.
    batch_axes : int or sequence of int, optional
        Each slice along these axes is a matrix of its own, as of experts or scanned layers, with
        the scale and the blocks.
    in_axes, out_axes : int or sequence of int, optional
        Axes that form each matrix's inputs and outputs, flattened in the order given; if only one
        of the two is given, the other is the rest. See :mod:`deq_init.axes`.
    seed : int, keras.random.SeedGenerator or None
        An integer in [0, 2**64) gives the same matrix in every backend, at every call. None draws
        an integer once, when the initializer is made. A seed generator gives other matrices at
        each call, from Keras's own random numbers.

    Raises
    ------
    ScaleError, SeedError
        When it is made.
    ShapeError, DTypeError
        When it is called: kernels have the shape (..., in, out), in float16, bfloat16, float32 or
        float64.

    Notes
    -----
    The matrix is the kernel flattened to (prod(shape[:-1]), shape[-1]), as by
    ``keras.initializers.Orthogonal``. That is the layer's map from inputs to outputs in ``Dense``,
    in convolutions (at one position; ``blocks=groups`` for grouped ones), and in the output
    projection (heads, dim, out) of attention. For other kernels, name their axes: ``in_axes=0`` for
    ``MultiHeadAttention``'s other projections (in, heads, dim); ``batch_axes=-2, out_axes=-1`` for
    depthwise kernels (height, width, in, multiplier); ``out_axes=-2`` for transposed convolutions
    (height, width, out, in) of stride 1, ``in_axes=-1`` if the stride is the kernel's size. A layer
    with one initializer for kernels of several kinds, as attention, is best set by
    :func:`initialize`, which knows each.

    See Also
    --------
    deq_init.families : the laws and their edges.

    Examples
    --------
    >>> w = Random(0.5, seed=0)((512, 512))
    >>> bool(abs(ops.std(w) * 512**0.5 - 0.5) < 0.005)
    True
    """

    _family = "random"


@keras.saving.register_keras_serializable(package="deq_init", name="Orthogonal")
class Orthogonal(_Sampled):
    """Gain times a Haar-distributed (semi-)orthogonal matrix; also ``"deq_orthogonal"``.

    Parameters and errors are those of :class:`Random`, and

    determinant : {1, -1}, optional
        Determinant of the square matrix that the gain multiplies. For even n, an orthogonal
        matrix of determinant -1 has an eigenvalue of exactly 1: at gain 1 a linear DEQ is then
        singular.

    Examples
    --------
    >>> w = Orthogonal(seed=0)((64, 64))
    >>> bool(ops.max(ops.abs(w @ ops.transpose(w) - ops.eye(64))) < 1e-5)
    True
    """

    _family = "orthogonal"

    def __init__(
        self,
        gain: float | None = scale.UNIT_GAIN,
        spectral_norm: float | None = None,
        spectral_radius: float | None = None,
        blocks: int | tuple[int, int] | None = None,
        seed: Any = None,
        determinant: int | None = None,
        batch_axes: int | Sequence[int] | None = None,
        in_axes: int | Sequence[int] | None = None,
        out_axes: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            gain, spectral_norm, spectral_radius, blocks, seed, batch_axes, in_axes, out_axes
        )
        self.determinant = determinant

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, JSON-serialisable."""
        return {**super().get_config(), "determinant": self.determinant}


@keras.saving.register_keras_serializable(package="deq_init", name="GOE")
class GOE(_Sampled):
    """Symmetric normal, variance gain²/n and 2·gain²/n on the diagonal; also ``"deq_goe"``.

    Spectral norm and radius are both near 2·gain. Parameters and errors are those of
    :class:`Random`; the kernel must be square.

    Examples
    --------
    >>> w = GOE(spectral_norm=0.9, seed=0)((64, 64))
    >>> bool(ops.all(w == ops.transpose(w)))
    True
    """

    _family = "goe"


@keras.saving.register_keras_serializable(package="deq_init", name="Antisymmetric")
class Antisymmetric(_Sampled):
    """Normal above the diagonal, variance gain²/n, W = -Wᵀ; also ``"deq_antisymmetric"``.

    The spectrum is imaginary, spectral norm and radius are both near 2·gain, and I - W is never
    singular. Parameters and errors are those of :class:`Random`; the kernel must be square.

    Examples
    --------
    >>> w = Antisymmetric(0.4, seed=0)((64, 64))
    >>> bool(ops.all(w == -ops.transpose(w)))
    True
    """

    _family = "antisymmetric"


CLASSES: dict[str, Any] = {
    initializer._family: initializer for initializer in (Random, Orthogonal, GOE, Antisymmetric)
}
"""The initializers, by their families."""

# The registered name "deq_init>GOE" resolves by itself; a plain string needs an entry of its own.
for _family, _class in CLASSES.items():
    keras.saving.get_custom_objects().setdefault(f"deq_{_family}", _class)
