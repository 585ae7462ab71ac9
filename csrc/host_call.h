/* What hosts that call the kernels without Python need: symbols that they can look up, and the options of a call as an attribute. */
#pragma once

#include <float.h>
#include <stdio.h>
#include <string.h>

#include "rnnfast.h"

#if defined(_WIN32)
#define RNNFAST_VISIBLE __declspec(dllexport)
#else
#define RNNFAST_VISIBLE __attribute__((visibility("default")))
#endif

/* The part of a call that is not an array. Hosts store its bytes in a compiled program or a model. */
typedef struct {
    int abi; /* RNNFAST_ABI */
    char isa[16];
    int item;
    int kinds; /* the parameters that exist: a bit for each of RNNFAST_KINDS */
    int time_first, has_h0, has_c0;
    rnnfast_stack stack;
} rnnfast_host_call;

/* Whether the kernels can run a call. The record may come from a file, so nothing in it is trusted. */
static inline int rnnfast_is_valid_call(const rnnfast_table *table, const rnnfast_host_call *call)
{
    const rnnfast_stack *s = &call->stack;
    const rnnfast_cell_info *cell = table->cell_info(s->cell);
    const int flags[] = {call->time_first, call->has_h0, call->has_c0, s->reverse, s->peepholes, s->coupled};
    const int biases = 1 << 2 | 1 << 3; /* parameters are numbered as in rnnfast.h */
    rnnfast_sizes sizes;
    int kinds = 1 << 0 | 1 << 1, valid = 1;
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) valid &= flags[i] == 0 || flags[i] == 1;
    for (int i = 0; i < 6; i++) valid &= (unsigned)s->activations[i / 3][i % 3].function < RNNFAST_ACTIVATIONS;
    if (!valid || !cell || call->has_c0 > cell->has_c) return 0;
    if (s->directions < 1 || s->directions > 2 || s->reverse + s->directions > 2) return 0;
    if (s->layers < 1 || s->I < 1 || s->H < 1 || s->P < 1 || !(s->clip >= 0 && s->clip <= DBL_MAX)) return 0;
    for (int i = 0; i < 2; i++) { /* the adapters do not support zoneout */
        double rate = i ? s->zoneout_c : s->zoneout_h;
        if (!(rate >= 0 && rate <= 0)) return 0;
    }
    if (s->P < s->H) kinds |= 1 << 4;
    if (cell->extra_rows && (s->peepholes || !cell->extra_is_optional)) kinds |= 1 << 5;
    return (call->kinds == kinds || call->kinds == (kinds | biases)) && !table->sizes(s, 1, 1, NULL, &sizes);
}

/* Reads the bytes of a call. Returns its table, or NULL and a message of at most `size` characters. */
static inline const rnnfast_table *rnnfast_read_call(const void *bytes, rnnfast_host_call *call, char *message, size_t size)
{
    const rnnfast_table *table = NULL;
    memcpy(call, bytes, sizeof *call);
    call->isa[sizeof call->isa - 1] = 0;
    for (char *c = call->isa; *c; c++)
        if (*c < ' ' || *c > '~') *c = '?'; /* a message must be text */
    if (call->abi != RNNFAST_ABI)
        snprintf(message, size, "rnnfast: the program was compiled with version %d of rnnfast's interface, this is %d", call->abi,
                 RNNFAST_ABI);
    else if (call->item != 4 && call->item != 8)
        snprintf(message, size, "rnnfast: the program has elements of %d bytes, but must have elements of 4 or 8", call->item);
    else if (!(table = rnnfast_get_table(call->isa, (size_t)call->item)))
        snprintf(message, size, "rnnfast: the program was compiled for %s, which does not run here", call->isa);
    else if (!rnnfast_is_valid_call(table, call)) {
        snprintf(message, size, "rnnfast: the program describes a layer that cannot exist, so it is damaged: compile it again");
        table = NULL;
    }
    return table;
}
