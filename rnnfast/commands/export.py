"""``rnnfast export``: a saved model as a C program."""

from __future__ import annotations

import argparse
import os

import rnnfast
from rnnfast.commands import program
from rnnfast.commands.program import CannotRun, printable


def configure(parser: argparse.ArgumentParser) -> None:
    """Write a model as a C program: one source file that holds the weights and needs no library, and a header. The
    model is a file that layer.save(path) wrote: an RNN, LSTM or GRU, or a Sequential with Linear, Activation, Dropout
    and Embedding. The program keeps the state and computes one step per call.

    Examples:
      rnnfast export filter.npz -o filter.c
      rnnfast export filter.npz -o src/net.c --name filter
    """
    parser.add_argument("model", metavar="MODEL", help="file saved by layer.save(path) of rnnfast")
    parser.add_argument(
        "-o", "--output", metavar="FILE.c", type=program.file_name, required=True, help="C source to write"
    )
    parser.add_argument(
        "--name", help="start of the public names, and the name of the header (default: FILE)", metavar="NAME"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    folder, file = os.path.split(arguments.output)
    name = os.path.splitext(file)[0] if arguments.name is None else arguments.name
    header = os.path.join(folder, f"{name}.h")
    try:
        model = rnnfast.load(arguments.model)
    except OSError as error:
        raise CannotRun(f"cannot read {arguments.model}: {error.strerror or error}") from None
    except ValueError as error:
        raise CannotRun(str(error)) from None
    try:
        written = rnnfast.export.c_source(model, name)
    except (TypeError, ValueError) as error:
        raise CannotRun(f"cannot export {arguments.model}: {error}") from None
    program.require_distinct({"MODEL": arguments.model, "--output": arguments.output, "the header": header})
    for path, text in ((header, written.header), (arguments.output, written.source)):
        with program.writing(path) as target:
            target.write(text)
    print(f"Saved to {printable(arguments.output, keep='')} and {printable(header, keep='')}")
    print(f"flash  {written.flash:,} bytes of constants, besides the code")
    print(f"RAM    {written.state:,} bytes for each state, {written.scratch:,} bytes of arrays on the stack in a step")
    return 0
