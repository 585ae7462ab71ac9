"""Times in CSV files: what `train csv` reads, `predict` continues in the same format, or training refuses it."""

import calendar
import contextlib
import json
from datetime import date, datetime, timedelta
from decimal import Decimal

import hypothesis
import pytest
from hypothesis import strategies as st
from support.command_line import failure, main, train_csv

from rnnfast.commands.times import MOMENT, Times

CONTINUED = [
    # numbers
    (["1", "2", "3"], ["4", "5"]),
    (["1990", "1995"], ["2000", "2005"]),
    (["8", "9"], ["10", "11"]),
    (["-3", "-2"], ["-1", "0"]),
    (["-0.5", "0.0"], ["0.5", "1.0"]),
    (["0.1", "0.2", "0.3"], ["0.4", "0.5"]),
    (["1.50", "1.75"], ["2.00", "2.25"]),
    (["0.5", "0.75", "1.0"], ["1.25", "1.5"]),
    (["0.5", "1", "1.5"], ["2", "2.5"]),
    (["0002", "0003"], ["0004", "0005"]),
    (["0099", "0100"], ["0101", "0102"]),
    (["999999999999999999999999999998", "999999999999999999999999999999"], ["1" + "0" * 30, "1" + "0" * 29 + "1"]),
    (["1700000000", "1700003600"], ["1700007200", "1700010800"]),
    (["1706659200000", "1706745600000"], ["1706832000000", "1706918400000"]),
    (["45322", "45323"], ["45324", "45325"]),  # days since 1900, as spreadsheets count them
    (["2011", "2012"], ["2013", "2014"]),
    (["0011", "0012"], ["0013", "0014"]),
    (["2024.25", "2024.50", "2024.75"], ["2025.00", "2025.25"]),
    (["10000101", "10000102"], ["10000103", "10000104"]),
    (["20240130", "20240131", "20240132"], ["20240133", "20240134"]),
    # months
    (["2024-11", "2024-12"], ["2025-01", "2025-02"]),
    (["202311", "202312"], ["202401", "202402"]),
    (["174911", "174912"], ["175001", "175002"]),
    (["0999-11", "0999-12"], ["1000-01", "1000-02"]),
    (["2023-08-01", "2023-11-01"], ["2024-02-01", "2024-05-01"]),
    (["2024-01-15", "2024-02-15", "2024-03-15"], ["2024-04-15", "2024-05-15"]),
    (["2023-11-30", "2023-12-31", "2024-01-31"], ["2024-02-29", "2024-03-31"]),
    (["2024-06-30", "2024-09-30"], ["2024-12-31", "2025-03-31"]),
    (["2024-11-30", "2024-12-30"], ["2025-01-30", "2025-02-28"]),
    (["2024-01-30", "2024-02-29", "2024-03-30"], ["2024-04-30", "2024-05-30"]),
    (["2023-01-29", "2023-02-28"], ["2023-03-29", "2023-04-29"]),
    (["2023-02-28", "2024-02-28", "2025-02-28"], ["2026-02-28", "2027-02-28"]),
    (["2023-02-28", "2024-02-29", "2025-02-28"], ["2026-02-28", "2027-02-28"]),
    (["20231130", "20231231"], ["20240131", "20240229"]),
    (["2024-01-31 12:00", "2024-02-29 12:00"], ["2024-03-31 12:00", "2024-04-30 12:00"]),
    (["2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z"], ["2024-03-01T00:00:00Z", "2024-04-01T00:00:00Z"]),
    (["2024-Q3", "2024-Q4"], ["2025-Q1", "2025-Q2"]),
    (["2023Q2", "2024Q2"], ["2025Q2", "2026Q2"]),
    # days
    (["2024-02-26", "2024-02-27"], ["2024-02-28", "2024-02-29"]),
    (["2024-02-16", "2024-02-23"], ["2024-03-01", "2024-03-08"]),
    (["20240130", "20240131"], ["20240201", "20240202"]),
    (["20240110", "20240120", "20240130"], ["20240209", "20240219"]),
    (["0001-01-01", "0001-01-02"], ["0001-01-03", "0001-01-04"]),
    (["2023-364", "2023-365"], ["2024-001", "2024-002"]),
    (["2024365", "2024366"], ["2025001", "2025002"]),
    # weeks
    (["2024-W51", "2024-W52"], ["2025-W01", "2025-W02"]),
    (["2020W52", "2020W53"], ["2021W01", "2021W02"]),
    (["2024-W52-6", "2024-W52-7"], ["2025-W01-1", "2025-W01-2"]),
    (["2024W516", "2024W526"], ["2025W016", "2025W026"]),
    # moments
    (["2024-12-31T22:00", "2024-12-31T23:00"], ["2025-01-01T00:00", "2025-01-01T01:00"]),
    (["2024-12-31 23:58:30", "2024-12-31 23:59:15"], ["2025-01-01 00:00:00", "2025-01-01 00:00:45"]),
    (["2024-01-01T00:15", "2024-01-01T00:30"], ["2024-01-01T00:45", "2024-01-01T01:00"]),
    (["2024-01-01T12", "2024-01-01T18"], ["2024-01-02T00", "2024-01-02T06"]),
    (["20240131T2330", "20240131T2345"], ["20240201T0000", "20240201T0015"]),
    (["20240131 233000", "20240131 234500"], ["20240201 000000", "20240201 001500"]),
    (["2024013122", "2024013123"], ["2024020100", "2024020101"]),
    (["202401312330", "202401312345"], ["202402010000", "202402010015"]),
    (["20240131235930", "20240131235945"], ["20240201000000", "20240201000015"]),
    (["2024-W52-7T00:00", "2024-W52-7T12:00"], ["2025-W01-1T00:00", "2025-W01-1T12:00"]),
    (["2024-01-01T00:00:00.25", "2024-01-01T00:00:00.50"], ["2024-01-01T00:00:00.75", "2024-01-01T00:00:01.00"]),
    (["2024-01-01T00:00:00.000001", "2024-01-01T00:00:00.000003"], ["2024-01-01T00:00:00.000005", None]),
    (["2024-12-31T22:00Z", "2024-12-31T23:00Z"], ["2025-01-01T00:00Z", "2025-01-01T01:00Z"]),
    (["2024-12-31T23:00+00:00", "2024-12-31T23:30+00:00"], ["2025-01-01T00:00+00:00", "2025-01-01T00:30+00:00"]),
    (["2024-12-31T22:00-0530", "2024-12-31T23:00-0530"], ["2025-01-01T00:00-0530", "2025-01-01T01:00-0530"]),
    (["2024-12-31 22:00+01", "2024-12-31 23:00+01"], ["2025-01-01 00:00+01", "2025-01-01 01:00+01"]),
]


@pytest.mark.parametrize(("known", "to_come"), CONTINUED)
def test_times_are_continued(known, to_come):
    times = Times.of(known)[0]
    again = Times(**json.loads(json.dumps(times.kept)))
    for own in (times, again):
        assert [own.at(1), to_come[1] and own.at(2)] == to_come
        assert [own.at(step) for step in range(1 - len(known), 1)] == known


REFUSED = {
    # not evenly spaced
    "there are 1 rows": [["1"]],
    "there are 0 rows": [[]],
    "the times decrease": [["3", "2", "1"], ["2024-02", "2024-01"], ["20240201", "20240131"]],
    "row 2 has .* after": [["1", "1", "1"], ["2024-01-01", "2024-01-01"], ["2024-Q1", "2024-Q1"]],
    "row 3 has .* after": [
        ["1", "2", "4"],
        ["2024-01-01", "2024-01-02", "2024-01-04"],
        ["0001-01-01", "9000-01-01", "9000-01-02"],
        ["2024-01-15", "2024-02-15", "2024-04-15"],
        ["20240101", "20240202", "20240303"],  # which would be even as numbers
        ["2024-Q1", "2024-Q2", "2024-Q4"],
        ["2024-W01", "2024-W02", "2024-W04"],
        ["2024-03-31T00:00", "2024-03-31T01:00", "2024-03-31T03:00"],  # summer time begins
    ],
    # other formats
    "row 1 has .*, which is not a time;": [
        ["monday", "tuesday"], ["", "1"], ["x", "1"], ["2024-13", "2024-14"], ["1e3", "2e3"], [".5", "1.5"],
        ["1.", "2."],
        ["+1", "+2"], ["-0", "1"], ["1_0", "1_1"], ["1,000", "2,000"], ["1 000", "2 000"], ["0x1", "0x2"], ["nan", "1"],
        ["inf", "1"], ["\u0663", "\u0664"], ["\uff11", "\uff12"], ["\u0662\u0660\u0662\u0664-01", "2024-02"],
        ["\u22121", "0"], ["1" * 41, "1" * 41], ["0." + "1" * 19, "1"], ["9" * 10**5, "1"], ["2024/01", "2024/02"],
        ["01.02.24", "02.02.24"], ["1/2/24", "1/3/24"], ["2024-1-1", "2024-1-2"], ["Jan 2024", "Feb 2024"],
        ["Q1 2024", "Q2 2024"], ["2024-Q5", "2024-Q6"], ["2024-Q0", "2024-Q1"], ["2024q1", "2024q2"],
        ["2024-W53", "2025-W01"], ["2024-W00", "2024-W01"], ["2024-W01-8", "2024-W02-1"], ["2023-366", "2024-001"],
        ["2024-000", "2024-001"], ["2023-02-29", "2024-02-29"], ["2024-02-30", "2024-03-30"], ["0000-01", "0000-02"],
        ["10000-01", "10000-02"], ["-2024-01", "-2024-02"], ["T00:15", "T00:30"], ["00:15", "00:30"],
        ["2024-01-01T24:00", "2024-01-02T24:00"], ["2024-01-01T23:59:60", "2024-01-02T00:00:00"],
        ["2024-01-01T25:00", "2024-01-01T26:00"], ["2024-01-01t00:00", "2024-01-01t01:00"],
        ["2024-01-01T00:00z", "2024-01-01T01:00z"], ["2024-01-01  00:00", "2024-01-01  01:00"],
        ["2024-01-01T00:00:00,5", "2024-01-01T00:00:01,0"], ["2024-01T00:00", "2024-02T00:00"],
        ["2024-01-01T00:00:00.1234567", "2024-01-01T00:00:00.2234567"], ["2024-01-01T", "2024-01-02T"],
        ["2024-01-01T00:00 UTC", "2024-01-01T01:00 UTC"], ["2024-01-01Z", "2024-01-02Z"],
        ["2024-01-0100", "2024-01-0101"],
        ["2024-01-01T00:00:00.", "2024-01-01T00:00:01."], ["12:00 PM", "1:00 PM"], ["\x1b[2J", "\x1b[2K"],
    ],
    "row 2 has .*, which is not a time in the format of row 1": [
        ["2024-01", "2024-02-01"], ["2024-01-01", "20240102"], ["1", "x"], ["1", ""], ["2024-12", "2024-13"],
        ["2024-02-29", "2024-02-30"], ["2024-01-01T00:00", "2024-01-01T01"], ["2024-01-01T00:00", "2024-01-01 01:00"],
        ["2024-01-01T00:00Z", "2024-01-01T01:00"], ["2024-01-01T00:00+01:00", "2024-01-01T01:00+0100"],
        ["2024-03-31T01:00+01:00", "2024-03-31T03:00+02:00"], ["-1", "-0"], ["2024-W01", "2024W02"],
        ["2024-365", "2024-367"],
        ["2024-01-01T00:00", "2024-01-01T00:00:30"], ["2024Q1", "2024-Q2"],
    ],
    "row 3 has .*, which is not a time in the format of row 1": [["1", "2", "3.0"], ["1", "2", ""]],
    # numbers that may be dates
    "row 1 has .*, which could be a number or the date 2024-01-": [
        ["2024.01", "2024.02"], ["20240130.0", "20240131.0"], ["202401.0", "202402.0"], ["240130", "240131"],
        ["30012024", "31012024"], ["01302024", "01312024"], ["013024", "013124"],
        ["24.01", "24.02"], ["2401", "2402"], ["01.2024", "02.2024"], ["2024.015", "2024.016"], ["24030", "24031"],
        ["20240130.22", "20240130.23"], ["24013022", "24013023"],
        ["2401302200", "2401302300"], ["310120242200", "310120242300"], ["013120242258", "013120242259"],
    ],
    "row 1 has '2024.12', which could be a number or the date 2024-03-18": [["2024.12", "2024.13"]],
    "row 1 has '202451', which could be a number or the date 2024-12-16": [["202451", "202452"]],
    "row 1 has '202312', which could be a number or the date 2023-03-20": [["202312", "202313"]],
    "row 1 has '300124', which could be a number or the date 2030-01-24": [["300124", "310124"]],
    # without a next time
    "is outside the years 1 to 9999": [
        ["9999-12-30", "9999-12-31"], ["9999-11", "9999-12"], ["9998-12-31", "9999-12-31"], ["9999-W50", "9999-W51"],
        ["9999-Q3", "9999-Q4"], ["9999-12-31T22:00", "9999-12-31T23:00"], ["9999-364", "9999-365"],
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "texts"), [(message, texts) for message, lists in REFUSED.items() for texts in lists]
)
def test_other_times_are_refused(message, texts):
    with pytest.raises(ValueError, match=message) as error:
        Times.of(texts)
    assert len(str(error.value)) < 500


# ---- properties

FORMS = [
    "%Y-%m-%d", "%Y%m%d", "%Y-%j", "%Y%j", "%G-W%V-%u", "%GW%V%u", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y%m%dT%H%M",
    "%Y%m%dT%H%M%S", "%Y%m%d%H%M", "%Y%m%d%H", "%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H+05:30",
]  # fmt: skip
UNITS = {
    "%f": timedelta(microseconds=1),
    "%S": timedelta(seconds=1),
    "%M": timedelta(minutes=1),
    "%H": timedelta(hours=1),
}


def last_day(day):
    return calendar.monthrange(day.year, day.month)[1]


@hypothesis.given(
    form=st.sampled_from(FORMS),
    start=st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)),
    count=st.integers(1, 400),
    rows=st.integers(14, 20),
)
def test_dates_and_moments_are_continued_as_datetime_does(form, start, count, rows):
    unit = next((unit for directive, unit in UNITS.items() if directive in form), timedelta(1))
    moments = [datetime.strptime(start.strftime(form), form) + i * count * unit for i in range(rows + 10)]
    texts = [moment.strftime(form) for moment in moments]
    times, _ = Times.of(texts[:rows])
    assert [times.at(i) for i in range(1 - rows, 11)] == texts


@hypothesis.given(
    first=st.integers(12 * 1700, 12 * 2200), step=st.integers(1, 30), day=st.integers(1, 31), rows=st.integers(12, 30)
)
def test_months_are_continued_on_their_day_or_the_last_day(first, step, day, rows):
    days = []
    for value in range(first, first + step * (rows + 12), step):
        month = date(value // 12, value % 12 + 1, 1)
        days.append(month.replace(day=min(day, last_day(month))))
    hypothesis.assume(max(one.day for one in days[:rows]) == day)  # else nothing tells the day
    hypothesis.assume(day == 31 or any(one.day < last_day(one) for one in days[:rows]))  # else they are ends of months
    texts = [one.isoformat() for one in days]
    times, _ = Times.of(texts[:rows])
    assert [times.at(i) for i in range(1 - rows, 13)] == texts


@hypothesis.given(
    first=st.integers(-(10**9), 10**9), step=st.integers(1, 10**6), decimals=st.integers(0, 6), rows=st.integers(2, 20)
)
def test_decimals_keep_their_scale(first, step, decimals, rows):
    texts = [str(Decimal(first + i * step).scaleb(-decimals)) for i in range(rows + 5)]
    hypothesis.assume("E" not in "".join(texts))
    try:
        times, _ = Times.of(texts[:rows])
    except ValueError as error:
        assert "could be a number or the date" in str(error)  # noqa: PT017 (only some inputs fail)
    else:
        hypothesis.assume(times.kept["clock"] == "numbers")
        assert [times.at(i) for i in range(1 - rows, 6)] == texts


@hypothesis.given(st.lists(st.text(max_size=12) | st.from_regex(MOMENT, fullmatch=True), max_size=5))
def test_any_texts_are_refused_or_continued(texts):
    with contextlib.suppress(ValueError):
        times, _ = Times.of(texts)
        assert [times.at(i) for i in range(1 - len(texts), 1)] == texts
        assert Times.of([*texts, times.at(1)])[0].at(0) == times.at(1)


# ---- commands


@pytest.mark.usefixtures("estimators")
@pytest.mark.parametrize(
    ("texts", "to_come"),
    [
        ([f"202401{day:02}" for day in range(10, 32)] + ["20240201"], ["20240202", "20240203"]),
        ([f"2024-W{week:02}" for week in range(30, 53)], ["2025-W01", "2025-W02"]),
        (
            [f"20240101T{minutes // 4:02}{minutes % 4 * 15:02}" for minutes in range(24)],
            ["20240101T0600", "20240101T0615"],
        ),
        ([f"00{number:02}" for number in range(24)], ["0024", "0025"]),
        ([f"2024-01-31T{hour:02}:00Z" for hour in range(24)], ["2024-02-01T00:00Z", "2024-02-01T01:00Z"]),
    ],
)
def test_commands_continue_the_times_of_a_file(texts, to_come, tmp_path, capsys):
    sheet, model = tmp_path / "sheet.csv", tmp_path / "model"
    sheet.write_text("day,sold\n" + "".join(f"{text},{i % 5}\n" for i, text in enumerate(texts)))
    assert train_csv(sheet, model, "--time-column", "day") == 0
    capsys.readouterr()
    assert main(["predict", str(model), "--horizon", "2"]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["day", *to_come]


@pytest.mark.usefixtures("estimators")
def test_horizon_beyond_the_last_year_is_one_error(tmp_path, capsys):
    sheet, model, out = tmp_path / "sheet.csv", tmp_path / "model", tmp_path / "next.csv"
    days = [date(9999, 11, 1) + timedelta(i) for i in range(46)]
    sheet.write_text("day,sold\n" + "".join(f"{day},{i % 5}\n" for i, day in enumerate(days)))
    assert train_csv(sheet, model, "--time-column", "day") == 0
    capsys.readouterr()
    assert main(["predict", str(model), "--horizon", "15", "--output", str(out)]) == 0
    assert out.read_text().splitlines()[-1].startswith("9999-12-31,")
    capsys.readouterr()
    line = failure(capsys, "predict", model, "--horizon", 16)
    assert "the time 16 rows after '9999-12-16' is outside the years 1 to 9999; use a smaller --horizon" in line
