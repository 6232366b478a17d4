"""Bad input: one clear error, and the tensor as it was."""

import jax
import numpy as np
import pytest
import torch

import deq_init.jax
import deq_init.keras
import deq_init.numpy
import deq_init.torch
from deq_init import errors, families

from backends import BACKENDS

BAD_SCALES = [
    ({"gain": -1.0}, r"expected gain to be a finite number >= 0, received -1\.0"),
    ({"gain": float("nan")}, "expected gain to be a finite number >= 0, received nan"),
    ({"gain": float("inf")}, "expected gain to be a finite number >= 0, received inf"),
    ({"gain": "big"}, "expected gain to be a finite number >= 0, received 'big'"),
    ({"gain": True}, "expected gain to be a finite number >= 0, received True"),
    ({"gain": np.bool_(True)}, "expected gain to be a finite number >= 0, received np.True_"),
    ({"gain": 10**400}, "expected gain to be a finite number >= 0, received 1000"),
    ({"spectral_norm": -0.5}, r"expected spectral_norm to be .* received -0\.5"),
    ({"spectral_radius": float("nan")}, "expected spectral_radius to be .* received nan"),
    (
        {"gain": 0.5, "spectral_norm": 0.9},
        r"expected at most one .* received gain=0\.5, spectral_norm=0\.9",
    ),
    (
        {"spectral_radius": 0.5, "spectral_norm": 0.9},
        r"expected at most one .* received spectral_norm=0\.9, spectral_radius=0\.5",
    ),
]


@pytest.mark.parametrize(("scale", "message"), BAD_SCALES)
def test_scales(backend, family, scale, message):
    with pytest.raises(errors.ScaleError, match=message):
        backend.sample(family, (4, 4), **scale)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_too_few_axes(backend, family, shape):
    with pytest.raises(errors.ShapeError, match="expected a shape with at least two axes"):
        backend.sample(family, shape)


def test_goe_must_be_square(backend):
    with pytest.raises(
        errors.ShapeError, match=r"expected a square matrix for the goe family.*\(4, 6\)"
    ):
        backend.sample("goe", (4, 6))


def test_goe_says_which_blocks_would_do(backend):
    with pytest.raises(errors.ShapeError, match=r"Pass blocks=\(3, 1\) for independent square"):
        backend.sample("goe", (4, 12))


@pytest.mark.parametrize("blocks", [0, -2, 1.5, "3", True, (2, 5), (2,), (2, 0, 1)])
def test_blocks_that_are_none(backend, blocks):
    with pytest.raises(errors.ShapeError, match="expected blocks as a positive integer"):
        backend.sample("random", (4, 4), blocks=blocks)


def test_blocks_that_do_not_divide(backend):
    with pytest.raises(errors.ShapeError, match=r"to divide into 3 equal blocks.* length of 4"):
        backend.sample("random", (4, 4), blocks=3)


@pytest.mark.parametrize(("shape", "determinant"), [((4, 6), 1), ((4, 4), 2), ((4, 4), "1")])
def test_determinants(backend, shape, determinant):
    with pytest.raises(errors.ShapeError, match="expected determinant 1 or -1 for square"):
        backend.sample("orthogonal", shape, determinant=determinant)


@pytest.mark.parametrize("rectangular", ["random", "orthogonal"])
def test_radius_needs_a_square(backend, rectangular):
    with pytest.raises(errors.ShapeError, match="expected a square matrix for spectral_radius"):
        backend.sample(rectangular, (4, 6), spectral_radius=0.9)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "bool"])
def test_dtypes(family, dtype):
    message = f"expected a real floating dtype out of float16, .*received {dtype}"
    calls = [
        lambda: getattr(deq_init.numpy, family)((4, 4), dtype=dtype),
        lambda: getattr(deq_init.jax, family)()(jax.random.key(0), (4, 4), dtype),
        lambda: getattr(deq_init.torch, family + "_")(
            torch.zeros(4, 4, dtype=getattr(torch, dtype))
        ),
        lambda: BACKENDS[list(BACKENDS)[-1]].sample(family, (4, 4), dtype=dtype),
    ]
    for call in calls:
        with pytest.raises(errors.DTypeError, match=message):
            call()


def test_dtypes_that_are_none():
    for call in (
        lambda: deq_init.numpy.random((4, 4), dtype="float99"),
        lambda: deq_init.jax.random()(jax.random.key(0), (4, 4), "float99"),
        lambda: deq_init.keras.Random()((4, 4), dtype="float99"),
    ):
        with pytest.raises(errors.DTypeError, match="received float99"):
            call()


@pytest.mark.parametrize("shape", [7, (3, -1), (2.5, 2), "ab"])
def test_shapes_that_are_none(shape):
    with pytest.raises(errors.ShapeError, match="expected a shape as a sequence"):
        deq_init.numpy.random(shape)


def test_unknown_family():
    with pytest.raises(errors.FamilyError, match=r"received 'gaussian'\. Use one of these"):
        families.get("gaussian")
    with pytest.raises(errors.FamilyError, match="Did you mean 'orthogonal'"):
        families.get("Orthogonl")


def test_torch_takes_a_seed_or_a_generator():
    with pytest.raises(errors.SeedError, match="expected a seed or a generator, received both"):
        deq_init.torch.random_(torch.zeros(3, 3), seed=1, generator=torch.Generator())


def test_torch_takes_a_tensor():
    with pytest.raises(errors.DTypeError, match=r"expected a torch\.Tensor, received ndarray"):
        deq_init.torch.random_(np.zeros((3, 3)))


@pytest.mark.parametrize(
    "call",
    [
        lambda w: deq_init.torch.goe_(w),
        lambda w: deq_init.torch.random_(w, gain=-1),
        lambda w: deq_init.torch.orthogonal_(w, spectral_radius=1.0),
        lambda w: deq_init.torch.random_(w, seed=-1),
        lambda w: deq_init.torch.rescale_(w, spectral_radius=1.0),
        lambda w: deq_init.torch.rescale_(w),
    ],
)
def test_torch_tensor_is_as_it_was(call):
    w = torch.full((2, 3), 7.0)
    with pytest.raises(errors.DeqInitError):
        call(w)
    assert torch.equal(w, torch.full((2, 3), 7.0))


def test_torch_tensor_is_as_it_was_after_a_fault_half_way(monkeypatch):
    def fault(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(torch.linalg, "solve_triangular", fault)
    w = torch.full((300, 300), 7.0)
    with pytest.raises(MemoryError):
        deq_init.torch.orthogonal_(w)
    assert torch.equal(w, torch.full((300, 300), 7.0))


@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("kind", ["spectral_norm", "spectral_radius"])
def test_rescale_refuses_what_no_factor_mends(fill, kind):
    for backend in BACKENDS.values():
        if backend.rescale is not None:
            with pytest.raises(errors.ScaleError, match=f"{kind} is finite and positive"):
                backend.rescale(np.full((4, 4), fill, np.float32), **{kind: 1.0})


def test_rescale_needs_one_target():
    for backend in BACKENDS.values():
        if backend.rescale is not None:
            with pytest.raises(errors.ScaleError, match="received neither"):
                backend.rescale(np.eye(3, dtype=np.float32))


def test_every_error_is_also_the_built_in_one():
    assert issubclass(errors.ShapeError, ValueError)
    assert issubclass(errors.DTypeError, TypeError)
    assert issubclass(errors.MissingFrameworkError, ImportError)


def test_keras_seed():
    with pytest.raises(errors.SeedError, match="received -3"):
        deq_init.keras.GOE(seed=-3)


@pytest.mark.parametrize("shape", [{3, 4}, {3: 4, 4: 3}, b"\x03\x03", "33", (True, 3)])
def test_what_is_no_shape(shape):
    with pytest.raises(errors.ShapeError, match="expected a shape as a sequence"):
        deq_init.numpy.random(shape)


@pytest.mark.parametrize("shape", [(2**40, 2**40), (2**70, 1), (2**70, 0)])
def test_more_entries_than_any_array_has(shape):
    with pytest.raises(errors.ShapeError, match=r"less than 2\*\*60 entries"):
        deq_init.numpy.random(shape)


@pytest.mark.parametrize("determinant", [np.array([1, -1]), True, 1.0, "1", 2])
def test_what_is_no_determinant(determinant):
    with pytest.raises(errors.ShapeError, match="expected determinant 1 or -1"):
        deq_init.numpy.orthogonal((4, 4), determinant=determinant)


def test_numpy_s_masked_arrays_and_default_dtype():
    with pytest.raises(errors.DTypeError, match="masked"):
        deq_init.numpy.rescale(np.ma.masked_less(np.eye(3), 0.5), spectral_norm=1.0)
    assert deq_init.numpy.random((3, 3), dtype=None).dtype == np.float32
