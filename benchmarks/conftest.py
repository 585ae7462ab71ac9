"""The option --threads, and what is said at the head of a run and kept in its JSON."""

import os
import sys
from importlib import metadata

import pytest


def pytest_addoption(parser):
    parser.addoption("--threads", type=int, default=1, help="the number of threads of every engine (default: 1)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    # NumPy's BLAS reads these once, when NumPy is imported; the other engines are told by their own functions.
    if "numpy" in sys.modules:
        raise pytest.UsageError(
            "numpy was imported before --threads could act: leave out the plugin that did (-p no:NAME)"
        )
    for library in ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB"):
        threads = "MAXIMUM_THREADS" if library == "VECLIB" else "NUM_THREADS"
        os.environ[f"{library}_{threads}"] = str(config.getoption("threads"))


def _versions():
    """The version of every engine's package, None where it is not installed."""
    import rnnfast  # which imports numpy

    versions = {"rnnfast": rnnfast.__version__}
    for name in ("numpy", "torch", "onnx", "onnxruntime"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def pytest_report_header(config):
    engines = [f"{name} {version or 'is NOT installed'}" for name, version in _versions().items()]
    return f"{', '.join(engines)}; threads: {config.getoption('threads')}"


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(threads=config.getoption("threads"), versions=_versions())
