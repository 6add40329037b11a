"""open_clip's models by name, folder and repository; their pictures pixel by pixel; one-line errors."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn

from transmamba import load_teacher
from transmamba.ecosystems import hub
from transmamba.ecosystems import open_clip as ecosystem
from transmamba.ecosystems.find import ecosystem_of, load_model
from transmamba.ecosystems.folders import OPEN_CLIP_CONFIG
from transmamba.ecosystems.open_clip_names import names
from transmamba.ecosystems.origin import Origin
from transmamba.ecosystems.sources import read_source
from transmamba.errors import UserError
from transmamba.teachers.open_clip import OpenClip

CFG: dict[str, Any] = dict(
    embed_dim=8,
    vision_cfg=dict(layers=1, width=16, head_width=8, patch_size=4, image_size=8),
    text_cfg=dict(layers=1, width=16, heads=2, context_length=5, vocab_size=120),
)
WEIGHTS = "open_clip_model.safetensors"


def made(**change: Any) -> Any:
    torch.manual_seed(0)
    cfg = {**CFG, **change}
    model = open_clip.CLIP(**cfg).eval()
    ecosystem.say_made_from(model, cfg, Origin())
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    ecosystem.save(made(), tmp_path / "clip")
    return tmp_path / "clip"


# --- pictures ---

SIZES = [(30, 20), (20, 30), (16, 16), (15, 33), (200, 41), (7, 9), (24, 16)]


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("size", [16, (16, 24), (24, 16)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
@pytest.mark.parametrize(
    "mode",
    [dict(resize_mode="shortest"), dict(resize_mode="squash"), dict(resize_mode="longest", mean=(0, 0, 0))],
)
def test_pictures_are_open_clip_s_pixel_by_pixel(mode: Any, interpolation: str, size: Any) -> None:
    config = open_clip.transform.PreprocessCfg(size=size, interpolation=interpolation, **mode)
    model = made()
    open_clip.model.set_model_preprocess_cfg(model, vars(config))
    ours = ecosystem.preprocessing(model).eval_transform()
    theirs = open_clip.transform.image_transform_v2(config, is_train=False)
    for width, height in SIZES:
        seen, wanted = ours(picture(width, height)), theirs(picture(width, height))
        assert seen.shape == wanted.shape and torch.equal(seen, wanted), (width, height)


def test_a_border_of_the_mean_s_colour_is_said(tmp_path: Path) -> None:
    model, gray = made(), dict(resize_mode="longest", mean=0.5, std=0.5, fill_color=128, size=8)
    open_clip.model.set_model_preprocess_cfg(model, gray)
    looks = ecosystem.preprocessing(model)
    assert looks.crop_mode == "border" and looks.mean == (0.5,) * 3
    ecosystem.save(model, tmp_path)
    loaded = ecosystem.preprocessing(load_model(tmp_path))
    assert replace(loaded, text=None) == replace(looks, text=None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(resize_mode="longest"), "resize_mode longest with fill_color 0"),
        (dict(resize_mode="largest"), "resize_mode 'largest' is none of"),
        (dict(interpolation="lanczos"), "interpolation 'lanczos' is none of"),
        (dict(mean=(0.5, 0.5)), "mean"),
        (dict(size="large"), "size|unpack|literal"),
    ],
)
def test_other_preparations_are_refused_by_name(change: dict[str, Any], said: str) -> None:
    model = made()
    open_clip.model.set_model_preprocess_cfg(model, vars(open_clip.transform.PreprocessCfg(size=8)) | change)
    with pytest.raises(UserError, match=said) as error:
        ecosystem.preprocessing(model)
    assert "\n" not in str(error.value)


def test_what_open_clip_assumes_without_a_word() -> None:
    looks = ecosystem.preprocessing(made())
    assert (looks.input_size, looks.crop_pct, looks.crop_mode) == ((3, 8, 8), 1.0, "center")
    assert looks.mean == open_clip.OPENAI_DATASET_MEAN and looks.interpolation == "bicubic"


@pytest.mark.parametrize(
    "change", [dict(crop_pct=0.9), dict(interpolation="nearest"), dict(crop_mode="border")], ids=str
)
def test_what_open_clip_cannot_say_is_not_saved(change: dict[str, Any], tmp_path: Path) -> None:
    from dataclasses import replace

    looks = replace(ecosystem.preprocessing(made()), **change)
    with pytest.raises(UserError, match=next(iter(change))):
        ecosystem.save(made(), tmp_path, looks)


# --- names ---


def test_names_are_read_without_importing_it() -> None:
    assert names() == set(open_clip.list_models())
    code = (
        "import sys; from transmamba.ecosystems.sources import read_source as r;"
        "r('ViT-B-32/openai'); r('ViT-B-32'); r('open_clip:RN50'); print('open_clip' in sys.modules)"
    )
    done = fresh_process.run(code)
    assert done.stdout.strip() == "False", done.stderr[-2000:]


@pytest.mark.parametrize(
    ("text", "library"),
    [
        ("ViT-B-32/laion2b_s34b_b79k", "open_clip"),
        ("ViT-B-32", "open_clip"),
        ("open_clip:ViT-B-32", "open_clip"),
        ("open-clip:ViT-B-32-quickgelu/openai", "open_clip"),
        ("open_clip:vit_medium_patch16_gap_256", "open_clip"),
        ("vit_medium_patch16_gap_256", "timm"),
        ("vit_base_patch32_clip_224.openai", "timm"),
        ("timm/vit_base_patch32_clip_224.openai", "timm"),
    ],
)
def test_a_name_is_one_library_s(text: str, library: str) -> None:
    source = read_source(text)
    assert ecosystem_of(source).library == library
    assert (OpenClip.recognise(source) is not None) == (library == "open_clip")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ViT-B-33", "did you mean 'ViT-B-32' of open_clip"),
        ("ViT-B-33/openai", "did you mean 'ViT-B-32/openai' of open_clip"),
        ("ViT-B/32", "did you mean 'ViT-B-32' of open_clip"),
        ("open_clip:ViT-B-33/openai", "did you mean 'ViT-B-32/openai' of open_clip"),
        ("open_clip:x", "open_clip has no model 'x'"),
        ("open_clip:", "open_clip has no model ''"),
        ("ViT-B-32/laion2b_s34b_b79", "did you mean 'laion2b_s34b_b79k'"),
        ("ViT-B-32", "write one of ViT-B-32/openai"),
        ("ViT-e-14", "open_clip has no weights of 'ViT-e-14'"),
        ("ViT-B-32/openai/x", "no such folder"),
    ],
)
def test_a_wrong_name_or_tag_is_one_line(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(repo: str, file: str, revision: str | None = None) -> Path | None:
        raise UserError(f"{repo!r}: no such repository")

    monkeypatch.setattr(hub, "fetch", fetch)
    with pytest.raises(UserError) as error:
        load_teacher(text)
    assert said in str(error.value) and text in str(error.value) and "\n" not in str(error.value)


def test_a_tag_is_told_with_its_activation_and_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip only warns where a name says GELU and the weights were trained with QuickGELU."""
    given: dict[str, Any] = {}

    def create(name: str, **kwargs: Any) -> nn.Module:
        given.update(kwargs, model_name=name)
        return made(quick_gelu=kwargs["force_quick_gelu"])

    monkeypatch.setattr(open_clip, "create_model", create)
    monkeypatch.setattr(hub, "fetch", lambda *_: None)
    for tag, quick in (("openai", True), ("laion2b_s34b_b79k", False)):
        model = load_model(f"ViT-B-32/{tag}")
        assert given["model_name"] == "ViT-B-32" and given["pretrained"] == tag
        assert given["force_quick_gelu"] is quick and given["require_pretrained"] is True
        assert getattr(model, ecosystem._OURS)[0]["quick_gelu"] is quick
        base = ecosystem.origin(model).base_model
        assert base is not None and base.count("/") == 1 and tag in base.lower().replace("-", "_")


@pytest.mark.parametrize(
    ("name", "said"), [("RN50/openai", "ModifiedResNet"), ("convnext_base/laion400m_s13b_b51k", "ConvNeXt")]
)
def test_what_no_view_expresses_is_refused_before_its_weights_are_fetched(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*_: Any, **__: Any) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", fetched)
    with pytest.raises(UserError, match=said):
        load_teacher(name)


def test_random_weights_are_made_without_a_network() -> None:
    teacher = OpenClip(model="ViT-S-32-alt", pretrained=False).build()
    assert set(teacher.view.towers) == {"image", "text"} and teacher.source == "ViT-S-32-alt"


def test_a_missing_extra_is_one_line(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "open_clip" else find(name, *rest)
    )
    for text in ("open_clip:ViT-B-32/openai", str(saved)):
        with pytest.raises(UserError, match=r"pip install 'transmamba\[clip\]'") as error:
            load_teacher(text)
        assert "\n" not in str(error.value) and text in str(error.value)
    assert names() == frozenset()
    with pytest.raises(UserError, match=r"transmamba\[clip\]"):
        load_teacher("ViT-B-32")


# --- folders and repositories ---


def test_folders_are_loaded_however_they_are_called(saved: Path) -> None:
    for text in (str(saved), f"local-dir:{saved}"):
        assert read_source(text).config["model_cfg"] == CFG
        assert set(load_teacher(text).view.towers) == {"image", "text"}


def test_a_folder_of_two_libraries_is_the_one_s_whose_config_json_it_is(saved: Path) -> None:
    for config, library in (
        ({"model_type": "clip"}, "transformers"),
        ({"architecture": "x"}, "timm"),
        ({}, "open_clip"),
    ):
        (saved / "config.json").write_text(json.dumps(config))
        assert ecosystem_of(read_source(str(saved))).library == library


def _spoil_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"no")


def _other_shape(folder: Path) -> None:
    ecosystem.save(made(embed_dim=4), folder)
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps({"model_cfg": CFG}))


def _unknown_key(folder: Path) -> None:
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps({"model_cfg": {**CFG, "nonsense": 1}}))


def _pickled(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("run",)

    (folder / WEIGHTS).unlink()
    torch.save({"state_dict": Evil()}, folder / "open_clip_pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "weights"),
        (_spoil_weights, "is cut off or damaged"),
        (_other_shape, "size mismatch for"),
        (_unknown_key, "nonsense"),
        (_pickled, "Weights only load failed|could not be made"),
        (lambda folder: (folder / OPEN_CLIP_CONFIG).write_text("{"), "cannot be read as JSON"),
        (
            lambda folder: (folder / OPEN_CLIP_CONFIG).write_text("{}"),
            "no open_clip_config.json with a model_cfg",
        ),
    ],
)
def test_a_spoilt_folder_is_one_line(
    spoil: Callable[[Path], Any], said: str, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(saved)
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(UserError, match=said) as error:
        load_teacher(saved)
    assert "\n" not in str(error.value) and str(saved) in str(error.value)
    assert capfd.readouterr() == ("", "") and logging.getLogger().handlers == handlers


def test_a_repository_is_read_at_its_revision(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    (saved / "README.md").write_text("---\nlicense: mit\n---\n")

    def fetch(repo: str, file: str, revision: str | None = None) -> Path | None:
        asked.append((file, revision))
        return saved / file if (saved / file).is_file() else None

    monkeypatch.setattr(hub, "fetch", fetch)
    teacher = load_teacher("hf-hub:them/clip@v2")
    assert set(teacher.view.towers) == {"image", "text"}
    assert (teacher.licence, teacher.base_model) == ("mit", "them/clip")
    assert {revision for _, revision in asked} == {"v2"} and (WEIGHTS, "v2") in asked
    assert read_source("timm/ViT-B-16-SigLIP").config["model_cfg"] == CFG, "capitals are open_clip's"
    (saved / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"holds none of open_clip_model\.safetensors"):
        load_teacher("them/clip")


def test_one_made_elsewhere_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not say its model_cfg"):
        ecosystem.save(open_clip.CLIP(**CFG), tmp_path)
