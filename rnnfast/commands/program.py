"""Building blocks that the commands and the examples share: errors, options, files, progress and pictures."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NoReturn, TextIO

import rnnfast
from rnnfast import _core, files
from rnnfast._types import NDArray


class CannotRun(Exception):
    """An error that the user can fix. The message is one line and says how."""


def program_name() -> str:
    """Return how the command line was started: by the console command, or by ``python -m rnnfast``."""
    return "rnnfast" if os.path.splitext(os.path.basename(sys.argv[0]))[0] == "rnnfast" else "python -m rnnfast"


def runtime() -> str:
    """Describe the version, the instruction set and the number of threads in use."""
    return f"rnnfast {rnnfast.__version__}, {_core.get_default_isa()}, threads: {rnnfast.get_num_threads()}"


def run_program(name: str, program: Callable[..., int], *arguments: Any, smaller: str = "sizes") -> int:
    """Run a program, report what went wrong in one line on stderr, and return the exit status.

    Parameters
    ----------
    name
        Name of the program, which starts the error line.
    program, *arguments
        Function that does the work, and its arguments. It returns an exit status.
    smaller
        Options to reduce when memory runs out, as they appear in the error.

    Returns
    -------
    int
        The status that `program` returns; 2 after an error, 130 after Ctrl-C, 141 if the output pipe is closed.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        if sys.stdout is None:
            raise CannotRun("standard output is closed: open it, or redirect it to a file")
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # the terminal may not be able to show every character
        try:
            return program(*arguments)
        finally:
            sys.stdout.flush()  # reports a full disk here, where the error can still be handled
    except CannotRun as error:
        reason = str(error)
    except (MemoryError, OverflowError):
        reason = f"not enough memory: use smaller {smaller}"
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has closed the pipe, as in "| head"
        _discard_output()
        return 141
    except OSError as error:
        _discard_output()
        reason = f"cannot write {error.filename or 'the output'}: {error.strerror or error}"
    print(f"{name}: {printable(reason, keep='')}", file=sys.stderr)
    return 2


def _discard_output() -> None:
    """Send unwritten output to the null device; otherwise Python would try to write it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Control characters, line and paragraph separators, changes of direction, and halves of surrogate pairs.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "\n\t") -> str:
    """Return text with the characters escaped that could control a terminal, except those in `keep`."""
    return _CONTROLS.sub(lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], text)


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """Return the first items, shortened, for an error."""
    return separator.join([f"{item:.40}" for item in items[:20]] + ["..."] * (len(items) > 20))


@contextlib.contextmanager
def interruptible(stop: Callable[[], object]) -> Iterator[None]:
    """Make the first Ctrl-C call `stop`, which ends the work early; a second one raises KeyboardInterrupt."""

    def ask(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:  # as for a command that a script runs in the background
        signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------------------------------------- option values


def checked(kind: Callable[[str], Any], valid: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """Return a parser for an option's value; `expected` completes the error "must be ..."."""

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if "_" not in text and valid(value := kind(text)):  # Python itself would read 1_000 as a number
                return value
        raise argparse.ArgumentTypeError(f"must be {expected}, not {text!r}")

    return parse


def whole(least: int, most: float = math.inf) -> Callable[[str], Any]:
    """Return a parser for integers within bounds."""
    bounds = f"of at least {least:,}" if most == math.inf else f"from {least:,} to {most:,}"
    return checked(int, lambda value: least <= value <= most, f"an integer {bounds}")


count = whole(1)
positive = checked(float, lambda value: 0 < value < math.inf, "a number greater than 0")
non_negative = checked(float, lambda value: 0 <= value < math.inf, "a number of at least 0")
fraction = checked(float, lambda value: 0 < value < 1, "a number between 0 and 1")


class Parser(argparse.ArgumentParser):
    """A parser that escapes what could control a terminal in its error messages."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def file_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a file, not an empty string")
    return text


def option(group: Any, name: str, kind: Callable[[str], Any], default: Any, text: str) -> Any:
    """Add an option with a value to a parser or a group; its help ends with the default, unless that is None."""
    shown = "" if default is None else " (default: %(default)s)"
    metavar = "FILE" if kind is file_name else "N"
    return group.add_argument(name, metavar=metavar, type=kind, default=default, help=text + shown)


# ------------------------------------------------------------------------------------------------------------ files


def require_writable(path: str, device: bool = False) -> None:
    """Raise CannotRun now, rather than after the work, if `path` cannot be written; `device` allows a device."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # raises now if the name is too long, for example
        if os.path.isdir(path):
            raise IsADirectoryError(0, "it is a directory")
        if os.path.exists(path) and not os.path.isfile(path):
            if not device:
                raise OSError(0, "it is not a regular file")
            return
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
            pass
    except OSError as error:
        raise CannotRun(f"cannot write {path}: {error.strerror}") from None


def require_distinct(paths: Mapping[str, str | None]) -> None:
    """Raise CannotRun if two of the named files are the same file; None means that a file is not used."""
    given = [(name, path) for name, path in paths.items() if path is not None]
    for (first, one), (second, other) in itertools.combinations(given, 2):
        same = os.path.realpath(one) == os.path.realpath(other)
        with contextlib.suppress(OSError):
            same = same or os.path.samefile(one, other)  # finds hard links
        if same:
            raise CannotRun(f"{first} and {second} are the same file, {other}: give {second} another name")


@contextlib.contextmanager
def writing_bytes(path: str) -> Iterator[BinaryIO]:
    """Open a file for writing. A regular file is replaced when it is complete: see `files.replacing`."""
    try:
        device = os.path.exists(path) and not os.path.isfile(path)
        with open(path, "wb") if device else files.replacing(path) as file:
            yield file
    except OSError as error:
        raise CannotRun(f"cannot write {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def writing(path: str) -> Iterator[TextIO]:
    """Write a text file, in UTF-8, when the context ends."""
    text = io.StringIO(newline="")
    yield text
    with writing_bytes(path) as file:
        file.write(text.getvalue().encode())


MARK = "\ufeff"  # the byte order mark, which files joined into one have between them
# The starts of texts in other encodings: byte order marks, or a character of ASCII.
ENCODINGS = {
    rb"\xff\xfe\0\0|\0\0\xfe\xff": "UTF-32",
    rb"\xff\xfe|\xfe\xff": "UTF-16",
    rb".\0\0\0": "UTF-32LE",
    rb"\0\0\0.": "UTF-32BE",
    rb".\0": "UTF-16LE",
    rb"\0.": "UTF-16BE",
}


def read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: the name has a null character
        raise CannotRun(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def decoded(path: str, content: bytes) -> str:
    """Decode UTF-8, without byte order marks."""
    try:
        text = content.decode()
        if "\0" in text:
            raise UnicodeDecodeError("utf-8", content, content.index(0), content.index(0) + 1, "null byte")
    except UnicodeDecodeError as error:
        actual = next((name for start, name in ENCODINGS.items() if re.match(start, content, re.DOTALL)), None)
        line = content.count(b"\n", 0, error.start) + 1
        null = content[error.start] == 0
        remedy = f"convert the file to UTF-8, for example with iconv -f {actual or 'LATIN1'} -t UTF-8"
        raise CannotRun(
            f"{path} is not valid UTF-8: the byte at offset {error.start}, in line {line}, "
            f"{'is null' if null else 'cannot be decoded'}; {'remove it' if null and not actual else remedy}"
        ) from None
    return text.replace(MARK, "")


def read_text(path: str) -> str:
    """Read a text file in UTF-8, without its byte order marks."""
    return decoded(path, read_bytes(path)).replace("\r\n", "\n").replace("\r", "\n")


def write_model(path: str, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    try:
        files.write(path, about, arrays)
    except OSError as error:
        raise CannotRun(f"cannot write {path}: {error.strerror or error}") from None


def read_model(path: str, kind: str, command: str, build: Callable[[files.Archive], Any]) -> Any:
    """Open what `write_model` wrote with about["kind"] == kind, and return build(archive).

    `command` is the command that writes such files. Errors of `build` that come from the content are reported.
    """
    try:
        with files.opening(path) as archive:
            if archive.about.get("kind") != kind:
                raise ValueError(f"it does not describe a {kind} model")
            built = build(archive)
            archive.finish()
            return built
    except OSError as error:
        raise CannotRun(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        reason = str(error).removeprefix(f"rnnfast cannot load {path!r}: ")
        raise CannotRun(
            f"{path} is not a model for this command, or it is damaged ({reason}); make one: {program_name()} {command}"
        ) from None


# ------------------------------------------------------------------------------------------------ progress, pictures


class Progress:
    """Progress of a program on stderr: one line on a terminal, rewritten as work proceeds, and otherwise a log."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.done = total, done
        self._terminal = sys.stderr.isatty()
        self._resumed, self._began, self._shown = done, time.monotonic(), -math.inf
        self._text = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def step(self, describe: Callable[[], str] | None = None) -> None:
        """Count one unit of work. `describe` is called only if the line is redrawn, at most ten times a second."""
        self.done += 1
        if self._terminal and time.monotonic() > self._shown + 0.1:
            self._text = describe() if describe else self._text
            self._draw()

    def begin(self, text: str) -> None:
        """Start the next unit of work: show what it is, and count it."""
        if text != self._text:
            self.note(text)
        self.step()

    def note(self, text: str) -> None:
        """Report a milestone. If stderr is not a terminal, this prints a line."""
        self._text = text
        if self._terminal:
            self._draw()
        else:
            print(text, file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        """Print a line of the program's output, which is not overwritten."""
        self._clear()
        print(text, flush=True)

    def _draw(self) -> None:
        self._shown = time.monotonic()
        share = min(1.0, self.done / self.total)
        left = (self._shown - self._began) * (self.total - self.done) / max(1, self.done - self._resumed)
        text = f"] {share:4.0%} {int(left) // 60}:{int(left) % 60:02} left  {self._text}"
        columns = shutil.get_terminal_size().columns
        width = min(max(4, columns - len(text) - 2), 24)
        line = f"[{'#' * round(width * share):.<{width}}{text}"
        sys.stderr.write(f"\r\x1b[K{line[: columns - 1]}")
        sys.stderr.flush()

    def _clear(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def require_drawable(path: str | None) -> None:
    """Raise CannotRun if no picture can be drawn to `path`; None means no picture."""
    if path is None:
        return
    formats = _figure_of(1, 1).canvas.get_supported_filetypes()
    ending = os.path.splitext(path)[1].lower().removeprefix(".")
    if ending and ending not in formats:
        raise CannotRun(f"cannot draw {path}: the name must end in one of .{', .'.join(sorted(formats))}")


def _figure_of(width: float, height: float) -> Any:
    """Return an empty matplotlib figure; sizes in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CannotRun("--plot needs matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


@contextlib.contextmanager
def axes_of(path: str, width: float, height: float, panels: int = 1) -> Iterator[list[Any]]:
    """Yield the axes of a new picture, one for each panel. The picture is written to `path` when the context ends."""
    figure = _figure_of(width, height)
    all_axes = list(figure.subplots(panels, sharex=True, squeeze=False)[:, 0])
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#ececec")
        axes.set_axisbelow(True)
    yield all_axes
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path)


def save_figure(figure: Any, path: Any, dpi: int = 120) -> None:
    form = os.path.splitext(path)[1].lower().removeprefix(".") or figure.canvas.get_default_filetype()
    try:
        with writing_bytes(path) as file:
            figure.savefig(file, format=form, dpi=dpi)
    except ValueError as error:
        raise CannotRun(f"cannot draw {path}: {error}") from None


def save_picture(path: Any, draw: Callable[..., None], *arguments: Any) -> None:
    """Call draw(*arguments, path) and say where the picture is, or that matplotlib is not installed."""
    try:
        draw(*arguments, path)
    except ImportError:
        print("No picture: matplotlib is not installed (pip install matplotlib)")
    else:
        print(f"Saved the picture to {printable(str(path), keep='')}")
