"""Models of transformers whose tokens are few kernels: norms, MLPs, mixers' steps, a layer of zeros.

`TRANSMAMBA_KERNELS=reference` has them run on a CPU, where the patch leaves transformers' own otherwise.
"""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from test_transformers_patch import CONFIGS, assert_near, build
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache
from transmamba_kernels import mamba2_step, normed_gated_product, patch_transformers, rms_norm, skinny_linear
from transmamba_kernels import transformers_tokens as tokens
from transmamba_kernels.transformers_patch import MODELS

# models whose mixers take a step in one call
STEPS = ("bamba", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2")


def module_of(name: str) -> Any:
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


@pytest.fixture
def forced(monkeypatch):
    monkeypatch.setenv("TRANSMAMBA_KERNELS", "reference")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The operators that patched models called."""
    found: list[str] = []
    names = ("gated_product", "mamba2_step", "normed_gated_product", "rms_norm", "silu_mul", "skinny_linear")
    for name in names:
        plain = getattr(tokens, name)

        def counted(*args: Any, plain: Any = plain, name: str = name, **kwargs: Any) -> Any:
            found.append(name)
            return plain(*args, **kwargs)

        monkeypatch.setattr(tokens, name, counted)
    return found


def norms() -> Iterator[Any]:
    for name in MODELS:
        for owner, _ in tokens.classes(module_of(name)):
            if "Norm" in owner.__name__ and "Weightless" not in owner.__name__:
                yield pytest.param(name, owner, id=owner.__name__)


@torch.no_grad()
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "owner"), list(norms()))
def test_norms_round_as_theirs(forced, calls, name, owner, dtype, grouped):
    """Bit for bit. Of groups where the class knows some."""
    torch.manual_seed(0)
    knows = "group_size" in inspect.signature(owner).parameters
    norm = owner(24, group_size=6 if grouped else 24) if knows else owner(24)
    norm.weight.copy_(torch.randn(24))
    norm = norm.to(dtype)
    inputs = [3 * torch.randn(2, 5, 24).to(dtype) for _ in range(2 if "Gated" in owner.__name__ else 1)]
    expected = norm(*inputs)
    with patch_transformers([name]):
        assert torch.equal(norm(*inputs), expected) and calls == ["rms_norm"]
    assert torch.equal(norm(*inputs), expected) and calls == ["rms_norm"]


def test_all_that_should_be_replaced_is(forced):
    found = {name: {owner.__name__ for owner, _ in tokens.classes(module_of(name))} for name in MODELS}
    for names in (tokens.MIXERS, tokens.MLPS, tokens.STACKED_MLPS, tokens.LAYERS):
        assert names <= set().union(*found.values())
    assert {name for name in MODELS if found[name] & tokens.MIXERS} == set(STEPS)
    assert found["bamba"] == {
        "BambaRMSNorm",
        "BambaRMSNormGated",
        "BambaMixer",
        "BambaMLP",
        "BambaDecoderLayer",
    }
    assert "NemotronHRMSNorm" not in found["nemotron_h"]  # which rounds last


def test_is_undone():
    before = {owner: owner.forward for name in MODELS for owner, _ in tokens.classes(module_of(name))}
    with patch_transformers() as patch:
        assert patch.models == sorted(MODELS)
        assert all(owner.forward is not plain for owner, plain in before.items())
        replaced = {owner: owner.forward for owner in before}
        with patch_transformers():
            assert all(owner.forward is one for owner, one in replaced.items())
    assert all(owner.forward is plain for owner, plain in before.items())


def cached(model: Any, text: Tensor, prompt: int, cache: Any, begin: int = 0) -> Tensor:
    """(B, L - prompt + 1, V): a prompt's last logits, and those of each token behind it; the text's first
    token is the `begin`th.
    """
    name = "cache_params" if model.config.model_type == "mamba2" else "past_key_values"
    said = []
    for part in [slice(0, prompt), *[slice(t, t + 1) for t in range(prompt, text.shape[1])]]:
        more: dict[str, Any] = {name: cache, "use_cache": True}
        if "position_ids" in inspect.signature(model.forward).parameters:  # bamba begins anew without
            more["position_ids"] = begin + torch.arange(text.shape[1], device=text.device)[None, part]
        said.append(model(text[:, part], **more).logits[:, -1:])
    return torch.cat(said, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("name", STEPS)
def test_decodes_what_the_model_says_without_a_cache(forced, calls, name, groups, bias):
    """Also the states that it leaves, in the tensors where they were."""
    small = "n_groups" in CONFIGS[name]
    other = {"zamba2": "mamba_ngroups"}.get(name, "n_groups" if small else "mamba_n_groups")
    projected, convolved = ("use_bias", "use_conv_bias") if small else ("mamba_proj_bias", "mamba_conv_bias")
    biases = {projected: bias, convolved: not bias}
    model = build(name, **{other: groups}, **biases).eval()
    text = torch.randint(1, 64, (3, 12), generator=torch.Generator().manual_seed(3))
    expected = model(text, use_cache=False).logits[:, 4:]
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    cached(model, text, 5, caches[0])
    with patch_transformers([name]):
        found = cached(model, text[:, :-1], 5, caches[1])
        mixers = sum(type(m).__name__ in tokens.MIXERS for m in model.modules())
        assert mixers and calls.count("mamba2_step") == 6 * mixers
        held = states(caches[1])
        where = [x.data_ptr() for x in held]
        found = torch.cat([found, cached(model, text[:, -1:], 1, caches[1], begin=11)], dim=1)
    assert [x.data_ptr() for x in states(caches[1])] == where
    assert_near(found, expected, "logits")
    for ours, theirs in zip(states(caches[1]), states(caches[0]), strict=True):
        assert_near(ours, theirs, "states", 1e-5)


def states(cache: Any) -> list[Tensor]:
    layers = [layer for layer in cache.layers if hasattr(layer, "conv_states")]
    return [x for layer in layers for x in (layer.conv_states[0], layer.recurrent_states[0]) if x is not None]


@torch.no_grad()
@pytest.mark.parametrize("name", STEPS)
def test_left_padded_rows_are_gone_on_with(forced, calls, name):
    model = build(name).eval()
    text = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(text)
    text[1, :4], mask[1, :4] = 0, 0
    switches = dict(max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
    expected = model.generate(text, attention_mask=mask, **switches)
    with patch_transformers([name]):
        found = model.generate(text, attention_mask=mask, **switches)
    assert "mamba2_step" in calls
    assert torch.equal(found.sequences, expected.sequences)
    assert_near(torch.stack(found.logits), torch.stack(expected.logits), "logits")


def step(model: Any, cache: Any, **more: Any) -> Tensor:
    """Of the first mixer, one token of two rows."""
    torch.manual_seed(5)
    mixer = next(m for m in model.modules() if type(m).__name__ in tokens.MIXERS)
    out: Tensor = mixer(torch.randn(2, 1, model.config.hidden_size), cache_params=cache, **more)
    return out


def left_alone(calls: list[str], model: Any, change: Any = lambda cache: None, **more: Any) -> None:
    """A patched mixer's step is transformers' own."""
    found = []
    for patched in (False, True):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(torch.ones(2, 7, dtype=torch.int64), past_key_values=cache, use_cache=True)
        change(cache)
        calls.clear()
        with patch_transformers(["bamba"] if patched else []):
            found.append([step(model, cache, **more).detach(), *states(cache)])
        assert "mamba2_step" not in calls
    for ours, theirs in zip(*found, strict=True):
        assert_near(ours, theirs, "step")


@torch.no_grad()
def test_what_it_does_not_cover_is_left_to_transformers(forced, calls):
    model = build("bamba").eval()
    left_alone(calls, model, attention_mask=torch.tensor([[1], [0]]))
    left_alone(calls, model, lambda cache: cache.layers[0].activate_past_recording())
    left_alone(calls, build("bamba", hidden_act="gelu").eval())
    handle = model.model.layers[0].mamba.norm.register_forward_hook(lambda *args: None)
    left_alone(calls, model)
    handle.remove()
    cache = DynamicCache(config=model.config)
    model(torch.ones(2, 7, dtype=torch.int64), past_key_values=cache, use_cache=True)
    with patch_transformers(["bamba"]):
        step(model, cache)
        assert calls.count("mamba2_step") == 1
        with pytest.raises(ValueError, match="seq_idx: a tensor, expected None in a decode step"):
            step(model, cache, seq_idx=torch.zeros(2, 1, dtype=torch.int32))


def test_with_gradients_and_without_a_gpu_nothing_is_fused(calls, monkeypatch):
    model, text = build("bamba").eval(), torch.arange(1, 13)[None]
    for frozen in (False, True):
        with patch_transformers(["bamba"]), torch.set_grad_enabled(not frozen):
            cached(model, text, 11, DynamicCache(config=model.config))
    monkeypatch.setenv("TRANSMAMBA_KERNELS", "reference")
    with patch_transformers(["bamba"]):
        model(text, labels=text, use_cache=False).loss.backward()
        assert model.model.layers[0].input_layernorm.weight.grad.any()
    assert not calls


class Kernels(TorchDispatchMode):
    """What a token calls of torch that is no view, and of our operators, by name."""

    VIEWS = ("view", "expand", "slice", "select", "squeeze", "transpose", "t.", "split", "alias", "detach")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.inside = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).removeprefix("aten.")
        if not self.inside and not any(view in name for view in self.VIEWS):
            self.found[name] += 1
        return function(*args, **(kwargs or {}))

    def as_one(self, operator: Any) -> Any:
        def call(*args: Any) -> Any:
            self.found[operator.__name__] += 1
            self.inside = True
            try:
                return operator(*args)
            finally:
                self.inside = False

        return call


@torch.no_grad()
def test_a_layer_of_mamba_is_four_operators(forced):
    """A norm, the step with the product in front of it, all from there to the MLP's middle, a product that
    adds."""
    found = []
    for depth in (2, 3):
        model = build("bamba", num_hidden_layers=depth, attn_layer_indices=[0]).bfloat16().eval()
        cache, kernels = DynamicCache(config=model.config), Kernels()
        with pytest.MonkeyPatch.context() as patch, patch_transformers(["bamba"]):
            cached(model, torch.ones(2, 6, dtype=torch.int64), 5, cache)
            for operator in (mamba2_step, normed_gated_product, rms_norm, skinny_linear):
                patch.setattr(tokens, operator.__name__, kernels.as_one(operator))
            with kernels:
                cached(model, torch.ones(2, 1, dtype=torch.int64), 1, cache, begin=6)
        found.append(kernels.found)
    assert found[1] - found[0] == {
        "skinny_linear": 1,
        "rms_norm": 1,
        "mamba2_step": 1,
        "normed_gated_product": 1,
    }


@torch.no_grad()
@pytest.mark.parametrize("case", ["few", "many", "bias", "hooked", "gelu"])
def test_an_mlp_is_one_product_where_it_may_be(forced, calls, case):
    """Bit for bit what it was."""
    changes = {"bias": {"mlp_bias": True}, "gelu": {"hidden_act": "gelu"}}.get(case, {})
    mlp = build("bamba", **changes).model.layers[0].feed_forward
    called: list[int] = []
    if case == "hooked":
        mlp.up_proj.register_forward_hook(lambda *args: called.append(1))
    x = torch.randn(17 if case == "many" else 16, 1, 32)
    expected = mlp(x)
    with patch_transformers(["bamba"]):
        assert torch.equal(mlp(x), expected)
    assert calls == {"few": ["gated_product"], "gelu": []}.get(case, ["silu_mul"])
    assert len(called) == 2 * (case == "hooked")


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 16, 17])
def test_a_layer_of_few_rows_is_what_it_was(forced, calls, rows):
    """Of the stream and of the states."""
    model = build("bamba").eval()
    found = []
    for patched in (False, True):
        cache = DynamicCache(config=model.config)
        cached(model, torch.ones(rows, 6, dtype=torch.int64), 6, cache)
        with patch_transformers(["bamba"]) if patched else nullcontext():
            said = cached(model, torch.arange(rows)[:, None], 1, cache, begin=6)
        found.append([said, *states(cache)])
    for ours, theirs in zip(*found, strict=True):
        assert_near(ours, theirs, "step")
    layers = sum(hasattr(layer, "mamba") for layer in model.model.layers)
    for operator in ("skinny_linear", "normed_gated_product"):
        assert calls.count(operator) == (layers if rows <= 16 else 0)


@torch.no_grad()
@pytest.mark.parametrize("case", ["hooked", "another class", "float32", "packed"])
def test_a_norm_that_somebody_waits_for_is_called(forced, calls, case):
    """Hooks, classes of others, and weights that make the norm wider or hold their numbers elsewhere."""
    model, called = build("bamba").bfloat16().eval(), []
    cache = DynamicCache(config=model.config)
    cached(model, torch.ones(2, 6, dtype=torch.int64), 6, cache)
    for layer in model.model.layers:
        norm = layer.pre_ff_layernorm
        if case == "hooked":
            norm.register_forward_hook(lambda *args: called.append(1))
        elif case == "another class":
            layer.pre_ff_layernorm = torch.nn.Sequential(norm)
        elif case == "packed":
            norm.weight = torch.nn.Parameter(Packed(norm.weight.data), requires_grad=False)
        else:
            norm.float()
    # what a wider norm gives, the products' weights cannot multiply: no operator may hide that
    says = pytest.raises((RuntimeError, ValueError), match="dtype") if case == "float32" else nullcontext()
    with patch_transformers(["bamba"]), says:
        cached(model, torch.ones(2, 1, dtype=torch.int64), 1, cache, begin=6)
    assert "gated_product" in calls and "normed_gated_product" not in calls
    assert bool(called) == (case == "hooked")


# mamba.conv1d is not called for a token by transformers either
PARTS = ["mamba", "mamba.in_proj", "mamba.out_proj", "mamba.norm", "input_layernorm", "pre_ff_layernorm"]
PARTS += [
    "feed_forward",
    *(f"feed_forward.{name}" for name in ("gate_proj", "up_proj", "down_proj", "act_fn")),
]


@torch.no_grad()
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["hook", "forward"])
def test_whoever_waits_for_a_part_of_a_layer_hears_of_it(forced, part, kind):
    """Hooks, and a forward of its own, as adapters and offloading have."""
    model = build("bamba").eval()
    module = model.model.layers[0].get_submodule(part)
    heard: list[int] = []
    if kind == "hook":
        module.register_forward_hook(lambda *args: heard.append(1))
    else:
        plain = module.forward
        module.forward = lambda *args, **kwargs: (heard.append(1), plain(*args, **kwargs))[1]
    cache = DynamicCache(config=model.config)
    cached(model, torch.ones(2, 6, dtype=torch.int64), 6, cache)
    with patch_transformers(["bamba"]):
        before = len(heard)
        cached(model, torch.ones(2, 1, dtype=torch.int64), 1, cache, begin=6)
    assert len(heard) == before + 1


@torch.no_grad()
@pytest.mark.parametrize("part", [part for part in PARTS if "norm" not in part])
def test_a_part_of_another_class_is_called(forced, part):
    """As an adapter or a quantised one is."""
    model = build("bamba").eval()
    plain = model.model.layers[0].get_submodule(part)

    class Other(type(plain)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return 2.0 * super().forward(*args, **kwargs)

    plain.__class__ = Other
    patched_is_plain(model)


def patched_is_plain(model: Any) -> None:
    """A token behind six, of two rows."""
    found = []
    for patched in (False, True):
        cache = DynamicCache(config=model.config)
        cached(model, torch.ones(2, 6, dtype=torch.int64), 6, cache)
        with patch_transformers(["bamba"]) if patched else nullcontext():
            found.append(cached(model, torch.ones(2, 1, dtype=torch.int64), 1, cache, begin=6))
    assert_near(found[1], found[0], "logits")


@torch.no_grad()
@pytest.mark.parametrize("method", ["lora_x", "lora_out", "conv1d", "state_offset_y", "parallel_adapter"])
def test_an_adapter_is_not_passed_by(forced, method):
    """It stands in the mixer's place and hands the mixer's attributes on."""
    peft = pytest.importorskip("peft")
    from transmamba.peft import MambaPeftConfig

    config = MambaPeftConfig(methods=[method], task_type="CAUSAL_LM")
    model = peft.get_peft_model(build("bamba"), config).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.manual_seed(len(name))
            parameter.add_(torch.randn_like(parameter))
    patched_is_plain(model.base_model.model)


class Packed(Tensor):
    """A weight that is two numbers of another kind, as a quantised or a sharded one is."""

    @staticmethod
    def __new__(cls, whole: Tensor) -> Tensor:
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=whole.dtype)

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].whole)
        return function(*(x.whole if isinstance(x, cls) else x for x in args), **(kwargs or {}))


@torch.no_grad()
def test_a_weight_of_another_class_is_left_to_its_module(forced, calls):
    model = build("bamba").eval()
    for layer in model.model.layers:
        for linear in (layer.feed_forward.up_proj, layer.feed_forward.down_proj):
            linear.weight = torch.nn.Parameter(Packed(linear.weight.data), requires_grad=False)
    patched_is_plain(model)
    assert "rms_norm" in calls
    assert not {"skinny_linear", "gated_product", "normed_gated_product"} & set(calls)


@pytest.mark.parametrize("name", ["bamba", "granitemoehybrid"])
def test_gradients_are_checkpointed_as_without(forced, name):
    model = build(name).train()
    model.gradient_checkpointing_enable()
    counted: list[int] = []
    for layer in model.model.layers:
        plain = layer._gradient_checkpointing_func
        layer._gradient_checkpointing_func = lambda *args, plain=plain, **kwargs: (
            counted.append(1),
            plain(*args, **kwargs),
        )[1]
    text = torch.ones(1, 4, dtype=torch.int64)
    for patched in (False, True, False):
        counted.clear()
        with patch_transformers([name]) if patched else nullcontext():
            model(text, use_cache=False)
        assert len(counted) == len(model.model.layers)
