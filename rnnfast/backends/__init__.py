"""Adapters to other frameworks. Each module imports its host framework, which must be installed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import jax as jax
    from . import keras as keras
    from . import keras_files as keras_files
    from . import onnx as onnx
    from . import thinc as thinc
    from . import torch as torch

_LAZY = ("jax", "keras", "keras_files", "onnx", "thinc", "torch")


def __getattr__(name: str) -> Any:
    if name in _LAZY:  # the module says what to install if its host is missing
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_LAZY)
