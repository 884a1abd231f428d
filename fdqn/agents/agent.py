"""Functions shared by agents: noise for several passes through a network, and checks of an agent's results."""

from typing import Any

import torch
from torch import Tensor

from fdqn import check
from fdqn.networks import NoisyNetwork
from fdqn.types import Agent, Hyper, LossOutput, NoiseShapes, Params, Transition, Uniforms


def noise_shapes(network: NoisyNetwork, passes: int, rows: int) -> NoiseShapes:
    """Return the noise shapes of an agent with one network pass in `values` and `passes` passes in `loss`.

    Every pass has independent noise. The shapes do not depend on `rows`, since a pass samples the weights once for all
    of its rows.
    """
    if network.noise == 0:
        return NoiseShapes()
    return NoiseShapes(values=(network.noise,), loss=(passes, network.noise))


def each_pass(noise: Uniforms, passes: int) -> tuple[Uniforms, ...]:
    """Split `noise [passes, K]` into the noise [K] of each pass; `()` gives `()` for each pass."""
    if not isinstance(noise, Tensor):
        return ((),) * passes
    check.shapes(f"noise[{passes} K]", noise)
    return noise.unbind(0)


def per_action(outputs: Tensor, count: int, part: str) -> Tensor:
    """Reshape the outputs [..., A * count] of a network to [..., A, count].

    Raises ValueError if the number of outputs is not a multiple of `count`; the message calls an output a `part`.
    """
    if outputs.shape[-1] % count:
        raise ValueError(
            f"network: expected a multiple of {count} outputs, one for each action and {part}, got "
            f"{outputs.shape[-1]}; make it with actions * {count} outputs"
        )
    return outputs.unflatten(-1, (-1, count))


def check_agent(agent: Agent, params: Params, batch: Transition, hyper: Hyper) -> None:
    """Call each function of an agent once, with zeros as noise, and check the types and shapes of its results.

    Args:
        agent: the agent.
        params: parameters of one seed, also used as target parameters.
        batch: transitions, leaves [B, ...]; the number of actions is taken from `next_legal` [B, A].
        hyper: hyper-parameters of one seed.

    Raises TypeError for a field or result of the wrong type, and ValueError for values that are not [B, A] or a loss, q
    or priority that is not [B]. Works on fake tensors.
    """
    check.kind("agent", agent, Agent)
    for name in ("init", "values", "loss", "noise"):
        check.function(f"agent.{name}", getattr(agent, name))
    check.kind("agent.needs_legal", agent.needs_legal, bool)
    check.shapes("batch.action[B] batch.next_legal[B A]", batch.action, batch.next_legal)
    rows, actions = batch.next_legal.shape
    shapes = agent.noise(rows)
    check.kind("agent.noise", shapes, NoiseShapes)
    q = agent.values(params, batch.obs, _zeros(shapes.values, batch))
    check.shapes(f"agent.values[{rows} {actions}]", q)
    check.floating("agent.values", q)
    check_loss_output(agent.loss(params, params, batch, hyper, _zeros(shapes.loss, batch)), rows)


def check_loss_output(output: Any, rows: int) -> None:
    """Check that `output` is a `LossOutput` of floating-point tensors [rows].

    Raises TypeError for another type or dtype and ValueError for another shape.
    """
    check.kind("agent.loss", output, LossOutput)
    for name, x in output._asdict().items():
        check.shapes(f"agent.loss.{name}[{rows}]", x)
        check.floating(f"agent.loss.{name}", x)


def _zeros(shape: tuple[int, ...], batch: Transition) -> Uniforms:
    return torch.zeros(shape, device=batch.reward.device) if shape else ()
