"""Two processes that choose what `sdt` trains choose what one does that reads the batches of both."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import harness
import pytest
import torch
from torch import Tensor

from transmamba.ecosystems.find import save_model
from transmamba.errors import UserError
from transmamba.runs.recipe import Recipe

METHODS = [{"name": "sdt", "channels": 0.2, "states": 0.4}]


def recipe_of(folder: Path, name: str, batch: int) -> Recipe:
    return harness.tiny_recipe(
        folder,
        output_dir=str(folder / name),
        teacher=None,
        student=dict(name="saved", model=str(folder / "student")),
        init=None,
        adapter=dict(methods=METHODS, choice=6),
        stages=[dict(name="tune", losses=["cross_entropy"], steps=4, lr=3e-3)],
        trainer__micro_batch=batch,
    )


def noted(recipe: Recipe, folder: Path, name: str) -> None:
    """Runs; each rank writes what its student holds of the adapter in the end."""
    import transmamba.runs.pipeline

    real = transmamba.runs.pipeline.Pipeline.train

    def train(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        made = real(self, *args, **kwargs)
        state = self.parts.student.state_dict()
        held = {key: tensor.clone() for key, tensor in state.items() if ".transmamba_adapters." in key}
        torch.save(held, folder / f"{name}{os.environ.get('RANK', '')}.pt")
        return made

    transmamba.runs.pipeline.Pipeline.train = train  # type: ignore[method-assign]
    harness.run_quietly(recipe)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """Of both ranks, and of one process."""
    folder = tmp_path_factory.mktemp("sdt")
    harness.tiny_recipe(folder)
    save_model(harness.tiny_student(), folder / "student")
    harness.finish(harness.start(noted, recipe_of(folder, "one", 4), folder, "one"))
    harness.in_ranks(2, noted, recipe_of(folder, "two", 2), folder, "two")
    return [torch.load(folder / f"{name}.pt") for name in ("two0", "two1", "one")]


def test_all_processes_train_the_same_numbers(held: list[dict[str, Tensor]]) -> None:
    first, second, _ = held
    assert first.keys() == second.keys() and len(first) > 20
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_they_are_those_of_one_process(held: list[dict[str, Tensor]]) -> None:
    first, _, one = held
    chosen = [key for key in one if not one[key].is_floating_point()]
    assert chosen and [key for key in chosen if not torch.equal(first[key], one[key])] == []
    for key in one:
        torch.testing.assert_close(first[key], one[key], atol=1e-4, rtol=2e-3)


def failing(folder: Path) -> None:
    """Rank 1 has no gradient in its second loss; each writes what it was told."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "peft"))
    import peft_models as tiny

    from transmamba.peft.sdt import choose

    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = torch.distributed.get_rank()
    adapted, ids = tiny.adapted("mamba", ["sdt"], trained=False), tiny.words(seed=rank)

    def good() -> Tensor:
        return adapted(ids, labels=ids, use_cache=False).loss

    try:
        choose(adapted, [good, (lambda: torch.zeros(())) if rank else good, good])
    except UserError as error:
        (folder / f"said{rank}").write_text(str(error))
    torch.distributed.destroy_process_group()


def test_one_that_fails_ends_the_others(tmp_path: Path) -> None:
    harness.in_ranks(2, failing, tmp_path)
    first, second = [(tmp_path / f"said{rank}").read_text() for rank in (0, 1)]
    assert first.startswith("sdt cannot choose: another process failed at its loss")
    assert second.startswith("sdt cannot choose: no gradient of a loss reaches")
