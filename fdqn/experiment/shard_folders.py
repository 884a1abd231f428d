"""Read and write the folders of the shards of a run.

Shard 3 of the run in the folder RUN has these files:

    RUN/shards/00003/        run folder of shard 3
    RUN/shards/00003.claim/  which process works on it (`claims`)
    RUN/shards/00003.json    machines that worked on it and differ from the plan; only if there are any
"""

import contextlib
import json
from pathlib import Path

from fdqn.experiment import history, results, sweep_results
from fdqn.experiment.settings import Sweep, to_json
from fdqn.experiment.shard_plan import FILE, ShardPlan, folder, name, partition_record
from fdqn.storage import files


def is_finished(path: Path, planned: ShardPlan, number: int) -> bool:
    """Return True if a shard was trained to its last step and evaluated, or if all of its seeds have failed.

    Returns False if its files are damaged.
    """
    with contextlib.suppress(ValueError):
        return sweep_results.is_over(path / "shards", name(number), planned.settings)
    return False


def learners_text(planned: ShardPlan, number: int) -> str:
    """Describe the learners of a shard, such as `seeds 8 to 11` or `settings 2 to 3, seeds 0 to 7`."""
    given, own = planned.settings, planned.shard_settings(number, Path())
    seeds = _range("seed", own.seed, own.seeds)
    if not isinstance(own, Sweep):
        return seeds
    return f"{_range('setting', number * planned.size // given.seeds, len(own.varied))}, {seeds}"


def _range(word: str, first: int, count: int) -> str:
    return f"{word} {first}" if count == 1 else f"{word}s {first} to {first + count - 1}"


def check_shard(path: Path, planned: ShardPlan, number: int) -> None:
    """Raise ValueError, naming the fields, unless the run in the folder of a shard has its settings and groups."""
    own = folder(path, number)
    found, expected = results.read_settings(own), planned.shard_settings(number, path)
    if others := history.differing_settings(to_json(found), to_json(expected)):
        raise ValueError(f"{own}: expected the settings of {FILE}, got {others}")
    kept = results.read_config(own)["plan"].get("partition")
    if kept != partition_record(planned):
        raise ValueError(f"{own}: expected the partition {partition_record(planned)} of {FILE}, got {kept}")


def claim_folder(path: Path, number: int) -> Path:
    """Return the folder of the claims on a shard."""
    return path / "shards" / f"{name(number)}.claim"


def differing_machines(path: Path, number: int) -> dict[str, list[str]]:
    """Return the differences from the plan of each machine that worked on a shard and differs from it.

    Empty if no machine does, or if the record is damaged.
    """
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(files.read(path / "shards" / f"{name(number)}.json", 2**20))
        if isinstance(record, dict) and all(isinstance(x, list) for x in record.values()):
            return {str(host): [str(line) for line in lines] for host, lines in record.items()}
    return {}


def add_differing_machine(path: Path, number: int, host: str, lines: list[str]) -> None:
    """Record the differences from the plan of a machine that works on a shard."""
    record = differing_machines(path, number)
    merged = list(dict.fromkeys([*record.get(host, []), *lines]))
    file = path / "shards" / f"{name(number)}.json"
    files.write(file, (json.dumps(record | {host: merged}, indent=1) + "\n").encode())
