"""What acts in a module beside its weights is found when it becomes a teacher, and refused by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from transmamba import adapt_teacher
from transmamba.errors import UserError


class Adapted(nn.Linear):
    """A linear with a low-rank part beside its weight, as an adapter that is injected in its place."""

    def __init__(self, base: nn.Linear, strength: float = 0.2) -> None:
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())
        self.a = nn.Parameter(torch.randn(2, base.in_features))
        self.b = nn.Parameter(strength * torch.randn(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.a), self.b)


class Wrapped(nn.Module):
    """The same around the linear, with its weight and bias to be found, as peft's layers have them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * self.base_layer(x)


def hf_vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_labels=3
    )
    return ViTForImageClassification(config).eval()


PLACES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [Adapted, Wrapped])
def test_an_adapter_is_refused_by_its_place(kind: Any, place: str, make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    block, name = place.split(".")
    parent = getattr(model.blocks[1], block)
    setattr(parent, name, kind(getattr(parent, name)).eval())
    with pytest.raises(UserError, match=f"blocks.1.{place}.*{kind.__name__}") as error:
        adapt_teacher(model)
    assert "\n" not in str(error.value) and "merge" in str(error.value)


def test_an_adapter_that_does_nothing_yet_is_none(make_vit: Callable[..., Any], gray_images: Tensor) -> None:
    model = make_vit()
    model.blocks[0].attn.qkv = Adapted(model.blocks[0].attn.qkv, strength=0.0)
    made = adapt_teacher(model)(gray_images).logits
    assert made is not None
    with torch.no_grad():
        torch.testing.assert_close(made(), model(gray_images), rtol=1e-4, atol=1e-4)


def test_a_hugging_face_adapter_is_refused() -> None:
    model = hf_vit()
    assert adapt_teacher(model).num_classes == 3
    layer = model.vit.layers[1] if hasattr(model.vit, "layers") else model.vit.encoder.layer[1]
    layer.mlp.fc1 = Adapted(layer.mlp.fc1)
    with pytest.raises(UserError, match=r"1\.mlp\.fc1 \(Adapted\)"):
        adapt_teacher(model)


@pytest.mark.parametrize("where", ["forward", "before", "own"])
def test_a_hook_that_changes_what_comes_out_is_refused(where: str, make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    block = model.blocks[2]
    if where == "forward":
        block.mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    elif where == "before":
        block.mlp.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    else:
        block.mlp.forward = lambda x: x
    with pytest.raises(UserError, match=r"blocks\.2\.mlp \(a forward"):
        adapt_teacher(model)


def test_a_hook_that_only_looks_is_fine(make_vit: Callable[..., Any]) -> None:
    model, seen = make_vit(), []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    adapt_teacher(model)
    assert len(seen) == 1, "module and view are compared once"


def test_a_parametrized_weight_is_what_it_computes(make_vit: Callable[..., Any], gray_images: Tensor) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    model = make_vit()
    parametrize.register_parametrization(model.blocks[0].mlp.fc1, "weight", Doubled())
    made = adapt_teacher(model)(gray_images).logits
    assert made is not None
    with torch.no_grad():
        torch.testing.assert_close(made(), model(gray_images), rtol=1e-4, atol=1e-4)


def test_the_user_s_module_and_generators_are_left_as_they_were(make_vit: Callable[..., Any]) -> None:
    model = make_vit(drop_rate=0.3, proj_drop_rate=0.3).train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    random.seed(5)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapt_teacher(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_compared_too(dtype: torch.dtype, make_vit: Callable[..., Any]) -> None:
    assert adapt_teacher(make_vit().to(dtype)).num_classes == 10
    model = make_vit().to(dtype)
    model.blocks[1].mlp.register_forward_hook(lambda module, inputs, output: -3 * output)
    with pytest.raises(UserError, match="forward hook"):
        adapt_teacher(model)


def test_under_autocast_nothing_is_rounded(make_vit: Callable[..., Any]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert adapt_teacher(make_vit()).num_classes == 10


def test_a_module_that_cannot_run_is_one_line(make_vit: Callable[..., Any]) -> None:
    model = make_vit()

    def broken(*_: Any) -> Any:
        raise RuntimeError("no kernel\nfor this")

    model.blocks[0].register_forward_hook(broken)
    with pytest.raises(UserError, match=r"its own forward fails: no kernel$"):
        adapt_teacher(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(make_vit: Callable[..., Any]) -> None:
    state = torch.cuda.get_rng_state()
    teacher = adapt_teacher(make_vit().cuda())
    assert teacher.device.type == "cuda" and torch.equal(torch.cuda.get_rng_state(), state)
    model = make_vit().cuda()
    model.blocks[0].attn.qkv = Adapted(model.blocks[0].attn.qkv).cuda()
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv \(Adapted\)"):
        adapt_teacher(model)
