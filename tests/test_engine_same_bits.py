"""Results have the same bits for any batch, split in time, number of threads and layout; NaN stays in its row."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.cells import DIRECTIONS
from support.compare import assert_same_bits, members
from support.guards import LAYOUTS, Run, run_engine, run_in_a_row
from support.problems import SHAPES_FOR_THREADS, of_rows, rows, variant_problem

# --- the same bits


@pytest.mark.cover(1)
@pytest.mark.parametrize(("T", "N", "I", "H", "num_layers"), SHAPES_FOR_THREADS)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_any_number_of_threads(threads, variant, direction, T, N, I, H, num_layers, dtype):
    p = variant_problem(variant, T, N, I, H, num_layers=num_layers, dtype=dtype, **DIRECTIONS[direction])
    threads(1)
    expected = run_in_a_row(p)
    for count in (2, 3):
        threads(count)
        assert_same_bits(run_in_a_row(p), expected)


def test_any_number_of_threads_on_every_instruction_set(threads, variant, isa):
    p = variant_problem(variant, 12, 26, 100, 60, num_layers=2, dtype=np.float32, bidirectional=True)
    threads(1)
    expected = run_in_a_row(p, isa)
    threads(3)
    assert_same_bits(run_in_a_row(p, isa), expected)


@pytest.mark.parametrize(("N", "H"), [(13, 21), (29, 70), (6, 130)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_row_alone_or_in_a_batch(variant, direction, N, H, dtype, isa):
    p = variant_problem(variant, 5, N, 11, H, num_layers=2, dropout=True, dtype=dtype, **DIRECTIONS[direction])
    batch = run_engine(p, isa)
    for which in (slice(0, 1), slice(N // 2, N // 2 + 1), slice(N - 1, N), slice(1, 5)):
        alone = run_engine(rows(p, which), isa)
        assert_same_bits(of_rows(alone, slice(None)), of_rows(batch, which))


def test_a_row_alone_or_in_a_large_batch(threads, variant, dtype):
    """Enough rows for several threads; a single row never is."""
    p = variant_problem(variant, 6, 700, 21, 57, dtype=dtype, bidirectional=True)
    threads(2)
    batch = run_engine(p)
    for which in (slice(0, 1), slice(350, 351), slice(699, 700)):
        assert_same_bits(of_rows(run_engine(rows(p, which)), slice(None)), of_rows(batch, which))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_any_chunks_of_time(variant, direction, dtype, isa):
    T, layers = 300, 2
    p = variant_problem(variant, T, 3, 7, 10, num_layers=layers, dropout=True, dtype=dtype, **DIRECTIONS[direction])
    whole = run_engine(p, isa)
    cuts = [slice(0, 1), slice(1, 38), slice(38, 293), slice(293, T)]
    if direction == "reverse":
        cuts.reverse()
    runs, state = [], p.state
    for cut in cuts:
        q = rows(p, slice(None))
        q.x, q.dy, q.state = p.x[cut], p.dy[cut], state
        q.options = {**p.options, "masks": p.options["masks"][:, cut].copy()}
        runs.append(Run(q, isa))
        state = runs[-1].state
    pieces, dstate = {}, p.dstate
    for cut, run in zip(cuts[::-1], runs[::-1], strict=True):
        run.p.dstate = dstate
        results = run.backward()
        dstates = [results[f"dstate {i}"] for i in range(len(members(p.state)))]
        dstate = tuple(dstates) if isinstance(p.state, tuple) else dstates[0]
        pieces[cut.start] = results
    in_order = [pieces[start] for start in sorted(pieces)]
    got = {name: np.concatenate([piece[name] for piece in in_order]) for name in ("y", "dx")}
    got.update({f"state {i}": member for i, member in enumerate(members(state))})
    got.update({f"dstate {i}": member for i, member in enumerate(members(dstate))})
    assert_same_bits(got, {name: whole[name] for name in got})


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_with_and_without_a_tape(variant, direction, dtype, isa):
    for T, N, I, H in ((7, 5, 3, 20), (300, 2, 3, 5), (2, 600, 3, 5)):
        p = variant_problem(variant, T, N, I, H, num_layers=2, dropout=True, dtype=dtype, **DIRECTIONS[direction])
        with_tape, without = (Run(p, isa, keep_tape=keep).forward_results() for keep in (True, False))
        assert_same_bits(without, with_tape)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "plain"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_any_strides(variant, layout, num_layers, dtype, isa):
    p = variant_problem(variant, 5, 7, 11, 21, num_layers=num_layers, bidirectional=num_layers == 1, dtype=dtype)
    assert_same_bits(run_engine(p, isa, layout=layout), run_engine(p, isa))


def test_backward_on_every_repeat(variant, dtype, isa):
    """Run backward twice on one tape, and again after another forward."""
    p = variant_problem(variant, 9, 7, 5, 20, num_layers=2, dropout=True, bidirectional=True, dtype=dtype)
    run = Run(p, isa)
    first = run.backward()
    other = Run(rows(p, slice(2, 4)), isa)
    other.backward()
    assert_same_bits(run.backward(), first)
    assert_same_bits(Run(p, isa).backward(), first)


def test_several_callers_at_once(threads, variant, isa):
    threads(2)
    p = variant_problem(variant, 20, 12, 16, 40, num_layers=2, bidirectional=True, dtype=np.float32)
    expected = run_engine(p, isa)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(lambda _: run_engine(p, isa), range(12)):
            assert_same_bits(results, expected)


# --- NaN and infinity are data


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["x", "state", "dy", "dstate"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_not_finite_values_stay_in_their_row(threads, variant, direction, place, value, isa):
    threads(2)
    p = variant_problem(variant, 6, 9, 5, 18, num_layers=2, dtype=np.float32, **DIRECTIONS[direction])
    clean = run_engine(p, isa)
    row = 4
    for array in members(getattr(p, place)):
        array[0 if place in ("state", "dstate") else 2, row, 0] = value
    results = run_engine(p, isa)
    others = np.arange(9) != row
    assert_same_bits(of_rows(results, others), of_rows(clean, others))
    if place == "x" and np.isnan(value):
        at = {"forward": slice(2, None), "reverse": slice(None, 3), "bidirectional": slice(None)}[direction]
        expected = np.zeros(6, bool)
        expected[at] = True
        np.testing.assert_array_equal(np.isnan(results["y"][:, row]).all(axis=1), expected)
        np.testing.assert_array_equal(np.isnan(results["y"][:, row]).any(axis=1), expected)
    if place in ("x", "dy", "dstate") and np.isnan(value):
        relu = "relu" in variant  # it has slope 0 at NaN, as in the reference
        assert relu or np.isnan(results["dx"][:, row]).any()
