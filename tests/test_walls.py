"""The walls between the rooms of transmamba/: who imports whom, how long files are, and no circles.

Imports are read, not run: those within functions count, those under TYPE_CHECKING count for walls but not for
circles.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"transmamba": ROOT / "transmamba", "transmamba_kernels": ROOT / "kernels" / "transmamba_kernels"}
MOST_ENTRIES = 25
MOST_LINES = 300

# room -> all that it may import of ours
ALLOWED = {
    "core": ("core", "errors"),
    "losses": ("losses", "core", "errors", "config.registry", "distillation.signals", "transmamba_kernels"),
}
# room -> what it may not import
FORBIDDEN = {
    "students": ("teachers",),
    "teachers": ("students",),
    "ecosystems": ("students", "teachers"),
    "training": ("tasks", "losses", "students"),  # it knows none of them by name
}

Graph = dict[str, dict[str, bool]]  # module -> module that it imports -> only for types


def modules_of(name: str, folder: Path) -> dict[str, Path]:
    """Every module of a package and its file; a package stands for its __init__.py."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join([name, *(part for part in parts if part != "__init__")])] = path
    return found


def imports_in(node: ast.AST, typing: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement below `node`, and whether it is for type checkers alone."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, typing
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.body:
            yield from imports_in(child, True)
        for child in node.orelse:
            yield from imports_in(child, typing)
    else:
        for child in ast.iter_child_nodes(node):
            yield from imports_in(child, typing)


def names_of(statement: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    """The full dotted names that a statement in `package` asks for: modules, or what is in them."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    above = package.split(".")[: len(package.split(".")) - statement.level + 1] if statement.level else []
    base = ".".join([*above, *([statement.module] if statement.module else [])])
    return [f"{base}.{alias.name}" for alias in statement.names]


def read(modules: dict[str, Path]) -> Graph:
    """Who imports whom among `modules`."""
    graph: Graph = {name: {} for name in modules}
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for statement, typing in imports_in(ast.parse(path.read_text())):
            for imported in names_of(statement, package):
                while imported and imported not in modules:
                    imported = imported.rpartition(".")[0]
                if imported and imported != name:
                    graph[name][imported] = typing and graph[name].get(imported, True)
    return graph


@cache
def ours() -> Graph:
    return read({m: file for package in PACKAGES.items() for m, file in modules_of(*package).items()})


def short(name: str) -> str:
    """`core.output` for transmamba.core.output; the kernels keep their package's name."""
    return name.removeprefix("transmamba.")


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def edges(room: str) -> list[tuple[str, str]]:
    """(file, what it imports) of a room."""
    found = [(short(name), short(imported)) for name, all_ in ours().items() for imported in all_]
    mine = [edge for edge in found if within(edge[0], (room,))]
    assert mine or any(within(short(name), (room,)) for name in ours()), f"there is no room {room}"
    return mine


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_what_it_may(room: str) -> None:
    assert [edge for edge in edges(room) if not within(edge[1], ALLOWED[room])] == []


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_does_not_import_what_it_must_not(room: str) -> None:
    assert [edge for edge in edges(room) if within(edge[1], FORBIDDEN[room])] == []


def test_kernels_import_nothing_of_the_rest() -> None:
    assert [
        edge for edge in edges("transmamba_kernels") if not within(edge[1], ("transmamba_kernels",))
    ] == []


# --- circles ---


def circle(graph: Graph) -> list[str]:
    """The first circle of imports found, such as [a, b, a]; empty where there is none."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for imported, typing in graph[name].items():
            if not typing and (found := visit(imported, [*path, name])):
                return found
        finished.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def test_files_import_each_other_in_no_circle() -> None:
    assert circle(ours()) == []


# --- sizes ---


def test_the_house_has_few_rooms() -> None:
    entries = [path.name for path in PACKAGES["transmamba"].iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES


def lines_of(file: str) -> int:
    return len((ROOT / file).read_text().splitlines())


def test_files_are_short() -> None:
    files = [
        str(path.relative_to(ROOT))
        for top in ("transmamba", "kernels")
        for path in (ROOT / top).rglob("*.py")
    ]
    assert len(files) > 100
    long = {file: lines for file in files if (lines := lines_of(file)) > MOST_LINES}
    assert long == {}


# --- the reader of imports ---


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "a/__init__.py": "from . import inner",
        "a/inner.py": "from ..b import thing\nfrom .. import c",
        "b.py": "def f():\n    import house.c as c, os\n",
        "c.py": "if TYPE_CHECKING:\n    from .a.inner import X\nelse:\n    from house import d\n",
        "d.py": "from typing import Any\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = read(modules_of("house", tmp_path))
    assert graph == {
        "house": {},
        "house.a": {"house.a.inner": False},
        "house.a.inner": {"house.b": False, "house.c": False},
        "house.b": {"house.c": False},
        "house.c": {"house.a.inner": True, "house.d": False},
        "house.d": {},
    }
    assert circle(graph) == []
    (tmp_path / "d.py").write_text("def f():\n    from .a.inner import X\n")
    assert circle(read(modules_of("house", tmp_path))) == [
        "house.a.inner",
        "house.b",
        "house.c",
        "house.d",
        "house.a.inner",
    ]
