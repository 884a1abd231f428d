"""Deep Q-learning: what shapes it, what it minimises, how it acts and how it learns. Mnih et al. 2015.

A variant is another function of the same signature: `q_learning` and `double_q_learning` are both a `Loss` once their
network and penalty are bound with `functools.partial`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from fdqn import actions, check, losses, optim, policies, tree
from fdqn.types import Hyper, Optimizer, Params, Transition


@dataclass(frozen=True)
class Config:
    """What shapes the program: plain numbers, checked once. Raises ValueError for sizes that cannot work."""

    num_envs: int = 10
    """Environments a lane."""
    steps_per_cycle: int = 1
    """Steps of each environment in a cycle."""
    updates_per_cycle: int = 1
    """Updates that follow them."""
    batch_size: int = 128
    """Rows an update."""
    capacity: int = 10_000
    """Rows of replay a lane."""
    learning_starts: int = 1_000
    """Environment steps a lane before the first update."""
    target_period: int = 20
    """Updates between hard target copies; 0 for a soft copy of share `Hyper.tau` at every update."""
    n_step: int = 1
    """Environment steps that a transition spans."""
    clip_rewards: bool = False
    """Learn from rewards clipped to [-1, 1]; what is reported is not."""
    terminal_on_life_loss: bool = False
    """Learn as if an episode ended where a life is lost; what is reported does not."""
    random_warmup: bool = False
    """Act uniformly at random until learning starts, and anneal epsilon from there instead of from the first step."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(field.default, bool):
                check.kind(field.name, getattr(self, field.name), bool)
                continue
            least = 0 if field.name in ("learning_starts", "target_period") else 1
            check.count(field.name, getattr(self, field.name), least)
        if self.batch_size > self.capacity:
            raise ValueError(f"batch_size {self.batch_size} exceeds capacity {self.capacity}")
        if self.num_envs > self.capacity:
            raise ValueError(f"num_envs {self.num_envs} exceeds capacity {self.capacity}: one step would not fit")
        if (least := self.steps_before_rows(self.n_step)) > self.learning_starts:
            raise ValueError(
                f"learning_starts: expected at least {least} with n_step = {self.n_step}, got {self.learning_starts}: "
                "updates would come before the first row"
            )
        if self.target_period % self.updates_per_cycle:
            raise ValueError(
                f"target_period {self.target_period} is not a multiple of updates_per_cycle {self.updates_per_cycle}: "
                "hard copies happen between cycles"
            )

    def steps_before_rows(self, steps: int) -> int:
        """The least `learning_starts` with which each environment has taken so many steps before the first update."""
        cycles = math.ceil(steps / self.steps_per_cycle) - 1  # the cycle of the first update takes steps too
        return (cycles - 1) * self.env_steps + 1 if cycles > 0 else 0

    @property
    def warmup_steps(self) -> int:
        """Environment steps a lane before the cycle of the first update."""
        return math.ceil(self.learning_starts / self.env_steps) * self.env_steps

    @property
    def env_steps(self) -> int:
        """Environment steps of one lane in a cycle, all of its environments together."""
        return self.num_envs * self.steps_per_cycle


class Learner(NamedTuple):
    """What learning changes."""

    params: Params
    target_params: Params
    opt_state: Any
    updates: Tensor
    """[] int64."""


class Diagnostics(NamedTuple):
    """What one update says of itself, [] each."""

    loss: Tensor
    q: Tensor
    """Mean value of the actions taken."""
    grad_norm: Tensor
    """Before clipping."""


Apply = Callable[[Params, Tensor], Tensor]
Penalty = Callable[[Tensor], Tensor]
Loss = Callable[[Params, Params, Transition, Hyper], tuple[Tensor, Tensor]]
"""`(params, target_params, batch, hyper) -> (loss [], q [])`."""


def hyper(
    lanes: int,
    learning_rate: float | Sequence[float] = 2e-3,
    gamma: float | Sequence[float] = 0.99,
    epsilon_start: float | Sequence[float] = 1.0,
    epsilon_end: float | Sequence[float] = 0.05,
    epsilon_steps: float | Sequence[float] = 10_000,
    tau: float | Sequence[float] = 1.0,
    max_grad_norm: float | Sequence[float] = 10.0,
    device: torch.device | str | None = None,
) -> Hyper:
    """The hyper-parameters [S] of `lanes` lanes on `device`; each is a number for all or one number a lane.

    Raises ValueError for a value out of range and TypeError for what is no number, naming it.
    """
    given = Hyper(learning_rate, gamma, epsilon_start, epsilon_end, epsilon_steps, tau, max_grad_norm)  # type: ignore[arg-type]
    check.count("lanes", lanes, 1)
    for name, value in given._asdict().items():
        low, high = {
            "learning_rate": (0, math.inf),
            "epsilon_steps": (0, math.inf),
            "max_grad_norm": (0, math.inf),
        }.get(name, (0, 1))
        values = _numbers(name, value)
        if values.ndim > 1 or (values.ndim == 1 and len(values) != lanes):
            raise ValueError(
                f"{name}: expected a number or {lanes} of them, one a lane, got shape {list(values.shape)}"
            )
        if not ((values >= low) & (values <= high)).all():
            raise ValueError(f"{name}: expected numbers in [{low}, {high}], got {value}")
        if name == "tau" and not (values > 0).all():
            raise ValueError(f"tau: expected numbers above 0, got {value}: the target would never move")
        if name != "max_grad_norm" and not values.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, got {value}")
    return Hyper(*(torch.as_tensor(value, dtype=torch.float32, device=device).expand(lanes).clone() for value in given))


def _numbers(name: str, value: Any) -> Tensor:
    try:
        if not isinstance(value, bool):
            return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"{name}: expected a number or several, one a lane, got {value!r}")


def q_learning(
    apply: Apply, penalty: Penalty, params: Params, target_params: Params, batch: Transition, hyper: Hyper
) -> tuple[Tensor, Tensor]:
    """The mean penalty [] of the TD errors of Q-learning, and the mean value [] of the actions taken."""
    _check_loss(apply, penalty, hyper)
    q_tm1 = apply(params, batch.obs)
    q_t = apply(target_params, batch.next_obs)
    discount_t = hyper.gamma * batch.discount
    delta = losses.q_learning(q_tm1, batch.action, batch.reward, discount_t, q_t, batch.next_legal)
    return penalty(delta).mean(), actions.pick(q_tm1, batch.action).mean()


def double_q_learning(
    apply: Apply, penalty: Penalty, params: Params, target_params: Params, batch: Transition, hyper: Hyper
) -> tuple[Tensor, Tensor]:
    """The same of double Q-learning: the online network chooses the next action, the target says what it is worth."""
    _check_loss(apply, penalty, hyper)
    q_tm1 = apply(params, batch.obs)
    q_t = apply(target_params, batch.next_obs)
    # Only which action is highest matters of these, so nothing flows back through them.
    q_t_selector = apply(tree.map(Tensor.detach, params), batch.next_obs)
    discount_t = hyper.gamma * batch.discount
    delta = losses.double_q_learning(q_tm1, batch.action, batch.reward, discount_t, q_t, q_t_selector, batch.next_legal)
    return penalty(delta).mean(), actions.pick(q_tm1, batch.action).mean()


def act(apply: Apply, params: Params, obs: Tensor, legal: Tensor, epsilon: Tensor, u: Tensor) -> Tensor:
    """Epsilon-greedy actions [...]. Shapes: obs [..., *O]; legal [..., A]; epsilon []; u [..., 2]."""
    return policies.epsilon_greedy(apply(params, obs), legal, epsilon, u)


def init(optimizer: Optimizer, params: Params) -> Learner:
    """A learner that has not learned yet; its target begins as its parameters.

    Raises TypeError for what is no optimizer or no dict, and ValueError where there are no parameters.
    """
    check.kind("optimizer", optimizer, Optimizer)
    check.kind("params", params, dict)
    if not params:
        raise ValueError("params: expected at least one tensor, got none")
    updates = torch.zeros((), dtype=torch.int64, device=next(iter(params.values())).device)
    return Learner(params, tree.clone(params), optimizer.init(params), updates)


def learn(
    loss: Loss, optimizer: Optimizer, learner: Learner, batch: Transition, hyper: Hyper
) -> tuple[Learner, Diagnostics]:
    """One gradient step on the online parameters.

    Raises TypeError or ValueError for a loss that answers with anything but two tensors [].
    """
    check.function("loss", loss)
    check.kind("optimizer", optimizer, Optimizer)
    check.kind("learner", learner, Learner)
    grads, (value, q) = grad_and_value(partial(_two_numbers, loss), has_aux=True)(
        learner.params, learner.target_params, batch, hyper
    )
    updates, opt_state = optimizer.update(grads, learner.opt_state, learner.params)
    params = optim.apply_updates(learner.params, updates)
    return Learner(params, learner.target_params, opt_state, learner.updates + 1), Diagnostics(
        value, q, tree.norm(grads)
    )


def soft_copy(learner: Learner, tau: Tensor) -> Learner:
    """The target moved towards the parameters: `target + tau * (params - target)`. Lillicrap et al. 2016."""
    check.kind("learner", learner, Learner)
    check.share("tau", tau)
    return learner._replace(target_params=tree.lerp(learner.target_params, learner.params, tau))


def hard_copy(learner: Learner) -> Learner:
    """The target replaced by the parameters."""
    check.kind("learner", learner, Learner)
    return learner._replace(target_params=tree.clone(learner.params))


def _check_loss(apply: Apply, penalty: Penalty, hyper: Hyper) -> None:
    check.function("apply", apply)
    check.function("penalty", penalty)
    check.kind("hyper", hyper, Hyper)
    # Those of as many lanes as the batch has rows would broadcast.
    check.shapes("hyper.gamma[]", hyper.gamma)


def _two_numbers(loss: Loss, *given: Any) -> tuple[Tensor, Tensor]:
    answer = loss(*given)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise TypeError(f"loss: expected it to answer with two tensors [], loss and q, got {type(answer).__name__}")
    check.shapes("loss[] q[]", *answer)
    return answer
