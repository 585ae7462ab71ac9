"""The estimators: scikit-learn's own checks, tasks with known answers, and what a fit promises."""

import pickle
import sys

import numpy as np
import pytest
from oracles import central_differences

import rnnfast

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no estimators")

import joblib
from sklearn.base import ClassifierMixin, clone
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import column_or_1d, estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from rnnfast.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor, SequenceTagger

ALL = [SequenceClassifier, SequenceRegressor, SequenceTagger, SequenceForecaster]
SMALL = {"hidden_size": 8, "random_state": 0}


class LastTag(ClassifierMixin, SequenceTagger):
    """A tagger as a classifier: each step has the row's class, and the last step's answer is the row's."""

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


# A forecaster has no y, and its predict takes a number of steps in place of X, so that the checks which call predict(X)
# do not apply. These are the others.
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


# --- tasks with known answers


def bits(rng, lengths):
    return [rng.integers(0, 2, length) for length in lengths]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_tagger_learns_to_copy_what_came_three_steps_before(cell):
    X = np.random.default_rng(0).integers(0, 2, (200, 12))
    y = np.roll(X, 3, axis=1)
    y[:, :3] = 0
    tagger = SequenceTagger(cell, hidden_size=16, bidirectional=False, max_epochs=60, random_state=0).fit(
        X[:150], y[:150]
    )
    assert tagger.score(X[150:], y[150:]) > 0.99


def test_tagger_learns_the_parity_of_all_before():
    rng = np.random.default_rng(1)
    X = bits(rng, rng.integers(1, 10, 300))
    y = [np.array(["even", "odd"])[x.cumsum() % 2] for x in X]
    tagger = SequenceTagger(hidden_size=16, bidirectional=False, batch_size=32, random_state=0).fit(X[:250], y[:250])
    assert tagger.score(X[250:], y[250:]) > 0.97


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_regressor_learns_sum_and_last_value_together(pooling):
    rng = np.random.default_rng(2)
    X = [rng.normal(size=(length, 2)) for length in rng.integers(1, 7, 400)]
    y = np.array([[100 + x[:, 0].sum(), 0.01 * x[-1, 1]] for x in X])
    regressor = SequenceRegressor(pooling=pooling, n_iter_no_change=100, random_state=0).fit(X[:300], y[:300])
    assert regressor.predict(X[300:]).shape == (100, 2)
    assert regressor.score(X[300:], y[300:]) > 0.9


def test_classifier_remembers_the_only_event():
    rng = np.random.default_rng(3)
    X, kinds = np.zeros((200, 12, 2)), rng.integers(0, 2, 200)
    X[np.arange(200), rng.integers(0, 12, 200), kinds] = 1
    y = np.array(["left", "right"])[kinds]
    classifier = SequenceClassifier("gru", random_state=0).fit(X[:150], y[:150])
    assert classifier.score(X[150:], y[150:]) == 1


# --- the engine


class Recorder:
    """In the place of an optimiser: keeps the gradients, changes nothing."""

    def step(self, gradients):
        self.gradients = {name: array.copy() for name, array in gradients.items()}


def examples_of(estimator, rng):
    """Scaled examples of an estimator that has begun, of unequal lengths and weights."""
    if isinstance(estimator, SequenceForecaster):
        series = [rng.normal(size=(length, 2)) for length in (9, 6, 7)]
        estimator.partial_fit(series)
        examples = estimator._scaled_targets(estimator._examples(series, [0] * 3))
        return examples._replace(sequences=estimator._scaled(examples.sequences))
    X = [rng.normal(size=(length, 2)) for length in (4, 1, 6, 3, 4)]
    y = [0, 1, 2, 1, 0]
    if isinstance(estimator, SequenceTagger):
        y = [rng.permutation(np.arange(len(x)) % 3) for x in X]
    elif isinstance(estimator, SequenceRegressor):
        y = rng.normal(size=(5, 2))
    weights = [1.0, 2.0, 0.5, 3.0, 0.25]
    given = {"classes": [0, 1, 2]} if hasattr(estimator, "class_weight") else {}
    estimator.partial_fit(X, y, sample_weight=weights, **given)
    examples = estimator._weigh(estimator._input(X, y, weights, first=False))
    return examples._replace(sequences=estimator._scaled(examples.sequences))


def loss_of(estimator, examples):
    """The loss by its formula, from what the estimator gives without training."""
    outputs, weights = estimator._outputs(examples.sequences), examples.weights
    if isinstance(estimator, (SequenceRegressor, SequenceForecaster)):
        return np.mean(weights * (outputs - examples.targets) ** 2)
    logarithms = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
    return np.mean(weights * -logarithms[np.arange(len(outputs)), examples.targets])


NETWORKS = [
    SequenceClassifier(),
    SequenceClassifier("gru", pooling="mean", bidirectional=True, class_weight={0: 3.0}),
    SequenceClassifier(bidirectional=True, num_layers=2),
    SequenceRegressor("rnn", bidirectional=True),
    SequenceRegressor(pooling="mean"),
    SequenceTagger("gru", class_weight={2: 2.0}),
    SequenceTagger(bidirectional=False),
    SequenceForecaster(horizon=2),
    SequenceForecaster("gru", horizon=2, window=3, differences=1),
]


@pytest.mark.parametrize("estimator", NETWORKS, ids=repr)
def test_gradients_are_central_differences(estimator):
    estimator = clone(estimator).set_params(hidden_size=3, dtype="float64", clip=None, random_state=0)
    examples, recorder = examples_of(estimator, np.random.default_rng(0)), Recorder()
    for layer in (estimator.layer_, estimator.readout_):
        layer.unfreeze()
    rows = np.arange(len(examples.sequences.lengths))
    [(loss, _)] = estimator._updates(examples, rows, recorder)
    assert loss == pytest.approx(loss_of(estimator, examples), rel=1e-12)
    parameters = {**estimator.layer_.parameters, **estimator.readout_.parameters}
    assert recorder.gradients.keys() == parameters.keys()
    for name, array in parameters.items():
        expected = central_differences(lambda: loss_of(estimator, examples), array)
        np.testing.assert_allclose(recorder.gradients[name], expected, atol=1e-8, err_msg=name)


def test_gradients_with_dropout_are_central_differences():
    estimator = SequenceClassifier(hidden_size=4, dtype="float64", clip=None, random_state=0, dropout=0.5)
    examples, recorder = examples_of(estimator, np.random.default_rng(0)), Recorder()
    for layer in (estimator.layer_, estimator.readout_):
        layer.unfreeze()

    def loss():
        estimator._rng = np.random.default_rng(1)  # the same ones dropped in each call
        [(value, _)] = estimator._updates(examples, np.arange(5), recorder)
        return value

    parameters = {**estimator.layer_.parameters, **estimator.readout_.parameters}
    for name, array in parameters.items():
        expected = central_differences(loss, array)
        loss()
        np.testing.assert_allclose(recorder.gradients[name], expected, atol=1e-8, err_msg=name)


def test_each_batch_has_each_row_once_and_lengths_that_are_alike():
    classifier = SequenceClassifier(batch_size=10)
    classifier._rng = np.random.default_rng(0)
    lengths = np.random.default_rng(1).integers(1, 100, 95)
    batches = list(classifier._batches(lengths))
    assert sorted(map(len, batches)) == [5] + [10] * 9
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(95))
    assert np.mean([np.ptp(lengths[rows]) for rows in batches]) < 20
    again = list(classifier._batches(lengths))
    assert {tuple(sorted(rows)) for rows in batches} != {tuple(sorted(rows)) for rows in again}


def test_dropout_acts_on_what_is_read_off_in_training_alone():
    X = np.random.default_rng(0).normal(size=(20, 4, 1))
    y = np.arange(20) % 2
    plain = SequenceClassifier(**SMALL, max_epochs=1).fit(X, y)
    dropped = SequenceClassifier(**SMALL, max_epochs=1, dropout=0.5).fit(X, y)
    assert plain.loss_curve_ != dropped.loss_curve_
    np.testing.assert_array_equal(dropped.predict_proba(X), dropped.predict_proba(X))


# --- sequences as they are


def by_hand(estimator, x):
    """Outputs for one sequence, by the layers alone."""
    x = (np.asarray(x, float).reshape(len(x), -1) - estimator.mean_) / estimator.scale_
    y, state = estimator.layer_(x)
    h = state[0] if isinstance(state, tuple) else state
    if isinstance(estimator, SequenceTagger):
        return estimator.readout_(y)
    last = h[-2:].reshape(-1) if estimator.bidirectional else h[-1]
    return estimator.readout_(last if estimator.pooling == "last" else y.mean(axis=0))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_answers_are_those_of_each_sequence_alone(pooling, bidirectional):
    rng = np.random.default_rng(0)
    X = [rng.normal(3, 2, size=(length, 2)) for length in rng.integers(1, 20, 300)]
    options = {**SMALL, "max_epochs": 2, "bidirectional": bidirectional}
    regressor = SequenceRegressor(**options, pooling=pooling).fit(X, [len(x) for x in X])
    predicted = regressor.predict(X)
    expected = [by_hand(regressor, x)[0] * regressor.target_scale_[0] + regressor.target_mean_[0] for x in X]
    np.testing.assert_allclose(predicted, expected, rtol=1e-5)
    np.testing.assert_array_equal(predicted[:7], regressor.predict(X[:7]))


def test_tags_are_those_of_each_sequence_alone():
    rng = np.random.default_rng(0)
    X = bits(rng, rng.integers(1, 9, 50))
    y = [np.array(list("ab"))[x] for x in X]
    tagger = SequenceTagger(**SMALL, max_epochs=2).fit(X, y)
    for x, tags, probabilities in zip(X, tagger.predict(X), tagger.predict_proba(X), strict=True):
        outputs = by_hand(tagger, x).astype(float)
        expected = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
        np.testing.assert_array_equal(tags, tagger.classes_[expected.argmax(axis=1)])


def test_forms_of_the_same_sequences_give_the_same_bits():
    X = np.random.default_rng(0).normal(size=(30, 5))
    y = np.arange(30) % 3
    fits = [
        SequenceClassifier(**SMALL, max_epochs=3).fit(form, y) for form in (X, X[..., np.newaxis], list(X), X.tolist())
    ]
    assert [fit.n_features_in_ for fit in fits] == [5, 1, 1, 5]
    expected = fits[0].predict_proba(X)
    for fit in fits:
        for form in (X, X[..., np.newaxis], list(X), [x[:, np.newaxis] for x in X]):
            np.testing.assert_array_equal(fit.predict_proba(form), expected)
    assert fits[0].predict([X[0, :2], X[1]]).shape == (2,)


def test_columns_of_a_table_keep_their_names():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(np.random.default_rng(0).normal(size=(12, 3)), columns=list("abc"))
    regressor = SequenceRegressor(**SMALL, max_epochs=1).fit(table, np.arange(12))
    assert regressor.feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names"):
        regressor.predict(table.rename(columns={"a": "d"}))
    regressor.fit([np.ones(3), np.ones(2)], [0, 1])
    assert not hasattr(regressor, "feature_names_in_")
    regressor.fit(table, np.arange(12))


def test_tagger_answers_in_the_form_of_its_input():
    X = np.random.default_rng(0).normal(size=(6, 4, 2))
    y = np.array([[0, 1, 1, 0]] * 6)
    tagger = SequenceTagger(**SMALL, max_epochs=1).fit(X, y)
    assert tagger.predict(X).shape == (6, 4)
    assert tagger.predict_proba(X).shape == (6, 4, 2)
    assert [tags.shape for tags in tagger.predict(list(X))] == [(4,)] * 6
    assert [values.shape for values in tagger.predict_proba([X[0], X[1, :2]])] == [(4, 2), (2, 2)]
    assert tagger.score(X, y, sample_weight=[1, 0, 0, 0, 0, 0]) == np.mean(tagger.predict(X)[0] == y[0])


# --- the same bits


def learnt(estimator):
    return {**estimator.layer_.state_dict(), **estimator.readout_.state_dict()}


def assert_same(one, other):
    assert one.loss_curve_ == other.loss_curve_
    for name, array in learnt(one).items():
        np.testing.assert_array_equal(array, learnt(other)[name], err_msg=name)


def task(kind, rng, count=150):
    """Data that the kind of estimator can be fitted to."""
    X = [rng.normal(size=(length, 2)) for length in rng.integers(1, 12, count)]
    if kind is SequenceForecaster:
        return ([rng.normal(size=length).cumsum() for length in (150, 90, 120)],)
    if kind is SequenceTagger:
        return X, [(x[:, 0] > 0).astype(int) for x in X]
    if kind is SequenceRegressor:
        return X, [x.sum() for x in X]
    return X, [int(x.sum() > 0) for x in X]


@pytest.mark.parametrize("kind", ALL)
def test_a_fit_is_reproduced_with_any_number_of_threads(kind, threads):
    data = task(kind, np.random.default_rng(0))
    options = {"max_epochs": 3, "dropout": 0.2, "num_layers": 2, "early_stopping": True, "random_state": 3}
    fits = []
    for count in (1, 2, 1):
        threads(count)
        fits.append(kind(**options, hidden_size=40).fit(*data))
    assert_same(fits[0], fits[1])
    assert_same(fits[0], fits[2])
    other = kind(**{**options, "random_state": 4}, hidden_size=40).fit(*data)
    assert other.loss_curve_ != fits[0].loss_curve_


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor, SequenceTagger])
def test_in_one_batch_order_and_repetition_of_rows_do_not_matter(kind):
    X, y = task(kind, np.random.default_rng(0), count=20)
    counts = np.random.default_rng(1).integers(0, 4, 20)
    order = np.random.default_rng(2).permutation(np.repeat(np.arange(20), counts))
    options = {**SMALL, "max_epochs": 5, "dropout": 0.1}
    weighted = kind(**options).fit(X, y, sample_weight=counts)
    repeated = kind(**options).fit([X[row] for row in order], [y[row] for row in order])
    assert len(order) < weighted.batch_size
    for name, array in learnt(weighted).items():
        np.testing.assert_array_equal(array, learnt(repeated)[name], err_msg=name)


def test_a_random_state_object_is_drawn_from():
    X, y = task(SequenceClassifier, np.random.default_rng(0), count=20)
    random = np.random.RandomState(0)
    first, second = (SequenceClassifier(hidden_size=4, max_epochs=1, random_state=random).fit(X, y) for _ in range(2))
    assert first.loss_curve_ != second.loss_curve_


# --- going on


@pytest.mark.parametrize("kind", ALL)
def test_partial_fits_are_epochs_of_a_fit(kind):
    data = task(kind, np.random.default_rng(0), count=30)
    options = {**SMALL, "dtype": "float64"}
    if kind is SequenceForecaster:
        options["early_stopping"] = False
    whole = kind(**options, max_epochs=4).fit(*data)
    parts = kind(**options)
    given = {"classes": [0, 1]} if hasattr(parts, "class_weight") else {}
    parts.partial_fit(*data, **given)
    if kind is SequenceForecaster:
        assert parts.loss_curve_ == pytest.approx(whole.loss_curve_[:1])
        return
    for _ in range(3):
        parts = pickle.loads(pickle.dumps(parts)).partial_fit(*data)
    assert parts.n_iter_ == 4
    assert parts.loss_curve_ == pytest.approx(whole.loss_curve_, rel=1e-9)


def test_partial_fit_knows_classes_that_come_later():
    X, y = np.eye(3)[[0, 1, 2]], np.array(["a", "b", "c"])
    classifier = SequenceClassifier(**SMALL).partial_fit(X[:2], y[:2], classes=y)
    for _ in range(100):
        classifier.partial_fit(X, y)
    assert classifier.predict(X).tolist() == y.tolist()
    with pytest.raises(ValueError, match=r"y must hold classes of .* got .*'d'"):
        classifier.partial_fit(X, ["a", "b", "d"])
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        classifier.partial_fit(X, y, classes=["a", "b"])
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        SequenceClassifier().partial_fit(X, y)


@pytest.mark.parametrize("kind", ALL)
def test_early_stopping_restores_the_best_parameters(kind, monkeypatch):
    scores, seen = iter([0.1, 0.3, 0.2, 0.9, 0.5, 0.9, 0.90001, 0.4]), []

    def evaluate(self, examples):
        assert len(examples.sequences.lengths)
        seen.append(learnt(self))
        return next(scores)

    monkeypatch.setattr(kind, "_evaluate", evaluate)
    estimator = kind(**SMALL, early_stopping=True, n_iter_no_change=4).fit(*task(kind, np.random.default_rng(0)))
    assert estimator.validation_scores_ == [0.1, 0.3, 0.2, 0.9, 0.5, 0.9, 0.90001, 0.4]
    assert estimator.n_iter_ == 8  # four after the fourth, as the seventh is not better by tol
    for name, array in learnt(estimator).items():
        np.testing.assert_array_equal(array, seen[6][name])
    assert any((seen[6][name] != seen[7][name]).any() for name in seen[6])


def test_held_out_rows_are_scored_and_not_learnt():
    X, y = task(SequenceClassifier, np.random.default_rng(0))
    classifier = SequenceClassifier(**SMALL, early_stopping=True, validation_fraction=0.2, max_epochs=5)
    sizes = []
    classifier._evaluate = lambda examples: sizes.append(len(examples.targets)) or 0.0
    batches = classifier._batches
    classifier._batches = lambda lengths: sizes.append(len(lengths)) or batches(lengths)
    classifier.fit(X, y)
    assert sizes == [120, 30] * 5


def test_without_early_stopping_the_loss_ends_a_fit():
    X, y = np.ones((10, 3)), np.zeros(10)
    regressor = SequenceRegressor(**SMALL, n_iter_no_change=3, tol=10.0).fit(X, y)
    assert regressor.n_iter_ == len(regressor.loss_curve_) == 4
    assert regressor.validation_scores_ is None


# --- weights of classes and scales


def test_class_weights_are_weights_of_rows():
    X, y = task(SequenceClassifier, np.random.default_rng(0))
    options = {**SMALL, "max_epochs": 3}
    by_class = SequenceClassifier(**options, class_weight={1: 4.0}).fit(X, y)
    by_row = SequenceClassifier(**options).fit(X, y, sample_weight=np.where(np.array(y) == 1, 4.0, 1.0))
    # Standardizing heeds the weights of rows, not those of classes.
    plain = SequenceClassifier(**options, standardize=False)
    assert_same(
        clone(plain).set_params(class_weight={1: 4.0}).fit(X, y),
        plain.fit(X, y, sample_weight=np.where(np.array(y) == 1, 4.0, 1.0)),
    )
    assert (by_class.mean_ != by_row.mean_).any()


def test_balanced_class_weights_find_a_rare_class():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(400, 4)), np.arange(400) % 20 == 0
    X[y] += 0.5
    shares = [
        SequenceClassifier(**SMALL, max_epochs=20, class_weight=weight).fit(X, y).predict(X)[y].mean()
        for weight in (None, "balanced")
    ]
    assert shares[0] < 0.3
    assert shares[1] > 0.6
    tags = y[:, np.newaxis] & (np.arange(4) == 3)
    tagger = SequenceTagger(**SMALL, max_epochs=20, class_weight="balanced").fit(X, tags)
    assert tagger.predict(X)[tags].mean() > 0.6


def test_the_scale_of_inputs_and_targets_does_not_matter():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 4, 2))
    y = X.sum(axis=(1, 2))
    options = {**SMALL, "dtype": "float64", "max_epochs": 3}
    plain = SequenceRegressor(**options).fit(X, y).predict(X)
    scaled = (
        SequenceRegressor(**options).fit(X * [1e6, 1e-3] + [1e9, 5], 1e3 * y - 7).predict(X * [1e6, 1e-3] + [1e9, 5])
    )
    np.testing.assert_allclose((scaled + 7) / 1e3, plain, rtol=1e-5, atol=1e-6)
    raw = SequenceRegressor(**options, standardize=False).fit(X, y)
    assert raw.mean_.tolist() == [0, 0]
    assert raw.scale_.tolist() == [1, 1]


# --- what is refused


BAD = [
    ("cell", "transformer", "cell must be one of"),
    ("hidden_size", 0, "hidden_size must be at least 1"),
    ("num_layers", 1.5, "num_layers must be an integer"),
    ("dropout", 1.0, "dropout must be at least 0 and below 1"),
    ("learning_rate", 0, "learning_rate must be above 0"),
    ("learning_rate", "fast", "learning_rate must be a number"),
    ("max_epochs", -1, "max_epochs must be at least 1"),
    ("batch_size", "auto", "batch_size must be an integer"),
    ("early_stopping", 1, "early_stopping must be True or False"),
    ("validation_fraction", 1.0, "validation_fraction must be above 0 and below 1"),
    ("n_iter_no_change", 0, "n_iter_no_change must be at least 1"),
    ("tol", -1e-3, "tol must be at least 0"),
    ("clip", 0.0, "clip must be above 0"),
    ("standardize", None, "standardize must be True or False"),
    ("verbose", -1, "verbose must be at least 0"),
    ("dtype", "int8", "dtype must be"),
    ("random_state", "seed", "seed"),
]
OWN_BAD = [
    (SequenceClassifier, "pooling", "max", "pooling must be one of"),
    (SequenceRegressor, "pooling", None, "pooling must be one of"),
    (SequenceClassifier, "bidirectional", "yes", "bidirectional must be True or False"),
    (SequenceClassifier, "class_weight", "even", "class_weight must be"),
    (SequenceClassifier, "class_weight", {0: -1.0}, r"class_weight\[0\] must be at least 0"),
    (SequenceTagger, "class_weight", {"x": 1.0}, "class_weight must have keys of the classes"),
    (SequenceForecaster, "horizon", 0, "horizon must be at least 1"),
    (SequenceForecaster, "window", 0, "window must be at least 1"),
    (SequenceForecaster, "differences", (1, 0), "differences, its lags, must be at least 1"),
    (SequenceForecaster, "bptt_steps", 2.0, "bptt_steps must be an integer"),
    (SequenceForecaster, "multivariate", "yes", "multivariate must be True or False"),
]


@pytest.mark.parametrize(
    ("kind", "name", "value", "match"), [(kind, *bad) for kind in ALL for bad in BAD] + OWN_BAD, ids=str
)
def test_bad_options_are_refused_in_fit_by_name(kind, name, value, match):
    estimator = kind(**{name: value})
    with pytest.raises((ValueError, TypeError), match=match):
        estimator.fit(*task(kind, np.random.default_rng(0), count=8))
    assert not hasattr(estimator, "layer_")


X3 = np.ones((4, 3, 2))


@pytest.mark.parametrize(
    ("X", "match"),
    [
        (np.ones((4, 3, 2, 1)), r"X must be \(N, T, F\)"),
        (np.ones((4, 0, 2)), "X must be|minimum of 1"),
        (np.where(np.arange(24).reshape(4, 3, 2) == 5, np.nan, 1), "Input X contains NaN"),
        ([np.ones(3), np.array([1, np.inf]), np.ones(1), np.ones(1)], "Input X contains infinity"),
        ([np.ones((3, 2)), np.ones((2, 1)), np.ones((3, 2)), np.ones((3, 2))], "one number of features"),
        ([np.ones((3, 2)), np.ones((0, 2)), np.ones((3, 2)), np.ones((3, 2))], "one step at least"),
        ([[[1, 2], [3]], [[1, 2]], [[1, 2]], [[1, 2]]], "members? differ"),
        (np.ones(4), r"X must be .*got shape \(4,\)"),
    ],
)
@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor, SequenceTagger])
def test_bad_sequences_are_refused_and_change_nothing(kind, X, match):
    y = [[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]] if kind is SequenceTagger else [0, 1, 1, 0]
    estimator = kind(**SMALL, max_epochs=1).fit(X3, y)
    before = vars(estimator).copy()
    with pytest.raises(ValueError, match=match):
        estimator.fit(X, y)
    assert vars(estimator).keys() == before.keys()
    assert all(vars(estimator)[name] is value for name, value in before.items())
    with pytest.raises(ValueError, match=match):
        estimator.predict(X)
    with pytest.raises(ValueError, match=r"X has 3 features, but Sequence.* is expecting 2 features"):
        estimator.predict(np.ones((4, 3, 3)))
    estimator.predict(X3)


def test_targets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"X\[1\] has 2 steps, but y\[1\] has shape \(3,\)"):
        SequenceTagger().fit([np.ones(3), np.ones(2)], [[0, 0, 1], [0, 1, 1]])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        SequenceTagger().fit(X3, [[0, 1, 1]] * 3)
    with pytest.raises(ValueError, match="y must have 1 targets, as in the first call, got 2"):
        SequenceRegressor(**SMALL).partial_fit(X3, np.ones(4)).partial_fit(X3, np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"validation_fraction=0\.1 holds out 1 of 4"):
        SequenceRegressor(early_stopping=True).fit(X3, np.ones(4))
    with pytest.raises(ValueError, match="balanced' needs all data at once"):
        SequenceClassifier(class_weight="balanced").partial_fit(X3, [0, 1, 0, 1], classes=[0, 1])


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_a_loss_that_is_not_finite_is_an_error():
    regressor = SequenceRegressor(**SMALL, standardize=False, clip=None, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"epoch \d: the loss is (inf|nan). Give a smaller learning_rate"):
        regressor.fit(np.random.default_rng(0).normal(size=(300, 3)), np.arange(300.0))
    assert not hasattr(regressor, "layer_")


def everything(estimator):
    """All that later calls depend on, as bytes."""
    return pickle.dumps((vars(estimator), estimator._rng.bit_generator.state))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ALL)
def test_a_partial_fit_that_fails_changes_nothing(kind, error, monkeypatch):
    data = task(kind, np.random.default_rng(0), count=20)
    estimator = kind(**SMALL, batch_size=4, max_epochs=2, dropout=0.1).fit(*data)
    before, own = everything(estimator), vars(estimator).copy()
    answers = estimator.predict(*([3] if kind is SequenceForecaster else data[:1]))
    loss, calls = estimator._loss, []

    def fail(*given):
        calls.append(given)
        value, gradient = loss(*given)
        if len(calls) < 3:
            return value, gradient
        if error is KeyboardInterrupt:
            raise error
        return np.nan, gradient * np.nan

    with monkeypatch.context() as patch:
        patch.setattr(kind, "_loss", lambda _, *given: fail(*given))
        with pytest.raises(error):
            estimator.partial_fit(*data)
    assert len(calls) >= 3
    assert everything(estimator) == before
    assert all(vars(estimator)[name] is value for name, value in own.items())
    assert not estimator.layer_.parameters["weight_ih_l0"].flags.writeable
    again = estimator.predict(*([3] if kind is SequenceForecaster else data[:1]))
    for one, other in zip(answers, again, strict=True):
        np.testing.assert_array_equal(one, other)
    estimator.partial_fit(*data)
    assert len(estimator.loss_curve_) == 3


def test_parameters_that_the_last_update_broke_are_an_error(monkeypatch):
    X, y = task(SequenceRegressor, np.random.default_rng(0), count=20)
    regressor = SequenceRegressor(**SMALL, max_epochs=1, clip=None).fit(X, y)
    loss = SequenceRegressor._loss

    def broken(self, *given):
        value, gradient = loss(self, *given)
        return value, gradient * np.nan

    monkeypatch.setattr(SequenceRegressor, "_loss", broken)
    with pytest.raises(ValueError, match="epoch 2: the parameters after it are not finite"):
        regressor.partial_fit(X, y)
    assert np.isfinite(regressor.predict(X)).all()


@pytest.mark.parametrize("factor", [1e300, 1e39, 1e-200])
def test_numbers_of_any_size_are_scaled(factor):
    X, y = np.random.default_rng(0).normal(size=(40, 5, 2)), np.arange(40.0)
    options = {**SMALL, "max_epochs": 3}
    factor = 2.0 ** round(np.log2(factor))  # the same bits
    plain, scaled = (SequenceRegressor(**options).fit(X * by, y * by) for by in (1, factor))
    assert_same(plain, scaled)
    np.testing.assert_array_equal(scaled.predict(X * factor), plain.predict(X) * factor)
    assert scaled.score(X * factor, y * factor) == plain.score(X, y)
    plain, scaled = (SequenceForecaster(**options).fit(y * by) for by in (1, factor))
    np.testing.assert_array_equal(scaled.predict(3), plain.predict(3) * factor)


@pytest.mark.parametrize("factor", [1e39, 1e60, 1e300])
def test_numbers_beyond_the_dtype_are_refused_by_name(factor):
    X, y, s = np.random.default_rng(0).normal(size=(20, 5, 2)), np.arange(20) % 2, np.arange(40.0)
    classifier = SequenceClassifier(**SMALL, max_epochs=1).fit(X, y)
    for answer in (classifier.predict, classifier.predict_proba, lambda X: classifier.score(X, y)):
        with pytest.raises(ValueError, match="X holds numbers that are too large for dtype float32"):
            answer(X * factor)
    with pytest.raises(ValueError, match="X holds numbers that are too large"):
        SequenceClassifier(standardize=False).fit(X * factor, y)
    regressor = SequenceRegressor(**SMALL).partial_fit(X, y)
    with pytest.raises(ValueError, match="y holds numbers that are too large"):
        regressor.partial_fit(X, y * factor)
    forecaster = SequenceForecaster(**SMALL, max_epochs=1).fit(s)
    with pytest.raises(ValueError, match="series holds numbers that are too large for dtype"):
        forecaster.predict(series=s * factor)
    with pytest.raises(ValueError, match="series holds numbers that are too large to take differences of"):
        SequenceForecaster(differences=1).fit([*s, 1.7e308, -1.7e308, *s])


CHANGES = {
    "cell": "gru", "hidden_size": 3, "num_layers": 2, "bidirectional": True, "pooling": "mean", "dtype": "float64",
    "standardize": False, "horizon": 3, "window": 4, "differences": 1, "multivariate": True,
}  # fmt: skip


@pytest.mark.parametrize("kind", ALL)
def test_options_set_after_fit_do_not_change_the_network(kind):
    data = task(kind, np.random.default_rng(0), count=20)
    estimator = kind(**{**SMALL, **({"bidirectional": False} if kind is SequenceTagger else {})}, max_epochs=1)
    estimator.fit(*data)
    given = {"horizon": 3} if kind is SequenceForecaster else {"X": data[0]}
    before = estimator.predict(**given)
    for name in CHANGES.keys() & estimator.get_params().keys():
        own = getattr(estimator, name)
        estimator.set_params(**{name: CHANGES[name]})
        for one, other in zip(before, estimator.predict(**given), strict=True):
            np.testing.assert_array_equal(one, other)
        with pytest.raises(ValueError, match=f"{name} is .*, but the network was built with {name}="):
            estimator.partial_fit(*data)
        estimator.set_params(**{name: own})
    estimator.partial_fit(*data)


def test_horizon_set_after_fit_is_how_many_steps_are_given():
    forecaster = SequenceForecaster(**SMALL, max_epochs=1).fit(np.arange(40.0))
    expected = forecaster.predict(3)
    np.testing.assert_array_equal(forecaster.set_params(horizon=3).predict(), expected)
    with pytest.raises(TypeError, match=r"predict\(series=\.\.\.\)"):
        forecaster.predict(np.arange(40.0))


@pytest.mark.parametrize(
    "X", [[], [1, 2, 3], [None, None], None, np.ones(3), np.ones((3, 2, 0)), [np.ones((2, 0))] * 3]
)
def test_what_is_no_sequence_is_refused_by_name(X):
    with pytest.raises(ValueError, match=r"X must be \(N, T, F\)|X has 0 features"):
        SequenceRegressor().fit(X, [1.0, 2.0, 3.0])


def test_errors_name_the_argument():
    X, y = np.random.default_rng(0).normal(size=(20, 5, 2)), np.arange(20) % 2
    for classes in ([], [0, 1, np.nan]):
        with pytest.raises(ValueError, match="classes must be"):
            SequenceClassifier().partial_fit(X, y, classes=classes)
    for weights in ({0: 0, 1: 0}, {0: 1e308, 1: 1e308}):
        with pytest.raises(ValueError, match="class_weight gives weights whose sum"):
            SequenceClassifier(class_weight=weights).fit(X, y)
    with pytest.raises(ValueError, match="sample_weight holds weights that are too large"):
        SequenceRegressor().fit(X, y, sample_weight=np.full(20, 1e308))
    with pytest.raises(ValueError, match="early_stopping=True cannot hold out validation_fraction"):
        SequenceClassifier(early_stopping=True).fit(X, [1] + [0] * 19)
    for value in (np.random.default_rng(0), -1):
        with pytest.raises(ValueError, match="random_state must be"):
            SequenceClassifier(random_state=value).fit(X, y)
    dates = np.arange(20).astype("datetime64[D]")
    with pytest.raises(TypeError, match="y must hold real numbers"):
        SequenceRegressor().fit(X, dates)
    with pytest.raises(TypeError, match="series must hold real numbers"):
        SequenceForecaster().fit(dates)
    with pytest.raises(TypeError, match="y must hold strings or numbers"):
        SequenceTagger().fit([np.ones(2), np.ones(1)], [["u", "d"], [1]])
    with pytest.raises(ValueError, match=r"classes of \['d', 'u'\], got 'x'"):
        SequenceClassifier(**SMALL).partial_fit(X[:1], ["x"], classes=["u", "d"])
    tagger = SequenceTagger(**SMALL, max_epochs=1).fit(X, np.tile(y[:, None], 5))
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        tagger.score(X, np.tile(y[:, None], 5), sample_weight=-np.ones(20))
    with pytest.raises(ValueError, match=r"one sequence is X\[0\]\[None\] or \[X\[0\]\]"):
        tagger.predict(X[0][:, :1] + np.ones(3))
    table = SequenceRegressor(**SMALL, max_epochs=1).fit([[1, 2], [3, 4]], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"give arrays, or \(N, T, 1\)"):
        table.predict([[1, 2, 3], [3, 4, 5]])


def test_forms_of_options_are_equal():
    s = np.arange(40.0)
    one, other = (SequenceForecaster(**SMALL, max_epochs=1, differences=d).fit(s) for d in ([1], np.array([1])))
    assert_same(one, other)


def test_data_frames_of_other_columns_are_refused():
    pandas = pytest.importorskip("pandas")
    X = [pandas.DataFrame(np.ones((n, 2)), columns=["a", "b"]) for n in (2, 3)]
    regressor = SequenceRegressor(**SMALL, max_epochs=1).fit(X, [1.0, 2.0])
    regressor.predict(X)
    with pytest.raises(ValueError, match="same columns in the same order"):
        regressor.predict([x[["b", "a"]] for x in X])


def test_a_series_of_arrays_is_a_list():
    pandas = pytest.importorskip("pandas")
    X = [np.arange(3.0), np.arange(2.0)]
    one, other = (SequenceRegressor(**SMALL, max_epochs=1).fit(x, [1.0, 2.0]) for x in (X, pandas.Series(X)))
    assert_same(one, other)


# --- in company


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
    """A scorer that tells the number of threads that rnnfast has where it runs."""
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


def test_verbose_draws_a_bar(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    X, y = task(SequenceClassifier, np.random.default_rng(0))
    classifier = SequenceClassifier(**SMALL, max_epochs=2, early_stopping=True, verbose=1).fit(X, y)
    shown = capsys.readouterr().err
    for word in ("SequenceClassifier", "2/2", "loss=", f"validation={classifier.validation_scores_[-1]:.4g}"):
        assert word in shown
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        classifier.fit(X, y)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "rnnfast.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"pip install 'rnnfast\[sklearn\]'"):
        import rnnfast.sklearn  # noqa: F401


# --- forecasts


def season_and_trend(steps, rng):
    t = np.arange(steps)
    return 100 + 0.3 * t + 8 * np.sin(2 * np.pi * t / 12) + 4 * np.cos(2 * np.pi * t / 6) + rng.normal(0, 0.3, steps)


@pytest.mark.parametrize(
    "options",
    [{"differences": 12}, {"differences": (1, 12), "cell": "gru"}, {"differences": 1, "window": 24, "horizon": 12}],
    ids=str,
)
def test_a_trend_with_a_season_is_continued_better_than_by_the_last_season(options):
    series = season_and_trend(300, np.random.default_rng(0))
    forecaster = SequenceForecaster(**options, random_state=0).fit(series[:240])
    ours, naive = [], []
    for origin in range(240, 289, 4):
        truth = series[origin : origin + 12]
        ours.append(np.abs(forecaster.predict(12, series=series[:origin]) - truth).mean())
        naive.append(np.abs(series[origin - 12 : origin] - truth).mean())
    assert np.mean(ours) < 0.4 * np.mean(naive)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("window", [None, 7])
def test_forecasts_go_on_from_forecasts(window, cell):
    rng = np.random.default_rng(0)
    x = rng.normal(5, 2, size=(60, 2))
    options = {**SMALL, "horizon": 2, "window": window, "cell": cell, "max_epochs": 2}
    forecaster = SequenceForecaster(**options, multivariate=True).fit(x)
    z = (x - forecaster.mean_) / forecaster.scale_
    ahead = []
    for _ in range(3):
        seen = np.concatenate([z, *ahead])[-window if window else 0 :]
        ahead.append(forecaster.readout_(forecaster.layer_(seen)[0][-1]).reshape(2, 2))
    expected = np.concatenate(ahead)[:5] * forecaster.scale_ + forecaster.mean_
    np.testing.assert_allclose(forecaster.predict(5), expected, rtol=1e-5)
    np.testing.assert_allclose(forecaster.predict(), expected[:2], rtol=1e-5)


@pytest.mark.parametrize("differences", [(), 1, 12, (1, 12), (2, 3, 1)], ids=str)
def test_differences_are_summed_up_again(differences):
    lags = differences if isinstance(differences, tuple) else (differences,)
    x = np.random.default_rng(0).normal(size=100).cumsum()
    forecaster = SequenceForecaster(**SMALL, differences=differences, horizon=3, max_epochs=1).fit(x)
    for layer in (forecaster.readout_,):
        layer.unfreeze()
        layer.parameters["weight"][...] = 0
        layer.parameters["bias"][...] = [1.0, -2.0, 0.5]
    told = np.resize([1.0, -2.0, 0.5], 30) * forecaster.scale_ + forecaster.mean_
    whole = np.concatenate([x, forecaster.predict(30)])
    for lag in lags:
        whole = whole[lag:] - whole[:-lag]
    np.testing.assert_allclose(whole[-30:], told, atol=1e-9)


def test_examples_of_a_forecaster_are_what_follows():
    x = np.arange(20.0)[:, np.newaxis]
    plain = SequenceForecaster(horizon=3)._examples([x], [5])
    np.testing.assert_array_equal(plain.sequences.flat[:, 0], np.arange(19))
    for step in range(19):
        counts = plain.weights[step] > 0
        np.testing.assert_array_equal(counts, [5 <= step + 1 + ahead < 20 for ahead in range(3)])
        np.testing.assert_array_equal(plain.targets[step][counts], (step + 1 + np.arange(3))[counts])
    windows = SequenceForecaster(horizon=2, window=4, differences=1)._examples([x**2], [10])
    inputs = windows.sequences.flat.reshape(-1, 4)
    z = np.diff(np.arange(20.0) ** 2)
    np.testing.assert_array_equal(inputs[0], z[4:8])  # its second target, z[9], is x[10] - x[9]
    np.testing.assert_array_equal(windows.targets[0], z[8:10])
    np.testing.assert_array_equal(windows.weights[0], [0, 1])
    np.testing.assert_array_equal(inputs[-1], z[14:18])
    np.testing.assert_array_equal(windows.weights[-1], [1, 0])


@pytest.mark.parametrize(
    ("series", "options", "shape"),
    [
        (np.arange(30.0), {}, (4,)),
        (np.arange(30.0).tolist(), {}, (4,)),
        (np.ones((30, 2)), {"multivariate": True}, (4, 2)),
        (np.ones((3, 30)), {}, (3, 4)),
        (np.ones((3, 30, 2)), {}, (3, 4, 2)),
        ([np.ones(30), np.ones(25)], {}, (2, 4)),
        ([np.ones((30, 2)), np.ones((25, 2))], {"window": 3}, (2, 4, 2)),
    ],
)
def test_forecasts_have_the_form_of_the_series(series, options, shape):
    forecaster = SequenceForecaster(**SMALL, max_epochs=1, validation_fraction=0.4, **options).fit(series)
    assert forecaster.predict(4).shape == shape
    assert forecaster.predict(4, series=series).tolist() == forecaster.predict(4).tolist()
    assert [bound.shape for bound in forecaster.predict_interval(4, coverage=0.5)] == [shape] * 2
    assert forecaster.score(forecaster.predict(4)) == 0


def test_several_series_are_forecast_each_by_itself():
    rng = np.random.default_rng(0)
    series = [rng.normal(size=length).cumsum() for length in (50, 40, 60)]
    forecaster = SequenceForecaster(**SMALL, differences=1, max_epochs=2).fit(series)
    for x, forecasts in zip(series, forecaster.predict(5), strict=True):
        np.testing.assert_array_equal(forecaster.predict(5, series=x), forecasts)


def test_update_goes_on_and_learns_nothing():
    x = np.random.default_rng(0).normal(size=80)
    forecaster = SequenceForecaster(**SMALL, max_epochs=2).fit(x[:60])
    before = learnt(forecaster)
    forecaster.update(x[60:])
    for name, array in learnt(forecaster).items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(forecaster.predict(5), forecaster.predict(5, series=x))
    with pytest.raises(ValueError, match="series must go on with the 1 known"):
        forecaster.update(np.ones((2, 5)))
    with pytest.raises(ValueError, match="contains NaN"):
        forecaster.update([np.nan])
    assert len(forecaster.series_[0]) == 80


@pytest.mark.parametrize("window", [None, 5])
def test_partial_fit_of_a_forecaster_learns_what_is_new(window):
    t = np.arange(400)
    x = np.where(t < 200, np.sin(t / 3), np.sin(t / 3) ** 3 + 1)  # a new shape from there on
    forecaster = SequenceForecaster(**SMALL, window=window, bptt_steps=25).fit(x[:200])
    static = pickle.loads(pickle.dumps(forecaster)).update(x[200:380])
    for at in range(200, 380, 20):
        forecaster.partial_fit(x[at : at + 20])
    assert len(forecaster.series_[0]) == 380
    assert forecaster.score(x[380:]) > static.score(x[380:])


def test_the_score_is_minus_the_mean_absolute_error():
    x = np.random.default_rng(0).normal(size=50).cumsum()
    forecaster = SequenceForecaster(**SMALL, max_epochs=1).fit(x[:40])
    assert forecaster.score(x[40:]) == pytest.approx(-np.abs(forecaster.predict(10) - x[40:]).mean(), rel=1e-12)
    search = GridSearchCV(forecaster, {"differences": [(), 1, 12]}, cv=TimeSeriesSplit(3, test_size=12))
    series = season_and_trend(150, np.random.default_rng(1))
    assert search.set_params(estimator__max_epochs=10).fit(series).best_params_ == {"differences": 12}


def test_intervals_cover_what_they_promise():
    rng = np.random.default_rng(0)
    x = np.zeros(1400)
    for t in range(1, len(x)):
        x[t] = 0.8 * x[t - 1] + rng.normal()
    forecaster = SequenceForecaster(**SMALL, max_epochs=20, validation_fraction=0.4).fit(x[:800])
    inside = {0.5: [], 0.9: []}
    for origin in range(800, 1390, 10):
        truth = x[origin : origin + 3]
        for coverage, own in inside.items():
            lower, upper = forecaster.predict_interval(3, coverage)
            own.append((lower <= truth) & (truth <= upper))
        forecaster.update(x[origin : origin + 10])
    for coverage, own in inside.items():
        assert np.mean(own) == pytest.approx(coverage, abs=0.1)
    lower, upper = forecaster.predict_interval(3, 0.9)
    deviations = np.sqrt([1, 1 + 0.8**2, 1 + 0.8**2 + 0.8**4])
    np.testing.assert_allclose((upper - lower) / 2, 1.645 * deviations, rtol=0.2)


def test_intervals_need_enough_that_was_held_out():
    x = np.append(np.random.default_rng(0).normal(size=49), 9)  # a large error at the last step, for each step ahead
    forecaster = SequenceForecaster(**SMALL, max_epochs=1).fit(x)
    lower, upper = forecaster.predict_interval(2, coverage=0.8)
    errors = [np.abs(forecaster.predict(2, series=x[:at]) - np.append(x, np.nan)[at : at + 2]) for at in range(40, 50)]
    first, second = np.sort(errors, axis=0).T  # 10 were held out, 9 of them for two steps ahead: ranks 9 and 8
    np.testing.assert_allclose((upper - lower) / 2, [first[8], second[7]], rtol=1e-6)
    np.testing.assert_allclose((upper + lower) / 2, forecaster.predict(2), rtol=1e-6)
    forecaster.predict_interval(2, coverage=0.9)  # rank 9
    with pytest.raises(ValueError, match=r"horizon=3 leaves 8 held-out forecasts .* coverage=0.9"):
        forecaster.predict_interval(3, coverage=0.9)
    with pytest.raises(ValueError, match="leaves 0 held-out forecasts"):
        SequenceForecaster(**SMALL, early_stopping=False, max_epochs=1).fit(x).predict_interval(1)
    with pytest.raises(ValueError, match="coverage must be above 0 and below 1"):
        forecaster.predict_interval(2, coverage=90)


def test_series_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match="series 1 has 15 steps, 3 of them held out, but at least 14 are needed"):
        SequenceForecaster(differences=12).fit([np.ones(30), np.ones(15)])
    forecaster = SequenceForecaster(**SMALL, differences=2, window=3, max_epochs=1).fit(np.arange(20.0))
    with pytest.raises(ValueError, match="series must have 5 steps to go on from, but series 0 has 4"):
        forecaster.predict(series=np.arange(4.0))
    with pytest.raises(ValueError, match="series must have 1 features in each, got 2"):
        forecaster.predict(series=np.ones((1, 20, 2)))
    with pytest.raises(ValueError, match="series must be one"):
        forecaster.fit(np.ones((2, 20, 1, 1)))
    assert forecaster.predict(3).shape == (3,)
