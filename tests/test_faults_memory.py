"""Every allocation of every call can fail: the call raises MemoryError, changes nothing and keeps no memory."""

from textwrap import dedent, indent

import pytest
from support.faults import run_with_faults

SCRIPT = """
from support.actions import ACTIONS
from support.faults import Library, broken_by_allocations, growth

library, total = Library(), 0
for name, action in ACTIONS.items():
{code}
print(total, "allocations failed")
"""


def check(folder, code, **variables):
    """Run code for each action in a process whose allocations fail; it prints what is wrong."""
    script = SCRIPT.format(code=indent(dedent(code), " " * 4))
    [*found, summary] = run_with_faults(script, folder, **variables).splitlines()
    assert not found, "\n".join([*found, summary])
    assert int(summary.split()[0]) > 100


def check_changes(folder, most):
    """Let one allocation of a call fail, of any size, or all of 1 KiB or more from one on.

    CPython takes an allocation for each of its objects here. It does not survive if all of them fail.
    """
    code = f"""
    for options in {{}}, {{"least": 1024, "rest": True}}:
        count, wrong = broken_by_allocations(library, action, {most}, **options)
        total += count
        if wrong:
            print(f"{{name}}, {{options}}: {{wrong.total()}} of {{count}}: {{wrong.most_common(3)}}")
    """
    check(folder, code, PYTHONMALLOC="malloc")


def check_growth(folder, most):
    """Let one allocation of an array or a buffer fail; when that of an object fails, CPython itself keeps others."""
    code = f"""
    count, grown = growth(library, action, {most})
    total += count
    if grown:
        print(f"{{name}}: {{grown}} blocks")
    """
    check(folder, code, PYTHONMALLOC="pymalloc")


def test_failed_allocations_change_nothing(tmp_path):
    check_changes(tmp_path, 3)


@pytest.mark.full
def test_each_failed_allocation_changes_nothing(tmp_path):
    check_changes(tmp_path, 1000)


def test_failed_allocations_keep_nothing(tmp_path):
    check_growth(tmp_path, 4)


@pytest.mark.full
def test_each_failed_allocation_keeps_nothing(tmp_path):
    check_growth(tmp_path, 1000)
