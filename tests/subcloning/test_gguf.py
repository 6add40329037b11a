"""A teacher in a GGUF file converted: the same student as of its folder of safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_gguf import save_gguf

from transmamba import UserError, load_student
from transmamba.ecosystems.decoders import load_decoder
from transmamba.ecosystems.sources import read_source
from transmamba.subcloning.checkpoint import convert_checkpoint


def test_it_is_the_conversion_of_its_folder(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    save_gguf(tmp_path / "m.gguf")
    read: Any = load_decoder(read_source(str(tmp_path / "m.gguf")))
    config = LlamaConfig.from_dict({**read.config.to_dict(), "quantization_config": None})
    same = LlamaForCausalLM(config).to(read.dtype)
    same.load_state_dict(read.state_dict())
    same.save_pretrained(tmp_path / "folder")
    for teacher, out in (("m.gguf", "a"), ("folder", "b")):
        torch.manual_seed(0)
        convert_checkpoint(str(tmp_path / teacher), tmp_path / out, student="hybrid_lm")
    found, wanted = (load_student(tmp_path / out).state_dict() for out in "ab")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[each], wanted[each]) for each in wanted)


def test_a_student_of_images_is_refused_for_it(tmp_path: Path) -> None:
    save_gguf(tmp_path / "m.gguf")
    with pytest.raises(UserError, match="needs a teacher of images"):
        convert_checkpoint(str(tmp_path / "m.gguf"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_ending_that_transformers_does_not_know(tmp_path: Path) -> None:
    save_gguf(tmp_path / "M.GGUF")
    with pytest.raises(UserError, match=r"M\.GGUF'.*rename it to M\.gguf"):
        convert_checkpoint(str(tmp_path / "M.GGUF"), tmp_path / "out", student="hybrid_lm")
