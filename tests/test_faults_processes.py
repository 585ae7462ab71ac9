"""Processes that fork, are started by multiprocessing or end while threads are in calls, and subinterpreters."""

import os

import pytest
from support.processes import run_module, run_script


def check_endings(forks, spawns, exits):
    [*found, summary] = run_module("support.endings", forks, spawns, exits).splitlines()
    assert not found, "\n".join([*found, summary])
    assert summary.endswith(": 0 failed")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_no_process_hangs():
    check_endings(6, 1, 9)


@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_no_process_of_a_thousand_hangs():
    check_endings(700, 50, 250)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_child_of_a_signal_handler_raises_instead_of_waiting():
    run_script("""
    from support.endings import fork_in_handler, status_of

    for _ in range(3):
        assert status_of(fork_in_handler()) == 0
    """)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_streams_that_another_thread_uses_at_a_fork_are_free_in_the_child():
    """Their state is the one before the call that the parent's thread makes."""
    run_script("""
    import threading

    import numpy as np
    from support.endings import fork, status_of

    import rnnfast

    class Slow:
        def __array__(self, dtype=None, copy=None):
            converting.set()
            forked.wait(100)
            return x

    def check(use, step, wait):
        thread = threading.Thread(target=use)
        thread.start()
        wait()
        child = fork(lambda: [step().tobytes() for _ in range(2)] == expected)
        try:
            step()
            raise AssertionError("the step of the other thread is not at work")
        except RuntimeError as error:
            assert "in use by another thread" in str(error)
        assert status_of(child) == 0
        forked.set()
        thread.join()
        step()

    def wait_for_the_stream():
        while True:
            try:
                stream.state
            except RuntimeError:
                return

    layer, x = rnnfast.LSTM(3, 256, rng=0), np.ones((2, 3), np.float32)
    expected = [y.tobytes() for y in layer(np.stack([x, x]))[0]]
    converting, forked = threading.Event(), threading.Event()
    pool = rnnfast.StreamPool(layer, 2)
    ids = [pool.join(), pool.join()]
    check(lambda: pool.step(ids, Slow()), lambda: pool.step(ids, x), converting.wait)
    stream, long = layer.stream(2), np.ones((50_000, 2, 3), np.float32)
    check(lambda: stream(long), lambda: stream.step(x), wait_for_the_stream)
    """)


def test_second_interpreter_is_refused():
    """NumPy can be imported by one interpreter of a process only, and so can rnnfast. It goes on working there."""
    found = run_script("""
    import sys
    import textwrap

    import numpy as np
    import rnnfast

    try:
        import _interpreters as interpreters  # CPython 3.13
    except ImportError:
        import _xxsubinterpreters as interpreters

    def results():
        return rnnfast.GRU(3, 5, rng=0)(np.ones((2, 2, 3), np.float32))[0].tobytes()

    expected = results()
    for _ in range(2):
        interpreters.run_string(interpreters.create(), textwrap.dedent(f'''
            import os, sys
            sys.path[:] = {sys.path}
            try:
                import rnnfast
            except ImportError:
                os.write(1, b"refused ")
            '''))
        assert results() == expected
    """)
    assert found == "refused refused "
