"""Model files built byte by byte, so that every part of them can be wrong."""

import json
import struct
import zlib

import numpy as np

LOCAL = {"signature": b"PK\x03\x04", "version": 45, "flags": 0, "method": 0, "time": 0, "date": 33}
CENTRAL = {"signature": b"PK\x01\x02", "made": 0x32D, **{name: LOCAL[name] for name in list(LOCAL)[1:]}}
END = {"signature": b"PK\x05\x06", "disk": 0, "directory_disk": 0}
REST = {"comment_length": 0, "disk": 0, "internal": 0, "external": 0o600 << 16}


def contents(path):
    """Return the description and the arrays of a file that rnnfast wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    return json.loads(arrays.pop("rnnfast").item()), arrays


def npy(descr="<f4", shape=(), content=b"", fortran=False, version=(1, 0), header=None):
    """Return an array in NumPy's format."""
    if header is None:
        header = repr({"descr": descr, "fortran_order": fortran, "shape": shape})[:-1] + ", }"
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text + content


def of_array(array):
    return npy(array.dtype.str, array.shape, array.tobytes())


def of_text(text):
    return npy(f"<U{len(text)}", (), text.encode("utf-32-le", "surrogatepass"))


class Member:
    """A member of an archive. `local` and `central` replace fields of its two headers."""

    def __init__(self, name, content, local=None, central=None, zip64=True):
        self.name, self.content, self.zip64 = name.encode(), content, zip64
        self.local, self.central = local or {}, central or {}


def archive(members, prefix=b"", between=b"", comment=b"", end=None, order=None):
    """Return the bytes of an archive, in the form of numpy.savez if nothing else is asked for."""
    whole, directory = prefix, []
    for member in members:
        size = len(member.content)
        fields = {"crc": zlib.crc32(member.content), "packed": size, "size": size}
        fields |= {"name_length": len(member.name), "extra_length": 0}
        extra = struct.pack("<2H2Q", 1, 16, size, size) if member.zip64 else b""
        long = {"packed": 2**32 - 1, "size": 2**32 - 1} if member.zip64 is True else {}
        local = {**LOCAL, **fields, **long, "extra_length": len(extra), "name": member.name, "extra": extra}
        local |= member.local
        central = {
            **CENTRAL,
            **fields,
            **REST,
            "offset": len(whole),
            "name": member.name,
            "extra": b"",
        } | member.central
        whole += b"".join([struct.pack("<4s5H3I2H", *list(local.values())[:11]), local["name"], local["extra"]])
        whole += member.content
        fixed = [central.pop(name) for name in ("name", "extra")]
        directory.append(struct.pack("<4s6H3I5H2I", *central.values()) + b"".join(fixed))
    whole += between
    listed = b"".join(directory if order is None else [directory[i] for i in order])
    count = len(members if order is None else order)
    closing = {
        **END,
        "here": count & 0xFFFF,
        "count": count & 0xFFFF,
        "size": len(listed),
        "offset": len(whole),
        "comment": len(comment),
    }
    return whole + listed + struct.pack("<4s4H2IH", *(closing | (end or {})).values()) + comment
