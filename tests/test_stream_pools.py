"""Each stream in a pool gives the same bits as a stream alone."""

import copy
import pickle
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cells import VARIANTS, make_layer
from support.compare import members
from support.ragged import isas, seeds
from support.streams import DTYPES, H, I, bits, random_state, row_of, sequence

import rnnfast
from rnnfast import functional


class Model:
    """A pool, and the single streams that it must agree with."""

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


@given(st.sampled_from(list(VARIANTS)), isas, st.integers(1, 3), st.integers(1, 9), seeds)
def test_pool_agrees_with_single_streams(variant, isa, num_layers, capacity, seed):
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
            out = np.empty((len(some), layer.engine.output_size), layer.dtype) if rng.random() < 0.5 else None
            y = model.step([some.tolist(), some, tuple(some), list(some)][rng.integers(4)], x, out)
            assert out is None or y is out
        elif action == "fault":
            unknown = int(rng.choice([-1, 0, 10**6, *model.left])) if model.left else -1
            with pytest.raises(KeyError, match=f"{unknown} (has left this|is not an id of this) pool"):
                model.pool.step([*ids, unknown], np.ones((len(ids) + 1, I)))
            with pytest.raises(KeyError, match=str(unknown)):
                model.pool.leave(unknown)
            if ids:
                with pytest.raises(ValueError, match=f"ids contains {ids[0]} twice"):
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


def test_ids_are_never_used_again():
    pool = rnnfast.StreamPool(make_layer("gru", I, H), 2)
    seen = set()
    for _ in range(200):
        id = pool.join()  # noqa: A001
        assert id not in seen
        seen.add(id)
        pool.leave(id)
    assert pool.join() not in seen


def test_full_pool_still_works(rng):
    layer = make_layer("lstm", I, H)
    pool = rnnfast.StreamPool(layer, 2)
    ids = [pool.join(), pool.join()]
    x = sequence(rng, 2, 2)
    pool.step(ids, x[0])
    for state in (None, random_state(layer, 1, rng)):
        with pytest.raises(
            RuntimeError, match=r"this pool is full, with 2 streams: call leave\(\) for one, or create a larger pool"
        ):
            pool.join(state)
    assert len(pool) == 2
    assert pool.step(ids, x[1]).tobytes() == layer(x)[0][1].tobytes()
    pool.leave(ids[0])
    assert pool.join() not in ids


def test_a_pool_from_many_threads(rng):
    """Streams join, step and leave in different threads."""
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


class Converted:
    """An array-like object that calls a function when it is converted, which is while a step is at work."""

    def __init__(self, values, during):
        self.values, self.during = values, during

    def __array__(self, dtype=None, copy=None):
        self.during()
        return np.asarray(self.values, dtype)


def test_streams_of_a_step_are_busy(rng):
    """While streams are in a step, they can neither step nor leave, and others do not get their slots."""
    layer = make_layer("lstm", I, H)
    pool = rnnfast.StreamPool(layer, 4)
    a, b, c = (pool.join() for _ in range(3))
    x, one = sequence(rng, 4, 2), np.ones((1, I), np.float32)
    expected, _ = layer(x)
    joined = []

    def during():
        for call in (lambda: pool.step([a], one), lambda: pool.step([c, a], x[0]), lambda: pool.leave(b)):
            with pytest.raises(RuntimeError, match=r"^stream [12] is in use by another thread: wait until its "):
                call()
        with pytest.raises(ValueError, match=f"ids contains {c} twice"):
            pool.step([c, c], x[0])
        joined.append(pool.join())
        with pytest.raises(RuntimeError, match="this pool is full"):
            pool.join()
        y = pool.step([joined[-1]], one)
        assert y.tobytes() == layer(one[None])[0][0].tobytes()
        pool.leave(joined[-1])
        assert sorted(pool) == [a, b, c]

    for t in range(3):
        y = pool.step([a, b], Converted(x[t], during))
        assert y.tobytes() == expected[t].tobytes()
    assert len(set(joined)) == 3
    assert pool.step([a, b], x[3]).tobytes() == expected[3].tobytes()
    pool.leave(a)


def test_a_step_that_fails_leaves_its_streams_free(rng):
    layer = make_layer("gru", I, H)
    pool, x = rnnfast.StreamPool(layer, 2), sequence(rng, 2, 2)
    ids = [pool.join(), pool.join()]
    expected, _ = layer(x)

    def fail():
        raise KeyboardInterrupt

    pool.step(ids, x[0])
    for bad in (Converted(x[1], fail), x[0, :1], None):
        with pytest.raises((KeyboardInterrupt, TypeError, ValueError)):
            pool.step(ids, bad)
    assert pool.step(ids, x[1]).tobytes() == expected[1].tobytes()


def test_no_step_is_lost_when_threads_share_a_stream():
    """Each step of a shared stream completes or is refused."""
    layer = make_layer("gru", 200, 300)
    pool, x = rnnfast.StreamPool(layer, 1), np.ones((1, 200), np.float32)
    id, done, refused = pool.join(), [], []  # noqa: A001

    def work():
        for _ in range(40):
            try:
                pool.step([id], x)
                done.append(1)
            except RuntimeError as error:
                refused.append(str(error))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(done) + len(refused) == 120
    assert all("is in use by another thread" in text for text in refused)
    _, state = layer(np.repeat(x[None], len(done), axis=0))
    assert bits(pool.leave(id)) == bits(row_of(state, 0))


def test_iteration_returns_the_ids():
    pool = rnnfast.StreamPool(make_layer("gru", I, H), 3)
    assert list(pool) == []
    ids = {pool.join(), pool.join()}
    assert set(pool) == ids
    pool.leave(ids.pop())
    assert set(pool) == ids


def test_pools_are_not_copied():
    pool = rnnfast.StreamPool(make_layer("gru", I, H), 3)
    for copy_of in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a StreamPool can be neither pickled nor copied"):
            copy_of(pool)


def test_names_of_arguments():
    """Arguments can be passed by name."""
    layer = make_layer("gru", I, H)
    stream, pool = layer.stream(batch_size=2), rnnfast.StreamPool(layer=layer, capacity=1)
    assert stream.step(x_t=np.ones((2, I)), out=None).shape == (2, H)
    assert stream(x=np.ones((3, 2, I))).shape == (3, 2, H)
    stream.reset(rows=0)
    id = pool.join(state=None)  # noqa: A001
    assert pool.step(ids=[id], x=np.ones((1, I)), out=None).shape == (1, H)
    assert pool.leave(id=id).shape == (1, H)
