"""An adapter on a base that differs in what it knows nothing of, and in what it holds."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import harness
import peft_models as tiny
import pytest
import timm
import torch
from peft import PeftModel, get_peft_model
from test_peft_damage import CONFIG, refused, saved
from test_peft_students import student

from transmamba.ecosystems.find import save_model
from transmamba.errors import UserError
from transmamba.peft import MambaPeftConfig
from transmamba.peft.student import tune


def test_words_are_compared_where_the_adapter_has_them_alone(tmp_path: Path) -> None:
    """A table that is padded to a multiple is nothing to an adapter of mixers."""
    model, wanted = tiny.base("mamba"), tiny.adapted("mamba", ["lora_x"])
    model.resize_token_embeddings(40, mean_resizing=False)
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(model, saved(tmp_path / "mixers", ["lora_x"]))
        logits = adapted(tiny.words()).logits[..., : tiny.WORDS]
        torch.testing.assert_close(logits, wanted(tiny.words()).logits)
    adapted.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / CONFIG).read_text())["base"]["vocabulary"] == 40
    for options in (
        dict(methods=["lora_embed"]),
        dict(methods=["prompt"]),
        dict(methods=["lora_x"], modules_to_save=["embeddings"]),
        dict(methods=["lora_x"], modules_to_save=["lm_head"]),
    ):
        folder, model = saved(tmp_path / "words", **options), tiny.base("mamba")
        model.resize_token_embeddings(40, mean_resizing=False)
        load = functools.partial(PeftModel.from_pretrained, model, folder)
        refused(load, model, "31 words, and here are 40 words")


@pytest.mark.parametrize("head", [False, True])
def test_a_saved_student_is_made_without_its_head_or_with_another(head: bool, tmp_path: Path) -> None:
    """Its adapter is nothing to other classes, unless it brings the head."""
    made, pictures = harness.tiny_student(), torch.randn(2, 3, 8, 8)
    options: dict[str, Any] = dict(modules_to_save=["head"]) if head else {}
    tune(made, MambaPeftConfig(methods=["prompt"], **options))
    tiny.train_(made)
    save_model(made.eval(), tmp_path / "student")

    def by_timm(**asked: Any) -> Any:
        return timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True, **asked).eval()

    with torch.no_grad():
        seen = made.forward_head(made.forward_features(pictures), pre_logits=True)
        torch.testing.assert_close(by_timm(num_classes=0)(pictures), seen)
        torch.testing.assert_close(by_timm()(pictures), made(pictures))
        if not head:
            assert by_timm(num_classes=7)(pictures).shape == (2, 7)
            return
    with pytest.raises(UserError, match="another base: it is on 3 classes, and here are 7 classes"):
        by_timm(num_classes=7)


def test_a_module_that_an_old_adapter_names_in_vain_is_passed_over(tmp_path: Path) -> None:
    """Stock PEFT takes such names, and so did this library."""
    folder = saved(tmp_path, ["lora_x"])
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"modules_to_save": ["score", "pooler"]}))
    adapted, wanted = PeftModel.from_pretrained(tiny.base("mamba"), folder), tiny.adapted("mamba", ["lora_x"])
    with torch.no_grad():
        assert torch.equal(adapted(tiny.words()).logits, wanted(tiny.words()).logits)


def test_a_module_that_a_saved_adapter_brings_has_a_place(tmp_path: Path) -> None:
    config, model = MambaPeftConfig(methods=["lora_x"], modules_to_save=["norm_f"]), student("vim")
    get_peft_model(student("vim"), config).save_pretrained(tmp_path)
    model.norm = model.norm_f
    del model.norm_f
    refused(lambda: PeftModel.from_pretrained(model, tmp_path), model, "'norm_f' is no module of the model")
