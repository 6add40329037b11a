"""CLIP's family: every stream and both embeddings of the view are the library's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, RobertaConfig, SiglipConfig, SiglipModel

from transmamba import Teacher, adapt_teacher, load_teacher
from transmamba.ecosystems import open_clip as ecosystem
from transmamba.ecosystems.origin import Origin
from transmamba.errors import UserError
from transmamba.teachers.check import Original, differences
from transmamba.teachers.hf_clip import HuggingFaceClip
from transmamba.teachers.open_clip import OpenClip
from transmamba.views.heads import AttentionPool, EndOfText

WORDS, VOCABULARY, EMBEDDED = 9, 120, 24
IMAGE: dict[str, Any] = dict(layers=2, width=32, head_width=8, patch_size=4, image_size=16)
TEXT: dict[str, Any] = dict(
    layers=2, width=24, heads=3, context_length=WORDS, vocab_size=VOCABULARY, eos_id=VOCABULARY - 1
)
TANH = dict(act_kwargs=dict(approximate="tanh"), norm_kwargs=dict(eps=1e-6))
SIGLIP_TEXT: dict[str, Any] = dict(no_causal_mask=True, pool_type="last", proj_bias=True, **TANH)
CLIPA_TEXT: dict[str, Any] = dict(no_causal_mask=True, pool_type="last")


def _register(name: str, **shape: Any) -> None:
    def make(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        from timm.models.vision_transformer import _create_vision_transformer

        whole = dict(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4) | shape | kwargs
        return _create_vision_transformer("vit_tiny_patch16_224", pretrained, **whole)

    make.__name__ = make.__qualname__ = name
    if not timm.is_model(name):
        timm.models.register_model(make)


# open_clip hands timm no shape
_register("clip_tests_vit", pre_norm=True, reg_tokens=2)
_register("clip_tests_siglip", class_token=False, global_pool="map")
_register("clip_tests_prefix", global_pool="map")


def trunk(name: str = "vit", **cfg: Any) -> dict[str, Any]:
    return dict(timm_model_name=f"clip_tests_{name}", image_size=16) | cfg


def of_open_clip(
    image: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **rest: Any
) -> nn.Module:
    cfg: dict[str, Any] = dict(embed_dim=EMBEDDED)
    cfg["vision_cfg"] = image if image and "timm_model_name" in image else IMAGE | (image or {})
    cfg["text_cfg"] = TEXT | (text or {})
    custom = rest.pop("custom_text", False)
    kind: Any = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model = kind(**cfg, **rest)
    ecosystem.say_made_from(model, {**cfg, **rest, "custom_text": custom}, Origin())
    return model


def of_clip(**text: Any) -> nn.Module:
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    act = text.pop("hidden_act", "quick_gelu")
    ends = dict(bos_token_id=0, pad_token_id=1, eos_token_id=VOCABULARY - 1)
    words = dict(vocab_size=VOCABULARY, max_position_embeddings=WORDS, hidden_act=act)
    config = CLIPConfig(
        text_config={**shape, **words, **ends, **text},
        vision_config={**shape, "hidden_size": 24, "image_size": 16, "patch_size": 4, "hidden_act": act},
        projection_dim=EMBEDDED,
    )
    return CLIPModel(config)


def of_siglip(**image: Any) -> nn.Module:
    shape = dict(hidden_size=EMBEDDED, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)
    words = dict(vocab_size=VOCABULARY, max_position_embeddings=WORDS)
    ends = dict(bos_token_id=0, pad_token_id=1, eos_token_id=1)
    looks = dict(image_size=16, patch_size=4)
    config = SiglipConfig(text_config={**shape, **words, **ends}, vision_config={**shape, **looks, **image})
    return SiglipModel(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "open_clip quick_gelu": lambda: of_open_clip(quick_gelu=True),
    "open_clip gelu": of_open_clip,
    "open_clip custom_text": lambda: of_open_clip(quick_gelu=True, custom_text=True),
    "open_clip oblong": lambda: of_open_clip(dict(image_size=(16, 24))),
    "open_clip avg, no ln_pre, LayerScale": lambda: of_open_clip(
        dict(pool_type="avg", no_ln_pre=True, ls_init_value=0.1), dict(ls_init_value=0.1)
    ),
    "open_clip norm after avg (CLIPA)": lambda: of_open_clip(
        dict(pool_type="avg", final_ln_after_pool=True), CLIPA_TEXT
    ),
    "open_clip sin_cos, patch dropout": lambda: of_open_clip(
        dict(pos_embed_type="sin_cos_2d", patch_dropout=0.5)
    ),
    "open_clip eos": lambda: of_open_clip(text=dict(pool_type="eos")),
    "open_clip custom eos": lambda: of_open_clip(text=dict(pool_type="eos"), custom_text=True),
    "open_clip first": lambda: of_open_clip(text=dict(pool_type="first", no_causal_mask=True)),
    "open_clip qk_norm": lambda: of_open_clip(dict(qk_norm=True), dict(qk_norm=True)),
    "open_clip nonscalar": lambda: of_open_clip(nonscalar_logit_scale=True, init_logit_bias=-3.0),
    "open_clip timm token": lambda: of_open_clip(trunk(timm_pool="token", timm_proj="linear")),
    "open_clip timm avg": lambda: of_open_clip(trunk(timm_pool="avg", timm_proj_bias=True)),
    "open_clip timm own pool": lambda: of_open_clip(trunk(timm_pool="", timm_proj="linear")),
    "open_clip timm classifier": lambda: of_open_clip(trunk(timm_pool="token", timm_proj="")),
    "open_clip timm avg, norm after": lambda: of_open_clip(trunk(timm_pool="avg", timm_proj="")),
    "open_clip timm map, patches alone": lambda: of_open_clip(
        trunk("prefix", timm_pool="map", timm_proj="none")
    ),
    "open_clip timm map, linear": lambda: of_open_clip(trunk("siglip", timm_pool="map", timm_proj="linear")),
    "open_clip siglip": lambda: of_open_clip(
        trunk("siglip", timm_pool="map", timm_proj="none"),
        SIGLIP_TEXT,
        custom_text=True,
        init_logit_scale=2.0,
        init_logit_bias=-10.0,
    ),
    "transformers clip, argmax": lambda: of_clip(eos_token_id=2),
    "transformers clip, eos, gelu": lambda: of_clip(hidden_act="gelu"),
    "transformers siglip": of_siglip,
}


def part_of(model: nn.Module) -> Any:
    return OpenClip if OpenClip.accepts(model) else HuggingFaceClip


def original_of(model: nn.Module) -> Original:
    original: Original = part_of(model).original(model)
    return original


def some_text(rows: int = 3) -> Tensor:
    """(B, L) with the largest number at another place in each row."""
    text = torch.randint(3, VOCABULARY - 1, (rows, WORDS), generator=torch.Generator().manual_seed(4))
    for row in range(rows):
        text[row, 3 + row :] = 0
        text[row, 3 + row] = VOCABULARY - 1
    return text


def some_images(model: Any, rows: int = 3) -> Tensor:
    size = getattr(getattr(model, "visual", None), "image_size", 16)
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def own_embeddings(model: Any, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The library's own, as its users call it, of any length."""
    if hasattr(model, "encode_image"):
        return model.encode_image(images), model.encode_text(text)
    made = model(input_ids=text, pixel_values=images)
    return made.image_embeds, made.text_embeds


def assert_parallel(made: Tensor, wanted: Tensor, apart: float) -> None:
    wanted = wanted / wanted.norm(dim=-1, keepdim=True)
    assert made.shape == wanted.shape and float((made - wanted).abs().max()) < apart


@pytest.fixture(params=MODELS, ids=str)
def model(request: Any, randomise: Callable[..., None]) -> Any:
    torch.manual_seed(0)
    made = MODELS[request.param]()
    randomise(made)
    return made.eval()


class TestEveryModel:
    def test_streams_and_embeddings_are_the_library_s(self, model: Any) -> None:
        teacher, original = adapt_teacher(model), original_of(model)
        apart = differences(teacher, original)
        streams = [f"stream.{tower}.{t}" for tower in ("image", "text") for t in (0, 1)]
        assert sorted(apart) == ["embedding.image", "embedding.text", *streams]
        assert max(apart.values()) < 1e-5, apart

    def test_embeddings_are_what_its_users_get(self, model: Any) -> None:
        images, text = some_images(model), some_text()
        made = adapt_teacher(model)({"image": images, "text": text})
        for name, wanted in zip(("image", "text"), own_embeddings(model, images, text), strict=True):
            assert_parallel(made.embeddings[name], wanted, 1e-5)

    def test_scalars_are_the_library_s(self, model: Any) -> None:
        scalars = adapt_teacher(model)({"image": some_images(model)}).scalars
        assert torch.equal(scalars["scale"], model.logit_scale.exp().detach().reshape(()))
        bias = getattr(model, "logit_bias", None)
        assert set(scalars) == ({"scale"} if bias is None else {"scale", "bias"})
        assert bias is None or torch.equal(scalars["bias"], bias.detach().reshape(()))

    def test_padding_does_not_reach_the_end_of_a_causal_text(self, model: Any) -> None:
        teacher, text = adapt_teacher(model), some_text()
        other = torch.where(text == 0, 1, text)
        a, b = (teacher({"text": each}).embeddings["text"] for each in (text, other))
        tower = teacher.view.towers["text"]
        if all(getattr(each, "causal", True) for each in tower.sublayers):
            assert torch.equal(a, b)
        else:
            assert not torch.allclose(a, b, atol=1e-3), "without the mask it does, as in the library"

    def test_folded_it_embeds_alike(self, model: Any) -> None:
        teacher = adapt_teacher(model)
        inputs = {"image": some_images(model), "text": some_text()}
        folded, before = teacher.fold()(inputs).embeddings, teacher(inputs).embeddings
        for name in ("image", "text"):
            torch.testing.assert_close(folded[name], before[name], atol=1e-4, rtol=0)

    def test_saved_and_loaded_it_is_the_same(self, model: Any, tmp_path: Path) -> None:
        if hasattr(model, "encode_image"):
            ecosystem.save(model, tmp_path)
        else:
            model.save_pretrained(tmp_path)
        teacher, inputs = load_teacher(tmp_path), {"image": some_images(model), "text": some_text()}
        before = adapt_teacher(model)
        assert teacher.num_params == before.num_params and teacher.preprocessing == before.preprocessing
        for name, embedding in before(inputs).embeddings.items():
            assert torch.equal(teacher(inputs).embeddings[name], embedding)


def adapt(model: nn.Module, randomise: Callable[..., None]) -> Teacher:
    randomise(model)
    return adapt_teacher(model.eval())


def test_pools_are_what_they_are_called(randomise: Callable[..., None]) -> None:
    """A random text would pool its first word alone, were there no end in it."""
    heads = adapt(of_clip(), randomise).view.heads
    assert heads["text"].pool == EndOfText(VOCABULARY - 1)
    assert adapt(of_clip(eos_token_id=2), randomise).view.heads["text"].pool == EndOfText(None)
    assert isinstance(adapt(of_siglip(), randomise).view.heads["image"].pool, AttentionPool)


def test_one_tower_is_run_without_the_other(randomise: Callable[..., None]) -> None:
    teacher = adapt(of_open_clip(), randomise)
    assert set(teacher({"text": some_text()}).embeddings) == {"text"}
    assert set(teacher({"image": torch.zeros(1, 3, 16, 16)}).embeddings) == {"image"}
    assert teacher.num_classes is None and teacher.view.reads == {"image", "text"}


# --- text towers that are only run ---


def of_roberta(pooler: str = "mean_pooler") -> Any:
    from open_clip.hf_model import HFTextEncoder

    model: Any = of_open_clip(custom_text=True)
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = RobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=20, pad_token_id=1, **shape)
    model.text = HFTextEncoder("", EMBEDDED, config=config, pooler_type=pooler, proj_type="mlp")
    return model


@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_last_hidden_state_pooler"])
def test_a_text_tower_of_another_library_is_run(pooler: str, randomise: Callable[..., None]) -> None:
    model = of_roberta(pooler)
    randomise(model)
    model.train()
    teacher = adapt_teacher(model)
    assert set(teacher.view.towers) == {"image"} and set(teacher.view.opaque) == {"text"}
    assert all(each.training for each in model.text.modules()), "the user's own is left as it was"
    text = torch.where(some_text() == 0, 1, some_text())
    made = teacher({"image": some_images(model), "text": text}).embeddings
    model.eval()
    with torch.no_grad():
        assert_parallel(made["text"], model.encode_text(text), 1e-6)
        assert_parallel(made["image"], model.encode_image(some_images(model)), 1e-5)
        model.text.proj[0].weight.zero_()
    assert torch.equal(teacher({"text": text}).embeddings["text"], made["text"]), "a copy"
    assert set(differences(teacher, original_of(of_roberta(pooler).eval()))) >= {"embedding.text"}
    folded = teacher.fold()({"image": some_images(model), "text": text}).embeddings
    assert torch.equal(folded["text"], made["text"])


@pytest.mark.parametrize(
    "text", [dict(scale_fc=True), dict(embed_cls=True), dict(scale_attn=True), dict(scale_attn_inner=True)]
)
def test_one_with_blocks_of_its_own_is_run(text: dict[str, Any], randomise: Callable[..., None]) -> None:
    model: Any = of_open_clip(text=text, custom_text=True)
    teacher = adapt(model, randomise)
    assert set(teacher.view.opaque) == {"text"}
    with torch.no_grad():
        assert_parallel(
            teacher({"text": some_text()}).embeddings["text"], model.encode_text(some_text()), 1e-6
        )


# --- what is refused ---


class Adapted(nn.Linear):
    """A linear with a low-rank part beside its weight."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.load_state_dict(base.state_dict())
        self.a = nn.Parameter(torch.randn(2, base.in_features))
        self.b = nn.Parameter(torch.randn(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize("tower", ["visual.transformer", "transformer"])
@pytest.mark.parametrize("kind", ["adapter", "hook"])
def test_what_acts_beside_the_weights_is_refused(
    tower: str, kind: str, randomise: Callable[..., None]
) -> None:
    model: Any = of_open_clip()
    randomise(model)
    block = model.get_submodule(tower).resblocks[1]
    if kind == "adapter":
        block.mlp.c_fc = Adapted(block.mlp.c_fc)
    else:
        block.mlp.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(
        UserError, match=rf"resblocks\.1\.mlp.*({'Adapted' if kind == 'adapter' else 'hook'})"
    ):
        adapt_teacher(model.eval())


@pytest.mark.parametrize("place", ["text_model.encoder.layers.1.self_attn.v_proj", "visual_projection"])
def test_hugging_face_adapters_are_refused(place: str, randomise: Callable[..., None]) -> None:
    model: Any = of_clip()
    randomise(model)
    model.set_submodule(place, Adapted(model.get_submodule(place)))
    with pytest.raises(UserError, match=place.removeprefix("text_model.") + ".*Adapted"):
        adapt_teacher(model.eval())


def of_coca() -> nn.Module:
    text = TEXT | dict(embed_cls=True)
    decoder = dict(layers=1, width=24, heads=3, context_length=WORDS, vocab_size=VOCABULARY)
    return open_clip.CoCa(EMBEDDED, decoder, text, IMAGE | dict(attentional_pool=True, attn_pooler_heads=4))


def of_mixed_types() -> nn.Module:
    model: Any = of_open_clip()
    model.visual.half()
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "resnet": (
        lambda: of_open_clip(dict(layers=(1, 1, 1, 1), width=16, image_size=32)),
        "only a ViT of open_clip's or timm's.*ModifiedResNet|ModifiedResNet.*only a ViT",
    ),
    "attentional pooler": (
        lambda: of_open_clip(dict(attentional_pool=True, attn_pooler_heads=4)),
        "attentional pooler is not covered",
    ),
    "all tokens": (lambda: of_open_clip(dict(pool_type="none")), "pool_type=none.*no single vector"),
    "all words": (lambda: of_open_clip(text=dict(pool_type="none")), "text tower.*no single vector"),
    "coca": (of_coca, "teacher CoCa cannot be expressed"),
    "timm mlp": (
        lambda: of_open_clip(trunk(timm_pool="token", timm_proj="mlp")),
        r"head=mlp.*only a linear projection",
    ),
    "timm all tokens": (
        lambda: of_open_clip(trunk(timm_pool="", timm_proj="none")),
        r"global_pool=''.*only class-token, average and attention pooling",
    ),
    "timm max": (lambda: of_open_clip(trunk(timm_pool="max")), "global_pool='max'"),
    "timm of another kind": (
        lambda: of_open_clip(dict(timm_model_name="resnet18", timm_pool="avg", image_size=32)),
        "only timm's VisionTransformer",
    ),
    "blocks": (
        lambda: of_open_clip(dict(scale_fc=True)),
        r"visual.transformer.resblocks.0.*a norm within the MLP is not covered",
    ),
    "blocks of words": (lambda: of_open_clip(text=dict(scale_heads=True)), "a scale for each head"),
    "what open_clip itself cannot run": (
        lambda: of_open_clip(text=dict(scaled_cosine_attn=True), custom_text=True),
        "its own forward fails",
    ),
    "types": (of_mixed_types, "float16 and float32.*several types"),
    "size": (
        lambda: of_open_clip(trunk(timm_pool="token", image_size=32)),
        "image_size=32 x 32.*made for pictures of 16 x 16",
    ),
    "siglip without a head": (lambda: of_siglip(vision_use_head=False), "no pooling head"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(what: str) -> None:
    make, said = REFUSED[what]
    with pytest.raises(UserError, match=said) as error:
        adapt_teacher(make().eval())
    assert "\n" not in str(error.value)
