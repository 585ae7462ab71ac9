"""Batches whose rows are not all of one length, checkpoints, and what is inside, through the layers.

Lengths, masks and resets against the reference, in every cell, dtype, instruction set, direction and depth; the same
bits however they are given, whatever stands where nothing is read, and with any checkpoints.
"""

import contextlib
import gc
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import DIRECTIONS, VARIANTS, assert_close, make_layer, members, named
from test_engine import SHAPES_FOR_THREADS, TOLERANCE, assert_same_bits, variant_problem
from test_engine import rows as plain_rows
from test_errors import snapshot
from test_reference import is_real, run_all

import rnnfast
from rnnfast import functional, reference

# What each kind of batch is made of.
KINDS = {
    "lengths": ("lengths",),
    "mask": ("mask",),
    "zero_masked": ("mask", "zero_masked"),
    "reset": ("reset",),
    "mask and reset": ("mask", "reset"),
    "zero_masked and reset": ("mask", "zero_masked", "reset"),
    "lengths and reset": ("lengths", "reset"),
}
UNEVEN = ("lengths", "mask", "reset", "zero_masked")


def draw_sequences(kind, T, N, seed=0):
    """Lengths, mask and reset of N rows: of some rows all steps, of some none, of the others any part."""
    rng = np.random.default_rng(seed)

    def flags():
        return rng.random((T, N)) < rng.choice([0, 0.1, 0.5, 0.9, 1], N)

    lengths = np.where(rng.random(N) < 0.3, T * rng.integers(0, 2, N), rng.integers(0, T + 1, N))
    arrays = {"lengths": lengths, "mask": flags(), "reset": flags(), "zero_masked": True}
    return {name: arrays[name] for name in KINDS[kind]}


def uneven_problem(kind, variant, T, N, I, H, *, seed=0, **options):
    """A random instance with rows of the kind given; None for plain ones."""
    p = variant_problem(variant, T, N, I, H, seed=seed, **options)
    p.variant = variant
    if kind is not None:
        p.options.update(draw_sequences(kind, T, N, seed))
    return p


def uneven(p):
    """The arguments of a call that say what the rows are."""
    return {name: p.options[name] for name in UNEVEN if name in p.options}


def layer_of(p, isa=None, **options):
    """A layer with the parameters of a problem, and with its dropout."""
    masks = p.options["masks"]
    with contextlib.nullcontext() if isa is None else functional.use_isa(isa):
        layer = make_layer(
            p.variant,
            p.input_size,
            p.proj_size or p.hidden_size,
            num_layers=p.options["num_layers"],
            bidirectional=p.options["bidirectional"],
            reverse=p.options["reverse"],
            bias=p.bias,
            dtype=p.dtype,
            **({} if masks is None else {"dropout": 0.25}),
            **options,
        )
    layer.load_state_dict(p.parameters)
    if masks is not None:
        layer._masks = lambda _: masks
    return layer


def spoil(p):
    """Leave NaN in memory that is free, where the next results may lie."""
    states = p.options["num_layers"] * (1 + p.options["bidirectional"])
    for shape in (np.shape(p.dy), np.shape(p.x), (states, *np.shape(p.x)[:-1], p.hidden_size)):
        spoiled = [np.full(shape, np.nan, p.dtype) for _ in range(3)]
        del spoiled


def run(layer, p, checkpoint=None):
    """All results by name, with the gradient of every h and, where the tape has it, every c."""
    spoil(p)
    y, state, tape = layer.forward(p.x, p.state, **uneven(p), checkpoint=checkpoint)
    return {**run_backward(layer, p, y, state, tape), **cells_of(p, tape, checkpoint)}


def run_backward(layer, p, y, state, tape):
    spoil(p)
    grads = layer.backward(tape, p.dy, p.dstate, per_step=True)
    return {**named(y, state, *grads), "dh": grads.h}


def cells_of(p, tape, checkpoint=None):
    return {"cells": tape.cells} if p.cell == "lstm" and checkpoint is None else {}


def outputs(y, state):
    """The results of a call by name."""
    return {"y": y, **{f"state {i}": member for i, member in enumerate(members(state))}}


def without_cells(results):
    return {name: value for name, value in results.items() if name != "cells"}


def cast(value, dtype):
    return tuple(member.astype(dtype) for member in value) if isinstance(value, tuple) else value.astype(dtype)


def in_float64(p):
    q = copy(p)
    q.x, q.dy, q.state, q.dstate = (cast(value, np.float64) for value in (p.x, p.dy, p.state, p.dstate))
    q.parameters = {name: cast(value, np.float64) for name, value in p.parameters.items()}
    masks = p.options["masks"]
    q.options = {**p.options, "masks": None if masks is None else cast(masks, np.float64)}
    return q


@cache
def solved(kind, variant, direction, T, N, I, H, dtype, **options):
    """A problem and its results by the reference in float64; the same for every instruction set."""
    p = uneven_problem(kind, variant, T, N, I, H, dtype=dtype, **DIRECTIONS[direction], **options)
    return p, run_all(in_float64(p))


def rows(p, which):
    """The problem of some rows of the batch."""
    q = plain_rows(p, which)
    parts = {name: np.asarray(value)[..., which] for name, value in uneven(p).items() if name != "zero_masked"}
    q.options = {**q.options, **parts}
    return q


def of_rows(results, which):
    """The results that belong to some rows of the batch."""
    axes = {"y": 1, "dx": 1, "dh": 2, "cells": 2, "state 0": 1, "state 1": 1, "dstate 0": 1, "dstate 1": 1}
    return {name: value.take(which, axes[name]) for name, value in results.items() if name in axes}


def shown(p):
    """Where y is not 0 because no step is there to be shown, (T, N, D*H_out)."""
    T, N, width = p.dy.shape
    suffixes = ("_l0", "_l0_reverse") if p.options["bidirectional"] else ("_l0",)
    parameters = {f"{kind}{end}": np.ones((1, 1)[: 1 + ("weight" in kind)]) for end in suffixes for kind in PARAMETERS}
    options = {**p.options, "num_layers": 1, "masks": None}
    y, _, _ = reference.forward("rnn_tanh", parameters, np.ones((T, N, 1)), **options)
    return np.repeat(y != 0, width // y.shape[2], axis=2)


PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@st.composite
def problems(draw, kinds=tuple(KINDS), directions=tuple(DIRECTIONS), large=True):
    """Problems of any small shape, and of some that take more than one block of sums."""
    sizes = st.tuples(st.integers(1, 7), st.integers(1, 9))
    T, N = draw(st.one_of(sizes, sizes, st.sampled_from([(40, 9), (3, 140), (300, 2)])) if large else sizes)
    num_layers = draw(st.integers(1, 2))
    return uneven_problem(
        draw(st.sampled_from(kinds)),
        draw(st.sampled_from(list(VARIANTS))),
        T,
        N,
        draw(st.integers(1, 9)),
        draw(st.integers(1, 20)),
        seed=draw(st.integers(0, 1 << 30)),
        dtype=draw(st.sampled_from([np.float32, np.float64])),
        num_layers=num_layers,
        dropout=num_layers > 1 and draw(st.booleans()),
        bias=draw(st.booleans()),
        **DIRECTIONS[draw(st.sampled_from(directions))],
    )


isas = st.sampled_from(functional.isas())
seeds = st.integers(0, 1 << 30)


def many(examples=200):
    return settings(max_examples=examples, deadline=None)


# ---- the right numbers


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_reference(variant, kind, direction, num_layers, dtype, isa):
    options = {"num_layers": num_layers, "dropout": num_layers > 1}
    p, expected = solved(kind, variant, direction, 7, 9, 5, 11, dtype, **options)
    assert_close(run(layer_of(p, isa), p), expected, TOLERANCE[p.dtype])


@pytest.mark.parametrize(
    ("T", "N", "I", "H"), [(1, 1, 1, 1), (1, 5, 3, 4), (9, 1, 4, 17), (3, 300, 3, 5), (300, 2, 3, 4), (5, 13, 33, 65)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_sizes(variant, kind, T, N, I, H, isa):
    dtype, direction = (np.float32, np.float64)[(T + N) % 2], list(DIRECTIONS)[(list(KINDS).index(kind) + T) % 3]
    p, expected = solved(kind, variant, direction, T, N, I, H, dtype)
    assert_close(run(layer_of(p, isa), p), expected, 4 * TOLERANCE[p.dtype])


@many(300)
@given(problems(), isas, st.sampled_from([None, 1, 2, "auto"]))
def test_any_shape(p, isa, checkpoint):
    expected = run_all(in_float64(p))
    if checkpoint is not None:
        expected.pop("cells", None)
    assert_close(run(layer_of(p, isa), p, checkpoint), expected, 4 * TOLERANCE[p.dtype])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_plain_steps_from_inside(variant, direction, dtype):
    """Inner states and their gradients of a batch of whole rows, as of any other."""
    p, expected = solved(None, variant, direction, 6, 5, 4, 9, dtype, num_layers=2)
    assert_close(run(layer_of(p), p), expected, TOLERANCE[p.dtype])


# ---- layouts, and what may be given


def swapped(p):
    """The arguments of a batch-first layer."""
    q = copy(p)
    q.x, q.dy = p.x.swapaxes(0, 1), p.dy.swapaxes(0, 1)
    q.options = {**p.options, **{name: value.T for name, value in uneven(p).items() if name in ("mask", "reset")}}
    return q


def unbatched(p):
    q = rows(p, slice(0, 1))
    q.x, q.dy = q.x[:, 0], q.dy[:, 0]
    q.state, q.dstate = (tuple(m[:, 0] for m in s) if isinstance(s, tuple) else s[:, 0] for s in (q.state, q.dstate))
    for name, value in uneven(q).items():
        if name != "zero_masked":
            q.options[name] = value[..., 0]
    return q


@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_agree(variant, kind, direction, checkpoint):
    for seed in range(3):
        options = {"num_layers": 2, "dropout": True, "dtype": np.float32, "seed": seed, **DIRECTIONS[direction]}
        p = uneven_problem(kind, variant, 5, 4, 3, 9, **options)
        expected = run(layer_of(p), p, checkpoint)
        first = run(layer_of(p, batch_first=True), swapped(p), checkpoint)
        for name in ("y", "dx"):
            first[name] = first[name].swapaxes(0, 1)
        assert_same_bits(first, expected)
        one = unbatched(p)
        for batch_first in (False, True):
            layer = layer_of(one, batch_first=batch_first)
            got = of_rows(
                {
                    k: np.expand_dims(v, 2 if k in ("dh", "cells") else 1)
                    for k, v in run(layer, one, checkpoint).items()
                },
                [0],
            )
            assert_same_bits(got, of_rows(expected, [0]))
            y, state = layer(one.x, one.state, **uneven(one))
            assert y.shape == one.dy.shape
            assert [m.shape for m in members(state)] == [m.shape for m in members(one.state)]


def _padded(array):
    memory = np.ones([2 * size + 1 for size in array.shape], array.dtype)
    view = memory[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


FORMS = {
    "list": np.ndarray.tolist,
    "fortran": np.asfortranarray,
    "padded": _padded,
    "backwards": lambda a: a[::-1].copy()[::-1],
    "backwards all": lambda a: a[(slice(None, None, -1),) * a.ndim].copy()[(slice(None, None, -1),) * a.ndim],
    "subclass": lambda a: a.view(np.recarray),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_forms_of_arrays(kind, form):
    p = uneven_problem(kind, "lstm", 6, 5, 3, 4, dtype=np.float32, bidirectional=True)
    expected = run(layer_of(p), p)
    q = copy(p)
    given = {name: value if name == "zero_masked" else FORMS[form](value) for name, value in uneven(p).items()}
    q.options = {**p.options, **given}
    assert_same_bits(run(layer_of(p), q), expected)


def test_broadcast_flags():
    """Strides of zero."""
    p = uneven_problem("mask and reset", "gru", 6, 5, 3, 4, dtype=np.float32)
    q = copy(p)
    for axis in (0, 1):
        views = {k: np.broadcast_to(p.options[k].take([0], axis), (6, 5)) for k in ("mask", "reset")}
        copies = {k: view.copy() for k, view in views.items()}
        p.options, q.options = {**p.options, **copies}, {**p.options, **views}
        assert_same_bits(run(layer_of(p), q), run(layer_of(p), p))


@pytest.mark.parametrize("other", [np.int8, np.uint8, np.int32, np.int64, np.uint64, ">i4", ">u8"])
def test_dtypes_of_lengths(other):
    p = uneven_problem("lengths", "lstm", 6, 5, 3, 4, dtype=np.float32)
    expected = run(layer_of(p), p)
    q = copy(p)
    q.options = {**p.options, "lengths": np.array(p.options["lengths"]).astype(other)}
    assert_same_bits(run(layer_of(p), q), expected)
    one = unbatched(p)
    for length in (np.dtype(other).type(3), 3, np.array(3, other)):
        one.options["lengths"] = length
        y, _ = layer_of(one)(one.x, **uneven(one))
        assert y[:3].any(axis=1).all()
        assert not y[3:].any()


def test_arguments_have_names():
    layer = make_layer("gru", 3, 4)
    x = np.ones((2, 3, 3))
    for call in (layer, layer.forward, rnnfast.Bidirectional(layer), rnnfast.Bidirectional(layer).forward):
        with pytest.raises(TypeError, match="positional"):
            call(x, None, [1, 2, 2])


# ---- who owns what


@pytest.mark.parametrize("checkpoint", [None, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_backward_does_not_see_later_changes(variant, kind, checkpoint):
    """Of lengths, masks, resets, initial states and parameters, after forward."""
    p = uneven_problem(kind, variant, 70, 6, 3, 4, dtype=np.float32, bidirectional=True, num_layers=2)
    q = copy(p)
    q.state = cast(p.state, np.float32)
    q.options = {**p.options, **{k: np.array(v) for k, v in uneven(p).items() if k != "zero_masked"}}
    expected = run(layer_of(p), p, checkpoint)
    for frozen in (False, True):
        layer = layer_of(p)
        if frozen:
            layer.freeze()
        y, state, tape = layer.forward(q.x, q.state, **uneven(q), checkpoint=checkpoint)
        layer.unfreeze()
        given = [q.options[name] for name in KINDS[kind] if name != "zero_masked"]
        arrays = [*layer.parameters.values(), *members(q.state), *given]
        before = [array.copy() for array in arrays]
        for array in arrays:
            array[...] = 1 - array
        other = layer.forward(q.x, q.state, checkpoint=checkpoint)  # which uses what memory there is
        layer.backward(other[2], other[0])
        results = {**run_backward(layer, p, y, state, tape), **cells_of(p, tape, checkpoint)}
        assert_same_bits(results, expected)
        assert_same_bits({**run_backward(layer, p, y, state, tape), **cells_of(p, tape, checkpoint)}, expected)
        for array, values in zip(arrays, before, strict=True):
            array[...] = values


@pytest.mark.parametrize("checkpoint", [None, 1])
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_arguments_are_not_written_to(kind, checkpoint):
    p = uneven_problem(kind, "lstm", 40, 7, 3, 4, dtype=np.float32, bidirectional=True)
    layer = layer_of(p)
    given = [value for name, value in uneven(p).items() if name != "zero_masked"]
    arrays = [p.x, p.dy, *members(p.state), *members(p.dstate), *given, *layer.parameters.values()]
    before = [array.copy() for array in arrays]
    results = run(layer, p, checkpoint)
    for array, values in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, values)
    assert not any(np.may_share_memory(array, value) for array in arrays for value in results.values())
    for name, value in results.items():
        assert value.flags.writeable == (name != "y"), name


def test_cells_are_copies():
    p = uneven_problem("mask", "lstm", 5, 3, 2, 4)
    y, state, tape = layer_of(p).forward(p.x, p.state, **uneven(p))
    cells = tape.cells
    kept = cells.copy()
    cells[...] = np.nan
    assert tape.cells.tobytes() == kept.tobytes()
    assert run_backward(tape._owner, p, y, state, tape)["dx"].tobytes() == run(layer_of(p), p)["dx"].tobytes()


# ---- what is not read reaches nothing


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("checkpoint", [None, 1])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_at_gaps_reaches_nothing(variant, kind, direction, checkpoint, value):
    p = uneven_problem(
        kind, variant, 20, 30, 4, 9, num_layers=2, dropout=True, dtype=np.float32, **DIRECTIONS[direction]
    )
    expected = run(layer_of(p), p, checkpoint)
    real, ignored = is_real(p), ~shown(p)
    if kind != "reset":
        assert ignored.any()
        assert not real.all()
    assert not expected["y"][ignored].any()
    assert not expected["dx"][~real].any()
    assert not expected["dh"][:, ~real].any()
    assert expected["dx"][real].any(axis=-1).mean() > 0.9
    q = copy(p)
    q.x, q.dy, q.options = p.x.copy(), p.dy.copy(), {**p.options, "masks": p.options["masks"].copy()}
    q.x[~real] = q.dy[ignored] = value
    q.options["masks"][:, ~real] = np.nan
    for frozen in (False, True):
        layer = layer_of(q)
        if frozen:
            layer.freeze()
        assert_same_bits(run(layer, q, checkpoint), expected)
        called = outputs(*layer(q.x, q.state, **uneven(q)))
        assert_same_bits(called, outputs(*layer(p.x, p.state, **uneven(p))))


@pytest.mark.parametrize("checkpoint", [None, 1])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_held_outputs_take_gradients(variant, direction, checkpoint):
    """dy at a masked step counts at the step that it repeats; it is as if that step had been given the sum."""
    p = uneven_problem("mask", variant, 9, 90, 3, 5, **DIRECTIONS[direction])
    q = copy(p)
    q.options = {**p.options, "zero_masked": True}
    q.dy = np.zeros_like(p.dy)
    mask, D = p.options["mask"], 1 + p.options["bidirectional"]
    for k, back in enumerate([False, True] if D == 2 else [p.options["reverse"]]):
        columns = slice(k * p.dy.shape[2] // D, (k + 1) * p.dy.shape[2] // D)
        for n in range(90):
            source = None
            for t in range(9)[:: -1 if back else 1]:
                source = t if mask[t, n] else source
                if source is not None:
                    q.dy[source, n, columns] += p.dy[t, n, columns]
    got, expected = run(layer_of(p), p, checkpoint), run(layer_of(q), q, checkpoint)
    del got["y"], expected["y"]
    assert_close(got, expected, 1e-14)


@pytest.mark.parametrize("checkpoint", [None, 1])
@pytest.mark.parametrize("kind", ["lengths", "mask", "zero_masked", "mask and reset", "lengths and reset"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rows_without_steps(variant, kind, direction, checkpoint):
    """They return their initial state, NaN and all, and pass its gradient on."""
    p = uneven_problem(kind, variant, 6, 9, 3, 5, dtype=np.float32, **DIRECTIONS[direction])
    none = np.arange(9) % 3 == 1
    for name, value in uneven(p).items():
        if name in ("lengths", "mask"):
            value[..., none] = 0
    if "reset" in p.options:
        p.options["reset"][1:, none] = False
    expected = run(layer_of(p), p, checkpoint)
    for member, start in ((p.state, "state"), (p.dstate, "dstate")):
        for i, array in enumerate(members(member)):
            np.testing.assert_array_equal(expected[f"{start} {i}"][:, none], array[:, none])
    for name in ("y", "dx"):
        assert not expected[name][:, none].any()
    for state in (p.state, p.dstate):
        for array in members(state):
            array[:, none] = np.nan
    got = run(layer_of(p), p, checkpoint)
    for name, value in got.items():
        if "state" in name:
            assert np.isnan(value[:, none]).all(), name
        elif name == "cells" and "mask" in p.options:
            assert np.isnan(value[:, :, none]).all()
    some = np.flatnonzero(~none)
    assert_same_bits(of_rows(got, some), of_rows(expected, some))
    assert_same_bits(
        *({k: v for k, v in r.items() if k.startswith(("dweight", "dbias", "y", "dx"))} for r in (got, expected))
    )


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_nan_stays_in_its_row(variant, kind):
    p = uneven_problem(kind, variant, 9, 7, 4, 9, num_layers=2, dtype=np.float32, bidirectional=True)
    for name in set(uneven(p)) & {"lengths", "mask"}:
        p.options[name][..., 3] = 9
    clean = run(layer_of(p), p)
    others = [0, 1, 2, 4, 5, 6]
    for place in ("x", "state", "dy", "dstate"):
        q = copy(p)
        values = tuple(member.copy() for member in members(getattr(p, place)))
        values[0][2 if place in ("x", "dy") else 0, 3, 0] = np.nan
        setattr(q, place, values if isinstance(getattr(p, place), tuple) else values[0])
        for checkpoint in (None, 1):
            got = run(layer_of(p), q, checkpoint)
            expected = clean if checkpoint is None else without_cells(clean)
            assert_same_bits(of_rows(got, others), of_rows(expected, others))
            assert any(np.isnan(value).any() for value in got.values())


# ---- the same bits


@many()
@given(problems(), isas, seeds)
def test_a_row_alone_or_in_any_batch(p, isa, seed):
    batch = run(layer_of(p, isa), p)
    rng = np.random.default_rng(seed)
    which = rng.permutation(p.x.shape[1])[: rng.integers(1, p.x.shape[1] + 1)]
    for some in (which, which[:1]):
        q = rows(p, some)
        assert_same_bits(of_rows(run(layer_of(q, isa), q), np.arange(len(some))), of_rows(batch, some))


def test_a_row_alone_or_in_a_large_batch(threads, variant, dtype):
    """Enough rows for several threads, which a row alone never is."""
    kind = list(KINDS)[list(VARIANTS).index(variant)]
    p = uneven_problem(kind, variant, 6, 700, 21, 57, dtype=dtype, bidirectional=True)
    threads(2)
    batch = run(layer_of(p), p)
    for row in (0, 1, 350, 699):
        q = rows(p, [row])
        assert_same_bits(of_rows(run(layer_of(q), q), [0]), of_rows(batch, [row]))


def parts_of(p, n):
    """The steps of each sequence of a row, in order."""
    T = p.x.shape[0]
    real = is_real(p)[:, n]
    length = T if "lengths" not in p.options else p.options["lengths"][n]
    reset = np.zeros(T, bool) if "reset" not in p.options else p.options["reset"][:, n]
    cuts = [0, *(t for t in range(1, length) if reset[t]), length]
    return [[t for t in range(first, stop) if real[t]] for first, stop in pairwise(cuts)]


@many()
@given(problems(["lengths", "zero_masked", "reset", "zero_masked and reset", "lengths and reset"], large=False), isas)
def test_a_sequence_alone_in_a_plain_call(p, isa):
    """The real steps between two cuts, as a whole row without lengths, mask or reset."""
    p.options["masks"] = None
    layer = layer_of(p, isa)
    batch = run(layer, p)
    D = 1 + p.options["bidirectional"]
    backwards = np.array([p.options["reverse"], True][:D] * p.options["num_layers"])
    for n in range(p.x.shape[1]):
        one = rows(p, [n])
        parts = parts_of(p, n)
        for number, steps in enumerate(parts):
            if not steps:
                continue
            q = copy(one)
            q.x, q.dy = one.x[steps], one.dy[steps]
            q.options = {name: value for name, value in p.options.items() if name not in UNEVEN}
            last = np.where(backwards, number == 0, number == len(parts) - 1)[:, None, None]
            q.dstate = tuple(np.where(last, member, np.zeros_like(member)) for member in members(one.dstate))
            q.dstate = q.dstate if p.cell == "lstm" else q.dstate[0]
            alone = run(layer, q)
            for name in ("y", "dx"):
                assert alone[name][:, 0].tobytes() == batch[name][steps, n].tobytes(), name
            for name in {"dh", "cells"} & set(alone):
                assert alone[name][:, :, 0].tobytes() == batch[name][:, steps, n].tobytes(), name
            for i in range(len(members(p.state))):
                got, want = alone[f"state {i}"][:, 0], batch[f"state {i}"][:, n]
                assert got[last[:, 0, 0]].tobytes() == want[last[:, 0, 0]].tobytes()
                if len(parts) == 1:
                    assert alone[f"dstate {i}"][:, 0].tobytes() == batch[f"dstate {i}"][:, n].tobytes()


@many()
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


@many()
@given(problems(["reset"]), isas)
def test_whole_rows_with_resets_are_resets_alone(p, isa):
    T, N, _ = p.x.shape
    layer = layer_of(p, isa)
    expected = run(layer, p)
    options = p.options
    for more in ({"lengths": [T] * N}, {"mask": np.ones((T, N), bool)}):
        p.options = {**options, **more}
        assert_same_bits(run(layer, p), expected)


@many()
@given(problems([kind for kind in KINDS if kind != "reset"]), isas, st.integers(1, 300), seeds)
def test_padded_further(p, isa, more, seed):
    """Of the steps behind the last one none is real; where y repeats there, dy is 0."""
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


@many()
@given(problems(["lengths", "lengths and reset"]), isas, st.sampled_from([None, 1, "auto"]))
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


@many()
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


@many()
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
    assert_same_bits(named(y, state, *plain), expected)


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


@many(200)
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
    """Two layers of one seed, one of which keeps checkpoints."""
    p = uneven_problem(kind, variant, 40, 30, 3, 5, dtype=np.float32, num_layers=3, **DIRECTIONS[direction])
    size = p.proj_size or p.hidden_size
    options = {"num_layers": 3, "dropout": 0.4, **DIRECTIONS[direction]}
    for checkpoint in (1, 7, "auto", 40, 99):
        one, other = (make_layer(variant, 3, size, rng=5, **options) for _ in range(2))
        for _ in range(2):
            assert_same_bits(run(other, p, checkpoint), without_cells(run(one, p)))


@pytest.mark.parametrize("absent", [{"dy": None}, {"dstate": None}, {"state": None}, {"dy": None, "dstate": None}])
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_none_is_zeros(variant, kind, absent):
    p = uneven_problem(kind, variant, 9, 40, 3, 5, dtype=np.float32, num_layers=2, bidirectional=True)
    layer, zeros, none = layer_of(p), copy(p), copy(p)
    for name in absent:
        setattr(none, name, None)
        value = getattr(p, name)
        filled = tuple(map(np.zeros_like, members(value)))
        setattr(zeros, name, filled if isinstance(value, tuple) else filled[0])
    for checkpoint in (None, 1):
        assert_same_bits(run(layer, none, checkpoint), run(layer, zeros, checkpoint))
    if p.cell == "lstm" and "dy" not in absent:
        name = next(iter(absent))
        for k in range(2):
            setattr(none, name, tuple(None if j == k else m for j, m in enumerate(getattr(p, name))))
            setattr(zeros, name, tuple(np.zeros_like(m) if j == k else m for j, m in enumerate(getattr(p, name))))
            for checkpoint in (None, 1):
                assert_same_bits(run(layer, none, checkpoint), run(layer, zeros, checkpoint))


@pytest.mark.parametrize("kind", ["lengths", "mask", "zero_masked and reset"])
@pytest.mark.parametrize("at", range(len(SHAPES_FOR_THREADS)))
def test_any_number_of_threads(threads, at, kind):
    """Calls in a row: threads that the first one wakes may come too late for it, but not for the next."""
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


@pytest.mark.parametrize("kind", KINDS)
def test_large_results_are_the_callers(variant, kind):
    """Their memory is used again, but not while any array of it is left; what was there before reaches nothing."""
    p = uneven_problem(kind, variant, 60, 32, 8, 200, dtype=np.float32)
    layer = layer_of(p)
    expected = {name: value.copy() for name, value in run(layer, p).items()}
    assert expected["y"].nbytes >= rnnfast.memory.LARGE
    for _ in range(3):
        y, _ = layer(p.x, p.state, **uneven(p))
        assert y.tobytes() == expected["y"].tobytes()
        kept = run(layer, p)
        y[...] = np.nan
        del y
        grads = layer.backward(layer.forward(p.x)[2], p.dy, per_step=True)
        for array in (grads.x, grads.h, *grads.parameters.values()):
            array[...] = np.nan
        del grads, array
        assert_same_bits(kept, expected)


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


# ---- Bidirectional


MERGES = {
    "concat": (lambda f, b: np.concatenate((f, b), -1), lambda dy, _f, _b: np.split(dy, 2, -1)),
    "sum": (lambda f, b: f + b, lambda dy, _f, _b: (dy, dy)),
    "mul": (lambda f, b: f * b, lambda dy, f, b: (dy * b, dy * f)),
    "mean": (lambda f, b: (f + b) / 2, lambda dy, _f, _b: (dy / 2, dy / 2)),
    None: (lambda f, b: (f, b), lambda dy, _f, _b: dy),
}


def two_layers(kind, seed=0, dtype=np.float64, other="gru"):
    """The problems of a forward LSTM of two layers and of a backward layer, on the same rows."""
    p = uneven_problem(kind, "lstm", 7, 90, 3, 4, num_layers=2, dtype=dtype, seed=seed)
    q = uneven_problem(kind, other, 7, 90, 3, 4, reverse=True, dtype=dtype, seed=seed)
    q.x = p.x
    return p, q


@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", ["gru", "lstm_projected"])
def test_bidirectional(kind, merge, turned, checkpoint, other, dtype):
    for seed in range(1):
        p, q = two_layers(kind, seed, dtype, other=other)
        back = layer_of(q)
        if turned:
            q.options["reverse"] = False
            back = layer_of(q)
            q.options["reverse"] = True
        layer = rnnfast.Bidirectional(layer_of(p), back, merge)
        combine, split = MERGES[merge]

        y_f, end_f, tape_f = reference.forward(p.cell, p.parameters, p.x, p.state, **p.options)
        y_b, end_b, tape_b = reference.forward(q.cell, q.parameters, p.x, q.state, **q.options)
        expected_y = combine(y_f, y_b)
        rng = np.random.default_rng(seed)
        width = np.shape(expected_y)[-1]
        dy = (p.dy, q.dy) if merge is None else rng.uniform(-1, 1, (7, 90, width)).astype(dtype)
        dy_f, dy_b = split(dy, y_f, y_b)
        ours = reference.backward(tape_f, dy_f, p.dstate, per_step=True)
        theirs = reference.backward(tape_b, dy_b, q.dstate, per_step=True)
        expected = {"y": np.asarray(expected_y), "dx": ours[0] + theirs[0], "dh 0": ours[3], "dh 1": theirs[3]}
        expected.update({f"dforward.{name}": value for name, value in ours[2].items()})
        expected.update({f"dbackward.{name}": value for name, value in theirs[2].items()})
        if checkpoint is None and other != "gru":
            expected.update({"cells 0": tape_f.cells, "cells 1": tape_b.cells})
        for name, pair in {"state": (end_f, end_b), "dstate": (ours[1], theirs[1])}.items():
            for k in range(2):
                expected.update({f"{name} {k} {i}": member for i, member in enumerate(members(pair[k]))})

        y, end, tape = layer.forward(p.x, (p.state, q.state), **uneven(p), checkpoint=checkpoint)
        grads = layer.backward(tape, dy, (p.dstate, q.dstate), per_step=True)
        got = {"y": np.asarray(y), "dx": grads.x, "dh 0": grads.h[0], "dh 1": grads.h[1]}
        got.update({f"d{name}": value for name, value in grads.parameters.items()})
        if checkpoint is None and other != "gru":
            got.update({f"cells {k}": cells for k, cells in enumerate(tape.cells)})
        for name, pair in {"state": end, "dstate": grads.state}.items():
            for k in range(2):
                got.update({f"{name} {k} {i}": member for i, member in enumerate(members(pair[k]))})
        assert_close(got, expected, TOLERANCE[np.dtype(dtype)])
        called, end = layer(p.x, (p.state, q.state), **uneven(p))
        assert np.asarray(called).tobytes() == got["y"].tobytes()
        for k in range(2):
            for i, member in enumerate(members(end[k])):
                assert member.tobytes() == got[f"state {k} {i}"].tobytes()


@many()
@given(problems(), st.sampled_from(list(VARIANTS)), isas, st.booleans(), st.sampled_from([None, 1]))
def test_a_backward_layer_with_and_without_reverse(p, other, isa, batch_first, checkpoint):
    """The same bits, but where the parts of a row add up."""
    p.options["masks"] = None
    I, H = p.input_size, p.proj_size or p.hidden_size
    options = {"dtype": p.dtype, "batch_first": batch_first}
    with functional.use_isa(isa):
        ours = make_layer(other, I, H, **options)
        theirs = [make_layer(p.variant, I, H, reverse=reverse, **options) for reverse in (True, False)]
    q = swapped(p) if batch_first else p
    start = tuple(member[:1] for member in members(p.state))
    start = start if p.cell == "lstm" else start[0]
    results = []
    for layer in (rnnfast.Bidirectional(ours, one) for one in theirs):
        y, (_, end), tape = layer.forward(q.x, (None, start), **uneven(q), checkpoint=checkpoint)
        grads = layer.backward(tape, np.cos(y), (None, end), per_step=True)
        own = {**named(y, end, grads.x, grads.state[1], grads.parameters), "dh": grads.h[1]}
        if checkpoint is None and p.cell == VARIANTS[other][0] == "lstm":
            own["cells"] = tape.cells[1]
        results.append(own)
    exact = [{k: v for k, v in r.items() if k in ("y", "dx", "dh", "cells") or k.startswith("state")} for r in results]
    assert_same_bits(*exact)
    if "reset" not in p.options:
        assert_same_bits(*results)
    else:
        assert_close(*results, 4 * TOLERANCE[p.dtype])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bidirectional_is_a_layer_of_both_directions(variant, kind, turned):
    p = uneven_problem(kind, variant, 7, 6, 3, 5, dtype=np.float32, bidirectional=True)
    expected = run(layer_of(p), p)
    I, H = 3, 5
    layer = rnnfast.Bidirectional(make_layer(variant, I, H), make_layer(variant, I, H, reverse=not turned))
    ours = {k: v for k, v in p.parameters.items() if not k.endswith("_reverse")}
    theirs = {k.removesuffix("_reverse"): v for k, v in p.parameters.items() if k.endswith("_reverse")}
    layer.forward_layer.load_state_dict(ours)
    layer.backward_layer.load_state_dict(theirs)

    def halves(state):
        parts = [tuple(member[k : k + 1] for member in members(state)) for k in range(2)]
        return parts if isinstance(state, tuple) else [part[0] for part in parts]

    y, end, tape = layer.forward(p.x, halves(p.state), **uneven(p))
    grads = layer.backward(tape, p.dy, halves(p.dstate), per_step=True)

    def joined(pair):
        arrays = tuple(np.concatenate(both) for both in zip(*map(members, pair), strict=True))
        return arrays if p.cell == "lstm" else arrays[0]

    names = {f"forward.{k}": k for k in ours} | {f"backward.{k}": f"{k}_reverse" for k in theirs}
    parameters = {names[k]: v for k, v in grads.parameters.items()}
    got = named(y, joined(end), grads.x, joined(grads.state), parameters)
    got["dh"] = np.concatenate(grads.h)
    if p.cell == "lstm":
        got["cells"] = np.concatenate(tape.cells)
    assert_close({k: got[k] for k in expected}, expected, TOLERANCE[p.dtype])
    assert got["y"].tobytes() == expected["y"].tobytes()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("merge", ["concat", "sum", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_at_gaps_reaches_nothing_bidirectional(kind, merge, turned):
    p, _ = two_layers(kind)
    layer = rnnfast.Bidirectional(
        make_layer("gru", 3, 4, dtype="f8"), make_layer("lstm", 3, 4, reverse=not turned, dtype="f8"), merge
    )
    p.options.update(bidirectional=True)
    gaps = ~is_real(p)
    # dy where neither direction shows anything.
    D = p.dy.shape[2]
    p.dy = np.concatenate([p.dy, p.dy], -1)
    ignored = ~shown(p)
    results = []
    for value in (0, np.nan, -np.inf):
        x = np.where(gaps[..., None], value, p.x)
        y, _, tape = layer.forward(x, **uneven(p))
        dy = np.ones_like(y)
        nothing = ignored if merge == "concat" else ignored[..., :D] & ignored[..., D:]
        dy[nothing] = value
        grads = layer.backward(tape, dy, per_step=True)
        assert not grads.x[gaps].any()
        results.append({"y": y, "dx": grads.x, "h0": grads.h[0], "h1": grads.h[1], **grads.parameters})
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_bidirectional_layouts(kind, turned):
    p, _ = two_layers(kind)
    layers = [
        rnnfast.Bidirectional(
            make_layer("lstm", 3, 4, batch_first=first), make_layer("lstm", 3, 4, batch_first=first, reverse=not turned)
        )
        for first in (False, True)
    ]
    q, one = swapped(p), unbatched(p)
    y, end, tape = layers[0].forward(p.x, **uneven(p))
    grads = layers[0].backward(tape, y, per_step=True)
    y_first, _, tape_first = layers[1].forward(q.x, **uneven(q))
    first = layers[1].backward(tape_first, y_first, per_step=True)
    assert_same_bits({"y": y_first.swapaxes(0, 1), "dx": first.x.swapaxes(0, 1)}, {"y": y, "dx": grads.x})
    assert_same_bits(first.parameters, grads.parameters)
    for k in range(2):
        assert_same_bits({"h": first.h[k], "c": tape_first.cells[k]}, {"h": grads.h[k], "c": tape.cells[k]})
    for layer in layers:
        y_one, end_one, tape_one = layer.forward(one.x, **uneven(one))
        alone = layer.backward(tape_one, y_one, per_step=True)
        assert_same_bits({"y": y_one, "dx": alone.x}, {"y": y[:, 0], "dx": grads.x[:, 0]})
        for k in range(2):
            assert_same_bits(
                {"h": alone.h[k], "cells": tape_one.cells[k], "end": end_one[k][1]},
                {"h": grads.h[k][:, :, 0], "cells": tape.cells[k][:, :, 0], "end": end[k][1][:, 0]},
            )


# ---- nothing at all


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("checkpoint", [None, 1, "auto"])
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_no_rows(variant, kind, checkpoint, batch_first):
    p = uneven_problem(kind, variant, 4, 0, 3, 5, num_layers=2, bidirectional=True, dtype=np.float32)
    q = swapped(p) if batch_first else p
    for lists in (False, True):
        if lists:
            for name in {"lengths"} | ({"mask", "reset"} if not batch_first else set()):
                if name in q.options:
                    q.options[name] = q.options[name].tolist()
        layer = layer_of(p, batch_first=batch_first)
        results = run(layer, q, checkpoint)
        assert results["y"].shape == ((0, 4) if batch_first else (4, 0)) + (10,)
        assert results["dx"].shape == q.x.shape
        assert results["dh"].shape == (4, 4, 0, 5)
        assert results.get("cells", np.empty((4, 4, 0))).shape[:3] == (4, 4, 0)
        assert not any(value.any() for value in results.values())
        y, state = layer(q.x, q.state, **uneven(q))
        assert y.shape == results["y"].shape
        assert all(member.shape[:2] == (4, 0) for member in members(state))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("checkpoint", [None, 1, "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_steps(variant, kind, checkpoint, direction):
    """As lengths or a mask say: the state is the initial one, and so is its gradient, many times with cuts."""
    if kind == "reset":
        return
    p = uneven_problem(kind, variant, 6, 5, 3, 4, num_layers=2, dropout=True, **DIRECTIONS[direction])
    for name in {"lengths", "mask"} & set(p.options):
        p.options[name][...] = 0
    p.x[...] = p.dy[...] = np.nan
    for start in (p.state, None):
        p.state = start
        results = run(layer_of(p), p, checkpoint)
        for i, member in enumerate(members(p.dstate)):
            np.testing.assert_array_equal(results[f"state {i}"], 0 if start is None else members(start)[i])
            np.testing.assert_array_equal(results[f"dstate {i}"], member)
        if "cells" in results:
            held = (
                0
                if start is None or "mask" not in p.options
                else np.broadcast_to(start[1][:, None], results["cells"].shape)
            )
            np.testing.assert_array_equal(results["cells"], held)
        for name, value in results.items():
            assert "state" in name or name == "cells" or not value.any(), name
        y, state = layer_of(p)(p.x, p.state, **uneven(p))
        assert not y.any()
        for i, member in enumerate(members(state)):
            assert member.tobytes() == results[f"state {i}"].tobytes()


def test_cells_and_steps_of_shapes():
    layer = rnnfast.LSTM(3, 5, num_layers=2, proj_size=2, bidirectional=True)
    for x, batch in ((np.ones((7, 4, 3)), (4,)), (np.ones((7, 3)), ())):
        y, _, tape = layer.forward(x)
        assert tape.cells.shape == (4, 7, *batch, 5)
        assert layer.backward(tape, y, per_step=True).h.shape == (4, 7, *batch, 2)
        assert layer.backward(tape, y).h is None
        assert len(layer.backward(tape, y, per_step=True)) == 3


# ---- errors

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
    ({"lengths": [3, -1, 2]}, ValueError, "lengths must lie from 0 to T = 5, the steps of x, got -1 for row 1"),
    ({"lengths": [3, 0, 6]}, ValueError, "lengths must lie from 0 to T = 5, the steps of x, got 6 for row 2"),
    ({"lengths": np.array([5, 2**63, 0], np.uint64)}, ValueError, "got 9223372036854775808 for row 1"),
    ({"lengths": np.array([5, 2**64 - 1, 0], np.uint64)}, ValueError, "got 18446744073709551615 for row 1"),
    ({"lengths": [1, 2, 3], "mask": FLAGS}, ValueError, "lengths and mask exclude each other"),
    ({"lengths": [5, 5, 5], "mask": FLAGS, "reset": FLAGS}, ValueError, "lengths and mask exclude each other"),
    ({"zero_masked": 1}, TypeError, "zero_masked must be True or False, got 1"),
    ({"zero_masked": None}, TypeError, "zero_masked must be True or False, got None"),
    ({"mask": FLAGS, "zero_masked": "yes"}, TypeError, "zero_masked must be True or False, got 'yes'"),
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
    """A layer's calls, and those of Bidirectional around it."""
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
        with pytest.raises(
            ValueError, match=r"lengths must be one integer for an x without a batch axis, got .* \(1,\)"
        ):
            call(X[:, 0], lengths=[3])
        with pytest.raises(ValueError, match="lengths must lie from 0 to T = 5, the steps of x, got 6"):
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
        if VARIANTS[variant][0] != "lstm":
            _, _, tape = make_layer(variant, I, H).forward(X)
            with pytest.raises(AttributeError, match=r"this tape has no cells: it comes from .*, which is no LSTM"):
                tape.cells  # noqa: B018
    _, tape = rnnfast.Linear(I, H).forward(X)
    with pytest.raises(AttributeError, match=r"this tape has no cells: it comes from Linear\(4, 6\), which is no LSTM"):
        tape.cells  # noqa: B018
    layer = make_layer("lstm", I, H)
    for one in (layer, rnnfast.Bidirectional(layer)):
        for uneven in ({}, {"lengths": [0, 0, 0]}, {"lengths": [1, 2, 3]}):
            _, _, tape = one.forward(X, **uneven, checkpoint=1)
            with pytest.raises(ValueError, match="checkpoints alone, without cells: run forward with checkpoint=None"):
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


# ---- memory and time


def peak_of(layer, x, checkpoint):
    """The most memory that a forward and its backward take at once."""
    gc.collect()
    tracemalloc.start()
    y, _, tape = layer.forward(x, checkpoint=checkpoint)
    layer.backward(tape, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("bidirectional", [False, True])
def test_checkpoints_take_less_memory(bidirectional):
    # Small enough that no buffer is of pages from the system, which Python does not count.
    x = np.ones((800, 8, 1), np.float32)
    peaks = [peak_of(rnnfast.LSTM(1, 8, bidirectional=bidirectional, rng=0), x, c) for c in (None, "auto")]
    assert peaks[1] < 0.45 * peaks[0], peaks
