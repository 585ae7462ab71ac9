"""Masks of recurrent and input dropout and of zoneout: each depends on the seed, the call and the row alone."""

import numpy as np
import pytest
from support.compare import assert_same_bits

import rnnfast
from rnnfast import GRU, LSTM
from rnnfast.layers import saving

DROPOUT = {"recurrent_dropout": 0.5, "input_dropout": 0.5}


@pytest.fixture(
    params=[(LSTM, DROPOUT), (GRU, DROPOUT), (LSTM, {"zoneout": (0.3, 0.4)}), (GRU, {"zoneout": 0.5})],
    ids=["lstm-dropout", "gru-dropout", "lstm-zoneout", "gru-zoneout"],
)
def random(request):
    """A class of layers, and its options that draw masks."""
    return request.param


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 2, "dropout": 0.5}],
    ids=["plain", "batch_first", "bidirectional", "dropout"],
)
def test_results_do_not_depend_on_the_batch_or_on_how_it_is_run(random, options, threads):
    kind, masked = random

    def results(N, **how):
        layer = kind(3, 5, rng=0, **masked, **options)
        x = np.ones((9, 9, 3), np.float32)
        x = x[:N] if layer.batch_first else x[:, :N]
        y, state, tape = layer.forward(x, **how)
        h, c = state if kind is LSTM else (state, state)
        return {"y": y, "h": h, "c": c, "dx": layer.backward(tape, np.ones_like(y)).x}

    whole = results(9)
    assert_same_bits(results(9, checkpoint=1), whole)
    threads(3)
    assert_same_bits(results(9), whole)
    if not options.get("dropout"):  # whose masks are drawn for the whole batch
        axis = 0 if "batch_first" in options else 1
        for name, value in results(4).items():
            np.testing.assert_array_equal(value, whole[name].take(range(4), axis if name in ("y", "dx") else 1))


def test_every_layout_has_the_same_masks(random):
    kind, masked = random

    def results(layout, **options):
        layer = kind(3, 5, 2, rng=0, **masked, **options)
        x = np.arange(18, dtype=np.float32).reshape(6, 1, 3) / 9 * np.ones((1, 4, 1), np.float32)
        y, _, tape = layer.forward(layout(x))
        return [layout(array) for array in (y, layer.backward(tape, np.ones_like(y)).x)]

    expected = results(lambda a: a)
    for got, want in zip(results(lambda a: a.swapaxes(0, 1), batch_first=True), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(results(lambda a: a[:, 0] if a.ndim == 3 else a), expected, strict=True):
        np.testing.assert_array_equal(got, want[:, 0])


def test_masks_follow_the_seed_and_the_calls(random):
    kind, masked = random
    x = np.ones((3, 2, 3))
    one, same = (kind(3, 50, rng=0, **masked) for _ in range(2))
    seen = []
    for _ in range(3):
        seen.append(one.forward(x)[0])
        same(x)  # draws nothing
        np.testing.assert_array_equal(same.forward(x)[0], seen[-1])
    assert not np.array_equal(seen[0], seen[1])
    plain = kind(3, 50, rng=0)
    before = plain._rng.bit_generator.state
    plain.forward(x)
    assert plain._rng.bit_generator.state == before


@pytest.mark.parametrize("shape", [(5, 3), (5, 0, 3)])
def test_unbatched_and_empty(random, shape):
    kind, masked = random
    layer = kind(3, 4, 2, rng=0, **masked)
    y, state, tape = layer.forward(np.ones(shape))
    assert y.shape == layer(np.ones(shape))[0].shape == (*shape[:-1], 4)
    assert layer.backward(tape, np.ones_like(y), state).x.shape == shape


def test_padding_may_hold_nan(random):
    kind, masked = random
    layer = kind(3, 4, 2, rng=0, **masked)
    x = np.ones((5, 2, 3), np.float32)
    x[2:, 1] = np.nan
    y, _, tape = layer.forward(x, lengths=[5, 2])
    grads = layer.backward(tape, np.ones_like(y))
    assert np.isfinite(y).all()
    assert np.isfinite(grads.x).all()


def test_layers_of_earlier_versions(random):
    """Their pickles lack the options, and so do the files of layers that do not use them."""
    kind, masked = random
    layer = kind(3, 4, rng=0)
    state = layer.__getstate__()
    for name in masked:
        del state[name]
    old = kind.__new__(kind)
    old.__setstate__(state)
    assert not masked.keys() & saving.to_json(layer).keys()
    x = np.ones((5, 2, 3))
    np.testing.assert_array_equal(old.forward(x)[0], layer(x)[0])
    assert repr(old) == repr(layer)


def test_bidirectional_and_sequential(random):
    kind, masked = random
    both = rnnfast.Bidirectional(kind(3, 4, rng=0, **masked))
    for name, value in masked.items():
        assert getattr(both.backward_layer, name) == value
    x = np.ones((5, 2, 3), np.float32)
    y, _, tape = both.forward(x)
    assert not np.array_equal(y, both(x)[0])
    assert both.backward(tape, y).x.shape == x.shape
    model = rnnfast.Sequential(kind(3, 4, rng=0, **masked), rnnfast.Linear(4, 2, rng=0))
    assert not np.array_equal(model.forward(x)[0], model(x)[0])
