"""The command line: ``deq-init reproduce NAME``, ``report``, ``check`` and ``spectrum``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from deq_init import __version__, families
from deq_init.errors import DeqInitError

# Of deq_init.theory, which takes a second to import; a test compares them.
_ACTIVATIONS = (
    "linear", "tanh", "relu", "hard_tanh", "gelu", "silu", "mish", "softplus", "sigmoid", "elu",
    "selu", "leaky_relu", "softsign", "sin",
)  # fmt: skip

EXIT_CODES = {"stable": 0, "lazy": 3, "critical": 4, "divergent": 5, "unknown": 6}
"""What ``deq-init check`` exits with, for each verdict."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0, :data:`EXIT_CODES` after a check, or 1 after an error that was explained.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.
    """
    with _standard_output() as output:
        try:
            code = _run(arguments)
        except DeqInitError as error:
            print(f"deq-init: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(
                "deq-init: interrupted; an experiment goes on where it was when it is run again",
                file=sys.stderr,
            )
            return 130
        except OSError as error:
            if error is not output.failure:
                raise
            if not isinstance(error, BrokenPipeError):  # a reader such as head has had enough
                print(f"deq-init: expected to write to standard output: {error}", file=sys.stderr)
            return 1
    return code or 0


def _run(arguments: Sequence[str] | None) -> int | None:
    try:
        options = _parser().parse_args(arguments)
    except SystemExit:  # after --help or --version
        sys.stdout.flush()
        raise
    command: Callable[[argparse.Namespace], int | None] = options.command
    code = command(options)
    sys.stdout.flush()
    return code


class _Output:
    """Standard output that remembers its last failure and replaces what it cannot encode."""

    failure: OSError | None = None

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        text = text.encode(encoding, "replace").decode(encoding)
        return int(self._attempt(lambda: self._stream.write(text)))

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except OSError as error:
            self.failure = error
            # Python flushes what is left when it exits.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise


@contextlib.contextmanager
def _standard_output() -> Iterator[_Output]:
    """Make standard output one that remembers its failures; open what is closed as the null device.

    A file that is opened while descriptor 1 is free would be standard output to the processes that
    are started then, which may print.
    """
    with contextlib.ExitStack() as stack:
        for name in ("stdin", "stdout", "stderr"):
            if getattr(sys, name) is None:
                # The lowest free descriptor is the one that was closed.
                stream = open(os.devnull, "r+" if name == "stdin" else "w")  # noqa: SIM115
                os.set_inheritable(stream.fileno(), True)
                stack.enter_context(stream)
                setattr(sys, name, stream)
                stack.callback(setattr, sys, name, None)
        output = _Output(sys.stdout)
        with contextlib.redirect_stdout(cast(io.TextIOWrapper, output)):
            yield output


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deq-init",
        description="Initializers for deep equilibrium networks: the paper's experiments.",
    )
    parser.add_argument("--version", action="version", version=f"deq-init {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    reproduce = commands.add_parser(
        "reproduce", help="run an experiment of the paper and write its table and figure"
    )
    experiments = reproduce.add_subparsers(required=True, metavar="NAME")

    _add_experiments(experiments)
    again = commands.add_parser(
        "report", help="write table and figure of a results folder again, from its results alone"
    )
    again.add_argument("folder", metavar="DIR")
    again.set_defaults(command=_report)

    _add_check(commands)
    _add_spectrum(commands)
    return parser


def _add_experiments(experiments: Any) -> None:
    lengths = experiments.add_parser("lengths", help="length fluctuations of the linear DEQ")
    lengths.add_argument("--n", type=_number(int, 7), help="size of W")
    lengths.add_argument("--draws", type=_number(int, 1), help="matrices a family")
    lengths.add_argument("--seed", type=int, dest="first_seed", help="of the first draw")

    jacobian = experiments.add_parser(
        "jacobian", help="length and Jacobian of the nonlinear DEQ against the gain"
    )
    jacobian.add_argument("--n", type=_number(int, 2), help="size of W")
    jacobian.add_argument("--activations", nargs="+", choices=_ACTIVATIONS)
    digits = experiments.add_parser("digits", help="DEQ-FCN on scikit-learn's handwritten digits")
    mnist = experiments.add_parser("mnist", help="DEQ-FCN on MNIST")
    wikitext = experiments.add_parser("wikitext", help="DEQ-transformer on WikiText")
    wikitext.add_argument("--steps", type=_number(int, 0), help="of training")
    wikitext.add_argument("--learning-rate", type=_number(float, 0), help="of Adam")
    wikitext.add_argument(
        "--norms", nargs="+", choices=["post", "pre", "none"], help="layer normalization"
    )
    for trained in (digits, mnist):
        trained.add_argument("--epochs", type=_number(int, 0))
        trained.add_argument(
            "--regimes",
            nargs="*",
            metavar="REGIME",
            help="run these settings, too, some of which hide the differences: adam, anderson, "
            "clipping, '20 steps', 'width 256'; all of them if none is named",
        )
    for trained in (digits, mnist, wikitext):
        trained.add_argument(
            "--backend", choices=["jax", "torch", "keras"], help="what trains (default: jax)"
        )
    mnist.add_argument("--orders", type=_number(int, 0), help="data orders, crossed with seeds")
    for swept in (jacobian, digits, mnist, wikitext):
        swept.add_argument("--gains", type=_number(float, 0), nargs="+", metavar="GAIN")
        swept.add_argument("--seeds", type=_number(int, 0), help="runs for each cell")
        swept.add_argument("--first-seed", type=int)
    for name, experiment in experiments.choices.items():
        experiment.add_argument(
            "--size",
            choices=["small", "full"],
            default="small",
            help="minutes on two cores, or a day of a large machine; the options above change it",
        )
        experiment.add_argument(
            "--engine",
            choices=["loky", "dask", "ray"],
            default="loky",
            help="processes on this machine, or a Dask or Ray cluster",
        )
        experiment.add_argument(
            "--scheduler", metavar="ADDRESS", help="of the Dask scheduler or Ray head"
        )
        experiment.add_argument("--jobs", type=_number(int, 0), help="cells at a time")
        experiment.add_argument(
            "--output",
            metavar="DIR",
            help="results folder; given again, the run goes on (default: below ./deq-init-results)",
        )
        experiment.add_argument("--quiet", action="store_true", help="no progress, no table")
        experiment.set_defaults(command=_reproduce, name=name)


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="say whether a model starts lazy, stable, critical or divergent",
        epilog=f"exit code: {', '.join(f'{code} {name}' for name, code in EXIT_CODES.items())}; "
        "1 if the model could not be checked",
    )
    check.add_argument("model", metavar="package.module:function", help="see docs/check.md")
    check.add_argument("--framework", choices=["torch", "jax", "keras"])
    check.add_argument(
        "--accept",
        action="append",
        choices=list(EXIT_CODES),
        default=[],
        metavar="VERDICT",
        help="exit with 0 for this verdict too; may be repeated",
    )
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.set_defaults(command=_check)


def _add_spectrum(commands: Any) -> None:
    spectrum = commands.add_parser(
        "spectrum", help="draw a matrix's eigenvalues and singular values, with theory's curves"
    )
    spectrum.add_argument("family", metavar="FAMILY", help=", ".join(families.FAMILIES))
    spectrum.add_argument("--n", type=_number(int, 1), default=1024, help="size of W")
    size = spectrum.add_mutually_exclusive_group()
    size.add_argument("--gain", type=_number(float, 0), help="default: 1")
    size.add_argument("--spectral-norm", type=_number(float, 0), metavar="NORM")
    size.add_argument("--spectral-radius", type=_number(float, 0), metavar="RADIUS")
    spectrum.add_argument("--seed", type=int, default=0, help="of the draw")
    where = spectrum.add_mutually_exclusive_group()
    where.add_argument(
        "--output", metavar="FILE.png", help="default: ./deq-init-spectrum-FAMILY.png"
    )
    where.add_argument("--text", action="store_true", help="no figure; Matplotlib is not needed")
    spectrum.set_defaults(command=_spectrum)


def _check(options: argparse.Namespace) -> int:
    from deq_init import model

    # What the model prints is not the report.
    with contextlib.redirect_stdout(sys.stderr):
        report = model.check(options.model, options.framework)
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    return 0 if report.verdict in options.accept else EXIT_CODES[report.verdict]


def _reproduce(options: argparse.Namespace) -> None:
    from deq_init.experiments import fcn, reproduce, sweep

    given = vars(options)
    grid = reproduce.EXPERIMENTS[options.name].grids[options.size]
    changes = {
        field.name: given[field.name]
        for field in dataclasses.fields(grid)
        if given.get(field.name) is not None
    }
    if "regimes" in changes:
        changes["regimes"] = fcn.require_regimes(changes["regimes"])
    for several in ("gains", "activations", "norms"):
        if several in changes:
            changes[several] = tuple(dict.fromkeys(changes[several]))
    how = sweep.Options(
        options.output, options.engine, options.scheduler, options.jobs, options.quiet
    )
    reproduce.run(
        options.name, dataclasses.replace(grid, **changes), how, announce=options.size == "full"
    )


def _report(options: argparse.Namespace) -> None:
    from deq_init.experiments import reproduce

    print(reproduce.rebuild(Path(options.folder)))


def _spectrum(options: argparse.Namespace) -> None:
    from deq_init.experiments import spectrum

    spectrum.run(
        options.family,
        n=options.n,
        gain=options.gain,
        spectral_norm=options.spectral_norm,
        spectral_radius=options.spectral_radius,
        seed=options.seed,
        output=options.output,
        text_only=options.text,
    )


def _number(kind: type[int] | type[float], above: int) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not above < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number above {above}, received {text}")
        return value

    convert.__name__ = kind.__name__
    return convert
