"""The commands of ``python -m rnnfast``, each in a module of its own, and what they share.

A module has ``configure(parser)``, which says what the command takes, and what it runs, which returns an exit status.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import signal
import sys
import tempfile
from typing import TYPE_CHECKING, Any, TextIO

from rnnfast import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

__all__ = [
    "CannotRun",
    "Progress",
    "count",
    "draw",
    "file_name",
    "interruptible",
    "read",
    "read_text",
    "real",
    "require_apart",
    "require_drawable",
    "require_writable",
    "share",
    "whole",
    "write",
    "writing",
]


class CannotRun(Exception):
    """Something the user can mend; its text says what, in one line."""


# ------------------------------------------------------------------------------------------- the values of options


def _checked(kind: Callable[[str], Any], fits: Callable[[Any], bool], wish: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if "_" not in text and fits(value := kind(text)):  # to Python 1_000 is a number
                return value
        raise argparse.ArgumentTypeError(f"must be {wish}, not {text or 'empty'}")

    return parse


count = _checked(int, lambda value: value >= 1, "a whole number, 1 or more")
whole = _checked(int, lambda value: value >= 0, "a whole number, 0 or more")
real = _checked(float, lambda value: 0 < value < math.inf, "a number above 0")
share = _checked(float, lambda value: 0 < value < 1, "a number above 0 and below 1")


def file_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a file, but is empty")
    return text


# ----------------------------------------------------------------------------------------------------------- files


def require_writable(path: str, device: bool = False) -> None:
    """An error now, not after the work whose outcome is to be written there, which may be a `device`."""
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(0, "it is a folder")
        if os.path.exists(path) and not os.path.isfile(path):
            if not device:
                raise OSError(0, "it is not a file on a disk")
            return
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
            pass
    except OSError as error:
        raise CannotRun(f"cannot write {path}: {error.strerror}") from None


def require_apart(paths: Mapping[str, str | None]) -> None:
    """An error where two of the files that a command reads and writes are one; those named None are none."""
    given = [(name, path) for name, path in paths.items() if path is not None]
    for (first, one), (second, other) in itertools.combinations(given, 2):
        same = os.path.realpath(one) == os.path.realpath(other)
        with contextlib.suppress(OSError):
            same = same or os.path.samefile(one, other)  # by another name, such as a hard link
        if same:
            raise CannotRun(f"{first} and {second} are the same file, {other}: give {second} another name")


@contextlib.contextmanager
def writing(path: str, newline: str | None = None) -> Iterator[TextIO]:
    """A file of text, open for writing."""
    try:
        with open(path, "w", encoding="utf-8", newline=newline) as file:
            yield file
    except OSError as error:
        raise CannotRun(f"cannot write {path}: {error.strerror}") from None


def read_text(path: str, encoding: str = "utf-8", newline: str | None = None) -> str:
    try:
        with open(path, encoding=encoding, newline=newline) as file:
            return file.read()
    except OSError as error:
        raise CannotRun(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        with open(path, "rb") as raw:
            content = raw.read()
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        start = error.start + (content.startswith(b"\xef\xbb\xbf") and 3 * (encoding == "utf-8-sig"))
        line = content.count(b"\n", 0, start) + 1
        raise CannotRun(
            f"{path} is not text in UTF-8: see byte {start}, counted from 0, in line {line}; save it as UTF-8, or if "
            f"it is {'UTF-16' if wide else 'Latin-1'}, convert it: iconv -f {'UTF-16' if wide else 'LATIN1'} -t UTF-8"
        ) from None


def write(path: str, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    try:
        files.write(path, about, arrays)
    except OSError as error:
        raise CannotRun(f"cannot write {path}: {error.strerror or error}") from None


def read(path: str, kind: str, wish: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What `write` wrote where about["kind"] is `kind`; `wish` says how such a file is made."""
    try:
        about, arrays = files.read(path)
        if about.get("kind") == kind:
            return about, arrays
    except OSError as error:
        raise CannotRun(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        pass
    raise CannotRun(f"{path} is not a model of this command, or it is damaged: {wish}")


# ------------------------------------------------------------------------------------------------- what is to be seen


class Progress:
    """How far a command is: a bar on a terminal where tqdm is installed, else a line for each note."""

    def __init__(self, total: int, unit: str) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self._bar = tqdm(total=total, unit=unit, dynamic_ncols=True, leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def line(self, text: str) -> None:
        """A line of the command's output, which stays."""
        if self._bar is not None:
            self._bar.clear()
        print(text, flush=True)

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        else:
            print(text, file=sys.stderr, flush=True)


def require_drawable(path: str | None) -> None:
    """An error now where a picture could not be drawn into this file."""
    if path is None:
        return
    formats = _figure_of(1, 1).canvas.get_supported_filetypes()
    ending = os.path.splitext(path)[1].lower().removeprefix(".")
    if ending and ending not in formats:
        raise CannotRun(f"--plot cannot draw {path}: its name must end in one of .{', .'.join(sorted(formats))}")


def _figure_of(width: float, height: float) -> Any:
    """An empty figure of matplotlib's, sizes in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CannotRun("--plot needs matplotlib: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


@contextlib.contextmanager
def draw(path: str, width: float, height: float) -> Iterator[Any]:
    """The axes of a picture that is written to a file at the end of the context."""
    figure = _figure_of(width, height)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    yield axes
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise CannotRun(f"cannot draw {path}: {error}") from None


@contextlib.contextmanager
def interruptible(stop: Callable[[], object]) -> Iterator[None]:
    """Inside, Ctrl-C calls `stop`, which asks the work to end soon; a second one raises KeyboardInterrupt as ever."""

    def ask(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
