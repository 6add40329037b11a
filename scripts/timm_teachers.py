"""Which of timm's vision transformers are teachers, and why the others are none; no weights are made.

python scripts/timm_teachers.py ["vit_*" ...]     (without patterns: every family of plain blocks)
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Sequence

import timm

from transmamba.errors import UserError
from transmamba.teachers.timm_vit import check_known

FAMILIES = (
    "vit_*",
    "deit*",
    "eva*",
    "flexivit*",
    "aimv2*",
    "beit*",
    "vitamin*",
    "naflexvit*",
    "samvit*",
    "swin*",
)


def sorted_out(patterns: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The names that are teachers, and the others by what is said of them."""
    known, refused = [], defaultdict(list)
    for name in sorted({name for pattern in patterns for name in timm.list_models(pattern)}):
        try:
            check_known(name)
            known.append(name)
        except UserError as error:
            refused[re.sub(r"block \d+", "block", str(error))].append(name)
    return known, dict(refused)


def main(patterns: Sequence[str]) -> None:
    known, refused = sorted_out(patterns or FAMILIES)
    print(f"{len(known)} of {len(known) + sum(map(len, refused.values()))} names are teachers")
    for why, names in sorted(refused.items(), key=lambda item: -len(item[1])):
        print(f"{len(names):4} {why}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}")


if __name__ == "__main__":
    main(sys.argv[1:])
