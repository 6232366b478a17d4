"""Norm and radius of a Jacobian, from products with vectors, against the dense Jacobian.

    python benchmarks/jacobian.py torch --size 1024 --batch 32 --threads 2
    python benchmarks/jacobian.py jax --only norm

f(z) = tanh(z Wᵀ) + x, W random, at a normal z for each of the inputs; float32, relative tolerance
1e-3. The peer forms the Jacobians with the framework's own vmap(jacrev) and decomposes them. The
two are interleaved: medians, the ratio with its quartiles, each one's first call, and our largest
relative error over the inputs. In JAX both are jitted. With --dense K the peer decomposes the
first K Jacobians only, one after the other as it does all of them, and its times but the first are
multiplied.
"""

import argparse
import os
import statistics
import time

now = time.perf_counter


def torch_cases(n, batch, gain, some):
    import torch

    import deq_init.torch

    torch.manual_seed(0)
    w = torch.randn(n, n) * gain / n**0.5
    x, z = torch.randn(2, batch, n)

    def f(z):
        return torch.tanh(z @ w.T) + x

    dense = torch.func.vmap(torch.func.jacrev(lambda z, x: torch.tanh(z @ w.T) + x))
    yield (
        "norm",
        lambda: torch.linalg.svdvals(dense(z[:some], x[:some])).amax(1),
        lambda: deq_init.torch.jacobian_norm(f, z).value,
    )
    yield (
        "radius",
        lambda: torch.linalg.eigvals(dense(z[:some], x[:some])).abs().amax(1),
        lambda: deq_init.torch.jacobian_spectral_radius(f, z).value,
    )


def jax_cases(n, batch, gain, some):
    import jax
    import jax.numpy as jnp

    import deq_init.jax

    keys = jax.random.split(jax.random.key(0), 3)
    w = jax.random.normal(keys[0], (n, n)) * gain / n**0.5
    x, z = (jax.random.normal(key, (batch, n)) for key in keys[1:])

    def f(z):
        return jnp.tanh(z @ w.T) + x

    dense = jax.vmap(jax.jacrev(lambda z, x: jnp.tanh(z @ w.T) + x))

    def done(function):
        compiled = jax.jit(function)
        return lambda: compiled(z).block_until_ready()

    yield (
        "norm",
        done(lambda z: jnp.linalg.svd(dense(z[:some], x[:some]), compute_uv=False).max(1)),
        done(lambda z: deq_init.jax.jacobian_norm(f, z).value),
    )
    yield (
        "radius",
        done(lambda z: jnp.abs(jnp.linalg.eigvals(dense(z[:some], x[:some]))).max(1)),
        done(lambda z: deq_init.jax.jacobian_spectral_radius(f, z).value),
    )


def clock(function):
    start = now()
    value = function()
    return now() - start, value


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("framework", choices=["torch", "jax"])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dense", type=int, metavar="K", help="inputs of the peer: all")
    parser.add_argument("--gain", type=float, default=0.9)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", metavar="WORD", help="cases with this in their name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor", action="store_true", help="processor time, all threads'")
    options = parser.parse_args()
    if options.processor:
        global now
        now = time.process_time
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = str(options.threads)
    import numpy as np

    print(f"{options.framework}, {options.threads} threads, float32; {now.__name__} in ms\n")
    print(
        "| quantity | n | inputs | dense | ours | ratio (quartiles) | first: dense | ours | error |"
    )
    print("|:--|--:|--:|--:|--:|--:|--:|--:|--:|")
    cases = globals()[f"{options.framework}_cases"]
    some = options.dense or options.batch
    times_all = options.batch / some
    for label, peer, ours in cases(options.size, options.batch, options.gain, some):
        if options.only and options.only not in label:
            continue
        (first_peer, truth), (first_ours, value) = clock(peer), clock(ours)
        error = np.abs(np.asarray(value)[:some] / np.asarray(truth) - 1).max()
        times = [(clock(peer)[0] * times_all, clock(ours)[0]) for _ in range(options.repetitions)]
        a, b = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
        low, middle, high = statistics.quantiles([p / o for p, o in times], n=4)
        print(
            f"| {label} | {options.size} | {options.batch} | {a:.0f} | {b:.0f} | "
            f"{middle:.1f} ({low:.1f}–{high:.1f}) | {1e3 * first_peer:.0f} | "
            f"{1e3 * first_ours:.0f} | {error:.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
