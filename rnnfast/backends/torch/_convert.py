"""Switch the recurrent layers of a model to rnnfast, and back."""

from __future__ import annotations

from typing import TypeVar

import torch

from ._layers import GRU, LSTM, RNN

__all__ = ["convert"]

Module = TypeVar("Module", bound=torch.nn.Module)

_CLASSES = {torch.nn.RNN: RNN, torch.nn.LSTM: LSTM, torch.nn.GRU: GRU}


def convert(model: Module) -> Module:
    """Let rnnfast run all recurrent layers of a model.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place: each torch.nn.RNN, LSTM and GRU in it becomes the class of the same name in this module. The
        layers remain the same objects, with their parameters, hooks and mode. Subclasses of torch's layers are left
        unchanged.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        If `model` is not a Module.

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
