"""Files of a run folder: plain ones, written whole or not at all, and on disk then.

A folder may come from anywhere, so nothing is read or written through a link, and no pipe is waited for.
"""

import contextlib
import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path


def read(file: Path, most: int | None = None) -> bytes:
    """Everything in a plain file. Raises ValueError where it is none or has more than `most` bytes, and OSError."""
    with opened(file, os.O_RDONLY) as descriptor:
        size = os.fstat(descriptor).st_size
        if most is not None and size > most:
            raise ValueError(f"{file}: expected at most {most:,} bytes, got {size:,}")
        with open(descriptor, "rb", closefd=False) as file_object:
            return file_object.read(size)


def write(file: Path, content: bytes) -> None:
    """All of it or nothing: under another name first, then renamed. Raises OSError, saying what to do."""
    part = file.parent / f"{uuid.uuid4().hex}.part"
    with _in_words(file):
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if os.path.lexists(file) and not file.is_symlink():
            with opened(file, os.O_RDONLY):  # nor is a pipe or a device written over
                pass
        try:
            with opened(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
                write_all(descriptor, content)
                os.fsync(descriptor)
            os.replace(part, file)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        sync(file.parent)


def append(file: Path, content: bytes) -> None:
    """Bytes at the end of a plain file, which may be new. Raises ValueError where it is none; OSError."""
    with _in_words(file), opened(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
        size = os.fstat(descriptor).st_size
        try:
            write_all(descriptor, content)
        except BaseException:
            os.ftruncate(descriptor, size)  # all of it or nothing
            raise


def cut(file: Path, size: int) -> None:
    """Leave the first `size` bytes of a plain file, and none of it where that is 0."""
    with _in_words(file):
        if size == 0:
            file.unlink(missing_ok=True)
            return
        with opened(file, os.O_WRONLY) as descriptor:
            os.ftruncate(descriptor, size)


def digest(file: Path, size: int) -> str:
    """The SHA-256 of the first `size` bytes of a plain file, which are on disk then; they may not all be there."""
    with opened(file, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)
        hashed = hashlib.sha256()
        with open(descriptor, "rb", closefd=False) as file_object:
            while size > 0 and (piece := file_object.read(min(size, 2**20))):
                hashed.update(piece)
                size -= len(piece)
        return hashed.hexdigest()


def sync(folder: Path) -> None:
    """Until the names in a folder are on disk; only POSIX opens folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write all of `content`, in several system calls if one takes only a part. Raises OSError."""
    rest = memoryview(content)
    while rest:
        written = os.write(descriptor, rest)
        if not written:
            raise OSError("a write of nothing")
        rest = rest[written:]


@contextlib.contextmanager
def opened(file: Path, flags: int) -> Iterator[int]:
    """Open a plain file with `flags` of `os.open` and yield its descriptor, which is closed at the end.

    Raises ValueError for a link, a pipe or anything else that is not a plain file; OSError.
    """
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if file.is_symlink():
        raise ValueError(f"{file}: expected a plain file, got a link")
    descriptor = os.open(file, flags, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"{file}: expected a plain file, got something else")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _in_words(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{file}: expected to write it, got {error.strerror or error}; what was there stays; make room or choose "
            "another place"
        ) from None
