"""Share a run as a model repository of the Hugging Face Hub: write its folder, and upload it."""

import contextlib
import json
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

import fdqn
from fdqn import check, tree
from fdqn.experiment import assemble, export, model_card, results, sweep_results
from fdqn.experiment.results import Run
from fdqn.storage import files

COPIED = ("summary.json", "metrics.csv", "evaluations.csv", "curve.png")
"""Files of a run folder that are copied if they exist."""
VIDEOS = (".mp4", ".gif")


def write(
    path: Path,
    folder: Path,
    seed: int | None = None,
    env: str | None = None,
    video: Path | None = None,
    repository: str | None = None,
    wrappers: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a run as a model repository. Return the record that `fdqn export --json` prints.

        README.md           model card with results, settings and how to load the run
        model.safetensors   parameters of all seeds, [S, ...] each
        policy.pt2          policy of one seed, which runs without fdqn
        config.json         settings, versions and device of the run
        summary.json, metrics.csv, evaluations.csv, curve.png: as in the run folder
        replay.mp4 or replay.gif    the video, if there is one

    `Run.load(folder)` and `fdqn eval`, `export` and `report` read the folder. It has no checkpoints.

    Args:
        path: folder of a finished run of one setting.
        folder: folder to create.
        seed: seed of policy.pt2; by default the one with the median return.
        env: environment of the run, required if it is your own code.
        video: `.mp4` or `.gif` file to show; by default one in the run folder.
        repository: OWNER/NAME on the Hub that the model card names; by default OWNER and the name of the folder,
            with dashes in place of characters that names on the Hub do not have.
        wrappers: wrappers of the run, required if they are your own code.

    Raises ValueError for a sweep, a run whose seeds have all failed, a folder that exists, a video of another format,
    and files that cannot be written. An incomplete folder is removed.
    """
    check.kind("path", path, str, os.PathLike)
    run = _read(Path(path), env, wrappers)
    _check_free(folder)
    video_file = _video(run.path) if video is None else _checked_video(video)
    trained = results.trained(run.path, None, env, wrappers)
    chosen = _median(run, trained.unusable) if seed is None else seed
    index = results.seed_index(run.settings, trained.unusable, chosen)
    video_name = f"replay{video_file.suffix.lower()}" if video_file is not None else None
    policy = export.policy(run.settings, tree.clone(tree.index(trained.params, index)))
    with _new_folder(folder) as part:
        for name in COPIED:
            if (run.path / name).exists():
                files.write(part / name, files.read(run.path / name))
        files.write(part / "config.json", _config(run, folder))
        files.write(part / "policy.pt2", policy)
        files.write(part / "model.safetensors", save(trained.params, metadata=_metadata(run)))
        if video_file is not None:
            files.write(part / str(video_name), files.read(video_file))
        card = model_card.text(run, repository or f"OWNER/{_name(folder)}", chosen, video_name)
        files.write(part / "README.md", card.encode())
        size = sum(file.stat().st_size for file in part.iterdir())
    return {
        "run": str(path),
        "hub": str(folder),
        "what": "model repository",
        "seed": chosen,
        "bytes": size,
        "video": video_name,
        "read": f"fdqn.Run.load({str(folder)!r}{_code_arguments(env, wrappers)})",
    }


def _name(folder: Path) -> str:
    """Return the name of a folder as one of a repository, which has letters, digits, dots, dashes and underscores."""
    return re.sub("[^A-Za-z0-9_.]+", "-", folder.name).strip("-.") or "run"


def _code_arguments(env: str | None, wrappers: Sequence[str]) -> str:
    """Return the further arguments of `Run.load`, which name user code."""
    return ("" if env is None else f", env={env!r}") + (f", wrappers={[*wrappers]!r}" if wrappers else "")


def check_push(repository: str) -> None:
    """Raise ValueError unless `repository` has the form OWNER/NAME and huggingface_hub and a token are available."""
    _hub(repository)


def push(folder: Path, repository: str) -> str:
    """Upload a folder made by `write` to the repository OWNER/NAME of the Hub, as one commit, and return its URL.

    A repository that does not exist is created. Raises ValueError for another form of `repository`, a folder without
    README.md, a missing package or token, and a failed upload.
    """
    check.kind("folder", folder, str, os.PathLike)
    hub = _hub(repository)
    if not (Path(folder) / "README.md").is_file():
        raise ValueError(f"folder: expected one that hub.write made, got {str(folder)!r} without README.md")
    try:
        api = hub.HfApi(library_name="fdqn", library_version=fdqn.__version__)
        url = api.create_repo(repository, repo_type="model", exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a run of fdqn")
    except Exception as error:  # an error of the network, the Hub or a file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"push: expected to upload to {repository}, got {reason}; {folder} is complete, and "
            f"hf upload {repository} {shlex.quote(str(folder))} uploads it"
        ) from None
    return str(url)


def _hub(repository: str) -> Any:
    """Check the name of the repository and the token, and return the package huggingface_hub."""
    check.kind("repository", repository, str)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
        raise ValueError(f"push: expected a repository OWNER/NAME, got {repository!r}")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError("push: expected the package huggingface_hub, got none; pip install 'fdqn[hub]'") from None
    if huggingface_hub.get_token() is None:
        raise ValueError("push: expected a token of the Hugging Face Hub, got none; run hf auth login or set HF_TOKEN")
    return huggingface_hub


def _read(path: Path, env: str | None, wrappers: Sequence[str]) -> Run:
    if sweep_results.is_sweep(path):
        raise ValueError(
            f"run: expected a run of one setting, got the sweep {path}; train its best setting on fresh seeds with "
            f"fdqn train --best-of {shlex.quote(str(path))}"
        )
    return Run.load(path, env, wrappers)


def _check_free(folder: Path) -> None:
    check.kind("folder", folder, Path)
    if os.path.lexists(folder) or not folder.name:
        raise ValueError(f"hub: expected a folder that does not exist yet, got {str(folder)!r}; choose another --hub")
    if not folder.parent.is_dir():
        raise ValueError(
            f"hub: expected a folder in an existing folder, got {str(folder)!r}; create {folder.parent} first"
        )


def _video(path: Path) -> Path | None:
    """Return the first video of a run folder in alphabetical order, `.mp4` before `.gif`; None if there is none."""
    found = [file for kind in VIDEOS for file in sorted(path.glob(f"*{kind}"))]
    return found[0] if found else None


def _checked_video(video: Path) -> Path:
    check.kind("video", video, Path)
    if video.suffix.lower() not in VIDEOS or not video.is_file():
        raise ValueError(f"video: expected an existing .mp4 or .gif file, got {str(video)!r}")
    return video


def _median(run: Run, unusable: list[int]) -> int:
    """Return the usable seed with the median return, or the lower of the two middle ones."""
    returns = dict(zip(run.summary["seeds"], run.summary["final_return"]["per_seed"], strict=True))
    usable = sorted((x, seed) for seed, x in returns.items() if x is not None and seed not in unusable)
    if not usable:
        raise ValueError(f"run: expected a seed that has not failed, got none in {run.path}")
    return usable[(len(usable) - 1) // 2][1]


def _config(run: Run, folder: Path) -> bytes:
    """Return `config.json` with the name of the new folder in place of the path of the run folder."""
    config = results.read_config(run.path)
    config["settings"]["out"] = folder.name
    return (json.dumps(config, indent=2) + "\n").encode()


def _metadata(run: Run) -> dict[str, str]:
    """Return the metadata of `model.safetensors`, which maps strings to strings."""
    return {
        "format": "pt",
        "library": "fdqn",
        "algorithm": run.settings.algorithm,
        "env": run.settings.env,
        "seeds": json.dumps(list(assemble.seeds(run.settings))),
        "steps": str(run.summary["steps"]),
    }


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder. Rename it to `folder` at the end, or remove it after an error."""
    part = folder.parent / f"{uuid.uuid4().hex}.part"
    try:
        try:
            part.mkdir()
            yield part
            part.rename(folder)
        except OSError as error:
            reason = error.strerror or str(error).replace(str(part), str(folder))
            raise ValueError(f"hub: expected to write {str(folder)!r}, got {reason}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
