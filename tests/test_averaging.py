"""Moving averages of parameters against torch.optim.swa_utils."""

import numpy as np
import pytest
from support.compare import assert_same_bits

import rnnfast
from rnnfast.training import ExponentialMovingAverage


def copies(mapping):
    return {name: array.copy() for name, array in mapping.items()}


def trained(decay=0.9, updates=5, dtype=np.float32):
    """A layer with changing parameters, and their average; the values at each update."""
    layer, rng = rnnfast.GRU(3, 4, dtype=dtype, rng=0), np.random.default_rng(1)
    average = ExponentialMovingAverage(layer, decay)
    values = []
    for _ in range(updates):
        for array in layer.parameters.values():
            array += rng.normal(size=array.shape)
        values.append(copies(layer.parameters))
        average.update()
    return layer, average, values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_averages_agree_with_torch(torch, dtype):
    _, average, values = trained(dtype=dtype)
    module = torch.nn.ParameterDict({name: torch.from_numpy(array) for name, array in values[0].items()})
    theirs = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for value in values:
        for name, array in value.items():
            module[name].data = torch.from_numpy(array)
        theirs.update_parameters(module)
    state = average.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_allclose(state[name], tensor.numpy(), rtol=0, atol=16 * np.finfo(dtype).eps, err_msg=name)


def test_applied_swaps_the_averages_in_and_out():
    layer, average, values = trained()
    averages = copies(average.parameters)
    with average.applied():
        assert_same_bits(copies(layer.parameters), averages)
        assert_same_bits(copies(average.parameters), averages)
        assert_same_bits(
            average.state_dict(), {"n_averaged": np.array(5), **{f"module.{k}": v for k, v in averages.items()}}
        )
        with pytest.raises(RuntimeError, match="outside of applied"):
            average.update()
        with pytest.raises(RuntimeError, match="already"), average.applied():
            pass
    assert_same_bits(copies(layer.parameters), values[-1])
    assert_same_bits(copies(average.parameters), averages)
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert_same_bits(copies(layer.parameters), values[-1])


def test_a_frozen_layer_is_refused_and_nothing_is_lost():
    layer, average, values = trained()
    averages = copies(average.parameters)
    layer.freeze()
    with pytest.raises(ValueError, match="read-only"), average.applied():
        pass
    layer.unfreeze()
    with pytest.raises(ValueError, match="read-only"), average.applied():
        layer.freeze()
    assert_same_bits(copies(average.parameters), averages)
    layer.unfreeze()
    average.swap()
    assert_same_bits(copies(layer.parameters), values[-1])
    assert_same_bits(copies(average.parameters), averages)


def test_a_state_continues_an_average():
    layer, average, _ = trained()
    other = ExponentialMovingAverage(layer, 0.9)
    other.load_state_dict(average.state_dict())
    layer.parameters["bias_ih_l0"][:] = 3
    for each in (average, other):
        each.update()
    assert_same_bits(other.state_dict(), average.state_dict())
    with pytest.raises(ValueError, match=r"names n_averaged, module\..* lacks .*n_averaged"):
        other.load_state_dict(other.parameters)


def test_arrays_of_any_layout():
    parameters = {"turned": np.arange(6.0).reshape(2, 3).T, "spaced": np.arange(8.0)[::-2], "single": np.array(1.0)}
    average = ExponentialMovingAverage(parameters, 0.5)
    average.update()
    start = copies(parameters)
    for array in parameters.values():
        array += 2
    average.update()
    for name, array in average.parameters.items():
        np.testing.assert_array_equal(array, start[name] + 1)
    with average.applied():
        np.testing.assert_array_equal(parameters["turned"], start["turned"] + 1)
    np.testing.assert_array_equal(parameters["turned"], start["turned"] + 2)


def test_averages_of_lists_and_refused_arguments():
    layers = [rnnfast.Linear(2, 3, rng=0), rnnfast.Linear(3, 2, rng=1)]
    average = ExponentialMovingAverage(layers)
    assert list(average.parameters) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert repr(average) == "ExponentialMovingAverage(decay=0.999)  # 0 updates"
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1"):
        ExponentialMovingAverage(layers, decay=1)
    with pytest.raises(ValueError, match=r"parameters\[1\] is parameters\[0\] again"):
        ExponentialMovingAverage([layers[0], layers[0]])
