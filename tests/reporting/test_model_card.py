"""The card of a student folder: what the Hub reads, and what people read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from made_up_run import CONFIG, DIFFERENCE, RESULTS

from transmamba.reporting.model_card import Card, render_model_card, write_model_card

CARD = Card(
    library="timm",
    pipeline_tag="image-classification",
    snippet='import timm\nmodel = timm.create_model("local-dir:HERE", pretrained=True)\n',
    licence="mit",
    base_model="timm/vit",
    description="A Mamba image classifier.",
)


def front_and_text(card: str) -> tuple[dict, str]:
    front, text = card.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(front), text


def test_model_card(tmp_path: Path) -> None:
    data = {"name": "image_folder", "root": "/home/me/a|b"}
    config = CONFIG | {"task": {"name": "image_classification", "data": data, "fraction": 0.25}}
    page = write_model_card(tmp_path, CARD, results=RESULTS, config=config)
    assert page == tmp_path / "README.md"
    front, text = front_and_text(page.read_text(encoding="utf-8"))
    assert front == {
        "license": "mit",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "mamba", "transmamba", "distillation"],
        "base_model": "timm/vit",
    }
    for line in (
        "# vim from vit_tiny_patch16_224",
        "A Mamba image classifier.",
        'model = timm.create_model("local-dir:HERE", pretrained=True)',
        "- Data: image_folder (root: a\\|b), 25 % of what there is to train on",
        "| align | feature × 1 | steps 60 |",
        "| | teacher | student | scratch |",
        "|---|---:|---:|---:|",
        "| top-1 % | 91.50 | 90.25 | 60.50 |",
        "| agreement % | – | 94.75 | – |",
        "## Results on the test split",
    ):
        assert line in text.splitlines(), line
    assert "\n\n\n" not in text


def test_the_card_says_how_sure_the_numbers_are() -> None:
    lines = render_model_card(CARD, results={**RESULTS, **DIFFERENCE}, config=CONFIG).splitlines()
    head = lines.index(
        "| | teacher | student | scratch | student - teacher [95 %] | student / teacher % [95 %] |"
    )
    assert lines[head + 1] == "|---|---:|---:|---:|---:|---:|"
    row = "| top-1 % | 91.50 | 90.25 | 60.50 | -1.25 (-2.00 to -0.50) | 98.6 (97.8 to 99.5) |"
    assert lines[head + 2] == row
    assert any("paired bootstrap" in line for line in lines)


def test_no_licence_is_claimed_that_nobody_gave() -> None:
    bare = Card(library="transformers", pipeline_tag="text-generation", snippet="import transformers")
    front, text = front_and_text(render_model_card(bare, results={}, config={"teacher": "causal_lm"}))
    assert "license" not in front and "base_model" not in front and "apache" not in text.lower()
    assert "Licence: not stated" in text and front["pipeline_tag"] == "text-generation"
    assert front["tags"][0] == "text-generation" and "image" not in text


def test_a_held_out_share_is_not_called_test() -> None:
    config = CONFIG | {"task": {"name": "image_classification", "validation": 0.1}}
    card = render_model_card(CARD, results=RESULTS, config=config)
    assert "## Results on the validation split" in card and "test" not in card
    final = CONFIG | {"task": {"name": "image_classification", "validation": 0.1, "final_split": "test"}}
    assert "## Results on the test split" in render_model_card(CARD, results=RESULTS, config=final)


def test_a_student_without_a_run() -> None:
    text = render_model_card(CARD, results={}, config={"teacher": "timm_vit", "student": "vim"})
    assert "# vim from timm_vit" in text
    assert "Results" not in text and "Data" not in text and "\n\n\n" not in text


def test_a_run_without_a_teacher_claims_none() -> None:
    config = {"student": {"name": "timm", "model": "vit_tiny"}, "teacher": None}
    card = dataclasses.replace(CARD, description="")
    text = render_model_card(card, results={"student": {"top1": 90.0}}, config=config)
    assert "# vit_tiny\n" in text and "teacher" not in text.lower() and "distillation" not in text


def test_results_of_earlier_versions() -> None:
    results = {"student": {"top1": 90.0, "images_per_second": 1234.0}, "agreement": 80.0}
    text = render_model_card(CARD, results=results, config=CONFIG)
    assert "| samples/s | 1,234 |" in text and "| agreement % | 80.00 |" in text


def test_the_hub_accepts_the_front_matter() -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    card = huggingface_hub.ModelCard(render_model_card(CARD, results=RESULTS, config=CONFIG))
    assert card.data.library_name == "timm" and card.data.license == "mit"
