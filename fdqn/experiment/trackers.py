"""Open a run in TensorBoard, W&B, Trackio or MLflow: one function for each, which returns a `Sink`.

A function imports the package of its tracker when it is called. For a resumed run, `Sink.held` has the steps that the
tracker already holds, so that none is written twice.
"""

import logging
import os
import shlex
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fdqn.experiment.tracked_rows import Curve, Points

PROJECT = "fdqn"
"""Default name of the project or experiment; the environment variables of a tracker override it."""


class TrackedRun(NamedTuple):
    """A tracked run."""

    path: Path
    """Run folder."""
    id: str
    """Random id, from which the ids of the curves in trackers are derived."""
    started: float
    """Start of the run, in seconds since 1970."""
    curves: tuple[Curve, ...]
    returns: tuple[str, ...]
    """Tags of returns, whose aggregate has an interval."""


class Sink(NamedTuple):
    """An open tracker."""

    write: Callable[[Sequence[Points]], None]
    """Write points, in the order of their steps."""
    close: Callable[[bool], None]
    """Close the tracker; the argument is True if the run has finished."""
    held: Mapping[str, int] = {}
    """Last step that the tracker already holds, by name of the curve."""
    where: str = ""
    """Command or address that shows the run."""


def tensorboard(run: TrackedRun) -> Sink:
    """Open event files in `RUN/tensorboard/`, a folder for each curve.

    Each call writes new files for the whole run and deletes the old ones. A new file starts with a `SessionLog.START`,
    at which TensorBoard discards the points that it has read so far.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import FileWriter
    from torch.utils.tensorboard.summary import custom_scalars, text

    writers = {}
    for curve in run.curves:
        folder = run.path / "tensorboard" / curve.name
        old = list(folder.glob("events.out.tfevents.*"))
        writer = writers[curve.name] = FileWriter(str(folder))
        writer.add_event(Event(step=0, file_version="brain.Event:2"))
        writer.add_event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        rows = "\n".join(f"|{name}|{value}|" for name, value in curve.config.items())
        writer.add_summary(text("hyperparameters", f"|param|value|\n|-|-|\n{rows}"), 0, run.started)
        if curve.aggregate:
            bands = {tag: ["Margin", [tag, f"{tag}_low", f"{tag}_high"]] for tag in run.returns}
            writer.add_summary(custom_scalars({"returns": bands}), 0, run.started)
        writer.flush()
        for file in old:
            file.unlink()

    def write(points: Sequence[Points]) -> None:
        for at in points:
            for name, values in at.values.items():
                found = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
                writers[name].add_summary(Summary(value=found), at.step, run.started + at.seconds)
        for writer in writers.values():
            writer.flush()

    def close(finished: bool) -> None:
        for writer in writers.values():
            writer.close()

    return Sink(write, close, where=f"tensorboard --logdir {shlex.quote(str(run.path / 'tensorboard'))}")


def wandb(run: TrackedRun) -> Sink:
    """Open a W&B run for each curve, in one group; files are in `RUN/wandb/`.

    `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_MODE` and `WANDB_DIR` have their usual meaning
    (https://docs.wandb.ai/guides/track/environment-variables). The step of W&B is the environment step, also logged as
    `global_step`, which openrlbenchmark reads.
    """
    import wandb

    quiet = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True, finish_timeout=60,
        x_disable_stats=True, x_save_requirements=False,
    )  # fmt: skip
    opened = {
        curve.name: wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=f"{run.path.name}-{run.id}",
            job_type=curve.name.split("-")[0],
            name=f"{run.path.name} {curve.name}",
            id=f"{run.id}-{curve.name}",
            config=curve.config,
            dir=os.environ.get("WANDB_DIR", run.path),
            reinit="create_new",
            resume="allow",
            settings=quiet,
        )
        for curve in run.curves
    }

    def write(points: Sequence[Points]) -> None:
        for at in points:
            for name, values in at.values.items():
                opened[name].log({"global_step": at.step, **values}, step=at.step)

    def close(finished: bool) -> None:
        for one in opened.values():
            one.finish(exit_code=0 if finished else 1)

    last = opened[run.curves[-1].name]
    if last.offline:
        held = {name: _last_offline_step(Path(one.settings.wandb_dir), one.id) for name, one in opened.items()}
        return Sink(write, close, held, f"wandb sync {shlex.quote(str(Path(last.settings.wandb_dir)))}/offline-run-*")
    held = {name: one.starting_step - 1 for name, one in opened.items()}
    return Sink(write, close, held, str(last.url))


def _last_offline_step(folder: Path, name: str) -> int:
    """Return the highest step in the offline files of a W&B run; -1 if there is none."""
    from wandb.proto.wandb_internal_pb2 import Record

    last = -1
    for file in folder.glob(f"offline-run-*-{name}/run-{name}.wandb"):
        for content in _records(file.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("history"):
                last = max(last, record.history.step.num)
    return last


def _records(log: bytes) -> Iterator[bytes]:
    """Yield the records of a W&B file, up to the first incomplete one.

    The file is a LevelDB log after a header of 7 bytes: blocks of 32 KiB with fragments of records. A fragment has a
    checksum (4 bytes), its length (2 bytes) and its type (1 byte): 1 for a whole record, 2, 3 and 4 for the first, a
    middle and the last fragment of a record. https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    at, parts = 7, b""
    while at + 7 <= len(log):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", log, at + 4)
        if kind not in (1, 2, 3, 4) or at + 7 + size > len(log):
            return
        parts = log[at + 7 : at + 7 + size] if kind in (1, 2) else parts + log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield parts


def trackio(run: TrackedRun) -> Sink:
    """Open a Trackio run for each curve, in one group of the local store; `trackio sync` copies it to a Space.

    `TRACKIO_DIR` and `TRACKIO_PROJECT` choose the store and the project. Rows are written to the store itself, because
    the logger of Trackio hides errors and prints to standard output. The store ignores rows that it already holds.
    """
    from trackio.sqlite_storage import SQLiteStorage

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    created, group = _iso(run.started), f"{run.path.name}-{run.id}"
    configs = {curve.name: {**curve.config, "_Created": created, "_Group": group} for curve in run.curves}

    def write(points: Sequence[Points]) -> None:
        for curve in run.curves:
            own = [at for at in points if at.values.get(curve.name)]
            SQLiteStorage.bulk_log(
                project,
                f"{run.path.name} {curve.name}",
                [at.values[curve.name] for at in own],
                steps=[at.step for at in own],
                timestamps=[_iso(run.started + at.seconds) for at in own],
                config=configs[curve.name],
                log_ids=[f"{run.id}-{curve.name}-{at.step}" for at in own],
                run_id=f"{run.id}-{curve.name}",
            )

    return Sink(write, lambda finished: None, where=f"trackio show --project {shlex.quote(project)}")


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def mlflow(run: TrackedRun) -> Sink:
    """Open an MLflow run for the aggregate, with a nested run for each seed, or for each setting of a sweep.

    `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` choose the store and the experiment. By default the store is
    `mlflow.db` next to the run folder.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.path.absolute().parent / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    experiment = _experiment(client, os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    found = client.search_runs([experiment], f"tags.`fdqn.id` = '{run.id}'", max_results=50_000)
    ids = {one.data.tags["fdqn.curve"]: one.info.run_id for one in found}
    before, create = {*ids.values()}, partial(_create_run, client, experiment, run, ids)
    parent = create("aggregate", _common(run.curves), {})
    own = {parent, *(create(curve.name, curve.config, {"mlflow.parentRunId": parent}) for curve in run.curves)}
    for one in own & before:
        client.update_run(one, status="RUNNING")

    def write(points: Sequence[Points]) -> None:
        for curve in run.curves:
            metrics = [
                Metric(tag, value, round(1e3 * (run.started + at.seconds)), at.step)
                for at in points
                for tag, value in at.values.get(curve.name, {}).items()
            ]
            for i in range(0, len(metrics), 1_000):
                client.log_batch(ids[curve.name], metrics=metrics[i : i + 1_000])

    def close(finished: bool) -> None:
        for one in own:
            client.set_terminated(one, "FINISHED" if finished else "KILLED")

    held = {curve.name: _last_step(client, ids[curve.name]) for curve in run.curves if ids[curve.name] in before}
    shown = f"in {uri}" if uri.startswith("sqlite") else "in MLFLOW_TRACKING_URI"  # it may contain a password
    return Sink(write, close, held, f"experiment {experiment} {shown}")


def _common(curves: Sequence[Curve]) -> dict[str, Any]:
    """Return the settings of the aggregate of all seeds; of a sweep, which has none, those that its settings share."""
    *others, last = (curve.config for curve in curves)
    if curves[-1].name == "aggregate":
        return last
    return {name: x for name, x in last.items() if all(config[name] == x for config in others)}


def _experiment(client: Any, name: str) -> str:
    """Return the id of the experiment with this name. Create it if it does not exist."""
    found = client.get_experiment_by_name(name)
    return client.create_experiment(name) if found is None else found.experiment_id


def _create_run(
    client: Any,
    experiment: str,
    run: TrackedRun,
    ids: dict[str, str],
    name: str,
    config: Mapping[str, Any],
    tags: Mapping[str, str],
) -> str:
    """Return the id of the MLflow run of a curve. If it is not in `ids`, create it with its settings and add it.

    Args:
        client: MLflow's client.
        experiment: id of the experiment.
        run: the tracked run.
        ids: ids of the runs, by name of the curve.
        name: name of the curve.
        config: settings, which become parameters.
        tags: further tags, such as the id of the parent.
    """
    from mlflow.entities import Param

    if name in ids:
        return ids[name]
    own = {"fdqn.id": run.id, "fdqn.curve": name, **tags}
    made = client.create_run(experiment, round(1e3 * run.started), own, f"{run.path.name} {name}")
    params = [Param(key, str(value)) for key, value in config.items()]
    for i in range(0, len(params), 100):
        client.log_batch(made.info.run_id, params=params[i : i + 100])
    ids[name] = made.info.run_id
    return ids[name]


def _last_step(client: Any, one: str) -> int:
    """Return the highest step of any metric of an MLflow run; -1 if it has none."""
    tags = client.get_run(one).data.metrics
    return max((metric.step for tag in tags for metric in client.get_metric_history(one, tag)), default=-1)


ADAPTERS: dict[str, Callable[[TrackedRun], Sink]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "trackio": trackio,
    "mlflow": mlflow,
}
"""Functions that open a tracker, by its name."""
