"""A student with an adapter, as it is trained, saved and loaded here: the student itself, whose mixers are
wrapped, and beside it (`student.tuned`) what must be known of that.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from ..errors import UserError
from .config import MambaPeftConfig
from .coverage import Coverage, refuse_dead
from .layer import CONTAINER
from .merge import layers_of
from .methods.method import Method
from .peft_type import NAME
from .sdt import choose
from .seed import bake

FILES = ("adapter_config.json", "adapter_model.safetensors")
DEFAULT = "default"


class Tuned:
    """model: PEFT's, around the student"""

    def __init__(self, model: PeftModel) -> None:
        self.model: Any = model
        self.scales = scales_of(model)
        self.merge_seconds: float | None = None  # of the last time that it was merged

    @property
    def student(self) -> nn.Module:
        student: nn.Module = self.model.get_base_model()
        return student

    @property
    def merges(self) -> bool:
        """Whether the student's own weights can hold the adapter."""
        try:
            self.model.base_model._check_merge(None)
        except UserError:
            return False
        return True

    @property
    def chooses(self) -> bool:
        """Whether something must be chosen before it is trained, see `choose`."""
        return any(part.name == "sdt" for part in self.model.peft_config[DEFAULT].parts)

    def choose(self, losses: Any) -> None:
        choose(self.student, losses)

    def coverage(self) -> Coverage:
        found: Coverage = self.model.coverage()
        return found

    def check(self, output: Any) -> None:
        """Raises UserError where no gradient of a pass's tensors reaches a part of the adapter."""
        refuse_dead(self.student, output)

    # --- files ---

    def save(self, folder: Path) -> None:
        """PEFT's files of the adapter alone, which take the place of what is there."""
        bake(self.model)
        made = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(made, ignore_errors=True)
        self.model.save_pretrained(
            str(made), save_embedding_layers=False
        )  # what is trained whole is saved all the same
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)

    def plain(self) -> nn.Module:
        """A copy of the student without wrappers: with the adapter in its weights where they can hold it."""
        model = copy.deepcopy(self.model)
        if self.merges:
            began = time.perf_counter()
            student = model.merge_and_unload()
            self.merge_seconds = time.perf_counter() - began
        else:
            student = model.unload()
        del student.tuned
        return student

    def facts(self) -> dict[str, float]:
        """What a run's results say of it: parameters that are trained, and seconds of a merge, which is of
        Python's work alone where the weights are small."""
        trained = sum(p.numel() for p in self.student.parameters() if p.requires_grad)
        merged = {} if self.merge_seconds is None else {"merge_seconds": self.merge_seconds}
        return {"trained": trained, **merged}

    def save_beside(self, folder: Path) -> None:
        """The adapter's two files into a student's folder, for `put_on`."""
        self.save(folder / "adapter.saving")
        for name in FILES:
            (folder / "adapter.saving" / name).replace(folder / name)
        shutil.rmtree(folder / "adapter.saving")

    # --- transformers' model of the same tensors ---

    def base_state(self) -> dict[str, Tensor]:
        """The student's own tensors by their own names, not copies; those trained whole as they are now."""
        state, found = self.student.state_dict(keep_vars=True), {}
        for name, tensor in state.items():
            if f".{CONTAINER}." in name or ".modules_to_save." in name:
                continue
            trained = name.replace(".original_module.", f".modules_to_save.{DEFAULT}.")
            plain = name.replace(".base_layer.", ".").replace(".original_module.", ".")
            found[plain] = state.get(trained, tensor)
        return found

    def onto(self, stock: Any, called: Callable[[str], str] = str) -> Any:
        """The same adapter, its tensors too, on a model in which a module has the name that `called` says."""
        config = MambaPeftConfig(methods=self.model.peft_config[DEFAULT].methods, inference_mode=True)
        theirs = {called(name): layer for name, layer in layers_of(self.student).items()}
        config.target_modules = [name for name, layer in theirs.items() if layer.family.on == "mixer"] or None
        get_peft_model(stock, config)
        for name, layer in layers_of(stock).items():
            layer.transmamba_adapters[DEFAULT] = theirs[name].transmamba_adapters[DEFAULT]
        return stock


def scales_of(model: Any) -> dict[str, tuple[float, float] | None]:
    """Of each of the student's parameters that is trained, what the optimizer's rate and weight decay are
    multiplied by; None for those that are trained whole."""
    student = model.get_base_model()
    multipliers: dict[int, tuple[float, float]] = {}
    for layer in layers_of(student).values():
        for method in layer.methods.get(DEFAULT, ()):
            for tensor, value in layer.transmamba_adapters[DEFAULT].of(method).items():
                multipliers[id(value)] = method.rate, method.decay_of(tensor)
    return {name: multipliers.get(id(p)) for name, p in student.named_parameters() if p.requires_grad}


def refuse_apart(student: nn.Module, methods: Sequence[Method]) -> None:
    """Raises UserError for methods that stay beside the weights, on a student that is saved without them."""
    stuck = [method.name for method in methods if not method.merges]
    if stuck and getattr(student, "merged_alone", False):
        raise UserError(
            f"adapter: {', '.join(stuck)} cannot be merged, and this student is saved under names of "
            "transformers' that an adapter beside it would not fit; write some that merge, such as lora_x"
        )


def tune(student: Any, config: MambaPeftConfig, base: str | None = None) -> Tuned:
    """Adapt a student in place. Raises UserError for one that cannot take it.

    base: where it was loaded from, which the adapter's files name
    """
    refuse_apart(student, config.parts)
    model: Any = get_peft_model(student, config)
    config.base_model_name_or_path = base
    student.tuned = Tuned(model)
    return student.tuned


def put_on(student: Any, folder: Path) -> None:
    """The adapter whose files lie beside a student's weights, in place; none of ours: nothing. Raises
    UserError where it is another student's."""
    if not is_adapter(folder):
        return
    model: Any = PeftModel.from_pretrained(student, str(folder))
    student.tuned = Tuned(model)
    student.eval()


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter of ours. Raises UserError where its configuration is damaged."""
    path = folder / FILES[0]
    if not path.is_file():
        return False
    try:
        values: Mapping[str, Any] = json.loads(path.read_text())
        return values.get("peft_type") == NAME
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error})") from None


__all__ = ["Tuned", "is_adapter", "put_on", "refuse_apart", "tune"]
