"""A LLaVA teacher's two towers apart, as students of one tower read them, and the configuration of
transformers that a student of both is built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...core.layout import Grid, Sequence
from ...core.preprocessing import of_pictures
from ...core.tower import StudentSpec
from ...ecosystems.fewer_tokens import OURS, TOKENS
from ...errors import UserError
from ...views.embeddings import Spliced
from ...views.view import View
from ..hybrid_lm.architectures import OWN as HYBRID
from ..image_part import ASKED, check_part, part_arguments, try_out
from ..meant import wrong_teacher
from .own_class import AUTO_MAP, OWN, config_class
from .scanned import NAMES

if TYPE_CHECKING:
    from .names import ImageTower

# of a LLaVA's configuration, what a student's has as it is
_AS_THEY_ARE = ("projector_hidden_act", "multimodal_projector_bias")
# by which no layer of a student's decoder has attention
NONE_KEPT = "student.decoder: {kind: hybrid, attention_layers: []}"


def spliced_of(view: View) -> Spliced:
    """Where its decoder reads pictures. Raises UserError for a teacher that is no LLaVA."""
    decoder = view.towers.get("decoder")
    embedding = None if decoder is None else decoder.embedding
    if not isinstance(embedding, Spliced) or view.config is None or "image" not in view.towers:
        raise wrong_teacher("student llava needs a LLaVA of transformers as its teacher", view)
    return embedding


def image_view(view: View) -> View:
    """The image tower alone, as the backbone that an image student may follow."""
    return View({"image": view.towers["image"]})


def decoder_view(view: View) -> View:
    """The decoder alone, as the language model that a hybrid may follow: pictures have no part in it.
    Raises UserError for a teacher that is no LLaVA."""
    tokens, tower = spliced_of(view).tokens, view.towers["decoder"]
    assert view.config is not None, "spliced_of has looked"
    words = replace(tower, embedding=tokens, layout=Sequence())
    return View({"decoder": words}, {"decoder": view.heads["decoder"]}, config=view.config["text_config"])


def tokens_of(view: View) -> int:
    """Tokens that its connector makes of a picture."""
    layout, embedding = _grid(view), spliced_of(view)
    if embedding.connector.means is not None:
        return embedding.connector.means.tokens
    return layout.length if embedding.special else layout.num_patches


def llava_config(view: View, vision: Any, text: Any, full: bool, cross: Mapping[str, Any] | None) -> Any:
    """transformers' LlavaConfig of these two parts. The tower has no layer that is not read, so its last one
    is.

    full:  whether the connector reads all that the tower gives
    cross: where cross-Mamba stands, and what it is made of; None without it
    """
    from transformers import LlavaConfig

    means = spliced_of(view).connector.means
    # transformers' class has neither, nor a decoder that is no class of its own
    own = cross is not None or means is not None or text.model_type == HYBRID.model_type
    theirs, made = view.config, config_class(OWN) if own else LlavaConfig
    assert theirs is not None, "spliced_of has looked"
    said: dict[str, Any] = {"student": "llava", "cross": cross}
    if means is not None:
        said[TOKENS] = means.tokens
    return made(
        vision_config=vision,
        text_config=text,
        image_token_index=spliced_of(view).token,
        image_seq_length=tokens_of(view),
        vision_feature_select_strategy="full" if full else "default",
        vision_feature_layer=-1,
        tie_word_embeddings=text.tie_word_embeddings,
        **{name: theirs[name] for name in _AS_THEY_ARE},
        **{OURS: said},
        **({"auto_map": AUTO_MAP} if own else {}),
    )


def vision_config(config: ImageTower, spec: StudentSpec) -> tuple[Any, bool]:
    """(transformers' configuration of the image tower, whether the connector reads all of its tokens). Raises
    UserError for what no such tower can be."""
    embedding = spliced_of(spec.view)
    tower = spec.view.towers["image"]
    if not len(tower.sublayers):
        raise UserError(
            "the teacher's connector reads its tower before the first layer; nothing is converted"
        )
    if config.kind == "kept":
        return _cut(spec.view.config["vision_config"], len(tower.ends)), embedding.special
    if embedding.special and _grid(spec.view).special:
        raise UserError(
            f"the teacher's connector reads the class token too, a {config.kind}'s gives its patches alone; "
            f"write {ASKED.kind}=kept"
        )
    return _scanned(config, spec), True


def _cut(theirs: Mapping[str, Any], layers: int) -> Any:
    from transformers import AutoConfig

    more = {"vision_use_head": False} if theirs["model_type"] == "siglip_vision_model" else {}
    return AutoConfig.for_model(**{**theirs, "num_hidden_layers": layers, **more})


def _scanned(config: ImageTower, spec: StudentSpec) -> Any:
    from transformers import TimmWrapperConfig

    alone = replace(
        spec, view=image_view(spec.view), preprocessing=of_pictures(spec.preprocessing), num_classes=None
    )
    check_part(config, alone, "llava", "")
    for name in ("global_pool", "num_frames"):
        if name in config.kwargs:
            raise UserError(
                f"{ASKED.at}.kwargs.{name} is {config.kwargs[name]!r}, but a decoder reads each patch of "
                "each picture; leave it out"
            )
    arguments = part_arguments(config, alone)
    name = NAMES[config.kind]
    count, theirs = try_out(name, arguments).layout.num_patches, _grid(spec.view).num_patches
    if count != theirs:
        raise UserError(
            f"{ASKED.at}.kwargs make {count} tokens of a picture, the teacher's {theirs} stand in the texts; "
            "leave patch_size and stride out"
        )
    return TimmWrapperConfig(
        architecture=name,
        do_pooling=False,
        hidden_size=arguments["embed_dim"],
        model_args=arguments,
        num_labels=0,
        # which the class does not know: for whoever makes its pictures
        image_size=arguments["img_size"],
        patch_size=arguments["patch_size"],
        num_channels=arguments["in_chans"],
    )


def _grid(view: View) -> Grid:
    layout = view.towers["image"].layout
    assert isinstance(layout, Grid), "a CLIP's or SigLIP's"
    return layout
