"""PyTorch's recurrent layers and cells, run by rnnfast.

`LSTM`, `GRU`, `RNN`, `LSTMCell`, `GRUCell` and `RNNCell` subclass the classes of torch.nn and replace only `forward`:
the constructor, parameters, initial values, state_dict, hooks, pickling and error messages are torch's. The layers also
take `lengths`, `mask`, `reset` and `reset_state`, as rnnfast's layers for NumPy do. `convert` switches the layers of an
existing model, `revert` switches them back, `report` lists what runs on rnnfast, and under `enable` torch's
constructors build these layers.

rnnfast runs float32 and float64 tensors on the CPU, as padded batches or as a PackedSequence. Dropout draws the same
random numbers as torch's own layers. Everything else falls back to torch's own operators: other devices and dtypes
(with one warning for each), empty tensors, torch.func transforms, forward-mode differentiation, and all calls without
lengths, mask and reset while torch.autocast is enabled for the CPU. Gradients of gradients (``create_graph=True``) are
recomputed with torch's operators, at their speed. As with torch's LSTM, changing y in place before the backward pass
raises an error. torch.jit.trace works where no gradient is required. For torch.jit.script, other devices,
torch.ao.quantization.quantize_dynamic, which skips the layers of this module without a warning, and exports to a format
that only knows torch's layers, call `revert`.

As after Tensor.numpy(), the storage of tensors that a call has read cannot be resized.

Calls run on torch's threads, all of them, if torch uses OpenMP on Linux and has at most `rnnfast.get_num_threads()`
threads, as it does by default. After ``torch.set_num_threads(1)``, they run on one. Otherwise, they run on rnnfast's
own threads, whose number is set by `rnnfast.set_num_threads`, or by RNNFAST_NUM_THREADS or OMP_NUM_THREADS before
Python starts.

Packed weights are cached until the parameters change. torch counts in-place writes to a tensor, but not those that go
through ``.data`` or a NumPy view. To detect these too, each call compares the parameters with the packed values: all
elements of parameters of up to 16 KiB, and samples of larger ones. This detects optimizer steps and averaged weights,
but can miss a change of a few elements of a large parameter. Make such changes under ``torch.no_grad()``, where torch
counts them, and use a small layer with torch.autograd.gradcheck, which changes single elements.

The operators rnnfast::infer, rnnfast::forward and rnnfast::backward are opaque to torch.compile. By default,
torch.compile breaks the graph at recurrent layers, but not at cells; with torch._dynamo.config.allow_rnn the operators
of layers become part of the graph too. Eager calls bypass the operators unless something traces them, so a profile
shows only Python function names.

Requires torch 2.4 or newer; tested with 2.13.0.
"""

from __future__ import annotations

try:
    import torch.library  # noqa: F401
except ImportError as error:
    raise ImportError("rnnfast.backends.torch needs PyTorch 2.4 or newer: pip install 'rnnfast[torch]'") from error

from ._convert import Report, convert, disable, enable, report, revert
from ._layers import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Report",
    "convert",
    "disable",
    "enable",
    "report",
    "revert",
]

for _class in (GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, Report):
    _class.__module__ = __name__  # the name that pickles hold
