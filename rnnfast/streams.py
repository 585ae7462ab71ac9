"""Streams, which process sequences as their steps arrive: for one batch, or for many independent streams in a pool."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, cast

import numpy as np

from . import _core, arguments, functional, narrow
from ._types import Array, ArrayLike
from .fixed import Fixed
from .functional import Inputs

__all__ = ["Stream", "StreamPool"]


def _check(layer: Any) -> None:
    """Raise an error if `layer` cannot be streamed."""
    if not isinstance(getattr(layer, "engine", None), functional.Engine):
        raise TypeError(f"layer must be a recurrent layer, got {type(layer).__name__}")
    if layer.bidirectional or layer.reverse:
        raise ValueError(
            f"{_describe(layer)} cannot be streamed, because its reverse direction starts at the last step of the "
            "sequence: use a layer with bidirectional=False and reverse=False"
        )


def _describe(layer: Any) -> str:
    from .layers.saving import describe  # not at the top, because the layers import this module

    return describe(layer)


def _weights_of(own: Any, run: Any, layer: Any, user: str) -> tuple[Array, tuple[Array | None, ...]]:
    """Return packed weights and the initial state (h, c) from `layer`, which must be like `own`; None means `own`.

    `run` is the execution of the user of the weights, which keeps its kind of weights. `user` names it in messages.
    """
    layer = own if layer is None else layer
    if layer is not own:
        _check(layer)
        from .layers.saving import DROPOUTS, differences

        theirs, ours = differences(layer, own, free=("batch_first", *DROPOUTS))
        if not theirs and layer.engine.isa != own.engine.isa:
            theirs, ours = (f"the instruction set {one.engine.isa}" for one in (layer, own))
        if theirs:
            raise ValueError(
                f"layer has {theirs}, but the layer of this {user} has {ours}: pass a layer of the same class and "
                f"options, or create a new {user}"
            )
    current = layer.execution  # once, because another thread may freeze the layer with other weights
    if current.engine.weights == run.engine.weights:
        run = current
    else:
        narrow.require_finite(layer.parameters)
    return run.snapshot(layer.parameters, frozen=run is current), layer._initial()


def rows_of(rows: Any, N: int) -> Any:
    """Check the rows to reset; return them as an index into an axis of N rows. None stands for all of them."""
    if rows is None:
        return slice(None)
    try:
        which = arguments.array("rows", rows)
        if which.dtype.kind not in "iub" and which.size:
            raise IndexError(f"its dtype is {which.dtype}, neither integers nor booleans")
        if which.ndim > 1:
            raise IndexError(f"it has {which.ndim} axes, more than one")
        return np.atleast_1d(np.arange(N)[which if which.size else which.astype(np.intp)])
    except (IndexError, ValueError) as error:
        raise IndexError(f"rows does not index a batch of {N} rows: {error}") from None


def _steps_of(name: str, value: Any, layer: Any, N: int) -> Array:
    """Check the features of one step and return them as (N, I)."""
    size = layer.engine.input_size
    x = arguments.real(name, value, layer.engine.dtype)
    if x.shape != (N, size) and (N != 1 or x.shape != (size,)):
        alone = f", or {(size,)} for a single row" if N == 1 else ""
        raise ValueError(f"{name} must have shape (rows, input_size) = {(N, size)}{alone}, got {x.shape}")
    return x.reshape(N, size)


def _place_for(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], x: Array) -> Array:
    """Return `out` after checking it, or a new array."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.dtype != dtype or not out.dtype.isnative:
        got = f"one of dtype {out.dtype}" if isinstance(out, np.ndarray) else type(out).__name__
        raise TypeError(f"out must be an array of dtype {dtype}, got {got}")
    if out.shape != shape or not out.flags.writeable:
        raise ValueError(f"out must be writable and have shape {shape}, got {out.shape}")
    arguments.refuse_masked("out", out)
    if np.may_share_memory(out, x):
        raise ValueError("out must not share memory with x: pass another array")
    return out


def _or_initial(values: Iterable[Array | None], initial: Iterable[Array | None]) -> tuple[Array | None, ...]:
    """Replace the states that are None."""
    return tuple(start if value is None else value for value, start in zip(values, initial, strict=True))


def _has_batch(members: Any) -> bool:
    """Return whether all arrays of a state that are not None have three axes."""
    with contextlib.suppress(TypeError, ValueError):
        return all(member is None or arguments.array("state", member).ndim == 3 for member in members)
    return False


class Stream(Fixed):
    """Process sequences as their steps arrive. Created by ``layer.stream(batch_size)``.

    A stream keeps the state between calls, starting from the layer's initial state: zeros, or with init_state a learned
    one. It uses the parameters that the layer had when the stream was created, until :meth:`update` takes new ones.
    Results are bitwise identical to those of one call of the layer on the whole sequence. Only one thread at a time may
    use a stream, but different streams of a layer can run concurrently.

    If a call raises, because of an invalid argument, lack of memory or a signal handler (Ctrl-C), the state is the one
    before the call or the one after it.

    Attributes
    ----------
    batch_size : int
        Read-only.
    state : ndarray, for LSTM the pair (h, c)
        h is (L, N, H_out) and c is (L, N, H). Reading the attribute returns copies. Assigning to it copies the values;
        None means the initial state.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.LSTM(4, 8, rng=0)
    >>> stream, x = layer.stream(), np.ones((5, 1, 4), np.float32)
    >>> y = np.stack([stream.step(x_t) for x_t in x])
    >>> bool((y == layer(x)[0]).all())
    True
    """

    def __init__(self, layer: Any, batch_size: int = 1) -> None:
        _check(layer)
        self.batch_size = N = arguments.size("batch_size", batch_size)
        self._layer, self._run = layer, layer.execution  # which differs after a freeze with other weights
        engine = self._run.engine
        packed, initial = _weights_of(layer, self._run, None, "stream")

        def pair(width: int) -> tuple[Array, Array]:
            shape = arguments.countable("the state", (engine.num_layers, N, width))
            return np.zeros(shape, engine.dtype), np.zeros(shape, engine.dtype)

        h, c = pair(engine.output_size), pair(engine.hidden_size) if engine.info.has_c else None
        for own, start in zip((h, c), initial, strict=True):
            if own is not None and start is not None:
                own[0][...] = start[:, np.newaxis]
        shapes = (1, N, engine.input_size), (1, N, engine.output_size), h[0].shape, None if c is None else c[0].shape
        self._step = functional.PreparedCall(
            engine,
            packed,
            shapes,
            time_first=True,
            pool=self._run.workspaces,
            empty=np.empty,
            states=(h, c),
            initial=initial,
        )
        self._call: functional.PreparedCall | None = None  # for the shape of the last call of the stream
        self._built = True

    def _fixed(self) -> tuple[str, ...]:
        return ("batch_size",)

    def __repr__(self) -> str:
        return f"{_describe(self._layer)}.stream({self.batch_size})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream can be neither pickled nor copied: save its state, and assign it to a new stream")

    def step(self, x_t: ArrayLike, out: Array | None = None) -> Array:
        """Process one step.

        Parameters
        ----------
        x_t : array_like of real numbers, (N, I), with batch_size=1 also (I,)
        out : ndarray of the layer's dtype and the shape of the result, optional
            The array to write the result to, which avoids an allocation. It must not share memory with `x_t`.

        Returns
        -------
        ndarray, (N, H_out), or (H_out,) if x_t is (I,)
            `out`, or a new array.

        Raises
        ------
        ValueError
            If an argument has the wrong shape, or `out` is read-only or shares memory with `x_t`. The state is
            unchanged.
        TypeError
            If `x_t` does not hold real numbers, or `out` is not an array of the right dtype. The state is
            unchanged.
        RuntimeError
            If another thread is using the stream.
        """
        y = self._step.step(x_t, out)
        return self._step_anyhow(x_t, out) if y is None else y

    def _step_anyhow(self, x_t: Any, out: Any) -> Array:
        """Process one step whose arguments must be checked or converted first."""
        layer, engine = self._layer, self._layer.engine
        x_t = arguments.real("x_t", x_t, engine.dtype)
        x = np.ascontiguousarray(_steps_of("x_t", x_t, layer, self.batch_size))
        shape: tuple[int, ...] = (self.batch_size, engine.output_size)
        if self.batch_size == 1 and x_t.ndim == 1:
            x, shape = x[0], shape[1:]
        place = _place_for(out, shape, engine.dtype, x)
        y = self._step.step(x, None, None if out is None else place)
        assert y is not None
        return y if out is None else place

    def __call__(self, x: ArrayLike) -> Array:
        """Process any number of steps.

        Parameters
        ----------
        x : array_like of real numbers, (T, N, I), with batch_first (N, T, I), with batch_size=1 also (T, I)

        Returns
        -------
        ndarray, (T, N, H_out), in the layout of `x`

        Raises
        ------
        ValueError
            If `x` has the wrong shape. The state is unchanged.
        TypeError
            If `x` does not hold real numbers. The state is unchanged.
        RuntimeError
            If another thread is using the stream.
        """
        prepared = self._call
        if prepared is not None and prepared.packed is self._step.packed:

            def repeat(h: Array, c: Array | None) -> tuple[Any, Any]:
                results = prepared.run(x, h if c is None else (h, c))
                if results is None:
                    return None, None
                y, last = results
                return y, (last,) if c is None else last

            y = self._step.update(repeat)
            if y is not None:
                return cast("Array", y)
        return self._call_anyhow(x)

    def _call_anyhow(self, x: Any) -> Array:
        """Process steps that come in another form than those of the last call."""
        run = self._run
        call = run.read(x)
        plan = call.plan
        if self.batch_size != plan.N:
            raise ValueError(
                f"x has {plan.N} rows, but this stream was created with batch_size={self.batch_size}; got {plan.x}"
            )

        def process(h: Array, c: Array | None) -> tuple[Any, Any]:
            inputs = Inputs(call.inputs.x, h.reshape(plan.h), None if c is None else c.reshape(plan.c))
            packed = self._step.packed
            assert packed is not None
            outputs, _ = run.run(call._replace(inputs=inputs), packed)
            self._call = run.prepared(plan, packed, h.shape, None if c is None else c.shape)
            return outputs.y, (outputs.h_n, outputs.c_n)

        return cast("Array", self._step.update(process))

    @property
    def state(self) -> Any:
        return self._step.update(lambda h, c: (h.copy() if c is None else (h.copy(), c.copy()), None))

    @state.setter
    def state(self, value: Any) -> None:
        run = self._run
        steps = (self.batch_size, 1) if self._layer.batch_first else (1, self.batch_size)
        values = run.state("state", value, run.plan((*steps, run.engine.input_size)))
        initial = (
            None if start is None else np.repeat(start[:, np.newaxis], self.batch_size, axis=1)
            for start in self._step.initial
        )
        self._step.update(lambda _h, _c: (None, _or_initial(values, initial)))

    def reset(self, rows: Any = None) -> None:
        """Set the state of all rows, or of some rows, to the initial one.

        Parameters
        ----------
        rows : int, array_like of int, or array_like of bool (N,), optional
            The rows to reset, as an index into the batch axis. By default, all of them.

        Raises
        ------
        IndexError
            If `rows` is not a valid index into the batch axis.
        """
        which = rows_of(rows, self.batch_size)

        def cleared(*states: Array | None) -> tuple[None, list[Array | None]]:
            values = [None if state is None else state.copy() for state in states]
            for value, start in zip(values, self._step.initial, strict=True):
                if value is not None:
                    value[:, which] = start[:, np.newaxis]
            return None, values

        self._step.update(cleared)

    @_core.committed
    def update(self, layer: Any = None) -> None:
        """Use new weights from now on, and a new learned initial state. The state is unchanged.

        Parameters
        ----------
        layer : recurrent layer, such as LSTM, optional
            A layer of the class and options of the layer that created the stream; only batch_first and dropout may
            differ. Later changes of its parameters do not affect the stream. By default, the layer that created the
            stream, with its current parameters.

        Raises
        ------
        TypeError
            If `layer` is not a recurrent layer. The stream is unchanged.
        ValueError
            If its class or options differ. The stream is unchanged.
        RuntimeError
            If another thread is using the stream.

        Examples
        --------
        >>> import numpy as np, rnnfast
        >>> layer, x = rnnfast.GRU(4, 8, rng=0), np.ones((1, 4), np.float32)
        >>> stream = layer.stream()
        >>> for array in layer.parameters.values():
        ...     array *= 0.5
        >>> stream.update()
        >>> bool((stream.step(x) == layer(x[np.newaxis])[0][0]).all())
        True
        """
        return cast("None", (self._step.replace, *_weights_of(self._layer, self._run, layer, "stream")))


class StreamPool(Fixed):
    """Many independent streams of one layer. Any number of them can step together as one batch.

    A pool uses the weights that the layer had when the pool was created, until :meth:`update` takes new ones. Results
    are bitwise identical to those of separate streams. Different streams of a pool can be stepped concurrently by
    several threads; iterating over a pool returns the ids of its streams.

    If a call raises, because of an invalid argument, lack of memory or a signal handler (Ctrl-C), no stream has joined,
    left or changed.

    Parameters
    ----------
    layer : recurrent layer, such as LSTM
        Must be neither bidirectional nor reverse.
    capacity : int
        The maximum number of streams at a time. Memory for all their states is allocated by the constructor.

    Attributes
    ----------
    capacity : int
        Read-only.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> pool = rnnfast.StreamPool(rnnfast.GRU(4, 8, rng=0), capacity=100)
    >>> alice, bob = pool.join(), pool.join()
    >>> pool.step([bob, alice], np.ones((2, 4), np.float32)).shape
    (2, 8)
    >>> pool.leave(alice).shape, len(pool)
    ((1, 8), 1)
    """

    def __init__(self, layer: Any, capacity: int) -> None:
        _check(layer)
        self.capacity = arguments.size("capacity", capacity)
        self._layer, self._run = layer, layer.execution
        run, engine = self._run, self._run.engine
        packed, initial = _weights_of(layer, run, None, "pool")
        widths = (engine.output_size, engine.hidden_size)[: 1 + engine.info.has_c]
        shapes = [arguments.countable("the states", (engine.num_layers, self.capacity, width)) for width in widths]
        states = [np.zeros(shape, engine.dtype) for shape in shapes]
        self._slots = _core.Slots(engine, packed, states, initial, pool=run.workspaces, empty=np.empty)
        self._built = True

    def _fixed(self) -> tuple[str, ...]:
        return ("capacity",)

    def __repr__(self) -> str:
        return f"StreamPool({_describe(self._layer)}, capacity={self.capacity})  # {len(self)} streams"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a StreamPool can be neither pickled nor copied: join the states of its streams to a new pool")

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, id: int) -> bool:  # noqa: A002
        return id in self._slots

    def __iter__(self) -> Iterator[int]:
        return iter(self._slots.members())

    @_core.committed
    def join(self, state: Any = None) -> int:
        """Start a stream and return its id.

        Parameters
        ----------
        state : ndarray (L, H_out), for LSTM a pair with (L, H), optional
            The initial state, for example one that :meth:`leave` returned. A batch axis of length 1 in the middle, as
            in the state of a :class:`Stream`, is also accepted. None, for the state or for one of the pair, means
            the layer's initial state.

        Returns
        -------
        int
            The id of the stream. Ids are never reused.

        Raises
        ------
        RuntimeError
            If the pool is full.
        ValueError
            If the state has the wrong shape.
        TypeError
            If the state does not hold real numbers.
        """
        run, engine = self._run, self._run.engine
        values: Any = None, None
        if state is not None:
            batch = (1,) if _has_batch(state if engine.info.has_c else (state,)) else ()
            values = run.state("state", state, run.plan((1, *batch, engine.input_size)))
        return cast("int", (self._slots.join, *_or_initial(values, self._slots.starts())))

    @_core.committed
    def update(self, layer: Any = None) -> None:
        """Use new weights for all steps that begin later, and a new learned initial state for streams that join later.

        The states of all streams are unchanged. Other threads can step streams meanwhile: each step uses either the old
        weights or the new ones.

        Parameters
        ----------
        layer : recurrent layer, such as LSTM, optional
            A layer of the class and options of the pool's layer; only batch_first and dropout may differ. Later changes
            of its parameters do not affect the pool. By default, the pool's layer, with its current parameters.

        Raises
        ------
        TypeError
            If `layer` is not a recurrent layer. The pool is unchanged.
        ValueError
            If its class or options differ. The pool is unchanged.
        """
        return cast("None", (self._slots.replace, *_weights_of(self._layer, self._run, layer, "pool")))

    @_core.committed
    def leave(self, id: int) -> Any:  # noqa: A002
        """End a stream and return its state.

        Returns
        -------
        ndarray (L, H_out), for LSTM a pair with (L, H)
            A copy of the state.

        Raises
        ------
        KeyError
            If no stream has this id.
        RuntimeError
            If another thread is stepping the stream.
        """
        return self._slots.leave, id

    @_core.committed
    def step(self, ids: Iterable[int], x: ArrayLike, out: Array | None = None) -> Array:
        """Process one step of some streams, as one batch.

        Parameters
        ----------
        ids : sequence of int
            The ids of the streams, each at most once, in any order.
        x : array_like of real numbers, (len(ids), I)
        out : ndarray of the layer's dtype, (len(ids), H_out), optional
            The array to write the result to. It must not share memory with `x`.

        Returns
        -------
        ndarray, (len(ids), H_out)
            `out`, or a new array.

        Raises
        ------
        KeyError
            If no stream has one of the ids. No state is changed.
        ValueError
            If an id occurs twice, or `x` or `out` has the wrong shape. No state is changed.
        TypeError
            If `ids` is not a sequence, `x` does not hold real numbers, or `out` is not an array of the right dtype. No
            state is changed.
        RuntimeError
            If another thread is stepping one of the streams. No state is changed.
        """
        try:
            ids = list(ids.tolist() if isinstance(ids, np.ndarray) else ids)
        except TypeError:
            raise TypeError(f"ids must be a sequence of ids that join() returned, got {ids!r}") from None
        return cast("Array", (self._slots.step, ids, x, out, self._checked))

    def _checked(self, x: Any, out: Any, count: int) -> tuple[Array, Array, Array]:
        """Return x, the array to return, and a contiguous one for the kernels to write."""
        engine = self._layer.engine
        x = arguments.real("x", x, engine.dtype)
        if x.shape != (count, engine.input_size):
            raise ValueError(f"x must have shape (len(ids), input_size) = {(count, engine.input_size)}, got {x.shape}")
        y = _place_for(out, (count, engine.output_size), engine.dtype, x)
        return x, y, y if y.flags.c_contiguous and y.flags.aligned else np.empty(y.shape, engine.dtype)
