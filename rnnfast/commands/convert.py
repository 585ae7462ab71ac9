"""``rnnfast convert``: build a layer from a file of another program, and save it as a file of rnnfast."""

from __future__ import annotations

import argparse
import warnings

from rnnfast.commands import program


def configure(parser: argparse.ArgumentParser) -> None:
    """Build a layer or a chain of layers from a model file of another program, and save it as a file that
    rnnfast.load reads. IN can be a safetensors file, a file of torch.save, ONNX, Keras, NAM, RTNeural or AIDA-X. The
    table shows what was built from the file, and what was left out.

    Examples:
      rnnfast convert model.safetensors encoder.npz --name encoder.lstm
      rnnfast convert model.pt tagger.npz --name embedding --name lstm --name readout
      rnnfast convert amplifier.nam amplifier.npz
    """
    parser.add_argument("input", metavar="IN", type=program.file_name, help="the file to read")
    parser.add_argument("output", metavar="OUT", type=program.file_name, help="the file to write")
    parser.add_argument(
        "--name",
        action="append",
        type=program.file_name,
        help="a layer in the file, or the start of the names of several; repeat it for a chain in this order",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from rnnfast.backends import _model_files

    program.require_distinct({"IN": arguments.input, "OUT": arguments.output})
    program.require_writable(arguments.output)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the layers' own, such as dropout without effect
            found = _model_files.read(arguments.input, arguments.name)
    except OSError as error:
        raise program.CannotRun(f"cannot read {arguments.input}: {error.strerror or error}") from None
    except (ValueError, ImportError) as error:
        raise program.CannotRun(str(error)) from None
    print(program.printable(f"{arguments.input} is {found.form}"))
    rows = [("built", name, repr(part)) for name, part in found.parts.items()]
    rows += [("left out", name, what) for name, what in found.left_out.items()]
    width = min(40, max(len(name) for _, name, _ in rows))
    for state, name, what in rows:
        print(program.printable(f"  {state:9}{name:{width}}  {what}"))
    for note in found.notes:
        print(program.printable(f"  note     {note}"))
    found.layer.save(arguments.output)
    print(program.printable(f"Saved to {arguments.output}"))
    return 0
