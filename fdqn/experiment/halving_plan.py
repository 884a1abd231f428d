"""Plans of successive halving: the rungs of a sweep, and `halving.json`, which lists them with their settings.

A rung is a part of training in which the same settings are trained. All settings are trained in the first rung, the
best 1/eta of them in the second, and so on. Rung i, counted from 0, is a run in the folder `i` of the sweep.

Settings are chosen by their training returns, which include exploration. Settings that explore longer, or that learn
slowly at first, may be dropped even if they would be the best at the end.

Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fdqn import check
from fdqn.experiment import assemble, sweep_plan
from fdqn.experiment.settings import Sweep, from_json, to_json
from fdqn.report import sweeps
from fdqn.storage import files
from fdqn.training import populations
from fdqn.training.populations import Rung

FILE = "halving.json"


class Halving(NamedTuple):
    """Successive halving of the settings of a sweep."""

    settings: Sweep
    """Settings of the first rung, which are those of the whole sweep."""
    eta: int
    """The best 1/eta of the settings of a rung are trained in the next one."""
    rungs: tuple[Rung, ...]
    setting_numbers: tuple[tuple[int, ...], ...]
    """Numbers of the settings of each rung that has started."""

    @property
    def names(self) -> tuple[str, ...]:
        """Fields of `Settings` that vary."""
        return tuple(self.settings.varied[0])

    @property
    def fraction(self) -> float:
        """Environment steps of all learners, as a fraction of those of the same sweep without halving."""
        sizes, ends = [rung.settings for rung in self.rungs], [0, *(rung.end for rung in self.rungs)]
        taken = sum(size * (ends[i + 1] - ends[i]) for i, size in enumerate(sizes))
        return taken / (sizes[0] * ends[-1])

    def rung_of(self, setting: int) -> tuple[int, int]:
        """Return the last rung in which a setting is trained, and the number of the setting in it."""
        i = max(i for i, numbers in enumerate(self.setting_numbers) if setting in numbers)
        return i, self.setting_numbers[i].index(setting)

    def dropped(self, setting: int) -> int | None:
        """Return the environment step at which a setting was dropped; None if it has not been."""
        i, _ = self.rung_of(setting)
        return self.rungs[i].end if i + 1 < len(self.setting_numbers) else None


def plan(whole: sweep_plan.Plan, eta: int) -> Halving:
    """Plan successive halving of the settings of a sweep.

    The ends of the rungs are those of `populations.rungs`, rounded up to reports.

    Raises ValueError for `eta` below 2, settings that one program cannot train, fewer than eta + 1 settings, which
    would need only one rung, fewer steps than the rungs need, and checkpoints without replay buffers.
    """
    check.count("halving", eta, 2)
    settings, count = whole.programs[0].settings, len(whole.values)
    if len(whole.programs) > 1:
        columns = zip(whole.names, zip(*whole.values, strict=True), strict=True)
        several = [name for name, column in columns if len(set(column)) > 1]
        shaping = [name for name in several if name not in assemble.free_names()] or several
        raise ValueError(
            f"halving: expected settings that one program can train, got {len(whole.programs)} programs for the values "
            f"of {', '.join(shaping)}; choose one value"
        )
    if count <= eta:
        raise ValueError(
            f"halving: expected at least {eta + 1} settings with eta = {eta}, got {count}; use more values"
        )
    if settings.pbt_every:
        raise ValueError("halving: expected none with pbt_every, got both; omit one of them")
    if not settings.save_replay:
        raise ValueError("save_replay: expected True with halving, whose rungs start from checkpoints, got False")
    made = dataclasses.replace(settings, rung_of=count)
    return Halving(made, eta, _rungs(made, eta), (tuple(range(count)),))


def _rungs(settings: Sweep, eta: int) -> tuple[Rung, ...]:
    """Return the rungs, which end at reports, after the first update and at different training iterations."""
    config, every = assemble.program(settings).config, settings.report_every
    *rungs, last = populations.rungs(len(settings.varied), settings.steps, eta)
    found = (*(rung._replace(end=math.ceil(rung.end / every) * every) for rung in rungs), last)
    iterations = [math.ceil(rung.end / config.env_steps) for rung in found]
    if any(end <= start for start, end in itertools.pairwise(iterations)):
        raise ValueError(
            f"steps: expected enough for {len(found)} rungs that end at reports, every {every:,} steps, got "
            f"{settings.steps:,}; use more steps or a lower report_every"
        )
    if found[0].end <= config.warmup_steps:
        raise ValueError(
            f"steps: expected enough for a first rung of more than the {config.warmup_steps:,} steps before the first "
            f"update, got {settings.steps:,} with a first rung of {found[0].end:,}; use more steps or fewer settings"
        )
    return found


def ranking(returns: NDArray[np.float64], failed: Sequence[bool]) -> list[int]:
    """Sort the settings of a rung, the best first, by their training returns [K, S] at its last report.

    The key is the interquartile mean of the seeds with a return. Settings with a failed seed, for which `failed` [K] is
    True, come after all others, because the mean of their other seeds is biased upwards. In both groups, settings
    without a return come last. Ties keep their order.
    """
    means = [float(estimate.iqm) for estimate in sweeps.estimates(returns)]

    def order(number: int) -> tuple[bool, bool, float]:
        mean = means[number]
        return bool(failed[number]), math.isnan(mean), 0.0 if math.isnan(mean) else -mean

    return sorted(range(len(means)), key=order)


def survivors(returns: NDArray[np.float64], failed: Sequence[bool], eta: int) -> list[int]:
    """Return the numbers in the rung of its best 1/eta settings, in increasing order.

    Arguments are those of `ranking`. Raises ValueError if no seed has finished an episode.
    """
    if not np.isfinite(returns).any():
        raise ValueError("steps: expected a finished episode before the end of a rung, got none; train for more steps")
    scores = torch.empty(len(returns), dtype=torch.float64)
    scores[torch.tensor(ranking(returns, failed))] = torch.arange(len(returns), 0, -1, dtype=torch.float64)
    return populations.successive_halving(scores, eta).tolist()


def described(planned: Halving, number: int) -> str:
    """Describe a rung: the numbers of settings, seeds and learners, and the step at which it ends."""
    rung, seeds = planned.rungs[number], planned.settings.seeds
    learners = f"{rung.settings:,} settings x {seeds:,} seed{'s' * (seeds != 1)} = {rung.settings * seeds:,} learners"
    return f"{learners}, to step {rung.end:,}"


# The file of a plan


def write(planned: Halving, path: Path) -> None:
    """Write `halving.json` of a plan to the folder of the sweep."""
    record = {
        "eta": planned.eta,
        "rungs": [
            {"settings": rung.settings, "end": rung.end, "numbers": numbers}
            for rung, numbers in itertools.zip_longest(planned.rungs, planned.setting_numbers)
        ],
        "settings": to_json(planned.settings),
    }
    files.write(path / FILE, (json.dumps(record, indent=1) + "\n").encode())


def record(planned: Halving) -> dict[str, Any]:
    """Return the rungs as a record for JSON."""
    rungs = [{"settings": rung.settings, "end": rung.end} for rung in planned.rungs]
    return {"eta": planned.eta, "rungs": rungs}


def read(path: Path) -> Halving:
    """Read `halving.json` of the folder of a sweep. Raises ValueError if it is damaged."""
    try:
        return _parse(json.loads(files.read(path / FILE, 2**26)))
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"sweep: expected a sweep, got {path} with a {FILE} that is invalid: {reason}") from None


def _parse(record: Mapping[str, Any]) -> Halving:
    """Return the plan from its record. Raises ValueError for rungs that do not fit the settings."""
    settings, eta, rungs = from_json(record["settings"]), record["eta"], record["rungs"]
    if not isinstance(settings, Sweep) or settings.rung_of != len(settings.varied):
        raise ValueError("expected the settings of a first rung, got others")
    check.count("eta", eta, 2)
    expected = _rungs_of(settings, eta)
    ends = [rung["end"] for rung in rungs]
    if [rung["settings"] for rung in rungs] != expected or any(type(end) is not int for end in ends):
        raise ValueError(f"expected rungs of {expected} settings with their ends, got {rungs!r:.80}")
    numbers = [tuple(rung["numbers"]) for rung in rungs if rung["numbers"] is not None]
    before = tuple(range(len(settings.varied)))
    for i, own in enumerate(numbers):
        if len(own) != expected[i] or list(own) != sorted(set(own) & set(before)):
            raise ValueError(f"expected {expected[i]} settings of the rung before, got {list(own)}")
        before = own
    if not numbers or sorted({0, *ends}) != [0, *ends] or ends[-1] != settings.steps:
        raise ValueError(f"expected ends up to {settings.steps}, got {ends}")
    return Halving(settings, eta, tuple(map(Rung, expected, ends)), tuple(numbers))


def _rungs_of(settings: Sweep, eta: int) -> list[int]:
    """Return the number of settings of each rung."""
    return [rung.settings for rung in populations.rungs(len(settings.varied), settings.steps, eta)]
