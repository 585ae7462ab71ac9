"""Arrays in safetensors files and in those of torch.save."""

import contextlib
import json
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rnnfast

ARRAYS = {
    "weight_ih_l0": np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3),
    "half": np.array([1.5, -2], np.float16),
    "double": np.array(np.pi),
    "empty": np.ones((0, 3), np.int64),
    "flags": np.array([[True, False]]),
    "bytes": np.arange(5, dtype=np.uint8),
    "complex": np.array([1 + 2j], np.complex64),
    "große": np.array([2**63], np.uint64),
}


def file_of(header, data=b"", pad=0):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) + pad).to_bytes(8, "little") + text + b" " * pad + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].dtype.isnative
        np.testing.assert_array_equal(got[name], array)


# ---- valid files


def test_round_trip(tmp_path):
    rnnfast.save_arrays(tmp_path / "a", ARRAYS)
    assert os.listdir(tmp_path) == ["a"]
    assert_same(rnnfast.load_arrays(tmp_path / "a"), ARRAYS)
    unusual = {name: array.astype(array.dtype.newbyteorder(">")).T for name, array in ARRAYS.items()}
    rnnfast.save_arrays(os.fsencode(tmp_path / "a"), unusual)
    assert_same(rnnfast.load_arrays(str(tmp_path / "a")), {name: array.T for name, array in ARRAYS.items()})
    rnnfast.save_arrays(tmp_path / "a", {})
    assert rnnfast.load_arrays(tmp_path / "a") == {}
    rnnfast.save_arrays(tmp_path / "a", {"list": [1.0, 2.0]})
    assert_same(rnnfast.load_arrays(tmp_path / "a"), {"list": np.array([1.0, 2.0])})


def test_each_array_is_aligned(tmp_path):
    rnnfast.save_arrays(tmp_path / "a", ARRAYS)
    content = (tmp_path / "a").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    for name, about in json.loads(content[8 : 8 + length]).items():
        assert about["data_offsets"][0] % ARRAYS[name].itemsize == 0, name


def test_the_format(tmp_path):
    data = np.array([1.5, 2.5], "<f4").tobytes() + np.array([-3], "<i2").tobytes() + bytes([0, 7])
    header = {
        "b": entry("I16", [1], 8, 10),
        "__metadata__": {"format": "pt"},
        "c": entry("BOOL", [2], 10, 12),
        "a": entry("F32", [2, 1], 0, 8),
        "d": entry("F64", [0], 8, 8),
    }
    (tmp_path / "a").write_bytes(file_of(header, data, pad=5))
    expected = {
        "a": np.array([[1.5], [2.5]], np.float32),
        "b": np.array([-3], np.int16),
        "c": np.array([False, True]),
        "d": np.ones(0),
    }
    assert_same(rnnfast.load_arrays(tmp_path / "a"), expected)


def test_bfloat16_becomes_float32(tmp_path):
    data = np.array([0x3F80, 0xC049, 0x7F80, 0x0001], "<u2").tobytes()
    (tmp_path / "a").write_bytes(file_of({"a": entry("BF16", [2, 2], 0, 8)}, data))
    expected = np.array([[1, -3.140625], [np.inf, 2.0**-133]], np.float32)
    assert_same(rnnfast.load_arrays(tmp_path / "a"), {"a": expected})


def test_other_programs_read_and_write_the_same(tmp_path):
    host = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed: no comparison with it")
    arrays = {name: array for name, array in ARRAYS.items() if name != "complex"}
    rnnfast.save_arrays(tmp_path / "ours", arrays)
    assert_same(host.load_file(tmp_path / "ours"), arrays)
    host.save_file(arrays, tmp_path / "theirs", metadata={"format": "np"})
    assert_same(rnnfast.load_arrays(tmp_path / "theirs"), arrays)


def test_a_layer_goes_through_a_file(tmp_path):
    layer = rnnfast.LSTM(3, 4, 2, bidirectional=True, rng=0)
    rnnfast.save_arrays(tmp_path / "a", layer.state_dict())
    again = rnnfast.from_state_dict(rnnfast.load_arrays(tmp_path / "a"))
    assert repr(again) == repr(layer)
    assert_same(again.parameters, layer.parameters)


# ---- what cannot be written


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({3: 1.0}, TypeError, "strings as names, got 3"),
        ({"__metadata__": 1.0}, ValueError, "rename it"),
        ({"a": "text"}, TypeError, r"arrays\['a'\] must have one of the dtypes .* got <U4"),
        ({"a": np.ones(2, complex)}, TypeError, "got complex128"),
        ({"a": None}, TypeError, "got object"),
        ({"\ud800": 1.0}, ValueError, "surrogates"),
        ([1.0], TypeError, "arrays must be a mapping"),
    ],
)
def test_no_file_is_written(arrays, error, message, tmp_path):
    with pytest.raises(error, match=message):
        rnnfast.save_arrays(tmp_path / "a", arrays)
    assert os.listdir(tmp_path) == []


# ---- invalid files

DATA = bytes(8)
INVALID = {
    "empty": (b"", "neither a safetensors file nor a file of torch.save"),
    "text": (b"weights of a model", "neither"),
    "cut": (file_of({"a": entry("F32", [2], 0, 8)})[:20], "neither"),
    "no object": (file_of(b"{}]"), "Extra data"),
    "half": (file_of(b"{"), "Expecting"),
    "not utf-8": (file_of(b'{"\xff": 1}'), "codec"),
    "a name twice": (file_of(b'{"a": 1, "a": 1}'), "twice"),
    "NaN": (file_of(b'{"a": NaN}'), "not JSON"),
    "deep": (file_of(b'{"a":' * 10**5), "RecursionError|Expecting"),
    "digits": (file_of(b'{"a": ' + b"9" * 5000 + b"}"), "digits"),
    "metadata": (file_of({"__metadata__": {"a": 1}}), "__metadata__ must be an object of strings"),
    "metadata that is a list": (file_of({"__metadata__": []}), "object of strings"),
    "number": (file_of({"a": 1}), "must have exactly"),
    "more fields": (file_of({"a": {**entry("F32", [2], 0, 8), "b": 1}}, DATA), "must have exactly"),
    "float8": (file_of({"a": entry("F8_E4M3", [8], 0, 8)}, DATA), "dtype 'F8_E4M3', but rnnfast reads"),
    "dtype that is a list": (file_of({"a": entry(["F32"], [2], 0, 8)}, DATA), "dtype"),
    "negative": (file_of({"a": entry("F32", [-1, -2], 0, 8)}, DATA), "not a list of sizes"),
    "truth": (file_of({"a": entry("F64", [True], 0, 8)}, DATA), "not a list of sizes"),
    "float": (file_of({"a": entry("F32", [2.0], 0, 8)}, DATA), "not a list of sizes"),
    "text as shape": (file_of({"a": entry("F32", "2", 0, 8)}, DATA), "not a list of sizes"),
    "axes": (file_of({"a": entry("F64", [1] * 33, 0, 8)}, DATA), "33 axes"),
    "three offsets": (file_of({"a": {**entry("F32", [2], 0, 8), "data_offsets": [0, 8, 8]}}, DATA), "data_offsets"),
    "backwards": (file_of({"a": entry("F32", [2], 8, 0)}, DATA), "takes 8 bytes"),
    "too small": (file_of({"a": entry("F32", [1], 0, 8)}, DATA), "takes 4 bytes"),
    "huge": (file_of({"a": entry("F32", [2**40, 2**40], 0, 8)}, DATA), "takes"),
    "as huge as it says": (file_of({"a": entry("F32", [2**40], 0, 2**42)}, DATA), "take 4398046511104 bytes, but 8"),
    "nothing, of a huge shape": (file_of({"a": entry("F32", [0, 10**30], 0, 0)}), "rnnfast cannot load"),
    "gap": (file_of({"a": entry("F32", [1], 4, 8)}, DATA), "must begin at byte 0"),
    "overlap": (file_of({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, DATA), "must begin at byte 8"),
    "rest": (file_of({"a": entry("F32", [1], 0, 4)}, DATA), "8 bytes follow"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_files(name, tmp_path):
    content, message = INVALID[name]
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"rnnfast cannot load {str(tmp_path / 'a')!r}: ")) as caught:
        rnnfast.load_arrays(tmp_path / "a")
    assert re.search(message, str(caught.value)), caught.value


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(OSError, match=re.escape(str(path))):
            rnnfast.load_arrays(path)


VALUES = st.one_of(
    st.integers(-2, 40), st.sampled_from([2**31, 2**63, 10**30, "F32", "F64", "BF16", "U8", 1.5, True, None, "", {}])
)
JSON = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner))
ENTRIES = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "U8", "BOOL", "F8_E5M2"]),
            "shape": st.lists(st.integers(0, 5) | VALUES, max_size=3),
            "data_offsets": st.tuples(st.integers(0, 40), st.integers(0, 40)) | JSON,
        }
    ),
)


def assert_loads_or_says_why(path):
    with contextlib.suppress(ValueError):
        arrays = rnnfast.load_arrays(path)
        assert sum(array.nbytes for array in arrays.values()) <= 2 * path.stat().st_size


@given(st.dictionaries(st.text(max_size=2) | st.just("__metadata__"), ENTRIES, max_size=3), st.integers(0, 40))
def test_any_header(tmp_path_factory, header, count):
    path = tmp_path_factory.getbasetemp() / "any header"
    path.write_bytes(file_of(header, bytes(count)))
    assert_loads_or_says_why(path)


@given(st.data())
def test_any_damage(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any damage"
    rnnfast.save_arrays(path, ARRAYS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        end = at + data.draw(st.integers(0, 3))
        content[at:end] = data.draw(st.binary(max_size=3))
    path.write_bytes(content)
    assert_loads_or_says_why(path)


# ---- torch.save


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch(torch, tmp_path, zipped):
    model = torch.nn.ModuleDict({"encoder": torch.nn.GRU(3, 4)})
    checkpoint = {
        "epoch": 3,
        "state": model.state_dict(),
        "nested": {"bf": torch.tensor([1.5], dtype=torch.bfloat16), 3: torch.ones(2, requires_grad=True)},
    }
    checkpoint["nested"]["itself"] = checkpoint["nested"]
    torch.save(checkpoint, tmp_path / "a", _use_new_zipfile_serialization=zipped)
    arrays = rnnfast.load_arrays(tmp_path / "a")
    expected = {f"state.{name}": tensor.numpy() for name, tensor in model.state_dict().items()}
    assert_same(arrays, {**expected, "nested.bf": np.array([1.5], np.float32), "nested.3": np.ones(2, np.float32)})
    assert repr(rnnfast.from_state_dict(arrays, "state.encoder.")).startswith("GRU(3, 4)")


def test_arrays_of_torch_share_no_memory(torch, tmp_path):
    weight = torch.ones(2, 3)
    torch.save({"a": weight, "b": weight, "wide": torch.ones(1).expand(4)}, tmp_path / "model.pt")
    arrays = rnnfast.load_arrays(tmp_path / "model.pt")
    arrays["a"][:] = 7
    arrays["wide"][0] = 7
    assert arrays["b"].tolist() == [[1] * 3] * 2
    assert arrays["wide"].tolist() == [7, 1, 1, 1]


@pytest.mark.parametrize("names", [{"a.b": 0, "a": {"b": 0}}, {1: 0, "1": 0}])
def test_names_in_files_of_torch_are_unique(torch, tmp_path, names):
    def tensors(value):
        return {name: tensors(one) for name, one in value.items()} if isinstance(value, dict) else torch.ones(2)

    torch.save(tensors(names), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="two tensors with the name"):
        rnnfast.load_arrays(tmp_path / "model.pt")


def test_files_of_torch_that_are_refused(torch, tmp_path):
    path = tmp_path / "a"
    torch.save(torch.nn.GRU(3, 4), path)  # a pickled module
    with pytest.raises(ValueError, match=r"torch.load\(weights_only=True\) raises UnpicklingError"):
        rnnfast.load_arrays(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="no tensors under names, but an object of type list"):
        rnnfast.load_arrays(path)
    torch.save({"a": torch.ones(100)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"rnnfast cannot load .* torch.load"):
        rnnfast.load_arrays(path)


def test_torch_is_needed_for_its_files(torch, tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "a")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'rnnfast\[torch\]'"):
        rnnfast.load_arrays(tmp_path / "a")


# ---- rnnfast.load


def test_load_names_the_function_for_these_files(tmp_path, torch):
    arrays = rnnfast.GRU(2, 3).state_dict()
    path = tmp_path / "a"
    rnnfast.save_arrays(path, arrays)
    with pytest.raises(ValueError, match=r"safetensors file, .*: pass rnnfast.load_arrays\(path\) to rnnfast.from_sta"):
        rnnfast.load(path)
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"file of torch.save, .* pass rnnfast.load_arrays\(path\)"):
        rnnfast.load(path)
    for save, more in ((np.savez, {}), (np.savez_compressed, {}), (np.savez, {"step": 3})):
        with open(path, "wb") as file:
            save(file, **arrays, **more)
        with pytest.raises(ValueError, match=r"pass numpy.load\(path\) to rnnfast.from_state_dict"):
            rnnfast.load(path)
    with pytest.raises(ValueError, match=r"neither .* numpy.load reads .npz"):
        rnnfast.load_arrays(path)
