"""Where the state of a looped or implicit model starts, in PyTorch's idiom."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deq_init import draws, scale
from deq_init import looped as core
from deq_init import plan as plans
from deq_init.looped import Start
from deq_init.torch import filling


@torch.no_grad()
def initial_state(
    kind: Start,
    like: Tensor,
    *,
    deviation: float = 1.0,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return a state to start a solver or a loop from.

    Parameters
    ----------
    kind : {"zeros", "input", "normal", "mixed"}
        Zeros; ``like`` itself, detached; normal entries; or each sample zeros or normal, with
        probability ½.
    like : Tensor, shape (batch, ...)
        What the state is to be like: the injected or embedded input.
    deviation : float, default 1.0
        Standard deviation of the normal entries.
    seed : int, optional
        An integer in [0, 2**64): the same state in every backend.
    generator : torch.Generator, optional
        Without a seed, PyTorch's own random numbers: this generator's, or the global one's.

    Raises
    ------
    ModelError, SeedError, DTypeError
        For an unknown kind, a deviation that is not finite, a seed and a generator, or a dtype that
        is not real and floating.

    See Also
    --------
    deq_init.looped : which start is for what.

    Examples
    --------
    >>> tuple(initial_state("normal", torch.zeros(2, 3), seed=0).shape)
    (2, 3)
    """
    core.require_start(kind, deviation, True)
    key = filling.require_key(seed, generator)
    plans.compute_dtype(filling.dtype_name(like))
    if kind == "input":
        return like.detach()
    state = torch.zeros_like(like, memory_format=torch.contiguous_format)
    if kind == "zeros" or not state.numel():
        return state
    _fill(state.view(len(state), -1), key, generator, core.NORMALS)
    state *= deviation
    if kind == "normal":
        return state
    choice = torch.empty(len(state), 1, device=state.device)
    _fill(choice, key, generator, core.CHOICE)
    return torch.where(choice.view(-1, *(1,) * (state.ndim - 1)) > 0, state, 0.0)


def _fill(x: Tensor, key: draws.Key | None, generator: torch.Generator | None, stream: int) -> None:
    """Fill a matrix with normals."""
    target = scale.Scale("gain", math.sqrt(x.shape[1]))
    plan = plans.plan("random", tuple(x.shape), "out_in", target)
    own = None if key is None else draws.fold_in(key, stream)
    filling.write(plan, x, own, generator)
