"""Subcloning into Vim: which teacher number lands where, held against the method's tensor map."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transmamba import Batch, SubcloneConfig, Teacher, UserError, adapt_teacher, image_batch
from transmamba.distillation.pairs import feature_pairs
from transmamba.ecosystems.find import save_model
from transmamba.layers.bidirectional import NEUTRAL_GATE
from transmamba.subcloning.plan import depth_map
from transmamba.subcloning.report import Report
from transmamba.subcloning.selection import Selection, activation_scores, multiplicity
from transmamba.subcloning.subclone import subclone

NOT_CLONED = ("conv1d", "x_proj", "dt_proj", "A_log", "A_b_log", "mixer.D")


def make_vim(width: int = 64, depth: int = 6, **kwargs: Any) -> Any:
    torch.manual_seed(11)
    shape = dict(embed_dim=width, depth=depth, in_chans=1, num_classes=10)
    return timm.create_model("vim_micro_patch2_8", **{**shape, **kwargs}).eval()


def clone(student: Any, teacher: Teacher, calibration: Any = (), **config: Any) -> Report:
    """By default evenly spaced coordinates; folded first where the configuration says so."""
    init = SubcloneConfig(**{"importance": "uniform", **config})
    return subclone(student, teacher.fold() if init.fold else teacher, init, calibration)[0]


def of(*images: Tensor) -> list[Batch]:
    """Batches of pictures that nobody has named."""
    return [image_batch(each, torch.zeros(len(each), dtype=torch.int64)) for each in images]


def vit_of(teacher_kwargs: dict[str, Any], make_vit: Callable[..., Any]) -> tuple[Any, Teacher]:
    model = make_vit(**teacher_kwargs)
    return model, adapt_teacher(model)


def selected(student: Any, teacher: Teacher, config: SubcloneConfig, calibration: Any = ()) -> Selection:
    """What subcloning chose for the only tower."""
    _, select = subclone(student, teacher, config, calibration)
    assert list(select) == ["image"]
    return select["image"]


class TestEqualWidth:
    """64 channels, 3 blocks, 128 neurons -> 64 channels, 6 layers, 128 inner channels."""

    def test_every_tensor_is_bit_exact(self, make_vit: Callable[..., Any]) -> None:
        model, teacher = vit_of(dict(mlp_ratio=2), make_vit)
        student = make_vim()
        before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        clone(student, teacher)
        after = student.state_dict()
        assert torch.equal(after["patch_embed.proj.weight"], model.patch_embed.proj.weight)
        assert torch.equal(after["patch_embed.proj.bias"], model.patch_embed.proj.bias)
        assert torch.equal(after["cls_token"], model.cls_token)
        position = model.pos_embed[0]
        middle = torch.cat([position[1:9], position[:1], position[9:]])  # cls from row 0 to row 8 of 17
        assert torch.equal(after["pos_embed"][0], middle)
        assert torch.equal(after["norm_f.weight"], model.norm.weight)
        assert torch.equal(after["head.weight"], model.head.weight)
        assert torch.equal(after["head.bias"], model.head.bias)
        for t, block in enumerate(model.blocks):
            a, m = f"layers.{2 * t}.", f"layers.{2 * t + 1}."
            value = block.attn.qkv.weight[128:]
            assert torch.equal(after[f"{a}norm.weight"], block.norm1.weight)
            assert torch.equal(after[f"{a}mixer.in_proj.weight"][:128], torch.cat([value, value]))
            half = block.attn.proj.weight / 2
            assert torch.equal(after[f"{a}mixer.out_proj.weight"], torch.cat([half, half], dim=1))
            assert torch.equal(after[f"{m}norm.weight"], block.norm2.weight)
            assert torch.equal(after[f"{m}mixer.in_proj.weight"][:128], block.mlp.fc1.weight)
            assert torch.equal(after[f"{m}mixer.out_proj.weight"], block.mlp.fc2.weight)
        for name, tensor in after.items():
            if any(part in name for part in NOT_CLONED):
                assert torch.equal(tensor, before[name]), name
            if name.endswith("in_proj.weight"):
                assert torch.equal(tensor[128:], before[name][128:]), "the gate's half is not cloned"

    def test_linear_path_is_the_value_path(self, make_vit: Callable[..., Any]) -> None:
        model, teacher = vit_of({}, make_vit)
        student = make_vim()
        clone(student, teacher)
        mixer = student.layers[2].mixer
        attention = model.blocks[1].attn
        path = mixer.out_proj.weight @ mixer.in_proj.weight[:128]
        torch.testing.assert_close(path, attention.proj.weight @ attention.qkv.weight[128:])

    def test_layer_scale_goes_into_the_output_projection(self, make_vit: Callable[..., Any]) -> None:
        model, teacher = vit_of(dict(init_values=0.1, mlp_ratio=2), make_vit)
        student = make_vim()
        clone(student, teacher)
        block = model.blocks[0]
        scaled = block.ls2.gamma[:, None] * block.mlp.fc2.weight
        torch.testing.assert_close(student.layers[1].mixer.out_proj.weight, scaled)
        scaled = block.ls1.gamma[:, None] * block.attn.proj.weight / 2
        torch.testing.assert_close(student.layers[0].mixer.out_proj.weight[:, 64:], scaled)

    def test_biases_have_a_place_where_the_student_has_one(self, make_vit: Callable[..., Any]) -> None:
        model, teacher = vit_of(dict(mlp_ratio=2), make_vit)
        student = make_vim(proj_bias=True)
        report = clone(student, teacher)
        block, attention, mlp = model.blocks[2], student.layers[4].mixer, student.layers[5].mixer
        value = block.attn.qkv.bias[128:]
        assert torch.equal(attention.in_proj.bias[:128], torch.cat([value, value]))
        assert not attention.in_proj.bias[128:].any(), "the gate's half stays"
        assert torch.equal(attention.out_proj.bias, block.attn.proj.bias)
        assert torch.equal(mlp.in_proj.bias[:128], block.mlp.fc1.bias)
        assert torch.equal(mlp.out_proj.bias, block.mlp.fc2.bias)
        norms = {f"blocks.{t}.{part}.norm.bias" for t in range(3) for part in ("attention", "mlp")}
        assert {drop.source for drop in report.dropped} == norms | {"norm.bias"}

    def test_fold_takes_the_folded_tensors(self, make_vit: Callable[..., Any]) -> None:
        _, teacher = vit_of(dict(init_values=0.1, mlp_ratio=2), make_vit)
        student = make_vim(proj_bias=True)
        report = clone(student, teacher, fold=True)
        view: Any = teacher.fold().view
        tower, attention = view.towers["image"], student.layers[2].mixer
        assert torch.equal(attention.in_proj.weight[:64], tower.sublayers[2].v.weight)
        assert torch.equal(attention.in_proj.bias[:64], tower.sublayers[2].v.bias)
        assert torch.equal(student.layers[3].mixer.out_proj.weight, tower.sublayers[3].down.weight)
        assert torch.equal(student.head.weight, view.heads["image"].readouts[0][1].weight)
        assert torch.equal(student.cls_token[0], tower.embedding.special)
        assert bool((student.layers[2].norm.weight == 1).all()) and bool((student.norm_f.weight == 1).all())
        assert not report.dropped, "folded norms have nothing to drop"

    def test_folded_student_reads_what_the_teacher_s_values_were(
        self, make_vit: Callable[..., Any], gray_images: Tensor
    ) -> None:
        """RMSNorm and in_proj of the folded stream = LayerNorm and V of the teacher's, biases included."""
        model, teacher = vit_of({}, make_vit)
        student = make_vim(proj_bias=True)
        clone(student, teacher, fold=True)
        student.layers[0].norm.eps = model.blocks[0].norm1.eps
        x = model._pos_embed(model.patch_embed(gray_images))
        stream = student._embed(gray_images)[:, [8, *range(8), *range(9, 17)]]
        torch.testing.assert_close(stream, x - x.mean(-1, keepdim=True), rtol=1e-5, atol=1e-5)
        mixer = student.layers[0].mixer
        read = mixer.in_proj(student.layers[0].norm(stream))[..., :64]
        block = model.blocks[0]
        torch.testing.assert_close(read, block.attn.qkv(block.norm1(x))[..., 128:], rtol=1e-4, atol=1e-5)


class TestNarrower:
    """64 channels -> 24, with 48 inner channels of 64 values or 256 neurons."""

    def codes(self, model: nn.Module) -> dict[str, Tensor]:
        """Give every coordinate a number of its own, in no order, and every weight its pair's number."""
        generator = torch.Generator().manual_seed(12)
        residual = torch.randperm(64, generator=generator)
        code = {"residual": residual}
        vit: Any = model

        def write(weight: Tensor, rows: Tensor, columns: Tensor) -> None:
            weight.data.copy_((rows[:, None] * 1000 + columns[None] + 1) * 1e-6)

        for t, block in enumerate(vit.blocks):
            code[f"value.{t}"] = torch.randperm(64, generator=generator)
            code[f"neuron.{t}"] = torch.randperm(256, generator=generator)
            write(block.attn.qkv.weight[128:], code[f"value.{t}"], residual)
            write(block.attn.proj.weight, residual, code[f"value.{t}"])
            write(block.mlp.fc1.weight, code[f"neuron.{t}"], residual)
            write(block.mlp.fc2.weight, residual, code[f"neuron.{t}"])
            for norm in (block.norm1, block.norm2):
                norm.weight.data.copy_((residual + 1) * 1e-3)
        vit.norm.weight.data.copy_((residual + 1) * 1e-3)
        write(vit.head.weight, torch.arange(10), residual)
        for tensor in (vit.cls_token[0], vit.pos_embed[0]):
            write(tensor, torch.arange(len(tensor)), residual)
        write(vit.patch_embed.proj.weight.view(64, 4), residual, torch.arange(4))
        vit.patch_embed.proj.bias.data.copy_((residual + 1) * 1e-3)
        return code

    @pytest.mark.parametrize("importance", ["uniform", "activation"])
    def test_the_same_coordinates_are_kept_everywhere(
        self, importance: str, make_vit: Callable[..., Any], gray_images: Tensor
    ) -> None:
        model = make_vit()
        code = self.codes(model)
        student = make_vim(24)
        config = SubcloneConfig(importance=importance)  # type: ignore[arg-type]
        select = selected(student, adapt_teacher(model), config, of(gray_images))
        kept = code["residual"][select.residual]
        assert len(kept.unique()) == 24
        if importance == "activation":
            assert not torch.equal(select.residual, torch.arange(24) * 64 // 24)

        def along(weight: Tensor, dim: int, lost: float = 1.0) -> Tensor:
            """`lost`: inputs that the teacher has for each of the student's; the weights grew by its root."""
            number = (weight.double() / math.sqrt(lost) * 1e6).round().long() - 1
            numbers = (number // 1000, number % 1000)[dim]
            line = numbers[:, 0] if dim == 0 else numbers[0]
            assert bool((numbers == (line[:, None] if dim == 0 else line[None])).all()), "mixed coordinates"
            return line

        state = student.state_dict()
        ones = [state["norm_f.weight"], state["patch_embed.proj.bias"]]
        ones += [layer.norm.weight for layer in student.layers]
        for vector in ones:
            assert torch.equal((vector * 1e3).round().long() - 1, kept)
        assert torch.equal(along(state["patch_embed.proj.weight"].view(24, 4), 0), kept)
        assert torch.equal(along(state["cls_token"][0], 1), kept)
        assert torch.equal(along(state["pos_embed"][0], 1), kept)
        assert along(state["pos_embed"][0], 0).tolist() == [*range(1, 9), 0, *range(9, 17)]
        assert torch.equal(along(state["head.weight"], 1, lost=64 / 24), kept)
        for k, layer in enumerate(student.layers):
            t, name = k // 2, "value" if k % 2 == 0 else "neuron"
            reads, writes = layer.mixer.in_proj.weight[:48], layer.mixer.out_proj.weight
            inner = (64 if name == "value" else 256) / 48
            assert torch.equal(along(reads, 1, lost=64 / 24), kept)
            assert torch.equal(along(writes, 0, lost=inner), kept)
            channels = along(reads, 0, lost=64 / 24)
            assert torch.equal(along(writes, 1, lost=inner), channels) and len(channels.unique()) == 48
            chosen = select.inner(k, 64 if name == "value" else 256, 48)
            assert torch.equal(code[f"{name}.{t}"][chosen], channels)

    def test_rescaling_keeps_the_output_s_spread(self, make_vit: Callable[..., Any]) -> None:
        model, teacher = vit_of({}, make_vit)
        student = make_vim(24)
        clone(student, teacher)
        keep = torch.arange(24) * 64 // 24
        channels = torch.arange(48) * 64 // 48
        value, out = model.blocks[0].attn.qkv.weight[128:], model.blocks[0].attn.proj.weight
        mixer, factor = student.layers[0].mixer, math.sqrt(64 / 24)
        torch.testing.assert_close(mixer.in_proj.weight[:48], value[channels][:, keep] * factor)
        torch.testing.assert_close(mixer.out_proj.weight, out[keep][:, channels] * math.sqrt(64 / 48))
        torch.testing.assert_close(student.head.weight, model.head.weight[:, keep] * factor)
        torch.testing.assert_close(
            student.layers[1].mixer.out_proj.weight,
            model.blocks[0].mlp.fc2.weight[keep][:, torch.arange(48) * 256 // 48] * math.sqrt(256 / 48),
        )
        # what loses no inputs is as it was
        assert torch.equal(student.norm_f.weight, model.norm.weight[keep])
        assert torch.equal(student.cls_token, model.cls_token[..., keep])
        assert torch.equal(student.patch_embed.proj.weight, model.patch_embed.proj.weight[keep])
        u = torch.randn(2000, 64)
        wide = (u @ value.T).detach().std()
        assert float((u[:, keep] @ mixer.in_proj.weight[:48].T).detach().std() / wide) == pytest.approx(
            1, abs=0.1
        )
        assert float((u[:, keep] @ value[channels][:, keep].T).detach().std() / wide) < 0.75

    def test_activation_finds_the_loud_coordinates(
        self, make_vit: Callable[..., Any], gray_images: Tensor
    ) -> None:
        model = make_vit()
        loud = torch.randperm(64, generator=torch.Generator().manual_seed(3))[:24].sort().values
        values = torch.randperm(64, generator=torch.Generator().manual_seed(4))[:48].sort().values
        neurons = torch.randperm(256, generator=torch.Generator().manual_seed(5))[:48].sort().values
        with torch.no_grad():
            model.patch_embed.proj.bias[loud] += 30 * torch.randn(24).sign()
            model.cls_token[..., loud] += 30
            model.blocks[1].attn.qkv.bias[128 + values] -= 50
            model.blocks[2].mlp.fc1.bias[neurons] += 50
            for block in model.blocks:  # what these write must not drown the stream
                block.attn.proj.weight.mul_(0.01)
                block.mlp.fc2.weight.mul_(0.01)
        config = SubcloneConfig(importance="activation")
        batches: Iterator[Batch] = iter(of(gray_images[:1], gray_images[1:]))
        select = selected(make_vim(24), adapt_teacher(model), config, batches)
        assert torch.equal(select.residual, loud)
        assert torch.equal(select.inner(2, 64, 48), values), "attention of the second block"
        assert torch.equal(select.inner(5, 256, 48), neurons), "the MLP of the third"

    def test_scores_are_means_over_images_and_tokens(
        self, make_vit: Callable[..., Any], gray_images: Tensor
    ) -> None:
        model, teacher = vit_of({}, make_vit)
        streams: list[Tensor] = []
        for block in model.blocks:
            block.register_forward_hook(lambda _, __, y: streams.append(y.abs().flatten(0, 1)))
        model(gray_images)
        scores = activation_scores(teacher, of(gray_images[:2], gray_images[2:]))
        assert scores.keys() == {"image"}
        torch.testing.assert_close(scores["image"]["stream"], torch.cat(streams).mean(0).detach())
        assert scores["image"].keys() == {"stream", *(f"inner.{s}" for s in range(6))}

    def test_without_calibration_the_criterion_says_what_to_write(self, make_vit: Callable[..., Any]) -> None:
        with pytest.raises(UserError, match=r"set init.importance to 'uniform'"):
            clone(make_vim(24), adapt_teacher(make_vit()), importance="activation")

    def test_change_keeps_what_moved_least(self, tmp_path: Path) -> None:
        shape = dict(img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=3, num_heads=4, num_classes=10)
        model: Any = timm.create_model("vit_tiny_patch16_224", **shape).eval()
        save_model(model, tmp_path)
        still = torch.randperm(64, generator=torch.Generator().manual_seed(6))[:24].sort().values
        neurons = torch.randperm(256, generator=torch.Generator().manual_seed(7))[:48].sort().values
        moves = torch.ones(64)
        moves[still] = 0
        inner = torch.ones(256)
        inner[neurons] = 0
        with torch.no_grad():
            for block in model.blocks:
                block.attn.qkv.weight[128:] += 0.1 * moves[None]
                block.attn.proj.weight -= 0.1 * moves[:, None]
                block.mlp.fc1.weight += 0.1 * moves[None] + 0.01 * inner[:, None]
                block.mlp.fc2.weight -= 0.1 * moves[:, None] + 0.01 * inner[None]
        config = SubcloneConfig(importance="change", base=str(tmp_path))
        select = selected(make_vim(24), adapt_teacher(model), config)
        assert torch.equal(select.residual, still)
        assert torch.equal(select.inner(3, 256, 48), neurons)

    def test_change_needs_a_base_of_the_same_shape(
        self, tmp_path: Path, make_vit: Callable[..., Any]
    ) -> None:
        save_model(make_vit(depth=2), tmp_path)
        with pytest.raises(UserError, match="another width or depth"):
            clone(make_vim(24), adapt_teacher(make_vit()), importance="change", base=str(tmp_path))
        with pytest.raises(ValueError, match="set `base`"):
            SubcloneConfig(importance="change")


class TestWider:
    def test_repeated_coordinates_count_once(self, make_vit: Callable[..., Any], gray_images: Tensor) -> None:
        """A student twice as wide holds each coordinate twice, and reads their mean."""
        model, teacher = vit_of({}, make_vit)
        student = make_vim(128)
        clone(student, teacher)
        x = torch.randn(5, 64)
        twice = torch.cat([x, x], dim=1)
        rms = F.rms_norm(x, (64,), model.blocks[0].norm1.weight, 1e-5)
        read = student.layers[0].mixer.in_proj(student.layers[0].norm(twice))
        value = rms @ model.blocks[0].attn.qkv.weight[128:].T
        torch.testing.assert_close(read[:, :64], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(read[:, 64:128], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(student.head(twice), model.head(x), rtol=1e-4, atol=1e-5)
        written = student.layers[0].mixer.out_proj.weight @ read[:, :256].T
        attended = model.blocks[0].attn.proj.weight @ value.T
        torch.testing.assert_close(written, torch.cat([attended, attended]), rtol=1e-4, atol=1e-4)

    def test_multiplicity(self) -> None:
        index = torch.tensor([0, 1, 2, 0, 1])
        assert multiplicity(index, 3).tolist() == [0.5, 0.5, 1.0, 0.5, 0.5]


@pytest.mark.parametrize(("layers", "cloned"), [("all", 6), ("half", 3), (0, 0), (1, 1), (4, 4), (99, 6)])
@pytest.mark.parametrize("options", [{}, dict(proj_bias=True, gate_bias=True)])
def test_early_layers_and_the_share_that_changed(
    layers: Any, cloned: int, options: dict[str, Any], make_vit: Callable[..., Any]
) -> None:
    student = make_vim(24, **options)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(float("nan"))
    report = clone(student, adapt_teacher(make_vit()), layers=layers)
    changed = {name: int((~p.isnan()).sum()) for name, p in student.named_parameters()}
    total = sum(p.numel() for p in student.parameters())
    assert report.total == total and report.covered == pytest.approx(sum(changed.values()) / total, abs=1e-12)
    touched = {name for name, number in changed.items() if number}
    assert report.cloned == touched
    in_layers = {int(name.split(".")[1]) for name in touched if name.startswith("layers.")}
    assert in_layers == set(range(cloned))
    assert bool(touched) == bool(cloned), "0 clones nothing at all, embeddings included"
    fresh = {row.target for row in report.rows if row.kind == "fresh"}
    assert fresh == set(changed) - touched
    assert sum(report.counts.values()) == len(report.rows)


def test_report_lists_the_dropped_biases_of_cloned_layers(
    tmp_path: Path, make_vit: Callable[..., Any]
) -> None:
    report = clone(make_vim(24), adapt_teacher(make_vit()), layers=2)
    first = {f"blocks.0.attention.{name}.bias" for name in ("norm", "v", "o")}
    second = {f"blocks.0.mlp.{name}.bias" for name in ("norm", "up", "down")}
    assert {drop.source for drop in report.dropped} == first | second | {"norm.bias"}
    report.save(tmp_path / "subclone.json")
    written = json.loads((tmp_path / "subclone.json").read_text())
    assert set(written["dropped_biases"]) == first | second | {"norm.bias"}
    assert written["covered"] == report.covered and written["counts"] == report.counts
    text = str(report)
    assert "7 teacher tensors dropped" in text and "% of the student's" in text
    report.dropped.extend(list(report.dropped))  # as where two student layers take from one block
    assert "7 teacher tensors dropped" in str(report) and len(report.to_dict()["dropped_biases"]) == 7


def test_kinds_of_rows(make_vit: Callable[..., Any]) -> None:
    teacher = adapt_teacher(make_vit(mlp_ratio=2))
    equal = {row.target: row.kind for row in clone(make_vim(), teacher).rows}
    assert equal["layers.0.mixer.in_proj.weight"] == "repeated", "32 value channels for 64 inner ones"
    assert equal["layers.1.mixer.in_proj.weight"] == equal["patch_embed.proj.weight"] == "copied"
    assert equal["pos_embed"] == "permuted" and equal["layers.0.mixer.x_proj.weight"] == "fresh"
    narrow = {row.target: row.kind for row in clone(make_vim(24), teacher).rows}
    assert (
        narrow["layers.0.mixer.in_proj.weight"] == narrow["pos_embed"] == narrow["norm_f.weight"] == "sliced"
    )
    resized = {row.target: row.kind for row in clone(make_vim(img_size=12, patch_size=4), teacher).rows}
    assert resized["pos_embed"] == resized["patch_embed.proj.weight"] == "resampled"


def test_what_averages_double_is_repeated(make_vit: Callable[..., Any]) -> None:
    student = make_vim(gate_bias=True)
    images = of(torch.randn(4, 1, 8, 8))
    report = clone(student, adapt_teacher(make_vit()), images, fold=True, mimic=True, average=True)
    kinds = {row.target: row.kind for row in report.rows if row.target.startswith("layers.0.mixer")}
    doubled = ("in_proj.weight", "out_proj.weight", "conv1d.bias", "conv1d_b.bias")
    assert {kinds[f"layers.0.mixer.{name}"] for name in doubled} == {"repeated"}


def test_printed_once_for_all_layers_and_what_is_left_of_the_teacher(make_vit: Callable[..., Any]) -> None:
    teacher = adapt_teacher(make_vit())
    report = clone(make_vim(), teacher)
    text = str(report)
    every = [f"blocks.{t}.{name}" for t in range(3) for name in ("attention", "mlp")]
    assert report.sublayers == every
    assert not report.unused and "from 6 of the teacher's 6" in text
    stars = [line for line in text.splitlines() if line.startswith("layers.*.mixer.A_log ")]
    assert [line.split() for line in stars] == [["layers.*.mixer.A_log", "fresh", "6", "initialisation"]]
    assert "layers.0." not in text and "RMSNorm has no bias" in text
    shallow = clone(make_vim(depth=2), teacher)
    taken = {".".join(row.source.split(".")[:3]) for row in shallow.rows if row.source.startswith("blocks")}
    assert set(shallow.unused) == set(every) - taken != set()
    assert "from 2 of the teacher's 6" in str(shallow) and shallow.unused[0] in str(shallow)


def test_every_teacher_part_that_has_no_place_is_listed(make_vit: Callable[..., Any]) -> None:
    registers = clone(make_vim(), adapt_teacher(make_vit(reg_tokens=2, pre_norm=True)))
    sources = {drop.source for drop in registers.dropped}
    assert {"embedding.special.reg0", "embedding.special.reg1", "embedding.norm"} <= sources
    distilled = clone(make_vim(), adapt_teacher(make_vit(name="deit_tiny_distilled_patch16_224")))
    assert {"embedding.special.dist", "head.dist"} <= {drop.source for drop in distilled.dropped}


def test_a_teacher_without_class_token_leaves_the_student_s(make_vit: Callable[..., Any]) -> None:
    model, teacher = vit_of(dict(class_token=False, global_pool="avg"), make_vit)
    student = make_vim()
    before = student.cls_token.clone()
    clone(student, teacher)
    assert torch.equal(student.cls_token, before) and not student.pos_embed[0, 8].any()
    assert torch.equal(student.pos_embed[0, [*range(8), *range(9, 17)]], model.pos_embed[0])


def test_another_patch_and_size_are_resampled(make_vit: Callable[..., Any]) -> None:
    model, teacher = vit_of({}, make_vit)
    student = make_vim(img_size=12, patch_size=4)
    clone(student, teacher)
    grid = model.pos_embed[0, 1:].T.reshape(1, 64, 4, 4)
    expected = F.interpolate(grid, size=(3, 3), mode="bicubic", antialias=True)[0].flatten(1).T
    found = student.pos_embed[0]
    assert torch.equal(found[4], model.pos_embed[0, 0])
    torch.testing.assert_close(found[[0, 1, 2, 3, 5, 6, 7, 8, 9]], expected, rtol=1e-4, atol=1e-5)
    flat = F.conv2d(torch.full((1, 1, 4, 4), 0.5), student.patch_embed.proj.weight)
    small = F.conv2d(torch.full((1, 1, 2, 2), 0.5), model.patch_embed.proj.weight)
    torch.testing.assert_close(flat, small, rtol=1e-3, atol=1e-3)


def test_shapes_that_cannot_meet(make_vit: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="teacher has 1 input channels, student 3"):
        clone(make_vim(in_chans=3), adapt_teacher(make_vit()))
    student = make_vim(num_classes=7)
    report = clone(student, adapt_teacher(make_vit()))
    assert {"head.weight", "head.bias"} <= {row.target for row in report.rows if row.kind == "fresh"}


@pytest.mark.parametrize("layers", [-1, -5])
def test_negative_layers_are_refused(layers: int) -> None:
    with pytest.raises(ValueError, match=r"write 'all', 'half' or a number"):
        SubcloneConfig(layers=layers)


class TestMimic:
    def test_biases_go_behind_the_identity_convolution(self, make_vit: Callable[..., Any]) -> None:
        model, teacher = vit_of(dict(mlp_ratio=2), make_vit)
        student = make_vim(gate_bias=True)
        report = clone(student, teacher, mimic=True)
        block, attention, mlp = model.blocks[0], student.layers[0].mixer, student.layers[1].mixer
        value = block.attn.qkv.bias[128:]
        for suffix in ("conv1d", "conv1d_b"):
            assert torch.equal(getattr(attention, suffix).bias, torch.cat([value, value]))
            assert torch.equal(getattr(mlp, suffix).bias, block.mlp.fc1.bias)
        assert attention.has_identity_conv()
        assert not any(drop.source.endswith(("v.bias", "up.bias")) for drop in report.dropped)
        assert any(drop.source.endswith("o.bias") for drop in report.dropped)

    def test_gate_is_neutral_and_convolution_the_identity(self, make_vit: Callable[..., Any]) -> None:
        student = make_vim(gate_bias=True)
        clone(student, adapt_teacher(make_vit()), mimic=True, layers=2)
        u = torch.randn(3, 5, 64)
        for k, layer in enumerate(student.layers):
            mixer = layer.mixer
            gate = F.silu(mixer.in_proj(u)[..., 128:] + mixer.gate_bias)
            neutral = torch.allclose(gate, torch.ones_like(gate), atol=1e-6)
            assert (neutral, mixer.has_identity_conv()) == (k < 2, k < 2)
        assert F.silu(torch.tensor(NEUTRAL_GATE)).item() == pytest.approx(1, abs=1e-6)
        assert round(NEUTRAL_GATE, 4) == 1.2785

    def test_mixer_is_silu_of_the_values_before_its_states_speak(self, make_vit: Callable[..., Any]) -> None:
        """C = 0 silences the states; what remains is out . silu(V u + b), as the conv's bias carries b."""
        model, teacher = vit_of({}, make_vit)
        student = make_vim(gate_bias=True)
        clone(student, teacher, mimic=True)
        mixer, attention = student.layers[2].mixer, model.blocks[1].attn
        with torch.no_grad():
            mixer.x_proj.weight.zero_()
            mixer.x_proj_b.weight.zero_()
        u = torch.randn(2, 6, 64)
        value = F.linear(u, attention.qkv.weight[128:], attention.qkv.bias[128:])
        torch.testing.assert_close(
            mixer(u).output, F.silu(value) @ attention.proj.weight.T, rtol=1e-4, atol=1e-5
        )

    def test_nothing_is_mimicked_where_nothing_is_cloned(self, make_vit: Callable[..., Any]) -> None:
        student = make_vim(gate_bias=True)
        before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        clone(student, adapt_teacher(make_vit()), mimic=True, layers=0)
        assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


class TestDepth:
    def test_twice_the_blocks_is_one_to_one(self) -> None:
        assert depth_map(24, 24) == list(range(24))
        assert make_vim(depth=6).sources(("attention", "mlp") * 3) == {k: k for k in range(6)}
        assert make_vim(depth=4).sources(("attention", "mlp") * 3) == {0: 0, 1: 1, 2: 4, 3: 5}

    def test_a_shallower_student_loses_the_middle(self) -> None:
        assert depth_map(4, 6) == [0, 1, 4, 5]
        assert depth_map(3, 6) == [0, 1, 5]
        assert depth_map(1, 6) == [0]
        assert depth_map(12, 24) == [*range(6), *range(18, 24)]

    def test_a_deeper_student_repeats_in_order(self) -> None:
        assert depth_map(12, 6) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        for layers in range(1, 30):
            for sources in range(1, 30):
                chosen = depth_map(layers, sources)
                assert len(chosen) == layers and chosen == sorted(chosen) and chosen[0] == 0
                assert layers < 2 or sources > layers or len(set(chosen)) == sources
                assert layers < 2 or sources <= layers or chosen[-1] == sources - 1

    def test_shallow_student_is_cloned_from_both_ends(self, make_vit: Callable[..., Any]) -> None:
        model, teacher = vit_of(dict(mlp_ratio=2), make_vit)
        student = make_vim(depth=4)
        clone(student, teacher)
        wanted = (
            model.blocks[0].norm1,
            model.blocks[0].norm2,
            model.blocks[2].norm1,
            model.blocks[2].norm2,
        )
        for layer, norm in zip(student.layers, wanted, strict=True):
            assert torch.equal(layer.norm.weight, norm.weight)

    def test_feature_pairs(self) -> None:
        blocks = list(range(12))  # numbered as if each were one sublayer
        assert feature_pairs(24, blocks) == {2 * t + 1: t for t in range(12)}
        assert feature_pairs(12, blocks) == {t: t for t in range(12)}
        # a quarter of the student with a quarter of the teacher
        assert feature_pairs(4, blocks) == {0: 2, 1: 5, 2: 8, 3: 11}
        assert feature_pairs(5, [0]) == {4: 0}
        # a block is named by the sublayer that ends it, however long it is
        assert feature_pairs(6, (1, 3, 5)) == {1: 1, 3: 3, 5: 5}
        assert feature_pairs(3, (1, 4, 5)) == {0: 1, 1: 4, 2: 5}
