"""``rnnfast train csv`` and ``rnnfast predict``: a forecaster of time series from a CSV file."""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import rnnfast
from rnnfast import files
from rnnfast._types import NDArray
from rnnfast.commands import program, tables
from rnnfast.commands.program import CannotRun, count, option, printable
from rnnfast.commands.tables import Reading, Table
from rnnfast.commands.times import Times
from rnnfast.layers import saving

CELLS = {"gru": rnnfast.GRU, "lstm": rnnfast.LSTM, "rnn": rnnfast.RNN}
OPTIONS = {"cell", "hidden_size", "num_layers", "differences", "learning_rate", "random_state"}  # of a saved forecaster


# ------------------------------------------------------------------------------------------------------------ models


def forecaster_of(options: dict[str, Any]) -> Any:
    try:
        from rnnfast.sklearn import SequenceForecaster
    except ImportError as error:
        raise CannotRun(str(error)) from None
    return SequenceForecaster(**options, multivariate=True)


def save(path: str, forecaster: Any, table: Table, options: dict[str, Any]) -> None:
    about = {
        "kind": "series",
        "made_by": rnnfast.__version__,
        "reading": dataclasses.asdict(table.reading),
        "times": table.times and table.times.kept,
        "options": options,
    }
    layers = {"layer": forecaster.layer_, "readout": forecaster.readout_}
    arrays = {f"{part}.{name}": a for part, layer in layers.items() for name, a in layer.parameters.items()}
    program.write_model(path, about, {"series": table.values, **arrays})


def load(path: str) -> tuple[Any, Table]:
    """Return a forecaster, and the table that it was trained on."""

    def build(archive: files.Archive) -> tuple[Any, Table]:
        about = archive.about
        reading, options, times = (about[name] for name in ("reading", "options", "times"))
        reading = Reading(**reading)
        if unknown := sorted(options.keys() - OPTIONS):
            raise ValueError(f"it has the unknown option {unknown[0]!r}")
        shape, width = archive.shapes["series"], len(reading.columns)
        if len(shape) != 2 or shape[1] != width:
            raise ValueError(f"its series must have shape (rows, {width}), not {shape}")
        series = archive.take("series", shape, np.float64)
        if not (np.abs(series) <= tables.LARGEST).all():
            raise ValueError("its series has values that are not finite, or too large")
        forecaster = forecaster_of(options)
        layers = {
            "layer_": saving.construct(
                CELLS[forecaster.cell],
                archive,
                "layer.",
                input_size=width,
                hidden_size=forecaster.hidden_size,
                num_layers=forecaster.num_layers,
            ),
            "readout_": saving.construct(
                rnnfast.Linear, archive, "readout.", in_features=forecaster.hidden_size, out_features=width
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

        with np.errstate(over="ignore", invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # which the training has shown
            restored = Restored(**options, multivariate=True).fit(series)
        return restored, Table(series, times and Times(**times), reading, [])

    found: tuple[Any, Table] = program.read_model(path, "series", "train csv FILE --column NAME -o MODEL", build)
    return found


@contextlib.contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print the warnings of a forecaster, each on a line on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"Note: {printable(text, keep='')}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------- commands


def differences(text: str) -> str | tuple[int, ...]:
    """Read the value of --differences."""
    if text in ("auto", "none"):
        return text if text == "auto" else ()
    with contextlib.suppress(argparse.ArgumentTypeError):
        return tuple(count(lag) for lag in text.split(","))
    raise argparse.ArgumentTypeError(f"must be auto, none, or lags of at least 1 such as 12 or 12,1, not {text!r}")


def add_reading_options(parser: argparse.ArgumentParser, title: str) -> None:
    group = parser.add_argument_group(title)
    group.add_argument("--delimiter", metavar="C", help=r"field separator, such as ';' or \t for tabs")
    group.add_argument("--decimal", metavar="C", choices=(".", ","), help="decimal separator: . or ,")
    thousands = tuple(tables.SEPARATORS)
    group.add_argument("--thousands", metavar="C", choices=thousands, help="separator of thousands: . , ' or a space")
    group.add_argument("--encoding", metavar="NAME", help="encoding of the text, such as cp1252")
    group.add_argument(
        "--date-format", metavar="FORMAT", help="format of the times, such as %%d.%%m.%%Y or %%m/%%d/%%Y"
    )
    group.add_argument(
        "--frequency",
        metavar="STEP",
        help="step between rows: hour, day, business, week, month, quarter or year, or a multiple such as '15 minutes'",
    )
    group.add_argument(
        "--fill",
        choices=tables.FILLS,
        help="fill missing values and rows, linearly or from the row before (default: they are errors)",
    )


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of how to read a file that were given."""
    names = ("delimiter", "decimal", "thousands", "encoding", "date_format", "frequency", "fill")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if given.get("delimiter") == r"\t":
        given["delimiter"] = "\t"
    return given


def configure_train(parser: argparse.ArgumentParser) -> None:
    """Train a recurrent network to forecast columns of a CSV file. The first line names the columns; the rows are
    evenly spaced in time. The last 20% of the rows are held out, and the epoch that is best on them is kept. Ctrl-C
    stops the training and keeps the best epoch so far. Needs scikit-learn: pip install 'rnnfast[sklearn]'.

    Examples:
      rnnfast train csv sales.csv --column sold -o sales.npz
      rnnfast train csv sales.csv --column sold --time-column month --season 12 -o sales.npz
      rnnfast train csv stock.csv --column close --time-column day --fill previous -o stock.npz
      rnnfast predict sales.npz --horizon 24 --output next.csv --plot next.png
    """
    parser.add_argument("file", metavar="FILE", help="CSV file")
    parser.add_argument(
        "-o", "--output", metavar="MODEL", type=program.file_name, required=True, help="file to save the model to"
    )
    group = parser.add_argument_group("series")
    group.add_argument(
        "--column",
        metavar="NAME",
        action="append",
        required=True,
        help="column with the values; repeat it for several columns, each of which is forecast from all",
    )
    group.add_argument(
        "--time-column",
        metavar="NAME",
        help="column with the times: numbers, or dates such as 2024-01, 31.01.2024 or 2024-01-31T12:00; "
        "predict continues them in the same format (default: row numbers)",
    )
    option(group, "--season", count, 1, "period of the season in rows, such as 12 for monthly data; 1 for no season")
    group.add_argument(
        "--differences",
        metavar="LAGS",
        type=differences,
        help="differences to learn: auto, none, or lags such as 12 or 12,1 (default: the season)",
    )
    add_reading_options(parser, "file format (default: detected)")
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
    path, season = arguments.file, arguments.season
    program.require_distinct({"FILE": path, "--output": arguments.output})
    try:
        reading = Reading(arguments.column, arguments.time_column, **reading_options(arguments))
    except ValueError as error:
        raise CannotRun(str(error)) from None
    table = tables.read(path, reading)
    series, names = table.values, reading.columns
    program.require_writable(arguments.output)
    options = {"cell": arguments.cell, "hidden_size": arguments.hidden, "num_layers": arguments.layers}
    options |= {"learning_rate": arguments.lr, "random_state": arguments.seed}
    terminal = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
    forecaster = forecaster_of({**options, "max_epochs": arguments.epochs, "verbose": int(terminal)})
    from rnnfast.sklearn import Diverged, choose_differences

    ahead = max(1, round(forecaster.validation_fraction * len(series)))
    known, truth = series[:-ahead], series[-ahead:]
    lags = (season,) if arguments.differences is None else arguments.differences
    if lags == "auto":
        lags = choose_differences(list(known.T), season) if len(known) else ()
        table.notes.append(f"Differences: {','.join(map(str, lags)) or 'none'} (auto)")
    if len(known) < (least := sum(lags) + 1 + forecaster.horizon):
        given = "season" if arguments.differences is None else "differences"
        raise CannotRun(
            f"{path} has {len(series)} rows, of which {len(series) - len(known)} are held out; training needs at least "
            f"{least} others with --{given} {','.join(map(str, lags))}: use more rows or shorter lags"
        )
    options["differences"] = forecaster.differences = lags
    patience = forecaster.n_iter_no_change
    title = f"column{'s' * (len(names) > 1)} {program.listed(names)}"
    lines = [f"{path}: {title}, {len(series)} rows", *table.notes]
    print("\n".join(printable(line, keep="") for line in lines), flush=True)

    def stop() -> None:
        forecaster.n_iter_no_change = 0  # read after each epoch; 0 ends the training

    # NumPy's warnings are off because divergence is detected.
    with program.interruptible(stop), warnings_as_notes(), np.errstate(over="ignore", invalid="ignore"):
        try:
            forecaster.fit(series)
        except Diverged:
            remedy = f"use an --lr below {arguments.lr:g}, and values of moderate size"
            raise CannotRun(f"{path}: training diverged: {remedy}") from None
        except ValueError as error:
            raise CannotRun(f"{path}: training on {title} failed: {error}") from None
        forecast = forecaster.predict(ahead, series=known)
    interrupted = forecaster.n_iter_no_change != patience
    save(arguments.output, forecaster, table, options)
    done = "Stopped by Ctrl-C after" if interrupted else "Trained for"
    print(f"{done} {forecaster.n_iter_} epochs; the best one is kept")
    repeated = np.resize(known[-season:], truth.shape)
    baseline = "last value" if season == 1 else f"last {season} values"
    errors = [np.abs(truth - guess).mean(axis=0) for guess in (forecast, repeated)]
    print(f"Mean absolute error on the last {ahead} rows, forecast from the rows before:")
    for name, network, other in zip(names, *errors, strict=True):
        column = f"{printable(name, keep='')}: " * (len(names) > 1)
        print(f"  {column}network {network:.4g}, baseline that repeats the {baseline} {other:.4g}")
    print("  (optimistic: these held-out rows also chose the best epoch)")
    print(f"Saved to {printable(arguments.output, keep='')}")
    return 130 if interrupted else 0


def configure_predict(parser: argparse.ArgumentParser) -> None:
    """Forecast the series of a model that "train csv" has saved. The output is CSV, with the delimiter and the decimal
    separator of the file that the model was trained on: a line per step, with a prediction interval of about the given
    coverage. Needs scikit-learn: pip install 'rnnfast[sklearn]'.

    Examples:
      rnnfast predict sales.npz --horizon 24
      rnnfast predict sales.npz --history newer.csv
      rnnfast predict sales.npz --horizon 24 --coverage 0.5 --output next.csv --plot next.png
    """
    parser.add_argument("model", metavar="MODEL", help="file saved by train csv")
    option(parser, "--horizon", count, 12, "steps to forecast")
    option(parser, "--coverage", program.fraction, 0.9, "coverage of the interval")
    option(
        parser, "--history", program.file_name, None, "forecast what follows this CSV file, which has the same columns"
    )
    option(parser, "--output", program.file_name, None, "CSV file to write (default: standard output)")
    option(parser, "--plot", program.file_name, None, "draw the forecast to this file (needs matplotlib)")
    add_reading_options(parser, "file format of --history (default: that of the training)")
    parser.set_defaults(run=predict)


def read_history(path: str, trained: Table, given: dict[str, Any]) -> Table:
    """Read another export of the table that a model was trained on."""
    try:
        reading = dataclasses.replace(trained.reading, **given)
    except ValueError as error:
        raise CannotRun(str(error)) from None
    table = tables.read(path, reading)
    if table.times and trained.times and table.times.step != trained.times.step:
        raise CannotRun(
            f"{path}: the times are in steps of {table.times.every}, but those of the training in steps of "
            f"{trained.times.every}; use a file with the same steps"
        )
    return table


def predict(arguments: argparse.Namespace) -> int:
    paths = {"--history": arguments.history, "--output": arguments.output, "--plot": arguments.plot}
    program.require_distinct({"MODEL": arguments.model, **paths})
    for path in filter(None, (arguments.output, arguments.plot)):
        program.require_writable(path, device=True)
    program.require_drawable(arguments.plot)
    given = reading_options(arguments)
    if given and arguments.history is None:
        raise CannotRun(f"--{next(iter(given)).replace('_', '-')} needs --history, the file to read")
    forecaster, trained = load(arguments.model)
    table = trained
    if arguments.history is not None:
        table = read_history(arguments.history, trained, given)
        if len(table.values) < (least := int(np.sum(forecaster.differences)) + 1):
            raise CannotRun(f"{arguments.history} has {len(table.values)} rows, but a forecast needs at least {least}")
        for note in table.notes:
            print(printable(note, keep=""), file=sys.stderr)
    series, reading, times = table.values, table.reading, table.times
    if arguments.horizon > (most := 100 * len(series)):
        raise CannotRun(
            f"--horizon must be at most {most:,}, which is 100 times the {len(series):,} rows of the series, "
            f"not {arguments.horizon:,}"
        )

    def label(offset: int) -> str:
        try:
            return times.at(offset) if times else str(len(series) + offset)
        except ValueError as error:
            raise CannotRun(f"{arguments.model}: {error}; use a smaller --horizon") from None

    steps = [label(step + 1) for step in range(arguments.horizon)]
    with warnings_as_notes(), np.errstate(over="ignore", invalid="ignore"):
        forecasts = [forecaster.predict(arguments.horizon, series=series if table is not trained else None)]
        with contextlib.suppress(ValueError):  # too few held-out values for this horizon
            _, upper = forecaster.predict_interval(arguments.horizon, arguments.coverage)
            radius = upper - forecaster.predict(arguments.horizon)
            forecasts += [forecasts[0] - radius, forecasts[0] + radius]
    if not np.isfinite(forecasts).all():
        raise CannotRun(f"{arguments.model}: its forecasts are not finite: train another model")
    if len(forecasts) == 1:
        what = f"{arguments.horizon} steps at a coverage of {arguments.coverage:g}"
        print(f"No prediction interval: too few rows were held out for {what}; lower one of them.", file=sys.stderr)
    time_column = reading.time_column or "row"
    text = forecast_table(reading, time_column, steps, forecasts)
    if arguments.output is None:
        print(printable(text), end="")
    else:
        with program.writing(arguments.output) as file:
            file.write(text)
    if arguments.plot:
        plot(arguments.plot, series, reading.columns, forecasts, label, time_column, arguments.coverage)
    return 0


def forecast_table(reading: Reading, time_column: str, steps: Sequence[str], forecasts: Sequence[NDArray[Any]]) -> str:
    """Return a table of forecasts (steps, columns) and their bounds, in the form of the file that was read."""
    text = io.StringIO(newline="")
    delimiter = reading.delimiter or ","
    # Where fields are separated by semicolons, programs expect decimal commas.
    decimal = reading.decimal or ("," if delimiter == ";" else ".")
    rows = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    kinds, several = ("", "lower", "upper")[: len(forecasts)], len(reading.columns) > 1
    names = [f"{name} {kind}".strip() if several or not kind else kind for name in reading.columns for kind in kinds]
    rows.writerow([time_column, *names])
    values = np.stack(forecasts, axis=-1).reshape(len(steps), -1)
    for step, row in zip(steps, values.tolist(), strict=True):
        rows.writerow([step, *(f"{value:.8g}".replace(".", decimal) for value in row)])
    return text.getvalue()


def plot(
    path: str,
    series: NDArray[Any],
    names: Sequence[str],
    forecasts: Sequence[NDArray[Any]],
    label: Callable[[int], str],
    time_column: str,
    coverage: float,
) -> None:
    """Draw the end of the series and the forecast, with a panel for each column."""
    shown = series[-max(5 * len(forecasts[0]), 50) :]
    past, ahead = np.arange(1 - len(shown), 1), np.arange(1, len(forecasts[0]) + 1)
    ticks = np.unique(np.linspace(past[0], ahead[-1], 8).round().astype(int))
    with program.axes_of(path, 8, 2 + 2.5 * len(names), len(names)) as panels:
        for i, (axes, name) in enumerate(zip(panels, names, strict=True)):
            forecast, *bounds = (values[:, i] for values in forecasts)
            marks = ["observed", "forecast", f"{coverage:.0%} prediction interval"] if i == 0 else [None] * 3
            axes.plot(past, shown[:, i], color="C0", label=marks[0])
            axes.plot([0, *ahead], [series[-1, i], *forecast], color="C1", label=marks[1])
            if bounds:
                axes.fill_between(ahead, *bounds, color="C1", alpha=0.25, label=marks[2])
            axes.set(ylabel=name)
        panels[-1].set_xticks(ticks, [label(tick).replace("T", " ") for tick in ticks.tolist()], rotation=20)
        panels[-1].set(xlabel=time_column)
