"""Engines: each equals eager execution, and falls back with a one-line warning if torch lacks a function."""

import json
import re
import shlex
import warnings
from functools import partial

import pytest
import torch
from torch._inductor.exc import InductorError
from torch.func import grad, vmap

from fdqn import cli, networks, training, tree
from fdqn import compile as edge
from fdqn.compile import aot, cpu_groups, dynamo, engines, graph, private, toolchain, verify
from fdqn.experiment import assemble, run_folder
from fdqn.experiment.settings import Settings, from_json, to_json
from fdqn.testing import asserts, examples, programs

CPU = torch.device("cpu")
COMPILING = [name for name in edge.ENGINES if name != "eager" and (name != "aot" or cpu_groups.supported(CPU))]
EACH = pytest.mark.parametrize("engine", COMPILING)


def one_group(count):
    return edge.ThreadPartition(count, 1, 1)


@pytest.fixture
def compiles(monkeypatch):
    """Record the names of the compilers that are called, in order."""
    called = []

    def counted(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, **named: called.append(name) or original(*given, **named))

    counted(graph, "compile_graph")
    counted(aot, "library")  # cached across runs of the tests
    counted(torch, "compile")
    return called


# The law


def mlp_with_indexed_writes(obs_shape, hidden, actions):
    """Make an MLP whose values and gradients are written at indices."""
    plain = networks.mlp(obs_shape, hidden, actions)
    back, twice = torch.tensor([1, 0]), torch.tensor([0, 1, 1])

    def apply(params, obs):
        q = plain.apply(params, obs)
        added = torch.zeros_like(q).index_add(-1, back, q)
        put = torch.zeros(3, dtype=q.dtype).index_put((twice,), q.flatten()[:3], accumulate=True)
        return q.index_select(-1, back) + added + put[0] + q.gather(-1, (q > 0).long())

    return plain._replace(apply=apply)


@EACH
@pytest.mark.parametrize("name", ["learn", pytest.param("cycle", marks=pytest.mark.slow)])
def test_engines_equal_eager_execution(engine, name, compiles):
    """Compare updates or iterations of two seeds: in place, compiled once, also for changed hyper-parameters."""
    program = examples.program(network=mlp_with_indexed_writes((4,), (8,), 2))
    step = partial(getattr(training, name), program)
    state = programs.advance(program, training.init(program, *examples.seeds(2)), 4)
    fast, slow = edge.scan_vmapped(step, one_group, engine=engine), training.scan(vmap(step))
    noise, mine, theirs = training.noise(program, state.key, 4, 6), tree.clone(state), state
    for first, last in ((0, 1), (1, 3), (3, 6)):
        here = tree.index(noise, slice(first, last))
        addresses = [x.data_ptr() for x in tree.leaves(mine)]
        mine, theirs = fast(mine, here), slow(theirs, here)
        assert [x.data_ptr() for x in tree.leaves(mine)] == addresses
        assert len(compiles) == 1
        asserts.assert_trees_close(theirs, mine, 1e-4, 1e-4, f"iteration {last}: ")
        hyper = tree.map(lambda x: x * 0.5, mine.hyper)
        mine, theirs = mine._replace(hyper=hyper), theirs._replace(hyper=tree.clone(hyper))


def follow(state, x):
    """Take a gradient step of a loss that reorders columns."""
    columns = torch.tensor([2, 1, 0])
    return state - 0.1 * grad(lambda w: (w * x).index_select(-1, columns).square().mean())(state)


@EACH
def test_gradients_of_each_seed_equal_eager_execution(engine):
    expected = training.scan(vmap(follow))(torch.ones(8, 3), torch.ones(4, 8, 3))
    mine = edge.scan_vmapped(follow, one_group, engine=engine)(torch.ones(8, 3), torch.ones(4, 8, 3))
    torch.testing.assert_close(mine, expected)


@pytest.mark.skipif(torch.__version__ >= graph.FIXED_IN, reason="the compiler is right")
@pytest.mark.parametrize("engine", ["aot", *(pytest.param(x, marks=pytest.mark.slow) for x in COMPILING if x != "aot")])
def test_wrong_gradients_are_detected_in_the_first_steps(engine, monkeypatch):
    """Disable the workaround for a bug of torch that multiplies gradients by the number of seeds."""
    monkeypatch.setattr(graph, "own_memory", lambda traced: None)
    monkeypatch.setattr(dynamo, "_own_memory_pass", lambda: None)
    scan = verify.with_comparison(edge.scan_vmapped(follow, one_group, engine=engine), follow)
    state, xs = torch.ones(8, 3), torch.ones(1, 8, 3)
    scan(state, xs)
    with pytest.raises(edge.MismatchError, match="compiled step: expected the results of eager execution"):
        scan(state, xs)


@EACH
def test_swapped_leaves_are_donated(engine):
    """Swap leaves of the state, also on other threads than the caller's."""

    def swap(state, x):
        return {"a": state["b"] + x, "b": state["a"], "count": state["count"] + 1}

    def start():
        return {"a": torch.zeros(2), "b": torch.ones(2), "count": torch.zeros(2, dtype=torch.int64)}

    xs = torch.arange(6.0).reshape(3, 2)
    expected = training.scan(vmap(swap))(start(), xs)
    asserts.assert_trees_equal(expected, edge.scan(vmap(swap), engine=engine)(start(), xs))
    finished = edge.scan_vmapped_async(swap, one_group, engine)(start(), xs)
    asserts.assert_trees_equal(expected, finished())


@EACH
def test_constants_are_part_of_a_compiled_function(engine):
    f = edge.compile(lambda x, n: {"sum": x.sum() + n, "x": x, "n": n}, engine)
    for x, n in ((torch.ones(3), 1), (torch.ones(4), 1), (torch.ones(4), 2), (torch.ones(3), 1.5)):
        result = f(x, n)
        assert result["x"] is x
        assert result["n"] == n
        assert float(result["sum"]) == float(x.sum()) + n


def test_the_eager_engine_compiles_nothing(compiles):
    def f(x):
        return x + 1

    assert edge.compile(f, "eager") is f
    assert edge.scan(lambda s, x: s + x, "eager")(torch.zeros(2), torch.ones(3, 2)).tolist() == [3.0, 3.0]
    assert (
        edge.compiled(examples.program(), engine="eager").sync.__name__
        == training.vmapped(examples.program()).sync.__name__
    )
    assert compiles == []


# Falling back


def step(state, x):
    return state + x.sin()


def fallback(engine):
    """Return the engines that a step falls back to from `engine`, and the warnings."""
    state, xs = torch.ones(2, 3), torch.ones(4, 2, 3)
    expected = training.scan(vmap(step))(state, xs)
    with warnings.catch_warnings(record=True, action="always", category=UserWarning) as warned:
        torch.testing.assert_close(edge.scan_vmapped(step, one_group, engine=engine)(state, xs), expected)
        torch.testing.assert_close(engines.compile_or_eager(torch.cos, engine)(xs), xs.cos())
    lines = list(dict.fromkeys(str(each.message) for each in warned if "torch.jit" not in str(each.message)))
    ends = [re.search(r"; falling back to (?:the engine )?(\S+)", line)[1] for line in lines]
    return ends, lines


FAULTY = torch.__version__ < graph.FIXED_IN
WITHOUT = {
    "torch._inductor.aot_compile": {"aot": "inductor"},
    "torch._inductor.config.save_config_portable": {"aot": "inductor"},
    "torch._inductor.compile": {"inductor": "torch.compile"},
    "torch.fx.experimental.proxy_tensor.make_fx": {"aot": "torch.compile", "inductor": "torch.compile"},
    "torch._inductor.list_options": {"aot": "torch.compile", "inductor": "torch.compile"},
    "torch._inductor.runtime.cache_dir_utils.cache_dir": {},
    "torch._inductor.exc.CppCompileError": {},
    "torch._inductor.cpp_builder.CppBuilder.get_command_line": {},
    "torch._inductor.custom_graph_pass.CustomGraphPass": {"torch.compile": "eager"} if FAULTY else {},
    "torch._inductor.config.post_grad_custom_pre_pass": {"torch.compile": "eager"} if FAULTY else {},
}
"""Fallbacks by missing private function: engine -> engine that runs instead."""


@pytest.fixture
def without(monkeypatch, tmp_path):
    """Return a function that makes `private.lookup` miss a name, which torch itself can still use."""
    lookup, missing = private.lookup, set()

    def missed(name):
        return lookup(f"{name}_that_is_gone" if name in missing else name)

    def miss(name):
        missing.add(name)
        if name == "torch._inductor.aot_compile":
            monkeypatch.setattr(toolchain, "cache_dir", lambda: tmp_path)  # no cached library

    monkeypatch.setattr(private, "lookup", missed)
    aot._settings.cache_clear()
    yield miss
    aot._settings.cache_clear()


@pytest.mark.parametrize("name", WITHOUT)
def test_a_missing_private_function_falls_back_with_one_warning(name, without):
    private.lookup(name)  # exists in this version
    without(name)
    for engine in WITHOUT[name] or ["aot"]:
        if engine not in COMPILING:
            continue
        ends, lines = fallback(engine)
        if WITHOUT[name]:
            assert ends == [WITHOUT[name][engine]]
            assert lines[0].startswith(f"torch {torch.__version__} has no {name}")
        else:
            assert lines == []
        assert not any("\n" in line for line in lines)


@pytest.mark.parametrize(
    "name", ["torch._inductor.compile", "torch._inductor.aot_compile", "torch.fx.experimental.proxy_tensor.make_fx"]
)
def test_a_private_function_with_other_parameters_falls_back(name, monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain, "cache_dir", lambda: tmp_path)  # no cached library
    monkeypatch.setattr(name, lambda *, something_else: None)
    (engine, end), *_ = WITHOUT[name].items()
    if engine not in COMPILING:
        pytest.skip("not an engine of this system")
    ends, lines = fallback(engine)
    assert ends == [end]
    assert lines[0].startswith(f"torch {torch.__version__} has another {name}: ")


@pytest.mark.skipif("aot" not in COMPILING, reason="aot is for CPUs under Linux")
@pytest.mark.parametrize("name", ["AOTInductorModelContainerRun", "aoti_torch_dtype_float32", "a function of the loop"])
def test_a_missing_c_function_of_torch_falls_back(name, monkeypatch, tmp_path):
    caches = cpu_groups._model, cpu_groups._driver, cpu_groups._dtype
    if name.startswith("a function"):
        source = tmp_path / "loop.cpp"
        source.write_text(cpu_groups.SOURCE.read_text().replace("aoti_torch_new_tensor_handle", "aoti_torch_gone"))
        monkeypatch.setattr(cpu_groups, "SOURCE", source)
    else:
        function = cpu_groups._function
        monkeypatch.setattr(cpu_groups, "_function", lambda lib, x: function(lib, f"{x}_gone" if x == name else x))
    for cache in caches:
        cache.cache_clear()
    ends, lines = fallback("aot")
    for cache in caches:
        cache.cache_clear()
    assert ends == ["inductor"]
    assert re.match(
        rf"torch {re.escape(torch.__version__)} has (no C function {name}_gone|another C interface: )", *lines
    )


@pytest.mark.skipif("aot" not in COMPILING, reason="aot is for CPUs under Linux")
def test_an_error_inside_the_compiler_falls_back_and_names_the_engine(monkeypatch, tmp_path):
    def broken(*given, **settings):
        raise InductorError(KeyError("buf27"), None)

    monkeypatch.setattr(toolchain, "cache_dir", lambda: tmp_path)  # no cached library
    monkeypatch.setattr("torch._inductor.aot_compile", broken)
    ends, lines = fallback("aot")
    assert ends == ["inductor"]
    assert lines == ["the engine aot failed: KeyError: 'buf27'; falling back to the engine inductor"]


def test_skip_all_guards_unsafe_is_optional(monkeypatch):
    monkeypatch.delattr(torch.compiler, "skip_all_guards_unsafe", raising=False)
    assert fallback("torch.compile") == ([], [])


def test_foreach_copy_is_optional(monkeypatch):
    program = examples.program()
    state = programs.advance(program, training.init(program, *examples.seeds(2)), 6)
    expected = tree.clone(vmap(training.sync)(state))
    monkeypatch.delattr(torch, "_foreach_copy_")
    asserts.assert_trees_equal(expected, edge.compiled(program).sync(state))


def test_an_engine_for_another_device_falls_back(monkeypatch):
    monkeypatch.setattr(cpu_groups, "supported", lambda device: False)
    assert fallback("aot") == (
        ["inductor"],
        ["engine aot: expected a CPU under Linux, got cpu; falling back to the engine inductor"],
    )


def test_the_command_warns_once_and_trains(monkeypatch, without, tmp_path, capsys):
    def unavailable(*given):
        raise private.UnavailableError("torch of tomorrow has no torch.compile")

    without("torch.fx.experimental.proxy_tensor.make_fx")
    monkeypatch.setattr(dynamo, "compile_function", unavailable)
    sizes = shlex.split("--seeds 2 --steps 300 --learning-starts 100 --batch-size 8 --hidden 8 --evaluate-episodes 2")
    with warnings.catch_warnings(action="default", category=UserWarning):
        assert cli.main(["train", *sizes, "--out", str(tmp_path / "run")]) == 0
    err = capsys.readouterr().err
    assert (
        err.count("has no torch.fx.experimental.proxy_tensor.make_fx_that_is_gone; falling back to eager execution")
        == 1
    )
    assert "Traceback" not in err
    assert "UserWarning" not in err


# The setting


@pytest.mark.parametrize(
    ("engine", "device", "linux", "expected"),
    [
        ("auto", "cpu", True, "aot"),
        ("auto", "cpu", False, "inductor"),
        ("auto", "cuda", True, "torch.compile"),
        *((name, "cpu", True, name) for name in edge.ENGINES),
    ],
)
def test_the_engine_of_a_device(monkeypatch, engine, device, linux, expected):
    monkeypatch.setattr(cpu_groups, "supported", lambda device: linux)
    assert edge.resolve(engine, torch.device(device)) == expected


def test_no_compile_selects_eager_and_refuses_other_engines():
    for engine in ("auto", "eager"):
        assert not Settings(compile=False, engine=engine).compiles
        assert run_folder._engine_name(Settings(compile=False, engine=engine)) == "eager"
    assert not Settings(engine="eager").compiles
    assert Settings(engine="aot").compiles
    for engine in ("torch.compile", "inductor", "aot"):
        with pytest.raises(ValueError, match="engine: expected 'eager' or 'auto' with --no-compile"):
            assemble.program(Settings(compile=False, engine=engine))


def test_the_engine_of_a_run_is_recorded_and_differences_are_named(tmp_path):
    """Check also runs without this setting, which used the engine of `auto` or were eager."""
    settings = Settings(seeds=2, device="cpu", engine="inductor", out=str(tmp_path / "run"))
    path = run_folder.create(settings)
    config = json.loads((path / "config.json").read_text())
    assert (config["settings"]["engine"], config["engine"]["engine"]) == ("inductor", "inductor")
    assert run_folder.differences(path, settings) == []
    for before, now, expected in (
        ({"compile": True, "lanes": {"lanes": 1, "workers": 1, "threads": 1}}, "aot", []),
        ({"compile": True, "lanes": None}, "inductor", []),
        ({"compile": False, "lanes": None}, "eager", []),
        (
            {"compile": False, "lanes": None},
            "inductor",
            ["compile is True and was False", "engine is inductor and was eager"],
        ),
    ):
        settings = Settings(seeds=2, device="cpu", engine=now)
        old = {key: x for key, x in config["settings"].items() if key != "engine"}
        engine = {**{key: x for key, x in run_folder._engine(settings).items() if key != "engine"}, **before}
        if now == "aot":
            engine["lanes"] = run_folder._partition(settings)
        (path / "config.json").write_text(json.dumps(config | {"settings": old, "engine": engine}))
        assert run_folder.differences(path, settings) == expected
    assert from_json({key: x for key, x in to_json(Settings()).items() if key != "engine"}) == Settings()


def test_a_checkpoint_of_another_engine_is_refused(tmp_path, capsys):
    path = tmp_path / "run"
    words = "--seeds 2 --steps 300 --learning-starts 100 --batch-size 8 --hidden 8 --evaluate-episodes 2 --no-compile"
    assert cli.main(["train", *shlex.split(words), "--out", str(path)]) == 0
    config = json.loads((path / "config.json").read_text())
    config["settings"] |= {"compile": True, "engine": "inductor"}
    (path / "config.json").write_text(json.dumps(config))
    assert cli.main(["resume", str(path), "--steps", "600"]) == 1
    err = capsys.readouterr().err
    assert "expected the settings of config.json, got compile = False and not True, engine = 'auto' and not" in err
