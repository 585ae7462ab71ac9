"""The time of a call: cell by cell and shape by shape, every engine on the same weights, states and inputs.

A case is inference ("forward") or forward and backward ("training"), in float32. Before an engine is timed, its answer
is compared with the reference's. GFLOP/s count the products that the mathematics needs and nothing else: each weight is
multiplied and added once for each step and batch entry, in training three times.
"""

import contextlib
import functools
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from engines import ENGINES, with_reference
from support.compare import assert_close, members, named
from support.problems import problem

from rnnfast import functional


def label(engine, isa):
    return f"{engine}-{isa}" if isa else engine


class Case(NamedTuple):
    cell: str
    T: int
    N: int
    I: int
    H: int
    num_layers: int = 1
    bidirectional: bool = False
    training: bool = False

    def __str__(self):
        stack = f" layers={self.num_layers}" * (self.num_layers > 1) + " bidirectional" * self.bidirectional
        mode = "training" if self.training else "forward"
        width = "O" if self.cell == "linear" else "H"
        return f"{self.cell} {mode} T={self.T} N={self.N} I={self.I} {width}={self.H}{stack}"


# A batch of one is how sequences are streamed; the others are trained too.
STREAMS = [(1, 1, 64, 64), (100, 1, 64, 64), (100, 1, 256, 256), (25, 1, 1024, 1024)]
BATCHES = [
    (37, 5, 13, 51),
    (64, 16, 128, 128),
    (64, 32, 256, 256),
    (20, 64, 512, 512),
    (32, 16, 128, 128, 2, True),
]
CASES = [
    *(Case(cell, *shape) for cell in ("rnn_tanh", "lstm", "gru") for shape in STREAMS + BATCHES),
    Case("linear", 1, 1, 256, 1000),
    Case("linear", 64, 16, 256, 1000),
]
CASES = [case._replace(training=training) for case in CASES for training in (False, True)[: min(case.N, 2)]]

RUNS = [
    pytest.param(case, engine, isa, id=f"{case} {label(engine, isa)}".replace(" ", "-"))
    for case in CASES
    for engine in ENGINES
    for isa in (functional.isas() if engine == "rnnfast" else [None])
    if not (case.training and engine == "onnxruntime")  # which has no training
]


def by_name(y, state, *gradients):
    """What an engine's read() gives, as assert_close takes it."""
    if gradients:
        return named(y, state, *gradients)
    return {"y": y, **{f"state {i}": member for i, member in enumerate(members(state))}}


@functools.lru_cache(maxsize=1)  # the engines of a case follow one another
def solve(case):
    """The problem of a case, and the reference's answer."""
    if case.cell == "linear":
        solved = linear_problem(case)
    else:
        options = {"num_layers": case.num_layers, "bidirectional": case.bidirectional}
        solved = problem(case.cell, case.T, case.N, case.I, case.H, dtype=np.float32, **options)
    call, read = with_reference(solved, case.training, threads=None)
    return solved, by_name(*read(call()))


def linear_problem(case):
    rng = np.random.default_rng(0)

    def values(*shape):
        return rng.uniform(-1, 1, shape).astype(np.float32)

    return SimpleNamespace(
        cell="linear",
        input_size=case.I,
        hidden_size=case.H,
        options={},
        parameters={"weight": values(case.H, case.I) * np.float32(case.I**-0.5), "bias": values(case.H)},
        x=values(case.T, case.N, case.I),
        dy=values(case.T, case.N, case.H),
        state=(),
        dstate=(),
    )


@pytest.mark.parametrize(("case", "engine", "isa"), RUNS)
def test_speed(benchmark, pytestconfig, case, engine, isa):
    solved, expected = solve(case)
    with functional.use_isa(isa) if isa else contextlib.nullcontext():
        call, read = ENGINES[engine](solved, case.training, pytestconfig.getoption("threads"))
        assert_close(by_name(*read(call())), expected, tolerance=1e-4)
        benchmark.group, benchmark.name = str(case), label(engine, isa)
        benchmark(call)
    products = case.T * case.N * sum(value.size for value in solved.parameters.values() if value.ndim == 2)
    if benchmark.enabled:
        gflop = 2e-9 * products * (3 if case.training else 1)
        benchmark.extra_info["GFLOP/s"] = gflop / benchmark.stats.stats.min
