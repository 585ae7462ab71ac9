"""Paths in a checkout, and the example programs as modules."""

import importlib.util
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CSRC = CHECKOUT / "csrc"
EXAMPLES = CHECKOUT / "examples"


def load_example(name):
    """Import examples/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
