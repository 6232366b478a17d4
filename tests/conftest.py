import atexit
import os
import shutil
import tempfile

import hypothesis
import pytest

# Most of the suite's time is XLA's. Small functions do not repay its optimisations, and what one
# test compiled serves the next. Each process has a folder of its own: writes are not atomic.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="deq-init-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import torch  # after the above, which JAX reads when it is imported

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
