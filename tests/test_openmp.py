"""Calls on the threads of an OpenMP runtime."""

import ctypes
import sys
from textwrap import dedent

import numpy as np
import pytest
from support.cells import VARIANTS, make_layer
from support.processes import run_script

import rnnfast.threads

try:
    ctypes.CDLL("libgomp.so.1")
except OSError:
    pytest.skip("needs libgomp", allow_module_level=True)
if not sys.platform.startswith("linux"):
    pytest.skip("runtimes are found on Linux", allow_module_level=True)

PROBLEM = """
import ctypes, os, threading, time
import numpy as np
import rnnfast.threads
from support.signals import handle_in_call

gomp = ctypes.CDLL("libgomp.so.1")
gomp.omp_set_num_threads(2)
rnnfast.set_num_threads(3)
layer = rnnfast.LSTM(16, 64, num_layers=2, bidirectional=True, rng=0)
x = np.random.default_rng(0).standard_normal((20, 64, 16)).astype(np.float32)

def results():
    y, (h, c), tape = layer.forward(x)
    grads = layer.backward(tape, y)
    return [array.tobytes() for array in (layer(x)[0], y, h, c, grads.x, *grads.parameters.values())]

def tasks():
    return len(os.listdir("/proc/self/task"))

"""


def run(script):
    return run_script(PROBLEM + dedent(script))


@pytest.fixture(autouse=True)
def own_threads():
    yield
    rnnfast.threads.use("rnnfast")


def test_unknown_threads_are_refused():
    with pytest.raises(ValueError, match="threads is 'tbb'; expected 'rnnfast' or 'openmp'"):
        rnnfast.threads.use("tbb")


def test_calls_run_on_the_team_of_the_runtime():
    """It has two threads, and rnnfast could have three."""
    run("""
    rnnfast.threads.use("openmp")
    on_openmp = results()
    assert tasks() == 2, tasks()
    rnnfast.threads.use("rnnfast")
    assert results() == on_openmp
    assert tasks() == 4, tasks()
    rnnfast.set_num_threads(1)
    assert results() == on_openmp
    """)


def test_own_threads_where_the_team_is_too_large():
    run("""
    rnnfast.threads.use("openmp")
    expected = results()
    gomp.omp_set_num_threads(4)
    assert results() == expected
    assert tasks() == 4, tasks()  # rnnfast's, and OpenMP's that came before
    """)


def test_one_thread_where_the_team_has_one():
    run("""
    gomp.omp_set_num_threads(1)
    rnnfast.threads.use("openmp")
    expected = results()
    assert tasks() == 1, tasks()
    gomp.omp_set_num_threads(2)
    assert results() == expected
    assert tasks() == 2, tasks()
    """)


def test_any_number_of_threads_is_no_flag():
    run("""
    rnnfast.threads.use("openmp")
    rnnfast.threads.use("rnnfast")
    for count in 2**20, 2**20 + 3, 2**31 - 1:
        rnnfast._core.set_num_threads(count)  # as threadpoolctl does, without the limit of rnnfast.set_num_threads
        results()
        assert tasks() > 2, tasks()  # its own threads, not the team of two
    """)


def test_another_caller_at_the_same_time_runs_alone():
    run("""
    rnnfast.threads.use("openmp")
    expected, wrong = results(), []
    def work():
        for _ in range(30):
            if results() != expected:
                wrong.append(1)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not wrong
    """)


def test_forked_children_use_their_own_threads():
    """Most OpenMP runtimes hang in a child whose parent has used them."""
    run("""
    rnnfast.threads.use("openmp")
    expected = results()
    child = os.fork()
    if child == 0:
        os._exit(0 if results() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert results() == expected
    """)


def test_signals_end_a_call():
    run("""
    rnnfast.threads.use("openmp")
    expected = results()
    def handler(*_):
        raise KeyboardInterrupt
    handle_in_call(handler)
    large, many = rnnfast.LSTM(64, 512, rng=0), np.zeros((4000, 16, 64), np.float32)
    begin = time.perf_counter()
    try:
        large(many)
    except KeyboardInterrupt:
        assert time.perf_counter() - begin < 10
    else:
        raise AssertionError
    assert results() == expected
    """)


def test_a_child_of_a_signal_handler_ends():
    """The runtime would wait for threads that exist only in the parent."""
    assert "forked this process" in run("""
    os.dup2(1, 2)
    rnnfast.threads.use("openmp")
    large, many = rnnfast.LSTM(64, 512, rng=0), np.zeros((4000, 16, 64), np.float32)
    def handler(*_):
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
            os._exit(0)
    handle_in_call(handler)
    large(many)
    """)


def test_layers_of_torch_use_its_threads():
    pytest.importorskip("torch")
    run("""
    import torch
    from rnnfast.backends.torch import LSTM

    torch.set_num_threads(2)
    torch.ones(2000, 2000) @ torch.ones(2000, 2000)
    layer, x, before = LSTM(16, 64), torch.ones(20, 64, 16), tasks()
    layer(x)[0].sum().backward()
    with torch.inference_mode():
        layer(x)
    assert tasks() == before
    """)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_cell_has_the_same_bits(variant, threads, rng):
    layer = make_layer(variant, 16, 130)
    x = rng.standard_normal((12, 40, 16)).astype(np.float32)
    threads(1)
    expected = layer(x)[0].tobytes()
    threads(8)
    rnnfast.threads.use("openmp")
    assert layer(x)[0].tobytes() == expected
