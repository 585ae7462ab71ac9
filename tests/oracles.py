"""What the tests of several modules share: random problems, and gradients by central differences."""

from types import SimpleNamespace

import numpy as np

import rnnfast
from rnnfast import reference

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}

# The cells, and the LSTM with its projection: the name of a cell, and whether to project.
VARIANTS = {**{cell: (cell, False) for cell in GATES}, "lstm_projected": ("lstm", True)}

# The ways in which a stack may run, as keyword arguments of the reference and of the engine.
DIRECTIONS = {"forward": {}, "reverse": {"reverse": True}, "bidirectional": {"bidirectional": True}}

# The layers of the cells: class and options.
LAYERS = {
    "rnn_tanh": (rnnfast.RNN, {}),
    "rnn_relu": (rnnfast.RNN, {"nonlinearity": "relu"}),
    "lstm": (rnnfast.LSTM, {}),
    "gru": (rnnfast.GRU, {}),
    "gru_reset_before": (rnnfast.GRU, {"reset_after": False}),
}


def make_layer(variant, I, H, **options):
    """A layer of one of VARIANTS, with H outputs; a projected LSTM, which needs P < H, has one unit more."""
    cell, projected = VARIANTS[variant]
    maker, own = LAYERS[cell]
    if projected:
        own = {"proj_size": H}
    return maker(I, H + projected, **own, **{"rng": 0, **options})


def parameter_shapes(cell, I, H, *, proj_size=0, num_layers=1, bidirectional=False, bias=True):
    """The names and shapes of torch's parameters, in torch's order."""
    shapes, rows, width = {}, GATES[cell] * H, proj_size or H
    suffixes = ("", "_reverse") if bidirectional else ("",)
    for layer in range(num_layers):
        for suffix in suffixes:
            end = f"_l{layer}{suffix}"
            shapes["weight_ih" + end] = (rows, len(suffixes) * width if layer else I)
            shapes["weight_hh" + end] = (rows, width)
            if bias:
                shapes["bias_ih" + end] = shapes["bias_hh" + end] = (rows,)
            if proj_size:
                shapes["weight_hr" + end] = (width, H)
    return shapes


def problem(
    cell,
    T,
    N,
    I,
    H,
    *,
    proj_size=0,
    num_layers=1,
    bidirectional=False,
    reverse=False,
    bias=True,
    dropout=False,
    dtype=np.float64,
    seed=0,
):
    """A random instance: parameters, x, state, masks; dy and dstate; options as the reference takes them."""
    rng = np.random.default_rng(seed)
    directions = 1 + bidirectional
    width = proj_size or H

    def values(*shape, scale=1.0):
        return (scale * rng.uniform(-1, 1, shape)).astype(dtype)

    def states():
        h = values(num_layers * directions, N, width)
        return (h, values(num_layers * directions, N, H)) if cell == "lstm" else h

    shapes = parameter_shapes(
        cell, I, H, proj_size=proj_size, num_layers=num_layers, bidirectional=bidirectional, bias=bias
    )
    keep = rng.random((num_layers - 1, T, N, directions * width)) < 0.75
    return SimpleNamespace(
        cell=cell,
        dtype=np.dtype(dtype),
        input_size=I,
        hidden_size=H,
        proj_size=proj_size,
        bias=bias,
        parameters={name: values(*shape, scale=(shape[-1] ** -0.5)) for name, shape in shapes.items()},
        x=values(T, N, I),
        state=states(),
        dy=values(T, N, directions * width),
        dstate=states(),
        options={
            "num_layers": num_layers,
            "bidirectional": bidirectional,
            "reverse": reverse,
            "masks": (keep / 0.75).astype(dtype) if dropout else None,
        },
    )


def members(state):
    """The parts of a state as a list: h, or h and c."""
    return list(state) if isinstance(state, tuple) else [state]


def run_reference(p, dtype=None):
    """All results of the reference by name, computed in the problem's dtype or another."""
    cast = (lambda a: a) if dtype is None else (lambda a: a.astype(dtype))
    state, dstate = (tuple(map(cast, members(s))) if isinstance(s, tuple) else cast(s) for s in (p.state, p.dstate))
    options = dict(p.options)
    if options["masks"] is not None:
        options["masks"] = cast(options["masks"])
    parameters = {name: cast(value) for name, value in p.parameters.items()}
    y, end, tape = reference.forward(p.cell, parameters, cast(p.x), state, **options)
    return named(y, end, *reference.backward(tape, cast(p.dy), dstate))


def named(y, state, dx, dstate, dparameters):
    """All results of a forward and backward under one name each."""
    results = {"y": y, "dx": dx}
    results.update({f"state {i}": member for i, member in enumerate(members(state))})
    results.update({f"dstate {i}": member for i, member in enumerate(members(dstate))})
    results.update({f"d{name}": gradient for name, gradient in dparameters.items()})
    return results


def assert_close(got, expected, tolerance):
    """All named arrays agree, to `tolerance` times the largest magnitude of the expected one (at least 1)."""
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert got[name].shape == want.shape, name
        largest = max(1.0, np.abs(want).max(initial=0.0))
        np.testing.assert_allclose(got[name], want, rtol=0, atol=tolerance * largest, err_msg=name)


def central_differences(loss, array, step=1e-5):
    """The gradient of loss() by every element of the float64 array, which loss() reads."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + step
        above = loss()
        array[index] = value - step
        below = loss()
        array[index] = value
        gradient[index] = (above - below) / (2 * step)
    return gradient


def gradient_by_differences(p, run_forward):
    """What `named` calls dx, dstate and the parameters' gradients, where run_forward(p) returns y and the state."""

    def loss():
        y, state = run_forward(p)
        ends = zip(members(state), members(p.dstate), strict=True)
        return np.vdot(y, p.dy) + sum(np.vdot(end, d) for end, d in ends)

    results = {"dx": central_differences(loss, p.x)}
    results.update({f"dstate {i}": central_differences(loss, member) for i, member in enumerate(members(p.state))})
    results.update({f"d{name}": central_differences(loss, value) for name, value in p.parameters.items()})
    return results
