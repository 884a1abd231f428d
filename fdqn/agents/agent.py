"""Parts that agents share: noise for several passes through a network, and checks of what an agent returns."""

from typing import Any

import torch
from torch import Tensor

from fdqn import check
from fdqn.networks import NoisyNetwork
from fdqn.types import Agent, Hyper, LossOutput, NoiseShapes, Params, Transition, Uniforms


def noise_shapes(network: NoisyNetwork, passes: int, rows: int) -> NoiseShapes:
    """Shapes of the noise of an agent whose `values` take one pass through the network and whose `loss` takes `passes`,
    each with noise of its own. Independent of the number of rows: a pass uses one sample of weights for all of them.
    """
    if network.noise == 0:
        return NoiseShapes()
    return NoiseShapes(values=(network.noise,), loss=(passes, network.noise))


def each_pass(noise: Uniforms, passes: int) -> tuple[Uniforms, ...]:
    """The noise of each pass: the rows of `noise [passes, K]`, or `()` for each where it is `()`."""
    if not isinstance(noise, Tensor):
        return ((),) * passes
    check.shapes(f"noise[{passes} K]", noise)
    return noise.unbind(0)


def check_agent(agent: Agent, params: Params, batch: Transition, hyper: Hyper) -> None:
    """Call the parts of an agent once on zeros of noise and check the shapes of what they return.

    Args:
        agent: the agent.
        params: parameters of one seed, which also serve as the target's.
        batch: transitions with leaves [B, ...]; `next_legal` says how many actions there are.
        hyper: hyper-parameters of one seed.

    Raises TypeError for a part of another type, and ValueError, naming the part, for values that are not [B, A] and for
    a loss, q or priority that is not [B]. All of it works on fake tensors.
    """
    check.kind("agent", agent, Agent)
    for name, part in agent._asdict().items():
        check.function(f"agent.{name}", part)
    check.shapes("batch.action[B] batch.next_legal[B A]", batch.action, batch.next_legal)
    rows, actions = batch.next_legal.shape
    shapes = agent.noise(rows)
    check.kind("agent.noise", shapes, NoiseShapes)
    q = agent.values(params, batch.obs, _zeros(shapes.values, batch))
    check.shapes(f"agent.values[{rows} {actions}]", q)
    check.floating("agent.values", q)
    check_loss_output(agent.loss(params, params, batch, hyper, _zeros(shapes.loss, batch)), rows)


def check_loss_output(output: Any, rows: int) -> None:
    """Raise TypeError for anything but a `LossOutput` of floating-point tensors, and ValueError where one is not
    [rows].
    """
    check.kind("agent.loss", output, LossOutput)
    for name, x in output._asdict().items():
        check.shapes(f"agent.loss.{name}[{rows}]", x)
        check.floating(f"agent.loss.{name}", x)


def _zeros(shape: tuple[int, ...], batch: Transition) -> Uniforms:
    return torch.zeros(shape, device=batch.reward.device) if shape else ()
