"""The law of an `Algorithm`: a run is a function of its keys."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.func import vmap

from fdqn import random, training, tree
from fdqn.testing import laws, programs
from fdqn.testing.asserts import assert_trees_close, assert_trees_equal
from fdqn.testing.leaves import copied
from fdqn.types import Algorithm, Hyper

__all__ = ["algorithm"]


def algorithm(
    program: training.Program,
    hyper: Hyper,
    keys: torch.Tensor,
    cycles: int = 8,
    atol: float = 1e-5,
    rtol: float = 1e-5,
) -> None:
    """Check that training is a function of the keys, and that the parts of the algorithm fit together.

    Equal keys give equal bits in any state of the global generators; seeds in another order give the same states in
    that order; `select` is pure and independent of leading axes; updates that are done again give the same result;
    `observe` and `cut` keep the structure of the buffer; no counter exceeds `bounds`.

    Args:
        program: pairs the algorithm with a pure environment.
        hyper: hyper-parameters [S].
        keys: keys [S, 2].
        cycles: training iterations to run, enough for the first updates.
        atol: absolute tolerance of floats between different orders of the seeds.
        rtol: relative tolerance.
    """
    own, config = program.algorithm, program.config
    state = copied(programs.advance(program, training.init(program, hyper, keys), cycles))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        again = programs.advance(program, training.init(program, hyper, keys), cycles)
    assert_trees_equal(state, again, "the same keys: ")

    order = list(range(len(keys)))[::-1]
    turned = training.init(program, tree.index(hyper, order), keys[order])
    expected = tree.index(state, order)
    assert_trees_close(expected, programs.advance(program, turned, cycles), atol, rtol, "seeds in another order: ")

    bits = random.bits(keys, (config.updates_per_cycle, config.batch_size))
    selected = laws.pure(own.select, bits)
    assert selected.shape == bits.shape, f"select: expected shape {list(bits.shape)}, got {list(selected.shape)}"
    assert selected.dtype == torch.int64, f"select: expected torch.int64, got {selected.dtype}"
    assert_trees_equal(torch.stack([own.select(x) for x in bits]), selected, "select, one seed after the other: ")

    noise = tree.index(training.updates(tree.index(training.noise(program, keys, cycles, 1), 0)), 0)
    laws.pure(vmap(partial(_update, own)), state, noise)
    cut = vmap(own.cut)(state.buffer)
    _assert_same_kind("cut", state.buffer, cut)
    for name, (counter, highest) in own.bounds(state.buffer, cycles * config.env_steps).items():
        inside = bool(((counter >= 0) & (counter <= highest)).all())
        assert inside, f"bounds: expected {name} from 0 to {highest}, got {counter.tolist()}"


def _update(own: Algorithm, state: training.TrainState, noise: training.UpdateNoise) -> Any:
    return own.update(state.learner, state.buffer, noise.sample, noise.loss, state.hyper)


def _assert_same_kind(name: str, expected: Any, got: Any) -> None:
    """Assert equal structure, shapes and dtypes."""
    kinds: list[Callable[[Any], Any]] = [lambda x: tuple(x.shape), lambda x: x.dtype]
    assert tree.structure(expected) == tree.structure(got), f"{name}: expected the structure of its argument"
    for path, old, new in zip(tree.paths(expected), tree.leaves(expected), tree.leaves(got), strict=True):
        assert all(kind(old) == kind(new) for kind in kinds), (
            f"{name}{path}: expected {kinds[0](old)}, got {kinds[0](new)}"
        )
