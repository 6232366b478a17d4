"""The command line: ``deq-init reproduce NAME``, ``check MODEL`` and ``spectrum FAMILY``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from deq_init import __version__, families
from deq_init.errors import DeqInitError

EXIT_CODES = {"stable": 0, "lazy": 3, "critical": 4, "divergent": 5}
"""What ``deq-init check`` exits with, for each verdict."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0, :data:`EXIT_CODES` after a check, or 1 after an error that was explained.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.
    """
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int | None] = options.command
    try:
        code = command(options)
        sys.stdout.flush()
    except DeqInitError as error:
        print(f"deq-init: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("deq-init: interrupted; an experiment keeps its finished rows", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, such as head, has had enough. Python flushes what is left when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code or 0


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

    digits = experiments.add_parser("digits", help="DEQ-FCN on scikit-learn's handwritten digits")
    digits.add_argument(
        "--gains", type=_number(float, 0), nargs="+", default=[0.6, 0.9, 1.2, 1.3], metavar="GAIN"
    )
    digits.add_argument("--seeds", type=_number(int, 0), default=12, help="runs for each cell")
    digits.add_argument("--epochs", type=_number(int, 0), default=3)
    digits.set_defaults(command=_digits)

    lengths = experiments.add_parser("lengths", help="length fluctuations of the linear DEQ")
    lengths.add_argument("--n", type=_number(int, 2), default=200, help="size of W")
    lengths.add_argument("--draws", type=_number(int, 1), default=200, help="matrices a family")
    lengths.add_argument("--seed", type=int, default=0, help="of the first draw")
    lengths.set_defaults(command=_lengths)

    for experiment in (digits, lengths):
        experiment.add_argument(
            "--output", metavar="DIR", help="results folder (default: below ./deq-init-results)"
        )
        experiment.add_argument("--quiet", action="store_true", help="no progress, no table")

    _add_check(commands)
    _add_spectrum(commands)
    return parser


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


def _digits(options: argparse.Namespace) -> None:
    from deq_init.experiments import fcn

    fcn.run_digits(
        options.output,
        gains=tuple(dict.fromkeys(options.gains)),
        seeds=options.seeds,
        epochs=options.epochs,
        quiet=options.quiet,
    )


def _lengths(options: argparse.Namespace) -> None:
    from deq_init.experiments import lengths

    lengths.run(
        options.output, n=options.n, draws=options.draws, seed=options.seed, quiet=options.quiet
    )


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
