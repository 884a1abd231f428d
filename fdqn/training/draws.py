"""Random numbers of training, which are functions of a seed's key and the number of the training iteration."""

import math

import torch
from torch import Tensor

from fdqn import check, random, tree
from fdqn.training import streams
from fdqn.training.state import Interaction, Noise, Program, UpdateNoise
from fdqn.types import NoiseShapes


def noise(program: Program, keys: Tensor, first_cycle: int, cycles: int) -> Noise:
    """Draw the noise of `cycles` training iterations from `first_cycle` on, for the keys [S, 2] of all seeds.

    The leaves of the result are [cycles, S, ...]. The numbers of an iteration do not depend on how many iterations are
    drawn at once.
    """
    return draw(program, cycle_keys(keys, first_cycle, cycles))


def cycle_keys(keys: Tensor, first_cycle: int, cycles: int) -> Tensor:
    """Derive keys [cycles, S, 2] from keys [S, 2]: one for each seed and training iteration, from `first_cycle` on."""
    return _numbered(keys, cycle_numbers(keys, first_cycle, cycles))


def cycle_numbers(keys: Tensor, first_cycle: int, cycles: int) -> Tensor:
    """Return the numbers [cycles] int64 of training iterations from `first_cycle` on, on the device of the keys."""
    check.shapes("keys[S 2]", keys)
    check.count("first_cycle", first_cycle)
    check.count("cycles", cycles, 1)
    return first_cycle + torch.arange(cycles, device=keys.device)


def draw_numbered(program: Program, keys: Tensor, numbers: Tensor) -> Noise:
    """Draw the noise of the training iterations `numbers` [cycles].

    Equal to `noise`, but with the numbers as a tensor, so that it compiles only once.
    """
    return draw(program, _numbered(keys, numbers))


def _numbered(keys: Tensor, numbers: Tensor) -> Tensor:
    return random.fold_in(random.fold_in(keys, streams.CYCLES), numbers.unsqueeze(-1))


def draw(program: Program, cycle_keys: Tensor) -> Noise:
    """Draw the noise of the training iterations with keys `cycle_keys` [..., 2]; leaves [..., *shape]."""
    shapes = {name: shape for name, shape in _shapes(program).items() if shape}
    sizes = [math.prod(shape) for shape in shapes.values()]
    bits = random.bits(cycle_keys, (sum(sizes),)).split(sizes, -1)
    drawn = {name: x.reshape(*x.shape[:-1], *shape) for (name, shape), x in zip(shapes.items(), bits, strict=True)}
    # Contiguous, so that `bits` can be freed and the strides do not depend on `select`.
    sample = program.algorithm.select(drawn.pop("sample")).contiguous()
    return Noise(sample=sample, **{name: random.unit(x) for name, x in drawn.items()})


def bits_per_cycle(program: Program) -> int:
    """Return the number of random 32-bit integers that one seed needs for one training iteration."""
    return sum(math.prod(shape) for shape in _shapes(program).values() if shape)


def _shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """Return the shape of each field of `Noise` for one seed; () for an unused field."""
    config, agent = program.config, program.algorithm.agent
    steps, updates = config.steps_per_cycle, config.updates_per_cycle
    acting, learning = agent.noise(config.num_envs), agent.noise(config.batch_size)
    for shapes in (acting, learning):
        check.kind("agent.noise", shapes, NoiseShapes)
    values, loss = acting.values, learning.loss
    return {
        "act": (steps, config.num_envs, 2),
        "env": (steps, config.num_envs, program.env.spec.noise),
        "sample": (updates, config.batch_size),
        "values": (steps, *values) if values else (),
        "loss": (updates, *loss) if loss else (),
    }


def interactions(noise: Noise) -> Interaction:
    """Return the random numbers of the k environment steps of an iteration: leaves [S, k, ...] become [k, S, ...]."""
    check.kind("noise", noise, Noise)
    check.shapes("noise.act[S k E 2] noise.env[S k E K]", noise.act, noise.env)
    seeds, steps = noise.act.shape[:2]
    number = torch.arange(steps, device=noise.act.device).unsqueeze(-1).repeat(1, seeds)
    act, env, values = tree.map(_swapped, (noise.act, noise.env, noise.values))
    return Interaction(act, env, number, values)


def updates(noise: Noise) -> UpdateNoise:
    """Return the random numbers of the n updates of an iteration: leaves [S, n, ...] become [n, S, ...]."""
    check.kind("noise", noise, Noise)
    check.shapes("noise.sample[S n B]", noise.sample)
    return tree.map(_swapped, UpdateNoise(noise.sample, noise.loss))


def example_update(program: Program, seeds: int) -> UpdateNoise:
    """Return zeros with the shapes and dtypes of the random numbers of one update, leaves [seeds, ...]."""
    noises = draw(program, torch.zeros((seeds, 2), dtype=torch.int64))
    return tree.map(torch.zeros_like, tree.index(updates(noises), 0))


def _swapped(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous()
