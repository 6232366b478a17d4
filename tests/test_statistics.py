"""Each sampler against the exact laws of its family, and each test against its mistake.

False-alarm rate of each assertion 1e-6. Sample sizes make the power against the mistake named
beside the law more than 0.99. Seeds are fixed: the outcome of a run does not vary.
"""

import jax
import keras
import numpy as np
import pytest
import torch

import deq_init.jax
import deq_init.keras
import deq_init.numpy
import deq_init.torch

import laws


def numpy_seeds(family, shape, count):
    """The portable draws: they serve every backend, see test_families."""
    init = getattr(deq_init.numpy, family)
    return [init(shape, seed=seed, dtype=np.float64) for seed in range(count)]


def numpy_generator(family, shape, count):
    rng = np.random.default_rng(20240607)
    return [getattr(deq_init.numpy, family)(shape, seed=rng) for _ in range(count)]


def torch_generator(family, shape, count):
    generator = torch.Generator().manual_seed(20240607)
    init = getattr(deq_init.torch, family + "_")
    return [init(torch.empty(shape), generator=generator).numpy() for _ in range(count)]


def jax_keys(family, shape, count):
    init = getattr(deq_init.jax, family)()
    keys = jax.random.split(jax.random.key(20240607), count)
    kernels = jax.vmap(lambda key: init(key, shape[::-1]))(keys)
    return np.asarray(kernels).swapaxes(1, 2)


def keras_seed_generator(family, shape, count):
    names = {"random": "Random", "orthogonal": "Orthogonal", "goe": "GOE"}
    names["antisymmetric"] = "Antisymmetric"
    seed = keras.random.SeedGenerator(20240607)
    init = getattr(deq_init.keras, names[family])(seed=seed)
    kernels = [keras.ops.convert_to_numpy(init(shape[::-1])).T for _ in range(count)]
    return np.array(kernels)


SOURCES = [numpy_seeds, numpy_generator, torch_generator, jax_keys, keras_seed_generator]


# Samplers with one mistake each.


def _gaussian(shape, count, seed=1):
    return np.random.default_rng(seed).standard_normal((count, *shape))


def transposed_fan(shape, count):
    return _gaussian(shape, count) / np.sqrt(shape[0])


def five_percent_off(shape, count):
    return 1.05 * _gaussian(shape, count) / np.sqrt(shape[1])


def uniform_entries(shape, count):
    u = np.random.default_rng(1).uniform(-1, 1, (count, *shape))
    return u * np.sqrt(3 / shape[1])


def truncated_normal(shape, count):
    """Cut at two standard deviations and not standardised again: variance 0.774."""
    entries = _gaussian(shape, 2 * count).ravel()
    entries = entries[np.abs(entries) < 2][: count * shape[0] * shape[1]]
    return entries.reshape(count, *shape) / np.sqrt(shape[1])


def one_row_repeated(shape, count):
    row = _gaussian((1, shape[1]), count) / np.sqrt(shape[1])
    return np.broadcast_to(row, (count, *shape))


def _goe(a):
    return (a + a.swapaxes(1, 2)) / np.sqrt(2 * a.shape[-1])


def plain_diagonal(shape, count):
    """Variance 1/n on the diagonal, as off it."""
    w = _goe(_gaussian(shape, count))
    i = np.arange(shape[0])
    w[:, i, i] /= np.sqrt(2)
    return w


def plain_average(shape, count):
    """(A + Aᵀ) / 2 of entries of variance 1/n: half the variance."""
    return _goe(_gaussian(shape, count)) / np.sqrt(2)


def no_sign_fix(shape, count):
    """Q of LAPACK's QR as it comes."""
    return np.linalg.qr(_gaussian(shape, count))[0]


def single_reflection(shape, count):
    """The product of reflections with all but the first dropped."""
    v = _gaussian((shape[0], 1), count)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return np.eye(shape[0]) - 2 * v @ v.swapaxes(1, 2)


# law, family, shape (out, in), matrices, mistakes that it is there for
CASES = [
    (laws.random_entries, "random", (64, 32), 6, [transposed_fan, five_percent_off]),
    (laws.random_entries, "random", (32, 64), 6, [transposed_fan, truncated_normal]),
    (laws.random_entries_are_normal, "random", (64, 64), 4, [uniform_entries, truncated_normal]),
    (laws.random_quadratic_form, "random", (48, 32), 256, [one_row_repeated]),
    (laws.goe_diagonal, "goe", (64, 64), 8, [plain_diagonal, plain_average]),
    (laws.off_diagonal, "goe", (64, 64), 8, [plain_average]),
    (laws.goe_quadratic_form, "goe", (32, 32), 400, [plain_average]),
    (laws.off_diagonal, "antisymmetric", (64, 64), 8, [plain_average]),
    (laws.antisymmetric_form, "antisymmetric", (32, 32), 400, [plain_average]),
    (laws.haar_diagonal_signs, "orthogonal", (32, 32), 16, [no_sign_fix]),
    (laws.haar_determinants, "orthogonal", (32, 32), 64, [no_sign_fix]),
    (laws.haar_traces, "orthogonal", (32, 32), 16, [no_sign_fix, single_reflection]),
    (laws.haar_beta, "orthogonal", (32, 32), 400, [single_reflection]),
    (laws.haar_beta, "orthogonal", (48, 32), 400, []),
    (laws.haar_beta, "orthogonal", (32, 48), 400, []),
]
NAMES = [f"{law.__name__}-{family}-{m}x{n}" for law, family, (m, n), _, _ in CASES]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("law", "family", "shape", "count", "mistakes"), CASES, ids=NAMES)
def test_law(source, law, family, shape, count, mistakes):
    w = np.array(source(family, shape, count), dtype=np.float64)
    assert law(w) > laws.FALSE_ALARM


@pytest.mark.parametrize(
    ("law", "shape", "count", "mistake"),
    [
        pytest.param(law, shape, count, mistake, id=f"{name}-{mistake.__name__}")
        for name, (law, _, shape, count, mistakes) in zip(NAMES, CASES, strict=True)
        for mistake in mistakes
    ],
)
def test_law_finds_the_mistake(law, shape, count, mistake):
    assert law(mistake(shape, count)) < laws.FALSE_ALARM


def test_goe_off_diagonal_does_not_see_the_diagonal():
    """Why the diagonal has a test of its own."""
    assert laws.off_diagonal(plain_diagonal((64, 64), 8)) > laws.FALSE_ALARM
