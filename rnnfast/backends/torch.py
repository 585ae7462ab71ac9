"""PyTorch's recurrent layers, run by rnnfast.

`LSTM`, `GRU` and `RNN` are those of torch.nn with another forward: constructor, parameters, initial values, state_dict,
hooks, pickles and errors are torch's. `convert` makes such layers of the ones that a model has.

They run tensors of float32 or float64 on the CPU, with rows of one length or as a PackedSequence, and dropout draws the
numbers that torch's own layers draw. All else goes to torch's own forward: other devices and number types (which is
said once for each), empty tensors, the transforms of torch.func, forward-mode differentiation. Gradients of gradients
raise RuntimeError. As with torch's LSTM, y must not be changed in place before its gradient is taken: an error says so.
torch.jit.script does not take the layers, torch.jit.trace does where no gradient is asked for; for an export that knows
torch's layers alone, load the state_dict into one.

Threads are rnnfast's, not torch's: `rnnfast.set_num_threads`, or RNNFAST_NUM_THREADS or OMP_NUM_THREADS at the start.

Weights are kept in the form that the kernels read for as long as they stay the same. torch counts the writes to a
tensor; to those that it does not count, through ``.data`` or a NumPy view, a look at some of the numbers of each
parameter is given, at all of them up to 16 KiB. That sees what an optimizer does, or an average of weights, but in a
larger parameter may miss a change of a few numbers: make such a change under ``torch.no_grad()``, which is counted, and
give torch.autograd.gradcheck, which makes such changes, a small layer.

The operators are rnnfast::infer, rnnfast::forward and rnnfast::backward, opaque to torch.compile. It runs around
recurrent layers, unless torch._dynamo.config.allow_rnn is set: then they are part of the graph. Calls that nothing
traces go to the kernels past the operators, so a profile of them shows only the names of Python functions.

Written for torch 2.4 and newer; tested with 2.13.0 alone.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

try:
    import torch
    from torch.library import register_fake
except ImportError as error:
    raise ImportError("rnnfast.backends.torch needs PyTorch 2.4 or newer: pip install 'torch>=2.4'") from error
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence
from torch.utils.weak import WeakTensorKeyDictionary

from rnnfast import buffers, functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["GRU", "LSTM", "RNN", "convert"]

Module = TypeVar("Module", bound=torch.nn.Module)

_CELLS = {"RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu", "LSTM": "lstm", "GRU": "gru"}  # by torch's names
_GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}
_DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
_WHOLE = 1 << 14  # bytes: of larger parameters some places alone are looked at
_BIASED, _PROJECTED = (4, 5), (3, 5)  # by the number of parameters in a layer and direction

# ------------------------------------------------------------------------------------- tensors as the engine has them


@functools.lru_cache(maxsize=256)
def _engine_of(
    cell: str, num_layers: int, bidirectional: bool, kinds: int, dtype: torch.dtype, rows: int, I: int, width: int
) -> functional.Engine:
    """`kinds`: of parameters in a layer and direction; (rows, I), (rows, width): the shapes of the first weights."""
    return functional.Engine(
        cell,
        _DTYPES[dtype],
        I,
        rows // _GATES[cell],
        proj_size=width if kinds in _PROJECTED else 0,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=kinds in _BIASED,
    )


def _engine(parameters: list[Tensor], cell: str, num_layers: int, bidirectional: bool) -> functional.Engine:
    kinds = len(parameters) // (num_layers * (1 + bidirectional))
    first, second = parameters[:2]
    return _engine_of(cell, num_layers, bidirectional, kinds, first.dtype, *map(int, first.shape), int(second.shape[1]))


class _Layer:
    """What stays with the parameters of a layer from call to call: memory, and themselves as the kernels read them."""

    def __init__(self, engine: functional.Engine) -> None:
        self.engine = engine
        self.shapes = functional.parameter_shapes(engine)
        self.workspaces, self.tapes = buffers.BufferPool(4), buffers.ResultPool(4)
        self.results = buffers.ResultPool(4 + min(len(self.shapes), 100))
        self._forms: list[Any] = [None, None]
        self._seen: list[Any] = [None, None]
        self._samples: list[memoryview] = []
        self._lock = threading.Lock()
        self._repeats: dict[Any, functional.PreparedCall] = {}

    def repeat(self, parameters: list[Tensor], shape: tuple[int, ...], batch_first: bool) -> functional.PreparedCall:
        """For calls without a tape, that are mostly on the same few shapes."""
        packed, found = self.form(parameters), self._repeats.get((shape, batch_first))
        if found is None:
            y, h, c = _shapes(self.engine, shape, shape[0 if batch_first else 1])
            shapes = tuple(shape), y, h, c if self.engine.has_cell else None
            if len(self._repeats) >= 64:  # lengths may vary without end
                self._repeats.clear()
            found = functional.PreparedCall(
                self.engine,
                packed,
                shapes,
                time_first=not batch_first,
                pool=self.workspaces,
                empty=self.results.empty,
            )
            self._repeats[shape, batch_first] = found
        return found

    def form(self, parameters: list[Tensor], back: bool = False) -> Array:
        """What forward reads, or what backward reads; packed anew if the parameters have changed."""
        if self._seen[back] is None or self._look(parameters) != self._seen[back]:
            with self._lock:
                self._pack(parameters, back)
        return self._forms[back]

    def _pack(self, parameters: list[Tensor], back: bool) -> None:
        arrays = [np.ascontiguousarray(_array(one)) for one in parameters]
        if [array.shape for array in arrays] != list(self.shapes.values()):
            raise RuntimeError(
                f"the parameters must have the shapes {self.shapes}, got {[array.shape for array in arrays]}: "
                "assign parameters of these shapes"
            )
        self._samples = [sample for array in arrays for sample in _samples(array)]
        seen = self._look(parameters)
        if self._forms[back] is None:
            self._forms[back] = buffers.empty((self.engine.packed_size, self.engine.packed_back_size)[back])
        functional.pack(self.engine, arrays, *((None, self._forms[1]) if back else (self._forms[0], None)))
        self._seen[back] = seen

    def _look(self, parameters: list[Tensor]) -> Any:
        """What the parameters are known by as long as they stay the same; None if torch counts no writes to them."""
        try:
            return [(one._version, one.data_ptr()) for one in parameters], b"".join(self._samples)
        except RuntimeError:  # they were made in inference mode
            return None


def _samples(array: Array) -> list[memoryview]:
    """All of an array or some places. They keep its memory too, so that no other parameter can come to lie there."""
    flat = memoryview(array.reshape(-1).view(np.uint8))
    whole = len(flat) <= _WHOLE
    return [flat] if whole else [flat[at : at + 64] for at in range(0, len(flat), len(flat) // 16)]


_LAYERS = WeakTensorKeyDictionary()  # by their first parameter


def _layer(parameters: list[Tensor], *options: Any) -> _Layer:
    engine = _engine(parameters, *options)
    found = _LAYERS.get(parameters[0])
    if found is None or found.engine is not engine:
        found = _LAYERS[parameters[0]] = _Layer(engine)
    return found


def _array(tensor: Tensor | None) -> Any:
    """The memory of a tensor as an array."""
    return None if tensor is None else tensor.numpy(force=True)


def _flat(tensor: Tensor | None) -> Any:
    """The same, of a copy where it is not contiguous."""
    return None if tensor is None else tensor.contiguous().numpy(force=True)


def _rows(tensor: Tensor | None) -> Any:
    """The same, of a copy where the last axis does not lie side by side."""
    return None if tensor is None else _array(tensor if tensor.stride(-1) == 1 else tensor.contiguous())


def _time_first(array: Any, batch_sizes: Tensor | None, batch_first: bool) -> Any:
    """A sequence as the engine indexes it, (T, N, features); the entries of one that is packed as steps of one row."""
    if array is None:
        return None
    if batch_sizes is not None:
        return array[:, np.newaxis]
    return array.swapaxes(0, 1) if batch_first else array


def _order(batch_sizes: Tensor | None) -> functional.Order | None:
    return None if batch_sizes is None else functional.packed_order(batch_sizes.numpy())


def _at_line(tape: Tensor) -> Tensor:
    """A tape that begins at a cache line, as forward's do; copies that hooks bring back may not."""
    if tape.data_ptr() % buffers.LINE == 0:
        return tape
    room = torch.empty(len(tape) + buffers.LINE, dtype=torch.uint8)
    start = -room.data_ptr() % buffers.LINE
    return room[start : start + len(tape)].copy_(tape)


# ---------------------------------------------------------------------------------------------------- the operators

_LIBRARY = torch.library.Library("rnnfast", "FRAGMENT")
_INPUTS = "Tensor x, Tensor? h0, Tensor? c0, Tensor? masks, Tensor? batch_sizes, Tensor[] parameters"
_OPTIONS = "str cell, int num_layers, bool bidirectional, bool batch_first"
_LIBRARY.define(f"infer({_INPUTS}, {_OPTIONS}) -> (Tensor y, Tensor h_n, Tensor c_n)")
_LIBRARY.define(f"forward({_INPUTS}, {_OPTIONS}) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor tape)")
_LIBRARY.define(
    f"backward({_INPUTS}, {_OPTIONS}, Tensor y, Tensor tape, Tensor? dy, Tensor? dh_n, Tensor? dc_n) "
    "-> (Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dparameters)"
)
_infer = torch.ops.rnnfast.infer.default
_forward = torch.ops.rnnfast.forward.default
_backward = torch.ops.rnnfast.backward.default


def _shapes(engine: functional.Engine, x: tuple[Any, ...], N: Any) -> list[tuple[Any, ...]]:
    """Of y, h_n and c_n, which is empty for cells without c."""
    states, width = engine.num_layers * engine.directions, engine.output_size
    c = (states, N, engine.hidden_size) if engine.has_cell else (0,)
    return [(*x[:-1], engine.directions * width), (states, N, width), c]


def _repeat(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    masks: Tensor | None,
    batch_sizes: Tensor | None,
    parameters: list[Tensor],
    cell: str,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    given = parameters, cell, num_layers, bidirectional
    if masks is None and batch_sizes is None:
        state = (_array(h0), _array(c0)) if cell == "lstm" else _array(h0)
        results = _layer(*given).repeat(parameters, x.shape, batch_first).run(_array(x), state)
        if results is not None:
            y, last = results
            last = last if cell == "lstm" else (last, np.empty(0, last.dtype))
            return tuple(map(torch.from_numpy, (y, *last)))
    return _run(False, x, h0, c0, masks, batch_sizes, *given, batch_first)


def _run(
    keep: bool,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    masks: Tensor | None,
    batch_sizes: Tensor | None,
    parameters: list[Tensor],
    cell: str,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    layer = _layer(parameters, cell, num_layers, bidirectional)
    engine, order = layer.engine, _order(batch_sizes)
    sequence = _time_first(_rows(x), batch_sizes, batch_first)
    T, N, _ = sequence.shape
    sizes = engine.sizes(T, N, order)
    shapes = _shapes(engine, x.shape, N if order is None else order.sequences)
    y, h_n, c_n = results = [layer.results.empty(shape, engine.dtype) for shape in shapes]
    tape = layer.tapes.bytes(sizes.tape) if keep else None
    workspace = layer.workspaces.acquire(sizes.forward_workspace)
    functional.forward(
        engine,
        layer.form(parameters),
        functional.Inputs(sequence, _flat(h0), _flat(c0), _flat(masks), order),
        functional.Outputs(_time_first(y, batch_sizes, batch_first), h_n, c_n if engine.has_cell else None),
        workspace,
        tape,
    )
    layer.workspaces.release(workspace)
    if keep:
        results.append(tape)
    return tuple(map(torch.from_numpy, results))


def _differentiate(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    masks: Tensor | None,
    batch_sizes: Tensor | None,
    parameters: list[Tensor],
    cell: str,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    y: Tensor,
    tape: Tensor,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
) -> tuple[Any, ...]:
    layer = _layer(parameters, cell, num_layers, bidirectional)
    engine, order = layer.engine, _order(batch_sizes)
    sequence = _time_first(_rows(x), batch_sizes, batch_first)
    T, N, _ = sequence.shape
    sizes = engine.sizes(T, N, order)
    shapes = x.shape, *_shapes(engine, x.shape, N if order is None else order.sequences)[1:]
    dx, dh0, dc0 = (layer.results.empty(shape, engine.dtype) for shape in shapes)
    dparameters = [layer.results.zeros(shape, engine.dtype) for shape in layer.shapes.values()]
    workspace = layer.workspaces.acquire(sizes.backward_workspace)
    functional.backward(
        engine,
        layer.form(parameters, back=True),
        functional.Inputs(sequence, _flat(h0), _flat(c0), _flat(masks), order),
        _time_first(_rows(y), batch_sizes, batch_first),
        _array(_at_line(tape)),
        functional.OutputGradients(
            _time_first(_rows(dy), batch_sizes, batch_first), _flat(dh_n), _flat(dc_n) if engine.has_cell else None
        ),
        functional.InputGradients(
            _time_first(dx, batch_sizes, batch_first), dh0, dc0 if engine.has_cell else None, dparameters
        ),
        workspace,
    )
    layer.workspaces.release(workspace)
    return *map(torch.from_numpy, (dx, dh0, dc0)), list(map(torch.from_numpy, dparameters))


def _fake(keep: bool, x: Any, h0: Any, c0: Any, masks: Any, batch_sizes: Any, parameters: Any, *options: Any) -> Any:  # noqa: ARG001
    """Results without numbers. What follows from batch_sizes, or is a whole number of lines, is any size."""
    *stack, batch_first = options
    engine = _engine(parameters, *stack)
    context = torch.library.get_ctx()
    if batch_sizes is None:
        N, T = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
        known = isinstance(T, int) and isinstance(N, int)
    else:
        N, known = context.new_dynamic_size() if h0 is None else h0.shape[1], False
    results = [x.new_empty(shape) for shape in _shapes(engine, x.shape, N)]
    if keep:
        results.append(x.new_empty(engine.sizes(T, N).tape if known else context.new_dynamic_size(), dtype=torch.uint8))
    return tuple(results)


def _fake_gradients(x: Any, h0: Any, c0: Any, masks: Any, batch_sizes: Any, parameters: Any, *rest: Any) -> Any:
    _, dh0, dc0 = _fake(False, x, h0, c0, masks, batch_sizes, parameters, *rest[:4])
    return x.new_empty(x.shape), dh0, dc0, [one.new_empty(one.shape) for one in parameters]


class _Forward(torch.autograd.Function):
    """What autograd knows of rnnfast::forward. `kernels`: what runs it, and its backward."""

    @staticmethod
    def forward(ctx: Any, kernels: Any, options: Any, *tensors: Any) -> Any:
        run, ctx.differentiate = kernels
        y, h_n, c_n, tape = run(*tensors[:5], tensors[5:], *options)
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, tape, *tensors)
        return y, h_n, c_n, tape

    @staticmethod
    def backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, _: Any) -> Any:
        y, tape, x, h0, c0, masks, batch_sizes, *parameters = ctx.saved_tensors
        given = ctx.options, x, h0, c0, masks, batch_sizes, y, tape, dy, dh_n, dc_n, *parameters
        gradients = (_Once.apply if torch.is_grad_enabled() else _gradients)(ctx.differentiate, *given)
        dx, dh0, dc0, *dparameters = gradients
        return None, None, dx, None if h0 is None else dh0, None if c0 is None else dc0, None, None, *dparameters


def _gradients(differentiate: Any, options: Any, *tensors: Any) -> tuple[Tensor, ...]:
    dx, dh0, dc0, dparameters = differentiate(*tensors[:5], tensors[10:], *options, *tensors[5:10])
    return dx, dh0, dc0, *dparameters


class _Once(torch.autograd.Function):
    """A gradient that has no gradient."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Any:  # noqa: ARG004
        return _gradients(*given)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:  # noqa: ARG004
        raise RuntimeError(
            "rnnfast's layers have no gradients of gradients: for this model use torch.nn's own layers, "
            "which take the same state_dict"
        )


def _below_autograd(*arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return _forward(*arguments)


def _recorded(kernels: Any, *arguments: Any) -> Any:
    """rnnfast::forward where autograd looks on."""
    return _Forward.apply(kernels, arguments[6:], *arguments[:5], *arguments[5])


_keep = functools.partial(_run, True)
_LIBRARY.impl("infer", _repeat, "CPU")
_LIBRARY.impl("forward", _keep, "CPU")
_LIBRARY.impl("backward", _differentiate, "CPU")
_LIBRARY.impl("forward", functools.partial(_recorded, (_below_autograd, _backward)), "Autograd")
register_fake("rnnfast::infer", functools.partial(_fake, False), lib=_LIBRARY)
register_fake("rnnfast::forward", functools.partial(_fake, True), lib=_LIBRARY)
register_fake("rnnfast::backward", _fake_gradients, lib=_LIBRARY)

# What runs a layer, by whether a gradient is wanted, and whether tensors are nothing but tensors, which takes no
# operators: that saves a third of what a short inference adds to the kernels, and a fifth of what training does.
_RUNS = {
    (False, False): _infer,
    (False, True): _repeat,
    (True, False): _forward,
    (True, True): functools.partial(_recorded, (_keep, _differentiate)),
}

# ------------------------------------------------------------------------------------------------------- the layers


@functools.cache
def _say_once(what: str) -> None:
    warnings.warn(
        f"{what} go to torch's own forward: rnnfast runs float32 and float64 on the CPU", RuntimeWarning, stacklevel=4
    )


class _Recurrent:
    """The forward of all three, in front of torch's class."""

    def forward(self, input: Any, hx: Any = None) -> Any:  # noqa: A002
        """As torch's own.

        Parameters
        ----------
        input : Tensor (T, N, I), with batch_first (N, T, I), or unbatched (T, I); or PackedSequence
        hx : Tensor (L*D, N, H_out), unbatched (L*D, H_out); for LSTM the pair of it and (L*D, N, H), optional
            The initial state; None is zeros.

        Returns
        -------
        output : Tensor (T, N, D*H_out), in the layout of `input`; or PackedSequence
        hx : Tensor, or for LSTM the pair of h and c
            The last state, in the layout of the initial one.

        Raises
        ------
        ValueError, RuntimeError
            Where torch's own does.
        """
        own = self._parameters  # where nothing has taken their places, which is quicker to see than by getattr
        parameters = [own[name] if name in own else getattr(self, name) for name in self._flat_weights_names]
        pair, axis = self.mode == "LSTM", 0 if self.batch_first else 1
        states = () if hx is None else tuple(hx) if pair else (hx,)
        packed = isinstance(input, PackedSequence)
        x, batch_sizes, sorted_indices, unsorted_indices = input if packed else (input, None, None, None)
        if not self._takes(x, batch_sizes, states, parameters):
            return super().forward(input, hx)
        if packed:
            states = [_permuted(state, sorted_indices) for state in states]
        elif x.dim() == 2:
            x, states = x.unsqueeze(axis), [state.unsqueeze(1) for state in states]
        h0, c0 = (*states, None, None)[:2]
        masks = self._masks(x)
        needed = torch.is_grad_enabled() and any(one.requires_grad for one in (x, *states, *parameters))
        options = _CELLS[self.mode], self.num_layers, self.bidirectional, self.batch_first and not packed
        y, *last = _RUNS[needed, _is_plain(x)](x, h0, c0, masks, batch_sizes, parameters, *options)
        last = last[: 1 + pair]
        if packed:
            y = PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices)
            last = [_permuted(state, unsorted_indices) for state in last]
        elif input.dim() == 2:
            y, last = y.squeeze(axis), [state.squeeze(1) for state in last]
        return y, tuple(last) if pair else last[0]

    def _takes(self, x: Any, batch_sizes: Any, states: Any, parameters: list[Any]) -> bool:
        """Whether the engine runs this: what it does not, torch's forward does, or says what is wrong with it."""
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return False
        if x.dtype not in _DTYPES or not x.is_cpu:
            _say_once(f"{x.dtype} tensors on {x.device.type}")
            return False
        for one in (*states, *parameters):
            if not isinstance(one, Tensor) or one.dtype is not x.dtype or not one.is_cpu:
                return False
        if x.dim() not in ((2, 3) if batch_sizes is None else (2,)):
            return False
        if x.shape[-1] != parameters[0].shape[-1] or x.numel() == 0:
            return False
        batch = (
            [x.shape[not self.batch_first]] if x.dim() == 3 else [] if batch_sizes is None else [int(batch_sizes[0])]
        )
        L = self.num_layers * (1 + self.bidirectional)
        widths = (self.proj_size or self.hidden_size, self.hidden_size)[: 1 + (self.mode == "LSTM")]
        return not states or [state.shape for state in states] == [(L, *batch, width) for width in widths]

    def _masks(self, x: Tensor) -> Tensor | None:
        """Factors for the outputs of all layers but the last, drawn layer by layer as torch draws them."""
        if not (self.training and self.dropout and self.num_layers > 1):
            return None
        rows = x.shape[1::-1] if self.batch_first and x.dim() == 3 else x.shape[:-1]
        width = (1 + self.bidirectional) * (self.proj_size or self.hidden_size)
        kept = 1 - self.dropout
        masks = [x.new_empty((*rows, width)).bernoulli_(kept) for _ in range(self.num_layers - 1)]
        return torch.stack(masks).div_(kept or 1)


def _is_plain(x: Tensor) -> bool:
    """Whether nobody wants to see operators: no compiler, no tracer, no mode, no other kind of tensor."""
    seen = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack()
    return type(x) is Tensor and not seen


def _permuted(state: Tensor, indices: Tensor | None) -> Tensor:
    return state if indices is None else state.index_select(1, indices)


with contextlib.suppress(ImportError):  # torch.compiler.disable says the same, but loads all of the compiler
    from torch._C._dynamo import eval_frame

    # Where torch.compile runs around a layer, it is not to look into these, nor into what they call.
    _SKIP = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
    for _function in (_Recurrent.forward, _repeat, _run, _recorded, _Forward.backward):
        eval_frame.set_code_exec_strategy(_function.__code__, _SKIP)


class RNN(_Recurrent, torch.nn.RNN):
    """torch.nn.RNN by rnnfast, with the same constructor.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import RNN
    >>> output, h_n = RNN(4, 8, nonlinearity="relu")(torch.ones(5, 2, 4))
    >>> output.shape, h_n.shape
    (torch.Size([5, 2, 8]), torch.Size([1, 2, 8]))
    """


class LSTM(_Recurrent, torch.nn.LSTM):
    """torch.nn.LSTM by rnnfast, with the same constructor.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import LSTM
    >>> layer = LSTM(4, 8, num_layers=2, batch_first=True, bidirectional=True, proj_size=3)
    >>> output, (h_n, c_n) = layer(torch.ones(2, 5, 4))
    >>> output.shape, h_n.shape, c_n.shape
    (torch.Size([2, 5, 6]), torch.Size([4, 2, 3]), torch.Size([4, 2, 8]))
    """


class GRU(_Recurrent, torch.nn.GRU):
    """torch.nn.GRU by rnnfast, with the same constructor.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import GRU
    >>> layer = GRU(4, 8)
    >>> output, h_n = layer(torch.ones(5, 2, 4))
    >>> output.sum().backward()
    >>> layer.weight_hh_l0.grad.shape
    torch.Size([24, 8])
    """


_CLASSES = {torch.nn.RNN: RNN, torch.nn.LSTM: LSTM, torch.nn.GRU: GRU}


def convert(model: Module) -> Module:
    """Let rnnfast run all recurrent layers of a model.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place: each torch.nn.RNN, LSTM and GRU in it becomes the one of this module. The layers stay the same
        objects, with their parameters, hooks and mode. Those of other classes that descend from them are left alone.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        When `model` is no Module.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import convert
    >>> convert(torch.nn.ModuleList([torch.nn.LSTM(4, 8), torch.nn.Linear(8, 2)]))
    ModuleList(
      (0): LSTM(4, 8)
      (1): Linear(in_features=8, out_features=2, bias=True)
    )
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        module.__class__ = _CLASSES.get(type(module), type(module))
    return model
