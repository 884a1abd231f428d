"""Training of many seeds at once.

`iteration` is one training iteration as a pure function of the state of one seed; `host` is its counterpart for
environments that are stepped on the host. `loop` repeats it and yields reports. `off_policy`, `on_policy` and
`streaming` make the algorithms, and `evaluate` plays greedy episodes. `populations` drops, copies and perturbs members
of a state between training iterations.
"""

from fdqn.training import evaluate, host, off_policy, on_policy, populations, streaming
from fdqn.training.config import Config, hyper
from fdqn.training.draws import (
    bits_per_cycle,
    cycle_keys,
    cycle_numbers,
    draw,
    draw_numbered,
    example_update,
    interactions,
    noise,
    updates,
)
from fdqn.training.iteration import (
    act,
    check_cycle,
    collect,
    cycle,
    init,
    interact,
    learn,
    observe,
    scan,
    sync,
    update,
    vmapped,
)
from fdqn.training.loop import Cadence, Clock, Report, Stopped, cadence, run
from fdqn.training.metrics import (
    MetricsSnapshot,
    count_episodes,
    count_update,
    epsilon,
    random_steps,
    snapshot,
)
from fdqn.training.parametrized import parametrized
from fdqn.training.state import (
    CAUSES,
    Functions,
    Interaction,
    Metrics,
    Noise,
    Program,
    TrainState,
    UpdateNoise,
    check_program,
    policy,
)

__all__ = [
    "CAUSES", "Cadence", "Clock", "Config", "Functions", "Interaction", "Metrics", "MetricsSnapshot", "Noise",
    "Program", "Report", "Stopped", "TrainState", "UpdateNoise", "act", "bits_per_cycle", "cadence", "check_cycle",
    "check_program", "collect", "count_episodes", "count_update", "cycle", "cycle_keys", "cycle_numbers", "draw",
    "draw_numbered", "epsilon", "evaluate", "example_update", "host", "hyper", "init", "interact", "interactions",
    "learn", "noise", "observe", "off_policy", "on_policy", "parametrized", "policy", "populations", "random_steps",
    "run", "scan", "snapshot", "streaming", "sync", "update", "updates", "vmapped",
]  # fmt: skip
