"""Numbers of an algorithm that differ between seeds, such as the temperature of Munchausen-DQN."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from fdqn import check
from fdqn.types import Algorithm, Diagnostics, Hyper, Learner, Params, Scalar, Transition, Uniforms

Make = Callable[[Mapping[str, Any]], Algorithm]
"""`make(numbers) -> algorithm`, for numbers by name: Python numbers, or tensors of one seed."""


def parametrized(make: Make, numbers: Mapping[str, Scalar]) -> Algorithm:
    """Make an algorithm whose numbers may differ between seeds.

        init, values, observe, update = those of make({**numbers, **hyper.numbers})

    `make` is called with the numbers of one seed whenever one of these functions is traced, or called eagerly, so it
    should do nothing but bind them:

        def make(numbers):
            agent = munchausen.agent(network, tau=numbers["tau"])
            return off_policy.algorithm(config, agent, buffer, optimizer)

        algorithm = training.parametrized(make, {"tau": 0.03})
        hyper = training.hyper(3, numbers={"tau": torch.tensor([0.01, 0.03, 0.1])})

    Args:
        make: makes the algorithm from its numbers by name: those given here, or tensors [...] of one seed.
        numbers: values for seeds without their own, and for everything outside of a seed: the agent, which evaluation
            uses, and the selection of rows. There they must not change which action is greedy.

    Raises TypeError for a `make` that is not a function or does not return an `Algorithm`.
    """
    check.function("make", make)
    plain = make(numbers)
    check.kind("make(numbers)", plain, Algorithm)
    return plain._replace(
        init=partial(_init, make, numbers),
        observe=partial(_observe, make, numbers),
        update=partial(_update, make, numbers),
        values=partial(_values, make, numbers),
    )


def _at(make: Make, numbers: Mapping[str, Scalar], hyper: Hyper) -> Algorithm:
    """Return the algorithm with the numbers of one seed."""
    return make({**numbers, **hyper.numbers})


def _init(
    make: Make, numbers: Mapping[str, Scalar], params: Params, hyper: Hyper, example: Transition
) -> tuple[Learner, Any]:
    return _at(make, numbers, hyper).init(params, hyper, example)


def _observe(
    make: Make,
    numbers: Mapping[str, Scalar],
    learner: Learner,
    buffer: Any,
    batch: Transition,
    ended: Tensor,
    valid: Tensor | None,
    hyper: Hyper,
) -> Any:
    return _at(make, numbers, hyper).observe(learner, buffer, batch, ended, valid, hyper)


def _update(
    make: Make,
    numbers: Mapping[str, Scalar],
    learner: Learner,
    buffer: Any,
    sample: Tensor,
    noise: Uniforms,
    hyper: Hyper,
) -> tuple[Learner, Any, Diagnostics]:
    return _at(make, numbers, hyper).update(learner, buffer, sample, noise, hyper)


def _values(
    make: Make, numbers: Mapping[str, Scalar], params: Params, obs: Tensor, noise: Uniforms, hyper: Hyper
) -> Tensor:
    return _at(make, numbers, hyper).agent.values(params, obs, noise)
