"""What the examples share as programs: how they end, the values of their options, and how far they are."""

import argparse
import contextlib
import math
import shutil
import sys
import time


class CannotRun(Exception):
    """Something the user can mend; its text says what."""


def exit_status(name, report, *given, smaller="sizes"):
    """What `report` returns; 2 where it cannot run, for which memory wants `smaller` options, and 130 after Ctrl-C."""
    try:
        return report(*given)
    except CannotRun as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print(f"{name}: not enough memory: use a smaller {smaller}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def checked(kind, fits, wish):
    """A parser for the values of an option."""

    def parse(text):
        with contextlib.suppress(ValueError):
            if fits(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"must be {wish}, not {text}")

    return parse


def whole(least, most=math.inf):
    """A parser for whole numbers."""
    bounds = f", {least:,} or more" if most == math.inf else f" from {least:,} to {most:,}"
    return checked(int, lambda value: least <= value <= most, f"a whole number{bounds}")


class Progress:
    """One line on a terminal, rewritten as the work goes on; elsewhere a line for each kind of work."""

    def __init__(self, stream, total):
        self.stream, self.total, self.done, self.shown = stream, total, 0, None

    def __call__(self, what):
        if self.stream.isatty():
            self.stream.write(f"\r\x1b[K[{self.done / self.total:4.0%}] {what}")
        elif what != self.shown:
            self.stream.write(f"{what}\n")
        self.stream.flush()
        self.done, self.shown = self.done + 1, what

    def end(self):
        if self.stream.isatty():
            self.stream.write("\r\x1b[K")


class ProgressBar:
    """One line on a terminal, rewritten as a training goes on; elsewhere a line for each of so many `milestones`."""

    milestones = 1

    def __init__(self, stream):
        self.stream = stream
        self.shown = -math.inf

    def describe(self, training, loss):
        """What there is to say of a training whose recent losses have this mean."""
        raise NotImplementedError

    def show(self, training, milestone):
        terminal = self.stream.isatty()
        now = time.monotonic()
        if not milestone and not (terminal and now > self.shown + 0.1):
            return
        self.shown = now
        recent = training.losses[-training.steps // self.milestones :]
        share = training.step / training.steps
        left = round(training.seconds * (1 / share - 1))
        said = self.describe(training, sum(recent) / len(recent))
        text = f"epoch {training.epoch:.2f}  {said}  {left // 60}:{left % 60:02}"
        width = min(max(4, shutil.get_terminal_size().columns - len(text) - 4), 24)
        line = f"[{'#' * round(width * share):.<{width}}] {text}"
        self.stream.write(("\r\x1b[K" if terminal else "") + line + ("\n" if share == 1 or not terminal else ""))
        self.stream.flush()
