"""`transmamba bench`: what a recipe's step, a student and the kernels cost on this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import UserError


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml")
    _add_common(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")


def add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--teacher",
        default="deit_small_patch16_224",
        help="a timm ViT or its folder; or an open_clip name, folder or id: then image towers are timed",
    )
    parser.add_argument(
        "--students",
        type=_words,
        default="vim,ssd_vit",
        help="such as vim,ssd_vit; of an open_clip model also vit; with options as in vim:embed_dim=128",
    )
    parser.add_argument("--sizes", type=_words, default="224,448,896,1792", help="pixels, such as 224,448")
    parser.add_argument("--tokens", type=int, help="of a batch; 65536 on a GPU, else 1024 if left out")
    parser.add_argument("--device", help="cuda, cpu; left out: a GPU where there is one")
    _add_common(parser)
    parser.add_argument(
        "options",
        nargs="*",
        metavar="key=value",
        help="of an open_clip teacher's model_cfg, such as vision_cfg.layers=8",
    )


def add_decode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--teacher", required=True, help="a language model's folder, id or config.json; its shape is taken"
    )
    parser.add_argument(
        "--keep", type=_words, default="", metavar="K,K", help="layers in which the hybrid keeps attention"
    )
    parser.add_argument("--student", help="a hybrid's folder or config.json, instead of --keep")
    parser.add_argument(
        "--window", type=int, default=0, help="tokens that its other layers read beside a scan (0: Mamba-2)"
    )
    parser.add_argument("--sinks", type=int, default=0, help="first tokens that they read too (0)")
    parser.add_argument("--lengths", type=_words, default="2048,16384", help="tokens (2048,16384)")
    parser.add_argument("--batch", type=_words, default="1,16", metavar="N,N", help="rows (1,16)")
    parser.add_argument("--phases", type=_words, default="decode,prefill", help="decode,prefill, or one")
    parser.add_argument("--tokens", type=int, default=8, help="that a timed run writes (8)")
    parser.add_argument("--graphs", action="store_true", help="record a token as a CUDA graph")
    parser.add_argument("--compile", action="store_true", help="decode through torch.compile")
    parser.add_argument(
        "--kernels",
        default="transmamba",
        choices=("transmamba", "transformers"),
        help="whose Mamba-2 the hybrid runs on: transformers takes mamba_ssm's where it is installed",
    )
    parser.add_argument("--precision", default="bf16", choices=("no", "bf16", "fp16"))
    parser.add_argument("--device", help="cuda, cpu; left out: a GPU where there is one")
    _add_common(parser)


def add_experts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experts", type=_words, default="4,8,16,32", help="how many (4,8,16,32)")
    parser.add_argument("--width", type=int, default=512, help="channels of a token (512)")
    parser.add_argument("--neurons", type=int, default=1536, help="of an expert (1536)")
    parser.add_argument("--each", type=int, default=1, help="experts of a token (1)")
    parser.add_argument("--gated", action="store_true", help="silu(gate) * up instead of relu(up)")
    parser.add_argument("--tokens", type=int, help="of a batch; 65536 on a GPU, else 1024 if left out")
    parser.add_argument("--precision", default="bf16", choices=("no", "bf16", "fp16"))
    parser.add_argument("--device", help="cuda, cpu; left out: a GPU where there is one")
    _add_common(parser)


def add_adapters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="mamba-1.4b", help="mamba-130m, mamba-1.4b, mamba2-1.3b, a folder or a config.json"
    )
    parser.add_argument(
        "--methods",
        type=_words,
        default="lora_x,lora_in,lora_out,conv1d,a,bitfit,state_offset_h,state_offset_y,parallel_adapter,"
        "affix,prompt,initial_state,additional_scan",
        help="with several joined by + for one adapter: lora_x+conv1d",
    )
    parser.add_argument("--batch", type=int, default=8, help="rows of a training step (8)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row (512)")
    parser.add_argument("--written", type=int, default=64, help="tokens that are written (64)")
    parser.add_argument("--prompts", type=int, default=1, help="after so many prompts at once (1)")
    parser.add_argument("--precision", default="bf16", choices=("no", "bf16", "fp16"))
    parser.add_argument("--device", help="cuda, cpu; left out: a GPU where there is one")
    _add_common(parser)


def add_kernels(parser: argparse.ArgumentParser) -> None:
    from transmamba_kernels.bench import add_arguments

    add_arguments(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each kind")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _whole(words: list[str], option: str, example: str) -> list[int]:
    for word in words:
        if not word.isdecimal():
            raise UserError(f"{option}: {word!r} is no whole number; write such as {example}")
    return [int(word) for word in words]


def _pixels(words: list[str]) -> list[int]:
    """Of `--sizes`. Raises UserError, not argparse's own, which would not say the value."""
    if not words:
        raise UserError("--sizes is empty; write pixels, such as 224,448")
    for word in words:
        if not word.isdecimal():
            raise UserError(f"--sizes: {word!r} is no number of pixels; write such as 224,448")
    return [int(word) for word in words]


def _say(arguments: argparse.Namespace, line: str) -> None:
    """Of a table, as soon as it is known: what is timed takes minutes."""
    if not arguments.json:
        print(line, flush=True)


def _told(
    arguments: argparse.Namespace,
    rows: Iterable[Mapping[str, Any]],
    line: Callable[[Mapping[str, Any]], str],
) -> int:
    """Rows as they come, or all of them as JSON."""
    if arguments.json:
        print(json.dumps(list(rows), indent=2))
        return 0
    for row in rows:
        _say(arguments, line(row))
    return 0


def run_recipe(arguments: argparse.Namespace) -> int:
    from ..bench.step import bench_recipe, bench_table
    from ..runs.run import load_recipe

    result = bench_recipe(load_recipe(arguments.config, arguments.overrides), steps=arguments.steps)
    print(json.dumps(result, indent=2) if arguments.json else bench_table(result))
    return 0


def run_inference(arguments: argparse.Namespace) -> int:
    from ..bench.inference import COLUMNS, bench_inference, inference_line

    longest = max(map(len, arguments.students), default=0)
    rows = bench_inference(
        arguments.teacher,
        arguments.students,
        _pixels(arguments.sizes),
        options=arguments.options,
        tokens=arguments.tokens,
        steps=arguments.steps,
        device=arguments.device,
        ready=lambda: _say(arguments, inference_line(dict.fromkeys(COLUMNS), longest)),
    )
    return _told(arguments, rows, lambda row: inference_line(row, longest))


def run_decode(arguments: argparse.Namespace) -> int:
    from ..bench.decode import COLUMNS, OWN, bench_decode, decode_line

    def ready(said: Mapping[str, Any]) -> None:
        ways = [way for way in ("graphs", "compiled") if said[way]]
        whose = "Hybrid" if said["kernels"] == OWN else "Mamba-2"
        _say(arguments, f"{whose} by {said['kernels']}, {', '.join([said['precision'], *ways])}")
        _say(arguments, decode_line(dict.fromkeys(COLUMNS)))

    rows = bench_decode(
        arguments.teacher,
        _whole(arguments.keep, "--keep", "0,4,8"),
        _whole(arguments.lengths, "--lengths", "2048,16384"),
        _whole(arguments.batch, "--batch", "1,16"),
        student=arguments.student,
        window=arguments.window,
        sinks=arguments.sinks,
        phases=arguments.phases,
        steps=arguments.steps,
        tokens=arguments.tokens,
        graphs=arguments.graphs,
        compiled=arguments.compile,
        kernels=arguments.kernels,
        device=arguments.device,
        precision=arguments.precision,
        ready=ready,
    )
    return _told(arguments, rows, decode_line)


def run_experts(arguments: argparse.Namespace) -> int:
    from ..bench.experts import COLUMNS, bench_experts, experts_line

    rows = bench_experts(
        _whole(arguments.experts, "--experts", "4,8,16"),
        width=arguments.width,
        neurons=arguments.neurons,
        each=arguments.each,
        gated=arguments.gated,
        tokens=arguments.tokens,
        steps=arguments.steps,
        device=arguments.device,
        precision=arguments.precision,
        ready=lambda: _say(arguments, experts_line(dict.fromkeys(COLUMNS))),
    )
    return _told(arguments, rows, experts_line)


def run_adapters(arguments: argparse.Namespace) -> int:
    from ..bench.adapters import COLUMNS, Workload, adapters_line, bench_adapters

    given = {name: getattr(arguments, name) for name in Workload.__dataclass_fields__}
    workload = Workload(**given)

    def ready() -> None:
        _say(
            arguments,
            f"{arguments.model}: {workload.batch} rows of {workload.length} tokens; {workload.written} "
            f"tokens written after {workload.prompts} prompts; {workload.precision}",
        )
        _say(arguments, adapters_line(dict.fromkeys(COLUMNS)))

    rows = bench_adapters(arguments.model, arguments.methods, workload, device=arguments.device, ready=ready)
    return _told(arguments, rows, adapters_line)


def run_kernels(arguments: argparse.Namespace) -> int:
    from transmamba_kernels.bench import run

    from ..evaluation.cost import find_device

    find_device(arguments.device)  # refused in a line where this machine has none such
    try:
        return run(arguments)
    except ValueError as error:
        raise UserError(str(error)) from error
