"""Estimators for sequences with scikit-learn's interface, trained by rnnfast.

`SequenceClassifier` and `SequenceRegressor` give an answer for each sequence, `SequenceTagger` one for each step, and
`SequenceForecaster` goes on where a series ends. They keep to scikit-learn's rules: pipelines, grid searches, cloning
and pickling work, and the first two pass ``sklearn.utils.estimator_checks.check_estimator``.

Sequences, X, come in one of three forms:

- an array (N, T, F): N sequences of T steps with F features each;
- a list of N arrays (T_i, F), or (T_i,) for one feature, of any lengths from 1 on;
- an array or DataFrame (N, T): N series of one feature. As scikit-learn wants it, predict then takes just as many
  columns, under the same names; series of other lengths are given as a list or as (N, T, 1).

Nested Python lists of equal lengths are such a table, unequal ones a list of series. Give arrays, or (N, T, 1), where
both may come. StandardScaler takes tables alone, so it does not work before sequences: ``standardize=True`` does that
work. GridSearchCV searches for a `SequenceTagger` by its own score; other scorers want one class for each row.

NaN is an error, as in most of scikit-learn. Inputs are standardized, one mean and deviation for each feature over all
steps of the training data, unless ``standardize=False``.

A fit with a `random_state` gives the same bits on every repeat, whatever the number of threads. Where all rows fit into
one batch, nor do their order and their division matter: a weight of 2 gives the bits of the row given twice. Not so
with ``early_stopping=True``, where rows are held out by their places.

Threads are rnnfast's. The processes of joblib (``GridSearchCV(..., n_jobs=2)``) are told by it how many each may use.

Examples
--------
Which of two events came last?

>>> import numpy as np
>>> from rnnfast.sklearn import SequenceClassifier
>>> rng = np.random.default_rng(0)
>>> X = [rng.integers(0, 2, (length, 1)) for length in rng.integers(1, 12, 200)]
>>> y = ["heads" if x[-1, 0] else "tails" for x in X]
>>> classifier = SequenceClassifier(cell="gru", hidden_size=8, max_epochs=30, random_state=0).fit(X[:150], y[:150])
>>> classifier.score(X[150:], y[150:])
1.0
>>> classifier.predict([[[0], [1]], [[1], [1], [0]]])
array(['heads', 'tails'], dtype='<U5')
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_array, check_consistent_length, check_random_state, column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("rnnfast.sklearn needs scikit-learn 1.6 or newer: pip install 'rnnfast[sklearn]'") from error

from . import arguments, threads, training
from .layers import GRU, LSTM, RNN, Linear

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

threads.register()  # scikit-learn brings threadpoolctl with it

__all__ = ["Diverged", "SequenceClassifier", "SequenceForecaster", "SequenceRegressor", "SequenceTagger"]

_CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
_STRUCTURE = (  # options that a network is built for
    "cell",
    "hidden_size",
    "num_layers",
    "bidirectional",
    "pooling",
    "standardize",
    "horizon",
    "window",
    "multivariate",
)
_ROWS = 256  # sequences that are run at a time where nothing is learnt
_BUCKET = 16  # batches whose sequences are sorted by length among each other


class Diverged(ValueError):
    """The loss or the parameters of a training are not finite any more."""


# ------------------------------------------------------------------------------------------------------- sequences


class _Sequences(NamedTuple):
    """N sequences, one behind the other."""

    flat: Array  # (sum of lengths, F)
    lengths: Array  # (N,)

    @classmethod
    def join(cls, arrays: list[Array]) -> _Sequences:
        return cls(np.concatenate(arrays), np.array([len(array) for array in arrays]))

    @property
    def starts(self) -> Array:
        return np.cumsum(self.lengths) - self.lengths

    def places(self, rows: Array) -> Array:
        """Where the steps of some rows lie in `flat`: (T, n), beyond a row's end its last step again."""
        lengths = self.lengths[rows]
        return self.starts[rows] + np.minimum(np.arange(lengths.max())[:, np.newaxis], lengths - 1)

    def split(self, flat: Array) -> list[Array]:
        """What belongs to each sequence, of an array in the order of `flat`."""
        return np.split(flat, self.starts[1:])

    def take(self, rows: Array) -> Array:
        """The places of all steps of some rows in `flat`."""
        starts, lengths = self.starts[rows], self.lengths[rows]
        return np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)


class _Examples(NamedTuple):
    """What is learnt from. Targets and weights are (N, ...), or where each step has one (sum of lengths, ...)."""

    sequences: _Sequences
    targets: Array
    weights: Array

    def select(self, rows: Array) -> _Examples:
        steps = self.sequences.take(rows)
        per_step = len(self.targets) != len(self.sequences.lengths)
        of_targets = steps if per_step else rows
        sequences = _Sequences(self.sequences.flat[steps], self.sequences.lengths[rows])
        return _Examples(sequences, self.targets[of_targets], self.weights[of_targets])

    def merge(self) -> _Examples:
        """Equal rows as one, of their weights' sum, in an order that does not depend on the one given."""
        per_step = len(self.targets) != len(self.sequences.lengths)
        targets = self.sequences.split(self.targets) if per_step else self.targets
        rows: dict[tuple[bytes, bytes], list[int]] = {}
        for row, x in enumerate(self.sequences.split(self.sequences.flat)):
            rows.setdefault((x.tobytes(), targets[row].tobytes()), []).append(row)
        groups = [rows[key] for key in sorted(rows)]
        merged = self.select(np.array([group[0] for group in groups]))
        weights = self.sequences.split(self.weights) if per_step else self.weights
        # One weight after the other, from the least: the same sum for any order of the rows.
        sums = [sum(sorted((weights[row] for row in group), key=np.max)) for group in groups]
        return merged._replace(weights=np.concatenate(sums) if per_step else np.array(sums))


def _refuse_dates(name: str, value: Any) -> None:
    dtype = getattr(value, "dtype", None)
    if getattr(dtype, "kind", None) in ("m", "M"):
        raise TypeError(f"{name} must hold real numbers, but its dtype is {dtype}")


def _list_of_sequences(X: Any) -> list[Array] | None:
    """X as a list of arrays (T_i,) or (T_i, F), where it is a list of sequences; None where it is one array."""
    if getattr(getattr(X, "dtype", None), "kind", None) == "O" and X.ndim == 1:
        X = list(X)  # an array or a pandas Series of arrays
    if not isinstance(X, (list, tuple)) or not len(X):
        return None
    try:
        even = len({np.shape(x) for x in X}) == 1
    except ValueError:
        raise ValueError("X must be a list of arrays (T_i, F), but the steps of a member differ in length") from None
    if even and not all(hasattr(x, "shape") and np.ndim(x) for x in X):
        return None  # nested lists, an array that is not one yet
    return [np.asarray(x) for x in X]


# ----------------------------------------------------------------------------------------------------- the engine


class _Network(BaseEstimator):  # type: ignore[misc]
    """A recurrent layer and a readout: what all estimators share, with the only loop that trains."""

    _argument = "X"  # what errors call the sequences

    def _keep(self, options: dict[str, Any]) -> None:
        """Set the arguments of the constructor, given as its locals(), as they are."""
        vars(self).update({name: value for name, value in options.items() if name != "self"})

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """An error on the way, or Ctrl-C, leaves the attributes, the parameters and the generator as they were."""
        before = vars(self).copy()
        layers = [before[name] for name in ("layer_", "readout_") if name in before]
        parameters = [layer.state_dict() for layer in layers]
        drawn = before["_rng"].bit_generator.state if layers else None
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            for layer, arrays in zip(layers, parameters, strict=True):
                layer.unfreeze()
                layer.load_state_dict(arrays)
                layer.freeze()
            if layers:
                self._rng.bit_generator.state = drawn
            raise

    def _check_options(self) -> None:
        arguments.choice("cell", self.cell, tuple(_CELLS))
        for name in ("hidden_size", "num_layers", "max_epochs", "batch_size", "n_iter_no_change"):
            arguments.size(name, getattr(self, name))
        for name in ("bidirectional", "early_stopping", "standardize"):
            arguments.flag(name, getattr(self, name))
        arguments.number("dropout", self.dropout, below=1)
        arguments.number("learning_rate", self.learning_rate, below=math.inf, positive=True)
        arguments.number("validation_fraction", self.validation_fraction, below=1, positive=True)
        arguments.number("tol", self.tol, below=math.inf)
        if self.clip is not None:
            arguments.number("clip", self.clip, below=math.inf, positive=True)
        if not isinstance(self.verbose, (bool, np.bool_)):
            arguments.size("verbose", self.verbose, least=0)
        try:
            check_random_state(self.random_state)
        except ValueError as error:
            raise ValueError(
                "random_state must be None, an integer from 0 to 2**32 - 1 or a numpy.random.RandomState, got "
                f"{self.random_state!r}"
            ) from error
        arguments.dtype(self.dtype)

    def _structure(self) -> dict[str, Any]:
        """The options that a network is built for, as they are now."""
        options = {name: getattr(self, name) for name in _STRUCTURE if hasattr(self, name)}
        return {**options, "dtype": arguments.dtype(self.dtype)}

    def _option(self, name: str) -> Any:
        """One of these, as it was when the network was built: set_params does not change the network."""
        return (self._built if hasattr(self, "_built") else self._structure())[name]

    def _require_structure(self) -> None:
        for name, value in self._structure().items():
            if value != self._option(name):
                raise ValueError(
                    f"{name} is {value!r}, but the network was built with {name}={self._option(name)!r}: call fit for "
                    f"a new one, or set {name} back before partial_fit"
                )

    # Hooks of the estimators.

    def _reads(self) -> str:
        """What the readout sees: the "last" state, the "mean" over the steps, or all "steps"."""
        return self._option("pooling")

    def _loss(self, output: Array, targets: Array, weights: Array) -> tuple[float, Array]:
        raise NotImplementedError

    def _evaluate(self, examples: _Examples) -> float:
        """The score of held-out examples, higher is better."""
        raise NotImplementedError

    def _passes(self, x: Array, lengths: Array) -> Iterator[tuple[slice, Array, Any, Any]]:
        """Runs of the layer over a batch, one for each update: their steps, y, state, tape."""
        yield slice(None), *self.layer_.forward(x, lengths=None if _even(lengths) else lengths)

    # Data.

    def _read(self, X: Any, reset: bool) -> _Sequences:
        """The sequences of X, checked, as they are."""
        real = {"dtype": (np.float64, np.float32)}
        members, table = _list_of_sequences(X), False
        if members is not None:
            wrong = [x.shape for x in members if x.ndim not in (1, 2) or not len(x)]
            if wrong:
                raise ValueError(
                    f"X must hold arrays (T_i, F) or (T_i,) of one step at least, got one of shape {wrong[0]}"
                )
            self._read_columns(X, reset)
            columns = [x if x.ndim == 2 else x[:, np.newaxis] for x in members]
            widths = sorted({x.shape[1] for x in columns})
            if len(widths) > 1:
                raise ValueError(f"X must hold sequences of one number of features, got {widths}")
            if widths == [0]:
                raise ValueError("X has 0 features, but sequences must have one at least")
            flat = check_array(np.concatenate(columns), input_name="X", **real)
            lengths = np.array([len(x) for x in columns])
        else:
            array = X if hasattr(X, "ndim") else np.asarray(X)
            if array.ndim < 2:
                raise ValueError(
                    f"X must be (N, T, F), (N, T), or a list of arrays (T_i, F) or (T_i,), got shape {array.shape}. "
                    "Reshape your data: one sequence alone is x[None] or [x]"
                )
            table = array.ndim < 3
            if not table:
                array = check_array(array, allow_nd=True, input_name="X", **real)
                if array.ndim != 3 or not array.shape[1]:
                    raise ValueError(f"X must be (N, T, F) with T >= 1, (N, T), or a list, got shape {array.shape}")
            elif reset or self._from_table:
                if not reset and not hasattr(X, "columns") and array.shape[1] != self.n_features_in_:
                    raise ValueError(
                        f"X has {array.shape[1]} features, but {type(self).__name__} is expecting "
                        f"{self.n_features_in_} features as input: fit got a table (N, T), as nested lists of equal "
                        "lengths are. For series of other lengths give arrays, or (N, T, 1)"
                    )
                array = validate_data(self, X, reset=reset, **real)[..., np.newaxis]
            else:
                array = check_array(X, input_name="X", **real)[..., np.newaxis]
            if not array.shape[2]:
                raise ValueError("X has 0 features, but sequences must have one at least")
            flat, lengths = array.reshape(-1, array.shape[2]), np.full(len(array), array.shape[1])
        if reset:
            self._from_table = table
            if not table:
                self.n_features_in_ = flat.shape[1]
                vars(self).pop("feature_names_in_", None)
            if members is None:
                self._columns = None
        elif flat.shape[1] != self.layer_.input_size:
            raise ValueError(
                f"X has {flat.shape[1]} features, but {type(self).__name__} is expecting {self.layer_.input_size} "
                "features as input"
                + (". A 2-D X holds a series in each row: one sequence is X[0][None] or [X[0]]" if table else "")
            )
        return _Sequences(flat, lengths)

    def _read_columns(self, members: Any, reset: bool) -> None:
        """Check the columns of a list of DataFrames: those of all, and those of fit."""
        names = {tuple(x.columns) for x in members if hasattr(x, "columns")}
        if not reset and getattr(self, "_columns", None):
            names |= {self._columns} if names else set()
        if len(names) > 1:
            raise ValueError(
                "X must hold DataFrames of the same columns in the same order, as in fit, got "
                f"{sorted(map(list, names), key=str)}"
            )
        if reset:
            self._columns = next(iter(names), None)

    def _scaled(self, sequences: _Sequences) -> _Sequences:
        return sequences._replace(
            flat=_standardized(self._argument, sequences.flat, self.mean_, self.scale_, self.layer_.dtype)
        )

    # The network.

    def _start(self, sequences: _Sequences, weights: Array, outputs: int, random: np.random.RandomState) -> None:
        """A network with fresh parameters, and the scale of its input; `weights` are of the steps."""
        features = sequences.flat.shape[1]
        self.mean_, self.scale_ = np.zeros(features), np.ones(features)
        if self.standardize:
            self.mean_, self.scale_ = _scale(sequences.flat, weights)
        self._built = self._structure()
        self._rng = np.random.default_rng(random.randint(np.iinfo(np.int32).max))
        self.layer_ = _CELLS[self.cell](
            features,
            self.hidden_size,
            self.num_layers,
            dropout=self.dropout if self.num_layers > 1 else 0.0,
            bidirectional=bool(self.bidirectional),
            dtype=self.dtype,
            rng=self._rng,
        )
        width = self.hidden_size * (1 + bool(self.bidirectional))
        self.readout_ = Linear(width, outputs, dtype=self.dtype, rng=self._rng)
        self._moments: dict[str, Array] | None = None
        self.n_iter_ = 0
        self.loss_curve_: list[float] = []
        self.validation_scores_: list[float] | None = None

    def _learn(self, examples: _Examples, held_out: _Examples | None, epochs: int) -> None:
        """Train on scaled examples, for so many epochs or until nothing improves."""
        examples = examples._replace(sequences=self._scaled(examples.sequences))
        if held_out is not None:
            held_out = held_out._replace(sequences=self._scaled(held_out.sequences))
            self.validation_scores_ = []
        self.loss_curve_ = list(self.loss_curve_)  # an error gives back the one before
        for layer in (self.layer_, self.readout_):
            layer.unfreeze()
        parameters = {**self.layer_.parameters, **self.readout_.parameters}
        adam = training.Adam(parameters, lr=self.learning_rate)
        if self._moments is not None:
            adam.load_state_dict(self._moments)
        best, kept, since = -math.inf, None, 0
        with self._bar(epochs) as bar:
            for _ in range(epochs):
                loss = self._epoch(examples, adam)
                # The last update comes after the last loss.
                if not (math.isfinite(loss) and all(np.isfinite(array).all() for array in parameters.values())):
                    what = "parameters after it are not finite" if math.isfinite(loss) else f"loss is {loss}"
                    raise Diverged(
                        f"epoch {self.n_iter_ + 1}: the {what}. Give a smaller learning_rate or clip, and inputs of "
                        "moderate size"
                    )
                self.n_iter_ += 1
                self.loss_curve_.append(loss)
                score, shown = -loss, {"loss": f"{loss:.4g}"}
                if held_out is not None:
                    score = self._evaluate(held_out)
                    self.validation_scores_.append(score)
                    shown["validation"] = f"{score:.4g}"
                if bar is not None:
                    bar.set_postfix(shown, refresh=False)
                    bar.update()
                since = 0 if score > best + self.tol else since + 1
                if score > best:
                    best = score
                    if held_out is not None:
                        kept = {name: array.copy() for name, array in parameters.items()}
                if since >= self.n_iter_no_change:
                    break
        for name, array in (kept or {}).items():
            parameters[name][...] = array
        self._moments = adam.state_dict()
        for layer in (self.layer_, self.readout_):
            layer.freeze()

    @contextlib.contextmanager
    def _bar(self, epochs: int) -> Iterator[Any]:
        if not self.verbose:
            yield None
            return
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("verbose=1 draws its bar with tqdm: pip install tqdm, or set verbose=0") from error
        with tqdm(total=epochs, desc=type(self).__name__, unit="epoch") as bar:
            yield bar

    def _epoch(self, examples: _Examples, adam: training.Adam) -> float:
        """One pass over all examples; the mean of the losses on the way."""
        total = positions = 0.0
        for rows in self._batches(examples.sequences.lengths):
            for loss, count in self._updates(examples, rows, adam):
                total += loss * count
                positions += count
        return total / positions

    def _batches(self, lengths: Array) -> Iterator[Array]:
        """The rows of each batch. Lengths within a batch are alike, which saves steps; all else is by chance."""
        if len(lengths) <= self.batch_size:
            yield np.arange(len(lengths))
            return
        order = self._rng.permutation(len(lengths))
        if not _even(lengths):
            size = _BUCKET * self.batch_size
            parts = [order[first : first + size] for first in range(0, len(order), size)]
            order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
        batches = [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
        for number in self._rng.permutation(len(batches)):
            yield batches[number]

    def _updates(self, examples: _Examples, rows: Array, adam: training.Adam) -> Iterator[tuple[float, int]]:
        """Update the parameters by a batch; loss and number of positions of each update."""
        sequences, targets, weights = examples
        lengths = sequences.lengths[rows]
        steps = self._reads() == "steps"
        places = sequences.places(rows)
        targets, weights = (array[places if steps else rows] for array in (targets, weights))
        inside = np.arange(len(places))[:, np.newaxis] < lengths
        for window, y, state, tape in self._passes(sequences.flat[places], lengths):
            features = self._pool(y, state, lengths)
            if self.dropout:
                kept = self._rng.random(features.shape, np.float32) >= self.dropout
                kept = np.multiply(kept, 1 / (1 - self.dropout), dtype=features.dtype)
                features = features * kept
            output, readout_tape = self.readout_.forward(features)
            count = len(rows)
            expected, factors = (targets[window], weights[window]) if steps else (targets, weights)
            if steps:
                count = int(inside[window].sum())
                factors = _where(inside[window], factors) * (inside[window].size / count)
                if not factors.any():
                    continue
            loss, doutput = self._loss(output, expected, factors)
            after = self.readout_.backward(readout_tape, doutput)
            dfeatures = after.x * kept if self.dropout else after.x
            before = self.layer_.backward(tape, *self._spread(dfeatures, y, state, lengths))
            gradients = {**before.parameters, **after.parameters}
            if self.clip is not None:
                training.clip_grad_norm(gradients, self.clip)
            adam.step(gradients)
            yield loss, count

    def _pool(self, y: Array, state: Any, lengths: Array) -> Array:
        """What the readout sees, (n, D*H), or of each step (T, n, D*H)."""
        reads = self._reads()
        if reads == "steps":
            return y
        if reads == "mean":
            return y.sum(axis=0) / lengths[:, np.newaxis].astype(y.dtype)
        return self._last(state)

    def _last(self, state: Any) -> Array:
        """h of the last layer, both directions side by side: (n, D*H)."""
        h = state[0] if isinstance(state, tuple) else state
        return h[-(1 + bool(self._option("bidirectional"))) :].transpose(1, 0, 2).reshape(h.shape[1], -1)

    def _spread(self, dfeatures: Array, y: Array, state: Any, lengths: Array) -> tuple[Array | None, Any]:
        """The gradients of y and of the state from that of what `_pool` gave."""
        reads = self._reads()
        if reads == "steps":
            return dfeatures, None
        if reads == "mean":
            return np.broadcast_to(dfeatures / lengths[:, np.newaxis].astype(y.dtype), y.shape), None
        pair = isinstance(state, tuple)
        dh = np.zeros_like(state[0] if pair else state)
        directions = 1 + bool(self._option("bidirectional"))
        dh[-directions:] = dfeatures.reshape(len(dfeatures), directions, -1).transpose(1, 0, 2)
        return None, (dh, None) if pair else dh

    def _outputs(self, sequences: _Sequences) -> Array:
        """What the readout gives for scaled sequences, (N, outputs), or for each step (sum of lengths, outputs)."""
        steps = self._reads() == "steps"
        count = len(sequences.flat if steps else sequences.lengths)
        outputs = np.empty((count, self.readout_.out_features), self.layer_.dtype)
        order = np.argsort(sequences.lengths, kind="stable")
        for first in range(0, len(order), _ROWS):
            rows = order[first : first + _ROWS]
            places, lengths = sequences.places(rows), sequences.lengths[rows]
            y, state = self.layer_(sequences.flat[places], lengths=None if _even(lengths) else lengths)
            output = self.readout_(self._pool(y, state, lengths))
            if steps:
                inside = np.arange(len(places))[:, np.newaxis] < lengths
                outputs[places[inside]] = output[inside]
            else:
                outputs[rows] = output
        return outputs


def _even(lengths: Array) -> bool:
    return bool((lengths == lengths[0]).all())


def _where(inside: Array, weights: Array) -> Array:
    """The weights of the steps that there are, zeros for the others."""
    return np.where(inside.reshape(inside.shape + (1,) * (weights.ndim - 2)), weights, 0)


def _scale(values: Array, weights: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column, 1 for one without spread."""
    values = values.astype(np.float64, copy=False)
    # In units of a power of two near the largest, which changes no bits, squares neither overflow nor vanish.
    exponents = np.frexp(np.abs(values).max(axis=0))[1]
    values = np.ldexp(values, -exponents)
    mean = np.average(values, axis=0, weights=weights)
    deviation = np.sqrt(np.average(np.square(values - mean), axis=0, weights=weights))
    # A constant column leaves rounding behind.
    spread = deviation > 1e-12 * np.abs(mean)
    return np.ldexp(mean, exponents), np.where(spread, np.ldexp(deviation, exponents), 1.0)


def _standardized(name: str, values: Array, mean: Array, scale: Array, dtype: np.dtype[Any]) -> Array:
    """The values as the network takes them."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = ((values - mean) / scale).astype(dtype)
    # The root, so that products with parameters stay finite as well.
    limit = math.sqrt(np.finfo(dtype).max)
    if not (np.abs(scaled) <= limit).all():
        raise ValueError(
            f"{name} holds numbers that are too large for dtype {np.dtype(dtype).name} after standardizing: they must "
            f"stay within {limit:.1g} deviations of the mean of the training data, or of 0 with standardize=False"
        )
    return scaled


class _Supervised(_Network):
    """What the estimators with targets share: fit and partial_fit."""

    def _targets(self, y: Any, sequences: _Sequences, first: bool) -> Array:
        """y as numbers to learn, one row for each sequence, or for each step."""
        raise NotImplementedError

    def _examples(self, sequences: _Sequences, targets: Array, weights: Array) -> _Examples:
        if self._reads() == "steps":
            weights = np.repeat(weights, sequences.lengths)
        return _Examples(sequences, targets, weights)

    def _weigh(self, examples: _Examples) -> _Examples:
        """Weights in the form of the loss, with those of the classes."""
        return examples

    def _input(self, X: Any, y: Any, sample_weight: Any, first: bool) -> _Examples:
        """All that was given, checked; rows of weight 0 are left out."""
        self._check_options()
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        sequences = self._read(X, reset=first)
        check_consistent_length(sequences.lengths, y)
        targets = self._targets(y, sequences, first)
        weights = _check_sample_weight(sample_weight, sequences.lengths, dtype=np.float64, ensure_non_negative=True)
        examples = self._examples(sequences, targets, weights)
        counted = np.flatnonzero(weights)
        if not len(counted):
            raise ValueError("sample_weight must contain a weight above zero")
        with np.errstate(over="ignore"):
            if not np.isfinite(weights.sum()):
                raise ValueError("sample_weight holds weights that are too large to be summed up")
        return examples if len(counted) == len(weights) else examples.select(counted)

    def _step_weights(self, examples: _Examples) -> Array:
        return examples.weights if self._reads() == "steps" else np.repeat(examples.weights, examples.sequences.lengths)

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> Any:
        with self._whole():
            self._fit_anew(X, y, sample_weight)
        return self

    def _fit_anew(self, X: Any, y: Any, sample_weight: Any) -> None:
        vars(self).pop("classes_", None)
        examples, held_out = self._input(X, y, sample_weight, first=True), None
        random = check_random_state(self.random_state)
        if self.early_stopping:
            rows = np.arange(len(examples.sequences.lengths))
            try:
                kept, out = train_test_split(
                    rows, test_size=self.validation_fraction, random_state=random, stratify=self._strata(examples)
                )
            except ValueError as error:
                raise ValueError(
                    f"early_stopping=True cannot hold out validation_fraction={self.validation_fraction} of "
                    f"{len(rows)} sequences: {error}"
                ) from error
            if len(out) < 2:
                raise ValueError(
                    f"validation_fraction={self.validation_fraction} holds out {len(out)} of {len(rows)} sequences, "
                    "but early_stopping=True needs two at least"
                )
            examples, held_out = examples.select(kept), examples.select(out)
        if len(examples.sequences.lengths) <= self.batch_size:
            examples = examples.merge()
        self._start(examples.sequences, self._step_weights(examples), self._width(examples), random)
        examples = self._weigh(examples)
        examples = examples._replace(weights=examples.weights / examples.weights.mean())
        self._learn(examples, held_out, self.max_epochs)

    def _go_on(self, X: Any, y: Any, sample_weight: Any) -> Any:
        """partial_fit: one epoch."""
        first = not hasattr(self, "layer_")
        with self._whole():
            examples = self._input(X, y, sample_weight, first)
            self._require_structure()
            if first:
                random = check_random_state(self.random_state)
                self._start(examples.sequences, self._step_weights(examples), self._width(examples), random)
            self._learn(self._weigh(examples), None, 1)
        return self

    def _width(self, examples: _Examples) -> int:
        """Outputs of the readout."""
        raise NotImplementedError

    def _strata(self, examples: _Examples) -> Array | None:  # noqa: ARG002
        """The classes that the held-out part shall have in the proportion of all."""
        return None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.three_d_array = True
        return tags


class _Labels(_Supervised):
    """What classifier and tagger share: classes."""

    def _encode(self, labels: Array) -> Array:
        if not hasattr(self, "classes_"):
            self.classes_ = np.unique(labels)
        places = np.minimum(np.searchsorted(self.classes_, labels), len(self.classes_) - 1)
        unknown = self.classes_[places] != labels
        if unknown.any():
            raise ValueError(f"y must hold classes of {self.classes_.tolist()}, got {labels[unknown].tolist()[0]!r}")
        return places

    def _width(self, examples: _Examples) -> int:  # noqa: ARG002
        return len(self.classes_)

    def _weigh(self, examples: _Examples) -> _Examples:
        factors = self._class_factors(examples)
        if factors is None:
            return examples
        with np.errstate(over="ignore"):
            weights = examples.weights * factors[examples.targets]
            total = weights.sum()
        if not 0 < total < math.inf:
            raise ValueError(f"class_weight gives weights whose sum is {total}: it must be above zero and finite")
        return examples._replace(weights=weights)

    def _class_factors(self, examples: _Examples) -> Array | None:
        if self.class_weight is None:
            return None
        if isinstance(self.class_weight, str):
            counts = np.bincount(examples.targets, examples.weights, len(self.classes_))
            return counts.sum() / (np.count_nonzero(counts) * np.where(counts > 0, counts, 1))
        unknown = [label for label in self.class_weight if label not in self.classes_.tolist()]
        if unknown:
            raise ValueError(f"class_weight must have keys of the classes {self.classes_.tolist()}, got {unknown[0]!r}")
        return np.array([float(self.class_weight.get(label, 1)) for label in self.classes_.tolist()])

    def _check_options(self) -> None:
        super()._check_options()
        weight = self.class_weight
        if not (weight is None or isinstance(weight, dict) or (isinstance(weight, str) and weight == "balanced")):
            raise ValueError(f"class_weight must be None, 'balanced' or a dict of weights by class, got {weight!r}")
        if isinstance(weight, dict):
            for label, factor in weight.items():
                arguments.number(f"class_weight[{label!r}]", factor, below=math.inf)

    def _go_on_with(self, X: Any, y: Any, classes: Any, sample_weight: Any) -> Any:
        """partial_fit, whose first call declares the classes."""
        first = not hasattr(self, "layer_")
        if isinstance(self.class_weight, str):
            raise ValueError("class_weight='balanced' needs all data at once: give partial_fit a dict of weights")
        if classes is None and first:
            raise ValueError("classes must be passed on the first call to partial_fit")
        with self._whole():
            if classes is not None:
                classes = np.unique(classes)
                if not len(classes) or (classes.dtype.kind == "f" and np.isnan(classes).any()):
                    raise ValueError(
                        f"classes must be all labels that y will hold, without NaN, got {classes.tolist()}"
                    )
                if not first and not np.array_equal(classes, self.classes_):
                    raise ValueError(
                        f"classes must be those of the first call, {self.classes_.tolist()}, got {classes.tolist()}"
                    )
                self.classes_ = classes
            return self._go_on(X, y, sample_weight)

    def _loss(self, output: Array, targets: Array, weights: Array) -> tuple[float, Array]:
        return training.softmax_cross_entropy(output, targets, weights=weights)

    def _evaluate(self, examples: _Examples) -> float:
        chosen = self._outputs(examples.sequences).argmax(axis=1)
        return float(accuracy_score(examples.targets, chosen, sample_weight=examples.weights))

    def _probabilities(self, X: Any) -> tuple[_Sequences, Array]:
        check_is_fitted(self, "layer_")
        sequences = self._read(X, reset=False)
        outputs = self._outputs(self._scaled(sequences)).astype(np.float64)
        outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return sequences, outputs / outputs.sum(axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------------------- estimators


class SequenceClassifier(ClassifierMixin, _Labels):  # type: ignore[misc]
    """A class for each sequence: a recurrent layer, read off at its end, and a softmax.

    Trained with Adam on the cross-entropy.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn"}
        The layer: :class:`rnnfast.LSTM`, :class:`rnnfast.GRU` or :class:`rnnfast.RNN`.
    hidden_size : int, default 32
        Units of a layer, in each direction.
    num_layers : int, default 1
        Layers on top of each other.
    bidirectional : bool, default False
        Whether the layers run in both directions.
    pooling : {"last", "mean"}
        What is read off: the last state, each direction's own, or the mean of the outputs over the steps.
    dropout : float from 0 on, below 1, default 0
        The fraction that is dropped between layers, and of what is read off, in training.
    learning_rate : float, default 0.01
        Adam's.
    max_epochs : int, default 100
        Passes over the data at most.
    batch_size : int, default 64
        Sequences in a batch. Those of a batch are of similar lengths; batches come in random order.
    early_stopping : bool, default False
        Hold a part of the sequences out, stop when their score does not improve any more, and take the parameters
        that scored best. When False, it is the training loss that ends a fit.
    validation_fraction : float between 0 and 1, default 0.1
        The part that is held out with `early_stopping`; classes keep their proportions in it.
    n_iter_no_change : int, default 10
        The patience: training ends after so many epochs in a row whose score did not exceed the best by `tol`.
    tol : float, default 1e-4
    clip : float or None, default 1
        Bound of the norm of all gradients together; None: no bound.
    class_weight : dict, "balanced" or None, default None
        Factors of the loss by class; classes that are not in the dict have 1. "balanced" is the inverse of the
        frequency, sample weights counted in. They are scaled so that the mean over the training data is 1.
    standardize : bool, default True
        Whether each feature of X is brought to mean 0 and deviation 1, by all steps of the training data; for
        ``partial_fit`` by the data of its first call.
    verbose : int, default 0
        1: a bar with loss and validation score, drawn by tqdm.
    random_state : int, RandomState or None, default None
        Drives initial values, order, dropout and what is held out.
    dtype : {"float32", "float64"}
        In which the network is computed.

    Attributes
    ----------
    classes_ : ndarray
    layer_ : rnnfast.LSTM, GRU or RNN
        Frozen: ``layer_.save(path)`` and streams work.
    readout_ : rnnfast.Linear
    mean_, scale_ : ndarray (features,)
        What X is standardized by.
    n_features_in_ : int
        F, or the number of columns where X was 2-D.
    feature_names_in_ : ndarray of str
        Where X was a DataFrame.
    n_iter_ : int
        Epochs.
    loss_curve_ : list of float
        The mean loss of each epoch, on the way.
    validation_scores_ : list of float or None
        The accuracy of the held-out part after each epoch; None without `early_stopping`.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.sklearn import SequenceClassifier
    >>> X = np.random.default_rng(0).normal(size=(60, 5, 2))
    >>> y = X[:, 0, 0] > 0
    >>> classifier = SequenceClassifier(hidden_size=8, random_state=0).fit(X, y)
    >>> classifier.predict_proba(X).shape, classifier.score(X, y) > 0.95
    ((60, 2), True)
    """

    def __init__(
        self,
        cell: str = "lstm",
        *,
        hidden_size: int = 32,
        num_layers: int = 1,
        bidirectional: bool = False,
        pooling: str = "last",
        dropout: float = 0.0,
        learning_rate: float = 0.01,
        max_epochs: int = 100,
        batch_size: int = 64,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        clip: float | None = 1.0,
        class_weight: dict[Any, float] | str | None = None,
        standardize: bool = True,
        verbose: int = 0,
        random_state: Any = None,
        dtype: Any = "float32",
    ) -> None:
        self._keep(locals())

    def _check_options(self) -> None:
        super()._check_options()
        arguments.choice("pooling", self.pooling, ("last", "mean"))

    def _targets(self, y: Any, sequences: _Sequences, first: bool) -> Array:  # noqa: ARG002
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        return self._encode(y)

    def _strata(self, examples: _Examples) -> Array | None:
        return examples.targets

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SequenceClassifier:
        """Train on all data, from fresh parameters.

        Parameters
        ----------
        X : sequences
            In one of the forms that :mod:`rnnfast.sklearn` lists.
        y : array_like (N,)
            The class of each.
        sample_weight : array_like (N,), optional
            Factors of the loss, from 0 on. Rows of weight 0 are left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            When an option or an argument is not as above, or the loss is not finite any more. The estimator is as it
            was before.
        """
        return self._fit(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> SequenceClassifier:
        """Train one epoch on these data, from where the last fit or partial_fit ended, Adam's averages included.

        Parameters
        ----------
        X, y, sample_weight
            As for ``fit``. Weights are not scaled.
        classes : array_like, needed in the first call
            All that y will ever hold.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            As ``fit``, and with ``class_weight="balanced"``.
        """
        return self._go_on_with(X, y, classes, sample_weight)

    def predict_proba(self, X: Any) -> Array:
        """The probabilities of the classes, in the order of ``classes_``: (N, number of classes), float64."""
        return self._probabilities(X)[1]

    def predict(self, X: Any) -> Array:
        """The most probable class of each sequence: (N,)."""
        chosen = self.predict_proba(X).argmax(axis=1)
        return self.classes_[chosen]


class SequenceRegressor(RegressorMixin, _Supervised):  # type: ignore[misc]
    """A number, or several, for each sequence: a recurrent layer, read off at its end.

    Trained with Adam on the squared error of the targets, which are brought to mean 0 and deviation 1 within.

    Parameters
    ----------
    cell, hidden_size and all other options
        As for :class:`SequenceClassifier`. What is held out with `early_stopping` is scored by R².

    Attributes
    ----------
    target_mean_, target_scale_ : ndarray (K,)
        What y is standardized by.
    layer_, readout_ and all others
        As for :class:`SequenceClassifier`.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.sklearn import SequenceRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.normal(size=length) for length in rng.integers(1, 9, 300)]
    >>> y = [x.sum() for x in X]
    >>> SequenceRegressor(random_state=0).fit(X, y).score(X, y) > 0.95
    True
    """

    def __init__(
        self,
        cell: str = "lstm",
        *,
        hidden_size: int = 32,
        num_layers: int = 1,
        bidirectional: bool = False,
        pooling: str = "last",
        dropout: float = 0.0,
        learning_rate: float = 0.01,
        max_epochs: int = 100,
        batch_size: int = 64,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        clip: float | None = 1.0,
        standardize: bool = True,
        verbose: int = 0,
        random_state: Any = None,
        dtype: Any = "float32",
    ) -> None:
        self._keep(locals())

    def _check_options(self) -> None:
        super()._check_options()
        arguments.choice("pooling", self.pooling, ("last", "mean"))

    def _targets(self, y: Any, sequences: _Sequences, first: bool) -> Array:  # noqa: ARG002
        _refuse_dates("y", y)
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        if first:
            self._single = y.ndim == 1
        y = y[:, np.newaxis] if y.ndim == 1 else y
        if not first and y.shape[1] != self.readout_.out_features:
            raise ValueError(
                f"y must have {self.readout_.out_features} targets, as in the first call, got {y.shape[1]}"
            )
        return y

    def _width(self, examples: _Examples) -> int:
        self.target_mean_, self.target_scale_ = _scale(examples.targets, examples.weights)
        return examples.targets.shape[1]

    def _weigh(self, examples: _Examples) -> _Examples:
        targets = _standardized("y", examples.targets, self.target_mean_, self.target_scale_, self.layer_.dtype)
        weights = np.broadcast_to(examples.weights[:, np.newaxis], targets.shape)
        return examples._replace(targets=targets, weights=weights)

    def _loss(self, output: Array, targets: Array, weights: Array) -> tuple[float, Array]:
        return training.mean_squared_error(output, targets, weights)

    def _evaluate(self, examples: _Examples) -> float:
        targets = _standardized("y", examples.targets, self.target_mean_, self.target_scale_, np.float64)
        return float(r2_score(targets, self._outputs(examples.sequences), sample_weight=examples.weights))

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SequenceRegressor:
        """Train on all data, from fresh parameters.

        Parameters
        ----------
        X : sequences
            In one of the forms that :mod:`rnnfast.sklearn` lists.
        y : array_like (N,) or (N, K)
            The target, or the K targets, of each.
        sample_weight : array_like (N,), optional
            Factors of the loss, from 0 on. Rows of weight 0 are left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            When an option or an argument is not as above, or the loss is not finite any more. The estimator is as it
            was before.
        """
        return self._fit(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> SequenceRegressor:
        """Train one epoch on these data, from where the last fit or partial_fit ended, Adam's averages included.

        Parameters
        ----------
        X, y, sample_weight
            As for ``fit``. Weights are not scaled; the first call's data set the scales of X and y.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            As ``fit``.
        """
        return self._go_on(X, y, sample_weight)

    def predict(self, X: Any) -> Array:
        """The targets, in the form of y in fit: (N,) or (N, K), float64."""
        check_is_fitted(self, "layer_")
        sequences = self._read(X, reset=False)
        outputs = self._outputs(self._scaled(sequences)) * self.target_scale_ + self.target_mean_
        return outputs[:, 0] if self._single else outputs

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R², for several targets the mean of theirs, of targets of any size."""
        check_is_fitted(self, "layer_")
        # A power of two changes no bits, and keeps the squares from overflow.
        exponent = -int(np.frexp(self.target_scale_.max())[1])
        y = np.ldexp(check_array(y, ensure_2d=False, dtype=np.float64, input_name="y"), exponent)
        return float(r2_score(y, np.ldexp(self.predict(X), exponent), sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class SequenceTagger(_Labels):
    """A class for each step of a sequence: a recurrent layer, by default in both directions, and a softmax.

    To scikit-learn it is no classifier, as those have one class for each row.

    Parameters
    ----------
    cell, hidden_size and all options that are not below
        As for :class:`SequenceClassifier`. All steps weigh the same, whatever the length of their sequence; what is
        held out with `early_stopping` are whole sequences.
    bidirectional : bool, default True
        With False a tag depends on the steps before it alone.

    Attributes
    ----------
    classes_, layer_, readout_ and all others
        As for :class:`SequenceClassifier`.

    Examples
    --------
    Whether the next step is larger:

    >>> import numpy as np
    >>> from rnnfast.sklearn import SequenceTagger
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.normal(size=length) for length in rng.integers(2, 9, 200)]
    >>> y = [np.append(np.where(x[1:] > x[:-1], "up", "down"), "end") for x in X]
    >>> tagger = SequenceTagger(hidden_size=16, random_state=0).fit(X, y)
    >>> tagger.score(X, y) > 0.95
    True
    >>> tagger.predict([np.array([0.0, 2.0, -2.0])])
    [array(['up', 'down', 'end'], dtype='<U4')]
    """

    def __init__(
        self,
        cell: str = "lstm",
        *,
        hidden_size: int = 32,
        num_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
        learning_rate: float = 0.01,
        max_epochs: int = 100,
        batch_size: int = 64,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        clip: float | None = 1.0,
        class_weight: dict[Any, float] | str | None = None,
        standardize: bool = True,
        verbose: int = 0,
        random_state: Any = None,
        dtype: Any = "float32",
    ) -> None:
        self._keep(locals())

    def _reads(self) -> str:
        return "steps"

    def _targets(self, y: Any, sequences: _Sequences, first: bool) -> Array:  # noqa: ARG002
        return self._encode(_flat_labels(y, sequences))

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SequenceTagger:
        """Train on all data, from fresh parameters.

        Parameters
        ----------
        X : sequences
            In one of the forms that :mod:`rnnfast.sklearn` lists.
        y : array_like (N, T), or list of array_like (T_i,)
            The class of each step.
        sample_weight : array_like (N,), optional
            Factors of the loss, from 0 on. Rows of weight 0 are left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            When an option or an argument is not as above, or the loss is not finite any more. The estimator is as it
            was before.
        """
        return self._fit(X, y, sample_weight)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> SequenceTagger:
        """Train one epoch on these data, as :meth:`SequenceClassifier.partial_fit` does."""
        return self._go_on_with(X, y, classes, sample_weight)

    def predict_proba(self, X: Any) -> Any:
        """The probabilities of the classes at each step: (N, T, number of classes), for a list X a list of arrays."""
        sequences, probabilities = self._probabilities(X)
        return _like(X, sequences, probabilities)

    def predict(self, X: Any) -> Any:
        """The most probable class of each step: (N, T), for a list X a list of arrays (T_i,)."""
        sequences, probabilities = self._probabilities(X)
        return _like(X, sequences, self.classes_[probabilities.argmax(axis=1)])

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The fraction of steps that get the right class; `sample_weight` (N,) weighs the sequences' steps."""
        sequences, probabilities = self._probabilities(X)
        check_consistent_length(sequences.lengths, y, sample_weight)
        weights = _check_sample_weight(sample_weight, sequences.lengths, dtype=np.float64, ensure_non_negative=True)
        weights = np.repeat(weights, sequences.lengths)
        chosen = self.classes_[probabilities.argmax(axis=1)]
        return float(accuracy_score(_flat_labels(y, sequences), chosen, sample_weight=weights))


def _flat_labels(y: Any, sequences: _Sequences) -> Array:
    """The labels of all steps, one behind the other."""
    rows = [np.asarray(labels) for labels in (y if isinstance(y, (list, tuple)) else np.asarray(y))]
    for number, (labels, length) in enumerate(zip(rows, sequences.lengths, strict=True)):
        if labels.shape != (length,):
            raise ValueError(
                f"y must hold a label for each step: X[{number}] has {length} steps, but y[{number}] has shape "
                f"{labels.shape}"
            )
    if len({labels.dtype.kind in "US" for labels in rows}) > 1 and all(labels.dtype != object for labels in rows):
        raise TypeError("y must hold strings or numbers, got some sequences of either")
    labels = column_or_1d(np.concatenate(rows))
    check_classification_targets(labels)
    return labels


def _like(X: Any, sequences: _Sequences, flat: Array) -> Any:
    """Values of all steps in the form of X: a list for a list, else an array (N, T, ...)."""
    if isinstance(X, (list, tuple)) or not _even(sequences.lengths):
        return sequences.split(flat)
    return flat.reshape(len(sequences.lengths), -1, *flat.shape[1:])


class SequenceForecaster(_Network):
    """What follows a series: a recurrent layer that goes along it and tells the next steps.

    After each step the network gives the next `horizon` steps; it is trained on all of them with Adam and the squared
    error. Forecasts further ahead go on from the forecasts.

    A recurrent network knows only the values that it has seen: take differences of a series with a trend
    (``differences=1``) or a season (``differences=12``), so that what it has to tell stays where it was.

    A series is (T,), or (T, F) with F variables, all of which are forecast. Given are one, (T,); or several, as (N, T),
    as (N, T, F) or as a list of any lengths; or with `multivariate` one, (T, F).

    Parameters
    ----------
    cell, hidden_size and all options that are not below
        As for :class:`SequenceClassifier`. `standardize` works on the differences, with one mean and deviation for
        each variable over all series. A batch holds so many series, or windows. The layer runs forwards only.
    horizon : int, default 1
        How many steps the network gives at once.
    window : int or None, default None
        With a number, each forecast looks at so many steps, from a fresh state. None: the state is carried along the
        whole series.
    differences : int or tuple of int, default ()
        Lags of the differences that are taken, one after the other, before anything else: x[t] - x[t - lag].
        Forecasts are summed up again.
    multivariate : bool, default False
        How a 2-D array is read: as (N, T), a series in each row, or when True as one series (T, F).
    bptt_steps : int, default 50
        With ``window=None``: steps over which gradients go back, and after which the parameters are updated
        (:func:`rnnfast.training.truncated_bptt`).
    early_stopping : bool, default True
        Hold the last part of each series out, stop when the error of its forecasts (the squared error of the next
        `horizon` steps, scaled) does not improve, and take the best parameters. :meth:`predict_interval` needs it.
    validation_fraction : float between 0 and 1, default 0.2
        The part of each series that is held out. No parameter is learnt from it; forecasts go on from it nonetheless.

    Attributes
    ----------
    series_ : list of ndarray (T_i, F)
        All that is known of the series, which forecasts go on from. They are pickled with the forecaster.
    layer_, readout_, mean_, scale_, n_iter_, loss_curve_
        As for :class:`SequenceClassifier`.
    n_features_in_ : int
        F.
    validation_scores_ : list of float or None
        Minus the error of the held-out part after each epoch.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.sklearn import SequenceForecaster
    >>> months = np.arange(240)
    >>> sales = 0.5 * months + 10 * np.sin(2 * np.pi * months / 12)
    >>> forecaster = SequenceForecaster(differences=12, random_state=0).fit(sales[:204])
    >>> bool(np.abs(forecaster.predict(36) - sales[204:]).max() < 0.5)
    True
    >>> lower, upper = forecaster.predict_interval(12, coverage=0.8)
    >>> lower.shape, bool((lower <= upper).all())
    ((12,), True)
    """

    bidirectional = False  # the future is not known
    _argument = "series"

    def __init__(
        self,
        cell: str = "lstm",
        *,
        horizon: int = 1,
        window: int | None = None,
        differences: int | tuple[int, ...] = (),
        multivariate: bool = False,
        bptt_steps: int = 50,
        hidden_size: int = 32,
        num_layers: int = 1,
        dropout: float = 0.0,
        learning_rate: float = 0.01,
        max_epochs: int = 100,
        batch_size: int = 64,
        early_stopping: bool = True,
        validation_fraction: float = 0.2,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        clip: float | None = 1.0,
        standardize: bool = True,
        verbose: int = 0,
        random_state: Any = None,
        dtype: Any = "float32",
    ) -> None:
        self._keep(locals())

    def _check_options(self) -> None:
        super()._check_options()
        arguments.size("horizon", self.horizon)
        arguments.size("bptt_steps", self.bptt_steps)
        arguments.flag("multivariate", self.multivariate)
        if self.window is not None:
            arguments.size("window", self.window)
        for lag in self._lags():
            arguments.size("differences, its lags,", lag)

    def _lags(self) -> tuple[int, ...]:
        lags = self.differences
        return tuple(lags) if isinstance(lags, (tuple, list, np.ndarray)) else (lags,)

    def _structure(self) -> dict[str, Any]:
        return {**super()._structure(), "differences": self._lags()}

    def _reads(self) -> str:
        return "steps" if self._option("window") is None else "last"

    def _loss(self, output: Array, targets: Array, weights: Array) -> tuple[float, Array]:
        return training.mean_squared_error(output, targets, weights)

    def _evaluate(self, examples: _Examples) -> float:
        squares = np.square(self._outputs(examples.sequences) - examples.targets, dtype=np.float64)
        return -float(np.average(squares, weights=examples.weights))

    def _passes(self, x: Array, lengths: Array) -> Iterator[tuple[slice, Array, Any, Any]]:
        if self._option("window") is not None:
            return super()._passes(x, lengths)
        return training.truncated_bptt(self.layer_, x, self.bptt_steps)

    def _read_series(self, series: Any) -> tuple[list[Array], tuple[bool, bool]]:
        """The series, each (T_i, F), and whether the caller gave several, and with an axis of features."""
        real = {"ensure_2d": False, "allow_nd": True, "dtype": np.float64, "input_name": "series"}
        members = _list_of_sequences(series)
        for x in [series] if members is None else members:
            _refuse_dates("series", x)
        if members is not None:
            several, features = True, members[0].ndim == 2
            members = [check_array(x, **real) for x in members]
        else:
            array = check_array(series, **real)
            several = array.ndim > 2 or (array.ndim == 2 and not self._option("multivariate"))
            features = array.ndim > 2 or (array.ndim == 2 and self._option("multivariate"))
            members = list(array) if several else [array]
        for x in members:
            if x.ndim != 1 + features or not x.size:
                raise ValueError(
                    "series must be one (T,), several (N, T), (N, T, F) or a list of (T_i,) or (T_i, F), or with "
                    f"multivariate=True one (T, F); got a member of shape {x.shape}"
                )
        checked = [x if features else x[:, np.newaxis] for x in members]
        width = self.n_features_in_ if hasattr(self, "layer_") else checked[0].shape[1]
        for x in checked:
            if x.shape[1] != width:
                raise ValueError(f"series must have {width} features in each, got {x.shape[1]}")
        return checked, (several, features)

    def _require(self, series: list[Array], held_out: list[int]) -> None:
        horizon = self._option("horizon")
        window = self._option("window")
        lags, context = sum(self._option("differences")), window or 1
        for number, (x, out) in enumerate(zip(series, held_out, strict=True)):
            least = lags + context + horizon
            if len(x) - out < least:
                raise ValueError(
                    f"series {number} has {len(x)} steps, {out} of them held out, but at least {least} are needed to "
                    f"learn from: {lags} for differences, {context} to look at, {horizon} for horizon. (A 2-D "
                    "array holds one series in each row, unless multivariate=True)"
                )

    def _examples(self, series: list[Array], since: list[int]) -> _Examples:
        """Inputs, and as targets the `horizon` steps that follow each, from a step `since` on; not scaled."""
        H, lags, window = self._option("horizon"), self._option("differences"), self._option("window")
        inputs, targets, weights = [], [], []
        for x, first in zip(series, since, strict=True):
            z = _difference(x, lags)[-1]
            steps = np.arange(1, len(z))[:, np.newaxis] + np.arange(H)
            counts = (steps < len(z)) & (steps + sum(lags) >= first)
            ahead = z[np.minimum(steps, len(z) - 1)].reshape(len(steps), -1)
            weight = np.repeat(counts, z.shape[1], axis=1).astype(np.float64)
            if window is None:
                inputs.append(z[:-1])
            else:
                rows = np.flatnonzero(counts.any(axis=1) & (np.arange(len(steps)) + 1 >= window))
                inputs.extend(z[row + 1 - window : row + 1] for row in rows)
                ahead, weight = ahead[rows], weight[rows]
            targets.append(ahead)
            weights.append(weight)
        return _Examples(_Sequences.join(inputs), np.concatenate(targets), np.concatenate(weights))

    def _scaled_targets(self, examples: _Examples) -> _Examples:
        mean, scale = (np.tile(array, self._option("horizon")) for array in (self.mean_, self.scale_))
        return examples._replace(targets=_standardized("series", examples.targets, mean, scale, self.layer_.dtype))

    def _begin(self, series: list[Array], form: tuple[bool, bool]) -> None:
        """A fresh network for these series."""
        self.n_features_in_ = series[0].shape[1]
        sequences = _Sequences.join([_difference(x, self._option("differences"))[-1] for x in series])
        random = check_random_state(self.random_state)
        self._start(sequences, np.ones(len(sequences.flat)), self._option("horizon") * self.n_features_in_, random)
        self._form = form

    def fit(self, series: Any, y: Any = None) -> SequenceForecaster:  # noqa: ARG002
        """Train on one series or several, from fresh parameters.

        Parameters
        ----------
        series : array_like or list of array_like
            In one of the forms above.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            When an option or the form is not as above, a series is too short, holds NaN or infinity, or the loss is not
            finite any more. The forecaster is as it was before.
        """
        self._check_options()
        with self._whole():
            for name in ("layer_", "_built"):
                vars(self).pop(name, None)
            series, form = self._read_series(series)
            out = [max(1, round(self.validation_fraction * len(x))) if self.early_stopping else 0 for x in series]
            self._require(series, out)
            known = [x[: len(x) - count] for x, count in zip(series, out, strict=True)]
            self._begin(known, form)
            examples, held_out = self._scaled_targets(self._examples(known, [0] * len(known))), None
            if self.early_stopping:
                held_out = self._scaled_targets(self._examples(series, [len(x) for x in known]))
            self._learn(examples, held_out, self.max_epochs)
            self.series_ = series
            self._held_out = [(len(x), len(whole)) for x, whole in zip(known, series, strict=True)]
        return self

    def partial_fit(self, series: Any, y: Any = None) -> SequenceForecaster:  # noqa: ARG002
        """Append new observations, as :meth:`update`, and train one epoch on them, Adam's averages carried on.

        The state runs through all that is known, so time goes with the length of the series. In the first call on a
        forecaster without a fit, the series are new, and nothing is held out.

        Parameters
        ----------
        series
            As for ``fit``, as many as are known, each of one step at least.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            As ``fit``.
        """
        self._check_options()
        with self._whole():
            if hasattr(self, "layer_"):
                self._require_structure()
                before = [len(x) for x in self.series_]
                self.update(series)
            else:
                new, form = self._read_series(series)
                before = [0] * len(new)
                self._require(new, before)
                self._begin(new, form)
                self.series_, self._held_out = new, [(len(x), len(x)) for x in new]
            self._learn(self._scaled_targets(self._examples(self.series_, before)), None, 1)
        return self

    def update(self, series: Any) -> SequenceForecaster:
        """Append new observations to the known series, which forecasts then go on from. Nothing is learnt.

        Parameters
        ----------
        series
            As many as are known, in the form that they had in ``fit``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            When the form is another, or NaN comes.
        """
        check_is_fitted(self, "layer_")
        new, form = self._read_series(series)
        self._require_form(new, form)
        self.series_ = [np.concatenate(pair) for pair in zip(self.series_, new, strict=True)]
        return self

    def _require_form(self, series: list[Array], form: tuple[bool, bool]) -> None:
        if form[0] != self._form[0] or len(series) != len(self.series_):
            raise ValueError(
                f"series must go on with the {len(self.series_)} known, in the form that they had in fit, got "
                f"{len(series)}"
            )

    def predict(self, horizon: int | None = None, series: Any = None) -> Array:
        """The next steps.

        Parameters
        ----------
        horizon : int, optional
            How many; the option `horizon`, as it is now, where it is not given. The network goes on in blocks of the
            horizon that it was fitted with.
        series : optional
            Other series to go on from, in one of the forms above. The known ones where it is not given.

        Returns
        -------
        ndarray of float64
            (horizon,) for one series (T,), (horizon, F) for (T, F), (N, horizon) or (N, horizon, F) for several.

        Raises
        ------
        ValueError, TypeError
            When `horizon` is no positive integer, or `series` is too short or of another number of variables.
        """
        check_is_fitted(self, "layer_")
        known, form = (self.series_, self._form) if series is None else self._read_series(series)
        self._require_history(known)
        steps = self._ahead(horizon)
        return _in_form(self._forecast(known, [[len(x)] for x in known], steps), form)

    def _ahead(self, horizon: int | None) -> int:
        """How many steps are asked for."""
        if np.ndim(horizon):
            raise TypeError(
                "horizon must be an integer, got an array: predict takes a number of steps first, and another series "
                "to go on from as predict(series=...)"
            )
        return arguments.size("horizon", self.horizon if horizon is None else horizon)

    def predict_interval(self, horizon: int | None = None, coverage: float = 0.9) -> tuple[Array, Array]:
        """Bounds between which each of the next steps lies with the given probability, about.

        Split-conformal: forecasts are made from the origins within the part that fit held out, 256 of each series at
        most, and the absolute errors of each step ahead, of all series together, give the half width of the interval:
        of n errors the one of rank ceil((n + 1) coverage). The coverage would be exact for errors that are
        exchangeable; those of one series depend on each other, and the held-out part has chosen the epoch, so it is
        approximate. It holds for each step by itself, not for all of them at once.

        Source: J. Lei et al., "Distribution-free predictive inference for regression", 2018.

        Parameters
        ----------
        horizon
            As for :meth:`predict`.
        coverage : float between 0 and 1, default 0.9

        Returns
        -------
        lower, upper : ndarray
            Each as from :meth:`predict`.

        Raises
        ------
        ValueError
            When what was held out has too few steps for `horizon` and `coverage`, or nothing was.
        """
        check_is_fitted(self, "layer_")
        steps = self._ahead(horizon)
        arguments.number("coverage", coverage, below=1, positive=True)
        origins = [_spaced(first, last) for first, last in self._held_out]
        count = sum(
            sum(origin + steps <= last for origin in own)
            for own, (_, last) in zip(origins, self._held_out, strict=True)
        )
        rank = math.ceil((count + 1) * coverage)
        if rank > count:
            raise ValueError(
                f"horizon={steps} leaves {count} held-out forecasts to measure, too few for coverage={coverage}: fit "
                "with early_stopping=True and a larger validation_fraction, or ask for less"
            )
        forecasts = self._forecast(self.series_, origins, steps)
        truths, within = [], []
        for x, own, (_, last) in zip(self.series_, origins, self._held_out, strict=True):
            for origin in own:
                places = origin + np.arange(steps)
                truths.append(x[np.minimum(places, last - 1)])
                within.append(places < last)
        errors, within = np.abs(np.array(truths) - forecasts), np.array(within)
        radius = np.empty(errors.shape[1:])
        for step in range(steps):
            measured = np.sort(errors[within[:, step], step], axis=0)
            radius[step] = measured[math.ceil((len(measured) + 1) * coverage) - 1]
        center = self._forecast(self.series_, [[len(x)] for x in self.series_], steps)
        return _in_form(center - radius, self._form), _in_form(center + radius, self._form)

    def score(self, series: Any, y: Any = None) -> float:  # noqa: ARG002
        """Minus the mean absolute error of the forecasts of what followed the known series.

        Parameters
        ----------
        series
            What followed, in the form of the series in ``fit``: ``TimeSeriesSplit`` gives it so for one series.
        y : ignored

        Returns
        -------
        float
            At most 0; 0 is best.
        """
        check_is_fitted(self, "layer_")
        truth, form = self._read_series(series)
        self._require_form(truth, form)
        longest = max(map(len, truth))
        forecasts = self._forecast(self.series_, [[len(x)] for x in self.series_], longest)
        errors = [np.abs(x - ahead[: len(x)]) for x, ahead in zip(truth, forecasts, strict=True)]
        return -float(np.mean(np.concatenate(errors)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.three_d_array = True
        return tags

    def _require_history(self, series: list[Array]) -> None:
        least = sum(self._option("differences")) + (self._option("window") or 1)
        for number, x in enumerate(series):
            if len(x) < least:
                raise ValueError(f"series must have {least} steps to go on from, but series {number} has {len(x)}")

    def _forecast(self, series: list[Array], origins: list[list[int]], steps: int) -> Array:
        """What follows the first `origin` steps, for each origin of each series: (all origins, steps, F)."""
        window = self._option("window")
        horizon = self._option("horizon")
        lags = self._option("differences")
        states, recent, tails = [], [], [[] for _ in lags]
        for x, own in zip(series, origins, strict=True):
            levels = _difference(x, lags)
            z = _standardized("series", levels[-1], self.mean_, self.scale_, self.layer_.dtype)
            state, done = None, 0
            for origin in own:
                end = origin - sum(lags)
                begin = done if window is None else end - window
                _, state = self.layer_(z[begin:end, np.newaxis], state if window is None else None)
                done = end
                states.append(state)
                recent.append(z[begin:end])
                for level, lag, tail, before in zip(levels, lags, tails, np.cumsum((0, *lags)), strict=False):
                    tail.append(level[origin - before - lag : origin - before])
        pair = isinstance(states[0], tuple)
        state = (
            tuple(np.concatenate(part, axis=1) for part in zip(*states, strict=True))
            if pair
            else np.concatenate(states, axis=1)
        )
        blocks: list[Array] = []
        while True:
            block = self.readout_(self._last(state)).reshape(len(recent), horizon, -1)
            blocks.append(block)
            if horizon * len(blocks) >= steps:
                break
            x = block
            if window is not None:
                x = np.concatenate([np.array(recent), *blocks], axis=1)[:, -window:]
                state = None
            _, state = self.layer_(np.ascontiguousarray(x.transpose(1, 0, 2)), state)
        ahead = np.concatenate(blocks, axis=1)[:, :steps] * self.scale_ + self.mean_
        for lag, tail in zip(reversed(lags), reversed(tails), strict=True):
            known = np.concatenate([np.array(tail), ahead], axis=1)
            for step in range(lag, known.shape[1]):
                known[:, step] += known[:, step - lag]
            ahead = known[:, lag:]
        return ahead


def _spaced(first: int, last: int) -> list[int]:
    """At most _ROWS of the origins from first to last - 1, evenly spaced."""
    return sorted({*np.linspace(first, last - 1, min(_ROWS, last - first)).round().astype(int).tolist()})


def _difference(x: Array, lags: tuple[int, ...]) -> list[Array]:
    """The series, and each difference of the one before: x[t] - x[t - lag]."""
    levels = [x]
    with np.errstate(over="ignore", invalid="ignore"):
        for lag in lags:
            levels.append(levels[-1][lag:] - levels[-1][:-lag])
    if not np.isfinite(levels[-1]).all():
        raise ValueError("series holds numbers that are too large to take differences of")
    return levels


def _in_form(forecasts: Array, form: tuple[bool, bool]) -> Array:
    """(N, steps, F) without the axes that the series were given without."""
    several, features = form
    forecasts = forecasts if features else forecasts[..., 0]
    return forecasts if several else forecasts[0]
