"""The order of the levels, derived from the imports; what may be written in only one of them; and a planted bug for
every law of the kit.

A level is a folder of the package, or a module that lies directly in it.
"""

import ast
import graphlib
import importlib
import pathlib
import re

import pytest

import fdqn

ROOT = pathlib.Path(fdqn.__file__).parent
TESTS = pathlib.Path(__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def level(path):
    """The level of a file: its top folder, or else its own name."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def dotted_path(path):
    """`fdqn.envs.cartpole` of a file."""
    return ".".join(("fdqn", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def belongs_to(path, name):
    """Return whether `name` is a file's own name or one of the folders that it lies in."""
    return name in path.relative_to(ROOT).with_suffix("").parts


SOURCES = pytest.mark.parametrize(
    "path", [p for p in FILES if level(p) != "testing"], ids=lambda p: str(p.relative_to(ROOT))
)
MODULES = {dotted_path(p): p for p in FILES}


def parsed(path):
    return ast.parse(path.read_text())


def imported(module):
    """Dotted names of `fdqn` that a module imports, anywhere in it."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: expected an absolute import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("fdqn."))


def imported_levels(module):
    return {name.split(".")[1] for name in imported(module)} & {level(p) for p in FILES}


def unknown_imports(module):
    """Return the names that a module imports from `fdqn` and that are not levels, such as lazily resolved ones."""
    return {name.split(".")[1] for name in imported(module)} - {level(p) for p in FILES} - {"__version__"}


def imported_files(module):
    """Dotted names of the modules that a module imports: `from fdqn.envs import episode` gives `fdqn.envs.episode`."""
    return {name if name in MODULES else name.rpartition(".")[0] for name in imported(module)} & set(MODULES)


def cycle(graph):
    """Names that import each other in a circle, the first again at the end; none if there is no circle."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def heights(graph):
    """The number of imports on the longest way down from each level."""
    found = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        found[name] = 1 + max((found[below] for below in graph.get(name, ())), default=-1)
    return found


def order(graph):
    """The levels in lines, each of which imports only from lines above it."""
    rows = {}
    for name, height in sorted(heights(graph).items()):
        rows.setdefault(height, []).append(name)
    return "\n".join(f"{height:2d}  {' '.join(names)}" for height, names in sorted(rows.items()))


def reachable(graph, names):
    """`names`, what they import, what that imports, and so on."""
    found, waiting = set(), [name for name in names if name in graph]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting.extend(graph.get(name, ()))
    return found


def levels_of(sources):
    """The levels that each level imports from, itself left out; `sources` are pairs of a level and a parsed module."""
    graph = {}
    for name, module in sources:
        graph.setdefault(name, set()).update(imported_levels(module) - {name})
    return graph


ENTRANCES = {"testing": set(), "cli": {"__main__"}, "__main__": set()}
"""Levels that nothing imports but the levels named."""


def breaches(graph):
    """Imports of an entrance, as pairs of the level that imports and the entrance."""
    return sorted((name, x) for name in graph for x in graph[name] & set(ENTRANCES) if name not in ENTRANCES[x])


LEVELS = levels_of((level(p), parsed(p)) for p in FILES)
CORE = reachable(LEVELS, ["compile", "networks", "envs", "replay", "agents"])
"""Everything that a program is made of, derived: what its parts import. It runs in a lane or drives lanes."""


def dotted(node):
    """`torch.rand` of an attribute chain, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def said(module):
    """Every dotted name in a module, and everything it imports, dotted."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute | ast.Name):
            yield dotted(node)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def calls(module, *names):
    return [node.lineno for node in ast.walk(module) if isinstance(node, ast.Call) and dotted(node.func) in names]


GENERATORS = {
    "torch.rand", "torch.randn", "torch.randint", "torch.randperm", "torch.rand_like", "torch.randn_like",
    "torch.bernoulli", "torch.multinomial", "torch.normal", "torch.manual_seed", "torch.seed", "torch.Generator",
    "torch.random", "torch.get_rng_state", "torch.set_rng_state", "torch.cuda.manual_seed", "np.random", "numpy.random",
    "torch.nn.init", "nn.init",
}  # fmt: skip


def generator_lines(module):
    """Where a generator is used, `networks._made` left out; and Python's own `random` is not imported."""
    tree = ast.Module([n for n in module.body if getattr(n, "name", "") != "_made"], [])
    names = {name for name in said(tree) if any(name == g or name.startswith(g + ".") for g in GENERATORS)}
    return sorted(names | ({"random"} & {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}))


def in_place_methods(module):
    """Calls of in-place tensor methods, such as `x.add_(1)`."""
    return sorted(
        node.func.attr
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr.endswith("_") and not node.func.attr.startswith("_")
    )


def test_levels_import_only_from_levels_above():
    assert cycle(LEVELS) == [], "levels import each other; expected an order"
    print(f"\nfrom the ground up:\n{order(LEVELS)}")
    for name, height in heights(LEVELS).items():
        assert all(heights(LEVELS)[other] < height for other in LEVELS[name])


def test_files_do_not_import_each_other():
    assert cycle({name: imported_files(parsed(path)) - {name} for name, path in MODULES.items()}) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_name_the_level_that_they_use(path):
    assert unknown_imports(parsed(path)) == set()


def test_only_the_command_is_started_and_only_tests_import_the_kit():
    assert breaches(LEVELS) == []


def test_the_core_is_what_trains():
    assert {"types", "tree", "check", "random", "networks", "envs", "optim", "compile", "replay"} <= CORE
    assert CORE.isdisjoint({"cli", "testing", "experiment", "report", "storage"})
    assert CORE.isdisjoint({"runs", "history", "settings", "checkpoint", "files", "plots", "video", "statistics"})


@SOURCES
def test_only_tree_imports_pytree(path):
    found = any("_pytree" in name for name in said(parsed(path)))
    assert found == (level(path) == "tree")


@SOURCES
def test_only_compile_knows_the_compiler(path):
    compilers = ("torch.compile", "_dynamo", "_inductor", "proxy_tensor")
    found = {name for name in said(parsed(path)) if any(compiler in name for compiler in compilers)}
    # A check may ask whether a compiler is looking.
    allowed = {"compile": found, "check": {ASKS, "torch.compiler"}}
    assert found <= allowed_in(path, allowed)


ASKS = "torch.compiler.is_compiling"


def allowed_in(path, by_name):
    """Return what a table allows a file, by its own name or by the name of a folder that it is in."""
    return set().union(*(allowed for name, allowed in by_name.items() if belongs_to(path, name)))


@SOURCES
def test_private_functions_are_looked_up_in_compile_alone(path):
    """And each in one file, which says what happens without it."""
    found = {x for x in strings(parsed(path)) if x.startswith(("torch._inductor.", "torch._dynamo.", "torch.fx.exp"))}
    assert not found or level(path) == "compile"
    for name in ("torch._inductor.compile", "torch._inductor.aot_compile"):
        assert (name in found) == (path.name == {"compile": "graph.py", "aot_compile": "aot.py"}[name.split(".")[-1]])


def strings(module):
    return [x.value for x in ast.walk(module) if isinstance(x, ast.Constant) and isinstance(x.value, str)]


@pytest.mark.parametrize("path", [p for p in FILES if level(p) in CORE], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_uses_no_generator_and_prints_nothing(path):
    module = parsed(path)
    assert generator_lines(module) == []
    assert calls(module, "print") == []


def unquoted_paths(module):
    """Return the lines of commands with a path that is not quoted for the shell, in f-strings."""
    found = []
    for text in (node for node in ast.walk(module) if isinstance(node, ast.JoinedStr)):
        before = ""
        for part in text.values:
            if isinstance(part, ast.Constant):
                before += part.value
                continue
            is_path = dotted(part.value).split(".")[-1] == "path"
            if is_path and re.search(r"(fdqn [a-z]+|--[a-z-]+)( --[a-z-]+)* $", before):
                found.append(text.lineno)
            before = ""
    return found


@SOURCES
def test_commands_quote_their_paths(path):
    assert unquoted_paths(parsed(path)) == []


IN_PLACE = {"compile": {"copy_"}, "checkpoint": {"copy_"}, "transfer": {"copy_"}, "export": {"requires_grad_"}}
"""The edges, where memory must stay: graphs are captured with a state's leaves, so what is donated and what is loaded
is written over them; pinned buffers are used again;
and a module that is exported is nobody else's."""


@SOURCES
def test_only_the_edges_write_in_place(path):
    assert set(in_place_methods(parsed(path))) <= allowed_in(path, IN_PLACE)


PICKLES = {"aot": {"pickle"}, "export": {"torch.save"}}
"""Between a process and the compiler that it started; and what `export` writes for others."""


@SOURCES
def test_nothing_that_is_read_can_execute(path):
    assert pickling(parsed(path)) <= allowed_in(path, PICKLES)


def pickling(module):
    """Names in a module that pickle, or read or write what pickles."""
    names = ("pickle", "shelve", "marshal", "torch.load", "torch.save")
    return {p for p in names for name in said(module) if name == p or name.startswith(p + ".")}


@pytest.mark.parametrize("name", PICKLES)
def test_every_exception_for_pickles_is_needed(name):
    assert set().union(*(pickling(parsed(p)) for p in FILES if belongs_to(p, name))) == PICKLES[name]


def test_the_one_generator_is_there():
    module = parsed(ROOT / "networks" / "modules.py")
    assert "torch.default_generator.manual_seed" in set(said(module))


@pytest.mark.parametrize(("package", "file"), [("hypothesis", "strategies.py"), ("pytest", "variants.py")])
def test_what_tests_are_written_with_stays_in_one_file(package, file):
    paths = (ROOT / "testing").glob("*.py")
    assert [p.name for p in paths if any(name.split(".")[0] == package for name in said(parsed(p)))] == [file]


KIT = [p for p in sorted((ROOT / "testing").glob("*.py")) if p.name != "__init__.py"]
BRING_FORWARD = {"advance", "trained"}
"""What `programs` has laws asked of, and no law."""
KIT_ROOMS = pytest.mark.parametrize("path", KIT, ids=lambda p: p.name)


def public(module):
    """What a module of the kit offers by its own word in `__all__`, and its functions without an underscore."""
    said_so = [n.value for n in module.body if isinstance(n, ast.Assign) and dotted(n.targets[0]) == "__all__"]
    functions = {n.name for n in module.body if isinstance(n, ast.FunctionDef)}
    return set(ast.literal_eval(*said_so)), {name for name in functions if not name.startswith("_")}


def held(module):
    """What a test module calls inside a block that `rejects`, and what elsewhere: last names of functions."""
    blocks = [n for n in ast.walk(module) if isinstance(n, ast.With)]
    rejecting = [block for block in blocks if any("rejects" in set(said(item)) for item in block.items)]
    inside = {call for block in rejecting for statement in block.body for call in called(statement)}
    names = [{dotted(call.func).split(".")[-1] for call in some} for some in (inside, set(called(module)) - inside)]
    return tuple(names)


def called(node):
    return [n for n in ast.walk(node) if isinstance(n, ast.Call)]


@KIT_ROOMS
def test_the_kit_says_what_it_offers(path):
    offered, defined = public(parsed(path))
    assert defined <= offered
    assert offered <= set(dir(importlib.import_module(f"fdqn.testing.{path.stem}")))


@pytest.mark.parametrize("name", ["agents", "algorithms", "asserts", "laws", "programs", "variants"])
def test_every_law_and_assertion_holds_for_something_and_rejects_a_planted_bug(name):
    offered, _ = public(parsed(ROOT / "testing" / f"{name}.py"))
    rejecting, holding = held(parsed(TESTS / f"test_{name}.py"))
    assert offered - rejecting - BRING_FORWARD == set()
    assert offered - holding - BRING_FORWARD == set()


def test_every_strategy_is_held_to_its_promise():
    offered, _ = public(parsed(ROOT / "testing" / "strategies.py"))
    assert offered <= set().union(*held(parsed(TESTS / "test_strategies.py")))


@pytest.mark.parametrize(
    ("name", "source", "check"),
    [
        ("types", "from fdqn import check", lambda n, m: set(cycle(planted(n, m))) == {"types", "tree", "check"}),
        ("tree", "def f():\n    import fdqn.check", lambda n, m: set(cycle(planted(n, m))) == {"tree", "check"}),
        ("tree", "from fdqn.check import shapes", lambda n, m: cycle(planted(n, m)) != []),
        ("check", "from fdqn.testing import laws", lambda n, m: breaches(planted(n, m)) == [("check", "testing")]),
        ("check", "from fdqn import cli", lambda n, m: breaches(planted(n, m)) == [("check", "cli")]),
        ("__main__", "from fdqn.cli import main", lambda n, m: breaches(planted(n, m)) == []),
        ("check", "import torch", lambda n, m: order(planted(n, m)) == " 0  types\n 1  tree\n 2  check"),
        ("check", "from fdqn import random", lambda n, m: reachable(planted(n, m), [n]) >= {"random", "tree", "types"}),
        ("check", "from fdqn.envs import episode", lambda n, m: imported_files(m) == {"fdqn.envs.episode"}),
        ("check", "from fdqn.envs import make", lambda n, m: imported_files(m) == {"fdqn.envs"}),
        ("check", "from fdqn import __version__", lambda n, m: unknown_imports(m) == set()),
        ("check", "from fdqn import old_name", lambda n, m: unknown_imports(m) == {"old_name"}),
        ("check", "from fdqn import __version__", lambda n, m: imported_levels(m) == set()),
        ("policies", "import torch\nu = torch.rand(3)", lambda n, m: generator_lines(m) == ["torch.rand"]),
        ("policies", "import random", lambda n, m: generator_lines(m) == ["random"]),
        ("policies", "import numpy as np\nnp.random.rand()", lambda n, m: generator_lines(m) != []),
        ("networks", "def _made():\n    torch.manual_seed(0)", lambda n, m: generator_lines(m) == []),
        ("networks", "def mlp():\n    torch.manual_seed(0)", lambda n, m: generator_lines(m) != []),
        ("optim", "x.add_(1)", lambda n, m: in_place_methods(m) == ["add_"]),
        ("cli", "f'with: fdqn resume {run.path}'", lambda n, m: unquoted_paths(m) == [1]),
        ("cli", "f'with: fdqn train --best-of {path}'", lambda n, m: unquoted_paths(m) == [1]),
        ("cli", "f'{path}: fdqn eval {shlex.quote(path)} --setting K'", lambda n, m: unquoted_paths(m) == []),
        ("training", "print(1)", lambda n, m: calls(m, "print") == [1]),
        ("training", "from torch.utils import _pytree as p", lambda n, m: any("_pytree" in x for x in said(m))),
        ("test", "with rejects('x'):\n    laws.pure(f)\nlaws.env(g)", lambda n, m: held(m)[0] == {"pure"}),
        ("test", "with fork(), rejects():\n    laws.pure(f)", lambda n, m: held(m) == ({"pure"}, {"fork", "rejects"})),
        ("test", "with raises(ValueError):\n    laws.pure(f)", lambda n, m: held(m)[0] == set()),
        ("laws", "__all__ = ['a']\ndef a(): pass\ndef b(): pass", lambda n, m: public(m) == ({"a"}, {"a", "b"})),
    ],
)
def test_the_readers_see_planted_breaches(name, source, check):
    assert check(name, ast.parse(source))


def planted(name, module):
    """Three levels in a row, to one of which a module is added."""
    rows = [("types", ""), ("tree", "from fdqn import types"), ("check", "from fdqn import tree")]
    return levels_of([(x, ast.parse(source)) for x, source in rows] + [(name, module)])
