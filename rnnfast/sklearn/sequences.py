"""Sequences of different lengths in one array: reading X, selecting rows, padding batches, standardizing features."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from .. import arguments
from .._types import Array

DTYPES = (np.float64, np.float32)  # of X, before standardizing; other dtypes become float64
# The square root of the largest finite value, so that products of standardized values and parameters stay finite.
LIMITS = {dtype: math.sqrt(np.finfo(dtype).max) for dtype in arguments.DTYPES}


class Sequences(NamedTuple):
    """N sequences, concatenated along time."""

    flat: Array  # (sum of lengths, F)
    lengths: Array  # (N,)

    @classmethod
    def join(cls, arrays: list[Array]) -> Sequences:
        return cls(np.concatenate(arrays), np.array([len(array) for array in arrays]))

    @property
    def starts(self) -> Array:
        starts: Array = np.cumsum(self.lengths) - self.lengths
        return starts

    def padded_indices(self, rows: Array) -> Array:
        """Return the indices into `flat` of a padded batch of `rows`, (T, n); padding repeats a row's last step."""
        lengths = self.lengths[rows]
        indices: Array = self.starts[rows] + np.minimum(np.arange(lengths.max())[:, np.newaxis], lengths - 1)
        return indices

    def indices(self, rows: Array) -> Array:
        """Return the indices into `flat` of all steps of `rows`, row after row."""
        starts, lengths = self.starts[rows], self.lengths[rows]
        indices: Array = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        return indices

    def split(self, flat: Array) -> list[Array]:
        """Split an array in the order of `flat` into one array for each sequence."""
        return np.split(flat, self.starts[1:])


class Examples(NamedTuple):
    """Training examples. Targets and weights are (N, ...), or (sum of lengths, ...) with a target for each step."""

    sequences: Sequences
    targets: Array
    weights: Array

    def _per_step(self) -> bool:
        return len(self.targets) != len(self.sequences.lengths)

    def select(self, rows: Array) -> Examples:
        steps = self.sequences.indices(rows)
        of_targets = steps if self._per_step() else rows
        sequences = Sequences(self.sequences.flat[steps], self.sequences.lengths[rows])
        return Examples(sequences, self.targets[of_targets], self.weights[of_targets])

    def merge(self) -> Examples:
        """Merge equal rows into one with the sum of their weights, in an order independent of theirs."""
        per_step = self._per_step()
        targets = self.sequences.split(self.targets) if per_step else self.targets
        inputs = self.sequences.split(self.sequences.flat)
        rows: dict[tuple[bytes, bytes], list[int]] = {}
        for row, x in enumerate(inputs):
            rows.setdefault((x.tobytes(), targets[row].tobytes()), []).append(row)
        # The numeric order of the values does not depend on their units, unlike that of their bytes.
        groups = sorted(rows.values(), key=lambda group: (inputs[group[0]].tolist(), targets[group[0]].tolist()))
        merged = self.select(np.array([group[0] for group in groups]))
        weights = self.sequences.split(self.weights) if per_step else self.weights
        # Adding the weights in ascending order makes the rounding independent of the order of the rows.
        sums = [sum(sorted((weights[row] for row in group), key=np.max)) for group in groups]
        return merged._replace(weights=np.concatenate(sums) if per_step else np.array(sums))


def equal(lengths: Array) -> bool:
    """Return whether all sequences have the same length."""
    return bool((lengths == lengths[0]).all())


class Scale(NamedTuple):
    """How columns are standardized: ``(values - offset - mean) / deviation``, and 0 in a column without spread.

    The offset is a value of the column, or 0 if the column has both signs. Subtracting it first is exact for values
    that are close together, so that a large common offset costs no accuracy. Scaling by powers of two is exact, and
    prevents overflow.
    """

    offset: Array
    mean: Array  # of values - offset
    deviation: Array  # 0 in a column without spread

    @classmethod
    def identity(cls, columns: int) -> Scale:
        return cls(np.zeros(columns), np.zeros(columns), np.ones(columns))

    @classmethod
    def of(cls, values: Array, weights: Array, rounding: Array | None = None) -> Scale:
        """Return the scale that gives each column the weighted mean 0 and standard deviation 1.

        A column has no spread if its values differ from their mean by at most `rounding`, the error of each value; by
        default one unit in the last place of the largest.
        """
        one_sign = (values.min(axis=0) > 0) | (values.max(axis=0) < 0)
        offset = np.where(one_sign, values[0], 0).astype(np.float64)
        constant = cls(offset, np.zeros_like(offset), np.zeros_like(offset))
        distances, exponents = constant._distances(values)
        mean = np.ldexp(np.average(distances, axis=0, weights=_normal(weights)), exponents)
        return constant._replace(mean=mean).extended(values, weights, rounding)

    def extended(self, values: Array, weights: Array, rounding: Array | None = None) -> Scale:
        """Return the scale after more data: a column without spread so far gets the deviation from its mean so far."""
        distances, exponents = self._distances(values)
        deviation = np.sqrt(np.average(np.square(distances), axis=0, weights=_normal(weights)))
        if rounding is None:
            rounding = np.abs(values).max(axis=0) * np.finfo(values.dtype).eps
        with np.errstate(over="ignore"):  # without spread, or in columns that keep their deviation
            spread = (np.abs(distances) > np.ldexp(rounding, -exponents)).any(axis=0) & (self.deviation == 0)
            return self._replace(deviation=np.where(spread, np.ldexp(deviation, exponents), self.deviation))

    def _distances(self, values: Array) -> tuple[Array, Array]:
        """Return the distances from the mean, scaled so that their squares stay in range, and the exponents for it."""
        exponents = np.frexp(np.abs([values.min(axis=0), values.max(axis=0), self.offset, self.mean]).max(axis=0))[1]
        return self._centred(values, exponents), exponents

    def _centred(self, values: Array, exponents: Array) -> Array:
        centred: Array = np.ldexp(values.astype(np.float64, copy=False), -exponents)
        centred -= np.ldexp(self.offset, -exponents)
        centred -= np.ldexp(self.mean, -exponents)
        return centred

    def standardize(self, name: str, values: Array, dtype: np.dtype[Any]) -> Array:
        """Return the standardized values as `dtype`. Raise if one is too large for it."""
        fraction, exponents = np.frexp(self.deviation)
        with np.errstate(over="ignore", invalid="ignore"):
            centred = self._centred(values, exponents)
            scaled = np.divide(centred, fraction, out=np.zeros_like(centred), where=fraction != 0)
            scaled = scaled.astype(dtype, copy=False)
        if not np.abs(scaled).max() <= LIMITS[dtype]:
            raise ValueError(
                f"{name} has values that are too large for dtype {np.dtype(dtype).name} after standardizing: they must "
                f"be within {LIMITS[dtype]:.1g} standard deviations of the mean of the training data (with "
                "standardize=False, of 0)"
            )
        return scaled

    def restore(self, scaled: Array) -> Array:
        """Return the values of standardized ones, in float64: the inverse of `standardize`."""
        fraction, exponents = np.frexp(self.deviation)
        values = scaled * fraction + np.ldexp(self.mean, -exponents) + np.ldexp(self.offset, -exponents)
        restored: Array = np.ldexp(values, exponents)
        return restored

    def repeated(self, times: int) -> Scale:
        """Return the scale of `times` copies of the columns, side by side."""
        return Scale(*(np.tile(part, times) for part in self))


def _normal(weights: Array) -> Array:
    """Return the weights divided by a power of two near the largest, so that none of their products underflows."""
    normal: Array = np.ldexp(weights, -np.frexp(weights.max())[1])
    return normal


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Let the errors of scikit-learn's and NumPy's checks name the argument, and silence overflow in their sums."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            yield
    except (TypeError, ValueError, OverflowError) as error:
        if re.search(rf"\b{name}\b", str(error)):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} cannot be read: {error}") from error


def real(name: str, value: Any) -> Any:
    """Return an argument, as an array unless it has a shape.

    Raise for masked elements, dates and structures, which scikit-learn's checks would convert to numbers.
    """
    if not hasattr(value, "ndim"):
        value = arguments.array(name, value)
    arguments.refuse_masked(name, value)
    for dtype in value.dtypes if hasattr(value, "columns") else [getattr(value, "dtype", None)]:
        if getattr(dtype, "kind", None) in ("m", "M", "V"):
            raise TypeError(f"{name} must hold real numbers, got dtype {dtype}")
    return value


def real_array(name: str, value: Any, **options: Any) -> Array:
    """Return an argument as an array of real numbers, checked by scikit-learn."""
    with reading(name):
        array: Array = check_array(real(name, value), ensure_2d=False, input_name=name, **options)
    return array


def list_of_sequences(name: str, X: Any) -> list[Array] | None:
    """Return X as a list of arrays (T_i,) or (T_i, F) if it is a list of sequences, or None if it is one array."""
    if getattr(getattr(X, "dtype", None), "kind", None) == "O" and X.ndim == 1:
        X = list(X)  # an object array or pandas Series of arrays
    if not isinstance(X, (list, tuple)) or not len(X):
        return None
    try:
        one_shape = len({np.shape(x) for x in X}) == 1
    except ValueError:
        raise ValueError(
            f"{name} must be a list of arrays (T_i, F), but the steps of one sequence differ in length"
        ) from None
    if one_shape and not all(hasattr(x, "shape") and np.ndim(x) for x in X):
        return None  # nested lists that form one array
    return [np.asarray(real(name, x)) for x in X]


class SequenceInput(BaseEstimator):
    """Base class that reads X and remembers its form: a table, or sequences of `n_features_in_` features."""

    _columns: tuple[Any, ...] | None  # of the DataFrames in a list

    def _read(self, X: Any, reset: bool) -> Sequences:
        """Return the sequences of X, validated but not standardized; `reset` is True on the first call of a fit."""
        members, table = list_of_sequences("X", X), False
        if members is None:
            with reading("X"):
                X = real("X", X)
                table = X.ndim < 3
                array = self._read_array(X, reset)
            sequences = Sequences(array.reshape(-1, array.shape[2]), np.full(len(array), array.shape[1]))
        else:
            self._check_columns(X, reset)
            with reading("X"):
                sequences = _join_members(members)
        features = sequences.flat.shape[1]
        if reset:
            self._from_table = table
            if not table:
                self.n_features_in_ = features
                self.__dict__.pop("feature_names_in_", None)
            if members is None:
                self._columns = None
        elif features != self.layer_.input_size:
            raise ValueError(
                f"X has {features} features, but {type(self).__name__} is expecting {self.layer_.input_size} features "
                "as input"
                + (
                    ". A 2-D X holds one sequence in each row: pass a single one as X[0][None] or [X[0]]"
                    if table
                    else ""
                )
            )
        return sequences

    def _read_array(self, X: Any, reset: bool) -> Array:
        """Return X, an array or DataFrame, as an array (N, T, F)."""
        if X.ndim < 2:
            raise ValueError(
                "X must have shape (N, T, F) or (N, T), or be a list of arrays of shape (T_i, F) or (T_i,), got shape "
                f"{X.shape}. Reshape your data: pass a single sequence x as x[None] or [x]"
            )
        if X.ndim > 2:
            array: Array = check_array(X, allow_nd=True, input_name="X", dtype=DTYPES)
            if array.ndim != 3 or not array.shape[1]:
                raise ValueError(f"X must have shape (N, T, F) with T >= 1, or (N, T), or be a list, got {array.shape}")
        elif reset or self._from_table:
            if not reset and not hasattr(X, "columns") and X.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X has {X.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                    "features as input, because X in fit was a table (N, T) or nested lists of equal lengths. For "
                    "sequences of other lengths, pass arrays or shape (N, T, 1) to fit"
                )
            array = validate_data(self, X, reset=reset, dtype=DTYPES)[..., np.newaxis]
        else:
            array = check_array(X, input_name="X", dtype=DTYPES)[..., np.newaxis]
        if not array.shape[2]:
            raise ValueError(f"X must have at least one feature, got shape {array.shape}")
        return array

    def _check_columns(self, members: Any, reset: bool) -> None:
        """Check that the DataFrames in a list have the same columns as each other and as the list in fit."""
        names = {tuple(x.columns) for x in members if hasattr(x, "columns")}
        known = None if reset else getattr(self, "_columns", None)
        if names and known:
            names.add(known)
        if len(names) > 1:
            raise ValueError(
                "all DataFrames in X must have the same columns in the same order as in fit, got "
                f"{sorted(map(list, names), key=str)}"
            )
        if reset:
            self._columns = next(iter(names), None)


def _join_members(members: list[Array]) -> Sequences:
    for number, x in enumerate(members):
        if x.ndim not in (1, 2) or not len(x):
            raise ValueError(f"X[{number}] must have shape (T, F) or (T,) with T >= 1, got shape {x.shape}")
    columns = [x if x.ndim == 2 else x[:, np.newaxis] for x in members]
    widths = sorted({x.shape[1] for x in columns})
    if len(widths) > 1:
        raise ValueError(f"all sequences in X must have the same number of features, got {widths}")
    if widths == [0]:
        raise ValueError(f"X must have at least one feature, got sequences of shape {members[0].shape}")
    flat = check_array(np.concatenate(columns), input_name="X", dtype=DTYPES)
    return Sequences(flat, np.array([len(x) for x in columns]))
