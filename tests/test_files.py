"""Storage of files: writes are atomic, and links and pipes are refused."""

import hashlib
import os

import pytest

from fdqn.storage import files

CALLS = {
    "read": files.read,
    "append": lambda file: files.append(file, b"more"),
    "cut": lambda file: files.cut(file, 3),
    "digest": lambda file: files.digest(file, 3),
    "opened": lambda file: files.opened(file, os.O_RDONLY).__enter__(),
}


def test_written_content_is_read(tmp_path):
    file = tmp_path / "file"
    files.write(file, b"before")
    files.write(file, b"after")
    files.append(file, b" all")
    assert files.read(file) == b"after all"
    assert files.digest(file, 5) == hashlib.sha256(b"after").hexdigest()
    files.cut(file, 5)
    assert files.read(file) == b"after"
    files.cut(file, 0)
    files.cut(file, 0)
    files.append(file, b"new")
    assert files.read(file) == b"new"
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    file = tmp_path / "file"
    files.write(file, b"before")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"file: .*, got No space left on device; the old content is kept"):
        files.write(file, b"after")
    assert [x.name for x in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"before"


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:2]))
    files.write(tmp_path / "file", b"all of it")
    assert files.read(tmp_path / "file") == b"all of it"


def test_write_all_writes_all_or_raises(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:3]))
    with files.opened(tmp_path / "file", os.O_WRONLY | os.O_CREAT) as descriptor:
        files.write_all(descriptor, b"all of it")
        monkeypatch.setattr(os, "write", lambda file, content: 0)
        with pytest.raises(OSError, match="a write of 0 bytes"):
            files.write_all(descriptor, b"more")
    assert (tmp_path / "file").read_bytes() == b"all of it"


def test_a_failed_append_is_undone(tmp_path, monkeypatch):
    file, write = tmp_path / "file", os.write
    files.write(file, b"before")

    def full(descriptor, content):
        write(descriptor, content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        files.append(file, b"after")
    assert file.read_bytes() == b"before"


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: expected a plain file, got something else"):
        files.write(tmp_path / "pipe", b"content")


def test_content_is_synced_before_the_rename(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, call=call: (order.append(name), call(*given)))
    files.write(tmp_path / "file", b"content")
    assert order == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("call", CALLS)
def test_links_are_refused(tmp_path, call):
    (tmp_path / "victim").write_bytes(b"a victim")
    (tmp_path / "link").symlink_to("victim")
    with pytest.raises(ValueError, match="link: expected a plain file, got a link"):
        CALLS[call](tmp_path / "link")
    assert (tmp_path / "victim").read_bytes() == b"a victim"


def test_write_replaces_a_link(tmp_path):
    (tmp_path / "victim").write_bytes(b"a victim")
    (tmp_path / "link").symlink_to("victim")
    files.write(tmp_path / "link", b"content")
    assert (tmp_path / "victim").read_bytes() == b"a victim"
    assert files.read(tmp_path / "link") == b"content"


@pytest.mark.parametrize("call", CALLS)
def test_reading_a_pipe_raises(tmp_path, call):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((ValueError, OSError)):
        CALLS[call](tmp_path / "pipe")


def test_files_above_the_size_limit_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert files.read(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="expected at most 4 bytes, got 5"):
        files.read(tmp_path / "file", 4)


def test_sync_of_a_folder(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    files.sync(tmp_path)
    assert len(synced) == 1
