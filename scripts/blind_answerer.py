"""How right someone is who answers questions without their pictures, from a table of training questions: what
any model is to be held against. The reader and its options are those of a recipe's `task.data`.

python scripts/blind_answerer.py scenes
python scripts/blind_answerer.py easy_vqa path=$TRANSMAMBA_DATA/easy_vqa/easy_vqa.zip --known 40000
"""

from __future__ import annotations

import argparse
import sys

from transmamba.cli.arguments import reader_of
from transmamba.config.registry import QUESTIONS
from transmamba.data.hashing import permutation
from transmamba.data.questions.source import Item, QuestionSource
from transmamba.errors import UserError
from transmamba.evaluation.answers import by_type, judge
from transmamba.evaluation.blind import LookupAnswerer


def chosen(source: QuestionSource, count: int) -> list[Item]:
    """A fixed random choice of items, all where there are no more."""
    return [source.item(number) for number in permutation(len(source), 0)[:count].tolist()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("reader", help="a reader of questions")
    parser.add_argument("options", nargs="*", metavar="key=value", help="its options")
    parser.add_argument("--known", type=int, default=10_000, help="training questions in the table")
    parser.add_argument("--asked", type=int, default=10_000, help="test questions")
    arguments = parser.parse_intermixed_args()
    try:
        reader = reader_of(arguments.reader, arguments.options, QUESTIONS, option="reader")
        known, asked = (
            chosen(reader.build("train"), arguments.known),
            chosen(reader.build("test"), arguments.asked),
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    answerer = LookupAnswerer.of(known)
    scores = by_type(asked, [judge(item, answerer.answer(item)) for item in asked])
    seen = sum(map(answerer.knows, asked)) / len(asked)
    print(f"{len(known):,} training questions known, {len(asked):,} asked, {seen:.1%} of them known")
    print(f"{'':<24} asked  exact %")
    for name, score in scores.items():
        print(f"{name:<24} {score.asked:>5}  {score.exact:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
