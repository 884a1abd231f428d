"""Populations: successive halving and population based training of the members of one stacked state.

A member is one index of the first axis [M] of a state, which is setting-major: member `setting * seeds + seed`. These
functions are called between training iterations, on any device. Random numbers are arguments, made by `noise`.

In population based training, single members are copied, not settings with all of their seeds, because a network belongs
to one seed. With `groups = seeds`, each seed has a separate population: seeds stay independent repetitions of the
search, and intervals over seeds keep their meaning. With `groups = 1`, all members are one population and make one
larger search.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fdqn import check, random, tree
from fdqn.training import streams
from fdqn.training.state import CAUSES, TrainState
from fdqn.types import Hyper

T = TypeVar("T")


def keep(state: T, members: Tensor) -> T:
    """Return the state of some members, in the given order, in memory that it shares with no other tensor.

    The kept members are unchanged bit for bit, and continue to train as if the others were still there. While this
    function runs, both states are in memory. Compiled step functions accept the smaller state and are compiled again.

    Shapes: members [N] int64, distinct; leaves of `state` [M, ...], of the result [N, ...].

    Raises ValueError for no members or a member that occurs twice, and IndexError for one outside [0, M), if values can
    be read; TypeError for members that are not integers.
    """
    check.shapes("members[N]", members)
    check.integer("members", members)
    check.within("members", members, check.length("state", state))
    ordered = members.sort().values
    if not len(members) or check.seen(ordered[1:] == ordered[:-1]):
        raise ValueError(f"members: expected at least one, each once, got {members.tolist()}")
    return tree.separate(tree.map(lambda x: x.index_select(0, members), state), state)


def members_of(settings: Tensor, seeds: int) -> Tensor:
    """Return the members [K * seeds] of the settings [K] int64: member `setting * seeds + seed` for every seed."""
    check.shapes("settings[K]", settings)
    check.integer("settings", settings)
    check.count("seeds", seeds, 1)
    return (settings.unsqueeze(-1) * seeds + torch.arange(seeds, device=settings.device)).flatten()


def successive_halving(scores: Tensor, eta: int) -> Tensor:
    """Return the best ceil(K / eta) of K settings by their scores [K], int64 in increasing order.

    Ties are resolved by position, the first being the best; NaN is the worst.

    Raises ValueError for `eta` below 2, and TypeError for scores that are not floating-point.
    Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943
    """
    check.shapes("scores[K]", scores)
    check.floating("scores", scores)
    check.count("eta", eta, 2)
    return _ranking(scores)[: math.ceil(scores.shape[0] / eta)].sort().values


class Rung(NamedTuple):
    """Part of a run with successive halving in which the same settings are trained."""

    settings: int
    """Number of settings that are trained."""
    end: int
    """Environment steps per seed, counted from the start of the run, at which the rung ends."""


def rungs(settings: int, steps: int, eta: int) -> list[Rung]:
    """Plan successive halving of `settings` settings over `steps` environment steps per seed.

        K_0 = settings,    K_i+1 = ceil(K_i / eta),    steps of rung i = steps (1 / K_i) / (sum over j of 1 / K_j)

    All rungs take the same number of steps, summed over their settings. As in the paper, halving stops before a single
    setting is left: the last rung has 2 to `eta` settings, and the best of them is chosen at the end of the run.

    Raises ValueError for `eta` below 2, for no settings, and for fewer steps than the rungs need.
    Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943
    """
    check.count("settings", settings, 1)
    check.count("steps", steps, 1)
    check.count("eta", eta, 2)
    sizes = [settings]
    while sizes[-1] > eta:
        sizes.append(-(-sizes[-1] // eta))
    inverse = [1 / size for size in sizes]
    ends = [round(steps * math.fsum(inverse[: i + 1]) / math.fsum(inverse)) for i in range(len(sizes))]
    if any(end <= start for start, end in zip([0, *ends], ends, strict=False)):
        raise ValueError(
            f"steps: expected enough for {len(sizes)} rungs of {settings} settings, got {steps}; use more steps "
            "or fewer settings"
        )
    return [Rung(size, end) for size, end in zip(sizes, ends, strict=True)]


class PopulationNoise(NamedTuple):
    """Uniforms in [0, 1) of one step of population based training."""

    exploit: Tensor
    """[M]."""
    explore: Tensor
    """[M, N], one for each of N hyper-parameters."""


def noise(keys: Tensor, number: int, names: int, groups: int = 1) -> PopulationNoise:
    """Draw the random numbers of step `number` of population based training from the keys [M, 2] of the members.

    They depend on the keys of the first `groups` members, one for each population, on `number`, and on the position of
    a member in its population. So they do not change when a run is resumed or other populations are trained with it.

    Args:
        keys: keys [M, 2] of the members.
        number: number of the step, such as that of the training iteration.
        names: number N of hyper-parameters that are perturbed.
        groups: number of populations; see `exploit`.

    Raises ValueError for a number of members that is not a multiple of `groups`.
    """
    check.shapes("keys[M 2]", keys)
    check.count("number", number)
    check.count("names", names)
    _check_groups(keys.shape[0], groups)
    own = random.fold_in(random.fold_in(keys[:groups], streams.POPULATION), number)
    u = random.uniform(own, (keys.shape[0] // groups, names + 1)).transpose(0, 1).flatten(0, 1)
    return PopulationNoise(u[:, 0], u[:, 1:])


def scores(state: TrainState, returns: Tensor) -> Tensor:
    """Return the scores [M] of the members for `exploit`: their returns [M], such as `Report.returns`.

    -inf       if the member has failed with a loss, gradient or parameter that is not finite
    NaN        if its host environment has failed, which a copy cannot repair, or no episode has ended
    returns    otherwise
    """
    check.kind("state", state, TrainState)
    check.shapes("state.metrics.failed[M] returns[M]", state.metrics.failed, returns)
    check.floating("returns", returns)
    known = torch.where(state.metrics.failed < 0, returns, -torch.inf)
    return torch.where(state.metrics.cause == CAUSES.index("environment"), torch.nan, known)


def exploit(scores: Tensor, u: Tensor, fraction: float = 0.2, groups: int = 1) -> Tensor:
    """Return the source [M] of each member, the member whose learner it continues with, by truncation selection.

    Each of the worst members of a population draws one of the best, uniformly, and copies it if that one has the higher
    score. All others are their own source. The worst and the best are `fraction` of the members, rounded up, at most
    half of them. A member with score NaN neither copies nor is copied.

    Args:
        scores: [M], higher is better; see `scores`.
        u: uniforms [M] in [0, 1).
        fraction: fraction of the members that are replaced, in [0, 0.5].
        groups: number of populations G; member i belongs to population i % G. 1 makes one population of all members,
            the number of seeds makes a population of each seed, with a member for each setting.

    Raises ValueError or TypeError for numbers out of range, a number of members that is not a multiple of `groups`, and
    tensors of other shapes.
    Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846
    """
    check.shapes("scores[M] u[M]", scores, u)
    check.floating("scores", scores)
    check.uniforms("u", u)
    check.number("fraction", fraction)
    if not fraction <= 0.5:
        raise ValueError(f"fraction: expected a number in [0, 0.5], got {fraction}")
    _check_groups(scores.shape[0], groups)
    scores, u = (x.unflatten(0, (-1, groups)).transpose(0, 1) for x in (scores, u))
    order, own = _ranking(scores), torch.arange(scores.shape[1], device=scores.device)
    rank, known = order.argsort(-1), (~scores.isnan()).sum(-1, keepdim=True)
    # Minus a little, because 0.07 * 100 is 7.000000000000001.
    count = (known.double() * fraction - 1e-9).ceil().long().minimum(known // 2)
    drawn = order.gather(-1, (u.double() * count).long())
    copies = (rank >= known - count) & (rank < known) & (scores.gather(-1, drawn) > scores)
    source = torch.where(copies, drawn, own)
    return (source * groups + torch.arange(groups, device=source.device).unsqueeze(-1)).transpose(0, 1).flatten()


def copy(state: TrainState, source: Tensor) -> TrainState:
    """Return the state in which member i continues with the learner and hyper-parameters of member `source[i]`.

    Copied are parameters, target parameters, optimizer state, the number of updates, on which schedules depend, and all
    hyper-parameters. Not copied are

    - the key: two members with the same key would use the same random numbers from then on;
    - environments, observations and the returns of unfinished episodes, which continue;
    - the replay buffer: it is most of the memory of a member, its transitions stay valid for any learner, and different
      data keep the members of a population different. In prioritized replay, old priorities remain until a row is
      sampled again. In Stream Q, the scale of rewards is part of the buffer; the eligibility trace is copied;
    - metrics, except two that are cleared: the returns of the last episodes, which another learner achieved, and a
      failure, since the copied learner is finite, unless the host environment of the member has failed.

    The number of updates changes with a copy, so compute means per update from the number after the copy on.

    A member that is its own source keeps every bit. The leaves that are not copied are those of `state`.
    `compile.donate(copy)` writes into the memory of `state` instead.

    Shapes: source [M] int64. Raises TypeError or ValueError for another type or shape, and IndexError for members
    outside [0, M), if values can be read.
    """
    check.kind("state", state, TrainState)
    check.shapes("state.key[M 2] source[M]", state.key, source)
    check.integer("source", source)
    check.within("source", source, len(source))
    metrics = state.metrics
    learner, hyper, failed, cause = tree.map(
        lambda x: x.index_select(0, source), (state.learner, state.hyper, metrics.failed, metrics.cause)
    )
    copies = source != torch.arange(len(source), device=source.device)
    cleared = copies & (metrics.cause != CAUSES.index("environment"))
    metrics = metrics._replace(
        failed=torch.where(cleared, failed, metrics.failed),
        cause=torch.where(cleared, cause, metrics.cause),
        returns=torch.where(copies.unsqueeze(-1), torch.nan, metrics.returns),
    )
    return state._replace(learner=learner, hyper=hyper, metrics=metrics)


def explore(
    hyper: Hyper,
    changed: Tensor,
    u: Tensor,
    bounds: Mapping[str, tuple[float, float]],
    factors: Sequence[float] = (0.8, 1.2),
    from_one: Collection[str] = ("gamma",),
) -> Hyper:
    """Perturb the hyper-parameters of the changed members.

        x        clamp(x * factor, low, high)
        gamma    clamp(1 - (1 - gamma) * factor, low, high)

    `factor` is one of `factors`, drawn for each member and name. All other members, and hyper-parameters without
    bounds, keep every bit. Integers are rounded, and changed by at least 1 within their bounds, unless the product is
    equal to the number, as for 0.

    Args:
        hyper: hyper-parameters, leaves [M, ...].
        changed: [M] bool, True for the members whose hyper-parameters are perturbed.
        u: uniforms [M, N] in [0, 1), in the order of the N names in `bounds`.
        bounds: (low, high) by name, of a field of `Hyper` or one of its `numbers`.
        factors: factors to draw from, above 0.
        from_one: names of hyper-parameters close to 1, whose distance to 1 is multiplied.

    Raises ValueError or TypeError for a name that `hyper` does not have, bounds or factors out of range, and tensors of
    other shapes.
    Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846
    """
    check.kind("hyper", hyper, Hyper)
    fields = {**hyper._asdict(), **hyper.numbers}
    del fields["numbers"]
    _check_bounds(bounds, fields)
    for factor in factors:
        check.number("factors", factor, below=math.inf)
    if not factors or min(factors) <= 0:
        raise ValueError(f"factors: expected at least one, all above 0, got {tuple(factors)}")
    check.shapes(f"changed[M] u[M {len(bounds)}] hyper.learning_rate[M]", changed, u, hyper.learning_rate)
    check.boolean("changed", changed)
    check.uniforms("u", u)
    new = {
        name: _perturbed(fields[name], changed, _chosen(u[:, i], factors), limits, name in from_one)
        for i, (name, limits) in enumerate(bounds.items())
    }
    numbers = {name: new.get(name, x) for name, x in hyper.numbers.items()}
    return Hyper(**{name: new.get(name, getattr(hyper, name)) for name in Hyper._fields[:-1]}, numbers=numbers)


def evolve(
    state: TrainState,
    scores: Tensor,
    noise: PopulationNoise,
    bounds: Mapping[str, tuple[float, float]],
    fraction: float = 0.2,
    groups: int = 1,
    factors: Sequence[float] = (0.8, 1.2),
    from_one: Collection[str] = ("gamma",),
) -> tuple[TrainState, Tensor]:
    """Take one step of population based training: `exploit`, `copy`, and `explore` for the members that copied.

    Returns the state, and the source [M] of each member: itself for those that did not copy.

    Args:
        state: state of all members, leaves [M, ...].
        scores: [M]; see `scores`.
        noise: random numbers, made by `noise`.
        bounds, factors, from_one: as for `explore`.
        fraction, groups: as for `exploit`.

    Raises the errors of these functions.
    """
    check.kind("noise", noise, PopulationNoise)
    source = exploit(scores, noise.exploit, fraction, groups)
    copies = source != torch.arange(source.shape[0], device=source.device)
    state = copy(state, source)
    return state._replace(hyper=explore(state.hyper, copies, noise.explore, bounds, factors, from_one)), source


def _ranking(scores: Tensor) -> Tensor:
    """Return the indices that sort the scores [..., K], the best first; ties keep their order, NaN comes last."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order.gather(-1, scores.gather(-1, order).isnan().to(torch.int64).argsort(dim=-1, stable=True))


def _perturbed(x: Tensor, changed: Tensor, factor: Tensor, limits: tuple[float, float], from_one: bool) -> Tensor:
    """Return x [M, ...] with new values where `changed` [M] is True, for factors [M]."""
    shape = (-1,) + (1,) * (x.ndim - 1)
    wide = x if x.is_floating_point() else x.double()
    factor = factor.to(wide.dtype).reshape(shape)
    new = 1 - (1 - wide) * factor if from_one else wide * factor
    low, high = limits
    if not x.is_floating_point():
        # 0.8 and 1.2 times 2 round to 2, from which a member would never move.
        new = torch.where(new.round() == wide, wide + (new - wide).sign(), new.round())
        low, high = math.ceil(low), math.floor(high)
    new = new.clamp(low, high)
    return torch.where(changed.reshape(shape), new.to(x.dtype), x)


def _chosen(u: Tensor, factors: Sequence[float]) -> Tensor:
    """Return one of the factors, float64 [M], for each of the uniforms [M]."""
    index, chosen = (u.double() * len(factors)).floor(), torch.zeros_like(u, dtype=torch.float64)
    for i, factor in enumerate(factors):
        chosen = torch.where(index == i, factor, chosen)
    return chosen


def _check_groups(members: int, groups: int) -> None:
    check.count("groups", groups, 1)
    if members % groups:
        raise ValueError(f"groups: expected a divisor of the number of members, {members}, got {groups}")


def _check_bounds(bounds: Mapping[str, tuple[float, float]], fields: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless all names are fields and all bounds are two numbers in increasing order."""
    for name, limits in bounds.items():
        if name not in fields:
            raise ValueError(f"bounds: expected names of hyper-parameters, {', '.join(fields)}, got {name!r}")
        if len(limits) != 2 or not limits[0] <= limits[1]:
            raise ValueError(f"bounds.{name}: expected (low, high) with low <= high, got {limits}")
