"""PyTorch's recurrent layers, run by rnnfast.

`LSTM`, `GRU` and `RNN` subclass the layers of torch.nn and replace only `forward`: the constructor, parameters, initial
values, state_dict, hooks, pickling and error messages are torch's. `convert` switches the layers of an existing model.

rnnfast runs float32 and float64 tensors on the CPU, as padded batches or as a PackedSequence. Dropout draws the same
random numbers as torch's own layers. Everything else falls back to torch's own forward: other devices and dtypes (with
one warning for each), empty tensors, torch.func transforms and forward-mode differentiation. Double backward raises
RuntimeError. As with torch's LSTM, changing y in place before the backward pass raises an error. torch.jit.trace works
where no gradient is required; torch.jit.script does not support these layers. To export a model to a format that only
knows torch's layers, load its state_dict into those.

Calls run on torch's threads, all of them, if torch uses OpenMP on Linux and has between 2 and
`rnnfast.get_num_threads()` threads, as it does by default. Otherwise, they run on rnnfast's own threads, whose number
is set by `rnnfast.set_num_threads`, or by RNNFAST_NUM_THREADS or OMP_NUM_THREADS before Python starts.

Packed weights are cached until the parameters change. torch counts in-place writes to a tensor, but not those that go
through ``.data`` or a NumPy view. To detect these too, each call compares the parameters with the packed values: all
elements of parameters of up to 16 KiB, and samples of larger ones. This detects optimizer steps and averaged weights,
but can miss a change of a few elements of a large parameter. Make such changes under ``torch.no_grad()``, where torch
counts them, and use a small layer with torch.autograd.gradcheck, which changes single elements.

The operators rnnfast::infer, rnnfast::forward and rnnfast::backward are opaque to torch.compile. By default,
torch.compile breaks the graph at recurrent layers; with torch._dynamo.config.allow_rnn the operators become part of the
graph. Eager calls bypass the operators unless something traces them, so a profile shows only Python function names.

Requires torch 2.4 or newer; tested with 2.13.0.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, get_type_hints

import numpy as np

from rnnfast._types import Array

try:
    import torch
    from torch.library import register_fake
except ImportError as error:
    raise ImportError("rnnfast.backends.torch needs PyTorch 2.4 or newer: pip install 'rnnfast[torch]'") from error
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from rnnfast import _core, buffers, functional

__all__ = ["GRU", "LSTM", "RNN", "convert"]

Module = TypeVar("Module", bound=torch.nn.Module)

_CELLS = {cell.upper(): cell for cell in functional.CELLS}  # by the names that torch has for a layer's mode
_DTYPES: dict[Any, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
# torch's threads spin for a while after each parallel operation, so others would not get their processors.
_HAS_OPENMP = _core.find_openmp(torch._C.__file__)
_WHOLE = 1 << 14  # bytes; larger parameters are sampled
_BIASED, _PROJECTED = (4, 5), (3, 5)  # numbers of parameters of one layer and direction

# ------------------------------------------------------------------------------------------------- records of a call


class _Call(NamedTuple):
    """The arguments of rnnfast::infer and rnnfast::forward: the operators' schemas are built from this record."""

    x: Tensor  # (T, N, I), with batch_first (N, T, I), or with batch_sizes (entries, I)
    h0: Tensor | None
    c0: Tensor | None
    masks: Tensor | None  # dropout factors
    batch_sizes: Tensor | None  # of a PackedSequence
    parameters: list[Tensor]
    cell: str
    num_layers: int
    bidirectional: bool
    batch_first: bool


class _Kept(NamedTuple):
    """The arguments that rnnfast::backward takes after those of rnnfast::forward."""

    y: Tensor
    tape: Tensor
    dy: Tensor | None
    dh_n: Tensor | None
    dc_n: Tensor | None


_PARAMETERS = _Call._fields.index("parameters")  # single tensors come before, options after


def _flat_tensors(call: _Call) -> tuple[Any, ...]:
    """All tensors of a call, one by one: autograd does not see tensors in a list."""
    return *call[:_PARAMETERS], *call.parameters


def _call_of(options: tuple[Any, ...], tensors: tuple[Any, ...]) -> _Call:
    """Undo `_flat_tensors`."""
    return _Call._make((*tensors[:_PARAMETERS], list(tensors[_PARAMETERS:]), *options))


# ------------------------------------------------------------------------------------------- engines, buffers, arrays


@functools.lru_cache(maxsize=256)
def _engine_of(
    cell: str, num_layers: int, bidirectional: bool, count: int, dtype: torch.dtype, rows: int, I: int, width: int
) -> functional.Engine:
    """The engine for `count` parameters in each layer and direction; the first two are (rows, I) and (rows, width)."""
    return functional.Engine(
        cell,
        _DTYPES[dtype],
        I,
        rows // len(functional.CELLS[cell].gates),
        proj_size=width if count in _PROJECTED else 0,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=count in _BIASED,
        openmp=_HAS_OPENMP,
    )


def _engine(call: _Call) -> functional.Engine:
    count = len(call.parameters) // (call.num_layers * (1 + call.bidirectional))
    first, second = call.parameters[:2]
    shapes = *map(int, first.shape), int(second.shape[1])
    return _engine_of(call.cell, call.num_layers, call.bidirectional, count, first.dtype, *shapes)


class _Cache:
    """Packed weights and reusable buffers, kept between calls with the same parameters.

    `owner` is a weak reference to the first parameter; `key` is what determines the engine.
    """

    def __init__(self, engine: functional.Engine, key: Any, owner: weakref.ref[Tensor]) -> None:
        self.engine = engine
        self.key, self.owner = key, owner
        self.shapes = functional.parameter_shapes(engine)
        self.workspaces, self.tapes = buffers.BufferPool(4), buffers.ResultPool(4)
        self.results = buffers.ResultPool(4 + min(len(self.shapes), 100))
        largest = max(map(math.prod, self.shapes.values())) * engine.dtype.itemsize
        self.zeros = np.zeros if largest < buffers.LARGE else self.results.zeros  # the pool only keeps large buffers
        self._packed: list[Any] = [None, None]  # for forward and for backward
        self._fingerprints: list[Any] = [None, None]  # of the parameters when they were packed
        self._samples: list[memoryview] = []
        self._lock = threading.Lock()
        self._prepared: dict[Any, functional.PreparedCall] = {}

    def prepared(self, call: _Call) -> functional.PreparedCall:
        """The prepared call for inference on inputs of this shape."""
        packed, key = self.packed(call.parameters), (call.x.shape, call.batch_first)
        found = self._prepared.get(key)
        if found is None:
            y, h, c = _shapes(self.engine, call.x.shape, call.x.shape[0 if call.batch_first else 1])
            shapes = tuple(call.x.shape), y, h, c if self.engine.info.has_c else None
            memory: dict[str, Any] = {"pool": self.workspaces, "empty": self.results.empty}
            found = functional.PreparedCall(self.engine, packed, shapes, time_first=not call.batch_first, **memory)
            if len(self._prepared) >= 64:  # the number of different lengths is unbounded
                self._prepared.clear()
            self._prepared[key] = found
        return found

    def packed(self, parameters: list[Tensor], back: bool = False) -> Any:
        """The packed weights that forward or backward reads, up to date."""
        if self._fingerprints[back] is None or self._fingerprint(parameters) != self._fingerprints[back]:
            with self._lock:
                self._pack(parameters, back)
        return self._packed[back]

    def _pack(self, parameters: list[Tensor], back: bool) -> None:
        arrays = [np.ascontiguousarray(_array(one)) for one in parameters]
        if [array.shape for array in arrays] != list(self.shapes.values()):
            raise RuntimeError(
                f"the parameters have the shapes {[array.shape for array in arrays]}, but this layer needs "
                f"{self.shapes}: assign parameters of these shapes"
            )
        self._samples = [sample for array in arrays for sample in _samples(array)]
        fingerprint = self._fingerprint(parameters)
        if self._packed[back] is None:
            self._packed[back] = buffers.empty((self.engine.packed_size, self.engine.packed_back_size)[back])
        functional.pack(self.engine, arrays, *((None, self._packed[1]) if back else (self._packed[0], None)))
        self._fingerprints[back] = fingerprint

    def _fingerprint(self, parameters: list[Tensor]) -> Any:
        """A value that changes when the parameters do; None if torch does not count writes to them."""
        try:
            return [(one._version, one.data_ptr()) for one in parameters], b"".join(self._samples)
        except RuntimeError:  # the parameters were made in inference mode
            return None


def _samples(array: Array) -> list[memoryview]:
    """Views of a small array in full, or of samples. They keep its memory alive, so its address is not used again."""
    flat = array.reshape(-1).view(np.uint8).data
    whole = len(flat) <= _WHOLE
    return [flat] if whole else [flat[at : at + 64] for at in range(0, len(flat), len(flat) // 16)]


# By the id of the first parameter: looking up an id is five times faster than torch's WeakTensorKeyDictionary.
_CACHES: dict[int, _Cache] = {}


def _forget(place: int, owner: weakref.ref[Tensor]) -> None:
    """Drop the cache of a parameter that was deleted."""
    if place in _CACHES and _CACHES[place].owner is owner:
        del _CACHES[place]


def _cache(call: _Call) -> _Cache:
    parameters = call.parameters
    first = parameters[0]
    key = call[_PARAMETERS + 1 : -1], len(parameters), first.dtype, first.shape, parameters[1].shape
    found = _CACHES.get(id(first))
    if found is None or found.owner() is not first or found.key != key:
        owner = weakref.ref(first, functools.partial(_forget, id(first)))
        found = _CACHES[id(first)] = _Cache(_engine(call), key, owner)
    return found


def _array(tensor: Tensor | None) -> Any:
    """The memory of a tensor as an array."""
    return None if tensor is None else tensor.numpy(force=True)


def _contiguous(tensor: Tensor | None) -> Any:
    """A tensor as a contiguous array, copied only if necessary."""
    return None if tensor is None else tensor.contiguous().numpy(force=True)


def _sequence(tensor: Tensor | None, call: _Call) -> Any:
    """A sequence as an array (T, N, features) with unit stride on the last axis; (entries, 1, features) if packed."""
    if tensor is None:
        return None
    return _time_first(_array(tensor if tensor.stride(-1) == 1 else tensor.contiguous()), call)


def _time_first(array: Any, call: _Call) -> Any:
    if call.batch_sizes is not None:
        return array[:, np.newaxis]
    return array.swapaxes(0, 1) if call.batch_first else array


def _aligned(tape: Tensor) -> Tensor:
    """A tape that starts at a cache line, as those of forward do. Copies that saved-tensor hooks return may not."""
    if tape.data_ptr() % buffers.LINE == 0:
        return tape
    buffer = torch.empty(len(tape) + buffers.LINE, dtype=torch.uint8)
    start = -buffer.data_ptr() % buffers.LINE
    return buffer[start : start + len(tape)].copy_(tape)


# ------------------------------------------------------------------------------------------------------- the kernels


def _shapes(engine: functional.Engine, x: tuple[Any, ...], N: Any) -> list[tuple[Any, ...]]:
    """The shapes of y, h_n and c_n; c_n is empty for cells without c."""
    states, width = engine.num_layers * engine.directions, engine.output_size
    c = (states, N, engine.hidden_size) if engine.info.has_c else (0,)
    return [(*x[:-1], engine.directions * width), (states, N, width), c]


def _infer(call: _Call) -> tuple[Tensor, ...]:
    """y, h_n and c_n."""
    if call.masks is None and call.batch_sizes is None:
        cache = _cache(call)
        h0 = _array(call.h0)
        state = (h0, _array(call.c0)) if cache.engine.info.has_c else h0
        results = cache.prepared(call).run(_array(call.x), state)
        if results is not None:
            y, last = results
            last = last if cache.engine.info.has_c else (last, np.empty(0, last.dtype))
            return tuple(map(torch.from_numpy, (y, *last)))
    return _run(call)


def _inputs(call: _Call) -> functional.Inputs:
    order = None if call.batch_sizes is None else functional.packed_order(call.batch_sizes.numpy())
    h0, c0, masks = map(_contiguous, (call.h0, call.c0, call.masks))
    return functional.Inputs(_sequence(call.x, call), h0, c0, masks, order)


def _run(call: _Call, keep_tape: bool = False) -> tuple[Tensor, ...]:
    """y, h_n, c_n, and the tape if it is kept."""
    cache, inputs = _cache(call), _inputs(call)
    engine, (T, N, _), order = cache.engine, inputs.x.shape, inputs.order
    sizes = engine.sizes(T, N, order)
    shapes = _shapes(engine, call.x.shape, N if order is None else order.sequences)
    y, h_n, c_n = results = [cache.results.empty(shape, engine.dtype) for shape in shapes]
    outputs = functional.Outputs(_time_first(y, call), h_n, c_n if engine.info.has_c else None)
    tape = cache.tapes.bytes(sizes.tape) if keep_tape else None
    workspace = cache.workspaces.acquire(sizes.forward_workspace)
    functional.forward(engine, cache.packed(call.parameters), inputs, outputs, workspace, tape)
    cache.workspaces.release(workspace)
    return tuple(map(torch.from_numpy, [*results, tape] if keep_tape else results))


def _differentiate(call: _Call, kept: _Kept) -> tuple[Any, ...]:
    """The gradients of x, h0, c0, and a list of those of the parameters."""
    cache, inputs = _cache(call), _inputs(call)
    engine, (T, N, _), order = cache.engine, inputs.x.shape, inputs.order
    shapes = call.x.shape, *_shapes(engine, call.x.shape, N if order is None else order.sequences)[1:]
    dx, dh0, dc0 = (cache.results.empty(shape, engine.dtype) for shape in shapes)
    dparameters = [cache.zeros(shape, engine.dtype) for shape in cache.shapes.values()]
    dc_n, dc0_out = (_contiguous(kept.dc_n), dc0) if engine.info.has_c else (None, None)
    given = functional.OutputGradients(_sequence(kept.dy, call), _contiguous(kept.dh_n), dc_n)
    found = functional.InputGradients(_time_first(dx, call), dh0, dc0_out, dparameters)
    packed, y, tape = cache.packed(call.parameters, back=True), _sequence(kept.y, call), _array(_aligned(kept.tape))
    workspace = cache.workspaces.acquire(engine.sizes(T, N, order).backward_workspace)
    functional.backward(engine, packed, inputs, y, tape, given, found, workspace)
    cache.workspaces.release(workspace)
    return *map(torch.from_numpy, (dx, dh0, dc0)), list(map(torch.from_numpy, dparameters))


def _fake(call: _Call, keep_tape: bool = False) -> Any:
    """Results of `_run` without data. Sizes that depend on batch_sizes, or on symbolic sizes, are left open."""
    engine = _engine(call)
    context = torch.library.get_ctx()
    if call.batch_sizes is None:
        T, N = call.x.shape[1::-1] if call.batch_first else call.x.shape[:2]
        known = isinstance(T, int) and isinstance(N, int)
    else:
        N, known = context.new_dynamic_size() if call.h0 is None else call.h0.shape[1], False
    results = [call.x.new_empty(shape) for shape in _shapes(engine, call.x.shape, N)]
    if keep_tape:
        size = engine.sizes(T, N).tape if known else context.new_dynamic_size()
        results.append(call.x.new_empty(size, dtype=torch.uint8))
    return tuple(results)


def _fake_gradients(call: _Call, kept: _Kept) -> Any:  # noqa: ARG001
    _, dh0, dc0 = _fake(call)
    return call.x.new_empty(call.x.shape), dh0, dc0, [one.new_empty(one.shape) for one in call.parameters]


# ---------------------------------------------------------------------------------------- the operators and autograd


class _Forward(torch.autograd.Function):
    """The derivative of rnnfast::forward. `kernels` are the functions that run forward and backward."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, call: _Call, *tensors: Any) -> Any:
        run, ctx.differentiate = kernels
        y, h_n, c_n, tape = run(call)
        ctx.options = call[_PARAMETERS + 1 :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, tape, *tensors)
        return y, h_n, c_n, tape

    @staticmethod
    def backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, _: Any) -> Any:
        y, tape, *tensors = ctx.saved_tensors
        run = _Once.apply if torch.is_grad_enabled() else _gradients
        dx, dh0, dc0, *dparameters = run(ctx.differentiate, ctx.options, y, tape, dy, dh_n, dc_n, *tensors)
        _, h0, c0, *_ = tensors
        return None, None, dx, None if h0 is None else dh0, None if c0 is None else dc0, None, None, *dparameters


def _gradients(differentiate: Any, options: Any, *tensors: Any) -> tuple[Tensor, ...]:
    dx, dh0, dc0, dparameters = differentiate(_call_of(options, tensors[5:]), _Kept(*tensors[:5]))
    return dx, dh0, dc0, *dparameters


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Any:  # noqa: ARG004
        return _gradients(*given)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:  # noqa: ARG004
        raise RuntimeError(
            "rnnfast's layers do not support double backward (gradients of gradients): use torch.nn's own layers for "
            "this model; they take the same state_dict"
        )


def _record(kernels: Any, call: _Call) -> Any:
    """Run rnnfast::forward as a node of autograd's graph."""
    return _Forward.apply(kernels, call, *_flat_tensors(call))


def _below_autograd(call: _Call) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return _forward_operator(*call)


_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", list[Tensor]: "Tensor[]", str: "str", int: "int", bool: "bool"}


def _schema(*records: type[Any]) -> str:
    """The fields of records as the arguments of an operator."""
    fields = [field for record in records for field in get_type_hints(record).items()]
    return ", ".join(f"{_TYPES[hint]} {name}" for name, hint in fields)


def _on_call(kernel: Any, **options: Any) -> Any:
    """A kernel of a call as a function of the arguments of rnnfast::infer or rnnfast::forward."""
    return lambda *arguments: kernel(_Call(*arguments), **options)


def _on_gradients(kernel: Any) -> Any:
    """A kernel as a function of the arguments of rnnfast::backward."""
    count = len(_Call._fields)
    return lambda *arguments: kernel(_Call(*arguments[:count]), _Kept(*arguments[count:]))


_LIBRARY = torch.library.Library("rnnfast", "FRAGMENT")
_LIBRARY.define(f"infer({_schema(_Call)}) -> (Tensor y, Tensor h_n, Tensor c_n)")
_LIBRARY.define(f"forward({_schema(_Call)}) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor tape)")
_LIBRARY.define(f"backward({_schema(_Call, _Kept)}) -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dparameters)")
_infer_operator = torch.ops.rnnfast.infer.default
_forward_operator = torch.ops.rnnfast.forward.default
_backward_operator = torch.ops.rnnfast.backward.default

_keep = functools.partial(_run, keep_tape=True)
_operators = _below_autograd, lambda call, kept: _backward_operator(*call, *kept)
_LIBRARY.impl("infer", _on_call(_infer), "CPU")
_LIBRARY.impl("forward", _on_call(_keep), "CPU")
_LIBRARY.impl("backward", _on_gradients(_differentiate), "CPU")
_LIBRARY.impl("forward", _on_call(functools.partial(_record, _operators)), "Autograd")
register_fake("rnnfast::infer", _on_call(_fake), lib=_LIBRARY)
register_fake("rnnfast::forward", _on_call(_fake, keep_tape=True), lib=_LIBRARY)
register_fake("rnnfast::backward", _on_gradients(_fake_gradients), lib=_LIBRARY)

# The functions that run a call, by whether a gradient is needed and whether anything traces operators. Bypassing the
# operators saves a third of the overhead of a short inference call, and a fifth of that of a training step.
_RUNS: dict[tuple[bool, bool], Callable[[_Call], Any]] = {
    (False, False): lambda call: _infer_operator(*call),
    (False, True): _infer,
    (True, False): lambda call: _forward_operator(*call),
    (True, True): functools.partial(_record, (_keep, _differentiate)),
}

# ------------------------------------------------------------------------------------------------------- the layers


@functools.cache
def _warn_once(what: str) -> None:
    warnings.warn(
        f"{what} fall back to torch's own forward: rnnfast runs float32 and float64 tensors on the CPU",
        RuntimeWarning,
        stacklevel=4,
    )


class _Recurrent(torch.nn.RNNBase):
    """The forward method of all three layers. It precedes torch's class in the order of inheritance."""

    def forward(self, input: Any, hx: Any = None) -> Any:  # noqa: A002
        """Run the layer, with torch's arguments and results.

        Parameters
        ----------
        input : Tensor (T, N, I), with batch_first (N, T, I), or unbatched (T, I); or PackedSequence
        hx : Tensor (L*D, N, H_out), unbatched (L*D, H_out); for LSTM a pair with (L*D, N, H), optional
            The initial state; zeros by default.

        Returns
        -------
        output : Tensor (T, N, D*H_out), in the layout of `input`; or PackedSequence
        hx : Tensor, or for LSTM the pair of h and c
            The final state, in the layout of the initial state.

        Raises
        ------
        ValueError, RuntimeError
            Where torch's own forward raises them.
        """
        own = self._parameters  # a look-up here is faster than getattr, the fallback for replaced parameters
        parameters: list[Any] = [own[name] if name in own else getattr(self, name) for name in self._flat_weights_names]
        pair, axis = self.mode == "LSTM", 0 if self.batch_first else 1
        states: Sequence[Any] = () if hx is None else tuple(hx) if pair else (hx,)
        packed = isinstance(input, PackedSequence)
        x, batch_sizes, sorted_indices, unsorted_indices = input if packed else (input, None, None, None)
        if not self._takes(x, batch_sizes, states, parameters):
            return super().forward(input, hx)
        if packed:
            states = [_permuted(state, sorted_indices) for state in states]
        elif x.dim() == 2:
            x, states = x.unsqueeze(axis), [state.unsqueeze(1) for state in states]
        h0, c0 = (*states, None, None)[:2]
        needed = torch.is_grad_enabled() and any(one.requires_grad for one in (x, *states, *parameters))
        options = _CELLS[self.mode], self.num_layers, self.bidirectional, self.batch_first and not packed
        call = _Call(x, h0, c0, self._masks(x), batch_sizes, parameters, *options)
        y, *last = _RUNS[needed, _is_plain(x)](call)
        last = last[: 1 + pair]
        if packed:
            y = PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices)
            last = [_permuted(state, unsorted_indices) for state in last]
        elif input.dim() == 2:
            y, last = y.squeeze(axis), [state.squeeze(1) for state in last]
        return y, tuple(last) if pair else last[0]

    def _takes(self, x: Any, batch_sizes: Any, states: Any, parameters: list[Any]) -> bool:
        """Whether rnnfast runs this call. If not, torch's forward runs it or raises the error."""
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return False
        if x.dtype not in _DTYPES or not x.is_cpu:
            _warn_once(f"{x.dtype} tensors on {x.device.type}")
            return False
        for one in (*states, *parameters):
            if not isinstance(one, Tensor) or one.dtype is not x.dtype or not one.is_cpu:
                return False
        if x.dim() not in ((2, 3) if batch_sizes is None else (2,)):
            return False
        if x.shape[-1] != parameters[0].shape[-1] or x.numel() == 0:
            return False
        if not states:
            return True
        batch = (
            [x.shape[not self.batch_first]] if x.dim() == 3 else [] if batch_sizes is None else [int(batch_sizes[0])]
        )
        L = self.num_layers * (1 + self.bidirectional)
        widths = (self.proj_size or self.hidden_size, self.hidden_size)[: 1 + (self.mode == "LSTM")]
        return [state.shape for state in states] == [(L, *batch, width) for width in widths]

    def _masks(self, x: Tensor) -> Tensor | None:
        """Dropout factors for the outputs of all layers but the last, drawn layer by layer as torch draws them."""
        if not (self.training and self.dropout and self.num_layers > 1):
            return None
        rows = x.shape[1::-1] if self.batch_first and x.dim() == 3 else x.shape[:-1]
        width = (1 + self.bidirectional) * (self.proj_size or self.hidden_size)
        kept = 1 - self.dropout
        masks = [x.new_empty((*rows, width)).bernoulli_(kept) for _ in range(self.num_layers - 1)]
        return torch.stack(masks).div_(kept or 1)


def _is_plain(x: Tensor) -> bool:
    """Whether operators can be bypassed: no compiler, tracer, dispatch mode or subclass of Tensor is active."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack()
    return type(x) is Tensor and not traced


def _permuted(state: Tensor, indices: Tensor | None) -> Tensor:
    return state if indices is None else state.index_select(1, indices)


with contextlib.suppress(ImportError):  # torch.compiler.disable would do the same, but imports the whole compiler
    from torch._C._dynamo import eval_frame

    # Where torch.compile breaks the graph at a layer, it must not compile these functions or their callees.
    _SKIP = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
    for _function in (_Recurrent.forward, _infer, _run, _record, _Forward.backward):
        eval_frame.set_code_exec_strategy(_function.__code__, _SKIP)


class RNN(_Recurrent, torch.nn.RNN):
    """torch.nn.RNN run by rnnfast, with the same constructor.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import RNN
    >>> output, h_n = RNN(4, 8, nonlinearity="relu")(torch.ones(5, 2, 4))
    >>> output.shape, h_n.shape
    (torch.Size([5, 2, 8]), torch.Size([1, 2, 8]))
    """


class LSTM(_Recurrent, torch.nn.LSTM):
    """torch.nn.LSTM run by rnnfast, with the same constructor.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import LSTM
    >>> layer = LSTM(4, 8, num_layers=2, batch_first=True, bidirectional=True, proj_size=3)
    >>> output, (h_n, c_n) = layer(torch.ones(2, 5, 4))
    >>> output.shape, h_n.shape, c_n.shape
    (torch.Size([2, 5, 6]), torch.Size([4, 2, 3]), torch.Size([4, 2, 8]))
    """


class GRU(_Recurrent, torch.nn.GRU):
    """torch.nn.GRU run by rnnfast, with the same constructor.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import GRU
    >>> layer = GRU(4, 8)
    >>> output, h_n = layer(torch.ones(5, 2, 4))
    >>> output.sum().backward()
    >>> layer.weight_hh_l0.grad.shape
    torch.Size([24, 8])
    """


_CLASSES = {torch.nn.RNN: RNN, torch.nn.LSTM: LSTM, torch.nn.GRU: GRU}


def convert(model: Module) -> Module:
    """Let rnnfast run all recurrent layers of a model.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place: each torch.nn.RNN, LSTM and GRU in it becomes the class of the same name in this module. The
        layers remain the same objects, with their parameters, hooks and mode. Subclasses of torch's layers are left
        unchanged.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        If `model` is not a Module.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import convert
    >>> convert(torch.nn.ModuleList([torch.nn.LSTM(4, 8), torch.nn.Linear(8, 2)]))
    ModuleList(
      (0): LSTM(4, 8)
      (1): Linear(in_features=8, out_features=2, bias=True)
    )
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        module.__class__ = _CLASSES.get(type(module), type(module))
    return model
