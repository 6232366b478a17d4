"""A model named on the command line, loaded and checked: ``deq-init check package.module:build``.

``build()`` takes nothing and returns either a mapping of the arguments of its framework's
``check``, such as ``{"f": cell, "z0": zeros, "weights": cell.weight}``, or a report.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from deq_init.check import Report
from deq_init.errors import DeqInitError, ModelError

Framework = Literal["torch", "jax", "keras"]
FRAMEWORKS: tuple[Framework, ...] = ("torch", "jax", "keras")

_OF_PACKAGE: dict[str, Framework] = {
    "keras": "keras",
    "tensorflow": "keras",
    "torch": "torch",
    "jax": "jax",
    "jaxlib": "jax",
}


def check(name: str, framework: Framework | None = None) -> Report:
    """Return the report on the model that a function builds.

    Parameters
    ----------
    name : str
        ``package.module:function``; the current directory is searched first.
    framework : {"torch", "jax", "keras"}, optional
        Whose ``check`` to call; by default, that of the arrays and variables in what is built.

    Raises
    ------
    ModelError
        If there is no such function, it raises, or it does not return what it should.
    """
    built = _call(name, _function(name))
    if isinstance(built, Report):
        return built
    if not (isinstance(built, Mapping) and {"f", "z0"} <= set(built)):
        raise ModelError(
            f"expected {name} to return a mapping with the arguments f and z0 of check, or a "
            f"report, received {_describe(built)}. Return e.g. "
            '{"f": cell, "z0": zeros, "weights": cell.weight}.'
        )
    framework = framework or _framework_of(built)
    if framework is None:
        raise ModelError(
            f"expected {name} to return arrays of PyTorch, JAX or TensorFlow, received z0 of type "
            f"{type(built['z0']).__name__}. Pass --framework."
        )
    adapter = importlib.import_module(f"deq_init.{framework}")
    try:
        return adapter.check(**built)
    except DeqInitError:
        raise
    except Exception as error:
        raise ModelError(
            f"expected to check the model of {name}, received {type(error).__name__}: {error}. "
            f"Call deq_init.{framework}.check on it in Python to see where."
        ) from error


def _function(name: str) -> Callable[[], Any]:
    module_name, _, attributes = name.partition(":")
    if not module_name or not attributes:
        raise ModelError(
            f"expected the model as package.module:function, received {name!r}. "
            "Pass e.g. train.models:build."
        )
    # As python -m does, which an installed script does not.
    if sys.path[:1] != [os.getcwd()]:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"expected to import {module_name!r}, received {type(error).__name__}: {error}. "
            "Run from the folder that the module's name starts in, with what it needs installed."
        ) from error
    for attribute in attributes.split("."):
        found = getattr(found, attribute, None)
    if not callable(found):
        raise ModelError(
            f"expected {module_name!r} to have a function {attributes!r}, received "
            f"{_describe(found)}. Define it, or name another."
        )
    return found


def _call(name: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"expected {name}() to return a model to check, received "
            f"{type(error).__name__}: {error}. It is called without arguments."
        ) from error


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(repr, value)) or 'nothing'}"
    return "none" if value is None else f"an object of type {type(value).__name__}"


def _framework_of(built: Mapping[str, Any]) -> Framework | None:
    """Return the framework of the weights or the state: Keras's variables tell more than z0."""
    for key in ("weights", "f", "params", "z0"):
        for leaf in _leaves(built.get(key)):
            for kind in type(leaf).__mro__:
                package = kind.__module__.partition(".")[0]
                if package in _OF_PACKAGE:
                    return _OF_PACKAGE[package]
    return None


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
