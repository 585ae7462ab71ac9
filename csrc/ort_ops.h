/* Operators for ONNX Runtime, and the part of its C interface that they use.
 *
 * ONNX Runtime loads the extension module as a library of custom operators: SessionOptions.register_custom_ops_library() calls its
 * RegisterCustomOps(). The operators Recurrent32 and Recurrent64 of the domain "rnnfast" then compute the nodes RNN, LSTM and GRU of ONNX
 * for float32 and float64, wherever they stand: in bodies of If, Loop and Scan too.
 *
 * The interface is a C ABI of structs that only grow at their ends, declared in onnxruntime_c_api.h. It is declared here again so that
 * building rnnfast does not need ONNX Runtime: only the members that the operators use, those between them as gaps. The operators need
 * version 16 of the interface, ONNX Runtime 1.16 or later.
 */
#pragma once

#include <stdint.h>

#include "host_call.h"

enum { ORT_VERSION = 16, ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum { ORT_REQUIRED, ORT_OPTIONAL };                                   /* inputs and outputs of an operator */
enum { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT32 = 6, ORT_DOUBLE = 11 }; /* types of elements */

#if defined(_WIN32)
#define ORT_CALL __stdcall
#else
#define ORT_CALL
#endif

typedef struct ort_status ort_status; /* NULL: success; opaque, as the following */
typedef struct ort_value ort_value;
typedef struct ort_shape ort_shape;     /* OrtTensorTypeAndShapeInfo */
typedef struct ort_info ort_info;       /* OrtKernelInfo */
typedef struct ort_context ort_context; /* OrtKernelContext */
typedef struct ort_options ort_options; /* OrtSessionOptions */
typedef struct ort_domain ort_domain;   /* OrtCustomOpDomain */
typedef struct ort_op ort_op;

typedef struct { /* OrtApi; the comments tell the index of the next member */
    ort_status *(ORT_CALL *create_status)(int code, const char *message);
    void *gap_1[25];
    ort_status *(ORT_CALL *create_domain)(const char *name, ort_domain **); /* 26 */
    ort_status *(ORT_CALL *add_op)(ort_domain *, const ort_op *);
    ort_status *(ORT_CALL *add_domain)(ort_options *, ort_domain *);
    void *gap_29[22];
    ort_status *(ORT_CALL *get_data)(ort_value *, void **); /* 51 */
    void *gap_52[9];
    ort_status *(ORT_CALL *get_rank)(const ort_shape *, size_t *); /* 61 */
    ort_status *(ORT_CALL *get_dims)(const ort_shape *, int64_t *dims, size_t rank);
    void *gap_63[2];
    ort_status *(ORT_CALL *get_shape)(const ort_value *, ort_shape **); /* 65 */
    void *gap_66[21];
    ort_status *(ORT_CALL *get_string)(const ort_info *, const char *attribute, char *out, size_t *size); /* 87 */
    void *gap_88[2];
    ort_status *(ORT_CALL *get_input)(const ort_context *, size_t index, const ort_value **); /* 90; NULL: missing */
    ort_status *(ORT_CALL *get_output)(ort_context *, size_t index, const int64_t *dims, size_t rank, ort_value **);
    void *gap_92[7];
    void(ORT_CALL *release_shape)(ort_shape *); /* 99 */
} ort_api;

typedef struct {
    const ort_api *(ORT_CALL *get_api)(uint32_t version); /* NULL: too new */
} ort_api_base;

struct ort_op { /* OrtCustomOp */
    uint32_t version;
    void *create_kernel;
    const char *(ORT_CALL *get_name)(const ort_op *);
    const char *(ORT_CALL *get_provider)(const ort_op *);
    int(ORT_CALL *get_input_type)(const ort_op *, size_t index);
    size_t(ORT_CALL *get_input_count)(const ort_op *);
    int(ORT_CALL *get_output_type)(const ort_op *, size_t index);
    size_t(ORT_CALL *get_output_count)(const ort_op *);
    void *compute;
    void(ORT_CALL *destroy_kernel)(void *kernel);
    int(ORT_CALL *get_input_kind)(const ort_op *, size_t index);
    int(ORT_CALL *get_output_kind)(const ort_op *, size_t index);
    int(ORT_CALL *get_input_memory)(const ort_op *, size_t index);
    void *variadic[4];
    ort_status *(ORT_CALL *create_kernel_v2)(const ort_op *, const ort_api *, const ort_info *, void **kernel);
    ort_status *(ORT_CALL *compute_v2)(void *kernel, ort_context *);
    void *later[7]; /* members of versions after 16 */
};

/* The number of threads that a call may use; NULL: 1. Set once, before any session is created. */
extern int (*rnnfast_ort_threads)(void);

/* Inputs: X, the packed weights as bytes, sequence_lens, initial_h, initial_c. Outputs: Y, Y_h, Y_c, and bytes for the length of the call.
 * Shapes are those of ONNX's nodes; time_first = 0 is layout 1. All but X and the packed weights may be missing.
 * The attribute "call" holds the bytes of a rnnfast_host_call, of which kinds, has_h0 and has_c0 are unused. */
ort_status *ORT_CALL RegisterCustomOps(ort_options *, const ort_api_base *);
