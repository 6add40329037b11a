"""An option that a student does not have is said in the user's words, not in Python's."""

from __future__ import annotations

from typing import Any

import pytest

from transmamba.ecosystems.timm import create_timm
from transmamba.errors import UserError


@pytest.mark.parametrize(
    ("model", "option", "meant"),
    [
        ("vim_micro_patch2_8", "gate_bis", "gate_bias"),
        ("ssd_vit_micro_patch2_8", "attention_layer", "attention_layers"),
        ("vit_tiny_patch16_224", "embed_dims", "embed_dim"),
    ],
)
def test_an_unknown_option_is_suggested(model: str, option: str, meant: str) -> None:
    given: dict[str, Any] = {option: 1}
    with pytest.raises(UserError, match=f"unknown option '{option}'; did you mean '{meant}'") as caught:
        create_timm(model, pretrained=False, **given)
    assert "__init__" not in str(caught.value) and "\n" not in str(caught.value)
