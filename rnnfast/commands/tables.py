"""Tables in text files, as spreadsheets and databases export them: columns of numbers, and a column of times.

What a file shows without doubt is detected: the encoding, the delimiter, the separators in numbers, and the format and
frequency of the times. What it leaves open is an error that names the option to give.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from rnnfast._types import NDArray
from rnnfast.commands import program, times
from rnnfast.commands.program import CannotRun
from rnnfast.commands.times import Times

DELIMITERS = ",;\t|"
SEPARATORS = ".,' "  # of decimals and thousands
SPELLINGS = str.maketrans("\u2019\u00a0\u2009\u202f\u2212", "'   -")  # of apostrophes, spaces and minus signs
NO_VALUE = {"", ".", "..", ":", "na", "n/a", "#n/a", "nan", "null", "none"}  # points and colons: statistical offices
FILLS = ("interpolate", "previous")
LARGEST = 1e150  # the square of this is still finite
SUMMARIES = 3  # rows at the end that may have no time


@dataclass(frozen=True)
class Reading:
    """How to read a table: the options of the command line. None leaves an option to be detected.

    Raises
    ------
    ValueError
        If a value is invalid.
    """

    columns: list[str]
    time_column: str | None = None  # None: the rows are numbered
    delimiter: str | None = None
    decimal: str | None = None
    thousands: str | None = None
    encoding: str | None = None
    date_format: str | None = None
    frequency: str | None = None
    fill: str | None = None  # None: missing values are errors

    def __post_init__(self) -> None:
        options = [value for name, value in vars(self).items() if name != "columns" and value is not None]
        if not all(isinstance(value, str) for value in [*self.columns, *options]):
            raise ValueError("its columns and options must be strings")
        if len(set(self.columns)) < len(self.columns) or not self.columns:
            raise ValueError(f"--column must name different columns, not {program.listed(self.columns)}")
        if self.delimiter is not None and not re.fullmatch(r"[\t !#-~]", self.delimiter):
            raise ValueError(f"--delimiter must be a single character of ASCII, not {self.delimiter!r:.40}")
        if self.decimal is not None and self.decimal == self.thousands:
            raise ValueError(f"--decimal and --thousands must differ, not both be {self.decimal!r:.40}")
        checks = {"encoding": codecs.lookup, "date_format": times.pattern, "frequency": times.frequency}
        for name, check in checks.items():
            try:
                if (value := getattr(self, name)) is not None:
                    check(value)
            except (LookupError, ValueError) as error:
                raise ValueError(f"--{name.replace('_', '-')}: {error}") from None


class Table(NamedTuple):
    """What was read from a file."""

    values: NDArray[np.float64]  # (rows, columns), without missing values
    times: Times | None
    reading: Reading  # completed by what was detected, for other exports of the same table
    notes: list[str]  # lines on what was detected, skipped and filled


def read(path: str, reading: Reading) -> Table:
    """Read columns of a file, whose first line names them."""
    text, encoding = _decoded(path, reading.encoding)
    delimiter, columns, skipped = _split(path, text, reading)
    values, decimal, thousands = _numbers(path, columns, replace(reading, delimiter=delimiter))
    found = {"delimiter": delimiter, "decimal": decimal, "thousands": thousands}
    clock, rows = None, list(range(len(values)))
    if reading.time_column is not None:
        try:
            clock, rows = Times.of(
                columns[reading.time_column], reading.date_format, reading.frequency, reading.fill is not None
            )
        except ValueError as error:
            raise CannotRun(f"{path}: column {reading.time_column!r}: {error}") from None
        found["date_format"] = clock.kept["form"] or None
        found["frequency"] = None if clock.kept["clock"] in times.NUMBERS else clock.every
    filled = _filled(path, values, rows, reading)

    shown = {
        "{}": encoding if encoding not in ("UTF-8", reading.encoding) else None,
        "delimiter {!r}": delimiter if delimiter not in (",", reading.delimiter) else None,
        "decimal {!r}": decimal if decimal not in (".", reading.decimal) else None,
        "thousands {!r}": thousands if thousands != reading.thousands else None,
        "dates {}": found.get("date_format") if reading.date_format is None else None,
    }
    notes = []
    if detected := ", ".join(text.format(value) for text, value in shown.items() if value is not None):
        notes.append(f"Detected: {detected}")
    if skipped:
        notes.append(f"Skipped {_counted(len(skipped), 'row')} at the end: {program.listed([*map(repr, skipped)])}")
    if clock:
        spacing = f"every {clock.every}" if found["frequency"] else f"in steps of {clock.every}"
        notes.append(f"Times: {clock.at(1 - len(filled))} to {clock.at(0)}, {spacing}")
    if reading.fill:
        way = "by interpolation" if reading.fill == "interpolate" else "from the row before"
        holes = {"missing value": int(np.isnan(values).sum()), "missing row": len(filled) - len(values)}
        counts = " and ".join(_counted(number, noun) for noun, number in holes.items() if number)
        notes += [f"Filled {way}: {counts}"] * bool(counts)
    known: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    return Table(filled, clock, replace(reading, **known), notes)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


# --------------------------------------------------------------------------------------------------- text to columns


def _decoded(path: str, encoding: str | None) -> tuple[str, str]:
    """Return the text of a file without byte order marks, and its encoding."""
    content = program.read_bytes(path)
    if encoding is None:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and content[2:4] != b"\0\0":
            encoding = "UTF-16"
        else:
            with contextlib.suppress(UnicodeDecodeError):
                content.decode()
                encoding = "UTF-8"
            if encoding or b"\0" in content:
                return program.decoded(path, content), "UTF-8"
            encoding = "cp1252"  # columns are found by their names, and numbers are ASCII
    try:
        return content.decode(encoding).replace(program.MARK, ""), encoding
    except (UnicodeError, LookupError) as error:  # LookupError: a codec that is not for text
        raise CannotRun(f"{path} cannot be decoded as {encoding}: {error}; give its --encoding") from None


def _split(path: str, text: str, reading: Reading) -> tuple[str, dict[str, list[str]], list[str]]:
    """Return the delimiter, the columns by name, and the labels of skipped rows."""
    names = list(dict.fromkeys([*reading.columns, *filter(None, [reading.time_column])]))
    marked = re.match("sep=(.)\r?\n", text)  # by Excel
    text = text[marked.end() :] if marked else text
    given = reading.delimiter or (marked and marked[1])
    possible = [given] if given else list(DELIMITERS)
    headers = {delimiter: _header(text, delimiter) for delimiter in possible}
    fitting = [delimiter for delimiter, header in headers.items() if set(names) <= set(header)]
    fitting = fitting or [max(possible, key=lambda delimiter: len(headers[delimiter]))]
    tables = {}
    for delimiter in fitting:
        with contextlib.suppress(CannotRun):
            tables[delimiter] = _columns(path, text, delimiter, names, reading.time_column)
    if not tables:
        tables[fitting[0]] = _columns(path, text, fitting[0], names, reading.time_column)  # raises the error
    delimiter, (columns, skipped) = next(iter(tables.items()))
    if other := next((one for one, (found, _) in tables.items() if found != columns), None):
        raise CannotRun(f"{path} can be split at {delimiter!r} and at {other!r}; give its --delimiter")
    return delimiter, columns, skipped


def _header(text: str, delimiter: str) -> list[str]:
    with contextlib.suppress(csv.Error):
        return [name.strip() for name in next(_reader(text, delimiter), [])]
    return []


def _reader(text: str, delimiter: str, strict: bool = False) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=strict)


class _Row(NamedTuple):
    line: int
    size: int  # number of fields, without empty ones beyond those of the header
    label: str  # the first field that is not empty; "" for a blank line
    guide: str  # the field that tells data from totals, which have no digits there
    cells: list[str]  # the fields of the columns that are read


def _columns(
    path: str, text: str, delimiter: str, names: list[str], time_column: str | None
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the columns by name, and the labels of skipped rows at the end, such as totals."""
    header = _header(text, delimiter)
    for name in names:
        if header.count(name) != 1:
            there = program.listed(header) or "none"
            fault = "has no column" if name not in header else "has more than one column"
            others = [other for other in DELIMITERS if other != delimiter and len(header) == 1 and other in header[0]]
            hint = f"; try --delimiter {others[0]!r}" if others else ""
            raise CannotRun(f"{path} {fault} {name!r}; its columns are: {there}{hint}")
    places = [header.index(name) for name in names]
    # Totals at the end are told from data by the column with the times, or by the first one if it is not a series.
    guide = header.index(time_column) if time_column is not None else 0 if 0 not in places else None
    reader = _reader(text, delimiter, strict=True)
    rows = []
    try:
        for fields in reader:
            label = next((field.strip() for field in fields if field.strip()), "")
            size = len(fields) if any(map(str.strip, fields[len(header) :])) else min(len(fields), len(header))
            cells = [fields[place].strip() if place < len(fields) else "" for place in places]
            told = fields[guide].strip() if guide is not None and guide < len(fields) else ""
            told = told or ("0" if time_column is None else "")
            rows.append(_Row(reader.line_num, size, label, told, cells))
    except csv.Error as error:
        raise CannotRun(f"{path}: line {reader.line_num}: {error}") from None
    del rows[0]  # the header
    skipped: list[str] = []
    while rows:
        summary = re.search(r"\d", rows[0].guide) and not re.search(r"\d", rows[-1].guide)
        if rows[-1].label and not (summary and len(skipped) < SUMMARIES):
            break
        skipped += filter(None, [rows.pop().label])
    for row in rows:
        if row.label and row.size != len(header):
            raise CannotRun(f"{path}: line {row.line} has {row.size} fields, but the first line has {len(header)}")
    kept = [row.cells for row in rows if row.label or time_column is None]
    return {name: [cells[i] for cells in kept] for i, name in enumerate(names)}, skipped


# ------------------------------------------------------------------------------------------------ columns to numbers


def _parser(decimal: str, thousands: str) -> Callable[[str], float]:
    point, comma = re.escape(decimal), re.escape(thousands)
    whole = rf"[1-9]\d{{0,2}}(?:{comma}\d{{3}})+|\d+" if thousands else r"\d+"
    form = re.compile(rf"[+-]?(?:(?:{whole})(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?", re.ASCII)

    def parse(cell: str) -> float:
        if cell.lower() in NO_VALUE:
            return math.nan
        if not form.fullmatch(cell):
            raise ValueError(cell)
        return float(cell.replace(thousands, "").replace(decimal, "."))

    return parse


def _numbers(
    path: str, columns: dict[str, list[str]], reading: Reading
) -> tuple[NDArray[np.float64], str | None, str | None]:
    """Return the values (rows, columns), NaN where there is none, and the separators in use."""
    names = reading.columns
    texts = [text for name in names for text in columns[name]]
    count = len(texts) // len(names)
    cells = [text.translate(SPELLINGS) for text in texts]
    present = [cell for cell in cells if cell.lower() not in NO_VALUE]
    used = [separator for separator in SEPARATORS if any(separator in cell for cell in present)]

    def place(i: int) -> str:
        return f"{path}: row {i % count + 1} has {texts[i]!r:.80} in column {names[i // count]!r}, which"

    found: dict[tuple[str, str], NDArray[np.float64]] = {}
    furthest = 0
    for decimal in reading.decimal or (".," if {".", ","} & {*used} else "."):
        for thousands in [reading.thousands] if reading.thousands else ["", *used]:
            if decimal != thousands:
                parse, parsed = _parser(decimal, thousands), []
                with contextlib.suppress(ValueError):
                    for cell in cells:
                        parsed.append(parse(cell))  # noqa: PERF401 (the number before an error is used)
                    found[decimal, thousands] = np.array(parsed)
                furthest = max(furthest, len(parsed))
    if not found:
        raise CannotRun(f"{place(furthest)} is not a finite number; {_remedy(cells[furthest])}")
    (decimal, thousands), values = next(iter(found.items()))
    for (other, _), different in found.items():
        differs = np.flatnonzero((values != different) & ~np.isnan(values))
        # Without quoted commas, a file that is split at commas has decimal points.
        if differs.size and (reading.delimiter != "," or "," in used):
            i = int(differs[0])
            raise CannotRun(
                f"{place(i)} could be {values[i]:.10g} or {different[i]:.10g}; give --decimal {decimal!r} or "
                f"--decimal {other!r}"
            )
    large = np.flatnonzero(np.abs(values) > LARGEST)
    if large.size:
        raise CannotRun(f"{place(int(large[0]))} is too large; change the unit")
    known = reading.decimal or (decimal if {".", ","} & {*used} else None)
    return values.reshape(len(names), count).T, known, thousands or None


def _remedy(cell: str) -> str:
    """Say how to make a number of a cell."""
    others = re.sub(rf"[\d+{SEPARATORS}-]+", " ", cell).strip()
    if not re.search(r"\d", cell):
        return "correct it, or leave the cell empty and give --fill interpolate or --fill previous"
    if others:
        return f"remove {others!r:.40} from the column, or export it as plain numbers"
    return "give the separators of the column as --decimal and --thousands"


def _filled(path: str, values: NDArray[np.float64], rows: list[int], reading: Reading) -> NDArray[np.float64]:
    """Return the values with the missing ones filled in; `rows` are the positions of the rows."""
    filled = np.full((rows[-1] + 1 if rows else 0, len(reading.columns)), math.nan)
    filled[rows] = values
    steps = np.arange(len(filled))
    for name, own, column in zip(reading.columns, values.T, filled.T, strict=True):
        missing = (np.flatnonzero(np.isnan(own)) + 1).tolist()
        known = np.flatnonzero(~np.isnan(column))
        where = f"{path}: column {name!r} has no value in row"
        if missing and reading.fill is None:
            listed = ", ".join(map(str, missing[:5])) + f" and {len(missing) - 5:,} more" * (len(missing) > 5)
            at_end = missing[0] + len(missing) == len(own) + 1
            remedy = "remove the last rows without a value" if at_end else "complete the file"
            raise CannotRun(
                f"{where}{'s' * (len(missing) > 1)} {listed}; {remedy}, or give --fill interpolate or --fill previous"
            )
        if missing and missing[0] == 1:
            raise CannotRun(f"{where} 1, so that nothing can be filled in; remove the first rows without a value")
        if reading.fill == "interpolate" and missing and missing[-1] == len(own):
            raise CannotRun(
                f"{where} {missing[-1]}, the last; remove the last rows without a value, or use --fill previous"
            )
        if len(known) == len(column):
            continue
        if reading.fill == "previous":
            column[:] = column[known[np.searchsorted(known, steps, side="right") - 1]]
        else:
            column[:] = np.interp(steps, known, column[known])
    return filled
