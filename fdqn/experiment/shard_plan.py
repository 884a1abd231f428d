"""Plans of sharded runs: the learners of a run in equal parts, each a separate run, and the file of a plan.

    RUN/shards.json     settings of the whole run, the number of shards and everything that must be alike in all of them
    RUN/settings.csv    only of a sweep: a row for each learner
    RUN/shards/00003/   the run of shard 3

Seeds keep their numbers: shard i of N has the learners i * B to (i + 1) * B - 1 of all L = N * B, in the order of
`settings.csv`. Learners are independent, so a shard has the bits that its learners have in one process, if that process
divides them into groups of the same size: the size is a part of the plan.
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


class Shards(NamedTuple):
    """Plan of a sharded run."""

    settings: Settings
    """Settings of the whole run."""
    shards: int
    """Number of shards."""
    pinned: compile.ThreadPartition | None
    """Groups of learners in all shards; None for an engine that has none."""
    circumstances: dict[str, Any]
    """Record of `circumstances` where the run was planned."""

    @property
    def size(self) -> int:
        """Number of learners of a shard."""
        return self.settings.learners // self.shards

    def of(self, number: int, path: Path) -> Settings:
        """Return the settings of a shard of the run in the folder `path`."""
        given, first, out = self.settings, number * self.size, str(folder(path, number))
        if not isinstance(given, Sweep):
            return dataclasses.replace(given, seed=given.seed + first, seeds=self.size, out=out)
        setting, seed = divmod(first, given.seeds)
        varied = given.varied[setting : setting + max(1, self.size // given.seeds)]
        seeds = min(self.size, given.seeds)
        return dataclasses.replace(given, varied=varied, seed=given.seed + seed, seeds=seeds, out=out)


def plan(settings: Settings, count: int) -> Shards:
    """Plan a run in `count` shards.

    Raises ValueError for a number that does not divide the learners into equal parts, each of whole settings or of a
    part of one setting, and for population based training, whose learners are not independent.
    """
    check.kind("settings", settings, Settings)
    _check_count(settings, count)
    if isinstance(settings, Sweep) and settings.pbt_every:
        raise ValueError(
            "shards: expected no pbt_every with them, got both; the members of a population are trained together"
        )
    assemble.program(settings)
    pinned = run_folder.partition(settings, settings.learners // count)
    return Shards(settings, count, pinned, circumstances(settings, pinned))


def of_sweep(planned: sweep_plan.Plan, count: int) -> Shards:
    """Plan a sweep in `count` shards. Raises ValueError for one of several programs, and the errors of `plan`."""
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


def circumstances(settings: Settings, pinned: compile.ThreadPartition | None) -> dict[str, Any]:
    """Return everything other than the settings that may change bits: versions, commit, device, processor and engine.

    With pinned groups, the number of threads does not change any. A run itself sets the modes of denormal numbers and
    of matrix products.
    """
    record = run_folder.provenance(settings, pinned)
    modes = {"flush_denormal", "float32_matmul_precision", *(["threads"] if pinned is not None else [])}
    engine = {name: x for name, x in record["engine"].items() if name not in modes}
    device = assemble.device(settings).type  # GPUs of one kind round alike
    return {**record, "device": device, "engine": {**engine, "cpu_capability": torch.backends.cpu.get_cpu_capability()}}


def differences(planned: Shards, device: str | None = None) -> list[str]:
    """List what differs here from the process that planned the run and may change bits.

    `device` is that of this process, by default that of the plan.
    """
    settings = dataclasses.replace(planned.settings, device=device or planned.settings.device)
    here = circumstances(settings, planned.pinned)
    return run_folder.differences_of(planned.circumstances, here)


def folder(path: Path, number: int) -> Path:
    """Return the folder of a shard."""
    return path / "shards" / name(number)


def name(number: int) -> str:
    """Return the name of the folder of a shard."""
    return f"{number:05}"


def is_sharded(path: Path) -> bool:
    """Return True if a folder is that of a sharded run."""
    return os.path.lexists(path / FILE)


# The file of a plan


def create(planned: Shards, base: Path = Path()) -> Path:
    """Create the folder of a sharded run in `base` with its plan, and return its absolute path.

    The first of several processes that start the same run makes the folder; the others use it.

    Raises ValueError if the folder has the plan of another run, is something else, or cannot be created.
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
        os.rename(part, path)  # the folder appears with its plan, or not at all
        files.sync(path.parent)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if is_sharded(path):
            return _joined(own, path)
        raise ValueError(f"out: expected a folder that can be created, got {str(path)!r}: {error.strerror}") from None
    return path.absolute()


def _joined(planned: Shards, path: Path) -> Path:
    """Return the folder of a run that is planned already. Raises ValueError, naming the fields, for another plan.

    The device may differ, as each process may have one of its own.
    """
    found = read(path)
    if found.shards != planned.shards:
        raise ValueError(f"shards: expected {found.shards}, as in {path / FILE}, got {planned.shards}")
    given, own = (dataclasses.replace(x.settings, device=found.settings.device) for x in (planned, found))
    if others := history.other_settings(to_json(given), to_json(own), free={"out"}):
        raise ValueError(f"out: expected the settings of {path / FILE}, got {others}; choose another --out")
    return path.absolute()


def _write(planned: Shards, path: Path) -> None:
    record = {
        "shards": planned.shards,
        "partition": partition_of(planned),
        "circumstances": planned.circumstances,
        "settings": to_json(planned.settings),
    }
    files.write(path / FILE, (json.dumps(record, indent=1) + "\n").encode())


def partition_of(planned: Shards) -> dict[str, int] | None:
    """Return the record of the groups that all shards have; None if they have none."""
    return None if planned.pinned is None else run_folder.partition_record(planned.pinned)


def read(path: Path) -> Shards:
    """Read `shards.json` of a sharded run. Raises ValueError if there is none or it is damaged."""
    try:
        return _parse(json.loads(files.read(path / FILE, 2**26)))
    except FileNotFoundError:
        raise ValueError(f"run: expected a sharded run, got {path} without {FILE}") from None
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"run: expected a sharded run, got {path} with a {FILE} that is invalid: {reason}") from None


def _parse(record: Mapping[str, Any]) -> Shards:
    """Return the plan from its record. Raises ValueError for parts that do not fit the settings."""
    settings, count, kept = from_json(record["settings"]), record["shards"], record["partition"]
    _check_count(settings, count)
    known = {"versions", "engine", "git", "device", "processor"}
    if not isinstance(record["circumstances"], dict) or not known <= record["circumstances"].keys():
        raise ValueError(f"expected circumstances of {', '.join(sorted(known))}, got others")
    size = settings.learners // count
    pinned = None
    if kept is not None:
        if not results.is_partition(kept) or size % kept["lanes"]:
            raise ValueError(f"expected groups that divide {size} learners, got {kept!r:.80}")
        pinned = compile.ThreadPartition(kept["lanes"], size // kept["lanes"], kept["threads"])
    return Shards(settings, count, pinned, record["circumstances"])
