"""The engine, through rnnfast.functional.

Against the reference and central differences, in every cell, dtype, instruction set, direction and depth; at the edges
of its tiles; the same bits however it is called; nothing written outside of its buffers.
"""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cache

import numpy as np
import pytest
from guards import LAYOUTS, Guards, Run, make_engine, run_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    DIRECTIONS,
    VARIANTS,
    assert_close,
    gradient_by_differences,
    members,
    parameter_shapes,
    problem,
    run_reference,
)

from rnnfast import functional

# Errors against the reference in float64 are rounding: a few hundred units in the last place of the largest value.
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-13}

# These hold, for every number of lanes from 1 to 16 and every tile of 1 to 4 vectors, the numbers beside its edge.
EDGES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65]

# The results that have a part for every row of the batch.
PER_ROW = {"y", "dx", "state 0", "state 1", "dstate 0", "dstate 1"}


def variant_problem(variant, T, N, I, H, **options):
    """A problem of one of VARIANTS; a projected LSTM, which needs P < H, is given one unit more than P."""
    cell, projected = VARIANTS[variant]
    return problem(cell, T, N, I, H + projected, proj_size=H * projected, **options)


@cache
def solved(variant, T, N, I, H, dtype, direction="forward", **options):
    """A problem and its results by the reference in float64; the same for every instruction set."""
    p = variant_problem(variant, T, N, I, H, dtype=dtype, **DIRECTIONS[direction], **options)
    return p, run_reference(p, np.float64)


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert got[name].shape == want.shape, name
        assert got[name].tobytes() == want.tobytes(), f"{name} differs by {np.abs(got[name] - want).max()}"


def run_in_a_row(p, isa=None):
    """All results of calls in a row: threads that the first one wakes may come too late for it, but not for the next.

    What one has left is wiped out before the next. What backward adds up it adds up again and again.
    """
    run = Run(p, isa)

    def wipe(array):
        array.view(np.uint8).reshape(-1)[...] = 0xFF  # NaN

    for _ in range(3):
        wipe(run.y)
        wipe(run.workspaces[0])
        run.forward()
    backward, results = run.prepare_backward()
    for _ in range(3):
        wipe(results["dx"])
        wipe(run.workspaces[1])
        backward()
    run.guards.check()
    return results


def rows(p, which):
    """The problem of some rows of the batch."""
    q = copy(p)
    q.x, q.dy = p.x[:, which], p.dy[:, which]
    q.state, q.dstate = (
        tuple(member[:, which].copy() for member in s) if isinstance(s, tuple) else s[:, which].copy()
        for s in (p.state, p.dstate)
    )
    if p.options["masks"] is not None:
        q.options = {**p.options, "masks": p.options["masks"][:, :, which].copy()}
    return q


def of_rows(results, which):
    """The results that belong to some rows of the batch."""
    return {name: value[:, which] for name, value in results.items() if name in PER_ROW}


# --- the right numbers


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_agrees_with_the_reference(variant, direction, num_layers, dtype, isa):
    p, expected = solved(variant, 7, 5, 9, 12, dtype, direction, num_layers=num_layers, dropout=num_layers > 1)
    assert_close(run_engine(p, isa), expected, TOLERANCE[p.dtype])


def test_agrees_without_biases(variant, dtype, isa):
    p, expected = solved(variant, 3, 2, 4, 5, dtype, "bidirectional", num_layers=2, bias=False)
    assert_close(run_engine(p, isa), expected, TOLERANCE[p.dtype])


@pytest.mark.parametrize("N", [1, 5, 6, 7, 12, 13])
def test_sizes_at_the_edges_of_tiles(variant, N, dtype, isa):
    for k, H in enumerate(EDGES):
        I = EDGES[-1 - k]
        p, expected = solved(variant, 1 + k % 3, N, I, H, dtype, list(DIRECTIONS)[k % 3])
        assert_close(run_engine(p, isa), expected, TOLERANCE[p.dtype])


@pytest.mark.parametrize(("T", "N", "I", "H"), [(300, 2, 3, 4), (60, 9, 300, 5), (5, 70, 4, 130), (2, 600, 7, 3)])
def test_large_sizes(variant, T, N, I, H, dtype, isa):
    """More steps, features, units and rows than one block of any of the loops takes."""
    p, expected = solved(variant, T, N, I, H, dtype, "bidirectional")
    assert_close(run_engine(p, isa), expected, 4 * TOLERANCE[p.dtype])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_are_central_differences(variant, direction):
    p = variant_problem(variant, 3, 2, 2, 3, num_layers=2, dropout=True, **DIRECTIONS[direction])
    results = run_engine(p)

    def run_forward(p):
        run = Run(p, keep_tape=False)
        return run.y, run.state

    expected = gradient_by_differences(p, run_forward)
    assert_close({name: results[name] for name in expected}, expected, 1e-8)


@st.composite
def problems(draw):
    """Problems of any small shape."""
    size = st.integers(1, 20)
    T, N, I, H = draw(st.integers(1, 6)), draw(size), draw(size), draw(st.integers(1, 40))
    num_layers = draw(st.integers(1, 3))
    return variant_problem(
        draw(st.sampled_from(list(VARIANTS))),
        T,
        N,
        I,
        H,
        dtype=draw(st.sampled_from([np.float32, np.float64])),
        num_layers=num_layers,
        dropout=draw(st.booleans()),
        bias=draw(st.booleans()),
        **DIRECTIONS[draw(st.sampled_from(list(DIRECTIONS)))],
    )


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(functional.isas()), st.sampled_from(list(LAYOUTS)))
def test_any_shape_and_layout(p, isa, layout):
    assert_close(run_engine(p, isa, layout=layout), run_reference(p, np.float64), TOLERANCE[p.dtype])


@pytest.mark.parametrize(
    ("T", "N", "isa"), [(1, 10**6, None), (10**6, 1, None), *((1000, 1000, isa) for isa in functional.isas())]
)
def test_gradients_are_sums_of_a_million_rows(T, N, isa):
    """All summands are positive; one chain of float32 sums over them would be wrong in the fourth digit."""
    p = problem("rnn_relu", T, N, 1, 1, dtype=np.float32)
    rng = np.random.default_rng(1)
    p.x, p.dy = rng.uniform(0.5, 1, (2, T, N, 1)).astype(np.float32)
    p.state.fill(0.5)
    p.dstate.fill(0)
    for name, value in p.parameters.items():
        value.fill(0 if "weight_hh" in name else 1)
    # Without a weight on h, and with all outputs positive, the gradient of a pre-activation is dy itself.
    y = p.x.astype(np.float64) + 2
    before = np.concatenate([p.state, y[:-1]])
    summands = {
        "weight_ih": p.dy * p.x.astype(np.float64),
        "weight_hh": p.dy * before,
        "bias_ih": p.dy,
        "bias_hh": p.dy,
    }
    results = run_engine(p, isa)
    for name, values in summands.items():
        assert results[f"d{name}_l0"].item() == pytest.approx(values.sum(dtype=np.float64), rel=1e-5), name


# --- arguments that may be left out, and what is added to


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_none_means_zeros(variant, direction, isa):
    p = variant_problem(variant, 4, 3, 5, 6, num_layers=2, dtype=np.float32, **DIRECTIONS[direction])

    def check(**absent):
        zeros, none = copy(p), copy(p)
        for q, value in ((zeros, np.zeros_like), (none, lambda _: None)):
            for name, which in absent.items():
                given = getattr(p, name)
                if which is None:
                    setattr(q, name, value(given))
                else:
                    parts = tuple(value(m) if i in which else m for i, m in enumerate(members(given)))
                    setattr(q, name, parts if isinstance(given, tuple) else parts[0])
        assert_same_bits(run_engine(none, isa), run_engine(zeros, isa))

    check(dy=None)
    check(state={0, 1}, dstate={0, 1})
    if p.cell == "lstm":
        check(state={0}, dstate={1})
        check(state={1}, dstate={0})


def test_gradients_of_parameters_are_added(variant, dtype, isa):
    p = variant_problem(variant, 4, 3, 5, 6, num_layers=2, dtype=dtype)
    run = Run(p, isa)
    plain, added = run.backward(), run.backward(start=1.0)
    for name in plain:
        if name.removeprefix("d") in p.parameters:
            added[name] -= 1
    assert_close(added, plain, TOLERANCE[p.dtype])


def test_packed_weights_may_be_made_one_by_one(variant, isa):
    p = variant_problem(variant, 1, 1, 5, 6, num_layers=2, bidirectional=True, dtype=np.float32)
    engine = make_engine(p, isa)
    guards = Guards(p.dtype)
    parameters = [guards.constant(value) for value in p.parameters.values()]
    sizes = engine.packed_size, engine.packed_back_size
    together, alone = ([guards.bytes(size) for size in sizes] for _ in range(2))
    functional.pack(engine, parameters, *together)
    functional.pack(engine, parameters, alone[0], None)
    functional.pack(engine, parameters, None, alone[1])
    guards.check()
    for a, b in zip(together, alone, strict=True):
        assert a.tobytes() == b.tobytes()


# --- the same bits


SHAPES_FOR_THREADS = [
    (20, 64, 32, 48, 2),
    (6, 13, 200, 100, 2),
    (8, 1, 64, 700, 1),
    (2, 9000, 9, 8, 1),
    (400, 3, 40, 33, 1),
    # by units, with gates at whole vectors, for few rows and for weights that are far
    (12, 2, 30, 160, 1),
    (3, 13, 16, 896, 1),
]


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
    """Enough rows for several threads, which a row alone never is."""
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
    """Twice on one tape, and after another forward."""
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
        relu = VARIANTS[variant][0] == "rnn_relu"  # it has slope 0 at NaN, as in the reference
        assert relu or np.isnan(results["dx"][:, row]).any()


# --- sizes and buffers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_engine_knows_its_shapes(variant, direction, num_layers, bias):
    p = variant_problem(variant, 1, 1, 5, 6, num_layers=num_layers, bias=bias, **DIRECTIONS[direction])
    engine = make_engine(p)
    options = {"num_layers": num_layers, "bias": bias, "bidirectional": direction == "bidirectional"}
    expected = parameter_shapes(p.cell, 5, p.hidden_size, proj_size=p.proj_size, **options)
    assert list(functional.parameter_shapes(engine).items()) == list(expected.items())
    assert engine.directions == 1 + (direction == "bidirectional")
    assert engine.output_size == 6
    assert engine.has_cell == (p.cell == "lstm")


@pytest.mark.parametrize("sizes", [(2**40, 2**40), (2**62, 8), (8, 2**62), (2**70, 8), (8, 2**70)])
def test_engine_refuses_weights_whose_size_overflows(variant, sizes, isa):
    cell, projected = VARIANTS[variant]
    with pytest.raises(ValueError, match="too large"):
        functional.Engine(cell, np.dtype(np.float32), *sizes, proj_size=4 * projected, isa=isa)


@pytest.mark.parametrize(("T", "N"), [(2**62, 1), (1, 2**62), (2**32, 2**32), (2**31, 2**31), (2**70, 1), (1, 2**70)])
def test_sizes_refuse_to_overflow(variant, T, N, isa):
    p = variant_problem(variant, 1, 1, 5, 6, num_layers=2)
    with pytest.raises(ValueError, match=f"{T} steps and {N} rows"):
        make_engine(p, isa).sizes(T, N)


@pytest.mark.parametrize("count", [1, 64, 1000, 1 << 22, (1 << 22) + 1])
def test_empty_is_aligned(count):
    buffer = functional.empty(count)
    assert buffer.dtype == np.uint8
    assert buffer.shape == (count,)
    assert buffer.ctypes.data % 64 == 0
    assert buffer.flags.writeable
    buffer.fill(1)


def test_empty_refuses_what_memory_cannot_hold():
    with pytest.raises(MemoryError):
        functional.empty(2**60)


def test_use_isa_chooses_and_forgets():
    chosen = make_engine(problem("gru", 1, 1, 1, 1)).isa
    for isa in functional.isas():
        with functional.use_isa(isa):
            assert make_engine(problem("gru", 1, 1, 1, 1)).isa == isa
        assert make_engine(problem("gru", 1, 1, 1, 1)).isa == chosen


def test_use_isa_refuses_what_does_not_run_here():
    with pytest.raises(ValueError, match=f"isa is 'mmx', .* choose one of {', '.join(functional.isas())}"):
        functional.use_isa("mmx").__enter__()


@pytest.mark.parametrize(("error", "count"), [(ValueError, 0), (ValueError, -1), (TypeError, 1.5), (TypeError, True)])
def test_number_of_threads_is_a_positive_integer(threads, error, count):
    threads(2)
    with pytest.raises(error, match="number of threads"):
        threads(count)
    assert functional.get_num_threads() == 2


# --- the linear map


def linear_problem(M, I, O, dtype, bias):
    rng = np.random.default_rng(0)
    x, weight, dy = (rng.uniform(-1, 1, shape).astype(dtype) for shape in ((M, I), (O, I), (M, O)))
    return x, weight, rng.uniform(-1, 1, O).astype(dtype) if bias else None, dy


def run_linear(x, weight, bias, dy, isa, *, start=0.0, layout="plain", guards=None):
    """y, dx, dweight and dbias, on guarded buffers."""
    guards = guards or Guards(x.dtype)

    def rows(values):
        return guards.sequence((1, *values.shape), layout)[0]

    held_x, held_dy = (guards.constant(values[None], layout)[0] for values in (x, dy))
    held_weight, held_bias = guards.constant(weight), guards.constant(bias)
    y, dx = rows(dy), rows(x)
    dweight, dbias = guards.array(weight.shape), None if bias is None else guards.array(bias.shape)
    for gradient in (dweight, dbias):
        if gradient is not None:
            gradient.fill(start)
    with functional.use_isa(isa):
        functional.linear_forward(held_x, functional.linear_pack(held_weight, held_bias), y)
        functional.linear_backward(held_x, held_weight, held_dy, dx, dweight, dbias)
    guards.check()
    results = {"y": y, "dx": dx, "dweight": dweight}
    return results if bias is None else {**results, "dbias": dbias}


def linear_by_numpy(x, weight, bias, dy):
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    results = {"y": x @ weight.T, "dx": dy @ weight, "dweight": dy.T @ x}
    return results if bias is None else {**results, "y": results["y"] + bias, "dbias": dy.sum(0)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("M", [1, 5, 6, 7, 13, 600])
def test_linear_agrees_with_numpy(M, bias, dtype, isa):
    for k, O in enumerate(EDGES):
        arrays = linear_problem(M, EDGES[-1 - k], O, dtype, bias)
        results = run_linear(*arrays, isa)
        assert_close(results, linear_by_numpy(*arrays), TOLERANCE[np.dtype(dtype)])
        assert_same_bits(run_linear(*arrays, isa, layout="gaps"), results)
        assert_same_bits(run_linear(*arrays, isa, layout="backwards"), results)


def test_linear_gradients_are_added(dtype, isa):
    arrays = linear_problem(7, 5, 9, dtype, True)
    plain, added = run_linear(*arrays, isa), run_linear(*arrays, isa, start=1.0)
    added["dweight"] -= 1
    added["dbias"] -= 1
    assert_close(added, plain, TOLERANCE[np.dtype(dtype)])


@pytest.mark.parametrize(("M", "I", "O"), [(9000, 40, 50), (1, 700, 900), (64, 700, 300)])
def test_linear_gives_the_same_bits(threads, M, I, O, dtype, isa):
    x, weight, bias, dy = linear_problem(M, I, O, dtype, True)
    threads(1)
    expected = run_linear(x, weight, bias, dy, isa)
    for count in (2, 3):
        threads(count)
        assert_same_bits(run_linear(x, weight, bias, dy, isa), expected)
    for row in {0, M // 2, M - 1}:
        which = slice(row, row + 1)
        alone = run_linear(x[which].copy(), weight, bias, dy[which].copy(), isa)
        assert_same_bits({k: alone[k] for k in ("y", "dx")}, {k: expected[k][which] for k in ("y", "dx")})


def test_linear_gradients_are_sums_of_a_million_rows(isa):
    rng = np.random.default_rng(0)
    x, dy = rng.uniform(0.5, 1, (2, 10**6, 1)).astype(np.float32)
    results = run_linear(x, np.ones((1, 1), np.float32), np.zeros(1, np.float32), dy, isa)
    assert results["dweight"].item() == pytest.approx(np.vdot(dy.astype(np.float64), x), rel=1e-5)
    assert results["dbias"].item() == pytest.approx(dy.sum(dtype=np.float64), rel=1e-5)


# --- fences, threads, forks and signals


def run_script(script):
    """A script in a process of its own, which may end badly, and where no other library has made threads."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fences are made with Linux's mprotect")
@pytest.mark.parametrize("side", ["before", "behind"])
def test_nothing_is_read_outside_of_a_buffer(isa, side):
    """Not even where what is read does not matter: there may be no memory."""
    script = f"""
    import numpy as np
    from guards import Fences, Run
    from test_engine import EDGES, VARIANTS, linear_problem, run_linear, variant_problem

    for k, H in enumerate(EDGES):
        N, I, dtype = 1 + k % 7, EDGES[-1 - k], (np.float32, np.float64)[k % 2]
        options = dict(num_layers=2, dropout=True, bidirectional=k % 3 == 0, dtype=dtype)
        for variant in VARIANTS:
            print(variant, N, I, H, options, flush=True)
            p = variant_problem(variant, 2, N, I, H, **options)
            Run(p, {isa!r}, guards=Fences(dtype, {side!r}), keep_tape=False)
            Run(p, {isa!r}, guards=Fences(dtype, {side!r})).backward()
        print("linear", N, I, H, dtype, flush=True)
        run_linear(*linear_problem(N, I, H, dtype, True), {isa!r}, guards=Fences(dtype, {side!r}))
    """
    run_script(script)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not show the threads of a process")
def test_threads_are_made_when_they_are_needed():
    script = """
    import os
    from guards import run_engine
    from oracles import problem
    from rnnfast import functional

    def tasks():
        return len(os.listdir("/proc/self/task"))

    assert tasks() == 1, "import made threads"
    functional.set_num_threads(1)
    for shape in ((20, 64, 32, 64), (3, 1, 64, 700)):
        run_engine(problem("lstm", *shape))
    assert tasks() == 1, "one thread made more"
    functional.set_num_threads(3)
    run_engine(problem("lstm", 1, 1, 2, 2))
    run_engine(problem("lstm", 20, 64, 32, 64))
    assert tasks() == 3, f"{tasks()} threads in place of 3"
    """
    run_script(script)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind a process to a processor")
@pytest.mark.parametrize("shape", ["100, 1, 16, 256", "40, 32, 64, 128"])
def test_threads_without_processors_cost_little(shape):
    """Members that have no processor of their own are not waited for."""
    script = f"""
    import os, time
    from guards import Run
    from oracles import problem
    from rnnfast import functional

    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
    forward = Run(problem("lstm", {shape})).forward
    best = {{1: 9.0, 3: 9.0}}
    for _ in range(40):
        for threads in best:
            functional.set_num_threads(threads)
            start = time.perf_counter()
            forward()
            best[threads] = min(best[threads], time.perf_counter() - start)
    assert best[3] < 1.4 * best[1], best
    """
    run_script(script)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_goes_on():
    """Also one forked while other threads are at work in the engine."""
    script = """
    import os, threading
    from guards import run_engine
    from oracles import problem
    from rnnfast import functional

    functional.set_num_threads(2)
    p = problem("gru", 20, 64, 32, 64, bidirectional=True)
    expected = run_engine(p)
    done = threading.Event()

    def work():
        while not done.is_set():
            run_engine(p)

    worker = threading.Thread(target=work)
    worker.start()
    children = []
    for _ in range(10):
        run_engine(p)
        child = os.fork()
        if child == 0:
            results = [run_engine(p) for _ in range(3)]
            same = all(r[name].tobytes() == expected[name].tobytes() for r in results for name in expected)
            os._exit(0 if same else 1)
        children.append(child)
    done.set()
    worker.join()
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 10
    """
    run_script(script)


LONG_RUNS = {
    "many steps": lambda: Run(problem("lstm", 300, 16, 64, 1024, dtype=np.float32)),
    "many rows": lambda: Run(problem("lstm", 1, 200_000, 1, 16, dtype=np.float32), "scalar"),
}


def long_call(call):
    """A call that takes some tenths of a second at least."""
    name, _, shape = call.partition(", ")
    if shape:
        run = LONG_RUNS[shape]()
        return run.forward if name == "forward" else run.prepare_backward()[0]
    x, weight, bias, dy = linear_problem(64, 2048, 2048, np.float32, True)
    x, dy = np.tile(x, (100, 1)), np.tile(dy, (100, 1))
    if name == "linear_forward":
        packed = functional.linear_pack(weight, bias)
        return lambda: functional.linear_forward(x, packed, dy)
    dx, dweight, dbias = np.empty_like(x), np.zeros_like(weight), np.zeros_like(bias)
    return lambda: functional.linear_backward(x, weight, dy, dx, dweight, dbias)


LONG_CALLS = [f"{name}, {shape}" for name in ("forward", "backward") for shape in LONG_RUNS]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("call", [*LONG_CALLS, "linear_forward", "linear_backward"])
def test_interrupt_is_honoured_within_a_fifth_of_a_second(threads, call, count):
    """And what comes after it is right. The best of three, as the machine may have other work to do."""
    threads(count)
    call = long_call(call)
    sent = []

    def interrupt():
        sent.append(time.perf_counter())
        signal.raise_signal(signal.SIGINT)

    def call_until_interrupted():
        threading.Timer(0.3, interrupt).start()
        end = time.perf_counter() + 20
        while time.perf_counter() < end:
            call()

    delays = []
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            call_until_interrupted()
        delays.append(time.perf_counter() - sent[-1])
    assert min(delays) < 0.2, delays
    p, expected = solved("lstm", 7, 5, 9, 12, np.float32)
    assert_close(run_engine(p), expected, TOLERANCE[p.dtype])
