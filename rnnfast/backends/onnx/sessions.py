"""Sessions of ONNX Runtime whose recurrent nodes run on rnnfast.

The extension module is also a library of operators for ONNX Runtime (csrc/ort_ops.h). A session replaces the recurrent
nodes of a model by these operators, with packed weights, so that ONNX Runtime calls the kernels directly.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
import weakref
from typing import Any, NamedTuple

import onnx
from onnx import helper

from rnnfast import _core, arguments, functional
from rnnfast._types import Array
from rnnfast.backends._common import require_version

from . import models, nodes

try:
    import onnxruntime
except ImportError as error:
    raise ImportError("session needs onnxruntime 1.16 or newer: pip install 'rnnfast[onnx]'") from error

require_version("session", "onnxruntime", onnxruntime, (1, 16))

__all__ = ["session"]

_QUANTIZED = "it is quantized, and dequantize=True was not passed"
DOMAIN = "rnnfast"  # of the operators in csrc/ort_ops.c
# Threads of ONNX Runtime that spin after a node keep those of rnnfast off the processors. This time is enough for the
# gap between two nodes. With two threads, nsnet2 takes a third less time than with the default. A model of many small
# convolutions takes no more, but 40% more without any spinning. Older versions ignore the entry.
_SPIN_BRIEFLY = "session.intra_op.spin_duration_us", "100"
_registering = threading.Lock()
# Options that have the operators, which can be added only once, and the weights that they and their sessions refer to,
# by name.
_shared: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


class Replaced(NamedTuple):
    """A model whose recurrent nodes are operators of rnnfast."""

    model: onnx.ModelProto
    weights: dict[str, Array]  # packed, by the name of their initializer
    nodes: list[str]
    left: dict[str, str]


class Session(onnxruntime.InferenceSession):
    """A session of ONNX Runtime with the operators of rnnfast; `session` documents it."""

    def __init__(self, replaced: Replaced, sess_options: Any = None, **kwargs: Any) -> None:
        self.nodes, self.left = replaced.nodes, replaced.left
        options = onnxruntime.SessionOptions() if sess_options is None else sess_options
        if sess_options is None:
            options.add_session_config_entry(*_SPIN_BRIEFLY)
        with _registering:
            if options not in _shared:
                options.register_custom_ops_library(_core.__file__)
                _shared[options] = {}
            self._weights = _shared[options]
            # ONNX Runtime would copy the weights to small pages, which take up to 15% more time to read than large.
            for name, weights in replaced.weights.items():
                if name not in self._weights:
                    value = onnxruntime.OrtValue.ortvalue_from_numpy(weights)
                    self._weights[name] = value, weights
                    options.add_initializer(name, value)
        super().__init__(
            replaced.model.SerializeToString(), options, **{"providers": ["CPUExecutionProvider"], **kwargs}
        )


def session(model: Any, sess_options: Any = None, *, dequantize: bool = False, **kwargs: Any) -> Session:
    """Create a session of ONNX Runtime that runs the recurrent nodes of a model on rnnfast.

    Parameters
    ----------
    model : onnx.ModelProto, bytes, str or os.PathLike
        A model, its bytes, or the path of its file.
    sess_options : onnxruntime.SessionOptions, optional
        The operators of rnnfast are added to it, and it keeps the packed weights of its sessions alive, equal ones only
        once. Its number of threads applies to all other nodes; the number for recurrent nodes is that of
        rnnfast.set_num_threads. If both are above 1, set the entry "session.intra_op.spin_duration_us" to "100", as the
        default options have it: threads of ONNX Runtime that spin for long after a node keep those of rnnfast off the
        processors.
    dequantize : bool, default False
        Whether nodes of com.microsoft.DynamicQuantizeLSTM run on rnnfast too, with dequantized weights. They compute in
        float32, so they are more accurate. ONNX Runtime computes with integers, which usually takes less time.
    **kwargs
        Passed to onnxruntime.InferenceSession. The default of `providers` is the CPU.

    Returns
    -------
    onnxruntime.InferenceSession
        With two more attributes: `nodes`, the names of the nodes that run on rnnfast, and `left`, a dictionary from the
        names of all other recurrent nodes to the reason why they run in ONNX Runtime.

    Raises
    ------
    TypeError
        If `model` is neither a ModelProto nor bytes nor a path, `sess_options` is not a SessionOptions, or `dequantize`
        is not a bool.
    ValueError
        If `model` is not an ONNX model, a constant of the model cannot be read, or the model uses the domain "rnnfast".
    ImportError
        If onnxruntime is missing or older than 1.16.

    Warns
    -----
    RuntimeWarning
        If a recurrent node that is not quantized runs in ONNX Runtime, or the model has no recurrent node.

    Notes
    -----
    Supported are RNN, LSTM and GRU of float32 and float64. Nodes may lie in bodies of If, Loop and Scan, and in
    functions. Their weights must be initializers, or computed from constants only; an initializer that is also an input
    of the graph can change in every run, so it does not count. The weights are packed when the session is created, and
    equal weights only once.

    Unlike ONNX Runtime, rnnfast supports layout 1, and clips the input of h(C) as the standard says.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> from rnnfast.backends.onnx import session, to_onnx
    >>> layer = rnnfast.LSTM(4, 8, bidirectional=True, rng=0)
    >>> own = session(to_onnx(layer))
    >>> own.nodes
    ['LSTM_l0']
    >>> x = np.ones((5, 2, 4), np.float32)
    >>> y, h, c = own.run(None, {"x": x})
    >>> bool((y == layer(x)[0]).all())
    True
    """
    dequantize = arguments.flag("dequantize", dequantize)
    if not isinstance(sess_options, (onnxruntime.SessionOptions, type(None))):
        raise TypeError(f"sess_options must be an onnxruntime.SessionOptions or None, got {sess_options!r}")
    replaced = replace(models.load(model), dequantize)
    for name, reason in replaced.left.items():
        if reason != _QUANTIZED:
            warnings.warn(f"the recurrent node {name!r} runs in ONNX Runtime: {reason}", RuntimeWarning, stacklevel=2)
    if not (replaced.nodes or replaced.left):
        warnings.warn("the model has no recurrent node: all of it runs in ONNX Runtime", RuntimeWarning, stacklevel=2)
    return Session(replaced, sess_options, **kwargs)


def replace(model: onnx.ModelProto, dequantize: bool = False) -> Replaced:
    """Replace recurrent nodes by operators of rnnfast, in a new model."""
    changed = onnx.ModelProto()
    changed.CopyFrom(models.inline(model))
    for whole in (changed.graph, *changed.functions):
        if any(node.domain == DOMAIN for graph in models.graphs(whole) for node in graph.node):
            raise ValueError(f"the model uses the domain {DOMAIN!r}, which is reserved for the operators of a session")
    models.infer(changed)  # ONNX Runtime cannot infer them from the operators
    opset = models.opset(changed)
    replaced = Replaced(changed, {}, [], {})
    for one in models.find(changed):
        if one.is_quantized and not dequantize:
            replaced.left[one.name] = _QUANTIZED
            continue
        try:
            part = models.part(one, opset)
        except (ValueError, NotImplementedError) as error:
            replaced.left[one.name] = str(error)
            continue
        layer = nodes.build([part])
        packed = functional.empty(layer.engine.packed_size)
        packed[:] = 0  # padding too, so that equal weights have equal bytes
        functional.pack(layer.engine, list(layer.parameters.values()), packed, None)
        name = f"<rnnfast weights {hashlib.sha256(packed.data).hexdigest()}>"  # so that sessions share equal ones
        replaced.weights.setdefault(name, packed)
        replaced.nodes.append(one.name)
        _replace(one, layer, name, f"<rnnfast scratch {len(replaced.nodes)}>")
    for function in changed.functions:  # those that could not be inlined
        for node in filter(models.kind, function.node):
            replaced.left[node.name] = (
                f"it lies in the function {function.name!r}, whose opset differs from the model's"
            )
    for name, packed in replaced.weights.items():
        tensor = helper.make_tensor(name, onnx.TensorProto.UINT8, packed.shape, packed.tobytes(), raw=True)
        changed.graph.initializer.append(tensor)
    models.prune(changed.graph)
    if all(entry.domain != DOMAIN for entry in changed.opset_import):
        changed.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return replaced


def _replace(one: models.RecurrentNode, layer: Any, weights: str, scratch: str) -> None:
    """Replace a node by the operator of rnnfast."""
    x, *others = (one.given.get(name, "") for name in ("X", "sequence_lens", "initial_h", "initial_c"))
    outputs = [*one.node.output, "", ""][:3]
    operator = f"Recurrent{8 * layer.dtype.itemsize}"
    call = layer.engine.host_call(not layer.batch_first, False, False)
    one.node.CopyFrom(
        helper.make_node(operator, [x, weights, *others], [*outputs, scratch], one.node.name, domain=DOMAIN, call=call)
    )
    kind = helper.np_dtype_to_tensor_dtype(layer.dtype)
    D, H = (models.Dimension(dim_value=size) for size in (layer.engine.directions, layer.hidden_size))
    free = models.Dimension()
    y, state = ((free, free, D, H), (free, D, H)) if layer.batch_first else ((free, D, free, H), (D, free, H))
    for name, shape in zip(outputs, (y, state, state), strict=True):
        if name:
            models.declare(one.graph, name, kind, shape)
    models.declare(one.graph, scratch, onnx.TensorProto.UINT8, [free])
