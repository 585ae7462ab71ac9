"""JAX: the recurrent layers as functions that support jit, grad and vmap.

>>> import jax, jax.numpy as jnp, rnnfast
>>> from rnnfast.backends.jax import lstm
>>> parameters = dict(rnnfast.LSTM(4, 8, rng=0).parameters)
>>> y, (h, c) = jax.jit(lstm)(jnp.ones((5, 2, 4)), parameters)
>>> y.shape, h.shape
((5, 2, 8), (1, 2, 8))
>>> gradients = jax.grad(lambda parameters: lstm(jnp.ones((5, 2, 4)), parameters)[0].sum())(parameters)
>>> gradients["weight_hh_l0"].shape
(32, 8)

Parameters are a dict with torch's names. Their names and shapes determine the sizes, the number of layers and
directions, the presence of biases, a projection or peepholes, and the dtype (float32, or float64 with
``jax_enable_x64``). These options need not be passed; if they are, they must agree. Results are bitwise identical to
those of rnnfast's layers.

vmap over x, states, lengths, masks and resets becomes one call with a larger batch, and so does ``grad`` of ``vmap``.
vmap over parameters, and ``vmap`` of ``grad``, run one call per member.

On the CPU, XLA calls the kernels directly through its foreign-function interface (``jax.ffi``, JAX 0.5 or newer) and
keeps the tape from forward to backward. With lengths, masks or resets, on other devices and with older versions, it
calls back into Python (``jax.pure_callback``). A callback adds about 0.1 ms to each pass, and backward runs forward
again, because passing the tape through Python was slower. Arrays on other devices are copied to the host and back.

Ctrl-C takes effect after a pass that XLA calls directly, because XLA runs it in threads that cannot run signal
handlers of Python.

Supported: JAX 0.4.36 or newer. Not supported: forward-mode derivatives (jvp), second derivatives, and dropout between
the layers of a stack (apply dropout between calls of single layers instead).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rnnfast import arguments, functional, layers
from rnnfast.layers import saving
from rnnfast.layers.execution import Call, Execution
from rnnfast.ragged import INITIAL, RESET_STATES

try:
    import jax
    import jax.numpy as jnp
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir
except ImportError as error:
    raise ImportError("rnnfast.backends.jax needs JAX 0.4.36 or newer: pip install 'rnnfast[jax]'") from error

__all__ = ["gru", "lstm", "rnn"]

STATES = ("h", "c")
RESETS = ("h_reset", "c_reset")
RAGGED = ("lengths", "mask", "reset")


class _Stack(NamedTuple):
    """A layer without its parameters."""

    execution: Execution
    shapes: dict[str, tuple[int, ...]]  # of the engine's parameters, in its order
    batch_first: bool
    description: str

    @property
    def engine(self) -> functional.Engine:
        return self.execution.engine

    @property
    def states(self) -> tuple[str, ...]:
        return STATES[: 1 + self.engine.info.has_c]


@functools.lru_cache
def _stack(kind: Any, options: tuple[tuple[str, Any], ...]) -> _Stack:
    layer = kind(**dict(options), init=None)
    shapes = functional.parameter_shapes(layer.engine)
    return _Stack(layer.execution, shapes, layer.batch_first, saving.describe(layer))


class _Call(NamedTuple):
    """Everything about a call except its arrays. Hashable, so JAX can use it as a static parameter."""

    kind: Any  # the class of the layer
    options: tuple[tuple[str, Any], ...]
    zero_masked: bool
    resets: bool  # whether there is a reset state; zeros stand for those of RESETS that are not given
    names: tuple[str, ...]  # the order of the arrays: x, the parameters, then those of STATES, RESETS and RAGGED given
    direct: bool  # whether XLA calls the kernels directly
    taped: bool = False  # whether the tape is also returned

    @property
    def stack(self) -> _Stack:
        return _stack(self.kind, self.options)

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the states that have gradients."""
        count = len(self.stack.states)
        return self.stack.states + RESETS[: count * self.resets]

    def state(self, members: Sequence[Any]) -> Any:
        """The state in the form that a layer uses: h, or the pair (h, c)."""
        return tuple(members) if len(members) == 2 else members[0]

    def read(self, named: Mapping[str, Any]) -> Call:
        """Check the arrays of the call."""
        state = self.state([named.get(name) for name in self.stack.states])
        ragged: dict[str, Any] = {name: named.get(name) for name in RAGGED}
        resets = self.state([named.get(name) for name in RESETS[: len(self.stack.states)]]) if self.resets else INITIAL
        return self.stack.execution.read(named["x"], state, resets, **ragged, zero_masked=self.zero_masked)


# ---------------------------------------------------------------------------------------------------- on the host
# XLA calls these functions in its own threads and waits for them, so they must not call JAX.


def _prepare(call: _Call, arrays: Iterable[Any]) -> tuple[Call, dict[str, Any]]:
    """Check the arrays of a call, and separate the parameters."""
    named = dict(zip(call.names, map(np.asarray, arrays), strict=True))
    return call.read(named), {name: named[name] for name in call.stack.shapes}


def _forward(call: _Call, *arrays: Any) -> list[Any]:
    run = call.stack.execution
    checked, parameters = _prepare(call, arrays)
    packed = run.pack_forward(parameters)
    outputs, _ = run.run(checked, packed)
    run.packs.release(packed)
    return [array for array in (outputs.y, outputs.h_n, outputs.c_n) if array is not None]


def _backward(call: _Call, *arrays: Any) -> list[Any]:
    run, count = call.stack.execution, len(call.names)
    checked, parameters = _prepare(call, arrays[:count])
    given = functional.OutputGradients(*map(np.ascontiguousarray, arrays[count:]))
    _, kept, _leases = run.train(checked, parameters)  # which hold the buffers that differentiate reads
    zeros = {name: np.zeros(shape, run.engine.dtype) for name, shape in call.stack.shapes.items()}
    found, dreset_state = run.differentiate(kept, given, zeros, per_step=False)
    states = found.dh0, found.dc0, *(dreset_state or ())
    return [found.dx, *found.dparameters, *(array for array in states if array is not None)]


HOST = {"forward": _forward, "backward": _backward}


@functools.lru_cache
def _on_host(name: str, call: _Call) -> Any:
    """The same function object for equal calls, so that JAX reuses its compiled code."""
    return functools.partial(HOST[name], call)


# ---------------------------------------------------------------------------------------------------- out of JAX


@functools.cache
def _has_kernels() -> bool:
    """Register the kernels with XLA. Returns whether this version of JAX supports them."""
    try:
        from jax import ffi

        for name, handler in functional.xla.items():
            ffi.register_ffi_target(f"rnnfast_{name}", handler, platform="cpu")
    except (ImportError, RuntimeError):  # JAX before 0.5, or an incompatible version of the interface
        return False
    return True


def _is_direct(named: Mapping[str, Any]) -> bool:
    """Whether XLA can call the kernels directly: on the CPU, with at least one row, and with every step valid."""
    plain = named["x"].size > 0 and not any(name in RAGGED for name in named)
    # default_backend() comes first: registering a handler before XLA has a back end would make XLA refuse to create it.
    return plain and jax.default_backend() == "cpu" and _has_kernels()


def _kernels(name: str, call: _Call, results: Sequence[Any], *arrays: Any) -> Any:
    """Run "forward" or "backward", directly from XLA or through Python."""
    if not call.direct:
        return jax.pure_callback(_on_host(name, call), results, *arrays, vmap_method="sequential")
    has_states = (state in call.names for state in STATES)
    description = call.stack.engine.host_call(not call.stack.batch_first, *has_states)
    run = jax.ffi.ffi_call(f"rnnfast_{name}", results, vmap_method="sequential")
    return run(*arrays, call=np.frombuffer(description, np.uint8))


# --------------------------------------------------------------------------------------------------------- in JAX

# A primitive, because jax.custom_batching.custom_vmap has no reverse-mode derivative. Batching binds the primitive
# again, so the derivative of a vmap is that of one large call.
recurrent = Primitive("rnnfast")
recurrent.multiple_results = True


def _results(call: _Call, x: Any) -> list[Any]:
    run = call.stack.execution
    plan = run.plan(x.shape)
    shapes = [shape for shape in (plan.y, plan.h, plan.c) if shape is not None]
    results = [jax.ShapeDtypeStruct(shape, run.engine.dtype) for shape in shapes]
    if call.taped and plan.sizes is not None:
        results.append(jax.ShapeDtypeStruct((plan.sizes.tape,), np.uint8))
    return results


def _run(*arrays: Any, call: _Call) -> Any:
    return _kernels("forward", call, _results(call, arrays[0]), *arrays)


@recurrent.def_abstract_eval
def _shapes(*arrays: Any, call: _Call) -> list[Any]:
    return [jax.core.ShapedArray(result.shape, result.dtype) for result in _results(call, arrays[0])]


recurrent.def_impl(jax.jit(_run, static_argnames="call"))
mlir.register_lowering(recurrent, mlir.lower_fun(_run, multiple_results=True))


@functools.lru_cache
def _differentiable(call: _Call) -> Any:
    """The call as a function with a reverse-mode derivative."""

    def forward(*arrays: Any) -> Any:
        if not call.direct:
            return recurrent.bind(*arrays, call=call), (arrays, ())
        *results, tape = recurrent.bind(*arrays, call=call._replace(taped=True))
        return results, (arrays, (results[0], tape))

    def backward(kept: Any, cotangents: Any) -> Any:
        (x, *_), more = kept
        stack = call.stack
        _, *states = _results(call, x)
        shapes = x.shape, *stack.shapes.values(), *(state.shape for state in states * (1 + call.resets))
        results = [jax.ShapeDtypeStruct(shape, stack.engine.dtype) for shape in shapes]
        gradients = _kernels("backward", call, results, *kept[0], *more, *cotangents)
        found = dict(zip(("x", *stack.shapes, *call.states), gradients, strict=True))
        return tuple(found.get(name) for name in call.names)

    run = jax.custom_vjp(lambda *arrays: recurrent.bind(*arrays, call=call))
    run.defvjp(forward, backward)
    return run


def _derive(primals: Any, tangents: Any, *, call: _Call) -> Any:
    if call.taped:
        raise ValueError("the gradients of rnnfast's layers do not support JVP: second derivatives are not available")

    def whole(name: str, primal: Any, tangent: Any) -> Any:
        return np.zeros(primal.shape, jax.dtypes.float0) if name in RAGGED else ad.instantiate_zeros(tangent)

    return jax.jvp(_differentiable(call), primals, tuple(map(whole, call.names, primals, tangents)))


ad.primitive_jvps[recurrent] = _derive


def _batch(arrays: Any, axes: Any, *, call: _Call) -> Any:
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    arrays = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True)]
    batched = dict(zip(call.names, (axis is not None for axis in axes), strict=True))
    if call.taped or any(batched[name] for name in call.stack.shapes):
        results = _one_by_one(call, arrays, list(batched.values()))
    else:
        row = 0 if call.stack.batch_first else 1
        row_axes = {"x": row, "mask": row, "reset": row, "lengths": 0} | dict.fromkeys(STATES + RESETS, 1)
        has_rows = arrays[0].ndim == 3 + batched["x"]
        folded = []
        for name, array in zip(call.names, arrays, strict=True):
            if name in row_axes:
                if not batched[name]:
                    array = jnp.broadcast_to(array, (size, *array.shape))
                array = jnp.moveaxis(array, 0, row_axes[name])
                if has_rows:
                    array = jax.lax.collapse(array, row_axes[name], row_axes[name] + 2)
            folded.append(array)
        results = []
        for result, axis in zip(recurrent.bind(*folded, call=call), (row, 1, 1), strict=False):
            if has_rows:
                rows = size, result.shape[axis] // size
                result = result.reshape(*result.shape[:axis], *rows, *result.shape[axis + 1 :])
            results.append(jnp.moveaxis(result, axis, 0))
    return results, [0] * len(results)


def _one_by_one(call: _Call, arrays: Sequence[Any], batched: Sequence[bool]) -> Any:
    def one(members: Sequence[Any]) -> Any:
        left = iter(members)
        whole = [next(left) if own else a for a, own in zip(arrays, batched, strict=True)]
        return recurrent.bind(*whole, call=call)

    return jax.lax.map(one, [array for array, own in zip(arrays, batched, strict=True) if own])


batching.primitive_batchers[recurrent] = _batch


# ------------------------------------------------------------------------------------------------------ functions


def lstm(
    x: Any,
    parameters: Mapping[str, Any],
    state: Any = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    reset_state: Any = INITIAL,
    zero_masked: bool = False,
    **options: Any,
) -> tuple[Any, tuple[Any, Any]]:
    """:class:`rnnfast.LSTM` as a function of JAX arrays.

    Parameters
    ----------
    x : array_like, (T, N, I), with batch_first (N, T, I), or unbatched (T, I)
        Converted to the dtype of the parameters.
    parameters : mapping of str to array_like
        Named and shaped as in ``rnnfast.LSTM(...).parameters``. Biases, ``weight_hr_l{k}`` and ``peephole_l{k}`` are
        optional.
    state : pair of array_like (L*D, N, H_out) and (L*D, N, H), unbatched without N, optional
        The initial state. None for either member means zeros.
    lengths, mask, reset : array_like, optional
        As for a call of the layer.
    reset_state : {"initial", "zeros"}, None, or a state in the form of `state`, default "initial"
        As for a call of the layer. The words are static under jit.
    zero_masked : bool, default False
        As for a call of the layer. Static under jit, like the options.
    **options
        reverse, batch_first, activations, clip and coupled, as in the constructor. Options that the parameters
        determine, such as num_layers, can be passed, and must agree.

    Returns
    -------
    y : jax.Array, (T, N, D*H_out), in the layout of `x`
    state : pair of jax.Array

    Raises
    ------
    ValueError, TypeError
        If options, parameters or shapes are invalid, even while jit traces. Traced lengths are checked when the call
        runs; JAX then raises its own error with the message.

    Examples
    --------
    >>> import jax, numpy as np, rnnfast
    >>> layer = rnnfast.LSTM(4, 8, 2, rng=0)
    >>> x = np.ones((5, 2, 4), np.float32)
    >>> y, (h, c) = lstm(x, layer.parameters, lengths=[5, 3])
    >>> bool((y == layer(x, lengths=[5, 3])[0]).all())
    True
    """
    return _apply(layers.LSTM, x, parameters, state, options, zero_masked, reset_state, (lengths, mask, reset))


def gru(
    x: Any,
    parameters: Mapping[str, Any],
    state: Any = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    reset_state: Any = INITIAL,
    zero_masked: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """:class:`rnnfast.GRU` as a function of JAX arrays: see :func:`lstm`.

    Parameters
    ----------
    x, parameters, lengths, mask, reset, reset_state, zero_masked
        As for :func:`lstm`.
    state : array_like (L*D, N, H), unbatched without N, optional
    **options
        reset_after, reverse, batch_first, activations and clip, as in the constructor, and those of the parameters.

    Returns
    -------
    y, state : jax.Array

    Raises
    ------
    ValueError, TypeError
        As for :func:`lstm`.

    Examples
    --------
    >>> import jax, numpy as np, rnnfast
    >>> parameters = dict(rnnfast.GRU(4, 8, reset_after=False, rng=0).parameters)
    >>> gru(np.ones((5, 4)), parameters, reset_after=False)[0].shape
    (5, 8)
    """
    return _apply(layers.GRU, x, parameters, state, options, zero_masked, reset_state, (lengths, mask, reset))


def rnn(
    x: Any,
    parameters: Mapping[str, Any],
    state: Any = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    reset_state: Any = INITIAL,
    zero_masked: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """:class:`rnnfast.RNN` as a function of JAX arrays: see :func:`lstm`.

    Parameters
    ----------
    x, parameters, state, lengths, mask, reset, reset_state, zero_masked
        As for :func:`gru`.
    **options
        nonlinearity, reverse, batch_first, activations, clip and leak, as in the constructor, and those of the
        parameters.

    Returns
    -------
    y, state : jax.Array

    Raises
    ------
    ValueError, TypeError
        As for :func:`lstm`.

    Examples
    --------
    >>> import jax, numpy as np, rnnfast
    >>> parameters = dict(rnnfast.RNN(4, 8, rng=0).parameters)
    >>> jax.vmap(rnn, in_axes=(0, None))(np.ones((3, 5, 4)), parameters)[0].shape
    (3, 5, 8)
    """
    return _apply(layers.RNN, x, parameters, state, options, zero_masked, reset_state, (lengths, mask, reset))


def _apply(
    kind: Any,
    x: Any,
    parameters: Any,
    state: Any,
    options: Any,
    zero_masked: Any,
    reset_state: Any,
    ragged: Sequence[Any],
) -> tuple[Any, Any]:
    if not hasattr(parameters, "keys"):
        raise TypeError(f"parameters must be a dict of arrays under torch's names, got {type(parameters).__name__}")
    arrays = {name: jnp.asarray(parameters[name]) for name in parameters}
    layer_options = _options(kind, arrays, options)
    stack = _stack(kind, layer_options)
    extras = stack.execution.extras
    faults = [f"{name} is not one of its parameters" for name in arrays if name not in stack.shapes or name in extras]
    for name, shape in stack.shapes.items():
        if name in extras:
            arrays[name] = jnp.asarray(extras[name])
        elif name not in arrays:
            faults.append(f"{name} is missing")
        elif arrays[name].shape != shape:
            faults.append(f"{name} must have shape {shape}, got {arrays[name].shape}")
    if faults:
        raise ValueError(f"parameters do not fit {stack.description}: {'; '.join(faults)}")
    ordered = {name: arrays[name] for name in stack.shapes}  # jit sorts the names of a dict
    word = arguments.choice("reset_state", reset_state, RESET_STATES) if isinstance(reset_state, str) else None
    given = {"x": x, **ordered, **dict(zip(STATES, _members(stack, "state", state), strict=False))}
    given |= zip(RAGGED, ragged, strict=True)
    resets = given["reset"] is not None and word != INITIAL
    if resets:
        given |= zip(RESETS, _members(stack, "reset_state", None if word else reset_state), strict=False)
    named = {name: jnp.asarray(value) for name, value in given.items() if value is not None}
    zero_masked = arguments.flag("zero_masked", zero_masked)
    call = _Call(kind, layer_options, zero_masked, resets, tuple(named), _is_direct(named))
    dtype = stack.engine.dtype
    call.read(_stand_ins(named, dtype))
    cast = [array if name in RAGGED else array.astype(dtype) for name, array in named.items()]
    y, *last = recurrent.bind(*cast, call=call)
    return y, call.state(last)


def _members(stack: _Stack, name: str, state: Any) -> tuple[Any, ...]:
    """Return the arrays of a state."""
    if state is None:
        return ()
    return arguments.pair(name, state, "(h, c)") if len(stack.states) == 2 else (state,)


def _options(kind: type[Any], arrays: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The options of the layer: those that the parameters determine, and those passed, which must agree."""
    read, _ = saving.recurrent_options({name: array.shape for name, array in arrays.items()})
    dtype = arrays["weight_hh_l0"].dtype
    if dtype not in arguments.DTYPES:
        raise ValueError(f"parameters must have dtype float32 or float64, got {dtype}")
    allowed = [name for name in saving.signature(kind) if name not in (*saving.DROPOUTS, "init_state", "zoneout")]
    for name in options:
        if name not in allowed:
            raise TypeError(f"{name} is not an option of {kind.__name__.lower()}: the options are {', '.join(allowed)}")
    agreed = saving.agreed({**read, "dtype": dtype}, options)
    return tuple((name, _hashable(value)) for name, value in agreed.items() if name in allowed)


def _hashable(option: Any) -> Any:
    option = option.tolist() if hasattr(option, "tolist") else option
    return tuple(map(_hashable, option)) if isinstance(option, (list, tuple)) else option


def _stand_ins(named: Mapping[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Arrays that let a layer check a call during tracing: its shapes, and its lengths if they are known."""
    stand_ins: dict[str, Any] = {}
    for name, array in named.items():
        if name == "lengths" and not isinstance(array, jax.core.Tracer):
            stand_ins[name] = np.asarray(array)
        elif name in RAGGED:
            stand_ins[name] = np.zeros(array.shape, array.dtype)
        else:
            stand_ins[name] = np.empty(array.shape, array.dtype if jnp.iscomplexobj(array) else dtype)
    return stand_ins
