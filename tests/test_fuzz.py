"""The fuzz targets: every fault that they found stays fixed, and they find faults."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import fuzz
import pytest
from support.checkout import CHECKOUT

import rnnfast

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork, which tools/fuzz needs")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of time and memory are tested on Linux")


def loaded(name):
    try:
        return fuzz.load(name)
    except ImportError as error:
        pytest.skip(f"the fuzz target {name} needs a package that is not installed: {error}")


@linux
@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, case, id=f"{name}: {note}") for name in fuzz.TARGETS for note, case in fuzz.corpus(name)],
)
def test_fault_stays_fixed(name, case):
    target = loaded(name)
    if case.get("base") == "series":
        pytest.importorskip("sklearn", reason="the files of predict need scikit-learn")
    fuzz.check(target, case)


@linux
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_first_cases_hold(name):
    target = loaded(name)
    for seed in range(5):
        case = fuzz.case_of(target, seed)
        text = json.dumps(case)
        assert json.dumps(json.loads(text)) == text
        assert fuzz.fault_of(target, case) is None


def test_every_corpus_has_a_target():
    assert {path.stem for path in fuzz.CORPUS.iterdir()} <= fuzz.TARGETS.keys()


@posix
def test_cases_become_smaller():
    def check(case):
        fuzz.assume(case["rows"])
        if "x" in case["rows"] and case["size"] > 10:
            raise KeyError("a fault")
        if case["size"] > 500:
            raise ValueError("another one")

    target = SimpleNamespace(check=check)
    case = {"rows": ["a", "abxcd", "x"], "size": 300, "kind": "some choice", "on": True}
    small = fuzz.shrink(target, case, fuzz.fault_of(target, case))
    assert small == {"rows": ["x"], "size": 11, "kind": "some choice", "on": False}


@posix
def test_a_hang_is_a_fault(monkeypatch):
    monkeypatch.setattr(fuzz, "CASE_SECONDS", 0.1)

    def check(case):  # noqa: ARG001
        while True:
            pass

    assert isinstance(fuzz.fault_of(SimpleNamespace(check=check), {}), fuzz.TooSlow)


def test_bytes_choose_the_case():
    target = loaded("order")
    one, other = (target.generate(fuzz.FromBytes(data)) for data in (b"", bytes(range(256))))
    assert one == target.generate(fuzz.FromBytes(bytes(50)))
    assert one != other


# ---- tools/fuzz


def tool(*arguments, broken=""):
    """Run tools/fuzz, with a fault planted in the process by the statements `broken`."""
    tool = CHECKOUT / "tools" / "fuzz"
    start = f"import runpy, sys; sys.argv = {[str(tool), *map(str, arguments)]!r}\n{broken}\n"
    code = start + f"runpy.run_path({str(tool)!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


@posix
def test_targets_are_listed():
    done = tool()
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(fuzz.TARGETS)


@posix
def test_a_fault_is_reported_and_repeated(monkeypatch):
    broken = "import rnnfast; rnnfast.GRU.load_state_dict = lambda *_, **__: None"
    done = tool("parameters", "--seconds", 60, "--seed", 5, broken=broken)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "AssertionError: " in done.stdout
    seed, path = re.search(r"Repeat: .* --seed (\d+) --cases 1\nRepeat: .* --replay (.*)\n", done.stdout).groups()
    healthy = tool("parameters", "--replay", path)
    assert healthy.returncode == 0
    assert "parameters: 1 cases in" in healthy.stdout
    target = loaded("parameters")
    case = fuzz.case_of(target, int(seed))
    assert fuzz.fault_of(target, case) is None
    monkeypatch.setattr(rnnfast.GRU, "load_state_dict", lambda *_, **__: None)
    assert isinstance(fuzz.fault_of(target, case), AssertionError)


@posix
def test_a_crash_is_reported():
    done = tool(
        "order", "--seed", 3, broken="import os; from rnnfast import functional as f; f.arrange = lambda *_: os.abort()"
    )
    assert done.returncode == 1
    assert "CRASH by SIGABRT in the case of seed 3" in done.stdout


@posix
def test_a_missing_package_is_said():
    done = tool("onnx", "--cases", 1, broken="sys.modules['onnx'] = None")
    assert done.returncode == 2
    assert "onnx: NOT RUN: " in done.stdout
