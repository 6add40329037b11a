"""A checkpoint in, a student folder out, without training."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from ..core.batch import Batch
from ..core.preprocessing import Preprocessing
from ..ecosystems.find import save_model
from ..ecosystems.timm import create_timm
from ..errors import UserError
from ..reporting.model_card import write_model_card
from ..teachers.load import load_teacher
from .convert import convert
from .report import Report, Row
from .subclone import SubcloneConfig

# parameters of `convert` and of what it calls, which a student's options must not take the place of
_NOT_OPTIONS = frozenset(("model", "student", "init", "calibration", "teacher", "name"))


def convert_checkpoint(
    teacher: str,
    out: Path,
    *,
    student: str = "vim",
    data: Any = None,
    init: SubcloneConfig | None = None,
    overwrite: bool = False,
    options: dict[str, Any] | None = None,
) -> Report:
    """Write the student that `teacher` becomes to `out`; its report too (subclone.json).

    data: a task configuration whose training images (no labels) rank coordinates by activation, and which
        init.average looks at; without it evenly spaced coordinates are kept
    init: how the student starts; left out: all layers, and the importance that `data` allows
    teacher: also a hustvl/Vim `.pth`, which is only rewritten as safetensors under `student`'s name (left
        out: that of its width), without `init`

    Raises UserError for whatever cannot be read, met or written; `out` is then as it was.
    """
    _check_place(out, overwrite)
    for name in set(options or ()) & _NOT_OPTIONS:
        raise UserError(f"{name} is no option of a student; leave it out (the student: --student NAME)")
    plain = SubcloneConfig(layers="all", importance="uniform" if data is None else "activation")
    init = init or plain
    if data is None and init.average:
        raise UserError("average looks at images; write whose, such as --data FOLDER")
    model: nn.Module
    preprocessing: Preprocessing | None = None
    if Path(teacher).suffix == ".pth":
        if init != plain:
            raise UserError(f"{teacher} is a Vim already, only rewritten; leave out how a student starts")
        model, report = _rewrite_official(Path(teacher), student, options or {})
    else:
        source = load_teacher(teacher)
        preprocessing = source.preprocessing
        batches: list[Batch] = []
        if data is not None:
            batches = list(data.build(preprocessing).calibration(init.calibration_images, 64))
        model, report = convert(source, student, init=init, calibration=batches, **(options or {}))
    _write(model, out, preprocessing, report, teacher)
    return report


def _check_place(out: Path, overwrite: bool) -> None:
    """Raises UserError where something is lost: without --overwrite anything, with it what is no model."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{out}: is not empty; write another folder, or --overwrite")
    if not (out / "config.json").is_file():
        raise UserError(
            f"{out}: holds no model (no config.json), so it is not overwritten; write another folder"
        )


def _rewrite_official(path: Path, student: str, options: dict[str, Any]) -> tuple[nn.Module, Report]:
    from ..students.vim.names import OFFICIAL
    from ..students.vim.official import checkpoint_filter_fn, read_official_checkpoint

    state = read_official_checkpoint(path)
    classes = state["head.weight"].shape[0] if "head.weight" in state else 1000
    if student in ("vim", "ssd_vit"):
        width = len(state.get("norm_f.weight", ()))
        if student == "ssd_vit" or width not in OFFICIAL:
            raise UserError(
                f"{path} is a Vim of width {width}; write --student and its name "
                f"({', '.join(OFFICIAL.values())}), and embed_dim={width} where that has another width"
            )
        student = OFFICIAL[width]
    model: Any = create_timm(student, pretrained=False, **{"num_classes": classes, **options})
    if not hasattr(model, "cls_position"):
        raise UserError(
            f"{path} is a Vim; write --student vim_tiny_patch16_224, _small or _base, not {student}"
        )
    try:
        model.load_state_dict(checkpoint_filter_fn(state, model))
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{path} does not fit {student}: {first}; choose the size it was trained as"
        ) from error
    parameters = dict(model.named_parameters())
    rows = [Row(name, name, "copied", tuple(p.shape), p.numel()) for name, p in parameters.items()]
    return model, Report(rows=rows, total=sum(p.numel() for p in parameters.values()))


def _write(
    model: nn.Module, out: Path, preprocessing: Preprocessing | None, report: Report, teacher: str
) -> None:
    """All or nothing: written beside `out`, then moved there; what was there is gone only after that."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".converting-", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    try:
        save_model(model, partial, preprocessing)
        report.save(partial / "subclone.json")
        write_model_card(partial, results={}, config={"teacher": {"name": "auto", "model": teacher}})
        partial.chmod(0o755)
        _replace(partial, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(new: Path, out: Path) -> None:
    """Move `new` to `out`; where that fails, `out` is what it was. Raises OSError."""
    if not out.exists():
        new.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=".replaced-", dir=out.parent))
    try:
        old = out.rename(aside / out.name)
        try:
            new.rename(out)
        except OSError:
            old.rename(out)
            raise
    except OSError:
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
