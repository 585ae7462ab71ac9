"""The command line on any file: a model and its answers, or one line that says what is wrong.

Series of times that ``train csv`` accepts are continued as the calendar does, in the format of the file.
"""

import calendar
import contextlib
import csv
import datetime
import decimal
import json
import unicodedata

import numpy as np

import rnnfast.sklearn  # noqa: F401 (train csv and predict need it)
from fuzz import assume, folder, require_command, run_command

HORIZON = 3
FAST = ["--hidden", 2, "--epochs", 1]

# Formats of dates: those that are documented must be accepted, the others may be.
DOCUMENTED = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m", "%d.%m.%Y", "%d.%m.%Y %H:%M"]
OTHERS = [
    "%Y%m%d", "%Y%m", "%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%Y-%m-%d %H:%M", "%Y%m%dT%H%M", "%Y-%m-%dT%H",
    "%G-W%V-%u", "%GW%V%u", "%G-W%V", "%Y-%j", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S+00:00",
    "%Y-%m-%dT%H:%M:%S.%f", "T%H:%M", "%H:%M", "%Y-%m-%dT%H:%M:%S,%f", "%Y-%m-%dT%H%M", "%Y%m%d%H", "%Y%m%d %H:%M",
    "%y-%m-%d", "%b %Y", "%Y-%m-%dT%H:%M-05:00", "%Y-%m-%dt%H:%M", "%d", "%s",
]  # fmt: skip
STEPS = [1, 60, 900, 1800, 3600, 21600, 86400, 7 * 86400, 10 * 86400, 30 * 86400, 365 * 86400]  # seconds
STARTS = [
    "2024-01-29", "2023-12-28", "2024-02-27", "1999-12-31", "0003-01-30", "9999-11-20", "2026-06-30", "2024-12-30",
    "1970-01-01", "0999-12-25",
]  # fmt: skip
WORDS = [
    "", " ", "a", "1", "-1", "1,5", "1.234", "1.234,5", "1 234", "5 €", "NA", "Total",
    "1e3", "nan", "inf", "1_0", "0x1", "\"", "\"\"", "'", "é", "\ufeff", "\u202e",
    "\u0661", "½", "1e400", "-0", "1e150", "1e151", "0.1", "=1", "\x00", "\x1b[31m", "2024-02-30",
    "\u0662\u0660\u0662\u0664", "+5", ".5", "5.", "1e-320",
]  # fmt: skip


def generate(random):
    what = random.choices(["times", "sheet", "text"], [5, 3, 2])[0]
    case = {"what": what}
    if what == "times":
        case |= {
            "rows": random.choice([5, 11, 12, 24, 25, 40]),
            "clock": random.choice(["number", "moment", "moment", "moment", "business day", "month", "month end"]),
            "format": random.choice(DOCUMENTED if random.random() < 0.4 else OTHERS),
            "step": random.choice(STEPS),
            "months": random.choice([1, 1, 2, 3, 12]),
            "start": random.choice(STARTS),
            "hour": random.choice([0, 0, 12, 23]),
            "minute": random.choice([0, 15, 59]),
            "day": random.choice([1, 15, 28, 29, 30, 31]),
            "number": random.choice(
                [
                    "0",
                    "1",
                    "-5",
                    "0.1",
                    "0.10",
                    "007",
                    "1e3",
                    "1990",
                    "+1",
                    " 1",
                    "100000",
                    "0003",
                    "1E+2",
                    "1.50",
                    "-0.0",
                ]
            ),
            "by": random.choice(["1", "0.1", "5", "0.25", "100", "1e2", "0.001", "3"]),
            "separator": random.choice(",;\t|"),
            "fault": random.choice([None] * 5 + ["gap", "twice", "order", "other format"]),
            "fill": random.choice([None, "previous"]),
        }
    elif what == "sheet":
        case["lines"] = sheet(random)
        case["encoding"] = random.choice(["utf-8"] * 5 + ["utf-8-sig", "utf-16", "cp1252"])
        case["newline"] = random.choice(["\n", "\n", "\r\n", "\r"])
        case["arguments"] = random.choice(
            [
                [],
                ["--season", "4"],
                ["--time-column", "t"],
                ["--delimiter", ";"],
                ["--delimiter", ""],
                ["--fill", "interpolate", "--differences", "auto"],
                ["--time-column", "t", "--fill", "previous"],
                ["--decimal", ","],
                ["--column", "x"],
            ]
        )
    else:
        alphabet = random.choice(
            ["ab", "ab\n", "aé\u202e", "\x00\x07\x1b[31m", "\ufeffa", "😀a", "\r\na", "a", "\U000e0001b"]
        )
        pattern = random.choices(alphabet, k=random.randint(1, 6))
        size = random.choice([0, 1, 30, 90, 120, 300])
        regular = [pattern[i % len(pattern)] for i in range(size)]
        case["text"] = [random.choice(alphabet) if random.random() < 0.05 else one for one in regular]
        case["encoding"] = random.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "latin1"])
        case["start"] = random.choice([None, None, "a", "", "zz", "\x00", "ab"])
    return case


def sheet(random):
    separator = random.choice([",", ",", ";"])
    columns = random.choice([["v"], ["t", "v"], ["t", "v", "v"], ["v", "x"], [" v ", "t"], ["V"], ['"v"', "t"], []])
    lines = [separator.join(columns)]
    for i in range(random.choice([0, 1, 5, 12, 30])):
        fields = [str(i), str(random.choice([i % 4, 1, 1e-3 * i]))]
        fields = (fields * 2)[: len(columns) or 1]
        if random.random() < 0.05:
            fields[random.randrange(len(fields))] = random.choice(WORDS)
        if random.random() < 0.02:
            fields.append(random.choice(WORDS))
        lines.append(separator.join(fields))
        if random.random() < 0.02:
            lines.append(random.choice(WORDS))
    return lines


def check(case):
    {"times": check_times, "sheet": check_sheet, "text": check_text}[case["what"]](case)


# ---- times


def moments(case):
    """The true times of all rows and of those to come, as datetimes; None where they end."""
    year, month, day = map(int, case["start"].split("-"))
    rows = case["rows"] + HORIZON
    if case["clock"] == "moment":
        first = datetime.datetime(year, month, day, case["hour"], case["minute"])
        found = []
        for i in range(rows):
            try:
                found.append(first + datetime.timedelta(seconds=i * case["step"]))
            except OverflowError:
                found.append(None)
        return found
    found = []
    if case["clock"] == "business day":
        day = datetime.date(year, month, day)
        while len(found) < rows:
            if day.weekday() < 5:
                found.append(datetime.datetime(day.year, day.month, day.day, case["hour"], case["minute"]))
            if day == datetime.date.max:
                return found + [None] * (rows - len(found))
            day += datetime.timedelta(1)
        return found
    for i in range(rows):
        at = 12 * year + month - 1 + i * case["months"]
        y, m = at // 12, at % 12 + 1
        if y > 9999:
            found.append(None)
            continue
        last = calendar.monthrange(y, m)[1]
        d = last if case["clock"] == "month end" else min(case["day"], last)
        found.append(datetime.datetime(y, m, d, case["hour"], case["minute"]))
    return found


def written(moment, form):
    # strftime does not fill up years before 1000 everywhere.
    form = form.replace("%Y", f"{moment.year:04}").replace("%G", f"{moment.isocalendar().year:04}")
    return str(int(moment.replace(tzinfo=datetime.UTC).timestamp())) if form == "%s" else moment.strftime(form)


def texts_of(case):
    """The texts of all rows, those to come (None where there is none), and whether they must be accepted.

    Those to come are None if the texts do not say all about the times, so that others may be right.
    """
    rows = case["rows"]
    if case["clock"] == "number":
        first, by = decimal.Decimal(case["number"].strip()), decimal.Decimal(case["by"])
        values = [first + i * by for i in range(rows + HORIZON)]
        # A plain sum: zero-filled, signed and exponential numbers are not its own texts.
        width = len(case["number"]) if case["number"][0] == "0" and case["number"].isdecimal() else 0
        texts = [case["number"], *(str(value).zfill(width) for value in values[1:])]
        plain = all("E" not in text for text in texts) and texts[0] == str(values[0])
        return texts[:rows], texts[rows:], plain
    found = moments(case)
    assume(None not in found[:rows])
    # Within a week, business days are days.
    assume(case["clock"] != "business day" or found[rows - 1] - found[0] > datetime.timedelta(5))
    texts = [None if moment is None else written(moment, case["format"]) for moment in found]
    assume(len(set(texts[:rows])) == rows and texts[0] < texts[1])
    exact = [datetime_of(text, case["format"]) == moment for text, moment in zip(texts, found, strict=True) if text]
    of_days = ["%Y-%m-%d", "%d.%m.%Y"]
    known = {"moment": DOCUMENTED, "business day": of_days}.get(case["clock"], ["%Y-%m", *of_days])
    ends = None in texts or found[-1].year == 9999  # training may refuse times with little left after them
    same_day = case["clock"] != "month" or {moment.day for moment in found[:rows]} == {case["day"]}
    documented = case["format"] in known and all(exact) and same_day and not ends
    weeks = "%V" in case["format"] and "%u" not in case["format"]  # which strptime does not read
    complete = case["step"] % (7 * 86400) == 0 and case["clock"] == "moment" if weeks else all(exact)
    complete = complete and not ("%V" in case["format"] and "month" in case["clock"])  # weeks count days
    return texts[:rows], texts[rows:] if complete else None, documented


def as_numbers(texts):
    """The next texts if these are whole numbers that no calendar reads, which grow evenly."""
    if all(text.isdecimal() and len(text) not in (6, 8) for text in texts):
        first, last, by = int(texts[0]), int(texts[-1]), int(texts[1]) - int(texts[0])
        if last == first + by * (len(texts) - 1):
            return [str(last + i * by) for i in range(1, HORIZON + 1)]
    return None


def datetime_of(text, form):
    with contextlib.suppress(ValueError):
        return datetime.datetime.strptime(text, form)
    return None


def check_times(case):
    assume(case["rows"] >= 5)
    texts, to_come, documented = texts_of(case)
    fault, fill = case["fault"], case.get("fill")
    if fault == "gap":
        del texts[len(texts) // 2]
    elif fault == "twice":
        texts[4] = texts[3]
    elif fault == "order":
        texts.reverse()
    elif fault == "other format":
        texts[-1] += "x"
    separator = case["separator"]
    assume(not any(separator in text for text in texts))
    lines = [f"t{separator}v", *(f"{text}{separator}{(7 * i) % 5}.5" for i, text in enumerate(texts))]
    with folder() as path:
        (path / "sheet").write_text("\n".join(lines) + "\n", encoding="utf-8")
        more = ["--time-column", "t", "--delimiter", separator, *(["--fill", fill] if fill else [])]
        status = train(path, more)
        if fault and not (fault == "gap" and fill):
            assert status == 2, f"accepted times with a fault: {fault}, {texts}"
        if documented and not fault:
            assert status == 0, f"refused the documented times {texts}"
        if status == 0:
            expected = as_numbers(texts) if case["clock"] != "number" else None
            got = predicted(path, exists=to_come is not None and None not in to_come)
            right = got is None or to_come is None or got in (to_come, expected)
            assert right, f"{texts[-3:]} are followed by {got}, not {to_come}"


def train(path, more):
    status, out, err = run_command("train", "csv", path / "sheet", "--column", "v", "-o", path / "model", *FAST, *more)
    require_command(status, out, err)
    assert (status == 0) == (path / "model").exists()
    return status


def predicted(path, exists=True):
    """The times that predict writes; None if it says that there are none."""
    status, out, err = run_command("predict", path / "model", "--horizon", HORIZON)
    require_command(status, out, err)
    if status and not exists:
        assert "memory" not in err, err
        return None
    assert status == 0, f"predict refused what train csv has saved: {err}"
    tables = [list(csv.reader(out.splitlines(), delimiter=delimiter)) for delimiter in ",;\t|"]
    _, *rows = max(tables, key=lambda table: len(table[0]) if len({len(row) for row in table}) == 1 else 0)
    assert len(rows) == HORIZON
    values = [[cell.replace(",", ".") for cell in row[1:]] for row in rows]
    assert np.isfinite(np.array(values, float)).all(), out
    return [row[0] for row in rows]


# ---- any sheet, any text


def check_sheet(case):
    content = case["newline"].join(case["lines"]).encode(case["encoding"], "replace")
    with folder() as path:
        (path / "sheet").write_bytes(content)
        if train(path, case["arguments"]) == 0:
            predicted(path)


def check_text(case):
    content = "".join(case["text"]).encode(case["encoding"], "replace")
    with folder() as path:
        (path / "text").write_bytes(content)
        sizes = ["--hidden", 3, "--embedding", 2, "--batch", 2, "--window", 8, "--epochs", 3, "--lr", 0.05]
        status, out, err = run_command("train", "text", path / "text", "-o", path / "model", *sizes)
        require_command(status, out, err)
        assert (status == 0) == (path / "model").exists(), err
        if status:
            return
        with np.load(path / "model") as model:
            characters = json.loads(model["rnnfast"].item())["characters"]
        decoded = content.decode("utf-8").replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")
        assert set(characters) == set(decoded), f"the characters are {characters!r}"
        more = [] if case["start"] is None else ["--start", case["start"]]
        status, out, err = run_command("sample", path / "model", "--length", 20, *more)
        require_command(status, out, err)
        known = set(case["start"] or "") <= set(characters)
        assert status == (0 if known else 2), err
        shown = [
            character for character in out + err if unicodedata.category(character) == "Cc" and character not in "\n\t"
        ]
        assert not shown, f"control characters are printed: {shown}"
