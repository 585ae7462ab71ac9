"""``python -m rnnfast bench``."""

import contextlib
import json
import math
import os
import sys

import numpy as np
import pytest
from support.command_line import failure, main

import rnnfast
from rnnfast import __main__
from rnnfast.commands import bench, engines, program, timing

CASES = [
    bench.Case(cell, 5, 3, 4, 6, layers, bidirectional, mode, dtype)
    for cell in bench.CELLS
    for layers, bidirectional in [(1, False), (2, True)]
    for mode in bench.MODES
    for dtype in bench.TOLERANCE
]


@pytest.mark.parametrize("name", bench.ENGINES)
def test_every_engine_gives_the_answer_of_the_reference(name, threads):
    threads(1)
    if name not in ("rnnfast", "reference"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    for case in CASES:
        call, answer = engines.with_reference(case, 1, np.float64)
        expected = answer(call())
        assert len(expected) == 1 + (2 if case.cell == "lstm" else 1) + (
            0 if case.mode == "inference" else 1 + len(case.layer().parameters)
        )
        try:
            call, answer = bench.ENGINES[name](case, 1)
        except program.CannotRun:
            assert name == "onnxruntime"
            continue
        assert bench.disagreement(answer(call()), expected, case.dtype) is None, case


def test_wrong_answers_are_seen():
    right = {"y": np.array([1.0, -2.0]), "dx": np.zeros(3)}
    assert bench.disagreement(right, right, "float64") is None
    assert bench.disagreement({**right, "y": right["y"] + 1e-3}, right, "float32") == (
        "its y is wrong by 0.0005 of the largest element"
    )
    assert bench.disagreement({**right, "y": right["y"] + 1e-6}, right, "float32") is None
    assert bench.disagreement({**right, "y": right["y"] + 1e-6}, right, "float64")
    assert "y is wrong by nan" in bench.disagreement({**right, "y": right["y"] * np.nan}, right, "float64")
    assert "dx is wrong" in bench.disagreement({**right, "dx": np.full(3, 1e-9)}, right, "float64")
    assert "shape (2, 1)" in bench.disagreement({**right, "y": right["y"][:, None]}, right, "float64")
    assert "it returns y instead of y, dx" in bench.disagreement({"y": right["y"]}, right, "float64")


class Fake:
    """An engine that reports a fixed time. It must not be timed if that is None."""

    def __init__(self, seconds, spoil=0.0, refuse=None):
        self.seconds, self.spoil, self.refuse, self.turns = seconds, spoil, refuse, 0

    def ask(self, what):
        if isinstance(what, bench.Case):
            call, answer = engines.with_reference(what, 1)
            return self.refuse or {name: array + self.spoil for name, array in answer(call()).items()}
        assert self.seconds is not None, "it was timed"
        self.turns += 1
        return self.seconds


@pytest.fixture
def fakes(monkeypatch):
    """Fake engines with known times."""
    engines = {
        "rnnfast": Fake(1e-6),
        "reference": Fake(4e-6),
        "torch": Fake(None, spoil=0.01),
        "onnxruntime": Fake(None, refuse="it has a day off"),
        "NumPy's product": Fake(0.5),
        "rnnfast's product": Fake(0.25),
    }

    @contextlib.contextmanager
    def workers(names, _):
        yield {name: engines[name] for name in names}

    monkeypatch.setattr(bench, "workers", workers)
    monkeypatch.setattr(timing, "PAUSE", 0)
    monkeypatch.setattr(bench, "versions", lambda *_: dict.fromkeys(bench.ENGINES, "1.0"))
    return engines


def test_wrong_answers_are_not_timed_and_end_with_status_1(fakes, capsys):
    assert main(["bench", "--T", "5", "--N", "2", "--I", "3", "--H", "4", "--rounds", "3"]) == 1
    table = capsys.readouterr().out
    for mode, factor in [("inference", 1), ("training", 3)]:
        [row] = [line for line in table.splitlines() if line.split()[:7] == ["lstm", mode[:5], *"52341"]]
        assert row.split()[7:9] == ["1", "µs"]
        assert row.split()[9:12] == ["4.00x", "WRONG", "-"]
        gflops = factor * 2 * 5 * 2 * 4 * 4 * (3 + 4) / 1e-6 / 1e9
        limit = 2 * 512**3 / 0.25 / 1e9
        assert row.split()[12:] == [f"{gflops / limit:.0%}", f"{gflops:.3g}"]
    assert "torch was not timed: its y is wrong by" in table
    assert table.count("onnxruntime was not timed: it has a day off") == 1
    assert fakes["rnnfast"].turns == 2 * 3


def test_right_answers_end_with_status_0(fakes):
    fakes["torch"].refuse = "it is at lunch"
    assert main(["bench", "--T", "2", "--H", "3", "--rounds", "1"]) == 0


def test_wrong_results_of_rnnfast_are_errors_too(fakes, capsys):
    fakes["rnnfast"].spoil, fakes["rnnfast"].seconds = 1e-3, None
    assert main(["bench", "--T", "2", "--H", "3", "--mode", "inference", "--rounds", "1"]) == 1
    row = capsys.readouterr().out.splitlines()[4]
    assert row.split()[7:] == ["WRONG", "4", "µs", "WRONG", "-"]


def test_bench_in_subprocesses(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "versions", lambda *_: {"rnnfast": "1"})
    before = dict(os.environ)
    path = tmp_path / "times.json"
    arguments = "bench --cell gru --T 3 --N 2 --I 4 --H 5 --layers 2 --bidirectional --dtype float64 --rounds 2 --json"
    assert main([*arguments.split(), str(path)]) == 0
    assert dict(os.environ) == before
    report = json.loads(path.read_text())
    assert [case["case"]["mode"] for case in report["cases"]] == ["inference", "training"]
    for case in report["cases"]:
        assert case["seconds"].keys() == {"rnnfast", "reference"}
        assert all(len(times) == 2 and min(times) > 0 for times in case["seconds"].values())
        products = 3 * 2 * sum(2 * 3 * 5 * width for width in (4, 5, 2 * 5, 5))
        assert math.isclose(case["gflop"], 2e-9 * products * (3 if case["case"]["mode"] == "training" else 1))
    assert capsys.readouterr().out.count("GFLOP/s") == 3


def test_worker_process_has_its_threads_and_may_fail():
    with timing.workers(["rnnfast"], 3) as started:
        worker = started["rnnfast"]
        assert os.environ["OPENBLAS_NUM_THREADS"] == "3"
        case = bench.Case("rnn", 2, 1, 3, 4)
        assert worker.ask(case)["y"].shape == (2, 1, 4)
        assert worker.ask(case._replace(cell="elman")) == "KeyError: 'elman'"
        assert worker.ask(1e-3) > 0
        worker._process.kill()
        assert worker.ask(1e-3) == "its process ended unexpectedly"


def test_cases_that_are_chosen():
    def chosen(*arguments):
        return bench.choose(__main__.make_parser().parse_args(["bench", *arguments]))

    default = chosen()
    assert {case.cell for case in default} == set(bench.CELLS)
    assert {case.mode for case in default} == set(bench.MODES)
    assert all(case.N > 1 for case in default if case.mode == "training")
    assert {case.cell for case in chosen("--cell", "gru")} == {"gru"}
    assert {case.mode for case in chosen("--mode", "training")} == {"training"}
    assert chosen("--H", "7", "--bidirectional", "--mode", "inference") == [bench.Case("lstm", 64, 16, 128, 7, 1, True)]
    assert [case.mode for case in chosen("--N", "1")] == ["inference", "training"]


def test_timed_counts_calls(monkeypatch):
    clock = iter([0.0, 0.002, 10.0, 10.006])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls = []
    assert timing.timed(lambda: calls.append(1), 0.007) == pytest.approx(0.002)
    assert len(calls) == 1 + 3


@pytest.mark.parametrize(
    ("seconds", "told"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.56e-6, "4.56 µs"), (5e-8, "50 ns")]
)
def test_duration(seconds, told):
    assert timing.duration(seconds) == told


@pytest.mark.usefixtures("fakes")
def test_bench_draws(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "times.png"
    main(["bench", "--H", "3", "--T", "2", "--rounds", "1", "--plot", str(path)])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert main(["bench", "--rounds", "1", "--T", "2", "--plot", str(tmp_path / "times.odd")]) == 2


def test_bench_reports_unwritable_outputs_before_it_starts(fakes, tmp_path, capsys, monkeypatch):
    assert "cannot write" in failure(capsys, "bench", "--json", tmp_path / "missing" / "times.json")
    assert "it is a directory" in failure(capsys, "bench", "--plot", tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in failure(capsys, "bench", "--plot", tmp_path / "times.png")
    assert fakes["rnnfast"].turns == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["reference", "NumPy's product"])
def test_engine_that_fails_while_it_is_timed_ends_the_benchmark(name, fakes, capsys):
    fakes[name].seconds = "RuntimeError: out of memory"
    line = failure(capsys, "bench", "--T", "2", "--H", "3", "--rounds", "1")
    assert line.endswith(f"{name} cannot be timed: RuntimeError: out of memory")


def test_product_that_does_not_run_ends_the_benchmark(fakes, capsys):
    fakes["NumPy's product"].refuse = "RuntimeError: out of memory"
    line = failure(capsys, "bench", "--T", "2", "--H", "3", "--rounds", "1")
    assert line.endswith("NumPy's product cannot be timed: RuntimeError: out of memory")


def test_wrong_results_are_not_drawn(fakes, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    fakes["rnnfast"].spoil, fakes["rnnfast"].seconds = 1e-3, None
    path = tmp_path / "times.png"
    line = failure(capsys, "bench", "--T", "2", "--H", "3", "--rounds", "1", "--plot", path)
    assert line.endswith(f"nothing to draw to {path}: rnnfast's results were wrong in every case")
    assert not path.exists()


def test_onnxruntime_without_onnx_is_not_timed(monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.delitem(sys.modules, "rnnfast.backends.onnx", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(program.CannotRun, match=r"no model can be made for it: .* pip install 'rnnfast.onnx.'"):
        engines.ENGINES["onnxruntime"](bench.Case("lstm", 2, 1, 3, 4), 1)


def test_versions_of_packages_that_are_not_installed():
    assert timing.versions("numpy", "no-such-package") == {
        "rnnfast": rnnfast.__version__,
        "numpy": np.__version__,
        "no-such-package": None,
    }
