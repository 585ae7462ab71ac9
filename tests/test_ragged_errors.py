"""Invalid lengths, masks, resets, checkpoints and per-step gradients are rejected."""

import numpy as np
import pytest
from support.cells import VARIANTS, has_c, make_layer
from support.compare import assert_same_bits
from support.layers import snapshot
from support.ragged import layer_of, run_backward, uneven, uneven_problem

import rnnfast

T, N, I, H = 5, 3, 4, 6


X = np.ones((T, N, I), np.float32)


FLAGS = np.ones((T, N), bool)


BAD = [
    ({"lengths": [1, 2]}, ValueError, r"lengths must have shape \(N,\) = \(3,\), got shape \(2,\)"),
    ({"lengths": [[1, 2, 3]]}, ValueError, r"lengths must have shape \(N,\) = \(3,\), got shape \(1, 3\)"),
    ({"lengths": 2}, ValueError, r"lengths must have shape \(N,\) = \(3,\), got shape \(\)"),
    ({"lengths": [1.0, 2, 3]}, TypeError, "lengths must hold integers, but its dtype is float64"),
    ({"lengths": [True, True, False]}, TypeError, "lengths must hold integers, but its dtype is bool"),
    ({"lengths": ["1", "2", "3"]}, TypeError, "lengths must hold integers, but its dtype is <U1"),
    ({"lengths": [1, None, 2]}, TypeError, "lengths must hold integers, but its dtype is object"),
    ({"lengths": [1, 2**80, 2]}, TypeError, "lengths must hold integers, but its dtype is object"),
    ({"lengths": [[1], [2, 3], [4]]}, ValueError, "lengths cannot be read as an array"),
    ({"lengths": [3, -1, 2]}, ValueError, "lengths must be from 0 to T = 5, the steps of x, got -1 for row 1"),
    ({"lengths": [3, 0, 6]}, ValueError, "lengths must be from 0 to T = 5, the steps of x, got 6 for row 2"),
    ({"lengths": np.array([5, 2**63, 0], np.uint64)}, ValueError, "got 9223372036854775808 for row 1"),
    ({"lengths": np.array([5, 2**64 - 1, 0], np.uint64)}, ValueError, "got 18446744073709551615 for row 1"),
    ({"lengths": [1, 2, 3], "mask": FLAGS}, ValueError, "lengths and mask are mutually exclusive"),
    ({"lengths": [5, 5, 5], "mask": FLAGS, "reset": FLAGS}, ValueError, "lengths and mask are mutually exclusive"),
    ({"zero_masked": 1}, TypeError, "zero_masked must be True or False, got 1"),
    ({"zero_masked": None}, TypeError, "zero_masked must be True or False, got None"),
    ({"mask": FLAGS, "zero_masked": "yes"}, TypeError, "zero_masked must be True or False, got 'yes'"),
    ({"reset_state": "learned"}, ValueError, r"reset_state(\[0\])? must be one of 'initial', 'zeros', got 'learned'"),
    ({"reset": FLAGS, "reset_state": ""}, ValueError, r"reset_state(\[0\])? must be one of 'initial', 'zeros', got ''"),
    ({"reset": FLAGS, "reset_state": 0}, ValueError, r"reset_state must be the pair \(.*\), got int"),
    ({"reset": FLAGS, "reset_state": np.zeros((2, 3, H))}, ValueError, "reset_state must be the pair .*, got ndarray"),
    (
        {"reset_state": (np.zeros((2, 4, H)), None)},
        ValueError,
        r"reset_state\[0\]( \(h\))? must (have shape|be the pair)",
    ),
    *(
        fault
        for name in ("mask", "reset")
        for fault in (
            ({name: FLAGS.astype(int)}, TypeError, f"{name} must hold booleans, but its dtype is int64"),
            ({name: FLAGS.astype(np.float32)}, TypeError, f"{name} must hold booleans, but its dtype is float32"),
            ({name: FLAGS.astype(object)}, TypeError, f"{name} must hold booleans, but its dtype is object"),
            ({name: FLAGS.T}, ValueError, rf"{name} must have shape \(T, N\) = \(5, 3\), got \(3, 5\)"),
            ({name: FLAGS[1:]}, ValueError, rf"{name} must have shape \(T, N\) = \(5, 3\), got \(4, 3\)"),
            ({name: FLAGS[..., None]}, ValueError, rf"{name} must have shape .* got \(5, 3, 1\)"),
            ({name: True}, ValueError, rf"{name} must have shape .* got \(\)"),
            ({name: [[True], [True, False]]}, ValueError, f"{name} cannot be read as an array"),
        )
    ),
]


def attempts(layer):
    """The calls of a layer, and of Bidirectional around it."""
    both = rnnfast.Bidirectional(layer, make_layer("gru", I, H, batch_first=layer.batch_first))
    return [layer, layer.forward, both, both.forward]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("given", "error", "match"), BAD)
def test_bad_sequences(given, error, match, frozen):
    layer = make_layer("lstm", I, H, num_layers=2, dropout=0.5)
    if frozen:
        layer.freeze()
    y, _ = layer(X)
    before = snapshot(layer)
    for call in attempts(layer):
        with pytest.raises(error, match=match):
            call(X, **given)
        assert snapshot(layer) == before
    assert layer(X)[0].tobytes() == y.tobytes()


@pytest.mark.parametrize("name", ["mask", "reset"])
def test_flags_in_other_layouts(name):
    layer = make_layer("gru", I, H, batch_first=True)
    for call in attempts(layer):
        with pytest.raises(ValueError, match=rf"{name} must have shape \(N, T\) = \(3, 5\), got \(5, 3\)"):
            call(X.swapaxes(0, 1), **{name: FLAGS})
        call(X.swapaxes(0, 1), **{name: FLAGS.T})
        with pytest.raises(ValueError, match=rf"{name} must have shape \(T,\) = \(5,\), got \(5, 1\)"):
            call(X[:, 0], **{name: FLAGS[:, :1]})
        call(X[:, 0], **{name: FLAGS[:, 0]})
        with pytest.raises(ValueError, match=r"lengths must be one integer, as x is unbatched, got .* \(1,\)"):
            call(X[:, 0], lengths=[3])
        with pytest.raises(ValueError, match="lengths must be from 0 to T = 5, the steps of x, got 6"):
            call(X[:, 0], lengths=6)
        with pytest.raises(TypeError, match="lengths must hold integers, but its dtype is bool"):
            call(X[:, 0], lengths=True)


@pytest.mark.parametrize("uneven", [{}, {"lengths": [1, 0, 5]}, {"lengths": [0, 0, 0]}, {"reset": FLAGS}])
@pytest.mark.parametrize("rows", [3, 0])
def test_bad_checkpoints(uneven, rows):
    layer = make_layer("lstm", I, H, num_layers=2, dropout=0.5)
    uneven = {name: np.array(value)[..., :rows] for name, value in uneven.items()}
    x = X[:, :rows]
    both = rnnfast.Bidirectional(layer, make_layer("gru", I, H))
    before = snapshot(layer)
    for call in (layer.forward, both.forward):
        for value, error in ((0, ValueError), (-1, ValueError), (np.int64(-3), ValueError)):
            with pytest.raises(
                error, match=f'checkpoint, unless it is "auto" or None, must be at least 1, got {value}'
            ):
                call(x, **uneven, checkpoint=value)
        for value in (2.5, 2.0, "always", "Auto", True, np.True_, False, [1], (), object()):
            with pytest.raises(TypeError, match='checkpoint, unless it is "auto" or None, must be an integer, got'):
                call(x, **uneven, checkpoint=value)
    assert snapshot(layer) == before
    y, _, tape = layer.forward(x, **uneven, checkpoint="auto")
    assert layer.backward(tape, y).x.shape == x.shape


@pytest.mark.parametrize("checkpoint", [None, 1])
def test_bad_per_step(checkpoint):
    layer = make_layer("lstm", I, H)
    both = rnnfast.Bidirectional(layer, make_layer("gru", I, H))
    for one in (layer, both):
        y, _, tape = one.forward(X, checkpoint=checkpoint)
        expected = one.backward(tape, y).x
        for value in (1, 0, None, "yes", np.ones(1)):
            with pytest.raises(TypeError, match="per_step must be True or False, got"):
                one.backward(tape, y, per_step=value)
        assert one.backward(tape, y, per_step=np.True_).x.tobytes() == expected.tobytes()


def test_tapes_without_cells():
    for variant in VARIANTS:
        if not has_c(variant):
            _, _, tape = make_layer(variant, I, H).forward(X)
            with pytest.raises(AttributeError, match=r"this tape has no cells: it comes from .*, which is not an LSTM"):
                tape.cells  # noqa: B018
    _, tape = rnnfast.Linear(I, H).forward(X)
    with pytest.raises(
        AttributeError, match=r"this tape has no cells: it comes from Linear\(4, 6\), which is not an LSTM"
    ):
        tape.cells  # noqa: B018
    layer = make_layer("lstm", I, H)
    for one in (layer, rnnfast.Bidirectional(layer)):
        for given in ({}, {"lengths": [0, 0, 0]}, {"lengths": [1, 2, 3]}):
            _, _, tape = one.forward(X, **given, checkpoint=1)
            with pytest.raises(ValueError, match="it holds checkpoints only: run forward with checkpoint=None"):
                tape.cells  # noqa: B018


def test_errors_of_backward_change_nothing():
    p = uneven_problem("lengths and reset", "lstm", 40, 9, 3, 4, dtype=np.float32)
    layer = layer_of(p)
    for checkpoint in (None, 2):
        y, state, tape = layer.forward(p.x, p.state, **uneven(p), checkpoint=checkpoint)
        expected = run_backward(layer, p, y, state, tape)
        for dy, dstate, match in ((p.dy[1:], None, "dy must have"), (p.dy, (1, 2, 3), "dstate must be the pair")):
            with pytest.raises(ValueError, match=match):
                layer.backward(tape, dy, dstate)
        assert_same_bits(run_backward(layer, p, y, state, tape), expected)
