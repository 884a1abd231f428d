"""The rooms of the house: who may import whom, what may be said only in one of them, and that no law of the kit goes
without its planted bug.
"""

import ast
import importlib
import pathlib

import pytest

import fdqn

ROOT = pathlib.Path(fdqn.__file__).parent
TESTS = pathlib.Path(__file__).parent
LEVELS = {
    "types": 0, "tree": 0, "settings": 0,
    "check": 1, "transfer": 1, "statistics": 1, "files": 1, "process": 1,
    "random": 2, "actions": 2, "schedules": 2, "bits": 2, "frames": 2, "n_step": 2,
    "networks": 3, "losses": 3, "policies": 3, "optim": 3, "replay": 3, "envs": 3,
    "dqn": 4, "training": 5, "evaluate": 5, "plots": 6, "build": 6, "video": 6, "worlds": 7,
    "compile": 8, "checkpoint": 8, "history": 9, "runs": 10, "export": 11, "cli": 12, "__main__": 13,
}  # fmt: skip
"""The table of the design, but for `check`, which stands alone: `random` and `actions` beside it use it."""

CORE = {name for name, level in LEVELS.items() if level <= LEVELS["compile"]} - {
    "build", "checkpoint", "files", "plots", "process", "settings", "statistics", "video",
}  # fmt: skip
"""What runs in a lane or drives lanes. Statistics resample on the host, with numpy."""


def room(path):
    """The room of a file: its name, or its folder's."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(p for p in ROOT.rglob("*.py") if room(p) not in ("testing", "__init__"))
SOURCES = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


def parsed(path):
    return ast.parse(path.read_text())


def imported_rooms(module):
    """The rooms that a module imports, anywhere in it."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: expected an absolute import"
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "fdqn" else [node.module]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("fdqn."))


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


def wrong_imports(name, module):
    """What room `name` imports although it is not on a lower level."""
    return sorted(other for other in imported_rooms(module) if other != name and LEVELS[other] >= LEVELS[name])


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


def test_every_file_has_a_room():
    assert {room(p) for p in FILES} <= set(LEVELS)


@SOURCES
def test_imports_come_from_lower_levels(path):
    assert wrong_imports(room(path), parsed(path)) == []


@SOURCES
def test_only_tree_imports_pytree(path):
    found = any("_pytree" in name for name in said(parsed(path)))
    assert found == (room(path) == "tree")


@SOURCES
def test_only_compile_knows_the_compiler(path):
    compilers = ("torch.compile", "_dynamo", "_inductor", "proxy_tensor")
    found = {name for name in said(parsed(path)) if any(compiler in name for compiler in compilers)}
    # A check may ask whether a compiler is looking.
    allowed = {"compile": found, "check": {ASKS, "torch.compiler"}}
    assert found <= allowed.get(room(path), set())


ASKS = "torch.compiler.is_compiling"


@SOURCES
def test_private_functions_are_looked_up_in_compile_alone(path):
    """And each in one file, which says what happens without it."""
    found = {x for x in strings(parsed(path)) if x.startswith(("torch._inductor.", "torch._dynamo.", "torch.fx.exp"))}
    assert not found or room(path) == "compile"
    for name in ("torch._inductor.compile", "torch._inductor.aot_compile"):
        assert (name in found) == (path.name == {"compile": "graph.py", "aot_compile": "aot.py"}[name.split(".")[-1]])


def strings(module):
    return [x.value for x in ast.walk(module) if isinstance(x, ast.Constant) and isinstance(x.value, str)]


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in CORE], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_uses_no_generator_and_prints_nothing(path):
    module = parsed(path)
    assert generator_lines(module) == []
    assert calls(module, "print") == []


IN_PLACE = {"compile": {"copy_"}, "checkpoint": {"copy_"}, "transfer": {"copy_"}, "export": {"requires_grad_"}}
"""The edges, where memory must stay: graphs are captured with a state's leaves, so what is donated and what is loaded
is written over them; pinned buffers are used again;
and a module that is exported is nobody else's."""


@SOURCES
def test_only_the_edges_write_in_place(path):
    assert set(in_place_methods(parsed(path))) <= IN_PLACE.get(room(path), set())


PICKLES = {"compile/aot.py": "pickle", "export.py": "torch.save"}
"""Between a process and the compiler that it started; and what `export` writes for others."""


@SOURCES
def test_nothing_that_is_read_can_execute(path):
    pickling = ("pickle", "shelve", "marshal", "torch.load", "torch.save")
    found = {p for p in pickling for name in said(parsed(path)) if name == p or name.startswith(p + ".")}
    name = path.relative_to(ROOT).as_posix()
    assert found == ({PICKLES[name]} if name in PICKLES else set())


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


@pytest.mark.parametrize("name", ["asserts", "laws", "programs", "variants"])
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
        ("replay", "from fdqn import losses", lambda n, m: wrong_imports(n, m) == ["losses"]),
        ("losses", "def f():\n    import fdqn.training", lambda n, m: wrong_imports(n, m) == ["training"]),
        ("types", "from fdqn.tree import map", lambda n, m: wrong_imports(n, m) == ["tree"]),
        ("policies", "import torch\nu = torch.rand(3)", lambda n, m: generator_lines(m) == ["torch.rand"]),
        ("policies", "import random", lambda n, m: generator_lines(m) == ["random"]),
        ("policies", "import numpy as np\nnp.random.rand()", lambda n, m: generator_lines(m) != []),
        ("networks", "def _made():\n    torch.manual_seed(0)", lambda n, m: generator_lines(m) == []),
        ("networks", "def mlp():\n    torch.manual_seed(0)", lambda n, m: generator_lines(m) != []),
        ("optim", "x.add_(1)", lambda n, m: in_place_methods(m) == ["add_"]),
        ("train", "print(1)", lambda n, m: calls(m, "print") == [1]),
        ("train", "from torch.utils import _pytree as p", lambda n, m: any("_pytree" in x for x in said(m))),
        ("test", "with rejects('x'):\n    laws.pure(f)\nlaws.env(g)", lambda n, m: held(m)[0] == {"pure"}),
        ("test", "with fork(), rejects():\n    laws.pure(f)", lambda n, m: held(m) == ({"pure"}, {"fork", "rejects"})),
        ("test", "with raises(ValueError):\n    laws.pure(f)", lambda n, m: held(m)[0] == set()),
        ("laws", "__all__ = ['a']\ndef a(): pass\ndef b(): pass", lambda n, m: public(m) == ({"a"}, {"a", "b"})),
    ],
)
def test_the_readers_see_planted_breaches(name, source, check):
    assert check(name, ast.parse(source))
