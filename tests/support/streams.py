"""Inputs and states for the tests of streams and pools."""

import numpy as np

from support.compare import members

I, H = 5, 11
DTYPES = (np.float32, np.float64)


def sequence(rng, T, N, dtype=np.float32, features=I):
    return rng.standard_normal((T, N, features)).astype(dtype)


def random_state(layer, N, rng):
    """Random values with the structure of a layer's state."""
    width = layer.engine.output_size
    h = rng.standard_normal((layer.num_layers, N, width)).astype(layer.dtype)
    if not layer.engine.info.has_c:
        return h
    return h, rng.standard_normal((layer.num_layers, N, layer.hidden_size)).astype(layer.dtype)


def bits(state):
    return [member.tobytes() for member in members(state)]


def row_of(state, n):
    """The state of one row, (L, ...), as a pool returns it."""
    values = tuple(member[:, n] for member in members(state))
    return values if isinstance(state, tuple) else values[0]


def snapshot(stream):
    return bits(stream.state)
