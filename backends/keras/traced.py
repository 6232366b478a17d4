"""Fixed points as a part of TensorFlow's graph, under ``tf.function``."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from deq_init import fixed_point as core
from deq_init.fixed_point import Solution
from deq_init.keras.iteration import xp
from deq_init.keras.loops import jacobian_norm, jacobian_spectral_radius
from deq_init.keras.states import Vectors

# The Jacobian's measurements need values: these raise the error that says so.
__all__ = ["fixed_point", "jacobian_norm", "jacobian_spectral_radius"]


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def fixed_point(f: Vectors, z0: Any, **options: Any) -> Solution:
    """Solve z = f(z) for tensors of shape (batch, n); see :func:`deq_init.keras.fixed_point`."""
    # Layers are built by a call, and cannot be within a loop.
    f(z0)
    found = core.solve(xp, f, z0, **options)
    parts = (found.value, found.residual, found.steps, found.converged, found.index)
    return Solution(*map(tf.stop_gradient, parts))
