"""Streams and pools: after any operations, each stream has the state that calls of the layer have led to."""

import numpy as np
from support.arrays import FORMS
from support.cells import VARIANTS, make_layer
from support.compare import members

import rnnfast
from fuzz import assume, outcome
from rnnfast import functional

I = 3

# Operations, and how often they are drawn. Those in WRONG raise an error and change nothing.
STREAM = {"step": 6, "call": 3, "state": 2, "assign": 2, "reset": 2, "weights": 1, "update": 1, "freeze": 1, "other": 1}
STREAM |= {"wrong": 4}
POOL = {"join": 4, "leave": 2, "step": 8, "weights": 1, "update": 1, "freeze": 1, "wrong": 4}
ERRORS = ValueError, TypeError, IndexError, KeyError, RuntimeError


def generate(random):
    pool = random.random() < 0.5
    kinds = POOL if pool else STREAM
    operations = random.choices(list(kinds), list(kinds.values()), k=random.randint(1, 25))
    return {
        "pool": pool,
        "variant": random.choice(list(VARIANTS)),
        "H": random.choice([1, 2, 5, 8, 17]),
        "num_layers": random.randint(1, 3),
        "dtype": random.choice(["float32", "float64"]),
        "options": random.random() < 0.2,
        "batch_first": random.random() < 0.2,
        "size": random.choice([1, 1, 2, 3, 7]),
        "operations": [{"kind": kind, "seed": random.getrandbits(24)} for kind in operations],
    }


def check(case):
    assume(min(case["H"], case["num_layers"], case["size"]) >= 1)
    has_options = functional.CELLS[VARIANTS[case["variant"]][0]].generic is not None
    options = {"clip": 0.5} if case["options"] and has_options else {}
    layer = make_layer(
        case["variant"],
        I,
        case["H"],
        num_layers=case["num_layers"],
        dtype=case["dtype"],
        batch_first=case["batch_first"],
        **options,
    )
    one = (PoolModel if case["pool"] else StreamModel)(layer, case["size"])
    for operation in case["operations"]:
        rng = np.random.default_rng(operation["seed"])
        getattr(one, operation["kind"])(rng)
        one.verify()


def bits(state):
    return [np.ascontiguousarray(member).tobytes() for member in members(state)]


class Model:
    """What an object under test should hold: for each stream, the state of one row."""

    def __init__(self, layer):
        self.layer, self.dtype = layer, layer.dtype
        options = {**rnnfast.layers.saving.options(layer), "batch_first": False}
        self.oracle = type(layer)(**options)
        self.oracle.load_state_dict(layer.state_dict())
        self.widths = [layer.engine.output_size, layer.hidden_size][: 1 + layer.engine.info.has_c]

    def random_state(self, rng, N):
        values = [rng.uniform(-1, 1, (self.layer.num_layers, N, width)).astype(self.dtype) for width in self.widths]
        return tuple(values) if len(values) == 2 else values[0]

    def zeros(self, N):
        values = [np.zeros((self.layer.num_layers, N, width), self.dtype) for width in self.widths]
        return tuple(values) if len(values) == 2 else values[0]

    def x(self, rng, *shape):
        return rng.uniform(-2, 2, (*shape, I)).astype(self.dtype)

    def advance(self, x, state):
        y, end = self.oracle(x, state)
        return y, end

    def weights(self, rng):
        """Change the weights of the layer, which its streams do not see."""
        for array in self.layer.parameters.values():
            if array.flags.writeable:
                array += rng.uniform(-1, 1, array.shape).astype(self.dtype)

    def update(self, rng):
        """Take the present weights of the layer, or those of a copy."""
        layer = self.layer
        if rng.integers(2):
            layer = type(layer)(**{**rnnfast.layers.saving.options(layer), "batch_first": bool(rng.integers(2))})
            layer.load_state_dict(self.layer.state_dict())
        self.subject().update(*[[], [None], [layer]][rng.integers(3)])
        self.oracle.load_state_dict(self.layer.state_dict())

    def freeze(self, rng):
        (self.layer.freeze if rng.integers(2) else self.layer.unfreeze)()

    def wrong(self, rng):
        name, call = self.mistakes(rng)
        result, error = outcome(call, *ERRORS)
        assert error is not None, f"{name} was accepted: {result!r}"
        assert str(error).strip("' "), f"{name}: {error!r} has no message"

    def out(self, rng, shape):
        """None, or an array for the result: of any strides."""
        kind = rng.integers(5)
        if kind == 0:
            return np.full(shape, np.nan, self.dtype)
        if kind == 1:
            return np.full(shape[::-1], np.nan, self.dtype).T
        if kind == 2:
            return np.full([2 * size for size in shape], np.nan, self.dtype)[tuple(slice(None, None, 2) for _ in shape)]
        return None


def any_form(rng, array):
    return FORMS[list(FORMS)[rng.integers(len(FORMS))]](array)


def wrong_out(rng, shape, dtype, x):
    other = np.float64 if dtype == np.float32 else np.float32
    read_only = np.zeros(shape, dtype)
    read_only.flags.writeable = False
    faults = {
        "out of another dtype": np.zeros(shape, other),
        "out of another byte order": np.zeros(shape, dtype.newbyteorder()),
        "out that is too large": np.zeros((2, *shape), dtype),
        "out that is read-only": read_only,
        "out that is a list": np.zeros(shape, dtype).tolist(),
        "out that is an integer": 3,
    }
    if x.size >= int(np.prod(shape)):
        faults["out that overlaps x"] = x.reshape(-1)[: int(np.prod(shape))].reshape(shape)
    name = list(faults)[rng.integers(len(faults))]
    return name, faults[name]


class StreamModel(Model):
    def subject(self):
        return self.stream

    def __init__(self, layer, N):
        super().__init__(layer)
        self.N, self.stream, self.expected = N, layer.stream(N), self.zeros(N)

    def verify(self):
        assert bits(self.stream.state) == bits(self.expected), "the state differs"

    def step(self, rng):
        x = self.x(rng, self.N)
        alone = self.N == 1 and rng.integers(2)
        given = x[0] if alone else x
        shape = (self.widths[0],) if alone else (self.N, self.widths[0])
        given = any_form(rng, given) if given.ndim > 1 else given
        out = self.out(rng, shape)
        y = self.stream.step(given, out)
        assert out is None or y is out
        expected, self.expected = self.advance(x[np.newaxis], self.expected)
        assert y.shape == shape
        assert bits(y) == bits(expected[0].reshape(shape)), "step"

    def call(self, rng):
        x = self.x(rng, int(rng.integers(1, 6)), self.N)
        given = x.swapaxes(0, 1) if self.layer.batch_first else x
        y = self.stream(any_form(rng, given))
        expected, self.expected = self.advance(x, self.expected)
        assert bits(y) == bits(expected.swapaxes(0, 1) if self.layer.batch_first else expected), "call"

    def state(self, rng):
        """What was read is a copy."""
        for member in members(self.stream.state):
            member += rng.uniform(1, 2)

    def assign(self, rng):
        state = self.random_state(rng, self.N)
        if rng.integers(4) == 0:
            self.stream.state = None
            self.expected = self.zeros(self.N)
            return
        if isinstance(state, tuple) and rng.integers(3) == 0:  # one of the pair
            at = rng.integers(2)
            self.expected = tuple(
                z if k == at else s for k, (s, z) in enumerate(zip(state, self.zeros(self.N), strict=True))
            )
            self.stream.state = tuple(None if k == at else s for k, s in enumerate(state))
            return
        given = tuple(any_form(rng, s) for s in state) if isinstance(state, tuple) else any_form(rng, state)
        self.stream.state = given
        self.expected = tuple(s.copy() for s in state) if isinstance(state, tuple) else state.copy()
        for member in members(given):  # later changes of what was assigned do not matter
            if isinstance(member, np.ndarray) and member.flags.writeable:
                member += 1

    def reset(self, rng):
        kind = rng.integers(5)
        which = rng.integers(-self.N, self.N, rng.integers(0, 4))
        flags = rng.integers(0, 2, self.N).astype(bool)
        rows = [None, int(which[0]) if len(which) else 0, which, which.tolist(), flags][kind]
        self.stream.reset(rows)
        zeroed = slice(None) if rows is None else np.array(rows, np.intp if kind != 4 else bool)
        for member in members(self.expected):
            member[:, zeroed] = 0

    def other(self, rng):
        """Another stream of the layer, which has its own state."""
        self.layer.stream(self.N).step(self.x(rng, self.N))

    def mistakes(self, rng):
        stream, N = self.stream, self.N
        x = self.x(rng, N)
        name, out = wrong_out(rng, (N, self.widths[0]), self.dtype, x)
        state = self.random_state(rng, N + 1)
        wide = self.random_state(rng, N)
        pair = isinstance(wide, tuple)
        mistakes = {
            name: lambda: stream.step(x, out),
            "step of another batch": lambda: stream.step(self.x(rng, N + 1)),
            "step of other features": lambda: stream.step(x[:, :-1]),
            "step of complex numbers": lambda: stream.step(x.astype(complex)),
            "step of None": lambda: stream.step(None),
            "step of text": lambda: stream.step("x"),
            "call of another batch": lambda: stream(self.x(rng, N + 1, N + 1)),
            "call of no steps": lambda: stream(np.zeros((N, 0, I) if self.layer.batch_first else (0, N, I))),
            "call of None": lambda: stream(None),
            "state of another batch": lambda: setattr(stream, "state", state),
            "state of text": lambda: setattr(stream, "state", ("a", "b")),
            "state of three": lambda: setattr(stream, "state", (1, 2, 3)),
            # The first member is right, the second one is not.
            "half a state": lambda: setattr(
                stream, "state", (wide[0], wide[1].astype(complex)) if pair else wide[:1, :, :0]
            ),
            "reset of a row that is not there": lambda: stream.reset([0, N]),
            "reset of fractions": lambda: stream.reset([0.5]),
            "reset of too many flags": lambda: stream.reset([True] * (N + 1)),
            "reset of text": lambda: stream.reset("a"),
            "update to another class": lambda: stream.update(rnnfast.Linear(I, I)),
            "update to other sizes": lambda: stream.update(rnnfast.GRU(I + 1, 2)),
            "batch_size of 0": lambda: self.layer.stream(0),
            "batch_size of a fraction": lambda: self.layer.stream(1.5),
        }
        name = list(mistakes)[rng.integers(len(mistakes))]
        return name, mistakes[name]


class PoolModel(Model):
    def subject(self):
        return self.pool

    def __init__(self, layer, capacity):
        super().__init__(layer)
        self.pool, self.capacity = rnnfast.StreamPool(layer, capacity), capacity
        self.expected, self.left = {}, [0, -1, 1.5, None, "a", 1 << 70]

    def row(self, state):
        return tuple(member[:, 0] for member in state) if isinstance(state, tuple) else state[:, 0]

    def verify(self):
        assert len(self.pool) == len(self.expected)
        assert all(key in self.pool for key in self.expected)

    def join(self, rng):
        state = self.random_state(rng, 1)
        given = [None, state, self.row(state)][rng.integers(3)]
        if len(self.expected) == self.capacity:
            _, error = outcome(lambda: self.pool.join(given), RuntimeError)
            assert error is not None, "joined a full pool"
            return
        key = self.pool.join(given)
        assert key not in self.expected
        assert key not in self.left
        self.expected[key] = self.zeros(1) if given is None else state

    def leave(self, rng):
        if self.expected:
            key = list(self.expected)[rng.integers(len(self.expected))]
            state = self.pool.leave(key)
            assert bits(state) == bits(self.row(self.expected.pop(key))), "the state of a stream that leaves"
            self.left.append(key)

    def step(self, rng):
        ids = rng.permutation(list(self.expected))[: rng.integers(0, len(self.expected) + 1)].astype(int).tolist()
        x = self.x(rng, len(ids))
        out = self.out(rng, (len(ids), self.widths[0]))
        given = [ids, tuple(ids), np.array(ids, int), iter(ids), dict.fromkeys(ids)][rng.integers(5)]
        y = self.pool.step(given, any_form(rng, x) if ids else x, out)
        assert out is None or y is out
        assert y.shape == (len(ids), self.widths[0])
        for key, x_t, y_t in zip(ids, x, y, strict=True):
            expected, self.expected[key] = self.advance(x_t[np.newaxis, np.newaxis], self.expected[key])
            assert bits(y_t) == bits(expected[0, 0]), f"step of stream {key}"

    def mistakes(self, rng):
        pool, ids = self.pool, list(self.expected)
        gone = self.left[rng.integers(len(self.left))]
        x = self.x(rng, len(ids))
        name, out = wrong_out(rng, (len(ids), self.widths[0]), self.dtype, x)
        state, wide = self.random_state(rng, 2), self.random_state(rng, 1)
        pair = isinstance(wide, tuple)
        mistakes = {
            "leave of a key that is not there": lambda: pool.leave(gone),
            "leave of a list": lambda: pool.leave([1]),
            "step of a key that is not there": lambda: pool.step([*ids, gone], self.x(rng, len(ids) + 1)),
            "step of other features": lambda: pool.step(ids, np.zeros((len(ids), I + 1))),
            "step of too many rows": lambda: pool.step(ids, self.x(rng, len(ids) + 1)),
            "step of None": lambda: pool.step(None, x),
            "step of a key": lambda: pool.step(1, x),
            "step of text": lambda: pool.step(ids, "x"),
            "step of complex numbers": lambda: pool.step(ids, x.astype(complex)),
            "join of two rows": lambda: pool.join(state),
            "join of text": lambda: pool.join("ab"),
            "join of half a state": lambda: pool.join((wide[0], wide[1].astype(complex)) if pair else wide[:0]),
            "update to another class": lambda: pool.update(3),
            "update to other sizes": lambda: pool.update(rnnfast.GRU(I + 1, 2)),
            "capacity of 0": lambda: rnnfast.StreamPool(self.layer, 0),
        }
        if ids:
            mistakes[name] = lambda: pool.step(ids, x, out)
            mistakes["step of a key twice"] = lambda: pool.step([*ids, ids[0]], self.x(rng, len(ids) + 1))
        name = list(mistakes)[rng.integers(len(mistakes))]
        return name, mistakes[name]
