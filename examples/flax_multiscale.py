"""A multiscale convolutional DEQ in Flax that diverges as Flax initializes it.

Three convolutions of different reach are added before the ReLU: each has gain 1, their sum has
gain sqrt(3), and sqrt(2) is what a ReLU bears. Run: python examples/flax_multiscale.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

import deq_init.jax

SIDE, CHANNELS, BATCH = 6, 8, 8


class Cell(nn.Module):
    """z -> relu(sum of three convolutions of z) + x for images (batch, side, side, channels)."""

    @nn.compact
    def __call__(self, z, x):
        branches = [nn.Conv(CHANNELS, (k, k), use_bias=False)(z) for k in (1, 3, 5)]
        return nn.relu(sum(branches)) + x


def solved(f, params, z0):
    """How many samples plain iteration brings to a relative residual of 1e-3."""
    solution = deq_init.jax.fixed_point(
        lambda z: f(params, z), z0, method="plain", rtol=1e-3, max_steps=200
    )
    return int(solution.converged.sum())


def main():
    cell = Cell()
    x = jax.random.normal(jax.random.key(1), (BATCH, SIDE, SIDE, CHANNELS))
    z0 = jnp.zeros_like(x)
    params = cell.init(jax.random.key(0), z0, x)

    def f(params, z):
        return cell.apply(params, z, x)

    report = deq_init.jax.check(f, params, z0)
    print(report)
    print(f"before: {solved(f, params, z0)} of {BATCH} samples solved")
    params = deq_init.jax.multiply(params, report.suggested_factor)
    print(f"after: {solved(f, params, z0)} of {BATCH} samples solved")


if __name__ == "__main__":
    main()
