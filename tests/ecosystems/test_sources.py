"""What a user may call a model: each name means one thing, or is refused in a line."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

from transmamba import load_teacher, save_student
from transmamba.ecosystems import hub
from transmamba.ecosystems.sources import read_source
from transmamba.errors import UserError

SHAPE: dict[str, Any] = dict(img_size=8, patch_size=2, embed_dim=16, depth=1, num_heads=2, num_classes=3)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_student(timm.create_model("vit_tiny_patch16_224", **SHAPE), tmp_path / "run" / "student")
    return tmp_path / "run"


@pytest.fixture
def repositories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """id -> config.json on a Hub of our own."""
    known: dict[str, Any] = {}

    def fetch(repo: str, file: str, revision: str | None = None) -> Path | None:
        if repo not in known:
            raise UserError(f"{repo!r}: no such repository")
        if file != "config.json" or known[repo] is None:
            return None
        (tmp_path / "fetched.json").write_text(json.dumps(known[repo]))
        return tmp_path / "fetched.json"

    monkeypatch.setattr(hub, "fetch", fetch)
    return known


def test_folders_with_and_without_a_prefix(saved: Path) -> None:
    for text in (str(saved), f"{saved}/student", f"local-dir:{saved}", f"local-dir:{saved / 'student'}"):
        source = read_source(text)
        assert source.folder == saved / "student" and source.config["architecture"] == "vit_tiny_patch16_224"
        assert load_teacher(text).num_classes == 3


def test_ids_are_told_apart_by_their_config(repositories: dict[str, Any]) -> None:
    from transmamba.ecosystems.find import ecosystem_of

    repositories |= {"a/timm": {"architecture": "vim_x"}, "a/hf": {"model_type": "vit"}, "a/none": None}
    for text, library in (("a/timm", "timm"), ("hf-hub:a/hf", "transformers"), ("hf_hub:a/timm@v2", "timm")):
        source = read_source(text)
        assert ecosystem_of(source).library == library and source.repo == text.split(":")[-1].split("@")[0]
    assert read_source("hf_hub:a/timm@v2").revision == "v2"
    assert read_source("timm/vit.x").repo == "timm/vit.x", "by its owner, without a look"
    with pytest.raises(UserError, match="names neither timm's `architecture` nor"):
        load_teacher("a/none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("local-dir:/nowhere", "no such folder"),
        ("local-dir:", "no"),
        ("hf-hub:", "no repository on the Hugging Face Hub; those are OWNER/NAME"),
        ("hf-hub:alone", "no repository on the Hugging Face Hub; those are OWNER/NAME"),
        ("hf_hub:a/b", "'a/b': no such repository"),
        ("hf_hub:a/b/c", "no repository on the Hugging Face Hub"),
        ("https://huggingface.co/a/b", "nothing begins with https:"),
        ("openclip:x", "nothing begins with openclip:"),
        ("a/b", "no folder here, and as an id of the Hub: 'a/b': no such repository"),
        ("runs/a/student", "no such folder"),
        ("weights.pth", "no such file"),
        ("vit_tiny_patch16_2244", "did you mean 'vit_tiny_patch16_224'"),
        ("vim_tiny_patch16_224", "VisionMamba"),
        ("resnet18", "only timm's VisionTransformer and distilled DeiT are known"),
    ],
)
def test_a_wrong_name_is_one_line(text: str, said: str, repositories: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        load_teacher(text)
    assert said in str(error.value) and "\n" not in str(error.value) and text in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "hint"),
    [
        ("siglip2", "vit_base_patch16_siglip_gap_224.v2_webli"),
        ("vit_mae", "vit_base_patch16_224.mae"),
        ("swin", "only ViT, DeiT and DINOv2 are known"),
        ("bert", "only ViT, DeiT and DINOv2 are known"),
    ],
)
def test_a_model_type_that_is_not_covered_says_what_to_do(model_type: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UserError, match=f"model_type={model_type}.*cannot be expressed") as error:
        load_teacher(tmp_path)
    assert hint in str(error.value) and "\n" not in str(error.value)


def test_the_timm_names_in_hints_exist() -> None:
    from transmamba.ecosystems.unknown import _ELSEWHERE

    for text in _ELSEWHERE.values():
        name = text.partition(",")[0]
        assert name.startswith("hf-hub:") or timm.is_model(name), name


# each name in a fork of its own, for it is remembered for a minute that the Hub does not answer
OFFLINE = """
import os, socket, sys, time
def refuse(*_, **__): raise socket.gaierror(-2, "Name or service not known")
socket.getaddrinfo = refuse
import transmamba.teachers.load as load, timm, transformers
from transmamba.errors import UserError
for name in sys.argv[1:]:
    if os.fork():
        assert os.wait()[1] == 0
        continue
    begins = time.monotonic()
    try:
        load.load_teacher(name)
    except UserError as error:
        print(error, flush=True)
    print(time.monotonic() - begins, file=sys.stderr, flush=True)
    os._exit(time.monotonic() - begins > 10)
"""


def test_without_a_network_it_is_one_line_within_seconds(tmp_path: Path) -> None:
    names = ["vit_tiny_patch16_224", "google/vit-base-patch16-224", "hf-hub:timm/vit_tiny_patch16_224.x"]
    environment = {
        key: value
        for key, value in __import__("os").environ.items()
        if key not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") and "proxy" not in key.lower()
    }
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *names],
        env={**environment, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, line in zip(names, done.stdout.strip().splitlines(), strict=True):
        assert name in line and "the Hugging Face Hub cannot be reached" in line
    assert len(done.stderr.strip().splitlines()) == len(names), done.stderr


def test_what_is_in_the_cache_loads_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The client then looks there alone, and is as it was afterwards."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "reachable", lambda: False)
    commit = tmp_path / "models--them--vit" / "snapshots" / ("0" * 40)
    commit.mkdir(parents=True)
    (commit / "config.json").write_text("{}")
    (tmp_path / "models--them--vit" / "refs").mkdir()
    (tmp_path / "models--them--vit" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    found = hub.fetch("them/vit", "config.json")
    assert found is not None and found.read_text() == "{}"
    assert constants.HF_HUB_OFFLINE is False
    with pytest.raises(UserError, match="not on this machine, and the Hugging Face Hub cannot be reached"):
        hub.fetch("them/vit", "README.md")


def test_a_hub_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    with hub.without_waiting():
        assert constants.HF_HUB_OFFLINE is False


def test_a_hub_that_keeps_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begins = time.monotonic()
        assert not hub.reachable()
        assert time.monotonic() - begins < 10


def test_a_hub_is_asked_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    asked: list[str] = []
    session = SimpleNamespace(head=lambda endpoint, timeout: asked.append(endpoint))
    now = [600.0]
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: session)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "hub")
    monkeypatch.setattr(hub, "time", SimpleNamespace(monotonic=lambda: now[0]))
    hub._answers.cache_clear()
    for seconds, count in ((0, 1), (30, 1), (59, 1), (61, 2), (62, 2)):
        now[0] = 600.0 + seconds
        assert hub.reachable() and len(asked) == count
    monkeypatch.setattr(constants, "ENDPOINT", "another")
    assert hub.reachable() and asked == ["hub", "hub", "another"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.reachable()
    hub._answers.cache_clear()


def test_weights_are_not_read_to_know_a_folder(saved: Path) -> None:
    (saved / "student" / "model.safetensors").write_bytes(b"")
    assert read_source(str(saved)).config["architecture"] == "vit_tiny_patch16_224"
    with pytest.raises(UserError) as error:
        load_teacher(saved)
    assert "\n" not in str(error.value) and torch is not None


def test_a_misspelt_path_is_told_its_neighbour(
    saved: Path, repositories: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    for text in ("run/studemt", str(saved / "studemt")):
        with pytest.raises(UserError, match=r"did you mean '.*run/student'"):
            read_source(text)
