"""The words of questions: each form in several wordings, and some that training never uses.

{things}, {others}: red circles; {a_thing}: a red circle; {thing}, {one}, {two}: red circle; {colour}: red;
{relation}: left of; {superlative}: leftmost
"""

from __future__ import annotations

from collections.abc import Mapping

WORDINGS: Mapping[str, tuple[str, ...]] = {
    "count": (
        "how many {things} are there?",
        "how many {things} do you see?",
        "count the {things}.",
        "what is the number of {things} in the picture?",
        "how many {things} does the picture show?",
        "tell me how many {things} there are.",
    ),
    "exist": (
        "is there {a_thing}?",
        "do you see {a_thing}?",
        "does the picture show {a_thing}?",
        "is there {a_thing} in the picture?",
        "can {a_thing} be seen?",
        "does this picture contain {a_thing}?",
    ),
    "exist_stated": (
        "true or false: there is {a_thing}.",
        "true or false? the picture shows {a_thing}.",
        "there is {a_thing} in the picture. true or false?",
        "say true or false: {a_thing} can be seen.",
        "is this true or false: the picture contains {a_thing}?",
        "{a_thing} is in the picture; true or false?",
    ),
    "colour": (
        "what colour is the {thing}?",
        "which colour does the {thing} have?",
        "what is the colour of the {thing}?",
        "name the colour of the {thing}.",
        "the {thing} has which colour?",
        "tell me the colour of the {thing}.",
    ),
    "shape": (
        "what is the {colour} shape?",
        "which shape is {colour}?",
        "what kind of shape is the {colour} one?",
        "name the {colour} shape.",
        "the {colour} thing has which shape?",
        "tell me which shape the {colour} one is.",
    ),
    "size": (
        "is the {thing} large or small?",
        "is the {thing} small or large?",
        "what size is the {thing}, large or small?",
        "how large is the {thing}: large or small?",
        "would you call the {thing} small or large?",
        "tell me whether the {thing} is large or small.",
    ),
    "extreme_colour": (
        "what colour is the {superlative} shape?",
        "which colour does the {superlative} shape have?",
        "name the colour of the {superlative} shape.",
        "what is the colour of the {superlative} shape in the picture?",
        "the {superlative} shape has which colour?",
        "tell me the colour of the {superlative} shape.",
    ),
    "extreme_shape": (
        "what is the {superlative} shape?",
        "which shape is the {superlative} one?",
        "name the {superlative} shape.",
        "what kind of shape is the {superlative} one?",
        "which is the {superlative} shape in the picture?",
        "tell me what the {superlative} shape is.",
    ),
    "more": (
        "are there more {things} than {others}?",
        "do you see more {things} than {others}?",
        "does the picture show more {things} than {others}?",
        "are the {things} more than the {others}?",
        "is the number of {things} greater than that of {others}?",
        "does the picture have more {things} than {others}?",
    ),
    "more_stated": (
        "true or false: there are more {things} than {others}.",
        "there are more {things} than {others}. true or false?",
        "true or false? the picture shows more {things} than {others}.",
        "say true or false: the {things} are more than the {others}.",
        "is this true or false: more {things} than {others} can be seen?",
        "more {things} than {others} are in the picture; true or false?",
    ),
    "as_many": (
        "are there as many {things} as {others}?",
        "do you see as many {things} as {others}?",
        "does the picture show as many {things} as {others}?",
        "is the number of {things} equal to that of {others}?",
        "are {things} and {others} equally many?",
        "does the picture have the same number of {things} and {others}?",
    ),
    "as_many_stated": (
        "true or false: there are as many {things} as {others}.",
        "there are as many {things} as {others}. true or false?",
        "true or false? the picture shows as many {things} as {others}.",
        "say true or false: {things} and {others} are equally many.",
        "is this true or false: as many {things} as {others} can be seen?",
        "as many {things} as {others} are in the picture; true or false?",
    ),
    "which_more": (
        "are there more {things} or more {others}?",
        "which are there more of, {things} or {others}?",
        "do you see more {things} or more {others}?",
        "which are more, the {things} or the {others}?",
        "what does the picture show more of: {things} or {others}?",
        "tell me which are more, {things} or {others}.",
    ),
    "larger": (
        "is the {one} larger than the {two}?",
        "does the {one} look larger than the {two}?",
        "of the {one} and the {two}, is the first larger?",
        "is the {one} of a greater size than the {two}?",
        "compare the {one} with the {two}: is it larger?",
        "would you say that the {one} is larger than the {two}?",
    ),
    "larger_stated": (
        "true or false: the {one} is larger than the {two}.",
        "the {one} is larger than the {two}. true or false?",
        "true or false? the {one} looks larger than the {two}.",
        "say true or false: the {one} is of a greater size than the {two}.",
        "is this true or false: the {one} is larger than the {two}?",
        "larger than the {two} is the {one}; true or false?",
    ),
    "relation": (
        "is the {one} {relation} the {two}?",
        "does the {one} lie {relation} the {two}?",
        "is it {relation} the {two} that you see the {one}?",
        "do you see the {one} {relation} the {two}?",
        "in the picture, is the {one} {relation} the {two}?",
        "would you say that the {one} is {relation} the {two}?",
    ),
    "relation_stated": (
        "true or false: the {one} is {relation} the {two}.",
        "the {one} is {relation} the {two}. true or false?",
        "true or false? {relation} the {two} there is the {one}.",
        "say true or false: the {one} lies {relation} the {two}.",
        "is this true or false: the {one} is {relation} the {two}?",
        "{relation} the {two} is the {one}; true or false?",
    ),
    "direction": (
        "seen from the {two}, where is the {one}: left, right, above or below?",
        "where does the {one} lie beside the {two}, left, right, above or below?",
        "is the {one} to the left, to the right, above or below the {two}?",
        "on which side of the {two} is the {one}: left, right, above or below?",
        "left, right, above or below: where is the {one}, seen from the {two}?",
        "tell me whether the {one} is left, right, above or below the {two}.",
    ),
}
HELD_WORDINGS: Mapping[str, tuple[str, ...]] = {
    "count": ("give the count of {things}.", "the {things} here are how many?"),
    "exist": ("is {a_thing} present?", "would one find {a_thing} here?"),
    "exist_stated": (
        "judge as true or false that {a_thing} is present.",
        "we find {a_thing} here: true, false?",
    ),
    "colour": ("in which colour was the {thing} drawn?", "look at the {thing}: its colour?"),
    "shape": ("what was drawn in {colour}?", "look at what is {colour}: its shape?"),
    "size": (
        "large or small, which of these was the {thing} drawn?",
        "look at the {thing}: small, or large?",
    ),
    "extreme_colour": (
        "in which colour was the {superlative} shape drawn?",
        "look at the {superlative} shape: its colour?",
    ),
    "extreme_shape": ("what was drawn {superlative}?", "look at what is {superlative}: its shape?"),
    "more": ("do {things} outnumber {others}?", "have {others} fewer members here than {things}?"),
    "more_stated": (
        "judge as true or false that {things} outnumber {others}.",
        "we find {things} outnumbering {others}: true, false?",
    ),
    "as_many": (
        "does each of the {things} pair up with one of the {others}?",
        "do {things} equal {others} in count?",
    ),
    "as_many_stated": (
        "judge as true or false that {things} equal {others} in count.",
        "we find {things} equalling {others} in count: true, false?",
    ),
    "which_more": (
        "{things} or {others}, which outnumber the rest?",
        "who outnumber whom: {things} or {others}?",
    ),
    "larger": ("does the {one} exceed the {two} in size?", "was the {one} drawn bigger than the {two}?"),
    "larger_stated": (
        "judge as true or false that the {one} exceeds the {two} in size.",
        "we find the {one} drawn bigger than the {two}: true, false?",
    ),
    "relation": (
        "was the {one} drawn {relation} the {two}?",
        "look for the {one}: is its place {relation} the {two}?",
    ),
    "relation_stated": (
        "judge as true or false that the {one} was drawn {relation} the {two}.",
        "we find the {one} {relation} the {two}: true, false?",
    ),
    "direction": (
        "going from the {two} to the {one}, do we move left, right, above or below?",
        "start at the {two} and find the {one}: left, right, above or below?",
    ),
}
