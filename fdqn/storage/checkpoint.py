"""Checkpoints: a tree of tensors and a record as files that are whole or not there, and that execute nothing.

    folder/STEP/state.safetensors    the leaves, named by their paths
    folder/STEP/manifest.json        format, record, versions, the leaves' shapes and dtypes; size and SHA-256 of the
                                     state, and at its end the SHA-256 of all that stands before

A checkpoint is written under a temporary name and gets its own by one rename, after everything in it is on disk. What
is read is believed in nothing: the tree it is loaded into says what must be there, down to the header's bytes, so no
size, offset or name out of a file is ever used.
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

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.safetensors"

# A manifest has some kilobytes. Of so many bytes JSON makes at most 32 MB, in a tenth of a second.
MANIFEST_BYTES = 2**20

# What the safetensors format calls them.
DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip

# A finished checkpoint, also one that was about to be replaced by another of its name; and what is not finished.
FINISHED = re.compile(r"(0|[1-9][0-9]{0,17})(\.old)?")
UNFINISHED = re.compile(r"\.[0-9]+(\.old)?\.part")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, is not whole, or does not fit; a folder that another process writes in."""


def save(folder: Path, name: str, state: Any, record: dict[str, Any]) -> Path:
    """Write a tree of tensors and a record that JSON can say to `folder/name`, a number of steps; it is on disk then.

    A checkpoint of that name is replaced, and not removed before the new one is there. Beside the state no more than
    one tensor is in memory. Raises CheckpointError where something cannot be written; what was there stays as it was.
    """
    final, part, replaced = folder / name, folder / f".{name}.part", folder / f"{name}.old"
    if not FINISHED.fullmatch(name) or name.endswith(".old"):
        raise CheckpointError(f"name: expected a number of steps, such as '2000', got {name!r}")
    leaves = _leaves(state)
    with _in_words(
        f"{final}: expected to write a checkpoint", "earlier ones are as they were; make room or choose another place"
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
                files.sync(folder.parent)  # where the folder may be new
            finally:
                shutil.rmtree(part, ignore_errors=True)
            _remove_leftovers(folder)  # what was replaced
    return final


@torch.no_grad()
def load(path: Path, like: State) -> tuple[State, dict[str, Any]]:
    """A checkpoint's leaves copied in place into those of `like`; answers with `like` and the record.

    Nothing is copied before all is verified. Raises CheckpointError for files that are not as they were written, and
    for leaves of other paths, shapes or dtypes than those of `like`.
    """
    with _verified(path, like) as (file, leaves, record):
        room = torch.empty(max((x.nbytes for x in leaves.values()), default=0), dtype=torch.uint8)
        for leaf in leaves.values():
            leaf.copy_(_next(path, file, leaf, room))
    return like, record


def load_part(path: Path, like: Any, part: State) -> State:
    """Read `part`, a tree of some leaves of `like`; none of these need memory, and what is read has its own.

    All is verified as in `load`, which raises the same.
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
    """The record of a checkpoint, its tensors left unread. Raises CheckpointError for a manifest that is not whole."""
    return _manifest(path)["record"]


def newest(folder: Path) -> list[Path]:
    """The finished checkpoints of a folder, newest first; none where there is no folder.

    Raises CheckpointError where the folder cannot be read.
    """
    with _in_words(f"{folder}: expected a folder of checkpoints", "make it readable"):
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return []
        names = [x.name for x in entries if FINISHED.fullmatch(x.name) and x.is_dir(follow_symlinks=False)]
    names.sort(key=lambda name: (int(_step(name)), name == _step(name)), reverse=True)
    return [folder / name for name in names]


def prune(folder: Path, keep: int, also: Collection[str] = ()) -> None:
    """Remove checkpoints but the newest `keep` and those named in `also`. Half a checkpoint is never in sight.

    Raises CheckpointError where one cannot be removed, ValueError for a `keep` below 1.
    """
    if keep < 1:
        raise ValueError(f"keep: expected at least 1, got {keep}")
    with _in_words(f"{folder}: expected to remove old checkpoints", "make it writable"), _held(folder / ".saving"):
        _remove_leftovers(folder)
        for path in newest(folder)[keep:]:
            if _step(path.name) not in also:
                _remove(path)


def set_aside(path: Path) -> None:
    """Take a finished checkpoint out of sight, under `STEP.damaged`, for somebody to look at.

    Raises CheckpointError where it cannot be renamed.
    """
    aside = path.with_name(f"{_step(path.name)}.damaged")
    with (
        _in_words(f"{path}: expected to set it aside", "make its folder writable"),
        _held(path.parent / ".saving"),
    ):
        if os.path.lexists(aside):
            shutil.rmtree(aside)
        os.rename(path, aside)
        files.sync(path.parent)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other writers out of a run folder; the lock of a process that dies goes with it.

    Where the system has no `fcntl` nobody is kept out. Raises CheckpointError where another process holds the lock.
    """
    with _held(folder / ".lock"):
        yield


@contextlib.contextmanager
def _verified(path: Path, like: Any) -> Iterator[tuple[io.BufferedReader, dict[str, Tensor], dict[str, Any]]]:
    """The open file of a checkpoint's leaves, at the first, those of `like` in its order, and the record."""
    leaves, manifest = _leaves(like), _manifest(path)
    _check_fit(path / MANIFEST, _layout(leaves), manifest["tree"])
    header = _header(leaves)
    with _opened(path / STATE) as file:
        size = os.fstat(file.fileno()).st_size
        if size != len(header) + tree.nbytes(like):
            raise _refusal(path / STATE, f"{len(header) + tree.nbytes(like)} bytes", f"{size}")
        if file.read(len(header)) != header:
            raise _refusal(path / STATE, "the header that belongs to the manifest", "another")
        file.seek(0)
        if manifest["files"] != {STATE: {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}}:
            raise _refusal(path / STATE, "the SHA-256 that its manifest says", "another")
        file.seek(len(header))
        yield file, leaves, manifest["record"]


def _next(path: Path, file: io.BufferedReader, leaf: Tensor, room: Tensor) -> Tensor:
    """The next leaf of the file, in `room`."""
    read = room[: leaf.nbytes]
    if file.readinto(_memory(read)) != leaf.nbytes:
        raise _refusal(path / STATE, "a file that nobody writes to", "one that became shorter")
    return read.view(leaf.dtype).view(leaf.shape)


def _leaves(state: Any) -> dict[str, Tensor]:
    """The leaves under their paths, in the order of the file: wide dtypes first, so that each is aligned."""
    leaves = dict(zip(tree.paths(state), tree.leaves(state), strict=True))
    for path, leaf in leaves.items():
        dtype = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
        if dtype not in DTYPES:
            raise CheckpointError(f"state{path}: expected a tensor of a dtype among {[*DTYPES.values()]}, got {dtype}")
    return dict(sorted(leaves.items(), key=lambda item: -item[1].element_size()))


def _layout(leaves: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {path: {"dtype": DTYPES[x.dtype], "shape": list(x.shape)} for path, x in leaves.items()}


def _header(leaves: dict[str, Tensor]) -> bytes:
    """What a file of the safetensors format begins with: its own length, then where each tensor lies, as JSON."""
    entries, end = _layout(leaves), 0
    for path, leaf in leaves.items():
        begin, end = end, end + leaf.nbytes
        entries[path]["data_offsets"] = [begin, end]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _memory(x: Tensor) -> memoryview:
    """A tensor's bytes: its own where it lies in one piece on the CPU, else those of a copy."""
    here = x.contiguous().cpu()
    # An axis of one counts as contiguous whatever its stride, which a view as bytes does not take.
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
        raise CheckpointError(f"record: expected what JSON can say, got something else: {error}") from None
    manifest = _sealed(text.removesuffix("\n}").encode())
    if not isinstance(record, dict) or len(manifest) > MANIFEST_BYTES:
        raise CheckpointError(f"record: expected a dict of at most {MANIFEST_BYTES} bytes, got {len(manifest)}")
    return manifest


def _sealed(text: bytes) -> bytes:
    """JSON that lacks its end, with its SHA-256 as the last entry. Later formats keep this."""
    return text + b',\n "sha256": "%b"\n}\n' % hashlib.sha256(text).hexdigest().encode()


def _manifest(path: Path) -> dict[str, Any]:
    """A manifest as it was written: its types right as far as they are used, its entries not yet compared."""
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
    if version != FORMAT or not all(isinstance(content.get(name), dict) for name in ("record", "files", "tree")):
        raise _refusal(path / MANIFEST, f"format {FORMAT} with record, files and tree", "other entries")
    return content


def _check_fit(file: Path, expected: dict[str, Any], got: dict[str, Any]) -> None:
    """Raise CheckpointError, naming the paths both ways, unless the two layouts are equal."""
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
    """The first few, so that a sentence stays one; in words of a foreign file nothing that a terminal would obey."""
    shown = ("".join(c if c.isprintable() else "?" for c in thing[:200]) for thing in things[:4])
    more = f" and {len(things) - 4} more" if len(things) > 4 else ""
    return ", ".join(shown) + more or "nothing"


def _write(path: Path, content: Iterable[bytes | Tensor]) -> dict[str, Any]:
    """Write a new file, piece by piece, until it is on disk; answer with its size and SHA-256."""
    size, digest = 0, hashlib.sha256()
    with files.opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
        for piece in content:
            size += _append(file, digest, memoryview(piece) if isinstance(piece, bytes) else _memory(piece))
        os.fsync(file)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _append(file: int, digest: Any, piece: memoryview) -> int:
    """Write all of `piece`. A function, so that nothing holds one copied tensor while the next is copied."""
    digest.update(piece)
    files.write_all(file, piece)
    return len(piece)


def _remove_leftovers(folder: Path) -> None:
    """What processes that died left behind, and what has been replaced. The folder is held: nobody works on them."""
    for name in sorted(os.listdir(folder)):  # hidden ones first, to make room for what is removed by way of their names
        if UNFINISHED.fullmatch(name):
            shutil.rmtree(folder / name, ignore_errors=True)
        elif FINISHED.fullmatch(name) and name != _step(name) and os.path.lexists(folder / _step(name)):
            _remove(folder / name)


def _remove(path: Path) -> None:
    """Remove a finished checkpoint, which is out of sight before it is no longer whole."""
    part = path.with_name(f".{path.name}.part")
    os.rename(path, part)
    shutil.rmtree(part)


def _step(name: str) -> str:
    return name.removesuffix(".old")


@contextlib.contextmanager
def _held(file: Path) -> Iterator[None]:
    """The kernel's lock on a file, with our number in it for whoever comes second."""
    if fcntl is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        with _in_words(f"{file}: expected to lock it", "choose a folder that can be written and locked"):
            # A link in a folder from elsewhere must not lead to a file that we then write our number over.
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 20)
                number = holder.decode() if holder.isdigit() else "unknown"
                raise CheckpointError(
                    f"{file.parent}: expected a folder that nobody writes in, got a run folder in use by process "
                    f"{number}; wait until it is done or choose another"
                ) from None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[io.BufferedReader]:
    """A file of a checkpoint, to read. Links, devices and pipes are nothing that was written here."""
    with _in_words(f"{file}: expected a file of a checkpoint", "use another checkpoint"):
        if not stat.S_ISDIR(os.lstat(file.parent).st_mode):
            raise _refusal(file, "a plain file in a folder", "something else")
        with contextlib.ExitStack() as stack:
            try:
                descriptor = stack.enter_context(files.opened(file, os.O_RDONLY))
            except ValueError:
                raise _refusal(file, "a plain file in a folder", "something else") from None
            yield stack.enter_context(open(descriptor, "rb", closefd=False))


def _refusal(file: Path, expected: str, got: str) -> CheckpointError:
    return CheckpointError(f"{file}: expected {expected}, got {got}; it was not saved so: use another checkpoint")


@contextlib.contextmanager
def _in_words(expected: str, advice: str) -> Iterator[None]:
    """What the system refuses, as one sentence."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{expected}, got {error.strerror or error}; {advice}") from None
