"""Each fast path is compared with the naive definition: here, that the comparison sees mistakes.

A mistake is planted in the path, and the comparison that the other tests rest on must fail.
"""

import numpy as np
import pytest
import torch

from deq_init import families
from deq_init.jax import primitives as jax_primitives
from deq_init.numpy import primitives as numpy_primitives
from deq_init.torch import primitives as torch_primitives

import reference

XP = {
    "numpy": numpy_primitives.xp,
    "torch": torch_primitives.Primitives(torch.device("cpu")),
    "jax": jax_primitives.xp,
}


def compare(xp, family, n=300):
    """The family's map against its definition, to 1e-5 of the largest entry."""
    field = numpy_primitives.normals(3, (n, n), "float32")
    if xp is XP["torch"]:
        field = torch_primitives.Portable(field.key, (n, n), "float32", torch.device("cpu"))
    elif xp is XP["jax"]:
        import jax

        field = jax.numpy.asarray(field[:, :])
    w = np.asarray(families.get(family).transform(xp, field, 1.0))
    expected = getattr(reference, family)(
        np.asarray(numpy_primitives.normals(3, (n, n), "float32")[:, :], np.float64)
    )
    assert np.abs(w - expected).max() <= 1e-5 * np.abs(expected).max()


def wrong_sign(monkeypatch, xp):
    right = families._reflections

    def reflections(xp, x):
        x, signed, d = right(xp, x)
        return x, -signed, d

    monkeypatch.setattr(families, "_reflections", reflections)


def dropped_panel(monkeypatch, xp):
    right = families._panel
    calls = []

    def panel(xp, x):
        calls.append(None)
        v, inverse_t, sign = right(xp, x)
        return (v * 0 if len(calls) == 2 else v), inverse_t, sign

    monkeypatch.setattr(families, "_panel", panel)


def transposed_t(monkeypatch, xp):
    right = type(xp).solve_upper
    monkeypatch.setattr(
        type(xp), "solve_upper", lambda self, a, b: right(self, self.transpose(a), b)
    )


def transposed_block(monkeypatch, xp):
    monkeypatch.setattr(type(xp), "transpose", lambda self, x: x)


def lost_diagonal(monkeypatch, xp):
    monkeypatch.setattr(type(xp), "scale_diagonal", lambda self, x, factor: None)


def shifted_draws(monkeypatch, xp):
    right = numpy_primitives.Portable.trapezoid
    monkeypatch.setattr(
        numpy_primitives.Portable,
        "trapezoid",
        lambda self, lower: np.roll(right(self, lower), 1, axis=1),
    )


CASES = [
    *[(name, "orthogonal", wrong_sign) for name in XP],
    *[(name, "orthogonal", dropped_panel) for name in XP],
    *[(name, "orthogonal", transposed_t) for name in XP],
    *[(name, family, lost_diagonal) for name in ("numpy", "torch") for family in ("goe",)],
    *[
        (name, family, mistake)
        for name in ("numpy", "torch")
        for family in ("goe", "antisymmetric")
        for mistake in (transposed_block, shifted_draws)
    ],
    *[(name, "orthogonal", shifted_draws) for name in ("numpy", "torch")],
]


@pytest.mark.parametrize(("framework", "family", "mistake"), CASES)
def test_planted_mistakes_are_seen(monkeypatch, framework, family, mistake):
    xp = XP[framework]
    monkeypatch.setattr(type(xp), "lapack_up_to", 0)  # every size takes the core's own path
    compare(xp, family)
    with monkeypatch.context() as patch:
        mistake(patch, xp)
        with pytest.raises((AssertionError, ValueError, RuntimeError)):
            compare(xp, family)
    compare(xp, family)


@pytest.mark.parametrize("framework", XP)
def test_planted_mistakes_are_seen_in_the_path_of_lapack(monkeypatch, framework):
    xp = XP[framework]
    monkeypatch.setattr(type(xp), "lapack_up_to", 10**6)
    compare(xp, "orthogonal", 60)
    wrong_sign(monkeypatch, xp)
    with pytest.raises(AssertionError):
        compare(xp, "orthogonal", 60)
