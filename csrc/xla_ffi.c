/* The handlers for XLA's foreign-function interface, documented in xla_ffi.h.
 *
 * Ownership: packed weights and workspace are allocated for the length of a call; all other memory belongs to XLA. */
#include "xla_ffi.h"

#include <stdarg.h>
#include <stdlib.h>

typedef struct {
    const xla_frame *frame;
    xla_error *error;
    rnnfast_host_call call;
    const rnnfast_table *table;
    rnnfast_sizes sizes;
    rnnfast_problem p;
    ptrdiff_t x, y, h, c;       /* elements of each; c: 0 if the cell has none */
    int64_t arguments, results; /* taken so far */
    void **parameters, **dparameters;
    void *memory[4];
    int memories;
} run;

/* Records an error; the first one is reported. Returns NULL. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static void *fail(run *r, int code, const char *format, ...)
{
    char message[200];
    va_list values;
    xla_error_request request = {sizeof request, NULL, message, code};
    if (r->error) return NULL;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    r->error = r->frame->api->create_error(&request);
    return NULL;
}

/* Takes the next argument or result, which must have `count` elements of a type. Returns NULL after an error. */
static void *take(run *r, int of_results, int dtype, ptrdiff_t count)
{
    const xla_list *list = of_results ? &r->frame->results : &r->frame->arguments;
    int64_t index = of_results ? r->results++ : r->arguments++, found = 1;
    const char *name = of_results ? "result" : "argument";
    if (r->error) return NULL;
    if (index >= list->size) return fail(r, XLA_INVALID_ARGUMENT, "rnnfast: %s %d is missing", name, (int)index);
    const xla_buffer *b = list->values[index];
    if (list->types[index] != XLA_BUFFER || b->struct_size < sizeof *b)
        return fail(r, XLA_INVALID_ARGUMENT, "rnnfast: %s %d is not a buffer", name, (int)index);
    for (int64_t axis = 0; axis < b->rank; axis++) found *= b->dims[axis];
    if (b->dtype == dtype && found == count) return b->data;
    return fail(r, XLA_INVALID_ARGUMENT, "rnnfast: %s %d has %lld elements of XLA's type %d; expected %lld of type %d", name, (int)index,
                (long long)found, b->dtype, (long long)count, dtype);
}

/* Takes the next array of the call's element type. */
static void *elements(run *r, int of_results, ptrdiff_t count)
{
    return take(r, of_results, r->call.item == 8 ? XLA_F64 : XLA_F32, count);
}

/* Whether XLA's structs have the layout that xla_ffi.h declares. Structs within structs must match to the last byte. */
static int is_known(const xla_frame *frame)
{
    const xla_api *api = frame->api;
    return api->struct_size >= sizeof *api && api->version.struct_size == XLA_VERSION_SIZE && api->version.major == XLA_MAJOR &&
           frame->struct_size >= sizeof *frame && frame->arguments.struct_size == sizeof(xla_list) &&
           frame->results.struct_size == sizeof(xla_list) && frame->attributes.struct_size == sizeof(xla_attributes);
}

/* Whether XLA asks which version the handler was made for, rather than calling it. Any minor version will do. Up to version 0.1 XLA does
 * not state its own version, so only a call can show whether it is known. */
static int is_version_query(const xla_frame *frame)
{
    const xla_extension *e = frame->extensions;
    if (!e || e->type != XLA_METADATA || e->struct_size < sizeof(xla_metadata_extension)) return 0;
    xla_version *version = &((const xla_metadata_extension *)e)->metadata->version;
    version->major = !frame->api || is_known(frame) ? XLA_MAJOR : -1;
    version->minor = frame->api ? frame->api->version.minor : 1;
    return 1;
}

static void read_call(run *r)
{
    const xla_attributes *a = &r->frame->attributes;
    const xla_array *bytes = a->size == 1 && *a->types == XLA_ARRAY ? *a->values : NULL;
    if (!bytes || bytes->dtype != XLA_U8 || bytes->size != sizeof r->call) {
        fail(r, XLA_INVALID_ARGUMENT, "rnnfast: the attribute of a call must be an array of %d bytes", (int)sizeof r->call);
        return;
    }
    char message[200];
    if (!(r->table = rnnfast_read_call(bytes->data, &r->call, message, sizeof message))) fail(r, XLA_INVALID_ARGUMENT, "%s", message);
}

/* Reads T and N from x. */
static void read_shape(run *r)
{
    rnnfast_problem *p = &r->p;
    const xla_list *list = &r->frame->arguments;
    const xla_buffer *x = list->size && *list->types == XLA_BUFFER ? *list->values : NULL;
    if (r->error) return;
    if (!x || x->struct_size < sizeof *x || x->rank < 2 || x->rank > 3) {
        fail(r, XLA_INVALID_ARGUMENT, "rnnfast: argument 0 must be x, with two or three axes");
        return;
    }
    int time = x->rank == 3 && !r->call.time_first;
    p->T = x->dims[time];
    p->N = x->rank == 2 ? 1 : x->dims[1 - time];
    if (p->T < 1 || p->N < 1 || r->table->sizes(&p->stack, p->T, p->N, NULL, &r->sizes))
        fail(r, XLA_INVALID_ARGUMENT,
             "rnnfast: x has %lld steps and %lld rows: expected at least one of each, and sizes that do not overflow", (long long)p->T,
             (long long)p->N);
}

/* Takes the parameters from the arguments, or their gradients from the results, which are set to zero because gradients accumulate. */
static void take_parameters(run *r, int of_results, void **parameters)
{
    const rnnfast_stack *s = &r->p.stack;
    const rnnfast_cell_info *cell = r->table->cell_info(s->cell);
    const ptrdiff_t rows = (ptrdiff_t)strlen(cell->gates) * s->H;
    for (ptrdiff_t k = 0; k < RNNFAST_KINDS * s->layers * s->directions && !r->error; k++) {
        ptrdiff_t features = k < RNNFAST_KINDS * s->directions ? s->I : s->directions * s->P;
        ptrdiff_t sizes[RNNFAST_KINDS] = {rows * features, rows * s->P, rows, rows, s->P * s->H, cell->extra_rows * s->H};
        ptrdiff_t kind = k % RNNFAST_KINDS;
        parameters[k] = r->call.kinds >> kind & 1 ? elements(r, of_results, sizes[kind]) : NULL;
        if (of_results && parameters[k]) memset(parameters[k], 0, (size_t)(sizes[kind] * r->call.item));
    }
}

static void take_no_more(run *r)
{
    int64_t arguments = r->frame->arguments.size - r->arguments, results = r->frame->results.size - r->results;
    if (arguments > 0 || results > 0)
        fail(r, XLA_INVALID_ARGUMENT, "rnnfast: %d arguments and %d results too many", (int)arguments, (int)results);
}

/* Allocates memory at a cache line, until the call ends. Returns NULL after an error. */
static void *memory(run *r, size_t bytes)
{
    void *whole = r->error ? NULL : malloc(bytes + RNNFAST_ALIGNMENT);
    if (!whole) return fail(r, XLA_RESOURCE_EXHAUSTED, "rnnfast: cannot allocate %.0f bytes", (double)bytes);
    r->memory[r->memories++] = whole;
    return (char *)whole + (RNNFAST_ALIGNMENT - (uintptr_t)whole % RNNFAST_ALIGNMENT);
}

/* XLA's own buffers begin at cache lines, as a tape must. A buffer from outside may not, and is used through a copy. */
static void *aligned(run *r, void *tape)
{
    return (uintptr_t)tape % RNNFAST_ALIGNMENT ? memory(r, r->sizes.tape) : tape;
}

/* What forward and backward have in common: reads the call, x, parameters and initial states. */
static void begin(run *r, const xla_frame *frame, int threads)
{
    rnnfast_problem *p = &r->p;
    const rnnfast_stack *s = &p->stack;
    memset(r, 0, sizeof *r);
    r->frame = frame;
    if (!is_known(frame)) {
        fail(r, XLA_INVALID_ARGUMENT, "rnnfast was built for version %d of XLA's interface, but this is %d.%d or has another layout",
             XLA_MAJOR, frame->api->version.major, frame->api->version.minor);
        return;
    }
    read_call(r);
    p->stack = r->call.stack;
    p->threads = threads;
    read_shape(r);
    if (r->error) return;

    const ptrdiff_t states = s->layers * s->directions, features = s->I, outputs = s->directions * s->P;
    r->h = states * p->N * s->P;
    r->c = r->table->cell_info(s->cell)->has_c ? states * p->N * s->H : 0;
    r->x = p->T * p->N * features;
    r->y = p->T * p->N * outputs;
    p->x_step = p->dx_step = (r->call.time_first ? p->N : 1) * features;
    p->x_row = p->dx_row = (r->call.time_first ? 1 : p->T) * features;
    p->y_step = p->dy_step = (r->call.time_first ? p->N : 1) * outputs;
    p->y_row = p->dy_row = (r->call.time_first ? 1 : p->T) * outputs;
    p->x = elements(r, 0, r->x);
    r->parameters = (void **)memory(r, (size_t)(2 * RNNFAST_KINDS * states) * sizeof(void *));
    if (!r->parameters) return; /* after an error */
    r->dparameters = r->parameters + RNNFAST_KINDS * states;
    take_parameters(r, 0, r->parameters);
    if (r->call.has_h0) p->h0 = elements(r, 0, r->h);
    if (r->call.has_c0) p->c0 = elements(r, 0, r->c);
}

static xla_error *end(run *r)
{
    while (r->memories) free(r->memory[--r->memories]);
    return r->error;
}

xla_error *rnnfast_xla_forward(const xla_frame *frame, int threads)
{
    run r;
    rnnfast_problem *p = &r.p;
    void *tape = NULL, *packed;
    if (is_version_query(frame)) return NULL;
    begin(&r, frame, threads);
    p->y = elements(&r, 1, r.y);
    p->h_n = elements(&r, 1, r.h);
    if (r.c) p->c_n = elements(&r, 1, r.c);
    if (r.results < frame->results.size) tape = take(&r, 1, XLA_U8, (ptrdiff_t)r.sizes.tape);
    take_no_more(&r);
    p->tape = aligned(&r, tape);
    p->packed = packed = memory(&r, r.sizes.packed);
    p->workspace = memory(&r, r.sizes.forward_workspace);
    if (r.error) return end(&r);
    r.table->pack(&p->stack, (const void *const *)r.parameters, packed, NULL, threads, p->poll);
    r.table->forward(p);
    if (tape && p->tape != tape) memcpy(tape, p->tape, r.sizes.tape);
    return end(&r);
}

xla_error *rnnfast_xla_backward(const xla_frame *frame, int threads)
{
    run r;
    rnnfast_problem *p = &r.p;
    void *tape, *packed;
    if (is_version_query(frame)) return NULL;
    begin(&r, frame, threads);
    p->y = elements(&r, 0, r.y);
    tape = take(&r, 0, XLA_U8, (ptrdiff_t)r.sizes.tape);
    p->dy = elements(&r, 0, r.y);
    p->dh_n = elements(&r, 0, r.h);
    if (r.c) p->dc_n = elements(&r, 0, r.c);
    p->dx = elements(&r, 1, r.x);
    if (r.dparameters) take_parameters(&r, 1, r.dparameters);
    p->dh0 = elements(&r, 1, r.h);
    if (r.c) p->dc0 = elements(&r, 1, r.c);
    p->dparameters = r.dparameters;
    take_no_more(&r);
    p->tape = aligned(&r, tape);
    p->packed_back = packed = memory(&r, r.sizes.packed_back);
    p->workspace = memory(&r, r.sizes.backward_workspace);
    if (r.error) return end(&r);
    if (p->tape != tape) memcpy(p->tape, tape, r.sizes.tape);
    r.table->pack(&p->stack, (const void *const *)r.parameters, NULL, packed, threads, p->poll);
    r.table->backward(p);
    return end(&r);
}
