"""The command line of rnnfast: ``rnnfast --help``, or ``python -m rnnfast --help``."""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from rnnfast import __version__
from rnnfast.commands import bench, convert, export, info, series, text
from rnnfast.commands.program import Parser, program_name, run_program

DESCRIPTION = """\
Recurrent neural networks for NumPy, from the command line.

Examples:
  rnnfast info                             show what rnnfast uses on this machine
  rnnfast bench                            benchmark the layers against other libraries
  rnnfast train text book.txt -o book.npz  train a language model on a text
  rnnfast sample book.npz --length 300     write text with the model
  rnnfast train csv sales.csv --column sold --season 12 -o sales.npz
  rnnfast predict sales.npz --horizon 24   forecast the series
  rnnfast convert model.onnx model.npz     convert a model of another program
  rnnfast export filter.npz -o filter.c    write a saved layer as a C program

"rnnfast COMMAND --help" describes a command.
Exit status: 0 success, 1 wrong results (bench), 2 error, 130 stopped by Ctrl-C.
"""


def _texts(description: str) -> dict[str, Any]:
    """Return the description and the epilog of a parser, which keep their line breaks, with the name in use."""
    description = description.replace("  rnnfast ", f"  {program_name()} ").replace('"rnnfast ', f'"{program_name()} ')
    above, marker, below = description.partition("\nExamples:\n")
    return {
        "description": textwrap.fill(" ".join(above.split()), 79),
        "epilog": (marker + below).strip() or None,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _add(commands: Any, name: str, configure: Callable[[argparse.ArgumentParser], None], short: str) -> None:
    configure(commands.add_parser(name, help=short, **_texts(inspect.cleandoc(configure.__doc__ or short))))


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=program_name(), **_texts(DESCRIPTION))
    parser.add_argument("--version", action="version", version=f"rnnfast {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(commands, "info", info.configure, "show what rnnfast uses on this machine, and why")
    _add(commands, "bench", bench.configure, "benchmark the layers against other libraries")
    train = commands.add_parser("train", help="train a model on a text or a time series")
    kinds = train.add_subparsers(title="kinds", metavar="KIND", required=True)
    _add(kinds, "text", text.configure_train, "train a character language model")
    _add(kinds, "csv", series.configure_train, "train a forecaster on a column of a CSV file")
    _add(commands, "sample", text.configure_sample, "write text with a language model")
    _add(commands, "predict", series.configure_predict, "forecast a time series")
    _add(commands, "convert", convert.configure, "convert a model file of another program")
    _add(commands, "export", export.configure, "write a saved layer or model as a C program")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""

    def run() -> int:
        parsed = make_parser().parse_args(arguments)
        return int(parsed.run(parsed))

    return run_program(program_name(), run)


if __name__ == "__main__":
    sys.exit(main())
