"""Contents and reproducibility of the wheel, and the cost of `import rnnfast`."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.checkout import CHECKOUT
from support.processes import python

import rnnfast

NOT_SOURCES = shutil.ignore_patterns(
    ".git", "build", "dist", "*.egg-info", "*.so", "*.pyd", "__pycache__", ".*_cache", ".hypothesis", ".venv", "venv"
)


def version_of(distribution):
    try:
        return tuple(map(int, importlib.metadata.version(distribution).split(".")[:2]))
    except importlib.metadata.PackageNotFoundError:
        return (0, 0)


def build(kind, directory, out):
    """Build the "sdist" or "wheel" of the sources in a directory with the tools of this environment; its path."""
    out.mkdir()
    command = f"import sys; from setuptools.build_meta import build_{kind}; build_{kind}(sys.argv[1])"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    result = subprocess.run(
        [sys.executable, "-c", command, str(out)], cwd=directory, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    [path] = out.iterdir()
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the checkout without build products."""
    if not (CHECKOUT / "csrc").is_dir() or not (CHECKOUT / "setup.py").is_file():
        pytest.skip("the tests do not lie in a checkout of rnnfast, so there is nothing to build")
    if version_of("setuptools") < (77, 0) or version_of("cython") < (3, 1):
        pytest.skip("needs setuptools >= 77 and cython >= 3.1: pip install '.[test]'")
    return shutil.copytree(CHECKOUT, tmp_path_factory.mktemp("checkout") / "sources", ignore=NOT_SOURCES)


@pytest.fixture(scope="module")
def sdist(sources, tmp_path_factory):
    return build("sdist", sources, tmp_path_factory.mktemp("sdist") / "dist")


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    return build("wheel", sources, tmp_path_factory.mktemp("wheel") / "dist")


def test_sdist_holds_all_sources_and_nothing_generated(sdist, sources):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ["csrc", "rnnfast", "tests", "benchmarks", "examples", "docs"]
    expected = {path for folder in folders for path in (sources / folder).rglob("*") if path.is_file()}
    assert {path.relative_to(sources).as_posix() for path in expected} <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"} <= names
    assert "rnnfast/_core.c" not in names


@pytest.mark.full
def test_wheel_holds_the_package_and_its_headers_and_no_other_source(wheel, sources):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = (sources / "rnnfast").rglob("*")
    package = {path.relative_to(sources).as_posix() for path in files if path.suffix in {".py", ".pyi", ".pxd"}}
    [extension] = {name for name in names if name.endswith((".so", ".pyd"))}
    [info] = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    notes = {
        f"{info}/{name}"
        for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt")
    }
    headers = {f"rnnfast/include/{name}" for name in ("rnnfast.h", "rnnfast_python.h", "portable.h")}
    assert names == package | {extension, "rnnfast/py.typed", *headers} | notes


@pytest.mark.full
def test_wheel_serves_every_cpython_from_3_11_on(wheel):
    serves = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
    assert ("-cp311-abi3-" in wheel.name) == serves


@pytest.mark.full
def test_wheel_is_small_and_without_debug_information(wheel):
    assert wheel.stat().st_size <= 1_120_000
    with zipfile.ZipFile(wheel) as archive:
        [extension] = [name for name in archive.namelist() if name.endswith((".so", ".pyd"))]
        assert b".debug_info" not in archive.read(extension)


# Prints the instruction set, and a digest of the results of all cells.
DIGEST = """
import hashlib
import numpy as np
from support.cells import VARIANTS
from support.guards import run_engine
from support.problems import variant_problem
from rnnfast import functional

digest, isa = hashlib.sha256(), functional.isas()[-1]
for variant in VARIANTS:
    for dtype in (np.float32, np.float64):
        results = run_engine(variant_problem(variant, 5, 3, 7, 21, dtype=dtype, num_layers=2, bidirectional=True), isa)
        for name in sorted(results):
            digest.update(results[name].tobytes())
print(isa, digest.hexdigest())
"""


@pytest.mark.full
def test_a_build_without_vectors(sources, tmp_path):
    """As with MSVC. It passes the tests of the engine, and has the bits of other kernels that fuse nothing."""
    package, tests = tmp_path / "package", CHECKOUT / "tests"

    def run(*arguments, **variables):
        environment = {**os.environ, "RNNFAST_SCALAR_ONLY": "1", **variables}
        command = [sys.executable, "-P", *arguments]
        result = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    run("setup.py", "-q", "build", "--build-base", tmp_path / "build", "--build-lib", package)
    path = f"{package}{os.pathsep}{tests}"
    isa, digest = run("-c", DIGEST, PYTHONPATH=path).split()
    assert isa == "scalar"
    if "avx2" in rnnfast.isas():
        assert run("-c", DIGEST, PYTHONPATH=str(tests)).split() == ["base", digest]
    modules = (f"test_{name}.py" for name in ("engine", "engine_linear", "ragged", "narrow", "activations"))
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", *(tests / module for module in modules), PYTHONPATH=path)


@pytest.mark.full
def test_wheel_from_the_sdist_has_the_same_bytes(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            path = tmp_path / "another" / "place" / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.extractfile(member).read())
    [unpacked] = (tmp_path / "another" / "place").iterdir()
    again = build("wheel", unpacked, tmp_path / "dist")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert first.namelist() == second.namelist()
        assert [name for name in first.namelist() if first.read(name) != second.read(name)] == []
    assert wheel.name == again.name
    assert wheel.read_bytes() == again.read_bytes()


def run_python(code, **environment):
    """Run code in a fresh interpreter that finds the same rnnfast."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RNNFAST_")}
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**inherited, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
    )


def test_import_adds_at_most_a_quarter_to_the_time_of_numpy(tmp_path):
    # Processor time, which other programs lengthen less than they do elapsed time, with compiled modules as after pip.
    code = """
from time import process_time
start = process_time()
import numpy
before = process_time()
import rnnfast
print(before - start, process_time() - before)
"""
    environment = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    times = [[float(word) for word in run_python(code, **environment).stdout.split()] for _ in range(7)]
    of_numpy, more = map(min, zip(*times, strict=True))
    assert more <= of_numpy / 4


def test_import_loads_nothing_but_numpy_and_the_standard_library():
    loaded = "{name.partition('.')[0] for name, module in sys.modules.items() if getattr(module, '__file__', None)}"
    code = f"import sys, numpy; before = {loaded}; import rnnfast; print(*{loaded} - before)"
    names = set(python(code=code).stdout.split())
    assert "rnnfast" in names
    assert names - {"rnnfast"} <= sys.stdlib_module_names


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc, which only Linux has")
def test_import_starts_no_thread():
    count = "len(os.listdir('/proc/self/task'))"
    code = f"import os, numpy; before = {count}; import rnnfast; print({count} - before)"
    assert python(code=code).stdout.strip() == "0"


@pytest.mark.parametrize("isa", rnnfast.isas())
def test_rnnfast_isa_chooses_the_instruction_set(isa):
    code = "import numpy, rnnfast; print(rnnfast.LSTM(3, 4, rng=0)(numpy.ones((2, 1, 3)))[0].shape)"
    result = python(code=code, RNNFAST_ISA=isa)
    assert result.stdout.strip() == "(2, 1, 4)", result.stderr


def test_rnnfast_isa_with_an_invalid_name_lists_the_valid_ones():
    result = python(code="import rnnfast", RNNFAST_ISA="no-such-set")
    assert result.returncode != 0
    message = result.stderr.splitlines()[-1]
    for word in ["RNNFAST_ISA", "no-such-set", *rnnfast.isas()]:
        assert word in message


def test_version_is_the_installed_one():
    assert importlib.metadata.version("rnnfast") == rnnfast.__version__


def test_the_examples_of_the_readme_run_and_learn():
    readme = CHECKOUT / "README.md"
    if not readme.is_file():
        pytest.skip("the tests do not lie in a checkout of rnnfast, so there is no README.md")
    names = {}
    for code in re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(code, names)
    assert names["loss"] < 0.01
    assert min(names["history"].validation) < 0.5
