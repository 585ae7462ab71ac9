# The C interface for Cython, documented in csrc/rnnfast.h. A package compiled with include_dirs=[rnnfast.get_include()] gets the
# functions from rnnfast_import(), at the top of its module, and links nothing:
#
#     from rnnfast cimport rnnfast_api, rnnfast_import
#     cdef const rnnfast_api *api = rnnfast_import()

from libc.stdint cimport uint32_t

cdef extern from "rnnfast.h":
    enum:
        RNNFAST_ABI
        RNNFAST_ALIGNMENT
        RNNFAST_KINDS
        RNNFAST_SUM_ROWS
        RNNFAST_OPENMP

    ptrdiff_t RNNFAST_ZONEOUT_BYTES(ptrdiff_t units) noexcept nogil

    ctypedef enum rnnfast_cell:
        RNNFAST_RNN_TANH
        RNNFAST_RNN_RELU
        RNNFAST_LSTM
        RNNFAST_GRU
        RNNFAST_GRU_RESET_BEFORE
        RNNFAST_GENERIC_RNN
        RNNFAST_GENERIC_LSTM
        RNNFAST_GENERIC_GRU
        RNNFAST_GENERIC_GRU_RESET_BEFORE
        RNNFAST_RNN_TANH_LEAKY
        RNNFAST_RNN_RELU_LEAKY
        RNNFAST_CELLS

    ctypedef struct rnnfast_cell_info:
        const char *name
        const char *gates
        const char *functions
        int columns, keeps_gates, has_c, keeps_aux, supports_projection
        rnnfast_cell generic
        const char *extra
        int extra_rows, extra_is_optional, extra_is_trained, elementwise, reads_x

    ctypedef enum rnnfast_function:
        RNNFAST_SIGMOID
        RNNFAST_TANH
        RNNFAST_RELU
        RNNFAST_AFFINE
        RNNFAST_LEAKY_RELU
        RNNFAST_THRESHOLDED_RELU
        RNNFAST_SCALED_TANH
        RNNFAST_HARD_SIGMOID
        RNNFAST_ELU
        RNNFAST_SOFTSIGN
        RNNFAST_SOFTPLUS
        RNNFAST_ACTIVATIONS

    ctypedef struct rnnfast_activation:
        rnnfast_function function
        double alpha, beta

    ctypedef enum rnnfast_weights:
        RNNFAST_FULL
        RNNFAST_BFLOAT16
        RNNFAST_INT8
        RNNFAST_INT8_PRODUCTS
        RNNFAST_WEIGHTS

    ctypedef struct rnnfast_stack:
        rnnfast_cell cell
        rnnfast_weights weights
        int directions, reverse
        ptrdiff_t layers, I, H, P
        rnnfast_activation activations[2][3]
        double clip
        int peepholes, coupled
        double zoneout_h, zoneout_c

    ctypedef struct rnnfast_sizes:
        size_t packed, packed_back, tape, forward_workspace, backward_workspace

    ctypedef struct rnnfast_poll:
        int (*stop)(void *context) noexcept nogil
        void *context

    ctypedef struct rnnfast_position:
        ptrdiff_t step, row

    ctypedef struct rnnfast_masked_step:
        rnnfast_position position
        ptrdiff_t before, after

    ctypedef struct rnnfast_order:
        ptrdiff_t steps, sequences
        const ptrdiff_t *begin
        const rnnfast_position *positions[2]
        ptrdiff_t blocks
        const ptrdiff_t *edges
        ptrdiff_t masked_count
        const rnnfast_masked_step *masked

    ctypedef struct rnnfast_problem:
        rnnfast_stack stack
        ptrdiff_t T, N
        const rnnfast_order *order
        int threads
        rnnfast_poll poll
        void *workspace
        const void *x
        ptrdiff_t x_step, x_row
        const void *h0
        const void *c0
        void *y
        ptrdiff_t y_step, y_row
        void *tape
        const void *masks
        ptrdiff_t masks_layer, masks_step, masks_row
        const void *recurrent_masks
        const void *zoneout_masks
        const void *packed
        void *h_n
        void *c_n
        const void *packed_back
        const void *dy
        ptrdiff_t dy_step, dy_row
        const void *dh_n
        const void *dc_n
        void *dx
        ptrdiff_t dx_step, dx_row
        void *dh
        ptrdiff_t dh_state, dh_step, dh_row
        void *dh0
        void *dc0
        void *const *dparameters

    ctypedef struct rnnfast_linear:
        ptrdiff_t M, I, O
        rnnfast_weights weights
        int threads
        rnnfast_poll poll
        void *packed
        const void *weight
        const void *bias
        const void *x
        ptrdiff_t x_row
        void *y
        ptrdiff_t y_row
        void *workspace
        const void *dy
        ptrdiff_t dy_row
        void *dx
        ptrdiff_t dx_row
        void *dweight
        void *dbias

    ctypedef struct rnnfast_step:
        const void *x
        const void *h0
        const void *c0
        void *y
        void *h_n
        void *c_n

    ctypedef struct rnnfast_members:
        rnnfast_problem problem
        ptrdiff_t members
        const void *const *parameters
        ptrdiff_t workspace, packed, packed_back, x, y, h, c, tape, dy, dx

    ctypedef struct rnnfast_table:
        const char *isa
        size_t item
        const rnnfast_cell_info *(*cell_info)(rnnfast_cell) noexcept nogil
        int (*sizes)(const rnnfast_stack *, ptrdiff_t T, ptrdiff_t N, const rnnfast_order *, rnnfast_sizes *) noexcept nogil
        void (*pack)(const rnnfast_stack *, const void *const *parameters, void *packed, void *packed_back, int threads,
                     rnnfast_poll) noexcept nogil
        void (*forward)(const rnnfast_problem *) noexcept nogil
        void (*backward)(const rnnfast_problem *) noexcept nogil
        void (*cells)(const rnnfast_problem *, void *c) noexcept nogil
        void (*fold)(const rnnfast_problem *, void *dy) noexcept nogil
        int (*linear_sizes)(const rnnfast_linear *, size_t *packed, size_t *backward_workspace) noexcept nogil
        void (*linear_pack)(const rnnfast_linear *) noexcept nogil
        void (*linear_forward)(const rnnfast_linear *) noexcept nogil
        void (*linear_backward)(const rnnfast_linear *) noexcept nogil
        void (*sigmoid)(const void *a, void *out, size_t count) noexcept nogil
        void (*tanh)(const void *a, void *out, size_t count) noexcept nogil
        int (*step_size)(const rnnfast_stack *, ptrdiff_t N, size_t *bytes) noexcept nogil
        void (*prepare_step)(const rnnfast_stack *, ptrdiff_t N, const void *packed, void *prepared) noexcept nogil
        void (*step)(void *prepared, const rnnfast_step *) noexcept nogil
        void (*members)(const rnnfast_members *) noexcept nogil

    ctypedef struct rnnfast_pattern:
        ptrdiff_t T, N
        const ptrdiff_t *lengths
        const unsigned char *mask
        ptrdiff_t mask_step, mask_row
        const unsigned char *reset
        ptrdiff_t reset_step, reset_row
        rnnfast_poll poll

    ctypedef struct rnnfast_openmp:
        void (*parallel)(void (*function)(void *) noexcept nogil, void *data, unsigned threads, unsigned flags) noexcept nogil
        int (*thread_num)() noexcept nogil
        int (*num_threads)() noexcept nogil
        int (*max_threads)() noexcept nogil
        int (*in_parallel)() noexcept nogil

    ctypedef struct rnnfast_api:
        size_t abi, api, table, cell_info, cells, functions, stack, problem, sizes, order, linear, pattern
        const char *const *(*isas)() noexcept nogil
        const rnnfast_table *(*get_table)(const char *isa, size_t item) noexcept nogil
        ptrdiff_t (*count)(const rnnfast_pattern *, rnnfast_order *) noexcept nogil
        void (*arrange)(const rnnfast_pattern *, rnnfast_order *, ptrdiff_t *sequences_of, ptrdiff_t *rows,
                        ptrdiff_t *scratch) noexcept nogil
        void (*fill)(const rnnfast_order *, int source, void *array, size_t bytes, ptrdiff_t step, ptrdiff_t row,
                     rnnfast_poll) noexcept nogil
        void (*use_openmp)(const rnnfast_openmp *) noexcept nogil
        size_t step
        void (*draw_zoneout)(const rnnfast_stack *, ptrdiff_t T, ptrdiff_t N, int has_c, const uint32_t *key, void *masks,
                             rnnfast_poll) noexcept nogil

    # Only for modules linked with the sources; all others find these in rnnfast_api.
    const char *const *rnnfast_isas() noexcept nogil
    const rnnfast_table *rnnfast_get_table(const char *isa, size_t item) noexcept nogil
    void rnnfast_use_openmp(const rnnfast_openmp *) noexcept nogil
    ptrdiff_t rnnfast_count(const rnnfast_pattern *, rnnfast_order *) noexcept nogil
    void rnnfast_arrange(const rnnfast_pattern *, rnnfast_order *, ptrdiff_t *sequences_of, ptrdiff_t *rows, ptrdiff_t *scratch) noexcept nogil
    void rnnfast_fill(const rnnfast_order *, int source, void *array, size_t bytes, ptrdiff_t step, ptrdiff_t row,
                      rnnfast_poll) noexcept nogil
    void rnnfast_draw_zoneout(const rnnfast_stack *, ptrdiff_t T, ptrdiff_t N, int has_c, const uint32_t *key, void *masks,
                              rnnfast_poll) noexcept nogil

cdef extern from "rnnfast_python.h":
    const char *RNNFAST_CAPSULE
    const rnnfast_api *rnnfast_import() except NULL
