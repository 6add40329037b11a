"""What is asked of a search, and the folder that says it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..config import load as configs
from ..errors import UserError, refuse_all, suggest
from ..peft.search.space import SIZES
from ..peft.search.study import Sampler
from .folder import differences
from .recipe import Recipe
from .withdrawn import Before, before

SETTINGS = "search.json"


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is asked.

    trials:  of each step
    budget:  largest number of trained parameters, or a share of the student's, such as `0.5%`; None: any
    methods: what is searched among; none named: all that the student takes
    sampler: `tpe`, or `random` to compare with
    """

    trials: int = 100
    budget: str | None = None
    seed: int = 0
    sampler: Sampler = "tpe"
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = [] if self.trials >= 1 else [f"trials is {self.trials}; write at least 1"]
        for name in self.methods:
            if name not in SIZES:
                problems.append(f"methods: {name!r} is not searched{suggest(name, SIZES)}")
        if self.budget is not None:
            text = self.budget.removesuffix("%")
            number = float(text) if text.replace(".", "", 1).isdigit() else 0.0
            if not number or (text == self.budget and not text.isdigit()):
                problems.append(
                    f"budget is {self.budget!r}; write a number of parameters above 0, or a share: 0.5%"
                )
        refuse_all(problems)

    def limit(self, parameters: int) -> int | None:
        """The budget in parameters, of a student with so many."""
        if self.budget is None:
            return None
        return (
            int(float(self.budget[:-1]) / 100 * parameters) if self.budget.endswith("%") else int(self.budget)
        )


def claim(folder: Path, recipe: Recipe, search: Search) -> Before:
    """Make the folder this search's, or find that it is; what lay there before. Raises UserError for
    another's."""
    asked = json.loads(json.dumps({"search": configs.dump(search), "recipe": configs.dump(recipe)}))
    path = folder / SETTINGS
    if path.is_file():
        try:
            there = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); search in another folder") from None
        same = {
            **there,
            "search": {**there.get("search", {}), "trials": search.trials},
        }  # more may be asked for
        if changes := list(differences(same, asked)):
            raise UserError(
                f"{folder} holds another search ({'; '.join(changes[:3])}); name another folder: --output"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something that is no search; name another folder: --output")
    there = before(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked, indent=1) + "\n")
    return there
