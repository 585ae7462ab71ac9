"""Layers as JAX functions: the same bits, and jit, grad and vmap."""

import contextlib
import functools
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.checkout import CSRC
from support.host_calls import changed

pytest.importorskip("jax", reason="jax is not installed: pip install jax")

import jax
import jax.numpy as jnp
from jax.test_util import check_grads

import rnnfast
from rnnfast import _core
from rnnfast.backends import jax as backend
from rnnfast.layers import saving

T, N, I, H = 6, 4, 3, 5
FUNCTIONS = {rnnfast.LSTM: backend.lstm, rnnfast.GRU: backend.gru, rnnfast.RNN: backend.rnn}
LAYERS = {
    "lstm": (rnnfast.LSTM, {}),
    "lstm stack": (rnnfast.LSTM, {"num_layers": 2, "bidirectional": True}),
    "lstm projected": (rnnfast.LSTM, {"proj_size": 2, "batch_first": True}),
    "lstm peepholes": (
        rnnfast.LSTM,
        {"peepholes": True, "clip": 2.0, "activations": [("affine", 0.2, 0.5), "tanh", "elu"]},
    ),
    "gru": (rnnfast.GRU, {"reverse": True}),
    "gru reset before": (rnnfast.GRU, {"reset_after": False, "num_layers": 2, "batch_first": True}),
    "rnn": (rnnfast.RNN, {"bidirectional": True, "bias": False}),
    "rnn relu": (rnnfast.RNN, {"nonlinearity": "relu"}),
    "rnn leaky": (rnnfast.RNN, {"num_layers": 2, "bidirectional": True, "leak": [0.1, 0.2, 0.5, 0.7, 1.0]}),
}
READ = ("proj_size", "peepholes", "bias", "num_layers", "bidirectional")
FINE_LAYER = rnnfast.LSTM(I, H, rng=0)
FINE = dict(FINE_LAYER.parameters)


@contextlib.contextmanager
def x64(enabled):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", enabled)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.fixture(params=LAYERS)
def case(request, dtype):
    """A layer, its JAX function, and a batch: x and state."""
    kind, options = LAYERS[request.param]
    with x64(dtype == np.float64):
        yield case_of(kind, dtype, **options)


def case_of(kind, dtype=np.float32, *, batch_first=False, **options):
    layer = kind(I, H, batch_first=batch_first, dtype=dtype, rng=0, **options)
    function = functools.partial(
        FUNCTIONS[kind], batch_first=batch_first, **{name: options[name] for name in options if name not in READ}
    )
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, T, I) if batch_first else (T, N, I)).astype(dtype)
    _, state = layer(x)
    state = jax.tree.map(lambda member: rng.normal(size=member.shape).astype(dtype), state)
    return layer, function, x, state


def same(ours, theirs):
    """Whether two trees have the same bits."""
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert [(a.shape, a.dtype) for a in ours] == [(a.shape, a.dtype) for a in theirs]
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(ours, theirs, strict=True))


def weights(layer, x, state=None):
    """A dy and a dstate."""
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), layer(x, state))


def weighted(results, by):
    return sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(by), strict=True))


def uneven(batch_first):
    rng = np.random.default_rng(3)
    shape = (N, T) if batch_first else (T, N)
    return [
        {"lengths": np.array([4, 0, T, 1])},
        {"mask": rng.random(shape) < 0.7},
        {"mask": rng.random(shape) < 0.7, "reset": rng.random(shape) < 0.3, "zero_masked": True},
        {"reset": rng.random(shape) < 0.3, "reset_state": "zeros"},
    ]


@pytest.fixture
def through_python(monkeypatch):
    """Make every call go through Python, even those that XLA can make."""
    monkeypatch.setattr(backend, "_has_kernels", lambda: False)


# ---------------------------------------------------------------------------------------------------- without vmap


def test_values(case):
    layer, function, x, state = case
    parameters = dict(layer.parameters)
    y, last = function(x, parameters, state)
    assert isinstance(y, jax.Array)
    assert same((y, last), layer(x, state))
    assert same(function(x, parameters), layer(x))
    assert same(jax.jit(function)(x, parameters, state), layer(x, state))
    assert same(function(x[0], parameters), layer(x[0]))
    for given in uneven(layer.batch_first):
        assert same(function(x, parameters, state, **given), layer(x, state, **given))


def test_options_that_the_parameters_determine(case):
    """They can be passed, and change nothing."""
    layer, function, x, state = case
    known = ("input_size", "hidden_size", "num_layers", "proj_size", "bias", "bidirectional", "peepholes", "dtype")
    given = {name: getattr(layer, name) for name in known if name in saving.signature(type(layer))}
    assert same(function(x, dict(layer.parameters), state, **given), layer(x, state))


def test_gradients(case):
    """The gradients of x, state and parameters have the bits of the layer's."""
    layer, function, x, state = case
    for given in [{}, *uneven(layer.batch_first)]:
        by = weights(layer, x, state)
        loss = lambda x, parameters, state: weighted(function(x, parameters, state, **given), by)  # noqa: B023, E731
        _, _, tape = layer.forward(x, state, **given)
        expected = layer.backward(tape, *by)
        for taken in (jax.grad, lambda f, places: jax.jit(jax.grad(f, places))):
            dx, dparameters, dstate = taken(loss, (0, 1, 2))(x, dict(layer.parameters), state)
            assert same((dx, dparameters, dstate), (expected.x, expected.parameters, expected.state))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_by_differences(name):
    kind, options = LAYERS[name]
    with x64(True):
        layer, function, x, state = case_of(kind, np.float64, **options)
        parameters = {name: np.array(value) for name, value in layer.parameters.items()}
        check_grads(jax.jit(function), (x, parameters, state), order=1, modes=["rev"])
        loose = functools.partial(function, lengths=np.array([4, 0, T, 1]))
        check_grads(loose, (x, parameters), order=1, modes=["rev"])


def test_parts_of_a_state():
    layer, function, x, (h, c) = case_of(rnnfast.LSTM)
    parameters = dict(layer.parameters)
    for state in [(h, None), (None, c), [h, c]]:
        assert same(function(x, parameters, state), layer(x, state))
    by = weights(layer, x)
    _, _, tape = layer.forward(x, (None, c))
    loss = lambda state: weighted(function(x, parameters, state), by)  # noqa: E731
    gradient = jax.grad(loss)((None, c))
    assert gradient[0] is None
    assert same(gradient[1], layer.backward(tape, *by).state[1])


@pytest.mark.parametrize("name", ["lstm stack", "gru"])
def test_reset_states(name):
    """Their gradients, and vmap over them."""
    kind, options = LAYERS[name]
    layer, function, x, state = case_of(kind, **options)
    parameters, reset = dict(layer.parameters), uneven(layer.batch_first)[2]["reset"]
    reset_state = jax.tree.map(lambda member: member[:, ::-1] + 1, state)
    by = weights(layer, x, state)

    def run(state, reset_state):
        return function(x, parameters, state, reset=reset, reset_state=reset_state)

    _, _, tape = layer.forward(x, state, reset=reset, reset_state=reset_state)
    expected = layer.backward(tape, *by)
    found = jax.jit(jax.grad(lambda *states: weighted(run(*states), by), (0, 1)))(state, reset_state)
    assert same(found, (expected.state, expected.reset_state))
    both = jax.tree.map(lambda member: np.stack([member, 2 * member]), reset_state)
    results = jax.vmap(run, (None, 0))(state, both)
    for k in range(2):
        own = jax.tree.map(lambda a: a[k], both)  # noqa: B023
        expected = layer(x, state, reset=reset, reset_state=own)
        assert same(jax.tree.map(lambda a: a[k], results), expected)  # noqa: B023
    assert same(run(state, None), run(state, "zeros"))
    if name == "lstm stack":
        part = (reset_state[0], None)
        assert same(run(state, part), layer(x, state, reset=reset, reset_state=part))
    assert same(function(x, parameters, state, reset_state=reset_state), layer(x, state))
    with pytest.raises(ValueError, match="reset_state must be one of 'initial', 'zeros', got 'none'"):
        run(state, "none")


def test_other_dtypes():
    """x and state are converted as in the layers, and their gradients have the dtypes of x and state."""
    layer, function, x, _ = case_of(rnnfast.GRU)
    half = jnp.asarray(x, jnp.bfloat16)
    parameters = dict(layer.parameters)
    assert same(function(half, parameters), layer(np.asarray(half.astype(np.float32))))
    assert jax.grad(lambda x: function(x, parameters)[0].sum())(half).dtype == jnp.bfloat16
    ones = np.ones((T, N, I), np.int32)
    assert same(function(ones, parameters), layer(ones))


def test_a_large_batch():
    """Results large enough for the layer to reuse their memory."""
    layer = rnnfast.LSTM(64, 128, rng=0)
    x = np.random.default_rng(0).normal(size=(100, 32, 64)).astype(np.float32)
    run = jax.jit(backend.lstm)
    results = [run(x * scale, dict(layer.parameters)) for scale in np.arange(1, 5, dtype=np.float32)]
    for scale, result in zip(np.arange(1, 5, dtype=np.float32), results, strict=True):
        assert same(result, layer(x * scale))


def test_training_under_jit():
    """The whole step is compiled, lengths are traced, and the function runs in a loop of JAX."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(T, N, I)).astype(np.float32)
    target, lengths = np.tanh(x.cumsum(0).sum(2)) / 2, np.array([T, 3, 5, 2])
    there = (np.arange(T)[:, None] < lengths).astype(np.float32)
    layer = rnnfast.GRU(I, H, rng=0)

    def loss(parameters, lengths):
        y, _ = backend.gru(x, parameters, lengths=lengths)
        return jnp.sum(there * (y[:, :, 0] - target) ** 2)

    def step(parameters, _):
        value, gradients = jax.value_and_grad(loss)(parameters, jnp.asarray(lengths))
        return jax.tree.map(lambda p, g: p - 0.05 * g, parameters, gradients), value

    parameters = {name: jnp.asarray(value) for name, value in layer.parameters.items()}
    _, losses = jax.jit(lambda parameters: jax.lax.scan(step, parameters, length=150))(parameters)
    assert losses[-1] < 0.2 * losses[0]


# ------------------------------------------------------------------------------------------- without Python, in XLA

HAS_KERNELS = jax.default_backend() == "cpu" and backend._has_kernels()
direct = pytest.mark.skipif(not HAS_KERNELS, reason="this jax has no jax.ffi: XLA calls Python, not the kernels")


def operations(function, *given):
    """How often a compiled program calls each handler and Python."""
    text = jax.jit(function).lower(*given).as_text()
    names = re.findall(r"custom_call @(\w+)", text)
    return {name: names.count(name) for name in names if "rnnfast" in name or "callback" in name}


@direct
def test_both_ways(case, monkeypatch):
    """Results and gradients have the same bits whether XLA calls the kernels or Python, also without a batch axis."""
    layer, function, x, state = case
    parameters, by = dict(layer.parameters), weights(layer, x, state)
    x_row, state_row = x[0], jax.tree.map(lambda member: member[:, 0], state)
    found = []
    for way in (True, False):
        monkeypatch.setattr(backend, "_has_kernels", lambda: way)  # noqa: B023
        loss = lambda *given: weighted(function(*given), by)  # noqa: E731
        whole = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(x, parameters, state)
        row = jax.jit(lambda *given: function(*given))(x_row, parameters, state_row)
        slope = jax.grad(lambda x: function(x, parameters)[0].sum())(x_row)
        found.append((whole, row, slope))
    assert same(*found)


@direct
def test_a_gradient_computes_forward_once():
    layer, function, x, state = case_of(rnnfast.LSTM)
    parameters = dict(layer.parameters)
    run = lambda parameters, **given: function(x, parameters, state, **given)[0].sum()  # noqa: E731
    assert operations(run, parameters) == {"rnnfast_forward": 1}
    assert operations(jax.grad(run), parameters) == {"rnnfast_forward": 1, "rnnfast_backward": 1}
    uneven_ones = operations(functools.partial(jax.grad(run), lengths=np.array([4, 0, T, 1])), parameters)
    assert not any("rnnfast" in name for name in uneven_ones)
    empty = operations(lambda parameters: function(x[:, :0], parameters), parameters)
    assert not any("rnnfast" in name for name in empty)


@direct
def test_vmap_over_rows_is_one_call():
    layer, function, x, _ = case_of(rnnfast.LSTM, num_layers=2, bidirectional=True)
    mapped = jax.vmap(function, (1, None), 1)
    text = jax.jit(mapped).lower(x, dict(layer.parameters)).as_text()
    assert text.count("custom_call @rnnfast_forward") == 1
    assert "while" not in text
    assert same(jax.jit(mapped)(x, dict(layer.parameters))[0], layer(x)[0])


@direct
def test_threads():
    """Concurrent calls of one compiled program and of several."""
    layer, function = (
        rnnfast.LSTM(16, 64, bidirectional=True, rng=0),
        functools.partial(backend.lstm, bidirectional=True),
    )
    parameters = dict(layer.parameters)
    xs = np.random.default_rng(0).normal(size=(24, 200, 3, 16)).astype(np.float32)
    step = jax.jit(jax.value_and_grad(lambda x, parameters: function(x, parameters)[0].sum(), (0, 1)))
    infer = jax.jit(lambda x: function(-x, parameters))
    run = lambda x: (step(x, parameters), infer(x))  # noqa: E731
    run(xs[0])  # so that the threads do not wait for the compiler

    before = rnnfast.get_num_threads()
    rnnfast.set_num_threads(3)
    try:
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(run, xs))
    finally:
        rnnfast.set_num_threads(before)
    for x, ((_, gradients), result) in zip(xs, found, strict=True):
        y, _, tape = layer.forward(x)
        expected = layer.backward(tape, np.ones_like(y))
        assert same((gradients, result), ((expected.x, expected.parameters), layer(-x)))


FLOAT, BYTE = np.float32, np.uint8
REFUSED = [  # arguments, results or bytes of the attribute in place of those that fit
    ({0: ((T, N, I), np.int32)}, {}, {}, "argument 0 has 72 elements of XLA's type 4; expected 72 of type 11"),
    ({0: ((I,), FLOAT)}, {}, {}, "argument 0 must be x, with two or three axes"),
    ({0: ((T, 0, I), FLOAT)}, {}, {}, "x has 6 steps and 0 rows"),
    ({0: ((T, N, I + 1), FLOAT)}, {}, {}, "argument 0 has 96 elements .*; expected 72 of"),
    ({2: ((H, H), FLOAT)}, {}, {}, "argument 2 has 25 elements .*; expected 100 of"),
    ({}, {1: ((1, 1), FLOAT)}, {}, "result 1 has 1 elements"),
    ({}, {2: ((20, H), np.int32)}, {}, "result 2 has 100 elements of XLA's type 4"),
    ({}, {}, {0: 77}, f"compiled with version 77 of rnnfast's interface, this is {_core.ABI}"),
    ({}, {}, {4: ord("q")}, "compiled for q.*, which does not run here"),
    ({}, {}, None, "the attribute of a call must be an array of [0-9]+ bytes"),
]


def handle(name, arguments, results, **attributes):
    shapes = [jax.ShapeDtypeStruct(*result) for result in results]
    arrays = [np.ones(*argument) for argument in arguments]
    return jax.block_until_ready(jax.ffi.ffi_call(f"rnnfast_{name}", shapes)(*arrays, **attributes))


def what_fits(name):
    """Arguments, results and the attribute of a handler, for FINE_LAYER and X."""
    engine = FINE_LAYER.engine
    x, y, h, tape = ((T, N, I), FLOAT), ((T, N, H), FLOAT), ((1, N, H), FLOAT), ((engine.sizes(T, N).tape,), BYTE)
    parameters = [(array.shape, FLOAT) for array in FINE.values()]
    call = np.frombuffer(engine.host_call(True, False, False), np.uint8).copy()
    if name == "forward":
        return [x, *parameters], [y, h, h, tape], call
    return [x, *parameters, y, tape, y, h, h], [x, *parameters, h, h], call


@direct
@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize(("arguments", "results", "call", "message"), REFUSED)
def test_handlers_reject_invalid_arguments(name, arguments, results, call, message):
    given, wanted, attribute = what_fits(name)
    for own, others in ((given, arguments), (wanted, results), (attribute, call or {})):
        for place, other in others.items():
            own[place] = other
    attributes = {"call": np.int32(1)} if call is None else {"call": attribute}
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"rnnfast: .*{message}"):
        handle(name, given, wanted, **attributes)


@direct
def test_handlers_reject_calls_of_impossible_layers():
    given, wanted, attribute = what_fits("forward")
    for field, value in (("directions", 0x3102), ("layers", 2**62), ("kinds", 0), ("clip", np.nan), ("item", 5)):
        call = np.frombuffer(changed(attribute.tobytes(), field, value), np.uint8)
        with pytest.raises(jax.errors.JaxRuntimeError, match="rnnfast: the program"):
            handle("forward", given, wanted, call=call)


@direct
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_handlers_report_missing_arguments(name):
    given, wanted, attribute = what_fits(name)
    handle(name, given, wanted, call=attribute)
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"rnnfast: argument {len(given) - 1} is missing"):
        handle(name, given[:-1], wanted, call=attribute)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"rnnfast: result \d is missing"):
        handle(name, given, wanted[:2], call=attribute)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"rnnfast: 1 arguments and 1 results too many"):
        handle(name, [*given, ((1,), FLOAT)], [*wanted, ((1,), FLOAT)], call=attribute)
    with pytest.raises(jax.errors.JaxRuntimeError, match="rnnfast: the attribute of a call must be"):
        handle(name, given, wanted)
    place = 3 if name == "forward" else 6
    (wanted if name == "forward" else given)[place] = (5,), BYTE
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"rnnfast: (argument|result) {place} has 5 elements"):
        handle(name, given, wanted, call=attribute)


@direct
def test_layouts_agree_with_the_header_of_xla(tmp_path):
    """Compare with XLA's header; test other versions, unaligned tapes and damaged calls on frames built here."""
    c, cxx = shutil.which("cc"), shutil.which("c++")
    if not (c and cxx):
        pytest.skip("there is no compiler of C and C++: the layouts are not compared")
    if not (CSRC / "xla_ffi.c").is_file():
        pytest.skip("the tests do not lie in a checkout of rnnfast, so there are no sources to compile")
    kernels = [CSRC / f"{name}.c" for name in ("dispatch", "order", "threads", "f32_scalar", "f64_scalar")]
    options = ["-O1", "-std=c11", "-ffp-contract=off", "-DRNNFAST_SCALAR_ONLY", "-Wall", "-Wextra", "-Werror"]
    checked = [c, "-c", *options, "-Drnnfast_get_table=checking_table", f"-I{CSRC}", CSRC / "xla_ffi.c"]
    subprocess.run(checked, cwd=tmp_path, check=True)
    subprocess.run([c, "-c", *options, "-pthread", f"-I{CSRC}", *kernels], cwd=tmp_path, check=True)
    header = [f"-I{CSRC}", "-isystem", jax.ffi.include_dir()]
    check = [Path(__file__).with_name("xla_check.cpp"), "xla_ffi.o", *(f"{source.stem}.o" for source in kernels)]
    subprocess.run([cxx, "-pthread", *header, *check, "-lm", "-o", "check"], cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "check"], check=True, capture_output=True, text=True).stdout.splitlines()
    assert printed[:3] == ["0 buffers beside a line", "gradient same", "answers 0.0 -1 -1"]
    name, accepted = printed[3].split()
    assert name == "accepted"
    assert 100 < int(accepted) < 9900  # of 10000
    assert re.fullmatch(
        r"error rnnfast was built for version 0 of XLA's interface, but this is 1\.\d or .*", printed[4]
    )
    assert re.fullmatch(r"error rnnfast was built for version 0 .* or has another layout", printed[5])


# ------------------------------------------------------------------------------------------------------------ vmap


@pytest.fixture
def calls(monkeypatch, through_python):  # noqa: ARG001
    """The shapes of x in the calls that reach Python."""
    seen = []
    prepare = backend._prepare

    def counting(call, arrays):
        checked, parameters = prepare(call, arrays)
        seen.append(checked.inputs.x.shape)
        return checked, parameters

    monkeypatch.setattr(backend, "_prepare", counting)
    return seen


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_vmap_over_rows(calls, batch_first, axis):
    """vmap over sequences without a batch axis runs one batch."""
    layer, function, x, _ = case_of(rnnfast.LSTM, batch_first=batch_first, num_layers=2, bidirectional=True)
    parameters = dict(layer.parameters)
    expected, (h, _) = layer(x)
    mapped = np.moveaxis(x, 0 if batch_first else 1, axis)
    y, (h_n, _) = jax.vmap(function, (axis, None))(mapped, parameters)
    assert calls == [x.shape]
    assert same(jnp.moveaxis(y, 0, 0 if batch_first else 1), expected)
    assert same(jnp.moveaxis(h_n, 0, 1), h)


@pytest.mark.parametrize("name", ["lstm stack", "lstm projected", "gru", "gru reset before"])
def test_vmap_over_batches(calls, name):
    """States and lengths may be mapped or not, and vmap may be nested."""
    kind, options = LAYERS[name]
    layer, function, x, state = case_of(kind, **options)
    parameters = dict(layer.parameters)
    xs, scales = np.stack([x, 2 * x, 3 * x]), np.arange(1, 4, dtype=np.float32)
    states = jax.tree.map(lambda member: np.stack([member * scale for scale in scales]), state)
    lengths = np.array([[4, 0, T, 1], [T, T, 1, 2], [1, 2, 3, 4]])
    reset = np.random.default_rng(0).random(x.shape[:2]) < 0.3

    def run(x, state, lengths, reset):
        return function(x, parameters, state, lengths=lengths, reset=reset)

    for axes in [(0, 0, 0, None), (0, None, 0, None), (None, 0, None, None), (0, None, None, None)]:
        given = [
            one if axis is None else many
            for axis, one, many in zip(axes, (x, state, lengths[0], reset), (xs, states, lengths, None), strict=True)
        ]
        results = jax.jit(jax.vmap(run, axes))(*given)
        for place in range(3):
            own = [
                g if axis is None else jax.tree.map(lambda a: a[place], g)  # noqa: B023
                for axis, g in zip(axes, given, strict=True)
            ]
            expected = layer(own[0], own[1], lengths=own[2], reset=own[3])
            assert same(jax.tree.map(lambda a: a[place], results), expected)  # noqa: B023
    assert len(calls) == 4
    twice = jax.vmap(jax.vmap(lambda x: function(x, parameters)[0]))(np.stack([xs, -xs]))
    assert len(calls) == 5
    assert same(twice[1, 2], layer(-3 * x)[0])


def test_gradient_of_vmap(calls):
    """vmap runs one batched call, with the same bits."""
    layer, function, x, _ = case_of(rnnfast.LSTM, bidirectional=True)
    dy, _ = weights(layer, x)
    lengths = np.array([4, 0, T, 1])

    def loss(parameters, x):
        y = jax.vmap(lambda x, length: function(x, parameters, lengths=length)[0], (1, 0), 1)(x, lengths)
        return jnp.sum(y * dy)

    _, _, tape = layer.forward(x, lengths=lengths)
    expected = layer.backward(tape, dy)
    for taken in (jax.grad(loss, (0, 1)), jax.jit(jax.grad(jax.checkpoint(loss), (0, 1)))):
        calls.clear()
        found = taken(dict(layer.parameters), x)
        assert same(found, (expected.parameters, expected.x))
        assert set(calls) == {x.shape}


def test_vmap_of_gradient():
    """vmap of a gradient gives the gradients of each row."""
    layer, function, x, _ = case_of(rnnfast.GRU)
    dy, _ = weights(layer, x)
    loss = lambda parameters, x, dy: jnp.sum(function(x, parameters)[0] * dy)  # noqa: E731
    found = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (None, 1, 1)))(dict(layer.parameters), x, dy)
    for row in range(N):
        _, _, tape = layer.forward(x[:, row])
        expected = layer.backward(tape, dy[:, row])
        assert same(jax.tree.map(lambda a: a[row], found), (expected.parameters, expected.x))  # noqa: B023


def test_vmap_over_parameters():
    """An ensemble."""
    layers = [rnnfast.LSTM(I, H, rng=seed) for seed in range(3)]
    x = np.random.default_rng(0).normal(size=(T, N, I)).astype(np.float32)
    many = {name: np.stack([layer.parameters[name] for layer in layers]) for name in layers[0].parameters}
    some = {name: None if name == "bias_ih_l0" else 0 for name in many}
    shared = {**many, "bias_ih_l0": many["bias_ih_l0"][0]}
    y, _ = jax.vmap(backend.lstm, (None, 0))(x, many)
    gradients = jax.grad(lambda many: jax.vmap(backend.lstm, (None, 0))(x, many)[0].sum())(many)
    z, _ = jax.vmap(backend.lstm, (None, some))(x, shared)
    for place, layer in enumerate(layers):
        assert same(y[place], layer(x)[0])
        _, _, tape = layer.forward(x)
        expected = layer.backward(tape, np.ones((T, N, H), np.float32)).parameters
        assert same({name: value[place] for name, value in gradients.items()}, dict(expected))
        layer.parameters["bias_ih_l0"][...] = shared["bias_ih_l0"]
        assert same(z[place], layer(x)[0])


# ---------------------------------------------------------------------------------------------------------- errors

X = np.zeros((T, N, I), np.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[:, :, :2]}, ValueError, r"x has 2 features .* input_size=3"),
        ({"x": X[0, 0]}, ValueError, r"x must have layout \(T, N, I\)"),
        ({"x": X.astype(complex)}, TypeError, "x must hold real numbers"),
        ({"state": X}, ValueError, r"state must be the pair \(h, c\)"),
        ({"state": (X, X)}, ValueError, r"state\[0\] \(h\) must have shape .* \(1, 4, 5\), got \(6, 4, 3\)"),
        ({"lengths": [1, 2]}, ValueError, r"lengths must have shape \(N,\) = \(4,\), got shape \(2,\)"),
        ({"lengths": [1, 2, 3, T + 1]}, ValueError, "lengths must be from 0 to T = 6, .* got 7 for row 3"),
        ({"mask": np.zeros((T, N), int)}, TypeError, "mask must hold booleans"),
        ({"mask": np.ones((T, N), bool), "lengths": [1] * N}, ValueError, "lengths and mask are mutually exclusive"),
        ({"zero_masked": 1}, TypeError, "zero_masked must be True or False"),
        ({"parameters": [X]}, TypeError, "parameters must be a dict of arrays under torch's names, got list"),
        (
            {"parameters": {}},
            ValueError,
            "must contain a matrix weight_ih_l0 .torch.s names., got only an empty mapping",
        ),
        ({"parameters": {**FINE, "weight_hh_l0": X}}, ValueError, r"a matrix weight_hh_l0 .* got shape \(6, 4, 3\)"),
        ({"num_layers": 2}, ValueError, "num_layers=2 contradicts the parameters, .* imply num_layers=1: leave it out"),
        ({"bidirectional": True}, ValueError, "bidirectional=True contradicts"),
        ({"hidden_size": 4}, ValueError, "hidden_size=4 contradicts .* hidden_size=5"),
        (
            {"parameters": {**FINE, "weight_ih_l1": X[0]}},
            ValueError,
            r"do not fit LSTM\(3, 5, num_layers=2\): weight_ih_l1 must have shape \(20, 5\), .*weight_hh_l1 is missing",
        ),
        (
            {"parameters": {**FINE, "kernel": X}},
            ValueError,
            r"do not fit LSTM\(3, 5\): kernel is not one of its parameters",
        ),
        ({"parameters": {**FINE, "bias_hh_l0": X}}, ValueError, r"bias_hh_l0 must have shape \(20,\), got \(6, 4, 3\)"),
        (
            {"parameters": jax.tree.map(jnp.float16, FINE)},
            ValueError,
            "must have dtype float32 or float64, got float16",
        ),
        ({"dropout": 0.5}, TypeError, "dropout is not an option of lstm: the options are input_size, .*coupled"),
        ({"parameters": {**FINE, "leak_l0": X}}, ValueError, "leak_l0 is not one of its parameters"),
        ({"reverse": 1}, TypeError, "reverse must be True or False"),
    ],
)
def test_errors(change, error, message):
    given = {"x": X, "parameters": FINE, **change}
    with pytest.raises(error, match=message):
        backend.lstm(**given)


def test_errors_while_tracing():
    with pytest.raises(ValueError, match="x has 2 features"):
        jax.jit(backend.lstm)(X[:, :, :2], FINE)
    with pytest.raises(ValueError, match=r"lengths must have shape \(N,\) = \(4,\)"):
        jax.jit(lambda lengths: backend.lstm(X, FINE, lengths=lengths))(np.array([1, 2]))


def test_an_error_while_running():
    with pytest.raises(jax.errors.JaxRuntimeError, match="lengths must be from 0 to T = 6"):
        jax.block_until_ready(jax.jit(lambda lengths: backend.lstm(X, FINE, lengths=lengths))(np.array([1, 2, 3, 7])))


def test_derivatives_that_are_declined():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: backend.lstm(x, FINE)[0], (X,), (X,))
    slope = jax.grad(lambda x: backend.lstm(x, FINE)[0].sum())
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.grad(lambda x: slope(x).sum())(X)
