"""Orthogonal and GOE initializers against what the frameworks ship.

Peers run in the same process, interleaved with ours, float32. Prints, for each size, the median
time of peer and ours, their ratio with its quartiles over the repetitions, both as multiples of one
n x n matrix product in the same framework ("G"), and the first call's time.

    python benchmarks/orthogonal.py torch --sizes 8 64 256 1024 2048 --threads 2
    python benchmarks/orthogonal.py torch --memory 8192

Over three or more sizes from 512 up, also the exponent p of a least-squares fit time ~ n**p. With
--memory, only the peak memory of each case beyond the result, in units of that matrix, each in a
process of its own. Frameworks: numpy, torch, jax, keras (KERAS_BACKEND chooses its backend).
"""

import argparse
import math
import multiprocessing
import os
import resource
import statistics
import time


def numpy_cases(n):
    import numpy as np
    import scipy.stats

    import deq_init.numpy

    rng = np.random.default_rng(0)

    def peer_orthogonal():
        q, r = np.linalg.qr(rng.standard_normal((n, n), dtype=np.float32))
        return q * np.sign(np.diagonal(r))

    def peer_goe():
        a = rng.standard_normal((n, n), dtype=np.float32)
        return (a + a.T) * np.float32((2 * n) ** -0.5)

    def scipy_orthogonal():
        return scipy.stats.ortho_group.rvs(n, random_state=rng).astype(np.float32)

    a = np.ones((n, n), np.float32)
    cases = {
        "orthogonal, seed": (peer_orthogonal, lambda: deq_init.numpy.orthogonal((n, n), seed=0)),
        "orthogonal, generator": (
            peer_orthogonal,
            lambda: deq_init.numpy.orthogonal((n, n), seed=rng),
        ),
        "goe, seed": (peer_goe, lambda: deq_init.numpy.goe((n, n), seed=0)),
        "goe, generator": (peer_goe, lambda: deq_init.numpy.goe((n, n), seed=rng)),
        "random, seed": (
            lambda: rng.standard_normal((n, n), dtype=np.float32),
            lambda: deq_init.numpy.random((n, n), seed=0),
        ),
    }
    if n <= 1024:
        cases["orthogonal against SciPy"] = (
            scipy_orthogonal,
            lambda: deq_init.numpy.orthogonal((n, n), seed=0),
        )
    return lambda: a @ a, cases


def torch_cases(n):
    import torch

    import deq_init.torch

    a = torch.ones(n, n)

    def peer_goe():
        g = torch.empty(n, n).normal_()
        return (g + g.T).mul_((2 * n) ** -0.5)

    cases = {
        "orthogonal": (
            lambda: torch.nn.init.orthogonal_(torch.empty(n, n)),
            lambda: deq_init.torch.orthogonal_(torch.empty(n, n)),
        ),
        "orthogonal, seed": (
            lambda: torch.nn.init.orthogonal_(torch.empty(n, n)),
            lambda: deq_init.torch.orthogonal_(torch.empty(n, n), seed=0),
        ),
        "goe": (peer_goe, lambda: deq_init.torch.goe_(torch.empty(n, n))),
    }
    return lambda: a @ a, cases


def jax_cases(n):
    import jax
    import jax.numpy as jnp

    import deq_init.jax

    a, key = jnp.ones((n, n)), jax.random.key(0)
    product = jax.jit(lambda a: a @ a)
    peer = jax.jit(lambda key: jax.nn.initializers.orthogonal()(key, (n, n)))
    ours = jax.jit(lambda key: deq_init.jax.orthogonal()(key, (n, n)))
    goe = jax.jit(lambda key: deq_init.jax.goe()(key, (n, n)))

    @jax.jit
    def peer_goe(key):
        g = jax.random.normal(key, (n, n))
        return (g + g.T) * (2 * n) ** -0.5

    def done(function, argument):
        return lambda: function(argument).block_until_ready()

    cases = {"orthogonal": (done(peer, key), done(ours, key))}
    cases["goe"] = (done(peer_goe, key), done(goe, key))
    return done(product, a), cases


def keras_cases(n):
    import keras

    import deq_init.keras

    a = keras.ops.ones((n, n))
    name = keras.backend.backend()

    def done(function):
        return (lambda: function().block_until_ready()) if name == "jax" else function

    cases = {
        f"orthogonal, {name}": (
            done(lambda: keras.initializers.Orthogonal(seed=0)((n, n))),
            done(lambda: deq_init.keras.Orthogonal(seed=0)((n, n))),
        )
    }
    return done(lambda: keras.ops.matmul(a, a)), cases


def clock(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def exponent(times):
    """Slope of log time against log size, over sizes from 512 up."""
    points = [(math.log(n), math.log(t)) for n, t in times.items() if n >= 512]
    if len(points) < 3:
        return None
    x, y = zip(*points, strict=True)
    return statistics.linear_regression(x, y).slope


def resident():
    """Resident memory now, in bytes (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def memory_of(framework, label, which, n, connection):
    """Send the peak resident memory during one call, less that before it, in n x n matrices."""
    for size in (64, n):  # libraries are loaded and threads started at the small size
        case = globals()[f"{framework}_cases"](size)[1][label][which]
        before = resident()
        kept = case()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    connection.send((peak - before) / (4 * n * n) - (kept is not None))


def memory(framework, n):
    print(f"{framework}, n = {n}, float32: peak memory beyond the result, in matrices")
    context = multiprocessing.get_context("spawn")
    for label in globals()[f"{framework}_cases"](n)[1]:
        row = []
        for which in (0, 1):
            ours, theirs = context.Pipe()
            job = context.Process(target=memory_of, args=(framework, label, which, n, theirs))
            job.start()
            job.join()
            row.append(ours.recv() if ours.poll() else float("nan"))
        print(f"{label}: peer {row[0]:.2f}, ours {row[1]:.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("framework", choices=["numpy", "torch", "jax", "keras"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024, 2048])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=int, metavar="N")
    options = parser.parse_args()
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = str(options.threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if options.memory:
        memory(options.framework, options.memory)
        return
    all_times = {}
    print(f"{options.framework}, {options.threads} threads, float32; times in ms")
    print("| case | n | peer | ours | ratio (quartiles) | peer G | ours G | first: peer | ours |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|--:|")
    for n in options.sizes:
        product, cases = globals()[f"{options.framework}_cases"](n)
        product()
        for label, (peer, ours) in cases.items():
            first = clock(peer), clock(ours)
            once = sum(clock(f) for f in (peer, ours))
            repetitions = max(3, min(200, int(6 / once)))
            times = [(clock(product), clock(peer), clock(ours)) for _ in range(repetitions)]
            g, peer_time, our_time = (
                statistics.median(column) for column in zip(*times, strict=True)
            )
            all_times.setdefault(label, {})[n] = our_time
            low, _, high = statistics.quantiles([p / o for _, p, o in times], n=4)
            print(
                f"| {label} | {n} | {1e3 * peer_time:.2f} | {1e3 * our_time:.2f} | "
                f"{peer_time / our_time:.2f} ({low:.2f}–{high:.2f}) | {peer_time / g:.1f} | "
                f"{our_time / g:.1f} | {1e3 * first[0]:.0f} | {1e3 * first[1]:.0f} |",
                flush=True,
            )
    for label, times in all_times.items():
        if (slope := exponent(times)) is not None:
            print(f"{label}: time ~ n**{slope:.2f}")


if __name__ == "__main__":
    main()
