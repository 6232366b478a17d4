"""A training step of the PyTorch reference models, against torchdeq, with JAX's beside it.

    python benchmarks/models.py fcn --threads 2
    python benchmarks/models.py transformer --only anderson --repetitions 41

Forward, loss, backward and SGD's update in float32, with as many solver steps forward and backward
in all of them: no tolerance is ever met, which is checked by counting. torchdeq has the same cell
and weights, ift=True, and its own solver of that name; its Anderson keeps m iterates, which are
m - 1 differences. The three are interleaved: medians in ms, ratios with their quartiles, and each
one's first call. JAX's step is jitted. The error is the largest relative distance of a parameter's
gradient from that after four times as many steps of ours.
"""

import argparse
import copy
import os
import statistics
import time
from collections import Counter
from functools import partial
from unittest import mock

METHODS = {"plain": "fixed_point_iter", "anderson": "anderson"}
MEMORY = 5
NEVER = 1e-30
now = time.perf_counter
RATE = 1e-3


def fcn(options):
    """The model in PyTorch, the same in JAX, and a batch."""
    import numpy as np

    from deq_init.jax import models as jax_models
    from deq_init.torch import models

    sizes = {"inputs": 784, "width": options.width or 512, "classes": 10}
    batch = options.batch or 128
    solver = {"rtol": NEVER, "max_steps": options.steps}
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, sizes["inputs"])).astype(np.float32)
    labels = rng.integers(0, sizes["classes"], batch)

    def in_torch(method):
        return models.DEQFCN(**sizes, gain=options.gain, method=method, seed=0, **solver)

    def in_jax(method):
        return jax_models.DEQFCN(**sizes, method=method, **solver)

    return in_torch, in_jax, x, labels


def transformer(options):
    """As :func:`fcn`: a post-norm block, and each token to be told from those before it."""
    import numpy as np

    from deq_init.jax import models as jax_models
    from deq_init.torch import models

    sizes = {"vocabulary": 1000, "width": options.width or 128, "heads": 4}
    batch, length = options.batch or 16, 64
    solver = {"rtol": NEVER, "max_steps": options.steps}
    tokens = np.random.default_rng(0).integers(0, sizes["vocabulary"], (batch, length + 1))

    def in_torch(method):
        return models.DEQTransformer(**sizes, gain=options.gain, method=method, seed=0, **solver)

    def in_jax(method):
        return jax_models.DEQTransformer(**sizes, method=method, **solver)

    return in_torch, in_jax, tokens[:, :-1], tokens[:, 1:]


def torch_step(model, forward, x, labels):
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    x, labels = torch.from_numpy(x), torch.from_numpy(labels)

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(forward(x).flatten(0, -2), labels.flatten())
        loss.backward()
        optimizer.step()
        return loss

    return step


def torchdeq_forward(model, method, steps):
    import torch
    import torchdeq

    deq = torchdeq.get_deq(
        f_solver=METHODS[method], f_max_iter=steps, f_tol=0.0,
        b_solver=METHODS[method], b_max_iter=steps, b_tol=0.0, ift=True,
    )  # fmt: skip
    readout = (model.R, model.b) if hasattr(model, "R") else (model.embedding, model.readout_bias)
    solver = {"m": MEMORY + 1}
    # Backward, torchdeq leaves m at its default, which is this.
    assert MEMORY + 1 == 6

    def forward(x):
        injected = model.inject(x)
        z0 = torch.zeros(*injected.shape[:-1], model.width)
        (z,), _ = deq(partial(model.cell, injected=injected), z0, solver_kwargs=solver)
        return torch.nn.functional.linear(z, *readout)

    return forward


def jax_step(model, params, x, labels):
    import jax
    import jax.numpy as jnp

    def loss(params, x, labels):
        logits, _ = model.apply(params, x)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1).mean()

    @jax.jit
    def update(params, x, labels):
        value, gradients = jax.value_and_grad(loss)(params, x, labels)
        return value, jax.tree.map(lambda p, g: p - RATE * g, params, gradients)

    state = [jax.tree.map(jnp.asarray, params)]
    x, labels = jnp.asarray(x), jnp.asarray(labels)

    def step():
        value, state[0] = update(state[0], x, labels)
        jax.block_until_ready(state[0])
        return value

    return step


def evaluations(model, step):
    """How often a step evaluates the cell, and products with the transposed Jacobian."""
    import torch

    counts = Counter()

    def counted(name, f):
        def call(*args, **kwargs):
            counts[name] += 1
            return f(*args, **kwargs)

        return call

    with (
        mock.patch.object(model, "cell", counted("cell", model.cell)),
        mock.patch.object(torch.autograd, "grad", counted("product", torch.autograd.grad)),
    ):
        step()
    return counts["cell"], counts["product"]


def distance(model, other):
    """The largest relative distance of a parameter's gradients."""
    pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), other.parameters(), strict=True)]
    return max(((p - q).norm() / q.norm()).item() for p, q in pairs)


def clock(step):
    start = now()
    step()
    return 1e3 * (now() - start)


def middle(values):
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.2f} ({low:.2f}–{high:.2f})"


def compare(method, options):
    in_torch, in_jax, x, labels = globals()[options.model](options)
    ours = in_torch(method)
    theirs = copy.deepcopy(ours)
    exact = copy.deepcopy(ours)
    exact.method, exact.max_steps = "anderson", 4 * options.steps
    torch_step(exact, lambda x: exact(x)[0], x, labels)()
    twin = in_jax(method)
    steps = {
        "torchdeq": torch_step(theirs, torchdeq_forward(theirs, method, options.steps), x, labels),
        "ours": torch_step(ours, lambda x: ours(x)[0], x, labels),
        "jax": jax_step(twin, twin.from_arrays(ours.to_arrays()), x, labels),
    }
    first = {name: clock(step) for name, step in steps.items()}
    errors = [distance(model, exact) for model in (theirs, ours)]
    assert errors[1] < options.agree, f"our gradients are {errors[1]:.0e} off"
    # Both evaluate the cell once more for its derivatives, torchdeq twice.
    counted = evaluations(ours, steps["ours"]), evaluations(theirs, steps["torchdeq"])
    assert counted == ((options.steps + 1, options.steps), (options.steps + 2, options.steps))
    times = {name: [] for name in steps}
    for _ in range(options.repetitions):
        for name, step in steps.items():
            times[name].append(clock(step))
    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = (
        middle([peer / mine for peer, mine in zip(times[name], times["ours"], strict=True)])
        for name in ("torchdeq", "jax")
    )
    print(
        f"| {options.model}, {method} | "
        + " | ".join(f"{median[name]:.1f}" for name in steps)
        + " | "
        + " | ".join(ratios)
        + " | "
        + " | ".join(f"{first[name]:.0f}" for name in steps)
        + " | "
        + " | ".join(f"{error:.0e}" for error in errors)
        + " |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=["fcn", "transformer"])
    parser.add_argument("--width", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, default=30, help="of the solver, each way")
    parser.add_argument("--gain", type=float, default=0.5)
    parser.add_argument("--agree", type=float, default=0.1, help="bound on our gradients' error")
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--only", metavar="METHOD", choices=METHODS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor", action="store_true", help="processor time, all threads'")
    options = parser.parse_args()
    if options.processor:
        global now
        now = time.process_time
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = str(options.threads)
    if options.threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    import torch

    torch.set_num_threads(options.threads)
    print(
        f"{options.threads} threads, {options.steps} steps each way, float32; {now.__name__}, ms\n"
    )
    print(
        "| model, solver | torchdeq | ours | JAX | torchdeq / ours | JAX / ours "
        "| first: torchdeq | ours | JAX | error: torchdeq | ours |"
    )
    print("|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for method in [options.only] if options.only else METHODS:
        compare(method, options)


if __name__ == "__main__":
    main()
