"""Instruction counts of the entry points, compared with benchmarks/instructions.json."""

import importlib.util

import pytest
from support.checkout import CHECKOUT

SOURCE = CHECKOUT / "benchmarks" / "instructions.py"


@pytest.fixture(scope="module")
def instructions():
    if not SOURCE.is_file() or not (CHECKOUT / "csrc").is_dir() or not (CHECKOUT / "setup.py").is_file():
        pytest.skip("the tests do not lie in a checkout of rnnfast, so there is nothing to compile")
    spec = importlib.util.spec_from_file_location("instructions", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.full
def test_as_many_instructions_as_recorded(instructions):
    try:
        compiler, valgrind, name = instructions.find_tools()
        recorded = instructions.read_record().get(name)
        if not recorded:
            pytest.skip(f"no figures are recorded for {name}: python benchmarks/instructions.py --record")
        counted = dict(instructions.count(compiler, valgrind))
    except instructions.CannotCount as reason:
        pytest.skip(f"instructions are not counted: {reason}")
    wrong = instructions.complaints(counted, recorded)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("counted", "complaint"),
    [(1029, None), (971, None), (1031, "More instructions"), (969, "Fewer instructions")],
)
def test_complains_beyond_3_percent(instructions, counted, complaint):
    wrong = instructions.complaints({"a case": counted}, {"a case": 1000})
    assert len(wrong) == (complaint is not None)
    assert all(line.startswith(complaint) and "a case" in line and "--record" in line for line in wrong)


def test_reports_cases_that_are_not_recorded(instructions):
    [line] = instructions.complaints({"an old case": 1000, "a new case": 1000}, {"an old case": 1000})
    assert "a new case" in line
    assert "an old case" not in line
