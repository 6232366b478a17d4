"""Where the state of a looped or implicit model starts, in Keras's idiom."""

from __future__ import annotations

import math
import random as python_random
from typing import Any

import keras
from keras import ops

from deq_init import draws, scale
from deq_init import looped as core
from deq_init import plan as plans
from deq_init.keras import sampling
from deq_init.looped import Start


def initial_state(kind: Start, like: Any, *, deviation: float = 1.0, seed: Any = None) -> Any:
    """Return a state to start a solver or a loop from.

    Parameters
    ----------
    kind : {"zeros", "input", "normal", "mixed"}
        Zeros; ``like`` itself, without its gradient; normal entries; or each sample zeros or
        normal, with probability ½.
    like : tensor, shape (batch, ...)
        What the state is to be like: the injected or embedded input.
    deviation : float, default 1.0
        Standard deviation of the normal entries.
    seed : int or keras.random.SeedGenerator, optional
        An integer in [0, 2**64) gives the same state in every backend, at every call. None draws
        one, which ``keras.utils.set_random_seed`` makes reproducible. A seed generator gives
        another state at each call, from Keras's own random numbers.

    Raises
    ------
    ModelError, SeedError, DTypeError, ShapeError
        For an unknown kind, a deviation that is not finite, a seed that is not as above, or, of
        random starts, a dtype that is not real and floating or a shape that is not known.

    Notes
    -----
    Where a function is traced once and run often, as within ``fit``, integers and None give the
    same state at each run.

    See Also
    --------
    deq_init.looped : which start is for what.

    Examples
    --------
    >>> tuple(initial_state("normal", ops.zeros((2, 3)), seed=0).shape)
    (2, 3)
    """
    core.require_start(kind, deviation, True)
    if seed is None:
        # As Keras's own initializers: keras.utils.set_random_seed makes it reproducible.
        seed = python_random.randint(1, 10**9)
    elif not isinstance(seed, keras.random.SeedGenerator):
        draws.key_from_seed(seed)
    like = ops.convert_to_tensor(like)
    if kind == "input":
        return ops.stop_gradient(like)
    shape = tuple(like.shape)
    if kind == "zeros" or 0 in shape:
        return ops.zeros_like(like)
    dtype = keras.backend.standardize_dtype(like.dtype)
    batch, columns = plans.matrix_shape((*shape, 1), "out_in")
    normals = _normals((batch, columns), seed, core.NORMALS, plans.compute_dtype(dtype))
    state = ops.cast(ops.reshape(normals * deviation, shape), dtype)
    if kind == "normal":
        return state
    choice = _normals((batch, 1), seed, core.CHOICE, "float32")
    chosen = ops.reshape(choice, (-1, *(1,) * (len(shape) - 1))) > 0
    return ops.where(chosen, state, ops.zeros_like(state))


def _normals(shape: tuple[int, int], seed: Any, stream: int, dtype: str) -> Any:
    plan = plans.plan("random", shape, "out_in", scale.Scale("gain", math.sqrt(shape[1])))
    if not isinstance(seed, keras.random.SeedGenerator):
        high, low = draws.fold_in(draws.key_from_seed(seed), stream)
        seed = high << 32 | low
    return sampling.sample(plan, seed, dtype)
