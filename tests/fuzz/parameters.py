"""load_state_dict: the parameters of a mapping that fits, or an error and no change at all."""

import numpy as np

import rnnfast
from fuzz import assume, outcome

LAYERS = {
    "rnn": lambda: rnnfast.RNN(3, 3, rng=0),
    "lstm": lambda: rnnfast.LSTM(2, 3, 2, proj_size=2, bidirectional=True, rng=0),
    "gru": lambda: rnnfast.GRU(2, 3, dtype=np.float64, rng=0),
    "peepholes": lambda: rnnfast.LSTM(3, 3, peepholes=True, bias=False, rng=0),
    "both": lambda: rnnfast.Bidirectional(rnnfast.GRU(2, 3, rng=0), rnnfast.RNN(2, 3, reverse=True, rng=0)),
    "linear": lambda: rnnfast.Linear(3, 3, rng=0),
    "embedding": lambda: rnnfast.Embedding(4, 3, rng=0),
}

# What a value is made into: an array that holds the same elements, or that cannot be loaded.
FITTING = {
    "array": lambda a: a,
    "float64": lambda a: a.astype(np.float64),
    "float16": lambda a: a.astype(np.float16),
    "longdouble": lambda a: a.astype(np.longdouble),
    "int": lambda a: (100 * a).astype(np.int64),
    "uint8": lambda a: np.abs(100 * a).astype(np.uint8),
    "bool": lambda a: a > 0,
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "fortran": np.asfortranarray,
    "reversed": lambda a: a[::-1].copy()[::-1],
    "strided": lambda a: np.repeat(a, 2, axis=0)[::2],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "list": lambda a: a.tolist(),
    "tuples": lambda a: tuple(map(tuple, a.tolist())) if a.ndim > 1 else tuple(a.tolist()),
    "memoryview": lambda a: memoryview(np.ascontiguousarray(a)),
    "nan": lambda a: np.full_like(a, np.nan),
    "inf": lambda a: np.full(a.shape, -np.inf),
    "record": lambda a: a.view(np.recarray),
    "unmasked": lambda a: np.ma.masked_array(a, np.zeros(a.shape, bool)),
}
UNFIT = {
    "transposed": lambda a: a.reshape(1, *a.shape),
    "flat": lambda a: a.ravel()[:-1],
    "scalar": lambda _: 0.5,
    "empty": lambda a: np.empty((0, *a.shape[1:]), a.dtype),
    "complex": lambda a: a.astype(complex),
    "strings": lambda a: a.astype(str),
    "bytes": lambda a: a.tobytes(),
    "objects": lambda a: a.astype(object),
    "none": lambda _: None,
    "ragged": lambda _: [[1.0], [1.0, 2.0]],
    "dates": lambda a: np.zeros(a.shape, "M8[s]"),
    "structured": lambda a: np.zeros(a.shape, [("a", a.dtype)]),
    "masked": lambda a: np.ma.masked_array(a, a >= a.max()),
    "dict": lambda _: {"a": 1},
    "function": lambda _: len,
    "raises": lambda _: Raises(),
    "one more row": lambda a: np.concatenate([a, a[:1]]),
}
CONTAINERS = ["dict", "mapping", "no mapping", "lazy", "failing"]
NAMES = ["weight", "weight_ih_l0", "", "weight_ih_l9", "weight_ih_l0 ", "WEIGHT", "é", 3, None]


class Raises:
    def __array__(self, *_, **__):
        raise RuntimeError("no array")


class Mapping:
    """The least that load_state_dict needs; `fails` is the name whose value cannot be fetched."""

    def __init__(self, values, fails=None):
        self._values, self._fails = values, fails

    def keys(self):
        return list(self._values)

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)

    def __contains__(self, name):
        return name in self._values

    def __getitem__(self, name):
        if name == self._fails:
            raise LookupError(name)
        return self._values[name]


def generate(random):
    edits = []
    for _ in range(random.choice([0, 0, 1, 1, 2, 3, 6])):
        kind = random.choices(["form", "own", "drop", "add"], [6, 2, 1, 1])[0]
        edit = {"kind": kind, "at": random.randrange(100)}
        if kind == "form":
            edit["form"] = random.choice(list(FITTING if random.random() < 0.6 else UNFIT))
        if kind == "own":
            edit["from"], edit["way"] = random.randrange(100), random.choice(["whole", "transposed", "reversed"])
        if kind == "add":
            edit["name"] = random.choice(NAMES)
        edits.append(edit)
    return {
        "layer": random.choice(list(LAYERS)),
        "edits": edits,
        "container": random.choices(CONTAINERS, [8, 2, 1, 1, 1])[0],
        "strict": random.choice([True, True, True, False, 1]),
        "frozen": random.random() < 0.1,
        "seed": random.getrandbits(20),
    }


def check(case):
    layer = LAYERS[case["layer"]]()
    rng = np.random.default_rng(case["seed"])
    own = dict(layer.parameters)
    names = list(own)
    values = {name: rng.uniform(-1, 1, a.shape).astype(a.dtype) for name, a in own.items()}
    for edit in case["edits"]:
        name = names[edit["at"] % len(names)]
        if edit["kind"] == "drop":
            values.pop(name, None)
        elif edit["kind"] == "add":
            values[edit["name"]] = np.ones(3)
        elif edit["kind"] == "own":
            part = own[names[edit["from"] % len(names)]]
            values[name] = {"whole": part, "transposed": part.T, "reversed": part[::-1]}[edit["way"]]
        else:
            form = FITTING.get(edit["form"]) or UNFIT[edit["form"]]
            values[name] = form(rng.uniform(-1, 1, own[name].shape).astype(own[name].dtype))
    if case["frozen"]:
        layer.freeze()
    before = {name: array.copy() for name, array in own.items()}
    kept = {name: np.array(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    expected, reason = expect(own, values, case)
    given = {
        "dict": lambda: values,
        "mapping": lambda: Mapping(values),
        "no mapping": lambda: list(values.items()),
        "lazy": lambda: iter(values),
        "failing": lambda: Mapping(values, next(iter(values), None)),
    }[case["container"]]()
    errors = (ValueError, TypeError, *([LookupError] if case["container"] == "failing" else []))
    # An exception of a foreign __array__ is passed on, or chained to a documented one.
    errors += (RuntimeError,) if any(isinstance(value, Raises) for value in values.values()) else ()
    with np.errstate(all="ignore"):
        _, error = outcome(lambda: layer.load_state_dict(given, strict=case["strict"]), *errors)
    for name, value in kept.items():
        if not any(np.shares_memory(value, array) for array in own.values()) and values[name].dtype != object:
            shared = any(np.may_share_memory(values[name], array) for array in own.values())
            assert shared or np.array(values[name]).tobytes() == value.tobytes(), f"the argument {name} has changed"
    if expected is None:
        assert error is not None, f"loaded, although {reason}"
        assert str(error).strip(), "an error without a message"
        wanted = before
    else:
        assert error is None, f"refused what fits: {error!r}"
        wanted = expected
    for name, array in own.items():
        assert layer.parameters[name] is array, f"{name} is another array"
        assert array.tobytes() == wanted[name].tobytes(), f"{name} {'changed' if error else 'was not loaded'}"


def expect(own, values, case):
    """Return the parameters after loading, or None and the reason for an error."""
    if case["frozen"]:
        return None, "the layer is frozen"
    if case["container"] in ("no mapping", "lazy") or not isinstance(case["strict"], bool):
        return None, "an argument has the wrong type"
    if case["container"] == "failing" and next(iter(values), None) in own:
        return None, "a value cannot be fetched"
    if case["container"] == "failing":
        assume(case["strict"] or not values or False)
    if case["strict"] and values.keys() != own.keys():
        return None, "names are missing or unknown"
    after = {name: array.copy() for name, array in own.items()}
    for name, value in values.items():
        if name not in own:
            continue
        if value is None or isinstance(value, (Raises, dict, bytes)) or callable(value):
            return None, f"{name} is not an array"
        if isinstance(value, np.ma.MaskedArray) and value.mask.any():
            return None, f"{name} has masked elements"
        try:
            array = np.asarray(value)
        except ValueError:
            return None, f"{name} is ragged"
        if array.dtype.kind not in "fiub" or array.shape != own[name].shape:
            return None, f"{name} is {array.dtype} of shape {array.shape}"
        with np.errstate(all="ignore"):
            after[name] = array.astype(own[name].dtype)
    return after, None
