"""Ensembles: many recurrent layers of one shape, each with its own weights, in one call of the engine."""

from __future__ import annotations

import copy
import operator
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from rnnfast import _core, arguments, functional, names
from rnnfast._types import Array, ArrayLike
from rnnfast.functional import InputGradients, Inputs, OutputGradients, Outputs

from . import saving
from .base import Gradients, Tape, lasting
from .recurrent import Recurrent

__all__ = ["Ensemble"]


class Ensemble:
    """Recurrent layers of one shape, each with its own weights, which run in one call.

    The results of each member are bitwise those of the layer alone, for any number of threads, which share the members.

    Parameters
    ----------
    layers : sequence of recurrent layers
        M layers of one class with the same options, without init_state, zoneout and any dropout. Their parameters are
        copied, so ``[layer] * M`` makes M members that start with the same weights.

    Attributes
    ----------
    parameters : mapping of str to ndarray
        The parameters under the names of a layer's, stacked: (M, ...). Changes take effect in the next call, and an
        optimizer of :mod:`rnnfast.training` takes the ensemble as it takes a layer.

    Raises
    ------
    ValueError
        If `layers` is empty, if two layers differ in class or options, or if they have init_state, zoneout or dropout.
    TypeError
        If a member is not a recurrent layer.

    Notes
    -----
    Ensembles have neither ``lengths``, ``mask``, ``reset`` and ``checkpoint`` nor streams, weights in fewer bytes,
    ``save`` and ``load``. They can be pickled.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> ensemble = rnnfast.Ensemble([rnnfast.GRU(4, 8, rng=seed) for seed in range(3)])
    >>> y, h = ensemble(np.ones((5, 2, 4), np.float32))
    >>> y.shape, h.shape
    ((3, 5, 2, 8), (3, 1, 2, 8))
    """

    def __init__(self, layers: Sequence[Recurrent[Any]]) -> None:
        layers = list(layers)
        if not layers:
            raise ValueError("layers is empty, but an ensemble needs at least one layer")
        for m, layer in enumerate(layers):
            if not isinstance(layer, Recurrent):
                raise TypeError(f"layers[{m}] must be a recurrent layer, got {type(layer).__name__}")
            theirs, ours = saving.differences(layer, layers[0], ())
            if theirs:
                raise ValueError(f"layers[{m}] has {theirs}, but layers[0] has {ours}: members must have one shape")
        if any(getattr(layers[0], name) for name in ("init_state", "zoneout", *saving.DROPOUTS)):
            raise ValueError(
                "layers have init_state, zoneout or dropout, which ensembles do not support: create them without"
            )
        self._template = copy.copy(layers[0])
        self._template.unfreeze()
        self._execution = run = self._template.execution
        self._members = len(layers)
        stacked = {str(n): lasting(np.stack([one.parameters[n] for one in layers])) for n in layers[0].parameters}
        self._parameters = names.named(stacked)
        extras = {name: np.stack([array] * self._members) for name, array in run.extras.items()}
        ordered = [{**extras, **stacked}[name] for name in run._names]
        self._pointers = functional.Pointers(run.engine, ordered, members=self._members)
        self._frozen: Any = None  # the pair of packed weights for forward and backward

    @property
    def parameters(self) -> Mapping[str, Array]:
        return types.MappingProxyType(self._parameters)

    def __len__(self) -> int:
        return self._members

    def __getitem__(self, index: int | slice) -> Any:
        """Return a layer with copies of the parameters of one member, or for a slice an ensemble of several.

        Parameters
        ----------
        index : int or slice
            Counted from 0, or if it is negative from the end.

        Returns
        -------
        Recurrent or Ensemble

        Raises
        ------
        IndexError
            If the index is out of range.
        ValueError
            If a slice is empty.
        """
        if isinstance(index, slice):
            return type(self)([self[m] for m in range(self._members)[index]])
        m = operator.index(index)
        if not -self._members <= m < self._members:
            raise IndexError(f"index {m} is out of range for an ensemble of {self._members} members")
        layer = copy.copy(self._template)
        layer.load_state_dict({name: array[m] for name, array in self._parameters.items()})
        return layer

    def __iter__(self) -> Iterator[Any]:
        return (self[m] for m in range(self._members))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self),)

    def __repr__(self) -> str:
        return f"Ensemble({self._members} x {saving.describe(self._template)})"

    def freeze(self) -> None:
        """Pack the weights once for all later calls, and make the parameter arrays read-only.

        Results stay bitwise identical, and calls become faster. Existing views of the parameters remain writable, but
        writing to them has no effect on the packed weights: do not use them.

        Raises
        ------
        MemoryError
            If there is not enough memory. Then nothing is changed.
        """
        if self._frozen is None:
            engine = self._execution.engine
            packed = functional.empty(self._members * engine.packed_size)
            packed_back = functional.empty(self._members * engine.packed_back_size)
            functional.pack(engine, self._pointers, packed, packed_back)
            self._switch((packed, packed_back))

    def unfreeze(self) -> None:
        """Make the parameter arrays writable again, and pack them in every call."""
        self._switch(None)

    def _switch(self, frozen: tuple[Array, Array] | None) -> None:
        """Freeze the ensemble with packed weights, or unfreeze it; if this raises, nothing is changed."""
        views = self._parameters.values()
        arrays = [one for view in views for one in (view.base, view) if one is not None]
        _core.switch([(self, "_frozen", frozen)], arrays, frozen is None, [], [])

    def __call__(self, x: ArrayLike, state: Any = None) -> tuple[Array, Any]:
        """Run all members over a sequence in inference mode.

        Parameters
        ----------
        x : array_like of real numbers, (T, N, I), with batch_first (N, T, I), or one for each member: (M, T, N, I)
        state : array_like (M, L*D, N, H_out); for LSTM a pair with (M, L*D, N, H), optional
            The initial states; None means zeros.

        Returns
        -------
        y : ndarray, (M, T, N, D*H_out), with batch_first (M, N, T, D*H_out)
        state : ndarray, or for LSTM the pair (h, c)

        Raises
        ------
        ValueError
            If a shape does not match the members.
        TypeError
            If an argument does not hold real numbers.
        """
        outputs, _, _ = self._run(*self._read(x, state), False)
        return outputs.y, outputs.state

    def forward(self, x: ArrayLike, state: Any = None) -> tuple[Array, Any, Tape]:
        """Run all members, and keep what :meth:`backward` needs.

        Parameters
        ----------
        x, state
            As for a call of the ensemble. The tape holds `x` by reference: do not change it before the last
            ``backward``.

        Returns
        -------
        y : ndarray
            As for a call, but read-only, because the tape shares it.
        state : ndarray, or for LSTM the pair (h, c)
        tape : Tape
            Pass it to :meth:`backward`. It keeps the weights of this call. It has no `cells`.

        Raises
        ------
        ValueError, TypeError
            As for a call of the ensemble.
        """
        x, plan, states = self._read(x, state)
        outputs, kept, leases = self._run(x, plan, tuple(None if one is None else one.copy() for one in states), True)
        y = outputs.y
        y.flags.writeable = False
        if y.base is not None:
            y.base.flags.writeable = False
        # A view of a read-only array cannot be made writable.
        return y[...], outputs.state, Tape(cast("Any", self), kept, leases)

    def backward(self, tape: Tape, dy: ArrayLike | None, dstate: Any = None) -> Gradients:
        """Return the gradients of the ``forward`` that made `tape`.

        Parameters
        ----------
        tape : Tape
            From this ensemble's ``forward``.
        dy : array_like of the shape of y, or None
            None means zeros.
        dstate : array_like of the shape of the state, for LSTM a pair, optional

        Returns
        -------
        Gradients
            ``parameters`` and ``state`` are stacked. ``x`` has the shape of x: if the members share x, it is the sum of
            their gradients.

        Raises
        ------
        ValueError
            If the tape comes from another ensemble, or a shape does not match.
        TypeError
            If `tape` is not a Tape, or an argument does not hold real numbers.
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"tape must be the Tape that forward returned, got {type(tape).__name__}")
        if tape._owner is not cast("Any", self):
            raise ValueError("tape comes from another ensemble or layer: pass a tape of this ensemble's forward")
        x, plan, states, y, buffer, packed_back = tape._kept
        run, engine, empty = self._execution, self._execution.engine, self._execution.results.empty
        dy = arguments.shaped("dy", dy, engine.dtype, y.shape)
        last = self._states("dstate", dstate, plan)
        zeros = run.results.zeros
        parameters = {str(name): zeros(array.shape, engine.dtype) for name, array in self._parameters.items()}
        dx = empty((self._members, *plan.x), engine.dtype)
        h, c = self._empty_states(plan)
        if plan.N:
            workspace = self._workspace(plan.sizes.backward_workspace)
            _core.backward_members(
                engine,
                packed_back,
                Inputs(self._time_first(self._spread(x)), *states),
                self._time_first(y),
                buffer,
                OutputGradients(None if dy is None else self._time_first(dy), *last),
                InputGradients(self._time_first(dx), h, c, [parameters.get(name) for name in run._names]),
                workspace,
            )
            run.workspaces.release(workspace)
        if x.ndim == 3:
            with np.errstate(all="ignore"):  # infinities and NaN are valid data
                dx = dx.sum(axis=0)
        return Gradients(dx, h if c is None else (h, c), parameters)

    def _cells(self, tape: Tape) -> Any:  # noqa: ARG002
        raise AttributeError("this tape has no cells, because it comes from an ensemble: run forward of a member")

    # ---- arguments and arrays

    def _read(self, x: Any, state: Any) -> tuple[Array, Any, tuple[Array | None, Array | None]]:
        """Check the arguments of a call; return x, the plan of one member, and h and c."""
        run = self._execution
        arguments.refuse_result("x", x)
        x = arguments.real("x", x, run.engine.dtype)
        if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[0] != self._members):
            layout = "N, T, I" if self._template.batch_first else "T, N, I"
            raise ValueError(
                f"x has shape {x.shape}, but the {self._members} members need ({layout}), which they share, or "
                f"({self._members}, {layout}): a single sequence also has an axis of rows, of length 1"
            )
        shape = x.shape[-3:]
        plan = run._plans.get(shape) or run.plan(shape)
        return x, plan, self._states("state", state, plan)

    def _states(self, name: str, value: Any, plan: Any) -> tuple[Array | None, Array | None]:
        h, c = (self._members, *plan.h), None if plan.c is None else (self._members, *plan.c)
        return (None, None) if value is None else self._execution.state(name, value, plan._replace(h=h, c=c))

    def _empty_states(self, plan: Any) -> tuple[Array, Array | None]:
        empty, dtype = self._execution.results.empty, self._execution.engine.dtype
        h = empty((self._members, *plan.h), dtype)
        return h, None if plan.c is None else empty((self._members, *plan.c), dtype)

    def _spread(self, x: Array) -> Array:
        """Return x with an axis of members, along which a shared x repeats without a copy."""
        return x if x.ndim == 4 else np.broadcast_to(x, (self._members, *x.shape))

    def _time_first(self, array: Array) -> Array:
        return array.transpose(0, 2, 1, 3) if self._template.batch_first else array

    def _workspace(self, nbytes: int) -> Array:
        """Return a workspace for all threads that can take part."""
        workspace: Array = self._execution.workspaces.acquire(nbytes * min(self._members, functional.get_num_threads()))
        return workspace

    def _run(self, x: Array, plan: Any, states: Any, keeps: bool) -> tuple[Outputs, Any, list[_core.Lease]]:
        run, engine, M = self._execution, self._execution.engine, self._members
        outputs = Outputs(run.results.empty((M, *plan.y), engine.dtype), *self._empty_states(plan))
        if not plan.N:
            return outputs, (x, plan, states, outputs.y, None, None), []
        leases: list[_core.Lease] = []
        tape: Any = None
        frozen = self._frozen
        packed, packed_back = frozen or (run.packs.acquire(M * engine.packed_size), None)
        if keeps:
            leases.append(run.tapes.lease(M * plan.sizes.tape))
            tape = leases[0].buffer
        if keeps and not frozen:
            leases.append(run.packs.lease(M * engine.packed_back_size))
            packed_back = leases[1].buffer
        pointers = None if frozen else self._pointers
        inputs = Inputs(self._time_first(self._spread(x)), *states)
        own = Outputs(self._time_first(outputs.y), outputs.h_n, outputs.c_n)
        workspace = self._workspace(plan.sizes.forward_workspace)
        _core.forward_members(engine, pointers, packed, packed_back, inputs, own, workspace, tape)
        run.workspaces.release(workspace)
        if not frozen:
            run.packs.release(packed)
        return outputs, (x, plan, states, outputs.y, tape, packed_back), leases
