"""Losses, optimizers, gradient clipping, truncated back-propagation through time, and data parallelism with MPI.

Formulas and defaults are those of PyTorch. Optimizers and clipping update, in place, the arrays of a mapping from names
to arrays, such as ``layer.parameters`` and ``grads.parameters``. To train several layers together, merge their mappings
into one dict with distinct names.

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

from .bptt import Window, truncated_bptt
from .data_parallel import DataParallel
from .losses import mean_squared_error, softmax_cross_entropy
from .optimizers import SGD, Adam, clip_grad_norm

__all__ = [
    "SGD",
    "Adam",
    "DataParallel",
    "Window",
    "clip_grad_norm",
    "mean_squared_error",
    "softmax_cross_entropy",
    "truncated_bptt",
]
