"""The package's public names: all there, each imported when it is first used, none hidden by a module."""

from __future__ import annotations

import importlib
import pkgutil

import fresh_process
import pytest

import transmamba


@pytest.mark.parametrize("name", transmamba.__all__)
def test_a_public_name_is_there(name: str) -> None:
    value = getattr(transmamba, name)
    assert getattr(value, "__name__", name) == name and name in dir(transmamba)


def test_no_module_hides_a_public_name() -> None:
    """`import transmamba.convert` would put a module where the function was."""
    assert not {module.name for module in pkgutil.iter_modules(transmamba.__path__)} & set(transmamba.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        transmamba.nonsense  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        importlib.import_module("transmamba.nonsense")


def test_a_star_brings_all_of_them() -> None:
    program = (
        "from transmamba import *\nimport transmamba\nassert all(n in globals() for n in transmamba.__all__)"
    )
    done = fresh_process.run(program)
    assert done.returncode == 0, done.stderr[-2000:]


def test_type_checkers_see_the_names_that_are_there() -> None:
    import ast
    from pathlib import Path

    tree = ast.parse(Path(transmamba.__file__).read_text())
    typed = {
        alias.name: node.module
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: transmamba._HOME.get(name, "api") for name in transmamba.__all__}
