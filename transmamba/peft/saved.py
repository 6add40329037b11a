"""What a folder of an adapter holds, read without loading it."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import UserError


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Of the tensors in a folder's adapter; None where there is none of safetensors. UserError where it is
    damaged."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}); take it from where it was saved again") from None
