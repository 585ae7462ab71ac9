"""Streams give the same bits as one call; their state and weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.arrays import FORMS
from support.cells import VARIANTS, make_layer
from support.compare import assert_same_bits, members
from support.layers import outputs
from support.ragged import isas, seeds
from support.streams import DTYPES, H, I, bits, random_state, sequence

import rnnfast
from rnnfast import functional
from rnnfast.layers import saving

# --- the same bits


@pytest.mark.parametrize("N", [1, 5])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_steps_are_one_call(variant, num_layers, N, dtype, isa, rng):
    with functional.use_isa(isa):
        layer = make_layer(variant, I, H, num_layers=num_layers, dtype=dtype)
    x = sequence(rng, 7, N, dtype)
    for start in (None, random_state(layer, N, rng)):
        expected = outputs(*layer(x, start))
        stream = layer.stream(N)
        stream.state = start
        y = np.stack([stream.step(x_t) for x_t in x])
        assert_same_bits(outputs(y, stream.state), expected)
        stream.state, out = start, np.empty((7, N, H), dtype)
        for x_t, y_t in zip(x, out, strict=True):
            assert stream.step(x_t, out=y_t) is y_t
        assert_same_bits(outputs(out, stream.state), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("N", "features", "size"), [(1, 64, 256), (64, 17, 33), (300, 3, 4), (2, 200, 1), (1, 1, 1)])
def test_sizes(variant, N, features, size, bias, threads, rng):
    dtype = DTYPES[N % 2]
    layer = make_layer(variant, features, size, bias=bias, dtype=dtype)
    x = sequence(rng, 4, N, dtype, features)
    threads(1)
    expected = outputs(*layer(x))
    for count in (1, 2, 3):
        threads(count)
        for _ in range(3):  # threads may come too late for the first
            stream = layer.stream(N)
            y = np.stack([stream.step(x_t) for x_t in x])
            assert_same_bits(outputs(y, stream.state), expected)


@given(st.sampled_from(list(VARIANTS)), isas, st.booleans(), st.integers(1, 4), seeds)
def test_any_chunks(variant, isa, batch_first, num_layers, seed):
    """Steps and chunks in any order, with resets and restored states."""
    rng = np.random.default_rng(seed)
    dtype, N, size = DTYPES[seed % 2], int(rng.choice([1, 1, 2, 5])), int(rng.integers(1, 24))
    with functional.use_isa(isa):
        layer = make_layer(variant, I, size, num_layers=num_layers, batch_first=batch_first, dtype=dtype)
        plain = make_layer(variant, I, size, num_layers=num_layers, dtype=dtype)
    if seed % 3 == 0:
        layer.freeze()
    stream, state = layer.stream(N), None
    for _ in range(rng.integers(1, 9)):
        x = sequence(rng, rng.integers(1, 9), N, dtype)
        way = rng.choice(["step", "step out", "chunk", "chunk", "one row", "put back", "reset"])
        y = []
        if way == "put back":
            saved, expected = stream.state, stream.state
            stream.step(x[0])
            stream.state = saved
            assert bits(stream.state) == bits(expected)
        elif way == "reset":
            which = rng.random(N) < 0.5
            stream.reset(which)
            if state is not None:
                for member in members(state):
                    member[:, which] = 0
        expected, state = plain(x, state)
        if way == "chunk":
            y = stream(x.swapaxes(0, 1) if batch_first else x)
            y = y.swapaxes(0, 1) if batch_first else y
        elif way == "one row" and N == 1:
            y = (
                stream(x[:, 0])[:, None]
                if rng.random() < 0.5
                else np.stack([stream.step(x_t[0]) for x_t in x])[:, None]
            )
        elif way == "step out":
            y = np.empty_like(expected)
            for x_t, y_t in zip(x, y, strict=True):
                stream.step(x_t, y_t)
        else:
            y = np.stack([stream.step(x_t) for x_t in x])
        assert_same_bits(outputs(y, stream.state), outputs(expected, state))


@pytest.mark.parametrize("batch_first", [False, True])
def test_shapes(variant, batch_first):
    layer = make_layer(variant, I, H, num_layers=2, batch_first=batch_first)
    stream = layer.stream(3)
    y = stream(np.ones((3, 6, I) if batch_first else (6, 3, I)))
    assert y.shape == ((3, 6, H) if batch_first else (6, 3, H))
    assert y.flags.writeable
    assert stream.step(np.ones((3, I))).shape == (3, H)
    assert [m.shape[:2] for m in members(stream.state)] == [(2, 3)] * len(members(stream.state))
    alone = layer.stream()
    assert alone.batch_size == 1
    assert alone(np.ones((6, I))).shape == (6, H)
    assert alone(np.ones((1, 6, I) if batch_first else (6, 1, I))).shape == ((1, 6, H) if batch_first else (6, 1, H))
    assert alone.step(np.ones(I)).shape == (H,)
    assert alone.step(np.ones((1, I))).shape == (1, H)
    assert layer.stream(np.int8(2)).batch_size == 2
    assert repr(layer.stream(2)) == f"{saving.describe(layer)}.stream(2)"


def test_one_feature():
    """With one feature, (N, I) and (I,) must not be confused."""
    layer = make_layer("gru", 1, 3)
    for N in (1, 2):
        stream, x = layer.stream(N), np.ones((4, N, 1), np.float32)
        y = np.stack([stream.step(x_t) for x_t in x])
        assert y.tobytes() == layer(x)[0].tobytes()
        if N == 2:
            with pytest.raises(ValueError, match=r"x_t must have shape \(rows, input_size\) = \(2, 1\), got \(2,\)"):
                stream.step([1.0, 1.0])
    assert layer.stream().step([1.0]).shape == (3,)


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_steps(form, variant, N, rng):
    layer = make_layer(variant, I, H)
    x = sequence(rng, 4, N)
    expected, _ = layer(x)
    stream, written = layer.stream(N), layer.stream(N)
    out = np.empty((N, H), np.float32)
    for x_t, y_t in zip(x, expected, strict=True):
        form_t = FORMS[form](x_t)
        assert stream.step(form_t).tobytes() == y_t.tobytes()
        assert written.step(form_t, out=out) is out
        assert out.tobytes() == y_t.tobytes()
        np.testing.assert_array_equal(np.array(form_t), x_t)
    chunk = layer.stream(N)
    assert chunk(FORMS[form](x)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_repeated_calls(form, batch_first, variant, N, rng):
    """A call is prepared for the shape of the last one; the next may have another form or shape, or be wrong."""
    layer = make_layer(variant, I, H, num_layers=2, batch_first=batch_first)
    stream, state = layer.stream(N), None
    for T, change in [
        (4, FORMS[form]),
        (4, np.copy),
        (4, FORMS[form]),
        (4, np.copy),
        (1, np.copy),
        (1, np.copy),
        (4, np.copy),
    ]:
        x = sequence(rng, T, N)
        x = x.swapaxes(0, 1) if batch_first else x
        expected, state = layer(x, state)
        for wrong in (x[..., 1:], np.repeat(x, 2, axis=0 if batch_first else 1)):
            with pytest.raises(ValueError, match=r"features|rows"):
                stream(wrong)
        y = stream(change(x))
        assert_same_bits(outputs(y, stream.state), outputs(expected, state))
        y[:] = 7  # belongs to the caller
    if N == 1:
        for _ in range(2):
            x = sequence(rng, 4, 1)[:, 0]
            expected, state = layer(x, tuple(m[:, 0] for m in state) if isinstance(state, tuple) else state[:, 0])
            state = tuple(m[:, None] for m in state) if isinstance(state, tuple) else state[:, None]
            assert_same_bits(outputs(stream(x), stream.state), outputs(expected, state))


def test_other_dtypes_are_converted(dtype):
    layer = make_layer("lstm", I, H, dtype=dtype)
    for other in (bool, np.int8, np.uint64, np.float16, np.float32, np.float64):
        x = np.arange(2 * I).reshape(2, I).astype(other)
        assert layer.stream(2).step(x).tobytes() == layer(x[None].astype(dtype))[0].tobytes()
    y = layer.stream().step([1] * I)
    assert y.dtype == dtype
    assert y.tobytes() == layer.stream().step([[1.0] * I]).tobytes()


def test_nan_stays_in_its_row(variant, rng):
    layer = make_layer(variant, I, H, num_layers=2)
    x = sequence(rng, 5, 4)
    expected, _ = layer(x)
    x[1, 2, 0], x[2, 2, 1] = np.nan, np.inf
    stream, pool = layer.stream(4), rnnfast.StreamPool(layer, 4)
    ids = [pool.join() for _ in range(4)]
    for step in (stream.step, lambda x_t: pool.step(ids, x_t)):
        y = np.stack([step(x_t) for x_t in x])
        assert y[:, [0, 1, 3]].tobytes() == expected[:, [0, 1, 3]].tobytes()
        assert np.isnan(y[1:, 2]).all() == np.isnan(layer(x)[0][1:, 2]).all()
    # A reset, or a new stream in its place, leaves nothing of it.
    stream.reset(2)
    pool.leave(ids[2])
    ids[2] = pool.join()
    before, fresh = stream.state, layer.stream(4)
    fresh.state = before
    want = fresh.step(x[0])
    assert stream.step(x[0]).tobytes() == want.tobytes()
    assert not np.isnan(want).any()
    assert pool.step([ids[2]], x[0, [2]]).tobytes() == want[[2]].tobytes()


# --- the state


def test_state_is_a_copy(variant, rng):
    layer = make_layer(variant, I, H, num_layers=2)
    stream, x = layer.stream(3), sequence(rng, 5, 3)
    assert not any(member.any() for member in members(stream.state))
    assert type(stream.state) is type(layer(x)[1])
    for x_t in x[:3]:  # the state stands in one of two places in turn
        stream.step(x_t)
        expected = stream.state
        for member in members(stream.state):
            assert member.flags.writeable
            assert member.flags.owndata
            member[...] = np.nan
        assert bits(stream.state) == bits(expected)
        given = tuple(member.copy() for member in members(expected))
        stream.state = given if isinstance(expected, tuple) else given[0]
        for member in given:
            member[...] = np.nan
        assert bits(stream.state) == bits(expected)
    assert np.stack([stream.step(x_t) for x_t in x[3:]]).tobytes() == layer(x)[0][3:].tobytes()


def test_saved_and_put_back(variant, rng):
    layer = make_layer(variant, I, H, num_layers=2)
    x = sequence(rng, 9, 2)
    expected, _ = layer(x)
    stream = layer.stream(2)
    stream(x[:4])
    saved = stream.state
    stream(x[::-1])
    other = layer.stream(2)
    for one in (stream, other):
        one.state = saved
        assert one(x[4:]).tobytes() == expected[4:].tobytes()
    one.state = None
    assert not any(member.any() for member in members(one.state))
    assert one(x).tobytes() == expected.tobytes()
    if isinstance(saved, tuple):
        one.state = [saved[0].tolist(), None]
        assert bits(one.state) == bits((saved[0], np.zeros_like(saved[1])))
        one.state = None, saved[1].astype(np.float64)
        assert bits(one.state) == bits((np.zeros_like(saved[0]), saved[1]))
    else:
        one.state = saved.tolist()
        assert bits(one.state) == bits(saved)


@pytest.mark.parametrize(
    ("rows", "which"),
    [
        (None, [0, 1, 2, 3]),
        (2, [2]),
        (-1, [3]),
        (np.uint8(1), [1]),
        ([0, 3], [0, 3]),
        ((3, 3), [3]),
        (np.array([-4, 1]), [0, 1]),
        (np.array([2], np.uint64), [2]),
        ([True, False, False, True], [0, 3]),
        (np.zeros(4, bool), []),
        ([], []),
        (np.array([], int), []),
        (np.arange(4) > 1, [2, 3]),
    ],
)
def test_reset(variant, rows, which, rng):
    layer = make_layer(variant, I, H, num_layers=2)
    stream, x = layer.stream(4), sequence(rng, 3, 4)
    for steps in (1, 2):
        stream.state = None
        for x_t in x[:steps]:
            stream.step(x_t)
        state = stream.state
        assert stream.reset(rows) is None
        for member in members(state):
            assert member.all(axis=-1).any() or "rnn_relu" in variant  # whose units can be silent
            member[:, which] = 0
        assert bits(stream.state) == bits(state)
        assert_same_bits(outputs(stream.step(x[2])[None], stream.state), outputs(*layer(x[2:], state)))


# --- weights


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("N", [1, 3])
def test_streams_keep_their_initial_weights(variant, N, frozen, rng):
    layer = make_layer(variant, I, H, num_layers=2, dropout=0.5)
    x = sequence(rng, 8, N)
    expected, _ = layer(x)
    if frozen:
        layer.freeze()
        assert layer(x)[0].tobytes() == expected.tobytes()
    stream, pool = layer.stream(N), rnnfast.StreamPool(layer, N)
    ids = [pool.join() for _ in range(N)]

    def check(steps):
        assert stream.step(x[steps]).tobytes() == expected[steps].tobytes()
        assert pool.step(ids, x[steps]).tobytes() == expected[steps].tobytes()

    check(0)
    layer.unfreeze()
    check(1)
    for array in layer.parameters.values():
        array[...] = 3
    check(2)
    for _ in range(3):  # with calls that use what memory there is
        y, _, tape = layer.forward(x)
        layer.backward(tape, y)
        layer(x)
    check(3)
    layer.freeze()
    layer(x)
    check(4)
    del layer
    check(5)
    assert stream(x[6:]).tobytes() == expected[6:].tobytes()


def test_dropout_does_not_act(rng):
    layer = make_layer("gru", I, H, num_layers=2, dropout=0.9)
    before = layer._rng.bit_generator.state
    x = sequence(rng, 4, 2)
    stream = layer.stream(2)
    assert np.stack([stream.step(x_t) for x_t in x]).tobytes() == layer(x)[0].tobytes()
    assert layer._rng.bit_generator.state == before


def test_streams_do_not_see_each_other(variant, rng):
    layer = make_layer(variant, I, H)
    x = sequence(rng, 6, 4)
    expected, _ = layer(x)
    streams = [layer.stream() for _ in range(4)]
    for t in rng.permutation(np.repeat(np.arange(4), 6)):
        n, streams[t].at = t, getattr(streams[t], "at", -1) + 1
        assert streams[n].step(x[streams[n].at, n]).tobytes() == expected[streams[n].at, n].tobytes()
