"""Plan sharded runs: the learners of each shard, and the file `shards.json`.

    RUN/shards.json     settings of the whole run, number of shards, and everything that must be equal in all shards
    RUN/settings.csv    only of a sweep: a row for each learner
    RUN/shards/00003/   run folder of shard 3

Shard i of N has the learners i * B to (i + 1) * B - 1 of all L = N * B, in the order of `settings.csv`. Seeds keep the
numbers that they have in the whole run. Learners are independent, so those of a shard have the bits that they have in
one process, if both compile learners in groups of the same size. The plan fixes this size.
"""

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fdqn import check, compile
from fdqn.experiment import assemble, history, results, run_folder, sweep_plan
from fdqn.experiment.settings import Settings, Sweep, from_json, to_json
from fdqn.storage import files

FILE = "shards.json"


class ShardPlan(NamedTuple):
    """Plan of a sharded run."""

    settings: Settings
    """Settings of the whole run."""
    shards: int
    """Number of shards."""
    pinned: compile.ThreadPartition | None
    """Groups in which all shards compile their learners; None for an engine without groups."""
    provenance: dict[str, Any]
    """Result of `provenance` on the machine that planned the run."""

    @property
    def size(self) -> int:
        """Number of learners of a shard."""
        return self.settings.learners // self.shards

    def shard_settings(self, number: int, path: Path) -> Settings:
        """Return the settings of a shard; `path` is the folder of the whole run."""
        given, first, out = self.settings, number * self.size, str(folder(path, number))
        if not isinstance(given, Sweep):
            return dataclasses.replace(given, seed=given.seed + first, seeds=self.size, out=out)
        setting, seed = divmod(first, given.seeds)
        varied = given.varied[setting : setting + max(1, self.size // given.seeds)]
        seeds = min(self.size, given.seeds)
        return dataclasses.replace(given, varied=varied, seed=given.seed + seed, seeds=seeds, out=out)


def plan(settings: Settings, count: int) -> ShardPlan:
    """Divide a run into `count` shards.

    Raises ValueError if `count` does not divide the learners into equal parts, each of them whole settings or a part of
    the seeds of one setting, and for population based training, whose learners are not independent.
    """
    check.kind("settings", settings, Settings)
    _check_count(settings, count)
    if isinstance(settings, Sweep) and settings.pbt_every:
        raise ValueError(
            "shards: expected none with pbt_every, got both; the members of a population are trained together"
        )
    assemble.program(settings)
    pinned = run_folder.partition_to_pin(settings, settings.learners // count)
    return ShardPlan(settings, count, pinned, provenance(settings, pinned))


def plan_sweep(planned: sweep_plan.Plan, count: int) -> ShardPlan:
    """Divide a sweep into `count` shards. Raises ValueError for several programs, and the errors of `plan`."""
    if len(planned.programs) > 1:
        raise ValueError(
            f"shards: expected settings that one program can train, got {len(planned.programs)} programs; train each "
            "in a separate run"
        )
    return plan(planned.programs[0].settings, count)


def _check_count(settings: Settings, count: int) -> None:
    check.count("shards", count, 1)
    if _fits(settings, count):
        return
    known = [number for number in range(1, settings.learners + 1) if _fits(settings, number)]
    near = sorted(sorted(known, key=lambda x: abs(x - count))[:8])
    parts = f"{settings.learners:,} seeds"
    if isinstance(settings, Sweep):
        parts = f"{len(settings.varied):,} settings x {settings.seeds:,} seeds, by settings or parts of one setting,"
    raise ValueError(f"shards: expected a number that divides {parts} such as {', '.join(map(str, near))}, got {count}")


def _fits(settings: Settings, count: int) -> bool:
    """Return True if the learners can be divided into shards of whole settings or of equal parts of one setting."""
    size, rest = divmod(settings.learners, count)
    whole = settings.seeds if isinstance(settings, Sweep) else 1
    return not rest and (size % whole == 0 or whole % size == 0)


def provenance(settings: Settings, pinned: compile.ThreadPartition | None) -> dict[str, Any]:
    """Return everything but the settings that may change bits: versions, commit, device, processor and engine.

    The number of threads is left out if groups are pinned, since it then changes no bits. The modes of denormal numbers
    and of matrix products are left out, since each run sets them.
    """
    record = run_folder.provenance(settings, pinned)
    modes = {"flush_denormal", "float32_matmul_precision", *(["threads"] if pinned is not None else [])}
    engine = {name: x for name, x in record["engine"].items() if name not in modes}
    device = assemble.device(settings).type  # GPUs of one kind round alike
    return {**record, "device": device, "engine": {**engine, "cpu_capability": torch.backends.cpu.get_cpu_capability()}}


def differences(planned: ShardPlan, device: str | None = None) -> list[str]:
    """List differences between this process and the one that planned the run that may change bits.

    `device` is that of this process, by default that of the plan.
    """
    settings = dataclasses.replace(planned.settings, device=device or planned.settings.device)
    here = provenance(settings, planned.pinned)
    return run_folder.differences_of(planned.provenance, here)


def folder(path: Path, number: int) -> Path:
    """Return the folder of a shard."""
    return path / "shards" / name(number)


def name(number: int) -> str:
    """Return the name of the folder of a shard."""
    return f"{number:05}"


def is_sharded(path: Path) -> bool:
    """Return True for the folder of a sharded run."""
    return os.path.lexists(path / FILE)


# The file of a plan


def create(planned: ShardPlan, base: Path = Path()) -> Path:
    """Create the folder of a sharded run in `base` with its plan, and return its absolute path.

    Of several processes that start the same run, the first creates the folder and the others use it.

    Raises ValueError if the folder has another plan, is not that of a sharded run, or cannot be created.
    """
    out = planned.settings.out
    if out and is_sharded(base / out):
        return _joined(planned, base / out)
    path = run_folder.folder(planned.settings, base)
    own = planned._replace(settings=dataclasses.replace(planned.settings, out=out or str(path.relative_to(base))))
    part = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        (part / "shards").mkdir(parents=True)
        if isinstance(own.settings, Sweep):
            files.write(part / "settings.csv", run_folder.settings_table(own.settings).encode())
        _write(own, part)
        os.rename(part, path)  # atomic: the folder never exists without its plan
        files.sync(path.parent)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if is_sharded(path):
            return _joined(own, path)
        raise ValueError(f"out: expected a folder that can be created, got {str(path)!r}: {error.strerror}") from None
    return path.absolute()


def _joined(planned: ShardPlan, path: Path) -> Path:
    """Return the folder of a planned run. Raises ValueError, naming the fields, if it has another plan.

    The device may differ, since processes may train on different GPUs.
    """
    found = read(path)
    if found.shards != planned.shards:
        raise ValueError(
            f"shards: expected {found.shards}, as in {path / FILE}, got {planned.shards}; choose another --out"
        )
    given, own = (dataclasses.replace(x.settings, device=found.settings.device) for x in (planned, found))
    if others := history.differing_settings(to_json(given), to_json(own), free={"out"}):
        raise ValueError(f"out: expected the settings of {path / FILE}, got {others}; choose another --out")
    return path.absolute()


def _write(planned: ShardPlan, path: Path) -> None:
    record = {
        "shards": planned.shards,
        "partition": partition_record(planned),
        "provenance": planned.provenance,
        "settings": to_json(planned.settings),
    }
    files.write(path / FILE, (json.dumps(record, indent=1) + "\n").encode())


def partition_record(planned: ShardPlan) -> dict[str, int] | None:
    """Return the record of the pinned groups; None without them."""
    return None if planned.pinned is None else run_folder.partition_record(planned.pinned)


def read(path: Path) -> ShardPlan:
    """Read `shards.json` of a sharded run. Raises ValueError if it does not exist or is damaged."""
    try:
        return _parse(json.loads(files.read(path / FILE, 2**26)))
    except FileNotFoundError:
        raise ValueError(f"run: expected a sharded run, got {path} without {FILE}") from None
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"run: expected a sharded run, got {path} with a {FILE} that is invalid: {reason}") from None


def _parse(record: Mapping[str, Any]) -> ShardPlan:
    """Parse a plan. Raises ValueError if its fields do not fit together."""
    settings, count, kept = from_json(record["settings"]), record["shards"], record["partition"]
    _check_count(settings, count)
    known = {"versions", "engine", "git", "device", "processor"}
    if not isinstance(record["provenance"], dict) or not known <= record["provenance"].keys():
        raise ValueError(f"expected a provenance with {', '.join(sorted(known))}, got others")
    size = settings.learners // count
    pinned = None
    if kept is not None:
        if not results.is_partition(kept) or size % kept["lanes"]:
            raise ValueError(f"expected groups that divide {size} learners, got {kept!r:.80}")
        pinned = compile.ThreadPartition(kept["lanes"], size // kept["lanes"], kept["threads"])
    return ShardPlan(settings, count, pinned, record["provenance"])
