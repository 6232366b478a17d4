"""Norm and radius of the DEQ-transformer block's Jacobian, by normalization, family and gain.

    python benchmarks/transformer_jacobian.py
    python benchmarks/transformer_jacobian.py --width 64 --draws 8 --gains 0.3 1.0

At the fixed point of random tokens, as the model is initialized; means over draws of all parameters
and sequences, as a Markdown table of "norm / radius". Draws without a fixed point are counted and
left out.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import deq_init.jax
from deq_init import families
from deq_init.jax.models import DEQTransformer

VOCABULARY = 50


def measurement(model, tokens):
    """A compiled function of parameters: all converged, norm, radius."""

    @jax.jit
    def measure(params):
        _, solution = model.apply(params, tokens)
        injected = model.inject(params, tokens)

        def f(z):
            return model.cell(params, z, injected)

        norm = deq_init.jax.jacobian_norm(f, solution.value, rtol=1e-2).value.mean()
        radius = deq_init.jax.jacobian_spectral_radius(f, solution.value, rtol=1e-2).value.mean()
        return solution.converged.all(), norm, radius

    return measure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--gains", type=float, nargs="+", default=[0.1, 0.3, 0.6, 1.0, 1.5])
    given = parser.parse_args()
    tokens = jax.random.randint(jax.random.key(1), (2, given.length), 0, VOCABULARY)
    print("| norm | family |" + "".join(f" gain {gain:g} |" for gain in given.gains))
    print("|:--|:--|" + "--:|" * len(given.gains))
    for norm in ("post", "pre", "none"):
        model = DEQTransformer(VOCABULARY, given.width, 4, norm=norm, rtol=1e-4, max_steps=300)
        measure = measurement(model, tokens)
        for family in families.PAPER:
            cells = []
            for gain in given.gains:
                keys = map(jax.random.key, range(given.draws))
                found = [measure(model.init(key, family, gain)) for key in keys]
                kept = [jnp.stack(sizes) for converged, *sizes in found if converged]
                lost = given.draws - len(kept)
                note = f" ({lost} lost)" if lost else ""
                sizes = "{:.2f} / {:.2f}".format(*np.mean(kept, axis=0)) if kept else "none"
                cells.append(sizes + note)
            print(f"| {norm} | {family} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
