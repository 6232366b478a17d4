"""A recurrent rate network in Equinox, chaotic at the gain that its field starts from.

FORCE learning (Sussillo & Abbott, 2009) starts from couplings of gain 1.5, which is past the edge
of chaos: as a DEQ the network has no fixed point that iteration finds. Run:
pip install optimistix, then python examples/equinox_rates.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix

import deq_init.jax

RATES, BATCH = 128, 16


class Network(eqx.Module):
    """z -> tanh(J z + x), for the rates of one sample."""

    couplings: jax.Array

    def __init__(self, key, gain=1.5):
        self.couplings = gain / RATES**0.5 * jax.random.normal(key, (RATES, RATES))

    def __call__(self, z, x):
        return jnp.tanh(self.couplings @ z + x)


@eqx.filter_jit
def solved(network, x, z0):
    """How many samples Optimistix's fixed-point iteration brings to a tolerance of 1e-3."""
    solver = optimistix.FixedPointIteration(rtol=1e-3, atol=1e-3)

    def solve(z0, x):
        found = optimistix.fixed_point(
            lambda z, _: network(z, x), solver, z0, max_steps=200, throw=False
        )
        return found.result == optimistix.RESULTS.successful

    return jax.vmap(solve)(z0, x).sum()


def main():
    params = Network(jax.random.key(0))
    x = 0.1 * jax.random.normal(jax.random.key(1), (BATCH, RATES))
    z0 = jnp.zeros_like(x)

    def f(network, z):
        return jax.vmap(network)(z, x)

    report = deq_init.jax.check(f, params, z0, layout="out_in")
    print(report)
    print(f"before: {solved(params, x, z0)} of {BATCH} samples solved")
    params = deq_init.jax.multiply(params, report.suggested_factor)
    print(f"after: {solved(params, x, z0)} of {BATCH} samples solved")


if __name__ == "__main__":
    main()
