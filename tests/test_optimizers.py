"""Optimizers and the clipping of gradients against NumPy and torch; saved and resumed runs."""

import io
import math

import numpy as np
import pytest
from support.compare import assert_same_bits

from rnnfast import training

DTYPES = [np.float32, np.float64]
OPTIMIZERS = {
    "SGD": lambda parameters: training.SGD(parameters, lr=0.1),
    "SGD with momentum": lambda parameters: training.SGD(parameters, lr=0.1, momentum=0.9),
    "Adam": lambda parameters: training.Adam(parameters, lr=0.1, betas=(0.8, 0.95), eps=1e-6),
}


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
    theirs = {
        "SGD": lambda values: torch.optim.SGD(values, lr=0.1),
        "SGD with momentum": lambda values: torch.optim.SGD(values, lr=0.1, momentum=0.9),
        "Adam": lambda values: torch.optim.Adam(values, lr=0.1, betas=(0.8, 0.95), eps=1e-6),
    }[name](list(tensors.values()))
    for step in range(20):
        if step == 10:
            ours.lr = theirs.param_groups[0]["lr"] = 0.03
        gradients = arrays(rng, dtype)
        for key, tensor in tensors.items():
            tensor.grad = torch.from_numpy(gradients[key])
        ours.step(gradients)
        theirs.step()
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
        (TypeError, "gradients must be a mapping from names to arrays, got a list", lambda g: [g]),
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
        (TypeError, "parameters must be a mapping from names to arrays, got a list", lambda _: training.Adam([1.0])),
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
    assert repr(training.SGD(parameters, lr=0.1, momentum=0.9)) == "SGD(lr=0.1, momentum=0.9)"
    assert repr(training.Adam(parameters)) == "Adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08)"


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
        (TypeError, "gradients must be a mapping", lambda g: list(g.values()), 1.0),
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
