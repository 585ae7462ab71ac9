"""``python -m rnnfast bench``: the time of a call, next to the NumPy reference and to other libraries.

Each engine runs in a process of its own, which is told its number of threads before NumPy is imported. They take turns:
in every round each is timed once, so that what the machine does meanwhile falls on all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import time
from importlib import metadata
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import rnnfast
from rnnfast import _core, reference
from rnnfast.commands import (
    CannotRun,
    Progress,
    count,
    draw,
    file_name,
    info,
    require_apart,
    require_drawable,
    require_writable,
    writing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Results = dict[str, NDArray[Any]]
    Engine = tuple[Callable[[], Any], Callable[[Any], Results]]

CELLS = {"lstm": ("LSTM", "lstm"), "gru": ("GRU", "gru"), "rnn": ("RNN", "rnn_tanh")}  # the layer, and the reference's
MODES = ("inference", "training")
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # of the largest number of each array
TURN = 0.02  # seconds that an engine is timed for in each round
PAUSE = 0.03  # seconds before a turn: OpenBLAS's threads spin so long for more work, on a processor that others want
SQUARE = 512  # rows and columns of the product that stands for the limit
# BLAS reads these once, when NumPy is imported.
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Case(NamedTuple):
    cell: str
    T: int
    N: int
    I: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    mode: str = "inference"
    dtype: str = "float32"

    def __str__(self) -> str:
        stack = f" layers={self.layers}" * (self.layers > 1) + " bidirectional" * self.bidirectional
        return f"{self.cell} {self.mode} T={self.T} N={self.N} I={self.I} H={self.H}{stack}"

    def layer(self) -> Any:
        """The layer, with the same parameters wherever it is made."""
        kind = getattr(rnnfast, CELLS[self.cell][0])
        options = {"num_layers": self.layers, "bidirectional": self.bidirectional}
        return kind(self.I, self.H, **options, dtype=self.dtype, rng=0)

    def values(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """x, and the gradient of y."""
        rng = np.random.default_rng(1)
        shapes = (self.T, self.N, self.I), (self.T, self.N, self.H * (1 + self.bidirectional))
        x, dy = (rng.uniform(-1, 1, shape).astype(self.dtype) for shape in shapes)
        return x, dy

    def gflop(self) -> float:
        """What the equations need: each weight once for each step and row, in training thrice."""
        weights = sum(array.size for array in self.layer().parameters.values() if array.ndim == 2)
        return 2e-9 * self.T * self.N * weights * (3 if self.mode == "training" else 1)


# The default cases: a step of a stream, a sequence alone, a batch, and a batch through a stack in both directions.
SHAPES = [(1, 1, 64, 64), (100, 1, 128, 128), (64, 16, 128, 128), (32, 16, 128, 128, 2, True)]
SIZES = ("T", "N", "I", "H", "layers", "bidirectional")
SINGLE = {"T": 64, "N": 16, "I": 128, "H": 128, "layers": 1, "bidirectional": False}  # where one of them is given


# ----------------------------------------------------------------------------------------------------- the engines
#
# An engine is a function of a case and the number of threads. What can be prepared is prepared once; it returns what is
# timed, and what gives its answer as named arrays: y and the last state, in training the gradients of x and parameters.


def _named(y: Any, state: Any, dx: Any = None, dparameters: Any = None) -> Results:
    members = state if isinstance(state, tuple) else (state,)
    gradients = {} if dx is None else {"dx": dx, **{f"d{name}": array for name, array in dparameters.items()}}
    return {"y": y, **{f"state {i}": member for i, member in enumerate(members)}, **gradients}


def with_rnnfast(case: Case, threads: int) -> Engine:
    rnnfast.set_num_threads(threads)
    layer, (x, dy) = case.layer(), case.values()

    def train() -> Any:
        y, state, tape = layer.forward(x)
        gradients = layer.backward(tape, dy)
        return y, state, gradients.x, gradients.parameters

    if case.mode == "training":
        return train, lambda result: _named(*result)
    layer.freeze()
    return lambda: layer(x), lambda result: _named(*result)


def with_reference(case: Case, threads: int, dtype: Any = None) -> Engine:  # noqa: ARG001 (BLAS has been told)
    cell, options = CELLS[case.cell][1], {"num_layers": case.layers, "bidirectional": case.bidirectional}
    dtype = dtype or case.dtype
    parameters = {name: array.astype(dtype) for name, array in case.layer().parameters.items()}
    x, dy = (array.astype(dtype) for array in case.values())

    def call() -> Any:
        y, state, tape = reference.forward(cell, parameters, x, **options)
        if case.mode == "inference":
            return y, state
        dx, _, dparameters = reference.backward(tape, dy)
        return y, state, dx, dparameters

    return call, lambda result: _named(*result)


def with_torch(case: Case, threads: int) -> Engine:
    import torch

    torch.set_num_threads(threads)
    own, values = case.layer(), case.values()
    layer = getattr(torch.nn, CELLS[case.cell][0])(case.I, case.H, case.layers, bidirectional=case.bidirectional)
    layer = layer.to(getattr(torch, case.dtype))
    layer.load_state_dict({name: torch.from_numpy(array) for name, array in own.state_dict().items()})
    x, dy = map(torch.from_numpy, values)

    def infer() -> Any:
        with torch.inference_mode():
            return layer(x)

    def train() -> Any:
        y, state = layer(x)
        return y, state, torch.autograd.grad(y, [x, *layer.parameters()], dy)

    def answer(result: Any) -> Results:
        y, state, *gradients = result
        arrays = [y, *(state if isinstance(state, tuple) else (state,)), *(gradients[0] if gradients else ())]
        y, *rest = (array.detach().numpy() for array in arrays)
        members = 2 if case.cell == "lstm" else 1
        names = dict(zip(own.parameters, rest[members + 1 :], strict=bool(gradients)))
        return _named(y, tuple(rest[:members]), rest[members] if gradients else None, names)

    x.requires_grad_(case.mode == "training")
    return train if case.mode == "training" else infer, answer


def with_onnxruntime(case: Case, threads: int) -> Engine:
    import onnxruntime

    if case.mode == "training":
        raise CannotRun("it only infers")
    if case.dtype != "float32":
        raise CannotRun("it has these cells in float32 alone")
    try:
        from rnnfast.backends.onnx import to_onnx
    except ImportError as error:
        raise CannotRun(f"it is given no model: {error}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    model = to_onnx(case.layer()).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {"x": case.values()[0]}
    return lambda: session.run(None, inputs), lambda result: _named(result[0], tuple(result[1:]))


def with_numpy_product(case: Case, threads: int) -> Engine:  # noqa: ARG001
    a, b = _squares(case)
    out = np.empty_like(a)
    return lambda: np.matmul(a, b, out=out), lambda _: {}


def with_own_product(case: Case, threads: int) -> Engine:
    rnnfast.set_num_threads(threads)
    a, b = _squares(case)
    product = rnnfast.Linear(SQUARE, SQUARE, bias=False, dtype=case.dtype, rng=0)
    product.parameters["weight"][...] = b
    product.freeze()
    return lambda: product(a), lambda _: {}


def _squares(case: Case) -> Any:
    return np.random.default_rng(0).uniform(-1, 1, (2, SQUARE, SQUARE)).astype(case.dtype)


ENGINES = {
    "rnnfast": with_rnnfast,
    "reference": with_reference,
    "torch": with_torch,
    "onnxruntime": with_onnxruntime,
}
LIMITS = {"NumPy's product": with_numpy_product, "rnnfast's product": with_own_product}


# --------------------------------------------------------------------------------------------------- their processes


def serve(pipe: Any, name: str, threads: int) -> None:
    """What the process of an engine does: it prepares a case and answers it, and is timed as often as it is asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    call: Any = None
    with contextlib.suppress(EOFError):
        while True:
            asked = pipe.recv()
            if isinstance(asked, Case):
                try:
                    call, answer = (ENGINES | LIMITS)[name](asked, threads)
                    pipe.send(answer(call()))
                except Exception as error:
                    pipe.send(str(error) if isinstance(error, CannotRun) else f"{type(error).__name__}: {error}")
            else:
                pipe.send(timed(call, asked))


def timed(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of a call, as the mean of those that fit into so many seconds: one at least, after one that warms up."""
    clock = time.perf_counter
    start = clock()
    call()
    calls = max(1, int(seconds / (clock() - start)))
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


class Worker:
    """The process of an engine, seen from the one that asks."""

    def __init__(self, name: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, threads), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: Any) -> Any:
        """The answer, a text where there is none."""
        try:
            self._pipe.send(what)
            return self._pipe.recv()
        except (EOFError, OSError):
            return "its process came to an end"

    def close(self) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()


@contextlib.contextmanager
def workers(names: list[str], threads: int) -> Iterator[dict[str, Worker]]:
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


# ----------------------------------------------------------------------------------------------------- measurements


def disagreement(got: Results, expected: Results, dtype: str) -> str | None:
    """Why an answer is wrong; None where it is right."""
    if got.keys() != expected.keys():
        return f"it gives {', '.join(got)} in place of {', '.join(expected)}"
    for name, want in expected.items():
        if got[name].shape != want.shape:
            return f"its {name} has shape {got[name].shape} in place of {want.shape}"
        error = float(np.abs(got[name] - want).max(initial=0) / max(1e-30, np.abs(want).max(initial=0)))
        if not error <= TOLERANCE[dtype]:
            return f"its {name} is wrong by {error:.1g} of the largest number"
    return None


def measure(case: Case, engines: dict[str, Any], limits: dict[str, Any], rounds: int, step: Callable[[], None]) -> Any:
    """Seconds of each engine and the limit in every round; who is not timed, why, and which are wrong."""
    call, answer = with_reference(case, 0, np.float64)
    expected = answer(call())
    refused, wrong = {}, []
    for name, worker in engines.items():
        got = worker.ask(case)
        if isinstance(got, str):
            refused[name] = got
        elif reason := disagreement(got, expected, case.dtype):
            refused[name] = reason
            wrong.append(name)
    timed_ones = {name: worker for name, worker in engines.items() if name not in refused}
    for name, worker in limits.items():
        if isinstance(reason := worker.ask(case), str):
            raise CannotRun(f"{name} cannot be timed: {reason}")
    seconds: dict[str, list[float]] = {name: [] for name in [*timed_ones, *limits]}
    order = list((timed_ones | limits).items())
    for i in range(rounds):
        for name, worker in order[i % len(order) :] + order[: i % len(order)]:
            time.sleep(PAUSE)
            value = worker.ask(TURN)
            if isinstance(value, str):
                raise CannotRun(f"{name} cannot be timed: {value}")
            seconds[name].append(value)
        step()
    gflop = case.gflop()
    rates = [2e-9 * SQUARE**3 / min(both) for both in zip(*(seconds.pop(name) for name in limits), strict=True)]
    return {
        "case": case._asdict(),
        "gflop": gflop,
        "seconds": seconds,
        "limit_gflops": rates,
        "refused": refused,
        "wrong": wrong,
    }


# ------------------------------------------------------------------------------------------------------- the command


def configure(parser: argparse.ArgumentParser) -> None:
    """Time calls of recurrent layers: rnnfast's, those of the plain NumPy reference, and those of torch and ONNX
    Runtime where they are installed. All get the same weights and inputs; who gives another answer than the
    reference is not timed. Without sizes a small set of cases is timed, which takes half a minute or so.

    Examples:
      python -m rnnfast bench
      python -m rnnfast bench --cell gru --mode inference --threads 2
      python -m rnnfast bench --T 200 --N 32 --I 64 --H 256 --json times.json --plot times.png
    """
    parser.add_argument(
        "--cell", choices=CELLS, help="time this cell alone (default: all, or lstm where sizes are given)"
    )
    parser.add_argument(
        "--mode", choices=MODES, help="time this alone (default: both; training is forward and backward)"
    )
    group = parser.add_argument_group("sizes: where one is given, one layer is timed, and the others have a default")
    group.add_argument("--T", metavar="N", type=count, help=f"time steps ({SINGLE['T']})")
    group.add_argument("--N", metavar="N", type=count, help=f"rows of the batch ({SINGLE['N']})")
    group.add_argument("--I", metavar="N", type=count, help=f"features of the input ({SINGLE['I']})")
    group.add_argument("--H", metavar="N", type=count, help=f"units ({SINGLE['H']})")
    group.add_argument("--layers", metavar="N", type=count, help=f"layers, stacked ({SINGLE['layers']})")
    group.add_argument("--bidirectional", action="store_true", default=None, help="both directions")
    group = parser.add_argument_group("how")
    group.add_argument("--dtype", choices=TOLERANCE, default="float32", help="of all numbers (%(default)s)")
    group.add_argument("--threads", metavar="N", type=count, default=1, help="threads of each engine (%(default)s)")
    group.add_argument(
        "--rounds", metavar="N", type=count, default=9, help="times that each takes its turn (%(default)s)"
    )
    group.add_argument("--json", metavar="FILE", type=file_name, help="write all times into this file")
    group.add_argument("--plot", metavar="FILE", type=file_name, help="draw the times into this file (matplotlib)")
    parser.set_defaults(run=run)


def choose(arguments: argparse.Namespace) -> list[Case]:
    """The cases that are asked for."""
    given = {name: value for name in SIZES if (value := getattr(arguments, name)) is not None}
    shapes = [tuple((SINGLE | given).values())] if given else SHAPES
    cells = [arguments.cell] if arguments.cell else ["lstm"] if given else list(CELLS)
    modes = [arguments.mode] if arguments.mode else list(MODES)
    cases = [
        Case(cell, *shape, mode=mode, dtype=arguments.dtype)
        for cell, shape, mode in itertools.product(cells, shapes, modes)
        # A single row is how sequences are streamed, which nobody trains with.
        if given or arguments.mode or mode == "inference" or shape[1] > 1
    ]
    if not (given or arguments.cell):  # of the other cells, the batch alone
        cases = [case for case in cases if case.cell == "lstm" or case[1:7] == (*SHAPES[2], 1, False)]
    return cases


def run(arguments: argparse.Namespace) -> int:
    cases = choose(arguments)
    require_apart({"--json": arguments.json, "--plot": arguments.plot})
    for path in filter(None, (arguments.json, arguments.plot)):
        require_writable(path, device=True)
    require_drawable(arguments.plot)
    versions = installed()
    names = [name for name in ENGINES if name == "reference" or versions.get(name)]
    about = {
        "cpu": info.processor()[0],
        "isa": _core.get_default_isa(),
        "threads": arguments.threads,
        "versions": versions,
        "limit": f"the faster of NumPy's and rnnfast's product of {SQUARE} x {SQUARE} matrices, in each round",
    }
    print(f"{about['cpu'] or 'unknown CPU'}, threads: {arguments.threads}, {arguments.dtype}")
    print(", ".join(f"{name} {version}" for name, version in versions.items() if version))
    width = max(map(len, map(str, cases)))
    print(f"\n{'':{width}}{''.join(f'{name:>13}' for name in names)}{'GFLOP/s':>10}{'of limit':>10}", flush=True)
    results = []
    with (
        workers([*names, *LIMITS], arguments.threads) as started,
        Progress(len(cases) * arguments.rounds, "round") as bar,
    ):
        limits = {name: started.pop(name) for name in LIMITS}
        for case in cases:
            results.append(measure(case, started, limits, arguments.rounds, bar.step))
            bar.line(row(case, results[-1], names, width))
    print(f"\n{remarks(results)}")
    report = {"about": about, "cases": results}
    if arguments.json:
        with writing(arguments.json) as file:
            json.dump(report, file, indent=1)
    if arguments.plot:
        plot(report, arguments.plot)
    return 1 if any(result["wrong"] for result in results) else 0


def installed() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"rnnfast": rnnfast.__version__}
    for name in ("numpy", "torch", "onnxruntime"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def row(case: Case, result: dict[str, Any], names: list[str], width: int) -> str:
    """A line of the table: rnnfast's time, the others' over it, its rate, and how near that is to the limit."""
    own, cells = result["seconds"].get("rnnfast"), []
    for name in names:
        times = result["seconds"].get(name)
        if times is None:
            cells.append("WRONG" if name in result["wrong"] else "-")
        elif name == "rnnfast" or own is None:
            cells.append(duration(median(times)))
        else:
            cells.append(f"{median(a / b for a, b in zip(times, own, strict=True)):.2f}x")
    line = f"{case!s:{width}}{''.join(f'{cell:>13}' for cell in cells)}"
    return line if own is None else f"{line}{result['gflop'] / median(own):>10.3g}{share(result):>10.0%}"


def share(result: dict[str, Any]) -> float:
    """rnnfast's rate over the limit, of the same round."""
    pairs = zip(result["seconds"]["rnnfast"], result["limit_gflops"], strict=True)
    return median(result["gflop"] / seconds / limit for seconds, limit in pairs)


def duration(seconds: float) -> str:
    unit, scale = next(
        (unit, scale) for unit, scale in [("s", 1), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9)] if seconds * scale >= 1
    )
    return f"{seconds * scale:.3g} {unit}"


def remarks(results: list[dict[str, Any]]) -> str:
    """What the table means, and what was not timed."""
    rates = [rate for result in results for rate in result["limit_gflops"]]
    limit = f"{median(rates):.0f} GFLOP/s ({min(rates):.0f} to {max(rates):.0f})"
    lines = [
        "Medians. rnnfast: the time of a call. The others: how many times as long they take.",
        "GFLOP/s: the multiply-adds that the equations need, over rnnfast's time.",
        f"Limit: the faster of NumPy and rnnfast at products of {SQUARE} x {SQUARE} matrices in these rounds: {limit}.",
        "With few rows (N) the weights are read from a cache for each step, which takes longer than to multiply them.",
    ]
    reasons = [f"{name} was not timed: {why}" for result in results for name, why in result["refused"].items()]
    return "\n".join([*lines, *dict.fromkeys(reasons)])


def plot(report: dict[str, Any], path: str) -> None:
    """A line for each case, with a mark for the time of each engine, and where the limit would be."""
    marks = {
        "rnnfast": ("C0", "o", 9),
        "reference": ("C7", "s", 6),
        "torch": ("C1", "D", 6),
        "onnxruntime": ("C2", "^", 7),
    }
    results, about = report["cases"], report["about"]
    with draw(path, 10, 1.8 + 0.36 * len(results)) as axes:
        places = range(len(results))
        for name, (color, marker, size) in marks.items():
            points = [
                (1e3 * median(result["seconds"][name]), i)
                for i, result in enumerate(results)
                if name in result["seconds"]
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker, color=color, markersize=size, label=name)
        limits = [1e3 * result["gflop"] / median(result["limit_gflops"]) for result in results]
        axes.plot(limits, places, "|", color="black", markersize=14, markeredgewidth=2, label="limit (matrix product)")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks(places, [str(Case(**result["case"])) for result in results])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlabel("time of a call, ms")
        axes.grid(color="#ececec")
        axes.set_axisbelow(True)
        threads = f"{about['threads']} thread{'s' * (about['threads'] > 1)}"
        axes.set_title(f"{about['cpu'] or 'unknown CPU'}, {threads}, {results[0]['case']['dtype']}", fontsize=11)
