"""Results of the command as tables on standard output."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdqn.cli import terminal
from fdqn.experiment.progress import bytes_text
from fdqn.experiment.settings import storage, task

if TYPE_CHECKING:
    from fdqn.experiment import halving_plan, population, results, shard_plan, sweep_plan
    from fdqn.experiment.settings import Sweep
    from fdqn.report import sweeps

# Number of seeds shown in a table.
_ROWS = 32

# Number of settings shown in the ranking of a sweep.
_SETTINGS = 20


def print_summary(path: Path, summary: dict[str, Any]) -> None:
    """Print the results of a run: a row per seed, the interquartile means, speed and the folder."""
    columns = {"greedy": summary["final_return"], "training": summary["train_return"]}
    if "gymnasium_return" in summary:
        columns[f"Gymnasium's {summary['gymnasium_return']['env']}"] = summary["gymnasium_return"]
    print_seeds(
        f"{task(summary)}, mean return per seed after {summary['steps']:,} steps",
        summary["seeds"],
        summary["failed_seeds"],
        columns,
    )
    out = terminal.results()
    if summary["failed_seeds"]:
        out.print(f"failed seeds, excluded from the means: {summary['failed_seeds']}")
    rates = (summary["seed_updates_per_second"], summary["env_steps_per_second"])
    if None not in rates:
        out.print(f"{rates[0]:,.0f} seed-updates/s, {rates[1]:,.0f} environment steps/s over all seeds")
    out.print(f"{summary['wall_seconds']:.1f} s in total, {summary['compile_seconds']:.1f} s of it compiling")
    out.print(f"run folder {path}, picture {path / 'curve.png'}", soft_wrap=True)


def print_seeds(title: str, seeds: list[int], failed: list[int], columns: dict[str, dict[str, Any]]) -> None:
    """Print mean returns, a row per seed and a column per record of `results.returns_record`, and their summary."""
    from rich.table import Table

    from fdqn.experiment import results

    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    table.add_column("seed", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    for i, seed in enumerate(seeds[:_ROWS]):
        values = [record["per_seed"][i] for record in columns.values()]
        missing = "failed" if seed in failed else "-"
        table.add_row(str(seed), *(missing if x is None else f"{x:.1f}" for x in values))
    if len(seeds) > _ROWS:
        table.add_row("...", *(f"and {len(seeds) - _ROWS} more" for _ in columns))
    table.add_section()
    records = list(columns.values())
    table.add_row(results.interval_heading(records), *map(results.interval_text, records), style="bold")
    unfinished = [results.unfinished_text(record) for record in records]
    if any(unfinished):
        table.add_row("cut", *unfinished)
    out = terminal.results()
    out.print(table)
    if any(unfinished):
        out.print(
            "cut: episodes that did not end within the step limit; raise it with --evaluate-steps", soft_wrap=True
        )


def print_sizes(record: dict[str, Any]) -> None:
    """Print the layers of a network, a row each, and the sizes of `sizes.describe`."""
    from rich.table import Table

    shape = ", ".join(map(str, record["observations"]))
    title = f"{record['algorithm']} on {task(record)}: {record['dtype']} [{shape}], {record['actions']} actions"
    table = Table("layer", "kind", title=title, title_justify="left", box=None, header_style="bold")
    for name in ("output", "parameters", "bytes"):
        table.add_column(name, justify="right")
    table.add_column("shapes", overflow="fold")
    for layer in record["layers"]:
        shapes = " ".join(f"{name}{shape}" for name, shape in layer["shapes"].items())
        size = f"{layer['bytes']:,}"
        table.add_row(layer["name"], layer["kind"], str(layer["output"]), f"{layer['parameters']:,}", size, shapes)
    table.add_section()
    table.add_row("total", "", "", f"{record['parameters']:,}", f"{record['bytes']['parameters']:,}", style="bold")
    out = terminal.results()
    out.print(table)
    size, learners = record["bytes"], record["learners"]
    sizes = Table("memory", box=None, header_style="bold")
    sizes.add_column("one seed", justify="right")
    sizes.add_column(f"all {learners:,}", justify="right")
    stored = f"{record['replay_rows']:,} row{'s' * (record['replay_rows'] != 1)}"
    rows = {**_MEMORY, "replay": f"{storage(record['algorithm'])}, {stored}"}
    for name, text in rows.items():
        sizes.add_row(text, bytes_text(size[name]), bytes_text(learners * size[name]))
    sizes.add_section()
    sizes.add_row("total", bytes_text(size["seed"]), bytes_text(size["all"]), style="bold")
    out.print(sizes)
    updates = f"{record['updates']:,} updates of each of {learners:,} learners"
    total = _flop(record["flop"] * record["updates"] * learners)
    out.print(f"{_flop(record['flop'])} per update, {total} for {updates}")


_MEMORY = {
    "parameters": "parameters",
    "target": "target network",
    "optimizer": "optimizer state",
    "replay": "replay",
    "other": "environments and metrics",
}


def _flop(count: float) -> str:
    """Format a number of floating-point operations."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if count < 1000 or unit == "P":
            return f"{count:,.1f} {unit}FLOP" if unit else f"{count:,.0f} FLOP"
        count /= 1000
    raise AssertionError("unreachable")


def print_comparison(read: "list[results.Run]", picture: Path) -> None:
    """Print the results of several runs, a row each."""
    from rich.table import Table

    from fdqn.experiment import results

    table = Table("run", "env", box=None, header_style="bold")
    headings = [
        f"{name} {results.interval_heading([run.summary[key] for run in read])}"
        for name, key in (("greedy", "final_return"), ("training", "train_return"))
    ]
    for name in ("seeds", "failed", "steps", *headings, "seed-updates/s"):
        table.add_column(name, justify="right")
    for run in read:
        summary = run.summary
        rate = summary["seed_updates_per_second"]
        table.add_row(
            str(run.path),
            task(summary),
            str(len(summary["seeds"])),
            str(len(summary["failed_seeds"])),
            f"{summary['steps']:,}",
            results.interval_text(summary["final_return"]),
            results.interval_text(summary["train_return"]),
            f"{rate:,.0f}" if rate is not None and math.isfinite(rate) else "",
        )
    out = terminal.results()
    out.print(table)
    out.print(f"picture {picture}", soft_wrap=True)


def print_ranking(path: Path, names: Sequence[str], rows: "Sequence[sweeps.Row]", measure: str = "return") -> None:
    """Print the settings of a sweep from `sweeps.ranking`, the best first, and explain how reliable the order is."""
    from rich.table import Table

    from fdqn.experiment import results
    from fdqn.report import sweeps

    table = Table(title=f"settings by {measure}", title_justify="left", box=None, header_style="bold")
    heading = results.interval_heading([row.estimate._asdict() for row in rows])
    marked = any(row.in_best_set is not None for row in rows)
    halved = any(row.dropped is not None for row in rows)
    for name in ("rank", *names, "seeds", "failed", heading, *["in best set"] * marked, *["dropped"] * halved):
        table.add_column(name, justify="right", overflow="fold")
    digits = sweeps.decimals([float(row.estimate.iqm) for row in rows])
    for row in rows[:_SETTINGS]:
        mean = f"{float(row.estimate.iqm):.{digits}f} {sweeps.interval_text(row.estimate, digits)}".strip()
        table.add_row(
            "-" if row.rank is None else str(row.rank),
            *map(sweeps.text, row.values),
            str(row.seeds),
            str(row.failed),
            mean if row.rank is not None else "failed" if row.failed == row.seeds else "no return",
            *["yes" if row.in_best_set else ""] * marked,
            *["" if row.dropped is None else f"at {row.dropped:,}"] * halved,
        )
    out = terminal.results()
    out.print(table)
    if hidden := rows[_SETTINGS:]:
        members = sum(bool(row.in_best_set) for row in hidden)
        of_them = f", {members} of them in the best set" if members else ""
        out.print(f"... and {len(hidden)} more{of_them} (settings.csv)")
    if halved:
        out.print("Dropped settings have the training returns of their last report.", soft_wrap=True)
    if any(0 < row.failed < row.seeds for row in rows):
        out.print("Failed seeds are excluded from the means, which favours settings with failed seeds.", soft_wrap=True)
    out.print(sweeps.explanation(rows, str(path)), soft_wrap=True)


def print_population(found: "population.Population") -> None:
    """Print the best member of each seed of population based training: its final hyper-parameters and its returns."""
    from rich.table import Table

    from fdqn.experiment import results
    from fdqn.report import sweeps

    names, best, estimate = found.settings.varied[0], found.best(), found.estimate()
    title = f"{task(found.settings)}, best member of each seed after {found.summary['steps']:,} steps"
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in ("seed", "learner", *names, "training", found.measure):
        table.add_column(name, justify="right", overflow="fold")
    for member in best[:_ROWS]:
        values = [sweeps.text(member["values"][name]) if member["values"] else "-" for name in names]
        returns = ["-" if x is None else f"{x:.1f}" for x in (member["train_return"], member["return"])]
        table.add_row(
            str(member["seed"]), "failed" if member["learner"] is None else str(member["learner"]), *values, *returns
        )
    if len(best) > _ROWS:
        table.add_row("...", f"and {len(best) - _ROWS} more")
    table.add_section()
    table.add_row(
        results.interval_heading([estimate]), "", *[""] * len(names), "", results.interval_text(estimate), style="bold"
    )
    out = terminal.results()
    out.print(table)
    out.print(
        f"{found.copies} copies in {len(found.steps)} steps of population based training (population.csv). The best "
        "member of a seed is the one with the highest training return, which is therefore biased upwards; its "
        f"{found.measure} return is not. Hyper-parameters are those at the end of training and were different before.",
        soft_wrap=True,
    )


def plan_text(plan: "sweep_plan.Plan", sizes: Sequence[int], seconds: Sequence[float] | None = None) -> str:
    """Describe the programs of a sweep, a line each after the first if there are several.

    `sizes` are their bytes, `seconds` their estimated times.
    """
    from fdqn.experiment.sweep_plan import counted, described

    seeds, count = plan.programs[0].settings.seeds, len(plan.programs)
    several = f"in {count} programs, one after the other" if count > 1 else "in one program"
    size, (drawn, different) = bytes_text(max(sizes)), plan.drawn
    fewer = f" ({drawn:,} drawn, {different:,} different)" if different < drawn else ""
    lines = [
        f"sweep of {counted(len(plan.values), 'setting')}{fewer} x {counted(seeds, 'seed')} = "
        f"{counted(plan.learners, 'learner')} {several}; "
        f"{'at most ' * (count > 1)}{size}{'' if seconds is None else f', {about_text(sum(seconds))}'}"
    ]
    if count > 1:
        times = [""] * count if seconds is None else [f", {about_text(time)}" for time in seconds]
        lines += [f"  {i + 1}: {described(one.settings)}{times[i]}" for i, one in enumerate(plan.programs)]
    lines += [evolution_text(one.settings) for one in plan.programs if one.settings.pbt_every]
    return "\n".join(lines)


def shards_text(planned: "shard_plan.ShardPlan", path: Path) -> str:
    """Describe the shards of a run, and how more processes take part."""
    from fdqn.experiment import shard_folders
    from fdqn.experiment.sweep_plan import counted

    first, where = shard_folders.learners_text(planned, 0), shlex.quote(str(path))
    return (
        f"{counted(planned.shards, 'shard')} of {counted(planned.size, 'learner')} (shard 0: {first}) in {path}; to "
        f"train them in more processes, run this command with --out {where} in each; fdqn resume {where} trains those "
        "that are left"
    )


def evolution_text(settings: "Sweep") -> str:
    """Describe the population based training of a sweep: its period and its bounds."""
    ranges = ", ".join(f"{name} in [{low:g}, {high:g}]" for name, (low, high) in settings.bounds.items())
    return (
        f"population based training every {settings.pbt_every:,} steps, each seed a population of "
        f"{len(settings.varied)} members: {ranges}"
    )


def halving_text(planned: "halving_plan.Halving", size: int, seconds: Sequence[float] | None = None) -> str:
    """Describe the rungs of a sweep with halving, a line each after the first.

    `size` are its bytes, `seconds` the estimated times of the rungs.
    """
    from fdqn.experiment.halving_plan import described

    time = "" if seconds is None else f", {about_text(sum(seconds))}"
    lines = [
        f"successive halving with eta = {planned.eta} in {len(planned.rungs)} rungs; "
        f"{planned.fraction:.0%} of the steps of the whole sweep; {bytes_text(size)}{time}"
    ]
    times = [""] * len(planned.rungs) if seconds is None else [f", {about_text(time)}" for time in seconds]
    lines += [f"  {i + 1}: {described(planned, i)}{time}" for i, time in enumerate(times)]
    return "\n".join(lines)


def about_text(seconds: float) -> str:
    """Format an estimate of a time, such as `about 3 min`."""
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def print_arms(record: dict[str, Any], notes: list[str], picture: Path) -> None:
    """Print a comparison of `comparing.compare`: a row per arm, and sentences."""
    from rich.table import Table

    from fdqn.experiment import comparison_text

    optimum = "optimality_gap" in record["arms"][0]
    table = Table(box=None, header_style="bold")
    table.add_column("arm", overflow="fold")
    p = "p" if len(record["comparisons"]) == 1 else "p (Holm)"
    gap = ["optimality gap"] if optimum else []
    for name in ("seeds", "failed", "IQM", "mean", *gap, "IQM difference", "mean difference", "P(better)", p):
        table.add_column(name, justify="right")
    digits = comparison_text.decimals([x for arm in record["arms"] for x in arm["per_seed"] if x is not None])
    for arm, compared in zip(record["arms"], [None, *record["comparisons"]], strict=True):
        own = [arm["iqm"], arm["mean"], *([arm["optimality_gap"]] if optimum else [])]
        cells = [comparison_text.estimate_text(x, digits) for x in own]
        if compared is None:
            cells += ["baseline", "", "", ""]
        else:
            cells += [comparison_text.estimate_text(compared[x], digits, signed=True) for x in ("iqm", "mean")]
            cells += [
                comparison_text.estimate_text(compared["improvement"], 2),
                comparison_text.p_text(compared["p_adjusted"]),
            ]
        table.add_row(arm["name"], str(arm["seeds"]), str(arm["failed"]), *cells)
    out = terminal.results()
    out.print(table)
    percent = comparison_text.percent_text(record["confidence"])
    out.print(
        f"IQM: interquartile mean; [low, high]: {percent} intervals, from 5 seeds on; differences from the first arm; "
        "P(better): probability that a seed of the arm has a higher return than one of the first; p: permutation test "
        f"of the difference of the means{'' if p == 'p' else ', adjusted by Holm'}",
        soft_wrap=True,
    )
    for sentence in (*notes, *comparison_text.conclusions(record)):
        out.print(sentence, soft_wrap=True)
    out.print(f"picture {picture}", soft_wrap=True)


def print_presets(rows: list[dict[str, Any]]) -> None:
    """Print the rows of `presets.rows`, and the command that trains a preset."""
    from rich.table import Table

    from fdqn.experiment import presets

    table = Table("preset", "environment", "algorithm", box=None, header_style="bold")
    for name in ("steps", "published", "fdqn", "seeds", "time"):
        table.add_column(name, justify="right")
    for row in rows:
        ours = row["ours"]
        table.add_row(
            row["preset"],
            row["env"],
            row["algorithm"],
            f"{row['steps']:,}",
            presets.published_text(row),
            presets.ours_text(row),
            "-" if ours is None else str(ours["seeds"]),
            presets.seconds_text(row),
        )
    out = terminal.results()
    out.print(table)
    out.print(
        "published: mean +- standard deviation; fdqn: mean over the seeds with its 95% interval. Returns are those of "
        "the last 100 training episodes; for nature and zoo-*, of greedy episodes. fdqn presets --json adds sources "
        "and protocols.",
        soft_wrap=True,
    )
    out.print("train with: fdqn train --preset PRESET --env ENVIRONMENT --seeds SEEDS", soft_wrap=True)
