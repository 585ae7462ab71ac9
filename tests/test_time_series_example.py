"""examples/time_series.py: forecasts of CO2 and sunspots."""

import numpy as np
import pytest
from support.checkout import load_example

pytestmark = [
    pytest.mark.usefixtures("threads"),  # the programs set the number
    pytest.mark.filterwarnings("ignore:series leaves the range:UserWarning"),  # random walks
]

pytest.importorskip("sklearn")

time_series = load_example("time_series")


def silent(what):
    pass


def made_up(values, **changes):
    """A small series like those of the example."""
    series = time_series.Series(
        name="Made up",
        unit="m",
        step="year",
        times=np.arange(len(values), dtype=float),
        values=values,
        horizon=4,
        period=12,
        earlier=range(60, 70, 5),
        origins=range(80, 91, 5),
        options={"differences": 1},
        to_network=np.sqrt,
        from_network=time_series.square,
        baselines={"last": time_series.seasonal_naive(1)},
    )
    return series._replace(**changes)


@pytest.fixture
def walk():
    return 50 + np.cumsum(np.random.default_rng(0).standard_normal(100))


@pytest.mark.parametrize("length", [90, 95, 101])
def test_season_is_found_and_put_on_again(length):
    months = np.random.default_rng(0).standard_normal(12)
    months -= months.mean()
    trend = 300 + 0.1 * np.arange(length + 24)
    whole = trend + months[np.arange(length + 24) % 12]
    known = whole[:length]
    np.testing.assert_allclose(time_series.without_season(known), trend[:length], atol=1e-9)
    np.testing.assert_allclose(time_series.with_season(trend[length:], known), whole[length:], atol=1e-9)


def test_naive_repeats_the_last_season():
    np.testing.assert_array_equal(time_series.seasonal_naive(3)(np.arange(7), 5), [4, 5, 6, 4, 5])


def test_no_method_sees_values_after_the_origin(walk):
    changed = walk.copy()
    changed[80:] += 1000
    settings = {"cell": "rnn", "hidden_size": 3, "max_epochs": 3, "validation_fraction": 0.3}
    # Only the first origin lies before all that was changed.
    (forecasts, bounds), (others, other_bounds) = (
        time_series.roll(made_up(values, origins=range(80, 81)), settings, 2, silent) for values in (walk, changed)
    )
    for name, forecast in forecasts.items():
        assert forecast.tobytes() == others[name].tobytes(), name
    assert bounds.tobytes() == other_bounds.tobytes()


def test_choice_is_by_the_error_from_earlier_origins(walk, monkeypatch):
    monkeypatch.setattr(time_series, "CELLS", ("rnn",))
    monkeypatch.setattr(time_series, "HIDDEN", (2, 4))
    changed = walk.copy()
    changed[70 + 4 :] += 1000  # beyond the forecasts from the earlier origins
    choices = [time_series.choose(made_up(values, options={"max_epochs": 2}), 1, silent) for values in (walk, changed)]
    assert choices[0] == choices[1]
    settings, scores = choices[0]
    assert scores["rnn", settings["hidden_size"]] == min(scores.values())


def test_forecast_is_the_mean_over_seeds_within_its_bounds(walk):
    settings = {"cell": "gru", "hidden_size": 3, "max_epochs": 3, "validation_fraction": 0.3}
    series = made_up(walk, to_network=np.copy, from_network=lambda forecast, values: forecast)  # noqa: ARG005
    ahead, lower, upper = time_series.network(series, walk[:80], settings, 3)
    members = time_series.forecasters(series, walk[:80], settings, 3)
    assert len({model.predict(4).tobytes() for model in members}) == 3
    np.testing.assert_allclose(ahead, sum(model.predict(4) for model in members) / 3)
    assert (lower < ahead).all()
    assert (ahead < upper).all()


def test_scale_of_errors_is_the_seasonal_naive_error_of_known_values(walk):
    series = made_up(walk)
    expected = [np.mean([abs(walk[t] - walk[t - 12]) for t in range(12, origin)]) for origin in series.origins]
    np.testing.assert_allclose(time_series.scales(series), expected)


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("statsmodels")
    return time_series.load(quick=False)


def test_series_and_their_origins(data):
    co2, sunspots = data
    assert (co2.times[0], len(co2.values)) == (pytest.approx(1958 + 2.5 / 12), 526)
    assert (sunspots.times[0], sunspots.times[-1], sunspots.values[-1]) == (1700, 2008, 2.9)
    assert co2.times[co2.origins[0]] == pytest.approx(1990 + 0.5 / 12)
    assert sunspots.times[sunspots.origins[0]] == 1949
    for series in data:
        assert np.isfinite(series.values).all()
        assert series.earlier[-1] + series.horizon <= series.origins[0]
        assert series.origins[-1] + series.horizon <= len(series.values)


def test_baselines_are_right_on_series_that_they_know(data):
    co2, sunspots = data
    months = 300 + 0.2 * np.arange(144) + np.sin(np.arange(144) * np.pi / 6)
    for name, method in co2.baselines.items():
        if name.startswith("Holt"):
            np.testing.assert_allclose(method(months[:120], 24), months[120:], rtol=1e-3)
    years = np.square(5 + 3 * np.sin(2 * np.pi * np.arange(110) / 11) + 1e-3 * np.random.default_rng(0).random(110))
    np.testing.assert_allclose(sunspots.baselines["AR(9) of the square root"](years[:100], 10), years[100:], rtol=0.02)
    np.testing.assert_allclose(sunspots.baselines["seasonal naive, 11 years"](years[:100], 10), years[100:], rtol=0.01)


@pytest.fixture
def small(monkeypatch, walk):
    monkeypatch.setattr(time_series, "CELLS", ("rnn",))
    monkeypatch.setattr(time_series, "HIDDEN", (2,))
    options = {"max_epochs": 2, "validation_fraction": 0.3}
    both = [made_up(walk, options=options), made_up(walk, name="Another", options=options)]
    monkeypatch.setattr(time_series, "load", lambda quick: both)  # noqa: ARG005


@pytest.mark.usefixtures("small")
def test_run_from_end_to_end(tmp_path, capsys):
    arguments = ["--seeds", "2", "--picture", str(tmp_path / "picture.png")]
    assert time_series.main(arguments) == 0
    report, progress = capsys.readouterr()
    assert "Another, 4 years ahead, from 3 origins, 80 to 90." in report
    assert report.count("chosen") == report.count("rnnfast  ") == 2
    assert "forecasting" in progress
    assert time_series.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == report.splitlines()[:-1]  # but for the seconds


@pytest.mark.usefixtures("small")
def test_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert time_series.main(["--seeds", "1", "--picture", str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert time_series.main(["--seeds", "1", "--picture", str(tmp_path / "picture.odd")]) == 2
    assert "cannot draw" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_without_matplotlib_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(time_series.sys.modules, "matplotlib.figure", None)
    assert time_series.main(["--seeds", "1"]) == 0
    assert "pip install matplotlib" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "package"), [("statsmodels.datasets", "statsmodels"), ("rnnfast.sklearn", "scikit-learn")]
)
def test_missing_packages_are_one_line(module, package, capsys, monkeypatch, walk):
    if package == "scikit-learn":
        monkeypatch.setattr(time_series, "load", lambda quick: [made_up(walk)])  # noqa: ARG005
    monkeypatch.setitem(time_series.sys.modules, module, None)
    assert time_series.main([]) == 2
    assert f"pip install {package}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--threads", "two"]])
def test_invalid_options(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        time_series.main(arguments)
    assert "must be an integer from 1 to" in capsys.readouterr().err
