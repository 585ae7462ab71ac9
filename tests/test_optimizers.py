"""Optimizers and the clipping of gradients against NumPy and torch; saved and resumed runs."""

import io
import math
import pickle
from functools import partial

import numpy as np
import pytest
from support.compare import assert_same_bits

import rnnfast
from rnnfast import training

DTYPES = [np.float32, np.float64]
KINDS = {  # the class, and options that it shares with torch
    "SGD": ("SGD", {}),
    "SGD with momentum": ("SGD", {"momentum": 0.9}),
    "SGD with decay": ("SGD", {"weight_decay": 0.3}),
    "SGD with Nesterov momentum": ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3}),
    "Adam": ("Adam", {"betas": (0.8, 0.95), "eps": 1e-6}),
    "Adam with decay": ("Adam", {"weight_decay": 0.3}),
    "AdamW": ("AdamW", {}),
    "AdamW with decay": ("AdamW", {"betas": (0.8, 0.95), "weight_decay": 0.3}),
    "RMSprop": ("RMSprop", {"alpha": 0.9, "eps": 1e-6}),
    "RMSprop with momentum": ("RMSprop", {"momentum": 0.9, "weight_decay": 0.3}),
    "RMSprop, centered": ("RMSprop", {"centered": True, "alpha": 0.8}),
    "RMSprop with all": ("RMSprop", {"centered": True, "momentum": 0.5, "weight_decay": 0.3, "alpha": 0.8}),
}
OPTIMIZERS = {name: partial(getattr(training, kind), lr=0.1, **options) for name, (kind, options) in KINDS.items()}


def arrays(rng, dtype=np.float64):
    shapes = {"weight": (3, 4), "bias": (3,), "scale": (), "empty": (0, 2)}
    return {name: np.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def copies(mapping):
    return {name: array.copy() for name, array in mapping.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_optimizers_agree_with_torch(torch, name, dtype):
    rng = np.random.default_rng(7)
    parameters = arrays(rng, dtype)
    ours = OPTIMIZERS[name](parameters)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in parameters.items()}
    kind, options = KINDS[name]
    theirs = getattr(torch.optim, kind)(list(tensors.values()), lr=0.1, **options)
    for step in range(20):
        if step == 10:
            ours.lr = theirs.param_groups[0]["lr"] = 0.03
        gradients = arrays(rng, dtype)
        for key, tensor in tensors.items():
            tensor.grad = torch.from_numpy(gradients[key])
        ours.step(gradients)
        theirs.step()
    assert {key.split(".")[0] for key in ours.state_dict()} == {"step", *theirs.state_dict()["state"].get(0, {})}
    for key, tensor in tensors.items():
        np.testing.assert_allclose(parameters[key], tensor.numpy(), rtol=0, atol=100 * np.finfo(dtype).eps, err_msg=key)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_give_the_same_bits_in_any_layout(name):
    """Arrays of several chunks, in C and Fortran order and with gaps, with gradients in any order."""
    rng = np.random.default_rng(8)
    start, gradient = rng.normal(size=(2, 300, 301)).astype(np.float32)
    plain = start.copy()
    layouts = [
        (start.copy(), gradient.copy(order="F")),
        (start.copy(order="F"), gradient),
        (np.repeat(start, 2, axis=1)[:, ::2], gradient[::-1].copy()[::-1]),
        (start.copy(), gradient.astype(np.float64)),
    ]
    optimizer = OPTIMIZERS[name]({"a": plain})
    for _ in range(3):
        optimizer.step({"a": gradient})
    assert (plain != start).all()
    for parameter, strided in layouts:
        before = strided.copy()
        optimizer = OPTIMIZERS[name]({"a": parameter})
        for _ in range(3):
            optimizer.step({"a": strided})
        np.testing.assert_array_equal(parameter, plain)
        np.testing.assert_array_equal(strided, before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_run_has_the_same_losses(name):
    rng = np.random.default_rng(9)
    parameters = arrays(rng, np.float32)
    steps = [arrays(rng, np.float32) for _ in range(8)]
    optimizer = OPTIMIZERS[name](parameters)
    for gradients in steps[:4]:
        optimizer.step(gradients)
    file = io.BytesIO()
    np.savez(file, **optimizer.state_dict())
    resumed = copies(parameters)
    for gradients in steps[4:]:
        optimizer.step(gradients)

    file.seek(0)
    other = OPTIMIZERS[name](resumed)
    with np.load(file) as saved:
        other.load_state_dict(saved)
    for gradients in steps[4:]:
        other.step(gradients)
    assert_same_bits(resumed, parameters)
    assert_same_bits(other.state_dict(), optimizer.state_dict())


def test_state_dict_is_a_copy_under_torchs_names():
    parameters = {"a": np.ones(2), "b": np.ones(3)}
    adam = training.Adam(parameters)
    adam.step(copies(parameters))
    state = adam.state_dict()
    assert list(state) == ["step", "exp_avg.a", "exp_avg.b", "exp_avg_sq.a", "exp_avg_sq.b"]
    assert state["step"] == 1
    kept = copies(state)
    adam.load_state_dict(state)
    adam.step(copies(parameters))
    assert_same_bits(state, kept)
    assert list(training.SGD(parameters, lr=0.1).state_dict()) == ["step"]
    assert list(training.SGD(parameters, lr=0.1, momentum=0.5).state_dict()) == [
        "step",
        "momentum_buffer.a",
        "momentum_buffer.b",
    ]


def test_the_state_of_a_fresh_optimizer_can_be_loaded():
    """A fresh state can be restored after steps, which it forgets."""
    parameters = {"a": np.ones(2)}
    adam = training.Adam(parameters)
    fresh = adam.state_dict()
    adam.step(copies(parameters))
    adam.load_state_dict(fresh)
    assert_same_bits(adam.state_dict(), fresh)


def read_only(array):
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, "gradients must be a mapping from names to arrays, .* got a set", lambda g: set(g)),
        (ValueError, "names weight, .*, but it lacks bias, .* and also has 0.bias", lambda g: [g]),
        (
            ValueError,
            r"gradients\['weight'\] and gradients\['bias'\] must not share memory",
            lambda g: {**g, "bias": g["weight"][:, 0]},
        ),
        (TypeError, r"gradients\['bias'\] must be a NumPy array .* got a list", lambda g: {**g, "bias": [1.0] * 3}),
        (TypeError, r"gradients\['bias'\] .* got an array of int", lambda g: {**g, "bias": g["bias"].astype(int)}),
        (TypeError, r"gradients\['bias'\] .* got a NoneType", lambda g: {**g, "bias": None}),
        (
            ValueError,
            "names weight, bias, scale, empty, but it lacks weight$",
            lambda g: {k: g[k] for k in list(g)[1:]},
        ),
        (ValueError, "names weight, bias, scale, empty, but it also has more$", lambda g: {**g, "more": g["bias"]}),
        (
            ValueError,
            r"gradients\['bias'\] must have shape \(3,\), .* \(1, 3\)",
            lambda g: {**g, "bias": g["bias"][None]},
        ),
    ],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_refused_step_changes_nothing(name, error, words, change):
    rng = np.random.default_rng(10)
    parameters, gradients = arrays(rng), arrays(rng)
    optimizer = OPTIMIZERS[name](parameters)
    optimizer.step(gradients)
    before, state = copies(parameters), optimizer.state_dict()
    with pytest.raises(error, match=words):
        optimizer.step(change(gradients))
    assert_same_bits(parameters, before)
    assert_same_bits(optimizer.state_dict(), state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_parameter_is_refused_until_it_is_writeable_again(name):
    rng = np.random.default_rng(11)
    parameters, gradients = arrays(rng), arrays(rng)
    optimizer = OPTIMIZERS[name](parameters)
    before, state = copies(parameters), optimizer.state_dict()
    parameters["scale"].setflags(write=False)
    with pytest.raises(ValueError, match=r"parameters\['scale'\] must be .* read-only .*frozen"):
        optimizer.step(gradients)
    assert_same_bits(parameters, before)
    assert_same_bits(optimizer.state_dict(), state)
    parameters["scale"].setflags(write=True)
    optimizer.step({name: read_only(gradient) for name, gradient in gradients.items()})
    assert parameters["scale"] != before["scale"]


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, "arrays must be a mapping", lambda s: list(s.items())),
        (ValueError, "arrays must have the names step, .* but it lacks step$", lambda s: {"exp_avg.a": s["exp_avg.a"]}),
        (ValueError, "but it also has b$", lambda s: {**s, "b": s["step"]}),
        (ValueError, r"arrays\['exp_avg.a'\] must have shape \(2,\)", lambda s: {**s, "exp_avg.a": np.ones(3)}),
        (ValueError, r"arrays\['step'\] must have shape \(\)", lambda s: {**s, "step": np.ones(1, int)}),
        (TypeError, r"arrays\['step'\] must be an integer", lambda s: {**s, "step": np.array(1.0)}),
        (ValueError, r"arrays\['step'\] must be at least 0, got -1", lambda s: {**s, "step": np.array(-1)}),
        (TypeError, r"arrays\['exp_avg.a'\] .* array of complex", lambda s: {**s, "exp_avg.a": np.ones(2, complex)}),
    ],
)
def test_a_refused_state_changes_nothing(error, words, change):
    adam = training.Adam({"a": np.ones(2)})
    adam.step({"a": np.ones(2)})
    state = adam.state_dict()
    other = {"step": np.array(7), "exp_avg.a": np.full(2, 3.0), "exp_avg_sq.a": np.full(2, 4.0)}
    changed = change(other)
    if isinstance(changed, dict) and len(changed) == 1:
        words = words.replace("lacks step", "lacks exp_avg_sq.a, step")
    with pytest.raises(error, match=words):
        adam.load_state_dict(changed)
    assert_same_bits(adam.state_dict(), state)


@pytest.mark.parametrize(
    ("error", "words", "make"),
    [
        (TypeError, r"parameters\[0\] must be a mapping .* got a float", lambda _: training.Adam([1.0])),
        (ValueError, "nesterov=True needs a momentum above 0", lambda p: training.SGD(p, 0.1, nesterov=True)),
        (TypeError, "nesterov must be True or False", lambda p: training.SGD(p, 0.1, 0.9, nesterov=1)),
        (ValueError, "weight_decay must be at least 0", lambda p: training.AdamW(p, weight_decay=-1)),
        (ValueError, "alpha must be at least 0 and below 1", lambda p: training.RMSprop(p, alpha=1)),
        (TypeError, r"parameters\['a'\] .* array of int64", lambda _: training.Adam({"a": np.ones(2, np.int64)})),
        (ValueError, "lr must be at least 0, got -1", lambda p: training.Adam(p, lr=-1)),
        (ValueError, "lr must be at least 0, got nan", lambda p: training.SGD(p, lr=math.nan)),
        (TypeError, "lr must be a number, got '0.1'", lambda p: training.SGD(p, lr="0.1")),
        (ValueError, "momentum must be at least 0 and below 1, got 1", lambda p: training.SGD(p, 0.1, momentum=1)),
        (ValueError, r"betas\[1\] must be at least 0 and below 1", lambda p: training.Adam(p, betas=(0.9, 1.0))),
        (ValueError, r"betas\[0\] must be at least 0 and below 1", lambda p: training.Adam(p, betas=(1.0, 0.9))),
        (TypeError, "betas must be a pair of numbers, got 0.9", lambda p: training.Adam(p, betas=0.9)),
        (ValueError, "eps must be at least 0", lambda p: training.Adam(p, eps=-1e-8)),
    ],
)
def test_optimizers_refuse_options(error, words, make):
    with pytest.raises(error, match=words):
        make({"a": np.ones(2)})


def test_repr_shows_the_options():
    parameters = {"a": np.ones(2)}
    sgd = training.SGD(parameters, lr=0.1, momentum=0.9)
    assert repr(sgd) == "SGD(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)"
    adam = training.AdamW(parameters)
    assert repr(adam) == "AdamW(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01)"


def test_pickles_from_before_weight_decay_continue():
    for name in ("SGD with momentum", "Adam"):
        rng = np.random.default_rng(12)
        parameters, optimizer = arrays(rng), None
        optimizer = OPTIMIZERS[name](parameters)
        gradients = arrays(rng)
        optimizer.step(gradients)
        for added in ("_weight_decay", "_nesterov"):
            vars(optimizer).pop(added, None)
        parameters, older = pickle.loads(pickle.dumps((parameters, optimizer)))
        older.step(gradients)
        optimizer.step(gradients)
        assert_same_bits(older.state_dict(), optimizer.state_dict())
        assert repr(older) == repr(optimizer)


# --- layers and lists


def stack():
    return [rnnfast.Linear(3, 4, rng=0), rnnfast.GRU(4, 4, rng=1), rnnfast.Linear(4, 2, rng=2)]


def gradients_of(layers, x):
    tapes = []
    for layer in layers:
        x, *_, tape = layer.forward(x)
        tapes.append(tape)
    found, dx = [], x
    for layer, tape in zip(layers[::-1], tapes[::-1], strict=True):
        found.insert(0, layer.backward(tape, dx))
        dx = found[0].x
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layers_and_lists_of_layers_are_their_mappings(name):
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    layers, others = stack(), stack()
    merged = {f"{k}.{key}": array for k, layer in enumerate(others) for key, array in layer.parameters.items()}
    optimizer, expected = OPTIMIZERS[name](layers), OPTIMIZERS[name](merged)
    for turn in range(3):
        found = gradients_of(layers, x)
        flat = {f"{k}.{key}": array for k, each in enumerate(found) for key, array in each.parameters.items()}
        given = [found, [dict(each.parameters) for each in found], flat][turn]
        norm = training.clip_grad_norm({key: array.copy() for key, array in flat.items()}, 0.1)
        assert training.clip_grad_norm(given, 0.1) == norm
        optimizer.step(given)
        expected.step(flat)
    assert_same_bits(optimizer.state_dict(), expected.state_dict())
    for k, layer in enumerate(layers):
        for key, array in layer.parameters.items():
            np.testing.assert_array_equal(array, merged[f"{k}.{key}"])
    single = OPTIMIZERS[name](layers[1])
    single.step(found[1])
    assert all(key.endswith("_l0") for key in single.state_dict() if key != "step")


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (ValueError, r"gradients\[1\] must have the names .* lacks bias_ih_l0$", lambda g: g[1].pop("bias_ih_l0")),
        (ValueError, r"gradients\[2\] must .* also has more$", lambda g: g[2].update(more=np.ones(3))),
        (ValueError, r"gradients\[0\]\['bias'\] must have shape \(4,\)", lambda g: g[0].update(bias=np.ones(3))),
        (TypeError, r"gradients\[0\]\['bias'\] must be a NumPy array .* list", lambda g: g[0].update(bias=[1.0])),
        (TypeError, r"gradients\[3\] must be a mapping .* NoneType", lambda g: g.append(None)),
        (ValueError, r"gradients must have the names 0.weight, .* lacks 2.bias, 2.weight$", lambda g: g.pop()),
        (ValueError, r"gradients\[2\] is gradients\[0\] again", lambda g: g.__setitem__(2, g[0])),
        (
            ValueError,
            r"gradients\['1.bias_ih_l0'\] and gradients\['1.bias_hh_l0'\] must not share memory",
            lambda g: g[1].update(bias_hh_l0=g[1]["bias_ih_l0"]),
        ),
    ],
)
def test_refused_lists_name_the_member(error, words, change):
    layers = stack()
    optimizer = training.Adam(layers)
    gradients = [{name: np.ones_like(array) for name, array in layer.parameters.items()} for layer in layers]
    change(gradients)
    before = [layer.state_dict() for layer in layers]
    with pytest.raises(error, match=words):
        optimizer.step(gradients)
    for layer, state in zip(layers, before, strict=True):
        assert_same_bits(layer.state_dict(), state)


def test_parameters_that_share_memory_are_refused():
    layers = stack()
    with pytest.raises(ValueError, match=r"parameters\[2\] is parameters\[1\] again: list each layer once"):
        training.Adam([layers[0], layers[1], layers[1]])
    both = rnnfast.Bidirectional(rnnfast.GRU(3, 4, rng=0))
    with pytest.raises(ValueError, match=r"parameters\['0.forward.weight_ih_l0'\] and parameters\['1.weight_ih_l0'\]"):
        training.Adam([both, both.forward_layer])
    base = np.arange(12.0).reshape(3, 4)
    for other in (base, base[::-1], base[1], base.reshape(-1)[11:]):
        with pytest.raises(ValueError, match=r"parameters\['a'\] and parameters\['b'\] must not share memory"):
            training.SGD({"a": base, "empty": np.zeros(0), "b": other}, lr=1)
    apart = {"even": base[:, ::2], "odd": base[:, 1::2], "empty": base[:0]}  # ranges overlap, elements do not
    training.SGD(apart, lr=1).step({name: np.ones(array.shape) for name, array in apart.items()})
    np.testing.assert_array_equal(base, np.arange(12.0).reshape(3, 4) - 1)


def test_gradients_of_layers_share_no_memory():
    for layer in (rnnfast.LSTM(3, 4, 2, rng=0), rnnfast.Bidirectional(rnnfast.GRU(3, 4, rng=0))):
        y, _, tape = layer.forward(np.ones((3, 2, 3), np.float32))
        training.Adam(layer).step(layer.backward(tape, y))


def test_a_variance_that_rounds_below_zero_does_not_become_nan():
    parameters = {"a": np.ones(1000, np.float32)}
    optimizer = training.RMSprop(parameters, lr=1e-3, alpha=0.9, centered=True, eps=1e-3)
    gradients = {"a": np.random.default_rng(0).uniform(0.5, 2, 1000).astype(np.float32)}
    for _ in range(300):
        optimizer.step(gradients)
    state = optimizer.state_dict()
    assert (state["square_avg.a"] < state["grad_avg.a"] ** 2).any()
    assert np.isfinite(parameters["a"]).all()


def numpy_step(option, parameter, gradient, moments, step):
    """A step of an optimizer in place, one NumPy operation for each operation of its equations."""
    kind = parameter.dtype.type
    if option["kind"] is training.SGD:
        change = gradient
        for buffer in moments:
            buffer *= kind(option["momentum"])
            buffer += gradient
            change = buffer
        parameter -= change * kind(option["lr"])
        return
    (m, v), (beta1, beta2) = moments, option["betas"]
    m *= kind(beta1)
    m += gradient * kind(1 - beta1)
    v *= kind(beta2)
    v += gradient * kind(1 - beta2) * gradient
    correction1, correction2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
    root = np.sqrt(v) + kind(option["eps"] * correction2)
    parameter -= m / root * kind(option["lr"] * correction2 / correction1)


ROUNDED = [
    {"kind": training.SGD, "lr": 0.1, "momentum": 0.0},
    {"kind": training.SGD, "lr": 0.1, "momentum": 0.9},
    {"kind": training.Adam, "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8},
    {"kind": training.Adam, "lr": 0.1, "betas": (0.5, 0.0), "eps": 0.1},
]


@pytest.mark.parametrize("option", ROUNDED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gradients_dtype", [np.float32, np.float64])
def test_steps_round_as_numpy_does(option, dtype, gradients_dtype, rng):
    """Parameters of any strides get the bits of the equations in NumPy."""
    base = rng.standard_normal((7, 9, 40)).astype(dtype)
    parameters = {
        "long": rng.standard_normal(1003).astype(dtype),
        "turned": base.transpose(2, 0, 1)[::2, :3],
        "backwards": base[3:, ::-1, 5:7],
        "transposed": rng.standard_normal((5, 6)).astype(dtype).T,
        "single": np.array(1.5, dtype),
        "empty": np.zeros((0, 3), dtype),
    }
    expected = {name: array.copy() for name, array in parameters.items()}
    moments = {name: [np.zeros_like(array) for _ in range(2)] for name, array in parameters.items()}
    count = 2 if option["kind"] is training.Adam else int(option["momentum"] > 0)
    optimizer = option["kind"](parameters, **{name: value for name, value in option.items() if name != "kind"})
    for step in range(1, 6):
        gradients = {
            name: np.array(rng.standard_normal(array.shape) * 10.0 ** rng.integers(-12, 4), gradients_dtype, order="F")
            for name, array in parameters.items()
        }
        optimizer.step(gradients)
        for name, array in expected.items():
            numpy_step(option, array, gradients[name].astype(dtype), moments[name][:count], step)
            assert parameters[name].tobytes() == array.tobytes(), name
    assert optimizer.state_dict()["step"] == 5


def test_a_step_without_memory_changes_nothing(monkeypatch):
    parameters = {name: np.ones(4, np.float32) for name in "ab"}
    optimizer = training.Adam(parameters)
    gradients = {"a": np.ones(4, np.float32), "b": np.ones(4)}
    optimizer.step(gradients)
    before = [{**parameters}, optimizer.state_dict()]
    before = [{name: array.tobytes() for name, array in one.items()} for one in before]
    convert = np.ascontiguousarray

    def fail(array, dtype):
        if array is gradients["b"]:
            raise MemoryError
        return convert(array, dtype)

    monkeypatch.setattr(np, "ascontiguousarray", fail)
    with pytest.raises(MemoryError):
        optimizer.step(gradients)
    after = [{name: array.tobytes() for name, array in one.items()} for one in (parameters, optimizer.state_dict())]
    assert after == before


# --- clipping


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e9, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_agrees_with_torch(torch, dtype, max_norm):
    gradients = arrays(np.random.default_rng(12), dtype)
    tensors = [torch.zeros(array.shape, dtype=torch.from_numpy(array).dtype) for array in gradients.values()]
    for tensor, array in zip(tensors, gradients.values(), strict=True):
        tensor.grad = torch.from_numpy(array.copy())
    expected = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
    tolerance = 4 * float(np.finfo(dtype).eps)
    assert training.clip_grad_norm(gradients, max_norm) == pytest.approx(expected.item(), rel=tolerance)
    for tensor, array in zip(tensors, gradients.values(), strict=True):
        np.testing.assert_allclose(array, tensor.grad.numpy(), rtol=tolerance)


def test_the_norm_is_computed_in_float64():
    """In float32 the square of 1e25 overflows, and a million small squares would each be lost beside 1."""
    assert training.clip_grad_norm({"a": np.full(4, 1e25, np.float32)}, math.inf) == pytest.approx(2e25)
    tail = np.full(10**6, 1e-4, np.float32)
    tail[0] = 1
    assert training.clip_grad_norm({"a": tail[::-1]}, math.inf) == pytest.approx(math.sqrt(1.01), rel=1e-7)


def test_clipping_keeps_small_gradients_and_shows_nan():
    gradients = {"a": np.array([0.3, 0.4]), "b": np.array([np.nan, 1.0])}
    kept = copies(gradients)
    assert math.isnan(training.clip_grad_norm(gradients, 0.1))
    assert_same_bits(gradients, kept)
    del gradients["b"], kept["b"]
    assert training.clip_grad_norm(gradients, 0.6) == pytest.approx(0.5)
    assert_same_bits(gradients, kept)
    assert training.clip_grad_norm({}, 1.0) == 0


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [(np.float32, exponent) for exponent in (-149, -140, -60, 60, 125)]
    + [(np.float64, exponent) for exponent in (-1074, -700, -520, 500, 700, 1021)],
)
def test_gradients_of_any_size_are_clipped(dtype, exponent):
    scale = 2.0**exponent
    gradients = {"a": np.array([[3.0, 0.0]]).astype(dtype) * dtype(scale), "b": np.array([4 * scale], dtype)}
    kept = copies(gradients)
    assert training.clip_grad_norm(gradients, math.inf) == 5 * scale
    assert training.clip_grad_norm(gradients, max(1.0, 10 * scale)) == 5 * scale
    assert_same_bits(gradients, kept)
    if exponent > 0:
        assert training.clip_grad_norm(gradients, 1.0) == 5 * scale
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, kept[name] / (5 * scale), rtol=4 * np.finfo(dtype).eps)


def test_gradients_whose_norm_overflows_are_clipped():
    for top, dtype in ((1.7e308, np.float64), (3e38, np.float32)):
        gradients = {"a": np.full(10_000, top, dtype), "b": np.array([1.0])}
        norm = training.clip_grad_norm(gradients, 2.0)
        assert norm == (math.inf if dtype == np.float64 else pytest.approx(100 * 3e38))
        np.testing.assert_allclose(gradients["a"], 0.02, rtol=1e-6)


@pytest.mark.parametrize(("scale", "max_norm"), [(1e300, 1e-15), (1.7e308, 1e-300), (1e200, 5e-324), (1e-300, 0.0)])
def test_a_factor_below_the_range_of_float64(scale, max_norm):
    gradients = {"a": np.full(4, scale), "b": np.full(12, scale)}
    assert training.clip_grad_norm(gradients, max_norm) == pytest.approx(4 * scale) or scale > 1e308
    np.testing.assert_allclose(gradients["b"], max_norm / 4, rtol=1e-15, atol=5e-324)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite_are_not_scaled(bad):
    gradients = {"a": np.array([1e200, bad]), "b": np.array([3.0], np.float32)}
    kept = copies(gradients)
    norm = training.clip_grad_norm(gradients, 1.0)
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
    assert_same_bits(gradients, kept)


@pytest.mark.parametrize(
    ("error", "words", "change", "max_norm"),
    [
        (TypeError, r"gradients\[0\] must be a mapping", lambda g: list(g.values()), 1.0),
        (ValueError, "must not share memory", lambda g: {**g, "b": g["a"]}, 1.0),
        (TypeError, r"gradients\['b'\] .* array of int", lambda g: {**g, "b": np.ones(2, int)}, 1.0),
        (ValueError, r"gradients\['b'\] .* read-only", lambda g: {**g, "b": read_only(np.ones(2))}, 1.0),
        (ValueError, "max_norm must be at least 0, got -1", lambda g: g, -1),
        (TypeError, "max_norm must be a number, got None", lambda g: g, None),
    ],
)
def test_refused_clipping_changes_nothing(error, words, change, max_norm):
    gradients = {"a": np.array([3.0, 4.0])}
    with pytest.raises(error, match=words):
        training.clip_grad_norm(change(gradients), max_norm)
    np.testing.assert_array_equal(gradients["a"], [3.0, 4.0])
