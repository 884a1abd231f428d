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
    with _opened(file, os.O_RDONLY) as descriptor:
        size = os.fstat(descriptor).st_size
        if most is not None and size > most:
            raise ValueError(f"{file}: expected at most {most:,} bytes, got {size:,}")
        with open(descriptor, "rb", closefd=False) as opened:
            return opened.read(size)


def write(file: Path, content: bytes) -> None:
    """All of it or nothing: under another name first, then renamed. Raises OSError, saying what to do."""
    part = file.parent / f"{uuid.uuid4().hex}.part"
    with _in_words(file):
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if os.path.lexists(file) and not file.is_symlink():
            with _opened(file, os.O_RDONLY):  # nor is a pipe or a device written over
                pass
        try:
            with _opened(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
                _write(descriptor, content)
                os.fsync(descriptor)
            os.replace(part, file)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        sync(file.parent)


def append(file: Path, content: bytes) -> None:
    """Bytes at the end of a plain file, which may be new. Raises ValueError where it is none; OSError."""
    with _in_words(file), _opened(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
        size = os.fstat(descriptor).st_size
        try:
            _write(descriptor, content)
        except BaseException:
            os.ftruncate(descriptor, size)  # all of it or nothing
            raise


def cut(file: Path, size: int) -> None:
    """Leave the first `size` bytes of a plain file, and none of it where that is 0."""
    with _in_words(file):
        if size == 0:
            file.unlink(missing_ok=True)
            return
        with _opened(file, os.O_WRONLY) as descriptor:
            os.ftruncate(descriptor, size)


def digest(file: Path, size: int) -> str:
    """The SHA-256 of the first `size` bytes of a plain file, which are on disk then; they may not all be there."""
    with _opened(file, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)
        hashed = hashlib.sha256()
        with open(descriptor, "rb", closefd=False) as opened:
            while size > 0 and (piece := opened.read(min(size, 2**20))):
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


@contextlib.contextmanager
def _opened(file: Path, flags: int) -> Iterator[int]:
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


def _write(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextlib.contextmanager
def _in_words(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{file}: expected to write it, got {error.strerror or error}; what was there stays; make room or choose "
            "another place"
        ) from None
