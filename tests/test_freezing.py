"""Frozen layers, and prepared calls of any layer, give the same results in any order of calls."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.cells import has_c
from support.compare import assert_same_bits, members
from support.layers import H, I, N, T, like, make, outputs, problem, results

import rnnfast
from rnnfast import functional


def test_frozen(variant, rng):
    layer = make(variant, num_layers=2)
    x, state, dy, dstate = problem(layer, rng)
    expected = results(layer, x, state, dy, dstate)
    view = layer.parameters["weight_ih_l0"][...]
    layer.freeze()
    layer.freeze()
    assert not any(array.flags.writeable for array in layer.parameters.values())
    for _ in range(2):
        np.testing.assert_array_equal(layer(x, state)[0], expected["y"])
        assert_same_bits(results(layer, x, state, dy, dstate), expected)
    view[...] = 0
    np.testing.assert_array_equal(layer(x, state)[0], expected["y"])
    layer.unfreeze()
    assert all(array.flags.writeable for array in layer.parameters.values())
    assert not np.array_equal(layer(x, state)[0], expected["y"])


# Forms of an array of the same values, in the order in which a layer with a prepared call meets them.
GUISES = {
    "as it is": lambda x: x,
    "again": lambda x: x,
    "list": lambda x: x.tolist(),
    "other dtype": lambda x: x.astype(np.float64 if x.dtype == np.float32 else np.float32),
    "after that": lambda x: x,
    "with gaps": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "by columns": np.asfortranarray,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned": lambda x: np.frombuffer(b"." + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    "memoryview": memoryview,
    "masked": np.ma.masked_array,
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "at last": lambda x: x,
}


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_repeated_calls(variant, layout, dtype, is_frozen, rng):
    """Every call gives the result of the first one for any form of x, and returns new arrays."""
    layer = make(variant, num_layers=2, bidirectional=True, dtype=dtype, batch_first=layout == "batch first")
    shape = {"time first": (T, N, I), "batch first": (N, T, I), "unbatched": (T, I)}[layout]
    x = rng.integers(-9, 9, shape).astype(dtype)  # the same numbers in every dtype
    start = layer(x)[1]
    for member in members(start):
        member[...] = rng.integers(-1, 2, member.shape)
    answers = [
        (given, layer(x, given))
        for given in (None, start, members(start)[0] if not has_c(variant) else (None, start[1]))
    ]
    if is_frozen:
        layer.freeze()
    for name, guise in GUISES.items():
        for given, (y, end) in answers:
            if isinstance(given, tuple):
                again = tuple(None if member is None else guise(member) for member in given)
            else:
                again = None if given is None else guise(given)
            got_y, got_end = layer(guise(x), again)
            for got, want in zip([got_y, *members(got_end)], [y, *members(end)], strict=True):
                np.testing.assert_array_equal(got, want, err_msg=name)
                assert got.dtype == want.dtype
                assert got.flags.owndata
                got.fill(np.nan)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_prepared_calls_reject_invalid_arguments(variant, is_frozen):
    """A prepared call rejects what any call rejects, and the next call works."""
    layer = make(variant)
    if is_frozen:
        layer.freeze()
    x = np.ones((T, N, I), np.float32)
    layer(x)
    layer(x)
    y, state = layer(x)
    h, *c = members(state)
    wrong = [h[:, :2], h[0], h[..., :2], np.float32(0), "h", object()]
    for other in wrong:
        given = [(other, *c), *([(h, other), (h,), (h, *c, h), h] if c else [])] if c else [other, (h, h, h)]
        for bad in given:
            with pytest.raises((TypeError, ValueError), match="state"):
                layer(x, bad)
    with pytest.raises((TypeError, ValueError), match="x"):
        layer(x[..., :3], state)
    np.testing.assert_array_equal(layer(x)[0], y)


def test_frozen_calls_of_many_shapes(variant, rng):
    layer, frozen = make(variant), make(variant)
    frozen.freeze()
    for steps, rows in [(1, 1), (1, 1), (7, 1), (7, 1), (1, 7), (7, 1), (3, 0), (3, 0), (90, 40), (90, 40)]:
        x = rng.standard_normal((steps, rows, I)).astype(np.float32)
        for given in (None, like(layer(x)[1], rng), None):
            (y, state), (want, end) = frozen(x, given), layer(x, given)
            for got, expected in zip([y, *members(state)], [want, *members(end)], strict=True):
                np.testing.assert_array_equal(got, expected)
    with pytest.raises(ValueError, match="has 3 features"):
        frozen(np.zeros((90, 40, 3), np.float32))


def test_frozen_calls_end_with_the_freezing(variant, rng):
    layer = make(variant)
    x = rng.standard_normal((T, N, I)).astype(np.float32)
    for _ in range(2):
        layer.freeze()
        for _ in range(3):
            y, _ = layer(x)
        layer.unfreeze()
        for array in layer.parameters.values():
            array *= 2
        other = make(variant)
        other.load_state_dict(layer.state_dict())
        np.testing.assert_array_equal(layer(x)[0], other(x)[0])
        assert not np.array_equal(layer(x)[0], y)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("shape", [(2, 1), (T, N), (60, 20)])
def test_repeated_calls_use_the_present_parameters(variant, num_layers, shape, rng):
    layer = make(variant, num_layers=num_layers, rng=0)
    x = rng.standard_normal((*shape, I)).astype(np.float32)
    for name in [None, *layer.parameters, None]:
        before = [layer(x)[0] for _ in range(3)][-1]  # the later calls are prepared
        if name is None:
            layer.load_state_dict({key: value * 0.5 for key, value in layer.state_dict().items()})
        else:
            layer.parameters[name][...] += 0.25
        for _ in range(2):
            y, state = layer(x)
            other = make(variant, num_layers=num_layers)
            other.load_state_dict(layer.state_dict())
            assert_same_bits(outputs(y, state), outputs(*other(x)))
        assert not np.array_equal(y, before)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_repeated_calls_from_many_threads(rng, is_frozen):
    layer = make("lstm")
    inputs = [rng.standard_normal((60, 20, I)).astype(np.float32) for _ in range(4)]
    expected = [layer(x)[0] for x in inputs]
    if is_frozen:
        layer.freeze()

    def work(k):
        for _ in range(50):
            np.testing.assert_array_equal(layer(inputs[k])[0], expected[k])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_frozen_linear_and_embedding(rng):
    linear, x = rnnfast.Linear(I, H, rng=0), rng.standard_normal((N, I)).astype(np.float32)
    y = linear(x)
    _, before = linear.forward(x)
    linear.freeze()
    _, tape = linear.forward(x)
    assert not linear.parameters["weight"].flags.writeable
    np.testing.assert_array_equal(linear(x), y)
    expected = linear.backward(before, y)
    linear.unfreeze()
    linear.parameters["weight"][...] = 0
    for kept in (before, tape):
        np.testing.assert_array_equal(linear.backward(kept, y).x, expected.x)
    np.testing.assert_array_equal(linear(x), np.broadcast_to(linear.parameters["bias"], y.shape))

    embedding = rnnfast.Embedding(5, 2)
    embedding.freeze()
    with pytest.raises(ValueError, match="read-only"):
        embedding.parameters["weight"][0] = 0
    rows = embedding([1, 1])
    rows[0] = 0
    np.testing.assert_array_equal(embedding([1])[0], embedding.parameters["weight"][1])


def test_dtypes_that_buffers_cannot_describe_are_refused_as_before_freezing():
    layer = make("lstm")
    x, dates = np.zeros((T, N, I), np.float32), np.zeros((T, N, I), "M8[s]")
    layer.freeze()
    layer(x)  # prepares the next call
    for call in (lambda: layer(dates), lambda: layer(x, (dates, None)), lambda: layer.stream(N).step(dates[0])):
        with pytest.raises(TypeError, match=r"must hold real numbers, .*its dtype is datetime64"):
            call()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_linear_keeps_its_instruction_set(rng, is_frozen):
    """Weights are packed for one instruction set: another one would read them in the wrong order."""
    x, dy = rng.standard_normal((7, 5)).astype(np.float32), rng.standard_normal((7, 11)).astype(np.float32)
    for own in functional.isas():
        with functional.use_isa(own):
            layer = rnnfast.Linear(5, 11, rng=0)
        expected = layer(x).tobytes()
        gradient = layer.backward(layer.forward(x)[1], dy).x.tobytes()
        if is_frozen:
            layer.freeze()
        for other in functional.isas():
            with functional.use_isa(other):
                assert layer(x).tobytes() == expected
                assert layer.backward(layer.forward(x)[1], dy).x.tobytes() == gradient
                assert pickle.loads(pickle.dumps(layer))(x).shape == (7, 11)
