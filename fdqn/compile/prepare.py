"""Settings of a process that trains."""

import ctypes
import sys

import torch

from fdqn import check


def prepare_cpu() -> None:
    """Set up this process to train on a CPU; call it once, before threads start.

    Denormal numbers are flushed to 0: Adam's mean of a gradient that stays 0 decays into them, and arithmetic on them
    is many times slower. With glibc, freed memory is kept: otherwise the buffers of each training iteration would be
    returned to the system and mapped again, 2,000 page faults an iteration at 32 lanes, half of its time.
    """
    torch.set_flush_denormal(True)
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        # Older versions accept at most 32 MB. If neither is accepted, leave the trim threshold alone: setting it would
        # only disable glibc's dynamic adjustment.
        if libc.mallopt(mmap_threshold, 2**31 - 1) or libc.mallopt(mmap_threshold, 2**25):
            libc.mallopt(trim_threshold, 2**31 - 1)


def prepare_cuda(tf32: bool = False, index: int | None = None) -> None:
    """Set up this process to train on CUDA: the precision of products, deterministic convolutions, the GPU.

    `index` is the number of the GPU; None for the current one.

    Otherwise cuDNN may choose a weight gradient with no fixed order of summation, and a resumed run would differ.
    """
    check.kind("tf32", tf32, bool)
    if index is not None:
        check.count("index", index)
        torch.cuda.set_device(index)  # streams and graphs are those of the current GPU
    allow_tf32(tf32)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in float32 matrix products and convolutions on CUDA."""
    check.kind("allowed", allowed, bool)
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
