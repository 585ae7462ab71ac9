"""A bidirectional layer made of two layers of any recurrent classes."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, NoReturn, Self, cast

import numpy as np

from rnnfast import arguments, names
from rnnfast._types import Array, ArrayLike
from rnnfast.ragged import INITIAL

from . import saving
from .base import Gradients, Layer, Tape, freeze, unfreeze
from .execution import Call
from .recurrent import Recurrent

__all__ = ["Bidirectional"]

# For each merge: the function of both outputs, and their gradients from the gradient of its result.
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


class Kept(NamedTuple):
    """Contents of the tape of a Bidirectional."""

    forward: Tape
    backward: Tape
    outputs: tuple[Any, Any]  # of both layers
    shape: tuple[int, ...] | None  # of y; None with merge=None


class Bidirectional(Layer):
    """A bidirectional layer made of two layers, which can be of different classes.

    The output is ``y[t] = merge(y_forward[t], y_backward[t])``, where the backward layer runs from the last step to the
    first. Stacks are merged after their last layer, not layer by layer as with ``bidirectional=True``.

    Similar to ``keras.layers.Bidirectional``. Source: M. Schuster and K. Paliwal, "Bidirectional recurrent neural
    networks", 1997.

    Parameters
    ----------
    forward_layer : recurrent layer, such as LSTM
        Must be neither bidirectional nor reverse.
    backward_layer : recurrent layer, such as LSTM, optional
        Must not be bidirectional, and must have the input_size, dtype and batch_first of forward_layer. For the merges
        "sum", "mul" and "mean", both layers must also have the same output size. If its option `reverse` is False, the
        layer reads x in reverse order, and its outputs are reversed again. By default, a layer of the same class and
        options as forward_layer, but with reverse=True, is created with the init and random generator of forward_layer.
    merge : {"concat", "sum", "mul", "mean", None}, default "concat"
        How the two outputs are combined. With None, y is a pair of arrays, and so is `dy` of ``backward``.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        The arrays of the two layers, named ``forward.<name>`` and ``backward.<name>``.
    input_size, batch_first, dtype
        Those of both layers.
    hidden_size : int or tuple of int
        That of both layers, or a pair if they differ.

    Raises
    ------
    ValueError
        If a layer runs in the wrong direction, the two layers do not match, or `merge` is unknown.
    TypeError
        If a layer is not a recurrent layer.

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
                raise TypeError(f"{name} must be a recurrent layer, got {type(layer).__name__}")
            if layer is not None and layer.bidirectional:
                raise ValueError(f"{name} must run in one direction, got {saving.describe(layer)}")
        if forward_layer is backward_layer:
            raise ValueError("backward_layer must be a different layer from forward_layer, with its own parameters")
        if forward_layer.reverse:
            raise ValueError(
                f"forward_layer must run from the first step to the last, got {saving.describe(forward_layer)}"
            )
        if backward_layer is None:
            options = {**saving.options(forward_layer), "reverse": True}
            fresh = {"rng": forward_layer._rng, "init": forward_layer._init}
            backward_layer = cast("Recurrent[Any]", saving.kind(forward_layer)(**options, **fresh))
        for name in ("input_size", "dtype", "batch_first"):
            ours, other = getattr(forward_layer, name), getattr(backward_layer, name)
            if ours != other:
                raise ValueError(f"backward_layer must have {name}={ours}, as forward_layer has, got {other}")
        widths = forward_layer.engine.output_size, backward_layer.engine.output_size
        if merge in ("sum", "mul", "mean") and widths[0] != widths[1]:
            raise ValueError(f"merge={merge!r} needs layers of equal output size, got {widths[0]} and {widths[1]}")
        self.forward_layer = forward_layer
        self.backward_layer = backward_layer
        self.merge = merge
        self._built = True

    @classmethod
    def from_state_dict(
        cls,
        arrays: Mapping[str, ArrayLike],
        prefix: str = "",
        merge: Literal["concat", "sum", "mul", "mean"] | None = "concat",
        **options: Any,
    ) -> Self:
        """Create a layer from the parameters of its two layers, ``forward.<name>`` and ``backward.<name>``.

        Parameters
        ----------
        arrays, prefix
            As for :func:`rnnfast.from_state_dict`.
        merge
            As for the constructor.
        **options
            Options of both layers.

        Raises
        ------
        ValueError, TypeError
            As for :func:`rnnfast.from_state_dict`.
        """
        if hasattr(arrays, "keys") and not any(str(name).startswith(f"{prefix}forward.") for name in arrays):
            raise ValueError(
                f"arrays have no names that start with {prefix}forward., as the parameters of a Bidirectional do: call "
                "rnnfast.from_state_dict, which finds the class"
            )
        forward = saving.from_state_dict(arrays, f"{prefix}forward.", **options)
        return cls(forward, saving.from_state_dict(arrays, f"{prefix}backward.", **{"reverse": True, **options}), merge)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _built=True)  # pickles of 0.2.0 lack it

    @property
    def input_size(self) -> int:
        return self.forward_layer.input_size

    @property
    def hidden_size(self) -> int | tuple[int, int]:
        sizes = self.forward_layer.hidden_size, self.backward_layer.hidden_size
        return sizes if sizes[0] != sizes[1] else sizes[0]

    @property
    def batch_first(self) -> bool:
        return self.forward_layer.batch_first

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.forward_layer.dtype

    @property
    def parameters(self) -> Mapping[str, Array]:
        return types.MappingProxyType(
            names.named(_sides(self.forward_layer.parameters, self.backward_layer.parameters))
        )

    def freeze(self, weights: str | None = None, activations: str | None = None) -> None:
        """Freeze both layers, as their ``freeze`` does, or none of them if this raises.

        Parameters
        ----------
        weights : {"float32", "bfloat16", "int8"}, optional
        activations : {"float32", "int8"}, optional
            As for a layer.
        """
        freeze((self.forward_layer, self.backward_layer), weights, activations)

    def unfreeze(self) -> None:
        """Unfreeze both layers."""
        unfreeze((self.forward_layer, self.backward_layer))

    def release(self) -> None:
        """Free the memory that both layers keep to speed up later calls."""
        self.forward_layer.release()
        self.backward_layer.release()

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
    ) -> tuple[Any, tuple[Any, Any]]:
        """Run over a sequence in inference mode.

        Parameters
        ----------
        x, lengths, mask, reset, zero_masked
            As for a call of :class:`RNN`, :class:`LSTM` or :class:`GRU`.
        state : pair, optional
            The initial states of the forward and the backward layer. None means the layer's own, as in its call.
        reset_state : {"initial", "zeros"}, None, or a pair, default "initial"
            The state from which sequences start at a reset, as for a call of a layer: for both layers, or a pair with
            one for each.

        Returns
        -------
        y : ndarray, (T, N, width), in the layout of `x`; with merge=None a pair of such arrays
            With "concat", the width is the sum of the output sizes of the two layers.
        state : pair
            The final states of the forward and the backward layer.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As for a call of :class:`RNN`, :class:`LSTM` or :class:`GRU`.
        """
        forward, backward = self._read(x, state, reset_state, lengths, mask, reset, zero_masked)
        y, state = self.forward_layer._infer(forward)
        y_backward, state_backward = self.backward_layer._infer(backward)
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
        reset_state: Any = INITIAL,
        zero_masked: bool = False,
        checkpoint: int | Literal["auto"] | None = None,
    ) -> tuple[Any, tuple[Any, Any], Tape]:
        """Run over a sequence in training mode: apply dropout, and keep what ``backward`` needs.

        Parameters
        ----------
        x, state, lengths, mask, reset, reset_state, zero_masked
            As for a call. The tape holds `x` by reference: do not change it before the last ``backward``.
        checkpoint
            As for ``forward`` of :class:`RNN`, :class:`LSTM` or :class:`GRU`.

        Returns
        -------
        y, state
            As for a call. With merge=None, the two arrays are read-only, because the tape shares them.
        tape : Tape
            Pass it to :meth:`backward`.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As for a call.
        """
        forward, backward = self._read(x, state, reset_state, lengths, mask, reset, zero_masked)
        y, state, tape = self.forward_layer._train(forward, checkpoint)
        y_backward, state_backward, tape_backward = self.backward_layer._train(backward, checkpoint)
        outputs: tuple[Array, Any] = y, self._turn(y_backward)
        with np.errstate(all="ignore"):  # infinities and NaN are valid data
            merged = _MERGES[self.merge][0](*outputs)
        shape = None if self.merge is None else merged.shape
        return merged, (state, state_backward), Tape(self, Kept(tape, tape_backward, outputs, shape))

    def backward(self, tape: Tape, dy: Any, dstate: Any = None, *, per_step: bool = False) -> Gradients:
        """Return the gradients of the ``forward`` that made `tape`.

        Parameters
        ----------
        tape : Tape
            From this layer's ``forward``. It can be used again.
        dy : array_like of the shape of y, or None
            The gradient of a scalar with respect to y; None means zeros. With merge=None a pair, either of which
            may be None.
        dstate : pair, optional
            The gradients with respect to the final states of the two layers. None for either means zeros.
        per_step : bool, default False
            Whether to also return the derivatives with respect to h at every step.

        Returns
        -------
        Gradients
            ``x``, ``state`` (a pair), ``parameters``, with `per_step` ``h`` (a pair), and ``reset_state`` (a pair)
            unless it was "initial" for both layers.

        Raises
        ------
        ValueError
            If the tape comes from another layer, or a shape does not match.
        TypeError
            If `tape` is not a Tape, or an argument does not hold real numbers.
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
        if ours.reset_state is not None or other.reset_state is not None:
            gradients.reset_state = ours.reset_state, other.reset_state
        if per_step:
            gradients.h = ours.h, self._turn_steps(other.h)
        return gradients

    def _cells(self, tape: Tape) -> tuple[Any, Any]:
        forward, backward, _, _ = self._open(tape)
        return self.forward_layer._cells(forward), self._turn_steps(self.backward_layer._cells(backward))

    def stream(self, batch_size: int = 1) -> NoReturn:  # noqa: ARG002
        """Raise ValueError, because a bidirectional layer needs the whole sequence.

        Raises
        ------
        ValueError
        """
        raise ValueError(
            f"{saving.describe(self)} cannot be streamed, because its backward layer starts at the last step of the "
            "sequence: stream its forward_layer"
        )

    def _read(self, x: Any, state: Any, reset_state: Any, *steps: Any) -> tuple[Call, Call]:
        """Check the arguments of both layers."""
        states = _both("state", state)
        reset_states = (reset_state,) * 2 if isinstance(reset_state, str) else _both("reset_state", reset_state)
        forward = self.forward_layer.execution.read(x, states[0], reset_states[0], *steps, member="[0]")
        turned = not self.backward_layer.reverse
        x = self._turn(forward.inputs.x)
        read = self.backward_layer.execution.read
        return forward, read(x, states[1], reset_states[1], *steps, member="[1]", turned=turned)

    def _turn_steps(self, array: Array) -> Array:
        """Return a view of an array (L, T, ...) of the backward layer, with its steps in the order of x."""
        return array if self.backward_layer.reverse else array[:, ::-1]

    def _turn(self, array: Array | None) -> Array | None:
        """Return a view of a sequence in the order in which the backward layer reads it, or back in that of x."""
        if array is None or self.backward_layer.reverse:
            return array
        return array[:, ::-1] if self.backward_layer.batch_first and array.ndim == 3 else array[::-1]


def _both(name: str, value: Any) -> tuple[Any, Any]:
    """Return the parts of `value` for the forward and the backward layer."""
    return (None, None) if value is None else arguments.pair(name, value, "(forward_layer's, backward_layer's)")


def _sides(forward: Mapping[str, Any], backward: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the entries of two layers, under the names that Bidirectional gives them."""
    sides = {"forward": forward, "backward": backward}
    return {f"{side}.{name}": value for side, values in sides.items() for name, value in values.items()}
