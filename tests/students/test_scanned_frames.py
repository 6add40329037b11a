"""Image towers that scan all frames of a video: a picture's weights inflate, the order of frames counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fresh_process
import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_clip import made
from torch import Tensor

from transmamba import load_student, save_student
from transmamba.core.layout import Grid
from transmamba.core.tower import StudentSpec, run_plain
from transmamba.ecosystems.find import save_model
from transmamba.errors import UserError
from transmamba.students.clip.names import Clip, ImageTower, OpenClipModel
from transmamba.students.frames import _say_resampled, resampled
from transmamba.subcloning.convert import carry
from transmamba.subcloning.subclone import SubcloneConfig, subclone
from transmamba.teachers.load import adapt_teacher

pytest.importorskip("open_clip", reason="needs open_clip")

KINDS = ("vim", "ssd_vit", "vit")
TIMM: dict[str, dict[str, Any]] = {
    "vim": {},
    "vim, mean": dict(global_pool="avg"),
    "vim, centred": dict(pre_norm="centred"),
    "ssd_vit": {},
    "ssd_vit, attention kept": dict(attention_layers=[1]),
    "ssd_vit, mean": dict(global_pool="avg", class_token=False),
    "ssd_vit, attention pool, registers": dict(global_pool="map", reg_tokens=2),
}


def videos(frames: int = 4, channels: int = 3, side: int = 16) -> Tensor:
    return torch.randn(2, frames, channels, side, side, generator=torch.Generator().manual_seed(3))


def spread(tower: Any) -> None:
    """Temporal positions as training may leave them."""
    with torch.no_grad():
        tower.temporal_pos_embedding.normal_(generator=torch.Generator().manual_seed(5))


def converted(kind: Any, folder: Path) -> Any:
    """A converted CLIP, saved in the folder."""
    teacher = adapt_teacher(made())
    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing)
    student: Any = Clip(image=ImageTower(kind=kind)).build(spec)
    carry(student, teacher)
    subclone(student, teacher, SubcloneConfig(importance="uniform"))
    save_model(student, folder, teacher.preprocessing)
    return student.eval()


@pytest.fixture(params=KINDS)
def image_student(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    return converted(request.param, tmp_path / "image"), tmp_path / "image"


def inflated(folder: Path, num_frames: int = 4) -> Any:
    return (
        OpenClipModel(model=str(folder), pretrained=True, num_frames=num_frames).build(StudentSpec()).eval()
    )


@torch.no_grad()
def test_one_frame_is_the_picture_and_every_image_weight_inflates(image_student: tuple[Any, Path]) -> None:
    image, folder = image_student
    video, frames = inflated(folder), videos()
    wanted = image.run({"image": frames[:, 0]}, {}).embeddings["image"]
    for inputs in ({"frames": frames[:, :1]}, {"image": frames[:, 0]}):
        assert (run_plain(video, inputs).embeddings["image"] - wanted).abs().max() < 1e-6
    mine, theirs = video.state_dict(), image.state_dict()
    assert mine.keys() - theirs.keys() == {"visual.trunk.temporal_pos_embedding"}
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert not video.visual.trunk.temporal_pos_embedding.any()


@torch.no_grad()
def test_the_scan_sees_the_order_of_frames_and_the_mean_does_not(image_student: tuple[Any, Path]) -> None:
    _, folder = image_student
    video, frames = inflated(folder), videos()
    spread(video.visual.trunk)
    other = frames[:, [2, 0, 3, 1]]

    def change(model: Any) -> float:
        one, two = (run_plain(model, {"frames": x}).embeddings["image"] for x in (frames, other))
        return (one - two).abs().max().item()

    assert change(video) > 1e-3
    mean = OpenClipModel(model=str(folder), pretrained=True).build(StudentSpec()).eval()
    assert change(mean) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("name", TIMM)
def test_a_tower_is_a_slow_loop_over_frames(
    name: str, make_student: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embedded one by one with their temporal position, their tokens one after another through the layers,
    read as pictures are, averaged."""
    kind = name.partition(",")[0]
    model = make_student(f"{kind}_tiny_patch16_224", num_frames=3, **TIMM[name])
    spread(model)
    frames = videos(3, channels=1, side=32)
    stages = model.layers if kind == "vim" else model.blocks
    embedded: list[Tensor] = []
    hook = stages[0].register_forward_pre_hook(lambda module, args: embedded.append(args[0]))
    for time in range(3):
        # the positions of a tower made for this frame alone are those of one frame
        with monkeypatch.context() as patch:
            only = model.temporal_pos_embedding[:, time : time + 1]
            patch.setitem(model._parameters, "temporal_pos_embedding", torch.nn.Parameter(only))
            model(frames[:, time])
    hook.remove()
    x = torch.cat(embedded, dim=1)
    for layer in stages:
        x = layer(x)[0] if kind == "vim" else layer(x)
    x = model.norm_f(x) if kind == "vim" else model.norm(x)
    length = embedded[0].shape[1]
    with monkeypatch.context() as patch:
        patch.setitem(model._parameters, "temporal_pos_embedding", None)
        read = partial(model.forward_head, pre_logits=True) if kind == "vim" else model.pool
        mean = sum(read(x[:, t * length : (t + 1) * length]) for t in range(3)) / 3
    wanted = model.head(mean if kind == "vim" else model.fc_norm(mean))
    assert (model(frames) - wanted).abs().max() < 1e-5
    assert isinstance(model.layout, Grid) and model.run({"image": frames[:, 0]}, {}).logits is not None


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_every_way_through_a_tower_reads_a_picture_alike(kind: str, make_student: Callable[..., Any]) -> None:
    model = make_student(f"{kind}_tiny_patch16_224", num_frames=4)
    spread(model)
    frames = videos(1, channels=1, side=32)
    wanted = model(frames[:, 0])
    assert torch.allclose(model(frames), wanted, atol=1e-6)
    assert torch.allclose(model.run({"image": frames[:, 0]}, {}).logits(), wanted, atol=1e-6)
    final, _ = model.forward_intermediates(frames[:, 0])
    assert torch.allclose(model.forward_head(final), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="maps are made of pictures"):
        model.forward_intermediates(frames)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vim", "ssd_vit"])
def test_other_numbers_of_frames_have_positions_between(
    kind: str, make_student: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    positions = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
    assert resampled(positions, 2).flatten().tolist() == [0.5, 2.5]
    assert resampled(positions, 1).flatten().tolist() == [1.5]
    assert resampled(positions, 4) is positions
    model = make_student(f"{kind}_tiny_patch16_224", num_frames=4)
    spread(model)
    frames = videos(8, channels=1, side=32)
    _say_resampled.cache_clear()
    before = model(frames)
    assert "videos of 8 frames go to a tower made for 4" in caplog.text
    model.set_num_frames(8)
    assert model.temporal_pos_embedding.shape == (1, 8, 32) and torch.equal(model(frames), before)


def test_gradients_reach_the_positions_and_they_do_not_decay(make_student: Callable[..., Any]) -> None:
    for kind in ("vim", "ssd_vit"):
        model = make_student(f"{kind}_tiny_patch16_224", num_frames=3)
        model(videos(3, channels=1, side=32))[:, 0].sum().backward()
        assert model.temporal_pos_embedding.grad.abs().amax(dim=2).gt(0).all()
        assert "temporal_pos_embedding" in model.no_weight_decay()
        model.set_grad_checkpointing()
        model.train()
        kept = model.temporal_pos_embedding.grad.clone()
        model.zero_grad()
        model(videos(3, channels=1, side=32))[:, 0].sum().backward()
        assert torch.allclose(model.temporal_pos_embedding.grad, kept, atol=1e-6)


def test_saved_it_gives_the_same_embeddings_in_a_fresh_process(tmp_path: Path) -> None:
    """To the last bit, by open_clip's own loader; made for more frames, it is resampled and saved again."""
    frames, expected = videos(), {}
    for kind in KINDS:
        converted(kind, tmp_path / "image")
        video = inflated(tmp_path / "image")
        spread(video.visual.trunk)
        save_model(video, tmp_path / kind)
        longer = inflated(tmp_path / kind, 6)
        positions = video.visual.trunk.temporal_pos_embedding
        assert torch.equal(longer.visual.trunk.temporal_pos_embedding, resampled(positions, 6))
        save_model(longer, tmp_path / f"{kind}_6")
        with torch.no_grad():
            expected |= {kind: video.encode_image(frames), f"{kind}_6": longer.encode_image(frames)}
    torch.save({"frames": frames, "expected": expected}, tmp_path / "case.pt")
    code = f"""
import torch, transmamba, open_clip
case = torch.load({str(tmp_path / "case.pt")!r})
for name, wanted in case["expected"].items():
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/{{name}}")
    with torch.no_grad():
        assert torch.equal(model.eval().encode_image(case["frames"]), wanted), name
print("alike")
"""
    done = fresh_process.run(code)
    assert done.stdout.strip().endswith("alike"), done.stderr[-2000:]


def test_as_a_timm_model_it_is_saved_too(make_student: Callable[..., Any], tmp_path: Path) -> None:
    model = make_student("vim_tiny_patch16_224")
    model.set_num_frames(3)
    spread(model)
    save_student(model, tmp_path / "student")
    by_timm = timm.create_model(f"local-dir:{tmp_path}/student", pretrained=True)
    for again in (load_student(tmp_path / "student"), by_timm):
        frames = videos(3, channels=1, side=32)
        with torch.no_grad():
            assert torch.equal(again.eval()(frames), model(frames))


def test_what_cannot_scan_is_refused_in_one_line(
    image_student: tuple[Any, Path], tmp_path: Path, make_student: Callable[..., Any]
) -> None:
    save_model(made(), tmp_path / "clip")
    with pytest.raises(
        UserError, match=r"num_frames 4: this image tower reads a video frame by frame"
    ) as error:
        inflated(tmp_path / "clip")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="num_frames 1: write at least 2"):
        OpenClipModel(model="x", num_frames=1)
    with pytest.raises(ValueError, match="call set_num_frames first"):
        make_student("vim_tiny_patch16_224")(videos(channels=1, side=32))
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match=f"num_frames is {wrong}; write a whole number"):
            make_student("vim_tiny_patch16_224", num_frames=wrong)
    with pytest.raises(ValueError, match="without dynamic_img_size and patch_drop_rate"):
        make_student("ssd_vit_tiny_patch16_224", num_frames=2, patch_drop_rate=0.5)


def test_a_few_steps_learn_which_frame_comes_first(tmp_path: Path) -> None:
    """Videos of the same two pictures in both orders: the scan tells them apart, the mean cannot."""
    teacher = adapt_teacher(made())
    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing)
    losses = {}
    for num_frames in (1, 2):
        torch.manual_seed(0)
        student: Any = Clip(image=ImageTower(kwargs={"num_frames": num_frames, "depth": 2})).build(spec)
        one = videos(2)[:1]
        frames, wanted = torch.cat([one, one.flip(1)]), F.normalize(torch.eye(2, 8), dim=-1)
        optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
        for _ in range(40):
            made_ = student.run({"frames": frames}, {}).embeddings["image"]
            loss = F.cross_entropy(20 * made_ @ wanted.T, torch.arange(2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[num_frames] = loss.item()
    assert losses[1] > 0.69 and losses[2] < 0.3
