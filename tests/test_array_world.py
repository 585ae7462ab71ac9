"""Arrays of other libraries, and any object that exports CPU memory, can be passed in place of an ndarray."""

import array
import ctypes

import numpy as np
import pytest

import rnnfast
from rnnfast import arguments

T, N, I, H = 4, 3, 5, 6
FLOAT32 = np.dtype(np.float32)
LAYER = rnnfast.LSTM(I, H, bidirectional=True, rng=0)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((T, N, I), np.float32)
STATE = RNG.standard_normal((2, 2, N, H), np.float32)
DY = RNG.standard_normal((T, N, 2 * H), np.float32)


class OnlyDLPack:
    """An array with the attributes of the array API standard and no others."""

    def __init__(self, array, device=1):
        self.array, self.device = array, device

    def __dlpack__(self, *, stream=None):
        capsule = self.array.__dlpack__(stream=stream)
        pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
        pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        device = ctypes.c_int32.from_address(pointer_of(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p))
        assert device.value == 1
        device.value = self.device
        return capsule

    def __dlpack_device__(self):
        return (self.device, 0)


class OnlyArray:
    """__array__ with its signature before NumPy 2."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None):
        return self.array if dtype is None else self.array.astype(dtype)


class OnlyInterface:
    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


def ctypes_array(array):
    form = np.ctypeslib.as_ctypes_type(array.dtype)
    for length in reversed(array.shape):
        form = form * length
    return form.from_buffer(array)


def torch_tensor(array):
    return pytest.importorskip("torch", reason="torch is not installed: its tensors are not tried").from_numpy(array)


def jax_array(array):
    jax = pytest.importorskip("jax", reason="jax is not installed: its arrays are not tried")
    return jax.numpy.asarray(array.astype(np.int32) if array.dtype == np.int64 else array)


WORLD = {
    "dlpack": OnlyDLPack,
    "__array__": OnlyArray,
    "__array_interface__": OnlyInterface,
    "memoryview": memoryview,
    "ctypes": ctypes_array,
    "torch": torch_tensor,
    "jax": jax_array,
}


@pytest.fixture(params=WORLD)
def foreign(request):
    """Convert an ndarray to an object of another library, without a copy where possible."""
    return WORLD[request.param]


def same(got, expected):
    """The arrays in nested tuples or mappings."""
    if isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(got, expected, strict=True)
    elif hasattr(expected, "keys"):
        assert got.keys() == expected.keys()
        same(tuple(got.values()), tuple(expected.values()))
    else:
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            same(one, other)


# ---- accepted


def test_calls(foreign):
    state = foreign(STATE[0]), foreign(STATE[1])
    same(LAYER(foreign(X), state), LAYER(X, tuple(STATE)))
    frozen = rnnfast.GRU(I, H, rng=0)
    frozen.freeze()
    expected = frozen(X, STATE[0, :1])
    for _ in range(3):
        same(frozen(foreign(X), foreign(STATE[0, :1])), expected)


def test_forward_and_backward(foreign):
    def gradients(of):
        _, _, tape = LAYER.forward(of(X), (of(STATE[0]), of(STATE[1])))
        return LAYER.backward(tape, of(DY), (of(STATE[1]), None))

    given, expected = gradients(foreign), gradients(lambda array: array)
    same((given.x, given.state[0], given.parameters), (expected.x, expected.state[0], expected.parameters))


def test_lengths_masks_and_resets(foreign):
    lengths, mask, reset = np.array([4, 0, 2]), np.array([[1, 0, 1]] * T) != 0, np.array([[0, 0, 1]] * T) != 0
    same(LAYER(X, lengths=foreign(lengths)), LAYER(X, lengths=lengths))
    if foreign is OnlyDLPack and np.lib.NumpyVersion(np.__version__) < "1.25.0":
        pytest.skip("this NumPy's DLPack knows no booleans")
    same(LAYER(X, mask=foreign(mask), reset=foreign(reset)), LAYER(X, mask=mask, reset=reset))


def test_load_state_dict(foreign):
    layer = rnnfast.LSTM(I, H, bidirectional=True)
    layer.load_state_dict({name: foreign(value.copy()) for name, value in LAYER.parameters.items()})
    same(layer.parameters, LAYER.parameters)


def test_other_layers_and_streams(foreign):
    linear, embedding, both = rnnfast.Linear(I, 2), rnnfast.Embedding(9, I), rnnfast.Bidirectional(rnnfast.GRU(I, H))
    ids = np.array([[1, 8, 0]])
    same(linear(foreign(X)), linear(X))
    same(embedding(foreign(ids)), embedding(ids))
    same(both(foreign(X)), both(X))
    layer = rnnfast.GRU(I, H)
    same(rnnfast.Stream(layer, N).step(foreign(X[0])), rnnfast.Stream(layer, N).step(X[0]))


def test_losses_and_windows(foreign):
    training, targets = rnnfast.training, np.array([[1, 0, 2]] * T)
    for function, *given in ((training.mean_squared_error, X, X + 1), (training.softmax_cross_entropy, X, targets)):
        (loss, gradient), (expected, derivative) = function(*map(foreign, given)), function(*given)
        assert loss == expected
        same(gradient, derivative)
    layer = rnnfast.GRU(I, H, rng=0)
    windows = zip(training.truncated_bptt(layer, foreign(X), 2), training.truncated_bptt(layer, X, 2), strict=True)
    for own, expected in windows:
        same(own.y, expected.y)


def test_array_of_the_standard_library():
    lengths = array.array("q", [4, 0, 2])
    same(LAYER(X, lengths=lengths), LAYER(X, lengths=np.array(lengths)))
    same(rnnfast.Linear(I, 2, rng=0)(array.array("f", X[0, 0])), rnnfast.Linear(I, 2, rng=0)(X[0, 0]))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8, ">f4"])
def test_other_dtypes_are_converted(foreign, dtype):
    x = np.round(X * 4).astype(dtype)
    if dtype == ">f4" and foreign in (OnlyDLPack, torch_tensor, jax_array, ctypes_array):
        pytest.skip("knows no foreign byte order")
    if dtype == np.float16 and foreign is ctypes_array:
        pytest.skip("knows no float16")
    if dtype == np.float64 and foreign is jax_array:
        pytest.skip("knows no float64 unless it is told to")
    same(LAYER(foreign(x)), LAYER(x.astype(np.float32)))


# ---- without a copy


def test_suitable_arrays_are_not_copied(foreign):
    made = foreign(X)
    result = arguments.real("x", made, FLOAT32)
    own = np.asarray(made) if foreign is jax_array else X  # jax may have copied what it was given
    assert result.dtype == FLOAT32
    assert result.shape == X.shape
    assert np.shares_memory(result, own)
    assert result.ctypes.data == own.ctypes.data


@pytest.mark.parametrize("foreign", [OnlyDLPack, OnlyArray, OnlyInterface, memoryview, torch_tensor])
def test_strided_arrays_are_not_copied(foreign):
    turned = X.transpose(1, 0, 2)[:, ::2]
    result = arguments.real("x", foreign(turned), FLOAT32)
    assert np.shares_memory(result, X)
    same(result, turned)


def test_read_only_memory():
    frozen = X.copy()
    frozen.flags.writeable = False
    for x in (frozen, memoryview(frozen), memoryview(X.tobytes()).cast("f", X.shape), OnlyArray(frozen)):
        same(LAYER(x), LAYER(X))
        assert not arguments.real("x", x, FLOAT32).flags.writeable


# ---- rejected


@pytest.mark.parametrize(("device", "name"), [(2, "cuda:0"), (8, "metal:0"), (77, "number 77 of DLPack:0")])
def test_memory_of_a_device(device, name):
    with pytest.raises(TypeError, match=rf"x cannot be .*: it is on the device {name}: pass a copy on the CPU"):
        LAYER(OnlyDLPack(X, device))
    with pytest.raises(TypeError, match=r"mask cannot be read as an array: it is on the device"):
        LAYER(X, mask=OnlyDLPack(np.ones((T, N), np.uint8), device))


def test_a_tensor_without_memory(torch):
    with pytest.raises(TypeError, match=r"x cannot be read as an array: .*meta"):
        LAYER(torch.empty(T, N, I, device="meta"))


def test_tensors_that_require_grad(torch):
    of = lambda array: torch.from_numpy(array).requires_grad_()  # noqa: E731
    mend = r"cannot be read as an array: it requires grad, .*detach\(\), or use rnnfast\.backends\.torch"
    _, _, tape = LAYER.forward(X)
    before = {name: value.copy() for name, value in LAYER.parameters.items()}
    for name, call in {
        "x": lambda: LAYER(of(X)),
        r"state\[0\] \(h\)": lambda: LAYER(X, (of(STATE[0]), None)),
        r"state\[1\] \(c\)": lambda: LAYER.forward(X, (None, of(STATE[0]))),
        "dy": lambda: LAYER.backward(tape, of(DY)),
        r"arrays\['bias_ih_l0'\]": lambda: LAYER.load_state_dict(
            {name: of(value.copy()) if name == "bias_ih_l0" else value * 0 for name, value in before.items()}
        ),
    }.items():
        with pytest.raises(TypeError, match=f"^{name} {mend}"):
            call()
    same(LAYER.parameters, before)
    same(LAYER(of(X).detach()), LAYER(X))


def test_bfloat16(torch):
    with pytest.raises(TypeError, match=r"x cannot be read as an array: NumPy has no bfloat16: pass x\.float\(\)"):
        LAYER(torch.ones(T, N, I, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"x cannot be read as an array: .*dtype"):
        LAYER(OnlyDLPackOf(torch.ones(T, N, I, dtype=torch.bfloat16)))
    jax = pytest.importorskip("jax", reason="jax is not installed: its arrays are not tried")
    with pytest.raises(TypeError, match=r"x must hold real numbers, .* dtype is bfloat16"):
        LAYER(jax.numpy.ones((T, N, I), "bfloat16"))


class OnlyDLPackOf:
    """Apply the same operation to an array of any library."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_a_library_that_refuses():
    class Broken:
        def __dlpack__(self, **options):
            raise BufferError(f"not with {sorted(options)}")

        def __dlpack_device__(self):
            raise OSError("no device")

    with pytest.raises(TypeError, match=r"^x cannot be read as an array: not with") as caught:
        LAYER(Broken())
    assert caught.value.__cause__ is not None


# ---- masked arrays


def masked(array, count=1):
    """A masked array whose first elements are masked."""
    return np.ma.array(array, mask=np.arange(array.size).reshape(array.shape) < count)


class MaskedLike(np.ndarray):
    """An array with a mask that does not derive from numpy.ma, such as those of Astropy."""

    mask = np.array([True])


def masked_forms(array):
    yield from (masked(array), list(masked(array)), tuple(masked(array)), OnlyArray(masked(array)))
    yield from (array.view(MaskedLike), [OnlyInterface(array[0]), *masked(array)])


FROZEN = rnnfast.LSTM(I, H, rng=0)
FROZEN.freeze()
STREAM, POOL = FROZEN.stream(N), rnnfast.StreamPool(FROZEN, N)
IDS = [POOL.join() for _ in range(N)]
TARGETS = np.zeros((T, N), int)


def step_pool(out):
    return POOL.step(IDS, X[0], out)


REFUSE_MASKED = {
    "x of a layer": ("x", LAYER, X),
    "x of forward": ("x", LAYER.forward, X),
    "x of a frozen layer": ("x", FROZEN, X),
    "h of a frozen layer": (r"state\[0\] \(h\)", lambda h: FROZEN(X, (h, None)), STATE[0, :1]),
    "c of a frozen layer": (r"state\[1\] \(c\)", lambda c: FROZEN(X, (None, c)), STATE[0, :1]),
    "dy": ("dy", lambda dy: LAYER.backward(LAYER.forward(X)[2], dy), DY),
    "lengths": ("lengths", lambda lengths: LAYER(X, lengths=lengths), np.array([4, 0, 2])),
    "mask": ("mask", lambda mask: LAYER(X, mask=mask), np.ones((T, N), bool)),
    "reset": ("reset", lambda reset: LAYER(X, reset=reset), np.ones((T, N), bool)),
    "load_state_dict": (
        r"arrays\['bias'\]",
        lambda bias: rnnfast.Linear(I, 2).load_state_dict({"weight": np.ones((2, I)), "bias": bias}),
        np.ones(2),
    ),
    "Linear": ("x", rnnfast.Linear(I, 2), X),
    "Embedding": ("x", rnnfast.Embedding(5, 2), TARGETS),
    "Bidirectional": ("x", rnnfast.Bidirectional(rnnfast.GRU(I, H)), X),
    "leak": ("leak", lambda leak: rnnfast.RNN(I, H, leak=leak), np.full(H, 0.5)),
    "step": ("x_t", STREAM.step, X[0]),
    "steps": ("x", STREAM, X),
    "state": (r"state\[0\] \(h\)", lambda h: setattr(STREAM, "state", (h, None)), STATE[0, :1]),
    "pool": ("x", lambda x: POOL.step(IDS, x), X[0]),
    "logits": ("logits", lambda logits: rnnfast.training.softmax_cross_entropy(logits, TARGETS), X),
    "targets": ("targets", lambda targets: rnnfast.training.softmax_cross_entropy(X, targets), TARGETS),
    "weights": ("weights", lambda weights: rnnfast.training.mean_squared_error(X, X, weights=weights), X),
    "y": ("y", lambda y: rnnfast.training.mean_squared_error(y, X), X),
    "windows": ("x", lambda x: rnnfast.training.truncated_bptt(FROZEN, x, 2), X),
    "diagnostics": ("x", lambda x: rnnfast.diagnostics.gradient_flow(FROZEN, x), X),
    "quantization": ("x", lambda x: rnnfast.quantization.choose(LAYER, x, 0.1), X),
}
ONLY_ARRAYS = {
    "out": ("out", lambda out: STREAM.step(X[0], out), np.zeros((N, H), np.float32)),
    "out of a pool": ("out", step_pool, np.zeros((N, H), np.float32)),
    "gradients": (
        r"gradients\['a'\]",
        lambda g: rnnfast.training.clip_grad_norm({"b": np.ones(2), "a": g}, 0.1),
        np.ones(2),
    ),
    "parameters": (r"parameters\['a'\]", lambda a: rnnfast.training.Adam({"a": a}), np.ones(2)),
    "moments": (
        r"arrays\['momentum_buffer.a'\]",
        lambda a: rnnfast.training.SGD({"a": np.ones(2)}, 0.1, 0.9).load_state_dict(
            {"step": np.array(1), "momentum_buffer.a": a}
        ),
        np.ones(2),
    ),
}


@pytest.mark.parametrize("argument", REFUSE_MASKED | ONLY_ARRAYS)
def test_masked_elements_are_refused_by_name(argument):
    name, call, value = (REFUSE_MASKED | ONLY_ARRAYS)[argument]
    for form in masked_forms(value) if argument in REFUSE_MASKED else [masked(value), value.view(MaskedLike)]:
        before = STREAM.state
        for _ in range(3):  # the second call of a frozen layer takes another path
            with pytest.raises(ValueError, match=rf"^{name} has masked elements.*: fill them, .*filled\(0\)"):
                call(form)
        same(STREAM.state, before)


@pytest.mark.parametrize("argument", REFUSE_MASKED | ONLY_ARRAYS)
def test_masked_arrays_without_masked_elements_are_read(argument):
    _, call, value = (REFUSE_MASKED | ONLY_ARRAYS)[argument]
    if argument == "lengths":
        value = value.copy()
    for form in (masked(value.copy(), 0), np.ma.array(value.copy())):
        for _ in range(3):
            call(form)
    np.testing.assert_array_equal(FROZEN(np.ma.array(X))[0], FROZEN(X)[0])
    assert type(arguments.array("x", np.ma.array(X))) is np.ndarray


def test_masked_numbers_in_lists():
    for x in ([[1.0, np.ma.masked]], [[1.0, np.ma.array(2.0, mask=True)]], np.ma.masked):
        with pytest.raises(ValueError, match=r"^x has masked elements"):
            rnnfast.Linear(2, 2)(x)
    deep = [2.0, np.ma.array(3.0, mask=True)]
    for _ in range(20):
        deep = [deep, [1, True, np.float32(2), "a", None]]
    with pytest.raises(ValueError, match=r"^x has masked elements"):
        rnnfast.Linear(2, 2)(deep)
    loop = []
    loop.append(loop)
    with pytest.raises(ValueError, match="x cannot be read as an array"):
        rnnfast.Linear(2, 2)(loop)


def test_a_mask_of_a_structured_array_has_a_value_for_each_field():
    records = np.ma.array(np.zeros(3, [("a", "f4"), ("b", "i2", 2)]))
    with pytest.raises(TypeError, match="x must hold real numbers"):
        rnnfast.Linear(3, 2)(records)
    records["b"][1, 0] = np.ma.masked
    for x in (records, [records]):
        with pytest.raises(ValueError, match=r"^x has masked elements"):
            rnnfast.Linear(3, 2)(x)


def test_arrays_of_pandas_with_missing_values():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: its arrays are not tried")
    linear = rnnfast.Linear(2, 1, rng=0)
    same(linear(pandas.Series([1, 2], dtype="Int64").astype("float64")), linear([1, 2]))
    for x in (pandas.Series([1, None], dtype="Int64"), pandas.array([1.0, pandas.NA], dtype="Float64"), [1.0, None]):
        try:  # pandas 3 converts missing values to NaN, which stays visible, and pandas 2 to objects
            assert np.isnan(linear(x)).all()
        except TypeError as error:
            assert str(error).startswith("x must hold real numbers")  # noqa: PT017


@pytest.mark.parametrize("kind", [np.matrix, np.recarray])
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_subclasses_are_read_as_plain_arrays(kind):
    x = X[0].view(kind)
    for layer in (rnnfast.Linear(I, 2, rng=0), FROZEN):
        for _ in range(3):
            same(layer(x), layer(X[0]))
    (loss, dy), (expected, derivative) = (rnnfast.training.mean_squared_error(form, X[1]) for form in (x, X[0]))
    assert loss == expected
    same(dy, derivative)
