"""Exceptions raised in the middle of a call, as Ctrl-C or a signal handler raises them, and what they leave behind.

An `Action` makes an object, calls one of its methods, and observes everything that the method may change. After an
interrupted call, the object must be as it was before or as it is after a complete call. It must also be usable, which
observing it shows. `broken_at_bytecodes` raises the exception before the k-th bytecode of rnnfast's Python code,
`broken_at_random` from the signal of a timer.
"""

import contextlib
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from typing import Any, NamedTuple

import rnnfast

PACKAGE = os.path.dirname(rnnfast.__file__) + os.sep


class Interrupt(BaseException):
    """What the handler of the signal raises; like KeyboardInterrupt not an Exception."""


class Action(NamedTuple):
    """A call that changes an object.

    make()             returns a new object, the same each time
    act(object)        is interrupted
    observe(object)    returns all that must be as before or as after the call, in a form that can be compared
    files              whether the call reads or writes files, so that it may raise OSError
    """

    make: Any
    act: Any
    observe: Any
    files: bool = False


class Fault(str):
    """The error of an object that cannot be used, for example because a lock was not released."""


def observed(action, subject):
    """What an action's object looks like; a Fault if it cannot be used."""
    try:
        return action.observe(subject)
    except Exception as error:
        return Fault(f"{type(error).__name__}: {error}")


def outcomes(action):
    """What the object looks like before and after a complete call."""
    before = observed(action, action.make())
    subject = action.make()
    action.act(subject)
    after = observed(action, subject)
    assert not isinstance(before, Fault), before
    assert not isinstance(after, Fault), after
    return before, after


@contextlib.contextmanager
def finalizers_ignored():
    """Do not report what finalizers cannot raise: an Interrupt, or that an interrupted call left a file open.

    Provides a list of the exceptions in rnnfast's own finalizers, as text.
    """
    found = []

    def note(what):
        if (getattr(what.object, "__module__", None) or "").startswith("rnnfast"):
            found.append(f"{what.exc_type.__name__} in {what.object.__qualname__}")

    before, sys.unraisablehook = sys.unraisablehook, note
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield found
    finally:
        sys.unraisablehook = before


def place(frame):
    return f"{os.path.relpath(frame.f_code.co_filename, PACKAGE)}:{frame.f_lineno} in {frame.f_code.co_name}"


def raise_at(point, call):
    """Call a function, and raise Interrupt before the bytecode number `point` of rnnfast, if there are so many.

    Returns the number of bytecodes that ran, and the place of the exception, or None if none was raised.
    """
    count, where = 0, None

    def trace(frame, event, _):
        nonlocal count, where
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            count += 1
            if count == point:
                where = place(frame)
                raise Interrupt
        return trace

    before = sys.gettrace()
    with finalizers_ignored():
        sys.settrace(trace)
        try:
            call()
        except Interrupt:
            pass
        finally:
            sys.settrace(before)
    return count, where


def points(count, most):
    """The numbers 1 to `count`, or `most` of them, evenly spaced."""
    return range(1, count + 1) if count <= most else sorted({1 + i * (count - 1) // (most - 1) for i in range(most)})


def broken_at_bytecodes(action, most=sys.maxsize):
    """Interrupt a call before each bytecode, or before `most` of them.

    Returns the number of interrupted calls, and a Counter of the places that left the object torn or unusable.
    """
    allowed = outcomes(action)
    subject = action.make()
    total, _ = raise_at(0, lambda: action.act(subject))
    interrupted, broken = 0, Counter()
    for point in points(total, most):
        subject = action.make()
        _, where = raise_at(point, lambda subject=subject: action.act(subject))
        if where is None:  # the call took fewer bytecodes this time
            continue
        interrupted += 1
        look = observed(action, subject)
        if look not in allowed:
            broken[f"{where}: {look if isinstance(look, Fault) else 'torn'}"] += 1
    return interrupted, broken


def raise_after(seconds, call):
    """Call a function, and raise Interrupt from the handler of a timer's signal. Returns whether that was in time."""
    running = False

    def handler(*_):
        if running:
            raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    with finalizers_ignored():
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                running = True
                call()
            finally:
                running = False
        except Interrupt:
            return True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    return False


def broken_at_random(action, seconds, seed=0):
    """Interrupt calls at random times, for a number of seconds.

    Returns the number of interrupted calls, and a Counter of what the broken objects looked like.
    """
    allowed, rng = outcomes(action), random.Random(seed)
    duration = min(time_of(action) for _ in range(20))
    interrupted, broken, end = 0, Counter(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        subject = action.make()
        delay = rng.uniform(1e-6, 1.5 * duration + 2e-5)
        if raise_after(delay, lambda subject=subject: action.act(subject)):
            interrupted += 1
            look = observed(action, subject)
            if look not in allowed:
                broken[look if isinstance(look, Fault) else "torn"] += 1
    return interrupted, broken


def time_of(action):
    subject = action.make()
    start = time.perf_counter()
    action.act(subject)
    return time.perf_counter() - start
