"""ONNX's reference evaluator, with its recurrent nodes on rnnfast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.backend.base
import onnx.reference
from onnx import helper
from onnx.reference.op_run import OpRun

from rnnfast._types import Array

from . import models
from .nodes import INPUTS, OPERATORS, QUANTIZED, WEIGHTS, build, check_opset, dequantize, read

__all__ = ["Backend", "ops"]


def _constant(array: Any) -> bool:
    """Whether an array cannot be written to."""
    while isinstance(array, np.ndarray):
        if array.flags.writeable:
            return False
        array = array.base
    return array is None or isinstance(array, bytes)


def _same(kept: Array, given: Array) -> bool:
    """Whether a weight has the bits of one that was kept."""
    if kept is given:  # only a constant is kept itself
        return True
    return (kept.dtype, kept.shape) == (given.dtype, given.shape) and kept.tobytes() == given.tobytes()


class _Recurrent(OpRun):
    """A recurrent node, called by the reference evaluator. If `op_domain` is not the standard's, it is quantized."""

    def __init__(self, onnx_node: onnx.NodeProto, run_params: dict[str, Any]) -> None:
        super().__init__(onnx_node, run_params)
        if not self.op_domain:
            check_opset(self.op_type, run_params["opsets"][self.domain])
        self._operator = "LSTM" if self.op_domain else self.op_type
        self._kept: tuple[Any, ...] | None = None

    @property
    def output(self) -> Sequence[str]:
        # A result stored under the empty name would be used for the optional inputs that are missing.
        return [name or f"<output {i} of {self.op_type}>" for i, name in enumerate(self.onnx_node.output)]

    def _layer(self, attributes: dict[str, Any], weights: dict[str, Array], dtype: Any) -> Any:
        """The layer of these weights. The last one is kept, with its packed weights, until other weights come."""
        key = attributes, dtype, set(weights)
        if self._kept is not None:
            kept_key, kept, layer = self._kept
            if kept_key == key and all(_same(kept[name], weights[name]) for name in weights):
                return layer
        kept = {name: array if _constant(array) else array.copy() for name, array in weights.items()}
        plain = dequantize(weights) if self.op_domain else weights
        layer = build([read(self._operator, attributes, plain, dtype)])
        layer.freeze()
        self._kept = key, kept, layer
        return layer

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Array, ...]:
        given = {name: value for name, value, own in zip(INPUTS, inputs, self.input, strict=False) if own}
        x, lengths = given["X"], given.get("sequence_lens")
        layer = self._layer(attributes, {name: given[name] for name in WEIGHTS if name in given}, x.dtype)
        if x.ndim != 3:
            raise ValueError(f"X of {self.op_type} must have three axes, got shape {x.shape}")
        states = [given.get(f"initial_{member}") for member in OPERATORS[self._operator].states]
        if layer.batch_first:
            states = [None if state is None else state.transpose(1, 0, 2) for state in states]
        y, state = layer(x, states[0] if len(states) == 1 else states, lengths=lengths)
        ends = [state] if len(states) == 1 else list(state)
        if lengths is not None:
            for end in ends:
                end[:, np.asarray(lengths) == 0] = 0
        y = y.reshape(*y.shape[:2], -1, layer.hidden_size)
        if layer.batch_first:
            return y, *(end.transpose(1, 0, 2) for end in ends)
        return y.transpose(0, 2, 1, 3), *ends


def _operator(domain: str, name: str) -> type[OpRun]:
    text = f"The operator {name} of {domain or 'the ONNX standard'}."
    return type(name, (_Recurrent,), {"__module__": __name__, "__doc__": text, "op_domain": domain})


ops = [*(_operator("", name) for name in OPERATORS), _operator(*QUANTIZED)]


class _Evaluator(onnx.reference.ReferenceEvaluator):
    """The reference evaluator with `ops`, also for the bodies of functions."""

    def __init__(self, proto: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(proto, *args, **{**kwargs, "new_ops": ops})


class _Prepared(onnx.backend.base.BackendRep):
    """A model that is ready to run."""

    def __init__(self, evaluator: _Evaluator) -> None:
        self._evaluator = evaluator
        self._names = [name for name in evaluator.input_names if name not in evaluator.rt_inits_]

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:  # noqa: ARG002
        """Run the model once.

        Parameters
        ----------
        inputs : sequence or mapping
            Arrays for the graph's inputs without an initializer: in their order, or by name.

        Returns
        -------
        tuple of ndarray
            In the order of the graph's outputs.

        Raises
        ------
        ValueError
            If the number of inputs is wrong.
        """
        if not hasattr(inputs, "keys"):
            inputs = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            if len(inputs) != len(self._names):
                raise ValueError(f"inputs must be {len(self._names)} arrays, {self._names}, got {len(inputs)}")
            inputs = dict(zip(self._names, inputs, strict=True))
        return tuple(self._evaluator.run(None, inputs))


class Backend(onnx.backend.base.Backend):
    """Run models in ONNX's reference evaluator, and their recurrent nodes on rnnfast.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> from rnnfast.backends.onnx import Backend, to_onnx
    >>> prepared = Backend.prepare(to_onnx(rnnfast.GRU(4, 8, rng=0)))
    >>> y, h = prepared.run([np.ones((5, 2, 4), np.float32)])
    >>> y.shape, h.shape
    ((5, 2, 8), (1, 2, 8))
    """

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> _Prepared:
        """Check a model and prepare it for any number of runs.

        Parameters
        ----------
        model : onnx.ModelProto, bytes, str or os.PathLike
            A model, its bytes, or the path of its file.

        Raises
        ------
        onnx.checker.ValidationError
            If the model is not valid.
        ValueError
            If `model` is not an ONNX model, or the device is not the CPU.
        NotImplementedError
            If a recurrent node has an opset before 7.
        """
        _check_device(device)
        model = models.load(model)
        super().prepare(_checkable(model), device, **kwargs)
        return _Prepared(_Evaluator(models.fold(model)))

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Run a node on arrays for its named inputs; ``opset_version`` is the newest opset by default.

        Raises
        ------
        onnx.checker.ValidationError, ValueError, NotImplementedError
            As for `prepare`.
        """
        _check_device(device)
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        names = [[name for name in side if name] for side in (node.input, node.output)]
        ends = [[onnx.ValueInfoProto(name=name) for name in side] for side in names]
        graph = helper.make_graph([node], "node", *ends)
        opset = kwargs.get("opset_version") or onnx.defs.onnx_opset_version()
        return _Prepared(_Evaluator(graph, opsets={node.domain: opset})).run(inputs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Return whether the device is the CPU."""
        return device.split(":")[0] == "CPU"


def _checkable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with shapes for inputs and outputs that lack them: the checker requires them, runs do not."""
    if all(value.type.tensor_type.HasField("shape") for value in (*model.graph.input, *model.graph.output)):
        return model
    checkable = onnx.ModelProto()
    checkable.CopyFrom(model)
    for value in (*checkable.graph.input, *checkable.graph.output):
        if value.type.WhichOneof("value") in (None, "tensor_type"):
            tensor = value.type.tensor_type
            tensor.elem_type = tensor.elem_type or onnx.TensorProto.FLOAT
            tensor.shape.SetInParent()
    return checkable


def _check_device(device: str) -> None:
    if not Backend.supports_device(device):
        raise ValueError(f"device must be 'CPU', got {device!r}: rnnfast runs on the CPU only")
