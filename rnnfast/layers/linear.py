"""Layers without a time axis: Linear and Embedding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnfast import arguments, functional, initializers, narrow
from rnnfast._types import Array, ArrayLike, DTypeLike, Seed

from .base import ArrayLayer, Stateless, Tape, require_recorded

__all__ = ["Embedding", "Linear"]


class Pointwise(ArrayLayer, Stateless):
    """Base class of Linear, Embedding and LayerNorm, which map each position of x to a vector, independently."""

    _first = "weight"
    _frozen: tuple[str, tuple[Any, ...]] | None  # while the layer is frozen: the kind of the weights, and the weights

    def __call__(self, x: ArrayLike) -> Array:
        """Apply the layer.

        Parameters
        ----------
        x : array_like
            Real numbers, with any strides and byte order, which are converted to the dtype of the layer: for Linear of
            shape (..., in_features), for LayerNorm (..., normalized_shape). For Embedding, integers from 0 to
            num_embeddings - 1, of any shape.

        Returns
        -------
        ndarray, (..., out_features), (..., embedding_dim), or for LayerNorm of the shape of `x`
            A new array.

        Raises
        ------
        ValueError
            If the last axis does not have in_features or normalized_shape elements, or an id is out of range.
        TypeError
            If `x` does not hold real numbers, or integers for Embedding, or is the tuple that a recurrent layer
            returns.
        MemoryError
            If the result does not fit into memory.
        """
        require_recorded(self)
        kind, weights = self._frozen or ("full", self._current())
        x = self._input(x)
        return self._map(x, *weights) if kind == "full" else self._map_narrow(kind, x, *weights)

    def forward(self, x: ArrayLike) -> tuple[Array, Tape]:
        """Apply the layer, and keep what ``backward`` needs.

        Parameters
        ----------
        x
            As for a call. The tape holds it by reference: do not change it before the last ``backward``.

        Returns
        -------
        y : ndarray
            As for a call.
        tape : Tape
            Pass it to :meth:`backward`. It keeps the weights of this call.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As for a call.
        """
        x = self._input(x)
        kind, weights = self._frozen or ("full", self._pack())
        narrow.require_full(kind, self)
        y = self._map(x, *weights)
        return y, Tape(self, (y.shape, y.dtype, x, *weights))

    def _prepare(self) -> None:
        self._frozen = None

    def _kind(self) -> str | None:
        return None if self._frozen is None else self._frozen[0]

    def _frozen_as(self, kind: str | None, parameters: Mapping[str, Array]) -> list[tuple[Any, str, Any]]:
        weights = None
        if kind is not None:
            weights = kind, self._pack() if kind == "full" else self._pack_narrow(kind, parameters)
        return [(self, "_frozen", weights)]

    def _pack(self) -> tuple[Array, ...]:
        """Return what _map and _differentiate need, which later changes of the parameters do not affect."""
        raise NotImplementedError

    def _pack_narrow(self, kind: str, parameters: Mapping[str, Array]) -> tuple[Any, ...]:
        """Return the weights in fewer bytes, for _map_narrow."""
        raise NotImplementedError

    def _map_narrow(self, kind: str, x: Array, *weights: Any) -> Array:
        raise NotImplementedError

    def _input(self, x: Any) -> Array:
        raise NotImplementedError

    def _current(self) -> tuple[Array, ...]:
        """Return what _map needs, for the current parameters."""
        return tuple(self._parameters.values())

    def _map(self, x: Array, *weights: Array) -> Array:
        raise NotImplementedError


def _rows(array: Array) -> Array:
    """Return a view as a matrix whose rows are the vectors along the last axis."""
    return array.reshape(-1, array.shape[-1])


def _matrix(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Return the shape of the weight."""
    if len(shapes["weight"]) != 2:
        raise ValueError(f"weight must be a matrix, got shape {shapes['weight']}")
    rows, columns = shapes["weight"]
    return rows, columns


class Linear(Pointwise):
    """Affine map of the last axis, ``y = x W^T + b``, such as the readout of a recurrent layer.

    Equivalent to ``torch.nn.Linear``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool, default True
        Whether to add the bias b.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
    rng : None, int or numpy.random.Generator
        Draws the initial parameters, uniform in (-1/sqrt(in_features), 1/sqrt(in_features)) as in torch.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight`` (out_features, in_features) and ``bias`` (out_features,).

    Raises
    ------
    ValueError
        If an option is out of range.
    TypeError
        If an option has the wrong type.
    MemoryError
        If the parameters do not fit into memory.

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

    _transient = ("_built", "_isa")

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, dtype: DTypeLike = np.float32, rng: Seed = None
    ) -> None:
        super().__init__(dtype, rng)
        self.in_features = arguments.size("in_features", in_features)
        self.out_features = arguments.size("out_features", out_features)
        self.bias = arguments.flag("bias", bias)
        self._prepare()
        shapes = {"weight": arguments.countable("weight", (self.out_features, self.in_features))}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        bound = 1 / math.sqrt(self.in_features)
        self._draw(
            lambda _, shape: initializers.drawn(shape, self.dtype, lambda n: self._rng.uniform(-bound, bound, n)),
            shapes,
        )
        self._built = True

    @classmethod
    def _implied(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        out_features, in_features = _matrix(shapes)
        return {"in_features": in_features, "out_features": out_features, "bias": "bias" in shapes}

    def _prepare(self) -> None:
        super()._prepare()
        self._isa = functional.get_default_isa()  # packed weights are for one instruction set

    def _pack(self) -> tuple[Array, ...]:
        return self._parameters["weight"].copy(), *self._current()

    def _pack_narrow(self, kind: str, parameters: Mapping[str, Array]) -> tuple[Array, ...]:
        return (functional.linear_pack(parameters["weight"], parameters.get("bias"), self._isa, kind),)

    def _current(self) -> tuple[Array, ...]:
        return self._pack_narrow("full", self._parameters)

    def _input(self, x: Any) -> Array:
        arguments.refuse_result("x", x)
        array = arguments.real("x", x, self.dtype)
        features = self._parameters["weight"].shape[1]
        if array.shape[-1:] != (features,):
            raise ValueError(
                f"x must have layout (..., in_features) with in_features={features}, got shape {array.shape}"
            )
        return array

    def _map(self, x: Array, *weights: Array) -> Array:
        return self._map_narrow("full", x, weights[-1])

    def _map_narrow(self, kind: str, x: Array, *weights: Any) -> Array:
        y = np.empty(arguments.countable("y", (*x.shape[:-1], len(self._parameters["weight"]))), x.dtype)
        if y.size:
            functional.linear_forward(_rows(x), weights[0], _rows(y), self._isa, kind)
        return y

    def _differentiate(self, dy: Array, parameters: dict[str, Array], x: Array, *weights: Array) -> Array:
        dx = np.empty(x.shape, x.dtype)
        if dx.size:
            dweight, dbias = parameters["weight"], parameters.get("bias")
            functional.linear_backward(_rows(x), weights[0], _rows(dy), _rows(dx), dweight, dbias, self._isa)
        return dx


class Embedding(Pointwise):
    """Table of vectors, looked up by integer ids: ``y = weight[x]``.

    Equivalent to ``torch.nn.Embedding``.

    Parameters
    ----------
    num_embeddings : int
        Number of rows of the table. Ids range from 0 to num_embeddings - 1.
    embedding_dim : int
        Length of a row.
    dtype : {numpy.float32, numpy.float64}, default numpy.float32
    rng : None, int or numpy.random.Generator
        Draws the initial parameters, standard normal as in torch.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        ``weight`` (num_embeddings, embedding_dim).

    Raises
    ------
    ValueError
        If an option is out of range.
    TypeError
        If an option has the wrong type.
    MemoryError
        If the table does not fit into memory.

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
        self._prepare()
        self.num_embeddings = arguments.size("num_embeddings", num_embeddings)
        self.embedding_dim = arguments.size("embedding_dim", embedding_dim)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.num_embeddings, self.embedding_dim)}
        self._draw(lambda _, shape: initializers.drawn(shape, self.dtype, self._rng.standard_normal), shapes)
        self._built = True

    @classmethod
    def _implied(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        num_embeddings, embedding_dim = _matrix(shapes)
        return {"num_embeddings": num_embeddings, "embedding_dim": embedding_dim}

    def _pack(self) -> tuple[Array, ...]:
        return tuple(self._parameters.values())  # not copied: rows are read from the table itself

    def _pack_narrow(self, kind: str, parameters: Mapping[str, Array]) -> tuple[Any, ...]:
        return (narrow.encode(kind, parameters["weight"]),)

    def _map_narrow(self, kind: str, x: Array, *weights: Any) -> Array:
        return narrow.decode(kind, {end: part[x] for end, part in weights[0].items()})

    def _input(self, x: Any) -> Array:
        ids = arguments.array("x", x)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"x must hold integer ids, but its dtype is {ids.dtype}")
        # Raises MemoryError now, before the ids are searched.
        np.empty(arguments.countable("y", (*ids.shape, self.embedding_dim)), self.dtype)
        ids = ids.copy()  # another thread may write to the argument after the check
        if ids.size and (ids.min() < 0 or ids.max() >= self.num_embeddings):
            wrong = ids[(ids < 0) | (ids >= self.num_embeddings)][0]
            raise ValueError(f"x must hold ids from 0 to num_embeddings - 1 = {self.num_embeddings - 1}, got {wrong}")
        return ids.astype(np.intp, copy=False)

    def _map(self, x: Array, *weights: Array) -> Array:
        y = np.empty((*x.shape, self.embedding_dim), self.dtype)
        ids, rows = x.reshape(-1), y.reshape(-1, self.embedding_dim)
        for part in initializers.blocks(ids.size, self.embedding_dim):
            # ids are valid, so the mode changes nothing but the speed.
            weights[0].take(ids[part], axis=0, out=rows[part], mode="clip")
        return y

    def _differentiate(self, dy: Array, parameters: dict[str, Array], x: Array, *_: Array) -> None:
        # Summing in float64 is accurate even if an id occurs a million times. Only rows that occur are updated.
        ids, dy, total = x.reshape(-1), _rows(dy), parameters["weight"]
        occurs = np.zeros(self.num_embeddings, bool)
        for part in initializers.blocks(ids.size):
            occurs[ids[part]] = True
        used = np.flatnonzero(occurs)
        place = np.empty(self.num_embeddings, np.intp)
        place[used] = own = np.arange(len(used))
        sums = np.zeros((self.embedding_dim, len(used)))
        for part in initializers.blocks(ids.size, least=len(used)):
            places = np.concatenate([own, place[ids[part]]])
            for column, values in zip(sums, dy[part].T, strict=True):
                column[...] = np.bincount(places, np.concatenate([column, values]))  # continues the sums, in order
        for part in initializers.blocks(len(used), self.embedding_dim):
            total[used[part]] = sums[:, part].T
