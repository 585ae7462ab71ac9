"""Pairs of torch's layers and ours, and what their calls return."""

import torch

import rnnfast
from rnnfast.backends import torch as fast


def pair(cell="LSTM", *sizes, dtype=torch.float32, **options):
    """torch's layer and ours with the same parameters."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, cell)(*(sizes or (4, 8)), **options).to(dtype)
    ours = getattr(fast, cell)(*(sizes or (4, 8)), **options).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def initial(layer, *batch):
    """A random initial state for the layer."""
    states, dtype = layer.num_layers * (1 + layer.bidirectional), layer.weight_hh_l0.dtype
    h = torch.randn(states, *batch, layer.proj_size or layer.hidden_size, dtype=dtype)
    return (h, torch.randn(states, *batch, layer.hidden_size, dtype=dtype)) if layer.mode == "LSTM" else h


def members(state):
    return [] if state is None else list(state) if isinstance(state, tuple) else [state]


def outcome(layer, x, state=None, pack=None):
    """The results, and the gradients of a scalar function of them with respect to all inputs."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    starts = [one.clone().requires_grad_() for one in members(state)]
    given = None if state is None else tuple(starts) if layer.mode == "LSTM" else starts[0]
    torch.manual_seed(1)
    y, last = layer(pack(x) if pack else x, given)
    results = [y.data if pack else y, *members(last)]
    sum((one.sin() * torch.arange(1, 1 + one.shape[-1])).sum() for one in results).backward()
    return [*results, x.grad, *(one.grad for one in starts), *(one.grad for one in layer.parameters())]


def assert_close(actual, expected, tolerance):
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def operators(function):
    """The names of the rnnfast operators that a call runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "rnnfast":
                names.append(func._opname)
            return func(*args, **(kwargs or {}))

    names = []
    with Names():
        function()
    return names


def numpy_layer(layer):
    """rnnfast's layer with the options and parameters of a layer of torch."""
    options = {"dtype": str(layer.weight_hh_l0.dtype).removeprefix("torch."), "proj_size": layer.proj_size}
    if layer.mode != "LSTM":
        del options["proj_size"]
    if layer.mode.startswith("RNN"):
        options["nonlinearity"] = layer.nonlinearity
    names = ("num_layers", "bias", "batch_first", "bidirectional")
    options.update((name, getattr(layer, name)) for name in names)
    same = getattr(rnnfast, layer.mode.split("_")[0])(layer.input_size, layer.hidden_size, **options)
    same.load_state_dict({name: one.detach().numpy() for name, one in layer.named_parameters()})
    return same
