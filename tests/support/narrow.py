"""Layers that are frozen with weights in fewer bytes."""

import numpy as np

import rnnfast
from rnnfast import narrow
from support.streams import I, sequence

NARROW = ["bfloat16", "int8", "int8_products"]  # kinds, as the kernels call them

MAKERS = {
    "LSTM": lambda: rnnfast.LSTM(I, 9, 2, bidirectional=True, proj_size=4, dropout=0.5, rng=0),
    "leaky RNN": lambda: rnnfast.RNN(I, 9, leak=0.3, rng=0),
    "GRU": lambda: rnnfast.GRU(I, 9, batch_first=True, reset_after=False, init_state=True, rng=0),
    "Bidirectional": lambda: rnnfast.Bidirectional(rnnfast.LSTM(I, 6, rng=0), rnnfast.GRU(I, 7, rng=0)),
    "Linear": lambda: rnnfast.Linear(I, 9, rng=0),
    "Embedding": lambda: rnnfast.Embedding(7, 9, rng=0),
    "Sequential": lambda: rnnfast.Sequential(rnnfast.LSTM(I, 8, rng=0), rnnfast.LayerNorm(8), rnnfast.Linear(8, 3)),
}


def freeze(layer, kind):
    layer.freeze(*narrow.arguments_of(kind))


def linear_of(weight, bias=0.0):
    layer = rnnfast.Linear(weight.shape[1], weight.shape[0], rng=0)
    layer.load_state_dict({"weight": weight, "bias": np.full(len(weight), bias, np.float32)})
    return layer


def rounded(kind, array):
    return narrow.decode(kind, narrow.encode(kind, array))


def integer_product(a, weight):
    """The product of the rows of a, (..., K), by a weight, (columns, K), of which both are rounded to int8.

    Each block of 1024 elements of a row has a scale. It is computed in float64, but for the rounding of a to integers.
    """
    parts = narrow.encode("int8", np.ascontiguousarray(weight, np.float32))
    a, total = np.asarray(a, np.float32), 0.0
    for k in range(0, a.shape[-1], 1024):
        block = a[..., k : k + 1024]
        largest = np.abs(block).max(axis=-1, keepdims=True)
        largest[largest < 2.0**-120] = 0
        inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
        integers = np.rint(block * inverse).astype(np.float64)
        total = total + integers @ parts[""][:, k : k + 1024].T.astype(np.float64) * (largest / np.float64(127))
    return total * parts[".scale"]


class IntegerProducts(np.ndarray):
    """A weight whose product with rows of another array is `integer_product`: ``a @ weight.T``."""

    def __rmatmul__(self, a):
        return integer_product(a, np.asarray(self).T)


def bits(results):
    """The bits of arrays in nested tuples."""
    return [bits(one) for one in results] if isinstance(results, tuple) else results.tobytes()


def input_of(name):
    return np.arange(6).reshape(3, 2) if name == "Embedding" else sequence(np.random.default_rng(0), 3, 2)
