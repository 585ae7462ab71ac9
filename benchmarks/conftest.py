"""The option --threads, and the versions in the header of a run and in its JSON."""

import os
import sys

import pytest


def pytest_addoption(parser):
    parser.addoption("--threads", type=int, default=1, help="number of threads of every engine (default: 1)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if "numpy" in sys.modules:
        raise pytest.UsageError(
            "numpy was imported before --threads could take effect: disable the plugin that imports it (-p no:NAME)"
        )
    # The variables of rnnfast.commands.timing, which cannot be imported here, as it imports NumPy. The BLAS of NumPy
    # reads them when NumPy is imported; the other engines have functions for it.
    for library in ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB"):
        threads = "MAXIMUM_THREADS" if library == "VECLIB" else "NUM_THREADS"
        os.environ[f"{library}_{threads}"] = str(config.getoption("threads"))


def _versions():
    from rnnfast.commands.timing import versions

    return versions("numpy", "torch", "onnx", "onnxruntime")


def pytest_report_header(config):
    engines = [f"{name} {version or 'NOT installed'}" for name, version in _versions().items()]
    return f"{', '.join(engines)}; threads: {config.getoption('threads')}"


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(threads=config.getoption("threads"), versions=_versions())
