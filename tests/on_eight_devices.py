"""What ``test_jax_sharded.py`` runs: JAX initializers over a mesh of eight devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import deq_init.jax

COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)\b"
)
ENTRYWISE = ("random", "goe", "antisymmetric")
SPECS = [P("x", None), P(None, "x"), P("x", "y")]
TARGETS = [
    ("random", {"gain": 0.9}),
    ("goe", {"gain": 0.9, "blocks": 2}),
    ("goe", {"spectral_norm": 0.9}),
    ("antisymmetric", {"spectral_radius": 0.9, "blocks": 2}),
    ("random", {"spectral_norm": 0.9, "blocks": 2}),
    ("random", {"spectral_radius": 0.9}),
    ("orthogonal", {"gain": 0.9}),
    ("orthogonal", {"gain": 0.9, "blocks": 2, "determinant": -1}),
]
KEY = jax.random.key(3)


def mesh_of(kind):
    assert jax.device_count() == 8
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))


def collectives(function, sharding):
    compiled = jax.jit(function, out_shardings=sharding).lower(KEY).compile()
    w = compiled(KEY)
    assert w.sharding == sharding
    text = compiled.as_text()
    assert "num_partitions=8" in text
    return w, set(COLLECTIVE.findall(text)), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("blocks", [None, 3, (4, 0)])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", ENTRYWISE)
def test_no_collectives_at_a_gain(family, spec, blocks):
    count, axis = blocks if isinstance(blocks, tuple) else (blocks or 1, 1)
    shape = tuple(96 * count if a == axis else 96 for a in (0, 1))
    init = getattr(deq_init.jax, family)(0.9, blocks=blocks)
    sharding = NamedSharding(mesh_of(AxisType.Auto), spec)
    w, found, temporary = collectives(lambda key: init(key, shape), sharding)
    assert found == set()
    assert temporary < w.nbytes / 8
    np.testing.assert_array_equal(w, init(KEY, shape))


@pytest.mark.parametrize("blocks", [None, 2])
@pytest.mark.parametrize("family", ENTRYWISE)
def test_no_collectives_in_a_convolution_kernel(family, blocks):
    shape = (2, 2, 16, 64 * (blocks or 1))
    init = getattr(deq_init.jax, family)(0.9, blocks=blocks, dtype=jnp.bfloat16)
    sharding = NamedSharding(mesh_of(AxisType.Auto), P(None, None, "x", "y"))
    w, found, _ = collectives(lambda key: init(key, shape), sharding)
    assert found == set()
    np.testing.assert_array_equal(w, init(KEY, shape))


@pytest.mark.parametrize("family", ENTRYWISE)
def test_no_collectives_in_a_stack(family):
    """Of shape (stack, heads, in, entries), sharded over the stack and the heads."""
    init = getattr(deq_init.jax, family)(0.9, batch_axes=0, in_axes=2, blocks=2)
    sharding = NamedSharding(mesh_of(AxisType.Auto), P("x", "y"))
    w, found, _ = collectives(lambda key: init(key, (8, 8, 64, 16)), sharding)
    assert found == set()
    np.testing.assert_array_equal(w, init(KEY, (8, 8, 64, 16)))


def test_orthogonal_stacks_are_placed():
    init = deq_init.jax.orthogonal(0.9, batch_axes=0)
    sharding = NamedSharding(mesh_of(AxisType.Auto), P("x", "y"))
    w = jax.jit(lambda key: init(key, (4, 8, 8)), out_shardings=sharding)(KEY)
    assert w.sharding == sharding
    np.testing.assert_allclose(w, init(KEY, (4, 8, 8)), atol=1e-6)


def test_the_test_would_see_a_transpose():
    def mirrored(key):
        upper = jnp.triu(jax.random.normal(key, (96, 96)))
        return upper + jnp.triu(upper, 1).T

    sharding = NamedSharding(mesh_of(AxisType.Auto), P("x", None))
    assert collectives(mirrored, sharding)[1]


@pytest.mark.parametrize(("family", "scale"), TARGETS)
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_out_sharding_gives_the_same_values(kind, family, scale):
    shape, spec, mesh = (32, 32 * scale.get("blocks", 1)), P("x", "y"), mesh_of(kind)
    init = getattr(deq_init.jax, family)(**scale)
    expected = init(KEY, shape)
    sharding = NamedSharding(mesh, spec)
    with jax.set_mesh(mesh):
        arrays = [
            init(KEY, shape, out_sharding=spec),
            init(KEY, shape, out_sharding=sharding),
            jax.jit(lambda key: init(key, shape, out_sharding=spec))(KEY),
            jax.jit(lambda key: init(key, shape), out_shardings=sharding)(KEY),
        ]
        replicated = init(KEY, shape)
    arrays.append(jax.jit(lambda key: init(key, shape), out_shardings=sharding)(KEY))
    for w in arrays:
        assert w.sharding == sharding
        assert w.addressable_shards[0].data.shape == (8, shape[1] // 2)
        np.testing.assert_allclose(w, expected, atol=1e-6)
    np.testing.assert_allclose(replicated, expected, atol=1e-6)


@pytest.mark.parametrize("family", ENTRYWISE)
def test_out_sharding_makes_no_copy_of_the_whole(family):
    init = getattr(deq_init.jax, family)(0.9)
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        function = jax.jit(lambda key: init(key, (512, 512), out_sharding=P("x", "y")))
        compiled = function.lower(KEY).compile()
        assert jax.typeof(init(KEY, (512, 512), out_sharding=P("x", "y"))).sharding.spec == P(
            "x", "y"
        )
    assert COLLECTIVE.findall(compiled.as_text()) == []
    assert compiled.memory_analysis().temp_size_in_bytes < 512 * 512 * 4 / 8


def test_out_sharding_on_a_mesh_of_both_kinds():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit, AxisType.Auto))
    init = deq_init.jax.goe(spectral_norm=0.9)
    with jax.set_mesh(mesh):
        w = init(KEY, (32, 32), out_sharding=P("x", None))
    np.testing.assert_allclose(w, init(KEY, (32, 32)), atol=1e-6)
    assert w.sharding.spec == P("x", None)


@pytest.mark.parametrize(("family", "scale"), TARGETS)
def test_shard_map_with_folded_keys(family, scale):
    init = getattr(deq_init.jax, family)(**scale)
    shape = (16, 16 * scale.get("blocks", 1))

    def local(key):
        return init(jax.random.fold_in(key, jax.lax.axis_index("x")), shape)

    mesh = mesh_of(AxisType.Auto)
    shards = jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=P("x"))(KEY)
    for index, shard in enumerate(np.split(np.asarray(shards), 4)):
        np.testing.assert_allclose(shard, init(jax.random.fold_in(KEY, index), shape), atol=1e-6)


@pytest.mark.parametrize(("family", "scale"), [("orthogonal", {}), ("goe", {"spectral_norm": 0.9})])
def test_vmap_over_sharded_keys(family, scale):
    """On an explicit mesh, where a loop over the shards' axis would be an error."""
    draw = jax.vmap(lambda key: getattr(deq_init.jax, family)(**scale)(key, (8, 8)))
    keys = jax.random.split(KEY, 8)
    expected = draw(keys)
    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        found = jax.jit(draw)(jax.device_put(keys, P("x")))
        assert jax.typeof(found).sharding.spec == P("x", None, None)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_shard_map_knows_that_shards_differ():
    def local(key):
        return deq_init.jax.goe()(jax.random.fold_in(key, jax.lax.axis_index("x")), (16, 16))

    with pytest.raises(ValueError, match="replicated"):
        jax.shard_map(local, mesh=mesh_of(AxisType.Auto), in_specs=P(), out_specs=P())(KEY)


def test_other_keys_keep_the_law_when_sharded():
    key = jax.random.key(3, impl="rbg")
    sharding = NamedSharding(mesh_of(AxisType.Auto), P("x", None))
    w = jax.jit(lambda key: deq_init.jax.goe()(key, (64, 64)), out_shardings=sharding)(key)
    np.testing.assert_array_equal(w, np.asarray(w).T)
    assert abs(np.std(w) * 8 - 1) < 0.1


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("family", ["goe", "orthogonal"])
def test_initialize_keeps_shardings(family, kind):
    sharding = NamedSharding(mesh_of(kind), P("x", "y"))
    params = {"w": jax.device_put(jnp.zeros((32, 32)), sharding), "v": jnp.zeros((32, 32))}
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        for name, x in params.items()
    }
    expected, _ = deq_init.jax.initialize(
        {name: jnp.zeros((32, 32)) for name in params}, family, key=KEY, verbose=False
    )
    for given in (params, shapes):
        new, _ = deq_init.jax.initialize(given, family, key=KEY, verbose=False)
        for name, leaf in params.items():
            assert new[name].sharding == leaf.sharding
            np.testing.assert_allclose(new[name], expected[name], atol=1e-6)
    with jax.set_mesh(sharding.mesh):
        new = jax.jit(
            lambda p: deq_init.jax.initialize(p, family, key=KEY, where="w", verbose=False)[0]
        )({"w": params["w"]})
    np.testing.assert_allclose(new["w"], expected["w"], atol=1e-6)
    if kind == AxisType.Explicit:
        assert new["w"].sharding == sharding
