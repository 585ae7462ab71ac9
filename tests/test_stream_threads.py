"""Streams: memory, threads and signals."""

import gc
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.cells import make_layer
from support.processes import run_script
from support.streams import H, I, bits, sequence, snapshot

import rnnfast


@pytest.mark.parametrize("N", [1, 3])
def test_steps_with_out_allocate_nothing(N):
    stream, x, out = (
        make_layer("lstm", I, H, num_layers=2).stream(N),
        np.ones((N, I), np.float32),
        np.empty((N, H), "f4"),
    )

    def steps(count):
        for _ in range(count):
            stream.step(x, out)

    steps(100)
    tracemalloc.start()
    steps(10)
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    steps(20_000)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 500
    assert peak - before < 2000


def test_nothing_grows(rng):
    """Memory does not grow with converted steps, chunks, states or pools."""
    layer = make_layer("gru", I, H)
    stream, pool = layer.stream(3), rnnfast.StreamPool(layer, 3)
    x = sequence(rng, 4, 3)

    def work(count):
        for _ in range(count):
            ids = [pool.join() for _ in range(3)]
            stream.step(x[0].tolist())
            stream.step(x[0].astype(">f4"), out=np.empty((3, 2 * H), np.float32)[:, ::2])
            stream(x)
            stream.state = stream.state
            stream.reset(1)
            pool.step(ids, x[0])
            with pytest.raises(ValueError, match="x_t"):
                stream.step(x)
            with pytest.raises(KeyError):
                pool.step([-1], x[0])
            for id in ids:  # noqa: A001
                pool.leave(id)

    def traced():
        gc.collect()  # what the interpreter keeps for later too
        return tracemalloc.get_traced_memory()[0]

    work(20)
    tracemalloc.start()
    work(5)
    before = traced()
    work(300)
    after = traced()
    tracemalloc.stop()
    assert after - before < 5000


def test_different_streams_in_different_threads(rng, threads):
    threads(2)
    layer = make_layer("lstm", 16, 64)
    x = sequence(rng, 300, 2, features=16)
    expected, _ = layer(x)
    pool = rnnfast.StreamPool(layer, 16)

    def work(k):
        stream = layer.stream(2)
        ids = [pool.join(), pool.join()]
        for x_t, y_t in zip(x, expected, strict=True):
            assert stream.step(x_t).tobytes() == y_t.tobytes()
            assert (
                pool.step(ids[:: 1 - 2 * (k % 2)], x_t[:: 1 - 2 * (k % 2)]).tobytes()
                == y_t[:: 1 - 2 * (k % 2)].tobytes()
            )

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(work, range(8)))


def test_one_stream_in_two_threads(rng):
    """Each step either completes or is rejected."""
    layer = make_layer("lstm", 400, 500)
    stream, x = layer.stream(8), sequence(rng, 1, 8, features=400)
    done, refused = [], []

    def work(_):
        for k in range(25):
            try:
                if k % 5:
                    stream.step(x[0])
                    done.append(1)
                else:
                    stream(x)
                    done.append(1)
            except RuntimeError as error:
                refused.append(str(error))
            time.sleep(0)

    with ThreadPoolExecutor(3) as workers:
        list(workers.map(work, range(3)))
    assert len(done) + len(refused) == 75
    assert all("in use by another thread" in text for text in refused)
    _, state = layer(np.repeat(x, len(done), axis=0))
    assert bits(stream.state) == bits(state)


def test_a_stream_at_work_refuses():
    layer = make_layer("lstm", I, H)
    stream = layer.stream()
    x = np.ones(I, np.float32)
    stream.step(x)
    before = snapshot(stream)
    calls = [
        lambda: stream.step(x),
        lambda: stream.step(x.tolist()),
        lambda: stream(x[None]),
        lambda: stream.state,
        lambda: setattr(stream, "state", None),
        stream.reset,
    ]

    def at_work(*_):
        for call in calls:
            with pytest.raises(RuntimeError, match="in use by another thread: make a stream for each thread"):
                call()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream._step.update(at_work)
    assert snapshot(stream) == before
    for call in calls:
        call()


def test_interrupted_steps_leave_the_state():
    """After KeyboardInterrupt the state is that of a whole number of steps."""
    run_script(
        """
        import signal, threading
        import numpy as np
        import rnnfast

        layer = rnnfast.LSTM(8, 200, rng=0)
        stream, x, chunk = layer.stream(64), np.ones((64, 8), np.float32), np.ones((100, 64, 8), np.float32)
        for call in (lambda: stream.step(x), lambda: stream(chunk)):
            for k in range(3):
                threading.Timer(0.05 + 0.01 * k, signal.raise_signal, (signal.SIGINT,)).start()
                try:
                    while True:
                        kept = stream.state
                        call()
                except KeyboardInterrupt:
                    pass
                after = stream.state
                stream.state = kept
                call()
                once = stream.state
                assert any(all((a == b).all() for a, b in zip(after, state)) for state in (kept, once)), k
        """
    )
