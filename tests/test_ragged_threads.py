"""Arguments that another thread changes during a call: any result may come out, but memory stays intact."""

import numpy as np
import pytest
from support.processes import run_script

from rnnfast import ragged


@pytest.mark.parametrize("name", ["lengths", "mask", "reset"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_patterns_are_private_copies(name, batch_first):
    T, N = 6, 4
    given = (
        np.arange(N) + 1 if name == "lengths" else np.arange(T * N).reshape((N, T) if batch_first else (T, N)) % 3 == 0
    )
    pattern = ragged.read(T, N, batch_first, **{"lengths": None, "mask": None, "reset": None, name: given})
    own = getattr(pattern, name)
    assert own is not None
    assert not np.shares_memory(own, given)


class Shifting(np.ndarray):
    """Integers that another thread seems to change as soon as they have been compared."""

    def __lt__(self, other):
        result = super().__lt__(other)
        self.view(np.ndarray)[...] = 10**6
        return result

    __gt__ = __lt__


def test_the_values_that_are_checked_are_those_that_are_used():
    lengths = np.array([1, 2, 3]).view(Shifting)
    pattern = ragged.read(5, 3, False, lengths, None, None)
    assert pattern.lengths.max() <= 5


@pytest.mark.parametrize("which", ["mask", "reset", "lengths", "mask and reset", "ids", "batch_sizes"])
def test_arguments_that_another_thread_changes(which):
    """Run calls for a while as another thread writes to their arguments."""
    script = f"""
    import threading, time
    import numpy as np
    import rnnfast
    from rnnfast import functional

    rng, which = np.random.default_rng(0), {which!r}
    T, N = 300, 200
    layer, embedding = rnnfast.GRU(1, 2, rng=0), rnnfast.Embedding(50, 3, rng=0)
    x, done = np.zeros((T, N, 1), np.float32), threading.Event()
    flags = {{name: rng.random((T, N)) < 0.5 for name in ("mask", "reset") if name in which}}
    ids, sizes = np.zeros(100_000, np.intp), np.sort(rng.integers(1, 40, 200))[::-1].copy()
    lengths = rng.integers(0, T + 1, N)

    def disturb():
        while not done.is_set():
            for array in flags.values():
                np.logical_not(array, out=array)
            lengths[:] = 10**9
            ids[:] = 10**9
            sizes[:] = 60
            lengths[:] = 3
            ids[:] = 1
            sizes[:] = 2

    def call():
        if which == "ids":
            y, tape = embedding.forward(ids)
            embedding.backward(tape, y)
        elif which == "batch_sizes":
            functional.packed_order(sizes)
        else:
            arguments = flags or {{"lengths": lengths}}
            y, state, tape = layer.forward(x, **arguments)
            layer.backward(tape, y, state)

    thread = threading.Thread(target=disturb)
    thread.start()
    end, calls = time.perf_counter() + 0.3, 0
    while time.perf_counter() < end:
        try:
            call()
        except (ValueError, IndexError, MemoryError):  # a value out of range
            pass
        calls += 1
    done.set()
    thread.join()
    """
    run_script(script)
