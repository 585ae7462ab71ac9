"""``rnnfast train csv`` and ``rnnfast predict``: a forecaster of a time series from a CSV file."""

from __future__ import annotations

import argparse
import calendar
import contextlib
import csv
import functools
import importlib.util
import io
import itertools
import math
import re
import sys
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

import numpy as np

import rnnfast
from rnnfast import files
from rnnfast._types import NDArray
from rnnfast.commands import program
from rnnfast.commands.program import CannotRun, count, option, printable
from rnnfast.layers import saving

CELLS = {"gru": rnnfast.GRU, "lstm": rnnfast.LSTM, "rnn": rnnfast.RNN}
OPTIONS = {"cell", "hidden_size", "num_layers", "differences", "learning_rate", "random_state"}  # of a saved forecaster
LARGEST = 1e150  # the square of this is still finite


# ------------------------------------------------------------------------------------------------------------- times
#
# A clock is created for the format of the first time. It is a pair of functions: read(text) returns a value that grows
# evenly, and write(value) returns the text. read raises ValueError for text that write would not give back unchanged.

Clock = tuple[Callable[[str], Any], Callable[[Any], str]]

EXAMPLES = (
    "numbers such as 7, 0007 or -2.50, or dates and times such as 2024-01, 202401, 2024-Q1, 2024-W05, 2024-01-31, "
    "20240131, 2024-031, 2024-01-31T12:00, 2024-01-31 12:00:30.5 or 2024-01-31T12:00+01:00"
)
DECIMALS = 18  # of a number


def _exact(read: Callable[[str], Any], write: Callable[[Any], str]) -> Clock:
    def read_one(text: str) -> Any:
        value = read(text)
        if write(value) != text:
            raise ValueError(text)
        return value

    return read_one, write


def _numbers(first: str, style: str = "fixed") -> Clock:
    """Read decimal numbers, as integers scaled by 10**DECIMALS.

    With the style "fixed", all have the decimals and the leading zeros of the first; with "short", no decimal ends in
    zero; "float" is like "short", but integers end in ".0".
    """
    form = re.compile(rf"-?([0-9]{{1,40}})(?:\.([0-9]{{1,{DECIMALS}}}))?")

    def read_one(text: str) -> int:
        match = form.fullmatch(text)
        if match is None:
            raise ValueError(text)
        return int(text.partition(".")[0] + (match[2] or "").ljust(DECIMALS, "0"))

    def write_one(value: int) -> str:
        digits = f"{abs(value):0{DECIMALS + 1}}"
        whole, decimals = digits[:-DECIMALS], digits[-DECIMALS:]
        if style == "fixed":
            whole, decimals = whole.zfill(width), decimals[:count]
        else:
            decimals = decimals.rstrip("0") or "0" * (style == "float")
        return "-" * (value < 0) + whole + "." * bool(decimals) + decimals

    read_one(first)
    whole, _, decimals = first.removeprefix("-").partition(".")
    width, count = len(whole) if whole[0] == "0" else 1, len(decimals)
    return _exact(read_one, write_one)


def _week(form: str) -> tuple[Any, Any]:
    return date.fromisoformat, lambda day: form.format(*day.isocalendar())


def _quarter(form: str) -> tuple[Any, Any]:
    def read_one(text: str) -> date:
        return date(int(text[:4]), 3 * int(text[-1]) - 2, 1)

    return read_one, lambda day: form.format(day.year, (day.month + 2) // 3)


def _ordinal(text: str) -> date:
    return date(int(text[:4]), 1, 1) + timedelta(int(text[-3:]) - 1)


# The formats of dates: how to read and write them, and the smallest step that they can express.
DATES: dict[str, tuple[Callable[[str], date], Callable[[date], str], str]] = {
    r"\d{4}-\d\d-\d\d": (date.fromisoformat, date.isoformat, "day"),
    r"\d{8}": (date.fromisoformat, lambda day: day.isoformat().replace("-", ""), "day"),
    r"\d{4}-\d{3}": (_ordinal, lambda day: f"{day.year:04}-{day.timetuple().tm_yday:03}", "day"),
    r"\d{7}": (_ordinal, lambda day: f"{day.year:04}{day.timetuple().tm_yday:03}", "day"),
    r"\d{4}-\d\d": (lambda text: date.fromisoformat(f"{text}-01"), lambda day: day.isoformat()[:7], "month"),
    r"\d{6}": (lambda text: date.fromisoformat(f"{text}01"), lambda day: f"{day.year:04}{day.month:02}", "month"),
    r"\d{4}-Q\d": (*_quarter("{:04}-Q{}"), "month"),
    r"\d{4}Q\d": (*_quarter("{:04}Q{}"), "month"),
    r"\d{4}-W\d\d-\d": (*_week("{:04}-W{:02}-{}"), "week"),
    r"\d{4}W\d{3}": (*_week("{:04}W{:02}{}"), "week"),
    r"\d{4}-W\d\d": (*_week("{:04}-W{:02}"), "week"),
    r"\d{4}W\d\d": (*_week("{:04}W{:02}"), "week"),
}
MOMENT = re.compile(
    rf"(?P<date>{'|'.join(DATES)})"
    r"(?:(?P<between>[T ]?)(?P<clock>\d\d(?::\d\d(?::\d\d(?:\.\d{1,6})?)?)?|\d{4}(?:\d\d(?:\.\d{1,6})?)?)"
    r"(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)
YEARS = range(1600, 2400)  # in which an integer such as 20240131 is a date


def _calendar(first: str) -> tuple[Clock, str]:
    """Return a clock whose values are datetimes, and the smallest step that its dates can express."""
    form = MOMENT.fullmatch(first)
    if form is None:
        raise ValueError(first)
    day, clock, between, zone = (form[name] or "" for name in ("date", "clock", "between", "zone"))
    read_day, write_day, unit = next(value for pattern, value in DATES.items() if re.fullmatch(pattern, day))
    if day.isdigit() and int(day[:4]) not in YEARS:
        raise ValueError(first)
    if clock and (unit == "month" or not (between or (day + clock).isdigit())):
        raise ValueError(first)

    def read_one(text: str) -> datetime:
        match = MOMENT.fullmatch(text)
        if match is None:
            raise ValueError(text)
        return datetime.combine(read_day(match["date"]), time.fromisoformat(match["clock"] or "00"))

    def write_one(value: datetime) -> str:
        full = value.time().isoformat("microseconds")
        full = full if clock[2:3] in ("", ":") else full.replace(":", "")
        return write_day(value.date()) + between + full[: len(clock)] + zone

    return _exact(read_one, write_one), unit


def _months(first: str, day: int = 0) -> Clock:
    """Read times of months: on this day, or on the last day of shorter months. 0 is the day of all times."""
    (read_moment, write_moment), unit = _calendar(first)
    start = read_moment(first)
    same, day = not day, day or start.day

    def at(value: int) -> datetime:
        year, month = value // 12, value % 12 + 1
        moment: datetime = start.replace(year, month, min(day, calendar.monthrange(year, month)[1]))
        return moment

    def read_one(text: str) -> int:
        found: datetime = read_moment(text)
        value: int = 12 * found.year + found.month - 1
        if unit == "week" or at(value) != found or (same and found.day != day):
            raise ValueError(text)
        return value

    return read_one, lambda value: write_moment(at(value))


def _moments(first: str) -> Clock:
    clock, unit = _calendar(first)
    if unit == "month":
        raise ValueError(first)
    return clock


# The first that reads all times as evenly spaced is used. Numbers come last: after 20240131 comes 20240201.
CLOCKS: dict[str, Callable[[str], Clock]] = {
    "ends of months": functools.partial(_months, day=31),
    "months": _months,
    "30ths of months": functools.partial(_months, day=30),
    "29ths of months": functools.partial(_months, day=29),
    "moments": _moments,
    "numbers": _numbers,
    "short numbers": functools.partial(_numbers, style="short"),
    "floats": functools.partial(_numbers, style="float"),
}
NUMBERS = ("numbers", "short numbers", "floats")
AHEAD = 12  # times that must exist after the last one


# Dates that look like numbers, but do not continue as numbers do; %G%V%u is a week with "1" appended.
_DAYS = ("%Y%m%d", "%y%m%d", "%d%m%Y", "%m%d%Y", "%d%m%y", "%m%d%y")
_CLOCKS = ("", "%H", "%H%M", "%H%M%S")
LOOKALIKES = ["%Y%m", "%y%m", "%m%Y", "%Y%j", "%y%j", "%G%V%u", *(day + clock for day in _DAYS for clock in _CLOCKS)]


def _lookalike(texts: Sequence[str]) -> str | None:
    """Return the first of these numbers as a date, if all could be evenly spaced dates in another format."""
    if all(len(text) == 4 and text < "2100" for text in texts):
        return None  # years
    zeros = all(re.search(r"\.0+$", text) for text in texts)
    digits = [text.partition(".")[0] if zeros else text.replace(".", "") for text in texts]
    for form in LOOKALIKES:
        years = range(1970, 2036) if form == "%y%j" else YEARS  # others are the days that spreadsheets count
        week = "1" * form.endswith("%u")
        with contextlib.suppress(ValueError):
            moments = [datetime.strptime(text + week, form) for text in digits]
            written = [moment.strftime(form) for moment in moments if moment.year in years]
            if written == [text + week for text in digits]:
                Times.of([moment.isoformat() for moment in moments])
                return moments[0].isoformat().removesuffix("T00:00:00")
    return None


class Times:
    """Evenly spaced times of the rows, and of rows before and after them."""

    def __init__(self, clock: str, before: str, last: str) -> None:
        self.kept = {"clock": clock, "before": before, "last": last}
        read_one, self._write = CLOCKS[clock](before)
        first, self._last = read_one(before), read_one(last)
        self._step = self._last - first
        if not self._last > first:
            raise ValueError(f"{last!r} is not after {before!r}")

    @classmethod
    def of(cls, texts: Sequence[str]) -> Times:
        """Return the times of a column.

        Raises
        ------
        ValueError
            If no clock reads the times as evenly spaced and increasing, or the next ones cannot be written.
        """
        if len(texts) < 2:
            raise ValueError(f"there are {len(texts)} rows, but --time-column needs at least 2")
        read: dict[str, list[Any]] = {}
        furthest = 0
        for name, clock in CLOCKS.items():
            if read and name in NUMBERS:
                break
            values: list[Any] = []
            with contextlib.suppress(ValueError, OverflowError):
                read_one, _ = clock(texts[0])
                for text in texts:
                    values.append(read_one(text))  # noqa: PERF401 (what was read before an error is used)
                read[name] = values
            furthest = max(furthest, len(values))
        if not read:
            like = f" in the format of row 1, {texts[0]!r:.80}" if furthest else ""
            raise ValueError(
                f"row {furthest + 1} has {texts[furthest]!r:.80}, which is not a time{like}; use {EXAMPLES}, and the "
                "same format in all rows"
            )
        for name, values in read.items():
            steps = {after - before for before, after in itertools.pairwise(values)}
            if len(steps) == 1 and values[1] > values[0]:
                if name in NUMBERS and (day := _lookalike(texts)):
                    raise ValueError(
                        f"row 1 has {texts[0]!r:.80}, which could be a number or the date {day}; write dates as {day}, "
                        "or leave out --time-column"
                    )
                times = cls(name, *texts[-2:])
                times.at(AHEAD)
                return times
        values = next(iter(read.values()))
        if values == sorted(set(values), reverse=True):
            raise ValueError("the times decrease: sort the rows by time, the oldest first")
        step = values[1] - values[0]
        rows = range(1, len(values))
        row = next(i for i in rows if values[i] <= values[i - 1] or values[i] - values[i - 1] != step)
        raise ValueError(
            f"the times are not evenly spaced: row {row + 1} has {texts[row]!r} after {texts[row - 1]!r}, but "
            f"the first two are {texts[0]!r} and {texts[1]!r}; add the missing rows or correct the times"
        )

    def at(self, offset: int) -> str:
        """Return the time `offset` rows after the last one; negative offsets are before it.

        Raises
        ------
        ValueError
            If it lies outside the years 1 to 9999.
        """
        try:
            return self._write(self._last + offset * self._step)
        except (OverflowError, ValueError):
            where = f"{abs(offset):,} rows {'after' if offset > 0 else 'before'} {self.kept['last']!r}"
            raise ValueError(f"the time {where} is outside the years 1 to 9999") from None


# ------------------------------------------------------------------------------------------------------------- files


def read_columns(path: str, names: list[str], delimiter: str) -> list[list[str]]:
    """Read columns of a CSV file, whose first line names them, as text."""
    text = io.StringIO(program.read_text(path, newline=""), newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        for name in names:
            if header.count(name) != 1:
                there = program.listed(header) or "none"
                fault = "has no column" if name not in header else "has more than one column"
                others = [other for other in ",;\t" if other != delimiter and len(header) == 1 and other in header[0]]
                hint = f"; try --delimiter {others[0]!r}" if others else ""
                raise CannotRun(f"{path} {fault} {name!r}; its columns are: {there}{hint}")
        places = [header.index(name) for name in names]
        columns: list[list[str]] = [[] for _ in names]
        blank = 0
        for row in rows:
            if not row:
                blank = blank or rows.line_num
                continue
            if blank:
                raise CannotRun(f"{path}: line {blank} is blank, but rows follow it; fill it or remove it")
            if len(row) != len(header):
                raise CannotRun(
                    f"{path}: line {rows.line_num} has {len(row)} fields, but the first line has {len(header)}"
                )
            for column, place in zip(columns, places, strict=True):
                column.append(row[place].strip())
    except csv.Error as error:
        raise CannotRun(f"{path}: line {rows.line_num}: {error}") from None
    return columns


def numbers(path: str, name: str, texts: list[str]) -> NDArray[np.float64]:
    values = []
    for row, text in enumerate(texts, 1):
        try:
            value = float(text.replace("_", "x"))  # Python itself would read 1_000 as a number
        except ValueError:
            value = math.nan
        if not abs(value) <= LARGEST:
            fault = "too large; change the unit"
            if not math.isfinite(value):
                comma = re.fullmatch(r"[+-]?\d+,\d+", text)
                fault = "not a finite number" + "; use a decimal point, and no separators of thousands" * bool(comma)
            raise CannotRun(f"{path}: row {row} has {text!r:.80} in column {name!r}, which is {fault}")
        values.append(value)
    return np.array(values)


def forecaster_of(options: dict[str, Any]) -> Any:
    try:
        from rnnfast.sklearn import SequenceForecaster
    except ImportError as error:
        raise CannotRun(str(error)) from None
    return SequenceForecaster(**options)


def save(path: str, forecaster: Any, series: NDArray[Any], about: dict[str, Any]) -> None:
    layers = {"layer": forecaster.layer_, "readout": forecaster.readout_}
    arrays = {f"{part}.{name}": a for part, layer in layers.items() for name, a in layer.parameters.items()}
    program.write_model(path, {"kind": "series", "made_by": rnnfast.__version__, **about}, {"series": series, **arrays})


def load(path: str) -> tuple[Any, NDArray[Any], dict[str, Any]]:
    """Return the forecaster, its series, and the description that `save` was given."""

    def build(archive: files.Archive) -> tuple[Any, NDArray[Any], dict[str, Any]]:
        about = archive.about
        column, time_column, options, times = (about[name] for name in ("column", "time_column", "options", "times"))
        if not isinstance(column, str) or not isinstance(time_column, (str, type(None))):
            raise ValueError("its columns must be strings")
        if unknown := sorted(options.keys() - OPTIONS):
            raise ValueError(f"it has the unknown option {unknown[0]!r}")
        shape = archive.shapes["series"]
        if len(shape) != 1:
            raise ValueError(f"its series must be one-dimensional, but has shape {shape}")
        series = archive.take("series", shape, np.float64)
        if not (np.abs(series) <= LARGEST).all():
            raise ValueError("its series has values that are not finite, or too large")
        forecaster = forecaster_of(options)
        layers = {
            "layer_": saving.construct(
                CELLS[forecaster.cell],
                archive,
                "layer.",
                input_size=1,
                hidden_size=forecaster.hidden_size,
                num_layers=forecaster.num_layers,
            ),
            "readout_": saving.construct(
                rnnfast.Linear, archive, "readout.", in_features=forecaster.hidden_size, out_features=1
            ),
        }
        if not all(np.isfinite(array).all() for layer in layers.values() for array in layer.parameters.values()):
            raise ValueError("its parameters are not finite")

        class Restored(type(forecaster)):  # type: ignore[misc]
            """A forecaster that is not trained: it gets the parameters in the file."""

            def _train(self, *_: Any) -> None:
                for name, layer in layers.items():
                    own = getattr(self, name)
                    own.load_state_dict(layer.parameters)
                    own.freeze()

        with np.errstate(over="ignore", invalid="ignore"):
            restored = Restored(**options).fit(series)
        return restored, series, {**about, "times": times and Times(**times)}

    found: tuple[Any, NDArray[Any], dict[str, Any]]
    found = program.read_model(path, "series", "train csv FILE --column NAME -o MODEL", build)
    return found


# ---------------------------------------------------------------------------------------------------------- commands


def configure_train(parser: argparse.ArgumentParser) -> None:
    """Train a recurrent network to forecast a column of a CSV file. The first line names the columns; the rows are
    evenly spaced in time. The last 20% of the rows are held out, and the epoch that is best on them is kept. Ctrl-C
    stops the training and keeps the best epoch so far. Needs scikit-learn: pip install 'rnnfast[sklearn]'.

    Examples:
      rnnfast train csv sales.csv --column sold -o sales.npz
      rnnfast train csv sales.csv --column sold --time-column month --season 12 -o sales.npz
      rnnfast predict sales.npz --horizon 24 --output next.csv --plot next.png
    """
    parser.add_argument("file", metavar="FILE", help="CSV file, in UTF-8")
    parser.add_argument(
        "-o", "--output", metavar="MODEL", type=program.file_name, required=True, help="file to save the model to"
    )
    group = parser.add_argument_group("series")
    group.add_argument("--column", metavar="NAME", required=True, help="column with the values")
    group.add_argument(
        "--time-column",
        metavar="NAME",
        help="column with the times: numbers, or dates such as 2024-01, 20240131, 2024-W05 or 2024-01-31T12:00; "
        "predict continues them in the same format (default: row numbers)",
    )
    option(group, "--season", count, 1, "period of the season in rows, such as 12 for monthly data; 1 for no season")
    group.add_argument("--delimiter", metavar="C", default=",", help="field separator (default: %(default)s)")
    group = parser.add_argument_group("model")
    group.add_argument("--cell", choices=CELLS, default="gru", help="recurrent cell (default: %(default)s)")
    option(group, "--hidden", count, 32, "units per layer")
    option(group, "--layers", count, 1, "stacked layers")
    group = parser.add_argument_group("training")
    option(group, "--epochs", count, 100, "maximum number of epochs")
    option(group, "--lr", program.positive, 0.01, "learning rate")
    option(group, "--seed", program.whole(0, 2**32 - 1), 0, "random seed")
    option(group, "--threads", count, None, "number of threads (default: see info)")
    parser.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> int:
    if arguments.threads:
        rnnfast.set_num_threads(arguments.threads)
    path, name, season = arguments.file, arguments.column, arguments.season
    program.require_distinct({"FILE": path, "--output": arguments.output})
    delimiter = "\t" if arguments.delimiter == r"\t" else arguments.delimiter
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise CannotRun(f"--delimiter must be a single character, not {arguments.delimiter!r}")
    texts, *clock = read_columns(path, [name, *filter(None, [arguments.time_column])], delimiter)
    series = numbers(path, name, texts)
    try:
        times = Times.of(clock[0]) if clock else None
    except ValueError as error:
        raise CannotRun(f"{path}: column {arguments.time_column!r}: {error}") from None
    program.require_writable(arguments.output)
    options = {"cell": arguments.cell, "hidden_size": arguments.hidden, "num_layers": arguments.layers}
    options |= {"differences": season, "learning_rate": arguments.lr, "random_state": arguments.seed}
    terminal = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
    forecaster = forecaster_of({**options, "max_epochs": arguments.epochs, "verbose": int(terminal)})
    from rnnfast.sklearn import Diverged

    held_out = math.ceil(forecaster.validation_fraction * len(series))
    if len(series) - held_out < season + 1 + forecaster.horizon:
        raise CannotRun(
            f"{path} has {len(series)} rows, of which {held_out} are held out; training needs at least "
            f"{season + 1 + forecaster.horizon} others with --season {season}: use more rows or a shorter season"
        )
    patience = forecaster.n_iter_no_change
    print(printable(f"{path}: column {name}, {len(series)} rows", keep=""), flush=True)

    def stop() -> None:
        forecaster.n_iter_no_change = 0  # read after each epoch; 0 ends the training

    with program.interruptible(stop), np.errstate(over="ignore", invalid="ignore"):  # divergence is detected
        try:
            forecaster.fit(series)
        except Diverged:
            remedy = f"use an --lr below {arguments.lr:g}, and values of moderate size"
            raise CannotRun(f"{path}: training diverged: {remedy}") from None
        except ValueError as error:
            raise CannotRun(f"{path}: training on column {name!r} failed: {error}") from None
    interrupted = forecaster.n_iter_no_change != patience
    about = {"column": name, "time_column": arguments.time_column, "times": times and times.kept, "options": options}
    save(arguments.output, forecaster, series, about)
    done = "Stopped by Ctrl-C after" if interrupted else "Trained for"
    print(f"{done} {forecaster.n_iter_} epochs; the best one is kept")
    ahead = max(1, round(forecaster.validation_fraction * len(series)))
    known, truth = series[:-ahead], series[-ahead:]
    repeated = np.resize(known[-season:], ahead)
    errors = [np.abs(truth - guess).mean() for guess in (forecaster.predict(ahead, series=known), repeated)]
    baseline = "last value" if season == 1 else f"last {season} values"
    print(f"Mean absolute error on the last {ahead} rows, forecast from the rows before:")
    print(f"  network {errors[0]:.4g}, baseline that repeats the {baseline} {errors[1]:.4g}")
    print("  (optimistic: these held-out rows also chose the best epoch)")
    print(f"Saved to {printable(arguments.output, keep='')}")
    return 130 if interrupted else 0


def configure_predict(parser: argparse.ArgumentParser) -> None:
    """Forecast the series of a model that "train csv" has saved. The output is CSV: a line per step, with a prediction
    interval of about the given coverage. Needs scikit-learn: pip install 'rnnfast[sklearn]'.

    Examples:
      rnnfast predict sales.npz --horizon 24
      rnnfast predict sales.npz --horizon 24 --coverage 0.5 --output next.csv --plot next.png
    """
    parser.add_argument("model", metavar="MODEL", help="file saved by train csv")
    option(parser, "--horizon", count, 12, "steps to forecast")
    option(parser, "--coverage", program.fraction, 0.9, "coverage of the interval")
    option(parser, "--output", program.file_name, None, "CSV file to write (default: standard output)")
    option(parser, "--plot", program.file_name, None, "draw the forecast to this file (needs matplotlib)")
    parser.set_defaults(run=predict)


def predict(arguments: argparse.Namespace) -> int:
    program.require_distinct({"MODEL": arguments.model, "--output": arguments.output, "--plot": arguments.plot})
    for path in filter(None, (arguments.output, arguments.plot)):
        program.require_writable(path, device=True)
    program.require_drawable(arguments.plot)
    forecaster, series, about = load(arguments.model)
    if arguments.horizon > (most := 100 * len(series)):
        raise CannotRun(
            f"--horizon must be at most {most:,}, which is 100 times the {len(series):,} rows of the series, "
            f"not {arguments.horizon:,}"
        )
    times: Times | None = about["times"]

    def label(offset: int) -> str:
        try:
            return times.at(offset) if times else str(len(series) + offset)
        except ValueError as error:
            raise CannotRun(f"{arguments.model}: {error}; use a smaller --horizon") from None

    steps = [label(step + 1) for step in range(arguments.horizon)]
    with np.errstate(over="ignore", invalid="ignore"):
        forecasts = [forecaster.predict(arguments.horizon)]
        with contextlib.suppress(ValueError):  # too few held-out values for this horizon
            forecasts += forecaster.predict_interval(arguments.horizon, arguments.coverage)
    if not np.isfinite(forecasts).all():
        raise CannotRun(f"{arguments.model}: its forecasts are not finite: train another model")
    if len(forecasts) == 1:
        what = f"{arguments.horizon} steps at a coverage of {arguments.coverage:g}"
        print(f"No prediction interval: too few rows were held out for {what}; lower one of them.", file=sys.stderr)
    names = [about["column"], "lower", "upper"][: len(forecasts)]
    header = [about["time_column"] or "row", *names]
    to_file = arguments.output is not None
    with program.writing(arguments.output) if to_file else contextlib.nullcontext(sys.stdout) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(header if to_file else map(printable, header))
        for step, values in zip(steps, zip(*forecasts, strict=True), strict=True):
            rows.writerow([step, *(f"{value:.8g}" for value in values)])
    if arguments.plot:
        plot(
            arguments.plot, series, about["column"], forecasts, label, about["time_column"] or "row", arguments.coverage
        )
    return 0


def plot(
    path: str,
    series: NDArray[Any],
    name: str,
    forecasts: list[NDArray[Any]],
    label: Callable[[int], str],
    time_column: str,
    coverage: float,
) -> None:
    """Draw the end of the series and the forecast."""
    forecast, *bounds = forecasts
    shown = series[-max(5 * len(forecast), 50) :]
    past, ahead = np.arange(1 - len(shown), 1), np.arange(1, len(forecast) + 1)
    with program.axes_of(path, 8, 4.5) as axes:
        axes.plot(past, shown, color="C0", label=name)
        axes.plot([0, *ahead], [series[-1], *forecast], color="C1", label="forecast")
        if bounds:
            axes.fill_between(ahead, *bounds, color="C1", alpha=0.25, label=f"{coverage:.0%} prediction interval")
        ticks = np.unique(np.linspace(past[0], ahead[-1], 8).round().astype(int))
        axes.set_xticks(ticks, [label(tick).replace("T", " ") for tick in ticks.tolist()], rotation=20)
        axes.set(xlabel=time_column, ylabel=name)
