"""A tokenizer in a checkpoint's own repository is the one of the checkpoint's revision. The Hub's functions
are stand-ins that serve a folder for each revision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_clip import WORDS, made, word_tokenizer

from transmamba import convert, load_teacher
from transmamba.core.preprocessing import Preprocessing
from transmamba.ecosystems import hub
from transmamba.ecosystems import open_clip as library
from transmamba.ecosystems.find import load_model, preprocessing_of, save_model
from transmamba.ecosystems.open_clip_tokenizer import OpenClipTokenizer, _made
from transmamba.ecosystems.origin import Origin
from transmamba.teachers import hf_clip

open_clip = pytest.importorskip("open_clip", reason="needs open_clip")

CAPTIONS = ["two dogs", "a red square"]
# of each revision: the same words under other numbers
NUMBERED = {"v1": WORDS, "v2": (*WORDS[:3], *reversed(WORDS[3:])), "main": (*WORDS[:3], *sorted(WORDS[3:]))}


def ids(words: tuple[str, ...]) -> torch.Tensor:
    rows = [[words.index(word) for word in caption.split()] for caption in CAPTIONS]
    return torch.tensor([row + [0] * (12 - len(row)) for row in rows])


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The tokenizers that transformers was asked for: (name, revision)."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError
    from transformers import AutoTokenizer

    for revision, words in NUMBERED.items():
        word_tokenizer(tmp_path / "words" / revision, words)
    found: list[tuple[str, str | None]] = []
    load: Callable[..., Any] = AutoTokenizer.from_pretrained

    def from_pretrained(name: str, *, revision: str | None = None, **options: Any) -> Any:
        found.append((str(name), revision))
        local = Path(name).is_dir()
        return load(name if local else tmp_path / "words" / (revision or "main"), **options)

    def download(repo: str, file: str, revision: str | None = None) -> str:
        path = tmp_path / repo / file
        if not path.is_file():
            raise EntryNotFoundError(f"{repo} has no {file}")
        return str(path)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    _made.cache_clear()
    return found


def publish(folder: Path, tokenizer: str, **text: Any) -> None:
    """A checkpoint whose configuration names another library's tokenizer."""
    model = made(text=dict(vocab_size=11, pool_type="last", no_causal_mask=True))
    cfg, _, _ = library.made_from(model)
    assert cfg is not None
    cfg["text_cfg"] |= {"hf_tokenizer_name": tokenizer, **text}
    library.say_made_from(model, cfg, Origin(), None)
    library.save(model, folder)


@pytest.mark.parametrize("revision", ["v1", "v2", None])
def test_it_is_the_checkpoint_s(asked: list[Any], tmp_path: Path, revision: str | None) -> None:
    publish(tmp_path / "them/clip", "them/clip")
    teacher = load_teacher("hf-hub:them/clip" + (f"@{revision}" if revision else ""))
    assert teacher.preprocessing.text is not None
    assert torch.equal(teacher.preprocessing.text(CAPTIONS).ids, ids(NUMBERED[revision or "main"]))
    assert asked == [("them/clip", revision)]


def test_another_repository_has_revisions_of_its_own(asked: list[Any], tmp_path: Path) -> None:
    publish(tmp_path / "them/clip", "others/words")
    publish(tmp_path / "them/pinned", "others/words", tokenizer_kwargs={"revision": "v1"})
    for name, revision in (("clip", None), ("pinned", "v1")):
        teacher = load_teacher(f"hf-hub:them/{name}@v2")
        assert teacher.preprocessing.text is not None
        assert torch.equal(teacher.preprocessing.text(CAPTIONS).ids, ids(NUMBERED[revision or "main"]))
        assert asked.pop() == ("others/words", revision)


def test_a_student_is_read_alike(asked: list[Any], tmp_path: Path) -> None:
    """From its folder, where the files lie, and, after a push, by open_clip through the name and revision
    that its configuration says."""
    publish(tmp_path / "them/clip", "them/clip")
    student, _ = convert("hf-hub:them/clip@v2", "clip")
    save_model(student, tmp_path / "student")
    as_it_is = library.create_open_clip(library.source_of("hf-hub:them/clip@v2"))
    save_model(as_it_is, tmp_path / "plain")
    for folder in (tmp_path / "student", tmp_path / "plain"):
        text = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
        assert text["hf_tokenizer_name"] == "them/clip" and text["tokenizer_kwargs"] == {"revision": "v2"}
        own = open_clip.get_tokenizer(f"local-dir:{folder}")
        assert torch.equal(own(CAPTIONS), ids(NUMBERED["v2"]))
        again = preprocessing_of(load_model(str(folder))).text
        assert again is not None and torch.equal(again(CAPTIONS).ids, ids(NUMBERED["v2"]))
        pushed = OpenClipTokenizer.of(text)
        assert pushed is not None and torch.equal(pushed(CAPTIONS).ids, ids(NUMBERED["v2"]))


@pytest.mark.parametrize(("said", "commit", "wanted"), [("v1", "v2", "v1"), (None, "v2", "v2")])
def test_hugging_face_s_is_of_the_same_commit(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, said: str | None, commit: str, wanted: str
) -> None:
    """Of the revision that was asked for; without one, of the commit that its configuration is from."""
    from transformers import CLIPConfig, CLIPModel

    tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    text = dict(tower, vocab_size=11, max_position_embeddings=12)
    vision = dict(tower, image_size=8, patch_size=4)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    model.config._commit_hash = commit
    looks = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "center")
    monkeypatch.setattr(hf_clip, "hugging_face_preprocessing", lambda *_: looks)
    monkeypatch.setattr(hf_clip, "origin_by_name", lambda *_: Origin())
    teacher = hf_clip.HuggingFaceClip(model="them/clip", revision=said).described(model)
    assert teacher.preprocessing.text is not None
    assert torch.equal(teacher.preprocessing.text(CAPTIONS).ids, ids(NUMBERED[wanted]))
    assert asked == [("them/clip", wanted)]
