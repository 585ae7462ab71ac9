"""The exception to raise when rnnfast cannot be imported."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder


def import_error(error: Exception) -> BaseException:
    """Return the exception to raise instead of `error`.

    If the compiled extension is missing, the message says how to build it. Started as a command (``rnnfast``, or
    ``python -m rnnfast``, for which argv[0] is "-m" until the package is imported), the error is one line on stderr.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    if PathFinder.find_spec("rnnfast._core", [here]) is None:
        error = ImportError(
            f"rnnfast is not built: it was imported from the source folder {here}, which has no compiled extension: "
            "run pip install -e . in the checkout, or start Python in another folder"
        )
    command = os.path.splitext(os.path.basename((getattr(sys, "argv", None) or [""])[0]))[0]
    as_module = command == "-m" and "rnnfast" in sys.orig_argv
    if not as_module and command != "rnnfast":
        return error
    print(f"{'python -m ' * as_module}rnnfast: {error}", file=sys.stderr)
    return SystemExit(2)
