"""Argument checks: shapes, dtypes and structures. They cost nothing in a compiled program.

Only `within`, `bits`, `uniforms`, `some_legal` and `seen` read the values of a tensor, and only if values can be read:
on a CPU, outside of transforms and compilers. A traced function cannot branch on values, and on a GPU it would
have to wait for them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fdqn import tree

STORED = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip
"""Dtypes that replay and checkpoints support. PyTorch cannot write rows of most others, such as uint32."""


def shapes(spec: str, *tensors: Tensor) -> None:
    """Check the shapes of tensors against a specification such as `"q_tm1[... A] a_tm1[...] r_t[...]"`.

    `...` is any number of leading axes, equal in all tensors; the same letter is the same size everywhere; an
    integer is that size. Nothing broadcasts, so [B] and [B, 1] do not match. All tensors must be on one device.

    Raises TypeError for an argument that is not a tensor and ValueError for a wrong shape or device. The message names
    the argument.
    """
    named = [entry.strip().split("[") for entry in spec.split("]")[:-1]]
    names, first = [name for name, _ in named], tensors[0]
    fit(names, [dims for _, dims in named], tensors)
    for name, x in zip(names, tensors, strict=True):
        if x.device != first.device:
            raise ValueError(f"{name}: expected it on the device of {names[0]}, {first.device}, got {x.device}")


def fit(names: Sequence[str], shapes: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Check shapes as `shapes` does, for a specification already split: `names[i]` has shape `[shapes[i]]`."""
    sizes: dict[str, int] = {}
    leading: tuple[int, ...] | None = None
    for name, dims, tensor in zip(names, shapes, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor [{dims}], got {type(tensor).__name__}")
        named = dims.split()
        free = bool(named) and named[0] == "..."
        named = named[1:] if free else named
        shape = tuple(tensor.shape)
        split = len(shape) - len(named)
        if split < 0 or (split > 0 and not free):
            raise ValueError(f"{name}: expected shape [{dims}], got {list(shape)}")
        if free:
            leading = shape[:split] if leading is None else leading
            if shape[:split] != leading:
                raise ValueError(f"{name}: expected shape [{dims}] with ... = {list(leading)}, got {list(shape)}")
        for dim, size in zip(named, shape[split:], strict=True):
            expected = int(dim) if dim.isdigit() else sizes.setdefault(dim, size)
            if size != expected:
                where = "" if dim.isdigit() else f" with {dim} = {expected}"
                raise ValueError(f"{name}: expected shape [{dims}]{where}, got {list(shape)}")


def integer(name: str, x: Tensor) -> None:
    """Raise TypeError unless `x` is a tensor of integers."""
    tensor(name, x)
    if x.is_floating_point() or x.is_complex() or str(x.dtype) == "torch.bool":
        raise TypeError(f"{name}: expected an integer dtype, got {x.dtype}")


def floating(name: str, x: Tensor) -> None:
    """Raise TypeError unless `x` is a tensor of real floating-point numbers."""
    tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {x.dtype}")


def boolean(name: str, x: Tensor) -> None:
    """Raise TypeError unless `x` is a tensor of booleans."""
    tensor(name, x)
    if str(x.dtype) != "torch.bool":
        raise TypeError(f"{name}: expected torch.bool, got {x.dtype}")


def tensor(name: str, x: Any) -> None:
    """Raise TypeError unless `x` is a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {_type_name(x)}")


def kind(name: str, x: Any, *expected: type) -> None:
    """Raise TypeError unless `x` is of one of these types."""
    if not isinstance(x, expected):
        names = ("None" if each is type(None) else each.__name__ for each in expected)
        raise TypeError(f"{name}: expected {' or '.join(names)}, got {_type_name(x)}")


def stored(name: str, x: Any) -> None:
    """Raise TypeError, naming the leaf, unless all leaves are tensors with a dtype in `STORED`."""
    for path, leaf in zip(tree.paths(x), tree.leaves(x), strict=True):
        tensor(f"{name}{path}", leaf)
        if leaf.dtype not in STORED:
            raise TypeError(
                f"{name}{path}: expected a dtype that replay stores, {', '.join(str(d)[6:] for d in STORED)}, got "
                f"{leaf.dtype}; cast it"
            )


def function(name: str, f: Any) -> None:
    """Raise TypeError unless `f` is callable."""
    if not callable(f):
        raise TypeError(f"{name}: expected a function, got {_type_name(f)}")


def count(name: str, x: Any, least: int = 0) -> None:
    """Raise TypeError unless `x` is a Python integer, and ValueError if it is below `least`."""
    if isinstance(x, bool) or not isinstance(x, int):
        raise TypeError(f"{name}: expected an integer, got {x!r}")
    if x < least:
        raise ValueError(f"{name}: expected at least {least}, got {x}")


def sizes(name: str, shape: Any, least: int = 0) -> None:
    """Raise TypeError unless `shape` is a sequence of Python integers, and ValueError if one is below `least`."""
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"{name}: expected several integers, got {shape!r}")
    for size in shape:
        count(name, size, least)


def length(name: str, x: Any) -> int:
    """Return the length of the first axis of all leaves of `x`. Raises ValueError if it is not the same for all."""
    leaves = tree.leaves(x)
    for leaf in leaves:
        tensor(name, leaf)
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in leaves}
    if len(lengths) != 1 or None in lengths:
        got = ", ".join(f"{path or 'one'} {list(leaf.shape)}" for path, leaf in zip(tree.paths(x), leaves, strict=True))
        raise ValueError(f"{name}: expected tensors with a first axis of one length, got {got or 'no tensors'}")
    return leaves[0].shape[0]


def broadcasts(name: str, x: Tensor, shape: Sequence[int]) -> None:
    """Raise ValueError unless `x` broadcasts to `shape`."""
    given = tuple(x.shape)
    fits = all(size in (1, there) for size, there in zip(given[::-1], tuple(shape)[::-1], strict=False))
    if len(given) > len(shape) or not fits:
        raise ValueError(f"{name}: expected a shape that broadcasts to {list(shape)}, got {list(given)}")


def number(name: str, x: Any, below: float | None = None) -> None:
    """Check that `x` is a Python number or a floating-point tensor [], at least 0 and less than `below`.

    Raises TypeError for another type or dtype, and ValueError for a tensor of another shape or a number out of range or
    NaN. The value of a tensor is not read.
    """
    if isinstance(x, Tensor):
        floating(name, x)
        if x.ndim:
            raise ValueError(
                f"{name}: expected a number or a tensor [], got shape {list(x.shape)}; use vmap for several seeds"
            )
    elif isinstance(x, bool) or not isinstance(x, int | float):
        raise TypeError(f"{name}: expected a number or a tensor of floats, got {x!r}")
    elif not x >= 0 or (below is not None and x >= below):
        expected = "at least 0" if below is None else f"at least 0 and below {below:g}"
        raise ValueError(f"{name}: expected {expected}, got {x}")


def fraction(name: str, x: Any) -> None:
    """Check that `x` is a number or tensor [] in [0, 1]. Raises as `number` does."""
    number(name, x)
    if not isinstance(x, Tensor) and x > 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {x}")


def within(name: str, x: Tensor, size: int) -> None:
    """Raise IndexError for an integer outside [0, size), if values can be read."""
    # In int64, because a `size` that does not fit into the dtype of `x` would wrap.
    outside = _readable((x.long() < 0) | (x.long() >= size)) if _is_readable(x) else None
    if outside is not None and outside.any():
        at = outside.nonzero()[0].tolist()
        raise IndexError(f"{name}{at or ''}: expected a number from 0 to {size - 1}, got {int(x[tuple(at)])}")


def bits(name: str, x: Tensor) -> None:
    """Raise TypeError unless `x` is int64, and ValueError for a value outside [0, 2**32), if it can be read."""
    integer(name, x)
    if x.dtype != torch.int64:
        raise TypeError(f"{name}: expected torch.int64, got {x.dtype}; draw random bits with random.bits")
    _inside(name, x, 2**32, "integers in [0, 2**32)")


def uniforms(name: str, u: Tensor) -> None:
    """Raise TypeError unless `u` is floating-point, and ValueError for a value outside [0, 1), if it can be read."""
    floating(name, u)
    _inside(name, u, 1, "numbers in [0, 1)")


def some_legal(name: str, legal: Tensor) -> None:
    """Raise ValueError for a row of `legal` [..., A] without a legal action, if values can be read."""
    empty = _readable(~legal.any(-1)) if _is_readable(legal) else None
    if empty is not None and empty.any():
        at = empty.nonzero()[0].tolist()
        raise ValueError(f"{name}{at or ''}: expected at least one legal action, got none")


def seen(flags: Tensor) -> bool:
    """Return True if values can be read and any flag is True."""
    read = _readable(flags) if _is_readable(flags) else None
    return read is not None and bool(read.any())


def same(name: str, expected: Any, got: Any) -> None:
    """Raise ValueError or TypeError, naming the leaf, unless structure, shapes, dtypes and devices agree."""
    if tree.structure(expected) != tree.structure(got):
        raise ValueError(f"{name}: expected the same structure; {difference(expected, got)}")
    for i, (a, b) in enumerate(zip(tree.leaves(expected), tree.leaves(got), strict=True)):
        if not isinstance(b, Tensor):
            tensor(f"{name}{tree.paths(got)[i]}", b)
        if a.shape != b.shape:
            raise ValueError(f"{name}{tree.paths(got)[i]}: expected shape {list(a.shape)}, got {list(b.shape)}")
        if a.dtype != b.dtype:
            raise TypeError(f"{name}{tree.paths(got)[i]}: expected {a.dtype}, got {b.dtype}")
        if a.device != b.device:
            raise ValueError(f"{name}{tree.paths(got)[i]}: expected it on {a.device}, got {b.device}")


def difference(expected: Any, got: Any) -> str:
    """Describe how two trees of different structure differ: by their leaves, or by the order and type of containers."""
    ours, theirs = tree.paths(expected), tree.paths(got)
    missing, extra = ([x for x in one if x not in other] for one, other in ((ours, theirs), (theirs, ours)))
    if missing or extra:
        return f"missing {missing or 'nothing'}, extra {extra or 'nothing'}"
    nests = [tree.map(lambda _: "*", x) for x in (expected, got)]
    return f"expected {nests[0]}, got {nests[1]}"


def _type_name(x: Any) -> str:
    """Return the name of the type of `x`, or for a class 'the class' and its name."""
    return f"the class {x.__name__}" if isinstance(x, type) else type(x).__name__


def _inside(name: str, x: Tensor, size: int, expected: str) -> None:
    """Raise ValueError for a number outside [0, size) or NaN, if values can be read."""
    outside = _readable(~((x >= 0) & (x < size))) if _is_readable(x) else None
    if outside is not None and outside.any():
        at = outside.nonzero()[0].tolist()
        raise ValueError(f"{name}{at or ''}: expected {expected}, got {x[tuple(at)].item()}")


def is_traced() -> bool:
    """Return True while `torch.compile` traces the caller."""
    return torch.compiler.is_compiling()


def _is_readable(x: Tensor) -> bool:
    return not is_traced() and type(x) is Tensor and x.device.type == "cpu"


def is_symbolic(x: Tensor) -> bool:
    """Return True if the values of `x` cannot be read, because it is traced, fake or inside a transform."""
    return is_traced() or type(x) is not Tensor or _readable(x != x) is None


def _readable(flags: Tensor) -> Tensor | None:
    """Return the flags, or None inside a transform or for fake tensors, where their values cannot be read."""
    try:
        bool(flags.any())
    except RuntimeError:
        return None
    return flags
