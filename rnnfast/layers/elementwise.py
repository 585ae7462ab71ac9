"""Layers that keep the shape of x: Activation, Dropout and LayerNorm. They are computed by NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from rnnfast import arguments, initializers
from rnnfast._types import Array, ArrayLike, DTypeLike, Seed

from .base import Plain, Tape
from .linear import Pointwise

__all__ = ["Activation", "Dropout", "LayerNorm"]

# For each function: itself, and its derivative as a function of its result.
_FUNCTIONS: dict[str, tuple[Any, Any]] = {
    "tanh": (np.tanh, lambda y: 1 - y * y),
    "sigmoid": (
        lambda x: np.tanh(x * x.dtype.type(0.5)) * x.dtype.type(0.5) + x.dtype.type(0.5),
        lambda y: y * (1 - y),
    ),
    "relu": (lambda x: np.maximum(x, 0), lambda y: y > 0),
}


class Elementwise(Plain):
    """Base class of Activation and Dropout."""

    def __call__(self, x: ArrayLike) -> Array:
        """Apply the layer in inference mode.

        Parameters
        ----------
        x : array_like of real numbers, any shape
            Dtypes other than float32 and float64 are converted to float64.

        Returns
        -------
        ndarray of the shape of `x`
            For Dropout, `x` itself where it is such an array.

        Raises
        ------
        TypeError
            If `x` does not hold real numbers.
        """
        return self._infer(arguments.floating("x", x))

    def forward(self, x: ArrayLike) -> tuple[Array, Tape]:
        """Apply the layer in training mode, and keep what ``backward`` needs.

        Parameters
        ----------
        x
            As for a call.

        Returns
        -------
        y : ndarray of the shape of `x`
            The tape of an Activation holds it by reference: do not change it before the last ``backward``.
        tape : Tape
            Pass it to :meth:`backward`.

        Raises
        ------
        TypeError
            As for a call.
        """
        y, kept = self._train(arguments.floating("x", x))
        return y, Tape(self, (y.shape, y.dtype, kept))

    def _infer(self, x: Array) -> Array:
        raise NotImplementedError

    def _train(self, x: Array) -> tuple[Array, Array]:
        """Return y and what `_differentiate` needs."""
        raise NotImplementedError


class Activation(Elementwise):
    """Elementwise function, such as the nonlinearity between two Linear layers.

    Parameters
    ----------
    function : {"tanh", "sigmoid", "relu"}
        sigmoid(x) is 1 / (1 + exp(-x)), and relu(x) is max(x, 0), whose derivative at 0 is 0, as in torch.

    Raises
    ------
    ValueError
        If `function` is unknown.

    Examples
    --------
    >>> import rnnfast
    >>> rnnfast.Activation("relu")([-1.0, 2.0])
    array([0., 2.])
    """

    def __init__(self, function: Literal["tanh", "sigmoid", "relu"]) -> None:
        self.function = arguments.choice("function", function, tuple(_FUNCTIONS))
        self._built = True

    def _infer(self, x: Array) -> Array:
        with np.errstate(all="ignore"):  # infinities and NaN are valid data
            return np.asarray(_FUNCTIONS[self.function][0](x), x.dtype)

    def _train(self, x: Array) -> tuple[Array, Array]:
        y = self._infer(x)
        return y, y

    def _differentiate(self, dy: Array, _parameters: dict[str, Array], y: Array) -> Array:
        dx: Array = dy * _FUNCTIONS[self.function][1](y)
        return dx


class Dropout(Elementwise):
    """Set random elements to 0 in training, and scale the others by 1 / (1 - p). In inference, return x.

    Equivalent to ``torch.nn.Dropout``. Source: N. Srivastava et al., "Dropout: a simple way to prevent neural networks
    from overfitting", 2014.

    Parameters
    ----------
    p : float, default 0.5
        The probability of 0 for each element, from 0 to 1.
    rng : None, int or numpy.random.Generator
        Draws the elements.

    Raises
    ------
    ValueError
        If `p` is out of range.
    TypeError
        If an option has the wrong type.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> dropout = rnnfast.Dropout(0.5, rng=0)
    >>> y, tape = dropout.forward(np.ones(6))
    >>> y
    array([2., 2., 2., 0., 0., 0.])
    >>> dropout.backward(tape, np.ones(6)).x
    array([2., 2., 2., 0., 0., 0.])
    """

    def __init__(self, p: float = 0.5, *, rng: Seed = None) -> None:
        self.p = arguments.fraction("p", p)
        self._rng = arguments.generator(rng)
        self._built = True

    def _infer(self, x: Array) -> Array:
        return x

    def _train(self, x: Array) -> tuple[Array, Array]:
        scale = x.dtype.type(1 / (1 - self.p) if self.p < 1 else 0)
        factors = initializers.drawn(x.shape, x.dtype, lambda n: scale * (self._rng.random(n, np.float32) >= self.p))
        return _times(x, factors), factors

    def _differentiate(self, dy: Array, _parameters: dict[str, Array], factors: Array) -> Array:
        return _times(dy, factors)


def _times(array: Array, factors: Array) -> Array:
    """Multiply, where a factor of 0 gives 0 even for infinity and NaN."""
    result: Array = np.zeros_like(array, order="C")
    with np.errstate(all="ignore"):
        return np.multiply(array, factors, out=result, where=factors != 0)


class LayerNorm(Pointwise):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift each feature.

    ``y = (x - mean) / sqrt(variance + eps) * weight + bias``, with the mean and the variance (not corrected for bias)
    over the last axis. Equivalent to ``torch.nn.LayerNorm`` for one axis. Source: J. Ba, J. Kiros and G. Hinton,
    "Layer normalization", 2016.

    Parameters
    ----------
    normalized_shape : int
        The number of features on the last axis.
    eps : float, default 1e-5
    bias : bool, default True
        Whether to add the bias.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight`` and ``bias``, both (normalized_shape,), initially 1 and 0.

    Raises
    ------
    ValueError
        If an option is out of range.
    TypeError
        If an option has the wrong type.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> rnnfast.LayerNorm(2)(np.array([[1.0, 3.0]])).round(3)
    array([[-1.,  1.]], dtype=float32)
    """

    def __init__(
        self, normalized_shape: int, eps: float = 1e-5, bias: bool = True, *, dtype: DTypeLike = np.float32
    ) -> None:
        super().__init__(dtype, None)
        self._prepare()
        self.normalized_shape = arguments.size("normalized_shape", normalized_shape)
        self.eps = arguments.number("eps", eps)
        self.bias = arguments.flag("bias", bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.normalized_shape,)}
        if self.bias:
            shapes["bias"] = shapes["weight"]
        self._draw(lambda name, shape: np.full(shape, name == "weight", self.dtype), shapes)
        self._built = True

    @classmethod
    def _implied(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        if len(shapes["weight"]) != 1:
            raise ValueError(f"weight must have one axis, got shape {shapes['weight']}")
        return {"normalized_shape": shapes["weight"][0], "bias": "bias" in shapes}

    def _kind_for(self, weights: str | None, activations: str | None) -> str:
        super()._kind_for(weights, activations)
        return "full"  # a LayerNorm has no matrix

    def _pack(self) -> tuple[Array, ...]:
        return tuple(array.copy() for array in self._parameters.values())

    def _input(self, x: Any) -> Array:
        array = arguments.real("x", x, self.dtype)
        if array.shape[-1:] != (self.normalized_shape,):
            raise ValueError(
                f"x must have layout (..., normalized_shape) with normalized_shape={self.normalized_shape}, got shape "
                f"{array.shape}"
            )
        return array

    def _map(self, x: Array, *weights: Array) -> Array:
        with np.errstate(all="ignore"):
            y, _ = self._normalized(x)
            y *= weights[0]
            if self.bias:
                y += weights[1]
        return y

    def _differentiate(self, dy: Array, parameters: dict[str, Array], x: Array, *weights: Array) -> Array:
        normal, inverse = self._normalized(x)
        dnormal = dy * weights[0]
        dx: Array = dnormal - dnormal.mean(axis=-1, keepdims=True)
        dx -= normal * (dnormal * normal).mean(axis=-1, keepdims=True)
        dx *= inverse
        axes = tuple(range(dy.ndim - 1))
        parameters["weight"] += (dy * normal).sum(axis=axes, dtype=np.float64).astype(self.dtype)
        if self.bias:
            parameters["bias"] += dy.sum(axis=axes, dtype=np.float64).astype(self.dtype)
        return dx

    def _normalized(self, x: Array) -> tuple[Array, Array]:
        """Return the normalized x, and 1 / sqrt(variance + eps)."""
        normal: Array = x - x.mean(axis=-1, keepdims=True)
        inverse = 1 / np.sqrt((normal * normal).mean(axis=-1, keepdims=True) + self.dtype.type(self.eps))
        normal *= inverse
        return normal, inverse
