"""Switch the recurrent layers of a model to rnnfast and back, and say which of them run on it."""

from __future__ import annotations

import contextlib
import copyreg
import functools
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch.nn.utils import parametrize

from . import _layers, _operators

__all__ = ["Report", "convert", "disable", "enable", "report", "revert"]

Module = TypeVar("Module", bound=torch.nn.Module)

_CLASSES = {getattr(torch.nn, name): getattr(_layers, name) for name in _layers.__all__}  # torch's to ours
_NAMES = frozenset(_layers.__all__)
# Operators of TorchScript whose presence shows that a module without recurrent submodules is recurrent.
_SCRIPTED = tuple(
    f"aten::{name}" for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu") for name in (cell, f"{cell}_cell")
)
_NEW: Any = copyreg.__newobj__  # type: ignore[attr-defined]
# The methods that torch's forward calls. A subclass that replaces one of them changes what its forward does.
_METHODS = ("forward", "check_forward_args", "check_input", "check_hidden_size", "permute_hidden")

# ---------------------------------------------------------------------------------------------------------- classes


def _base(cls: Any) -> Any:
    """torch's class that a class is or derives from, or None."""
    return next((base for base in _CLASSES if issubclass(cls, base)), None)


def _replaced(cls: Any) -> str | None:
    """The first method with which a class changes torch's forward, or None."""
    base = _base(cls)
    return next((name for name in _METHODS if getattr(cls, name, None) is not getattr(base, name, None)), None)


@functools.cache
def _fast(cls: Any) -> Any:
    """The class that runs a class of torch, or a subclass that keeps its forward, on rnnfast; None if there is none."""
    if issubclass(cls, _layers.Fast):
        return cls
    if cls in _CLASSES:
        return _CLASSES[cls]
    base = _base(cls)
    if base is None or _replaced(cls):
        return None
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls)(cls.__name__, (_CLASSES[base], cls), {**names, "torch_class": cls, "__reduce_ex__": _reduce})


def _reduce(module: Any, protocol: Any) -> Any:  # noqa: ARG001
    """Pickle an object of a class that `_fast` made: by the class that it was made for."""
    reduced: Any = object.__reduce_ex__(module, 2)
    if reduced[:2] != (_NEW, (type(module),)):  # the subclass has a method __reduce__
        return reduced
    return _new, (type(module).torch_class,), *reduced[2:]


def _new(cls: Any) -> Any:
    made = _fast(cls)
    return made.__new__(made)


def _torch(cls: Any) -> Any:
    """Undo `_fast`; None for other classes."""
    return vars(cls).get("torch_class")


def _switched(module: torch.nn.Module, switch: Any) -> Any:
    """The class of a module after `switch`, `_fast` or `_torch`, or None."""
    cls: Any = type(module)
    if not parametrize.is_parametrized(module):
        return switch(cls)
    # torch has put a class with one property for each parametrization between the module and its class, and removes it
    # by taking its first base.
    base = switch(cls.__bases__[0])
    if base is None or base is cls.__bases__[0]:
        return base and cls
    names = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__, (base,), names)


# ------------------------------------------------------------------------------------------------- looking at models


class Report(NamedTuple):
    """The recurrent modules of a model by name, as ``named_modules`` returns them; see `report`.

    Attributes
    ----------
    fast : dict of str to type
        The classes of those that rnnfast runs.
    slow : dict of str to str
        Why torch runs the others.
    """

    fast: dict[str, type[torch.nn.Module]]
    slow: dict[str, str]


def _find(model: torch.nn.Module) -> Iterator[tuple[str, Any, Any, str | None]]:
    """The recurrent modules of a model: name, module, its class on rnnfast or None, and why torch runs it or None."""
    scripted = None  # the name of the last outermost ScriptModule
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            inside = scripted is not None and name.startswith(scripted)
            if not inside:
                scripted = f"{name}." if name else ""
            if module.original_name in _NAMES or (not inside and _is_recurrent_script(module)):
                yield name, module, None, "TorchScript has compiled it: convert the Python model instead"
        elif _base(type(module)) is not None:
            cls = _switched(module, _fast)
            if cls is None:
                method = _replaced(type(module))
                yield name, module, None, f"its class {type(module).__name__} has its own method {method}"
            else:
                yield name, module, cls, _unsupported(module)
        elif type(module).__name__ in _NAMES and type(module).__module__.startswith("torch.ao."):
            yield name, module, None, "its weights are quantized: convert the model before quantization instead"


def _is_recurrent_script(module: Any) -> bool:
    """Whether a ScriptModule runs recurrent operators, and none of its submodules has a recurrent layer's name."""
    if any(one.original_name in _NAMES for one in module.modules() if isinstance(one, torch.jit.ScriptModule)):
        return False
    graph = getattr(module, "inlined_graph", None)
    return graph is not None and any(graph.findAllNodes(kind) for kind in _SCRIPTED)


def _unsupported(module: torch.nn.Module) -> str | None:
    for one in module.parameters():
        if one.dtype not in _operators.DTYPES or not (one.is_cpu or one.is_meta):
            return (
                f"its parameters are {one.dtype} on {one.device.type}, but rnnfast runs float32 and float64 on the CPU"
            )
    return None


def report(model: torch.nn.Module) -> Report:
    """Say which recurrent modules of a model run on rnnfast, and why the others do not.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed.

    Returns
    -------
    Report

    Raises
    ------
    TypeError
        If `model` is not a Module.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import convert, report
    >>> model = torch.nn.ModuleDict({"encoder": torch.nn.LSTM(4, 8), "cell": torch.nn.GRUCell(8, 8)})
    >>> report(model).slow["encoder"]
    'it is torch.nn.LSTM: call convert(model)'
    >>> sorted(report(convert(model)).fast)
    ['cell', 'encoder']
    """
    _check(model)
    fast: dict[str, type[torch.nn.Module]] = {}
    slow: dict[str, str] = {}
    for name, module, _, reason in _find(model):
        if reason is not None:
            slow[name] = reason
        elif isinstance(module, _layers.Fast):
            fast[name] = type(module)
        else:
            slow[name] = f"it is torch.nn.{_base(type(module)).__name__}: call convert(model)"
    return Report(fast, slow)


def _check(model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


# ------------------------------------------------------------------------------------------------- switching models


def convert(model: Module, *, strict: bool = False) -> Module:
    """Let rnnfast run the recurrent layers and cells of a model.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place: each torch.nn.RNN, LSTM, GRU, RNNCell, LSTMCell and GRUCell in it becomes the class of the
        same name in this module. The layers remain the same objects, with their parameters, hooks and mode. An object
        of a subclass becomes one of a class that derives from both, if the subclass has torch's forward.
    strict : bool, default False
        Whether to raise an error, and change nothing, if the model has no recurrent module or has one that rnnfast
        cannot run.

    Returns
    -------
    torch.nn.Module
        `model`. :func:`report` lists what runs on rnnfast.

    Warns
    -----
    RuntimeWarning
        If the model has no recurrent module, or has some that rnnfast cannot run: ScriptModules, subclasses with their
        own forward, quantized layers, and layers on other devices or in other dtypes. The last are converted too, and
        run on rnnfast once they are moved.

    Raises
    ------
    TypeError
        If `model` is not a Module.
    ValueError
        If `strict` is True and the model has no recurrent module, or has one that rnnfast cannot run.

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
    _check(model)
    found = list(_find(model))
    reasons = [f"{name or 'the model itself'}: {reason}" for name, _, _, reason in found if reason is not None]
    problem = None
    if not found:
        problem = f"model, of class {type(model).__name__}, has no recurrent layer or cell of torch.nn"
    elif reasons:
        problem = f"rnnfast does not run {len(reasons)} of {len(found)} recurrent modules: {'; '.join(reasons)}"
    if problem is not None:
        if strict:
            raise ValueError(f"{problem}; nothing was converted: pass strict=False to convert the rest")
        warnings.warn(problem, RuntimeWarning, stacklevel=2)
    for _, module, cls, _ in found:
        if cls is not None:
            module.__class__ = cls
    return model


def revert(model: Module) -> Module:
    """Turn the layers of a converted model back into torch's, for torch.jit.script, quantize_dynamic or an export.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place, also if it was built under :func:`enable`. The layers remain the same objects, with the same
        parameters.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        If `model` is not a Module, or if a layer's class was derived from a class of this module. Nothing is changed.

    Examples
    --------
    >>> import torch
    >>> from rnnfast.backends.torch import convert, revert
    >>> type(revert(convert(torch.nn.GRU(4, 8))))
    <class 'torch.nn.modules.rnn.GRU'>
    """
    _check(model)
    layers = [module for module in model.modules() if isinstance(module, _layers.Fast)]
    classes = [_switched(module, _torch) for module in layers]
    for module, cls in zip(layers, classes, strict=True):
        if cls is None:
            raise TypeError(
                f"{type(module).__name__} derives from a class of rnnfast.backends.torch, so it cannot become torch's: "
                "derive it from the class of torch.nn, and call convert"
            )
    for module, cls in zip(layers, classes, strict=True):
        module.__class__ = cls
    return model


# ----------------------------------------------------------------------------------- layers that are yet to be built

_LOCK = threading.Lock()
_BASES: tuple[Any, ...] = (torch.nn.RNNBase, torch.nn.RNNCellBase)
_enabled: set[object] = set()  # one member for each call of enable that has not ended
_installed: list[tuple[Any, Any]] = []  # classes of torch and the constructors that they have meanwhile


def _wrapped(init: Any) -> Any:
    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        kind: Any = type(self)
        cls = _fast(kind) if _enabled else None
        if cls is not None:
            object.__setattr__(self, "__class__", cls)
        init(self, *args, **options)

    return __init__


def enable() -> contextlib.ExitStack:
    """Let torch.nn.LSTM, GRU, RNN and their cells build layers that run on rnnfast, in all threads.

    For programs that build their model where it cannot be passed to :func:`convert`. Subclasses with torch's forward
    are included. The layers are objects of subclasses of torch's classes, and stay on rnnfast afterwards. Layers that
    exist already and those that are unpickled are not affected: call :func:`convert`.

    Returns
    -------
    context manager
        Optional. On exit it ends this call of `enable`: torch's constructors are restored when the last one has ended.

    Examples
    --------
    >>> import torch
    >>> import rnnfast.backends.torch
    >>> with rnnfast.backends.torch.enable():
    ...     layer = torch.nn.LSTM(4, 8)
    >>> type(layer), isinstance(layer, torch.nn.LSTM)
    (<class 'rnnfast.backends.torch.LSTM'>, True)
    """
    token = object()
    with _LOCK:
        for base in () if _enabled else _BASES:
            base.__init__ = _wrapped(base.__init__)
            _installed.append((base, base.__init__))
        _enabled.add(token)
    undo = contextlib.ExitStack()
    undo.callback(_end, {token})
    return undo


def disable() -> None:
    """End all calls of :func:`enable`."""
    _end(set(_enabled))


def _end(tokens: set[object]) -> None:
    with _LOCK:
        _enabled.difference_update(tokens)
        while _installed and not _enabled:
            base, init = _installed.pop()
            if base.__init__ is init:  # nobody has wrapped it meanwhile
                base.__init__ = init.__wrapped__
