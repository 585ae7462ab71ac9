"""Files as spreadsheets and databases export them: what `train csv` detects, fills, skips and refuses."""

import json
import re
import warnings
from datetime import date, timedelta

import numpy as np
import pytest
from support.command_line import FAST, failure, main

from rnnfast.commands import series, tables
from rnnfast.commands.program import CannotRun
from rnnfast.commands.times import UNITS, Times, frequency

HOLIDAYS = {date(2024, 5, 1), date(2024, 5, 9)}


def german(value):
    return f"{value:,.2f}".translate(str.maketrans(",.", ".,"))


def business_days(count, first=date(2024, 4, 1), holidays=()):
    days = (first + timedelta(i) for i in range(7 * count))
    return [day for day in days if day.weekday() < 5 and day not in holidays][:count]


@pytest.fixture
def excel():
    """Lines of a German export of business days, two of which are missing, with a total at the end."""
    days = business_days(60, holidays=HOLIDAYS)
    lines = [f"{day:%d.%m.%Y};{german(900 + 7.5 * i)};{day.weekday()}" for i, day in enumerate(days)]
    return ["Datum;Umsätze;Anzahl", *lines, "Summe;99.999,00;120", ";;", ";;", ""]


@pytest.fixture
def read(tmp_path):
    """Write a file and read it."""

    def read(content, *columns, encoding="utf-8", reading_encoding=None, **options):
        path = tmp_path / "sheet.csv"
        path.write_bytes(content.encode(encoding))
        return tables.read(str(path), tables.Reading(list(columns or ["a"]), encoding=reading_encoding, **options))

    return read


# ---- whole files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_export_of_a_german_spreadsheet(encoding, delimiter, excel, read):
    content = "\r\n".join(excel).replace(";", delimiter)
    table = read(content, "Anzahl", "Umsätze", encoding=encoding, time_column="Datum", fill="interpolate")
    days = business_days(62)
    assert [table.times.at(i) for i in range(-61, 1)] == [f"{day:%d.%m.%Y}" for day in days]
    assert table.times.at(1) == f"{business_days(63)[-1]:%d.%m.%Y}"
    assert table.values.shape == (62, 2)
    [first, second] = (days.index(day) for day in sorted(HOLIDAYS))
    expected = np.insert(900 + 7.5 * np.arange(60), [first, second - 1], [np.nan, np.nan])
    expected[[first, second]] = (expected[[first - 1, second - 1]] + expected[[first + 1, second + 1]]) / 2
    np.testing.assert_allclose(table.values[:, 1], expected)
    named = {"cp1252": "cp1252, ", "utf-16": "UTF-16, "}.get(encoding, "")
    assert table.notes == [
        f"Detected: {named}delimiter {delimiter!r}, decimal ',', thousands '.', dates %d.%m.%Y",
        "Skipped 1 row at the end: 'Summe'",
        f"Times: 01.04.2024 to {days[-1]:%d.%m.%Y}, every business day",
        "Filled by interpolation: 2 missing rows",
    ]
    assert max(map(len, table.notes)) <= 80


@pytest.mark.usefixtures("estimators")
def test_commands_on_a_german_export(excel, tmp_path, capsys):
    sheet, model, newer = tmp_path / "sheet.csv", tmp_path / "model", tmp_path / "newer.csv"
    sheet.write_bytes("\r\n".join(excel).encode("cp1252"))
    columns = ["--column", "Umsätze", "--column", "Anzahl", "--time-column", "Datum"]
    train = ["train", "csv", str(sheet), *columns, "-o", str(model), *FAST]
    line = failure(capsys, *train)
    assert (
        "row 23 has '02.05.2024' after '30.04.2024', but the frequency is business day; add the missing rows (2), or"
        in line
    )
    assert main([*train, "--fill", "previous", "--differences", "auto", "--season", "5"]) == 0
    report = capsys.readouterr().out.splitlines()
    assert report[0] == f"{sheet}: columns Umsätze, Anzahl, 62 rows"
    assert "Filled from the row before: 2 missing rows" in report
    assert "Differences: 5 (auto)" in report
    assert [line.partition(":")[0] for line in report[-5:-2]] == [
        "Mean absolute error on the last 12 rows, forecast from the rows before",
        "  Umsätze",
        "  Anzahl",
    ]
    assert main(["predict", str(model), "--horizon", "4", "--coverage", "0.5"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "Datum;Umsätze;Umsätze lower;Umsätze upper;Anzahl;Anzahl lower;Anzahl upper"
    days = business_days(66)
    assert [row.partition(";")[0] for row in rows] == [f"{day:%d.%m.%Y}" for day in days[62:]]
    values = np.array([[cell.replace(",", ".") for cell in row.split(";")[1:]] for row in rows], float)
    assert (np.diff(values.reshape(4, 2, 3)[..., [1, 0, 2]]) >= 0).all()

    # The same table a month later, in another encoding, with integers only, and with other faults.
    later = business_days(30, date(2024, 7, 1))
    lines = [f"{day:%d.%m.%Y};{day.weekday()};{1300 + 15 * i // 2}" for i, day in enumerate(later)]
    newer.write_text("\n".join(["Datum;Anzahl;Umsätze", *lines]), encoding="utf-8")
    assert main(["predict", str(model), "--history", str(newer), "--horizon", "2", "--coverage", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == header
    assert [row.partition(";")[0] for row in out.splitlines()[1:]] == ["12.08.2024", "13.08.2024"]
    assert err.splitlines() == ["Times: 01.07.2024 to 09.08.2024, every business day"]
    newer.write_text("\n".join(["Datum;Anzahl;Umsätze", *lines[:4]]), encoding="utf-8")
    assert "has 4 rows, but a forecast needs at least 6" in failure(capsys, "predict", model, "--history", newer)
    newer.write_text("\n".join(["Datum;Anzahl", *lines]), encoding="utf-8")
    assert "has no column 'Umsätze'" in failure(capsys, "predict", model, "--history", newer)


@pytest.mark.usefixtures("estimators")
def test_forecast_from_newer_rows_is_that_of_the_estimator(estimators, sheet, quarters, tmp_path, capsys):
    model, newer = tmp_path / "model", tmp_path / "newer.csv"
    arguments = ["--column", "sold", "--time-column", "month", "-o", str(model), *FAST]
    assert main(["train", "csv", str(sheet), *arguments]) == 0
    own = estimators.SequenceForecaster("gru", differences=4, hidden_size=4, max_epochs=3, random_state=0).fit(quarters)
    history = quarters[40:52] + 3
    rows = [f"{2025 + i // 4}-{3 * (i % 4) + 1:02},{value!r}" for i, value in enumerate(history.tolist())]
    newer.write_text("month,sold\n" + "\n".join(rows))
    capsys.readouterr()
    assert main(["predict", str(model), "--history", str(newer), "--horizon", "3", "--coverage", "0.5"]) == 0
    cells = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in cells] == ["2028-01", "2028-04", "2028-07"]
    forecast, (lower, upper) = own.predict(3, series=history), own.predict_interval(3, 0.5)
    radius = (upper - lower) / 2
    expected = np.stack([forecast, forecast - radius, forecast + radius], 1)
    np.testing.assert_allclose(np.array([row[1:] for row in cells], float), expected, rtol=1e-6)

    newer.write_text("month,sold\n" + "\n".join(rows[::4]))
    assert "but the frequency is quarter" in failure(capsys, "predict", model, "--history", newer)
    newer.write_text("month,sold\n" + "\n".join(rows[:6] + rows[7:]))
    assert "--fill" in failure(capsys, "predict", model, "--history", newer)
    assert main(["predict", str(model), "--history", str(newer), "--fill", "interpolate"]) == 0
    assert "Filled by interpolation: 1 missing row\n" in capsys.readouterr().err
    assert "--fill needs --history" in failure(capsys, "predict", model, "--fill", "interpolate")


@pytest.mark.usefixtures("estimators")
@pytest.mark.parametrize(
    ("given", "lags"), [([], 4), (["--differences", "none"], ()), (["--differences", "1,4"], (1, 4))]
)
def test_several_columns_are_forecast_as_the_estimator_does(given, lags, estimators, tmp_path, capsys):
    t = np.arange(60.0)
    values = np.stack([np.sin(t), np.cos(t / 3) + 5], 1)
    sheet, model = tmp_path / "sheet.csv", tmp_path / "model"
    sheet.write_text("a,b\n" + "".join(f"{a!r},{b!r}\n" for a, b in values.tolist()))
    assert main(["train", "csv", str(sheet), "--column", "b", "--column", "a", "-o", str(model), *FAST, *given]) == 0
    capsys.readouterr()
    assert main(["predict", str(model), "--horizon", "3", "--coverage", "0.5"]) == 0
    header, *rows = (line.split(",") for line in capsys.readouterr().out.splitlines())
    assert header == ["row", "b", "b lower", "b upper", "a", "a lower", "a upper"]
    options = {"hidden_size": 4, "max_epochs": 3, "random_state": 0, "multivariate": True}
    own = estimators.SequenceForecaster("gru", differences=lags, **options).fit(values[:, ::-1])
    expected = np.stack([own.predict(3), *own.predict_interval(3, 0.5)], -1).reshape(3, 6)
    np.testing.assert_allclose(np.array(rows, float)[:, 1:], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({}, "row,a\n7,1.5\n"),
        ({"delimiter": ";"}, "row;a\n7;1,5\n"),
        ({"delimiter": ";", "decimal": "."}, "row;a\n7;1.5\n"),
        ({"delimiter": ",", "decimal": ","}, 'row,a\n7,"1,5"\n'),
        ({"delimiter": "\t", "decimal": ","}, "row\ta\n7\t1,5\n"),
    ],
)
def test_forecasts_have_the_separators_of_the_file(form, expected):
    assert series.forecast_table(tables.Reading(["a"], **form), "row", ["7"], [np.array([[1.5]])]) == expected


@pytest.mark.usefixtures("estimators")
def test_pictures_of_several_columns(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    sheet, model, picture = tmp_path / "sheet.csv", tmp_path / "model", tmp_path / "next.png"
    sheet.write_text("a,b\n" + "".join(f"{i % 7},{i % 5}\n" for i in range(60)))
    assert main(["train", "csv", str(sheet), "--column", "a", "--column", "b", "-o", str(model), *FAST]) == 0
    assert main(["predict", str(model), "--horizon", "3", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("estimators")
def test_warnings_of_the_forecaster_are_lines(tmp_path, capsys, monkeypatch):
    made = series.forecaster_of

    def with_warnings(options):
        forecaster = made(options)
        fit = forecaster.fit

        def warned(values):
            warnings.warn("the series \x1b leaves\nits range", UserWarning, stacklevel=1)
            return fit(values)

        forecaster.fit = warned
        return forecaster

    monkeypatch.setattr(series, "forecaster_of", with_warnings)
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("a\n" + "".join(f"{i % 7}\n" for i in range(60)))
    assert main(["train", "csv", str(sheet), "--column", "a", "-o", str(tmp_path / "model"), *FAST]) == 0
    assert capsys.readouterr().err == "Note: the series \\x1b leaves\\nits range\n"


# ---- numbers

NUMBERS = [
    (["1.5", "2"], ",", [1.5, 2]),
    (["1,5", "2"], ";", [1.5, 2]),
    (["1.234,5", "-2"], ";", [1234.5, -2]),
    (["1,234.5", "+2"], ";", [1234.5, 2]),
    (["1.234.567", "1.000"], ";", [1234567, 1000]),
    (["1'234.50", "2"], ";", [1234.5, 2]),
    (["1\u2019234.50", "2"], ";", [1234.5, 2]),
    (["1 234,5", "2"], ";", [1234.5, 2]),
    (["1\u202f234,5", "12\u00a0345,5"], ";", [1234.5, 12345.5]),
    (['"1,234.50"', '"2.00"'], ",", [1234.5, 2]),
    (['"1,5"', "2"], ",", [1.5, 2]),
    (["1.234", "2.345"], ",", [1.234, 2.345]),  # commas separate fields, so points are decimal
    (["0.123", "1.234"], ";", [0.123, 1.234]),  # no groups
    (["1e3", ".5"], ",", [1000, 0.5]),
    (['"12"', ' "13"'], ",", [12, 13]),
    (["\u22121.5", "-2"], ",", [-1.5, -2]),
]


@pytest.mark.parametrize(("cells", "delimiter", "expected"), NUMBERS)
def test_numbers_are_read_as_they_are_written(cells, delimiter, expected, read):
    table = read(f"x{delimiter}a\n" + "".join(f"1{delimiter}{cell}\n" for cell in cells))
    assert table.values[:, 0].tolist() == expected


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1.234", "5"], r"row 1 has '1.234' in column 'a', which could be 1.234 or 1234; give --decimal '.' or "),
        (["5", "1,234"], r"row 2 has '1,234' in column 'a', which could be 1234 or 1.234; give --decimal '.' or "),
        (["1.5", "2,5"], "row 2 has '2,5' in column 'a', .* give the separators of the column as --decimal and --thou"),
        (["1", "12 €"], "row 2 has '12 €' in column 'a', .* remove '€' from the column, or export it as plain"),
        (["$12", "1"], r"row 1 has '\$12' in column 'a', .* remove '\$' from"),
        (["1", "12,5%"], "row 2 has '12,5%' in column 'a', .* remove '%' from"),
        (["1", "(12)"], "row 2 has .* remove '[(] [)]' from"),
        (["1", "12 EUR"], "row 2 has .* remove 'EUR' from"),
        (["1", "-"], "row 2 has '-' in column 'a', .* correct it, or leave the cell empty and give --fill"),
        (["1", "12.34.5"], "row 2 has '12.34.5'"),
        (["1", "1..5"], "row 2 has"),
        (["1", "1_000"], "row 2 has"),
    ],
)
def test_other_numbers_are_refused(cells, message, read):
    with pytest.raises(CannotRun, match=message):
        read("x;a\n" + "".join(f"1;{cell}\n" for cell in cells))


def test_options_settle_what_is_ambiguous(read):
    content = "x;a\n1;1.234\n2;1.500\n"
    assert read(content, decimal=".").values[:, 0].tolist() == [1.234, 1.5]
    assert read(content, decimal=",").values[:, 0].tolist() == [1234, 1500]
    assert read(content, thousands=".").values[:, 0].tolist() == [1234, 1500]
    # What one export has shown holds for the next.
    shown = read("x;a\n1;1.234,5\n").reading
    assert read("x;a\n1;1.234\n", decimal=shown.decimal, thousands=shown.thousands).values[0, 0] == 1234


# ---- delimiters, lines and encodings


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\n1,5\n2,5\n", [1.5, 2.5]),  # a column of its own with decimal commas
        ("sep=;\r\na;b\r\n1;2\r\n", [1]),
        ("b|a\n1|2\n", [2]),
        ('"a","b, c"\n1,"2;3"\n', [1]),
        ("a;b;\n1;2;\n", [1]),
        ("a,b\n1,2,,\n", [1]),
        ("x,a\n1,2\n\n\n", [2]),
        ("x,a\n1,2\n,\n\n,\n", [2]),
        ("x,a\n1,2\n2,3\nTotal,5\n\n", [2, 3]),
        ("x,a\n1,2\n2,3\nMean,2.5\nTotal\n", [2, 3]),
        ("x,a\n1,2\n,3\n", [2, 3]),  # no label, so no total
    ],
)
def test_tables_are_found(content, expected, read):
    assert read(content).values[:, 0].tolist() == expected


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a,b;a\n1,2;3\n", {}, "can be split at ',' and at ';'; give its --delimiter"),
        ("t,a\n1,2\nTotal,3\n2,3\n", {"time_column": "t"}, "row 2 has 'Total', which is not a time"),
        ("t,a\n1,2\nb,3\nc,4\nd,5\ne,6\n", {"time_column": "t"}, "row 2 has 'b', which is not a time"),
        ("t,a\nmo,2\ntu,3\n", {"time_column": "t"}, "row 1 has 'mo', which is not a time"),
        ("x,a\n1,2\n,\n2,3\n", {}, "column 'a' has no value in row 2"),
    ],
)
def test_tables_in_doubt_are_refused(content, options, message, read):
    with pytest.raises(CannotRun, match=message):
        read(content, **options)


def test_encodings(read):
    assert read("Řada,a\n1,2\n", "Řada", encoding="cp1250", reading_encoding="cp1250").values[0, 0] == 1
    with pytest.raises(CannotRun, match="has no column 'Řada'; its columns are: Øada, a"):
        read("Řada,a\n1,2\n", "Řada", encoding="cp1250")
    with pytest.raises(CannotRun, match=r"cannot be decoded as cp1252: .*; give its --encoding"):
        read("a\n\x81\n", encoding="latin1")
    with pytest.raises(CannotRun, match="cannot be decoded as ascii"):
        read("é,a\n1,2\n", reading_encoding="ascii")
    with pytest.raises(CannotRun, match="iconv -f UTF-16LE"):
        read("Øa,a\n1,2\n", encoding="utf-16-le")
    with pytest.raises(CannotRun, match="iconv -f UTF-32"):
        read("a\n1\n", encoding="utf-32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoding", "x"], "--encoding: unknown encoding: x"),
        (["--encoding", "hex"], "cannot be decoded as hex"),
        (["--date-format", "%d.%m."], "--date-format: '%d.%m.' must determine the year and the month"),
        (["--date-format", "%Y-%m-%d %z"], "--date-format: '%Y-%m-%d %z' must determine"),
        (["--date-format", "%Y-%m-%m"], "'%Y-%m-%m' must determine the year and the month once"),
        (["--date-format", "%Q%Y"], "--date-format: 'Q' is a bad directive in format '%Q%Y'"),
        (["--frequency", "fortnight"], "--frequency: must be one of microsecond, .*, not 'fortnight'"),
        (["--decimal", ",", "--thousands", ","], "--decimal and --thousands must differ, not both be ','"),
        (["--column", "a"], "--column must name different columns, not a, a"),
    ],
)
def test_invalid_options_of_reading(options, message, tmp_path, capsys):
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("a\n1\n")
    line = failure(capsys, "train", "csv", sheet, "--column", "a", "-o", tmp_path / "model", *options)
    assert re.search(message, line)


# ---- missing values


@pytest.mark.parametrize("hole", ["", " ", "NA", "n/a", "#N/A", "NaN", "null", "None", ".", "..", ":"])
def test_missing_values_are_errors_or_filled(hole, read):
    content = f"x,a\n1,1\n2,{hole}\n3,4\n"
    with pytest.raises(CannotRun, match="column 'a' has no value in row 2; complete the file, or give --fill int"):
        read(content)
    table = read(content, fill="interpolate")
    assert table.values[:, 0].tolist() == [1, 2.5, 4]
    assert table.notes == ["Filled by interpolation: 1 missing value"]
    assert read(content, fill="previous").values[:, 0].tolist() == [1, 1, 4]


def test_missing_values_at_the_ends(read):
    with pytest.raises(
        CannotRun, match="has no value in row 1, so that nothing can be filled in; remove the first rows"
    ):
        read("x,a\n1,\n2,1\n", fill="previous")
    content = "x,a\n1,1\n2,\n3,\n"
    with pytest.raises(CannotRun, match="has no value in rows 2, 3; remove the last rows without a value, or give"):
        read(content)
    with pytest.raises(
        CannotRun, match="has no value in row 3, the last; remove the last rows without a value, or use"
    ):
        read(content, fill="interpolate")
    assert read(content, fill="previous").values[:, 0].tolist() == [1, 1, 1]


def test_many_missing_values_are_counted(read):
    rows = "".join(f"{i},{'' if i % 3 else i}\n" for i in range(3, 24))
    with pytest.raises(CannotRun, match="column 'a' has no value in rows 2, 3, 5, 6, 8 and 9 more; complete"):
        read(f"x,a\n{rows}")


def test_missing_rows_and_values_of_several_columns(read):
    table = read(
        "t,a,b\n2024-01,1,2\n2024-02,,3\n2024-04,4,\n2024-05,5,6\n", "a", "b", time_column="t", fill="previous"
    )
    assert table.values.T.tolist() == [[1, 1, 1, 4, 5], [2, 3, 3, 3, 6]]
    assert table.notes[-1] == "Filled from the row before: 2 missing values and 1 missing row"
    # Blank lines between rows with times say nothing.
    assert len(read("t,a\n2024-01,1\n\n,\n2024-02,3\n", time_column="t").values) == 2


# ---- dates and frequencies


def days_from(first, count, step=1):
    return [first + timedelta(step * i) for i in range(count)]


MONTH_ENDS = [date(2024, m + 1, 1) - timedelta(1) for m in range(1, 12)]
DATES = [  # format, dates of the rows, frequency, next date
    ("%d.%m.%Y", days_from(date(2024, 2, 26), 3), "day", date(2024, 2, 29)),
    ("%d.%m.%Y", [date(2024, 1, 31), date(2024, 2, 29), date(2024, 3, 31)], "month", date(2024, 4, 30)),
    ("%d/%m/%Y", days_from(date(2024, 1, 1), 14), "day", date(2024, 1, 15)),
    ("%m/%d/%Y", days_from(date(2024, 1, 1), 14), "day", date(2024, 1, 15)),
    ("%m/%d/%Y", days_from(date(2024, 1, 1), 3, 7), "week", date(2024, 1, 22)),
    ("%Y/%m/%d", business_days(9), "business day", business_days(10)[-1]),
    ("%m-%d-%Y", MONTH_ENDS, "month", date(2024, 12, 31)),
    ("%d.%m.%Y", [date(2023, 3, 31), date(2023, 6, 30), date(2023, 9, 30)], "quarter", date(2023, 12, 31)),
    ("%d.%m.%Y", [date(y, 2, 28 + (y % 4 == 0)) for y in range(2019, 2024)], "year", date(2024, 2, 29)),
    ("%Y-%m-%d", [date(2024, 2, 29), date(2024, 3, 29), date(2024, 4, 30)], "month", date(2024, 5, 31)),
    ("%Y-%m-%d", [date(2024, 4, 30), date(2024, 5, 31), date(2024, 6, 28)], "month", date(2024, 7, 31)),
]


@pytest.mark.parametrize(("form", "days", "every", "to_come"), DATES)
@pytest.mark.parametrize("padded", [True, False])
def test_dates_continue_at_their_frequency_in_their_format(form, days, every, to_come, padded):
    def written(day):
        text = day.strftime(form)
        return text if padded or form[1] == "Y" else re.sub("(^|[./-])0", r"\1", text)

    texts = [written(day) for day in days]
    for given in ({}, {"form": form}, {"every": every}):
        times, rows = Times.of(texts, **given)
        assert (times.every, times.at(1), rows) == (every, written(to_come), list(range(len(texts))))
    again = Times(**json.loads(json.dumps(times.kept)))
    assert [again.at(i) for i in range(1 - len(texts), 2)] == [*texts, written(to_come)]


@pytest.mark.parametrize(
    ("form", "texts", "to_come"),
    [
        ("%b %Y", ["Nov 2024", "Dec 2024"], "Jan 2025"),
        ("%d %b %y", ["30 Dec 24", "31 Dec 24"], "01 Jan 25"),
        ("%m/%Y", ["11/2024", "12/2024"], "01/2025"),
        ("%-m/%Y", ["1/2024", "11/2024", "9/2025"], "7/2026"),
        ("%m/%d/%Y %I:%M %p", ["1/9/2024 11:00 PM", "1/10/2024 12:00 AM"], "1/10/2024 1:00 AM"),
        ("%Y%m%d", ["20240228", "20240229"], "20240301"),
        (None, ["31.12.2024 22:00", "31.12.2024 23:00"], "01.01.2025 00:00"),
        (None, ["1/31/2024 9:00", "1/31/2024 10:00"], "1/31/2024 11:00"),
        (None, ["1.1.2024 09:00", "1.1.2024 10:00"], "1.1.2024 11:00"),
    ],
)
def test_patterns_of_dates(form, texts, to_come):
    assert Times.of(texts, form)[0].at(1) == to_come


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (
            ["01/02/2024", "01/03/2024", "01/04/2024"],
            {},
            r"row 1 has '01/02/2024', which could be 2024-02-01 \(%d/%m/%Y\) or 2024-01-02 \(%m/%d/%Y\); give its --",
        ),
        (["1.1.2024", "2.13.2024"], {}, "row 2 has '2.13.2024', which is not a time in the format of row 1"),
        (
            ["1.1.2024", "x"],
            {"form": "%d.%m.%Y"},
            "row 2 has 'x', which is not a time in the format '%d.%m.%Y'; correct",
        ),
        (["2024-01-01", "2024-01-03", "2024-01-04"], {}, "row 2 has .* the frequency is day; add the missing rows .1."),
        (["2024-01-05", "2024-01-06"], {"every": "business"}, "row 2 has '2024-01-06' .* the frequency is business"),
        (["2024-01-06", "2024-01-08"], {"every": "business"}, "row 2 has .* the frequency is business"),
        (["2024-01-01", "2024-01-02"], {"every": "hour"}, "row 2 has .* but the frequency is hour; correct the times"),
        (["2024-01", "2024-02", "2024-03"], {"every": "day"}, "row 2 has .* but the frequency is day"),
        (["2024-01-31", "2024-02-28"], {"every": "month"}, "row 2 has '2024-02-28' .* but the frequency is month"),
        (["1", "2"], {"every": "day"}, "row 1 has the number '1', but --frequency needs dates"),
        (["1", "2", "4", "3"], {"gaps": True}, "row 4 has '3' after '4'"),
        (["1", "2", "3", "9"], {"gaps": True}, "row 4 has '9' after '3'"),  # more gaps than rows
        (["01.01.2024", "02.01.2024", "02.01.2024"], {"gaps": True}, "row 3 has '02.01.2024' after '02.01.2024'"),
        (["240101", "240102", "240104"], {"gaps": True}, "could be a number or the date 2024-01-01"),
    ],
)
def test_times_in_doubt_are_refused(texts, options, message):
    with pytest.raises(ValueError, match=message):
        Times.of(texts, **options)


@pytest.mark.parametrize(
    ("texts", "every", "rows", "to_come"),
    [
        (["2024-01-01", "2024-01-02", "2024-01-05"], "day", [0, 1, 4], "2024-01-06"),
        (["2024-01-30", "2024-03-30", "2024-04-30", "2024-05-30"], "month", [0, 2, 3, 4], "2024-06-30"),
        (["2024-01-31", "2024-03-31", "2024-04-30", "2024-05-31"], "month", [0, 2, 3, 4], "2024-06-30"),
        (["2024-03-31T00:30", "2024-03-31T00:45", "2024-03-31T01:15"], "15 minutes", [0, 1, 3], "2024-03-31T01:30"),
        (["5", "10", "20"], "5", [0, 1, 3], "25"),
        (["05.01.2024", "08.01.2024", "10.01.2024", "11.01.2024", "12.01.2024"], "business day", [0, 1, 3, 4, 5],
         "15.01.2024"),
    ],
)  # fmt: skip
def test_gaps_in_times_are_found(texts, every, rows, to_come):
    times, found = Times.of(texts, gaps=True)
    assert (times.every, found, times.at(1), times.at(-rows[-1])) == (every, rows, to_come, texts[0])


def test_frequencies_are_read_as_they_are_described():
    for name, (clocks, step) in UNITS.items():
        for text in (name, f"{name}s", f"2 {name}s", f"2{name}"):
            assert frequency(text) == (clocks, step * (2 if "2" in text else 1))
    hours = [f"2024-01-01 {hour:02}:00" for hour in (0, 6, 12, 18)]
    assert Times.of(hours)[0].every == "6 hours"
    assert Times.of(hours[:2] + hours[3:], every="6 hours", gaps=True)[1] == [0, 1, 3]
