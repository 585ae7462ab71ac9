"""C programs of layers: their bits, on several compilers and processors, and what cannot be exported."""

import ctypes
import re
import shlex
import shutil
import subprocess
import sys
import wave

import numpy as np
import pytest
from support.cells import CELLS, make_layer
from support.checkout import CSRC, EXAMPLES
from support.command_line import failure, main

import rnnfast
from rnnfast import export, functional, portable
from rnnfast.layers import GRU, LSTM, RNN, Activation, Dropout, Embedding, Linear
from rnnfast.options import FUNCTIONS

WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wdouble-promotion", "-Wshadow", "-Werror"]
T = 23  # steps


def layers():
    """Layers of all cells of the registry, with all their options, and models; sizes below, at and above a tile."""
    made = {}
    for cell, info in CELLS.items():
        if not info.elementwise:
            made[cell] = make_layer(cell, 3, 7)
        made[f"{cell}_stack"] = make_layer(cell, 9 if info.reads_x else 5, 9, num_layers=3, init_state=True)
    made["indrnn_no_bias"] = make_layer("indrnn_relu", 3, 7, bias=False)
    for cell in ("gru", "gru_reset_before"):
        made[f"{cell}_no_bias"] = make_layer(cell, 1, 8, bias=False)
    made["lstm_projected"] = LSTM(3, 9, 2, proj_size=4, init_state=True, rng=0)
    made["lstm_peepholes"] = LSTM(3, 5, 2, peepholes=True, clip=0.7, rng=0)
    made["lstm_coupled"] = LSTM(3, 5, coupled=True, proj_size=2, bias=False, rng=0)
    made["leak_of_units"] = RNN(2, 5, 2, leak=np.linspace(0.1, 1, 10).reshape(2, 5), rng=0)
    functions = [(name, 0.5, 0.25)[: 1 + len(FUNCTIONS[name])] for name in functional.FUNCTIONS]
    for k in range(0, len(functions), 3):
        made[f"lstm_of_functions_{k}"] = LSTM(3, 4, activations=[*functions[k : k + 3], "elu"][:3], rng=0)
    made["rnn_of_function"] = RNN(3, 4, activations=["softsign"], clip=2.5, rng=0)
    made["gru_of_functions"] = GRU(3, 5, activations=["hard_sigmoid", "elu"], rng=0)
    made["gru_before_of_functions"] = GRU(3, 5, reset_after=False, activations=["softplus", "affine"], rng=0)
    made["model"] = rnnfast.Sequential(
        Linear(4, 6, rng=0), Activation("relu"), Dropout(0.5), GRU(6, 9, rng=1),
        rnnfast.Sequential(LSTM(9, 3, 2, rng=2), Linear(3, 17, bias=False, rng=3)), Linear(17, 2, rng=4),
    )  # fmt: skip
    made["activation_first"] = rnnfast.Sequential(Activation("relu"), RNN(3, 4, rng=0), Dropout(0.5))
    made["text"] = rnnfast.Sequential(Embedding(11, 5, rng=0), GRU(5, 8, rng=1), Linear(8, 11, rng=2))
    return made


def made(kinds=("float32", "bfloat16", "int8")):
    """The layers, with values that saturate activations and learned states that are not zero; frozen in some kinds."""
    every = {}
    for kind in kinds:
        for name, layer in layers().items():
            for array in layer.parameters.values():
                array *= 1.5
                array += 0.01
            if kind != "float32":
                layer.freeze(kind)
            every[name if kind == "float32" else f"{name}_{kind}"] = layer
    return every


PLAIN = functional.isas()[-1]  # the one that fuses no products with sums, whose bits exported programs have

with functional.use_isa(PLAIN):
    LAYERS = made()


def input_of(layer):
    rng = np.random.default_rng(0)
    first = layer[0] if isinstance(layer, rnnfast.Sequential) else layer
    if isinstance(first, Embedding):
        return rng.integers(0, first.num_embeddings, T).astype(np.int32)
    x = rng.standard_normal((T, 4 if isinstance(first, Linear) else getattr(first, "input_size", 3)))
    x = x.astype(np.float32)
    x[5], x[6], x[7] = 30, -1e-40, 1e5
    return x


def result_of(layer):
    x = input_of(layer)
    y, *_, state = layer(x[:, np.newaxis])
    return y[:, 0], state


def bits(array):
    return np.ascontiguousarray(array, np.float32).view(np.uint32)


def run(*command, folder=None):
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout


def tool(name, package):
    return shutil.which(name) or pytest.skip(f"{name} is not installed: apt-get install {package}")


def write(folder, name, layer=None):
    """Write a program to a folder; the path of the source."""
    program = export.c_source(layer or LAYERS[name], name)
    (folder / f"{name}.h").write_text(program.header, encoding="utf-8")
    (folder / f"{name}.c").write_text(program.source, encoding="utf-8")
    return folder / f"{name}.c"


# ---- this machine

BUILDS = {  # the last two allow the compiler to use fused multiply-adds, which it must not
    "gcc": ["gcc", "-O2"],
    "gcc_plain": ["gcc", "-O0"],
    "clang": ["clang", "-O2"],
    "gcc_fma": ["gcc", "-O3", "-march=native", "-std=gnu11"],
    "clang_fma": ["clang", "-O3", "-march=native"],
}


def build(folder, sources, compiler, *options):
    """Compile programs into a library."""
    run(tool(compiler, compiler), *WARNINGS, *options, "-shared", "-fPIC", *sources, "-o", folder / "programs.so")
    return ctypes.CDLL(folder / "programs.so")


@pytest.fixture(
    scope="module", params=["gcc", *(pytest.param(name, marks=pytest.mark.full) for name in BUILDS if name != "gcc")]
)
def library(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    return build(folder, [write(folder, name) for name in LAYERS], *BUILDS[request.param])


def computed(library, name, in_steps=False):
    """y and the state that a program computes."""
    x, program = input_of(LAYERS[name]), export.c_source(LAYERS[name], name)
    outputs = int(re.search(r"_OUTPUTS = (\d+)", program.header)[1])
    y, state = np.full((T, outputs), np.nan, np.float32), np.full(program.state // 4, np.nan, np.float32)
    reset, step, run = (getattr(library, f"{name}_{function}") for function in ("reset", "step", "run"))
    for function in (reset, step, run):
        function.restype = None
    of_state = ctypes.c_void_p(state.ctypes.data)
    reset(of_state)
    if in_steps:
        for x_t, y_t in zip(x, y, strict=True):
            x_t = np.array(x_t)
            step(of_state, ctypes.c_void_p(x_t.ctypes.data), ctypes.c_void_p(y_t.ctypes.data))
    else:
        run(of_state, ctypes.c_void_p(x.ctypes.data), ctypes.c_size_t(T), ctypes.c_void_p(y.ctypes.data))
    return y, state


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", LAYERS)
def test_a_program_has_the_bits_of_the_last_instruction_set(library, name):
    y, state = computed(library, name)
    expected, final = result_of(LAYERS[name])
    np.testing.assert_array_equal(bits(y), bits(expected))
    np.testing.assert_array_equal(bits(computed(library, name, in_steps=True)[0]), bits(expected))
    if not isinstance(LAYERS[name], rnnfast.Sequential):
        parts = final if isinstance(final, tuple) else (final,)
        members = [part[k].ravel() for k in range(len(parts[0])) for part in parts]  # h_0, c_0, h_1 ...
        np.testing.assert_array_equal(bits(state), bits(np.concatenate(members)))


def test_these_layers_have_all_cells_of_the_registry():
    generic = {info.generic for info in CELLS.values()} - {None}
    ids = {layer.engine.info.id for layer in LAYERS.values() if hasattr(layer, "engine")}
    assert ids == {info.id for info in CELLS.values()} | generic


@pytest.mark.parametrize("function", ["tanh", "sigmoid", "relu"])
def test_an_activation_agrees_with_numpy(function, tmp_path):
    layer = rnnfast.Sequential(RNN(3, 7, rng=0), Activation(function))
    library = build(tmp_path, [write(tmp_path, "rnn_tanh", layer)], "gcc", "-O2")
    y, state = np.empty(7, np.float32), np.zeros(7, np.float32)
    x = np.float32([1, -2, 3])
    library.rnn_tanh_step(*(ctypes.c_void_p(array.ctypes.data) for array in (state, x, y)))
    np.testing.assert_allclose(y, layer(x[np.newaxis])[0][0], rtol=1e-6)


def test_programs_need_nothing_but_memcpy_and_memset(tmp_path):
    sources = [write(tmp_path, name) for name in ("model", "lstm_of_functions_9", "text")]
    for source in sources:
        run(tool("gcc", "gcc"), "-O2", "-c", source, "-o", tmp_path / "one.o")
        undefined = {line.split()[-1].decode() for line in run("nm", "-u", tmp_path / "one.o").splitlines()}
        assert undefined <= {"memcpy", "memset"}


def test_fast_math_is_refused_by_the_compiler(tmp_path):
    command = [tool("gcc", "gcc"), "-ffast-math", "-c", write(tmp_path, "lstm"), "-o", tmp_path / "lstm.o"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode != 0
    assert "compile it without -ffast-math" in done.stderr


def test_the_header_compiles_as_cxx(tmp_path):
    write(tmp_path, "lstm")
    (tmp_path / "main.cpp").write_text(
        '#include "lstm.h"\nstatic lstm_state state;\nvoid f() { lstm_reset(&state); }\n'
    )
    run(tool("c++", "g++"), "-Wall", "-Wextra", "-Werror", "-fsyntax-only", tmp_path / "main.cpp")


# ---- other machines

# A program that computes T steps: result() returns y.
DRIVER = """
#include "{name}.h"

static const {type} x[] = {{{x}}};
static {name}_state state;
float y[{T} * {NAME}_OUTPUTS];

const float *result(void)
{{
    {name}_reset(&state);
    {name}_run(&state, x, {T}, y);
    return y;
}}
"""
# Writes y to standard output, by system calls of Linux, which the emulator has.
START = """
const float *result(void);
extern float y[];

static void call(long number, long a, const void *b, long c)
{
    register long r0 __asm__("r0") = a, r2 __asm__("r2") = c, of_number __asm__("r7") = number;
    register const void *r1 __asm__("r1") = b;
    __asm__ volatile("svc 0" : "+r"(r0) : "r"(r1), "r"(r2), "r"(of_number) : "memory");
}

void _start(void)
{
    call(4, 1, result(), BYTES);
    call(1, 0, 0, 0);
}
"""
CORES = {"cortex-m4": ["-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"], "cortex-m0": []}
FAR = ["lstm_stack", "gru_reset_before_stack", "lstm_peepholes", "rnn_relu_leaky", "model", "text"]


def write_driver(folder, name):
    x = input_of(LAYERS[name])
    texts = [value.hex() + "f" if isinstance(value, float) else str(value) for value in x.ravel().tolist()]
    driver = folder / "driver.c"
    text = DRIVER.format(
        name=name, NAME=name.upper(), T=T, x=", ".join(texts), type="float" if x.dtype.kind == "f" else "int32_t"
    )
    driver.write_text(text, encoding="utf-8")
    return driver


@pytest.mark.cover(1)
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("name", FAR)
def test_a_microcontroller_computes_the_same_bits(name, core, tmp_path):
    compiler = tool("arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi")
    expected = result_of(LAYERS[name])[0]
    options = ["-O2", f"-mcpu={core}", "-mthumb", *CORES[core]]
    sources = [write(tmp_path, name), write_driver(tmp_path, name)]
    (tmp_path / "start.c").write_text(START.replace("BYTES", str(4 * expected.size)), encoding="utf-8")
    for source in sources:
        run(compiler, *WARNINGS, *options, "-c", source, "-o", source.with_suffix(".o"))
    objects = [source.with_suffix(".o") for source in sources]
    run(compiler, *options, "-nostartfiles", tmp_path / "start.c", *objects, "-o", tmp_path / "program")
    y = np.frombuffer(run(tool("qemu-arm", "qemu-user"), tmp_path / "program"), np.float32)
    np.testing.assert_array_equal(bits(y), bits(expected).ravel())


@pytest.mark.full
@pytest.mark.parametrize("name", FAR)
def test_webassembly_computes_the_same_bits(name, tmp_path):
    pytest.importorskip("ziglang", reason="ziglang, which compiles to WebAssembly, is not installed")
    wasmtime = pytest.importorskip("wasmtime", reason="wasmtime, which runs WebAssembly, is not installed")
    sources = [write(tmp_path, name), write_driver(tmp_path, name)]
    (tmp_path / "string.h").write_text(
        "#include <stddef.h>\nvoid *memcpy(void *, const void *, size_t), *memset(void *, int, size_t);\n"
    )
    target = ["-target", "wasm32-freestanding", "-Wl,--no-entry", "-Wl,--export=result"]
    compiler = [sys.executable, "-m", "ziglang", "cc", *target, "-I", tmp_path]
    run(*compiler, "-O2", *WARNINGS, *sources, "-o", tmp_path / "program.wasm")
    store = wasmtime.Store()
    instance = wasmtime.Instance(store, wasmtime.Module.from_file(store.engine, str(tmp_path / "program.wasm")), [])
    exports, expected = instance.exports(store), result_of(LAYERS[name])[0]
    begin = exports["result"](store)
    y = np.frombuffer(exports["memory"].read(store, begin, begin + 4 * expected.size), np.float32)
    np.testing.assert_array_equal(bits(y), bits(expected).ravel())


# ---- what a program says, and what is refused


def test_sizes_count_constants_states_and_scratch():
    program = export.c_source(rnnfast.Sequential(LSTM(2, 16, rng=0), Linear(16, 3, rng=0), Activation("relu")))
    assert program.flash == 4 * (64 * (2 + 16) + 64 + 3 * 16 + 3)
    assert program.state == 4 * (16 + 16)
    assert program.scratch == 4 * (64 + 3)
    assert f"{program.flash} bytes of constants, {program.state} for each state" in program.header


def test_weights_in_fewer_bytes_take_fewer_bytes():
    """One scale for each unit of a gate; biases stay float32."""
    gru = GRU(16, 64, rng=0)
    weights, units = 3 * 64 * (16 + 64), 2 * 3 * 64
    flash = []
    for kind in ("float32", "bfloat16", "int8"):
        gru.freeze(kind)
        flash.append(export.c_source(gru).flash)
    biases = 4 * 4 * 64  # of r, z, and the two of n
    assert flash == [4 * weights + biases, 2 * weights + biases, weights + 4 * units + biases]


def test_float64_layers_are_rounded():
    layer = LSTM(2, 3, dtype=np.float64, rng=0)
    same = LSTM.from_state_dict(layer.state_dict(), dtype=np.float32)
    assert export.c_source(layer).source.partition("*/")[2] == export.c_source(same).source.partition("*/")[2]


class Model(rnnfast.Model):
    def __init__(self):
        self.recurrent = LSTM(2, 3, rng=0)


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        (lambda: LSTM(2, 3, bidirectional=True), ValueError, r"LSTM\(2, 3, bidirectional=True\) cannot be exported"),
        (lambda: GRU(2, 3, reverse=True), ValueError, "its reverse direction starts at the last step"),
        (lambda: rnnfast.Bidirectional(GRU(2, 3)), ValueError, "its reverse direction starts at the last step"),
        (lambda: rnnfast.Sequential(GRU(2, 3), rnnfast.Pool("last")), TypeError, r"Dropout, got Pool\('last'\)"),
        (lambda: rnnfast.Sequential(GRU(2, 3), rnnfast.LayerNorm(3)), TypeError, r"got LayerNorm\(3\)"),
        (lambda: rnnfast.Sequential(Linear(2, 3)), TypeError, "at least one recurrent layer"),
        (lambda: rnnfast.Sequential(Dropout(0.5)), TypeError, "at least one recurrent layer"),
        (
            lambda: rnnfast.Sequential(Activation("relu"), Embedding(3, 2), GRU(2, 3)),
            TypeError,
            "an Embedding must be the first layer",
        ),
        (Model, TypeError, "got Model"),
        (lambda: None, TypeError, "got NoneType"),
    ],
)
def test_what_cannot_be_streamed_is_refused(layer, error, match):
    with pytest.raises(error, match=match):
        export.c_source(layer())


@pytest.mark.parametrize("make", [lambda: GRU(2, 3), lambda: rnnfast.Sequential(rnnfast.Embedding(4, 2), GRU(2, 3))])
def test_int8_activations_are_refused(make):
    model = make()
    model.freeze("int8", "int8")
    with pytest.raises(ValueError, match=r"call freeze\(weights='int8', activations='float32'\)"):
        export.c_source(model)
    model.freeze("int8", "float32")
    export.c_source(model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_refused(value):
    layer = GRU(2, 3, rng=0)
    layer.parameters["weight_hh_l0"][1, 2] = value
    with pytest.raises(ValueError, match="the parameters must be finite in float32, but some of weight_hh_0 are not"):
        export.c_source(layer)


@pytest.mark.parametrize("name", ["", "1", "a-b", "é", "a b", "a\n", 3])
def test_names_are_identifiers(name):
    with pytest.raises(ValueError, match="name must be a C identifier"):
        export.c_source(GRU(2, 3, rng=0), name)


# ---- the sources


@pytest.mark.skipif(not CSRC.is_dir(), reason="needs csrc/, which only a checkout of rnnfast has")
def test_the_bundle_of_a_wheel_gives_the_same_programs(tmp_path):
    checkout = portable.Sources(CSRC)
    (tmp_path / portable.BUNDLE).write_text(checkout.bundle(), encoding="utf-8")
    bundle = portable.Sources(tmp_path)
    assert bundle.bundle() == checkout.bundle()
    needs = {"add_product", "sigmoid", "hyperbolic_tangent", "relu"}
    names = {layer.engine.info.name for layer in LAYERS.values() if hasattr(layer, "engine")}
    for name in names:
        assert bundle.cell(name) == checkout.cell(name)
        needs |= {stage.forward for stage in bundle.cell(name)[2]} - {None}
    assert bundle.select(needs) == checkout.select(needs)


def test_conditions_are_decided_as_scalar_code_has_them(tmp_path):
    text = """/* Head comment. */
#pragma once
#include "simd.h"
#if LANES > 1 && (defined(__AVX__) || REAL_BITS == 64)
int wrong(void);
#elif !(REAL_BITS != 64)
int wrong(void);
#elif LANES == 1
int right(void);
#if defined(__GNUC__)
#define KEPT 1
#else
#define KEPT 0
#endif
#elif REAL_BITS == 32
int wrong(void);
#else
int wrong(void);
#endif
#ifndef HAS_MASKS
int wrong(void);
#endif

/* Calls right(). */
static int user(int a)
{
    return right() + KEPT + a;
}

static int other(void)
{
    return 1;
}
"""
    (tmp_path / portable.BUNDLE).write_text(text, encoding="utf-8")
    assert portable.Sources(tmp_path).select({"user", "wrong"}) == (
        "int right(void);\n#if defined(__GNUC__)\n#define KEPT 1\n#else\n#define KEPT 0\n#endif\n\n"
        "/* Calls right(). */\nstatic int user(int a)\n{\n    return right() + KEPT + a;\n}\n"
    )


# ---- the command, and the example


@pytest.fixture
def saved(tmp_path):
    model = rnnfast.Sequential(LSTM(1, 16, rng=0), Linear(16, 1, rng=1))
    model.save(tmp_path / "model.npz")
    return tmp_path / "model.npz", model


def test_the_command_writes_a_source_and_a_header(saved, tmp_path, capsys):
    path, model = saved
    assert main(["export", str(path), "-o", str(tmp_path / "model.c")]) == 0
    printed = capsys.readouterr().out
    program = export.c_source(model, "model")
    assert (tmp_path / "model.c").read_text(encoding="utf-8") == program.source
    assert (tmp_path / "model.h").read_text(encoding="utf-8") == program.header
    assert "flash  4,676 bytes" in printed
    assert "RAM    128 bytes for each state, 256 bytes" in printed
    assert main(["export", str(path), "-o", str(tmp_path / "other.c"), "--name", "net"]) == 0
    assert '#include "net.h"' in (tmp_path / "other.c").read_text(encoding="utf-8")
    assert "net_step" in (tmp_path / "net.h").read_text(encoding="utf-8")


def test_the_command_refuses_what_it_cannot_read_or_write(saved, tmp_path, capsys):
    path, _ = saved
    assert "cannot read" in failure(capsys, "export", tmp_path / "none.npz", "-o", tmp_path / "a.c")
    (tmp_path / "text").write_text("text")
    assert "rnnfast cannot load" in failure(capsys, "export", tmp_path / "text", "-o", tmp_path / "a.c")
    assert "name must be a C identifier" in failure(capsys, "export", path, "-o", tmp_path / "1.c")
    assert "are the same file" in failure(capsys, "export", path, "-o", path)
    assert "are the same file" in failure(capsys, "export", path, "-o", tmp_path / "a.h")
    assert "cannot write" in failure(capsys, "export", path, "-o", tmp_path / "none" / "a.c")
    LSTM(2, 3, bidirectional=True).save(path)
    assert "cannot be exported" in failure(capsys, "export", path, "-o", tmp_path / "a.c")
    assert not (tmp_path / "a.c").exists()


def test_the_example_filters_a_sound(saved, tmp_path):
    source = EXAMPLES / "c" / "sound.c"
    if not source.is_file():
        pytest.skip("needs examples/, which only a checkout of rnnfast has")
    _, model = saved
    write(tmp_path, "model", model)
    [command] = re.findall(r"\* +gcc (.*)\n", source.read_text(encoding="utf-8"))
    options = [str(source) if word.endswith("sound.c") else word for word in shlex.split(command)]
    run(tool("gcc", "gcc"), *options, "-Wall", "-Wextra", "-Wconversion", "-Werror", folder=tmp_path)
    samples = (20000 * np.sin(np.arange(400).reshape(200, 2) / 5)).astype("<i2")
    with wave.open(str(tmp_path / "in.wav"), "wb") as file:
        file.setparams((2, 2, 8000, 200, "NONE", ""))
        file.writeframes(samples.tobytes())
    run(tmp_path / "sound", "in.wav", "out.wav", folder=tmp_path)
    with wave.open(str(tmp_path / "out.wav"), "rb") as file:
        assert file.getparams()[:4] == (2, 2, 8000, 200)
        found = np.frombuffer(file.readframes(200), "<i2").reshape(200, 2)
    expected, _ = model((samples / np.float32(32768))[..., np.newaxis])
    np.testing.assert_allclose(found, np.clip(expected[..., 0], -1, 1) * 32767, atol=1.01)
