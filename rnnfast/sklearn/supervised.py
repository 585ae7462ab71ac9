"""Estimators with one target for each sequence, and the base classes of all estimators with targets."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from .. import arguments, training
from .._types import Array
from .network import Network
from .sequences import Examples, Scale, Sequences, reading, real, real_array


def check_weights(sample_weight: Any, lengths: Array) -> Array:
    """Return the weights of the sequences, at least 0; all 1 if `sample_weight` is None."""
    if sample_weight is not None:
        sample_weight = real("sample_weight", sample_weight)
    with reading("sample_weight"):
        weights: Array = _check_sample_weight(sample_weight, lengths, dtype=np.float64, ensure_non_negative=True)
    return weights


class Supervised(Network):
    """Base class of the estimators with targets: fit and partial_fit."""

    def _targets(self, y: Any, sequences: Sequences, first: bool) -> Array:
        """Return y as numbers, one row for each sequence or for each step."""
        raise NotImplementedError

    def _output_size(self, examples: Examples) -> int:
        """Return the number of outputs of the readout, after setting the scale of the targets if they have one."""
        raise NotImplementedError

    def _weigh(self, examples: Examples) -> Examples:
        """Return the examples with the weights that the loss uses, including class weights."""
        raise NotImplementedError

    def _strata(self, examples: Examples) -> Array | None:  # noqa: ARG002
        """Return the classes whose proportions the held-out set keeps."""
        return None

    def _input(self, X: Any, y: Any, sample_weight: Any, first: bool) -> Examples:
        """Validate all arguments; return the examples with a weight above 0."""
        self._check_options()
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        sequences = self._read(X, reset=first)
        check_consistent_length(sequences.lengths, y)
        targets = self._targets(y, sequences, first)
        weights = check_weights(sample_weight, sequences.lengths)
        with np.errstate(over="ignore"):
            if not np.isfinite(weights.sum()):
                raise ValueError("sample_weight is too large: the sum of the weights must be finite")
        rows = np.flatnonzero(weights)
        if not len(rows):
            raise ValueError("sample_weight is 0 for all sequences, but at least one must have a weight above 0")
        everything = len(rows) == len(weights)
        if self._pooling() == "steps":
            weights = np.repeat(weights, sequences.lengths)
        examples = Examples(sequences, targets, weights)
        return examples if everything else examples.select(rows)

    def _build_for(self, examples: Examples, random: np.random.RandomState) -> None:
        self._build(examples.sequences, self._weights_of_steps(examples), self._output_size(examples), random)

    def _weights_of_steps(self, examples: Examples) -> Array:
        return (
            examples.weights if self._pooling() == "steps" else np.repeat(examples.weights, examples.sequences.lengths)
        )

    def _extend_scales(self, examples: Examples) -> None:
        """Set the scale of what has had no spread so far."""
        if hasattr(self, "embedding_"):
            return
        self._set_scale(self._scale.extended(examples.sequences.flat, self._weights_of_steps(examples)))

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train from fresh parameters.

        Parameters
        ----------
        X : sequences
            In one of the forms that :mod:`rnnfast.sklearn` lists.
        y : array_like
            The targets. For a classifier, the class of each sequence, (N,). For a regressor, one or K targets for each
            sequence, (N,) or (N, K). For a tagger, the class of each step, (N, T) or a list of array_like (T_i,).
        sample_weight : array_like (N,), optional
            Factors of the loss of each sequence, at least 0. Sequences with weight 0 are left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If an option or an argument is invalid. The estimator is left unchanged.
        Diverged
            If the loss or the parameters are no longer finite. The estimator is left unchanged.
        """
        with self._restored_on_error():
            self.__dict__.pop("classes_", None)
            examples, held_out = self._input(X, y, sample_weight, first=True), None
            random = check_random_state(self.random_state)
            if self.early_stopping:
                examples, held_out = self._hold_out(examples, random)
            if len(examples.sequences.lengths) <= self.batch_size:
                examples = examples.merge()
            self._build_for(examples, random)
            examples = self._weigh(examples)
            examples = examples._replace(weights=examples.weights / examples.weights.mean())
            self._train(examples, held_out, self.max_epochs)
        return self

    def _hold_out(self, examples: Examples, random: np.random.RandomState) -> tuple[Examples, Examples]:
        """Split the examples into those to train on and the held-out set."""
        rows = np.arange(len(examples.sequences.lengths))
        fraction = f"validation_fraction={self.validation_fraction}"
        try:
            kept, out = train_test_split(
                rows, test_size=self.validation_fraction, random_state=random, stratify=self._strata(examples)
            )
        except ValueError as error:
            raise ValueError(
                f"early_stopping=True cannot hold out {fraction} of {len(rows)} sequences: {error}"
            ) from error
        if len(out) < 2:
            raise ValueError(
                f"{fraction} holds out {len(out)} of {len(rows)} sequences, but early_stopping=True needs at least 2: "
                "increase validation_fraction"
            )
        return examples.select(kept), examples.select(out)

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any) -> Self:
        first = not hasattr(self, "layer_")
        with self._restored_on_error():
            examples = self._input(X, y, sample_weight, first)
            self._require_structure()
            if first:
                self._build_for(examples, check_random_state(self.random_state))
            else:
                self._extend_scales(examples)
            self._train(self._weigh(examples), None, 1)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.three_d_array = True
        tags.input_tags.string = self.embedding is not None
        return tags


class Labels(Supervised):
    """Base class of the classifier and the tagger: targets are classes."""

    def _encode(self, labels: Array) -> Array:
        """Return the index of each label in `classes_`, which the first call sets."""
        with reading("y"):
            if not hasattr(self, "classes_"):
                self.classes_ = np.unique(labels)
            indices = np.minimum(np.searchsorted(self.classes_, labels), len(self.classes_) - 1)
        unknown = self.classes_[indices] != labels
        if unknown.any():
            raise ValueError(
                f"y has the label {labels[unknown].tolist()[0]!r}, which is not one of the classes "
                f"{self.classes_.tolist()}: pass all classes to the first call of partial_fit"
            )
        return indices

    def _output_size(self, examples: Examples) -> int:  # noqa: ARG002
        return len(self.classes_)

    def _weigh(self, examples: Examples) -> Examples:
        factors = self._class_factors(examples)
        if factors is None:
            return examples
        with np.errstate(over="ignore"):
            weights = examples.weights * factors[examples.targets]
            total = weights.sum()
        if not 0 < total < math.inf:
            raise ValueError(f"class_weight gives weights with the sum {total}, which must be above 0 and finite")
        return examples._replace(weights=weights)

    def _class_factors(self, examples: Examples) -> Array | None:
        if self.class_weight is None:
            return None
        if isinstance(self.class_weight, str):
            counts = np.bincount(examples.targets, examples.weights, len(self.classes_))
            inverse: Array = counts.sum() / (np.count_nonzero(counts) * np.where(counts > 0, counts, 1))
            return inverse
        classes = self.classes_.tolist()
        unknown = [label for label in self.class_weight if label not in classes]
        if unknown:
            raise ValueError(f"class_weight has the key {unknown[0]!r}, which is not one of the classes {classes}")
        return np.array([float(self.class_weight.get(label, 1)) for label in classes])

    def _check_options(self) -> None:
        super()._check_options()
        weight = self.class_weight
        if not (weight is None or isinstance(weight, dict) or (isinstance(weight, str) and weight == "balanced")):
            raise ValueError(f"class_weight must be None, 'balanced' or a dict of weights by class, got {weight!r}")
        if isinstance(weight, dict):
            for label, factor in weight.items():
                arguments.number(f"class_weight[{label!r}]", factor, below=math.inf)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch, continuing from the last fit or partial_fit with the state of Adam.

        Parameters
        ----------
        X, y, sample_weight
            As for ``fit``, but weights are not scaled to a mean of 1. The scale of a feature is set by the first data
            in which it changes.
        classes : array_like
            All labels that y can contain. Required in the first call, optional later.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            As for ``fit``, and with ``class_weight="balanced"``, which needs all data at once.
        """
        first = not hasattr(self, "layer_")
        if isinstance(self.class_weight, str):
            raise ValueError("class_weight='balanced' needs all data at once: use a dict of weights for partial_fit")
        if classes is None and first:
            raise ValueError("classes must be passed on the first call to partial_fit")
        with self._restored_on_error():
            if classes is not None:
                with reading("classes"):
                    classes = np.unique(arguments.array("classes", classes))
                if not len(classes) or (classes.dtype.kind == "f" and np.isnan(classes).any()):
                    raise ValueError(
                        f"classes must be all labels of y, at least one and no NaN, got {classes.tolist()}"
                    )
                if not first and not np.array_equal(classes, self.classes_):
                    raise ValueError(
                        f"classes must be those of the first call, {self.classes_.tolist()}, got {classes.tolist()}"
                    )
                self.classes_ = classes
            return self._partial_fit(X, y, sample_weight)

    def _loss(self, output: Array, targets: Array, weights: Array) -> tuple[float, Array]:
        return training.softmax_cross_entropy(output, targets, weights=weights)

    def _evaluate(self, examples: Examples) -> float:
        predicted = self._outputs(examples.sequences).argmax(axis=1)
        return float(accuracy_score(examples.targets, predicted, sample_weight=examples.weights))

    def _probabilities(self, X: Any) -> tuple[Sequences, Array]:
        check_is_fitted(self, "layer_")
        sequences = self._read(X, reset=False)
        outputs = self._outputs(self._scaled(sequences)).astype(np.float64)
        outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return sequences, outputs / outputs.sum(axis=1, keepdims=True)


class SequenceClassifier(ClassifierMixin, Labels):
    """Classify sequences with a recurrent layer and a softmax readout.

    The network is trained with Adam on the cross-entropy.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn"}, default "lstm"
        The layer: :class:`rnnfast.LSTM`, :class:`rnnfast.GRU` or :class:`rnnfast.RNN`.
    leak : float or None, default None
        With ``cell="rnn"``, the fraction of the state that is replaced in each step, above 0 and at most 1: a leaky RNN
        (CTRNN), whose units have a time constant of about ``1 / leak`` steps. None means a plain RNN.
    embedding : int, "auto" or None, default None
        If not None, X holds tokens, and this is the size of the vector that :class:`rnnfast.Embedding` learns for each
        of them. "auto" means ``min(600, round(1.6 * V**0.56))`` for V different tokens.
    hidden_size : int, default 32
        Number of units of each layer and direction.
    num_layers : int, default 1
        Number of stacked layers.
    bidirectional : bool, default False
        Whether the layers run in both directions.
    pooling : {"last", "mean"}, default "last"
        Input of the readout: the last state of each direction, or the mean of the outputs over the steps.
    dropout : float, default 0
        Dropout probability in training, between layers and before the readout; at least 0 and below 1.
    learning_rate : float, default 0.01
        Learning rate of Adam.
    max_epochs : int, default 100
        Maximum number of epochs.
    batch_size : int, default 64
        Number of sequences in a mini-batch. Mini-batches are random, but hold sequences of similar lengths.
    early_stopping : bool, default False
        Whether to hold out a part of the sequences, stop when the score on this held-out set no longer improves, and
        keep the parameters with the best score. If False, training stops when the training loss no longer improves.
    validation_fraction : float, default 0.1
        Fraction of the sequences in the held-out set, between 0 and 1. Classes keep their proportions in it.
    n_iter_no_change : int, default 10
        Training stops after this number of consecutive epochs in which the score improved by less than `tol`.
    tol : float, default 1e-4
        Minimum improvement of the score.
    clip : float or None, default 1
        Maximum norm of all gradients together. None disables clipping.
    class_weight : dict, "balanced" or None, default None
        Factors of the loss by class. Classes that are not in the dict have weight 1. "balanced" uses the inverse of
        the class frequencies, including sample weights. Weights are scaled to a mean of 1 over the training data.
    standardize : bool, default True
        Whether to standardize each feature of X to mean 0 and standard deviation 1 over all steps of the training
        data; for ``partial_fit``, of the first data in which the feature changes. A feature that never changes is
        ignored.
    verbose : int, default 0
        If 1, show a progress bar with the loss and the validation score; this needs tqdm.
    random_state : int, RandomState or None, default None
        Seed for the initial parameters, the mini-batches, dropout and the held-out set.
    dtype : {"float32", "float64"}, default "float32"
        The dtype of the network.

    Attributes
    ----------
    classes_ : ndarray
        The class labels.
    layer_ : rnnfast.LSTM, GRU or RNN
        The recurrent layer. It is frozen, and can be saved with ``layer_.save(path)`` or run as a stream.
    readout_ : rnnfast.Linear
        The readout. It is frozen too.
    embedding_ : rnnfast.Embedding
        The vectors of the tokens, if there are any: row 0 for unknown ones, and row ``k + 1`` for ``vocabulary_[k]``.
    vocabulary_ : ndarray of int or str
        The tokens in the first call of ``fit`` or ``partial_fit``, in ascending order.
    mean_, scale_ : ndarray (features,)
        The mean and standard deviation used to standardize X. A feature with standard deviation 0 is ignored. Tokens
        are not standardized.
    n_features_in_ : int
        F, or the number of columns if X was a table.
    feature_names_in_ : ndarray of str
        Column names, if X was a DataFrame.
    n_iter_ : int
        Number of epochs trained.
    loss_curve_ : list of float
        Mean training loss of each epoch, measured before each update.
    validation_scores_ : list of float or None
        Accuracy on the held-out set after each epoch; None without `early_stopping`.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.sklearn import SequenceClassifier
    >>> X = np.random.default_rng(0).normal(size=(60, 5, 2))
    >>> y = X[:, 0, 0] > 0
    >>> classifier = SequenceClassifier(hidden_size=8, random_state=0).fit(X, y)
    >>> classifier.predict_proba(X).shape, classifier.score(X, y) > 0.95
    ((60, 2), True)

    Words of sentences are tokens:

    >>> X = [["good", "food"], ["bad", "food"], ["good", "service"], ["bad", "service"], ["really", "good"]]
    >>> classifier = SequenceClassifier(embedding=4, random_state=0).fit(X, ["+", "-", "+", "-", "+"])
    >>> classifier.predict([["really", "good", "service"], ["bad", "wine"]])
    array(['+', '-'], dtype='<U1')
    """

    def __init__(
        self,
        cell: str = "lstm",
        *,
        leak: float | None = None,
        embedding: int | str | None = None,
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
        self._set_options(locals())

    def _targets(self, y: Any, sequences: Sequences, first: bool) -> Array:  # noqa: ARG002
        with reading("y"):
            y = column_or_1d(arguments.array("y", y), warn=True)
            check_classification_targets(y)
        return self._encode(y)

    def _strata(self, examples: Examples) -> Array | None:
        return examples.targets

    def predict_proba(self, X: Any) -> Array:
        """Predict the probability of each class.

        Parameters
        ----------
        X : sequences
            In one of the forms that :mod:`rnnfast.sklearn` lists.

        Returns
        -------
        ndarray of float64, (N, number of classes)
            In the order of ``classes_``.
        """
        return self._probabilities(X)[1]

    def predict(self, X: Any) -> Array:
        """Predict the most probable class of each sequence.

        Parameters
        ----------
        X : sequences
            In one of the forms that :mod:`rnnfast.sklearn` lists.

        Returns
        -------
        ndarray, (N,)
        """
        indices = self.predict_proba(X).argmax(axis=1)
        predicted: Array = self.classes_[indices]
        return predicted

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Compute the accuracy.

        Parameters
        ----------
        X, y, sample_weight
            As for ``fit``.

        Returns
        -------
        float
            Between 0 and 1; higher is better.
        """
        predicted, truth = self.predict(X), arguments.array("y", y)
        weights = check_weights(sample_weight, truth)
        with reading("y"):
            return float(accuracy_score(truth, predicted, sample_weight=weights))


class SequenceRegressor(RegressorMixin, Supervised):
    """Predict one or more numbers for each sequence with a recurrent layer and a linear readout.

    The network is trained with Adam on the mean squared error of the targets, which are standardized internally.

    Parameters
    ----------
    cell, hidden_size and all other options
        As for :class:`SequenceClassifier`. With `early_stopping`, the score is R².

    Attributes
    ----------
    target_mean_, target_scale_ : ndarray (K,)
        The mean and standard deviation used to standardize y. A target with standard deviation 0 is predicted as its
        mean.
    layer_, readout_ and all other attributes
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
        leak: float | None = None,
        embedding: int | str | None = None,
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
        self._set_options(locals())

    def _targets(self, y: Any, sequences: Sequences, first: bool) -> Array:  # noqa: ARG002
        targets = real_array("y", y, dtype=np.float64)
        if first:
            self._single = targets.ndim == 1
        targets = targets[:, np.newaxis] if targets.ndim == 1 else targets
        if not first and targets.shape[1] != self.readout_.out_features:
            raise ValueError(
                f"y has {targets.shape[1]} targets for each sequence, but the first call had "
                f"{self.readout_.out_features}"
            )
        return targets

    def _output_size(self, examples: Examples) -> int:
        self._set_target_scale(Scale.of(examples.targets, examples.weights))
        return int(examples.targets.shape[1])

    def _set_target_scale(self, scale: Scale) -> None:
        self._target_scale = scale
        self.target_mean_, self.target_scale_ = scale.offset + scale.mean, scale.deviation

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "target_mean_" in state and "_target_scale" not in state:  # pickled by version 0.1
            self._target_scale = Scale(np.zeros_like(self.target_mean_), self.target_mean_, self.target_scale_)

    def _extend_scales(self, examples: Examples) -> None:
        super()._extend_scales(examples)
        self._set_target_scale(self._target_scale.extended(examples.targets, examples.weights))

    def _output_scale(self) -> Scale:
        return self._target_scale

    def _weigh(self, examples: Examples) -> Examples:
        targets = self._target_scale.standardize("y", examples.targets, self.layer_.dtype)
        weights = np.broadcast_to(examples.weights[:, np.newaxis], targets.shape)
        return examples._replace(targets=targets, weights=weights)

    def _evaluate(self, examples: Examples) -> float:
        targets = self._target_scale.standardize("y", examples.targets, np.dtype(np.float64))
        return float(r2_score(targets, self._outputs(examples.sequences), sample_weight=examples.weights))

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch, continuing from the last fit or partial_fit with the state of Adam.

        Parameters
        ----------
        X, y, sample_weight
            As for ``fit``, but weights are not scaled to a mean of 1. The scale of a feature or target is set by the
            first data in which it changes.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            As for ``fit``.
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: Any) -> Array:
        """Predict the targets of each sequence.

        Parameters
        ----------
        X : sequences
            In one of the forms that :mod:`rnnfast.sklearn` lists.

        Returns
        -------
        ndarray of float64, (N,) or (N, K)
            In the form of y in ``fit``.
        """
        check_is_fitted(self, "layer_")
        sequences = self._read(X, reset=False)
        outputs = self._target_scale.restore(self._outputs(self._scaled(sequences)))
        return outputs[:, 0] if self._single else outputs

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Compute R², averaged over the targets. Very large and very small targets neither overflow nor underflow.

        Parameters
        ----------
        X, y, sample_weight
            As for ``fit``.

        Returns
        -------
        float
            At most 1; higher is better.
        """
        check_is_fitted(self, "layer_")
        truth, predicted, offset = real_array("y", y, dtype=np.float64), self.predict(X), self._target_scale.offset
        weights = check_weights(sample_weight, predicted)
        # R² depends on neither the offset nor the unit of a target. Scaling by a power of two is exact.
        exponents = np.frexp(np.maximum(np.abs(truth).max(axis=0), np.abs(predicted).max(axis=0)))[1]
        truth, predicted = (np.ldexp(array, -exponents) - np.ldexp(offset, -exponents) for array in (truth, predicted))
        return float(r2_score(truth, predicted, sample_weight=weights))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
