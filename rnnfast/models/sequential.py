"""Layers in a row."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from rnnfast.layers import Bidirectional, Embedding, Linear, Pool, saving
from rnnfast.layers.base import Layer
from rnnfast.layers.elementwise import LayerNorm
from rnnfast.layers.recurrent import Recurrent
from rnnfast.ragged import INITIAL

from .model import Model, ModelStream

__all__ = ["Sequential"]

# Arguments about the steps, which are passed to every layer that takes them.
_STEPS = ("lengths", "mask", "reset", "reset_state")


class Sequential(Model):
    """Layers that are called one after another, each with the output of the previous one.

    Parameters
    ----------
    *layers : layers or models
        Each takes one input. A recurrent layer passes its y to the next layer.

    Attributes
    ----------
    layers : tuple
        Read-only. ``model[k]`` is layer k.
    parameters : mapping of str to ndarray
        The parameters of all layers, named ``<k>.<name>`` for layer k, as in ``torch.nn.Sequential``.

    Raises
    ------
    TypeError
        If one of `layers` is not a layer with one input.
    ValueError
        If no layer is passed, a layer occurs twice, or the number of features that a layer returns is not that which
        the next one takes.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> from rnnfast import GRU, Embedding, Linear, Pool, Sequential
    >>> model = Sequential(Embedding(50, 8, rng=0), GRU(8, 16, rng=1), Pool("last"), Linear(16, 2, rng=2))
    >>> model
    Sequential  # 1682 parameters
      0: Embedding(50, 8)  # 400 parameters
      1: GRU(8, 16)  # 1248 parameters
      2: Pool('last')
      3: Linear(16, 2)  # 34 parameters
    >>> y, state, tape = model.forward(np.ones((7, 3), int), lengths=[7, 5, 2])
    >>> grads = model.backward(tape, np.ones_like(y))
    >>> y.shape, grads.parameters["1.weight_hh_l0"].shape
    ((3, 2), (48, 16))
    """

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise ValueError("a Sequential needs at least one layer")
        for k, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{k}] must be a layer of rnnfast, got {type(layer).__name__}")
            if len(_required(layer)) > 1:
                raise TypeError(f"layers[{k}] must take one input, but {saving.describe(layer)} takes several")
            if any(layer is other for other in layers[:k]):
                raise ValueError(f"layers[{k}] occurs twice: {saving.describe(layer)}; create another layer")
        for k, (one, following) in enumerate(itertools.pairwise(layers)):
            _require_fit(k, one, following)
        pooled = [k for k, layer in enumerate(layers) if isinstance(layer, Pool)]
        for k, layer in enumerate(layers):
            if pooled and k > pooled[0] and isinstance(layer, (Recurrent, Bidirectional, Pool)):
                raise ValueError(
                    f"layers[{k}], {saving.describe(layer)}, needs a sequence, but layers[{pooled[0]}], "
                    f"{saving.describe(layers[pooled[0]])}, reduces it to one vector"
                )
        self.layers = layers
        self.dtype  # noqa: B018  # raises if the dtypes differ
        self.batch_first  # noqa: B018
        taken = [_taken(layer) for layer in layers]
        self._takes = tuple(tuple(name for name in _STEPS if name in own) for own in taken)
        self._stateful = tuple("state" in own for own in taken)
        self._built = True

    def _saves_class(self) -> bool:
        return type(self).call is Sequential.call

    def _fixed(self) -> Collection[str]:
        return ("parameters", "layers")

    def _children(self) -> Mapping[str, Any]:
        return {str(k): layer for k, layer in enumerate(self.layers)}

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, k: int) -> Layer:
        return self.layers[k]

    def stream(self, batch_size: int = 1) -> ModelStream:
        if not any(self._stateful):
            raise ValueError("this Sequential has no recurrent layer, so it keeps no state: call it without a stream")
        return super().stream(batch_size)

    stream.__doc__ = Model.stream.__doc__

    def call(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
        reset_state: Any = INITIAL,
    ) -> Any:
        """Call the layers.

        Parameters
        ----------
        x
            The input of the first layer.
        state : optional
            The initial state of the recurrent layer; with several of them, a tuple with the state of each.
        lengths, mask, reset, reset_state : optional
            Passed to every layer that takes them.

        Returns
        -------
        y : ndarray
            The output of the last layer.
        state
            The final state, in the form of `state`. Only y is returned if no layer is recurrent.

        Raises
        ------
        ValueError
            If `state` has the wrong form.
        TypeError
            If no layer takes one of the other arguments.
        """
        given = {name: v for name, v in zip(_STEPS, (lengths, mask, reset), strict=False) if v is not None}
        if not (isinstance(reset_state, str) and reset_state == INITIAL):
            given["reset_state"] = reset_state
        for name in given:
            if not any(name in takes for takes in self._takes):
                raise TypeError(f"{name} is taken by no layer of this Sequential: leave it out")
        count = sum(self._stateful)
        if count != 1 and state is not None and (not isinstance(state, (tuple, list)) or len(state) != count):
            got = f"{len(state)} members" if isinstance(state, (tuple, list)) else type(state).__name__
            raise ValueError(f"state must be a tuple with the states of the {count} recurrent layers, got {got}")
        states = iter((state,) if count == 1 else state or (None,) * count)
        ends = []
        for layer, takes, stateful in zip(self.layers, self._takes, self._stateful, strict=True):
            options = {name: given[name] for name in takes if name in given}
            if stateful:
                x, end = layer(x, next(states), **options)  # type: ignore[operator]
                ends.append(end)
            else:
                x = layer(x, **options)  # type: ignore[operator]
        return (x, ends[0] if count == 1 else tuple(ends)) if count else x


def _function(layer: Layer) -> Callable[..., Any]:
    """Return the function of the class that a call of the layer runs."""
    return type(layer).call if isinstance(layer, Model) else type(layer).__call__


def _taken(layer: Layer) -> Collection[str]:
    """Return the names of the arguments that a call of the layer takes: of a Sequential, those that its layers take."""
    if isinstance(layer, Sequential) and layer._saves_class():
        return {name for takes in layer._takes for name in takes} | {"state" for one in layer._stateful if one}
    return inspect.signature(_function(layer)).parameters


def _required(layer: Layer) -> list[str]:
    """Return the names of the arguments that a call of the layer must have."""
    parameters = list(inspect.signature(_function(layer)).parameters.values())[1:]
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [one.name for one in parameters if one.default is one.empty and one.kind in plain]


def _require_fit(k: int, layer: Any, following: Any) -> None:
    """Raise if the output of layer k does not fit the layer that follows."""
    gives = features(layer)[1]
    takes = features(following)[0]
    if gives is not None and takes is not None and gives != takes:
        raise ValueError(
            f"layers[{k}], {saving.describe(layer)}, returns {gives} features, but layers[{k + 1}], "
            f"{saving.describe(following)}, takes {takes}"
        )
    both = isinstance(layer, Bidirectional) or getattr(layer, "bidirectional", False)
    if isinstance(following, Pool) and following.mode == "last" and both and not following.bidirectional:
        warnings.warn(
            f"layers[{k + 1}], Pool('last'), takes the last valid step of both directions, but the reverse direction "
            f"of layers[{k}] ends at the first step: pass bidirectional=True to Pool",
            stacklevel=4,
        )


def features(layer: Any) -> tuple[int | None, int | None]:
    """Return the number of features that a layer takes and returns, None where it is unknown."""
    if isinstance(layer, Recurrent):
        return layer.input_size, layer.engine.output_size * layer.engine.directions
    if isinstance(layer, Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, Embedding):
        return None, layer.embedding_dim
    if isinstance(layer, LayerNorm):
        return layer.normalized_shape, layer.normalized_shape
    if isinstance(layer, Bidirectional):
        widths = [features(side)[1] for side in (layer.forward_layer, layer.backward_layer)]
        returned = {None: None, "concat": sum(map(int, widths))}  # type: ignore[arg-type]
        return layer.input_size, returned.get(layer.merge, widths[0])
    return None, None
