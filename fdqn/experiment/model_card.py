"""Write the model card of a run, the README.md of its repository on the Hugging Face Hub."""

import dataclasses
import json
import re
from typing import Any

import numpy as np

from fdqn import envs
from fdqn.experiment import assemble, repeat, results, settings
from fdqn.experiment.results import Run
from fdqn.experiment.settings import Settings, task

NAMES = {
    "dqn": "DQN", "munchausen": "Munchausen-DQN", "c51": "C51", "qr-dqn": "QR-DQN", "iqn": "IQN", "rainbow": "Rainbow",
    "pqn": "PQN", "stream-q": "Stream Q",
}  # fmt: skip
"""Names of the algorithms, as in their papers."""


def text(run: Run, repository: str, seed: int, video: str | None = None) -> str:
    """Return the model card: YAML front matter that the Hub reads, then Markdown.

    Args:
        run: run of one setting.
        repository: OWNER/NAME on the Hub, for the code in the card.
        seed: seed of policy.pt2.
        video: name of a video in the folder; None for none.
    """
    parts = (
        front_matter(run),
        _heading(run),
        _shown(video),
        _results(run),
        _loading(run, repository, seed),
        _repeating(run),
        _settings_table(run.settings),
    )
    return "\n".join(part for part in parts if part)


def front_matter(run: Run) -> str:
    """Return the YAML front matter: library, tags, and a `model-index` with the mean and the IQM of the returns.

    The fields are those of https://huggingface.co/docs/hub/model-cards.
    """
    name, env, record = NAMES[run.settings.algorithm], _env(run), _record(run)
    tags = [env, "deep-reinforcement-learning", "reinforcement-learning", "fdqn", run.settings.algorithm]
    heading = results.interval_heading([record])
    metrics = {"mean_reward": mean_text(record), "iqm_reward": f"{results.interval_text(record)}"}
    lines = [
        "---",
        "library_name: fdqn",
        "pipeline_tag: reinforcement-learning",
        "tags:",
        *[f"- {_quoted(tag)}" for tag in tags],
        "model-index:",
        f"- name: {_quoted(name)}",
        "  results:",
        "  - task:",
        "      type: reinforcement-learning",
        "      name: reinforcement-learning",
        "    dataset:",
        f"      name: {_quoted(_task(run))}",
        f"      type: {_quoted(env)}",
        "    metrics:",
    ]
    for kind, value in metrics.items():
        shown = kind if kind == "mean_reward" else heading
        lines += [f"    - type: {kind}", f"      value: {_quoted(value)}", f"      name: {_quoted(shown)}"]
        lines += ["      verified: false"]
    return "\n".join([*lines, "---", ""])


def mean_text(record: dict[str, Any]) -> str:
    """Format the mean and standard deviation over the seeds that have not failed, as `491.07 +/- 12.25`.

    The deviation is omitted for a single seed, and "none" is returned if all seeds have failed.
    """
    returns = np.array([x for x in record["per_seed"] if x is not None])
    deviation = f" +/- {returns.std(ddof=1):.2f}" if len(returns) > 1 else ""
    return f"{returns.mean():.2f}{deviation}" if len(returns) else "none"


def _record(run: Run) -> dict[str, Any]:
    """Return the greedy returns in Gymnasium's version of the environment if available, else in the one trained on."""
    return run.summary.get("gymnasium_return", run.summary["final_return"])


def _env(run: Run) -> str:
    """Return the name of the environment of `_record`, without the prefix `gym:`."""
    return _record(run).get("env", run.settings.env).removeprefix("gym:")


def _task(run: Run) -> str:
    """Return `_env` with the arguments and wrappers of the environment, if any."""
    return _env(run) + task(run.settings).removeprefix(run.settings.env)


def _code(text: str) -> str:
    """Format text as code in Markdown, also in a table; backticks in it need a longer fence."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " * (longest > 0)
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|")


def _quoted(text: str) -> str:
    """Return text as a YAML scalar. JSON strings are valid YAML."""
    return json.dumps(text)


def _heading(run: Run) -> str:
    chosen, config = run.settings, results.read_config(run.path)
    seeds = "One seed" if chosen.seeds == 1 else f"{chosen.seeds} seeds, trained together"
    made = f"fdqn {config['versions'].get('fdqn')} and PyTorch {config['versions'].get('torch')}"
    shown = _code(task(chosen)).replace("\\|", "|")  # outside of a table
    commit = f", commit {config['git']}" if config.get("git") else ""
    return (
        f"# {NAMES[chosen.algorithm]} on {_env(run)}\n\n"
        f"{seeds}; {run.summary['steps']:,} environment steps per seed in {shown}. "
        f"Trained with {made}{commit}, on {config.get('processor') or config.get('device')}.\n\n"
        "![Learning curve over the seeds](curve.png)\n"
    )


def _shown(video: str | None) -> str:
    if video is None:
        return ""
    if video.endswith(".gif"):
        return f"![Episodes]({video})\n"
    return f'<video controls autoplay loop muted src="{video}"></video>\n'


def _results(run: Run) -> str:
    summary = run.summary
    records = {f"greedy, {_code(task(run.settings))}": summary["final_return"]}
    if "gymnasium_return" in summary:
        records[f"greedy, Gymnasium's {summary['gymnasium_return']['env']}"] = summary["gymnasium_return"]
    records["last training episodes"] = summary["train_return"]
    failed, episodes = summary["failed_seeds"], run.settings.evaluate_episodes
    without = f" Failed seeds are excluded: {', '.join(map(str, failed))}." if failed else ""
    rows = [
        f"| {name} | {results.interval_text(x)} | {mean_text(x).replace('+/-', '±')} |" for name, x in records.items()
    ]
    each = [
        f"| {seed} | " + " | ".join(_number(x["per_seed"][i]) for x in records.values()) + " |"
        for i, seed in enumerate(summary["seeds"])
    ]
    return "\n".join(
        [
            "## Results",
            "",
            f"The greedy return of a seed is its mean over {episodes} episodes. IQM is the interquartile mean over the "
            "seeds, with its 95% bootstrap interval, or with the range of the seeds if there are fewer than 5. Mean "
            f"and standard deviation are over the seeds.{without}",
            "",
            f"| returns | {results.interval_heading(list(records.values()))} | mean ± standard deviation |",
            "|---|---|---|",
            *rows,
            "",
            "<details><summary>Return of each seed</summary>",
            "",
            f"| seed | {' | '.join(records)} |",
            "|--:|" + "--:|" * len(records),
            *each,
            "",
            "</details>",
            "",
        ]
    )


def _number(x: float | None) -> str:
    return "failed" if x is None else f"{x:.2f}"


def _loading(run: Run, repository: str, seed: int) -> str:
    own = envs.is_code(run.settings.env)
    folder, spec = repository.split("/")[-1], assemble.env(run.settings).spec
    env = f", env={_quoted(run.settings.env)}" if own else ""
    if any(map(envs.is_wrapper_code, run.settings.wrappers)):
        env += f", wrappers=[{', '.join(map(_quoted, run.settings.wrappers))}]"
    note = f"\n`{run.settings.env}` is code by the author of this run and must be importable.\n" if own else ""
    first, last = run.summary["seeds"][0], run.summary["seeds"][-1]
    shape, dtype = ", ".join(map(str, (1, *spec.obs_shape))), str(spec.obs_dtype)
    given = f"{shape}" if dtype == "torch.float32" else f"{shape}, dtype={dtype}"
    return f"""## Usage

Load the run with fdqn. `run.policy` maps NumPy observations to actions, with the parameters of any seed.
`fdqn eval {folder}` evaluates all seeds.

```python
from huggingface_hub import snapshot_download

import fdqn

run = fdqn.Run.load(snapshot_download("{repository}", local_dir="{folder}"){env})
policy = run.policy(seed={seed})  # greedy: observation -> action
```
{note}
Load the policy of seed {seed} with `torch.export`, without fdqn:

```python
import torch
from huggingface_hub import hf_hub_download

policy = torch.export.load(hf_hub_download("{repository}", "policy.pt2")).module()
q = policy(torch.zeros({given}))  # observations [B, ...] to Q-values [B, {spec.actions}]
action = q.argmax(-1)
```

`model.safetensors` holds the parameters of the seeds {first} to {last}, one array `[seeds, ...]` for each parameter.
There is no checkpoint, so the run cannot be resumed.
"""


def _repeating(run: Run) -> str:
    planned = results.read_config(run.path)["plan"]["steps"]
    lines = "\n".join(repeat.commands(run.settings, planned))
    return f"## Command to reproduce the training\n\n```sh\n{lines}\n```\n"


def _settings_table(chosen: Settings) -> str:
    names = [field.name for field in dataclasses.fields(Settings) if field.name != "out"]
    rows = [
        f"| `{name}` | {_code(str(getattr(chosen, name)))} |"
        for name in sorted(names)
        if settings.is_read(chosen, name)
    ]
    return "\n".join(
        ["## Settings", "", "<details><summary>All settings that this algorithm reads</summary>", "",
         "| setting | value |", "|---|---|", *rows, "", "</details>", ""]
    )  # fmt: skip
