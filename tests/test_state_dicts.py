"""Layers built from their parameters: names and shapes determine the class and its sizes."""

import numpy as np
import pytest

import rnnfast

LAYERS = [
    rnnfast.RNN(3, 4, bias=False, rng=0),
    rnnfast.RNN(3, 4, 2, bidirectional=True, dtype=np.float64, rng=0),
    rnnfast.GRU(4, 4, 3, rng=0),
    rnnfast.GRU(3, 1, bidirectional=True, rng=0),
    rnnfast.LSTM(3, 4, rng=0),
    rnnfast.LSTM(1, 1, 2, bias=False, dtype=np.float64, rng=0),
    rnnfast.LSTM(3, 5, 2, proj_size=2, bidirectional=True, rng=0),
    rnnfast.LSTM(3, 5, proj_size=2, peepholes=True, bias=False, rng=0),
    rnnfast.Linear(3, 4, rng=0),
    rnnfast.Bidirectional(rnnfast.LSTM(3, 4, rng=0), rnnfast.GRU(3, 2, rng=0, reverse=True)),
]
WITHIN_A_CLASS = [rnnfast.Linear(3, 4, bias=False, dtype=np.float64, rng=0), rnnfast.Embedding(5, 3, rng=0)]
LSTM = rnnfast.LSTM(3, 4, 2, rng=0).state_dict()


def assert_same(got, expected):
    assert repr(got) == repr(expected)
    assert list(got.parameters) == list(expected.parameters)
    for name, array in expected.parameters.items():
        assert got.parameters[name].dtype == array.dtype
        assert got.parameters[name].tobytes() == array.tobytes()
        assert got.parameters[name].flags.writeable
        assert not np.shares_memory(got.parameters[name], array)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_names_and_shapes_determine_a_layer(layer):
    arrays = {f"model.part.{name}": array for name, array in reversed(layer.parameters.items())}
    arrays["model.other.weight"] = object()  # not read
    assert_same(rnnfast.from_state_dict(arrays, "model.part."), layer)
    assert_same(type(layer).from_state_dict(layer.parameters), layer)


@pytest.mark.parametrize("layer", WITHIN_A_CLASS, ids=repr)
def test_the_class_is_needed(layer):
    assert_same(type(layer).from_state_dict(layer.parameters), layer)
    with pytest.raises(ValueError, match="of an Embedding, or of a Linear without bias: call"):
        rnnfast.from_state_dict({f"a.{name}": array for name, array in layer.parameters.items()}, "a.")


def test_options():
    options = {"batch_first": True, "dropout": 0.5, "activations": ["sigmoid", "tanh", "softsign"], "clip": 2.0}
    layer = rnnfast.LSTM.from_state_dict(LSTM, **options, dtype=np.float64, hidden_size=4, num_layers=2)
    expected = rnnfast.LSTM(3, 4, 2, **options, dtype=np.float64)
    expected.load_state_dict(LSTM)
    assert_same(layer, expected)
    relu = rnnfast.from_state_dict(rnnfast.RNN(2, 3).parameters, nonlinearity="relu", leak=[0.1, 0.2, 0.3])
    assert (relu.nonlinearity, relu.leak) == ("relu", (0.1, 0.2, 0.3))
    both = rnnfast.Bidirectional(rnnfast.GRU(2, 3, reset_after=False, batch_first=True, rng=0), merge="mul")
    assert_same(
        rnnfast.from_state_dict(both.parameters, merge="mul", reset_after=False, batch_first=True),
        both,
    )


def test_a_subclass_is_built():
    class Mine(rnnfast.GRU):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)

    assert type(Mine.from_state_dict(rnnfast.GRU(2, 3).parameters)) is Mine


@pytest.mark.parametrize(
    ("dtype", "expected"), [("f2", "f4"), (">f4", "f4"), (">f8", "f8"), ("f8", "f8"), ("i4", "f4")]
)
def test_dtypes(dtype, expected):
    arrays = {name: (8 * array).astype(dtype)[..., ::-1] for name, array in LSTM.items()}
    layer = rnnfast.LSTM.from_state_dict(arrays)
    assert layer.dtype == expected
    for name, array in arrays.items():
        np.testing.assert_array_equal(layer.parameters[name], array)


def test_an_npz_file(tmp_path):
    np.savez_compressed(tmp_path / "model.npz", **LSTM)
    with np.load(tmp_path / "model.npz") as arrays:
        assert_same(rnnfast.from_state_dict(arrays), rnnfast.LSTM.from_state_dict(LSTM))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_models_of_torch(torch, name):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(3, 4, 2, bidirectional=True, batch_first=True)
    model = torch.nn.ModuleDict({"encoder": theirs, "head": torch.nn.Linear(8, 2), "cell": torch.nn.GRUCell(3, 4)})
    ours = rnnfast.from_state_dict(model.state_dict(), "encoder.", batch_first=True)
    assert type(ours) is getattr(rnnfast, name)
    x = np.linspace(-1, 1, 2 * 5 * 3).reshape(2, 5, 3).astype(np.float32)
    with torch.no_grad():
        y = theirs(torch.from_numpy(x))[0]
        logits = model["head"](y)
        h = model["cell"](torch.from_numpy(x[:, 0]))
    np.testing.assert_allclose(ours(x)[0], y, atol=1e-6)
    head = rnnfast.from_state_dict(model.state_dict(), "head.")
    np.testing.assert_allclose(head(ours(x)[0]), logits, atol=1e-6)
    cell = rnnfast.from_state_dict(model.state_dict(), "cell.")
    np.testing.assert_allclose(cell(x[np.newaxis, :, 0])[0][0], h, atol=1e-6)
    with pytest.raises(TypeError, match=r"arrays\['encoder.weight_ih_l0'\] .* requires grad.*x.detach\(\)"):
        rnnfast.from_state_dict(dict(model.named_parameters()), "encoder.")


def change(**arrays):
    """The parameters of an LSTM with other arrays, or without those that are None."""
    return {name: array for name, array in {**LSTM, **arrays}.items() if array is not None}


@pytest.mark.parametrize(
    ("arrays", "options", "error", "message"),
    [
        (
            {f"a.{name}": array for name, array in LSTM.items()},
            {},
            ValueError,
            r"no 'weight_ih_l0', .*: set prefix to one of 'a\.'",
        ),
        (LSTM, {"prefix": "b."}, ValueError, r"no 'b\.weight_ih_l0', .*: set prefix to one of ''"),
        ({}, {}, ValueError, "no 'weight_ih_l0', which a layer needs .*: they have no names"),
        ({"x": 1}, {"prefix": "b."}, ValueError, r"no 'b\.weight_ih_l0', .*: they have 'x'"),
        (change(weight_hh_l0=None), {}, ValueError, "must contain a matrix weight_hh_l0"),
        (change(weight_hh_l0=np.ones(3)), {}, ValueError, r"a matrix weight_hh_l0 .* got shape \(3,\)"),
        (change(weight_hr_l0=np.ones(())), {}, ValueError, r"a matrix weight_hr_l0 .* got shape \(\)"),
        (
            change(weight_hh_l1=None, bias_hh_l0=None),
            {},
            ValueError,
            "weight_hh_l1 is missing; bias_hh_l0|bias_hh_l0 is",
        ),
        (change(weight_ih_l1=None), {}, ValueError, "weight_hh_l1 is not a parameter of this layer"),
        (change(other=np.ones(3)), {}, ValueError, "other is not a parameter"),
        (change(bias_ih_l0=None), {}, ValueError, "bias_ih_l0 is missing"),
        (change(c0_l1=np.ones(4)), {}, ValueError, "h0_l0 is missing.*; c0_l0 is missing"),
        (change(bias_ih_l1=np.ones(3)), {}, ValueError, r"bias_ih_l1 must have shape \(16,\) .* got \(3,\)"),
        (change(weight_ih_l0=np.ones((12, 3))), {}, ValueError, "imply 3 gates, but LSTM has 4"),
        (change(weight_ih_l0=np.ones((10, 3))), {}, ValueError, "imply 2.5 gates"),
        (change(weight_ih_l0=np.ones((0, 10**9))), {}, ValueError, "imply 0 gates"),
        (change(weight_hh_l0=np.ones((10**9, 0))), {}, ValueError, "imply 0 gates"),
        (LSTM, {"hidden_size": 5}, ValueError, "hidden_size=5 contradicts .* imply hidden_size=4: leave it out"),
        (LSTM, {"hidden_size": np.ones(2)}, ValueError, "contradicts"),
        (LSTM, {"source": 3}, TypeError, "unexpected keyword argument 'source'"),
        (LSTM, {"bidirectional": True}, ValueError, "bidirectional=True contradicts"),
        (LSTM, {"num_layers": 2.0}, TypeError, "num_layers must be an integer"),
        (LSTM, {"reset_after": True}, TypeError, "reset_after"),
        (LSTM, {"prefix": 3}, TypeError, "prefix must be a string, got 3"),
        (change(weight_ih_l0=np.ones((16, 3), complex)), {}, TypeError, "must hold real numbers"),
        (change(weight_ih_l0=[["a"]]), {}, ValueError, "gates"),
        (3, {}, TypeError, "arrays must be a mapping"),
    ],
)
def test_errors(arrays, options, error, message):
    with pytest.raises(error, match=message):
        rnnfast.LSTM.from_state_dict(arrays, **options)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weight_ih_l0": np.ones((10, 3)), "weight_hh_l0": np.ones((10, 5))}, r"2 gates, but layers have 1 \(RNN\), "),
        ({"a.weight_ih_l0": 0, "b.weight_ih_l0": 0}, "set prefix to one of 'a.', 'b.'"),
        ({"weight": np.ones((2, 3, 4)), "bias": np.ones(2)}, "weight must be a matrix"),
        ({"weight": np.ones((2, 3)), "bias": np.ones(3)}, r"bias must have shape \(2,\)"),
        (
            {f"forward.{name}": array for name, array in LSTM.items()},
            "both forward.weight_ih_l0 and backward.w",
        ),
        ({"a.weight": 0, "forward.b": 0, "c.forward.weight_ih_l0": 0}, "set prefix to one of 'a.', 'c.', 'c.forward.'"),
        ({"x": None}, "they have 'x'"),
    ],
)
def test_errors_without_a_class(arrays, message):
    with pytest.raises(ValueError, match=message):
        rnnfast.from_state_dict(arrays)


def test_a_bidirectional_has_two_layers():
    with pytest.raises(ValueError, match=r"no names that start with a\.forward\., .*: call rnnfast.from_state_dict"):
        rnnfast.Bidirectional.from_state_dict(LSTM, "a.")


def test_parameters_that_a_class_lacks():
    gru = rnnfast.GRU(3, 4).state_dict()
    with pytest.raises(ValueError, match="imply peepholes, which GRU does not have"):
        rnnfast.GRU.from_state_dict({**gru, "peephole_l0": np.ones((3, 4))})
    with pytest.raises(ValueError, match="weight must be a matrix"):
        rnnfast.Embedding.from_state_dict({"weight": np.ones(3)})
