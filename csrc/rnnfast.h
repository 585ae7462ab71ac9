/* rnnfast: RNN, LSTM and GRU layers, forward and back-propagation through time, on CPUs. The C interface.
 *
 * Shapes: T steps, N rows of a batch, I features of x, H units, P elements of the output h (P < H with a projection, otherwise P = H),
 * L layers, D directions (1 or 2), G gates (4 LSTM, 3 GRU, 1 RNN). Elements are float or double, as the table says. Matrices are
 * row-major. Strides count elements, not bytes, and may be negative.
 *
 *   x, dx                [T, N, I]        any stride between steps and between rows; the features of a row are contiguous
 *   y, dy                [T, N, D*P]      the same; the forward direction's P elements first
 *   h0, h_n, dh_n, dh0   [L*D, N, P]      contiguous; c likewise with H; layer 0 forward, layer 0 reverse, layer 1 forward ...
 *   masks                [L-1, T, N, D*P] any stride between layers, steps and rows, 0 too; factors for the output of each layer but the
 *                                         last (dropout)
 *   recurrent_masks      [L*D, N, P]      contiguous; factors for what all products with weight_hh read, the same for all steps
 *   zoneout_masks        [L*D, T, N, W]   contiguous bytes: bit j % 8 of byte j / 8 is set if h of unit j keeps its value at that step (zoneout);
 *                                         then, from byte RNNFAST_ZONEOUT_BYTES(P) on, for a cell with c, the same of c. W is
 *                                         RNNFAST_ZONEOUT_BYTES(P), plus RNNFAST_ZONEOUT_BYTES(H) for a cell with c
 *
 * parameters: six pointers for each layer and direction, NULL for those that do not exist, in torch's gate order (i,f,g,o; r,z,n):
 *   weight_ih [G*H, I or D*P], weight_hh [G*H, P], bias_ih [G*H], bias_hh [G*H], weight_hr [P, H], extra [rows, H]
 * extra holds values per unit that rnnfast_cell_info names: of a generic LSTM the peepholes of i, f and o, of a leaky RNN its leak.
 *
 * How to call it:
 * - Get a table from rnnfast_get_table(), or, without linking, from another library's rnnfast_api (below).
 * - Zero-initialise each struct, then set the fields you need; fields left at 0 or NULL are unused. T, N, I, H, P, layers, directions and
 *   threads are at least 1.
 * - Call sizes(), the only function that can fail. Allocate packed, packed_back, tape and workspace of at least those sizes, each at a
 *   multiple of RNNFAST_ALIGNMENT bytes. Other arrays need only the alignment of their elements.
 * - pack() the parameters whenever they have changed. A packed buffer can be shared by any number of concurrent calls.
 * - For single steps, as in an audio callback, prepare a step once (step_size, prepare_step) and call step for each. A prepared step is
 *   suitable for real-time threads: it allocates nothing, takes no lock and makes no system call. Its bits are those of forward.
 * - For gradients, call forward with a tape. Then call backward with packed_back of the same parameters and with the same tape, x, y, h0,
 *   c0 and masks of all kinds, unchanged since forward.
 *
 * Nothing here allocates memory, and nothing but sizes() fails: arguments are trusted. Buffers must not overlap unless stated otherwise.
 * All functions may be called from any number of threads at once, if each call has its own outputs, tape and workspace. The contents of
 * packed buffers, tapes and workspaces are private.
 *
 * Bitwise reproducibility: within one table, the y, states, dx and gradients of states of a row do not depend on the other rows of the
 * batch, on how the steps are divided into calls, on the number of threads, or on whether a tape is kept. The gradients of parameters do
 * not depend on the number of threads. All functions compute in the default environment of IEEE 754, whatever the calling thread has set:
 * they round to nearest, keep subnormals and trap nothing. They leave the caller's environment as it was, but for the flags of exceptions,
 * which they may set. Polls run in the caller's environment.
 *
 * Example (examples/c/ has one with a gradient, one with prepared steps, the command to compile the sources, and a compiled package that
 * does not link them):
 *
 *     #include "rnnfast.h"
 *     #include <stdio.h>
 *     #include <stdlib.h>
 *
 *     static void *buffer(size_t bytes)
 *     {
 *         return aligned_alloc(RNNFAST_ALIGNMENT, (bytes + RNNFAST_ALIGNMENT - 1) / RNNFAST_ALIGNMENT * RNNFAST_ALIGNMENT);
 *     }
 *
 *     int main(void)
 *     {
 *         enum { T = 7, N = 2, I = 3, H = 5 };
 *         static float x[T][N][I], W[4 * H][I], R[4 * H][H], b[4 * H] = {[2 * H] = 1}, y[T][N][H], h[N][H], c[N][H];
 *         const void *parameters[RNNFAST_KINDS] = {W, R, b};
 *         const rnnfast_table *table = rnnfast_get_table(rnnfast_isas()[0], sizeof(float));
 *         rnnfast_stack stack = {.cell = RNNFAST_LSTM, .directions = 1, .layers = 1, .I = I, .H = H, .P = H};
 *         rnnfast_problem p = {.stack = stack, .T = T, .N = N, .threads = 1};
 *         rnnfast_sizes sizes;
 *         if (table->sizes(&stack, T, N, NULL, &sizes)) return 1;
 *         void *packed = buffer(sizes.packed);
 *         p.workspace = buffer(sizes.forward_workspace);
 *         if (!packed || !p.workspace) return 1;
 *         table->pack(&stack, parameters, packed, NULL, p.threads, p.poll);
 *         p.packed = packed;
 *         p.x = x, p.x_step = N * I, p.x_row = I;
 *         p.y = y, p.y_step = N * H, p.y_row = H;
 *         p.h_n = h, p.c_n = c;
 *         table->forward(&p);
 *         printf("%s %g\n", table->isa, h[0][0]);
 *         free(p.workspace), free(packed);
 *     }
 */
#ifndef RNNFAST_H
#define RNNFAST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. Code compiled against one version does not work with another. It is raised when a struct, a function or a
 * meaning changes. It stays the same when entries are added at the ends of rnnfast_table and rnnfast_api, or cells and functions at the
 * ends of their enums: existing code then still works, and rnnfast_api tells whether a library has everything that a header declares. */
#define RNNFAST_ABI 6

enum { RNNFAST_ALIGNMENT = 64 }; /* bytes */

typedef enum {
    RNNFAST_RNN_TANH,
    RNNFAST_RNN_RELU,
    RNNFAST_LSTM,
    RNNFAST_GRU,              /* reset after the product: n = tanh(W x + b + r * (R h + b')) */
    RNNFAST_GRU_RESET_BEFORE, /* n = tanh(W x + b + R (r * h) + b') */
    RNNFAST_GENERIC_RNN,      /* generic cells read activations, clip, peepholes and coupled from the stack */
    RNNFAST_GENERIC_LSTM,
    RNNFAST_GENERIC_GRU,
    RNNFAST_GENERIC_GRU_RESET_BEFORE,
    RNNFAST_RNN_TANH_LEAKY, /* h = (1 - leak) h_before + leak tanh(W x + b + R h_before + b'), leak fixed, from 0 to 1 */
    RNNFAST_RNN_RELU_LEAKY,
    RNNFAST_MINGRU, /* elementwise cells: no weight_hh and bias_hh; elementwise_cells.h has their equations */
    RNNFAST_MINGRU_POSITIVE,
    RNNFAST_MINLSTM,
    RNNFAST_MINLSTM_POSITIVE,
    RNNFAST_SRU,        /* I = D*P = H: its highway adds x itself */
    RNNFAST_SRU_LINEAR, /* its highway adds a product of x */
    RNNFAST_INDRNN_TANH,
    RNNFAST_INDRNN_RELU,
    RNNFAST_CELLS
} rnnfast_cell;

/* The properties of a cell, for callers that handle all cells uniformly. */
typedef struct {
    const char *name;        /* "lstm" */
    const char *gates;       /* a letter for each gate, in torch's order: "ifgo" */
    const char *functions;   /* default activations of the gates, the candidate, and c for h: "sigmoid tanh tanh"; NULL: generic */
    int columns;             /* of H elements in the gates buffer: one per gate, one more for a GRU that resets after the product */
    int keeps_gates;         /* the tape holds the gates buffer of every step */
    int has_c;               /* the state is h and c */
    int keeps_aux;           /* the tape holds the input of a second product of every step */
    int supports_projection; /* P may be less than H */
    rnnfast_cell generic;    /* the cell that computes the same equations with other activations; RNNFAST_CELLS if none exists */
    const char *extra;       /* name of the per-unit extras, "peephole"; NULL if the cell has none */
    int extra_rows;          /* the extras are [extra_rows, H] */
    int extra_is_optional;   /* there are extras only if the stack has peepholes */
    int extra_is_trained;    /* backward adds to the gradient of the extras */
    int elementwise;         /* a unit depends on its own state only: parameters 1 and 3, weight_hh and bias_hh, are NULL */
    int reads_x;             /* x is added to h, so that all layers have inputs of H elements */
} rnnfast_cell_info;

/* Activations, functions of x with the constants alpha and beta. */
typedef enum {
    RNNFAST_SIGMOID,          /* 1 / (1 + e^-x) */
    RNNFAST_TANH,             /* tanh x */
    RNNFAST_RELU,             /* max(0, x) */
    RNNFAST_AFFINE,           /* alpha x + beta */
    RNNFAST_LEAKY_RELU,       /* x where x >= 0, else alpha x */
    RNNFAST_THRESHOLDED_RELU, /* x where x >= alpha, else 0 */
    RNNFAST_SCALED_TANH,      /* alpha tanh(beta x) */
    RNNFAST_HARD_SIGMOID,     /* alpha x + beta, from 0 to 1 */
    RNNFAST_ELU,              /* x where x >= 0, else alpha (e^x - 1) */
    RNNFAST_SOFTSIGN,         /* x / (1 + |x|) */
    RNNFAST_SOFTPLUS,         /* log(1 + e^x) */
    RNNFAST_ACTIVATIONS
} rnnfast_function;

typedef struct {
    rnnfast_function function;
    double alpha, beta;
} rnnfast_activation;

/* How pack() stores weight_ih, weight_hh and weight_hr for forward, and how forward multiplies by them. Everything else stays in the element
 * type, and so does packed_back. The narrow kinds exist for float. */
typedef enum {
    RNNFAST_FULL,          /* in the element type */
    RNNFAST_BFLOAT16,      /* the upper half of a float, rounded to nearest even */
    RNNFAST_INT8,          /* multiples from -127 to 127 of a scale for each row of a weight: its largest / 127, rounded up to 16 bits */
    RNNFAST_INT8_PRODUCTS, /* the same; x and h are rounded in the same way, and products are those of the integers */
    RNNFAST_WEIGHTS
} rnnfast_weights;

typedef struct {
    rnnfast_cell cell;
    rnnfast_weights weights;
    int directions;
    int reverse; /* with one direction: run it from the last step to the first */
    ptrdiff_t layers, I, H;
    ptrdiff_t P; /* H, or less with a projection, which the cell must support */
    /* generic cells only */
    rnnfast_activation activations[2][3]; /* of each direction: of the gates, of the candidate, of c in h */
    double clip;                          /* arguments of activations are clipped to -clip .. clip; 0: no clipping */
    int peepholes;                        /* LSTM: i and f see c of the step before, o sees c */
    int coupled;                          /* LSTM: f = 1 - i */
    /* Zoneout of h and of c, probabilities: without zoneout_masks, h = zoneout_h * h_before + (1 - zoneout_h) * (h of the cell). */
    double zoneout_h, zoneout_c;
} rnnfast_stack;

typedef struct {        /* bytes */
    size_t packed;      /* weights as forward reads them */
    size_t packed_back; /* weights as backward reads them */
    size_t tape;
    size_t forward_workspace;
    size_t backward_workspace;
} rnnfast_sizes;

/* Called from time to time on the calling thread during a long call. If it returns nonzero, the call returns soon and its outputs are
 * undefined. */
typedef struct {
    int (*stop)(void *context);
    void *context;
} rnnfast_poll;

/* Where a call takes `threads`, the number may carry this flag: then its threads are those of the OpenMP runtime given to
 * rnnfast_use_openmp, if that has a team of at most `threads` threads: a single one if its host wants no more. Such threads often spin for
 * a while after the host's own work, and would keep other threads off their processors. */
enum { RNNFAST_OPENMP = 1 << 20 };

typedef struct { /* functions of libgomp, which other OpenMP runtimes offer as well */
    void (*parallel)(void (*function)(void *), void *data, unsigned threads, unsigned flags);  /* GOMP_parallel */
    int (*thread_num)(void), (*num_threads)(void), (*max_threads)(void), (*in_parallel)(void); /* omp_get_*, omp_in_parallel */
} rnnfast_openmp;

enum { RNNFAST_KINDS = 6 }; /* parameters of a layer and direction */

/* The bytes of the bits of some units in zoneout_masks. */
#define RNNFAST_ZONEOUT_BYTES(units) (((units) + 63) / 64 * 8)

enum { RNNFAST_SUM_ROWS = 256 }; /* rows in one chain of a weight gradient; longer chains would lose accuracy */

typedef struct { /* a step and a row of x and y */
    ptrdiff_t step, row;
} rnnfast_position;

/* A step outside all sequences, and the nearest steps of its row and sequence before and after it in time; -1: none. */
typedef struct {
    rnnfast_position position;
    ptrdiff_t before, after;
} rnnfast_masked_step;

/* A ragged batch: sequences of different lengths, each of some steps of one row in order of time, which are computed side by side. They
 * are numbered from the longest to the shortest, so those that take a step are always the first ones. x, dy, y and dx are read and
 * written at the positions of the entries only. States are those of sequences, [L*D, sequences, P or H]: the caller decides from which state
 * each one starts.
 * rnnfast_arrange writes the arrays below, through their const pointers; all other functions only read them. */
typedef struct {
    ptrdiff_t steps, sequences;           /* steps of the longest; a sequence may have none */
    const ptrdiff_t *begin;               /* [steps + 1]: step s has the entries begin[s] .. begin[s + 1] - 1 */
    const rnnfast_position *positions[2]; /* of the entries from begin[0] on, in the order of the forward and of the reverse direction */
    ptrdiff_t blocks;
    const ptrdiff_t *edges; /* [blocks + 1]: the steps at which sums for gradients of weights begin: 0 ... steps */
    ptrdiff_t masked_count;
    const rnnfast_masked_step *masked;
} rnnfast_order;

typedef struct {
    rnnfast_stack stack;
    ptrdiff_t T, N;
    const rnnfast_order *order; /* NULL: N rows of T steps */
    int threads;                /* at most, and maybe RNNFAST_OPENMP */
    rnnfast_poll poll;          /* optional: stop may be NULL */
    void *workspace;

    const void *x;
    ptrdiff_t x_step, x_row;
    const void *h0, *c0; /* NULL: zeros */
    void *y;             /* written by forward, read by backward */
    ptrdiff_t y_step, y_row;
    void *tape;        /* written by forward, read by backward; NULL in forward: no gradients needed */
    const void *masks; /* optional */
    ptrdiff_t masks_layer, masks_step, masks_row;
    const void *recurrent_masks; /* optional; with an order, those of sequences */
    const void *zoneout_masks;   /* optional; unused unless the stack has zoneout */

    const void *packed; /* forward only, with h_n and c_n */
    void *h_n, *c_n;

    const void *packed_back; /* from here on backward only */
    const void *dy;          /* NULL: zeros */
    ptrdiff_t dy_step, dy_row;
    const void *dh_n, *dc_n; /* NULL: zeros */
    void *dx;
    ptrdiff_t dx_step, dx_row;
    void *dh; /* optional: [L*D, T, N, P], the total derivative by h of each step */
    ptrdiff_t dh_state, dh_step, dh_row;
    void *dh0, *dc0;
    void *const *dparameters; /* in the order of parameters, contiguous; gradients are added to them */
} rnnfast_problem;

typedef struct { /* y = x W' + b over M rows */
    ptrdiff_t M, I, O;
    rnnfast_weights weights; /* of packed */
    int threads;
    rnnfast_poll poll;
    void *packed;       /* W and b: written by linear_pack, read by linear_forward */
    const void *weight; /* [O, I]; read by linear_pack and linear_backward */
    const void *bias;   /* [O]; optional; read by linear_pack */
    const void *x;      /* [M, I], rows x_row apart; y, dy and dx likewise */
    ptrdiff_t x_row;
    void *y;
    ptrdiff_t y_row;
    void *workspace; /* from here on linear_backward only */
    const void *dy;
    ptrdiff_t dy_row;
    void *dx;
    ptrdiff_t dx_row;
    void *dweight, *dbias; /* gradients are added to them; dbias is optional */
} rnnfast_linear;

typedef struct {         /* the arrays of a prepared step, contiguous; c0 and c_n only of cells with c */
    const void *x;       /* [N, I] */
    const void *h0, *c0; /* NULL: zeros */
    void *y;             /* [N, D*P] */
    void *h_n, *c_n;     /* may be h0 and c0, to update a state in place */
} rnnfast_step;

/* Many networks of one shape, each with its own weights. The arrays of member m begin m times a stride after those of the problem; a stride
 * of 0 shares an array. Parameters and dparameters are the pointers of all members, one member after the other. */
typedef struct {
    rnnfast_problem problem;       /* of member 0; its threads and poll are those of the whole call */
    ptrdiff_t members;             /* at least 1 */
    const void *const *parameters; /* written to packed and packed_back, where these are not NULL, before the pass; NULL: packed already */
    ptrdiff_t workspace;           /* strides, in bytes; the workspace has one part for each of the threads */
    ptrdiff_t packed, packed_back, x, y, h, c, tape, dy, dx;
} rnnfast_members;

typedef struct { /* the functions of an element type and instruction set */
    const char *isa;
    size_t item;                                         /* bytes of an element */
    const rnnfast_cell_info *(*cell_info)(rnnfast_cell); /* NULL if the cell does not exist */
    /* Returns nonzero if a size overflows, or the cell does not exist or does not support P. The order is optional. */
    int (*sizes)(const rnnfast_stack *, ptrdiff_t T, ptrdiff_t N, const rnnfast_order *, rnnfast_sizes *);
    /* packed and packed_back are optional. */
    void (*pack)(const rnnfast_stack *, const void *const *parameters, void *packed, void *packed_back, int threads, rnnfast_poll);
    void (*forward)(const rnnfast_problem *);
    void (*backward)(const rnnfast_problem *);
    void (*cells)(const rnnfast_problem *, void *c); /* writes c of each step, [L*D, T, N, H], from the tape of a cell with c */
    void (*fold)(const rnnfast_problem *, void *dy); /* adds dy at masked steps to the dy whose output they repeat; strides of dy */
    int (*linear_sizes)(const rnnfast_linear *, size_t *packed, size_t *backward_workspace); /* nonzero: a size overflows */
    void (*linear_pack)(const rnnfast_linear *);
    void (*linear_forward)(const rnnfast_linear *);
    void (*linear_backward)(const rnnfast_linear *);
    void (*sigmoid)(const void *a, void *out, size_t count); /* out may be a */
    void (*tanh)(const void *a, void *out, size_t count);
    /* A prepared step. step_size returns nonzero where sizes() does. prepare_step fills `prepared`, which then belongs to one thread at a
     * time and refers to `packed`. step computes one step; it is suitable for real-time threads. */
    int (*step_size)(const rnnfast_stack *, ptrdiff_t N, size_t *bytes);
    void (*prepare_step)(const rnnfast_stack *, ptrdiff_t N, const void *packed, void *prepared);
    void (*step)(void *prepared, const rnnfast_step *);
    /* Runs forward, or backward if the problem has dx, for all members. Bitwise, each gets the results of a call of its own. */
    void (*members)(const rnnfast_members *);
} rnnfast_table;

/* The valid steps of a ragged batch: step t of row n is valid if t < lengths[n] and mask[t, n]; at reset[t, n] a new sequence of row n
 * begins. Each is optional; without any, all steps are valid and no row is cut. Strides count bytes; any nonzero value is true. */
typedef struct {
    ptrdiff_t T, N;
    const ptrdiff_t *lengths; /* [N] */
    const unsigned char *mask;
    ptrdiff_t mask_step, mask_row;
    const unsigned char *reset;
    ptrdiff_t reset_step, reset_row;
    rnnfast_poll poll; /* optional */
} rnnfast_pattern;

/* Sets steps, sequences and masked_count of the pattern's order; returns the number of its entries. The arrays of the pattern must not
 * change before rnnfast_arrange has returned: it writes as many elements as were counted here. */
ptrdiff_t rnnfast_count(const rnnfast_pattern *, rnnfast_order *);

/* Writes the order to begin [steps + 1], edges [steps + 1], positions [2][entries] and masked, and sets blocks. The sequences of row n, in
 * order of time, are sequences_of[rows[n]] .. sequences_of[rows[n + 1] - 1]: sequences_of has `sequences` elements, rows N + 1.
 * scratch: steps + 2 + sequences + T elements. */
void rnnfast_arrange(const rnnfast_pattern *, rnnfast_order *, ptrdiff_t *sequences_of, ptrdiff_t *rows, ptrdiff_t *scratch);

/* Writes `bytes` bytes at all masked steps of an array [T, N, bytes], whose strides count bytes: zeros, or, if `from` is -1 or 1, the
 * values of the step before or after, and zeros if there is none. */
void rnnfast_fill(const rnnfast_order *, int from, void *array, size_t bytes, ptrdiff_t step, ptrdiff_t row, rnnfast_poll);

/* Draws zoneout_masks for a call: each bit is set with the stack's probability, to 32 binary digits. It depends on the key, the layer and
 * direction, the step, the row and the unit, and on nothing else. */
void rnnfast_draw_zoneout(const rnnfast_stack *, ptrdiff_t T, ptrdiff_t N, int has_c, const uint32_t key[2], void *masks, rnnfast_poll);

/* Makes an OpenMP runtime known; all its functions must exist. Waits for calls on several threads. Ignored in forked children,
 * where most runtimes hang. */
void rnnfast_use_openmp(const rnnfast_openmp *);

/* The instruction sets that run here, best first, as a constant NULL-terminated array. */
const char *const *rnnfast_isas(void);

/* The table of an element type (4 or 8 bytes) and an instruction set; NULL if it does not run here. */
const rnnfast_table *rnnfast_get_table(const char *isa, size_t item);

/* The functions above, for a caller that is not linked with them. Before using any, compare with your own header: unless abi equals
 * RNNFAST_ABI, nothing else may be read; the next five must be at least your own; the sizes of structs that you fill must equal yours.
 * rnnfast_python.h does so. */
typedef struct {
    size_t abi;
    size_t api, table, cell_info; /* bytes of the structs that the library fills */
    size_t cells, functions;      /* RNNFAST_CELLS, RNNFAST_ACTIVATIONS */
    size_t stack, problem, sizes, order, linear, pattern;
    const char *const *(*isas)(void);
    const rnnfast_table *(*get_table)(const char *isa, size_t item);
    ptrdiff_t (*count)(const rnnfast_pattern *, rnnfast_order *);
    void (*arrange)(const rnnfast_pattern *, rnnfast_order *, ptrdiff_t *sequences_of, ptrdiff_t *rows, ptrdiff_t *scratch);
    void (*fill)(const rnnfast_order *, int from, void *array, size_t bytes, ptrdiff_t step, ptrdiff_t row, rnnfast_poll);
    void (*use_openmp)(const rnnfast_openmp *);
    size_t step; /* of rnnfast_step */
    void (*draw_zoneout)(const rnnfast_stack *, ptrdiff_t T, ptrdiff_t N, int has_c, const uint32_t key[2], void *masks, rnnfast_poll);
} rnnfast_api;

#ifdef __cplusplus
}
#endif

#endif
