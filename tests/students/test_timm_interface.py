"""Each student model behaves as timm's own: a matrix over what is registered, so a new one is tested by
existing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh_process
import harness
import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

import transmamba  # noqa: F401  (registers the students in timm)
from transmamba.config.registry import STUDENTS
from transmamba.core.output import Capture, Context
from transmamba.core.preprocessing import Preprocessing
from transmamba.core.tower import Student, StudentSpec, Tower
from transmamba.ecosystems.find import save_model
from transmamba.ecosystems.timm import create_timm
from transmamba.errors import UserError
from transmamba.layers.mixed import Want
from transmamba.subcloning.convert import student_models

MODELS = student_models()
EVERY, PARTS = frozenset(range(3)), frozenset(("B", "C", "B_b", "C_b"))
ALL = {"image": Capture(hidden=EVERY, branches=EVERY, mixers=dict.fromkeys(EVERY, PARTS))}
Make = Callable[..., Any]


def test_all_families_are_in_the_matrix() -> None:
    ours = {
        name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("transmamba")
    }
    # those whose tag says their shape are the image towers of dual encoders, others those of LLaVAs
    towers = {"vim_shaped", "ssd_vit_shaped", "llava_vim", "llava_ssd_vit"}
    assert ours - towers == set(MODELS) and len(MODELS) >= 10
    assert set(STUDENTS.names()) == {
        *(
            "vim",
            "ssd_vit",
            "timm",
            "hf_vit",
            "saved",
            "clip",
            "open_clip",
            "hybrid_lm",
            "window_lm",
            "sequence",
            "moe_mamba",
            "llava",
            "hf_llava",
        )
    }


@pytest.mark.parametrize("name", MODELS)
class TestEveryModel:
    def test_is_a_student(self, name: str, make_student: Make) -> None:
        model = make_student(name)
        assert isinstance(model, Student) and isinstance(model, Tower) and model.towers == {"image": model}
        assert (model.width, model.num_layers, model.num_classes) == (32, 3, 5)
        assert model.layout.grid == (4, 4) and model.layout.length == 17

    def test_forward_is_features_then_head(self, name: str, make_student: Make, images: Tensor) -> None:
        model = make_student(name)
        features = model.forward_features(images)
        assert features.shape == (2, 17, 32)
        logits = model(images)
        assert logits.shape == (2, 5) and bool(logits.isfinite().all()) and logits.std() > 0.05
        assert torch.equal(model.forward_head(features), logits)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.head_hidden_size)
        assert torch.equal(model.get_classifier()(pooled), logits)

    def test_reset_classifier(self, name: str, make_student: Make, images: Tensor) -> None:
        model = make_student(name)
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        model.reset_classifier(0)
        assert model.num_classes == 0 and torch.equal(model(images), pooled)
        model.reset_classifier(7)
        assert model.num_classes == 7 and model(images).shape == (2, 7)
        model.reset_classifier(3, "avg")
        features = model.forward_features(images)
        mean = features[:, model.layout.patches].mean(1)
        torch.testing.assert_close(model.forward_head(features, pre_logits=True), mean)
        assert model(images).shape == (2, 3)
        model.reset_classifier(0, "")
        assert model(images).shape == (2, 17, 32)
        with pytest.raises((ValueError, AssertionError)):
            model.reset_classifier(3, "median")

    def test_features_only(self, name: str, make_student: Make, images: Tensor) -> None:
        model = make_student(name, features_only=True, out_indices=(0, -1))
        assert [feature.shape for feature in model(images)] == [(2, 32, 4, 4)] * 2
        assert model.feature_info.channels() == [32, 32] and model.feature_info.reduction() == [8, 8]

    @pytest.mark.parametrize("output_fmt", ["NCHW", "NLC"])
    def test_intermediates_are_the_streams(
        self, name: str, output_fmt: str, make_student: Make, images: Tensor
    ) -> None:
        model = make_student(name)
        with torch.no_grad():
            hidden = model.run({"image": images}, ALL).stream.hidden
            final, kept = model.forward_intermediates(
                images, indices=[0, 2], return_prefix_tokens=True, output_fmt=output_fmt
            )
            early = model.forward_intermediates(
                images, indices=[1], stop_early=True, output_fmt=output_fmt, intermediates_only=True
            )
            normalised = model.forward_intermediates(images, indices=1, norm=True, output_fmt="NLC")[1]
        torch.testing.assert_close(final, model.forward_features(images))
        cls = dict(model.layout.special)["cls"]
        assert len(kept) == 2 and len(early) == 1
        for k, (patches, prefix) in zip((0, 2), kept, strict=True):
            torch.testing.assert_close(self.sequence(patches), hidden[k][:, model.layout.patches])
            torch.testing.assert_close(prefix, hidden[k][:, cls : cls + 1])
        torch.testing.assert_close(self.sequence(early[0]), hidden[1][:, model.layout.patches])
        torch.testing.assert_close(normalised[0], final[:, model.layout.patches])

    @staticmethod
    def sequence(patches: Tensor) -> Tensor:
        return patches.flatten(2).mT if patches.dim() == 4 else patches

    def test_checkpointing_changes_no_gradient(self, name: str, make_student: Make, images: Tensor) -> None:
        model = make_student(name).train()
        gradients = []
        for enable in (False, True):
            model.set_grad_checkpointing(enable)
            model.zero_grad()
            model(images).square().sum().backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == dict(model.named_parameters()).keys()
        for parameter, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][parameter], gradient)

    def test_weight_decay_names_exist(self, name: str, make_student: Make) -> None:
        model = make_student(name, reg_tokens=1) if name.startswith("ssd") else make_student(name)
        named = set(dict(model.named_parameters()))
        skipped = model.no_weight_decay() - {"dist_token"}  # timm's own list names it for all
        assert skipped <= named and {"pos_embed", "cls_token"} <= skipped
        assert {n for n in named if "A_" in n} <= skipped

    def test_groups_cover_every_parameter_in_order(self, name: str, make_student: Make) -> None:
        model = make_student(name)
        groups = group_parameters(model, model.group_matcher(coarse=False))
        layer = {parameter: group for group, members in groups.items() for parameter in members}
        assert layer.keys() == dict(model.named_parameters()).keys()
        blocks = "layers" if name.startswith("vim") else "blocks"
        order = [layer["cls_token"], *(layer[f"{blocks}.{k}.norm{n}.weight"] for k, n in self.norms(name))]
        assert order == sorted(order) and len(set(order)) == 4
        assert layer["pos_embed"] == layer["patch_embed.proj.weight"] == layer["cls_token"] == 0
        final = "norm_f.weight" if name.startswith("vim") else "norm.weight"
        assert layer[final] == order[-1] < layer["head.weight"]

    @staticmethod
    def norms(name: str) -> list[tuple[int, str]]:
        return [(k, "" if name.startswith("vim") else "2") for k in range(3)]

    def test_registered_defaults(self, name: str) -> None:
        with torch.device("meta"):
            model = timm.create_model(name, in_chans=1, num_classes=7)
        side = int(name.rsplit("_", 1)[1])
        assert model.pretrained_cfg["input_size"][1:] == (side, side)
        assert model.patch_embed.proj.weight.shape[1] == 1 and model.head.weight.shape[0] == 7
        assert model.pretrained_cfg["first_conv"] == "patch_embed.proj"

    def test_run_gives_the_model_s_logits_and_streams(
        self, name: str, make_student: Make, images: Tensor
    ) -> None:
        model = make_student(name)
        streams: list[Tensor] = []
        for block in model.layers if name.startswith("vim") else model.blocks:
            block.register_forward_hook(lambda _, __, y: streams.append(y[0] if isinstance(y, tuple) else y))
        with torch.no_grad():
            logits = model(images)
            output = model.run({"image": images}, ALL)
            bare = model.run({"image": images}, {})
            assert list(output.streams) == ["image"]
            torch.testing.assert_close(output.logits(), logits, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(bare.logits(), logits, rtol=1e-6, atol=1e-6)
        assert bare.stream.hidden == bare.stream.branches == bare.stream.mixers == {}
        for k, stream in enumerate(streams[:3]):
            torch.testing.assert_close(output.stream.hidden[k], stream, rtol=1e-5, atol=1e-5)
        assert output.stream.layout == model.layout
        found = {part: tensor.shape for part, tensor in output.stream.mixers[1].items()}
        assert found == {part: (2, 17, width) for part, width in model.parts.items()}

    @pytest.mark.parametrize("training", [False, True])
    def test_branches_average_to_the_stream(
        self, name: str, training: bool, make_student: Make, images: Tensor
    ) -> None:
        """Also under stochastic depth: both branches and the stream drop the same samples."""
        model = make_student(name, drop_path_rate=0.5).train(training)
        torch.manual_seed(1)
        with torch.no_grad():
            stream = model.run({"image": images}, ALL).stream
        for k, (ahead, back) in stream.branches.items():
            assert ahead.shape == (2, 17, 32)
            torch.testing.assert_close((ahead + back) / 2, stream.hidden[k], rtol=1e-6, atol=1e-6)
        if not training:
            assert all((ahead - back).abs().max() > 1e-3 for ahead, back in stream.branches.values())

    def test_a_dropped_sample_has_no_branches(self, name: str, make_student: Make) -> None:
        model = make_student(name, drop_path_rate=0.5).train()
        for block in model.blocks if name.startswith("ssd") else ():
            nn.init.zeros_(block.mlp.fc2.weight)  # the mixer alone moves the stream
            nn.init.zeros_(block.mlp.fc2.bias)
        torch.manual_seed(2)
        with torch.no_grad():
            stream = model.run({"image": torch.randn(24, 1, 32, 32)}, ALL).stream
        ahead, back = stream.branches[2]
        dropped = (stream.hidden[2] == stream.hidden[1]).all(dim=(1, 2))
        assert 0 < int(dropped.sum()) < 24
        assert torch.equal((ahead == back).all(dim=(1, 2)), dropped)

    def test_token_subset_is_an_index_into_all(self, name: str, make_student: Make, images: Tensor) -> None:
        model = make_student(name)
        positions = torch.tensor([16, 0, 5])
        subset = {"image": ALL["image"].on(positions)}
        with torch.no_grad():
            whole, part = (model.run({"image": images}, capture).stream for capture in (ALL, subset))
        for k in range(3):
            torch.testing.assert_close(part.hidden[k], whole.hidden[k])
            for mine, full in zip(part.branches[k], whole.branches[k], strict=True):
                torch.testing.assert_close(mine, full[:, positions])

    def test_mixer_alone_is_what_the_block_adds(self, name: str, make_student: Make, images: Tensor) -> None:
        model = make_student(name)
        with torch.no_grad():
            stream = model.run({"image": images}, ALL).stream
            added, parts = model.mixer(1, stream.hidden[0], Context(), ALL["image"])
            again = model.run({"image": images}, ALL).stream.mixers[1]
        if name.startswith("vim"):
            torch.testing.assert_close(stream.hidden[0] + added, stream.hidden[1], rtol=1e-5, atol=1e-5)
        else:
            x = stream.hidden[0] + added
            block = model.blocks[1]
            torch.testing.assert_close(x + block.mlp(block.norm2(x)), stream.hidden[1], rtol=1e-5, atol=1e-5)
        assert parts.keys() == again.keys()
        assert all(torch.equal(parts[key], again[key]) for key in parts)

    def test_groups_that_a_stage_may_train(self, name: str, make_student: Make) -> None:
        model = make_student(name)
        named = set(dict(model.named_parameters()))
        found = {group: {n for n in named if test(n)} for group, test in model.groups().items()}
        assert found.keys() == {*STUDENTS["ssd_vit" if name.startswith("ssd") else "vim"].group_names}
        assert found["head"] == {"head.weight", "head.bias"}
        assert found["mixers"] and not any(
            "norm" in n or "head" in n or "embed" in n for n in found["mixers"]
        )

    def test_units_are_called_and_never_entered(self, name: str, make_student: Make, images: Tensor) -> None:
        """What shards a unit sees every pass through it, and every parameter of a layer is within one."""
        model = make_student(name)
        called: list[int] = []
        for k, unit in enumerate(model.units()):
            unit.register_forward_pre_hook(lambda _, __, k=k: called.append(k))
        model(images)
        assert called == [0, 1, 2]
        model.run({"image": images}, ALL)
        assert called == [0, 1, 2] * 2
        model.mixer(1, torch.randn(2, 17, 32), Context(), Capture())
        assert called == [*[0, 1, 2] * 2, 1]
        within = {id(p) for unit in model.units() for p in unit.parameters()}
        outside = {n for n, p in model.named_parameters() if id(p) not in within}
        assert not any(n.startswith(("layers.", "blocks.")) for n in outside)

    def test_a_layer_gives_what_is_wanted(self, name: str, make_student: Make) -> None:
        unit, x = make_student(name).units()[1], torch.randn(2, 17, 32)
        with torch.no_grad():
            stream, record = unit(x, Want())
            assert record.half is None and record.output.shape == x.shape
            again, record = unit(x, Want(branches=True, tokens=torch.tensor([3, 1])))
            torch.testing.assert_close(again, stream)
            assert record.half is not None and record.half.shape[:2] == (2, 2)
            alone, record = unit(x, Want(alone=True))
        torch.testing.assert_close(alone, record.output)


# model -> options that must survive saving: what no default would give
SAVED: dict[str, dict[str, Any]] = {
    "vim_tiny_patch16_224": dict(gate_bias=True, proj_bias=True, d_state=6, expand=1, d_conv=3),
    "vim_micro_patch2_8": dict(global_pool="avg", img_size=(32, 40), drop_path_rate=0.1),
    "ssd_vit_small_patch16_224": dict(attention_layers=[1], init_values=0.5, reg_tokens=2),
    "ssd_vit_micro_patch2_8": dict(global_pool="avg", fc_norm=False, mlp_ratio=2.0, qkv_bias=False),
}
FRESH = """
import sys, torch, transmamba, timm
for folder in sys.argv[1:]:
    model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
    images = torch.load(folder + "/images.pt", weights_only=True)
    with torch.no_grad():
        torch.save({"logits": model(images), "cfg": model.pretrained_cfg["mean"]}, folder + "/logits.pt")
"""


def test_saved_models_load_in_a_fresh_process_that_only_imports_us(
    tmp_path: Path, make_student: Make
) -> None:
    expected = {}
    for name, options in SAVED.items():
        model = make_student(name, **options)
        height, width = options.get("img_size", (32, 32))
        looks = Preprocessing(
            input_size=(1, height, width), mean=(0.125,), std=(0.25,), interpolation="bilinear"
        )
        save_model(model, tmp_path / name, looks)
        pictures = torch.randn(2, 1, height, width)
        torch.save(pictures, tmp_path / name / "images.pt")
        with torch.no_grad():
            expected[name] = model(pictures)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["architecture"] == name and config["num_classes"] == 5
        kept = {**{"embed_dim": 32, "depth": 3}, **options}
        for key, value in kept.items():
            assert config["model_args"][key] == (list(value) if isinstance(value, tuple) else value), key
        assert not list((tmp_path / name).glob("*.bin")), "safetensors alone"
    done = fresh_process.run(FRESH, *(tmp_path / name for name in SAVED), folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, logits in expected.items():
        loaded = torch.load(tmp_path / name / "logits.pt", weights_only=False)
        torch.testing.assert_close(loaded["logits"], logits, rtol=1e-6, atol=1e-6)
        assert tuple(loaded["cfg"]) == (0.125,)


@pytest.mark.parametrize("name", ["vim_micro_patch2_8", "ssd_vit_micro_patch2_8", "vit_tiny_patch16_224"])
def test_a_changed_head_and_pooling_survive(
    name: str, tmp_path: Path, make_student: Make, images: Tensor
) -> None:
    model = make_student(name, global_pool="token", **({"num_heads": 2} if name.startswith("vit") else {}))
    model.reset_classifier(9, "avg")
    save_model(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-6, atol=1e-6)


def test_saving_twice_is_saving_once(tmp_path: Path, make_student: Make, images: Tensor) -> None:
    save_model(make_student("vim_micro_patch2_8", gate_bias=True), tmp_path / "a")
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True)
    save_model(again, tmp_path / "b")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("vim", dict(model="vim_micro_patch2_8")), ("ssd_vit", dict(model="ssd_vit_micro_patch2_8"))],
)
def test_registered_student_follows_the_pictures(kind: str, options: dict[str, Any]) -> None:
    shape = {"depth": 2, "embed_dim": 16, "patch_size": 4} | ({"num_heads": 2} if kind == "ssd_vit" else {})
    part = STUDENTS[kind](**options, kwargs=shape)
    looks = Preprocessing(input_size=(1, 8, 12), mean=(0.5,), std=(0.5,), interpolation="bilinear")
    model = part.build(StudentSpec(preprocessing=looks, num_classes=4))
    assert model(torch.zeros(1, 1, 8, 12)).shape == (1, 4) and model.layout.grid == (2, 3)


def test_arguments_survive_without_timm_s_factory(tmp_path: Path, randomise: Callable[..., None]) -> None:
    from transmamba.students.vim.names import vim_micro_patch2_8

    model = vim_micro_patch2_8(depth=1, embed_dim=16, gate_bias=True, in_chans=1).eval()
    randomise(model)
    save_model(model, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pictures = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(loaded(pictures), model(pictures))


def test_a_wrong_option_or_name_is_one_line() -> None:
    with pytest.raises(UserError, match="embed_dimm") as error:
        STUDENTS["vim"](model="vim_tiny_patch16_224", kwargs={"embed_dimm": 3}).build(
            StudentSpec(num_classes=2)
        )
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="did you mean 'vim_small_patch16_224'"):
        STUDENTS["vim"](model="vim_smal_patch16_224").build(StudentSpec(num_classes=2))
    with pytest.raises(UserError, match="global_pool is 'max'"):
        STUDENTS["vim"](model="vim_tiny_patch16_224", kwargs={"global_pool": "max", "depth": 1}).build(
            StudentSpec(num_classes=2)
        )
    for kind in ("vim", "ssd_vit"):
        with pytest.raises(UserError, match=f"{kind} takes its shape from a teacher"):
            STUDENTS[kind]().build(StudentSpec(num_classes=2))


def test_autocast_keeps_the_stream_in_float32(make_student: Make, images: Tensor) -> None:
    model = make_student("vim_micro_patch2_8")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        stream = model.run({"image": images}, ALL).stream
    exact = model.run({"image": images}, ALL).stream
    assert all(hidden.dtype == torch.float32 for hidden in stream.hidden.values())
    assert all(b.dtype == torch.float32 for pair in stream.branches.values() for b in pair)
    torch.testing.assert_close(stream.hidden[2], exact.hidden[2], rtol=0.05, atol=0.1)


def test_other_students_train_any_timm_or_hugging_face_model(tmp_path: Path) -> None:
    part = STUDENTS["timm"](
        model="vit_tiny_patch16_224",
        kwargs=dict(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2),
    )
    assert part.build(StudentSpec(num_classes=3))(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=5
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    model: nn.Module = STUDENTS["hf_vit"](model=str(tmp_path)).build(StudentSpec(num_classes=3))
    assert model(torch.zeros(1, 3, 8, 8)).logits.shape == (1, 3) and model.num_classes == 3


@pytest.mark.parametrize("name", ["timm", "vim", "ssd_vit"])
def test_an_overlay_says_what_images_look_like_and_nothing_else(name: str) -> None:
    """A teacher that is trained from random weights has nobody whose preprocessing it could carry."""
    model = "vit_tiny_patch16_224" if name == "timm" else f"{name}_micro_patch2_8"
    looks = dict(mean=[0.25] * 3, std=[0.5] * 3, crop_pct=1.0)
    student = STUDENTS[name](model=model, kwargs=dict(pretrained_cfg_overlay=looks))
    assert student.preprocessing().mean == (0.25,) * 3 and student.preprocessing().crop_pct == 1.0
    for overlay in ({"file": "weights.bin"}, {**looks, "hf_hub_id": "somebody/vit"}):
        with pytest.raises(ValueError, match=r"kwargs\.pretrained_cfg_overlay\.\w+ is no option of a model"):
            STUDENTS[name](model=model, kwargs=dict(pretrained_cfg_overlay=overlay))


def test_a_folder_s_weights_are_not_left_unread(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"whose weights are not read .* set student.pretrained to true"):
        STUDENTS["timm"](model=str(tmp_path)).build(StudentSpec(num_classes=3))


def test_a_fresh_head_forgets_the_loaded_one_alone(tmp_path: Path) -> None:
    """What a study's teacher needs: the body that was trained, and no label of its training in the head."""
    trained = create_timm("vit_tiny_patch16_224", pretrained=False, num_classes=3, **harness.TEACHER)
    trained.transmamba_args = dict(harness.TEACHER)  # timm before 1.0.31 does not remember them
    save_model(trained, tmp_path)
    changed = []
    for fresh in (False, True):
        part = STUDENTS["timm"](model=str(tmp_path), pretrained=True, fresh_head=fresh)
        state = part.build(StudentSpec(num_classes=3)).state_dict()
        changed.append(
            {name for name, old in trained.state_dict().items() if not torch.equal(old, state[name])}
        )
    assert changed == [set(), {"head.weight", "head.bias"}]


def test_saving_does_not_rely_on_timms_own_record_of_arguments(tmp_path):
    """timm before 1.0.30 kept none for its own models."""
    shape = dict(img_size=8, patch_size=2, embed_dim=33, depth=2)
    model = create_timm("vit_tiny_patch16_224", pretrained=False, **shape)
    if hasattr(model, "_model_args"):
        del model._model_args
    save_model(model, tmp_path)
    again = create_timm(str(tmp_path), pretrained=True)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again.eval()(images), model.eval()(images))


@pytest.mark.parametrize("name", ["vim_micro_patch2_8", "ssd_vit_micro_patch2_8"])
def test_distillation_features_with_checkpointing_have_the_same_gradients(name):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = timm.create_model(name, depth=2, embed_dim=32, in_chans=1).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(1)
        capture = {"image": Capture(branches=frozenset({1}), mixers={0: frozenset(("B",))})}
        output = model.run({"image": torch.randn(2, 1, 8, 8)}, capture)
        forward, backward = output.stream.branches[1]
        (output.logits().sum() + forward.square().mean() + backward.mean()).backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient is not None, key
        torch.testing.assert_close(gradients[1][key], gradient)
