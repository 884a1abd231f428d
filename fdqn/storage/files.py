"""Read and write plain files of a run folder; writes are atomic and synced to disk.

A folder may come from elsewhere, so links are not followed, and opening a pipe does not block.
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
    """Read a plain file. Raises ValueError if it is not a plain file or has more than `most` bytes; OSError."""
    with opened(file, os.O_RDONLY) as descriptor:
        size = os.fstat(descriptor).st_size
        if most is not None and size > most:
            raise ValueError(f"{file}: expected at most {most:,} bytes, got {size:,}")
        with open(descriptor, "rb", closefd=False) as file_object:
            return file_object.read(size)


def write(file: Path, content: bytes) -> None:
    """Write a file atomically: under another name first, then renamed. Raises OSError with advice."""
    part = file.parent / f"{uuid.uuid4().hex}.part"
    with _os_errors(file):
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if os.path.lexists(file) and not file.is_symlink():
            with opened(file, os.O_RDONLY):  # do not overwrite a pipe or a device
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
    """Append bytes to a plain file, created if missing. Raises ValueError if it is not a plain file; OSError."""
    with _os_errors(file), opened(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
        size = os.fstat(descriptor).st_size
        try:
            write_all(descriptor, content)
        except BaseException:
            os.ftruncate(descriptor, size)  # undo a partial write
            raise


def cut(file: Path, size: int) -> None:
    """Truncate a plain file to its first `size` bytes; remove it if `size` is 0. Raises ValueError or OSError."""
    with _os_errors(file):
        if size == 0:
            file.unlink(missing_ok=True)
            return
        with opened(file, os.O_WRONLY) as descriptor:
            os.ftruncate(descriptor, size)


def digest(file: Path, size: int) -> str:
    """Sync a plain file and return the SHA-256 of its first `size` bytes, or of all if it is shorter."""
    with opened(file, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)
        hashed = hashlib.sha256()
        with open(descriptor, "rb", closefd=False) as file_object:
            while size > 0 and (piece := file_object.read(min(size, 2**20))):
                hashed.update(piece)
                size -= len(piece)
        return hashed.hexdigest()


def sync(folder: Path) -> None:
    """Sync the entries of a folder to disk. Does nothing except on POSIX."""
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
            raise OSError("a write of 0 bytes")
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
def _os_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{file}: expected to write it, got {error.strerror or error}; the old content is kept; free disk space "
            "or choose another folder"
        ) from None
