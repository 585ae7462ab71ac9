"""Measurement and reports of ``rnnfast bench`` and the benchmarks: timers, engine processes, units and the picture."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from statistics import median
from typing import Any

import rnnfast
from rnnfast.commands.engines import ENGINES, LIMITS, Case
from rnnfast.commands.program import CannotRun, axes_of

PAUSE = 0.03  # seconds before a turn: the threads of OpenBLAS spin this long after a call, which would disturb the next
# BLAS libraries read these once, when NumPy is imported.
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
MARKS = {  # color, marker and size of each engine in pictures
    "rnnfast": ("#08519c", "o", 9),
    "reference": ("#7f7f7f", "X", 7),
    "torch": ("#d95f02", "D", 7),
    "onnxruntime": ("#1b9e77", "s", 7),
}


def timed(call: Callable[[], Any], seconds: float = 0) -> float:
    """Time a call: the mean of the calls that fit into `seconds`, at least one, after a warm-up call."""
    clock = time.perf_counter
    start = clock()
    call()
    calls = max(1, int(seconds / (clock() - start)))
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def take_turns(
    timers: Mapping[str, Callable[[], float]], rounds: int, step: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Call every timer once a round, each round starting with a different one; return the seconds by name."""
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    order = list(timers.items())
    for i in range(rounds):
        for name, timer in order[i % len(order) :] + order[: i % len(order)]:
            time.sleep(PAUSE)
            seconds[name].append(timer())
        step()
    return seconds


def ratio(seconds: Sequence[float], over: Sequence[float]) -> float:
    """Return the median of the ratios within each round."""
    return median(a / b for a, b in zip(seconds, over, strict=True))


def duration(seconds: float) -> str:
    unit, scale = next(
        (unit, scale) for unit, scale in [("s", 1), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9)] if seconds * scale >= 1
    )
    return f"{seconds * scale:.3g} {unit}"


def versions(*packages: str) -> dict[str, str | None]:
    """Return the versions of rnnfast and of other packages, None for those that are not installed."""
    found: dict[str, str | None] = {"rnnfast": rnnfast.__version__}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


# --------------------------------------------------------------------------------------------- processes of engines


def serve(pipe: Any, name: str, threads: int) -> None:
    """Run an engine in its process: reply to a case with results, and to a number of seconds with a time per call."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    call: Any = None
    with contextlib.suppress(EOFError):
        while True:
            request = pipe.recv()
            if isinstance(request, Case):
                try:
                    call, answer = (ENGINES | LIMITS)[name](request, threads)
                    pipe.send(answer(call()))
                except Exception as error:
                    pipe.send(str(error) if isinstance(error, CannotRun) else f"{type(error).__name__}: {error}")
            else:
                pipe.send(timed(call, request))


class Worker:
    """Handle of the parent for the process of an engine."""

    def __init__(self, name: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, threads), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, request: Any) -> Any:
        """Return the answer to a request, or an error as text."""
        try:
            self._pipe.send(request)
            return self._pipe.recv()
        except (EOFError, OSError):
            return "its process ended unexpectedly"

    def close(self) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()


@contextlib.contextmanager
def workers(names: list[str], threads: int) -> Iterator[dict[str, Worker]]:
    """Start a process for each engine, with the number of threads in its environment before NumPy is imported."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(dict.fromkeys(VARIABLES, str(threads)))
    started: dict[str, Worker] = {}
    try:
        for name in names:
            started[name] = Worker(name, threads)
        yield started
    finally:
        for worker in started.values():
            worker.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


# ------------------------------------------------------------------------------------------------------- the picture


def draw(cases: Mapping[str, Mapping[str, float]], title: str, path: str) -> None:
    """Draw the times of the engines relative to the first one: a row for each case, a mark for each engine.

    Parameters
    ----------
    cases
        For each case, the seconds of each engine. Engines named after rnnfast and an instruction set get shades of
        blue, and "limit" a line. The first engine must have a time in every case.
    title
        Heading of the picture.
    path
        File to write.
    """
    base, *_ = engines = list(dict.fromkeys(name for timed_ones in cases.values() for name in timed_ones))
    shades = iter(("#08519c", "#4292c6", "#9ecae1", "#c6dbef"))
    with axes_of(path, 7.6, 1.9 + 0.34 * len(cases)) as (axes,):
        axes.tick_params(labelsize=11)
        for name in engines:
            color, marker, size = MARKS.get(name, ("black", "|", 16))
            if name.startswith("rnnfast"):
                color, marker, size = next(shades, "#c6dbef"), "o", 9 if name == base else 7
            points = [(row[name] / row[base], i) for i, row in enumerate(cases.values()) if name in row]
            axes.plot(*zip(*points, strict=True), marker, color=color, markersize=size, label=name, zorder=3)
        axes.axvline(1, color="#08519c", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        low, high = axes.get_xlim()
        if high < 100 * low:  # else the labels would overlap
            axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
        axes.set_xlabel(f"time relative to {base} (lower is faster);\non the right, the time of {base}", fontsize=11)
        axes.set_yticks(range(len(cases)), cases)
        axes.set_ylim(len(cases) - 0.5, -0.5)
        axes.set_title(title, fontsize=12)
        right = axes.secondary_yaxis("right")
        right.spines["right"].set_visible(False)
        right.tick_params(labelsize=11, length=0)
        right.set_yticks(range(len(cases)), [duration(row[base]) for row in cases.values()])
