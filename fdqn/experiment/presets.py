"""Presets: published settings, with the returns that were published and those that fdqn reaches.

This module does not import torch, so that `fdqn presets` is quick.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

PresetName = Literal[
    "minatar", "nature", "cleanrl-dqn", "cleanrl-c51", "cleanrl-pqn", "zoo-dqn", "zoo-qr-dqn", "pqn-minatar",
    "revisiting-dqn", "revisiting-qr-dqn", "revisiting-iqn", "revisiting-rainbow",
]  # fmt: skip


class Published(NamedTuple):
    """Published return in an environment."""

    mean: float
    """Mean return, as `Preset.protocol` describes."""
    deviation: float | None = None
    """Standard deviation; None if it is not given."""

    def __str__(self) -> str:
        return f"{self.mean:g}" if self.deviation is None else f"{self.mean:.2f} +- {self.deviation:.2f}"


class Preset(NamedTuple):
    """Published settings of one algorithm."""

    settings: dict[str, Any]
    """Settings for all environments, by field of `Settings`."""
    envs: dict[str, dict[str, Any]]
    """Environments, each with its additional settings. Messages suggest the first."""
    source: str
    """Address of the published settings and returns."""
    protocol: str
    """Protocol of the published returns: number of seeds, and which episodes."""
    published: dict[str, Published] = {}
    """Published returns by environment; none if they were published as figures only."""
    greedy: bool = False
    """Compare the returns of greedy episodes after training; otherwise of the last 100 training episodes."""
    any_env: bool = False
    """Accept environments that are not in `envs` as well."""


def _training(steps: int, reports: int = 50) -> dict[str, Any]:
    """Return the settings for the length of a run, and the intervals of its reports and checkpoints."""
    return {"steps": steps, "report_every": steps // reports, "checkpoint_every": steps // 5}


_BETAS: dict[str, Any] = {"adam_beta1": 0.9, "adam_beta2": 0.999}

_REPLAY: dict[str, Any] = {
    "num_envs": 1,
    "steps_per_cycle": 1,
    "updates_per_cycle": 1,
    "n_step": 1,
    "prioritized": False,
    "tau": 1.0,
    "gamma": 0.99,
    "clip_rewards": False,
    "terminal_on_life_loss": False,
    "terminal_on_truncation": False,
    "epsilon_start": 1.0,
    "random_warmup": False,
    "network": "auto",
    "dueling": False,
    "noisy": False,
    "orthogonal": False,
    "learning_rate_schedule": "constant",
}
"""Settings of all presets with a replay buffer. Written out, so that they do not change with the defaults."""

# MinAtar (Young and Tian 2019) and the Nature DQN (Mnih et al. 2015), and the settings that they share.

_PAPERS: dict[str, Any] = {
    **_REPLAY,
    "algorithm": "dqn",
    "batch_size": 32,
    "optimizer": "rmsprop",
    "rmsprop_decay": 0.95,
    "learning_rate": 2.5e-4,
    "max_grad_norm": math.inf,
    "epsilon_end": 0.1,
    "random_warmup": True,
    "double": False,
    "loss": "huber",
    "huber_delta": 1.0,
}

_MINATAR = Preset(
    settings={
        **_PAPERS,
        "steps": 5_000_000,
        "num_envs": 1,
        "capacity": 100_000,
        "learning_starts": 5_000,
        "target_period": 1_000,
        "epsilon_fraction": 0.02,
        "report_every": 25_000,
        "checkpoint_every": 100_000,
    },
    envs={f"minatar:{game}": {} for game in ("breakout", "asterix", "freeway", "seaquest", "space_invaders")},
    source="https://arxiv.org/abs/1903.03176",
    protocol="30 seeds, the last 100 training episodes, read off a figure",
    published={
        "minatar:breakout": Published(10),
        "minatar:asterix": Published(16.5),
        "minatar:freeway": Published(50),
        "minatar:seaquest": Published(20),
        "minatar:space_invaders": Published(44),
    },
    any_env=True,
)

_NATURE = Preset(
    settings={
        **_PAPERS,
        "optimizer": "nature-rmsprop",
        "rmsprop_decay": 0.95,
        "seeds": 1,
        "steps": 10_000_000,
        "num_envs": 4,
        "capacity": 1_000_000,
        "learning_starts": 50_000,
        "target_period": 10_000,
        "epsilon_fraction": 0.1,
        "clip_rewards": True,
        "terminal_on_life_loss": True,
        "evaluate_epsilon": 0.05,
        "evaluate_episodes": 30,
        "report_every": 50_000,
        "checkpoint_every": 1_000_000,
    },
    envs={"ale:Breakout": {}, "ale:Pong": {}, "ale:BeamRider": {}},
    source="https://doi.org/10.1038/nature14236",
    protocol="after 50 million steps, the best parameters of a run, mean and standard deviation of 30 episodes with "
    "epsilon 0.05",
    published={
        "ale:Breakout": Published(401.2, 26.9),
        "ale:Pong": Published(18.9, 1.3),
        "ale:BeamRider": Published(6846, 1619),
    },
    greedy=True,
    any_env=True,
)

# CleanRL.

_CLEANRL: dict[str, Any] = {
    **_training(500_000),
    "gamma": 0.99,
    "batch_size": 128,
    "network": "auto",
    "hidden": (120, 84),
    "dueling": False,
    "learning_rate": 2.5e-4,
    "epsilon_start": 1.0,
    "epsilon_end": 0.05,
    "epsilon_fraction": 0.5,
    "clip_rewards": False,
    "terminal_on_life_loss": False,
}
_CLEANRL_REPLAY: dict[str, Any] = {
    **_REPLAY,
    **_CLEANRL,
    "capacity": 10_000,
    "learning_starts": 10_000,
    "target_period": 50,
    "optimizer": "adam",
    **_BETAS,
    "max_grad_norm": math.inf,
    "double": False,
}
# Environments, and steps of each between two updates.
_CLEANRL_ENVS = {
    "cartpole": {"num_envs": 10, "steps_per_cycle": 1},
    "acrobot": {"num_envs": 10, "steps_per_cycle": 1},
    "mountain_car": {"num_envs": 1, "steps_per_cycle": 10},
}
_CLEANRL_PROTOCOL = "mean and standard deviation over 3 seeds of the last 100 training episodes"

_CLEANRL_DQN = Preset(
    settings={**_CLEANRL_REPLAY, "algorithm": "dqn", "loss": "mse", "adam_eps": 1e-8},
    envs=_CLEANRL_ENVS,
    source="https://docs.cleanrl.dev/rl-algorithms/dqn/#dqnpy",
    protocol=_CLEANRL_PROTOCOL,
    published={
        "cartpole": Published(488.69, 16.11),
        "acrobot": Published(-91.54, 7.20),
        "mountain_car": Published(-194.95, 8.48),
    },
)

_CLEANRL_C51 = Preset(
    settings={
        **_CLEANRL_REPLAY, "algorithm": "c51", "v_min": -100.0, "v_max": 100.0, "atoms": 101, "adam_eps": 0.01 / 128,
    },
    envs=_CLEANRL_ENVS,
    source="https://docs.cleanrl.dev/rl-algorithms/c51/#c51py",
    protocol=_CLEANRL_PROTOCOL,
    published={
        "cartpole": Published(481.20, 20.53),
        "acrobot": Published(-87.70, 5.52),
        "mountain_car": Published(-166.38, 27.94),
    },
)  # fmt: skip

_CLEANRL_PQN = Preset(
    settings={
        **_CLEANRL,
        "algorithm": "pqn",
        "terminal_on_truncation": True,
        "num_envs": 4,
        "steps_per_cycle": 128,
        "updates_per_cycle": 16,
        "q_lambda": 0.65,
        "optimizer": "radam",
        **_BETAS,
        "adam_eps": 1e-8,
        "learning_rate_schedule": "linear",
        "learning_rate_end": 0.0,
        "max_grad_norm": 10.0,
        "loss": "mse",
        "orthogonal": True,
    },
    envs={"cartpole": {}, "acrobot": {}, "mountain_car": {}},
    source="https://docs.cleanrl.dev/rl-algorithms/pqn/#pqnpy",
    protocol=_CLEANRL_PROTOCOL,
    published={
        "cartpole": Published(495.13, 6.89),
        "acrobot": Published(-95.63, 5.73),
        "mountain_car": Published(-200.0, 0.0),
    },
)

# RL Zoo (Stable-Baselines3).


def _zoo(
    n_timesteps: int,
    learning_rate: float,
    batch_size: int,
    buffer_size: int,
    learning_starts: int,
    target_update_interval: int,
    train_freq: int,
    gradient_steps: int,
    exploration_fraction: float,
    exploration_final_eps: float,
    gamma: float = 0.99,
    **others: Any,
) -> dict[str, Any]:
    """Convert settings of Stable-Baselines3, which counts environment steps where `Settings` counts updates.

    Stable-Baselines3 makes a burst of `gradient_steps` updates (-1: `train_freq`) after every `train_freq` steps, from
    the first burst after more than `learning_starts` steps on. It copies the target network between bursts. It anneals
    epsilon from the first step, but acts randomly until `learning_starts`.
    """
    updates = train_freq if gradient_steps == -1 else gradient_steps
    bursts = max(1, round(target_update_interval / train_freq))
    warmup, annealed = learning_starts // train_freq * train_freq, exploration_fraction * n_timesteps
    return {
        **_training(n_timesteps, reports=20),
        "steps_per_cycle": train_freq,
        "updates_per_cycle": updates,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "gamma": gamma,
        "capacity": buffer_size,
        "learning_starts": warmup,
        "target_period": bursts * updates,
        "random_warmup": True,
        "epsilon_start": 1 - (1 - exploration_final_eps) * warmup / annealed,
        "epsilon_end": exploration_final_eps,
        "epsilon_fraction": (annealed - warmup) / n_timesteps,
        **others,
    }


def _with_quantiles(quantiles: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add the number of quantiles, and the eps that Adam has in sb3-contrib's QR-DQN."""
    return {**settings, "quantiles": quantiles, "adam_eps": 0.01 / settings["batch_size"]}


_ZOO: dict[str, Any] = {**_REPLAY, "hidden": (256, 256), "optimizer": "adam", **_BETAS, "double": False}
_ZOO_CARTPOLE = _zoo(50_000, 2.3e-3, 64, 100_000, 1_000, 10, 256, 128, 0.16, 0.04)
_ZOO_MOUNTAIN_CAR = _zoo(120_000, 4e-3, 128, 10_000, 1_000, 600, 16, 8, 0.2, 0.07, gamma=0.98)
_ZOO_LUNAR_LANDER = _ZOO_ACROBOT = _zoo(100_000, 6.3e-4, 128, 50_000, 0, 250, 4, -1, 0.12, 0.1)
_ZOO_QR_LUNAR_LANDER = _zoo(
    100_000, 1.5e-3 * (1 - 10_240 / 100_000), 128, 100_000, 10_000, 1, 256, -1, 0.24, 0.18, gamma=0.995,
    learning_rate_schedule="linear", learning_rate_end=0.0,
)  # fmt: skip
_ZOO_PROTOCOL = "mean and standard deviation of the greedy episodes of one policy in 150,000 steps"

_ZOO_DQN = Preset(
    settings={**_ZOO, "algorithm": "dqn", "loss": "huber", "huber_delta": 1.0, "adam_eps": 1e-8, "max_grad_norm": 10.0},
    envs={
        "cartpole": _ZOO_CARTPOLE,
        "acrobot": _ZOO_ACROBOT,
        "mountain_car": _ZOO_MOUNTAIN_CAR,
        "gym:LunarLander-v3": _ZOO_LUNAR_LANDER,
    },
    source="https://github.com/DLR-RM/rl-baselines3-zoo",
    protocol=f"{_ZOO_PROTOCOL}; LunarLander-v2",
    published={
        "cartpole": Published(500.0, 0.0),
        "acrobot": Published(-76.639, 11.752),
        "mountain_car": Published(-100.849, 9.925),
        "gym:LunarLander-v3": Published(154.382, 79.241),
    },
    greedy=True,
)

_ZOO_QR_DQN = Preset(
    settings={**_ZOO, "algorithm": "qr-dqn", "kappa": 1.0, "max_grad_norm": math.inf},
    envs={
        "cartpole": _with_quantiles(10, _ZOO_CARTPOLE),
        "acrobot": _with_quantiles(25, _ZOO_ACROBOT),
        "mountain_car": _with_quantiles(25, _ZOO_MOUNTAIN_CAR),
        "gym:LunarLander-v3": _with_quantiles(170, _ZOO_QR_LUNAR_LANDER),
    },
    source="https://github.com/DLR-RM/rl-baselines3-zoo",
    protocol=f"{_ZOO_PROTOCOL}; LunarLander-v2",
    published={
        "cartpole": Published(500.0, 0.0),
        "acrobot": Published(-69.135, 9.967),
        "mountain_car": Published(-106.042, 15.536),
        "gym:LunarLander-v3": Published(70.236, 225.491),
    },
    greedy=True,
)

# PQN (Gallici et al. 2024).

_PQN_MINATAR = Preset(
    settings={
        **_training(10_000_000),
        "algorithm": "pqn",
        "num_envs": 128,
        "steps_per_cycle": 32,
        "updates_per_cycle": 64,
        "batch_size": 128,
        "gamma": 0.99,
        "q_lambda": 0.65,
        "clip_rewards": False,
        "terminal_on_life_loss": False,
        "terminal_on_truncation": False,
        "epsilon_start": 1.0,
        "epsilon_end": 0.05,
        "epsilon_fraction": 0.1,
        "network": "auto",
        "dueling": False,
        "orthogonal": True,
        "optimizer": "radam",
        **_BETAS,
        "adam_eps": 1e-8,
        "learning_rate": 5e-4,
        "learning_rate_schedule": "linear",
        "learning_rate_end": 0.0,
        "max_grad_norm": 10.0,
        "loss": "mse",
    },
    envs=_MINATAR.envs,
    source="https://github.com/mttga/purejaxql",
    protocol="no numbers published",
)

# Revisiting Rainbow (Obando-Ceron and Castro 2021).

_REVISITING: dict[str, Any] = {
    **_REPLAY,
    **_training(30_000, reports=30),
    "batch_size": 128,
    "capacity": 50_000,
    "learning_starts": 500,
    "hidden": (512, 512),
    "optimizer": "adam",
    **_BETAS,
    "adam_eps": 3.125e-4,
    "max_grad_norm": math.inf,
    "epsilon_start": 0.01,
    "epsilon_end": 0.01,
    "epsilon_fraction": 0.0,
    "double": False,
}
_LUNAR_LANDER_LENGTH = _training(120_000, reports=30)
_REVISITING_SOURCE = "https://github.com/JohanSamir/revisiting_rainbow"
_REVISITING_PROTOCOL = "figures only: training returns of 100 seeds"


def _dopamine(update_period: int, target_update_period: int, learning_rate: float, **others: Any) -> dict[str, Any]:
    """Convert settings of Dopamine, which counts environment steps where `Settings` counts updates."""
    return {
        "steps_per_cycle": update_period,
        "target_period": target_update_period // update_period,
        "learning_rate": learning_rate,
        **others,
    }


_REVISITING_DQN = Preset(
    settings={**_REVISITING, "algorithm": "dqn", "loss": "mse"},
    envs={
        "cartpole": _dopamine(4, 100, 1e-3),
        "acrobot": _dopamine(4, 100, 1e-3),
        "mountain_car": _dopamine(4, 100, 1e-2),
        "gym:LunarLander-v3": _dopamine(4, 300, 1e-3, **_LUNAR_LANDER_LENGTH),
    },
    source=_REVISITING_SOURCE,
    protocol=_REVISITING_PROTOCOL,
)

_REVISITING_QR_DQN = Preset(
    settings={**_REVISITING, "algorithm": "qr-dqn", "quantiles": 51, "kappa": 1.0},
    envs={
        "cartpole": _dopamine(2, 100, 1e-4),
        "acrobot": _dopamine(2, 100, 1e-4),
        "mountain_car": _dopamine(2, 100, 1e-4),
        "gym:LunarLander-v3": _dopamine(4, 300, 1e-3, **_LUNAR_LANDER_LENGTH),
    },
    source=_REVISITING_SOURCE,
    protocol=_REVISITING_PROTOCOL,
)

_REVISITING_IQN = Preset(
    settings={**_REVISITING, "algorithm": "iqn", "fractions": 32, "cosines": 64, "kappa": 1.0},
    envs={
        "acrobot": _dopamine(2, 100, 1e-4),
        "mountain_car": _dopamine(2, 100, 1e-4),
        "gym:LunarLander-v3": _dopamine(2, 100, 1e-3, **_LUNAR_LANDER_LENGTH),
    },
    source=_REVISITING_SOURCE,
    protocol=_REVISITING_PROTOCOL,
)

_REVISITING_RAINBOW = Preset(
    settings={
        **_REVISITING,
        "algorithm": "rainbow",
        "n_step": 3,
        "prioritized": True,
        "priority_alpha": 0.5,
        "priority_beta": 0.5,
        "dueling": True,
        "noisy": True,
        "sigma_zero": 0.1,
        "double": True,
        "atoms": 51,
    },
    envs={
        "cartpole": _dopamine(2, 100, 1e-4, v_min=-200.0, v_max=200.0),
        "acrobot": _dopamine(2, 100, 1e-4, v_min=-200.0, v_max=200.0),
        "mountain_car": _dopamine(2, 100, 1e-4, v_min=-100.0, v_max=100.0),
        "gym:LunarLander-v3": _dopamine(4, 300, 1e-3, v_min=-300.0, v_max=300.0, **_LUNAR_LANDER_LENGTH),
    },
    source=_REVISITING_SOURCE,
    protocol=_REVISITING_PROTOCOL,
)

PRESETS: dict[PresetName, Preset] = {
    "minatar": _MINATAR,
    "nature": _NATURE,
    "cleanrl-dqn": _CLEANRL_DQN,
    "cleanrl-c51": _CLEANRL_C51,
    "cleanrl-pqn": _CLEANRL_PQN,
    "zoo-dqn": _ZOO_DQN,
    "zoo-qr-dqn": _ZOO_QR_DQN,
    "pqn-minatar": _PQN_MINATAR,
    "revisiting-dqn": _REVISITING_DQN,
    "revisiting-qr-dqn": _REVISITING_QR_DQN,
    "revisiting-iqn": _REVISITING_IQN,
    "revisiting-rainbow": _REVISITING_RAINBOW,
}
"""Presets by name. Differences from the authors' code:

minatar (Young and Tian 2019, https://arxiv.org/abs/1903.03176; examples/dqn.py of kenjyoung/MinAtar)
- Minibatches are sampled with replacement; theirs without.
- Episodes are truncated after 10,000 steps, and training bootstraps there; theirs have no limit.
- The first update follows step 5,001; theirs step 5,002.
- RMSprop has no momentum, as in their code until December 2024; since then theirs has a momentum of 0.95.

nature (Mnih et al. 2015, https://doi.org/10.1038/nature14236; google-deepmind/dqn)
- Four environments take one step each between updates; theirs is one environment that takes four.
- 10 million steps, the first fifth of their 50 million. One seed, because its replay takes 7.6 GB.
- The target network is copied every 10,000 updates, as in the paper; their code copies it every 10,000 steps, which
  are 2,500 updates.
- In games that wait for the fire button, it is pressed at the start of an episode. Episodes are truncated after half
  an hour.
- The final parameters are evaluated on whole episodes; theirs are evaluated every 250,000 steps, and the best are
  reported.

cleanrl-dqn, cleanrl-c51 (vwxyzjn/cleanrl; dqn.py, c51.py)
- In CartPole and Acrobot ten environments take one step each between updates, which compiles faster; theirs is one
  environment that takes ten. In MountainCar, where it matters, one environment takes ten steps.
- The target network is copied every 50 updates from the first update on; theirs every 500 steps, also before it.
- c51.py limits probabilities to [1e-5, 1 - 1e-5] in the loss; here their logarithm is computed from the logits.

cleanrl-pqn (vwxyzjn/cleanrl; pqn.py)
- The learning rate is annealed after every update; theirs after every 16.
- Epsilon depends on the number of steps before the action; theirs includes the four steps of the action itself.
- There are 977 training iterations, the last of which goes beyond 500,000 steps; theirs are 976.

zoo-dqn, zoo-qr-dqn (DLR-RM/rl-baselines3-zoo, hyperparams/dqn.yml and qrdqn.yml with the defaults of
Stable-Baselines3 and sb3-contrib; benchmark.md)
- The target network is copied between bursts of updates at the nearest multiple of a burst: every 248 instead of 250
  steps in Acrobot and LunarLander, every 608 instead of 600 steps in MountainCar. In CartPole, and in LunarLander with
  QR-DQN, theirs too is a copy after every burst.
- Actions are random until the first burst starts to be collected (step 768 of CartPole, 992 of MountainCar, 9,984 of
  LunarLander with QR-DQN); theirs until 1,000, 1,000 and 10,000 steps. Epsilon is the same from then on.
- LunarLander with QR-DQN: the learning rate is annealed after every update; theirs after every 256.
- LunarLander-v3; their published numbers are of version 2.
- The published returns are those of a single policy; fdqn's are means over seeds.

pqn-minatar (Gallici et al. 2024, https://arxiv.org/abs/2407.04811; mttga/purejaxql, config/alg/pqn_minatar.yaml)
- The environments are those of the `minatar` package, with sticky actions, six actions and at most 10,000 steps.
  Theirs are those of gymnax, without sticky actions, with fewer actions and at most 1,000 steps.
- Observations are 0 or 1; theirs are divided by 255. LayerNorm removes this factor, except for the effect of its eps.
- Training bootstraps at the step limit; theirs treats it as termination.
- LayerNorm normalizes the output of the convolution over channels, height and width together; theirs over the channels
  of each position. The constant in it is 1e-5; theirs is 1e-6.
- Initial weights are orthogonal times sqrt(2); theirs are He normal, in the last layer LeCun normal.
- Epsilon is annealed at every step; theirs is constant within a rollout.
- There are 2,442 training iterations, the last of which goes beyond 10 million steps; theirs are 2,441.
- The loss is the mean squared error; theirs is half of it, so their gradients reach the clipping norm later.
- The return of the last but one step of a rollout bootstraps from its own next observation; theirs from the last one.

revisiting-* (Obando-Ceron and Castro 2021, https://arxiv.org/abs/2011.14826; JohanSamir/revisiting_rainbow, Configs)
- Observations are not scaled to [-1, 1]; theirs are, except in LunarLander.
- Episodes have the time limits of Gymnasium: 500 steps in CartPole and Acrobot, 200 in MountainCar. Theirs are 200
  (CartPole-v0), 500 and 600.
- Linear layers have the initial weights of PyTorch; theirs are Glorot uniform with biases of 0.
- Rainbow: the exponent of the importance-sampling weights is annealed from 0.5 to 1; theirs stays at 0.5.
- Rainbow: noise is drawn for every step and every update; their code draws it once.
- Rainbow: priorities are divergences from the target distribution; theirs are square roots of the cross-entropy.
- Rainbow: one draw in a thousand is uniform over all rows; theirs all follow the priorities.
- IQN has no preset for CartPole, where their configuration is Munchausen-IQN.
- LunarLander-v3; theirs is version 2.
- Their repository has no configuration of C51 alone.
"""

SCORES = Path(__file__).with_name("scores.jsonl")
"""Returns that fdqn reaches: one JSON object per line, written by `benchmarks/presets.py`."""


def example(name: PresetName) -> str:
    """Return the environment that messages suggest for a preset."""
    return next(iter(PRESETS[name].envs))


def values(name: str, env: str | None = None) -> dict[str, Any]:
    """Return the settings of a preset in an environment, by field of `Settings`.

    Args:
        name: preset.
        env: environment; needed unless the preset has only one.

    Raises ValueError for an unknown preset, a missing environment, and an environment without settings in the preset,
    and TypeError for an environment that is not a string.
    """
    if env is not None and not isinstance(env, str):
        raise TypeError(f"env: expected a word, got {env!r}")
    if name not in get_args(PresetName):
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    preset = PRESETS[name]  # type: ignore[index]
    if env is None:
        if len(preset.envs) > 1 or preset.any_env:
            raise ValueError(f"env: expected one with preset {name!r}, got none; give env='{next(iter(preset.envs))}'")
        (env,) = preset.envs
    if env not in preset.envs and not preset.any_env:
        raise ValueError(f"env: expected an environment of preset {name!r} ({', '.join(preset.envs)}), got {env}")
    return {**preset.settings, **preset.envs.get(env, {}), "env": env}


def scores() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the newest record of `SCORES` for each pair of preset and environment."""
    lines = SCORES.read_text(encoding="utf-8").splitlines() if SCORES.exists() else []
    records = [json.loads(line) for line in lines]
    return {(record["preset"], record["env"]): record for record in records}


def rows() -> list[dict[str, Any]]:
    """Return a row per preset and environment: algorithm, steps, the published return, and that of fdqn as `ours`.

    `published` and `ours` are None if there is no number.
    """
    ours = scores()
    return [_row(name, env, ours.get((name, env))) for name, preset in PRESETS.items() for env in preset.envs]


def _row(name: PresetName, env: str, ours: dict[str, Any] | None) -> dict[str, Any]:
    preset, settings = PRESETS[name], values(name, env)
    published = preset.published.get(env)
    return {
        "preset": name,
        "env": env,
        "algorithm": settings["algorithm"],
        "steps": settings["steps"],
        "published": None if published is None else published._asdict(),
        "source": preset.source,
        "protocol": preset.protocol,
        "measure": measure(name),
        "ours": ours,
        "command": f"fdqn train --preset {name} --env {env}" + (f" --seeds {ours['seeds']}" if ours else ""),
    }


def measure(name: PresetName) -> str:
    """Return which returns a preset compares: "greedy" or "training"."""
    return "greedy" if PRESETS[name].greedy else "training"


def published_text(row: Mapping[str, Any]) -> str:
    """Format the published return of a row: mean and standard deviation, or -."""
    return "-" if row["published"] is None else str(Published(**row["published"]))


def ours_text(row: Mapping[str, Any]) -> str:
    """Format fdqn's return of a row: the mean over the seeds and its 95% interval, or -."""
    ours = row["ours"]
    return "-" if ours is None else f"{ours['mean']:.2f} [{ours['low']:.2f}, {ours['high']:.2f}]"


def seconds_text(row: Mapping[str, Any]) -> str:
    """Format the wall-clock time of fdqn's run of a row, or -."""
    if row["ours"] is None:
        return "-"
    seconds = row["ours"]["seconds"]
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
