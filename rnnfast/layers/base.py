"""The base classes of all layers, the tape of a forward pass, and the gradients of a backward pass."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Self, cast

import numpy as np

from rnnfast import _core, arguments, files
from rnnfast._types import Array, ArrayLike, Path
from rnnfast.fixed import Fixed

from . import saving

__all__ = ["ArrayLayer", "Gradients", "Layer", "Tape"]


class _Gradients(NamedTuple):
    x: Any
    state: Any
    parameters: dict[str, Any]


class Gradients(_Gradients):
    """The result of ``backward``, the tuple (x, state, parameters). Gradients have the shapes of their values.

    Attributes
    ----------
    x : ndarray or None
        Gradient with respect to the input; None for :class:`Embedding`.
    state : ndarray, tuple or None
        Gradient with respect to the initial state; a pair for LSTM; None for :class:`Linear` and :class:`Embedding`.
    parameters : dict of str to ndarray
        Gradients with respect to the parameters, by name.
    h : ndarray, tuple or None
        With ``per_step=True``, the total derivative with respect to h of every layer, direction and step, including the
        contribution of dy at that step. Its shape is (L*D, T, N, H_out), or unbatched (L*D, T, H_out). It is 0 at
        masked-out and padded steps. It shows how gradients vanish or explode with the distance from the loss. For
        :class:`Bidirectional` a pair, one for each layer. It is not an element of the tuple.
    """

    h: Any = None


class Tape:
    """The intermediate values of one ``forward`` that ``backward`` needs. The contents are private.

    A tape holds the input by reference: do not change that array before the last ``backward``. It holds copies of
    everything else that the gradients depend on: the weights, the initial state and the dropout masks. A layer can have
    any number of tapes, which can be used in any order and any number of times. A tape cannot be pickled.

    Attributes
    ----------
    cells : ndarray or tuple
        The cell state c of an LSTM at every step, (L*D, T, N, H), or unbatched (L*D, T, H). At masked-out steps it is
        the value that is kept, and at padded steps 0. Each access makes a new copy. For :class:`Bidirectional` a pair,
        one for each layer.
    """

    __slots__ = ("_kept", "_leases", "_owner")

    def __init__(self, owner: Layer, kept: Any, leases: Sequence[_core.Lease] = ()) -> None:
        self._owner = owner
        self._kept = kept
        self._leases = leases  # release the buffers when the tape is deallocated

    @property
    def cells(self) -> Any:
        return self._owner._cells(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Tape can be neither pickled nor copied: pickle the layer, and run forward again")


class Layer(Fixed):
    """Base class of all layers.

    The options of a layer can be read, but neither assigned nor deleted, because its arrays and its engine are built
    for them. The one exception is `dropout`. Subclasses may have any other attributes.
    """

    def _fixed(self) -> Collection[str]:
        return {*saving.signature(saving.kind(self)), "parameters", "engine", "execution"}

    def _remedy(self, name: str) -> str:
        return "call load_state_dict, or write to the arrays" if name == "parameters" else super()._remedy(name)

    @property
    def parameters(self) -> Mapping[str, Array]:
        """The parameters by name, as a read-only mapping. Changes to the arrays take effect in the next call."""
        raise NotImplementedError

    def __repr__(self) -> str:
        count = sum(array.size for array in self.parameters.values())
        return f"{saving.describe(self)}  # {count} parameters"

    def _cells(self, tape: Tape) -> Any:  # noqa: ARG002
        raise AttributeError(f"this tape has no cells: it comes from {saving.describe(self)}, which is not an LSTM")

    def _open(self, tape: Tape) -> Any:
        """Return the contents of a tape of this layer."""
        if not isinstance(tape, Tape):
            raise TypeError(f"tape must be the Tape that forward returned, got {type(tape).__name__}")
        if tape._owner is not self:
            raise ValueError(
                f"tape comes from another layer, {saving.describe(tape._owner)}: pass it to that layer's backward, "
                f"or pass a tape that forward of this {type(self).__name__} returned"
            )
        return tape._kept

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters.

        Returns
        -------
        dict of str to ndarray
            With the names and the order of torch's ``state_dict``.
        """
        return {name: array.copy() for name, array in self.parameters.items()}

    def load_state_dict(self, arrays: Mapping[str, ArrayLike], strict: bool = True) -> None:
        """Copy values into the parameters. If this raises any exception, nothing is changed.

        Parameters
        ----------
        arrays : mapping of str to array_like
            Real values with the names and shapes of the parameters, such as a ``state_dict`` of rnnfast or torch, or an
            open ``.npz`` file. They are converted to the dtype of the layer.
        strict : bool, default True
            Whether to raise an error if names are missing or unknown. If False, such names are ignored.

        Raises
        ------
        ValueError
            If names or shapes differ (the message lists all differences), or if the layer is frozen.
        TypeError
            If `arrays` is not a mapping, or its values are not real numbers.
        """
        own = self.parameters
        if not all(array.flags.writeable for array in own.values()):
            raise ValueError(f"this {type(self).__name__} is frozen: call unfreeze() before loading parameters")
        if not hasattr(arrays, "keys"):
            raise TypeError(f"arrays must be a mapping of names to arrays, got {type(arrays).__name__}")
        shapes = {name: array.shape for name, array in own.items()}
        values = saving.fit(arrays, shapes, self, arguments.flag("strict", strict))
        # Copied first, because they may be views of parameters that are overwritten.
        values = {name: value.copy() for name, value in values.items()}
        _core.assign([own[name] for name in values], list(values.values()))

    def release(self) -> None:
        """Free the memory that the layer keeps to speed up later calls.

        A layer keeps at most 128 MiB each of tapes, workspaces and results that are no longer used, or a single larger
        buffer. Arrays and tapes that are still in use are not affected: their memory returns to the layer as usual.
        """

    def save(self, path: Path) -> None:
        """Save the class, options and parameters to an ``.npz`` file.

        Read it with :func:`rnnfast.load`, or with :meth:`load` of a layer of the same class and options. The file is
        renamed to `path` when it is complete on disk, so a crash or a full disk leaves an existing file unchanged. It
        keeps the permissions of a file that it replaces, and never has wider ones.

        Parameters
        ----------
        path : str or os.PathLike
            No suffix is added.

        Raises
        ------
        OSError
            If the file cannot be written. No partial file is left behind.
        """
        files.write(path, {"format": 1, "layer": saving.to_json(self)}, self.parameters)

    def load(self, path: Path) -> None:
        """Load the parameters from a file that :meth:`save` wrote. If the file is invalid, nothing is changed.

        Parameters
        ----------
        path : str or os.PathLike
            The file of a layer of the same class and options. Only batch_first, dropout and dtype may differ.

        Raises
        ------
        ValueError
            If the file was not saved by rnnfast or holds a different layer, or if this layer is frozen.
        OSError
            If the file cannot be read, is not a regular file, or does not fit into memory.
        """
        self.load_state_dict(saving.read(path, self).parameters)


def freeze(layers: Iterable[ArrayLayer]) -> None:
    """Freeze all of these layers, or none of them if this raises."""
    layers = [layer for layer in layers if layer._frozen is None]
    _switch(layers, [layer._pack() for layer in layers])


def unfreeze(layers: Sequence[ArrayLayer]) -> None:
    """Unfreeze all of these layers, or none of them if this raises."""
    _switch(layers, [None] * len(layers))


def _switch(layers: Sequence[ArrayLayer], packs: Sequence[Any]) -> None:
    arrays = [array for layer in layers for array in layer._parameters.values()]
    arrays = [one for array in arrays for one in (array.base, array) if one is not None]
    attributes = [(*layer._frozen_at(), pack) for layer, pack in zip(layers, packs, strict=True)]
    _core.switch(attributes, arrays, not any(pack is not None for pack in packs))


def lasting(array: Array) -> Array:
    """Return a view, which cannot be resized, because the kernels rely on the size of the array."""
    return array[...]


class ArrayLayer(Layer):
    """Base class of layers that own their parameters."""

    _transient: tuple[str, ...] = ("_built",)  # attributes that are not pickled
    _frozen: Any  # while the layer is frozen, what _pack returned, else None
    # If a constructor finds it, the function that returns the parameters: see saving.create.
    _source: Callable[[ArrayLayer, dict[str, tuple[int, ...]]], dict[str, Array]] | None = None
    _first: str  # the name of a parameter that all layers of the class have

    def __init__(self, dtype: Any, rng: Any) -> None:
        self.dtype = arguments.dtype(dtype)
        self._rng = arguments.generator(rng)
        self._parameters: dict[str, Array] = {}

    @property
    def parameters(self) -> Mapping[str, Array]:
        return types.MappingProxyType(self._parameters)

    @classmethod
    def _implied(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Return the options that the shapes of the parameters determine."""
        raise NotImplementedError

    @classmethod
    def from_state_dict(cls, arrays: Mapping[str, ArrayLike], prefix: str = "", **options: Any) -> Self:
        """Create a layer of this class from its parameters, whose names and shapes determine its sizes.

        Parameters
        ----------
        arrays, prefix, **options
            As for :func:`rnnfast.from_state_dict`, which also determines the class.

        Returns
        -------
        layer of this class
            With copies of the arrays. Nothing is drawn.

        Raises
        ------
        ValueError
            If the names and shapes are not those of a layer of this class, or contradict an option (the message lists
            all differences).
        TypeError
            If `arrays` is not a mapping, if its values are not real numbers, or if the class lacks an option.

        Examples
        --------
        >>> import numpy as np, rnnfast
        >>> arrays = {"head.weight": np.ones((3, 8)), "head.bias": np.zeros(3)}
        >>> rnnfast.Linear.from_state_dict(arrays, "head.", dtype=np.float32)
        Linear(8, 3)  # 27 parameters
        """
        values = saving.selected(arrays, prefix, cls._first)
        implied = cls._implied({name: value.shape for name, value in values.items()})
        dtype = np.float64 if values[cls._first].dtype.newbyteorder("=") == np.float64 else np.float32

        def source(layer: ArrayLayer, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
            fitting = saving.fit(values, shapes, layer)
            # Converted values are copies already.
            return {
                name: fitting[name].copy() if np.may_share_memory(fitting[name], values[name]) else fitting[name]
                for name in shapes
            }

        return cast("Self", saving.create(cls, source, **{"dtype": dtype, **saving.agreed(implied, options)}))

    def _draw(self, draw: Callable[[str, tuple[int, ...]], Array], shapes: dict[str, tuple[int, ...]]) -> None:
        """Create the parameters; `draw` returns a new array for a name and a shape."""
        for name, shape in shapes.items():
            arguments.countable(name, shape)
        source = self._source
        if source is None:
            arrays = {name: draw(name, shape) for name, shape in shapes.items()}
        else:
            del self._source
            arrays = source(self, shapes)
        self._parameters = {name: lasting(array) for name, array in arrays.items()}

    def _prepare(self) -> None:
        """Create the attributes that are not pickled from the others."""
        self._frozen = None

    def _pack(self) -> Any:
        """Return the weights for the calls of a frozen layer."""
        raise NotImplementedError

    def _frozen_at(self) -> tuple[Any, str]:
        """Return the object and the name of its attribute that `_frozen` is."""
        return self, "_frozen"

    def _zeros(self) -> dict[str, Array]:
        """Return arrays of zeros, to which the gradients of the parameters are added."""
        return {name: np.zeros(array.shape, self.dtype) for name, array in self._parameters.items()}

    def freeze(self) -> None:
        """Pack the weights once for all later calls, and make the parameter arrays read-only.

        Results stay bitwise identical, and short calls become faster because they no longer pack the weights. Existing
        views of the parameters remain writable, but writing to them has no effect on the packed weights: do not use
        them.
        """
        freeze([self])

    def unfreeze(self) -> None:
        """Undo :meth:`freeze`: the parameter arrays are writable again, and later calls use their current values."""
        unfreeze([self])

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
        self._built = True
        if frozen:
            self.freeze()
