"""Reasons in stages: written as LLaVA-CoT does, and read again, also where a model wrote them badly."""

from __future__ import annotations

import pytest

from transmamba.data.staged import Rationale, final_answer, read_stages

WHOLE = (
    "<SUMMARY> I will count. </SUMMARY>\n\n<CAPTION> Two dogs. </CAPTION>\n\n"
    "<REASONING> One, two.\n\nThat is all. </REASONING>\n\n<CONCLUSION> 2 </CONCLUSION>"
)


def test_what_is_written_is_the_published_form_and_is_read_again() -> None:
    reasons = Rationale(summary="I will count.", caption="Two dogs.", reasoning="One, two.\n\nThat is all.")
    assert reasons.written("2") == WHOLE
    assert read_stages(WHOLE) == (reasons, "2")
    assert Rationale(reasoning="So.").written("no") == (
        "<REASONING> So. </REASONING>\n\n<CONCLUSION> no </CONCLUSION>"
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (WHOLE, "2"),
        (" a dog\n", "a dog"),
        (WHOLE.removesuffix(" </CONCLUSION>"), "2"),  # cut at the limit of tokens
        (WHOLE[: WHOLE.index("<CONCLUSION>")], ""),  # cut before the answer
        ("<REASONING> so <CONCLUSION>yes", "yes"),  # a stage that was not closed
        ("<CONCLUSION>yes</CONCLUSION> hm <CONCLUSION>no</CONCLUSION>", "no"),
        ("Sure. <CONCLUSION></CONCLUSION>", ""),
        ("a < b and <b>", "a < b and <b>"),
    ],
)
def test_the_answer_is_the_conclusion(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_stages_that_are_missing_are_empty() -> None:
    assert read_stages("<CAPTION> x </CAPTION>") == (Rationale(reasoning="", caption="x"), "")
    assert read_stages("no stages") is None
