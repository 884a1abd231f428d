"""Checkpoints: save a tree of tensors and a JSON record atomically, and load them without executing code.

    folder/STEP/state.safetensors    the leaves, named by their paths
    folder/STEP/manifest.json        format, record, versions, the leaves' shapes and dtypes; size and SHA-256 of the
                                     state, and at its end the SHA-256 of everything before it

A checkpoint is written under a temporary name, synced to disk and then renamed. Files are not trusted: the tree to load
into determines the expected content, including the bytes of the header, so no size, offset or name from a file is used.
"""

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import struct
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import fdqn
from fdqn import tree
from fdqn.storage import files

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

State = TypeVar("State")

FORMAT = 2
MANIFEST, STATE = "manifest.json", "state.safetensors"

# A manifest has some kilobytes. JSON of at most 1 MiB parses to at most 32 MB, in a tenth of a second.
MANIFEST_BYTES = 2**20

# Names of dtypes in the safetensors format.
DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip

# Names of finished checkpoints (`.old`: being replaced by one of the same step) and of unfinished ones.
FINISHED = re.compile(r"(0|[1-9][0-9]{0,17})(\.old)?")
UNFINISHED = re.compile(r"\.[0-9]+(\.old)?\.part")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, is damaged or does not fit, or another process writes in the folder."""


def save(folder: Path, name: str, state: Any, record: dict[str, Any]) -> Path:
    """Write a tree of tensors and a JSON-serializable record to `folder/name`, and sync them to disk.

    `name` is a number of steps. An existing checkpoint of that name is replaced, and is removed only after the new one
    is complete. At most one tensor at a time is copied in memory. Raises CheckpointError if writing fails; existing
    checkpoints stay unchanged.
    """
    final, part, replaced = folder / name, folder / f".{name}.part", folder / f"{name}.old"
    if not FINISHED.fullmatch(name) or name.endswith(".old"):
        raise CheckpointError(f"name: expected a number of steps, such as '2000', got {name!r}")
    leaves = _leaves(state)
    with _os_errors(
        f"{final}: expected to write a checkpoint",
        "earlier ones are unchanged; free disk space or choose another folder",
    ):
        os.makedirs(folder, exist_ok=True)
        with _held(folder / ".saving"):
            _remove_leftovers(folder)
            try:
                os.mkdir(part)
                written = _write(part / STATE, [_header(leaves), *leaves.values()])
                _write(part / MANIFEST, [_manifest_of(leaves, record, written)])
                files.sync(part)
                if os.path.lexists(final):
                    os.rename(final, replaced)
                os.rename(part, final)
                files.sync(folder)
                files.sync(folder.parent)  # the folder may be new
            finally:
                shutil.rmtree(part, ignore_errors=True)
            _remove_leftovers(folder)  # the replaced checkpoint
    return final


@torch.no_grad()
def load(path: Path, like: State) -> tuple[State, dict[str, Any]]:
    """Copy the leaves of a checkpoint in place into those of `like`, and return `like` and the record.

    Everything is verified before anything is copied. Raises CheckpointError if files were changed, or if paths, shapes
    or dtypes of the leaves differ from those of `like`.
    """
    with _verified(path, like) as (file, leaves, record):
        buffer = torch.empty(max((x.nbytes for x in leaves.values()), default=0), dtype=torch.uint8)
        for leaf in leaves.values():
            leaf.copy_(_next(path, file, leaf, buffer))
    return like, record


def load_part(path: Path, like: Any, part: State) -> State:
    """Read `part`, a tree of some leaves of `like`, and return it as new tensors. `like` may have fake tensors.

    Everything is verified, and the same errors are raised, as in `load`.
    """
    chosen, read = {id(leaf) for leaf in tree.leaves(part)}, dict[int, Tensor]()
    with _verified(path, like) as (file, leaves, _):
        for leaf in leaves.values():
            if id(leaf) in chosen:
                read[id(leaf)] = _next(path, file, leaf, torch.empty(leaf.nbytes, dtype=torch.uint8))
            else:
                file.seek(leaf.nbytes, os.SEEK_CUR)
    return tree.map(lambda leaf: read[id(leaf)], part)


def record(path: Path) -> dict[str, Any]:
    """Return the record of a checkpoint, without its tensors. Raises CheckpointError if the manifest is damaged."""
    return _manifest(path)["record"]


def newest(folder: Path) -> list[Path]:
    """Return the paths of the finished checkpoints of a folder, newest first; empty if there is no folder.

    Raises CheckpointError if the folder cannot be read.
    """
    with _os_errors(f"{folder}: expected a folder of checkpoints", "make it readable"):
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return []
        names = [x.name for x in entries if FINISHED.fullmatch(x.name) and x.is_dir(follow_symlinks=False)]
    names.sort(key=lambda name: (int(_step(name)), name == _step(name)), reverse=True)
    return [folder / name for name in names]


def prune(folder: Path, keep: int, also: Collection[str] = ()) -> None:
    """Remove all checkpoints except the newest `keep` and those named in `also`. A partly removed one is never visible.

    Raises CheckpointError if one cannot be removed, ValueError for a `keep` below 1.
    """
    if keep < 1:
        raise ValueError(f"keep: expected at least 1, got {keep}")
    with _os_errors(f"{folder}: expected to remove old checkpoints", "make it writable"), _held(folder / ".saving"):
        _remove_leftovers(folder)
        for path in newest(folder)[keep:]:
            if _step(path.name) not in also:
                _remove(path)


def mark_damaged(path: Path) -> None:
    """Rename a finished checkpoint to `STEP.damaged`, where it is ignored but can be inspected.

    Raises CheckpointError if it cannot be renamed.
    """
    aside = path.with_name(f"{_step(path.name)}.damaged")
    with (
        _os_errors(f"{path}: expected to rename it", "make its folder writable"),
        _held(path.parent / ".saving"),
    ):
        if os.path.lexists(aside):
            shutil.rmtree(aside)
        os.rename(path, aside)
        files.sync(path.parent)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock a run folder against other writers. The lock is released when the process ends.

    Has no effect on systems without `fcntl`. Raises CheckpointError if another process holds the lock.
    """
    with _held(folder / ".lock"):
        yield


@contextlib.contextmanager
def _verified(path: Path, like: Any) -> Iterator[tuple[io.BufferedReader, dict[str, Tensor], dict[str, Any]]]:
    """Verify a checkpoint; yield its file at the first leaf, the leaves of `like` in file order, and the record."""
    leaves, manifest = _leaves(like), _manifest(path)
    _check_fit(path / MANIFEST, _layout(leaves), manifest["tree"])
    header = _header(leaves)
    with _opened(path / STATE) as file:
        size = os.fstat(file.fileno()).st_size
        if size != len(header) + tree.nbytes(like):
            raise _refusal(path / STATE, f"{len(header) + tree.nbytes(like)} bytes", f"{size}")
        if file.read(len(header)) != header:
            raise _refusal(path / STATE, "the header of the manifest", "another")
        file.seek(0)
        if manifest["files"] != {STATE: {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}}:
            raise _refusal(path / STATE, "the SHA-256 of its manifest", "another")
        file.seek(len(header))
        yield file, leaves, manifest["record"]


def _next(path: Path, file: io.BufferedReader, leaf: Tensor, buffer: Tensor) -> Tensor:
    """Read the next leaf of the file into `buffer`."""
    read = buffer[: leaf.nbytes]
    if file.readinto(_memory(read)) != leaf.nbytes:
        raise _refusal(path / STATE, "a file that does not change", "one that became shorter")
    return read.view(leaf.dtype).view(leaf.shape)


def _leaves(state: Any) -> dict[str, Tensor]:
    """Return the leaves by path in the order of the file: wide dtypes first, so that each is aligned."""
    leaves = dict(zip(tree.paths(state), tree.leaves(state), strict=True))
    for path, leaf in leaves.items():
        dtype = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
        if dtype not in DTYPES:
            raise CheckpointError(f"state{path}: expected a tensor of a dtype among {[*DTYPES.values()]}, got {dtype}")
    return dict(sorted(leaves.items(), key=lambda item: -item[1].element_size()))


def _layout(leaves: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {path: {"dtype": DTYPES[x.dtype], "shape": list(x.shape)} for path, x in leaves.items()}


def _header(leaves: dict[str, Tensor]) -> bytes:
    """Return the header of a safetensors file: its length, then dtype, shape and offsets of each tensor as JSON."""
    entries, end = _layout(leaves), 0
    for path, leaf in leaves.items():
        begin, end = end, end + leaf.nbytes
        entries[path]["data_offsets"] = [begin, end]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _memory(x: Tensor) -> memoryview:
    """Return the bytes of a tensor; of a copy unless it is contiguous and on the CPU."""
    here = x.contiguous().cpu()
    # A tensor with an axis of size 1 is contiguous for any stride of that axis, but `view(dtype)` requires stride 1.
    return here.as_strided((here.numel(),), (1,)).view(torch.uint8).numpy().data


def _manifest_of(leaves: dict[str, Tensor], record: dict[str, Any], state: dict[str, Any]) -> bytes:
    content = {
        "format": FORMAT,
        "versions": {"fdqn": fdqn.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "record": record,
        "files": {STATE: state},
        "tree": _layout(leaves),
    }
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"record: expected JSON values, got others: {error}") from None
    manifest = _sealed(text.removesuffix("\n}").encode())
    if not isinstance(record, dict) or len(manifest) > MANIFEST_BYTES:
        raise CheckpointError(f"record: expected a dict of at most {MANIFEST_BYTES} bytes, got {len(manifest)}")
    return manifest


def _sealed(text: bytes) -> bytes:
    """Close JSON text with its own SHA-256 as the last entry. Later formats must keep this."""
    return text + b',\n "sha256": "%b"\n}\n' % hashlib.sha256(text).hexdigest().encode()


def _manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and check its SHA-256, format and the types of its entries, but not yet their values."""
    with _opened(path / MANIFEST) as file:
        raw = file.read(MANIFEST_BYTES + 1)
    if raw != _sealed(raw[: -len(_sealed(b""))]) or len(raw) > MANIFEST_BYTES:
        raise _refusal(path / MANIFEST, "a manifest that ends in its own SHA-256", f"{len(raw)} bytes that do not")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise _refusal(path / MANIFEST, "JSON", "something else") from None
    version = content.get("format") if isinstance(content, dict) else None
    if type(version) is int and version > FORMAT:
        newer = str(version)[:20]
        raise CheckpointError(f"{path / MANIFEST}: expected format {FORMAT}, got a newer one, {newer}; update fdqn")
    if type(version) is int and 0 < version < FORMAT:
        raise CheckpointError(
            f"{path / MANIFEST}: expected format {FORMAT}, got {version}, of an earlier version of fdqn; finish the "
            "run with that version, or train again"
        )
    if version != FORMAT or not all(isinstance(content.get(name), dict) for name in ("record", "files", "tree")):
        raise _refusal(path / MANIFEST, f"format {FORMAT} with record, files and tree", "other entries")
    return content


def _check_fit(file: Path, expected: dict[str, Any], got: dict[str, Any]) -> None:
    """Raise CheckpointError, naming missing, extra and differing paths, unless the two layouts are equal."""
    differing = [
        f"{path} {got[path]} in place of {expected[path]}"
        for path in expected
        if path in got and got[path] != expected[path]
    ]
    missing, extra = ([path for path in a if path not in b] for a, b in ((expected, got), (got, expected)))
    if missing or extra or differing:
        raise CheckpointError(
            f"{file}: expected the leaves of the state that it is loaded into, got others: missing {_some(missing)}; "
            f"extra {_some(extra)}; differing {_some(differing)}; load it with the settings it was saved with"
        )


def _some(things: list[str]) -> str:
    """Join the first few names; replace control characters, which a file from elsewhere may contain."""
    shown = ("".join(c if c.isprintable() else "?" for c in thing[:200]) for thing in things[:4])
    more = f" and {len(things) - 4} more" if len(things) > 4 else ""
    return ", ".join(shown) + more or "nothing"


def _write(path: Path, content: Iterable[bytes | Tensor]) -> dict[str, Any]:
    """Write a new file piece by piece, sync it, and return its size and SHA-256."""
    size, digest = 0, hashlib.sha256()
    with files.opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        for piece in content:
            size += _append(file, digest, memoryview(piece) if isinstance(piece, bytes) else _memory(piece))
        os.fsync(file)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _append(file: int, digest: Any, piece: memoryview) -> int:
    """Write all of `piece`. A separate function, so that a copied tensor is freed before the next is copied."""
    digest.update(piece)
    files.write_all(file, piece)
    return len(piece)


def _remove_leftovers(folder: Path) -> None:
    """Remove unfinished checkpoints of dead processes and replaced checkpoints. The caller holds the lock."""
    for name in sorted(os.listdir(folder)):  # hidden first: `_remove` renames to these names
        if UNFINISHED.fullmatch(name):
            shutil.rmtree(folder / name, ignore_errors=True)
        elif FINISHED.fullmatch(name) and name != _step(name) and os.path.lexists(folder / _step(name)):
            _remove(folder / name)


def _remove(path: Path) -> None:
    """Remove a finished checkpoint; rename it first, so that a partly removed one is never visible."""
    part = path.with_name(f".{path.name}.part")
    os.rename(path, part)
    shutil.rmtree(part)


def _step(name: str) -> str:
    return name.removesuffix(".old")


@contextlib.contextmanager
def _held(file: Path) -> Iterator[None]:
    """Lock a file, and write the process id into it for error messages of other processes."""
    if fcntl is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        with _os_errors(f"{file}: expected to lock it", "choose a folder that allows writing and locking"):
            # Do not follow a link: it could lead to a file that the process id would overwrite.
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 20)
                number = holder.decode() if holder.isdigit() else "unknown"
                raise CheckpointError(
                    f"{file.parent}: expected an unused run folder, got one in use by process "
                    f"{number}; wait until it is done or choose another"
                ) from None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[io.BufferedReader]:
    """Open a file of a checkpoint. Links, devices and pipes are rejected."""
    with _os_errors(f"{file}: expected a file of a checkpoint", "use another checkpoint"):
        if not stat.S_ISDIR(os.lstat(file.parent).st_mode):
            raise _refusal(file, "a plain file in a folder", "something else")
        with contextlib.ExitStack() as stack:
            try:
                descriptor = stack.enter_context(files.opened(file, os.O_RDONLY))
            except ValueError:
                raise _refusal(file, "a plain file in a folder", "something else") from None
            yield stack.enter_context(open(descriptor, "rb", closefd=False))


def _refusal(file: Path, expected: str, got: str) -> CheckpointError:
    return CheckpointError(f"{file}: expected {expected}, got {got}; use another checkpoint")


@contextlib.contextmanager
def _os_errors(expected: str, advice: str) -> Iterator[None]:
    """Turn an OSError into a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{expected}, got {error.strerror or error}; {advice}") from None
