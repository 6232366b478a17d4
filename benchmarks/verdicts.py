"""Verdicts at initialization against the outcomes of training, on the digits grid.

Every run is trained as ``deq-init reproduce digits`` does, and checked before: the rule of
``deq_init.check`` on 32 training samples. Prints, for each verdict, how many runs failed (test
accuracy below 80 %), with a 95 % Wilson interval, and the median accuracy.

    python benchmarks/verdicts.py --seeds 24 --first-seed 100
"""

import argparse
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import binomtest

import deq_init.jax
from deq_init import check, data, examination, families
from deq_init import training as core
from deq_init.experiments import fcn
from deq_init.jax import jacobian, training
from deq_init.jax.iteration import xp

RADII = (0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0)
SAMPLES = 32
HOW = examination.Setting()


@jax.jit
def measured(params, x):
    injected = x @ params["U"]

    def f(z):
        return jnp.tanh(z @ params["W"]) + injected

    z0 = jnp.zeros_like(injected)
    return examination.look(xp, f, z0, jacobian.normals(z0), lambda z: jacobian.products(f, z), HOW)


def row(name, outcomes):
    accuracy = np.array(outcomes)
    failed = int((~(accuracy >= fcn.FAILED_BELOW)).sum())
    low, high = binomtest(failed, len(accuracy)).proportion_ci(method="wilson")
    return (
        f"| {name} | {len(accuracy)} | {failed / len(accuracy):.1%} ({low:.1%}–{high:.1%}) | "
        f"{100 * np.median(accuracy):.1f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--radii", type=float, nargs="+", default=RADII)
    options = parser.parse_args()
    settings, split = fcn.SETTINGS["digits"], data.digits()
    model = training.model_of(settings, split)
    seeds = np.arange(options.first_seed, options.first_seed + options.seeds)
    shape = (len(split.x_train), settings.batch, settings.epochs)
    orders = np.stack([core.shuffled(*shape, seed) for seed in seeds])
    outcomes = defaultdict(list)
    for radius in options.radii:
        for family in families.FAMILIES:
            gain = radius / families.get(family).radius_edge
            init = getattr(deq_init.jax, family)(gain)
            trained = training.train_fcn(settings, family, gain, split, orders, seeds)
            for seed, accuracy in zip(seeds, trained.accuracy, strict=True):
                params = model.init(jax.random.key(seed), init)
                looked = examination.summarize(measured(params, split.x_train[:SAMPLES]), HOW)
                verdict = looked.judgement[0]
                outcomes[verdict, family].append(accuracy)
                outcomes[verdict, "all"].append(accuracy)
    print("| verdict, family | runs | failed (95 % interval) | median accuracy % |")
    print("|:--|--:|--:|--:|")
    for verdict in check.VERDICTS:
        for family in ("all", *families.FAMILIES):
            if outcomes[verdict, family]:
                print(row(f"{verdict}, {family}", outcomes[verdict, family]))


if __name__ == "__main__":
    main()
