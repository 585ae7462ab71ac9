"""Reports on weights in fewer bytes, and the choice of a mode."""

import os
import re

import numpy as np
import pytest

import rnnfast
from rnnfast import narrow
from rnnfast.quantization import MODES, choose, report

T, N, I, H = 6, 3, 5, 8
KINDS = ["bfloat16", "int8"]


def steps(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = steps(T, N, I)


def model_of():
    gru = rnnfast.GRU(4, H, 2, bidirectional=True, rng=1)
    return rnnfast.Sequential(rnnfast.Embedding(9, 4, rng=0), gru, rnnfast.Linear(2 * H, 3, rng=2))


CASES = {
    "LSTM": (lambda: rnnfast.LSTM(I, H, proj_size=4, rng=0), X),
    "batch_first": (lambda: rnnfast.RNN(I, H, batch_first=True, rng=0), X),
    "unbatched": (lambda: rnnfast.GRU(I, H, rng=0), X[:, 0]),
    "Bidirectional": (lambda: rnnfast.Bidirectional(rnnfast.GRU(I, H, rng=0), merge=None), X),
    "Linear": (lambda: rnnfast.Linear(I, H, rng=0), X),
    "Embedding": (lambda: rnnfast.Embedding(9, H, rng=0), np.arange(6).reshape(3, 2)),
    "Sequential": (model_of, np.random.default_rng(0).integers(0, 9, (T, N))),
}


def rounded(layer, kind, rows=slice(None), names=None):
    """The state_dict, with some rows of some weights rounded."""
    arrays = layer.state_dict()
    for name in names or [name for name in arrays if narrow.is_matrix(name)]:
        arrays[name][rows] = narrow.decode(kind, narrow.encode(kind, arrays[name][rows]))
    return arrays


def apart(one, other):
    """The size of the difference of arrays, which may be in tuples, up to the rounding of float32."""
    first, second = (np.concatenate([np.ravel(array) for array in flattened(value)]) for value in (one, other))
    difference = first.astype(float) - second
    return pytest.approx((abs(difference).max(), np.sqrt(np.mean(difference**2))), abs=5e-7)


def flattened(value):
    return [array for one in value for array in flattened(one)] if isinstance(value, tuple) else [value]


def without_state(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs, None)


@pytest.mark.parametrize("case", CASES)
def test_errors_are_those_of_rounded_parameters(case):
    make, x = CASES[case]
    layer, other = make(), make()
    found = report(layer, x)
    y, state = without_state(layer(x))
    assert list(found.modes) == ["float32", *KINDS, "int8 products"]
    assert found.modes["float32"].y == (0, 0)
    for kind in KINDS:
        mode = found.modes[kind]
        other.load_state_dict(rounded(layer, kind))
        rounded_y, rounded_state = without_state(other(x))
        assert mode.y == apart(y, rounded_y)
        assert mode.y.largest > 0
        assert mode.state is None if state is None else mode.state == apart(state, rounded_state)
        assert list(mode.parts.values()) == sorted(mode.parts.values(), key=lambda size: -size.rms)
        assert all(size.largest > 0 for size in mode.parts.values())


@pytest.mark.parametrize("case", CASES)
def test_errors_of_products_of_integers(case):
    make, x = CASES[case]
    layer, other = make(), make()
    mode = report(layer, x).modes["int8 products"]
    other.freeze("int8", "int8")
    (y, state), (other_y, other_state) = without_state(layer(x)), without_state(other(x))
    assert mode.y == apart(y, other_y)
    assert mode.state is None if state is None else mode.state == apart(state, other_state)
    assert mode.parts == {}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_the_gates_of_each_layer(kind):
    layer, other = (rnnfast.LSTM(I, H, 2, proj_size=4, rng=0) for _ in range(2))
    parts = report(layer, X).modes[kind].parts
    assert sorted(parts) == sorted(f"l{k} {part}" for k in (0, 1) for part in ("i", "f", "g", "o", "projection"))
    other.load_state_dict(rounded(layer, kind, slice(2 * H, 3 * H), ["weight_ih_l1", "weight_hh_l1"]))
    assert parts["l1 g"] == apart(layer(X)[0], other(X)[0])
    other.load_state_dict(rounded(layer, kind, slice(None), ["weight_hr_l0"]))
    assert parts["l0 projection"] == apart(layer(X)[0], other(X)[0])


def test_parts_of_a_model_have_the_names_of_its_parameters():
    make, x = CASES["Sequential"]
    names = [f"1.l{k}{way} {gate}" for k in (0, 1) for way in ("", "_reverse") for gate in "rzn"]
    assert sorted(report(make(), x).modes["bfloat16"].parts) == sorted(["0.weight", "2.weight", *names])


@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_does_not_count(batch_first):
    layer = rnnfast.Sequential(rnnfast.GRU(I, H, batch_first=batch_first, rng=0), rnnfast.Linear(H, 2, rng=1))
    lengths = [2, 6, 0]
    x = X.copy()
    x[2:, 0] = x[:, 2] = np.nan
    found = report(layer, x.swapaxes(0, 1) if batch_first else x, lengths)
    single, readout = rnnfast.GRU(I, H, rng=0), layer[1]
    ys = np.concatenate([readout(single(X[:length, n])[0]) for n, length in enumerate(lengths) if length])
    layer.freeze("int8")
    narrow_gru = rnnfast.GRU(I, H, rng=0)
    narrow_gru.freeze("int8")
    others = np.concatenate([layer[1](narrow_gru(X[:length, n])[0]) for n, length in enumerate(lengths) if length])
    assert found.modes["int8"].y == apart(ys, others)
    assert found.y == apart(ys, np.zeros_like(ys))


def test_bytes_are_those_of_the_arrays_in_a_file(tmp_path):
    layer = rnnfast.LSTM(40, 64, rng=0)
    headers = {}
    for kind, mode in report(layer, steps(2, 1, 40)).modes.items():
        layer.freeze(*MODES[kind])
        layer.save(tmp_path / kind)
        headers[kind] = os.path.getsize(tmp_path / kind) - mode.bytes
    assert 0 <= headers.pop("int8 products") - headers["int8"] < 100  # a longer name for the kind of each weight
    assert all(0 <= size < 3000 for size in headers.values())


def test_times_are_of_calls_and_of_streams():
    for case in ("LSTM", "batch_first", "unbatched"):
        make, x = CASES[case]
        assert all(mode.seconds > 0 and mode.stream_seconds > 0 for mode in report(make(), x).modes.values())
    for case in ("Bidirectional", "Linear", "Sequential"):  # the latter has a bidirectional layer
        make, x = CASES[case]
        assert {mode.stream_seconds for mode in report(make(), x).modes.values()} == {None}


def test_models_that_only_take_x_have_no_stream():
    class Model(rnnfast.Model):
        def __init__(self):
            self.gru = rnnfast.GRU(I, H, rng=0)

        def call(self, x):
            return self.gru(x)[0]

    mode = report(Model(), X).modes["int8"]
    assert (mode.state, mode.stream_seconds) == (None, None)
    assert next(iter(mode.parts)).startswith("gru.l0 ")


def test_the_report_is_a_table():
    found = report(rnnfast.LSTM(I, H, rng=0), X)
    lines = str(found).splitlines()
    assert lines[0] == "Weights of LSTM(5, 8) in fewer bytes, x of shape (6, 3, 5)"
    cells = [re.split(" {2,}", line)[:2] for line in lines[2:6]]
    assert cells == [[name, str(mode.bytes)] for name, mode in found.modes.items()]
    assert lines[-1].split()[1:3] == next(iter(found.modes["int8"].parts)).split()
    columns = [line.index(str(mode.bytes)) for line, mode in zip(lines[2:6], found.modes.values(), strict=True)]
    assert columns == [lines[1].index("bytes")] * 4


@pytest.mark.parametrize("call", [report, lambda *given: choose(*given[:2], 0.1, *given[2:])], ids=["report", "choose"])
@pytest.mark.parametrize("frozen", [None, "float32", "int8"])
def test_the_layer_is_unchanged(call, frozen):
    layer = rnnfast.LSTM(I, H, rng=0)
    if frozen:
        layer.freeze(frozen)
    before, y = layer.state_dict(), layer(X)[0]
    call(layer, X, [6, 4, 2])
    assert all(np.array_equal(before[name], array) for name, array in layer.parameters.items())
    assert np.array_equal(layer(X)[0], y)
    assert all(array.flags.writeable != bool(frozen) for array in layer.parameters.values())


def test_a_frozen_layer_is_compared_with_its_float32_parameters():
    layer = rnnfast.GRU(I, H, rng=0)
    before = report(layer, X)
    layer.freeze("int8")
    after = report(layer, X)
    assert [mode.y for mode in after.modes.values()] == [mode.y for mode in before.modes.values()]
    assert after.modes["bfloat16"].parts == before.modes["bfloat16"].parts


def test_choose_takes_the_fewest_bytes_within_the_tolerance():
    layer = rnnfast.LSTM(40, H, rng=0)
    x = steps(T, N, 40)
    errors = {kind: report(layer, x).modes[kind].y.largest for kind in KINDS}
    assert errors["bfloat16"] < errors["int8"]
    assert choose(layer, x, errors["int8"]) == "int8"
    assert choose(layer, x, np.nextafter(errors["int8"], 0)) == "bfloat16"
    assert choose(layer, x, np.nextafter(errors["bfloat16"], 0)) == "float32"
    assert choose(layer, x, 0) == "float32"
    assert layer._kind() is None


def test_choose_knows_that_scales_take_bytes():
    assert choose(rnnfast.Linear(1, 8, rng=0), steps(4, 1), 1.0) == "bfloat16"


def infinite():
    layer = rnnfast.GRU(I, H, rng=0)
    layer.parameters["weight_hh_l0"][3, 1] = np.inf
    return layer


def infinite_bias():
    layer = rnnfast.Linear(I, H, rng=0)
    layer.parameters["bias"][3] = np.nan
    return layer


ERRORS = {
    "no layer": (lambda: np.ones(3), X, None, TypeError, "layer must be a layer or model of rnnfast, got ndarray"),
    "float64": (lambda: rnnfast.GRU(I, H, dtype=np.float64), X, None, ValueError, "this GRU has dtype float64"),
    "infinite": (infinite, X, None, ValueError, "weight_hh_l0 must be finite"),
    "infinite bias": (infinite_bias, X, None, ValueError, "y is not finite"),
    "no weights": (lambda: rnnfast.Sequential(rnnfast.LayerNorm(I)), X, None, ValueError, "must have weights"),
    "no rows": (lambda: rnnfast.GRU(I, H), X[:, :0], None, ValueError, "at least one valid step"),
    "no steps": (lambda: rnnfast.GRU(I, H), X, [0] * N, ValueError, "at least one valid step"),
    "lengths": (lambda: rnnfast.Linear(I, H), X, [1] * N, TypeError, "lengths .* not by Linear"),
    "shape": (lambda: rnnfast.GRU(I + 1, H), X, None, ValueError, "x"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    make, x, lengths, error, match = ERRORS[case]
    layer = make()
    with pytest.raises(error, match=match):
        report(layer, x, lengths)
    with pytest.raises(error, match=match):
        choose(layer, x, 0.1, lengths)


@pytest.mark.parametrize(("tolerance", "error"), [(-0.1, ValueError), (np.nan, ValueError), ("0.1", TypeError)])
def test_tolerance_must_be_a_number_from_0(tolerance, error):
    with pytest.raises(error, match="tolerance"):
        choose(rnnfast.GRU(I, H), X, tolerance)
