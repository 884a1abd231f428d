"""Render pure environments from their observations.

An environment with an equivalent in Gymnasium is rendered by the latter; a board has one colour per plane.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from fdqn.types import EnvSpec

Frame = NDArray[np.uint8]
"""[H, W, 3]: red, green and blue."""

COLOURS = (
    (86, 180, 233), (240, 228, 66), (140, 140, 140), (230, 97, 0), (0, 170, 120),
    (204, 121, 167), (255, 255, 255), (60, 110, 230), (230, 60, 60), (170, 220, 130),
)  # fmt: skip
"""Colours of the planes of a board, repeated after the tenth. The background is black."""


@contextlib.contextmanager
def renderer(name: str, spec: EnvSpec, counterpart: str | None = None) -> Iterator[Callable[[NDArray], Frame]]:
    """Give a function that draws an observation [*O] while the context is open.

    Raises ValueError if there is no `counterpart` and observations are not boards.

    Args:
        name: of the environment, for messages.
        spec: of the environment.
        counterpart: name of the equivalent environment of Gymnasium, if there is one.
    """
    if counterpart is not None:
        with contextlib.closing(gymnasium.make(counterpart, render_mode="rgb_array")) as env:
            env.reset()
            yield lambda obs: _counterpart_frame(env, obs)
    elif len(spec.obs_shape) in (2, 3) and (spec.obs_dtype == torch.bool or spec.obs_dtype.is_floating_point):
        yield board
    else:
        raise ValueError(
            f"video: expected an environment that renders, got {name}, whose observations are {list(spec.obs_shape)} "
            f"of {spec.obs_dtype}; of pure environments, boards are drawn: [H, W] or [planes, H, W], bool or float"
        )


def board(obs: NDArray) -> Frame:
    """Draw a board: each cell has the colour of the last plane that is not 0 there, and is black if there is none.

    Raises ValueError for another number of axes. Shapes: obs [H, W] or [P, H, W].
    """
    if obs.ndim not in (2, 3):
        raise ValueError(f"obs: expected a board [H, W] or [P, H, W], got {list(obs.shape)}")
    planes = obs.reshape(-1, *obs.shape[-2:]) != 0
    last = np.where(planes, 1 + np.arange(len(planes))[:, None, None], 0).max(0)
    palette = [(0, 0, 0), *(COLOURS[i % len(COLOURS)] for i in range(len(planes)))]
    return np.array(palette, np.uint8)[last]


def _counterpart_frame(env: gymnasium.Env, obs: NDArray) -> Frame:
    """Render Gymnasium's environment in the state that `obs` shows."""
    # Acrobot's observation has 6 numbers; that of the two others is their state.
    env.unwrapped.state = _angles(obs) if len(obs) == 6 else obs.astype(np.float64)  # type: ignore[attr-defined]
    return env.unwrapped.render()  # type: ignore[return-value]


def _angles(obs: NDArray) -> NDArray[np.float64]:
    """Compute Acrobot's state, two angles and their velocities, from its observation: cosines, sines, velocities."""
    cos1, sin1, cos2, sin2, *speeds = obs.tolist()
    return np.array([math.atan2(sin1, cos1), math.atan2(sin2, cos2), *speeds])
