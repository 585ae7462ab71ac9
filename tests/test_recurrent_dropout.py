"""Recurrent dropout and input dropout: one mask for all steps of a row (variational dropout)."""

import pickle
from copy import copy

import numpy as np
import pytest
from support.cells import DIRECTIONS, LAYERS, VARIANTS, make_layer
from support.compare import assert_close, assert_same_bits, central_differences, members
from support.guards import Run, assert_central_differences, run_engine, run_in_a_row
from support.problems import EDGES, SHAPES_FOR_THREADS, TOLERANCE, of_rows, rows, solved, variant_problem
from support.ragged import KINDS, cast, in_float64, layer_of, run_all, uneven_problem, without_cells
from support.ragged import of_rows as of_uneven_rows
from support.ragged import rows as uneven_rows
from support.ragged import run as run_layer

import rnnfast
from rnnfast import functional

# The variants with a recurrent product.
RECURRENT = [variant for variant, (cell, _) in VARIANTS.items() if not functional.CELLS[cell].elementwise]


@pytest.fixture(params=RECURRENT)
def variant(request):
    return request.param


# --- the engine


@pytest.mark.cover(2, together=["variant", "dtype", "isa"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_agrees_with_the_reference(variant, direction, num_layers, dtype, isa):
    options = {"num_layers": num_layers, "dropout": num_layers > 1, "recurrent_dropout": True}
    p, expected = solved(variant, 7, 5, 9, 12, dtype, direction, **options)
    assert_close(run_engine(p, isa), expected, TOLERANCE[p.dtype])


@pytest.mark.parametrize("N", [1, 6, 13])
def test_sizes_at_the_edges_of_tiles(variant, N, dtype, isa):
    for k, H in enumerate(EDGES):
        p, expected = solved(variant, 1 + k % 3, N, 3, H, dtype, list(DIRECTIONS)[k % 3], recurrent_dropout=True)
        assert_close(run_engine(p, isa), expected, TOLERANCE[p.dtype])


@pytest.mark.parametrize(("T", "N", "I", "H"), [(300, 2, 3, 4), (5, 70, 4, 130), (2, 600, 7, 3)])
def test_large_sizes(variant, T, N, I, H, dtype, isa):
    p, expected = solved(variant, T, N, I, H, dtype, "bidirectional", recurrent_dropout=True)
    assert_close(run_engine(p, isa), expected, 4 * TOLERANCE[p.dtype])


@pytest.mark.cover(2, full=2)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradients_are_central_differences(variant, direction, isa):
    p = variant_problem(
        variant, 3, 2, 2, 3, num_layers=2, dropout=True, recurrent_dropout=True, **DIRECTIONS[direction]
    )
    assert_central_differences(p, isa)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_masks_of_ones_change_nothing(variant, direction, dtype, isa):
    p = variant_problem(
        variant, 6, 7, 5, 33, num_layers=2, dtype=dtype, recurrent_dropout=True, **DIRECTIONS[direction]
    )
    p.options["recurrent_masks"][...] = 1
    without = copy(p)
    without.options = {**p.options, "recurrent_masks": None}
    got, expected = run_engine(p, isa), run_engine(without, isa)
    names = [name for name in expected if name == "y" or name.startswith("state")]
    assert_same_bits({name: got[name] for name in names}, {name: expected[name] for name in names})
    assert_close(got, expected, TOLERANCE[p.dtype])


def test_a_mask_of_zeros_cuts_the_recurrence():
    p = variant_problem("rnn_tanh", 5, 3, 4, 6, recurrent_dropout=True)
    p.options["recurrent_masks"][...] = 0
    results = run_engine(p)
    inputs = p.x @ p.parameters["weight_ih_l0"].T + p.parameters["bias_ih_l0"] + p.parameters["bias_hh_l0"]
    np.testing.assert_allclose(results["y"], np.tanh(inputs), rtol=1e-12)
    np.testing.assert_array_equal(results["dweight_hh_l0"], 0)
    np.testing.assert_array_equal(results["dstate 0"], 0)


# --- the same bits


@pytest.mark.cover(1)
@pytest.mark.parametrize(("T", "N", "I", "H", "num_layers"), SHAPES_FOR_THREADS)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_any_number_of_threads(threads, variant, direction, T, N, I, H, num_layers, dtype):
    options = {"num_layers": num_layers, "recurrent_dropout": True, **DIRECTIONS[direction]}
    p = variant_problem(variant, T, N, I, H, dtype=dtype, **options)
    threads(1)
    expected = run_in_a_row(p)
    for count in (2, 3):
        threads(count)
        assert_same_bits(run_in_a_row(p), expected)


@pytest.mark.parametrize(("N", "H"), [(13, 21), (29, 70), (6, 130)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_row_alone_or_in_a_batch(variant, direction, N, H, dtype, isa):
    options = {"num_layers": 2, "dropout": True, "recurrent_dropout": True, **DIRECTIONS[direction]}
    p = variant_problem(variant, 5, N, 11, H, dtype=dtype, **options)
    batch = run_engine(p, isa)
    for which in (slice(0, 1), slice(N // 2, N // 2 + 1), slice(N - 1, N), slice(1, 5)):
        alone = run_engine(rows(p, which), isa)
        assert_same_bits(of_rows(alone, slice(None)), of_rows(batch, which))


def test_strides_of_zero_repeat_masks(variant, dtype, isa):
    p = variant_problem(variant, 4, 5, 3, 7, num_layers=3, dropout=True, dtype=dtype)
    p.options["masks"][...] = p.options["masks"][:, :1]
    plain = Run(p, isa)
    masks = np.broadcast_to(p.options["masks"][:, :1], p.options["masks"].shape)
    repeated = Run(p, isa)
    repeated.inputs = functional.Inputs(repeated.x, repeated.h0, repeated.c0, masks)
    repeated.y.fill(np.nan)
    repeated.forward()
    assert_same_bits(repeated.backward(), plain.backward())


# --- layers on ragged batches, with given masks


def with_masks(p, layer, seed=0):
    """Give a problem masks of both kinds, and make its layer use them."""
    rng = np.random.default_rng(seed)
    N, width, layers = p.x.shape[1], p.proj_size or p.hidden_size, p.options["num_layers"]
    directions = 1 + p.options["bidirectional"]
    p.options["recurrent_masks"] = rng.uniform(-1, 1, (layers * directions, N, width)).astype(p.dtype)
    widths = [p.input_size, *[directions * width] * (layers - 1)]
    p.options["input_masks"] = [rng.uniform(-1, 1, (N, width)).astype(p.dtype) for width in widths]
    return use_masks(p, layer)


def use_masks(p, layer):
    layer.recurrent_dropout = layer.input_dropout = 0.5
    layer._masks_of_rows = lambda _: (p.options["recurrent_masks"], p.options["input_masks"])
    return layer


def as_float64(p):
    q = in_float64(p)
    q.options["recurrent_masks"] = cast(p.options["recurrent_masks"], np.float64)
    q.options["input_masks"] = [cast(mask, np.float64) for mask in p.options["input_masks"]]
    return q


@pytest.mark.cover(2, together=["variant", "dtype"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_layers_agree_with_the_reference(variant, kind, direction, num_layers, dtype):
    options = {"num_layers": num_layers, "dropout": num_layers > 1, **DIRECTIONS[direction]}
    p = uneven_problem(kind, variant, 9, 7, 3, 5, dtype=dtype, **options)
    layer = with_masks(p, layer_of(p))
    got = run_layer(layer, p)
    assert_close(got, run_all(as_float64(p)), 2 * TOLERANCE[p.dtype])
    for checkpoint in (1, 4, "auto"):
        assert_same_bits(run_layer(layer, p, checkpoint), without_cells(got))
    for which in ([0], [3, 4, 5]):
        q = uneven_rows(p, which)
        q.options["input_masks"] = [mask[which].copy() for mask in p.options["input_masks"]]
        alone = run_layer(use_masks(q, layer_of(q)), q)
        assert_same_bits(of_uneven_rows(alone, range(len(which))), of_uneven_rows(got, which))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("T", "N"), [(300, 2), (40, 60)])
def test_checkpoints_of_several_windows(variant, direction, T, N):
    for kind in (None, "lengths and reset"):
        options = {"num_layers": 2, "dtype": np.float32, **DIRECTIONS[direction]}
        p = uneven_problem(kind, variant, T, N, 3, 4, **options)
        layer = with_masks(p, layer_of(p))
        expected = without_cells(run_layer(layer, p))
        for checkpoint in (7, "auto"):
            assert_same_bits(run_layer(layer, p, checkpoint), expected)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradient_of_x_by_central_differences(variant, bidirectional):
    options = {"num_layers": 2, "dropout": True, "bidirectional": bidirectional}
    p = uneven_problem("lengths", variant, 3, 4, 2, 3, **options)
    layer = with_masks(p, layer_of(p))
    found = run_layer(layer, p)["dx"]

    def loss():
        y, state, _ = layer.forward(p.x, p.state, lengths=p.options["lengths"])
        ends = zip(members(state), members(p.dstate), strict=True)
        return np.vdot(y, p.dy) + sum(np.vdot(end, d) for end, d in ends)

    np.testing.assert_allclose(found, central_differences(loss, p.x), atol=1e-8)


# --- the masks that layers draw


def _copier(**options):
    """An RNN that returns non-negative inputs unchanged, so that y shows which of them were dropped."""
    layer = rnnfast.RNN(50, 50, nonlinearity="relu", bias=False, rng=0, **options)
    for name, array in layer.parameters.items():
        array[...] = np.eye(50) if "_ih_" in name else 0
    return layer


def _adder(**options):
    """An RNN whose h counts the steps, as far as the recurrent product is not masked."""
    layer = _copier(**options)
    layer.parameters["weight_hh_l0"][...] = np.eye(50)
    return layer


@pytest.mark.parametrize("p", [0.0, 0.2, 0.75, 1.0])
def test_input_dropout(p, dtype):
    x, factor = np.ones((4, 40, 50), dtype), dtype(1 / (1 - p)) if p < 1 else 0
    layer = _copier(input_dropout=p, dtype=dtype)
    np.testing.assert_array_equal(layer(x)[0], x)
    y, _, tape = layer.forward(x)
    assert set(np.unique(y)) <= {0, factor}
    np.testing.assert_allclose((y == 0).mean(), p, atol=0.04)
    np.testing.assert_array_equal(y, np.broadcast_to(y[0], y.shape))
    assert p in (0, 1) or not np.array_equal(y[0, 0], y[0, 1])
    np.testing.assert_array_equal(layer.backward(tape, x).x, y)
    assert p in (0, 1) or not np.array_equal(layer.forward(x)[0], y)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_recurrent_dropout(p, dtype):
    x = np.ones((3, 40, 50), dtype)
    layer = _adder(recurrent_dropout=p, dtype=dtype)
    counts = np.broadcast_to(np.array([1, 2, 3], dtype)[:, None, None], x.shape)
    np.testing.assert_array_equal(layer(x)[0], counts)
    y, _, _ = layer.forward(x)
    factor = 1 / (1 - p) if p < 1 else 0
    kept = y[1] > 1
    np.testing.assert_allclose(kept.mean(), 1 - p, atol=0.04)
    np.testing.assert_array_equal(y[0], 1)
    np.testing.assert_array_equal(y[1], np.where(kept, 1 + factor, 1))
    np.testing.assert_array_equal(y[2], np.where(kept, 1 + factor * (1 + factor), 1))
    stream = layer.stream(40)
    np.testing.assert_array_equal(stream(x), counts)


def test_each_layer_and_direction_has_masks_of_its_own():
    layer = rnnfast.LSTM(6, 6, 2, bidirectional=True, recurrent_dropout=0.5, input_dropout=0.5, rng=0)
    recurrent, (first, second) = layer._masks_of_rows(layer.execution.plan((3, 8, 6)))
    assert recurrent.shape == (4, 8, 6)
    assert (first.shape, second.shape) == ((8, 6), (8, 12))
    every = [*recurrent, first, second[:, :6], second[:, 6:]]
    assert len({mask.tobytes() for mask in every}) == 7


def test_one_option_does_not_change_the_masks_of_the_other():
    x = np.ones((3, 2, 50))
    both, alone = (_copier(input_dropout=0.5, recurrent_dropout=p) for p in (0.5, 0))
    np.testing.assert_array_equal(both.forward(x)[0], alone.forward(x)[0])


def test_input_dropout_acts_on_every_layer():
    y, _, _ = _copier(num_layers=3, input_dropout=0.5).forward(np.ones((2, 60, 50)))
    assert set(np.unique(y)) == {0, 8}
    np.testing.assert_allclose((y == 8).mean(), 1 / 8, atol=0.02)
    np.testing.assert_array_equal(y[0], y[1])


# --- options


@pytest.mark.parametrize("cell", [cell for cell in LAYERS if cell in RECURRENT])
def test_options(cell, tmp_path):
    layer = make_layer(cell, 3, 4, recurrent_dropout=0.25, input_dropout=0.5)
    assert "recurrent_dropout=0.25, input_dropout=0.5" in repr(layer)
    layer.save(tmp_path / "layer.npz")
    for other in (rnnfast.load(tmp_path / "layer.npz"), pickle.loads(pickle.dumps(layer)), copy(layer)):
        assert (other.recurrent_dropout, other.input_dropout) == (0.25, 0.5)
    plain = make_layer(cell, 3, 4)
    assert "dropout" not in repr(plain)
    plain.load(tmp_path / "layer.npz")
    assert (plain.recurrent_dropout, plain.input_dropout) == (0, 0)
    layer.recurrent_dropout = layer.input_dropout = 0
    assert repr(layer) == repr(plain)


@pytest.mark.parametrize("name", ["recurrent_dropout", "input_dropout"])
def test_options_are_checked(name):
    layer = rnnfast.LSTM(3, 4)
    for wrong in (-0.1, 1.5, np.nan, "0.5", None):
        with pytest.raises((TypeError, ValueError), match=name):
            rnnfast.LSTM(3, 4, **{name: wrong})
        with pytest.raises((TypeError, ValueError), match=name):
            setattr(layer, name, wrong)
        assert getattr(layer, name) == 0
    with pytest.raises(AttributeError):
        delattr(layer, name)


def test_inference_and_what_reads_layers_ignore_it():
    """Streams accept the weights of a layer that differs in dropout alone, and diagnostics measure without it."""
    from rnnfast.diagnostics import gradient_flow

    plain, dropping = rnnfast.LSTM(3, 4, rng=0), rnnfast.LSTM(3, 4, rng=0, recurrent_dropout=0.5, input_dropout=0.5)
    x = np.ones((5, 2, 3), np.float32)
    np.testing.assert_array_equal(plain(x)[0], dropping(x)[0])
    plain.stream(2).update(dropping)
    flows = [gradient_flow(layer, x) for layer in (plain, dropping)]
    for name, value in vars(flows[0]).items():
        if name != "layer":
            np.testing.assert_equal(getattr(flows[1], name), value)
    assert dropping.recurrent_dropout == 0.5


def test_every_variant_is_tested():
    recurrent = {cell for cell, info in functional.CELLS.items() if not info.elementwise}
    assert {VARIANTS[variant][0] for variant in RECURRENT} == recurrent
