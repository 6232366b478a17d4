"""JAX's own ways: keys, options, transformations, and a whole model's weights."""

import dataclasses
import hashlib
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deq_init.jax
import deq_init.numpy
from deq_init import draws, errors, selection
from deq_init import plan as plans
from deq_init import scale as scales
from deq_init.jax import normals
from deq_init.jax import primitives as jax_primitives
from deq_init.numpy import primitives as numpy_primitives

FAMILIES = ("random", "orthogonal", "goe", "antisymmetric")
KEY = jax.random.key(3)


def entries(shape, dtype="float32"):
    plan = plans.plan("random", shape, "in_out", scales.resolve(1.0))
    return jax.jit(lambda key: normals.Entries(key, plan, dtype)[:, :])


def init(family, **options):
    return getattr(deq_init.jax, family)(**options)


# The field of normals


@pytest.mark.parametrize(
    ("x64", "dtype"), [(False, "float32"), (True, "float32"), (True, "float64")]
)
@pytest.mark.parametrize("shape", [(1, 1), (65, 65), (7, 300), (3, 2, 5, 4)])
def test_normals_are_those_of_jax_to_the_bit(shape, x64, dtype):
    with jax.enable_x64(x64):
        expected = jax.jit(lambda key: jax.random.normal(key, shape, dtype))(KEY)
        assert expected.dtype == dtype
        np.testing.assert_array_equal(entries(shape, dtype)(KEY), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", ["goe", "antisymmetric"])
def test_symmetric_matrices_are_those_of_the_upper_triangle_to_the_bit(family, dtype):
    n = 64  # a power of 4, so that the factor is exact
    with jax.enable_x64(dtype == "float64"):
        g = np.triu(jax.random.normal(KEY, (n, n), dtype))
        sign = 1 if family == "goe" else -1
        diagonal = np.diag(np.diag(g)) * g.dtype.type(np.sqrt(2) if family == "goe" else 0)
        expected = (np.triu(g, 1) + sign * np.triu(g, 1).T + diagonal) / 8
        np.testing.assert_array_equal(init(family)(KEY, (n, n), dtype), expected)


def test_normals_do_not_depend_on_the_option_that_jax_has_for_them():
    expected = [init(family, blocks=2)(KEY, (16, 32)) for family in FAMILIES]
    plain = jax.random.normal(KEY, (16, 16))
    with jax.threefry_partitionable(False):
        assert not np.array_equal(jax.random.normal(KEY, (16, 16)), plain)
        for family, w in zip(FAMILIES, expected, strict=True):
            np.testing.assert_array_equal(init(family, blocks=2)(KEY, (16, 32)), w)


@pytest.mark.parametrize("x64", [False, True])
def test_counters_have_64_bits(x64):
    rng = np.random.default_rng(0)
    for stride in (1, 3, 2**16 - 1, 2**16, 2**17 + 5, 2**31 + 7, 2**32 - 1):
        rows = np.append(rng.integers(0, 2**32, 100), [0, 2**16, 2**32 - 1])
        columns = np.append(rng.integers(0, stride, 100), [0, stride - 1, stride - 1])
        with jax.enable_x64(x64):
            high, low = normals.counters(
                jnp.asarray(rows, jnp.uint32), jnp.asarray(columns, jnp.uint32), stride
            )
        assert high.dtype == low.dtype == jnp.uint32
        received = [int(h) << 32 | int(x) for h, x in zip(high, low, strict=True)]
        expected = [int(i) * stride + int(j) for i, j in zip(rows, columns, strict=True)]
        assert received == expected


@pytest.mark.parametrize("family", ["random", "goe"])
def test_entries_of_a_matrix_of_more_than_2_to_the_32(family):
    n, seed = 2**17, 5

    def corner(key):
        return init(family)(key, (n, n))[-3:, -4:]

    compiled = jax.jit(corner).lower(jax.random.key(seed)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20
    rows, columns = range(n - 3, n), range(n - 4, n)
    g = draws.normals(numpy_primitives.xp, (0, seed), rows, columns, n, "float32")
    if family == "goe":
        g[:, 1:] = np.triu(g[:, 1:]) + np.triu(g[:, 1:], 1).T
        g[:, 1:] += np.diag(np.diag(g[:, 1:])) * np.float32(np.sqrt(2) - 1)
        g[:, 0] = [draws.normals(
            numpy_primitives.xp, (0, seed), range(n - 4, n - 3), range(n - 3, n), n, "float32"
        )[0, i] for i in range(3)]  # fmt: skip
    received = np.asarray(compiled(jax.random.key(seed))) * np.sqrt(n)
    np.testing.assert_allclose(received, g, rtol=1e-5)


# Keys


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("blocks", [None, 2])
@pytest.mark.parametrize("scale", [{"gain": 0.9}, {"spectral_norm": 0.9}])
def test_typed_and_raw_keys_agree(family, blocks, scale):
    shape = (16, 16 * (blocks or 1))
    function = init(family, blocks=blocks, **scale)
    np.testing.assert_array_equal(function(KEY, shape), function(jax.random.PRNGKey(3), shape))


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_keys_give_their_own_normals(family, implementation):
    key = jax.random.key(3, impl=implementation)
    g = np.asarray(jax.random.normal(key, (16, 16)))
    w = np.asarray(init(family)(key, (16, 16)))
    if family == "random":
        np.testing.assert_allclose(w, g / 4, rtol=1e-6)
    elif family == "orthogonal":
        np.testing.assert_allclose(w @ w.T, np.eye(16), atol=1e-5)
    else:
        np.testing.assert_allclose(np.triu(w, 1), np.triu(g, 1) / 4, rtol=1e-6)
    assert not np.array_equal(w, init(family)(KEY, (16, 16)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("blocks", [None, 2])
def test_the_key_reuse_checker_sees_a_key_used_twice(family, blocks):
    with jax.debug_key_reuse(True):
        key, shape = jax.random.key(3), (8, 8 * (blocks or 1))
        init(family, blocks=blocks)(key, shape)
        with pytest.raises(jax.errors.KeyReuseError):
            init(family, blocks=blocks)(key, shape)


@pytest.mark.parametrize(
    "key", [0, None, "x", jax.random.split(KEY, 2), jax.random.split(jax.random.PRNGKey(0), 2)]
)
def test_what_is_no_key_gets_a_hint(key):
    message = r"expected one key.*Pass jax\.random\.key\(0\).*jax\.vmap"
    with pytest.raises(errors.SeedError, match=message):
        init("random")(key, (4, 4))
    with pytest.raises(errors.SeedError, match=message):
        deq_init.jax.initialize({"w": jnp.zeros((4, 4))}, "goe", key=key)


# Options and transformations


@pytest.mark.parametrize("dtype", [float, "float64", jnp.float64])
def test_float64_without_x64_is_what_jax_makes_of_it(dtype):
    def caught(f):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            w = f(KEY, (4, 4), dtype)
        return w, any("float64 " in str(warning.message) for warning in found)

    expected, warned = caught(jax.nn.initializers.orthogonal())
    w, also_warned = caught(init("orthogonal"))
    assert (w.dtype, also_warned) == (expected.dtype, warned) == (jnp.float32, dtype is not float)
    np.testing.assert_array_equal(w, init("orthogonal")(KEY, (4, 4)))
    assert caught(jax.jit(init("goe"), static_argnums=(1, 2)))[0].dtype == jnp.float32


def test_initialize_takes_float64_leaves_for_what_jax_makes_of_them():
    leaves = {"u": np.zeros((4, 4)), "w": jax.ShapeDtypeStruct((4, 4), np.float64)}
    params, summary = deq_init.jax.initialize(leaves, "goe", key=KEY, verbose=False)
    assert {w.dtype for w in params.values()} == {jnp.dtype("float32")}
    assert {entry.dtype for entry in summary.entries} == {"float32"}


@pytest.mark.parametrize("shape", [(2**33, 2**20), (2**17, 2**15, 2, 2)])
def test_rows_that_32_bits_do_not_count(shape):
    with pytest.raises(errors.ShapeError, match=r"less than 2\*\*32 rows"):
        jax.eval_shape(lambda key: init("random")(key, shape), KEY)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_the_radius_of_a_very_small_or_large_jacobian(scale):
    """LAPACK's eigenvalues of such a matrix are off by factors of 100 to 1000."""
    w = np.random.default_rng(1).standard_normal((6, 6)).astype(np.float32)
    found = deq_init.jax.jacobian_spectral_radius(lambda z: z @ (w * scale), jnp.zeros((1, 6)))
    np.testing.assert_allclose(found.value / scale, np.abs(np.linalg.eigvals(w)).max(), rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [{"gain": 0.9}, {"spectral_norm": 0.9}, {"spectral_radius": 0.9}])
def test_under_jax_s_strictest_options(family, scale):
    expected = init(family, **scale)(KEY, (33, 33))
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.debug_nans(True),
        jax.debug_infs(True),
    ):
        w = init(family, **scale)(KEY, (33, 33))
        np.testing.assert_array_equal(w, expected)
        init(family, blocks=2, **scale)(KEY, (34, 68), jnp.bfloat16)
        deq_init.jax.rescale(w, spectral_norm=0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_x64_does_not_change_a_float32_matrix(family):
    expected = init(family)(KEY, (33, 33), jnp.float32)
    with jax.enable_x64(True):
        w = init(family)(KEY, (33, 33), jnp.float32)
        assert init(family)(KEY, (33, 33)).dtype == jnp.float64
    assert w.dtype == jnp.float32
    np.testing.assert_allclose(w, expected, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options", [{"gain": 0.9}, {"gain": 0.9, "blocks": 2}, {"spectral_radius": 0.9}]
)
def test_vmap_over_keys_is_a_loop(family, options):
    shape = (16, 16 * options.get("blocks", 1))
    keys = jax.random.split(KEY, 3)
    function = init(family, **options)
    batch = jax.vmap(lambda key: function(key, shape))(keys)
    for w, key in zip(batch, keys, strict=True):
        np.testing.assert_allclose(w, function(key, shape), atol=1e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of LAPACK on the CPU")
@pytest.mark.parametrize(
    ("family", "n", "scale", "kernel"),
    [
        ("orthogonal", 8, {}, "orgqr"),
        ("orthogonal", 1100, {}, "trsm"),
        ("random", 8, {"spectral_norm": 0.9}, "gesdd"),
        ("goe", 8, {"spectral_norm": 0.9}, "syevd"),
        ("random", 8, {"spectral_radius": 0.9}, "geev"),
        ("goe", 512, {"spectral_norm": 0.9}, "syevd"),
        ("random", 2048, {"spectral_radius": 0.9}, "geev"),
    ],
)
def test_vmap_makes_no_batches_of_lapack_s(family, n, scale, kernel):
    """jaxlib 0.10 splits them over threads that then may wait for each other, for ever."""
    draw = jax.jit(jax.vmap(lambda key: init(family, **scale)(key, (n, n))))
    text = draw.lower(jax.random.split(KEY, 3)).as_text()
    calls = re.findall(r"custom_call @lapack_.*-> (.*)", text)
    assert any(f"lapack_s{kernel}_ffi" in line for line in text.splitlines())
    results = [shape for call in calls for shape in re.findall(r"tensor<([0-9x]*)x?[a-z]", call)]
    assert results
    assert all(shape.strip("x").count("x") <= 1 for shape in results)


def test_a_norm_that_is_decomposed_has_a_gradient():
    """That of the largest singular value: u vᵀ; with vmap around it, too."""
    w = np.random.default_rng(0).standard_normal((3, 6, 6)).astype(np.float32)
    u, _, vt = np.linalg.svd(w)
    found = jax.vmap(jax.grad(jax_primitives.xp.spectral_norm))(w)
    np.testing.assert_allclose(found, u[:, :, :1] @ vt[:, :1], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_eval_shape(family):
    w = jax.eval_shape(lambda key: init(family)(key, (16, 16), jnp.bfloat16), KEY)
    assert (w.shape, w.dtype) == ((16, 16), jnp.bfloat16)


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0)])
def test_empty_arrays(shape):
    assert init("random")(KEY, shape).shape == shape


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_checkpoint_through_a_model_that_initializes(family):
    @jax.checkpoint
    def model(x):
        return init(family, gain=0.9)(KEY, (16, 16)) @ x

    x = jnp.arange(16.0)
    w = np.asarray(init(family, gain=0.9)(KEY, (16, 16)))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(model(x) ** 2)))(x)
    np.testing.assert_allclose(gradient, 2 * w.T @ (w @ np.arange(16.0)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sharding", ["x", object()])
def test_a_sharding_that_is_none(sharding):
    with pytest.raises(errors.ShardingError, match="expected out_sharding"):
        init("random")(KEY, (4, 4), out_sharding=sharding)


def test_a_partition_without_a_mesh():
    with pytest.raises(errors.ShardingError, match="set_mesh"):
        init("random")(KEY, (4, 4), out_sharding=jax.sharding.PartitionSpec("x"))


@pytest.mark.parametrize("shape", [(1024, 1024), (1500, 300), (300, 1500)])
def test_float32_orthogonality(shape):
    q = np.asarray(init("orthogonal")(KEY, shape), np.float64)
    gram = q.T @ q if shape[0] >= shape[1] else q @ q.T
    assert np.abs(gram - np.eye(min(shape))).max() < 1e-6


# A whole model


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cell:
    recurrent: jax.Array
    bias: jax.Array


def model():
    return {
        "cell": Cell(jnp.zeros((16, 16)), jnp.zeros(16)),
        "qkv": {"kernel": jnp.zeros((16, 48), jnp.bfloat16)},
        "embed": {"embedding": jnp.ones((50, 16))},
        "query": {"kernel": jnp.ones((16, 4, 4)), "bias": jnp.ones((4, 4))},
        "steps": 7,
        "act": jnp.tanh,
        "key": jax.random.key(0),
    }


def test_initialize_sets_what_the_family_can_be_and_leaves_the_rest(capsys):
    params = model()
    new, summary = deq_init.jax.initialize(params, "random", 0.5, key=KEY)
    assert summary.names == ("cell/recurrent", "qkv/kernel", "query/kernel")
    assert capsys.readouterr().out.strip() == str(summary)
    assert isinstance(new["cell"], Cell)
    assert new["qkv"]["kernel"].dtype == jnp.bfloat16
    assert (new["embed"]["embedding"] == 1).all()
    assert (new["query"]["bias"] == 1).all()
    assert (new["steps"], new["act"]) == (7, jnp.tanh)
    assert not params["cell"].recurrent.any()
    notes = {entry.name: entry.note for entry in summary.entries}
    assert notes["embed/embedding"] == "embedding"
    assert notes["query/kernel"] == "random, gain 0.5, 16 x 16"
    assert notes["query/bias"] == "bias"
    assert notes["key"] == "not a real floating dtype"


@pytest.mark.parametrize("family", FAMILIES)
def test_initialize_gives_each_weight_the_portable_seed_of_its_name(family):
    params, summary = deq_init.jax.initialize(
        {"a": {"w": jnp.zeros((16, 16))}, "w": np.zeros((16, 16), np.float32)},
        family, 0.5, key=jax.random.key(11), verbose=False,
    )  # fmt: skip
    assert summary.names == ("a/w", "w")
    for name, w in (("a/w", params["a"]["w"]), ("w", params["w"])):
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        own = jax.random.key(11)
        for word in np.frombuffer(digest, ">u4"):
            own = jax.random.fold_in(own, np.uint32(word))
        np.testing.assert_array_equal(w, init(family, gain=0.5)(own, (16, 16)))
        seed = selection.seed_of(11, name)
        expected = getattr(deq_init.numpy, family)((16, 16), 0.5, seed=seed)
        np.testing.assert_allclose(w, expected, atol=1e-5)


def test_arrays_of_one_name_are_different_matrices():
    params, summary = deq_init.jax.initialize(
        {"a": {"w": jnp.zeros((8, 8))}, "a/w": jnp.zeros((8, 8))}, "goe", key=KEY, verbose=False
    )
    assert summary.names == ("a/w", "a/w_2")
    assert (params["a"]["w"] != params["a/w"]).any()


def test_initialize_is_the_same_compiled_and_on_shapes_alone():
    def build(params, key):
        return deq_init.jax.initialize(params, "goe", 0.5, key=key, where="*/w", verbose=False)[0]

    params = {"cell": {"w": jnp.zeros((16, 16), jnp.float16), "b": jnp.ones(3)}}
    expected = build(params, KEY)
    assert expected["cell"]["w"].dtype == jnp.float16
    for new in (jax.jit(build)(params, KEY), build(jax.eval_shape(lambda: params), KEY)):
        np.testing.assert_array_equal(new["cell"]["w"], expected["cell"]["w"])
    assert isinstance(build(jax.eval_shape(lambda: params), KEY)["cell"]["w"], jax.Array)


def test_initialize_by_patterns_mappings_and_predicates():
    def chosen(where, **options):
        _, summary = deq_init.jax.initialize(
            model(), "orthogonal", key=KEY, where=where, verbose=False, **options
        )
        return summary.names

    assert chosen("cell/*rec*") == ("cell/recurrent",)
    assert chosen(lambda name, leaf: leaf.dtype == jnp.bfloat16) == ("qkv/kernel",)
    options = {"qkv/*": {"blocks": 3, "family": "goe", "spectral_norm": 0.3}}
    new, _ = deq_init.jax.initialize(model(), "random", key=KEY, where=options, verbose=False)
    for block in np.split(np.asarray(new["qkv"]["kernel"], np.float64), 3, axis=1):
        np.testing.assert_array_equal(block, block.T)
        assert abs(np.linalg.norm(block, 2) - 0.3) < 0.003


@pytest.mark.parametrize(("layout", "fan_in"), [("in_out", 64), ("out_in", 1024)])
def test_initialize_in_either_layout(layout, fan_in):
    """1024 · 64 entries: the standard deviation is known to 0.3 %; the other fan is off 4-fold."""
    params, _ = deq_init.jax.initialize(
        {"w": jnp.zeros((64, 1024))}, "random", key=KEY, layout=layout, verbose=False
    )
    assert abs(np.std(params["w"]) * fan_in**0.5 - 1) < 0.015


def test_initialize_checks_before_it_draws():
    with pytest.raises(errors.SelectionError, match="nothing"):
        deq_init.jax.initialize(model(), "random", key=KEY, where="nothing")
    with pytest.raises(errors.ShapeError, match="qkv/kernel"):
        deq_init.jax.initialize(model(), "goe", key=KEY, where="qkv/*")
    with pytest.raises(errors.ShapeError, match="in_out"):
        deq_init.jax.initialize(model(), "random", key=KEY, layout="io")
