"""Train the shards of a run as tasks of Ray, which places them on nodes and reruns tasks whose process or node is lost.

A task works on its shard like any other process (`shards`): it takes the claim, and continues from the newest
checkpoint. On a node that does not have the run folder, it works in a temporary folder, and the files come back through
Ray's object store when it ends.

Ray: https://docs.ray.io
"""

import contextlib
import importlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fdqn.experiment import events, ray_cluster, session, shard_folders, shard_plan, shards
from fdqn.experiment.events import OnEvent, ShardProgress
from fdqn.storage import files

RETRIES = 1_000
"""Maximum number of reruns of a task whose process or node was lost."""


class Board:
    """Actor with the progress of all shards and the request to stop, on the node that has the run folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[int, ShardProgress] = {}
        self._notices: list[str] = []
        self._stopping = False

    def update(self, row: ShardProgress, notices: Sequence[str]) -> bool:
        """Record the progress of a shard and its new notices. Returns True if the shard must stop."""
        self._rows[row.number] = row
        self._notices += notices
        return self._stopping

    def read(self) -> tuple[dict[int, ShardProgress], list[str]]:
        """Return the progress of the shards that have started, and the notices since the last call."""
        notices, self._notices = self._notices, []
        return dict(self._rows), notices

    def files(self, number: int) -> dict[str, bytes]:
        """Return the files of a shard, for a node that does not have the run folder."""
        return ray_cluster.read_files(self._path, number)

    def stop(self) -> None:
        """Request all shards to stop."""
        self._stopping = True


def train(
    path: Path,
    address: str = "auto",
    cpus: float = 1.0,
    gpus: float = 0.0,
    on_event: OnEvent = events.ignore,
    stop: session.Stop = bool,
    env: str | None = None,
    wrappers: Sequence[str] = (),
) -> Path:
    """Train or continue all shards of a planned run on a Ray cluster, and merge them if all have finished.

    Args:
        path: folder of the run, as `shard_plan.create` returns it.
        address: "auto" for the cluster of this machine, "local" to start one for this run, or HOST:PORT.
        cpus, gpus: CPU cores and GPUs of each shard. Shards with a fraction of a GPU share one.
        on_event: receives `events.ShardsReported` about every second, and the notices of the shards.
        stop: ends all shards at their next training iteration, with complete files, once it returns True.
        env, wrappers: the environment trained on and its wrappers; required if they are code of your own.

    A shard that ends with an error is reported by a notice.

    Raises ValueError if Ray is not installed, the address does not respond, or no node has these resources.
    """
    planned = shard_plan.read(path)
    left = [number for number in range(planned.shards) if not shard_folders.is_finished(path, planned, number)]
    on_event(events.Started(path, planned.settings, 0, planned.settings.steps))
    with ray_cluster.connected(address) as ray, ray_cluster.marked(path) as token:
        ray_cluster.check_resources(ray, cpus, gpus)
        here = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote(path)
        task = ray.remote(train_shard).options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)
        plan, code = files.read(path / shard_plan.FILE), {"env": env, "wrappers": tuple(wrappers)}
        refs = {task.remote(str(path), token, plan, number, board, cpus, code): number for number in left}
        try:
            errors = _follow(ray, refs, board, path, planned.shards, on_event, stop)
        except BaseException:
            for ref in refs:
                with contextlib.suppress(Exception):
                    ray.cancel(ref, force=True)
            raise
    shards.finish(path, on_event, stop)
    shards.raise_first(errors)
    return path


def _follow(
    ray: Any, refs: dict[Any, int], board: Any, path: Path, count: int, on_event: OnEvent, stop: session.Stop
) -> dict[int, str]:
    """Emit the progress of all shards until each has ended, and write files that come back.

    Returns the errors of shards by their numbers.
    """
    pending, stopping, errors = list(refs), False, dict[int, str]()
    while pending:
        ended, pending = ray.wait(pending, timeout=1.0)
        for ref in ended:
            try:
                ray_cluster.write_files(path, ray.get(ref))
            except ray.exceptions.RayError as error:
                number = refs[ref]
                errors[number] = ray_cluster.reason(error).removeprefix(f"ValueError: shard {number}: ")
                on_event(events.Notice(f"shard {number} of {count} failed: {errors[number]}"))
        rows, notices = ray.get(board.read.remote())
        for text in notices:
            on_event(events.Notice(text))
        on_event(events.ShardsReported(tuple(rows[number] for number in sorted(rows)), count))
        if stop() and not stopping:
            stopping = True
            ray.get(board.stop.remote())
    return {} if stopping else errors


# On a node


def train_shard(
    path: str,
    token: str,
    plan: bytes,
    number: int,
    board: Any,
    cpus: float,
    code: Mapping[str, Any],
) -> dict[str, bytes]:
    """Train a shard on a node, and return its files unless the node has the run folder.

    Args:
        path: folder of the run.
        token: name of a marker file in `path/shards`, which exists on nodes that have the run folder.
        plan: content of `shards.json`.
        number: number of the shard.
        board: actor `Board`.
        cpus: CPU cores of the shard.
        code: arguments `env` and `wrappers` of `train`.
    """
    torch.set_num_threads(max(1, int(cpus)))
    here = Path(path)
    is_shared = (here / "shards" / token).exists()
    if not is_shared:
        here = Path(tempfile.gettempdir()) / f"fdqn-{token}"
        (here / "shards").mkdir(parents=True, exist_ok=True)
        files.write(here / shard_plan.FILE, plan)
        if not shard_plan.folder(here, number).exists():
            ray = importlib.import_module("ray")
            ray_cluster.write_files(here, ray.get(board.files.remote(number)))
    planned = shard_plan.read(here)
    with _reporting(board, number, planned.settings.steps) as (receive, stop):
        if not stop():
            shards.train(here, receive, stop, numbers=[number], **code)
    if is_shared:
        return {}
    content = ray_cluster.read_files(here, number)
    shutil.rmtree(shard_plan.folder(here, number))
    return content


@contextlib.contextmanager
def _reporting(board: Any, number: int, steps: int) -> Iterator[tuple[OnEvent, Callable[[], bool]]]:
    """Yield a receiver of events that reports a shard to the board, and a function that returns True after `stop`."""
    ray = importlib.import_module("ray")
    ended, stopping, lock = threading.Event(), threading.Event(), threading.Lock()
    row, notices = ShardProgress(number, "starting", 0, steps, socket.gethostname(), None), list[str]()

    def receive(event: events.Event) -> None:
        nonlocal row
        with lock:
            match event:
                case events.Notice(text) if "have not finished" not in text:
                    notices.append(text)
                case events.SeedFailed(_, step, _, reason, name):
                    notices.append(f"{name} failed at step {step:,}: {reason}; it stops learning")
                case events.Training(compiling):
                    row = row._replace(state="compiling" if compiling else "training")
                case events.Reported():
                    means = event.returns[~event.failed & (event.returns == event.returns)]
                    score = float(means.mean()) if len(means) else None
                    row = row._replace(state="training", step=event.step, score=score)
                case events.EvaluationStarted():
                    row = row._replace(state="evaluating")
                case events.Finished():
                    row = row._replace(state="finished" if row.step >= steps else "stopped")

    def send() -> None:
        with lock:
            now, texts = row, list(notices)
            notices.clear()
        if ray.get(board.update.remote(now, texts)):
            stopping.set()

    def repeat() -> None:
        while not ended.wait(1.0):
            with contextlib.suppress(ray.exceptions.RayError):
                send()

    send()
    thread = threading.Thread(target=repeat, name="fdqn-board", daemon=True)
    thread.start()
    try:
        yield receive, stopping.is_set
    finally:
        ended.set()
        thread.join()
        send()
