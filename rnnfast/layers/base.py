"""The base classes of all layers, the tape of a forward pass, and the gradients of a backward pass."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn, Self, cast

import numpy as np

from rnnfast import _core, arguments, files, names, narrow
from rnnfast._types import Array, ArrayLike, Path
from rnnfast.fixed import Fixed

from . import saving

__all__ = ["ArrayLayer", "Gradients", "Layer", "Plain", "Tape"]


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
    reset_state : ndarray, tuple or None
        Gradient with respect to the state from which sequences start at a reset, in the form of `state`. None with
        ``reset_state="initial"``, where `state` includes it. It is not an element of the tuple.
    """

    h: Any = None
    reset_state: Any = None


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
    for them. The exceptions are the options of dropout. Subclasses may have any other attributes.
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
        owner: Any = tape._owner
        if owner is not self:
            other = saving.describe(owner) if isinstance(owner, Layer) else repr(owner)  # of an ensemble
            raise ValueError(
                f"tape comes from another layer, {other}: pass it to that layer's backward, "
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
        return {str(name): array.copy() for name, array in self.parameters.items()}

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
        _core.assign(*self._replacements(arrays, strict))

    def _replacements(self, arrays: Mapping[str, ArrayLike], strict: bool = True) -> tuple[list[Array], list[Array]]:
        """Check the arguments of `load_state_dict`; return the parameters to overwrite, and copies of their values."""
        own = self.parameters
        if not all(array.flags.writeable for array in own.values()):
            raise ValueError(f"this {type(self).__name__} is frozen: call unfreeze() before loading parameters")
        if not hasattr(arrays, "keys"):
            raise TypeError(f"arrays must be a mapping of names to arrays, got {type(arrays).__name__}")
        shapes = {name: array.shape for name, array in own.items()}
        values = saving.fit(arrays, shapes, self, arguments.flag("strict", strict))
        # Copied first, because they may be views of parameters that are overwritten.
        return [own[name] for name in values], [value.copy() for value in values.values()]

    def release(self) -> None:
        """Free the memory that the layer keeps to speed up later calls.

        A layer keeps at most 128 MiB each of tapes, workspaces and results that are no longer used, or a single larger
        buffer. Arrays and tapes that are still in use are not affected: their memory returns to the layer as usual.
        """

    def save(self, path: Path) -> None:
        """Save the class, options and parameters to an ``.npz`` file.

        Read it with :func:`rnnfast.load`, or with :meth:`load` of a layer of the same class and options. The file is
        renamed to `path` when it is complete on disk, so a crash or a full disk leaves an existing file unchanged. It
        keeps the permissions of a file that it replaces, and never has wider ones. Of a layer that is frozen with
        weights in fewer bytes, the file holds these.

        Parameters
        ----------
        path : str or os.PathLike
            No suffix is added.

        Raises
        ------
        OSError
            If the file cannot be written. No partial file is left behind.
        """
        files.write(path, *saving.contents(self))

    def load(self, path: Path) -> None:
        """Load the parameters from a file that :meth:`save` wrote. If the file is invalid, nothing is changed.

        If the file holds weights in fewer bytes, the layer is frozen with these.

        Parameters
        ----------
        path : str or os.PathLike
            The file of a layer of the same class and options. Only batch_first, the options of dropout,
            and dtype may differ.

        Raises
        ------
        ValueError
            If the file was not saved by rnnfast or holds a different layer, or if this layer is frozen.
        OSError
            If the file cannot be read, is not a regular file, or does not fit into memory.
        """
        layer, kinds = saving.read(path, self)
        _switch(kinds, *self._replacements(layer.parameters))


_recording: ContextVar[bool] = ContextVar("recording", default=False)


class recording:
    """A context in which this thread runs ``call`` of a model, whose layers must be called through the model."""

    def __enter__(self) -> None:
        self._token = _recording.set(True)

    def __exit__(self, *_: object) -> None:
        _recording.reset(self._token)


def require_recorded(layer: Layer) -> None:
    """Raise if a layer is called in the forward pass of a model that does not know the layer."""
    if _recording.get():
        raise TypeError(
            f"{saving.describe(layer)} was called in the forward pass of a model that does not hold it, and would "
            "get no gradient: make it an attribute, or a member of a list, tuple or dict in one, and call that"
        )


class Stateless(Layer):
    """Base class of layers whose ``forward`` returns one array and a tape.

    The contents of the tape are the shape and dtype of that array, and what `_differentiate` needs.
    """

    def backward(self, tape: Tape, dy: ArrayLike | None) -> Gradients:
        """Return the gradients of the ``forward`` that made `tape`, even if the parameters have changed since.

        Parameters
        ----------
        tape : Tape
            From this layer's ``forward``. It can be used again.
        dy : array_like of the shape of y, or None
            The gradient of a scalar with respect to y; None means zeros.

        Returns
        -------
        Gradients
            ``x`` (None for :class:`Embedding`; for :class:`Attention` the pair of the gradients of query and memory)
            and ``parameters``; ``state`` is None.

        Raises
        ------
        ValueError
            If the tape comes from another layer, or `dy` does not have the shape of y.
        TypeError
            If `tape` is not a Tape, or `dy` does not hold real numbers.
        """
        shape, dtype, *kept = self._open(tape)
        dy = arguments.shaped("dy", dy, dtype, shape)
        parameters = self._zeros()
        with np.errstate(all="ignore"):  # infinities and NaN are valid data
            dx = self._differentiate(np.zeros(shape, dtype) if dy is None else dy, parameters, *kept)
        return Gradients(dx, None, parameters)

    def _zeros(self) -> dict[str, Array]:
        """Return arrays of zeros, to which the gradients of the parameters are added."""
        return {}

    def _differentiate(self, dy: Array, parameters: dict[str, Array], *kept: Any) -> Any:
        """Return the gradient of x, and add the gradients of the parameters to `parameters`."""
        raise NotImplementedError


class Plain(Stateless):
    """Base class of layers without parameters. Their results have the dtype of their input."""

    @property
    def parameters(self) -> Mapping[str, Array]:
        return types.MappingProxyType({})

    def __repr__(self) -> str:
        return saving.describe(self)


def freeze(layers: Iterable[ArrayLayer], weights: str | None = None, activations: str | None = None) -> None:
    """Freeze all of these layers, or none of them if this raises."""
    kinds = {layer: layer._kind_for(weights, activations) for layer in layers}
    _switch({layer: kind for layer, kind in kinds.items() if layer._kind() != kind})


def unfreeze(layers: Iterable[ArrayLayer]) -> None:
    """Unfreeze all of these layers, or none of them if this raises."""
    _switch(dict.fromkeys(layers))


def _switch(
    kinds: Mapping[ArrayLayer, str | None], targets: Sequence[Array] = (), values: Sequence[Array] = ()
) -> None:
    """Freeze layers with weights of some kind, or unfreeze all, which have None; also copy values to parameters."""
    new = {id(array): value for array, value in zip(targets, values, strict=True)}
    arrays = [array for layer in kinds for array in layer._parameters.values()]
    arrays = [one for array in arrays for one in (array.base, array) if one is not None]
    attributes = []
    for layer, kind in kinds.items():
        parameters = layer._parameters
        if new:
            parameters = {name: new.get(id(array), array) for name, array in parameters.items()}
        attributes.extend(layer._frozen_as(kind, parameters))
    _core.switch(attributes, arrays, not any(kinds.values()), list(targets), list(values))


def lasting(array: Array) -> Array:
    """Return a view, which cannot be resized, because the kernels rely on the size of the array."""
    return array[...]


class ArrayLayer(Layer):
    """Base class of layers that own their parameters."""

    _transient: tuple[str, ...] = ("_built",)  # attributes that are not pickled
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
        self._own(arrays)

    def _own(self, arrays: Mapping[str, Array]) -> None:
        """Set the parameters."""
        self._parameters = names.named({name: lasting(array) for name, array in arrays.items()})
        names.register(self._parameters.values())

    def _prepare(self) -> None:
        """Create the attributes that are not pickled from the others."""

    def _frozen_as(self, kind: str | None, parameters: Mapping[str, Array]) -> list[tuple[Any, str, Any]]:
        """Return the attributes that freeze the layer with weights of a kind, or unfreeze it: (object, name, value).

        `parameters` are those of the layer, or others that will replace their values.
        """
        raise NotImplementedError

    def _kind(self) -> str | None:
        """Return the kind of the weights while the layer is frozen, else None."""
        raise NotImplementedError

    def _kind_for(self, weights: str | None, activations: str | None) -> str:
        """Check the arguments of `freeze`, and return the kind of weights that they ask of this layer."""
        if weights is None and activations is None:
            return self._kind() or "full"
        kind = narrow.kind_of(weights, activations, self.dtype, type(self).__name__)
        if kind != "full":
            narrow.require_finite(self._parameters)
        return kind

    def _freeze_as(self, kind: str) -> None:
        """Freeze the layer, which may be of any dtype if the kind is "full"."""
        freeze([self], *(() if kind == "full" else narrow.arguments_of(kind)))

    def _zeros(self) -> dict[str, Array]:
        """Return arrays of zeros, to which the gradients of the parameters are added."""
        return {str(name): np.zeros(array.shape, self.dtype) for name, array in self._parameters.items()}

    def freeze(self, weights: str | None = None, activations: str | None = None) -> None:
        """Pack the weights once for all later calls, and make the parameter arrays read-only.

        Results stay bitwise identical, and short calls become faster because they no longer pack the weights. Existing
        views of the parameters remain writable, but writing to them has no effect on the packed weights: do not use
        them.

        Parameters
        ----------
        weights : {"float32", "bfloat16", "int8"}, optional
            How weights are stored. Fewer bytes make steps of few rows faster where the weights do not fit into the
            caches near the processor, and the files that ``save`` writes smaller, at the price of rounding the weights:
            "bfloat16" to 8 significant bits, "int8" to multiples of 1/127 of the largest element of each row (a unit of
            a gate). Biases, states and arithmetic stay float32, and the parameters keep their values for
            :meth:`unfreeze`. Such a layer cannot be trained. The default is "float32", or, for a layer that is already
            frozen, to leave it as it is. Layers of dtype float64 take the default only. With "int8", a result is not
            finite if a sum of inputs times integers exceeds 2**104.
        activations : {"float32", "int8"}, optional
            How products read the inputs and the state of a step. "int8", which needs weights="int8", rounds them as
            well: each row, or each 1024 elements of a longer one, to multiples of 1/127 of its largest element. Then
            products are those of integers, which makes batches faster too, most of all on processors with AVX512-VNNI
            or AVX-VNNI. Rows that are not finite result in NaN. Layers without products, such as an Embedding, ignore
            it. The default is "float32"; without either argument, a frozen layer stays as it is.

        Raises
        ------
        ValueError
            If an argument is none of these, `activations` is "int8" but `weights` is not, the layer is not of dtype
            float32, or a weight is not finite.
        MemoryError
            If there is not enough memory. Then nothing is changed.
        """
        freeze([self], weights, activations)

    def unfreeze(self) -> None:
        """Undo :meth:`freeze`: the parameter arrays are writable again, and later calls use their current values."""
        unfreeze([self])

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in self._transient}
        return {**kept, "_frozen": self._kind()}

    def __copy__(self) -> Self:
        state = self.__getstate__()
        state["_parameters"] = {str(name): array.copy() for name, array in self._parameters.items()}
        other = object.__new__(type(self))
        other.__setstate__(state)
        return other

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        frozen = state.pop("_frozen", None) or state.pop("_packed", False)  # _packed: the name in pickles of 0.1.0
        vars(self).update(state, dtype=arguments.dtype(state["dtype"]))
        # Unpickled arrays may be read-only views of the pickle. Others are kept, since an optimizer that was copied
        # together with the layer has the same ones.
        self._own(
            {
                name: array if array.flags.carray and array.base is None else np.array(array, order="C")
                for name, array in state["_parameters"].items()
            }
        )
        self._prepare()
        self._built = True
        if frozen:  # pickles of 0.1.0 have True
            self._freeze_as("full" if frozen is True else frozen)
