"""Windows that drop out in training: how likely, of what it follows, and that nothing else does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hybrids import llama, texts
from test_window_mamba import batch_of, both, logits

from transmamba import adapt_teacher
from transmamba.config.registry import LOSSES
from transmamba.core.batch import Batch
from transmamba.core.output import Capture, Context
from transmamba.distillation.distiller import Distiller
from transmamba.reporting.tracking import Tracker
from transmamba.students.hybrid_lm.model import HybridStudent
from transmamba.training.interrupted import Interrupted
from transmamba.training.optimizer import set_pace
from transmamba.training.stage import Stage, TrainerConfig
from transmamba.training.trainer import Trainer


def test_windows_drop_out_less_and_less() -> None:
    """A window that does is one of a single token; what is drawn follows from the seed and the stage's step
    alone, and nothing is where nothing is trained."""
    model, text = llama(), texts(2, 30)
    student = both(model, window_dropout=0.8).train()
    stage, seen = Stage(losses=("kl",), steps=10), {}
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    single = both(model, window=1)
    single.load_state_dict(student.state_dict())
    for step in (0, 5, 9, 5):
        set_pace(optimizer, student, stage, step, 10)
        for k in range(3):
            assert student.layer(k).self_attn.dropped == pytest.approx(0.8 * (1 - step / 10))
        torch.manual_seed(3)
        made = logits(student, text)
        assert torch.equal(seen.setdefault(step, made), made)
    assert optimizer.param_groups[0]["lr"] < stage.lr and not torch.equal(seen[0], seen[9])
    student.layer(0).dropped(1.0)
    hidden = torch.randn(1, 30, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made, wanted = (each.mixer(0, hidden, Context(), Capture())[0] for each in (student, single))
        assert torch.equal(made, wanted)
        assert torch.equal(logits(student.eval(), text), logits(both_of(student), text))


def trained(folder: Path, stop_at: int | None = None) -> HybridStudent:
    """After six steps of a run in `folder`, or of one that was stopped there and goes on."""
    torch.manual_seed(0)
    student, stop = both(llama(), window_dropout=0.5), threading.Event()

    def batches(start: int, count: int, _: int) -> Iterator[Batch]:
        for step in range(start, count):
            if step == stop_at:
                stop.set()
            yield batch_of(texts(2, 20, seed=step))

    config = TrainerConfig(global_batch=2, log_every=1, save_every=0)
    with Tracker(folder, quiet=True) as tracker:
        trainer = Trainer(
            Accelerator(cpu=True),
            config,
            folder,
            tracker,
            batches=batches,
            change=lambda batch, *_: batch,
            stop=stop,
        )
        trainer.resume()
        stage = Stage(losses=(LOSSES["mixer"](),), steps=6, lr=1e-2)
        teacher = adapt_teacher(llama())
        trainer.run(lambda _: Distiller(student, teacher, stage.losses), [(stage, 6)])
    return student


def test_a_resumed_run_drops_the_same_windows(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole")
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", stop_at=2)
    again = trained(tmp_path / "cut")
    found = dict(again.named_parameters())
    assert all(torch.equal(found[name], p) for name, p in whole.named_parameters())
    assert whole.layer(0).self_attn.dropped == pytest.approx(0.5 / 6), "told before the last step"


def both_of(student: HybridStudent) -> HybridStudent:
    """The same without dropout."""
    plain = both(llama())
    plain.load_state_dict(student.state_dict())
    return plain
