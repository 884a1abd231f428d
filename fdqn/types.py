"""Types of the library. Start here: all other modules make, wrap or run these records.

An environment (`Env`, `HostEnv`) returns a `Step`; replay stores a `Transition`. An `Agent` is made from a `Network`.
An `Algorithm`, which updates a `Learner`, is made from an agent, an `Optimizer` and, for learning from replay, a
`Buffer`. Except for host environments, all of them are plain records of pure functions for a single seed.

Shapes: `[...]` are any leading axes (batch, environments or both), `*O` the axes of one observation, `A` the number of
actions, `E` the number of environments and `B` the rows of a batch. One `vmap` around these functions adds the axis
`[S]` of independent seeds, so it appears only in the records of host environments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Params = dict[str, Tensor]
"""Parameters of a network: a dict with the names of the `state_dict` of the corresponding `nn.Module`."""

Scalar = float | Tensor
"""A Python number or a [] tensor. A tensor may differ between seeds."""

Schedule = Callable[[Tensor], Tensor | float]
"""Value at a step, a tensor [...]. Made by functions of `schedules` with `functools.partial`."""

Uniforms = Tensor | tuple[()]
"""Uniforms in [0, 1) of the shape that an agent requests, or `()` for none."""


class Step(NamedTuple):
    """Result of `reset` and `step` of an environment.

    Environments restart automatically in the same step. When an episode ends (`terminated` or `truncated`), `obs` is
    the first observation of the next episode and `next_obs` the last one of the old episode; otherwise they are equal.
    After a reset, `next_obs` equals `obs`, `reward` is 0, and both flags are False.
    """

    obs: Tensor
    """[..., *O] observation to act on next."""
    legal: Tensor
    """[..., A] bool, True for the legal actions at `obs`."""
    next_obs: Tensor
    """[..., *O] observation that the action led to, never one of a reset."""
    next_legal: Tensor
    """[..., A] bool, True for the legal actions at `next_obs`."""
    reward: Tensor
    """[...] float."""
    terminated: Tensor
    """[...] bool, True if the task ended: targets take the value of `next_obs` as 0."""
    truncated: Tensor
    """[...] bool, True if the episode was cut off: targets bootstrap from the value of `next_obs`."""


class Transition(NamedTuple):
    """Transition as replay stores it. The loss applies gamma, so `discount` does not include it."""

    obs: Tensor
    """[..., *O]."""
    action: Tensor
    """[...] int64."""
    reward: Tensor
    """[...] float."""
    discount: Tensor
    """[...] float, factor of gamma: 0 if the task terminated, else 1, also at a time limit. Other values work too."""
    next_obs: Tensor
    """[..., *O]."""
    next_legal: Tensor
    """[..., A] bool."""
    legal: Tensor | tuple[()] = ()
    """[..., A] bool, the legal actions at `obs`; stored only for agents with `needs_legal`."""


class EnvSpec(NamedTuple):
    """Sizes and limits of an environment."""

    obs_shape: tuple[int, ...]
    obs_dtype: torch.dtype
    """With torch.bool, replay packs eight values into a byte."""
    actions: int
    """Number of actions A."""
    noise: int
    """Number of uniforms K that `reset` and `step` take for each environment."""
    time_limit: int
    """Steps after which an episode is truncated."""
    stack: int = 1
    """Number of frames in an observation. If above 1, they are stacked along its first axis, oldest first, with zeros
    before the first frame of the episode, and replay stores each frame once."""
    endless: bool = False
    """True if episodes have no time limit. `time_limit` then only bounds evaluation episodes."""


class Env(NamedTuple):
    """Environment as two pure functions, which run on the device. An ended episode restarts in the same step."""

    reset: Callable[[Tensor], tuple[Any, Step]]
    """`reset(u [..., K]) -> (state, step)`, with uniforms `u` in [0, 1)."""
    step: Callable[[Any, Tensor, Tensor], tuple[Any, Step]]
    """`step(state, action [...], u [..., K]) -> (state, step)`."""
    spec: EnvSpec


class HostStep(NamedTuple):
    """One time step of every environment of an open `HostEnv`, as CPU tensors over seeds S and environments E."""

    step: Step
    """Leaves [S, E, ...]."""
    valid: Tensor
    """[S, E] bool; False where the environment only started a new episode instead of taking the action."""
    alive: Tensor
    """[S] bool; False for a seed with a failed environment."""
    life_lost: Tensor
    """[S, E] bool; True where a life was lost and the episode continues. All False without reports of lives."""


class HostVectorEnv(Protocol):
    """An open host environment: E environments for each of S seeds.

    An environment that raises an error or returns an invalid value must not stop the other seeds: add its seed to
    `broken`, return zeros for it, and set `alive` to False. If no seed is left, raise ValueError.
    """

    @property
    def broken(self) -> dict[int, str]:
        """Error message by seed position in [0, S), for each failed seed; empty at first."""

    def reset(self, seeds: list[list[int]]) -> Step:
        """Start a new episode in every environment. Shapes: seeds [S][E], integers in [0, 2**32); result [S, E]."""

    def step(self, actions: NDArray[np.int64]) -> HostStep:
        """Step every environment once; ended episodes restart automatically. Shapes: actions [S, E]; result [S, E]."""

    def close(self) -> None:
        """Release all resources, including those of failed seeds."""


class RecordingEnv(HostVectorEnv, Protocol):
    """An open host environment with one rendered environment for each seed."""

    def frames(self) -> list[Any]:
        """Render each seed's environment as it was after its last step, before any restart, or after its first reset.

        Returns S images, uint8 [H, W, 3], with None for failed seeds.
        """


class HostEnv(NamedTuple):
    """Environment with internal state that is stepped on the host, such as one of Gymnasium."""

    open: Callable[[int, int], HostVectorEnv]
    """`open(seeds, num_envs)` makes `num_envs` environments for each of `seeds` seeds."""
    spec: EnvSpec
    record: Callable[[int], RecordingEnv] | None = None
    """`record(seeds)` is `open(seeds, 1)` with rendering; None if the environment does not render."""
    counts_lives: Callable[[], bool] = bool
    """Return True if the environment reports lost lives. The call may open an environment to find out."""


class Network(NamedTuple):
    """Network as two pure functions."""

    init: Callable[[Tensor], Params]
    """`init(key [..., 2]) -> params`, with leaves [..., *shape]."""
    apply: Callable[[Params, Tensor], Tensor]
    """`apply(params, obs [..., *O]) -> q [..., A]`, for the parameters of one seed."""


class Optimizer(NamedTuple):
    """Gradient transformation, as in optax."""

    init: Callable[[Params], Any]
    """`init(params) -> state`."""
    update: Callable[[Params, Any, Params], tuple[Params, Any]]
    """`update(grads, state, params) -> (updates, state)`. `optim.apply_updates` adds the updates to the parameters."""


class Hyper(NamedTuple):
    """Hyper-parameters that may differ between seeds, [] float tensors. Changing a value does not recompile."""

    learning_rate: Tensor
    gamma: Tensor
    """Discount factor, in [0, 1]."""
    epsilon_start: Tensor
    epsilon_end: Tensor
    epsilon_steps: Tensor
    """Environment steps over which epsilon is annealed linearly from start to end."""
    tau: Tensor
    """Weight of the online parameters in a soft target update, in (0, 1]."""
    max_grad_norm: Tensor
    """Global norm to which gradients are clipped; infinity for no clipping."""
    numbers: dict[str, Tensor] = {}
    """Further numbers by name, of any shape; see `training.parametrized`."""


class LossOutput(NamedTuple):
    """Loss of an agent for each row, not reduced. The update takes the mean, weighted by the buffer's weights."""

    loss: Tensor
    """[B]."""
    q: Tensor
    """[B], Q-values of the actions taken, for metrics."""
    priority: Tensor
    """[B], at least 0: priority for prioritized replay, such as the absolute TD error."""


class NoiseShapes(NamedTuple):
    """Shapes of the uniforms in [0, 1) that an agent takes; `()` for none."""

    values: tuple[int, ...] = ()
    loss: tuple[int, ...] = ()


def no_noise(rows: int) -> NoiseShapes:
    """Return the shapes of an agent without noise, for any number of rows."""
    return NoiseShapes()


class Agent(NamedTuple):
    """Value-based learning rule for one seed, bound to its network.

    Made by functions such as `dqn.agent(network, double=True)`. Evaluation calls `values` with `()` in place of noise,
    for which it must be deterministic.
    """

    init: Callable[[Tensor], Params]
    """`init(key [..., 2]) -> params [...]`."""
    values: Callable[[Params, Tensor, Uniforms], Tensor]
    """`values(params, obs [..., *O], noise) -> q [..., A]`, whose largest legal entry is the greedy action."""
    loss: Callable[[Params, Params, Transition, Hyper, Uniforms], LossOutput]
    """`loss(params, target_params, batch [B, ...], hyper, noise) -> LossOutput`."""
    noise: Callable[[int], NoiseShapes] = no_noise
    """`noise(rows) -> NoiseShapes`: shapes of the uniforms that `values` and `loss` take for `rows` rows."""
    needs_legal: bool = False
    """True if the loss uses values at `batch.obs` of other actions than the one taken, and so reads `batch.legal`."""


class Sample(NamedTuple):
    """Rows sampled from a buffer."""

    batch: Transition
    """Leaves [B, ...]."""
    indices: Tensor
    """[B] int64, positions of the rows, for `Buffer.update`."""
    weight: Tensor
    """[B] float, importance-sampling weights; 1 if rows are sampled uniformly."""


class Added(NamedTuple):
    """Rows that `Buffer.add` wrote. A wrapper such as `n_step` may write other rows than it was given."""

    batch: Transition
    """Leaves [E, ...]."""
    number: Tensor
    """[E] int64, serial number of each row, counted from 0 over all rows ever written."""
    valid: Tensor
    """[E] bool, False for rows that were not written."""


class Buffer(NamedTuple):
    """Replay buffer of one seed, as pure functions of its state.

    Made by `ring.buffer` and `prioritized.buffer`; wrapped by `n_step`, `frames` and `packing`.
    """

    init: Callable[[Transition], Any]
    """`init(example) -> state`; `example` is a transition without leading axes, with the shapes and dtypes of rows."""
    add: Callable[[Any, Transition, Tensor, Tensor | None, Tensor], tuple[Any, Added]]
    """`add(state, batch [E, ...], ended [E], valid [E] or None, gamma []) -> (state, added)`, called after one step of
    every environment. `ended` is True where the episode ended with this step, `valid` where a step was taken; None
    means everywhere."""
    sample: Callable[[Any, Tensor, Tensor | int], Sample]
    """`sample(state, bits [B], oldest) -> Sample`, from the rows with serial number >= `oldest` (0: all rows). `bits`
    are random integers in [0, 2**32), int64."""
    update: Callable[[Any, Tensor, Tensor], Any]
    """`update(state, indices [B], priority [B]) -> state` sets priorities; the identity without priorities."""
    size: Callable[..., Tensor]
    """`size(state, oldest=0) -> []` int64, number of rows with serial number >= `oldest`."""
    cut: Callable[[Any], Any]
    """`cut(state) -> state`, called when all environments are reset in the middle of their episodes."""
    bounds: Callable[[Any, int], dict[str, tuple[Tensor, int]]]
    """`bounds(state, steps) -> {name: (values, largest)}`: entries of the state, and the largest value that each can
    have after `steps` environment steps. Loading a checkpoint raises an error for values outside [0, largest] and NaN.
    The state may have leading axes."""
    needs: tuple[str, ...] = ()
    """Requirements on the input of `add`: "steps" (single-step transitions, not n-step) and "observations" (not
    packed). A wrapper that would violate one raises ValueError."""


class Learner(NamedTuple):
    """State of one seed that an update changes."""

    params: Params
    target_params: Params
    opt_state: Any
    updates: Tensor
    """[] int64, number of updates made."""


class Diagnostics(NamedTuple):
    """Statistics of one update, [] each."""

    loss: Tensor
    q: Tensor
    """Mean Q-value of the actions taken."""
    grad_norm: Tensor
    """Global norm before clipping."""


class Algorithm(NamedTuple):
    """Learning algorithm of one seed, made by the function `algorithm` of `off_policy`, `on_policy` or `streaming`.

    The training loop acts epsilon-greedily with `agent.values`, calls `observe` after every environment step, and calls
    `update` `config.updates_per_cycle` times per training iteration. It does not depend on the form of the buffer.
    """

    config: Any
    """`training.Config`: sizes of a training iteration."""
    agent: Agent
    init: Callable[[Params, Hyper, Transition], tuple[Learner, Any]]
    """`init(params, hyper, example) -> (learner, buffer)`; `example` as for `Buffer.init`."""
    observe: Callable[[Learner, Any, Transition, Tensor, Tensor | None, Hyper], Any]
    """`observe(learner, buffer, batch [E, ...], ended [E], valid [E] or None, hyper) -> buffer`, called after one step
    of every environment; `ended` and `valid` as for `Buffer.add`."""
    update: Callable[[Learner, Any, Tensor, Uniforms, Hyper], tuple[Learner, Any, Diagnostics]]
    """`update(learner, buffer, sample [B], noise, hyper) -> (learner, buffer, diagnostics)`."""
    select: Callable[[Tensor], Tensor]
    """`select(bits [..., n, B]) -> sample [..., n, B]` maps random integers in [0, 2**32) to the `sample` arguments of
    the n updates of a training iteration, for example to permutations of rows."""
    cut: Callable[[Any], Any]
    """As `Buffer.cut`."""
    bounds: Callable[[Any, int], dict[str, tuple[Tensor, int]]]
    """As `Buffer.bounds`."""
    values: Callable[[Params, Tensor, Uniforms, Hyper], Tensor] | None = None
    """`values(params, obs [..., *O], noise, hyper) -> q [..., A]`, in place of `agent.values` in training; None for
    `agent.values`."""
