"""Errors: each message says what was expected, what came, and what to do.

Every class derives from :class:`DeqInitError` and from the built-in exception that the same
mistake raises elsewhere, so both ``except DeqInitError`` and ``except ValueError`` work.
"""

from __future__ import annotations

import importlib
from typing import Any


class DeqInitError(Exception):
    """Base class of every error that deq-init raises on purpose."""


class ShapeError(DeqInitError, ValueError):
    """A shape that the family or scale is not defined for."""


class DTypeError(DeqInitError, TypeError):
    """A dtype that cannot hold a real random matrix."""


class ScaleError(DeqInitError, ValueError):
    """A scale that is not one finite, non-negative number, or two scales at once."""


class FamilyError(DeqInitError, ValueError):
    """A name that is no family."""


class ActivationError(DeqInitError, ValueError):
    """An activation that is not known, or not a function that the theory covers."""


class SeedError(DeqInitError, ValueError):
    """A seed that is no integer in [0, 2**64), a seed beside a generator, or a key that is none."""


class SelectionError(DeqInitError, ValueError):
    """A choice of weights that names none, or none that exists."""


class WeightError(DeqInitError, ValueError):
    """A tensor that cannot be written to as a weight: computed from others, or a partial sum."""


class ShardingError(DeqInitError, ValueError):
    """A sharding that an array cannot be given here."""


class SolverError(DeqInitError, ValueError):
    """A tolerance, step cap or method that a solver or a measurement cannot be given."""


class FunctionError(DeqInitError, ValueError):
    """A function that does not map a state to one like it, or that cannot be differentiated."""


class ModelError(DeqInitError, ValueError):
    """A model that cannot be built as asked, or checked, or set to a checkpoint."""


class DataError(DeqInitError, RuntimeError):
    """A data set that could not be found, fetched or read."""


class OutputError(DeqInitError, RuntimeError):
    """A folder or file that results cannot be written to."""


class EngineError(DeqInitError, RuntimeError):
    """A cluster that work cannot be given to."""


class MissingFrameworkError(DeqInitError, ImportError):
    """A framework that is not installed."""


def missing_framework(framework: str, extra: str) -> MissingFrameworkError:
    """Return the error for a framework that is not installed.

    Parameters
    ----------
    framework : str
        The module that could not be imported.
    extra : str
        The extra of this package that installs it.
    """
    return MissingFrameworkError(
        f"expected the package {framework!r} to be installed, and it is not. "
        f"Install it with: pip install 'deq-init[{extra}]'"
    )


def require(module: str, extra: str) -> Any:
    """Import and return a module that only an extra of this package installs.

    Parameters
    ----------
    module : str
        Dotted name.
    extra : str
        The extra that installs it.

    Raises
    ------
    MissingFrameworkError
        If it is not installed. Errors from inside an installed one are not hidden.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise missing_framework(package, extra) from None
