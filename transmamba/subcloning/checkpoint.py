"""A checkpoint in, a student folder out, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..config.registry import STUDENTS
from ..core.batch import Batch
from ..core.preprocessing import Preprocessing
from ..ecosystems.decoders import is_gguf
from ..ecosystems.find import card_of, save_model
from ..ecosystems.sources import read_source
from ..ecosystems.timm import create_timm
from ..ecosystems.weights import read_weights
from ..errors import UserError
from ..reporting.model_card import write_model_card
from ..teachers.load import load_streamed_teacher, load_teacher
from ..teachers.teacher import Teacher
from .convert import convert
from .place import check_apart, check_place, written_to
from .report import Report, Row
from .subclone import SubcloneConfig

# parameters of `convert` and of what it calls, which a student's options must not take the place of
_NOT_OPTIONS = frozenset(("model", "student", "init", "calibration", "teacher", "name"))


def convert_checkpoint(
    teacher: str,
    out: Path,
    *,
    student: str = "vim",
    architecture: str | None = None,
    data: Any = None,
    init: SubcloneConfig | None = None,
    overwrite: bool = False,
    options: dict[str, Any] | None = None,
) -> Report:
    """Write the student that `teacher` becomes to `out`; its report too (subclone.json).

    data: a task configuration whose training images (no labels) rank coordinates by activation, and which
        init.average looks at; without it evenly spaced coordinates are kept
    init: how the student starts; left out: all layers, and the importance that `data` allows
    teacher: also a file of weights, whose model `architecture` (a timm name) tells; or one of hustvl/Vim,
        which is only rewritten as safetensors under `student`'s name (left out: that of its width), without
        `init`
    overwrite: replace the model in `out`; files beside it that are not a model's stay

    A language model's student has its precision and is filled block by block: in memory are the student and
    one of the teacher's blocks, each of which is read twice, the second time to run some text.

    Raises UserError for whatever cannot be read, met or written; `out` is then as it was.
    """
    check_apart(teacher, out)
    check_place(out, overwrite)
    for name in set(options or ()) & _NOT_OPTIONS:
        raise UserError(f"{name} is no option of a student; leave it out (the student: --student NAME)")
    plain = SubcloneConfig(layers="all", importance="uniform" if data is None else "activation")
    init = init or plain
    if data is None and init.average:
        raise UserError("average looks at images; write whose, such as --data FOLDER")
    model: nn.Module
    preprocessing: Preprocessing | None = None
    if _is_vim(teacher, architecture):
        if init != plain:
            raise UserError(f"{teacher} is a Vim already, only rewritten; leave out how a student starts")
        model, report = _rewrite_official(Path(teacher).expanduser(), student, options or {})
    else:
        source = _teacher(teacher, architecture, student)
        preprocessing = source.preprocessing
        batches: list[Batch] = []
        if data is not None:
            build = data.build_training if hasattr(data, "build_training") else data.build
            batches = list(build(preprocessing).calibration(init.calibration_images, 64))
        model, report = convert(source, student, init=init, calibration=batches, **(options or {}))
    with written_to(out) as folder:
        save_model(model, folder, preprocessing)
        report.save(folder / "subclone.json")
        config = {"teacher": {"name": "auto", "model": teacher}}
        card = card_of(model)
        assert card is not None, "its library has saved it"
        write_model_card(folder, card, results={}, config=config)
    return report


def _teacher(name: str, architecture: str | None, student: str) -> Teacher:
    """Its blocks stay in their files where the student takes from one after the other."""
    if student in STUDENTS and getattr(STUDENTS[student], "streams", False):
        if architecture is not None:
            raise UserError(f"architecture {architecture} is of an image model; leave it out")
        if (streamed := load_streamed_teacher(name)) is not None:
            return streamed
    return load_teacher(name, architecture)


def _is_vim(teacher: str, architecture: str | None) -> bool:
    """Whether it is a checkpoint of hustvl/Vim. Raises UserError for a file that is no checkpoint."""
    path = Path(teacher).expanduser()
    # a GGUF says whose its weights are, and torch does not read it
    if architecture is not None or not path.is_file() or is_gguf(read_source(teacher)):
        return False
    return "layers.0.mixer.A_b_log" in read_weights(path)


def _rewrite_official(path: Path, student: str, options: dict[str, Any]) -> tuple[nn.Module, Report]:
    """A hustvl/Vim checkpoint as a model of ours: the same numbers, but for what `options` of another size
    resample, and the report says so."""
    from ..students.vim.names import OFFICIAL
    from ..students.vim.official import checkpoint_filter_fn, read_official, shape_of_official

    state, args = read_official(path)
    classes = state["head.weight"].shape[0] if "head.weight" in state else 1000
    if student in ("vim", "ssd_vit"):
        width = len(state.get("norm_f.weight", ()))
        if student == "ssd_vit" or width not in OFFICIAL:
            raise UserError(
                f"{path} is a Vim of width {width}; write --student and its name "
                f"({', '.join(OFFICIAL.values())}), and embed_dim={width} where that has another width"
            )
        student = OFFICIAL[width]
    shape = shape_of_official(path, state, args, options)
    model: Any = create_timm(student, pretrained=False, **{"num_classes": classes, **shape, **options})
    if not hasattr(model, "cls_position"):
        raise UserError(
            f"{path} is a Vim; write --student vim_tiny_patch16_224, _small or _base, not {student}"
        )
    fitted = checkpoint_filter_fn(state, model)
    try:
        model.load_state_dict(fitted)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{path} does not fit {student}: {first}; choose the size it was trained as"
        ) from error
    parameters = dict(model.named_parameters())
    rows = [
        Row(name, name, "copied" if fitted[name] is state[name] else "resampled", tuple(p.shape), p.numel())
        for name, p in parameters.items()
    ]
    return model, Report(rows=rows, total=sum(p.numel() for p in parameters.values()))
