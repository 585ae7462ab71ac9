"""threadpoolctl reports and limits rnnfast's threads once they are registered."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from support.processes import python

import rnnfast
import rnnfast.threads

threadpoolctl = pytest.importorskip("threadpoolctl", minversion="3.2", reason="threadpoolctl 3.2 is not installed")


@pytest.fixture
def listed(threads):
    """A function that returns threadpoolctl's entries for rnnfast, with 3 threads."""
    rnnfast.threads.register()
    threads(3)
    return lambda: [entry for entry in threadpoolctl.threadpool_info() if entry["user_api"] == "rnnfast"]


def test_it_is_registered_once(listed, monkeypatch):
    monkeypatch.setattr(threadpoolctl, "register", lambda _: pytest.fail("it was registered again"))
    rnnfast.threads.register()
    [entry] = listed()
    assert entry["internal_api"] == "rnnfast"
    assert entry["num_threads"] == 3
    assert entry["version"] == rnnfast.__version__
    assert entry["filepath"] == rnnfast.functional._core.__file__


@pytest.mark.parametrize("limits", [{"limits": 1}, {"limits": 1, "user_api": "rnnfast"}, {"limits": {"rnnfast": 1}}])
def test_limits_act_and_are_undone(listed, limits):
    with threadpoolctl.threadpool_limits(**limits):
        assert rnnfast.get_num_threads() == listed()[0]["num_threads"] == 1
    assert rnnfast.get_num_threads() == listed()[0]["num_threads"] == 3


def test_limits_of_others_leave_it_alone(listed):
    for user_api in ("blas", "openmp"):
        with threadpoolctl.threadpool_limits(1, user_api=user_api):
            assert listed()[0]["num_threads"] == 3


def test_limits_within_each_other(listed):
    with threadpoolctl.threadpool_limits(2):
        with threadpoolctl.threadpool_limits(1):
            assert listed()[0]["num_threads"] == 1
        assert listed()[0]["num_threads"] == 2
    assert listed()[0]["num_threads"] == 3


def test_invalid_thread_counts_change_nothing(listed):
    for nothing in (0, -1):
        with threadpoolctl.threadpool_limits(nothing, user_api="rnnfast"):
            assert listed()[0]["num_threads"] == 3


def test_shows_the_number_of_threads_set_in_python(listed):
    rnnfast.set_num_threads(5)
    assert listed()[0]["num_threads"] == 5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc, which only Linux has")
def test_limit_keeps_a_call_from_starting_threads():
    code = (
        "import os, numpy, rnnfast.threads, threadpoolctl; rnnfast.threads.register(); rnnfast.set_num_threads(3)\n"
        "layer, x = rnnfast.LSTM(64, 64, rng=0), numpy.ones((64, 32, 64), numpy.float32)\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = count()\n"
        "with threadpoolctl.threadpool_limits(1, user_api='rnnfast'): layer(x)\n"
        "limited = count(); layer(x); print(limited - before, count() - before)"
    )
    assert python(code=code).stdout.split() == ["0", "2"]


def test_results_are_the_same_under_a_limit(listed):  # noqa: ARG001
    layer, x = rnnfast.GRU(16, 32, rng=0), np.random.default_rng(0).standard_normal((9, 7, 16))
    expected = layer(x)[0]
    with threadpoolctl.threadpool_limits(1):
        assert (layer(x)[0] == expected).all()


def test_threads_of_python_may_ask_at_once(listed):
    def look():
        for _ in range(50):
            with threadpoolctl.threadpool_limits(3, user_api="rnnfast"):
                assert listed()[0]["num_threads"] == 3

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    for looker in lookers:
        looker.join()


def test_import_of_rnnfast_does_not_import_it():
    assert (
        python(code="import sys, rnnfast, rnnfast.threads; print('threadpoolctl' in sys.modules)").stdout == "False\n"
    )


@pytest.mark.parametrize("old", ["None", "types.ModuleType('threadpoolctl')"])
def test_an_old_version_says_what_to_install(old):
    code = f"import sys, types, rnnfast.threads; sys.modules['threadpoolctl'] = {old}; rnnfast.threads.register()"
    result = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1].endswith("pip install 'threadpoolctl>=3.2'")
