"""Laws of an agent. Each raises AssertionError with the part of the agent, the expected value and the value found.

`agent` checks an agent on parameters and a batch that it generates. `illegal_actions` makes the agent on a special
network, with which it can set the values of illegal actions. Both laws apply to agents whose target is the value of the
greedy next action, such as DQN, double DQN, C51, QR-DQN, IQN and their noisy variants. For agents with other targets,
such as Munchausen-DQN, pass `greedy_target=False` to `agent`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from fdqn import agents, random, training, tree
from fdqn.ops import masking as acting
from fdqn.testing import laws
from fdqn.testing.asserts import assert_finite, assert_trees_close, assert_trees_equal
from fdqn.types import Agent, Hyper, LossOutput, Network, NoiseShapes, Params, Transition, Uniforms

__all__ = ["agent", "illegal_actions"]

ROWS = 6


def agent(
    agent: Agent,
    obs_shape: Sequence[int],
    actions: int,
    dtype: torch.dtype = torch.float64,
    obs_dtype: torch.dtype | None = None,
    seed: int = 0,
    atol: float = 1e-10,
    greedy_target: bool = True,
) -> None:
    """Check an agent against all laws but `illegal_actions`.

    Args:
        agent: the agent.
        obs_shape: shape of one observation.
        actions: number of actions.
        dtype: dtype of parameters and rewards.
        obs_dtype: dtype of observations; `dtype` by default.
        seed: seed of the parameters and the batch.
        atol: absolute tolerance of comparisons.
        greedy_target: True if the target is the reward plus the discounted value of the greedy next action. False omits
            two checks that only hold for this target: other next actions do not matter, and target parameters do not
            matter where an episode ended.
    """
    params, target_params = (tree.cast(agent.init(random.key(2 * seed + i)), dtype) for i in range(2))
    batch, hyper = _example(obs_shape, actions, dtype, obs_dtype or dtype, seed), _hyper(dtype)
    if agent.needs_legal:
        batch = batch._replace(legal=_legal(batch))
    given = (agent, params, target_params, batch, hyper)
    _check_shapes(*given)
    _check_noise(*given)
    _check_rows(*given, atol=atol)
    _check_targets(*given, atol=atol, greedy_target=greedy_target)
    _check_taken(*given, atol=atol)
    if greedy_target:
        _check_greedy_target(*given, atol=atol)
    _check_gradient(*given)


def _example(
    obs_shape: Sequence[int],
    actions: int,
    dtype: torch.dtype = torch.float64,
    obs_dtype: torch.dtype = torch.float64,
    seed: int = 0,
    rows: int = ROWS,
) -> Transition:
    """Make a batch of random transitions that do not end an episode.

    All actions are legal in the first row, and at least one in every other row.
    """
    key = random.key(seed)
    obs, next_obs = (2 * random.normal(random.fold_in(key, i), (rows, *obs_shape), torch.float64) for i in range(2))
    if not obs_dtype.is_floating_point:
        obs, next_obs = obs.abs(), next_obs.abs()
    legal = random.uniform(random.fold_in(key, 2), (rows, actions)) < 0.6
    one = torch.arange(actions) == random.randint(random.fold_in(key, 3), (rows, 1), 0, actions)
    return Transition(
        obs=obs.to(obs_dtype),
        action=random.randint(random.fold_in(key, 4), (rows,), 0, actions),
        reward=random.normal(random.fold_in(key, 5), (rows,)).to(dtype),
        discount=torch.ones(rows, dtype=dtype),
        next_obs=next_obs.to(obs_dtype),
        next_legal=legal | one | (torch.arange(rows) == 0).unsqueeze(-1),
    )


# The parts of the law


def _check_shapes(agent: Agent, params: Params, target_params: Params, batch: Transition, hyper: Hyper) -> None:
    """Check that `values` and `loss` are pure and finite, with the right shapes and priorities of at least 0.

    With `()` as noise, `values` must be deterministic. The loss must be finite without a legal next action, too.
    """
    stuck = batch._replace(next_legal=torch.zeros_like(batch.next_legal))
    for case, each in (("", batch), ("nothing legal, ", stuck)):
        try:
            agents.check_agent(agent, params, each, hyper)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{case}{error}") from None
        u_values, u_loss = _draw(agent.noise(_size(each)), 0)
        for name, given in (("noise", u_values), ("()", ())):
            assert_finite(laws.pure(agent.values, params, each.obs, given), f"{case}values with {name}: ")
        output = laws.pure(agent.loss, params, target_params, each, hyper, u_loss)
        assert_finite(output, f"{case}loss: ")
        least = float(output.priority.min())
        assert least >= 0, f"{case}loss.priority: expected at least 0, got {least}"


def _check_noise(
    agent: Agent, params: Params, target_params: Params, batch: Transition, hyper: Hyper, draws: int = 30
) -> None:
    """Check that all noise is used: in some of `draws` draws, the result must change with each uniform.

    For `values` this holds for every single uniform, for `loss` for every slice along the first axis of its noise.
    """
    stated = agent.noise(_size(batch))
    for name, shape, f in (
        ("values", stated.values, lambda u: agent.values(params, batch.obs, u)),
        ("loss", stated.loss, lambda u: agent.loss(params, target_params, batch, hyper, u)),
    ):
        if not shape:
            continue
        count = math.prod(shape) if name == "values" else shape[0]
        each = shape if name == "values" else (count, *(1 for _ in shape[1:]))
        masks = torch.eye(count, dtype=torch.bool).reshape(count, *each)
        unused = list(range(len(masks)))
        for draw in range(draws):
            first, second = (random.uniform(random.key(2 * draw + i), shape) for i in range(2))
            before = f(first)
            unused = [i for i in unused if tree.equal(before, f(torch.where(masks[i], second, first)))]
            if not unused:
                break
        assert not unused, f"noise of {name}: expected all of {list(shape)} to be used, got part {unused[0]} unused"


def _check_rows(
    agent: Agent, params: Params, target_params: Params, batch: Transition, hyper: Hyper, atol: float
) -> None:
    """Check that row i of `values` and of the loss depends on row i of the batch and on no other row."""
    (u_values, u_loss), count = _draw(agent.noise(_size(batch)), 0), _size(batch)
    q, output = agent.values(params, batch.obs, u_values), agent.loss(params, target_params, batch, hyper, u_loss)
    for i in range(count):
        others = torch.tensor([j for j in range(count) if j != i])
        changed = tree.map(lambda x: torch.cat([x[:i], x[count - 1 - i].unsqueeze(0), x[i + 1 :]]), batch)  # noqa: B023
        got = agent.values(params, changed.obs, u_values), agent.loss(params, target_params, changed, hyper, u_loss)
        expected = tree.index((q, output), others)
        assert_trees_close(expected, tree.index(got, others), atol, atol, f"other rows after a change of row {i}: ")
        moved = (output.loss[i] - got[1].loss[i]).abs() > atol
        assert bool(moved), f"loss[{i}]: expected it to change with row {i} of the batch, got the same"


def _check_targets(
    agent: Agent,
    params: Params,
    target_params: Params,
    batch: Transition,
    hyper: Hyper,
    atol: float,
    greedy_target: bool,
) -> None:
    """Check what the loss depends on, with a discount or gamma of 0 and otherwise.

    With 0, it must not depend on the next observation and its legal actions and, for a greedy target, on the target
    parameters. Otherwise it must depend on the target parameters.
    """
    _, u = _draw(agent.noise(_size(batch)), 0)
    f = partial(_loss_rows, agent, params, hyper=hyper, noise=u)
    other = tree.map(lambda x: 2 * x + 0.5, target_params)
    ended = batch._replace(discount=torch.zeros_like(batch.discount))
    after = ended._replace(next_obs=ended.next_obs.flip(0), next_legal=torch.ones_like(ended.next_legal))
    held = other if greedy_target else target_params
    assert_trees_close(f(target_params, ended), f(held, after), atol, atol, "loss of ended rows: ")
    myopic = partial(_loss_rows, agent, params, hyper=hyper._replace(gamma=torch.zeros_like(hyper.gamma)), noise=u)
    assert_trees_close(f(target_params, ended), myopic(held, batch), atol, atol, "loss with gamma 0: ")
    same = (f(target_params, batch) == f(other, batch)).all()
    assert not same, "loss: expected it to depend on the target parameters where an episode continues, got the same"


def _check_taken(
    agent: Agent, params: Params, target_params: Params, batch: Transition, hyper: Hyper, atol: float
) -> None:
    """Check that `loss.q` is the value of the action taken, with the noise of one of the passes."""
    _, u = _draw(agent.noise(_size(batch)), 0)
    q = agent.loss(params, target_params, batch, hyper, u).q
    taken = [acting.pick(agent.values(params, batch.obs, each), batch.action) for each in _passes(u)]
    near = min(float((x - q).abs().max()) for x in taken)
    assert near <= atol, f"loss.q: expected the values of the actions taken, got numbers {near:g} away"


def _check_greedy_target(
    agent: Agent, params: Params, target_params: Params, batch: Transition, hyper: Hyper, atol: float
) -> None:
    """Check that the target uses the value of the greedy next action.

    The greedy next action is the legal one with the highest `values`, of the online or of the target parameters, the
    same ones in all rows. The loss must not change if this action is the only legal one, and must change if the worst
    action is.
    """
    _, u = _draw(agent.noise(_size(batch)), 0)
    output = agent.loss(params, target_params, batch, hyper, u)

    def distance(chooser: Params, noise: Uniforms, sign: int) -> float:
        """Return the distance from the loss with only the best action of `sign * values` legal."""
        best = acting.greedy(sign * agent.values(chooser, batch.next_obs, noise), batch.next_legal)
        only = best.unsqueeze(-1) == torch.arange(batch.next_legal.shape[-1])
        alone = agent.loss(params, target_params, batch._replace(next_legal=only), hyper, u)
        return float((alone.loss - output.loss).abs().max())

    choosers = [(p, each) for p in (params, target_params) for each in _passes(u)]
    distances = {distance(*chooser, sign=1): chooser for chooser in choosers}
    assert min(distances) <= atol, (
        "loss: expected the same where only the greedy action of `values` is legal, got numbers "
        f"{min(distances):g} away; the target uses another action"
    )
    worst = distance(*distances[min(distances)], sign=-1)
    assert worst > atol, "loss: expected it to change where only the worst action is legal, got the same"


def _check_gradient(agent: Agent, params: Params, target_params: Params, batch: Transition, hyper: Hyper) -> None:
    """Check that the gradient of the loss flows to the online parameters, and not to the target parameters, rewards,
    discounts, next observations or gamma.
    """
    _, u = _draw(agent.noise(_size(batch)), 0)

    def f(params: Params, target_params: Params, ahead: Any, gamma: Tensor) -> Tensor:
        reward, discount, next_obs = ahead
        given = batch._replace(reward=reward, discount=discount, next_obs=next_obs)
        return agent.loss(params, target_params, given, hyper._replace(gamma=gamma), u).loss

    ahead = (batch.reward, batch.discount, batch.next_obs)
    laws.semi_gradient(f, params, target_params, ahead, hyper.gamma, held=(1, 2, 3))


def illegal_actions(
    make: Callable[..., Agent],
    actions: int = 3,
    outputs: int = 1,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Check that values of illegal actions do not affect loss, priority, gradient and values of legal actions.

    The values of illegal actions are replaced by large numbers, infinities and NaN; results must be equal bit for bit.

    Args:
        make: makes the agent from a `Network` with `actions * outputs` outputs, those of one action next to each other.
        actions: number of actions.
        outputs: number of outputs for each action; for C51 the number of atoms.
        dtype: dtype of parameters and observations.
    """
    size = actions * outputs
    places = torch.arange(2 * ROWS, dtype=dtype).unsqueeze(-1)
    batch = _example((1,), actions, dtype)._replace(obs=places[:ROWS], next_obs=places[ROWS:])
    # One row has no legal next action: all values at its next observation are illegal.
    batch = batch._replace(next_legal=batch.next_legal & (torch.arange(ROWS) > 1).unsqueeze(-1) | _first(batch))
    agent = make(_table_network(2 * ROWS, size))
    legal = _legal(batch) if agent.needs_legal else batch.action.unsqueeze(-1) == torch.arange(actions)
    batch = batch._replace(legal=legal if agent.needs_legal else ())
    counts = torch.cat([legal, batch.next_legal]).repeat_interleave(outputs, -1)
    params, target_params = ({"table": random.normal(random.key(i), (2 * ROWS, size), dtype)} for i in range(2))
    hyper, (u_values, u_loss) = _hyper(dtype), _draw(agent.noise(ROWS), 0)

    def results(params: Params, target_params: Params) -> tuple[LossOutput, Params, Tensor]:
        output = agent.loss(params, target_params, batch, hyper, u_loss)
        slope = grad(lambda p: agent.loss(p, target_params, batch, hyper, u_loss).loss.sum())(params)
        q = agent.values(params, batch.next_obs, u_values)
        return output, slope, torch.where(batch.next_legal, q, 0.0)

    expected = results(params, target_params)
    assert_finite(expected, "illegal actions, ")
    for poison in (torch.nan, torch.inf, -torch.inf, 1e30, -1e30):
        spoiled = [{"table": torch.where(counts, p["table"], poison)} for p in (params, target_params)]
        for name, given in (("online", (spoiled[0], target_params)), ("target", (params, spoiled[1]))):
            assert_trees_equal(expected, results(*given), f"illegal actions of {name} parameters at {poison}: ")


def _table_network(places: int, outputs: int) -> Network:
    """Make a table as a network: observation i [1] selects row i. Rows and outputs are independent of each other."""

    def apply(params: Params, obs: Tensor) -> Tensor:
        chosen = obs == torch.arange(places, dtype=obs.dtype)
        return torch.where(chosen.unsqueeze(-1), params["table"], 0.0).sum(-2)

    return Network(lambda key: {"table": random.normal(key, (places, outputs))}, apply)


def _legal(batch: Transition) -> Tensor:
    """Return a mask of legal actions at `batch.obs`, among them those taken."""
    taken = batch.action.unsqueeze(-1) == torch.arange(batch.next_legal.shape[-1])
    return taken | (random.uniform(random.key(9), batch.next_legal.shape) < 0.5)


def _first(batch: Transition) -> Tensor:
    """Mark all actions of the first row."""
    return (torch.arange(_size(batch)) == 0).unsqueeze(-1) & torch.ones_like(batch.next_legal)


def _hyper(dtype: torch.dtype) -> Hyper:
    return tree.cast(tree.index(training.hyper(1, 1e-3, 0.9, 1.0, 0.1, 100.0, 0.5, 10.0), 0), dtype)


def _draw(shapes: NoiseShapes, seed: int) -> tuple[Uniforms, Uniforms]:
    """Draw uniforms for `values` and for `loss` with the shapes that the agent requests."""
    keys = random.split(random.key(seed))
    values, loss = (random.uniform(key, shape) if shape else () for key, shape in zip(keys, shapes, strict=True))
    return values, loss


def _passes(noise: Uniforms) -> Sequence[Uniforms]:
    """Split the noise of the loss into that of each pass."""
    return noise.unbind(0) if isinstance(noise, Tensor) else [()]


def _size(batch: Transition) -> int:
    return batch.action.shape[0]


def _loss_rows(
    agent: Agent, params: Params, target_params: Params, batch: Transition, hyper: Hyper, noise: Uniforms
) -> Tensor:
    return agent.loss(params, target_params, batch, hyper, noise).loss
