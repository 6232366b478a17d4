"""Gradients of a fixed point and DEQFCN: unrolled autodiff, peers, and PyTorch against JAX."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
import torch
import torchdeq

import deq_init.jax
import deq_init.jax.implicit
import deq_init.torch
import deq_init.torch.implicit
from deq_init.errors import ActivationError, ModelError, ScaleError, ShapeError, SolverError
from deq_init.jax import models as jax_models
from deq_init.torch import models as torch_models

FORMS = ("out", "in")
ACTIVATIONS = ("tanh", "relu", "gelu")
INPUTS, WIDTH, CLASSES, BATCH, SEED = 5, 12, 3, 4, 11
GAIN = {"orthogonal": 0.6, "goe": 0.35, "random": 0.5, "antisymmetric": 0.35}
QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
RTOL = {"float32": 1e-6, "float64": 1e-13}


def samples(dtype="float64", batch=BATCH):
    return np.random.default_rng(3).standard_normal((batch, INPUTS)).astype(dtype)


def labels(batch=BATCH):
    return np.arange(batch) % CLASSES


def options(dtype, **given):
    return {
        "input_gain": 1.0,
        "bias": True,
        "method": "anderson",
        "rtol": RTOL[dtype],
        "max_steps": 400,
    } | given


def in_torch(dtype="float64", family="orthogonal", seed=SEED, **given):
    return torch_models.DEQFCN(
        INPUTS,
        WIDTH,
        CLASSES,
        family=family,
        gain=GAIN[family],
        seed=seed,
        dtype=getattr(torch, dtype),
        **options(dtype, **given),
    )


def run_torch(model, x):
    """The fixed point, the loss, and the gradients as kernels (in, out)."""
    x = torch.from_numpy(x).requires_grad_()
    logits, solution = model(x)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels(len(x))))
    names, parameters = zip(*model.named_parameters(), strict=True)
    *found, of_x = torch.autograd.grad(loss, [*parameters, x])
    gradients = {name: g.numpy().T for name, g in zip(names, found, strict=True)}
    assert solution.converged.all()
    return solution.value.detach().numpy(), loss.item(), gradients | {"x": of_x.numpy()}


def x64(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def in_jax(dtype="float64", **given):
    return jax_models.DEQFCN(INPUTS, WIDTH, CLASSES, **options(dtype, **given))


def run_jax(model, params, x):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def compiled(params, x):
        def loss(params, x):
            logits, solution = model.apply(params, x)
            picked = jnp.take_along_axis(
                jax.nn.log_softmax(logits), jnp.asarray(labels())[:, None], 1
            )
            return -picked.mean(), solution

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    (loss, solution), (gradients, of_x) = compiled(params, jnp.asarray(x))
    assert np.asarray(solution.converged).all()
    gradients = {name: np.asarray(g) for name, g in gradients.items()}
    return np.asarray(solution.value), float(loss), gradients | {"x": np.asarray(of_x)}


def agree(found, expected, atol):
    for name, (a, b) in {"z": (found[0], expected[0]), "loss": (found[1], expected[1])}.items():
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)
    assert found[2].keys() == expected[2].keys()
    for name, value in expected[2].items():
        assert abs(value).max() > 1e-3
        np.testing.assert_allclose(found[2][name], value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("method", ["anderson", "plain"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("form", FORMS)
def test_pytorch_implicit_gradients_equal_unrolled_ones(form, activation, method):
    cell = {"form": form, "activation": activation}
    found = run_torch(in_torch(**cell, method=method), samples())
    unrolled = run_torch(in_torch(**cell, method="plain", gradient="unrolled"), samples())
    agree(found, unrolled, 1e-8)
    # What is compared would show another gradient.
    other = run_torch(in_torch(**cell, method=method, gradient="one_step"), samples())
    assert abs(other[2]["W"] - unrolled[2]["W"]).max() > 1e-3


def test_pytorch_unrolled_gradients_are_those_of_a_written_out_loop():
    model = in_torch(method="plain", gradient="unrolled")
    found = run_torch(model, samples())
    x = torch.from_numpy(samples())
    z = torch.zeros(BATCH, WIDTH, dtype=torch.float64)
    for _ in range(200):
        z = torch.tanh(z @ model.W.T) + x @ model.U.T + model.c
    loss = torch.nn.functional.cross_entropy(z @ model.R.T + model.b, torch.from_numpy(labels()))
    for name, parameter in model.named_parameters():
        (expected,) = torch.autograd.grad(loss, parameter, retain_graph=True)
        np.testing.assert_allclose(found[2][name], expected.numpy().T, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("form", "activation", "method"), [("out", "gelu", "plain"), ("in", "relu", "batch")]
)
def test_jax_implicit_gradients_equal_unrolled_ones(form, activation, method):
    with x64("float64"):
        params = jax_initial("float64", "orthogonal")
        found, unrolled = (
            run_jax(
                in_jax(
                    form=form,
                    activation=activation,
                    method=method,
                    max_steps=120,
                    gradient=gradient,
                ),
                params,
                samples(),
            )
            for gradient in ("implicit", "unrolled")
        )
        agree(found, unrolled, 1e-8)


# Anderson acceleration takes long to compile, and is in the tests around these.
CASES = [("float64", "plain", form, activation) for form in FORMS for activation in ACTIVATIONS]
CASES += [("float32", "plain", "in", "tanh")]


@functools.cache
def jax_initial(dtype, family):
    init = getattr(deq_init.jax, family)(GAIN[family])
    return in_jax(dtype).init(jax.random.key(SEED), init, jnp.dtype(dtype))


@pytest.mark.parametrize(("dtype", "method", "form", "activation"), CASES)
def test_one_seed_one_model_in_pytorch_and_jax(dtype, method, form, activation):
    atol = {"float32": 1e-4, "float64": 1e-9}[dtype]
    cell = {"form": form, "activation": activation, "method": method}
    with x64(dtype):
        params = jax_initial(dtype, "orthogonal")
        found = run_jax(in_jax(dtype, **cell), params, samples(dtype))
    agree(found, run_torch(in_torch(dtype, **cell), samples(dtype)), atol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", GAIN)
def test_one_seed_one_set_of_weights(family, dtype):
    with x64(dtype):
        params = in_jax(dtype).to_arrays(jax_initial(dtype, family))
    arrays = in_torch(dtype, family).to_arrays()
    assert arrays.keys() == params.keys()
    for name, value in params.items():
        assert arrays[name].dtype == value.dtype == dtype
        atol = {"float32": 1e-5, "float64": 1e-12}[dtype]
        np.testing.assert_allclose(arrays[name], value, rtol=0, atol=atol, err_msg=name)
    other = in_torch(dtype, family, seed=SEED + 1).to_arrays()
    assert all((arrays[name] != other[name]).any() for name in "WUR")


def test_pytorch_gradients_equal_torchdeqs():
    for form in FORMS:
        model = in_torch(form=form)
        _, _, expected = run_torch(model, samples())
        x = torch.from_numpy(samples())
        deq = torchdeq.get_deq(
            f_solver="anderson", f_max_iter=300, f_tol=1e-12, f_stop_mode="rel", ift=True,
            b_solver="anderson", b_max_iter=300, b_tol=1e-12, b_stop_mode="rel",
        )  # fmt: skip
        injected = x @ model.U.T + model.c

        def f(z, form=form, model=model, injected=injected):
            h = z @ model.W.T
            return torch.tanh(h) + injected if form == "out" else torch.tanh(h + injected)

        (z,), _ = deq(f, torch.zeros(BATCH, WIDTH, dtype=torch.float64))
        loss = torch.nn.functional.cross_entropy(
            z @ model.R.T + model.b, torch.from_numpy(labels())
        )
        loss.backward()
        for name, parameter in model.named_parameters():
            np.testing.assert_allclose(
                parameter.grad.numpy().T, expected[name], rtol=0, atol=1e-8, err_msg=name
            )


def test_jax_gradients_equal_optimistixs():
    with x64("float64"):
        params = jax_initial("float64", "orthogonal")
        x = jnp.asarray(samples())
        model = in_jax()

        def implicit(params):
            return (model.apply(params, x)[0] ** 2).sum()

        def peer(params):
            z = optimistix.fixed_point(
                lambda z, p: jnp.tanh(z @ p["W"]) + x @ p["U"] + p["c"],
                optimistix.FixedPointIteration(1e-12, 1e-12),
                jnp.zeros((BATCH, WIDTH)),
                params,
                max_steps=500,
                adjoint=optimistix.ImplicitAdjoint(),
            ).value
            return ((z @ params["R"] + params["b"]) ** 2).sum()

        found, expected = (
            jax.jit(jax.grad(f), compiler_options=QUICK)(params) for f in (implicit, peer)
        )
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-8, err_msg=name)


def test_a_checkpoint_moves_between_pytorch_and_jax(tmp_path):
    model = in_torch("float32")
    np.savez(tmp_path / "model.npz", **model.to_arrays())
    other = in_jax("float32", method="plain")
    params = other.from_arrays(np.load(tmp_path / "model.npz"))
    np.testing.assert_array_equal(params["U"], model.U.detach().numpy().T)
    params = {name: value + 0.01 for name, value in params.items()}
    again = in_torch("float32", seed=1).from_arrays(other.to_arrays(params))
    x = samples("float32")
    logits, _ = again(torch.from_numpy(x))
    expected, _ = jax.jit(other.apply)(params, x)
    np.testing.assert_allclose(logits.detach(), expected, atol=1e-4)
    state = in_torch("float32", seed=2)
    state.load_state_dict(again.state_dict())
    assert torch.equal(state(torch.from_numpy(x))[0], logits)
    wrong = {"W": np.zeros((3, 3))}
    before = {name: value.copy() for name, value in model.to_arrays().items()}
    for load in (model.from_arrays, other.from_arrays):
        with pytest.raises(ModelError, match="expected a checkpoint of kernels"):
            load(wrong)
    assert all((before[name] == value).all() for name, value in model.to_arrays().items())


def test_memory_does_not_grow_with_the_steps_in_pytorch():
    counts = {}
    for gradient in ("implicit", "one_step", "unrolled"):
        for steps in (10, 1000):
            saved = []
            # A norm at which plain iteration takes all its steps, and every one of them is better.
            model = torch_models.DEQFCN(
                INPUTS, WIDTH, CLASSES, family="goe", spectral_norm=0.998, activation=lambda h: h,
                method="plain", rtol=1e-7, max_steps=steps, gradient=gradient, seed=0,
            )  # fmt: skip
            hooks = torch.autograd.graph.saved_tensors_hooks(
                lambda x, saved=saved: saved.append(x) or x, lambda x: x
            )
            with hooks:
                _, solution = model(torch.from_numpy(samples("float32")))
            assert solution.steps.max() == steps
            counts[gradient, steps] = len(saved)
    assert counts["implicit", 10] == counts["implicit", 1000] < 20
    assert counts["one_step", 10] == counts["one_step", 1000] < 20
    assert counts["unrolled", 1000] > 50 * counts["unrolled", 10]


def test_memory_does_not_grow_with_the_steps_in_jax():
    def bytes_of(gradient, steps):
        model = in_jax("float32", method="plain", max_steps=steps, gradient=gradient)
        params = jax_initial("float32", "orthogonal")
        x = jax.ShapeDtypeStruct((BATCH, INPUTS), jnp.float32)
        gradients = jax.jit(jax.grad(lambda p, x: model.apply(p, x)[0].sum()))
        return gradients.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    implicit = bytes_of("implicit", 10)
    assert bytes_of("implicit", 1000) == implicit
    assert bytes_of("unrolled", 1000) > 10 * implicit


@pytest.mark.parametrize("method", ["plain", "anderson"])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_bad_sample_has_a_status_and_touches_no_other(framework, method):
    if framework == "torch":
        model = in_torch("float32", method=method, rtol=1e-5)

        def run(x):
            logits, solution = model(torch.from_numpy(x))
            gradients = torch.autograd.grad(logits.sum(), list(model.parameters()))
            return logits.detach(), solution, gradients

    else:
        model = in_jax("float32", method=method, rtol=1e-5)

        def summed(params, x):
            logits, solution = model.apply(params, x)
            return logits.sum(), (logits, solution)

        compiled = jax.jit(jax.value_and_grad(summed, has_aux=True), compiler_options=QUICK)

        def run(x):
            params = jax_initial("float32", "orthogonal")
            (_, (logits, solution)), gradients = compiled(params, x)
            return logits, solution, jax.tree.leaves(gradients)

    clean = samples("float32")
    expected, _, _ = run(clean)
    for bad in (np.nan, np.inf):
        x = clean.copy()
        x[1, 2] = bad
        logits, solution, gradients = run(x)
        assert np.asarray(solution.converged).tolist() == [True, False, True, True]
        assert np.isinf(np.asarray(solution.residual)[1])
        kept = [0, 2, 3]
        np.testing.assert_allclose(
            np.asarray(logits)[kept], np.asarray(expected)[kept], rtol=1e-4, atol=1e-5
        )
        assert all(np.isfinite(np.asarray(g)).all() for g in gradients)
        assert all(abs(np.asarray(g)).max() > 0 for g in gradients)
        if framework == "torch":
            names = [name for name, _ in model.named_parameters()]
            for name, found, without in zip(names, gradients, run(clean[kept])[2], strict=True):
                if name in "WUc":
                    torch.testing.assert_close(found, without, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gradient", ["implicit", "unrolled", "one_step"])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_no_samples(framework, gradient):
    x = np.zeros((0, INPUTS), np.float32)
    given = {"method": "plain", "gradient": gradient, "max_steps": 20}
    if framework == "torch":
        model = in_torch("float32", **given)
        logits, solution = model(torch.from_numpy(x))
        logits.sum().backward()
        gradients = [p.grad for p in model.parameters()]
    else:
        model = in_jax("float32", **given)
        params = jax_initial("float32", "orthogonal")

        def summed(params, x):
            logits, solution = model.apply(params, x)
            return logits.sum(), (logits, solution)

        compiled = jax.jit(jax.value_and_grad(summed, has_aux=True), compiler_options=QUICK)
        (_, (logits, solution)), gradients = compiled(params, x)
        gradients = jax.tree.leaves(gradients)
    assert tuple(logits.shape) == (0, CLASSES)
    assert tuple(solution.converged.shape) == (0,)
    assert all((np.asarray(g) == 0).all() for g in gradients)


def test_no_fixed_point_is_a_status_and_the_gradients_are_finite():
    for gradient in ("implicit", "unrolled", "one_step"):
        model = torch_models.DEQFCN(
            INPUTS, WIDTH, CLASSES, family="antisymmetric", gain=3.0, method="plain",
            max_steps=50, gradient=gradient, seed=0, input_gain=1.0,
        )  # fmt: skip
        logits, solution = model(torch.from_numpy(samples("float32")))
        assert not solution.converged.any()
        assert (solution.steps == 50).all()
        logits.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_tiny_gradients_are_not_lost():
    model = in_torch("float32")
    x = torch.from_numpy(samples("float32"))
    results = []
    for factor in (1.0, 1e-25):
        logits, _ = model(x)
        (found,) = torch.autograd.grad((logits * factor).sum(), model.W)
        results.append(found / factor)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_one_step_gradients_are_those_of_one_application():
    model = in_torch(gradient="one_step")
    value, _, found = run_torch(model, samples())
    x, z = torch.from_numpy(samples()), torch.from_numpy(value)
    z = torch.tanh(z @ model.W.T) + x @ model.U.T + model.c
    loss = torch.nn.functional.cross_entropy(z @ model.R.T + model.b, torch.from_numpy(labels()))
    expected = torch.autograd.grad(loss, model.W)[0].numpy().T
    with x64("float64"):
        params = jax_initial("float64", "orthogonal")
        jitted = run_jax(in_jax(gradient="one_step", method="plain"), params, samples())
    for name, gradients in {"torch": found, "jax": jitted[2]}.items():
        np.testing.assert_allclose(gradients["W"], expected, rtol=0, atol=1e-9, err_msg=name)


def test_pytorch_gradients_of_any_module_and_tree():
    """A block with attention and a state of two tensors, against the unrolled loop."""
    torch.manual_seed(0)
    block = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    x = torch.randn(2, 3, 8, dtype=torch.float64)

    def f(state):
        mixed, _ = block(state["a"], state["a"], state["a"], need_weights=False)
        return {"a": 0.5 * torch.tanh(mixed + state["b"]) + x, "b": 0.3 * state["a"]}

    z0 = {"a": torch.zeros_like(x), "b": torch.zeros_like(x)}
    solution = deq_init.torch.fixed_point(f, z0, rtol=1e-13)
    assert solution.converged.all()
    value = deq_init.torch.implicit.with_gradient(f, solution, rtol=1e-13).value
    z = z0
    for _ in range(120):
        z = f(z)
    for parameter in block.parameters():
        found, expected = (
            torch.autograd.grad((y["a"] ** 2).sum() + y["b"].sum(), parameter, retain_graph=True)[0]
            for y in (value, z)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo's own
def test_pytorch_compiles_around_the_solvers():
    model = in_torch("float32")
    x = torch.from_numpy(samples("float32"))
    expected = torch.autograd.grad(model(x)[0].sum(), model.W)[0]
    compiled = torch.compile(model, backend="eager")
    found = torch.autograd.grad(compiled(x)[0].sum(), model.W)[0]
    torch.testing.assert_close(found, expected)


def test_pytorch_without_gradients():
    model = in_torch("float32", gradient="unrolled", method="plain")
    with torch.no_grad():
        logits, solution = model(torch.from_numpy(samples("float32")))
    assert not logits.requires_grad
    assert not solution.value.requires_grad


@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ShapeError, "expected width as a positive integer, received 0", {"width": 0}),
        (ModelError, "expected form 'out'", {"form": "both"}),
        (ActivationError, "expected an activation out of 'linear'", {"activation": "swosh"}),
        (SolverError, "expected gradient 'implicit', 'unrolled'", {"gradient": "phantom"}),
        (SolverError, "expected plain iteration", {"gradient": "unrolled"}),
        (SolverError, "expected rtol", {"rtol": 0.0}),
        (SolverError, "expected max_steps", {"max_steps": 0}),
    ],
)
def test_bad_requests(framework, error, message, given):
    build = torch_models.DEQFCN if framework == "torch" else jax_models.DEQFCN
    arguments = {"inputs": 4, "width": 8, "classes": 3, "method": "anderson"} | given
    with pytest.raises(error, match=message):
        build(**arguments)


def test_bad_input():
    model = in_torch("float32")
    params = jax_initial("float32", "orthogonal")
    for shape in ((INPUTS,), (2, INPUTS + 1), (2, 3, INPUTS)):
        with pytest.raises(ShapeError, match=rf"expected samples of shape \(batch, {INPUTS}\)"):
            model(torch.zeros(shape))
        with pytest.raises(ShapeError, match=rf"expected samples of shape \(batch, {INPUTS}\)"):
            in_jax("float32").apply(params, jnp.zeros(shape))
    with pytest.raises(ModelError, match="received"):
        in_jax("float32", bias=False).apply(params, jnp.zeros((2, INPUTS)))
    with pytest.raises(ScaleError, match="expected at most one"):
        torch_models.DEQFCN(4, 8, 3, gain=0.5, spectral_norm=0.9)
    with pytest.raises(SolverError, match="expected gradient 'implicit' or 'one_step'"):
        deq_init.torch.implicit.with_gradient(
            lambda z: z, deq_init.torch.fixed_point(lambda z: z / 2, torch.ones(1, 2)),
            gradient="unrolled",
        )  # fmt: skip


def test_an_activation_with_parameters_is_trained_with_the_rest():
    model = in_torch(activation=torch.nn.PReLU(dtype=torch.float64))
    model(torch.from_numpy(samples()))[0].sum().backward()
    assert all(abs(p.grad).max() > 0 for p in model.parameters())
    assert model.from_arrays(model.to_arrays()).to_arrays().keys() == set("WURbc")
    model.reset_parameters(SEED)
    assert model.activation.weight.item() == 0.25


def test_every_scale_of_w():
    norm = torch_models.DEQFCN(4, 16, 3, family="goe", spectral_norm=0.9, seed=0)
    assert abs(torch.linalg.matrix_norm(norm.W.detach(), 2).item() - 0.9) < 1e-4
    radius = torch_models.DEQFCN(4, 16, 3, family="random", spectral_radius=0.7, seed=0)
    assert abs(torch.linalg.eigvals(radius.W.detach()).abs().max().item() - 0.7) < 1e-4
    torch.manual_seed(1)
    first = torch_models.DEQFCN(4, 16, 3).W
    torch.manual_seed(1)
    assert torch.equal(torch_models.DEQFCN(4, 16, 3).W, first)


def test_each_parameter_has_normals_of_its_own():
    """Of matrices that share normals, those of one stream correlate; 1e-6 of false alarms a pair.

    The correlation of m independent pairs is normal to within 1/m, with deviation 1/√m.
    """
    transformer = torch_models.DEQTransformer(16, 16, 2, expansion=1, gain=1.0, seed=0)
    for model in (torch_models.DEQFCN(16, 16, 16, family="random", seed=0), transformer):
        matrices = {k: v.ravel() for k, v in model.to_arrays().items() if v.std() > 0}
        assert len(matrices) > 2
        for a in matrices:
            for b in matrices:
                m = min(len(matrices[a]), len(matrices[b]))
                if a < b:
                    found = np.corrcoef(matrices[a][:m], matrices[b][:m])[0, 1]
                    assert abs(found) < 4.9 / np.sqrt(m), (a, b)
