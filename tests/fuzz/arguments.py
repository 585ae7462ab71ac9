"""Any object as any argument: a result, or a documented error with a message; never a crash, a hang or a change.

A call is drawn with valid arguments, and then some of them are replaced by objects from OBJECTS.
"""

import array
import contextlib
import datetime
import decimal
import fractions
import functools
import itertools

import numpy as np

import rnnfast
from fuzz import assume, folder, outcome
from rnnfast import training
from rnnfast.layers import saving

T, N, I, H = 4, 3, 2, 5

ERRORS = ValueError, TypeError, MemoryError
ALSO = {"reset": (IndexError,), "leave": (KeyError,), "pool_step": (KeyError,), "load": (OSError,), "save": (OSError,)}


class OwnError(Exception):
    """What an object raises: it may reach the caller."""


class Evil:
    """An object whose special methods raise."""

    def _raise(self, *_, **__):
        raise OwnError

    __array__ = __len__ = __iter__ = __getitem__ = __index__ = __float__ = __int__ = __bool__ = __eq__ = (
        __contains__
    ) = _raise
    __hash__ = object.__hash__


class Returns:
    """An object that is an array, an index, a number and a sequence, of values that do not fit together."""

    def __init__(self, value):
        self._value = value

    def __array__(self, *_, **__):
        return self._value

    def __index__(self):
        return 3

    def __float__(self):
        return 0.5

    def __len__(self):
        return 1 << 40

    def __getitem__(self, at):
        return self._value


class Grows(dict):
    """A mapping whose keys change with every look."""

    def keys(self):
        self[f"key {len(self)}"] = 1
        return dict.keys(self)


class Path:
    def __fspath__(self):
        return 3


OBJECTS = {
    "None": lambda _: None,
    "True": lambda _: True,
    "zero": lambda _: 0,
    "one": lambda _: 1,
    "negative": lambda _: -1,
    "large": lambda _: 1 << 62,
    "larger": lambda _: 1 << 64,
    "huge": lambda _: 10**400,
    "half": lambda _: 0.5,
    "nan": lambda _: float("nan"),
    "inf": lambda _: float("inf"),
    "complex": lambda _: 1j,
    "decimal": lambda _: decimal.Decimal("0.5"),
    "fraction": lambda _: fractions.Fraction(1, 2),
    "text": lambda _: "text",
    "empty text": lambda _: "",
    "NUL": lambda _: "a\0b",
    "surrogate": lambda _: "\ud800",
    "bytes": lambda _: b"bytes",
    "bytearray": lambda _: bytearray(24),
    "memoryview": lambda _: memoryview(array.array("f", [1, 2, 3])),
    "array.array": lambda _: array.array("d", [1, 2, 3]),
    "empty list": lambda _: [],
    "ragged list": lambda _: [[1.0], [1.0, 2.0]],
    "deep list": lambda _: functools.reduce(lambda inner, _: [inner], range(70), 1.0),
    "own list": lambda _: own_list(),
    "tuple": lambda _: (1, 2),
    "set": lambda _: {1, 2},
    "dict": lambda _: {"a": 1},
    "growing dict": lambda _: Grows(),
    "range": lambda _: range(3),
    "generator": lambda _: (i for i in range(3)),
    "function": lambda _: len,
    "class": lambda _: float,
    "module": lambda _: np,
    "object": lambda _: object(),
    "evil": lambda _: Evil(),
    "no array": lambda _: Returns("text"),
    "date": lambda _: datetime.date(2024, 1, 1),
    "path": lambda _: Path(),
    "layer": lambda _: rnnfast.GRU(I, H, rng=0),
    "dtype": lambda _: np.dtype(np.float32),
    "generator of numbers": lambda _: np.random.default_rng(0),
    "0-d": lambda _: np.array(1.5),
    "0-size": lambda _: np.empty((0, 3)),
    "5-d": lambda _: np.zeros((1, 2, 1, 2, 1)),
    "64-d": lambda _: np.zeros((1,) * 64),
    "tall": lambda _: np.broadcast_to(np.float32(0), (1 << 40, 1, I)),
    "wide": lambda _: np.broadcast_to(np.float32(0), (1, 1 << 40, I)),
    "tall flags": lambda _: np.broadcast_to(True, (1 << 40, N)),
    "many features": lambda _: np.broadcast_to(np.float32(0), (T, N, 1 << 40)),
    "object array": lambda _: np.array([None, 1], object),
    "strings": lambda _: np.array(["1", "2"]),
    "dates": lambda _: np.zeros((T, N, I), "M8[s]"),
    "records": lambda _: np.zeros((T, N), [("a", "f4"), ("b", "f4")]),
    "void": lambda _: np.zeros((T, N, I), "V4"),
    # Variants of the right argument.
    "scaled": lambda v: np.asarray(v) * 1e30,
    "transposed": lambda v: np.asarray(v).T,
    "one less": lambda v: np.asarray(v)[..., :-1],
    "one more axis": lambda v: np.asarray(v)[np.newaxis],
    "integers": lambda v: np.asarray(v).astype(np.int64),
    "float16": lambda v: np.asarray(v).astype(np.float16),
    "longdouble": lambda v: np.asarray(v).astype(np.longdouble),
    "byte-swapped": lambda v: (lambda a: a.astype(a.dtype.newbyteorder()))(np.asarray(v)),
    "read-only": lambda v: (lambda a: (a.setflags(write=False), a)[1])(np.array(v)),
    "misaligned": lambda v: misaligned(np.asarray(v)),
    "overlapping": lambda v: overlapping(np.asarray(v)),
    "backwards": lambda v: np.asarray(v)[..., ::-1],
    "masked": lambda v: (lambda a: np.ma.masked_array(a, np.indices(a.shape).sum(0) % 2 == 0))(np.asarray(v)),
    "list of masked": lambda v: list(OBJECTS["masked"](v)),
    "recarray": lambda v: np.asarray(v).view(np.recarray),
    "matrix list": lambda v: np.asarray(v).tolist(),
    "NaN in it": lambda v: np.full_like(np.asarray(v, float), np.nan),
    "inf in it": lambda v: np.full_like(np.asarray(v, float), np.inf),
    "pair": lambda v: (v, v),
    "list of one": lambda v: [v],
    "negative of it": lambda v: -np.asarray(v, float),
}


def own_list():
    one = []
    one.append(one)
    return one


def misaligned(a):
    memory = np.empty(a.nbytes + 1, np.uint8)
    odd = memory[1:].view(a.dtype).reshape(a.shape) if a.ndim else a
    odd[...] = a
    return odd


def overlapping(a):
    """All rows are the same memory."""
    return np.lib.stride_tricks.as_strided(a, a.shape, (0,) * (a.ndim - 1) + a.strides[-1:]) if a.ndim else a


# ---- calls: each gives the valid arguments by name, and what is called with them


def values(*shape):
    return np.random.default_rng(len(shape)).uniform(-1, 1, shape).astype(np.float32)


def layer_of(name):
    return {
        "rnn": lambda: rnnfast.RNN(I, H, rng=0),
        "lstm": lambda: rnnfast.LSTM(I, H, 2, bidirectional=True, rng=0),
        "gru": lambda: rnnfast.GRU(I, H, rng=0),
        "frozen": lambda: frozen(rnnfast.LSTM(I, H, rng=0)),
        "both": lambda: rnnfast.Bidirectional(rnnfast.RNN(I, H, rng=0)),
        "linear": lambda: rnnfast.Linear(I, H, rng=0),
        "embedding": lambda: rnnfast.Embedding(9, H, rng=0),
    }[name]()


def frozen(layer):
    layer.freeze()
    layer(values(T, N, I))
    layer(values(T, N, I))
    return layer


def constructor(kind, **more):
    def prepare(_):
        return kind, {"input_size": I, "hidden_size": H, "num_layers": 2, **more, "rng": 0}

    return prepare


COMMON = {
    "bias": True,
    "batch_first": False,
    "dropout": 0.5,
    "bidirectional": False,
    "reverse": False,
    "activations": None,
}
COMMON |= {"clip": 2.0, "dtype": np.float32, "init": "torch"}


def call_of(method):
    def prepare(name):
        layer = layer_of(name)
        if name in ("linear", "embedding"):
            x = values(T, N, I) if name == "linear" else np.arange(6).reshape(2, 3)
            return getattr(layer, method), {"x": x}
        given = {
            "x": values(T, N, I),
            "state": state_of(layer),
            "lengths": None,
            "mask": np.arange(T * N).reshape(T, N) % 3 > 0,
        }
        given |= {"reset": np.arange(T * N).reshape(T, N) % 5 == 0, "zero_masked": False}
        given["reset_state"] = state_of(layer)
        return getattr(layer, method), given | ({"checkpoint": 2} if method == "forward" else {})

    return prepare


def state_of(layer):
    if isinstance(layer, rnnfast.Bidirectional):
        return state_of(layer.forward_layer), state_of(layer.backward_layer)
    states = layer.num_layers * (1 + layer.bidirectional)
    return (values(states, N, H), values(states, N, H)) if isinstance(layer, rnnfast.LSTM) else values(states, N, H)


def with_lengths(name):
    call, given = call_of("__call__")(name)
    return (
        (call, given)
        if len(given) == 1
        else (call, given | {"lengths": np.array([4, 0, 2]), "mask": None, "reset": None})
    )


def backward(name):
    layer = layer_of(name)
    x = np.arange(6).reshape(2, 3) if name == "embedding" else values(T, N, I)
    y, *_, tape = layer.forward(x)
    if name in ("linear", "embedding"):
        return layer.backward, {"tape": tape, "dy": values(*y.shape)}
    return layer.backward, {"tape": tape, "dy": values(*y.shape), "dstate": state_of(layer), "per_step": False}


def stream_step(name):
    layer = rnnfast.LSTM(I, H, rng=0) if name != "gru" else rnnfast.GRU(I, H, rng=0)
    return layer.stream(N).step, {"x_t": values(N, I), "out": np.empty((N, H), np.float32)}


def stream_state(_):
    stream = rnnfast.LSTM(I, H, rng=0).stream(N)
    return (lambda value: setattr(stream, "state", value)), {"value": (values(1, N, H), values(1, N, H))}


def pool_of():
    pool = rnnfast.StreamPool(rnnfast.LSTM(I, H, rng=0), 5)
    return pool, [pool.join() for _ in range(N)]


def pool_step(_):
    pool, ids = pool_of()
    return pool.step, {"ids": ids, "x": values(N, I), "out": np.empty((N, H), np.float32)}


def attribute(name):
    """Assign to an attribute of a layer; if that is accepted, the layer must still work."""
    layer = layer_of(name)

    def assign(attribute, value):
        try:
            setattr(layer, attribute, value)
        except AttributeError as error:
            raise TypeError(str(error)) from None
        built = saving.options(layer).keys() - set(saving.DROPOUTS)
        assert attribute not in built, f"{attribute}, with which the layer was built, was assigned"
        # What was accepted and what a call refuses later are both fine; the interpreter must survive.
        for use in (lambda: layer([1] if name == "embedding" else values(T, N, I)), lambda: repr(layer), layer.freeze):
            outcome(use, Exception)

    public = [one for one in {**vars(layer), **vars(type(layer))} if not one.startswith("_")]
    return assign, {"attribute": public, "value": 7}


def optimizer_step(name):
    parameters = {"a": values(3, 2), "b": values(4)}
    optimizer = {"lstm": training.RMSprop, "gru": training.SGD}.get(name, training.Adam)(parameters, lr=0.1)
    gradients = {"a": values(3, 2), "b": values(4)}

    def step(a, b):
        before = {key: array.copy() for key, array in parameters.items()}
        try:
            optimizer.step({"a": a, "b": b})
        except BaseException:
            assert all((before[key] == array).all() for key, array in parameters.items()), (
                "changed by a step that failed"
            )
            raise

    return step, gradients


CALLS = {
    "RNN": constructor(rnnfast.RNN, **{**COMMON, "clip": None}, nonlinearity="tanh", leak=0.5),
    "LSTM": constructor(rnnfast.LSTM, **COMMON, proj_size=2, peepholes=False, coupled=True),
    "GRU": constructor(rnnfast.GRU, **COMMON, reset_after=True),
    "Linear": lambda _: (
        rnnfast.Linear,
        {"in_features": I, "out_features": H, "bias": True, "dtype": np.float32, "rng": 0},
    ),
    "Embedding": lambda _: (
        rnnfast.Embedding,
        {"num_embeddings": I, "embedding_dim": H, "dtype": np.float32, "rng": 0},
    ),
    "Bidirectional": lambda _: (
        rnnfast.Bidirectional,
        {"forward_layer": layer_of("rnn"), "backward_layer": layer_of("gru"), "merge": "sum"},
    ),
    "call": call_of("__call__"),
    "forward": call_of("forward"),
    "lengths": with_lengths,
    "backward": backward,
    "load_state_dict": lambda name: (
        layer_of(name).load_state_dict,
        {"arrays": layer_of(name).state_dict(), "strict": True},
    ),
    "save": lambda name: (layer_of(name).save, {"path": "/nonexistent/rnnfast"}),
    "load": lambda _: (rnnfast.load, {"path": "/nonexistent/rnnfast"}),
    "stream": lambda _: (rnnfast.GRU(I, H, rng=0).stream, {"batch_size": N}),
    "step": stream_step,
    "state": stream_state,
    "reset": lambda _: (rnnfast.GRU(I, H, rng=0).stream(N).reset, {"rows": [0, 2]}),
    "update": lambda _: (rnnfast.GRU(I, H, rng=0).stream(N).update, {"layer": rnnfast.GRU(I, H, rng=1)}),
    "StreamPool": lambda _: (rnnfast.StreamPool, {"layer": layer_of("rnn"), "capacity": 4}),
    "pool_step": pool_step,
    "join": lambda _: (pool_of()[0].join, {"state": (values(1, H), values(1, H))}),
    "leave": lambda _: (pool_of()[0].leave, {"id": 1}),
    "attribute": attribute,
    "set_num_threads": lambda _: (rnnfast.set_num_threads, {"n": 2}),
    "mean_squared_error": lambda _: (
        training.mean_squared_error,
        {"y": values(T, N), "target": values(T, N), "weights": values(T, N) ** 2},
    ),
    "binary_cross_entropy": lambda _: (
        training.binary_cross_entropy,
        {"logits": values(T, N, I), "target": values(T, N, I) > 0, "mask": values(T, N) > 0, "pos_weight": np.ones(I)},
    ),
    "quantile_loss": lambda _: (
        training.quantile_loss,
        {"y": values(T, N, 2), "target": values(T, N), "quantiles": [0.1, 0.9], "weights": values(T, N) ** 2},
    ),
    "gaussian_nll": lambda _: (
        training.gaussian_nll,
        {"y": values(T, N, 2), "target": values(T, N, 1), "mask": values(T, N) > 0, "eps": 1e-6},
    ),
    "ctc_loss": lambda _: (
        training.ctc_loss,
        {
            "logits": values(T, N, I),
            "targets": np.ones((N, 2), int),
            "input_lengths": np.full(N, T),
            "target_lengths": np.arange(N) % 3,
            "blank": 0,
        },
    ),
    "average": lambda _: (training.ExponentialMovingAverage, {"parameters": {"a": values(3)}, "decay": 0.9}),
    "softmax_cross_entropy": lambda _: (
        training.softmax_cross_entropy,
        {
            "logits": values(T, N, I),
            "targets": np.arange(T * N).reshape(T, N) % I,
            "mask": np.arange(T * N).reshape(T, N) % 3 > 0,
            "weights": values(T, N) ** 2,
        },
    ),
    "clip_grad_norm": lambda _: (
        lambda a, b, max_norm: training.clip_grad_norm({"a": a, "b": b}, max_norm),
        {"a": values(3, 2), "b": values(4), "max_norm": 1.0},
    ),
    "Adam": lambda _: (training.Adam, {"parameters": {"a": values(3)}, "lr": 0.1}),
    "SGD": lambda _: (training.SGD, {"parameters": {"a": values(3)}, "lr": 0.1, "momentum": 0.9}),
    "RMSprop": lambda _: (training.RMSprop, {"parameters": {"a": values(3)}, "alpha": 0.9, "weight_decay": 0.1}),
    "optimizer_step": optimizer_step,
    "truncated_bptt": lambda _: (
        lambda **given: list(itertools.islice(training.truncated_bptt(**given), 3)),
        {
            "layer": layer_of("gru"),
            "x": values(T, N, I),
            "window": 2,
            "state": None,
            "lengths": None,
            "mask": np.arange(T * N).reshape(T, N) % 3 > 0,
            "reset": np.arange(T * N).reshape(T, N) % 5 == 0,
            "reset_state": "zeros",
        },
    ),
}
LAYERS = ["rnn", "lstm", "gru", "frozen", "both", "linear", "embedding"]


def generate(random):
    return {
        "call": random.choice([*CALLS, "call", "forward", "attribute"]),
        "layer": random.choice(LAYERS),
        "replaced": [
            [random.randrange(16), random.choice(list(OBJECTS))] for _ in range(random.choice([1, 1, 1, 2, 3]))
        ],
        "attribute": random.randrange(100),
    }


def check(case):
    call, given = CALLS[case["call"]](case["layer"])
    if case["call"] == "attribute":
        given["attribute"] = given["attribute"][case["attribute"] % len(given["attribute"])]
    names = [name for name in given if name != "attribute"]
    changed = dict(given)
    for at, kind in case["replaced"]:
        name = names[at % len(names)]
        # numpy.random.default_rng itself crashes with a list that holds itself.
        assume((name, kind) != ("rng", "own list"))
        try:
            changed[name] = OBJECTS[kind](given[name])
        except Exception:  # no such variant of this argument
            changed[name] = None
    if "rng" in changed:
        changed["rng"] = given["rng"] if changed["rng"] is None else changed["rng"]
    watched = {name: value for name, value in changed.items() if watchable(case["call"], name, value)}
    before = {name: value.tobytes() for name, value in watched.items()}
    threads = rnnfast.get_num_threads()
    try:
        with np.errstate(all="ignore"), folder() as path, contextlib.chdir(path):  # where files may be saved
            result, error = outcome(lambda: call(**changed), *ERRORS, OwnError, *ALSO.get(case["call"], ()))
    finally:
        rnnfast.set_num_threads(threads)
    for name, value in watched.items():
        assert value.tobytes() == before[name], f"the argument {name} has changed"
    if error is not None:
        assert isinstance(error, (OwnError, MemoryError)) or str(error).strip("' "), (
            f"{type(error).__name__} without a message"
        )
        return
    for name, value in changed.items():
        parts = value if isinstance(value, list) else [value]
        hidden = any(isinstance(one, np.ma.MaskedArray) and one.mask.any() for one in parts)
        read = hidden and isinstance(given[name], np.ndarray) and name != "out"
        assert not read, f"the masked elements of {name} were read"
    if isinstance(result, (rnnfast.RNN, rnnfast.LSTM, rnnfast.GRU, rnnfast.Bidirectional)):
        outcome(lambda: result(values(T, N, I)), ValueError)
        repr(result)


def watchable(call, name, value):
    """Whether an argument is a small array that the call may only read."""
    if name == "out" or call in ("clip_grad_norm", "optimizer_step") or not isinstance(value, np.ndarray):
        return False
    return value.size < 1000 and not value.dtype.hasobject
