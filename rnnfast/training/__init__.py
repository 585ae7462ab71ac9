"""Losses, optimizers, schedules, gradient clipping, averages, truncated back-propagation, and data parallelism.

Formulas and defaults are those of PyTorch. Optimizers, clipping and averages update arrays in place. They take a
mapping from names to arrays, a layer or model or what its ``backward`` returns, or a list of these:
``Adam([encoder, decoder])``. In a list, a name starts with the index of its layer, as in ``"0.weight_ih_l0"``.

Examples
--------
Fit a line:

>>> import numpy as np
>>> from rnnfast.training import Adam, mean_squared_error
>>> x, target = np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [3.0], [5.0]])
>>> parameters = {"slope": np.zeros((1, 1)), "offset": np.zeros(1)}
>>> optimizer = Adam(parameters, lr=0.1)
>>> for _ in range(500):
...     loss, dy = mean_squared_error(x @ parameters["slope"] + parameters["offset"], target)
...     optimizer.step({"slope": x.T @ dy, "offset": dy.sum(0)})
>>> print(parameters["slope"].round(2), parameters["offset"].round(2))
[[2.]] [1.]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .bptt import Window, truncated_bptt
from .data_parallel import DataParallel
from .losses import (
    binary_cross_entropy,
    gaussian_nll,
    huber,
    mean_absolute_error,
    mean_squared_error,
    poisson_nll,
    quantile_loss,
    softmax_cross_entropy,
)
from .optimizers import SGD, Adam, AdamW, RMSprop, clip_grad_norm

if TYPE_CHECKING:
    from . import schedules
    from .averaging import ExponentialMovingAverage
    from .ctc import ctc_greedy_decode, ctc_loss
    from .fitting import fit
    from .loop import History, plot_history
    from .resuming import load_checkpoint, save_checkpoint

# Modules that are imported at their first use, so that importing rnnfast stays fast, and what they define.
_LAZY = {
    "averaging": ("ExponentialMovingAverage",),
    "ctc": ("ctc_greedy_decode", "ctc_loss"),
    "fitting": ("fit",),
    "loop": ("History", "plot_history"),
    "resuming": ("load_checkpoint", "save_checkpoint"),
    "schedules": (),
}

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "DataParallel",
    "ExponentialMovingAverage",
    "History",
    "RMSprop",
    "Window",
    "binary_cross_entropy",
    "clip_grad_norm",
    "ctc_greedy_decode",
    "ctc_loss",
    "fit",
    "gaussian_nll",
    "huber",
    "load_checkpoint",
    "mean_absolute_error",
    "mean_squared_error",
    "plot_history",
    "poisson_nll",
    "quantile_loss",
    "save_checkpoint",
    "schedules",
    "softmax_cross_entropy",
    "truncated_bptt",
]


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name == module or name in names:
            imported = importlib.import_module(f"{__name__}.{module}")
            return imported if name == module else getattr(imported, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
