"""Peak memory of one gradient of DEQFCN, by backend, kind of gradient and number of solver steps.

    python benchmarks/memory.py
    python benchmarks/memory.py torch jax keras-tensorflow --steps 10 1000

Width 512, batch 512, float32: a state has 1 MiB. W is antisymmetric with gain 2, where plain
iteration never converges, so that all steps are taken, forward and adjoint. Each figure is the peak
of resident memory during forward and backward pass less what was resident before, in a process of
its own, after a gradient with one step has warmed it up. Linux alone.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

BACKENDS = ("torch", "jax", "keras-torch", "keras-jax", "keras-tensorflow")
GRADIENTS = ("implicit", "one_step", "unrolled")
SIZES = {"inputs": 16, "width": 512, "classes": 10}
LAW = {"family": "antisymmetric", "gain": 2.0}
BATCH = 512


def resident(field):
    """A field of the process's status, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


def options(gradient, steps):
    return {"method": "plain", "rtol": 1e-7, "max_steps": steps, "gradient": gradient}


def in_torch(x, gradient, steps):
    import torch

    from deq_init.torch.models import DEQFCN

    model = DEQFCN(**SIZES, **LAW, seed=0, **options(gradient, steps))
    x = torch.from_numpy(x)

    def run():
        logits, solution = model(x)
        logits.sum().backward()
        return solution.steps.max().item()

    return run


def in_jax(x, gradient, steps):
    import jax

    import deq_init.jax
    from deq_init.jax.models import DEQFCN

    model = DEQFCN(**SIZES, **options(gradient, steps))
    params = model.init(jax.random.key(0), deq_init.jax.antisymmetric(LAW["gain"]))

    def loss(params):
        logits, solution = model.apply(params, x)
        return logits.sum(), solution.steps.max()

    gradients = jax.jit(jax.grad(loss, has_aux=True)).lower(params).compile()
    return lambda: int(jax.block_until_ready(gradients(params))[1])


def in_keras(x, gradient, steps):
    import keras

    from deq_init.keras.models import DEQFCN

    model = DEQFCN(**SIZES, **LAW, seed=0, **options(gradient, steps))
    x = keras.ops.convert_to_tensor(x)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                logits, solution = model.solve(x)
                loss = tf.reduce_sum(logits)
            return tape.gradient(loss, model.trainable_variables), tf.reduce_max(solution.steps)

        concrete = step.get_concrete_function()
        return lambda: int(concrete()[1])
    if keras.backend.backend() == "torch":

        def run():
            logits, solution = model.solve(x)
            logits.sum().backward()
            return int(solution.steps.max())

        return run
    import jax

    def loss(trainable, rest):
        values = zip(model.trainable_variables, trainable, strict=True)
        with keras.StatelessScope(list(values)):
            logits, solution = model.solve(x)
        return logits.sum(), solution.steps.max()

    trainable = [v.value for v in model.trainable_variables]
    gradients = jax.jit(jax.grad(loss, has_aux=True)).lower(trainable, ()).compile()
    return lambda: int(jax.block_until_ready(gradients(trainable, ()))[1])


def measure(backend, gradient, steps):
    framework, _, engine = backend.partition("-")
    if engine:
        os.environ["KERAS_BACKEND"] = engine
    x = np.random.default_rng(0).standard_normal((BATCH, SIZES["inputs"])).astype(np.float32)
    build = {"torch": in_torch, "jax": in_jax, "keras": in_keras}[framework]
    build(x, gradient, 2)()
    run = build(x, gradient, steps)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    taken = run()
    print(f"{resident('VmHWM') - before:.0f} {taken}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backends", nargs="*", default=BACKENDS, metavar="BACKEND")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--gradients", nargs="+", default=GRADIENTS, choices=GRADIENTS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measure(given.one[0], given.one[1], int(given.one[2]))
        return
    for backend in given.backends:
        for gradient in given.gradients:
            cells = []
            for steps in given.steps:
                one = ["--one", backend, gradient, str(steps)]
                done = subprocess.run(
                    [sys.executable, __file__, *one], capture_output=True, text=True
                )
                if done.returncode:
                    print(done.stderr, file=sys.stderr)
                    cells.append(f"{steps} steps: failed")
                    continue
                peak, taken = done.stdout.split()[-2:]
                cells.append(f"{steps} steps: {peak} MiB ({taken} taken)")
            print(f"{backend:17} {gradient:9} {',  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
