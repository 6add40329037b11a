"""`transmamba bench inference` of a CLIP: its image tower beside clip students', sizes, options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_clip import made

from transmamba.bench import inference
from transmamba.bench.models import Models, read_students
from transmamba.cli import main as cli
from transmamba.ecosystems import open_clip as library
from transmamba.ecosystems.find import save_model
from transmamba.ecosystems.origin import Origin
from transmamba.errors import UserError

pytest.importorskip("open_clip", reason="needs open_clip")

WORDS = ["vim:gate_bias=true", "vim:gate_bias=true:embed_dim=24:depth=3", "ssd_vit", "vit:depth=1"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clips") / "clip"
    save_model(made(), folder)
    return str(folder)


@pytest.mark.parametrize(("size", "tokens"), [(16, 17), (24, 37)])
def test_what_is_timed(clip: str, size: int, tokens: int) -> None:
    """The image towers with their projections, of the asked-for kinds and shapes, for images of that size."""
    timed, shape = Models(clip, read_students(WORDS)).at(size)
    assert shape == (3, size, size) and list(timed) == ["teacher", *WORDS]
    images = torch.randn(2, *shape)
    for each in timed.values():
        assert each.tokens == tokens
        with torch.no_grad():
            assert each.module(images).shape == (2, 8)
    kinds = {word: type(getattr(each.module, "trunk", each.module)).__name__ for word, each in timed.items()}
    assert list(kinds.values()) == ["VisionTransformer", *["VisionMamba"] * 2, *["SSDVisionTransformer"] * 2]
    wide, narrow, ssd, vit = (timed[word].module.trunk for word in WORDS)  # type: ignore[union-attr]
    assert (wide.width, wide.num_layers, narrow.width, narrow.num_layers) == (32, 4, 24, 3)
    assert wide.layers[0].mixer.gate_bias is not None
    assert (ssd.attention_layers, vit.attention_layers, vit.num_layers) == ((), (0,), 1)


def test_options_change_the_teacher_and_so_its_students(clip: str) -> None:
    options = ["vision_cfg.layers=3", "vision_cfg.patch_size=8", "embed_dim=16"]
    timed, shape = Models(clip, read_students(["vim"]), options).at(16)
    assert [each.tokens for each in timed.values()] == [5, 5]
    teacher: Any = timed["teacher"].module
    assert len(teacher.transformer.resblocks) == 3
    assert timed["vim"].module.trunk.num_layers == 6  # type: ignore[union-attr]
    assert timed["vim"].module(torch.randn(1, *shape)).shape == (1, 16)


def test_a_trunk_of_timm_s_takes_the_size(tmp_path: Path) -> None:
    vision = dict(timm_model_name="vit_tiny_patch16_224", timm_pool="avg", timm_proj="linear", image_size=224)
    text = dict(context_length=12, vocab_size=49408, width=16, heads=2, layers=1)
    cfg = dict(embed_dim=8, vision_cfg=vision, text_cfg=text, custom_text=True)
    model = library.build_open_clip(cfg)
    library.say_made_from(model, cfg, Origin())
    save_model(model, tmp_path / "clip")
    models = Models(str(tmp_path / "clip"), read_students(["vim:depth=1"]))
    timed, shape = models.at(48)
    assert shape == (3, 48, 48) and [each.tokens for each in timed.values()] == [10, 10]
    with pytest.raises(UserError, match="images of 8 pixels hold no patch"):
        models.at(8)


def run(capsys: Any, *words: str) -> tuple[int, str, str]:
    code = cli.main(["bench", "inference", "--tokens", "17", "--steps", "1", "--device", "cpu", *words])
    return code, *capsys.readouterr()


def test_the_table(clip: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row a size and model; milliseconds an image, and the teacher's time as a ratio."""
    seconds = {"teacher": 0.5, "vim:depth=2": 2.0}
    monkeypatch.setattr(inference, "interleaved", lambda kinds, *_: {each: seconds[each] for each in kinds})
    words = ["--teacher", clip, "--students", "vim:depth=2", "--sizes", "16,24", "--tokens", "34"]
    code, out, err = run(capsys, *words, "vision_cfg.layers=1", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [(row["size"], row["model"], row["images"]) for row in rows] == [
        (16, "teacher", 2),
        (16, "vim:depth=2", 2),
        (24, "teacher", 1),
        (24, "vim:depth=2", 1),
    ]
    assert [row["milliseconds"] for row in rows] == [250, 1000, 500, 2000]
    assert [row["speed"] for row in rows] == [1, 0.25, 1, 0.25]
    lines = run(capsys, *words)[1].splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 5 and "ms/image" in lines[0]
    assert "1000.0000" in lines[2]


def test_a_long_name_keeps_the_columns(clip: str, capsys: Any) -> None:
    long = "vim:gate_bias=true:embed_dim=24:depth=1"
    lines = run(capsys, "--teacher", clip, "--students", f"{long},ssd_vit", "--sizes", "16")[1].splitlines()
    assert long in lines[2] and len({len(line) for line in lines}) == 1 and len(lines) == 4


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "kind": (
        ["--students", "deit"],
        ["students: deit", "image.kind: unknown value 'deit'", "ssd_vit, vim, vit"],
    ),
    "twice": (["--students", "vim,vim"], ["students: 'vim' is there twice"]),
    "no key=value": (["--students", "vim:24"], ["'24' is no key=value; write such as vim:embed_dim=128"]),
    "option": (["--students", "vim:dpeth=3"], ["dpeth"]),
    "width": (["--students", "ssd_vit:embed_dim=31"], ["embed_dim is 31, no multiple of num_heads, 2"]),
    "teacher's option": (["embed_dim"], ["'embed_dim' is no key=value"]),
    "unknown option": (["vision_cfg.layres=3"], ["layres"]),
    "size": (["--sizes", "3"], ["images of 3 pixels hold no patch"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_one_line(clip: str, capsys: Any, case: str) -> None:
    words, says = WRONG[case]
    code, _, err = run(capsys, "--teacher", clip, "--sizes", "16", "--students", "", *words)
    assert code == 2 and all(text in err for text in says), err
    assert len([line for line in err.splitlines() if "error" in line]) == 1 and "Traceback" not in err


def test_options_are_of_open_clip_s_teachers(capsys: Any) -> None:
    code, _, err = run(capsys, "--teacher", "vit_tiny_patch16_224", "embed_dim=3")
    assert code == 2 and "embed_dim=3: options are of an open_clip model's model_cfg" in err


def test_a_timm_teacher_s_students_take_options(monkeypatch: pytest.MonkeyPatch) -> None:
    check: Callable[..., None] = lambda *_: None  # noqa: E731
    monkeypatch.setattr("transmamba.teachers.of_module.check_view", check)
    words = ["vim:depth=1:embed_dim=48", "vim_micro_patch2_8:depth=1"]
    timed, _ = Models("vit_tiny_patch16_224", read_students(words)).at(16)
    assert [timed[word].module.num_layers for word in words] == [1, 1]
    assert timed[words[0]].module.width == 48 and timed[words[1]].tokens == 65
