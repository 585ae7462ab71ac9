"""Ownership of the arrays that are passed to a layer and returned by it."""

import sys
import threading
import tracemalloc

import numpy as np
import pytest
from support.compare import assert_same_bits, members
from support.layers import I, N, T, make, problem, results

import rnnfast
from rnnfast import buffers


def test_results_belong_to_the_caller(variant, rng):
    layer = make(variant)
    x, state, *_ = problem(layer, rng)
    y, end = layer(x, state)
    arrays = [x, *members(state), y, *members(end), *layer.parameters.values()]
    kept = [array.copy() for array in arrays]
    y_again, end_again = layer(x, state)
    for array in (y_again, *members(end_again)):
        assert not any(np.shares_memory(array, other) for other in arrays)
        array[...] = np.nan
    layer(x[:1])
    for array, copy in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_training_owns(variant, rng):
    layer = make(variant)
    x, state, dy, dstate = problem(layer, rng)
    expected = results(layer, x, state, dy, dstate)
    y, end, tape = layer.forward(x, state)
    np.testing.assert_array_equal(y, layer(x, state)[0])
    assert not y.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        y[0] = 0
    for member in (*members(end), *members(state)):
        assert member.flags.writeable
        member[...] = np.nan  # the tape has its own
    grads = layer.backward(tape, dy, dstate)
    assert_same_bits({name: expected[f"d{name}"] for name in grads.parameters}, grads.parameters)
    for array in (grads.x, *members(grads.state), *grads.parameters.values()):
        assert array.flags.writeable
        array[...] = np.nan
    again = layer.backward(tape, dy, dstate)
    assert_same_bits({name: expected[f"d{name}"] for name in again.parameters}, again.parameters)
    np.testing.assert_array_equal(again.x, expected["dx"])


def test_tape_holds_x_by_reference(rng):
    layer = make("gru")
    memory = rng.standard_normal((2 * T, N, I + 1)).astype(np.float32)
    for x in (memory[:T, :, :I], memory[::-2, :, 1:], np.ascontiguousarray(memory[:T, :, 1:])):
        y, _, tape = layer.forward(x)
        before = layer.backward(tape, y).parameters["weight_ih_l0"]
        x *= 2
        np.testing.assert_array_equal(layer.backward(tape, y).parameters["weight_ih_l0"], 2 * before)


@pytest.mark.parametrize("frozen", [False, True])
def test_tape_is_of_its_forward(variant, frozen, rng):
    layer = make(variant, num_layers=2, dropout=0.5, rng=7)
    x, state, dy, dstate = problem(layer, rng)
    if frozen:
        layer.freeze()
    tapes, expected = [], []
    for scale in (1, 2, 3):
        _, _, tape = layer.forward(scale * x[: T - scale], state)
        tapes.append(tape)
        layer.forward(x)  # its tape ends here, and its memory is used again
        expected.append(layer.backward(tape, dy[: T - scale], dstate))
    layer.unfreeze()
    for array in layer.parameters.values():
        array[...] = np.nan
    layer(x)
    layer.forward(x)
    for k in (1, 0, 2, 1):  # out of order, and more than once
        got = layer.backward(tapes[k], dy[: T - 1 - k], dstate)
        assert_same_bits(got.parameters, expected[k].parameters)
        np.testing.assert_array_equal(got.x, expected[k].x)


def test_memory_of_many_tapes_is_given_back():
    layer, x = make("lstm"), np.ones((500, 10, I), np.float32)
    layer.forward(x)
    tracemalloc.start()
    try:
        tapes = [layer.forward(x)[-1] for _ in range(30)]
        held, _ = tracemalloc.get_traced_memory()
        del tapes
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < held / 5


@pytest.mark.parametrize("frozen", [False, True])
def test_memory_of_large_results_is_not_reused_while_in_use(frozen, rng):
    """Memory of large results is reused, but never while an array or a view of it is alive."""
    layer = rnnfast.GRU(8, 300, rng=0)
    if frozen:
        layer.freeze()
    kept = []
    for k in range(8):
        x = rng.standard_normal((60, 16, 8)).astype(np.float32)
        y, _ = layer(x)
        z, _, tape = layer.forward(x)
        grads = layer.backward(tape, y)
        assert min(y.nbytes, z.nbytes, grads.parameters["weight_hh_l0"].nbytes) >= buffers.LARGE
        np.testing.assert_array_equal(y, z)
        assert y.flags.writeable
        assert grads.parameters["weight_hh_l0"].flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            z.flags.writeable = True
        views = [y[3:5, 2], z[7:], grads.parameters["weight_hh_l0"].T[1:4]]
        kept.append([(view, view.copy()) for view in views] if k % 2 else [(y, y.copy()), (z, z.copy())])
        if k == 5:
            del kept[:3]
    for pairs in kept:
        for view, copy in pairs:
            np.testing.assert_array_equal(view, copy)


def test_large_results_are_used_again():
    layer = rnnfast.RNN(8, 300, rng=0)
    x = np.ones((60, 16, 8), np.float32)
    y, _ = layer(x)
    place = y.ctypes.data
    half = y[:30]
    del y
    assert layer(x)[0].ctypes.data != place
    del half
    assert place in (layer(x)[0].ctypes.data, layer(2 * x)[0].ctypes.data)
    assert len(layer.execution.results) <= layer.execution.results.most


def pools(layer):
    run = layer.execution
    return run.packs, run.tapes, run.workspaces, run.scratch, run.results


def kept_bytes(pool):
    return sum(buffer.nbytes for buffer in pool)


def test_idle_layers_keep_little_memory_and_release_it():
    layer = rnnfast.LSTM(8, 64, rng=0)
    x = np.ones((500, 64, 8), np.float32)
    y, _ = layer(x)
    layer.forward(x, checkpoint="auto")
    tapes = [layer.forward(x)[-1] for _ in range(4)]
    del tapes
    assert 2**26 < kept_bytes(layer.execution.tapes) <= 2**27  # four tapes take 192 MiB
    assert all(kept_bytes(pool) <= 2**27 for pool in pools(layer))
    stream, tape = layer.stream(64), layer.forward(x)[-1]
    layer.release()
    assert all(len(pool) == 0 for pool in pools(layer))
    np.testing.assert_array_equal(stream.step(x[0]), y[0])
    layer.backward(tape, y)
    del tape, stream
    assert len(layer.execution.tapes) == 1
    np.testing.assert_array_equal(layer(x)[0], y)


def test_every_layer_has_release():
    pair = rnnfast.Bidirectional(make("lstm"), make("gru"))
    x = np.ones((T, N, I), np.float32)
    for layer in (pair, rnnfast.Linear(I, 3), rnnfast.Embedding(5, 3)):
        ids = np.zeros((T, N), int) if isinstance(layer, rnnfast.Embedding) else x
        for _ in range(2):
            layer(ids)
            layer.forward(ids)
            layer.release()
    for one in (pair.forward_layer, pair.backward_layer):
        assert all(len(pool) == 0 for pool in pools(one))


def test_tapes_release_their_memory_without_bytecode():
    layer = make("lstm")
    tape = layer.forward(np.ones((T, N, I), np.float32))[-1]
    before = len(layer.execution.tapes)
    calls = []
    sys.setprofile(lambda *event: calls.append(event) if event[1] == "call" else None)
    del tape
    sys.setprofile(None)
    assert len(layer.execution.tapes) == before + 1
    assert not calls


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_tapes_name_only_the_weights_that_they_hold(checkpoint):
    """Memory that a tape names is not reused before the tape is deallocated."""
    layer, x = make("gru"), np.ones((T, N, I), np.float32)
    _, _, tape = layer.forward(x, checkpoint=checkpoint)
    weights = tape._kept.weights
    assert (weights.packed is None) == (checkpoint is None)
    free = {id(buffer) for buffer in layer.execution.packs}
    assert not free & {id(weights.packed), id(weights.packed_back)}


def test_streams_return_their_workspace():
    layer = rnnfast.LSTM(8, 64, rng=0)
    for _ in range(3):
        stream = layer.stream(10)
        assert len(layer.execution.workspaces) == 0
        stream.step(np.ones((10, 8), np.float32))
        del stream
        assert len(layer.execution.workspaces) == 1


def test_bidirectional_freezes_both_layers_or_none(monkeypatch):
    layer = rnnfast.Bidirectional(make("lstm"), make("gru"))

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(rnnfast.GRU, "_frozen_as", fail)
        with pytest.raises(MemoryError):
            layer.freeze()
    assert layer.forward_layer._kind() is layer.backward_layer._kind() is None
    assert all(array.flags.writeable for array in layer.parameters.values())
    layer.forward_layer.freeze()
    kept = layer.forward_layer.execution.frozen
    layer.freeze()
    assert layer.forward_layer.execution.frozen is kept
    assert not any(array.flags.writeable for array in layer.parameters.values())


def test_python_threads_share_a_layer(rng):
    layer = make("lstm", num_layers=2, bidirectional=True)
    inputs = [rng.standard_normal((1 + k % 3, 1 + k % 4, I)).astype(np.float32) for k in range(12)]
    expected = [results(layer, x, dy=layer(x)[0]) for x in inputs]
    faults = []

    def work(offset):
        try:
            for k in range(60):
                j = (k + offset) % len(inputs)
                y, _ = layer(inputs[j])
                np.testing.assert_array_equal(y, expected[j]["y"])
                assert_same_bits(results(layer, inputs[j], dy=y), expected[j])
        except BaseException as fault:
            faults.append(fault)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not faults
