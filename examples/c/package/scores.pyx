# cython: language_level=3, boundscheck=False, wraparound=False
"""An LSTM inside another compiled package: no Python is run between its input and its output, and nothing is linked."""
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from rnnfast cimport (
    RNNFAST_ALIGNMENT, RNNFAST_KINDS, RNNFAST_LSTM, rnnfast_api, rnnfast_import, rnnfast_problem, rnnfast_sizes, rnnfast_table
)

cdef const rnnfast_api *api = rnnfast_import()      # ImportError if the rnnfast that is installed is another than this was compiled for


cdef void *aligned(void *memory) noexcept nogil:
    """The first place in `memory` where a buffer may begin."""
    cdef uintptr_t last = RNNFAST_ALIGNMENT - 1
    return <void *>((<uintptr_t>memory + last) & ~last)


cdef class LSTM:
    """One layer in float32: weight_ih (4*H, I), weight_hh (4*H, H), bias_ih and bias_hh (4*H,), as rnnfast.LSTM has them."""
    cdef const rnnfast_table *table
    cdef rnnfast_problem problem        # what all calls have in common
    cdef void *memory                   # of the packed weights, which any number of threads may read

    def __cinit__(self, const float[:, ::1] weight_ih, const float[:, ::1] weight_hh, const float[::1] bias_ih,
                  const float[::1] bias_hh):
        cdef rnnfast_problem *p = &self.problem
        cdef rnnfast_sizes sizes
        cdef const void *parameters[RNNFAST_KINDS]
        cdef Py_ssize_t H = weight_hh.shape[1], I = weight_ih.shape[1]
        if H == 0 or I == 0 or not 4 * H == weight_ih.shape[0] == weight_hh.shape[0] == bias_ih.shape[0] == bias_hh.shape[0]:
            raise ValueError("weight_ih, weight_hh, bias_ih and bias_hh must be (4*H, I), (4*H, H), (4*H,) and (4*H,)")
        self.table = api.get_table(api.isas()[0], sizeof(float))
        p.stack.cell, p.stack.layers, p.stack.directions = RNNFAST_LSTM, 1, 1
        p.stack.I, p.stack.H, p.stack.P, p.threads = I, H, H, 1
        if self.table.sizes(&p.stack, 1, 1, NULL, &sizes):
            raise ValueError("the weights take more bytes than an address can count")
        self.memory = malloc(sizes.packed + RNNFAST_ALIGNMENT)
        if self.memory == NULL:
            raise MemoryError()
        memset(parameters, 0, sizeof(parameters))
        parameters[0], parameters[1], parameters[2], parameters[3] = &weight_ih[0, 0], &weight_hh[0, 0], &bias_ih[0], &bias_hh[0]
        self.table.pack(&p.stack, parameters, aligned(self.memory), NULL, p.threads, p.poll)
        p.packed = aligned(self.memory)

    def __dealloc__(self):
        free(self.memory)

    def run(self, const float[:, :, ::1] x, float[:, :, ::1] y, float[:, ::1] h, float[:, ::1] c):
        """From x (T, N, I) and a state of zeros write the outputs, y (T, N, H), and the state after them, h and c (N, H)."""
        cdef rnnfast_problem p = self.problem
        cdef rnnfast_sizes sizes
        cdef Py_ssize_t H = p.stack.H
        cdef void *memory
        p.T, p.N = x.shape[0], x.shape[1]
        if p.T == 0 or p.N == 0 or x.shape[2] != p.stack.I:
            raise ValueError(f"x must be (T, N, {p.stack.I}), T and N at least 1")
        if (y.shape[0], y.shape[1], y.shape[2]) != (p.T, p.N, H) or not (p.N, H) == (h.shape[0], h.shape[1]) == (c.shape[0], c.shape[1]):
            raise ValueError(f"y must be {p.T, p.N, H}, h and c {p.N, H}")
        if self.table.sizes(&p.stack, p.T, p.N, NULL, &sizes):
            raise ValueError("x takes more bytes than an address can count")
        p.x, p.x_step, p.x_row = &x[0, 0, 0], p.N * p.stack.I, p.stack.I
        p.y, p.y_step, p.y_row = &y[0, 0, 0], p.N * H, H
        p.h_n, p.c_n = &h[0, 0], &c[0, 0]
        with nogil:
            memory = malloc(sizes.forward_workspace + RNNFAST_ALIGNMENT)
            if memory != NULL:
                p.workspace = aligned(memory)
                self.table.forward(&p)
                free(memory)
        if memory == NULL:
            raise MemoryError()
