"""Events of a run, in the order in which `session.train` and `session.resume` emit them.

    Prepared, Started, Training, (Compiled | Checkpointed | SeedFailed | Evaluated | Reported)*,
    (EvaluationStarted, EvaluationProgress*, EvaluationEnded, Evaluated?)*, Finished?, Stopped?

`Training` and the events on its line are left out where only an interrupted evaluation is repeated. A sharded run emits
the events of each shard; `ray_shards.train` emits Started, ShardsReported*, Stopped?.
A `Notice` may be emitted at any point. The function that receives the events runs in the thread of the run, between
training iterations. If it raises, the run ends with that exception; the files in the run folder are complete, and
`session.resume` continues from the last checkpoint. Arrays are NumPy copies, which a receiver may keep.

.. include:: ../docs/callbacks.md
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fdqn.experiment.settings import Settings

if TYPE_CHECKING:  # numpy is slow to import; pdoc finds it by its full name
    import numpy
    import numpy.typing


class Prepared(NamedTuple):
    """The settings are valid and the memory of all seeds is allocated. Nothing is written yet."""

    settings: Settings
    device: str
    state_bytes: int
    """Bytes of all seeds: parameters, optimizer state, replay, and activations of an update."""
    capacity: int
    """Rows per seed: those of the replay, or of the rollout of an algorithm without replay."""
    replay_bytes: int
    """Bytes of the replay or rollout of one seed."""


class Started(NamedTuple):
    """The run folder exists and is locked against other writers."""

    path: Path
    settings: Settings
    step: int
    """Environment steps per seed already taken: 0, or those of the checkpoint from which the run continues."""
    steps: int
    """Planned environment steps per seed."""


class Training(NamedTuple):
    """The first training iteration is next."""

    compiling: bool
    """True if the step functions are compiled when they are first called."""


class Compiled(NamedTuple):
    """A step function was compiled and called for the first time."""

    function: str
    """Its name in `training.Functions`."""
    seconds: float


class Checkpointed(NamedTuple):
    """A checkpoint was written."""

    path: Path
    """Folder of the checkpoint."""
    step: int


class SeedFailed(NamedTuple):
    """A seed stopped learning: a loss, gradient or parameter was not finite, or its environment failed."""

    seed: int
    """Seed, or number of the learner of a sweep."""
    step: int
    """Environment step of the failure."""
    cause: str
    """One of `training.CAUSES`."""
    reason: str
    """Description of the cause, with the error of the environment if it is known."""
    name: str
    """Name of the seed, such as `seed 3` or, in a sweep, `setting 2, seed 3`."""


class Evaluated(NamedTuple):
    """Greedy episodes were played."""

    step: int
    """Environment steps per seed that the evaluated parameters were trained for."""
    env: str
    returns: "numpy.typing.NDArray[numpy.float64]"
    """[S, episodes], NaN where an environment failed."""


class Reported(NamedTuple):
    """Metrics of all seeds, [S] each. Means are over the time since the previous report, NaN if it has no data."""

    step: int
    """Environment steps per seed."""
    steps: int
    """Planned environment steps per seed."""
    seconds: float
    """Wall-clock seconds since the start of the run, earlier processes included."""
    updates: "numpy.typing.NDArray[numpy.int64]"
    """Updates since the start."""
    episodes: "numpy.typing.NDArray[numpy.int64]"
    """Episodes that have ended since the start."""
    returns: "numpy.typing.NDArray[numpy.float64]"
    """Mean return of the training episodes that ended."""
    lengths: "numpy.typing.NDArray[numpy.float64]"
    """Mean length of these episodes in environment steps."""
    loss: "numpy.typing.NDArray[numpy.float64]"
    q: "numpy.typing.NDArray[numpy.float64]"
    """Mean value of the actions in the batches."""
    grad_norm: "numpy.typing.NDArray[numpy.float64]"
    """Mean gradient norm before clipping."""
    epsilon: "numpy.typing.NDArray[numpy.float64]"
    learning_rate: "numpy.typing.NDArray[numpy.float64]"
    """Learning rate of the next update."""
    failed: "numpy.typing.NDArray[numpy.bool_]"
    updates_per_second: float
    """Updates of all seeds per second of learning so far; NaN before the first."""
    planned: bool = True
    """False for a report of a stopped run between two planned ones; the rows of an uninterrupted run do not have it."""


class EvaluationStarted(NamedTuple):
    """The evaluation after training starts."""

    env: str
    episodes: int
    """Episodes of all seeds."""
    limit: int
    """Step limit of an episode."""


class EvaluationProgress(NamedTuple):
    """The evaluation after training advanced."""

    ended: int
    """Episodes that have ended, over all seeds."""
    step: int
    """Steps played of each episode."""


class EvaluationEnded(NamedTuple):
    """The evaluation after training is over: finished, failed or interrupted."""


class ShardProgress(NamedTuple):
    """Progress of a shard that a task of Ray trains."""

    number: int
    state: str
    """`starting`, `compiling`, `training`, `evaluating`, `finished` or `stopped`."""
    step: int
    """Environment steps per seed at the last report."""
    steps: int
    host: str
    score: float | None
    """Mean training return of its seeds at the last report; None if no episode has ended."""


class ShardsReported(NamedTuple):
    """The progress of all shards that tasks of Ray train, about every second."""

    rows: tuple[ShardProgress, ...]
    """Shards that have started."""
    shards: int
    """Number of shards of the run."""


class Notice(NamedTuple):
    """A message to display, such as a difference from the process that started a resumed run."""

    text: str


class Finished(NamedTuple):
    """Parameters, learning curve and summary are written, for a run that was stopped early too."""

    path: Path
    summary: dict[str, Any]
    """Content of `summary.json`."""


class Stopped(NamedTuple):
    """The run was stopped by request. Its files are complete."""

    path: Path
    step: int
    steps: int
    """Planned environment steps per seed."""


Event = (
    Prepared
    | Started
    | Training
    | Compiled
    | Checkpointed
    | SeedFailed
    | Evaluated
    | Reported
    | EvaluationStarted
    | EvaluationProgress
    | EvaluationEnded
    | ShardsReported
    | Notice
    | Finished
    | Stopped
)

OnEvent = Callable[[Event], None]
"""Receive an event of a run."""


def ignore(event: Event) -> None:
    """Do nothing with an event."""
