"""What RNN, LSTM and GRU share: options, parameters, calls, training, streams."""

from __future__ import annotations

import warnings
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np

from rnnfast import arguments, functional, initializers, options
from rnnfast._types import Array, ArrayLike, Init
from rnnfast.streams import Stream

from .base import ArrayLayer, Gradients, Tape
from .execution import Call, Execution, Kept, Plan, Weights

__all__ = ["Recurrent"]

State = TypeVar("State")  # of a layer's state: h, or for LSTM the pair (h, c)


class Recurrent(ArrayLayer, Generic[State]):
    """The base of RNN, LSTM and GRU: everything but their options.

    Attributes
    ----------
    engine : rnnfast.functional.Engine
        The engine that runs the layer; read-only.
    execution : rnnfast.layers.execution.Execution
        How the layer runs it. Internal: its methods may change in any release.
    """

    # Options that not every class has, and that layers pickled by earlier versions lack.
    proj_size = 0
    activations: tuple[Any, ...] | None = None
    clip: float | None = None
    peepholes = coupled = False
    leak: Any = None
    execution: Execution
    _cell: str
    _init: Init = "torch"
    _transient = ("execution",)

    def __init__(self, cell: str, given: dict[str, Any]) -> None:
        """`given`: the arguments of the class's constructor, as its locals()."""
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
        self.dropout = arguments.fraction("dropout", given["dropout"])
        if self.dropout and self.num_layers == 1:
            warnings.warn("dropout acts between layers: with num_layers=1 it does nothing", stacklevel=3)
        self.bidirectional = arguments.flag("bidirectional", given["bidirectional"])
        self.reverse = arguments.flag("reverse", given["reverse"])
        if self.bidirectional and self.reverse:
            raise ValueError(
                "bidirectional=True and reverse=True are mutually exclusive: bidirectional=True includes the reverse "
                "direction"
            )
        self.activations = options.activations(given["activations"], cell, 1 + self.bidirectional)
        self.clip = options.clip(given["clip"])
        self.peepholes = arguments.flag("peepholes", given.get("peepholes", False))
        self.coupled = arguments.flag("coupled", given.get("coupled", False))
        self.leak = options.leak(given.get("leak"), self.num_layers * (1 + self.bidirectional), self.hidden_size)
        # Used by Bidirectional for the backward layer that it makes. Not an option: it acts at construction alone.
        self._init = given["init"]
        self._prepare()
        functions = self.activations or options.DEFAULTS[cell]
        relu = len(self.engine.info.gates) == 1 and set(functions) == {"relu"}
        initializer = initializers.read(self._init, self.engine.info.gates, relu, self.bias, self.coupled)
        shapes = functional.parameter_shapes(self.engine)
        shapes = {name: shape for name, shape in shapes.items() if name not in self.execution.extras}
        self._draw(lambda name, shape: initializer.draw(self._rng, name, shape, self.hidden_size), shapes)

    def _prepare(self) -> None:
        directions = 1 + self.bidirectional
        engine = functional.Engine(
            self._cell,
            self.dtype,
            self.input_size,
            self.hidden_size,
            proj_size=self.proj_size,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            reverse=self.reverse,
            bias=self.bias,
            options=options.read(self._cell, directions, self.activations, self.clip, self.peepholes, self.coupled),
        )
        shape = (engine.num_layers * directions, engine.hidden_size)
        extras = None if self.leak is None else np.broadcast_to(np.array(self.leak, self.dtype), shape)
        self.execution = Execution(engine, self.batch_first, type(self).__name__, extras)

    @property
    def engine(self) -> functional.Engine:
        return self.execution.engine

    @property
    def _frozen(self) -> Weights | None:
        return self.execution.frozen

    @_frozen.setter
    def _frozen(self, weights: Weights | None) -> None:
        self.execution.frozen = weights

    def __call__(
        self,
        x: ArrayLike,
        state: Any = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        zero_masked: bool = False,
    ) -> tuple[Array, State]:
        """Run over a sequence for its results alone: nothing is kept for a gradient, and dropout does not act.

        Several threads may call one layer at once. The layer keeps the working memory of a call for later calls.
        Rows need not be sorted by length: cost is proportional to the number of valid steps, not to T * N.

        Parameters
        ----------
        x : array_like of real numbers, (T, N, I), with batch_first (N, T, I), or unbatched (T, I)
            Any strides and byte order; other dtypes than the layer's are converted. T is at least 1. With N = 0 the
            results are empty.
        state : array_like (L*D, N, H_out), unbatched (L*D, H_out); for LSTM the pair of it and (L*D, N, H), optional
            The initial state, never batch-first. None, for all or for a member, is zeros.
        lengths : array_like of int, (N,), unbatched one integer, optional
            The number of steps of each row, 0 to T, in any order. Padding is never read, and y is 0 there. The state is
            that after the row's last step, and a reverse direction starts there. A row of length 0 returns its initial
            state.
        mask : array_like of bool, (T, N), with batch_first (N, T), unbatched (T,), optional
            False where a step is masked out: x is not read there, the state is held, and y repeats the output of the
            step before it in the direction's order, or zeros if there is none. Mutually exclusive with lengths.
        reset : array_like of bool, in the shape of `mask`, optional
            True where a row begins anew: that step starts from the initial state of this call. Neither state nor
            output nor gradient crosses such a cut, in either direction; a reverse direction starts each part at its
            end. The returned state is that of the part that is walked last.
        zero_masked : bool, default False
            y is 0 at masked steps.

        Returns
        -------
        y : ndarray, (T, N, D*H_out), in the layout of `x`
            Outputs of the last layer. The array belongs to the caller.
        state : ndarray, or for LSTM the pair (h, c)
            The state after the last step, in the layout of the initial state. The arrays belong to the caller.

        Raises
        ------
        ValueError
            If a shape does not fit.
        TypeError
            If an argument does not hold real numbers.
        MemoryError
            If the results do not fit into memory.
        """
        if lengths is None and mask is None and reset is None and zero_masked is False:
            frozen = self.execution.frozen
            if frozen is not None and frozen.prepared is not None:
                results = frozen.prepared.run(x, state)
                if results is not None:
                    return cast("tuple[Array, State]", results)
        return self._infer(self.execution.read(x, state, lengths, mask, reset, zero_masked))

    def forward(
        self,
        x: ArrayLike,
        state: Any = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        zero_masked: bool = False,
        checkpoint: int | Literal["auto"] | None = None,
    ) -> tuple[Array, State, Tape]:
        """Run over a sequence and keep what the gradient needs; dropout acts.

        Parameters
        ----------
        x, state, lengths, mask, reset, zero_masked
            As for a call of the layer. The tape holds `x` by reference: do not change it before the last ``backward``.
        checkpoint : int, "auto" or None, default None
            None keeps what every step needs. With a number, only the state of every so many steps is kept, and backward
            computes the steps between again, which takes about a third more time; the gradients are the same bits.
            "auto" takes the square root of the number of steps, so that memory beyond x, y and their gradients grows
            with it alone; except that the outputs between layers are kept where they run in both directions, and so are
            the masks of dropout. The number is rounded up to whole blocks of max(1, 256 // N) steps. The tape then has
            no `cells`.
            Source: T. Chen et al., "Training deep nets with sublinear memory cost", 2016.

        Returns
        -------
        y : ndarray
            As from a call, but read-only, as the tape uses it too.
        state : ndarray, or for LSTM the pair (h, c)
        tape : Tape
            For :meth:`backward`; it keeps the weights of this call.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As for a call of the layer.
        """
        return self._train(self.execution.read(x, state, lengths, mask, reset, zero_masked), checkpoint)

    def backward(self, tape: Tape, dy: ArrayLike | None, dstate: Any = None, *, per_step: bool = False) -> Gradients:
        """Return the gradients of the ``forward`` that made `tape`, even if the parameters have changed since.

        Parameters
        ----------
        tape : Tape
            From this layer's forward. It can be used again.
        dy : array_like in the shape of y, or None
            Gradient of a scalar with respect to y; None is zeros.
        dstate : array_like in the shape of state, for LSTM a pair of them, optional
            Gradient with respect to the last state. None, for all or for a member, is zeros.
        per_step : bool, default False
            Whether to return the derivatives with respect to h of every step too.

        Returns
        -------
        Gradients
            ``x``, ``state`` (also where no state was given), ``parameters``, and with `per_step` ``h``.

        Raises
        ------
        ValueError
            If the tape comes from another layer, or a shape does not fit.
        TypeError
            If `tape` is not a Tape, or an argument does not hold real numbers.
        """
        return self._differentiate(tape, dy, dstate, per_step)

    def stream(self, batch_size: int = 1) -> Stream:
        """Return a stream, which runs over sequences as their steps arrive and keeps the state between calls.

        The stream takes the weights as they are now: later changes of the parameters do not affect it. Dropout does not
        act.

        Parameters
        ----------
        batch_size : int, default 1
            N, the rows that step together.

        Returns
        -------
        rnnfast.Stream

        Raises
        ------
        ValueError
            If the layer runs backwards, alone or as one of two directions: such a direction begins with the last step
            of a sequence, which has not arrived yet.

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
        zeros = self.execution.results.zeros
        return {name: zeros(array.shape, self.dtype) for name, array in self._parameters.items()}

    def _pack(self) -> Weights:
        return self.execution.pack(self._parameters)

    def _infer(self, call: Call) -> tuple[Array, State]:
        run, frozen = self.execution, self.execution.frozen
        packed = run.pack_forward(self._parameters) if frozen is None else frozen.packed
        (y, h_n, c_n), _ = run.run(call, packed)
        if frozen is None:
            run.packs.release(packed)
        elif call.plan.N and call.ragged is None:
            run.prepare(call.plan, frozen)
        return y, cast("State", h_n if c_n is None else (h_n, c_n))

    def _train(self, call: Call, checkpoint: Any = None) -> tuple[Array, State, Tape]:
        if not (checkpoint is None or (isinstance(checkpoint, str) and checkpoint == "auto")):
            checkpoint = arguments.size('checkpoint, unless it is "auto" or None,', checkpoint)
        (x, h0, c0, *_), plan, rows = call
        h0, c0 = None if h0 is None else h0.copy(), None if c0 is None else c0.copy()
        masks = self._masks(plan) if self.dropout and self.num_layers > 1 else None
        call = Call(functional.Inputs(x, h0, c0, masks), plan, rows)
        (y, h_n, c_n), kept, leases = self.execution.train(call, self._parameters, checkpoint)
        y.flags.writeable = False
        if y.base is not None:
            y.base.flags.writeable = False
        # A view of a read-only array cannot be made writable.
        return y[...], cast("State", h_n if c_n is None else (h_n, c_n)), Tape(self, kept, leases)

    def _masks(self, plan: Plan) -> Array:
        """Factors for the outputs of all layers but the last: 0 where dropped, else what preserves the mean."""
        shape = (self.num_layers - 1, plan.T, plan.N, plan.y[-1])
        kept = self._rng.random(shape, np.float32) >= self.dropout
        return np.multiply(kept, 1 / (1 - self.dropout) if self.dropout < 1 else 0, dtype=self.dtype)

    def _differentiate(self, tape: Tape, dy: Any, dstate: Any, per_step: bool = False, member: str = "") -> Gradients:
        kept: Kept = self._open(tape)
        run = self.execution
        if per_step is not False:
            per_step = arguments.flag("per_step", per_step)
        dy = arguments.shaped("dy" + member, dy, self.dtype, kept.y.shape)
        last = run.state("dstate" + member, dstate, kept.call.plan)
        parameters = self._zeros()
        found = run.differentiate(kept, functional.OutputGradients(dy, *last), parameters, per_step)
        gradients = Gradients(found.dx, found.dh0 if found.dc0 is None else (found.dh0, found.dc0), parameters)
        gradients.h = found.dh
        return gradients

    def _cells(self, tape: Tape) -> Array:
        if not self.engine.info.has_c:
            return cast("Array", super()._cells(tape))
        return self.execution.cells(self._open(tape))
