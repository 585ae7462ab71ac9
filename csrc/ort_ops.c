/* The operators for ONNX Runtime, documented in ort_ops.h.
 *
 * Ownership: the kernel of a node holds its call; the workspace is an output of the node, so that it comes from the session's arena, and
 * the arrays of a ragged batch are allocated for the length of a call. */
#include "ort_ops.h"

#include <stdarg.h>
#include <stdlib.h>

enum { X, PACKED, LENGTHS, H0, C0, INPUTS };
enum { Y, H_N, C_N, SCRATCH, OUTPUTS };

int (*rnnfast_ort_threads)(void);

typedef struct {
    const ort_api *api;
    const rnnfast_table *table;
    rnnfast_host_call call;
} kernel;

typedef struct {
    const kernel *k;
    ort_context *context;
    ort_status *error;
    rnnfast_problem p;
    rnnfast_sizes sizes;
    size_t item;
    ptrdiff_t states; /* one for each direction */
    const void *packed;
    size_t packed_bytes;
    const char *h0, *c0;
    char *y, *h_n, *c_n; /* NULL: not wanted */
    const int32_t *lengths;
    rnnfast_order order;
    ptrdiff_t *sequences, *rows; /* of a ragged batch; NULL: every step of every row counts */
    void *own_order;             /* what they and the order lie in */
    /* In the scratch output: */
    char *own_packed, *own_y, *own_h0, *own_c0, *own_h_n, *own_c_n, *workspace;
} run;

/* Records an error; the first one is reported. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
static void fail(run *r, const char *format, ...)
{
    char message[200];
    va_list values;
    if (r->error) return;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    r->error = r->k->api->create_status(ORT_INVALID_ARGUMENT, message);
}

/* The data of an input with its dims, or NULL if it is missing. */
static void *input(run *r, size_t index, size_t rank, int64_t *dims)
{
    const ort_api *api = r->k->api;
    const ort_value *value = NULL;
    ort_shape *shape = NULL;
    size_t found = 0;
    void *data = NULL;
    if (!r->error) r->error = api->get_input(r->context, index, &value);
    if (!r->error && value) r->error = api->get_shape(value, &shape);
    if (r->error || !value) return NULL;
    r->error = api->get_rank(shape, &found);
    if (!r->error && found != rank) fail(r, "rnnfast: input %d must have %d axes", (int)index, (int)rank);
    if (!r->error) r->error = api->get_dims(shape, dims, rank);
    api->release_shape(shape);
    if (!r->error) r->error = api->get_data((ort_value *)value, &data);
    return r->error ? NULL : data;
}

/* The data of an output with these dims, or NULL if it is not wanted. */
static void *output(run *r, size_t index, const int64_t *dims, size_t rank)
{
    ort_value *value = NULL;
    void *data = NULL;
    if (!r->error) r->error = r->k->api->get_output(r->context, index, dims, rank, &value);
    if (!r->error && value) r->error = r->k->api->get_data(value, &data);
    return r->error ? NULL : data;
}

/* The data of a state, (D, N, width), or with layout 1 (N, D, width). */
static const char *state(run *r, size_t index, ptrdiff_t width)
{
    int64_t dims[3];
    const char *data = input(r, index, 3, dims);
    const int rows = r->k->call.time_first;
    if (data && (dims[rows] != r->p.N || dims[1 - rows] != r->states || dims[2] != width))
        fail(r, "rnnfast: the initial state must have %lld rows of %lld units for each direction", (long long)r->p.N, (long long)width);
    return data;
}

static void read_inputs(run *r)
{
    rnnfast_problem *p = &r->p;
    const rnnfast_stack *s = &p->stack;
    const int time = !r->k->call.time_first;
    int64_t dims[3] = {0};
    p->x = input(r, X, 3, dims);
    if (r->error) return;
    p->T = dims[time], p->N = dims[1 - time];
    if (p->T < 1) fail(r, "rnnfast: X has no time steps, but must have at least one");
    if (dims[2] != s->I) fail(r, "rnnfast: X has %lld features, but the node has weights for %lld", (long long)dims[2], (long long)s->I);
    p->x_step = (time ? 1 : p->N) * s->I;
    p->x_row = (time ? p->T : 1) * s->I;
    r->h0 = state(r, H0, s->P);
    r->c0 = state(r, C0, s->H);
    r->packed = input(r, PACKED, 1, dims);
    r->packed_bytes = (size_t)dims[0];
    r->lengths = input(r, LENGTHS, 1, dims);
    if (!r->lengths || r->error) return;
    if (dims[0] != p->N) fail(r, "rnnfast: sequence_lens has %lld elements for %lld rows", (long long)dims[0], (long long)p->N);
    for (ptrdiff_t n = 0; n < p->N && !r->error; n++)
        if (r->lengths[n] < 0 || r->lengths[n] > p->T)
            fail(r, "rnnfast: sequence_lens must be from 0 to %lld, got %d", (long long)p->T, (int)r->lengths[n]);
}

static void measure(run *r)
{
    const rnnfast_problem *p = &r->p;
    if (r->k->table->sizes(&p->stack, p->T, p->N, p->order, &r->sizes))
        fail(r, "rnnfast: X has %lld steps and %lld rows, whose states would take too many bytes", (long long)p->T, (long long)p->N);
    else if (r->packed_bytes < r->sizes.packed)
        fail(r, "rnnfast: the packed weights have %lld bytes, but must have %lld", (long long)r->packed_bytes, (long long)r->sizes.packed);
}

static void take_outputs(run *r)
{
    const rnnfast_problem *p = &r->p;
    const rnnfast_stack *s = &p->stack;
    const int64_t N = p->N, D = r->states, P = s->P;
    if (r->k->call.time_first) {
        r->y = output(r, Y, (int64_t[]){p->T, D, N, P}, 4);
        r->h_n = output(r, H_N, (int64_t[]){D, N, P}, 3);
        r->c_n = output(r, C_N, (int64_t[]){D, N, s->H}, 3);
    } else {
        r->y = output(r, Y, (int64_t[]){N, p->T, D, P}, 4);
        r->h_n = output(r, H_N, (int64_t[]){N, D, P}, 3);
        r->c_n = output(r, C_N, (int64_t[]){N, D, s->H}, 3);
    }
}

/* Arranges a ragged batch. */
static void arrange(run *r)
{
    rnnfast_problem *p = &r->p;
    const ptrdiff_t T = p->T, N = p->N;
    ptrdiff_t uneven = 0;
    for (ptrdiff_t n = 0; r->lengths && n < N; n++) uneven += r->lengths[n] != T;
    if (!uneven) return;
    /* lengths, begin, edges, the sequences, rows, scratch, and for each step two positions or a masked step */
    const size_t words = (size_t)(N + 2 * (T + 1) + N + N + 1 + 2 * T + 2 + N);
    ptrdiff_t *at = r->own_order = malloc(words * sizeof *at + (size_t)(T * N) * sizeof(rnnfast_masked_step));
    if (!at) {
        fail(r, "rnnfast: cannot allocate the order of %lld steps of %lld rows", (long long)T, (long long)N);
        return;
    }
    for (ptrdiff_t n = 0; n < N; n++) at[n] = r->lengths[n];
    const rnnfast_pattern pattern = {.T = T, .N = N, .lengths = at};
    const ptrdiff_t entries = rnnfast_count(&pattern, &r->order);
    at += N;
    r->order.begin = at, at += T + 1;
    r->order.edges = at, at += T + 1;
    r->sequences = at, at += N;
    r->rows = at, at += N + 1;
    ptrdiff_t *scratch = at;
    at += 2 * T + 2 + N;
    r->order.positions[0] = (rnnfast_position *)at;
    r->order.positions[1] = r->order.positions[0] + entries;
    r->order.masked = (rnnfast_masked_step *)(r->order.positions[1] + entries);
    rnnfast_arrange(&pattern, &r->order, r->sequences, r->rows, scratch);
    p->order = &r->order;
}

/* Places `bytes` bytes in scratch memory if they are needed; counts only while base is NULL. */
static char *place(char *base, size_t *used, int is_needed, size_t bytes)
{
    if (!is_needed) return NULL;
    char *at = base ? base + *used : NULL;
    *used += (bytes + RNNFAST_ALIGNMENT - 1) / RNNFAST_ALIGNMENT * RNNFAST_ALIGNMENT;
    return at;
}

/* Divides the scratch memory; returns its bytes. */
static size_t divide(run *r, char *base)
{
    const rnnfast_problem *p = &r->p;
    const rnnfast_stack *s = &p->stack;
    const size_t h = (size_t)(r->states * p->N * s->P) * r->item, c = (size_t)(r->states * p->N * s->H) * r->item;
    const int has_c = r->k->table->cell_info(s->cell)->has_c, splits = r->states > 1 && p->N > 1;
    const int moves = p->order || (splits && !r->k->call.time_first); /* whether states are kept in another order */
    size_t used = 0;
    r->own_packed = place(base, &used, (uintptr_t)r->packed % RNNFAST_ALIGNMENT != 0, r->sizes.packed);
    r->own_y = place(base, &used, !r->y || (splits && r->k->call.time_first), (size_t)p->T * h);
    r->own_h0 = place(base, &used, r->h0 && moves, h);
    r->own_c0 = place(base, &used, r->c0 && moves, c);
    r->own_h_n = place(base, &used, !r->h_n || moves, h);
    r->own_c_n = place(base, &used, has_c && (!r->c_n || moves), c);
    r->workspace = place(base, &used, 1, r->sizes.forward_workspace);
    return used;
}

/* Copies a state between the caller's order of rows and the engine's, `own`, which is [D, sequences, width]. */
static void copy_state(const run *r, char *own, char *given, size_t width, int to_own)
{
    const ptrdiff_t N = r->p.N, D = r->states;
    const size_t bytes = width * r->item;
    if (!own || !given) return;
    for (ptrdiff_t d = 0; d < D; d++)
        for (ptrdiff_t n = 0; n < N; n++) {
            const ptrdiff_t sequence = r->sequences ? r->sequences[r->rows[n]] : n;
            char *inner = own + (size_t)(d * N + sequence) * bytes;
            char *outer = given + (size_t)(r->k->call.time_first ? d * N + n : n * D + d) * bytes;
            if (to_own) memcpy(inner, outer, bytes);
            else memcpy(outer, inner, bytes);
        }
}

/* Zeros the final state of rows of length 0, as ONNX Runtime does. */
static void clear_empty_rows(const run *r, char *given, size_t width)
{
    const ptrdiff_t N = r->p.N, D = r->states;
    for (ptrdiff_t n = 0; given && r->sequences && n < N; n++)
        for (ptrdiff_t d = 0; !r->lengths[n] && d < D; d++)
            memset(given + (size_t)(r->k->call.time_first ? d * N + n : n * D + d) * width * r->item, 0, width * r->item);
}

/* Writes y, [T, N, D*P], to Y, [T, D, N, P]. */
static void split_directions(const run *r)
{
    const ptrdiff_t rows = r->p.T * r->p.N, N = r->p.N, D = r->states;
    const size_t bytes = (size_t)r->p.stack.P * r->item;
    const char *from = r->own_y;
    for (ptrdiff_t row = 0; row < rows; row++)
        for (ptrdiff_t d = 0; d < D; d++, from += bytes) memcpy(r->y + (size_t)((row / N * D + d) * N + row % N) * bytes, from, bytes);
}

static void forward(run *r)
{
    rnnfast_problem *p = &r->p;
    const rnnfast_stack *s = &p->stack;
    const ptrdiff_t outputs = r->states * s->P;
    if (r->own_packed) memcpy(r->own_packed, r->packed, r->sizes.packed);
    copy_state(r, r->own_h0, (char *)r->h0, (size_t)s->P, 1);
    copy_state(r, r->own_c0, (char *)r->c0, (size_t)s->H, 1);
    const int time_first = r->k->call.time_first;
    p->packed = r->own_packed ? r->own_packed : r->packed;
    p->h0 = r->own_h0 ? r->own_h0 : r->h0;
    p->c0 = r->own_c0 ? r->own_c0 : r->c0;
    p->y = r->own_y ? r->own_y : r->y;
    p->y_step = (time_first ? p->N : 1) * outputs;
    p->y_row = (time_first ? 1 : p->T) * outputs;
    p->h_n = r->own_h_n ? r->own_h_n : r->h_n;
    p->c_n = r->own_c_n ? r->own_c_n : r->c_n;
    p->workspace = r->workspace;
    r->k->table->forward(p);
    const size_t item = r->item;
    if (p->order && r->y)
        rnnfast_fill(p->order, 0, p->y, (size_t)outputs * item, p->y_step * (ptrdiff_t)item, p->y_row * (ptrdiff_t)item, p->poll);
    if (r->own_y && r->y) split_directions(r);
    copy_state(r, r->own_h_n, r->h_n, (size_t)s->P, 0);
    copy_state(r, r->own_c_n, r->c_n, (size_t)s->H, 0);
    clear_empty_rows(r, r->h_n, (size_t)s->P);
    clear_empty_rows(r, r->c_n, (size_t)s->H);
}

static ort_status *ORT_CALL compute(void *of, ort_context *context)
{
    const kernel *k = of;
    run r = {.k = k, .context = context, .item = k->table->item, .states = k->call.stack.directions};
    r.p.stack = k->call.stack;
    r.p.threads = rnnfast_ort_threads ? rnnfast_ort_threads() : 1;
    read_inputs(&r);
    if (!r.error && r.p.N) arrange(&r);
    if (!r.error && r.p.N) measure(&r);
    take_outputs(&r);
    if (!r.error && r.p.N) {
        char *base = output(&r, SCRATCH, (int64_t[]){(int64_t)divide(&r, NULL) + RNNFAST_ALIGNMENT}, 1);
        if (!r.error) {
            divide(&r, base + (RNNFAST_ALIGNMENT - (uintptr_t)base % RNNFAST_ALIGNMENT));
            forward(&r);
        }
    } else if (!r.error) {
        output(&r, SCRATCH, (int64_t[]){0}, 1);
    }
    free(r.own_order);
    return r.error;
}

static const char *ORT_CALL get_name32(const ort_op *op)
{
    return (void)op, "Recurrent32";
}

static const char *ORT_CALL get_name64(const ort_op *op)
{
    return (void)op, "Recurrent64";
}

static int get_element(const ort_op *op)
{
    return op->get_name == get_name64 ? ORT_DOUBLE : ORT_FLOAT;
}

static ort_status *ORT_CALL create(const ort_op *op, const ort_api *api, const ort_info *info, void **out)
{
    char bytes[sizeof(rnnfast_host_call) + 1] = {0}, message[200] = "rnnfast: the attribute \"call\" holds no call of this operator";
    size_t size = sizeof bytes;
    kernel *k = calloc(1, sizeof *k);
    if (!k) return api->create_status(ORT_FAIL, "rnnfast: cannot allocate a kernel");
    k->api = api;
    ort_status *error = api->get_string(info, "call", bytes, &size);
    if (!error) {
        if (size == sizeof bytes) k->table = rnnfast_read_call(bytes, &k->call, message, sizeof message);
        if (!k->table || k->call.stack.layers != 1 || (k->call.item == 8) != (get_element(op) == ORT_DOUBLE))
            error = api->create_status(ORT_INVALID_ARGUMENT, message);
    }
    *out = k;
    if (error) free(k);
    return error;
}

static void ORT_CALL destroy(void *k)
{
    free(k);
}

/* ---- the operators */

static const char *ORT_CALL get_provider(const ort_op *op)
{
    return (void)op, NULL; /* the CPU */
}

static int ORT_CALL get_input_type(const ort_op *op, size_t index)
{
    return index == PACKED ? ORT_UINT8 : index == LENGTHS ? ORT_INT32 : get_element(op);
}

static size_t ORT_CALL get_input_count(const ort_op *op)
{
    return (void)op, INPUTS;
}

static int ORT_CALL get_output_type(const ort_op *op, size_t index)
{
    return index == SCRATCH ? ORT_UINT8 : get_element(op);
}

static size_t ORT_CALL get_output_count(const ort_op *op)
{
    return (void)op, OUTPUTS;
}

static int ORT_CALL get_input_kind(const ort_op *op, size_t index)
{
    return (void)op, index > PACKED ? ORT_OPTIONAL : ORT_REQUIRED;
}

static int ORT_CALL get_output_kind(const ort_op *op, size_t index)
{
    return (void)op, index < SCRATCH ? ORT_OPTIONAL : ORT_REQUIRED;
}

static int ORT_CALL get_memory(const ort_op *op, size_t index)
{
    return (void)op, (void)index, 0; /* the provider's own */
}

#define OPERATOR(name)                                                                                                                     \
    {                                                                                                                                      \
        .version = ORT_VERSION,                                                                                                            \
        .get_name = name,                                                                                                                  \
        .get_provider = get_provider,                                                                                                      \
        .get_input_type = get_input_type,                                                                                                  \
        .get_input_count = get_input_count,                                                                                                \
        .get_output_type = get_output_type,                                                                                                \
        .get_output_count = get_output_count,                                                                                              \
        .destroy_kernel = destroy,                                                                                                         \
        .get_input_kind = get_input_kind,                                                                                                  \
        .get_output_kind = get_output_kind,                                                                                                \
        .get_input_memory = get_memory,                                                                                                    \
        .create_kernel_v2 = create,                                                                                                        \
        .compute_v2 = compute,                                                                                                             \
    }

static const ort_op operators[] = {OPERATOR(get_name32), OPERATOR(get_name64)};

RNNFAST_VISIBLE ort_status *ORT_CALL RegisterCustomOps(ort_options *options, const ort_api_base *base)
{
    static ort_domain *domain; /* sessions refer to it as long as they exist */
    const ort_api *api = base->get_api(ORT_VERSION);
    ort_status *error = NULL;
    if (!api) return NULL; /* an older version, which cannot be told so */
    if (!domain) {
        error = api->create_domain("rnnfast", &domain);
        for (size_t i = 0; !error && i < sizeof operators / sizeof *operators; i++) error = api->add_op(domain, &operators[i]);
    }
    return error ? error : api->add_domain(options, domain);
}
