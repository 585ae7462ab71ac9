"""The layers: parameters, inference, training, saving.

Letters in the shapes: T time steps, N rows of the batch, I input size, H hidden size, P projected size, L layers, D
directions (2 when bidirectional, else 1). H_out is P with a projection, else H. Names, shapes, gate order, state layout
and initial values are those of torch.nn (docs.pytorch.org), so a torch ``state_dict`` loads unchanged.

Modules:

- ``base``: the base classes of all layers, Tape, Gradients
- ``recurrent``: the base class of ``rnn``, ``lstm``, ``gru`` and ``elementwise_cells``
- ``execution``: plans, buffers, and the forward and backward passes of recurrent layers
- ``bidirectional``, ``linear``, ``elementwise``, ``pooling``: the other layers
- ``saving``: the options of a layer, and its file format
"""

from .base import Gradients, Layer, Tape
from .bidirectional import Bidirectional
from .elementwise import Activation, Dropout, LayerNorm
from .elementwise_cells import SRU, IndRNN, MinGRU, MinLSTM
from .ensemble import Ensemble
from .gru import GRU
from .linear import Embedding, Linear
from .lstm import LSTM
from .pooling import Attention, Pool
from .recurrent import Recurrent
from .rnn import RNN
from .saving import CLASSES, from_state_dict, load

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SRU",
    "Activation",
    "Attention",
    "Bidirectional",
    "Dropout",
    "Embedding",
    "Ensemble",
    "Gradients",
    "IndRNN",
    "Layer",
    "LayerNorm",
    "Linear",
    "MinGRU",
    "MinLSTM",
    "Pool",
    "Recurrent",
    "Tape",
    "from_state_dict",
    "load",
]

# The public classes, from which `load` builds layers.
_RECURRENT = (RNN, LSTM, GRU, MinGRU, MinLSTM, SRU, IndRNN)
_PUBLIC = (*_RECURRENT, Bidirectional, Linear, Embedding, Activation, Dropout, LayerNorm, Pool, Attention)
CLASSES.update({kind.__name__: kind for kind in _PUBLIC})
