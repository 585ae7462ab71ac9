"""Model files whose content is wrong on purpose: each is a ValueError or an OSError, at once and in little memory."""

import base64
import contextlib
import json
import os
import signal
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from support.archives import Member, archive, npy, of_array, of_text
from support.command_line import failure, main
from support.memory import peak_memory

import rnnfast
from rnnfast import files

LINEAR = {"class": "Linear", "in_features": 3, "out_features": 4, "bias": True, "dtype": "float32"}
WEIGHT, BIAS = np.arange(12, dtype=np.float32).reshape(4, 3), np.ones(4, np.float32)
LSTM = {"class": "LSTM", "input_size": 3, "hidden_size": 4, "num_layers": 1, "bias": True, "batch_first": False}
LSTM |= {"dropout": 0.0, "bidirectional": False, "reverse": False, "proj_size": 0, "dtype": "float32"}
PARAMETERS = {name: array.copy() for name, array in rnnfast.LSTM(3, 4, rng=0).parameters.items()}


def described(description, arrays, **more):
    """A file of a layer with this description."""
    return about({"format": 1, "layer": description, **more}, arrays)


def about(header, arrays):
    text = header if isinstance(header, str) else json.dumps(header)
    members = [Member("rnnfast.npy", of_text(text))]
    return archive(members + [Member(f"{name}.npy", of_array(array)) for name, array in arrays.items()])


def linear(**options):
    return described({**LINEAR, **options}, {"weight": WEIGHT, "bias": BIAS})


def lstm(**options):
    return described({**LSTM, **options}, PARAMETERS)


def with_weight(content, **faults):
    """A file of a Linear with this member in place of its weight."""
    header = of_text(json.dumps({"format": 1, "layer": LINEAR}))
    members = [Member("rnnfast.npy", header), Member("weight.npy", content, **faults)]
    return archive([*members, Member("bias.npy", of_array(BIAS))])


def with_members(change=list, **options):
    """A file of a Linear whose list of members is changed."""
    header = of_text(json.dumps({"format": 1, "layer": LINEAR}))
    arrays = [("rnnfast", header), ("weight", of_array(WEIGHT)), ("bias", of_array(BIAS))]
    members = [Member(f"{name}.npy", content) for name, content in arrays]
    return archive(change(members), **options)


def bidirectional(**sides):
    layers = {"forward_layer": LSTM, "backward_layer": {**LSTM, "reverse": True}, **sides}
    arrays = {f"{side}.{name}": array for side in ("forward", "backward") for name, array in PARAMETERS.items()}
    return described({"class": "Bidirectional", **layers, "merge": "concat"}, arrays)


def nested(depth):
    """A description of layers within layers."""
    description = LSTM
    for _ in range(depth):
        description = {"class": "Bidirectional", "forward_layer": description, "backward_layer": None, "merge": None}
    return described(description, {})


GOOD = of_array(WEIGHT)
DIGITS = "9" * 5000
BOMB = zlib.compress(bytes(10**7))
HOSTILE = {
    # more than the file holds
    "2**40 elements": with_weight(npy("<f4", (2**20, 2**20), bytes(48))),
    "2**40 elements, in one axis": with_weight(npy("<f4", (2**40,), bytes(48))),
    "2**62 elements": with_weight(npy("<f8", (2**31, 2**31), bytes(48))),
    "no elements, of a huge shape": with_weight(npy("<f4", (0, 10**17), b"")),
    "a string of 2**40 characters": archive([Member("rnnfast.npy", npy(f"<U{2**40}", (), bytes(64)))]),
    "100,000 units": lstm(hidden_size=100_000),
    "2**40 units": lstm(hidden_size=2**40),
    "10**30 units": lstm(hidden_size=10**30),
    "10**9 layers": lstm(num_layers=10**9),
    "10**30 layers": lstm(num_layers=10**30),
    "6 layers": lstm(num_layers=6),
    "10**9 features": lstm(input_size=10**9),
    "20,000 orthogonal units": lstm(hidden_size=20_000, init="orthogonal"),
    "orthogonal units": lstm(init="orthogonal"),
    "its own random numbers": lstm(rng=1),
    "10**9 leaking units": described(
        {"class": "RNN", "input_size": 3, "hidden_size": 10**9, "leak": 0.5, "dtype": "float32"}, PARAMETERS
    ),
    "10**9 rows": described({"class": "Embedding", "num_embeddings": 10**9, "embedding_dim": 9}, {"weight": WEIGHT}),
    "10**9 outputs": linear(out_features=10**9),
    "a third layer to draw": bidirectional(backward_layer=None),
    # options
    **{
        f"{value!r:.20} units": lstm(hidden_size=value)
        for value in (0, -1, True, 4.0, "4", [4], None, {}, LSTM, int(DIGITS[:300]))
    },
    **{
        f"{name}={value!r:.20}": lstm(**{name: value})
        for name, value in {
            "clip": int(DIGITS[:400]), "dropout": 10**400, "proj_size": 4, "bias": "yes", "reverse": 1, "dtype": "O",
            "activations": ["tanh"] * 10**4, "peepholes": None, "coupled": [], "bidirectional": "True",
            "batch_first": None, "self": 1, "cell": "lstm", "__class__": "x", "": 0,
        }.items()
    },
    "a dtype of fields": lstm(dtype=[["a", "f4"]] * 1000),
    "a class that is a list": lstm(**{"class": []}),
    "a class that is private": lstm(**{"class": "Recurrent"}),
    "a Bidirectional of a Linear": bidirectional(forward_layer=LINEAR),
    "a Bidirectional of text": bidirectional(backward_layer="LSTM"),
    "Bidirectionals in each other": nested(3),
    "10**4 Bidirectionals in each other": about(
        '{"format": 1, "layer": ' + '{"class": "Bidirectional", "forward_layer": ' * 10**4 + "1" + "}" * (10**4 + 1), {}
    ),
    "200 Bidirectionals in each other": nested(200),
    # JSON
    "10**5 lists in each other": about("[" * 10**5, {}),
    "10**5 objects in each other": about('{"a":' * 10**5, {}),
    "20,000 objects beside each other": about('[{"":1}' + ',{"":1}' * 20_000 + "]", {}),
    "20,000 lists beside each other": about("[[]" + ",[]" * 20_000 + "]", {}),
    "a huge integer": about('{"format": 1, "layer": ' + DIGITS + "}", {}),
    "a huge format": described(LINEAR, {"weight": WEIGHT, "bias": BIAS}, format=10**4000),
    "format NaN": about('{"format": NaN, "layer": {}}', {}),
    "a leak of infinity": about('{"format": 1, "layer": {"class": "RNN", "leak": Infinity}}', {}),
    "a name twice": about(json.dumps({"format": 1, "layer": LINEAR})[:-1] + ', "format": 1}', {"weight": WEIGHT}),
    "pairs in place of an object": about(json.dumps([["format", 1], ["layer", LINEAR]]), {}),
    "a string": about('"format layer"', {}),
    "null": about("null", {}),
    "no JSON": about("{'format': 1}", {}),
    "an empty text": archive([Member("rnnfast.npy", npy("<U0", ()))]),
    "half a surrogate pair": about('"\ud800"', {}),
    "characters beyond Unicode": archive([Member("rnnfast.npy", npy("<U2", (), b"\xff" * 8))]),
    "two texts": archive([Member("rnnfast.npy", npy("<U2", (2,), "{}{}".encode("utf-32-le")))]),
    "bytes": archive([Member("rnnfast.npy", npy("|S2", (), b"{}"))]),
    # arrays
    "an array too many": described(LINEAR, {"weight": WEIGHT, "bias": BIAS, "more": BIAS}),
    "an array too few": described(LINEAR, {"weight": WEIGHT}),
    "a transposed array": described(LINEAR, {"weight": WEIGHT.T.copy(), "bias": BIAS}),
    "an array of another dtype": described(LINEAR, {"weight": WEIGHT.astype(float), "bias": BIAS}),
    **{
        f"an array of {descr}": with_weight(npy(descr, (4, 3), bytes(12 * size)))
        for descr, size in {
            "|O": 8, "<f2": 2, "<f16": 16, "<c8": 8, "|b1": 1, "<i4": 4, "<M8[s]": 8, "|V4": 4, "<U1": 4, "f": 4
        }.items()
    },
    "fields": with_weight(npy([("a", "<f4")], (4, 3), bytes(48))),
    "Fortran order": with_weight(npy("<f4", (4, 3), bytes(48), fortran=True)),
    "version 2 of NumPy's format": with_weight(npy("<f4", (4, 3), bytes(48), version=(2, 0))),
    "version 9 of NumPy's format": with_weight(npy("<f4", (4, 3), bytes(48), version=(1, 9))),
    **{
        f"the header {header:.30}": with_weight(npy(header=header, content=bytes(48)))
        for header in (
            "", "{", "(" * 1000, "[" * 60_000, "-" * 30_000 + "1", "{}", "{'descr': '<f4'}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), 'more': 1, }",
            "{'descr': '<f4', 'fortran_order': 0, 'shape': (4, 3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 12), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4.0, 3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4 3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4,, 3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': ( , , 4, 3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), } #",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1, " * 30 + "12), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (" + DIGITS + ",), }",
            "{'descr': '<U" + DIGITS + "', 'fortran_order': False, 'shape': (), }",
        )
    },
    "less content than its header says": with_weight(GOOD[:-4]),
    "more content than its header says": with_weight(GOOD + bytes(4)),
    "no content": with_weight(b""),
    "text in place of an array": with_weight(b"weights\n" * 10),
    # archives
    "a deflated member": with_weight(BOMB, local={"method": 8}, central={"method": 8, "size": 10**7}),
    "a deflated member, called stored": with_weight(BOMB, central={"method": 8, "size": 10**7}),
    "a bzip2 member": with_weight(GOOD, local={"method": 12}, central={"method": 12}),
    "an encrypted member": with_weight(GOOD, local={"flags": 1}, central={"flags": 1}),
    "a strongly encrypted member": with_weight(GOOD, local={"flags": 65}, central={"flags": 65}),
    "sizes after the content": with_weight(GOOD, local={"flags": 8}, central={"flags": 8}),
    "a name in UTF-8": with_weight(GOOD, local={"flags": 0x800}, central={"flags": 0x800}),
    "a wrong checksum": with_weight(GOOD, local={"crc": 1}, central={"crc": 1}),
    "a wrong checksum in the directory": with_weight(GOOD, central={"crc": 1}),
    "a wrong checksum before the content": with_weight(GOOD, local={"crc": 1}),
    "another name in the directory": with_weight(GOOD, central={"name": b"weighs.npy"}),
    "another size in the directory": with_weight(GOOD, central={"size": 10**9, "packed": 10**9}),
    "another offset in the directory": with_weight(GOOD, central={"offset": 0}),
    "another date in the directory": with_weight(GOOD, central={"date": 34}),
    "another disk": with_weight(GOOD, central={"disk": 1}),
    "a comment on a member": with_weight(GOOD, central={"comment_length": 4}),
    "fields in the directory": with_weight(GOOD, central={"extra_length": 4, "extra": b"\x01\x00\x00\x00"}),
    "a size beyond the end": with_weight(GOOD, zip64=False, local={"size": 2**31, "packed": 2**31}),
    "a size of 2**63": with_weight(GOOD, local={"extra": b"\x01\x00\x10\x00" + b"\xff" * 16}),
    "two sizes": with_weight(GOOD, zip64=False, local={"size": len(GOOD) + 1}),
    "no size": with_weight(GOOD, zip64=False, local={"size": 2**32 - 1, "packed": 2**32 - 1}),
    "other fields": with_weight(GOOD, local={"extra": b"\x75\x70\x10\x00" + bytes(16)}),
    "more fields than there are": with_weight(GOOD, local={"extra_length": 65535}),
    "a name that is longer than the file": with_weight(GOOD, local={"name_length": 65535}),
    "a name of bytes": with_weight(GOOD, local={"name": b"\xff" * 10}, central={"name": b"\xff" * 10}),
    "bytes before the archive": with_members(prefix=b"#!/bin/sh\n"),
    "bytes before the directory": with_members(between=b"PK\x01\x02"),
    "a comment": with_members(comment=b"a comment"),
    "a directory without a member": with_members(order=[0, 1]),
    "a directory with a member twice": with_members(order=[0, 1, 2, 2]),
    "a directory in another order": with_members(order=[1, 0, 2]),
    "10**5 entries for three members": with_members(order=[0, 1, 2] * 33_333, end={"count": 3}),
    "a wrong count": with_members(end={"count": 2, "here": 2}),
    "a directory elsewhere": with_members(end={"offset": 0}),
    "two disks": with_members(end={"disk": 1}),
    "a member twice": with_members(lambda members: [*members, members[2]]),
    "a description twice": with_members(lambda members: [members[0], *members]),
    "no description": with_members(lambda members: members[1:]),
    "no member": archive([]),
    **{
        f"a member called {name}": with_members(lambda members, name=name: [*members, Member(name, GOOD)])
        for name in ("readme.txt", "weight.npy.npy", "../weight.npy", "/etc/passwd", ".npy", "", "weight", "a\0.npy")
    },
}  # fmt: skip


def refusal(load, path):
    """Return the message of the ValueError, and the peak of the memory allocated."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as error:  # noqa: PT011 (its message is returned)
            load(path)
        return str(error.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_at_once_and_in_little_memory(name, tmp_path):
    path = tmp_path / "hostile"
    path.write_bytes(HOSTILE[name])
    layer = rnnfast.Linear(3, 4, rng=0)
    before = layer.state_dict()
    for load in (rnnfast.load, layer.load):
        start = time.process_time()
        error, peak = refusal(load, path)
        assert time.process_time() - start < 2
        assert peak < 10 * len(HOSTILE[name]) + 500_000
        assert error.startswith(f"rnnfast cannot load {str(path)!r}: ")
        assert len(error) < 3000
    for key, array in layer.parameters.items():
        np.testing.assert_array_equal(array, before[key])


def test_the_files_without_their_faults_are_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(linear())
    np.testing.assert_array_equal(rnnfast.load(path).parameters["weight"], WEIGHT)
    for content in (with_weight(GOOD), with_members()):
        assert content == linear()
    for content in (lstm(), bidirectional()):
        path.write_bytes(content)
        rnnfast.load(path)


def test_a_file_with_any_byte_changed_or_missing_is_refused_or_holds_the_same(tmp_path):
    whole, path = linear(), tmp_path / "file"
    accepted = 0
    with open(path, "wb", buffering=0) as file:
        for i in range(len(whole)):
            flipped = whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :]
            for content in (flipped, whole[:i], whole[:i] + whole[i + 1 :]):
                file.seek(0)
                file.write(content)
                file.truncate()
                with contextlib.suppress(ValueError):
                    parameters = rnnfast.load(path).parameters
                    np.testing.assert_array_equal(parameters["weight"], WEIGHT)
                    np.testing.assert_array_equal(parameters["bias"], BIAS)
                    accepted += 1
    assert accepted == 3 * 12  # bytes of versions and attributes, which depend on the system, of three members


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("zip64", [True, "both", False])
def test_files_of_other_systems_and_earlier_versions(order, zip64, tmp_path):
    """zipfile has written both forms of the sizes in the last years; a big-endian machine writes its own order."""
    text = json.dumps({"format": 1, "layer": LINEAR})
    header = npy(f"{order}U{len(text)}", (), text.encode("utf-32-le" if order == "<" else "utf-32-be"))
    arrays = {"weight": WEIGHT, "bias": BIAS}
    stored = {
        name: npy(f"{order}f4", array.shape, array.astype(f"{order}f4").tobytes()) for name, array in arrays.items()
    }
    made = {"made": 0x14, "external": 0}  # on Windows
    members = [
        Member(f"{name}.npy", content, zip64=zip64, central=made)
        for name, content in ({"rnnfast": header} | stored).items()
    ]
    path = tmp_path / "file"
    path.write_bytes(archive(members))
    layer = rnnfast.load(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(layer.parameters[name], array)
        assert layer.parameters[name].dtype.isnative


# What rnnfast 0.1.0's save wrote for GRU(1, 2, reverse=True, rng=0), deflated.
OLD = (
    "c-jl_W@gc4fB;1X)i%$V|4_iqAi_|TmzS1UT%wm(P|3(3z`(%*Q3#_a`-S=jL^3jzF;uIkq!uR^saq+i+k_e!nW^h2sHf!@l@ulB#pf5Lq=IDJ"
    "5_5`Ef#Ss(i3O=ZzJ{ibLahP?fU6ql1|=X)1LAxjE&}3QAWj705~!RN5Gw$&ArR|8*&y*8sJcoZPKD}4Ru3~f8A)w16eFtxvE6|<2#7<Wd}Mnv"
    "fjAF{3xK#3>aKXGIUu<zsQvidngLat0>!CNGYOevgl0}2)D5{%z1YH_n1EY~plXYuG|WGV(0C}p5uPPbu~Mi!vYAOxKO|zYpO8LSTqi@rDIV&M"
    "OeFuHr-d}Az8oZfAe);4)te8Ew|u0yLpH|%i1nZ}Hvgm`xg!<o#uBJlJ~TdH?jXf|F!RdL;w_bguuFl;S3>=miX~mALEVs#6wb!bbOn;Hh2j8|"
    "LZpA<0e4s-A^<Ez%2PAbGfLt!Gvad$U?s^6sA?FEy(CF9A*viP(@`*_tSsTG3U{+J+qi6Bk-pk~WlsJ5->y8e`<W+dkLt7CuN+=r@mU74&o)3+"
    "Z=jOTj41Tk<s2!yXq{ztUpCj+hBwRFU)=n}PKDiM|BDnxd)+%4`_FkUv)g*})jru8W_vg70$WrcpU+p~g!z~c=;Nf!#A2GpB*k@t7Td&q-(KI}"
    "Ykfp(zX}`2em(JWJ9G6=J5+zozxXu@!(SPL*<VEx>UJNCHTK0anb_|U(X&4i(Po$NI1=bDMkZZm)G8cQKZ7tg0|GQKf=Hwa9bF?R+s=S`SO7(%"
    "E6^zPOpLA@lr=U$lRc_#c~%CDjDoHkl+0ju^P%V#WMe=}bm)3PQHfpeOPF3Hds*2)a;!k83k;Bh>>wTh(UFpY"
)


def test_a_file_of_an_earlier_version(tmp_path):
    path = tmp_path / "old"
    path.write_bytes(zlib.decompress(base64.b85decode(OLD)))
    layer = rnnfast.load(path)
    assert repr(layer) == "GRU(1, 2, reverse=True)  # 30 parameters"
    expected = rnnfast.GRU(1, 2, reverse=True, rng=0)
    for name, array in expected.parameters.items():
        np.testing.assert_array_equal(layer.parameters[name], array)


def test_files_of_more_than_2_gib_have_long_fields(tmp_path, monkeypatch):
    """With the limit of zipfile and of the reader lowered, because such a file takes too long to write."""
    layer = rnnfast.LSTM(8, 32, 2, rng=0)
    layer.save(tmp_path / "short")
    for limit in (3000, 10_000, 20_000):
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit - 1)
        layer.save(tmp_path / "long")
        assert (tmp_path / "long").stat().st_size > (tmp_path / "short").stat().st_size
        with pytest.raises(ValueError, match="its directory does not list"):
            rnnfast.load(tmp_path / "long")
        monkeypatch.setattr(files, "_ZIP64_FROM", limit)
        for name, array in rnnfast.load(tmp_path / "long").parameters.items():
            np.testing.assert_array_equal(array, layer.parameters[name])
        monkeypatch.undo()


def test_loading_takes_little_more_memory_than_the_file(tmp_path):
    path = tmp_path / "file"
    for layer in (rnnfast.LSTM(256, 256, rng=0), rnnfast.Embedding(10_000, 64, rng=0)):
        layer.save(path)
        size = path.stat().st_size
        for load in (rnnfast.load, layer.load):
            assert peak_memory(lambda load=load: load(path)) < 2.05 * size + 100_000


# ---- paths


def test_paths_that_are_no_files(tmp_path):
    layer = rnnfast.Linear(3, 4)
    missing = {
        "": FileNotFoundError,
        str(tmp_path / "none"): FileNotFoundError,
        tmp_path: OSError,
        b"": FileNotFoundError,
    }
    for path, kind in missing.items():
        for load in (rnnfast.load, layer.load):
            with pytest.raises(kind) as error:
                load(path)
            assert error.value.filename == os.fsdecode(path)
    for load in (rnnfast.load, layer.load):
        with pytest.raises(OSError, match=r"too long|[Ff]ile"):
            load(tmp_path / ("x" * 5000))
        with pytest.raises(ValueError, match=r"rnnfast cannot load 'a\\x00b': "):
            load("a\0b")
        for path in (None, 3, 3.5, layer, ["file"]):
            with pytest.raises(TypeError):
                load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    def late(*_):
        raise AssertionError("load waits for the other end of a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 10)
    try:
        for path in (tmp_path / "pipe", "/dev/null", "/dev/zero"):
            with pytest.raises(OSError, match=f"it is not a regular file: '{path}'"):
                rnnfast.load(path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_failures_of_the_disk_and_of_memory_name_the_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    rnnfast.Linear(3, 4).save(path)

    def fail(error):
        def raise_it(*_, **__):
            raise error

        return raise_it

    monkeypatch.setattr(files.Archive, "_read", fail(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match=r"Input/output error: '.*file'"):
        rnnfast.load(path)
    monkeypatch.setattr(files.Archive, "_read", fail(MemoryError()))
    with pytest.raises(OSError, match=r"allocate memory: '.*file'|Not enough space: '.*file'"):
        rnnfast.load(path)


# ---- models of the command line


def text_model(count=2, hidden=4, cell="gru", **more):
    """The description and arrays of a text model; `count` is the number of characters."""
    sizes = {"cell": cell, "embedding": 3, "hidden": hidden, "layers": 1}
    layers = {"embedding": rnnfast.Embedding(count, 3, rng=0), "recurrent": rnnfast.GRU(3, 4, rng=0)}
    layers["readout"] = rnnfast.Linear(4, count, rng=0)
    arrays = {f"{part}.{name}": array for part, layer in layers.items() for name, array in layer.parameters.items()}
    return {"kind": "text", "characters": "abcdefghijklmn"[:count], "sizes": sizes, **more}, arrays


def changed(model, **values):
    header, arrays = model
    return header, {name: values.get(name.replace(".", "_"), array) for name, array in arrays.items()}


TEXTS = {
    "no characters": text_model(characters=""),
    "characters in a list": text_model(characters=["a", "b"]),
    "numbers as characters": text_model(characters=[1, 2]),
    "null characters": text_model(characters=None),
    "a character twice": text_model(characters="aa"),
    "more characters": text_model(characters="abc"),
    "10**9 units": text_model(hidden=10**9),
    "10**9 in the embedding": text_model(sizes={"cell": "gru", "embedding": 10**9, "hidden": 4, "layers": 1}),
    "10**9 layers": text_model(sizes={"cell": "gru", "embedding": 3, "hidden": 4, "layers": 10**9}),
    "an unknown cell": text_model(cell="transformer"),
    "another cell": text_model(cell="lstm"),
    "a list of cells": text_model(cell=["gru"]),
    "no sizes": text_model(sizes={}),
    "more sizes": text_model(sizes={"cell": "gru", "embedding": 3, "hidden": 4, "layers": 1, "depth": 1}),
    "sizes in a list": text_model(sizes=["gru", 3, 4, 1]),
    "negative sizes": text_model(hidden=-4),
    "NaN": changed(text_model(), readout_bias=np.array([np.nan, 0], np.float32)),
    "infinity": changed(text_model(), recurrent_weight_hh_l0=np.full((12, 4), np.inf, np.float32)),
    "complex numbers": changed(text_model(), readout_bias=np.zeros(2, np.complex64)),
    "integers": changed(text_model(), readout_bias=np.zeros(2, np.int32)),
    "a number in place of an array": changed(text_model(), readout_weight=np.float32(1)),
    "a shape that broadcasts": changed(text_model(), readout_weight=np.ones((1, 4), np.float32)),
    "an array too many": (text_model()[0], {**text_model()[1], "more": np.zeros(3, np.float32)}),
    "an array too few": (text_model()[0], {name: a for name, a in text_model()[1].items() if name != "readout.bias"}),
    "a layer": ({"format": 1, "layer": LINEAR}, {"weight": WEIGHT, "bias": BIAS}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_text_models(name, tmp_path, capsys):
    path = tmp_path / "model"
    path.write_bytes(about(*TEXTS[name]))
    assert "is not a model for this command, or it is damaged" in failure(capsys, "sample", path)


def test_scores_that_overflow_are_reported(tmp_path, capsys):
    path = tmp_path / "model"
    huge = np.tile(np.float32(3e38) * np.array([[1], [-1]], np.float32), 4)
    path.write_bytes(about(*changed(text_model(), readout_weight=huge, readout_bias=np.float32([3e38, -3e38]))))
    line = failure(capsys, "sample", path, "--length", 300)
    assert "scores are not finite" in line


def series_model(series=None, options=None, hidden=4, **more):
    """The description and arrays of a series model."""
    series = np.sin(np.arange(40.0))[:, np.newaxis] if series is None else series
    layers = {"layer": rnnfast.GRU(1, 4, rng=0), "readout": rnnfast.Linear(4, 1, rng=0)}
    arrays = {f"{part}.{name}": array for part, layer in layers.items() for name, array in layer.parameters.items()}
    options = {"cell": "gru", "hidden_size": hidden, "num_layers": 1, "differences": 1, **(options or {})}
    reading = {"columns": ["y"]} | more.pop("reading", {})
    header = {"kind": "series", "reading": reading, "times": None, "options": options, **more}
    return header, {"series": series, **arrays}


def without(model, name):
    return {key: value for key, value in model[0].items() if key != name}, model[1]


SERIES = {
    **{f"no {name}": without(series_model(), name) for name in ("reading", "times", "options")},
    "no series": (series_model()[0], {name: a for name, a in series_model()[1].items() if name != "series"}),
    "a series without columns": series_model(np.zeros(40)),
    "a series of two columns": series_model(np.zeros((40, 2))),
    "series in rows": series_model(np.zeros((2, 20))),
    "a series that is a number": series_model(np.array(1.0)),
    "an empty series": series_model(np.zeros((0, 1))),
    "a series of 2": series_model(np.zeros((2, 1))),
    "a series of float32": series_model(np.zeros((40, 1), np.float32)),
    "a series of NaN": series_model(np.full((40, 1), np.nan)),
    "a series of infinity": series_model(np.full((40, 1), np.inf)),
    "a huge series": series_model(np.full((40, 1), 1e200)),
    **{
        f"the reading {reading!r:.60}": series_model(reading=reading)
        for reading in (
            {"columns": 1}, {"columns": [1]}, {"columns": []}, {"columns": ["y", "y"]}, {"columns": ["y", "z"]},
            {"time_column": ["t"]}, {"delimiter": "ab"}, {"delimiter": "\x1b"}, {"delimiter": 1}, {"decimal": 0},
            {"date_format": "%d"}, {"date_format": "%"}, {"frequency": "x"}, {"encoding": "x"}, {"unknown": "x"},
        )
    },
    "options in a list": ({**series_model()[0], "options": []}, series_model()[1]),
    "10**9 units": series_model(hidden=10**9),
    "10**9 layers": series_model(options={"num_layers": 10**9}),
    "10**9 epochs": series_model(options={"max_epochs": 10**9}),
    "another batch size": series_model(options={"batch_size": 1}),
    "an unknown cell": series_model(options={"cell": "x"}),
    "another cell": series_model(options={"cell": "lstm"}),
    "a list of cells": series_model(options={"cell": ["gru"]}),
    "a season of 10**9": series_model(options={"differences": 10**9}),
    "a season of -1": series_model(options={"differences": -1}),
    "a season of text": series_model(options={"differences": "12"}),
    "a seed of text": series_model(options={"random_state": "0"}),
    "NaN": changed(series_model(), readout_bias=np.array([np.nan], np.float32)),
    **{
        f"the times {times!r:.60}": series_model(times=times)
        for times in (
            1, "2024", [1], ["numbers", "1", "2"], {"clock": "numbers"}, {"clock": "numbers", "before": "1"},
            {"clock": "numbers", "before": "", "last": ""}, {"clock": "numbers", "before": 1, "last": 2},
            {"clock": "x", "before": "1", "last": "2"}, {"clock": "numbers", "before": "2", "last": "1"},
            {"clock": "numbers", "before": "1", "last": "1"}, {"clock": "moments", "before": "2024-01-01", "last": "1"},
            {"clock": "moments", "before": "\x1b[2J", "last": "\x1b[2J"},
            {"clock": ["numbers"], "before": "1", "last": "2"},
            {"clock": "numbers", "before": "1", "last": "2", "more": 1},
            {"clock": "numbers", "before": "9" * 10**5, "last": "2"},
            {"clock": "moments", "before": "31.01.2024", "last": "01.02.2024"},
            {"clock": "moments", "before": "31.01.2024", "last": "01.02.2024", "form": 1},
            {"clock": "business days", "before": "2024-01-05", "last": "2024-01-06"},
        )
    },
}  # fmt: skip


@pytest.mark.usefixtures("estimators")
@pytest.mark.parametrize("name", SERIES)
def test_hostile_series_models(name, tmp_path, capsys):
    path = tmp_path / "model"
    path.write_bytes(about(*SERIES[name]))
    assert "is not a model for this command, or it is damaged" in failure(capsys, "predict", path)


@pytest.mark.usefixtures("estimators")
def test_models_without_faults_are_used(tmp_path, capsys):
    path = tmp_path / "model"
    path.write_bytes(about(*text_model()))
    assert main(["sample", str(path), "--length", "9"]) == 0
    times = {"clock": "moments", "before": "2024-01-01", "last": "2024-01-02"}
    path.write_bytes(about(*series_model(times=times, reading={"time_column": "day"})))
    capsys.readouterr()
    assert main(["predict", str(path), "--horizon", "2"]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["day", "2024-01-03", "2024-01-04"]


@pytest.mark.usefixtures("estimators")
def test_forecasts_beyond_the_last_year_or_of_huge_weights(tmp_path, capsys):
    path = tmp_path / "model"
    times = {"clock": "moments", "before": "9999-12-24", "last": "9999-12-25"}
    path.write_bytes(about(*series_model(times=times, reading={"time_column": "day"})))
    assert "outside the years 1 to 9999; use a smaller --horizon" in failure(capsys, "predict", path)
    huge = np.full((1, 4), 3e38, np.float32)
    path.write_bytes(about(*changed(series_model(), readout_weight=huge, readout_bias=np.float32([3e38]))))
    assert "its forecasts are not finite" in failure(capsys, "predict", path)


# ---- what a terminal could obey

ESCAPES = "\x1b[2J\x07\x08\x7f\x9b\r\u202e"


def harmless(text):
    return all(character.isprintable() or character in "\n\t" for character in text)


@pytest.mark.usefixtures("estimators")
def test_nothing_from_files_or_names_controls_the_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"{ESCAPES[:-1]}{kind}" for kind in ("text", "csv", "model", "none")]
    text, sheet, model, none = names
    characters = "".join(sorted({*ESCAPES, "\n"}))
    (tmp_path / "evil").write_bytes(about(*text_model(len(characters), characters=characters)))
    assert main(["sample", "evil", "--length", "100"]) == 0
    out = capsys.readouterr().out
    assert harmless(out)
    assert "\\x1b" in out
    os.rename("evil", none)
    for command in (["sample", f"{none}?"], ["sample", none, "--start", "\x1bx"], ["predict", none]):
        assert harmless(failure(capsys, *command))

    with pytest.raises(SystemExit):
        main(["sample", "x", text])
    assert harmless(capsys.readouterr().err)

    with open(text, "w") as file:
        file.write("a\x1bb\n" * 400)
    small = ["--hidden", "4", "--embedding", "2", "--batch", "2", "--window", "8", "--epochs", "2"]
    assert main(["train", "text", text, "-o", model, *small]) == 0
    assert harmless("".join(capsys.readouterr()))

    column = "sold \x1b[31m"
    with open(sheet, "w", newline="") as file:
        file.write(f'day,"{column}"\n' + "".join(f"{i},{i % 7}\n" for i in range(60)))
    fast = ["--hidden", "2", "--epochs", "1", "--time-column", "day"]
    assert main(["train", "csv", sheet, "--column", column, "-o", model, *fast]) == 0
    assert main(["predict", model, "--horizon", "3"]) == 0
    assert harmless("".join(capsys.readouterr()))
    assert main(["predict", model, "--horizon", "3", "--output", "next.csv"]) == 0
    assert (tmp_path / "next.csv").read_text().startswith(f"day,{column}")
    for arguments in (["--column", "\x1b"], ["--column", "day", "--time-column", column]):
        assert harmless(failure(capsys, "train", "csv", sheet, "-o", model, *arguments))
    with open(sheet, "a") as file:
        file.write("\x1b[2J,3\n")
    line = failure(capsys, "train", "csv", sheet, "-o", model, "--column", column, "--time-column", "day")
    assert harmless(line)
