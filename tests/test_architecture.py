"""The house rules, held by walking the syntax trees: direction of imports, purity of core, size, docstrings, tests."""

from __future__ import annotations

import ast
import graphlib
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "clara"
SOURCES = sorted(path.relative_to(HOUSE) for path in HOUSE.rglob("*.py"))
FLOORS = ("core", "io", "shell")
BELOW = {"core": ("core",), "io": ("core", "io"), "shell": ("core", "io", "shell")}
CORE_IMPORTS = {
    *("__future__", "collections", "dataclasses", "enum", "functools", "itertools", "math", "operator", "re"),
    *("statistics", "string", "typing", "unicodedata", "clara", "mlx", "msgspec", "numpy"),
}
IMPURE_CALLS = {"print", "open", "input", "exec", "eval", "globals", "setattr", "delattr"}
IMPURE_ATTRIBUTES = {
    *("mx.eval", "mx.async_eval", "mx.random.seed", "mx.random.state", "mx.load", "mx.save", "mx.save_safetensors"),
    *("mx.savez", "mx.synchronize", "mx.set_default_device", "mx.enable_compile", "mx.disable_compile", "np.random"),
}
KEYED_DRAWS = {"uniform", "normal", "bernoulli", "categorical", "gumbel", "randint", "truncated_normal", "permutation"}
WITHOUT_OWN_TEST = {
    # Declarations without a function: whatever uses them tests them.
    *("core/types.py", "core/config.py", "core/prompts.py", "io/data_config.py"),
    # The opening of a session: every test of runs and answers begins with it (tests/shell/test_train.py,
    # tests/shell/test_answer.py).
    "shell/setup.py",
}


def tree(path: Path) -> ast.Module:
    """Return the syntax tree of a source file."""
    return ast.parse((HOUSE / path).read_text("utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of every module, or name in a module, that a source file imports anywhere in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"clara/{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    """Return the module name of a source file."""
    return ".".join(("clara", *path.with_suffix("").parts)).removesuffix(".__init__")


def dotted(node: ast.AST) -> str:
    """Return an expression such as mx.random.seed as text; empty for any other expression."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def floor(path: Path) -> str:
    """Return core, io or shell; empty for the package's own file."""
    return path.parts[0] if len(path.parts) > 1 else ""


def on(*floors: str) -> list[Path]:
    """Return the source files of some floors."""
    return [path for path in SOURCES if floor(path) in floors]


def parametrize(paths: list[Path]) -> pytest.MarkDecorator:
    """Return a parametrisation over source files, named by their paths."""
    return pytest.mark.parametrize("path", paths, ids=[path.as_posix() for path in paths])


def test_the_house_has_three_floors_with_something_on_each() -> None:
    assert {path.parts[0] for path in SOURCES if len(path.parts) > 1} == set(FLOORS)
    assert all(len(on(name)) > 5 for name in FLOORS)


@parametrize(on(*FLOORS))
def test_imports_run_one_way(path: Path) -> None:
    own = [name for name in imported(path) if name == "clara" or name.startswith("clara.")]
    assert [name for name in own if name.split(".")[1:2] not in [[below] for below in BELOW[floor(path)]]] == []


def test_no_module_imports_itself_through_others() -> None:
    modules = {module_name(path): path for path in SOURCES}
    uses = {
        module: {
            next((known for known in (name, name.rpartition(".")[0]) if known in modules), "")
            for name in imported(path)
        }
        - {"", module}
        for module, path in modules.items()
        if path.name != "__init__.py"
    }
    assert list(graphlib.TopologicalSorter(uses).static_order())


def test_no_room_imports_itself_through_others() -> None:
    rooms = {path.parent for path in SOURCES if len(path.parts) > 2}
    uses = {
        room: {
            other
            for path in SOURCES
            if path.parent == room
            for name in imported(path)
            for other in rooms - {room}
            if f"{name}.".startswith(f"clara.{'.'.join(other.parts)}.")
        }
        for room in rooms
    }
    assert list(graphlib.TopologicalSorter(uses).static_order())


@parametrize(on("core"))
def test_core_knows_mathematics_only(path: Path) -> None:
    assert {name.partition(".")[0] for name in imported(path)} - CORE_IMPORTS == set()


@parametrize(on("core"))
def test_core_touches_nothing_outside_its_arguments(path: Path) -> None:
    faults = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Global):
            faults.append((node.lineno, "global"))
        elif isinstance(node, ast.Attribute) and (dotted(node) in IMPURE_ATTRIBUTES or node.attr == "item"):
            faults.append((node.lineno, dotted(node) or "item"))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            faults.append((node.lineno, node.func.id))
    assert faults == []


@parametrize(on("core"))
def test_core_draws_with_a_key_or_not_at_all(path: Path) -> None:
    draws = [
        node
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and re.fullmatch(rf"mx\.random\.({'|'.join(KEYED_DRAWS)})", dotted(node.func))
    ]
    assert [node.lineno for node in draws if "key" not in {keyword.arg for keyword in node.keywords}] == []


@parametrize(on("core"))
def test_core_has_no_class_that_acts(path: Path) -> None:
    faults = []
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [dotted(base) for base in node.bases]
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        frozen = bases in (["Struct"], ["msgspec.Struct"]) and options.get("frozen") == "True"
        stand_in = bases == ["nn.Module"] and path.as_posix() == "core/bind.py"
        if not (bases == ["NamedTuple"] or frozen or stand_in):
            faults.append(node.name)
    assert faults == []


@parametrize(on("core"))
def test_core_sets_no_attribute(path: Path) -> None:
    stores = [n for n in ast.walk(tree(path)) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
    allowed = ["optimizer.state"] if path.as_posix() == "core/optim.py" else []  # mlx optimizers take it so
    assert [dotted(node) for node in stores if dotted(node) not in allowed] == []


def documented(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield the public functions and classes of a module, and the public methods of its classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from documented(node.body)


@parametrize(SOURCES)
def test_modules_public_functions_and_classes_have_docstrings(path: Path) -> None:
    module = tree(path)
    assert (ast.get_docstring(module) or "").strip(), "the module"
    assert [node.name for node in documented(module.body) if not (ast.get_docstring(node) or "").strip()] == []


@parametrize(SOURCES)
def test_no_file_is_longer_than_300_lines_and_no_function_than_40(path: Path) -> None:
    assert len((HOUSE / path).read_text("utf-8").splitlines()) <= 300
    functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f"{n.name}:{n.lineno}" for n in functions if (n.end_lineno or 0) - n.lineno >= 40] == []


def own_test(path: Path) -> Path:
    """Return where the tests of a source file belong."""
    return ROOT / "tests" / path.parent / f"test_{path.name}"


@parametrize([path for path in SOURCES if path.name != "__init__.py" and path.as_posix() not in WITHOUT_OWN_TEST])
def test_every_source_file_has_a_test_file_in_the_same_place(path: Path) -> None:
    assert own_test(path).is_file()


@pytest.mark.parametrize("name", sorted(WITHOUT_OWN_TEST))
def test_the_exceptions_from_that_are_still_exceptions(name: str) -> None:
    assert Path(name) in SOURCES and not own_test(Path(name)).exists()


@pytest.mark.parametrize(
    ("package", "folder", "names"),
    [
        ("clara.io", "data", {"sample_train.jsonl", "sample_heldout.jsonl", "paper_questions.jsonl"}),
        ("clara.shell", "recipes", {"sample.toml", "small.toml", "paper.toml"}),
    ],
)
def test_the_package_finds_its_data(package: str, folder: str, names: set[str]) -> None:
    assert {entry.name for entry in files(package).joinpath(folder).iterdir() if entry.is_file()} == names


def test_all_data_in_the_house_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    patterns = [
        f"{package.removeprefix('clara.').replace('.', '/')}/{pattern}"
        for package, each in settings["package-data"].items()
        for pattern in each
    ]
    others = [
        path.relative_to(HOUSE).as_posix()
        for path in HOUSE.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    ]
    assert len(others) >= 4
    assert [name for name in others if not any(fnmatch(name, pattern) for pattern in patterns)] == []


@pytest.mark.parametrize("path", [*(HOUSE / path for path in SOURCES), *HOUSE.rglob("*.toml"), ROOT / "README.md"])
def test_no_path_of_one_machine_is_written_down(path: Path) -> None:
    found = re.findall(r"(?<![\w.~}])/(?:home|root|tmp|work|Users|mnt|var/folders)\b[^\s]*", path.read_text("utf-8"))
    assert found == []
