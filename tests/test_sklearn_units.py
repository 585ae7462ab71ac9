"""Predictions do not depend on the unit and the offset of the inputs, and follow those of the targets."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no estimators")

from hypothesis import given
from hypothesis import strategies as st
from support.estimators import ALL, SMALL, assert_same_fit, learnt

from rnnfast.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor, SequenceTagger

BRIEF = {**SMALL, "max_epochs": 3}
UNITS = [1e-300, 1e-9, 1e-3, 1e12, 1e307, -1.0]
RECENT = (  # attributes that version 0.1 does not pickle
    "_scale", "_target_scale", "_constants", "past_", "future_", "differences_", "_range", "_columns_of",
)  # fmt: skip
SUPERVISED = [SequenceClassifier, SequenceRegressor, SequenceTagger]


def sequences(rng, count=30):
    """Multiples of 1/1024 of both signs, so that units and offsets cause no rounding of their own."""
    return [np.round(rng.normal(size=(length, 2)) * 1024) / 1024 for length in rng.integers(1, 8, count)]


def targets(kind, X):
    if kind is SequenceTagger:
        return [(x[:, 0] > 0).astype(int) for x in X]
    return [float(x.sum()) for x in X] if kind is SequenceRegressor else [int(x.sum() > 0) for x in X]


def answers(estimator, X):
    """The answers of an estimator with targets, as one array."""
    given = estimator.predict(X) if isinstance(estimator, SequenceRegressor) else estimator.predict_proba(X)
    return np.concatenate(given) if isinstance(given, list) else given


def forecasts(forecaster):
    return np.array([forecaster.predict(7), *forecaster.predict_interval(3, 0.5)], dtype=object)


# --- without spread


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "options", [{}, {"window": 5}, {"horizon": 3}, {"differences": 4}, {"early_stopping": False}, {"dtype": "float64"}]
)
def test_a_constant_series_stays_constant(unit, options):
    forecaster = SequenceForecaster(**BRIEF, **options).fit(np.full(60, unit / 3))
    assert forecaster.predict(9).tolist() == [unit / 3] * 9
    assert forecaster.score(np.full(5, unit / 3)) == 0
    assert set(forecaster.loss_curve_) == {0}
    assert forecaster.partial_fit(np.full(5, unit / 3)).predict(2).tolist() == [unit / 3] * 2
    if "early_stopping" not in options:
        assert [bound.tolist() for bound in forecaster.predict_interval(2, 0.5)] == [[unit / 3] * 2] * 2


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("window", [None, 6])
def test_a_season_is_repeated(unit, window):
    season = unit * np.array([0.1, 0.2, -0.3, 0.4])
    forecaster = SequenceForecaster(**BRIEF, window=window, differences=4).fit(np.tile(season, 30))
    assert forecaster.predict(11).tolist() == np.tile(season, 3)[:11].tolist()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("differences", [1, 2, (1, 1), (1, 4)], ids=str)
@pytest.mark.parametrize("start", [0, 7, -3.3])
def test_a_line_is_continued(unit, differences, start):
    line = (start + np.arange(80) / 10) * unit
    forecaster = SequenceForecaster(**BRIEF, differences=differences).fit(line[:60])
    np.testing.assert_allclose(forecaster.predict(20), line[60:], rtol=1e-12)
    assert forecaster.scale_ == 0


def test_a_line_in_float32_is_continued():
    line = np.float32(0.1) * np.arange(80, dtype=np.float32)
    for form in (line[:60], list(line[:60]), [line[:60]], line[:60].astype(np.float16)):
        forecaster = SequenceForecaster(**BRIEF, differences=1).fit(form)
        assert forecaster.scale_ == 0
        rtol = 1e-2 if getattr(form, "dtype", None) == np.float16 else 1e-6
        np.testing.assert_allclose(forecaster.predict(20).ravel(), line[60:], rtol=rtol)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("options", [{}, {"differences": 1}, {"window": 4}], ids=str)
def test_other_series_without_spread_are_continued(unit, options):
    forecaster = SequenceForecaster(**BRIEF, **options).fit(np.full(60, 1 / 7))
    assert forecaster.predict(3, np.full(20, unit / 3)).tolist() == [unit / 3] * 3
    others = [np.full(9, 1e9), np.full(12, unit / 3), np.full(9, 1 / 7)]
    assert forecaster.predict(2, others).tolist() == [[1e9] * 2, [unit / 3] * 2, [1 / 7] * 2]
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=60), np.full(60, 1 / 7)])
    both = SequenceForecaster(**BRIEF, **options, multivariate=True).fit(x)
    assert both.predict(3, x[:20] * [1, 7 * unit])[:, 1].tolist() == [x[0, 1] * (7 * unit)] * 3


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("options", [{}, {"window": 4, "horizon": 2}], ids=str)
def test_a_variable_without_spread_among_others(unit, options):
    steps = np.arange(60)
    x = np.column_stack([np.sin(steps), np.full(60, unit / 3)])
    forecaster = SequenceForecaster(**BRIEF, **options, multivariate=True).fit(x)
    assert forecaster.predict(9)[:, 1].tolist() == [unit / 3] * 9
    other = SequenceForecaster(**BRIEF, **options, multivariate=True).fit(np.column_stack([np.sin(steps), 0 * steps]))
    np.testing.assert_array_equal(forecaster.predict(9)[:, 0], other.predict(9)[:, 0])
    assert_same_fit(forecaster, other)


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"standardize": False}], ids=str)
def test_a_series_without_spread_among_others(options):
    rng = np.random.default_rng(0)
    series = [rng.normal(size=50), np.full(40, 1 / 3), np.full(30, 1e6 / 3)]
    forecaster = SequenceForecaster(**BRIEF, **options).fit(series)
    assert forecaster.predict(5)[1:].tolist() == [[1 / 3] * 5, [1e6 / 3] * 5]
    lines = SequenceForecaster(**BRIEF, **options, differences=1).fit([rng.normal(size=50), np.arange(40) / 10])
    np.testing.assert_allclose(lines.predict(5)[1], np.arange(40, 45) / 10, rtol=1e-12)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_constant_target_is_predicted_exactly(unit, early_stopping):
    X = sequences(np.random.default_rng(0))
    regressor = SequenceRegressor(**BRIEF, early_stopping=early_stopping).fit(X, np.full(30, unit / 3))
    assert set(regressor.predict(X)) == {unit / 3}
    assert regressor.score(X, np.full(30, unit / 3)) == 1
    assert regressor.validation_scores_ is None or set(regressor.validation_scores_) == {1}
    y = np.column_stack([targets(SequenceRegressor, X), np.full(30, unit / 3)])
    both = SequenceRegressor(**BRIEF, early_stopping=early_stopping).fit(X, y)
    assert set(both.predict(X)[:, 1]) == {unit / 3}
    other = SequenceRegressor(**BRIEF, early_stopping=early_stopping).fit(X, y * [1, 0])
    assert_same_fit(both, other)
    assert both.score(X, y) == other.score(X, y * [1, 0])


def test_a_single_class_is_certain():
    X = sequences(np.random.default_rng(0))
    assert set(SequenceClassifier(**BRIEF).fit(X, ["only"] * 30).predict_proba(X)[:, 0]) == {1}


@pytest.mark.parametrize(
    "constant", [1700000000123456789, 1.7e18 / 3, 1e15 + 0.1, 1e40 / 3, -1.7e308, np.float32(0.1), 5e-324, 255]
)
@pytest.mark.parametrize("kind", SUPERVISED)
def test_a_feature_without_spread_is_zero(kind, constant):
    X = sequences(np.random.default_rng(0))
    y = targets(kind, X)
    zero, other = (
        kind(**BRIEF).fit([np.column_stack([x, np.full(len(x), value)]) for x in X], y) for value in (0, constant)
    )
    assert_same_fit(other, zero)
    assert other.mean_[2] == np.float64(constant)
    assert other.scale_[2] == 0
    # Nothing was learnt about the feature, so its value does not matter later.
    for later in (constant / 2, 1.7e308, -1.7e308):
        wide = [np.column_stack([x, np.full(len(x), later)]) for x in X]
        np.testing.assert_array_equal(answers(other, wide), answers(zero, wide))


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.int64, np.float16, np.float32])
def test_features_of_any_dtype_without_spread(dtype):
    X = np.random.default_rng(0).integers(0, 2, (20, 4, 3)).astype(dtype)
    X[..., 1] = 1
    y = np.arange(20) % 2
    classifier = SequenceClassifier(**BRIEF).fit(X, y)
    assert classifier.scale_[1] == 0
    assert_same_fit(classifier, SequenceClassifier(**BRIEF).fit(X.astype(float) * [1, 0, 1], y))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", SUPERVISED)
def test_a_spread_of_one_unit_in_the_last_place_is_rounding(kind, dtype):
    """As of 0.1 + 0.2 and 0.3, and as in scikit-learn, which does not scale such columns either."""
    rng = np.random.default_rng(0)
    X, base = rng.normal(size=(30, 4, 3)).astype(dtype), np.dtype(dtype).type(1.7e9 / 3)
    y = targets(kind, X)
    X[..., 1] = 0
    zero = kind(**BRIEF).fit(X, y)
    for one, other in ((0.1 + 0.2, 0.3), (base, np.nextafter(base, 2 * base)), (-1, np.nextafter(-1, 0, dtype=dtype))):
        X[..., 1] = np.where(rng.integers(0, 2, (30, 4)), one, other)
        rounded = kind(**BRIEF).fit(X, y)
        assert_same_fit(rounded, zero)
        assert rounded.scale_[1] == 0


@pytest.mark.parametrize("base", [1.0, 1e15 + 0.1, 1e300, 1.7e9])
def test_values_a_few_units_in_the_last_place_apart_have_spread(base):
    values = base + np.spacing(base) * 4 * np.random.default_rng(0).integers(0, 2, (40, 5))
    y = values[:, -1] > base
    classifier = SequenceClassifier(**SMALL, max_epochs=60).fit(values[..., np.newaxis], y)
    assert classifier.score(values[..., np.newaxis], y) == 1


@pytest.mark.parametrize("start", [1.7e9, 1.7e15])
def test_time_stamps_have_spread(start):
    """In seconds and in microseconds, in steps of 1."""
    X = start + np.random.default_rng(0).integers(0, 40, (40, 1)) + np.arange(6)
    y = X[:, 0] > start + 20
    classifier = SequenceClassifier(**SMALL, max_epochs=60).fit(X[..., np.newaxis], y)
    assert classifier.score(X[..., np.newaxis], y) > 0.95


def test_a_target_whose_spread_is_rounding_is_constant():
    X = sequences(np.random.default_rng(0))
    regressor = SequenceRegressor(**BRIEF).fit(X, [0.1 + 0.2, 0.3] * 15)
    assert regressor.target_scale_ == 0
    assert len(set(regressor.predict(X))) == 1
    assert regressor.predict(X)[0] == pytest.approx(0.3, rel=1e-15)


# --- spread that appears later


def test_a_target_gets_its_scale_from_the_first_data_with_spread():
    X = np.random.default_rng(0).normal(size=(60, 3, 1))
    y = X.sum(axis=(1, 2))
    for unit in (2.0**40, 2.0**-40):
        regressor = SequenceRegressor(**SMALL).partial_fit(X[:1], [3 * unit]).partial_fit(X[1:2], [3 * unit])
        assert set(regressor.predict(X)) == {3 * unit}
        regressor = pickle.loads(pickle.dumps(regressor))
        for _ in range(150):
            regressor.partial_fit(X, (y + 3) * unit)
        assert regressor.score(X, (y + 3) * unit) > 0.9
        assert regressor.target_mean_ == 3 * unit
        assert regressor.target_scale_ == pytest.approx(unit * np.sqrt(np.mean(y**2)))


def test_a_feature_gets_its_scale_from_the_first_data_with_spread():
    X, y = np.random.default_rng(0).normal(size=(60, 3, 1)), np.arange(60) % 2
    X[:, -1, 0] = y - 0.5
    for unit in (1.0, 1e12):
        classifier = SequenceClassifier(**SMALL).partial_fit(np.ones((4, 3, 1)) * unit, y[:4], classes=[0, 1])
        for _ in range(60):
            classifier.partial_fit(X * unit, y)
        assert classifier.score(X * unit, y) == 1


def test_a_series_that_starts_constant_is_learnt_later():
    wave = 5 + np.sin(np.arange(805) / 3)
    for unit in (1e-6, 1e6):
        forecaster = SequenceForecaster(**SMALL, learning_rate=0.03).partial_fit(np.full(50, 5 * unit))
        assert forecaster.predict(3).tolist() == [5 * unit] * 3
        for first in range(0, 800, 20):
            forecaster.partial_fit(wave[first : first + 20] * unit)
        assert forecaster.mean_ == 5 * unit
        assert forecaster.score(wave[800:] * unit) > -0.3 * unit
        updated = SequenceForecaster(**BRIEF).fit(np.full(50, 5 * unit)).update(wave[:9] * unit)
        assert updated.predict(3).tolist() == [5 * unit] * 3  # update does not train


# --- other units and offsets


@pytest.mark.parametrize("kind", SUPERVISED)
@given(
    exponents=st.tuples(st.integers(-900, 900), st.integers(-900, 900)),
    of_target=st.integers(-900, 900),
    early_stopping=st.booleans(),
)
def test_powers_of_two_as_units_give_the_same_bits(kind, exponents, of_target, early_stopping):
    rng = np.random.default_rng(0)
    X = sequences(rng)
    y, other_y = targets(kind, X), targets(kind, X)
    if kind is SequenceRegressor:
        other_y = np.ldexp(y, of_target)
    other_X = [np.ldexp(x, exponents) for x in X]
    options = {**BRIEF, "early_stopping": early_stopping, "validation_fraction": 0.3}
    one, other = kind(**options).fit(X, y), kind(**options).fit(other_X, other_y)
    assert_same_fit(one, other)
    assert one.validation_scores_ == other.validation_scores_
    expected = np.ldexp(answers(one, X), of_target if kind is SequenceRegressor else 0)
    np.testing.assert_array_equal(answers(other, other_X), expected)
    assert other.score(other_X, other_y) == one.score(X, y)


@given(
    exponent=st.integers(-900, 900),
    options=st.sampled_from([{}, {"window": 6, "horizon": 2}, {"differences": (1, 4)}]),
)
def test_powers_of_two_as_units_of_series_give_the_same_bits(exponent, options):
    series = np.random.default_rng(0).normal(size=(2, 60)).cumsum(axis=1)
    one, other = (SequenceForecaster(**BRIEF, **options).fit(np.ldexp(series, by)) for by in (0, exponent))
    assert_same_fit(one, other)
    assert one.validation_scores_ == other.validation_scores_
    np.testing.assert_array_equal(other.predict(5), np.ldexp(one.predict(5), exponent))
    for bound, expected in zip(other.predict_interval(2, 0.5), one.predict_interval(2, 0.5), strict=True):
        np.testing.assert_array_equal(bound, np.ldexp(expected, exponent))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", SUPERVISED)
@given(
    unit=st.sampled_from([1e-6, 1e6, 3.0, 1e100]),
    offset=st.sampled_from([0, 1e12, -1e12, 1700000000]),
)
def test_units_and_offsets_do_not_matter(kind, dtype, unit, offset):
    """The network sees inputs that differ by rounding in float64, at most a unit in the last place in its own dtype.

    An offset is applied to multiples of 1/1024, which remain exact up to 2**43. Three updates amplify a difference
    of eps about a hundredfold.
    """
    X = sequences(np.random.default_rng(0))
    y = targets(kind, X)
    moved_X, moved_y = [(x + offset) if offset else x * unit for x in X], y
    if kind is SequenceRegressor:
        moved_y = np.array(y) + offset if offset else np.array(y) * unit
    options = {**BRIEF, "dtype": dtype}
    expected = answers(kind(**options).fit(X, y), X)
    got = answers(kind(**options).fit(moved_X, moved_y), moved_X)
    if kind is SequenceRegressor:
        got = got - offset if offset else got / unit
    # The answer of a regressor is rounded at the size of the offset.
    rounding = np.spacing(abs(offset)) if kind is SequenceRegressor and offset else 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=200 * np.finfo(dtype).eps + rounding)


@pytest.mark.filterwarnings("ignore:series leaves the range:UserWarning")
@given(unit=st.sampled_from([1e-6, 1e6, 3.0, 1e100]), offset=st.sampled_from([0, 1e12, -1e12]))
def test_forecasts_follow_the_unit_and_offset_of_the_series(unit, offset):
    series = np.round(np.random.default_rng(0).normal(size=60).cumsum() * 1024) / 1024
    expected = SequenceForecaster(**BRIEF).fit(series).predict(5)
    got = SequenceForecaster(**BRIEF).fit(series + offset if offset else series * unit).predict(5)
    got = got - offset if offset else got / unit
    rounding = np.spacing(abs(offset)) if offset else 0
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.ptp(series) + rounding)


def test_sample_weights_of_any_size_give_the_same_scale():
    X = sequences(np.random.default_rng(0))
    y, weights = targets(SequenceRegressor, X), np.random.default_rng(1).uniform(size=30)
    one, tiny = (SequenceRegressor(**BRIEF).fit(X, y, weights * by) for by in (1, 2.0**-1000))
    assert_same_fit(one, tiny)
    for name in ("mean_", "scale_", "target_mean_", "target_scale_"):
        np.testing.assert_array_equal(getattr(one, name), getattr(tiny, name))


def test_values_at_the_end_of_the_dtype():
    top = np.finfo(np.float64).max
    rng = np.random.default_rng(0)
    X, y = rng.uniform(-1, 1, (40, 3, 1)), rng.uniform(-1, 1, 40)
    X[0], X[1], y[:2] = 1, -1, (1, -1)
    one, other = SequenceRegressor(**BRIEF).fit(X, y), SequenceRegressor(**BRIEF).fit(X * top, y * top)
    np.testing.assert_allclose(other.predict(X * top) / top, one.predict(X), rtol=1e-4, atol=1e-5)
    single = np.finfo(np.float32).max
    SequenceClassifier(**BRIEF).fit((X * single).astype(np.float32), y > 0)
    with pytest.raises(ValueError, match="series has values that are too large: their differences must be finite"):
        SequenceForecaster(differences=1).fit(top * np.cos(np.arange(60) * np.pi))


@pytest.mark.parametrize("kind", ALL)
def test_estimators_of_version_0_1_keep_their_scale(kind):
    X = sequences(np.random.default_rng(0))
    data = (X[0][:, 0].repeat(20),) if kind is SequenceForecaster else (X, targets(kind, X))
    estimator = kind(**BRIEF).fit(*data)
    state = estimator.__getstate__()
    old = kind.__new__(kind)
    old.__setstate__({name: value for name, value in state.items() if name not in RECENT})
    if kind is SequenceForecaster:
        old._form = old._form[:2]
        np.testing.assert_allclose(old.predict(3), estimator.predict(3), rtol=1e-6)
    else:
        np.testing.assert_allclose(answers(old, X), answers(estimator, X), rtol=1e-4)
    old.partial_fit(*data)
    assert learnt(old).keys() == learnt(estimator).keys()
