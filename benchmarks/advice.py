"""What the factor that ``check`` suggests does to training.

Small blocks of seven kinds are trained on three tasks, with solvers of 30 and of 80 steps, each as
it is, with its weights multiplied by the factor that ``check`` suggests, and as this package
initializes it (orthogonal, gain 1). Starts are the usual ones of each kind and larger ones, of
which some diverge. Gradients are those of the adjoint equation, solved in as many steps; there is
no clipping.

    python benchmarks/advice.py --output advice.jsonl      # some 20 minutes on one core
    python benchmarks/advice.py --report advice.jsonl

A line of the file is one run. The report compares, block by block and solver by solver, the runs
after the line with those as they were, for the same start, task and seed: a one-sided Wilcoxon
signed-rank test of "the test loss is larger after the line". Runs without a line are the same in
both, and are left out of the test.
"""

import argparse
import json
import time
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.stats import binomtest, wilcoxon
from sklearn.datasets import load_digits

import deq_init.jax
from deq_init import check, examination
from deq_init.jax.eager import Compiled
from deq_init.jax.jacobian import normals, times
from deq_init.numpy.iteration import xp
from deq_init.redraws import Weights

WIDTH, HEADS, SIDE, CLASSES = 16, 2, 8, 10
BATCH, TRAIN, TEST, STEPS = 16, 512, 256, 60
FAILED = 4.0  # a loss above it; guessing gives ln 10 = 2.3
CAP = 10.0  # what a loss counts at most; one that is not finite, too
ARMS = ("as it is", "after the line", "ours")


def digits(rng):
    data = load_digits()
    order = rng.permutation(len(data.target))[: TRAIN + TEST]
    return (data.images[order] - 5) / 6, data.target[order]


def teacher(rng):
    """The largest of ten outputs of a random network."""
    x = rng.standard_normal((TRAIN + TEST, SIDE, SIDE))
    hidden = np.tanh(x.reshape(len(x), -1) @ rng.standard_normal((64, 32)) / 8)
    return x, (hidden @ rng.standard_normal((32, CLASSES))).argmax(1)


def rows(rng):
    """Which row of eight is most like the first one: a comparison between positions."""
    x = rng.standard_normal((TRAIN + TEST, SIDE, SIDE))
    found = rng.integers(1, SIDE, len(x))
    x[np.arange(len(x)), found] = x[:, 0] + 0.3 * rng.standard_normal((len(x), SIDE))
    return x, found


TASKS = {"digits": digits, "teacher": teacher, "rows": rows}


def rms(h):
    return h * lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6)


def layer(h):
    return rms(h - h.mean(-1, keepdims=True))


def attention(w, h):
    q, k, v = (
        (h @ part).reshape(*h.shape[:-1], HEADS, -1) for part in jnp.split(w["qkv"], 3, axis=1)
    )
    scores = jnp.einsum("...qhd,...khd->...hqk", q, k) / q.shape[-1] ** 0.5
    mixed = jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), v)
    return mixed.reshape(h.shape) @ w["o"]


def llama(w, z, e):
    h = jnp.concatenate([z, e], -1) @ w["adapter"]
    h = h + attention(w, rms(h))
    n = rms(h)
    return rms(h + (jax.nn.silu(n @ w["gate"]) * (n @ w["up"])) @ w["down"])


def gpt2(w, z, e):
    h = z + e
    h = h + attention(w, layer(h))
    return layer(h + jax.nn.gelu(layer(h) @ w["up"]) @ w["down"])


def hierarchical(w, z, e):
    """Two states, as in hierarchical reasoning models: the fast one three times for a slow one."""
    slow, fast = jnp.split(z, 2, -1)
    for _ in range(3):
        h = fast + slow + e
        fast = rms(h + jax.nn.gelu(h @ w["up_fast"]) @ w["down_fast"])
    h = slow + fast
    return jnp.concatenate([rms(h + jax.nn.gelu(h @ w["up_slow"]) @ w["down_slow"]), fast], -1)


def convolution(w, z, e):
    """Over the rows, three wide, with group normalization of two groups, as in multiscale DEQs."""
    conv = lambda h, k: sum(jnp.roll(h, s, -2) @ k[s + 1] for s in (-1, 0, 1))  # noqa: E731

    def group(h):
        parts = h.reshape(*h.shape[:-1], 2, -1)
        mean = parts.mean((-3, -1), keepdims=True)
        scale = lax.rsqrt(((parts - mean) ** 2).mean((-3, -1), keepdims=True) + 1e-5)
        return ((parts - mean) * scale).reshape(h.shape)

    h = group(jax.nn.relu(conv(z, w["first"])))
    return group(jax.nn.relu(z + group(e + conv(h, w["second"]))))


def graph(w, z, e):
    """Each row passes messages to its neighbours on a ring."""
    return jax.nn.relu(((jnp.roll(z, 1, -2) + jnp.roll(z, -1, -2) + z) / 3) @ w["w"] + e)


def cell(w, z, e):
    return jnp.tanh(z @ w["w"]) + e


def two(w, z, e):
    return jnp.tanh(jnp.tanh(z @ w["a"]) @ w["b"]) + e


D = WIDTH
BLOCKS = {  # map, shapes, parts of the state, starts: multiples of uniform ±1/√fan-in or a gain
    "looped Llama-like": (
        llama,
        {
            "adapter": (2 * D, D),
            "qkv": (D, 3 * D),
            "o": (D, D),
            "gate": (D, 2 * D),
            "up": (D, 2 * D),
            "down": (2 * D, D),
        },
        1,
        (1.0, 2.0),
    ),
    "looped GPT-2-like": (
        gpt2,
        {"qkv": (D, 3 * D), "o": (D, D), "up": (D, 4 * D), "down": (4 * D, D)},
        1,
        (1.0, 3.0),
    ),
    "conv + GroupNorm": (
        convolution,
        {"first": (3, D, D), "second": (3, D, D)},
        1,
        (1.0, 3.0),
    ),
    "HRM-like": (
        hierarchical,
        {
            "up_fast": (D, 2 * D),
            "down_fast": (2 * D, D),
            "up_slow": (D, 2 * D),
            "down_slow": (2 * D, D),
        },
        2,
        (1.0, 3.0),
    ),
    "graph": (graph, {"w": (D, D)}, 1, (2.0, 4.0)),
    "tanh cell": (cell, {"w": (D, D)}, 1, (2.0, 5.0)),
    "two-weight tanh": (two, {"a": (D, D), "b": (D, D)}, 1, (2.5, 5.0)),
}
NORMALIZED = ("looped Llama-like", "looped GPT-2-like", "conv + GroupNorm", "HRM-like")


def start(shapes, multiple, parts, rng):
    """Uniform ±multiple/√fan-in; input and readout at multiple 1."""

    def draw(shape, m):
        return (m * rng.uniform(-1, 1, shape) / np.prod(shape[:-1]) ** 0.5).astype(np.float32)

    return {
        "block": {name: draw(shape, multiple) for name, shape in shapes.items()},
        "embed": draw((SIDE, WIDTH), 1.7),
        "readout": draw((SIDE * parts * WIDTH, CLASSES), 1.0),
        "place": draw((SIDE, WIDTH), 1.0),
    }


def training(f, parts, rate, momentum, solver_steps):
    """Return a function that trains many models at once: (params, x, y, seed) to loss, accuracy."""

    def once(block, z, e):
        return f(block, z, e)

    @jax.custom_vjp
    def solved(block, e):
        z = jnp.zeros((*e.shape[:-1], parts * WIDTH))
        return lax.fori_loop(0, solver_steps, lambda _, z: once(block, z, e), z)

    def forward(block, e):
        z = solved(block, e)
        return z, (block, e, z)

    def backward(kept, g):
        block, e, z = kept
        _, pull = jax.vjp(lambda z: once(block, z, e), z)
        u = lax.fori_loop(0, solver_steps, lambda _, u: pull(u)[0] + g, g)
        return jax.vjp(lambda block, e: once(block, z, e), block, e)[1](u)

    solved.defvjp(forward, backward)

    def logits(params, x):
        z = solved(params["block"], x @ params["embed"] + params["place"])
        return z.reshape(len(x), -1) @ params["readout"]

    def loss(params, x, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits(params, x)), y[:, None], 1).mean()

    def train(params, x, y, seed):
        zeros = jax.tree.map(jnp.zeros_like, params)

        def step(carry, i):
            params, m, v = carry
            pick = jax.random.randint(
                jax.random.fold_in(jax.random.key(seed), i), (BATCH,), 0, TRAIN
            )
            g = jax.grad(loss)(params, x[pick], y[pick])
            if momentum:  # stochastic gradient descent
                m = jax.tree.map(lambda m, g: 0.9 * m + g, m, g)
                params = jax.tree.map(lambda p, m: p - rate * m, params, m)
            else:  # Adam
                m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
                v = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, v, g)
                a, b = 1 - 0.9 ** (i + 1.0), 1 - 0.99 ** (i + 1.0)
                params = jax.tree.map(
                    lambda p, m, v: p - rate * (m / a) / (jnp.sqrt(v / b) + 1e-8), params, m, v
                )
            return (params, m, v), None

        (params, _, _), _ = lax.scan(step, (params, zeros, zeros), jnp.arange(STEPS))
        out = logits(params, x[TRAIN:])
        right = (out.argmax(1) == y[TRAIN:]).mean()
        return loss(params, x[TRAIN:], y[TRAIN:]), right

    return jax.jit(jax.vmap(train))


class Checker:
    """``deq_init.jax.check`` with f compiled once for all weights of a block."""

    def __init__(self, f, parts):
        self.parts = parts

        def flat(values, z):
            block, e = values
            return f(block, z.reshape(len(z), SIDE, -1), e).reshape(len(z), -1)

        self.compiled = Compiled(flat)

    def settled(self, params, x, steps):
        """Return the share of the samples that settle in the solver's own steps."""
        e = jnp.asarray(x, jnp.float32) @ params["embed"] + params["place"]
        z0 = np.zeros((len(x), SIDE * self.parts * WIDTH), np.float32)
        how = examination.Setting(max_steps=steps)
        f = lambda z: self.compiled((params["block"], e), z)  # noqa: E731
        return float(examination.settle(xp, f, z0, how)[1].mean())

    def __call__(self, params, x, how):
        e = jnp.asarray(x, jnp.float32) @ params["embed"] + params["place"]
        block = given = {k: jnp.asarray(v) for k, v in params["block"].items()}
        z0 = jnp.zeros((len(x), SIDE * self.parts * WIDTH))

        def scale(factor):
            nonlocal block
            block = {name: times(w, factor) for name, w in given.items()}

        model = examination.Model(
            xp,
            lambda z: self.compiled((block, e), z),
            lambda z: self.compiled.products((block, e), z),
            np.asarray(z0),
            np.asarray(normals(z0)),
            how,
        )
        layout = examination.states.layout([z0.shape], ["float32"])
        squares = [float((np.asarray(w) ** 2).sum()) for w in given.values()]
        known = Weights([w.shape for w in given.values()], squares, "in_out", None)
        return examination.examine(
            model, layout, known, scale=scale, draws=0, draw=lambda number: None, line=str
        )


def run(options):
    with open(options.output, "a") as file:
        for name in options.blocks:
            f, shapes, parts, multiples = BLOCKS[name]
            checker = Checker(f, parts)
            cells, stacked = [], []
            began = time.time()
            for multiple in multiples:
                for task, make in TASKS.items():
                    for seed in range(options.first_seed, options.first_seed + options.seeds):
                        rng = np.random.default_rng(1000 * seed + 7)
                        x, y = make(rng)
                        x = x.astype(np.float32)
                        params = start(shapes, multiple, parts, rng)
                        report = checker(params, x[:16], examination.Setting())
                        factor = report.suggested_factor if report.suggestion else 1.0
                        block = {k: jnp.asarray(v) for k, v in params["block"].items()}
                        after = {k: times(w, factor) for k, w in block.items()}
                        ours = {
                            k: deq_init.jax.orthogonal()(
                                jax.random.fold_in(jax.random.key(seed), i), w.shape
                            )
                            for i, (k, w) in enumerate(block.items())
                        }
                        cells.append(
                            {
                                "block": name,
                                "start": multiple,
                                "task": task,
                                "seed": seed,
                                "verdict": report.verdict,
                                "norm": report.look.jacobian_norm.mean,
                                "radius": report.look.spectral_radius.mean,
                                "settled": report.look.settled,
                                "factor": factor if report.suggestion else None,
                                "note": report.note,
                                "own": {
                                    steps: checker.settled(params, x[:16], steps)
                                    for steps in options.solvers
                                },
                            }
                        )
                        for chosen in (block, after, ours):
                            stacked.append(({**params, "block": chosen}, x, y, seed))
            print(f"{name}: checked in {time.time() - began:.0f} s", flush=True)
            together = jax.tree.map(
                lambda *leaves: jnp.stack(list(map(jnp.asarray, leaves))), *stacked
            )
            rate, momentum = (0.003, False) if name in NORMALIZED else (0.02, True)
            for steps in options.solvers:
                began = time.time()
                losses, rights = jax.block_until_ready(
                    training(f, parts, rate, momentum, steps)(*together)
                )
                print(f"{name}, {steps} steps: {time.time() - began:.0f} s", flush=True)
                for i, made in enumerate(cells):
                    for j, arm in enumerate(ARMS):
                        loss, right = (
                            float(losses[len(ARMS) * i + j]),
                            float(rights[len(ARMS) * i + j]),
                        )
                        row = {**made, "steps": steps, "arm": arm, "loss": loss, "accuracy": right}
                        row["own"] = made["own"][steps]
                        file.write(json.dumps(row) + "\n")
                file.flush()


def capped(loss):
    return min(loss, CAP) if np.isfinite(loss) else CAP


def report(path):
    with open(path) as file:
        runs = [json.loads(line) for line in file]
    table = defaultdict(dict)
    for r in runs:
        table[r["block"], r["steps"], r["start"], r["task"], r["seed"]][r["arm"]] = r
    print(
        "| block | steps | not stable | with a line | factor | loss as it is | after the line | "
        "ours | failed: as it is, line, ours | worse / better | p(worse) |"
    )
    print("|:--|--:|--:|--:|:--|--:|--:|--:|:--|:--|--:|")
    for block in BLOCKS:
        for steps in sorted({key[1] for key in table if key[0] == block}):
            group = [arms for key, arms in table.items() if key[:2] == (block, steps)]
            lined = [arms for arms in group if arms[ARMS[0]]["factor"]]
            unstable = [a for a in group if a[ARMS[0]]["verdict"] not in ("stable", "lazy")]
            means = [
                f"{np.median([capped(a[arm]['loss']) for a in lined]):.2f}" if lined else ""
                for arm in ARMS
            ]
            failed = [sum(capped(a[arm]["loss"]) > FAILED for a in lined) for arm in ARMS]
            change = np.array(
                [capped(a[ARMS[1]]["loss"]) - capped(a[ARMS[0]]["loss"]) for a in lined]
            )
            p = wilcoxon(change, alternative="greater").pvalue if np.any(change) else 1.0
            factors = [a[ARMS[0]]["factor"] for a in lined]
            span = f"{min(factors):.2g} to {max(factors):.2g}" if factors else ""
            print(
                f"| {block} | {steps} | {len(unstable)} of {len(group)} | {len(lined)} | {span} | "
                f"{' | '.join(means)} | {', '.join(map(str, failed))} | "
                f"{(change > 0).sum()} / {(change < 0).sum()} | {p:.2g} |"
            )
    print()
    print("| verdict | steps | runs | failed as they are |")
    print("|:--|--:|--:|--:|")
    for verdict in check.VERDICTS:
        for steps in sorted({r["steps"] for r in runs}):
            for kind in ("with", "without"):
                group = [
                    r
                    for r in runs
                    if r["arm"] == ARMS[0]
                    and r["steps"] == steps
                    and r["verdict"] == verdict
                    and (r["block"] in NORMALIZED) == (kind == "with")
                ]
                if group:
                    lost = sum(capped(r["loss"]) > FAILED for r in group)
                    low, high = binomtest(lost, len(group)).proportion_ci(method="wilson")
                    print(
                        f"| {verdict}, {kind} normalization | {steps} | {len(group)} | "
                        f"{lost / len(group):.0%} ({low:.0%}–{high:.0%}) |"
                    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="advice.jsonl")
    parser.add_argument("--report", metavar="FILE", help="print the tables of a file")
    parser.add_argument("--blocks", nargs="+", choices=list(BLOCKS), default=list(BLOCKS))
    parser.add_argument("--solvers", nargs="+", type=int, default=[30, 80])
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    if options.report:
        report(options.report)
    else:
        run(options)


if __name__ == "__main__":
    main()
