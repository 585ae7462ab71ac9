"""Runs the engine on buffers that are watched: what it must not write stays as it is, what it must write starts as NaN."""

import numpy as np
from oracles import members, named

from rnnfast import functional

GUARD = (
    256  # bytes on either side of a buffer; a multiple of 64, so that a buffer is aligned like the memory it lies in
)
FILL = 0xFF  # in every byte: NaN in both dtypes


class Guards:
    """Hands out buffers and remembers all that lies around them and all that is only to be read."""

    def __init__(self):
        self._watched = []

    def bytes(self, count, offset=0):
        """Bytes without a value between guards, offset from a multiple of 64."""
        memory = functional.empty(count + offset + 2 * GUARD)
        memory.fill(FILL)
        inside = slice(GUARD + offset, GUARD + offset + count)

        def check():
            around = memory.copy()
            around[inside] = FILL
            assert (around == FILL).all(), f"written outside of a buffer of {count} bytes"

        self._watched.append(check)
        return memory[inside]

    def array(self, shape, dtype):
        """A contiguous array, aligned to its items and no further."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes(count, offset=np.dtype(dtype).itemsize).view(dtype).reshape(shape)

    def sequence(self, shape, dtype, layout):
        """An array (T, N, features) that lies in memory as LAYOUTS[layout] says, the gaps between its rows watched."""
        outer, inner = LAYOUTS[layout]
        memory = self.array(outer(*shape), dtype)
        window = inner(memory, shape[2])
        assert window.shape == shape

        def check():
            around = memory.copy()
            inner(around, shape[2])[...] = 0
            blank = np.full(memory.nbytes, FILL, np.uint8).view(dtype).reshape(memory.shape)
            inner(blank, shape[2])[...] = 0
            assert around.tobytes() == blank.tobytes(), "written between the rows of an array"

        self._watched.append(check)
        return window

    def constant(self, values, layout=None):
        """A copy of the values that must stay as it is; None stays None."""
        if values is None:
            return None
        if layout is None:
            array = self.array(values.shape, values.dtype)
        else:
            array = self.sequence(values.shape, values.dtype, layout)
        array[...] = values
        array.setflags(write=False)

        def check():
            assert array.tobytes() == values.tobytes(), "an input was written to"

        self._watched.append(check)
        return array

    def check(self):
        for check in self._watched:
            check()


# Where the rows of a (T, N, features) array may lie: the shape of the memory, and the array in it.
LAYOUTS = {
    "plain": (lambda T, N, F: (T, N, F), lambda a, F: a[..., :F]),
    "batch first": (lambda T, N, F: (N, T, F), lambda a, F: a[..., :F].transpose(1, 0, 2)),
    "gaps": (lambda T, N, F: (2 * T, N + 2, F + 3), lambda a, F: a[::2, 1:-1, 2 : 2 + F]),
    "backwards": (lambda T, N, F: (T, N, F), lambda a, F: a[::-1, ::-1, :F]),
    "batch first, backwards, with gaps": (
        lambda T, N, F: (N, T, F + 1),
        lambda a, F: a[::-1, ::-1, :F].transpose(1, 0, 2),
    ),
}


def make_engine(p, isa=None):
    return functional.Engine(
        p.cell,
        p.dtype,
        p.input_size,
        p.hidden_size,
        proj_size=p.proj_size,
        num_layers=p.options["num_layers"],
        bidirectional=p.options["bidirectional"],
        reverse=p.options["reverse"],
        bias=p.bias,
        isa=isa,
    )


def pair(state):
    """h and c, None for a c that is not there."""
    h, *c = members(state)
    return h, (c[0] if c else None)


def unpair(h, c):
    return h if c is None else (h, c)


class Run:
    """A forward of the engine on guarded buffers, and any number of backwards on its tape."""

    def __init__(self, p, isa=None, *, layout="plain", keep_tape=True):
        self.p, self.layout = p, layout
        self.engine = engine = make_engine(p, isa)
        self.guards = guards = Guards()
        T, N, _ = p.x.shape
        self.sizes = sizes = engine.sizes(T, N)
        parameters = [guards.constant(value) for value in p.parameters.values()]
        packed, self.packed_back = guards.bytes(engine.packed_size), guards.bytes(engine.packed_back_size)
        functional.pack(engine, parameters, packed, self.packed_back)
        packed.setflags(write=False)
        self.x = guards.constant(p.x, layout)
        self.h0, self.c0 = map(guards.constant, pair(p.state))
        self.masks = guards.constant(p.options["masks"])
        self.y = guards.sequence((T, N, engine.directions * engine.output_size), p.dtype, layout)
        h_n, c_n = self.states()
        self.tape = guards.bytes(sizes.tape) if keep_tape else None
        workspace = guards.bytes(sizes.forward_workspace)
        functional.forward(engine, packed, self.x, self.h0, self.c0, self.y, h_n, c_n, self.tape, self.masks, workspace)
        self.state = unpair(h_n, c_n)
        guards.check()

    def states(self):
        engine, N = self.engine, self.p.x.shape[1]
        rows = engine.num_layers * engine.directions
        h = self.guards.array((rows, N, engine.output_size), self.p.dtype)
        return h, self.guards.array((rows, N, engine.hidden_size), self.p.dtype) if engine.has_cell else None

    def forward_results(self):
        return {"y": self.y, **{f"state {i}": member for i, member in enumerate(members(self.state))}}

    def backward(self, *, start=0.0):
        """All results by name; the gradients of parameters are added to `start`."""
        p, engine, guards = self.p, self.engine, self.guards
        for array in (self.y, self.tape, self.packed_back):
            array.setflags(write=False)
        dy = guards.constant(p.dy, self.layout)
        dh_n, dc_n = map(guards.constant, pair(p.dstate))
        dx = guards.sequence(p.x.shape, p.dtype, self.layout)
        dh0, dc0 = self.states()
        dparameters = {name: guards.array(value.shape, p.dtype) for name, value in p.parameters.items()}
        for gradient in dparameters.values():
            gradient.fill(start)
        kept = self.tape.copy(), self.y.copy()
        functional.backward(
            engine,
            self.packed_back,
            self.x,
            self.h0,
            self.c0,
            self.y,
            self.tape,
            self.masks,
            dy,
            dh_n,
            dc_n,
            dx,
            dh0,
            dc0,
            list(dparameters.values()),
            guards.bytes(self.sizes.backward_workspace),
        )
        guards.check()
        assert np.array_equal(kept[0], self.tape), "backward wrote to the tape"
        assert kept[1].tobytes() == self.y.tobytes(), "backward wrote to y"
        return named(self.y, self.state, dx, unpair(dh0, dc0), dparameters)


def run_engine(p, isa=None, *, layout="plain"):
    """All results of a forward and a backward by name."""
    return Run(p, isa, layout=layout).backward()
