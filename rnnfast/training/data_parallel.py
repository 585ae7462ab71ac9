"""Data-parallel training with MPI."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _core, arguments
from .._types import Array, Arrays, Parameters
from .arrays import float_arrays, matching, require_disjoint, require_match, require_writeable


class DataParallel:
    """Average gradients over MPI processes, each of which holds a part of every batch.

    Every process holds a copy of the parameters, runs forward and backward on its own rows, and passes its gradients
    to :meth:`average`. All processes receive the gradients of the whole batch, bitwise equal, so all take the same step
    and the copies stay equal. Each step needs one Allreduce, on a buffer with all gradients.

    The constructor and :meth:`average` are collective: all processes of `comm` must call them. The constructor checks
    that the parameters of all processes match, and copies the values of process 0 to the others. Each process can
    therefore create its layers with a different seed, as dropout requires.

    Run the program with ``mpiexec -n 2 python -m mpi4py train.py``. With ``-m mpi4py``, an exception that is raised in
    only one process, for example in a layer, terminates all of them. Without it, the others would wait forever.

    Source: MPI: A Message-Passing Interface Standard 4.1, section 6.9 (MPI_Allreduce).

    Parameters
    ----------
    parameters : mapping of str to ndarray, layer, or list of these
        The arrays that the optimizer updates: writeable, of float32 or float64. In a list, a name starts with the index
        of its layer: ``"0.weight"``. Names, shapes and dtypes must be the
        same in all processes; the order may differ.
    comm : mpi4py.MPI.Intracomm
        For example ``MPI.COMM_WORLD``.

    Raises
    ------
    ImportError
        If mpi4py is not installed.
    TypeError
        If `comm` is not an intracommunicator, or `parameters` are not float32 or float64 arrays in one of these forms.
    ValueError
        If a parameter is read-only, two share memory, or names, shapes or dtypes differ from those of process 0. No
        parameter is changed.
    RuntimeError
        If another process raised one of these errors. The message contains its rank and its error.

    Examples
    --------
    ``docs/parallel.md`` has a complete program. Each process runs this step:

    >>> from mpi4py import MPI  # doctest: +SKIP
    >>> parallel = DataParallel(layer.parameters, MPI.COMM_WORLD)  # doctest: +SKIP
    >>> y, state, tape = layer.forward(x)  # doctest: +SKIP
    >>> loss, dy = mean_squared_error(y, target)  # doctest: +SKIP
    >>> grads = layer.backward(tape, dy)  # doctest: +SKIP
    >>> optimizer.step(parallel.average(grads.parameters, weight=x.shape[1]))  # doctest: +SKIP
    """

    def __init__(self, parameters: Parameters, comm: Any) -> None:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise ImportError("training.DataParallel needs mpi4py: pip install 'rnnfast[mpi]'") from error
        if not isinstance(comm, MPI.Intracomm):
            raise TypeError(f"comm must be a communicator of mpi4py such as MPI.COMM_WORLD, got {comm!r}")
        self._comm: Any = comm
        self._in_place: Any = MPI.IN_PLACE
        fault: Exception | None = None
        own: dict[str, Array] = {}
        forms = None
        try:
            own = float_arrays("parameters", parameters)
            require_writeable("parameters", own)
            require_disjoint("parameters", own)
            forms = {name: (array.shape, array.dtype.name) for name, array in own.items()}
        except (TypeError, ValueError) as error:
            fault = error
        expected = self._comm.bcast(forms)
        if fault is None and expected is not None:
            fault = self._difference(own, expected)
        self._raise_together(fault)

        own = {name: own[name] for name in expected}
        # Layout: all gradients, then the sum of the weights, then the number of processes that failed.
        size = sum(array.size for array in own.values()) + 2
        self._buffer: Array = np.zeros(size, np.result_type(np.float32, *own.values()))
        self._views: dict[str, Array] = {}
        start = 0
        for name, array in own.items():
            self._views[name] = self._buffer[start : start + array.size].reshape(array.shape)
            self._views[name][...] = array
            start += array.size
        self._comm.Bcast(self._buffer)
        _core.assign(list(own.values()), [self._views[name].astype(array.dtype) for name, array in own.items()])

    def average(self, gradients: Parameters | None, weight: float) -> dict[str, Array]:
        """Compute the gradients of the whole batch: the weighted mean of the gradients of all processes.

        Parameters
        ----------
        gradients : mapping of str to ndarray, Gradients, list of these, or None
            As for the ``step`` of an optimizer: arrays of float32 or float64 with the names and shapes of the
            parameters: the gradients of the mean loss over this process's part of the batch. They are not modified.
            Unused, and may be None, if `weight` is 0.
        weight : float
            The number of terms in that mean: rows, or valid targets for variable-length sequences. Pass 0 if this
            process has no part of the batch.

        Returns
        -------
        dict of str to ndarray
            Writeable arrays, for example for :func:`clip_grad_norm`. The next call overwrites them; copy what you want
            to keep.

        Raises
        ------
        TypeError
            If `gradients` are not float32 or float64 arrays in one of these forms, or `weight` is not a number.
        ValueError
            If names or shapes differ from those of the parameters, `weight` is negative or not finite, or `weight` is 0
            in all processes.
        RuntimeError
            If another process raised one of these errors. The message contains its rank and its error.
        """
        fault = None
        try:
            self._fill(gradients, weight)
        except Exception as error:  # Any error must be reported, because the other processes wait for this one.
            fault = error
            self._buffer[:-1] = 0
            self._buffer[-1] = 1
        self._comm.Allreduce(self._in_place, self._buffer)
        if self._buffer[-1]:
            self._raise_together(fault)
        if not self._buffer[-2]:
            raise ValueError("weight is 0 in all processes, so the mean is undefined: at least one must be above 0")
        self._buffer /= self._buffer[-2]
        return dict(self._views)

    def _fill(self, gradients: Parameters | None, weight: float) -> None:
        """Write this process's gradients, multiplied by its weight, and the weight itself into the buffer."""
        weight = arguments.number("weight", weight)
        if not math.isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight}")
        if weight:
            if gradients is None:
                raise ValueError(f"gradients must be arrays unless weight is 0, got None with weight={weight}")
            arrays = matching("gradients", gradients, {name: view.shape for name, view in self._views.items()})
            for name, view in self._views.items():
                np.multiply(arrays[name], weight, out=view)
        else:
            self._buffer[:-2] = 0
        self._buffer[-2:] = weight, 0

    def _difference(self, own: Arrays, expected: dict[str, tuple[tuple[int, ...], str]]) -> ValueError | None:
        """Return the error to raise if names, shapes or dtypes differ from those of process 0, else None."""
        try:
            require_match("parameters", own, {name: shape for name, (shape, _) in expected.items()})
            for name, (_, dtype) in expected.items():
                if own[name].dtype != dtype:
                    raise ValueError(f"parameters[{name!r}] must have dtype {dtype}, got {own[name].dtype}")
        except ValueError as error:
            rank = self._comm.Get_rank()
            return ValueError(f"process {rank} must have parameters of the same form as process 0: {error}")
        return None

    def _raise_together(self, fault: Exception | None) -> None:
        """Raise this process's error, or report the error of another process."""
        reports = self._comm.allgather(None if fault is None else str(fault))
        if fault is not None:
            raise fault
        for rank, report in enumerate(reports):
            if report is not None:
                raise RuntimeError(f"process {rank} of {len(reports)} failed: {report}")
