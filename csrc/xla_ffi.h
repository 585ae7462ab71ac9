/* Interface to XLA: two handlers for its foreign-function interface, and the part of that interface that they use.
 *
 * The interface is a C ABI of structs that carry their sizes, declared in openxla's xla/ffi/api/c_api.h, which JAX ships. It is declared
 * here again so that building rnnfast does not need JAX: only the members that the handlers access, and of structs passed by pointer
 * only the leading ones. This is major version 0, minor versions 1 to 3. A newer minor version adds members at the end; the handlers check
 * struct sizes before they read. tests/test_backend_jax.py compares these declarations with the original.
 */
#pragma once

#include <stdint.h>

#include "host_call.h"

enum { XLA_MAJOR = 0, XLA_METADATA = 1, XLA_BUFFER = 1, XLA_ARRAY = 1, XLA_U8 = 6, XLA_F32 = 11, XLA_F64 = 12 };
enum { XLA_INVALID_ARGUMENT = 3, XLA_RESOURCE_EXHAUSTED = 8 }; /* codes of errors */

typedef struct xla_extension {
    size_t struct_size;
    int type;
    struct xla_extension *next;
} xla_extension;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    int major, minor;
} xla_version;

enum { XLA_VERSION_SIZE = offsetof(xla_version, minor) + sizeof(int) }; /* its struct_size, without padding */

typedef struct xla_error xla_error; /* opaque, owned by XLA */

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    const char *message; /* copied by XLA */
    int code;
} xla_error_request;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    xla_version version;
    const void *internal;
    xla_error *(*create_error)(xla_error_request *);
} xla_api;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    int dtype;
    void *data;
    int64_t rank;
    const int64_t *dims;
} xla_buffer;

typedef struct { /* arguments or results */
    size_t struct_size;
    xla_extension *extensions;
    int64_t size;
    const int *types;
    void *const *values;
} xla_list;

typedef struct {
    int dtype;
    size_t size;
    const void *data;
} xla_array;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    int64_t size;
    const int *types;
    const void *const *names;
    void *const *values;
} xla_attributes;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    const xla_api *api;
    void *context;
    int stage;
    xla_list arguments, results;
    xla_attributes attributes;
} xla_frame;

typedef struct {
    size_t struct_size;
    xla_version version;
} xla_metadata;

typedef struct {
    xla_extension base;
    xla_metadata *metadata;
} xla_metadata_extension;

/* The only attribute, "call", holds the bytes of a rnnfast_host_call. Arrays are contiguous. x is (T, N, I), or (N, T, I) if time is not
 * first, or (T, I); y likewise. h0 and c0 are left out if has_h0 or has_c0 is 0, and every c is left out for a cell without c.
 *
 * forward:   x, parameters, h0, c0                             to  y, h_n, c_n, and optionally a tape of sizes.tape bytes
 * backward:  x, parameters, h0, c0, y, tape, dy, dh_n, dc_n    to  dx, dparameters, dh0, dc0
 *
 * Returns NULL, or an error if the arrays do not fit the call. */
xla_error *rnnfast_xla_forward(const xla_frame *, int threads);
xla_error *rnnfast_xla_backward(const xla_frame *, int threads);
