"""Losses against central differences and torch; long sequences in windows against one run over the whole."""

import math
import pickle
import weakref

import numpy as np
import pytest
from support.compare import assert_same_bits, central_differences, members

import rnnfast
from rnnfast import training

DTYPES = [np.float32, np.float64]


def scores(rng, masked, dtype=np.float64):
    logits = rng.normal(size=(4, 3, 5)).astype(dtype)
    targets = rng.integers(0, 5, (4, 3))
    return logits, targets, rng.random((4, 3)) < 0.7 if masked else None


# --- losses


@pytest.mark.parametrize("masked", [False, True])
def test_cross_entropy_gradient_is_central_differences(masked):
    logits, targets, mask = scores(np.random.default_rng(0), masked)
    _, dlogits = training.softmax_cross_entropy(logits, targets, mask)
    expected = central_differences(lambda: training.softmax_cross_entropy(logits, targets, mask)[0], logits)
    np.testing.assert_allclose(dlogits, expected, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_agrees_with_torch(torch, dtype, masked):
    logits, targets, mask = scores(np.random.default_rng(1), masked, dtype)
    loss, dlogits = training.softmax_cross_entropy(logits, targets, mask)
    assert isinstance(loss, float)
    assert dlogits.dtype == dtype
    assert dlogits.shape == logits.shape
    x = torch.from_numpy(logits).requires_grad_()
    wanted = torch.from_numpy(targets if mask is None else np.where(mask, targets, -100))
    expected = torch.nn.functional.cross_entropy(x.reshape(-1, 5), wanted.reshape(-1))
    expected.backward()
    tolerance = 8 * float(np.finfo(dtype).eps)
    assert loss == pytest.approx(expected.item(), rel=tolerance)
    np.testing.assert_allclose(dlogits, x.grad.numpy(), atol=tolerance)


@pytest.mark.parametrize("masked", [False, True])
def test_weights_of_losses_are_factors_of_each_term(masked):
    rng = np.random.default_rng(5)
    logits, targets, mask = scores(rng, masked)
    weights = rng.integers(0, 3, targets.shape)
    loss, dlogits = training.softmax_cross_entropy(logits, targets, mask, weights)
    terms = -np.log(np.take_along_axis(np.exp(logits), targets[..., None], 2)[..., 0] / np.exp(logits).sum(axis=2))
    assert loss == pytest.approx(np.mean((weights * terms)[slice(None) if mask is None else mask]), rel=1e-12)
    expected = central_differences(lambda: training.softmax_cross_entropy(logits, targets, mask, weights)[0], logits)
    np.testing.assert_allclose(dlogits, expected, atol=1e-9)

    y, target, weights = rng.normal(size=(3, 4, 5))[:, :2]
    loss, dy = training.mean_squared_error(y, target, weights=weights)
    assert loss == pytest.approx(np.mean(weights * (y - target) ** 2), rel=1e-12)
    expected = central_differences(lambda: training.mean_squared_error(y, target, weights=weights)[0], y)
    np.testing.assert_allclose(dy, expected, atol=1e-9)
    with pytest.raises(ValueError, match="weights must have shape"):
        training.mean_squared_error(y, target, weights=weights[0])
    with pytest.raises(ValueError, match="weights must have shape"):
        training.softmax_cross_entropy(logits, targets, mask, np.ones(4))


def test_cross_entropy_of_one_position():
    loss, dlogits = training.softmax_cross_entropy(np.array([0.0, 0.0]), 1)
    assert loss == pytest.approx(math.log(2))
    np.testing.assert_allclose(dlogits, [0.5, -0.5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_extreme_logits(dtype):
    top = np.finfo(dtype).max / 4
    loss, dlogits = training.softmax_cross_entropy(np.array([[top, 0, -top], [-np.inf, 1, 1]], dtype), [0, 1])
    assert loss == pytest.approx(math.log(2) / 2)
    np.testing.assert_allclose(dlogits, [[0, 0, 0], [0, -0.25, 0.25]], atol=1e-7)
    assert training.softmax_cross_entropy(np.array([[1000.0, 0.0]], dtype), [1])[0] == 1000


def test_cross_entropy_at_the_ends_of_the_dtype():
    top = float(np.finfo(np.float32).max)
    loss, dlogits = training.softmax_cross_entropy(np.array([[top, -top]], np.float32), [1])
    assert loss == 2 * top  # in float64, whatever the dtype of the logits
    np.testing.assert_array_equal(dlogits, np.array([[1, -1]], np.float32))
    loss, dlogits = training.softmax_cross_entropy([[1e308, -1e308], [1.0, 1.0]], [1, 0])
    assert loss == math.inf
    np.testing.assert_array_equal(dlogits, [[0.5, -0.5], [-0.25, 0.25]])
    loss, dlogits = training.softmax_cross_entropy([[0.0, -np.inf]], [1])
    assert loss == math.inf
    np.testing.assert_array_equal(dlogits, [[1, -1]])
    loss, dlogits = training.softmax_cross_entropy([[5e-324, 0.0]], [1])
    assert loss == math.log(2)
    np.testing.assert_array_equal(dlogits, [[0.5, -0.5]])
    with np.errstate(invalid="ignore"):
        for bad in (np.nan, np.inf):
            loss, dlogits = training.softmax_cross_entropy([[0.0, bad], [0.0, 0.0]], [0, 0])
            assert math.isnan(loss)
            assert np.isnan(dlogits[0]).all()
            np.testing.assert_array_equal(dlogits[1], [-0.25, 0.25])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38])
def test_what_has_weight_0_is_not_read(dtype, bad):
    logits, targets, mask = scores(np.random.default_rng(2), True, dtype)
    weights = np.where(np.random.default_rng(3).random(mask.shape) < 0.5, 0, 2.5)
    y, target = logits[..., 0], logits[..., 1]
    spoilt = np.where((weights == 0)[..., np.newaxis], dtype(bad), logits)
    for given in (mask, None):
        loss, dlogits = training.softmax_cross_entropy(logits, targets, given, weights)
        same_loss, same_dlogits = training.softmax_cross_entropy(spoilt, targets, given, weights)
        assert loss == same_loss
        np.testing.assert_array_equal(dlogits, same_dlogits, strict=True)
        assert not dlogits[weights == 0].any()
    loss, dy = training.mean_squared_error(y, target, weights=weights)
    assert (loss, dy.tolist()) == (lambda got: (got[0], got[1].tolist()))(
        training.mean_squared_error(spoilt[..., 0], spoilt[..., 1], weights=weights)
    )
    loss, dlogits = training.softmax_cross_entropy(spoilt, targets, weights=0 * weights)
    assert loss == 0
    assert not dlogits.any()
    loss, dy = training.mean_squared_error(spoilt[..., 0], spoilt[..., 1], weights=0 * weights)
    assert loss == 0
    assert not dy.any()


@pytest.mark.parametrize("factor", [2.0**600, 2.0**-600])
def test_losses_of_large_weights(factor):
    logits, targets, mask = scores(np.random.default_rng(2), True)
    weights = np.random.default_rng(3).random(mask.shape)
    for function, given in (
        (training.softmax_cross_entropy, (logits, targets, mask)),
        (training.mean_squared_error, (logits[..., 0], logits[..., 1], mask)),
    ):
        (loss, gradient), (expected, derivative) = (function(*given, weights * by) for by in (factor, 1))
        assert loss == factor * expected
        np.testing.assert_array_equal(gradient, factor * derivative)


@pytest.mark.parametrize("dtype", DTYPES)
def test_squared_error_at_the_ends_of_the_dtype(dtype):
    limits = np.finfo(dtype)
    for exponent in (-600, -140, 120, 500) if dtype == np.float64 else (-100, 120):
        scale = 2.0**exponent
        y = np.array([3, 4, 0, 5], dtype) * dtype(scale)
        loss, dy = training.mean_squared_error(y, np.zeros(4, dtype))
        assert loss == (12.5 * scale) * scale  # 0 where the loss itself underflows
        np.testing.assert_array_equal(dy, y / 2, strict=True)
    # The sum of the squares overflows, but not their mean.
    loss, _ = training.mean_squared_error(np.full(100, 2.0**511), np.zeros(100))
    assert loss == 2.0**1022
    loss, dy = training.mean_squared_error(np.full(100, limits.max), np.zeros(100, dtype))
    assert loss == (math.inf if dtype == np.float64 else pytest.approx(float(limits.max) ** 2, rel=1e-14))
    np.testing.assert_allclose(dy, limits.max / 50, rtol=limits.eps)
    assert training.mean_squared_error([1e200, 1.0], [-1e200, 3.0], weights=[1e-300, 0])[0] == pytest.approx(2e100)


def test_cross_entropy_looks_only_at_positions_that_count():
    logits, targets, mask = scores(np.random.default_rng(2), True)
    loss, dlogits = training.softmax_cross_entropy(logits, targets, mask)
    logits[~mask] = np.nan
    targets[~mask] = -100
    same_loss, same_dlogits = training.softmax_cross_entropy(logits, targets, mask)
    assert loss == same_loss
    np.testing.assert_array_equal(dlogits, same_dlogits)
    assert not dlogits[~mask].any()
    alone, _ = training.softmax_cross_entropy(logits[mask], targets[mask])
    assert alone == pytest.approx(loss, rel=1e-15)


@pytest.mark.parametrize("cast", [np.uint8, np.int8, np.uint64, list])
def test_cross_entropy_takes_any_integers(cast):
    logits, targets, _ = scores(np.random.default_rng(3), False)
    expected = training.softmax_cross_entropy(logits, targets)
    given = targets.tolist() if cast is list else targets.astype(cast)
    loss, dlogits = training.softmax_cross_entropy(logits, given)
    assert loss == expected[0]
    np.testing.assert_array_equal(dlogits, expected[1])


@pytest.mark.parametrize("layout", ["strided", "swapped", "read-only", "float16", "int"])
def test_losses_take_any_layout_and_real_dtype(layout):
    rng = np.random.default_rng(4)
    logits = rng.integers(-8, 8, (4, 3, 5)).astype(np.float64)
    targets = rng.integers(0, 5, (4, 3))
    given = {
        "strided": np.repeat(logits, 2, axis=2).transpose(1, 0, 2).copy().transpose(1, 0, 2)[..., ::2],
        "swapped": logits.astype(">f8"),
        "read-only": logits.copy(),
        "float16": logits.astype(np.float16),
        "int": logits.astype(int),
    }[layout]
    given.setflags(write=False)
    before = given.copy()
    for loss, other in [(training.softmax_cross_entropy, targets), (training.mean_squared_error, logits + 1)]:
        got, expected = loss(given, other), loss(logits, other)
        assert got[0] == expected[0]
        assert got[1].dtype == np.float64
        np.testing.assert_array_equal(got[1], expected[1])
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, "logits must hold real numbers, got dtype complex128", {"logits": np.zeros((2, 3), complex)}),
        (TypeError, "logits must hold real numbers, got dtype <U1", {"logits": [["a", "b"]]}),
        (TypeError, "logits must hold real numbers, got dtype object", {"logits": np.zeros((2, 3), object)}),
        (ValueError, r"logits must have shape \(..., C\).* got shape \(\)", {"logits": 1.0}),
        (ValueError, r"logits must have shape \(..., C\).* got shape \(2, 0\)", {"logits": np.zeros((2, 0))}),
        (TypeError, "targets must be integers, got dtype float64", {"targets": [0.0, 1.0]}),
        (TypeError, "targets must be integers, got dtype bool", {"targets": [True, False]}),
        (ValueError, r"targets must have shape \(2,\), .* got shape \(2, 1\)", {"targets": [[0], [1]]}),
        (ValueError, "targets must lie between 0 and 2, .* got 3", {"targets": [0, 3]}),
        (ValueError, "targets must lie between 0 and 2, .* got -1", {"targets": [-1, 0], "mask": [True, True]}),
        (TypeError, "mask must be boolean, .* got dtype int64", {"mask": np.array([1, 0], np.int64)}),
        (ValueError, r"mask must have shape \(2,\), .* got shape \(1,\)", {"mask": [True]}),
        (ValueError, r"logits of shape \(2, 3\) have no valid positions", {"mask": [False, False]}),
        (ValueError, "logits .* have no valid positions", {"logits": np.zeros((0, 3)), "targets": np.zeros(0, int)}),
    ],
)
def test_cross_entropy_refuses(error, words, change):
    with pytest.raises(error, match=words):
        training.softmax_cross_entropy(**{"logits": np.zeros((2, 3)), "targets": [0, 2], **change})


def test_squared_error_gradient_is_central_differences():
    rng = np.random.default_rng(5)
    y, target = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    _, dy = training.mean_squared_error(y, target)
    expected = central_differences(lambda: training.mean_squared_error(y, target)[0], y)
    np.testing.assert_allclose(dy, expected, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_squared_error_agrees_with_torch(torch, dtype):
    rng = np.random.default_rng(6)
    y, target = rng.normal(size=(30, 4)).astype(dtype), rng.normal(size=(30, 4))
    loss, dy = training.mean_squared_error(y, target)
    assert isinstance(loss, float)
    assert dy.dtype == dtype
    x = torch.from_numpy(y).requires_grad_()
    expected = torch.nn.functional.mse_loss(x, torch.from_numpy(target.astype(dtype)))
    expected.backward()
    tolerance = 8 * float(np.finfo(dtype).eps)
    assert loss == pytest.approx(expected.item(), rel=tolerance)
    np.testing.assert_allclose(dy, x.grad.numpy(), atol=tolerance)


def test_squared_error_of_one_number():
    loss, dy = training.mean_squared_error(3.0, 1.0)
    assert loss == 4
    assert dy.shape == ()
    assert dy == 4


@pytest.mark.parametrize(
    ("error", "words", "y", "target"),
    [
        (ValueError, r"target must have shape \(2, 1\), equal to y.shape, got shape \(2,\)", [[1], [2]], [1, 2]),
        (ValueError, r"y must have at least one element, got shape \(0, 3\)", np.zeros((0, 3)), np.zeros((0, 3))),
        (TypeError, "y must hold real numbers, got dtype complex128", [1j], [1.0]),
        (TypeError, "target must hold real numbers, got dtype object", [1.0], [None]),
    ],
)
def test_squared_error_refuses(error, words, y, target):
    with pytest.raises(error, match=words):
        training.mean_squared_error(y, target)


# --- long sequences in windows

LAYERS = {
    "RNN": lambda **options: rnnfast.RNN(3, 4, rng=0, **options),
    "LSTM": lambda **options: rnnfast.LSTM(3, 4, 2, proj_size=2, rng=0, **options),
    "GRU": lambda **options: rnnfast.GRU(3, 4, rng=0, **options),
}
# For each layout: options, the shape of x with 11 steps, and the time axis.
LAYOUTS = {
    "time first": ({}, (11, 2, 3), 0),
    "batch first": ({"batch_first": True}, (2, 11, 3), 1),
    "unbatched": ({}, (11, 3), 0),
    "unbatched for batch first": ({"batch_first": True}, (11, 3), 0),
}


def sequence(kind, layout, dtype=np.float32):
    """A layer, a sequence for it, the time axis, and a nonzero initial state."""
    options, shape, axis = LAYOUTS[layout]
    layer = LAYERS[kind](dtype=dtype, **options)
    rng = np.random.default_rng(13)
    x = rng.normal(size=shape).astype(dtype)
    _, state = layer(rng.normal(size=shape))
    return layer, x, axis, state


def assert_same_state(got, expected):
    assert type(got) is type(expected)
    for ours, theirs in zip(members(got), members(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


def part(array, steps, axis):
    return array[:, steps] if axis else array[steps]


@pytest.mark.parametrize("window", [1, 4, 11, 12, 10**30, np.uint8(3)])
def test_windows_tile_the_sequence(window):
    layer, x, _, _ = sequence("GRU", "time first")
    starts = range(0, 11, min(int(window), 11))
    expected = [slice(start, min(start + int(window), 11)) for start in starts]
    windows = list(training.truncated_bptt(layer, x, window))
    assert all(isinstance(each, training.Window) for each in windows)
    assert [each.steps for each in windows] == expected
    assert [len(each.y) for each in windows] == [steps.stop - steps.start for steps in expected]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("window", [1, 4, 11, 20])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_windows_agree_with_one_run(kind, layout, window, given):
    layer, x, axis, state = sequence(kind, layout)
    state = state if given else None
    y, last, _ = layer.forward(x, state)
    windows = list(training.truncated_bptt(layer, x, window, state))
    np.testing.assert_array_equal(np.concatenate([each.y for each in windows], axis), y, strict=True)
    assert_same_state(windows[-1].state, last)
    for each in windows:
        assert_same_state(each.state, layer(part(x, slice(each.steps.stop), axis), state)[1])


def ragged(kind, x, axis, state, layer):
    """The arguments that describe a ragged batch like x, with resets in all windows and at their edges."""
    rng = np.random.default_rng(15)
    shape = x.shape[:-1]
    lengths = np.array([7, 0, 11, 3])[: shape[1 - axis]] if len(shape) == 2 else 7
    flags = {name: rng.random((11, 4)) < share for name, share in (("mask", 0.4), ("reset", 0.3))}
    flags["mask"][3:9, 0], flags["reset"][[0, 4], 0] = False, True  # a window without a valid step of row 0
    flags = {name: flag.T if axis else flag if len(shape) == 2 else flag[:, 0] for name, flag in flags.items()}
    given = {"lengths": lengths, **flags}
    other = layer(x[..., ::-1], state)[1]
    given["reset_state"] = {"zeros": "zeros", "learned": None, "state": other}.get(kind.split()[-1], "initial")
    given = {name: value for name, value in given.items() if name in kind or name == "reset_state"}
    return given if "reset" in kind else {name: value for name, value in given.items() if name != "reset_state"}


RAGGED = [
    "lengths",
    "mask",
    "reset",
    "lengths reset",
    "mask reset",
    "reset to zeros",
    "mask reset to state",
    "reset learned",
]


@pytest.mark.parametrize("given", [False, True], ids=["", "state"])
@pytest.mark.parametrize("arrays", RAGGED)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_windows_of_a_ragged_batch_agree_with_one_run(kind, layout, arrays, given):
    options, shape, axis = LAYOUTS[layout]
    layer = LAYERS[kind](init_state="learned" in arrays, **options)
    rng = np.random.default_rng(16)
    for parameter in layer.parameters.values():
        parameter += rng.normal(size=parameter.shape) / 4
    x = rng.normal(size=[4 if size == 2 else size for size in shape]).astype(np.float32)
    state = layer(x + 1)[1] if given else None
    more = ragged(arrays, x, axis, layer(x - 1)[1], layer)
    y, last, _ = layer.forward(x, state, **more)
    for window in (1, 4, 11):
        windows = list(training.truncated_bptt(layer, x, window, state, **more))
        np.testing.assert_array_equal(np.concatenate([each.y for each in windows], axis), y, strict=True)
        assert_same_state(windows[-1].state, last)


def test_gradients_of_a_window_with_resets_come_from_its_steps_only():
    layer = rnnfast.LSTM(3, 4, init_state=True, rng=0)
    rng = np.random.default_rng(17)
    x, reset = rng.normal(size=(12, 5, 3)).astype(np.float32), rng.random((12, 5)) < 0.3
    state = None
    for each in training.truncated_bptt(layer, x, 4, reset=reset, lengths=[12, 3, 8, 0, 5]):
        part, lengths = x[each.steps], np.clip(np.array([12, 3, 8, 0, 5]) - each.steps.start, 0, 4)
        _, after, tape = layer.forward(part, state, reset=reset[each.steps], lengths=lengths, reset_state=None)
        got, expected = layer.backward(each.tape, each.y), layer.backward(tape, each.y)
        np.testing.assert_array_equal(got.x, expected.x, strict=True)
        assert got.parameters["h0_l0"].any()
        for name, array in expected.parameters.items():
            np.testing.assert_allclose(got.parameters[name], array, rtol=1e-5, atol=1e-6)
        state = after


def test_a_model_is_passed_what_is_given():
    class Ragged(Model):
        def forward(self, x, state, **given):
            self.given.append(given)
            return super().forward(x, state)

    model, x = Ragged(), np.arange(5.0)
    flags = np.arange(5) == 3

    def passed(state=None, **given):
        model.given = []
        list(training.truncated_bptt(model, x, 2, state, **given))
        return [{name: np.asarray(value).tolist() for name, value in one.items()} for one in model.given]

    assert passed() == [{}, {}, {}]
    assert passed(lengths=3) == [{"lengths": 2}, {"lengths": 1}, {"lengths": 0}]
    resets = [[False, False], [False, True], [False]]
    expected = [{"reset": one} for one in resets]
    assert passed(7.0, reset=flags) == [expected[0], *(one | {"reset_state": 7.0} for one in expected[1:])]
    assert passed(reset=flags) == [expected[0], *(one | {"reset_state": None} for one in expected[1:])]
    assert passed(reset=flags, reset_state="zeros") == [one | {"reset_state": "zeros"} for one in expected]
    assert passed(mask=flags.tolist()) == [{"mask": one} for one in resets]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_a_window_come_from_its_steps_only(kind, layout):
    layer, x, axis, state = sequence(kind, layout)
    rng = np.random.default_rng(14)
    for each in training.truncated_bptt(layer, x, 4, state):
        dy = rng.normal(size=each.y.shape)
        _, after, tape = layer.forward(part(x, each.steps, axis), state)
        got, expected = layer.backward(each.tape, dy), layer.backward(tape, dy)
        assert got.x.any()
        np.testing.assert_array_equal(got.x, expected.x, strict=True)
        assert_same_state(got.state, expected.state)
        assert_same_bits(got.parameters, expected.parameters)
        state = after


def test_no_gradient_crosses_into_the_window_before():
    """Gradients agree with one run in the last window, and differ before it."""
    layer, x, _, _ = sequence("GRU", "time first", np.float64)
    y, _, tape = layer.forward(x)
    whole = layer.backward(tape, np.ones_like(y)).x
    *first, last = [
        layer.backward(each.tape, np.ones_like(each.y)).x for each in training.truncated_bptt(layer, x, window=5)
    ]
    np.testing.assert_allclose(last, whole[10:], rtol=1e-12)
    np.testing.assert_array_less(1e-4, np.abs(np.concatenate(first) - whole[:10])[[4, 9]].max(axis=(1, 2)))


@pytest.mark.parametrize("kind", LAYERS)
def test_new_parameters_act_from_the_next_window_on(kind):
    layer, x, _, state = sequence(kind, "time first")
    for each in training.truncated_bptt(layer, x, 3, state):
        y, state = layer(x[each.steps], state)
        np.testing.assert_array_equal(each.y, y)
        assert_same_state(each.state, state)
        for parameter in layer.parameters.values():
            parameter *= -1.5


def test_a_modified_state_acts_on_the_next_window():
    layer, x, _, state = sequence("LSTM", "time first")
    given = [array.copy() for array in state]
    windows = training.truncated_bptt(layer, x, 4, state)
    first = next(windows)
    for array in first.state:
        array[:, 0] = 0
    second = next(windows)
    np.testing.assert_array_equal(second.y[:, :1], layer(x[4:8, :1])[0])
    np.testing.assert_array_equal(second.y, layer(x[4:8], first.state)[0])
    assert_same_state(state, tuple(given))


class Model:
    """A layer that returns the running sum of its input, with a tape that shows whether it is still alive."""

    class Tape:
        pass

    def __init__(self):
        self.calls = []

    def forward(self, x, state):
        self.calls.append((x, state))
        y = np.cumsum(x, axis=0) + (0 if state is None else state)
        return y, y[-1], self.Tape()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, ">f4"])
@pytest.mark.parametrize("shape", [(7,), (7, 2), (7, 2, 3, 1)])
def test_any_model_gets_parts_of_x_as_they_are(shape, dtype):
    x = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    model = Model()
    windows = list(training.truncated_bptt(model, x, 3))
    np.testing.assert_array_equal(np.concatenate([each.y for each in windows]), np.cumsum(x, axis=0))
    assert [len(given) for given, _ in model.calls] == [3, 3, 1]
    assert all(given.dtype == dtype and np.shares_memory(given, x) for given, _ in model.calls)
    before = [None, *(each.state for each in windows[:-1])]
    assert all(got is expected for (_, got), expected in zip(model.calls, before, strict=True))


def test_a_model_is_asked_for_batch_first():
    """With fewer than three axes, x has no batch axis."""
    model = Model()
    for batch_first, shape, expected in [(True, (2, 5, 1), 2), (False, (2, 5, 1), 1), (True, (2, 5), 1)]:
        model.calls.clear()
        model.batch_first = batch_first
        list(training.truncated_bptt(model, np.zeros(shape), 4))
        assert len(model.calls) == expected
    assert [each.y for each in training.truncated_bptt(Model(), [1, 2, 3], 2, state=10)][1].tolist() == [16]


def test_windows_are_run_when_they_are_asked_for():
    model = Model()
    windows = training.truncated_bptt(model, np.arange(7), 3)
    assert len(model.calls) == 0
    next(windows)
    assert len(model.calls) == 1
    assert len(list(windows)) == 2
    assert len(model.calls) == 3


def test_a_released_window_is_freed_before_the_next_one():
    tapes, alive = [], []

    class Watched(Model):
        def forward(self, x, state):
            alive.append([tape() is not None for tape in tapes])
            y, state, tape = super().forward(x, state)
            tapes.append(weakref.ref(tape))
            return y, state, tape

    windows = training.truncated_bptt(Watched(), np.arange(7), 3)
    kept = next(windows)
    next(windows)
    next(windows)
    assert alive == [[], [True], [True, False]]
    assert tapes[0]() is kept.tape


def test_run_continues_from_the_state_of_another():
    layer, x, _, _ = sequence("LSTM", "time first")
    whole = list(training.truncated_bptt(layer, x, 3))
    rest = list(training.truncated_bptt(layer, x[6:], 3, whole[1].state))
    for got, expected in zip(rest, whole[2:], strict=True):
        np.testing.assert_array_equal(got.y, expected.y)
        assert_same_state(got.state, expected.state)


BACKWARDS = (
    "layer must run forward in time only, got {}: a reverse direction starts at the end of the sequence, .*whole"
)


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, "window must be an integer, got 2.0", {"window": 2.0}),
        (TypeError, "window must be an integer, got '2'", {"window": "2"}),
        (TypeError, "window must be an integer, got None", {"window": None}),
        (TypeError, "window must be an integer, got True", {"window": True}),
        (TypeError, "window must be an integer, got .*True", {"window": np.True_}),
        (ValueError, "window must be at least 1, got 0", {"window": 0}),
        (ValueError, "window must be at least 1, got -3", {"window": -3}),
        (ValueError, r"x must have at least one time step: .*\(T, ...\) .* got shape \(\)", {"x": 1.0}),
        (ValueError, r"x must have .* layout \(T, ...\) .* got shape \(0, 2, 3\)", {"x": np.zeros((0, 2, 3))}),
        (
            ValueError,
            r"x must have .* layout \(N, T, ...\) .* got shape \(2, 0, 3\)",
            {"x": np.zeros((2, 0, 3)), "layer": rnnfast.GRU(3, 4, batch_first=True)},
        ),
        (ValueError, "x cannot be read as an array: ", {"x": [[1.0], [1.0, 2.0]]}),
        (ValueError, "lengths must be from 0 to T = 5, the steps of x, got 6 for row 1", {"lengths": [5, 6]}),
        (ValueError, "lengths must be from 0 to T = 5, the steps of x, got -1 for row 0", {"lengths": [-1, 6]}),
        (TypeError, "lengths must hold integers, but its dtype is float64", {"lengths": [1.0, 2.0]}),
        (ValueError, r"mask must have the 5 steps of x on axis 0, got shape \(2, 5\)", {"mask": np.ones((2, 5), bool)}),
        (ValueError, r"reset must have the 5 steps of x on axis 0, got shape \(\)", {"reset": True}),
        (
            ValueError,
            r"reset must have the 5 steps of x on axis 1, got shape \(5, 2\)",
            {
                "x": np.zeros((2, 5, 3)),
                "reset": np.ones((5, 2), bool),
                "layer": rnnfast.GRU(3, 4, batch_first=True),
            },
        ),
        (
            TypeError,
            r"layer must be a recurrent layer, .* forward\(x, state\) returns .* got function",
            {"layer": sequence},
        ),
        (ValueError, BACKWARDS.format("GRU with bidirectional=True"), {"layer": rnnfast.GRU(3, 4, bidirectional=True)}),
        (ValueError, BACKWARDS.format("LSTM with reverse=True"), {"layer": rnnfast.LSTM(3, 4, reverse=True)}),
        (ValueError, BACKWARDS.format("Bidirectional"), {"layer": rnnfast.Bidirectional(rnnfast.RNN(3, 4))}),
    ],
)
def test_windows_are_refused_when_they_are_called_for(error, words, change):
    with pytest.raises(error, match=words):
        training.truncated_bptt(**{"layer": rnnfast.GRU(3, 4), "x": np.zeros((5, 2, 3)), "window": 2, **change})


def test_the_layer_rejects_invalid_arguments():
    layer = rnnfast.GRU(3, 4)
    with pytest.raises(ValueError, match="input_size=3"):
        next(training.truncated_bptt(layer, np.zeros((5, 2, 7)), 2))
    with pytest.raises(ValueError, match=r"state must have shape .* = \(1, 2, 4\), got \(1, 9, 4\)"):
        next(training.truncated_bptt(layer, np.zeros((5, 2, 3)), 2, np.zeros((1, 9, 4))))
    with pytest.raises(ValueError, match=r"lengths must have shape \(N,\) = \(2,\), got shape \(3,\)"):
        next(training.truncated_bptt(layer, np.zeros((5, 2, 3)), 2, lengths=[1, 2, 3]))
    with pytest.raises(ValueError, match="reset_state must be one of 'initial', 'zeros', got 'none'"):
        next(training.truncated_bptt(layer, np.zeros((5, 2, 3)), 2, reset_state="none"))


@pytest.mark.parametrize("name", training.__all__)
def test_pickles_from_before_the_package_was_split_find_the_names(name):
    assert pickle.loads(f"crnnfast.training\n{name}\n.".encode()) is getattr(training, name)
