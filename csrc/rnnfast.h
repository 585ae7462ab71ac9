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
 * parameters: five pointers for each layer and direction, NULL where there is none, in torch's gate order (i,f,g,o; r,z,n):
 *   weight_ih [G*H, I or D*P], weight_hh [G*H, P], bias_ih [G*H], bias_hh [G*H], weight_hr [P, H]
 *
 * Nothing here can fail or allocates memory: ask sizes() first and hand in buffers, aligned to 64 bytes, of at least that many
 * bytes. Arguments are trusted. Buffers may not overlap, unless it is said. The functions may be called from any number of threads
 * at once, each call with its own buffers.
 *
 * The same bits: within one table, y, states, dx and the gradients of states of a row do not depend on the other rows of the
 * batch, on how the steps are divided into calls, on the number of threads, or on whether a tape is kept; the gradients of
 * parameters do not depend on the number of threads.
 */
#ifndef RNNFAST_H
#define RNNFAST_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    RNNFAST_RNN_TANH,
    RNNFAST_RNN_RELU,
    RNNFAST_LSTM,
    RNNFAST_GRU,              /* reset after the product: n = tanh(W x + b + r * (R h + b')) */
    RNNFAST_GRU_RESET_BEFORE, /* n = tanh(W x + b + R (r * h) + b') */
    RNNFAST_CELLS
} rnnfast_cell;

typedef struct {
    rnnfast_cell cell;
    int directions;
    int reverse; /* with one direction: run it from the last step to the first */
    ptrdiff_t layers, I, H;
    ptrdiff_t P; /* equal to H where there is no projection */
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

typedef struct {
    rnnfast_stack stack;
    ptrdiff_t T, N;
    int threads;       /* at most so many */
    rnnfast_poll poll; /* stop may be NULL */
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
    size_t item;                                                                    /* bytes of a number */
    int (*sizes)(const rnnfast_stack *, ptrdiff_t T, ptrdiff_t N, rnnfast_sizes *); /* not 0: a product of sizes overflows */
    void (*pack)(const rnnfast_stack *, const void *const *parameters, void *packed, void *packed_back, int threads, rnnfast_poll);
    void (*forward)(const rnnfast_problem *);
    void (*backward)(const rnnfast_problem *);
    int (*linear_sizes)(const rnnfast_linear *, size_t *packed, size_t *backward_workspace); /* as sizes */
    void (*linear_pack)(const rnnfast_linear *);
    void (*linear_forward)(const rnnfast_linear *);
    void (*linear_backward)(const rnnfast_linear *);
    void (*sigmoid)(const void *a, void *out, size_t count);
    void (*tanh)(const void *a, void *out, size_t count);
} rnnfast_table;

/* The instruction sets that run here, best first, as a NULL-terminated array. */
const char *const *rnnfast_isas(void);

/* The table of a number type (4 or 8 bytes) and an instruction set; NULL if it does not run here. */
const rnnfast_table *rnnfast_get_table(const char *isa, size_t item);

#ifdef __cplusplus
}
#endif

#endif
