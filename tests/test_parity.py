"""One seed is one model: weights, fixed point, loss and gradients in every framework.

Keras runs in processes of its own, one for each of its backends.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import deq_init.jax
from deq_init import checkpoint
from deq_init.jax import models as jax_models
from deq_init.torch import models as torch_models

pytestmark = pytest.mark.skipif(
    "DEQ_INIT_INNER" in os.environ, reason="runs once, from the outer suite"
)

BATCH, LENGTH, SEED = 3, 6, 11
LAW = {"family": "goe", "gain": 0.35}
MODELS = {
    "DEQFCN": {"inputs": 5, "width": 12, "classes": 3, "form": "in", "bias": True},
    "DEQTransformer": {"vocabulary": 7, "width": 8, "heads": 2, "norm": "pre"},
}
SOLVER = {
    "float32": {"method": "plain", "rtol": 1e-6, "max_steps": 60},
    "float64": {"method": "plain", "rtol": 1e-13, "max_steps": 200},
}
WITHIN = {"float32": 1e-4, "float64": 1e-9}
CASES = [(model, dtype) for model in MODELS for dtype in WITHIN]
FILES = [(model, "float32") for model in MODELS]
KERAS = ("keras-tensorflow", "keras-jax", "keras-torch")
QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}


def samples(model, dtype):
    """What keras_parity.samples and labels give: it cannot be imported without Keras."""
    rng = np.random.default_rng(3)
    if model == "DEQFCN":
        x = rng.standard_normal((BATCH, 5)).astype(dtype)
        return x, np.arange(BATCH) % 3
    return rng.integers(0, 7, (BATCH, LENGTH)), np.arange(BATCH * LENGTH).reshape(BATCH, -1) % 7


def flat(weights, z, loss, gradients):
    """What a run gave, by names."""
    found = {"z": z, "loss": loss}
    found |= {f"weights/{name}": value for name, value in weights.items()}
    return found | {f"gradients/{name}": value for name, value in gradients.items()}


def in_torch(model, dtype, load=None, save=None):
    options = MODELS[model] | SOLVER[dtype] | LAW | {"seed": SEED, "dtype": getattr(torch, dtype)}
    built = getattr(torch_models, model)(**options)
    if load:
        built.from_arrays(checkpoint.load(load))
    weights = built.to_arrays()
    if save:
        checkpoint.save(save, weights)
    x, labels = (torch.from_numpy(array) for array in samples(model, dtype))
    logits, solution = built(x)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
    # A method of the transformer has the name of this parameter.
    own = {name: "injection" if name == "inject" else name for name in weights}
    found = torch.autograd.grad(loss, [getattr(built, attribute) for attribute in own.values()])
    gradients = {
        name: g.numpy() if name == "embedding" else g.numpy().T
        for name, g in zip(own, found, strict=True)
    }
    return flat(weights, solution.value.detach().numpy(), loss.item(), gradients)


def in_jax(model, dtype, load=None, save=None):
    with jax.enable_x64(dtype == "float64"):
        built = getattr(jax_models, model)(**MODELS[model], **SOLVER[dtype])
        law = [LAW["family"], LAW["gain"]]
        if model == "DEQFCN":
            law = [getattr(deq_init.jax, LAW["family"])(LAW["gain"])]
        params = built.init(jax.random.key(SEED), *law, dtype=dtype)
        if load:
            params = built.from_arrays(checkpoint.load(load))
        if save:
            checkpoint.save(save, built.to_arrays(params))
        x, labels = map(jnp.asarray, samples(model, dtype))

        @functools.partial(jax.jit, compiler_options=QUICK)
        @functools.partial(jax.value_and_grad, has_aux=True)
        def run(params):
            logits, solution = built.apply(params, x)
            likelihoods = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(likelihoods, labels[..., None], -1).mean(), solution.value

        (loss, z), gradients = run(params)
        return jax.tree.map(np.asarray, flat(built.to_arrays(params), z, loss, gradients))


def in_keras(backend, folder, requests):
    """Run several requests in one process, on one of Keras's backends."""
    script = (
        "import json, sys, keras_parity\n"
        "for i, request in enumerate(json.loads(sys.argv[1])):\n"
        "    keras_parity.main(json.dumps(request), f'{sys.argv[2]}/{i}.npz')\n"
    )
    environment = {
        "KERAS_BACKEND": backend.removeprefix("keras-"),
        "JAX_ENABLE_X64": "1",
        "PYTHONPATH": str(Path(__file__).parent),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(requests), str(folder)],
        env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [dict(np.load(folder / f"{i}.npz")) for i in range(len(requests))]


def runs(folder):
    """What every framework gave for every case; and Keras, in float32, with PyTorch's files."""
    native = {"torch": in_torch, "jax": in_jax}
    found, loaded = {}, {}
    for name, run in native.items():
        for model, dtype in CASES:
            saved = str(folder / f"{name}-{model}-{dtype}.safetensors")
            found[name, model, dtype] = run(model, dtype, save=saved)
    for name in KERAS:
        requests = []
        for load in (False, True):
            for model, dtype in CASES if not load else FILES:
                arguments = MODELS[model] | SOLVER[dtype] | LAW | {"seed": SEED + load}
                request = {"model": model, "arguments": arguments, "dtype": dtype, "batch": BATCH}
                if load:
                    request["load"] = str(folder / f"torch-{model}-{dtype}.safetensors")
                else:
                    request["save"] = str(folder / f"{name}-{model}-{dtype}.safetensors")
                requests.append(request)
        own = folder / name
        own.mkdir()
        results = in_keras(name, own, requests)
        for (model, dtype), result in zip(CASES, results, strict=False):
            found[name, model, dtype] = result
        for (model, dtype), result in zip(FILES, results[len(CASES) :], strict=True):
            loaded[name, model, dtype] = result
    return found, loaded


def test_one_seed_is_one_model_in_every_framework(tmp_path):
    """Of arrays, relative to their largest entry; JAX's are what all are held against.

    In one test, as the processes are what takes the time. Checkpoints: Keras's models of another
    seed with PyTorch's file, PyTorch's and JAX's with Keras's.
    """
    found, loaded = runs(tmp_path)
    for model, dtype in CASES:
        expected = found["jax", model, dtype]
        for name in ("torch", *KERAS):
            agree(found[name, model, dtype], expected, WITHIN[dtype], name)
        for name in ("torch", "jax", *KERAS):
            arrays = checkpoint.load(tmp_path / f"{name}-{model}-{dtype}.safetensors")
            for key, value in arrays.items():
                np.testing.assert_array_equal(value, found[name, model, dtype][f"weights/{key}"])
    for model, dtype in FILES:
        expected = found["jax", model, dtype]
        for name in KERAS:
            agree(loaded[name, model, dtype], expected, WITHIN[dtype], name)
        path = str(tmp_path / f"keras-jax-{model}-{dtype}.safetensors")
        for run in (in_torch, in_jax):
            agree(run(model, dtype, load=path), expected, WITHIN[dtype], run.__name__)


def agree(found, expected, within, who):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol=within * scale, err_msg=f"{who}: {name}"
        )


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(checkpoint.ModelError, match="No such file"):
        checkpoint.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(checkpoint.ModelError, match="expected a checkpoint in"):
        checkpoint.load(path)
    before = path.read_bytes()
    with pytest.raises(checkpoint.OutputError, match="expected to write a checkpoint to"):
        checkpoint.save(tmp_path / "nowhere" / "model.safetensors", {"W": np.eye(2)})
    checkpoint.save(path, {"W": np.eye(2)})
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(checkpoint.ModelError, match="expected a checkpoint of kernels"):
        torch_models.DEQFCN(5, 12, 3).from_arrays(checkpoint.load(path))
