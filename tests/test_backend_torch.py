"""rnnfast.backends.torch against torch.nn: results, gradients, module features and overhead."""

import copy
import gc
import io
import os
import pickle
import socket
import threading
import warnings

import numpy as np
import pytest

from rnnfast import buffers, functional

torch = pytest.importorskip("torch", reason="torch is not installed: its back end is not tested")
fast = pytest.importorskip("rnnfast.backends.torch")

from support.torch_layers import assert_close, initial, members, operators, outcome, pair  # noqa: E402

from rnnfast.backends.torch import _layers, _operators  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning"),  # torch's own calls of it
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]

CELLS = ["RNN", "LSTM", "GRU"]
OPTIONS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "stack": {"num_layers": 2, "bidirectional": True},
    "dropout": {"num_layers": 3, "dropout": 0.4},
    "all_dropped": {"num_layers": 2, "dropout": 1.0},
    "relu": {"nonlinearity": "relu"},
    "projected": {"proj_size": 3},
    "all": {
        "num_layers": 2,
        "bias": False,
        "batch_first": True,
        "bidirectional": True,
        "proj_size": 3,
        "dropout": 0.4,
    },
}
OF_ONE = {"relu": "RNN", "projected": "LSTM", "all": "LSTM"}  # options of one cell alone
CASES = [(cell, name) for cell in CELLS for name in OPTIONS if OF_ONE.get(name, cell) == cell]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-11}


@pytest.fixture
def packs(monkeypatch):
    """The calls of pack, counted."""
    calls = []

    def pack(engine, parameters, packed, packed_back):
        calls.append("back" if packed is None else "forward")
        real(engine, parameters, packed, packed_back)

    real = functional.pack
    monkeypatch.setattr(functional, "pack", pack)
    return calls


# -------------------------------------------------------------------------------------------- the same as torch's own


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("kind", ["batch", "unbatched", "packed", "packed_sorted"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
@pytest.mark.parametrize(("cell", "name"), CASES)
def test_results_and_gradients_are_torchs(cell, name, dtype, kind, given):
    theirs, ours = pair(cell, dtype=dtype, **OPTIONS[name])
    batch = () if kind == "unbatched" else (3,)
    x = torch.randn(*((3, 5) if theirs.batch_first and batch else (5, *batch)), 4, dtype=dtype)
    state = initial(theirs, *batch) if given else None
    lengths = {"packed": [3, 5, 1], "packed_sorted": [5, 5, 2]}.get(kind)
    pack = lengths and (
        lambda x: torch.nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=theirs.batch_first, enforce_sorted=kind == "packed_sorted"
        )
    )
    assert_close(outcome(ours, x, state, pack), outcome(theirs, x, state, pack), TOLERANCE[dtype])


@pytest.mark.parametrize("cell", CELLS)
def test_packed_sequence_in_packed_sequence_out(cell):
    theirs, ours = pair(cell)
    packed = torch.nn.utils.rnn.pack_sequence([torch.randn(n, 4) for n in (2, 6, 3)], enforce_sorted=False)
    expected, actual = theirs(packed)[0], ours(packed)[0]
    assert isinstance(actual, torch.nn.utils.rnn.PackedSequence)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(actual, name), getattr(expected, name))


def test_a_long_packed_sequence_has_the_bits_of_its_rows():
    _, ours = pair("GRU", bidirectional=True)
    rows = [torch.randn(n, 4) for n in (90, 300, 1, 200)]
    packed, last = ours(torch.nn.utils.rnn.pack_sequence(rows, enforce_sorted=False))
    for i, row in enumerate(torch.nn.utils.rnn.unpack_sequence(packed)):
        y, h = ours(rows[i])
        assert torch.equal(row, y)
        assert torch.equal(last[:, i], h)


@pytest.mark.parametrize("cell", CELLS)
def test_training_goes_as_torchs(cell):
    layers, losses = pair(cell, dtype=torch.float64), []
    x, target = torch.randn(6, 3, 4, dtype=torch.float64), torch.randn(6, 3, 8, dtype=torch.float64)
    for layer in layers:
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(8):
            optimizer.zero_grad()
            loss = (layer(x)[0] - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[8:] == pytest.approx(losses[:8], rel=1e-8)
    assert losses[-1] < 0.99 * losses[8]


@pytest.mark.parametrize(("cell", "name"), CASES)
def test_initial_values_are_torchs(cell, name):
    layers = []
    for module in (torch.nn, fast):
        torch.manual_seed(3)
        layers.append(getattr(module, cell)(4, 8, **OPTIONS[name]).state_dict())
    assert list(layers[0]) == list(layers[1])
    assert all(torch.equal(layers[0][key], layers[1][key]) for key in layers[0])


def test_constructor_arguments_without_names():
    layer = fast.RNN(4, 8, 2, "relu", False, True)
    assert (layer.num_layers, layer.nonlinearity, layer.bias, layer.batch_first) == (2, "relu", False, True)
    assert repr(layer) == repr(torch.nn.RNN(4, 8, 2, "relu", False, True))


def test_any_strides():
    theirs, ours = pair(dtype=torch.float64)
    x = torch.randn(4, 7, 3, dtype=torch.float64).permute(1, 2, 0)[::2]
    h, c = initial(theirs, 1)
    state = h.expand(1, 3, 8), c.expand(1, 3, 8)
    assert_close(outcome(ours, x, state), outcome(theirs, x, state), 1e-11)
    for layer in (theirs, ours):
        layer.weight_hh_l0.data = layer.weight_hh_l0.data.t().contiguous().t()
    assert not ours.weight_hh_l0.is_contiguous()
    assert_close(outcome(ours, x, state), outcome(theirs, x, state), 1e-11)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("shape", "state"),
    [
        ((5, 3, 5), None),
        ((5, 3, 4, 1), None),
        ((4,), None),
        ((0, 3, 4), None),
        ((5, 3, 4), (1, 2, 8)),
        ((5, 3, 4), (1, 8)),
        ((5, 4), (1, 3, 8)),
    ],
)
def test_wrong_shapes_are_torchs_errors(cell, shape, state):
    errors = []
    for layer in pair(cell):
        given = None if state is None else torch.zeros(state)
        with pytest.raises((RuntimeError, ValueError)) as raised:
            layer(torch.zeros(shape), (given, given) if cell == "LSTM" and given is not None else given)
        errors.append((raised.type, str(raised.value)))
    assert errors[0] == errors[1]


def test_wrong_dtypes_are_torchs_errors():
    theirs, ours = pair()
    for layer in (theirs, ours):
        with pytest.raises(ValueError, match="does not match weight dtype"):
            layer(torch.zeros(5, 3, 4, dtype=torch.float64))


def test_an_empty_batch_is_torchs():
    theirs, ours = pair("GRU")
    assert [one.shape for one in ours(torch.zeros(5, 0, 4))] == [one.shape for one in theirs(torch.zeros(5, 0, 4))]


@pytest.mark.parametrize("shape", [None, (2,), (4,), (24, 9), (2, 4)])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_wrong_parameters_are_torchs_errors(name, shape):
    errors = []
    for layer in pair("GRU"):
        setattr(layer, name, None if shape is None else torch.nn.Parameter(torch.zeros(shape)))
        with pytest.raises((RuntimeError, TypeError, AttributeError)) as raised:
            layer(torch.zeros(5, 3, 4))
        errors.append((raised.type, str(raised.value)))
    assert errors[0] == errors[1]
    if shape is not None:
        with pytest.raises(RuntimeError, match=r"parameters have the shapes .*, but this layer needs|must be matrices"):
            layer(torch.zeros(5, 3, 4), lengths=[5, 2, 1])


@pytest.mark.parametrize(
    "sizes",
    [[3, 1, 1], [1, 1], [1, 2, 3], [3, 3, 0], [0, 3, 3], [3.0, 2.0, 1.0], [2**62] * 4 + [6], [], 6, [[3, 2, 1]]],
    ids=str,
)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "state"])
def test_inconsistent_packed_sequences_are_torchs(sizes, given):
    results = []
    for layer in pair("GRU"):
        torch.manual_seed(0)
        state = torch.randn(1, 3, 8) if given else None
        try:
            y, h = layer(torch.nn.utils.rnn.PackedSequence(torch.randn(6, 4), torch.tensor(sizes)), state)
            results.append([y.data, h])
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            results.append((type(error), str(error)))
    if isinstance(results[0], list):
        assert_close(*results, 1e-5)
    else:
        assert results[0] == results[1]


@pytest.mark.parametrize("left", [0, 4])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("which", ["x", "gaps", "view", "h", "weight_hh_l0", "bias_ih_l0", "lengths"])
def test_freed_storage_is_an_error(which, training, left):
    _, ours = pair("GRU")
    x, h, lengths = torch.randn(5, 3, 4), torch.randn(1, 3, 8), torch.tensor([5, 2, 1])
    given = {"x": x, "gaps": torch.randn(5, 3, 8)[..., ::2], "view": torch.randn(6, 3, 4)[1:], "h": h}
    freed = given[which] if which in given else lengths if which == "lengths" else getattr(ours, which).data
    # The views keep as many bytes as they have elements, but not those that they read.
    freed.untyped_storage().resize_(freed.nbytes if left and which in ("gaps", "view") else left)
    with torch.set_grad_enabled(training), pytest.raises(RuntimeError, match="storage, which do not hold its elements"):
        ours(freed if which in ("gaps", "view") else x, h, **({"lengths": lengths} if which == "lengths" else {}))


def test_autocast_is_torchs():
    for cell in CELLS:
        theirs, ours = pair(cell)
        x = torch.randn(5, 3, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            y, expected = ours(x)[0], theirs(x)[0]
            assert y.dtype == expected.dtype
            assert torch.equal(y, expected)
            assert ours(x, lengths=[5, 2, 1])[0].dtype == torch.float32


# --------------------------------------------------------------------------------------------------------- as a module


@pytest.mark.parametrize("cell", CELLS)
def test_copies_and_files(cell):
    _, ours = pair(cell, num_layers=2)
    x = torch.randn(5, 3, 4)
    expected = ours(x)[0]
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(buffer, weights_only=False)]
    for one in copies:
        assert type(one) is type(ours)
        assert torch.equal(one(x)[0], expected)
        assert one.weight_ih_l0.data_ptr() != ours.weight_ih_l0.data_ptr()
    with torch.no_grad():
        ours.weight_ih_l0.zero_()
    assert torch.equal(copies[0](x)[0], expected)
    buffer = io.BytesIO()
    torch.save(copies[0].state_dict(), buffer)
    buffer.seek(0)
    ours.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(ours(x)[0], expected)


def test_dropout_is_reproducible_and_ends_with_training():
    _, ours = pair(num_layers=2, dropout=0.5)
    x = torch.randn(5, 3, 4)

    def run(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return ours(x)[0]

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    ours.eval()
    assert torch.equal(run(0), run(1))


def test_reparametrized_weights():
    layers = [torch.nn.utils.parametrizations.weight_norm(one, "weight_hh_l0") for one in pair("GRU")]
    results = []
    for layer in layers:
        layer(torch.ones(5, 3, 4))[0].sum().backward()
        results.append([one.grad for one in layer.parameters()])
    assert_close(results[1], results[0], 1e-4)


def test_functional_call():
    _, ours = pair("GRU")
    x = torch.randn(5, 3, 4)
    ours(x)
    zeros = {name: torch.zeros_like(one) for name, one in ours.named_parameters()}
    assert not torch.func.functional_call(ours, zeros, (x,))[0].any()
    assert ours(x)[0].any()


# --------------------------------------------------------------------------------------------- the operators, autograd


@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell):
    _, ours = pair(cell, 3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    parameters = list(ours.parameters())
    state = members(initial(ours, 2))
    x = torch.randn(4, 2, 3, dtype=torch.float64)

    def run(x, *rest):
        given = rest[: len(state)]
        values = dict(zip(dict(ours.named_parameters()), rest[len(state) :], strict=True))
        y, last = torch.func.functional_call(ours, values, (x, given if cell == "LSTM" else given[0]))
        return y, *members(last)

    assert torch.autograd.gradcheck(run, [one.requires_grad_() for one in (x, *state)] + parameters)
    packed = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)

    def run_packed(data, *_):
        given = torch.nn.utils.rnn.PackedSequence(data, torch.tensor([3, 2, 1]))
        y, last = ours(given)
        return y.data, *members(last)

    assert torch.autograd.gradcheck(run_packed, [packed, *parameters])


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("training", [False, True], ids=["constants", "leaves"])
def test_opcheck(monkeypatch, packed, training):
    # A tape has places that nothing writes to, and opcheck compares them as well.
    monkeypatch.setattr(buffers, "empty", lambda nbytes, real=buffers.empty: real(nbytes) * 0)
    layer = fast.LSTM(3, 4, 2, bidirectional=True)
    parameters = [one.detach().requires_grad_(training) for one in layer.parameters()]
    h, c = (one.requires_grad_(training) for one in initial(layer, 3))
    x = torch.randn(*((6, 3) if packed else (2, 3, 3)), requires_grad=training)
    batch_sizes = torch.tensor([3, 2, 1]) if packed else None
    options = "lstm", 2, True, "packed" if packed else "TN", False
    given = x, h, c, None, None, None, batch_sizes, None, None, None, parameters, *options
    torch.library.opcheck(torch.ops.rnnfast.forward.default, given)
    with torch.no_grad():
        y, _, _, tape = torch.ops.rnnfast.forward(*given)
    if not training:
        torch.library.opcheck(torch.ops.rnnfast.infer.default, given)
        torch.library.opcheck(torch.ops.rnnfast.backward.default, (*given, y, tape, torch.ones_like(y), None, None))


def test_a_tape_is_kept_only_where_a_gradient_may_be_asked_for():
    _, ours = pair("GRU")
    x = torch.randn(5, 3, 4)
    assert operators(lambda: ours(x)) == ["forward"]
    with torch.no_grad():
        assert operators(lambda: ours(x)) == ["infer"]
    with torch.inference_mode():
        assert operators(lambda: ours(x)) == ["infer"]
    ours.requires_grad_(False)
    assert operators(lambda: ours(x)) == ["infer"]
    assert operators(lambda: ours(x.clone().requires_grad_())) == ["forward"]
    assert operators(lambda: ours(x, torch.zeros(1, 3, 8, requires_grad=True))) == ["forward"]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced():
    _, ours = pair("GRU")
    with torch.no_grad():
        traced = torch.jit.trace(ours, (torch.randn(5, 3, 4),))
    x = torch.randn(7, 2, 4)
    assert torch.equal(traced(x)[0], ours(x)[0])


def test_gradients_of_the_state_alone():
    x, results = torch.randn(5, 3, 4), []
    for layer in pair():
        layer.requires_grad_(False)
        torch.manual_seed(2)
        h, c = initial(layer, 3)
        layer(x, (h, c.requires_grad_()))[1][1].sum().backward()
        results.append([c.grad])
        assert layer.weight_ih_l0.grad is None
    assert_close(results[1], results[0], 1e-4)


@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_gradients_are_torchs(cell, dropout, packed):
    """The gradients of the norm of a gradient, and those of their own norm."""
    results = []
    for layer in pair(cell, num_layers=2, dropout=dropout, bidirectional=True, dtype=torch.float64):
        torch.manual_seed(3)
        x = torch.randn(6 if packed else 3, *([] if packed else [2]), 4, dtype=torch.float64, requires_grad=True)
        batch_sizes = torch.tensor([3, 2, 1])
        given = torch.nn.utils.rnn.PackedSequence(x, batch_sizes) if packed else x
        hs = [one.requires_grad_() for one in members(initial(layer, 3 if packed else 2))]
        y, last = layer(given, tuple(hs) if cell == "LSTM" else hs[0])
        inputs = [x, *hs, *layer.parameters()]
        found = [y.data if packed else y, *members(last)]
        for _ in range(3):
            found = torch.autograd.grad(sum(one.sin().square().sum() for one in found), inputs, create_graph=True)
        results.append([one.detach() for one in found])
    assert_close(results[1], results[0], 1e-9)


def test_a_gradient_with_a_graph_has_the_same_bits():
    _, ours = pair("GRU")
    x = torch.randn(5, 3, 4, requires_grad=True)
    first, second = (torch.autograd.grad(ours(x)[0].sum(), x, create_graph=again)[0] for again in (False, True))
    assert torch.equal(first, second)
    assert second.requires_grad


def test_inputs_that_depend_on_one_another():
    results = []
    for layer in pair("GRU", dtype=torch.float64):
        torch.manual_seed(2)
        h = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)
        x = h[..., :4].repeat(5, 1, 1).tanh()
        (dh,) = torch.autograd.grad(layer(x, h)[0].square().sum(), h, create_graph=True)
        results.append(torch.autograd.grad(dh.square().sum(), [h, *layer.parameters()]))
    assert_close(*results, 1e-10)
    assert not any(one.requires_grad for one in results[1])


def test_changing_y_in_place_is_an_error():
    _, ours = pair("GRU")
    y, _ = ours(torch.randn(5, 3, 4))
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_checkpointing_and_hooks_on_what_is_saved():
    _, ours = pair()
    x = torch.randn(5, 3, 4)
    expected = outcome(ours, x)

    def moved(tensor):
        """A copy of a tape that does not begin at a cache line."""
        if tensor.dtype != torch.uint8:
            return tensor
        room = torch.empty(len(tensor) + 128, dtype=torch.uint8)
        start = 8 - room.data_ptr() % 64 + 64
        return room[start : start + len(tensor)].copy_(tensor)

    with torch.autograd.graph.saved_tensors_hooks(moved, lambda tensor: tensor):
        assert_close(outcome(ours, x), expected, 0)

    def again(x, state):
        from torch.utils.checkpoint import checkpoint

        return checkpoint(ours, x, state, use_reentrant=False)

    again.mode, again.zero_grad, again.parameters = ours.mode, ours.zero_grad, ours.parameters
    assert_close(outcome(again, x), expected, 0)


def test_transforms_go_to_torchs_own():
    theirs, ours = pair("GRU")
    x = torch.randn(5, 3, 4)
    assert operators(lambda: torch.func.jvp(lambda x: ours(x)[0], (x,), (x,))) == []
    results = [torch.func.jvp(lambda x, layer=layer: layer(x)[0], (x,), (x,))[1] for layer in (theirs, ours)]
    assert torch.equal(*results)
    with torch.autograd.forward_ad.dual_level():
        y, _ = ours(torch.autograd.forward_ad.make_dual(x, x))
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(y).tangent, results[0])


def test_other_number_types_go_to_torchs_own_with_one_warning():
    _layers._warn_once.cache_clear()
    theirs, ours = pair("GRU", dtype=torch.bfloat16)
    x = torch.randn(5, 3, 4, dtype=torch.bfloat16)
    with pytest.warns(RuntimeWarning, match=r"torch.bfloat16 tensors on cpu fall back to torch's own forward"):
        y, _ = ours(x)
    assert torch.equal(y, theirs(x)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(x)


# -------------------------------------------------------------------------------------------------- memory and weights


@pytest.mark.parametrize("batch_first", [False, True])
def test_nothing_is_copied(monkeypatch, batch_first):
    _, ours = pair(batch_first=batch_first)
    x, dy = torch.randn(5, 3, 4, requires_grad=True), torch.randn(5, 3, 8)
    state = initial(ours, 5 if batch_first else 3)
    places = {}

    def watched(name, choose):
        real = getattr(functional, name)

        def call(*arguments):
            places[name] = [array.ctypes.data for array in choose(*arguments)]
            return real(*arguments)

        monkeypatch.setattr(functional, name, call)

    def arrays(inputs, outputs):
        return inputs.x, inputs.h0, inputs.c0, outputs.y, outputs.h_n, outputs.c_n

    watched("forward", lambda _engine, _packed, inputs, outputs, _, tape: (*arrays(inputs, outputs), tape))
    watched(
        "backward", lambda _engine, _packed, inputs, y, tape, given, found, _: (inputs.x, y, tape, given.dy, found.dx)
    )
    y, (h_n, c_n) = ours(x, state)
    tape = y.grad_fn.saved_tensors[1] if hasattr(y.grad_fn, "saved_tensors") else None
    y.backward(dy, retain_graph=True)
    results = x, *state, y, h_n, c_n
    assert places["forward"][:6] == [one.data_ptr() for one in results]
    assert places["backward"][:2] == [x.data_ptr(), y.data_ptr()]
    assert places["backward"][2] == places["forward"][6]
    assert places["backward"][3] == dy.data_ptr()
    assert places["backward"][4] == x.grad.data_ptr()
    assert tape is None or tape.data_ptr() == places["forward"][6]


def test_a_tape_goes_with_its_graph():
    _, ours = pair("GRU")
    x = torch.randn(2000, 32, 4)
    with torch.no_grad():
        ours(x)
    tapes = _operators._CACHES[id(ours.weight_ih_l0)].tapes  # the memory of large ones
    assert len(tapes) == 0  # inference makes none
    y = ours(x)[0]
    assert len(tapes) == 0
    del y
    gc.collect()
    assert len(tapes) == 1


def test_the_number_of_prepared_calls_is_bounded():
    _, ours = pair("GRU")
    x = torch.randn(140, 3, 4)
    with torch.no_grad():
        first, again = ([ours(x[:steps])[0] for steps in range(1, 140) for _ in range(2)] for _ in range(2))
    cache = _operators._CACHES[id(ours.weight_ih_l0)]
    assert len(cache._plans) <= 64
    assert 0 < len(cache.packed[0].prepared) <= 64
    assert all(map(torch.equal, first, again))


def test_caches_are_freed_with_the_layer():
    _, ours = pair("GRU")
    gc.collect()
    before = len(_operators._CACHES)
    ours(torch.randn(5, 3, 4))
    assert len(_operators._CACHES) == before + 1
    del ours
    gc.collect()
    assert len(_operators._CACHES) == before


def test_weights_are_packed_when_they_change(packs):
    _, ours = pair("GRU", 40, 64)
    x = torch.randn(5, 3, 40)
    others = {name: torch.randn_like(one) for name, one in ours.state_dict().items()}

    def expect(*calls):
        packs.clear()
        ours(x)[0].sum().backward()
        with torch.no_grad():
            y, _ = ours(x)
        assert packs == list(calls)
        with torch.no_grad():
            assert torch.equal(y, copy.deepcopy(ours)(x)[0])

    expect("forward", "back")
    expect()
    torch.optim.SGD(ours.parameters(), lr=0.1).step()
    expect("forward", "back")
    expect()
    for one in ours.parameters():  # what torch does not count
        one.data -= 0.01 * one.grad.data
    expect("forward", "back")
    ours.bias_hh_l0.data[3] += 1
    expect("forward", "back")
    ours.weight_hh_l0 = torch.nn.Parameter(torch.randn(192, 64))
    expect("forward", "back")
    ours.weight_ih_l0.data = torch.randn(192, 40)
    expect("forward", "back")
    ours.load_state_dict(others)
    expect("forward", "back")
    ours.half().float()
    expect("forward", "back")


def test_changed_weights_in_reused_memory_are_noticed():
    _, ours = pair("GRU")
    x = torch.randn(5, 3, 4)
    ours.requires_grad_(False)
    for _ in range(20):
        y, _ = ours(x)
        ours.weight_hh_l0.data = ours.weight_hh_l0.data * 1.01
        assert not torch.equal(y, ours(x)[0])


def test_changes_of_weights_that_are_not_contiguous_are_noticed():
    _, ours = pair("GRU")
    x = torch.randn(5, 3, 4)
    ours.weight_hh_l0.data = ours.weight_hh_l0.data.t().contiguous().t()
    before = ours(x)[0]
    ours.weight_hh_l0.data[0] += 1
    assert not torch.equal(ours(x)[0], before)


def test_weights_of_several_dtypes_are_refused():
    _, ours = pair("GRU")
    ours.bias_hh_l0.data = ours.bias_hh_l0.data.double()
    with pytest.raises(
        RuntimeError, match=r"the parameters have .* dtypes \['float32', .*'float64'\], .* of one dtype"
    ):
        ours(torch.zeros(5, 3, 4), lengths=[5, 2, 1])


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        layer, x = fast.GRU(4, 8), torch.randn(5, 3, 4)
        assert layer(x)[0].any()
        for one in layer.parameters():
            one.zero_()
        assert not layer(x)[0].any()


def test_many_threads_at_once():
    _, ours = pair(num_layers=2)
    ours.requires_grad_(False)
    xs = [torch.randn(20, 3, 4) for _ in range(8)]
    expected = [copy.deepcopy(ours)(x)[0] for x in xs]
    actual = [None] * len(xs)
    start = threading.Barrier(len(xs))

    def run(i):
        start.wait()
        actual[i] = ours(xs[i])[0]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(xs))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("hidden_size", [8, 256], ids=["small", "pooled"])
def test_weights_that_a_call_reads_are_not_overwritten(monkeypatch, hidden_size):
    one, other = (pair("LSTM", 4, hidden_size)[1] for _ in range(2))
    other.weight_ih_l0 = one.weight_ih_l0
    torch.nn.init.normal_(other.weight_hh_l0)
    x = torch.randn(5, 3, 4)

    def results(layer):
        with torch.no_grad():
            inferred = [layer(x)[0] for _ in range(2)]
        y, _ = layer(x)
        return [*inferred, y, *torch.autograd.grad(y.sin().sum(), list(layer.parameters()))]

    expected = [results(copy.deepcopy(layer)) for layer in (one, other)]
    meanwhile = []
    real = _operators._ready

    def ready(*arguments, **options):
        found = real(*arguments, **options)
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: meanwhile.append(results(other)))
            thread.start()
            thread.join()
        return found

    monkeypatch.setattr(_operators, "_ready", ready)
    assert_close(results(one), expected[0], 0)
    assert len(meanwhile) == 4  # inference, forward and backward
    for found in meanwhile:
        assert_close(found, expected[1], 0)


# ------------------------------------------------------------------------------------------- compiled and distributed


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = fast.LSTM(3, 16, num_layers=2, bidirectional=True)
        self.out = torch.nn.Linear(32, 2)

    def forward(self, x):
        y, (h, c) = self.layer(torch.tanh(x))
        return torch.relu(self.out(y)).sum() + h.sum() + c.sin().sum()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize(("allow_rnn", "dynamic"), [(False, None), (True, None), (True, True)])
def test_compiled(allow_rnn, dynamic):
    import torch._dynamo

    torch._dynamo.reset()
    model = Model()
    with torch._dynamo.config.patch(allow_rnn=allow_rnn):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=allow_rnn, dynamic=dynamic)
        for T, N in [(5, 2), (6, 3)]:
            x = torch.randn(T, N, 3)
            results = []
            for run in (model, compiled):
                model.zero_grad()
                given = x.clone().requires_grad_()
                run(given).backward()
                with torch.no_grad():
                    results.append([run(x), given.grad, *(one.grad for one in model.parameters())])
            assert_close(results[1], results[0], 1e-5)


def _train(rank, port, x, queue):
    """One step of one of two processes on its half of the batch."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(fast.GRU(4, 8, num_layers=2, bidirectional=True))
    for _ in range(2):  # the second finds what the first one left
        model.zero_grad()
        y, h = model(x[:, 2 * rank : 2 * rank + 2])
        (y.square().mean() + h.square().mean()).backward()
    if rank == 0:
        queue.put([one.grad.numpy() for one in model.parameters()])
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # without the end of an interpreter in which threads of gloo may still be alive


def test_distributed_training(monkeypatch):
    import torch.multiprocessing as multiprocessing

    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    x = torch.randn(6, 4, 4)
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    processes = multiprocessing.spawn(_train, (port, x, queue), nprocs=2, join=False)
    gradients = queue.get()
    while not processes.join(timeout=60):
        pass
    torch.manual_seed(0)
    model = fast.GRU(4, 8, num_layers=2, bidirectional=True)
    y, h = model(x)
    (y.square().mean() + h.square().mean()).backward()
    for ours, one in zip(gradients, model.parameters(), strict=True):
        np.testing.assert_allclose(ours, one.grad.numpy(), rtol=1e-4, atol=1e-6)
