"""Prepare a process to train."""

import ctypes
import sys

import torch

from fdqn import check


def prepare_cpu() -> None:
    """Prepare a process, once and before its threads start, so that a CPU is not slowed down by two of its habits.

    Denormal numbers count as 0: Adam's mean of a gradient that stays 0 decays into them, and arithmetic on them is many
    times slower. And memory that was freed is kept (where the C library is glibc): a cycle's buffers would go back to
    the system and come again as fresh pages, 2,000 page faults a cycle at 32 lanes, half of its time.
    """
    torch.set_flush_denormal(True)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        # Older ones take 32 MB at most; where none is taken, the other would only switch off what glibc does itself.
        if libc.mallopt(mmap_threshold, 2**31 - 1) or libc.mallopt(mmap_threshold, 2**25):
            libc.mallopt(trim_threshold, 2**31 - 1)


def prepare_cuda(tf32: bool = False) -> None:
    """Set up this process to train on CUDA: the precision of products, and convolutions that give the same bits again.

    Without it cuDNN may choose a weight gradient that adds up in no fixed order, and a resumed run would differ.
    """
    check.kind("tf32", tf32, bool)
    allow_tf32(tf32)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def allow_tf32(allowed: bool) -> None:
    """Let CUDA round the factors of float32 products to TF32, in matrix products and in convolutions, or in neither."""
    check.kind("allowed", allowed, bool)
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
