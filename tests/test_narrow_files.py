"""Files of layers with weights in fewer bytes, and damaged ones."""

import json
import os
import time

import numpy as np
import pytest
from support.archives import Member, archive, contents, of_array, of_text
from support.layers import refused
from support.memory import peak_memory
from support.narrow import MAKERS, NARROW, bits, freeze, input_of, rounded
from support.streams import I, sequence

import rnnfast
from rnnfast import narrow

weights = pytest.mark.parametrize("weights", NARROW)


@pytest.mark.parametrize("name", MAKERS)
@weights
def test_files(name, weights, tmp_path):
    layer, x, path = MAKERS[name](), input_of(name), tmp_path / "file"
    freeze(layer, weights)
    layer.save(path)
    expected = bits(layer(x))
    loaded, other = rnnfast.load(path), MAKERS[name]()
    for array in other.parameters.values():
        array[...] = np.nan  # what it held does not matter
    other.load(path)
    for one in (loaded, other):
        assert bits(one(x)) == expected
        assert not any(array.flags.writeable for key, array in one.parameters.items() if narrow.is_matrix(key)) or (
            name == "Sequential"  # whose LayerNorm has no matrix
        )
        again = tmp_path / "again"
        one.save(again)
        assert again.read_bytes() == path.read_bytes()
        with pytest.raises(ValueError, match="frozen"):
            one.load(path)
        one.unfreeze()
        for key, array in layer.parameters.items():
            want = rounded(weights, array) if narrow.is_matrix(key) and array.ndim == 2 else array
            np.testing.assert_array_equal(one.parameters[key], want)
        if name != "Embedding":
            one.forward(x)


def test_sizes_of_files(tmp_path):
    layer, sizes = rnnfast.LSTM(256, 256, rng=0), {}
    for weights in ("full", *NARROW):
        freeze(layer, weights)
        layer.save(tmp_path / weights)
        sizes[weights] = os.path.getsize(tmp_path / weights)
    assert 0.5 < sizes["bfloat16"] / sizes["full"] < 0.51
    assert 0.25 < sizes["int8"] / sizes["full"] < 0.27
    assert 0 < sizes["int8_products"] - sizes["int8"] < 100  # the names of the kinds


class Tagger(rnnfast.Model):
    def __init__(self, seed=0):
        super().__init__()
        self.embedding = rnnfast.Embedding(9, I, rng=seed)
        self.layer = rnnfast.Bidirectional(rnnfast.GRU(I, 4, rng=seed), rnnfast.GRU(I, 4, rng=seed))
        self.norm = rnnfast.LayerNorm(8)
        self.readout = rnnfast.Linear(8, 3, rng=seed)

    def call(self, x):
        return self.readout(self.norm(self.layer(self.embedding(x))[0]))


@weights
def test_files_of_models(weights, tmp_path, rng):
    model, other, path = Tagger(), Tagger(1), tmp_path / "file"
    x = rng.integers(0, 9, (5, 2))
    freeze(model, weights)
    model.save(path)
    other.load(path)
    assert bits(other(x)) == bits(model(x))
    model.unfreeze()
    freeze(model.layer.backward_layer, weights)  # a part only
    model.readout.freeze()
    model.save(path)
    other.unfreeze()
    other.load(path)
    assert bits(other(x)) == bits(model(x))
    assert [one._kind() for one in (other.embedding, other.layer.backward_layer, other.readout)] == [
        None,
        weights,
        None,
    ]


def changed(weights, change):
    """The bytes of the file of a small LSTM after `change(header, arrays)`."""
    layer = rnnfast.LSTM(3, 4, proj_size=2, rng=0)
    freeze(layer, weights)
    path = changed.folder / "good"
    layer.save(path)
    header, arrays = contents(path)
    change(header, arrays)
    parts = [Member("rnnfast.npy", of_text(json.dumps(header)))]
    return archive(
        parts + [Member(f"{name}.npy", of_array(np.ascontiguousarray(array))) for name, array in arrays.items()]
    )


def put(name, value):
    return lambda _, arrays: arrays.update({name: value})


def kind(name, value):
    return lambda header, _: header["weights"].update({name: value})


CODES = np.ones((16, 3), np.int8)
ONES = np.ones(16, np.float32)
HOSTILE = {
    "an unknown kind": kind("weight_ih_l0", "float16"),
    "the kind float32": kind("weight_ih_l0", "float32"),
    "the kind None": kind("weight_ih_l0", None),
    "a kind that is a list": kind("weight_ih_l0", ["int8"]),
    "a kind that is a number": kind("weight_ih_l0", 8),
    "kinds in a list": lambda header, _: header.update(weights=["int8"]),
    "kinds that are null": lambda header, _: header.update(weights=None),
    "the kind of an unknown array": kind("weight", "int8"),
    "the kind of a scale": kind("weight_ih_l0.scale", "int8"),
    "the kind of a bias": kind("bias_ih_l0", "int8"),
    "another kind": kind("weight_ih_l0", "bfloat16"),
    "no kind": lambda header, _: header["weights"].pop("weight_ih_l0"),
    "no kinds": lambda header, _: header.pop("weights"),
    "float64": lambda header, _: header["layer"].update(dtype="float64"),
    "no scale": lambda _, arrays: arrays.pop("weight_ih_l0.scale"),
    "no codes": lambda _, arrays: arrays.pop("weight_ih_l0"),
    "two scales": put("weight_ih_l0.scale.scale", ONES),
    "a scale of a bias": put("bias_ih_l0.scale", ONES),
    "a short scale": put("weight_ih_l0.scale", ONES[:15]),
    "a scale that broadcasts": put("weight_ih_l0.scale", ONES[:1]),
    "a scale for each element": put("weight_ih_l0.scale", np.ones((16, 3), np.float32)),
    "a scale of float64": put("weight_ih_l0.scale", np.ones(16)),
    "a scale of NaN": put("weight_ih_l0.scale", ONES * np.float32(np.nan)),
    "an infinite scale": put("weight_ih_l0.scale", ONES * np.float32(np.inf)),
    "a scale that overflows": put("weight_ih_l0.scale", ONES * np.float32(3e38)),
    "a scale of 24 bits": put("weight_ih_l0.scale", np.nextafter(ONES, np.float32(2))),
    "codes of uint16": put("weight_ih_l0", CODES.astype(np.uint16)),
    "codes of float32": put("weight_ih_l0", CODES.astype(np.float32)),
    "codes of another shape": put("weight_ih_l0", CODES.T),
    "one row of codes": put("weight_ih_l0", CODES[:1]),
    "codes of -128": put("weight_ih_l0", np.where(np.arange(3) == 1, -128, CODES).astype(np.int8)),
    "small codes": put("weight_ih_l0", CODES),
    "bias of int8": put("bias_ih_l0", np.ones(16, np.int8)),
    "mixed kinds": lambda header, arrays: (
        header["weights"].update(weight_ih_l0="bfloat16"),
        arrays.pop("weight_ih_l0.scale"),
        arrays.update(weight_ih_l0=np.full((16, 3), 0x3F80, np.uint16)),
    ),
    "a full weight beside others": lambda header, arrays: (
        header["weights"].pop("weight_hr_l0"),
        arrays.pop("weight_hr_l0.scale"),
        arrays.update(weight_hr_l0=np.ones((2, 4), np.float32)),
    ),
    "format 3": lambda header, _: header.update(format=3),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name, tmp_path, monkeypatch):
    monkeypatch.setattr(changed, "folder", tmp_path, raising=False)
    path = tmp_path / "hostile"
    path.write_bytes(changed("int8", HOSTILE[name]))
    layer = rnnfast.LSTM(3, 4, proj_size=2, rng=1)
    for load in (rnnfast.load, layer.load):
        refused(layer, lambda load=load: load(path), ValueError, "rnnfast cannot load '.*hostile': ")
    assert layer._kind() is None


@pytest.mark.parametrize("value", [0x7F80, 0xFF80, 0x7FC0, 0x7F7F])
def test_weights_that_are_not_finite_are_not_loaded(value, tmp_path, monkeypatch):
    monkeypatch.setattr(changed, "folder", tmp_path, raising=False)
    path = tmp_path / "hostile"
    path.write_bytes(changed("bfloat16", put("weight_ih_l0", np.full((16, 3), value, np.uint16))))
    layer = rnnfast.LSTM(3, 4, proj_size=2, rng=1)
    for load in (rnnfast.load, layer.load):
        refused(layer, lambda load=load: load(path), ValueError, "rnnfast cannot load '.*hostile': .*'weight_ih_l0'")


def test_many_kinds_take_no_time(tmp_path):
    layer, path = rnnfast.RNN(1, 1, 1000, rng=0), tmp_path / "file"
    layer.freeze("int8")
    layer.save(path)
    header, arrays = contents(path)
    header["weights"] |= {f"weight_{i}": "int8" for i in range(10**5)}
    parts = [Member(f"{name}.npy", of_array(array)) for name, array in arrays.items()]
    path.write_bytes(archive([*parts, Member("rnnfast.npy", of_text(json.dumps(header)))]))
    start = time.process_time()
    with pytest.raises(ValueError, match="it has the kind of an array 'weight_0' that it does not hold"):
        rnnfast.load(path)
    assert time.process_time() - start < 3


def test_hostile_files_of_models(tmp_path):
    """A float64 model cannot hold int8, and a LayerNorm has no matrix."""
    path = tmp_path / "file"
    layer = rnnfast.Linear(3, 4, rng=0)
    layer.freeze("int8")
    layer.save(path)
    other = rnnfast.Linear(3, 4, dtype=np.float64, rng=0)
    refused(other, lambda: other.load(path), ValueError, "cannot load '.*file': .*needs a layer of dtype float32")
    header = {"format": 2, "layer": {"class": "LayerNorm", "normalized_shape": 4}, "weights": {"weight": "int8"}}
    arrays = {"weight": np.ones(4, np.int8), "weight.scale": np.ones(4, np.float32), "bias": np.ones(4, np.float32)}
    parts = [Member("rnnfast.npy", of_text(json.dumps(header)))]
    path.write_bytes(archive(parts + [Member(f"{name}.npy", of_array(array)) for name, array in arrays.items()]))
    with pytest.raises(ValueError, match=r"cannot load '.*file': .*'weight' must be a matrix"):
        rnnfast.load(path)


def test_files_in_the_other_byte_order_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(changed, "folder", tmp_path, raising=False)

    def swap(_, arrays):
        for name, array in arrays.items():
            arrays[name] = array.astype(array.dtype.newbyteorder(">"))

    x = sequence(np.random.default_rng(0), 3, 2, features=3)
    for weights in NARROW:
        path = tmp_path / weights
        path.write_bytes(changed(weights, swap))
        assert bits(rnnfast.load(path)(x)) == bits(rnnfast.load(tmp_path / "good")(x))


@weights
def test_loading_takes_little_more_memory_than_the_weights(weights, tmp_path):
    layer, path = rnnfast.LSTM(256, 256, rng=0), tmp_path / "file"
    full = sum(array.nbytes for array in layer.parameters.values())
    freeze(layer, weights)
    layer.save(path)
    layer.unfreeze()
    for load in (rnnfast.load, layer.load):
        assert peak_memory(lambda load=load: load(path)) < 2.6 * full
