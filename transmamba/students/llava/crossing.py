"""Where cross-Mamba stands in a LLaVA: before its connector, or behind every n-th layer of its image tower.

Shapes: B rows, L tokens, E channels of the decoder; P pictures, N tokens of each, D of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...errors import UserError
from ...layers.cross_mamba import CrossMambaConfig, cross_mamba
from ...layers.prompt import Prompt


def prompts_of(
    inputs: Mapping[str, Tensor], words: Tensor, rows: Tensor, token: int, *, shuffled: bool = False
) -> Prompt:
    """Of each picture its row's prompt, P of them, for all modules of a batch: of a batch's words (B, L, E)
    and the row (P,) of each; `token` stands for pictures, and is no word; `shuffled` gives each the words of
    the row before its own, and none where there is one row. Asks the device once, for the longest.

    Raises UserError without a `prompt_mask`: a text holds its answer, which no picture may read.
    """
    if "prompt_mask" not in inputs:
        raise UserError(
            "cross-Mamba reads the prompt, but the batch has no prompt_mask that says which words it is; "
            "train and measure with the task questions"
        )
    mask = inputs["prompt_mask"] & (inputs["text"] != token)
    if shuffled:
        words, mask = words.roll(1, 0), mask.roll(1, 0) & (len(words) > 1)
    return Prompt.of(words[rows], mask[rows])


class Crossing(nn.Module):
    """config: `CrossMambaConfig`'s; `every`: behind each so many layers of the tower, None for once, before
    the connector; `prompt`: `own`, or `shuffled`, another row's. Raises UserError for what the tower cannot
    have."""

    def __init__(self, config: Mapping[str, Any], tower: Any, language: int) -> None:
        super().__init__()
        self.every: int | None = config["every"]
        self.shuffled = config.get("prompt", "own") == "shuffled"
        options = {name: value for name, value in config.items() if name not in ("every", "prompt")}
        kind, layers = CrossMambaConfig(**options), tower.num_layers
        if self.every is not None and self.every > layers:
            raise UserError(
                f"student.cross.every is {self.every}, and the image tower has {layers} layers; write 1 to "
                f"{layers}, or leave it out: once, before the connector"
            )
        count = 1 if self.every is None else layers // self.every
        try:
            self.modules_at = nn.ModuleList(cross_mamba(tower.width, language, kind) for _ in range(count))
        except UserError as error:  # of what a configuration alone does not tell
            raise UserError(f"student.cross: {error}") from error

    def forward(self, number: int, prompts: Prompt, x: Tensor) -> Tensor:
        """Tokens (P, N, D) of pictures that know their prompts."""
        return self.modules_at[number](x, prompts)

    def behind(self, prompts: Prompt, k: int, x: Tensor) -> Tensor:
        """The tower's stream (P, N, D) behind its layer k."""
        assert self.every is not None, "those before the connector are called themselves"
        number, rest = divmod(k + 1, self.every)
        return x if rest else self(number - 1, prompts, x)
