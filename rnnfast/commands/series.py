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
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

import rnnfast
from rnnfast._types import NDArray
from rnnfast.commands import program
from rnnfast.commands.program import CannotRun, count, option

CELLS = ("gru", "lstm", "rnn")
LARGEST = 1e150  # the square of this is still finite


# ------------------------------------------------------------------------------------------------------------- times
#
# A clock is created for the format of the first time. It is a pair of functions: read(text) returns a value that grows
# evenly, or raises ValueError for other formats, and write(value) returns the text.


def _numbers(first: str) -> tuple[Any, Any]:  # noqa: ARG001
    def read_one(text: str) -> Decimal:
        if "_" in text or not math.isfinite(float(text)):
            raise ValueError(text)
        try:
            return Decimal(text)
        except InvalidOperation as error:
            raise ValueError(text) from error

    return read_one, str


def _months(first: str, end: bool = False) -> tuple[Any, Any]:
    """Read months such as 2024-01, the same day of every month, or with `end` the last day of every month."""
    form, day = len(first), 1

    def read_one(text: str) -> int:
        if len(text) != form:
            raise ValueError(text)
        found = date.fromisoformat(text if form > 7 else f"{text}-01")
        if found.day != (calendar.monthrange(found.year, found.month)[1] if end else day):
            raise ValueError(text)
        return 12 * found.year + found.month - 1

    def write_one(value: int) -> str:
        year, month = value // 12, value % 12 + 1
        last = calendar.monthrange(year, month)[1] if end else day
        return f"{year:04}-{month:02}-{last:02}"[:form]

    if form > 7:
        day = date.fromisoformat(first).day
    return read_one, write_one


def _moments(first: str) -> tuple[Any, Any]:
    def write_one(value: datetime) -> str:
        return value.date().isoformat() if len(first) == 10 else value.isoformat(first[10])

    return datetime.fromisoformat, write_one


CLOCKS: dict[str, Callable[[str], tuple[Any, Any]]] = {"numbers": _numbers, "months": _months}
CLOCKS |= {"ends of months": functools.partial(_months, end=True), "moments": _moments}


class Times:
    """Evenly spaced times of the rows, and of rows before and after them."""

    def __init__(self, clock: str, before: str, last: str) -> None:
        self.kept = {"clock": clock, "before": before, "last": last}
        read_one, self._write = CLOCKS[clock](before)
        self._last = read_one(last)
        self._step = self._last - read_one(before)

    @classmethod
    def of(cls, texts: Sequence[str]) -> Times | None:
        """Return None if no clock reads the times as evenly spaced and increasing; `fault` says why."""
        for name, clock in CLOCKS.items():
            with contextlib.suppress(ValueError, TypeError, IndexError):
                read_one, _ = clock(texts[0])
                values = list(map(read_one, texts))
                steps = {after - before for before, after in itertools.pairwise(values)}
                if len(steps) == 1 and values[1] > values[0]:
                    return cls(name, *texts[-2:])
        return None

    @staticmethod
    def fault(texts: Sequence[str]) -> str:
        """Explain why no clock reads these times; rows are counted from 1."""
        if len(texts) < 2:
            return f"there are {len(texts)} rows, but times need at least 2"
        furthest = -1
        for clock in CLOCKS.values():
            values: list[Any] = []
            with contextlib.suppress(ValueError, TypeError, IndexError):
                read_one, _ = clock(texts[0])
                for text in texts:
                    values.append(read_one(text))  # noqa: PERF401 (what was read before an error is used)
                pairs = list(itertools.pairwise(values))
                if all(after < before for before, after in pairs):
                    return "the times decrease: sort the rows by time, the oldest first"
                row = next(
                    i
                    for i, (before, after) in enumerate(pairs)
                    if after <= before or after - before != pairs[0][1] - pairs[0][0]
                )
                return (
                    f"the times are not evenly spaced: row {row + 2} has {texts[row + 1]!r} after {texts[row]!r}, but "
                    f"the first two are {texts[0]!r} and {texts[1]!r}; add the missing rows or correct the times"
                )
            furthest = max(furthest, len(values))
        return (
            f"row {furthest + 1} has {texts[furthest]!r}, which is not a time in the format of the rows before it; "
            "use numbers, or dates such as 2024-01, 2024-01-31 or 2024-01-31T12:00, and the same format in all rows"
        )

    def at(self, offset: int) -> str:
        """Return the time `offset` rows after the last one; negative offsets are before it."""
        return str(self._write(self._last + offset * self._step))


# ------------------------------------------------------------------------------------------------------------- files


def read_columns(path: str, names: list[str], delimiter: str) -> list[list[str]]:
    """Read columns of a CSV file, whose first line names them, as text."""
    text = io.StringIO(program.read_text(path, "utf-8-sig", newline=""), newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        for name in names:
            if header.count(name) != 1:
                there = ", ".join(header) or "none"
                fault = "has no column" if name not in header else "has more than one column"
                others = [other for other in ",;\t" if other != delimiter and len(header) == 1 and other in header[0]]
                hint = f"; try --delimiter {others[0]!r}" if others else ""
                raise CannotRun(f"{path} {fault} {name!r}; its columns are: {there}{hint}")
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
            for column, name in zip(columns, names, strict=True):
                column.append(row[header.index(name)].strip())
    except csv.Error as error:
        raise CannotRun(f"{path}: line {rows.line_num}: {error}") from None
    return columns


def numbers(path: str, name: str, texts: list[str]) -> NDArray[np.float64]:
    values = np.empty(len(texts))
    for i, text in enumerate(texts):
        try:
            values[i] = math.nan if "_" in text else float(text)
        except ValueError:
            values[i] = math.nan
        if not math.isfinite(values[i]):
            hint = "; use a decimal point" if re.fullmatch(r"[+-]?\d+,\d+", text) else ""
            raise CannotRun(f"{path}: row {i + 1} has {text!r} in column {name!r}, which is not a finite number{hint}")
        if abs(values[i]) > LARGEST:
            raise CannotRun(f"{path}: row {i + 1} has {text!r} in column {name!r}, which is too large; change the unit")
    return values


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

    def build(about: dict[str, Any], arrays: dict[str, Any]) -> tuple[Any, NDArray[Any], dict[str, Any]]:
        # Training for one epoch on the series restores everything but the parameters, which are loaded afterwards.
        series = arrays["series"]
        forecaster = forecaster_of({**about["options"], "max_epochs": 1}).fit(series)
        for part, layer in {"layer": forecaster.layer_, "readout": forecaster.readout_}.items():
            layer.unfreeze()
            layer.load_state_dict({name: arrays[f"{part}.{name}"] for name in layer.parameters})
            layer.freeze()
        about["times"] = about["times"] and Times(**about["times"])
        return forecaster, series, about

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
        help="column with the times: numbers, or dates such as 2024-01, 2024-01-31 or 2024-01-31T12:00; predict "
        "continues them (default: row numbers)",
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
    times = Times.of(clock[0]) if clock else None
    if clock and times is None:
        raise CannotRun(f"{path}: column {arguments.time_column!r}: {Times.fault(clock[0])}")
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
    print(f"{path}: column {name}, {len(series)} rows", flush=True)

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
    print(f"Saved to {arguments.output}")
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
    columns = {about["column"]: forecaster.predict(arguments.horizon)}
    try:
        columns["lower"], columns["upper"] = forecaster.predict_interval(arguments.horizon, arguments.coverage)
    except ValueError:  # too few held-out values for this horizon
        what = f"{arguments.horizon} steps at a coverage of {arguments.coverage:g}"
        print(f"No prediction interval: too few rows were held out for {what}; lower one of them.", file=sys.stderr)
    times: Times | None = about["times"]

    def label(offset: int) -> str:
        return times.at(offset) if times else str(len(series) + offset)

    to_file = arguments.output is not None
    with program.writing(arguments.output, newline="") if to_file else contextlib.nullcontext(sys.stdout) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow([about["time_column"] or "row", *columns])
        for step, values in enumerate(zip(*columns.values(), strict=True)):
            rows.writerow([label(step + 1), *(f"{value:.8g}" for value in values)])
    if arguments.plot:
        plot(arguments.plot, series, columns, label, about["time_column"] or "row", arguments.coverage)
    return 0


def plot(
    path: str,
    series: NDArray[Any],
    columns: dict[str, NDArray[Any]],
    label: Callable[[int], str],
    time_column: str,
    coverage: float,
) -> None:
    """Draw the end of the series and the forecast."""
    (name, forecast), *bounds = columns.items()
    shown = series[-max(5 * len(forecast), 50) :]
    past, ahead = np.arange(1 - len(shown), 1), np.arange(1, len(forecast) + 1)
    with program.axes_of(path, 8, 4.5) as axes:
        axes.plot(past, shown, color="C0", label=name)
        axes.plot([0, *ahead], [series[-1], *forecast], color="C1", label="forecast")
        if bounds:
            (_, lower), (_, upper) = bounds
            axes.fill_between(ahead, lower, upper, color="C1", alpha=0.25, label=f"{coverage:.0%} prediction interval")
        ticks = np.unique(np.linspace(past[0], ahead[-1], 8).round().astype(int))
        axes.set_xticks(ticks, [label(tick).replace("T", " ") for tick in ticks.tolist()], rotation=20)
        axes.set(xlabel=time_column, ylabel=name)
