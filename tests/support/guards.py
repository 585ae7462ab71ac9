"""Run the engine on guarded buffers: outputs start as NaN, and a write anywhere else is detected."""

import ctypes
import math
import mmap

import numpy as np

from rnnfast import functional
from support.cells import is_trained
from support.compare import assert_close, gradient_by_differences, members, named
from support.problems import zoneout_masks

# Bytes on either side of a buffer: a multiple of 64, so that a buffer is aligned like the memory in which it lies.
GUARD = 256

# What has no value yet, and what must not be touched: signalling NaNs, which spread like any NaN and do not survive
# even an addition of zero.
FILL = {np.dtype(np.float32): np.uint32(0x7FA5A5A5), np.dtype(np.float64): np.uint64(0x7FF5A5A5A5A5A5A5)}


class Guards:
    """Allocates buffers and checks that the memory around them and all read-only inputs stay unchanged."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)
        self._watched = []

    def _filled(self, memory):
        """Fill flat bytes with FILL."""
        fill = FILL[self.dtype]
        memory.view(fill.dtype)[...] = fill
        return memory

    def bytes(self, count, offset=0):
        """Uninitialized bytes between guards, at an offset from a multiple of 64."""
        memory = self._filled(functional.empty(count + offset + 2 * GUARD))
        before, inside, after = np.split(memory, [GUARD + offset, GUARD + offset + count])
        kept = before.tobytes(), after.tobytes()

        def check():
            assert before.tobytes() == kept[0], f"written before a buffer of {count} bytes"
            assert after.tobytes() == kept[1], f"written behind a buffer of {count} bytes"

        self._watched.append(check)
        return inside

    def array(self, shape):
        """A contiguous array that is aligned to its item size and to nothing larger."""
        item = self.dtype.itemsize
        return self.bytes(math.prod(shape) * item, offset=item).view(self.dtype).reshape(shape)

    def sequence(self, shape, layout):
        """An array (T, N, features) with the memory layout LAYOUTS[layout]; the gaps between its rows are guarded."""
        outer, inner = LAYOUTS[layout]
        memory = self.array(outer(*shape))
        window = inner(memory, shape[2])
        assert window.shape == shape

        gaps = np.ones(memory.shape, bool)
        inner(gaps, shape[2])[...] = False

        def check():
            bits = memory.view(FILL[self.dtype].dtype)
            assert (bits[gaps] == FILL[self.dtype]).all(), "written between the rows of an array"

        self._watched.append(check)
        return window

    def constant(self, values, layout=None):
        """A read-only copy of the values; None stays None."""
        if values is None:
            return None
        array = self.array(values.shape) if layout is None else self.sequence(values.shape, layout)
        array[...] = values
        array.setflags(write=False)

        def check():
            assert array.tobytes() == values.tobytes(), "an input was written to"

        self._watched.append(check)
        return array

    def bits(self, values):
        """A read-only copy of bytes; None stays None."""
        if values is None:
            return None
        array = self.bytes(values.size, offset=self.dtype.itemsize).reshape(values.shape)
        array[...] = values
        array.setflags(write=False)
        return array

    def check(self):
        for check in self._watched:
            check()


class Fences(Guards):
    """Guards against reads as well: a buffer ends where an inaccessible page begins, or begins where one ends.

    To touch them ends the process. Flat buffers, which the engine wants at multiples of 64 bytes, end at one as well.
    """

    def __init__(self, dtype, side):
        super().__init__(dtype)
        self._side = side

    def bytes(self, count, offset=0):
        page = mmap.PAGESIZE
        room = -(-count // page) * page
        pages = mmap.mmap(-1, room + 2 * page)
        memory = np.frombuffer(pages, np.uint8)
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for fence in (0, page + room):
            if protect(ctypes.c_void_p(memory.ctypes.data + fence), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect failed")
        inside = self._filled(memory[page : page + room])
        if self._side == "before":
            return inside[:count]
        start = room - (count if offset else -(-count // 64) * 64)
        return inside[start : start + count]


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
        zoneout=p.zoneout,
        isa=isa,
        weights=p.weights,
    )


def pair(state):
    """h and c; c is None for cells without one."""
    h, *c = members(state)
    return h, (c[0] if c else None)


def unpair(h, c):
    return h if c is None else (h, c)


class Run:
    """One forward pass of the engine on guarded buffers, and any number of backward passes on its tape."""

    def __init__(self, p, isa=None, *, layout="plain", keep_tape=True, guards=None):
        self.p, self.layout = p, layout
        self.engine = engine = make_engine(p, isa)
        self.guards = guards = guards or Guards(p.dtype)
        T, N, _ = p.x.shape
        self.sizes = sizes = engine.sizes(T, N)
        parameters = [guards.constant(value) for value in p.parameters.values()]
        packed, self.packed_back = guards.bytes(engine.packed_size), guards.bytes(engine.packed_back_size)
        functional.pack(engine, parameters, packed, self.packed_back)
        for array in (packed, self.packed_back):
            array.setflags(write=False)
        self.x = guards.constant(p.x, layout)
        self.h0, self.c0 = map(guards.constant, pair(p.state))
        self.masks = guards.constant(p.options["masks"])
        self.y = guards.sequence((T, N, engine.directions * engine.output_size), layout)
        h_n, c_n = self._states()
        self.state = unpair(h_n, c_n)
        self.tape = guards.bytes(sizes.tape) if keep_tape else None
        self.workspaces = [guards.bytes(sizes.forward_workspace)]
        recurrent_masks = guards.constant(p.options.get("recurrent_masks"))
        self.inputs = functional.Inputs(
            self.x,
            self.h0,
            self.c0,
            self.masks,
            recurrent_masks=recurrent_masks,
            zoneout_masks=guards.bits(zoneout_masks(p)),
        )
        outputs = functional.Outputs(self.y, h_n, c_n)
        self.forward = lambda: functional.forward(engine, packed, self.inputs, outputs, self.workspaces[0], self.tape)
        self.forward()
        guards.check()

    def _states(self):
        engine, N = self.engine, self.p.x.shape[1]
        rows = engine.num_layers * engine.directions
        h = self.guards.array((rows, N, engine.output_size))
        return h, self.guards.array((rows, N, engine.hidden_size)) if engine.info.has_c else None

    def forward_results(self):
        return {"y": self.y, **{f"state {i}": member for i, member in enumerate(members(self.state))}}

    def prepare_backward(self, start=0.0):
        """A function that runs backward, and the results it writes. Parameter gradients start at `start`."""
        p, engine, guards = self.p, self.engine, self.guards
        dy = guards.constant(p.dy, self.layout)
        dh_n, dc_n = map(guards.constant, pair(p.dstate))
        dx = guards.sequence(p.x.shape, self.layout)
        dh0, dc0 = self._states()
        dparameters = {
            name: guards.array(value.shape) if is_trained(p.cell, name) else None
            for name, value in p.parameters.items()
        }
        for gradient in dparameters.values():
            if gradient is not None:
                gradient.fill(start)
        workspace = guards.bytes(self.sizes.backward_workspace)
        self.workspaces.append(workspace)

        def backward():
            output_gradients = functional.OutputGradients(dy, dh_n, dc_n)
            input_gradients = functional.InputGradients(dx, dh0, dc0, list(dparameters.values()))
            functional.backward(
                engine, self.packed_back, self.inputs, self.y, self.tape, output_gradients, input_gradients, workspace
            )

        return backward, named(self.y, self.state, dx, unpair(dh0, dc0), dparameters)

    def backward(self, start=0.0):
        """Run backward; return all results by name."""
        backward, results = self.prepare_backward(start)
        self.y.setflags(write=False)
        self.tape.setflags(write=False)
        y, tape = self.y.tobytes(), self.tape.tobytes()
        backward()
        self.guards.check()
        assert self.y.tobytes() == y, "backward wrote to y"
        assert self.tape.tobytes() == tape, "backward wrote to the tape"
        return results


def run_engine(p, isa=None, *, layout="plain"):
    """The results of forward and backward by name."""
    return Run(p, isa, layout=layout).backward()


def assert_central_differences(p, isa=None):
    """Compare all gradients of the engine with central differences of its outputs; p is in float64."""

    def run_forward(p):
        run = Run(p, isa, keep_tape=False)
        return run.y, run.state

    results, expected = run_engine(p, isa), gradient_by_differences(p, run_forward)
    assert_close({name: results[name] for name in expected}, expected, 1e-8)


def run_in_a_row(p, isa=None):
    """The results of repeated calls: workers that the first call wakes may join only the next one.

    Outputs and workspaces are overwritten with NaN between calls. Parameter gradients accumulate over the calls.
    """
    run = Run(p, isa)

    def wipe(array):
        array.view(np.uint8).reshape(-1)[...] = 0xFF  # NaN

    for _ in range(3):
        wipe(run.y)
        wipe(run.workspaces[0])
        run.forward()
    backward, results = run.prepare_backward()
    for _ in range(3):
        wipe(results["dx"])
        wipe(run.workspaces[1])
        backward()
    run.guards.check()
    return results
