"""Options are fixed at construction, and no change behind a layer's back reaches memory that is not the layer's."""

import contextlib
import copy
import inspect
import pickle

import numpy as np
import pytest
from support.compare import assert_same_bits
from support.layers import results

import rnnfast
from rnnfast.layers import saving

LAYERS = {
    "rnn": lambda: rnnfast.RNN(4, 6, 2, leak=0.5, rng=0),
    "lstm": lambda: rnnfast.LSTM(4, 6, 2, proj_size=3, peepholes=True, clip=2.0, bidirectional=True, rng=0),
    "gru": lambda: rnnfast.GRU(4, 6, reverse=True, bias=False, dtype=np.float64, rng=0),
    "bidirectional": lambda: rnnfast.Bidirectional(rnnfast.LSTM(4, 6, rng=0), rnnfast.GRU(4, 6, rng=1), merge="sum"),
    "linear": lambda: rnnfast.Linear(4, 6, rng=0),
    "embedding": lambda: rnnfast.Embedding(4, 6, rng=0),
}
RECURRENT = ("rnn", "lstm", "gru")


def names(layer):
    """The names of all options but those of dropout, and of what is built from them."""
    options = inspect.signature(type(layer)).parameters
    others = ("parameters", "engine", "execution") if hasattr(layer, "engine") else ("parameters",)
    return [*(name for name in options if name not in ("rng", "init", *saving.DROPOUTS)), *others]


def outputs(layer):
    """All results of a layer as a dict."""
    rng = np.random.default_rng(5)
    if isinstance(layer, rnnfast.Embedding):
        return {"y": layer([[0, 3], [2, 1]])}
    x = rng.standard_normal((5, 3, 4)).astype(np.float32)
    if isinstance(layer, rnnfast.Linear):
        y, tape = layer.forward(x)
        return {"y": y, "dx": layer.backward(tape, y).x, **layer.backward(tape, y).parameters}
    return dict(flat(results(layer, x, dy=layer(x)[0])))


def flat(arrays):
    """The arrays by name, also those in nested tuples."""
    for name, value in arrays.items():
        if isinstance(value, tuple):
            yield from flat({f"{name} {i}": member for i, member in enumerate(value)})
        else:
            yield name, value


@pytest.mark.parametrize("kind", LAYERS)
def test_options_cannot_be_assigned_or_deleted(kind):
    layer = LAYERS[kind]()
    for one in (layer, copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        before = outputs(one)
        for name in names(one):
            value = getattr(one, name)
            with pytest.raises(AttributeError, match=rf"^{name} of this \w+ is fixed at construction.*: (create|call)"):
                setattr(one, name, 99)
            with pytest.raises(AttributeError, match=f"^{name} of this .* is fixed at construction"):
                delattr(one, name)
            again = getattr(one, name)
            assert again is value or np.array_equal(again, value) or name == "parameters"
        assert_same_bits(outputs(one), before)


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("name", ["proj_size", "peepholes", "coupled"])
def test_options_of_other_classes_cannot_be_assigned_either(kind, name):
    layer = LAYERS[kind]()
    with pytest.raises(AttributeError, match=f"^{name} of this .* is fixed at construction"):
        setattr(layer, name, 2)
    assert_same_bits(outputs(pickle.loads(pickle.dumps(layer))), outputs(layer))


@pytest.mark.parametrize("kind", RECURRENT)
def test_attributes_of_executions_are_fixed(kind):
    run = LAYERS[kind]().execution
    for name in ("engine", "frozen", "extras", "packs", "tapes", "workspaces", "results"):
        with pytest.raises(AttributeError, match=f"^{name} of this Execution is fixed"):
            setattr(run, name, None)


def test_sizes_of_streams_and_pools_are_fixed():
    layer = rnnfast.GRU(4, 6, rng=0)
    for one, name in ((layer.stream(3), "batch_size"), (rnnfast.StreamPool(layer, 3), "capacity")):
        for change in (lambda: setattr(one, name, 9), lambda: delattr(one, name)):  # noqa: B023
            with pytest.raises(AttributeError, match=f"{name} of this .* is fixed at construction"):
                change()
        assert getattr(one, name) == 3


def test_layers_cannot_be_constructed_again():
    layer = rnnfast.GRU(4, 6, rng=0)
    before = outputs(layer)
    with pytest.raises(AttributeError, match="is fixed at construction"):
        layer.__init__(4, 99)
    assert_same_bits(outputs(layer), before)


def test_dropout_can_be_assigned():
    layer = rnnfast.LSTM(4, 6, 2, dropout=0.5, rng=0)
    x = np.ones((5, 3, 4), np.float32)
    assert not np.array_equal(layer.forward(x)[0], layer(x)[0])
    layer.dropout = 0
    assert layer.dropout == 0
    np.testing.assert_array_equal(layer.forward(x)[0], layer(x)[0])
    assert pickle.loads(pickle.dumps(layer)).dropout == 0
    for wrong, error in ((2, ValueError), ("0.5", TypeError), (None, TypeError)):
        with pytest.raises(error, match="dropout must be"):
            layer.dropout = wrong
    with pytest.raises(AttributeError):
        del layer.dropout
    assert layer.dropout == 0


def test_subclasses_have_attributes_of_their_own():
    class Mine(rnnfast.LSTM):
        def __init__(self, hidden_size):
            self.hidden_size = hidden_size  # before the options are fixed
            super().__init__(4, hidden_size, rng=0)
            self.note = "a"

    mine = Mine(6)
    mine.note = "b"
    for one in (mine, pickle.loads(pickle.dumps(rnnfast.GRU(4, 6)))):
        one.other = 3
        del one.other
    assert mine.note == "b"
    with pytest.raises(AttributeError, match="hidden_size of this Mine is fixed"):
        mine.hidden_size = 7


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("value", [99, 1, 0, -1, 2**40, None, "float64", np.dtype(np.float64), np.dtype(np.float32)])
def test_attributes_changed_behind_its_back_do_not_reach_the_kernels(kind, value):
    """Each call returns the same bits as before, or raises an exception."""
    expected = outputs(LAYERS[kind]())
    for name in names(LAYERS[kind]()):
        layer = LAYERS[kind]()
        if name not in vars(layer) or name in ("execution", "merge"):
            continue
        vars(layer)[name] = value
        calls = [outputs]
        if kind in RECURRENT:
            calls += [
                lambda one: {**expected, "y": one(np.zeros((5, 3, 99), np.float32))[0]},
                lambda one: one.stream(3) and expected,
                lambda one: rnnfast.StreamPool(one, 3).join() and expected,
            ]
        for call in calls:
            try:
                got = call(layer)
            except Exception:
                continue
            if name != "dtype":
                assert_same_bits(got, expected)


def reshape(array):
    array.shape = (-1,)


def change_dtype(array):
    array.dtype = np.float64 if array.dtype == np.float32 else np.float32


def change_strides(array):
    array.strides = (0,) * array.ndim


def replace(array):
    array.__setstate__((1, (1,), array.dtype, False, bytes(array.dtype.itemsize)))


@pytest.mark.parametrize("change", [reshape, change_dtype, change_strides, replace])
@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "embedding"])  # NumPy reads those
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parameters_of_another_form(kind, change):
    """Each call returns the same bits as before, or raises an exception."""
    expected = outputs(LAYERS[kind]())
    for name in LAYERS[kind]().parameters:
        layer = LAYERS[kind]()
        with contextlib.suppress(ValueError):  # NumPy refuses some of these changes
            change(layer.parameters[name])
        for call in (outputs, lambda one: one.freeze() or outputs(one)):
            try:
                got = call(layer)
            except Exception:
                continue
            assert {k: v.tobytes() for k, v in got.items()} == {k: v.tobytes() for k, v in expected.items()}
