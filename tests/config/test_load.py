"""The typed boundary: each kind of mistake is one line with its path; good values come through unchanged."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml

from transmamba.config.load import Part, dump, load, parse, save_yaml
from transmamba.config.registry import Registry
from transmamba.errors import ConfigError


def registry(kind: str) -> Registry:
    made = Registry(kind, "transmamba.layers")
    made._discovered = True  # only the parts of this file
    return made


STUDENTS = registry("student")
LOSSES = registry("loss")


@STUDENTS.register("vim")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Vim:
    depth: int = 24
    ratio: float = 0.5


@STUDENTS.register("hybrid")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hybrid:
    model: str
    inner: Annotated[Any, Part(STUDENTS)] | None = None


@LOSSES.register("kl")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Kl:
    weight: float = 1.0
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(
                f"weight must not be negative, got {self.weight}; write 0 to switch the loss off"
            )


class Mode(enum.Enum):
    FAST = "fast"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    lr: float
    steps: int | None = None
    length: int | str = 10
    losses: tuple[Annotated[Any, Part(LOSSES)], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    student: Annotated[Any, Part(STUDENTS)]
    stages: tuple[Stage, ...] = ()
    output_dir: Path = Path("runs/x")
    compile: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    size: tuple[int, int] = (224, 224)
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    clip: float | Literal["auto"] = 1.0
    trainable: frozenset[str] = frozenset()
    mode: Mode = Mode.FAST
    teacher: Annotated[Any, Part(STUDENTS)] | None = None

    def __post_init__(self) -> None:
        if self.teacher is not None and self.teacher == self.student:
            raise ValueError("student and teacher are the same")


def load_problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Recipe, path, overrides)
    assert caught.value.source == str(path)
    return caught.value.problems


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("student: vim\nstages:\n- lr: 1e-3\n  losses: [kl, {name: kl, weight: 2}]\n")
    return path


def test_defaults_and_bare_name() -> None:
    assert parse(Recipe, {"student": "vim"}, "x") == Recipe(student=Vim())


def test_nested_parts_and_lists() -> None:
    data = {
        "student": {"name": "hybrid", "model": "m", "inner": {"name": "vim", "depth": 2}},
        "stages": [{"lr": 0.1, "losses": ["kl", {"name": "kl", "layers": [1, 2]}]}],
        "output_dir": "a/b",
        "trainable": ["x"],
        "mode": "fast",
    }
    made = parse(Recipe, data, "x")
    assert made.student == Hybrid(model="m", inner=Vim(depth=2))
    assert made.stages == (Stage(lr=0.1, losses=(Kl(), Kl(layers=(1, 2)))),)
    assert made.output_dir == Path("a/b") and made.trainable == frozenset({"x"})


def test_input_is_not_changed() -> None:
    data = {"student": {"name": "vim", "ratio": "1e-4"}, "stages": [{"lr": "2e-4"}]}
    copy = yaml.safe_load(yaml.safe_dump(data))
    parse(Recipe, data, "x")
    assert data == copy


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("5E3", 5e3), ("0.5", 0.5), ("1", 1.0)])
def test_number_written_as_text_is_repaired(text: str, value: float) -> None:
    made = parse(
        Recipe, {"student": {"name": "vim", "ratio": text}, "clip": text, "weights": {"a": text}}, "x"
    )
    assert (made.student.ratio, made.clip, made.weights) == (value, value, {"a": value})
    assert isinstance(made.student.ratio, float)


def test_whole_number_repaired() -> None:
    made = parse(
        Recipe, {"student": {"name": "vim", "depth": 8.0}, "stages": [{"lr": 1, "steps": "1e3"}]}, "x"
    )
    assert (made.student.depth, made.stages[0].steps) == (8, 1000)
    assert isinstance(made.stages[0].lr, float)


def test_text_stays_text_where_text_is_allowed() -> None:
    assert (
        parse(Recipe, {"student": "vim", "stages": [{"lr": 1, "length": "1e3"}]}, "x").stages[0].length
        == "1e3"
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"student": "vimm"}, "student: unknown student 'vimm'; did you mean 'vim'? known: hybrid, vim"),
        (
            {"student": {"depth": 1}},
            "student: has no name; write `name:` and the student's name; known: hybrid, vim",
        ),
        ({"student": 3}, "student: 3 is a number; write the name of a student; known: hybrid, vim"),
        ({"student": {"name": "vim", "dept": 1}}, "student.dept: unknown key; did you mean 'depth'?"),
        (
            {"student": {"name": "vim", "depth": "deep"}},
            "student.depth: 'deep' is text; write a whole number",
        ),
        ({"student": {"name": "vim", "depth": 2.5}}, "student.depth: 2.5 is a number; write a whole number"),
        (
            {"student": {"name": "vim", "depth": True}},
            "student.depth: true is a boolean; write a whole number",
        ),
        ({"student": "hybrid"}, "student.model: required, but missing"),
        (
            {"student": {"name": "hybrid", "model": False}},
            "student.model: false is a boolean; write text (in quotes)",
        ),
        (
            {"student": {"name": "hybrid", "model": "m", "inner": {"name": "vim", "rato": 1}}},
            "student.inner.rato: unknown key; did you mean 'ratio'?",
        ),
        ({"stages": [{"lr": 1, "lrr": 1}]}, "stages.0.lrr: unknown key; did you mean 'lr'?"),
        ({"stages": [{}]}, "stages.0.lr: required, but missing"),
        ({"stages": [3]}, "stages.0: 3 is a number; write a mapping (key: value)"),
        ({"stages": 3}, "stages: 3 is a number; write a list, such as [a, b]"),
        ({"stages": [{"lr": "fast"}]}, "stages.0.lr: 'fast' is text; write a number, such as 0.001"),
        ({"stages": [{"lr": None}]}, "stages.0.lr: null is empty; write a number, such as 0.001"),
        ({"stages": [{"lr": 1, "length": 2.5}]}, "2.5 is a number; write a whole number or text (in quotes)"),
        ({"compile": "yes"}, "compile: 'yes' is text; write true or false"),
        ({"compile": "1"}, "compile: '1' is text; write true or false"),
        ({"compile": 1}, "compile: 1 is a number; write true or false"),
        ({"precision": "bf61"}, "precision: unknown value 'bf61'; did you mean 'bf16'? known: bf16, fp32"),
        ({"precision": "bfloat16"}, "precision: unknown value 'bfloat16'; here that is 'bf16'"),
        ({"precision": 16}, "precision: 16 is a number; write 'fp32' or 'bf16'"),
        ({"clip": "aut"}, "clip: 'aut' is text; write a number, such as 0.001 or 'auto'"),
        ({"size": [1, 2, 3]}, "size: [1, 2, 3]"),
        ({"weights": {"a": "b"}}, "weights.a: 'b' is text; write a number, such as 0.001"),
        ({"zzz": 1}, "zzz: unknown key; known: clip, compile"),
        ({"teacher": "vim"}, "student and teacher are the same"),
        (
            {"stages": [{"lr": 1, "losses": [{"name": "kl", "weight": -1}]}]},
            "stages.0.losses.0: weight must not be negative, got -1.0; write 0 to switch the loss off",
        ),
    ],
)
def test_one_mistake_is_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Recipe, {"student": "vim"} | change, "r.yaml")
    (found,) = caught.value.problems
    assert line in found and str(caught.value) == f"config error: r.yaml: {found}"


def test_all_mistakes_at_once() -> None:
    data = {
        "student": "vimm",
        "stages": [{"lrr": 1, "lr": "1e-4"}, {"lr": "x", "losses": [{"name": "k"}]}],
        "a": 1,
    }
    with pytest.raises(ConfigError, match=r"config error: r.yaml: 5 problems\n") as caught:
        parse(Recipe, data, "r.yaml")
    assert sorted(line.split(":")[0] for line in caught.value.problems) == [
        "a",
        "stages.0.lrr",
        "stages.1.losses.0",
        "stages.1.lr",
        "student",
    ]


def test_a_part_may_not_have_a_field_called_name() -> None:
    clash = registry("clash")

    @clash.register("bad")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Bad:
        name: str = "x"

    with pytest.raises(TypeError, match="Bad: a part's own field cannot be called 'name'"):
        Part(clash).config_class("bad")


def test_round_trip(tmp_path: Path) -> None:
    made = Recipe(
        student=Hybrid(model="1e-4", inner=Vim(ratio=1e-5)),
        stages=(Stage(lr=1e-4, losses=(Kl(weight=0.0, layers=(1, 2)),)), Stage(lr=1.0, length="10%")),
        output_dir=Path("a/b"),
        weights={"x": 1e20},
        clip="auto",
        trainable=frozenset({"b", "a"}),
    )
    plain = dump(made)
    assert list(plain["student"]) == ["name", "model", "inner"]
    assert plain["output_dir"] == "a/b" and plain["trainable"] == ["a", "b"] and plain["mode"] == "fast"
    assert parse(Recipe, plain, "x") == made
    save_yaml(made, tmp_path / "config.yaml", header="made by a test\n\nsecond line")
    assert (tmp_path / "config.yaml").read_text().startswith("# made by a test\n#\n# second line\nstudent:\n")
    assert load(Recipe, tmp_path / "config.yaml") == made
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.yaml"]


def test_overrides(recipe: Path) -> None:
    made = load(
        Recipe,
        recipe,
        [
            "stages.0.losses.1.weight=0.5",
            "stages.0.lr=1e-4",
            "student.depth=2",
            "weights.new=3",
            "teacher=hybrid",
            "teacher.model=a=b",
            "size=[3,4]",
            "compile=true",
            "precision=bf16",
            "stages.0.steps=",
        ],
    )
    assert made.stages == (Stage(lr=1e-4, losses=(Kl(), Kl(weight=0.5))),)
    assert made.student == Vim(depth=2) and made.teacher == Hybrid(model="a=b")
    assert made.weights == {"new": 3.0} and made.size == (3, 4) and made.compile and made.precision == "bf16"


HYBRID = {"name": "hybrid", "model": "m", "inner": {"name": "vim", "depth": 2, "ratio": 0.25}}


@pytest.mark.parametrize(
    ("overrides", "student"),
    [
        (["student={model: n}"], {**HYBRID, "model": "n"}),
        (["student={name: hybrid, model: n}"], {**HYBRID, "model": "n"}),
        (["student={inner: {depth: 3}}"], {**HYBRID, "inner": {"name": "vim", "depth": 3, "ratio": 0.25}}),
        (["student=hybrid"], HYBRID),
        (["student.inner={}", "student={inner: {name: vim, depth: 3}}"],
         {**HYBRID, "inner": {"name": "vim", "depth": 3, "ratio": 0.5}}),
        (["student.inner=null"], {**HYBRID, "inner": None}),
    ],
)  # fmt: skip
def test_a_mapping_is_merged_into_the_one_that_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, overrides: list[str], student: dict[str, Any]
) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"student": HYBRID}))
    assert dump(load(Recipe, tmp_path / "a.yaml", overrides).student) == student
    assert not caplog.records


def test_a_mapping_merges_where_there_are_no_parts_and_replaces_lists(tmp_path: Path) -> None:
    text = "student: vim\nweights: {a: 1, b: 2}\nstages: [{lr: 1, steps: 3}, {lr: 2}]\n"
    (tmp_path / "a.yaml").write_text(text)
    made = load(Recipe, tmp_path / "a.yaml", ["weights={b: 3, c: 4}", "stages.0={lr: 4}", "size=[1, 2]"])
    assert made.weights == {"a": 1, "b": 3, "c": 4} and made.stages == (Stage(lr=4, steps=3), Stage(lr=2))
    assert load(Recipe, tmp_path / "a.yaml", ["stages=[{lr: 4}]"]).stages == (Stage(lr=4),)


@pytest.mark.parametrize("override", ["student={name: vim, ratio: 0.75}", "student=vim"])
def test_another_part_drops_options_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"student": HYBRID, "teacher": "vim"}))
    expected = Vim(ratio=0.75) if "ratio" in override else Vim()
    assert load(Recipe, tmp_path / "a.yaml", [override, "teacher={name: vim, depth: 3}"]).student == expected
    (line,) = caplog.messages
    source = str(tmp_path / "a.yaml")
    assert line == f"{source}: student: 'vim' takes the place of 'hybrid', whose inner, model are dropped"
    monkeypatch.setenv("RANK", "1")
    load(Recipe, tmp_path / "a.yaml", [override, "teacher.depth=3"])
    assert len(caplog.messages) == 1, "one process speaks for all"


def test_options_of_options_are_dropped_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.yaml").write_text(
        yaml.safe_dump({"student": {"name": "vim", "model": 1, "kwargs": {"a": 1}}})
    )
    overrides = ["student={name: hybrid, model: m, kwargs: {b: 1}}", "student={kwargs: {b: 2}}"]
    assert "student.kwargs: unknown key" in load_problems(tmp_path / "a.yaml", *overrides)[0]
    assert caplog.messages[0].endswith("'hybrid' takes the place of 'vim', whose kwargs are dropped")
    assert len(caplog.messages) == 1


def test_an_override_leaves_what_an_alias_shares(tmp_path: Path) -> None:
    """`*a` and `&a` are one object to YAML."""
    (tmp_path / "a.yaml").write_text("student: &a {name: vim, depth: 1}\nteacher: *a\n")
    made = load(Recipe, tmp_path / "a.yaml", ["student={depth: 2}"])
    assert made.student == Vim(depth=2) and made.teacher == Vim(depth=1)


def test_an_override_adds_an_item_behind_the_last(recipe: Path) -> None:
    before = load(Recipe, recipe)
    made = load(
        Recipe, recipe, ["stages.1={losses: [kl]}", "stages.1.lr=0.5", "stages.1.losses.1={name: kl}"]
    )
    assert made.stages[:1] == before.stages and len(made.stages) == 2
    assert made.stages[1].lr == 0.5 and len(made.stages[1].losses) == 2


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("stages.0.lr", "override stages.0.lr: write key=value, such as trainer.seed=1"),
        ("--stages.0.lr=1", "override --stages.0.lr=1: write it without dashes: stages.0.lr=1"),
        ("stages..lr=1", "override stages..lr=1: a part of the path is empty"),
        ("=1", "override =1: a part of the path is empty"),
        ("stages.2.lr=1", "override stages.2.lr=1: stages has no item 2; its last is 0"),
        ("stages.0.losses.5.weight=1", "stages.0.losses has no item 5; its last is 1"),
        ("stages.first.lr=1", "stages is a list; write an index instead of 'first'"),
        ("size.0=1", "override size.0=1: size has no items in the file"),
        ("stagess.0.lr=1", "stagess has no items in the file; did you mean 'stages'?"),
        ("stages.0.losses.1.weight.x=1", "stages.0.losses.1.weight is a number, which has no 'x'"),
        ("clip=[1", "override clip=[1: '[1' is no YAML value (line 1, column 3: invalid YAML"),
        ("stages.0.lrr=1", "stages.0.lrr: unknown key; did you mean 'lr'?"),
        ("student=vimm", "student: unknown student 'vimm'; did you mean 'vim'?"),
    ],
)
def test_bad_overrides(recipe: Path, override: str, line: str) -> None:
    found = load_problems(recipe, override)
    assert len(found) == 1
    assert line in found[0]


def test_override_and_file_problems_together(recipe: Path) -> None:
    assert len(load_problems(recipe, "nonsense", "stages.9.lr=1", "compile=3")) == 3


def test_missing_file_names_the_nearest(recipe: Path) -> None:
    assert load_problems(recipe.with_name("tinny.yaml")) == [f"no such file; did you mean {str(recipe)!r}?"]
    assert load_problems(recipe.with_name("zo.yaml")) == ["no such file"]  # both end in .yaml, no more
    assert load_problems(recipe.parent / "none" / "a.yaml") == [
        f"no such file, nor the folder {recipe.parent / 'none'}"
    ]
    assert "directory" in load_problems(recipe.parent)[0].lower()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("student: vim\nstages: [1\n", "line 3, column 1: invalid YAML: "),
        ("student: vim\n\tsize: 1\n", "line 2"),
        ("student: vim\nwhen: 2024-99-99\n", "invalid YAML: month must be in 1..12"),
        (
            "student: !!python/object:os.system x\n",
            "line 1, column 10: invalid YAML: could not determine a constructor",
        ),
        ("- 1\n", "the file holds a list; write a mapping (key: value)"),
        ("student: vim\nsize: [1, 2]\nstudent: vim\n", "student: given twice, on lines 1 and 3; keep one"),
        ("student: vim\nstages:\n- {lr: 1, lr: 2}\n", "stages.0.lr: given twice, on lines 3 and 3; keep one"),
        ("", "student: required, but missing"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    found = load_problems(tmp_path / "a.yaml")
    assert len(found) == 1
    assert line in found[0] and "\n" not in found[0]


def test_merge_keys_are_no_repetition(tmp_path: Path) -> None:
    text = "student: {name: hybrid, model: m, inner: &a {name: vim, depth: 1}}\nteacher: {<<: *a, depth: 2}\n"
    (tmp_path / "a.yaml").write_text(text)
    assert load(Recipe, tmp_path / "a.yaml").teacher == Vim(depth=2)
