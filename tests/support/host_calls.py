"""The record of a call that hosts store (csrc/host_call.h), with fields that the kernels cannot run."""

import numpy as np

_ACTIVATION = np.dtype([("function", "i4"), ("alpha", "f8"), ("beta", "f8")], align=True)
_STACK = [
    ("cell", "i4"),
    ("weights", "i4"),
    ("directions", "i4"),
    ("reverse", "i4"),
    *((name, "i8") for name in ("layers", "I", "H", "P")),
]
_STACK += [("activations", _ACTIVATION, (2, 3)), ("clip", "f8"), ("peepholes", "i4"), ("coupled", "i4")]
_STACK += [("zoneout_h", "f8"), ("zoneout_c", "f8")]
RECORD = np.dtype(
    [
        ("abi", "i4"),
        ("isa", "S16"),
        *((name, "i4") for name in ("item", "kinds", "time_first", "has_h0", "has_c0")),
        ("stack", np.dtype(_STACK, align=True)),
    ],
    align=True,
)
_FLAGS = "reverse", "peepholes", "coupled", "time_first", "has_h0", "has_c0"
HUGE = 2**62
# Each makes the call of a plain LSTM or generic GRU invalid.
INVALID = [
    *(("cell", value) for value in (-1, 99)),
    *(("directions", value) for value in (-1, 0, 3, 0x3102)),
    *((flag, value) for flag in _FLAGS for value in (-1, 2)),
    *((size, value) for size in ("layers", "I", "H", "P") for value in (-HUGE, -1, 0, HUGE)),
    ("P", 7),
    *(("weights", value) for value in (-1, 99)),
    *(("function", value) for value in (-1, 99)),
    *(("clip", value) for value in (-1.0, np.inf, np.nan)),
    *((rate, value) for rate in ("zoneout_h", "zoneout_c") for value in (0.5, -1.0, np.nan)),
    *(("kinds", value) for value in (-1, 0, 1, 7, 31, 47, 79)),
    *(("item", value) for value in (-4, 0, 5)),
]


def changed(call, field, value):
    """The bytes of a call with another value of a field."""
    record = np.frombuffer(call, RECORD).copy()
    if field == "function":
        record["stack"]["activations"][0, 1, 2]["function"] = value
    else:
        (record if field in RECORD.names else record["stack"])[field] = value
    return record.tobytes()
