"""Models: layers that are composed, and whose backward pass is derived."""

from __future__ import annotations

import copy
import inspect
import itertools
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnfast import arguments, names
from rnnfast._types import Array, ArrayLike, Path
from rnnfast.layers import Attention, Pool, base, saving
from rnnfast.layers.base import Gradients, Layer, Tape

from .recording import Record, RecordedLayer, Sums, Value, positional

__all__ = ["Model", "ModelStream"]


class Kept(NamedTuple):
    """Contents of the tape of a Model."""

    record: Record
    layers: list[tuple[str, Layer]]
    outputs: tuple[Any, ...]  # the indices in the record of the values that `call` returned
    x: Any  # the index of the first argument, or None
    state: Any


class Model(Layer):
    """Base class of models, which compose layers.

    A subclass creates its layers as attributes, which can also be lists, tuples or dicts of layers, or other models. It
    defines ``call(x, ...)``, which calls the layers. From it, Model derives:

    - ``model(x, ...)``: inference. It runs ``call`` on the arguments.
    - ``model.forward(x, ...)``: training. It runs ``call`` as well, with all layers in training mode, and records which
      layer was called with what. It returns what ``call`` returns, followed by a tape.
    - ``model.backward(tape, dy)``: the gradients of all parameters, of `x` and of an argument named `state`.

    In ``forward``, `x` (unless it holds integers) and `state` are not arrays, but values that support what can be
    differentiated: layers of the model, ``+``, ``-``, ``*``, division by a constant, indexing and slicing, ``reshape``,
    ``swapaxes``, ``sum``, ``mean``, ``numpy.concatenate`` and ``numpy.stack``, all of which give values again. Any
    other operation on a value raises an error, because Model does not differentiate arbitrary code.
    :func:`rnnfast.models.detach` returns the array of a value, through which no gradient flows. Everything else in
    ``call`` is plain Python: conditions, loops, and NumPy on other arguments.

    Names of parameters are those of the attributes and the layers, joined by dots, such as ``lstm.weight_ih_l0``; they
    are those of ``torch.nn.Module``. A layer that is assigned twice has its parameters once, under the first name.

    Notes
    -----
    ``forward`` runs ``call`` on a copy of the model, so ``call`` must not assign attributes. Layers that the model does
    not hold in an attribute, or in a list, tuple or dict there, are refused. All layers must have the same dtype. `x`
    and `state` are read-only in ``call``, and values cannot be changed in place: write ``h = h + x``.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> class Classifier(rnnfast.Model):
    ...     def __init__(self, words, classes):
    ...         self.embedding = rnnfast.Embedding(words, 8, rng=0)
    ...         self.lstm = rnnfast.LSTM(8, 16, bidirectional=True, rng=1)
    ...         self.pool = rnnfast.Pool("last", bidirectional=True)
    ...         self.readout = rnnfast.Linear(32, classes, rng=2)
    ...
    ...     def call(self, x, lengths=None):
    ...         y, state = self.lstm(self.embedding(x), lengths=lengths)
    ...         return self.readout(self.pool(y, lengths=lengths))
    >>> model = Classifier(100, 3)
    >>> y, tape = model.forward(np.ones((7, 2), int), lengths=[7, 4])
    >>> y.shape
    (2, 3)
    >>> grads = model.backward(tape, np.ones_like(y))
    >>> list(grads.parameters)[:2]
    ['embedding.weight', 'lstm.weight_ih_l0']
    """

    def call(self, *arguments: Any, **options: Any) -> Any:
        """Compute the outputs from the arguments by calling layers. Defined by subclasses.

        The first argument is the input; an argument named `state` is an initial state. Both are an array or a tuple of
        arrays, possibly nested. Returned are an array, or a tuple of arrays; a recurrent model returns (y, state).
        """
        raise NotImplementedError(f"{type(self).__name__} must define call(self, x, ...), which calls its layers")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("__call__", "forward", "backward"):
            if name in vars(cls):
                raise TypeError(
                    f"{cls.__name__} defines {name}, which Model derives: define call(self, x, ...) instead, and leave "
                    "the tape out"
                )

    def __setattr__(self, name: str, value: Any) -> None:
        if "_recorded" in vars(self):
            raise AttributeError(f"call must not assign attributes, because forward runs it on a copy: {name}")
        if isinstance(value, Layer) and hasattr(Model, name):
            raise AttributeError(f"{name} is an attribute of every model: give the layer another name")
        super().__setattr__(name, value)

    def _fixed(self) -> Collection[str]:
        return ("parameters",)

    def _saves_class(self) -> bool:
        """Return whether a file has all that is needed to create the model."""
        return False

    def _children(self) -> Mapping[str, Any]:
        """Return the attributes that can hold layers."""
        return vars(self)

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Iterate over all layers, including those of nested models, with their names. Each layer occurs once."""
        seen: set[int] = set()
        taken: set[str] = set()
        for name, layer in _layers(self):
            if id(layer) not in seen:
                if name in taken:
                    raise ValueError(f"two layers of this {type(self).__name__} have the name {name}: rename one")
                seen.add(id(layer))
                taken.add(name)
                yield name, layer

    @property
    def parameters(self) -> Mapping[str, Array]:
        """The parameters of all layers by name, as a read-only mapping."""
        arrays = {
            f"{prefix}.{name}": a for prefix, layer in self.named_layers() for name, a in layer.parameters.items()
        }
        return types.MappingProxyType(names.named(arrays))

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of the parameters; None without any. Layers must agree."""
        return _dtype(self.named_layers())

    @property
    def batch_first(self) -> bool:
        """Whether the layers have the batch on the first axis. They must agree."""
        found = {layer.batch_first: name for name, layer in self.named_layers() if hasattr(layer, "batch_first")}
        if len(found) > 1:
            raise ValueError(
                f"the layers of a model must have the same batch_first, but {found[True]} has True and {found[False]} "
                "has False"
            )
        return next(iter(found), False)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run ``call`` in inference mode.

        Parameters
        ----------
        *inputs, **options
            The arguments of ``call``.

        Returns
        -------
        What ``call`` returns.
        """
        dtype = next((layer.dtype for _, layer in self.named_layers() if hasattr(layer, "dtype")), None)
        inputs, options = self._read(inputs, options, dtype, lambda array: array)
        return self.call(*inputs, **options)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run ``call`` in training mode, and record it.

        Parameters
        ----------
        *inputs, **options
            The arguments of ``call``. Tapes hold arrays by reference: do not change them before the last ``backward``.

        Returns
        -------
        tuple
            The output of ``call`` and the tape, ``(y, tape)``; if ``call`` returns a tuple, such as (y, state), its
            members and the tape, ``(y, state, tape)``. The arrays are read-only, because the tape may share them.

        Raises
        ------
        TypeError
            If ``call`` does with a value what cannot be differentiated.
        """
        if "_recorded" in vars(self):
            raise TypeError("in the call of a model, nested models are called: model(x), not model.forward(x)")
        record, layers = Record(), list(self.named_layers())
        inputs, options = self._read(inputs, options, _dtype(layers), record.wrap)
        given = dict(zip(self._arguments(), inputs, strict=False)) | options
        prefixes = {id(layer): f"{name}." for name, layer in layers}
        with base.recording():
            outputs = _structure(_shadow(self, record, prefixes).call(*inputs, **options))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        arrays = outputs, given.get(self._arguments()[0]), given.get("state")
        return (*map(_read_only, outputs), Tape(self, Kept(record, layers, *map(record.index, arrays))))

    def backward(self, tape: Tape, *gradients: Any) -> Gradients:
        """Return the gradients of the ``forward`` that made `tape`, even if the parameters have changed since.

        Parameters
        ----------
        tape : Tape
            From this model's ``forward``. It can be used again.
        *gradients
            The gradient of a scalar with respect to each output of ``call``, in the form of the output. None, or one
            that is left out, means zeros; so does None in place of a member of a tuple.

        Returns
        -------
        Gradients
            ``x``, the gradient of the first argument, and ``state``, that of the argument named `state`, in the form of
            these arguments; None if they hold integers or were not passed. ``parameters`` have gradients for all
            layers: zeros for those that were not called.

        Raises
        ------
        ValueError
            If the tape comes from another model, or a shape does not match.
        TypeError
            If `tape` is not a Tape, or a gradient does not hold real numbers.
        """
        kept: Kept = self._open(tape)
        outputs = kept.outputs
        if len(gradients) > len(outputs):
            raise ValueError(
                f"backward takes one gradient for each of the {len(outputs)} outputs, got {len(gradients)}"
            )
        checked = tuple(
            _checked(f"gradients[{k}]" if k else "dy", gradient, output, kept.record)
            for k, (gradient, output) in enumerate(zip(gradients, outputs, strict=False))
        )
        sums = kept.record.backward(outputs[: len(checked)], checked)
        found, parameters = sums.parameters, {}
        for prefix, layer in kept.layers:
            for name, array in layer.parameters.items():
                full = f"{prefix}.{name}"
                parameters[full] = found[full] if full in found else np.zeros_like(array)
        return Gradients(_or_zeros(sums, kept.x), _or_zeros(sums, kept.state), parameters)

    def _read(
        self, inputs: tuple[Any, ...], options: dict[str, Any], dtype: np.dtype[Any] | None, wrap: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Convert the input and the state to arrays, and those that have gradients to `dtype`; `wrap` these."""
        chosen = {self._arguments()[0], "state"}

        def read(name: str, value: Any) -> Any:
            return _read(name, value, dtype, wrap) if name in chosen else value

        named = itertools.zip_longest(self._arguments()[: len(inputs)], inputs, fillvalue="")
        return tuple(read(*pair) for pair in named), {name: read(name, value) for name, value in options.items()}

    def _arguments(self) -> tuple[str, ...]:
        """Return the names of the positional arguments of ``call``, of which the first is the input."""
        return positional(type(self).call) or ("x",)

    def load_state_dict(self, arrays: Mapping[str, ArrayLike], strict: bool = True) -> None:
        """Copy values into the parameters. If this raises any exception, nothing is changed.

        Parameters
        ----------
        arrays, strict
            As for ``load_state_dict`` of a layer. A layer that the model has under several names is accepted under each
            of them, as torch saves it.

        Raises
        ------
        ValueError, TypeError
            As for ``load_state_dict`` of a layer.
        """
        first = {id(layer): name for name, layer in self.named_layers()}
        again = [f"{name}." for name, layer in _layers(self) if first[id(layer)] != name]
        if again and hasattr(arrays, "keys"):
            arrays = {n: arrays[n] for n in arrays if not str(n).startswith(tuple(again))}
        super().load_state_dict(arrays, strict)

    def save(self, path: Path) -> None:
        """Save the parameters, and the classes and options of the layers, to an ``.npz`` file.

        Read it with :meth:`load` of a model with the same layers. :func:`rnnfast.load` creates the model if it consists
        of :class:`Sequential` and layers of rnnfast; a file does not contain the class of another model.

        Parameters
        ----------
        path : str or os.PathLike
            No suffix is added. See ``save`` of a layer.

        Raises
        ------
        OSError
            If the file cannot be written. No partial file is left behind.
        """
        super().save(path)

    def freeze(self, weights: str | None = None, activations: str | None = None) -> None:
        """Freeze all layers, as their ``freeze`` does, or none of them if this raises.

        Parameters
        ----------
        weights : {"float32", "bfloat16", "int8"}, optional
        activations : {"float32", "int8"}, optional
            As for a layer. A LayerNorm has no matrix, and stays as it is.
        """
        base.freeze(saving.parts(self), weights, activations)

    def unfreeze(self) -> None:
        """Unfreeze all layers."""
        base.unfreeze(saving.parts(self))

    def release(self) -> None:
        """Free the memory that the layers keep to speed up later calls."""
        for _, layer in self.named_layers():
            layer.release()

    def stream(self, batch_size: int = 1) -> ModelStream:
        """Return a stream, which processes sequences step by step and keeps the state between calls.

        ``call`` must take `state` and return (y, state), and every layer must run forward in time. The stream uses the
        current weights: later changes of the parameters do not affect it. It applies no dropout.

        Parameters
        ----------
        batch_size : int, default 1
            N, the number of rows in a step.

        Returns
        -------
        rnnfast.models.ModelStream

        Raises
        ------
        ValueError
            If ``call`` takes no state, or a layer needs the whole sequence.
        """
        return ModelStream(self, batch_size)

    def __repr__(self) -> str:
        count = sum(array.size for array in self.parameters.values())
        lines = [f"{type(self).__name__}  # {count} parameters"]
        lines += [f"  {name}: " + repr(member).replace("\n", "\n  ") for name, member in _members(self._children())]
        return "\n".join(lines)


class ModelStream:
    """Run a model over sequences as their steps arrive. Created by ``model.stream(batch_size)``.

    If a call raises, the state is the one before the call. Only one thread at a time may use a stream.

    Attributes
    ----------
    batch_size : int
    state
        The state in the form in which ``call`` returns it. None means the initial state, and can be assigned.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> model = rnnfast.Sequential(rnnfast.LSTM(4, 8, rng=0), rnnfast.Linear(8, 2, rng=1))
    >>> stream, x = model.stream(), np.ones((5, 1, 4), np.float32)
    >>> y = np.stack([stream.step(x_t) for x_t in x])
    >>> bool((y == model(x)[0]).all())
    True
    """

    def __init__(self, model: Model, batch_size: int) -> None:
        self.batch_size = arguments.size("batch_size", batch_size)
        name = type(model).__name__
        if "state" not in inspect.signature(model.call).parameters:
            raise ValueError(
                f"{name} cannot be streamed, because its call takes no state: define call(self, x, state=None), which "
                "returns (y, state)"
            )
        for path, layer in model.named_layers():
            backward = getattr(layer, "bidirectional", False) or getattr(layer, "reverse", False)
            if backward or hasattr(layer, "backward_layer") or isinstance(layer, (Pool, Attention)):
                raise ValueError(f"{name} cannot be streamed, because {path} needs the whole sequence: {layer!r}")
        self._model = copy.deepcopy(model)
        self._model.freeze()
        self._axis = int(model.batch_first)
        self.state: Any = None

    def __repr__(self) -> str:
        return f"{type(self._model).__name__}.stream({self.batch_size})"

    def step(self, x_t: ArrayLike) -> Any:
        """Process one step.

        Parameters
        ----------
        x_t : array_like, (N, I), or for integer ids (N,)

        Returns
        -------
        ndarray, (N, ...)
            Or a tuple of them, if y is a tuple.

        Raises
        ------
        ValueError
            If `x_t` has the wrong shape. The state is unchanged.
        TypeError
            If `x_t` has the wrong type. The state is unchanged.
        """
        index = (slice(None), np.newaxis) if self._axis else np.newaxis
        y = self(arguments.array("x_t", x_t)[index])
        first = (slice(None), 0) if self._axis else 0
        return tuple(member[first] for member in y) if isinstance(y, tuple) else y[first]

    def __call__(self, x: ArrayLike) -> Any:
        """Process any number of steps.

        Parameters
        ----------
        x : array_like, (T, N, I), with batch_first (N, T, I); for integer ids without the last axis

        Returns
        -------
        ndarray, in the layout of `x`
            Or a tuple of them, if y is a tuple.

        Raises
        ------
        ValueError, TypeError
            As for :meth:`step`.
        """
        x = arguments.array("x", x)
        if x.ndim < 2 or x.shape[1 - self._axis] != self.batch_size:
            raise ValueError(
                f"x must have a time axis, and batch_size={self.batch_size} rows on the batch axis, got shape {x.shape}"
            )
        output = self._model(x, state=self.state)
        if not isinstance(output, tuple) or len(output) != 2:
            raise ValueError("call of a model that is streamed must return (y, state)")
        for member in output[0] if isinstance(output[0], tuple) else output[:1]:
            if np.shape(member)[:2] != x.shape[:2]:
                raise ValueError(
                    f"y of a model that is streamed must have the steps and rows of x, {x.shape[:2]}, got shape "
                    f"{np.shape(member)}"
                )
        y, self.state = output
        return y

    def reset(self) -> None:
        """Return to the initial state."""
        self.state = None


def _dtype(layers: Iterable[tuple[str, Any]]) -> np.dtype[Any] | None:
    """Return the dtype of layers, which must agree."""
    dtypes = {layer.dtype: name for name, layer in layers if hasattr(layer, "dtype")}
    if len(dtypes) > 1:
        listed = " and ".join(f"{name} of {dtype}" for dtype, name in dtypes.items())
        raise ValueError(f"the layers of a model must have the same dtype, but this one has {listed}")
    return next(iter(dtypes), None)


def _members(children: Mapping[str, Any]) -> Iterator[tuple[str, Layer]]:
    """Iterate over layers and models in attributes, and in lists, tuples and dicts."""
    for name, value in children.items():
        if isinstance(value, Layer):
            yield name, value
        elif isinstance(value, (list, tuple, dict)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            yield from _members({f"{name}.{key}": member for key, member in items})


def _layers(model: Model, *outer: Model) -> Iterator[tuple[str, Layer]]:
    """Iterate over the layers of a model and of the models in it. `outer` are the models that it is in."""
    if any(model is one for one in outer):
        raise ValueError(f"a model cannot contain itself: {type(model).__name__}")
    for name, member in _members(model._children()):
        if isinstance(member, Model):
            yield from ((f"{name}.{rest}", layer) for rest, layer in _layers(member, model, *outer))
        else:
            yield name, member


def _shadow(value: Any, record: Record, prefixes: Mapping[int, str]) -> Any:
    """Return a copy of a model, or of a list, tuple or dict, whose layers are recorded."""
    if isinstance(value, Layer):
        if not isinstance(value, Model):
            return RecordedLayer(value, record, prefixes[id(value)])
        copied = object.__new__(type(value))
        copied.__dict__.update({name: _shadow(one, record, prefixes) for name, one in vars(value).items()})
        copied.__dict__["_recorded"] = True
        return copied
    if isinstance(value, (list, tuple, dict)) and any(True for _ in _members({"": value})):
        if isinstance(value, tuple):
            members = [_shadow(one, record, prefixes) for one in value]
            return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
        container = copy.copy(value)
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            container[key] = _shadow(one, record, prefixes)
        return container
    return value


def _read(name: str, value: Any, dtype: np.dtype[Any] | None, wrap: Any) -> Any:
    """Return an argument as a read-only array, or what `wrap` makes of one that has a gradient; tuples by member."""
    if value is None or isinstance(value, Value):
        return value
    if isinstance(value, (tuple, list) if name.startswith("state") else tuple):
        return tuple(_read(f"{name}[{k}]", member, dtype, wrap) for k, member in enumerate(value))
    array = arguments.array(name, value)
    if array.dtype.kind != "f":
        return _read_only(array)
    array = arguments.floating(name, array) if dtype is None else arguments.real(name, array, dtype)
    return wrap(_read_only(array))


def _read_only(value: Any) -> Any:
    """Return a read-only view of an array or of that of a value; a tuple of them for a tuple."""
    if isinstance(value, tuple):
        return tuple(map(_read_only, value))
    array = value.array if isinstance(value, Value) else value
    if isinstance(array, np.ndarray):
        array = array.view()
        array.flags.writeable = False
    return array


def _structure(output: Any) -> Any:
    """Check the output of ``call``. Lists and named tuples become tuples."""
    if isinstance(output, (tuple, list)):
        return tuple(map(_structure, output))
    if isinstance(output, dict):
        raise TypeError("call must return an array or a tuple, got a dict: return a tuple of its values")
    return output


def _checked(name: str, gradient: Any, output: Any, record: Record) -> Any:
    """Return the gradient of an output, which is an index or a tuple of them."""
    if gradient is None:
        return None
    if isinstance(output, tuple):
        if not isinstance(gradient, (tuple, list)) or len(gradient) != len(output):
            got = f"{len(gradient)} members" if isinstance(gradient, (tuple, list)) else type(gradient).__name__
            raise ValueError(f"{name} must be a tuple of {len(output)} gradients, as the output is, got {got}")
        pairs = enumerate(zip(gradient, output, strict=True))
        return tuple(_checked(f"{name}[{k}]", *pair, record) for k, pair in pairs)
    if output is None:
        raise ValueError(f"{name} must be None, because this output of call does not depend on the parameters or x")
    return arguments.shaped(name, gradient, record.dtypes[output], record.shapes[output], "the shape of the output")


def _or_zeros(sums: Sums, index: Any) -> Any:
    """Return the gradient of an argument, with zeros where there is none."""
    if isinstance(index, tuple):
        return tuple(_or_zeros(sums, member) for member in index)
    if index is None:
        return None
    total = sums.of(index)
    if total is None:
        return sums.zeros(index)
    return total if total.flags.writeable else total.copy()
