"""update() of streams and pools: new weights and initial states, the same states."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.cells import make_layer
from support.compare import members
from support.streams import H, I, bits, random_state, row_of, sequence, snapshot

import rnnfast
from rnnfast import functional


def make(variant, rng=0, **options):
    return make_layer(variant, I, H, rng=rng, **options)


def scale(layer, by):
    for array in layer.parameters.values():
        array *= by


def assert_continues(stream, layer, x):
    """Require that steps and calls of a stream do what the layer does from the stream's state on."""
    for run in (lambda x: np.stack([stream.step(x_t) for x_t in x]), stream, stream):
        y, state = layer(x, stream.state)
        assert run(x).tobytes() == y.tobytes()
        assert snapshot(stream) == bits(state)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("N", [1, 3])
def test_a_stream_takes_new_weights(variant, N, frozen, dtype, rng):
    layer, other = (make(variant, seed, num_layers=2, dtype=dtype) for seed in range(2))
    if frozen:
        layer.freeze()
        other.freeze()
    stream, x = layer.stream(N), sequence(rng, 4, N, dtype)
    assert_continues(stream, layer, x)
    before = snapshot(stream)
    stream.update(other)
    assert snapshot(stream) == before
    assert_continues(stream, other, x)
    other.unfreeze()
    scale(other, 0)  # which the stream does not see
    layer.unfreeze()
    scale(layer, 0.5)
    stream.update()
    assert_continues(stream, layer, x)


def test_a_stream_takes_a_new_initial_state(variant, rng):
    layer, other = (make(variant, seed, init_state=True) for seed in range(2))
    stream, pool = layer.stream(2), rnnfast.StreamPool(layer, 3)
    state, first = random_state(layer, 2, rng), pool.join()
    stream.state = state
    for array in other.parameters.values():
        array[:] = rng.standard_normal(array.shape)
    stream.update(other)
    pool.update(other)
    assert snapshot(stream) == bits(state)
    assert not any(np.any(member) for member in members(pool.leave(first)))
    initial = other.stream(2).state
    stream.reset(1)
    assert bits(row_of(stream.state, 1)) == bits(row_of(initial, 1)) == bits(pool.leave(pool.join()))
    assert bits(row_of(stream.state, 0)) == bits(row_of(state, 0))
    stream.state = None
    assert snapshot(stream) == bits(initial)


@pytest.mark.parametrize("count", [1, 3])
def test_a_pool_takes_new_weights(variant, count, rng):
    layer, other = (make(variant, seed, num_layers=2) for seed in range(2))
    pool, streams = rnnfast.StreamPool(layer, 4), [layer.stream() for _ in range(count)]
    ids = [pool.join() for _ in streams]
    for target in (None, other, layer):
        if target is not None:
            pool.update(target)
            for stream in streams:
                stream.update(target)
        for x_t in sequence(rng, 3, count):
            y = pool.step(ids, x_t)
            for y_n, x_n, stream in zip(y, x_t, streams, strict=True):
                assert y_n.tobytes() == stream.step(x_n).tobytes()
    scale(layer, 0.5)
    pool.update()
    streams[0].update()
    x_t = sequence(rng, 1, 1)[0]
    assert pool.step(ids[:1], x_t).tobytes() == streams[0].step(x_t).tobytes()


@pytest.mark.parametrize("options", [{"batch_first": True}, {"num_layers": 2, "dropout": 0.5}])
def test_options_that_may_differ(options, rng):
    layer = make("gru", num_layers=options.get("num_layers", 1))
    stream, x, other = layer.stream(2), sequence(rng, 3, 2), make("gru", 1, **options)
    stream.update(other)
    plain = make("gru", num_layers=layer.num_layers)
    plain.load_state_dict(other.state_dict())
    assert_continues(stream, plain, x)


class Derived(rnnfast.LSTM):
    pass


WRONG = {
    "another class": (
        lambda: make("gru"),
        ValueError,
        "layer has the class GRU, but the layer of this .* has the class LSTM: pass",
    ),
    "size": (
        lambda: rnnfast.LSTM(I, H + 1),
        ValueError,
        f"layer has hidden_size={H + 1}, but the layer of this .* has hidden_size={H}: pass a layer of the same class",
    ),
    "projection": (lambda: rnnfast.LSTM(I, H, proj_size=3), ValueError, "proj_size=3, but .* proj_size=0"),
    "options": (
        lambda: rnnfast.LSTM(I, H, bias=False, clip=2.0),
        ValueError,
        "layer has bias=False, clip=2.0, but the layer of this .* has bias=True, clip=None",
    ),
    "learned state": (lambda: make("lstm", init_state=True), ValueError, "init_state=True, but .* init_state=False"),
    "dtype": (lambda: make("lstm", dtype="f8"), ValueError, "dtype='float64', but .* has dtype='float32'"),
    "reverse": (lambda: make("lstm", reverse=True), ValueError, "reverse=True.* cannot be streamed"),
    "linear": (lambda: rnnfast.Linear(I, H), TypeError, "layer must be a recurrent layer, got Linear"),
    "arrays": (lambda: make("lstm").state_dict(), TypeError, "layer must be a recurrent layer, got dict"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_other_layers_are_refused(fault, rng):
    layer = make("lstm")
    stream, pool, x = layer.stream(2), rnnfast.StreamPool(layer, 2), sequence(rng, 3, 2)
    ids = [pool.join(), pool.join()]
    scale(layer, 0.5)
    stream.update(Derived.from_state_dict(layer.state_dict()))
    pool.update(layer)
    other, error, match = WRONG[fault]
    for one, name in ((stream, "stream"), (pool, "pool")):
        before = snapshot(stream)
        with pytest.raises(error, match=match) as raised:
            one.update(other())
        assert error is TypeError or fault == "reverse" or f"create a new {name}" in str(raised.value)
        assert snapshot(stream) == before
    assert pool.step(ids, x[0]).tobytes() == layer(x[:1])[0][0].tobytes()
    assert_continues(stream, layer, x)


@pytest.mark.skipif(len(functional.isas()) < 2, reason="only one instruction set runs here")
def test_another_instruction_set_is_refused():
    stream = make("lstm").stream()
    with functional.use_isa(functional.isas()[-1]):
        other = make("lstm")
    with pytest.raises(
        ValueError, match=f"layer has the instruction set {functional.isas()[-1]}, but the layer of this"
    ):
        stream.update(other)


@pytest.mark.parametrize("N", [1, 3])
def test_a_stream_in_use_is_not_updated(N):
    layer = make("lstm")
    stream = layer.stream(N)

    def act(_h, _c):
        with pytest.raises(RuntimeError, match="in use by another thread"):
            stream.update()
        return None, None

    stream._step.update(act)
    stream.update()


@pytest.mark.parametrize("ids", [1, 2])
def test_a_pool_is_updated_while_threads_step_its_streams(ids, rng):
    """Each step uses the weights of one layer as a whole."""
    layers = [make("gru", seed) for seed in range(2)]
    pool = rnnfast.StreamPool(layers[0], 8)
    zeros = np.zeros((1, ids, H), np.float32)
    x = sequence(rng, 1, ids)
    expected = {layer(x, zeros)[0][0].tobytes() for layer in layers}
    assert len(expected) == 2

    def work(_):
        for _ in range(200):
            some = [pool.join() for _ in range(ids)]
            assert pool.step(some, x[0]).tobytes() in expected
            for one in some:
                pool.leave(one)

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(work, k) for k in range(3)]
        while not all(one.done() for one in running):
            for layer in layers:
                pool.update(layer)
        for one in running:
            one.result()
