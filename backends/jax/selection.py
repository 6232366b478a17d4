"""``initialize``: the weights of a whole model, in any pytree of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deq_init import plan as plans
from deq_init import scale, selection
from deq_init.errors import ShapeError
from deq_init.jax import layers, normals
from deq_init.jax.sampling import sample, sample_untraced

_SPECIAL = {
    "b": "bias",
    "bias": "bias",
    "beta": "normalization",
    "gamma": "normalization",
    "offset": "normalization",
    "scale": "normalization",
}


def initialize(
    params: Any,
    family: str,
    gain: float = scale.UNIT_GAIN,
    *,
    key: jax.Array,
    spectral_norm: float | None = None,
    spectral_radius: float | None = None,
    blocks: int | tuple[int, int] | None = None,
    determinant: int | None = None,
    where: str
    | Sequence[str]
    | Mapping[str, Mapping[str, Any]]
    | Callable[[str, Any], bool]
    | None = None,
    layout: plans.Layout = "in_out",
    verbose: bool = True,
) -> tuple[Any, selection.Summary]:
    """Return a model's parameters with matrices of one family, and what was set.

    Parameters
    ----------
    params : pytree
        Parameters: dictionaries, Flax variables or state, an Equinox module. Its arrays keep shape,
        dtype and sharding; a ``jax.ShapeDtypeStruct`` becomes an array; other leaves stay.
    family : {"random", "orthogonal", "goe", "antisymmetric"}
        The family.
    gain, spectral_norm, spectral_radius, blocks, determinant
        As for the initializers, e.g. :func:`deq_init.jax.orthogonal`.
    key : Array
        A key of JAX's. Each weight's key is this one with the two words of its name's hash folded
        in (:func:`deq_init.selection.name_words`), so that it depends neither on the other weights
        nor on their order.
    where : str, sequence of str, mapping, callable or None
        Which weights, by their names (``jax.tree_util.keystr(path, simple=True, separator="/")``,
        in Flax NNX without the last ``/value``): shell patterns, a mapping from patterns to
        options that differ for them, or ``where(name, leaf) -> bool``. Their options may also be
        ``batch_axes``, ``in_axes`` and ``out_axes``. None takes every weight that the family can
        be, other than embeddings, biases and normalization, which it tells by their names, and
        weights of more than two axes of which it cannot tell what they are.
    layout : {"in_out", "out_in"}
        Whether layers compute ``z @ kernel`` (Flax, Haiku) or ``weight @ z`` (Equinox).
    verbose : bool, default True
        Print the summary.

    Returns
    -------
    params : pytree
        A new one; the argument is left as it was.
    summary : deq_init.selection.Summary
        A row for each array. Of several arrays with one name, as ``{"a/w": ..., "a": {"w": ...}}``
        has them, the later have ``_2``, ``_3``, ... appended to it.

    Raises
    ------
    SelectionError, FamilyError, ShapeError, ScaleError, DTypeError, SeedError
        Before anything is drawn, with the weight's name.

    Notes
    -----
    A pytree has no layers, other than Equinox's. Of more than two axes it is known what they are
    if a bias beside them has the leading axes, of a stack (``nn.scan``, ``nn.vmap``, ``nnx.vmap``),
    or the last ones, of outputs (``DenseGeneral``), and no other reading fits; and by the names of
    attention's projections and of convolutions. The others are left alone, with a note. What the
    arrays do not show is not known: a depthwise kernel is taken for one matrix.

    Examples
    --------
    >>> params = {"dense": {"kernel": jax.numpy.zeros((8, 8)), "bias": jax.numpy.zeros(8)}}
    >>> params, summary = initialize(params, "goe", 0.4, key=jax.random.key(0))
    weight        shape   dtype    action  note
    dense/bias    (8,)    float32  left    bias
    dense/kernel  (8, 8)  float32  set     goe, gain 0.4, 8 x 8
    1 weight set, 1 left alone
    """
    require_layout(layout)
    normals.require_key(key)
    options = {
        "family": family,
        "gain": gain,
        "spectral_norm": spectral_norm,
        "spectral_radius": spectral_radius,
        "blocks": blocks,
        "determinant": determinant,
    }
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    leaves = [leaf for _, leaf in paths]
    arrays = [index for index, leaf in enumerate(leaves) if is_array(leaf)]
    weights = weights_of([paths[index] for index in arrays])
    shapes = {weight.name: weight.shape for weight in weights}
    for place, (index, weight) in enumerate(zip(arrays, weights, strict=True)):
        known = layers.axes(params, paths[index][0], weight.name, shapes, layout)
        known, unknown = ({}, known) if isinstance(known, str) else (known, "")
        weights[place] = replace(weight, known=known, unknown=unknown)
    result = selection.requests(weights, layout, where, options)
    for index, request in zip(arrays, result, strict=True):
        if request.plan is not None:
            own = key
            for word in selection.name_words(request.weight.name):
                own = jax.random.fold_in(own, np.uint32(word))
            leaves[index] = _sample_like(leaves[index], request.plan, own)
    summary = selection.summarize(result)
    if verbose:
        print(summary)
    return jax.tree_util.tree_unflatten(structure, leaves), summary


def require_layout(layout: Any) -> None:
    """Raise ShapeError for a layout that there is not."""
    if layout not in ("in_out", "out_in"):
        raise ShapeError(
            f"expected layout 'in_out' (Flax, Haiku) or 'out_in' (Equinox), received {layout!r}."
        )


def is_array(leaf: Any) -> bool:
    """Return whether a leaf of a pytree is an array."""
    return isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))


def weights_of(paths: Sequence[tuple[Any, Any]]) -> list[selection.Weight]:
    """Return arrays and their paths as the selection lists them, under names of their own."""
    weights = [_weight(path, leaf) for path, leaf in paths]
    names = selection.distinct(weight.name for weight in weights)
    return [replace(weight, name=name) for weight, name in zip(weights, names, strict=True)]


def _weight(path: Any, leaf: Any) -> selection.Weight:
    # Flax boxes arrays in variables whose only child has this name.
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    shape = tuple(leaf.shape)
    return selection.Weight(name, shape, _dtype_name(leaf), leaf, _special(name))


def _dtype_name(leaf: Any) -> str:
    """Return the dtype of an array, as JAX has it: a NumPy array may be wider."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jax.dtypes.canonicalize_dtype(leaf.dtype).name
    return leaf.dtype.name


def _special(name: str) -> str:
    """Return why a weight of this name is left alone by default, or ""."""
    *parents, last = ["", *name.lower().split("/")]
    if "embed" in last or (last == "weight" and "embed" in parents[-1]):
        return "embedding"
    if selection.is_adapter(name):
        return "adapter"
    return _SPECIAL.get(last, "")


def _sample_like(leaf: Any, plan: plans.Plan, key: jax.Array) -> jax.Array:
    """Return the array of a plan with the dtype and sharding of a leaf."""
    dtype, unit, value = _dtype_name(leaf), plan.with_value(1.0), plan.scale.value
    if isinstance(leaf, jax.core.Tracer):
        sharding = jax.typeof(leaf).sharding
        sharding = sharding if sharding.mesh.explicit_axes else None
    else:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(key, jax.core.Tracer):
            return _sampler(sharding)(unit, dtype, None, key, value)
        sharding = sharding if isinstance(sharding, jax.sharding.NamedSharding) else None
    return sample(unit, dtype, sharding, key, value)


@lru_cache(maxsize=64)
def _sampler(sharding: Any) -> Callable[..., jax.Array]:
    """Return :func:`sample` with shards that are computed where they are to be."""
    if sharding is None:
        return sample
    return jax.jit(sample_untraced, static_argnums=(0, 1, 2), out_shardings=sharding)
