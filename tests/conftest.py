import os

import hypothesis
import pytest
import torch

import backends

# Small matrices, in several processes at once: threads would only wait for each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The suite runs again inside itself, on Keras's other backends: fewer examples there.
examples = 6 if "DEQ_INIT_INNER" in os.environ else 25
hypothesis.settings.register_profile("dev", deadline=None, max_examples=examples)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=examples, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(params=backends.BACKENDS, scope="session")
def backend(request):
    return backends.BACKENDS[request.param]


@pytest.fixture(params=backends.FAMILIES, scope="session")
def family(request):
    return request.param
