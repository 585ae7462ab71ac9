"""Writing a file in place of another: who can read it meanwhile, what is kept, and what a failure or a crash leaves."""

import errno
import os
import stat
import struct

import numpy as np
import pytest
from support.command_line import failure, random_model

import rnnfast
from rnnfast import files
from rnnfast.commands import program

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")


def write_text(path):
    with program.writing(str(path)) as file:
        file.write("text")


WRITERS = {
    "layer": lambda path: rnnfast.Linear(2, 3).save(path),
    "model": lambda path: random_model().save(str(path)),
    "text": write_text,
    "bytes": lambda path: program.save_figure(Figure(), path),
}


class Figure:
    """A figure of matplotlib, as far as it is saved."""

    class canvas:
        get_default_filetype = staticmethod(lambda: "png")

    def savefig(self, file, **_):
        file.write(b"picture")


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


@pytest.fixture
def watched(monkeypatch):
    """The events of a write: every mode that a file had, and every rename and sync, in order."""
    events = []

    def watch(name, note):
        real = getattr(os, name)

        def spy(*arguments, **options):
            result = real(*arguments, **options)
            events.append((name, note(result, *arguments)))
            return result

        monkeypatch.setattr(os, name, spy)

    watch("open", lambda descriptor, *_: os.stat(descriptor).st_mode)
    watch("replace", lambda *_: 0)
    for name in ("fchmod", "fchown", "fsync"):
        watch(name, lambda _, file, *__: os.stat(file).st_mode)
    return events


MODES = [0o600, 0o640, 0o644, 0o444, 0o400, 0o604, 0o660, 0o666]


@pytest.mark.parametrize("mode", MODES, ids=oct)
def test_the_new_file_is_never_more_open_than_the_old_one(mode, write, watched, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"secret")
    path.chmod(mode)
    watched.clear()
    before = os.umask(0)  # which forbids nothing
    try:
        write(path)
    finally:
        os.umask(before)
    assert path.read_bytes() != b"secret"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    modes = [stat.S_IMODE(seen) for _, seen in watched if stat.S_ISREG(seen)]
    assert modes
    assert all(seen & ~(mode | 0o600) == 0 for seen in modes)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0])
def test_a_new_file_has_the_mode_that_the_umask_allows_from_the_beginning(mask, write, watched, tmp_path):
    before = os.umask(mask)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask
    assert {stat.S_IMODE(seen) for _, seen in watched if stat.S_ISREG(seen)} == {0o666 & ~mask}


def test_the_file_is_synced_before_it_is_renamed_and_the_folder_afterwards(write, watched, tmp_path):
    write(tmp_path / "file")
    events = [(name, stat.S_IFMT(seen)) for name, seen in watched if name in ("fsync", "replace")]
    assert events == [("fsync", stat.S_IFREG), ("replace", 0), ("fsync", stat.S_IFDIR)]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO])
def test_folders_that_cannot_be_synced(error, tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(error, os.strerror(error))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    layer, path = rnnfast.Linear(2, 3), tmp_path / "file"
    if error == errno.EINVAL:  # the file system does not sync folders
        layer.save(path)
    else:
        with pytest.raises(OSError, match="Input/output error"):
            layer.save(path)
    assert repr(rnnfast.load(path)) == repr(layer)


def test_a_failure_leaves_the_old_file_and_nothing_else(write, tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in ("fsync", "replace", "fchmod"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises((OSError, program.CannotRun), match="No space left on device") as error:
                write(path)
        assert str(path) in str(error.value)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["file"]


def test_outputs_go_through_links_and_to_devices(write, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "target")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "folder") == ["target"]
    write_text("/dev/null")
    with pytest.raises(OSError, match="is not a regular file"):
        rnnfast.Linear(2, 3).save("/dev/null")


# ---- owners, groups and access control lists

ROOT = pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root gives files away")


def old_file(folder, owner, group, mode):
    """Return the path of a file that another user or group owns."""
    path = folder / "file"
    path.write_bytes(b"old")
    os.chown(path, owner, group)
    path.chmod(mode)
    return path


@ROOT
def test_owner_and_group_are_kept(write, tmp_path):
    path = old_file(tmp_path, 1234, 5678, 0o640)
    write(path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 5678, 0o640)


@ROOT
@pytest.mark.parametrize(("mode", "expected"), [(0o640, 0o600), (0o664, 0o644), (0o604, 0o600), (0o666, 0o666)])
def test_without_its_group_a_file_grants_what_group_and_others_have_in_common(mode, expected, tmp_path, monkeypatch):
    path = old_file(tmp_path, -1, 5678, mode)

    def fchown(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", fchown)
    rnnfast.Linear(2, 3).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == expected


@ROOT
def test_the_group_is_kept_if_the_owner_cannot_be(tmp_path, monkeypatch):
    path = old_file(tmp_path, 1234, 5678, 0o640)
    real = os.fchown

    def fchown(descriptor, owner, group):
        if owner != -1:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(descriptor, owner, group)

    monkeypatch.setattr(os, "fchown", fchown)
    rnnfast.Linear(2, 3).save(path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (os.geteuid(), 5678, 0o640)


ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def access_list(user, group, mask):
    """An access control list: the owner reads and writes, user 1234 has `user`, and others have nothing."""
    none = 0xFFFFFFFF
    entries = [(1, 6, none), (2, user, 1234), (4, group, none), (16, mask, none), (32, 0, none)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<2HI", *entry) for entry in entries)


@pytest.fixture
def listed(tmp_path):
    """A file that one more user can read, but not its group."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, ACCESS, access_list(user=4, group=0, mask=4))
    except (AttributeError, OSError):
        pytest.skip("this file system has no access control lists")
    return path


def test_access_control_lists_are_kept(listed, write):
    before = os.getxattr(listed, ACCESS)
    write(listed)
    assert os.getxattr(listed, ACCESS) == before


def test_without_its_list_a_file_grants_its_group_nothing(listed, monkeypatch):
    def setxattr(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", setxattr)
    rnnfast.Linear(2, 3).save(listed)
    assert ACCESS not in os.listxattr(listed)
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600


@pytest.mark.usefixtures("listed")
def test_the_folder_adds_no_list_to_a_file_without_one(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    os.setxattr(folder, DEFAULT, access_list(user=6, group=6, mask=6))
    rnnfast.Linear(2, 3).save(path)
    assert ACCESS not in os.listxattr(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# ---- what interrupts zipfile


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_the_error_that_stops_a_save_is_raised(error, tmp_path, monkeypatch):
    """Not that of zipfile, which cannot close an archive while a member of it is open."""

    def write_array(*_, **__):
        raise error

    monkeypatch.setattr(np.lib.format, "write_array", write_array)
    with pytest.raises(type(error)):
        rnnfast.Linear(2, 3).save(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_messages_of_outputs_that_are_no_files(tmp_path, capsys):
    path = tmp_path / "text"
    path.write_text("a text\n" * 99)
    os.mkfifo(tmp_path / "pipe")
    assert "it is not a regular file" in failure(capsys, "train", "text", path, "-o", tmp_path / "pipe")
    with pytest.raises(OSError, match="is not a regular file"), files.replacing(tmp_path / "pipe"):
        pass
