"""The base class of all recurrent layers."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np

from rnnfast import arguments, functional, initializers, narrow, options
from rnnfast._types import Array, ArrayLike, Init
from rnnfast.buffers import LARGE
from rnnfast.ragged import INITIAL
from rnnfast.streams import Stream

from . import saving
from .base import ArrayLayer, Gradients, Tape, require_recorded
from .execution import Call, Execution, Kept, Plan, Weights, spread

__all__ = ["Recurrent"]

State = TypeVar("State")  # the type of the state: h, or for LSTM the pair (h, c)


class Recurrent(ArrayLayer, Generic[State]):
    """Base class of all recurrent layers, which only define their options.

    Attributes
    ----------
    engine : rnnfast.functional.Engine
        The engine that runs the layer; read-only.
    execution : rnnfast.layers.execution.Execution
        Runs the engine for the layer. Internal: its methods may change in any release.
    """

    # Options that not every class has, and that layers pickled by earlier versions lack.
    proj_size = 0
    activations: tuple[Any, ...] | None = None
    clip: float | None = None
    peepholes = coupled = init_state = False
    _leak: Any = None
    zoneout: float | tuple[float, float] = 0.0
    dropout: float  # the three options of dropout can be assigned, and take effect in the next forward
    recurrent_dropout = input_dropout = 0.0
    execution: Execution
    _cell: str  # of the class, one of its cells
    _first = saving.FIRST
    _init: Init = "torch"
    _transient = ("_built", "execution")

    def __init__(self, cell: str, given: dict[str, Any]) -> None:  # given: the locals() of the class's constructor
        super().__init__(given["dtype"], given["rng"])
        self._cell = cell
        self.input_size = arguments.size("input_size", given["input_size"])
        self.hidden_size = arguments.size("hidden_size", given["hidden_size"])
        self.num_layers = arguments.size("num_layers", given["num_layers"])
        self.proj_size = arguments.size("proj_size", given.get("proj_size", 0), least=0)
        if self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size must be below hidden_size={self.hidden_size}, got {self.proj_size}")
        self.bias = arguments.flag("bias", given["bias"])
        self.batch_first = arguments.flag("batch_first", given["batch_first"])
        self.dropout = given["dropout"]
        self.recurrent_dropout = given.get("recurrent_dropout", 0.0)
        self.input_dropout = given["input_dropout"]
        if self.dropout and self.num_layers == 1:
            warnings.warn("dropout is applied between layers, so it has no effect with num_layers=1", stacklevel=3)
        self.bidirectional = arguments.flag("bidirectional", given["bidirectional"])
        self.reverse = arguments.flag("reverse", given["reverse"])
        if self.bidirectional and self.reverse:
            raise ValueError(
                "bidirectional=True and reverse=True are mutually exclusive: bidirectional=True includes the reverse "
                "direction"
            )
        self.activations = options.activations(given.get("activations"), cell, 1 + self.bidirectional)
        self.clip = options.clip(given.get("clip"))
        self.peepholes = arguments.flag("peepholes", given.get("peepholes", False))
        self.coupled = arguments.flag("coupled", given.get("coupled", False))
        self.init_state = arguments.flag("init_state", given["init_state"])
        states = self.num_layers * (1 + self.bidirectional)
        self.zoneout = options.zoneout(given["zoneout"], functional.CELLS[cell].has_c)
        self._leak = options.leak(given.get("leak"), states, self.hidden_size, self.dtype)
        # Not an option, as only the constructor uses it. Bidirectional passes it to the layer that it creates.
        self._init = given["init"]
        stored = self._source is not None
        engine = self._new_engine()
        if not stored:  # raises MemoryError early
            self._prepare(engine)
        functions = self.activations or options.DEFAULTS[cell]
        relu = len(engine.info.gates) == 1 and set(functions) == {"relu"}
        initializer = initializers.read(self._init, engine.info.gates, relu, self.bias, self.coupled)
        shapes = functional.parameter_shapes(engine)
        if self._leak is not None:  # an option, not a parameter
            shapes = {name: shape for name, shape in shapes.items() if not name.startswith(f"{engine.extra}_l")}
        learned = functional.state_shapes(engine) if self.init_state else {}

        def draw(name: str, shape: tuple[int, ...]) -> Array:
            if name in learned:
                return np.zeros(shape, self.dtype)
            return initializer.draw(self._rng, name, shape, self.hidden_size, self.dtype)

        self._draw(draw, shapes | learned)
        if stored:  # before the parameters have been read, nothing of their size is allocated
            self._prepare(engine)
        self._built = True

    @classmethod
    def _implied(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        info = functional.CELLS[cls._cell]
        implied, gates = saving.recurrent_options(shapes, info)
        if gates not in {float(len(functional.CELLS[cell].gates)) for cell in cls._variants()}:
            find = "" if info.elementwise else ": call rnnfast.from_state_dict, which finds the class"
            raise ValueError(f"{saving.said(shapes, info)}, but {cls.__name__} has {len(info.gates)}{find}")
        known = saving.signature(saving.public(cls))
        lacking = [name for name, value in implied.items() if value and name not in known]
        if lacking:
            raise ValueError(f"the names of the parameters imply {lacking[0]}, which {cls.__name__} does not have")
        return {name: value for name, value in implied.items() if name in known}

    @classmethod
    def _variants(cls) -> tuple[str, ...]:
        """Return cells of the class with all numbers of gates that it can have."""
        return (cls._cell,)

    def _new_engine(
        self, input_size: int | None = None, num_layers: int | None = None, **given: Any
    ) -> functional.Engine:
        return functional.Engine(
            self._cell,
            self.dtype,
            input_size or self.input_size,
            self.hidden_size,
            proj_size=self.proj_size,
            num_layers=num_layers or self.num_layers,
            bidirectional=self.bidirectional,
            reverse=self.reverse,
            bias=self.bias,
            zoneout=self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout, 0.0),
            options=options.read(
                self._cell, 1 + self.bidirectional, self.activations, self.clip, self.peepholes, self.coupled
            ),
            **given,
        )

    def _prepare(self, engine: functional.Engine | None = None) -> None:
        self.execution = self._new_execution(engine or self._new_engine())

    def _new_execution(self, engine: functional.Engine, plain: Execution | None = None) -> Execution:
        shape = (engine.num_layers * engine.directions, engine.hidden_size)
        extras = None if self._leak is None else np.broadcast_to(np.array(self._leak, self.dtype), shape)
        return Execution(engine, self.batch_first, type(self).__name__, extras, plain)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in saving.DROPOUTS:
            value = arguments.fraction(name, value)
            if value and name == "recurrent_dropout" and functional.CELLS[self._cell].elementwise:
                raise ValueError(f"recurrent_dropout must be 0, as a {type(self).__name__} has no recurrent product")
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _fixed(self) -> Collection[str]:
        return {*super()._fixed(), "proj_size", "peepholes", "coupled", "init_state", "zoneout"}

    @property
    def leak(self) -> Any:
        """The leak of a leaky RNN, as a number or nested tuples; None otherwise."""
        return self._leak

    @property
    def engine(self) -> functional.Engine:
        return self.execution.engine

    def _kind(self) -> str | None:
        return None if self.execution.frozen is None else self.engine.weights

    def _frozen_as(self, kind: str | None, parameters: Mapping[str, Array]) -> list[tuple[Any, str, Any]]:
        run = plain = self.execution.plain
        weights = plain.pack(parameters) if kind == "full" else None
        if kind not in (None, "full"):
            run = self._new_execution(self._new_engine(weights=kind, isa=plain.engine.isa), plain)
            object.__setattr__(run, "frozen", Weights(run.snapshot(parameters), None))
        return [(plain, "frozen", weights), (self, "execution", run)]

    def release(self) -> None:
        run = self.execution
        run.release()
        run.plain.release()

    release.__doc__ = ArrayLayer.release.__doc__

    def __call__(
        self,
        x: ArrayLike,
        state: Any = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        reset_state: Any = INITIAL,
        zero_masked: bool = False,
    ) -> tuple[Array, State]:
        """Run over a sequence in inference mode: without dropout, and without a tape for gradients.

        Several threads can call a layer at the same time. Later calls reuse the workspace of a call.

        Parameters
        ----------
        x : array_like of real numbers, (T, N, I), with batch_first (N, T, I), or unbatched (T, I)
            The input, with any strides and byte order. It is converted to the dtype of the layer. T must be at least 1;
            if N is 0, the results are empty.
        state : array_like (L*D, N, H_out), unbatched (L*D, H_out); for LSTM a pair with (L*D, N, H), optional
            The initial state h, or for LSTM (h, c). None, for the state or for one of the pair, means zeros, or with
            init_state the learned one. The layout does not depend on batch_first.
        lengths : array_like of int, (N,), unbatched one integer, optional
            The number of steps of each row, from 0 to T. Rows need not be sorted: cost is proportional to the number of
            valid steps, not to T * N. Padding in x is never read, and y is 0 there. The final state is the state after
            the last valid step. A reverse direction starts at the last valid step. A row of length 0 returns its
            initial state.
        mask : array_like of bool, (T, N), with batch_first (N, T), unbatched (T,), optional
            True at valid steps. At masked-out steps x is not read, the state is kept, and y repeats the output of the
            previous step of the same direction, or is 0 if there is none. Mutually exclusive with `lengths`.
        reset : array_like of bool, of the shape of `mask`, optional
            True at each step where a new sequence starts within the row. That step starts from `reset_state`, and no
            state, output or gradient crosses the boundary. A reverse direction starts each sequence at its end. The
            final state is that of the sequence that the direction processes last.
        reset_state : {"initial", "zeros"}, None, or a state in the form of `state`, default "initial"
            The state from which sequences start at a reset: "initial" means the initial state of this call, "zeros"
            means zeros, and None, also for one of a pair, means what it does for `state`. Unless it is "initial", only
            the first sequence of a row starts from `state`, and a row that is reset at step 0 ignores `state`. In a
            reverse direction, only the last sequence of a row starts from `state`. Without `reset`, the argument has no
            effect.
        zero_masked : bool, default False
            Whether y is 0 at masked-out steps, instead of repeating an output.

        Returns
        -------
        y : ndarray, (T, N, D*H_out), in the layout of `x`
            The outputs of the last layer.
        state : ndarray, or for LSTM the pair (h, c)
            The final state, in the layout of the initial state.

        Raises
        ------
        ValueError
            If a shape does not match the layer or the other arguments.
        TypeError
            If an argument does not hold real numbers, or `x` is the tuple that another layer returned.
        MemoryError
            If the results do not fit into memory.
        """
        plain = lengths is None and mask is None and reset is None and zero_masked is False
        if plain and reset_state is INITIAL and not self.init_state:
            run = self.execution
            prepared = (run.frozen or run.live).prepared
            if prepared is not None:
                results = prepared.run(x, state)
                if results is not None:
                    return cast("tuple[Array, State]", results)
        return self._infer(self.execution.read(x, state, reset_state, lengths, mask, reset, zero_masked))

    def forward(
        self,
        x: ArrayLike,
        state: Any = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        reset_state: Any = INITIAL,
        zero_masked: bool = False,
        checkpoint: int | Literal["auto"] | None = None,
    ) -> tuple[Array, State, Tape]:
        """Run over a sequence in training mode: apply dropout, and keep what ``backward`` needs.

        Parameters
        ----------
        x, state, lengths, mask, reset, reset_state, zero_masked
            As for a call of the layer. The tape holds `x` by reference: do not change it before the last ``backward``.
        checkpoint : int, "auto" or None, default None
            Trades time for memory (T. Chen et al., "Training deep nets with sublinear memory cost", 2016). By default,
            the tape holds all intermediate values. With an integer k, it holds the state of every k-th step only, and
            ``backward`` recomputes the steps in between. This takes about a third more time, and the gradients are
            bitwise identical. k is rounded up to a multiple of max(1, 256 // N). "auto" chooses the square root of T,
            so that memory other than x, y and their gradients grows with the square root of T. Two things are still
            kept for all steps: dropout masks, and the outputs of the lower layers of a bidirectional stack. The tape
            has no `cells`.

        Returns
        -------
        y : ndarray
            As for a call, but read-only, because the tape shares it.
        state : ndarray, or for LSTM the pair (h, c)
        tape : Tape
            Pass it to :meth:`backward`. It keeps the weights of this call.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As for a call of the layer.
        """
        return self._train(self.execution.read(x, state, reset_state, lengths, mask, reset, zero_masked), checkpoint)

    def backward(self, tape: Tape, dy: ArrayLike | None, dstate: Any = None, *, per_step: bool = False) -> Gradients:
        """Return the gradients of the ``forward`` that made `tape`, even if the parameters have changed since.

        Parameters
        ----------
        tape : Tape
            From this layer's ``forward``. It can be used again.
        dy : array_like of the shape of y, or None
            The gradient of a scalar with respect to y; None means zeros.
        dstate : array_like of the shape of the state, for LSTM a pair, optional
            The gradient with respect to the final state. None means zeros, for the state or for one of the pair.
        per_step : bool, default False
            Whether to also return the derivatives with respect to h at every step.

        Returns
        -------
        Gradients
            ``x``, ``state`` (even if no initial state was passed), ``parameters``, with `per_step` ``h``, and
            ``reset_state`` unless it was "initial".

        Raises
        ------
        ValueError
            If the tape comes from another layer, or a shape does not match.
        TypeError
            If `tape` is not a Tape, or an argument does not hold real numbers.
        """
        return self._differentiate(tape, dy, dstate, per_step)

    def stream(self, batch_size: int = 1) -> Stream:
        """Return a stream, which processes sequences step by step and keeps the state between calls.

        The stream uses the current weights: later changes of the parameters do not affect it. It applies no dropout.

        Parameters
        ----------
        batch_size : int, default 1
            N, the number of rows in a step.

        Returns
        -------
        rnnfast.Stream

        Raises
        ------
        ValueError
            If the layer is bidirectional or reverse, because such a layer needs the whole sequence.

        Examples
        --------
        >>> import numpy as np, rnnfast
        >>> layer = rnnfast.GRU(4, 8, rng=0)
        >>> stream = layer.stream()
        >>> stream.step(np.ones(4, np.float32)).shape
        (8,)
        >>> stream(np.ones((20, 1, 4))).shape
        (20, 1, 8)
        """
        return Stream(self, batch_size)

    def _zeros(self) -> dict[str, Array]:
        engine = self.engine
        zeros = np.zeros if engine.packed_size < LARGE else self.execution.results.zeros  # no gradient is large then
        return {str(name): zeros(array.shape, engine.dtype) for name, array in self._parameters.items()}

    def _initial(self) -> tuple[Array, Array | None]:
        """Return copies of the h (L*D, H_out) and c (L*D, H) with which rows start: zeros, unless they are learned."""
        shapes, states = functional.state_shapes(self.engine), self.engine.num_layers * self.engine.directions
        values = [self._learned(name, shape) for name, shape in shapes.items()]
        return np.stack(values[:states]), np.stack(values[states:]) if self.engine.info.has_c else None

    def _learned(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return a learned initial state, or zeros."""
        if not self.init_state:
            return np.zeros(shape, self.dtype)
        array = self._parameters[name]
        if array.dtype != self.dtype or array.shape != shape or not array.flags.c_contiguous:
            raise ValueError(
                f"the dtype or the layout of parameters[{name!r}] was changed in place: create a new layer"
            )
        return array

    def _started(self, call: Call) -> tuple[Call, tuple[bool, ...]]:
        """Fill in the learned states where the caller passed none; return also which of the states are learned ones."""
        if not self.init_state:
            return call, ()
        (inputs, plan, _, reset_state), (h, c) = call, self._initial()

        def start(state: Array | None, initial: Array | None) -> Array | None:
            if state is not None or initial is None or len(plan.h) == 2:
                return initial if state is None else state
            return np.repeat(initial[:, np.newaxis], plan.N, axis=1)

        given = (inputs.h0, inputs.c0, *(reset_state or ()))
        if reset_state is not None:
            reset_state = start(reset_state[0], h), start(reset_state[1], c)
        inputs = functional.Inputs(inputs.x, start(inputs.h0, h), start(inputs.c0, c))
        return call._replace(inputs=inputs, reset_state=reset_state), tuple(state is None for state in given)

    def _infer(self, call: Call) -> tuple[Array, State]:
        require_recorded(self)
        call, _ = self._started(call)
        run = self.execution  # once, because another thread may freeze the layer with other weights
        frozen = run.frozen
        packed = run.pack_forward(self._parameters) if frozen is None else frozen.packed
        outputs, _ = run.run(call, packed)
        if frozen is None:
            run.packs.release(packed)
        if call.plan.N and call.ragged is None and not self.init_state:
            run.prepare(call.plan, frozen or run.live, self._parameters)
        return outputs.y, cast("State", outputs.state)

    def _train(self, call: Call, checkpoint: Any = None) -> tuple[Array, State, Tape]:
        if not (checkpoint is None or (isinstance(checkpoint, str) and checkpoint == "auto")):
            checkpoint = arguments.size('checkpoint, unless it is "auto" or None,', checkpoint)
        run = self.execution
        narrow.require_full(run.engine.weights, self)
        call, learned = self._started(call)
        inputs, reset_state = call.inputs, call.reset_state
        if reset_state is not None:
            reset_state = _copy(reset_state[0]), _copy(reset_state[1])
        plan, x, factors, recurrent_masks = call.plan, inputs.x, None, None
        masks = self._masks(plan) if self.dropout and self.engine.num_layers > 1 else None
        if self.recurrent_dropout or self.input_dropout:
            recurrent_masks, of_inputs = self._masks_of_rows(plan)
            with np.errstate(all="ignore"):  # infinities and NaN are valid data
                if of_inputs:
                    factors = spread(plan, of_inputs[0])
                    x = x * factors
                if of_inputs[1:]:
                    of_layers = np.stack(of_inputs[1:])[:, np.newaxis]
                    shape = (*of_layers.shape[:1], plan.T, *of_layers.shape[2:])
                    masks = np.broadcast_to(of_layers, shape) if masks is None else masks * of_layers
        inputs = functional.Inputs(
            x,
            _copy(inputs.h0),
            _copy(inputs.c0),
            masks,
            recurrent_masks=recurrent_masks,
            zoneout_masks=self._zoneout_masks(plan) if self.zoneout else None,
        )
        call = Call(inputs, plan, call.ragged, reset_state)
        outputs, kept, leases = run.train(call, self._parameters, checkpoint)
        if learned or factors is not None:
            kept = kept._replace(learned=learned, factors=factors)
        y = outputs.y
        y.flags.writeable = False
        if y.base is not None:
            y.base.flags.writeable = False
        # A view of a read-only array cannot be made writable.
        return y[...], cast("State", outputs.state), Tape(self, kept, leases)

    def _masks(self, plan: Plan) -> Array:
        """Draw the dropout factors for the outputs of all layers but the last: 0, or 1 / (1 - dropout)."""
        return _factors(self._rng, (self.engine.num_layers - 1, plan.T, plan.N, plan.y[-1]), self.dropout, self.dtype)

    def _masks_of_rows(self, plan: Plan) -> tuple[Array | None, list[Array]]:
        """Draw the factors of recurrent dropout (L*D, N, H_out), and those of input dropout for each layer (N, I_k).

        The layer's generator is used once per call, for a key. Each mask is the sequence of random numbers under that
        key from a counter of its own, so the factors of a row depend neither on the other rows nor on the other option.
        """
        engine, N, key = self.engine, plan.N, self._rng.integers(1 << 64, size=2, dtype=np.uint64)

        def draw(kind: int, which: int, width: int, dropout: float) -> Array:
            bits = np.random.Philox(key=key, counter=[0, 0, which, kind])
            return _factors(np.random.Generator(bits), (N, width), dropout, self.dtype)

        recurrent_masks, of_inputs = None, []
        if self.recurrent_dropout:
            states = range(engine.num_layers * engine.directions)
            width = engine.output_size
            recurrent_masks = np.stack([draw(0, state, width, self.recurrent_dropout) for state in states])
        if self.input_dropout:
            widths = [engine.input_size, *[engine.directions * engine.output_size] * (engine.num_layers - 1)]
            of_inputs = [draw(1, layer, width, self.input_dropout) for layer, width in enumerate(widths)]
        return recurrent_masks, of_inputs

    def _zoneout_masks(self, plan: Plan) -> Array | None:
        """Draw the units that keep their values at each step, under a key of the call from the layer's generator."""
        key = self._rng.integers(1 << 32, size=2, dtype=np.uint32).tolist()
        return self.engine.draw_zoneout(plan.T, plan.N, key, functional.empty) if plan.N else None

    def _differentiate(self, tape: Tape, dy: Any, dstate: Any, per_step: bool = False, member: str = "") -> Gradients:
        kept: Kept = self._open(tape)
        run = self.execution.plain  # the layer may have been frozen with other weights since
        if per_step is not False:
            per_step = arguments.flag("per_step", per_step)
        dy = arguments.shaped("dy" + member, dy, run.engine.dtype, kept.y.shape)
        last = run.state("dstate" + member, dstate, kept.call.plan)
        parameters = self._zeros()
        found, dreset_state = run.differentiate(kept, functional.OutputGradients(dy, *last), parameters, per_step)
        if any(kept.learned):
            self._add_learned(parameters, kept.learned, (found.dh0, found.dc0, *(dreset_state or ())))
        if kept.factors is not None:
            with np.errstate(all="ignore"):
                np.multiply(found.dx, kept.factors, out=found.dx)
        gradients = Gradients(found.dx, _joined(found.dh0, found.dc0), parameters)
        gradients.h = found.dh
        if dreset_state is not None:
            gradients.reset_state = _joined(*dreset_state)
        return gradients

    def _add_learned(
        self, parameters: dict[str, Array], learned: tuple[bool, ...], dstates: tuple[Array | None, ...]
    ) -> None:
        """Add the gradients of the learned states, which are sums over the rows of the batch."""
        names, states = list(functional.state_shapes(self.engine)), self.engine.num_layers * self.engine.directions
        for kind, is_learned, gradients in zip("hchc", learned, dstates, strict=False):
            if not is_learned or gradients is None:
                continue
            for name, state in zip(names[:states] if kind == "h" else names[states:], gradients, strict=True):
                with np.errstate(all="ignore"):
                    parameters[name] += state if state.ndim == 1 else state.sum(axis=0, dtype=np.float64)

    def _cells(self, tape: Tape) -> Array:
        if not self.engine.info.has_c:
            return cast("Array", super()._cells(tape))
        return self.execution.plain.cells(self._open(tape))


def _factors(rng: np.random.Generator, shape: tuple[int, ...], dropout: float, dtype: np.dtype[Any]) -> Array:
    """Draw factors of dropout: 0, or 1 / (1 - dropout)."""
    factor = dtype.type(1 / (1 - dropout) if dropout < 1 else 0)
    return initializers.drawn(shape, dtype, lambda n: factor * (rng.random(n, np.float32) >= dropout))


def _copy(state: Array | None) -> Array | None:
    return None if state is None else state.copy()


def _joined(h: Array | None, c: Array | None) -> Any:
    """Return a state in its public form."""
    return h if c is None else (h, c)
