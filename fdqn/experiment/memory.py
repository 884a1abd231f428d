"""Memory that the seeds of a run need, and memory that is available on the device."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fdqn import check, training, tree
from fdqn.training import on_policy, streaming


def check_memory(program: training.Program, seeds: int, device: torch.device) -> int:
    """Return the bytes that `seeds` seeds need. Raises ValueError if clearly less is available on the device."""
    check.kind("device", device, torch.device)
    needed, (free, total) = state_bytes(program, seeds), available(device)
    # Allow 10% more: available memory fluctuates, and caches of other processes can be reclaimed.
    if needed > min(1.1 * free, total):
        buffer = fake_state(program, seeds).buffer
        rows, is_rollout = tree.nbytes(buffer), isinstance(buffer, on_policy.Rollout | streaming.Newest)
        stored, name, flag = (
            ("rollout", "num_envs", "--num-envs") if is_rollout else ("replay", "capacity", "--capacity")
        )
        name, flags = (name, f"{flag} or --seeds") if rows > needed / 2 else ("seeds", "--seeds or --hidden")
        raise ValueError(
            f"{name}: expected seeds that fit in {free / 1e9:,.1f} GB of free memory ({total / 1e9:,.1f} GB in total), "
            f"got {seeds} seeds that need {needed / 1e9:,.1f} GB, of which {rows / 1e9:,.1f} GB is {stored} "
            f"({program.config.capacity:,} rows per seed); lower {flags}"
        )
    return needed


def available(device: torch.device) -> tuple[int, int]:
    """Return the bytes that this process can still allocate on the device, and those that it could use in total."""
    check.kind("device", device, torch.device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused, total
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = min(total, _counts(_PROC / "meminfo").get("MemAvailable:", total // 1024) * 1024)
    for limit, used in _limits():
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return free, total


_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def _limits() -> Iterator[tuple[int, int]]:
    """Yield (limit, usage) in bytes of each control group of this process; page cache does not count as usage."""
    for line in _text(_PROC / "self" / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, most, now = _CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, most, now = _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        here = root / path.strip("/")
        for group in (here, *here.parents):
            limit, used = _text(group / most).strip(), _text(group / now).strip()
            if group.is_relative_to(root) and limit.isdigit() and used.isdigit():
                cache = _counts(group / "memory.stat")
                yield int(limit), int(used) - cache.get("total_inactive_file", cache.get("inactive_file", 0))


def _counts(file: Path) -> dict[str, int]:
    """Read a file with lines of a name and a number into a dict."""
    lines = (line.split() for line in _text(file).splitlines())
    return {fields[0]: int(fields[1]) for fields in lines if len(fields) > 1 and fields[1].isdigit()}


def _text(file: Path) -> str:
    """Read a system file; return an empty string if it cannot be read."""
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""


def state_bytes(program: training.Program, seeds: int) -> int:
    """Return the bytes of the training state, one gradient and the activations of a batch, without allocating them.

    Activations are estimated as four arrays [batch, outputs] per layer, one output per bias (convolutions have more).
    """
    check.kind("program", program, training.Program)
    check.count("seeds", seeds, 1)
    state = fake_state(program, seeds)
    params = state.learner.params
    outputs = sum(x.nbytes for x in params.values() if x.ndim == 2)
    return tree.nbytes((state, params)) + 4 * program.config.batch_size * outputs


def replay_bytes(program: training.Program, seeds: int) -> int:
    """Return the bytes of the replay buffers of `seeds` seeds, without allocating them."""
    return tree.nbytes(fake_state(program, seeds).buffer)


def fake_state(program: training.Program, seeds: int) -> training.TrainState:
    """Return the training state of `seeds` seeds as fake tensors, which allocate no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):  # a sweep has tensors of its numbers
        hyper = training.hyper(seeds)
        return training.init(program, hyper, torch.zeros((seeds, 2), dtype=torch.int64))
