"""How far norms and radii are from dense decompositions, and whether their errors say so.

    python benchmarks/accuracy.py norm --draws 200
    python benchmarks/accuracy.py radius --batch 8
    python benchmarks/accuracy.py spectral_norm --framework torch
    python benchmarks/accuracy.py rescale

Five laws of n x n matrices W: GOE, independent normals, their upper triangle, rows times tanh's
slopes at normals, and an orthogonal matrix with a tenth of normals added. Norm and radius of W z
by products alone, from normal starts, in float64 to rtol; ``--batch`` matrices are measured
together, so that all go on until the last one has converged. ``spectral_norm`` and
``spectral_radius`` rescale float32 matrices of sizes at which NumPy and PyTorch use products.
``rescale`` brings tanh(s W z) + x of one sample to a Jacobian norm of 0.9 to 1 %.
"""

import argparse

import numpy as np

LAWS = ("GOE", "random", "triangular", "slopes", "orthogonal + 0.1 random")


def draw(law, n, rng):
    w = rng.standard_normal((n, n)) / n**0.5
    if law == "GOE":
        return (w + w.T) / 2**0.5
    if law == "triangular":
        return np.triu(w)
    if law == "slopes":
        return (1 - np.tanh(rng.standard_normal(n)) ** 2)[:, None] * w
    if law == "random":
        return w
    q, r = np.linalg.qr(w)
    return q * np.sign(np.diagonal(r)) + 0.1 * w


def norms(w):
    return np.linalg.norm(w, 2, axis=(-2, -1))


def radii(w):
    return abs(np.linalg.eigvals(w)).max(-1)


def by_products(kind, law, n, options, rng):
    """Relative errors, stated relative errors, convergence and products of each sample."""
    from deq_init import jacobian
    from deq_init.numpy.iteration import xp

    rows = []
    for _ in range(options.draws // options.batch):
        w = np.stack([draw(law, n, rng) for _ in range(options.batch)])
        found = jacobian.measure(
            "jacobian_norm" if kind == "norm" else "spectral_radius",
            xp,
            lambda v, w=w: (w @ v[:, :, None])[:, :, 0],
            lambda v, w=w: (v[:, None] @ w)[:, 0],
            rng.standard_normal((options.batch, n)),
            rtol=options.rtol,
            max_steps=jacobian.MAX_STEPS["jacobian_norm" if kind == "norm" else "spectral_radius"],
        )
        truth = norms(w) if kind == "norm" else radii(w)
        off = abs(found.value - truth) / truth
        stated = found.error / truth
        rows += [
            (o, s, c, found.matvecs) for o, s, c in zip(off, stated, found.converged, strict=True)
        ]
    return rows


def rescaling(framework):
    """Return a function of a NumPy matrix and a target, to the framework's rescaled matrix."""
    if framework == "torch":
        import torch

        import deq_init.torch

        return lambda w, **target: deq_init.torch.rescale_(torch.from_numpy(w), **target).numpy()
    if framework == "jax":
        import deq_init.jax

        return lambda w, **target: np.asarray(deq_init.jax.rescale(w, **target))
    import deq_init.numpy

    return deq_init.numpy.rescale


def targets(kind, law, n, options, rng):
    from deq_init.errors import ScaleError

    rows, rescale = [], rescaling(options.framework)
    for _ in range(options.draws):
        w = draw(law, n, rng).astype(np.float32)
        try:
            scaled = rescale(w, **{kind: 0.9}).astype(np.float64)
        except ScaleError:
            rows.append((0.0, 1e-5, False, 0))
            continue
        value = norms(scaled) if kind == "spectral_norm" else radii(scaled)
        rows.append((abs(value / 0.9 - 1), 1e-5, True, 0))
    return rows


def rescaled(law, n, options, rng):
    import torch

    import deq_init.torch

    rows = []
    for _ in range(options.draws):
        w = torch.from_numpy(0.5 * draw(law, n, rng))
        x = torch.from_numpy(rng.standard_normal((1, n)))

        def f(z, w=w, x=x):
            return torch.tanh(z @ w.T) + x

        found = deq_init.torch.rescale_jacobian_(w, f, torch.zeros_like(x), jacobian_norm=0.9)
        z = deq_init.torch.fixed_point(f, torch.zeros_like(x), rtol=1e-10).value
        h = (z @ w.T).numpy()
        value = norms((1 - np.tanh(h) ** 2).T * w.numpy())
        rows.append((abs(value / 0.9 - 1), 0.01, found.reached, found.solves))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ("norm", "radius", "spectral_norm", "spectral_radius", "rescale")
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--framework", choices=("numpy", "torch", "jax"), default="numpy")
    parser.add_argument("--rtol", type=float, default=1e-3)
    parser.add_argument("--sizes", type=int, nargs="+")
    options = parser.parse_args()
    by = options.kind in ("norm", "radius")
    sizes = {"spectral_norm": [256, 300], "spectral_radius": [512], "rescale": [40]}
    for_kind = options.sizes or sizes.get(options.kind, [20, 40, 150])
    rng = np.random.default_rng(0)
    print("| law | n | draws | converged | largest error | largest error / stated | cost |")
    print("|:--|--:|--:|--:|--:|--:|--:|")
    for law in LAWS:
        for n in for_kind:
            if by:
                rows = by_products(options.kind, law, n, options, rng)
            elif options.kind == "rescale":
                rows = rescaled(law, n, options, rng)
            else:
                rows = targets(options.kind, law, n, options, rng)
            off, stated, converged, cost = (np.array(x, float) for x in zip(*rows, strict=True))
            done = converged > 0
            # What rounding leaves of either counts as nothing.
            ratio = np.where(off < 1e-12, 0.0, off / np.maximum(stated, 1e-300))
            print(
                f"| {law} | {n} | {len(rows)} | {int(done.sum())} | {off[done].max(initial=0):.1e} "
                f"| {ratio.max():.2g} | {cost.mean():.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
