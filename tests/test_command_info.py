"""``python -m rnnfast info``."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from support.processes import python

import rnnfast
from rnnfast import _core, functional
from rnnfast.commands import info

# --- info


def test_info_is_correct():
    result = python("info", "--json", RNNFAST_NUM_THREADS="1")
    facts = json.loads(result.stdout)
    assert facts["version"] == rnnfast.__version__
    assert facts["instruction_set"] == {"used": rnnfast.isas()[0], "available": rnnfast.isas(), "RNNFAST_ISA": None}
    assert facts["threads"]["used"] == facts["threads"]["limits"]["RNNFAST_NUM_THREADS"] == 1
    assert facts["build"]["extension"] == _core.__file__
    assert facts["build"]["numpy"] == np.__version__
    header = Path(rnnfast.get_include(), "rnnfast.h").read_text()
    assert f"#define RNNFAST_ABI {facts['build']['interface']}\n" in header
    told = python("info").stdout
    for fact in (rnnfast.__version__, rnnfast.isas()[0], _core.__file__, np.__version__, _core.COMPILER):
        assert fact in told


def test_info_names_the_source_of_instruction_set_and_threads():
    isa = rnnfast.isas()[-1]
    told = python("info", RNNFAST_ISA=isa, OMP_NUM_THREADS="1").stdout
    assert f"{isa}, set by RNNFAST_ISA" in told
    assert "OMP_NUM_THREADS (1)" in told
    assert "not set: " in told.partition("RNNFAST_NUM_THREADS")[0]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to processors")
def test_info_respects_the_processor_affinity():
    first = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{first}}}); from rnnfast.__main__ import main; main(['info', '--json'])"
    )
    assert json.loads(python(code=code).stdout)["threads"] == {
        "used": 1,
        "limits": {"processors": 1},
        "invalid": {},
    }


def test_least_limit_is_the_number_of_threads(monkeypatch):
    monkeypatch.setenv("RNNFAST_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    limits = functional.thread_limits()
    assert (limits["RNNFAST_NUM_THREADS"], limits["OMP_NUM_THREADS"]) == (7, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert "OMP_NUM_THREADS" not in functional.thread_limits()


@pytest.mark.parametrize(("text", "limit"), [("150000 100000\n", 2), ("200000 100000\n", 2), ("max 100000\n", None)])
def test_quota_of_a_container_limits_the_threads(text, limit, monkeypatch):
    monkeypatch.setattr(functional, "open", lambda _: io.StringIO(text), raising=False)
    assert functional.thread_limits().get("cgroup quota") == limit


def test_caches_as_linux_tells_them(tmp_path):
    assert info.caches(str(tmp_path)) is None
    for i, row in enumerate(["1 Data 48K 0", "1 Instruction 32K 0", "2 Unified 2048K 0,8", "3 Unified 33M 0-3,8-11"]):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, value in zip(("level", "type", "size", "shared_cpu_list"), row.split(), strict=True):
            (folder / name).write_text(f"{value}\n")
    (tmp_path / "index9").mkdir()  # tells nothing
    found = info.caches(str(tmp_path))
    assert [(cache["level"], cache["bytes"], cache["shared_by"]) for cache in found] == [
        (1, 48 << 10, 1),
        (2, 2 << 20, 2),
        (3, 33 << 20, 8),
    ]
    assert [info.describe_cache(cache) for cache in found] == [
        "L1 48 KiB",
        "L2 2 MiB shared by 2 CPUs",
        "L3 33 MiB shared by 8 CPUs",
    ]


def test_info_where_the_system_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(info, "Path", lambda _: tmp_path / "missing")
    facts = info.gather()
    assert facts["cpu"]["features"] is None
    assert facts["caches"] is None
    assert info.describe(facts).count("unknown") >= 2


def test_info_names_missing_cpu_features():
    isa = {"used": "base", "available": ["base"], "RNNFAST_ISA": None}
    _, avx512, avx2 = info.why_isa(isa, {"features": ["avx2", "avx512f", "fma"]})
    assert avx512 == "avx512 is not available: the CPU lacks avx512vl, avx512dq, avx512bw"
    assert "not compiled" in avx2


# --- files that are one


def test_info_explains_invalid_thread_counts():
    told = python("info", RNNFAST_NUM_THREADS="x", OMP_NUM_THREADS="-3").stdout
    assert "RNNFAST_NUM_THREADS is 'x', which is not a number, and is ignored" in told
    assert "OMP_NUM_THREADS (-3, taken as 1)" in told
    assert "RNNFAST_NUM_THREADS" not in told.partition("not set: ")[2].partition("\n")[0]
