"""Exceptions of signal handlers leave every object as it was before the call or as it is after it, and usable."""

import signal

import pytest
from support.actions import ACTIONS
from support.interruptions import broken_at_bytecodes
from support.processes import run_script


@pytest.mark.parametrize("name", ACTIONS)
def test_exception_before_some_bytecodes(name):
    check_bytecodes(name, most=100)


@pytest.mark.full
@pytest.mark.parametrize("name", ACTIONS)
def test_exception_before_every_bytecode(name):
    check_bytecodes(name)


def check_bytecodes(name, **options):
    interrupted, broken = broken_at_bytecodes(ACTIONS[name], **options)
    assert interrupted, "the call ran no bytecode of rnnfast"
    assert not broken, f"{broken.total()} of {interrupted} exceptions: {broken.most_common(5)}"


def check_random_times(seconds):
    """Interrupt each call for a number of seconds; in a subprocess, because a lock that is kept may hang it."""
    found = run_script(f"""
    from support.actions import ACTIONS
    from support.interruptions import broken_at_random

    count = 0
    for name, action in ACTIONS.items():
        interrupted, broken = broken_at_random(action, {seconds})
        count += interrupted
        if broken:
            print(f"{{name}}: {{broken.total()}} of {{interrupted}} exceptions: {{broken.most_common(3)}}")
    assert count > 0
    """)
    assert not found, found


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_exception_at_random_times():
    check_random_times(0.005)


@pytest.mark.full
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_many_exceptions_at_random_times():
    check_random_times(1)
