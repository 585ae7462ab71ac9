"""Models: derived gradients, names, states, files and streams."""

import collections
import copy
import gc
import pickle
import weakref
from typing import NamedTuple

import numpy as np
import pytest
from support.compare import assert_close

import rnnfast
from rnnfast import (
    GRU,
    LSTM,
    Activation,
    Attention,
    Bidirectional,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    Model,
    Pool,
    names,
)
from rnnfast.layers import saving
from rnnfast.models import Sequential, detach

T, N = 5, 3
LENGTHS = np.array([5, 2, 4])


class Classifier(Model):
    def __init__(self, rng=None, dtype=np.float64):
        self.embedding = Embedding(11, 4, rng=rng, dtype=dtype)
        self.lstm = LSTM(4, 6, 2, bidirectional=True, rng=rng, dtype=dtype)
        self.pool = Pool("last", bidirectional=True)
        self.readout = Linear(12, 3, rng=rng, dtype=dtype)

    def call(self, x, lengths=None):
        y, _ = self.lstm(self.embedding(x), lengths=lengths)
        return self.readout(self.pool(y, lengths=lengths))


class Translator(Model):
    """Uses every operation of values, a shared layer, nested containers, and the state of a decoder."""

    def __init__(self, rng=None, dtype=np.float64):
        options = {"rng": rng, "dtype": dtype}
        self.encoder = Sequential(LayerNorm(4, dtype=dtype), LSTM(4, 6, **options))
        self.decoder = LSTM(4, 6, **options)
        self.attention = Attention()
        self.heads = {"mix": [Linear(12, 6, **options), Activation("tanh")], "out": Linear(6, 2, **options)}
        self.again = self.heads["out"]

    def call(self, x, target, lengths=None, state=None):
        memory, ends = self.encoder(x, lengths=lengths)
        if state is not None:
            ends = (ends[0] + state[0], ends[1] * state[1])
        hidden, end = self.decoder(target, ends)
        context = self.attention(hidden, memory, lengths=lengths)
        mix, tanh = self.heads["mix"]
        mixed = tanh(mix(np.concatenate([context, hidden], axis=-1)))
        mixed = np.stack([mixed[:, 0] - mixed[:, 1], mixed[:, [0, 0]][:, 1] / 2, -mixed[:, 2]], axis=1)
        out = self.heads["out"](mixed).reshape(-1, 2)
        return out, (end, self.again(0.5 * mixed[-1]).swapaxes(0, 1))


def check_gradients(model, run, x, state=None):
    """Compare the gradients of all parameters, x and state with central differences of a random projection."""
    rng = np.random.default_rng(1)
    *outputs, tape = run(model.forward, x, state)
    leaves = []

    def project(output):
        if isinstance(output, tuple):
            return tuple(map(project, output))
        leaves.append(rng.standard_normal(output.shape))
        return leaves[-1]

    douts = [project(output) for output in outputs]
    grads = model.backward(tape, *douts)

    def total():
        result = run(model, x, state)
        flat = []

        def flatten(output):
            [flatten(member) for member in output] if isinstance(output, tuple) else flat.append(output)

        flatten(result if isinstance(result, tuple) and len(outputs) > 1 else (result,))
        return sum((a * d).sum() for a, d in zip(flat, leaves, strict=True))

    pairs = [(array, grads.parameters[name]) for name, array in model.parameters.items()]
    if x.dtype.kind == "f":
        pairs.append((x, grads.x))
    if state is not None:
        pairs.extend(zip(state, grads.state, strict=True))
    for array, gradient in pairs:
        assert gradient.shape == array.shape
        for index in {tuple(rng.integers(size) for size in array.shape) for _ in range(6)}:
            kept, step = array[index], 1e-5
            array[index] = kept + step
            above = total()
            array[index] = kept - step
            below = total()
            array[index] = kept
            assert gradient[index] == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-8)
    return grads


def test_gradients_of_a_classifier(rng):
    x = rng.integers(0, 11, (T, N))
    grads = check_gradients(Classifier(rng), lambda f, x, _: f(x, lengths=LENGTHS), x)
    assert grads.x is None
    assert grads.state is None


def test_gradients_of_all_operations(rng):
    x, target = rng.standard_normal((T, N, 4)), rng.standard_normal((2, N, 4))
    state = tuple(rng.standard_normal((2, 1, N, 6)))
    check_gradients(Translator(rng), lambda f, x, state: f(x, target, LENGTHS, state=state), x, state)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_torch(torch, dtype, rng):
    class Torch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(11, 4)
            self.lstm = torch.nn.LSTM(4, 6, 2, bidirectional=True)
            self.readout = torch.nn.Linear(12, 3)

        def forward(self, x):
            y, _ = self.lstm(self.embedding(x))
            return self.readout(torch.cat([y[-1, :, :6], y[0, :, 6:]], -1))

    other, model = Torch().to(getattr(torch, np.dtype(dtype).name)), Classifier(dtype=dtype)
    model.load_state_dict(other.state_dict())
    assert list(model.state_dict()) == list(other.state_dict())
    x, dy = rng.integers(0, 11, (T, N)), rng.standard_normal((N, 3)).astype(dtype)
    expected = other(torch.tensor(x))
    expected.backward(torch.tensor(dy))
    y, tape = model.forward(x)
    np.testing.assert_array_equal(model(x), y)
    gradients = {name: parameter.grad.numpy() for name, parameter in other.named_parameters()}
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    assert_close(
        {"y": y, **model.backward(tape, dy).parameters}, {"y": expected.detach().numpy(), **gradients}, tolerance
    )


def test_sequential_is_its_layers(rng):
    layers = Embedding(11, 4, rng=0), GRU(4, 6, 2, rng=1), Linear(6, 2, rng=2)
    model = Sequential(*layers)
    x, state = rng.integers(0, 11, (T, N)), rng.standard_normal((2, N, 6)).astype(np.float32)
    y, end = model(x, state, lengths=LENGTHS)
    hidden, expected = layers[1](layers[0](x), state, lengths=LENGTHS)
    np.testing.assert_array_equal(y, layers[2](hidden))
    np.testing.assert_array_equal(end, expected)
    dy, dstate = rng.standard_normal(y.shape), rng.standard_normal(state.shape)
    y, end, tape = model.forward(x, state, lengths=LENGTHS)
    for _ in range(2):  # a tape can be used again
        grads = model.backward(tape, dy, dstate)
        h, _, recurrent = layers[1].forward(layers[0].forward(x)[0], state, lengths=LENGTHS)
        read = layers[2].backward(layers[2].forward(h)[1], dy)
        wanted = layers[1].backward(recurrent, read.x, dstate)
        np.testing.assert_array_equal(grads.state, wanted.state)
        for name, gradient in wanted.parameters.items():
            np.testing.assert_array_equal(grads.parameters[f"1.{name}"], gradient)


def test_several_recurrent_layers_have_a_tuple_of_states(rng):
    model = Sequential(LSTM(4, 6, rng=0), Dropout(0.0), GRU(6, 5, rng=1))
    x = rng.standard_normal((T, N, 4)).astype(np.float32)
    y, state = model(x[:2])
    rest, end = model(x[2:], [[*state[0]], state[1]])
    whole, final = model(x)
    np.testing.assert_array_equal(np.concatenate([y, rest]), whole)
    np.testing.assert_array_equal(end[1], final[1])
    _, _, tape = model.forward(x, state)
    grads = model.backward(tape, None, (None, np.ones_like(state[1])))
    assert grads.state[0][0].shape == (1, N, 6)
    assert grads.state[1].shape == (1, N, 5)


def test_nested_sequential_takes_what_its_layers_take(rng):
    gru, head = GRU(3, 4, rng=0), Sequential(Linear(4, 5, rng=1), Activation("tanh"))
    model = Sequential(Sequential(gru), head)
    x, lengths = rng.normal(size=(6, 2, 3)).astype(np.float32), [6, 2]
    y, state = gru(x, lengths=lengths)
    result, final = model(x, lengths=lengths)
    np.testing.assert_array_equal(result, head(y))
    np.testing.assert_array_equal(final, state)
    with pytest.raises(TypeError, match="lengths is taken by no layer"):
        Sequential(head, Linear(5, 1))(y, lengths=lengths)


def test_reset_to_zeros_or_a_state(rng):
    model = Sequential(GRU(4, 6, rng=0), Linear(6, 2, rng=1))
    x = rng.standard_normal((T, N, 4)).astype(np.float32)
    state = rng.standard_normal((1, N, 6)).astype(np.float32)
    reset = np.zeros((T, N), bool)
    reset[2, 1] = True
    y, _ = model(x, state, reset=reset, reset_state="zeros")
    np.testing.assert_array_equal(y[2:, 1], model(x[2:])[0][:, 1])
    np.testing.assert_array_equal(y[:, 0], model(x, state)[0][:, 0])

    class Resetting(Model):
        def __init__(self):
            self.gru = model[0]

        def call(self, x, state):
            return self.gru(x, reset=reset, reset_state=2 * state)[0]

    resetting = Resetting()
    y, tape = resetting.forward(x, state)
    expected, _, layer_tape = model[0].forward(x, reset=reset, reset_state=2 * state)
    np.testing.assert_array_equal(y, expected)
    gradient = resetting.backward(tape, y).state
    np.testing.assert_array_equal(gradient, 2 * model[0].backward(layer_tape, y).reset_state)
    assert gradient.any()


def test_windows_need_layers_that_run_forward(rng):
    x = rng.standard_normal((T, N, 4))
    model = Sequential(GRU(4, 6, rng=0), Linear(6, 2, rng=1))
    windows = rnnfast.training.truncated_bptt(model, x, 2, lengths=LENGTHS)
    np.testing.assert_array_equal(np.concatenate([each.y for each in windows]), model(x, lengths=LENGTHS)[0])
    with pytest.raises(ValueError, match="whose layer 0 is a GRU with bidirectional=True"):
        rnnfast.training.truncated_bptt(Sequential(GRU(4, 6, bidirectional=True)), x, 2)


@pytest.mark.parametrize("make", [Classifier, Translator])
def test_tapes_are_freed_without_the_garbage_collector(make, rng):
    model = make(rng)
    x = rng.integers(0, 11, (T, N)) if make is Classifier else rng.standard_normal((T, N, 4))
    gc.collect()
    gc.disable()
    try:
        *outputs, tape = model.forward(x) if make is Classifier else model.forward(x, rng.standard_normal((2, N, 4)))
        model.backward(tape, outputs[0])
        kept = weakref.ref(tape._kept.record)
        del tape
        assert kept() is None
    finally:
        gc.enable()


def test_backward_frees_gradients_that_have_been_used(rng):
    model = Classifier(rng)
    y, tape = model.forward(rng.integers(0, 11, (T, N)))
    kept = tape._kept
    sums = kept.record.backward(kept.outputs, (np.ones_like(y),))
    assert [sums.of(index) for index in range(len(kept.record.shapes))] == [None] * len(kept.record.shapes)


def test_gradients_are_writable():
    model = Broken(lambda _, x: x.sum())
    _, tape = model.forward(np.ones((2, 4)))
    dx = model.backward(tape, np.float32(3)).x
    dx += 1
    np.testing.assert_array_equal(dx, np.full((2, 4), 4))


class Pair(NamedTuple):
    first: object
    second: object


def test_layers_in_any_container_are_trained():
    class Containers(Model):
        def __init__(self):
            self.ordered = collections.OrderedDict(a=Linear(3, 3, rng=0))
            self.default = collections.defaultdict(list, b=[Linear(3, 3, rng=1)])
            self.pair = Pair(Linear(3, 3, rng=2), "no layer")

        def call(self, x):
            assert isinstance(self.pair.first, Linear)
            assert not self.batch_first
            assert self.dtype == np.float32
            return self.pair.first(self.default["b"][0](self.ordered["a"](x)))

    model = Containers()
    y, tape = model.forward(np.ones((2, 3)))
    assert list(model.parameters)[::2] == ["ordered.a.weight", "default.b.0.weight", "pair.0.weight"]
    assert all(gradient.any() for gradient in model.backward(tape, y).parameters.values())
    model.pair = Pair(Linear(3, 3), Linear(3, 3))
    setattr(model, "ordered.a", Linear(3, 3))
    with pytest.raises(ValueError, match=r"two layers of this Containers have the name ordered\.a"):
        model.forward(np.ones((2, 3)))
    with pytest.raises(AttributeError, match="forward is an attribute of every model"):
        model.forward = Linear(3, 3)


def test_arguments_are_protected_from_changes(rng):
    """Training and inference give the same results, and changes after the call change no gradient."""

    class Changing(Model):
        def __init__(self):
            self.linear = Linear(3, 3, rng=0)

        def call(self, x, factor, index):
            y = self.linear(x) * factor + x.mean(axis=1, keepdims=True) - x.sum() / 3
            factor[...] = 0
            selected = y[index]
            index[...] = 0
            return selected

    model, x = Changing(), rng.standard_normal((2, 3)).astype(np.float32)
    y, tape = model.forward(x, np.full(3, 2.0), np.array([1, 1]))
    np.testing.assert_array_equal(y, model(x, np.full(3, 2.0), np.array([1, 1])))
    dx = model.backward(tape, np.ones_like(y)).x
    expected = np.zeros((2, 3))
    expected[1] = 2 * (2 * model.linear.parameters["weight"].sum(axis=0) + 1)
    np.testing.assert_allclose(dx, expected - 2 * 3 / 3, rtol=1e-5)
    with pytest.raises(ValueError, match="read-only"):
        y += 1
    with pytest.raises(ValueError, match="read-only"):
        Broken(lambda _, x: x.__iadd__(1))(x)


def test_index_forms(rng):
    x = rng.standard_normal((4, 4)).astype(np.float32)
    for index in (
        range(2),
        [0, 0, 2],
        (0, (0, 1)),
        (slice(None), [1, 1]),
        np.array([True, False, True, True]),
        ...,
        None,
    ):
        model = Broken(lambda linear, x, index=index: linear(x)[index])
        y, tape = model.forward(x)
        np.testing.assert_array_equal(y, model(x))
        expected = np.zeros((4, 4), np.float32)
        np.add.at(expected, index if not isinstance(index, range) else list(index), 1)
        bias = model.backward(tape, np.ones_like(y)).parameters["linear.bias"]
        np.testing.assert_array_equal(bias, expected.sum(axis=0))


def test_broadcasting_to_no_rows():
    model = Broken(lambda linear, x: linear(x)[:0] + linear(x)[:1])
    y, tape = model.forward(np.ones((2, 4)))
    assert y.shape == (0, 4)
    assert not model.backward(tape, y).x.any()


def test_input_by_keyword(rng):
    model = Sequential(GRU(4, 6, rng=0))
    x, state = rng.standard_normal((T, N, 4)), rng.standard_normal((1, N, 6))
    y, _, tape = model.forward(state=state, x=x)
    assert model.backward(tape, y).x.shape == x.shape


def test_layers_without_gradient_have_zeros(rng):
    model = Classifier(rng)
    _, tape = model.forward(np.zeros((T, N), int))
    grads = model.backward(tape, None)
    assert grads.parameters.keys() == model.parameters.keys()
    assert not any(gradient.any() for gradient in grads.parameters.values())
    assert not any(gradient.any() for gradient in model.backward(tape).parameters.values())


def test_a_layer_of_two_names_has_its_parameters_once(rng):
    model = Translator(rng)
    assert "heads.out.weight" in model.parameters
    assert not any(name.startswith("again") for name in model.parameters)
    values = model.state_dict()
    values |= {"again.weight": values["heads.out.weight"], "again.bias": values["heads.out.bias"]}
    Translator().load_state_dict(values)  # as torch saves it
    with pytest.raises(ValueError, match="readout is not a parameter"):
        model.load_state_dict(values | {"readout": np.zeros(1)})


def test_dropout_is_active_in_training_alone():
    model = Sequential(Dropout(0.5, rng=0), Linear(8, 2, rng=1))
    x = np.ones((N, 8), np.float32)
    np.testing.assert_array_equal(model(x), model[1](x))
    assert not np.array_equal(model.forward(x)[0], model(x))


# --- files and copies


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sequential_is_saved_with_classes_and_options(tmp_path, dtype, rng):
    inner = Sequential(LSTM(4, 6, peepholes=True, dtype=dtype), LayerNorm(6, 1e-3, dtype=dtype))
    both = Bidirectional(GRU(6, 3, reset_after=False, dtype=dtype))
    model = Sequential(Embedding(9, 4, dtype=dtype), inner, Dropout(0.1), both, Pool("mean"), Activation("relu"))
    model.save(tmp_path / "model")
    loaded = rnnfast.load(tmp_path / "model")
    assert repr(loaded) == repr(model)
    x = rng.integers(0, 9, (T, N))
    np.testing.assert_array_equal(loaded(x)[0], model(x)[0])
    loaded.load(tmp_path / "model")
    with pytest.raises(ValueError, match="it holds a layer with"):
        Sequential(Embedding(9, 4, dtype=dtype)).load(tmp_path / "model")


def test_sequential_that_holds_a_model(tmp_path, rng):
    model = Sequential(Classifier(rng), Linear(3, 2, dtype=np.float64))
    model.save(tmp_path / "model")
    other = Sequential(Classifier(rng, np.float32), Linear(3, 2))
    other.load(tmp_path / "model")
    np.testing.assert_array_equal(
        other.parameters["0.readout.weight"], model.parameters["0.readout.weight"].astype(np.float32)
    )
    with pytest.raises(ValueError, match="a model of the class 'Classifier'"):
        rnnfast.load(tmp_path / "model")


def test_subclass_of_sequential_with_its_own_call_is_not_loaded_as_a_sequential(tmp_path):
    class Doubled(Sequential):
        def call(self, x):
            return 2 * super().call(x)

    model = Doubled(Linear(2, 2))
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="a model of the class 'Doubled'"):
        rnnfast.load(tmp_path / "model")
    model.load(tmp_path / "model")


def test_model_is_loaded_into_an_instance(tmp_path, rng):
    model, other = Translator(rng), Translator(rng)
    model.save(tmp_path / "model")
    other.load(tmp_path / "model")
    for name, array in model.parameters.items():
        np.testing.assert_array_equal(other.parameters[name], array)
    Translator(dtype=np.float32).load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"a model of the class 'Translator'.*call its load"):
        rnnfast.load(tmp_path / "model")
    with pytest.raises(ValueError, match="cannot load"):
        Classifier().load(tmp_path / "model")


@pytest.mark.parametrize("make", [Classifier, Translator])
def test_copies(make, rng):
    model = make(rng)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert list(other.parameters) == list(model.parameters)
        other.parameters[next(iter(other.parameters))][...] = 0
        assert next(iter(model.parameters.values())).any()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_optimizer_that_is_copied_with_its_model_updates_the_copy(duplicate):
    model = Sequential(LSTM(3, 2, rng=0), Linear(2, 2, rng=1))
    other, adam = duplicate((model, rnnfast.training.Adam(model, lr=0.1)))
    before = model.state_dict()
    adam.step(other.parameters)
    for name, array in model.parameters.items():
        np.testing.assert_array_equal(array, before[name])
        assert not np.array_equal(other.parameters[name], array)


def test_freeze(rng):
    model = Sequential(Embedding(9, 4, rng=0), Bidirectional(GRU(4, 3, rng=1)), Linear(6, 2, rng=2))
    x = rng.integers(0, 9, (T, N))
    expected = model(x)[0]
    model.freeze()
    np.testing.assert_array_equal(model(x)[0], expected)
    assert not any(array.flags.writeable for array in model.parameters.values())
    with pytest.raises(ValueError, match="frozen"):
        model.load_state_dict(model.state_dict())
    model.unfreeze()
    model.load_state_dict(model.state_dict())


# --- streams


def test_stream(rng):
    model = Sequential(Embedding(9, 4, rng=0), LSTM(4, 6, rng=1), Dropout(0.5), GRU(6, 5, rng=2), Linear(5, 2, rng=3))
    x = rng.integers(0, 9, (T, N))
    expected, end = model(x)
    stream = model.stream(N)
    model.parameters["4.weight"][...] = 0  # has no effect on the stream
    got = np.stack([stream.step(x_t) for x_t in x])
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(stream.state[1], end[1])
    stream.reset()
    np.testing.assert_array_equal(stream(x), expected)
    with pytest.raises(ValueError, match="batch_size=3 rows"):
        stream.step(x[0, :2])


def test_stream_with_batch_first(rng):
    model = Sequential(GRU(4, 6, batch_first=True, rng=0), Linear(6, 2, rng=1))
    x = rng.standard_normal((N, T, 4)).astype(np.float32)
    stream = model.stream(N)
    np.testing.assert_array_equal(np.stack([stream.step(x[:, t]) for t in range(T)], 1), model(x)[0])


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (Sequential(GRU(4, 6, bidirectional=True)), "0 needs the whole sequence"),
        (Sequential(GRU(4, 6, reverse=True)), "0 needs the whole sequence"),
        (Sequential(GRU(4, 6), Pool("mean")), "1 needs the whole sequence"),
        (Sequential(Linear(4, 2)), "no recurrent layer"),
        (Classifier(), "its call takes no state"),
    ],
)
def test_models_that_cannot_run_step_by_step_are_not_streamed(model, match):
    with pytest.raises(ValueError, match=match):
        model.stream()


def test_stream_of_several_outputs(rng):
    class Heads(Model):
        def __init__(self, reduces=False):
            self.gru, self.policy, self.value = GRU(4, 6, rng=0), Linear(6, 3, rng=1), Linear(6, 1, rng=2)
            self.reduces = reduces

        def call(self, x, state=None):
            h, state = self.gru(x, state)
            return (self.policy(h)[-1] if self.reduces else self.policy(h), self.value(h)), state

    model, x = Heads(), rng.standard_normal((T, N, 4)).astype(np.float32)
    stream = model.stream(N)
    steps = [stream.step(x_t) for x_t in x]
    for k, expected in enumerate(model(x)[0]):
        np.testing.assert_array_equal(np.stack([step[k] for step in steps]), expected)
    with pytest.raises(ValueError, match="must have the steps and rows of x"):
        Heads(reduces=True).stream(N).step(x[0])


# --- errors


class Broken(Model):
    def __init__(self, function):
        self.linear = Linear(4, 4, rng=0)
        self.function = function

    def call(self, x):
        return self.function(self.linear, x)


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (lambda linear, x: np.tanh(linear(x)), TypeError, r"numpy\.tanh cannot .* rnnfast\.Activation"),
        (lambda _, x: np.add(x, x, where=True), TypeError, r"numpy\.add cannot"),
        (lambda _, x: np.mean(x), TypeError, r"numpy\.mean cannot"),
        (lambda _, x: x.std(), AttributeError, "has no 'std'"),
        (lambda _, x: x.__iadd__(1), TypeError, r"cannot be changed in place: write h = h \+ x"),
        (lambda linear, x: x * linear.parameters["weight"], AttributeError, "parameters of a layer cannot be used"),
        (lambda _, x: {"y": x}, TypeError, "call must return an array or a tuple, got a dict"),
        (lambda _, x: (x, Embedding(3, 2)([1])), TypeError, "of a model that does not hold it"),
        (lambda _, x: x @ x, TypeError, r"numpy\.matmul cannot"),
        (lambda _, x: x / x, TypeError, r"numpy\.divide cannot"),
        (lambda _, x: not x, TypeError, "no truth value"),
        (lambda _, x: x[x], TypeError, "an index cannot be"),
        (lambda _, x: Linear(4, 2)(x), TypeError, "make it an attribute, or a member"),
        (lambda _, x: GRU(4, 2)(detach(x)), TypeError, "make it an attribute, or a member"),
        (lambda _, x: LayerNorm(4)(detach(x)), TypeError, "make it an attribute, or a member"),
        (lambda _, x: np.asarray(x), TypeError, "cannot become a plain array.*attributes of the model"),
        (lambda _, x: np.concatenate([x, x], axis=None), TypeError, "axis must be"),
        (lambda linear, x: linear.forward(x), AttributeError, "layers are called"),
    ],
)
def test_what_cannot_be_differentiated_is_refused(function, error, match):
    with pytest.raises(error, match=match):
        Broken(function).forward(np.ones((2, 4)))


def test_call_assigns_no_attributes():
    class Assigning(Model):
        def call(self, x):
            self.kept = x
            return x

    with pytest.raises(AttributeError, match="call must not assign attributes"):
        Assigning().forward(np.ones(2))


def test_a_model_that_contains_itself_is_refused():
    model = Classifier()
    model.inner = Sequential(model, Linear(3, 2, dtype=np.float64))
    with pytest.raises(ValueError, match="cannot contain itself: Classifier"):
        model.parameters  # noqa: B018


def test_values_of_another_pass_are_refused():
    kept = []

    def leak(linear, x):
        kept.append(linear(x))
        return kept[0] + x

    model = Broken(leak)
    model.forward(np.ones((2, 4)))
    with pytest.raises(ValueError, match="value of an earlier forward pass"):
        model.forward(np.ones((2, 4)))


def test_constants_and_comparisons(rng):
    scale = np.array([1.0, 2.0, 3.0, 4.0])

    def function(linear, x):
        x = 1 + x
        return scale * linear(x) * (x > 0) / 4 + detach(x)

    model = Broken(function)
    x = rng.standard_normal((2, 4)).astype(np.float32)
    y, tape = model.forward(x)
    np.testing.assert_array_equal(y, model(x))
    assert y.dtype == model(x).dtype == np.float64  # as NumPy promotes
    positive = (x + 1) > 0
    expected = (scale * positive / 4) @ model.linear.parameters["weight"]
    np.testing.assert_allclose(model.backward(tape, np.ones((2, 4))).x, expected, rtol=1e-5)


def test_model_with_its_own_forward_is_refused():
    with pytest.raises(TypeError, match="defines forward, which Model derives: define call"):
        type("Own", (Model,), {"forward": len})
    with pytest.raises(NotImplementedError, match="must define call"):
        Model()(1)


@pytest.mark.parametrize(
    ("layers", "error", "match"),
    [
        ((), ValueError, "at least one layer"),
        ((3,), TypeError, r"layers\[0\] must be a layer of rnnfast, got int"),
        (
            (GRU(4, 5), Linear(4, 2)),
            ValueError,
            r"GRU\(4, 5\), returns 5 features, but layers\[1\], Linear\(4, 2\), takes 4",
        ),
        ((Attention(),), TypeError, "takes several"),
        ((GRU(4, 4), GRU(4, 4, dtype=np.float64)), ValueError, "same dtype"),
        ((GRU(4, 4), GRU(4, 4, batch_first=True)), ValueError, "same batch_first"),
        ((GRU(4, 4), Pool("max"), Linear(4, 4), GRU(4, 4)), ValueError, r"layers\[3\], GRU\(4, 4\), needs a sequence"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, error, match):
    with pytest.raises(error, match=match):
        Sequential(*layers)


def test_sequential_refuses_arguments_that_no_layer_takes():
    model = Sequential(Linear(4, 2), Linear(2, 2))
    with pytest.raises(TypeError, match="lengths is taken by no layer"):
        model(np.ones((2, 4)), lengths=[1, 2])
    with pytest.raises(ValueError, match="occurs twice"):
        Sequential(model[0], model[1], model[1])
    model = Sequential(GRU(4, 4), GRU(4, 4))
    with pytest.raises(ValueError, match="the states of the 2 recurrent layers"):
        model(np.ones((2, 1, 4)), np.zeros((1, 1, 4)))
    with pytest.warns(UserWarning, match="bidirectional=True to Pool"):
        Sequential(GRU(4, 4, bidirectional=True), Pool("last"))


def test_gradients_are_checked(rng):
    model = Classifier(rng)
    y, tape = model.forward(np.zeros((T, N), int))
    with pytest.raises(ValueError, match=r"dy must have the shape of the output = \(3, 3\), got \(2, 3\)"):
        model.backward(tape, y[:2])
    with pytest.raises(ValueError, match="one gradient for each of the 1 outputs, got 2"):
        model.backward(tape, y, y)
    with pytest.raises(ValueError, match="another layer"):
        Classifier(rng).backward(tape, y)
    with pytest.raises(TypeError, match="must be the Tape"):
        model.backward(None, y)


def test_merged_parameters_of_one_name_are_found():
    first, second, other = Embedding(4, 3), Linear(3, 4), Embedding(4, 3)
    merged = {**first.parameters, **second.parameters}
    with pytest.raises(ValueError, match="both have a parameter 'weight'"):
        names.require_distinct("parameters", merged)
    for fine in (dict(first.parameters), {"weight": np.zeros(3)}, {**first.parameters, "weight": np.zeros(3)}):
        names.require_distinct("parameters", fine)
    with pytest.raises(ValueError, match="both have"):
        names.require_distinct("parameters", {**first.parameters, **other.parameters})


def test_optimizers_refuse_merged_parameters_of_one_name():
    layers = Embedding(4, 3), LSTM(3, 3), Linear(3, 4)
    merged = {name: array for layer in layers for name, array in layer.parameters.items()}
    with pytest.raises(ValueError, match=r"pass the layers in a list, as in Adam\(\[embedding, lstm, readout\]\)"):
        rnnfast.training.Adam(merged)
    rnnfast.training.Adam(layers)


def test_repr():
    assert repr(Translator()).splitlines() == [
        "Translator  # 676 parameters",
        "  encoder: Sequential  # 296 parameters",
        "    0: LayerNorm(4, dtype='float64')  # 8 parameters",
        "    1: LSTM(4, 6, dtype='float64')  # 288 parameters",
        "  decoder: LSTM(4, 6, dtype='float64')  # 288 parameters",
        "  attention: Attention()",
        "  heads.mix.0: Linear(12, 6, dtype='float64')  # 78 parameters",
        "  heads.mix.1: Activation('tanh')",
        "  heads.out: Linear(6, 2, dtype='float64')  # 14 parameters",
        "  again: Linear(6, 2, dtype='float64')  # 14 parameters",
    ]
    assert saving.describe(Sequential(Linear(2, 2))) == "Sequential(Linear(2, 2))"
