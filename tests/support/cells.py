"""The cells under test, as the registry declares them, with their layers and the shapes of their parameters.

A cell that is added to the registry in C and to rnnfast.reference is tested without a change here. To test its layer,
add the class and the options that select it to OPTIONS.
"""

import inspect

import pytest

import rnnfast
from rnnfast.functional import CELLS

# The cells whose input may have any size. Those that read x need H features: test_elementwise_cells.py compares them
# with the others.
ANY_INPUT = [cell for cell, info in CELLS.items() if not info.reads_x]
# Each such cell, and again with a projection where it supports one: the name of the cell, and whether to project.
VARIANTS = {cell: (cell, False) for cell in ANY_INPUT}
VARIANTS |= {f"{cell}_projected": (cell, True) for cell, info in CELLS.items() if info.projects}

# The ways in which a stack may run, as keyword arguments of the reference and of the engine.
DIRECTIONS = {"forward": {}, "reverse": {"reverse": True}, "bidirectional": {"bidirectional": True}}

# The options of layers that select a cell.
OPTIONS = [
    (rnnfast.RNN, {}),
    (rnnfast.RNN, {"nonlinearity": "relu"}),
    (rnnfast.RNN, {"leak": 0.3}),
    (rnnfast.RNN, {"nonlinearity": "relu", "leak": 0.6}),
    (rnnfast.LSTM, {}),
    (rnnfast.GRU, {}),
    (rnnfast.GRU, {"reset_after": False}),
    (rnnfast.MinGRU, {}),
    (rnnfast.MinGRU, {"candidate": "identity"}),
    (rnnfast.MinLSTM, {}),
    (rnnfast.MinLSTM, {"candidate": "identity"}),
    (rnnfast.SRU, {"highway": "identity"}),
    (rnnfast.SRU, {"highway": "linear"}),
    (rnnfast.IndRNN, {}),
    (rnnfast.IndRNN, {"nonlinearity": "tanh"}),
]
# torch's class for the cells that it has.
TORCH_CLASSES = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "lstm": "LSTM", "gru": "GRU"}

# The layers of the cells: class and options.
LAYERS = {
    maker(1, 1, **options).execution.engine.cell: (maker, options)
    for maker, options in OPTIONS
    if options.keys() <= inspect.signature(maker).parameters.keys()
}


def gates_of(cell):
    """The number of gates of a cell."""
    return len(CELLS[cell].gates)


def is_trained(cell, name):
    """Whether backward computes the gradient of a parameter."""
    info = CELLS[cell]
    return not info.extra or info.extra_trained or not name.startswith(f"{info.extra}_l")


def has_c(variant):
    """Whether the state of a cell or variant is the pair (h, c)."""
    return CELLS[VARIANTS[variant][0]].has_c


def make_layer(variant, I, H, **options):
    """A layer of one of VARIANTS with H outputs. With a projection it has H + 1 units, as P must be less than H."""
    cell, projected = VARIANTS.get(variant, (variant, False))
    if cell not in LAYERS:
        pytest.skip(f"support.cells.OPTIONS has no layer of the cell {cell}")
    maker, own = LAYERS[cell]
    if projected:
        own = {"proj_size": H}
    return maker(I, H + projected, **{"rng": 0, **own, **options})


def parameter_shapes(cell, I, H, *, proj_size=0, num_layers=1, bidirectional=False, bias=True):
    """Names and shapes of the parameters in torch's order, including those that torch lacks, such as a leak."""
    shapes, info, width = {}, CELLS[cell], proj_size or H
    rows = len(info.gates) * H
    suffixes = ("", "_reverse") if bidirectional else ("",)
    for layer in range(num_layers):
        for suffix in suffixes:
            end = f"_l{layer}{suffix}"
            shapes["weight_ih" + end] = (rows, len(suffixes) * width if layer else I)
            if not info.elementwise:
                shapes["weight_hh" + end] = (rows, width)
            if bias:
                shapes["bias_ih" + end] = (rows,)
            if bias and not info.elementwise:
                shapes["bias_hh" + end] = (rows,)
            if proj_size:
                shapes["weight_hr" + end] = (width, H)
            if info.extra:
                shapes[info.extra + end] = (info.extra_rows, H)
    return shapes
