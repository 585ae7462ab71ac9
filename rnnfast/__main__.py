"""The command line of rnnfast: ``python -m rnnfast --help``."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from typing import TYPE_CHECKING, Any

from rnnfast import __version__
from rnnfast.commands import CannotRun, bench, info, series, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DESCRIPTION = """\
Recurrent neural networks for NumPy, from the command line.

Examples:
  python -m rnnfast info                             what runs here, and why
  python -m rnnfast bench                            how fast it is, next to others
  python -m rnnfast train text book.txt -o book.npz  learn the characters of a text
  python -m rnnfast sample book.npz --length 300     let the model write
  python -m rnnfast train csv sales.csv --column sold --season 12 -o sales.npz
  python -m rnnfast predict sales.npz --horizon 24   go on with a series

"python -m rnnfast COMMAND --help" says more about each.
Exit status: 0 done, 1 a wrong result, 2 cannot run, 130 ended by Ctrl-C.
"""


def _texts(description: str) -> dict[str, Any]:
    """Description and epilog of a parser, shown as they stand here."""
    above, marker, below = description.partition("\nExamples:\n")
    return {
        "description": above.strip(),
        "epilog": (marker + below).strip() or None,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _add(commands: Any, name: str, configure: Callable[[argparse.ArgumentParser], None], short: str) -> None:
    configure(commands.add_parser(name, help=short, **_texts(inspect.cleandoc(configure.__doc__ or short))))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rnnfast", **_texts(DESCRIPTION))
    parser.add_argument("--version", action="version", version=f"rnnfast {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(commands, "info", info.configure, "what runs on this machine, and why")
    _add(commands, "bench", bench.configure, "time the layers, next to other libraries")
    train = commands.add_parser("train", help="train a model on a text or a series")
    kinds = train.add_subparsers(title="on what", metavar="KIND", required=True)
    _add(kinds, "text", text.configure_train, "a model of characters")
    _add(kinds, "csv", series.configure_train, "a model of a series, out of a CSV file")
    _add(commands, "sample", text.configure_sample, "let a model of characters write")
    _add(commands, "predict", series.configure_predict, "go on with a series")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    try:
        if sys.stdout is None:
            raise CannotRun("there is no standard output: it was closed")
        try:
            parsed = make_parser().parse_args(arguments)
            return parsed.run(parsed)
        finally:
            sys.stdout.flush()  # here a full disk is an error of the command, at the end of Python it is a riddle
    except CannotRun as error:
        return _cannot_run(str(error))
    except (MemoryError, OverflowError):
        return _cannot_run("there is not enough memory: use smaller sizes")
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who reads has gone, as in "| head"
        _drop_output()
        return 141
    except OSError as error:
        _drop_output()
        return _cannot_run(f"cannot write {error.filename or 'the output'}: {error.strerror or error}")


def _cannot_run(reason: str) -> int:
    print(f"python -m rnnfast: {reason}", file=sys.stderr)
    return 2


def _drop_output() -> None:
    """What is left to be written to stdout goes nowhere, or Python would try again in the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="replace")  # a terminal may lack characters that a text has
    sys.exit(main())
