"""Zoneout: units of h and c that keep their values of the step before, at random or in expectation."""

import pickle
from copy import copy

import numpy as np
import pytest
from support.cells import ANY_INPUT, DIRECTIONS, LAYERS, VARIANTS, has_c, make_layer
from support.compare import assert_close, assert_same_bits, central_differences, members
from support.guards import Run, assert_central_differences, run_engine, run_in_a_row
from support.problems import (
    EDGES,
    SHAPES_FOR_THREADS,
    TOLERANCE,
    of_rows,
    rows,
    solved,
    variant_problem,
)
from support.ragged import KINDS, in_float64, layer_of, run_all, uneven_problem, without_cells
from support.ragged import of_rows as of_uneven_rows
from support.ragged import rows as uneven_rows
from support.ragged import run as run_layer

import rnnfast
from rnnfast import _core, functional
from rnnfast.layers import saving

FORMS = ["masks", "rates"]  # training, and inference

# --- the engine


@pytest.mark.cover(2, together=["variant", "dtype", "isa"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("recurrent_dropout", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_agrees_with_the_reference(variant, form, direction, recurrent_dropout, num_layers, dtype, isa):
    options = {"num_layers": num_layers, "dropout": num_layers > 1, "zoneout": form}
    if not functional.CELLS[VARIANTS[variant][0]].elementwise:
        options["recurrent_dropout"] = recurrent_dropout
    p, expected = solved(variant, 7, 5, 9, 12, dtype, direction, **options)
    assert_close(run_engine(p, isa), expected, TOLERANCE[p.dtype])


@pytest.mark.cover(2)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("N", [1, 6, 13])
def test_sizes_at_the_edges_of_tiles(variant, form, N, dtype, isa):
    for k, H in enumerate(EDGES):
        p, expected = solved(variant, 1 + k % 3, N, 3, H, dtype, list(DIRECTIONS)[k % 3], zoneout=form)
        assert_close(run_engine(p, isa), expected, TOLERANCE[p.dtype])


@pytest.mark.cover(1)
@pytest.mark.parametrize(("T", "N", "I", "H"), [(300, 2, 3, 4), (5, 70, 4, 130), (2, 600, 7, 3)])
def test_large_sizes(variant, T, N, I, H, dtype, isa):
    p, expected = solved(variant, T, N, I, H, dtype, "bidirectional", zoneout="masks")
    assert_close(run_engine(p, isa), expected, 4 * TOLERANCE[p.dtype])


@pytest.mark.cover(1, full=2)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_central_differences(variant, form, direction, isa):
    p = variant_problem(variant, 3, 2, 2, 3, num_layers=2, dropout=True, zoneout=form, **DIRECTIONS[direction])
    assert_central_differences(p, isa)


@pytest.mark.cover(1)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_masks_of_zeros_change_nothing(variant, direction, dtype, isa):
    p = variant_problem(variant, 6, 7, 5, 33, num_layers=2, dtype=dtype, zoneout="masks", **DIRECTIONS[direction])
    p.options["zoneout"] = tuple(np.zeros_like(share) for share in p.options["zoneout"])
    without = copy(p)
    without.zoneout, without.options = (0, 0), {**p.options, "zoneout": None}
    del without.options["zoneout"]
    got, expected = run_engine(p, isa), run_engine(without, isa)
    names = [name for name in expected if name == "y" or name.startswith("state")]
    assert_same_bits({name: got[name] for name in names}, {name: expected[name] for name in names})
    assert_close(got, expected, TOLERANCE[p.dtype])


def test_masks_of_ones_keep_the_state(variant):
    """The largest numbers, too, although the slope of tanh would overflow there."""
    p = variant_problem(variant, 4, 3, 5, 6, dtype=np.float32, zoneout="masks")
    p.options["zoneout"] = tuple(np.ones_like(share) for share in p.options["zoneout"])
    members(p.state)[0][...] *= 1e30
    results = run_engine(p)
    for k, member in enumerate(members(p.state)):
        np.testing.assert_array_equal(results[f"state {k}"], member)
    np.testing.assert_array_equal(results["y"], np.broadcast_to(members(p.state)[0], results["y"].shape))
    assert results["dstate 0"] == pytest.approx(members(p.dstate)[0] + p.dy.sum(0), abs=1e-5)
    assert not results["dx"].any()
    assert not results["dweight_ih_l0"].any()


# --- the same bits


@pytest.mark.cover(1)
@pytest.mark.parametrize(("T", "N", "I", "H", "num_layers"), SHAPES_FOR_THREADS)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("form", FORMS)
def test_any_number_of_threads(threads, variant, form, direction, T, N, I, H, num_layers, dtype):
    options = {"num_layers": num_layers, "zoneout": form, **DIRECTIONS[direction]}
    p = variant_problem(variant, T, N, I, H, dtype=dtype, **options)
    threads(1)
    expected = run_in_a_row(p)
    for count in (2, 3):
        threads(count)
        assert_same_bits(run_in_a_row(p), expected)


@pytest.mark.parametrize(("kind", "H"), [(rnnfast.RNN, 400), (rnnfast.LSTM, 160), (rnnfast.GRU, 256)])
def test_workers_wait_for_the_states_that_others_mix(threads, kind, H):
    """Workers divide the units of a few rows: in so many steps, one that does not wait reads memory without a value."""
    layer, x = kind(8, H, zoneout=0.3, rng=0), np.random.default_rng(0).normal(size=(1500, 2, 8)).astype(np.float32)
    threads(1)
    expected = layer(x)[0]
    threads(2)
    results = [layer(x)[0] for _ in range(4)]  # all are kept, so each is written to other memory
    for y in results:
        np.testing.assert_array_equal(y, expected)


@pytest.mark.cover(1, full=2)
@pytest.mark.parametrize(("N", "H"), [(13, 21), (29, 70), (6, 130)])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_a_row_alone_or_in_a_batch(variant, form, direction, N, H, dtype, isa):
    options = {"num_layers": 2, "dropout": True, "zoneout": form, **DIRECTIONS[direction]}
    p = variant_problem(variant, 5, N, 11, H, dtype=dtype, **options)
    batch = run_engine(p, isa)
    for which in (slice(0, 1), slice(N - 1, N), slice(1, 5)):
        alone = run_engine(rows(p, which), isa)
        assert_same_bits(of_rows(alone, slice(None)), of_rows(batch, which))


@pytest.mark.cover(1)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("N", [1, 4])
def test_in_chunks_and_without_a_tape(variant, form, N, dtype, isa):
    p = variant_problem(variant, 9, N, 4, 19, dtype=dtype, num_layers=2, dropout=True, zoneout=form)
    whole = Run(p, isa)
    plain = Run(p, isa, keep_tape=False)
    assert_same_bits(plain.forward_results(), whole.forward_results())
    state, y = p.state, []
    for chunk in (slice(0, 1), slice(1, 6), slice(6, 9)):
        part = copy(p)
        part.x, part.dy, part.state = p.x[chunk], p.dy[chunk], state
        shares = tuple(share[:, chunk] if share.ndim else share for share in p.options["zoneout"])
        part.options = {**p.options, "masks": p.options["masks"][:, chunk].copy(), "zoneout": shares}
        run = Run(part, isa, keep_tape=False)
        state = tuple(map(np.copy, run.state)) if isinstance(state, tuple) else run.state.copy()
        y.append(run.y.copy())
    assert_same_bits({"y": np.concatenate(y)}, {"y": whole.y})
    for got, want in zip(members(state), members(whole.state), strict=True):
        np.testing.assert_array_equal(got, want)


# --- layers on ragged batches, with given masks


@pytest.mark.cover(2, together=["variant", "dtype"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_layers_agree_with_the_reference(variant, kind, direction, num_layers, dtype):
    options = {"num_layers": num_layers, "dropout": num_layers > 1, "zoneout": "masks", **DIRECTIONS[direction]}
    p = uneven_problem(kind, variant, 9, 7, 3, 5, dtype=dtype, **options)
    layer = layer_of(p)
    got = run_layer(layer, p)
    assert_close(got, run_all(in_float64(p)), 2 * TOLERANCE[p.dtype])
    for checkpoint in (1, 4, "auto"):
        assert_same_bits(run_layer(layer, p, checkpoint), without_cells(got))
    for which in ([0], [3, 4, 5]):
        q = uneven_rows(p, which)
        alone = run_layer(layer_of(q), q)
        assert_same_bits(of_uneven_rows(alone, range(len(which))), of_uneven_rows(got, which))


@pytest.mark.cover(1)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("T", "N"), [(300, 2), (40, 60)])
def test_checkpoints_of_several_windows(variant, direction, T, N):
    for kind in (None, "lengths and reset"):
        options = {"num_layers": 2, "dtype": np.float32, "zoneout": "masks", **DIRECTIONS[direction]}
        p = uneven_problem(kind, variant, T, N, 3, 4, **options)
        layer = layer_of(p)
        expected = without_cells(run_layer(layer, p))
        for checkpoint in (7, "auto"):
            assert_same_bits(run_layer(layer, p, checkpoint), expected)


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_inference_is_the_expectation(cell, kind, dtype):
    p = uneven_problem(kind, cell, 6, 5, 3, 4, dtype=dtype, num_layers=2, zoneout="rates")
    layer, given = layer_of(p), {name: p.options[name] for name in KINDS.get(kind, ())}
    for _ in range(3):  # later calls are prepared
        y, state = layer(p.x, p.state, **given)
    expected = run_all(in_float64(p))
    got = {"y": y, **{f"state {k}": member for k, member in enumerate(members(state))}}
    assert_close(got, {name: expected[name] for name in got}, TOLERANCE[p.dtype])


GENERIC = [
    ("rnn_tanh", {"activations": ["softsign"]}),
    ("lstm", {"activations": ["hard_sigmoid", "softsign", "elu"], "peepholes": True, "clip": 1.5}),
    ("lstm", {"coupled": True, "peepholes": True}),
    ("gru", {"clip": 1.0}),
    ("gru_reset_before", {"clip": 1.0}),
    ("sru", {}),  # which reads x
]


@pytest.mark.parametrize(("cell", "options"), GENERIC)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_options_of_cells_by_central_differences(cell, options, bidirectional):
    zoneout = (0.3, 0.4) if functional.CELLS[cell].has_c else 0.3
    layer = make_layer(cell, 3, 3, bidirectional=bidirectional, dtype=np.float64, zoneout=zoneout, **options)
    rng = np.random.default_rng(0)
    for array in layer.parameters.values():
        array[...] = rng.uniform(-1, 1, array.shape)
    x, dy = rng.uniform(-1, 1, (4, 2, 3)), rng.uniform(-1, 1, (4, 2, 3 * (1 + bidirectional)))
    masks = layer._zoneout_masks(layer.execution.plan(x.shape))
    layer._zoneout_masks = lambda _: masks
    _, _, tape = layer.forward(x)
    grads = layer.backward(tape, dy)

    def loss():
        return np.vdot(layer.forward(x)[0], dy)

    np.testing.assert_allclose(grads.x, central_differences(loss, x), atol=1e-8)
    for name, array in layer.parameters.items():
        np.testing.assert_allclose(grads.parameters[name], central_differences(loss, array), atol=1e-8, err_msg=name)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_agrees_with_a_loop_in_torch(cell):
    torch = pytest.importorskip("torch")
    zoneout = (0.25, 0.5) if cell == "lstm" else 0.25
    layer = make_layer(cell, 3, 70, dtype=np.float64, zoneout=zoneout)
    theirs = {"rnn_tanh": torch.nn.RNNCell, "lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}[cell](3, 70).double()
    theirs.load_state_dict({name[:-3]: torch.tensor(array) for name, array in layer.parameters.items()})
    x = torch.tensor(np.random.default_rng(0).normal(size=(8, 5, 3)), requires_grad=True)
    masks = layer._zoneout_masks(layer.execution.plan(tuple(x.shape)))
    layer._zoneout_masks = lambda _: masks
    bits = np.unpackbits(masks[0], axis=2, bitorder="little").astype(bool)
    keep = [torch.tensor(bits[..., 128 * k : 128 * k + 70]) for k in range(1 + (cell == "lstm"))]
    state = [torch.zeros(5, 70, dtype=torch.float64) for _ in keep]
    outputs = []
    for t in range(8):
        after = theirs(x[t], tuple(state) if cell == "lstm" else state[0])
        after = after if cell == "lstm" else (after,)
        state = [torch.where(kept[t], old, new) for kept, old, new in zip(keep, state, after, strict=True)]
        outputs.append(state[0])
    expected = torch.stack(outputs)
    (expected.square().sum() + sum(end.sum() for end in state)).backward()
    y, last, tape = layer.forward(x.detach().numpy())
    ones = tuple(map(np.ones_like, members(last)))
    grads = layer.backward(tape, 2 * y, ones if cell == "lstm" else ones[0])
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(grads.x, x.grad.numpy(), atol=1e-12)
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(grads.parameters[f"{name}_l0"], parameter.grad.numpy(), atol=1e-11)


# --- the masks that layers draw


def drawn(T, N, units, zoneout, key=(1, 2), cell="lstm", num_layers=1):
    """Whether h and c of units are kept, (2, layers, T, N, units)."""
    engine = functional.Engine(cell, np.dtype(np.float32), 3, units, zoneout=zoneout, num_layers=num_layers)
    bits = np.unpackbits(engine.draw_zoneout(T, N, key, functional.empty), axis=3, bitorder="little").astype(bool)
    return np.stack([part[..., :units] for part in np.split(bits, 2, axis=3)])


@pytest.mark.parametrize("rate", [0, 2.0**-32, 1e-3, 0.1, 0.25, 0.5, 1 / 3, 0.9, 1 - 2.0**-32, 1])
def test_units_are_kept_with_their_probabilities(rate):
    of_h, of_c = drawn(30, 20, 200, (rate, 1 - rate)).reshape(2, -1)
    for kept, p in ((of_h, rate), (of_c, 1 - rate)):
        np.testing.assert_allclose(kept.mean(), p, atol=max(5 * np.sqrt(p * (1 - p) / kept.size), 1e-8))
        assert rate not in (0, 1) or (kept == p).all()


def test_the_generator_is_philox():
    """Digits of the fractions, from the same generator in Python, and those of Salmon et al.'s test vectors."""

    def philox(counter, key):
        x, k = list(counter), list(key)
        for _ in range(10):
            a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
            x = [b >> 32 ^ x[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ x[3] ^ k[1], a & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return x

    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    assert philox(*pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    rates, key = (0.3, 0.6), (0xDEADBEEF, 7)
    masks = drawn(3, 2, 70, rates, key, num_layers=2)
    for of_c, layer, t, n, unit in np.ndindex(masks.shape):
        digits = 0
        for pair in range(16):
            x = philox((unit // 64 * 16 + pair, t, n, 2 * layer + of_c), key)
            for low, high in ((x[0], x[1]), (x[2], x[3])):
                digits = 2 * digits + ((high << 32 | low) >> unit % 64 & 1)
        assert masks[of_c, layer, t, n, unit] == (digits < round(rates[of_c] * 2**32))


def test_masks_do_not_depend_on_the_shape_of_the_call():
    whole = drawn(7, 5, 150, (0.5, 0.5), num_layers=3)
    np.testing.assert_array_equal(drawn(4, 3, 100, (0.5, 0.5), num_layers=2), whole[:, :2, :4, :3, :100])
    assert len({whole[index].tobytes() for index in np.ndindex(whole.shape[:4])}) == 2 * 3 * 7 * 5
    assert (drawn(7, 5, 150, (0.5, 0.5), (1, 3)) != whole[:, :1]).mean() == pytest.approx(0.5, abs=0.03)


def test_masks_of_dropout_stay_the_same():
    dropping = rnnfast.GRU(3, 50, rng=0, recurrent_dropout=0.5)
    both = rnnfast.GRU(3, 50, rng=0, recurrent_dropout=0.5, zoneout=0.5)
    plan = dropping.execution.plan((3, 2, 3))
    np.testing.assert_array_equal(both._masks_of_rows(plan)[0], dropping._masks_of_rows(plan)[0])


# --- layers


@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize("N", [1, 3])
def test_streams_and_frozen_layers_have_the_same_bits(cell, N):
    layer = make_layer(cell, 5, 5, num_layers=2, zoneout=(0.3, 0.6) if functional.CELLS[cell].has_c else 0.3)
    x = np.random.default_rng(0).normal(size=(7, N, 5)).astype(np.float32)
    y, state = layer(x)
    stream = layer.stream(N)
    steps = [stream.step(x[t, 0] if N == 1 else x[t]) for t in range(3)]
    np.testing.assert_array_equal(np.reshape(steps, (3, N, 5)), y[:3])
    np.testing.assert_array_equal(stream(x[3:]), y[3:])
    for got, want in zip(members(stream.state), members(state), strict=True):
        np.testing.assert_array_equal(got, want)
    layer.freeze()
    np.testing.assert_array_equal(layer(x)[0], y)
    layer.unfreeze()
    layer.freeze("int8")
    narrow = layer(x)[0]
    np.testing.assert_allclose(narrow, y, atol=0.1)
    np.testing.assert_array_equal(layer.stream(N)(x), narrow)


@pytest.mark.parametrize("cell", LAYERS)
def test_options(cell, tmp_path):
    layer = make_layer(cell, 4, 4, zoneout=0.25)
    assert "zoneout=0.25" in repr(layer)
    layer.save(tmp_path / "layer.npz")
    x = np.ones((5, 2, 4), np.float32)
    for other in (rnnfast.load(tmp_path / "layer.npz"), pickle.loads(pickle.dumps(layer)), copy(layer)):
        assert other.zoneout == 0.25
        np.testing.assert_array_equal(other(x)[0], layer(x)[0])
    plain = make_layer(cell, 4, 4)
    assert "zoneout" not in repr(plain)
    assert "zoneout" not in saving.to_json(plain)
    with pytest.raises(ValueError, match="zoneout"):
        plain.load(tmp_path / "layer.npz")
    with pytest.raises(AttributeError, match="zoneout"):
        layer.zoneout = 0.5


def test_pairs(tmp_path):
    layer = rnnfast.LSTM(3, 4, zoneout=[0.25, 0.5], rng=0)
    assert layer.zoneout == (0.25, 0.5)
    layer.save(tmp_path / "layer.npz")
    assert rnnfast.load(tmp_path / "layer.npz").zoneout == (0.25, 0.5)
    x = np.ones((5, 2, 3), np.float32)
    one, other = rnnfast.LSTM(3, 4, zoneout=(0.5, 0), rng=0), rnnfast.LSTM(3, 4, zoneout=0.5, rng=0)
    assert one.zoneout == other.zoneout == 0.5
    np.testing.assert_array_equal(one.forward(x)[0], other.forward(x)[0])
    assert rnnfast.SRU(4, 4, zoneout=(0, 0.5)).zoneout == (0, 0.5)


def test_options_are_checked():
    for wrong in (-0.1, 1.5, np.nan, "0.5", None, (0.5,), (0.1, 0.2, 0.3), (0.5, -1), ("a", 0)):
        with pytest.raises((TypeError, ValueError), match="zoneout"):
            rnnfast.LSTM(3, 4, zoneout=wrong)
    with pytest.raises(TypeError, match="zoneout must be one number"):
        rnnfast.GRU(3, 4, zoneout=(0.5, 0.5))
    for wrong in ((0.5, 0.5), (-1, 0), (np.nan, 0), (2, 0)):
        with pytest.raises(ValueError, match="zoneout"):
            functional.Engine("gru", np.dtype(np.float32), 3, 4, zoneout=wrong)
    engine = functional.Engine("gru", np.dtype(np.float32), 3, 4, zoneout=(0.5, 0))
    with pytest.raises(ValueError, match="T and N must be positive"):
        engine.draw_zoneout(0, 3, (1, 2), functional.empty)
    with pytest.raises(ValueError, match="more bytes than an address can count"):
        engine.draw_zoneout(1 << 40, 1 << 40, (1, 2), functional.empty)


def test_masks_of_the_wrong_size_are_refused():
    p = variant_problem("gru", 3, 2, 4, 5, zoneout="masks")
    run = Run(p)
    run.inputs = _core.Inputs(run.x, run.h0, zoneout_masks=np.zeros((1, 3, 1, 8), np.uint8))
    with pytest.raises(ValueError, match="bytes"):
        run.forward()


def test_what_does_not_support_it_says_so():
    from rnnfast.diagnostics import gradient_flow

    layer, x = rnnfast.GRU(3, 4, zoneout=0.5, rng=0), np.ones((5, 2, 3), np.float32)
    with pytest.raises(ValueError, match="zoneout"):
        gradient_flow(layer, x)
    with pytest.raises(ValueError, match="zoneout"):
        rnnfast.Ensemble([layer])
    with pytest.raises(ValueError, match="zoneout"):
        rnnfast.export.c_source(layer)
    plain = rnnfast.GRU(3, 4, rng=0)
    with pytest.raises(ValueError, match="zoneout"):
        plain.stream().update(layer)


def test_every_cell_is_tested():
    assert {cell for cell, _ in VARIANTS.values()} == set(ANY_INPUT)
    assert {variant for variant in VARIANTS if has_c(variant)} == {"lstm", "lstm_projected", "sru_linear"}
