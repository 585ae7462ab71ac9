"""Checkpointed forward and backward passes, which trade time for memory by keeping the states of some steps only.

A sequence is divided into windows. Forward keeps the state at the start of each window. Backward processes the windows
from the last to the first: it runs forward again with a tape, and then backward. Results are bitwise identical to those
of one call, because the engine's results do not depend on how the steps are divided into calls, and because a window
consists of whole blocks of the sums in weight gradients.

In a bidirectional stack, a layer needs the outputs of both directions of the layer below. Each layer and direction is
therefore run as a separate stack, and the outputs between layers are kept. Source: T. Chen et al., "Training deep
nets with sublinear memory cost", 2016.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from . import functional
from ._types import Array
from .functional import InputGradients, Inputs, OutputGradients, Outputs

__all__ = ["Scratch", "backward", "forward"]


class Saved(NamedTuple):
    """The values that a checkpointed forward keeps for backward."""

    edges: list[int]  # of the windows, in steps in the order of processing, or in blocks of an order
    starts: list[list[Any]]  # for each part, h and c at the start of each window
    outputs: list[Array]  # of all layers but the last of a bidirectional stack


class Part(NamedTuple):
    """A stack with one direction: the whole engine, or one of its layers and directions."""

    engine: functional.Engine
    states: slice
    parameters: slice
    packed: slice
    packed_back: slice
    columns: slice  # of the part's outputs in y of its layer


class Scratch:
    """Buffers that are reused for all windows and later calls."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._buffers: dict[str, Array] = {}
        self._dtype = dtype

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def bytes(self, name: str, count: int) -> Array:
        if name not in self._buffers or len(self._buffers[name]) < count:
            self._buffers[name] = functional.empty(count)
        return self._buffers[name][:count]

    def array(self, name: str, shape: tuple[int, ...]) -> Array:
        return self.bytes(name, math.prod(shape) * self._dtype.itemsize).view(self._dtype).reshape(shape)

    def like(self, name: str, states: Sequence[Any]) -> list[Any]:
        return [None if a is None else self.array(f"{name} {i}", a.shape) for i, a in enumerate(states)]


def _layers(engine: functional.Engine) -> list[list[Part]]:
    """Return the parts of an engine, layer by layer."""
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
            zoneout=engine.zoneout,
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
    """Return the edges of windows of at least `every` steps, at the block edges of the sums in weight gradients."""
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
    """Consecutive steps of a batch, in the order in which the engine processes them, as a separate batch."""

    def __init__(self, engine: functional.Engine, T: int, N: int, order: Any, first: int, last: int) -> None:
        self.T, self.N, self.sequences, self.order = last - first, N, N, None
        self._where: Any = slice(T - last, T - first) if engine.reverse else slice(first, last)
        self._gathered = order is not None
        if order is not None:
            # Valid steps are gathered into one column, so padding takes no memory.
            part = functional.window(order, first, last)
            self._where = tuple(part.positions[int(engine.reverse)].T)
            self.T, self.N, self.sequences = len(self._where[0]), 1, part.sequences
            place = np.stack([np.arange(self.T), np.zeros(self.T, np.intp)], axis=1)
            self.order = functional.Order(part.sequences, part.begin, (place, place), part.edges, part.masked_steps)
        self.sizes = engine.sizes(self.T, self.N, self.order)

    def take(self, array: Array | None, layers: bool = False) -> Any:
        """Return a view or copy of the window of an array (T, N, features), or (layers, T, N, features)."""
        if array is None:
            return None
        if layers:
            return np.ascontiguousarray(np.stack([self.take(part) for part in array]))  # axes of stride 0 may be last
        return array[self._where][:, np.newaxis] if self._gathered else array[self._where]

    def put(self, array: Array, values: Array) -> None:
        array[self._where] = values[:, 0] if self._gathered else values

    def add(self, array: Array, values: Array) -> None:
        with np.errstate(all="ignore"):
            array[self._where] += values[:, 0] if self._gathered else values


def _windows(part: Part, T: int, N: int, order: Any, edges: list[int]) -> list[_Window]:
    return [_Window(part.engine, T, N, order, first, last) for first, last in pairwise(edges)]


def _of_part(states: tuple[Array | None, ...], part: Part, window: _Window) -> list[Any]:
    """Return copies of states, for a part and the sequences of a window."""
    return [None if a is None else a[part.states, : window.sequences].copy() for a in states]


def _keep(states: tuple[Array | None, ...], part: Part, window: _Window, values: Sequence[Any]) -> None:
    for state, own in zip(states, values, strict=True):
        if state is not None:
            state[part.states, : window.sequences] = own


def _run(part: Part, window: _Window, packed: Array, inputs: Inputs, scratch: Scratch, tape: Any = None) -> Outputs:
    """Run forward over a window."""
    y = scratch.array("y", (*inputs.x.shape[:2], part.engine.directions * part.engine.output_size))
    outputs = Outputs(y, *scratch.like("last", (inputs.h0, inputs.c0)))
    workspace = scratch.bytes("forward", window.sizes.forward_workspace)
    functional.forward(part.engine, packed[part.packed], inputs, outputs, workspace, tape)
    return outputs


def _masked(outputs: Array, masks: Array | None, layer: int) -> Array:
    with np.errstate(all="ignore"):  # infinities and NaN are valid data
        return outputs if masks is None else outputs * masks[layer - 1]


def _inputs(part: Part, window: _Window, source: Array, start: list[Any], inputs: Inputs) -> Inputs:
    """Return the inputs of a part for a window of `inputs`; `source` holds x of all steps."""
    masks = window.take(inputs.masks, layers=True) if part.engine.num_layers > 1 else None
    h0, c0, recurrent_masks = *start, *_of_part((inputs.recurrent_masks,), part, window)
    zoneout_masks = None if inputs.zoneout_masks is None else inputs.zoneout_masks[part.states]
    of_steps = window.take(source), h0, c0, masks, window.order, recurrent_masks
    return Inputs(*of_steps, window.take(zoneout_masks, layers=True))


def forward(
    engine: functional.Engine, packed: Array, inputs: Inputs, outputs: Outputs, every: int | str, scratch: Scratch
) -> Saved:
    """Run forward, and keep the state of every `every`-th step; "auto" stands for the square root of the steps."""
    T, N, _ = inputs.x.shape
    masks, states, layers = inputs.masks, (outputs.h_n, outputs.c_n), _layers(engine)
    saved = Saved(_cut(T, N, inputs.order, every), [], [])
    for state, initial in zip(states, (inputs.h0, inputs.c0), strict=True):
        if state is not None:
            state[...] = 0 if initial is None else initial
    for layer, parts in enumerate(layers):
        source = _masked(saved.outputs[-1], masks, layer) if layer else inputs.x
        if layer < len(layers) - 1:
            saved.outputs.append(
                np.zeros(outputs.y.shape, engine.dtype)
            )  # also at masked-out steps, which dropout reads
        y = saved.outputs[layer] if layer < len(layers) - 1 else outputs.y
        for part in parts:
            starts = []
            for window in _windows(part, T, N, inputs.order, saved.edges):
                starts.append(_of_part(states, part, window))
                own = _run(part, window, packed, _inputs(part, window, source, starts[-1], inputs), scratch)
                window.put(y[..., part.columns], own.y)
                _keep(states, part, window, (own.h_n, own.c_n))
            saved.starts.append(starts)
    return saved


def backward(
    engine: functional.Engine,
    packs: tuple[Array, Array],
    inputs: Inputs,
    saved: Saved,
    output_gradients: OutputGradients,
    input_gradients: InputGradients,
    scratch: Scratch,
) -> None:
    """Run backward, recomputing the values between the checkpoints of `forward`.

    `packs` holds the packed weights for forward and for backward.
    """
    T, N, _ = inputs.x.shape
    dy = output_gradients.dy
    states, starts, dh = (input_gradients.dh0, input_gradients.dc0), list(saved.starts), input_gradients.dh
    for state, last in zip(states, (output_gradients.dh_n, output_gradients.dc_n), strict=True):
        if state is not None:
            state[...] = 0 if last is None else last
    for layer, parts in reversed(list(enumerate(_layers(engine)))):
        source = _masked(saved.outputs[layer - 1], inputs.masks, layer) if layer else inputs.x
        dsource = np.zeros(source.shape, engine.dtype) if layer else input_gradients.dx
        of_parts = [starts.pop() for _ in parts][::-1]
        for part, of_part in zip(parts, of_parts, strict=True):
            windows = _windows(part, T, N, inputs.order, saved.edges)
            for window, start in zip(reversed(windows), reversed(of_part), strict=True):
                own = _inputs(part, window, source, start, inputs)
                tape = scratch.bytes("tape", window.sizes.tape)
                y = _run(part, window, packs[0], own, scratch, tape).y
                dstates = _of_part(states, part, window)
                dh0, dc0 = scratch.like("dstart", dstates)
                gradients = InputGradients(
                    scratch.array("dx", own.x.shape),
                    dh0,
                    dc0,
                    input_gradients.dparameters[part.parameters],
                    None if dh is None else scratch.array("dh", (len(dh[part.states]), *own.x.shape[:2], dh.shape[-1])),
                )
                functional.backward(
                    part.engine,
                    packs[1][part.packed_back],
                    own,
                    y,
                    tape,
                    OutputGradients(None if dy is None else window.take(dy[..., part.columns]), *dstates),
                    gradients,
                    scratch.bytes("backward", window.sizes.backward_workspace),
                )
                (window.add if part is not parts[0] else window.put)(dsource, gradients.dx)
                _keep(states, part, window, (gradients.dh0, gradients.dc0))
                if dh is not None:
                    for of_layer, values in zip(dh[part.states], gradients.dh, strict=True):
                        window.put(of_layer, values)
        dy = _masked(dsource, inputs.masks, layer) if layer else None
