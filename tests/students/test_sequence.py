"""The student `sequence`: its patterns, and its layers against other code of the same thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import transmamba
from transmamba.config.registry import STUDENTS
from transmamba.core.points import PointShape
from transmamba.core.tower import Student, StudentSpec, Tower
from transmamba.ecosystems.find import save_model
from transmamba.errors import UserError, WrongValues
from transmamba.layers.mamba1 import SelectiveMixer
from transmamba.layers.s4d import S4DMixer
from transmamba.students.sequence.names import Sequence
from transmamba.students.sequence.pattern import ARCHITECTURES, parsed

POINTS = PointShape(width=5, outputs=2, length=12)
SIZES: dict[str, Any] = dict(width=16, heads=2, layers=2)


def made(**options: Any) -> Any:
    torch.manual_seed(0)
    model = Sequence(**{**SIZES, **options}).build(StudentSpec(points=POINTS))
    with torch.no_grad():
        for parameter in model.parameters():  # positions and biases, too, are of a size that is seen
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def points(rows: int = 3, length: int = 12) -> Tensor:
    return torch.randn(rows, length, 5, generator=torch.Generator().manual_seed(1))


# --- patterns ---


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("M(AM)*2", "MAMAM"),
        ("(AF)*2", "AFAF"),
        ("A*3 M", "AAAM"),
        ("MSAF", "MSAF"),
        ("(A M)*1", "AM"),
        ("(M)", "M"),
    ],
)
def test_a_pattern_is_its_layers(pattern: str, layers: str) -> None:
    assert parsed(pattern) == layers


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "it has no layers"),
        ("M(AM", "nothing is known at '(AM'"),
        ("M((AM)*2)*2", "nothing is known at '((AM)*2)*2'"),
        ("MXA", "'X' is no layer"),
        ("am", "nothing is known at 'am'"),
        ("(AM)*0", "'(AM)*0' is nothing"),
        ("M*", "nothing is known at '*'"),
        ("()*2", "'()*2' is nothing"),
        ("(AM)*99999999", "it has more than 512 layers"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(UserError, match=r"write letters .* such as M") as told:
        parsed(pattern)
    assert str(told.value).startswith(f"pattern {pattern!r}: {why}; ") and "\n" not in str(told.value)


def test_the_architectures_are_the_paper_s() -> None:
    """Layers and positions as arXiv 2402.04248 has them."""
    found = {
        name: (made(architecture=name).shape.pattern, made(architecture=name).shape.positions > 0)
        for name in ARCHITECTURES
    }
    assert found == {
        "transformer": ("AFAF", True),
        "mamba": ("MMMM", False),
        "s4_mamba": ("SSSS", False),
        "standard_hybrid": ("AMAM", True),
        "mambaformer": ("MAMAM", False),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(pattern="MA", architecture="mamba"),
            "pattern is 'MA' beside architecture mamba; write one of them",
        ),
        (
            dict(pattern="M(AM)*3", layers=2),
            r"layers is 2 beside pattern 'M\(AM\)\*3', whose 7 layers are 3 pairs; write 3, or leave it out",
        ),
        (dict(pattern="A", layers=1), "layers is 1 beside pattern 'A', whose 1 layers are 0 pairs; leave it"),
        (dict(pattern="M(A"), r"pattern 'M\(A': nothing is known"),
        (dict(architecture="mamba", dropout=0.1), "dropout is 0.1, but S alone has one; leave it out"),
        (dict(architecture="mamba", groups=2), "groups is given, but no layer is a mamba2; leave it out"),
        (dict(layers=0), "layers is 0; write a number of at least 1"),
        *(
            ({name: 0, "mixer": "mamba2"}, f"{name} is 0; write a number of at least 1")
            for name in ("width", "heads", "mlp_width", "expand", "state", "groups", "head_size")
        ),
        (dict(pattern=""), "pattern '': it has no layers"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongValues, match=message):
        Sequence(**options)


@pytest.mark.parametrize(("pattern", "layers"), [("M(AM)*3", 3), ("(AF)*4", 4), ("A", None), ("MAMAM", None)])
def test_a_pattern_is_not_counted_otherwise(pattern: str, layers: int | None) -> None:
    assert Sequence(pattern=pattern, layers=layers).letters == parsed(pattern)
    assert Sequence().letters == "MAMAM", "of two pairs"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(width=15), "heads is 2, of which width, 15, is no multiple"),
        (dict(mixer="mamba2", head_size=3), "head_size is 3, of which expand \\* width, 32, is no multiple"),
        (
            dict(mixer="mamba2", head_size=8, groups=3),
            "groups is 3, of which mamba2's 4 heads are no multiple",
        ),
        (dict(conv=9), "conv is 9; write 2, 3 or 4 taps"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_when_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"student sequence: {message}"):
        made(**options)


def test_a_task_of_no_points_is_refused() -> None:
    with pytest.raises(UserError, match="student sequence reads points, which this task has not"):
        Sequence().build(StudentSpec(num_classes=10))


# --- layers, against others ---


def test_attention_and_mlp_are_gpt2_s() -> None:
    """transformers' GPT-2 of the same weights, but for its table of words."""
    from transformers import GPT2Config, GPT2Model

    model = made(architecture="transformer")
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=12, vocab_size=1, attn_implementation="eager"
    )
    theirs = GPT2Model(config).eval()
    layers = model.layers
    with torch.no_grad():
        theirs.wpe.weight.copy_(model.positions)
        for k, block in enumerate(theirs.h):
            attention, mlp = layers[2 * k], layers[2 * k + 1]
            block.ln_1.load_state_dict(attention.norm.state_dict())
            block.ln_2.load_state_dict(mlp.norm.state_dict())
            qkv = [getattr(attention.mixer, f"{name}_proj") for name in "qkv"]
            block.attn.c_attn.weight.copy_(torch.cat([each.weight for each in qkv]).mT)
            block.attn.c_attn.bias.copy_(torch.cat([each.bias for each in qkv]))
            for mine, other in (
                (attention.mixer.o_proj, block.attn.c_proj),
                (mlp.mixer.up_proj, block.mlp.c_fc),
                (mlp.mixer.down_proj, block.mlp.c_proj),
            ):
                other.weight.copy_(mine.weight.mT)
                other.bias.copy_(mine.bias)
        theirs.ln_f.load_state_dict(model.norm.state_dict())
        x = points()
        wanted = model.read_out(theirs(inputs_embeds=model.read_in(x)).last_hidden_state)
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


def test_the_selective_mixer_is_transformers_mamba() -> None:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    mine = SelectiveMixer(16, expand=2, d_state=6, d_conv=3)
    config = MambaConfig(
        hidden_size=16, state_size=6, expand=2, conv_kernel=3, time_step_rank=1, vocab_size=1
    )
    theirs = MambaMixer(config, layer_idx=0)
    assert {name: p.shape for name, p in theirs.named_parameters()} == {
        name: p.shape for name, p in mine.named_parameters()
    }
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(2, 9, 16)
    with torch.no_grad():
        torch.testing.assert_close(mine(x).output, theirs(x), rtol=1e-4, atol=1e-6)


def test_decays_and_steps_of_scans_do_not_decay() -> None:
    for mixer, exempt in (
        (SelectiveMixer(16, d_state=4, expand=2, d_conv=4), {"A_log", "D"}),
        (S4DMixer(16, d_state=4, expand=2, d_conv=4), {"log_dt", "log_A_real", "A_imag"}),
    ):
        assert mixer.no_weight_decay() == exempt <= {name for name, _ in mixer.named_parameters()}


def test_s4d_is_its_recurrence() -> None:
    """Discretised by zero-order hold and stepped through in complex128."""
    torch.manual_seed(0)
    mixer = S4DMixer(4, expand=2, d_state=6)
    u = torch.randn(2, 11, 4)
    with torch.no_grad():
        x, z = (part.double() for part in mixer.convolved(u))
        A = torch.complex(-mixer.log_A_real.double().exp(), mixer.A_imag.double())
        step = mixer.log_dt.double().exp()[:, None]
        decay = (step * A).exp()
        B = (decay - 1) / A
        C = torch.view_as_complex(mixer.C.double())
        state, made = torch.zeros(2, *A.shape, dtype=torch.complex128), []
        for t in range(11):
            state = decay * state + B * x[:, t, :, None]
            made.append(2 * (C * state).sum(dim=-1).real + mixer.D.double() * x[:, t])
        y = torch.stack(made, dim=1) * z * z.sigmoid()
        wanted = y @ mixer.out_proj.weight.double().mT
        torch.testing.assert_close(mixer(u).output.double(), wanted, rtol=1e-4, atol=1e-5)


def test_s4d_alone_drops_out_and_only_in_training() -> None:
    model, x = made(architecture="s4_mamba", dropout=0.5), points()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    assert torch.equal(made(architecture="s4_mamba").train()(x), made(architecture="s4_mamba").train()(x))


ALL = [
    *({"architecture": name} for name in ARCHITECTURES),
    {"architecture": "mambaformer", "mixer": "mamba2"},
]


@pytest.mark.parametrize("options", ALL, ids=lambda each: "-".join(each.values()))
class TestEvery:
    def test_no_point_sees_those_behind_it(self, options: dict[str, Any]) -> None:
        model, x = made(**options), points()
        changed = x.clone()
        changed[:, 7:] = torch.randn_like(x[:, 7:])
        with torch.no_grad():
            one, other = model(x), model(changed)
        torch.testing.assert_close(one[:, :7], other[:, :7], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(one[:, 7:], other[:, 7:], atol=1e-3)

    def test_earlier_points_are_seen(self, options: dict[str, Any]) -> None:
        model, x = made(**options), points()
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(model(x)[:, -1].sum(), x)
        assert (gradient[:, :-4].abs().amax(dim=(1, 2)) > 1e-9).all()

    def test_it_is_a_student(self, options: dict[str, Any]) -> None:
        model = made(**options)
        assert isinstance(model, Student) and isinstance(model.towers["points"], Tower)
        groups, names = model.groups(), [name for name, _ in model.named_parameters()]
        assert groups.keys() == {*Sequence.group_names}
        of = {name: [group for group in groups if groups[group](name)] for name in names}
        assert all(len(found) == 1 for found in of.values()), "each parameter is in one group"

    def test_it_comes_back_from_its_folder(self, options: dict[str, Any], tmp_path: Path) -> None:
        model, x = made(**options), points()
        save_model(model, tmp_path / "student")
        loaded: nn.Module = transmamba.load_student(tmp_path)
        assert torch.equal(loaded(x), model(x)) and not loaded.training
        assert sorted(path.name for path in (tmp_path / "student").iterdir()) == [
            "config.json",
            "model.safetensors",
        ]


def test_more_points_than_positions_are_refused() -> None:
    with pytest.raises(UserError, match="a sequence has 13 points; this model has 12 positions"):
        made(architecture="transformer")(points(length=13))
    assert made(architecture="mambaformer")(points(length=13)).shape == (3, 13, 2)


def test_a_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    save_model(made(), tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    del said["transmamba"]["state"]
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"its config\.json lacks state"):
        transmamba.load_student(tmp_path)


def test_weights_of_another_model_are_refused_in_a_line(tmp_path: Path) -> None:
    save_model(made(), tmp_path)
    save_model(made(width=8), tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not hold this model") as told:
        transmamba.load_student(tmp_path)
    assert "\n" not in str(told.value)


def test_it_begins_as_gpt2_and_mamba_do() -> None:
    """Deviations of 0.02, what writes to the stream over the root of the layers; Mamba's own steps."""
    torch.manual_seed(0)
    model: Any = Sequence(architecture="mambaformer", layers=3, width=128).build(StudentSpec(points=POINTS))
    model.requires_grad_(False)
    attention, mamba = model.layers[1].mixer, model.layers[0].mixer
    assert attention.q_proj.weight.std() == pytest.approx(0.02, rel=0.05)
    assert attention.o_proj.weight.std() == pytest.approx(0.02 / 7**0.5, rel=0.05)
    usual = float(nn.Linear(256, 128).weight.detach().std())
    assert mamba.out_proj.weight.std() == pytest.approx(usual / 7**0.5, rel=0.05)
    steps = nn.functional.softplus(mamba.dt_proj.bias)
    assert 0.9e-3 < steps.min() < 2e-3 and 0.05 < steps.max() < 0.11


def test_it_is_registered() -> None:
    assert STUDENTS["sequence"] is Sequence
