"""Asynchronous copies of trees of tensors between the host and a device.

On a CPU nothing is copied. On CUDA, a whole tree is packed into one pinned buffer and copied at once on a separate
stream. The copy overlaps with running kernels; a copy from pageable memory would wait for them.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from fdqn import tree

T = TypeVar("T")

# Alignment of each leaf in bytes, at least the width of a vectorized load.
ALIGNMENT = 64


class TensorSlot(NamedTuple):
    """Position, shape and dtype of one leaf in a byte buffer."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end(self) -> int:
        """Position after the last byte."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def layout(nested: Any) -> tuple[TensorSlot, ...]:
    """Lay out the leaves of a tree in a byte buffer, each starting at a multiple of ALIGNMENT."""
    leaves = tree.leaves(nested)
    sizes = [math.ceil(x.nbytes / ALIGNMENT) * ALIGNMENT for x in leaves]
    starts = accumulate(sizes, initial=0)
    return tuple(TensorSlot(start, tuple(x.shape), x.dtype) for start, x in zip(starts, leaves, strict=False))


def views(buffer: Tensor, slots: tuple[TensorSlot, ...]) -> list[Tensor]:
    """View the leaves in a buffer of bytes [N] uint8; the views share its memory."""
    return [buffer[slot.start : slot.end].view(slot.dtype).view(slot.shape) for slot in slots]


def pack(nested: Any, buffer: Tensor) -> tuple[TensorSlot, ...]:
    """Write the leaves of a tree into a buffer of bytes [N] uint8, and return their slots."""
    slots = layout(nested)
    for view, leaf in zip(views(buffer, slots), tree.leaves(nested), strict=True):
        view.copy_(leaf)
    return slots


def unpack(buffer: Tensor, slots: tuple[TensorSlot, ...], like: T) -> T:
    """View the packed leaves as a tree with the structure of `like`; the views share the memory of the buffer."""
    leaves = iter(views(buffer, slots))
    return tree.map(lambda _: next(leaves), like)


def uploads(device: torch.device) -> Callable[[T], T]:
    """Make a function that copies trees of tensors from the host to `device`.

    On a CPU it returns them unchanged. On CUDA, kernels launched later wait for the copy. The host does not wait and
    can reuse its tensors immediately.
    """
    if device.type == "cpu":
        return lambda nested: nested
    return _through_pinned_memory(device) if device.type == "cuda" else partial(tree.to, device=device)


def downloads(device: torch.device) -> Callable[[Tensor], NDArray[Any]]:
    """Make a function that waits for a tensor on `device` and returns it as a NumPy array."""
    return _through_pinned_array(device) if device.type == "cuda" else lambda x: x.cpu().numpy()


def _through_pinned_memory(device: torch.device) -> Callable[[T], T]:
    stream, copied, consumed = torch.cuda.Stream(device), torch.cuda.Event(), torch.cuda.Event()
    host, there = _pinned(0), torch.empty(0, dtype=torch.uint8, device=device)

    def upload(nested: T) -> T:
        nonlocal host, there
        compute, size = torch.cuda.current_stream(device), max((slot.end for slot in layout(nested)), default=0)
        copied.synchronize()  # the previous copy must be done before its buffer is overwritten
        if size > len(host):
            host, there = _pinned(size), torch.empty(size, dtype=torch.uint8, device=device)
            consumed.record(compute)  # earlier kernels may still use the new buffer's memory
        slots = pack(nested, host)
        with torch.cuda.stream(stream):
            stream.wait_event(consumed)
            there[:size].copy_(host[:size], non_blocking=True)
            copied.record(stream)
        compute.wait_event(copied)
        # A copy, because the caller can keep the result: an eager state keeps observations.
        own = there[:size].clone()
        consumed.record(compute)
        return unpack(own, slots, nested)

    return upload


def _through_pinned_array(device: torch.device) -> Callable[[Tensor], NDArray[Any]]:
    host, copied = _pinned(0), torch.cuda.Event()

    def download(x: Tensor) -> NDArray[Any]:
        nonlocal host
        slots = layout(x)
        if slots[0].end > len(host):
            host = _pinned(slots[0].end)
        (here,) = views(host, slots)
        here.copy_(x, non_blocking=True)
        copied.record(torch.cuda.current_stream(device))
        copied.synchronize()
        return here.numpy().copy()

    return download


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
