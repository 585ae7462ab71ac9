"""What every test run says at its head, and the fixtures that several modules share."""

from importlib import metadata

import numpy as np
import pytest
from oracles import VARIANTS

from rnnfast import functional


def pytest_report_header():
    try:
        torch = f"torch {metadata.version('torch')}: results are compared with its own"
    except metadata.PackageNotFoundError:
        torch = "torch is NOT installed: the comparisons with it are skipped"
    return [torch, f"instruction sets: {', '.join(functional.isas())}"]


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: no comparison with it")


@pytest.fixture(params=functional.isas())
def isa(request):
    return request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(params=VARIANTS)
def variant(request):
    """A cell, or one with an option that changes its equations: a key of oracles.VARIANTS."""
    return request.param


@pytest.fixture
def threads():
    """set_num_threads, undone afterwards."""
    before = functional.get_num_threads()
    yield functional.set_num_threads
    functional.set_num_threads(before)
