"""The calls of rnnfast that change something, as `Action`s for the tests of signals and of failed allocations."""

import atexit
import functools
import os
import shutil
import tempfile

import numpy as np

import rnnfast
from rnnfast import _core, functional, training
from support.cells import LAYERS
from support.compare import members
from support.interruptions import Action
from support.streams import bits

I, H, T, N = 6, 24, 4, 6  # such that states and results take 1 KiB or more: NumPy keeps smaller memory for later arrays
X = np.random.default_rng(0).standard_normal((T, N, I)).astype(np.float32)


def layer_of(cell, seed=0, **options):
    maker, own = LAYERS[cell]
    return maker(I, H, **{"rng": seed, **own, **options})


def input_of(layer):
    return np.arange(T * N).reshape(T, N) if isinstance(layer, rnnfast.Embedding) else X


# ---- what is observed


def look_of_results(results):
    """The bits of arrays in nested tuples and dicts."""
    if isinstance(results, dict):
        return {name: look_of_results(value) for name, value in results.items()}
    if isinstance(results, tuple | list):
        return [look_of_results(value) for value in results]
    return results.tobytes() if isinstance(results, np.ndarray) else results


def look_of_stream(stream):
    """The state, the results of the next step and call, and the state after a reset."""
    x = X[:1] if stream.batch_size == N else X[:1, :1]
    look = bits(stream.state), stream.step(x[0]).tobytes(), stream(x).tobytes(), bits(stream.state)
    stream.reset()
    return *look, bits(stream.state)


def look_of_pool(pool):
    """The states of all streams, the results of a step, and how many streams can join."""
    ids = [key for key in range(1, 50) if key in pool]
    y = pool.step(ids, np.ones((len(ids), I), np.float32))
    states = [bits(pool.leave(key)) for key in ids]
    fresh = [pool.join() for _ in range(pool.capacity)]
    zeros = [bits(pool.leave(key)) for key in fresh]
    return len(ids), y.tobytes(), states, len(fresh), zeros


def look_of_layer(layer):
    """The parameters, results and gradients, whether the layer is frozen, and whether it can be changed and frozen."""
    x = input_of(layer)
    parts = [layer.forward_layer, layer.backward_layer] if isinstance(layer, rnnfast.Bidirectional) else [layer]
    frozen = [part.__getstate__()["_frozen"] for part in parts]
    look = [frozen, [array.flags.writeable for array in layer.parameters.values()], look_of_results(layer.state_dict())]
    look.append(look_of_results(layer(x)))
    if "int8" not in frozen:  # which cannot be trained
        *y, tape = layer.forward(x)
        look.append(look_of_results([*y, layer.backward(tape, None)[:]]))
    layer.unfreeze()
    for array in layer.parameters.values():
        array[...] = 0.5
    look.append(look_of_results(layer(x)))
    layer.freeze()
    look.append([array.flags.writeable for array in layer.parameters.values()])
    look.append(look_of_results(layer(x)))
    return look


# ---- streams and pools


def used_stream(cell, batch_size=N):
    stream = layer_of(cell, num_layers=2, init_state=True).stream(batch_size)
    stream.step(X[0, :batch_size])
    return stream


def state_like(stream):
    values = tuple(np.full_like(member, 0.25) for member in members(stream.state))
    return values if isinstance(stream.state, tuple) else values[0]


def other_layer(cell):
    """A layer of other weights, from other initial states, for the streams of `used_stream` and `used_pool`."""
    layer = layer_of(cell, 1, num_layers=2, init_state=True)
    for name, array in layer.parameters.items():
        array += name.startswith(("h0", "c0"))
    return layer


def streams(cell):
    other = other_layer(cell)
    stream = functools.partial(used_stream, cell)
    values = state_like(stream())
    acts = {
        "step": lambda stream: stream.step(X[1]),
        "step of a list": lambda stream: stream.step(X[1].tolist()),
        "step with out": lambda stream: stream.step(X[1], np.empty((N, H), np.float32)),
        "step with strided out": lambda stream: stream.step(X[1], np.empty((N, 2 * H), np.float32)[:, ::2]),
        "call": lambda stream: stream(X),
        "set state": lambda stream: setattr(stream, "state", values),
        "set state to None": lambda stream: setattr(stream, "state", None),
        "get state": lambda stream: stream.state,
        "reset": lambda stream: stream.reset(),
        "reset of a row": lambda stream: stream.reset(1),
        "reset of rows": lambda stream: stream.reset(np.arange(N) < 2),
        "update": lambda stream: stream.update(other),
    }
    actions = {f"stream, {name}": Action(stream, act, look_of_stream) for name, act in acts.items()}
    one = functools.partial(used_stream, cell, 1)
    actions["stream, step of one row"] = Action(one, lambda stream: stream.step(X[1, 0]), look_of_stream)
    actions["stream, update of one row"] = Action(one, lambda stream: stream.update(other), look_of_stream)
    return actions


def used_pool(cell):
    pool = rnnfast.StreamPool(layer_of(cell, num_layers=2, init_state=True), 4)
    first, second, third = pool.join(), pool.join(), pool.join()
    pool.step([third, first, second], np.full((3, I), 0.5, np.float32))
    pool.leave(second)
    return pool


def pools(cell):
    pool, other = functools.partial(used_pool, cell), other_layer(cell)
    state = pool().leave(1)
    x = np.full((2, I), 0.25, np.float32)
    acts = {
        "join": lambda pool: pool.join(),
        "join with a state": lambda pool: pool.join(state),
        "leave": lambda pool: pool.leave(1),
        "step": lambda pool: pool.step([3, 1], x),
        "step with out": lambda pool: pool.step([3, 1], x, np.empty((2, 2 * H), np.float32)[:, ::2]),
        "step of one": lambda pool: pool.step([1], x[:1]),
        "update": lambda pool: pool.update(other),
    }
    return {f"pool, {name}": Action(pool, act, look_of_pool) for name, act in acts.items()}


# ---- layers

KINDS = {
    "recurrent": lambda seed=0: rnnfast.LSTM(I, H, 2, bidirectional=True, rng=seed),
    "Bidirectional": lambda seed=0: rnnfast.Bidirectional(rnnfast.LSTM(I, H, rng=seed), rnnfast.GRU(I, H, rng=seed)),
    "Linear": lambda seed=0: rnnfast.Linear(I, H, rng=seed),
    "Embedding": lambda seed=0: rnnfast.Embedding(60, H, rng=seed),
}


def frozen(make, weights=None):
    layer = make()
    layer.freeze(weights)
    return layer


@functools.cache
def folder():
    """A folder that is removed at the end of the process."""
    path = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, path)
    return path


@functools.cache
def saved(kind, weights=None):
    """The path of a file with a layer of other parameters, in fewer bytes if it is frozen with such weights."""
    path = os.path.join(folder(), f"{kind} {weights}")
    layer = KINDS[kind](1)
    if weights is not None:
        layer.freeze(weights)
    layer.save(path)
    return path


def to_save():
    """A layer, and the path of a file with another one, in a folder of its own."""
    path = os.path.join(tempfile.mkdtemp(dir=folder()), "layer.npz")
    rnnfast.GRU(I, H, rng=1).save(path)
    return rnnfast.GRU(I, H, rng=0), path


def look_of_save(subject):
    layer, path = subject
    return look_of_layer(layer), os.listdir(os.path.dirname(path)), look_of_results(rnnfast.load(path).state_dict())


def forward_backward(layer, x, **options):
    *y, tape = layer.forward(x, **options)
    return layer.backward(tape, np.ones_like(y[0]))


def layers(kind):
    make = KINDS[kind]
    x = input_of(make())
    other = make(1).state_dict()
    acts = {
        "call": lambda layer: layer(x),
        "forward and backward": lambda layer: forward_backward(layer, x),
        "freeze": lambda layer: layer.freeze(),
        "load_state_dict": lambda layer: layer.load_state_dict(other),
        "freeze to int8": lambda layer: layer.freeze("int8"),
        "load": lambda layer: layer.load(saved(kind)),
        "load int8": lambda layer: layer.load(saved(kind, "int8")),
    }
    if hasattr(make(), "release"):
        acts["release"] = lambda layer: layer.release()
    if kind in ("recurrent", "Bidirectional"):
        acts["ragged call"] = lambda layer: layer(x, lengths=[2, 4, 1, 0, 4, 3])
        acts["ragged forward and backward"] = lambda layer: forward_backward(layer, x, lengths=[2, 4, 1, 0, 4, 3])
        acts["checkpoints"] = lambda layer: forward_backward(layer, x, checkpoint=2)
    actions = {
        f"{kind}, {name}": Action(make, act, look_of_layer, files=name in ("load", "load int8"))
        for name, act in acts.items()
    }
    frozen_layer = functools.partial(frozen, make)
    actions[f"{kind}, unfreeze"] = Action(frozen_layer, lambda layer: layer.unfreeze(), look_of_layer)
    actions[f"{kind}, frozen call"] = Action(frozen_layer, lambda layer: (layer(x), layer(x)), look_of_layer)
    narrow_layer = functools.partial(frozen, make, "int8")
    actions[f"{kind}, int8 to float32"] = Action(narrow_layer, lambda layer: layer.freeze("float32"), look_of_layer)
    actions[f"{kind}, unfreeze int8"] = Action(narrow_layer, lambda layer: layer.unfreeze(), look_of_layer)
    actions[f"{kind}, int8 call"] = Action(narrow_layer, lambda layer: (layer(x), layer(x)), look_of_layer)
    return actions


# ---- training


def trained(make):
    """Parameters and an optimizer that has taken a step."""
    parameters = {name: np.full(size, 1.0, np.float32) for name, size in (("a", 300), ("b", (20, 20)), ("c", 500))}
    optimizer = make(parameters)
    optimizer.step(parameters)
    return parameters, optimizer


def look_of_optimizer(subject):
    parameters, optimizer = subject
    first = look_of_results([parameters, optimizer.state_dict()])
    optimizer.step({name: np.full_like(array, 0.25) for name, array in parameters.items()})
    return first, look_of_results([parameters, optimizer.state_dict()])


OPTIMIZERS = {
    "SGD": lambda parameters: training.SGD(parameters, 0.1, momentum=0.9),
    "Adam": lambda parameters: training.Adam(parameters),
    "RMSprop": lambda parameters: training.RMSprop(parameters, momentum=0.9, centered=True),
}


def optimizers(kind):
    make = functools.partial(trained, OPTIMIZERS[kind])
    state = {name: array + 1 for name, array in make()[1].state_dict().items()}
    return {
        f"{kind}, step": Action(make, lambda subject: subject[1].step(subject[0]), look_of_optimizer),
        f"{kind}, load_state_dict": Action(make, lambda subject: subject[1].load_state_dict(state), look_of_optimizer),
    }


def averaged():
    """Parameters and an average of theirs that differs from them."""
    parameters = {name: np.full(300, 1.0, np.float32) for name in "abc"}
    average = training.ExponentialMovingAverage(parameters, 0.5)
    average.update()
    for array in parameters.values():
        array += 1
    return parameters, average


def look_of_average(subject):
    parameters, average = subject
    return look_of_results([parameters, average.state_dict()])


def apply_average(subject):
    average = subject[1]
    try:
        with average.applied():
            pass
    except MemoryError:
        if average._swapped:  # at the end of the block, as documented
            average.swap()
        raise


def clipped():
    return {name: np.full(300, 4.0, np.float32) for name in "abc"}


def large_call(layer):
    """Call a layer with results of more than 2 MiB, which lie in memory of their own that later calls reuse."""
    x = np.ones((2**15 + 1, 1, 1), np.float32)
    return forward_backward(layer, x), layer(x)


def look_of_large(layer):
    return look_of_results(layer(np.ones((3, 1, 1), np.float32)))


def look_of_process(_):
    """The default instruction set; resets it for the next call."""
    isa = _core.get_default_isa()
    _core.set_default_isa(functional.isas()[0])
    return isa


def matrix_product(_):
    layer = rnnfast.Linear(I, H, rng=0)
    packed = functional.linear_pack(layer.parameters["weight"], layer.parameters["bias"])
    functional.linear_forward(X[0], packed, np.empty((N, H), np.float32))
    return functional.activation("tanh", X)


def make_everything(_):
    layer = rnnfast.GRU(I, H, rng=0)
    layer.stream(2)
    rnnfast.StreamPool(layer, 2)
    for make in KINDS.values():
        make()


def use_isa(_):
    with functional.use_isa(functional.isas()[-1]):
        pass


ACTIONS = {
    name: action
    for group in (
        streams("lstm"),
        pools("lstm"),
        *map(layers, KINDS),
        *map(optimizers, OPTIMIZERS),
        {
            "ExponentialMovingAverage, update": Action(averaged, lambda subject: subject[1].update(), look_of_average),
            "ExponentialMovingAverage, swap": Action(averaged, lambda subject: subject[1].swap(), look_of_average),
            "ExponentialMovingAverage, applied": Action(averaged, apply_average, look_of_average),
            "clip_grad_norm": Action(
                clipped, lambda gradients: training.clip_grad_norm(gradients, 1.0), look_of_results
            ),
            "use_isa": Action(lambda: None, use_isa, look_of_process),
            "save": Action(to_save, lambda subject: subject[0].save(subject[1]), look_of_save, files=True),
            "large call": Action(lambda: rnnfast.RNN(1, 16, rng=0), large_call, look_of_large),
            "functions": Action(lambda: None, matrix_product, look_of_process),
            "constructors": Action(lambda: None, make_everything, look_of_process),
        },
    )
    for name, action in group.items()
}
