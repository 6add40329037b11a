"""The plug-in of lmms-eval (github.com/EvolvingLMMs-Lab/lmms-eval): its entry point `lmms_eval.models`.

    python -m lmms_eval --model transmamba --model_args pretrained=STUDENT --tasks gqa,scienceqa_img

`lmms_eval_model` imports that library, so only it imports that file.
"""

from __future__ import annotations

from typing import Any

MODEL = "transmamba.runs.lmms_eval_model.Transmamba"


def manifest() -> Any:
    """What lmms-eval asks for: the model `transmamba`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="transmamba", simple_class_path=MODEL)
