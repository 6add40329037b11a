"""Names to classes: duplicates raise, unknown names suggest, a part must be a frozen dataclass."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from transmamba.config.registry import Registry, options
from transmamba.errors import UserError, suggest


@dataclasses.dataclass(frozen=True, kw_only=True)
class One:
    width: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Two:
    depth: int = 3


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """An empty registry over a package of its own."""
    package = f"parts_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry("shape", package)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]


def test_register_and_look_up(registry: Registry) -> None:
    assert registry.register("one")(One) is One
    registry.register("two")(Two)
    assert registry["one"] is One and vars(One)["name"] == "one"
    assert registry.names() == list(registry) == ["one", "two"]
    assert "one" in registry and "three" not in registry
    assert options(One) == ["width"]


def test_unknown_name_suggests(registry: Registry) -> None:
    registry.register("one")(One)
    with pytest.raises(UserError, match=r"unknown shape 'onne'; did you mean 'one'\? known: one"):
        registry["onne"]
    with pytest.raises(UserError, match="unknown shape 'zzz'; known: one"):
        registry["zzz"]


def test_duplicate_name_raises(registry: Registry) -> None:
    registry.register("one")(One)
    registry.register("one")(One)  # a module imported twice registers the same class again
    with pytest.raises(ValueError, match="shape 'one' is registered twice"):
        registry.register("one")(Two)


def test_a_part_is_a_frozen_dataclass(registry: Registry) -> None:
    @dataclasses.dataclass
    class Loose:
        pass

    for part in (Loose, int):
        with pytest.raises(ValueError, match="must be a frozen dataclass"):
            registry.register("loose")(part)


def test_a_dropped_in_file_is_found(registry: Registry, tmp_path: Path) -> None:
    registry_name = "transmamba_test_registry"
    sys.modules[registry_name] = type(sys)(registry_name)
    sys.modules[registry_name].REGISTRY = registry  # type: ignore[attr-defined]
    (tmp_path / registry.package / "square.py").write_text(
        "import dataclasses\n"
        f"from {registry_name} import REGISTRY\n"
        "@REGISTRY.register('square')\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Square:\n"
        "    side: float = 1.0\n"
    )
    try:
        assert registry.names() == ["square"]
        assert registry["square"]().side == 1.0
    finally:
        del sys.modules[registry_name]


def test_suggest_lists_no_more_than_the_limit() -> None:
    assert suggest("q", ["a", "b", "c"], limit=2) == "; known: a, b ..."
    assert suggest("q", []) == "; known: none"
