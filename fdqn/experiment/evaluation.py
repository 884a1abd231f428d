"""Evaluate the trained seeds of a run folder: `load` them, `play` episodes, `record_video` of some."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fdqn import check, compile, envs, tree
from fdqn.experiment import assemble, events, results, session, sweep_results
from fdqn.experiment.events import OnEvent
from fdqn.experiment.settings import Settings, task
from fdqn.report import video
from fdqn.training import evaluate
from fdqn.types import Network, Params


class Trained(NamedTuple):
    """Trained seeds and the environment to evaluate them in."""

    name: str
    """Name of the environment."""
    title: str
    """The same with the arguments and wrappers that it was trained with."""
    env: Any
    network: Network
    params: Params
    """[S, ...]"""
    keys: Tensor
    """[S, 2]"""
    seeds: list[int]
    failed: list[int]
    """Seeds among these that failed in training."""
    step: int
    """Environment steps per seed that they were trained for."""
    episodes: int
    """Episodes per seed."""
    limit: int
    """Step limit of an episode."""
    epsilon: float
    """Fraction of random actions."""
    fast: evaluate.Play | None
    """Compiled step for long episodes, or None."""


class Played(NamedTuple):
    """Returns of the seeds, and the record that `fdqn eval --json` prints."""

    returns: NDArray[np.float64]
    """[S, episodes], NaN for a seed whose environment failed."""
    record: dict[str, Any]


def load(
    path: Path,
    env: str | None = None,
    *,
    wrappers: Sequence[str] = (),
    checkpoint: str | None = None,
    seeds: Sequence[int] = (),
    episodes: int | None = None,
    evaluate_steps: int | None = None,
    device: str | None = None,
    compiling: bool = True,
    renders: bool = False,
    setting: int | None = None,
) -> Trained:
    """Read trained seeds of a run folder to play them.

    Args:
        path: run folder.
        env: environment to play in, by default the one trained on, with its arguments and wrappers. Another one has
            none of them.
        wrappers: wrappers of the environment trained on, required again if they are code of your own.
        checkpoint: best, last (the default) or the step of a checkpoint.
        seeds: those to play, by default all.
        episodes, evaluate_steps: episodes per seed and their step limit, by default as in the run's settings.
        device: by default that of the run, or the CPU if CUDA is not available.
        compiling: compile the step of long episodes, if the run was compiled.
        renders: raise ValueError unless the environment renders.
        setting: number of a setting, needed for a sweep. Of population based training the best member of each seed is
            played.

    Raises ValueError for an invalid folder, and for a checkpoint, environment or seed that does not fit the run.
    """
    if evaluate_steps:  # 0 is the default
        check.count("evaluate_steps", evaluate_steps, 1)
    path, run = sweep_results.trained(path, setting, checkpoint, env, wrappers)
    name, settings = env or run.settings.env, run.settings
    network = assemble.network(settings)
    found = assemble.env(settings) if name == settings.env else envs.find(name)
    _check_env(name, found.spec, settings)
    if renders:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # render without a display
        video.check_renders(name, found)
    chosen, epsilon = _chosen(seeds, assemble.seeds(settings)), settings.evaluate_epsilon
    to = assemble.device(dataclasses.replace(settings, device=device or _own_device(settings)))
    compile.prepare_cuda(tf32=settings.tf32 and to.type == "cuda", index=to.index)
    indices = [assemble.seeds(settings).index(seed) for seed in chosen]
    return Trained(
        name=name,
        title=task(settings) if name == settings.env else name,
        env=found,
        network=network,
        params=tree.to(tree.index(run.params, indices), to),
        keys=assemble.keys(settings)[indices],
        seeds=chosen,
        failed=[seed for seed in run.failed if seed in chosen],
        step=run.step,
        episodes=settings.evaluate_episodes if episodes is None else episodes,
        limit=evaluate_steps or results.step_limit(path, settings, found.spec),
        epsilon=epsilon,
        fast=session.compiled_player(settings, found, network, epsilon) if compiling else None,
    )


def _check_env(name: str, spec: Any, settings: Settings) -> None:
    """Raise ValueError unless the network takes the observations of an environment and has values for its actions."""
    trained = assemble.env(settings).spec
    if (spec.obs_shape, spec.actions) != (trained.obs_shape, trained.actions):
        raise ValueError(
            f"env: expected observations {list(trained.obs_shape)} and {trained.actions} actions as in training, "
            f"got {list(spec.obs_shape)} and {spec.actions} in {name}"
        )
    if (spec.obs_dtype == torch.uint8) != (trained.obs_dtype == torch.uint8):  # networks scale uint8
        raise ValueError(f"env: expected {trained.obs_dtype} as in training, got {spec.obs_dtype} in {name}")


def _chosen(requested: Sequence[int], trained: range) -> list[int]:
    """Return the seeds to play."""
    for seed in requested:
        if seed not in trained:
            raise ValueError(f"seed: expected trained seeds, {trained[0]} to {trained[-1]}, got {seed}")
        if requested.count(seed) > 1:
            raise ValueError(f"seed: expected distinct seeds, got {seed} {requested.count(seed)} times; give it once")
    return list(requested or trained)


def _own_device(settings: Settings) -> str:
    """Return the device of the run, with CUDA replaced by `auto`, since this machine may not have it."""
    return "auto" if settings.device.startswith("cuda") else settings.device


def play(trained: Trained, on_event: OnEvent = events.ignore) -> Played:
    """Play greedy episodes of each seed. Raises ValueError if the environment fails for all seeds."""
    on_event(events.EvaluationStarted(trained.name, len(trained.seeds) * trained.episodes, trained.limit))
    played = evaluate.greedy(
        trained.env,
        trained.network,
        trained.params,
        trained.keys,
        trained.episodes,
        epsilon=trained.epsilon,
        limit=trained.limit,
        fast=trained.fast,
        progress=lambda ended, step: on_event(events.EvaluationProgress(ended, step)),
    )
    on_event(events.EvaluationEnded())
    for i, error in played.failures.items():
        on_event(events.Notice(f"seed {trained.seeds[i]} did not finish its evaluation: {error}"))
    on_event(events.Evaluated(trained.step, trained.name, played.returns.copy()))
    unfinished = (played.unfinished, played.limit)
    return Played(played.returns, results.returns_record(played.returns, trained.failed, trained.seeds, unfinished))


def record_video(trained: Trained, played: Played, on_event: OnEvent = events.ignore) -> tuple[bytes, video.Recording]:
    """Draw an episode of the best, median and worst seed side by side as a GIF; return it with the recording.

    Raises ValueError if all seeds have failed.
    """
    returns = played.returns.copy()
    returns[[trained.seeds.index(seed) for seed in trained.failed]] = math.nan
    on_event(events.EvaluationStarted(trained.name, 3, trained.limit))
    drawn = video.draw(
        trained.name,
        trained.env,
        trained.network,
        trained.params,
        trained.keys,
        trained.seeds,
        returns,
        epsilon=trained.epsilon,
        limit=trained.limit,
        fast=trained.fast,
        progress=lambda ended, step: on_event(events.EvaluationProgress(ended, step)),
    )
    on_event(events.EvaluationEnded())
    return drawn
