"""Test what commands, examples and benchmarks share, and the script that draws the results of the benchmarks."""

import importlib.util
import io
import json
import signal
import sys

import pytest
from support.checkout import CHECKOUT

from rnnfast.commands import bench, engines, program, timing


class Stream(io.StringIO):
    """A stderr that may be a terminal."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def test_progress_off_a_terminal_is_a_log_of_milestones(monkeypatch):
    stderr = Stream(terminal=False)
    monkeypatch.setattr(sys, "stderr", stderr)
    with program.Progress(4) as progress:
        for what in ("load", "train", "train", "test"):
            progress.begin(what)
        progress.step(lambda: "not shown")
        progress.note("done")
    assert stderr.getvalue() == "load\ntrain\ntest\ndone\n"


def test_progress_on_a_terminal_is_one_line_that_is_cleared(capsys, monkeypatch):
    clock, stderr = iter(range(100)), Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(program.time, "monotonic", lambda: next(clock))
    monkeypatch.setenv("COLUMNS", "60")
    with program.Progress(4, done=1) as progress:
        progress.step(lambda: "a description")
        progress.line("a result")
        progress.note("a description that is far too long for a terminal of sixty columns")
    shown = stderr.getvalue().split("\r\x1b[K")
    assert shown[1].startswith("[####")
    assert "50% 0:0" in shown[1]
    assert shown[1].endswith("left  a description")
    assert all(len(line) < 60 for line in shown)
    assert shown[2] == shown[-1] == ""
    assert capsys.readouterr().out == "a result\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (program.CannotRun("no data: download it"), 2, "name: no data: download it\n"),
        (MemoryError(), 2, "name: not enough memory: use smaller sizes\n"),
        (OSError(28, "No space left on device"), 2, "name: cannot write the output: No space left on device\n"),
        (KeyboardInterrupt(), 130, "\nStopped.\n"),
    ],
)
def test_programs_end_with_a_status_and_one_line(error, status, said, capsys, monkeypatch):
    monkeypatch.setattr(program, "_discard_output", lambda: None)

    def run():
        raise error

    assert program.run_program("name", run) == status
    assert capsys.readouterr().err == said


def test_streams_without_an_encoding(monkeypatch):
    stdout, stderr = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert program.run_program("name", lambda: print("done") or 0) == 0
    assert (stdout.getvalue(), stderr.getvalue()) == ("done\n", "")


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.default_int_handler])
def test_an_ignored_interrupt_stays_ignored(before):
    """A script ignores Ctrl-C for the commands that it runs in the background."""
    stopped, outer = [], signal.signal(signal.SIGINT, before)
    try:
        with program.interruptible(lambda: stopped.append(True)):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, outer)
    assert len(stopped) == (before != signal.SIG_IGN)


@pytest.mark.parametrize("engine", ["all", "rnnfast alone"])
def test_table_of_bench_fits_its_terminal(engine):
    names = list(engines.ENGINES) if engine == "all" else ["rnnfast", "reference"]
    assert "GFLOP/s" in bench.columns_for(names, float("inf"))
    for available in (100, 80, 70):
        columns = bench.columns_for(names, available)
        assert sum(columns.values()) < available
        assert {"cell", "mode", "T", "N", "I", "H", "rnnfast"} <= columns.keys()
    assert "limit" in bench.columns_for(names, 80)


CASE = engines.Case("lstm", 4, 2, 8, 8, 2, True, "training")


def results_of(source):
    """A file of results of each program that writes one, with the same times."""
    times = {"rnnfast": 1e-3, "torch": 2e-3}
    versions = {"rnnfast": "1", "torch": "2", "onnx": None}
    if source == "bench":
        case = {"case": CASE._asdict(), "seconds": {name: [9.0, seconds] for name, seconds in times.items()}}
        return {"about": {"cpu": "a CPU", "threads": 2, "versions": versions}, "cases": [case]}
    benchmarks = [
        {"name": name, "extra_info": {"case": CASE._asdict()}, "stats": {"min": seconds}}
        for name, seconds in times.items()
    ]
    machine = {"cpu": {"brand_raw": "a CPU"}, "threads": 2, "versions": versions}
    return {"machine_info": machine, "benchmarks": benchmarks}


@pytest.fixture
def plot(monkeypatch):
    source = CHECKOUT / "benchmarks" / "plot.py"
    if not source.is_file():
        pytest.skip("the tests do not lie in a checkout of rnnfast, so there are no benchmarks")
    spec = importlib.util.spec_from_file_location("plot", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["plot.py", *map(str, arguments)])
        return module.main()

    return run


@pytest.mark.parametrize("source", ["bench", "pytest"])
def test_results_of_benchmarks_become_a_table_and_a_picture(source, plot, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path, picture = tmp_path / "speed.json", tmp_path / "speed.png"
    path.write_text(json.dumps(results_of(source)))
    assert plot(path, "--table", "-o", picture) == 0
    lines = capsys.readouterr().out.splitlines()
    rate = f"{CASE.gflop() / 1e-3:.3g}"
    assert lines[0] == "|  | rnnfast | GFLOP/s | torch |"
    assert lines[2] == f"| {CASE} | 1 ms | {rate} | 2.00x |"
    assert lines[-1] == "a CPU, 2 threads; rnnfast 1, torch 2."
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_files_that_hold_no_results_are_one_line_errors(plot, tmp_path, capsys):
    path = tmp_path / "speed.json"
    assert plot(path, "--table") == 2
    assert "cannot read" in capsys.readouterr().err
    path.write_text("{}")
    assert plot(path, "--table") == 2
    assert "does not hold results" in capsys.readouterr().err
    path.write_text(json.dumps(results_of("bench")))
    assert plot(path, "--table", "--only", "gru") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "no case with 'gru' in its name" in line


def test_engines_take_turns(monkeypatch):
    monkeypatch.setattr(timing, "PAUSE", 0)
    order = []
    timers = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    seconds = timing.take_turns(timers, 3)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert seconds == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}
    assert timing.ratio([2.0, 6.0, 3.0], [1.0, 2.0, 3.0]) == 2
