"""Damaged and hostile model files of other programs: rnnfast.from_file succeeds, or says what is wrong.

Whatever a file asks for, reading it takes little more memory than the file has bytes, and little time.
"""

import functools
import json
import time
import warnings

import numpy as np

import rnnfast
from fuzz import Invalid, assume, folder, memory_limit, require_command, run_command
from fuzz.files import MORE_MEMORY, SECONDS, changed_json, damage_bytes, edit, opened

KEYS = [
    "type", "shape", "weights", "activation", "in_shape", "layers", "in_skip", "out_gain", "architecture", "config",
    "input_size", "hidden_size", "num_layers", "out_channels", "state_dict", "model_data", "model", "skip", "dtype",
    "data_offsets", "__metadata__", "weight_ih_l0", "lstm.weight_ih_l1", "head.weight", "0.weight", "a.forward.weight",
]  # fmt: skip
VALUES = ["lstm", "gru", "dense", "conv1d", "softmax", "LSTM", "SimpleRNN", "F16", "BF16", [0, 4], [[1.0]], [[1.0, 2]]]


def rows(*shape):
    return np.linspace(-1, 1, int(np.prod(shape))).reshape(shape).tolist()


def kinds():
    """Valid models, as JSON values."""
    lstm, linear = rnnfast.LSTM(2, 3, 2, rng=0), rnnfast.Linear(3, 1, rng=1)
    named = {"lstm": lstm, "head": linear}
    arrays = {f"{name}.{k}": v.tolist() for name, layer in named.items() for k, v in layer.parameters.items()}
    gru = {"type": "gru", "activation": "", "shape": [None, 3], "weights": [rows(2, 9), rows(3, 9), rows(2, 9)]}
    dense = {"type": "dense", "activation": "tanh", "shape": [None, 1], "weights": [rows(3, 1), rows(1)]}
    config = {"input_size": 1, "hidden_size": 2, "num_layers": 2}
    data = {name.replace("lstm", "rec").replace("head", "lin"): value for name, value in arrays.items()}
    return {
        "arrays": arrays,
        "rtneural": {"in_shape": [None, 2], "layers": [gru, dense], "in_skip": 0},
        "nam": {"architecture": "LSTM", "config": config, "weights": rows(87), "sample_rate": 48000},
        "guitarml": {"model_data": {"model": "SimpleRNN", "skip": 1}, "state_dict": data},
    }


BASES = ["safetensors", "arrays", "rtneural", "nam", "guitarml"]


def generate(random):
    edits = [edit(random, ("json", "bytes")) for _ in range(random.choice([1, 1, 1, 2, 3]))]
    for e in edits:
        if "key" in e and random.random() < 0.7:
            e["key"], e["value"] = random.choice(KEYS), random.choice([e["value"], *VALUES])
    return {"base": random.choice(BASES), "edits": edits, "name": random.choice([None] * 6 + ["lstm", "head", "0", ""])}


@functools.cache
def original(base):
    if base != "safetensors":
        return json.dumps(kinds()[base]).encode()
    with folder() as path:
        rnnfast.save_arrays(path / "a", {name: np.array(value, "f4") for name, value in kinds()["arrays"].items()})
        return (path / "a").read_bytes()


def damaged(data, base, e):
    if e["kind"] == "bytes":
        return damage_bytes(data, e)
    length = int.from_bytes(data[:8], "little") if base == "safetensors" else 0
    begin = 8 if base == "safetensors" else 0
    text = data[begin : begin + length] if length else data
    changed = changed_json(json.loads(text), e, most=9).encode(errors="surrogatepass")
    return len(changed).to_bytes(8, "little") + changed + data[8 + length :] if begin else changed


def check(case):
    assume(case["base"] in BASES)
    data = original(case["base"])
    for e in case["edits"]:
        try:
            data = damaged(data, case["base"], e)
        except Invalid:
            raise
        except Exception:
            break  # it is damaged beyond what json can read already
    rnnfast.from_file  # noqa: B018  # importing it needs memory
    with folder() as path:
        file = path / "model"
        file.write_bytes(data)
        begin = time.process_time()
        with memory_limit(MORE_MEMORY + 30 * len(data)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = opened(lambda: rnnfast.from_file(file, case["name"]), file)
            name = ["--name", case["name"]] if case["name"] else []
            status, out, err = run_command("convert", file, path / "out", *name)
        took = time.process_time() - begin
        assert took < SECONDS, f"it took {took:.1f} s of processor time"
        require_command(status, out, err)
        assert not any(character in out + err for character in "\x1b\x07\x00")
        if case["name"] != "":
            assert (status == 0) == (layer is not None), (status, err)
        if layer is not None and status == 0:
            again = rnnfast.load(path / "out")
            assert repr(again) == repr(layer)
            first = layer[0] if isinstance(layer, rnnfast.Sequential) else layer
            width = getattr(first, "input_size", None) or getattr(first, "in_features", None)
            if width:
                layer(np.zeros((2, 1, width)))
