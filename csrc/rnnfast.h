/* rnnfast: RNN, LSTM and GRU layers, forward and back-propagation through time, on a CPU. The C interface.
 *
 * Letters: T steps of time, N rows of a batch, I features of x, H units, P size of the output h (P < H with a projection, else
 * P = H), L layers, D directions (1 or 2), G gates (4 LSTM, 3 GRU, 1 RNN). All numbers are of the table's type, float or double;
 * all matrices are row-major; strides count numbers, not bytes, and may be negative.
 *
 *   x, dx                [T, N, I]      any stride between steps and between rows, features side by side
 *   y, dy                [T, N, D*P]    the same; the forward direction's P first
 *   h0, h_n, dh_n, dh0   [L*D, N, P]    contiguous; c likewise with H; layer 0 forward, layer 0 reverse, layer 1 forward ...
 *   masks                [L-1, T, N, D*P] contiguous: what the output of each layer but the last is multiplied by (dropout)
 *
 * parameters: six pointers for each layer and direction, NULL where there is none, in torch's gate order (i,f,g,o; r,z,n):
 *   weight_ih [G*H, I or D*P], weight_hh [G*H, P], bias_ih [G*H], bias_hh [G*H], weight_hr [P, H], peephole [3, H] (i, f, o)
 *
 * What a caller does:
 * - Take a table by rnnfast_get_table(), or out of the functions that another library hands over: rnnfast_api, below.
 * - Begin each struct as zeros, and set what it needs: what is zero or NULL asks for nothing. T, N, I, H, P, layers, directions and
 *   threads are 1 or more.
 * - Ask sizes(), the only thing that can fail, and hand in memory of at least so many bytes for packed, packed_back, tape and
 *   workspace, each beginning at a multiple of RNNFAST_ALIGNMENT bytes. All else need only be aligned as its numbers are.
 * - pack() the parameters again whenever they have changed. What is packed may serve any number of calls, also at once.
 * - For a gradient: call forward with a tape, then backward with the same tape, x, y, h0, c0 and masks, all as forward left them,
 *   and with packed_back of the same parameters.
 *
 * Nothing here allocates memory, and nothing but sizes() fails: arguments are trusted. Buffers may not overlap, unless it is said.
 * The functions may be called from any number of threads at once, each call with its own outputs, tape and workspace.
 *
 * The same bits: within one table, y, states, dx and the gradients of states of a row do not depend on the other rows of the
 * batch, on how the steps are divided into calls, on the number of threads, or on whether a tape is kept; the gradients of
 * parameters do not depend on the number of threads.
 *
 * An example; examples/c/ has a gradient too, how to compile the sources, and a compiled package that needs none of them:
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

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface: what was compiled against one works with no other. It is raised when a struct, a function or a
 * meaning is changed, and left where entries are added at the ends of rnnfast_table and rnnfast_api, or cells and functions at the
 * ends of their enums: then what was compiled before still works. rnnfast_api tells whether the library has what a header has. */
#define RNNFAST_ABI 2

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
    RNNFAST_CELLS
} rnnfast_cell;

/* The facts about a cell, for callers that handle every cell alike. */
typedef struct {
    const char *name;        /* "lstm" */
    const char *gates;       /* a letter for each gate, in torch's order: "ifgo" */
    int columns;             /* of H elements in the gates buffer: one per gate, one more for a GRU that resets after the product */
    int keeps_gates;         /* the tape holds the gates buffer of every step */
    int has_c;               /* the state is h and c */
    int keeps_aux;           /* the tape holds a second product's input of every step */
    int supports_projection; /* P may be less than H */
    rnnfast_cell generic;    /* the cell that computes the same equations with other activations; RNNFAST_CELLS if there is none */
    const char *extra;       /* name of parameter 5, "peephole"; NULL: the cell has none */
    int extra_rows;          /* parameter 5 is [extra_rows, H] */
    int extra_is_optional;   /* parameter 5 is there only if the stack has peepholes */
    int extra_is_trained;    /* backward adds to the gradient of parameter 5 */
} rnnfast_cell_info;

/* Of x, with alpha and beta. */
typedef enum {
    RNNFAST_SIGMOID,          /* 1 / (1 + e^-x) */
    RNNFAST_TANH,             /* */
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

typedef struct {
    rnnfast_cell cell;
    int directions;
    int reverse; /* with one direction: run it from the last step to the first */
    ptrdiff_t layers, I, H;
    ptrdiff_t P; /* equal to H where there is no projection */
    /* generic cells only */
    rnnfast_activation activations[2][3]; /* of each direction: of the gates, of the candidate, of c on its way to h */
    double clip;                          /* the inputs of all activations are kept from -clip to clip; 0: as they are */
    int peepholes;                        /* of an LSTM: i and f see c before, o sees c */
    int coupled;                          /* of an LSTM: f = 1 - i */
} rnnfast_stack;

typedef struct {        /* bytes */
    size_t packed;      /* weights as forward reads them */
    size_t packed_back; /* weights as backward reads them */
    size_t tape;
    size_t forward_workspace;
    size_t backward_workspace;
} rnnfast_sizes;

/* Called now and then on the calling thread during a long call; not 0 asks to stop: the call then returns soon, its outputs rubbish. */
typedef struct {
    int (*stop)(void *context);
    void *context;
} rnnfast_poll;

enum { RNNFAST_KINDS = 6 }; /* of parameters of a layer and direction */

enum { RNNFAST_SUM_ROWS = 256 }; /* in one chain of a weight's gradient: a longer chain would lose accuracy */

typedef struct { /* a step and a row of x and y */
    ptrdiff_t step, row;
} rnnfast_place;

typedef struct { /* a place that is in no sequence, and the steps of the same row that come next to it in its sequence; -1: none */
    rnnfast_place place;
    ptrdiff_t before, after;
} rnnfast_gap;

/* Batches whose rows are not of one length: made of sequences, each of some steps of one row in their order, which go through time side
 * by side. Sequences are numbered from the longest to the shortest, so those that take a step are always the first ones. Nothing but
 * the places of their entries is read or written of x, dy and y, dx. States are those of sequences: [L*D, sequences, P or H]. */
typedef struct {
    ptrdiff_t steps, sequences;     /* steps of the longest; sequences may have none */
    const ptrdiff_t *begin;         /* [steps + 1]: those that take step s have the entries begin[s] .. begin[s + 1] - 1 */
    const rnnfast_place *places[2]; /* of the entries from begin[0] on, as the forward and as the reverse direction goes */
    ptrdiff_t blocks;
    const ptrdiff_t *edges; /* [blocks + 1]: steps at which sums for the gradients of weights begin: 0 ... steps */
    ptrdiff_t gap_count;
    const rnnfast_gap *gaps;
} rnnfast_order;

typedef struct {
    rnnfast_stack stack;
    ptrdiff_t T, N;
    const rnnfast_order *order; /* NULL: N rows of T steps */
    int threads;                /* at most so many */
    rnnfast_poll poll;          /* stop may be NULL */
    void *workspace;

    const void *x;
    ptrdiff_t x_step, x_row;
    const void *h0, *c0; /* NULL: zeros */
    void *y;             /* written by forward, read by backward */
    ptrdiff_t y_step, y_row;
    void *tape;        /* written by forward, read by backward; NULL: forward keeps nothing */
    const void *masks; /* NULL: none */

    const void *packed; /* forward only */
    void *h_n, *c_n;

    const void *packed_back; /* the rest: backward only */
    const void *dy;          /* NULL: zeros */
    ptrdiff_t dy_step, dy_row;
    const void *dh_n, *dc_n; /* NULL: zeros */
    void *dx;
    ptrdiff_t dx_step, dx_row;
    void *dh; /* [L*D, T, N, P]: the whole derivative by h of each step; NULL: is not wanted */
    ptrdiff_t dh_state, dh_step, dh_row;
    void *dh0, *dc0;
    void *const *dparameters; /* in the order of parameters, contiguous; gradients are added to them */
} rnnfast_problem;

typedef struct { /* y = x W' + b over M rows */
    ptrdiff_t M, I, O;
    int threads;
    rnnfast_poll poll;
    void *packed;       /* W and b: written by linear_pack, read by linear_forward */
    const void *weight; /* [O, I]; read by linear_pack and linear_backward */
    const void *bias;   /* [O], or NULL; linear_pack */
    const void *x;      /* [M, I], rows x_row apart; so for y, dy, dx */
    ptrdiff_t x_row;
    void *y;
    ptrdiff_t y_row;
    void *workspace; /* this and the rest: linear_backward */
    const void *dy;
    ptrdiff_t dy_row;
    void *dx;
    ptrdiff_t dx_row;
    void *dweight, *dbias; /* gradients are added to them; dbias may be NULL */
} rnnfast_linear;

typedef struct { /* one for each number type and instruction set */
    const char *isa;
    size_t item; /* bytes of a number */
    /* not 0: a product of sizes overflows; the order may be NULL */
    int (*sizes)(const rnnfast_stack *, ptrdiff_t T, ptrdiff_t N, const rnnfast_order *, rnnfast_sizes *);
    void (*pack)(const rnnfast_stack *, const void *const *parameters, void *packed, void *packed_back, int threads, rnnfast_poll);
    void (*forward)(const rnnfast_problem *);
    void (*backward)(const rnnfast_problem *);
    void (*cells)(const rnnfast_problem *, void *c); /* [L*D, T, N, H]: c of each step, from the tape of a cell that has it */
    void (*fold)(const rnnfast_problem *, void *dy); /* adds dy at the gaps to the dy whose outputs they repeat; as strided as dy */
    int (*linear_sizes)(const rnnfast_linear *, size_t *packed, size_t *backward_workspace); /* as sizes */
    void (*linear_pack)(const rnnfast_linear *);
    void (*linear_forward)(const rnnfast_linear *);
    void (*linear_backward)(const rnnfast_linear *);
    void (*sigmoid)(const void *a, void *out, size_t count);
    void (*tanh)(const void *a, void *out, size_t count);
    const rnnfast_cell_info *(*cell_info)(rnnfast_cell); /* NULL if there is no such cell */
} rnnfast_table;

/* Which steps of a batch there are: step t of row n is if t < lengths[n] and mask[t, n]; at reset[t, n] a new sequence of row n begins.
 * Each may be NULL: all are, none begins. Strides count bytes; what is not 0 is true. */
typedef struct {
    ptrdiff_t T, N;
    const ptrdiff_t *lengths; /* [N] */
    const unsigned char *mask;
    ptrdiff_t mask_step, mask_row;
    const unsigned char *reset;
    ptrdiff_t reset_step, reset_row;
} rnnfast_pattern;

/* The sizes of its order: steps, sequences, gap_count, and the entries, which are returned. */
ptrdiff_t rnnfast_count(const rnnfast_pattern *, rnnfast_order *);

/* The order, into begin [steps + 1], edges [steps + 1], places [2][entries] and gaps; blocks is set. A row's own sequences, in order of
 * time, are those at sequences_of[rows[n]] .. sequences_of[rows[n + 1] - 1], which has room for all sequences, and rows for N + 1.
 * scratch: steps + 2 + sequences + T numbers. */
void rnnfast_arrange(const rnnfast_pattern *, rnnfast_order *, ptrdiff_t *sequences_of, ptrdiff_t *rows, ptrdiff_t *scratch);

/* Of an array [T, N, bytes] the bytes at all gaps, of strides in bytes: zeros, or where `from` is -1 or 1 what is at the step before or
 * after, and zeros where there is none. */
void rnnfast_fill(const rnnfast_order *, int from, void *array, size_t bytes, ptrdiff_t step, ptrdiff_t row);

/* The instruction sets that run here, best first, as a NULL-terminated array. */
const char *const *rnnfast_isas(void);

/* The table of a number type (4 or 8 bytes) and an instruction set; NULL if it does not run here. */
const rnnfast_table *rnnfast_get_table(const char *isa, size_t item);

/* The functions above, for a caller that is not linked with them. Before it uses any, it compares the numbers with its own header's:
 * abi must be RNNFAST_ABI, or nothing else may be read; the next four at least its own; the sizes of structs that it fills the same. */
typedef struct {
    size_t abi;
    size_t api, table;       /* bytes of the structs that the library fills */
    size_t cells, functions; /* RNNFAST_CELLS, RNNFAST_ACTIVATIONS */
    size_t stack, problem, sizes, order, linear, pattern;
    const char *const *(*isas)(void);
    const rnnfast_table *(*get_table)(const char *isa, size_t item);
    ptrdiff_t (*count)(const rnnfast_pattern *, rnnfast_order *);
    void (*arrange)(const rnnfast_pattern *, rnnfast_order *, ptrdiff_t *sequences_of, ptrdiff_t *rows, ptrdiff_t *scratch);
    void (*fill)(const rnnfast_order *, int from, void *array, size_t bytes, ptrdiff_t step, ptrdiff_t row);
} rnnfast_api;

#ifdef __cplusplus
}
#endif

#endif
