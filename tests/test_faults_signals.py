"""Exceptions of signal handlers leave every object as it was before the call or as it is after it, and usable."""

import signal

import pytest
from support import interruptions
from support.actions import ACTIONS
from support.interruptions import Action, broken_at_bytecodes
from support.processes import run_script


@pytest.mark.parametrize("name", ACTIONS)
def test_exception_before_some_bytecodes(name):
    check_bytecodes(name, most=25)


@pytest.mark.full
@pytest.mark.parametrize("name", ACTIONS)
def test_exception_before_every_bytecode(name):
    """Of calls that take more than a thousand, a thousand."""
    check_bytecodes(name, most=1000)


def test_torn_objects_are_found(monkeypatch):
    """An object whose parts change one after the other, and one whose lock is kept, by the code of this module."""
    monkeypatch.setattr(interruptions, "PACKAGE", __file__)

    class Pair:
        first = second = 0
        locked = False

        def change(self):
            self.locked = True
            self.first = 1
            self.second = 1
            self.locked = False

    def observe(pair):
        if pair.locked:
            raise RuntimeError("locked")
        return pair.first, pair.second

    for look in observe, lambda pair: (pair.first, pair.second):
        action = Action(Pair, Pair.change, look)
        for interrupted, broken in (broken_at_bytecodes(action), broken_at_bytecodes(action, 8)):
            assert 0 < broken.total() < interrupted
    assert not broken_at_bytecodes(Action(Pair, Pair.change, lambda pair: pair.first))[1]


def check_bytecodes(name, most):
    interrupted, broken = broken_at_bytecodes(ACTIONS[name], most)  # none where all of the call is compiled
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
