"""benchmarks/soak.py fails where memory grows or results change."""

import argparse
import importlib.util
import sys

import numpy as np
import pytest
from support.checkout import CHECKOUT

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmark reads memory from Linux's /proc"),
]
OPTIONS = argparse.Namespace(steps=2000, calls=2000, minutes=None, threads=2)


@pytest.fixture
def soak(monkeypatch):
    """The benchmark as a module, with a short warm-up; calls may grow more after that."""
    spec = importlib.util.spec_from_file_location("soak", CHECKOUT / "benchmarks" / "soak.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WARM_UP", {"steps": 1000, "calls": 1000})
    monkeypatch.setattr(module, "GROWTH", {"steps": 10, "calls": 50})
    return module


def test_prints_a_table(soak, threads, capsys):
    threads(1)
    assert soak.report(OPTIONS) == 0
    *_, steps, calls = capsys.readouterr().out.splitlines()
    assert steps.split()[:2] == ["steps", "2,000"]
    assert calls.split()[:2] == ["calls", "2,000"]


def test_fails_where_memory_grows(soak, threads, capsys, monkeypatch):
    threads(1)
    kept = []
    infer = soak.Calls.infer
    monkeypatch.setattr(soak.Calls, "infer", lambda self: kept.append(b"x" * (1 << 20)) or infer(self))
    assert soak.report(OPTIONS) == 1
    assert capsys.readouterr().out.endswith(", GROWS\n")


def test_fails_where_results_change(soak, threads, monkeypatch):
    threads(1)
    numbers = iter(np.arange(10**6))
    monkeypatch.setattr(soak.Calls, "infer", lambda _: next(numbers)[np.newaxis])
    with pytest.raises(soak.CannotRun, match="results differ from those at the start after 0 steps"):
        soak.report(OPTIONS)
