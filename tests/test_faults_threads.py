"""Calls give the right results where threads cannot be made, memory is limited, and processors are taken away."""

import sys
from textwrap import dedent

import pytest
from support.faults import run_with_faults
from support.processes import run_script

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this test needs Linux")

PROBLEM = """
import ctypes, os, resource, sys
import numpy as np
import rnnfast

layer = rnnfast.GRU(16, 64, rng=0)
x = np.random.default_rng(0).standard_normal((20, 64, 16)).astype(np.float32)

def results():
    y, state, tape = layer.forward(x)
    dx, _, parameters = layer.backward(tape, y)
    return [array.tobytes() for array in (layer(x)[0], y, state, dx, *parameters.values())]

def tasks():
    return len(os.listdir("/proc/self/task"))

def in_child(check):
    "Run a check in a process of its own; it fails by an exception."
    child = os.fork()
    if child == 0:
        check()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, check

def size():
    "The size of this process in bytes."
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

rnnfast.set_num_threads(1)
expected = results()
rnnfast.set_num_threads(3)
assert tasks() == 1
"""


def test_threads_that_cannot_be_made(tmp_path):
    """Calls run with the threads that exist, and make the others as soon as that is possible."""
    script = """
    from support.faults import Library

    library = Library()

    def check(count):
        library.refuse_threads(count)
        for _ in range(3):
            assert results() == expected
            assert tasks() == 1 + count
        library.refuse_threads(-1)
        assert results() == expected
        assert tasks() == 3

    for count in range(2):
        in_child(lambda: check(count))
    """
    run_with_faults(PROBLEM + dedent(script), tmp_path)


@linux
def test_limit_on_processes():
    """As by `ulimit -u`; root, which has no such limit, becomes another user."""
    script = """
    def check():
        if os.getuid() == 0:
            os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        assert results() == expected
        assert tasks() == 1

    in_child(check)
    """
    run_script(PROBLEM + dedent(script))


@linux
@pytest.mark.parametrize("limit", ["address space", "locked memory"])
def test_limit_on_memory(limit):
    """As by `ulimit -v`, or by `ulimit -l` where memory is locked: calls for which there is memory run."""
    script = f"""
    def limit_address_space():
        resource.setrlimit(resource.RLIMIT_AS, (size() + (6 << 20),) * 2)

    def limit_locked_memory():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (6 << 20,) * 2)
        if os.getuid() == 0:
            os.setuid(65534)
        if ctypes.CDLL(None).mlockall(2):  # all that is mapped from now on
            print("cannot lock")
            os._exit(0)

    def check():
        limit_{limit.replace(" ", "_")}()
        assert results() == expected
        assert tasks() == 1, "there was memory for the stack of a thread"
        for _ in range(3):
            for call in (layer, layer.forward):
                try:
                    call(np.ones((100, 3000, 16), np.float32))
                except MemoryError:
                    pass
                else:
                    raise AssertionError("there was memory for 77 MB")
            assert results() == expected

    in_child(check)
    """
    if "cannot lock" in run_script(PROBLEM + dedent(script)):
        pytest.skip("this system does not let a process lock its memory")


@pytest.mark.full
@linux
def test_processors_that_are_taken_away():
    """The processors of all threads change during calls, to one and to all."""
    script = """
    import threading

    assert results() == expected
    every, done = sorted(os.sched_getaffinity(0)), threading.Event()

    def move():
        for turn in range(200):
            processors = every if turn % 3 == 0 else [every[turn % len(every)]]
            for task in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(task), processors)
            done.wait(0.001)
        done.set()

    threading.Thread(target=move).start()
    while not done.is_set():
        assert results() == expected
    """
    run_script(PROBLEM + dedent(script))


@pytest.mark.full
@linux
def test_process_that_is_stopped():
    """SIGSTOP and SIGCONT at any time during calls."""
    script = """
    import random, signal, time

    child = os.fork()
    if child == 0:
        for _ in range(100):
            if results() != expected:
                os._exit(1)
        os._exit(0)
    rng = random.Random(0)
    stops = 0
    while True:
        time.sleep(rng.uniform(0, 0.01))
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        os.kill(child, signal.SIGSTOP)
        time.sleep(rng.uniform(0, 0.003))
        os.kill(child, signal.SIGCONT)
        stops += 1
    assert status == 0
    assert stops > 3
    """
    run_script(PROBLEM + dedent(script))
