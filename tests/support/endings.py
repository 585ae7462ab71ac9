"""Processes that fork, start others and end while threads are in calls of rnnfast: all must end, with right results.

python -m support.endings FORKS SPAWNS EXITS    in tests/; prints what was wrong, and then a summary
"""

import atexit
import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter

import numpy as np

import rnnfast
from support.signals import handle_in_call

PATIENCE = 120  # seconds, after which a process is taken to hang


def results():
    """The bits of a call and of gradients that take two threads about a millisecond."""
    layer = rnnfast.GRU(16, 64, rng=0)
    x = np.random.default_rng(0).standard_normal((20, 32, 16)).astype(np.float32)
    y, state, tape = layer.forward(x)
    dx, _, parameters = layer.backward(tape, y)
    return [array.tobytes() for array in (layer(x)[0], y, state, dx, *parameters.values())]


rnnfast.set_num_threads(1)
EXPECTED = results()
rnnfast.set_num_threads(2)


def are_right():
    return results() == EXPECTED


@contextlib.contextmanager
def busy_threads():
    """Two threads that are in calls most of the time."""
    done = threading.Event()

    def work():
        while not done.is_set():
            results()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield
    done.set()
    for thread in threads:
        thread.join()


def status_of(child):
    """Wait for a process. Returns its exit code, negative for a signal, or "hangs"."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


# ---- forks: each function forks a process that checks its results, and returns the id of the process


def fork(check=are_right):
    child = os.fork()
    if child == 0:
        os._exit(0 if check() else 1)
    return child


def fork_in_thread():
    """Fork in a thread while this one, too, is in a call."""
    children = []
    thread = threading.Thread(target=lambda: children.append(fork()))
    thread.start()
    results()
    thread.join()
    return children[0]


def fork_twice():
    """Fork a process that forks another one while its own threads are in calls."""

    def check():
        with busy_threads():
            return are_right() and status_of(fork()) == 0

    return fork(check)


class Forked(Exception):
    """Raised in the parent, with the id of the child."""


def fork_in_handler():
    """Fork in a signal handler during a call. In the child the handler returns, and then the call must raise."""

    def handler(*_):
        if child := os.fork():
            raise Forked(child)

    layer, x = rnnfast.LSTM(64, 512, rng=0), np.zeros((2000, 16, 64), np.float32)
    handle_in_call(handler)
    parent = os.getpid()
    try:
        layer(x)  # for at least 0.3 s
    except Forked as forked:
        return forked.args[0]
    except RuntimeError as error:
        os._exit(0 if "a signal handler forked" in str(error) and are_right() else 1)
    if os.getpid() == parent:
        raise AssertionError("the call ended before a second signal reached it")
    os._exit(1)


FORKS = [fork, fork_in_thread, fork_twice, fork_in_handler]


# ---- exits: each function ends the process in which it is called


def end_with_atexit():
    atexit.register(lambda: are_right() or os._exit(1))
    sys.exit()


def end_while_thread_works():
    """Let the interpreter wait for a thread that is not a daemon."""
    threading.Thread(target=lambda: are_right() or os._exit(1)).start()
    sys.exit()


def end_in_exception():
    os.close(2)  # hides the traceback
    raise RuntimeError


def end_by(number):
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


# The way to end, and the exit code.
EXITS = {
    "end": (sys.exit, 0),
    "sys.exit": (lambda: sys.exit(3), 3),
    "os._exit": (lambda: os._exit(4), 4),
    "atexit": (end_with_atexit, 0),
    "thread": (end_while_thread_works, 0),
    "exception": (end_in_exception, 1),
    "SIGTERM": (lambda: end_by(signal.SIGTERM), -signal.SIGTERM),
    "SIGINT": (lambda: end_by(signal.SIGINT), -signal.SIGINT),
    "exec": (lambda: os.execv("/bin/sh", ["sh", "-c", "exit 5"]), 5),
}


def end(way):
    """Fork a process that ends in some way while its daemon threads are in calls. Returns its id."""
    child = os.fork()
    if child == 0:
        busy_threads().__enter__()
        time.sleep(0.002)
        EXITS[way][0]()
    return child


# ---- processes of multiprocessing


def check_or_exit():
    sys.exit(0 if are_right() else 1)


def spawn(method):
    """Start a process by multiprocessing, and return its exit code or "hangs"."""
    process = multiprocessing.get_context(method).Process(target=check_or_exit)
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        return "hangs"
    return process.exitcode


def main(forks, spawns, exits):
    wrong = Counter()

    def note(name, status, expected=0):
        if status != expected:
            wrong[f"{name}: {status}"] += 1

    with busy_threads():
        for way in itertools.islice(itertools.cycle(FORKS), forks):
            note(way.__name__, status_of(way()))
        for way in itertools.islice(itertools.cycle(EXITS), exits):
            note(way, status_of(end(way)), EXITS[way][1])
        for method in itertools.islice(itertools.cycle(["spawn", "forkserver", "fork"]), spawns):
            note(method, spawn(method))
    for name, count in wrong.items():
        print(f"{name}, {count} times")
    print(f"{forks} forks, {spawns} started processes and {exits} exits with threads at work: {wrong.total()} failed")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
