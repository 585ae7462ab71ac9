"""Forecasts: horizons, differences, intervals and updates."""

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: no estimators")

from sklearn.model_selection import GridSearchCV, TimeSeriesSplit
from support.estimators import SMALL, assert_same_fit, learnt

from rnnfast.sklearn import SequenceForecaster, choose_differences

# --- rejected arguments


def test_horizon_set_after_fit_is_how_many_steps_are_given():
    forecaster = SequenceForecaster(**SMALL, max_epochs=1).fit(np.arange(40) % 7.0)
    expected = forecaster.predict(3)
    np.testing.assert_array_equal(forecaster.set_params(horizon=3).predict(), expected)
    with pytest.raises(TypeError, match=r"predict\(series=\.\.\.\)"):
        forecaster.predict(np.arange(40) % 7.0)


def test_forms_of_options_are_equal():
    s = np.arange(40.0)
    one, other = (SequenceForecaster(**SMALL, max_epochs=1, differences=d).fit(s) for d in ([1], np.array([1])))
    assert_same_fit(one, other)


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
def test_long_forecasts_feed_back_forecasts(window, cell):
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


def test_a_series_without_a_trend_stays_as_it_is():
    noise, t = np.random.default_rng(0).normal(size=120), np.arange(120)
    season = 5 * np.sin(2 * np.pi * t / 12)
    for x, lags in [
        (noise, ()),
        (noise.cumsum(), (1,)),
        (noise + 0.1 * t, (1,)),
        (noise + season, (12,)),
        (noise + season + 0.5 * t, (12,)),  # a seasonal difference of a line is constant
        (noise + season + 0.02 * t**2, (12, 1)),
        (0.3 * t, (1,)),
        (np.full(120, 0.1), ()),
        (noise[:35] + season[:35], ()),  # too short
    ]:
        for unit, offset in ((1, 0), (2.0**-1000, 0), (2.0**1000, 0), (-1, 1024)):
            assert choose_differences(np.round(x, 9) * unit + offset, season=12) == lags
    assert choose_differences([noise, 0.3 * t, noise.cumsum()]) == (1,)
    assert choose_differences([noise, noise, noise.cumsum()]) == ()


def test_the_choice_of_differences_is_a_kpss_test():
    stattools = pytest.importorskip("statsmodels.tsa.stattools", reason="statsmodels is not installed: no KPSS test")
    rng, chosen = np.random.default_rng(0), []
    for _ in range(60):
        x = rng.normal(size=rng.integers(10, 300))
        x = x + rng.choice([0, 0.2, 1]) * rng.normal(size=len(x)).cumsum()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # p-values outside the table
            statistic, _, _, critical = stattools.kpss(x, nlags=int(3 * len(x) ** 0.5 / 13))
        chosen.append(choose_differences(x) == (1,))
        assert chosen[-1] == (statistic > critical["5%"])
    assert 15 < sum(chosen) < 45


@pytest.mark.filterwarnings("ignore:series leaves the range:UserWarning")
def test_differences_are_chosen_from_the_part_to_train_on():
    x = season_and_trend(120, np.random.default_rng(0))
    auto = SequenceForecaster(**SMALL, max_epochs=2, differences="auto", season=12).fit(x)
    assert auto.differences_ == choose_differences(x[:96], 12) == (12,)
    assert_same_fit(auto, SequenceForecaster(**SMALL, max_epochs=2, differences=12).fit(x))
    x = np.random.default_rng(0).normal(size=120)
    x[96:] += 100
    assert auto.fit(x).differences_ == ()
    assert SequenceForecaster(**SMALL, differences="auto").partial_fit(x).differences_ == choose_differences(x) == (1,)


@pytest.mark.parametrize("early_stopping", [True, False])
def test_a_trend_that_leaves_the_range_of_training_is_a_warning(early_stopping):
    noise = np.random.default_rng(0).normal(size=100)
    options = {**SMALL, "max_epochs": 1, "early_stopping": early_stopping}
    with pytest.warns(UserWarning, match=r"last 20% of its values is 8\.9\d*, outside 0\.01\d* to 8\.1\d*\. Use"):
        SequenceForecaster(**options).fit(noise / 10 + 0.1 * np.arange(100))
    SequenceForecaster(**options, differences="auto").fit(noise / 10 + 0.1 * np.arange(100))
    forecaster = SequenceForecaster(**options).fit(noise)
    with pytest.warns(UserWarning, match="series leaves the range"):
        forecaster.predict(3, series=noise + 100)
    with pytest.raises(UserWarning, match="series leaves the range"):
        forecaster.update(noise + 100)  # a warning that is an error changes nothing
    assert len(forecaster.series_[0]) == 100


def test_examples_of_a_forecaster_are_the_following_values():
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
        (np.arange(30) % 7.0, {}, (4,)),
        ((np.arange(30) % 7).tolist(), {}, (4,)),
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


def test_update_extends_the_series_without_training():
    x = np.random.default_rng(0).normal(size=80)
    forecaster = SequenceForecaster(**SMALL, max_epochs=2).fit(x[:60])
    before = learnt(forecaster)
    forecaster.update(x[60:])
    for name, array in learnt(forecaster).items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(forecaster.predict(5), forecaster.predict(5, series=x))
    with pytest.raises(ValueError, match="series must continue the 1 series of fit"):
        forecaster.update(np.ones((2, 5)))
    with pytest.raises(ValueError, match="contains NaN"):
        forecaster.update([np.nan])
    assert len(forecaster.series_[0]) == 80


@pytest.mark.filterwarnings("ignore:series leaves the range:UserWarning")
@pytest.mark.parametrize("window", [None, 5])
def test_partial_fit_of_a_forecaster_learns_new_data(window):
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


def test_intervals_have_the_requested_coverage():
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


def test_quantiles_are_those_of_errors_that_are_not_symmetric():
    rng = np.random.default_rng(0)
    x = rng.exponential(size=1200)
    forecaster = SequenceForecaster(**SMALL, max_epochs=5, validation_fraction=0.4).fit(x[:600])
    values = forecaster.predict_quantiles([0.1, 0.5, 0.9], 2)
    below = [(x[600:] <= value[0]).mean() for value in values]
    assert below == pytest.approx([0.1, 0.5, 0.9], abs=0.05)
    for wrong in ([0.0], [0.5, 1.0], ["a"], []):
        with pytest.raises((ValueError, TypeError), match="quantiles must"):
            forecaster.predict_quantiles(wrong)
    with pytest.raises(ValueError, match=r"has 239 forecasts of horizon=2, too few for the quantile 0\.999"):
        forecaster.predict_quantiles([0.5, 0.999], 2)


@pytest.mark.filterwarnings("ignore:series leaves the range:UserWarning")
def test_intervals_need_enough_that_was_held_out():
    x = np.append(np.random.default_rng(0).normal(size=49), 9)  # a large error at the last step, for each step ahead
    forecaster = SequenceForecaster(**SMALL, max_epochs=1).fit(x)
    lower, upper = forecaster.predict_interval(2, coverage=0.8)
    errors = [np.abs(forecaster.predict(2, series=x[:at]) - np.append(x, np.nan)[at : at + 2]) for at in range(40, 50)]
    first, second = np.sort(errors, axis=0).T  # 10 were held out, 9 of them for two steps ahead: ranks 9 and 8
    np.testing.assert_allclose((upper - lower) / 2, [first[8], second[7]], rtol=1e-6)
    np.testing.assert_allclose((upper + lower) / 2, forecaster.predict(2), rtol=1e-6)
    forecaster.predict_interval(2, coverage=0.9)  # rank 9
    with pytest.raises(ValueError, match=r"the held-out set has 8 forecasts of horizon=3, .* coverage=0.9"):
        forecaster.predict_interval(3, coverage=0.9)
    with pytest.raises(ValueError, match="the held-out set has 0 forecasts"):
        SequenceForecaster(**SMALL, early_stopping=False, max_epochs=1).fit(x).predict_interval(1)
    with pytest.raises(ValueError, match="coverage must be above 0 and below 1"):
        forecaster.predict_interval(2, coverage=90)


def test_series_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match=r"series 1 has 15 steps, of which 3 are held out, .* at least 14"):
        SequenceForecaster(differences=12).fit([np.ones(30), np.ones(15)])
    forecaster = SequenceForecaster(**SMALL, differences=2, window=3, max_epochs=1).fit(np.arange(20.0))
    with pytest.raises(ValueError, match="series 0 has 4 steps, but a forecast needs at least 5"):
        forecaster.predict(series=np.arange(4.0))
    with pytest.raises(ValueError, match="series 0 has 2 variables, expected 1"):
        forecaster.predict(series=np.ones((1, 20, 2)))
    with pytest.raises(ValueError, match="series must be one"):
        forecaster.fit(np.ones((2, 20, 1, 1)))
    assert forecaster.predict(3).shape == (3,)
