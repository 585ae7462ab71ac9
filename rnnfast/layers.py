"""The layers: parameters, inference, training, saving.

Letters in the shapes: T time steps, N batch, I input size, H hidden size, P projected size, L layers, D directions
(2 when bidirectional, else 1). H_out is P where there is a projection, else H. Names, shapes, gate order, state layout
and initial values are torch's (docs.pytorch.org, torch.nn), so a torch ``state_dict`` loads as it is.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import types
import warnings
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, NoReturn, TypeVar, cast

import numpy as np

from . import arguments, checkpoints, files, functional, initializers, options, ragged
from .buffers import LARGE, BufferPool, ResultPool
from .streams import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    Array = NDArray[Any]
    Seed = int | np.random.Generator | None
    Init = str | tuple[str, float]
    Path = str | bytes | os.PathLike[Any]

__all__ = ["GRU", "LSTM", "RNN", "Bidirectional", "Embedding", "Gradients", "Linear", "Tape", "load"]

State = TypeVar("State")  # what a layer returns as its state: h, or for LSTM the pair (h, c)


class _Gradients(NamedTuple):
    x: Any
    state: Any
    parameters: dict[str, Any]


class Gradients(_Gradients):
    """What ``backward`` returns: the tuple (x, state, parameters), each in the shape of what it is the gradient of.

    Attributes
    ----------
    x : ndarray or None
        Gradient of the input; None for :class:`Embedding`.
    state : ndarray, tuple or None
        Gradient of the initial state, in its structure; None for :class:`Linear` and :class:`Embedding`.
    parameters : dict of str to ndarray
        Gradients of the parameters under their names.
    h : ndarray, tuple or None
        With ``per_step=True``, (L*D, T, N, H_out), unbatched (L*D, T, H_out): the whole derivative with respect to h of
        every layer, direction and step, through all that follows it, dy at that step included; zeros at steps that are
        masked or padded. How it falls or rises with the distance from the loss shows how gradients vanish or explode.
        For :class:`Bidirectional` the pair of the two layers'. Not a member of the tuple.
    """

    h: Any = None


class Tape:
    """What one ``forward`` keeps for ``backward``; made by ``forward`` only, and nothing in it is for other eyes.

    It holds the input by reference (leave that array as it is until the last ``backward``), and all else as it was
    at the time of its ``forward``: the weights, the initial state, the dropout. Any number of tapes of a layer can be
    used, in any order, each any number of times. A tape does not pickle.

    Attributes
    ----------
    cells : ndarray or tuple
        c of every step of an LSTM, (L*D, T, N, H), unbatched (L*D, T, H); at masked steps the one that is held, zeros
        at padded steps. A copy, made anew whenever it is asked for. For :class:`Bidirectional` the pair of the two
        layers'.
    """

    __slots__ = ("_kept", "_leases", "_owner")

    def __init__(self, owner: Layer, *kept: Any, leases: tuple[tuple[BufferPool, Any], ...] = ()) -> None:
        self._owner = owner
        self._kept = kept
        self._leases = leases  # buffers, each with where it goes back to

    def __del__(self) -> None:
        for pool, buffer in getattr(self, "_leases", ()):
            pool.release(buffer)

    @property
    def cells(self) -> Any:
        return self._owner._cells(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Tape can be neither pickled nor copied: pickle the layer, and run forward again")


# ----------------------------------------------------------------------------------------- what all layers can do


class Layer:
    """What all layers can do with their parameters: show, copy, save and load them."""

    @property
    def parameters(self) -> Mapping[str, Array]:
        """The parameters by name, a read-only mapping; what is written into an array acts from the next call."""
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        """The arguments that make a layer like this one: all that the constructor takes but rng and init."""
        return {name: getattr(self, name) for name in _signature(self._kind())}

    def _kind(self) -> type[Layer]:
        """The class of this library that this layer is of, itself or by descent: what a file can be rebuilt as."""
        return next(kind for kind in type(self).__mro__ if kind in _CLASSES.values())

    def _description(self) -> dict[str, Any]:
        """Class and options in JSON's types."""
        return {"class": self._kind().__name__, **{name: _plain(value) for name, value in self._options().items()}}

    def _call(self) -> str:
        """The call that makes a layer like this one, without the options that have their default."""
        given = []
        for name, parameter in _signature(self._kind()).items():
            value = getattr(self, name)
            if value != parameter.default:
                text = value._call() if isinstance(value, Layer) else repr(_plain(value))
                given.append(text if parameter.default is parameter.empty else f"{name}={text}")
        return f"{type(self).__name__}({', '.join(given)})"

    def __repr__(self) -> str:
        count = sum(array.size for array in self.parameters.values())
        return f"{self._call()}  # {count} parameters"

    def _cells(self, tape: Tape) -> Any:  # noqa: ARG002
        raise AttributeError(f"this tape has no cells: it comes from {self._call()}, which is no LSTM")

    def _open(self, tape: Tape) -> tuple[Any, ...]:
        """What a tape of this layer holds."""
        if not isinstance(tape, Tape):
            raise TypeError(f"tape must be the Tape that forward returned, got {type(tape).__name__}")
        if tape._owner is not self:
            raise ValueError(
                f"tape comes from another layer, {tape._owner._call()}: give it to that layer's backward, "
                f"or give this {type(self).__name__} a tape that its own forward returned"
            )
        return tape._kept

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters.

        Returns
        -------
        dict of str to ndarray
            In torch's order and under torch's names.
        """
        return {name: array.copy() for name, array in self.parameters.items()}

    def load_state_dict(self, arrays: Mapping[str, ArrayLike], strict: bool = True) -> None:
        """Copy values into the parameters, after all of them were checked.

        Parameters
        ----------
        arrays : mapping of str to array_like
            Real values under the parameters' names and in their shapes: a ``state_dict`` of this library or of torch,
            an opened ``.npz``, a dict of lists. They are converted to the layer's dtype.
        strict : bool, default True
            Refuse missing and unknown names. With False they are passed over; shapes must agree nonetheless.

        Raises
        ------
        ValueError
            When names or shapes do not agree (the text lists all that do not), or when the layer is frozen.
        TypeError
            When `arrays` is no mapping or holds what is not real.
        """
        own = self.parameters
        if not all(array.flags.writeable for array in own.values()):
            raise ValueError(f"this {type(self).__name__} is frozen: call unfreeze() before new parameters are loaded")
        if not hasattr(arrays, "keys"):
            raise TypeError(f"arrays must be a mapping of names to arrays, got {type(arrays).__name__}")
        strict = arguments.flag("strict", strict)
        values = {}
        faults = []
        for name in arrays:
            if name in own:
                value = arguments.real(f"arrays[{name!r}]", arrays[name], own[name].dtype)
                if value.shape == own[name].shape:
                    # Copied now, as it may be a view of a parameter that is written before it is read.
                    values[name] = value.copy()
                else:
                    faults.append(f"{name} must have shape {own[name].shape} (torch's layout), got {value.shape}")
            elif strict:
                faults.append(f"{name} is no parameter of this layer")
        if strict:
            faults.extend(f"{name} is missing" for name in own if name not in arrays)
        if faults:
            raise ValueError(f"arrays do not fit {self._call()}: {'; '.join(faults)}")
        for name, value in values.items():
            own[name][...] = value

    def save(self, path: Path) -> None:
        """Save parameters, class and options in one ``.npz`` file, for :meth:`load` and :func:`rnnfast.load`.

        The file is complete on the disk before it takes the name `path`: a crash or a full disk leaves what was there.

        Parameters
        ----------
        path : str or os.PathLike
            Used as it is: no suffix is added.

        Raises
        ------
        OSError
            When the file cannot be written; nothing is left behind.
        """
        files.write(path, {"format": 1, "layer": self._description()}, self.parameters)

    def load(self, path: Path) -> None:
        """Copy the parameters that :meth:`save` wrote into this layer's, after all was checked.

        Parameters
        ----------
        path : str or os.PathLike
            A file of a layer of this class and these options. Only batch_first, dropout and dtype may differ.

        Raises
        ------
        ValueError
            When the file is not one of rnnfast, holds another kind of layer, or when this layer is frozen.
        OSError
            When it cannot be read.
        """
        description, arrays = _read(path)
        own = self._description()
        if _essence(description) != _essence(own):
            raise ValueError(f"{path!r} holds {description}, but this is {own}; rnnfast.load(path) makes a layer of it")
        self.load_state_dict(arrays)


def _signature(kind: type[Layer]) -> dict[str, inspect.Parameter]:
    """The options of a class: what its constructor takes but what acts at construction only, rng and init."""
    parameters = inspect.signature(kind).parameters
    return {name: value for name, value in parameters.items() if name not in ("rng", "init")}


def _plain(option: Any) -> Any:
    """An option in JSON's types."""
    if isinstance(option, Layer):
        return option._description()
    if isinstance(option, tuple):
        return [_plain(one) for one in option]
    return option.name if isinstance(option, np.dtype) else option


def _essence(description: Any) -> Any:
    """The part of a layer's description on which its results depend, its parameters given."""
    if not isinstance(description, dict):
        return description
    free = ("batch_first", "dropout", "dtype")
    # Files of 0.1.0 do not know these.
    later = {"activations": None, "clip": None, "peepholes": False, "coupled": False}
    essence = {name: _essence(value) for name, value in description.items() if name not in free}
    return {name: value for name, value in essence.items() if name not in later or value != later[name]}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Description and parameters from a file that `Layer.save` wrote."""
    header, arrays = files.read(path)
    if not {"format", "layer"} <= header.keys():
        raise ValueError(f"{path!r} is not a file of a layer of rnnfast")
    version, description = header["format"], header["layer"]
    if version != 1:
        raise ValueError(f"{path!r} has format {version!r}, but this rnnfast reads format 1: use a newer one")
    return description, arrays


def _build(description: dict[str, Any]) -> Layer:
    """A layer as described, with fresh parameters."""
    options: dict[str, Any] = {}
    for name, value in description.items():
        options[name] = _build(value) if isinstance(value, dict) else value
    return _CLASSES[options.pop("class")](**options)


def load(path: Path) -> Any:
    """Rebuild a layer from a file: the file carries its class and options.

    Parameters
    ----------
    path : str or os.PathLike
        What a layer's ``save(path)`` wrote.

    Returns
    -------
    RNN, LSTM, GRU, Bidirectional, Linear or Embedding
        Not frozen, and with a fresh random generator for dropout.

    Raises
    ------
    ValueError
        When the file is not one that rnnfast saved.
    OSError
        When it cannot be read.

    Examples
    --------
    >>> import os, tempfile, rnnfast
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model")
    ...     rnnfast.GRU(4, 8, rng=0).save(path)
    ...     rnnfast.load(path)
    GRU(4, 8)  # 336 parameters
    """
    description, arrays = _read(path)
    try:
        layer = _build(description)
        layer.load_state_dict(arrays)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path!r} does not describe a layer of rnnfast: {error}") from error
    return layer


def _lasting(array: Array) -> Array:
    """The same numbers in an array that does not own them and so cannot be resized: the kernels count on its size."""
    return array[...]


class ArrayLayer(Layer):
    """A layer with arrays of its own."""

    _transient: tuple[str, ...] = ()  # attributes that _prepare makes from the others

    def __init__(self, dtype: Any, rng: Any) -> None:
        self.dtype = arguments.dtype(dtype)
        self._rng = arguments.generator(rng)
        self._parameters: dict[str, Array] = {}
        self._packed: tuple[Array, ...] | None = None  # the form that results come from while frozen

    @property
    def parameters(self) -> Mapping[str, Array]:
        return types.MappingProxyType(self._parameters)

    def _draw(self, draw: Callable[[str, tuple[int, ...]], Array], shapes: dict[str, tuple[int, ...]]) -> None:
        """Make the parameters, from values by name and shape."""
        for name, shape in shapes.items():
            self._parameters[name] = _lasting(draw(name, arguments.countable(name, shape)).astype(self.dtype))

    def _prepare(self) -> None:
        """Make the attributes that are not pickled."""

    def _pack(self) -> tuple[Array, ...]:
        """A copy of the parameters in the form that freeze() keeps."""
        raise NotImplementedError

    def _zeros(self) -> dict[str, Array]:
        """Where the gradients of the parameters are summed."""
        return {name: np.zeros_like(array) for name, array in self._parameters.items()}

    def freeze(self) -> None:
        """Prepare the weights once for all calls to come, and make the parameter arrays read-only.

        Results are the same bits as before; short calls get faster, as they no longer rearrange the weights. Views of
        the arrays that were made earlier stay writable and are not watched: do not write through them.
        """
        if self._packed is None:
            self._packed = self._pack()
            self._protect(True)

    def unfreeze(self) -> None:
        """Undo freeze(): the parameter arrays are writable again, and calls see what is written."""
        self._packed = None
        self._protect(False)

    def _protect(self, frozen: bool) -> None:
        for array in self._parameters.values():
            array.base.flags.writeable = not frozen
            array.flags.writeable = not frozen

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in self._transient}
        return {**kept, "_packed": self._packed is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        frozen = state["_packed"]
        vars(self).update(state, _packed=None, dtype=arguments.dtype(state["dtype"]))
        # Unpickled arrays may be read-only views of the pickle.
        self._parameters = {name: _lasting(np.array(array, order="C")) for name, array in state["_parameters"].items()}
        self._prepare()
        if frozen:
            self.freeze()


# ------------------------------------------------------------------------------------------------- recurrent layers


class _Plan(NamedTuple):
    """All that follows from the shape of x."""

    y: tuple[int, ...]
    h: tuple[int, ...]
    c: tuple[int, ...]
    T: int
    N: int
    time_major: bool
    large: bool  # whether x or a result is
    sizes: Any  # of tape and workspaces, None when N = 0


class Recurrent(ArrayLayer, Generic[State]):
    """What RNN, LSTM and GRU share, which is all but their options."""

    activations: tuple[Any, ...] | None = None
    clip: float | None = None
    peepholes = coupled = False
    _init: Init = "torch"
    _transient = ("_engine", "_plans", "_packs", "_tapes", "_workspaces", "_rooms", "_results", "_prepared")

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        reverse: bool,
        dtype: DTypeLike,
        rng: Seed,
        init: Init,
        proj_size: int = 0,
        activations: Any = None,
        clip: Any = None,
        peepholes: Any = False,
        coupled: Any = False,
    ) -> None:
        super().__init__(dtype, rng)
        self._cell = cell
        self.input_size = arguments.size("input_size", input_size)
        self.hidden_size = arguments.size("hidden_size", hidden_size)
        self.num_layers = arguments.size("num_layers", num_layers)
        self.proj_size = arguments.size("proj_size", proj_size, least=0)
        if self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size must be below hidden_size={self.hidden_size}, got {self.proj_size}")
        self.bias = arguments.flag("bias", bias)
        self.batch_first = arguments.flag("batch_first", batch_first)
        self.dropout = arguments.fraction("dropout", dropout)
        if self.dropout and self.num_layers == 1:
            warnings.warn("dropout acts between layers: with num_layers=1 it does nothing", stacklevel=3)
        self.bidirectional = arguments.flag("bidirectional", bidirectional)
        self.reverse = arguments.flag("reverse", reverse)
        if self.bidirectional and self.reverse:
            raise ValueError("bidirectional=True and reverse=True exclude each other: both directions include that one")
        self.activations = options.activations(activations, cell, 1 + self.bidirectional)
        self.clip = options.clip(clip)
        self.peepholes, self.coupled = arguments.flag("peepholes", peepholes), arguments.flag("coupled", coupled)
        # For the layer that Bidirectional makes like this one; what a layer is does not depend on where it began.
        self._init = init
        kind = cell
        if cell in ("rnn_tanh", "rnn_relu"):  # activations may have another function than the name tells
            functions = self.activations or options.DEFAULTS[cell]
            kind = "rnn_relu" if set(functions) == {"relu"} else "rnn_tanh"
        initializer = initializers.read(init, kind, self.bias, self.coupled)
        self._prepare()
        np.empty(
            self._engine.packed_size, np.uint8
        )  # a MemoryError now, not after many small arrays have filled the memory
        self._draw(
            lambda name, shape: initializer.draw(self._rng, name, shape, self.hidden_size),
            functional.parameter_shapes(self._engine),
        )

    def _prepare(self) -> None:
        self._engine = functional.Engine(
            self._cell,
            self.dtype,
            self.input_size,
            self.hidden_size,
            proj_size=self.proj_size,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            reverse=self.reverse,
            bias=self.bias,
            options=options.read(
                self._cell, 1 + self.bidirectional, self.activations, self.clip, self.peepholes, self.coupled
            ),
        )
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._packs = BufferPool(4)
        self._tapes = BufferPool(4)
        self._workspaces = BufferPool(4)
        self._rooms = BufferPool(2)
        self._results = ResultPool(4 + min(5 * self.num_layers * self._engine.directions, 100))
        self._prepared: functional.PreparedCall | None = None

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
        """Run over a sequence for its results alone: nothing of it is kept, and dropout does not act.

        Several threads may call one layer at once. The working memory of a call stays with the layer for the next ones.
        Rows need not be sorted: time goes with the number of steps that there are, not with T * N.

        Parameters
        ----------
        x : array_like of real numbers, (T, N, I), with batch_first (N, T, I), or unbatched (T, I)
            Any strides and byte order; other dtypes than the layer's are converted. T is at least 1. With N = 0 the
            results are empty.
        state : array_like (L*D, N, H_out), unbatched (L*D, H_out); for LSTM the pair of it and (L*D, N, H), optional
            The initial state, never batch-first. None, for all or for a member, is zeros.
        lengths : array_like of int, (N,), unbatched one integer, optional
            How many steps each row has, 0 to T, in any order. Beyond them x may be anything and y is 0; the state is
            that after the row's own last step, and a reverse direction starts there. A row of length 0 returns its
            initial state.
        mask : array_like of bool, (T, N), with batch_first (N, T), unbatched (T,), optional
            False where a step is passed over: x may be anything there, the state is held, and y repeats the output of
            the step that the direction walked before, zeros where there was none. Not together with lengths.
        reset : array_like of bool, in the shape of `mask`, optional
            True where a row begins anew: that step starts from the initial state of this call. Neither state nor
            output nor gradient crosses such a cut, in either direction; a reverse direction starts each part at its
            end. The state returned is that of the part walked last.
        zero_masked : bool, default False
            y is 0 at masked steps.

        Returns
        -------
        y : ndarray, (T, N, D*H_out), in the layout of `x`
            Outputs of the last layer; the caller's.
        state : ndarray, or for LSTM the pair (h, c)
            The state after the last step, in the layout of the initial state; the caller's.

        Raises
        ------
        ValueError
            When a shape does not fit.
        TypeError
            When an argument does not hold real numbers.
        MemoryError
            When the results do not fit into memory.
        """
        if lengths is None and mask is None and reset is None and zero_masked is False:
            prepared, frozen = self._prepared, self._packed
            if prepared is not None and frozen is not None and prepared.packed is frozen[0]:
                results = prepared.run(x, state)
                if results is not None:
                    return cast("tuple[Array, State]", results)
        return self._infer(*self._inputs(x, state, lengths, mask, reset, zero_masked))

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
            As for a call of the layer. The tape holds `x` by reference: leave it as it is until the last ``backward``.
        checkpoint : int, "auto" or None, default None
            None keeps what every step needs. A number keeps the state of every so many steps alone, and backward
            computes the others again, which takes a third more time or so; the gradients are the same bits. "auto"
            takes the square root of the number of steps, so that memory beyond x, y and their gradients grows with it
            alone, except that the outputs between layers are kept where they run in both directions, and dropout's
            masks. The number is rounded up to whole blocks of max(1, 256 // N) steps. The tape then has no `cells`.
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
            As a call of the layer.
        """
        return self._train(*self._inputs(x, state, lengths, mask, reset, zero_masked), checkpoint)

    def backward(self, tape: Tape, dy: ArrayLike | None, dstate: Any = None, *, per_step: bool = False) -> Gradients:
        """The gradient of the ``forward`` that made `tape`, whatever happened to the parameters since.

        Parameters
        ----------
        tape : Tape
            From this layer's forward. It can be used again.
        dy : array_like in the shape of y, or None
            Gradient of a scalar with respect to y; None is zeros.
        dstate : array_like in the shape of state, for LSTM a pair of them, optional
            Gradient with respect to the last state. None, for all or for a member, is zeros.
        per_step : bool, default False
            Whether to return the derivatives with respect to h of every step as well.

        Returns
        -------
        Gradients
            ``x``, ``state`` (always given, as the state is), ``parameters``, and with `per_step` ``h``.

        Raises
        ------
        ValueError
            When the tape comes from another layer, or a shape does not fit.
        TypeError
            When `tape` is none, or an argument does not hold real numbers.
        """
        return self._differentiate(tape, dy, dstate, per_step)

    def stream(self, batch_size: int = 1) -> Stream:
        """Step through sequences as they arrive, with the state kept in between.

        The stream takes the weights as they are now: later changes of the parameters do not reach it. Dropout does not
        act.

        Parameters
        ----------
        batch_size : int, default 1
            N, rows that step together.

        Returns
        -------
        rnnfast.Stream

        Raises
        ------
        ValueError
            When the layer runs backwards, alone or as one of two directions: such a direction begins with the last
            step of a sequence, which has not come yet.

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

    def _inputs(
        self,
        x: Any,
        state: Any,
        lengths: Any,
        mask: Any,
        reset: Any,
        zero_masked: Any,
        member: str = "",
        turned: bool = False,
    ) -> tuple[Any, ...]:
        """The arguments of a call as the kernels take them, checked, the plan, and the sequences if rows are uneven."""
        x = arguments.real("x", x, self.dtype)
        plan = self._plans.get(x.shape) or self._plan(x.shape)
        h0, c0 = (None, None) if state is None else self._state("state" + member, state, plan)
        if zero_masked is not False:
            zero_masked = arguments.flag("zero_masked", zero_masked)
        if lengths is None and mask is None and reset is None:
            return x, h0, c0, plan, None
        N = plan.N if len(plan.h) == 3 else None
        given = lengths, mask, reset, not zero_masked, turned
        uneven = ragged.read(self._engine, plan.T, N, self.batch_first, *given)
        return x, h0, c0, plan, uneven if plan.N else None

    def _plan(self, shape: tuple[int, ...]) -> _Plan:
        """Check the shape of x and work out all that follows from it."""
        layout = "(N, T, I)" if self.batch_first else "(T, N, I)"
        name = type(self).__name__
        if len(shape) not in (2, 3):
            raise ValueError(f"x must have layout {layout}, or unbatched (T, I), for this {name}, got shape {shape}")
        if shape[-1] != self.input_size:
            raise ValueError(
                f"x has {shape[-1]} features in its last axis, but this {name} was built with "
                f"input_size={self.input_size}; the layout is {layout if len(shape) == 3 else '(T, I)'}, got {shape}"
            )
        swapped = self.batch_first and len(shape) == 3
        T, *batch = shape[1::-1] if swapped else shape[:-1]
        if T == 0:
            raise ValueError(f"x has no time steps: layout {layout if batch else '(T, I)'} with T >= 1, got {shape}")
        N = batch[0] if batch else 1
        engine = self._engine
        states = self.num_layers * engine.directions
        width = max(self.input_size, engine.directions * engine.output_size)
        plan = _Plan(
            y=(*shape[:-1], engine.directions * engine.output_size),
            h=(states, *batch, engine.output_size),
            c=(states, *batch, self.hidden_size),
            T=T,
            N=N,
            time_major=bool(batch) and not swapped,
            large=max(T * N * width, states * N * self.hidden_size) * self.dtype.itemsize >= LARGE,
            sizes=engine.sizes(T, N) if N else None,
        )
        if len(self._plans) >= 64:  # lengths may vary without end
            self._plans.clear()
        self._plans[shape] = plan
        return plan

    def _state(self, name: str, value: Any, plan: _Plan) -> tuple[Array | None, Array | None]:
        """h and c from the caller's form of the state."""
        if value is None:
            return None, None
        if not self._engine.has_cell:
            return self._member(name, value, plan.h, "hidden_size"), None
        h, c = arguments.pair(name, value, f"(h, c) of shapes {plan.h} and {plan.c}")
        h = self._member(f"{name}[0] (h)", h, plan.h, "proj_size" if self.proj_size else "hidden_size")
        return h, self._member(f"{name}[1] (c)", c, plan.c, "hidden_size")

    def _member(self, name: str, value: Any, shape: tuple[int, ...], width: str) -> Array | None:
        layout = f"shape (num_layers * directions{', N' if len(shape) == 3 else ''}, {width})"
        array = arguments.shaped(name, value, self.dtype, shape, layout)
        return None if array is None else np.ascontiguousarray(array)

    def _view(self, plan: _Plan, sequence: Array | None, h: Array | None, c: Array | None) -> tuple[Any, Any, Any]:
        """A sequence and its states as the engine indexes them: time first, and with a batch axis."""
        if plan.time_major:
            return sequence, h, c
        if len(plan.y) == 2:
            sequence, h, c = (None if array is None else array[:, np.newaxis] for array in (sequence, h, c))
            return sequence, h, c
        return None if sequence is None else sequence.transpose(1, 0, 2), h, c

    def _fresh(self, plan: _Plan, sequence: tuple[int, ...]) -> tuple[Any, Any, Any]:
        """Arrays for a sequence and its states to be written to, in the caller's layout."""
        empty = self._results.empty if plan.large else np.empty
        c = empty(plan.c, self.dtype) if self._engine.has_cell else None
        return empty(sequence, self.dtype), empty(plan.h, self.dtype), c

    def _zeros(self) -> dict[str, Array]:
        return {name: self._results.zeros(array.shape, self.dtype) for name, array in self._parameters.items()}

    def _pack(self, backward: bool = True) -> tuple[Any, ...]:
        packed = self._packs.acquire(self._engine.packed_size)
        packed_back = self._packs.acquire(self._engine.packed_back_size) if backward else None
        functional.pack(self._engine, list(self._parameters.values()), packed, packed_back)
        return packed, packed_back

    def _run(
        self,
        x: Array,
        h0: Array | None,
        c0: Array | None,
        plan: _Plan,
        uneven: ragged.Ragged | None,
        packed: Array,
        tape: Any = None,
        masks: Array | None = None,
        checkpoint: Any = None,
    ) -> tuple[Array, Any, Any]:
        """y and the last state, from checked arguments; and the checkpoints if they are wanted."""
        y, h_n, c_n = self._fresh(plan, plan.y)
        state = h_n if c_n is None else (h_n, c_n)
        saved: Any = None if checkpoint is None else ()
        if not plan.N:
            return y, state, saved
        before, after = (x, h0, c0), (y, h_n, c_n)
        if not plan.time_major:
            before, after = self._view(plan, *before), self._view(plan, *after)
        order, sizes, states = None, plan.sizes, after[1:]
        if uneven:
            order, sizes = uneven.order, uneven.sizes
            before = before[0], uneven.spread(before[1]), uneven.spread(before[2])
            states = tuple(None if a is None else uneven.states(a.shape[2], self.dtype) for a in states)
        if checkpoint is None:
            workspace = self._workspaces.acquire(sizes.forward_workspace)
            functional.forward(
                self._engine,
                packed,
                functional.Inputs(*before, masks, order),
                functional.Outputs(after[0], *states),
                workspace,
                tape,
            )
            self._workspaces.release(workspace)
        else:
            given = *before, after[0], *states, masks, order, checkpoint
            with self._room() as room:
                saved = checkpoints.forward(self._engine, packed, *given, room)
        if uneven:
            uneven.fill_outputs(after[0])
            for own, last in zip(states, after[1:], strict=True):
                if last is not None:
                    uneven.last(own, last)
        return y, state, saved

    @contextlib.contextmanager
    def _room(self) -> Iterator[checkpoints.Room]:
        """Buffers of checkpointed calls, which stay with the layer for the next ones."""
        try:
            room = self._rooms.pop()
        except IndexError:
            room = checkpoints.Room(self.dtype)
        yield room
        self._rooms.release(room)

    def _infer(
        self, x: Array, h0: Array | None, c0: Array | None, plan: _Plan, uneven: ragged.Ragged | None
    ) -> tuple[Array, State]:
        frozen = self._packed
        packed = frozen[0] if frozen else self._pack(backward=False)[0]
        y, state, _ = self._run(x, h0, c0, plan, uneven, packed)
        if not frozen:
            self._packs.release(packed)
        elif plan.N and not uneven:
            c = plan.c if self._engine.has_cell else None
            time_first = plan.time_major or len(plan.y) == 2
            shapes = x.shape, plan.y, plan.h, c
            # The next call is mostly on the same shape.
            empty = self._results.empty if plan.large else np.empty
            self._prepared = functional.PreparedCall(
                self._engine, packed, shapes, time_first=time_first, pool=self._workspaces, empty=empty
            )
        return y, state

    def unfreeze(self) -> None:
        self._prepared = None  # it holds the packed weights
        super().unfreeze()

    def _train(
        self,
        x: Array,
        h0: Array | None,
        c0: Array | None,
        plan: _Plan,
        uneven: ragged.Ragged | None,
        checkpoint: Any = None,
    ) -> tuple[Array, State, Tape]:
        if not (checkpoint is None or (isinstance(checkpoint, str) and checkpoint == "auto")):
            checkpoint = arguments.size('checkpoint, unless it is "auto" or None,', checkpoint)
        h0, c0 = (None if array is None else array.copy() for array in (h0, c0))
        frozen = self._packed
        packed, packed_back = frozen or self._pack()
        sizes = uneven.sizes if uneven else plan.sizes
        tape = self._tapes.acquire(sizes.tape) if sizes and checkpoint is None else None
        masks = self._masks(plan) if self.dropout and self.num_layers > 1 else None
        y, state, saved = self._run(x, h0, c0, plan, uneven, packed, tape, masks, checkpoint)
        y.flags.writeable = False
        if y.base is not None:
            y.base.flags.writeable = False
        y = y[...]  # a view of an array that cannot be written to cannot be made writable
        leases: tuple[Any, ...] = () if tape is None else ((self._tapes, tape),)
        if not frozen:
            leases += ((self._packs, packed_back),)
            if saved is None:
                self._packs.release(packed)
            else:
                leases += ((self._packs, packed),)
        kept = x, h0, c0, plan, uneven, y, tape, masks, packed_back, (packed, saved)
        return y, state, Tape(self, *kept, leases=leases)

    def _masks(self, plan: _Plan) -> Any:
        """Factors for the outputs of all layers but the last: 0 where dropped, else what keeps the mean."""
        shape = (self.num_layers - 1, plan.T, plan.N, plan.y[-1])
        kept = self._rng.random(shape, np.float32) >= self.dropout
        return np.multiply(kept, 1 / (1 - self.dropout) if self.dropout < 1 else 0, dtype=self.dtype)

    def _differentiate(self, tape: Tape, dy: Any, dstate: Any, per_step: bool = False, member: str = "") -> Gradients:
        x, h0, c0, plan, uneven, y, kept, masks, packed_back, (packed, saved) = self._open(tape)
        if per_step is not False:
            per_step = arguments.flag("per_step", per_step)
        dy = arguments.shaped("dy" + member, dy, self.dtype, y.shape)
        dh_n, dc_n = self._state("dstate" + member, dstate, plan)
        dx, dh0, dc0 = self._fresh(plan, x.shape)
        parameters = self._zeros()
        dh = np.empty((plan.h[0], *self._steps(plan), plan.h[-1]), self.dtype) if per_step else None
        state = dh0 if dc0 is None else (dh0, dc0)
        gradients = Gradients(dx, state, parameters)
        gradients.h = dh
        if not plan.N:
            return gradients
        dh = dh.reshape(plan.h[0], plan.T, plan.N, plan.h[-1]) if per_step else None
        outputs, _, _ = self._view(plan, y, None, None)
        before, after = self._view(plan, dy, dh_n, dc_n), self._view(plan, dx, dh0, dc0)
        starts = self._view(plan, x, h0, c0)
        order, sizes, states = None, plan.sizes, after[1:]
        if uneven:
            order, sizes = uneven.order, uneven.sizes
            starts = starts[0], uneven.spread(starts[1]), uneven.spread(starts[2])
            before = uneven.fold_outputs(before[0]), *map(uneven.spread_last, before[1:])
            states = tuple(None if a is None else uneven.states(a.shape[2], self.dtype) for a in states)
        if saved is None:
            workspace = self._workspaces.acquire(sizes.backward_workspace)
            functional.backward(
                self._engine,
                packed_back,
                functional.Inputs(*starts, masks, order),
                outputs,
                kept,
                functional.OutputGradients(*before),
                functional.InputGradients(after[0], *states, list(parameters.values()), dh),
                workspace,
            )
            self._workspaces.release(workspace)
        else:
            rest = *before, after[0], *states, list(parameters.values()), dh
            with self._room() as room:
                checkpoints.backward(self._engine, packed, packed_back, starts[0], masks, saved, *rest, room)
        if uneven:
            uneven.clear(after[0])
            for values in () if dh is None else dh:
                uneven.clear(values)
            for own, initial in zip(states, after[1:], strict=True):
                if initial is not None:
                    uneven.sum_starts(own, initial)
        return gradients

    def _steps(self, plan: _Plan) -> tuple[int, ...]:
        """Steps and rows as they stand in arrays of all layers: (T, N), unbatched (T,)."""
        return (plan.T, plan.N)[: len(plan.h) - 1]

    def _cells(self, tape: Tape) -> Array:
        if not self._engine.has_cell:
            return cast("Array", super()._cells(tape))
        _, _, c0, plan, uneven, _, kept, _, _, (_, saved) = self._open(tape)
        if saved is not None:
            raise ValueError("this tape keeps checkpoints alone, without cells: run forward with checkpoint=None")
        cells = np.empty((plan.c[0], *self._steps(plan), plan.c[-1]), self.dtype)
        if plan.N:
            whole = cells.reshape(plan.c[0], plan.T, plan.N, plan.c[-1])
            functional.cells(self._engine, plan.T, plan.N, kept, whole, uneven.order if uneven else None)
            if uneven:
                uneven.fill_cells(whole, self._view(plan, None, None, c0)[2])
        return cells


class RNN(Recurrent["Array"]):
    """Elman's recurrent network, of one layer or several.

    For every step, with f = tanh or relu::

        h = f(W_ih x + b_ih + W_hh h_before + b_hh)

    Source: J. Elman, "Finding structure in time", 1990; the form of ``torch.nn.RNN``.

    Parameters
    ----------
    input_size : int
        I, features of x at a step.
    hidden_size : int
        H, units of a layer.
    num_layers : int, default 1
        L, layers on top of each other; each takes the outputs of the one below.
    nonlinearity : {"tanh", "relu"}
        f above.
    bias : bool, default True
        Whether there are b_ih and b_hh.
    batch_first : bool, default False
        x and y are (N, T, ...) in place of (T, N, ...). States never are.
    dropout : float from 0 to 1, default 0
        Fraction of the outputs of all layers but the last that ``forward`` drops, scaling the others by
        1 / (1 - dropout). A call of the layer drops nothing.
    bidirectional : bool, default False
        Each layer runs in both directions; y has the two side by side, forward first.
    reverse : bool, default False
        The layer runs from the last step to the first; y stays in the order of x.
    activations : list, optional
        In place of `nonlinearity` the function f, as a list of one name, bidirectional also of two, the second for the
        reverse direction. A name is sigmoid, tanh, relu, affine, leaky_relu, thresholded_relu, scaled_tanh,
        hard_sigmoid, elu, softsign or softplus, as the ONNX standard defines them; where there are alpha and beta, a
        tuple of the name and them.
    clip : float, optional
        Bounds the input of every activation to -clip .. clip.
    dtype : {numpy.float32, numpy.float64}
    rng : None, int or numpy.random.Generator
        Gives the initial values, and then drives dropout.
    init : str, default "torch"
        What the initial values are; it acts now, and is no option that is saved.

        - "torch": all uniform in (-1/sqrt(H), 1/sqrt(H)), as in torch.
        - "keras": ``weight_ih`` (G*H, I) of G gates uniform in (-b, b), b = sqrt(6 / (I + G*H)); orthonormal columns
          in ``weight_hh``; biases 0. As in Keras.
        - "orthogonal": an orthogonal matrix in ``weight_hh``, one for each gate; else as torch's.
        - "identity", for relu: the identity in ``weight_hh``, biases 0, ``weight_ih`` normal with a deviation of 0.001.
          As in Le et al., 2015.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (H, I or D*H), ``weight_hh_l{k}`` (H, H), ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (H,) of layer
        k, and the same with ``_reverse`` of its other direction when bidirectional.

    Raises
    ------
    ValueError, TypeError
        When an option is not as above.
    MemoryError
        When the parameters do not fit into memory.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.RNN(4, 8, rng=0)
    >>> layer
    RNN(4, 8)  # 112 parameters
    >>> y, h = layer(np.ones((5, 2, 4)))
    >>> y.shape, h.shape
    ((5, 2, 8), (1, 2, 8))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        activations: Sequence[Any] | None = None,
        clip: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
        init: Init = "torch",
    ) -> None:
        self.nonlinearity = arguments.choice("nonlinearity", nonlinearity, ("tanh", "relu"))
        cell = f"rnn_{nonlinearity}"
        shared = (bias, batch_first, dropout, bidirectional, reverse, dtype, rng, init)
        super().__init__(cell, input_size, hidden_size, num_layers, *shared, activations=activations, clip=clip)


class LSTM(Recurrent["tuple[Array, Array]"]):
    """Long short-term memory, of one layer or several, with an optional projection.

    For every step, the gates stacked in the order i, f, g, o in all parameters::

        i, f, o = sigmoid(W_ih x + b_ih + W_hh h_before + b_hh)
        g       = tanh(W_ih x + b_ih + W_hh h_before + b_hh)
        c       = f * c_before + i * g
        h       = o * tanh(c)                 with proj_size: W_hr (o * tanh(c))

    Sources: S. Hochreiter and J. Schmidhuber, "Long short-term memory", 1997; the forget gate: F. Gers et al.,
    "Learning to forget", 2000; the projection: H. Sak et al., "Long short-term memory recurrent neural network
    architectures for large scale acoustic modeling", 2014; the form of ``torch.nn.LSTM``.

    Parameters
    ----------
    input_size, hidden_size, num_layers
        I, H and L as for :class:`RNN`.
    proj_size : int, default 0
        P, the width of h where it is not 0; below H.
    activations : list of three, optional
        The functions of the gates, of g, and of c on its way to h, as for :class:`RNN`: sigmoid, tanh, tanh.
    peepholes : bool, default False
        Whether i and f see c_before and o sees c, each unit its own: W... + p * c.
    coupled : bool, default False
        Whether f is 1 - i; the rows of f in the parameters then do nothing.
    bias, batch_first, dropout, bidirectional, reverse, clip, dtype, rng
        As for :class:`RNN`.
    init : str or tuple, default "torch"
        "torch", "keras" and "orthogonal" as for :class:`RNN`; keras has ones in the rows of f of ``bias_ih``, glorot's
        values in ``weight_hr`` and zeros in ``peephole``. "forget", or ("forget", value), is torch's but with a bias of
        1, or value, in the forget gate. ("chrono", T_max) is torch's but with ``b_f = log(u)`` and ``b_i = -log(u)``, u
        uniform in (1, T_max - 1) for each unit: the layer begins with memories of 2 to T_max steps. Both biases are
        added: such a value stands in ``bias_ih``, and these rows of ``bias_hh`` are 0.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (4*H, I or D*H_out), ``weight_hh_l{k}`` (4*H, H_out), ``bias_ih_l{k}`` and ``bias_hh_l{k}``
        (4*H,), with a projection ``weight_hr_l{k}`` (P, H), with peepholes ``peephole_l{k}`` (3, H) of i, f and o, and
        the same with ``_reverse`` when bidirectional.

    Raises
    ------
    ValueError, TypeError
        When an option is not as above.
    MemoryError
        When the parameters do not fit into memory.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.LSTM(4, 8, num_layers=2, rng=0)
    >>> y, (h, c), tape = layer.forward(np.ones((5, 2, 4), np.float32))
    >>> grads = layer.backward(tape, np.ones_like(y))
    >>> grads.x.shape, grads.parameters["weight_hh_l1"].shape
    ((5, 2, 4), (32, 8))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        proj_size: int = 0,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        activations: Sequence[Any] | None = None,
        clip: float | None = None,
        peepholes: bool = False,
        coupled: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
        init: Init = "torch",
    ) -> None:
        shared = (bias, batch_first, dropout, bidirectional, reverse, dtype, rng, init)
        own = (proj_size, activations, clip, peepholes, coupled)
        super().__init__("lstm", input_size, hidden_size, num_layers, *shared, *own)


class GRU(Recurrent["Array"]):
    """The gated recurrent unit, of one layer or several, in both conventions of its reset gate.

    For every step, the gates stacked in the order r, z, n in all parameters::

        r, z = sigmoid(W_ih x + b_ih + W_hh h_before + b_hh)
        n    = tanh(W_in x + b_in + r * (W_hn h_before + b_hn))      reset_after=True
        n    = tanh(W_in x + b_in + W_hn (r * h_before) + b_hn)      reset_after=False
        h    = (1 - z) * n + z * h_before

    Sources: K. Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine
    translation", 2014 (reset before the product); the form of ``torch.nn.GRU`` and cuDNN (reset after it).

    Parameters
    ----------
    input_size, hidden_size, num_layers
        I, H and L as for :class:`RNN`.
    reset_after : bool, default True
        Whether the reset gate acts after the product with W_hn, as in torch, or before it, as in the paper.
    activations : list of two, optional
        The functions of the gates and of n, as for :class:`RNN`: sigmoid, tanh.
    bias, batch_first, dropout, bidirectional, reverse, clip, dtype, rng
        As for :class:`RNN`.
    init : str or tuple, default "torch"
        "torch", "keras" and "orthogonal" as for :class:`RNN`. ("chrono", T_max) is torch's but with ``b_z = log(u)``, u
        uniform in (1, T_max - 1) for each unit, in ``bias_ih``, and 0 in these rows of ``bias_hh``: z keeps the state,
        so the layer begins with memories of 2 to T_max steps.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight_ih_l{k}`` (3*H, I or D*H), ``weight_hh_l{k}`` (3*H, H), ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (3*H,),
        and the same with ``_reverse`` when bidirectional.

    Raises
    ------
    ValueError, TypeError
        When an option is not as above.
    MemoryError
        When the parameters do not fit into memory.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.GRU(4, 8, batch_first=True, bidirectional=True, rng=0)
    >>> y, h = layer(np.ones((2, 5, 4)))
    >>> y.shape, h.shape
    ((2, 5, 16), (2, 2, 8))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        activations: Sequence[Any] | None = None,
        clip: float | None = None,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
        init: Init = "torch",
    ) -> None:
        self.reset_after = arguments.flag("reset_after", reset_after)
        cell = "gru" if reset_after else "gru_reset_before"
        shared = (bias, batch_first, dropout, bidirectional, reverse, dtype, rng, init)
        super().__init__(cell, input_size, hidden_size, num_layers, *shared, activations=activations, clip=clip)


# Of a merge: what it makes of the outputs of both directions, and their gradients from that of what it made.
_MERGES: dict[str | None, tuple[Any, Any]] = {
    "concat": (
        lambda f, b: np.concatenate((f, b), axis=-1),
        lambda dy, f, _b: (dy[..., : f.shape[-1]], dy[..., f.shape[-1] :]),
    ),
    "sum": (np.add, lambda dy, _f, _b: (dy, dy)),
    "mul": (np.multiply, lambda dy, f, b: (dy * b, dy * f)),
    "mean": (lambda f, b: (f + b) / 2, lambda dy, _f, _b: (dy / 2, dy / 2)),
    None: (lambda f, b: (f, b), None),
}


class Bidirectional(Layer):
    """Two single-direction layers of any class over one sequence, in both directions.

    ``y[t] = merge(forward_layer's y[t], backward_layer's y[t])``, where the backward layer walks from the last step to
    the first. Stacks of several layers are merged at the end, not layer by layer as with ``bidirectional=True``.
    Sources: M. Schuster and K. Paliwal, "Bidirectional recurrent neural networks", 1997; the form of
    ``keras.layers.Bidirectional``.

    Parameters
    ----------
    forward_layer : RNN, LSTM or GRU
        Neither bidirectional nor reverse.
    backward_layer : RNN, LSTM or GRU, optional
        Not bidirectional, and like forward_layer in input_size, dtype and batch_first, for sum, mul and mean in the
        width of y too. One built with reverse=True runs as it is; another is given time reversed, and what it returns
        is turned back. None makes a layer of the same class and options, reverse=True, with fresh values by the init
        and from the random generator of forward_layer.
    merge : {"concat", "sum", "mul", "mean", None}
        How the two outputs make one; with None, y is the pair of them, and so is the dy that backward takes.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``forward.<name>`` and ``backward.<name>``, the two layers' own arrays.

    Raises
    ------
    ValueError, TypeError
        When an argument is not as above.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.Bidirectional(rnnfast.LSTM(4, 8, rng=0), rnnfast.GRU(4, 6, rng=1))
    >>> y, ((h, c), h_backward) = layer(np.ones((5, 2, 4)))
    >>> y.shape, h.shape, h_backward.shape
    ((5, 2, 14), (1, 2, 8), (1, 2, 6))
    """

    def __init__(
        self,
        forward_layer: Recurrent[Any],
        backward_layer: Recurrent[Any] | None = None,
        merge: Literal["concat", "sum", "mul", "mean"] | None = "concat",
    ) -> None:
        arguments.choice("merge", merge, tuple(_MERGES))
        for name, layer in (("forward_layer", forward_layer), ("backward_layer", backward_layer)):
            if not (isinstance(layer, Recurrent) or layer is backward_layer is None):
                raise TypeError(f"{name} must be an RNN, LSTM or GRU, got {type(layer).__name__}")
            if layer is not None and layer.bidirectional:
                raise ValueError(f"{name} must run in one direction, got {layer._call()}")
        if forward_layer.reverse:
            raise ValueError(f"forward_layer must run from the first step to the last, got {forward_layer._call()}")
        if backward_layer is None:
            options = {**forward_layer._options(), "reverse": True}
            fresh = {"rng": forward_layer._rng, "init": forward_layer._init}
            backward_layer = cast("Recurrent[Any]", forward_layer._kind()(**options, **fresh))
        for name in ("input_size", "dtype", "batch_first"):
            ours, other = getattr(forward_layer, name), getattr(backward_layer, name)
            if ours != other:
                raise ValueError(f"backward_layer must have {name}={ours} as forward_layer has, got {other}")
        widths = forward_layer._engine.output_size, backward_layer._engine.output_size
        if merge in ("sum", "mul", "mean") and widths[0] != widths[1]:
            raise ValueError(f"merge={merge!r} needs layers with outputs of one width, got {widths[0]} and {widths[1]}")
        self.forward_layer = forward_layer
        self.backward_layer = backward_layer
        self.merge = merge

    @property
    def parameters(self) -> Mapping[str, Array]:
        return types.MappingProxyType(_sides(self.forward_layer.parameters, self.backward_layer.parameters))

    def freeze(self) -> None:
        """Freeze both layers: see their ``freeze``."""
        self.forward_layer.freeze()
        self.backward_layer.freeze()

    def unfreeze(self) -> None:
        """Undo freeze() on both layers."""
        self.forward_layer.unfreeze()
        self.backward_layer.unfreeze()

    def __call__(
        self,
        x: ArrayLike,
        state: Any = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        zero_masked: bool = False,
    ) -> tuple[Any, tuple[Any, Any]]:
        """Run over a sequence for its results alone.

        Parameters
        ----------
        x, lengths, mask, reset, zero_masked
            As for the two layers.
        state : pair, optional
            The initial states of the forward and the backward layer, each in that layer's own form or None.

        Returns
        -------
        y : ndarray, (T, N, width) in the layout of `x`; with merge=None a pair of them
            For concat the width is the sum of the two layers'.
        state : pair
            The forward layer's and the backward layer's state, each after the last step that it walked.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As the two layers.
        """
        forward, backward = self._inputs(x, state, lengths, mask, reset, zero_masked)
        y, state = self.forward_layer._infer(*forward)
        y_backward, state_backward = self.backward_layer._infer(*backward)
        with np.errstate(all="ignore"):
            return _MERGES[self.merge][0](y, self._turn(y_backward)), (state, state_backward)

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
    ) -> tuple[Any, tuple[Any, Any], Tape]:
        """Run over a sequence and keep what the gradient needs; dropout acts.

        Parameters
        ----------
        x, state, lengths, mask, reset, zero_masked
            As for a call. The tape holds `x` by reference: leave it as it is until the last ``backward``.
        checkpoint
            As for the two layers.

        Returns
        -------
        y, state
            As from a call; with merge=None the two y are read-only, as the tape uses them too.
        tape : Tape
            For :meth:`backward`.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As the two layers.
        """
        forward, backward = self._inputs(x, state, lengths, mask, reset, zero_masked)
        y, state, tape = self.forward_layer._train(*forward, checkpoint)
        y_backward, state_backward, tape_backward = self.backward_layer._train(*backward, checkpoint)
        outputs = y, self._turn(y_backward)
        with np.errstate(all="ignore"):  # what is not finite is data
            merged = _MERGES[self.merge][0](*outputs)
        shape = None if self.merge is None else merged.shape
        return merged, (state, state_backward), Tape(self, tape, tape_backward, outputs, shape)

    def backward(self, tape: Tape, dy: Any, dstate: Any = None, *, per_step: bool = False) -> Gradients:
        """The gradient of the ``forward`` that made `tape`.

        Parameters
        ----------
        tape : Tape
            From this layer's forward. It can be used again.
        dy : array_like in the shape of y, or None
            With merge=None a pair, either of which may be None. None is zeros.
        dstate : pair, optional
            Gradients with respect to the last states, each in that layer's own form or None.
        per_step : bool, default False
            Whether to return the derivatives with respect to h of every step as well.

        Returns
        -------
        Gradients
            ``x``, ``state`` (the pair of the two layers'), ``parameters``, and with `per_step` ``h`` (the pair).

        Raises
        ------
        ValueError, TypeError
            As the two layers.
        """
        tape, tape_backward, outputs, shape = self._open(tape)
        dtype = self.forward_layer.dtype
        if self.merge is None:
            both = _both("dy", dy)
            dy, dy_backward = (arguments.shaped(f"dy[{k}]", both[k], dtype, outputs[k].shape) for k in range(2))
        else:
            dy = arguments.shaped("dy", dy, dtype, shape)
            with np.errstate(all="ignore"):
                dy, dy_backward = (None, None) if dy is None else _MERGES[self.merge][1](dy, *outputs)
        dstate, dstate_backward = _both("dstate", dstate)
        ours = self.forward_layer._differentiate(tape, dy, dstate, per_step, "[0]")
        dy_backward = self._turn(dy_backward)
        other = self.backward_layer._differentiate(tape_backward, dy_backward, dstate_backward, per_step, "[1]")
        parameters = _sides(ours.parameters, other.parameters)
        with np.errstate(all="ignore"):
            dx = ours.x + self._turn(other.x)
        gradients = Gradients(dx, (ours.state, other.state), parameters)
        if per_step:
            gradients.h = ours.h, self._turn_steps(other.h)
        return gradients

    def _cells(self, tape: Tape) -> tuple[Any, Any]:
        forward, backward, _, _ = self._open(tape)
        return self.forward_layer._cells(forward), self._turn_steps(self.backward_layer._cells(backward))

    def stream(self, batch_size: int = 1) -> NoReturn:  # noqa: ARG002
        """Not possible: the backward layer begins with the last step of a sequence, which has not come yet.

        Raises
        ------
        ValueError
        """
        raise ValueError(
            f"{self._call()} runs backwards too, from the last step of a sequence, which a stream has not seen yet: "
            "stream its forward_layer"
        )

    def _inputs(self, x: Any, state: Any, *uneven: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The checked arguments of both layers."""
        state, state_backward = _both("state", state)
        forward = self.forward_layer._inputs(x, state, *uneven, "[0]")
        turned = not self.backward_layer.reverse
        return forward, self.backward_layer._inputs(self._turn(forward[0]), state_backward, *uneven, "[1]", turned)

    def _turn_steps(self, array: Array) -> Array:
        """An array (L, T, ...) of what the backward layer did, with its steps in the order of x: a view."""
        return array if self.backward_layer.reverse else array[:, ::-1]

    def _turn(self, array: Array | None) -> Array | None:
        """A sequence in the order in which the backward layer takes it, and back: a view."""
        if array is None or self.backward_layer.reverse:
            return array
        return array[:, ::-1] if self.backward_layer.batch_first and array.ndim == 3 else array[::-1]


def _both(name: str, value: Any) -> tuple[Any, Any]:
    """What belongs to the forward and to the backward layer; None is none for both."""
    return (None, None) if value is None else arguments.pair(name, value, "of the forward and the backward layer's")


def _sides(forward: Mapping[str, Any], backward: Mapping[str, Any]) -> dict[str, Any]:
    """What two layers have under their names, under the names of Bidirectional."""
    sides = {"forward": forward, "backward": backward}
    return {f"{side}.{name}": value for side, values in sides.items() for name, value in values.items()}


# ------------------------------------------------------------------------------------------- layers without time


class Pointwise(ArrayLayer):
    """What Linear and Embedding share: each position of x gives a vector of y on its own."""

    def __call__(self, x: ArrayLike) -> Array:
        """Map every position.

        Parameters
        ----------
        x : array_like
            For Linear real numbers (..., in_features), of any strides and byte order; other dtypes than the layer's
            are converted. For Embedding integers of any shape, from 0 to num_embeddings - 1.

        Returns
        -------
        ndarray, (..., out_features) or (..., embedding_dim)
            The caller's.

        Raises
        ------
        ValueError
            When the last axis does not fit, or an id lies outside of the table.
        TypeError
            When `x` does not hold real numbers, for Embedding integers.
        MemoryError
            When the result does not fit into memory.
        """
        return self._map(self._input(x), *(self._packed or self._current()))

    def forward(self, x: ArrayLike) -> tuple[Array, Tape]:
        """Map every position and keep what the gradient needs.

        Parameters
        ----------
        x
            As for a call. The tape holds it by reference: leave it as it is until the last ``backward``.

        Returns
        -------
        y : ndarray
            As from a call; the caller's.
        tape : Tape
            For :meth:`backward`; it keeps the weights of this call.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As a call.
        """
        x = self._input(x)
        weights = self._packed or self._pack()
        y = self._map(x, *weights)
        return y, Tape(self, y.shape, x, *weights)

    def backward(self, tape: Tape, dy: ArrayLike | None) -> Gradients:
        """The gradient of the ``forward`` that made `tape`, whatever happened to the parameters since.

        Parameters
        ----------
        tape : Tape
            From this layer's forward. It can be used again.
        dy : array_like in the shape of y, or None
            Gradient of a scalar with respect to y; None is zeros.

        Returns
        -------
        Gradients
            ``x`` (None for Embedding) and ``parameters``; ``state`` is None.

        Raises
        ------
        ValueError
            When the tape comes from another layer, or `dy` is not of the shape of y.
        TypeError
            When `tape` is none, or `dy` does not hold real numbers.
        """
        shape, *kept = self._open(tape)
        dy = arguments.shaped("dy", dy, self.dtype, shape)
        parameters = self._zeros()
        dx = self._differentiate(np.zeros(shape, self.dtype) if dy is None else dy, parameters, *kept)
        return Gradients(dx, None, parameters)

    def _input(self, x: Any) -> Array:
        raise NotImplementedError

    def _current(self) -> tuple[Array, ...]:
        """What _map needs of the parameters as they are."""
        return tuple(self._parameters.values())

    def _map(self, x: Array, *weights: Array) -> Array:
        raise NotImplementedError

    def _differentiate(self, dy: Array, parameters: dict[str, Array], x: Array, *weights: Array) -> Array | None:
        """The gradient of x; those of the parameters are added to `parameters`."""
        raise NotImplementedError


def _rows(array: Array) -> Array:
    """The vectors along the last axis, one below the other."""
    return array.reshape(-1, array.shape[-1])


class Linear(Pointwise):
    """The affine map of the last axis, the readout of a recurrent layer: ``y = x W^T + b``.

    Source: the form of ``torch.nn.Linear``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool, default True
        Whether there is b.
    dtype : {numpy.float32, numpy.float64}
    rng : None, int or numpy.random.Generator
        Gives the initial values, uniform in (-1/sqrt(in_features), 1/sqrt(in_features)) as in torch.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight`` (out_features, in_features) and ``bias`` (out_features,).

    Raises
    ------
    ValueError, TypeError
        When an option is not as above.
    MemoryError
        When the parameters do not fit into memory.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> readout = rnnfast.Linear(8, 3, rng=0)
    >>> y, tape = readout.forward(np.ones((5, 2, 8), np.float32))
    >>> y.shape
    (5, 2, 3)
    >>> grads = readout.backward(tape, np.ones_like(y))
    >>> grads.x.shape, grads.parameters["bias"].tolist()
    ((5, 2, 8), [10.0, 10.0, 10.0])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: Seed = None,
    ) -> None:
        super().__init__(dtype, rng)
        self.in_features = arguments.size("in_features", in_features)
        self.out_features = arguments.size("out_features", out_features)
        self.bias = arguments.flag("bias", bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        bound = 1 / math.sqrt(self.in_features)
        self._draw(lambda _, shape: self._rng.uniform(-bound, bound, shape), shapes)

    def _pack(self) -> tuple[Array, ...]:
        return self._parameters["weight"].copy(), *self._current()

    def _current(self) -> tuple[Array, ...]:
        return (functional.linear_pack(self._parameters["weight"], self._parameters.get("bias")),)

    def _input(self, x: Any) -> Array:
        array = arguments.real("x", x, self.dtype)
        if array.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"x must have layout (..., in_features) with in_features={self.in_features}, got shape {array.shape}"
            )
        return array

    def _map(self, x: Array, *weights: Array) -> Array:
        y = np.empty(arguments.countable("y", (*x.shape[:-1], self.out_features)), self.dtype)
        if y.size:
            functional.linear_forward(_rows(x), weights[-1], _rows(y))
        return y

    def _differentiate(self, dy: Array, parameters: dict[str, Array], x: Array, *weights: Array) -> Array:
        dx = np.empty(x.shape, self.dtype)
        if dx.size:
            dweight, dbias = parameters["weight"], parameters.get("bias")
            functional.linear_backward(_rows(x), weights[0], _rows(dy), _rows(dx), dweight, dbias)
        return dx


class Embedding(Pointwise):
    """A table of vectors, looked up by integer: ``y = weight[x]``.

    Source: the form of ``torch.nn.Embedding``.

    Parameters
    ----------
    num_embeddings : int
        Rows of the table; ids run from 0 to num_embeddings - 1.
    embedding_dim : int
        Width of a row.
    dtype : {numpy.float32, numpy.float64}
    rng : None, int or numpy.random.Generator
        Gives the initial values, standard normal as in torch.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight`` (num_embeddings, embedding_dim).

    Raises
    ------
    ValueError, TypeError
        When an option is not as above.
    MemoryError
        When the table does not fit into memory.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> embedding = rnnfast.Embedding(100, 8, rng=0)
    >>> y, tape = embedding.forward([[3, 1, 4], [1, 5, 9]])
    >>> y.shape
    (2, 3, 8)
    >>> embedding.backward(tape, np.ones_like(y)).parameters["weight"][:5, 0].tolist()
    [0.0, 2.0, 0.0, 1.0, 1.0]
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, dtype: DTypeLike = np.float32, rng: Seed = None
    ) -> None:
        super().__init__(dtype, rng)
        self.num_embeddings = arguments.size("num_embeddings", num_embeddings)
        self.embedding_dim = arguments.size("embedding_dim", embedding_dim)
        shape = arguments.countable("weight", (self.num_embeddings, self.embedding_dim))
        self._parameters["weight"] = _lasting(self._rng.standard_normal(shape).astype(self.dtype))

    def _pack(self) -> tuple[Array, ...]:
        return tuple(self._parameters.values())  # not copied: rows are looked up in the table as it is

    def _input(self, x: Any) -> Array:
        ids = arguments.array("x", x)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"x must hold integer ids, but its dtype is {ids.dtype}")
        # A MemoryError now, not after a long look at the ids.
        np.empty(arguments.countable("y", (*ids.shape, self.embedding_dim)), self.dtype)
        if ids.size and (ids.min() < 0 or ids.max() >= self.num_embeddings):
            wrong = ids[(ids < 0) | (ids >= self.num_embeddings)][0]
            raise ValueError(f"x must hold ids from 0 to num_embeddings - 1 = {self.num_embeddings - 1}, got {wrong}")
        return ids.astype(np.intp, copy=False)

    def _map(self, x: Array, *weights: Array) -> Array:
        return weights[0][x]

    def _differentiate(self, dy: Array, parameters: dict[str, Array], x: Array, *_: Array) -> None:
        # Summed in float64, column by column, over the rows that are used: exact enough for a million of one id.
        used, place = np.unique(x.ravel(), return_inverse=True)
        parameters["weight"][used] = np.transpose([np.bincount(place, column) for column in _rows(dy).T])


_CLASSES: dict[str, type[Layer]] = {kind.__name__: kind for kind in (RNN, LSTM, GRU, Bidirectional, Linear, Embedding)}
