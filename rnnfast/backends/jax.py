"""JAX: the recurrent layers as functions that jit, grad and vmap take.

>>> import jax, jax.numpy as jnp, rnnfast
>>> from rnnfast.backends.jax import lstm
>>> parameters = dict(rnnfast.LSTM(4, 8, rng=0).parameters)
>>> y, (h, c) = jax.jit(lstm)(jnp.ones((5, 2, 4)), parameters)
>>> y.shape, h.shape
((5, 2, 8), (1, 2, 8))
>>> gradients = jax.grad(lambda parameters: lstm(jnp.ones((5, 2, 4)), parameters)[0].sum())(parameters)
>>> gradients["weight_hh_l0"].shape
(32, 8)

Parameters are a dict under torch's names. What they tell is no argument: the hidden size, whether there are biases, a
projection or peepholes, and the dtype, which is float32, or with ``jax_enable_x64`` float64. Results are the bits of
the layers of rnnfast.

vmap over x, states, lengths, masks and resets makes one call of a larger batch, and so does ``grad`` of ``vmap``. vmap
over parameters, and ``vmap`` of ``grad``, make a call for each member.

On the CPU XLA calls the kernels itself, by its foreign-function interface (``jax.ffi``, JAX from 0.5 on), and keeps the
tape between forward and backward. With lengths, masks or resets, on other devices and with older versions it calls back
to Python (``jax.pure_callback``), which takes some 0.1 ms more for a forward or a backward pass, and backward computes
forward again: to hand the tape on was measured there, and takes longer. Arrays of a device that is not the CPU go to
the host and back.

Supported: JAX from 0.4.36 on. Declined: derivatives in forward mode (jvp), second derivatives, and dropout (drop
between calls for single layers).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rnnfast import arguments, functional, layers

try:
    import jax
    import jax.numpy as jnp
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir
except ImportError as error:
    raise ImportError("rnnfast.backends.jax needs JAX from 0.4.36 on: pip install jax") from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["gru", "lstm", "rnn"]

GATES = {layers.LSTM: 4, layers.GRU: 3, layers.RNN: 1}
STATES = ("h", "c")
UNEVEN = ("lengths", "mask", "reset")


class _Call(NamedTuple):
    """What of a call is no array; hashable, for JAX."""

    kind: type[Any]
    options: tuple[tuple[str, Any], ...]
    zero_masked: bool
    names: tuple[str, ...]  # of the arrays: x, the parameters, then those of h, c, lengths, mask, reset that there are
    direct: bool  # XLA calls the kernels itself, without Python
    taped: bool = False  # and the tape is a result too

    @property
    def layer(self) -> Any:
        return _layer(self.kind, self.options)

    @property
    def members(self) -> int:
        """Of the state: h, or h and c."""
        return 2 if self.kind is layers.LSTM else 1

    def state(self, members: Sequence[Any]) -> Any:
        return tuple(members) if self.members == 2 else members[0]

    def arguments(self, named: Mapping[str, Any]) -> dict[str, Any]:
        """What the layer is called with."""
        state = self.state([named.get(name) for name in STATES])
        uneven = {name: named.get(name) for name in UNEVEN}
        return {"x": named["x"], "state": state, "zero_masked": self.zero_masked, **uneven}


@functools.lru_cache
def _layer(kind: type[Any], options: tuple[tuple[str, Any], ...]) -> Any:
    layer = kind(**dict(options), rng=0)
    # Of its parameters only the shapes are used.
    zero = layer.dtype.type(0)
    shapes = {name: np.broadcast_to(zero, array.shape) for name, array in layer.parameters.items()}
    return layers.base.with_parameters(layer, shapes)


# ---------------------------------------------------------------------------------------------------- on the host
# Functions that XLA calls in its own threads, and waits for: they must not call JAX.


def _prepare(call: _Call, arrays: Iterable[Any]) -> tuple[Any, dict[str, Any]]:
    """The layer with these parameters and what it is to be called with."""
    named = dict(zip(call.names, map(np.asarray, arrays), strict=True))
    layer = layers.base.with_parameters(call.layer, {name: named[name] for name in call.layer.parameters})
    return layer, call.arguments(named)


def _forward(call: _Call, *arrays: Any) -> list[Any]:
    layer, given = _prepare(call, arrays)
    y, state = layer(**given)
    return [y, *(state if call.members == 2 else [state])]


def _backward(call: _Call, *arrays: Any) -> list[Any]:
    arrays, (dy, *dstate) = arrays[: len(call.names)], map(np.asarray, arrays[len(call.names) :])
    layer, given = _prepare(call, arrays)
    _, _, tape = layer.forward(**given)
    gradients = layer.backward(tape, dy, call.state(dstate))
    states = gradients.state if call.members == 2 else [gradients.state]
    return [gradients.x, *gradients.parameters.values(), *states]


HOST = {"forward": _forward, "backward": _backward}


@functools.lru_cache
def _on_host(name: str, call: _Call) -> Any:
    """One and the same for one call, so that JAX finds what it has compiled."""
    return functools.partial(HOST[name], call)


# ---------------------------------------------------------------------------------------------------- out of JAX


@functools.cache
def _has_kernels() -> bool:
    """Hand the kernels to XLA, for it to call them itself; whether it takes them."""
    try:
        from jax import ffi

        for name, handler in functional.xla.items():
            ffi.register_ffi_target(f"rnnfast_{name}", handler, platform="cpu")
    except (ImportError, RuntimeError):  # a JAX before 0.5, or one whose interface is of another version
        return False
    return True


def _is_direct(named: Mapping[str, Any]) -> bool:
    """Whether XLA can call the kernels itself: on the CPU, where all rows have all steps, and there are rows."""
    plain = named["x"].size > 0 and not any(name in UNEVEN for name in named)
    # In this order: XLA looks at what is handed over once it has a back end, and with none would refuse to make one.
    return plain and jax.default_backend() == "cpu" and _has_kernels()


def _kernels(name: str, call: _Call, results: Sequence[Any], *arrays: Any) -> Any:
    """ "forward" or "backward", by XLA itself or through Python."""
    if not call.direct:
        return jax.pure_callback(_on_host(name, call), results, *arrays, vmap_method="sequential")
    has_states = (state in call.names for state in STATES)
    description = call.layer.engine.xla_call(not call.layer.batch_first, *has_states)
    run = jax.ffi.ffi_call(f"rnnfast_{name}", results, vmap_method="sequential")
    return run(*arrays, call=np.frombuffer(description, np.uint8))


# --------------------------------------------------------------------------------------------------------- in JAX

# A primitive, as jax.custom_batching.custom_vmap has no derivative in reverse mode. Batching makes a call of it again,
# so that the derivative of a vmap is that of one large call.
recurrent = Primitive("rnnfast")
recurrent.multiple_results = True


def _results(call: _Call, x: Any) -> list[Any]:
    plan = call.layer.execution.plan(x.shape)
    shapes = (plan.y, plan.h, plan.c)[: 1 + call.members]
    results = [jax.ShapeDtypeStruct(shape, call.layer.dtype) for shape in shapes]
    return [*results, jax.ShapeDtypeStruct((plan.sizes.tape,), np.uint8)] if call.taped else results


def _run(*arrays: Any, call: _Call) -> Any:
    return _kernels("forward", call, _results(call, arrays[0]), *arrays)


@recurrent.def_abstract_eval
def _shapes(*arrays: Any, call: _Call) -> list[Any]:
    return [jax.core.ShapedArray(result.shape, result.dtype) for result in _results(call, arrays[0])]


recurrent.def_impl(jax.jit(_run, static_argnames="call"))
mlir.register_lowering(recurrent, mlir.lower_fun(_run, multiple_results=True))


@functools.lru_cache
def _differentiable(call: _Call) -> Any:
    """The call with its derivative."""

    def forward(*arrays: Any) -> Any:
        if not call.direct:
            return recurrent.bind(*arrays, call=call), (arrays, ())
        *results, tape = recurrent.bind(*arrays, call=call._replace(taped=True))
        return results, (arrays, (results[0], tape))

    def backward(kept: Any, cotangents: Any) -> Any:
        arrays, more = kept
        x, parameters = arrays[0], arrays[1 : 1 + len(call.layer.parameters)]
        plan = call.layer.execution.plan(x.shape)
        shapes = x.shape, *(a.shape for a in parameters), *(plan.h, plan.c)[: call.members]
        results = [jax.ShapeDtypeStruct(shape, call.layer.dtype) for shape in shapes]
        gradients = _kernels("backward", call, results, *arrays, *more, *cotangents)
        found = dict(zip(("x", *call.layer.parameters, *STATES), gradients, strict=False))
        return tuple(found.get(name) for name in call.names)

    run = jax.custom_vjp(lambda *arrays: recurrent.bind(*arrays, call=call))
    run.defvjp(forward, backward)
    return run


def _derive(primals: Any, tangents: Any, *, call: _Call) -> Any:
    if call.taped:
        raise ValueError("the gradients of rnnfast's layers do not support JVP: there are no second derivatives")

    def whole(name: str, primal: Any, tangent: Any) -> Any:
        return np.zeros(primal.shape, jax.dtypes.float0) if name in UNEVEN else ad.instantiate_zeros(tangent)

    return jax.jvp(_differentiable(call), primals, tuple(map(whole, call.names, primals, tangents)))


ad.primitive_jvps[recurrent] = _derive


def _batch(arrays: Any, axes: Any, *, call: _Call) -> Any:
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    arrays = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(arrays, axes, strict=True)]
    batched = dict(zip(call.names, (axis is not None for axis in axes), strict=True))
    if call.taped or any(batched[name] for name in call.layer.parameters):
        results = _one_by_one(call, arrays, list(batched.values()))
    else:
        row = 0 if call.layer.batch_first else 1
        places = {"x": row, "mask": row, "reset": row, "lengths": 0, "h": 1, "c": 1}
        has_rows = arrays[0].ndim == 3 + batched["x"]
        folded = []
        for name, array in zip(call.names, arrays, strict=True):
            if name in places:
                if not batched[name]:
                    array = jnp.broadcast_to(array, (size, *array.shape))
                array = jnp.moveaxis(array, 0, places[name])
                if has_rows:
                    array = jax.lax.collapse(array, places[name], places[name] + 2)
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
    zero_masked: bool = False,
    **options: Any,
) -> tuple[Any, tuple[Any, Any]]:
    """:class:`rnnfast.LSTM` as a function of JAX arrays.

    Parameters
    ----------
    x : array_like, (T, N, I), with batch_first (N, T, I), or unbatched (T, I)
        Converted to the dtype of the parameters.
    parameters : mapping of str to array_like
        As ``rnnfast.LSTM(...).parameters`` has them. Biases, ``weight_hr_l{k}`` and ``peephole_l{k}`` may be absent.
    state : pair of array_like (L*D, N, H_out) and (L*D, N, H), unbatched without N, optional
        Either may be None, for zeros.
    lengths, mask, reset : array_like, optional
        As for a call of the layer.
    zero_masked : bool, default False
        As for a call of the layer; static under jit, as the options are.
    **options
        num_layers, bidirectional, reverse, batch_first, activations, clip and coupled, as of the class.

    Returns
    -------
    y : jax.Array, (T, N, D*H_out), in the layout of `x`
    state : pair of jax.Array

    Raises
    ------
    ValueError, TypeError
        When options, parameters, or shapes do not fit, also while jit traces. Lengths that are traced are looked at
        when the call runs: JAX then raises an error of its own with the text.

    Examples
    --------
    >>> import jax, numpy as np, rnnfast
    >>> layer = rnnfast.LSTM(4, 8, 2, rng=0)
    >>> x = np.ones((5, 2, 4), np.float32)
    >>> y, (h, c) = lstm(x, layer.parameters, num_layers=2, lengths=[5, 3])
    >>> bool((y == layer(x, lengths=[5, 3])[0]).all())
    True
    """
    return _apply(layers.LSTM, x, parameters, state, options, zero_masked, (lengths, mask, reset))


def gru(
    x: Any,
    parameters: Mapping[str, Any],
    state: Any = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    zero_masked: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """:class:`rnnfast.GRU` as a function of JAX arrays: see :func:`lstm`.

    Parameters
    ----------
    x, parameters, lengths, mask, reset, zero_masked
        As for :func:`lstm`.
    state : array_like (L*D, N, H), unbatched without N, optional
    **options
        reset_after, num_layers, bidirectional, reverse, batch_first, activations and clip, as of the class.

    Returns
    -------
    y, state : jax.Array

    Raises
    ------
    ValueError, TypeError
        As :func:`lstm`.

    Examples
    --------
    >>> import jax, numpy as np, rnnfast
    >>> parameters = dict(rnnfast.GRU(4, 8, reset_after=False, rng=0).parameters)
    >>> gru(np.ones((5, 4)), parameters, reset_after=False)[0].shape
    (5, 8)
    """
    return _apply(layers.GRU, x, parameters, state, options, zero_masked, (lengths, mask, reset))


def rnn(
    x: Any,
    parameters: Mapping[str, Any],
    state: Any = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    zero_masked: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """:class:`rnnfast.RNN` as a function of JAX arrays: see :func:`lstm`.

    Parameters
    ----------
    x, parameters, state, lengths, mask, reset, zero_masked
        As for :func:`gru`.
    **options
        nonlinearity, num_layers, bidirectional, reverse, batch_first, activations and clip, as of the class.

    Returns
    -------
    y, state : jax.Array

    Raises
    ------
    ValueError, TypeError
        As :func:`lstm`.

    Examples
    --------
    >>> import jax, numpy as np, rnnfast
    >>> parameters = dict(rnnfast.RNN(4, 8, rng=0).parameters)
    >>> jax.vmap(rnn, in_axes=(0, None))(np.ones((3, 5, 4)), parameters)[0].shape
    (3, 5, 8)
    """
    return _apply(layers.RNN, x, parameters, state, options, zero_masked, (lengths, mask, reset))


READ = ("input_size", "hidden_size", "bias", "proj_size", "peepholes", "dtype")  # off the parameters


def _apply(
    kind: type[Any], x: Any, parameters: Any, state: Any, options: Any, zero_masked: Any, uneven: Sequence[Any]
) -> tuple[Any, Any]:
    if not hasattr(parameters, "keys"):
        raise TypeError(f"parameters must be a dict of arrays under torch's names, got {type(parameters).__name__}")
    arrays = {name: jnp.asarray(parameters[name]) for name in parameters}
    layer_options = _options(kind, arrays, options)
    layer = _layer(kind, layer_options)
    faults = [f"{name} is no parameter of it" for name in arrays if name not in layer.parameters]
    for name, own in layer.parameters.items():
        if name not in arrays:
            faults.append(f"{name} is missing")
        elif arrays[name].shape != own.shape:
            faults.append(f"{name} must have shape {own.shape}, got {arrays[name].shape}")
    if faults:
        raise ValueError(f"parameters do not fit {layers.saving.describe(layer)}: {'; '.join(faults)}")
    members = ()
    if state is not None:
        members = arguments.pair("state", state, "(h, c)") if kind is layers.LSTM else (state,)
    ordered = {name: arrays[name] for name in layer.parameters}  # jit sorts the names of a dict
    given = {"x": x, **ordered, **dict(zip(STATES, members, strict=False)), **dict(zip(UNEVEN, uneven, strict=True))}
    named = {name: jnp.asarray(value) for name, value in given.items() if value is not None}
    zero_masked = arguments.flag("zero_masked", zero_masked)
    call = _Call(kind, layer_options, zero_masked, tuple(named), _is_direct(named))
    layer.execution.read(**call.arguments(_likenesses(named, layer.dtype)))
    cast = [array if name in UNEVEN else array.astype(layer.dtype) for name, array in named.items()]
    y, *members = recurrent.bind(*cast, call=call)
    return y, call.state(members)


def _options(kind: type[Any], arrays: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Those of the layer: the ones that are given, and those that the parameters tell."""
    allowed = [name for name in layers.saving.signature(kind) if name not in (*READ, "dropout")]
    for name in options:
        if name not in allowed:
            why = "the parameters tell it" if name in READ else f"the options are {', '.join(allowed)}"
            raise TypeError(f"{name} is no option of {kind.__name__.lower()}: {why}")
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if name not in arrays or arrays[name].ndim != 2:
            got = f"shape {arrays[name].shape}" if name in arrays else f"only {', '.join(arrays) or 'an empty dict'}"
            raise ValueError(f"parameters must hold a matrix {name}, as torch names them, got {got}")
    weight = arrays["weight_hh_l0"]
    if weight.dtype not in arguments.DTYPES:
        raise ValueError(f"parameters must be of dtype float32 or float64, got {weight.dtype}")
    read = {
        "input_size": arrays["weight_ih_l0"].shape[1],
        "hidden_size": weight.shape[0] // GATES[kind],
        "bias": "bias_ih_l0" in arrays,
        "dtype": weight.dtype,
    }
    if kind is layers.LSTM:
        read["proj_size"] = arrays["weight_hr_l0"].shape[0] if "weight_hr_l0" in arrays else 0
        read["peepholes"] = "peephole_l0" in arrays
    return tuple((name, _hashable(value)) for name, value in {**read, **options}.items())


def _hashable(option: Any) -> Any:
    return tuple(map(_hashable, option)) if isinstance(option, (list, tuple)) else option


def _likenesses(named: Mapping[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Arrays on which the layer can check a call that is traced: for their shapes, and for lengths that are known."""
    likenesses: dict[str, Any] = {}
    for name, array in named.items():
        if name == "lengths" and not isinstance(array, jax.core.Tracer):
            likenesses[name] = np.asarray(array)
        elif name in UNEVEN:
            likenesses[name] = np.zeros(array.shape, array.dtype)
        else:
            likenesses[name] = np.empty(array.shape, array.dtype if jnp.iscomplexobj(array) else dtype)
    return likenesses
