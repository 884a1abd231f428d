"""Atari games of the Arcade Learning Environment, with the preprocessing of the Nature paper.

Mnih et al. 2015, https://doi.org/10.1038/nature14236
"""

import difflib
import re
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from fdqn.envs.host import gymnasium
from fdqn.types import HostEnv

STACK = 4
"""Frames in an observation."""

EVALUATION_STEPS = 4_500
"""Time limit of evaluation episodes: five minutes, as in the Nature paper."""


def make(name: str) -> HostEnv:
    """Make the game called `name`, such as Breakout.

    Observations are the last four grey frames of 84 x 84. An action is repeated for four frames; the maximum of the
    last two is the observed frame. An episode starts with up to 30 no-op steps, and with the fire button in games that
    wait for it. It lasts at most half an hour, in evaluation five minutes. Rewards are not clipped.

    Raises ValueError if ale-py is not installed or has no such game.
    """
    try:
        from ale_py import roms
    except ImportError:
        raise ValueError(f"env: expected ale-py for ale:{name}, got none; pip install 'fdqn[atari]'") from None
    game = re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if game not in (known := sorted(roms.get_all_rom_ids())):
        near = difflib.get_close_matches(game, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; ale-py has {len(known)}"
        raise ValueError(f"env: expected a game of ale-py, got {name!r}{hint}")
    return gymnasium.from_vector(f"ale:{name}", partial(_game, game), partial(_recorded, game), STACK, EVALUATION_STEPS)


def _game(game: str, num_envs: int, **settings: Any) -> VectorEnv:
    from ale_py import vector_env

    settings = {"stack_num": STACK, **settings, "reward_clipping": False, "autoreset_mode": AutoresetMode.SAME_STEP}
    return _SeedsAsArray(vector_env.AtariVectorEnv(game, num_envs, num_threads=1, **settings))


def _recorded(game: str, num_envs: int) -> VectorEnv:
    coloured = _game(game, num_envs, grayscale=False, img_height=210, img_width=160, stack_num=1)
    return _WithColour(_game(game, num_envs), coloured)


class _SeedsAsArray(VectorWrapper):
    """Pass seeds to ale-py as an array of the upper 31 of their 32 bits, the largest that it accepts."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=np.asarray(seed, np.int64) >> 1, options=options)  # type: ignore[arg-type]


class _WithColour(VectorWrapper):
    """Play the same game twice, with the same seeds and actions; the second one's colour frames are rendered."""

    def __init__(self, env: VectorEnv, coloured: VectorEnv) -> None:
        super().__init__(env)
        self.coloured = coloured

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.frames, _ = self.coloured.reset(seed=seed, options=options)
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, ...]:
        self.frames, *_ = self.coloured.step(actions)
        return self.env.step(actions)

    def render(self) -> tuple[Any, ...]:
        return tuple(self.frames)

    def close(self, **how: Any) -> None:
        self.coloured.close(**how)
        self.env.close(**how)
