"""Checkpoints give the same bits as a full tape and take less memory."""

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cells import DIRECTIONS, VARIANTS, make_layer
from support.compare import assert_same_bits
from support.ragged import KINDS, isas, layer_of, run, seeds, swapped, unbatched, uneven_problem, without_cells

import rnnfast

# --- the same bits


SHAPES_FOR_CHECKPOINTS = [(300, 2), (700, 1), (40, 60), (4, 300), (20, 64), (9, 1), (1, 5), (12, 100)]


@st.composite
def long_problems(draw):
    T, N = draw(st.sampled_from(SHAPES_FOR_CHECKPOINTS))
    num_layers = draw(st.integers(1, 3))
    return uneven_problem(
        draw(st.sampled_from([None, None, *KINDS])),
        draw(st.sampled_from(list(VARIANTS))),
        T,
        N,
        draw(st.integers(1, 5)),
        draw(st.integers(1, 6)),
        seed=draw(seeds),
        dtype=draw(st.sampled_from([np.float32, np.float64])),
        num_layers=num_layers,
        dropout=num_layers > 1 and draw(st.booleans()),
        bias=draw(st.booleans()),
        **DIRECTIONS[draw(st.sampled_from(list(DIRECTIONS)))],
    )


@given(long_problems(), isas, st.integers(1, 400), st.booleans())
def test_any_checkpoint(p, isa, other, frozen):
    layer = layer_of(p, isa)
    if frozen:
        layer.freeze()
    expected = without_cells(run(layer, p))
    T = len(p.x)
    for checkpoint in (1, 7, "auto", T, np.int64(T + 5), other):
        assert_same_bits(run(layer, p, checkpoint), expected)
    first = run(layer_of(p, isa, batch_first=True), swapped(p), other)
    for name in ("y", "dx"):
        first[name] = first[name].swapaxes(0, 1)
    assert_same_bits(first, expected)
    one = unbatched(p)
    layer = layer_of(one, isa)
    assert_same_bits(run(layer, one, other), without_cells(run(layer, one)))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", [None, "lengths", "mask and reset"])
def test_checkpoints_draw_the_same_dropout(variant, kind, direction):
    """Two layers with one seed, one of them with checkpoints."""
    p = uneven_problem(kind, variant, 40, 30, 3, 5, dtype=np.float32, num_layers=3, **DIRECTIONS[direction])
    size = p.proj_size or p.hidden_size
    options = {"num_layers": 3, "dropout": 0.4, **DIRECTIONS[direction]}
    for checkpoint in (1, 7, "auto", 40, 99):
        one, other = (make_layer(variant, 3, size, rng=5, **options) for _ in range(2))
        for _ in range(2):
            assert_same_bits(run(other, p, checkpoint), without_cells(run(one, p)))


# --- memory and time


def peak_of(layer, x, checkpoint):
    """The peak memory of a forward and backward pass."""
    gc.collect()
    tracemalloc.start()
    y, _, tape = layer.forward(x, checkpoint=checkpoint)
    layer.backward(tape, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("bidirectional", [False, True])
def test_checkpoints_take_less_memory(bidirectional):
    # So few steps that every buffer is below memory.LARGE: tracemalloc does not count the pages of larger ones.
    x = np.ones((800 // (1 + bidirectional), 8, 1), np.float32)
    peaks = [peak_of(rnnfast.LSTM(1, 8, bidirectional=bidirectional, rng=0), x, c) for c in (None, "auto")]
    assert peaks[1] < 0.45 * peaks[0], peaks
