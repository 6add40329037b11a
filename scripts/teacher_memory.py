"""A teacher of random numbers: host memory to load it and to convert it, tokens/s and GPU memory of its
forward pass.

    python scripts/teacher_memory.py make FOLDER [1.3b|7b|70b [LAYERS]]   (a Llama in bf16: 2.7, 13.5 GB ...)
python scripts/teacher_memory.py resident FOLDER
python -m torch.distributed.run --nproc-per-node 2 scripts/teacher_memory.py sharded FOLDER
    python scripts/teacher_memory.py convert FOLDER OUT    (to a pure hybrid_lm, streamed)

    python scripts/teacher_memory.py forward FOLDER resident   (or offloaded)
python -m torch.distributed.run --nproc-per-node 2 scripts/teacher_memory.py forward FOLDER sharded
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transmamba import Teacher

SHAPES = {
    "1.3b": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=28, num_key_value_heads=4),
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_key_value_heads=32),
    "70b": dict(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
}
COMMON = dict(vocab_size=32000, num_attention_heads=32, tie_word_embeddings=False)
ROWS, LENGTH, REPEATS = 4, 2048, 10  # of text on each process, and how often it is read


def peak() -> float:
    """MiB this process ever had in memory, files that it maps included."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def make(folder: str, shape: str = "1.3b", layers: str = "") -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        cut = {"num_hidden_layers": int(layers)} if layers else {}
        model = LlamaForCausalLM(LlamaConfig(**{**COMMON, **SHAPES[shape], **cut}))
    model.save_pretrained(folder, max_shard_size="5GB" if shape == "70b" else "1GB")


def resident(folder: str) -> None:
    from transmamba import load_teacher
    from transmamba.teachers import causal_lm  # noqa: F401  what loading imports does not count

    before = peak()
    teacher = load_teacher(folder)
    told("resident", before, teacher.num_params)


def sharded(folder: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    before = peak()
    teacher = by_slices(folder, torch.device("cpu"))
    told(f"sharded, rank {dist.get_rank()}", before, teacher.num_params)
    dist.barrier()
    dist.destroy_process_group()


def by_slices(folder: str, device: torch.device) -> "Teacher":
    from transmamba.ecosystems.sources import read_source
    from transmamba.teachers.causal_lm import CausalLanguageModel
    from transmamba.teachers.sliced import load_sharded

    return load_sharded(CausalLanguageModel(model=folder), read_source(folder), device)


def convert(folder: str, out: str) -> None:
    """In MiB: the most that converting took above what its imports take, the largest file of the checkpoint,
    and the student."""
    from transmamba.subcloning.checkpoint import convert_checkpoint

    with tempfile.TemporaryDirectory() as small:  # once, so that everything is imported
        tiny(f"{small}/teacher")
        convert_checkpoint(f"{small}/teacher", Path(small) / "out", student="hybrid_lm")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = peak()
    convert_checkpoint(folder, Path(out), student="hybrid_lm")
    sizes = {
        "above_imports": peak() - before,
        "largest_shard": max(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 2**20,
        "student": sum(file.stat().st_size for file in Path(out).glob("*.safetensors")) / 2**20,
    }
    print("convert", json.dumps({name: round(size) for name, size in sizes.items()}))


def tiny(folder: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(LlamaConfig(vocab_size=100, **shape)).to(torch.bfloat16).save_pretrained(folder)


def forward(folder: str, placement: str) -> None:
    import torch.distributed as dist

    from transmamba import load_teacher

    rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    if placement == "sharded":
        dist.init_process_group("nccl", device_id=device)
        teacher = by_slices(folder, device)
    else:
        teacher = load_teacher(folder).placed(placement, device)
    text = torch.randint(3, 32000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(rank)).to(device)
    held = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        taken = [seconds(teacher, text) for _ in range(REPEATS + 2)][2:]  # the first two also warm up
    numbers = {
        "tokens_per_second_a_gpu": round(text.numel() / statistics.median(taken)),
        "held_mib": round(held / 2**20),
        "peak_mib": round(torch.cuda.max_memory_allocated(device) / 2**20),
        "parameters": teacher.num_params,
    }
    print(f"{placement}, rank {rank}", json.dumps(numbers))
    if placement == "sharded":
        dist.destroy_process_group()


def seconds(teacher: "Teacher", text: Tensor) -> float:
    """Of one forward pass, logits included."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    teacher({"text": text}).logits()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def told(what: str, before: float, parameters: int) -> None:
    after = peak()
    numbers = {"peak_mib": round(after), "above_imports_mib": round(after - before), "parameters": parameters}
    print(what, json.dumps(numbers))


if __name__ == "__main__":
    commands = {
        "make": make,
        "resident": resident,
        "sharded": sharded,
        "convert": convert,
        "forward": forward,
    }
    commands[sys.argv[1]](*sys.argv[2:])
