"""What the layers promise beyond the kernels: layouts, conversions, who owns what, freezing, dropout, merging."""

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from oracles import assert_close, central_differences, members, named

import rnnfast
from rnnfast import arguments, memory, reference

# Every kind of recurrent layer, as class and options.
KINDS = {
    "rnn_tanh": (rnnfast.RNN, {}),
    "rnn_relu": (rnnfast.RNN, {"nonlinearity": "relu"}),
    "lstm": (rnnfast.LSTM, {}),
    "lstm_projected": (rnnfast.LSTM, {"proj_size": 3}),
    "gru": (rnnfast.GRU, {}),
    "gru_reset_before": (rnnfast.GRU, {"reset_after": False}),
}
STACKS = {
    "plain": {},
    "deep": {"num_layers": 3},
    "both": {"bidirectional": True},
    "deep both without bias": {"num_layers": 2, "bidirectional": True, "bias": False},
}
TOLERANCE = {np.float32: 5e-6, np.float64: 1e-13}

T, N, I, H = 5, 3, 4, 6


def make(kind, **options):
    maker, own = KINDS[kind]
    return maker(I, H, **own, **{"rng": 0, **options})


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def like(state, rng):
    """Random values in the structure of a state."""
    values = tuple(rng.standard_normal(member.shape).astype(member.dtype) for member in members(state))
    return values if isinstance(state, tuple) else values[0]


def results(layer, x, state=None, dy=None, dstate=None):
    """All that a forward and its backward give."""
    y, end, tape = layer.forward(x, state)
    return named(y, end, *layer.backward(tape, dy, dstate))


def assert_same(got, expected):
    """The same bits, shapes and dtypes under the same names."""
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert got[name].dtype == want.dtype, name
        np.testing.assert_array_equal(got[name], want, err_msg=name)


def problem(layer, rng, shape=(T, N, I)):
    """x, state, dy and dstate for a layer."""
    x = rng.standard_normal(shape).astype(layer.dtype)
    y, state = layer(x)
    return x, like(state, rng), rng.standard_normal(y.shape).astype(layer.dtype), like(state, rng)


# ---- against other implementations


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched"])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gru_reset_before"])
def test_torch(torch, kind, stack, layout, dtype, rng):
    torch.set_num_threads(1)  # its own team costs more than these sizes take
    maker, own = KINDS[kind]
    options = {**own, **STACKS[stack], "batch_first": layout == "batch first"}
    layer = maker(I, H, dtype=dtype, **options)
    other = getattr(torch.nn, maker.__name__)(I, H, dtype=getattr(torch, np.dtype(dtype).name), **options)
    assert list(layer.parameters) == list(other.state_dict())
    layer.load_state_dict(other.state_dict())

    x, state, dy, dstate = problem(layer, rng, {"time first": (T, N, I), "batch first": (N, T, I)}.get(layout, (T, I)))
    leaves = [torch.tensor(array, requires_grad=True) for array in (x, *members(state))]
    y, end = other(leaves[0], tuple(leaves[1:]) if isinstance(state, tuple) else leaves[1])
    ends = [torch.tensor(array) for array in (dy, *members(dstate))]
    torch.autograd.backward([y, *members(end)], ends)
    dx, *dinitial = (leaf.grad.numpy() for leaf in leaves)
    expected = named(
        y.detach().numpy(),
        tuple(member.detach().numpy() for member in members(end)),
        dx,
        tuple(dinitial),
        {name: parameter.grad.numpy() for name, parameter in other.named_parameters()},
    )
    assert_close(results(layer, x, state, dy, dstate), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("reverse", [False, True])
def test_reference(kind, reverse, dtype, rng):
    layer = make(kind, num_layers=2, reverse=reverse, dtype=dtype)
    cell = kind.removesuffix("_projected")
    x, state, dy, dstate = problem(layer, rng)
    y, end, tape = reference.forward(cell, layer.state_dict(), x, state, num_layers=2, reverse=reverse)
    expected = named(y, end, *reference.backward(tape, dy, dstate))
    assert_close(results(layer, x, state, dy, dstate), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 4, 3, 5), (2, 0, 5)])
def test_linear_torch(torch, bias, shape, dtype, rng):
    layer = rnnfast.Linear(5, 7, bias, dtype=dtype)
    other = torch.nn.Linear(5, 7, bias, dtype=getattr(torch, np.dtype(dtype).name))
    layer.load_state_dict(other.state_dict())
    x = rng.standard_normal(shape).astype(dtype)
    leaf = torch.tensor(x, requires_grad=True)
    expected = other(leaf)
    dy = rng.standard_normal(expected.shape).astype(dtype)
    expected.backward(torch.tensor(dy))

    y, tape = layer.forward(x)
    grads = layer.backward(tape, dy)
    np.testing.assert_array_equal(layer(x), y)
    assert grads.state is None
    got = {"y": y, "dx": grads.x, **grads.parameters}
    wanted = {name: parameter.grad.numpy() for name, parameter in other.named_parameters()}
    assert_close(got, {"y": expected.detach().numpy(), "dx": leaf.grad.numpy(), **wanted}, TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(), (9,), (4, 5), (0, 3)])
def test_embedding_torch(torch, shape, dtype, rng):
    layer = rnnfast.Embedding(6, 3, dtype=dtype)
    other = torch.nn.Embedding(6, 3, dtype=getattr(torch, np.dtype(dtype).name))
    layer.load_state_dict(other.state_dict())
    ids = rng.integers(0, 6, shape)
    expected = other(torch.tensor(ids))
    dy = rng.standard_normal(expected.shape).astype(dtype)
    expected.backward(torch.tensor(dy))

    y, tape = layer.forward(ids)
    grads = layer.backward(tape, dy)
    np.testing.assert_array_equal(y, expected.detach().numpy())
    np.testing.assert_array_equal(layer(ids.astype(np.uint8)), y)
    np.testing.assert_allclose(grads.parameters["weight"], other.weight.grad.numpy(), rtol=0, atol=TOLERANCE[dtype])
    assert grads.x is None
    assert grads.state is None


def test_embedding_gradient_of_many():
    layer = rnnfast.Embedding(3, 1)
    y, tape = layer.forward(np.ones(10**6, int))
    gradient = layer.backward(tape, np.full_like(y, 0.1)).parameters["weight"]
    np.testing.assert_allclose(gradient[:, 0], [0, 1e5, 0], rtol=1e-7)


# ---- layouts


@pytest.mark.parametrize("stack", STACKS)
def test_layouts_agree(kind, stack, rng):
    layer, first = make(kind, **STACKS[stack]), make(kind, batch_first=True, **STACKS[stack])
    arguments = problem(layer, rng)
    expected = results(layer, *arguments)
    x, state, dy, dstate = arguments
    got = results(first, x.swapaxes(0, 1), state, dy.swapaxes(0, 1), dstate)
    assert got["y"].shape == (N, T, expected["y"].shape[2])
    for name in ("y", "dx"):
        got[name] = got[name].swapaxes(0, 1)
    assert_same(got, expected)

    def row(state):
        values = tuple(member[:, 1] for member in members(state))
        return values if isinstance(state, tuple) else values[0]

    for one in (layer, first):
        alone = results(one, x[:, 1], row(state), dy[:, 1], row(dstate))
        assert alone["y"].shape == (T, expected["y"].shape[2])
        for name, value in expected.items():
            if not name.startswith(("dweight", "dbias")):
                np.testing.assert_array_equal(alone[name], value[:, 1], err_msg=name)


def test_shapes():
    layer = rnnfast.LSTM(I, H, num_layers=2, proj_size=5, bidirectional=True)
    y, (h, c) = layer(np.zeros((T, N, I)))
    assert (y.shape, h.shape, c.shape) == ((T, N, 10), (4, N, 5), (4, N, H))
    y, (h, c) = layer(np.zeros((T, I)))
    assert (y.shape, h.shape, c.shape) == ((T, 10), (4, 5), (4, H))


@pytest.mark.parametrize("shape", [(T, 0, I), (0, T, I)])
def test_no_rows(kind, shape):
    layer = make(kind, num_layers=2, dropout=0.5, batch_first=shape[0] == 0)
    y, state = layer(np.zeros(shape))
    assert y.shape == (*shape[:2], H if kind != "lstm_projected" else 3)
    assert all(member.shape[:2] == (2, 0) for member in members(state))
    got = results(layer, np.zeros(shape), state, y, state)
    assert got["dx"].shape == shape
    assert not any(array.any() for name, array in got.items() if name.startswith(("dweight", "dbias")))


def test_one_step_is_the_chain(kind, rng):
    layer = make(kind, num_layers=2)
    x, state, *_ = problem(layer, rng)
    y, end = layer(x, state)
    for t in range(T):
        y_t, state = layer(x[t : t + 1], state)
        np.testing.assert_array_equal(y_t[0], y[t])
    for got, expected in zip(members(state), members(end), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_many_shapes_in_turn(rng):
    layer = make("lstm")
    x = rng.standard_normal((200, 2, I)).astype(np.float32)
    y, _ = layer(x)
    for length in [*range(1, 101), 1]:
        np.testing.assert_array_equal(layer(x[:length])[0], y[:length])


# ---- what may be given


def _misaligned(array):
    memory = bytearray(array.nbytes + 1)
    odd = np.frombuffer(memory, array.dtype, array.size, offset=1).reshape(array.shape)
    odd[...] = array
    assert not odd.flags.aligned
    return odd


def _padded(array):
    memory = np.full([2 * size + 1 for size in array.shape], np.nan, array.dtype)
    view = memory[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def _rows_apart(array):
    record = np.zeros(array.shape[:-1], [("pad", np.int8), ("row", array.dtype, array.shape[-1:])])
    record["row"] = array
    return record["row"]


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


FORMS = {
    "list": np.ndarray.tolist,
    "fortran": np.asfortranarray,
    "padded": _padded,
    "backwards": lambda a: a[::-1].copy()[::-1],
    "last axis backwards": lambda a: a[..., ::-1].copy()[..., ::-1],
    "batch inside": lambda a: np.moveaxis(np.moveaxis(a, -2, 0).copy(), 0, -2),
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": _misaligned,
    "rows apart by no whole number of items": _rows_apart,
    "read-only": _read_only,
    "float64": lambda a: a.astype(np.float64),
    "longdouble": lambda a: a.astype(np.longdouble),
    "subclass": lambda a: a.view(np.recarray),
    "own dtype object": lambda a: a.astype(np.dtype(a.dtype.str, metadata={"unit": "m"})),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_arrays(kind, form, rng):
    layer = make(kind, bidirectional=True)
    x, state, dy, dstate = problem(layer, rng)
    expected = results(layer, x, state, dy, dstate)

    def convert(value):
        return tuple(map(FORMS[form], value)) if isinstance(value, tuple) else FORMS[form](value)

    given = [convert(value) for value in (x, state, dy, dstate)]
    assert_same(results(layer, *given), expected)
    for array, original in zip(given, (x, state, dy, dstate), strict=True):
        for member, value in zip(members(array), members(original), strict=True):
            np.testing.assert_array_equal(member, value)  # not written to
    np.testing.assert_array_equal(layer(given[0], given[1])[0], expected["y"])

    linear = rnnfast.Linear(I, H, rng=0)
    y, tape = linear.forward(given[0])
    grads = linear.backward(tape, FORMS[form](y))
    np.testing.assert_array_equal(y, linear(x))
    assert_same(grads.parameters, linear.backward(tape, y).parameters)


@pytest.mark.parametrize("form", FORMS)
def test_kernels_can_read_any_form(form, dtype, rng):
    array = rng.standard_normal((T, N, I)).astype(np.float32).astype(dtype)
    got = arguments.real("x", FORMS[form](array), np.dtype(dtype))
    np.testing.assert_array_equal(got, array)
    assert got.dtype == dtype
    assert got.flags.aligned
    assert got.strides[-1] == got.itemsize
    assert not any(stride % got.itemsize for stride in got.strides)


@pytest.mark.parametrize("view", ["rows", "every second", "backwards", "batch inside"])
def test_views_are_not_copied(view, dtype):
    memory = np.zeros((T, N, 2 * I), dtype)
    views = {
        "rows": memory[1:, :-1],
        "every second": memory[::2, :, 1 : 1 + I],
        "backwards": memory[::-1, ::-1],
        "batch inside": memory.transpose(1, 0, 2),
    }
    assert arguments.real("x", views[view], np.dtype(dtype)) is views[view]


@pytest.mark.parametrize("other", [bool, np.int8, np.uint64, np.float16])
def test_other_dtypes_are_converted(other, dtype, rng):
    layer = make("lstm", dtype=dtype)
    x = rng.integers(0, 2, (T, N, I)).astype(other)
    np.testing.assert_array_equal(layer(x)[0], layer(x.astype(dtype))[0])
    assert layer(x)[0].dtype == dtype


def test_broadcast_input():
    layer = make("gru")
    x = np.ones((T, N, I), np.float32)
    np.testing.assert_array_equal(layer(np.broadcast_to(np.float32(1), x.shape))[0], layer(x)[0])
    np.testing.assert_array_equal(layer(np.broadcast_to(x[:1], x.shape))[0], layer(x)[0])


def test_list_as_state_pair(rng):
    layer = make("lstm")
    x, (h, c), *_ = problem(layer, rng)
    np.testing.assert_array_equal(layer(x, [h, c])[0], layer(x, (h, c))[0])


def test_none_is_zeros(kind, rng):
    layer = make(kind, num_layers=2)
    x, state, dy, dstate = problem(layer, rng)
    zeros = [tuple(map(np.zeros_like, s)) if isinstance(s, tuple) else np.zeros_like(s) for s in (state, dy)]
    assert_same(results(layer, x, None, dy, None), results(layer, x, zeros[0], dy, zeros[0]))
    assert_same(results(layer, x, state, None, dstate), results(layer, x, state, zeros[1], dstate))
    if isinstance(state, tuple):
        for k in range(2):
            one = tuple(None if j == k else member for j, member in enumerate(state))
            filled = tuple(np.zeros_like(member) if j == k else member for j, member in enumerate(state))
            assert_same(results(layer, x, one, dy, one), results(layer, x, filled, dy, filled))


def test_nan_stays_in_its_row(kind, rng):
    layer = make(kind, num_layers=2, bidirectional=True)
    x, state, dy, dstate = problem(layer, rng)
    expected = results(layer, x, state, dy, dstate)
    x[2, 1, 0], members(state)[0][0, 1, 0] = np.nan, np.inf
    for name, value in results(layer, x, state, dy, dstate).items():
        if not name.startswith(("dweight", "dbias")):
            np.testing.assert_array_equal(value[:, [0, 2]], expected[name][:, [0, 2]], err_msg=name)
            assert not np.array_equal(value[:, 1], expected[name][:, 1]), name


# ---- who owns what


def test_results_are_the_callers(kind, rng):
    layer = make(kind)
    x, state, *_ = problem(layer, rng)
    y, end = layer(x, state)
    arrays = [x, *members(state), y, *members(end), *layer.parameters.values()]
    kept = [array.copy() for array in arrays]
    y_again, end_again = layer(x, state)
    for array in (y_again, *members(end_again)):
        assert not any(np.shares_memory(array, other) for other in arrays)
        array[...] = np.nan
    layer(x[:1])
    for array, copy in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_training_owns(kind, rng):
    layer = make(kind)
    x, state, dy, dstate = problem(layer, rng)
    expected = results(layer, x, state, dy, dstate)
    y, end, tape = layer.forward(x, state)
    np.testing.assert_array_equal(y, layer(x, state)[0])
    assert not y.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        y[0] = 0
    for member in (*members(end), *members(state)):
        assert member.flags.writeable
        member[...] = np.nan  # the tape has its own
    grads = layer.backward(tape, dy, dstate)
    assert_same({name: expected[f"d{name}"] for name in grads.parameters}, grads.parameters)
    for array in (grads.x, *members(grads.state), *grads.parameters.values()):
        assert array.flags.writeable
        array[...] = np.nan
    again = layer.backward(tape, dy, dstate)
    assert_same({name: expected[f"d{name}"] for name in again.parameters}, again.parameters)
    np.testing.assert_array_equal(again.x, expected["dx"])


def test_tape_holds_x_by_reference(rng):
    layer = make("gru")
    memory = rng.standard_normal((2 * T, N, I + 1)).astype(np.float32)
    for x in (memory[:T, :, :I], memory[::-2, :, 1:], np.ascontiguousarray(memory[:T, :, 1:])):
        y, _, tape = layer.forward(x)
        before = layer.backward(tape, y).parameters["weight_ih_l0"]
        x *= 2
        np.testing.assert_array_equal(layer.backward(tape, y).parameters["weight_ih_l0"], 2 * before)


@pytest.mark.parametrize("frozen", [False, True])
def test_tape_is_of_its_forward(kind, frozen, rng):
    layer = make(kind, num_layers=2, dropout=0.5, rng=7)
    x, state, dy, dstate = problem(layer, rng)
    if frozen:
        layer.freeze()
    tapes, expected = [], []
    for scale in (1, 2, 3):
        _, _, tape = layer.forward(scale * x[: T - scale], state)
        tapes.append(tape)
        layer.forward(x)  # its tape ends here, and its memory is used again
        expected.append(layer.backward(tape, dy[: T - scale], dstate))
    layer.unfreeze()
    for array in layer.parameters.values():
        array[...] = np.nan
    layer(x)
    layer.forward(x)
    for k in (1, 0, 2, 1):  # out of order, and more than once
        got = layer.backward(tapes[k], dy[: T - 1 - k], dstate)
        assert_same(got.parameters, expected[k].parameters)
        np.testing.assert_array_equal(got.x, expected[k].x)


def test_memory_of_many_tapes_is_given_back():
    layer, x = make("lstm"), np.ones((500, 10, I), np.float32)
    layer.forward(x)
    tracemalloc.start()
    try:
        tapes = [layer.forward(x)[-1] for _ in range(30)]
        held, _ = tracemalloc.get_traced_memory()
        del tapes
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < held / 5


def test_parameters_are_seen_by_the_next_call(kind, rng):
    layer, other = make(kind), make(kind, rng=3)
    x, *_ = problem(layer, rng)
    for name, array in layer.parameters.items():
        array[...] = other.parameters[name]
    np.testing.assert_array_equal(layer(x)[0], other(x)[0])
    np.testing.assert_array_equal(layer.forward(x)[0], other(x)[0])
    with pytest.raises(TypeError):
        layer.parameters["weight_ih_l0"] = np.zeros((1, 1))


def test_parameters_can_be_exchanged():
    layer = make("gru")
    before = layer.state_dict()
    one, other = layer.parameters["bias_ih_l0"], layer.parameters["bias_hh_l0"]
    layer.load_state_dict({"bias_ih_l0": other, "bias_hh_l0": one}, strict=False)
    np.testing.assert_array_equal(one, before["bias_hh_l0"])
    np.testing.assert_array_equal(other, before["bias_ih_l0"])


def test_frozen(kind, rng):
    layer = make(kind, num_layers=2)
    x, state, dy, dstate = problem(layer, rng)
    expected = results(layer, x, state, dy, dstate)
    view = layer.parameters["weight_ih_l0"][...]
    layer.freeze()
    layer.freeze()
    assert not any(array.flags.writeable for array in layer.parameters.values())
    for _ in range(2):
        np.testing.assert_array_equal(layer(x, state)[0], expected["y"])
        assert_same(results(layer, x, state, dy, dstate), expected)
    view[...] = 0
    np.testing.assert_array_equal(layer(x, state)[0], expected["y"])
    layer.unfreeze()
    assert all(array.flags.writeable for array in layer.parameters.values())
    assert not np.array_equal(layer(x, state)[0], expected["y"])


# How an array of the same numbers may come, in the order in which a layer that repeats its last call meets them.
GUISES = {
    "as it is": lambda x: x,
    "again": lambda x: x,
    "list": lambda x: x.tolist(),
    "other dtype": lambda x: x.astype(np.float64 if x.dtype == np.float32 else np.float32),
    "after that": lambda x: x,
    "with gaps": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "backwards": lambda x: x[::-1].copy()[::-1],
    "by columns": np.asfortranarray,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned": lambda x: np.frombuffer(b"." + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    "memoryview": memoryview,
    "masked": np.ma.masked_array,
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "at last": lambda x: x,
}


@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_frozen_calls_repeated(kind, layout, dtype, rng):
    """Each call is as the first one, however x comes, and its results are its own."""
    layer = make(kind, num_layers=2, bidirectional=True, dtype=dtype, batch_first=layout == "batch first")
    shape = {"time first": (T, N, I), "batch first": (N, T, I), "unbatched": (T, I)}[layout]
    x = rng.integers(-9, 9, shape).astype(dtype)  # the same numbers in every dtype
    start = layer(x)[1]
    for member in members(start):
        member[...] = rng.integers(-1, 2, member.shape)
    answers = [
        (given, layer(x, given))
        for given in (None, start, members(start)[0] if kind[:4] != "lstm" else (None, start[1]))
    ]
    layer.freeze()
    for name, guise in GUISES.items():
        for given, (y, end) in answers:
            if isinstance(given, tuple):
                again = tuple(None if member is None else guise(member) for member in given)
            else:
                again = None if given is None else guise(given)
            got_y, got_end = layer(guise(x), again)
            for got, want in zip([got_y, *members(got_end)], [y, *members(end)], strict=True):
                np.testing.assert_array_equal(got, want, err_msg=name)
                assert got.dtype == want.dtype
                assert got.flags.owndata
                got.fill(np.nan)


def test_frozen_calls_refuse_what_does_not_fit(kind):
    """As any call does: with an error, and the next one goes on."""
    layer = make(kind)
    layer.freeze()
    x = np.ones((T, N, I), np.float32)
    y, state = layer(x)
    h, *c = members(state)
    wrong = [h[:, :2], h[0], h[..., :2], np.float32(0), "h", object()]
    for other in wrong:
        given = [(other, *c), *([(h, other), (h,), (h, *c, h), h] if c else [])] if c else [other, (h, h, h)]
        for bad in given:
            with pytest.raises((TypeError, ValueError), match="state"):
                layer(x, bad)
    with pytest.raises((TypeError, ValueError), match="x"):
        layer(x[..., :3], state)
    np.testing.assert_array_equal(layer(x)[0], y)


def test_frozen_calls_of_many_shapes(kind, rng):
    layer, frozen = make(kind), make(kind)
    frozen.freeze()
    for steps, rows in [(1, 1), (1, 1), (7, 1), (7, 1), (1, 7), (7, 1), (3, 0), (3, 0), (90, 40), (90, 40)]:
        x = rng.standard_normal((steps, rows, I)).astype(np.float32)
        for given in (None, like(layer(x)[1], rng), None):
            (y, state), (want, end) = frozen(x, given), layer(x, given)
            for got, expected in zip([y, *members(state)], [want, *members(end)], strict=True):
                np.testing.assert_array_equal(got, expected)
    with pytest.raises(ValueError, match="has 3 features"):
        frozen(np.zeros((90, 40, 3), np.float32))


def test_frozen_calls_end_with_the_freezing(kind, rng):
    layer = make(kind)
    x = rng.standard_normal((T, N, I)).astype(np.float32)
    for _ in range(2):
        layer.freeze()
        for _ in range(3):
            y, _ = layer(x)
        layer.unfreeze()
        for array in layer.parameters.values():
            array *= 2
        other = make(kind)
        other.load_state_dict(layer.state_dict())
        np.testing.assert_array_equal(layer(x)[0], other(x)[0])
        assert not np.array_equal(layer(x)[0], y)


def test_frozen_calls_from_many_threads(rng):
    layer = make("lstm")
    inputs = [rng.standard_normal((60, 20, I)).astype(np.float32) for _ in range(4)]
    expected = [layer(x)[0] for x in inputs]
    layer.freeze()

    def work(k):
        for _ in range(50):
            np.testing.assert_array_equal(layer(inputs[k])[0], expected[k])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@pytest.mark.parametrize("frozen", [False, True])
def test_large_results_are_the_callers(frozen, rng):
    """Their memory is used again, but not while any array or view of it is left."""
    layer = rnnfast.GRU(8, 300, rng=0)
    if frozen:
        layer.freeze()
    kept = []
    for k in range(8):
        x = rng.standard_normal((60, 16, 8)).astype(np.float32)
        y, _ = layer(x)
        z, _, tape = layer.forward(x)
        grads = layer.backward(tape, y)
        assert min(y.nbytes, z.nbytes, grads.parameters["weight_hh_l0"].nbytes) >= memory.LARGE
        np.testing.assert_array_equal(y, z)
        assert y.flags.writeable
        assert grads.parameters["weight_hh_l0"].flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            z.flags.writeable = True
        views = [y[3:5, 2], z[7:], grads.parameters["weight_hh_l0"].T[1:4]]
        kept.append([(view, view.copy()) for view in views] if k % 2 else [(y, y.copy()), (z, z.copy())])
        if k == 5:
            del kept[:3]
    for pairs in kept:
        for view, copy in pairs:
            np.testing.assert_array_equal(view, copy)


def test_large_results_are_used_again():
    layer = rnnfast.RNN(8, 300, rng=0)
    x = np.ones((60, 16, 8), np.float32)
    y, _ = layer(x)
    place = y.ctypes.data
    half = y[:30]
    del y
    assert layer(x)[0].ctypes.data != place
    del half
    assert place in (layer(x)[0].ctypes.data, layer(2 * x)[0].ctypes.data)
    assert len(layer._results) <= layer._results.most


def test_frozen_linear_and_embedding(rng):
    linear, x = rnnfast.Linear(I, H, rng=0), rng.standard_normal((N, I)).astype(np.float32)
    y = linear(x)
    _, before = linear.forward(x)
    linear.freeze()
    _, tape = linear.forward(x)
    assert not linear.parameters["weight"].flags.writeable
    np.testing.assert_array_equal(linear(x), y)
    expected = linear.backward(before, y)
    linear.unfreeze()
    linear.parameters["weight"][...] = 0
    for kept in (before, tape):
        np.testing.assert_array_equal(linear.backward(kept, y).x, expected.x)
    np.testing.assert_array_equal(linear(x), np.broadcast_to(linear.parameters["bias"], y.shape))

    embedding = rnnfast.Embedding(5, 2)
    embedding.freeze()
    with pytest.raises(ValueError, match="read-only"):
        embedding.parameters["weight"][0] = 0
    rows = embedding([1, 1])
    rows[0] = 0
    np.testing.assert_array_equal(embedding([1])[0], embedding.parameters["weight"][1])


def test_python_threads_share_a_layer(rng):
    layer = make("lstm", num_layers=2, bidirectional=True)
    inputs = [rng.standard_normal((1 + k % 3, 1 + k % 4, I)).astype(np.float32) for k in range(12)]
    expected = [results(layer, x, dy=layer(x)[0]) for x in inputs]
    faults = []

    def work(offset):
        try:
            for k in range(60):
                j = (k + offset) % len(inputs)
                y, _ = layer(inputs[j])
                np.testing.assert_array_equal(y, expected[j]["y"])
                assert_same(results(layer, inputs[j], dy=y), expected[j])
        except BaseException as fault:
            faults.append(fault)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not faults


# ---- initial values and dropout


@pytest.mark.parametrize(
    ("layer", "bound"),
    [
        (rnnfast.LSTM(30, 100, 2, proj_size=40, bidirectional=True, rng=0), 0.1),
        (rnnfast.GRU(30, 100, rng=0), 0.1),
        (rnnfast.Linear(400, 50, rng=0), 0.05),
    ],
)
def test_initial_values_are_uniform(layer, bound):
    for array in layer.parameters.values():
        assert np.abs(array).max() <= bound
        assert np.abs(array).max() > 0.85 * bound
        assert abs(array.mean()) < 0.2 * bound
        np.testing.assert_allclose(array.std(), bound / np.sqrt(3), rtol=0.2)


def test_embedding_is_normal():
    weight = rnnfast.Embedding(200, 100, rng=0).parameters["weight"]
    np.testing.assert_allclose([weight.mean(), weight.std(), (weight**4).mean()], [0, 1, 3], atol=0.1)


def test_random_generator():
    seeded, same, other = (make("lstm", rng=seed).state_dict() for seed in (5, np.random.default_rng(5), 6))
    assert_same(seeded, same)
    assert not np.array_equal(seeded["weight_ih_l0"], other["weight_ih_l0"])
    assert not np.array_equal(*(make("lstm", rng=None).parameters["weight_ih_l0"] for _ in range(2)))
    shared = np.random.default_rng(5)
    assert_same(make("lstm", rng=shared).state_dict(), seeded)
    assert shared.bit_generator.state != np.random.default_rng(5).bit_generator.state


def _copier(dropout, num_layers=2, **options):
    """An RNN whose layers pass non-negative inputs on, so that y shows what was dropped."""
    layer = rnnfast.RNN(50, 50, num_layers, nonlinearity="relu", bias=False, dropout=dropout, rng=0, **options)
    for name, array in layer.parameters.items():
        array[...] = np.eye(50) if "_ih_" in name else 0
    return layer


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.75, 1.0])
def test_dropout(dropout, dtype):
    layer = _copier(dropout, dtype=dtype)
    x = np.ones((40, 5, 50), dtype)
    np.testing.assert_array_equal(layer(x)[0], x)
    y, _, tape = layer.forward(x)
    factor = dtype(1 / (1 - dropout)) if dropout < 1 else 0
    assert set(np.unique(y)) <= {0, factor}
    np.testing.assert_allclose((y == 0).mean(), dropout, atol=0.02)
    for axis in range(3):
        along = np.moveaxis(y, axis, 0)
        assert dropout in (0, 1) or not np.array_equal(along[0], along[1])
    np.testing.assert_array_equal(layer.backward(tape, x).x, y)
    again, _, _ = layer.forward(x)
    assert dropout in (0, 1) or not np.array_equal(again, y)


def test_dropout_follows_the_seed():
    x = np.ones((4, 3, 50))
    one, same = _copier(0.5), _copier(0.5)
    for _ in range(3):
        y = one.forward(x)[0]
        same(x)  # draws nothing
        np.testing.assert_array_equal(same.forward(x)[0], y)


def test_dropout_acts_between_layers_only():
    y, _, _ = _copier(0.5, num_layers=4).forward(np.ones((40, 5, 50)))
    assert set(np.unique(y)) == {0, 8}
    np.testing.assert_allclose((y == 8).mean(), 1 / 8, atol=0.02)
    with pytest.warns(UserWarning, match="num_layers=1"):
        layer = _copier(0.5, num_layers=1)
    np.testing.assert_array_equal(layer.forward(np.ones((4, 5, 50)))[0], 1)


# ---- Bidirectional


def pair(merge="concat", **options):
    return rnnfast.Bidirectional(
        make("lstm", num_layers=2, dtype=np.float64, **options),
        make("gru", dtype=np.float64, reverse=True, **options),
        merge,
    )


def test_bidirectional_is_torchs(torch, rng):
    other = torch.nn.LSTM(I, H, bidirectional=True)
    layer = rnnfast.Bidirectional(make("lstm"))
    assert layer.backward_layer.reverse
    names = {name.replace("_reverse", ""): value for name, value in other.state_dict().items() if "_reverse" in name}
    layer.forward_layer.load_state_dict(other.state_dict(), strict=False)
    layer.backward_layer.load_state_dict(names)
    x = rng.standard_normal((T, N, I)).astype(np.float32)
    y, (h, c) = other(torch.tensor(x))
    got, ((h_f, c_f), (h_b, c_b)) = layer(x)
    assert_close(
        {"y": got, "h": np.concatenate((h_f, h_b)), "c": np.concatenate((c_f, c_b))},
        {"y": y.detach().numpy(), "h": h.detach().numpy(), "c": c.detach().numpy()},
        TOLERANCE[np.float32],
    )


MERGED = {
    "concat": lambda f, b: np.concatenate((f, b), axis=-1),
    "sum": lambda f, b: f + b,
    "mul": lambda f, b: f * b,
    "mean": lambda f, b: (f + b) / 2,
    None: lambda f, b: (f, b),
}


@pytest.mark.parametrize("merge", MERGED)
def test_merge(merge, rng):
    layer = pair(merge)
    x = rng.standard_normal((T, N, I))
    (y_f, state_f), (y_b, state_b) = layer.forward_layer(x), layer.backward_layer(x)
    expected = MERGED[merge](y_f, y_b)
    state = like(state_f, rng), like(state_b, rng)
    y, end = layer(x)
    for got in (y, layer.forward(x)[0]):
        np.testing.assert_array_equal(np.array(got), np.array(expected))
    np.testing.assert_array_equal(end[0][1], state_f[1])
    np.testing.assert_array_equal(end[1], state_b)

    dy = tuple(map(np.cos, y)) if merge is None else np.cos(y)
    dstate = like(state_f, rng), like(state_b, rng)

    def loss():
        y, end = layer(x, state)
        ends = [*end[0], end[1]]
        return np.vdot(y, dy) + sum(map(np.vdot, ends, [*dstate[0], dstate[1]]))

    y, _, tape = layer.forward(x, state)
    grads = layer.backward(tape, dy, dstate)
    assert list(grads.parameters) == list(layer.parameters)
    variables = [x, *state[0], state[1], *layer.parameters.values()]
    for array, got in zip(
        variables, [grads.x, *grads.state[0], grads.state[1], *grads.parameters.values()], strict=True
    ):
        np.testing.assert_allclose(got, central_differences(loss, array), rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(T, N, I), (T, I)])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("merge", ["concat", None])
def test_backward_layer_without_reverse_is_turned(merge, batch_first, shape, rng):
    reverse = pair(merge, batch_first=batch_first)
    plain = make("gru", dtype=np.float64, batch_first=batch_first)
    turned = rnnfast.Bidirectional(make("lstm", num_layers=2, dtype=np.float64, batch_first=batch_first), plain, merge)
    x = rng.standard_normal(shape)
    for got, expected in zip(turned(x)[0], reverse(x)[0], strict=True):
        np.testing.assert_array_equal(got, expected)
    y, _, tape = turned.forward(x)
    y_reverse, _, tape_reverse = reverse.forward(x)
    got, expected = turned.backward(tape, y), reverse.backward(tape_reverse, y_reverse)
    np.testing.assert_array_equal(got.x, expected.x)
    assert_same(got.parameters, expected.parameters)
    assert turned.backward(tape, None).x.shape == shape


def test_bidirectional_shares_its_layers():
    layer = pair()
    parameters = layer.parameters
    assert parameters["forward.weight_ih_l1"] is layer.forward_layer.parameters["weight_ih_l1"]
    assert parameters["backward.bias_hh_l0"] is layer.backward_layer.parameters["bias_hh_l0"]
    x = np.ones((T, N, I))
    y, _ = layer(x)
    layer.freeze()
    assert not any(array.flags.writeable for array in parameters.values())
    np.testing.assert_array_equal(layer(x)[0], y)
    layer.unfreeze()
    assert all(array.flags.writeable for array in parameters.values())


def test_second_layer_is_like_the_first():
    layer = rnnfast.Bidirectional(make("gru_reset_before", num_layers=2, bias=False, dtype=np.float64, rng=0))
    assert repr(layer.backward_layer).replace(", reverse=True", "") == repr(layer.forward_layer)
    first, second = (one.parameters["weight_hh_l1"] for one in (layer.forward_layer, layer.backward_layer))
    assert not np.array_equal(first, second)
    again = rnnfast.Bidirectional(make("gru_reset_before", num_layers=2, bias=False, dtype=np.float64, rng=0))
    assert_same(layer.state_dict(), again.state_dict())


# ---- what is shown


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (rnnfast.RNN(4, 6), "RNN(4, 6)  # 72 parameters"),
        (
            rnnfast.RNN(4, 6, nonlinearity="relu", bias=False),
            "RNN(4, 6, nonlinearity='relu', bias=False)  # 60 parameters",
        ),
        (
            rnnfast.LSTM(4, 6, 2, proj_size=3, dtype="f8"),
            "LSTM(4, 6, num_layers=2, proj_size=3, dtype='float64')  # 444 parameters",
        ),
        (
            rnnfast.GRU(4, 6, reset_after=False, reverse=True),
            "GRU(4, 6, reset_after=False, reverse=True)  # 216 parameters",
        ),
        (rnnfast.Linear(4, 6, bias=False), "Linear(4, 6, bias=False)  # 24 parameters"),
        (rnnfast.Embedding(4, 6), "Embedding(4, 6)  # 24 parameters"),
        (
            rnnfast.Bidirectional(rnnfast.RNN(4, 6), merge=None),
            "Bidirectional(RNN(4, 6), backward_layer=RNN(4, 6, reverse=True), merge=None)  # 144 parameters",
        ),
    ],
)
def test_repr(layer, text):
    assert repr(layer) == text
    assert repr(eval(text, vars(rnnfast).copy())) == text
