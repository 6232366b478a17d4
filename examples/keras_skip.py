"""A DEQ in Keras with a skip connection that diverges as Keras initializes it.

A Dense layer behind a ReLU and one beside it have gain 1 each; together they lengthen the state by
a factor of sqrt(1.5) at every application. Run: KERAS_BACKEND=jax python examples/keras_skip.py
"""

import keras

import deq_init.keras

WIDTH, BATCH = 128, 16


class Cell(keras.layers.Layer):
    """z -> relu(z W) + z S + x for states of shape (batch, width)."""

    def __init__(self):
        super().__init__()
        self.deep = keras.layers.Dense(WIDTH, activation="relu", use_bias=False)
        self.skip = keras.layers.Dense(WIDTH, use_bias=False)

    def call(self, z, x):
        return self.deep(z) + self.skip(z) + x


def solved(f, z0):
    """How many samples plain iteration brings to a relative residual of 1e-3."""
    solution = deq_init.keras.fixed_point(f, z0, method="plain", rtol=1e-3, max_steps=200)
    return int(keras.ops.sum(keras.ops.cast(solution.converged, "int32")))


def main():
    keras.utils.set_random_seed(0)
    cell = Cell()
    x = keras.random.normal((BATCH, WIDTH))
    z0 = keras.ops.zeros_like(x)
    cell(z0, x)

    def f(z):
        return cell(z, x)

    weights = [cell.deep.kernel, cell.skip.kernel]
    report = deq_init.keras.check(f, z0, weights=weights)
    print(report)
    print(f"before: {solved(f, z0)} of {BATCH} samples solved")
    deq_init.keras.multiply(weights, report.suggested_factor)
    print(f"after: {solved(f, z0)} of {BATCH} samples solved")


if __name__ == "__main__":
    main()
