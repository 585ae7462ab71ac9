"""``rnnfast bench``: benchmark layers against the NumPy reference and other libraries.

Each engine runs in its own process, which gets its number of threads before NumPy is imported. The engines take turns:
each is timed once per round, so that a change in the load of the machine affects all of them.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

from rnnfast import _core
from rnnfast.commands import info, program
from rnnfast.commands.engines import ENGINES, LIMITS, MODES, SQUARE, TOLERANCE, Case, disagreement, expected
from rnnfast.commands.program import CannotRun, Progress, count, option
from rnnfast.commands.timing import draw, duration, ratio, take_turns, versions, workers

CELLS = ("lstm", "gru", "rnn")
TURN = 0.02  # seconds for which an engine is timed in each round
# The default cases: a step of a stream, a single sequence, a batch, and a batch through a bidirectional stack.
SHAPES = [(1, 1, 64, 64), (100, 1, 128, 128), (64, 16, 128, 128), (32, 16, 128, 128, 2, True)]
SIZES = ("T", "N", "I", "H", "layers", "bidirectional")
SINGLE = {"T": 64, "N": 16, "I": 128, "H": 128, "layers": 1, "bidirectional": False}  # defaults if any size is given


def configure(parser: argparse.ArgumentParser) -> None:
    """Benchmark the recurrent layers of rnnfast against its plain NumPy reference and, if they are installed, torch and
    ONNX Runtime. All get the same weights and inputs. An engine whose results differ from those of the reference is
    reported and not timed. Without sizes, a small set of cases is timed, which takes about half a minute.

    Examples:
      rnnfast bench
      rnnfast bench --cell gru --mode inference --threads 2
      rnnfast bench --T 200 --N 32 --I 64 --H 256 --json times.json --plot times.png
    """
    parser.add_argument("--cell", choices=CELLS, help="time only this cell (default: all; lstm if a size is given)")
    parser.add_argument("--mode", choices=MODES, help="time only this (default: both)")
    group = parser.add_argument_group("sizes; if any is given, one layer of these sizes is timed")
    sizes = ("time steps", "batch size", "input features", "hidden units", "stacked layers")
    for name, text in zip(SIZES, sizes, strict=False):
        option(group, f"--{name}", count, None, f"{text} (default: {SINGLE[name]})")
    group.add_argument("--bidirectional", action="store_true", default=None, help="run in both directions")
    group = parser.add_argument_group("measurement")
    group.add_argument("--dtype", choices=TOLERANCE, default="float32", help="data type (default: %(default)s)")
    option(group, "--threads", count, 1, "threads of each engine")
    option(group, "--rounds", count, 9, "rounds")
    option(group, "--json", program.file_name, None, "write the times of all rounds to this file")
    option(group, "--plot", program.file_name, None, "draw the times to this file (needs matplotlib)")
    parser.set_defaults(run=run)


def choose(arguments: argparse.Namespace) -> list[Case]:
    """Return the cases that the options select."""
    given = {name: value for name in SIZES if (value := getattr(arguments, name)) is not None}
    shapes: Any = [tuple((SINGLE | given).values())] if given else SHAPES
    cells = [arguments.cell] if arguments.cell else ["lstm"] if given else list(CELLS)
    modes = [arguments.mode] if arguments.mode else list(MODES)
    cases = [
        Case(cell, *shape)._replace(mode=mode, dtype=arguments.dtype)
        for cell, shape, mode in itertools.product(cells, shapes, modes)
        # A single row is the streaming case, which does not occur in training.
        if given or arguments.mode or mode == "inference" or shape[1] > 1
    ]
    if not (given or arguments.cell):  # for the other cells, only the batch
        cases = [case for case in cases if case.cell == "lstm" or case[1:7] == (*SHAPES[2], 1, False)]
    return cases


def measure(case: Case, engines: dict[str, Any], limits: dict[str, Any], rounds: int, step: Callable[[], None]) -> Any:
    """Check the results of the engines, then time those that are correct; return the times of all rounds."""
    want = expected(case)
    refused, wrong = {}, []
    for name, worker in engines.items():
        got = worker.ask(case)
        if isinstance(got, str):
            refused[name] = got
        elif reason := disagreement(got, want, case.dtype):
            refused[name] = reason
            wrong.append(name)
    for name, worker in limits.items():
        if isinstance(reason := worker.ask(case), str):
            raise CannotRun(f"{name} cannot be timed: {reason}")

    def seconds_of(name: str, worker: Any) -> float:
        value = worker.ask(TURN)
        if isinstance(value, str):
            raise CannotRun(f"{name} cannot be timed: {value}")
        return float(value)

    timers = {
        name: functools.partial(seconds_of, name, worker)
        for name, worker in (engines | limits).items()
        if name not in refused
    }
    seconds = take_turns(timers, rounds, step)
    rates = [2e-9 * SQUARE**3 / min(both) for both in zip(*(seconds.pop(name) for name in limits), strict=True)]
    timed = {"case": case._asdict(), "gflop": case.gflop(), "seconds": seconds, "limit_gflops": rates}
    return timed | {"refused": refused, "wrong": wrong}


def run(arguments: argparse.Namespace) -> int:
    cases = choose(arguments)
    program.require_distinct({"--json": arguments.json, "--plot": arguments.plot})
    for path in filter(None, (arguments.json, arguments.plot)):
        program.require_writable(path, device=True)
    program.require_drawable(arguments.plot)
    installed = versions("numpy", "torch", "onnxruntime")
    names = [name for name in ENGINES if name == "reference" or installed.get(name)]
    about = {
        "cpu": info.processor()[0],
        "isa": _core.get_default_isa(),
        "threads": arguments.threads,
        "versions": installed,
        "limit": f"the faster of NumPy's and rnnfast's product of {SQUARE} x {SQUARE} matrices, in each round",
    }
    threads = f"{arguments.threads} thread{'s' * (arguments.threads > 1)}"
    heading = f"{about['cpu'] or 'unknown CPU'}, {threads}, {arguments.dtype}"
    print(heading)
    print(", ".join(f"{name} {version}" for name, version in installed.items() if version))
    columns = columns_for(names, shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf)
    print("\n" + "".join(f"{name:>{width}}" for name, width in columns.items()), flush=True)
    results = []
    with workers([*names, *LIMITS], arguments.threads) as started, Progress(len(cases) * arguments.rounds) as bar:
        limits = {name: started.pop(name) for name in LIMITS}
        for case in cases:
            results.append(measure(case, started, limits, arguments.rounds, bar.step))
            bar.line(row(case, results[-1], columns))
    print(f"\n{remarks(results, columns)}")
    if arguments.json:
        with program.writing(arguments.json) as file:
            json.dump({"about": about, "cases": results}, file, indent=1)
    if arguments.plot:
        plot(results, heading, arguments.plot)
    return 1 if any(result["wrong"] for result in results) else 0


# --------------------------------------------------------------------------------------------------------- the table


def columns_for(names: list[str], available: float) -> dict[str, int]:
    """Return the columns and their widths, without those that do not fit the terminal."""
    columns = {"cell": 4, "mode": 6, "T": 5, "N": 4, "I": 5, "H": 5, "stack": 6, "rnnfast": 9}
    columns |= {name: max(7, len(name) + 1) for name in names if name != "rnnfast"} | {"limit": 6, "GFLOP/s": 8}
    for name in ("GFLOP/s", "limit", "reference", "stack"):
        if sum(columns.values()) >= available:
            columns.pop(name, None)
    return columns


def row(case: Case, result: dict[str, Any], columns: dict[str, int]) -> str:
    """Return a line of the table."""
    own = result["seconds"].get("rnnfast")
    cells = {name: str(getattr(case, name)) for name in ("cell", "T", "N", "I", "H")}
    cells["mode"] = case.mode[:5]
    cells["stack"] = f"{case.layers}{' bi' * case.bidirectional}"
    for name in ENGINES:
        times = result["seconds"].get(name)
        if times is None:
            cells[name] = "WRONG" if name in result["wrong"] else "-"
        else:
            absolute = name == "rnnfast" or own is None
            cells[name] = duration(median(times)) if absolute else times_as_long(ratio(times, own))
    if own is not None:
        cells["GFLOP/s"] = f"{result['gflop'] / median(own):.3g}"
        limits = [result["gflop"] / rate for rate in result["limit_gflops"]]
        cells["limit"] = f"{ratio(limits, own):.0%}"
    return "".join(f"{cells.get(name, ''):>{width}}" for name, width in columns.items())


def times_as_long(factor: float) -> str:
    return f"{factor:.0f}x" if factor >= 100 else f"{factor:.2f}x"


def remarks(results: list[dict[str, Any]], columns: dict[str, int]) -> str:
    """Explain the columns, and say what was not timed."""
    rates = [rate for result in results for rate in result["limit_gflops"]]
    lines = {
        "mode": "infer: inference; train: forward and backward",
        "T, N, I, H": "time steps, batch size, input features, hidden units",
        "stack": "number of layers; bi: bidirectional",
        "rnnfast": "time of a call, median over the rounds",
        "others": "their time relative to rnnfast's; above 1x is slower",
        "limit": "rnnfast's arithmetic rate relative to that of a large matrix product,\n"
        f"{median(rates):.0f} GFLOP/s ({min(rates):.0f} to {max(rates):.0f} over the rounds); low if N is small,\n"
        "as reading the weights then takes longer than the arithmetic",
        "GFLOP/s": "that rate, counting the multiply-adds of the equations",
    }
    left_out = {"stack", "limit", "GFLOP/s"} - columns.keys()
    texts = [f"{name:12}{text}".replace("\n", "\n" + 12 * " ") for name, text in lines.items() if name not in left_out]
    reasons = [f"{name} was not timed: {why}" for result in results for name, why in result["refused"].items()]
    return "\n".join([*texts, *dict.fromkeys(reasons)])


def plot(results: list[dict[str, Any]], title: str, path: str) -> None:
    """Draw the medians of the cases for which rnnfast was timed."""
    rows = {}
    for result in results:
        if own := result["seconds"].get("rnnfast"):
            rows[Case(**result["case"]).label()] = {
                "rnnfast": median(own),
                **{name: median(own) * ratio(times, own) for name, times in result["seconds"].items()},
                "limit": result["gflop"] / median(result["limit_gflops"]),
            }
    if not rows:
        raise CannotRun(f"nothing to draw to {path}: rnnfast's results were wrong in every case")
    draw(rows, title, path)
