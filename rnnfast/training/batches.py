"""Mini-batches: of sequences of similar lengths, or those that a function yields."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import arguments
from .._types import Array
from .arrays import layers_of

BUCKET = 16  # number of mini-batches whose sequences are sorted by length together


class Batch(NamedTuple):
    """A mini-batch in the layout of the model."""

    x: Any
    target: Any
    options: Mapping[str, Any] = {}  # further arguments of the model, such as lengths
    mask: Array | None = None  # of the steps with targets, for the loss; None if all are valid
    weight: int = 1  # in the mean loss: the number of valid targets


class Examples:
    """Sequences and targets, from which mini-batches are made."""

    def __init__(self, name: str, data: Any, model: Any, per_step: bool | None) -> None:
        x, target = arguments.pair(name, data, "(x, target)")
        self._rows = [arguments.array(f"{name}[0][{k}]", row) for k, row in enumerate(x)]
        if not self._rows:
            raise ValueError(f"{name} must hold at least one sequence, got none")
        shape = self._rows[0].shape[1:]
        for k, row in enumerate(self._rows):
            if row.ndim != self._rows[0].ndim or row.shape[1:] != shape:
                raise ValueError(
                    f"{name}[0] must hold sequences with the same features, but sequence 0 has shape "
                    f"{self._rows[0].shape} and sequence {k} has shape {row.shape}"
                )
        if len(target) != len(self):
            raise ValueError(f"{name} must hold one target for each of the {len(self)} sequences, got {len(target)}")
        layers = layers_of(model).values()
        self._steps = steps = self._rows[0].ndim > 0 and any(hasattr(layer, "batch_first") for layer in layers)
        pools = any(getattr(layer, "reduces_steps", False) for layer in layers)
        self.lengths = np.array([len(row) if steps else 1 for row in self._rows])
        self._targets = targets = [arguments.array(f"{name}[1][{k}]", row) for k, row in enumerate(target)]
        fits = all(row.ndim > 0 and len(row) == length for row, length in zip(targets, self.lengths, strict=True))
        self.per_step = steps and fits and not pools if per_step is None else per_step
        if self.per_step and not fits:
            raise ValueError(f"{name}[1] must hold a target for each step of each sequence, because per_step=True")
        self._lengths_taken, self._lengths_needed = _lengths_argument(model)
        if not self._lengths_taken and len(set(self.lengths.tolist())) > 1:
            raise ValueError(
                f"{name}[0] holds sequences of different lengths, but the model takes no lengths: define "
                "call(self, x, lengths=None), and pass them to its layers"
            )
        self._time_first = steps and not getattr(model, "batch_first", False)
        if not self.per_step and len({row.shape for row in targets}) > 1:
            raise ValueError(
                f"{name}[1] must hold targets of equal shapes, or for each sequence one target per step; got shapes "
                f"{', '.join(sorted({str(row.shape) for row in targets})[:3])}"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def subset(self, which: Array) -> Examples:
        """Return some of the examples."""
        other = object.__new__(Examples)
        other.__dict__.update(self.__dict__)
        other.lengths = self.lengths[which]
        other._rows, other._targets = ([rows[k] for k in which] for rows in (self._rows, self._targets))
        return other

    def batch(self, which: Array) -> Batch:
        lengths = self.lengths[which]
        x = self._stacked([self._rows[k] for k in which], self._steps)
        target = self._stacked([self._targets[k] for k in which], self.per_step)
        weight = int(lengths.sum()) if self.per_step else len(which)
        equal = bool((lengths == lengths[0]).all())
        options = {"lengths": lengths} if self._steps and (self._lengths_needed or not equal) else {}
        if equal or not self.per_step:
            return Batch(x, target, options, weight=weight)
        valid = np.arange(lengths.max())[:, np.newaxis] < lengths
        return Batch(x, target, options, valid if self._time_first else valid.T, weight)

    def batches(self, order: Callable[..., Iterator[Array]], *options: Any) -> Iterator[Batch]:
        """Return all examples in mini-batches, in the order of `shuffled` or `by_length`."""
        return map(self.batch, order(self.lengths, *options))

    def _stacked(self, rows: list[Array], steps: bool) -> Array:
        """Return rows as one array. Sequences are padded with zeros, and in the layout of the model."""
        if not steps:
            return np.stack(rows)
        longest = max(map(len, rows))
        stacked = np.zeros((len(rows), longest, *rows[0].shape[1:]), np.result_type(*rows))
        for row, out in zip(rows, stacked, strict=True):
            out[: len(row)] = row
        return stacked.swapaxes(0, 1) if self._time_first else stacked


def _lengths_argument(model: Any) -> tuple[bool, bool]:
    """Return whether a model takes lengths, and whether it needs them."""
    parameters = inspect.signature(model.call if hasattr(model, "call") else model.forward).parameters
    if "lengths" not in parameters:
        return any(one.kind is one.VAR_KEYWORD for one in parameters.values()), False
    return True, parameters["lengths"].default is inspect.Parameter.empty


def shuffled(lengths: Array, batch_size: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield the indices of random mini-batches, whose sequences are of similar lengths to avoid padding."""
    if len(lengths) <= batch_size:
        yield np.arange(len(lengths))
        return
    order = rng.permutation(len(lengths))
    if (lengths != lengths[0]).any():
        parts = [order[first : first + BUCKET * batch_size] for first in range(0, len(order), BUCKET * batch_size)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    for number in rng.permutation(len(batches)):
        yield batches[number]


def by_length(lengths: Array, batch_size: int) -> Iterator[Array]:
    """Return the indices of mini-batches of sequences in the order of their lengths, for evaluation."""
    order = np.argsort(lengths, kind="stable")
    return (order[first : first + batch_size] for first in range(0, len(order), batch_size))


def sources(
    model: Any, data: Any, validation: Any, batch_size: int, rng: np.random.Generator, per_step: bool | None
) -> tuple[Callable[[], Iterator[Batch]], Callable[[], Iterator[Batch]] | None]:
    """Return a function that yields the batches of an epoch, and one that yields those for validation or None."""
    examples = None if callable(data) else Examples("data", data, model, per_step)
    held_out: Examples | None = None
    if isinstance(validation, numbers.Real):
        arguments.number("validation", validation, below=1, positive=True)
        if examples is None or len(examples) < 2:
            raise ValueError("validation can be a fraction only of data that hold at least two sequences")
        order = rng.permutation(len(examples))
        size = min(max(1, round(float(validation) * len(examples))), len(examples) - 1)
        examples, held_out = examples.subset(order[size:]), examples.subset(order[:size])
    elif validation is not None and not callable(validation):
        held_out = Examples("validation", validation, model, examples.per_step if examples else per_step)
    training = partial(examples.batches, shuffled, batch_size, rng) if examples else partial(_custom, "data", data, rng)
    if held_out or validation is None:
        return training, partial(held_out.batches, by_length, batch_size) if held_out else None
    return training, partial(_custom, "validation", validation, rng)


def _custom(name: str, function: Callable[..., Any], rng: np.random.Generator) -> Iterator[Batch]:
    """Yield the batches that a function of the caller yields."""
    for batch in function(rng):
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            raise TypeError(f"a batch of {name} must be (x, target) or (x, target, options), got {batch!r:.80}")
        x, target, *options = batch
        weight = 1 if isinstance(target, tuple) else max(1, np.size(target))
        yield Batch(x, target, options[0] if options else {}, None, weight)
