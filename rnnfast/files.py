"""Files that are replaced as a whole, and files with arrays and a description.

The latter are ``.npz`` archives as `numpy.savez` writes them, with an additional member "rnnfast" that holds JSON. The
reader accepts that form only: members stored one after another, without compression, and a directory that agrees with
them. It therefore knows the shape and dtype of every array before it allocates memory, and never allocates more than
the file holds.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ._types import Array, Path

__all__ = ["Archive", "json_object", "opening", "reading", "replacing", "write"]

# --------------------------------------------------------------------------------------------------------------- write


_NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP)  # errors of file systems that do not sync folders


class replacing:
    """A context in which a file is written under a temporary name; it is renamed to `path` when it is complete on disk.

    It never has wider permissions than the file that it replaces. That file's mode, owner, group and access control
    list are kept, as far as the system permits it. After an error, the old file is unchanged and no
    partial file is left behind. The only exception is an error in syncing the folder, after the rename.

    Raises
    ------
    OSError
        If the file cannot be written, or `path` exists and is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.path.realpath(os.fsdecode(path))
        self._unfinished = os.path.join(os.path.dirname(self._path), f".rnnfast-{os.urandom(8).hex()}")
        self._file: BinaryIO | None = None
        self._old: os.stat_result | None = None

    def __enter__(self) -> BinaryIO:
        with contextlib.suppress(FileNotFoundError):
            self._old = os.stat(self._path)
        if self._old is not None and not stat.S_ISREG(self._old.st_mode):
            raise OSError(
                f"{self._path!r} is not a regular file: pass the path of a regular file, or of one that does not "
                "exist yet"
            )
        mode = 0o666 if self._old is None else 0o600  # the umask applies to new files
        try:
            self._file = open(self._unfinished, "xb", opener=lambda name, flags: os.open(name, flags, mode))
            if self._old is not None:
                _copy_permissions(self._path, self._old, self._file.fileno())
        except BaseException as error:
            self._discard(error)
            raise
        return self._file

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            if error is None:
                self._complete()
        except BaseException as fault:
            error = fault
            raise
        finally:
            if error is not None:
                self._discard(error)

    def __del__(self) -> None:  # a signal handler can raise after __enter__ and before __exit__
        if hasattr(self, "_old"):
            self._discard(None)

    def _complete(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._old is not None and not hasattr(os, "fchmod"):
            os.chmod(self._unfinished, stat.S_IMODE(self._old.st_mode))
        folder = _open_folder(os.path.dirname(self._path))
        try:
            os.replace(self._unfinished, self._path)  # nothing after it allocates memory
            if folder is not None:
                os.fsync(folder)
        except OSError as error:
            if folder is None or error.filename is not None or error.errno not in _NOT_SYNCED:
                raise
        finally:
            if folder is not None:
                os.close(folder)

    def _discard(self, error: BaseException | None) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._unfinished)
        if isinstance(error, OSError) and error.errno and error.filename in (None, self._unfinished):
            error.filename = self._path  # the name that the caller knows


def _open_folder(folder: str) -> int | None:
    """Return a descriptor with which a rename in a folder can be made to last, where folders can be opened."""
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:  # Windows, or a folder that can be written but not read
        return None


def _copy_permissions(path: str, old: os.stat_result, descriptor: int) -> None:
    """Give a new file of mode 0600 the permissions of an existing one, or narrower ones if that is not permitted."""
    mode = old.st_mode & 0o777
    new = os.fstat(descriptor)
    if hasattr(os, "fchown") and (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(descriptor, old.st_uid, old.st_gid)
        except OSError:  # only root can change the owner
            try:
                os.fchown(descriptor, -1, old.st_gid)
            except OSError:  # the members of both groups get what group and others have in common
                both = mode & (mode >> 3) & 0o7
                mode = mode & 0o700 | both << 3 | both
    if hasattr(os, "setxattr"):
        acl = "system.posix_acl_access"
        with contextlib.suppress(OSError):  # what the folder's default list has added
            os.removexattr(descriptor, acl)
        with contextlib.suppress(OSError):
            entries = os.getxattr(path, acl)
            try:
                os.setxattr(descriptor, acl, entries)
            except OSError:
                mode &= 0o707  # with a list, the bits of the group are the most that any entry grants
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, mode)


def write(path: Path, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a description and arrays; see `replacing`."""
    import json  # here, so that importing rnnfast stays fast

    text = json.dumps(about, allow_nan=False)
    with replacing(path) as file:
        try:
            np.savez(file, rnnfast=np.array(text), **arrays)  # type: ignore[arg-type]
        except ValueError as error:  # zipfile cannot close what another exception has interrupted
            if error.__context__ is not None:
                raise error.__context__ from None
            raise


# ---------------------------------------------------------------------------------------------------------------- read

_LOCAL = struct.Struct("<4s5H3I2H")  # signature, version, flags, method, time, date, crc, two sizes, two lengths
_ZIP64_FROM = 2**31  # from this size or offset on, zipfile writes 64-bit fields in the directory
# What numpy.lib.format writes for arrays of weights in C order (rnnfast.narrow has integers), and for strings.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|])((?<=\|)i1|(?<=[<>])(?:f4|f8|u2|U\d{1,18}))', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,18},|\d{1,18}(?:, \d{1,18}){1,3})?)\), \} *\n",
    re.DOTALL,
)
# What code raises that uses the content of a file.
_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_LONGEST = 2000  # characters of the content of a file in an error
SAFETENSORS, TORCH = "safetensors file", "file of torch.save"  # formats of other programs
REMEDY = "pass {} to rnnfast.from_state_dict, or to from_state_dict of a layer's class"


class _Member(NamedTuple):
    header: bytes  # the local header
    name: bytes
    offset: int  # of the local header
    begin: int  # of the content
    size: int


class _Entry(NamedTuple):
    """An array in the file."""

    order: str  # "<" or ">"
    kind: str  # "f4", "f8", or "U" and a length
    shape: tuple[int, ...]
    begin: int
    nbytes: int
    before: int  # checksum of the bytes before those of the array
    crc: int  # checksum of all


@contextlib.contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading.

    Errors in the context that come from the content of the file are raised as a ValueError with the path.

    Raises
    ------
    ValueError
        If the content of the file is invalid.
    OSError
        If the file cannot be read, is not a regular file, or does not fit into memory.
    """
    name = os.fsdecode(path)
    try:
        # Opening a pipe does not wait for its other end.
        with open(name, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", name)
            yield file
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), name) from error
    except _FAULTS as error:
        if isinstance(error, ValueError) and str(error).startswith(f"rnnfast cannot load {name!r}"):
            raise  # from another context with this file
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        if len(reason) > _LONGEST:
            reason = f"{reason[: _LONGEST // 2]} ... {reason[-_LONGEST // 2 :]}"
        raise ValueError(f"rnnfast cannot load {name!r}: {reason}") from error
    except (MemoryError, RuntimeError) as error:  # RuntimeError: a lock cannot be allocated
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), name) from error


@contextlib.contextmanager
def opening(path: Path) -> Iterator[Archive]:
    """Open a file that `write` wrote, and check its structure. No array is read yet.

    Raises
    ------
    ValueError, OSError
        As for `reading`.
    """
    with reading(path) as file:
        found = format_of(file)
        if found is not None:
            raise ValueError(
                f"it is a {found}, not a file that rnnfast saved: {REMEDY.format('rnnfast.load_arrays(path)')}"
            )
        yield Archive(file)


def format_of(file: BinaryIO) -> str | None:
    """Return the name of a format for arrays that `load_arrays` reads, if the file begins like one."""
    begin = file.read(200)
    file.seek(0)
    if begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= os.fstat(file.fileno()).st_size:
        return SAFETENSORS
    # The first member of torch's archives is <name>/data.pkl; older files begin with a pickled number.
    if begin.startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.") or (
        begin.startswith(b"PK\x03\x04") and b"/data.pkl" in begin
    ):
        return TORCH
    return None


def other_format(file: BinaryIO) -> str:
    """Return the name of the format of a file that is not in the one that the caller reads."""
    file.seek(0)
    known = format_of(file)
    if known is not None:
        return f"a {known}"
    begin = file.read(200)
    file.seek(max(os.fstat(file.fileno()).st_size - 8, 0))
    if file.read() == b"W\xfb\x80\x8b$uG\xdb":
        return "the index of a TensorFlow checkpoint"
    if begin[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    if begin.startswith(b"PK\x03\x04") and b"/data/" in begin:
        return "a TorchScript program"
    beginnings = {
        b"\x89HDF\r\n\x1a\n": "a damaged HDF5 file",
        b"PK\x03\x04": "a zip archive, such as .npz",
        b"\x93NUMPY": "an .npy file",
        b"\x80": "a pickle",
    }
    return next((name for start, name in beginnings.items() if begin.startswith(start)), "in an unknown format")


class Archive:
    """An open file: its description, and the shapes of its arrays, which are read one by one.

    Attributes
    ----------
    about : dict
        The description.
    shapes : dict of str to tuple of int
        The shapes of the arrays that have not been read yet.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._entries: dict[str, _Entry] = {}
        for member in self._members():
            name = member.name.decode("ascii").removesuffix(".npy")
            if f"{name}.npy".encode() != member.name:
                raise ValueError(f"its member {member.name!r} is not an array")
            if name in self._entries:
                raise ValueError(f"it has two arrays {name!r}")
            self._entries[name] = self._entry(name, member)
        self.about = self._description()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Read an array, which must have this shape and dtype. Each array can be read once."""
        dtype = np.dtype(dtype)
        entry = self._entries.get(name)
        if entry is None:
            raise ValueError(f"it has no array {name!r} of shape {shape}")
        if (entry.shape, entry.kind) != (shape, dtype.str[1:]):
            raise ValueError(
                f"its array {name!r} must have shape {shape} and dtype {dtype}, but has shape {entry.shape} and dtype "
                f"{np.dtype(entry.order + entry.kind)}"
            )
        array = np.empty(shape, dtype.newbyteorder(entry.order))
        self._read(name, array.reshape(-1).view(np.uint8).data)
        return array.astype(dtype, copy=False)

    def finish(self) -> None:
        """Require that all arrays have been read."""
        if self._entries:
            some = ", ".join(map(repr, list(self._entries)[:5]))
            raise ValueError(f"it has {len(self._entries)} additional arrays: {some}")

    def _read(self, name: str, content: memoryview) -> None:
        """Read the bytes of an array, and remove it from the entries."""
        import zlib

        entry = self._entries.pop(name)
        self._file.seek(entry.begin)
        count = self._file.readinto(content)  # type: ignore[attr-defined]
        if count != entry.nbytes or zlib.crc32(content, entry.before) != entry.crc:
            raise ValueError(f"its array {name!r} is damaged: its checksum is wrong")

    def _description(self) -> dict[str, Any]:
        entry = self._entries.get("rnnfast")
        if entry is None:
            raise ValueError(f"it has no description by rnnfast, only arrays: {REMEDY.format('numpy.load(path)')}")
        if entry.kind[0] != "U" or entry.shape:
            raise ValueError("it has no description by rnnfast")
        content = np.empty(entry.nbytes, np.uint8)
        self._read("rnnfast", content.data)
        return json_object(str(content.data, "utf-32-le" if entry.order == "<" else "utf-32-be"))

    def _bytes(self, begin: int, count: int) -> bytes:
        self._file.seek(begin)
        content = self._file.read(count)
        if len(content) != count:
            raise ValueError("it is damaged, or not a file that rnnfast saved")
        return content

    def _members(self) -> list[_Member]:
        """Return the members of the archive, which must be stored as they are and listed in the directory."""
        members = []
        offset = 0
        while self._bytes(offset, 4) == b"PK\x03\x04":
            header = self._bytes(offset, _LOCAL.size)
            _, _, flags, method, _, _, _, packed, size, length, extra = _LOCAL.unpack(header)
            begin = offset + _LOCAL.size + length
            name = self._bytes(begin - length, length)
            if extra:
                tag, count, *sizes = struct.unpack("<2H2Q", self._bytes(begin, 20))
                if (extra, tag, count) != (20, 1, 16):
                    raise ValueError(f"its member {name!r} has fields that numpy.savez does not write")
                size, packed = (sizes[i] if value == 2**32 - 1 else value for i, value in enumerate((size, packed)))
            if flags or method or size != packed:
                raise ValueError(
                    f"its member {name!r} is compressed or encrypted, but rnnfast stores arrays as they are: if "
                    f"numpy.load reads the file, {REMEDY.format('numpy.load(path)')}"
                )
            members.append(_Member(header, name, offset, begin + extra, size))
            offset = begin + extra + size
        self._check_directory(members, offset)
        return members

    def _check_directory(self, members: list[_Member], begin: int) -> None:
        """Require that the rest of the file, from `begin` on, is the directory that zipfile writes for the members."""
        fault = "it is damaged: its directory does not list the members that it has"
        at = begin
        for header, name, offset, _, size in members:
            large = [*[size] * 2 * (size >= _ZIP64_FROM), *[offset] * (offset >= _ZIP64_FROM)]
            extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
            short_size, short_offset = (2**32 - 1 if value >= _ZIP64_FROM else value for value in (size, offset))
            fields = struct.pack("<2I4H", short_size, short_size, len(name), len(extra), 0, 0)
            entry = self._bytes(at, 46 + len(name) + len(extra))
            # Versions and attributes depend on the system.
            expected = b"PK\x01\x02", header[6:18] + fields, struct.pack("<I", short_offset) + name + extra
            if (entry[:4], entry[8:36], entry[42:]) != expected:
                raise ValueError(fault)
            at += len(entry)
        count, size, end = len(members), at - begin, b""
        if count > 0xFFFF or max(size, begin) >= _ZIP64_FROM:
            end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, begin)
            end += struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
        count, size, begin = min(count, 0xFFFF), min(size, 2**32 - 1), min(begin, 2**32 - 1)
        end += struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, size, begin, 0)
        if self._bytes(at, len(end)) != end or self._file.read(1):
            raise ValueError(fault)

    def _entry(self, name: str, member: _Member) -> _Entry:
        """Read the header of an array."""
        import zlib

        length = int.from_bytes(self._bytes(member.begin, 10)[8:], "little")
        header = self._bytes(member.begin, 10 + length)
        match = _NPY.fullmatch(header)
        if match is None:
            raise ValueError(
                f"its member {name!r} is not an array of numbers that rnnfast saves, in C order, or a string: if "
                f"numpy.load reads the file, {REMEDY.format('numpy.load(path)')}"
            )
        order, kind, dimensions = (part.decode() for part in match.groups())
        shape = tuple(int(size) for size in dimensions.split(",") if size)
        nbytes = math.prod(shape) * (4 * int(kind[1:]) if kind[0] == "U" else int(kind[1:]))
        if len(header) + nbytes != member.size:
            raise ValueError(
                f"its array {name!r} has shape {shape} and dtype {kind}, which take {nbytes} bytes, but the file holds "
                f"{member.size - len(header)}"
            )
        crc = _LOCAL.unpack(member.header)[6]
        return _Entry(order, kind, shape, member.begin + len(header), nbytes, zlib.crc32(header), crc)


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object that describes a file. Names in an object must differ."""
    import json

    about = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    if not isinstance(about, dict):
        raise ValueError("its description is not a JSON object")
    return about


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, whose names must differ."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("its description has a name twice in one object")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"its description has the value {name}, which is not JSON")
