"""Keras's idiom for a whole model: its variables by path, assigned in place."""

from __future__ import annotations

import random as python_random
from typing import Any

import keras
from keras import ops

from deq_init import draws, scale, selection
from deq_init import plan as plans
from deq_init.errors import SelectionError
from deq_init.keras import layers, sampling

# Names that Keras's layers give to what is not a matrix from inputs to outputs, whatever its shape:
# the biases of GRU and of attention heads have two axes, and so may a normalization's scale.
_SPECIAL = {
    "embeddings": "embedding",
    "reverse_embeddings": "embedding",
    "bias": "bias",
    "gamma": "normalization",
    "beta": "normalization",
    "scale": "normalization",
    "alpha": "slopes of an activation",
}


def initialize(
    model: keras.layers.Layer,
    family: str,
    gain: float | None = scale.UNIT_GAIN,
    *,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    determinant: int | None = None,
    where: selection.Where = None,
    seed: int | None = None,
    verbose: bool = True,
) -> selection.Summary:
    """Initialize the kernels of a built model in place, and say which.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        Built: its variables exist. Sharded ones keep their layout.
    family : {"random", "orthogonal", "goe", "antisymmetric"}
        What to sample; see :mod:`deq_init.families`.
    gain, spectral_norm, spectral_radius, blocks, determinant
        As in :class:`Random` and :class:`Orthogonal`, for each variable.
    where : str, sequence of str, mapping or callable, optional
        Which variables, by ``path``: shell patterns such as ``"*/recurrent_kernel"``; a mapping
        from patterns to options that differ for them, ``{"*/qkv/kernel": {"blocks": 3}}``, where
        the first match counts; or ``where(path, variable) -> bool``. Their options may also be
        ``batch_axes``, ``in_axes`` and ``out_axes``. By default every trainable variable that the
        family can be, other than embeddings, biases, parameters of normalizations, and kernels
        of more than two axes whose layer is not known. Known are convolutions (each group, and
        each channel of a depthwise one, a matrix of its own; transposed ones of stride 1 or of
        the kernel's size), ``EinsumDense`` by its equation, and so ``MultiHeadAttention``.
    seed : int, optional
        In [0, 2**64). A variable's own seed depends on this one and on its path alone. Keras
        numbers layers without a name in the order in which a process makes them, and leaves a
        model's name out of the paths of one that was loaded: name the layers, and initialize
        before saving. None draws an integer, which ``keras.utils.set_random_seed`` makes
        reproducible.
    verbose : bool, default True
        Print the summary.

    Returns
    -------
    deq_init.selection.Summary
        What was set and what was left alone, in the order of ``model.weights``. Of several
        variables with one path, the later have ``_2``, ``_3``, ... appended to it.

    Raises
    ------
    SelectionError
        If the model is not built, nothing is selected, or a pattern matches no path.
    FamilyError, ShapeError, ScaleError, DTypeError, SeedError
        For what was selected and cannot be what was asked for. Nothing is then changed.

    Examples
    --------
    >>> layers = [keras.Input((64,)), keras.layers.Dense(64, name="state")]
    >>> model = keras.Sequential(layers, name="cell")
    >>> summary = initialize(model, "goe", spectral_radius=0.9, seed=0)
    weight             shape     dtype    action  note
    cell/state/kernel  (64, 64)  float32  set     goe, spectral radius 0.9, 64 x 64
    cell/state/bias    (64,)     float32  left    bias
    1 weight set, 1 left alone
    """
    variables = _weights(model)
    options = {
        "family": family,
        "gain": gain,
        "spectral_norm": spectral_norm,
        "spectral_radius": spectral_radius,
        "blocks": blocks,
        "determinant": determinant,
    }
    requests = selection.requests(variables, "in_out", where, options)
    draws.key_from_seed(seed)
    if seed is None:
        seed = python_random.randint(1, 10**9)
    values = []
    for request in requests:
        if request.plan is not None:
            name, dtype = request.weight.name, request.weight.dtype
            own = selection.seed_of(seed, name)
            plan = request.plan.for_dtype(dtype)
            value = sampling.sample(plan, own, plans.compute_dtype(dtype))
            values.append((request.weight.value, ops.cast(value, dtype)))
    # All is sampled before anything is assigned.
    for variable, value in values:
        variable.assign(value)
    summary = selection.summarize(requests)
    if verbose:
        print(summary)
    return summary


def _weights(model: Any) -> list[selection.Weight]:
    """Return the model's variables, each once, under names of their own."""
    owners = {id(variable): layer for layer in _layers(model) for variable in layer.weights}
    names = selection.distinct(variable.path for variable in model.weights)
    result = []
    for name, variable in zip(names, model.weights, strict=True):
        shape, dtype = tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype)
        owner = owners[id(variable)]
        known = layers.axes(owner, variable.name, shape)
        known, unknown = ({}, known) if isinstance(known, str) else (known, "")
        special = _special(variable)
        weight = selection.Weight(name, shape, dtype, variable, special, "", known, unknown)
        result.append(weight)
    return result


def _layers(model: Any) -> list[Any]:
    """Return the model and all layers in it, each after those that hold it; all are built."""
    if not isinstance(model, keras.layers.Layer):
        raise SelectionError(
            f"expected a keras.Model or keras.layers.Layer, received {model!r}. "
            "Pass the model itself; for one variable, assign what an initializer returns."
        )
    layers = list(model._flatten_layers())
    # A layer that defines no build() of its own has no variables of its own either.
    unbuilt = [
        layer.name
        for layer in layers
        if not layer.built and (layer is model or type(layer).build is not keras.layers.Layer.build)
    ]
    if unbuilt:
        raise SelectionError(
            f"expected a model whose layers are all built, received one in which "
            f"{', '.join(map(repr, unbuilt))} {'is' if len(unbuilt) == 1 else 'are'} not: their "
            "variables do not exist yet. Call it on data, or its build(input_shape), first."
        )
    return layers


def _special(variable: Any) -> str:
    """Say why a variable is left alone unless it is asked for by name; "" if it is not."""
    if not variable.trainable:
        return "not trainable"
    if variable.name.startswith("lora_"):
        return "LoRA"
    if variable.name in _SPECIAL:
        return _SPECIAL[variable.name]
    return ""
