"""The program that test_parallel.py runs under mpiexec: one training run on parts of a batch, and on the whole batch.

mpiexec -n 2 python -m mpi4py tests/support/data_parallel.py FOLDER    each process writes FOLDER/RANK.npz
"""

import sys
from pathlib import Path

import numpy as np

import rnnfast
from rnnfast import training

ROWS, STEPS = 12, 20
DTYPES = ("float32", "float64")
LOSSES = ("rows", "targets")  # over what the mean of the loss is taken
OPTIMIZERS = {
    "rows": lambda parameters: training.SGD(parameters, lr=0.5, momentum=0.9),
    "targets": lambda parameters: training.Adam(parameters, lr=0.01),
}
SHARES = {
    "equal": lambda count: np.array_split(np.arange(ROWS), count),
    "unequal": lambda count: np.split(np.arange(ROWS), np.cumsum([7, *[2] * (count - 2)])),
    "the first has none": lambda count: [np.arange(0), *np.array_split(np.arange(ROWS), count - 1)],
    "the last has none": lambda count: [*np.array_split(np.arange(ROWS), count - 1), np.arange(0)],
}


class Model:
    """An LSTM and a readout, with a loss."""

    def __init__(self, loss, dtype, seed):
        rng = np.random.default_rng(seed)
        self.loss = loss
        self.lstm, self.readout = (
            rnnfast.LSTM(3, 6, 2, dtype=dtype, rng=rng),
            rnnfast.Linear(6, 4, dtype=dtype, rng=rng),
        )
        self.parameters = {**self.lstm.parameters, **self.readout.parameters}

    def gradients(self, step, rows):
        """Gradients of the mean loss over some rows of a step's batch, and its weight; None and 0 without rows."""
        if not len(rows):
            return None, 0
        rng = np.random.default_rng(step)
        x, target = rng.normal(size=(7, ROWS, 3))[:, rows], rng.normal(size=(7, ROWS, 4))[:, rows]
        classes, lengths = rng.integers(0, 4, (7, ROWS))[:, rows], rng.integers(1, 8, ROWS)[rows]
        h, _, tape = self.lstm.forward(x, lengths=lengths)
        y, readout_tape = self.readout.forward(h)
        if self.loss == "rows":
            weight = len(rows)
            _, dy = training.mean_squared_error(y, target.astype(y.dtype))
        else:
            weight = lengths.sum()
            _, dy = training.softmax_cross_entropy(y, classes, np.arange(7)[:, None] < lengths)
        after = self.readout.backward(readout_tape, dy)
        before = self.lstm.backward(tape, after.x)
        return {**before.parameters, **after.parameters}, weight


def train(loss, dtype, rows, parallel_to=None):
    """The gradients of the first step, and the parameters after the last one."""
    rank = 0 if parallel_to is None else parallel_to.Get_rank()
    model = Model(loss, dtype, seed=rank)
    parallel = None if parallel_to is None else training.DataParallel(model.parameters, parallel_to)
    optimizer = OPTIMIZERS[loss](model.parameters)
    first = {}
    for step in range(STEPS):
        gradients, weight = model.gradients(step, rows)
        if parallel is not None:
            gradients = parallel.average(gradients, weight)
        first = first or {f"gradient {name}": array.copy() for name, array in gradients.items()}
        optimizer.step(gradients)
    return {**first, **{f"parameter {name}": array.copy() for name, array in model.parameters.items()}}


def failures(comm):
    """The error of each process when one or all pass invalid arguments, then the results of valid calls."""
    rank, last = comm.Get_rank(), comm.Get_size() - 1
    good = {"weight": np.ones((2, 3)), "bias": np.ones(2)}

    def made(parameters):
        return lambda: training.DataParallel(parameters if rank == last else good, comm)

    read_only = {**good, "bias": np.ones(2)}
    read_only["bias"].setflags(write=False)
    parallel = training.DataParallel(good, comm)

    def averaged(gradients, weight):
        return lambda: parallel.average(*((gradients, weight) if rank == last else (good, 1)))

    cases = {
        "other shape": made({**good, "bias": np.ones(3)}),
        "other names": made({"weight": good["weight"]}),
        "other dtype": made({**good, "bias": np.ones(2, np.float32)}),
        "read-only": made(read_only),
        "no arrays": made({"weight": [1.0]}),
        "process 0 has no arrays": lambda: training.DataParallel(good if rank else {"weight": [1.0]}, comm),
        "gradient of another shape": averaged({**good, "bias": np.ones(3)}, 1),
        "gradient is missing": averaged({"bias": np.ones(2)}, 1),
        "no gradients": averaged(None, 1),
        "weight is negative": averaged(good, -1),
        "weight is infinite": averaged(good, np.inf),
        "weight is no number": averaged(good, "3"),
        "all have none": lambda: parallel.average(None, 0),
    }
    said = {}
    for name, call in cases.items():
        try:
            call()
            said[name] = "nothing"
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    said["afterwards"] = str(parallel.average(good, 1)["bias"].tolist())
    nothing = {"weight": np.full((2, 3), np.nan), "bias": np.full(2, np.nan)}
    said["what has no weight"] = str(parallel.average(*((nothing, 0) if rank == last else (good, 1)))["bias"].tolist())
    ordered = dict(reversed(good.items())) if rank == last else good
    different = {"weight": np.full((2, 3), 4.0), "bias": np.full(2, 8.0)}
    said["another order"] = str(training.DataParallel(ordered, comm).average(different, rank + 1)["bias"].tolist())
    return said


def main(folder):
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    rank = comm.Get_rank()
    results = {}
    for shares, divide in SHARES.items():
        for loss in LOSSES:
            for dtype in DTYPES:
                for name, array in train(loss, dtype, divide(comm.Get_size())[rank], comm).items():
                    results[f"{shares}, {loss}, {dtype}, {name}"] = array
    results.update((f"said: {name}", np.array(text)) for name, text in failures(comm).items())
    try:
        training.DataParallel({}, "world")
    except TypeError as error:
        results["said: no communicator"] = np.array(str(error))
    np.savez(Path(folder) / f"{rank}.npz", **results)


if __name__ == "__main__":
    main(sys.argv[1])
