"""Pools of buffers and of results: contents, ownership and lifetime."""

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


def test_pools_are_bounded_and_fit():
    pool = BufferPool(2)
    for size in (10, 20, 30 * LARGE):
        pool.release(np.empty(size, np.uint8))
    assert [len(buffer) for buffer in pool] == [20, 30 * LARGE]
    assert len(pool.acquire(15)) == 20
    assert len(pool.acquire(15)) == 15  # not the large one, which another call may need
    assert len(pool.acquire(30 * LARGE)) == 30 * LARGE
    assert len(pool) == 0
