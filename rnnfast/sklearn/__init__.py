"""Estimators for sequences with scikit-learn's interface, trained by rnnfast.

`SequenceClassifier` and `SequenceRegressor` predict one target for each sequence, `SequenceTagger` predicts a class for
each time step, and `SequenceForecaster` predicts the continuation of a time series. They follow scikit-learn's
conventions: pipelines, grid search, cloning and pickling work, and the first two pass
``sklearn.utils.estimator_checks.check_estimator``.

The sequences X can have one of three forms:

- an array of shape (N, T, F): N sequences of T steps with F features;
- a list of N arrays of shape (T_i, F), or (T_i,) for one feature, with any lengths of at least 1;
- a table (an array or DataFrame) of shape (N, T): N sequences of one feature. As usual in scikit-learn, X in
  ``predict`` must then have the same number of columns and the same column names. Pass sequences of other lengths as a
  list or with shape (N, T, 1).

With ``embedding=``, sequences consist of tokens, which are integers or strings. X is then a list of sequences, or an
array (N, T) or (N, T, 1). A sequence is a list or array of tokens, or a string, whose characters are the tokens: pass
``text.split()`` for words. ``fit`` learns the vocabulary. Other tokens are all read as one unknown token, whose vector
is zero unless ``partial_fit`` trains it. Sequences of different lengths need no padding. Without ``embedding=``,
integers of one feature draw a UserWarning if they look like tokens: at least 20 different values, none of them
negative, and a dtype of at least 16 bits.

Nested Python lists are a table if their lengths are equal, and a list of sequences otherwise. Pass arrays, or shape
(N, T, 1), if both can occur. Scalers such as StandardScaler accept only tables, so they cannot be applied to sequences
in a pipeline; use ``standardize=True`` instead. GridSearchCV must use the default ``score`` of a `SequenceTagger`,
because other scorers expect one class for each row.

NaN in X is an error, as in most of scikit-learn. Unless ``standardize=False``, each feature is standardized with its
mean and standard deviation over all steps of the training data. Predictions therefore depend neither on the units of X
nor on offsets, up to rounding: X and the targets are read as float64 (or float32), in which integers above 2**53 are
rounded. A feature that never changes, up to rounding, is ignored, and such a target is predicted exactly.

With a fixed `random_state`, repeated calls of ``fit`` give bitwise identical results for any number of threads. If all
rows fit into one batch, the order of the rows does not matter either, and a sample weight of 2 is bitwise equivalent to
repeating the row. The exception is ``early_stopping=True``, which chooses the held-out rows by position.

rnnfast uses its own threads. With ``GridSearchCV(..., n_jobs=2)``, joblib limits how many each process uses.

Examples
--------
Classify sequences by their last event:

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

try:
    import sklearn.base as _base  # noqa: F401
    from sklearn.utils.validation import validate_data as _validate_data  # noqa: F401  (new in scikit-learn 1.6)
except ImportError as error:
    raise ImportError("rnnfast.sklearn needs scikit-learn 1.6 or newer: pip install 'rnnfast[sklearn]'") from error

from .. import threads
from .differences import choose_differences
from .forecaster import SequenceForecaster
from .network import Diverged
from .supervised import SequenceClassifier, SequenceRegressor
from .tagger import SequenceTagger

threads.register()  # scikit-learn installs threadpoolctl.

__all__ = [
    "Diverged",
    "SequenceClassifier",
    "SequenceForecaster",
    "SequenceRegressor",
    "SequenceTagger",
    "choose_differences",
]
