"""The package as its users get it: wheel, sdist, lazy imports, missing frameworks, doctests."""

import doctest
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]
FRAMEWORKS = ("torch", "jax", "keras", "tensorflow", "matplotlib", "sklearn")

MODULES = [
    "deq_init.axes",
    "deq_init.draws",
    "deq_init.families",
    "deq_init.plan",
    "deq_init.regions",
    "deq_init.scale",
    "deq_init.theory.activations",
    "deq_init.theory.fluctuations",
    "deq_init.theory.jacobians",
    "deq_init.theory.linear",
    "deq_init.theory.nonlinear",
    "deq_init.theory.spectra",
    "deq_init.training",
    "deq_init.vocabulary",
    "deq_init.experiments.claims",
    "deq_init.experiments.report",
    "deq_init.experiments.results",
    "deq_init.experiments.wikitext",
    "deq_init.numpy.initializers",
    "deq_init.torch.initializers",
    "deq_init.torch.implicit",
    "deq_init.torch.jacobian",
    "deq_init.torch.models",
    "deq_init.torch.modules",
    "deq_init.checkpoint",
    "deq_init.jax.looped",
    "deq_init.jax.transformer",
    "deq_init.looped",
    "deq_init.torch.looped",
    "deq_init.torch.transformer",
    "deq_init.torch.verdict",
    "deq_init.jax.initializers",
    "deq_init.jax.implicit",
    "deq_init.jax.jacobian",
    "deq_init.jax.models",
    "deq_init.jax.verdict",
    "deq_init.keras.implicit",
    "deq_init.keras.initializers",
    "deq_init.keras.jacobian",
    "deq_init.keras.models",
    "deq_init.keras.transformer",
    "deq_init.keras.selection",
    "deq_init.keras.verdict",
]


def run(*command, **kwargs):
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, **kwargs)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("deq_init", ()),
        ("deq_init.cli", ()),
        ("deq_init.numpy", ()),
        ("deq_init.theory", ()),
        ("deq_init.torch", ("torch",)),
        ("deq_init.jax", ("jax",)),
    ],
)
def test_imports_are_lazy(module, allowed):
    unwanted = [name for name in FRAMEWORKS if name not in allowed]
    code = f"import {module}, sys; print([n for n in {unwanted} if n in sys.modules])"
    assert run(sys.executable, "-c", code).strip() == "[]"


@pytest.mark.parametrize("keras_backend", ["tensorflow", "jax", "torch"])
def test_the_keras_adapter_loads_no_adapter_of_another_framework(keras_backend):
    code = (
        "import deq_init.keras, sys;"
        "print([n for n in ('deq_init.torch', 'deq_init.jax') if n in sys.modules])"
    )
    env = {**os.environ, "KERAS_BACKEND": keras_backend}
    own = [] if keras_backend == "tensorflow" else [f"deq_init.{keras_backend}"]
    assert run(sys.executable, "-c", code, env=env).strip() == str(own)


def test_the_import_is_fast():
    """Below 0.3 s beyond NumPy's and SciPy's own, best of five."""
    code = (
        "import numpy, scipy.linalg, scipy.special, time; t = time.perf_counter();"
        "import deq_init; print(time.perf_counter() - t)"
    )
    assert min(float(run(sys.executable, "-c", code)) for _ in range(5)) < 0.3


def test_a_broken_framework_is_not_called_missing(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libbroken.so')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import deq_init.torch"]
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.stderr.splitlines()[-1] == "ImportError: libbroken.so"


def test_keras_without_its_backend_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tensorflow':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "del sys.modules['tensorflow']; sys.meta_path.insert(0, Gone())\n"
        "import deq_init.keras"
    )
    env = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "pip install 'deq-init[tensorflow]', or set" in result.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the tree: building writes into it."""
    target = tmp_path_factory.mktemp("source") / "tree"
    ignored = shutil.ignore_patterns(".git", "*.egg-info", "__pycache__", "build", ".*_cache")
    shutil.copytree(REPOSITORY, target, ignore=ignored)
    return target


@pytest.fixture(scope="module")
def wheel(source):
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", str(source / "dist"), str(source))
    return next((source / "dist").glob("*.whl"))


def test_wheel_and_sdist_hold_every_file(source, wheel):
    expected = {
        str(path.relative_to(source))
        for folder in ("deq_init", "backends")
        for path in (source / folder).rglob("*.py")
    }
    expected |= {"deq_init/py.typed"}
    in_wheel = {name.replace("backends/", "deq_init/", 1) for name in expected}
    assert in_wheel <= set(zipfile.ZipFile(wheel).namelist())
    build = "import setuptools.build_meta as b; print(b.build_sdist('dist'))"
    run(sys.executable, "-c", build, cwd=source)
    with tarfile.open(next((source / "dist").glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert expected | {"pyproject.toml", "README.md", "LICENSE"} <= names


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A fresh environment outside the repository with the wheel, NumPy and SciPy."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", str(folder))
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    constraints = str(REPOSITORY / "constraints.txt")
    run(str(python), "-m", "pip", "install", "-q", "-c", constraints, str(wheel))
    return python


def test_missing_frameworks_say_how_to_install_them(environment, tmp_path):
    for name in ("torch", "jax", "keras"):
        result = subprocess.run(
            [environment, "-c", f"import deq_init.{name}"], capture_output=True, text=True,
            cwd=tmp_path,
        )  # fmt: skip
        assert result.returncode == 1
        assert f"pip install 'deq-init[{name}]'" in result.stderr.splitlines()[-1]
    result = subprocess.run(
        [environment, "-m", "deq_init", "reproduce", "digits"], capture_output=True, text=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 1
    assert "pip install 'deq-init[jax]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_works_in_a_fresh_environment(environment, tmp_path):
    version = run(str(environment.parent / "deq-init"), "--version", cwd=tmp_path)
    assert version.startswith("deq-init 0.")
    # The frameworks of this environment, but not the package's own editable install.
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(str(environment), "-c", purelib).strip())
    (site / "frameworks.pth").write_text("\n".join(paths))
    codes = {
        "numpy": "print(deq_init.numpy.goe((4, 4), seed=0).tolist())",
        "torch": "import torch; print(deq_init.torch.goe_(torch.empty(4, 4), seed=0).tolist())",
        "jax": "import jax; print(deq_init.jax.goe()(jax.random.key(0), (4, 4)).tolist())",
        "keras": "import keras; print(keras.ops.convert_to_numpy("
        "deq_init.keras.GOE(seed=0)((4, 4))).tolist())",
    }
    matrices = []
    for name, code in codes.items():
        check = f"import deq_init.{name}; assert {str(site)!r} in deq_init.{name}.__file__; "
        printed = run(str(environment), "-c", check + code, cwd=tmp_path)
        matrices.append(np.array(eval(printed.splitlines()[-1])))
    for matrix in matrices[1:]:
        np.testing.assert_allclose(matrix, matrices[0], atol=1e-5 * np.abs(matrices[0]).max())
