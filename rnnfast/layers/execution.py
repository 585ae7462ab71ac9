"""Run the engine for a recurrent layer: the plan for a shape, buffers, and the forward and backward passes.

A `Call` holds the checked arguments of one call in the caller's layout. `Execution.run` and `Execution.differentiate`
convert them to views in the engine's layout, (T, N, features), and return arrays in the caller's layout. Streams,
diagnostics and the adapters use the engine of a layer through ``layer.execution`` too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnfast import _core, arguments, checkpoints, functional, ragged
from rnnfast._types import Array
from rnnfast.buffers import LARGE, BufferPool, ResultPool
from rnnfast.fixed import Fixed
from rnnfast.functional import InputGradients, Inputs, OutputGradients, Outputs

__all__ = ["Call", "Execution", "Found", "Kept", "Plan", "Weights"]


class Plan(NamedTuple):
    """Everything that depends only on the shape of x."""

    x: tuple[int, ...]
    y: tuple[int, ...]
    h: tuple[int, ...]
    c: tuple[int, ...] | None  # None for cells without c
    T: int
    N: int
    time_major: bool  # whether the caller's layout is that of the engine
    large: bool  # whether x or a result is at least buffers.LARGE
    sizes: Any  # functional.Sizes; None if N is 0

    @property
    def steps(self) -> tuple[int, ...]:
        """The axes of steps and rows in the caller's layout: (T, N), or unbatched (T,)."""
        return (self.T, self.N)[: len(self.h) - 1]


class Call(NamedTuple):
    """The checked arguments of a call. The arrays of `inputs` have the caller's layout."""

    inputs: Inputs
    plan: Plan
    ragged: ragged.Ragged | None  # None if all steps are valid and nothing is reset
    reset_state: ragged.State | None = None  # the reset state; None: resets go to the initial state


class Weights:
    """Packed weights: a snapshot of the parameters."""

    __slots__ = ("packed", "packed_back", "plan", "pointers", "prepared")

    def __init__(self, packed: Any, packed_back: Any) -> None:
        self.packed: Any = packed  # None on a tape that reads packed_back only
        self.packed_back: Any = packed_back
        self.pointers: tuple[Any, Any] = None, None  # parameters, and _core.Pointers to them
        self.plan: Plan | None = None  # of the last call that was not prepared
        self.prepared: functional.PreparedCall | None = None  # for the shape of the last call


class Kept(NamedTuple):
    """Contents of the tape of a recurrent layer."""

    call: Call
    y: Array
    tape: Any  # the engine's tape; None with checkpoints
    weights: Weights
    saved: checkpoints.Saved | None
    learned: tuple[bool, ...] = ()  # whether h and c of the initial state, and then of the reset state, are parameters
    factors: Array | None = None  # of input dropout, by which x of the call is multiplied


class Found(NamedTuple):
    """The gradients of a call."""

    inputs: InputGradients
    reset_state: ragged.State | None  # with respect to the reset state, if there is one


def engine_view(plan: Plan, sequence: Any, h: Any = None, c: Any = None) -> tuple[Any, Any, Any]:
    """Return views of a sequence and its states in the engine's layout: time first, with a batch axis."""
    if plan.time_major:
        return sequence, h, c
    if len(plan.y) == 2:
        sequence, h, c = (None if array is None else array[:, np.newaxis] for array in (sequence, h, c))
        return sequence, h, c
    return None if sequence is None else sequence.transpose(1, 0, 2), h, c


def engine_inputs(plan: Plan, inputs: Inputs) -> Inputs:
    """Return views of inputs in the engine's layout, which all masks have."""
    x, h0, c0 = engine_view(plan, inputs.x, inputs.h0, inputs.c0)
    masks = {"recurrent_masks": inputs.recurrent_masks, "zoneout_masks": inputs.zoneout_masks}
    return Inputs(x, h0, c0, inputs.masks, **masks)


def spread(plan: Plan, factors: Array) -> Array:
    """Return factors (N, features), the same for all steps, as a view that broadcasts with a sequence."""
    if len(plan.y) == 3:
        return factors if plan.time_major else factors[:, np.newaxis]
    row: Array = factors[0]
    return row


def engine_states(plan: Plan, state: ragged.State | None) -> ragged.State | None:
    """Return views of a reset state, or of its gradients, in the engine's layout."""
    return None if state is None else engine_view(plan, None, *state)[1:]


class Execution(Fixed):
    """Run the engine of a layer. Several threads can use one object at the same time.

    The attributes are read-only, because plans, buffers and weights belong to one engine.

    Attributes
    ----------
    engine : functional.Engine
    frozen : Weights or None
        The weights of the layer while it is frozen.
    plain : Execution
        Itself, or for an engine of weights in fewer bytes the execution of the layer while it is not frozen with them.
    live : Weights
        Not packed: prepared calls that pack the present parameters.
    extras : dict of str to ndarray
        Parameters of the engine that are options of the layer, such as a leak.
    packs, tapes, workspaces, scratch, results : BufferPool
        Buffers that are reused by later calls.
    """

    def __init__(
        self,
        engine: functional.Engine,
        batch_first: bool,
        owner: str,
        extras: Array | None = None,
        plain: Execution | None = None,
    ) -> None:
        self.engine = engine
        self.plain = plain or self
        np.empty(engine.packed_size, np.uint8)  # raises MemoryError early, before many small objects fill the memory
        self._names = list(functional.parameter_shapes(engine))
        names = [name for name in self._names if name.startswith(f"{engine.extra}_l")]
        rows: Any = () if extras is None else np.ascontiguousarray(extras)[:, np.newaxis]
        self.extras: dict[str, Array] = dict(zip(names, rows, strict=False))
        self.frozen: Weights | None = None
        self.live = Weights(None, None)
        self.packs = BufferPool(4)
        self.tapes = BufferPool(4)
        self.workspaces = BufferPool(4)
        self.scratch = BufferPool(2)
        self.results = ResultPool(4 + min(5 * engine.num_layers * engine.directions, 100))
        self._batch_first = batch_first
        self._owner = owner  # the name of the layer's class, for messages
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._built = True

    def _fixed(self) -> Collection[str]:
        return vars(self).keys()

    def release(self) -> None:
        """Free the buffers in all pools."""
        for pool in (self.packs, self.tapes, self.workspaces, self.scratch, self.results):
            pool.clear()

    # ---- arguments

    def read(
        self,
        x: Any,
        state: Any = None,
        reset_state: Any = ragged.INITIAL,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
        zero_masked: Any = False,
        *,
        member: str = "",
        turned: bool = False,
    ) -> Call:
        """Check the arguments of a call.

        `member` is appended to the names of states in messages. `turned` means that x is in reverse order, unlike
        lengths, mask and reset.
        """
        engine = self.engine
        arguments.refuse_result("x", x)
        x = arguments.real("x", x, engine.dtype)
        plan = self._plans.get(x.shape) or self.plan(x.shape)
        h0, c0 = (None, None) if state is None else self.state("state" + member, state, plan)
        if zero_masked is not False:
            zero_masked = arguments.flag("zero_masked", zero_masked)
        call = Call(Inputs(x, h0, c0), plan, None, self._reset_state("reset_state" + member, reset_state, plan))
        if lengths is None and mask is None and reset is None:
            return call
        rows = plan.N if len(plan.h) == 3 else None
        pattern = ragged.read(plan.T, rows, self._batch_first, lengths, mask, reset, call.reset_state is not None)
        if pattern is None or not plan.N:
            return call
        if turned:
            pattern = pattern.turned()
        return call._replace(ragged=ragged.Ragged(engine, pattern, repeats=not zero_masked))

    def plan(self, shape: tuple[int, ...]) -> Plan:
        """Check the shape of x, and return its plan."""
        engine, name = self.engine, self._owner
        layout = "(N, T, I)" if self._batch_first else "(T, N, I)"
        if len(shape) not in (2, 3):
            raise ValueError(f"x must have layout {layout}, or unbatched (T, I), for this {name}, got shape {shape}")
        if shape[-1] != engine.input_size:
            raise ValueError(
                f"x has {shape[-1]} features on its last axis, but this {name} was built with "
                f"input_size={engine.input_size}: the layout is {layout if len(shape) == 3 else '(T, I)'}, got {shape}"
            )
        swapped = self._batch_first and len(shape) == 3
        T, *batch = shape[1::-1] if swapped else shape[:-1]
        if T == 0:
            raise ValueError(
                f"x has no time steps: its layout must be {layout if batch else '(T, I)'} with T >= 1, got {shape}"
            )
        N = batch[0] if batch else 1
        states = engine.num_layers * engine.directions
        width = max(engine.input_size, engine.directions * engine.output_size)
        plan = Plan(
            x=shape,
            y=(*shape[:-1], engine.directions * engine.output_size),
            h=(states, *batch, engine.output_size),
            c=(states, *batch, engine.hidden_size) if engine.info.has_c else None,
            T=T,
            N=N,
            time_major=bool(batch) and not swapped,
            large=max(T * N * width, states * N * engine.hidden_size) * engine.dtype.itemsize >= LARGE,
            sizes=engine.sizes(T, N) if N else None,
        )
        if len(self._plans) >= 64:  # the number of different lengths is unbounded
            self._plans.clear()
        self._plans[shape] = plan
        return plan

    def state(self, name: str, value: Any, plan: Plan) -> tuple[Array | None, Array | None]:
        """Check a state, and return h and c."""
        if value is None:
            return None, None
        if plan.c is None:
            return self._member(name, value, plan.h, "hidden_size"), None
        h, c = arguments.pair(name, value, f"(h, c) of shapes {plan.h} and {plan.c}")
        h = self._member(f"{name}[0] (h)", h, plan.h, "proj_size" if self.engine.proj_size else "hidden_size")
        return h, self._member(f"{name}[1] (c)", c, plan.c, "hidden_size")

    def _reset_state(self, name: str, value: Any, plan: Plan) -> ragged.State | None:
        """Check a reset state; return its h and c, or None if resets go to the initial state."""
        if not isinstance(value, str):
            return self.state(name, value, plan)
        if arguments.choice(name, value, ragged.RESET_STATES) == ragged.INITIAL:
            return None
        dtype = self.engine.dtype
        return np.zeros(plan.h, dtype), None if plan.c is None else np.zeros(plan.c, dtype)

    def _member(self, name: str, value: Any, shape: tuple[int, ...], width: str) -> Array | None:
        layout = f"shape (num_layers * directions{', N' if len(shape) == 3 else ''}, {width})"
        array = arguments.shaped(name, value, self.engine.dtype, shape, layout)
        return None if array is None else np.ascontiguousarray(array)

    # ---- weights

    def _ordered(self, parameters: Mapping[str, Array]) -> list[Any]:
        """Return the parameters and the extras in the order of the engine."""
        every = {**self.extras, **parameters}
        return [every[name] for name in self._names]

    def _pointers(self, parameters: Mapping[str, Array]) -> Any:
        """Return pointers to the parameters, which are the same arrays as long as the mapping is the same."""
        known, pointers = self.live.pointers
        if known is not parameters:
            pointers = functional.Pointers(self.engine, self._ordered(parameters))
            self.live.pointers = parameters, pointers
        return pointers

    def pack(self, parameters: Mapping[str, Array]) -> Weights:
        """Pack the parameters for forward and backward, in buffers from `packs`."""
        weights = Weights(self.packs.acquire(self.engine.packed_size), self.packs.acquire(self.engine.packed_back_size))
        functional.pack(self.engine, self._pointers(parameters), weights.packed, weights.packed_back)
        return weights

    def pack_forward(self, parameters: Mapping[str, Array]) -> Array:
        """Pack the parameters for forward only, in a buffer from `packs`."""
        packed: Array = self.packs.acquire(self.engine.packed_size)
        functional.pack(self.engine, self._pointers(parameters), packed, None)
        return packed

    def snapshot(self, parameters: Mapping[str, Array], frozen: bool = True) -> Array:
        """Pack the current parameters for forward only, in a buffer that is not reused.

        If `frozen`, they are those of the layer, which do not change while it is frozen.
        """
        packed: Array
        weights = self.frozen if frozen else None
        if weights is not None:
            packed = weights.packed
            return packed
        packed = functional.empty(self.engine.packed_size)
        functional.pack(self.engine, self._ordered(parameters), packed, None)
        return packed

    def prepare(self, plan: Plan, weights: Weights, parameters: Mapping[str, Array]) -> None:
        """Prepare later calls with the same shape of x. Weights that are not frozen must see it twice in a row."""
        if weights is self.live and weights.plan is not plan:
            weights.plan = plan
            return
        pointers = self._pointers(parameters) if weights is self.live else None
        weights.prepared = self.prepared(plan, weights.packed, plan.h, plan.c, pointers)

    def prepared(self, plan: Plan, packed: Any, h: Any, c: Any, pointers: Any = None) -> functional.PreparedCall:
        """Return a prepared call with packed weights, or pointers to parameters, and states of the shapes h and c."""
        return functional.PreparedCall(
            self.engine,
            packed,
            (plan.x, plan.y, h, c),
            parameters=pointers,
            time_first=plan.time_major or len(plan.y) == 2,
            pool=self.workspaces,
            empty=self.results.empty if plan.large else np.empty,
        )

    # ---- passes

    def _empty(self, plan: Plan, sequence: tuple[int, ...]) -> tuple[Array, Array, Array | None]:
        """Return uninitialised arrays for a sequence and its states, in the caller's layout."""
        empty, dtype = self.results.empty if plan.large else np.empty, self.engine.dtype
        return empty(sequence, dtype), empty(plan.h, dtype), None if plan.c is None else empty(plan.c, dtype)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[checkpoints.Scratch]:
        """Provide the buffers of a checkpointed pass in a context."""
        scratch = self.scratch.pop() or checkpoints.Scratch(self.engine.dtype)
        yield scratch
        self.scratch.release(scratch)

    def run(
        self, call: Call, packed: Array, tape: Array | None = None, every: int | str | None = None
    ) -> tuple[Outputs, checkpoints.Saved | None]:
        """Run forward. Writes `tape` if it is not None. If `every` is not None, also returns checkpoints."""
        inputs, plan, rows, reset_state = call
        outputs = own = results = Outputs(*self._empty(plan, plan.y))
        if not plan.N:
            return results, None if every is None else checkpoints.Saved([], [], [])
        sizes = plan.sizes
        if not plan.time_major:
            inputs = engine_inputs(plan, inputs)
            outputs = own = Outputs(*engine_view(plan, results.y, results.h_n, results.c_n))
        if rows is not None:
            sizes, own = rows.sizes, rows.outputs(outputs)
            inputs = rows.inputs(inputs, engine_states(plan, reset_state))
        saved = None
        if every is None:
            workspace = self.workspaces.acquire(sizes.forward_workspace)
            functional.forward(self.engine, packed, inputs, own, workspace, tape)
            self.workspaces.release(workspace)
        else:
            with self._scratch() as scratch:
                saved = checkpoints.forward(self.engine, packed, inputs, own, every, scratch)
        if rows is not None:
            rows.finish_outputs(own, outputs)
        return results, saved

    def train(
        self, call: Call, parameters: Mapping[str, Array], every: int | str | None = None
    ) -> tuple[Outputs, Kept, list[_core.Lease]]:
        """Run forward, keeping what backward needs in buffers that are leased until the tape is deallocated."""
        frozen, sizes = self.frozen, (call.ragged or call.plan).sizes
        leases: list[_core.Lease] = []
        if frozen is None:
            weights = self.pack(parameters)
            leases = [_core.Lease(self.packs, one, one.nbytes) for one in (weights.packed_back, weights.packed)]
        else:
            weights = frozen
        tape = None
        if sizes is not None and every is None:
            leases.insert(0, self.tapes.lease(sizes.tape))
            tape = leases[0].buffer
        outputs, saved = self.run(call, weights.packed, tape, every)
        if frozen is None and saved is None:
            weights.packed = None
            del leases[-1]
        return outputs, Kept(call, outputs.y, tape, weights, saved), leases

    def differentiate(
        self, kept: Kept, gradients: OutputGradients, dparameters: dict[str, Array], per_step: bool
    ) -> Found:
        """Run backward, with all arrays in the caller's layout."""
        inputs, plan, rows, reset_state = kept.call
        engine, weights, sizes = self.engine, kept.weights, plan.sizes
        dx, dh0, dc0 = self._empty(plan, plan.x)
        dh = np.empty((plan.h[0], *plan.steps, plan.h[-1]), engine.dtype) if per_step else None
        trained = [dparameters.get(name) for name in self._names]  # there are no gradients for extras
        results = InputGradients(dx, dh0, dc0, trained, dh)
        dreset_state = None
        if reset_state is not None:
            dreset_state = np.zeros(plan.h, engine.dtype), None if plan.c is None else np.zeros(plan.c, engine.dtype)
        found = Found(results, dreset_state)
        if not plan.N:
            return found
        y, outputs = kept.y, results
        if not plan.time_major:
            y, _, _ = engine_view(plan, y)
            inputs = engine_inputs(plan, inputs)
            gradients = OutputGradients(*engine_view(plan, gradients.dy, gradients.dh_n, gradients.dc_n))
            whole = None if dh is None else dh.reshape(plan.h[0], plan.T, plan.N, plan.h[-1])
            outputs = InputGradients(*engine_view(plan, dx, dh0, dc0), results.dparameters, whole)
        own = outputs
        if rows is not None:
            sizes, inputs = rows.sizes, rows.inputs(inputs, engine_states(plan, reset_state))
            gradients, own = rows.output_gradients(gradients), rows.input_gradients(outputs)
        if kept.saved is None:
            workspace = self.workspaces.acquire(sizes.backward_workspace)
            functional.backward(engine, weights.packed_back, inputs, y, kept.tape, gradients, own, workspace)
            self.workspaces.release(workspace)
        else:
            with self._scratch() as scratch:
                packs = weights.packed, weights.packed_back
                checkpoints.backward(engine, packs, inputs, kept.saved, gradients, own, scratch)
        if rows is not None:
            rows.finish_gradients(own, outputs, engine_states(plan, dreset_state))
        return found

    def cells(self, kept: Kept) -> Array:
        """Return c of every step, (L*D, T, N, H), or unbatched (L*D, T, H)."""
        inputs, plan, rows, reset_state = kept.call
        assert plan.c is not None
        if kept.saved is not None:
            raise ValueError(
                "this tape has no cells, because it holds checkpoints only: run forward with checkpoint=None"
            )
        cells = np.empty((plan.c[0], *plan.steps, plan.c[-1]), self.engine.dtype)
        if plan.N:
            whole = cells.reshape(plan.c[0], plan.T, plan.N, plan.c[-1])
            functional.cells(self.engine, plan.T, plan.N, kept.tape, whole, rows.order if rows else None)
            if rows:
                rows.fill_cells(whole, engine_view(plan, None, None, inputs.c0)[2], engine_states(plan, reset_state))
        return cells
