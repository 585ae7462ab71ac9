"""The kernels as operators of torch with gradients: rnnfast::infer, rnnfast::forward and rnnfast::backward."""

from __future__ import annotations

import functools
import math
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch
from torch import Tensor
from torch.library import register_fake

from rnnfast import _core, buffers, functional
from rnnfast._types import Array
from rnnfast.ragged import Ragged

from . import _loop
from ._call import PARAMETERS, Call, flat_tensors, from_flat, is_step, pattern_of, sizes_of

__all__ = ["COMPILED", "DTYPES", "run"]

DTYPES: dict[Any, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
# torch's threads spin for a while after each parallel operation, so others would not get their processors.
_HAS_OPENMP = _core.find_openmp(torch._C.__file__)
_WHOLE = 1 << 14  # bytes; larger parameters are sampled
_BIASED, _PROJECTED = (4, 5), (3, 5)  # numbers of parameters of one layer and direction


class _Kept(NamedTuple):
    """The arguments that rnnfast::backward takes after those of rnnfast::forward."""

    y: Tensor
    tape: Tensor
    dy: Tensor | None
    dh_n: Tensor | None
    dc_n: Tensor | None


# ------------------------------------------------------------------------------------------- engines, buffers, arrays


@functools.lru_cache(maxsize=256)
def _engine_of(
    cell: str, num_layers: int, bidirectional: bool, count: int, dtype: torch.dtype, rows: int, I: int, width: int
) -> functional.Engine:
    """The engine for `count` parameters in each layer and direction; the first two are (rows, I) and (rows, width)."""
    return functional.Engine(
        cell,
        DTYPES[dtype],
        I,
        rows // len(functional.CELLS[cell].gates),
        proj_size=width if count in _PROJECTED else 0,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=count in _BIASED,
        openmp=_HAS_OPENMP,
    )


def _engine(call: Call) -> functional.Engine:
    count = len(call.parameters) // (call.num_layers * (1 + call.bidirectional))
    first, second = call.parameters[:2]
    shapes = *map(int, first.shape), int(second.shape[1])
    return _engine_of(call.cell, call.num_layers, call.bidirectional, count, first.dtype, *shapes)


class _Plan:
    """What depends on the shape of x alone: the sizes of buffers, the shapes of y, h_n and c_n, and a prepared call."""

    __slots__ = ("prepared", "shapes", "sizes")

    def __init__(self, sizes: functional.Sizes, shapes: list[tuple[Any, ...]]) -> None:
        self.sizes, self.shapes = sizes, shapes
        self.prepared: functional.PreparedCall | None = None


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
        self._plans: dict[Any, _Plan] = {}

    def plan(self, call: Call) -> _Plan:
        """The sizes, shapes and prepared call for inputs of this shape, if x is not packed."""
        key = call.x.shape, call.axes
        found = self._plans.get(key)
        if found is None:
            T, N = sizes_of(call)
            found = _Plan(self.engine.sizes(T, N), _shapes(self.engine, call, N))
            if len(self._plans) >= 64:  # the number of different lengths is unbounded
                self._plans.clear()
            self._plans[key] = found
        return found

    def prepare(self, call: Call, plan: _Plan, packed: Any) -> functional.PreparedCall:
        """The prepared call for inference on inputs of this shape."""
        if plan.prepared is None:
            y, h, c = plan.shapes
            x = (1, *call.x.shape) if is_step(call.axes) else tuple(call.x.shape)
            plan.prepared = functional.PreparedCall(
                self.engine,
                packed,
                (x, y, h, c if self.engine.info.has_c else None),
                time_first=call.axes != "NT",
                pool=self.workspaces,
                empty=self.results.empty,
            )
        return plan.prepared

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


def _cache(call: Call) -> _Cache:
    parameters = call.parameters
    first = parameters[0]
    key = call[PARAMETERS + 1 : -2], len(parameters), first.dtype, first.shape, parameters[1].shape
    found = _CACHES.get(id(first))
    if found is None or found.owner() is not first or found.key != key:
        owner = weakref.ref(first, functools.partial(_forget, id(first)))
        found = _CACHES[id(first)] = _Cache(_engine(call), key, owner)
    return found


def _array(tensor: Tensor | None) -> Any:
    """The memory of a tensor as an array."""
    if tensor is None:
        return None
    return tensor.numpy(force=True) if tensor.requires_grad or tensor.is_neg() else tensor.numpy()


def _contiguous(tensor: Tensor | None) -> Any:
    """A tensor as a contiguous array, copied only if necessary."""
    return None if tensor is None else _array(tensor.contiguous())


def _sequence(tensor: Tensor | None, axes: str) -> Any:
    """A sequence as an array (T, N, features) with unit stride on the last axis; (entries, 1, features) if packed."""
    if tensor is None:
        return None
    return _time_first(_array(tensor if tensor.stride(-1) == 1 else tensor.contiguous()), axes)


def _time_first(array: Any, axes: str) -> Any:
    if axes == "TN":
        return array
    if axes == "NT":
        return array.swapaxes(0, 1)
    if axes == "N":
        return array[np.newaxis]
    return array[:, np.newaxis] if axes else array[np.newaxis, np.newaxis]


def _aligned(tape: Tensor) -> Tensor:
    """A tape that starts at a cache line, as those of forward do. Copies that saved-tensor hooks return may not."""
    if tape.data_ptr() % buffers.LINE == 0:
        return tape
    buffer = torch.empty(len(tape) + buffers.LINE, dtype=torch.uint8)
    start = -buffer.data_ptr() % buffers.LINE
    return buffer[start : start + len(tape)].copy_(tape)


# ------------------------------------------------------------------------------------------------------- the kernels

_PLAIN = (None,) * 5  # dropout, batch_sizes, lengths, mask and reset of a call that has none


def _shapes(engine: functional.Engine, call: Call, N: Any) -> list[tuple[Any, ...]]:
    """The shapes of y, h_n and c_n; c_n is empty for cells without c."""
    lead = () if is_step(call.axes) else (engine.num_layers * engine.directions,)
    lead = (*lead, N) if "N" in call.axes or call.axes == "packed" else lead
    y = (*call.x.shape[:-1], engine.directions * engine.output_size)
    return [y, (*lead, engine.output_size), (*lead, engine.hidden_size) if engine.info.has_c else (0,)]


def _infer(call: Call) -> tuple[Tensor, ...]:
    """y, h_n and c_n."""
    if call[3:PARAMETERS] == _PLAIN:
        cache = _cache(call)
        plan, packed = cache.plan(call), cache.packed(call.parameters)
        x, state = _array(call.x), _array(call.h0)
        if cache.engine.info.has_c and state is not None:
            state = state, _array(call.c0)
        results = cache.prepare(call, plan, packed).run(x[np.newaxis] if is_step(call.axes) else x, state)
        if results is not None:
            y, last = results
            h_n, c_n = last if cache.engine.info.has_c else (last, np.empty(0, last.dtype))
            return torch.from_numpy(y), torch.from_numpy(h_n), torch.from_numpy(c_n)
    return _run(call)


class _Batch:
    """The inputs of a call as the engine takes them, and the sizes of its buffers.

    `order` is that of a PackedSequence or of the sequences of a ragged batch, or None.
    """

    def __init__(self, cache: _Cache, call: Call) -> None:
        engine, order, self.ragged = cache.engine, None, None
        if call.batch_sizes is not None:
            order = functional.packed_order(call.batch_sizes.numpy())
            self.sizes = engine.sizes(call.x.shape[0], 1, order)
            self.shapes = _shapes(engine, call, order.sequences)
        else:
            plan, pattern = cache.plan(call), pattern_of(call)
            self.sizes, self.shapes = plan.sizes, plan.shapes
            if pattern is not None:
                self.ragged = Ragged(engine, pattern, repeats=not call.zero_masked)
                self.sizes = self.ragged.sizes
        h0, c0, dropout = map(_contiguous, (call.h0, call.c0, call.dropout))
        self.inputs = functional.Inputs(_sequence(call.x, call.axes), self.states(h0), self.states(c0), dropout, order)
        if self.ragged is not None:
            self.inputs = self.ragged.inputs(self.inputs)

    def states(self, array: Any) -> Any:
        """States with all axes, which a ragged batch indexes."""
        if array is None or self.ragged is None or array.ndim == 3:
            return array
        return array[:, np.newaxis]


def _run(call: Call, keep_tape: bool = False) -> tuple[Tensor, ...]:
    """y, h_n, c_n, and the tape if it is kept."""
    cache = _cache(call)
    engine, batch = cache.engine, _Batch(cache, call)
    y, h_n, c_n = results = [cache.results.empty(shape, engine.dtype) for shape in batch.shapes]
    last = batch.states(h_n), batch.states(c_n) if engine.info.has_c else None
    own = outputs = functional.Outputs(_time_first(y, call.axes), *last)
    if batch.ragged is not None:
        own = batch.ragged.outputs(outputs)
    tape = cache.tapes.bytes(batch.sizes.tape) if keep_tape else None
    workspace = cache.workspaces.acquire(batch.sizes.forward_workspace)
    functional.forward(engine, cache.packed(call.parameters), batch.inputs, own, workspace, tape)
    cache.workspaces.release(workspace)
    if batch.ragged is not None:
        batch.ragged.finish_outputs(own, outputs)
    return tuple(map(torch.from_numpy, [*results, tape] if keep_tape else results))


def _differentiate(call: Call, kept: _Kept) -> tuple[Any, ...]:
    """The gradients of x, h0, c0, and a list of those of the parameters."""
    cache = _cache(call)
    engine, batch = cache.engine, _Batch(cache, call)
    ragged = batch.ragged
    shapes = call.x.shape, *batch.shapes[1:]
    dx, dh0, dc0 = (cache.results.empty(shape, engine.dtype) for shape in shapes)
    dparameters = [cache.zeros(shape, engine.dtype) for shape in cache.shapes.values()]
    dh_n, dc_n = (batch.states(_contiguous(one)) for one in (kept.dh_n, kept.dc_n if engine.info.has_c else None))
    given = functional.OutputGradients(_sequence(kept.dy, call.axes), dh_n, dc_n)
    initial = batch.states(dh0), batch.states(dc0) if engine.info.has_c else None
    own = found = functional.InputGradients(_time_first(dx, call.axes), *initial, dparameters)
    if ragged is not None:
        given, own = ragged.output_gradients(given), ragged.input_gradients(found)
    packed, y, tape = (
        cache.packed(call.parameters, back=True),
        _sequence(kept.y, call.axes),
        _array(_aligned(kept.tape)),
    )
    workspace = cache.workspaces.acquire(batch.sizes.backward_workspace)
    functional.backward(engine, packed, batch.inputs, y, tape, given, own, workspace)
    cache.workspaces.release(workspace)
    if ragged is not None:
        ragged.finish_gradients(own, found)
    return *map(torch.from_numpy, (dx, dh0, dc0)), list(map(torch.from_numpy, dparameters))


def _fake(call: Call, keep_tape: bool = False) -> Any:
    """Results of `_run` without data. Sizes that depend on the data, or on symbolic sizes, are left open."""
    engine = _engine(call)
    context = torch.library.get_ctx()
    if call.batch_sizes is None:
        T, N = sizes_of(call)
        known = isinstance(T, int) and isinstance(N, int) and call[5:PARAMETERS] == _PLAIN[2:]
    else:
        T, known = None, False
        N = context.new_dynamic_size() if call.h0 is None else call.h0.shape[1]
    results = [call.x.new_empty(shape) for shape in _shapes(engine, call, N)]
    if keep_tape:
        size = engine.sizes(T, N).tape if known else context.new_dynamic_size()
        results.append(call.x.new_empty(size, dtype=torch.uint8))
    return tuple(results)


def _fake_gradients(call: Call, kept: _Kept) -> Any:  # noqa: ARG001
    _, dh0, dc0 = _fake(call)
    return call.x.new_empty(call.x.shape), dh0, dc0, [one.new_empty(one.shape) for one in call.parameters]


# ---------------------------------------------------------------------------------------- the operators and autograd


class _Forward(torch.autograd.Function):
    """The derivative of rnnfast::forward. `kernels` are the functions that run forward and backward."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, call: Call, *tensors: Any) -> Any:
        run, ctx.differentiate = kernels
        y, h_n, c_n, tape = run(call)
        ctx.options = call[PARAMETERS + 1 :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, tape, *tensors)
        return y, h_n, c_n, tape

    @staticmethod
    def backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, _: Any) -> Any:
        y, tape, *tensors = ctx.saved_tensors
        run = _Gradient.apply if torch.is_grad_enabled() else _gradients
        dx, dh0, dc0, *dparameters = run(ctx.differentiate, ctx.options, y, tape, dy, dh_n, dc_n, *tensors)
        _, h0, c0, *_ = tensors
        others = (None,) * (PARAMETERS - 3)
        return None, None, dx, None if h0 is None else dh0, None if c0 is None else dc0, *others, *dparameters


def _gradients(differentiate: Any, options: Any, *tensors: Any) -> tuple[Tensor, ...]:
    dx, dh0, dc0, dparameters = differentiate(from_flat(options, tensors[5:]), _Kept(*tensors[:5]))
    return dx, dh0, dc0, *dparameters


class _Gradient(torch.autograd.Function):
    """A gradient that can be differentiated again: its own derivative recomputes the call with torch's operators."""

    @staticmethod
    def forward(ctx: Any, differentiate: Any, options: Any, y: Any, tape: Any, *given: Any) -> Any:
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*given)
        return _gradients(differentiate, options, y, tape, *given)

    @staticmethod
    def backward(ctx: Any, *dgradients: Any) -> Any:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views separate the inputs, as one may depend on another.
            given = [one.view_as(one) if one is not None and one.requires_grad else one for one in ctx.saved_tensors]
            call = from_flat(ctx.options, tuple(given[3:]))
            first = _grad(_loop.run(call), [*call[:3], *call.parameters], given[:3], True)
            second = _grad(first, given, dgradients, again)
        return None, None, None, None, *second


def _grad(outputs: Any, inputs: Any, doutputs: Any, create_graph: bool) -> list[Tensor | None]:
    """torch.autograd.grad, with None in place of each tensor that does not exist or needs no gradient."""
    pairs = [
        (one, given)
        for one, given in zip(outputs, doutputs, strict=True)
        if one is not None and given is not None and one.requires_grad
    ]
    wanted = [i for i, one in enumerate(inputs) if one is not None and one.requires_grad]
    found: list[Tensor | None] = [None] * len(inputs)
    if pairs and wanted:
        ends, starts = zip(*pairs, strict=True)
        targets = [inputs[i] for i in wanted]
        results = torch.autograd.grad(ends, targets, starts, create_graph=create_graph, allow_unused=True)
        for i, result in zip(wanted, results, strict=True):
            found[i] = result
    return found


def _record(kernels: Any, call: Call) -> Any:
    """Run rnnfast::forward as a node of autograd's graph."""
    return _Forward.apply(kernels, call, *flat_tensors(call))


def _below_autograd(call: Call) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return _forward_operator(*call)


_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", list[Tensor]: "Tensor[]", str: "str", int: "int", bool: "bool"}


def _schema(*records: type[Any]) -> str:
    """The fields of records as the arguments of an operator."""
    fields = [field for record in records for field in get_type_hints(record).items()]
    return ", ".join(f"{_TYPES[hint]} {name}" for name, hint in fields)


def _on_call(kernel: Any, **options: Any) -> Any:
    """A kernel of a call as a function of the arguments of rnnfast::infer or rnnfast::forward."""
    return lambda *arguments: kernel(Call(*arguments), **options)


def _on_gradients(kernel: Any) -> Any:
    """A kernel as a function of the arguments of rnnfast::backward."""
    count = len(Call._fields)
    return lambda *arguments: kernel(Call(*arguments[:count]), _Kept(*arguments[count:]))


_LIBRARY = torch.library.Library("rnnfast", "FRAGMENT")
_LIBRARY.define(f"infer({_schema(Call)}) -> (Tensor y, Tensor h_n, Tensor c_n)")
_LIBRARY.define(f"forward({_schema(Call)}) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor tape)")
_LIBRARY.define(f"backward({_schema(Call, _Kept)}) -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dparameters)")
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
_RUNS: dict[tuple[bool, bool], Callable[[Call], Any]] = {
    (False, False): lambda call: _infer_operator(*call),
    (False, True): _infer,
    (True, False): lambda call: _forward_operator(*call),
    (True, True): functools.partial(_record, (_keep, _differentiate)),
}


def run(call: Call) -> Any:
    """y, h_n, c_n, and if a gradient is needed the tape."""
    tensors = *call[:3], *call.parameters
    needed = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
    return _RUNS[needed, _is_plain(call.x)](call)


def _is_plain(x: Tensor) -> bool:
    """Whether operators can be bypassed: no compiler, tracer, dispatch mode or subclass of Tensor is active."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack()
    return type(x) is Tensor and not traced


# What torch.compile must not compile where it breaks the graph.
COMPILED = _infer, _run, _record, _Forward.backward, _Gradient.backward
