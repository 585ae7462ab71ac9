"""``python -m rnnfast train csv`` and ``predict``: a model that goes on with a series out of a CSV file."""

from __future__ import annotations

import argparse
import calendar
import contextlib
import csv
import importlib.util
import io
import itertools
import math
import re
import sys
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import numpy as np

import rnnfast
from rnnfast.commands import (
    CannotRun,
    count,
    draw,
    file_name,
    interruptible,
    read,
    read_text,
    real,
    require_apart,
    require_drawable,
    require_writable,
    share,
    whole,
    write,
    writing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

MAKE_ONE = "python -m rnnfast train csv FILE --column NAME -o MODEL makes one"

LARGEST = 1e150  # squares of such values are still finite


# ------------------------------------------------------------------------------------------------------------- times
#
# A clock is made for the first of some times; it has read(time), a value that grows evenly, and write(value). Neither
# knows more than one form of times: read raises a ValueError for others.


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
    """Months such as 2024-01, or the same day of each, or with `end` the last day of each."""
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


def _month_ends(first: str) -> tuple[Any, Any]:
    return _months(first, end=True)


def _moments(first: str) -> tuple[Any, Any]:
    def write_one(value: datetime) -> str:
        return value.date().isoformat() if len(first) == 10 else value.isoformat(first[10])

    return datetime.fromisoformat, write_one


CLOCKS: dict[str, Callable[[str], tuple[Any, Any]]] = {
    "numbers": _numbers,
    "months": _months,
    "ends of months": _month_ends,
    "moments": _moments,
}


class Times:
    """The times of the rows, which are even, and what they were and will be."""

    def __init__(self, clock: str, before: str, last: str) -> None:
        self.kept = {"clock": clock, "before": before, "last": last}
        read_one, self._write = CLOCKS[clock](before)
        self._last = read_one(last)
        self._step = self._last - read_one(before)

    @classmethod
    def of(cls, texts: Sequence[str]) -> Times | None:
        """None where no clock finds them even, and going on: `fault` says why."""
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
        """What is wrong with times of which there is no clock; rows are counted from 1."""
        if len(texts) < 2:
            return f"too few rows: {len(texts)}, and times take 2 or more"
        furthest = -1
        for clock in CLOCKS.values():
            values: list[Any] = []
            with contextlib.suppress(ValueError, TypeError, IndexError):
                read_one, _ = clock(texts[0])
                for text in texts:
                    values.append(read_one(text))  # noqa: PERF401 - how far it goes is kept
                pairs = list(itertools.pairwise(values))
                if all(after < before for before, after in pairs):
                    return "the times go back from row to row: sort the rows, the oldest first"
                row = next(
                    i
                    for i, (before, after) in enumerate(pairs)
                    if after <= before or after - before != pairs[0][1] - pairs[0][0]
                )
                return (
                    f"the times are not even: row {row + 2} has {texts[row + 1]!r} after {texts[row]!r}, and the first "
                    f"two are {texts[0]!r} and {texts[1]!r}; fill or mend the rows"
                )
            furthest = max(furthest, len(values))
        return (
            f"row {furthest + 1} has {texts[furthest]!r}, which is no time that is understood as those before it: all "
            "must be numbers, or all such as 2024-01, 2024-01-31 or 2024-01-31T12:00"
        )

    def at(self, offset: int) -> str:
        """The time so many rows after the last one, or before it."""
        return self._write(self._last + offset * self._step)


# ------------------------------------------------------------------------------------------------------------- files


def read_columns(path: str, names: list[str], delimiter: str) -> list[list[str]]:
    """The texts in some columns of a CSV file whose first line names them."""
    rows = csv.reader(
        io.StringIO(read_text(path, "utf-8-sig", newline=""), newline=""), delimiter=delimiter, strict=True
    )
    try:
        header = [name.strip() for name in next(rows, [])]
        for name in names:
            if header.count(name) != 1:
                there = ", ".join(header) or "none"
                fault = "has no column" if name not in header else "has more than one column"
                others = [other for other in ",;\t" if other != delimiter and len(header) == 1 and other in header[0]]
                hint = f": is it --delimiter {others[0]!r}?" if others else ""
                raise CannotRun(f"{path} {fault} {name!r}; its first line names: {there}{hint}")
        columns: list[list[str]] = [[] for _ in names]
        blank = 0
        for row in rows:
            if not row:
                blank = blank or rows.line_num
                continue
            if blank:
                raise CannotRun(f"{path}: line {blank} is blank, but rows follow it: fill it or take it out")
            if len(row) != len(header):
                raise CannotRun(f"{path}: line {rows.line_num} has {len(row)} fields, but the first {len(header)}")
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
            hint = "; write decimals with a point" if re.fullmatch(r"[+-]?\d+,\d+", text) else ""
            raise CannotRun(
                f"{path}: row {i + 1} below the first line has {text!r} in column {name!r}: no finite number{hint}"
            )
        if abs(values[i]) > LARGEST:
            raise CannotRun(
                f"{path}: row {i + 1} below the first line has {text!r} in column {name!r}: too large, use another unit"
            )
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
    write(path, {"kind": "series", "made_by": rnnfast.__version__, **about}, {"series": series, **arrays})


def load(path: str) -> tuple[Any, NDArray[Any], dict[str, Any]]:
    """The forecaster, its series, and what else `save` was told."""
    about, arrays = read(path, "series", MAKE_ONE)
    try:
        # An epoch over the same series makes all that is not learnt as it was; then come the parameters.
        series = arrays["series"]
        forecaster = forecaster_of({**about["options"], "max_epochs": 1}).fit(series)
        for part, layer in {"layer": forecaster.layer_, "readout": forecaster.readout_}.items():
            layer.unfreeze()
            layer.load_state_dict({name: arrays[f"{part}.{name}"] for name in layer.parameters})
            layer.freeze()
        about["times"] = about["times"] and Times(**about["times"])
    except (KeyError, TypeError, ValueError):
        raise CannotRun(f"{path} is damaged: {MAKE_ONE}") from None
    return forecaster, series, about


# ---------------------------------------------------------------------------------------------------------- commands


def configure_train(parser: argparse.ArgumentParser) -> None:
    """Train a recurrent network on a column of a CSV file, whose first line names the columns and whose rows are
    evenly spaced in time. The last 20% are held out while it learns: the epoch that was best on them is kept.
    Ctrl-C ends the training and keeps the best so far. This needs scikit-learn: pip install 'rnnfast[sklearn]'.

    Examples:
      python -m rnnfast train csv sales.csv --column sold -o sales.npz
      python -m rnnfast train csv sales.csv --column sold --time-column month --season 12 -o sales.npz
      python -m rnnfast predict sales.npz --horizon 24 --output next.csv --plot next.png
    """
    parser.add_argument("file", metavar="FILE", help="CSV file, in UTF-8")
    parser.add_argument(
        "-o", "--output", metavar="MODEL", type=file_name, required=True, help="file to write the model to"
    )
    group = parser.add_argument_group("the series")
    group.add_argument("--column", metavar="NAME", required=True, help="column with the values")
    group.add_argument(
        "--time-column",
        metavar="NAME",
        help="column with the times, which predict goes on with: numbers, or dates such as 2024-01, 2024-01-31 and "
        "2024-01-31T12:00 (default: the number of the row)",
    )
    group.add_argument(
        "--season",
        metavar="N",
        type=count,
        default=1,
        help="rows after which the series repeats, such as 12 for months: the network learns the differences from what "
        "was so many rows before (%(default)s)",
    )
    group.add_argument("--delimiter", metavar="C", default=",", help="what stands between fields (%(default)s)")
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--cell", choices=("gru", "lstm", "rnn"), default="gru", help="the recurrent layers (%(default)s)"
    )
    group.add_argument("--hidden", metavar="N", type=count, default=32, help="units in each of them (%(default)s)")
    group.add_argument("--layers", metavar="N", type=count, default=1, help="how many, stacked (%(default)s)")
    group = parser.add_argument_group("the training")
    group.add_argument("--epochs", metavar="N", type=count, default=100, help="at most so many (%(default)s)")
    group.add_argument("--lr", metavar="X", type=real, default=0.01, help="learning rate (%(default)s)")
    group.add_argument("--seed", metavar="N", type=whole, default=0, help="of all random numbers (%(default)s)")
    group.add_argument("--threads", metavar="N", type=count, help="threads to compute with (default: see info)")
    parser.set_defaults(run=train)


def train(arguments: argparse.Namespace) -> int:
    if arguments.threads:
        rnnfast.set_num_threads(arguments.threads)
    path, name, season = arguments.file, arguments.column, arguments.season
    require_apart({"FILE": path, "--output": arguments.output})
    delimiter = "\t" if arguments.delimiter == r"\t" else arguments.delimiter
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise CannotRun(f"--delimiter must be one character, got {arguments.delimiter!r}")
    if arguments.seed >= 1 << 32:
        raise CannotRun(f"--seed must be from 0 to {(1 << 32) - 1}, got {arguments.seed}")
    texts, *clock = read_columns(path, [name, *filter(None, [arguments.time_column])], delimiter)
    series = numbers(path, name, texts)
    times = Times.of(clock[0]) if clock else None
    if clock and times is None:
        raise CannotRun(f"{path}: column {arguments.time_column!r}: {Times.fault(clock[0])}")
    require_writable(arguments.output)
    options = {
        "cell": arguments.cell,
        "hidden_size": arguments.hidden,
        "num_layers": arguments.layers,
        "differences": season,
        "learning_rate": arguments.lr,
        "random_state": arguments.seed,
    }
    terminal = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
    forecaster = forecaster_of({**options, "max_epochs": arguments.epochs, "verbose": int(terminal)})
    from rnnfast.sklearn import Diverged  # which is there, as its forecaster is

    held_out = math.ceil(forecaster.validation_fraction * len(series))
    if len(series) - held_out < season + 1 + forecaster.horizon:
        raise CannotRun(
            f"{path}: {len(series)} rows are too few, as {held_out} are held out: the others must be {season} for "
            f"--season and {1 + forecaster.horizon} more; give more rows, or a shorter --season"
        )
    patience = forecaster.n_iter_no_change
    print(f"{path}: column {name}, {len(series)} rows", flush=True)

    def stop() -> None:
        forecaster.n_iter_no_change = 0  # asked for after each epoch: it is the last one then

    with interruptible(stop), np.errstate(over="ignore", invalid="ignore"):  # a training that diverges is looked for
        try:
            forecaster.fit(series)
        except Diverged:
            raise CannotRun(
                f"{path}: the training diverged: use a lower --lr than {arguments.lr:g}, and moderate values"
            ) from None
        except ValueError as error:
            raise CannotRun(f"{path}: column {name!r} cannot be learnt: {error}") from None
    interrupted = forecaster.n_iter_no_change != patience
    about = {"column": name, "time_column": arguments.time_column, "times": times and times.kept, "options": options}
    save(arguments.output, forecaster, series, about)
    print(
        f"{'Stopped by Ctrl-C after' if interrupted else 'Trained'} {forecaster.n_iter_} epochs, the best one is kept"
    )
    ahead = max(1, round(forecaster.validation_fraction * len(series)))
    known, truth = series[:-ahead], series[-ahead:]
    repeated = np.resize(known[-season:], ahead)
    errors = [np.abs(truth - guess).mean() for guess in (forecaster.predict(ahead, series=known), repeated)]
    repeating = f"{errors[1]:.4g} by repeating the last {'value' if season == 1 else f'{season} values'}"
    print(f"Mean error of forecasts of the last {ahead} rows from all before: {errors[0]:.4g}, and {repeating}")
    print("(the network has not learnt from these rows, but they chose the epoch)")
    print(f"Saved to {arguments.output}")
    return 130 if interrupted else 0


def configure_predict(parser: argparse.ArgumentParser) -> None:
    """Go on with the series that "train csv" has learnt: a line of CSV for each step to come, with the bounds between
    which it lies with the given probability, about. This needs scikit-learn: pip install 'rnnfast[sklearn]'.

    Examples:
      python -m rnnfast predict sales.npz --horizon 24
      python -m rnnfast predict sales.npz --horizon 24 --coverage 0.5 --output next.csv --plot next.png
    """
    parser.add_argument("model", metavar="MODEL", help="file that train csv has written")
    parser.add_argument("--horizon", metavar="N", type=count, default=12, help="steps to come (%(default)s)")
    parser.add_argument("--coverage", metavar="X", type=share, default=0.9, help="of the bounds, below 1 (%(default)s)")
    parser.add_argument("--output", metavar="FILE", type=file_name, help="CSV file to write (default: to the terminal)")
    parser.add_argument(
        "--plot", metavar="FILE", type=file_name, help="draw the series and what follows into this file (matplotlib)"
    )
    parser.set_defaults(run=predict)


def predict(arguments: argparse.Namespace) -> int:
    require_apart({"MODEL": arguments.model, "--output": arguments.output, "--plot": arguments.plot})
    for path in filter(None, (arguments.output, arguments.plot)):
        require_writable(path, device=True)
    require_drawable(arguments.plot)
    forecaster, series, about = load(arguments.model)
    if arguments.horizon > (most := 100 * len(series)):
        raise CannotRun(
            f"--horizon must be at most {most:,}, 100 times the {len(series):,} rows of the series, "
            f"got {arguments.horizon:,}"
        )
    columns = {about["column"]: forecaster.predict(arguments.horizon)}
    try:
        columns["lower"], columns["upper"] = forecaster.predict_interval(arguments.horizon, arguments.coverage)
    except ValueError:  # the series is too short for so many steps
        what = f"{arguments.horizon} steps and a coverage of {arguments.coverage:g}"
        print(f"No bounds: too little was held out for {what}; try a lower --horizon or --coverage.", file=sys.stderr)
    times: Times | None = about["times"]

    def label(offset: int) -> str:
        return times.at(offset) if times else str(len(series) + offset)

    with writing(arguments.output, newline="") if arguments.output else contextlib.nullcontext(sys.stdout) as file:
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
    """The end of the series, and what follows."""
    (name, forecast), *bounds = columns.items()
    shown = series[-max(5 * len(forecast), 50) :]
    past, ahead = np.arange(1 - len(shown), 1), np.arange(1, len(forecast) + 1)
    with draw(path, 9, 4.5) as axes:
        axes.plot(past, shown, color="C0", label=f"{name}, known")
        axes.plot([0, *ahead], [series[-1], *forecast], color="C1", label="forecast")
        if bounds:
            (_, lower), (_, upper) = bounds
            axes.fill_between(ahead, lower, upper, color="C1", alpha=0.25, label=f"{coverage:.0%} of the values, about")
        places = np.unique(np.linspace(past[0], ahead[-1], 8).round().astype(int))
        axes.set_xticks(places, [label(place).replace("T", " ") for place in places.tolist()], rotation=20)
        axes.set(xlabel=time_column, ylabel=name)
        axes.grid(color="#ececec")
        axes.set_axisbelow(True)
