"""What is installed: two packages, their templates, and no more imports than needed."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import fresh_process
import pytest

ROOT = Path(__file__).parents[1]
# what a user who only converts a model need not wait for, or have
HEAVY = ("sklearn", "datasets", "wandb", "deepspeed", "pandas", "matplotlib")


def test_kernels_is_no_package() -> None:
    """Hugging Face publishes a package of that name, which transformers imports; ours must not shadow it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    code = "import importlib.util as u; spec = u.find_spec('kernels'); print(spec.origin if spec else None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0
    assert str(ROOT) not in done.stdout


def test_importing_transmamba_imports_nothing_heavy() -> None:
    # timm itself imports wandb where it is installed
    code = (
        "import sys, timm, accelerate; before = set(sys.modules); import transmamba; "
        f"print(sorted({set(HEAVY)!r} & set(sys.modules) - before))"
    )
    done = fresh_process.run(code, folder=Path("/"))
    assert done.stdout.strip() == "[]", done.stderr


def test_kernels_need_nothing_of_transmamba() -> None:
    code = "import sys, transmamba_kernels; print([n for n in ('transmamba', 'timm') if n in sys.modules])"
    done = fresh_process.run(code, folder=Path("/"))
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in the wheel, built without network from a copy of the sources."""
    pytest.importorskip("setuptools", minversion="77")
    import shutil

    folder = tmp_path_factory.mktemp("source")
    for name in ("transmamba", "kernels"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    subprocess.run([*command, "-w", folder / "dist", folder], check=True, env=environment)
    (built,) = (folder / "dist").glob("transmamba-*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_the_wheel_holds_both_packages_and_their_data(wheel: list[str]) -> None:
    for package, folder in (("transmamba", ROOT / "transmamba"), ("kernels", ROOT / "kernels")):
        for path in folder.rglob("*"):
            if path.suffix in (".py", ".jinja") or path.name == "py.typed":
                assert str(path.relative_to(ROOT if package == "transmamba" else folder)) in wheel
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    tops = {name.split("/")[0] for name in wheel if ".dist-info" not in name}
    assert tops == {"transmamba", "transmamba_kernels"}


def test_constraints_are_pins_and_nothing_else() -> None:
    """No path, host or editable line of the machine where the set was tested."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        name, equals, version = line.partition("==")
        assert equals and name and version, line
        assert not set(line) & set("/@ ;"), line
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    requires = importlib.metadata.metadata("transmamba").get_all("Requires-Dist") or []
    for requirement in requires:
        name = requirement.split(";")[0].split("[")[0].split(">")[0].strip().lower().replace("_", "-")
        assert name == "transmamba" or name in pinned, f"{name} is not in constraints.txt"
