"""Models whose layers rnnfast runs: convert, report, revert and enable of rnnfast.backends.torch."""

import copy
import io
import pickle
import threading
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: its back end is not tested")
fast = pytest.importorskip("rnnfast.backends.torch")

from support.torch_layers import operators  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")  # torch's own calls

KINDS = ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"]


class Plain(torch.nn.LSTM):
    """A subclass with torch's forward."""

    def __init__(self, size, note):
        super().__init__(size, size)
        self.note = note

    def doubled(self, x):
        return self(x)[0] * 2


class Noisy(torch.nn.GRU):
    """A subclass with its own forward."""

    def forward(self, x, hx=None):
        return super().forward(x + 1, hx)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.LSTM(4, 8)
        self.rest = torch.nn.ModuleList([torch.nn.GRU(8, 8), torch.nn.RNN(8, 8, nonlinearity="relu")])
        self.cell = torch.nn.GRUCell(8, 8)
        self.again = self.first
        self.out = torch.nn.Linear(8, 2)

    def forward(self, x):
        for layer in (self.first, *self.rest):
            x, _ = layer(x)
        return self.out(self.cell(x[-1]))


def test_layers_change_in_place_and_back():
    model = Model().eval()
    calls = []
    model.rest[0].register_forward_hook(lambda *_: calls.append(1))
    parameters = dict(model.named_parameters())
    layers = list(model.modules())
    x = torch.randn(5, 3, 4)
    expected = model(x)
    assert fast.convert(model, strict=True) is model
    kinds = [type(one) for one in (model.first, *model.rest, model.cell, model.out)]
    assert kinds == [fast.LSTM, fast.GRU, fast.RNN, fast.GRUCell, torch.nn.Linear]
    assert all(one is other for one, other in zip(layers, model.modules(), strict=True))
    assert not model.rest[0].training
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2
    assert operators(lambda: model(x)) == ["forward"] * 4
    assert fast.revert(model) is model
    kinds = [type(one) for one in (model.first, *model.rest, model.cell, model.out)]
    assert kinds == [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN, torch.nn.GRUCell, torch.nn.Linear]
    assert all(one is parameters[name] for name, one in model.named_parameters())
    assert torch.equal(model(x), expected)
    x = torch.randn(5, 8)
    assert torch.equal(torch.jit.script(model.cell)(x), model.cell(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_a_model(kind):
    layer = getattr(torch.nn, kind)(4, 8)
    assert type(fast.convert(layer)) is getattr(fast, kind)
    assert type(fast.revert(layer)) is getattr(torch.nn, kind)


@pytest.mark.parametrize("function", [fast.convert, fast.revert, fast.report])
def test_only_modules_are_models(function):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        function({})


def test_a_subclass_with_torchs_forward():
    layer = Plain(4, "kept")
    x = torch.randn(5, 3, 4)
    expected = layer.doubled(x)
    fast.convert(layer, strict=True)
    assert isinstance(layer, (Plain, fast.LSTM))
    assert isinstance(layer, fast.LSTM)
    assert layer.note == "kept"
    assert operators(lambda: layer.doubled(x)) == ["forward"]
    torch.testing.assert_close(layer.doubled(x), expected, rtol=1e-4, atol=1e-5)
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    copies = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(saved, weights_only=False)
    for one in copies:
        assert type(one) is type(layer)
        assert one.note == "kept"
        assert torch.equal(one.doubled(x), layer.doubled(x))
    assert type(fast.revert(layer)) is Plain
    assert torch.equal(layer.doubled(x), expected)


def test_a_parametrized_layer():
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.GRU(4, 8), "weight_hh_l0")
    x = torch.randn(5, 3, 4)
    expected, _ = layer(x)
    fast.convert(layer, strict=True)
    assert operators(lambda: layer(x)) == ["forward"]
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-4, atol=1e-5)
    assert fast.report(layer).fast
    fast.revert(layer)
    assert torch.equal(layer(x)[0], expected)
    fast.convert(layer)
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer) is fast.GRU
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------- what is passed over


def scripted():
    return torch.jit.script(torch.nn.Sequential(torch.nn.LSTM(4, 8)))


def frozen():
    return torch.jit.freeze(torch.jit.script(torch.nn.GRUCell(4, 8).eval()))


def quantized():
    return torch.ao.nn.quantized.dynamic.GRU(4, 8)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Noisy(4, 8), "its class Noisy has its own method forward"),
        (scripted, "TorchScript has compiled it"),
        (frozen, "TorchScript has compiled it"),
        pytest.param(quantized, "its weights are quantized", marks=pytest.mark.filterwarnings("ignore")),
        (lambda: torch.nn.LSTM(4, 8).half(), "its parameters are torch.float16 on cpu"),
    ],
    ids=["forward", "script", "frozen", "quantized", "half"],
)
def test_what_rnnfast_does_not_run_is_named(make, reason):
    model = torch.nn.ModuleDict({"part": make(), "other": torch.nn.GRU(4, 8)})
    with pytest.raises(ValueError, match=f"1 of 2 recurrent modules: part.*: {reason}.*; nothing was converted"):
        fast.convert(model, strict=True)
    assert type(model["other"]) is torch.nn.GRU
    with pytest.warns(RuntimeWarning, match=f"does not run 1 of 2 recurrent modules: part.*: {reason}") as warned:
        fast.convert(model)
    assert warned[0].filename == __file__
    found = fast.report(model)
    assert found.fast == {"other": fast.GRU}
    assert [key.split(".")[0] for key in found.slow] == ["part"]
    assert all(reason in one for one in found.slow.values())


def test_a_layer_in_half_precision_is_converted_all_the_same():
    layer = torch.nn.LSTM(4, 8).half()
    with pytest.warns(RuntimeWarning, match="the model itself: its parameters are torch.float16"):
        fast.convert(layer)
    layer.float()
    assert fast.report(layer) == ({"": fast.LSTM}, {})
    assert operators(lambda: layer(torch.ones(5, 3, 4))) == ["forward"]


def test_a_model_without_recurrent_layers():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8))
    with pytest.warns(RuntimeWarning, match="class Sequential, has no recurrent layer or cell of torch.nn"):
        assert fast.convert(model) is model
    with pytest.raises(ValueError, match="has no recurrent layer"):
        fast.convert(model, strict=True)
    assert fast.report(model) == ({}, {})


def test_converting_twice_is_silent():
    model = fast.convert(Model())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast.convert(model, strict=True)


def test_a_class_derived_from_ours_cannot_become_torchs():
    class Own(fast.LSTM):
        pass

    model = torch.nn.ModuleList([fast.GRU(4, 8), Own(4, 8)])
    with pytest.raises(TypeError, match=r"Own derives from a class of rnnfast\.backends\.torch"):
        fast.revert(model)
    assert type(model[0]) is fast.GRU


# ------------------------------------------------------------------------------------------------------ yet to be built


@pytest.mark.parametrize("kind", KINDS)
def test_enabled_constructors_build_our_layers(kind):
    torchs = getattr(torch.nn, kind)
    torch.manual_seed(3)
    expected = torchs(4, 8)
    torch.manual_seed(3)
    with fast.enable():
        layer = torchs(4, 8)
    assert type(layer) is getattr(fast, kind)
    assert isinstance(layer, torchs)
    assert all(map(torch.equal, layer.parameters(), expected.parameters()))
    assert type(torchs(4, 8)) is torchs


def test_enabled_subclasses():
    with fast.enable():
        plain, noisy = Plain(4, "kept"), Noisy(4, 8)
    assert isinstance(plain, Plain)
    assert isinstance(plain, fast.LSTM)
    assert plain.note == "kept"
    assert type(noisy) is Noisy


def test_enable_nests_and_survives_errors():
    init = torch.nn.RNNBase.__init__
    with fast.enable():
        with pytest.raises(ZeroDivisionError), fast.enable():
            1 / 0  # noqa: B018
        assert type(torch.nn.LSTM(4, 8)) is fast.LSTM
        with pytest.raises(ValueError, match="proj_size"):
            torch.nn.LSTM(4, 8, proj_size=9)
    assert torch.nn.RNNBase.__init__ is init
    fast.enable()
    fast.enable()
    assert type(torch.nn.LSTM(4, 8)) is fast.LSTM
    fast.disable()
    assert torch.nn.RNNBase.__init__ is init


def test_threads_enable_independently():
    """A thread that ends its own call does not end that of another."""
    begun, ended = threading.Event(), threading.Event()
    found = []

    def short():
        begun.wait()
        with fast.enable():
            pass
        ended.set()

    def long():
        with fast.enable():
            begun.set()
            ended.wait()
            found.append(type(torch.nn.GRU(4, 8)))

    threads = [threading.Thread(target=one) for one in (short, long)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == [fast.GRU]
    assert type(torch.nn.GRU(4, 8)) is torch.nn.GRU


@pytest.mark.parametrize("meanwhile", [False, True], ids=["before", "meanwhile"])
def test_another_patch_of_the_constructor_stays(monkeypatch, meanwhile):
    calls = []

    def patch():
        init = torch.nn.RNNBase.__init__

        def theirs(self, *args, **options):
            calls.append(1)
            init(self, *args, **options)

        monkeypatch.setattr(torch.nn.RNNBase, "__init__", theirs)
        return theirs

    if meanwhile:
        monkeypatch.setattr(torch.nn.RNNBase, "__init__", torch.nn.RNNBase.__init__)  # to be restored in the end
        with fast.enable():
            theirs = patch()
    else:
        theirs = patch()
    assert torch.nn.RNNBase.__init__ is theirs
    assert type(torch.nn.GRU(4, 8)) is torch.nn.GRU
    with fast.enable():
        assert type(torch.nn.GRU(4, 8)) is fast.GRU
    assert torch.nn.RNNBase.__init__ is theirs
    assert len(calls) == 2
