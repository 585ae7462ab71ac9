"""The cells under test: their facts, their layers, and the names and shapes of their parameters."""

import rnnfast

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
