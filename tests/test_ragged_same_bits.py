"""Ragged batches give the same bits for any description, batch, padding or repetition."""

from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cells import DIRECTIONS, VARIANTS, has_c
from support.compare import assert_same_bits, members, named
from support.layers import outputs
from support.problems import SHAPES_FOR_THREADS
from support.ragged import (
    KINDS,
    UNEVEN,
    cells_of,
    is_real,
    isas,
    layer_of,
    named_reset,
    of_rows,
    problems,
    rows,
    run,
    run_backward,
    seeds,
    uneven,
    uneven_problem,
    without_cells,
)


@given(problems(), isas, seeds)
def test_a_row_alone_or_in_any_batch(p, isa, seed):
    batch = run(layer_of(p, isa), p)
    rng = np.random.default_rng(seed)
    which = rng.permutation(p.x.shape[1])[: rng.integers(1, p.x.shape[1] + 1)]
    for some in (which, which[:1]):
        q = rows(p, some)
        assert_same_bits(of_rows(run(layer_of(q, isa), q), np.arange(len(some))), of_rows(batch, some))


def test_a_row_alone_or_in_a_large_batch(threads, variant, dtype):
    """Enough rows for several threads; a single row never is."""
    kind = list(KINDS)[list(VARIANTS).index(variant) % len(KINDS)]
    p = uneven_problem(kind, variant, 6, 700, 21, 57, dtype=dtype, bidirectional=True)
    threads(2)
    batch = run(layer_of(p), p)
    for row in (0, 1, 350, 699):
        q = rows(p, [row])
        assert_same_bits(of_rows(run(layer_of(q), q), [0]), of_rows(batch, [row]))


def parts_of(p, n):
    """The steps of each sequence in a row, in order."""
    T = p.x.shape[0]
    real = is_real(p)[:, n]
    length = T if "lengths" not in p.options else p.options["lengths"][n]
    reset = np.zeros(T, bool) if "reset" not in p.options else p.options["reset"][:, n]
    cuts = [0, *(t for t in range(1, length) if reset[t]), length]
    return [[t for t in range(first, stop) if real[t]] for first, stop in pairwise(cuts)]


@given(problems(large=False), isas)
def test_a_sequence_alone_in_a_plain_call(p, isa):
    """The valid steps between two resets give the same bits as a full row that starts from the same state."""
    p.options["masks"] = None
    if "mask" in p.options:
        p.options["zero_masked"] = True
    layer = layer_of(p, isa)
    batch = run(layer, p)
    D = 1 + p.options["bidirectional"]
    backwards = np.array([p.options["reverse"], True][:D] * p.options["num_layers"])
    has_reset_state = "reset_state" in p.options
    for n in range(p.x.shape[1]):
        one = rows(p, [n])
        parts = parts_of(p, n)
        fresh = has_reset_state and p.options["reset"][0, n] and p.options.get("lengths", np.ones(n + 1))[n] > 0
        for number, steps in enumerate(parts):
            if not steps:
                continue
            q = copy(one)
            q.x, q.dy = one.x[steps], one.dy[steps]
            q.options = {name: value for name, value in p.options.items() if name not in UNEVEN}
            if has_reset_state:
                continues = np.where(backwards, number == len(parts) - 1, number == 0 and not fresh)[:, None, None]
                both = zip(members(one.state), members(one.options["reset_state"]), strict=True)
                q.state = tuple(np.where(continues, member, restart) for member, restart in both)
                q.state = q.state if has_c(p.cell) else q.state[0]
            last = np.where(backwards, number == 0, number == len(parts) - 1)[:, None, None]
            q.dstate = tuple(np.where(last, member, np.zeros_like(member)) for member in members(one.dstate))
            q.dstate = q.dstate if has_c(p.cell) else q.dstate[0]
            alone = run(layer, q)
            for name in ("y", "dx"):
                assert alone[name][:, 0].tobytes() == batch[name][steps, n].tobytes(), name
            for name in {"dh", "cells"} & set(alone):
                assert alone[name][:, :, 0].tobytes() == batch[name][:, steps, n].tobytes(), name
            for i in range(len(members(p.state))):
                got, want = alone[f"state {i}"][:, 0], batch[f"state {i}"][:, n]
                assert got[last[:, 0, 0]].tobytes() == want[last[:, 0, 0]].tobytes()
                if has_reset_state:  # one sequence of a row takes the gradient of its initial state
                    own = continues[:, 0, 0]
                    assert alone[f"dstate {i}"][own, 0].tobytes() == batch[f"dstate {i}"][own, n].tobytes()
                elif len(parts) == 1:
                    assert alone[f"dstate {i}"][:, 0].tobytes() == batch[f"dstate {i}"][:, n].tobytes()


@given(problems([None]), isas, st.sampled_from([None, 1]), seeds)
def test_whole_rows_are_plain(p, isa, checkpoint, seed):
    T, N, _ = p.x.shape
    layer = layer_of(p, isa)
    expected = run(layer, p, checkpoint)
    every = np.ones((T, N), bool)
    at_first = (np.arange(T)[:, np.newaxis] == 0) & (np.random.default_rng(seed).random(N) < 0.5)
    options = p.options
    for more in (
        {"lengths": [T] * N},
        {"mask": every},
        {"mask": every, "zero_masked": True},
        {"reset": ~every},
        {"reset": at_first},
        {"lengths": [T] * N, "reset": at_first},
        {"mask": every, "reset": at_first},
        {"zero_masked": True},
    ):
        p.options = {**options, **more}
        assert_same_bits(run(layer, p, checkpoint), expected)


@given(problems(["reset"]), isas)
def test_whole_rows_with_resets_are_resets_alone(p, isa):
    T, N, _ = p.x.shape
    layer = layer_of(p, isa)
    expected = run(layer, p)
    options = p.options
    for more in ({"lengths": [T] * N}, {"mask": np.ones((T, N), bool)}):
        p.options = {**options, **more}
        assert_same_bits(run(layer, p), expected)


@given(problems([kind for kind in KINDS if kind != "reset"]), isas, st.integers(1, 300), seeds)
def test_padded_further(p, isa, more, seed):
    """Further padding changes nothing; where y is held in the padding, dy is 0 there."""
    expected = run(layer_of(p, isa), p)
    T, N, _ = p.x.shape
    rng = np.random.default_rng(seed)
    q = copy(p)

    def longer(array, values, axis=0):
        shape = list(array.shape)
        shape[axis] = more
        return np.concatenate([array, np.broadcast_to(np.array(values, array.dtype), shape)], axis=axis)

    held = "mask" in p.options and "zero_masked" not in p.options
    q.x, q.dy = longer(p.x, np.nan), longer(p.dy, 0 if held else np.nan)
    masks = p.options["masks"]
    q.options = {**p.options, "masks": None if masks is None else longer(masks, np.nan, axis=1)}
    if "mask" in p.options:
        q.options["mask"] = longer(p.options["mask"], False)
    if "reset" in p.options:
        q.options["reset"] = longer(p.options["reset"], False if "mask" in p.options else rng.random((more, N)) < 0.5)
    got = run(layer_of(q, isa), q)
    for name in ("y", "dx"):
        assert held or not got[name][T:].any()
        got[name] = got[name][:T]
    for name in {"dh", "cells"} & set(got):
        assert held or name == "cells" or not got[name][:, T:].any()
        got[name] = got[name][:, :T]
    if held and (p.options["reverse"] or p.options["bidirectional"]):
        assert not q.options["mask"][T:].any()
    assert_same_bits(got, expected)


@given(
    problems(["lengths", "lengths and reset", "lengths and reset to a state"]), isas, st.sampled_from([None, 1, "auto"])
)
def test_lengths_are_a_mask(p, isa, checkpoint):
    T = len(p.x)
    layer = layer_of(p, isa)
    expected = run(layer, p, checkpoint)
    inside = np.arange(T)[:, np.newaxis] < p.options.pop("lengths")
    p.options.update(mask=inside, zero_masked=True)
    if "reset" in p.options:  # of lengths no cut lies in the padding
        p.options["reset"] = p.options["reset"] & inside
    got = run(layer, p, checkpoint)
    for results in (got, expected):
        if "cells" in results:
            results["cells"] = np.where(inside[..., np.newaxis], results["cells"], 0)
    assert_same_bits(got, expected)


@given(problems(), isas)
def test_frozen_or_not_called_or_trained(p, isa):
    p.options["masks"] = None
    layer = layer_of(p, isa)
    trained = run(layer, p)
    expected = {name: value for name, value in trained.items() if name in ("y", "state 0", "state 1")}

    def call():
        y, state = layer(p.x, p.state, **uneven(p))
        assert y.flags.writeable
        return outputs(y, state)

    assert_same_bits(call(), expected)
    layer.freeze()
    for _ in range(2):
        layer(p.x, p.state)  # what the next plain call repeats
        assert_same_bits(call(), expected)
    assert_same_bits(run(layer, p), trained)
    layer.unfreeze()
    assert_same_bits(call(), expected)


@given(problems(), isas, st.sampled_from([None, 1, "auto"]))
def test_backward_on_every_repeat(p, isa, checkpoint):
    layer = layer_of(p, isa)
    expected = run(layer, p, checkpoint)
    y, state, tape = layer.forward(p.x, p.state, **uneven(p), checkpoint=checkpoint)
    q = rows(p, [0])
    q.options["masks"] = None
    other = layer_of(q, isa)
    run(other, q)
    first = {**run_backward(layer, p, y, state, tape), **cells_of(p, tape, checkpoint)}
    assert_same_bits(first, expected)
    assert_same_bits({**run_backward(layer, p, y, state, tape), **cells_of(p, tape, checkpoint)}, expected)
    plain = layer.backward(tape, p.dy, p.dstate)
    assert plain.h is None
    del expected["dh"]
    expected.pop("cells", None)
    assert_same_bits({**named(y, state, *plain), **named_reset(p, plain.reset_state)}, expected)


@pytest.mark.cover(1)
@pytest.mark.parametrize("kind", ["lengths", "mask", "zero_masked and reset"])
@pytest.mark.parametrize("at", range(len(SHAPES_FOR_THREADS)))
def test_any_number_of_threads(threads, at, kind):
    """Calls are repeated: workers that the first call wakes may join only the next one."""
    T, N, I, H, num_layers = SHAPES_FOR_THREADS[at]
    for k, variant in enumerate(list(VARIANTS)[at % 2 :: 2]):
        direction = list(DIRECTIONS)[(k + at) % 3]
        options = {"dtype": (np.float32, np.float64)[(k + at) % 2], "num_layers": num_layers, **DIRECTIONS[direction]}
        p = uneven_problem(kind, variant, T, N, I, H, **options)
        rng = np.random.default_rng(at)
        if "lengths" in p.options:  # enough steps that there is something to share
            p.options["lengths"] = T - rng.integers(0, T // 2 + 1, N)
        if "mask" in p.options:
            p.options["mask"] |= rng.random((T, N)) < 0.5
        layer = layer_of(p)
        threads(1)
        expected = run(layer, p)
        for count in (2, 3):
            threads(count)
            for _ in range(2):
                y, state, tape = layer.forward(p.x, p.state, **uneven(p))
                for _ in range(2):
                    got = {**run_backward(layer, p, y, state, tape), **cells_of(p, tape)}
                    assert_same_bits(got, expected)
            assert_same_bits(run(layer, p, 1 + T // 3), without_cells(expected))


def test_python_threads_share_a_layer():
    problems = [
        uneven_problem(kind, "lstm", 3 + seed, 4 + 30 * (seed % 2), 4, 9, seed=seed, dtype=np.float32, num_layers=2)
        for seed, kind in enumerate([None, *KINDS])
    ]
    layer = layer_of(problems[0])
    for p in problems:
        p.parameters = problems[0].parameters
    ways = [(p, checkpoint) for p in problems for checkpoint in (None, 1)]
    expected = [run(layer, *way) for way in ways]

    def work(offset):
        for k in range(3 * len(ways)):
            j = (k * (2 * offset + 1)) % len(ways)
            assert_same_bits(run(layer, *ways[j]), expected[j])
            y, _ = layer(ways[j][0].x, ways[j][0].state, **uneven(ways[j][0]))
            assert y.tobytes() == expected[j]["y"].tobytes()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
