"""Recurrent neural networks for NumPy: RNN, LSTM and GRU, forward and backward, with torch's names and layouts.

>>> import numpy as np, rnnfast
>>> layer = rnnfast.LSTM(4, 8, rng=0)
>>> y, (h, c) = layer(np.zeros((5, 2, 4), np.float32))
>>> y.shape
(5, 2, 8)
"""

import os

try:
    from . import training
    from .functional import get_num_threads, isas, set_num_threads
    from .layers import GRU, LSTM, RNN, Bidirectional, Embedding, Gradients, Linear, Tape, load
    from .streams import Stream, StreamPool
except (ImportError, ValueError) as error:  # not built, or RNNFAST_ISA names no instruction set that runs here
    from ._startup import import_error

    raise import_error(error) from None

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "Embedding",
    "Gradients",
    "Linear",
    "Stream",
    "StreamPool",
    "Tape",
    "__version__",
    "get_include",
    "get_num_threads",
    "isas",
    "load",
    "set_num_threads",
    "training",
]


def get_include() -> str:
    """The folder of ``rnnfast.h`` and ``rnnfast_python.h``, for packages that call the kernels from C or Cython.

    Their ``setup.py`` gives it as ``include_dirs=[rnnfast.get_include()]``; to ``cimport rnnfast`` takes no more.

    Examples
    --------
    >>> import pathlib, rnnfast
    >>> (pathlib.Path(rnnfast.get_include()) / "rnnfast.h").is_file()
    True
    """
    here = os.path.dirname(os.path.abspath(__file__))
    installed = os.path.join(here, "include")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(here), "csrc")  # of a checkout
