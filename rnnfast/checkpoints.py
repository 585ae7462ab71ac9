"""Forward and backward that keep the state of every so many steps alone: memory for time.

A sequence is cut into windows. Forward keeps the states with which windows begin; backward takes the windows from the
last, computes each again with a tape, and goes back through it. Results are the bits of one call: the engine's do not
depend on how steps are divided into calls, and windows are whole blocks of the sums for the gradients of weights.

Where both directions run, no layer can begin before the one below is through both ways: there each layer and direction
is a stack of its own, and what goes from layer to layer is kept. Source: T. Chen et al., "Training deep nets with
sublinear memory cost", 2016.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["Room", "backward", "forward"]


class Saved(NamedTuple):
    """What a checkpointed forward leaves for its backward."""

    order: Any
    edges: list[int]  # of windows: steps as they are walked, or with an order its blocks
    starts: list[list[Any]]  # of each part, h and c at the beginning of each window
    outputs: list[Array]  # of each layer but the last, where both directions run


class Part(NamedTuple):
    """A stack that runs in one direction: all of the engine's, or one layer and direction of it."""

    engine: functional.Engine
    states: slice
    parameters: slice
    packed: slice
    packed_back: slice
    columns: slice  # of its outputs in those of its layer


class Room:
    """Buffers that are used again, from window to window and from call to call."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._buffers: dict[str, Array] = {}
        self._dtype = dtype

    def bytes(self, name: str, count: int) -> Array:
        if name not in self._buffers or len(self._buffers[name]) < count:
            self._buffers[name] = functional.empty(count)
        return self._buffers[name][:count]

    def array(self, name: str, shape: tuple[int, ...]) -> Array:
        return self.bytes(name, math.prod(shape) * self._dtype.itemsize).view(self._dtype).reshape(shape)

    def like(self, name: str, states: list[Any]) -> list[Any]:
        return [None if a is None else self.array(f"{name} {i}", a.shape) for i, a in enumerate(states)]


def _layers(engine: functional.Engine) -> list[list[Part]]:
    """The parts, by what they take their input from."""
    everything = slice(None)
    if not engine.bidirectional:
        return [[Part(engine, everything, everything, everything, everything, everything)]]
    layers: list[list[Part]] = []
    used, used_back, width = 0, 0, engine.output_size
    for state in range(2 * engine.num_layers):
        layer, turned = divmod(state, 2)
        own = functional.Engine(
            engine.cell,
            engine.dtype,
            2 * width if layer else engine.input_size,
            engine.hidden_size,
            proj_size=engine.proj_size,
            reverse=bool(turned),
            bias=engine.bias,
            isa=engine.isa,
            options=None if engine.options is None else engine.options.of_direction(turned),
        )
        count = len(functional.parameter_shapes(own))
        packed = slice(used, used + own.packed_size)
        packed_back = slice(used_back, used_back + own.packed_back_size)
        used, used_back = packed.stop, packed_back.stop
        parameters, columns = slice(count * state, count * (state + 1)), slice(turned * width, (turned + 1) * width)
        layers.append([] if not turned else layers.pop())
        layers[-1].append(Part(own, slice(state, state + 1), parameters, packed, packed_back, columns))
    return layers


def _cut(T: int, N: int, order: functional.Order | None, every: Any) -> list[int]:
    """Edges of windows of at least `every` steps, where sums begin."""
    steps = T if order is None else order.steps
    if every == "auto":
        every = math.isqrt(max(steps, 1) - 1) + 1
    if order is None:
        block = max(1, functional.SUM_ROWS // N)
        return [*range(0, T, -(-every // block) * block), T]
    edges = [0]
    for block, step in enumerate(order.edges.tolist()):
        if step - order.edges[edges[-1]] >= every:
            edges.append(block)
    blocks = len(order.edges) - 1
    return edges if edges[-1] == blocks else [*edges, blocks]


class _Window:
    """Some steps of a sequence, as the engine walks them, made a short sequence of its own."""

    def __init__(self, engine: functional.Engine, T: int, N: int, order: Any, first: int, last: int) -> None:
        self.T, self.N, self.sequences, self.order = last - first, N, N, None
        self._where: Any = slice(T - last, T - first) if engine.reverse else slice(first, last)
        self._gathered = order is not None
        if order is not None:
            # Its entries, put one below the other, take no more room than they need.
            part = functional.window(order, first, last)
            self._where = tuple(part.places[int(engine.reverse)].T)
            self.T, self.N, self.sequences = len(self._where[0]), 1, part.sequences
            place = np.stack([np.arange(self.T), np.zeros(self.T, np.intp)], axis=1)
            self.order = functional.Order(part.sequences, part.begin, (place, place), part.edges, part.gaps)
        self.sizes = engine.sizes(self.T, self.N, self.order)

    def take(self, array: Array | None, layers: bool = False) -> Any:
        """What belongs to the steps of an array (T, N, features), or (layers, T, N, features): a view, or a copy."""
        if array is None:
            return None
        if layers:
            return np.stack([self.take(part) for part in array])
        return array[self._where][:, np.newaxis] if self._gathered else array[self._where]

    def put(self, array: Array, values: Array) -> None:
        array[self._where] = values[:, 0] if self._gathered else values

    def add(self, array: Array, values: Array) -> None:
        with np.errstate(all="ignore"):
            array[self._where] += values[:, 0] if self._gathered else values


def _windows(part: Part, T: int, N: int, saved: Saved) -> list[_Window]:
    return [_Window(part.engine, T, N, saved.order, first, last) for first, last in pairwise(saved.edges)]


def _of_part(states: tuple[Array | None, ...], part: Part, window: _Window) -> list[Any]:
    """Of h and c those of a part and of the sequences of a window, copied."""
    return [None if a is None else a[part.states, : window.sequences].copy() for a in states]


def _keep(states: tuple[Array | None, ...], part: Part, window: _Window, values: list[Any]) -> None:
    for state, own in zip(states, values, strict=True):
        if state is not None:
            state[part.states, : window.sequences] = own


def _run(
    part: Part, window: _Window, packed: Array, x: Array, start: list[Any], masks: Any, room: Room, tape: Any = None
) -> tuple[Array, list[Any]]:
    """y and the last state of a window."""
    y = room.array("y", (*x.shape[:2], part.engine.directions * part.engine.output_size))
    last = room.like("last", start)
    workspace = room.bytes("forward", window.sizes.forward_workspace)
    inputs = functional.Inputs(x, *start, masks, window.order)
    functional.forward(part.engine, packed[part.packed], inputs, functional.Outputs(y, *last), workspace, tape)
    return y, last


def _masked(outputs: Array, masks: Array | None, layer: int) -> Array:
    with np.errstate(all="ignore"):  # what is not finite is data
        return outputs if masks is None else outputs * masks[layer - 1]


def forward(
    engine: functional.Engine,
    packed: Array,
    x: Array,
    h0: Array | None,
    c0: Array | None,
    y: Array,
    h_n: Array,
    c_n: Array | None,
    masks: Array | None,
    order: functional.Order | None,
    every: int | str,
    room: Room,
) -> Saved:
    """As `functional.forward`, with the states of `every` so many steps kept; "auto": of their square root."""
    T, N, _ = x.shape
    saved = Saved(order, _cut(T, N, order, every), [], [])
    states, layers = (h_n, c_n), _layers(engine)
    for state, initial in zip(states, (h0, c0), strict=True):
        if state is not None:
            state[...] = 0 if initial is None else initial
    for layer, parts in enumerate(layers):
        source = _masked(saved.outputs[-1], masks, layer) if layer else x
        if layer < len(layers) - 1:
            saved.outputs.append(np.zeros(y.shape, engine.dtype))  # at gaps too, as masks may multiply them
        outputs = saved.outputs[layer] if layer < len(layers) - 1 else y
        for part in parts:
            starts = []
            for window in _windows(part, T, N, saved):
                starts.append(_of_part(states, part, window))
                own_masks = window.take(masks, layers=True) if part.engine.num_layers > 1 else None
                own, last = _run(part, window, packed, window.take(source), starts[-1], own_masks, room)
                window.put(outputs[..., part.columns], own)
                _keep(states, part, window, last)
            saved.starts.append(starts)
    return saved


def backward(
    engine: functional.Engine,
    packed: Array,
    packed_back: Array,
    x: Array,
    masks: Array | None,
    saved: Saved,
    dy: Array | None,
    dh_n: Array | None,
    dc_n: Array | None,
    dx: Array,
    dh0: Array,
    dc0: Array | None,
    dparameters: list[Array],
    dh: Array | None,
    room: Room,
) -> None:
    """As `functional.backward`, after the `forward` above, whose states and outputs it computes again."""
    T, N, _ = x.shape
    states, starts = (dh0, dc0), list(saved.starts)
    for state, last in zip(states, (dh_n, dc_n), strict=True):
        if state is not None:
            state[...] = 0 if last is None else last
    for layer, parts in reversed(list(enumerate(_layers(engine)))):
        source = _masked(saved.outputs[layer - 1], masks, layer) if layer else x
        dsource = np.zeros(source.shape, engine.dtype) if layer else dx
        of_parts = [starts.pop() for _ in parts][::-1]
        for part, of_part in zip(parts, of_parts, strict=True):
            gradients = dparameters[part.parameters]
            for window, start in zip(reversed(_windows(part, T, N, saved)), reversed(of_part), strict=True):
                own_x, own_masks = window.take(source), None
                if part.engine.num_layers > 1:
                    own_masks = window.take(masks, layers=True)
                tape = room.bytes("tape", window.sizes.tape)
                own_y, _ = _run(part, window, packed, own_x, start, own_masks, room, tape)
                own_dy = None if dy is None else window.take(dy[..., part.columns])
                own_dx, dstates = room.array("dx", own_x.shape), _of_part(states, part, window)
                dstart = room.like("dstart", dstates)
                own_dh = None
                if dh is not None:
                    own_dh = room.array("dh", (len(dh[part.states]), *own_x.shape[:2], engine.output_size))
                functional.backward(
                    part.engine,
                    packed_back[part.packed_back],
                    functional.Inputs(own_x, *start, own_masks, window.order),
                    own_y,
                    tape,
                    functional.OutputGradients(own_dy, *dstates),
                    functional.InputGradients(own_dx, *dstart, gradients, own_dh),
                    room.bytes("backward", window.sizes.backward_workspace),
                )
                (window.add if part is not parts[0] else window.put)(dsource, own_dx)
                _keep(states, part, window, dstart)
                if dh is not None:
                    for of_layer, values in zip(dh[part.states], own_dh, strict=True):
                        window.put(of_layer, values)
        dy = _masked(dsource, masks, layer) if layer else None
