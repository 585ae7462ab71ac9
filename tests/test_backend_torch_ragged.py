"""lengths, mask and reset of rnnfast.backends.torch against the layers for NumPy, and their gradients."""

import numpy as np
import pytest
from support.ragged import KINDS, draw_sequences

torch = pytest.importorskip("torch", reason="torch is not installed: its back end is not tested")
fast = pytest.importorskip("rnnfast.backends.torch")

from support.torch_layers import assert_close, initial, members, numpy_layer, operators, pair  # noqa: E402

from rnnfast.backends.torch import _loop, _operators  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")  # torch's own calls

CELLS = ["RNN", "LSTM", "GRU"]
T, N = 6, 5
SHAPES = {
    "one": {},
    "stack": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projected": {"proj_size": 3, "bidirectional": True},
    "relu": {"nonlinearity": "relu", "bias": False, "num_layers": 2},
}
CASES = [
    (cell, name) for cell in CELLS for name in SHAPES if {"projected": "LSTM", "relu": "RNN"}.get(name, cell) == cell
]


def steps(kind, layer, batch=True):
    """Random lengths, masks, resets and reset states in the layout of the layer; of the first row without a batch."""
    drawn = draw_sequences(kind, T, N, seed=3)
    turned = layer.batch_first and batch

    def shaped(name, value):
        if not isinstance(value, np.ndarray):
            return value
        value = value if batch else value[..., 0]
        return torch.from_numpy(np.array(value.T if turned and name != "lengths" else value))

    given = {name: shaped(name, value) for name, value in drawn.items()}
    return given | ({"reset_state": initial(layer, *([N] * batch))} if "reset_state" in KINDS[kind] else {})


def resets_of(options):
    """The tensors of the reset state."""
    return members(options.get("reset_state"))


def plain(value):
    """An argument for a layer for NumPy."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return value.detach().numpy() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("batch", [True, False], ids=["batch", "unbatched"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cell", "name"), CASES)
def test_same_bits_as_the_layer_for_numpy(cell, name, kind, batch, given):
    _, ours = pair(cell, **SHAPES[name])
    layer = numpy_layer(ours)
    x = torch.randn(*((N, T) if ours.batch_first else (T, N)), 4) if batch else torch.randn(T, 4)
    state = initial(ours, *([N] if batch else [])) if given else None
    options = steps(kind, ours, batch)
    x.requires_grad_()
    starts, resets = ([one.requires_grad_() for one in some] for some in (members(state), resets_of(options)))
    y, last = ours(x, state, **options)
    dy, dlast = torch.randn_like(y), [torch.randn_like(one) for one in members(last)]
    torch.autograd.backward([y, *members(last)], [dy, *dlast])
    with torch.no_grad():
        quick, _ = ours(x, state, **options)

    given = {key: plain(value) for key, value in options.items()}
    expected, end, tape = layer.forward(plain(x), plain(state), **given)
    grads = layer.backward(tape, plain(dy), plain(tuple(dlast) if cell == "LSTM" else dlast[0]))
    assert np.array_equal(y.detach(), expected)
    assert np.array_equal(quick, expected)
    assert all(map(np.array_equal, [one.detach() for one in members(last)], members(end)))
    assert np.array_equal(x.grad, grads.x)
    assert all(map(np.array_equal, [one.grad for one in starts], members(grads.state)))
    assert [one.grad.tolist() for one in resets] == [one.tolist() for one in members(grads.reset_state)]
    for key, one in ours.named_parameters():
        assert np.array_equal(one.grad, grads.parameters[key])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cell", "name"), CASES)
def test_the_loop_in_torchs_operators_is_the_same(cell, name, kind, monkeypatch):
    _, ours = pair(cell, dtype=torch.float64, **SHAPES[name])
    options, state = steps(kind, ours), initial(ours, N)
    x, results = torch.randn(*((N, T) if ours.batch_first else (T, N)), 4, dtype=torch.float64), []
    inputs = [one.requires_grad_() for one in (x, *members(state), *resets_of(options), *ours.parameters())]
    for run in (_operators.run, _loop.run):
        monkeypatch.setattr(_operators, "run", run)
        y, last = ours(x, state, **options)
        total = sum((one.sin() * torch.arange(1, 1 + one.shape[-1])).sum() for one in (y, *members(last)))
        results.append([y, *members(last), *torch.autograd.grad(total, inputs)])
    assert_close(results[1], results[0], 1e-12)


@pytest.mark.parametrize(
    ("cell", "name", "kind"),
    [
        ("LSTM", "stack", "mask and reset"),
        ("LSTM", "projected", "lengths and reset"),
        ("LSTM", "one", "mask and reset to a state"),
        ("GRU", "one", "lengths and reset to a state"),
        ("GRU", "one", "lengths"),
        ("RNN", "one", "zero_masked"),
    ],
)
def test_first_and_second_derivatives(cell, name, kind):
    sizes = {"proj_size": 1} if name == "projected" else {}
    _, ours = pair(cell, 2, 2, dtype=torch.float64, **{**SHAPES[name], **sizes})
    options, state = steps(kind, ours), members(initial(ours, N))
    names = [key for key, _ in ours.named_parameters()]
    x = torch.randn(*((N, T) if ours.batch_first else (T, N)), 2, dtype=torch.float64)

    resets = resets_of(options)

    def run(x, *rest):
        given, again, rest = rest[: len(state)], rest[len(state) :][: len(resets)], rest[len(state) + len(resets) :]
        values = dict(zip(names, rest, strict=True))
        more = {"reset_state": again if cell == "LSTM" else again[0]} if resets else {}
        first = x, given if cell == "LSTM" else given[0]
        y, last = torch.func.functional_call(ours, values, first, options | more)
        return y, *members(last)

    inputs = [one.requires_grad_() for one in (x, *state, *resets, *ours.parameters())]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_padding_is_never_read_and_lists_are_lengths():
    _, ours = pair("GRU", bidirectional=True)
    x = torch.randn(T, 3, 4)
    x[2:, 1], x[:, 2] = float("nan"), float("nan")
    y, h = ours(x, lengths=[T, 2, 0])
    assert not y[2:, 1].any()
    assert not h[:, 2].any()
    alone, last = ours(x[:2, 1])
    assert torch.equal(y[:2, 1], alone)
    assert torch.equal(h[:, 1], last)
    y.sum().backward()
    assert all(one.grad.isfinite().all() for one in ours.parameters())


def test_a_packed_batch_has_the_same_bits_as_lengths():
    _, ours = pair("LSTM", num_layers=2, bidirectional=True)
    x, lengths = torch.randn(T, 3, 4), [2, 6, 3]
    y, (h, c) = ours(x, lengths=lengths)
    packed, last = ours(torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))
    assert torch.equal(torch.nn.utils.rnn.pad_packed_sequence(packed)[0], y)
    assert torch.equal(last[0], h)
    assert torch.equal(last[1], c)


def test_dropout_acts_on_ragged_batches():
    _, ours = pair("GRU", num_layers=2, dropout=0.5)
    x, results = torch.randn(T, 3, 4), []
    for lengths in (None, [T, T, 3]):
        torch.manual_seed(5)
        results.append(ours(x, lengths=lengths)[0])
    assert torch.equal(results[0][:, :2], results[1][:, :2])
    assert not torch.equal(results[0], ours.eval()(x)[0])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"lengths": [6, 7, 1]}, ValueError, r"lengths must be from 0 to T = 6, the steps of x, got 7 for row 1"),
        ({"lengths": [6, 6]}, ValueError, r"lengths must have shape \(N,\) = \(3,\), got shape \(2,\)"),
        ({"lengths": torch.ones(3)}, TypeError, "lengths must hold integers"),
        ({"lengths": [1, None, 2]}, TypeError, "lengths must hold integers or booleans, but its dtype is object"),
        ({"mask": torch.ones(6, 3)}, TypeError, "mask must hold booleans, but its dtype is float32"),
        ({"reset": torch.ones(3, 6, dtype=torch.bool)}, ValueError, r"reset must have shape \(T, N\) = \(6, 3\)"),
        ({"lengths": [1, 1, 1], "mask": torch.ones(6, 3, dtype=torch.bool)}, ValueError, "mutually exclusive"),
        ({"reset_state": "zero"}, ValueError, "reset_state must be one of 'initial', 'zeros', got 'zero'"),
        (
            {"reset_state": torch.ones(1, 8)},
            ValueError,
            r"reset_state must have the shape of hx, \(1, 3, 8\), got \(1, 8\)",
        ),
        ({"reset_state": [[1.0]]}, TypeError, "reset_state must consist of tensors, as hx does, got .*'list'"),
        (
            {"mask": torch.ones(6, 3, dtype=torch.bool), "zero_masked": 2},
            TypeError,
            "zero_masked must be True or False",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.bfloat16 tensors on cpu fall back:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wrong_arguments_are_named(options, error, match, dtype):
    layer = fast.GRU(4, 8, dtype=dtype)
    with pytest.raises(error, match=match):
        layer(torch.zeros(6, 3, 4, dtype=dtype), **options)


def test_wrong_arguments_of_one_sequence_are_named():
    with pytest.raises(ValueError, match=r"lengths must be one integer, as x is unbatched, got shape \(2,\)"):
        fast.GRU(4, 8)(torch.zeros(6, 4), lengths=[1, 2])


def test_lengths_under_transforms():
    _, ours = pair("GRU")
    x, lengths = torch.randn(6, 3, 4), torch.tensor([3, 2, 6])
    dx = torch.func.grad(lambda x, lengths: ours(x, lengths=lengths)[0].sum())(x, lengths)
    assert dx[3:, 0].abs().sum() == 0 != dx[3:, 2].abs().sum()
    with pytest.raises(ValueError, match=r"lengths is mapped by torch.func.vmap, .* in_dims=None"):
        torch.func.vmap(lambda x, lengths: ours(x, lengths=lengths)[0])(torch.stack([x, x]), lengths.expand(2, 3))


def test_a_packed_sequence_has_its_own_lengths():
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(3, 4)])
    for given in ({"lengths": [3]}, {"reset_state": "zeros"}):
        with pytest.raises(ValueError, match="input is a PackedSequence, which holds its own lengths"):
            fast.GRU(4, 8)(packed, **given)


def test_changed_lengths_are_an_error_in_backward():
    _, ours = pair("GRU")
    lengths = torch.tensor([6, 2, 3])
    y, _ = ours(torch.randn(6, 3, 4), lengths=lengths)
    lengths[1] = 4
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:torch.bfloat16 tensors on cpu fall back:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_kernels_do_not_run_is_a_loop(kind):
    _, ours = pair("LSTM", num_layers=2, bidirectional=True, dtype=torch.float64)
    options, x = steps(kind, ours), torch.randn(T, N, 4, dtype=torch.float64)
    ours.requires_grad_(False)
    y, _ = ours(x, **options)
    _, tangent = torch.func.jvp(lambda x: ours(x, **options)[0].sin().sum(), (x,), (x,))
    x.requires_grad_()
    (dx,) = torch.autograd.grad(ours(x, **options)[0].sin().sum(), x)
    assert tangent.item() == pytest.approx((dx * x).sum().item())
    x = x.detach()
    if "reset_state" in options:
        options["reset_state"] = tuple(one.bfloat16() for one in options["reset_state"])
    half, _ = ours.bfloat16()(x.bfloat16(), **options)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), y, rtol=0, atol=0.03)


def test_episodes_that_start_from_zeros():
    """What a loop over steps does in a recurrent policy, in one call."""
    _, ours = pair("LSTM", dtype=torch.float64)
    x, starts = torch.randn(T, N, 4, dtype=torch.float64), torch.rand(T, N) < 0.3
    starts[:, 0], starts[:, 1] = False, True
    state = given = initial(ours, N)
    outputs = []
    for step, start in zip(x, starts, strict=True):
        y, state = ours(step.unsqueeze(0), tuple(torch.where(start.view(1, N, 1), 0, one) for one in state))
        outputs.append(y)
    for word in ("zeros", None, tuple(map(torch.zeros_like, given))):
        y, last = ours(x, given, reset=starts, reset_state=word)
        assert torch.equal(y, torch.cat(outputs))
        assert all(map(torch.equal, last, state))


def test_a_reset_state_without_resets_has_no_effect():
    _, ours = pair("GRU", bidirectional=True)
    x, state = torch.randn(T, N, 4, requires_grad=True), initial(ours, N)
    expected = ours(x, state)
    for given in ({}, {"reset": torch.zeros(T, N, dtype=torch.bool)}):
        for word in ("zeros", None, initial(ours, N).requires_grad_()):
            got = ours(x, state, **given, reset_state=word)
            assert all(map(torch.equal, got, expected))
            got[0].sum().backward()
    assert not word.grad.any()


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_operators_take_lengths(batch_first):
    layer = fast.LSTM(3, 4, bidirectional=True)
    x, lengths = torch.randn(3, 3, 3), torch.tensor([1, 3, 0])
    axes = "NT" if batch_first else "TN"
    given = x, *(None,) * 6, lengths, None, None, list(layer.parameters()), "lstm", 1, True, axes, False
    layer.requires_grad_(False)
    assert operators(lambda: layer(x, lengths=lengths)) == ["infer"]
    reset, state = torch.rand(3, 3) < 0.5, initial(layer, 3)
    for options in (given, (x, None, None, *state, None, None, lengths, None, reset, *given[10:])):
        torch.library.opcheck(torch.ops.rnnfast.infer.default, options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_with_lengths():
    import torch._dynamo

    torch._dynamo.reset()
    _, ours = pair("GRU", bidirectional=True)
    x, lengths = torch.randn(T, 3, 4, requires_grad=True), torch.tensor([2, 6, 0])

    state, reset = initial(ours, 3).requires_grad_(), torch.rand(T, 3) < 0.4

    def run(x, lengths, state):
        return ours(x, lengths=lengths, reset=reset, reset_state=state)[0].sin().sum()

    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        inputs = [x, state, *ours.parameters()]
        results = [torch.autograd.grad(call(x, lengths, state), inputs) for call in (run, compiled)]
    assert_close(results[1], results[0], 1e-6)
