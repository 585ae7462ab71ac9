"""Memory that Python and NumPy allocate."""

import tracemalloc


def peak_memory(call):
    """The most bytes that are allocated at a time during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
