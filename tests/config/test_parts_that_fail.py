"""A part that cannot be imported is named, and leaves the others where they are."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from transmamba.config.registry import Registry
from transmamba.errors import UserError

PART = """
import dataclasses
from {holder} import REGISTRY
{before}
@REGISTRY.register({name!r})
@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    side: float = 1.0
{after}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A registry over a package of its own, and `write(file, name, before, after)` of a part in it."""
    name, holder = f"parts_of_{tmp_path.name}", f"holder_of_{tmp_path.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("shape", name)
    sys.modules[holder] = SimpleNamespace(REGISTRY=registry)  # type: ignore[assignment]

    def write(file: str, part: str, before: str = "", after: str = "") -> None:
        path = tmp_path / name / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(PART.format(holder=holder, name=part, before=before, after=after))
        importlib.invalidate_caches()

    yield SimpleNamespace(registry=registry, write=write, name=name)
    for module in [m for m in sys.modules if m.split(".")[0] in (name, holder)]:
        del sys.modules[module]


def test_the_others_are_there_and_the_failing_one_is_named(
    package: Any, caplog: pytest.LogCaptureFixture
) -> None:
    package.write("good.py", "good")
    package.write("bad.py", "bad", before="import no_such_library")
    package.write("zoo/__init__.py", "zoo")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert package.registry.names() == ["good", "zoo"]
    (line,) = caplog.messages
    assert f"{package.name}.bad: ModuleNotFoundError: No module named 'no_such_library'" in line
    assert "good" in package.registry and "bad" not in package.registry
    with pytest.raises(UserError, match=r"unknown shape .bad..*not imported: .*no_such_library") as error:
        package.registry["bad"]
    assert "\n" not in str(error.value)


def test_it_is_tried_again_at_the_next_look_up(package: Any) -> None:
    package.write("good.py", "good")
    package.write("bad.py", "bad", before="import no_such_library")
    assert package.registry.names() == ["good"]
    package.write("bad.py", "bad", before="# mended")
    assert package.registry.names() == ["bad", "good"]
    assert package.registry["bad"]().side == 1.0


def test_a_part_whose_file_fails_after_it_is_none(package: Any) -> None:
    package.write("bad.py", "bad", after="raise RuntimeError('late\\nand long')")
    assert package.registry.names() == []
    with pytest.raises(UserError, match=r"RuntimeError: late$"):
        package.registry["bad"]


def test_a_package_that_fails_is_named(package: Any, tmp_path: Path) -> None:
    (tmp_path / package.name / "__init__.py").write_text("1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        package.registry["any"]


@pytest.mark.parametrize("works", [True, False])
def test_entry_points(works: bool, package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package.write("good.py", "good")
    loads: list[int] = []

    def load() -> Any:
        loads.append(1)
        if not works:
            raise ImportError("its library is too old")

    entry = SimpleNamespace(name="theirs", value="them.parts", load=load)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    assert package.registry.names() == ["good"] and "good" in package.registry
    assert len(loads) == (1 if works else 2)
    if not works:
        with pytest.raises(UserError, match=r"entry point theirs = them\.parts: ImportError: its library"):
            package.registry["theirs"]


def make(module: str, qualname: str) -> type:
    import dataclasses

    made = dataclasses.make_dataclass("Part", [], frozen=True, kw_only=True)
    made.__module__, made.__qualname__ = module, qualname
    return made


@pytest.mark.parametrize(
    ("module", "qualname", "same"),
    [("a.b", "Part", True), ("a.c", "Part", False), ("a.b", "Outer.Part", False)],
)
def test_two_classes_of_one_name(module: str, qualname: str, same: bool) -> None:
    add: Callable[[type], type] = Registry("shape", "nowhere").register("one")
    add(make("a.b", "Part"))
    if same:
        add(make(module, qualname))  # a file that was imported again
        return
    with pytest.raises(ValueError, match="shape 'one' is registered twice"):
        add(make(module, qualname))


def test_our_own_parts_are_all_there() -> None:
    from transmamba.config import registry

    for parts in (registry.TEACHERS, registry.STUDENTS, registry.LOSSES):
        assert parts.names() and not parts._failed
    assert {"vim", "ssd_vit"} <= set(registry.STUDENTS)
