"""The edge where pure functions become fast ones: `fold(vmap(f))`, one compiled graph that writes over its state.

`donate` is JAX's `donate_argnums`: the new state is written over the old one at the top level of the compiled graph.
Inductor then computes results straight into the old storage, so that a pure `replay.add` costs one row, not one ring,
and every leaf keeps its address for life. `compile` is `jax.jit`, and `fold` is `lax.scan`: a donated, compiled step
for each of many inputs, with the loop on the host, or in one CUDA graph.

`compile` traces with `make_fx` and hands the graph to inductor, as `torch.compile` would after tracing the bytecode.
Pure functions of fixed shapes need no more, and so nothing has to be asked before every call: the guards and the
wrapper of `torch.compile` cost 300 us a cycle, twice the work of one lane.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from operator import is_
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from fdqn import check, evaluate, lanes, processor, toolchain, training, tree, verify
from fdqn.training import host
from fdqn.types import Env, Network

State = TypeVar("State")
Made = TypeVar("Made")

# CUDA graphs kept per state; a run uses few chunk lengths more than once.
GRAPHS_KEPT = 8


# Most steps plus updates of a training iteration compiled as one graph; beyond, one step and one update are compiled.
UNROLLED = 16


class _Place(int):
    """The number of a tensor among a graph's inputs and then its outputs."""


class _Graph(NamedTuple):
    """A compiled function of tensors."""

    run: Callable[..., list[Tensor]]
    """Tensors in, those tensors out that are not simply handed through."""
    answer: Any
    """What the function answered, with a _Place for each tensor."""


def donate(f: Callable[..., State]) -> Callable[..., State]:
    """`f(state, *args) -> state`, writing each new leaf over the old one and answering with the old, now new, state.

    Equal to `f` also where a new leaf is, or is a view of, an old leaf of another place (`target <- params`, a swap).
    Raises ValueError or TypeError where `f` changes structure, shape or dtype (copying would broadcast or truncate),
    and ValueError where leaves of the state, or elements of one, share memory.
    """

    check.function("f", f)

    def donated(state: State, *args: Any) -> State:
        for path, leaf in zip(tree.paths(state), tree.leaves(state), strict=True):
            check.tensor(f"state{path}", leaf)
            if leaf.numel() and _overlaps(leaf):
                raise ValueError(
                    f"state{path}: expected memory of its own for every element, got shape {list(leaf.shape)} with "
                    f"strides {list(leaf.stride())}, as vmap answers constants; give tree.clone(state)"
                )
        new = f(state, *args)
        check.same("state", state, new)
        old_leaves, new_leaves = tree.leaves(state), tree.leaves(new)
        for old, value in zip(old_leaves, _separate(*old_leaves, *new_leaves), strict=True):
            old.copy_(value)
        return state

    return donated


def compile(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f` as one compiled graph for each signature that it is called with: structure, shapes, dtypes, devices.

    Arguments that are no tensors are constants of the graph. No gradients are recorded.
    """
    check.function("f", f)
    graph_of = _made_once(_graph, f)

    def call(*args: Any) -> Any:
        graph, inputs = graph_of(*args), _tensors(args)
        with torch.no_grad():
            tensors = [*inputs, *graph.run(*inputs)]
        return tree.map(lambda leaf: tensors[leaf] if isinstance(leaf, _Place) else leaf, graph.answer)

    return call


def fold(step: Callable[[State, Any], State]) -> Callable[[State, Any], State]:
    """`training.scan(step)`, donated and compiled: `step(state, x) -> state` for each x of a tree with leaves [n, ...].

    On a CUDA device, what comes a second time (n steps of this very state) is captured in one CUDA graph and replayed.
    Where that fails, a UserWarning gives the reason and the steps are launched one by one.
    """
    graph_of, replayed = _made_once(_graph, donate(step)), _replayed()

    @_made_for_state
    def graph_for(state: State, xs: Any) -> _Graph:
        return graph_of(state, tree.index(xs, 0))

    def folded(state: State, xs: Any) -> State:
        graph, leaves, each = graph_for(state, xs), tree.leaves(state), tree.leaves(xs)
        with torch.no_grad():
            (replayed if _captures(each) else _in_turn)(graph, leaves, each)
        return state

    return folded


def fold_lanes(
    step: Callable[[State, Any], State],
    split: Callable[[int], lanes.Split],
    soon: Callable[[State, Any], State] | None = None,
    soon_xs: Callable[[Any], Any] = lambda xs: xs,
) -> Callable[[State, Any], State]:
    """`fold(vmap(step))`, where `lanes.known_here` in groups of lanes, `split(S)`, each all of its n steps in turn.

    Compiled for one group, ahead of time and kept on disk. A step with an operator that only Python can call (one of
    the user's own) goes through `fold(vmap(step))`. Another step that will `soon` be called on the same state, with
    `soon_xs(xs)` for one step of a group, is compiled meanwhile in a process of its own. Where nothing can be compiled,
    a warning gives the reason and the steps run operation by operation.
    """
    together, loop_for = fold(vmap(step)), _loops(step, split, lanes.loop, soon, soon_xs)

    def in_groups(state: State, xs: Any) -> State:
        loop = loop_for(state, xs)
        if loop is None:
            return together(state, xs)
        loop(tree.leaves(xs))
        return state

    return _first_available(in_groups, together, training.scan(donate(vmap(step))))


def begin_lanes(
    step: Callable[[State, Any], State], split: Callable[[int], lanes.Split]
) -> Callable[[State, Any], Callable[[], State]]:
    """`fold_lanes` on other threads than the caller's, who gets a function that waits for the state.

    Where that is not known, all is done at once.
    """
    together, loop_for = fold_lanes(step, split), _loops(step, split, lanes.loop_beside)

    def at_once(state: State, xs: Any) -> Callable[[], State]:
        done = together(state, xs)
        return lambda: done

    def beside(state: State, xs: Any) -> Callable[[], State]:
        loop = loop_for(state, xs)
        if loop is None:
            return at_once(state, xs)
        wait = loop(tree.leaves(xs))

        def finished() -> State:
            wait()
            return state

        return finished

    return _first_available(beside, at_once)


def _first_available(*engines: Callable[..., Made]) -> Callable[..., Made]:
    """The first of several functions that do the same which can be compiled; a warning says why an earlier one cannot.

    A function raises what the compiler raises before it has written to its arguments.
    """
    left = list(engines)

    def run(*args: Any) -> Made:
        unavailable: Exception | None = None
        while len(left) > 1:
            engine = left[0]
            try:
                result = engine(*args)
                break
            except (toolchain.CompilerError, torch._inductor.exc.InductorError) as error:
                unavailable = unavailable or error
                with _LOCK:  # another thread may have found out too
                    if left[0] is engine:
                        left.pop(0)
        else:
            result = left[0](*args)
        if unavailable is not None:
            kind = "" if isinstance(unavailable, toolchain.CompilerError) else "inductor failed: "
            reason = kind + str(unavailable).strip().splitlines()[0]
            slower = "eager execution, many times slower" if len(left) == 1 else "a slower engine"
            warnings.warn(f"{reason}; falling back to {slower}", stacklevel=1)
        return result

    return run


def _loops(
    step: Callable[[State, Any], State],
    split: Callable[[int], lanes.Split],
    loop: Callable[[Path, list[Tensor], lanes.Split], Any],
    soon: Callable[[State, Any], State] | None = None,
    soon_xs: Callable[[Any], Any] = lambda xs: xs,
) -> Callable[[State, Any], Any]:
    """What gives the loop for a state and its xs, or nothing where there is none."""
    check.function("split", split)

    def made(f: Callable[..., Any], args: Any) -> Path | None:
        threads, state, xs = args
        if soon is not None:
            _begin(donate(vmap(soon)), (state, soon_xs(xs)), threads)
        return _library(f, (state, xs), threads)

    library_of = _made_once(made, donate(vmap(step)))

    @_made_for_state
    def loop_for(state: State, xs: Any) -> Any:
        leaves = tree.leaves(state)
        if not lanes.known_here(leaves[0].device):
            return None
        parts = split(len(leaves[0]))
        if len(leaves[0]) % parts.lanes:
            raise ValueError(f"split: expected groups of a size that divides {len(leaves[0])} lanes, got {parts}")
        group = slice(parts.lanes)
        library = library_of(parts.threads, tree.index(state, group), tree.index(tree.index(xs, 0), group))
        with compiling():  # loading compiles the loop itself when it is first needed
            return None if library is None else loop(library, leaves, parts)

    return loop_for


def compiled(program: training.Program, check_compile: bool = True) -> training.Functions:
    """The step functions over lanes, writing over their state; all but `sync` compiled, one graph or library each.

    On a CPU call `prepare_cpu` first, on CUDA `prepare_cuda`. Unless `check_compile` is False, the first cycle is
    compared with the same cycle run operation by operation: it raises `verify.MismatchError` where they differ.
    """
    check.kind("program", program, training.Program)
    collect, cycle, split = partial(training.collect, program), partial(training.cycle, program), _split(program)
    if _is_long(program):
        return _looped(program, split, check_compile)
    fast = fold_lanes(cycle, split)
    return training.Functions(
        noise=_noise(program),
        collect=fold_lanes(collect, split, soon=cycle),
        cycle=verify.with_comparison(fast, cycle) if check_compile else fast,
        sync=_sync,
    )


def _is_long(program: training.Program) -> bool:
    """Return True if a training iteration has too many steps and updates for one graph: each adds to compile time."""
    return program.config.steps_per_cycle + program.config.updates_per_cycle > UNROLLED


def _looped(program: training.Program, split: Callable[[int], lanes.Split], check_compile: bool) -> training.Functions:
    """`compiled` for long cycles: one compiled step and one compiled update, repeated by a loop on the host."""
    step, update = partial(training.interact, program), partial(training.update, program)
    interact = fold_lanes(step, split, soon=update, soon_xs=lambda xs: training.example_update(program, len(xs.act)))
    learn = fold_lanes(update, split)
    if check_compile:
        interact, learn = verify.with_comparison(interact, step), verify.with_comparison(learn, update)

    def collect(state: training.TrainState, noise: training.Noise) -> training.TrainState:
        interact(state, training.interactions(noise))
        state.cycle.copy_(state.cycle + 1)
        return state

    def cycle(state: training.TrainState, noise: training.Noise) -> training.TrainState:
        return learn(collect(state, noise), training.updates(noise))

    return training.Functions(_noise(program), training.scan(collect), training.scan(cycle), _sync)


def compiled_parts(program: training.Program, check_compile: bool = True) -> host.Parts:
    """The parts of a cycle in a world, in the same way; of these the first updates are compared.

    What is little work is done by one thread, for all lanes; learning that is little leaves one thread to the world.
    """

    def alone(count: int) -> lanes.Split:
        return lanes.Split(count, 1, 1)

    return host.Parts(
        noise=_noise(program),
        choose=fold_lanes(partial(host.choose, program), alone),
        store=fold_lanes(partial(host.store, program), alone),
        finish=fold_lanes(partial(host.finish, program), alone),
        learn=_learn_beside(program, _split(program, beside=True), check_compile),
        sync=_sync,
    )


def _learn_beside(
    program: training.Program, split: Callable[[int], lanes.Split], check_compile: bool
) -> Callable[[training.TrainState, training.Noise], Callable[[], training.TrainState]]:
    """Make a function that starts the updates of one training iteration on other threads, for noise [1, S, ...]."""
    compare = verify.comparison(partial(training.learn, program))
    is_long = _is_long(program)
    start = begin_lanes(partial(training.update if is_long else training.learn, program), split)

    def begun(state: training.TrainState, noise: training.Noise) -> Callable[[], training.TrainState]:
        expected = compare.begin(state, noise) if check_compile else None
        wait = start(state, training.updates(tree.index(noise, 0)) if is_long else noise)

        def finished() -> training.TrainState:
            learned = wait()
            compare.end(expected, learned)
            return learned

        return finished

    return begun


def player(env: Env, network: Network, epsilon: float = 0.0) -> evaluate.Play:
    """`evaluate.play` over lanes as one graph, compiled when it is first called."""
    play = vmap(partial(evaluate.play, env, network, epsilon))
    return _first_available(compile(play), play)


def _split(program: training.Program, beside: bool = False) -> Callable[[int], lanes.Split]:
    known = functools.cache(partial(lanes.split, program))

    def chosen(count: int) -> lanes.Split:
        threads = torch.get_num_threads()
        fewer = known(count, max(1, threads - 1))
        return fewer if beside and lanes.is_little(program, fewer.lanes) else known(count, threads)

    return chosen


def _noise(program: training.Program) -> Callable[[Tensor, int, int], training.Noise]:
    draw, draw_numbered = (
        _first_available(compile(partial(f, program)), partial(f, program))
        for f in (training.draw, training.draw_numbered)
    )

    def noise(keys: Tensor, first_cycle: int, cycles: int) -> training.Noise:
        if _compiles_keys(keys):
            return draw_numbered(keys, training.cycle_numbers(keys, first_cycle, cycles))
        # The few keys are made outside: a compiler takes four seconds for each of these ciphers.
        with lanes.sharing(1):
            return draw(training.cycle_keys(keys, first_cycle, cycles))

    return noise


def _sync(state: training.TrainState) -> training.TrainState:
    # One call for all leaves: there is nothing to fuse, so a graph would only take its time to compile.
    learner = state.learner
    with lanes.sharing(1):
        torch._foreach_copy_(tree.leaves(learner.target_params), tree.leaves(learner.params))
    return state


def prepare_cpu() -> None:
    """What a process does once, before its threads start, so that a CPU is not slowed down by two of its habits.

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


# Tracing and compiling replace functions and settings of the whole process, so one thread does it at a time.
_LOCK = threading.RLock()

# How deep this thread is in `compiling`.
_depth = threading.local()


def is_compiling() -> bool:
    """Return True while this thread compiles a step function; the state that it is for is not written then."""
    return getattr(_depth, "value", 0) > 0


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Only this thread traces and compiles. No gradients are recorded, torch's warnings about itself are not shown, and
    an interrupt ends the compilers that were started.
    """
    with (
        _LOCK,
        torch.no_grad(),
        warnings.catch_warnings(action="ignore", category=FutureWarning),
        toolchain.compiler_guard(),
    ):
        _depth.value = getattr(_depth, "value", 0) + 1
        try:
            yield
        except KeyboardInterrupt:
            while _begun:
                _end(_begun.popitem()[1])
            raise
        finally:
            _depth.value -= 1


def _made_once(make: Callable[..., Made], f: Callable[..., Any]) -> Callable[..., Made]:
    """`make(f, args)`, called at the first arguments of each signature."""
    known: dict[Any, Made] = {}

    def made(*args: Any) -> Made:
        leaves = tree.leaves(args)
        # Which arguments are one tensor, or share memory, is part of what is compiled.
        owners: dict[int, int] = {}
        shared = (owners.setdefault(_storage(x), i) for i, x in enumerate(_tensors(args)))
        signature = (torch.get_num_threads(), tree.structure(args), *map(_kind, leaves), *shared)
        if signature not in known:
            with compiling():
                if signature not in known:
                    known[signature] = make(f, args)
        return known[signature]

    return made


def _made_for_state(make: Callable[[Any, Any], Made]) -> Callable[[Any, Any], Made]:
    """`make(state, xs)`, made anew only for another state than last time's, leaf by leaf, or xs of another kind.

    A signature costs half of a small network's cycle; this costs a twentieth.
    """
    recent: tuple[Any, list[Tensor], Any, Made] | None = None

    def made(state: Any, xs: Any) -> Made:
        nonlocal recent
        leaves, each = tree.leaves(state), tree.leaves(xs)
        check.length("xs", xs)
        # A tensor's memory may be exchanged behind its back.
        kinds = [tree.structure(xs), *(_kind(x[0]) for x in each), *(x.data_ptr() for x in leaves)]
        last = recent  # another thread may replace it at any time
        if last is None or state is not last[0] or kinds != last[2] or not all(map(is_, leaves, last[1])):
            last = recent = state, leaves, kinds, make(state, xs)
        return last[3]

    return made


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return type(leaf), repr(leaf)  # 1, 1.0 and True are equal and not the same constant


def _tensors(args: Any) -> list[Tensor]:
    return [leaf for leaf in tree.leaves(args) if isinstance(leaf, Tensor)]


def _graph(f: Callable[..., Any], args: Any) -> _Graph:
    """`f` for `args`, compiled by inductor."""
    traced, answer = _traced(f, args)
    inputs = _tensors(args)
    _check_on_device(traced, f, args)
    with _without_tf32_warning():
        return _Graph(torch._inductor.compile(traced, list(inputs), options=_options(inputs)), answer)


class _Order(NamedTuple):
    """What a library is made from."""

    traced: torch.fx.GraphModule
    inputs: list[tuple[torch.Size, tuple[int, ...], torch.dtype]]
    options: dict[str, Any]
    path: Path
    """Where it is kept, named by all that it depends on."""


def _order(f: Callable[..., Any], args: Any, threads: int) -> _Order:
    """The library of `f` for `args`, all of them its state and noise."""
    traced, _ = _traced(f, args)
    inputs = [(x.shape, x.stride(), x.dtype) for x in _tensors(args)]
    # A vector that is not full would be one of a group's few lanes, each array transposed for it: 0.88x at 32 lanes.
    options = _options(
        _tensors(args), {"cpp.threads": threads, "cpp_wrapper": False, "cpp.enable_loop_tail_vec": False}
    )
    constants = [(name, x.dtype, x.tolist()) for name, x in traced.state_dict().items()]
    compiler = os.environ.get("CXX"), torch.backends.cpu.get_cpu_capability(), processor.line("flags", "Features")
    made_from = (torch.__version__, compiler, _settings(), options, traced.code, constants, inputs)
    name = hashlib.sha256(repr(made_from).encode()).hexdigest()
    return _Order(traced, inputs, options, Path(cache_dir()) / "fdqn" / f"{name}.so")


def _library(f: Callable[..., Any], args: Any, threads: int) -> Path | None:
    """`f` for `args`, compiled ahead of time; nothing where that needs Python."""
    order = _order(f, args, threads)
    if maker := _begun.get(order.path):
        maker.wait()
        _begun.pop(order.path, None)
    if not order.path.exists():
        _make(order)
    return None if b"aoti_torch_proxy_executor_call_function" in order.path.read_bytes() else order.path


def _make(order: _Order) -> None:
    for node in order.traced.graph.nodes:
        node.meta.clear()  # after unpickling, stand-ins that do not know each other
    examples = [torch.empty_strided(*kind[:2], dtype=kind[2]) for kind in order.inputs]
    made = torch._inductor.aot_compile(order.traced, tuple(examples), options=order.options)
    order.path.parent.mkdir(exist_ok=True)
    part = order.path.with_suffix(f".{os.getpid()}")
    shutil.copy(str(made), part)
    os.replace(part, order.path)


# Libraries that are being made in processes of their own. What fails there is made, and fails, here.
_begun: dict[Path, subprocess.Popen[bytes]] = {}


def _begin(f: Callable[..., Any], args: Any, threads: int) -> None:
    """Begin to make a library that `_library` will be asked for."""
    order = _order(f, args, threads)
    if order.path.exists() or order.path in _begun:
        return
    # `-P`: what is imported is what this process would import, not what lies in the working directory.
    command = [sys.executable, "-P", "-c", "from fdqn import compile; compile._make_ordered()"]
    with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError, OSError):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        written = pickle.dumps(order)
        # In a session of its own, so that its compilers can be ended with it.
        maker = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        atexit.register(_end, maker)
        _begun[order.path] = maker
        assert maker.stdin is not None  # a pipe was asked for
        with maker.stdin:
            maker.stdin.write(written)


def _end(maker: subprocess.Popen[bytes]) -> None:
    """End a process that makes a library, and the compilers that it has started."""
    if maker.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(maker.pid, signal.SIGKILL)
        maker.wait()


def _make_ordered() -> None:
    """The other process."""
    with compiling():
        _make(pickle.load(sys.stdin.buffer))


@functools.cache
def _settings() -> str:
    """Inductor's own settings as this process found them; compiling changes some."""
    return repr(sorted(torch._inductor.config.save_config_portable().items()))


def _traced(f: Callable[..., Any], args: Any) -> tuple[torch.fx.GraphModule, Any]:
    """`f` traced on stand-ins for the tensors of `args`, from tensors to those that are new, and its answer."""
    inputs, answer = _tensors(args), None

    def flat(*tensors: Tensor) -> list[Tensor]:
        nonlocal answer
        given = iter(tensors)
        result = f(*tree.map(lambda leaf: next(given) if isinstance(leaf, Tensor) else leaf, args))
        outputs: list[Tensor] = []
        places = {id(x): _Place(i) for i, x in enumerate(tensors)}
        for x in _tensors(result):
            if id(x) not in places:
                places[id(x)] = _Place(len(tensors) + len(outputs))
                outputs.append(x)
        answer = tree.map(lambda leaf: places.get(id(leaf), leaf), result)
        return outputs

    with torch.no_grad():
        traced = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    return _guarded(traced), answer


def _guarded(traced: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph with a contiguous copy of each tensor that is written to and whose elements share memory.

    Under vmap, the zeros that a gradient is accumulated into are one tensor expanded over the lanes. Inductor of torch
    2.13 and older writes into it in place, so that every lane reads the sum over all lanes (pytorch issues 188084 and
    183986, fixed in 2.14.1).
    """
    for node in list(traced.graph.nodes):
        if getattr(node.target, "overloadpacket", None) in _WRITES and _overlaps(node.args[0].meta["val"]):
            with traced.graph.inserting_before(node):
                own = traced.graph.call_function(
                    torch.ops.aten.clone.default, node.args[:1], {"memory_format": torch.contiguous_format}
                )
            node.update_arg(0, own)
    traced.recompile()
    return traced


# Operators whose result is their first argument with some elements replaced: inductor may compute it in place.
_WRITES = frozenset(
    getattr(torch.ops.aten, name)
    for name in (
        *("index_add", "index_copy", "index_fill", "index_put", "_unsafe_index_put", "index_reduce", "put"),
        *("scatter", "scatter_add", "scatter_reduce", "masked_scatter"),
        *("select_scatter", "slice_scatter", "diagonal_scatter", "as_strided_scatter"),
    )
)


def _overlaps(x: Tensor) -> bool:
    """Return True if elements of a tensor share memory, as after `expand`."""
    return any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True))


def _options(inputs: list[Tensor], others: dict[str, Any] | None = None) -> dict[str, Any]:
    """Inductor's settings and `others`, as far as this version knows them.

    What decides between kernels by timing them stays off, so that a run can be repeated.
    """
    options: dict[str, Any] = {"size_asserts": False, "alignment_asserts": False, "triton.cudagraphs": False}
    options |= {"deterministic": True, "triton.autotune_pointwise": False}
    if not any(x.is_cuda for x in inputs):
        # Whether the compiler knows what the processor can is tried with ten small programs, seven seconds; it does.
        options |= {"cpp_wrapper": True, "cpp.threads": torch.get_num_threads(), "cpp.vec_isa_ok": True}
    known = torch._inductor.list_options()
    return {name: value for name, value in (options | (others or {})).items() if name in known}


@contextlib.contextmanager
def _without_tf32_warning() -> Iterator[None]:
    """Silence inductor's advice to allow TF32: the precision is the user's choice, made with `allow_tf32`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        yield


def _compiles_keys(keys: Tensor) -> bool:
    """Compile the ciphers of keys too: on CUDA they are 309 launches a draw."""
    return keys.is_cuda


# Host tensors in a device's graph


def _check_on_device(traced: torch.fx.GraphModule, f: Callable[..., Any], args: Any) -> None:
    """Raise ValueError where the graph of `f` on a device holds a tensor on the CPU, or a copy from it or to it.

    A CUDA graph cannot capture such a copy, and uncaptured it would make the host wait at every step.
    """
    away = [x.device for x in _tensors(args) if x.device.type != "cpu"]
    for node in traced.graph.nodes if away else ():
        if (x := _on_host(node)) is not None:
            what = "a constant" if node.op == "get_attr" else "an argument" if node.op == "placeholder" else node.target
            raise ValueError(
                f"compile: expected every tensor on {away[0]}, got {what} {list(x.shape)} {x.dtype} on {x.device}"
                f"{_source_line(f, args)}; create it on the device of an argument, as in "
                "torch.zeros(3, device=x.device)"
            )


def _on_host(node: torch.fx.Node) -> Tensor | None:
    """The tensor of a node that is on the CPU or copied from it or to it, if any.

    A number [] on the CPU is none: kernels take it by value.
    """
    if node.op == "output":
        return None
    here = _tensors(node.meta.get("val"))
    given = [x for source in node.all_input_nodes for x in _tensors(source.meta.get("val"))]
    from_device = any(x.device.type != "cpu" for x in given)
    copied = given if _is_copy(node) and any(x.device.type != "cpu" for x in here) else []
    found = [x for x in here if x.device.type == "cpu" and (x.ndim or from_device)]
    found += [x for x in copied if x.device.type == "cpu"]
    return found[0] if found else None


def _is_copy(node: torch.fx.Node) -> bool:
    return str(node.target).split(".")[1:2] in (["_to_copy"], ["copy"], ["copy_"], ["device_put"])


def _source_line(f: Callable[..., Any], args: Any) -> str:
    """The line of code at which a tensor on the CPU first appears in `f`, in words; nothing where none is seen."""
    with contextlib.suppress(Exception), (seen := _HostTensors()):
        _traced(f, args)
    return seen.line


class _HostTensors(TorchFunctionMode):
    """Notes the first call of a torch function that takes or returns a tensor on the CPU with axes."""

    line = ""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self.line and any(x.device.type == "cpu" and x.ndim for x in _tensors((args, kwargs, result))):
            inside = str(Path(torch.__file__).parent) + os.sep, __file__
            frame = next((x for x in reversed(traceback.extract_stack()) if not x.filename.startswith(inside)), None)
            self.line = f" in {Path(frame.filename).name}, line {frame.lineno}, {frame.name}" if frame else ""
        return result


# Loops on the host and their CUDA graphs


def _in_turn(graph: _Graph, leaves: list[Tensor], xs: list[Tensor]) -> None:
    """`graph` on `leaves` and each of `xs`, leaves [n, ...]."""
    for x in zip(*(x.unbind() for x in xs), strict=True):
        graph.run(*leaves, *x)


def _captures(xs: list[Tensor]) -> bool:
    """Whether what is repeated is captured: where launching kernels one by one takes longer than they do."""
    return xs[0].is_cuda


class _Captured(NamedTuple):
    """A CUDA graph of so many steps of one state."""

    replay: Callable[[list[Tensor]], None]
    pool: Any
    """The memory that it computes in, which graphs replayed one after the other share."""


class _StateGraphs(NamedTuple):
    """The CUDA graphs of one state, which write to its memory."""

    leaves: list[weakref.ref[Tensor]]
    captured: dict[Any, _Captured | None]
    """By graph and number of steps, the latest last; None for what has come once."""


def _replayed() -> Callable[[_Graph, list[Tensor], list[Tensor]], None]:
    """`_in_turn` that captures what comes a second time.

    Of each state the last GRAPHS_KEPT graphs are kept, and those of states that are gone are dropped.
    """
    states: dict[Any, _StateGraphs] = {}
    works = True

    def run(graph: _Graph, leaves: list[Tensor], xs: list[Tensor]) -> None:
        nonlocal works
        graphs = _of_state(states, leaves)
        place = (id(graph), len(xs[0]), *map(_kind, xs))
        seen, captured = place in graphs, graphs.pop(place, None)
        if seen and captured is None and works:
            pool = next((each.pool for each in graphs.values() if each), None) or torch.cuda.graph_pool_handle()
            captured = _captured_or_warned(graph, leaves, xs, pool)
            works = captured is not None
        graphs[place] = captured
        for oldest in list(graphs)[:-GRAPHS_KEPT]:
            del graphs[oldest]
        if captured is None:
            _in_turn(graph, leaves, xs)
        else:
            captured.replay(xs)

    return run


def _of_state(states: dict[Any, _StateGraphs], leaves: list[Tensor]) -> dict[Any, _Captured | None]:
    """The graphs of the state with these leaves."""
    addresses = tuple(x.data_ptr() for x in leaves)
    if addresses not in states:
        for gone in [key for key, each in states.items() if any(leaf() is None for leaf in each.leaves)]:
            del states[gone]
        states[addresses] = _StateGraphs([weakref.ref(x) for x in leaves], {})
    return states[addresses].captured


def _captured_or_warned(graph: _Graph, leaves: list[Tensor], xs: list[Tensor], pool: Any) -> _Captured | None:
    """`_captured`; where that fails, a warning and the stream as it was."""
    stream = torch.cuda.current_stream(leaves[0].device)
    try:
        return _Captured(_captured(graph, leaves, xs, pool), pool)
    except RuntimeError as error:
        # torch.cuda.graph leaves its own stream behind where the capture does not end well (2.13).
        torch.cuda.set_stream(stream)
        first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
        reason = next(iter(str(first).splitlines()), type(first).__name__)
        warnings.warn(
            f"CUDA graph: expected to capture {len(xs[0])} steps, got: {reason}; kernels are launched one by one, "
            "which is slower",
            stacklevel=2,
        )
        return None


def _captured(graph: _Graph, leaves: list[Tensor], xs: list[Tensor], pool: Any) -> Callable[[list[Tensor]], None]:
    """`_in_turn` as one CUDA graph, which reads from buffers of its own. Capturing runs nothing.

    What it computes with on the way comes from `pool`, for all graphs that are replayed one after the other.
    """
    # The graph was compiled for these strides; `empty_like` would not keep them.
    buffers = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in xs]
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording, pool=pool):
        _in_turn(graph, leaves, buffers)

    def replay(xs: list[Tensor]) -> None:
        for buffer, x in zip(buffers, xs, strict=True):
            buffer.copy_(x)
        recording.replay()

    return replay


# Under torch.compile Dynamo cannot see which storages are shared, but runs a function that is allowed in the graph as
# plain Python, on tensors that know.
@torch.compiler.allow_in_graph
def _separate(*leaves: Tensor) -> tuple[Tensor, ...]:
    """Of old leaves and then as many new ones: the new ones, those that share storage with another old leaf copied."""
    old, new = leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :]
    owners: dict[int, int] = {}
    for i, leaf in enumerate(old):
        if leaf.numel() and owners.setdefault(_storage(leaf), i) != i:
            raise ValueError(
                f"state: expected leaves with storage of their own, got {owners[_storage(leaf)]} and {i} sharing one"
            )
    return tuple(
        _snapshot(value) if _storage(value) in owners and not _is_same(old[i], value) else value
        for i, value in enumerate(new)
    )


def _is_same(old: Tensor, new: Tensor) -> bool:
    """Whether `new` is all of `old` in its own place."""
    return (
        _storage(old) == _storage(new) and old.storage_offset() == new.storage_offset() and old.stride() == new.stride()
    )


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


# An operator of our own, since inductor takes a plain clone out and then reads what has been written over (2.13).
@torch.library.custom_op("fdqn::snapshot", mutates_args=())
def _snapshot(x: Tensor) -> Tensor:
    return x.clone()


@_snapshot.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)
