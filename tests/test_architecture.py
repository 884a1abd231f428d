"""The imports between levels form an order, some constructs are restricted to one level, and every law of
`fdqn.testing` has a test with a planted bug.

A level is a folder of the package, or a module directly in it.
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
    """Return the level of a file: its top folder, or else the name of the module."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def dotted_path(path):
    """Return the dotted name of a file, such as `fdqn.envs.cartpole`."""
    return ".".join(("fdqn", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def belongs_to(path, name):
    """Return True if `name` is the name of the file or of a folder that contains it."""
    return name in path.relative_to(ROOT).with_suffix("").parts


SOURCES = pytest.mark.parametrize(
    "path", [p for p in FILES if level(p) != "testing"], ids=lambda p: str(p.relative_to(ROOT))
)
MODULES = {dotted_path(p): p for p in FILES}


def parsed(path):
    return ast.parse(path.read_text())


def imported(module):
    """Yield the dotted names of `fdqn` that a module imports, also inside functions."""
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
    """Return the dotted names of imported modules: `from fdqn.envs import episode` gives `fdqn.envs.episode`."""
    return {name if name in MODULES else name.rpartition(".")[0] for name in imported(module)} & set(MODULES)


def import_cycle(graph):
    """Return a cycle of imports, with its first name repeated at the end, or an empty list."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def heights(graph):
    """Return the length of the longest import chain that starts at each level."""
    found = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        found[name] = 1 + max((found[below] for below in graph.get(name, ())), default=-1)
    return found


def order(graph):
    """Format the levels as lines; each line imports only from the lines above it."""
    rows = {}
    for name, height in sorted(heights(graph).items()):
        rows.setdefault(height, []).append(name)
    return "\n".join(f"{height:2d}  {' '.join(names)}" for height, names in sorted(rows.items()))


def reachable(graph, names):
    """Return `names` and everything that they import, directly or indirectly."""
    found, waiting = set(), [name for name in names if name in graph]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting.extend(graph.get(name, ()))
    return found


def levels_of(sources):
    """Return the other levels that each level imports from; `sources` are pairs of a level and a parsed module."""
    graph = {}
    for name, module in sources:
        graph.setdefault(name, set()).update(imported_levels(module) - {name})
    return graph


ENTRY_POINTS = {"testing": set(), "cli": {"__main__"}, "__main__": set()}
"""Levels that no level imports, except those listed."""


def forbidden_imports(graph):
    """Return forbidden imports of an entry point, as pairs of the importing level and the entry point."""
    return sorted((name, x) for name in graph for x in graph[name] & set(ENTRY_POINTS) if name not in ENTRY_POINTS[x])


LEVELS = levels_of((level(p), parsed(p)) for p in FILES)
CORE = reachable(LEVELS, ["compile", "networks", "envs", "replay", "agents"])
"""The levels that a training program consists of, derived from the imports of its parts."""


def dotted(node):
    """Return the dotted name of an attribute chain, such as `torch.rand`, or an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def names_in(module):
    """Yield every dotted name in a module, and the dotted names that it imports."""
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
    """Return the random generators that a module uses outside of `networks._made`, including Python's `random`."""
    tree = ast.Module([n for n in module.body if getattr(n, "name", "") != "_made"], [])
    names = {name for name in names_in(tree) if any(name == g or name.startswith(g + ".") for g in GENERATORS)}
    return sorted(names | ({"random"} & {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}))


def in_place_methods(module):
    """Return the names of the in-place tensor methods that a module calls, such as `add_`."""
    return sorted(
        node.func.attr
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr.endswith("_") and not node.func.attr.startswith("_")
    )


def test_levels_import_only_lower_levels():
    assert import_cycle(LEVELS) == [], "levels: expected an order, got a cycle of imports"
    print(f"\nlevels, lowest first:\n{order(LEVELS)}")
    for name, height in heights(LEVELS).items():
        assert all(heights(LEVELS)[other] < height for other in LEVELS[name])


def test_modules_have_no_import_cycle():
    assert import_cycle({name: imported_files(parsed(path)) - {name} for name, path in MODULES.items()}) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_name_existing_levels(path):
    assert unknown_imports(parsed(path)) == set()


def test_no_level_imports_the_command_or_testing():
    assert forbidden_imports(LEVELS) == []


def test_the_core_has_the_levels_that_train():
    assert {"types", "tree", "check", "random", "networks", "envs", "optim", "compile", "replay"} <= CORE
    assert CORE.isdisjoint({"cli", "testing", "experiment", "report", "storage"})
    assert CORE.isdisjoint({"runs", "history", "settings", "checkpoint", "files", "plots", "video", "statistics"})


@SOURCES
def test_only_tree_imports_pytree(path):
    found = any("_pytree" in name for name in names_in(parsed(path)))
    assert found == (level(path) == "tree")


@SOURCES
def test_only_compile_uses_the_compiler(path):
    compilers = ("torch.compile", "_dynamo", "_inductor", "proxy_tensor")
    found = {name for name in names_in(parsed(path)) if any(compiler in name for compiler in compilers)}
    # A check may test whether it is being compiled.
    allowed = {"compile": found, "check": {IS_COMPILING, "torch.compiler"}}
    assert found <= allowed_in(path, allowed)


IS_COMPILING = "torch.compiler.is_compiling"


def allowed_in(path, by_name):
    """Return the names that a table allows in a file, by the name of the file or of a folder that contains it."""
    return set().union(*(allowed for name, allowed in by_name.items() if belongs_to(path, name)))


@SOURCES
def test_private_functions_of_torch_are_looked_up_only_in_compile(path):
    """Check also that each is looked up in one file, which handles its absence."""
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
"""Files that may write in place. Captured graphs read the leaves of a state, so donated and loaded values are written
over them; pinned buffers are reused; and an exported module has no other user."""


@SOURCES
def test_only_listed_files_write_in_place(path):
    assert set(in_place_methods(parsed(path))) <= allowed_in(path, IN_PLACE)


PICKLES = {"aot": {"pickle"}, "export": {"torch.save"}}
"""Files that may pickle: messages between a process and the compiler that it started, and exported state dicts."""


@SOURCES
def test_only_listed_files_use_pickle(path):
    assert pickling(parsed(path)) <= allowed_in(path, PICKLES)


def pickling(module):
    """Return the names in a module that pickle, or that read or write pickles."""
    names = ("pickle", "shelve", "marshal", "torch.load", "torch.save")
    return {p for p in names for name in names_in(module) if name == p or name.startswith(p + ".")}


@pytest.mark.parametrize("name", PICKLES)
def test_every_exception_for_pickle_is_needed(name):
    assert set().union(*(pickling(parsed(p)) for p in FILES if belongs_to(p, name))) == PICKLES[name]


def test_network_modules_seed_the_default_generator():
    module = parsed(ROOT / "networks" / "modules.py")
    assert "torch.default_generator.manual_seed" in set(names_in(module))


@pytest.mark.parametrize(("package", "file"), [("hypothesis", "strategies.py"), ("pytest", "variants.py")])
def test_each_testing_package_is_imported_by_one_module(package, file):
    paths = (ROOT / "testing").glob("*.py")
    assert [p.name for p in paths if any(name.split(".")[0] == package for name in names_in(parsed(p)))] == [file]


TESTING_MODULES = [p for p in sorted((ROOT / "testing").glob("*.py")) if p.name != "__init__.py"]
NOT_LAWS = {"advance", "trained"}
"""Functions of `programs` that are not laws."""
EACH_TESTING_MODULE = pytest.mark.parametrize("path", TESTING_MODULES, ids=lambda p: p.name)


def public(module):
    """Return the names in `__all__` of a module of `fdqn.testing`, and those of its functions without an underscore."""
    exported = [n.value for n in module.body if isinstance(n, ast.Assign) and dotted(n.targets[0]) == "__all__"]
    functions = {n.name for n in module.body if isinstance(n, ast.FunctionDef)}
    return set(ast.literal_eval(*exported)), {name for name in functions if not name.startswith("_")}


def rejected_and_held(module):
    """Return the names of the functions that a test module calls inside and outside of `rejects` blocks."""
    blocks = [n for n in ast.walk(module) if isinstance(n, ast.With)]
    rejecting = [block for block in blocks if any("rejects" in set(names_in(item)) for item in block.items)]
    inside = {call for block in rejecting for statement in block.body for call in called(statement)}
    names = [{dotted(call.func).split(".")[-1] for call in some} for some in (inside, set(called(module)) - inside)]
    return tuple(names)


def called(node):
    return [n for n in ast.walk(node) if isinstance(n, ast.Call)]


@EACH_TESTING_MODULE
def test_modules_of_testing_export_their_public_functions(path):
    offered, defined = public(parsed(path))
    assert defined <= offered
    assert offered <= set(dir(importlib.import_module(f"fdqn.testing.{path.stem}")))


@pytest.mark.parametrize("name", ["agents", "algorithms", "asserts", "laws", "programs", "variants"])
def test_every_law_and_assertion_is_tested_with_and_without_a_planted_bug(name):
    offered, _ = public(parsed(ROOT / "testing" / f"{name}.py"))
    rejecting, holding = rejected_and_held(parsed(TESTS / f"test_{name}.py"))
    assert offered - rejecting - NOT_LAWS == set()
    assert offered - holding - NOT_LAWS == set()


def test_every_strategy_is_tested():
    offered, _ = public(parsed(ROOT / "testing" / "strategies.py"))
    assert offered <= set().union(*rejected_and_held(parsed(TESTS / "test_strategies.py")))


@pytest.mark.parametrize(
    ("name", "source", "check"),
    [
        (
            "types",
            "from fdqn import check",
            lambda n, m: set(import_cycle(planted(n, m))) == {"types", "tree", "check"},
        ),
        ("tree", "def f():\n    import fdqn.check", lambda n, m: set(import_cycle(planted(n, m))) == {"tree", "check"}),
        ("tree", "from fdqn.check import shapes", lambda n, m: import_cycle(planted(n, m)) != []),
        (
            "check",
            "from fdqn.testing import laws",
            lambda n, m: forbidden_imports(planted(n, m)) == [("check", "testing")],
        ),
        ("check", "from fdqn import cli", lambda n, m: forbidden_imports(planted(n, m)) == [("check", "cli")]),
        ("__main__", "from fdqn.cli import main", lambda n, m: forbidden_imports(planted(n, m)) == []),
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
        ("training", "from torch.utils import _pytree as p", lambda n, m: any("_pytree" in x for x in names_in(m))),
        ("test", "with rejects('x'):\n    laws.pure(f)\nlaws.env(g)", lambda n, m: rejected_and_held(m)[0] == {"pure"}),
        (
            "test",
            "with fork(), rejects():\n    laws.pure(f)",
            lambda n, m: rejected_and_held(m) == ({"pure"}, {"fork", "rejects"}),
        ),
        ("test", "with raises(ValueError):\n    laws.pure(f)", lambda n, m: rejected_and_held(m)[0] == set()),
        ("laws", "__all__ = ['a']\ndef a(): pass\ndef b(): pass", lambda n, m: public(m) == ({"a"}, {"a", "b"})),
    ],
)
def test_the_checks_detect_planted_violations(name, source, check):
    assert check(name, ast.parse(source))


def planted(name, module):
    """Return the imports of three levels, each importing the one before, after adding a module to one of them."""
    rows = [("types", ""), ("tree", "from fdqn import types"), ("check", "from fdqn import tree")]
    return levels_of([(x, ast.parse(source)) for x, source in rows] + [(name, module)])
