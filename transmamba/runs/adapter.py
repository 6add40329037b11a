"""A recipe's `adapter`: what is trained of a student that is there, and stays beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from ..config.load import Part, dump
from ..config.registry import METHODS
from ..core.tower import Student, run_plain
from ..ecosystems.folders import let_read
from ..errors import UserError, refuse_all

# of a run: PEFT's own files
ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True, kw_only=True)
class Stock:
    """kind: lora (arXiv 2106.09685), or dora (2402.09353), which trains the size of each output apart
    targets: ends of the names of linear layers, such as in_proj, or a Transformer's qkv
    r:       the rank
    alpha:   the product is multiplied by alpha / r; none for r, that is by 1
    dropout: of what is read
    """

    kind: Literal["lora", "dora"] = "lora"
    targets: tuple[str, ...] = ()
    r: int = 8
    alpha: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        problems = [] if self.targets else ["targets is empty; name linear layers, such as in_proj"]
        if self.r < 1:
            problems.append(f"r is {self.r}; write a whole number of at least 1")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout}; write 0 or a number below 1")
        refuse_all(problems)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Only this is trained; the student stays as it is. RUN/adapter has PEFT's own files.

    methods: what is trained: names, or mappings of a name and options (docs/peft.md has all), among them
        `rate` and `decay`, by which the stage's rate and weight decay are multiplied
    modules: ends of the mixers' names, or none for all of them
    layers: numbers of the layers whose mixers are adapted; none for all
    whole: modules that are trained whole beside them and saved with the adapter, such as `head`
    choice: steps in which `sdt` finds what it trains, by all processes' batches together
    stock: instead of methods PEFT's own LoRA or DoRA, on Transformers too, to compare with
    """

    methods: tuple[Annotated[Any, Part(METHODS)], ...] = ()
    modules: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    whole: tuple[str, ...] = ()
    choice: int = 100
    stock: Stock | None = None

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        problems = [] if names or self.stock else ["methods is empty; name one, such as lora_x"]
        others = [name for name in ("methods", "modules", "layers") if getattr(self, name)]
        if self.stock is not None and others:
            problems.append(f"{others[0]} is given beside stock, which is alone; leave one of them out")
        problems += [
            f"methods has {name!r} twice; write it once"
            for name in sorted(set(names))
            if names.count(name) > 1
        ]
        if self.choice < 1:
            problems.append(f"choice is {self.choice}; write a number of steps, at least 1")
        refuse_all(problems)

    def config(self, methods: list[Any]) -> Any:
        """PEFT's configuration, of these methods on what this adapter is on."""
        from ..peft import MambaPeftConfig

        return MambaPeftConfig(
            methods=methods,
            target_modules=list(self.modules) or None,
            layers_to_transform=list(self.layers) or None,
            modules_to_save=list(self.whole) or None,
        )

    def put_on(self, student: nn.Module, base: str | None) -> None:
        """Adapt a student, in place; it has what `peft.student.Tuned` says as `tuned`. Raises UserError for
        one that cannot take it.

        base: where it was loaded from
        """
        from ..peft.stock import tune_stock
        from ..peft.student import tune

        names = {name for path, _ in student.named_modules() for name in (path, path.rpartition(".")[2])}
        missing = [name for name in self.whole if name not in names]
        if missing:
            raise UserError(f"adapter.whole: {missing[0]!r} is no module of the student")
        if self.stock is not None:
            tune_stock(student, self.stock, self.whole, base)
            return
        config = self.config([dump(method) for method in self.methods])
        tune(student, config, base)


def problems_of(adapter: Adapter | None, recipe: Any) -> list[str]:
    """What of a recipe cannot be with an adapter."""
    if adapter is None:
        return []
    problems, student = [], recipe.student
    # one of a library's may be trained from scratch: as it is, and yet nothing that could be adapted
    if not getattr(student, "as_it_is", False) or not getattr(student, "pretrained", True):
        problems.append(
            f"adapter: student {student.name} begins anew, and an adapter is for one that is there; write "
            "student: {name: saved, model: RUN}"
        )
    if recipe.scratch is not None:
        problems.append("scratch: an adapter is trained on weights that are there; leave scratch out")
    defaults = type(recipe.init)() if recipe.init is not None else None
    if recipe.init not in (None, defaults) and recipe.init != type(recipe.init)(fold=True):
        problems.append("init: a student that is adapted takes nothing from the teacher; write init: null")
    problems += [
        f"stages.{k}.trainable is {stage.trainable!r}, but an adapter is all that is trained; leave it out "
        "(adapter.whole names what is trained beside it)"
        for k, stage in enumerate(recipe.stages)
        if stage.trainable != "auto"
    ]
    problems += [
        f"stages.{k}.rates is {stage.rates}, but an adapter's methods have their own; write them there"
        for k, stage in enumerate(recipe.stages)
        if stage.rates
    ]
    return problems


def begin_adapter(pipeline: Any, tuned: Any, strategy: str, resumed: bool) -> str:
    """Make an adapter ready for its first stage. Returns what it reaches, in a line. Raises UserError where a
    part of it would not learn, and under strategies that spread the weights."""
    if strategy not in ("plain", "ddp"):
        raise UserError(
            f"an adapter is trained under ddp, whose processes have all weights, not {strategy}; launch with "
            "recipes/accelerate/ddp.yaml"
        )
    student, device = pipeline.parts.student, pipeline.accelerator.device
    inputs = next(pipeline.batches(0, 1, 0)).to(device).inputs
    output = student.run(inputs, {}) if isinstance(student, Student) else run_plain(student, inputs)
    logits = [] if output.logits is None else [output.logits()]
    tuned.check([*logits, *output.embeddings.values()])
    if tuned.chooses and not resumed:
        distiller = pipeline.distiller(0).to(device)
        batches = pipeline.batches(0, pipeline.parts.recipe.adapter.choice, 0)
        tuned.choose(partial(_loss, distiller, batch.to(device), k) for k, batch in enumerate(batches))
    return str(tuned.coverage())


def _loss(distiller: Any, batch: Any, step: int) -> Tensor:
    total: Tensor = distiller.loss(batch, step)[0]
    return total


def save_adapter(tuned: Any, folder: Path) -> None:
    """RUN/adapter, written anew."""
    tuned.save(folder / ADAPTER_FOLDER)
    let_read(folder / ADAPTER_FOLDER)
