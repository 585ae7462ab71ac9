"""The kernels as operators of torch with gradients: rnnfast::infer, rnnfast::forward and rnnfast::backward."""

from __future__ import annotations

import functools
import math
import threading
import weakref
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch
from torch import Tensor
from torch.library import register_fake

from rnnfast import _core, buffers, functional
from rnnfast._types import Array
from rnnfast.ragged import Ragged

from . import _loop
from ._call import DIFFERENTIABLE, PARAMETERS, Call, array_of, from_flat, is_step, pattern_of, sizes_of

__all__ = ["COMPILED", "DTYPES", "Misfit", "run"]

DTYPES: dict[Any, np.dtype[Any]] = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
# torch's threads spin for a while after each parallel operation, so others would not get their processors.
_HAS_OPENMP = _core.find_openmp(torch._C.__file__)
_WHOLE = 1 << 14  # bytes; larger parameters are sampled
_BIASED, _PROJECTED = (4, 5), (3, 5)  # numbers of parameters of one layer and direction


class Misfit(RuntimeError):
    """Tensors of a call do not fit each other, so that torch's own forward must raise the error."""


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
    gates = len(functional.CELLS[call.cell].gates)
    if not (
        all(isinstance(one, Tensor) and one.dim() == 2 and 0 not in one.shape for one in (first, second))
        and len(first) >= gates
        and first.shape[1] == call.x.shape[-1]
    ):
        raise Misfit(
            "weight_ih and weight_hh must be matrices with H rows for each gate, and weight_ih must have a column for "
            f"each of the {call.x.shape[-1]} features of x: assign such parameters"
        )
    shapes = *map(int, first.shape), int(second.shape[1])
    return _engine_of(call.cell, call.num_layers, call.bidirectional, count, first.dtype, *shapes)


class _Plan:
    """What a pass needs besides the arrays: the order of steps, the sizes of buffers, and the shapes of the results.

    `order` is that of a PackedSequence. For a ragged batch, `ragged` holds the order.
    """

    __slots__ = ("empty", "order", "ragged", "shapes", "sizes")

    def __init__(
        self,
        cache: _Cache,
        call: Call,
        N: Any,
        sizes: functional.Sizes,
        order: functional.Order | None = None,
        ragged: Ragged | None = None,
    ) -> None:
        self.sizes, self.order, self.ragged = sizes, order, ragged
        self.shapes = _shapes(cache.engine, call, N)
        largest = max(map(math.prod, (*self.shapes, call.x.shape))) * cache.engine.dtype.itemsize
        self.empty: Any = np.empty if largest < buffers.LARGE else cache.results.empty


class _Packed(NamedTuple):
    """Packed weights for forward or backward. They never change, as kernels in other threads may be reading them.

    `places` are those of the parameters when they were packed, None if a change of the parameters could go unnoticed.
    `samples` are views of the parameters for forward, and `sampled` holds the bytes that they had. `prepared` holds
    the prepared calls for inference by their plans.
    """

    weights: Array
    places: Any
    samples: list[memoryview]
    sampled: bytes
    prepared: dict[_Plan, functional.PreparedCall | None]


def _remember(kept: dict[Any, Any], key: Any, value: Any) -> Any:
    """Keep a value, which depends on the shape of a call, in a dictionary of bounded size."""
    if len(kept) >= 64:  # the number of different lengths is unbounded
        kept.clear()
    kept[key] = value
    return value


class _Cache:
    """Packed weights and reusable buffers, kept between calls with the same parameters.

    The latest packed weights for forward and for backward are kept. Threads whose layers share the first parameter, but
    differ in others, replace them in turn, and each call holds those that it reads.

    `owner` is a weak reference to the first parameter. It, the number of parameters and `options` determine the engine.
    """

    def __init__(self, call: Call, owner: weakref.ref[Tensor]) -> None:
        self.engine = engine = _engine(call)
        self.owner, self.options = owner, call[PARAMETERS + 1 : -2]
        self.has_c = engine.info.has_c
        self.shapes = functional.parameter_shapes(engine)
        self.expected = [(shape, engine.dtype) for shape in self.shapes.values()]
        self.workspaces, self.tapes, self.weights = buffers.BufferPool(4), buffers.ResultPool(4), buffers.ResultPool(2)
        self.results = buffers.ResultPool(4 + min(len(self.shapes), 100))
        largest = max(map(math.prod, self.shapes.values())) * engine.dtype.itemsize
        self.zeros = np.zeros if largest < buffers.LARGE else self.results.zeros  # the pool only keeps large buffers
        self.packed: list[_Packed | None] = [None, None]  # for forward and for backward
        self._lock = threading.Lock()
        self._plans: dict[Any, _Plan] = {}

    def plan(self, call: Call) -> _Plan:
        """The plan of a call. It is kept if it depends on the shape of x alone."""
        if call.batch_sizes is not None:
            sizes, entries = array_of(call.batch_sizes).tolist(), call.x.shape[0]
            if sizes[-1] < 1 or sum(sizes) != entries or sizes != sorted(sizes, reverse=True):
                raise Misfit(
                    "batch_sizes of a PackedSequence must be at least 1, never rise, and add up to the length of its "
                    f"data, {entries}, got {sizes}: build it with pack_padded_sequence"
                )
            order = functional.packed_order(np.array(sizes))
            return _Plan(self, call, order.sequences, self.engine.sizes(call.x.shape[0], 1, order), order)
        pattern = pattern_of(call)
        if pattern is not None:
            ragged = Ragged(self.engine, pattern, repeats=not call.zero_masked)
            return _Plan(self, call, pattern.N, ragged.sizes, ragged=ragged)
        key = call.x.shape, call.axes
        found = self._plans.get(key)
        if found is None:
            T, N = sizes_of(call)
            found = _remember(self._plans, key, _Plan(self, call, N, self.engine.sizes(T, N)))
        return found

    def prepare(self, call: Call, plan: _Plan, packed: _Packed) -> functional.PreparedCall | None:
        """The prepared call for inference with a plan; None for the first call, as many weights are only read once."""
        found = packed.prepared.get(plan)
        if found is None:
            if plan not in packed.prepared:
                _remember(packed.prepared, plan, None)
                return None
            y, h, c = plan.shapes
            x = (1, *call.x.shape) if is_step(call.axes) else tuple(call.x.shape)
            found = functional.PreparedCall(
                self.engine,
                packed.weights,
                (x, y, h, c if self.engine.info.has_c else None),
                time_first=call.axes != "NT",
                pool=self.workspaces,
                empty=plan.empty,
            )
            _remember(packed.prepared, plan, found)
        return found

    def find(self, parameters: list[Tensor], back: bool) -> _Packed | None:
        """The packed weights for forward or backward if they are up to date."""
        found = self.packed[back]
        # Forward looks for changes that torch does not count, and backward belongs to the values that its forward read.
        if (
            found is not None
            and found.places is not None
            and found.places == _places(parameters)
            and (back or found.sampled == b"".join(found.samples))
        ):
            return found
        return None

    def pack(self, parameters: list[Tensor], back: bool) -> _Packed:
        """Pack the present weights for forward or backward."""
        with self._lock:
            found = self.find(parameters, back)
            if found is not None:  # another thread has packed them meanwhile
                return found
            if not all(isinstance(one, Tensor) and one.is_cpu for one in parameters):
                raise Misfit("all parameters of this layer must be tensors on the CPU: assign such parameters")
            arrays = [np.ascontiguousarray(array_of(one)) for one in parameters]
            if [(array.shape, array.dtype) for array in arrays] != self.expected:
                raise Misfit(
                    f"the parameters have the shapes {[array.shape for array in arrays]} and dtypes "
                    f"{[str(array.dtype) for array in arrays]}, but this layer needs {self.shapes} of one dtype: "
                    "assign parameters of these shapes"
                )
            self.packed[back] = None  # its memory is used again if no other thread is reading it
            samples: list[memoryview] = []
            if not back:
                self.packed[1] = None
                # What torch does not count can only be seen in the memory of the parameters themselves.
                if all(one.is_contiguous() for one in parameters):
                    samples = [sample for array in arrays for sample in _samples(array)]
            sampled, places = b"".join(samples), _places(parameters)
            weights = self.weights.bytes((self.engine.packed_size, self.engine.packed_back_size)[back])
            functional.pack(self.engine, arrays, *((None, weights) if back else (weights, None)))
            packed = _Packed(weights, places if back or samples else None, samples, sampled, {})
            self.packed[back] = packed
        return packed


def _places(parameters: list[Tensor]) -> Any:
    """The addresses of the parameters and torch's count of the writes to them; None if it does not count."""
    try:
        return [(one.data_ptr(), one._version) for one in parameters]
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


def _ready(call: Call, back: bool = False) -> tuple[_Cache, _Packed]:
    """The cache of a call, and the packed weights that forward or backward reads, up to date."""
    parameters = call.parameters
    first = parameters[0]
    found = _CACHES.get(id(first))
    if found is not None and (found.owner() is not first or found.options != call[PARAMETERS + 1 : -2]):
        found = None
    packed = None if found is None else found.find(parameters, back)
    if found is not None and packed is not None:
        return found, packed
    if found is None or found.engine is not _engine(call):
        owner = weakref.ref(first, functools.partial(_forget, id(first)))
        found = _CACHES[id(first)] = _Cache(call, owner)
    return found, found.pack(parameters, back)


def _array(tensor: Tensor | None) -> Any:
    """The memory of a tensor as an array."""
    return None if tensor is None else array_of(tensor)


def _contiguous(tensor: Tensor | None) -> Any:
    """A tensor as a contiguous array, copied only if necessary."""
    return None if tensor is None else np.ascontiguousarray(array_of(tensor))


def _sequence(tensor: Tensor | None, axes: str) -> Any:
    """A sequence as an array (T, N, features) with unit stride on the last axis; (entries, 1, features) if packed."""
    if tensor is None:
        return None
    array = array_of(tensor)
    return _time_first(array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array), axes)


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

_PLAIN = (None,) * 7  # the arguments between c0 and the parameters of a call that has none of them


def _shapes(engine: functional.Engine, call: Call, N: Any) -> list[tuple[Any, ...]]:
    """The shapes of y, h_n and c_n; c_n is empty for cells without c."""
    lead = () if is_step(call.axes) else (engine.num_layers * engine.directions,)
    lead = (*lead, N) if "N" in call.axes or call.axes == "packed" else lead
    y = (*call.x.shape[:-1], engine.directions * engine.output_size)
    return [y, (*lead, engine.output_size), (*lead, engine.hidden_size) if engine.info.has_c else (0,)]


def _states(call: Call) -> tuple[Tensor | None, ...]:
    """The initial and the reset state of a call."""
    return call.h0, call.c0, call.h_reset, call.c_reset


def _infer(call: Call) -> tuple[Tensor, ...]:
    """y, h_n, and c_n for cells with c."""
    if call[3:PARAMETERS] != _PLAIN:
        return _run(call)
    cache, packed = _ready(call)
    plan = cache.plan(call)
    prepared = cache.prepare(call, plan, packed)
    if prepared is None:
        return _allocate_and_run(call, cache, packed, plan, False)
    x, state = array_of(call.x), _array(call.h0)
    if state is not None and cache.has_c:
        state = state, _array(call.c0)
    results = prepared.run(x[np.newaxis] if is_step(call.axes) else x, state)
    if results is None:
        return _allocate_and_run(call, cache, packed, plan, False)
    y, last = results
    if cache.has_c:
        return torch.from_numpy(y), torch.from_numpy(last[0]), torch.from_numpy(last[1])
    return torch.from_numpy(y), torch.from_numpy(last)


def _inputs(call: Call, plan: _Plan) -> functional.Inputs:
    """The inputs of a call as the engine takes them."""
    h0, c0, dropout = _contiguous(call.h0), _contiguous(call.c0), _contiguous(call.dropout)
    if dropout is not None and dropout.ndim == 3:
        dropout = dropout[:, :, np.newaxis]  # of x without a batch axis
    inputs = functional.Inputs(_sequence(call.x, call.axes), _batched(h0), _batched(c0), dropout, plan.order)
    if plan.ragged is None:
        return inputs
    resets = _batched(_contiguous(call.h_reset)), _batched(_contiguous(call.c_reset))
    return plan.ragged.inputs(inputs, None if call.h_reset is None else resets)


def _batched(states: Any) -> Any:
    """States with all axes, which a ragged batch indexes; the engine needs their memory alone."""
    return states[:, np.newaxis] if states is not None and states.ndim == 2 else states


def _run(call: Call, keep_tape: bool = False) -> tuple[Any, ...]:
    """y, h_n, c_n for cells with c, and the tape if it is kept."""
    cache, packed = _ready(call)
    return _allocate_and_run(call, cache, packed, cache.plan(call), keep_tape)


def _keep(call: Call) -> tuple[Any, Any]:
    """The results of `_run` with the tape, and the function that differentiates them."""
    cache, packed = _ready(call)
    plan = cache.plan(call)
    return _allocate_and_run(call, cache, packed, plan, True), functools.partial(_differentiate, plan=plan)


def _allocate_and_run(call: Call, cache: _Cache, packed: _Packed, plan: _Plan, keep_tape: bool) -> tuple[Any, ...]:
    """Run the kernel, with results in new memory."""
    engine = cache.engine
    y, h_n, c_n = (plan.empty(shape, engine.dtype) for shape in plan.shapes)
    inputs = _inputs(call, plan)
    outputs = functional.Outputs(_time_first(y, call.axes), _batched(h_n), _batched(c_n) if cache.has_c else None)
    own = outputs if plan.ragged is None else plan.ragged.outputs(outputs)
    tape = cache.tapes.bytes(plan.sizes.tape) if keep_tape else None
    workspace = cache.workspaces.acquire(plan.sizes.forward_workspace)
    functional.forward(engine, packed.weights, inputs, own, workspace, tape)
    cache.workspaces.release(workspace)
    if plan.ragged is not None:
        plan.ragged.finish_outputs(own, outputs)
    results = [torch.from_numpy(y), torch.from_numpy(h_n)]
    if cache.has_c:
        results.append(torch.from_numpy(c_n))
    if tape is not None:
        results.append(torch.from_numpy(tape))
    return tuple(results)


def _differentiate(call: Call, kept: _Kept, plan: _Plan | None = None) -> tuple[Any, ...]:
    """The gradients of x, of the states that were given, and a list of those of the parameters."""
    cache, packed = _ready(call, back=True)
    plan = plan or cache.plan(call)
    engine, dtype = cache.engine, cache.engine.dtype
    dx, dh0, dc0 = (plan.empty(shape, dtype) for shape in (call.x.shape, *plan.shapes[1:]))
    resets = [None if one is None else np.zeros(one.shape, dtype) for one in (call.h_reset, call.c_reset)]
    dparameters = [cache.zeros(shape, dtype) for shape in cache.shapes.values()]
    inputs = _inputs(call, plan)
    dh_n, dc_n = _contiguous(kept.dh_n), _contiguous(kept.dc_n) if cache.has_c else None
    outer = functional.OutputGradients(_sequence(kept.dy, call.axes), _batched(dh_n), _batched(dc_n))
    found = functional.InputGradients(
        _time_first(dx, call.axes), _batched(dh0), _batched(dc0) if cache.has_c else None, dparameters
    )
    own = found
    if plan.ragged is not None:
        outer, own = plan.ragged.output_gradients(outer), plan.ragged.input_gradients(found)
    y, tape = _sequence(kept.y, call.axes), _array(_aligned(kept.tape))
    workspace = cache.workspaces.acquire(plan.sizes.backward_workspace)
    functional.backward(engine, packed.weights, inputs, y, tape, outer, own, workspace)
    cache.workspaces.release(workspace)
    if plan.ragged is not None:
        dreset_state = _batched(resets[0]), _batched(resets[1])
        plan.ragged.finish_gradients(own, found, None if call.h_reset is None else dreset_state)
    states = zip(_states(call), (dh0, dc0, *resets), strict=True)
    given = (None if state is None else torch.from_numpy(array) for state, array in states)
    return torch.from_numpy(dx), *given, list(map(torch.from_numpy, dparameters))


def _fake(call: Call, keep_tape: bool = False) -> Any:
    """Results of rnnfast::infer or rnnfast::forward without data. Sizes that depend on data are left open."""
    engine = _engine(call)
    context = torch.library.get_ctx()
    if call.batch_sizes is None:
        T, N = sizes_of(call)
        known = isinstance(T, int) and isinstance(N, int) and call.lengths is call.mask is call.reset is None
    else:
        T, known = None, False
        N = context.new_dynamic_size() if call.h0 is None else call.h0.shape[1]
    results = [call.x.new_empty(shape) for shape in _shapes(engine, call, N)]
    if keep_tape:
        size = engine.sizes(T, N).tape if known else context.new_dynamic_size()
        results.append(call.x.new_empty(size, dtype=torch.uint8))
    return tuple(results)


def _fake_gradients(call: Call, kept: _Kept) -> Any:  # noqa: ARG001
    states = (call.x.new_empty(0 if one is None else one.shape) for one in _states(call))
    return call.x.new_empty(call.x.shape), *states, [one.new_empty(one.shape) for one in call.parameters]


# ---------------------------------------------------------------------------------------- the operators and autograd


class _Forward(torch.autograd.Function):
    """The derivative of rnnfast::forward.

    `run` returns the results of a call and the function that differentiates them. The arguments after `call` are those
    of its tensors that have gradients.
    """

    @staticmethod
    def forward(ctx: Any, run: Any, call: Call, *_: Any) -> Any:
        results, ctx.differentiate = run(call)
        ctx.options = call[PARAMETERS + 1 :]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(results[0], results[-1], *call[:PARAMETERS], *call.parameters)
        return results if run is _below_autograd else results[:-1]  # only the operator returns the tape

    @staticmethod
    def backward(ctx: Any, dy: Any, dh_n: Any, *others: Any) -> Any:
        y, tape, *tensors = ctx.saved_tensors
        dc_n = others[0] if others else None
        run = _Gradient.apply if torch.is_grad_enabled() else _gradients
        return None, None, *run(ctx.differentiate, ctx.options, y, tape, dy, dh_n, dc_n, *tensors)


def _gradients(differentiate: Any, options: Any, *tensors: Any) -> tuple[Any, ...]:
    *given, dparameters = differentiate(from_flat(options, tensors[5:]), _Kept(*tensors[:5]))
    return *given, *dparameters


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
            first = _grad(_loop.run(call), [*call[:DIFFERENTIABLE], *call.parameters], given[:3], True)
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


# torch's own apply also looks for transforms, under which no call comes here. This takes 3 us less.
_apply = super(torch.autograd.Function, _Forward).apply


def _record(call: Call) -> Any:
    """Run a call as a node of autograd's graph."""
    return _apply(_keep, call, *call[:DIFFERENTIABLE], *call.parameters)


def _record_operators(call: Call) -> Any:
    """Run rnnfast::forward as a node of autograd's graph, whose passes are operators."""
    return _Forward.apply(_below_autograd, call, *call[:DIFFERENTIABLE], *call.parameters)


def _below_autograd(call: Call) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return _forward_operator(*call), _differentiate_operator


def _differentiate_operator(call: Call, kept: _Kept) -> Any:
    dx, *states, dparameters = _backward_operator(*call, *kept)
    given = (None if one is None else d for one, d in zip(_states(call), states, strict=True))
    return dx, *given, dparameters


_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", list[Tensor]: "Tensor[]", str: "str", int: "int", bool: "bool"}


def _schema(*records: type[Any]) -> str:
    """The fields of records as the arguments of an operator."""
    fields = [field for record in records for field in get_type_hints(record).items()]
    return ", ".join(f"{_TYPES[hint]} {name}" for name, hint in fields)


def _on_call(kernel: Any, **options: Any) -> Any:
    """A kernel of a call as a function of the arguments of rnnfast::infer or rnnfast::forward."""

    def run(*arguments: Any) -> Any:
        y, h_n, *others = kernel(Call(*arguments), **options)
        has_c = functional.CELLS[arguments[PARAMETERS + 1]].has_c
        return (y, h_n, *others) if has_c or len(others) == 2 else (y, h_n, y.new_empty(0), *others)

    return run


def _on_gradients(kernel: Any) -> Any:
    """A kernel as a function of the arguments of rnnfast::backward."""
    count = len(Call._fields)

    def run(*arguments: Any) -> Any:
        call = Call(*arguments[:count])
        dx, *states, dparameters = kernel(call, _Kept(*arguments[count:]))
        return dx, *(call.x.new_empty(0) if one is None else one for one in states), dparameters

    return run


_LIBRARY = torch.library.Library("rnnfast", "FRAGMENT")
_LIBRARY.define(f"infer({_schema(Call)}) -> (Tensor y, Tensor h_n, Tensor c_n)")
_LIBRARY.define(f"forward({_schema(Call)}) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor tape)")
_STATES = ", ".join(f"Tensor d{name}" for name in Call._fields[1:DIFFERENTIABLE])
_LIBRARY.define(f"backward({_schema(Call, _Kept)}) -> (Tensor dx, {_STATES}, Tensor[] dparameters)")
_infer_operator = torch.ops.rnnfast.infer.default
_forward_operator = torch.ops.rnnfast.forward.default
_backward_operator = torch.ops.rnnfast.backward.default

_LIBRARY.impl("infer", _on_call(_infer), "CPU")
_LIBRARY.impl("forward", _on_call(_run, keep_tape=True), "CPU")
_LIBRARY.impl("backward", _on_gradients(_differentiate), "CPU")
_LIBRARY.impl("forward", _on_call(_record_operators), "Autograd")
register_fake("rnnfast::infer", _on_call(_fake), lib=_LIBRARY)
register_fake("rnnfast::forward", _on_call(_fake, keep_tape=True), lib=_LIBRARY)
register_fake("rnnfast::backward", _on_gradients(_fake_gradients), lib=_LIBRARY)


def run(call: Call) -> Any:
    """y, h_n, for cells with c c_n, and further tensors if operators run or a gradient is needed."""
    others = *call.parameters, *_states(call)
    needed = torch.is_grad_enabled() and (
        call.x.requires_grad or any(one is not None and one.requires_grad for one in others)
    )
    # Bypassing the operators saves a third of the overhead of a short inference call, and a fifth of a training step's.
    if _is_plain(call.x):
        return _record(call) if needed else _infer(call)
    return _forward_operator(*call) if needed else _infer_operator(*call)


def _is_plain(x: Tensor) -> bool:
    """Whether operators can be bypassed: no compiler, tracer, dispatch mode or subclass of Tensor is active."""
    traced = torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._len_torch_dispatch_stack()
    return type(x) is Tensor and not traced


# What torch.compile must not compile where it breaks the graph.
COMPILED = _infer, _run, _record, _Forward.backward, _Gradient.backward
