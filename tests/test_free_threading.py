"""Threads that share layers, tapes, streams, pools, optimizers and settings.

With a GIL, threads switch every few bytecodes. A free-threaded interpreter runs them at the same time: python3.14t -m
pytest tests/test_free_threading.py --full
"""

import sysconfig
from functools import partial

import numpy as np
import pytest
from support.cells import make_layer
from support.compare import members
from support.concurrency import in_threads
from support.processes import run_script
from support.streams import H, I, bits, sequence

import rnnfast
from rnnfast import functional, training

COUNT = 4  # threads
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


@pytest.fixture(params=[60, pytest.param(2000, marks=pytest.mark.full)])
def rounds(request):
    return request.param


def bits_of_call(results):
    y, state = results
    return [y.tobytes(), *bits(state)]


def bits_of_gradients(gradients):
    every = [gradients.x, *members(gradients.state), *gradients.parameters.values()]
    return [array.tobytes() for array in every if array is not None]


@pytest.mark.skipif(not FREE_THREADED, reason="this interpreter always has a GIL")
def test_the_import_leaves_the_gil_disabled():
    run_script("import sys, rnnfast.reference; assert not sys._is_gil_enabled()")


# --- layers


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh_leaky"])
def test_calls_of_one_layer(rng, cell, rounds):
    """Inference, training and ragged batches of several shapes, with one thread or two for each call."""
    layer = make_layer(cell, I, H, num_layers=2, bidirectional=True)
    xs = [sequence(rng, T, N) for T, N in ((1, 1), (7, 2), (3, 5), (1, 4))]
    tasks = []
    for x in xs:
        lengths = np.arange(x.shape[1]) % (x.shape[0] + 1)
        tasks.append(lambda x=x: bits_of_call(layer(x)))
        tasks.append(lambda x=x, lengths=lengths: bits_of_call(layer(x, lengths=lengths)))
        tasks.append(lambda x=x: bits_of_gradients(gradients_of(layer, x)))
        tasks.append(lambda x=x: bits_of_gradients(gradients_of(layer, x, checkpoint=2)))
    expected = [task() for task in tasks]

    def work(k):
        for i in range(rounds):
            at = (5 * k + i) % len(tasks)
            assert tasks[at]() == expected[at]

    in_threads(COUNT, work)


def refused(text, call):
    """Return whether a call raises an error with a text. Any other error is a failure."""
    try:
        call()
    except (KeyError, RuntimeError) as error:
        if text in str(error):
            return True
        raise
    return False


def gradients_of(layer, x, **options):
    y, state, tape = layer.forward(x, **options)
    return layer.backward(tape, y, state)


def test_calls_while_others_freeze_and_unfreeze(rng, rounds):
    layer, other = make_layer("lstm", I, H), rnnfast.Linear(I, H, rng=0)
    xs = [sequence(rng, T, 3) for T in (1, 2, 5)]
    expected = [bits_of_call(layer(x)) for x in xs]
    products = [other(x).tobytes() for x in xs]

    def work(k):
        for i in range(rounds):
            if k == 0:
                (layer.freeze, layer.unfreeze, other.freeze, other.unfreeze)[i % 4]()
            else:
                at = (k + i) % len(xs)
                assert bits_of_call(layer(xs[at])) == expected[at]
                assert other(xs[at]).tobytes() == products[at]

    in_threads(COUNT, work)


def test_frozen_calls_of_changing_shapes(rng, rounds):
    """Each shape replaces the prepared call that other threads are running."""
    layer = make_layer("gru", I, H)
    layer.freeze()
    xs = [sequence(rng, T, N) for T in (1, 2) for N in (1, 2, 3)]
    expected = [bits_of_call(layer(x)) for x in xs]

    def work(k):
        for i in range(4 * rounds):
            at = (k + i // 2) % len(xs)
            assert bits_of_call(layer(xs[at])) == expected[at]

    in_threads(COUNT, work)


def test_large_results_do_not_share_memory(rng):
    """Results of 1 MiB and more come from a pool; those that are alive in one thread are not given to another."""
    layer = make_layer("rnn_tanh", 2, 256)
    xs = [sequence(rng, 520, 2, features=2) for _ in range(COUNT)]
    expected = [layer(x)[0].copy() for x in xs]

    def work(k):
        kept = []
        for i in range(8):
            y, _ = layer(xs[k])
            kept.append(y)
            if i % 3 == 2:
                assert all(np.array_equal(y, expected[k]) for y in kept)
                del kept[:2]

    in_threads(COUNT, work)


def test_one_tape_in_many_threads(rng, rounds):
    layer = make_layer("lstm", I, H, num_layers=2, dropout=0.3)
    y, state, tape = layer.forward(sequence(rng, 4, 3))
    expected = bits_of_gradients(layer.backward(tape, y, state))

    def work(_):
        for _ in range(rounds):
            assert bits_of_gradients(layer.backward(tape, y, state)) == expected

    in_threads(COUNT, work)


def test_tapes_that_end_in_other_threads(rng, rounds):
    """A buffer returns to its pool in the thread that drops the last reference to a tape."""
    layer = make_layer("gru", I, H)
    x = sequence(rng, 3, 2)
    y, state, tape = layer.forward(x)
    expected, shelf = bits_of_gradients(layer.backward(tape, y, state)), [tape] * COUNT

    def work(k):
        for i in range(rounds):
            shelf[(k + i) % COUNT] = layer.forward(x)[2]
            assert bits_of_gradients(layer.backward(shelf[(k - i) % COUNT], y, state)) == expected

    in_threads(COUNT, work)


def test_dropout_masks_of_one_generator(rng, rounds):
    """Threads draw from one generator, so their masks differ; none of them is torn."""
    layer = make_layer("rnn_tanh", I, 64, num_layers=2, dropout=0.5)
    x = sequence(rng, 1, 1)

    def work(_):
        return [layer.forward(x)[0].tobytes() for _ in range(rounds)]

    drawn = [y for results in in_threads(COUNT, work) for y in results]
    assert len(set(drawn)) == len(drawn)


# --- streams and pools


@pytest.mark.parametrize("N", [1, 3])
def test_one_stream_in_many_threads(rng, N, rounds):
    """Each step is either made or refused; none is lost, and none is made twice."""
    layer = make_layer("lstm", I, H)
    stream, x = layer.stream(N), sequence(rng, 1, N)[0]

    def work(k):
        made = 0
        for i in range(20 * rounds):
            call = partial(stream.step, x) if (i + k) % 10 else partial(stream, x[np.newaxis])
            made += not refused("in use by another thread", call)
        return made

    made = sum(in_threads(COUNT, work))
    _, state = layer(np.repeat(x[np.newaxis], made, axis=0))
    assert bits(stream.state) == bits(state)


def test_streams_of_one_layer(rng, rounds):
    layer = make_layer("gru", I, H, num_layers=2)
    x = sequence(rng, rounds, 2)
    expected = layer(x)[0]

    def work(_):
        stream = layer.stream(2)
        for x_t, y_t in zip(x, expected, strict=True):
            assert stream.step(x_t).tobytes() == y_t.tobytes()

    in_threads(2 * COUNT, work)


def test_a_pool_whose_streams_come_and_go(rng, rounds):
    """Slots that one thread frees are used by others at once; a stream never sees the state of another."""
    layer = make_layer("lstm", I, H)
    pool = rnnfast.StreamPool(layer, 2 * COUNT)
    x = sequence(rng, 3, 2)
    expected, state = layer(x)
    last = [[member[:, n].tobytes() for member in state] for n in range(2)]

    def work(k):
        seen = []
        for _ in range(rounds):
            ids = [pool.join(), pool.join()]
            seen += ids
            order = slice(None, None, 1 - 2 * (k % 2))
            for x_t, y_t in zip(x, expected, strict=True):
                assert pool.step(ids[order], x_t[order]).tobytes() == y_t[order].tobytes()
            for stream, state in zip(ids, last, strict=True):
                assert [member.tobytes() for member in pool.leave(stream)] == state
        return seen

    ids = [stream for seen in in_threads(COUNT, work) for stream in seen]
    assert len(set(ids)) == len(ids) == 2 * COUNT * rounds
    assert len(pool) == 0
    assert len({pool.join() for _ in range(pool.capacity)}) == pool.capacity
    with pytest.raises(RuntimeError, match="full"):
        pool.join()


def test_a_full_pool(rounds):
    """Threads compete for the last places: never more streams than the capacity, and no place is lost."""
    pool = rnnfast.StreamPool(make_layer("gru", I, H), 2)

    def work(_):
        for _ in range(rounds):
            ids = []
            if not refused("full", lambda ids=ids: ids.append(pool.join())):
                assert 1 <= len(pool) <= pool.capacity
                pool.leave(*ids)

    in_threads(COUNT, work)
    assert len(pool) == 0
    assert len({pool.join(), pool.join()}) == 2


def test_one_stream_of_a_pool_in_many_threads(rng, rounds):
    """A step of a stream that another thread is stepping is refused, as is its end; no step is lost."""
    layer = make_layer("lstm", I, 64)
    pool = rnnfast.StreamPool(layer, 1)
    shared, x = pool.join(), sequence(rng, 1, 1)[0]

    def work(_):
        made = 0
        for _ in range(4 * rounds):
            made += not refused("thread", lambda: pool.step([shared], x))
        return made

    made = sum(in_threads(COUNT, work))
    _, state = layer(np.repeat(x[np.newaxis], made, axis=0))
    assert [member.tobytes() for member in pool.leave(shared)] == [member[:, 0].tobytes() for member in state]


def test_streams_that_leave_while_others_step(rng, rounds):
    """`leave` of a stream in a step is refused; a new stream in its place starts from its own state."""
    layer = make_layer("gru", I, 64)
    pool = rnnfast.StreamPool(layer, 2)
    shared, x = [pool.join()], sequence(rng, 1, 1)[0]
    zeros = np.zeros((1, 64), np.float32).tobytes()

    def work(k):
        for _ in range(4 * rounds):
            if k:
                refused("has left", lambda: refused("thread", lambda: pool.step(shared, x)))
            elif not refused("thread", lambda: pool.leave(shared[0])):
                assert pool.leave(pool.join()).tobytes() == zeros
                shared[0] = pool.join()

    in_threads(3, work)


# --- settings


def linear_bits(layer, x):
    y, tape = layer.forward(x)
    return [layer(x).tobytes(), y.tobytes(), *bits_of_gradients(layer.backward(tape, y))]


def test_settings_that_change_during_calls(rng, threads, rounds):
    """The number of threads and the instruction set may change at any time; each result is that of one of the sets."""
    x, names, before = sequence(rng, 9, 40), functional.isas(), make_layer("gru", 2, 3).engine.isa
    expected, layers = {}, {}
    for isa in names:
        with functional.use_isa(isa):
            layers[isa] = make_layer("lstm", I, H), rnnfast.Linear(I, H, rng=0)
            expected[isa] = bits_of_call(layers[isa][0](x)), linear_bits(layers[isa][1], x)
            layers[isa][1].freeze()

    def work(k):
        for i in range(rounds):
            if k == 0:
                threads(1 + i % 3)
                assert functional.get_num_threads() in (1, 2, 3)
            elif k == 1:
                with functional.use_isa(names[i % len(names)]):
                    made = make_layer("lstm", I, H)
                assert bits_of_call(made(x)) == expected[made.engine.isa][0]
            else:
                isa = names[(i + k) % len(names)]
                recurrent, linear = layers[isa]
                assert (bits_of_call(recurrent(x)), linear_bits(linear, x)) == expected[isa]
                assert make_layer("gru", 2, 3).engine.isa in names

    in_threads(COUNT, work)
    assert make_layer("gru", 2, 3).engine.isa == before


# --- training


def test_training_in_many_threads(rng, rounds):
    """Each thread has its layer and optimizer; the layers share nothing that changes."""
    x, target = sequence(rng, 4, 3), rng.standard_normal((4, 3, H)).astype(np.float32)
    steps = max(8, rounds // 8)

    def train(_):
        layer = make_layer("gru", I, H)
        optimizer = training.Adam(layer.parameters)
        for _ in range(steps):
            y, _, tape = layer.forward(x)
            gradients = layer.backward(tape, y - target)
            training.clip_grad_norm(gradients.parameters, 1.0)
            optimizer.step(gradients.parameters)
        return [array.tobytes() for array in layer.parameters.values()]

    expected = train(0)
    assert in_threads(COUNT, train) == [expected] * COUNT


def test_gradients_of_shards(rng, rounds):
    """Threads compute the gradients of parts of a batch with one layer; their sum is that of the batch."""
    layer = make_layer("lstm", I, H, dtype=np.float64)
    x, dy = sequence(rng, 4, 2 * COUNT, np.float64), rng.standard_normal((4, 2 * COUNT, H))
    whole = layer.backward(layer.forward(x)[2], dy).parameters

    def work(k):
        rows = slice(2 * k, 2 * k + 2)
        for _ in range(max(4, rounds // 16)):
            gradients = layer.backward(layer.forward(x[:, rows])[2], dy[:, rows]).parameters
        return gradients

    parts = in_threads(COUNT, work)
    for name, gradient in whole.items():
        np.testing.assert_allclose(sum(part[name] for part in parts), gradient, rtol=1e-10, atol=1e-12)


# --- the first use


def test_the_first_use_in_many_threads():
    """Lazy imports, the instruction set, the thread group and a prepared call are all made at their first use."""
    run_script(
        """
        import numpy as np
        from support.concurrency import in_threads

        def work(k):
            import rnnfast
            layer = rnnfast.LSTM(3, 200, rng=0)
            x = np.ones((20, 40, 3), np.float32)
            lazy = rnnfast.reference, rnnfast.threads, rnnfast.diagnostics
            return *[module.__name__ for module in lazy], layer(x)[0].tobytes()

        assert len(set(in_threads(6, work))) == 1

        import rnnfast
        layer, x = rnnfast.GRU(3, 8, rng=0), np.ones((1, 1, 3), np.float32)
        expected = layer(x)[0].tobytes()
        layer.freeze()
        assert set(in_threads(6, lambda k: layer(x)[0].tobytes())) == {expected}
        """
    )
