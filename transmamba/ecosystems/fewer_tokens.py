"""A LLaVA of transformers whose decoder reads fewer tokens of a picture than its tower makes."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from ..layers.cell_means import CellMeans

# key of config.json of our own, and what says the number there
OURS, TOKENS = "transmamba", "image_tokens"


def tokens_told(config: Any) -> int | None:
    """How many tokens of a picture a LLaVA's configuration says that we average its patches to."""
    said = getattr(config, OURS, None)
    return said.get(TOKENS) if isinstance(said, dict) else None


def means_told(config: Any) -> CellMeans | None:
    """The cells that a LLaVA's configuration says. Raises UserError for a number that its grid does not have,
    and where the class token is read, too."""
    tokens, vision = tokens_told(config), config.vision_config
    if tokens is None:
        return None
    if config.vision_feature_select_strategy == "full" and vision.model_type == "clip_vision_model":
        raise UserError(
            f"image_tokens is {tokens}, but this connector reads the class token too, which lies in no cell; "
            "leave it out"
        )
    side = vision.image_size // vision.patch_size
    return CellMeans.of(side, side, tokens, "image_tokens")


def with_tokens(model: Any, tokens: int | None) -> Any:
    """The LlavaForConditionalGeneration, whose pictures are of so many tokens from here on; as it was for
    None. Raises UserError as `means_told` does."""
    if tokens is None:
        return model
    setattr(model.config, OURS, {TOKENS: tokens})
    means = means_told(model.config)
    if means is not None:
        model.model.multi_modal_projector = _kind()(model.model.multi_modal_projector, means)
    return model


@functools.cache
def _kind() -> Any:
    """transformers' connector, with its tensors, behind the means of cells; made when it is needed, for
    transformers takes a second to import."""
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    class CellMeansProjector(LlavaMultiModalProjector):
        def __init__(self, projector: Any, means: CellMeans) -> None:
            nn.Module.__init__(self)
            self.linear_1, self.act, self.linear_2 = projector.linear_1, projector.act, projector.linear_2
            self.means = means
            self.train(projector.training)

        def forward(self, image_features: Tensor) -> Tensor:
            made: Tensor = super().forward(self.means(image_features))
            return made

    return CellMeansProjector
