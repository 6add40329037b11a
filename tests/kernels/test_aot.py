"""Every Triton kernel, compiled for sm_90 without a GPU: it must compile, and no register may spill.

A kernel that is launched has a name that ends in `_kernel`; what it is compiled as is in aot/.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import transmamba_kernels

pytest.importorskip("triton")

import aot

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled"
)


def modules() -> list[Any]:
    """The package's modules that hold kernels."""
    root = Path(transmamba_kernels.__file__).parent
    found = []
    for info in pkgutil.walk_packages([str(root)], "transmamba_kernels."):
        path = root.joinpath(*info.name.split(".")[1:]).with_suffix(".py")
        if info.name.split(".")[1] == "bench" or not path.is_file():
            continue
        if path.name == "gpu.py" or "import triton" in path.read_text():
            found.append(importlib.import_module(info.name))
    return found


def cases() -> list[Any]:
    return [
        pytest.param(case, id=f"{op}-{case[0].__name__}-{i}")
        for op, make in aot.CASES.items()
        for i, case in enumerate(make())
    ]


def compiled(case: aot.Case, capability: int = 90) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, signature, constexprs, warps, stages, *more = case
    types, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constexprs:
            types[name] = "constexpr"
            continue
        types[name], _, multiple = signature[name].partition(":")
        if multiple:
            attributes[(i,)] = [["tt.divisibility", int(multiple)]]
    return triton.compile(
        ASTSource(kernel, types, constexprs, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages, **(more[0] if more else {})},
    )


def resources(case: aot.Case, folder: Path) -> dict[str, int]:
    """Registers, stack and local memory of a thread, as compiled."""
    import triton

    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled(case).asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run(
        [tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    usage = text.split(" Function ")[1]
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}


@pytest.mark.parametrize("case", cases())
def test_compiles_without_spills(case, tmp_path):
    used = resources(case, tmp_path)
    allowed = case[6] if len(case) > 6 else 0
    assert used["STACK"] <= allowed and used["LOCAL"] == 0, (
        f"registers spill: {used}, allowed {allowed} bytes"
    )
    assert used["REG"] <= 255


@pytest.mark.parametrize("case", [p for p in cases() if "linear_kernel" in p.id])
def test_steps_in_flight_fit_smaller_gpus(case):
    """99 KiB are what a program may have on compute capability 8.6, 8.9 and 12.0."""
    assert compiled(case, 86).metadata.shared <= 99 * 1024


def test_every_kernel_has_a_case():
    launched = {
        f"{value.__module__}.{value.__name__}"
        for module in modules()
        for name, value in vars(module).items()
        if name.endswith("_kernel") and hasattr(value, "arg_names")
    }
    covered = {f"{p.values[0][0].__module__}.{p.values[0][0].__name__}" for p in cases()}
    assert launched <= covered, f"nothing in aot/ compiles {sorted(launched - covered)}"
