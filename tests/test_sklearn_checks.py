"""The estimators pass scikit-learn's own checks and work in its tools."""

import pickle
import sys

import numpy as np
import pytest

import rnnfast

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no estimators")

import joblib
from sklearn.base import ClassifierMixin, clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import column_or_1d, estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks
from support.estimators import ALL, SMALL, learnt, task

from rnnfast.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor, SequenceTagger


class LastTag(ClassifierMixin, SequenceTagger):
    """A tagger as a classifier: every step has the class of its row, and the last step predicts it."""

    def _repeated(self, X, y):
        # Where that is not possible, y goes on as it is, to be refused by the tagger.
        X = np.asarray(X)
        return (
            y if y is None or X.ndim != 2 else np.repeat(column_or_1d(y, warn=True)[:, np.newaxis], X.shape[1], axis=1)
        )

    def fit(self, X, y, sample_weight=None):
        return super().fit(X, self._repeated(X, y), sample_weight)

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        return super().partial_fit(X, self._repeated(X, y), classes, sample_weight)

    def predict(self, X):
        return super().predict(X)[:, -1]

    def predict_proba(self, X):
        return super().predict_proba(X)[:, -1]

    score = ClassifierMixin.score


# --- scikit-learn's own checks


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")  # of a check's own
@parametrize_with_checks(
    [SequenceClassifier(max_epochs=40), SequenceRegressor(max_epochs=40), LastTag(hidden_size=8, max_epochs=20)]
)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


# A forecaster has no y, and its predict takes a number of steps instead of X. Checks that call predict(X) therefore do
# not apply; these are the others.
WITHOUT_PREDICT = [
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_fit_score_takes_y",
    "check_estimators_overwrite_params",
    "check_estimators_fit_returns_self",
    "check_readonly_memmap_input",
    "check_positive_only_tag_during_fit",
    "check_complex_data",
    "check_estimator_sparse_tag",
    "check_estimator_sparse_matrix",
    "check_fit_check_is_fitted",
]


@pytest.mark.parametrize("kind", [SequenceTagger, SequenceForecaster])
@pytest.mark.parametrize("name", WITHOUT_PREDICT[:10])
def test_checks_of_scikit_learn_without_data(kind, name):
    getattr(estimator_checks, name)(kind.__name__, kind())


@pytest.mark.parametrize("name", WITHOUT_PREDICT[10:])
def test_checks_of_scikit_learn_on_the_fit_of_a_forecaster(name):
    getattr(estimator_checks, name)("SequenceForecaster", SequenceForecaster(**SMALL))


# --- in scikit-learn's tools


@pytest.mark.parametrize("kind", ALL)
def test_a_pickle_holds_parameters_moments_and_series_alone(kind):
    data = task(kind, np.random.default_rng(0), count=20)
    estimator = kind(hidden_size=128, max_epochs=1, random_state=0).fit(*data)
    numbers = sum(array.nbytes for array in learnt(estimator).values())
    before = pickle.dumps(estimator)
    assert numbers * 3 < len(before) < numbers * 3 + 20_000
    again = pickle.loads(before)
    assert not again.layer_.parameters["weight_ih_l0"].flags.writeable  # frozen: predictions are quick
    given = () if kind is SequenceForecaster else data[:1]
    for one, other in zip(estimator.predict(*given), again.predict(*given), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(pickle.dumps(estimator)) == len(before)


@pytest.mark.parametrize("kind", ALL)
def test_a_clone_has_the_options_alone(kind):
    estimator = kind(**SMALL, max_epochs=1).fit(*task(kind, np.random.default_rng(0), count=20))
    copy = clone(estimator)
    assert copy.get_params() == estimator.get_params()
    assert vars(copy).keys() == kind().get_params().keys()


def threads_of_a_worker(estimator, X, y):
    """A scorer that returns the number of rnnfast threads in its process."""
    estimator.score(X, y)
    return rnnfast.get_num_threads()


def test_grid_search_in_processes_shares_the_threads():
    X = np.random.default_rng(0).normal(size=(40, 6))
    search = GridSearchCV(
        SequenceClassifier(**SMALL, max_epochs=1),
        {"cell": ["gru", "rnn"]},
        scoring=threads_of_a_worker,
        cv=2,
        n_jobs=2,
    ).fit(X, X[:, 0] > 0)
    assert search.cv_results_["mean_test_score"].max() <= max(1, joblib.cpu_count() // 2)


def test_grid_search_and_pipelines():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 5)), np.arange(60) % 2
    X[:, 2] += 3 * y
    pipeline = make_pipeline(StandardScaler(), SequenceClassifier(**SMALL, learning_rate=0.03))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.8
    search = GridSearchCV(pipeline, {"sequenceclassifier__learning_rate": [1e-6, 0.02]}, cv=3).fit(X, y)
    assert search.best_params_["sequenceclassifier__learning_rate"] == 0.02
    window = FunctionTransformer(lambda X: X[:, 2:].reshape(len(X), -1, 1))
    assert make_pipeline(window, SequenceClassifier(**SMALL)).fit(X, y).score(X, y) > 0.8


@pytest.mark.parametrize("kind", [SequenceRegressor, SequenceTagger])
def test_grid_search_over_lists_of_sequences(kind):
    X, y = task(kind, np.random.default_rng(0), count=60)
    search = GridSearchCV(kind(**SMALL, max_epochs=30), {"learning_rate": [1e-6, 0.02]}, cv=3).fit(X, y)
    assert search.best_params_ == {"learning_rate": 0.02}


@pytest.mark.parametrize("verbose", [1, True])
def test_verbose_draws_a_bar(verbose, capsys, monkeypatch):
    pytest.importorskip("tqdm")
    X, y = task(SequenceClassifier, np.random.default_rng(0))
    classifier = SequenceClassifier(**SMALL, max_epochs=2, early_stopping=True, verbose=verbose).fit(X, y)
    shown = capsys.readouterr().err
    for word in ("SequenceClassifier", "2/2", "loss=", f"validation={classifier.validation_scores_[-1]:.4g}"):
        assert word in shown
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        classifier.fit(X, y)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "rnnfast.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"pip install 'rnnfast\[sklearn\]'"):
        import rnnfast.sklearn  # noqa: F401


@pytest.mark.parametrize("kind", ALL)
def test_pickles_from_before_the_package_was_split_find_the_estimators(kind):
    assert pickle.loads(f"crnnfast.sklearn\n{kind.__name__}\n.".encode()) is kind
