"""The compiled module refuses arguments that are missing or of the wrong type, shape or size, instead of crashing."""

import inspect

import numpy as np
import pytest
from support.processes import run_script

from rnnfast import _core, functional
from rnnfast.functional import Engine, InputGradients, Inputs, Order, OutputGradients, Outputs

# A valid call of everything that the module offers, by name. Each case gets fresh arguments.
VALID = """
import numpy as np
from rnnfast import _core, functional
from rnnfast.buffers import BufferPool

F = np.dtype(np.float32)
T, N, I, H = 4, 2, 3, 5
engine = _core.Engine("lstm", F, I, H)
sizes = engine.sizes(T, N)
order, _, _ = functional.arrange(T, N, np.array([4, 1]))
f = lambda *shape: np.full(shape, 0.5, np.float32)
b = functional.empty
weights = lambda: [f(*shape) for shape in functional.parameter_shapes(engine).values()]
packed = b(engine.packed_size)
_core.pack(engine, weights(), packed, None)
prepared = lambda: _core.PreparedCall(
    engine, packed, ((T, N, I), (T, N, H), (1, N, H), (1, N, H)), time_first=True, pool=BufferPool(2), empty=np.empty
)
step = lambda: _core.PreparedCall(
    engine, packed, ((1, N, I), (1, N, H), (1, N, H), (1, N, H)), time_first=True, pool=BufferPool(2), empty=np.empty,
    states=((f(1, N, H), f(1, N, H)), (f(1, N, H), f(1, N, H))),
)
given = lambda: (
    b(engine.packed_back_size), _core.Inputs(f(T, N, I)), f(T, N, H), np.zeros(sizes.tape, np.uint8),
    _core.OutputGradients(f(T, N, H)), _core.InputGradients(f(T, N, I), f(1, N, H), f(1, N, H), weights()),
    b(sizes.backward_workspace),
)
M = 2
many = lambda: [f(M, *shape) for shape in functional.parameter_shapes(engine).values()]
members_given = lambda: (
    b(M * engine.packed_back_size), _core.Inputs(f(M, T, N, I), f(M, 1, N, H), f(M, 1, N, H)), f(M, T, N, H),
    np.zeros(M * sizes.tape, np.uint8), _core.OutputGradients(f(M, T, N, H), f(M, 1, N, H), f(M, 1, N, H)),
    _core.InputGradients(f(M, T, N, I), f(M, 1, N, H), f(M, 1, N, H), many()), b(M * sizes.backward_workspace),
)
slots = lambda: _core.Slots(engine, packed, [f(1, 3, H), f(1, 3, H)], pool=BufferPool(2), empty=np.empty)
class Owner: pass
def joined():
    made = slots()
    made.join(None, None)
    return made
intp = lambda *values: np.array(values, np.intp)
CALLS = {
    "Engine": lambda: (_core.Engine, ["lstm", F, I, H]),
    "Order": lambda: (_core.Order, [order.sequences, order.begin, order.positions, order.edges, order.masked_steps]),
    "PreparedCall": lambda: (lambda *a: _core.PreparedCall(*a, time_first=True, pool=BufferPool(2), empty=np.empty),
                             [engine, packed, ((T, N, I), (T, N, H), (1, N, H), (1, N, H))]),
    "Inputs": lambda: (_core.Inputs, [f(T, N, I), None, None, None, order]),
    "Outputs": lambda: (_core.Outputs, [f(T, N, H), f(1, N, H), f(1, N, H)]),
    "OutputGradients": lambda: (_core.OutputGradients, [f(T, N, H), f(1, N, H), f(1, N, H)]),
    "InputGradients": lambda: (_core.InputGradients, [f(T, N, I), f(1, N, H), f(1, N, H), weights()]),
    "Pointers": lambda: (_core.Pointers, [engine, many(), 0, False, M]),
    "Lease": lambda: (_core.Lease, [BufferPool(2), b(64), 64]),
    "Slots": lambda: (lambda *a: _core.Slots(*a, pool=BufferPool(2), empty=np.empty),
                      [engine, packed, [f(1, 3, H), f(1, 3, H)]]),
    "Weights": lambda: (_core.Weights, [engine, packed, None]),
    "Slots.starts": lambda: (slots().starts, []),
    "Slots.replace": lambda: (joined().replace, [packed, None]),
    "Slots.members": lambda: (slots().members, []),
    "Slots.join": lambda: (slots().join, [f(1, H), f(1, H)]),
    "Slots.leave": lambda: (joined().leave, [1]),
    "Slots.step": lambda: (joined().step, [[1], f(1, I), f(1, H), lambda x, out, _: (x, out, out)]),
    "BufferPool": lambda: (_core.BufferPool, [2, b]),
    "BufferPool.acquire": lambda: (BufferPool(2).acquire, [64]),
    "BufferPool.pop": lambda: (BufferPool(2).pop, []),
    "BufferPool.release": lambda: (BufferPool(2).release, [b(64)]),
    "BufferPool.clear": lambda: (BufferPool(2).clear, []),
    "BufferPool.lease": lambda: (BufferPool(2).lease, [64]),
    "Views": lambda: (_core.Views, [[f(3)], 0]),
    "address": lambda: (_core.address, [f(3)]),
    "assign": lambda: (_core.assign, [[f(3), f(2, 2)], [f(3), f(2, 2)]]),
    "add_scaled": lambda: (_core.add_scaled, [[f(2, 1, 3, 2)], f(2, 3), [f(2, 1, 3, 2)]]),
    "switch": lambda: (_core.switch, [[(Owner(), "a", 1)], [f(3)], False, [f(3)], [f(3)]]),
    "committed": lambda: (_core.committed, [len]),
    "optimize": lambda: (_core.optimize, [
        "adam", [f(3)], [f(3)], [[f(3)], [f(3)]], np.zeros(1, np.int64), (.1, .2, .3, .4, .5, .6, 0., 1.)]),
    "swap": lambda: (_core.swap, [[f(3)], [f(3)], np.zeros(1, np.int64)]),
    "swapped": lambda: (_core.swapped, [[f(3)], [f(3)], np.zeros(1, np.int64)]),
    "overlaps": lambda: (_core.overlaps, [[f(3), f(3)]]),
    "PreparedCall.update": lambda: (step().update, [lambda h, c: (1, (h, c))]),
    "PreparedCall.replace": lambda: (step().replace, [packed, None]),
    "CellInfo": lambda: (_core.CellInfo, list(range(12))),
    "Sizes": lambda: (_core.Sizes, [1, 2, 3]),
    "use_isa": lambda: (_core.use_isa, ["base"]),
    "isas": lambda: (_core.isas, []),
    "get_default_isa": lambda: (_core.get_default_isa, []),
    "set_default_isa": lambda: (_core.set_default_isa, [_core.get_default_isa()]),
    "get_num_threads": lambda: (_core.get_num_threads, []),
    "set_num_threads": lambda: (_core.set_num_threads, [1]),
    "find_openmp": lambda: (_core.find_openmp, ["libnone.so"]),
    "set_on_openmp": lambda: (_core.set_on_openmp, [False]),
    "pack": lambda: (_core.pack, [engine, weights(), b(engine.packed_size), b(engine.packed_back_size)]),
    "forward": lambda: (_core.forward, [
        engine, packed, _core.Inputs(f(T, N, I), f(1, N, H), f(1, N, H)),
        _core.Outputs(f(T, N, H), f(1, N, H), f(1, N, H)),
        b(sizes.forward_workspace), b(sizes.tape)]),
    "backward": lambda: (_core.backward, [engine, *given()]),
    "forward_members": lambda: (_core.forward_members, [
        engine, _core.Pointers(engine, many(), members=M), b(M * engine.packed_size), b(M * engine.packed_back_size),
        _core.Inputs(f(M, T, N, I), f(M, 1, N, H), f(M, 1, N, H)),
        _core.Outputs(f(M, T, N, H), f(M, 1, N, H), f(M, 1, N, H)),
        b(M * sizes.forward_workspace), b(M * sizes.tape)]),
    "backward_members": lambda: (_core.backward_members, [engine, *members_given()]),
    "cells": lambda: (_core.cells, [engine, T, N, b(sizes.tape), f(1, T, N, H)]),
    "fold": lambda: (_core.fold, [engine, f(T, N, H), order]),
    "arrange": lambda: (_core.arrange, [T, N, intp(4, 1), None, None, lambda size: np.empty(size, np.intp)]),
    "linear_sizes": lambda: (_core.linear_sizes, [2, 3, 4, 4]),
    "linear_pack": lambda: (_core.linear_pack, [f(4, 3), f(4), b(_core.linear_sizes(1, 3, 4, 4)[0])]),
    "linear_forward": lambda: (_core.linear_forward, [f(2, 3), functional.linear_pack(f(4, 3), f(4)), f(2, 4)]),
    "linear_backward": lambda: (_core.linear_backward, [
        f(2, 3), f(4, 3), f(2, 4), f(2, 3), f(4, 3), f(4), b(_core.linear_sizes(2, 3, 4, 4)[1])]),
    "activation": lambda: (_core.activation, ["tanh", f(9), f(9)]),
    "Engine.sizes": lambda: (engine.sizes, [T, N, order]),
    "Engine.draw_zoneout": lambda: (engine.draw_zoneout, [T, N, (1, 2), functional.empty]),
    "Engine.host_call": lambda: (engine.host_call, [True, False, False]),
    "Order.fill": lambda: (order.fill, [-1, f(T, N, H)]),
    "PreparedCall.run": lambda: (prepared().run, [f(T, N, I), (f(1, N, H), None)]),
    "PreparedCall.step": lambda: (step().step, [f(N, I), f(N, H)]),
    "use_isa.__exit__": lambda: (_core.use_isa("base").__exit__, []),
}
"""
WRONG = """
class Nothing: pass
small, wide = np.zeros(1, np.float32), np.zeros((9, 9, 9))
WRONG = [None, Nothing(), 0, -1, 2**70, 1.5, True, "x", b"", b"abc", [], (), [None], (None, None), small, small[:0],
         wide, wide.astype(np.float32), wide[..., ::2], np.zeros((2, 2, 3), np.float32)[::-1, :, ::-1], engine, order,
         _core.Inputs(None), _core.Inputs(small, small, small, small), _core.Outputs(None, None),
         _core.Outputs(small, small, small),
         _core.OutputGradients(small, small, small), _core.InputGradients(None, None, None, None),
         _core.InputGradients(small, small, small, [small] * 4), _core.Inputs, memoryview(b"abcd"), np.float32(1)]
"""


@pytest.mark.usefixtures("threads")  # restores what a call sets, as the context below does
def test_every_public_name_is_tried():
    """A new function, class or method of the module needs an entry in VALID."""
    namespace = {}
    exec(VALID, namespace)
    public = {name for name, value in vars(_core).items() if callable(value) and not name.startswith("_")}
    public -= {"namedtuple"}
    assert public <= namespace["CALLS"].keys()
    for cls in filter(inspect.isclass, vars(_core).values()):
        for name, value in vars(cls).items() if cls.__module__ == "rnnfast._core" else ():
            if inspect.ismethoddescriptor(value) and not name.startswith("_") and not issubclass(cls, tuple):
                assert f"{cls.__name__}.{name}" in namespace["CALLS"] or name in ("begin", "end"), (cls, name)
    with functional.use_isa(_core.get_default_isa()):
        for make in namespace["CALLS"].values():
            function, arguments = make()
            function(*arguments)


def test_wrong_arguments_do_not_crash():
    """None and other types in each position raise an error, or are valid."""
    run_script(
        VALID
        + WRONG
        + """
isa, threads = _core.get_default_isa(), _core.get_num_threads()
errors = 0
for name, make in CALLS.items():
    function, arguments = make()
    for position in range(len(arguments)):
        for wrong in WRONG:
            function, arguments = make()
            arguments[position] = wrong
            print(name, position, repr(wrong)[:60], flush=True)
            try:
                function(*arguments)
            except Exception as error:
                assert not isinstance(error, SystemError), error
                errors += 1
            _core.set_default_isa(isa), _core.set_num_threads(threads)
    for count in range(len(arguments)):
        try:
            function(*arguments[:count])
        except (TypeError, ValueError):
            errors += 1
assert errors > 1500, errors
"""
    )


def test_arrays_of_objects_are_refused():
    """Elements of 8 bytes pass as float64 by their size, but kernels would overwrite references with numbers."""
    run_script(
        VALID.replace("np.float32", "np.float64")
        + """
FIELDS = {
    _core.Inputs: ("x", "h0", "c0", "masks", "order", "recurrent_masks", "zoneout_masks"),
    _core.Outputs: ("y", "h_n", "c_n"),
    _core.OutputGradients: ("dy", "dh_n", "dc_n"),
    _core.InputGradients: ("dx", "dh0", "dc0", "dparameters", "dh"),
}
UNCHECKED = "Inputs", "Outputs", "OutputGradients", "InputGradients", "Lease", "BufferPool.release", "switch", "swapped"

def with_objects(value, dtype):
    # Copies of an argument, each with one of its arrays replaced.
    if isinstance(value, np.ndarray):
        yield np.empty(value.shape, dtype)
    elif isinstance(value, (list, tuple)):
        for i, member in enumerate(value):
            for replaced in with_objects(member, dtype):
                yield type(value)([*value[:i], replaced, *value[i + 1 :]])
    elif type(value) in FIELDS:
        fields = [getattr(value, name) for name in FIELDS[type(value)]]
        yield from (type(value)(*replaced) for replaced in with_objects(fields, dtype))

refused = 0
for name in CALLS.keys() - UNCHECKED:
    for position in range(len(CALLS[name]()[1])):
        for dtype in (np.dtype(object), np.dtype([("field", object)])):
            for replaced in with_objects(CALLS[name]()[1][position], dtype):
                function, arguments = CALLS[name]()
                arguments[position] = replaced
                print(name, position, dtype, flush=True)
                try:
                    assert function(*arguments) is None and name.startswith("PreparedCall."), (name, position)
                except (TypeError, ValueError):
                    refused += 1
assert refused > 100, refused
"""
    )


def test_sizes_that_do_not_fit_are_refused():
    """Calls that once read or wrote beyond the ends of arrays."""
    run_script(
        VALID
        + """
from types import SimpleNamespace
make = lambda *shapes, cell="gru", **given: _core.PreparedCall(
    _core.Engine(cell, F, 4, 8), b(10**5), shapes,
    **{"time_first": True, "pool": BufferPool(2), "empty": np.empty} | given)
long, _, _ = functional.arrange(50, 30, np.full(30, 20))
functions = ("softsign", 0, 0), ("what", 0, 0), ("tanh", 0, 0)
options = SimpleNamespace(clip=None, peepholes=False, coupled=False, activations=functions)
class Many(list):
    __len__ = lambda self: 3
shrunk = np.zeros(1000, np.float32)
shrunk.dtype = np.int8
moments = [[np.zeros(1000, np.float32)]] * 2
optimize = lambda p, g: _core.optimize("adam", [p], [g], moments, np.zeros(1, np.int64), (.1,) * 8)
for name, call in {
    "y is too small": lambda: make((1000, 200, 4), (1, 1, 1), (1, 200, 8), None),
    "h is too small": lambda: make((10, 20, 4), (10, 20, 8), (1, 1, 1), None),
    "x is too narrow": lambda: make((10, 20, 1), (10, 20, 8), (1, 20, 8), None),
    "too many axes": lambda: make((3, 2, 4) + (1,) * 13, (3, 2, 8), (1, 2, 8), None),
    "no c": lambda: make((3, 2, 4), (3, 2, 8), (1, 2, 8), None, cell="lstm"),
    "results are too small": lambda: make(
        (3, 2, 4), (3, 2, 8), (1, 2, 8), None, empty=lambda *_: f(1)).run(f(3, 2, 4), None),
    "step without states": lambda: prepared().step(f(N, I), None),
    "update without states": lambda: prepared().update(lambda h, c: (1, None)),
    "replace without states": lambda: prepared().replace(packed, None),
    "parameters and packed weights": lambda: make((3, 2, 4), (3, 2, 8), (1, 2, 8), None, parameters=[]),
    "parameters and states": lambda: _core.PreparedCall(
        engine, None, ((1, N, I), (1, N, H), (1, N, H), (1, N, H)), time_first=True, pool=BufferPool(2), empty=np.empty,
        states=((f(1, N, H),) * 2,) * 2, parameters=weights()),
    "too few parameters": lambda: _core.PreparedCall(
        engine, None, ((T, N, I), (T, N, H), (1, N, H), (1, N, H)), time_first=True, pool=BufferPool(2), empty=np.empty,
        parameters=weights()[1:]),
    "more than one step": lambda: make((2, 2, 4), (2, 2, 8), (1, 2, 8), None, states=([f(1, 2, 8)] * 2, None)),
    "order in forward": lambda: functional.forward(
        _core.Engine("gru", F, 4, 8), b(10**5), _core.Inputs(f(1, 6000, 4), order=long),
        _core.Outputs(f(1, 6000, 8), f(1, 30, 8)), b(10**6)),
    "order in fold": lambda: functional.fold(engine, f(1, 6000, H), long),
    "order in fill": lambda: long.fill(0, f(6000, 1, H)),
    "order in cells": lambda: _core.cells(engine, 6000, 1, b(10**7), f(1, 6000, 1, H), long),
    "members in a prepared call": lambda: _core.PreparedCall(
        engine, None, ((T, N, I), (T, N, H), (1, N, H), (1, N, H)), time_first=True, pool=BufferPool(2), empty=np.empty,
        parameters=_core.Pointers(engine, many(), members=M)),
    "members in pack": lambda: _core.pack(
        engine, _core.Pointers(engine, many(), members=M), b(engine.packed_size), None),
    "another number of members": lambda: _core.Pointers(engine, many(), members=M + 1),
    "more members than pointers": lambda: _core.forward_members(
        engine, _core.Pointers(engine, weights()), b(10**5), None, _core.Inputs(f(M, T, N, I)),
        _core.Outputs(f(M, T, N, H), f(M, 1, N, H), f(M, 1, N, H)), b(10**5)),
    "packed weights of one and a half members": lambda: _core.forward_members(
        engine, None, b(engine.packed_size * 3 // 2), None, _core.Inputs(f(M, T, N, I)),
        _core.Outputs(f(M, T, N, H), f(M, 1, N, H), f(M, 1, N, H)), b(10**5)),
    "packed weights of one member, to be written for all": lambda: _core.forward_members(
        engine, _core.Pointers(engine, many(), members=M), b(engine.packed_size), None, _core.Inputs(f(M, T, N, I)),
        _core.Outputs(f(M, T, N, H), f(M, 1, N, H), f(M, 1, N, H)), b(10**5)),
    "too many members to count": lambda: _core.forward_members(
        engine, None, b(10**5), None, _core.Inputs(np.broadcast_to(f(T, N, I), (2**56, T, N, I))),
        _core.Outputs(np.lib.stride_tricks.as_strided(f(T, N, H), (2**56, T, N, H), (0, N * H * 4, H * 4, 4)),
                      f(1, N, H), f(1, N, H)), b(10**5)),
    "no slots": lambda: _core.Slots(engine, packed, [f(1, 0, H)] * 2, pool=BufferPool(2), empty=np.empty),
    "lease": lambda: _core.Lease(BufferPool(2), b(10), 10**9),
    "lease of negative size": lambda: _core.Lease(BufferPool(2), b(10), -1),
    "activations": lambda: _core.Engine("gru", F, 4, 8, options=SimpleNamespace(
        **vars(options) | {"activations": Many([("tanh", 0, 0)] * 300)})),
    "activation": lambda: _core.Engine("gru", F, 4, 8, options=options),
    "lengths are too large": lambda: functional.arrange(5, 3, np.array([2, 0, 500])),
    "lengths are negative": lambda: functional.arrange(5, 3, np.array([2, -2, 5])),
    "parameter of integers": lambda: optimize(shrunk, shrunk),
    "gradient of another dtype": lambda: optimize(f(1000), np.zeros(500)),
    "gradient of integers": lambda: optimize(f(1000), np.zeros(1000, np.int32)),
}.items():
    print(name, flush=True)
    try:
        call()
    except (TypeError, ValueError) as error:
        print(error)
    else:
        raise AssertionError(name)
"""
    )


def test_objects_are_never_half_made():
    """No object can be made without its arguments, and calling __init__ again, with any arguments, changes nothing."""
    run_script(
        VALID
        + """
import gc
for name in ("Engine", "Order", "PreparedCall", "Inputs", "Outputs", "InputGradients", "use_isa"):
    cls = getattr(_core, name)
    try:
        cls.__new__(cls)
    except TypeError:
        pass
    else:
        raise AssertionError(f"{name} was made without arguments")
objects = [engine, order, prepared(), step()]
of_order = 1, order.begin, order.positions, order.edges, order.masked_steps
for made in objects:
    for arguments in [(), (1,), (None,) * 5, ("gru", F, 9, 9), of_order] * 10:
        try:
            made.__init__(*arguments)
        except (TypeError, ValueError):
            pass
assert engine.cell == "lstm" and engine.hidden_size == H
assert order.sequences == 2
y, _ = objects[2].run(f(T, N, I), None)
assert y.shape == (T, N, H)
del objects
gc.collect()
"""
    )


@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers", "proj_size"])
@pytest.mark.parametrize("size", [0, -1, True, False, 1.0, 2.5, None, "3", np.float32(2)])
def test_engine_refuses_sizes_that_are_no_counts(name, size):
    if name == "proj_size" and size == 0 and not isinstance(size, bool):
        pytest.skip("0 stands for no projection")
    options = {"input_size": 3, "hidden_size": 4, name: size}
    with pytest.raises((TypeError, ValueError), match="input_size, hidden_size"):
        Engine("lstm", np.dtype(np.float32), **options)


def test_engine_refuses_two_directions_that_are_reversed():
    with pytest.raises(ValueError, match="mutually exclusive"):
        Engine("gru", np.dtype(np.float32), 3, 4, bidirectional=True, reverse=True)


@pytest.fixture
def arguments():
    """The arguments of forward and backward for an LSTM, which a test can replace one at a time."""
    engine = Engine("lstm", np.dtype(np.float32), 3, 5, num_layers=2, zoneout=(0.5, 0.5))
    f, sizes = lambda *shape: np.zeros(shape, np.float32), engine.sizes(4, 2)
    parameters = [f(*shape) for shape in functional.parameter_shapes(engine).values()]
    buffers = {name: functional.empty(size) for name, size in sizes._asdict().items()}
    buffers["zoneout_masks"] = engine.draw_zoneout(4, 2, (1, 2), functional.empty).reshape(-1)
    for name in ("packed", "packed_back"):
        buffers[name] = functional.empty(getattr(engine, f"{name}_size"))
    functional.pack(engine, parameters, buffers["packed"], buffers["packed_back"])
    names = "h0", "c0", "h_n", "c_n", "dh_n", "dc_n", "dh0", "dc0", "recurrent_masks"
    states = {name: f(2, 2, 5) for name in names}
    sequences = {
        "x": f(4, 2, 3),
        "dx": f(4, 2, 3),
        "y": f(4, 2, 5),
        "dy": f(4, 2, 5),
        "dh": f(2, 4, 2, 5),
        "masks": f(1, 4, 2, 5),
    }
    return {"engine": engine, "parameters": parameters, "order": None, **buffers, **states, **sequences}


def run_both(a):
    inputs = Inputs(a["x"], a["h0"], a["c0"], a["masks"], a["order"], a["recurrent_masks"], a["zoneout_masks"])
    outputs = Outputs(a["y"], a["h_n"], a["c_n"])
    functional.forward(a["engine"], a["packed"], inputs, outputs, a["forward_workspace"], a["tape"])
    given = OutputGradients(a["dy"], a["dh_n"], a["dc_n"])
    found = InputGradients(a["dx"], a["dh0"], a["dc0"], a["parameters"], a["dh"])
    functional.backward(a["engine"], a["packed_back"], inputs, a["y"], a["tape"], given, found, a["backward_workspace"])


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "dx",
        "y",
        "dy",
        "dh",
        "masks",
        "recurrent_masks",
        "zoneout_masks",
        "h0",
        "c0",
        "h_n",
        "c_n",
        "dh_n",
        "dc_n",
        "dh0",
        "dc0",
        "packed",
        "packed_back",
        "tape",
        "forward_workspace",
        "backward_workspace",
    ],
)
def test_short_buffers_are_refused(arguments, name):
    """Also by one row, or one byte."""
    run_both(arguments)
    whole = arguments[name]
    for short in (whole[:-1], whole[:0]):
        with pytest.raises(ValueError, match=r"bytes"):
            run_both({**arguments, name: short})


def test_lists_of_parameters_are_checked(arguments):
    parameters = arguments["parameters"]
    for wrong in (
        parameters[:-1],
        [*parameters, parameters[0]],
        [parameters[1][:-1], *parameters[1:]],
        [None, *parameters[1:]],
    ):
        with pytest.raises((TypeError, ValueError)):
            run_both({**arguments, "parameters": wrong})


def test_orders_that_exceed_x_are_refused(arguments):
    """The batch sizes of a packed batch may have changed since they were compared with x."""
    engine, order = arguments["engine"], functional.packed_order(np.array([3, 3, 3]))
    a = {**arguments, "order": order, "masks": None, "zoneout_masks": None, "dh": None}
    for name in ("h0", "c0", "h_n", "c_n", "dh_n", "dc_n", "dh0", "dc0", "recurrent_masks"):
        a[name] = np.zeros((2, 3, 5), np.float32)
    for name, size in engine.sizes(9, 1, order)._asdict().items():
        a[name] = functional.empty(size)
    for T, fits in ((9, True), (8, False)):
        a |= {name: np.zeros((T, 1, width), np.float32) for name, width in (("x", 3), ("dx", 3), ("y", 5), ("dy", 5))}
        if fits:
            run_both(a)
            continue
        with pytest.raises(ValueError, match="more entries"):
            run_both(a)


def test_order_checks_its_arrays():
    order = functional.arrange(5, 3, np.array([2, 5, 4]))[0]
    arrays = [order.sequences, order.begin, order.positions, order.edges, order.masked_steps]
    Order(*arrays)
    short = tuple(part[:-1] for part in order.positions)
    for position, wrong in [
        (1, order.begin[:0]),
        (1, order.begin.astype(np.int32)),
        (2, short),
        (2, ()),
        (3, order.edges[:0]),
    ]:
        with pytest.raises((TypeError, ValueError, IndexError)):
            Order(*arrays[:position], wrong, *arrays[position + 1 :])
