"""Options of the test run, its header, and the fixtures that several modules share."""

import signal
from importlib import metadata

import hypothesis
import numpy as np
import pytest

pytest.register_assert_rewrite("support")

from support.cells import VARIANTS  # noqa: E402
from support.command_line import SMALL, TEXT, main  # noqa: E402
from support.selection import select  # noqa: E402

from rnnfast import _core, functional  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run more cases, in all triples of values, and the slow tests")


def pytest_configure(config):
    # A shell starts its background commands with SIGINT ignored, and the processes of tests would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.register_profile("quick", max_examples=25, deadline=None)
    hypothesis.settings.register_profile("full", max_examples=200, deadline=None)
    hypothesis.settings.load_profile("full" if config.getoption("--full") else "quick")


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config, items):
    if any("::" in str(argument) for argument in config.args):
        return  # a test that is named runs in all its cases
    items[:], left_out = select(items, config.getoption("--full"))
    if left_out:
        config.hook.pytest_deselected(items=left_out)


def pytest_report_header(config):
    try:
        torch = f"torch {metadata.version('torch')}: results are compared with its own"
    except metadata.PackageNotFoundError:
        torch = "torch is NOT installed: the comparisons with it are skipped"
    suite = "the full suite" if config.getoption("--full") else "a selection of cases; --full runs more"
    return [suite, torch, f"instruction sets: {', '.join(functional.isas())}"]


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: no comparison with it")


@pytest.fixture(params=functional.isas())
def isa(request):
    return request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


# Cells that share most of their code with another one are left to --full.
TWINS = ("rnn_relu_leaky", "mingru", "minlstm", "indrnn_tanh")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.full if name in TWINS else ()) for name in VARIANTS])
def variant(request):
    """A cell, or a cell with a projection: a key of support.cells.VARIANTS."""
    return request.param


@pytest.fixture(autouse=True)
def settings_are_restored():
    """No test leaves another default instruction set or number of threads to the tests after it."""
    before = functional.get_default_isa(), functional.get_num_threads()
    yield
    after = functional.get_default_isa(), functional.get_num_threads()
    if after != before:
        _core.set_default_isa(before[0])
        functional.set_num_threads(before[1])
    assert after == before


@pytest.fixture
def threads():
    """set_num_threads, restored afterwards."""
    before = functional.get_num_threads()
    yield functional.set_num_threads
    functional.set_num_threads(before)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


# --- the command line


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def trained(book, tmp_path, capsys):
    """A model trained on the book, and the output of the training."""
    path = tmp_path / "book.npz"
    assert main(["train", "text", str(book), "-o", str(path), *SMALL]) == 0
    return path, capsys.readouterr()


@pytest.fixture
def estimators():
    return pytest.importorskip("rnnfast.sklearn", reason="rnnfast.sklearn cannot be imported", exc_type=ImportError)


@pytest.fixture
def quarters():
    rng = np.random.default_rng(0)
    steps = np.arange(80)
    return steps + 10 * np.sin(np.pi * steps / 2 + 0.3) + rng.normal(0, 0.5, 80)


@pytest.fixture
def sheet(tmp_path, quarters):
    """A CSV file with a byte-order mark, trailing blank lines and a column of text."""
    path = tmp_path / "sales.csv"
    rows = [f"{2004 + i // 4}-{3 * (i % 4) + 1:02},shop {i},{value!r}" for i, value in enumerate(quarters.tolist())]
    path.write_text("\ufeffmonth, shop ,sold\n" + "\n".join(rows) + "\n\n\n", encoding="utf-8")
    return path
