"""Answers with their reasons in stages: Xu et al., "LLaVA-CoT: let vision language models reason
step-by-step", arXiv 2411.10440."""

from __future__ import annotations

from dataclasses import dataclass

from ...config.registry import QUESTIONS
from ..staged import read_stages
from ..text.files import found_files
from .llava import KINDS, conversations
from .source import QuestionSource, need_a_split, of_split
from .stored import Gathered, pictures_of

UNSTAGED = "whose answer is not in stages, or without a conclusion"


@QUESTIONS.register("llava_cot")
@dataclass(frozen=True, kw_only=True)
class LlavaCot:
    """LLaVA-CoT-100k: LLaVA's format (train.jsonl), with answers in stages. They are `<SUMMARY> ...
    </SUMMARY> <CAPTION> ... </CAPTION> <REASONING> ... </REASONING> <CONCLUSION> ... </CONCLUSION>`.

    The conclusion is the answer, what stands before it the rationale; answers of earlier turns stay as they
    are written. Left out, counted and logged: what `llava` leaves out, and answers without a conclusion.

    train, test: a file, or a pattern of several; one may be left out
    images:      the folder or .zip of the pictures; where the first file lies, if left out
    """

    train: str | None = None
    test: str | None = None
    images: str | None = None

    def __post_init__(self) -> None:
        need_a_split(self.train, self.test, "llava_cot")

    def build(self, split: str) -> QuestionSource:
        """Raises UserError on a file that is missing or damaged, or when no conversation is left."""
        files = found_files([of_split(split, self.train, self.test, "llava_cot")], KINDS)
        gathered = Gathered(files[0])
        for line, pictures, turns in conversations(files, gathered):
            found = read_stages(turns[-1].content)
            if found is None or not found[1]:
                gathered.left_out.add(UNSTAGED, line)
                continue
            rationale, answer = found
            question, earlier = turns[-2].content, turns[:-2]
            gathered.add(line, question, answer, pictures, rationale=rationale, earlier=earlier)
        return gathered.build(pictures_of(self.images, files))
