"""The engine, called through rnnfast.functional.

It agrees with the reference and with central differences for every cell, dtype, instruction set, direction and depth,
and at the edges of its tiles. Optional arguments, sizes and buffers are tested too.
"""

from copy import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cells import DIRECTIONS, VARIANTS, has_c, parameter_shapes
from support.compare import assert_close, assert_same_bits, members
from support.guards import LAYOUTS, Guards, Run, assert_central_differences, make_engine, run_engine
from support.problems import EDGES, TOLERANCE, problem, run_reference, solved, variant_problem

from rnnfast import functional

# --- results


@pytest.mark.cover(2, together=["variant", "dtype", "isa"])
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
    """More steps, features, units and rows than any loop handles in one block."""
    p, expected = solved(variant, T, N, I, H, dtype, "bidirectional")
    assert_close(run_engine(p, isa), expected, 4 * TOLERANCE[p.dtype])


@pytest.mark.cover(2, full=2)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_are_central_differences(variant, direction, isa):
    p = variant_problem(variant, 3, 2, 2, 3, num_layers=2, dropout=True, **DIRECTIONS[direction])
    assert_central_differences(p, isa)


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


@given(problems(), st.sampled_from(functional.isas()), st.sampled_from(list(LAYOUTS)))
def test_any_shape_and_layout(p, isa, layout):
    assert_close(run_engine(p, isa, layout=layout), run_reference(p, np.float64), TOLERANCE[p.dtype])


@pytest.mark.parametrize(
    ("T", "N", "isa"), [(1, 10**6, None), (10**6, 1, None), *((1000, 1000, isa) for isa in functional.isas())]
)
def test_gradients_are_sums_of_a_million_rows(T, N, isa):
    """All terms are positive; a single chain of float32 sums would be wrong in the fourth digit."""
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


# --- optional arguments and accumulation


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
    if has_c(p.cell):
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


def test_weights_can_be_packed_separately(variant, isa):
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


# --- sizes and buffers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_engine_shapes(variant, direction, num_layers, bias):
    p = variant_problem(variant, 1, 1, 5, 6, num_layers=num_layers, bias=bias, **DIRECTIONS[direction])
    engine = make_engine(p)
    options = {"num_layers": num_layers, "bias": bias, "bidirectional": direction == "bidirectional"}
    expected = parameter_shapes(p.cell, 5, p.hidden_size, proj_size=p.proj_size, **options)
    assert list(functional.parameter_shapes(engine).items()) == list(expected.items())
    assert engine.directions == 1 + (direction == "bidirectional")
    assert engine.output_size == 6
    assert engine.info.has_c == has_c(p.cell)


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


def test_empty_rejects_sizes_beyond_memory():
    with pytest.raises(MemoryError):
        functional.empty(2**60)


def test_use_isa_chooses_and_forgets():
    chosen = make_engine(problem("gru", 1, 1, 1, 1)).isa
    for isa in functional.isas():
        with functional.use_isa(isa):
            assert make_engine(problem("gru", 1, 1, 1, 1)).isa == isa
        assert make_engine(problem("gru", 1, 1, 1, 1)).isa == chosen


def test_use_isa_rejects_unavailable_instruction_sets():
    with pytest.raises(ValueError, match=f"isa is 'mmx', .* choose one of {', '.join(functional.isas())}"):
        functional.use_isa("mmx").__enter__()


@pytest.mark.parametrize(("error", "count"), [(ValueError, 0), (ValueError, -1), (TypeError, 1.5), (TypeError, True)])
def test_number_of_threads_is_a_positive_integer(threads, error, count):
    threads(2)
    with pytest.raises(error, match="number of threads"):
        threads(count)
    assert functional.get_num_threads() == 2
