"""The C interface: the examples compile and agree with the layers, and incompatible headers are rejected."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from support.checkout import CHECKOUT

import rnnfast
from rnnfast import functional

EXAMPLES = CHECKOUT / "examples" / "c"
INCLUDE = Path(rnnfast.get_include())
HEADER = INCLUDE / "rnnfast.h"
GUARD = """
#include "rnnfast_python.h"
static int execute(PyObject *module) { return module && rnnfast_import() ? 0 : -1; }
static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)execute}, {0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "NAME", NULL, 0, NULL, slots, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit_NAME(void) { return PyModuleDef_Init(&definition); }
"""


@pytest.fixture(scope="module")
def compiler():
    names = [os.environ.get("CC", ""), "gcc", "cc", "clang"]
    [*found] = filter(None, map(shutil.which, filter(None, names)))
    if not found:
        pytest.skip("needs a C compiler, to build the examples in C")
    return found[0]


@pytest.fixture(scope="module")
def kernels():
    if not (CHECKOUT / "csrc" / "dispatch.c").is_file() or not EXAMPLES.is_dir():
        pytest.skip("the tests do not lie in a checkout of rnnfast, so there are no sources to compile")


@pytest.fixture(scope="module")
def extensions(compiler):  # noqa: ARG001
    pytest.importorskip("setuptools", reason="setuptools is not installed: no extension modules are built")
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        pytest.skip("Python.h is not installed: no extension modules are built")


def run(command, folder):
    environment = {**os.environ, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1])}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def command_of_the_example():
    """The first command in the head comment of the C example, without the compiler and the program name."""
    command = re.search(r" \* +gcc (.*?) -o lstm\n", (EXAMPLES / "lstm.c").read_text(encoding="utf-8"), re.DOTALL)
    return shlex.split(command[1].replace("\\\n *", ""))


def load(folder, name):
    """Import a module that was built in a folder."""
    [path] = [path for path in folder.iterdir() if path.name.startswith(name + ".") and path.suffix in {".so", ".pyd"}]
    spec = util.spec_from_file_location(name, path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- C


def test_the_headers_are_where_get_include_says():
    assert {"rnnfast.h", "rnnfast_python.h"} <= {path.name for path in INCLUDE.iterdir()}
    assert "Python.h" not in HEADER.read_text(encoding="utf-8")


@pytest.mark.usefixtures("kernels")
def test_the_example_in_c_has_the_loss_and_the_gradient_of_the_layer(compiler, tmp_path):
    run([compiler, *command_of_the_example(), "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "lstm"], CHECKOUT)
    printed = dict(line.rsplit(" ", 1) for line in run([tmp_path / "lstm"], tmp_path).splitlines())

    layer = rnnfast.LSTM(3, 5, dtype=np.float64)
    for array in layer.parameters.values():
        array.flat = [(k * k % 23) / 22 - 0.5 for k in range(array.size)]
    x = np.array([(k * k % 23) / 22 - 0.5 for k in range(7 * 2 * 3)]).reshape(7, 2, 3)
    y, _, tape = layer.forward(x)
    gradient = layer.backward(tape, y).parameters["weight_hh_l0"][7, 3]
    assert printed["instruction set"] == "scalar"
    assert float(printed["loss"]) == pytest.approx((y * y).sum() / 2, rel=1e-13)
    assert float(printed["gradient"]) == pytest.approx(gradient, rel=1e-12)
    assert float(printed["difference"]) == pytest.approx(gradient, rel=1e-8)


@pytest.mark.usefixtures("kernels")
def test_the_example_of_a_prepared_step_agrees_with_a_stream(compiler, tmp_path):
    options = ["examples/c/step.c" if word == "examples/c/lstm.c" else word for word in command_of_the_example()]
    run([compiler, *options, "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "step"], CHECKOUT)
    printed = [float(line) for line in run([tmp_path / "step"], tmp_path).split()]

    def numbers(count):
        return [np.float32(k * k % 23) / np.float32(22) - np.float32(0.5) for k in range(count)]

    with functional.use_isa(functional.isas()[-1]):
        layer = rnnfast.LSTM(1, 20)
    for name, array in layer.parameters.items():
        array.flat = 0 if name == "bias_hh_l0" else numbers(array.size)
    stream, readout = layer.stream(), np.array(numbers(20))
    expected = [readout @ stream.step(np.float32([np.sin(n / 3)])) for n in range(48)]
    np.testing.assert_allclose(printed, expected, rtol=1e-5, atol=1e-6)


REFUSED = """
#include "rnnfast.h"
#include <stdio.h>

int main(void)
{
    const rnnfast_table *table = rnnfast_get_table("scalar", sizeof(float));
    const ptrdiff_t cases[][4] = {/* cell, H, P, expected */
                                  {RNNFAST_LSTM, 4, 4, 0}, {RNNFAST_LSTM, 4, 2, 0}, {RNNFAST_LSTM, 4, 17, 1},
                                  {RNNFAST_LSTM, 4, 0, 1}, {RNNFAST_LSTM, 4, -1, 1}, {RNNFAST_GRU, 4, 2, 1},
                                  {RNNFAST_CELLS, 4, 4, 1}, {999999, 4, 4, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rnnfast_stack s = {.cell = (rnnfast_cell)cases[i][0], .directions = 1, .layers = 2, .I = 3};
        s.H = cases[i][1], s.P = cases[i][2];
        rnnfast_sizes sizes;
        printf("%d", table->sizes(&s, 5, 2, NULL, &sizes) != cases[i][3]);
    }
}
"""


@pytest.mark.usefixtures("kernels")
def test_sizes_refuses_unknown_cells_and_projections(compiler, tmp_path):
    (tmp_path / "refused.c").write_text(REFUSED, encoding="utf-8")
    options = [word for word in command_of_the_example() if word != "examples/c/lstm.c"]
    run([compiler, tmp_path / "refused.c", *options, "-o", tmp_path / "refused"], CHECKOUT)
    assert run([tmp_path / "refused"], tmp_path) == "0" * 8


REAL_TIME = """
#define _GNU_SOURCE
#include "rnnfast.h"
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int calls; /* of the functions that the linker redirects here */
int __wrap_pthread_mutex_lock(void *mutex) { (void)mutex; calls++; return 0; }
void *__real_malloc(size_t), *__real_calloc(size_t, size_t), *__real_realloc(void *, size_t);
void *__wrap_malloc(size_t n) { calls++; return __real_malloc(n); }
void *__wrap_calloc(size_t m, size_t n) { calls++; return __real_calloc(m, n); }
void *__wrap_realloc(void *p, size_t n) { calls++; return __real_realloc(p, n); }

/* Prints 0. With an argument, the steps are followed by something that a real-time thread must not do. */
int main(int argc, char **argv)
{
    enum { I = 3, H = 20, N = 2, L = 2 };
    static float W[4 * H * H], x[N * I], y[N * H], h[L * N * H], c[L * N * H];
    static _Alignas(RNNFAST_ALIGNMENT) char packed[1 << 16], prepared[2][1 << 16];
    const void *parameters[L * RNNFAST_KINDS] = {W, W, 0, 0, 0, 0, W, W};
    const rnnfast_table *table = rnnfast_get_table("scalar", sizeof(float));
    rnnfast_stack stack = {.cell = RNNFAST_LSTM, .directions = 1, .layers = L, .I = I, .H = H, .P = H};
    rnnfast_sizes sizes;
    rnnfast_poll none = {0};
    if (table->sizes(&stack, 1, N, NULL, &sizes) || sizes.packed > sizeof packed) return 2;
    table->pack(&stack, parameters, packed, NULL, 1, none);
    for (int rows = 1; rows <= N; rows++) {
        size_t bytes;
        if (table->step_size(&stack, rows, &bytes) || bytes > sizeof prepared[0]) return 3;
        table->prepare_step(&stack, rows, packed, prepared[rows - 1]);
    }
    void *volatile first = malloc(8); /* the heap gets memory of the system */
    free(first);
    calls = 0;
    /* From here on, any system call but read, write and exit kills the process. */
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) return 4;
    for (int k = 0; k < 1000; k++)
        table->step(prepared[k % N], &(rnnfast_step){.x = x, .h0 = h, .c0 = c, .y = y, .h_n = h, .c_n = c});
    if (argc > 1 && !strcmp(argv[1], "allocate")) x[0] = ((volatile char *)calloc(1, 8))[0];
    if (argc > 1 && !strcmp(argv[1], "call")) x[0] = (float)syscall(SYS_getpid);
    char printed = (char)('0' + calls);
    if (write(1, &printed, 1) != 1) syscall(SYS_exit, 5);
    syscall(SYS_exit, 0);
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forbid system calls")
@pytest.mark.usefixtures("kernels")
def test_a_prepared_step_allocates_nothing_takes_no_lock_and_makes_no_system_call(compiler, tmp_path):
    (tmp_path / "step.c").write_text(REAL_TIME, encoding="utf-8")
    options = [word for word in command_of_the_example() if word != "examples/c/lstm.c"]
    wrapped = [f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "realloc", "pthread_mutex_lock")]
    run([compiler, tmp_path / "step.c", *options, *wrapped, "-o", tmp_path / "step"], CHECKOUT)
    assert run([tmp_path / "step"], tmp_path) == "0"
    assert run([tmp_path / "step", "allocate"], tmp_path) == "1"
    assert subprocess.run([tmp_path / "step", "call"], check=False).returncode == -signal.SIGKILL


@pytest.mark.full
@pytest.mark.usefixtures("kernels")
def test_the_example_in_the_header_runs(compiler, tmp_path):
    head = HEADER.read_text(encoding="utf-8").partition("Example")[2].partition("*/")[0]
    code = "\n".join(re.findall(r"^ \*     (.*)$", head, re.MULTILINE))
    (tmp_path / "head.c").write_text(code, encoding="utf-8")
    options = [word for word in command_of_the_example() if word != "examples/c/lstm.c"]
    run([compiler, tmp_path / "head.c", *options, "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "head"], CHECKOUT)
    isa, h = run([tmp_path / "head"], tmp_path).split()

    layer = rnnfast.LSTM(3, 5)
    for array in layer.parameters.values():
        array.fill(0)
    layer.parameters["bias_ih_l0"][10] = 1
    y, _ = layer(np.zeros((7, 2, 3), np.float32))
    assert isa == "scalar"
    assert float(h) == pytest.approx(y[-1, 0, 0], rel=1e-5) == pytest.approx(0.3194, rel=1e-3)


@pytest.mark.usefixtures("extensions")
def test_the_headers_compile_as_cxx(tmp_path):
    compiler = shutil.which("c++") or pytest.skip("there is no C++ compiler: the headers are not compiled as C++")
    (tmp_path / "guard.cpp").write_text(GUARD.replace("NAME", "guard"), encoding="utf-8")
    folders = [f"-I{folder}" for folder in (INCLUDE, sysconfig.get_paths()["include"])]
    run([compiler, "-Wall", "-Wextra", "-Werror", *folders, "-fsyntax-only", "guard.cpp"], tmp_path)


# ---- Cython


@pytest.fixture(scope="module")
def scores(extensions, kernels, tmp_path_factory):  # noqa: ARG001
    """The example package, built by its setup.py."""
    pytest.importorskip("Cython", reason="cython is not installed: the example in Cython is not built")
    folder = shutil.copytree(EXAMPLES / "package", tmp_path_factory.mktemp("package") / "scores")
    run([sys.executable, "setup.py", "build_ext", "--inplace"], folder)
    return load(folder, "scores")


@pytest.mark.full
@pytest.mark.parametrize(("T", "N", "I", "H"), [(1, 1, 1, 1), (9, 3, 5, 37), (40, 17, 8, 64)])
def test_the_example_in_cython_has_the_bits_of_the_layer(scores, T, N, I, H):
    layer = rnnfast.LSTM(I, H, rng=T)
    inner = scores.LSTM(*layer.parameters.values())
    x = np.random.default_rng(T).standard_normal((4, T, N, I), np.float32)
    y, h, c = np.empty((4, T, N, H), np.float32), np.empty((4, N, H), np.float32), np.empty((4, N, H), np.float32)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(inner.run, x, y, h, c))
    for k in range(4):
        expected, (h_n, c_n) = layer(x[k])
        np.testing.assert_array_equal(y[k], expected)
        np.testing.assert_array_equal(h[k], h_n[0])
        np.testing.assert_array_equal(c[k], c_n[0])


@pytest.mark.full
def test_the_example_in_cython_rejects_invalid_arguments(scores):
    layer = rnnfast.LSTM(3, 4)
    parameters = list(layer.parameters.values())
    with pytest.raises(ValueError, match="weight_ih, weight_hh, bias_ih and bias_hh must be"):
        scores.LSTM(*parameters[:3], parameters[3][1:])
    x, y, h = np.zeros((2, 1, 3), np.float32), np.zeros((2, 1, 4), np.float32), np.zeros((1, 4), np.float32)
    with pytest.raises(ValueError, match=r"x must be \(T, N, 3\)"):
        scores.LSTM(*parameters).run(x[:0], y, h, h.copy())
    with pytest.raises(ValueError, match=r"y must be \(2, 1, 4\)"):
        scores.LSTM(*parameters).run(x, y[1:], h, h.copy())


# ---- the guard of the capsule: modules compiled with other headers than those of the library

VERSION = int(re.search(r"#define RNNFAST_ABI (\d+)", HEADER.read_text(encoding="utf-8"))[1])
STRUCTS = ["stack", "problem", "sizes", "order", "linear", "pattern", "step", "table", "api"]
EDITS = {  # of the header: what is replaced, by what, and how the module is refused
    "same": ("#define RNNFAST_H$", "#define RNNFAST_H", None),
    "fewer_entries": (r"    void \(\*step\)\(.*\);\n", "", None),
    "fewer_functions": (r"    RNNFAST_SOFTPLUS,.*\n", "", None),
    "version": (
        r"RNNFAST_ABI \d+",
        f"RNNFAST_ABI {VERSION + 1}",
        rf"version {VERSION + 1} .* has version {VERSION}: compile the",
    ),
    "cell": ("(    RNNFAST_CELLS)$", r"    RNNFAST_MORE,\n\1", "rnnfast_cell has size .* compile the"),
    "function": ("(    RNNFAST_ACTIVATIONS)$", r"    RNNFAST_MORE,\n\1", "rnnfast_function has size"),
    **{name: (rf"\}} (rnnfast_{name});", r"char more; } \1;", f"rnnfast_{name} has size") for name in STRUCTS},
}


@pytest.fixture(scope="module")
def guards(extensions, tmp_path_factory):  # noqa: ARG001
    """A folder of modules that import the capsule, one for each edited header."""
    folder = tmp_path_factory.mktemp("guards")
    for name, (old, new, _) in EDITS.items():
        (folder / name).mkdir()
        shutil.copy(INCLUDE / "rnnfast_python.h", folder / name)
        text, count = re.subn(old, new, HEADER.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert count == 1
        (folder / name / "rnnfast.h").write_text(text, encoding="utf-8")
        (folder / f"guard_{name}.c").write_text(GUARD.replace("NAME", f"guard_{name}"), encoding="utf-8")
    (folder / "setup.py").write_text(
        "from setuptools import Extension, setup\n"
        f"names = {list(EDITS)}\n"
        "modules = [Extension('guard_' + name, [f'guard_{name}.c'], include_dirs=[name]) for name in names]\n"
        "setup(name='guards', py_modules=[], ext_modules=modules)\n",
        encoding="utf-8",
    )
    run([sys.executable, "setup.py", "build_ext", "--inplace"], folder)
    return folder


@pytest.mark.cover(1)
@pytest.mark.parametrize("name", EDITS)
def test_a_module_compiled_with_another_header(guards, name):
    refused = EDITS[name][2]
    if refused is None:
        load(guards, f"guard_{name}")
    else:
        with pytest.raises(ImportError, match=refused):
            load(guards, f"guard_{name}")


def test_a_module_compiled_for_a_library_without_the_interface(guards, monkeypatch):
    monkeypatch.delattr(rnnfast._core, "api")
    with pytest.raises(ImportError, match="installed rnnfast has no C interface: install a newer version"):
        load(guards, "guard_same")
