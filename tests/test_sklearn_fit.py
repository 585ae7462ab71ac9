"""What the estimators learn, and the guarantees of fit and partial_fit."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no estimators")

from sklearn.base import clone
from support.estimators import ALL, SMALL, assert_same_fit, bits, learnt, task

import rnnfast
from rnnfast.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor, SequenceTagger

# --- tasks with known answers


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_tagger_learns_a_delay_of_three_steps(cell):
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


# --- the same bits


@pytest.mark.parametrize("kind", ALL)
def test_a_fit_is_reproduced_with_any_number_of_threads(kind, threads):
    data = task(kind, np.random.default_rng(0))
    options = {"max_epochs": 3, "dropout": 0.2, "num_layers": 2, "early_stopping": True, "random_state": 3}
    fits = []
    for count in (1, 2, 1):
        threads(count)
        fits.append(kind(**options, hidden_size=40).fit(*data))
    assert_same_fit(fits[0], fits[1])
    assert_same_fit(fits[0], fits[2])
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


# --- partial fits


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


def test_partial_fit_accepts_classes_that_appear_later():
    X, y = np.eye(3)[[0, 1, 2]], np.array(["a", "b", "c"])
    classifier = SequenceClassifier(**SMALL).partial_fit(X[:2], y[:2], classes=y)
    for _ in range(100):
        classifier.partial_fit(X, y)
    assert classifier.predict(X).tolist() == y.tolist()
    with pytest.raises(ValueError, match=r"y has the label 'd', which is not one of the classes"):
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
    epoch = classifier._epoch
    classifier._epoch = lambda examples, adam: sizes.append(len(examples.targets)) or epoch(examples, adam)
    classifier.fit(X, y)
    assert sizes == [120, 30] * 5


def test_without_early_stopping_the_loss_ends_a_fit():
    X, y = np.ones((10, 3)), np.zeros(10)
    regressor = SequenceRegressor(**SMALL, n_iter_no_change=3, tol=10.0).fit(X, y)
    assert regressor.n_iter_ == len(regressor.loss_curve_) == 4
    assert regressor.validation_scores_ is None


def test_fit_that_is_told_to_stop_before_its_first_epoch_trains_for_one():
    """As the command line does at Ctrl-C."""
    X, y = task(SequenceClassifier, np.random.default_rng(0))
    classifier = SequenceClassifier(**SMALL)
    build = classifier._build
    classifier._build = lambda *given: build(*given) or setattr(classifier, "n_iter_no_change", 0)
    assert classifier.fit(X, y).n_iter_ == 1


# --- weights of classes and scales


def test_class_weights_are_weights_of_rows():
    X, y = task(SequenceClassifier, np.random.default_rng(0))
    options = {**SMALL, "max_epochs": 3}
    by_class = SequenceClassifier(**options, class_weight={1: 4.0}).fit(X, y)
    by_row = SequenceClassifier(**options).fit(X, y, sample_weight=np.where(np.array(y) == 1, 4.0, 1.0))
    # Standardizing heeds the weights of rows, not those of classes.
    plain = SequenceClassifier(**options, standardize=False)
    assert_same_fit(
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


# --- rejected arguments


@pytest.mark.parametrize("factor", [1e300, 1e39, 1e-200])
def test_numbers_of_any_size_are_scaled(factor):
    X, y = np.random.default_rng(0).normal(size=(40, 5, 2)), np.arange(40.0)
    options = {**SMALL, "max_epochs": 3}
    factor = 2.0 ** round(np.log2(factor))  # the same bits
    plain, scaled = (SequenceRegressor(**options).fit(X * by, y * by) for by in (1, factor))
    assert_same_fit(plain, scaled)
    np.testing.assert_array_equal(scaled.predict(X * factor), plain.predict(X) * factor)
    assert scaled.score(X * factor, y * factor) == plain.score(X, y)
    plain, scaled = (SequenceForecaster(**options).fit(y % 7 * by) for by in (1, factor))
    np.testing.assert_array_equal(scaled.predict(3), plain.predict(3) * factor)


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


# --- the leaky RNN


@pytest.mark.parametrize("kind", ALL)
def test_a_leak_is_that_of_the_layer(kind):
    data = task(kind, np.random.default_rng(0), count=20)
    options = {**SMALL, "max_epochs": 2, "num_layers": 2}
    estimator = kind("rnn", leak=0.25, **options).fit(*data)
    layer = estimator.layer_
    options = {"bidirectional": layer.bidirectional, "rng": 0}
    expected = rnnfast.RNN(layer.input_size, layer.hidden_size, layer.num_layers, leak=0.25, **options)
    expected.load_state_dict(layer.state_dict())
    x = np.random.default_rng(1).normal(size=(7, 3, layer.input_size)).astype(np.float32)
    np.testing.assert_array_equal(layer(x)[0], expected(x)[0])
    assert estimator.loss_curve_ != kind("rnn", **SMALL, max_epochs=2, num_layers=2).fit(*data).loss_curve_


def test_estimators_from_before_the_leak_go_on():
    X, y = task(SequenceRegressor, np.random.default_rng(0), count=20)
    one, other = (SequenceRegressor("rnn", **SMALL, max_epochs=2).fit(X, y) for _ in range(2))
    del other.leak
    del other._built["leak"]
    other = pickle.loads(pickle.dumps(other))
    assert_same_fit(one.partial_fit(X, y), other.partial_fit(X, y))
    assert clone(other).get_params() == one.get_params()
