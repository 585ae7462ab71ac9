"""What all layers share: parameters, freezing, copying and saving; the tape of a forward, and its gradients."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from rnnfast import arguments, files
from rnnfast._types import Array, ArrayLike, Path
from rnnfast.buffers import BufferPool

from . import saving

__all__ = ["ArrayLayer", "Gradients", "Layer", "Tape"]


class _Gradients(NamedTuple):
    x: Any
    state: Any
    parameters: dict[str, Any]


class Gradients(_Gradients):
    """The result of ``backward``: the tuple (x, state, parameters), each with the shapes of the values it belongs to.

    Attributes
    ----------
    x : ndarray or None
        Gradient with respect to the input; None for :class:`Embedding`.
    state : ndarray, tuple or None
        Gradient with respect to the initial state, in its structure; None for :class:`Linear` and :class:`Embedding`.
    parameters : dict of str to ndarray
        Gradients with respect to the parameters, by name.
    h : ndarray, tuple or None
        With ``per_step=True``, (L*D, T, N, H_out), unbatched (L*D, T, H_out): the total derivative with respect to h of
        every layer, direction and step, through everything that follows it, including dy at that step; zeros at masked
        and padded steps. How it changes with the distance from the loss shows how gradients vanish or explode.
        For :class:`Bidirectional` the pair of both layers. Not a member of the tuple.
    """

    h: Any = None


class Tape:
    """What one ``forward`` keeps for ``backward``. Only ``forward`` makes tapes; the contents are private.

    A tape holds the input by reference: do not change that array before the last ``backward``. Everything else is kept
    as it was at the time of the ``forward``: the weights, the initial state, the dropout. A layer may have any number
    of tapes, which can be used in any order and any number of times. A tape cannot be pickled.

    Attributes
    ----------
    cells : ndarray or tuple
        c of every step of an LSTM, (L*D, T, N, H), unbatched (L*D, T, H); at masked steps the value that is held, zeros
        at padded steps. Each access makes a new copy. For :class:`Bidirectional` the pair of both layers.
    """

    __slots__ = ("_kept", "_leases", "_owner")

    def __init__(self, owner: Layer, kept: Any, leases: Sequence[tuple[BufferPool, Any]] = ()) -> None:
        self._owner = owner
        self._kept = kept
        self._leases = leases  # the pool of each buffer, and the buffer

    def __del__(self) -> None:
        for pool, buffer in getattr(self, "_leases", ()):
            pool.release(buffer)

    @property
    def cells(self) -> Any:
        return self._owner._cells(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Tape can be neither pickled nor copied: pickle the layer, and run forward again")


class Layer:
    """The base of all layers: what they can do with their parameters."""

    @property
    def parameters(self) -> Mapping[str, Array]:
        """The parameters by name, as a read-only mapping; a change of an array's values acts from the next call on."""
        raise NotImplementedError

    def __repr__(self) -> str:
        count = sum(array.size for array in self.parameters.values())
        return f"{saving.describe(self)}  # {count} parameters"

    def _cells(self, tape: Tape) -> Any:  # noqa: ARG002
        raise AttributeError(f"this tape has no cells: it comes from {saving.describe(self)}, which is no LSTM")

    def _open(self, tape: Tape) -> Any:
        """Return what a tape of this layer holds."""
        if not isinstance(tape, Tape):
            raise TypeError(f"tape must be the Tape that forward returned, got {type(tape).__name__}")
        if tape._owner is not self:
            raise ValueError(
                f"tape comes from another layer, {saving.describe(tape._owner)}: give it to that layer's backward, "
                f"or give this {type(self).__name__} a tape that its own forward returned"
            )
        return tape._kept

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters.

        Returns
        -------
        dict of str to ndarray
            In torch's order and under torch's names.
        """
        return {name: array.copy() for name, array in self.parameters.items()}

    def load_state_dict(self, arrays: Mapping[str, ArrayLike], strict: bool = True) -> None:
        """Copy values into the parameters; all of them are checked before the first is changed.

        Parameters
        ----------
        arrays : mapping of str to array_like
            Real values under the names of the parameters and in their shapes: a ``state_dict`` of this library or of
            torch, an opened ``.npz``, a dict of lists. They are converted to the layer's dtype.
        strict : bool, default True
            Reject missing and unknown names. With False such names are ignored; shapes must still agree.

        Raises
        ------
        ValueError
            If names or shapes do not agree (the message lists all that do not), or if the layer is frozen.
        TypeError
            If `arrays` is not a mapping, or its values are not real numbers.
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
                    # Copied now: it may be a view of a parameter that is written before it is read.
                    values[name] = value.copy()
                else:
                    faults.append(f"{name} must have shape {own[name].shape} (torch's layout), got {value.shape}")
            elif strict:
                faults.append(f"{name} is no parameter of this layer")
        if strict:
            faults.extend(f"{name} is missing" for name in own if name not in arrays)
        if faults:
            raise ValueError(f"arrays do not fit {saving.describe(self)}: {'; '.join(faults)}")
        for name, value in values.items():
            own[name][...] = value

    def save(self, path: Path) -> None:
        """Save parameters, class and options in one ``.npz`` file, for :meth:`load` and :func:`rnnfast.load`.

        The file gets the name `path` only when it is complete on the disk, so a crash or a full disk leaves an older
        file unchanged.

        Parameters
        ----------
        path : str or os.PathLike
            Used as given; no suffix is added.

        Raises
        ------
        OSError
            If the file cannot be written; no partial file is left behind.
        """
        files.write(path, {"format": 1, "layer": saving.to_json(self)}, self.parameters)

    def load(self, path: Path) -> None:
        """Copy the parameters from a file that :meth:`save` wrote; all of them are checked before the first is changed.

        Parameters
        ----------
        path : str or os.PathLike
            The file of a layer of the same class and options. Only batch_first, dropout and dtype may differ.

        Raises
        ------
        ValueError
            If the file was not saved by rnnfast or holds another kind of layer, or if this layer is frozen.
        OSError
            If the file cannot be read.
        """
        description, arrays = saving.read(path)
        own = saving.to_json(self)
        if not saving.fits(description, own):
            raise ValueError(f"{path!r} holds {description}, but this is {own}; rnnfast.load(path) makes a layer of it")
        self.load_state_dict(arrays)


def lasting(array: Array) -> Array:
    """Return a view, which cannot be resized: the kernels rely on the size of the array."""
    return array[...]


class ArrayLayer(Layer):
    """The base of layers that hold arrays themselves."""

    _transient: tuple[str, ...] = ()  # attributes that are not pickled and that _prepare makes from the others
    _frozen: Any = None  # what _pack returned while the layer is frozen, else None

    def __init__(self, dtype: Any, rng: Any) -> None:
        self.dtype = arguments.dtype(dtype)
        self._rng = arguments.generator(rng)
        self._parameters: dict[str, Array] = {}

    @property
    def parameters(self) -> Mapping[str, Array]:
        return types.MappingProxyType(self._parameters)

    def _draw(self, draw: Callable[[str, tuple[int, ...]], Array], shapes: dict[str, tuple[int, ...]]) -> None:
        """Make the parameters, from values by name and shape."""
        for name, shape in shapes.items():
            self._parameters[name] = lasting(draw(name, arguments.countable(name, shape)).astype(self.dtype))

    def _prepare(self) -> None:
        """Make the attributes that are not pickled."""

    def _pack(self) -> Any:
        """Return a copy of the parameters in the form that calls of a frozen layer use."""
        raise NotImplementedError

    def _zeros(self) -> dict[str, Array]:
        """Return arrays in which the gradients of the parameters are summed."""
        return {name: np.zeros_like(array) for name, array in self._parameters.items()}

    def freeze(self) -> None:
        """Pack the weights once for all later calls, and make the parameter arrays read-only.

        Results do not change by a bit; short calls get faster because they no longer pack the weights. Views of the
        arrays that were made earlier stay writable and are not watched: do not write through them.
        """
        if self._frozen is None:
            self._frozen = self._pack()
            self._protect(True)

    def unfreeze(self) -> None:
        """Undo :meth:`freeze`: the parameter arrays are writable again, and later calls see their new values."""
        self._frozen = None
        self._protect(False)

    def _protect(self, frozen: bool) -> None:
        for array in self._parameters.values():
            if array.base is not None:
                array.base.flags.writeable = not frozen
            array.flags.writeable = not frozen

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in self._transient}
        return {**kept, "_frozen": self._frozen is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        frozen = state.pop("_frozen", None) or state.pop("_packed", False)  # _packed: the name in pickles of 0.1.0
        vars(self).update(state, dtype=arguments.dtype(state["dtype"]))
        # Unpickled arrays may be read-only views of the pickle.
        self._parameters = {name: lasting(np.array(array, order="C")) for name, array in state["_parameters"].items()}
        self._prepare()
        if frozen:
            self.freeze()


def with_parameters(layer: Any, parameters: dict[str, Array]) -> Any:
    """Return a layer that is not frozen and shares all but the parameters with `layer`, which must not be frozen."""
    twin = object.__new__(type(layer))
    vars(twin).update(vars(layer), _parameters=parameters)
    return twin
