"""Peak host memory of a process that loads a teacher, resident and sharded over two processes.

    python scripts/teacher_memory.py make FOLDER   (a Llama of 1.36 billion random numbers in bf16, 2.7 GB)
python scripts/teacher_memory.py resident FOLDER
python -m torch.distributed.run --nproc-per-node 2 scripts/teacher_memory.py sharded FOLDER
"""

import json
import sys
from pathlib import Path

import torch

SHAPE = dict(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=28,
    num_attention_heads=32,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)


def peak() -> float:
    """MiB this process ever had in memory, files that it maps included."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def make(folder: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder, max_shard_size="1GB")


def resident(folder: str) -> None:
    from transmamba import load_teacher
    from transmamba.teachers import causal_lm  # noqa: F401  what loading imports does not count

    before = peak()
    teacher = load_teacher(folder)
    told("resident", before, teacher.num_params)


def sharded(folder: str) -> None:
    import torch.distributed as dist

    from transmamba.ecosystems.sources import read_source
    from transmamba.teachers.causal_lm import CausalLanguageModel
    from transmamba.teachers.sliced import load_sharded

    dist.init_process_group("gloo")
    before = peak()
    teacher = load_sharded(CausalLanguageModel(model=folder), read_source(folder), torch.device("cpu"))
    told(f"sharded, rank {dist.get_rank()}", before, teacher.num_params)
    dist.barrier()
    dist.destroy_process_group()


def told(what: str, before: float, parameters: int) -> None:
    after = peak()
    numbers = {"peak_mib": round(after), "above_imports_mib": round(after - before), "parameters": parameters}
    print(what, json.dumps(numbers))


if __name__ == "__main__":
    {"make": make, "resident": resident, "sharded": sharded}[sys.argv[1]](sys.argv[2])
