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
