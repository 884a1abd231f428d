"""Estimates of the arithmetic and the time of a run."""

import dataclasses
import json
from pathlib import Path

import pytest

from fdqn.cli import tables
from fdqn.experiment import assemble, cost, settings, sweep, sweep_plan

RECORD = Path(__file__).parents[1] / "benchmarks" / "records" / "family.jsonl"


def measured():
    """Return the recorded speed of every algorithm with 8 seeds on two cores."""
    records = [json.loads(line) for line in RECORD.read_text().splitlines()]
    newest = [record for record in records if record["part"] == "speed"][-1]
    return {row["algorithm"]: sorted(row["rates"]) for row in newest["results"] if row["seeds"] == 8}


@pytest.mark.parametrize("algorithm", ["dqn", "munchausen", "c51", "qr-dqn", "iqn", "rainbow", "pqn"])
def test_estimates_are_near_the_measured_speed(algorithm):
    rates = measured()[algorithm]
    given = settings.make({"algorithm": algorithm, "seeds": 8, "steps": 10**6})
    seconds = cost.seconds(given, cores=2) - cost.COMPILE_SECONDS
    took = assemble.updates(given) * 8 / rates[len(rates) // 2]
    assert 0.7 < seconds / took < 1.3, (seconds, took)


def test_number_of_products_of_a_network():
    """Count the products of DQN with one hidden layer: 10 rows to act, and a batch of 32 rows."""
    given = settings.make({"hidden": (16,), "batch_size": 32, "double": False})
    forward = 2 * (4 * 16 + 16 * 2)
    backward = 2 * (2 * 4 * 16 + 2 * 2 * 16) - 2 * 4 * 16  # no gradient of the observations
    expected = 10 * forward + 32 * (2 * forward + backward)
    assert cost.count(assemble.program(given)).products == expected


def test_estimates_are_proportional_to_seeds_and_cores():
    short = settings.make({"seeds": 2, "steps": 20_000})
    once = cost.seconds(short, 1) - cost.COMPILE_SECONDS
    more = cost.seconds(dataclasses.replace(short, seeds=6), 1) - cost.COMPILE_SECONDS
    assert more == pytest.approx(3 * once)
    assert cost.seconds(short, 2) - cost.COMPILE_SECONDS == pytest.approx(once / 2)


def test_estimates_of_a_plan_are_those_of_its_programs():
    plan = sweep_plan.plan({"seeds": 2, "device": "cpu"}, {"gamma": [0.9, 0.99], "hidden": [(8,), (120, 84)]})
    found = sweep.seconds(plan)
    assert found == tuple(cost.seconds(program.settings) for program in plan.programs)
    assert tables.plan_text(plan, [1, 2], found).splitlines()[1].endswith(tables.about_text(found[0]))
    assert sweep.seconds(sweep_plan.plan({"seeds": 2, "compile": False}, {"gamma": [0.9, 0.99]})) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "10 s"), (44, "40 s"), (100, "2 min"), (3600, "60 min"), (7200, "2.0 h")]
)
def test_times_are_rounded(seconds, text):
    assert tables.about_text(seconds) == f"about {text}"


def test_steps_of_host_environments_are_not_counted():
    pure, host = (settings.make({"env": env}) for env in ("cartpole", "gym:CartPole-v1"))
    assert cost.count(assemble.program(host)).products == cost.count(assemble.program(pure)).products
