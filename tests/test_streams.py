"""Streams and pools of them: the same bits as one call, who owns what, and what is refused."""

import gc
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import VARIANTS, make_layer, members
from test_engine import assert_same_bits, run_script
from test_layers import FORMS

import rnnfast
from rnnfast import functional

I, H = 5, 11
DTYPES = (np.float32, np.float64)
seeds = st.integers(0, 1 << 30)
isas = st.sampled_from(functional.isas())


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def sequence(rng, T, N, dtype=np.float32, features=I):
    return rng.standard_normal((T, N, features)).astype(dtype)


def random_state(layer, N, rng):
    """Values in the structure of a state."""
    width = layer._engine.output_size
    h = rng.standard_normal((layer.num_layers, N, width)).astype(layer.dtype)
    if not layer._engine.has_cell:
        return h
    return h, rng.standard_normal((layer.num_layers, N, layer.hidden_size)).astype(layer.dtype)


def results(y, state):
    return {"y": y, **{f"state {i}": member for i, member in enumerate(members(state))}}


def bits(state):
    return [member.tobytes() for member in members(state)]


def row_of(state, n):
    """(L, ...) of one row, as a pool has it."""
    values = tuple(member[:, n] for member in members(state))
    return values if isinstance(state, tuple) else values[0]


# ---- the same bits


@pytest.mark.parametrize("N", [1, 5])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_steps_are_one_call(variant, num_layers, N, dtype, isa, rng):
    with functional.use_isa(isa):
        layer = make_layer(variant, I, H, num_layers=num_layers, dtype=dtype)
    x = sequence(rng, 7, N, dtype)
    for start in (None, random_state(layer, N, rng)):
        expected = results(*layer(x, start))
        stream = layer.stream(N)
        stream.state = start
        y = np.stack([stream.step(x_t) for x_t in x])
        assert_same_bits(results(y, stream.state), expected)
        stream.state, out = start, np.empty((7, N, H), dtype)
        for x_t, y_t in zip(x, out, strict=True):
            assert stream.step(x_t, out=y_t) is y_t
        assert_same_bits(results(out, stream.state), expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("N", "features", "size"), [(1, 64, 256), (64, 17, 33), (300, 3, 4), (2, 200, 1), (1, 1, 1)])
def test_sizes(variant, N, features, size, bias, threads, rng):
    dtype = DTYPES[N % 2]
    layer = make_layer(variant, features, size, bias=bias, dtype=dtype)
    x = sequence(rng, 4, N, dtype, features)
    threads(1)
    expected = results(*layer(x))
    for count in (1, 2, 3):
        threads(count)
        for _ in range(3):  # threads may come too late for the first
            stream = layer.stream(N)
            y = np.stack([stream.step(x_t) for x_t in x])
            assert_same_bits(results(y, stream.state), expected)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(VARIANTS)), isas, st.booleans(), st.integers(1, 4), seeds)
def test_any_chunks(variant, isa, batch_first, num_layers, seed):
    """Steps and chunks in any order, with resets and states put back."""
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
        assert_same_bits(results(y, stream.state), results(expected, state))


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
    assert repr(layer.stream(2)) == f"{layer._call()}.stream(2)"


def test_one_feature():
    """Where (N, I) and (I,) might be taken for each other."""
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


# ---- where results are written to


OUTS = {
    "padded": lambda a: np.zeros([2 * size + 1 for size in a.shape], a.dtype)[
        tuple(slice(1, None, 2) for _ in a.shape)
    ],
    "fortran": np.asfortranarray,
    "backwards": lambda a: a[::-1],
    "last axis backwards": lambda a: a[..., ::-1],
    "columns": lambda a: np.zeros((*a.shape[:-1], a.shape[-1] + 3), a.dtype)[..., 2:-1],
    "misaligned": lambda a: np.frombuffer(bytearray(a.nbytes + 1), a.dtype, a.size, offset=1).reshape(a.shape),
    "rows apart by no whole number of items": lambda a: np.zeros(
        a.shape[:-1], [("pad", np.int8), ("row", a.dtype, a.shape[-1:])]
    )["row"],
    "the same, backwards": lambda a: np.zeros(a.shape[:-1], [("pad", np.int8), ("row", a.dtype, a.shape[-1:])])["row"][
        ::-1
    ],
    "subclass": lambda a: a.view(np.recarray),
    "own dtype object": lambda a: a.astype(np.dtype(a.dtype.str, metadata={"unit": "m"})),
}


@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("out", OUTS)
def test_forms_of_out(out, variant, N, dtype, rng):
    layer = make_layer(variant, I, H, num_layers=2, dtype=dtype)
    x = sequence(rng, 4, N, dtype)
    expected, _ = layer(x)
    stream, pool = layer.stream(N), rnnfast.StreamPool(layer, N)
    ids = [pool.join() for _ in range(N)]
    for step in (stream.step, lambda x_t, out: pool.step(ids, x_t, out)):
        for x_t, y_t in zip(x, expected, strict=True):
            place = OUTS[out](np.zeros((N, H), dtype))
            assert step(x_t, out=place) is place
            np.testing.assert_array_equal(place, y_t)


def test_out_of_one_row(variant, rng):
    layer = make_layer(variant, I, H)
    x = sequence(rng, 3, 1)
    expected, _ = layer(x)
    for shape in ((I,), (1, I)):
        stream = layer.stream()
        for x_t, y_t in zip(x, expected, strict=True):
            memory = np.zeros((*shape[:-1], 2 * H), np.float32)
            out = memory[..., ::2]
            assert stream.step(x_t.reshape(shape), out=out) is out
            np.testing.assert_array_equal(out.reshape(1, H), y_t)
            assert not memory[..., 1::2].any()
        with pytest.raises(ValueError, match=r"out must .*shape"):
            stream.step(x[0].reshape(shape), out=np.empty((1, H) if len(shape) == 1 else (H,), np.float32))


def test_neighbours_of_out_are_left_alone(rng):
    layer = make_layer("lstm", I, H)
    x = sequence(rng, 1, 3)
    expected, _ = layer(x)
    pool = rnnfast.StreamPool(layer, 3)
    ids = [pool.join() for _ in range(3)]
    for step in (layer.stream(3).step, lambda x_t, out: pool.step(ids, x_t, out)):
        memory = np.full((3, 40), 7, np.float32)
        out = memory[:, 20 : 20 + H]
        step(x[0], out=out)
        np.testing.assert_array_equal(out, expected[0])
        out[...] = 7
        assert (memory == 7).all()


def snapshot(stream):
    return bits(stream.state)


BAD_OUT = [
    (np.empty((3, H)), TypeError, "out must be an array of dtype float32, got one of dtype float64"),
    (np.empty((3, H), ">f4"), TypeError, "out must be an array of dtype float32, got one of dtype >f4"),
    (np.empty((3, H), int), TypeError, "out must be an array of dtype float32, got one of dtype int64"),
    ([[0.0] * H] * 3, TypeError, "out must be an array of dtype float32, got list"),
    (0.0, TypeError, "out must be an array of dtype float32, got float"),
    (np.empty((H, 3), np.float32), ValueError, r"out must .* shape \(3, 11\), got \(11, 3\)"),
    (np.empty((1, H), np.float32), ValueError, r"out must .* shape \(3, 11\), got \(1, 11\)"),
    (np.empty((1, 3, H), np.float32), ValueError, r"out must .* shape \(3, 11\), got \(1, 3, 11\)"),
    (np.empty(H, np.float32), ValueError, r"out must .* shape \(3, 11\), got \(11,\)"),
    (np.frombuffer(bytes(12 * H), np.float32).reshape(3, H), ValueError, "out must be writable"),
    (np.broadcast_to(np.float32(0), (3, H)), ValueError, "out must be writable"),
    (np.frombuffer(bytes(24 * H), np.float32).reshape(3, 2 * H)[:, ::2], ValueError, "out must be writable"),
]


@pytest.mark.parametrize(("out", "error", "match"), BAD_OUT)
def test_bad_out(out, error, match, rng):
    layer = make_layer("lstm", I, H)
    stream, pool = layer.stream(3), rnnfast.StreamPool(layer, 4)
    ids = [pool.join() for _ in range(3)]
    x = sequence(rng, 1, 3)[0]
    stream.step(x)
    pool.step(ids, x)
    for form in (x, np.asfortranarray(x), x.tolist()):
        before = snapshot(stream)
        with pytest.raises(error, match=match):
            stream.step(form, out=out)
        assert snapshot(stream) == before
        with pytest.raises(error, match=match):
            pool.step(ids, form, out=out)
    assert stream.step(x).tobytes() == pool.step(ids, x).tobytes()
    assert bits(stream.state) == bits(tuple(np.stack(m, 1) for m in zip(*(pool.leave(i) for i in ids), strict=True)))


def test_out_that_is_x(rng):
    """In whole or in part. Where x is copied before it is read, it may do no harm."""
    layer = make_layer("gru", I, I)
    stream, pool = layer.stream(3), rnnfast.StreamPool(layer, 3)
    ids = [pool.join() for _ in range(3)]
    memory = sequence(rng, 1, 14)[0].reshape(7, 2 * I)
    kept, rows = memory.copy(), memory.reshape(14, I)
    shared = [(rows[:3], rows[:3]), (rows[:3], rows[2:5]), (rows[2:5], rows[:3]), (rows[:3], rows[:5:2])]
    for x, out in shared:
        for step in (stream.step, lambda x, out: pool.step(ids, x, out)):
            with pytest.raises(ValueError, match="out must not share memory with x"):
                step(x, out=out)
    assert memory.tobytes() == kept.tobytes()
    assert not stream.state.any()
    views = [(rows[4::-2], rows[:3]), (memory[:3, :I], memory[:3, 2:-3]), (memory[:3, 1:-4], memory[2::-1, 2:-3])]
    for x, out in views:
        expected, _ = layer(x[None].copy())
        for step in (layer.stream(3).step, lambda x, out: pool.step(ids, x, out)):
            memory[...] = kept
            refused = False
            try:
                step(x, out=out)
            except ValueError as error:
                refused = str(error)
            if refused:
                assert "out must not share memory with x" in refused
                assert memory.tobytes() == kept.tobytes()
            else:
                np.testing.assert_array_equal(out, expected[0])
    memory[...] = kept
    y = stream.step(rows[:3], out=rows[3:6])
    assert y.tobytes() == layer(kept.reshape(1, 14, I)[:, :3])[0].tobytes()


# ---- errors


BAD_X = [
    (np.ones((2, I)), ValueError, r"\(3, 5\).* got \(2, 5\)"),
    (np.ones((3, I + 1)), ValueError, r"\(3, 5\).* got \(3, 6\)"),
    (np.ones(I), ValueError, r"\(3, 5\).* got \(5,\)"),
    (np.ones((1, 3, I)), ValueError, r"\(3, 5\).* got \(1, 3, 5\)"),
    (np.ones((3, 0)), ValueError, r"\(3, 5\).* got \(3, 0\)"),
    (3.0, ValueError, r"\(3, 5\).* got \(\)"),
    (np.ones((3, I), complex), TypeError, "must hold real numbers, to be used as float32, but its dtype is complex128"),
    (np.full((3, I), "1"), TypeError, "must hold real numbers.* <U1"),
    (None, TypeError, "must hold real numbers"),
    ([[1.0], [2.0, 3.0]], ValueError, "cannot be read as an array"),
]


@pytest.mark.parametrize(("x", "error", "match"), BAD_X)
def test_bad_x(x, error, match, rng):
    layer = make_layer("lstm", I, H)
    stream, pool, good = layer.stream(3), rnnfast.StreamPool(layer, 3), sequence(rng, 2, 3)
    ids = [pool.join() for _ in range(3)]
    stream.step(good[0])
    pool.step(ids, good[0])
    out = np.full((3, H), 7, np.float32)
    before = snapshot(stream)
    for given_out in (None, out):
        with pytest.raises(error, match=f"^x_t .*{match}"):
            stream.step(x, given_out)
        with pytest.raises(error, match=f"^x .*{match}"):
            pool.step(ids, x, given_out)
    assert (out == 7).all()
    assert snapshot(stream) == before
    assert stream.step(good[1]).tobytes() == pool.step(ids, good[1]).tobytes() == layer(good)[0][1].tobytes()


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.ones((4, 2, I)), r"x has 2 rows, but this stream was made with batch_size=3; got \(4, 2, 5\)"),
        (np.ones((4, I)), r"x has 1 rows, but this stream was made with batch_size=3; got \(4, 5\)"),
        (np.ones((4, 0, I)), "x has 0 rows, but this stream was made with batch_size=3"),
        (np.ones((0, 3, I)), "x has no time steps"),
        (np.ones((4, 3, I + 1)), "x has 6 features"),
        (np.ones(I), "x must have layout"),
    ],
)
def test_bad_chunks(x, match, rng):
    layer = make_layer("lstm", I, H)
    stream, good = layer.stream(3), sequence(rng, 2, 3)
    stream(good[:1])
    before = snapshot(stream)
    with pytest.raises(ValueError, match=match):
        stream(x)
    assert snapshot(stream) == before
    assert stream(good[1:]).tobytes() == layer(good)[0][1:].tobytes()


@pytest.mark.parametrize(
    ("size", "error", "match"),
    [
        (0, ValueError, "must be at least 1, got 0"),
        (-2, ValueError, "must be at least 1, got -2"),
        (2.0, TypeError, "must be an integer, got 2.0"),
        (True, TypeError, "must be an integer, got True"),
        (None, TypeError, "must be an integer, got None"),
        ("3", TypeError, "must be an integer, got '3'"),
        ([3], TypeError, "must be an integer"),
    ],
)
def test_bad_sizes(size, error, match):
    layer = make_layer("lstm", I, H)
    with pytest.raises(error, match="batch_size " + match):
        layer.stream(size)
    with pytest.raises(error, match="capacity " + match):
        rnnfast.StreamPool(layer, size)


@pytest.mark.parametrize("size", [2**60, 2**70])
def test_sizes_that_overflow(size):
    layer = make_layer("lstm", I, H)
    for make in (layer.stream, lambda size: rnnfast.StreamPool(layer, size)):
        with pytest.raises((ValueError, MemoryError)):
            make(size)
    with pytest.raises(MemoryError):
        layer.stream(2**42)


@pytest.mark.parametrize("options", [{"reverse": True}, {"bidirectional": True}])
def test_layers_that_run_backwards(variant, options):
    layer = make_layer(variant, I, H, **options)
    for make in (layer.stream, rnnfast.Stream, lambda: rnnfast.StreamPool(layer, 3)):
        with pytest.raises(ValueError, match=r"runs backwards, from the last step of a sequence"):
            make(layer) if make is rnnfast.Stream else make()


@pytest.mark.parametrize("other", [rnnfast.Bidirectional(make_layer("gru", I, H)), rnnfast.Linear(I, H), None, "LSTM"])
def test_what_is_no_recurrent_layer(other):
    for make in (rnnfast.Stream, lambda layer: rnnfast.StreamPool(layer, 3)):
        with pytest.raises((TypeError, ValueError), match=r"layer must be an RNN, LSTM or GRU, got|runs backwards"):
            make(other)
    if isinstance(other, rnnfast.Bidirectional):
        with pytest.raises((AttributeError, ValueError), match="stream"):
            other.stream()


# ---- the state


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
    ("state", "match"),
    [
        (np.zeros((1, 3, H)), "must be the pair"),
        ((np.zeros((1, 3, H)),), "must be the pair .* got 1 members"),
        ((np.zeros((1, 2, H)), np.zeros((1, 3, H))), r"state\[0\] \(h\) must have shape .* got \(1, 2, 11\)"),
        ((np.zeros((1, 3, H)), np.zeros((3, H))), r"state\[1\] \(c\) must have shape .* got \(3, 11\)"),
        ((np.zeros((1, 3, H)), 0.0), r"state\[1\] \(c\) must have shape .* got \(\)"),
        ((np.zeros((1, 3, H)), "c"), r"state\[1\] \(c\) must hold real numbers"),
    ],
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_bad_states(state, match, batch_first, rng):
    stream = make_layer("lstm", I, H, batch_first=batch_first).stream(3)
    stream.step(sequence(rng, 1, 3)[0])
    before = snapshot(stream)
    with pytest.raises((ValueError, TypeError), match=match):
        stream.state = state
    assert snapshot(stream) == before


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
            assert member.all(axis=-1).any() or variant == "rnn_relu"
            member[:, which] = 0
        assert bits(stream.state) == bits(state)
        assert_same_bits(results(stream.step(x[2])[None], stream.state), results(*layer(x[2:], state)))


@pytest.mark.parametrize(
    "rows",
    [
        4,
        -5,
        [[0], [1, 2]],
        [0, 4],
        [True, False],
        np.ones(5, bool),
        np.ones((4, 1), bool),
        1.0,
        "0",
        [0.0],
        {0},
        2**70,
        object(),
    ],
)
def test_bad_resets(rows, rng):
    stream = make_layer("lstm", I, H).stream(4)
    stream.step(sequence(rng, 1, 4)[0])
    before = snapshot(stream)
    with pytest.raises(IndexError, match="rows "):
        stream.reset(rows)
    assert snapshot(stream) == before


# ---- weights


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("N", [1, 3])
def test_weights_are_those_of_the_beginning(variant, N, frozen, rng):
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


# ---- memory, threads, signals


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
    """Of steps that convert, of chunks, of states, of pools."""
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
    """Each step is taken whole or refused."""
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
    assert all("at work in another thread" in text for text in refused)
    _, state = layer(np.repeat(x, len(done), axis=0))
    assert bits(stream.state) == bits(state)


def test_a_stream_at_work_refuses():
    layer = make_layer("lstm", I, H)
    stream = layer.stream()
    x = np.ones(I, np.float32)
    stream.step(x)
    before = snapshot(stream)
    stream._step.begin()
    calls = [
        lambda: stream.step(x),
        lambda: stream.step(x.tolist()),
        lambda: stream(x[None]),
        lambda: stream.state,
        lambda: setattr(stream, "state", None),
        stream.reset,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="at work in another thread: give each thread a stream of its own"):
            call()
    stream._step.end()
    assert snapshot(stream) == before


def test_interrupted_steps_leave_the_state():
    """KeyboardInterrupt in the middle of steps: the state is that of a whole number of them."""
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


# ---- pools


class Model:
    """A pool beside streams of their own."""

    def __init__(self, layer, capacity):
        self.layer, self.pool, self.streams = layer, rnnfast.StreamPool(layer, capacity), {}
        self.left = []

    def join(self, state=None):
        id = self.pool.join(state)  # noqa: A001
        assert id not in self.streams
        assert id not in self.left
        self.streams[id] = self.layer.stream()
        if state is not None:
            middle = tuple(np.asarray(m).reshape(m.shape[0], 1, -1) for m in members(state))
            self.streams[id].state = middle if isinstance(state, tuple) else middle[0]
        return id

    def step(self, ids, x, out=None):
        y = self.pool.step(ids, x, out)
        expected = [self.streams[int(id)].step(x_t) for id, x_t in zip(ids, x, strict=True)]  # noqa: A001
        assert y.tobytes() == np.array(expected, y.dtype).reshape(y.shape).tobytes()
        return y

    def leave(self, id):  # noqa: A002
        state = self.pool.leave(id)
        assert bits(state) == bits(row_of(self.streams.pop(id).state, 0))
        assert [m.ndim for m in members(state)] == [2] * len(members(state))
        self.left.append(id)
        return state

    def check(self):
        assert len(self.pool) == len(self.streams)
        assert all(id in self.pool for id in self.streams)  # noqa: A001
        assert not any(id in self.pool for id in self.left)  # noqa: A001


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(VARIANTS)), isas, st.integers(1, 3), st.integers(1, 9), seeds)
def test_a_pool_is_streams_of_their_own(variant, isa, num_layers, capacity, seed):
    rng = np.random.default_rng(seed)
    with functional.use_isa(isa):
        layer = make_layer(
            variant, I, int(rng.integers(1, 20)), num_layers=num_layers, dtype=DTYPES[seed % 2], bias=seed % 5 > 0
        )
    if seed % 3 == 0:
        layer.freeze()
    model = Model(layer, capacity)
    kept = []
    for _ in range(40):
        action, ids = rng.choice(["join", "join", "step", "step", "step", "leave", "fault"]), list(model.streams)
        if action == "join" and len(ids) == capacity:
            with pytest.raises(RuntimeError, match=f"this pool is full, with {capacity} streams"):
                model.pool.join()
        elif action == "join":
            start = rng.integers(0, 3)
            if start and kept:
                model.join(kept[rng.integers(len(kept))])
            elif start:
                model.join(random_state(layer, 1, rng))
            else:
                model.join()
        elif action == "leave" and ids:
            kept.append(model.leave(ids[rng.integers(len(ids))]))
        elif action == "step":
            some = rng.permutation(ids)[: rng.integers(0, len(ids) + 1)].astype(int)
            x = rng.standard_normal((len(some), I)).astype(layer.dtype)
            out = np.empty((len(some), layer._engine.output_size), layer.dtype) if rng.random() < 0.5 else None
            y = model.step([some.tolist(), some, tuple(some), list(some)][rng.integers(4)], x, out)
            assert out is None or y is out
        elif action == "fault":
            unknown = int(rng.choice([-1, 0, 10**6, *model.left])) if model.left else -1
            with pytest.raises(KeyError, match=f"{unknown} (has left this|is no id of this) pool"):
                model.pool.step([*ids, unknown], np.ones((len(ids) + 1, I)))
            with pytest.raises(KeyError, match=str(unknown)):
                model.pool.leave(unknown)
            if ids:
                with pytest.raises(ValueError, match=f"ids holds {ids[0]} twice"):
                    model.pool.step([*ids, ids[0]], np.ones((len(ids) + 1, I)))
                with pytest.raises(ValueError, match="x must have shape"):
                    model.pool.step(ids, np.ones((len(ids) + 1, I)))
        model.check()
    for id in list(model.streams):  # noqa: A001
        model.leave(id)
    assert len(model.pool) == 0


def test_pool_of_many(variant, dtype, threads, rng):
    """Enough rows for several threads."""
    layer = make_layer(variant, 17, 33, dtype=dtype)
    model = Model(layer, 500)
    ids = np.array([model.join() for _ in range(500)])
    for count in (1, 2, 3):
        threads(count)
        for size in (500, 1, 77, 500):
            some = rng.permutation(ids)[:size]
            model.step(some, sequence(rng, 1, size, dtype, 17)[0])
    for id in rng.permutation(ids)[:50].tolist():  # noqa: A001
        model.leave(id)
    model.check()


def test_states_of_pools(variant, rng):
    layer = make_layer(variant, I, H, num_layers=3)
    stream, x = layer.stream(), sequence(rng, 6, 1)
    expected, _ = layer(x)
    stream(x[:3])
    pool, other = rnnfast.StreamPool(layer, 2), rnnfast.StreamPool(layer, 1)
    alice = pool.join(stream.state)
    assert pool.step([alice], x[3]).tobytes() == expected[3].tobytes()
    state = pool.leave(alice)
    kept = bits(state)
    bob = other.join(state)
    for member in members(state):
        assert member.flags.owndata
        assert member.flags.writeable
        member[...] = np.nan
    assert other.step([bob], x[4]).tobytes() == expected[4].tobytes()
    state = other.leave(bob)
    assert bits(state) != kept
    lists = tuple(member.tolist() for member in members(state))
    carol = pool.join(lists if isinstance(state, tuple) else lists[0])
    assert carol != alice
    assert pool.step([carol], x[5]).tobytes() == expected[5].tobytes()
    if isinstance(state, tuple):
        h, c = state
        no_h, no_c = np.zeros_like(h), np.zeros_like(c)
        for partial, filled in [((h, None), (h, no_c)), ((None, c), (no_h, c)), ((None, None), (no_h, no_c))]:
            for start in (partial, tuple(None if m is None else m[:, None] for m in partial)):
                assert bits(pool.leave(pool.join(start))) == bits(filled)
    assert not any(member.any() for member in members(pool.leave(pool.join())))


@pytest.mark.parametrize(
    ("variant", "state", "match"),
    [
        ("gru", np.zeros((1, H + 1)), r"state must have shape .*\(1, 11\), got \(1, 12\)"),
        ("gru", np.zeros(H), r"state must have shape .*\(1, 11\), got \(11,\)"),
        ("gru", np.zeros((1, 2, H)), r"state must have shape .*\(1, 1, 11\), got \(1, 2, 11\)"),
        ("gru", 1.0, r"state must have shape .* got \(\)"),
        ("gru", "h", "state must hold real numbers"),
        ("gru", np.zeros((1, H), complex), "state must hold real numbers"),
        ("gru", (np.zeros((1, H)), np.zeros((1, H))), "state must have shape"),
        ("gru", [[1.0], [2.0, 3.0]], "state cannot be read as an array"),
        ("lstm", np.zeros((1, H)), "state must be the pair"),
        ("lstm", np.zeros((2, 1, H)), "state must be the pair"),
        ("lstm", (np.zeros((1, H)),), "state must be the pair"),
        ("lstm", (np.zeros((1, H)), np.zeros((1, 2, H))), r"state\[1\] \(c\) must have shape|state\[0\]"),
        ("lstm", (np.zeros((2, H)), np.zeros((1, H))), r"state\[0\] \(h\) must have shape"),
        ("lstm", ([[1.0], [2.0, 3.0]], np.zeros((1, H))), r"state\[0\] \(h\) cannot be read as an array"),
        ("lstm", {"h": 0, "c": 0}, "state must be the pair"),
    ],
)
def test_bad_states_of_pools(variant, state, match):
    pool = rnnfast.StreamPool(make_layer(variant, I, H), 1)
    for _ in range(3):
        with pytest.raises((ValueError, TypeError), match=match):
            pool.join(state)
        assert len(pool) == 0
    assert len([pool.join()]) == len(pool) == pool.capacity == 1


def test_ids(rng):
    layer = make_layer("gru", I, H)
    pool = rnnfast.StreamPool(layer, 3)
    ids = [pool.join() for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(type(id) is int for id in ids)  # noqa: A001
    x = sequence(rng, 9, 3)
    expected, _ = layer(x)
    given = [
        ids,
        tuple(ids),
        np.array(ids),
        np.array(ids, np.uint8),
        list(np.array(ids)),
        iter(ids),
        dict.fromkeys(ids),
    ]
    for t, some in enumerate(given):
        assert pool.step(some, x[t]).tobytes() == expected[t].tobytes()
    assert pool.step(np.array(ids)[::-1], x[7, ::-1]).tobytes() == expected[7, ::-1].tobytes()
    for nothing in ([], (), np.array([], int), np.array([])):
        assert pool.step(nothing, np.empty((0, I))).shape == (0, H)
        out = np.empty((0, H), np.float32)
        assert pool.step(nothing, np.empty((0, I)), out) is out
        with pytest.raises(ValueError, match=r"x must have shape .*\(0, 5\), got \(1, 5\)"):
            pool.step(nothing, np.ones((1, I)))
    assert pool.step(ids, x[8]).tobytes() == expected[8].tobytes()
    assert np.int64(ids[0]) in pool
    assert bits(pool.leave(np.int64(ids[0])))
    assert ids[0] not in pool
    assert repr(pool) == "StreamPool(GRU(5, 11), capacity=3)  # 2 streams"


def test_bad_ids(rng):
    layer = make_layer("lstm", I, H)
    pool = rnnfast.StreamPool(layer, 4)
    gone, *ids = [pool.join() for _ in range(4)]
    pool.leave(gone)
    x = sequence(rng, 2, 3)
    expected, _ = layer(x)
    assert pool.step(ids, x[0]).tobytes() == expected[0].tobytes()
    has_left, is_none = f"{gone} has left this pool", "is no id of this pool"
    bad = [
        (gone, has_left),
        (0, is_none),
        (-1, is_none),
        (99, is_none),
        ("a", is_none),
        (None, is_none),
        ([1], is_none),
    ]
    for id, match in [*bad, (2.5, is_none), (np.nan, is_none)]:  # noqa: A001
        for some in ([*ids, id], [id, *ids], [id]):
            with pytest.raises(KeyError, match=match):
                pool.step(some, np.ones((len(some), I)))
        with pytest.raises(KeyError, match=match):
            pool.leave(id)
    for some in (np.array([ids[0], gone]), [np.int64(gone)]):
        with pytest.raises(KeyError, match=f"{gone}.* has left this pool"):
            pool.step(some, np.ones((len(some), I)))
    with pytest.raises(KeyError, match=f"{gone}.* has left this pool"):
        pool.leave(np.int64(gone))
    for some in ([ids[0], ids[1], ids[0]], np.array(ids)[[2, 2]], [ids[0], np.int64(ids[0])]):
        with pytest.raises(ValueError, match=r"ids holds \d+ twice: a stream takes one step at a time"):
            pool.step(some, np.ones((len(some), I)))
    for some in (3, None, np.int64(2)):
        with pytest.raises(TypeError):
            pool.step(some, np.ones((1, I)))
    with pytest.raises(KeyError, match=is_none):
        pool.step(np.array([[ids[0]]]), np.ones((1, I)))
    assert len(pool) == 3
    assert pool.step(ids, x[1]).tobytes() == expected[1].tobytes()


def test_ids_are_never_used_again():
    pool = rnnfast.StreamPool(make_layer("gru", I, H), 2)
    seen = set()
    for _ in range(200):
        id = pool.join()  # noqa: A001
        assert id not in seen
        seen.add(id)
        pool.leave(id)
    assert pool.join() not in seen


def test_a_full_pool_goes_on(rng):
    layer = make_layer("lstm", I, H)
    pool = rnnfast.StreamPool(layer, 2)
    ids = [pool.join(), pool.join()]
    x = sequence(rng, 2, 2)
    pool.step(ids, x[0])
    for state in (None, random_state(layer, 1, rng)):
        with pytest.raises(
            RuntimeError, match="this pool is full, with 2 streams: let one leave, or make a pool of a larger"
        ):
            pool.join(state)
    assert len(pool) == 2
    assert pool.step(ids, x[1]).tobytes() == layer(x)[0][1].tobytes()
    pool.leave(ids[0])
    assert pool.join() not in ids


def test_a_pool_from_many_threads(rng):
    """Streams join, step and leave in threads of their own."""
    layer = make_layer("gru", I, H)
    pool = rnnfast.StreamPool(layer, 8)
    x = sequence(rng, 20, 1)
    expected, _ = layer(x)
    faults, seen = [], []
    interval = sys.getswitchinterval()

    def work():
        try:
            for _ in range(15):
                id = pool.join()  # noqa: A001
                seen.append(id)
                for x_t, y_t in zip(x, expected, strict=True):
                    assert pool.step([id], x_t).tobytes() == y_t.tobytes()
                pool.leave(id)
        except BaseException as fault:
            faults.append(fault)

    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=work) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert not faults, faults
    assert len(set(seen)) == len(seen)


def test_names_of_arguments():
    """The names by which arguments may be given."""
    layer = make_layer("gru", I, H)
    stream, pool = layer.stream(batch_size=2), rnnfast.StreamPool(layer=layer, capacity=1)
    assert stream.step(x_t=np.ones((2, I)), out=None).shape == (2, H)
    assert stream(x=np.ones((3, 2, I))).shape == (3, 2, H)
    stream.reset(rows=0)
    id = pool.join(state=None)  # noqa: A001
    assert pool.step(ids=[id], x=np.ones((1, I)), out=None).shape == (1, H)
    assert pool.leave(id=id).shape == (1, H)
