"""Evenly spaced times in the columns of files: their formats, their frequency, and the times that follow.

A format converts between the texts of a file and datetimes, a calendar between datetimes and integers that grow by the
same step from row to row. Numbers have a format, but no calendar.
"""

from __future__ import annotations

import calendar
import contextlib
import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any, NamedTuple

# ----------------------------------------------------------------------------------------------------------- formats


class Format(NamedTuple):
    """How times are written. `read` raises ValueError for text that `write` would not give back unchanged."""

    read: Callable[[str], Any]
    write: Callable[[Any], str]
    unit: str  # the smallest step that it can express: "day", "week" or "month"; "number" for numbers

    def exact(self) -> Format:
        def read_one(text: str) -> Any:
            value = self.read(text)
            if self.write(value) != text:
                raise ValueError(text)
            return value

        return self._replace(read=read_one)


EXAMPLES = (
    "numbers such as 7, 0007 or -2.50, or dates and times such as 2024-01, 202401, 2024-Q1, 2024-W05, 2024-01-31, "
    "20240131, 31.01.2024, 2024-01-31T12:00 or 2024-01-31 12:00:30+01:00"
)
DECIMALS = 18  # of a number
NUMBERS = {"numbers": "fixed", "short numbers": "short", "floats": "float"}


def _numbers(first: str, style: str) -> Format:
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
    return Format(read_one, write_one, "number").exact()


def _week(form: str) -> tuple[Any, Any]:
    return date.fromisoformat, lambda day: form.format(*day.isocalendar())


def _quarter(form: str) -> tuple[Any, Any]:
    def read_one(text: str) -> date:
        return date(int(text[:4]), 3 * int(text[-1]) - 2, 1)

    return read_one, lambda day: form.format(day.year, (day.month + 2) // 3)


def _ordinal(text: str) -> date:
    return date(int(text[:4]), 1, 1) + timedelta(int(text[-3:]) - 1)


# The ISO formats of dates: how to read and write them, and the smallest step that they can express.
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


def _iso(first: str) -> Format:
    """Return the ISO format of the first time."""
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

    return Format(read_one, write_one, unit).exact()


ATTRIBUTES = {"Y": "year:04", "m": "month:02", "d": "day:02", "H": "hour:02", "M": "minute:02", "S": "second:02"}


def _writer(piece: str) -> Callable[[datetime], str]:
    """Return the function that writes a directive of a pattern, or the text between them."""
    kind = piece[-1]
    if piece[0] != "%":
        return lambda _: piece
    if kind in ATTRIBUTES:  # faster than strftime, which does not pad years everywhere
        return f"{{0.{ATTRIBUTES[kind].partition(':')[0] if '-' in piece else ATTRIBUTES[kind]}}}".format
    if "-" in piece:
        return lambda moment: moment.strftime(f"%{kind}").lstrip("0") or "0"
    return lambda moment: moment.strftime(piece)


def pattern(form: str) -> Format:
    """Return the format that a pattern of `datetime.strptime` describes.

    Raises
    ------
    ValueError
        If the pattern is invalid, or does not determine the year and the month.
    """
    plain = form.replace("%-", "%")  # "%-d" is written without leading zeros, as by GNU's strftime
    pieces = [_writer(piece) for piece in re.split("(%-?.)", form) if piece]

    def write_one(moment: datetime) -> str:
        return "".join([write(moment) for write in pieces])

    example, found = datetime(2001, 12, 31), None
    # Without a year, strptime warns; what is longer may take long.
    if len(form) <= 60 and re.search("%[YyGcx]", plain) and not re.search("%[Zz]", plain):
        with contextlib.suppress(re.error):  # a directive is repeated
            found = datetime.strptime(write_one(example), plain)
    if found not in (example, example.replace(day=1)):
        raise ValueError(f"{form!r:.60} must determine the year and the month once, and have no time zone")
    unit = "day" if found == example else "month"
    return Format(lambda text: datetime.strptime(text, plain), write_one, unit).exact()


def _variants(form: str) -> list[str]:
    """Return a pattern, the same without leading zeros, and without those of days and months only."""
    return list(dict.fromkeys([form, re.sub("%([dmHI])", r"%-\1", form), re.sub("%([dm])", r"%-\1", form)]))


# Patterns that are tried if no ISO format fits. Dots are used only where the day comes first.
PATTERNS = [
    day + clock
    for day in ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d-%m-%Y", "%m-%d-%Y")
    for clock in ("", " %H:%M", " %H:%M:%S")
]


def _format(name: str, first: str) -> Format:
    """Return the format with a name: a key of NUMBERS, a pattern, or "" for the ISO format of the first time."""
    if name in NUMBERS:
        return _numbers(first, NUMBERS[name])
    return pattern(name) if name else _iso(first)


# --------------------------------------------------------------------------------------------------------- calendars

Calendar = tuple[Callable[[datetime], int], Callable[[int], datetime]]  # raise ValueError for times that do not fit


def _months(first: datetime, unit: str, day: int = 0, business: bool = False) -> Calendar:
    """Count months: times on this day, or on the last day of shorter months. 0 is the day of all times."""
    if unit == "week":
        raise ValueError(unit)
    same, day = not day, day or first.day

    def at(value: int) -> datetime:
        year, month = value // 12, value % 12 + 1
        moment = first.replace(year, month, min(day, calendar.monthrange(year, month)[1]))
        return moment - timedelta(max(0, moment.weekday() - 4)) if business else moment

    def index(moment: datetime) -> int:
        value = 12 * moment.year + moment.month - 1
        if at(value) != moment or (same and moment.day != day):
            raise ValueError(moment)
        return value

    return index, at


def _business_days(first: datetime, unit: str) -> Calendar:
    """Count the days from Monday to Friday."""
    if unit != "day":
        raise ValueError(unit)

    def at(value: int) -> datetime:
        return datetime.combine(date.fromordinal(7 * (value // 5) + value % 5 + 1), first.time())

    def index(moment: datetime) -> int:
        weeks, day = divmod(moment.toordinal() - 1, 7)
        if day > 4 or moment.time() != first.time():
            raise ValueError(moment)
        return 5 * weeks + day

    return index, at


def _moments(first: datetime, unit: str) -> Calendar:  # noqa: ARG001
    """Count microseconds."""
    if unit == "month":
        raise ValueError(unit)
    start, tick = datetime.min, timedelta(microseconds=1)
    return lambda moment: (moment - start) // tick, lambda value: start + value * tick


# The first with the fewest missing times is used.
CALENDARS: dict[str, Callable[[datetime, str], Calendar]] = {
    "ends of months": functools.partial(_months, day=31),
    "30ths of months": functools.partial(_months, day=30),
    "29ths of months": functools.partial(_months, day=29),
    "months": _months,
    "moments": _moments,
    "business days": _business_days,
    "business ends of months": functools.partial(_months, day=31, business=True),
}
MONTHS = tuple(name for name in CALENDARS if "months" in name)
# The units of frequencies: calendars, and the step in them.
UNITS = {
    "microsecond": (("moments",), 1),
    "millisecond": (("moments",), 10**3),
    "second": (("moments",), 10**6),
    "minute": (("moments",), 60 * 10**6),
    "hour": (("moments",), 3600 * 10**6),
    "day": (("moments",), 86400 * 10**6),
    "week": (("moments",), 7 * 86400 * 10**6),
    "business day": (("business days",), 1),
    "month": (MONTHS, 1),
    "quarter": (MONTHS, 3),
    "year": (MONTHS, 12),
}


def frequency(text: str) -> tuple[tuple[str, ...], int]:
    """Return the calendars of a frequency such as "day" or "15 minutes", and the step in them."""
    match = re.fullmatch(rf"(?:([1-9][0-9]{{0,8}}) ?)?({'|'.join(UNITS)}|business)s?", text)
    if match is None:
        raise ValueError(f"must be one of {', '.join(UNITS)}, or a multiple such as '15 minutes', not {text!r:.40}")
    clocks, step = UNITS["business day" if match[2] == "business" else match[2]]
    return clocks, step * int(match[1] or 1)


def _described(clock: str, step: int) -> str:
    """Return the step as `frequency` reads it."""
    name, size = max(
        ((name, size) for name, (clocks, size) in UNITS.items() if clock in clocks and step % size == 0),
        key=lambda unit: unit[1],
    )
    return name if step == size else f"{step // size} {name}s"


# ------------------------------------------------------------------------------------------------------------- times

AHEAD = 12  # times that must exist after the last one

# Dates that look like numbers, but do not continue as numbers do; %G%V%u is a week with "1" appended.
_DAYS = ("%Y%m%d", "%y%m%d", "%d%m%Y", "%m%d%Y", "%d%m%y", "%m%d%y")
_CLOCKS = ("", "%H", "%H%M", "%H%M%S")
LOOKALIKES = ["%Y%m", "%y%m", "%m%Y", "%Y%j", "%y%j", "%G%V%u", *(day + clock for day in _DAYS for clock in _CLOCKS)]


def _lookalike(texts: Sequence[str], gaps: bool) -> str | None:
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
                Times.of([moment.isoformat() for moment in moments], gaps=gaps)
                return moments[0].isoformat().removesuffix("T00:00:00")
    return None


class _Fit(NamedTuple):
    """Times that a format and a calendar read as evenly spaced."""

    missing: int  # times between the first and the last that no row has
    clock: str
    form: str
    step: int
    values: list[int]


def _fits(name: str, form: Format, moments: list[Any], clocks: Sequence[str], step: int | None) -> Iterator[_Fit]:
    for clock in [name] if form.unit == "number" else clocks:
        values = moments
        if form.unit != "number":
            try:
                index, _ = CALENDARS[clock](moments[0], form.unit)
                values = [index(moment) for moment in moments]
            except ValueError:
                continue
        steps = Counter(after - before for before, after in itertools.pairwise(values))
        usual = step or max(steps, key=lambda own: (steps[own], -own))
        missing = (values[-1] - values[0]) // max(usual, 1) + 1 - len(values)
        if min(steps) > 0 and not any(own % usual for own in steps) and missing <= len(values):
            yield _Fit(missing, clock, name, usual, values)


class Times:
    """Evenly spaced times of the rows, and of rows before and after them.

    Attributes
    ----------
    kept : dict
        The arguments, for JSON.
    step : int
        The step between rows, in the unit of the calendar.
    every : str
        The step between rows, such as "month" or "15 minutes".
    """

    def __init__(self, clock: str, before: str, last: str, form: str = "") -> None:
        self.kept = {"clock": clock, "before": before, "last": last, "form": form}
        own = _format(clock if clock in NUMBERS else form, before)
        ends = own.read(before), own.read(last)
        index, at = (int, int) if clock in NUMBERS else CALENDARS[clock](ends[0], own.unit)
        first, self._last = map(index, ends)
        self._write: Callable[[int], str] = lambda value: own.write(at(value))
        self.step = self._last - first
        if not self._last > first:
            raise ValueError(f"{last!r} is not after {before!r}")
        self.every = own.write(self.step) if clock in NUMBERS else _described(clock, self.step)

    @classmethod
    def of(
        cls, texts: Sequence[str], form: str | None = None, every: str | None = None, gaps: bool = False
    ) -> tuple[Times, list[int]]:
        """Return the times of a column, and the position of each row, which skips missing times.

        Parameters
        ----------
        texts
            The times of all rows.
        form
            Pattern of the times; by default, it is detected.
        every
            Step between rows, as `frequency` reads it. By default, it is the most common one.
        gaps
            Whether times may be missing.

        Raises
        ------
        ValueError
            If no format reads the times as evenly spaced and increasing, more than one does, or the next ones cannot
            be written.
        """
        if len(texts) < 2:
            raise ValueError(f"there are {len(texts)} rows, but --time-column needs at least 2")
        read = _read(texts, form)
        clocks, step = frequency(every) if every else (tuple(CALENDARS), None)
        if every and read[0][1].unit == "number":
            raise ValueError(f"row 1 has the number {texts[0]!r:.80}, but --frequency needs dates; leave it out")
        fits = [min(those, key=lambda fit: fit.missing) for one in read if (those := list(_fits(*one, clocks, step)))]
        fits = [fit for fit in fits if not fit.missing] or fits
        if not fits:
            raise ValueError(_uneven(texts, *read[0][1:], clocks, step, every))
        if len(fits) > 1:
            days = [_format(fit.form, texts[0]).read(texts[0]).date() for fit in fits]
            possible = [f"{day} ({fit.form.replace('%-', '%')})" for day, fit in zip(days, fits, strict=True)]
            raise ValueError(
                f"row 1 has {texts[0]!r:.80}, which could be {' or '.join(possible)}; give its --date-format"
            )
        fit = fits[0]
        if fit.clock in NUMBERS and (day := _lookalike(texts, gaps)):
            raise ValueError(
                f"row 1 has {texts[0]!r:.80}, which could be a number or the date {day}; write dates as {day}, give "
                "their --date-format, or leave out --time-column"
            )
        own = _format(fit.form, texts[0])
        at = int if fit.clock in NUMBERS else CALENDARS[fit.clock](own.read(texts[0]), own.unit)[1]
        before = own.write(at(fit.values[-1] - fit.step))
        times = cls(fit.clock, before, texts[-1], "" if fit.clock in NUMBERS else fit.form)
        if fit.missing and not gaps:
            row = next(i for i in range(1, len(texts)) if fit.values[i] - fit.values[i - 1] != fit.step)
            raise ValueError(
                f"the times are not evenly spaced: row {row + 1} has {texts[row]!r:.80} after {texts[row - 1]!r:.80}, "
                f"but the {'step' if fit.clock in NUMBERS else 'frequency'} is {times.every}; add the missing rows "
                f"({fit.missing:,}), or fill them with --fill interpolate or --fill previous"
            )
        times.at(AHEAD)
        return times, [(value - fit.values[0]) // fit.step for value in fit.values]

    def at(self, offset: int) -> str:
        """Return the time `offset` rows after the last one; negative offsets are before it.

        Raises
        ------
        ValueError
            If it lies outside the years 1 to 9999.
        """
        try:
            return self._write(self._last + offset * self.step)
        except (OverflowError, ValueError):
            where = f"{abs(offset):,} rows {'after' if offset > 0 else 'before'} {self.kept['last']!r}"
            raise ValueError(f"the time {where} is outside the years 1 to 9999") from None


def _read(texts: Sequence[str], form: str | None) -> list[tuple[str, Format, list[Any]]]:
    """Return the formats that read all texts, and the values.

    ISO formats come first, and numbers last: after 20240131 comes 20240201.
    """
    furthest = 0
    groups = [[_variants(form)]] if form else [[[""]], [_variants(one) for one in PATTERNS], [list(NUMBERS)]]
    for group in groups:
        found = []
        for names in group:
            for name in names:
                values: list[Any] = []
                with contextlib.suppress(ValueError, OverflowError):
                    own = _format(name, texts[0])
                    for text in texts:
                        values.append(own.read(text))  # noqa: PERF401 (what was read before an error is used)
                    found.append((name, own, values))
                    break
                furthest = max(furthest, len(values))
        if found:
            return found
    row = f"row {furthest + 1} has {texts[furthest]!r:.80}, which is not a time"
    if form:
        raise ValueError(f"{row} in the format {form!r}; correct it, or give another --date-format")
    like = f" in the format of row 1, {texts[0]!r:.80}" if furthest else ""
    raise ValueError(f"{row}{like}; use {EXAMPLES}, the same format in all rows, or name it with --date-format")


def _uneven(
    texts: Sequence[str], form: Format, moments: list[Any], clocks: Sequence[str], step: int | None, every: str | None
) -> str:
    """Say why times are not evenly spaced."""
    pairs = list(enumerate(itertools.pairwise(moments), 1))
    if all(after < before for _, (before, after) in pairs):
        return "the times decrease: sort the rows by time, the oldest first"
    row = next((row for row, (before, after) in pairs if after <= before), 0)
    if step and not row:
        row = max(1, *(_fitting(form, moments, clock, step) for clock in clocks)) % len(texts) or 1
    row = row or next((row for row, (before, after) in pairs if after - before != moments[1] - moments[0]), 1)
    than = f"the frequency is {every}" if every else f"the first two are {texts[0]!r:.80} and {texts[1]!r:.80}"
    return (
        f"the times are not evenly spaced: row {row + 1} has {texts[row]!r:.80} after {texts[row - 1]!r:.80}, but "
        f"{than}; correct the times, or leave out --time-column"
    )


def _fitting(form: Format, moments: list[datetime], clock: str, step: int) -> int:
    """Return the number of first times that a calendar reads, whole steps apart."""
    with contextlib.suppress(ValueError):
        index, _ = CALENDARS[clock](moments[0], form.unit)
        for row, moment in enumerate(moments):
            with contextlib.suppress(ValueError):
                if (index(moment) - index(moments[0])) % step == 0:
                    continue
            return row
        return len(moments)
    return 0
