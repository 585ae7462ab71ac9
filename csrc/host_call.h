/* What hosts that call the kernels without Python need: symbols that they can look up, and the options of a call as an attribute. */
#pragma once

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

/* Reads the bytes of a call. Returns its table, or NULL and a message of at most `size` characters. */
static inline const rnnfast_table *rnnfast_read_call(const void *bytes, rnnfast_host_call *call, char *message, size_t size)
{
    const rnnfast_table *table = NULL;
    memcpy(call, bytes, sizeof *call);
    call->isa[sizeof call->isa - 1] = 0;
    if (call->abi != RNNFAST_ABI)
        snprintf(message, size, "rnnfast: the program was compiled with version %d of rnnfast's interface, this is %d", call->abi,
                 RNNFAST_ABI);
    else if (!(table = rnnfast_get_table(call->isa, (size_t)call->item)))
        snprintf(message, size, "rnnfast: the program was compiled for %s, which does not run here", call->isa);
    return table;
}
