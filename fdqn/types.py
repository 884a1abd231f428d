"""The shared words. Read this first.

Shapes are written `[...]` for free leading axes (batch, environments or both), `*O` for the axes of one observation,
`A` for actions. The lane axis `[S]` of independent learners is added outside, by one `vmap`, and appears nowhere here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Params = dict[str, Tensor]
"""Parameters of a network: a plain dict with the names of the `nn.Module`'s `state_dict`."""

Schedule = Callable[[Tensor], Tensor | float]
"""A value as a function of a tensor step [...]; made with `functools.partial` from `schedules`."""

Scalar = float | Tensor
"""A Python number or a [] tensor; a tensor may differ between lanes."""


class Step(NamedTuple):
    """What the world answers to `reset` and `step`.

    After an end (`terminated` or `truncated`) `obs` starts the next episode while `next_obs` still shows how the last
    one ended. After a reset `next_obs` is `obs`, `reward` is 0 and nothing has ended.
    """

    obs: Tensor
    """[..., *O] to act on next; after an end, the first of a new episode."""
    legal: Tensor
    """[..., A] bool, what may be done at `obs`."""
    next_obs: Tensor
    """[..., *O] what the action led to, never a reset observation."""
    next_legal: Tensor
    """[..., A] bool, what may be done at `next_obs`."""
    reward: Tensor
    """[...] float."""
    terminated: Tensor
    """[...] bool, the task ended: there is no value after this."""
    truncated: Tensor
    """[...] bool, we stopped looking: the value continues."""


class Transition(NamedTuple):
    """What replay stores. Gamma is applied in the loss, so replay does not know it."""

    obs: Tensor
    """[..., *O]."""
    action: Tensor
    """[...] int64."""
    reward: Tensor
    """[...] float."""
    discount: Tensor
    """[...] float, 0 if the task ended here, else 1 (also at a time limit). Other numbers multiply gamma too."""
    next_obs: Tensor
    """[..., *O]."""
    next_legal: Tensor
    """[..., A] bool."""


class EnvSpec(NamedTuple):
    """What is constant for the life of an environment."""

    obs_shape: tuple[int, ...]
    obs_dtype: torch.dtype
    """Of torch.bool, replay packs eight to a byte."""
    actions: int
    noise: int
    """K, the uniforms that each reset and each step take."""
    time_limit: int
    """Steps after which an episode is truncated."""
    stack: int = 1
    """Above 1: an observation shows the last so many frames of its episode along its first axis, the oldest first and
    zeros before the first. Replay stores each once."""
    endless: bool = False
    """True if episodes have no time limit; by default `time_limit` then bounds evaluation episodes only."""


class Env(NamedTuple):
    """An environment as two pure functions; it restarts by itself after an end.

    `reset(u [..., K]) -> (state, Step)` and `step(state, action [...], u [..., K]) -> (state, Step)`.
    """

    reset: Callable[[Tensor], tuple[Any, Step]]
    step: Callable[[Any, Tensor, Tensor], tuple[Any, Step]]
    spec: EnvSpec


class HostStep(NamedTuple):
    """One time step of every environment of an open `HostEnv`, as CPU tensors over seeds S and environments E."""

    step: Step
    """With leading axes [S, E]."""
    valid: Tensor
    """[S, E] bool; False where the environment only started a new episode instead of taking the action."""
    alive: Tensor
    """[S] bool; False for a seed whose environments have failed."""
    life_lost: Tensor
    """[S, E] bool; True where the episode lost a life and continues. All False if the environment counts no lives."""


class HostVectorEnv(Protocol):
    """An open host environment: E environments for each of S seeds.

    A seed whose environments raise an error or return an invalid value must not stop the other seeds: add it to
    `broken`, return zeros for it, and set `alive` to False. If no seed is left, raise ValueError.
    """

    @property
    def broken(self) -> dict[int, str]:
        """Error message by seed position in [0, S), for each seed whose environments have failed; empty at first."""

    def reset(self, seeds: list[list[int]]) -> Step:
        """Start a new episode in every environment. Shapes: seeds [S][E], integers in [0, 2**32); result [S, E]."""

    def step(self, actions: NDArray[np.int64]) -> HostStep:
        """Step every environment once; an ended episode restarts by itself. Shapes: actions [S, E]; result [S, E]."""

    def close(self) -> None:
        """Release all resources, also those of failed seeds."""


class RecordingEnv(HostVectorEnv, Protocol):
    """An open host environment with one environment for each seed that renders it."""

    def frames(self) -> list[Any]:
        """Render each seed's environment as it was after its last step, before any restart, or after its first reset.

        Returns S pictures, uint8 [H, W, 3], or None for a failed seed.
        """


class HostEnv(NamedTuple):
    """Environments with state of their own that are stepped on the host, such as those of Gymnasium."""

    open: Callable[[int, int], HostVectorEnv]
    """`open(seeds, num_envs)` makes `num_envs` environments for each of `seeds` seeds."""
    spec: EnvSpec
    record: Callable[[int], RecordingEnv] | None = None
    """`record(seeds)` is `open(seeds, 1)` with rendering, or None if the environment does not render."""
    counts_lives: Callable[[], bool] = bool
    """Return True if `HostStep.life_lost` is meaningful. The call may open an environment to find out."""


World = HostEnv
"""Former name of `HostEnv`."""
Answer = HostStep
"""Former name of `HostStep`."""


class LossOutput(NamedTuple):
    """Per-row results of an agent's loss, not reduced. The update takes the mean, weighted by the buffer's weights."""

    loss: Tensor
    """[B]."""
    q: Tensor
    """[B], values of the actions taken, for reports."""
    priority: Tensor
    """[B], at least 0: how much there is to learn from each row, such as the size of its TD error."""


class NoiseShapes(NamedTuple):
    """Shapes of the uniforms in [0, 1) that an agent takes; `()` where it takes none."""

    values: tuple[int, ...] = ()
    loss: tuple[int, ...] = ()


Uniforms = Tensor | tuple[()]
"""Uniforms in [0, 1) of a shape that an agent states, or `()` for none."""


def no_noise(rows: int) -> NoiseShapes:
    """Noise of agents that take none, for any number of rows."""
    return NoiseShapes()


class Hyper(NamedTuple):
    """Hyper-parameters that may differ between seeds: one [] float tensor each. A new value recompiles nothing."""

    learning_rate: Tensor
    gamma: Tensor
    """Discount per step, in [0, 1]."""
    epsilon_start: Tensor
    epsilon_end: Tensor
    epsilon_steps: Tensor
    """Environment steps over which epsilon goes from start to end."""
    tau: Tensor
    """Fraction of the online parameters in a soft target copy, in (0, 1]."""
    max_grad_norm: Tensor
    """Global gradient norm above which gradients are scaled down; infinity for never."""


class Agent(NamedTuple):
    """A value-based learning rule for one seed, bound to its network.

    Agents are made by functions such as `dqn.agent(network, double=True)`. For evaluation `values` is called with `()`
    in place of noise and must then be deterministic.
    """

    init: Callable[[Tensor], Params]
    """`init(key [..., 2]) -> params [...]`."""
    values: Callable[[Params, Tensor, Uniforms], Tensor]
    """`values(params, obs [..., *O], noise) -> q [..., A]`, which acting and evaluation compare."""
    loss: Callable[[Params, Params, Transition, Hyper, Uniforms], LossOutput]
    """`loss(params, target_params, batch [B, ...], hyper, noise) -> LossOutput`."""
    noise: Callable[[int], NoiseShapes] = no_noise
    """`noise(rows)`: shapes of the uniforms for `values` and `loss` of that many rows."""


class Sample(NamedTuple):
    """Rows drawn from a buffer."""

    batch: Transition
    """Leaves [B, ...]."""
    indices: Tensor
    """[B] int64, where the rows are, for `Buffer.update`."""
    weight: Tensor
    """[B] float, importance weights of the rows; 1 where all rows are drawn with the same probability."""


class Added(NamedTuple):
    """Rows that `Buffer.add` wrote. A wrapper such as n-step returns may write others than it was given."""

    batch: Transition
    """Leaves [E, ...]."""
    number: Tensor
    """[E] int64: row i is the `number[i]`-th ever written, counted from 0."""
    valid: Tensor
    """[E] bool, False for rows that were not written."""


class Buffer(NamedTuple):
    """Storage of transitions of one seed, as functions of its state. `ring` and `prioritized` make one; `n_step`,
    `frames` and `packing` wrap one."""

    init: Callable[[Transition], Any]
    """`init(example) -> state`, for rows like `example`, a transition without leading axes."""
    add: Callable[[Any, Transition, Tensor, Tensor | None, Tensor], tuple[Any, Added]]
    """`add(state, batch [E, ...], ended [E], valid [E] or None, gamma []) -> (state, added)`, after one step of every
    environment. `ended`: an episode ended with the step. `valid`: a step was taken at all; None means everywhere."""
    sample: Callable[[Any, Tensor, Tensor | int], Sample]
    """`sample(state, bits [B], oldest) -> Sample` of rows with a number of at least `oldest`; 0 for all rows. `bits`:
    int64 random integers in [0, 2**32)."""
    update: Callable[[Any, Tensor, Tensor], Any]
    """`update(state, indices [B], priority [B]) -> state`; the identity where rows have no priorities."""
    size: Callable[..., Tensor]
    """`size(state, oldest=0) -> []` int64, rows with a number of at least `oldest`; 0 for all rows."""
    cut: Callable[[Any], Any]
    """`cut(state) -> state` where new episodes start in all environments although the last ones have not ended."""
    bounds: Callable[[Any, int], dict[str, tuple[Tensor, int]]]
    """`bounds(state, steps)`: numbers of the state by name, and the largest value that each can have after `steps`
    environment steps. The state may have leading axes. A checkpoint with a negative or larger one or NaN is refused."""
    needs: tuple[str, ...] = ()
    """What `add` must be given as the environments show it: "steps" (one transition per step and environment, not those
    over n steps) and "observations" (not packed). A wrapper that would change it refuses the buffer."""


class Network(NamedTuple):
    """`init(key [..., 2]) -> Params [...]` and `apply(params, obs [..., *O]) -> q [..., A]`."""

    init: Callable[[Tensor], Params]
    apply: Callable[[Params, Tensor], Tensor]


class Optimizer(NamedTuple):
    """`init(params) -> state` and `update(grads, state, params) -> (updates, state)`; add updates to parameters."""

    init: Callable[[Params], Any]
    update: Callable[[Params, Any, Params], tuple[Params, Any]]


class Learner(NamedTuple):
    """The part of a seed's state that updates change."""

    params: Params
    target_params: Params
    opt_state: Any
    updates: Tensor
    """[] int64."""


class Diagnostics(NamedTuple):
    """Statistics of one update, [] each."""

    loss: Tensor
    q: Tensor
    """Mean value of the actions taken."""
    grad_norm: Tensor
    """Before clipping."""


class Algorithm(NamedTuple):
    """How one seed learns from its transitions. `off_policy.algorithm` makes one, `on_policy.algorithm` another.

    The training loop acts epsilon-greedily on `agent.values`, calls `observe` after every step of the environments and
    `update` `config.updates_per_cycle` times per training iteration. It knows nothing of buffers.
    """

    config: Any
    """`training.Config`: sizes of a training iteration."""
    agent: Agent
    init: Callable[[Params, Hyper, Transition], tuple[Learner, Any]]
    """`init(params, hyper, example) -> (learner, buffer)`, for transitions like `example`, without leading axes."""
    observe: Callable[[Learner, Any, Transition, Tensor, Tensor | None, Hyper], Any]
    """`observe(learner, buffer, batch [E, ...], ended [E], valid [E] or None, hyper) -> buffer`, after one step of
    every environment; `ended` and `valid` as for `Buffer.add`."""
    update: Callable[[Learner, Any, Tensor, Uniforms, Hyper], tuple[Learner, Any, Diagnostics]]
    """`update(learner, buffer, sample [B], noise, hyper) -> (learner, buffer, diagnostics)`."""
    select: Callable[[Tensor], Tensor]
    """`select(bits [..., n, B]) -> sample [..., n, B]`: turns random integers in [0, 2**32) into the `sample` of the n
    updates of a training iteration, such as permutations of rows."""
    cut: Callable[[Any], Any]
    """`cut(buffer) -> buffer` where new episodes start in all environments although the last ones have not ended."""
    bounds: Callable[[Any, int], dict[str, tuple[Tensor, int]]]
    """As `Buffer.bounds`."""
