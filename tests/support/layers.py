"""Small layers of every variant, their results, and checks that a rejected call changes nothing."""

import numpy as np
import pytest

import rnnfast
from rnnfast import functional
from support.cells import make_layer
from support.compare import members, named

STACKS = {
    "plain": {},
    "deep": {"num_layers": 3},
    "both": {"bidirectional": True},
    "deep both without bias": {"num_layers": 2, "bidirectional": True, "bias": False},
}

T, N, I, H = 5, 3, 4, 6


def make(kind, **options):
    """A layer of one of VARIANTS with I features and H outputs."""
    return make_layer(kind, I, H, **options)


def like(state, rng):
    """Random values with the structure and shapes of a state."""
    values = tuple(rng.standard_normal(member.shape).astype(member.dtype) for member in members(state))
    return values if isinstance(state, tuple) else values[0]


def results(layer, x, state=None, dy=None, dstate=None):
    """The results of forward and backward by name."""
    y, end, tape = layer.forward(x, state)
    return named(y, end, *layer.backward(tape, dy, dstate))


def outputs(y, state):
    """The results of a call by name."""
    return {"y": y, **{f"state {i}": member for i, member in enumerate(members(state))}}


def reference_parameters(layer):
    """The parameters for the reference: those of the layer, and those that are its options, such as a leak."""
    engine = layer.execution.engine
    fixed = {
        name: np.full(shape, getattr(layer, engine.extra), layer.dtype)
        for name, shape in functional.parameter_shapes(engine).items()
        if name not in layer.parameters
    }
    return {**layer.state_dict(), **fixed}


def problem(layer, rng, shape=(T, N, I)):
    """Random x, state, dy and dstate for a layer."""
    x = rng.standard_normal(shape).astype(layer.dtype)
    y, state = layer(x)
    return x, like(state, rng), rng.standard_normal(y.shape).astype(layer.dtype), like(state, rng)


def snapshot(layer):
    """The parts of a layer that a rejected call must not change."""
    layers = [layer.forward_layer, layer.backward_layer] if isinstance(layer, rnnfast.Bidirectional) else [layer]
    arrays = {name: array.tobytes() for name, array in layer.parameters.items()}
    writeable = [array.flags.writeable for array in layer.parameters.values()]
    return arrays, writeable, [one._rng.bit_generator.state for one in layers]


def refused(layer, call, error, match):
    """Require that a call raises an error and does not change the layer."""
    before = snapshot(layer)
    with pytest.raises(error, match=match):
        call()
    assert snapshot(layer) == before
