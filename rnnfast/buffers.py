"""Buffers for the engine: aligned to cache lines, on huge pages if they are large, and reused.

The operating system clears every page that it allocates, so large buffers are returned to a pool and reused. Measured:
with the pool, training an LSTM with T=25, N=32, H=1024 takes 5% less time than with new memory. Pools are compiled: no
bytecode runs when the last reference to a buffer is deleted, so no signal handler can raise there.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any, Self

import numpy as np

from . import _core
from ._types import Array
from .initializers import blocks

__all__ = ["LARGE", "LINE", "BufferPool", "ResultPool", "empty"]

LINE = 64  # bytes in a cache line, to which buffers are aligned
LARGE = 1 << 20  # bytes; the memory of larger results is reused
HUGE_PAGE = 1 << 21
# By default Python maps shared memory, for which there are no huge pages. Windows has no such flags.
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def empty(nbytes: int) -> Array:
    """Return an uninitialised flat buffer, aligned to a cache line, and on huge pages if it is large.

    Raises
    ------
    MemoryError
        If `nbytes` of memory are not available.
    """
    if nbytes < HUGE_PAGE:
        buffer = np.empty(nbytes + LINE, np.uint8)
        start = -_core.address(buffer) % LINE
        return buffer[start : start + nbytes]
    try:
        pages = mmap.mmap(-1, -(-nbytes // HUGE_PAGE) * HUGE_PAGE, **PRIVATE)
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(f"cannot allocate a buffer of {nbytes} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8, nbytes)


class BufferPool(_core.BufferPool):
    """A free list of reusable buffers, for any number of threads.

    A pool keeps the buffers that were released last: at most `most`, and at most 128 MiB together or a single larger
    one. A burst of calls or tapes may need much more, and later calls only a little.

    Parameters
    ----------
    most : int
        Maximum number of buffers in the pool.
    """

    def __new__(cls, most: int) -> Self:
        return super().__new__(cls, most, empty)


class ResultPool(BufferPool):
    """A pool for arrays returned to the caller. The memory of large arrays is reused once no view of it exists."""

    def bytes(self, nbytes: int) -> Array:
        """Return an uninitialised flat buffer."""
        return empty(nbytes) if nbytes < LARGE else np.asarray(self.lease(nbytes))

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an uninitialised array."""
        nbytes = math.prod(shape) * dtype.itemsize
        return np.empty(shape, dtype) if nbytes < LARGE else self.bytes(nbytes).view(dtype).reshape(shape)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array of zeros."""
        if math.prod(shape) * dtype.itemsize < LARGE:
            return np.zeros(shape, dtype)
        array = self.empty(shape, dtype)
        flat = array.reshape(-1)
        for part in blocks(flat.size):
            flat[part] = 0
        return array
