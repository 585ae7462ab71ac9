"""Invalid arguments of streams and pools are rejected."""

import copy
import pickle

import numpy as np
import pytest
from support.cells import make_layer
from support.streams import H, I, bits, sequence, snapshot

import rnnfast

# --- the out argument


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


# --- errors


BAD_X = [
    (np.ones((2, I)), ValueError, r"\(3, 5\).* got \(2, 5\)"),
    (np.ones((3, I + 1)), ValueError, r"\(3, 5\).* got \(3, 6\)"),
    (np.ones(I), ValueError, r"\(3, 5\).* got \(5,\)"),
    (np.ones((1, 3, I)), ValueError, r"\(3, 5\).* got \(1, 3, 5\)"),
    (np.ones((3, 0)), ValueError, r"\(3, 5\).* got \(3, 0\)"),
    (3.0, ValueError, r"\(3, 5\).* got \(\)"),
    (
        np.ones((3, I), complex),
        TypeError,
        "must hold real numbers, to be converted to float32, but its dtype is complex128",
    ),
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
        (np.ones((4, 2, I)), r"x has 2 rows, but this stream was created with batch_size=3; got \(4, 2, 5\)"),
        (np.ones((4, I)), r"x has 1 rows, but this stream was created with batch_size=3; got \(4, 5\)"),
        (np.ones((4, 0, I)), "x has 0 rows, but this stream was created with batch_size=3"),
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
        with pytest.raises(ValueError, match=r"cannot be streamed, because its reverse direction starts"):
            make(layer) if make is rnnfast.Stream else make()


@pytest.mark.parametrize("other", [rnnfast.Bidirectional(make_layer("gru", I, H)), rnnfast.Linear(I, H), None, "LSTM"])
def test_streams_reject_other_layers(other):
    for make in (rnnfast.Stream, lambda layer: rnnfast.StreamPool(layer, 3)):
        with pytest.raises((TypeError, ValueError), match=r"layer must be a recurrent layer, got|cannot be streamed"):
            make(other)
    if isinstance(other, rnnfast.Bidirectional):
        with pytest.raises((AttributeError, ValueError), match="stream"):
            other.stream()


# --- the state


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (np.zeros((1, 3, H)), "must be the pair"),
        ((np.zeros((1, 3, H)),), "must be the pair .* got 1 elements"),
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
    "rows",
    [
        4,
        -5,
        [[0], [1, 2]],
        [0, 4],
        [True, False],
        np.ones(5, bool),
        np.ones((4, 1), bool),
        [[0, 1]],
        [[0], [1]],
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


# --- pools


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


def test_bad_ids(rng):
    layer = make_layer("lstm", I, H)
    pool = rnnfast.StreamPool(layer, 4)
    gone, *ids = [pool.join() for _ in range(4)]
    pool.leave(gone)
    x = sequence(rng, 2, 3)
    expected, _ = layer(x)
    assert pool.step(ids, x[0]).tobytes() == expected[0].tobytes()
    has_left, is_none = f"{gone} has left this pool", "is not an id of this pool"
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
        with pytest.raises(ValueError, match=r"ids contains \d+ twice, but each stream can take only one step"):
            pool.step(some, np.ones((len(some), I)))
    for some in (3, None, np.int64(2)):
        with pytest.raises(TypeError):
            pool.step(some, np.ones((1, I)))
    with pytest.raises(KeyError, match=is_none):
        pool.step(np.array([[ids[0]]]), np.ones((1, I)))
    assert len(pool) == 3
    assert pool.step(ids, x[1]).tobytes() == expected[1].tobytes()


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_stream_is_not_copied(copied):
    stream = rnnfast.GRU(I, H, rng=0).stream()
    with pytest.raises(TypeError, match="a Stream can be neither pickled nor copied: save its state"):
        copied(stream)


def test_ids_whose_text_cannot_be_made_leave_no_stream_in_use(rng):
    """The error for an id names it, which may raise."""

    class Id(int):
        def __repr__(self, *_):
            raise KeyboardInterrupt

        __format__ = __repr__

    pool = rnnfast.StreamPool(make_layer("lstm", I, H), 3)
    first, second = pool.join(), pool.join()
    x = sequence(rng, 1, 2)[0]
    for ids in ([first, Id(999)], [first, Id(first)]):
        with pytest.raises((KeyboardInterrupt, ValueError)):
            pool.step(ids, x)
    pool.step([first, second], x)
    pool.leave(first)


def test_ids_of_an_array_without_axes(rng):
    pool = rnnfast.StreamPool(make_layer("lstm", I, H), 3)
    pool.join()
    with pytest.raises(TypeError, match="ids must be a sequence"):
        pool.step(np.array(1), sequence(rng, 1, 1)[0])
