"""Saving, loading, pickling and copying of layers, and the state of the disk after a failure."""

import copy
import json
import os
import pickle
import re
import stat
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import rnnfast

LAYERS = {
    "rnn": lambda **o: rnnfast.RNN(3, 4, nonlinearity="relu", batch_first=True, **o),
    "lstm": lambda **o: rnnfast.LSTM(np.int64(3), 4, 2, proj_size=2, bidirectional=True, dropout=0.3, **o),
    "gru": lambda **o: rnnfast.GRU(3, 4, reset_after=False, bias=np.False_, reverse=True, **o),
    "bidirectional": lambda **o: rnnfast.Bidirectional(rnnfast.LSTM(3, 4, **o), rnnfast.GRU(3, 5, **o)),
    "merged": lambda **o: rnnfast.Bidirectional(rnnfast.RNN(3, 4, **o), merge="mul"),
    "unmerged": lambda **o: rnnfast.Bidirectional(rnnfast.GRU(3, 4, **o), merge=None),
    "linear": lambda **o: rnnfast.Linear(3, 4, **o),
    "embedding": lambda **o: rnnfast.Embedding(3, 4, **o),
}


@pytest.fixture(params=LAYERS)
def kind(request):
    return request.param


def outputs(layer):
    """All arrays that a call of the layer returns."""
    x = np.array([[0, 2, 1], [1, 1, 0]])
    result = layer(x if isinstance(layer, rnnfast.Embedding) else x / 7)
    flat, rest = [], [result]
    while rest:
        item = rest.pop()
        rest.extend(item) if isinstance(item, tuple) else flat.append(item)
    return flat


def assert_same_layer(got, expected):
    """Require another layer with the same class, options, parameters and results."""
    assert got is not expected
    assert repr(got) == repr(expected)
    assert list(got.parameters) == list(expected.parameters)
    for name, array in got.parameters.items():
        assert array.dtype == expected.parameters[name].dtype
        np.testing.assert_array_equal(array, expected.parameters[name])
        assert not np.shares_memory(array, expected.parameters[name])
        assert array.base.flags.owndata
    for one, other in zip(outputs(got), outputs(expected), strict=True):
        np.testing.assert_array_equal(one, other)


# ---- save and load


def test_save_and_load(kind, dtype, tmp_path):
    layer = LAYERS[kind](dtype=dtype, rng=1)
    path = tmp_path / "a model"
    layer.save(path)
    assert os.listdir(tmp_path) == ["a model"]  # no suffix added, nothing left over
    assert_same_layer(rnnfast.load(path), layer)
    assert_same_layer(rnnfast.load(str(path)), layer)

    other = LAYERS[kind](dtype=dtype, rng=2)
    arrays = list(other.parameters.values())
    other.load(path)
    assert_same_layer(other, layer)
    assert all(one is array for one, array in zip(other.parameters.values(), arrays, strict=True))


def test_file_is_plain(kind, tmp_path):
    layer = LAYERS[kind](rng=1)
    layer.save(tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz", allow_pickle=False) as file:
        assert set(file) == {"rnnfast", *layer.parameters}
        header = json.loads(str(file["rnnfast"]))
        for name, array in layer.parameters.items():
            np.testing.assert_array_equal(file[name], array)
    assert header["format"] == 1
    assert header["layer"]["class"] == type(layer).__name__
    assert "rng" not in header["layer"]
    LAYERS[kind](rng=1).save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "model.npz").read_bytes()


def test_frozen_layer_saves(kind, tmp_path):
    layer = LAYERS[kind](rng=1)
    layer.freeze()
    layer.save(tmp_path / "model")
    loaded = rnnfast.load(tmp_path / "model")
    assert all(array.flags.writeable for array in loaded.parameters.values())
    assert_same_layer(loaded, layer)
    with pytest.raises(ValueError, match="frozen"):
        layer.load(tmp_path / "model")


def test_paths(tmp_path, monkeypatch):
    layer = LAYERS["linear"](rng=1)
    monkeypatch.chdir(tmp_path)
    for path in ("here", "with.dot", os.fsencode("bytes")):
        layer.save(path)
        assert_same_layer(rnnfast.load(path), layer)
    os.mkdir("folder")
    os.symlink(os.path.join("folder", "target"), "link")
    layer.save("link")  # through the link, as any program that opens it for writing
    assert os.path.islink("link")
    assert os.listdir("folder") == ["target"]
    assert_same_layer(rnnfast.load("folder/target"), layer)
    for path in (None, 3, layer):
        with pytest.raises(TypeError):
            layer.save(path)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        LAYERS["linear"]().save(tmp_path / "model")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "model").st_mode) == 0o640


# ---- options that may differ, and those that must not


def test_load_into_a_layer_of_another_dtype(tmp_path):
    layer = rnnfast.LSTM(3, 4, 2, dropout=0.5, batch_first=True, rng=1)
    layer.save(tmp_path / "model")
    other = rnnfast.LSTM(3, 4, 2, dtype=np.float64)
    other.load(tmp_path / "model")
    for name, array in other.parameters.items():
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, layer.parameters[name])
    assert not other.batch_first


@pytest.mark.parametrize(
    ("saved", "other", "differs"),
    [
        (rnnfast.LSTM(3, 4), rnnfast.GRU(3, 4), "class='LSTM'"),
        (rnnfast.LSTM(3, 4), rnnfast.LSTM(3, 4, reverse=True), "reverse=False"),
        (rnnfast.GRU(3, 4), rnnfast.GRU(3, 4, reset_after=False), "reset_after=True"),
        (rnnfast.RNN(3, 4), rnnfast.RNN(3, 4, nonlinearity="relu"), "nonlinearity='tanh'"),
        (rnnfast.RNN(3, 4), rnnfast.RNN(3, 4, init_state=True), "init_state=False"),
        (rnnfast.LSTM(3, 4), rnnfast.LSTM(3, 5), "hidden_size=4"),
        (rnnfast.Linear(3, 4), rnnfast.Linear(4, 3), "in_features=3, out_features=4"),
        (
            rnnfast.Bidirectional(rnnfast.RNN(3, 4)),
            rnnfast.Bidirectional(rnnfast.RNN(3, 4), merge="sum"),
            "merge='concat'",
        ),
        (
            rnnfast.Bidirectional(rnnfast.GRU(3, 4)),
            rnnfast.Bidirectional(rnnfast.GRU(3, 4), rnnfast.GRU(3, 4, reset_after=False, reverse=True)),
            "backward_layer={",
        ),
    ],
)
def test_load_refuses_another_kind(saved, other, differs, tmp_path):
    saved.save(tmp_path / "model")
    before = other.state_dict()
    message = f"holds a layer with {differs}.*, but this one has .*; rnnfast\\.load\\(path\\) creates that layer"
    with pytest.raises(ValueError, match=message):
        other.load(tmp_path / "model")
    for name, array in other.parameters.items():
        np.testing.assert_array_equal(array, before[name])


# ---- other files


def _npz(path, **arrays):
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def _header(**fields):
    return np.array(
        json.dumps({"format": 1, "layer": {"class": "Linear", "in_features": 2, "out_features": 1}, **fields})
    )


GOOD = {"weight": np.ones((1, 2)), "bias": np.ones(1)}
FILES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights\n"),
    "npy": lambda path: path.write_bytes(
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (), }"
    ),
    "zip": lambda path: path.write_bytes(b"PK\x03\x04"),
    "no header": lambda path: _npz(path, **GOOD),
    "header of numbers": lambda path: _npz(path, rnnfast=np.ones(3), **GOOD),
    "header of no json": lambda path: _npz(path, rnnfast=np.array("{"), **GOOD),
    "header of another shape": lambda path: _npz(path, rnnfast=np.array("[1, 2]"), **GOOD),
    "model of the command line": lambda path: _npz(path, rnnfast=np.array('{"kind": "text"}'), **GOOD),
    "pickled": lambda path: _npz(path, rnnfast=_header(), weight=np.array([{}], object), bias=GOOD["bias"]),
    "unknown class": lambda path: _npz(path, rnnfast=_header(layer={"class": "Transformer"}), **GOOD),
    "no class": lambda path: _npz(path, rnnfast=_header(layer={}), **GOOD),
    "no layer": lambda path: _npz(path, rnnfast=_header(layer=3), **GOOD),
    "unknown option": lambda path: _npz(
        path, rnnfast=_header(layer={"class": "Linear", "in_features": 2, "out_features": 1, "depth": 1}), **GOOD
    ),
    "bad option": lambda path: _npz(
        path, rnnfast=_header(layer={"class": "Linear", "in_features": 2, "out_features": 0}), **GOOD
    ),
    "missing array": lambda path: _npz(path, rnnfast=_header(), weight=GOOD["weight"]),
    "misshapen array": lambda path: _npz(path, rnnfast=_header(), weight=np.ones((2, 2)), bias=GOOD["bias"]),
    "newer": lambda path: _npz(path, rnnfast=_header(format=3), **GOOD),
}


@pytest.mark.parametrize("name", FILES)
def test_other_files(name, tmp_path):
    path = tmp_path / "file"
    FILES[name](path)
    expected = "has format 3, but this version of rnnfast reads formats 1 and 2" if name == "newer" else ""
    with pytest.raises(ValueError, match=f"rnnfast cannot load '.*file': .*{expected}"):
        rnnfast.load(path)
    layer = rnnfast.Linear(2, 1)
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"rnnfast cannot load '.*file': "):
        layer.load(path)
    for key, array in layer.parameters.items():
        np.testing.assert_array_equal(array, before[key])


def test_damaged_file(tmp_path):
    path = tmp_path / "file"
    LAYERS["lstm"](rng=1).save(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], whole.replace(b"weight_hh_l0.npy", b"weight_hh_l9.npy")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="rnnfast"):
            rnnfast.load(path)
    place = whole.index(LAYERS["lstm"](rng=1).parameters["weight_hh_l0"].tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match="damaged"):
        rnnfast.load(path)


def test_missing_file(tmp_path):
    for load in (rnnfast.load, rnnfast.Linear(2, 1).load):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "nothing")
        with pytest.raises(OSError, match=str(tmp_path.name)):
            load(tmp_path)


# ---- failures while saving


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("step", ["savez", "fsync", "replace"])
def test_failed_save_leaves_the_old_file(step, error, tmp_path, monkeypatch):
    path = tmp_path / "model"
    old, new = LAYERS["lstm"](rng=1), LAYERS["lstm"](rng=2)
    old.save(path)

    def fail(file, *_, **__):
        if step == "savez":
            file.write(b"half")
        raise error

    monkeypatch.setattr(np if step == "savez" else os, step, fail)
    with pytest.raises(type(error)):
        new.save(path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["model"]
    assert_same_layer(rnnfast.load(path), old)


def test_save_into_nowhere(tmp_path):
    layer = LAYERS["linear"]()
    with pytest.raises(FileNotFoundError):
        layer.save(tmp_path / "missing" / "model")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        layer.save(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_full_disk(tmp_path):
    script = """
        import resource, signal, sys
        import rnnfast
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        rnnfast.Linear(3, 4, rng=1).save(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        try:
            rnnfast.Linear(300, 400).save(sys.argv[1])
        except OSError:
            print("refused")
    """
    done = _python(script, tmp_path / "model")
    assert done.stdout.split() == ["refused"], done.stderr
    assert os.listdir(tmp_path) == ["model"]
    assert_same_layer(rnnfast.load(tmp_path / "model"), LAYERS["linear"](rng=1))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_crash_leaves_the_old_file(step, tmp_path):
    script = f"""
        import os, sys
        import rnnfast
        rnnfast.Linear(3, 4, rng=1).save(sys.argv[1])
        os.{step} = lambda *_: os._exit(7)
        rnnfast.Linear(3, 4, rng=2).save(sys.argv[1])
    """
    assert _python(script, tmp_path / "model").returncode == 7
    assert_same_layer(rnnfast.load(tmp_path / "model"), LAYERS["linear"](rng=1))


def _python(script, *arguments):
    command = [sys.executable, "-P", "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ---- pickle and copy

COPIES = {
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "old pickle": lambda layer: pickle.loads(pickle.dumps(layer, 2)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("frozen", [False, True])
def test_copies(kind, frozen, way, dtype):
    layer = LAYERS[kind](dtype=dtype, rng=1)
    outputs(layer)
    if frozen:
        layer.freeze()
    got = COPIES[way](layer)
    if kind in ("bidirectional", "merged", "unmerged") and way == "copy":
        assert got.forward_layer is layer.forward_layer  # shallow: the layers are what it is made of
        return
    assert_same_layer(got, layer)
    assert all(array.flags.writeable != frozen for array in got.parameters.values())
    got.unfreeze()
    for array in got.parameters.values():
        array[...] = 0
    assert not any(array.any() for array in outputs(got) if not isinstance(got, rnnfast.Bidirectional))
    assert all(array.any() for array in layer.parameters.values())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("maker", [rnnfast.RNN, rnnfast.LSTM, rnnfast.GRU])
def test_state_of_a_pickle_of_the_previous_version(maker, frozen):
    layer = maker(3, 4, rng=1)
    state = layer.__getstate__()
    del state["_leak"], state["_frozen"]  # options that version 0.1.0 did not have, and a name that it did not use
    got = maker.__new__(maker)
    got.__setstate__({**state, "_packed": frozen})
    assert_same_layer(got, layer)
    assert all(array.flags.writeable != frozen for array in got.parameters.values())


def test_copies_draw_the_same_dropout_as_the_layer():
    layer = rnnfast.LSTM(3, 4, 2, dropout=0.5, rng=1)
    copies = [COPIES[way](layer) for way in ("pickle", "deepcopy")]
    x = np.ones((5, 2, 3), np.float32)
    for _ in range(3):
        y = layer.forward(x)[0]
        for other in copies:
            np.testing.assert_array_equal(other.forward(x)[0], y)


def test_pickle_holds_no_packed_weights():
    layer = rnnfast.LSTM(64, 64, rng=1)
    size = len(pickle.dumps(layer))
    layer(np.ones((5, 2, 64), np.float32))
    layer.freeze()
    assert abs(len(pickle.dumps(layer)) - size) < 100
    assert size < sum(array.nbytes for array in layer.parameters.values()) + 3000


def test_pickle_out_of_band():
    layer = LAYERS["gru"](rng=1)
    buffers = []
    data = pickle.dumps(layer, 5, buffer_callback=buffers.append)
    got = pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])  # read-only memory
    assert_same_layer(got, layer)
    got.parameters["weight_ih_l0"][...] = 0


def test_tape_does_not_pickle(kind):
    layer = LAYERS[kind](rng=1)
    *_, tape = layer.forward(np.zeros((2, 3), int))
    for way in COPIES.values():
        with pytest.raises(TypeError, match="a Tape can be neither pickled nor copied: pickle the layer"):
            way(tape)


def test_save_rejects_special_files(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="is not a regular file"):
        rnnfast.RNN(2, 3).save(path)
    assert path.is_fifo()


def test_save_keeps_the_mode_of_the_file(tmp_path):
    path, layer = tmp_path / "file", rnnfast.RNN(2, 3)
    layer.save(path)
    path.chmod(0o640)
    layer.save(path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_subclass_is_saved_as_the_class_that_it_extends(tmp_path):
    class Mine(rnnfast.LSTM):
        def __init__(self):
            super().__init__(2, 3, reverse=True)

    layer, path = Mine(), tmp_path / "file"
    layer.save(path)
    loaded = rnnfast.load(path)
    assert type(loaded) is rnnfast.LSTM
    assert loaded.reverse
    x = np.ones((2, 1, 2), np.float32)
    np.testing.assert_array_equal(loaded(x)[0], layer(x)[0])


def test_errors_of_writing_name_the_path_given(tmp_path):
    path = tmp_path / "missing" / "model"
    with pytest.raises(FileNotFoundError, match=re.escape(repr(str(path)))):
        LAYERS["linear"]().save(path)
