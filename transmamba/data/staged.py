"""Answers with their reasons, in the stages that LLaVA-CoT writes (Xu et al., arXiv 2411.10440): a summary of
what is to be done, a caption of the picture, the reasoning, and the answer as conclusion."""

from __future__ import annotations

import re
from dataclasses import dataclass

STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")

# a stage that is not closed goes on to the next one, or to the end: what a model wrote may be cut
_STAGE = re.compile(rf"<({'|'.join(STAGES)})>(.*?)(?:</\1>|(?=<(?:{'|'.join(STAGES)})>)|\Z)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Rationale:
    """Why an answer is right. A stage that is empty is not written."""

    reasoning: str
    summary: str = ""
    caption: str = ""

    def written(self, answer: str) -> str:
        """The stages and the answer behind them: `<SUMMARY> ... </SUMMARY>`, an empty line, the next one."""
        texts = (self.summary, self.caption, self.reasoning, answer)
        said = [f"<{name}> {text} </{name}>" for name, text in zip(STAGES, texts, strict=True) if text]
        return "\n\n".join(said)


def read_stages(text: str) -> tuple[Rationale, str] | None:
    """The stages of a text and its answer, empty where that is missing; None where it has no stages. Of a
    stage that comes twice, the last counts: models correct themselves."""
    found = {name: content.strip() for name, content in _STAGE.findall(text)}
    if not found:
        return None
    summary, caption, reasoning, answer = (found.get(name, "") for name in STAGES)
    return Rationale(reasoning=reasoning, summary=summary, caption=caption), answer


def final_answer(text: str) -> str:
    """The conclusion of a text in stages, which may be empty; any other text as it is."""
    found = read_stages(text)
    return text.strip() if found is None else found[1]
