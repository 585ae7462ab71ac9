"""Results do not depend on how the calling thread rounds or flushes subnormals, and calls leave that as it is."""

import signal
import time
from textwrap import dedent

import numpy as np
import pytest
from support.cells import VARIANTS, make_layer
from support.compare import assert_same_bits, members
from support.float_modes import AVAILABLE, MODES, float_mode, get_mode, set_mode
from support.guards import run_in_a_row
from support.linear import linear_problem, run_linear
from support.problems import variant_problem
from support.processes import run_script
from support.signals import handle_in_call

import rnnfast
from rnnfast import functional, training

if not AVAILABLE:
    pytest.skip("modes are set by their bits in the fenv_t of Linux", allow_module_level=True)

mode = pytest.mark.parametrize("mode", MODES)


def is_subnormal(a):
    return (a != 0) & (np.abs(a) < np.finfo(a.dtype).tiny)


def tiny_problem(variant, *shape, dtype, **options):
    """A problem without biases whose outputs and gradients are subnormal in every eighth row, where the cell allows it.

    The others are zero, because Intel's processors take some 150 cycles for each subnormal operation.
    """
    p = variant_problem(variant, *shape, dtype=dtype, **options)
    for name, value in p.parameters.items():
        if name.startswith("bias"):
            value[...] = 0
    for array in (p.x, p.dy, *members(p.state), *members(p.dstate)):
        scales = np.where(np.arange(array.shape[-2]) % 8, 0, np.finfo(dtype).tiny / 4)
        array *= scales[:, np.newaxis].astype(dtype)
    return p


@mode
@pytest.mark.parametrize("count", [1, 2])
def test_layers(threads, variant, mode, count, dtype, isa):
    p = tiny_problem(variant, 12, 26, 40, 60, dtype=dtype, num_layers=2, bidirectional=True)
    threads(1)
    expected = run_in_a_row(p, isa)
    threads(count)
    with float_mode(mode):
        results = run_in_a_row(p, isa)
    assert_same_bits(results, expected)


@mode
def test_ordinary_numbers(threads, variant, mode, dtype, isa):
    threads(2)
    p = variant_problem(variant, 12, 26, 40, 60, dtype=dtype, num_layers=2, dropout=True)
    expected = run_in_a_row(p, isa)
    with float_mode(mode):
        results = run_in_a_row(p, isa)
    assert_same_bits(results, expected)


@mode
def test_masked_steps(mode, dtype):
    """Their gradients are added to those of the steps whose outputs they repeat."""
    rng = np.random.default_rng(0)
    layer = make_layer("rnn_relu", 3, 5, dtype=dtype)
    x, dy = rng.normal(size=(9, 4, 3)).astype(dtype), np.full((9, 4, 5), np.finfo(dtype).tiny / 8)
    mask = rng.random((9, 4)) < 0.5

    def results():
        y, state, tape = layer.forward(x, mask=mask)
        grads = layer.backward(tape, dy.astype(dtype))
        return {"y": y, "state": state, "x": grads.x, **grads.parameters}

    expected = results()
    with float_mode(mode):
        got = results()
    assert_same_bits(got, expected)


@mode
@pytest.mark.parametrize("count", [1, 2])
def test_linear(threads, mode, count, dtype, isa):
    threads(count)
    x, weight, bias, dy = linear_problem(300, 90, 170, dtype, True)
    for array in (x, bias, dy):
        array *= np.finfo(dtype).tiny / 4
    expected = run_linear(x, weight, bias, dy, isa)
    with float_mode(mode):
        results = run_linear(x, weight, bias, dy, isa)
    assert_same_bits(results, expected)


@mode
@pytest.mark.parametrize("function", ["sigmoid", "tanh"])
def test_activations(mode, function, dtype, isa):
    x = np.linspace(-9, 9, 1001, dtype=dtype)
    for a in (x, x * np.finfo(dtype).tiny / 8):
        expected = functional.activation(function, a, isa)
        with float_mode(mode):
            result = functional.activation(function, a, isa)
        assert result.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "make", [lambda p: training.SGD(p, lr=0.5, momentum=0.5), lambda p: training.Adam(p, eps=1e-30)]
)
def test_optimizers(make, dtype):
    gradients = {"w": np.full((3, 4), np.finfo(dtype).tiny / 8)}

    def steps():
        parameters = {"w": np.zeros((3, 4), dtype)}
        optimizer = make(parameters)
        for _ in range(3):
            optimizer.step({name: gradient.astype(dtype) for name, gradient in gradients.items()})
        return parameters

    expected = steps()
    with float_mode("flush"):
        results = steps()
    assert_same_bits(results, expected)


SCRIPT = """
import numpy as np
import rnnfast.threads
from support.float_modes import get_mode, set_mode

layer = rnnfast.RNN(64, 256, nonlinearity="relu", rng=0, bias=False)
x = np.zeros((64, 64, 64), np.float32)
x[:, ::8] = np.random.default_rng(0).standard_normal((64, 8, 64)) * 1e-38

def results():
    return [layer(x)[0].tobytes() for _ in range(3)]

mode = set_mode("flush")

"""


def run(script):
    run_script(SCRIPT + dedent(script))


def test_threads_created_by_a_caller_in_another_mode():
    """A thread begins in the mode of the one that creates it."""
    run("""
    rnnfast.set_num_threads(2)
    with_two = results()
    rnnfast.set_num_threads(1)
    assert results() == with_two
    assert get_mode() == mode
    """)


@pytest.mark.parametrize("team_mode", [(), ("flush",)])
def test_threads_of_openmp(team_mode):
    pytest.importorskip("torch", reason="needs OpenMP's threads")
    run(f"""
    import torch
    set_mode(*{team_mode})
    torch.set_num_threads(2)
    torch.ones(1 << 20).add(1)
    rnnfast.set_num_threads(2)
    rnnfast.threads.use("openmp")
    mode = set_mode("flush")
    with_two = results()
    rnnfast.threads.use("rnnfast")
    rnnfast.set_num_threads(1)
    assert results() == with_two
    set_mode()
    assert results() == with_two
    """)


def test_torch_flushes_denormals(torch, threads):
    layer = make_layer("rnn_relu", 64, 256, bias=False)
    x = np.full((8, 64, 64), 1e-39, np.float32)
    expected = layer(x)[0]
    assert is_subnormal(expected).any()
    assert torch.set_flush_denormal(True)
    try:
        for count in 1, 2:
            threads(count)
            assert layer(x)[0].tobytes() == expected.tobytes()
    finally:
        torch.set_flush_denormal(False)


@pytest.fixture
def handler():
    """Install a handler for a signal that comes in the middle of a long call."""
    before = signal.getsignal(signal.SIGALRM)
    yield handle_in_call
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    set_mode()


@pytest.mark.parametrize("count", [1, 2])
def test_handlers_run_in_the_mode_of_the_caller(threads, handler, count):
    """One may change it, for the caller and not for the call."""
    threads(count)
    layer = rnnfast.RNN(64, 1024, nonlinearity="relu", rng=0, bias=False)
    layer.freeze()
    x = np.random.default_rng(0).standard_normal((2000, 16, 64)).astype(np.float32)
    x[:, 0] = 0
    x[::50, 0] = 1e-38  # subnormal operations take long: a few, before and after the signal
    y = layer(x)[0]
    for half in y[:1000], y[1000:]:
        assert is_subnormal(half).any()
    expected, seen = y.tobytes(), []
    upward = set_mode("upward")
    flush = set_mode("flush")

    def change(*_):
        seen.append(get_mode())
        set_mode("upward")

    handler(change)
    assert layer(x)[0].tobytes() == expected
    assert seen == [flush]
    assert get_mode() == upward


@pytest.mark.parametrize("count", [1, 2])
def test_interrupted_calls_restore_the_mode(threads, handler, count):
    threads(count)
    layer, x = rnnfast.LSTM(64, 1024, rng=0), np.zeros((3000, 16, 64), np.float32)
    layer.freeze()

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    with float_mode("flush"):
        handler(stop)
        start = time.monotonic()
        with pytest.raises(Stop):
            layer(x)
        assert time.monotonic() - start < 60


def test_problems_are_subnormal():
    """Or the tests above would compare zeros."""
    for variant in VARIANTS:
        if variant.endswith("_positive"):  # whose outputs are never small
            continue
        y = run_in_a_row(tiny_problem(variant, 12, 26, 40, 60, dtype=np.float32, num_layers=2, bidirectional=True))["y"]
        assert is_subnormal(y).any(), variant
