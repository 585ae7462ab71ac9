"""Diagnostics: gradients by lag, Jacobians of the recurrence, saturated gates."""

import itertools
import sys

import numpy as np
import pytest
from support.cells import VARIANTS, has_c, make_layer
from support.compare import central_differences

import rnnfast
from rnnfast.diagnostics import GradientFlow, gradient_flow, plot_gradient_flow

T, N, I, H = 6, 3, 4, 5


def values(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def layer_of(variant, **options):
    return make_layer(variant, I, H, **{"dtype": np.float64, **options})


def copy_into(layer, parameters, end=""):
    """Copy the parameters of one layer and direction of a stack into a single layer."""
    for name, array in layer.parameters.items():
        array[...] = parameters[name.replace("_l0", end)]
    return layer


def steps_walked(reverse):
    return range(T)[::-1] if reverse else range(T)


def states_before(layer, x, state, reverse):
    """The state before each step, by step."""
    before = {}
    for t in steps_walked(reverse):
        before[t] = state
        _, state = layer(x[t : t + 1], state)
    return before


def initial(variant, seed=1):
    widths = [H, H + VARIANTS[variant][1]] if has_c(variant) else [H]
    members = tuple(values(1, N, width, seed=seed + i) for i, width in enumerate(widths))
    return members if len(members) > 1 else members[0]


def joined(state):
    members = state if isinstance(state, tuple) else (state,)
    return np.concatenate([member[0] for member in members], axis=-1)


def parted(vector, state):
    """The inverse of `joined`."""
    if not isinstance(state, tuple):
        return vector[None].copy()
    width = state[0].shape[-1]
    return vector[None, :, :width].copy(), vector[None, :, width:].copy()


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_singular_values_agree_with_differences(variant, reverse):
    layer, x, state = layer_of(variant, reverse=reverse), 2 * values(T, N, I), initial(variant)
    flow = gradient_flow(layer, x, state)
    before = states_before(layer, x, state, reverse)
    for lag, t in enumerate(reversed(steps_walked(reverse))):
        start = joined(before[t])
        columns = []
        for unit in range(start.shape[1]):
            nudge = 1e-6 * np.eye(start.shape[1])[unit]
            above, below = (layer(x[t : t + 1], parted(start + sign * nudge, state))[1] for sign in (1, -1))
            columns.append((joined(above) - joined(below)) / 2e-6)
        jacobians = np.stack(columns, axis=2)  # rows, state after, state before
        whole = np.linalg.svd(jacobians, compute_uv=False)[:, 0].mean()
        of_h = np.linalg.svd(jacobians[:, :H, :H], compute_uv=False)[:, 0].mean()
        assert flow.singular_values["l0"][lag] == pytest.approx(of_h, abs=1e-8)
        if isinstance(state, tuple):
            assert flow.state_singular_values["l0"][lag] == pytest.approx(whole, abs=1e-8)
    assert bool(flow.state_singular_values) == isinstance(state, tuple)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_norms_agree_with_differences(variant, reverse):
    layer, x, state = layer_of(variant, reverse=reverse), values(T, N, I), initial(variant)
    flow = gradient_flow(layer, x, state)
    walked = list(steps_walked(reverse))
    before = states_before(layer, x, state, reverse)
    assert flow.norms["l0"][0] == pytest.approx(np.sqrt(H))
    for lag in range(1, T):
        t = walked[T - lag]  # the step after the one whose h is changed
        rest = x[: t + 1] if reverse else x[t:]
        start = tuple(member.copy() for member in before[t]) if isinstance(state, tuple) else before[t].copy()

        def loss(rest=rest, start=start):
            return layer(rest, start)[0][0 if reverse else -1].sum()

        dh = central_differences(loss, start[0] if isinstance(state, tuple) else start)
        expected = np.linalg.norm(dh[0], axis=1).mean()
        assert flow.norms["l0"][lag] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.25])
def test_linear_rnn_follows_powers_of_the_singular_value(scale):
    """At h = 0 tanh has slope 1, so dL/dh at a lag is 1 W^lag, with W orthogonal times scale."""
    layer = rnnfast.RNN(I, H, bias=False, init="orthogonal", dtype=np.float64, rng=0)
    layer.parameters["weight_hh_l0"][...] *= scale
    flow = gradient_flow(layer, np.zeros((40, N, I)))
    np.testing.assert_allclose(flow.norms["l0"], np.sqrt(H) * scale ** np.arange(40), rtol=1e-12)
    np.testing.assert_allclose(flow.singular_values["l0"], np.full(40, scale), rtol=1e-12)
    assert flow.decay["l0"] == pytest.approx(scale)


def test_linear_rnn_of_any_matrix():
    layer = rnnfast.RNN(I, H, bias=False, dtype=np.float64, rng=0)
    matrix = layer.parameters["weight_hh_l0"]
    flow = gradient_flow(layer, np.zeros((20, N, I)))
    expected = [np.linalg.norm(np.ones(H) @ np.linalg.matrix_power(matrix, lag)) for lag in range(20)]
    np.testing.assert_allclose(flow.norms["l0"], expected, rtol=1e-10)
    np.testing.assert_allclose(flow.singular_values["l0"], np.full(20, np.linalg.norm(matrix, 2)), rtol=1e-12)


def test_identity_keeps_the_gradient_whole():
    layer = rnnfast.RNN(I, H, nonlinearity="relu", init="identity", dtype=np.float64, rng=0)
    flow = gradient_flow(layer, np.zeros((40, N, I)), np.ones((1, N, H)))
    np.testing.assert_allclose(flow.norms["l0"], np.sqrt(H), rtol=1e-12)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if not has_c(variant)])
def test_no_step_lengthens_the_gradient_by_more_than_its_singular_value(variant):
    """The Jacobian of a single row, for cells whose state is h."""
    flow = gradient_flow(layer_of(variant), 2 * values(30, 1, I))
    norms, bounds = flow.norms["l0"], flow.singular_values["l0"]
    assert (norms[1:] <= bounds[:-1] * norms[:-1] * (1 + 1e-12)).all()


def test_stack_is_measured_layer_by_layer(variant):
    """A stack agrees with single layers and the chain rule."""
    stack = layer_of(variant, num_layers=2, rng=3)
    x = values(T, N, I)
    flow = gradient_flow(stack, x)
    lower = copy_into(layer_of(variant), stack.parameters, "_l0")
    upper = copy_into(make_layer(variant, H, H, dtype=np.float64), stack.parameters, "_l1")
    middle, _, lower_tape = lower.forward(x)
    y, _, upper_tape = upper.forward(middle)
    dy = np.zeros_like(y)
    dy[-1] = 1
    above = upper.backward(upper_tape, dy, per_step=True)
    below = lower.backward(lower_tape, above.x, per_step=True)
    alone = {"l0": gradient_flow(lower, x), "l1": gradient_flow(upper, middle)}
    for name, gradients in (("l0", below), ("l1", above)):
        expected = np.linalg.norm(gradients.h[0], axis=2).mean(axis=1)[::-1]
        np.testing.assert_allclose(flow.norms[name], expected, rtol=1e-9)
        np.testing.assert_allclose(flow.singular_values[name], alone[name].singular_values["l0"], rtol=1e-9)
        assert flow.saturation[name] == alone[name].saturation["l0"]
    assert list(flow.norms) == ["l0", "l1"]


def assert_same_flow(flow, name, other, alone="l0"):
    np.testing.assert_allclose(flow.norms[name], other.norms[alone], rtol=1e-9)
    np.testing.assert_allclose(flow.singular_values[name], other.singular_values[alone], rtol=1e-9)
    if alone in other.state_singular_values:
        np.testing.assert_allclose(flow.state_singular_values[name], other.state_singular_values[alone], rtol=1e-9)
    assert flow.saturation[name] == other.saturation[alone]


def test_directions_are_measured_each_in_its_order(variant):
    both, x = layer_of(variant, bidirectional=True, rng=3), values(T, N, I)
    flow = gradient_flow(both, x)
    for reverse, end in enumerate(["_l0", "_l0_reverse"]):
        alone = copy_into(layer_of(variant, reverse=bool(reverse)), both.parameters, end)
        assert_same_flow(flow, end[1:], gradient_flow(alone, x))
    assert list(flow.norms) == ["l0", "l0_reverse"]


@pytest.mark.parametrize("reverse", [False, True], ids=["turned", "reverse"])
def test_two_layers_of_a_bidirectional(variant, reverse):
    forward, backward = layer_of(variant), rnnfast.GRU(I, 7, reverse=reverse, dtype=np.float64, rng=5)
    x, states = values(T, N, I), (initial(variant), values(1, N, 7, seed=9))
    flow = gradient_flow(rnnfast.Bidirectional(forward, backward), x, states)
    assert_same_flow(flow, "forward.l0", gradient_flow(forward, x, states[0]))
    assert_same_flow(flow, "backward.l0", gradient_flow(backward, x if reverse else x[::-1], states[1]))
    assert set(flow.state_singular_values) == ({"forward.l0"} if has_c(variant) else set())


def test_merges_that_share_the_output_have_the_same_default():
    layers = [rnnfast.GRU(I, H, dtype=np.float64, rng=seed) for seed in (0, 1)]
    x = values(T, N, I)
    flows = [gradient_flow(rnnfast.Bidirectional(*layers, merge=merge), x) for merge in ("concat", "sum", "mul", None)]
    for flow, name in itertools.product(flows[1:], flows[0].norms):
        np.testing.assert_allclose(flow.norms[name], flows[0].norms[name])


@pytest.mark.parametrize("variant", ["rnn_tanh", "lstm", "gru"])
def test_loss_of_ones_own(variant):
    layer, x, dy = layer_of(variant), values(T, N, I), values(T, N, H, seed=4)
    _, _, tape = layer.forward(x)
    expected = np.linalg.norm(layer.backward(tape, dy, per_step=True).h[0], axis=2).mean(axis=1)[::-1]
    np.testing.assert_allclose(gradient_flow(layer, x, dy=dy).norms["l0"], expected)
    pair = rnnfast.Bidirectional(layer, merge=None)
    np.testing.assert_allclose(gradient_flow(pair, x, dy=(dy, None)).norms["forward.l0"], expected)


def test_layouts_give_the_same(variant):
    options = {"num_layers": 2, "bidirectional": True}
    plain, first = layer_of(variant, **options), layer_of(variant, batch_first=True, **options)
    x = values(T, 1, I)
    expected = gradient_flow(plain, x)
    plain.freeze()
    for flow in (gradient_flow(first, x.swapaxes(0, 1)), gradient_flow(plain, x[:, 0]), gradient_flow(first, x[:, 0])):
        for name in expected.norms:
            assert_same_flow(flow, name, expected, name)


def test_float32_is_measured_to_its_rounding(variant):
    x = values(T, N, I)
    wide, narrow = (gradient_flow(layer_of(variant, dtype=dtype), x) for dtype in (np.float64, np.float32))
    np.testing.assert_allclose(narrow.norms["l0"], wide.norms["l0"], rtol=1e-4)
    np.testing.assert_allclose(narrow.singular_values["l0"], wide.singular_values["l0"], rtol=1e-5)
    assert narrow.norms["l0"].dtype == np.float64


def test_long_batches_are_taken_in_parts(monkeypatch):
    layer, x = layer_of("lstm"), values(T, N, I)
    expected = gradient_flow(layer, x)
    monkeypatch.setattr("rnnfast.diagnostics._MOST", 500)
    assert_same_flow(gradient_flow(layer, x), "l0", expected)


@pytest.mark.parametrize("kind", ["layer", "pair"])
def test_dropout_is_off_and_the_layer_is_unchanged(kind):
    def build(dropout):
        layer = rnnfast.GRU(I, H, 2, dropout=dropout, rng=0, dtype=np.float64)
        return (layer, rnnfast.Bidirectional(layer)) if kind == "pair" else (layer, layer)

    (layer, measured), (_, without) = build(0.5), build(0.0)
    before, drawn = layer.state_dict(), str(layer._rng.bit_generator.state)
    flow, expected = gradient_flow(measured, values(T, N, I)), gradient_flow(without, values(T, N, I))
    for name in expected.norms:
        np.testing.assert_array_equal(flow.norms[name], expected.norms[name])
    assert layer.dropout == 0.5
    assert str(layer._rng.bit_generator.state) == drawn
    assert all((array == before[name]).all() for name, array in layer.parameters.items())
    assert "dropout=0.5" in repr(flow)


def test_saturation_of_handmade_gates():
    lstm = rnnfast.LSTM(1, 4, dtype=np.float64, rng=0)
    for array in lstm.parameters.values():
        array[...] = 0
    i, f, _, o = np.split(lstm.parameters["bias_ih_l0"], 4)  # views
    i[...] = [-3, 3, 0, 0]  # sigmoid(3) = 0.9526, sigmoid(2.9) = 0.9478
    f[...] = [3, 3, 3, 2.9]
    o[...] = [-3, -2.9, -2.9, -2.9]
    saturation = gradient_flow(lstm, np.zeros((T, N, 1))).saturation["l0"]
    assert saturation == {"i": (0.25, 0.25), "f": (0, 0.75), "o": (0.25, 0)}


@pytest.mark.parametrize("variant", ["gru", "gru_reset_before"])
def test_saturation_counts_steps_and_rows(variant):
    gru = make_layer(variant, 1, 2, dtype=np.float64)
    for array in gru.parameters.values():
        array[...] = 0
    r, z, _ = np.split(gru.parameters["weight_ih_l0"], 3)
    r[...], z[...] = 1, [[0], [-1]]
    x = np.zeros((4, 5, 1))
    x[0, :2], x[1, 0] = 10, -10
    saturation = gradient_flow(gru, x).saturation["l0"]
    assert saturation == {"r": (0.05, 0.1), "z": (0.05, 0.025)}


def test_rnn_has_no_gates():
    assert gradient_flow(layer_of("rnn_tanh"), values(T, N, I)).saturation == {"l0": {}}


def test_without_jacobians():
    flow = gradient_flow(layer_of("lstm"), values(T, N, I), jacobians=False)
    assert flow.singular_values == flow.state_singular_values == {}
    assert "singular" not in repr(flow)
    assert set(flow.saturation["l0"]) == {"i", "f", "o"}


def test_repr_is_a_table():
    pair = rnnfast.Bidirectional(layer_of("lstm"), layer_of("gru"))
    head, columns, *rows = repr(gradient_flow(pair, values(T, N, I))).splitlines()
    assert head.startswith("Gradient flow of Bidirectional(LSTM(4, 5, dtype='float64')")
    assert columns.split("  ")[-1] == "gates closed / open"
    assert [row.split()[0] for row in rows] == ["forward.l0", "backward.l0"]
    assert all(row.split()[1] == "2.24" for row in rows)
    single = repr(gradient_flow(layer_of("rnn_tanh"), values(1, N, I)))
    assert single.splitlines()[-1].split()[3] == "nan"


@pytest.mark.parametrize(
    ("layer", "x", "error", "message"),
    [
        (rnnfast.Linear(4, 5), values(T, N, I), TypeError, "layer must be a recurrent layer or .* got Linear"),
        (rnnfast.RNN(4, 5, clip=1.0), values(T, N, I), ValueError, r"layer must not use .* RNN\(4, 5, clip=1.0\)"),
        (rnnfast.LSTM(4, 5, peepholes=True), values(T, N, I), ValueError, "must not use the options activations"),
        (
            rnnfast.Bidirectional(rnnfast.GRU(4, 5), rnnfast.LSTM(4, 5, coupled=True)),
            values(T, N, I),
            ValueError,
            "must not use the options activations",
        ),
        (rnnfast.RNN(4, 5), values(T, 0, I), ValueError, r"x must have at least one row, got shape \(6, 0, 4\)"),
        (rnnfast.RNN(4, 5), values(T, N, 3), ValueError, "x has 3 features"),
        (rnnfast.LSTM(4, 5), values(T, N, I) * np.nan, ValueError, "x must be finite"),
    ],
)
def test_gradient_flow_rejects_what_it_cannot_measure(layer, x, error, message):
    with pytest.raises(error, match=message):
        gradient_flow(layer, x)


def test_parameters_that_are_not_finite():
    layer = rnnfast.RNN(4, 5)
    layer.parameters["bias_ih_l0"][0] = np.nan
    with pytest.raises(ValueError, match="y is not finite"):
        gradient_flow(layer, values(T, N, I))


def test_jacobians_is_a_flag():
    with pytest.raises(TypeError, match="jacobians must be True or False"):
        gradient_flow(layer_of("gru"), values(T, N, I), jacobians="no")


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_plot_of_one_flow(pyplot):
    flow = gradient_flow(layer_of("lstm", num_layers=2, bidirectional=True), values(T, N, I))
    axes = plot_gradient_flow(flow)
    assert [line.get_label() for line in axes.lines] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(flow.norms)
    for line, norms in zip(axes.lines, flow.norms.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(T))
        np.testing.assert_array_equal(line.get_ydata(), norms)
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "lag (steps before the loss)"
    assert axes.get_ylabel() == "norm of dL/dh"
    assert axes.figure.number in pyplot.get_fignums()


def test_plot_of_named_flows_on_given_axes(pyplot):
    _, given = pyplot.subplots()
    x = values(T, N, I)
    flows = {"RNN": gradient_flow(layer_of("rnn_tanh"), x), "stack": gradient_flow(layer_of("gru", num_layers=2), x)}
    assert plot_gradient_flow(flows, given) is given
    assert [line.get_label() for line in given.lines] == ["RNN", "stack l0", "stack l1"]


def test_plot_ends_where_the_gradient_vanishes(pyplot):
    layer = rnnfast.RNN(I, H, bias=False, rng=0)
    layer.parameters["weight_hh_l0"][...] = 0
    axes = plot_gradient_flow(gradient_flow(layer, values(T, N, I)))
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [False] + [True] * (T - 1)
    axes.figure.canvas.draw()
    assert pyplot.get_fignums()


def test_plot_takes_flows_alone():
    with pytest.raises(ValueError, match="at least one GradientFlow"):
        plot_gradient_flow({})
    with pytest.raises(TypeError, match="must be a GradientFlow, or a mapping of names to them, got list"):
        plot_gradient_flow([1])


def test_plot_takes_one_axes(pyplot):
    _, axes = pyplot.subplots(1, 2)
    flow = gradient_flow(rnnfast.GRU(4, 5), values(T, N, I))
    with pytest.raises(TypeError, match="ax must be a matplotlib Axes, got ndarray"):
        plot_gradient_flow(flow, axes)
    with pytest.raises(TypeError, match="got int under 'a'"):
        plot_gradient_flow({"a": 1})


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    flow = gradient_flow(layer_of("gru"), values(T, N, I))
    assert isinstance(flow, GradientFlow)
    with pytest.raises(ImportError, match=r"pip install 'rnnfast\[plot\]'"):
        plot_gradient_flow(flow)
