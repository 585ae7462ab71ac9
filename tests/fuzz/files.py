"""Damaged and hostile model files: rnnfast.load, layer.load, sample and predict succeed, or say what is wrong.

Whatever a file asks for, reading it takes little more memory than the file has bytes, and little time.
"""

import contextlib
import functools
import io
import json
import struct
import time
import unicodedata
import zipfile

import numpy as np

import rnnfast
from fuzz import Invalid, assume, folder, memory_limit, outcome, require_command, run_command
from rnnfast import files

MORE_MEMORY = 256 << 20  # of address space, for files of a few kilobytes; threads and allocators take the most of it
SECONDS = 5

LAYERS = {
    "rnn": lambda: rnnfast.RNN(2, 3, nonlinearity="relu", leak=[0.1, 0.2, 0.3], rng=0),
    "lstm": lambda: rnnfast.LSTM(2, 3, 2, proj_size=2, bidirectional=True, rng=0),
    "gru": lambda: rnnfast.GRU(2, 3, dtype=np.float64, clip=3.0, activations=["sigmoid", ("elu", 0.5)], rng=0),
    "both": lambda: rnnfast.Bidirectional(rnnfast.GRU(2, 3, rng=0), rnnfast.RNN(2, 3, reverse=True, rng=0)),
    "linear": lambda: rnnfast.Linear(3, 2, rng=0),
    "embedding": lambda: rnnfast.Embedding(4, 3, rng=0),
}
BASES = [*LAYERS, "text", "series"]
VALUES = [
    None, True, False, 0, 1, 2, -1, 3, 1.5, 1e308, 1 << 20, 10**5, 10**9, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63,
    10**30, float("nan"), float("inf"), "", "a", "tanh", "orthogonal", "GRU", "LSTM", "RNN", "Linear", "Embedding",
    "Bidirectional", "float32", "float64", "float16",
    "O", "\u0000", "\u001b[31m", "\u001b[31m\u0007", "\ud800", [], [1], [0.5, 0.5],
    ["tanh"], [["elu", 1.0]], [[]], {}, {"class": "GRU"}, {"class": "Linear", "in_features": 1, "out_features": 1},
    "abc", "aa", "x" * 1000, [None], "2024-01", "moments", "numbers", "months",
]  # fmt: skip
KEYS = [
    "class", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
    "reverse", "rng", "init", "dtype", "activations", "clip", "peepholes", "coupled", "leak", "merge",
    "forward_layer", "self", "format", "layer", "kind", "characters", "sizes", "options", "times", "column",
    "hidden", "layers", "cell", "embedding", "", "__class__", "max_epochs", "differences", "in_features",
    "num_embeddings", "embedding_dim",
]  # fmt: skip
DTYPES = [
    "<f4", "<f8", "<f2", "<c8", "<i8", "|b1", "|S4", "<U4", "|O", "<M8[s]", ">f4", "|V8", "<f16", "", "f", "\x00",
    "<f4,<f4",
]  # fmt: skip


def generate(random):
    return {
        "base": random.choice(BASES),
        "edits": [edit(random) for _ in range(random.choice([1, 1, 1, 2, 3]))],
        "other": random.choice(list(LAYERS)),
    }


KINDS = {"json": 8, "bytes": 3, "array": 4, "header": 4, "entry": 4, "archive": 2, "large": 2}


def edit(random, kinds=tuple(KINDS)):
    kind = random.choices(kinds, [KINDS[one] for one in kinds])[0]
    e = {"kind": kind, "at": random.randrange(1 << 16)}
    if kind == "json":
        e["how"] = random.choices(["set", "delete", "add", "deep", "text"], [8, 2, 3, 1, 1])[0]
        e["key"], e["value"] = random.choice(KEYS), random.choice(VALUES)
        e["depth"] = random.choice([10, 300, 700, 1000, 100_000])
    elif kind == "bytes":
        e["how"], e["count"] = random.choice(["flip", "cut", "drop", "insert", "zero"]), random.choice([1, 2, 8, 100])
    elif kind == "array":
        e["how"] = random.choice(["dtype", "reshape", "more", "nan", "huge", "empty", "scalar", "fortran", "zero"])
        e["dtype"] = random.choice(DTYPES)
    elif kind == "header":
        e["how"] = random.choice(["shape"] * 5 + ["descr", "order", "length", "version", "text", "magic", "keys"])
        e["shape"] = random.choice(
            [[1 << 40], [1 << 62, 4], [-1], [3, -3], [0], [], [True], [1.5], ["a"], [1] * 40, [10**30]]
        )
        e["dtype"] = random.choice(DTYPES)
        e["text"] = random.choice(
            ["", "{", "[" * 300, "{'a': " * 300, "1 + 1", "{}", "\xff", "(" * 5000, "{'descr': '<f4'}"]
        )
    elif kind == "entry":
        e["how"] = random.choice(["delete", "twice", "rename", "extra", "compress", "folder", "empty", "no suffix"])
        e["name"] = random.choice(
            ["", "../a.npy", "/a.npy", "rnnfast", "weight.npy", "a\\b.npy", "a" * 300, "\u202e.npy"]
        )
        e["method"] = random.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    elif kind == "archive":
        e["how"] = random.choice(
            ["prefix", "suffix", "comment", "count", "offset", "crc", "size", "encrypted", "empty", "npy"]
        )
        e["value"] = random.choice([0, 1, 0xFFFF, 0xFFFFFFFF, 1 << 30])
    else:
        e["how"], e["size"] = random.choice(["zeros", "named"]), random.choice([1 << 22, 1 << 28, 1 << 30])
    return e


# ---- valid files


@functools.cache
def original(base):
    """The bytes of a valid file."""
    with folder() as path:
        file = path / "model"
        if base == "text":
            from rnnfast.commands import text

            sizes = {"cell": "gru", "embedding": 2, "hidden": 3, "layers": 1}
            text.Model("\nabcde", sizes, np.random.default_rng(0)).save(str(file))
        elif base == "series":
            sheet = path / "sheet.csv"
            sheet.write_text("t,v\n" + "".join(f"{2000 + i},{i % 4}\n" for i in range(30)))
            arguments = [
                "train",
                "csv",
                sheet,
                "--column",
                "v",
                "--time-column",
                "t",
                "-o",
                file,
                "--hidden",
                2,
                "--epochs",
                1,
            ]
            status, _, err = run_command(*arguments)
            assert status == 0, err
        else:
            LAYERS[base]().save(file)
        return file.read_bytes()


@functools.cache
def estimators_there():
    try:
        import rnnfast.sklearn  # noqa: F401
    except ImportError:
        return False
    return True


# ---- damage


class Archive:
    """The entries of a file, to be changed and written again."""

    def __init__(self, data):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            self.entries = [[name, archive.read(name), zipfile.ZIP_STORED] for name in archive.namelist()]

    def pick(self, at, arrays=True):
        found = [
            e for e in self.entries if e[0].endswith(".npy") and (not arrays or e[0] != "rnnfast.npy")
        ] or self.entries
        assume(found)
        return found[at % len(found)]

    def write(self):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, content, method in self.entries:
                with contextlib.suppress(UserWarning):
                    archive.writestr(zipfile.ZipInfo(name or "_"), content, method)
        return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=True)
    return out.getvalue()


def parts(content):
    """The header of an entry as text, and what follows."""
    if len(content) < 10:
        return "", content
    size = struct.unpack("<H", content[8:10])[0]
    return content[10 : 10 + size].decode("latin1"), content[10 + size :]


def with_header(text, body, version=1, length=None):
    raw = text.encode("latin1", "replace")
    length = len(raw) if length is None else length
    size = struct.pack("<H", min(length, 0xFFFF)) if version == 1 else struct.pack("<I", length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + raw + body


def damaged(data, e):
    at, kind, how = e["at"], e["kind"], e.get("how")
    if kind == "bytes":
        return damage_bytes(data, e)
    if kind == "archive":
        return damage_archive(data, e)
    archive = Archive(data)
    if kind == "json":
        entry = next((one for one in archive.entries if one[0] == "rnnfast.npy"), None)
        assume(entry is not None)
        entry[1] = npy(np.array(damage_json(entry[1], e)))
    elif kind == "array":
        entry = archive.pick(at)
        entry[1] = damage_array(entry[1], e)
    elif kind == "header":
        entry = archive.pick(at, arrays=at % 5 > 0)
        entry[1] = damage_header(entry[1], e)
    elif kind == "large":  # little on the disk, much in memory
        if how == "zeros":
            archive.entries.append(
                ["extra.npy", npy(np.zeros(1)) + bytes(min(e["size"], 1 << 22)), zipfile.ZIP_DEFLATED]
            )
        else:
            entry = archive.pick(at)
            size = e["size"] // 4
            header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size},), }}\n"
            entry[1:] = [with_header(header, bytes(min(4 * size, 1 << 22))), zipfile.ZIP_DEFLATED]
    else:
        entry = archive.pick(at, arrays=at % 5 > 0)
        if how == "delete":
            archive.entries.remove(entry)
        elif how == "twice":
            archive.entries.append([entry[0], archive.pick(at // 7)[1], zipfile.ZIP_STORED])
        elif how == "rename":
            entry[0] = e["name"]
        elif how == "extra":
            archive.entries.append([e["name"], entry[1], zipfile.ZIP_STORED])
        elif how == "compress":
            entry[2] = e["method"]
        elif how == "folder":
            archive.entries.append(["folder/", b"", zipfile.ZIP_STORED])
        elif how == "empty":
            entry[1] = b""
        else:
            entry[0] = entry[0].removesuffix(".npy")
    return archive.write()


def damage_bytes(data, e):
    assume(data)
    at, count = e["at"] % len(data), e["count"]
    if e["how"] == "flip":
        return data[:at] + bytes([data[at] ^ (1 << count % 8)]) + data[at + 1 :]
    if e["how"] == "cut":
        return data[:at]
    if e["how"] == "drop":
        return data[:at] + data[at + count :]
    if e["how"] == "insert":
        return data[:at] + data[:count] + data[at:]
    return data[:at] + bytes(count) + data[at + count :]


def damage_archive(data, e):
    how, value = e["how"], e["value"]
    directory, end = data.rfind(b"PK\x01\x02"), data.rfind(b"PK\x05\x06")
    local = data.find(b"PK\x03\x04")
    assume(directory > 0 and end > 0)
    raw = bytearray(data)
    if how == "prefix":
        return b"#!/bin/sh\n" + data
    if how == "suffix":
        return data + bytes(e["at"] % 100)
    if how == "comment":
        struct.pack_into("<H", raw, end + 20, 5)
        return bytes(raw) + b"\x1b[31m"
    if how == "count":
        struct.pack_into("<HH", raw, end + 8, value & 0xFFFF, value & 0xFFFF)
    elif how == "offset":
        struct.pack_into("<I", raw, directory + 42, value)
    elif how == "crc":
        struct.pack_into("<I", raw, directory + 16, value)
    elif how == "size":
        struct.pack_into("<II", raw, directory + 20, value, value)
        struct.pack_into("<II", raw, local + 18, value, value)
    elif how == "encrypted":
        struct.pack_into("<H", raw, directory + 8, 1)
    elif how == "empty":
        return [b"", b"PK\x05\x06" + bytes(18), b"PK", b"\x93NUMPY", b"\x80\x04."][value % 5]
    else:
        return npy(np.arange(3.0))
    return bytes(raw)


def nodes(value, path=(), most=None):
    """All places in a JSON value; with `most`, only those in the first elements of each list."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value[:most]) if isinstance(value, list) else ()
    for key, one in children:
        yield from nodes(one, (*path, key), most)


def damage_json(content, e):
    try:
        about = json.loads(np.load(io.BytesIO(content)).item())
    except Exception:
        return "{"
    return changed_json(about, e)


def changed_json(about, e, most=None):
    """The text of a JSON value with one change at one of its `nodes`."""
    how, value = e["how"], e["value"]
    if how == "text":
        return str(value)
    if how == "deep":
        begin, end = [("[", "]"), ('{"layer":', "}"), ('{"class": "Bidirectional", "forward_layer":', "}")][e["at"] % 3]
        nested = begin * e["depth"] + "1" + end * e["depth"]
        return f'{{"format": 1, "layer": {nested}}}' if e["at"] % 2 else nested
    where = [path for path in nodes(about, most=most) if path] or [()]
    path = where[e["at"] % len(where)]
    if not path:
        return json.dumps(value)
    *most, last = path
    parent = about
    for key in most:
        parent = parent[key]
    if how == "set":
        parent[last] = value
    elif how == "delete":
        del parent[last]
    elif isinstance(parent, dict):
        parent[e["key"]] = value
    return json.dumps(about)


def damage_array(content, e):
    try:
        array = np.load(io.BytesIO(content))
    except Exception:
        return content
    how = e["how"]
    if how == "dtype":
        with np.errstate(all="ignore"), contextlib.suppress(TypeError, ValueError):
            return npy(array.astype(e["dtype"] or "<f4"))
        return content
    changed = {
        "reshape": lambda: array.reshape(-1),
        "more": lambda: np.concatenate([array.reshape(-1), array.reshape(-1)]),
        "nan": lambda: np.full_like(array, np.nan) if array.dtype.kind == "f" else array,
        "huge": lambda: np.full_like(array, 1e38) if array.dtype.kind == "f" else array,
        "empty": lambda: array[:0] if array.ndim else array,
        "scalar": lambda: array.reshape(-1)[:1].reshape(()) if array.size else array,
        "fortran": lambda: np.asfortranarray(array),
        "zero": lambda: np.zeros_like(array),
    }[how]()
    return npy(changed)


def damage_header(content, e):
    text, body = parts(content)
    how, shape, dtype = e["how"], e["shape"], e["dtype"]
    if how == "version":
        return with_header(text, body, version=[0, 2, 3, 4, 255][e["at"] % 5])
    if how == "length":
        return with_header(text, body, length=[0, 1, 0xFFFF][e["at"] % 3])
    if how == "text":
        return with_header(e["text"], body)
    if how == "magic":
        return b"\x80\x04" + content[2:]
    shape = repr(tuple(shape)) if how == "shape" else "(3,)"
    descr = repr(dtype) if how == "descr" else "'<f4'"
    order = "'yes'" if how == "order" else "False"
    more = "'more': 1, " if how == "keys" else ""
    return with_header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {more}}}\n", body)


# ---- what must hold


def check(case):
    assume(case["base"] in BASES and (case["base"] != "series" or estimators_there()))
    data = original(case["base"])
    for e in case["edits"]:
        try:
            data = damaged(data, e)
        except Invalid:
            raise
        except Exception:
            break  # it is damaged beyond what zipfile and NumPy can read already
    original("text")
    estimators_there()  # importing scikit-learn needs more memory than the limit
    with folder() as path:
        file = path / "model"
        file.write_bytes(data)
        for name, use in {"read": use_read, "load": use_load, "layer": use_layer, "command": use_command}.items():
            begin = time.process_time()
            with memory_limit(MORE_MEMORY + len(data)):
                use(file, case)
            took = time.process_time() - begin
            assert took < SECONDS, f"{name} took {took:.1f} s of processor time"
        assert file.read_bytes() == data


def opened(call, file):
    """Call with a file; return the result, or None after a documented error that names the file."""
    result, error = outcome(call, ValueError, OSError)
    assert error is None or str(file) in str(error), f"the message does not name the file: {error!r}"
    return result


def use_read(file, case):  # noqa: ARG001
    def read():
        with files.opening(file) as archive:
            assert isinstance(archive.about, dict)
            for name, shape in archive.shapes.items():
                archive.take(name, shape, np.float32)
            archive.finish()

    opened(read, file)


def use_load(file, case):  # noqa: ARG001
    layer = opened(lambda: rnnfast.load(file), file)
    if layer is None:
        return
    assert isinstance(layer, tuple(rnnfast.layers.saving.CLASSES.values()))
    repr(layer)
    with np.load(file) as content:
        assert set(content.files) == {*layer.parameters, "rnnfast"}, "a file with other arrays was loaded"
        for name, array in layer.parameters.items():
            np.testing.assert_array_equal(array, content[name].astype(array.dtype))
    if isinstance(layer, rnnfast.Embedding):
        assert layer([0]).shape == (1, layer.embedding_dim)
    elif isinstance(layer, rnnfast.Linear):
        assert layer(np.zeros(layer.in_features)).shape == (layer.out_features,)
    else:
        first = getattr(layer, "forward_layer", layer)
        layer(np.zeros((2, 1, first.input_size)))
    again = file.with_name("again")
    layer.save(again)
    assert repr(rnnfast.load(again)) == repr(layer)


def use_layer(file, case):
    layer = LAYERS[case["base"] if case["base"] in LAYERS else case["other"]]()
    before = layer.state_dict()
    loaded = opened(lambda: layer.load(file) is None, file)
    if not loaded:
        for name, array in layer.parameters.items():
            assert (array == before[name]).all(), f"{name} has changed, although load failed"


def use_command(file, case):
    if case["base"] in ("text", "linear"):
        status, out, err = run_command("sample", file, "--length", 5)
        require_command(status, out, err)
        shown = [
            character for character in out + err if unicodedata.category(character) == "Cc" and character not in "\n\t"
        ]
        assert not shown, f"control characters are printed: {out!r} {err!r}"
    if case["base"] in ("series", "gru") and estimators_there():
        status, out, err = run_command("predict", file, "--horizon", 2)
        require_command(status, out, err)
        assert status == 2 or len(out.splitlines()) == 3, out
