"""The layers: parameters, inference, training, saving.

Letters in the shapes: T time steps, N rows of the batch, I input size, H hidden size, P projected size, L layers, D
directions (2 when bidirectional, else 1). H_out is P with a projection, else H. Names, shapes, gate order, state layout
and initial values are those of torch.nn (docs.pytorch.org), so a torch ``state_dict`` loads unchanged.

base       what all layers share: parameters, freezing, tapes, gradients
saving     the options of a layer, its file, ``load``
recurrent  what RNN, LSTM and GRU share; rnn, lstm, gru  the three classes
execution  how a layer runs the engine: plans, buffers, forward and backward
"""

from .base import Gradients, Layer, Tape
from .bidirectional import Bidirectional
from .gru import GRU
from .linear import Embedding, Linear
from .lstm import LSTM
from .recurrent import Recurrent
from .rnn import RNN
from .saving import CLASSES, load

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "Embedding",
    "Gradients",
    "Layer",
    "Linear",
    "Recurrent",
    "Tape",
    "load",
]

# The public classes, which a file can be rebuilt as.
CLASSES.update({kind.__name__: kind for kind in (RNN, LSTM, GRU, Bidirectional, Linear, Embedding)})
