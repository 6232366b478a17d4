"""Through real layers: the random family keeps the mean square, times gain², whatever the layout.

Law: for one input x, the mean square of the outputs of one position, over gain² and the mean square
of x, is chi-square over its degrees of freedom, the number of outputs. 2048 outputs, two-sided,
false alarms 1e-6. A transposed fan is off by the ratio of the two sides, 8 or more.
"""

import jax
import keras
import numpy as np
import pytest
import scipy.stats
import torch

import deq_init.jax
import deq_init.keras
import deq_init.torch

OUT, GAIN = 2048, 0.7


def torch_linear(x):
    layer = torch.nn.Linear(x.size, OUT, bias=False)
    deq_init.torch.random_(layer.weight, GAIN, seed=1)
    return layer(torch.from_numpy(x).reshape(1, -1)).detach().numpy()


def torch_conv2d(x):
    layer = torch.nn.Conv2d(4, OUT, (5, 3), bias=False)
    deq_init.torch.random_(layer.weight, GAIN, seed=1)
    return layer(torch.from_numpy(x).reshape(1, 4, 5, 3)).detach().numpy()


def jax_matmul(x):
    kernel = deq_init.jax.random(GAIN)(jax.random.key(1), (x.size, OUT))
    return np.asarray(x.reshape(1, -1) @ kernel)


def jax_convolution(x):
    kernel = deq_init.jax.random(GAIN)(jax.random.key(1), (5, 3, 4, OUT))
    out = jax.lax.conv_general_dilated(
        x.reshape(1, 5, 3, 4), kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return np.asarray(out)


def keras_dense(x):
    layer = keras.layers.Dense(
        OUT, use_bias=False, kernel_initializer=deq_init.keras.Random(GAIN, seed=1)
    )
    return keras.ops.convert_to_numpy(layer(x.reshape(1, -1)))


def keras_conv2d(x):
    layer = keras.layers.Conv2D(
        OUT, (5, 3), use_bias=False, kernel_initializer=deq_init.keras.Random(GAIN, seed=1),
        data_format="channels_last",
    )  # fmt: skip
    return keras.ops.convert_to_numpy(layer(x.reshape(1, 5, 3, 4)))


LAYERS = [torch_linear, torch_conv2d, jax_matmul, jax_convolution, keras_dense, keras_conv2d]


@pytest.mark.parametrize("layer", LAYERS)
def test_random_keeps_the_mean_square_times_squared_gain(layer):
    x = np.random.default_rng(0).standard_normal(60).astype(np.float32)
    y = layer(x).ravel().astype(np.float64)
    assert y.size == OUT
    statistic = (y**2).sum() / (GAIN**2 * (x.astype(np.float64) ** 2).mean())
    law = scipy.stats.chi2(OUT)
    assert 2 * min(law.cdf(statistic), law.sf(statistic)) > 1e-6


@pytest.mark.parametrize("layer", LAYERS)
def test_the_test_would_see_a_transposed_fan(layer):
    x = np.random.default_rng(0).standard_normal(60).astype(np.float32)
    y = layer(x).ravel().astype(np.float64) * np.sqrt(x.size / OUT)
    statistic = (y**2).sum() / (GAIN**2 * (x.astype(np.float64) ** 2).mean())
    assert scipy.stats.chi2(OUT).cdf(statistic) < 1e-6
