"""Connect to a Ray cluster, check its resources, and copy the files of shards between nodes."""

import contextlib
import importlib
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fdqn.experiment import shard_plan
from fdqn.storage import files

TIMEOUT = 30.0
"""Seconds within which a cluster must respond."""


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster, unless this process is connected, and yield the module `ray`.

    Raises ValueError if Ray is not installed, or the address is invalid, fails, or does not respond in time.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        reason = "none" if isinstance(error, ModuleNotFoundError) and error.name == "ray" else f"the error {error}"
        raise ValueError(f"ray: expected the package ray, got {reason}; pip install 'fdqn[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    if address not in ("auto", "local"):
        _check_address(address)
    connect = partial(ray.init, address, log_to_driver=False, logging_level="ERROR")
    if address == "local":  # in this thread: the processes of Ray end with the thread that starts them
        connect()
    else:
        _within(TIMEOUT, "on this machine" if address == "auto" else f"at {address}", connect)
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise ValueError unless something accepts connections at an address."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"ray: expected auto, local or HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host, int(port)), TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"ray: expected a cluster at {address}, got no connection: {error}") from None


def _within(seconds: float, where: str, connect: Callable[[], Any]) -> None:
    """Call a function in a thread. Raises ValueError if it fails, or does not return in time."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            connect()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise ValueError(f"ray: expected a cluster {where}, got no response in {seconds:g} s")
    if errors:
        raise ValueError(f"ray: expected a cluster {where}, got {reason(errors[0])}")


def check_resources(ray: Any, cpus: float, gpus: float) -> None:
    """Raise ValueError if no node has the CPU cores or GPUs of a shard."""
    for name, key, wanted in (("shard_cpus", "CPU", cpus), ("shard_gpus", "GPU", gpus)):
        most = max((node["Resources"].get(key, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if wanted > most:
            raise ValueError(
                f"{name}: expected at most {most:g}, the most that a node of the cluster has, got {wanted:g}"
            )


def reason(error: BaseException) -> str:
    """Return the last line of an error of Ray, which is the error of the task."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# Files


@contextlib.contextmanager
def marked(path: Path) -> Iterator[str]:
    """Create a marker file in the run folder, by which nodes recognise the folder, and yield its name."""
    token = uuid.uuid4().hex
    files.write(path / "shards" / token, b"")
    try:
        yield token
    finally:
        (path / "shards" / token).unlink(missing_ok=True)


def read_files(path: Path, number: int) -> dict[str, bytes]:
    """Read the files of a shard. Keys are paths relative to the run folder."""
    own = shard_plan.folder(path, number)
    found = [x for x in own.rglob("*") if x.is_file() and not x.is_symlink() and x.name not in (".lock", ".saving")]
    beside = own.with_name(f"{own.name}.json")
    return {str(x.relative_to(path)): files.read(x) for x in [*found, *([beside] if beside.exists() else [])]}


def write_files(path: Path, given: Mapping[str, bytes]) -> None:
    """Write files that `read_files` has read on another node. Raises ValueError for a path outside of `shards`."""
    for name in sorted(
        given, key=lambda name: os.path.basename(name) == "summary.json"
    ):  # the summary marks a finished shard: last
        parts = Path(name).parts
        if parts[0] != "shards" or ".." in parts:
            raise ValueError(f"files: expected names in shards, got {name!r}")
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        files.write(path / name, given[name])
