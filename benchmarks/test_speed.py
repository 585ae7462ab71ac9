"""Time inference and training of the cells for several shapes: every engine on the same weights and inputs, in float32.

Before an engine is timed, its results are compared with those of the reference. GFLOP/s count the multiply-adds of the
equations: one per weight, step and row, and three times as many in training.
"""

import contextlib
import functools

import pytest

from rnnfast import functional
from rnnfast.commands.engines import ENGINES, MODES, Case, disagreement, expected
from rnnfast.commands.program import CannotRun

# A batch of one is how sequences are streamed; the larger batches are also trained.
STREAMS = [(1, 1, 64, 64), (100, 1, 64, 64), (100, 1, 256, 256), (25, 1, 1024, 1024)]
BATCHES = [
    (37, 5, 13, 51),
    (64, 16, 128, 128),
    (64, 32, 256, 256),
    (20, 64, 512, 512),
    (32, 16, 128, 128, 2, True),
]
CASES = [
    Case(cell, *shape)._replace(mode=mode)
    for cell in ("rnn", "lstm", "gru")
    for shape in STREAMS + BATCHES
    for mode in MODES[: 1 if shape in STREAMS else 2]
]


def label(engine, isa):
    return f"{engine}-{isa}" if isa else engine


RUNS = [
    pytest.param(case, engine, isa, id=f"{case} {label(engine, isa)}".replace(" ", "-"))
    for case in CASES
    for engine in ENGINES
    for isa in (functional.isas() if engine == "rnnfast" else [None])
    if not (case.mode == "training" and engine == "onnxruntime")  # which only infers
]

solve = functools.lru_cache(maxsize=1)(expected)  # the engines of a case run one after another


@pytest.mark.parametrize(("case", "engine", "isa"), RUNS)
def test_speed(benchmark, pytestconfig, case, engine, isa):
    with functional.use_isa(isa) if isa else contextlib.nullcontext():
        try:
            call, answer = ENGINES[engine](case, pytestconfig.getoption("threads"))
        except (CannotRun, ImportError) as reason:
            pytest.skip(f"{engine} is not timed: {reason}")
        wrong = disagreement(answer(call()), solve(case), case.dtype)
        assert not wrong, f"{engine} is not timed: {wrong}"
        benchmark.group, benchmark.name = str(case), label(engine, isa)
        benchmark(call)
    if benchmark.enabled:
        benchmark.extra_info["case"] = case._asdict()
        benchmark.extra_info["GFLOP/s"] = case.gflop() / benchmark.stats.stats.min
