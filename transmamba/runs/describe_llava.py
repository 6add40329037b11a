"""A LLaVA student in words and numbers: its tower, its connector, its decoder, and cross-Mamba between them;
and a LLaVA teacher's connector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..core.layout import Grid
from ..layers.cell_means import CellMeans
from ..students.llava.crossing import Crossing
from ..students.llava.model import LlavaStudent
from ..teachers.describe import CONNECTOR, SPLICED, activation_in_words, tower_in_words, towers_of
from ..teachers.hf_clip_view import image_tower
from ..views.embeddings import Spliced
from ..views.placed import skeletons
from ..views.sublayers import Attention, map_tensors
from ..views.view import View


def connector_of(view: View) -> dict[str, Any]:
    """`connector` of a LLaVA: `widths` of what comes in and of each linear, its activation, what it reads of
    a picture, `tokens_a_picture`, how many of a text's tokens that takes, and its parameters. Empty for a
    view without one."""
    image, decoder = view.towers.get("image"), view.towers.get("decoder")
    if image is None or decoder is None or not isinstance(decoder.embedding, Spliced):
        return {}
    assert isinstance(image.layout, Grid), "patches lie in a grid"
    connector, full = decoder.embedding.connector, decoder.embedding.special
    return {
        "connector": {
            "widths": [image.width, *(len(linear.weight) for linear in connector.linears)],
            "activation": activation_in_words(connector.act),
            **_tokens(image.layout, full, connector.means),
            "parameters": _numbers(connector),
        }
    }


def counted_towers(view: View) -> dict[str, dict[str, Any]]:
    """A teacher's towers, as `teachers.describe` has them; a LLaVA's with the `parameters` that are read of
    each."""
    found = towers_of(view)
    for name, tower in view.towers.items() if connector_of(view) else ():
        begin = tower.embedding.tokens if isinstance(tower.embedding, Spliced) else tower.embedding
        blocks = tuple(
            replace(each, rope=None) if isinstance(each, Attention) else each  # whose waves are no parameters
            for each in skeletons(tower.sublayers)
        )
        found[name]["parameters"] = _numbers(begin, blocks, tower.norm, view.heads.get(name))
    return found


def llava_parts(model: nn.Module) -> dict[str, dict[str, Any]]:
    """`connector`, as `connector_of` has a teacher's, and `cross`, where there is cross-Mamba: its mode, its
    `places` and whose prompt it reads. Empty for what is no LLaVA student."""
    if not isinstance(model, LlavaStudent):
        return {}
    linears = model.multi_modal_projector
    full = model.kept and model.config.vision_feature_select_strategy == "full"
    found = {
        "connector": {
            "widths": [
                linears.linear_1.in_features,
                linears.linear_1.out_features,
                linears.linear_2.out_features,
            ],
            "activation": activation_in_words(linears.act),
            **_tokens(model.vision_tower.layout, full, model.means),
            "parameters": counted(linears),
        }
    }
    return found if model.cross is None else {**found, "cross": _cross(model.cross)}


def llava_towers(
    model: LlavaStudent, image: Callable[[Any, Any], dict[str, Any]], decoder: Callable[[Any], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Its `image` tower and its `decoder`.

    image, decoder: what describes a tower of ours with its head, and a hybrid
    """
    if model.kept:
        mine = {"kind": "kept", **tower_in_words(image_tower(model.vision_tower.vision), None)}
    else:
        mine = image(model.vision_tower, None)
    words = decoder(model.language_model)
    embedding = {"kind": SPLICED, "vocabulary": model.vocabulary, "place": model.config.image_token_id}
    return {
        "image": {**mine, "head": dict(CONNECTOR), "parameters": counted(model.vision_tower)},
        "decoder": {**words, "embedding": embedding, "parameters": counted(model.language_model)},
    }


def counted(module: nn.Module) -> int:
    """Its parameters."""
    return sum(tensor.numel() for tensor in module.parameters())


def _tokens(layout: Grid, full: bool, means: CellMeans | None) -> dict[str, Any]:
    """What a connector reads of a grid of patches."""
    if means is not None:
        cells = f"means of {means.side} x {means.side} cells of {layout.rows} x {layout.columns} patches"
        return {"reads": cells, "tokens_a_picture": means.tokens}
    if full and layout.special:
        return {"reads": "patches and the class token", "tokens_a_picture": layout.length}
    return {"reads": "patches", "tokens_a_picture": layout.num_patches}


def _cross(cross: Crossing) -> dict[str, Any]:
    first: Any = cross.modules_at[0]
    behind = [(number + 1) * (cross.every or 1) - 1 for number in range(len(cross.modules_at))]
    places = "before the connector" if cross.every is None else f"behind layers {' '.join(map(str, behind))}"
    states = {"state_size": first.config.state_size} if hasattr(first, "states") else {}
    return {
        "mode": first.config.mode,
        "places": f"{places} of the image tower" if cross.every is not None else places,
        "heads": first.heads,
        "width": first.width,
        **states,
        "prompt": "shuffled: another row's" if cross.shuffled else "its own",
        "parameters": counted(cross),
    }


def _numbers(*parts: Any) -> int:
    """Parameters in parts of a view, each tensor once."""
    found: dict[int, int] = {}

    def seen(tensor: Tensor) -> Tensor:
        found[id(tensor)] = tensor.numel()
        return tensor

    map_tensors(parts, seen)
    return sum(found.values())
