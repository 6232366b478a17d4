"""Spectral norms and radii against decompositions, and against what else is used for them.

    python benchmarks/spectra.py torch --sizes 1024 2048 4096 --threads 2
    python benchmarks/spectra.py jax
    python benchmarks/spectra.py accuracy --sizes 1024

The first two time the code that ``spectral_norm=`` and ``spectral_radius=`` run, float32, against
the exact decomposition in the same framework, interleaved: medians, the ratio with its quartiles,
each one's first call, and our relative error by LAPACK in float64. The last compares errors.
"""

import argparse
import os
import statistics
import time

now = time.perf_counter

FAMILIES = ("random", "orthogonal", "goe", "antisymmetric")


def sample(family, n, seed=0):
    import deq_init.numpy

    return getattr(deq_init.numpy, family)((n, n), seed=seed)


def torch_cases(n):
    import torch

    from deq_init.torch.primitives import Primitives

    xp = Primitives(torch.device("cpu"))
    g, w = (torch.from_numpy(sample(family, n)) for family in ("goe", "random"))
    yield "norm, GOE", lambda: torch.linalg.svdvals(g).max(), lambda: xp.symmetric_norm(g)
    yield "norm, random", lambda: torch.linalg.svdvals(w).max(), lambda: xp.spectral_norm(w)
    peer = lambda: torch.linalg.eigvals(w).abs().max()  # noqa: E731
    yield "radius, random", peer, lambda: xp.spectral_radius(w)


def jax_cases(n):
    import jax
    import jax.numpy as jnp

    from deq_init.jax.primitives import xp

    g, w = (jnp.asarray(sample(family, n)) for family in ("goe", "random"))

    def done(function, x):
        compiled = jax.jit(function)
        return lambda: compiled(x).block_until_ready()

    def svd(x):
        return jnp.linalg.svd(x, compute_uv=False).max()

    yield "norm, GOE", done(svd, g), done(xp.symmetric_norm, g)
    yield "norm, random", done(svd, w), done(xp.spectral_norm, w)
    peer = done(lambda w: jnp.abs(jnp.linalg.eigvals(w)).max(), w)
    yield "radius, random", peer, done(xp.spectral_radius, w)


def clock(function):
    start = now()
    value = float(function())
    return now() - start, value


def speed(framework, sizes, seconds, only):
    print("| quantity | n | exact | ours | ratio (quartiles) | first call: exact | ours | error |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|")
    for n in sizes:
        for label, peer, ours in globals()[f"{framework}_cases"](n):
            if only and only not in label:
                continue
            (first_peer, truth), (first_ours, value) = clock(peer), clock(ours)
            times = []
            stop = time.perf_counter() + seconds
            while len(times) < 3 or (time.perf_counter() < stop and len(times) < 50):
                times.append((clock(peer)[0], clock(ours)[0]))
            a, b = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
            low, middle, high = statistics.quantiles([p / o for p, o in times], n=4)
            print(
                f"| {label} | {n} | {a:.0f} | {b:.0f} | {middle:.1f} ({low:.1f}–{high:.1f}) | "
                f"{1e3 * first_peer:.0f} | {1e3 * first_ours:.0f} | {abs(value / truth - 1):.0e} |",
                flush=True,
            )


def power_method(w, steps):
    """What torchdeq reports for the Jacobian of z -> z Wᵀ."""
    import torch
    from torchdeq.loss import power_method

    torch.manual_seed(0)
    z = torch.zeros(1, len(w), requires_grad=True)
    return power_method(z @ w.T, z, n_iters=steps)[1].item()


def parametrized(w):
    """The weight that torch.nn's parametrization makes of w, in train mode, for a norm of 1."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Linear(*w.shape, bias=False)
    with torch.no_grad():
        layer.weight.copy_(w)
    torch.nn.utils.parametrizations.spectral_norm(layer)
    return layer.weight.detach().numpy()


def accuracy(n):
    import numpy as np
    import torch

    from deq_init.torch.primitives import Primitives

    xp = Primitives(torch.device("cpu"))
    print(
        f"n = {n}\n\n| family | norm | radius | ours, norm | ours, radius | torchdeq, radius, "
        "100 steps | 1000 steps | parametrized norm |"
    )
    print("|:--|--:|--:|--:|--:|--:|--:|--:|")
    for family in FAMILIES:
        matrix = sample(family, n)
        w = torch.from_numpy(matrix)
        norm = np.linalg.norm(matrix.astype(np.float64), 2)
        radius = np.abs(np.linalg.eigvals(matrix.astype(np.float64))).max()
        our_norm = float((xp.symmetric_norm if family == "goe" else xp.spectral_norm)(w))
        # The others are normal, and their norm is what is measured.
        our_radius = float(xp.spectral_radius(w)) if family == "random" else our_norm
        methods = [power_method(w, steps) for steps in (100, 1000)]
        implied = np.linalg.norm(parametrized(w).astype(np.float64), 2)
        print(
            f"| {family} | {norm:.5f} | {radius:.5f} | {our_norm:.5f} ({our_norm / norm - 1:+.0e}) "
            f"| {our_radius:.5f} ({our_radius / radius - 1:+.0e}) | {methods[0]:.4f} | "
            f"{methods[1]:.4f} | {implied:.4f} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["torch", "jax", "accuracy"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--only", metavar="WORD", help="cases with this in their name")
    parser.add_argument("--seconds", type=float, default=20, help="for each case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor", action="store_true", help="processor time, all threads'")
    options = parser.parse_args()
    if options.processor:
        global now
        now = time.process_time
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = str(options.threads)
    if options.what == "accuracy":
        for n in options.sizes:
            accuracy(n)
    else:
        print(f"{options.what}, {options.threads} threads, float32; {now.__name__} in ms\n")
        speed(options.what, options.sizes, options.seconds, options.only)


if __name__ == "__main__":
    main()
