"""``python -m rnnfast train csv`` and ``predict``."""

import re
import signal
import sys

import numpy as np
import pytest
from support.archives import contents
from support.command_line import FAST, failure, main, random_model, train_csv

import rnnfast
from rnnfast.commands import program, series, tables

# --- train csv, predict


def test_columns_of_a_file(sheet, quarters):
    table = tables.read(str(sheet), tables.Reading(["sold"], "month"))
    assert (table.times.at(-79), table.times.at(0)) == ("2004-01", "2023-10")
    assert (table.values == quarters[:, np.newaxis]).all()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"a,b\n1,2\n", [], "has no column 'sold'; its columns are: a, b"),
        (b"", [], "has no column 'sold'; its columns are: none"),
        (b"sold,sold\n1,2\n", [], "has more than one column 'sold'"),
        (b"sold;day\n1;2\n", ["--delimiter", ","], "columns are: sold;day; try --delimiter ';'"),
        (b"sold,day\n1,2\n3\n", [], "line 3 has 1 fields, but the first line has 2"),
        (b"sold\n1\nmany\n", [], "row 2 has 'many' in column 'sold', which is not a finite number"),
        (b"sold\n1\ninf\n", [], "row 2 has 'inf'"),
        (
            b"sold,x\n,2\n",
            [],
            "column 'sold' has no value in row 1; remove the last rows without a value, or give --fill",
        ),
        (b'sold\n"1\n', [], "line 2: unexpected end of data"),
        (b"sold\n\xff\n", [], "row 1 has '\xff' in column 'sold', which is not a finite number"),
        (
            b"sold,day\n1,4\n2,5\n3,7\n",
            ["--time-column", "day"],
            "row 3 has '7' after '5', but the step is 1; add the missing rows (1), or fill them with --fill",
        ),
        (b"sold,day\n1,6\n2,5\n3,4\n", ["--time-column", "day"], "the times decrease"),
        (b"sold,day\n1,6\n2,6\n3,6\n", ["--time-column", "day"], "row 2 has '6' after '6'"),
        (b"sold,day\n1,mo\n2,tu\n", ["--time-column", "day"], "row 1 has 'mo', which is not a time"),
        (b"sold,day\n1,2024-01\n2,x\n3,2024-03\n", ["--time-column", "day"], "row 2 has 'x', which is not a time"),
        (b"sold,day\n", ["--time-column", "day"], "there are 0 rows"),
        (b"sold,day\n1,4\n", ["--time-column", "day"], "there are 1 rows"),
        (b"sold\n1\n\n2\n\n", [], "column 'sold' has no value in row 2"),
        (b"sold\n1_000\n", [], "row 1 has '1_000'"),
        (b"\xef\xbb\xbf" * 2 + b"sold\n1\nx\n", [], "row 2 has 'x' in column 'sold'"),
        (b"sold\n1\0\n", [], "the byte at offset 6, in line 2, is null; remove it"),
        (b"a" * 100_000 + b",b\n1,2\n", [], f"its columns are: {'a' * 40}, b"),
        (b"a," * 10_000 + b"b\n", [], f"its columns are: {'a, ' * 20}..."),
        (b"\xff\xfes\0", [], "has no column 'sold'; its columns are: s"),
        (b"sold\n1\nx\n", ["--delimiter", r"\t"], "has 'x' in column"),
        (b"sold,day\n1,4\n", ["--time-column", "date"], "has no column 'date'"),
        (b"sold\n1\n", ["--delimiter", ", "], "--delimiter must be a single character of ASCII, not ', '"),
    ],
)
def test_invalid_csv_files(content, arguments, message, tmp_path, capsys):
    path = tmp_path / "sales.csv"
    path.write_bytes(content)
    command = ["train", "csv", path, "--column", "sold", "-o", tmp_path / "model", *arguments]
    line = failure(capsys, *command)
    assert message in line
    assert len(line) < 1000
    assert list(tmp_path.iterdir()) == [path]


def test_missing_csv_file(tmp_path, capsys):
    command = ["train", "csv", tmp_path / "none.csv", "--column", "sold", "-o", tmp_path / "model"]
    assert "cannot read" in failure(capsys, *command)


def test_without_scikit_learn_it_says_what_to_install(sheet, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "rnnfast.sklearn", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    line = failure(capsys, "train", "csv", sheet, "--column", "sold", "-o", tmp_path / "model")
    assert "sklearn" in line


def test_forecast_is_that_of_the_estimator(estimators, sheet, quarters, tmp_path, capsys):
    model = tmp_path / "sales.npz"
    assert train_csv(sheet, model, "--time-column", "month", "--cell", "lstm", "--layers", "2", "--seed", "5") == 0
    report = capsys.readouterr().out
    assert main(["predict", str(model), "--horizon", "6", "--coverage", "0.5"]) == 0
    options = {"hidden_size": 4, "num_layers": 2, "max_epochs": 3, "random_state": 5}
    own = estimators.SequenceForecaster("lstm", differences=4, **options).fit(quarters)
    header, *rows = (line.split(",") for line in capsys.readouterr().out.splitlines())
    assert header == ["month", "sold", "lower", "upper"]
    assert [row[0] for row in rows] == ["2024-01", "2024-04", "2024-07", "2024-10", "2025-01", "2025-04"]
    values = np.array([row[1:] for row in rows], float).T
    np.testing.assert_allclose(values, [own.predict(6), *own.predict_interval(6, 0.5)], rtol=1e-7)

    told = [float(error) for error in re.search(r"network ([\d.]+), baseline .* values ([\d.]+)\n", report).groups()]
    forecast = own.predict(16, series=quarters[:-16])
    repeated = np.tile(quarters[60:64], 4)
    expected = [np.abs(guess - quarters[64:]).mean() for guess in (forecast, repeated)]
    np.testing.assert_allclose(told, expected, rtol=1e-3)
    assert "last 16 rows" in report


@pytest.mark.usefixtures("estimators")
def test_forecast_goes_into_files(sheet, tmp_path, capsys):
    model, sold, picture = tmp_path / "sales.npz", tmp_path / "next.csv", tmp_path / "next.png"
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    few = ["--horizon", "4", "--coverage", "0.5"]
    assert train_csv(sheet, model) == 0
    capsys.readouterr()
    assert main(["predict", str(model), *few, "--output", str(sold), "--plot", str(picture)]) == 0
    assert capsys.readouterr().out == ""
    rows = sold.read_text().splitlines()
    assert rows[0] == "row,sold,lower,upper"
    assert [row.partition(",")[0] for row in rows[1:]] == ["81", "82", "83", "84"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "cannot write" in failure(capsys, "predict", model, "--output", tmp_path / "missing" / "next.csv")


@pytest.mark.usefixtures("estimators")
def test_forecast_so_long_that_it_has_no_bounds(sheet, tmp_path, capsys):
    model = tmp_path / "sales.npz"
    assert train_csv(sheet, model) == 0
    capsys.readouterr()
    assert main(["predict", str(model), "--horizon", "30"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("row,sold\n81,")
    assert len(out.splitlines()) == 31
    assert err.startswith("No prediction interval: ")


@pytest.mark.usefixtures("estimators")
def test_ctrl_c_keeps_the_best_forecaster_so_far(sheet, tmp_path, capsys, monkeypatch):
    made, epochs = series.forecaster_of, []

    def with_ctrl_c(options):
        forecaster = made(options)
        epoch = forecaster._epoch

        def counted(*arguments):
            epochs.append(1)
            if len(epochs) == 2:
                signal.raise_signal(signal.SIGINT)
            return epoch(*arguments)

        forecaster._epoch = counted
        return forecaster

    monkeypatch.setattr(series, "forecaster_of", with_ctrl_c)
    model = tmp_path / "sales.npz"
    assert train_csv(sheet, model, "--epochs", "50") == 130
    assert len(epochs) == 2
    assert "Stopped by Ctrl-C after 2 epochs" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    assert main(["predict", str(model)]) == 0


@pytest.mark.usefixtures("estimators")
def test_series_that_is_too_short(tmp_path, capsys):
    path = tmp_path / "sales.csv"
    path.write_text("sold\n1\n2\n3\n")
    line = failure(capsys, "train", "csv", path, "--column", "sold", "--season", "12", "-o", tmp_path / "model")
    assert "has 3 rows, of which 1 are held out; training needs at least 14 others with --season 12" in line


@pytest.mark.usefixtures("estimators")
def test_models_of_another_kind_or_damaged_give_no_forecast(sheet, tmp_path, capsys):
    model = tmp_path / "sales.npz"
    assert train_csv(sheet, model) == 0
    capsys.readouterr()
    assert "is not a model" in failure(capsys, "sample", model)
    random_model().save(str(tmp_path / "text.npz"))
    assert "is not a model" in failure(capsys, "predict", tmp_path / "text.npz")
    about, arrays = contents(model)
    for spoilt in ({"readout.bias": np.zeros(7)}, {"series": np.zeros(2)}, {"series": np.full(80, np.nan)}):
        program.write_model(str(model), about, {**arrays, **spoilt})
        assert "is damaged" in failure(capsys, "predict", model)
    program.write_model(str(model), {"kind": "series"}, arrays)
    assert "is damaged" in failure(capsys, "predict", model)


# --- files that are one


def test_pictures_of_unknown_formats_are_refused_before_the_work(capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert "must end in one of" in failure(capsys, "predict", "model", "--plot", "next.foo")


@pytest.mark.usefixtures("estimators")
def test_series_that_diverges_or_is_too_large(sheet, tmp_path, capsys):
    arguments = ["train", "csv", sheet, "--column", "sold", "-o", tmp_path / "model", *FAST]
    assert "use an --lr below 1e+38" in failure(capsys, *arguments, "--lr", "1e38")
    rows = "".join(f"{'-' * (i * i % 7 > 2)}1e300\n" for i in range(80))
    sheet.write_text(f"sold\n{rows}")
    assert "row 1 has '1e300' in column 'sold', which is too large" in failure(capsys, *arguments)
    assert not (tmp_path / "model").exists()


@pytest.mark.usefixtures("estimators")
def test_a_column_may_be_called_as_a_bound_of_the_interval(sheet, tmp_path, capsys):
    forecasts = []
    for name in ("sold", "lower"):
        sheet.write_text(sheet.read_text().replace("sold", name))
        assert main(["train", "csv", str(sheet), "--column", name, "-o", str(tmp_path / "model"), *FAST]) == 0
        capsys.readouterr()
        assert main(["predict", str(tmp_path / "model"), "--horizon", "3", "--coverage", "0.5"]) == 0
        forecasts.append(capsys.readouterr().out.splitlines())
    assert forecasts[1] == ["row,lower,lower,upper", *forecasts[0][1:]]


@pytest.mark.usefixtures("estimators")
def test_horizon_without_end(sheet, tmp_path, capsys):
    model = tmp_path / "sales.npz"
    assert train_csv(sheet, model) == 0
    capsys.readouterr()
    assert "--horizon must be at most 8,000" in failure(capsys, "predict", model, "--horizon", 99999999999)


@pytest.mark.usefixtures("estimators")
def test_threads_of_the_training(sheet, tmp_path, threads):
    threads(1)
    assert train_csv(sheet, tmp_path / "model", "--threads", "2", "--epochs", "1") == 0
    assert rnnfast.get_num_threads() == 2


@pytest.mark.usefixtures("estimators")
def test_forecast_without_an_interval_is_drawn(sheet, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    picture = tmp_path / "next.png"
    assert train_csv(sheet, tmp_path / "model", "--epochs", "1") == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "model"), "--horizon", "20", "--plot", str(picture)]) == 0
    assert capsys.readouterr().out.startswith("row,sold\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("estimators")
def test_network_that_cannot_be_built(sheet, tmp_path, capsys):
    model = tmp_path / "model"
    line = failure(capsys, "train", "csv", sheet, "--column", "sold", "-o", model, "--hidden", 10**12)
    assert "training on column sold failed: input_size, hidden_size, proj_size and num_layers are too large" in line
    assert not model.exists()
