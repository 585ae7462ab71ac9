"""Data-parallel training agrees with one process on the whole batch, and errors reach every process.

The processes are real ones, started by mpiexec; ``support/data_parallel.py`` is what they run.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from support.data_parallel import DTYPES, LOSSES, ROWS, SHARES, train

import rnnfast
from rnnfast import training

HERE = Path(__file__).resolve().parent
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
# Open MPI options: allow more processes than cores, and allow root, as in a container.
ALLOWED = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}
COUNTS = (2, 3)


def mpiexec(count, *command):
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed: pip install 'rnnfast[mpi]'")
    if MPIEXEC is None:
        pytest.skip("there is no mpiexec: pip install 'rnnfast[mpi]' brings that of Open MPI")
    environment = {**os.environ, **ALLOWED, "RNNFAST_NUM_THREADS": "1"}
    command = [MPIEXEC, "-n", str(count), sys.executable, "-m", "mpi4py", *map(str, command)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(count, folder):
    """The results of each process."""
    mpiexec(count, HERE / "support" / "data_parallel.py", folder)
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(count)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The results of every process, by number of processes."""
    return {count: run(count, tmp_path_factory.mktemp(f"{count}-processes")) for count in COUNTS}


@pytest.fixture(scope="module")
def alone():
    """The results of one process on the whole batch, without MPI."""
    return {(loss, dtype): train(loss, dtype, np.arange(ROWS)) for loss in LOSSES for dtype in DTYPES}


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_gradients_and_training_agree_with_one_process_on_the_whole_batch(runs, alone, count, dtype, loss, shares):
    tolerance = {"float64": 1e-12, "float32": 2e-6}[dtype]
    expected = alone[loss, dtype]
    assert sorted(name.partition(" ")[0] for name in expected) == ["gradient"] * 10 + ["parameter"] * 10
    for results in runs[count]:
        for name, array in expected.items():
            got = results[f"{shares}, {loss}, {dtype}, {name}"]
            assert got.dtype == dtype
            np.testing.assert_allclose(got, array, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("count", COUNTS)
def test_all_processes_have_the_same_bits(runs, count):
    first, *others = runs[count]
    for other in others:
        for name, array in first.items():
            if not name.startswith("said"):
                np.testing.assert_array_equal(other[name], array, err_msg=name, strict=True)


def test_a_repeated_run_gives_the_same_bits(runs, tmp_path):
    for again, before in zip(run(2, tmp_path), runs[2], strict=True):
        assert again.keys() == before.keys()
        for name, array in before.items():
            np.testing.assert_array_equal(again[name], array, err_msg=name, strict=True)


@pytest.mark.parametrize(
    ("case", "at_fault", "error", "words"),
    [
        (
            "other shape",
            -1,
            "ValueError",
            r"process 1 must have .* process 0: .*\['bias'\] must have shape \(2,\), got",
        ),
        ("other names", -1, "ValueError", "names weight, bias, but it lacks bias"),
        ("other dtype", -1, "ValueError", r"parameters\['bias'\] must have dtype float64, got float32"),
        ("read-only", -1, "ValueError", r"parameters\['bias'\] must be writeable, but is read-only"),
        ("no arrays", -1, "TypeError", r"parameters\['weight'\] must be a NumPy array of .*, got a list"),
        ("process 0 has no arrays", 0, "TypeError", r"parameters\['weight'\] must be a NumPy array of .*, got a list"),
        (
            "gradient of another shape",
            -1,
            "ValueError",
            r"gradients\['bias'\] must have shape \(2,\), got shape \(3,\)",
        ),
        ("gradient is missing", -1, "ValueError", "names weight, bias, but it lacks weight"),
        ("no gradients", -1, "ValueError", "gradients must be arrays unless weight is 0, got None"),
        ("weight is negative", -1, "ValueError", "weight must be at least 0, got -1"),
        ("weight is infinite", -1, "ValueError", "weight must be finite, got inf"),
        ("weight is no number", -1, "TypeError", "weight must be a number, got '3'"),
    ],
)
def test_errors_of_one_process_are_raised_in_all(runs, case, at_fault, error, words):
    own, other = (str(runs[2][rank][f"said: {case}"]) for rank in (at_fault, at_fault + 1))
    name, _, text = own.partition(": ")
    assert name == error
    assert re.search(words, text)
    assert other == f"RuntimeError: process {range(2)[at_fault]} of 2 failed: {text}"
    assert str(runs[2][at_fault]["said: afterwards"]) == "[1.0, 1.0]"


@pytest.mark.parametrize("count", COUNTS)
def test_all_processes_reject_a_batch_without_rows(runs, count):
    for results in runs[count]:
        assert str(results["said: all have none"]).startswith("ValueError: weight is 0 in all processes")


@pytest.mark.parametrize("count", COUNTS)
def test_gradients_without_weight_are_not_looked_at_and_the_order_of_names_is_free(runs, count):
    for results in runs[count]:
        assert str(results["said: what has no weight"]) == "[1.0, 1.0]"
        assert str(results["said: another order"]) == "[8.0, 8.0]"
        assert str(results["said: no communicator"]).endswith("such as MPI.COMM_WORLD, got 'world'")


def test_without_mpi4py_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r"pip install 'rnnfast\[mpi\]'"):
        training.DataParallel({}, None)


def test_the_program_in_the_documentation_learns(tmp_path):
    page = HERE.parent / "docs" / "parallel.md"
    if not page.is_file():
        pytest.skip("the tests do not lie in a checkout of rnnfast, so there is no docs/parallel.md")
    [code] = re.findall(
        r"```python\n(.*?mpi4py.*?)```", page.read_text(encoding="utf-8").split("## Inference")[0], re.DOTALL
    )
    (tmp_path / "train.py").write_text(code, encoding="utf-8")
    said = re.fullmatch(r"2 processes, loss (0\.\d+)\n", mpiexec(2, tmp_path / "train.py"))
    assert float(said[1]) < 0.01


class Alone:
    """A communicator of one process."""

    def bcast(self, value):
        return value

    def allgather(self, value):
        return [value]

    def Bcast(self, array):
        pass

    def Allreduce(self, _, array):
        pass

    def Get_rank(self):
        return 0


def test_layers_and_lists_of_layers(monkeypatch):
    """Without MPI: the forms of parameters and gradients, not the communication."""
    mpi = types.SimpleNamespace(Intracomm=Alone, IN_PLACE=None)
    monkeypatch.setitem(sys.modules, "mpi4py", types.SimpleNamespace(MPI=mpi))
    layers = [rnnfast.Linear(3, 4, rng=0), rnnfast.Linear(4, 2, rng=1)]
    parallel, optimizer = training.DataParallel(layers, Alone()), training.SGD(layers, lr=1)
    gradients = [
        {name: np.full_like(array, k) for name, array in layer.parameters.items()} for k, layer in enumerate(layers)
    ]
    mean = parallel.average(gradients, weight=3)
    assert list(mean) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    before = layers[1].state_dict()
    optimizer.step(mean)
    np.testing.assert_array_equal(layers[1].parameters["bias"], before["bias"] - 1)
    with pytest.raises(ValueError, match=r"gradients\[1\] must have the names weight, bias, but it lacks bias"):
        parallel.average([gradients[0], {"weight": gradients[1]["weight"]}], weight=1)
    with pytest.raises(ValueError, match=r"parameters\[1\] is parameters\[0\] again"):
        training.DataParallel([layers[0], layers[0]], Alone())
