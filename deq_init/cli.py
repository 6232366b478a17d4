"""The command line: ``deq-init reproduce NAME``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from deq_init import __version__
from deq_init.errors import DeqInitError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 1 after an error that was explained.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.
    """
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except DeqInitError as error:
        print(f"deq-init: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("deq-init: interrupted; finished rows are in the results folder", file=sys.stderr)
        return 130
    return 0


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
    return parser


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


def _number(kind: type[int] | type[float], above: int) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not above < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number above {above}, received {text}")
        return value

    convert.__name__ = kind.__name__
    return convert
