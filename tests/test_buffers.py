"""Pools of buffers and of results: contents, ownership and lifetime."""

import gc
import sys

import numpy as np
import pytest

from rnnfast.buffers import LARGE, LINE, BufferPool, ResultPool

FLOAT32 = np.dtype(np.float32)
SHAPES = [(3, 5), (LARGE // 4, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=["small", "large"])
def test_zeros_are_zeros_on_memory_that_was_written_to(shape):
    results = ResultPool(4)
    for _ in range(3):
        array = results.zeros(shape, FLOAT32)
        assert array.shape == shape
        assert array.dtype == FLOAT32
        assert not array.any()
        array.fill(7)
        del array


def test_memory_returns_to_the_pool_with_the_last_view():
    results = ResultPool(4)
    array = results.empty(SHAPES[1], FLOAT32)
    place, view = array.ctypes.data, array[1:, 1]
    del array
    assert len(results) == 0
    assert results.empty(SHAPES[1], FLOAT32).ctypes.data != place
    del view
    assert place in {buffer.ctypes.data for buffer in results}


@pytest.mark.parametrize("nbytes", [1, LARGE - 1, LARGE, 3 * LARGE])
def test_bytes_begin_at_a_cache_line(nbytes):
    results = ResultPool(2)
    for _ in range(2):
        buffer = results.bytes(nbytes)
        assert buffer.shape == (nbytes,)
        assert buffer.ctypes.data % LINE == 0
        buffer.fill(1)
        del buffer
    assert len(results) == (nbytes >= LARGE)


def test_small_results_are_numpys_own():
    results = ResultPool(4)
    array = results.empty((LARGE // 4 - 1,), FLOAT32)
    assert array.flags.owndata
    del array
    assert len(results) == 0


def test_pools_are_bounded_in_bytes():
    """A pool keeps at most 128 MiB, or a single larger buffer."""
    pool = BufferPool(4)
    for size in (100, 30, 50, 40):
        pool.release(np.empty(size * LARGE, np.uint8))
    assert [len(buffer) // LARGE for buffer in pool] == [30, 50, 40]
    pool.release(np.empty(300 * LARGE, np.uint8))
    assert [len(buffer) // LARGE for buffer in pool] == [300]
    pool.release(np.empty(LARGE, np.uint8))
    assert [len(buffer) // LARGE for buffer in pool] == [1]
    pool.clear()
    assert len(pool) == 0
    assert pool.pop() is None


def test_leases_release_their_buffer_without_bytecode():
    pool = BufferPool(2)
    lease = pool.lease(100)
    assert np.asarray(lease).shape == (100,)
    assert len(pool) == 0
    calls = []
    sys.setprofile(lambda *event: calls.append(event) if event[1] == "call" else None)
    del lease
    sys.setprofile(None)
    assert len(pool) == 1
    assert not calls


def test_results_without_memory_only_raise(monkeypatch):
    """A result for which there is no memory prints nothing."""
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    for call in (ResultPool(4).empty, ResultPool(4).zeros):
        with pytest.raises(MemoryError):
            call((1 << 50,), FLOAT32)
    gc.collect()
    assert not ignored


def test_pools_are_bounded_and_fit():
    pool = BufferPool(2)
    for size in (10, 20, 30 * LARGE):
        pool.release(np.empty(size, np.uint8))
    assert [len(buffer) for buffer in pool] == [20, 30 * LARGE]
    assert len(pool.acquire(15)) == 20
    assert len(pool.acquire(15)) == 15  # not the large one, which another call may need
    assert len(pool.acquire(30 * LARGE)) == 30 * LARGE
    assert len(pool) == 0
