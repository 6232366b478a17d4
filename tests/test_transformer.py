"""DEQTransformer: unrolled autodiff, PyTorch against JAX, its options, and what is no request."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deq_init import transformer as core
from deq_init.errors import DTypeError, ModelError, SelectionError, ShapeError, SolverError
from deq_init.jax import models as jax_models
from deq_init.torch import models as torch_models

VOCABULARY, WIDTH, HEADS, BATCH, LENGTH, SEED = 11, 8, 2, 3, 5, 7
QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
RTOL = {"float32": 1e-6, "float64": 1e-13}


def tokens(batch=BATCH):
    return np.random.default_rng(3).integers(0, VOCABULARY, (batch, LENGTH))


def options(dtype, **given):
    return {"method": "plain", "rtol": RTOL[dtype], "max_steps": 300} | given


def in_torch(dtype="float64", family="orthogonal", gain=0.4, seed=SEED, **given):
    return torch_models.DEQTransformer(
        VOCABULARY,
        WIDTH,
        HEADS,
        family=family,
        gain=gain,
        seed=seed,
        dtype=getattr(torch, dtype),
        **options(dtype, **given),
    )


def disturb(arrays):
    """Biases and normalizations that are not those of a new model."""
    rng = np.random.default_rng(5)
    return {
        name: value
        if value.ndim == 2
        else (value + 0.2 * rng.standard_normal(value.shape)).astype(value.dtype)
        for name, value in arrays.items()
    }


def run_torch(model, z0=None):
    """The fixed point, the loss of the next token, and the gradients as kernels (in, out)."""
    t = torch.from_numpy(tokens())
    logits, solution = model(t, z0)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), t[:, 1:].flatten())
    assert solution.converged.all()
    own = model._own()
    found = torch.autograd.grad(loss, list(own.values()))
    gradients = {
        name: g.numpy() if name == "embedding" or g.ndim < 2 else g.numpy().T
        for name, g in zip(own, found, strict=True)
    }
    return solution.value.detach().numpy(), loss.item(), gradients


def run_jax(model, params):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def compiled(params, t):
        def loss(params):
            logits, solution = model.apply(params, t)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), t[:, 1:, None], axis=2)
            return -picked.mean(), solution

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, solution), gradients = compiled(params, jnp.asarray(tokens(), jnp.int32))
    assert np.asarray(solution.converged).all()
    gradients = {name: np.asarray(g) for name, g in gradients.items()}
    return np.asarray(solution.value), float(loss), gradients


def x64(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def agree(found, expected, atol):
    for name, (a, b) in {"z": (found[0], expected[0]), "loss": (found[1], expected[1])}.items():
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)
    assert found[2].keys() == expected[2].keys()
    for name, value in expected[2].items():
        assert abs(value).max() > 1e-3, name
        np.testing.assert_allclose(found[2][name], value, rtol=0, atol=atol, err_msg=name)


CELLS = {
    "post": {"gain": 0.4},
    "pre": {"norm": "pre", "activation": "gelu", "causal": False, "gain": 0.3},
    "none": {"norm": "none", "activation": "tanh", "gain": 0.3, "branch_scale": 0.7, "skip": 0.2},
}


def both(cell, dtype="float64", **given):
    """A PyTorch model, and JAX's with its parameters."""
    options_of = CELLS[cell] | given
    model = in_torch(dtype, **options_of)
    model.from_arrays(disturb(model.to_arrays()))
    options_of = {name: value for name, value in options_of.items() if name != "gain"}
    twin = jax_models.DEQTransformer(VOCABULARY, WIDTH, HEADS, **options(dtype, **options_of))
    return model, twin


@pytest.mark.parametrize("method", ["plain", "anderson"])
@pytest.mark.parametrize("cell", CELLS)
def test_implicit_gradients_equal_unrolled_ones(cell, method):
    model, _ = both(cell, method=method)
    found = run_torch(model)
    model.method, model.gradient = "plain", "unrolled"
    unrolled = run_torch(model)
    agree(found, unrolled, 1e-8)
    # What is compared would show another gradient.
    model.gradient = "one_step"
    assert abs(run_torch(model)[2]["qkv"] - unrolled[2]["qkv"]).max() > 1e-5


def test_the_fixed_point_is_the_written_out_block_s():
    """As in the core's table, one head and one token after the other."""
    model, _ = both("post")
    p = {name: torch.from_numpy(value) for name, value in model.to_arrays().items()}
    value, _, _ = run_torch(model)
    t = torch.from_numpy(tokens())
    positions = torch.from_numpy(core.positions(LENGTH, WIDTH))
    u = (p["embedding"][t] * WIDTH**0.5 + positions) @ p["inject"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return unit * p[f"{name}_scale"] + p[f"{name}_bias"]

    z = torch.from_numpy(value)
    qkv = z @ p["qkv"] + u + p["qkv_bias"]
    size = WIDTH // HEADS
    mixed = torch.zeros_like(z)
    for head in range(HEADS):
        q, k, v = (qkv[:, :, i * WIDTH :][:, :, head * size : (head + 1) * size] for i in range(3))
        for i in range(LENGTH):
            scores = (q[:, i, None] * k[:, : i + 1]).sum(-1) / size**0.5
            weights = scores.softmax(-1)[:, :, None]
            mixed[:, i, head * size : (head + 1) * size] = (weights * v[:, : i + 1]).sum(1)
    h = norm("norm1", z + mixed @ p["out"] + p["out_bias"])
    inner = torch.relu(h @ p["up"] + p["up_bias"])
    again = norm("norm2", h + inner @ p["down"] + p["down_bias"])
    torch.testing.assert_close(again, z, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("cell", "dtype"),
    [("post", "float64"), ("pre", "float64"), ("none", "float64"), ("post", "float32")],
)
def test_pytorch_agrees_with_jax(cell, dtype):
    with x64(dtype):
        model, twin = both(cell, dtype)
        expected = run_jax(twin, twin.from_arrays(model.to_arrays()))
    agree(run_torch(model), expected, {"float32": 1e-4, "float64": 1e-9}[dtype])


WHERE = {"down": {"family": "goe", "gain": 0.3}, "out": {"spectral_norm": 0.5}}


@pytest.mark.parametrize("family", ["random", "orthogonal", "goe", "antisymmetric"])
def test_one_seed_one_model_in_pytorch_and_jax(family):
    given = {"family": family, "gain": 0.4, "where": WHERE}
    with x64("float64"):
        twin = jax_models.DEQTransformer(VOCABULARY, WIDTH, HEADS)
        params = twin.init(jax.random.key(SEED), **given, dtype=jnp.float64)
        expected = twin.to_arrays(params)
    model = in_torch(**given)
    arrays = model.to_arrays()
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(arrays[name], value, rtol=0, atol=1e-9, err_msg=name)
    assert abs(np.linalg.norm(arrays["out"], 2) - 0.5) < 1e-4
    other = in_torch(**given, seed=SEED + 1).to_arrays()
    assert all((arrays[name] != other[name]).any() for name in core.STREAMS)
    model.reset_parameters(SEED + 1)
    assert all((model.to_arrays()[name] == other[name]).all() for name in other)


def test_a_checkpoint_comes_back():
    model, _ = both("post", "float32")
    other = in_torch("float32", seed=1).from_arrays(model.to_arrays())
    t = torch.from_numpy(tokens())
    assert torch.equal(other(t)[0], model(t)[0])
    state = in_torch("float32", seed=2)
    state.load_state_dict(model.state_dict())
    assert torch.equal(state(t)[0], model(t)[0])
    with pytest.raises(ModelError, match="expected a checkpoint of kernels"):
        other.from_arrays({"qkv": np.zeros((3, 3))})
    assert torch.equal(other(t)[0], model(t)[0])


def test_a_later_token_changes_no_earlier_logits():
    t = torch.from_numpy(tokens())
    changed = t.clone()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    for causal in (True, False):
        model = in_torch(causal=causal)
        distance = (model(t)[0] - model(changed)[0])[:, :-1].abs().max()
        assert (distance < 1e-9) == causal


def test_a_start_leads_to_the_same_fixed_point():
    model = in_torch()
    z0 = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0)).double()
    agree(run_torch(model, z0), run_torch(model), 1e-9)
    with pytest.raises(ShapeError, match="expected a start z0"):
        model(torch.from_numpy(tokens()), z0[:1])


def test_a_looped_transformer_is_so_many_applications():
    loops = 4
    model = in_torch(
        norm="none", skip=1.0, branch_scale=0.25, max_steps=loops + 1, gradient="unrolled"
    )
    t = torch.from_numpy(tokens())
    injected = model.inject(t)
    z = torch.zeros(BATCH, LENGTH, WIDTH, dtype=torch.float64)
    for _ in range(loops):
        z = model.cell(z, injected)
    expected = torch.autograd.grad((z**2).sum(), model.qkv)[0]
    _, solution = model(t)
    torch.testing.assert_close(solution.value, z)
    torch.testing.assert_close(
        torch.autograd.grad((solution.value**2).sum(), model.qkv)[0], expected
    )


def test_a_lost_sequence_touches_no_other():
    model = in_torch("float32", rtol=1e-5)
    t = torch.from_numpy(tokens())
    t[t == 4] = 3
    t[1, 2] = 4
    with torch.no_grad():
        model.embedding[4] = torch.nan
    _, solution = model(t)
    assert solution.converged.tolist() == [True, False, True]
    assert solution.residual.isinf().tolist() == [False, True, False]
    block = [model.qkv, model.injection, model.out, model.up, model.down, model.norm2_scale]
    found = torch.autograd.grad(solution.value[[0, 2]].square().sum(), block)
    _, kept = model(t[[0, 2]])
    expected = torch.autograd.grad(kept.value.square().sum(), block)
    for a, b in zip(found, expected, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gradient", ["implicit", "unrolled", "one_step"])
def test_no_sequences(gradient):
    model = in_torch("float32", gradient=gradient)
    logits, solution = model(torch.from_numpy(tokens(0)))
    assert tuple(logits.shape) == (0, LENGTH, VOCABULARY)
    assert tuple(solution.converged.shape) == (0,)
    logits.sum().backward()
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    model = torch_models.DEQTransformer(
        VOCABULARY, WIDTH, HEADS, gain=0.4, seed=SEED, dtype=getattr(torch, dtype), rtol=1e-2
    )
    logits, solution = model(torch.from_numpy(tokens()))
    assert str(logits.dtype) == f"torch.{dtype}"
    assert solution.converged.all()
    logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    expected, _ = in_torch("float32")(torch.from_numpy(tokens()))
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_bad_input():
    model = in_torch("float32")
    for wrong in (VOCABULARY, -1):
        t = torch.from_numpy(tokens())
        t[0, 0] = wrong
        with pytest.raises(ShapeError, match=rf"expected tokens in \[0, {VOCABULARY}\), received"):
            model(t)
    for shape in ((LENGTH,), (2, 3, LENGTH), (2, 0)):
        with pytest.raises(ShapeError, match=r"expected tokens of shape \(batch, length\)"):
            model(torch.zeros(shape, dtype=torch.int64))
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(DTypeError, match="expected tokens as integers, received torch"):
            model(torch.zeros(1, LENGTH, dtype=dtype))


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ShapeError, "expected heads that divide the width", {"heads": 3}),
        (ShapeError, "expected vocabulary as a positive integer", {"vocabulary": 0}),
        (ModelError, "expected norm 'post', 'pre' or 'none'", {"norm": "after"}),
        (ModelError, "expected skip as a finite number", {"skip": np.inf}),
        (SelectionError, "expected matrices out of qkv", {"where": {"W": {}}}),
        (SolverError, "expected plain iteration", {"gradient": "unrolled", "method": "anderson"}),
    ],
)
def test_bad_requests(error, message, given):
    with pytest.raises(error, match=message):
        torch_models.DEQTransformer(**{"vocabulary": 11, "width": 8, "heads": 2} | given)
