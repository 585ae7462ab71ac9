// Checks the handlers for XLA against XLA's own header: the layouts, and calls with frames built from it.
#include "xla/ffi/api/c_api.h"

extern "C" {
#include "xla_ffi.h"
}

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#define SAME(ours, member, theirs, its)                                                                                                    \
    static_assert(offsetof(ours, member) == offsetof(theirs, its) && sizeof(ours::member) == sizeof(theirs::its), #theirs "::" #its)
#define STRUCT(ours, theirs) SAME(ours, struct_size, theirs, struct_size)

STRUCT(xla_extension, XLA_FFI_Extension_Base);
SAME(xla_extension, type, XLA_FFI_Extension_Base, type);
STRUCT(xla_version, XLA_FFI_Api_Version);
SAME(xla_version, major, XLA_FFI_Api_Version, major_version);
SAME(xla_version, minor, XLA_FFI_Api_Version, minor_version);
STRUCT(xla_error_request, XLA_FFI_Error_Create_Args);
SAME(xla_error_request, message, XLA_FFI_Error_Create_Args, message);
SAME(xla_error_request, code, XLA_FFI_Error_Create_Args, errc);
STRUCT(xla_api, XLA_FFI_Api);
SAME(xla_api, version, XLA_FFI_Api, api_version);
SAME(xla_api, create_error, XLA_FFI_Api, XLA_FFI_Error_Create);
STRUCT(xla_buffer, XLA_FFI_Buffer);
SAME(xla_buffer, dtype, XLA_FFI_Buffer, dtype);
SAME(xla_buffer, data, XLA_FFI_Buffer, data);
SAME(xla_buffer, rank, XLA_FFI_Buffer, rank);
SAME(xla_buffer, dims, XLA_FFI_Buffer, dims);
STRUCT(xla_list, XLA_FFI_Args);
SAME(xla_list, size, XLA_FFI_Args, size);
SAME(xla_list, types, XLA_FFI_Args, types);
SAME(xla_list, values, XLA_FFI_Args, args);
STRUCT(xla_list, XLA_FFI_Rets);
SAME(xla_list, size, XLA_FFI_Rets, size);
SAME(xla_list, types, XLA_FFI_Rets, types);
SAME(xla_list, values, XLA_FFI_Rets, rets);
SAME(xla_array, dtype, XLA_FFI_Array, dtype);
SAME(xla_array, size, XLA_FFI_Array, size);
SAME(xla_array, data, XLA_FFI_Array, data);
STRUCT(xla_attributes, XLA_FFI_Attrs);
SAME(xla_attributes, size, XLA_FFI_Attrs, size);
SAME(xla_attributes, types, XLA_FFI_Attrs, types);
SAME(xla_attributes, values, XLA_FFI_Attrs, attrs);
STRUCT(xla_frame, XLA_FFI_CallFrame);
SAME(xla_frame, extensions, XLA_FFI_CallFrame, extension_start);
SAME(xla_frame, api, XLA_FFI_CallFrame, api);
SAME(xla_frame, arguments, XLA_FFI_CallFrame, args);
SAME(xla_frame, results, XLA_FFI_CallFrame, rets);
SAME(xla_frame, attributes, XLA_FFI_CallFrame, attrs);
STRUCT(xla_metadata, XLA_FFI_Metadata);
SAME(xla_metadata, version, XLA_FFI_Metadata, api_version);
SAME(xla_metadata_extension, base, XLA_FFI_Metadata_Extension, extension_base);
SAME(xla_metadata_extension, metadata, XLA_FFI_Metadata_Extension, metadata);
static_assert((size_t)XLA_VERSION_SIZE == (size_t)XLA_FFI_Api_Version_STRUCT_SIZE && sizeof(xla_list) == XLA_FFI_Args_STRUCT_SIZE &&
                  sizeof(xla_list) == XLA_FFI_Rets_STRUCT_SIZE && sizeof(xla_attributes) == XLA_FFI_Attrs_STRUCT_SIZE,
              "structs within structs");
static_assert(sizeof(xla_frame) <= XLA_FFI_CallFrame_STRUCT_SIZE && sizeof(xla_buffer) <= XLA_FFI_Buffer_STRUCT_SIZE &&
                  sizeof(xla_api) <= XLA_FFI_Api_STRUCT_SIZE && sizeof(xla_metadata) <= XLA_FFI_Metadata_STRUCT_SIZE &&
                  sizeof(xla_metadata_extension) <= XLA_FFI_Metadata_Extension_STRUCT_SIZE &&
                  sizeof(xla_error_request) >= XLA_FFI_Error_Create_Args_STRUCT_SIZE,
              "structs that are handed over");
static_assert((int)XLA_MAJOR == XLA_FFI_API_MAJOR && (int)XLA_METADATA == XLA_FFI_Extension_Metadata &&
                  (int)XLA_BUFFER == XLA_FFI_ArgType_BUFFER && (int)XLA_BUFFER == XLA_FFI_RetType_BUFFER &&
                  (int)XLA_ARRAY == XLA_FFI_AttrType_ARRAY && (int)XLA_U8 == XLA_FFI_DataType_U8 && (int)XLA_F32 == XLA_FFI_DataType_F32 &&
                  (int)XLA_F64 == XLA_FFI_DataType_F64 && (int)XLA_INVALID_ARGUMENT == XLA_FFI_Error_Code_INVALID_ARGUMENT &&
                  (int)XLA_RESOURCE_EXHAUSTED == XLA_FFI_Error_Code_RESOURCE_EXHAUSTED,
              "constants");

// The handlers are compiled to use this table in place of the real one: it checks the alignment of buffers and calls the real one.
extern "C" const rnnfast_table *checking_table(const char *isa, size_t item);

static const rnnfast_table *real;
static int beside_lines;

static void look(const rnnfast_problem *p)
{
    for (const void *buffer : {(const void *)p->tape, p->packed, p->packed_back, (const void *)p->workspace})
        beside_lines += (uintptr_t)buffer % RNNFAST_ALIGNMENT != 0;
}

static void forward(const rnnfast_problem *p)
{
    look(p), real->forward(p);
}

static void backward(const rnnfast_problem *p)
{
    look(p), real->backward(p);
}

const rnnfast_table *checking_table(const char *isa, size_t item)
{
    static rnnfast_table table;
    if (!(real = rnnfast_get_table(isa, item))) return nullptr;
    table = *real, table.forward = forward, table.backward = backward;
    return &table;
}

enum { T = 3, N = 2, I = 4, H = 5 };

struct XLA_FFI_Error {
    char text[200];
};

static XLA_FFI_Error *create_error(XLA_FFI_Error_Create_Args *args)
{
    XLA_FFI_Error *error = new XLA_FFI_Error;
    snprintf(error->text, sizeof error->text, "%s", args->message);
    return error;
}

// A list of arrays, each at an offset from a cache line.
struct Arrays {
    std::vector<XLA_FFI_Buffer> buffers;
    std::vector<std::vector<int64_t>> dims;
    std::vector<std::vector<char>> bytes;
    std::vector<void *> values;
    std::vector<int> types;

    float *add(XLA_FFI_DataType dtype, std::vector<int64_t> shape, size_t shift = 0)
    {
        size_t count = dtype == XLA_FFI_DataType_U8 ? 1 : 4;
        for (int64_t n : shape) count *= (size_t)n;
        dims.push_back(shape);
        bytes.emplace_back(count + 128);
        char *data = bytes.back().data();
        data += 64 - (uintptr_t)data % 64 + shift;
        buffers.push_back({XLA_FFI_Buffer_STRUCT_SIZE, nullptr, dtype, data, (int64_t)shape.size(), nullptr});
        for (size_t k = 0; dtype == XLA_FFI_DataType_F32 && k < count / 4; k++) ((float *)data)[k] = (float)(k * k % 23) / 22 - 0.5f;
        return (float *)data;
    }

    template <class List, class Type> List list()
    {
        for (size_t k = 0; k < buffers.size(); k++) buffers[k].dims = dims[k].data(), values.push_back(&buffers[k]), types.push_back(1);
        return {sizeof(List), nullptr, (int64_t)values.size(), (Type *)types.data(), values.data()};
    }
};

struct Call {
    Arrays in, out;
    XLA_FFI_Api api{};
    rnnfast_host_call description{};
    std::vector<std::pair<size_t, unsigned char>> changes; // of bytes of the description

    XLA_FFI_Error *run(xla_error *(*handler)(const xla_frame *, int), int major = 0, size_t embedded = XLA_FFI_Args_STRUCT_SIZE)
    {
        api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
        api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, major, XLA_FFI_API_MINOR};
        api.XLA_FFI_Error_Create = create_error;
        description.abi = RNNFAST_ABI, description.item = 4, description.kinds = 15, description.time_first = 1;
        strcpy(description.isa, "scalar");
        description.stack.cell = RNNFAST_LSTM, description.stack.directions = 1, description.stack.layers = 1;
        description.stack.I = I, description.stack.H = description.stack.P = H;
        for (auto [place, byte] : changes) ((unsigned char *)&description)[place] = byte;
        XLA_FFI_Array array = {XLA_FFI_DataType_U8, sizeof description, &description};
        XLA_FFI_AttrType type = XLA_FFI_AttrType_ARRAY;
        void *value = &array;
        XLA_FFI_CallFrame frame{};
        frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
        frame.api = &api;
        frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
        frame.args = in.list<XLA_FFI_Args, XLA_FFI_ArgType>();
        frame.rets = out.list<XLA_FFI_Rets, XLA_FFI_RetType>();
        frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr, 1, &type, nullptr, &value};
        frame.args.struct_size = embedded;
        return (XLA_FFI_Error *)handler((const xla_frame *)&frame, 1);
    }
};

static void add_all(Call *c)
{
    const XLA_FFI_DataType f = XLA_FFI_DataType_F32;
    c->in.add(f, {T, N, I}), c->in.add(f, {4 * H, I}), c->in.add(f, {4 * H, H}), c->in.add(f, {4 * H}), c->in.add(f, {4 * H});
}

// The gradient of weight_hh, with both tapes at an offset from a cache line.
static std::vector<float> gradient(size_t tape_bytes, size_t shift)
{
    const XLA_FFI_DataType f = XLA_FFI_DataType_F32, u = XLA_FFI_DataType_U8;
    Call first, second;
    add_all(&first), add_all(&second);
    float *y = first.out.add(f, {T, N, H});
    first.out.add(f, {1, N, H}), first.out.add(f, {1, N, H});
    float *tape = first.out.add(u, {(int64_t)tape_bytes}, shift);
    if (XLA_FFI_Error *error = first.run(rnnfast_xla_forward)) printf("forward: %s\n", error->text), exit(1);

    memcpy(second.in.add(f, {T, N, H}), y, sizeof(float) * T * N * H);
    memcpy(second.in.add(u, {(int64_t)tape_bytes}, shift / 2), tape, tape_bytes);
    second.in.add(f, {T, N, H}), second.in.add(f, {1, N, H}), second.in.add(f, {1, N, H});
    second.out.add(f, {T, N, I}), second.out.add(f, {4 * H, I});
    float *found = second.out.add(f, {4 * H, H});
    second.out.add(f, {4 * H}), second.out.add(f, {4 * H}), second.out.add(f, {1, N, H}), second.out.add(f, {1, N, H});
    if (XLA_FFI_Error *error = second.run(rnnfast_xla_backward)) printf("backward: %s\n", error->text), exit(1);
    return std::vector<float>(found, found + 4 * H * H);
}

// The handler's answer to a version query.
static XLA_FFI_Api_Version answer(int major, size_t embedded)
{
    XLA_FFI_Api api{};
    XLA_FFI_Metadata metadata{};
    XLA_FFI_Metadata_Extension extension{};
    XLA_FFI_CallFrame frame{};
    api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
    api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, major, XLA_FFI_API_MINOR};
    metadata.struct_size = XLA_FFI_Metadata_STRUCT_SIZE;
    extension.extension_base = {XLA_FFI_Metadata_Extension_STRUCT_SIZE, XLA_FFI_Extension_Metadata, nullptr};
    extension.metadata = &metadata;
    frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
    frame.extension_start = &extension.extension_base;
    frame.api = &api;
    frame.args.struct_size = embedded;
    frame.rets.struct_size = XLA_FFI_Rets_STRUCT_SIZE;
    frame.attrs.struct_size = XLA_FFI_Attrs_STRUCT_SIZE;
    rnnfast_xla_forward((const xla_frame *)&frame, 1);
    return metadata.api_version;
}

// Runs calls whose record has random bytes; returns how many of them are accepted.
static int fuzz(int cases)
{
    const XLA_FFI_DataType f = XLA_FFI_DataType_F32;
    std::mt19937 random(0);
    int accepted = 0;
    for (int k = 0; k < cases; k++) {
        Call call;
        add_all(&call);
        call.out.add(f, {T, N, H}), call.out.add(f, {1, N, H}), call.out.add(f, {1, N, H});
        for (size_t count = 1 + random() % 3; count; count--) {
            size_t place = random() % sizeof call.description;
            if (random() % 2) place = place / 4 * 4; // the low byte of a field
            call.changes.push_back({place, (unsigned char)(random() % 2 ? random() % 8 : random())});
        }
        XLA_FFI_Error *error = call.run(rnnfast_xla_forward);
        accepted += !error;
        delete error;
    }
    return accepted;
}

int main()
{
    rnnfast_stack stack{};
    rnnfast_sizes sizes;
    stack.cell = RNNFAST_LSTM, stack.directions = 1, stack.layers = 1, stack.I = I, stack.H = stack.P = H;
    if (rnnfast_get_table("scalar", 4)->sizes(&stack, T, N, nullptr, &sizes)) return 1;

    std::vector<float> at_line = gradient(sizes.tape, 0), beside = gradient(sizes.tape, 2);
    printf("%d buffers beside a line\n", beside_lines);
    printf("gradient %s\n", memcmp(at_line.data(), beside.data(), sizeof(float) * 4 * H * H) ? "differs" : "same");

    const size_t size = XLA_FFI_Args_STRUCT_SIZE;
    XLA_FFI_Api_Version mine = answer(0, size), other = answer(1, size), longer = answer(0, size + 8);
    printf("answers %d.%d %d %d\n", mine.major_version, mine.minor_version - XLA_FFI_API_MINOR, other.major_version, longer.major_version);
    printf("accepted %d\n", fuzz(10000));
    Call first, second;
    add_all(&first), add_all(&second);
    printf("error %s\n", first.run(rnnfast_xla_forward, 1)->text);
    printf("error %s\n", second.run(rnnfast_xla_backward, 0, size + 8)->text);
}
