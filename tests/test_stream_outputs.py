"""The `out` argument of streams and pools."""

import numpy as np
import pytest
from support.cells import make_layer
from support.streams import H, I, sequence

import rnnfast

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


def test_out_that_is_x(rng):
    """`out` may not overlap x, unless x is copied before it is read."""
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
