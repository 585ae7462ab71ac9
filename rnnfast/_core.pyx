# cython: language_level=3, wraparound=False, cdivision=True, binding=False, embedsignature=True, embedsignature.format=clinic
# cython: freethreading_compatible=True, allow_none_for_extension_args=False, auto_pickle=False
"""The binding to the kernels: select a table, take pointers from buffers, release the GIL and call.

rnnfast/functional.py documents the arguments, csrc/rnnfast.h what the kernels do with them. An array that is missing, has too few bytes,
or another shape or element size than the kernels expect, raises TypeError or ValueError, and so do options that `Engine` does not know.
Arrays of Python objects raise TypeError. Values are trusted: the numbers in an `Order` and in packed weights and tapes must come from
this module.
`PreparedCall` compares x and the state with the shapes that it was prepared for, and returns None if they differ.
"""
import functools
from collections import namedtuple

import numpy

cimport cython
from cpython.number cimport PyNumber_Index
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy, memset, strncpy
from libc.time cimport CLOCKS_PER_SEC, clock, clock_t
from rnnfast cimport *


cdef extern from "Python.h":
    ctypedef struct Py_buffer:
        void *buf
        Py_ssize_t len
        Py_ssize_t itemsize
        int ndim
        char *format
        Py_ssize_t *shape
        Py_ssize_t *strides
    enum:
        PyBUF_SIMPLE
        PyBUF_WRITABLE
        PyBUF_FORMAT
        PyBUF_ND
        PyBUF_STRIDES
        PyBUF_C_CONTIGUOUS
        PyBUF_RECORDS_RO
        PyBUF_RECORDS
    int PyObject_CheckBuffer(object)
    int PyObject_GetBuffer(object, Py_buffer *, int) except -1
    int try_buffer "PyObject_GetBuffer"(object, Py_buffer *, int)       # without the cost of a try statement
    int PyErr_ExceptionMatches(object)
    void PyErr_Clear()
    void PyBuffer_Release(Py_buffer *)
    Py_ssize_t PY_SSIZE_T_MAX
    int PyObject_GenericSetAttr(object, object, object) except -1
    void *PyMem_Malloc(size_t)
    void *PyMem_Calloc(size_t, size_t)
    void PyMem_Free(void *)
    int PyErr_CheckSignals() except -1


cdef extern from "optimizers.h":
    enum:
        RNNFAST_SGD
        RNNFAST_ADAM
        RNNFAST_RMSPROP
        RNNFAST_MOMENTS
        RNNFAST_OPTIMIZER_OPTIONS
    ctypedef void rnnfast_update(void *parameter, const void *gradient, void *const *moments, ptrdiff_t n, const double *options) noexcept nogil
    rnnfast_update *const *rnnfast_optimizers_f32
    rnnfast_update *const *rnnfast_optimizers_f64


cdef extern from "traces.h":
    ctypedef struct rnnfast_trace_shape:
        ptrdiff_t members, groups, units, width
    ctypedef void rnnfast_add_scaled(void *target, const void *factors, const void *source, const rnnfast_trace_shape *shape,
                                     int is_summed) noexcept nogil
    rnnfast_add_scaled rnnfast_add_scaled_f32, rnnfast_add_scaled_f64


cdef extern from "host_call.h":
    ctypedef struct rnnfast_host_call:
        int abi
        char isa[16]
        int item, kinds, time_first, has_h0, has_c0
        rnnfast_stack stack


cdef extern from "xla_ffi.h":
    ctypedef struct xla_frame:
        pass
    ctypedef struct xla_error:
        pass
    xla_error *rnnfast_xla_forward(const xla_frame *, int threads) noexcept nogil
    xla_error *rnnfast_xla_backward(const xla_frame *, int threads) noexcept nogil


cdef extern from "ort_ops.h":
    int (*rnnfast_ort_threads)() noexcept nogil


WEIGHTS = ("full", "bfloat16", "int8", "int8_products")  # rnnfast_weights
FUNCTIONS = ("sigmoid", "tanh", "relu", "affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid", "elu", "softsign",
             "softplus")                # in the order of rnnfast_function
SUM_ROWS = RNNFAST_SUM_ROWS             # rows in one chain of a weight's gradient
Sizes = namedtuple("Sizes", "tape forward_workspace backward_workspace")

cdef enum:
    SMALL_WORKSPACE = 32768     # bytes up to which a prepared call keeps a workspace of its own
    LARGE_STEP = 1 << 24        # bytes of weights, times rows, from which a step releases the GIL and may run on more threads
    ACTIVATION_BLOCK = 1 << 18  # elements between two polls for signals

# Settings of the process, which any thread may read and change, and the symbols that threadpoolctl looks up by name (rnnfast/threads.py).
cdef extern from *:
    """
    #include <string.h>
    #include "host_call.h"
    #include "threads.h"
    #if !defined(_WIN32)
    #include <dlfcn.h>
    #endif

    #if defined(__clang__)
    #define RNNFAST_COMPILER "Clang " __clang_version__
    #elif defined(__GNUC__)
    #define RNNFAST_COMPILER "GCC " __VERSION__
    #elif defined(_MSC_VER)
    #define RNNFAST_COMPILER "Microsoft C"
    #else
    #define RNNFAST_COMPILER "unknown"
    #endif

    #if defined(_MSC_VER) && !defined(__clang__)
    #include <intrin.h>
    #define exchange(at, value) _InterlockedExchangePointer(at, value)
    #else
    #define exchange(at, value) __atomic_exchange_n(at, value, __ATOMIC_ACQ_REL)
    #endif

    static rnnfast_flag threads = 1;
    static rnnfast_flag on_openmp; /* RNNFAST_OPENMP if all calls run on OpenMP's threads */
    static rnnfast_flag default_isa; /* its index in rnnfast_isas() */

    #if defined(RTLD_NOLOAD)
    /* The functions of an OpenMP runtime, in a library that is loaded already or those that it needs; 0: there is none. */
    static int find_openmp_of(const char *path, rnnfast_openmp *openmp)
    {
        static const char *const names[] = {"GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "omp_get_max_threads", "omp_in_parallel"};
        void *library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD), *found[5];
        if (!library) return 0;
        for (int i = 0; i < 5; i++)
            if (!(found[i] = dlsym(library, names[i]))) {
                dlclose(library);
                return 0;
            }
        memcpy(openmp, found, sizeof *openmp);
        return 1; /* the library stays loaded */
    }
    #else
    static int find_openmp_of(const char *path, rnnfast_openmp *openmp)
    {
        (void)path, (void)openmp;
        return 0;
    }
    #endif

    RNNFAST_VISIBLE int rnnfast_get_num_threads(void);
    RNNFAST_VISIBLE void rnnfast_set_num_threads(int);

    int rnnfast_get_num_threads(void)
    {
        return threads;
    }

    void rnnfast_set_num_threads(int n)
    {
        if (n >= 1) threads = n;
    }
    """
    const char *RNNFAST_COMPILER
    int threads, on_openmp, default_isa
    int find_openmp_of(const char *path, rnnfast_openmp *) noexcept
    int rnnfast_threads_watch_forks() noexcept nogil
    int rnnfast_threads_forks() noexcept nogil
    void *exchange(void **at, void *value) noexcept nogil   # atomic
    void rnnfast_set_num_threads(int n) noexcept nogil

ABI = RNNFAST_ABI
COMPILER = (<bytes>RNNFAST_COMPILER).decode().strip()


cdef tuple isa_names = ()
while rnnfast_isas()[len(isa_names)] != NULL:
    isa_names += ((<bytes>rnnfast_isas()[len(isa_names)]).decode(),)


def isas():
    """Return the names of the instruction sets that run here, best first. The first is the default, unless RNNFAST_ISA names another."""
    return list(isa_names)


def get_default_isa():
    """Return the name of the instruction set that new layers and engines use."""
    return isa_names[default_isa]


cdef int index_of(str name) except -1:
    """Return the index of an instruction set in `isas`."""
    if name not in isa_names:
        raise ValueError(f"isa is {name!r}, which does not run here; choose one of {', '.join(isa_names)}")
    return isa_names.index(name)


def set_default_isa(str name):
    """Set the instruction set of new layers and engines, one of `isas`."""
    global default_isa
    default_isa = index_of(name)


cdef class use_isa:
    """Use an instruction set in a context, as the default of new layers and engines in all threads.

    A layer keeps the instruction set that it was created with.
    """
    cdef int index, before

    def __cinit__(self, str name):
        self.index = self.before = index_of(name)

    def __enter__(self):
        global default_isa
        self.before = default_isa
        default_isa = self.index

    def __exit__(self, *_):
        global default_isa
        default_isa = self.before


def get_num_threads():
    """Return the number of threads that a call may use."""
    return threads


def set_num_threads(int n):
    rnnfast_set_num_threads(n)


cdef int limit_of(int flag) noexcept nogil:
    """Return the `threads` of a call whose engine has this flag."""
    return min(threads, RNNFAST_OPENMP - 1) | flag | on_openmp


def find_openmp(str path not None):
    """Make the OpenMP runtime known that a loaded library is or needs, and return whether there is one."""
    cdef rnnfast_openmp openmp
    cdef bytes name = path.encode()
    if b"\0" in name or not find_openmp_of(name, &openmp):
        return False
    with nogil:                     # a call that it waits for may need the GIL
        rnnfast_use_openmp(&openmp)
    return True


def set_on_openmp(bint on):
    """Run all calls on the threads of the OpenMP runtime, or only those of engines with openmp=True."""
    global on_openmp
    on_openmp = RNNFAST_OPENMP if on else 0


cdef const rnnfast_table *table_of(size_t item, str isa=None) except NULL:
    if item != 4 and item != 8:
        raise ValueError(f"the elements of an array have {item} bytes, but must be float32 or float64")
    return rnnfast_get_table(rnnfast_isas()[default_isa if isa is None else index_of(isa)], item)


# ---- facts about cells, from the registry in csrc/cells.h ----

CellInfo = namedtuple("CellInfo", "name id gates has_c projects functions generic extra extra_rows extra_trained elementwise reads_x")


def _cell_info(int cell):
    """Return the CellInfo of a member of rnnfast_cell.

    `generic` is the id of the cell that options select, or None. `extra` names the per-unit extras, "" if there are none.
    """
    cdef const rnnfast_cell_info *info = table_of(4).cell_info(<rnnfast_cell>cell)
    generic = None if info.generic == RNNFAST_CELLS else <int>info.generic
    extra = "" if info.extra == NULL else (<bytes>info.extra).decode()
    functions = () if info.functions == NULL else tuple((<bytes>info.functions).decode().split())
    return CellInfo((<bytes>info.name).decode(), cell, (<bytes>info.gates).decode(), bool(info.has_c), bool(info.supports_projection),
                    functions, generic, extra, info.extra_rows, bool(info.extra_is_trained), bool(info.elementwise), bool(info.reads_x))


# The cells that a caller can name, in the order of rnnfast_cell. Options select the generic cell of one.
CELLS = {info.name: info for info in map(_cell_info, range(RNNFAST_CELLS)) if info.generic != info.id}


# ---- Ctrl-C: the kernels poll every few milliseconds; signals are checked about 30 times a second ----

if not rnnfast_threads_watch_forks():
    raise MemoryError("rnnfast cannot notice forks of this process")

cdef struct Watch:
    clock_t last
    int forks
    PyObject *raised            # the exception of a signal handler


cdef int check_signals(void *context) noexcept nogil:
    """Run the handlers of signals that have arrived. Their exception is stored until `finish`, because none may be set meanwhile."""
    cdef Watch *watch = <Watch *>context
    cdef clock_t now = clock()
    if not watch.last or 0 <= now - watch.last < CLOCKS_PER_SEC // 30:
        watch.last = watch.last or now
        return 0
    watch.last = now
    with gil:
        try:
            PyErr_CheckSignals()
            if watch.forks != rnnfast_threads_forks():      # the other threads of the call do not exist here
                raise RuntimeError("a signal handler forked this process during a call, which cannot be completed in the child")
        except BaseException as error:
            Py_INCREF(error)
            watch.raised = <PyObject *>error
    return watch.raised != NULL


cdef rnnfast_poll start(Watch *watch) noexcept nogil:
    cdef rnnfast_poll poll
    watch.last, watch.raised, watch.forks = 0, NULL, rnnfast_threads_forks()
    poll.stop = check_signals
    poll.context = watch
    return poll


cdef int finish(Watch *watch) except -1:
    """Raise the exception of a signal handler. Follows each call that polled, before anything else can fail."""
    if watch.raised == NULL:
        return 0
    error = <object>watch.raised
    Py_DECREF(error)
    raise error


# ---- buffers that a call holds ----

cdef struct Buffers:
    int count
    Py_buffer held[20]


cdef object ndarray = numpy.ndarray


cdef bint is_plain(value):
    """Return whether an object has a buffer and is not a masked array, whose buffer ignores the mask."""
    if type(value) is ndarray:
        return True
    return PyObject_CheckBuffer(value) and not (isinstance(value, ndarray) and hasattr(value, "mask"))


cdef int require_numbers(const Py_buffer *view) except -1:
    """Refuse Python objects, whose references would be overwritten or read as numbers, and records, which may hold some."""
    if view.format != NULL and (view.format[0] == c"O" or view.format[0] == c"T"):
        raise TypeError("an array holds Python objects or records, but must hold numbers")
    return 0


cdef bint is_float(const Py_buffer *view) noexcept:
    """Return whether a buffer holds float32 or float64 in native byte order; an unaligned one says so by "="."""
    cdef const char *format = view.format + (view.format[0] == c"=")
    return format[0] == (c"f" if view.itemsize == 4 else c"d" if view.itemsize == 8 else 0) and format[0] and not format[1]


cdef Py_buffer *hold(Buffers *buffers, obj, int flags, size_t least=0) except NULL:
    """Acquire the buffer of an object, which must have at least `least` bytes. The caller checks or knows what it holds."""
    cdef Py_buffer *view = &buffers.held[buffers.count]
    PyObject_GetBuffer(obj, view, flags)
    buffers.count += 1
    if <size_t>view.len < least:
        raise ValueError(f"a buffer has {view.len} bytes, but {least} are needed")
    return view


cdef void *acquire(Buffers *buffers, obj, int flags, size_t least=0) except? NULL:
    """Acquire the buffer of an object, which must hold numbers, in at least `least` bytes."""
    cdef Py_buffer *view = hold(buffers, obj, flags | PyBUF_FORMAT, least)
    require_numbers(view)
    return view.buf


cdef void *acquire_optional(Buffers *buffers, obj, int flags, size_t least=0) except? NULL:
    """As `acquire`, but None stands for NULL."""
    return NULL if obj is None else acquire(buffers, obj, flags, least)


cdef str listed(const Py_ssize_t *lengths, int count):
    """Return the lengths of axes as text. Not a comprehension: where memory is short, those of Cython 3.3 free an element twice."""
    text = ""
    for axis in range(count):
        text += (", " if axis else "") + ("any" if lengths[axis] < 0 else str(lengths[axis]))
    return text


cdef void *acquire_array(Buffers *buffers, obj, int flags, size_t item, int ndim, Py_ssize_t a, Py_ssize_t b, Py_ssize_t c=-1,
                         Py_ssize_t d=-1) except? NULL:
    """Acquire the buffer of an array with `ndim` axes of lengths a, b, c and d (-1: any length but 0), the last one of unit stride."""
    cdef Py_ssize_t[4] expected = [a, b, c, d]
    cdef void *at = acquire(buffers, obj, flags | PyBUF_STRIDES)
    cdef Py_buffer *view = &buffers.held[buffers.count - 1]
    cdef bint fits = view.ndim == ndim and <size_t>view.itemsize == item
    for axis in range(ndim if fits else 0):
        fits = fits and (view.shape[axis] == expected[axis] or expected[axis] < 0 < view.shape[axis])
    if not fits or view.shape[ndim - 1] > 1 and view.strides[ndim - 1] != <Py_ssize_t>item:
        raise ValueError(f"an array has shape ({listed(view.shape, view.ndim)}) and {view.itemsize} bytes per element, but the kernels "
                         f"expect ({listed(expected, ndim)}) and {item}, with unit stride on the last axis")
    return at


cdef int try_acquire(Buffers *buffers, obj, int flags) except -1:
    """Acquire the buffer of an object; False if it is read-only or of a dtype that buffers cannot describe."""
    if try_buffer(obj, &buffers.held[buffers.count], flags) == 0:
        buffers.count += 1
        return True
    if PyErr_ExceptionMatches(BufferError) or PyErr_ExceptionMatches(ValueError):
        PyErr_Clear()
        return False
    return -1


cdef void *acquire_steps(Buffers *buffers, flags, Py_ssize_t T, Py_ssize_t N, ptrdiff_t *step, ptrdiff_t *row) except? NULL:
    """Acquire an array (T, N) of bytes with any strides."""
    cdef void *at = acquire(buffers, flags, PyBUF_STRIDES)
    cdef Py_buffer *view = &buffers.held[buffers.count - 1]
    if view.ndim != 2 or view.itemsize != 1 or view.shape[0] != T or view.shape[1] != N:
        raise ValueError(f"a mask or reset must have shape ({T}, {N}) and one byte per element")
    step[0], row[0] = view.strides[0], view.strides[1]
    return at


cdef ptrdiff_t stride(Buffers *buffers, int axis, size_t item) noexcept:
    """Return a stride of the buffer acquired last, in elements."""
    return buffers.held[buffers.count - 1].strides[axis] // <ptrdiff_t>item


cdef ptrdiff_t length(Buffers *buffers, int axis=0) noexcept:
    return buffers.held[buffers.count - 1].shape[axis]


cdef void release(Buffers *buffers) noexcept:
    for i in range(buffers.count):
        PyBuffer_Release(&buffers.held[i])


cdef class Views:
    """The buffers of the arrays in a list, held until this object is deallocated."""
    cdef Py_buffer *at
    cdef Py_ssize_t count

    def __cinit__(self, list arrays not None, int flags):
        cdef tuple given = tuple(arrays)        # the list may change while a buffer is acquired
        self.at = <Py_buffer *>PyMem_Calloc(len(given) + 1, sizeof(Py_buffer))
        if self.at == NULL:
            raise MemoryError()
        for array in given:
            PyObject_GetBuffer(array, &self.at[self.count], flags | PyBUF_FORMAT)
            self.count += 1
            require_numbers(&self.at[self.count - 1])

    def __dealloc__(self):
        for i in range(self.count):
            PyBuffer_Release(&self.at[i])
        PyMem_Free(self.at)


cdef class Pointers:
    """Pointers to a list of arrays, each at its index among the RNNFAST_KINDS parameters of a layer and direction.

    None stands for an array that is not there, which `optional` permits: the gradient of a bias or of per-unit extras.
    With `members`, the arrays of an ensemble: each has an axis of members in front, and one member's pointers follow another's.
    """
    cdef void **at
    cdef Views views
    cdef Engine engine
    cdef ptrdiff_t members

    def __cinit__(self, Engine engine not None, arrays, int flags=PyBUF_SIMPLE, bint optional=False, ptrdiff_t members=1):
        cdef ptrdiff_t directions = engine.directions, states = engine.num_layers * directions
        cdef ptrdiff_t i, m, bytes, state, rows = engine.gates * engine.hidden_size, P = engine.output_size
        cdef ptrdiff_t[RNNFAST_KINDS] sizes = [0, rows * P, rows, rows, P * engine.hidden_size,
                                               <ptrdiff_t>engine.info.extra_rows * engine.hidden_size]
        cdef list expected = list(arrays), given = []
        cdef Py_buffer *view
        cdef int kind
        if members < 1:
            raise ValueError(f"members must be at least 1, got {members}")
        self.engine, self.members = engine, members
        self.at = <void **>PyMem_Calloc(members, RNNFAST_KINDS * states * sizeof(void *))
        if self.at == NULL:
            raise MemoryError()
        if len(expected) != engine.kind_count * states:
            raise ValueError(f"expected {engine.kind_count * states} arrays, one for each of parameter_shapes(engine), got {len(expected)}")
        for i, array in enumerate(expected):
            kind = engine.kinds[i % engine.kind_count]
            if array is not None or not optional or not (kind == 2 or kind == 3 or kind == 5):
                given.append(array)
        self.views = Views(given, flags)
        view = self.views.at
        for i, array in enumerate(expected):
            kind, state = engine.kinds[i % engine.kind_count], i // engine.kind_count
            if array is None:
                continue
            sizes[0] = rows * (engine.input_size if state < directions else directions * P)
            bytes = sizes[kind] * <ptrdiff_t>engine.table.item
            if view.len // members != bytes or view.len % members:
                raise ValueError(f"array {i} has {view.len} bytes, but this parameter has {bytes} for each of {members} members")
            for m in range(members):
                self.at[RNNFAST_KINDS * (m * states + state) + kind] = <char *>view.buf + m * bytes
            view += 1

    def __dealloc__(self):
        PyMem_Free(self.at)


cdef Pointers pointers_to(Engine engine, parameters):
    """Return pointers to the parameters of an engine, which may be such pointers already."""
    if type(parameters) is Pointers and (<Pointers>parameters).engine is engine:
        return parameters
    return Pointers(engine, parameters, PyBUF_SIMPLE, False)


cdef class Order:
    """The sequences of a ragged batch: rnnfast_order on arrays of intp, as csrc/rnnfast.h documents."""
    cdef rnnfast_order order
    cdef ptrdiff_t T, N                 # the smallest shape that has all its positions
    cdef Buffers buffers
    cdef readonly object begin, positions, edges, masked_steps

    def __cinit__(self, Py_ssize_t sequences, begin, tuple positions, edges, masked_steps):
        cdef rnnfast_order *o = &self.order
        cdef size_t item = sizeof(ptrdiff_t)
        self.begin, self.positions, self.edges, self.masked_steps = begin, positions, edges, masked_steps
        o.begin = <const ptrdiff_t *>acquire_array(&self.buffers, begin, PyBUF_C_CONTIGUOUS, item, 1, -1, 0)
        o.steps, o.sequences = length(&self.buffers) - 1, sequences
        for way in range(2):
            o.positions[way] = <const rnnfast_position *>acquire(&self.buffers, positions[way], PyBUF_C_CONTIGUOUS,
                                                                 (o.begin[o.steps] - o.begin[0]) * sizeof(rnnfast_position))
        o.edges = <const ptrdiff_t *>acquire_array(&self.buffers, edges, PyBUF_C_CONTIGUOUS, item, 1, -1, 0)
        o.blocks = length(&self.buffers) - 1
        o.masked = <const rnnfast_masked_step *>acquire(&self.buffers, masked_steps, PyBUF_C_CONTIGUOUS)
        o.masked_count = self.buffers.held[self.buffers.count - 1].len // <Py_ssize_t>sizeof(rnnfast_masked_step)
        for i in range(o.begin[o.steps] - o.begin[0]):
            self.T, self.N = max(self.T, o.positions[0][i].step + 1), max(self.N, o.positions[0][i].row + 1)
        for i in range(o.masked_count):
            self.T, self.N = max(self.T, o.masked[i].position.step + 1), max(self.N, o.masked[i].position.row + 1)

    cdef int require(self, ptrdiff_t T, ptrdiff_t N) except -1:
        """Refuse an array (T, N, ...) that lacks a position."""
        if self.T > T or self.N > N:
            raise ValueError("an array lacks steps or rows of the order")
        return 0

    def __dealloc__(self):
        release(&self.buffers)

    @property
    def steps(self):
        return self.order.steps

    @property
    def sequences(self):
        return self.order.sequences

    def fill(self, int source, array):
        """Write all masked steps of an array (T, N, features) whose last axis has unit stride: rnnfast_fill."""
        cdef Watch watch
        cdef Buffers buffers
        cdef Py_buffer *view = &buffers.held[0]
        cdef char *at
        buffers.count = 0
        try:
            at = <char *>acquire_array(&buffers, array, PyBUF_WRITABLE, array.itemsize, 3, -1, -1, -1)
            self.require(view.shape[0], view.shape[1])
            with nogil:
                rnnfast_fill(&self.order, source, at, view.shape[2] * view.itemsize, view.strides[0], view.strides[1], start(&watch))
            finish(&watch)
        finally:
            release(&buffers)


cdef const rnnfast_order *order_of(Order order) noexcept:
    return NULL if order is None else &order.order


def arrange(Py_ssize_t T, Py_ssize_t N, lengths, mask, reset, empty):
    """Return the order of a pattern, in arrays of intp that `empty(size)` allocates, and its sequences and rows.

    The arrays of the pattern must not change during the call. The result is (begin, positions forward and reverse, edges with its number
    of blocks, masked steps, sequences, rows).
    """
    cdef rnnfast_pattern p
    cdef rnnfast_order o
    cdef Watch watch
    cdef Buffers buffers
    cdef Py_buffer *view
    cdef ptrdiff_t entries
    if T < 1 or N < 1 or T > PY_SSIZE_T_MAX // 64 // N:
        raise ValueError(f"T and N must be positive, and T * N steps must fit into memory, got {T} and {N}")
    memset(&p, 0, sizeof(p))
    p.T, p.N, p.poll = T, N, start(&watch)
    buffers.count = 0
    try:
        if lengths is not None:
            p.lengths = <const ptrdiff_t *>acquire_array(&buffers, lengths, PyBUF_C_CONTIGUOUS, sizeof(ptrdiff_t), 1, N, 0)
            for n in range(N):
                if not 0 <= p.lengths[n] <= T:
                    raise ValueError(f"lengths must be between 0 and the {T} steps of x")
        if mask is not None:
            p.mask = <const unsigned char *>acquire_steps(&buffers, mask, T, N, &p.mask_step, &p.mask_row)
        if reset is not None:
            p.reset = <const unsigned char *>acquire_steps(&buffers, reset, T, N, &p.reset_step, &p.reset_row)
        with nogil:
            entries = rnnfast_count(&p, &o)
        finish(&watch)
        sizes = (o.steps + 1, 2 * entries, 2 * entries, o.steps + 1, 4 * o.masked_count, o.sequences, N + 1,
                 o.steps + 2 + o.sequences + T)
        begin, forward, reverse, edges, masked, sequences, rows, scratch = arrays = list(map(empty, sizes))
        view = &buffers.held[buffers.count]
        for array, size in zip(arrays, sizes):
            acquire_array(&buffers, array, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE, sizeof(ptrdiff_t), 1, size, 0)
        o.begin = <const ptrdiff_t *>view[0].buf
        o.positions[0] = <const rnnfast_position *>view[1].buf
        o.positions[1] = <const rnnfast_position *>view[2].buf
        o.edges = <const ptrdiff_t *>view[3].buf
        o.masked = <const rnnfast_masked_step *>view[4].buf
        with nogil:
            rnnfast_arrange(&p, &o, <ptrdiff_t *>view[5].buf, <ptrdiff_t *>view[6].buf, <ptrdiff_t *>view[7].buf)
        finish(&watch)
    finally:
        release(&buffers)
    return begin, (forward.reshape(-1, 2), reverse.reshape(-1, 2)), edges[:o.blocks + 1], masked.reshape(-1, 4), sequences, rows


# ---- changes of state in one step: no bytecode runs in compiled code, so no signal handler can raise in the middle ----

cdef Py_ssize_t row_length(const Py_buffer *view) noexcept nogil:
    return view.shape[view.ndim - 1] if view.ndim else 1


cdef Py_ssize_t row_stride(const Py_buffer *view) noexcept nogil:
    return view.strides[view.ndim - 1] if view.ndim else view.itemsize


cdef char *next_row(const Py_buffer *view, Py_ssize_t *index, char *row) noexcept nogil:
    """Return the vector along the last axis that follows `row` in C order, NULL after the last one."""
    cdef int axis
    for axis in range(view.ndim - 2, -1, -1):
        index[axis] += 1
        row += view.strides[axis]
        if index[axis] < view.shape[axis]:
            return row
        row -= index[axis] * view.strides[axis]
        index[axis] = 0
    return NULL


cdef void fill(const Py_buffer *target, const char *source) noexcept nogil:
    """Copy contiguous elements to an array with any strides."""
    cdef Py_ssize_t index[64]       # NumPy's maximum number of axes
    cdef Py_ssize_t i, item = target.itemsize, step = row_stride(target), length = row_length(target)
    cdef char *row = <char *>target.buf
    memset(index, 0, sizeof(index))
    while row != NULL and target.len:
        if step == item:
            memcpy(row, source, length * item)
        else:
            for i in range(length):
                memcpy(row + i * step, source + i * item, item)
        source += length * item
        row = next_row(target, index, row)


cdef int require_match(Views to, Views values) except -1:
    """Require one source for each target, of the same size."""
    if to.count != values.count:
        raise ValueError(f"expected {to.count} sources, one for each target, got {values.count}")
    for i in range(to.count):
        if to.at[i].len != values.at[i].len:
            raise ValueError(f"source {i} must have {to.at[i].len} bytes, as its target has, got {values.at[i].len}")
    return 0


def assign(list targets not None, list sources not None):
    """Copy C-contiguous arrays to arrays of the same sizes and dtypes, which may have any strides. If this raises, nothing has changed."""
    cdef Views to = Views(targets, PyBUF_STRIDES | PyBUF_WRITABLE)
    cdef Views values = Views(sources, PyBUF_SIMPLE)
    require_match(to, values)
    for i in range(to.count):
        fill(&to.at[i], <const char *>values.at[i].buf)


cdef void swap_elements(const Py_buffer *first, char *second) noexcept nogil:
    """Exchange the elements of an array with any strides and of a contiguous one."""
    cdef Py_ssize_t index[64]
    cdef Py_ssize_t i, item = first.itemsize, step = row_stride(first), length = row_length(first)
    cdef char *row = <char *>first.buf
    cdef int64_t kept
    memset(index, 0, sizeof(index))
    while row != NULL and first.len:
        for i in range(length):
            memcpy(&kept, row + i * step, item)
            memcpy(row + i * step, second, item)
            memcpy(second, &kept, item)
            second += item
        row = next_row(first, index, row)


def swap(list arrays not None, list others not None, flag not None):
    """Exchange the elements of float arrays with any strides and of C-contiguous ones, and invert `flag`, an int64 that is 0 or 1.

    If this raises, nothing has changed.
    """
    cdef Views first = Views(arrays, PyBUF_STRIDES | PyBUF_WRITABLE)
    cdef Views second = Views(others, PyBUF_WRITABLE)
    cdef Views state = Views([flag], PyBUF_WRITABLE)
    if first.count != second.count or state.at[0].len != sizeof(int64_t):
        raise ValueError(f"expected {first.count} other arrays, one for each array, and a flag as one int64")
    for i in range(first.count):
        if not is_float(&first.at[i]) or not is_float(&second.at[i]):
            raise TypeError("arrays must hold float32 or float64")
        if first.at[i].len != second.at[i].len or first.at[i].itemsize != second.at[i].itemsize:
            raise ValueError(f"array {i} must have the dtype and size of the other one")
    for i in range(first.count):
        swap_elements(&first.at[i], <char *>second.at[i].buf)
    (<int64_t *>state.at[0].buf)[0] ^= 1


cdef class swapped:
    """Call `swap` at the beginning of a context, and at its end unless `flag` is 0 already."""
    cdef list arrays, others
    cdef object flag

    def __cinit__(self, list arrays not None, list others not None, flag not None):
        self.arrays, self.others, self.flag = arrays, others, flag

    def __enter__(self):
        swap(self.arrays, self.others, self.flag)

    def __exit__(self, *_):
        if self.flag:
            swap(self.arrays, self.others, self.flag)


cdef object switching = object()


def switch(list attributes not None, list arrays not None, bint writeable, list targets not None, list sources not None):
    """Assign sources to targets, and set attributes, given as (object, name, value), and the writeable flags of arrays.

    If this raises, nothing has changed.
    """
    cdef Views to = Views(targets, PyBUF_STRIDES | PyBUF_WRITABLE)
    cdef Views values = Views(sources, PyBUF_SIMPLE)
    cdef tuple argument = (writeable,)
    cdef list setters = [], before = []
    cdef Py_ssize_t done = 0
    for array in arrays:
        setters.append(array.setflags)
        before.append((array.flags.writeable,))
    require_match(to, values)
    with cython.critical_section(switching):
        try:
            for setter in setters:
                setter(*argument)
                done += 1
        except BaseException:
            for i in range(done):
                setters[i](*before[i])
            raise
        for i in range(to.count):
            fill(&to.at[i], <const char *>values.at[i].buf)
        for owner, name, value in attributes:
            PyObject_GenericSetAttr(owner, name, value)     # not setattr, which could run a method in Python


@cython.binding(True)
def committed(check):
    """Make a method from `check`, which returns a compiled function and its arguments. The method ends with a call of that function.

    No bytecode of the method runs after the compiled function, so an exception from a signal handler arrives before the change.
    """
    def method(*args, **kwargs):
        change, *arguments = check(*args, **kwargs)
        return change(*arguments)
    return functools.update_wrapper(method, check)


cdef struct Range:
    char *first
    char *last      # one past the last byte; both are NULL if the array is empty


cdef Range range_of(const Py_buffer *view) noexcept nogil:
    """Return the range from the first to the last byte of an array."""
    cdef Range r
    cdef Py_ssize_t axis
    r.first = r.last = NULL
    if view.len:
        r.first = <char *>view.buf
        r.last = r.first + view.itemsize
        for axis in range(view.ndim):
            if view.strides[axis] < 0:
                r.first += (view.shape[axis] - 1) * view.strides[axis]
            else:
                r.last += (view.shape[axis] - 1) * view.strides[axis]
    return r


def overlaps(list arrays not None):
    """Return the pairs (i, j), i < j, of arrays whose memory may overlap, because the ranges from first to last byte do."""
    cdef Views views = Views(arrays, PyBUF_STRIDES)
    cdef Range *ranges = <Range *>PyMem_Malloc(views.count * sizeof(Range))
    cdef Py_ssize_t i, j
    cdef list pairs = []
    if ranges == NULL:
        raise MemoryError()
    try:
        for i in range(views.count):
            ranges[i] = range_of(&views.at[i])
            for j in range(i):
                if ranges[i].first < ranges[j].last and ranges[j].first < ranges[i].last:
                    pairs.append((j, i))
    finally:
        PyMem_Free(ranges)
    return pairs


cdef void update(rnnfast_update *step, const Py_buffer *p, void *g, void **moments, const double *options) noexcept nogil:
    """Update a parameter with any strides, and its contiguous moments."""
    cdef Py_ssize_t index[64]
    cdef Py_ssize_t length = row_length(p), stride = row_stride(p), i, k, n
    cdef char *row = <char *>p.buf
    n = length if stride == p.itemsize else 1
    memset(index, 0, sizeof(index))
    while row != NULL and p.len:
        for i in range(length // n):
            step(row + i * stride, g, moments, n, options)
            g = <char *>g + n * p.itemsize
            for k in range(RNNFAST_MOMENTS):
                if moments[k] != NULL:
                    moments[k] = <char *>moments[k] + n * p.itemsize
        row = next_row(p, index, row)


# For each kind of optimizer: its index, the moments that it requires and those that it can use, and the number of options.
cdef dict OPTIMIZERS = {"sgd": (RNNFAST_SGD, 0, 1, 4), "adam": (RNNFAST_ADAM, 2, 2, 8), "rmsprop": (RNNFAST_RMSPROP, 1, 3, 6)}


def optimize(str kind not None, list parameters not None, list gradients not None, list moments not None, steps, tuple options not None):
    """Take one step of an optimizer, and add 1 to the array `steps`. If this raises, nothing has changed.

    `moments` holds one list for each kind of moment, empty for one that is not used; csrc/optimizers.h has their order and the options.
    Gradients and moments are contiguous arrays of the dtypes of the parameters, and parameters may have any strides of whole elements.
    """
    cdef Views p = Views(parameters, PyBUF_STRIDES | PyBUF_WRITABLE)
    cdef Views g = Views(gradients, PyBUF_SIMPLE)
    cdef Views count = Views([steps], PyBUF_WRITABLE)
    cdef list every = [p, g]
    cdef Views views
    cdef double o[RNNFAST_OPTIMIZER_OPTIONS]
    cdef void *at[RNNFAST_MOMENTS]
    cdef Py_buffer *kinds[RNNFAST_MOMENTS]
    cdef Py_ssize_t i, j
    cdef int which, k, required, most, numbers
    cdef rnnfast_update *step
    if kind not in OPTIMIZERS:
        raise ValueError(f"kind is {kind!r}, but must be one of {', '.join(OPTIMIZERS)}")
    which, required, most, numbers = OPTIMIZERS[kind]
    if len(moments) != most or len(options) != numbers or count.at[0].len != sizeof(int64_t):
        raise ValueError(f"expected {most} kinds of moments, {numbers} options, and steps as one int64")
    for i, option in enumerate(options):
        o[i] = option
    for arrays in moments:
        every.append(Views(arrays, PyBUF_WRITABLE))
    for i in range(len(every)):
        views = every[i]
        if i - 2 >= required and not views.count:
            continue
        if views.count != p.count:
            raise ValueError(f"expected {p.count} gradients and moments of each kind")
        for j in range(p.count):
            if not is_float(&views.at[j]):
                raise TypeError("parameters, gradients and moments must hold float32 or float64")
            if views.at[j].len != p.at[j].len or views.at[j].itemsize != p.at[j].itemsize:
                raise ValueError(f"gradient and moments {j} must have the dtype and size of the parameter")
    for k in range(RNNFAST_MOMENTS):
        kinds[k] = NULL
        if k < most:
            views = every[2 + k]
            if views.count:
                kinds[k] = views.at
    with nogil:
        for i in range(p.count):
            for k in range(RNNFAST_MOMENTS):
                at[k] = NULL if kinds[k] == NULL else kinds[k][i].buf
            step = (rnnfast_optimizers_f32 if p.at[i].itemsize == sizeof(float) else rnnfast_optimizers_f64)[which]
            update(step, &p.at[i], g.at[i].buf, at, o)
        (<int64_t *>count.at[0].buf)[0] += 1


def add_scaled(list targets not None, factors, list sources not None):
    """Add arrays to others, each multiplied by a factor for each member and unit; csrc/traces.h has the layouts.

    Parameters
    ----------
    targets : list of ndarray
        Each with the elements of its source, or without the axis of members, over which it is then summed.
    factors : ndarray, (members, units)
    sources : list of ndarray, (members, groups, units, width)
        All arrays are contiguous, of one dtype.
    """
    cdef Views to = Views(targets, PyBUF_WRITABLE)
    cdef Views of = Views([factors], PyBUF_ND)
    cdef Views source = Views(sources, PyBUF_ND)
    cdef rnnfast_trace_shape shape
    cdef Py_buffer *factor = of.at
    cdef Py_buffer *view
    cdef Py_ssize_t i, least
    if to.count != source.count or not is_float(factor) or factor.ndim != 2:
        raise ValueError(f"expected {source.count} targets, and factors (members, units) of float32 or float64")
    for i in range(source.count):
        view = &source.at[i]
        if not is_float(view) or not is_float(&to.at[i]) or view.itemsize != factor.itemsize or to.at[i].itemsize != factor.itemsize:
            raise TypeError("targets and sources must have the dtype of the factors")
        if view.ndim != 4 or view.shape[0] != factor.shape[0] or view.shape[2] != factor.shape[1]:
            raise ValueError(f"source {i} must have shape (members, groups, units, width), with the axes of the factors")
        least = view.len // max(view.shape[0], 1)
        if to.at[i].len != view.len and to.at[i].len != least:
            raise ValueError(f"target {i} must have the elements of its source, or those of one member")
    with nogil:
        for i in range(source.count):
            view = &source.at[i]
            shape.members, shape.groups, shape.units, shape.width = view.shape[0], view.shape[1], view.shape[2], view.shape[3]
            (rnnfast_add_scaled_f32 if view.itemsize == sizeof(float) else rnnfast_add_scaled_f64)(
                to.at[i].buf, factor.buf, view.buf, &shape, to.at[i].len != view.len)


# ---- pools of buffers ----

cdef enum:
    LARGE_BUFFER = 1 << 20      # bytes; smaller buffers do not count in the limit of a pool
    MOST_BYTES = 1 << 27        # bytes that a pool keeps at most, unless a single buffer is larger


def address(array not None):
    """Return where the buffer of an array begins, as an integer."""
    cdef Buffers buffers
    buffers.count = 0
    try:
        return <size_t>acquire(&buffers, array, PyBUF_SIMPLE)
    finally:
        release(&buffers)


cdef class BufferPool:
    """A free list of reusable buffers; rnnfast/buffers.py documents it."""
    cdef list free              # pairs of a size in bytes and a buffer, the oldest first
    cdef object empty           # allocates a buffer
    cdef readonly Py_ssize_t most

    def __cinit__(self, Py_ssize_t most, empty):
        self.free, self.most, self.empty = [], most, empty

    def __len__(self):
        return len(self.free)

    def __iter__(self):
        cdef list buffers = []
        with cython.critical_section(self):
            for entry in self.free:
                buffers.append((<tuple>entry)[1])
        return iter(buffers)

    cdef object take(self, Py_ssize_t least, Py_ssize_t largest):
        """Remove and return the newest buffer whose size is in a range, None if there is none."""
        with cython.critical_section(self):
            for i in range(len(self.free) - 1, -1, -1):
                if least <= <Py_ssize_t>(<tuple>self.free[i])[0] <= largest:
                    return (<tuple>self.free.pop(i))[1]
        return None

    def acquire(self, Py_ssize_t nbytes):
        """Return a buffer of at least `nbytes`, but not much more. Release it after use."""
        buffer = self.take(nbytes, 2 * nbytes + LARGE_BUFFER)
        return self.empty(nbytes) if buffer is None else buffer

    def pop(self):
        """Return the buffer that was released last, or None if the pool is empty."""
        return self.take(0, PY_SSIZE_T_MAX)

    def release(self, buffer not None):
        """Return a buffer to the pool. The oldest buffers are freed as long as the pool exceeds a limit."""
        cdef Py_ssize_t total = 0, nbytes = buffer.nbytes
        cdef tuple entry = (nbytes, buffer)
        with cython.critical_section(self):
            self.free.append(entry)
            if len(self.free) > self.most:
                del self.free[0]
            if nbytes >= LARGE_BUFFER:
                for entry in self.free:
                    total += <Py_ssize_t>entry[0]
                while total > MOST_BYTES and len(self.free) > 1:
                    total -= <Py_ssize_t>(<tuple>self.free[0])[0]
                    del self.free[0]

    def clear(self):
        """Free all buffers in the pool."""
        with cython.critical_section(self):
            del self.free[:]

    def lease(self, Py_ssize_t nbytes):
        """Return a `Lease` of a buffer of at least `nbytes`."""
        return Lease(self, self.acquire(nbytes), nbytes)


@cython.no_gc
cdef class Lease:
    """Return a buffer to its pool when this object is deallocated; no bytecode runs then. As an array, it is the first `nbytes` of the buffer."""
    cdef BufferPool pool
    cdef readonly object buffer
    cdef Py_ssize_t nbytes

    def __cinit__(self, BufferPool pool not None, buffer not None, Py_ssize_t nbytes):
        if not 0 <= nbytes <= buffer.nbytes:
            raise ValueError("nbytes must be between 0 and the size of the buffer")
        self.pool, self.buffer, self.nbytes = pool, buffer, nbytes

    def __dealloc__(self):
        if self.buffer is not None:
            try:
                self.pool.release(self.buffer)
            except MemoryError:         # the buffer is freed
                pass

    @property
    def __array_interface__(self):
        cdef Views view = Views([self.buffer], PyBUF_SIMPLE)
        return {"version": 3, "typestr": "|u1", "shape": (self.nbytes,), "data": (<size_t>view.at[0].buf, False)}


cdef rnnfast_weights weights_of(str weights, size_t item) except *:
    """Return a kind of weights, which must exist for elements of this size."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}; expected one of {', '.join(WEIGHTS)}")
    if item != 4 and weights != "full":
        raise ValueError(f"weights={weights!r} needs a dtype of float32")
    return WEIGHTS.index(weights)


cdef class Engine:
    """A stack of recurrent layers without its weights: a cell, sizes, an element type and an instruction set."""
    cdef rnnfast_stack stack
    cdef const rnnfast_table *table
    cdef readonly str cell, isa, weights
    cdef readonly object dtype
    cdef readonly Py_ssize_t input_size, hidden_size, proj_size, num_layers, output_size
    cdef readonly bint bidirectional, reverse, bias
    cdef readonly int directions, gates
    cdef readonly object info           # CellInfo of the cell that runs: generic if there are options
    cdef readonly str extra             # name of the per-unit extras (info.extra_rows, hidden_size); "" if there are none
    cdef readonly size_t packed_size, packed_back_size
    cdef readonly object options        # as given
    cdef readonly tuple zoneout         # of h and of c
    cdef int kinds[RNNFAST_KINDS]       # indices of its parameters among RNNFAST_KINDS
    cdef int kind_count
    cdef int on_openmp                  # RNNFAST_OPENMP or 0
    cdef bint has_c

    def __cinit__(self, str cell, dtype, input_size, hidden_size, *, proj_size=0, num_layers=1, bint bidirectional=False,
                  bint reverse=False, bint bias=True, str isa=None, options=None, bint openmp=False, str weights="full",
                  zoneout=(0.0, 0.0)):
        cdef rnnfast_sizes sizes
        self.on_openmp = RNNFAST_OPENMP if openmp else 0
        if getattr(dtype, "char", "") not in ("f", "d") or not dtype.isnative:
            raise TypeError(f"dtype must be numpy.dtype('float32') or numpy.dtype('float64'), in native byte order, got {dtype!r}")
        if not all(isinstance(size, int) and not isinstance(size, bool) for size in (input_size, hidden_size, proj_size, num_layers)):
            raise TypeError(f"input_size, hidden_size, proj_size and num_layers must be integers, got "
                            f"{input_size!r}, {hidden_size!r}, {proj_size!r} and {num_layers!r}")
        if min(input_size, hidden_size, num_layers) < 1 or proj_size < 0:
            raise ValueError(f"input_size, hidden_size and num_layers must be positive, and proj_size not negative, got "
                             f"{input_size}, {hidden_size}, {num_layers} and {proj_size}")
        if bidirectional and reverse:
            raise ValueError("bidirectional and reverse are mutually exclusive: bidirectional=True includes the reverse direction")
        self.table = table_of(dtype.itemsize, isa)
        self.isa = (<bytes>self.table.isa).decode()
        self.cell, self.dtype, self.bias, self.reverse, self.bidirectional = cell, dtype, bias, reverse, bidirectional
        if cell not in CELLS:
            raise ValueError(f"cell is {cell!r}; expected one of {', '.join(CELLS)}")
        self.info = CELLS[cell]
        if options is not None:
            if self.info.generic is None:
                raise ValueError(f"cell {cell!r} takes no options; use a cell with a generic form, or options=None")
            self.info = _cell_info(self.info.generic)
        self.gates, self.has_c = len(self.info.gates), self.info.has_c
        self.directions = 2 if bidirectional else 1
        try:
            self.input_size, self.hidden_size, self.proj_size, self.num_layers = input_size, hidden_size, proj_size, num_layers
        except OverflowError:
            raise ValueError(self._too_large()) from None
        self.output_size = self.proj_size or self.hidden_size
        if self.proj_size and not self.info.projects:
            cells = ", ".join(name for name, info in CELLS.items() if info.projects)
            raise ValueError(f"proj_size is {proj_size}, but cell {cell!r} supports no projection; use 0, or a cell that does: {cells}")
        if self.proj_size and self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size is {proj_size}, but must be less than hidden_size={hidden_size}; use 0 for no projection")
        if self.info.reads_x and (input_size != hidden_size or num_layers > 1 and bidirectional):
            raise ValueError(f"cell {cell!r} adds x to h, so the inputs of all layers must have hidden_size={hidden_size} features, got "
                             f"input_size={input_size}, num_layers={num_layers} and bidirectional={bool(bidirectional)}; "
                             f"use a cell that does not read x")
        memset(&self.stack, 0, sizeof(self.stack))
        self.weights = weights
        self.stack.weights = weights_of(weights, dtype.itemsize)
        self.stack.cell, self.stack.directions, self.stack.reverse = self.info.id, self.directions, reverse
        self.stack.layers, self.stack.I, self.stack.H, self.stack.P = num_layers, input_size, hidden_size, self.output_size
        self.options = options
        if options is not None:
            self.stack.clip, self.stack.peepholes, self.stack.coupled = options.clip or 0, options.peepholes, options.coupled
            activations = tuple(options.activations)
            if len(activations) != 3 * self.directions:
                raise ValueError(f"options must have three activations for each direction, {3 * self.directions}, got {len(activations)}")
            for i, (function, alpha, beta) in enumerate(activations):
                if function not in FUNCTIONS:
                    raise ValueError(f"activation is {function!r}; expected one of {', '.join(FUNCTIONS)}")
                self.stack.activations[i // 3][i % 3] = rnnfast_activation(FUNCTIONS.index(function), alpha, beta)
        of_h, of_c = zoneout
        if not (0 <= of_h <= 1 and 0 <= of_c <= 1) or of_c and not self.has_c:
            raise ValueError(f"zoneout is {zoneout!r}, but must be probabilities of h and of c, that of c 0 for a cell without c")
        self.stack.zoneout_h, self.stack.zoneout_c = of_h, of_c
        self.zoneout = (self.stack.zoneout_h, self.stack.zoneout_c)
        self.extra = self.info.extra if self.stack.peepholes or not self.table.cell_info(self.stack.cell).extra_is_optional else ""
        if self.table.sizes(&self.stack, 1, 1, NULL, &sizes):
            raise ValueError(self._too_large())
        self.packed_size, self.packed_back_size = sizes.packed, sizes.packed_back
        has = [True, not self.info.elementwise, self.bias, self.bias and not self.info.elementwise, self.proj_size, self.extra]
        for kind in range(RNNFAST_KINDS):
            if has[kind]:
                self.kinds[self.kind_count] = kind
                self.kind_count += 1

    cdef int limit(self) noexcept nogil:
        """Return the `threads` of a call."""
        return limit_of(self.on_openmp)

    def _too_large(self):
        return ("input_size, hidden_size, proj_size and num_layers are too large together: the weights would take more bytes than "
                "an address can count")

    cdef size_t state_bytes(self, Py_ssize_t rows, Py_ssize_t width) noexcept:
        """Return the bytes of a state of all layers and directions."""
        return self.num_layers * self.directions * rows * width * self.table.item

    cdef size_t zoneout_bytes(self, ptrdiff_t T, ptrdiff_t N) noexcept:
        """Return the bytes of zoneout_masks."""
        cdef ptrdiff_t of_row = RNNFAST_ZONEOUT_BYTES(self.output_size)
        if self.has_c:
            of_row += RNNFAST_ZONEOUT_BYTES(self.hidden_size)
        return self.num_layers * self.directions * T * N * of_row

    def draw_zoneout(self, T, N, key, empty):
        """Return masks of zoneout for `Inputs`, in an array of bytes from ``empty(shape)``.

        Whether a unit keeps its value is decided for each layer, direction, step and row by the two integers of 32 bits
        in `key`. It does not depend on T, N and H.
        """
        cdef Watch watch
        cdef rnnfast_poll poll = start(&watch)
        cdef Buffers buffers
        cdef ptrdiff_t steps = T, rows = N
        cdef uint32_t words[2]
        cdef void *to
        self.sizes(T, N)  # raises if there are too many steps and rows
        words[0], words[1] = key
        masks = empty(self.zoneout_bytes(steps, rows)).reshape(self.num_layers * self.directions, steps, rows, -1)
        buffers.count = 0
        try:
            to = acquire(&buffers, masks, PyBUF_WRITABLE, self.zoneout_bytes(steps, rows))
            with nogil:
                rnnfast_draw_zoneout(&self.stack, steps, rows, self.has_c, words, to, poll)
            finish(&watch)
        finally:
            release(&buffers)
        return masks

    def sizes(self, T, N, Order order=None):
        """Return the bytes of a tape and of workspaces for T steps and N rows, or for an order."""
        cdef rnnfast_sizes sizes
        cdef ptrdiff_t steps, rows
        try:
            steps, rows = T, N
        except OverflowError:
            steps = rows = PY_SSIZE_T_MAX
        if steps < 1 or rows < 1:
            raise ValueError(f"T and N must be positive, got {T} and {N}")
        if self.table.sizes(&self.stack, steps, rows, order_of(order), &sizes):
            raise ValueError(f"x has {T} steps and {N} rows: its states would take more bytes than an address can count")
        return Sizes(sizes.tape, sizes.forward_workspace, sizes.backward_workspace)

    def host_call(self, bint time_first, bint has_h0, bint has_c0):
        """Return the bytes of a rnnfast_host_call, which the handlers in `xla` and the operators for ONNX Runtime take as an attribute."""
        cdef rnnfast_host_call call
        memset(&call, 0, sizeof(call))
        call.abi, call.item, call.stack = RNNFAST_ABI, self.table.item, self.stack
        strncpy(call.isa, self.table.isa, sizeof(call.isa) - 1)
        for i in range(self.kind_count):
            call.kinds |= 1 << self.kinds[i]
        call.time_first, call.has_h0, call.has_c0 = time_first, has_h0, has_c0
        return (<char *>&call)[:sizeof(call)]


cdef int describe(rnnfast_problem *p, Engine engine, Watch *watch) except -1:
    memset(p, 0, sizeof(p[0]))
    p.stack = engine.stack
    p.threads = engine.limit()
    p.poll = start(watch)
    return 0


cdef int measure(rnnfast_problem *p, Engine engine, Order order, rnnfast_sizes *sizes, Py_ssize_t *states) except -1:
    """Set the order, the bytes of tape and workspaces, and the number of states, which is that of rows or sequences."""
    p.order = order_of(order)
    if engine.table.sizes(&p.stack, p.T, p.N, p.order, sizes):
        raise ValueError(f"x has {p.T} steps and {p.N} rows: its states would take more bytes than an address can count")
    if p.order != NULL and p.order.begin[p.order.steps] - p.order.begin[0] > p.T * p.N:
        raise ValueError(f"the order has more entries than the {p.T * p.N} steps of x")
    if order is not None:
        order.require(p.T, p.N)
    states[0] = p.order.sequences if p.order != NULL else p.N
    return 0


def pack(Engine engine, parameters, packed, packed_back):
    """Pack the parameters of an engine for the kernels.

    Parameters
    ----------
    engine : Engine
    parameters : sequence of ndarray, or Pointers
        In the order of `parameter_shapes`.
    packed : ndarray of uint8 or None
        The buffer that `forward` reads, with engine.packed_size bytes for each of the pointers' members. None to skip it.
    packed_back : ndarray of uint8 or None
        The buffer that `backward` reads, with engine.packed_back_size bytes for each of them. None to skip it.
    """
    cdef Watch watch
    cdef rnnfast_poll poll = start(&watch)
    cdef Buffers buffers
    cdef Pointers pointers = pointers_to(engine, parameters)
    cdef ptrdiff_t m, kinds = RNNFAST_KINDS * engine.num_layers * engine.directions
    cdef char *forward_form
    cdef char *backward_form
    buffers.count = 0
    try:
        forward_form = <char *>acquire_optional(&buffers, packed, PyBUF_WRITABLE, pointers.members * engine.packed_size)
        backward_form = <char *>acquire_optional(&buffers, packed_back, PyBUF_WRITABLE, pointers.members * engine.packed_back_size)
        with nogil:
            for m in range(pointers.members):
                engine.table.pack(&engine.stack, <const void *const *>pointers.at + m * kinds,
                                  forward_form + m * engine.packed_size if forward_form else NULL,
                                  backward_form + m * engine.packed_back_size if backward_form else NULL, engine.limit(), poll)
        finish(&watch)
    finally:
        release(&buffers)


cdef class Inputs:
    """The arrays that `forward` and `backward` read.

    Attributes
    ----------
    x : ndarray, (T, N, input_size)
    h0, c0 : ndarray or None
        The initial states; None stands for zeros.
    masks : ndarray or None, (num_layers - 1, T, N, features of y)
        Dropout factors for the outputs of all layers but the last. Strides of 0 repeat them.
    order : Order or None
        For a ragged batch, the order of its steps, from `arrange`. There is then one state for each of its sequences.
    recurrent_masks : ndarray or None, (num_layers * directions, N, output_size)
        Factors for what the products with weight_hh read, the same for all steps. With an order, those of sequences.
    zoneout_masks : ndarray of uint8 or None, (num_layers * directions, T, N, bytes)
        From ``engine.draw_zoneout``, for an engine with zoneout. Without them, h and c are expectations.
    """
    cdef readonly object x, h0, c0, masks, recurrent_masks, zoneout_masks
    cdef readonly Order order

    def __cinit__(self, x, h0=None, c0=None, masks=None, Order order=None, recurrent_masks=None, zoneout_masks=None):
        self.x, self.h0, self.c0, self.masks, self.order, self.recurrent_masks = x, h0, c0, masks, order, recurrent_masks
        self.zoneout_masks = zoneout_masks


cdef class Outputs:
    """The arrays that `forward` writes: y (T, N, features) and the final states. c_n is None for cells without c."""
    cdef readonly object y, h_n, c_n

    def __cinit__(self, y, h_n, c_n=None):
        self.y, self.h_n, self.c_n = y, h_n, c_n

    @property
    def state(self):
        """h_n, or (h_n, c_n) for a cell with c."""
        return self.h_n if self.c_n is None else (self.h_n, self.c_n)


cdef class OutputGradients:
    """The gradients with respect to `Outputs` that `backward` reads. None stands for zeros."""
    cdef readonly object dy, dh_n, dc_n

    def __cinit__(self, dy=None, dh_n=None, dc_n=None):
        self.dy, self.dh_n, self.dc_n = dy, dh_n, dc_n


cdef class InputGradients:
    """The arrays that `backward` writes.

    Attributes
    ----------
    dx, dh0, dc0 : ndarray
        Gradients with respect to `Inputs`. dc0 is None for cells without c.
    dparameters : list of ndarray or None
        In the order of `parameter_shapes`; None is allowed for biases and per-unit extras. The gradients are added to
        the contents of the arrays.
    dh : ndarray or None, (num_layers * directions, T, N, output_size)
        The total derivative with respect to h of every layer, direction and step; None to skip it.
    """
    cdef readonly object dx, dh0, dc0, dparameters, dh

    def __cinit__(self, dx, dh0, dc0, dparameters, dh=None):
        self.dx, self.dh0, self.dc0, self.dparameters, self.dh = dx, dh0, dc0, dparameters, dh


cdef int acquire_masks(rnnfast_problem *p, Buffers *buffers, Engine engine, Inputs inputs, Py_ssize_t states) except -1:
    cdef size_t item = engine.table.item
    cdef Py_ssize_t P = engine.output_size
    if inputs.masks is not None:
        p.masks = acquire_array(buffers, inputs.masks, PyBUF_STRIDES, item, 4, engine.num_layers - 1, p.T, p.N, engine.directions * P)
        p.masks_layer, p.masks_step, p.masks_row = stride(buffers, 0, item), stride(buffers, 1, item), stride(buffers, 2, item)
    p.recurrent_masks = acquire_optional(buffers, inputs.recurrent_masks, PyBUF_SIMPLE, engine.state_bytes(states, P))
    p.zoneout_masks = acquire_optional(buffers, inputs.zoneout_masks, PyBUF_SIMPLE, engine.zoneout_bytes(p.T, p.N))
    return 0


def forward(Engine engine, packed, Inputs inputs, Outputs outputs, workspace, tape=None):
    """Run an engine forward over a batch.

    Parameters
    ----------
    engine : Engine
    packed : ndarray of uint8
        From `pack`.
    inputs : Inputs
    outputs : Outputs
        The arrays to write. With an order, masked-out steps of y are not written: see `Order.fill`.
    workspace : ndarray of uint8
        Scratch memory with the ``forward_workspace`` bytes of ``engine.sizes(T, N, inputs.order)``.
    tape : ndarray of uint8, optional
        The buffer for what `backward` needs, with the ``tape`` bytes of the sizes. None for inference.
    """
    cdef rnnfast_problem p
    cdef rnnfast_sizes sizes
    cdef Watch watch
    cdef Buffers buffers
    cdef size_t item = engine.table.item
    cdef Py_ssize_t states, H = engine.hidden_size, P = engine.output_size
    describe(&p, engine, &watch)
    buffers.count = 0
    try:
        p.x = acquire_array(&buffers, inputs.x, PyBUF_STRIDES, item, 3, -1, -1, engine.input_size)
        p.T, p.N = length(&buffers, 0), length(&buffers, 1)
        p.x_step, p.x_row = stride(&buffers, 0, item), stride(&buffers, 1, item)
        measure(&p, engine, inputs.order, &sizes, &states)
        p.packed = acquire(&buffers, packed, PyBUF_SIMPLE, engine.packed_size)
        p.h0 = acquire_optional(&buffers, inputs.h0, PyBUF_SIMPLE, engine.state_bytes(states, P))
        p.c0 = acquire_optional(&buffers, inputs.c0, PyBUF_SIMPLE, engine.state_bytes(states, H))
        p.y = acquire_array(&buffers, outputs.y, PyBUF_WRITABLE, item, 3, p.T, p.N, engine.directions * P)
        p.y_step, p.y_row = stride(&buffers, 0, item), stride(&buffers, 1, item)
        p.h_n = acquire(&buffers, outputs.h_n, PyBUF_WRITABLE, engine.state_bytes(states, P))
        if engine.has_c:
            p.c_n = acquire(&buffers, outputs.c_n, PyBUF_WRITABLE, engine.state_bytes(states, H))
        p.tape = acquire_optional(&buffers, tape, PyBUF_WRITABLE, sizes.tape)
        acquire_masks(&p, &buffers, engine, inputs, states)
        p.workspace = acquire(&buffers, workspace, PyBUF_WRITABLE, sizes.forward_workspace)
        with nogil:
            engine.table.forward(&p)
        finish(&watch)
    finally:
        release(&buffers)


def backward(Engine engine, packed_back, Inputs inputs, y, tape, OutputGradients output_gradients, InputGradients input_gradients,
             workspace):
    """Compute the gradients of one `forward`.

    Parameters
    ----------
    engine : Engine
    packed_back : ndarray of uint8
        From `pack`, with the same parameters as in `forward`.
    inputs : Inputs
    y : ndarray, (T, N, features)
        As `forward` wrote it.
    tape : ndarray of uint8
        As `forward` wrote it. It is not changed.
    output_gradients : OutputGradients
    input_gradients : InputGradients
        The arrays to write. Gradients of the parameters are added to the contents of their arrays.
    workspace : ndarray of uint8
        Scratch memory with the ``backward_workspace`` bytes of ``engine.sizes(T, N, inputs.order)``.
    """
    cdef rnnfast_problem p
    cdef rnnfast_sizes sizes
    cdef Watch watch
    cdef Buffers buffers
    cdef size_t item = engine.table.item
    cdef Py_ssize_t states, H = engine.hidden_size, P = engine.output_size
    cdef Pointers pointers = Pointers(engine, input_gradients.dparameters, PyBUF_WRITABLE, True)
    describe(&p, engine, &watch)
    p.dparameters = pointers.at
    buffers.count = 0
    try:
        p.x = acquire_array(&buffers, inputs.x, PyBUF_STRIDES, item, 3, -1, -1, engine.input_size)
        p.T, p.N = length(&buffers, 0), length(&buffers, 1)
        p.x_step, p.x_row = stride(&buffers, 0, item), stride(&buffers, 1, item)
        measure(&p, engine, inputs.order, &sizes, &states)
        p.packed_back = acquire(&buffers, packed_back, PyBUF_SIMPLE, engine.packed_back_size)
        p.h0 = acquire_optional(&buffers, inputs.h0, PyBUF_SIMPLE, engine.state_bytes(states, P))
        p.c0 = acquire_optional(&buffers, inputs.c0, PyBUF_SIMPLE, engine.state_bytes(states, H))
        p.y = acquire_array(&buffers, y, PyBUF_STRIDES, item, 3, p.T, p.N, engine.directions * P)
        p.y_step, p.y_row = stride(&buffers, 0, item), stride(&buffers, 1, item)
        p.tape = acquire(&buffers, tape, PyBUF_SIMPLE, sizes.tape)
        acquire_masks(&p, &buffers, engine, inputs, states)
        if output_gradients.dy is not None:
            p.dy = acquire_array(&buffers, output_gradients.dy, PyBUF_STRIDES, item, 3, p.T, p.N, engine.directions * P)
            p.dy_step, p.dy_row = stride(&buffers, 0, item), stride(&buffers, 1, item)
        p.dh_n = acquire_optional(&buffers, output_gradients.dh_n, PyBUF_SIMPLE, engine.state_bytes(states, P))
        p.dc_n = acquire_optional(&buffers, output_gradients.dc_n, PyBUF_SIMPLE, engine.state_bytes(states, H))
        p.dx = acquire_array(&buffers, input_gradients.dx, PyBUF_WRITABLE, item, 3, p.T, p.N, engine.input_size)
        p.dx_step, p.dx_row = stride(&buffers, 0, item), stride(&buffers, 1, item)
        if input_gradients.dh is not None:
            p.dh = acquire_array(&buffers, input_gradients.dh, PyBUF_WRITABLE, item, 4, engine.num_layers * engine.directions, p.T, p.N, P)
            p.dh_state, p.dh_step, p.dh_row = stride(&buffers, 0, item), stride(&buffers, 1, item), stride(&buffers, 2, item)
        p.dh0 = acquire(&buffers, input_gradients.dh0, PyBUF_WRITABLE, engine.state_bytes(states, P))
        if engine.has_c:
            p.dc0 = acquire(&buffers, input_gradients.dc0, PyBUF_WRITABLE, engine.state_bytes(states, H))
        p.workspace = acquire(&buffers, workspace, PyBUF_WRITABLE, sizes.backward_workspace)
        with nogil:
            engine.table.backward(&p)
        finish(&watch)
    finally:
        release(&buffers)


cdef size_t bytes_of(ptrdiff_t members, size_t bytes) noexcept:
    """Return the bytes of an array with an axis of members, or more than any array has if they cannot be counted."""
    return PY_SSIZE_T_MAX if bytes and members > PY_SSIZE_T_MAX // <ptrdiff_t>bytes else members * bytes


cdef void *acquire_packed(Buffers *buffers, obj, ptrdiff_t members, ptrdiff_t *apart) except? NULL:
    """Acquire packed weights of all members, or of exactly one, which all of them then share."""
    cdef void *at = acquire(buffers, obj, PyBUF_SIMPLE, apart[0])
    cdef Py_ssize_t given = buffers.held[buffers.count - 1].len
    if given == apart[0]:
        apart[0] = 0
    elif <size_t>given < bytes_of(members, apart[0]):
        raise ValueError(f"a buffer has {given} bytes, but {apart[0]} are needed for each of {members} members")
    return at


cdef int describe_members(rnnfast_members *all, Engine engine, Inputs inputs, workspace, bint back, Buffers *buffers, Watch *watch,
                          rnnfast_sizes *sizes) except -1:
    """Set what forward and backward of an ensemble share."""
    cdef rnnfast_problem *p = &all.problem
    cdef size_t item = engine.table.item, bytes
    cdef Py_ssize_t states
    memset(all, 0, sizeof(all[0]))
    describe(p, engine, watch)
    p.x = acquire_array(buffers, inputs.x, PyBUF_STRIDES, item, 4, -1, -1, -1, engine.input_size)
    all.members, p.T, p.N = length(buffers, 0), length(buffers, 1), length(buffers, 2)
    all.x, p.x_step, p.x_row = stride(buffers, 0, 1), stride(buffers, 1, item), stride(buffers, 2, item)
    measure(p, engine, None, sizes, &states)
    all.h, all.c = engine.state_bytes(states, engine.output_size), engine.state_bytes(states, engine.hidden_size)
    all.packed, all.packed_back, all.tape = engine.packed_size, engine.packed_back_size, sizes.tape
    p.h0 = acquire_optional(buffers, inputs.h0, PyBUF_SIMPLE, bytes_of(all.members, all.h))
    p.c0 = acquire_optional(buffers, inputs.c0, PyBUF_SIMPLE, bytes_of(all.members, all.c))
    bytes = max(sizes.backward_workspace if back else sizes.forward_workspace, <size_t>1)
    p.workspace = acquire(buffers, workspace, PyBUF_WRITABLE, bytes)
    all.workspace = bytes
    p.threads = min(p.threads & (RNNFAST_OPENMP - 1), buffers.held[buffers.count - 1].len // <Py_ssize_t>bytes) | (p.threads & RNNFAST_OPENMP)
    return 0


def forward_members(Engine engine, Pointers parameters or None, packed, packed_back, Inputs inputs, Outputs outputs, workspace, tape=None):
    """Run the members of an ensemble forward.

    All arrays are those of `forward` and `pack` with one more axis in front. A stride of 0 on that axis of x shares it. With `parameters`,
    packed and packed_back are written first, else packed is read, which may be that of one member, to share it. The workspace has room for
    one or more threads.
    """
    cdef rnnfast_members all
    cdef rnnfast_problem *p = &all.problem
    cdef rnnfast_sizes sizes
    cdef Watch watch
    cdef Buffers buffers
    cdef size_t item = engine.table.item
    buffers.count = 0
    try:
        describe_members(&all, engine, inputs, workspace, False, &buffers, &watch, &sizes)
        if parameters is not None:
            if parameters.engine is not engine or parameters.members != all.members:
                raise ValueError("the pointers are those of another engine, or of another number of members")
            all.parameters = <const void *const *>parameters.at
            p.packed = acquire(&buffers, packed, PyBUF_WRITABLE, bytes_of(all.members, all.packed))
            p.packed_back = acquire_optional(&buffers, packed_back, PyBUF_WRITABLE, bytes_of(all.members, all.packed_back))
        else:
            p.packed = acquire_packed(&buffers, packed, all.members, &all.packed)
        p.y = acquire_array(&buffers, outputs.y, PyBUF_WRITABLE, item, 4, all.members, p.T, p.N, engine.directions * engine.output_size)
        all.y, p.y_step, p.y_row = stride(&buffers, 0, 1), stride(&buffers, 1, item), stride(&buffers, 2, item)
        p.h_n = acquire(&buffers, outputs.h_n, PyBUF_WRITABLE, bytes_of(all.members, all.h))
        if engine.has_c:
            p.c_n = acquire(&buffers, outputs.c_n, PyBUF_WRITABLE, bytes_of(all.members, all.c))
        p.tape = acquire_optional(&buffers, tape, PyBUF_WRITABLE, bytes_of(all.members, all.tape))
        with nogil:
            engine.table.members(&all)
        finish(&watch)
    finally:
        release(&buffers)


def backward_members(Engine engine, packed_back, Inputs inputs, y, tape, OutputGradients output_gradients,
                     InputGradients input_gradients, workspace):
    """Compute the gradients of one `forward_members`, whose arrays and those of `backward` these are, with one more axis in front."""
    cdef rnnfast_members all
    cdef rnnfast_problem *p = &all.problem
    cdef rnnfast_sizes sizes
    cdef Watch watch
    cdef Buffers buffers
    cdef size_t item = engine.table.item
    cdef Py_ssize_t features = engine.directions * engine.output_size
    cdef Pointers gradients
    buffers.count = 0
    try:
        describe_members(&all, engine, inputs, workspace, True, &buffers, &watch, &sizes)
        gradients = Pointers(engine, input_gradients.dparameters, PyBUF_WRITABLE, True, all.members)
        p.dparameters = gradients.at
        p.packed_back = acquire_packed(&buffers, packed_back, all.members, &all.packed_back)
        p.y = acquire_array(&buffers, y, PyBUF_STRIDES, item, 4, all.members, p.T, p.N, features)
        all.y, p.y_step, p.y_row = stride(&buffers, 0, 1), stride(&buffers, 1, item), stride(&buffers, 2, item)
        p.tape = acquire(&buffers, tape, PyBUF_SIMPLE, bytes_of(all.members, all.tape))
        if output_gradients.dy is not None:
            p.dy = acquire_array(&buffers, output_gradients.dy, PyBUF_STRIDES, item, 4, all.members, p.T, p.N, features)
            all.dy, p.dy_step, p.dy_row = stride(&buffers, 0, 1), stride(&buffers, 1, item), stride(&buffers, 2, item)
        p.dh_n = acquire_optional(&buffers, output_gradients.dh_n, PyBUF_SIMPLE, bytes_of(all.members, all.h))
        p.dc_n = acquire_optional(&buffers, output_gradients.dc_n, PyBUF_SIMPLE, bytes_of(all.members, all.c))
        p.dx = acquire_array(&buffers, input_gradients.dx, PyBUF_WRITABLE, item, 4, all.members, p.T, p.N, engine.input_size)
        all.dx, p.dx_step, p.dx_row = stride(&buffers, 0, 1), stride(&buffers, 1, item), stride(&buffers, 2, item)
        p.dh0 = acquire(&buffers, input_gradients.dh0, PyBUF_WRITABLE, bytes_of(all.members, all.h))
        if engine.has_c:
            p.dc0 = acquire(&buffers, input_gradients.dc0, PyBUF_WRITABLE, bytes_of(all.members, all.c))
        with nogil:
            engine.table.members(&all)
        finish(&watch)
    finally:
        release(&buffers)


cdef struct Form:
    char kind                   # as the format of a buffer spells it
    Py_ssize_t item
    int ndim
    Py_ssize_t shape[3]


cdef Form form_of(Engine engine, tuple shape):
    """The form of a contiguous array of the engine's dtype."""
    cdef Form form
    if len(shape) > 3:
        raise ValueError("a shape has more than 3 axes")
    memset(&form, 0, sizeof(form))
    form.item = engine.table.item
    form.kind = c"d" if form.item == 8 else c"f"
    form.ndim = len(shape)
    for axis in range(form.ndim):
        form.shape[axis] = shape[axis]
    return form


cdef size_t form_bytes(const Form *form) noexcept:
    cdef size_t bytes = form.item
    for axis in range(form.ndim):
        bytes *= form.shape[axis]
    return bytes


cdef bint has_form(Py_buffer *view, Form *form) noexcept:
    cdef Py_ssize_t stride = form.item
    if view.ndim != form.ndim or view.itemsize != form.item or <size_t>view.buf % <size_t>form.item:
        return False
    if view.format == NULL or view.format[0] != form.kind or view.format[1] != 0:
        return False
    for axis in range(form.ndim - 1, -1, -1):
        if view.shape[axis] != form.shape[axis] or view.strides[axis] != stride:
            return False
        stride *= form.shape[axis]
    return True


cdef bint is_single_step(Engine engine, Py_ssize_t T, Py_ssize_t N) noexcept:
    """Return whether a call takes one step of one row, and would not gain from more threads."""
    return T == 1 and N == 1 and engine.stack.directions == 1 and engine.packed_size < LARGE_STEP


cdef size_t step_size(Engine engine) except 0:
    """Return the bytes of a prepared step of one row."""
    cdef size_t size
    if engine.table.step_size(&engine.stack, 1, &size):
        raise MemoryError()
    return size


cdef void *aligned_in(void *memory) noexcept nogil:
    """Return the first multiple of the alignment of buffers in some memory."""
    return <char *>memory + (-<size_t>memory & (RNNFAST_ALIGNMENT - 1))


cdef void *borrow_step(void **spare, Engine engine, const void *packed, size_t size) except NULL:
    """Return the spare memory, aligned_in which there is a prepared step, or prepare another one. Any thread may return it to `spare`."""
    cdef void *memory = exchange(spare, NULL)
    if memory == NULL:
        memory = PyMem_Malloc(size + RNNFAST_ALIGNMENT)
        if memory == NULL:
            raise MemoryError()
        engine.table.prepare_step(&engine.stack, 1, packed, aligned_in(memory))
    return memory


cdef void take_step(Engine engine, void *prepared, const rnnfast_problem *p) noexcept nogil:
    """Run a prepared step on the arrays of a problem."""
    cdef rnnfast_step arrays = rnnfast_step(x=p.x, h0=p.h0, c0=p.c0, y=p.y, h_n=p.h_n, c_n=p.c_n)
    engine.table.step(prepared, &arrays)


cdef class PreparedCall:
    """A prepared forward call without tape or masks: its arguments are validated and its pointers set up once.

    `run` takes the state as an argument and can be called from several threads at once. `step` and `update` keep the state between
    calls and are for one thread at a time. They read the state from one buffer and write the next state to another, so one that fails
    leaves the state unchanged.

    engine, packed: as for `forward`. `packed` must not change.
    parameters: the parameters in the order of `pack`, instead of `packed`: `run` packs their present values.
    shapes: (x, y, h, c); c is None for a cell without c. x is (T, N, I), (N, T, I) or (T, I).
    time_first: whether the first axis of x is time.
    pool: BufferPool for the workspace of `run` if it is large.
    empty: `empty(shape, dtype)` allocates the results.
    states: for `step`: two arrays of h, and two of c or None. Then T is 1, and if N is 1, x may also have shape (I,).
    initial: any object, an attribute that `replace` changes together with `packed`.
    """
    cdef readonly object packed, initial
    cdef Engine engine
    cdef Pointers parameters
    cdef rnnfast_problem problem
    cdef Buffers buffers              # holds the buffers that all calls share
    cdef object pool, empty, h, c
    cdef object own_h, own_c        # the two buffers of each state
    cdef Lease workspace            # of `step`
    cdef tuple shapes_of_y
    cdef void *states[2][2]
    cdef size_t state_sizes[2]      # of h and c, in bytes
    cdef Form of_x[2]
    cdef Form of_y[2]
    cdef Form of_h, of_c
    cdef size_t workspace_size, size_of_y
    cdef size_t packed_at               # where the workspace has room for packed parameters
    cdef void *small                # a small workspace or prepared step that no thread uses at present, or NULL
    cdef int now                    # which buffer of each pair holds the state
    cdef int busy                   # 0, or 1 and the number of forks: a forked child ignores the calls of its parent's threads
    cdef bint short, is_step        # is_step: the workspace is a prepared step of one row

    def __cinit__(self, Engine engine, packed, tuple shapes, *, bint time_first, pool, empty, tuple states=None,
                  parameters=None, initial=None):
        cdef rnnfast_problem *p = &self.problem
        cdef Py_ssize_t outputs = engine.directions * engine.output_size
        x, y, self.h, self.c = shapes
        self.engine, self.packed, self.pool, self.empty, self.initial = engine, packed, pool, empty, initial
        memset(p, 0, sizeof(p[0]))
        p.stack = engine.stack
        if parameters is None:
            p.packed = acquire(&self.buffers, packed, PyBUF_SIMPLE, engine.packed_size)
        elif packed is None and states is None:
            self.parameters = pointers_to(engine, parameters)
            if self.parameters.members != 1:
                raise ValueError("a prepared call has one member: these pointers are those of several")
        else:
            raise ValueError("parameters stand for packed weights, and their calls have no states: pass None for both")
        self.of_x[0], self.of_y[0], self.shapes_of_y = form_of(engine, x), form_of(engine, y), (y,)
        p.T = self.of_x[0].shape[0 if time_first else 1]
        p.N = 1 if self.of_x[0].ndim == 2 else self.of_x[0].shape[1 if time_first else 0]
        cdef Py_ssize_t step = p.N if time_first else 1
        cdef Py_ssize_t row = 1 if time_first else p.T
        p.x_step, p.x_row = step * engine.input_size, row * engine.input_size
        p.y_step, p.y_row = step * outputs, row * outputs
        self.is_step = self.parameters is None and is_single_step(engine, p.T, p.N)
        self.workspace_size = step_size(engine) if self.is_step else engine.sizes(p.T, p.N).forward_workspace
        if self.parameters is not None:
            self.packed_at = aligned(self.workspace_size)
            self.workspace_size = self.packed_at + engine.packed_size
        self.size_of_y = p.T * p.N * outputs * engine.table.item
        self.state_sizes = [engine.state_bytes(p.N, engine.output_size), engine.state_bytes(p.N, engine.hidden_size)]
        self.of_h = form_of(engine, self.h)
        self.of_c = self.of_h if self.c is None else form_of(engine, self.c)
        if (self.of_x[0].ndim < 2 or form_bytes(&self.of_x[0]) != p.T * p.N * engine.input_size * engine.table.item
                or form_bytes(&self.of_y[0]) != self.size_of_y or form_bytes(&self.of_h) != self.state_sizes[0]
                or (self.c is None) == engine.has_c or engine.has_c and form_bytes(&self.of_c) != self.state_sizes[1]
                or states is not None and p.T != 1):
            raise ValueError(f"x, y, h and c have the shapes {shapes}, which do not fit each other, this engine or steps")
        if states is not None:
            # A step has no time axis, and with one row it may come without a batch axis.
            self.own_h, self.own_c = states
            for i in range(2):
                for k, arrays in enumerate(states):
                    if arrays is not None:
                        self.states[i][k] = acquire(&self.buffers, arrays[i], PyBUF_WRITABLE, self.state_sizes[<int>k])
            rows = (p.N,)
            without = () if p.N == 1 else rows
            self.shapes_of_y = rows + (outputs,), without + (outputs,)
            shapes = rows + (engine.input_size,), without + (engine.input_size,)
            for i in range(2):
                self.of_x[i], self.of_y[i] = form_of(engine, shapes[i]), form_of(engine, self.shapes_of_y[i])
            self.workspace = pool.lease(self.workspace_size)
            p.workspace = acquire(&self.buffers, self.workspace.buffer, PyBUF_WRITABLE, self.workspace_size)
            if self.is_step:
                engine.table.prepare_step(&engine.stack, 1, p.packed, p.workspace)
        # Another thread might take the GIL while it is released, for longer than such a step lasts.
        self.short = states is not None and p.N * engine.packed_size < LARGE_STEP

    def __dealloc__(self):
        release(&self.buffers)
        PyMem_Free(self.small)

    def run(self, x, state):
        """Return (y, last state), as the layers do, or None if an argument does not fit.

        Arguments must be contiguous and have the prepared shapes and dtype. `state` is an array, a pair of arrays for a cell
        with c, or None. Each member of a pair may be None.
        """
        cdef rnnfast_problem p = self.problem
        cdef Watch watch
        cdef Buffers buffers
        cdef void *small = NULL
        cdef const void *const *parameters = NULL
        h0, c0 = state, None
        if self.c is not None and state is not None:
            if type(state) is not tuple or len(state) != 2:
                return None
            h0, c0 = state
        if not is_plain(x) or h0 is not None and not is_plain(h0):
            return None
        if c0 is not None and not is_plain(c0):
            return None
        buffers.count = 0
        workspace = None
        p.threads, p.poll = self.engine.limit(), start(&watch)
        try:
            if not try_acquire(&buffers, x, PyBUF_RECORDS_RO) or not has_form(&buffers.held[0], &self.of_x[0]):
                return None
            p.x = buffers.held[0].buf
            if h0 is not None:
                if not try_acquire(&buffers, h0, PyBUF_RECORDS_RO) or not has_form(&buffers.held[buffers.count - 1], &self.of_h):
                    return None
                p.h0 = buffers.held[buffers.count - 1].buf
            if c0 is not None:
                if not try_acquire(&buffers, c0, PyBUF_RECORDS_RO) or not has_form(&buffers.held[buffers.count - 1], &self.of_c):
                    return None
                p.c0 = buffers.held[buffers.count - 1].buf
            y, h_n, c_n = self.empty(self.shapes_of_y[0], self.engine.dtype), self.empty(self.h, self.engine.dtype), None
            if self.c is not None:
                c_n = self.empty(self.c, self.engine.dtype)
            p.y = hold(&buffers, y, PyBUF_WRITABLE, self.size_of_y).buf
            p.h_n = hold(&buffers, h_n, PyBUF_WRITABLE, self.state_sizes[0]).buf
            if c_n is not None:
                p.c_n = hold(&buffers, c_n, PyBUF_WRITABLE, self.state_sizes[1]).buf
            if self.is_step:
                small = borrow_step(&self.small, self.engine, p.packed, self.workspace_size)
                p.workspace = aligned_in(small)
            elif self.workspace_size > SMALL_WORKSPACE:
                workspace = self.pool.acquire(self.workspace_size)
                p.workspace = acquire(&buffers, workspace, PyBUF_WRITABLE, self.workspace_size)
            else:
                small = exchange(&self.small, NULL)
                if small == NULL:
                    small = PyMem_Malloc(self.workspace_size + RNNFAST_ALIGNMENT)
                if small == NULL:
                    raise MemoryError()
                p.workspace = aligned_in(small)
            if self.is_step:
                take_step(self.engine, p.workspace, &p)
            else:
                if self.parameters is not None:
                    p.packed = <char *>p.workspace + self.packed_at
                    parameters = <const void *const *>self.parameters.at
                with nogil:
                    if parameters != NULL:
                        self.engine.table.pack(&p.stack, parameters, <void *>p.packed, NULL, p.threads, p.poll)
                    self.engine.table.forward(&p)
            finish(&watch)
        finally:
            release(&buffers)
            if small != NULL:
                PyMem_Free(exchange(&self.small, small))
            if workspace is not None:
                self.pool.release(workspace)
        return y, h_n if c_n is None else (h_n, c_n)

    def step(self, x, out, target=None):
        """Advance the state by one step and return y, written to `out` if that is given.

        Returns None and leaves the state unchanged if x or `out` is not contiguous, differs from the prepared shape and dtype, or
        overlaps the other. y is also copied to `target`, an array with any strides, if that is given.
        """
        cdef rnnfast_problem p = self.problem
        cdef Watch watch
        cdef Buffers buffers
        cdef int form = 0
        if not is_plain(x) or out is not None and not is_plain(out):
            return None
        self.begin()
        buffers.count = 0
        p.threads, p.poll = self.engine.limit(), start(&watch)
        try:
            if not try_acquire(&buffers, x, PyBUF_RECORDS_RO):
                return None
            form = buffers.held[0].ndim == 1
            if not has_form(&buffers.held[0], &self.of_x[form]):
                return None
            y = out
            if out is None:
                y = self.empty(self.shapes_of_y[form], self.engine.dtype)
            if not try_acquire(&buffers, y, PyBUF_RECORDS) or not has_form(&buffers.held[1], &self.of_y[form]):
                return None
            p.x, p.y = buffers.held[0].buf, buffers.held[1].buf
            if <char *>p.y < <char *>p.x + buffers.held[0].len and <char *>p.x < <char *>p.y + buffers.held[1].len:
                return None
            p.h0, p.c0 = self.states[self.now][0], self.states[self.now][1]
            p.h_n, p.c_n = self.states[1 - self.now][0], self.states[1 - self.now][1]
            if self.is_step:
                take_step(self.engine, p.workspace, &p)
            elif self.short:
                self.engine.table.forward(&p)
            else:
                with nogil:
                    self.engine.table.forward(&p)
            finish(&watch)
            if target is not None:
                target[...] = y
            self.now = 1 - self.now
        finally:
            release(&buffers)
            self.busy = 0
        return y

    def update(self, function):
        """Call `function(h, c)` with the arrays of the state; it returns a result, which is returned, and the next state.

        The next state is None to leave the state unchanged, or h and c, where None stands for zeros. No other call can use the state
        until `function` has returned. The state changes in one step.
        """
        cdef Buffers buffers
        cdef void *values[2]
        cdef int kinds = 1 if self.own_c is None else 2
        buffers.count = 0
        self.begin()
        try:
            result, state = function(self.own_h[self.now], None if self.own_c is None else self.own_c[self.now])
            if state is not None:
                for k in range(kinds):
                    values[k] = acquire_optional(&buffers, state[k], PyBUF_SIMPLE, self.state_sizes[k])
                for k in range(kinds):
                    if values[k] == NULL:
                        memset(self.states[1 - self.now][k], 0, self.state_sizes[k])
                    else:
                        memcpy(self.states[1 - self.now][k], values[k], self.state_sizes[k])
                self.now = 1 - self.now
        finally:
            release(&buffers)
            self.busy = 0
        return result

    def replace(self, packed, initial):
        """Replace the packed weights and the attribute `initial`. The state is unchanged. If this raises, nothing has changed."""
        cdef Buffers buffers
        cdef Py_buffer before
        buffers.count = 0
        self.begin()
        try:
            acquire(&buffers, packed, PyBUF_SIMPLE, self.engine.packed_size)
            before = self.buffers.held[0]
            self.buffers.held[0], buffers.held[0] = buffers.held[0], before
            self.packed, self.initial, self.problem.packed = packed, initial, self.buffers.held[0].buf
            if self.is_step:
                self.engine.table.prepare_step(&self.engine.stack, 1, self.problem.packed, self.problem.workspace)
        finally:
            release(&buffers)
            self.busy = 0

    cdef int begin(self) except -1:
        """Reserve the state for this call; it ends with busy = 0."""
        if self.own_h is None:
            raise ValueError("this call was prepared without states: use run()")
        with cython.critical_section(self):
            if self.busy == 1 + rnnfast_threads_forks():
                raise RuntimeError("this stream is in use by another thread: make a stream for each thread")
            self.busy = 1 + rnnfast_threads_forks()
        return 0


cdef long long number_of(id) except -1:
    """Return an id as an integer, or 0 if it cannot be an id."""
    try:
        number = <long long>PyNumber_Index(id)
    except (TypeError, OverflowError):
        return 0
    return max(number, 0)


cdef size_t aligned(size_t bytes) noexcept:
    """Round up to the alignment of buffers."""
    return (bytes + RNNFAST_ALIGNMENT - 1) & ~<size_t>(RNNFAST_ALIGNMENT - 1)


cdef enum Status:
    FREE
    IDLE
    BUSY


cdef class Weights:
    """The packed weights of a pool, and a prepared step with them. They do not change: a pool gets new ones as a whole."""
    cdef object initial                 # the state with which streams start
    cdef Buffers buffers
    cdef void *small                    # a prepared step that no thread uses at present, or NULL

    def __cinit__(self, Engine engine not None, packed not None, initial):
        self.initial = initial
        acquire(&self.buffers, packed, PyBUF_SIMPLE, engine.packed_size)

    def __dealloc__(self):
        release(&self.buffers)
        PyMem_Free(self.small)


cdef class Slots:
    """The streams of a pool. Each has a slot, which holds its state, and a status: a call that uses a stream makes it busy.

    The ids of slot k are k + 1, k + 1 + capacity, and so on, so an id tells its slot and is never reused.

    engine, packed: as for `forward`. `packed` must not change.
    states: arrays of h, and c for a cell with c, (layers, capacity, size).
    initial: any object, which `starts` returns and `replace` changes together with `packed`.
    pool: BufferPool for workspaces.
    empty: `empty(shape, dtype)` allocates results.
    """
    cdef Engine engine
    cdef Weights weights                # any thread may replace them: see `current`
    cdef object pool, empty
    cdef Buffers buffers                # of the states
    cdef void *states[2]
    cdef size_t widths[2]               # of a state, in bytes
    cdef int kinds                      # number of states: 2 for a cell with c
    cdef Py_ssize_t capacity, unused
    cdef Py_ssize_t *free               # the slots that are not in use, the next one last
    cdef long long *ids                 # of the last stream in each slot; 0 for a slot never used
    cdef char *status
    cdef int forks                      # at the last change of a status
    cdef size_t step_size               # of a prepared step of one row; 0 if such steps are calls of forward

    def __cinit__(self, Engine engine not None, packed not None, list states not None, initial=None, *, pool, empty):
        cdef Py_ssize_t k
        self.engine, self.pool, self.empty = engine, pool, empty
        self.weights = Weights(engine, packed, initial)
        self.forks = rnnfast_threads_forks()
        self.kinds = 2 if engine.info.has_c else 1
        self.capacity = self.unused = states[0].shape[1]
        if self.capacity < 1:
            raise ValueError("the capacity must be positive")
        self.free = <Py_ssize_t *>PyMem_Calloc(self.capacity, sizeof(Py_ssize_t))
        self.ids = <long long *>PyMem_Calloc(self.capacity, sizeof(long long))
        self.status = <char *>PyMem_Calloc(self.capacity, 1)
        if self.free == NULL or self.ids == NULL or self.status == NULL:
            raise MemoryError()
        for k in range(self.capacity):
            self.free[k] = self.capacity - 1 - k
        self.widths = [engine.output_size * engine.table.item, engine.hidden_size * engine.table.item]
        self.step_size = step_size(engine) if is_single_step(engine, 1, 1) else 0
        for k in range(self.kinds):
            self.states[k] = acquire(&self.buffers, states[k], PyBUF_WRITABLE, engine.num_layers * self.capacity * self.widths[k])

    def __dealloc__(self):
        release(&self.buffers)
        PyMem_Free(self.free)
        PyMem_Free(self.ids)
        PyMem_Free(self.status)

    def __len__(self):
        return self.capacity - self.unused

    def __contains__(self, id):
        return self.slot_of(number_of(id)) >= 0

    def members(self):
        """Return the ids of all streams."""
        cdef list ids = []
        with cython.critical_section(self):
            for k in range(self.capacity):
                if self.status[k] != FREE:
                    ids.append(self.ids[k])
        return ids

    cdef Py_ssize_t slot_of(self, long long number) noexcept:
        """Return the slot of a stream, -1 if no stream has this id."""
        cdef Py_ssize_t slot = (number - 1) % self.capacity if number > 0 else 0
        return slot if number > 0 and self.ids[slot] == number and self.status[slot] != FREE else -1

    cdef object unknown(self, id, long long number):
        """Return the error for an id that no stream has."""
        has_left = number > 0 and number <= self.ids[(number - 1) % self.capacity]
        return KeyError(f"{id!r} {'has left this pool' if has_left else 'is not an id of this pool'}")

    cdef void free_streams_of_parent(self) noexcept:
        """In a forked child, end the calls of threads that exist in its parent only. Precedes each use of BUSY."""
        if self.forks == rnnfast_threads_forks():
            return
        self.forks = rnnfast_threads_forks()
        for k in range(self.capacity):
            if self.status[k] == BUSY:
                self.status[k] = IDLE

    cdef object in_use(self, id):
        return RuntimeError(f"stream {id} is in use by another thread: wait until its step has returned")

    cdef void copy(self, int kind, Py_ssize_t slot, char *row, Py_ssize_t stride, bint write) noexcept:
        """Copy a state of a slot to an array of rows, one for each layer, or from it; NULL stands for zeros."""
        cdef size_t width = self.widths[kind]
        cdef Py_ssize_t layer
        cdef char *own
        for layer in range(self.engine.stack.layers):
            own = <char *>self.states[kind] + (layer * self.capacity + slot) * width
            if not write:
                memcpy(row + layer * stride, own, width)
            elif row == NULL:
                memset(own, 0, width)
            else:
                memcpy(own, row + layer * stride, width)

    cdef Weights current(self):
        """Return the present weights, which the caller then holds."""
        cdef Weights weights
        with cython.critical_section(self):
            weights = self.weights
        return weights

    def starts(self):
        """Return `initial`."""
        return self.current().initial

    def replace(self, packed, initial):
        """Replace the packed weights and `initial`, for all steps that begin later. If this raises, nothing has changed."""
        cdef Weights weights = Weights(self.engine, packed, initial)
        with cython.critical_section(self):
            self.weights = weights

    def join(self, h, c):
        """Start a stream from a state (layers, size), where None stands for zeros, and return its id."""
        cdef Buffers buffers
        cdef void *values[2]
        cdef Py_ssize_t slot
        cdef int k
        buffers.count = 0
        try:
            for k in range(self.kinds):
                values[k] = acquire_optional(&buffers, c if k else h, PyBUF_SIMPLE, self.engine.num_layers * self.widths[k])
            with cython.critical_section(self):
                if not self.unused:
                    raise RuntimeError(f"this pool is full, with {self.capacity} streams: call leave() for one, or create a larger pool")
                slot = self.free[self.unused - 1]
                id = self.ids[slot] + self.capacity if self.ids[slot] else slot + 1
                for k in range(self.kinds):
                    self.copy(k, slot, <char *>values[k], self.widths[k], True)
                self.ids[slot] = id
                self.status[slot] = IDLE
                self.unused -= 1
        finally:
            release(&buffers)
        return id

    def leave(self, id):
        """End a stream and return its state."""
        cdef Buffers buffers
        cdef long long number = number_of(id)
        cdef Py_ssize_t slot
        cdef int k
        cdef tuple state = (self.empty((self.engine.num_layers, self.engine.output_size), self.engine.dtype),)
        if self.kinds == 2:
            state += (self.empty((self.engine.num_layers, self.engine.hidden_size), self.engine.dtype),)
        buffers.count = 0
        try:
            for k in range(self.kinds):
                acquire(&buffers, state[k], PyBUF_WRITABLE, self.engine.num_layers * self.widths[k])
            with cython.critical_section(self):
                self.free_streams_of_parent()
                slot = self.slot_of(number)
                if slot < 0:
                    raise self.unknown(id, number)
                if self.status[slot] == BUSY:
                    raise self.in_use(id)
                for k in range(self.kinds):
                    self.copy(k, slot, <char *>buffers.held[k].buf, self.widths[k], False)
                self.status[slot] = FREE
                self.free[self.unused] = slot
                self.unused += 1
        finally:
            release(&buffers)
        return state if self.kinds == 2 else state[0]

    cdef int reserve(self, list ids, const long long *numbers, Py_ssize_t *slots, Py_ssize_t count) except -1:
        """Make streams busy, and write their slots; if this raises, no stream has changed."""
        cdef Py_ssize_t i, k, reserved = 0
        cdef bint is_repeated = False
        with cython.critical_section(self):
            self.free_streams_of_parent()
            for i in range(count):
                slots[i] = self.slot_of(numbers[i])
                if slots[i] < 0 or self.status[slots[i]] == BUSY:
                    break
                self.status[slots[i]] = BUSY
                reserved += 1
            if reserved < count:
                for k in range(reserved):
                    is_repeated = is_repeated or slots[k] == slots[reserved]
                    self.status[slots[k]] = IDLE
        if reserved == count:
            return 0
        if slots[reserved] < 0:
            raise self.unknown(ids[reserved], numbers[reserved])
        if is_repeated:
            raise ValueError(f"ids contains {ids[reserved]} twice, but each stream can take only one step in a call")
        raise self.in_use(ids[reserved])

    def step(self, list ids not None, x, out, check):
        """Process one step of some streams, as one batch, and return y.

        `check(x, out, count)` returns x (count, I), y (count, P), and a contiguous array to write, which is copied to y if it is
        another one. The streams are busy meanwhile. If anything raises, no state has changed.
        """
        cdef Py_ssize_t count = len(ids)
        cdef Py_ssize_t *slots = NULL
        cdef long long *numbers = <long long *>PyMem_Calloc(count + 1, sizeof(long long) + sizeof(Py_ssize_t))
        cdef bint reserved = False
        cdef Py_ssize_t i
        if numbers == NULL:
            raise MemoryError()
        slots = <Py_ssize_t *>(numbers + count + 1)
        try:
            for i in range(count):
                numbers[i] = number_of(ids[i])
            self.reserve(ids, numbers, slots, count)
            reserved = True
            x, y, result = check(x, out, count)
            if count:
                self.advance(slots, count, x, y, result)
        finally:
            if reserved:
                for i in range(count):
                    self.status[slots[i]] = IDLE
            PyMem_Free(numbers)
        return y

    cdef int advance(self, const Py_ssize_t *slots, Py_ssize_t count, x, y, result) except -1:
        cdef rnnfast_problem p
        cdef rnnfast_sizes sizes
        cdef Watch watch
        cdef Buffers buffers
        cdef Weights weights = self.current()
        cdef size_t item = self.engine.table.item
        cdef bint is_step = count == 1 and self.step_size
        cdef size_t total = 0, size[2]
        cdef void *small = NULL
        cdef char *at[4]                # h0, c0, h_n, c_n
        cdef Py_ssize_t i
        cdef int k
        if not is_step:
            if self.engine.table.sizes(&self.engine.stack, 1, count, NULL, &sizes):
                raise MemoryError()
            total = aligned(sizes.forward_workspace)
        for k in range(self.kinds):
            size[k] = aligned(self.engine.num_layers * count * self.widths[k])
            total += 2 * size[k]
        cdef Lease scratch = self.pool.lease(total)
        describe(&p, self.engine, &watch)
        buffers.count = 0
        try:
            p.packed = weights.buffers.held[0].buf
            p.T, p.N = 1, count
            p.x = acquire_array(&buffers, x, PyBUF_STRIDES, item, 2, count, self.engine.input_size)
            p.x_row = stride(&buffers, 0, item)
            p.x_step = count * p.x_row
            p.y = acquire(&buffers, result, PyBUF_WRITABLE, count * self.widths[0])
            p.y_row = self.engine.output_size
            p.y_step = count * p.y_row
            at[0] = <char *>acquire(&buffers, scratch.buffer, PyBUF_WRITABLE, total)
            if not is_step:
                p.workspace = at[0]
                at[0] += aligned(sizes.forward_workspace)
            at[2] = at[0] + size[0]
            p.h0, p.h_n = at[0], at[2]
            if self.kinds == 2:
                at[1] = at[2] + size[0]
                at[3] = at[1] + size[1]
                p.c0, p.c_n = at[1], at[3]
            for k in range(self.kinds):
                for i in range(count):
                    self.copy(k, slots[i], at[k] + i * self.widths[k], count * self.widths[k], False)
            if is_step:
                small = borrow_step(&weights.small, self.engine, p.packed, self.step_size)
                take_step(self.engine, aligned_in(small), &p)
            else:
                with nogil:
                    self.engine.table.forward(&p)
            finish(&watch)
            if y is not result:
                y[...] = result
            for k in range(self.kinds):
                for i in range(count):
                    self.copy(k, slots[i], at[2 + k] + i * self.widths[k], count * self.widths[k], True)
        finally:
            release(&buffers)
            if small != NULL:
                PyMem_Free(exchange(&weights.small, small))
        return 0


def cells(Engine engine, Py_ssize_t T, Py_ssize_t N, tape, out, Order order=None):
    """Write c of every step, (layers * directions, T, N, H), from the tape of a cell that has it."""
    cdef rnnfast_problem p
    cdef rnnfast_sizes sizes
    cdef Watch watch
    cdef Buffers buffers
    cdef Py_ssize_t states
    cdef void *at
    if not engine.has_c:
        raise ValueError(f"cell {engine.cell!r} has no c")
    engine.sizes(T, N, order)
    describe(&p, engine, &watch)
    p.T, p.N = T, N
    measure(&p, engine, order, &sizes, &states)
    buffers.count = 0
    try:
        p.tape = acquire(&buffers, tape, PyBUF_SIMPLE, sizes.tape)
        at = acquire(&buffers, out, PyBUF_WRITABLE, engine.state_bytes(T * N, engine.hidden_size))
        with nogil:
            engine.table.cells(&p, at)
        finish(&watch)
    finally:
        release(&buffers)


def fold(Engine engine, dy, Order order):
    """Add dy, (T, N, directions * P), at each masked step to the dy of the step whose output it repeats."""
    cdef rnnfast_problem p
    cdef Watch watch
    cdef Buffers buffers
    cdef size_t item = engine.table.item
    cdef void *at
    describe(&p, engine, &watch)
    p.order = order_of(order)
    buffers.count = 0
    try:
        at = acquire_array(&buffers, dy, PyBUF_WRITABLE, item, 3, -1, -1, engine.directions * engine.output_size)
        p.dy_step, p.dy_row = stride(&buffers, 0, item), stride(&buffers, 1, item)
        if order is not None:
            order.require(length(&buffers, 0), length(&buffers, 1))
        with nogil:
            engine.table.fold(&p, at)
        finish(&watch)
    finally:
        release(&buffers)


def linear_sizes(M, I, O, size_t item, str isa=None, str weights="full"):
    """(packed, backward_workspace) in bytes."""
    cdef rnnfast_linear p
    cdef size_t packed, backward_workspace
    cdef bint too_large = False
    p.weights = weights_of(weights, item)
    try:
        p.M, p.I, p.O = M, I, O
    except OverflowError:
        too_large = True
    if not too_large and (p.M < 1 or p.I < 1 or p.O < 1):
        raise ValueError(f"rows, features and outputs must be positive, got {M}, {I} and {O}")
    if too_large:
        raise linear_too_large(M, I, O)
    measure_linear(&p, table_of(item, isa), &packed, &backward_workspace)
    return packed, backward_workspace


cdef object linear_too_large(M, I, O):
    return ValueError(f"{M} rows of {I} features to {O} outputs would take more bytes than an address can count")


cdef int measure_linear(rnnfast_linear *p, const rnnfast_table *table, size_t *packed, size_t *workspace) except -1:
    if table.linear_sizes(p, packed, workspace):
        raise linear_too_large(p.M, p.I, p.O)
    return 0


cdef const rnnfast_table *describe_linear(rnnfast_linear *p, size_t item, str isa, str weights, Watch *watch) except NULL:
    memset(p, 0, sizeof(p[0]))
    p.weights = weights_of(weights, item)
    p.threads, p.poll = limit_of(0), start(watch)
    return table_of(item, isa)


def linear_pack(weight, bias, packed, str isa=None, str weights="full"):
    cdef rnnfast_linear p
    cdef Watch watch
    cdef Buffers buffers
    cdef size_t packed_size, workspace_size, item = weight.itemsize
    cdef const rnnfast_table *table = describe_linear(&p, item, isa, weights, &watch)
    buffers.count = 0
    try:
        p.weight = acquire_array(&buffers, weight, PyBUF_C_CONTIGUOUS, item, 2, -1, -1)
        p.O, p.I = length(&buffers, 0), length(&buffers, 1)
        p.bias = acquire_optional(&buffers, bias, PyBUF_SIMPLE, p.O * item)
        measure_linear(&p, table, &packed_size, &workspace_size)
        p.packed = acquire(&buffers, packed, PyBUF_WRITABLE, packed_size)
        with nogil:
            table.linear_pack(&p)
        finish(&watch)
    finally:
        release(&buffers)


def linear_forward(x, packed, y, str isa=None, str weights="full"):
    cdef rnnfast_linear p
    cdef Watch watch
    cdef Buffers buffers
    cdef size_t packed_size, workspace_size, item = x.itemsize
    cdef const rnnfast_table *table = describe_linear(&p, item, isa, weights, &watch)
    buffers.count = 0
    try:
        p.x = acquire_array(&buffers, x, PyBUF_STRIDES, item, 2, -1, -1)
        p.M, p.I = length(&buffers, 0), length(&buffers, 1)
        p.x_row = stride(&buffers, 0, item)
        p.y = acquire_array(&buffers, y, PyBUF_WRITABLE, item, 2, p.M, -1)
        p.O = length(&buffers, 1)
        p.y_row = stride(&buffers, 0, item)
        measure_linear(&p, table, &packed_size, &workspace_size)
        p.packed = acquire(&buffers, packed, PyBUF_SIMPLE, packed_size)
        with nogil:
            table.linear_forward(&p)
        finish(&watch)
    finally:
        release(&buffers)


def linear_backward(x, weight, dy, dx, dweight, dbias, workspace, str isa=None):
    cdef rnnfast_linear p
    cdef Watch watch
    cdef Buffers buffers
    cdef size_t packed_size, workspace_size, item = x.itemsize
    cdef const rnnfast_table *table = describe_linear(&p, item, isa, "full", &watch)
    buffers.count = 0
    try:
        p.x = acquire_array(&buffers, x, PyBUF_STRIDES, item, 2, -1, -1)
        p.M, p.I = length(&buffers, 0), length(&buffers, 1)
        p.x_row = stride(&buffers, 0, item)
        p.dy = acquire_array(&buffers, dy, PyBUF_STRIDES, item, 2, p.M, -1)
        p.O = length(&buffers, 1)
        p.dy_row = stride(&buffers, 0, item)
        p.weight = acquire(&buffers, weight, PyBUF_SIMPLE, p.O * p.I * item)
        p.dx = acquire_array(&buffers, dx, PyBUF_WRITABLE, item, 2, p.M, p.I)
        p.dx_row = stride(&buffers, 0, item)
        p.dweight = acquire(&buffers, dweight, PyBUF_WRITABLE, p.O * p.I * item)
        p.dbias = acquire_optional(&buffers, dbias, PyBUF_WRITABLE, p.O * item)
        measure_linear(&p, table, &packed_size, &workspace_size)
        p.workspace = acquire(&buffers, workspace, PyBUF_WRITABLE, workspace_size)
        with nogil:
            table.linear_backward(&p)
        finish(&watch)
    finally:
        release(&buffers)


def activation(str name, a, out, str isa=None):
    """Write the sigmoid or tanh of a contiguous array to another."""
    cdef Watch watch
    cdef Buffers buffers
    cdef size_t item = a.itemsize, done = 0, bytes
    cdef const rnnfast_table *table = table_of(item, isa)
    cdef void (*function)(const void *, void *, size_t) noexcept nogil
    cdef const char *source
    cdef char *target
    if name not in ("sigmoid", "tanh"):
        raise ValueError(f"name is {name!r}, but must be 'sigmoid' or 'tanh'")
    function = table.sigmoid if name == "sigmoid" else table.tanh
    start(&watch)
    buffers.count = 0
    try:
        source = <const char *>acquire(&buffers, a, PyBUF_SIMPLE)
        bytes = buffers.held[0].len
        target = <char *>acquire(&buffers, out, PyBUF_WRITABLE, bytes)
        with nogil:
            while done < bytes and not check_signals(&watch):
                function(source + done, target + done, min(bytes - done, ACTIVATION_BLOCK * item) // item)
                done += ACTIVATION_BLOCK * item
        finish(&watch)
    finally:
        release(&buffers)


# ---- the interface for other compiled packages: rnnfast_python.h imports this capsule ----

cdef rnnfast_api functions = rnnfast_api(
    abi=RNNFAST_ABI, api=sizeof(rnnfast_api), table=sizeof(rnnfast_table), cell_info=sizeof(rnnfast_cell_info),
    cells=RNNFAST_CELLS, functions=RNNFAST_ACTIVATIONS, stack=sizeof(rnnfast_stack),
    problem=sizeof(rnnfast_problem), sizes=sizeof(rnnfast_sizes), order=sizeof(rnnfast_order), linear=sizeof(rnnfast_linear),
    pattern=sizeof(rnnfast_pattern), isas=rnnfast_isas, get_table=rnnfast_get_table,
    count=rnnfast_count, arrange=rnnfast_arrange, fill=rnnfast_fill, use_openmp=rnnfast_use_openmp,
    step=sizeof(rnnfast_step), draw_zoneout=rnnfast_draw_zoneout)

api = PyCapsule_New(&functions, RNNFAST_CAPSULE, NULL)


# ---- handlers for XLA, which calls them without Python ----

cdef xla_error *xla_forward(const xla_frame *frame) noexcept nogil:
    return rnnfast_xla_forward(frame, limit_of(0))


cdef xla_error *xla_backward(const xla_frame *frame) noexcept nogil:
    return rnnfast_xla_backward(frame, limit_of(0))


xla = {"forward": PyCapsule_New(<void *>xla_forward, NULL, NULL), "backward": PyCapsule_New(<void *>xla_backward, NULL, NULL)}


# ---- operators for ONNX Runtime, which loads this module as a library of operators (csrc/ort_ops.h) ----

cdef int ort_threads() noexcept nogil:
    return limit_of(0)


rnnfast_ort_threads = ort_threads
