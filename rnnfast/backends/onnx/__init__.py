"""ONNX: run the recurrent nodes of models on rnnfast, and convert nodes to layers and layers to models.

session(model)
    Create a session of ONNX Runtime that runs the recurrent nodes of a model on rnnfast, and all other nodes itself.
ops
    Classes for ``onnx.reference.ReferenceEvaluator(model, new_ops=ops)``: rnnfast runs the recurrent nodes of a model,
    including those in the bodies of loops and branches.
Backend
    An ``onnx.backend.base.Backend`` for whole models. The reference evaluator runs the other nodes.
layer_from_onnx(model, node)
    Convert a node to a layer with its weights and options, to train or call it.
to_onnx(layer)
    Convert a layer to a model.

The operators RNN, LSTM and GRU are supported as the standard defines them, in float32 and float64: all directions,
sequence_lens, initial states, peepholes, clip, input_forget, activations with alpha and beta, linear_before_reset, both
layouts, and all optional inputs and outputs. ``com.microsoft.DynamicQuantizeLSTM`` runs in float32, with dequantized
weights; in a session only on request. Weights that cannot change, those of initializers or computed from constants, are
packed once. Nodes may lie in bodies of If, Loop and Scan, and in functions.

Supported: onnx 1.16 and later; versions 7, 14 and 22 of the operators, which cover opset 7 and all later opsets so far;
for sessions, onnxruntime 1.16 and later. Other element types, such as float16 and bfloat16, and opsets before 7 raise
NotImplementedError, or stay in ONNX Runtime. For a row with sequence_lens 0, the final state is zero, as in ONNX
Runtime; an rnnfast layer returns the row's initial state. X must have at least one time step.

Examples
--------
>>> import numpy as np, rnnfast
>>> from onnx.reference import ReferenceEvaluator
>>> layer = rnnfast.LSTM(4, 8, bidirectional=True, rng=0)
>>> model = to_onnx(layer)
>>> x = np.ones((5, 2, 4), np.float32)
>>> y, h, c = ReferenceEvaluator(model, new_ops=ops).run(None, {"x": x})
>>> y.shape, bool((y == layer(x)[0]).all())
((5, 2, 16), True)
>>> layer_from_onnx(model)
LSTM(4, 8, bidirectional=True)  # 896 parameters
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rnnfast.backends._common import require_version

try:
    import onnx
except ImportError as error:
    raise ImportError("rnnfast.backends.onnx needs onnx 1.16 or newer: pip install 'rnnfast[onnx]'") from error
else:
    require_version("rnnfast.backends.onnx", "onnx", onnx, (1, 16))

from .conversion import layer_from_onnx, to_onnx
from .evaluation import Backend, ops

if TYPE_CHECKING:
    from .sessions import session as session

__all__ = ["Backend", "layer_from_onnx", "ops", "session", "to_onnx"]


def __getattr__(name: str) -> Any:
    if name == "session":  # the module says what to install if ONNX Runtime is missing
        return importlib.import_module(f"{__name__}.sessions").session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
