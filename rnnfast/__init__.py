"""Recurrent neural networks for NumPy: RNN, LSTM and GRU, forward and backward, with torch's names and layouts.

>>> import numpy as np, rnnfast
>>> layer = rnnfast.LSTM(4, 8, rng=0)
>>> y, (h, c) = layer(np.zeros((5, 2, 4), np.float32))
>>> y.shape
(5, 2, 8)
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

try:
    from . import training
    from .functional import get_num_threads, isas, set_num_threads
    from .layers import (
        GRU,
        LSTM,
        RNN,
        SRU,
        Activation,
        Attention,
        Bidirectional,
        Dropout,
        Embedding,
        Ensemble,
        Gradients,
        IndRNN,
        LayerNorm,
        Linear,
        MinGRU,
        MinLSTM,
        Pool,
        Tape,
        from_state_dict,
        load,
    )
    from .streams import Stream, StreamPool
    from .weights import load_arrays, save_arrays
except (ImportError, ValueError) as error:  # not built, or RNNFAST_ISA names no instruction set that runs here
    from ._startup import import_error

    raise import_error(error) from None

if TYPE_CHECKING:
    from . import backends as backends
    from . import dask as dask
    from . import diagnostics as diagnostics
    from . import export as export
    from . import functional as functional
    from . import layers as layers
    from . import models as models
    from . import online as online
    from . import quantization as quantization
    from . import reference as reference
    from . import sklearn as sklearn
    from . import threads as threads
    from .backends._model_files import from_file as from_file
    from .models import Model as Model
    from .models import Sequential as Sequential

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SRU",
    "Activation",
    "Attention",
    "Bidirectional",
    "Dropout",
    "Embedding",
    "Ensemble",
    "Gradients",
    "IndRNN",
    "LayerNorm",
    "Linear",
    "MinGRU",
    "MinLSTM",
    "Model",
    "Pool",
    "Sequential",
    "Stream",
    "StreamPool",
    "Tape",
    "__version__",
    "from_file",
    "from_state_dict",
    "get_include",
    "get_num_threads",
    "isas",
    "load",
    "load_arrays",
    "save_arrays",
    "set_num_threads",
    "training",
]


# Imported at their first use. Those that need an extra say so when it is missing.
_LAZY = (
    "backends",
    "dask",
    "diagnostics",
    "export",
    "models",
    "online",
    "quantization",
    "reference",
    "sklearn",
    "threads",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    if name in ("Model", "Sequential"):
        return getattr(importlib.import_module(f"{__name__}.models"), name)
    if name == "from_file":
        return importlib.import_module(f"{__name__}.backends._model_files").from_file
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY, "functional", "layers"})


def get_include() -> str:
    """Return the folder of ``rnnfast.h`` and ``rnnfast_python.h``, for packages that call the kernels from C or Cython.

    Pass it to the extension in ``setup.py``: ``include_dirs=[rnnfast.get_include()]``. ``cimport rnnfast`` then works.

    Examples
    --------
    >>> import pathlib, rnnfast
    >>> (pathlib.Path(rnnfast.get_include()) / "rnnfast.h").is_file()
    True
    """
    here = os.path.dirname(os.path.abspath(__file__))
    installed = os.path.join(here, "include")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(here), "csrc")  # of a checkout
