"""PEFT's own LoRA and DoRA on a model of ours, Transformer or student: what adapters made for Mamba are
compared with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from ..errors import UserError
from .coverage import refuse_dead
from .student import Tuned


@dataclass(frozen=True)
class StockCoverage:
    """trained: parameters; parameters: of the base; layers: that are adapted"""

    kind: str
    trained: int
    parameters: int
    layers: int

    def __str__(self) -> str:
        share = self.trained / max(1, self.trained + self.parameters)
        return (
            f"PEFT's {self.kind} on {self.layers} layers: {self.trained:,} parameters are trained, "
            f"{share:.3%} of all with the base's {self.parameters:,}"
        )


class StockTuned(Tuned):
    """A student with PEFT's own adapter."""

    merges, chooses = True, False

    def __init__(self, model: Any, kind: str) -> None:
        super().__init__(model)
        self.kind = kind

    def coverage(self) -> StockCoverage:  # type: ignore[override]
        trained = [p.numel() for p in self.student.parameters() if p.requires_grad]
        layers = sum(hasattr(module, "lora_A") for module in self.student.modules())
        whole = sum(tensor.numel() for tensor in self.base_state().values())
        return StockCoverage(self.kind, sum(trained), whole, layers)

    def check(self, output: Any) -> None:
        if not any(tensor.requires_grad for tensor in output):
            raise UserError(
                "no gradient reaches any lora_A or lora_B: what they adapt is not run as a module"
            )
        refuse_dead(self.student, output, mark=".lora_")

    def save(self, folder: Path) -> None:
        made = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(made, ignore_errors=True)
        self.model.save_pretrained(str(made), save_embedding_layers=False)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)

    def base_state(self) -> dict[str, Tensor]:
        """With the adapter in it: copies."""
        return self.plain().state_dict()

    def onto(self, stock: Any, called: Callable[[str], str] = str) -> Any:
        return stock


def tune_stock(student: Any, stock: Any, whole: tuple[str, ...], base: str | None) -> StockTuned:
    """Put PEFT's own adapter on a student, in place. Raises UserError for targets that it has not.

    stock: a recipe's, `runs.adapter.Stock`
    whole: modules that are trained whole beside it
    base:  where the student was loaded from
    """
    linear = [name for name, module in student.named_modules() if isinstance(module, nn.Linear)]
    for target in stock.targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise UserError(
                f"adapter.stock.targets: {target!r} is no linear layer; known: {', '.join(known)}"
            )
    alpha: Any = stock.r if stock.alpha is None else stock.alpha
    config = LoraConfig(
        r=stock.r,
        lora_alpha=alpha,
        lora_dropout=stock.dropout,
        target_modules=list(stock.targets),
        use_dora=stock.kind == "dora",
        modules_to_save=list(whole) or None,
    )
    try:
        model: Any = get_peft_model(student, config)
    except ValueError as error:  # PEFT refuses a target of some models
        raise UserError(f"adapter.stock: PEFT refuses it ({' '.join(str(error).split())})") from error
    config.base_model_name_or_path = base
    student.tuned = StockTuned(model, stock.kind)
    return student.tuned
