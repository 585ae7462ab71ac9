"""Build the extension module. pyproject.toml declares everything else about the package.

The kernels are one source, compiled once for each element type and instruction set with different flags. Setuptools has
no flags per source, hence the override of build_extension below.
"""

import os
import platform
import runpy
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.modified import newer_group

# A universal2 Python asks for both architectures at once, which flags per instruction set do not allow.
if sysconfig.get_platform().endswith("universal2"):
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")
    IS_X86_64 = platform.machine() == "x86_64"
else:
    IS_X86_64 = sysconfig.get_platform().endswith(("x86_64", "amd64"))

# One wheel serves every CPython from 3.11 on. Free-threaded builds cannot load it and get their own wheel.
LIMITED_API = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")

# These come after the user's CFLAGS, so -march=native or -ffast-math there cannot change what the kernels compute.
FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-fast-math", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-std=c11", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]
# C code never unwinds; its tables take 25 kB of a wheel.
NO_UNWIND = ["-fno-asynchronous-unwind-tables"] if sys.platform == "linux" else []
FLAGS += NO_UNWIND
ISA_FLAGS = {"base": [], "scalar": []}
if IS_X86_64:
    x86 = ["-march=x86-64", "-mtune=generic"]
    avx2 = ["-mavx2", "-mfma"]
    avx512 = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mprefer-vector-width=512"]
    ISA_FLAGS = {
        # -O2 saves 50 kB of a wheel. Hot loops use vector types: -O3 gains nothing in float32, and up to 6% in float64.
        "avx512": [*x86, "-O2", *avx2, *avx512],
        "avx2": [*x86, "-O2", "-mno-avx512f", *avx2],
        # Rarely used: -O2 is up to 14% faster, in small odd sizes, and adds 30 kB. Its bits are those of scalar.
        "base": [*x86, "-mno-avx", "-Os"],
    }


class BuildKernels(build_ext):
    """Compile the changed files of csrc/ in parallel, and link the objects into the extension."""

    def build_extension(self, ext):
        self.cython_c_in_temp = True
        isa_flags, flags, macros = ISA_FLAGS, FLAGS, []
        # The binding spends its time in calls. -Os makes a wheel 40 kB smaller, and calls no slower.
        ext.extra_compile_args = ["-Os", "-g0", "-fvisibility=hidden", *NO_UNWIND]
        ext.extra_link_args = ["-pthread", "-fno-fast-math"]
        if sys.platform == "linux":
            ext.extra_link_args.append("-Wl,-s")
        if self.compiler.compiler_type == "msvc":
            ext.extra_compile_args = ext.extra_link_args = []
            if "clang-cl" in os.environ.get("CC", ""):
                self.compiler.initialize()
                self.compiler.cc = os.environ["CC"]
                flags = [f"/clang:{flag}" for flag in FLAGS]
                isa_flags = {isa: [f"/clang:{flag}" for flag in own] for isa, own in ISA_FLAGS.items()}
            else:  # cl has no vector types
                isa_flags, flags, macros = {"scalar": []}, ["/std:c11"], [("RNNFAST_SCALAR_ONLY", "1")]
        elif "RNNFAST_SCALAR_ONLY" in os.environ:  # to test the build for MSVC with another compiler
            isa_flags, macros = {"scalar": []}, [("RNNFAST_SCALAR_ONLY", "1")]

        plain = "dispatch", "threads", "order", "zoneout", "optimizers_f32", "optimizers_f64", "xla_ffi", "ort_ops"
        units = {f"csrc/{name}.c": flags for name in plain}
        for isa, own in isa_flags.items():
            units |= {f"csrc/f{bits}_{isa}.c": flags + own for bits in (32, 64)}

        def compile_unit(source):
            [unit] = self.compiler.object_filenames([source], output_dir=self.build_temp)
            if self.force or newer_group([source, *HEADERS, "setup.py"], unit):
                self.compiler.compile([source], self.build_temp, macros, extra_postargs=units[source])
            return unit

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ext.extra_objects = list(pool.map(compile_unit, units))
        super().build_extension(ext)


class CopyHeaders(build_py):
    """Add the public headers to a wheel, as rnnfast/include, and the parts of csrc/ that exported programs consist of.

    In a checkout, rnnfast.get_include() is csrc/.
    """

    def run(self):
        super().run()
        if not self.editable_mode:
            include = os.path.join(self.build_lib, "rnnfast", "include")
            self.mkpath(include)
            for name in ("rnnfast.h", "rnnfast_python.h"):
                self.copy_file(f"csrc/{name}", include)
            portable = runpy.run_path("rnnfast/portable.py")
            Path(include, portable["BUNDLE"]).write_bytes(portable["Sources"](Path("csrc")).bundle().encode())


HEADERS = sorted(glob("csrc/*.h"))
CORE = Extension(
    "rnnfast._core",
    ["rnnfast/_core.pyx"],
    include_dirs=["csrc"],
    libraries=[] if sys.platform == "win32" else ["m"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else [],
    py_limited_api=LIMITED_API,
    depends=[*HEADERS, *sorted(glob("csrc/*.c")), "setup.py"],
)

setup(
    ext_modules=[CORE],
    cmdclass={"build_ext": BuildKernels, "build_py": CopyHeaders},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
